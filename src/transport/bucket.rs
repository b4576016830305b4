//! A token bucket: the arithmetic below every rate.

use std::time::{Duration, Instant};

/// Nanoseconds of a second, and parts of a token in which a bucket counts: in a nanosecond, `rate` of them
/// come in, so that no interval is ever rounded.
const PARTS: i128 = 1_000_000_000;

/// Who waits at a bucket that is empty waits until so much of a second's tokens has come in: otherwise
/// somebody who has much to say would be woken for every single one.
pub(super) const PORTIONS_PER_SECOND: u64 = 20;

/// What a wait is that no clock can name: a year, after which it is asked again.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Holds `burst` tokens and is full at first; `rate` of them come in per second.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    rate: u64,
    burst: u64,
    /// In parts of a token; negative when more has been spent than there was.
    level: i128,
    /// When `level` was right; `None` as long as nobody has asked.
    at: Option<Instant>,
}

impl Bucket {
    /// Neither number may be zero.
    pub(crate) const fn new(rate: u64, burst: u64) -> Self {
        Self { rate, burst, level: burst as i128 * PARTS, at: None }
    }

    pub(crate) const fn rate(&self) -> u64 {
        self.rate
    }

    pub(crate) const fn burst(&self) -> u64 {
        self.burst
    }

    /// Tokens that are there; negative when more has been spent.
    pub(super) fn level(&self) -> i128 {
        self.level.div_euclid(PARTS)
    }

    /// Whole tokens that can be spent.
    pub(crate) fn whole(&self) -> u64 {
        u64::try_from((self.level / PARTS).max(0)).unwrap_or(u64::MAX)
    }

    /// Lets in what has come since the last time, as far as the bucket holds it.
    pub(crate) fn fill(&mut self, now: Instant) {
        self.earn(now);
        self.spill();
    }

    /// Lets in what has come since the last time, also what the bucket does not hold.
    pub(crate) fn earn(&mut self, now: Instant) {
        let before = self.at.unwrap_or(now);
        // Somebody else's clock may be a little behind.
        let Some(passed) = now.checked_duration_since(before) else {
            return;
        };
        self.at = Some(now);
        let passed = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX);
        let come = passed.saturating_mul(i128::from(self.rate));
        self.level = self.level.saturating_add(come);
    }

    /// What the bucket does not hold is lost.
    pub(crate) fn spill(&mut self) {
        self.level = self.level.min(i128::from(self.burst) * PARTS);
    }

    /// Takes tokens out, whether or not they are there.
    pub(crate) fn spend(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens) * PARTS);
    }

    /// Whether as much is there as is worth waiting for.
    pub(super) fn has_portion(&self) -> bool {
        self.level >= self.portion()
    }

    /// When that will be, if the bucket has been filled `now`.
    pub(crate) fn next_portion(&self, now: Instant) -> Instant {
        let missing = (self.portion() - self.level).max(0);
        // Upwards, so that it is really there by then.
        let rate = i128::from(self.rate);
        let nanos = (missing / rate) + i128::from(missing % rate != 0);
        let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        now.checked_add(wait).unwrap_or_else(|| now + FOREVER)
    }

    /// In parts. Half a burst at most: what comes in while the timer is late must still fit in.
    fn portion(&self) -> i128 {
        i128::from((self.rate / PORTIONS_PER_SECOND).clamp(1, (self.burst / 2).max(1))) * PARTS
    }
}
