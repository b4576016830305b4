//! The application is told what was not kept; and the store, as a value of the configuration.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::errors::StoreError;
use super::publish::Making;
use super::store::Store;

/// A message that was published, and is not kept: who was in the room has got it, who comes later will not.
#[derive(Debug)]
#[non_exhaustive]
pub struct LostAppend<'a> {
    /// The room.
    pub room: &'a str,
    /// The message's id. In the room's history there is a hole here.
    pub id: u64,
    /// Why.
    pub error: &'a StoreError,
}

/// Hears of each message that was published and is not kept; for
/// [`config::History::on_error`](crate::config::History::on_error).
#[derive(Clone)]
pub struct HistoryErrorHook(Arc<dyn Fn(&LostAppend<'_>) + Send + Sync>);

impl HistoryErrorHook {
    /// Tells `hook`, on the thread that notices it: one that publishes, or the store's own. It must not block,
    /// and cannot publish with history. If it panics that is logged.
    pub fn new(hook: impl Fn(&LostAppend<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    pub(super) fn tell(&self, lost: &LostAppend<'_>) {
        // Whoever publishes because publishing failed might never come to an end.
        let _making = Making::begin();
        if catch_unwind(AssertUnwindSafe(|| (self.0)(lost))).is_err() {
            log::error!("room {:?}: on_history_error panicked", lost.room);
        }
    }
}

impl fmt::Debug for HistoryErrorHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HistoryErrorHook").finish_non_exhaustive()
    }
}

/// A [`Store`] in a configuration; for
/// [`config::History::store`](crate::config::History::store).
#[derive(Clone)]
pub struct Kept(pub(super) Arc<dyn Store>);

impl Kept {
    /// What is published with history is kept there.
    pub fn new(store: impl Store) -> Self {
        Self(Arc::new(store))
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}
