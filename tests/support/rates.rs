//! Rates that a test has in its hand.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coracle::config::Config;
use coracle::{Allowance, RatePolicy, Rates, Session, SessionRates};

use crate::pipe::*;
use crate::support::*;

/// Further away than the watchdog.
pub const LATER: Duration = Duration::from_secs(3600);

/// Lets nothing through until the test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<Gated>);

#[derive(Default)]
struct Gated {
    /// Whoever has asked in vain is to ask again only after the test.
    shut_for_good: bool,
    open: AtomicBool,
    asked: AtomicUsize,
    transferred: AtomicUsize,
}

impl Gate {
    pub fn shut_for_good() -> Self {
        Self(Arc::new(Gated { shut_for_good: true, ..Gated::default() }))
    }

    pub fn open(&self) {
        self.0.open.store(true, Ordering::SeqCst);
    }

    pub fn asked(&self) -> usize {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// Waits until somebody has asked in vain, after so many times before.
    #[track_caller]
    pub fn await_asked_after(&self, before: usize) {
        eventually("it is asked", || self.asked() > before);
    }

    /// The same from now on; who has asked asks again.
    #[track_caller]
    pub fn await_asked(&self) {
        assert!(!self.0.shut_for_good);
        self.await_asked_after(self.asked());
    }

    pub fn transferred(&self) -> usize {
        self.0.transferred.load(Ordering::SeqCst)
    }
}

impl RatePolicy for Gate {
    fn available(&mut self, now: Instant) -> Allowance {
        if self.0.open.load(Ordering::SeqCst) {
            return Allowance::Bytes(NonZero::<usize>::MAX);
        }
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let wait = if self.0.shut_for_good { LATER } else { Duration::from_millis(1) };
        Allowance::Until(now + wait)
    }

    fn transferred(&mut self, bytes: usize, _: Instant) {
        self.0.transferred.fetch_add(bytes, Ordering::SeqCst);
    }
}

/// An echo server whose sessions all have these rates.
pub fn with_rates(
    rates: impl Fn(&Session) -> Rates + Send + Sync + 'static,
    more: impl FnOnce(&mut Config),
) -> Watched {
    Watched::start(|config| {
        config.rates = Some(SessionRates::new(rates));
        more(config);
    })
}

/// Lets through so many bytes at a time, always.
pub struct AtMost(pub usize);

impl RatePolicy for AtMost {
    fn available(&mut self, _: Instant) -> Allowance {
        NonZero::new(self.0).map(Allowance::Bytes).unwrap()
    }

    fn transferred(&mut self, _: usize, _: Instant) {}
}
