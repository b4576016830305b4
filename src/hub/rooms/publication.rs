//! What is published, and to whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_listener::Event;

use crate::hub::SessionId;
use crate::message::{Outgoing, Text};
use crate::outbox::Prepared;

/// What a publication counts beside its payload while workers have it on their lists.
const OVERHEAD: usize = 512;

/// A message for many sessions, and how it is to be treated where one of them is slow.
///
/// Whatever can be sent is one, and so is a [`Prepared`] message.
#[derive(Clone, Debug)]
pub struct Publication {
    pub(super) prepared: Prepared,
    pub(super) key: Option<Text>,
}

impl Publication {
    /// A message for many sessions.
    pub fn new(message: impl Into<Outgoing>) -> Self {
        Self { prepared: Prepared::new(message), key: None }
    }

    /// Where the slow-peer policy is [`SlowPeer::Conflate`](crate::SlowPeer::Conflate), this message
    /// takes the place of one with the same key that still waits: the last price of a share, the last
    /// position of a ship.
    #[must_use]
    pub fn key(mut self, key: impl Into<Text>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The message itself, prepared.
    #[must_use]
    pub fn prepared(&self) -> &Prepared {
        &self.prepared
    }
}

impl<M: Into<Outgoing>> From<M> for Publication {
    fn from(message: M) -> Self {
        Self::new(message)
    }
}

impl From<Prepared> for Publication {
    fn from(prepared: Prepared) -> Self {
        Self { prepared, key: None }
    }
}

impl From<&Prepared> for Publication {
    fn from(prepared: &Prepared) -> Self {
        prepared.clone().into()
    }
}

/// To whom something is published. A room's name is one: all of its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Audience<'a> {
    /// Every session of the server.
    All,
    /// The members of this room.
    Room(&'a str),
    /// The same, but not this session, which has sent it.
    Others(&'a str, SessionId),
    /// This session only.
    Session(SessionId),
}

impl<'a> From<&'a str> for Audience<'a> {
    fn from(room: &'a str) -> Self {
        Self::Room(room)
    }
}

impl<'a> From<&'a String> for Audience<'a> {
    fn from(room: &'a String) -> Self {
        Self::Room(room)
    }
}

impl<'a> From<&'a Text> for Audience<'a> {
    fn from(room: &'a Text) -> Self {
        Self::Room(room)
    }
}

impl From<SessionId> for Audience<'_> {
    fn from(session: SessionId) -> Self {
        Self::Session(session)
    }
}

/// A publication on its way through the workers' lists.
pub(super) struct Item {
    pub(super) publication: Publication,
    pub(super) except: Option<SessionId>,
    /// Gives its bytes back.
    _weight: Weight,
}

impl Item {
    pub(super) fn len(&self) -> usize {
        self.publication.prepared.message().len()
    }
}

/// What all workers have on their lists, in bytes, and who waits until it is less.
pub(crate) struct Line {
    bytes: AtomicUsize,
    room: Event,
    bound: usize,
}

impl Line {
    pub(super) fn new(bound: usize) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicUsize::new(0), room: Event::new(), bound })
    }

    pub(super) fn room(&self) -> &Event {
        &self.room
    }

    /// A publication that counts from now on; it comes back if there are too many already.
    pub(super) fn admit(
        self: &Arc<Self>,
        publication: Publication,
        except: Option<SessionId>,
    ) -> Result<Arc<Item>, Publication> {
        let bytes = publication.prepared.message().len().saturating_add(OVERHEAD);
        let admitted = self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
            // One that is larger than the bound is taken when it is alone.
            let sum = taken.saturating_add(bytes);
            (sum <= self.bound || taken == 0).then_some(sum)
        });
        if admitted.is_err() {
            return Err(publication);
        }
        let weight = Weight { line: Arc::clone(self), bytes };
        Ok(Arc::new(Item { publication, except, _weight: weight }))
    }

    /// The same, however many there are.
    pub(super) fn admit_at_once(self: &Arc<Self>, publication: Publication) -> Arc<Item> {
        let bytes = publication.prepared.message().len().saturating_add(OVERHEAD);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let weight = Weight { line: Arc::clone(self), bytes };
        Arc::new(Item { publication, except: None, _weight: weight })
    }

    /// Whether the smallest publication would come back.
    pub(super) fn is_full(&self) -> bool {
        let taken = self.bytes.load(Ordering::Acquire);
        taken != 0 && taken.saturating_add(OVERHEAD) > self.bound
    }
}

struct Weight {
    line: Arc<Line>,
    bytes: usize,
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.line.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.line.room.notify(usize::MAX);
    }
}
