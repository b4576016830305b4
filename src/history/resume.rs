//! Joining a room with what has been missed: nothing is lost and nothing doubled between replay and live.
//!
//! Three steps. From the first on the room's line holds what is published (and what its store has not confirmed).
//! Then the store is read up to there, and queued for the session, at its pace. Then what is held is queued,
//! until nothing is left; that is found under the lock under which ids are given, and under it the session
//! becomes a member. What is published later reaches it as a member, and behind what was queued.

use event_listener::EventListener;

use super::book::Book;
use super::errors::ResumeError;
use super::ledger::{Following, Hold};
use super::publish::Making;
use super::store::Portion;
use super::value::{Bounds, Entry, Epoch, Since};
use super::{History, MAX_ID};
use crate::error::SendError;
use crate::hub::{JoinError, NAME_BYTES};
use crate::message::{Message, Text};
use crate::outbox::Refused;
use crate::session::Session;

/// There is room for more if there is room for this, in bytes: if the next message is longer it is read once more.
const LEAST: usize = 1;

/// What a session gets when it joins a room; for [`History::join`].
#[derive(Clone, Debug, Default)]
pub struct Resume {
    since: Option<Since>,
    limit: Option<usize>,
    data: Option<Text>,
}

impl Resume {
    /// The newest messages, as one who is here for the first time.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What followed the last id that the client has seen.
    #[must_use]
    pub fn since(mut self, since: Since) -> Self {
        self.since = Some(since);
        self
    }

    /// At most so many of those that there are when it begins; what is published while it catches up is sent in any
    /// case. Without this call, and at most, as many as
    /// [`config::History::replay_messages`](crate::config::History::replay_messages) says.
    #[must_use]
    pub fn limit(mut self, messages: usize) -> Self {
        self.limit = Some(messages);
        self
    }

    /// What others in the room see of the session; see [`Session::join_as`].
    #[must_use]
    pub fn join_as(mut self, data: impl Into<Text>) -> Self {
        self.data = Some(data.into());
        self
    }
}

/// How a session joined a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resumed {
    /// The numbering.
    pub epoch: Epoch,
    /// Whether the session has been sent everything that followed what it had seen. Without a
    /// [`since`](Resume::since) it had seen nothing, and this is true only if it was sent all from the first
    /// message on.
    pub recovered: bool,
    /// The last id before it became a member: what it gets from here on has larger ones.
    pub position: u64,
    /// Messages that it was sent before.
    pub replayed: usize,
}

impl History {
    /// Makes a session a member of a room, and sends it what it has missed: first that, in the order of the ids,
    /// then what `tell` returns, then what is published from now on, without anything lost or doubled in between.
    ///
    /// `tell` says what the client is told of it, such as [`Resumed::recovered`]; `None`: nothing. It runs under the
    /// room's lock, and may be asked more than once.
    ///
    /// If not everything can be sent that followed [`Resume::since`] it gets the newest messages instead, and
    /// `recovered` is false: when the epoch is another one, the id is larger than any there was, or more has
    /// followed than the limit. If something is missing in between, or has been removed, it gets what is there,
    /// and `recovered` is false, too.
    ///
    /// It waits for room in the session's queue, with nothing read ahead. While it does, what is published to the
    /// room is held in memory; if that is more than
    /// [`config::History::pending_bytes`](crate::config::History::pending_bytes) together for all who join, those who
    /// join the room of which the most is held become members as soon as they have what the store has, and their
    /// `recovered` is false.
    ///
    /// # Errors
    ///
    /// [`ResumeError`] says why it has not become a member. Some messages may have been sent. If it joins one room
    /// twice at a time the later one fails with [`AlreadyMember`](ResumeError::AlreadyMember).
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have sent a part of it. The session is no member then, unless it was one.
    pub async fn join(
        &self,
        session: &Session,
        room: &str,
        resume: Resume,
        tell: impl Fn(&Resumed) -> Option<Message>,
    ) -> Result<Resumed, ResumeError> {
        if room.is_empty() || room.len() > NAME_BYTES {
            return Err(JoinError::BadName.into());
        }
        if self.hub.rooms.is_member(session.id(), room) {
            return Err(ResumeError::AlreadyMember);
        }
        let mut joining = Joining::begin(&self.book, session, room, &resume);
        joining.catch_up(resume.since).await?;
        let mut listener: Option<EventListener> = None;
        loop {
            match joining.finish(self, &resume.data, &tell)? {
                Some(resumed) => return Ok(resumed),
                // Listening first, then trying again: room that is made in between is not missed.
                None => match listener.take() {
                    None => listener = Some(session.member().outbox.room()),
                    Some(room) => room.await,
                },
            }
        }
    }
}

struct Joining<'a> {
    book: &'a Book,
    session: &'a Session,
    room: &'a str,
    hold: Hold,
    /// The last id that it was sent, or had seen.
    cursor: u64,
    limit: usize,
    replayed: usize,
    recovered: bool,
}

impl<'a> Joining<'a> {
    fn begin(book: &'a Book, session: &'a Session, room: &'a str, resume: &Resume) -> Self {
        let hold = loop {
            if let Some(hold) = book.ledger.line(room).hold() {
                break hold;
            }
        };
        let limit = book.replay_messages.min(resume.limit.unwrap_or(usize::MAX));
        Self { book, session, room, hold, cursor: 0, limit, replayed: 0, recovered: true }
    }

    /// Sends what the store has up to what is held.
    async fn catch_up(&mut self, since: Option<Since>) -> Result<(), ResumeError> {
        let Hold { last, base, .. } = self.hold;
        let seen = match since {
            None => Some(0),
            Some(Since { epoch, after }) => {
                (epoch == self.book.epoch && after <= last).then_some(after)
            }
        };
        let mut need = LEAST;
        match seen {
            Some(after) if last - after <= self.limit as u64 => self.cursor = after,
            _ => {
                self.recovered = false;
                // What is held is sent in any case: the store has what is left of the limit.
                let limit = usize::try_from(last - base).unwrap_or(usize::MAX);
                match self.limit.checked_sub(limit).filter(|left| *left > 0) {
                    None => self.cursor = base.max(last.saturating_sub(self.limit as u64)),
                    Some(left) => match self.newest(base, left).await? {
                        Some(refused) => need = refused,
                        None => self.cursor = base,
                    },
                }
            }
        }
        while self.cursor < base {
            let bounds = self.room(need).await?;
            let page = self.book.page().await;
            let store = &self.book.store;
            let Portion { entries, more } =
                store.after(self.room, self.cursor, base, bounds).await?;
            let refused = self.queue(entries)?;
            drop(page);
            match refused {
                Some(len) => need = len,
                None if more => need = LEAST,
                None => break,
            }
        }
        if self.cursor < base {
            self.recovered = false;
            self.cursor = base;
        }
        Ok(())
    }

    /// Sends as many of the last entries as are wanted, of which a page is the most: from the oldest of them on. As
    /// of [`queue`](Self::queue); where it ends the store is asked for what follows.
    async fn newest(&mut self, base: u64, messages: usize) -> Result<Option<usize>, ResumeError> {
        let _page = self.book.page().await;
        let before = (base + 1).min(MAX_ID + 1);
        let bounds = self.book.bounds(messages);
        let Portion { mut entries, .. } = self.book.store.before(self.room, before, bounds).await?;
        entries.reverse();
        self.cursor = entries.first().map_or(base, |entry| entry.id - 1);
        self.queue(entries)
    }

    /// Waits until a message of this length has room in the session's queue. Returns how much to read.
    async fn room(&self, len: usize) -> Result<Bounds, ResumeError> {
        let member = self.session.member();
        let mut listener: Option<EventListener> = None;
        loop {
            match member.outbox.left(len, &member.hub.terms) {
                Ok(left) => {
                    let bounds = self.book.bounds(left.messages.max(1));
                    return Ok(Bounds::new(bounds.messages, bounds.bytes.min(left.bytes.max(len))));
                }
                Err(Refused::Closed) => return Err(ResumeError::Closed),
                // Listening first, then looking again: room that is made in between is not missed.
                Err(Refused::Full) => match listener.take() {
                    None => listener = Some(member.outbox.room()),
                    Some(room) => room.await,
                },
            }
        }
    }

    /// Queues entries as far as there is room for them. The rest is dropped, and read again when there is: a session
    /// that waits for its peer has nothing in memory beside its queue. Returns how long the first of them is.
    fn queue(&mut self, entries: Vec<Entry>) -> Result<Option<usize>, ResumeError> {
        for entry in entries {
            match self.session.try_send(entry.message) {
                Ok(()) => self.note(entry.id),
                Err(SendError::Full(message)) => return Ok(Some(message.len())),
                Err(SendError::Closed(_)) => return Err(ResumeError::Closed),
            }
        }
        Ok(None)
    }

    fn note(&mut self, id: u64) {
        self.recovered &= id == self.cursor + 1;
        self.cursor = id;
        self.replayed += 1;
    }

    /// Queues what is held and makes the session a member. `None`: there is no room in its queue.
    fn finish(
        &mut self,
        history: &History,
        data: &Option<Text>,
        tell: &impl Fn(&Resumed) -> Option<Message>,
    ) -> Result<Option<Resumed>, ResumeError> {
        // What the application says here cannot publish: it would wait for itself.
        let making = Making::begin();
        let line = self.hold.line().clone();
        let order = line.order();
        // Somebody else may have let it join while this one caught up; that is not for us to take back.
        if history.hub.rooms.is_member(self.session.id(), self.room) {
            return Err(ResumeError::AlreadyMember);
        }
        let last = loop {
            match self.hold.following(self.cursor) {
                // The last id may be that of an entry that was not kept.
                Following::Nothing(last) => {
                    self.recovered &= last == self.cursor;
                    break last;
                }
                Following::Lost(last) => {
                    self.recovered = false;
                    break last;
                }
                Following::Entry(entry) => match self.session.try_send(entry.message) {
                    Ok(()) => self.note(entry.id),
                    Err(SendError::Full(_)) => return Ok(None),
                    Err(SendError::Closed(_)) => return Err(ResumeError::Closed),
                },
            }
        };
        let resumed = Resumed {
            epoch: self.book.epoch,
            recovered: self.recovered,
            position: last,
            replayed: self.replayed,
        };
        let said = tell(&resumed);
        let member = self.session.member();
        // Nothing may come between the two, and only this one can be taken back.
        let event = history.hub.rooms.enter(member, self.room, data.clone())?;
        if let Some(message) = said {
            match self.session.try_send(message) {
                Ok(()) => {}
                Err(SendError::Full(_)) => {
                    history.hub.rooms.leave_quietly(member, self.room);
                    return Ok(None);
                }
                Err(SendError::Closed(_)) => return Err(ResumeError::Closed),
            }
        }
        drop(order);
        drop(making);
        if let Some(event) = event {
            history.hub.rooms.announce(member, self.room, data.clone(), event);
        }
        Ok(Some(resumed))
    }
}
