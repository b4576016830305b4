//! The servers that are measured: what they are, how they are built, started and ended.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use coracle_benches::peer;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;

use crate::plan::Row;
use crate::{Error, Result};

/// A server may take this long until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The hidden first argument with which this program becomes a server.
pub(crate) const BECOME: &str = "--become";

/// The variables that `cargo run` sets for the package it runs.
const OF_CARGO: [&str; 2] = ["CARGO_PKG_", "CARGO_MANIFEST_"];

/// One server in one configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    /// The name in the report and for `--only`.
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    does: Does,
    /// The program's name among what cargo builds.
    program: &'static str,
    /// What follows the address on its command line.
    flags: &'static [&'static str],
}

impl Target {
    /// What a row with TLS is measured against in place of the bare loop, which has none.
    const WITHOUT_TLS: Self = Self { name: "coracle, no TLS", role: Role::WithoutTls, ..OURS };

    /// Those of `targets` that a row is measured with, and what it is compared with.
    pub(crate) fn of_row(row: &Row, targets: &[Self]) -> Vec<Self> {
        let able = targets.iter().filter(|it| it.is_for(row)).copied();
        let reference = (row.is_tls() && targets.contains(&OURS)).then_some(Self::WITHOUT_TLS);
        reference.into_iter().chain(able).collect()
    }

    /// Whether it can be measured with that row, and says something there.
    pub(crate) fn is_for(&self, row: &Row) -> bool {
        match row {
            // Of one message there is nothing to gather.
            Row::Broadcast(load) if self.role == Role::Coalesced => load.in_flight > 1,
            Row::Broadcast(_) => self.does == Does::Broadcast,
            _ => self.does == Does::Echo && !(row.is_tls() && self.role == Role::Bare),
        }
    }

    /// Whether its program is an example of coracle's.
    fn is_example(&self) -> bool {
        matches!(self.role, Role::Ours | Role::Loop | Role::WithoutTls)
    }

    /// Whether a word of `--only` means it: its name, or what is behind the comma in it.
    fn is_called(&self, word: &str) -> bool {
        let variant = self.name.split_once(", ").map(|(_, variant)| variant);
        self.name == word || variant == Some(word) || (self.role == Role::Peer && word == "peers")
    }

    /// What of a row this target gets.
    pub(crate) fn load_of(&self, row: &Row) -> Row {
        if self.role == Role::WithoutTls { row.without_tls() } else { *row }
    }
}

/// What a target is measured for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The lower limit.
    Bare,
    /// The same that sends all that it has read at once, in a row with one publisher.
    Coalesced,
    /// The library that this package belongs to.
    Ours,
    /// The same without its rooms, in a row with one publisher.
    Loop,
    /// The same without TLS, in a row with TLS.
    WithoutTls,
    /// Another library.
    Peer,
}

/// What a server does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Echo,
    Broadcast,
}

const OURS: Target = Target {
    name: "coracle",
    role: Role::Ours,
    does: Does::Echo,
    program: "echo",
    // As many as the peers use: everything runs on one core.
    flags: &["--workers", "1"],
};

/// Every target, in the order of the tables.
pub(crate) const TARGETS: [Target; 18] = [
    Target { name: "bare", role: Role::Bare, does: Does::Echo, program: "bare", flags: &[] },
    OURS,
    peer("tokio-tungstenite", "peer-tokio-tungstenite", &[]),
    peer("tokio-tungstenite+cork", "peer-tokio-tungstenite", &["--cork"]),
    peer("fastwebsockets", "peer-fastwebsockets", &[]),
    peer("fastwebsockets+cork", "peer-fastwebsockets", &["--cork"]),
    peer("tokio-websockets", "peer-tokio-websockets", &[]),
    peer("tokio-websockets+cork", "peer-tokio-websockets", &["--cork"]),
    peer("async-tungstenite", "peer-async-tungstenite", &[]),
    peer("async-tungstenite+cork", "peer-async-tungstenite", &["--cork"]),
    broadcast("bare", Role::Bare, "broadcast-bare", &[]),
    broadcast("bare, coalesced", Role::Coalesced, "broadcast-bare", &["--cork"]),
    broadcast("coracle", Role::Ours, "broadcast", &["--workers", "1"]),
    broadcast("coracle, loop", Role::Loop, "broadcast", &["--workers", "1", "--loop"]),
    broadcast("tokio-tungstenite", Role::Peer, "broadcast-tokio-tungstenite", &[]),
    broadcast("tokio-tungstenite+cork", Role::Peer, "broadcast-tokio-tungstenite", &["--cork"]),
    broadcast("tokio-websockets", Role::Peer, "broadcast-tokio-websockets", &[]),
    broadcast("tokio-websockets+cork", Role::Peer, "broadcast-tokio-websockets", &["--cork"]),
];

const fn peer(name: &'static str, program: &'static str, flags: &'static [&'static str]) -> Target {
    Target { name, role: Role::Peer, does: Does::Echo, program, flags }
}

const fn broadcast(
    name: &'static str,
    role: Role,
    program: &'static str,
    flags: &'static [&'static str],
) -> Target {
    Target { name, role, does: Does::Broadcast, program, flags }
}

/// What all targets are called, each name once.
pub(crate) fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for target in TARGETS {
        if !names.contains(&target.name) {
            names.push(target.name);
        }
    }
    names
}

/// The targets that a list like `bare,peers` names.
pub(crate) fn select(list: &str) -> Result<Vec<Target>> {
    let words: Vec<&str> = list.split(',').map(str::trim).collect();
    for word in &words {
        if !TARGETS.iter().any(|it| it.is_called(word)) {
            let known = names().join(", ");
            return Err(format!("no target `{word}`; there are: peers, {known}").into());
        }
    }
    let wanted = |target: &Target| words.iter().any(|word| target.is_called(word));
    Ok(TARGETS.into_iter().filter(wanted).collect())
}

/// Where the built programs lie, by name.
#[derive(Debug, Default)]
pub(crate) struct Programs(HashMap<String, PathBuf>);

impl Programs {
    /// Builds what `targets` need, with all cores; so pin later.
    pub(crate) fn build(targets: &[Target]) -> Result<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.parent().ok_or("this package has no parent directory")?;
        let mut programs = Self::default();
        if targets.iter().any(|it| !it.is_example()) {
            programs.cargo_build(here, &["--bins"])?;
        }
        let mut examples: Vec<&str> = Vec::new();
        for target in targets.iter().filter(|it| it.is_example()) {
            if !examples.contains(&target.program) {
                examples.push(target.program);
            }
        }
        if !examples.is_empty() {
            let what: Vec<&str> = examples.iter().flat_map(|it| ["--example", *it]).collect();
            programs.cargo_build(root, &what).map_err(|error| {
                format!("{error}\ncoracle's examples are needed; --only leaves them out")
            })?;
        }
        Ok(programs)
    }

    /// Runs cargo, and notes what it says it has built.
    fn cargo_build(&mut self, package: &Path, what: &[&str]) -> Result<()> {
        let manifest = package.join("Cargo.toml");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        // What `cargo run` says of this package is news to ring's build script: it would run again each
        // time, and all that needs it would be built anew, this very program too.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|it| OF_CARGO.iter().any(|of| it.starts_with(of))) {
                command.env_remove(name);
            }
        }
        let output = command
            .args(["build", "--release", "--message-format=json-render-diagnostics"])
            .arg("--manifest-path")
            .arg(&manifest)
            .args(what)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            let (manifest, what) = (manifest.display(), what.join(" "));
            return Err(format!("cargo could not build {what} of {manifest}").into());
        }
        for line in output.stdout.split(|&byte| byte == b'\n') {
            // Lines that are no messages come from build scripts of no interest.
            let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else {
                continue;
            };
            if let (Some(name), Some(path)) =
                (message["target"]["name"].as_str(), message["executable"].as_str())
            {
                self.0.insert(name.to_owned(), path.into());
            }
        }
        Ok(())
    }

    /// Starts a target with or without TLS, and returns when it listens.
    pub(crate) fn start(&self, target: &Target, tls: bool) -> Result<Server> {
        let program = self
            .0
            .get(target.program)
            .ok_or_else(|| format!("cargo built no `{}`", target.program))?;
        // By way of this program, so that the child dies with us even if we are killed.
        let child = Command::new(std::env::current_exe()?)
            .arg(BECOME)
            .arg(std::process::id().to_string())
            .arg(program)
            .arg("127.0.0.1:0")
            .args(target.flags)
            .args(tls.then_some("--tls"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut server = Server {
            child: Guard(child),
            _stdout: None,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        server.wait_until_ready().map_err(|error| format!("{}: {error}", target.name))?;
        Ok(server)
    }
}

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Guard,
    /// Kept open, or a server that prints once more would fail.
    _stdout: Option<BufReader<ChildStdout>>,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let stdout = self.child.0.stdout.take().ok_or("no standard output")?;
        let timeout = Timespec::try_from(START_TIMEOUT)?;
        let mut waiting = [PollFd::new(&stdout, PollFlags::IN)];
        if rustix::event::poll(&mut waiting, Some(&timeout))? == 0 {
            return Err("did not say that it listens in time".into());
        }
        // One line is one write, so after its first byte the rest is there.
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        self.address = peer::announced(&line).ok_or_else(|| {
            let expected = format!("{}ws://ADDR:PORT/", peer::READY);
            format!("printed {line:?} instead of `{expected}`")
        })?;
        if !self.address.ip().is_loopback() {
            return Err(format!("listens on {}, not on loopback", self.address).into());
        }
        self._stdout = Some(stdout);
        Ok(())
    }
}

#[derive(Debug)]
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail only for a child that is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Turns this process into a server that does not outlive the process `parent`.
///
/// The arguments are `PARENT PROGRAM ARGS...`. Returns only what went wrong.
pub(crate) fn become_server(mut args: impl Iterator<Item = OsString>) -> Error {
    let parent = args.next().and_then(|it| it.into_string().ok());
    let Some(program) = args.next() else {
        return "nothing to become".into();
    };
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    // If the parent died before the line above, nobody will tell us.
    let actual = rustix::process::getppid().map(|it| it.as_raw_pid().to_string());
    if actual != parent {
        return "the parent is gone".into();
    }
    Command::new(program).args(args).exec().into()
}
