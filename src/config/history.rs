//! Where what rooms are told is kept, and the bounds of that.

use crate::history::{HistoryErrorHook, Kept};

/// Where what is published with [`History`](crate::History) is kept, and what it may cost.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct History {
    /// Default `None`: there is no history.
    pub store: Option<Kept>,
    /// Hears of each message that was published and is not kept. Default `None`: only the log does, and the
    /// numbers ([`HistoryStats`](crate::history::HistoryStats)).
    pub on_error: Option<HistoryErrorHook>,
    /// Messages that may wait for the store. Default 16 384. Beyond it messages are published and not kept.
    pub pending_messages: usize,
    /// The same in bytes, each with its room's name and 128 bytes more than its payload. Default 16 MiB. While
    /// sessions join with a replay, as much again may be held for them, and as much may be in the pages that are
    /// read for them, of which there may be one in any case.
    pub pending_bytes: usize,
    /// Messages that one question returns, at most. Default 256.
    pub page_messages: usize,
    /// The same in bytes, counted in the same way, unless a single message has more. Default 256 KiB.
    pub page_bytes: usize,
    /// Messages that a session is sent when it joins with a replay, at most. Default 1 024.
    pub replay_messages: usize,
    /// Rooms of which it is known how far their ids have come. Default 10 000, which take some 250 bytes each.
    /// Beyond it those are forgotten that have been silent the longest: they go on with higher ids than any
    /// that was forgotten, and a replay over that place is not recovered.
    pub rooms: usize,
}

impl Default for History {
    fn default() -> Self {
        Self {
            store: None,
            on_error: None,
            pending_messages: 16_384,
            pending_bytes: 16 * 1024 * 1024,
            page_messages: 256,
            page_bytes: 256 * 1024,
            replay_messages: 1024,
            rooms: 10_000,
        }
    }
}

impl History {
    /// Those that must not be nothing.
    pub(crate) fn numbers(&self) -> [(&'static str, usize); 5] {
        [
            ("history.pending_messages", self.pending_messages),
            ("history.pending_bytes", self.pending_bytes),
            ("history.page_messages", self.page_messages),
            ("history.page_bytes", self.page_bytes),
            ("history.rooms", self.rooms),
        ]
    }
}
