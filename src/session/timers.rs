//! The deadlines of one session: which there are, and which one is next.
//!
//! Activity only stores a time. The session has one entry in its worker's wheel, and when that
//! fires it looks at what has really passed.

use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use super::closed::Timer;
use crate::config::Timeouts;
use crate::executor::{self, Time, Worker};

pub(super) struct Timers {
    entry: executor::Timer,
    /// What the wheel's entry is set to.
    armed: Time,
    /// Something has brought a deadline forward since then.
    moved: bool,
    /// The last byte from the peer.
    heard: Time,
    /// The last message from the peer.
    message: Time,
    /// Since when the peer has taken no byte of what waits; `NEVER` while nothing waits.
    stalled: Time,
    /// Since when the session is closing; `NEVER` while it is open.
    closing: Time,
    lifetime_end: Time,
    /// On the heap because an idle session has none for 25 of 26 seconds.
    ping: Option<Box<Ping>>,
}

/// The ping that has not been answered.
struct Ping {
    payload: [u8; 8],
    /// The peer has been heard of since it was flushed. Kept for the round trip only.
    answered: bool,
    /// `NEVER` until the kernel has it: the peer is not blamed for our queue.
    flushed: Time,
    flushed_precisely: Time,
}

/// What is to be done about an expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    SendPing,
    Timer(Timer),
}

fn after(time: Time, timeout: Option<Duration>) -> Time {
    timeout.map_or(Time::NEVER, |timeout| time + timeout)
}

impl Timers {
    pub(super) fn new(worker: &Rc<Worker>, timeouts: &Timeouts) -> Self {
        let now = worker.now();
        let lifetime_end = timeouts.lifetime.map_or(Time::NEVER, |lifetime| {
            let jitter = timeouts.lifetime_jitter.unwrap_or(lifetime / 10);
            now + lifetime.saturating_sub(jitter.mul_f64(random()))
        });
        Self {
            entry: worker.timer(),
            armed: Time::NEVER,
            moved: true,
            heard: now,
            message: now,
            stalled: Time::NEVER,
            closing: Time::NEVER,
            lifetime_end,
            ping: None,
        }
    }

    /// Bytes have come from the peer.
    #[inline]
    pub(super) fn heard(&mut self, now: Time) {
        self.heard = now;
        if let Some(ping) = &mut self.ping {
            // Both times are of the coarse clock, so a byte that came after the ping left is never
            // taken for one that came before.
            if !ping.answered && now >= ping.flushed {
                ping.answered = true;
                self.moved = true;
            }
        }
    }

    /// A message has come from the peer.
    #[inline]
    pub(super) fn message(&mut self, now: Time) {
        self.message = now;
    }

    /// While the handler works and a message waits for it, nothing is read: silence is not the
    /// peer's.
    pub(super) fn not_listening(&mut self, now: Time) {
        self.heard(now);
        self.message = now;
    }

    /// The peer takes no more for now; `progress` if it has just taken some.
    pub(super) fn stalled(&mut self, now: Time, progress: bool) {
        if self.stalled == Time::NEVER {
            self.moved = true;
            self.stalled = now;
        } else if progress {
            self.stalled = now;
        }
    }

    pub(super) fn flowing(&mut self) {
        self.stalled = Time::NEVER;
    }

    pub(super) fn closing(&mut self, now: Time) {
        if self.closing == Time::NEVER {
            self.closing = now;
            self.moved = true;
        }
    }

    /// The payload of a new ping; `flushed` must follow.
    pub(super) fn ping(&mut self, precise: Time) -> [u8; 8] {
        let payload = precise.as_micros().to_be_bytes();
        self.ping = Some(Box::new(Ping {
            payload,
            answered: false,
            flushed: Time::NEVER,
            flushed_precisely: Time::NEVER,
        }));
        payload
    }

    /// The kernel has taken everything, a ping included.
    pub(super) fn flushed(&mut self, worker: &Worker) {
        if let Some(ping) = &mut self.ping {
            if ping.flushed == Time::NEVER {
                ping.flushed = worker.now();
                ping.flushed_precisely = worker.clock().precise();
                self.moved = true;
            }
        }
    }

    /// A pong has come: the round trip, if it answers our ping.
    pub(super) fn pong(&mut self, payload: &[u8], worker: &Worker) -> Option<Duration> {
        let ping = self.ping.take_if(|ping| ping.payload == payload)?;
        if ping.flushed == Time::NEVER {
            return None;
        }
        Some(worker.clock().precise().since(ping.flushed_precisely))
    }

    /// When something has to be looked at, at the earliest.
    fn next(&self, timeouts: &Timeouts) -> Time {
        let stall = self.stalled + timeouts.write_stall;
        if self.closing != Time::NEVER {
            return stall.min(self.closing + timeouts.close);
        }
        let liveness = match &self.ping {
            Some(ping) if !ping.answered => ping.flushed + timeouts.pong,
            _ => after(self.heard, timeouts.ping),
        };
        let idle = after(self.message, timeouts.idle);
        stall.min(liveness).min(idle).min(self.lifetime_end)
    }

    /// Whether the wheel's entry is due, so that `expired` must be asked.
    #[inline]
    pub(super) fn is_due(&self, now: Time) -> bool {
        now >= self.armed
    }

    /// What has expired, the most severe first.
    pub(super) fn expired(&mut self, now: Time, timeouts: &Timeouts) -> Option<Expired> {
        self.moved = true;
        if now >= self.stalled + timeouts.write_stall {
            return Some(Expired::Timer(Timer::WriteStall));
        }
        if self.closing != Time::NEVER {
            let over = now >= self.closing + timeouts.close;
            return over.then_some(Expired::Timer(Timer::Close));
        }
        if now >= self.lifetime_end {
            return Some(Expired::Timer(Timer::Lifetime));
        }
        if now >= after(self.message, timeouts.idle) {
            return Some(Expired::Timer(Timer::Idle));
        }
        match &self.ping {
            Some(ping) if !ping.answered => {
                (now >= ping.flushed + timeouts.pong).then_some(Expired::Timer(Timer::Pong))
            }
            _ => (now >= after(self.heard, timeouts.ping)).then_some(Expired::SendPing),
        }
    }

    /// Before waiting: sets the wheel's entry if it must move. `limit` is a deadline from outside.
    #[inline]
    pub(super) fn arm(&mut self, timeouts: &Timeouts, limit: Time, waker: &Waker) {
        if self.moved {
            self.moved = false;
            let next = self.next(timeouts).min(limit);
            self.armed = next;
            self.entry.set(next, waker);
        }
    }

    /// Sets the wheel's entry to something else, when nothing of this is left to wait for.
    pub(super) fn wake_at(&mut self, deadline: Time, waker: &Waker) {
        self.entry.set(deadline, waker);
    }

    /// A deadline from outside has changed.
    pub(super) fn moved(&mut self) {
        self.moved = true;
    }
}

/// Between 0 and 1, different from session to session; nobody gains by guessing it.
fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}
