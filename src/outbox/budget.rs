//! What may wait for all peers together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Bounds, Buffered};

/// A peer for which no more than this waits is not counted: so the small messages of those that keep up,
/// which are most, touch no number that all workers share.
const FREE: usize = 4 * 1024;

/// What a message takes beside its payload where it waits by itself, its frame not counted: an entry of the
/// backlog and what it points to.
const OVERHEAD: usize = 192;

/// What waits for one peer, as it is counted.
#[inline]
fn weigh(buffered: Buffered) -> usize {
    buffered.messages.saturating_mul(OVERHEAD).saturating_add(buffered.bytes)
}

/// What an outbox is held to: its own bounds, and the memory of all.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(super) bounds: Bounds,
    /// The bounds for publications. They are wider, because who sends and waits for room keeps an outbox
    /// full, and that is no reason to close it.
    pub(super) published: Bounds,
    budget: usize,
    used: AtomicUsize,
    /// What is kept for clients that come with requests, until they have acknowledged it.
    kept: Arc<AtomicUsize>,
}

impl Terms {
    pub(crate) fn new(bounds: Bounds, budget: usize) -> Self {
        let Bounds { messages, bytes } = bounds;
        let more = |n: usize| n.saturating_add(n / 4);
        let published = Bounds { messages: more(messages), bytes: more(bytes) };
        Self { bounds, published, budget, used: AtomicUsize::new(0), kept: Arc::default() }
    }

    /// Where that is counted which is kept elsewhere than in an outbox.
    #[cfg(feature = "fallback")]
    pub(crate) fn kept(&self) -> Kept {
        Kept { all: Arc::clone(&self.kept), own: 0 }
    }

    /// What waiting for one peer counts; `None` if it is not counted.
    pub(crate) fn counted(buffered: Buffered) -> Option<usize> {
        Some(weigh(buffered)).filter(|bytes| *bytes > FREE)
    }

    /// Bytes that wait, as far as they are counted.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed).saturating_add(self.kept.load(Ordering::Relaxed))
    }

    pub(crate) fn budget(&self) -> usize {
        self.budget
    }

    #[inline]
    pub(crate) fn is_exceeded(&self) -> bool {
        self.used() > self.budget
    }

    /// For one peer so much waits now, and before it was so much.
    #[inline]
    pub(super) fn moved(&self, before: Buffered, now: Buffered) {
        let (before, now) = (weigh(before), weigh(now));
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

/// What is kept for one client, counted among all.
#[cfg(feature = "fallback")]
#[derive(Debug)]
pub(crate) struct Kept {
    all: Arc<AtomicUsize>,
    own: usize,
}

#[cfg(feature = "fallback")]
impl Kept {
    /// So many messages of so many bytes are kept now, and other bytes.
    pub(crate) fn set(&mut self, messages: usize, bytes: usize) {
        let now = weigh(Buffered { messages, bytes });
        let now = if now > FREE { now } else { 0 };
        match now.checked_sub(self.own) {
            Some(more) => self.all.fetch_add(more, Ordering::Relaxed),
            None => self.all.fetch_sub(self.own - now, Ordering::Relaxed),
        };
        self.own = now;
    }

    /// What it counts.
    pub(crate) fn own(&self) -> usize {
        self.own
    }
}

#[cfg(feature = "fallback")]
impl Drop for Kept {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Ordering::Relaxed);
    }
}
