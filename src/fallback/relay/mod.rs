//! The place where a session and the requests of its client meet.
//!
//! To the session it is a transport like any other, on which RFC 6455 is spoken: what the session writes is
//! put together to whole messages, numbered, and kept until the client has acknowledged them; what the client
//! posts is handed to the session as frames. The session lives on one worker, and requests come on any, so
//! everything is behind one lock, held for as long as copying some messages takes.

mod link;
mod visit;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use event_listener::{Event, EventListener};

pub(crate) use link::Relayed;
pub(in crate::fallback) use visit::{Carried, Queued, Visit};

use super::assembly::{Assembly, Parcel, TooLong};
use crate::executor::{Clock, Time};
use crate::message::{CloseCode, Message};
use crate::outbox::Kept;
use crate::ws::{CloseFrame, Opcode, close_payload};

/// Bytes that wait between the session and what is kept, and as many in the other direction: what a pipe in
/// memory holds.
const PIPE: usize = 64 * 1024;

/// What is kept for a client until it acknowledges it.
#[derive(Clone, Copy, Debug)]
pub(in crate::fallback) struct Bounds {
    pub(in crate::fallback) messages: usize,
    /// Of payload; one message may go beyond.
    pub(in crate::fallback) bytes: usize,
    /// The longest message that the session writes in several frames.
    pub(in crate::fallback) message_bytes: usize,
}

/// POSTs of one client that may wait for room: one, and those that a client has given up meanwhile.
const WAITING_POSTS: usize = 4;

/// A buffer that is empty is kept if it is no larger than this.
const KEPT_BUFFER: usize = 4 * 1024;

/// What a client is told whose session sent a message in several frames that nobody can keep.
const TOO_LONG: &str = "message too long for a client without WebSocket";

/// One session's.
pub(in crate::fallback) struct Relay {
    state: Mutex<State>,
    /// Something has changed that a poll or a stream may wait for.
    changed: Event,
    /// There may be room for what is posted.
    room: Event,
    waiting_posts: AtomicUsize,
    /// A connection that carries a poll or a stream is the session's, and counts nowhere else.
    carried: AtomicBool,
    /// The session has ended.
    ended: AtomicBool,
    ending: Event,
    bounds: Bounds,
    clock: Clock,
}

struct State {
    /// From the client to the session: masked frames.
    up: VecDeque<u8>,
    session_reads: Option<Waker>,
    /// The number of the last POST that was taken.
    posts: u64,
    /// From the session, not yet put together.
    down: VecDeque<u8>,
    session_writes: Option<Waker>,
    assembly: Assembly,
    /// What the client has not acknowledged.
    kept: VecDeque<Message>,
    kept_bytes: usize,
    /// The number of the first of these, or of the next message.
    first: u64,
    /// What was kept has been given up, and nothing follows but the end: whatever the client has got.
    given_up: bool,
    close: Closing,
    /// Why the session's reads and writes fail.
    failed: Option<ErrorKind>,
    /// The client has said goodbye: what it posts now nobody reads.
    said_goodbye: bool,
    visitor: Option<Visitor>,
    visits: u64,
    /// What is kept counts in the budget of all outboxes.
    counted: Kept,
    /// When the client was here last.
    seen: Time,
}

/// How far the session has said goodbye.
#[derive(Default)]
enum Closing {
    #[default]
    Open,
    /// Behind everything that is kept.
    Said(Option<CloseFrame>),
    /// The client has been told, too.
    Told(Option<CloseFrame>),
}

/// The request that takes what the session sends.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Visitor {
    number: u64,
    kind: Downlink,
}

/// What carries a session's messages to its client at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fallback) enum Downlink {
    Poll,
    Stream,
}

/// What a visitor finds.
#[derive(Debug)]
pub(in crate::fallback) enum Found {
    /// Messages, the first of this number.
    Messages(u64, Vec<Message>),
    /// The session has been closed, and there is nothing more. `None`: without a word.
    Closed(Option<CloseFrame>),
    /// Nothing yet.
    Nothing,
    /// Nothing, and there will be nothing before the client has acknowledged some of what it has been given.
    Full,
    /// Another request has taken this one's place.
    Displaced,
}

/// Why a cursor cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fallback) enum BadCursor {
    /// There is no such message yet.
    Ahead,
    /// What follows it has been acknowledged before, and is gone.
    Behind,
}

/// What has become of a POST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fallback) enum Post {
    Taken,
    /// It had been taken before.
    Repeated,
    /// One before it is missing.
    OutOfOrder {
        expected: u64,
    },
    /// The session is behind.
    Full,
    /// The session takes no more.
    Ended,
}

impl Relay {
    pub(in crate::fallback) fn new(bounds: Bounds, clock: Clock, counted: Kept) -> Arc<Self> {
        let seen = clock.coarse();
        Arc::new(Self {
            state: Mutex::new(State {
                up: VecDeque::new(),
                session_reads: None,
                posts: 0,
                down: VecDeque::new(),
                session_writes: None,
                assembly: Assembly::default(),
                kept: VecDeque::new(),
                kept_bytes: 0,
                first: 1,
                given_up: false,
                close: Closing::Open,
                failed: None,
                said_goodbye: false,
                visitor: None,
                visits: 0,
                counted,
                seen,
            }),
            changed: Event::new(),
            room: Event::new(),
            waiting_posts: AtomicUsize::new(0),
            carried: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            ending: Event::new(),
            bounds,
            clock,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears of whatever a poll or a stream may wait for, from now on.
    pub(in crate::fallback) fn listen(&self) -> EventListener {
        self.changed.listen()
    }

    /// Waits in the line of those who post; `None`: it is too long.
    pub(in crate::fallback) fn queue(&self) -> Option<Queued<'_>> {
        let before = self.waiting_posts.fetch_add(1, Ordering::AcqRel);
        let queued = Queued::new(self);
        (before < WAITING_POSTS).then_some(queued)
    }

    /// Takes the one connection that is the session's own; false if it has it already.
    pub(in crate::fallback) fn carry(self: &Arc<Self>) -> Option<Carried> {
        let taken = self.carried.swap(true, Ordering::AcqRel);
        (!taken).then(|| Carried::new(self))
    }

    fn notify(&self) {
        self.changed.notify(usize::MAX);
    }

    /// The client is here.
    pub(in crate::fallback) fn touch(&self) {
        self.lock().seen = self.clock.coarse();
    }

    /// When the client is given up, if it does not come before; `None` while it is here.
    pub(in crate::fallback) fn absent_since(&self) -> Option<Time> {
        let state = self.lock();
        state.visitor.is_none().then_some(state.seen)
    }

    /// The client is given up, if it has not come since then.
    pub(in crate::fallback) fn give_up(&self, absent_since: Time) -> bool {
        let mut state = self.lock();
        let absent = state.visitor.is_none() && state.seen <= absent_since;
        if absent {
            self.fail(&mut state, ErrorKind::TimedOut);
        }
        absent
    }

    /// Memory is short, and this client has much of it.
    pub(in crate::fallback) fn abandon(&self) {
        let mut state = self.lock();
        let close = CloseFrame::new(CloseCode::TRY_AGAIN_LATER, "server is short of memory");
        self.drop_all(&mut state, close);
        self.fail(&mut state, ErrorKind::OutOfMemory);
    }

    /// Nothing that the session has written is kept any more, but what the client is told of its end.
    fn drop_all(&self, state: &mut State, close: CloseFrame) {
        state.first += state.kept.len() as u64;
        state.given_up = true;
        state.kept = VecDeque::new();
        state.kept_bytes = 0;
        state.down = VecDeque::new();
        state.assembly = Assembly::default();
        state.close = Closing::Said(Some(close));
        state.recount();
        self.notify();
    }

    fn fail(&self, state: &mut State, why: ErrorKind) {
        state.failed.get_or_insert(why);
        let wakers = [state.session_reads.take(), state.session_writes.take()];
        wakers.into_iter().flatten().for_each(Waker::wake);
        self.notify();
        self.room.notify(usize::MAX);
    }

    /// What the client's memory costs, as it is counted.
    pub(in crate::fallback) fn counted(&self) -> usize {
        self.lock().counted.own()
    }

    /// The server stops, and a client that is not waiting cannot come any more: its session need not wait for
    /// it, neither for an answer to its goodbye nor for room.
    pub(in crate::fallback) fn answer_for_absent(&self) {
        let mut state = self.lock();
        // What has failed has its end already; and each failure is news to whoever calls this.
        if state.visitor.is_some() || state.failed.is_some() {
            return;
        }
        self.pull(&mut state);
        match &state.close {
            Closing::Said(close) => {
                let close = close.clone();
                self.close(&mut state, close.as_ref());
            }
            // Nobody makes room any more. Taken and thrown away, what follows would count as delivered.
            Closing::Open if self.is_full(&state) => {
                self.fail(&mut state, ErrorKind::ConnectionAborted);
            }
            Closing::Open | Closing::Told(_) => {}
        }
    }

    pub(in crate::fallback) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ready when the session has ended.
    pub(in crate::fallback) async fn ended(&self) {
        loop {
            let ending = self.ending.listen();
            if self.has_ended() {
                return;
            }
            ending.await;
        }
    }

    /// Bytes that are kept for the client.
    pub(in crate::fallback) fn weight(&self) -> usize {
        let state = self.lock();
        state.kept_bytes + state.down.len() + state.assembly.weight()
    }

    /// Takes the place of the request that takes what the session sends. A poll does not take another one's.
    pub(in crate::fallback) fn visit(self: &Arc<Self>, kind: Downlink) -> Option<Visit> {
        let mut state = self.lock();
        if kind == Downlink::Poll
            && state.visitor.is_some_and(|visitor| visitor.kind == Downlink::Poll)
        {
            return None;
        }
        state.visits += 1;
        let visitor = Visitor { number: state.visits, kind };
        state.visitor = Some(visitor);
        state.seen = self.clock.coarse();
        drop(state);
        self.notify();
        Some(Visit::new(self, visitor))
    }

    /// The client has everything up to this number.
    pub(in crate::fallback) fn acknowledge(&self, cursor: u64) -> Result<(), BadCursor> {
        let mut state = self.lock();
        let next = state.first + state.kept.len() as u64;
        if cursor >= next {
            return Err(BadCursor::Ahead);
        }
        let count = match (cursor + 1).checked_sub(state.first) {
            Some(count) => count,
            // What it has not got it does not get any more, and is to hear why.
            None if state.given_up => 0,
            None => return Err(BadCursor::Behind),
        };
        for _ in 0..count {
            let message = state.kept.pop_front();
            state.kept_bytes -= message.map_or(0, |message| message.len());
        }
        state.first += count;
        state.seen = self.clock.coarse();
        state.recount();
        drop(state);
        if count > 0 {
            self.notify();
        }
        Ok(())
    }

    /// The number of the last message that the client has acknowledged.
    pub(in crate::fallback) fn cursor(&self) -> u64 {
        self.lock().first - 1
    }

    /// Gives frames to the session, all of them or none; `number` counts the client's POSTs, if it does.
    pub(in crate::fallback) fn post(&self, number: Option<u64>, frames: &[u8]) -> Post {
        let mut state = self.lock();
        state.seen = self.clock.coarse();
        if let Some(number) = number {
            if number <= state.posts {
                return Post::Repeated;
            }
            if number != state.posts + 1 {
                return Post::OutOfOrder { expected: state.posts + 1 };
            }
        }
        let closing = state.said_goodbye || !matches!(state.close, Closing::Open);
        if closing || state.failed.is_some() || self.has_ended() {
            return Post::Ended;
        }
        if !state.up.is_empty() && state.up.len() + frames.len() > PIPE {
            return Post::Full;
        }
        state.up.extend(frames);
        state.recount();
        state.posts = number.unwrap_or(state.posts);
        let reader = state.session_reads.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
        Post::Taken
    }

    /// The client says goodbye, or answers the session's goodbye.
    pub(in crate::fallback) fn post_close(&self, close: Option<&CloseFrame>) {
        let mut state = self.lock();
        self.close(&mut state, close);
    }

    fn close(&self, state: &mut State, close: Option<&CloseFrame>) {
        // A session that fails has its reason.
        let failed = state.failed.is_some() || self.has_ended();
        if failed || std::mem::replace(&mut state.said_goodbye, true) {
            return;
        }
        let payload = close.map(close_payload).unwrap_or_default();
        let mut frame = Vec::new();
        append_masked(&mut frame, Opcode::Close, &payload);
        state.up.extend(frame);
        state.session_reads.take().into_iter().for_each(Waker::wake);
    }

    /// No more is kept before the client has acknowledged some of it.
    fn is_full(&self, state: &State) -> bool {
        state.kept.len() >= self.bounds.messages || state.kept_bytes >= self.bounds.bytes
    }

    /// Puts together what the session has written, as far as there is room for it.
    fn pull(&self, state: &mut State) {
        let before = state.down.len();
        // It was there before whatever is missing now.
        let ended = self.has_ended();
        while !self.is_full(state) && matches!(state.close, Closing::Open) {
            match state.assembly.next(&mut state.down, self.bounds.message_bytes) {
                Ok(Some(Parcel::Message(message))) => {
                    state.kept_bytes += message.len();
                    state.kept.push_back(message);
                }
                Ok(Some(Parcel::Close(close))) => state.close = Closing::Said(close),
                Ok(None) if ended => {
                    // Nobody says goodbye any more, nor finishes what has begun.
                    state.assembly = Assembly::default();
                    state.close = Closing::Said(None);
                }
                Ok(None) => break,
                Err(TooLong) => {
                    let close = CloseFrame::new(CloseCode::TOO_BIG, TOO_LONG);
                    self.drop_all(state, close);
                    self.fail(state, ErrorKind::FileTooLarge);
                    return;
                }
            }
        }
        if !matches!(state.close, Closing::Open) {
            state.down = VecDeque::new();
        }
        if state.down.len() < before {
            state.session_writes.take().into_iter().for_each(Waker::wake);
        }
        state.recount();
    }
}

impl State {
    /// Something has been put in or taken out. What is empty holds no memory.
    fn recount(&mut self) {
        for buffer in [&mut self.up, &mut self.down] {
            if buffer.is_empty() && buffer.capacity() > KEPT_BUFFER {
                *buffer = VecDeque::new();
            }
        }
        let bytes = self.up.len() + self.down.len() + self.assembly.weight() + self.kept_bytes;
        self.counted.set(self.kept.len(), bytes);
    }
}

/// Appends a whole frame as a client would send it (RFC 6455 section 5.3). Nobody reads it on its way, so the
/// mask may be all zeros.
pub(in crate::fallback) fn append_masked(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let at = out.len();
    crate::ws::Header::new(opcode, payload.len()).append_to(out);
    if let Some(second) = out.get_mut(at + 1) {
        *second |= 0x80;
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::outbox::Terms;

    fn relay() -> (Arc<Relay>, Relayed, Terms) {
        let bounds = crate::outbox::Bounds { messages: 4, bytes: 1000 };
        let terms = Terms::new(bounds, usize::MAX);
        let bounds = Bounds { messages: 4, bytes: 1000, message_bytes: 1000 };
        let relay = Relay::new(bounds, Clock::virtual_at_zero(), terms.kept());
        let session = Relayed::new(&relay);
        (relay, session, terms)
    }

    fn write(session: &Relayed, bytes: &[u8]) -> usize {
        let cx = Context::from_waker(Waker::noop());
        match session.poll_write(&cx, &[IoSlice::new(bytes)]) {
            Poll::Ready(Ok(count)) => count,
            Poll::Ready(Err(error)) => panic!("{error}"),
            Poll::Pending => 0,
        }
    }

    #[test]
    fn a_session_that_ends_inside_of_a_frame_has_ended() {
        for rest in [&[0x81][..], &[0x81, 126, 1], &[0x81, 5, b'h', b'a'], &[0x01, 1, b'x']] {
            let (relay, session, _) = relay();
            assert_eq!(write(&session, &[0x81, 2, b'h', b'i']), 4);
            assert_eq!(write(&session, rest), rest.len());
            drop(session);
            let visit = relay.visit(Downlink::Stream).unwrap();
            assert!(
                matches!(visit.look(0, 10, 1000), Found::Messages(1, found) if found.len() == 1)
            );
            assert!(matches!(visit.look(1, 10, 1000), Found::Closed(None)), "{rest:?}");
        }
    }

    #[test]
    fn what_is_kept_is_counted_until_it_is_acknowledged_and_holds_no_memory_then() {
        let (relay, session, terms) = relay();
        let mut frame = vec![0x82, 127];
        frame.extend_from_slice(&20_000_u64.to_be_bytes());
        frame.extend_from_slice(&[7; 20_000]);
        // One is kept, which is more than may be, and three wait in the pipe.
        for _ in 0..4 {
            assert_eq!(write(&session, &frame), frame.len());
            let visit = relay.visit(Downlink::Stream).unwrap();
            let _ = visit.look(0, 1, 1);
        }
        assert!(terms.used() > 80_000, "{}", terms.used());
        loop {
            let visit = relay.visit(Downlink::Stream).unwrap();
            let Found::Messages(first, _) = visit.look(relay.cursor(), 1, 1) else { break };
            relay.acknowledge(first).unwrap();
        }
        assert_eq!((terms.used(), relay.cursor()), (0, 4));
        let state = relay.lock();
        assert!(state.down.capacity() <= KEPT_BUFFER && state.up.capacity() <= KEPT_BUFFER);
    }
}
