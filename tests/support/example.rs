//! The examples as a user starts them: as processes.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::support::{Raw, eventually};

/// An example as a child process, killed at the end if it is still there.
pub struct Example {
    pub child: Child,
    pub stdout: BufReader<ChildStdout>,
    /// Where it listens, as it says itself.
    pub place: String,
}

impl Example {
    /// Starts an example on a free port and reads the line by which it says that it is ready.
    #[track_caller]
    pub fn start(name: &str, stdin: Stdio) -> Self {
        Self::start_at(name, &["127.0.0.1:0"], stdin)
    }

    /// The same with these arguments.
    #[track_caller]
    pub fn start_at(name: &str, arguments: &[&str], stdin: Stdio) -> Self {
        let mut child = Command::new(path(name))
            .args(arguments)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the example starts");
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let place = line.strip_prefix("listening on ").and_then(|rest| rest.strip_suffix('\n'));
        let place = place.unwrap_or_else(|| panic!("not the line that says ready: {line:?}"));
        Self { child, stdout, place: place.to_owned() }
    }

    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        let place = &self.place;
        let place =
            place.split_once("://").and_then(|(_, it)| it.strip_suffix('/')).unwrap_or(place);
        place.parse().unwrap_or_else(|_| panic!("no address: {}", self.place))
    }

    pub fn client(&self) -> Raw {
        let mut raw = Raw::connect(self.address());
        raw.upgrade();
        raw
    }

    #[track_caller]
    pub fn type_line(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin is a pipe");
        writeln!(stdin, "{line}").expect("the example reads");
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is our child");
    }

    /// Waits for its end, which must be a success; returns what it wrote to standard error.
    #[track_caller]
    pub fn finish(mut self) -> String {
        let mut status = None;
        eventually("the example ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(status.and_then(|status| status.code()), Some(0), "{said}");
        let mut more = String::new();
        self.stdout.read_to_string(&mut more).unwrap();
        assert_eq!(more, "", "one line on standard output, for whoever waits for it");
        said
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `target/debug/examples/NAME`, beside the directory of this test.
pub fn path(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).expect("target/debug/deps");
    let path = profile.join("examples").join(name);
    assert!(path.is_file(), "no {path:?}: `cargo build --examples` makes it");
    path
}
