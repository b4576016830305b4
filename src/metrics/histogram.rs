//! Durations in buckets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many durations were how long. Any thread may add one: two relaxed additions.
pub(crate) struct Histogram {
    /// Upper bounds of all buckets but the last, inclusive, in microseconds.
    bounds: &'static [u64],
    counts: Box<[AtomicU64]>,
    micros: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [u64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, micros: AtomicU64::new(0) }
    }

    pub(super) fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = self.bounds.partition_point(|bound| *bound < micros);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
            self.micros.fetch_add(micros, Ordering::Relaxed);
        }
    }

    #[cfg(feature = "metrics")]
    pub(super) fn read(&self) -> Reading {
        let bounds = self.bounds.iter().map(|micros| *micros as f64 / 1e6);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets = bounds.chain([f64::INFINITY]).zip(counts).collect();
        Reading { seconds: self.micros.load(Ordering::Relaxed) as f64 / 1e6, buckets }
    }
}

/// What a histogram shows at one moment.
#[cfg(feature = "metrics")]
pub(super) struct Reading {
    /// The sum of all durations.
    pub(super) seconds: f64,
    /// Upper bounds in seconds, and how many durations each bucket has for itself.
    pub(super) buckets: Vec<(f64, u64)>,
}

#[cfg(feature = "metrics")]
impl Reading {
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// Adds another one with the same bounds.
    pub(super) fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        for ((_, sum), (_, count)) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += count;
        }
    }
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::new(&[10, 1000]);
        for micros in [0, 10, 11, 1000, 1001] {
            histogram.record(Duration::from_micros(micros));
        }
        let mut reading = histogram.read();
        assert_eq!(reading.buckets, [(1e-5, 2), (1e-3, 2), (f64::INFINITY, 1)]);
        assert_eq!((reading.count(), reading.seconds), (5, 2022e-6));
        reading.add(&histogram.read());
        assert_eq!((reading.count(), reading.seconds), (10, 4044e-6));
    }

    #[test]
    fn an_endless_duration_is_counted() {
        let histogram = Histogram::new(&[10]);
        histogram.record(Duration::MAX);
        assert_eq!(histogram.read().buckets, [(1e-5, 0), (f64::INFINITY, 1)]);
    }
}
