//! Percentiles of any number of times, in a fixed space.

use std::time::Duration;

/// What is left of a positive `f32` without its sixteen lower bits: the exponent and seven bits of the
/// fraction, so that two times in one place differ by less than one percent.
const PLACES: usize = 1 << 15;

/// How often which time was seen.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; PLACES], total: 0 }
    }
}

impl Histogram {
    /// Notes one time.
    pub fn record(&mut self, time: Duration) {
        let micros = time.as_secs_f32() * 1e6;
        self.counts[(micros.to_bits() >> 16) as usize] += 1;
        self.total += 1;
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
    }

    /// How many were noted.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The time, in microseconds, below which that share (0 to 1) of all is; not a number if there are
    /// none.
    pub fn micros_at(&self, share: f64) -> f64 {
        let rank = (self.total as f64 * share) as u64;
        let mut seen = 0;
        for (place, &count) in self.counts.iter().enumerate() {
            seen += count;
            if seen > rank || (seen == self.total && count > 0) {
                let middle = (place as u32) << 16 | 1 << 15;
                return f64::from(f32::from_bits(middle));
            }
        }
        f64::NAN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_within_one_percent() {
        let mut histogram = Histogram::default();
        assert!(histogram.micros_at(0.5).is_nan());
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        assert_eq!(histogram.len(), 1000);
        for (share, expected) in [(0.0, 1.0), (0.5, 501.0), (0.99, 991.0), (1.0, 1000.0)] {
            let found = histogram.micros_at(share);
            assert!((found / expected - 1.0).abs() < 0.01, "{share}: {found}");
        }
    }
}
