//! The deadlines of one session: which there are, and which one is next.
//!
//! Activity only stores a time. The session has one entry in its worker's wheel, and when that
//! fires it looks at what has really passed.

use std::rc::Rc;
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
    /// A ping has been asked for and is not on its way yet.
    asked: bool,
    /// On the heap because an idle session has nothing of it for most of its life.
    rare: Option<Box<Rare>>,
}

struct Rare {
    /// Since when the peer has taken no byte of what waits; `NEVER` while nothing waits.
    stalled: Time,
    /// Since when the session is closing; `NEVER` while it is open.
    closing: Time,
    lifetime_end: Time,
    /// Since when others have waited for a message writer that writes nothing; `NEVER` while nobody
    /// does.
    writer: Time,
    /// When the handler was given the message for which it is timed; `NEVER` if it is not.
    callback: Time,
    ping: Option<Ping>,
}

impl Default for Rare {
    fn default() -> Self {
        let never = Time::NEVER;
        Self {
            stalled: never,
            closing: never,
            lifetime_end: never,
            writer: never,
            callback: never,
            ping: None,
        }
    }
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
        let rare = timeouts.lifetime.map(|lifetime| {
            let jitter = timeouts.lifetime_jitter.unwrap_or(lifetime / 10);
            let lifetime = lifetime.saturating_sub(jitter.mul_f64(random()));
            Box::new(Rare { lifetime_end: now + lifetime, ..Rare::default() })
        });
        let armed = Time::NEVER;
        Self {
            entry: worker.timer(),
            armed,
            moved: true,
            heard: now,
            message: now,
            asked: false,
            rare,
        }
    }

    /// The session's protocol has no pings: none is due, ever.
    pub(super) fn without_pings(&mut self) {
        // One that has been asked for and does not leave: only making one would ask anew.
        self.asked = true;
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Bytes have come from the peer.
    #[inline]
    pub(super) fn heard(&mut self, now: Time) {
        self.heard = now;
        if let Some(rare) = &mut self.rare {
            self.moved |= rare.heard(now);
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
        let rare = self.rare();
        if rare.stalled == Time::NEVER {
            rare.stalled = now;
            self.moved = true;
        } else if progress {
            rare.stalled = now;
        }
    }

    /// Others wait for a message writer, which has nothing more for now; `progress` if it has just
    /// written some.
    pub(super) fn behind_writer(&mut self, now: Time, progress: bool) {
        let rare = self.rare();
        if rare.writer == Time::NEVER {
            rare.writer = now;
            self.moved = true;
        } else if progress {
            rare.writer = now;
        }
    }

    /// Nobody does any more.
    pub(super) fn nobody_behind_writer(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.writer = Time::NEVER;
            if rare.is_empty() {
                self.rare = None;
            }
        }
    }

    /// The handler is timed from now on.
    #[cfg(feature = "metrics")]
    pub(super) fn callback_begins(&mut self, precise: Time) {
        self.rare().callback = precise;
    }

    /// It has done what it was timed for: when it began.
    pub(super) fn callback_ends(&mut self) -> Option<Time> {
        let rare = self.rare.as_mut()?;
        let began = std::mem::replace(&mut rare.callback, Time::NEVER);
        if rare.is_empty() {
            self.rare = None;
        }
        (began != Time::NEVER).then_some(began)
    }

    pub(super) fn watches_writer(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.writer != Time::NEVER)
    }

    /// The kernel has taken everything, a ping included.
    #[inline]
    pub(super) fn flushed(&mut self, worker: &Worker) {
        if let Some(rare) = &mut self.rare {
            self.moved |= rare.flushed(worker);
            if rare.is_empty() {
                self.rare = None;
            }
        }
    }

    pub(super) fn closing(&mut self, now: Time) {
        if self.rare().closing == Time::NEVER {
            self.rare().closing = now;
            self.moved = true;
        }
    }

    /// The payload of a new ping; `flushed` must follow.
    pub(super) fn ping(&mut self, precise: Time) -> [u8; 8] {
        let payload = precise.as_micros().to_be_bytes();
        self.asked = false;
        let never = Time::NEVER;
        let ping = Ping { payload, answered: false, flushed: never, flushed_precisely: never };
        self.rare().ping = Some(ping);
        payload
    }

    /// A pong has come: the round trip, if it answers our ping.
    pub(super) fn pong(&mut self, payload: &[u8], worker: &Worker) -> Option<Duration> {
        let rare = self.rare.as_mut()?;
        let ping = rare.ping.take_if(|ping| ping.payload == payload)?;
        let flushed = ping.flushed_precisely;
        if rare.is_empty() {
            self.rare = None;
        }
        if flushed == Time::NEVER {
            return None;
        }
        Some(worker.clock().precise().since(flushed))
    }

    /// When something has to be looked at, at the earliest.
    fn next(&self, timeouts: &Timeouts) -> Time {
        // While one is waiting for a peer that takes nothing, the write stall is what ends it.
        let ping = if self.asked { None } else { timeouts.ping };
        let silence = after(self.heard, ping).min(after(self.message, timeouts.idle));
        let Some(rare) = &self.rare else {
            return silence;
        };
        let stall = rare.stalled + timeouts.write_stall;
        if rare.closing != Time::NEVER {
            return stall.min(rare.closing + timeouts.close);
        }
        let silence = match &rare.ping {
            Some(ping) if !ping.answered => {
                (ping.flushed + timeouts.pong).min(after(self.message, timeouts.idle))
            }
            _ => silence,
        };
        let writer = rare.writer + timeouts.writer;
        stall.min(silence).min(rare.lifetime_end).min(writer)
    }

    /// Whether the wheel's entry is due, so that `expired` must be asked.
    #[inline]
    pub(super) fn is_due(&self, now: Time) -> bool {
        now >= self.armed
    }

    /// What has expired, the most severe first.
    pub(super) fn expired(&mut self, now: Time, timeouts: &Timeouts) -> Option<Expired> {
        self.moved = true;
        let mut ping = None;
        if let Some(rare) = &self.rare {
            if now >= rare.stalled + timeouts.write_stall {
                return Some(Expired::Timer(Timer::WriteStall));
            }
            if rare.closing != Time::NEVER {
                let over = now >= rare.closing + timeouts.close;
                return over.then_some(Expired::Timer(Timer::Close));
            }
            if now >= rare.writer + timeouts.writer {
                return Some(Expired::Timer(Timer::Writer));
            }
            if now >= rare.lifetime_end {
                return Some(Expired::Timer(Timer::Lifetime));
            }
            ping = rare.ping.as_ref().filter(|ping| !ping.answered);
        }
        if now >= after(self.message, timeouts.idle) {
            return Some(Expired::Timer(Timer::Idle));
        }
        match ping {
            Some(ping) => {
                (now >= ping.flushed + timeouts.pong).then_some(Expired::Timer(Timer::Pong))
            }
            None if !self.asked && now >= after(self.heard, timeouts.ping) => {
                self.asked = true;
                Some(Expired::SendPing)
            }
            None => None,
        }
    }

    /// Whether the wheel's entry must be set before waiting.
    #[inline]
    pub(super) fn has_moved(&self) -> bool {
        self.moved
    }

    /// Sets the wheel's entry to what is next. `limit` is a deadline from outside.
    pub(super) fn arm(&mut self, timeouts: &Timeouts, limit: Time) {
        self.moved = false;
        let next = self.next(timeouts).min(limit);
        self.armed = next;
        self.entry.set(next);
    }

    /// Sets the wheel's entry to something else, when nothing of this is left to wait for.
    pub(super) fn wake_at(&mut self, deadline: Time) {
        self.entry.set(deadline);
    }

    /// A deadline from outside has changed.
    pub(super) fn moved(&mut self) {
        self.moved = true;
    }
}

impl Rare {
    /// Whether there is nothing left to remember.
    fn is_empty(&self) -> bool {
        let never = Time::NEVER;
        self.ping.is_none()
            && self.stalled == never
            && self.closing == never
            && self.lifetime_end == never
            && self.writer == never
            && self.callback == never
    }

    /// Returns whether that moves a deadline.
    fn heard(&mut self, now: Time) -> bool {
        match &mut self.ping {
            // Both times are of the coarse clock, so a byte that came after the ping left is never
            // taken for one that came before.
            Some(ping) if !ping.answered && now >= ping.flushed => {
                ping.answered = true;
                true
            }
            _ => false,
        }
    }

    /// Returns whether that moves a deadline.
    fn flushed(&mut self, worker: &Worker) -> bool {
        self.stalled = Time::NEVER;
        match &mut self.ping {
            Some(ping) if ping.flushed == Time::NEVER => {
                ping.flushed = worker.now();
                ping.flushed_precisely = worker.clock().precise();
                true
            }
            _ => false,
        }
    }
}

/// Between 0 and 1, different from session to session; nobody gains by guessing it.
fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Clock;

    fn seconds(n: u64) -> Time {
        Time::default() + Duration::from_secs(n)
    }

    #[test]
    fn a_ping_that_cannot_leave_is_asked_for_once_and_wakes_nobody_again() {
        let worker = Worker::new(0, Clock::virtual_at_zero()).unwrap();
        let timeouts = Timeouts::default();
        let mut timers = Timers::new(&worker, &timeouts);
        timers.stalled(seconds(20), false);
        assert_eq!(timers.expired(seconds(25), &timeouts), Some(Expired::SendPing));
        assert_eq!(timers.next(&timeouts), seconds(30), "the write stall, and nothing before it");
        assert_eq!(timers.expired(seconds(26), &timeouts), None);
        assert_eq!(timers.expired(seconds(30), &timeouts), Some(Expired::Timer(Timer::WriteStall)));
    }

    #[test]
    fn a_pong_is_due_from_when_the_ping_has_left() {
        let worker = Worker::new(0, Clock::virtual_at_zero()).unwrap();
        let timeouts = Timeouts::default();
        let mut timers = Timers::new(&worker, &timeouts);
        assert_eq!(timers.next(&timeouts), seconds(25));
        assert_eq!(timers.expired(seconds(25), &timeouts), Some(Expired::SendPing));
        let payload = timers.ping(seconds(25));
        assert_eq!(timers.next(&timeouts), Time::NEVER, "it has not left");
        timers.flushed(&worker);
        assert_eq!(timers.next(&timeouts), seconds(10), "the worker's clock stands at zero");
        assert_eq!(timers.pong(b"another", &worker), None);
        assert_eq!(timers.pong(&payload, &worker), Some(Duration::ZERO));
        assert_eq!(timers.next(&timeouts), seconds(25));
    }

    #[test]
    fn closing_leaves_only_its_own_deadline() {
        let worker = Worker::new(0, Clock::virtual_at_zero()).unwrap();
        let timeouts = Timeouts::default();
        let mut timers = Timers::new(&worker, &timeouts);
        timers.closing(seconds(3));
        timers.closing(seconds(4));
        assert_eq!(timers.next(&timeouts), seconds(8));
        assert_eq!(timers.expired(seconds(7), &timeouts), None);
        assert_eq!(timers.expired(seconds(8), &timeouts), Some(Expired::Timer(Timer::Close)));
    }
}
