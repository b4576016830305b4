//! The acceptance bars: what coracle promises to reach.

use std::io::{self, Write};

use serde::Serialize;

use super::ratio::{self, Compared};
use super::table;
use crate::load::broadcast::BroadcastLoad;
use crate::measure::RowResult;
use crate::plan::Row;
use crate::servers::Role;

/// The promises are about the echo rows with this many connections.
const CONNECTIONS: usize = 50;

/// To the bare loop with one message in flight.
const TO_BARE_ALONE: f64 = 1.2;

/// To the bare loop with more in flight, where less of the work is the kernel's.
const TO_BARE_BATCHED: f64 = 1.6;

/// To the best peer, in every row.
const TO_BEST_PEER: f64 = 1.0;

/// To the bare loop, for one connection from its beginning to its end.
const TO_BARE_ACCEPT: f64 = 1.2;

/// The one with one publisher.
const BROADCAST: BroadcastLoad = BroadcastLoad { members: 1_000, size: 256, in_flight: 1 };

/// To the bare loop, for one delivery of it.
const TO_BARE_BROADCAST: f64 = 1.2;

/// Resident memory of an idle connection, in bytes.
const IDLE_BYTES: f64 = 1024.0;

/// The same with TLS.
const IDLE_TLS_BYTES: f64 = 6.0 * 1024.0;

/// One promise, and what came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Bar {
    what: String,
    /// `None` if what it needs was not measured.
    figure: Option<f64>,
    bound: f64,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Missed,
    NotMeasured,
}

impl Bar {
    fn new(what: String, figure: Option<f64>, bound: f64) -> Self {
        // As precisely as it is printed: more would be noise.
        let verdict = match figure {
            Some(figure) if (figure * 100.0).round() <= (bound * 100.0).round() => Verdict::Ok,
            Some(_) => Verdict::Missed,
            None => Verdict::NotMeasured,
        };
        Self { what, figure, bound, verdict }
    }

    /// Whether the promise is known to be kept.
    pub(crate) fn is_ok(&self) -> bool {
        self.verdict == Verdict::Ok
    }
}

/// The bars for the rows that were measured; none if coracle was left out.
pub(crate) fn bars(results: &[RowResult]) -> Vec<Bar> {
    let mut bars = Vec::new();
    for result in results {
        let compared = ratio::compare(result);
        let Some(ours) = compared.into_iter().find(|it| it.role == Role::Ours) else {
            continue;
        };
        bars_of(&result.row, &ours, &mut bars);
    }
    bars
}

fn bars_of(row: &Row, ours: &Compared, bars: &mut Vec<Bar>) {
    match row {
        Row::Echo(load) if load.connections == CONNECTIONS => {
            if !load.tls {
                let bound = if load.in_flight == 1 { TO_BARE_ALONE } else { TO_BARE_BATCHED };
                bars.push(Bar::new(format!("{row}: × bare"), ours.to_bare, bound));
            }
            let what = format!("{row}: × best peer");
            bars.push(Bar::new(what, ours.to_best_peer, TO_BEST_PEER));
        }
        Row::Echo(_) => {}
        // Most of it is the cryptography's, which is the same for all.
        Row::Accept(load) if load.tls.is_some() => {}
        Row::Accept(_) => {
            let what = format!("{row}: × bare");
            bars.push(Bar::new(what, ours.to_bare, TO_BARE_ACCEPT));
        }
        // With more in flight coracle does less than the plain loop, and what the other does is no promise.
        Row::Broadcast(load) if *load == BROADCAST => {
            let what = format!("{row}: × bare");
            bars.push(Bar::new(what, ours.to_bare, TO_BARE_BROADCAST));
        }
        Row::Broadcast(_) => {}
        Row::Idle(load) => {
            let what = format!("{row}: bytes each");
            let bound = if load.tls { IDLE_TLS_BYTES } else { IDLE_BYTES };
            bars.push(Bar::new(what, ours.median, bound));
        }
    }
}

/// Prints the summary.
pub(super) fn print(out: &mut impl Write, bars: &[Bar]) -> io::Result<()> {
    if bars.is_empty() {
        return writeln!(out, "\nNo acceptance bar is about what was measured.");
    }
    writeln!(out, "\nacceptance bars")?;
    let lines = bars.iter().map(|bar| {
        let decimals = if bar.bound >= 100.0 { 0 } else { 2 };
        let figure = bar.figure.map_or("-".to_owned(), |it| format!("{it:.decimals$}"));
        let verdict = match bar.verdict {
            Verdict::Ok => "ok",
            Verdict::Missed => "MISSED",
            Verdict::NotMeasured => "not measured",
        };
        let bound = format!("≤ {:.decimals$}", bar.bound);
        vec![bar.what.clone(), figure, bound, verdict.to_owned()]
    });
    table::write_aligned(out, &lines.collect::<Vec<_>>())
}
