//! What is to be sent: bounded, in order, and with an account of every message.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use event_listener::{Event, EventListener};

use crate::message::{Message, Text};

/// What happens to a message when as many wait as may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// [`Client::send`](super::Client::send) waits, and [`Client::try_send`](super::Client::try_send) gives the
    /// message back.
    #[default]
    Wait,
    /// The message itself is dropped.
    DropNewest,
    /// The oldest of those that wait are dropped. What is being written is none of them: one message waits beside it even
    /// where it takes all the room, so that the last word is never the one that is dropped.
    DropOldest,
    /// A message with a [key](super::Client::send_keyed) takes the place of the one with the same key, whether the
    /// queue is full or not; its own place is behind everything that waits. At the bound, and without a key, as
    /// [`DropOldest`](Self::DropOldest).
    Conflate,
}

/// What became of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// All of it was handed to the socket. TCP does not say whether it has arrived.
    Handed,
    /// It was dropped because too much waited, or replaced by a later one of its key: see [`WhenFull`].
    Dropped,
    /// It was being written when the connection broke, alone or in one piece with others, and some of that piece had been
    /// handed to the socket: nobody knows whether it has arrived, and it is not sent again.
    InFlight,
    /// The client ended, and it still waited.
    Unsent,
}

/// What became of all messages that were given to [`Client::send`](super::Client::send) and were accepted.
///
/// At any moment `accepted` is the sum of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Accounts {
    /// Messages that were accepted.
    pub accepted: u64,
    /// Those handed to the socket as a whole.
    pub handed: u64,
    /// Those that wait, or are being written.
    pub queued: u64,
    /// Those that were dropped or replaced: see [`WhenFull`].
    pub dropped: u64,
    /// Those that were being written when a connection broke.
    pub in_flight: u64,
    /// Those that still waited when the client ended.
    pub unsent: u64,
}

/// The slot in which the fate of one message is left.
#[derive(Default)]
struct Slot {
    fate: Mutex<Option<Fate>>,
    settled: Event,
}

impl Slot {
    fn settle(&self, fate: Fate) {
        *self.fate.lock().unwrap_or_else(PoisonError::into_inner) = Some(fate);
        self.settled.notify(usize::MAX);
    }
}

/// Ends when the [fate](Fate) of one message is known.
///
/// # Cancel safety
///
/// Dropping it changes nothing for the message.
pub struct Receipt {
    slot: Arc<Slot>,
    /// While it waits: each clone has its own.
    settled: Option<EventListener>,
}

impl Receipt {
    /// What is known by now.
    #[must_use]
    pub fn fate(&self) -> Option<Fate> {
        *self.slot.fate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for Receipt {
    fn clone(&self) -> Self {
        Self { slot: Arc::clone(&self.slot), settled: None }
    }
}

impl Future for Receipt {
    type Output = Fate;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Fate> {
        loop {
            if let Some(fate) = self.fate() {
                self.settled = None;
                return Poll::Ready(fate);
            }
            match &mut self.settled {
                Some(settled) => {
                    if Pin::new(settled).poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.settled = None;
                }
                // The fate is looked at again behind this.
                None => self.settled = Some(self.slot.settled.listen()),
            }
        }
    }
}

impl std::fmt::Debug for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Receipt").field(&self.fate()).finish()
    }
}

/// A message on its way in.
pub(super) struct Entry {
    pub(super) message: Message,
    key: Option<Text>,
    slot: Option<Arc<Slot>>,
}

impl Entry {
    pub(super) fn new(message: Message, key: Option<Text>) -> Self {
        Self { message, key, slot: None }
    }

    /// The same, and where to hear of its fate.
    pub(super) fn with_receipt(message: Message) -> (Self, Receipt) {
        let slot = Arc::new(Slot::default());
        (
            Self { message, key: None, slot: Some(Arc::clone(&slot)) },
            Receipt { slot, settled: None },
        )
    }

    pub(super) fn settle(self, fate: Fate) {
        if let Some(slot) = self.slot {
            slot.settle(fate);
        }
    }
}

/// Why an entry comes back.
pub(super) enum Refused {
    Full(Entry),
    Closed(Entry),
}

/// The bounds of what waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) messages: usize,
    pub(super) bytes: usize,
    pub(super) when_full: WhenFull,
}

pub(super) struct Queue {
    bounds: Bounds,
    state: Mutex<State>,
    /// Something can be sent, for the driver.
    filled: Event,
    /// There is room, for those who wait for it.
    drained: Event,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Entry>,
    /// What has been given to the protocol's machine and not been flushed: its messages, for when none of its bytes
    /// has left.
    writing: Vec<Entry>,
    bytes: usize,
    accounts: Accounts,
    closed: bool,
}

impl State {
    /// Drops what waits at this place, if there is something.
    fn drop_at(&mut self, place: usize) -> Option<Entry> {
        let entry = self.waiting.remove(place)?;
        self.bytes -= entry.message.len();
        self.accounts.queued -= 1;
        self.accounts.dropped += 1;
        Some(entry)
    }
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, state: Mutex::default(), filled: Event::new(), drained: Event::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, state: &State, more: usize) -> bool {
        let messages = state.waiting.len() + state.writing.len();
        // One of any size where nothing else waits.
        messages == 0
            || (messages < self.bounds.messages && state.bytes + more <= self.bounds.bytes)
    }

    /// Accepts a message, or gives it back.
    pub(super) fn push(&self, entry: Entry) -> Result<(), Refused> {
        let mut settled = Vec::new();
        {
            let mut guard = self.lock();
            let state = &mut *guard;
            if state.closed {
                return Err(Refused::Closed(entry));
            }
            let size = entry.message.len();
            if !self.has_room(state, size) {
                match self.bounds.when_full {
                    WhenFull::Wait => return Err(Refused::Full(entry)),
                    WhenFull::DropNewest => {
                        state.accounts.accepted += 1;
                        state.accounts.dropped += 1;
                        drop(guard);
                        entry.settle(Fate::Dropped);
                        return Ok(());
                    }
                    WhenFull::DropOldest | WhenFull::Conflate => {}
                }
            }
            if self.bounds.when_full == WhenFull::Conflate {
                let of_key = entry.key.as_ref().and_then(|key| {
                    state.waiting.iter().position(|it| it.key.as_ref() == Some(key))
                });
                settled.extend(of_key.and_then(|place| state.drop_at(place)));
            }
            // What is being written cannot be dropped; beside it the newest one waits.
            while !self.has_room(state, size) {
                let Some(old) = state.drop_at(0) else {
                    break;
                };
                settled.push(old);
            }
            state.bytes += size;
            state.accounts.accepted += 1;
            state.accounts.queued += 1;
            state.waiting.push_back(entry);
        }
        self.filled.notify(1);
        settled.into_iter().for_each(|it| it.settle(Fate::Dropped));
        Ok(())
    }

    /// Waits until the queue takes the message.
    pub(super) async fn send(&self, mut entry: Entry) -> Result<(), Entry> {
        loop {
            let drained = self.drained.listen();
            entry = match self.push(entry) {
                Ok(()) => return Ok(()),
                Err(Refused::Closed(entry)) => return Err(entry),
                Err(Refused::Full(entry)) => entry,
            };
            drained.await;
        }
    }

    /// Hears of what comes next. Made before [`take_if`](Self::take_if).
    pub(super) fn listen(&self) -> EventListener {
        self.filled.listen()
    }

    /// The next message to be written, if it is one for now; from then on it counts as being written.
    pub(super) fn take_if(&self, fits: impl FnOnce(&Message) -> bool) -> Option<Message> {
        let mut state = self.lock();
        state.waiting.front().filter(|next| fits(&next.message))?;
        let entry = state.waiting.pop_front()?;
        let message = entry.message.clone();
        state.writing.push(entry);
        Some(message)
    }

    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.waiting.is_empty() && state.writing.is_empty()
    }

    /// What is being written was handed to the socket. Says how many it was.
    pub(super) fn handed(&self) -> u64 {
        self.written(Fate::Handed)
    }

    /// The connection broke. What was being written is not sent again, unless no byte of it has left, and nothing has come
    /// to take its place. Says how many are in flight; `None` if some are sent again.
    pub(super) fn broken(&self, untouched: bool) -> Option<u64> {
        if !untouched {
            return Some(self.written(Fate::InFlight));
        }
        let mut replaced = Vec::new();
        {
            let mut state = self.lock();
            let state = &mut *state;
            if state.writing.is_empty() {
                return Some(0);
            }
            for entry in std::mem::take(&mut state.writing).into_iter().rev() {
                let newer = |it: &Entry| it.key.is_some() && it.key == entry.key;
                let is_replaced =
                    self.bounds.when_full == WhenFull::Conflate && state.waiting.iter().any(newer);
                state.waiting.push_front(entry);
                if is_replaced {
                    replaced.extend(state.drop_at(0));
                }
            }
            // One more than may wait did so beside them.
            let dropping =
                matches!(self.bounds.when_full, WhenFull::DropOldest | WhenFull::Conflate);
            while dropping
                && state.waiting.len() > 1
                && (state.waiting.len() > self.bounds.messages || state.bytes > self.bounds.bytes)
            {
                replaced.extend(state.drop_at(0));
            }
        }
        replaced.into_iter().for_each(|it| it.settle(Fate::Dropped));
        None
    }

    fn written(&self, fate: Fate) -> u64 {
        let entries = {
            let mut state = self.lock();
            let entries = std::mem::take(&mut state.writing);
            let count = entries.len() as u64;
            state.bytes -= entries.iter().map(|it| it.message.len()).sum::<usize>();
            state.accounts.queued -= count;
            match fate {
                Fate::Handed => state.accounts.handed += count,
                _ => state.accounts.in_flight += count,
            }
            entries
        };
        let count = entries.len() as u64;
        if count > 0 {
            self.drained.notify(usize::MAX);
        }
        entries.into_iter().for_each(|it| it.settle(fate));
        count
    }

    /// Takes no further message. What waits can still be written.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.drained.notify(usize::MAX);
        self.filled.notify(1);
    }

    /// The client has ended: what waits is unsent, and is settled by whoever asks. What was being written when the driver
    /// was dropped is in flight.
    pub(super) fn end(&self) -> Vec<Entry> {
        self.written(Fate::InFlight);
        let entries = {
            let mut state = self.lock();
            state.closed = true;
            let entries: Vec<_> = std::mem::take(&mut state.waiting).into();
            let count = entries.len() as u64;
            state.bytes -= entries.iter().map(|it| it.message.len()).sum::<usize>();
            state.accounts.queued -= count;
            state.accounts.unsent += count;
            entries
        };
        self.drained.notify(usize::MAX);
        entries
    }

    pub(super) fn accounts(&self) -> Accounts {
        self.lock().accounts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(queue: &Queue) -> Vec<String> {
        let taken = std::iter::from_fn(|| queue.take_if(|_| true));
        taken.map(|it| it.as_text().unwrap_or_default().to_owned()).collect()
    }

    // Two of one key waited, and what came next took the place of only one.
    #[test]
    fn what_comes_back_from_a_broken_connection_has_been_replaced_by_what_came_meanwhile() {
        let bounds = Bounds { messages: 10, bytes: 100, when_full: WhenFull::Conflate };
        let queue = Queue::new(bounds);
        let push = |key: Option<&str>, text: &str| {
            assert!(queue.push(Entry::new(text.into(), key.map(Text::from))).is_ok());
        };
        push(Some("a"), "a1");
        push(Some("b"), "b1");
        push(None, "plain");
        assert_eq!(texts(&queue), ["a1", "b1", "plain"]);
        push(Some("b"), "b2");
        push(None, "plain, too");
        assert_eq!(queue.broken(true), None);
        let books = Accounts { accepted: 5, queued: 4, dropped: 1, ..Accounts::default() };
        assert_eq!(queue.accounts(), books);
        push(Some("b"), "b3");
        assert_eq!(texts(&queue), ["a1", "plain", "plain, too", "b3"]);
        assert_eq!(queue.broken(false), Some(4));
        let books = Accounts { accepted: 6, dropped: 2, in_flight: 4, ..Accounts::default() };
        assert_eq!(queue.accounts(), books);
        assert_eq!(queue.lock().bytes, 0);
        assert_eq!(queue.broken(true), Some(0));
    }

    #[test]
    fn what_comes_back_from_a_broken_connection_is_dropped_first_where_too_much_waits() {
        let bounds = Bounds { messages: 2, bytes: 10, when_full: WhenFull::DropOldest };
        for (texts_before, meanwhile, left) in [
            (&["1", "2"][..], "3", &["2", "3"][..]),
            (&["1"], "2", &["1", "2"]),
            (&["12345", "67890"], "abcdef", &["abcdef"]),
            (&["1"], "more than ten bytes", &["more than ten bytes"]),
        ] {
            let queue = Queue::new(bounds);
            let push = |text: &str| assert!(queue.push(Entry::new(text.into(), None)).is_ok());
            texts_before.iter().for_each(|it| push(it));
            assert_eq!(texts(&queue), texts_before);
            push(meanwhile);
            assert_eq!(queue.broken(true), None);
            assert_eq!(texts(&queue), left);
        }
    }
}
