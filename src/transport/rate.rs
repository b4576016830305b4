//! How fast bytes may go in one direction: not at all limited, so many bytes per second, or as the
//! application says.

use std::fmt;
use std::num::NonZero;
use std::time::Instant;

use super::bucket::Bucket;

/// How many bytes may go in one direction, and when.
///
/// Whoever transfers bytes asks [`available`](Self::available) before it does, transfers at most what it
/// was allowed, and then says with [`transferred`](Self::transferred) how much it was. Each direction of
/// each stream has a policy of its own; policies that share a budget share it by what they hold, an
/// `Arc<Mutex<_>>` for example. Who of them gets something is then up to them: nobody stands in a line, and
/// which of the sessions of a worker that wait for the same moment is asked first is left to chance. A
/// policy reads no clock: it is told the time, so that it can be tested without waiting.
///
/// [`Unlimited`] and [`BytesPerSecond`] are the ones that come with this crate. A policy of one's own, here
/// one that stops for a second after every mebibyte:
///
/// ```rust
/// use std::num::NonZero;
/// use std::time::{Duration, Instant};
///
/// use coracle::{Allowance, RatePolicy};
///
/// struct Breather {
///     left: usize,
///     resumes: Instant,
/// }
///
/// impl RatePolicy for Breather {
///     fn available(&mut self, now: Instant) -> Allowance {
///         if now < self.resumes {
///             return Allowance::Until(self.resumes);
///         }
///         NonZero::new(self.left).map_or(Allowance::Until(self.resumes), Allowance::Bytes)
///     }
///
///     fn transferred(&mut self, bytes: usize, now: Instant) {
///         self.left = self.left.saturating_sub(bytes);
///         if self.left == 0 {
///             self.left = 1 << 20;
///             self.resumes = now + Duration::from_secs(1);
///         }
///     }
/// }
/// ```
///
/// A policy must not block. In a [session](crate::config::Config::rates) its panic is a handler's panic.
///
/// The roles are those of Boost.Beast's *RatePolicy*; here a policy has one direction, and says when to
/// ask again instead of being woken once in a second.
pub trait RatePolicy {
    /// How many bytes may go now, or when to ask again.
    ///
    /// It may be asked more often than bytes are transferred: asking takes nothing away. An `Until` that
    /// is not later than `now` lets other tasks have their turn before it is asked again.
    fn available(&mut self, now: Instant) -> Allowance;

    /// So many bytes have been transferred.
    ///
    /// That can be more than was allowed, where the smallest unit does not fit: the rest of a message,
    /// or a control frame that must not wait. What is too much has to be made up for later.
    fn transferred(&mut self, bytes: usize, now: Instant);

    /// Whether it will never limit anything, so that nobody has to read the clock for it. Asked at any
    /// time; the answer must always be the same. By default: no.
    fn is_unlimited(&self) -> bool {
        false
    }
}

/// What a [`RatePolicy`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// At most so many bytes, now.
    Bytes(NonZero<usize>),
    /// None before this moment; then it is asked again.
    Until(Instant),
}

impl<P: RatePolicy + ?Sized> RatePolicy for Box<P> {
    fn available(&mut self, now: Instant) -> Allowance {
        (**self).available(now)
    }

    fn transferred(&mut self, bytes: usize, now: Instant) {
        (**self).transferred(bytes, now);
    }

    fn is_unlimited(&self) -> bool {
        (**self).is_unlimited()
    }
}

/// No limit; costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unlimited;

impl RatePolicy for Unlimited {
    #[inline]
    fn available(&mut self, _: Instant) -> Allowance {
        Allowance::Bytes(NonZero::<usize>::MAX)
    }

    #[inline]
    fn transferred(&mut self, _: usize, _: Instant) {}

    #[inline]
    fn is_unlimited(&self) -> bool {
        true
    }
}

/// So many bytes per second: a token bucket.
///
/// The bucket holds `burst` bytes and is full at first. Transferring takes bytes out, and `rate` bytes per
/// second come in, counted exactly: over any time `t`, at most `burst + rate · t` bytes go, and a stream
/// that always has something to say gets just that. An empty bucket gives out again when a twentieth of a
/// second's bytes (or a whole burst, if that is less) have come in.
///
/// ```rust
/// use coracle::BytesPerSecond;
///
/// let modem = BytesPerSecond::new(7_000);
/// let bursty = BytesPerSecond::new(64 * 1024).with_burst(1024 * 1024);
/// # let _ = (modem, bursty);
/// ```
#[derive(Clone)]
pub struct BytesPerSecond(Bucket);

impl BytesPerSecond {
    /// At most `rate` bytes per second, and as much at once as a second may have.
    ///
    /// # Panics
    ///
    /// If `rate` is zero: nothing would ever be transferred. In a `const` that is an error of the
    /// compiler.
    #[must_use]
    pub const fn new(rate: u64) -> Self {
        assert!(rate > 0, "a rate of zero bytes per second lets nothing through");
        Self(Bucket::new(rate, rate))
    }

    /// The same with a bucket of another size, and full: how many bytes may go at once after a rest.
    ///
    /// With less than what comes in while a timer is late it does not come up to its rate: a few
    /// milliseconds' worth.
    ///
    /// # Panics
    ///
    /// If `burst` is zero. In a `const` that is an error of the compiler.
    #[must_use]
    pub const fn with_burst(self, burst: u64) -> Self {
        assert!(burst > 0, "a bucket of zero bytes lets nothing through");
        Self(Bucket::new(self.0.rate(), burst))
    }

    /// Bytes per second.
    #[must_use]
    pub const fn rate(&self) -> u64 {
        self.0.rate()
    }

    /// Bytes that may go at once after a rest.
    #[must_use]
    pub const fn burst(&self) -> u64 {
        self.0.burst()
    }
}

impl RatePolicy for BytesPerSecond {
    fn available(&mut self, now: Instant) -> Allowance {
        let Self(bucket) = self;
        bucket.fill(now);
        if !bucket.has_portion() {
            return Allowance::Until(bucket.next_portion(now));
        }
        let bytes = usize::try_from(bucket.whole()).unwrap_or(usize::MAX);
        // A portion is one byte at least.
        Allowance::Bytes(NonZero::new(bytes).unwrap_or(NonZero::<usize>::MIN))
    }

    fn transferred(&mut self, bytes: usize, now: Instant) {
        let Self(bucket) = self;
        bucket.fill(now);
        bucket.spend(bytes as u64);
    }
}

impl fmt::Debug for BytesPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BytesPerSecond")
            .field("rate", &self.0.rate())
            .field("burst", &self.0.burst())
            .field("level", &self.0.level())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::bucket::PORTIONS_PER_SECOND;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bytes(allowance: Allowance) -> usize {
        match allowance {
            Allowance::Bytes(bytes) => bytes.get(),
            Allowance::Until(_) => 0,
        }
    }

    /// Transfers whatever is allowed, in pieces of at most `piece`, by a clock of its own, until `end`.
    fn greedy(bucket: &mut BytesPerSecond, start: Instant, end: Instant, piece: usize) -> u64 {
        let (mut now, mut total) = (start, 0);
        while now <= end {
            match bucket.available(now) {
                Allowance::Bytes(allowed) => {
                    let taken = allowed.get().min(piece);
                    bucket.transferred(taken, now);
                    total += taken as u64;
                }
                Allowance::Until(next) => {
                    assert!(next > now, "there is something to wait for");
                    now = next;
                }
            }
        }
        total
    }

    #[test]
    fn a_greedy_stream_gets_burst_and_rate_and_not_one_byte_more() {
        let start = Instant::now();
        // Rates that do not divide a second's nanoseconds, pieces that divide nothing.
        for (rate, burst) in
            [(1, 1), (3, 7), (7, 1), (999, 333), (1_000_003, 17), (65_537, 1 << 20)]
        {
            for piece in [1, 13, 4096] {
                let mut bucket = BytesPerSecond::new(rate).with_burst(burst);
                let seconds = if piece < 4096 && rate > 1000 { 1 } else { 100 };
                let total = greedy(&mut bucket, start, start + seconds * SECOND, piece);
                let most = burst + rate * u64::from(seconds);
                let portion = (rate / PORTIONS_PER_SECOND).clamp(1, (burst / 2).max(1));
                assert!(total <= most, "{rate}/{burst}/{piece}: {total} of {most}");
                assert!(total + portion >= most, "{rate}/{burst}/{piece}: {total} of {most}");
            }
        }
    }

    #[test]
    fn asking_often_neither_gains_nor_loses() {
        let start = Instant::now();
        let mut bucket = BytesPerSecond::new(3).with_burst(1000);
        bucket.transferred(1000, start);
        // 10⁶ intervals of which none makes a whole part of anything.
        for step in 1..=1_000_000_u64 {
            bucket.available(start + Duration::from_nanos(step * 333_333));
        }
        let end = start + Duration::from_nanos(333_333_000_000);
        assert_eq!(bytes(bucket.available(end)), 999);
        assert_eq!(bytes(bucket.available(end + Duration::from_nanos(333_333_334))), 1000);
    }

    #[test]
    fn what_was_too_much_is_made_up_for() {
        let start = Instant::now();
        let mut bucket = BytesPerSecond::new(100);
        bucket.transferred(350, start);
        let next = Allowance::Until(start + Duration::from_millis(2550));
        assert_eq!(bucket.available(start), next, "250 bytes, and a portion of five");
        assert_eq!(bytes(bucket.available(start + 10 * SECOND)), 100, "no more than a burst");
    }

    #[test]
    fn a_clock_that_goes_back_takes_nothing_away() {
        let before = Instant::now();
        let start = before + SECOND;
        let mut bucket = BytesPerSecond::new(10);
        bucket.transferred(10, start);
        assert_eq!(bytes(bucket.available(before)), 0);
        assert_eq!(bytes(bucket.available(start + SECOND)), 10);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let start = Instant::now();
        let mut bucket = BytesPerSecond::new(u64::MAX);
        assert_eq!(bytes(bucket.available(start)), usize::MAX);
        for _ in 0..3 {
            bucket.transferred(usize::MAX, start);
        }
        assert!(matches!(bucket.available(start), Allowance::Until(_)));
        let later = start + Duration::from_secs(1 << 32);
        assert_eq!(bytes(bucket.available(later)), usize::MAX);
        let mut slow = BytesPerSecond::new(1);
        for _ in 0..3 {
            slow.transferred(usize::MAX, start);
        }
        assert!(matches!(slow.available(start), Allowance::Until(_)));
    }

    #[test]
    fn policies_can_be_boxed() {
        let policies: [Box<dyn RatePolicy>; 2] =
            [Box::new(Unlimited), Box::new(BytesPerSecond::new(5))];
        let [mut unlimited, mut limited] = policies;
        assert!(unlimited.is_unlimited() && !limited.is_unlimited());
        let now = Instant::now();
        unlimited.transferred(usize::MAX, now);
        limited.transferred(5, now);
        assert_eq!(bytes(unlimited.available(now)), usize::MAX);
        assert_eq!(bytes(limited.available(now)), 0);
    }
}
