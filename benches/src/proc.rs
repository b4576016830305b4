//! What the kernel tells about a process: CPU time and resident memory; and about the machine.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use rustix::thread::CpuSet;
use serde::Serialize;

/// From this length on a window is measured by `/proc/PID/stat`.
const LONG_WINDOW: Duration = Duration::from_secs(1);

/// With this many clock ticks spent, one tick more or less is at most four percent. An echo row's
/// server spends about half of its window, so only short accept rows fall below.
const ENOUGH_TICKS: u64 = 25;

/// Two readings at both ends, each cut to whole ticks, and the time between reading the two files.
const TOLERATED_TICKS: u64 = 3;

/// The CPU time of a process at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuReading {
    /// `utime + stime` of `/proc/PID/stat`, in clock ticks.
    ticks: u64,
    /// The sum of what all threads ran, in nanoseconds, if this kernel counts it.
    scheduled: Option<u64>,
}

/// CPU time spent between two readings.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct CpuSpent {
    /// How long the process was loaded, in seconds.
    pub(crate) window_s: f64,
    /// CPU seconds by `/proc/PID/stat`, in steps of one clock tick.
    pub(crate) stat_s: f64,
    /// CPU seconds by `/proc/PID/task/*/schedstat`.
    pub(crate) schedstat_s: Option<f64>,
    /// The one that is reported.
    pub(crate) source: CpuSource,
    /// Whether the two say the same within the resolution of the first.
    pub(crate) agree: Option<bool>,
}

/// Where a CPU figure is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CpuSource {
    Stat,
    Schedstat,
}

impl CpuReading {
    /// Reads the CPU time of `pid` now.
    pub(crate) fn take(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let ticks = stat_ticks(&stat).ok_or_else(|| malformed("/proc/PID/stat"))?;
        Ok(Self { ticks, scheduled: scheduled_ns(pid).filter(|&ns| ns > 0) })
    }

    /// What was spent since `earlier`, of which the process was loaded for `window`.
    pub(crate) fn since(&self, earlier: &Self, window: Duration) -> CpuSpent {
        let tick = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        let ticks = self.ticks - earlier.ticks;
        let stat_s = ticks as f64 * tick;
        let schedstat_s = match (earlier.scheduled, self.scheduled) {
            (Some(from), Some(to)) => to.checked_sub(from).map(|ns| ns as f64 / 1e9),
            _ => None,
        };
        let tolerated = TOLERATED_TICKS as f64 * tick;
        let agree = schedstat_s.map(|it| (it - stat_s).abs() <= tolerated + 0.02 * stat_s);
        let long = window >= LONG_WINDOW && ticks >= ENOUGH_TICKS;
        // A thread that ended takes its part of the sum along; then only the first file is right.
        let source =
            if long || agree != Some(true) { CpuSource::Stat } else { CpuSource::Schedstat };
        CpuSpent { window_s: window.as_secs_f64(), stat_s, schedstat_s, source, agree }
    }
}

impl CpuSpent {
    /// The reported CPU time, in microseconds.
    pub(crate) fn micros(&self) -> f64 {
        let seconds = match self.source {
            CpuSource::Stat => self.stat_s,
            CpuSource::Schedstat => self.schedstat_s.unwrap_or(self.stat_s),
        };
        seconds * 1e6
    }
}

/// `utime + stime`: fields 14 and 15, counted behind the name, which may hold anything.
fn stat_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The first field of every thread's `schedstat`, summed.
fn scheduled_ns(pid: u32) -> Option<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let schedstat = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        sum += schedstat.split_ascii_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(sum)
}

/// Resident memory of a process, in bytes.
///
/// From `smaps_rollup`, which counts pages; `VmRSS` of `status`, which may be off by the pages that
/// the kernel counts per CPU, only where that file is missing.
pub(crate) fn resident_bytes(pid: u32) -> io::Result<u64> {
    let exact = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    let (text, name) = match exact {
        Ok(text) => (text, "Rss:"),
        Err(_) => (fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:"),
    };
    let kib = text.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.split_ascii_whitespace().next()?;
        value.parse::<u64>().ok()
    });
    Ok(kib.ok_or_else(|| malformed(name))? * 1024)
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("cannot read {what}"))
}

/// What the figures were measured on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    /// The one core that everything runs on, or `None` if it was not pinned.
    pub(crate) pinned_to: Option<usize>,
}

impl Machine {
    /// Looks around; before pinning, because a pinned process sees one core.
    pub(crate) fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split_once(':'))
            .map_or("unknown", |(_, name)| name.trim());
        let uname = rustix::system::uname();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: cpu.to_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            pinned_to: None,
        }
    }
}

/// Keeps this thread, and every process it starts from now on, on one core.
///
/// `None` is the last core that this process may use.
pub(crate) fn pin(core: Option<usize>) -> io::Result<usize> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|&it| allowed.is_set(it));
    let core = core.or(last).unwrap_or(0);
    if core >= CpuSet::MAX_CPU || !allowed.is_set(core) {
        let message = format!("core {core} is not among those we may use");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let mut one = CpuSet::new();
    one.set(core);
    rustix::thread::sched_setaffinity(None, &one)?;
    Ok(core)
}

/// Raises the limit on open files to what is allowed, for us and our children, and returns it.
pub(crate) fn raise_open_files() -> io::Result<usize> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit { current: limit.maximum, maximum: limit.maximum },
    )?;
    Ok(limit.maximum.map_or(usize::MAX, |it| it as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 21 34 0 0 20";
        assert_eq!(stat_ticks(stat), Some(55));
    }
}
