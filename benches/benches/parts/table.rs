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
struct Samples {
    iters: Vec<f64>,
    times: Vec<f64>,
}

impl Samples {
    /// Of one call, by the fastest sample: whatever else the machine does only adds to it.
    fn nanoseconds(&self) -> f64 {
        let each = self.times.iter().zip(&self.iters).map(|(time, iters)| time / iters);
        each.fold(f64::INFINITY, f64::min)
    }
}

struct Figure {
    written: SystemTime,
    benchmark: Benchmark,
    nanoseconds: f64,
}

/// A row for each function, a column for each size, of what has been measured since `begun`. Empty if
/// nothing has.
pub(crate) fn of_run(results: &Path, begun: SystemTime) -> String {
    let mut figures = Vec::new();
    if let Err(error) = collect(results, begun, &mut figures) {
        eprintln!("no table: {}: {error}", results.display());
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
                    format!("{} ns", short(nanoseconds))
                } else {
                    short(bytes / nanoseconds)
                };
                match cells.get(&((part, "memcpy"), size)) {
                    Some((_, memcpy)) => format!("{figure} ({})", short(nanoseconds / memcpy)),
                    None => figure,
                }
            });
            let _ = write!(table, " {} |", cell.unwrap_or_default());
        }
        table.push('\n');
    }
    table
}

/// With as many digits as mean something.
fn short(figure: f64) -> String {
    match figure {
        ..0.1 => format!("{figure:.3}"),
        ..10.0 => format!("{figure:.2}"),
        ..100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
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
        let samples = path.join("sample.json");
        if !path.ends_with("new") || !samples.exists() {
            collect(&path, begun, into)?;
            continue;
        }
        let written = fs::metadata(&samples)?.modified()?;
        // Older ones are of other runs.
        if written < begun {
            continue;
        }
        let benchmark = serde_json::from_slice(&fs::read(path.join("benchmark.json"))?)?;
        let samples: Samples = serde_json::from_slice(&fs::read(samples)?)?;
        let nanoseconds = samples.nanoseconds();
        into.push(Figure { written, benchmark, nanoseconds });
    }
    Ok(())
}
