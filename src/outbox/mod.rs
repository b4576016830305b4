//! One session's sending side, as everyone else sees it: a bounded queue for messages, and a
//! control lane beside it that messages can neither starve nor overflow.
//!
//! Any thread may put something in; only the session's driver takes something out. A message is
//! encoded when it is put in, so that a queue costs its bytes and nothing per message, and the
//! driver takes a whole batch by swapping a pointer. The lock is one session's own, and held for as
//! long as copying one small message takes; when a message that was sent in fragments ends, for as long
//! as copying what has waited behind it.

mod batch;
mod prepared;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use event_listener::{Event, EventListener};

use crate::error::SendError;
use crate::message::{Kind, Message};
use crate::protocol::Protocol;
use crate::ws::CloseFrame;

pub(crate) use batch::{Batch, MAX_SLICES, RAW_BATCH};
pub use prepared::Prepared;

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
    Abort,
}

/// A piece of a message that is sent while it comes into being.
pub(crate) struct Fragment<'a> {
    pub(crate) kind: Kind,
    pub(crate) first: bool,
    pub(crate) last: bool,
    pub(crate) payload: &'a [u8],
}

/// A message that waits until another one has been sent whole.
enum Waiting {
    Message(Message),
    /// To be compressed.
    Raw(Message),
    Encoded(Encoded),
}

/// A frame that is shared by many sessions.
pub(crate) struct Encoded {
    pub(crate) frame: Bytes,
    /// Bytes of the message, as the books count them.
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
    /// What waits behind a message that is being sent in fragments.
    behind: Option<Box<Behind>>,
    /// Nothing is accepted any more.
    closed: bool,
    /// The driver waits for the peer to take what it has, or for the rate.
    stalled: bool,
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

#[derive(Default)]
struct Behind {
    /// A fragment has been queued since the driver last waited.
    progress: bool,
    messages: VecDeque<Waiting>,
    /// Of their payload.
    bytes: usize,
}

impl Behind {
    #[cold]
    fn push(&mut self, bytes: usize, waiting: Waiting) {
        self.bytes += bytes;
        self.messages.push_back(waiting);
    }
}

impl State {
    #[inline]
    fn push(&mut self, message: Message) {
        match &mut self.behind {
            None => self.fill(|batch| batch.push(message)),
            Some(behind) => behind.push(message.len(), Waiting::Message(message)),
        }
    }

    /// The same with a message that is to be compressed.
    fn push_raw(&mut self, message: Message) {
        match &mut self.behind {
            None => self.fill(|batch| batch.push_raw(message)),
            Some(behind) => behind.push(message.len(), Waiting::Raw(message)),
        }
    }

    /// The same with a message that has been encoded.
    fn push_encoded(&mut self, encoded: Encoded) {
        match &mut self.behind {
            None => self.fill(|batch| batch.push_encoded(encoded)),
            Some(behind) => behind.push(encoded.payload, Waiting::Encoded(encoded)),
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

    fn is_empty(&self) -> bool {
        self.filling.is_none() && self.full.is_none()
    }
}

impl Outbox {
    pub(crate) fn of(protocol: Protocol) -> Self {
        let state = State { protocol, ..State::default() };
        let (parked, room) = (AtomicBool::new(false), Event::new());
        Self { state: Mutex::new(state), parked, protocol, room }
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

    /// For the driver, when it runs: what is put in from now on need not wake it, because it looks
    /// at everything before it waits again.
    #[inline]
    pub(crate) fn awake(&self) {
        self.parked.store(false, Ordering::Relaxed);
    }

    /// Queues a message, or gives it back.
    #[inline]
    pub(crate) fn try_push(&self, message: Message, bounds: Bounds) -> Result<(), SendError> {
        match self.admit(message.len(), bounds) {
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
    pub(crate) fn try_push_raw(&self, message: Message, bounds: Bounds) -> Result<(), SendError> {
        match self.admit(message.len(), bounds) {
            Ok(mut state) => {
                state.push_raw(message);
                self.pushed(state);
                Ok(())
            }
            Err(refused) => Err(refused.with(message)),
        }
    }

    /// Queues a message that has been encoded.
    pub(crate) fn try_push_encoded(&self, encoded: Encoded, bounds: Bounds) -> Result<(), Refused> {
        let mut state = self.admit(encoded.payload, bounds)?;
        state.push_encoded(encoded);
        self.pushed(state);
        Ok(())
    }

    /// The state, with a message of this length on its books.
    #[inline]
    fn admit(&self, len: usize, bounds: Bounds) -> Result<MutexGuard<'_, State>, Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        let Buffered { messages, bytes } = state.buffered;
        let fits = messages < bounds.messages && bytes.saturating_add(len) <= bounds.bytes;
        // A message larger than the whole bound is taken when it is alone.
        if !fits && (messages > 0 || bytes > 0) {
            return Err(Refused::Full);
        }
        state.buffered.messages += 1;
        state.buffered.bytes += len;
        Ok(state)
    }

    /// Something has been put in: the driver is woken if it waits.
    #[inline]
    fn pushed(&self, state: MutexGuard<'_, State>) {
        let waker = self.unpark(&state);
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Queues a fragment. From the first to the last, other messages wait behind it.
    pub(crate) fn try_push_fragment(
        &self,
        fragment: &Fragment<'_>,
        bounds: Bounds,
    ) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        let Buffered { messages, bytes } = state.buffered;
        // What waits behind the message leaves no room before its end: then a fragment is taken when
        // no other is in front of it.
        let behind = state.behind.as_ref().map_or(0, |behind| behind.bytes);
        let alone = bytes == behind && (messages == 0 || !fragment.first);
        let fits = bytes.saturating_add(fragment.payload.len()) <= bounds.bytes
            && (messages < bounds.messages || !fragment.first);
        if !(fits || alone) || (fragment.first && state.behind.is_some()) {
            return Err(Refused::Full);
        }
        state.behind.get_or_insert_default().progress = true;
        state.buffered.bytes += fragment.payload.len();
        state.buffered.messages += usize::from(fragment.last);
        state.fill(|batch| batch.push_fragment(fragment));
        if fragment.last {
            for waiting in state.behind.take().into_iter().flat_map(|behind| behind.messages) {
                match waiting {
                    Waiting::Message(message) => state.push(message),
                    Waiting::Raw(message) => state.push_raw(message),
                    Waiting::Encoded(encoded) => state.push_encoded(encoded),
                }
            }
        }
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
        let waker = if state.behind.is_some() { self.unpark(&state) } else { None };
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

    /// For the driver: takes off the books what the kernel has taken, and takes the next batch.
    pub(crate) fn take(&self, written: Buffered) -> Taken {
        let mut state = self.settled(written);
        let rare = state.rare.take();
        Taken { batch: state.pop(), rare, last: state.is_empty() }
    }

    /// The same while messages have to wait: no batch. `last` says whether any message does.
    pub(crate) fn take_control(&self, written: Buffered) -> Taken {
        let mut state = self.settled(written);
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
        waker: &Waker,
    ) -> Option<Option<Box<Batch>>> {
        let mut state = self.lock();
        let simple = state.rare.is_none() && state.full.is_none() && state.behind.is_none();
        if !simple || state.awaited || state.closed {
            return None;
        }
        let batch = state.filling.take();
        let carried = batch.as_ref().map(|batch| batch.carried()).unwrap_or_default();
        state.buffered.messages -= written.messages + carried.messages;
        state.buffered.bytes -= written.bytes + carried.bytes;
        state.stalled = false;
        match &state.driver {
            Some(driver) if driver.will_wake(waker) => {}
            _ => state.driver = Some(waker.clone()),
        }
        self.parked.store(true, Ordering::Relaxed);
        Some(batch)
    }

    /// For the driver: what it took could not be sent, and waits again.
    pub(crate) fn unsent(&self, carried: Buffered) {
        let mut state = self.lock();
        state.buffered.messages += carried.messages;
        state.buffered.bytes += carried.bytes;
    }

    /// For the driver: nobody has put anything in since it parked.
    #[inline]
    pub(crate) fn is_parked(&self) -> bool {
        self.parked.load(Ordering::Relaxed)
    }

    /// For the driver, before it waits: from now on it is woken for whatever is put in.
    pub(crate) fn park(&self, written: Buffered, waker: &Waker, sendable: Sendable) -> Parked {
        let mut state = self.settled(written);
        let something = match sendable {
            Sendable::Everything => !state.is_empty() || state.rare.is_some(),
            Sendable::Control => state.rare.is_some(),
            Sendable::Nothing => state.rare.as_ref().is_some_and(|rare| rare.request.is_some()),
        };
        if something {
            return Parked::No;
        }
        let stalled = sendable != Sendable::Everything;
        if stalled {
            // It may wait for long: what waits takes no more memory than its bytes.
            state.filling = state.filling.take().map(Batch::shrink);
        }
        state.stalled = stalled;
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
        let behind = state.behind.as_mut()?;
        let progress = std::mem::take(&mut behind.progress);
        let waiting = !behind.messages.is_empty() || (awaited && self.room.total_listeners() > 0);
        waiting.then_some(progress)
    }

    /// For the driver, while it cannot write: how the session is asked to end.
    pub(crate) fn take_request(&self) -> Option<Request> {
        self.lock().rare.as_mut()?.request.take()
    }

    /// For the driver, at the end: drops what nobody will send, and its own waker. Returns what
    /// was not delivered.
    pub(crate) fn clear(&self, written: Buffered) -> Buffered {
        let mut state = self.settled(written);
        state.closed = true;
        let batches = (state.filling.take(), state.full.take(), state.behind.take());
        let dropped = (batches, state.driver.take());
        let undelivered = state.buffered;
        self.wake_senders(state);
        drop(dropped);
        undelivered
    }

    /// The state, with what has been written off its books.
    #[inline]
    fn settled(&self, written: Buffered) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        // Fragments are bytes of a message that is not complete.
        if written != Buffered::default() {
            state.buffered.messages -= written.messages;
            state.buffered.bytes -= written.bytes;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    const BOUNDS: Bounds = Bounds { messages: 3, bytes: 10 };

    #[test]
    fn both_bounds_hold_and_the_message_comes_back() {
        let outbox = Outbox::new();
        outbox.try_push("12345".into(), BOUNDS).unwrap();
        match outbox.try_push("123456".into(), BOUNDS) {
            Err(SendError::Full(message)) => assert_eq!(message.as_text(), Some("123456")),
            other => panic!("{other:?}"),
        }
        outbox.try_push("".into(), BOUNDS).unwrap();
        outbox.try_push("".into(), BOUNDS).unwrap();
        assert!(matches!(outbox.try_push("".into(), BOUNDS), Err(SendError::Full(_))));
        assert_eq!(outbox.buffered(), Buffered { messages: 3, bytes: 5 });
    }

    #[test]
    fn a_message_larger_than_the_bound_is_taken_alone() {
        let outbox = Outbox::new();
        outbox.try_push(vec![0; 1000].into(), BOUNDS).unwrap();
        assert!(outbox.try_push("x".into(), BOUNDS).is_err());
    }

    #[test]
    fn what_was_taken_counts_until_it_is_written() {
        let outbox = Outbox::new();
        for _ in 0..3 {
            outbox.try_push("ab".into(), BOUNDS).unwrap();
        }
        let taken = outbox.take(Buffered::default());
        assert!(taken.last);
        assert!(outbox.try_push("c".into(), BOUNDS).is_err());
        let written = taken.batch.unwrap().carried();
        assert_eq!(written, Buffered { messages: 3, bytes: 6 });
        assert!(outbox.take(written).batch.is_none());
        assert_eq!(outbox.buffered(), Buffered::default());
        outbox.try_push("c".into(), BOUNDS).unwrap();
    }

    #[test]
    fn a_parked_driver_is_woken_once_and_a_busy_one_is_not() {
        let outbox = Outbox::new();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        outbox.try_push("a".into(), BOUNDS).unwrap();
        assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
        assert_eq!(outbox.park(Buffered::default(), &waker, Sendable::Everything), Parked::No);
        assert!(outbox.take(Buffered::default()).batch.is_some());
        assert_eq!(
            outbox.park(Buffered { messages: 1, bytes: 1 }, &waker, Sendable::Everything),
            Parked::Yes
        );
        outbox.try_push("b".into(), BOUNDS).unwrap();
        outbox.try_push("c".into(), BOUNDS).unwrap();
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
        drop(outbox.take(Buffered::default()));
        assert_eq!(outbox.park(Buffered::default(), &waker, Sendable::Everything), Parked::Yes);
        outbox.awake();
        outbox.try_push("d".into(), Bounds { messages: 9, bytes: 99 }).unwrap();
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1, "it runs, and will look before it waits");
    }

    #[test]
    fn messages_that_wait_for_the_rate_keep_nobody_awake_and_control_does() {
        let outbox = Outbox::new();
        outbox.pace();
        outbox.try_push("a".into(), BOUNDS).unwrap();
        let taken = outbox.take_control(Buffered::default());
        assert!(taken.batch.is_none() && !taken.last);
        let waker = Waker::noop();
        assert_eq!(outbox.park(Buffered::default(), waker, Sendable::Control), Parked::Yes);
        assert!(outbox.ping(b"x"));
        assert!(!outbox.is_parked(), "the driver is woken");
        assert_eq!(outbox.park(Buffered::default(), waker, Sendable::Nothing), Parked::Yes);
        assert_eq!(outbox.park(Buffered::default(), waker, Sendable::Control), Parked::No);
        assert!(outbox.take_control(Buffered::default()).ping().is_some());
        outbox.request(Request::Abort);
        assert_eq!(outbox.park(Buffered::default(), waker, Sendable::Nothing), Parked::No);
    }

    #[test]
    fn what_goes_out_at_a_rate_is_in_small_batches() {
        let outbox = Outbox::new();
        outbox.pace();
        let bounds = Bounds { messages: 1000, bytes: usize::MAX };
        for _ in 0..100 {
            outbox.try_push(vec![7; 1000].into(), bounds).unwrap();
        }
        let mut messages = 0;
        while let Some(batch) = outbox.take(Buffered::default()).batch {
            assert!(batch.carried().messages <= 5, "{:?}", batch.carried());
            messages += batch.carried().messages;
        }
        assert_eq!(messages, 100);
    }

    #[test]
    fn what_waits_for_a_rate_takes_no_more_memory_than_its_bytes() {
        // The memory of full batches that this thread has sent before.
        let mut sent: Vec<_> = (0..3).map(|_| Batch::take()).collect();
        for batch in &mut sent {
            batch.push_frames(&vec![7; 300 * 1024]);
        }
        sent.into_iter().for_each(Batch::give);
        let outbox = Outbox::new();
        outbox.pace();
        let bounds = Bounds { messages: 1000, bytes: usize::MAX };
        for _ in 0..5 {
            outbox.try_push(vec![7; 4095].into(), bounds).unwrap();
        }
        outbox.try_push("the last one".into(), bounds).unwrap();
        let parked = outbox.park(Buffered::default(), Waker::noop(), Sendable::Control);
        assert_eq!(parked, Parked::Yes);
        let (mut batches, mut capacity) = (0, 0);
        while let Some(batch) = outbox.take(Buffered::default()).batch {
            batches += 1;
            capacity += batch.capacity();
        }
        assert_eq!(batches, 6);
        assert!(capacity < 2 * outbox.buffered().bytes, "{capacity} bytes");
    }

    #[test]
    fn what_is_taken_and_parked_is_off_the_books_and_comes_back_if_it_could_not_be_sent() {
        let outbox = Outbox::new();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        outbox.try_push("abc".into(), BOUNDS).unwrap();
        let batch = outbox.take_and_park(Buffered::default(), &waker).unwrap().unwrap();
        assert_eq!(outbox.buffered(), Buffered::default());
        assert!(outbox.is_parked());
        outbox.try_push("d".into(), BOUNDS).unwrap();
        assert!(!outbox.is_parked(), "the driver is woken, and must look before it waits");
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
        assert_eq!(outbox.park(Buffered::default(), &waker, Sendable::Everything), Parked::No);
        outbox.unsent(batch.carried());
        assert_eq!(outbox.buffered(), Buffered { messages: 2, bytes: 4 });
        assert_eq!(outbox.clear(batch.carried()), Buffered { messages: 1, bytes: 1 });
    }

    #[test]
    fn taking_and_parking_leaves_alone_what_is_not_simple() {
        let waker = Waker::noop();
        let requested = Outbox::new();
        requested.request(Request::Abort);
        assert!(requested.take_and_park(Buffered::default(), waker).is_none());
        assert!(matches!(requested.take_request(), Some(Request::Abort)));
        let pinged = Outbox::new();
        assert!(pinged.ping(b"x"));
        assert!(pinged.take_and_park(Buffered::default(), waker).is_none());
        let awaited = Outbox::new();
        let _listener = awaited.room();
        assert!(awaited.take_and_park(Buffered::default(), waker).is_none());
        assert!(!awaited.is_parked());
    }

    #[test]
    fn the_first_close_wins_an_abort_overtakes_it_and_nothing_follows() {
        let outbox = Outbox::new();
        let close =
            |reason| Request::Close(CloseFrame::new(crate::message::CloseCode::NORMAL, reason));
        outbox.request(close("first"));
        outbox.request(close("second"));
        assert!(matches!(outbox.try_push("x".into(), BOUNDS), Err(SendError::Closed(_))));
        assert!(!outbox.ping(b"x"));
        match outbox.take(Buffered::default()).request() {
            Some(Request::Close(close)) => assert_eq!(close.reason.as_str(), "first"),
            other => panic!("{other:?}"),
        }
        outbox.request(Request::Abort);
        assert!(matches!(outbox.take_request(), Some(Request::Abort)));
    }

    #[test]
    fn batches_come_out_in_the_order_in_which_they_were_filled() {
        let outbox = Outbox::new();
        let bounds = Bounds { messages: 1000, bytes: usize::MAX };
        for i in 0..=255_u8 {
            outbox.try_push(vec![i; 4000].into(), bounds).unwrap();
        }
        let (mut all, mut batches) = (Vec::new(), 0);
        loop {
            let taken = outbox.take(Buffered::default());
            let Some(batch) = taken.batch else {
                break;
            };
            let mut slices = [std::io::IoSlice::new(&[]); MAX_SLICES];
            let count = batch.slices(&mut slices);
            slices[..count].iter().for_each(|slice| all.extend_from_slice(slice));
            batches += 1;
            assert_eq!(taken.last, all.len() == 256 * 4004);
        }
        assert!(batches > 3, "{batches}");
        let order: Vec<u8> = all.chunks(4004).map(|frame| frame[4]).collect();
        assert_eq!(order, (0..=255).collect::<Vec<u8>>());
    }
}
