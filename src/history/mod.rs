//! What rooms have been told, kept for those who come later: stores, ids, replay.
//!
//! [`History`] publishes to a room and keeps what it has published; [`Memory`], `Sqlite` or a [`Store`] of the
//! application's own is where. The whole of it is explained in [`docs::history`](crate::docs::history).

// Inside: the `Book` is what a server and its handles share. It has one `Line` for each room, which counts the ids and
// holds what the store has not confirmed yet.
//
// Locks are taken in this order: the book's gate, a shard of the ledger, a room's order, then the rooms' own locks; a
// room's tail and a store's locks are innermost: under them no other is taken but that of what is held, under a tail.

mod book;
mod errors;
mod handle;
mod held;
mod hook;
mod ledger;
mod memory;
mod publish;
mod reading;
mod receipt;
mod resume;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;
mod value;

pub(crate) use book::Book;
pub use errors::{PublishError, ResumeError, StoreError, StoreErrorKind};
pub use handle::{History, HistoryStats};
pub use hook::{HistoryErrorHook, Kept, LostAppend};
pub use memory::Memory;
pub use publish::Published;
pub use receipt::{Receipt, Stored};
pub use resume::{Resume, Resumed};
#[cfg(feature = "sqlite")]
pub use sqlite::{Durability, Sqlite, SqliteOptions};
pub use store::{Boxed, Closing, Opening, Portion, Store, StoreStats};
pub use value::{Bounds, Entry, Epoch, Page, Replay, Since};

/// The largest id: a browser's number holds every whole number up to it (`Number.MAX_SAFE_INTEGER`).
pub const MAX_ID: u64 = (1 << 53) - 1;

/// 2³²: how far the ids leap after an end that was not clean.
const LEAP: u64 = 1 << 32;

/// From where the ids of all rooms go on when it is not known which were handed out: above all that are known
/// to have been by at least half of 2³². That many publications of one room in a row would have to be
/// refused by the store, each of them without any later one being kept, for an id to come twice.
///
/// `None`: there are no more ids. That takes two million ends that are not clean.
#[must_use]
pub fn leap(highest: u64) -> Option<u64> {
    let floor = (highest.checked_add(LEAP / 2)? / LEAP + 1) * LEAP;
    (floor < MAX_ID - LEAP).then_some(floor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leap_is_far_and_ends_where_a_browser_cannot_count_on() {
        for highest in [0, 1, LEAP / 2 - 1, LEAP / 2, LEAP - 1, LEAP, 7 * LEAP + 5] {
            let floor = leap(highest).unwrap();
            assert_eq!(floor % LEAP, 0);
            assert!(floor - highest > LEAP / 2 - 1, "{highest} -> {floor}");
            assert!(floor - highest <= LEAP + LEAP / 2, "{highest} -> {floor}");
        }
        assert_eq!(leap(MAX_ID), None);
        assert_eq!(leap(u64::MAX), None);
    }
}
