//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::Result;
use crate::load::accept::{AcceptLoad, Handshake};
use crate::load::broadcast::BroadcastLoad;
use crate::load::echo::{EchoLoad, Timing};
use crate::load::idle::IdleLoad;
use crate::plan::{Kinds, Plan, Scope};
use crate::servers::{self, TARGETS, Target};

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Measures coracle against a bare epoll loop and against its peers, over loopback, on one core.

usage: cargo run --release --manifest-path benches/Cargo.toml -- [OPTIONS]

what is measured:
  --quick            the rows with 50 connections, and accepting, without TLS; under a minute
  --tls              only the rows with TLS (with --quick those of them that are not idle)
  --plain            only the rows without TLS
  --broadcast        only the rows with one publisher and 1000 subscribers; two minutes
                     (--size, --inflight and --conns are theirs then: [256], [1,16], [1000])
  --only LIST        only these targets, e.g. bare,coracle,fastwebsockets+cork
                     (`peers` stands for all of them; --list names them)
  --rows LIST        only these kinds of rows: echo,accept,idle,broadcast
  --size LIST        payloads of the echo rows in bytes         [16,1024,16384; TLS: 16,1024]
  --inflight LIST    messages in flight on each connection      [1,16]
  --conns LIST       connections of the echo rows               [1,50,500; quick, TLS: 50]
  --count N          connections of the accept row              [10000; quick: 3000;
                                                                 TLS: 2000; quick: 500]
  --idle-conns N     connections of the idle row                [5000]
  --text             text messages instead of binary ones

how:
  --rounds N         how often each row is measured             [3]
  --seconds S        one window of an echo row                  [1; quick: 0.15]
  --warm-up S        load before each window                    [0.25; quick: 0.05]
  --time-limit S     no measurement begins after this           [1800; quick: 60]
  --core N           the core that everything runs on           [the last one]
  --no-pin           let the scheduler choose cores

what comes out:
  --json PATH        the raw figures                            [benches/target/results.json]
  --check            exit with 1 if an acceptance bar is missed
  --list             name the targets
  --help             this

against a server that runs already, with one figure each (pinned only with --core):
  --load ADDR --pid PID [--conns C] [--size S] [--inflight P] [--seconds S] [--warm-up S] [--text]
         [--tls]
  --load ADDR --pid PID --broadcast [--conns C] [--size S] [--inflight P] [--seconds S]
         [--warm-up S]
  --idle ADDR --pid PID [--conns N] [--hold S] [--deflate] [--tls]
  --cycles ADDR --pid PID [--count N] [--tls [--resume]]
";

/// What we are asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Help,
    List,
    /// Start servers and compare them.
    Compare(Box<Compare>),
    /// Load a server that runs already.
    Attach(Attach),
}

#[derive(Debug)]
pub(crate) struct Compare {
    pub(crate) plan: Plan,
    pub(crate) targets: Vec<Target>,
    pub(crate) pin: Pin,
    pub(crate) json: PathBuf,
    pub(crate) check: bool,
}

#[derive(Debug)]
pub(crate) struct Attach {
    pub(crate) address: SocketAddr,
    pub(crate) pid: u32,
    pub(crate) load: AttachLoad,
    pub(crate) pin: Pin,
}

#[derive(Debug)]
pub(crate) enum AttachLoad {
    Echo(EchoLoad, Timing),
    Idle(IdleLoad, Duration),
    Broadcast(BroadcastLoad, Timing),
    Cycles(AcceptLoad),
}

/// Where to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pin {
    Last,
    To(usize),
    No,
}

/// The mode that an option chose, before all others are read.
enum Mode {
    Load(SocketAddr),
    Idle(SocketAddr),
    Cycles(SocketAddr),
}

/// Options as given; what is missing comes from the mode.
#[derive(Default)]
struct Given {
    quick: bool,
    check: bool,
    text: bool,
    deflate: bool,
    no_pin: bool,
    tls: bool,
    plain: bool,
    broadcast: bool,
    resume: bool,
    only: Option<String>,
    kinds: Option<Kinds>,
    sizes: Option<Vec<usize>>,
    in_flight: Option<Vec<usize>>,
    connections: Option<Vec<usize>>,
    count: Option<usize>,
    idle_connections: Option<usize>,
    rounds: Option<usize>,
    window: Option<Duration>,
    warm_up: Option<Duration>,
    hold: Option<Duration>,
    time_limit: Option<Duration>,
    core: Option<usize>,
    json: Option<PathBuf>,
    mode: Option<Mode>,
    pid: Option<u32>,
}

/// Reads the command line.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Command> {
    use lexopt::prelude::*;
    let mut given = Given::default();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("list") => return Ok(Command::List),
            Long("quick") => given.quick = true,
            Long("check") => given.check = true,
            Long("text") => given.text = true,
            Long("deflate") => given.deflate = true,
            Long("no-pin") => given.no_pin = true,
            Long("tls") => given.tls = true,
            Long("plain") => given.plain = true,
            Long("broadcast") => given.broadcast = true,
            Long("resume") => given.resume = true,
            Long("only") => given.only = Some(parser.value()?.string()?),
            Long("rows") => given.kinds = Some(parser.value()?.parse_with(kinds)?),
            Long("size") => given.sizes = Some(parser.value()?.parse_with(counts)?),
            Long("inflight") => given.in_flight = Some(parser.value()?.parse_with(counts)?),
            Long("conns") => given.connections = Some(parser.value()?.parse_with(counts)?),
            Long("count") => given.count = Some(parser.value()?.parse_with(count)?),
            Long("idle-conns") => {
                given.idle_connections = Some(parser.value()?.parse_with(count)?);
            }
            Long("rounds") => given.rounds = Some(parser.value()?.parse_with(count)?),
            Long("seconds") => given.window = Some(parser.value()?.parse_with(seconds)?),
            Long("warm-up") => given.warm_up = Some(parser.value()?.parse_with(seconds)?),
            Long("hold") => given.hold = Some(parser.value()?.parse_with(seconds)?),
            Long("time-limit") => given.time_limit = Some(parser.value()?.parse_with(seconds)?),
            Long("core") => given.core = Some(parser.value()?.parse()?),
            Long("json") => given.json = Some(parser.value()?.into()),
            Long("load") => given.mode = Some(Mode::Load(parser.value()?.parse_with(loopback)?)),
            Long("idle") => given.mode = Some(Mode::Idle(parser.value()?.parse_with(loopback)?)),
            Long("cycles") => {
                given.mode = Some(Mode::Cycles(parser.value()?.parse_with(loopback)?));
            }
            Long("pid") => given.pid = Some(parser.value()?.parse()?),
            _ => return Err(arg.unexpected().into()),
        }
    }
    match given.mode.take() {
        Some(mode) => given.attach(&mode).map(Command::Attach),
        None => given.compare().map(|it| Command::Compare(Box::new(it))),
    }
}

impl Given {
    fn compare(self) -> Result<Compare> {
        let mut plan = if self.quick { Plan::quick() } else { Plan::full() };
        plan.text = self.text;
        match (self.tls, self.plain, self.broadcast) {
            (false, false, false) => {}
            (true, false, false) => plan.scope = Scope::Tls,
            (false, true, false) => plan.scope = Scope::Plain,
            (false, false, true) => {
                plan.scope = Scope::Broadcast;
                plan.kinds.broadcast = true;
                replace(&mut plan.broadcast.sizes, self.sizes.clone());
                replace(&mut plan.broadcast.in_flight, self.in_flight.clone());
                replace(&mut plan.broadcast.members, self.connections.clone());
            }
            _ => return Err("--tls, --plain and --broadcast exclude each other".into()),
        }
        replace(&mut plan.kinds, self.kinds);
        for loads in [&mut plan.plain, &mut plan.tls] {
            replace(&mut loads.sizes, self.sizes.clone());
            replace(&mut loads.in_flight, self.in_flight.clone());
            replace(&mut loads.connections, self.connections.clone());
            replace(&mut loads.cycles, self.count);
        }
        replace(&mut plan.idle_connections, self.idle_connections);
        replace(&mut plan.rounds, self.rounds);
        replace(&mut plan.timing.window, self.window);
        replace(&mut plan.timing.warm_up, self.warm_up);
        replace(&mut plan.hold, self.hold);
        replace(&mut plan.time_limit, self.time_limit);
        let pin = match (self.core, self.no_pin) {
            (Some(core), false) => Pin::To(core),
            (None, false) => Pin::Last,
            (None, true) => Pin::No,
            (Some(_), true) => return Err("--core and --no-pin exclude each other".into()),
        };
        let mut targets = match self.only {
            Some(list) => servers::select(&list)?,
            None => TARGETS.to_vec(),
        };
        let rows = plan.rows();
        targets.retain(|target| rows.iter().any(|row| target.is_for(row)));
        if targets.is_empty() {
            return Err("nothing to measure: no such target has such a row".into());
        }
        Ok(Compare {
            plan,
            targets,
            pin,
            json: self.json.unwrap_or_else(|| {
                PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/results.json"))
            }),
            check: self.check,
        })
    }

    fn attach(self, mode: &Mode) -> Result<Attach> {
        let plan = Plan::full();
        let (&address, load) = match mode {
            Mode::Load(address) if self.broadcast => {
                if self.tls || self.text {
                    return Err("--broadcast has neither --tls nor --text".into());
                }
                let load = BroadcastLoad {
                    members: one("--conns", self.connections, 1_000)?,
                    size: one("--size", self.sizes, 256)?,
                    in_flight: one("--inflight", self.in_flight, 1)?,
                };
                let timing = Timing {
                    warm_up: self.warm_up.unwrap_or(plan.timing.warm_up),
                    window: self.window.unwrap_or(plan.timing.window),
                    slices: 1,
                };
                (address, AttachLoad::Broadcast(load, timing))
            }
            Mode::Load(address) => {
                let load = EchoLoad {
                    connections: one("--conns", self.connections, 50)?,
                    size: one("--size", self.sizes, 16)?,
                    in_flight: one("--inflight", self.in_flight, 1)?,
                    text: self.text,
                    tls: self.tls,
                };
                let timing = Timing {
                    warm_up: self.warm_up.unwrap_or(plan.timing.warm_up),
                    window: self.window.unwrap_or(plan.timing.window),
                    slices: 1,
                };
                (address, AttachLoad::Echo(load, timing))
            }
            Mode::Idle(address) => {
                let load = IdleLoad {
                    connections: one("--conns", self.connections, plan.idle_connections)?,
                    deflate: self.deflate,
                    tls: self.tls,
                };
                (address, AttachLoad::Idle(load, self.hold.unwrap_or(plan.hold)))
            }
            Mode::Cycles(address) => {
                let (tls, usual) = match (self.tls, self.resume) {
                    (false, false) => (None, plan.plain.cycles),
                    (true, false) => (Some(Handshake::Full), plan.tls.cycles),
                    (true, true) => (Some(Handshake::Resumed), plan.tls.cycles),
                    (false, true) => return Err("--resume is for --tls".into()),
                };
                let load = AcceptLoad { cycles: self.count.unwrap_or(usual), tls };
                (address, AttachLoad::Cycles(load))
            }
        };
        Ok(Attach {
            address,
            pid: self.pid.ok_or("--pid is needed: the process to measure")?,
            load,
            pin: self.core.map_or(Pin::No, Pin::To),
        })
    }
}

fn replace<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

/// The one value of an option that takes a list elsewhere.
fn one(option: &str, given: Option<Vec<usize>>, default: usize) -> Result<usize> {
    match given.as_deref() {
        None => Ok(default),
        Some(&[one]) => Ok(one),
        Some(_) => Err(format!("{option} takes one number here").into()),
    }
}

fn count(text: &str) -> Result<usize> {
    match text.trim().parse()? {
        0 => Err("nothing to do with 0".into()),
        count => Ok(count),
    }
}

fn counts(list: &str) -> Result<Vec<usize>> {
    list.split(',').map(count).collect()
}

fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

fn kinds(list: &str) -> Result<Kinds> {
    let mut kinds = Kinds { echo: false, accept: false, idle: false, broadcast: false };
    for kind in list.split(',') {
        match kind.trim() {
            "echo" => kinds.echo = true,
            "accept" => kinds.accept = true,
            "idle" => kinds.idle = true,
            "broadcast" => kinds.broadcast = true,
            _ => return Err("there are echo, accept, idle and broadcast".into()),
        }
    }
    Ok(kinds)
}

fn loopback(text: &str) -> Result<SocketAddr> {
    let address: SocketAddr = text.parse()?;
    if address.ip().is_loopback() { Ok(address) } else { Err("only loopback is loaded".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Row;

    fn parsed(line: &str) -> Result<Command> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_list_of_targets_keeps_the_order_of_the_tables() {
        let Ok(Command::Compare(compare)) = parsed("--quick --only coracle,bare") else {
            panic!("not a comparison");
        };
        let names: Vec<_> = compare.targets.iter().map(|it| it.name).collect();
        assert_eq!(names, ["bare", "coracle"]);
        assert_eq!(compare.plan.rows().len(), 7);
    }

    #[test]
    fn tls_is_measured_in_full_or_when_it_is_asked_for() {
        let rows = |line| match parsed(line) {
            Ok(Command::Compare(compare)) => {
                let rows = compare.plan.rows();
                let tls = rows.iter().filter(|it| it.is_tls()).count();
                (rows.len() - tls, tls)
            }
            _ => panic!("not a comparison"),
        };
        assert_eq!(rows(""), (22, 7));
        assert_eq!(rows("--plain"), (22, 0));
        assert_eq!(rows("--tls"), (0, 7));
        assert_eq!(rows("--quick --tls"), (0, 6));
        assert_eq!(rows("--tls --size 64 --inflight 1 --rows echo"), (0, 1));
        assert!(parsed("--tls --plain").is_err());
    }

    #[test]
    fn broadcasts_are_measured_in_full_or_when_they_are_asked_for() {
        let of = |line| match parsed(line) {
            Ok(Command::Compare(compare)) => {
                let rows = compare.plan.rows();
                let broadcasts = rows.iter().filter(|it| matches!(it, Row::Broadcast(_)));
                (broadcasts.count(), rows.len(), compare.targets.len())
            }
            _ => panic!("not a comparison"),
        };
        assert_eq!(of(""), (2, 29, TARGETS.len()));
        assert_eq!(of("--quick"), (0, 7, 10));
        assert_eq!(of("--quick --broadcast"), (2, 2, TARGETS.len() - 10));
        assert_eq!(of("--rows broadcast --only bare"), (2, 2, 1));
        // A name with a comma in it is meant by what is behind the comma, too.
        assert_eq!(of("--broadcast --inflight 16 --only bare,coalesced,loop"), (1, 1, 3));
        assert_eq!(of("--broadcast --inflight 1 --only bare,coalesced"), (1, 1, 1));
        assert!(parsed("--broadcast --tls").is_err());
        assert!(parsed("--broadcast --only fastwebsockets").is_err());
    }

    #[test]
    fn only_loopback_is_ever_loaded() {
        assert!(parsed("--load 192.0.2.1:80 --pid 1").is_err());
        assert!(parsed("--load 127.0.0.1:80").is_err());
        assert!(parsed("--load 127.0.0.1:80 --pid 1").is_ok());
    }
}
