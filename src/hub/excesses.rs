//! How often a peer has sent more than its inbound rate allows.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often peers have sent more than their [inbound rate](crate::config::Inbound) allows, since the
/// server was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Excesses {
    /// A session has begun to wait with a message of its peer. Where the peer always has more to say, that is
    /// up to twenty times in a second.
    pub pauses: u64,
    /// A session has been closed.
    pub closes: u64,
}

/// The same while it is counted.
#[derive(Default)]
pub(crate) struct Exceeded {
    pauses: AtomicU64,
    closes: AtomicU64,
}

impl Exceeded {
    pub(crate) fn paused(&self) {
        self.pauses.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn closed(&self) {
        self.closes.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Excesses {
        Excesses {
            pauses: self.pauses.load(Ordering::Relaxed),
            closes: self.closes.load(Ordering::Relaxed),
        }
    }
}
