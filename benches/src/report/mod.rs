//! What is made of the figures: ratios, tables, acceptance bars, JSON.

mod bars;
mod ratio;
mod table;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

pub(crate) use bars::{Bar, bars};
pub(crate) use table::print_sample;

use crate::Result;
use crate::measure::{RowResult, TargetResult};
use crate::plan::{Plan, Row, Sample};
use crate::proc::{CpuSource, CpuSpent, Machine};
use ratio::Compared;

/// Prints all tables and the summary.
pub(crate) fn print(results: &[RowResult], bars: &[Bar], machine: &Machine) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", describe(machine))?;
    for result in results {
        writeln!(out, "\n{}", result.row)?;
        table::print(&mut out, result)?;
    }
    writeln!(out, "\n{}", clocks(results))?;
    bars::print(&mut out, bars)
}

fn describe(machine: &Machine) -> String {
    let Machine { cores, cpu, kernel, .. } = machine;
    let pinned = match machine.pinned_to {
        Some(core) => format!("all on core {core}"),
        None => "not pinned".to_owned(),
    };
    format!("{cores} cores, {cpu}, Linux {kernel}; {pinned}")
}

/// Which clocks the CPU figures are from, and whether they agreed.
fn clocks(results: &[RowResult]) -> String {
    let spent: Vec<&CpuSpent> = results
        .iter()
        .flat_map(|result| &result.targets)
        .flat_map(|target| target.rounds.iter().flatten())
        .filter_map(|sample| match sample {
            Sample::Echo(sample) => Some(&sample.cpu),
            Sample::Accept(sample) => Some(&sample.cpu),
            Sample::Idle(_) => None,
            Sample::Broadcast(sample) => Some(&sample.cpu),
        })
        .collect();
    let from = |source| spent.iter().filter(|it| it.source == source).count();
    let both: Vec<bool> = spent.iter().filter_map(|it| it.agree).collect();
    format!(
        "CPU time: {} windows by /proc/PID/stat, {} by /proc/PID/task/*/schedstat; \
         the two agreed within resolution in {} of {}.",
        from(CpuSource::Stat),
        from(CpuSource::Schedstat),
        both.iter().filter(|&&agree| agree).count(),
        both.len(),
    )
}

/// Everything, for other programs.
#[derive(Serialize)]
struct Json<'a> {
    date: String,
    command: Vec<String>,
    machine: &'a Machine,
    plan: &'a Plan,
    rows: Vec<JsonRow<'a>>,
    bars: &'a [Bar],
}

#[derive(Serialize)]
struct JsonRow<'a> {
    row: &'a Row,
    medians: Vec<Compared>,
    targets: &'a [TargetResult],
}

/// Writes the JSON report.
pub(crate) fn write_json(
    path: &Path,
    results: &[RowResult],
    bars: &[Bar],
    machine: &Machine,
    plan: &Plan,
) -> Result<()> {
    let rows = results.iter().map(|result| JsonRow {
        row: &result.row,
        medians: ratio::compare(result),
        targets: &result.targets,
    });
    let json = Json {
        date: utc(SystemTime::now()),
        command: std::env::args().skip(1).collect(),
        machine,
        plan,
        rows: rows.collect(),
        bars,
    };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut text = serde_json::to_string_pretty(&json)?;
    text.push('\n');
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(())
}

/// A moment as ISO 8601 has it, in UTC.
fn utc(moment: SystemTime) -> String {
    let seconds = moment.duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, so that the leap day is a year's last.
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let date = of_year - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
