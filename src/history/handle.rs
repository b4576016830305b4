//! The handle by which applications publish, read, and let sessions catch up.

use std::fmt;
use std::sync::Arc;

use super::book::Book;
use super::errors::StoreError;
use super::value::Epoch;
use crate::hub::Hub;

/// The history of one server's rooms. Cheap to clone, usable from any thread and any executor.
///
/// It is there if [`Builder::history`](crate::Builder::history) was given a store; it comes from
/// [`ServerHandle::history`](crate::ServerHandle::history) and
/// [`Session::history`](crate::Session::history). See [`docs::history`](crate::docs::history).
#[derive(Clone)]
pub struct History {
    pub(super) hub: Arc<Hub>,
    pub(super) book: Arc<Book>,
}

/// The numbers of a history since its server was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryStats {
    /// Messages that the store has confirmed.
    pub appended: u64,
    /// Messages that were published and are not kept.
    pub failed: u64,
    /// Messages that the store has not answered for yet.
    pub pending_messages: usize,
    /// The same in bytes, each with its room's name and 128 bytes more than its payload.
    pub pending_bytes: usize,
    /// Rooms of which it is known how far their ids have come.
    pub rooms: usize,
    /// Groups of messages that the store has made durable together, if it does so in groups.
    pub commits: u64,
    /// Messages that the store has removed because there were too many, or because they were too old.
    pub trimmed: u64,
    /// How often removing them failed; it is tried again.
    pub trims_failed: u64,
    /// Why the last one that is not kept is not.
    pub last_error: Option<StoreError>,
}

impl History {
    pub(crate) fn of(hub: &Arc<Hub>) -> Option<Self> {
        let book = Arc::clone(hub.history.as_ref()?);
        Some(Self { hub: Arc::clone(hub), book })
    }

    /// The numbering that the ids belong to.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.book.epoch
    }

    /// The last id of a room: that of the message that was published last. An id before the first one, if there
    /// is none.
    #[must_use]
    pub fn last_id(&self, room: &str) -> u64 {
        self.book.ledger.last(room)
    }

    /// Waits until everything that has been published so far is kept, or is not.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store cannot say so. What was not kept is no error here.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future changes nothing.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.book.store.flush().await
    }

    /// What has happened so far.
    #[must_use]
    pub fn stats(&self) -> HistoryStats {
        self.book.stats()
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").field("epoch", &self.epoch()).finish_non_exhaustive()
    }
}
