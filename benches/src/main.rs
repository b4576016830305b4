//! Measures coracle against a bare epoll loop and against its peers.
//!
//! One command builds the servers, starts each as a child process on loopback, loads them in turn
//! over several rounds, and reports medians and ratios. `README.md` beside `Cargo.toml` says what
//! the rows mean; `--help` lists the options.

mod cli;
mod load;
mod measure;
mod plan;
mod proc;
mod report;
mod servers;

use std::process::ExitCode;

use coracle_benches::{Error, Result};

use cli::{Attach, AttachLoad, Command, Compare, Pin};
use load::Sliced;
use load::accept::AcceptRun;
use load::broadcast::BroadcastRun;
use load::echo::EchoRun;
use plan::{Row, Sample};
use proc::Machine;
use servers::Programs;

/// Descriptors that are not connections: of the program, its children's pipes, epoll.
const SPARE_FILES: usize = 200;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.next_if(|it| it == servers::BECOME).is_some() {
        return Err(servers::become_server(args));
    }
    match cli::parse(args)? {
        Command::Help => print!("{}", cli::HELP),
        Command::List => {
            for name in servers::names() {
                println!("{name}");
            }
        }
        Command::Compare(compare) => return self::compare(*compare),
        Command::Attach(attach) => self::attach(&attach)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds, measures and reports.
fn compare(mut compare: Compare) -> Result<ExitCode> {
    let mut machine = Machine::look();
    let programs = Programs::build(&compare.targets)?;
    machine.pinned_to = pin(compare.pin);
    let most = proc::raise_open_files()?.saturating_sub(SPARE_FILES);
    if compare.plan.idle_connections > most {
        eprintln!("the limit on open files allows only {most} idle connections");
        compare.plan.idle_connections = most;
    }
    // All targets of a row have their connections at the same time.
    let most = most / compare.targets.len().max(1);
    for members in &mut compare.plan.broadcast.members {
        if *members >= most {
            *members = most.saturating_sub(1).max(1);
            eprintln!("the limit on open files allows only {members} members");
        }
    }
    let results = measure::run(&compare.plan, &compare.targets, &programs);
    let bars = report::bars(&results);
    report::print(&results, &bars, &machine)?;
    report::write_json(&compare.json, &results, &bars, &machine, &compare.plan)?;
    println!("\nraw figures: {}", compare.json.display());
    let kept = bars.iter().all(report::Bar::is_ok) && !bars.is_empty();
    Ok(if compare.check && !kept { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Loads one server that somebody else has started.
fn attach(attach: &Attach) -> Result<()> {
    pin(attach.pin);
    proc::raise_open_files()?;
    let (address, pid) = (attach.address, attach.pid);
    let (row, sample) = match attach.load {
        AttachLoad::Echo(load, timing) => {
            let mut run = Box::new(EchoRun::begin(address, pid, &load, &timing)?);
            run.slice()?;
            (Row::Echo(load), run.finish()?)
        }
        AttachLoad::Idle(load, hold) => {
            (Row::Idle(load), Sample::Idle(load::idle::run(address, pid, &load, hold)?))
        }
        AttachLoad::Broadcast(load, timing) => {
            let mut run = Box::new(BroadcastRun::begin(address, pid, &load, &timing)?);
            run.slice()?;
            (Row::Broadcast(load), run.finish()?)
        }
        AttachLoad::Cycles(load) => {
            let mut run = Box::new(AcceptRun::begin(address, pid, &load, 1)?);
            run.slice()?;
            (Row::Accept(load), run.finish()?)
        }
    };
    report::print_sample(&row, &sample)?;
    Ok(())
}

/// Keeps us on one core if asked to, and says so if that is not possible.
fn pin(pin: Pin) -> Option<usize> {
    let core = match pin {
        Pin::No => return None,
        Pin::Last => None,
        Pin::To(core) => Some(core),
    };
    match proc::pin(core) {
        Ok(core) => Some(core),
        Err(error) => {
            eprintln!("not pinned: {error}");
            None
        }
    }
}
