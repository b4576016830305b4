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
use crate::session::Session;

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

    /// At most so many messages. Without this call, and at most, as many as
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
    /// It waits for room in the session's queue. While it does, what is published to the room is held in memory; if
    /// that is more than [`config::History::pending_bytes`](crate::config::History::pending_bytes) together for all
    /// who join, the session becomes a member at once, and `recovered` is false.
    ///
    /// # Errors
    ///
    /// [`ResumeError`] says why it is no member. Some messages may have been sent.
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
        match seen {
            Some(after) if last - after <= self.limit as u64 => {
                self.cursor = after;
                while self.cursor < base {
                    let bounds = self.book.bounds(usize::MAX);
                    let store = &self.book.store;
                    let portion = store.after(self.room, self.cursor, base, bounds).await?;
                    let more = portion.more;
                    self.send_all(portion.entries).await?;
                    if !more {
                        break;
                    }
                }
            }
            _ => {
                self.recovered = false;
                let newest = self.newest(base).await?;
                self.cursor = newest.first().map_or(base, |entry| entry.id - 1);
                self.send_all(newest).await?;
            }
        }
        if self.cursor < base {
            self.recovered = false;
            self.cursor = base;
        }
        Ok(())
    }

    /// As many of the last entries as are wanted, the oldest first: so they are all in memory, of which a page is
    /// the most.
    async fn newest(&self, base: u64) -> Result<Vec<Entry>, ResumeError> {
        let bounds: Bounds = self.book.bounds(self.limit);
        if bounds.messages == 0 {
            return Ok(Vec::new());
        }
        let before = (base + 1).min(MAX_ID + 1);
        let Portion { mut entries, .. } = self.book.store.before(self.room, before, bounds).await?;
        entries.reverse();
        Ok(entries)
    }

    async fn send_all(&mut self, entries: Vec<Entry>) -> Result<(), ResumeError> {
        for entry in entries {
            self.note(entry.id);
            self.session.send(entry.message).await.map_err(|_| ResumeError::Closed)?;
        }
        Ok(())
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
