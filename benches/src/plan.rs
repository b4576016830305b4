//! Which rows there are, and how long each is measured.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::load::accept::{AcceptLoad, AcceptSample};
use crate::load::echo::{EchoLoad, EchoSample, Timing};
use crate::load::idle::{IdleLoad, IdleSample};

/// One row: a load that every target gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Row {
    Echo(EchoLoad),
    Accept(AcceptLoad),
    Idle(IdleLoad),
}

/// What one target did in one round of a row.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Sample {
    Echo(EchoSample),
    Accept(AcceptSample),
    Idle(IdleSample),
}

impl Sample {
    /// The figure that targets are compared by: CPU microseconds, or bytes.
    pub(crate) fn cost(&self) -> f64 {
        match self {
            Self::Echo(sample) => sample.cpu_us,
            Self::Accept(sample) => sample.cpu_us,
            Self::Idle(sample) => sample.bytes,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo(load) => {
                match load.size {
                    size if size >= 1024 && size % 1024 == 0 => write!(f, "{} KiB", size / 1024)?,
                    size => write!(f, "{size} B")?,
                }
                write!(f, ", {} in flight", load.in_flight)?;
                write!(f, ", {} connections", load.connections)?;
                f.write_str(if load.text { ", text" } else { "" })
            }
            Self::Accept(load) => write!(f, "{} × connect, upgrade, close", load.cycles),
            Self::Idle(load) => write!(f, "{} idle connections", load.connections),
        }
    }
}

/// The kinds of rows, for `--rows`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kinds {
    pub(crate) echo: bool,
    pub(crate) accept: bool,
    pub(crate) idle: bool,
}

/// What is measured, and how thoroughly.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) timing: Timing,
    /// How long idle connections are held.
    #[serde(serialize_with = "seconds")]
    pub(crate) hold: Duration,
    /// No measurement begins after this.
    #[serde(serialize_with = "seconds")]
    pub(crate) time_limit: Duration,
    #[serde(skip)]
    pub(crate) kinds: Kinds,
    pub(crate) sizes: Vec<usize>,
    pub(crate) in_flight: Vec<usize>,
    pub(crate) connections: Vec<usize>,
    pub(crate) text: bool,
    pub(crate) cycles: usize,
    pub(crate) idle_connections: usize,
}

impl Plan {
    /// Every row, with windows long enough for `/proc/PID/stat`: about a quarter of an hour.
    pub(crate) fn full() -> Self {
        Self {
            rounds: 3,
            timing: Timing {
                warm_up: Duration::from_millis(250),
                window: Duration::from_secs(1),
                slices: 5,
            },
            hold: Duration::from_secs(1),
            time_limit: Duration::from_secs(30 * 60),
            kinds: Kinds { echo: true, accept: true, idle: true },
            sizes: vec![16, 1024, 16 * 1024],
            in_flight: vec![1, 16],
            connections: vec![1, 50, 500],
            text: false,
            cycles: 10_000,
            idle_connections: 5_000,
        }
    }

    /// The rows with 50 connections and the accepting, in less than a minute with all targets.
    pub(crate) fn quick() -> Self {
        let mut plan = Self::full();
        plan.timing.warm_up = Duration::from_millis(50);
        plan.timing.window = Duration::from_millis(150);
        plan.timing.slices = 3;
        plan.time_limit = Duration::from_secs(60);
        plan.kinds.idle = false;
        plan.connections = vec![50];
        plan.cycles = 3_000;
        plan
    }

    /// The rows, in the order of the report.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        if self.kinds.echo {
            for &connections in &self.connections {
                for &in_flight in &self.in_flight {
                    for &size in &self.sizes {
                        rows.push(Row::Echo(EchoLoad {
                            connections,
                            size,
                            in_flight,
                            text: self.text,
                        }));
                    }
                }
            }
        }
        if self.kinds.accept {
            rows.push(Row::Accept(AcceptLoad { cycles: self.cycles }));
        }
        if self.kinds.idle {
            rows.push(Row::Idle(IdleLoad { connections: self.idle_connections, deflate: false }));
        }
        rows
    }

    /// How often a row is measured.
    pub(crate) fn rounds_of(&self, row: &Row) -> usize {
        match row {
            // Memory is not noisy.
            Row::Idle(_) => 1,
            _ => self.rounds,
        }
    }
}

/// Writes a duration as a number of seconds.
pub(crate) fn seconds<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(duration.as_secs_f64())
}
