//! Time, read here and nowhere else.
//!
//! Everything above the executor asks its worker for the time, so that a virtual clock can take
//! the place of the kernel's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Microseconds since the clock was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(u64);

impl Time {
    /// A time that never comes.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    pub(crate) const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    pub(crate) const fn as_micros(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;

    /// Saturates at [`Time::NEVER`], so that `Duration::MAX` means "no deadline".
    fn add(self, duration: Duration) -> Self {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }
}

/// Where time comes from; cheap to clone, the same for all workers of a server.
#[derive(Clone, Debug)]
pub(crate) struct Clock(Arc<Source>);

#[derive(Debug)]
struct Source {
    /// For users, who think in [`Instant`]s.
    epoch: Instant,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// `CLOCK_MONOTONIC`, from this many microseconds on.
    Kernel { epoch_micros: u64 },
    /// Moved by hand. The simulator will move it; today the tests do.
    #[cfg_attr(not(test), allow(dead_code, reason = "the simulator's half of the clock"))]
    Virtual { micros: AtomicU64 },
}

impl Clock {
    pub(crate) fn kernel() -> Self {
        let epoch_micros = kernel_micros(ClockId::Monotonic);
        Self(Arc::new(Source { epoch: Instant::now(), kind: Kind::Kernel { epoch_micros } }))
    }

    #[cfg(test)]
    pub(crate) fn virtual_at_zero() -> Self {
        let kind = Kind::Virtual { micros: AtomicU64::new(0) };
        Self(Arc::new(Source { epoch: Instant::now(), kind }))
    }

    /// Moves a virtual clock forward.
    #[cfg(test)]
    pub(crate) fn advance(&self, by: Duration) {
        match &self.0.kind {
            Kind::Kernel { .. } => panic!("the kernel's clock moves by itself"),
            Kind::Virtual { micros } => {
                micros.fetch_add(by.as_micros() as u64, Ordering::SeqCst);
            }
        }
    }

    /// Now, exactly.
    pub(crate) fn precise(&self) -> Time {
        match &self.0.kind {
            Kind::Kernel { epoch_micros } => {
                Time(kernel_micros(ClockId::Monotonic).saturating_sub(*epoch_micros))
            }
            Kind::Virtual { micros } => Time(micros.load(Ordering::SeqCst)),
        }
    }

    /// Now, as of the kernel's last timer interrupt (1–10 ms ago): a quarter of the cost of
    /// [`Clock::precise`], and exact enough for every deadline of a session.
    pub(crate) fn coarse(&self) -> Time {
        match &self.0.kind {
            Kind::Kernel { epoch_micros } => {
                Time(kernel_micros(ClockId::MonotonicCoarse).saturating_sub(*epoch_micros))
            }
            Kind::Virtual { .. } => self.precise(),
        }
    }

    /// The same moment as the standard library names it.
    pub(crate) fn instant(&self, time: Time) -> Instant {
        self.0.epoch + Duration::from_micros(time.0)
    }

    /// The first moment of ours that is not before this one.
    pub(crate) fn time(&self, instant: Instant) -> Time {
        let micros = instant.saturating_duration_since(self.0.epoch).as_nanos().div_ceil(1000);
        Time(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

fn kernel_micros(id: ClockId) -> u64 {
    let now = clock_gettime(id);
    // Both parts are non-negative on a monotonic clock.
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endless_duration_is_no_deadline() {
        assert_eq!(Time::from_micros(7) + Duration::MAX, Time::NEVER);
    }

    #[test]
    fn a_moment_of_the_standard_library_is_never_taken_for_an_earlier_one() {
        let clock = Clock::virtual_at_zero();
        for micros in [0, 1, 999, 1_000_000_007] {
            let time = Time::from_micros(micros);
            assert_eq!(clock.time(clock.instant(time)), time);
            let later = clock.instant(time) + Duration::from_nanos(1);
            assert_eq!(clock.time(later), Time::from_micros(micros + 1));
        }
        let before = clock.instant(Time::default()).checked_sub(Duration::from_secs(1));
        assert_eq!(clock.time(before.unwrap()), Time::default());
    }

    #[test]
    fn the_coarse_clock_is_never_ahead_of_the_precise_one() {
        let clock = Clock::kernel();
        for _ in 0..1000 {
            let coarse = clock.coarse();
            assert!(coarse <= clock.precise());
        }
    }
}
