//! Aligned tables.

use std::io::{self, Write};

use super::ratio::{self, Compared};
use crate::measure::{RowResult, TargetResult};
use crate::plan::{Row, Sample};
use crate::servers::Role;

/// A figure beside the compared one: its heading, its value, and its decimals.
struct Extra {
    heading: &'static str,
    value: fn(&Sample) -> Option<f64>,
    decimals: usize,
}

/// How the compared figure is called, its decimals, and what stands beside it.
fn columns(row: &Row) -> (&'static str, usize, &'static [Extra]) {
    match row {
        Row::Echo(_) => ("CPU µs/msg", 3, &ECHO),
        Row::Accept(_) => ("CPU µs/conn", 2, &ACCEPT),
        Row::Idle(_) => ("bytes/conn", 0, &IDLE),
        Row::Broadcast(_) => ("CPU µs/delivery", 3, &BROADCAST),
    }
}

const ECHO: [Extra; 3] = [
    Extra {
        heading: "msgs/s",
        value: |it| match it {
            Sample::Echo(sample) => Some(sample.messages_per_s),
            _ => None,
        },
        decimals: 0,
    },
    Extra {
        heading: "p50 µs",
        value: |it| match it {
            Sample::Echo(sample) => Some(sample.p50_us),
            _ => None,
        },
        decimals: 0,
    },
    Extra {
        heading: "p99 µs",
        value: |it| match it {
            Sample::Echo(sample) => Some(sample.p99_us),
            _ => None,
        },
        decimals: 0,
    },
];

const ACCEPT: [Extra; 2] = [
    Extra {
        heading: "conns/CPU s",
        value: |it| match it {
            Sample::Accept(sample) => Some(1e6 / sample.cpu_us),
            _ => None,
        },
        decimals: 0,
    },
    Extra {
        heading: "conns/s",
        value: |it| match it {
            Sample::Accept(sample) => Some(sample.cycles_per_s),
            _ => None,
        },
        decimals: 0,
    },
];

const IDLE: [Extra; 1] = [Extra {
    heading: "idle CPU µs/s",
    value: |it| match it {
        Sample::Idle(sample) => Some(sample.cpu_us_per_s),
        _ => None,
    },
    decimals: 0,
}];

const BROADCAST: [Extra; 4] = [
    Extra {
        heading: "deliveries/CPU s",
        value: |it| match it {
            Sample::Broadcast(sample) => Some(1e6 / sample.cpu_us),
            _ => None,
        },
        decimals: 0,
    },
    Extra {
        heading: "deliveries/s",
        value: |it| match it {
            Sample::Broadcast(sample) => Some(sample.deliveries_per_s),
            _ => None,
        },
        decimals: 0,
    },
    Extra {
        heading: "p50 µs",
        value: |it| match it {
            Sample::Broadcast(sample) => Some(sample.p50_us),
            _ => None,
        },
        decimals: 0,
    },
    Extra {
        heading: "p99 µs",
        value: |it| match it {
            Sample::Broadcast(sample) => Some(sample.p99_us),
            _ => None,
        },
        decimals: 0,
    },
];

/// Prints one row's table.
pub(super) fn print(out: &mut impl Write, result: &RowResult) -> io::Result<()> {
    let (cost, decimals, extras) = columns(&result.row);
    let mut heading = vec!["target", cost, "min"];
    heading.extend(extras.iter().map(|it| it.heading));
    heading.push(if result.row.is_tls() { "×no TLS" } else { "×bare" });
    let coalesced = result.targets.iter().any(|it| it.target.role == Role::Coalesced);
    heading.extend(coalesced.then_some("×coalesced"));
    heading.push("×best peer");
    let mut lines = vec![heading.into_iter().map(str::to_owned).collect()];
    for (target, compared) in result.targets.iter().zip(ratio::compare(result)) {
        lines.push(line(target, &compared, decimals, extras, coalesced));
    }
    write_aligned(out, &lines)
}

fn line(
    target: &TargetResult,
    compared: &Compared,
    decimals: usize,
    extras: &[Extra],
    coalesced: bool,
) -> Vec<String> {
    let mut cells = vec![
        compared.name.to_owned(),
        number(compared.median, decimals),
        number(compared.min, decimals),
    ];
    for extra in extras {
        cells.push(number(ratio::median_of(target, extra.value), extra.decimals));
    }
    cells.push(number(compared.to_bare.or(compared.to_no_tls), 2));
    cells.extend(coalesced.then(|| number(compared.to_coalesced, 2)));
    cells.push(number(compared.to_best_peer, 2));
    if !target.errors.is_empty() {
        cells.push(format!("failed {}×", target.errors.len()));
    }
    cells
}

/// Prints a single figure, for a server that we did not start.
pub(crate) fn print_sample(row: &Row, sample: &Sample) -> io::Result<()> {
    let (cost, decimals, extras) = columns(row);
    let mut heading = vec![cost.to_owned()];
    let mut cells = vec![number(Some(sample.cost()), decimals)];
    for extra in extras {
        heading.push(extra.heading.to_owned());
        cells.push(number((extra.value)(sample), extra.decimals));
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{row}")?;
    write_aligned(&mut out, &[heading, cells])
}

fn number(value: Option<f64>, decimals: usize) -> String {
    match value {
        Some(value) if value.is_finite() => format!("{value:.decimals$}"),
        _ => "-".to_owned(),
    }
}

/// The first column to the left, the others to the right.
pub(super) fn write_aligned(out: &mut impl Write, lines: &[Vec<String>]) -> io::Result<()> {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for line in lines {
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            if column == 0 {
                write!(out, "  {cell:<width$}")?;
            } else {
                write!(out, "  {cell:>width$}")?;
            }
        }
        writeln!(out)?;
    }
    Ok(())
}
