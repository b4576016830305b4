//! The handle by which applications publish.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::presence::Presence;
use super::publication::{Audience, Publication};
use super::{Index, lock};
use crate::hub::Hub;
use crate::message::Text;

/// The rooms of one server. Cheap to clone, usable from any thread.
///
/// A room is there from when its first member [joins](crate::Session::join) until its last one leaves, and
/// has no owner: what is published to a room that is not there goes to nobody.
///
/// All members of a room get what is published to it in the same order. What one session is sent directly
/// ([`Session::send`](crate::Session::send)) is queued at once, what is published when the worker comes to
/// it, at the end of its turn: so what a handler sends after it has published may come before it.
#[derive(Clone)]
pub struct Rooms(Arc<Hub>);

/// Why something was not published; it comes back.
#[derive(Debug)]
#[non_exhaustive]
pub enum PublishError {
    /// As much as may wait to be handed on does wait already:
    /// [`Limits::published_bytes`](crate::config::Limits::published_bytes). Only
    /// [`Rooms::try_publish`] says so; `publish` waits instead.
    Full(Publication),
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str(
                "too much has been published that no worker has handed on yet \
                 (`limits.published_bytes`): wait with `publish`",
            ),
        }
    }
}

impl std::error::Error for PublishError {}

/// What has become of publications since the server was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoomStats {
    /// Publications, each counted once.
    pub published: u64,
    /// Publications that were queued for a peer, each counted for each peer. One that was queued and then
    /// dropped for a later one is among `dropped` as well, and one for a session that is just ending may be
    /// counted although it does not leave any more.
    pub delivered: u64,
    /// Publications that a slow peer did not get, each counted for each peer.
    pub dropped: u64,
    /// The same that were replaced by a later one with the same key.
    pub conflated: u64,
    /// Sessions that were closed because they were too slow
    /// ([`Cause::SlowPeer`](crate::Cause::SlowPeer)).
    pub too_slow: u64,
    /// Sessions that were closed because too much waited for all together
    /// ([`Cause::OverBudget`](crate::Cause::OverBudget)).
    pub over_budget: u64,
    /// Publications of [`Builder::on_presence`](crate::Builder::on_presence) that were not made, because as
    /// much as may wait to be handed on did wait already.
    pub untold: u64,
}

impl Rooms {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self(hub)
    }

    fn index(&self) -> &Index {
        &self.0.rooms
    }

    /// Publishes a message: to a room, to [everybody](Audience::All), to a room
    /// [but its sender](Audience::Others), or to [one session](Audience::Session). Returns to how many
    /// sessions it goes; what becomes of it for one that is slow is said by [`SlowPeer`](crate::SlowPeer).
    ///
    /// It is encoded once, and compressed once for each set of parameters. It never waits for a peer. It
    /// waits while [`Limits::published_bytes`](crate::config::Limits::published_bytes) have not been handed
    /// on yet, which happens only to those who publish without pause from elsewhere than a handler, or while
    /// a callback blocks a worker.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has either published the whole message or nothing of it.
    pub async fn publish(
        &self,
        to: impl Into<Audience<'_>>,
        publication: impl Into<Publication>,
    ) -> usize {
        let (to, mut publication) = (to.into(), publication.into());
        loop {
            match self.index().try_publish(&self.0, to, publication) {
                Ok(sessions) => return sessions,
                Err(full) => publication = full,
            }
            // Listening first, then trying again: room that is made in between is not missed.
            let room = self.index().line.room().listen();
            match self.index().try_publish(&self.0, to, publication) {
                Ok(sessions) => return sessions,
                Err(full) => publication = full,
            }
            room.await;
        }
    }

    /// The same without ever waiting.
    ///
    /// # Errors
    ///
    /// [`PublishError::Full`], with the publication.
    pub fn try_publish<'a>(
        &self,
        to: impl Into<Audience<'a>>,
        publication: impl Into<Publication>,
    ) -> Result<usize, PublishError> {
        let published = self.index().try_publish(&self.0, to.into(), publication.into());
        published.map_err(PublishError::Full)
    }

    /// How many rooms there are. Costs a look behind each of some dozens of locks.
    #[must_use]
    pub fn count(&self) -> usize {
        self.index().names.iter().map(|names| lock(names).len()).sum()
    }

    /// How many members all rooms have together; a session counts in each room that it is in.
    #[must_use]
    pub fn members_count(&self) -> usize {
        self.index().seats.load(Ordering::Relaxed)
    }

    /// The names of all rooms, in no order.
    #[must_use]
    pub fn names(&self) -> Vec<Text> {
        let names = self.index().names.iter();
        names.flat_map(|names| lock(names).keys().cloned().collect::<Vec<_>>()).collect()
    }

    /// How many members a room has; 0 if it is not there.
    #[must_use]
    pub fn size(&self, room: &str) -> usize {
        self.index().find(room).map_or(0, |room| room.len())
    }

    /// Who is in a room, and since when, in no order. Costs a step for each member, in which whoever joins
    /// this room, leaves it or hands something on to it has to wait.
    #[must_use]
    pub fn members(&self, room: &str) -> Vec<Presence> {
        let mut members = Vec::new();
        if let Some(room) = self.index().find(room) {
            room.each(|member, card| {
                let (session, data) = (member.id, card.data.clone());
                members.push(Presence { session, data, since: self.0.clock.instant(card.since) });
            });
        }
        members
    }

    /// What has become of publications so far.
    #[must_use]
    pub fn stats(&self) -> RoomStats {
        let counts = &self.index().counts;
        RoomStats {
            published: counts.published.load(Ordering::Relaxed),
            delivered: counts.delivered.load(Ordering::Relaxed),
            dropped: counts.dropped.load(Ordering::Relaxed),
            conflated: counts.conflated.load(Ordering::Relaxed),
            too_slow: counts.too_slow.load(Ordering::Relaxed),
            over_budget: counts.over_budget.load(Ordering::Relaxed),
            untold: counts.untold.load(Ordering::Relaxed),
        }
    }

    /// What waits for all peers together, as far as it counts against
    /// [`Limits::outboxes_bytes`](crate::config::Limits::outboxes_bytes), in bytes.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.0.terms.used()
    }
}

impl fmt::Debug for Rooms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rooms").field("count", &self.count()).finish()
    }
}
