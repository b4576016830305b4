//! What a process has: descriptors, threads, memory. For test programs with a single test.
#![allow(unreachable_pub, reason = "shared by test programs")]

use std::time::Duration;

use crate::support::{eventually, within};

/// What the kernel keeps for this process.
#[derive(Debug, PartialEq, Eq)]
pub struct Belongings {
    descriptors: Vec<String>,
    threads: usize,
}

impl Belongings {
    pub fn now() -> Self {
        let mut descriptors: Vec<String> = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            // The directory itself is open while it is read, and gone when its link is.
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .map(|target| target.to_string_lossy().into_owned())
            .filter(|target| !target.ends_with("/fd"))
            .collect();
        descriptors.sort();
        Self { descriptors, threads: std::fs::read_dir("/proc/self/task").unwrap().count() }
    }

    /// Descriptors and threads.
    #[allow(dead_code, reason = "for those whose sockets are others, and as many")]
    pub fn counts(&self) -> (usize, usize) {
        (self.descriptors.len(), self.threads)
    }

    fn sockets(&self) -> usize {
        self.descriptors.iter().filter(|target| target.starts_with("socket:")).count()
    }

    /// Sockets are gone when `stop` is done. A thread that has ended takes the kernel a moment
    /// longer, and the timers of smol's own reactor, which a handler has waited for, keep the waker
    /// of a worker until that reactor has its next turn.
    #[track_caller]
    pub fn are_all_there_is(&self) {
        assert_eq!(Self::now().sockets(), self.sockets());
        eventually("everything else is gone", || {
            within(async { smol::Timer::after(Duration::from_millis(1)).await });
            Self::now() == *self
        });
    }
}

/// Resident memory of this process, in KiB.
pub fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a VmRSS line");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
