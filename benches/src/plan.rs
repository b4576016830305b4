//! Which rows there are, and how long each is measured.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::load::accept::{AcceptLoad, AcceptSample, Handshake};
use crate::load::broadcast::{BroadcastLoad, BroadcastSample};
use crate::load::echo::{EchoLoad, EchoSample, Timing};
use crate::load::idle::{IdleLoad, IdleSample};

/// One row: a load that every target gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Row {
    Echo(EchoLoad),
    Accept(AcceptLoad),
    Idle(IdleLoad),
    Broadcast(BroadcastLoad),
}

/// What one target did in one round of a row.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Sample {
    Echo(EchoSample),
    Accept(AcceptSample),
    Idle(IdleSample),
    Broadcast(BroadcastSample),
}

impl Sample {
    /// The figure that targets are compared by: CPU microseconds, or bytes.
    pub(crate) fn cost(&self) -> f64 {
        match self {
            Self::Echo(sample) => sample.cpu_us,
            Self::Accept(sample) => sample.cpu_us,
            Self::Idle(sample) => sample.bytes,
            Self::Broadcast(sample) => sample.cpu_us,
        }
    }
}

impl Row {
    /// Whether its connections speak TLS.
    pub(crate) fn is_tls(&self) -> bool {
        match self {
            Self::Echo(load) => load.tls,
            Self::Accept(load) => load.tls.is_some(),
            Self::Idle(load) => load.tls,
            Self::Broadcast(_) => false,
        }
    }

    /// The same load without TLS.
    pub(crate) fn without_tls(self) -> Self {
        match self {
            Self::Echo(load) => Self::Echo(EchoLoad { tls: false, ..load }),
            Self::Accept(load) => Self::Accept(AcceptLoad { tls: None, ..load }),
            Self::Idle(load) => Self::Idle(IdleLoad { tls: false, ..load }),
            Self::Broadcast(_) => self,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo(load) => {
                write_size(f, load.size)?;
                write!(f, ", {} in flight", load.in_flight)?;
                write!(f, ", {} connections", load.connections)?;
                f.write_str(if load.text { ", text" } else { "" })?;
                f.write_str(if load.tls { ", TLS" } else { "" })
            }
            Self::Accept(load) => {
                let handshake = match load.tls {
                    None => "",
                    Some(Handshake::Full) => "TLS handshake, ",
                    Some(Handshake::Resumed) => "resumed TLS handshake, ",
                };
                write!(f, "{} × connect, {handshake}upgrade, close", load.cycles)
            }
            Self::Idle(load) => {
                write!(f, "{} idle connections", load.connections)?;
                f.write_str(if load.tls { ", TLS" } else { "" })
            }
            Self::Broadcast(load) => {
                write_size(f, load.size)?;
                write!(f, " to {} members, {} in flight", load.members, load.in_flight)
            }
        }
    }
}

fn write_size(f: &mut fmt::Formatter<'_>, size: usize) -> fmt::Result {
    if size >= 1024 && size.is_multiple_of(1024) {
        write!(f, "{} KiB", size / 1024)
    } else {
        write!(f, "{size} B")
    }
}

/// The kinds of rows, for `--rows`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kinds {
    pub(crate) echo: bool,
    pub(crate) accept: bool,
    pub(crate) idle: bool,
    pub(crate) broadcast: bool,
}

/// Which rows there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those without TLS.
    Plain,
    /// Those with TLS.
    Tls,
    /// Those with one publisher, which are without TLS too.
    Broadcast,
    All,
}

/// How large the loads are, of the rows with TLS or of those without.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Loads {
    pub(crate) sizes: Vec<usize>,
    pub(crate) in_flight: Vec<usize>,
    pub(crate) connections: Vec<usize>,
    pub(crate) cycles: usize,
}

/// How large the loads with one publisher are.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Crowds {
    pub(crate) sizes: Vec<usize>,
    pub(crate) in_flight: Vec<usize>,
    pub(crate) members: Vec<usize>,
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
    #[serde(skip)]
    pub(crate) scope: Scope,
    pub(crate) plain: Loads,
    pub(crate) tls: Loads,
    pub(crate) broadcast: Crowds,
    pub(crate) text: bool,
    pub(crate) idle_connections: usize,
}

impl Plan {
    /// Every row, with windows long enough for `/proc/PID/stat`: more than twenty minutes.
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
            kinds: Kinds { echo: true, accept: true, idle: true, broadcast: true },
            scope: Scope::All,
            plain: Loads {
                sizes: vec![16, 1024, 16 * 1024],
                in_flight: vec![1, 16],
                connections: vec![1, 50, 500],
                cycles: 10_000,
            },
            tls: Loads {
                sizes: vec![16, 1024],
                in_flight: vec![1, 16],
                connections: vec![50],
                // A handshake costs both sides more than twenty times as much as the rest.
                cycles: 2_000,
            },
            broadcast: Crowds { sizes: vec![256], in_flight: vec![1, 16], members: vec![1_000] },
            text: false,
            idle_connections: 5_000,
        }
    }

    /// The rows with 50 connections and the accepting, in less than a minute with all targets; TLS and
    /// broadcasts only if they are asked for.
    pub(crate) fn quick() -> Self {
        let mut plan = Self::full();
        plan.timing.warm_up = Duration::from_millis(50);
        plan.timing.window = Duration::from_millis(150);
        plan.timing.slices = 3;
        plan.time_limit = Duration::from_secs(60);
        plan.kinds.idle = false;
        plan.kinds.broadcast = false;
        plan.scope = Scope::Plain;
        plan.plain.connections = vec![50];
        plan.plain.cycles = 3_000;
        plan.tls.cycles = 500;
        plan
    }

    /// The rows, in the order of the report.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        if matches!(self.scope, Scope::Plain | Scope::All) {
            self.push_rows(&self.plain, false, &mut rows);
        }
        if matches!(self.scope, Scope::Tls | Scope::All) {
            self.push_rows(&self.tls, true, &mut rows);
        }
        if self.kinds.broadcast && self.scope != Scope::Tls {
            self.push_broadcasts(&mut rows);
        }
        rows
    }

    fn push_broadcasts(&self, rows: &mut Vec<Row>) {
        for &members in &self.broadcast.members {
            for &in_flight in &self.broadcast.in_flight {
                for &size in &self.broadcast.sizes {
                    rows.push(Row::Broadcast(BroadcastLoad { members, size, in_flight }));
                }
            }
        }
    }

    fn push_rows(&self, loads: &Loads, tls: bool, rows: &mut Vec<Row>) {
        if self.kinds.echo {
            for &connections in &loads.connections {
                for &in_flight in &loads.in_flight {
                    for &size in &loads.sizes {
                        let text = self.text;
                        rows.push(Row::Echo(EchoLoad { connections, size, in_flight, text, tls }));
                    }
                }
            }
        }
        if self.kinds.accept {
            let handshakes = match tls {
                false => &[None][..],
                true => &[Some(Handshake::Full), Some(Handshake::Resumed)],
            };
            for &tls in handshakes {
                rows.push(Row::Accept(AcceptLoad { cycles: loads.cycles, tls }));
            }
        }
        if self.kinds.idle {
            let connections = self.idle_connections;
            rows.push(Row::Idle(IdleLoad { connections, deflate: false, tls }));
        }
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
