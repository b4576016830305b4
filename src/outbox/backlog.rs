//! What waits one by one, and not in batches: behind a message that is being written in fragments, or for
//! a peer that does not take what it was sent.
//!
//! What was published can be dropped from here again. Where something was dropped a gap stays behind, so
//! that nothing later is sent before the application knows.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::Encoded;
use super::batch::Batch;
use super::slow::{Gap, SlowPeer};
use crate::message::{Message, Text};
use crate::protocol::Protocol;

/// Something that waits.
pub(super) enum Waiting {
    Message(Message),
    /// To be compressed.
    Raw(Message),
    Encoded(Encoded),
    Published(Box<Published>),
    Gap(Box<Gap>),
    /// It has been replaced.
    Gone,
}

/// A publication for one peer.
pub(crate) struct Published {
    pub(crate) form: Form,
    /// Bytes of its payload.
    pub(crate) len: usize,
    pub(crate) key: Option<Text>,
    pub(crate) room: Option<Text>,
    /// What may become of it.
    pub(crate) policy: SlowPeer,
}

/// How it leaves.
pub(crate) enum Form {
    Encoded(Bytes),
    /// The session's own compressor makes it.
    Raw(Message),
}

/// A key of one room.
type Key = (Option<Text>, Text);

impl Published {
    /// By which it can be replaced.
    fn key(&self) -> Option<Key> {
        let key = self.key.as_ref().filter(|_| self.policy == SlowPeer::Conflate)?;
        Some((self.room.clone(), key.clone()))
    }

    fn may_be_dropped(&self) -> bool {
        matches!(self.policy, SlowPeer::DropOldest | SlowPeer::Conflate)
    }

    pub(super) fn put(self, batch: &mut Batch) {
        match self.form {
            Form::Encoded(frame) => {
                batch.push_encoded(Encoded { frame, messages: 1, payload: self.len });
            }
            Form::Raw(message) => batch.push_raw(message),
        }
    }
}

#[derive(Default)]
pub(super) struct Backlog {
    /// A message is being written in fragments, and everything waits for its end.
    pub(super) writer: bool,
    /// A fragment has been queued since the driver last waited.
    pub(super) progress: bool,
    entries: VecDeque<Waiting>,
    /// Of their payload.
    bytes: usize,
    /// Entries that are `Gone`.
    gone: usize,
    /// The number of the first entry.
    first: u64,
    /// Which entry has this key.
    keys: HashMap<Key, u64>,
}

impl Backlog {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.len() == self.gone
    }

    #[cold]
    pub(super) fn push(&mut self, bytes: usize, waiting: Waiting) {
        self.bytes += bytes;
        if let Waiting::Published(published) = &waiting {
            if let Some(key) = published.key() {
                self.keys.insert(key, self.first + self.entries.len() as u64);
            }
        }
        self.entries.push_back(waiting);
    }

    /// What stands at the head of the line. Nothing while a message is being written.
    pub(super) fn is_at_gap(&mut self) -> bool {
        self.skip_gone();
        !self.writer && matches!(self.entries.front(), Some(Waiting::Gap(_)))
    }

    /// Takes the gap at the head of the line.
    pub(super) fn take_gap(&mut self) -> Option<Gap> {
        if !self.is_at_gap() {
            return None;
        }
        match self.pop() {
            Some(Waiting::Gap(gap)) => Some(*gap),
            _ => None,
        }
    }

    /// What the application says about a gap takes its place.
    pub(super) fn put_first(&mut self, message: Message) {
        self.bytes += message.len();
        // The numbers of those that have keys stay what they were: one has just been taken from here.
        self.first -= 1;
        self.entries.push_front(Waiting::Message(message));
    }

    fn skip_gone(&mut self) {
        while let Some(Waiting::Gone) = self.entries.front() {
            self.entries.pop_front();
            self.first += 1;
            self.gone -= 1;
        }
    }

    fn pop(&mut self) -> Option<Waiting> {
        self.skip_gone();
        let waiting = self.entries.pop_front()?;
        self.first += 1;
        self.bytes -= match &waiting {
            Waiting::Message(message) | Waiting::Raw(message) => message.len(),
            Waiting::Encoded(encoded) => encoded.payload,
            Waiting::Published(published) => published.len,
            Waiting::Gap(_) | Waiting::Gone => 0,
        };
        if let Waiting::Published(published) = &waiting {
            self.forget(published, self.first - 1);
        }
        Some(waiting)
    }

    /// The entry with this number is no longer the one with its key.
    fn forget(&mut self, published: &Published, number: u64) {
        if let Some(key) = published.key() {
            if self.keys.get(&key) == Some(&number) {
                self.keys.remove(&key);
            }
        }
    }

    /// The next batch: up to the first gap, or until the batch is `full`.
    pub(super) fn pop_batch(
        &mut self,
        protocol: Protocol,
        full: impl Fn(&Batch) -> bool,
    ) -> Option<Box<Batch>> {
        if self.is_empty() || self.is_at_gap() {
            return None;
        }
        let mut batch = Batch::take().speaking(protocol);
        while !self.is_at_gap() && !full(&batch) {
            match self.pop() {
                None => break,
                Some(Waiting::Message(message)) => batch.push(message),
                Some(Waiting::Raw(message)) => batch.push_raw(message),
                Some(Waiting::Encoded(encoded)) => batch.push_encoded(encoded),
                Some(Waiting::Published(published)) => published.put(&mut batch),
                Some(Waiting::Gap(_) | Waiting::Gone) => {}
            }
        }
        Some(batch)
    }

    /// Drops the publication that this one replaces, if one waits. Returns its length.
    pub(super) fn conflate(&mut self, by: &Published) -> Option<usize> {
        let number = self.keys.remove(&by.key()?)?;
        let at = usize::try_from(number - self.first).ok()?;
        let entry = self.entries.get_mut(at)?;
        let Waiting::Published(published) = std::mem::replace(entry, Waiting::Gone) else {
            return None;
        };
        self.bytes -= published.len;
        self.gone += 1;
        if self.gone > self.entries.len() / 2 {
            self.close_ranks();
        }
        Some(published.len)
    }

    /// What has been replaced gives its place back. Done when it is half of all, so it costs each of them
    /// as much as one entry does.
    fn close_ranks(&mut self) {
        self.entries.retain(|entry| !matches!(entry, Waiting::Gone));
        self.gone = 0;
        for (number, entry) in (self.first..).zip(&self.entries) {
            if let Waiting::Published(published) = entry {
                if let Some(key) = published.key() {
                    // In their order: the last one with a key has it.
                    self.keys.insert(key, number);
                }
            }
        }
    }

    /// Drops the oldest publication that may be dropped, and leaves a gap in its place. Returns its length;
    /// `None` if there is none.
    pub(super) fn drop_oldest(&mut self) -> Option<usize> {
        let may_be_dropped =
            |it: &Waiting| matches!(it, Waiting::Published(it) if it.may_be_dropped());
        let at = self.entries.iter().position(may_be_dropped)?;
        let entry = self.entries.get_mut(at)?;
        let Waiting::Published(published) = std::mem::replace(entry, Waiting::Gone) else {
            return None;
        };
        self.bytes -= published.len;
        self.gone += 1;
        self.forget(&published, self.first + at as u64);
        // What has been replaced does not tell two gaps apart.
        let before = self.entries.range_mut(..at).rfind(|it| !matches!(it, Waiting::Gone));
        if let Some(Waiting::Gap(gap)) = before {
            gap.add(published.room);
            // Nothing in front of it has a number that is known: what has a key may be dropped.
            self.entries.remove(at);
            self.first += 1;
        } else {
            let mut gap = Box::<Gap>::default();
            gap.add(published.room);
            self.entries[at] = Waiting::Gap(gap);
        }
        self.gone -= 1;
        Some(published.len)
    }

    /// A publication of this room has been dropped that would have come last.
    pub(super) fn drop_newest(&mut self, room: Option<Text>) {
        let last = self.entries.iter_mut().rfind(|it| !matches!(it, Waiting::Gone));
        if let Some(Waiting::Gap(gap)) = last {
            gap.add(room);
        } else {
            let mut gap = Box::<Gap>::default();
            gap.add(room);
            self.entries.push_back(Waiting::Gap(gap));
        }
    }

    /// How many entries it keeps memory for.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.entries.capacity().max(self.keys.capacity())
    }
}
