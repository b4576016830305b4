//! One session's sending side, as everyone else sees it: a bounded queue for messages, and a
//! control lane beside it that messages can neither starve nor overflow.
//!
//! Any thread may put something in; only the session's driver takes something out. The lock is one
//! session's own and held for a few nanoseconds by senders, and by the driver for as long as
//! copying at most [`CORK`](crate::session::CORK) bytes of small messages takes.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use event_listener::{Event, EventListener};

use crate::error::SendError;
use crate::message::Message;
use crate::ws::CloseFrame;

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
    Abort,
}

/// Where the driver puts what it takes.
pub(crate) trait Sink {
    /// Whether it takes a further message now.
    fn has_room(&self) -> bool;
    fn push(&mut self, message: Message);
}

pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Told when there is room again, and when there never will be.
    room: Event,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Message>,
    buffered: Buffered,
    /// The application's own ping; a later one takes the place of one that has not left.
    ping: Option<Box<[u8]>>,
    request: Option<Box<Request>>,
    /// Nothing is accepted any more.
    closed: bool,
    /// The driver waits and has looked at everything above.
    parked: bool,
    driver: Option<Waker>,
}

impl State {
    /// The driver's waker, if it must be woken for what has just been put in.
    fn unpark(&mut self) -> Option<Waker> {
        if std::mem::take(&mut self.parked) { self.driver.clone() } else { None }
    }
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), room: Event::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held can only come from the allocator; the counts are valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message, or gives it back.
    #[inline]
    pub(crate) fn try_push(&self, message: Message, bounds: Bounds) -> Result<(), SendError> {
        let mut state = self.lock();
        if state.closed {
            return Err(SendError::Closed(message));
        }
        let Buffered { messages, bytes } = state.buffered;
        let fits =
            messages < bounds.messages && bytes.saturating_add(message.len()) <= bounds.bytes;
        // A message larger than the whole bound is taken when it is alone.
        if !fits && messages > 0 {
            return Err(SendError::Full(message));
        }
        state.buffered.messages += 1;
        state.buffered.bytes += message.len();
        state.queue.push_back(message);
        let waker = state.unpark();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Hears when trying again may help. Made first, then tried, then awaited.
    pub(crate) fn room(&self) -> EventListener {
        self.room.listen()
    }

    /// Puts a ping in the control lane. Returns whether the session is still open.
    pub(crate) fn ping(&self, payload: &[u8]) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        state.ping = Some(payload.into());
        let waker = state.unpark();
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
        state.request = Some(Box::new(request));
        let waker = state.unpark();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        self.room.notify(usize::MAX);
    }

    /// Accepts nothing more; whoever waits for room learns it. What is queued stays.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.room.notify(usize::MAX);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn buffered(&self) -> Buffered {
        self.lock().buffered
    }

    /// For the driver: takes off the books what the kernel has taken, and fills the sink.
    pub(crate) fn refill(&self, written: Buffered, sink: &mut impl Sink) -> Refilled {
        let mut state = self.lock();
        self.written(&mut state, written);
        while sink.has_room() {
            let Some(message) = state.queue.pop_front() else {
                break;
            };
            sink.push(message);
        }
        Refilled {
            ping: state.ping.take().map(Bytes::from),
            request: state.request.take(),
            empty: state.queue.is_empty(),
        }
    }

    /// For the driver, before it waits: from now on it is woken for whatever is put in.
    ///
    /// Returns false if something is there already; then it must look again instead of waiting.
    pub(crate) fn park(&self, written: Buffered, waker: &Waker, stalled: bool) -> bool {
        let mut state = self.lock();
        self.written(&mut state, written);
        // A stalled driver cannot send what is queued, but must hear of a request.
        if state.request.is_some()
            || (!stalled && (!state.queue.is_empty() || state.ping.is_some()))
        {
            return false;
        }
        if state.queue.is_empty() {
            // An idle session keeps no memory for what it once had to send.
            state.queue = VecDeque::new();
        }
        match &state.driver {
            Some(driver) if driver.will_wake(waker) => {}
            _ => state.driver = Some(waker.clone()),
        }
        state.parked = true;
        true
    }

    /// For the driver, while it cannot write: how the session is asked to end.
    pub(crate) fn take_request(&self) -> Option<Box<Request>> {
        self.lock().request.take()
    }

    /// For the driver, at the end: drops what nobody will send, and its own waker. Returns what
    /// was not delivered.
    pub(crate) fn clear(&self, written: Buffered) -> Buffered {
        let mut state = self.lock();
        self.written(&mut state, written);
        state.closed = true;
        state.parked = false;
        let (queue, driver) = (std::mem::take(&mut state.queue), state.driver.take());
        let undelivered = state.buffered;
        drop(state);
        drop((queue, driver));
        self.room.notify(usize::MAX);
        undelivered
    }

    fn written(&self, state: &mut State, written: Buffered) {
        if written.messages > 0 {
            state.buffered.messages -= written.messages;
            state.buffered.bytes -= written.bytes;
            // Without a listener this is one relaxed load.
            self.room.notify(usize::MAX);
        }
    }
}

/// What the driver finds beside messages.
pub(crate) struct Refilled {
    pub(crate) ping: Option<Bytes>,
    pub(crate) request: Option<Box<Request>>,
    /// The queue has been emptied into the sink.
    pub(crate) empty: bool,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    struct Taken(Vec<Message>, usize);

    impl Sink for Taken {
        fn has_room(&self) -> bool {
            self.0.len() < self.1
        }
        fn push(&mut self, message: Message) {
            self.0.push(message);
        }
    }

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
        let mut sink = Taken(Vec::new(), 2);
        let refilled = outbox.refill(Buffered::default(), &mut sink);
        assert!(!refilled.empty);
        assert!(outbox.try_push("c".into(), BOUNDS).is_err());
        let mut rest = Taken(Vec::new(), 2);
        assert!(outbox.refill(Buffered { messages: 2, bytes: 4 }, &mut rest).empty);
        assert_eq!(outbox.buffered(), Buffered { messages: 1, bytes: 2 });
        outbox.try_push("c".into(), BOUNDS).unwrap();
    }

    #[test]
    fn a_parked_driver_is_woken_once_and_a_busy_one_is_not() {
        let outbox = Outbox::new();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        outbox.try_push("a".into(), BOUNDS).unwrap();
        assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
        assert!(!outbox.park(Buffered::default(), &waker, false), "something is queued");
        outbox.refill(Buffered::default(), &mut Taken(Vec::new(), 9));
        assert!(outbox.park(Buffered { messages: 1, bytes: 1 }, &waker, false));
        outbox.try_push("b".into(), BOUNDS).unwrap();
        outbox.try_push("c".into(), BOUNDS).unwrap();
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
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
        let request = outbox.refill(Buffered::default(), &mut Taken(Vec::new(), 1)).request;
        match request.as_deref() {
            Some(Request::Close(close)) => assert_eq!(close.reason.as_str(), "first"),
            other => panic!("{other:?}"),
        }
        outbox.request(Request::Abort);
        let request = outbox.refill(Buffered::default(), &mut Taken(Vec::new(), 1)).request;
        assert!(matches!(request.as_deref(), Some(Request::Abort)));
    }
}
