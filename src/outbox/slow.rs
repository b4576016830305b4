//! What becomes of a publication for a peer that does not keep up.

use crate::message::Text;

/// What is done with a publication when as much as may wait for a peer does wait already.
///
/// It is about what is [published](crate::Rooms::publish), for which the bounds are a quarter wider than for
/// what is sent directly; [`Session::send`](crate::Session::send) waits,
/// and [`Session::try_send`](crate::Session::try_send) gives the message back. What has been handed to the
/// driver is on its way and is not dropped any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlowPeer {
    /// The session is closed with 1013, and its record says
    /// [`Cause::SlowPeer`](crate::Cause::SlowPeer). What was queued for it is dropped.
    #[default]
    Close,
    /// The publication is dropped, and those after it, until there is room again.
    DropNewest,
    /// The oldest publications that wait are dropped. The latest one is queued in any case: where
    /// messages that were sent directly fill the whole bound, beyond it.
    DropOldest,
    /// As soon as anything waits for the peer to take it, a publication with a
    /// [key](crate::Publication::key) takes the place of one with the same key; its own place is behind
    /// everything that waits. At the bound, and without a key, as [`DropOldest`](Self::DropOldest).
    ///
    /// What is replaced leaves no [`Gap`], because nothing is missing that still matters.
    Conflate,
}

/// Publications that a peer did not get: where in the order of its messages is told by when the
/// application is asked what to say about it, see [`Builder::on_gap`](crate::Builder::on_gap).
#[derive(Clone, Debug, Default)]
pub struct Gap {
    lost: Vec<(Option<Text>, u64)>,
}

/// Rooms that a gap names. A client that comes and goes may miss something of any number of them.
const NAMED: usize = 64;

impl Gap {
    /// How many there were.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lost.iter().map(|(_, count)| count).sum()
    }

    /// How many of which room; `None` for what was published to all sessions or to this one, and for what
    /// was of more than 64 rooms.
    pub fn rooms(&self) -> impl Iterator<Item = (Option<&str>, u64)> {
        self.lost.iter().map(|(room, count)| (room.as_deref(), *count))
    }

    pub(super) fn add(&mut self, room: Option<Text>) {
        let is_new = !self.lost.iter().any(|(it, _)| *it == room);
        let room = room.filter(|_| !is_new || self.lost.len() < NAMED);
        match self.lost.iter_mut().find(|(it, _)| *it == room) {
            Some((_, count)) => *count += 1,
            None => self.lost.push((room, 1)),
        }
    }
}

/// What a session's slowness has cost it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Losses {
    /// Publications that were dropped.
    pub dropped: u64,
    /// Publications that a later one with the same key has replaced.
    pub conflated: u64,
}

/// What most sessions never need.
#[derive(Default)]
pub(super) struct Slow {
    /// Instead of the room's.
    pub(super) policy: Option<SlowPeer>,
    pub(super) losses: Losses,
}
