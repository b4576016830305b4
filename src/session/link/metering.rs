//! How much the session takes from its peer, where it has a rate for that.
//!
//! A message is counted where it is parsed, after it has been decompressed. Where the rate closes, a message
//! that the buckets do not hold is the end. Where it pauses, any message is let in while there is something in
//! the buckets; with the last one the turn is over, and from then on no message is parsed before there is
//! something again. What is read meanwhile is one small buffer: with that waiting, nothing more is read.
//!
//! So a session waits only where there *is* something from its peer: whose peer is silent waits for no rate, and
//! its timers go on. No wake-up is lost, because that is asked anew in each turn, as in
//! [`pacing`](super::pacing). Once the session is closing, nothing is counted and nothing waits.

use std::time::Instant;

use super::pacing::{FAR, Pace};
use super::{Link, Stage};
use crate::config::{Excess, Inbound, Rate};
use crate::executor::{Size, Time, Worker};
use crate::transport::Bucket;

/// The buckets of one session, of which it has one at least.
pub(super) struct Meter {
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
    excess: Excess,
    /// When it is to be asked again; `NEVER` if nothing waits for it.
    pub(super) resumes: Time,
    /// Something has waited since the last message was let in.
    waited: bool,
    /// The session has slept with nothing from its peer unread, so that the buckets hold their burst and no
    /// more. Only where the rate closes.
    slept: bool,
}

/// What becomes of a message.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is let in.
    Goes,
    /// It is let in, and nothing behind it for now.
    Last,
    /// It is too much, and this is why.
    Exceeds(String),
}

impl Meter {
    /// `None` if nothing is to be counted.
    pub(super) fn new(inbound: Inbound) -> Option<Self> {
        let Inbound { messages, bytes, excess } = inbound;
        if messages.is_none() && bytes.is_none() {
            return None;
        }
        let bucket = |rate: Rate| Bucket::new(rate.per_second, rate.burst);
        Some(Self {
            messages: messages.map(bucket),
            bytes: bytes.map(bucket),
            excess,
            resumes: Time::NEVER,
            waited: false,
            slept: false,
        })
    }

    fn buckets(&mut self) -> impl Iterator<Item = &mut Bucket> {
        self.messages.iter_mut().chain(&mut self.bytes)
    }

    fn pauses(&self) -> bool {
        self.excess == Excess::Pause
    }

    /// Lets in what has come since the last time.
    fn fill(&mut self, now: Instant) {
        let pauses = self.pauses();
        for bucket in self.buckets() {
            bucket.earn(now);
            // Where the rate closes, what comes in while the session does not listen is kept: the peer did
            // not know that we would read it all at once.
            if pauses {
                bucket.spill();
            }
        }
    }

    /// Begins a turn.
    fn begin(&mut self, now: Instant) {
        if self.pauses() {
            return;
        }
        self.fill(now);
        if std::mem::take(&mut self.slept) {
            self.buckets().for_each(Bucket::spill);
        }
    }

    /// Counts a message, or if `begins` is false more bytes of one; `goes_on`: there are more to come.
    fn count(&mut self, begins: bool, bytes: u64, goes_on: bool, now: Instant) -> Verdict {
        self.fill(now);
        let messages = u64::from(begins);
        let counted =
            [(&mut self.messages, messages, "messages"), (&mut self.bytes, bytes, "bytes")];
        for (bucket, number, name) in counted {
            let Some(bucket) = bucket else {
                continue;
            };
            if self.excess == Excess::Close && number > bucket.whole() {
                let (rate, burst) = (bucket.rate(), bucket.burst());
                let reason = format!("too many {name}: {rate} per second, at most {burst} at once");
                return Verdict::Exceeds(reason);
            }
            bucket.spend(number);
        }
        let over = self.pauses() && self.empty(goes_on).next().is_some();
        if over { Verdict::Last } else { Verdict::Goes }
    }

    /// The buckets that have nothing to give. A message that has begun has been counted.
    fn empty(&self, goes_on: bool) -> impl Iterator<Item = &Bucket> {
        let messages = self.messages.iter().filter(move |_| !goes_on);
        messages.chain(&self.bytes).filter(|bucket| bucket.whole() == 0)
    }

    /// Whether anything may be let in; if not, when to ask again.
    fn ask(&mut self, goes_on: bool, now: Instant) -> Option<Instant> {
        if !self.pauses() {
            return None;
        }
        self.fill(now);
        self.empty(goes_on).map(|bucket| bucket.next_portion(now)).max()
    }
}

fn precisely(worker: &Worker) -> Instant {
    let clock = worker.clock();
    clock.instant(clock.precise())
}

impl Link {
    /// Begins a turn.
    #[cold]
    pub(super) fn begin_metering(&mut self) {
        if let Some(meter) = self.pace.as_deref_mut().and_then(Pace::meter) {
            meter.begin(precisely(&self.worker));
        }
    }

    /// Before the session sleeps.
    #[cold]
    pub(super) fn end_metering(&mut self) {
        let held = self.pace.as_ref().is_some_and(|pace| pace.holds_reading());
        let listens = !held && self.is_listening();
        if let Some(meter) = self.pace.as_deref_mut().and_then(Pace::meter) {
            meter.slept = listens;
        }
    }

    /// Whether what has been read may be parsed now; if not, the session waits for that. Control frames wait
    /// only behind a message: those in front of it are handled here.
    #[cold]
    pub(super) fn may_parse(&mut self) -> bool {
        loop {
            let Some(first) = self.input.get(self.at) else {
                return true;
            };
            if self.stage != Stage::Open || self.frames_left == 0 || !self.has_place() {
                return true;
            }
            let Some(meter) = self.pace.as_deref_mut().and_then(Pace::meter) else {
                return true;
            };
            meter.resumes = Time::NEVER;
            // Its parts are let in: it has been counted.
            let goes_on = self.streaming.as_ref().is_some_and(|it| it.inlet.is_some());
            let Some(resumes) = meter.ask(goes_on, precisely(&self.worker)) else {
                if std::mem::take(&mut meter.waited) {
                    // All that time its peer was not heard, and not listened to.
                    self.timers.not_listening(self.worker.now());
                }
                return true;
            };
            if self.codec.expects_control(*first) {
                // Otherwise the pongs are to be sent before, and it is not parsed now, either.
                if self.parse_frame() {
                    continue;
                }
                return true;
            }
            meter.resumes = self.worker.clock().time(resumes).min(FAR);
            self.timers.moved();
            if !std::mem::replace(&mut meter.waited, true) {
                self.session.member().hub.exceeded.paused();
            }
            return false;
        }
    }

    /// Counts a message, or a part of one. False if it is too much, and the session ends.
    #[cold]
    pub(super) fn admits(&mut self, begins: bool, bytes: usize, goes_on: bool) -> bool {
        let Some(meter) = self.pace.as_deref_mut().and_then(Pace::meter) else {
            return true;
        };
        match meter.count(begins, bytes as u64, goes_on, precisely(&self.worker)) {
            Verdict::Goes => true,
            Verdict::Last => {
                self.frames_left = 0;
                // What is read next may have to be kept for long.
                self.read_size = Size::default();
                true
            }
            Verdict::Exceeds(reason) => {
                self.session.member().hub.exceeded.closed();
                self.rate_exceeded(&reason);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn meter_of(inbound: Inbound) -> Meter {
        Meter::new(inbound).expect("a rate")
    }

    #[test]
    fn without_a_rate_there_is_no_meter() {
        assert!(Meter::new(Inbound::default()).is_none());
        // What the documentation says it costs, with room for another word.
        assert!(size_of::<Pace>() <= 216, "{}", size_of::<Pace>());
    }

    #[test]
    fn messages_are_let_in_up_to_the_burst_and_then_as_they_come() {
        let start = Instant::now();
        let mut meter = meter_of(Inbound::pause().with_messages(Rate::per_second(2).with_burst(3)));
        for expected in [Verdict::Goes, Verdict::Goes, Verdict::Last] {
            assert_eq!(meter.ask(false, start), None);
            assert_eq!(meter.count(true, 1000, false, start), expected);
        }
        let half = start + SECOND / 2;
        assert_eq!(meter.ask(false, start), Some(half));
        assert_eq!(meter.ask(false, start + Duration::from_nanos(499_999_999)), Some(half));
        assert_eq!(meter.ask(false, half), None);
        assert_eq!(meter.count(true, 0, false, half), Verdict::Last);
        // A long rest brings no more than the burst.
        let later = half + 100 * SECOND;
        let counted: Vec<_> = (0..3).map(|_| meter.count(true, 0, false, later)).collect();
        assert_eq!(counted, [Verdict::Goes, Verdict::Goes, Verdict::Last]);
    }

    #[test]
    fn a_message_that_exceeds_the_bytes_is_made_up_for() {
        let start = Instant::now();
        let mut meter = meter_of(Inbound::pause().with_bytes(Rate::per_second(100)));
        assert_eq!(meter.count(true, 99, false, start), Verdict::Goes);
        assert_eq!(meter.count(true, 0, false, start), Verdict::Goes, "it has no bytes");
        assert_eq!(meter.count(true, 201, false, start), Verdict::Last);
        let resumes = meter.ask(false, start).unwrap();
        assert_eq!(resumes, start + 2 * SECOND + SECOND / 20, "the debt, and a portion");
        assert_eq!(meter.ask(false, resumes), None);
        // Both are waited for.
        let both =
            Inbound::pause().with_messages(Rate::per_second(1)).with_bytes(Rate::per_second(10));
        let mut meter = meter_of(both);
        assert_eq!(meter.count(true, 40, false, start), Verdict::Last);
        assert_eq!(meter.ask(false, start), Some(start + 3 * SECOND + SECOND / 10));
    }

    #[test]
    fn the_parts_of_a_message_wait_for_their_bytes_only() {
        let start = Instant::now();
        let inbound = Inbound::pause().with_messages(Rate::per_second(1));
        let mut meter = meter_of(inbound.with_bytes(Rate::per_second(100)));
        assert_eq!(meter.count(true, 10, true, start), Verdict::Goes, "it goes on");
        assert_eq!(meter.ask(true, start), None);
        assert_eq!(meter.count(false, 90, true, start), Verdict::Last, "no bytes are left");
        assert_eq!(meter.ask(true, start), Some(start + SECOND / 20));
        let later = start + SECOND / 20;
        assert_eq!(meter.count(false, 1, false, later), Verdict::Last, "no message is left");
        assert_eq!(meter.ask(false, later), Some(start + SECOND));
    }

    #[test]
    fn where_the_rate_closes_what_the_buckets_do_not_hold_is_too_much() {
        let start = Instant::now();
        let inbound = Inbound::close().with_messages(Rate::per_second(10).with_burst(2));
        let mut meter = meter_of(inbound.with_bytes(Rate::per_second(100)));
        meter.begin(start);
        assert_eq!(meter.count(true, 60, false, start), Verdict::Goes);
        let refused = meter.count(true, 41, false, start);
        assert_eq!(
            refused,
            Verdict::Exceeds("too many bytes: 100 per second, at most 100 at once".into())
        );
        let mut meter = meter_of(inbound);
        assert_eq!(meter.count(true, 60, false, start), Verdict::Goes);
        assert_eq!(meter.count(true, 60, false, start), Verdict::Goes);
        assert_eq!(meter.ask(false, start), None, "it does not wait");
        let refused = meter.count(true, 0, false, start);
        assert_eq!(
            refused,
            Verdict::Exceeds("too many messages: 10 per second, at most 2 at once".into())
        );
    }

    #[test]
    fn what_has_waited_for_us_is_not_held_against_the_peer() {
        let start = Instant::now();
        let mut meter =
            meter_of(Inbound::close().with_messages(Rate::per_second(10).with_burst(2)));
        meter.begin(start);
        // The handler works for a second, in which the peer may have sent as much as it may.
        let later = start + SECOND;
        meter.begin(later);
        for _ in 0..12 {
            assert_eq!(meter.count(true, 0, false, later), Verdict::Goes);
        }
        assert_ne!(meter.count(true, 0, false, later), Verdict::Goes);
        // A second in which there was nothing to be read.
        meter.slept = true;
        let later = later + SECOND;
        meter.begin(later);
        for _ in 0..2 {
            assert_eq!(meter.count(true, 0, false, later), Verdict::Goes);
        }
        assert_ne!(meter.count(true, 0, false, later), Verdict::Goes);
    }
}
