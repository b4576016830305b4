//! The rounds: in each, every row with every target in turn, so that noise meets all alike.

use std::time::Instant;

use serde::Serialize;

use crate::Result;
use crate::load::accept::AcceptRun;
use crate::load::broadcast::BroadcastRun;
use crate::load::echo::EchoRun;
use crate::load::{Sliced, idle};
use crate::plan::{Plan, Row, Sample};
use crate::servers::{Programs, Server, Target};

/// Takes back the line that says what is being measured.
const CLEAR: &str = "\r\x1b[K";

/// Everything that was measured of one row.
#[derive(Debug)]
pub(crate) struct RowResult {
    pub(crate) row: Row,
    pub(crate) targets: Vec<TargetResult>,
}

/// Everything that was measured of one target in one row.
#[derive(Debug, Serialize)]
pub(crate) struct TargetResult {
    #[serde(rename = "name", serialize_with = "name")]
    pub(crate) target: Target,
    /// By round; `None` where it was not measured.
    pub(crate) rounds: Vec<Option<Sample>>,
    /// What went wrong.
    pub(crate) errors: Vec<String>,
}

fn name<S: serde::Serializer>(
    target: &Target,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(target.name)
}

/// Measures everything, in every round with new processes.
pub(crate) fn run(plan: &Plan, targets: &[Target], programs: &Programs) -> Vec<RowResult> {
    let begun = Instant::now();
    let rows = plan.rows().into_iter();
    let mut results: Vec<RowResult> =
        rows.map(|row| RowResult::new(row, &Target::of_row(&row, targets))).collect();
    let mut skipped = 0;
    for round in 0..plan.rounds {
        for result in results.iter_mut().filter(|it| round < plan.rounds_of(&it.row)) {
            eprint!("{CLEAR}round {} of {}: {}", round + 1, plan.rounds, result.row);
            if begun.elapsed() >= plan.time_limit {
                skipped += 1;
                continue;
            }
            // Nobody is always first, or always behind the same one.
            let first = round % result.targets.len().max(1);
            let (behind, ahead) = result.targets.split_at_mut(first);
            let mut order: Vec<&mut TargetResult> = ahead.iter_mut().chain(behind).collect();
            measure(plan, &result.row, &mut order, programs);
        }
    }
    eprintln!("{CLEAR}measured for {:.0} s", begun.elapsed().as_secs_f64());
    if skipped > 0 {
        let limit = plan.time_limit.as_secs_f64();
        eprintln!("{skipped} times a row was left out: the limit is {limit:.0} s");
    }
    results
}
/// Measures every target once, in that order.
fn measure(plan: &Plan, row: &Row, order: &mut [&mut TargetResult], programs: &Programs) {
    if let Row::Idle(_) = row {
        // One after another: so many connections are enough for one machine.
        for target in order {
            let sample = idle(plan, &target.target.load_of(row), &target.target, programs);
            target.record(row, sample);
        }
        return;
    }
    let mut runs: Vec<Result<Run>> =
        order.iter().map(|it| Run::begin(plan, row, &it.target, programs)).collect();
    for _ in 0..plan.timing.slices {
        for run in &mut runs {
            if let Ok(Run { load, .. }) = run
                && let Err(error) = load.slice()
            {
                *run = Err(error);
            }
        }
    }
    for (target, run) in order.iter_mut().zip(runs) {
        target.record(row, run.and_then(|it| it.load.finish()));
    }
}

fn idle(plan: &Plan, row: &Row, target: &Target, programs: &Programs) -> Result<Sample> {
    let Row::Idle(load) = row else {
        return Err("not a row with idle connections".into());
    };
    let server = programs.start(target, load.tls)?;
    let sample = idle::run(server.address, server.pid(), load, plan.hold)?;
    Ok(Sample::Idle(sample))
}

/// A server and what is loaded on it.
struct Run {
    load: Box<dyn Sliced>,
    /// Lives as long as its load.
    _server: Server,
}

impl Run {
    fn begin(plan: &Plan, row: &Row, target: &Target, programs: &Programs) -> Result<Self> {
        let row = target.load_of(row);
        let server = programs.start(target, row.is_tls())?;
        let (address, pid) = (server.address, server.pid());
        let timing = &plan.timing;
        let load: Box<dyn Sliced> = match &row {
            Row::Echo(load) => Box::new(EchoRun::begin(address, pid, load, timing)?),
            Row::Accept(load) => Box::new(AcceptRun::begin(address, pid, load, timing.slices)?),
            Row::Broadcast(load) => Box::new(BroadcastRun::begin(address, pid, load, timing)?),
            Row::Idle(_) => return Err("idle connections take no slices".into()),
        };
        Ok(Self { load, _server: server })
    }
}

impl RowResult {
    fn new(row: Row, targets: &[Target]) -> Self {
        let targets = targets.iter().map(|&target| TargetResult {
            target,
            rounds: Vec::new(),
            errors: Vec::new(),
        });
        Self { row, targets: targets.collect() }
    }
}

impl TargetResult {
    fn record(&mut self, row: &Row, sample: Result<Sample>) {
        if let Err(error) = &sample {
            eprintln!("{CLEAR}{}, {row}: {error}", self.target.name);
            self.errors.push(error.to_string());
        }
        self.rounds.push(sample.ok());
    }
}
