//! What criterion has written down, as a table.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;
use std::{fs, io};

use serde::Deserialize;

/// Below this a rate says less than a time.
const SMALL: f64 = 16.0;

#[derive(Deserialize)]
struct Benchmark {
    group_id: String,
    function_id: String,
    value_str: String,
    throughput: Throughput,
}

#[derive(Deserialize)]
struct Throughput {
    #[serde(rename = "Bytes")]
    bytes: f64,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

struct Figure {
    written: SystemTime,
    benchmark: Benchmark,
    nanoseconds: f64,
}

/// A row for each function, a column for each size, of what has been measured since `begun`. Empty if
/// nothing has.
pub(crate) fn of_run(estimates: &Path, begun: SystemTime) -> String {
    let mut figures = Vec::new();
    if let Err(error) = collect(estimates, begun, &mut figures) {
        eprintln!("no table: {}: {error}", estimates.display());
    }
    // In the order in which they ran.
    figures.sort_by_key(|figure| figure.written);
    let mut sizes = Vec::new();
    let mut rows = Vec::new();
    let mut cells = HashMap::new();
    for Figure { benchmark, nanoseconds, .. } in &figures {
        let Benchmark { group_id, function_id, value_str, throughput } = benchmark;
        let (size, row) = (value_str.as_str(), (group_id.as_str(), function_id.as_str()));
        if !sizes.contains(&size) {
            sizes.push(size);
        }
        if !rows.contains(&row) {
            rows.push(row);
        }
        cells.insert((row, size), (throughput.bytes, *nanoseconds));
    }
    sizes.sort_by_key(|size| bytes(size));
    let mut table = String::new();
    if rows.is_empty() {
        return table;
    }
    // Nothing that is written to a string fails.
    let _ = writeln!(table, "\n| part | | {} |", sizes.join(" | "));
    let _ = writeln!(table, "|---|---|{}", "---|".repeat(sizes.len()));
    for row @ (part, function) in rows {
        let _ = write!(table, "| {part} | {function} |");
        for size in &sizes {
            let cell = cells.get(&(row, size)).map(|&(bytes, nanoseconds)| {
                let figure = if bytes < SMALL {
                    format!("{nanoseconds:.2} ns")
                } else {
                    format!("{:.2}", bytes / nanoseconds)
                };
                match cells.get(&((part, "memcpy"), size)) {
                    Some((_, memcpy)) => format!("{figure} ({:.2})", nanoseconds / memcpy),
                    None => figure,
                }
            });
            let _ = write!(table, " {} |", cell.unwrap_or_default());
        }
        table.push('\n');
    }
    table
}

/// `16 KiB` as a number.
fn bytes(size: &str) -> u64 {
    let (number, unit) = size.split_once(' ').unwrap_or((size, "B"));
    let unit = match unit {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => 1,
    };
    number.parse().unwrap_or(0) * unit
}

fn collect(directory: &Path, begun: SystemTime, into: &mut Vec<Figure>) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(directory) else {
        // Nothing was ever measured: criterion was asked for something else.
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        let estimates = path.join("estimates.json");
        if !path.ends_with("new") || !estimates.exists() {
            collect(&path, begun, into)?;
            continue;
        }
        let written = fs::metadata(&estimates)?.modified()?;
        // Older ones are of other runs.
        if written < begun {
            continue;
        }
        let benchmark = serde_json::from_slice(&fs::read(path.join("benchmark.json"))?)?;
        let estimates: Estimates = serde_json::from_slice(&fs::read(estimates)?)?;
        let nanoseconds = estimates.median.point_estimate;
        into.push(Figure { written, benchmark, nanoseconds });
    }
    Ok(())
}
