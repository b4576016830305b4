//! What a store is asked to do.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::errors::StoreError;
use super::receipt::Receipt;
use super::value::{Bounds, Entry, Epoch};
use crate::message::Text;

/// What the asynchronous methods of a [`Store`] return.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where history is kept: [`Memory`](super::Memory), `Sqlite` (feature `sqlite`), or one of your own.
///
/// The ids are given outside, by the server: a store keeps what it gets, and says at
/// [`open`](Self::open) how far each room had come. It may lose entries, if it says so; it must not invent
/// any, nor give two of a room the same id.
///
/// An `Arc` of a store is a store, so that the application can keep one of its own. Its methods may be called
/// concurrently from any thread.
pub trait Store: Send + Sync + 'static {
    /// Called once when a server starts, and may block. Says where the ids go on, for at least the `rooms` that
    /// were published to last; what it does not name has to be no higher than the floor.
    ///
    /// From here on the end is not clean, until [`close`](Self::close) says that it is.
    ///
    /// # Errors
    ///
    /// The server does not start; [`InUse`](super::StoreErrorKind::InUse) if another one has it open.
    fn open(&self, rooms: usize) -> Result<Opening, StoreError>;

    /// Takes an entry, to keep it some time. Called under the room's lock, in the order of the ids of a room,
    /// by those who publish: so it must not block, and must not call the history. How much may be on the way is
    /// bounded outside.
    ///
    /// The receipt is told what has become of it. It may be told here, or later from any thread.
    fn append(&self, entry: Entry, receipt: Receipt);

    /// The newest entries of a room that have smaller ids than `before`, the newest first, within the bounds.
    ///
    /// It does not wait for appends. May be dropped at any time.
    fn before<'a>(
        &'a self,
        room: &'a str,
        before: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>>;

    /// The oldest entries of a room that have larger ids than `after` and none larger than `until`, the oldest
    /// first, within the bounds.
    ///
    /// As `before` otherwise.
    fn after<'a>(
        &'a self,
        room: &'a str,
        after: u64,
        until: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>>;

    /// Ready when all that was appended before has been confirmed or has failed.
    fn flush(&self) -> Boxed<'_, Result<(), StoreError>>;

    /// The last call: nothing is appended after it. Keeps what is on the way, and then how far the ids have
    /// come, so that they can go on from there. What has no answer when it is ready, or when there is no more time
    /// for it, is told to be lost.
    fn close(&self, closing: Closing) -> Boxed<'_, Result<(), StoreError>>;

    /// What the store has to say of itself.
    fn stats(&self) -> StoreStats {
        StoreStats::default()
    }
}

/// Some entries that a store has read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Portion {
    /// The entries, in the order that was asked for.
    pub entries: Vec<Entry>,
    /// Whether there is one more, which was too much for the bounds.
    pub more: bool,
}

impl Portion {
    /// As many of these as the bounds take; the first is taken however large it is, unless the bounds are used up.
    #[must_use]
    pub fn of(entries: impl IntoIterator<Item = Entry>, mut bounds: Bounds) -> Self {
        Self::collect(entries, &mut bounds)
    }

    pub(super) fn collect(entries: impl IntoIterator<Item = Entry>, bounds: &mut Bounds) -> Self {
        let mut portion = Self::default();
        for entry in entries {
            portion.more = !portion.take(entry, bounds);
            if portion.more {
                break;
            }
        }
        portion
    }

    /// One more, if the bounds take it.
    pub(super) fn take(&mut self, entry: Entry, bounds: &mut Bounds) -> bool {
        let takes = bounds.takes(&entry);
        if takes {
            self.entries.push(entry);
        }
        takes
    }

    /// What follows these.
    pub(super) fn append(&mut self, mut other: Self) {
        self.entries.append(&mut other.entries);
        self.more = other.more;
    }
}

/// Where the ids of a store go on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Opening {
    /// The numbering.
    pub epoch: Epoch,
    /// No id of a room that is not in `heads` has been higher than this.
    pub floor: u64,
    /// Rooms, and the last id that each has had, whether or not it is kept; those that were published to last
    /// first.
    pub heads: Vec<(Text, u64)>,
}

impl Opening {
    /// The ids of these rooms, and of all others, go on from here.
    #[must_use]
    pub fn new(epoch: Epoch, floor: u64, heads: Vec<(Text, u64)>) -> Self {
        Self { epoch, floor, heads }
    }
}

/// How far the ids have come when a store is closed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closing {
    /// No id of a room that is neither kept nor in `heads` has been higher than this.
    pub floor: u64,
    /// Every room goes on above this, also one that is kept or in `heads`: somebody may have been told that it has
    /// come as far. 0 if there is nothing to be said of that.
    pub least: u64,
    /// Rooms, and the last id that each has had. Not all: those whose last ids may be missing in the store.
    pub heads: Vec<(Text, u64)>,
    /// Whether this is all that is to be known. If not, the end is not clean, and the next
    /// [`open`](Store::open) has to [leap](super::leap).
    pub complete: bool,
}

/// What a store counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Groups of appends that were made durable together.
    pub commits: u64,
    /// Entries that have been removed because there were too many, or because they were too old.
    pub trimmed: u64,
    /// How often removing them failed; it is tried again.
    pub trims_failed: u64,
}

impl<S: Store + ?Sized> Store for Arc<S> {
    fn open(&self, rooms: usize) -> Result<Opening, StoreError> {
        (**self).open(rooms)
    }

    fn append(&self, entry: Entry, receipt: Receipt) {
        (**self).append(entry, receipt);
    }

    fn before<'a>(
        &'a self,
        room: &'a str,
        before: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>> {
        (**self).before(room, before, bounds)
    }

    fn after<'a>(
        &'a self,
        room: &'a str,
        after: u64,
        until: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>> {
        (**self).after(room, after, until, bounds)
    }

    fn flush(&self) -> Boxed<'_, Result<(), StoreError>> {
        (**self).flush()
    }

    fn close(&self, closing: Closing) -> Boxed<'_, Result<(), StoreError>> {
        (**self).close(closing)
    }

    fn stats(&self) -> StoreStats {
        (**self).stats()
    }
}
