//! How fast the session reads and writes, where it has a rate.
//!
//! Reading waits before a read, which is then as small as the rate allows: what has not been read waits in
//! the kernel, and TCP slows the peer down. Writing waits before a batch is taken from the outbox, and a
//! batch that has been taken goes out whole: so there is never half a frame in the way of a pong or a close,
//! and a peer that takes nothing is told apart from a rate that lets nothing out. What was too much is made
//! up for before the next batch.
//!
//! Neither loses a wake-up: each turn asks both anew, and goes to sleep either with nothing to do in that
//! direction (then the socket or the outbox wakes it) or with a time to ask again (then the wheel does).
//! A socket that is not read stays readable in the reactor's books. Once the session is closing, nothing
//! waits any more: it has a deadline of its own for that.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::metering::Meter;
use super::{Link, Stage};
use crate::executor::{Time, panic_text};
use crate::session::rates::Rates;
use crate::transport::{Allowance, RatePolicy, Unlimited};

/// The latest time to wait for that is not "never".
pub(super) const FAR: Time = Time::from_micros(u64::MAX - 1);

/// The rates of one session, and what they have it wait for.
pub(super) struct Pace {
    reading: Half,
    writing: Half,
    meter: Option<Meter>,
}

struct Half {
    policy: Box<dyn RatePolicy>,
    /// It may say no.
    limited: bool,
    /// When it is to be asked again; `NEVER` if the session does not wait for it.
    resumes: Time,
}

impl Half {
    fn new(policy: Box<dyn RatePolicy>) -> Self {
        Self { policy, limited: true, resumes: Time::NEVER }
    }
}

/// Who panics when he is asked may do it when he is dropped, too. Two that are dropped together and both
/// panic would end the process.
impl Drop for Half {
    fn drop(&mut self) {
        let policy = std::mem::replace(&mut self.policy, Box::new(Unlimited));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(policy))) {
            log::error!("a rate policy panicked when it was dropped: {}", panic_text(&*panic));
        }
    }
}

impl Pace {
    /// When the first of them is to be asked again.
    pub(super) fn resumes(&self) -> Time {
        let meter = self.meter.as_ref().map_or(Time::NEVER, |meter| meter.resumes);
        self.reading.resumes.min(self.writing.resumes).min(meter)
    }

    pub(super) fn holds_reading(&self) -> bool {
        self.reading.resumes != Time::NEVER
    }

    /// What there is of the peer's waits for the inbound rate.
    pub(super) fn holds_messages(&self) -> bool {
        self.meter.as_ref().is_some_and(|meter| meter.resumes != Time::NEVER)
    }

    pub(super) fn paces_writing(&self) -> bool {
        self.writing.limited
    }

    pub(super) fn meter(&mut self) -> Option<&mut Meter> {
        self.meter.as_mut()
    }

    pub(super) fn holds_writing(&self) -> bool {
        self.writing.resumes != Time::NEVER
    }

    fn reading(&mut self) -> &mut Half {
        &mut self.reading
    }

    fn writing(&mut self) -> &mut Half {
        &mut self.writing
    }
}

impl Link {
    /// Asks the configuration for the session's rates; once, before anything else. Calls the application.
    pub(in crate::session) fn find_rates(&mut self) {
        let config = self.config();
        if config.rates.is_none() && config.inbound.is_none() {
            return;
        }
        let found = catch_unwind(AssertUnwindSafe(|| {
            let rates = config.rates.as_ref().map(|rates| rates.of(&self.session));
            let Rates { reading, writing, inbound } =
                rates.unwrap_or_else(|| Rates::new(Unlimited, Unlimited));
            let (mut reading, mut writing) = (Half::new(reading), Half::new(writing));
            reading.limited = !reading.policy.is_unlimited();
            writing.limited = !writing.policy.is_unlimited();
            let meter = inbound.or(config.inbound).and_then(Meter::new);
            let needed = reading.limited || writing.limited || meter.is_some();
            needed.then(|| Box::new(Pace { reading, writing, meter }))
        }));
        let pace = match found {
            Ok(Some(pace)) => pace,
            Ok(None) => return,
            Err(panic) => return self.policy_panicked(&*panic),
        };
        if pace.paces_writing() {
            self.session.member().outbox.pace();
        }
        self.pace = Some(pace);
        // It came with the request.
        if !self.input.is_empty() {
            self.has_read(self.input.len());
        }
    }

    /// How much may be read now; `None` if reading has to wait for its rate.
    pub(super) fn may_read(&mut self) -> Option<usize> {
        self.ask(Pace::reading)
    }

    /// Whether the next batch has to wait for its rate.
    #[inline]
    pub(super) fn must_not_write(&mut self) -> bool {
        self.pace.is_some() && self.ask(Pace::writing).is_none()
    }

    /// There is no batch that would wait.
    pub(super) fn nothing_to_write(&mut self) {
        if let Some(pace) = &mut self.pace {
            pace.writing.resumes = Time::NEVER;
        }
    }

    #[cold]
    fn ask(&mut self, half: fn(&mut Pace) -> &mut Half) -> Option<usize> {
        let Some(pace) = &mut self.pace else {
            return Some(usize::MAX);
        };
        let half = half(pace);
        half.resumes = Time::NEVER;
        if self.stage != Stage::Open || !half.limited {
            return Some(usize::MAX);
        }
        let clock = self.worker.clock();
        let now = clock.instant(clock.precise());
        match catch_unwind(AssertUnwindSafe(|| half.policy.available(now))) {
            Ok(Allowance::Bytes(most)) => Some(most.get()),
            Ok(Allowance::Until(resumes)) => {
                half.resumes = clock.time(resumes).min(FAR);
                self.timers.moved();
                None
            }
            Err(panic) => {
                self.policy_panicked(&*panic);
                Some(usize::MAX)
            }
        }
    }

    /// Waits for no rate any more until that has been asked anew, as it is in every turn: who does not
    /// want to read or to write need not wait for it either. Returns whether it did wait.
    #[inline]
    pub(super) fn release(&mut self) -> bool {
        self.pace.as_mut().is_some_and(|pace| {
            let waited = pace.resumes() != Time::NEVER;
            pace.reading.resumes = Time::NEVER;
            pace.writing.resumes = Time::NEVER;
            if let Some(meter) = &mut pace.meter {
                meter.resumes = Time::NEVER;
            }
            waited
        })
    }

    /// Counts what has been read, whatever it was.
    pub(super) fn has_read(&mut self, bytes: usize) {
        self.transferred(Pace::reading, bytes);
    }

    /// Counts what has been written, whatever it was.
    pub(super) fn has_written(&mut self, bytes: usize) {
        self.transferred(Pace::writing, bytes);
    }

    #[cold]
    fn transferred(&mut self, half: fn(&mut Pace) -> &mut Half, bytes: usize) {
        let Some(pace) = &mut self.pace else {
            return;
        };
        let half = half(pace);
        if !half.limited {
            return;
        }
        let clock = self.worker.clock();
        let now = clock.instant(clock.precise());
        let counted = catch_unwind(AssertUnwindSafe(|| half.policy.transferred(bytes, now)));
        if let Err(panic) = counted {
            self.policy_panicked(&*panic);
        }
    }

    /// A policy has panicked: it is not asked again.
    fn policy_panicked(&mut self, panic: &(dyn Any + Send)) {
        self.pace = None;
        self.panicked("a rate policy", panic);
    }
}
