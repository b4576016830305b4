//! One session's sending side, as everyone else sees it: a bounded queue for messages, and a
//! control lane beside it that messages can neither starve nor overflow.
//!
//! Any thread may put something in; only the session's driver takes something out. A message is
//! encoded when it is put in, so that a queue costs its bytes and nothing per message, and the
//! driver takes a whole batch by swapping a pointer. The lock is one session's own, and held for as
//! long as copying one small message takes; when a message that was sent in fragments ends, for as long
//! as copying what has waited behind it.

mod backlog;
mod batch;
mod budget;
mod deliver;
mod prepared;
mod slow;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use event_listener::{Event, EventListener};

use crate::error::SendError;
use crate::executor::TaskId;
use crate::message::{Kind, Message};
use crate::protocol::Protocol;
use crate::ws::CloseFrame;

use backlog::{Backlog, Waiting};
pub(crate) use backlog::{Form, Published};
pub(crate) use batch::{Batch, KEPT_SMALL, MAX_SLICES, RAW_BATCH};
#[cfg(feature = "fallback")]
pub(crate) use budget::Kept;
pub(crate) use budget::Terms;
pub(crate) use deliver::Fate;
pub use prepared::Prepared;
pub(crate) use prepared::Shape;
use slow::Slow;
pub use slow::{Gap, Losses, SlowPeer};

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

/// What waits for a peer: queued here, or handed to the driver and not yet taken by the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Buffered {
    /// Messages that the kernel has not taken whole.
    pub messages: usize,
    /// Bytes of their payload.
    pub bytes: usize,
}

/// How a session is asked to end.
#[derive(Debug)]
pub(crate) enum Request {
    Close(CloseFrame),
    /// A message has been abandoned half-way: nothing can follow it. Any other reason is a better one.
    Unfinished,
    /// More was published than may wait for this peer.
    TooSlow,
    /// All peers together have too much waiting for them, and this one the most.
    OverBudget,
    Abort,
}

/// A piece of a message that is sent while it comes into being.
pub(crate) struct Fragment<'a> {
    pub(crate) kind: Kind,
    pub(crate) first: bool,
    pub(crate) last: bool,
    pub(crate) payload: &'a [u8],
}

/// Frames that are shared by many sessions.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) frame: Bytes,
    pub(crate) messages: usize,
    /// Bytes of the messages, as the books count them.
    pub(crate) payload: usize,
}

/// What a driver could send that is about to wait, and so what it must be woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sendable {
    Everything,
    /// Messages have to wait for the session's rate.
    Control,
    /// The peer takes nothing, or nothing follows any more. Of a request it must hear all the same.
    Nothing,
}

/// What the driver finds when it wants to wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// It must not: something is there to be done.
    No,
    /// From now on it is woken for whatever is put in.
    Yes,
    /// The same, and others wait until a message has been written of which nothing more is there.
    /// `progress`: some has come since the last time.
    BehindWriter { progress: bool },
    /// It must not: everything has left after there had been too much, and the application wants to know.
    Drained,
}

/// Why something was not queued.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Not now: too much waits, or another message is in the middle.
    Full,
    Closed,
}

impl Refused {
    pub(crate) fn with(self, message: Message) -> SendError {
        match self {
            Self::Full => SendError::Full(message),
            Self::Closed => SendError::Closed(message),
        }
    }
}

pub(crate) struct Outbox {
    state: Mutex<State>,
    /// The driver waits and has looked at everything in the state. Set under the lock; cleared by
    /// whoever wakes the driver, and by the driver itself when something else has woken it.
    parked: AtomicBool,
    /// The session's; here because there is room for it.
    pub(crate) protocol: Protocol,
    /// Who drives the session, for those on its own worker: it costs them less than the waker.
    task: AtomicU32,
    /// Told when there is room again, and when there never will be.
    room: Event,
}

#[derive(Default)]
struct State {
    /// What is queued last; it has room for more.
    filling: Option<Box<Batch>>,
    /// What is queued before that.
    #[expect(clippy::box_collection, reason = "an idle session has room for a pointer only")]
    full: Option<Box<VecDeque<Box<Batch>>>>,
    buffered: Buffered,
    rare: Option<Box<Rare>>,
    /// What waits one by one, behind everything else.
    backlog: Option<Box<Backlog>>,
    slow: Option<Box<Slow>>,
    /// Nothing is accepted any more.
    closed: bool,
    /// The driver waits for the peer to take what it has, or for the rate.
    stalled: bool,
    /// It waits for the peer and for nothing else: no message can change that.
    blocked: bool,
    /// There has been too much since everything had left.
    congested: bool,
    /// What waits is no longer counted against the budget of all.
    released: bool,
    /// The session has a rate, which lets out a batch at a time: they are small.
    paced: bool,
    /// Somebody may listen to `room`. An event allocates when it is notified for the first time,
    /// and most sessions never need one.
    awaited: bool,
    driver: Option<Waker>,
    /// Which headers a message gets.
    protocol: Protocol,
}

/// What an idle session has none of.
#[derive(Default)]
struct Rare {
    /// The application's own ping; a later one takes the place of one that has not left.
    ping: Option<Box<[u8]>>,
    request: Option<Request>,
}

impl State {
    #[inline]
    fn push(&mut self, message: Message) {
        match &mut self.backlog {
            None => self.fill(|batch| batch.push(message)),
            Some(backlog) => backlog.push(message.len(), Waiting::Message(message)),
        }
    }

    /// The same with a message that is to be compressed.
    fn push_raw(&mut self, message: Message) {
        match &mut self.backlog {
            None => self.fill(|batch| batch.push_raw(message)),
            Some(backlog) => backlog.push(message.len(), Waiting::Raw(message)),
        }
    }

    /// The same with a message that has been encoded.
    fn push_encoded(&mut self, encoded: Encoded) {
        match &mut self.backlog {
            None => self.fill(|batch| batch.push_encoded(encoded)),
            Some(backlog) => backlog.push(encoded.payload, Waiting::Encoded(encoded)),
        }
    }

    /// A message is being written in fragments.
    fn has_writer(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| backlog.writer)
    }

    /// Whether so much more may wait.
    #[inline]
    fn has_room(&self, more: usize, len: usize, bounds: &Bounds) -> bool {
        let Buffered { messages, bytes } = self.buffered;
        let fits = messages.saturating_add(more) <= bounds.messages
            && bytes.saturating_add(len) <= bounds.bytes;
        // A message larger than the whole bound is taken when it is alone.
        fits || (messages == 0 && bytes == 0 && more == 1)
    }

    /// Accepts nothing more, and gives up what waits: it is off the budget of all, and stays on the books
    /// as what was not delivered. The caller drops it, without the lock.
    fn abandon(&mut self, terms: &Terms) -> impl Sized + use<> {
        self.closed = true;
        if !std::mem::replace(&mut self.released, true) {
            terms.moved(self.buffered, Buffered::default());
        }
        (self.filling.take(), self.full.take(), self.backlog.take())
    }

    /// Keeps the books.
    #[inline]
    fn count(&mut self, terms: &Terms, change: impl FnOnce(&mut Buffered)) {
        let before = self.buffered;
        change(&mut self.buffered);
        if !self.released {
            terms.moved(before, self.buffered);
        }
    }

    #[inline]
    fn fill(&mut self, put: impl FnOnce(&mut Batch)) {
        // A stalled session has small batches of its own; see `Outbox::park`.
        let (stalled, protocol) = (self.stalled, self.protocol);
        let batch = self.filling.get_or_insert_with(|| {
            let batch = if stalled { Box::default() } else { Batch::take() };
            batch.speaking(protocol)
        });
        put(batch);
        if self.paced && batch.is_full_for_a_rate() {
            // Many of them may wait, and for long: each takes no more memory than its bytes.
            let full = self.full.get_or_insert_default();
            full.extend(self.filling.take().map(Batch::shrink));
        } else if batch.is_full() {
            let full = self.full.get_or_insert_default();
            full.extend(self.filling.take());
        }
    }

    fn pop(&mut self) -> Option<Box<Batch>> {
        match &mut self.full {
            None if self.filling.is_none() => self.pop_backlog(),
            None => self.filling.take(),
            Some(full) => {
                let batch = full.pop_front();
                if full.is_empty() {
                    self.full = None;
                }
                batch
            }
        }
    }

    /// The next batch of what waits one by one.
    fn pop_backlog(&mut self) -> Option<Box<Batch>> {
        let paced = self.paced;
        let full = |batch: &Batch| batch.is_full() || (paced && batch.is_full_for_a_rate());
        let protocol = self.protocol;
        let backlog = self.backlog.as_mut().filter(|backlog| !backlog.writer)?;
        let batch = backlog.pop_batch(protocol, full);
        if backlog.is_empty() {
            self.backlog = None;
        }
        batch
    }

    /// Nothing is to be sent.
    fn is_empty(&self) -> bool {
        self.filling.is_none() && self.full.is_none() && !self.has_backlog()
    }

    /// Something waits one by one, and not for the end of a message.
    fn has_backlog(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| !backlog.writer)
    }
}

impl Outbox {
    pub(crate) fn of(protocol: Protocol) -> Self {
        let state = State { protocol, ..State::default() };
        let (parked, room) = (AtomicBool::new(false), Event::new());
        let task = AtomicU32::new(TaskId::NONE.number());
        Self { state: Mutex::new(state), parked, protocol, task, room }
    }

    #[cfg(test)]
    fn new() -> Self {
        Self::of(Protocol::WebSocket)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held can only come from the allocator; the counts are valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver's waker, if it must be woken for what has just been put in.
    #[inline]
    fn unpark(&self, state: &State) -> Option<Waker> {
        if !self.parked.load(Ordering::Relaxed) {
            return None;
        }
        self.parked.store(false, Ordering::Relaxed);
        state.driver.clone()
    }

    /// For the driver, when it begins: which task it is.
    pub(crate) fn driven_by(&self, task: TaskId) {
        self.task.store(task.number(), Ordering::Relaxed);
    }

    /// For the driver, when it runs: what is put in from now on need not wake it, because it looks
    /// at everything before it waits again.
    #[inline]
    pub(crate) fn awake(&self) {
        self.parked.store(false, Ordering::Relaxed);
    }

    /// Queues a message, or gives it back.
    #[inline]
    pub(crate) fn try_push(&self, message: Message, terms: &Terms) -> Result<(), SendError> {
        match self.admit(message.len(), terms) {
            Ok(mut state) => {
                state.push(message);
                self.pushed(state);
                Ok(())
            }
            Err(refused) => Err(refused.with(message)),
        }
    }

    /// The same with a message that is to be compressed.
    #[cold]
    pub(crate) fn try_push_raw(&self, message: Message, terms: &Terms) -> Result<(), SendError> {
        match self.admit(message.len(), terms) {
            Ok(mut state) => {
                state.push_raw(message);
                self.pushed(state);
                Ok(())
            }
            Err(refused) => Err(refused.with(message)),
        }
    }

    /// Queues a message that has been encoded.
    pub(crate) fn try_push_encoded(&self, encoded: Encoded, terms: &Terms) -> Result<(), Refused> {
        let mut state = self.admit(encoded.payload, terms)?;
        state.push_encoded(encoded);
        self.pushed(state);
        Ok(())
    }

    /// The state, with a message of this length on its books.
    #[inline]
    fn admit(&self, len: usize, terms: &Terms) -> Result<MutexGuard<'_, State>, Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if !state.has_room(1, len, &terms.bounds) {
            state.congested = true;
            return Err(Refused::Full);
        }
        state.count(terms, |buffered| {
            buffered.messages += 1;
            buffered.bytes += len;
        });
        Ok(state)
    }

    /// Something has been put in: the driver is woken if it waits for that.
    #[inline]
    fn pushed(&self, state: MutexGuard<'_, State>) {
        let waker = if state.blocked { None } else { self.unpark(&state) };
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Queues a fragment. From the first to the last, other messages wait behind it.
    pub(crate) fn try_push_fragment(
        &self,
        fragment: &Fragment<'_>,
        terms: &Terms,
    ) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        let Buffered { messages, bytes } = state.buffered;
        // What waits behind the message leaves no room before its end: then a fragment is taken when
        // no other is in front of it.
        let behind = state.backlog.as_ref().map_or(0, |backlog| backlog.bytes());
        let alone = bytes == behind && (messages == 0 || !fragment.first);
        let bounds = &terms.bounds;
        let fits = bytes.saturating_add(fragment.payload.len()) <= bounds.bytes
            && (messages < bounds.messages || !fragment.first);
        if !(fits || alone) || (fragment.first && state.backlog.is_some()) {
            return Err(Refused::Full);
        }
        let backlog = state.backlog.get_or_insert_default();
        backlog.progress = true;
        backlog.writer = !fragment.last;
        if fragment.last && backlog.is_empty() {
            state.backlog = None;
        }
        state.count(terms, |buffered| {
            buffered.bytes += fragment.payload.len();
            buffered.messages += usize::from(fragment.last);
        });
        state.fill(|batch| batch.push_fragment(fragment));
        let waker = self.unpark(&state);
        if fragment.last {
            // Whoever waits for its turn with a message of this kind.
            self.wake_senders(state);
        } else {
            drop(state);
        }
        waker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Hears when trying again may help. Made first, then tried, then awaited.
    pub(crate) fn room(&self) -> EventListener {
        let listener = self.room.listen();
        let mut state = self.lock();
        state.awaited = true;
        // Behind a writer, the driver watches how long.
        let waker = if state.has_writer() { self.unpark(&state) } else { None };
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        listener
    }

    /// Wakes whoever waits for room, without the lock: a waker may run anything.
    fn wake_senders(&self, mut state: MutexGuard<'_, State>) {
        let awaited = std::mem::take(&mut state.awaited);
        drop(state);
        if awaited {
            self.room.notify(usize::MAX);
        }
    }

    /// Puts a ping in the control lane. Returns whether the session is still open.
    pub(crate) fn ping(&self, payload: &[u8]) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        state.rare.get_or_insert_default().ping = Some(payload.into());
        let waker = self.unpark(&state);
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        true
    }

    /// Asks the driver to end the session. The first close wins; an abort overtakes a close.
    pub(crate) fn request(&self, request: Request) {
        let mut state = self.lock();
        let overtakes = matches!(request, Request::Abort);
        if state.closed && !overtakes {
            return;
        }
        state.closed = true;
        state.rare.get_or_insert_default().request = Some(request);
        let waker = self.unpark(&state);
        self.wake_senders(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Accepts nothing more; whoever waits for room learns it. What is queued stays.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.wake_senders(state);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn buffered(&self) -> Buffered {
        self.lock().buffered
    }

    /// How much more may wait now, if that is enough for a message of this length.
    pub(crate) fn left(&self, len: usize, terms: &Terms) -> Result<Bounds, Refused> {
        let state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        let Bounds { messages, bytes } = terms.bounds;
        let left = Bounds {
            messages: messages.saturating_sub(state.buffered.messages),
            bytes: bytes.saturating_sub(state.buffered.bytes),
        };
        state.has_room(1, len, &terms.bounds).then_some(left).ok_or(Refused::Full)
    }

    /// For the driver: takes off the books what the kernel has taken, and takes the next batch.
    pub(crate) fn take(&self, written: Buffered, terms: &Terms) -> Taken {
        let mut state = self.settled(written, terms);
        let had_backlog = state.has_backlog();
        let (rare, batch) = (state.rare.take(), state.pop());
        let last = state.is_empty();
        if had_backlog && batch.is_none() && state.awaited {
            // There was a gap only, about which nothing is said: nothing is written that would tell those who
            // wait for room.
            self.wake_senders(state);
        }
        Taken { batch, rare, last }
    }

    /// The same while messages have to wait: no batch. `last` says whether any message does.
    pub(crate) fn take_control(&self, written: Buffered, terms: &Terms) -> Taken {
        let mut state = self.settled(written, terms);
        Taken { batch: None, rare: state.rare.take(), last: state.is_empty() }
    }

    /// For the driver, before its first message: what it takes from now on goes out at a rate.
    pub(crate) fn pace(&self) {
        self.lock().paced = true;
    }

    /// For the driver, when it will wait as soon as it has sent this: `take` and `park` in one, which
    /// nearly every turn of a session needs. What is taken is off the books at once, and comes back
    /// with [`Outbox::unsent`] if it could not be sent.
    ///
    /// `None` if it is not as simple as that, and nothing has been done.
    #[inline]
    pub(crate) fn take_and_park(
        &self,
        written: Buffered,
        terms: &Terms,
        waker: &Waker,
    ) -> Option<Option<Box<Batch>>> {
        let mut state = self.lock();
        let simple = state.rare.is_none() && state.full.is_none() && state.backlog.is_none();
        if !simple || state.awaited || state.closed || state.congested {
            return None;
        }
        let batch = state.filling.take();
        let carried = batch.as_ref().map(|batch| batch.carried()).unwrap_or_default();
        state.count(terms, |buffered| {
            buffered.messages -= written.messages + carried.messages;
            buffered.bytes -= written.bytes + carried.bytes;
        });
        state.stalled = false;
        state.blocked = false;
        match &state.driver {
            Some(driver) if driver.will_wake(waker) => {}
            _ => state.driver = Some(waker.clone()),
        }
        self.parked.store(true, Ordering::Relaxed);
        Some(batch)
    }

    /// For the driver: what it took could not be sent, and waits again.
    pub(crate) fn unsent(&self, carried: Buffered, terms: &Terms) {
        self.lock().count(terms, |buffered| {
            buffered.messages += carried.messages;
            buffered.bytes += carried.bytes;
        });
    }

    /// For the driver: nobody has put anything in since it parked.
    #[inline]
    pub(crate) fn is_parked(&self) -> bool {
        self.parked.load(Ordering::Relaxed)
    }

    /// For the driver, before it waits: from now on it is woken for whatever is put in.
    pub(crate) fn park(
        &self,
        written: Buffered,
        terms: &Terms,
        waker: &Waker,
        sendable: Sendable,
    ) -> Parked {
        let mut state = self.settled(written, terms);
        let something = match sendable {
            Sendable::Everything => !state.is_empty() || state.rare.is_some(),
            Sendable::Control => state.rare.is_some(),
            Sendable::Nothing => state.rare.as_ref().is_some_and(|rare| rare.request.is_some()),
        };
        if something {
            return Parked::No;
        }
        if state.congested && state.buffered == Buffered::default() {
            state.congested = false;
            return Parked::Drained;
        }
        let stalled = sendable != Sendable::Everything;
        if stalled {
            // It may wait for long: what waits takes no more memory than its bytes.
            state.filling = state.filling.take().map(Batch::shrink);
        }
        state.stalled = stalled;
        state.blocked = sendable == Sendable::Nothing;
        match &state.driver {
            Some(driver) if driver.will_wake(waker) => {}
            _ => state.driver = Some(waker.clone()),
        }
        self.parked.store(true, Ordering::Relaxed);
        // While the peer takes nothing, or the rate lets nothing out, the writer is not to blame.
        let behind = if stalled { None } else { self.waiting_behind(&mut state) };
        behind.map_or(Parked::Yes, |progress| Parked::BehindWriter { progress })
    }

    /// For the driver: whether others wait for a message that is being written, and nothing of it is left
    /// to be sent; and whether some of it has come since it last asked.
    pub(crate) fn behind_writer(&self) -> Option<bool> {
        self.waiting_behind(&mut self.lock())
    }

    fn waiting_behind(&self, state: &mut State) -> Option<bool> {
        if !state.is_empty() {
            return None;
        }
        let awaited = state.awaited;
        let backlog = state.backlog.as_mut()?;
        let progress = std::mem::take(&mut backlog.progress);
        let waiting = !backlog.is_empty() || (awaited && self.room.total_listeners() > 0);
        waiting.then_some(progress)
    }

    /// For the driver, while it cannot write: how the session is asked to end.
    pub(crate) fn take_request(&self) -> Option<Request> {
        self.lock().rare.as_mut()?.request.take()
    }

    /// For the driver, at the end: drops what nobody will send, and its own waker. Returns what
    /// was not delivered.
    pub(crate) fn clear(&self, written: Buffered, terms: &Terms) -> Buffered {
        let mut state = self.settled(written, terms);
        let dropped = (state.abandon(terms), state.driver.take());
        let undelivered = state.buffered;
        self.wake_senders(state);
        drop(dropped);
        undelivered
    }

    /// The state, with what has been written off its books.
    #[inline]
    fn settled(&self, written: Buffered, terms: &Terms) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        // Fragments are bytes of a message that is not complete.
        if written != Buffered::default() {
            state.count(terms, |buffered| {
                buffered.messages -= written.messages;
                buffered.bytes -= written.bytes;
            });
            if state.awaited {
                self.wake_senders(state);
                return self.lock();
            }
        }
        state
    }
}

/// What the driver finds.
pub(crate) struct Taken {
    pub(crate) batch: Option<Box<Batch>>,
    rare: Option<Box<Rare>>,
    /// Nothing is queued behind the batch.
    pub(crate) last: bool,
}

impl Taken {
    pub(crate) fn ping(&mut self) -> Option<Box<[u8]>> {
        self.rare.as_mut()?.ping.take()
    }

    pub(crate) fn request(&mut self) -> Option<Request> {
        self.rare.as_mut()?.request.take()
    }
}
