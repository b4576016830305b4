//! What may wait for all peers together.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::Bounds;

/// A peer for which no more than this waits is not counted: so the small messages of those that keep up,
/// which are most, touch no number that all workers share.
const FREE: usize = 4 * 1024;

/// What an outbox is held to: its own bounds, and the memory of all.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) bounds: Bounds,
    budget: usize,
    used: AtomicUsize,
}

impl Terms {
    pub(crate) fn new(bounds: Bounds, budget: usize) -> Self {
        Self { bounds, budget, used: AtomicUsize::new(0) }
    }

    /// Bytes that wait, as far as they are counted.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn budget(&self) -> usize {
        self.budget
    }

    #[inline]
    pub(crate) fn is_exceeded(&self) -> bool {
        self.used() > self.budget
    }

    /// For one peer so many bytes wait now, and before it were so many.
    #[inline]
    pub(super) fn moved(&self, before: usize, now: usize) {
        if before > FREE || now > FREE {
            self.recount(before, now);
        }
    }

    fn recount(&self, before: usize, now: usize) {
        let counted = |bytes| if bytes > FREE { bytes } else { 0 };
        match (counted(before), counted(now)) {
            (before, now) if now >= before => self.used.fetch_add(now - before, Ordering::Relaxed),
            (before, now) => self.used.fetch_sub(before - now, Ordering::Relaxed),
        };
    }
}
