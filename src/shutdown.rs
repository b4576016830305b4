//! The stop signal: one flag and one broadcast event that every session, every handshake and every
//! accept loop listens to.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use event_listener::{Event, EventListener};

use crate::executor::{Clock, Time};

/// Asks a server to stop, from anywhere: a callback, a signal's thread, another executor.
///
/// Made by [`ServerHandle::shutdown`](crate::ServerHandle::shutdown) and
/// [`Session::shutdown`](crate::Session::shutdown). Cheap to clone; holding one does not keep the
/// server running.
#[derive(Clone)]
pub struct Shutdown(Arc<Signal>);

struct Signal {
    phase: AtomicU8,
    /// When the server began to stop, in the clock's microseconds.
    since: AtomicU64,
    /// When what is left is cut, in the same.
    deadline: AtomicU64,
    changed: Event,
    clock: Clock,
    /// From the request to the cut.
    patience: Duration,
}

/// How far the server has come on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Running = 0,
    /// No new connections; sessions drain and say goodbye.
    Draining = 1,
    /// What has not ended is dropped.
    Cutting = 2,
}

impl Shutdown {
    pub(crate) fn new(clock: Clock, patience: Duration) -> Self {
        Self(Arc::new(Signal {
            phase: AtomicU8::new(Phase::Running as u8),
            since: AtomicU64::new(Time::NEVER.as_micros()),
            deadline: AtomicU64::new(Time::NEVER.as_micros()),
            changed: Event::new(),
            clock,
            patience,
        }))
    }

    /// Begins to stop the server: it accepts no further connection, delivers what is queued, says
    /// goodbye to every peer with 1001, and cuts what has not ended after
    /// [`Timeouts::stop`](crate::config::Timeouts::stop).
    ///
    /// Never blocks, and does nothing the second time. It takes a short lock, so it belongs into
    /// the thread that handles a signal, not into the signal handler itself.
    pub fn request_stop(&self) {
        self.enter(Phase::Draining);
    }

    /// Ends the wait that [`request_stop`](Self::request_stop) began: what is still open is cut
    /// now. Also stops a server that was not yet asked to.
    pub fn cut(&self) {
        self.enter(Phase::Draining);
        self.enter(Phase::Cutting);
    }

    /// Whether a stop has been requested.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.phase() > Phase::Running
    }

    /// Waits until a stop is requested.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future changes nothing.
    pub async fn stopping(&self) {
        while !self.is_stopping() {
            let listener = self.listen();
            if self.is_stopping() {
                return;
            }
            listener.await;
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.0.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Draining,
            _ => Phase::Cutting,
        }
    }

    /// When what is left is cut: never, while nobody has asked to stop.
    pub(crate) fn deadline(&self) -> Time {
        Time::from_micros(self.0.deadline.load(Ordering::Acquire))
    }

    /// When the stop was requested.
    fn since(&self) -> Time {
        Time::from_micros(self.0.since.load(Ordering::Acquire))
    }

    /// How long ago the stop was requested.
    pub(crate) fn elapsed(&self) -> Duration {
        self.0.clock.precise().since(self.since())
    }

    /// Hears of every later change of phase. Made first, then the phase is looked at: no change
    /// can fall between.
    pub(crate) fn listen(&self) -> EventListener {
        self.0.changed.listen()
    }

    fn enter(&self, phase: Phase) {
        let now = self.0.clock.precise();
        // Before the phase itself, so that whoever sees the phase finds the deadline.
        let end = if phase == Phase::Draining {
            let _ = self.0.since.compare_exchange(
                Time::NEVER.as_micros(),
                now.as_micros(),
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            self.since() + self.0.patience
        } else {
            now
        };
        self.0.deadline.fetch_min(end.as_micros(), Ordering::AcqRel);
        if self.0.phase.fetch_max(phase as u8, Ordering::AcqRel) < phase as u8 {
            self.0.changed.notify(usize::MAX);
        }
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shutdown").field(&self.phase()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_threads_may_ask_and_every_listener_hears_of_each_phase_once() {
        let shutdown = Shutdown::new(Clock::virtual_at_zero(), Duration::from_secs(1));
        let listeners: Vec<_> = (0..50).map(|_| shutdown.listen()).collect();
        assert_eq!(shutdown.deadline(), Time::NEVER);
        std::thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| shutdown.request_stop());
            }
        });
        assert_eq!(shutdown.phase(), Phase::Draining);
        listeners.into_iter().for_each(event_listener::Listener::wait);
        let second = shutdown.listen();
        shutdown.request_stop();
        assert_eq!(shutdown.phase(), Phase::Draining);
        assert_eq!(shutdown.deadline(), Time::from_micros(1_000_000));
        shutdown.cut();
        event_listener::Listener::wait(second);
        assert_eq!(shutdown.phase(), Phase::Cutting);
        assert_eq!(shutdown.deadline(), Time::from_micros(0), "it is over by now");
    }
}
