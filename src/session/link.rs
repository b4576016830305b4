//! The machine between the transport and the callbacks: reads, writes, timers, the closing
//! handshake. Everything a session does without its application is here, as one poll function.

use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::closed::{Cause, Closed, Phase, Side, Timer};
use super::handle::Session;
use super::incoming::{Incoming, Inlet};
use super::timers::{Expired, Timers};
use crate::config::Config;
use crate::executor::{Size, Time, Worker};
use crate::hub::Member;
use crate::message::{CloseCode, Message, Text};
use crate::outbox::{Batch, Buffered, MAX_SLICES, Request};
use crate::shutdown;
use crate::transport::Transport;
use crate::ws::{
    Bounds, CloseFrame, Codec, Contexts, Event, Header, Opcode, Part, Violation, close_payload,
    deflate,
};

/// Frames handled before the session lets the others of its worker have their turn. A batch of
/// this many 16-byte messages costs about 20 µs, which is what a peer with one message in flight
/// may wait for a flooding neighbour; twice as many was no faster.
const FRAMES_PER_TURN: u16 = 256;

/// Reads before the session lets the others have their turn, whatever they bring: large messages,
/// pings, or data that a closing session throws away.
const READS_PER_TURN: u8 = 16;

/// Batches sent before the session lets the others have their turn: 2 MiB, twice what fits into the
/// default outbox.
const BATCHES_PER_TURN: u8 = 8;

/// What a callback has in any case, even when the server waits for nothing else any more: the
/// time to write a line into a file.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(1);

/// Pongs that may wait to be sent, in bytes. Pings are answered one by one while their peer reads;
/// otherwise the answer to the latest is enough (RFC 6455 section 5.5.3).
const PONG_BYTES: usize = 2048;

/// One session's connection. Owned by its driver, polled by one task.
pub(crate) struct Link {
    /// Given back to the system as soon as the session has ended.
    transport: Option<Transport>,
    worker: Rc<Worker>,
    session: Session,
    codec: Codec,
    /// Only with context takeover.
    contexts: Option<Box<Contexts>>,
    /// What has been read and not yet been parsed, from `at` on. Empty and without memory while
    /// the session waits, unless a handler is behind.
    input: Vec<u8>,
    at: usize,
    /// What is being sent. An idle session has none.
    batch: Option<Box<Batch>>,
    /// What the kernel has taken and the outbox does not know yet.
    written: Buffered,
    /// The answers to the latest pings, encoded.
    #[expect(clippy::box_collection, reason = "an idle session has room for a pointer only")]
    pongs: Option<Box<Vec<u8>>>,
    /// The one message that may be read ahead while the handler works.
    held: Option<Box<Arrived>>,
    /// Where the parts of the message go that is arriving, if messages are streamed.
    inlet: Option<Rc<Inlet>>,
    ending: Option<Box<Ending>>,
    timers: Timers,
    stop_seen: shutdown::Phase,
    stage: Stage,
    read_size: Size,
    ping_due: bool,
    cut: bool,
    /// Messages are handed on in parts.
    streamed: bool,
    /// The task has been polled anew since the link last said that it waits.
    woken: bool,
    /// A timer may be over; looked at after what had arrived before has been read.
    timers_due: bool,
    /// The batch is off the outbox's books, and the outbox wakes us for what is put in.
    prepaid: bool,
    frames_left: u16,
    reads_left: u8,
}

/// What the peer has sent.
pub(super) enum Arrived {
    Message(Message),
    /// Of which not all has arrived.
    Stream(Incoming),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// A close frame is to be sent when everything before it has left.
    Closing,
    /// It is in the batch.
    ClosingBatch,
    /// It has been sent.
    CloseSent,
    /// The writing side is shut down; input is thrown away until the peer closes too, because
    /// closing a socket with unread input would destroy the close frame on its way.
    Lingering,
    Done,
}

/// How the session ends: decided once.
struct Ending {
    by: Side,
    cause: Cause,
    code: Option<CloseCode>,
    reason: Text,
    /// What our close frame says.
    farewell: Option<CloseFrame>,
    then: Then,
    /// The peer's close frame has been received.
    peer_closed: bool,
    timer: Option<Timer>,
    clean: bool,
    /// Known when the session has ended.
    phase: Option<Phase>,
    at: Time,
    undelivered: Buffered,
}

/// What follows when our close frame has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The peer's close frame.
    AwaitPeer,
    /// Nothing.
    Finish,
    /// The end, also if the frame could not be sent at once.
    FinishAnyway,
    /// The end of the peer's stream.
    Linger,
}

impl Link {
    /// A link over a transport on which the 101 has been sent; `input` is what came after the
    /// request.
    pub(crate) fn new(
        worker: &Rc<Worker>,
        transport: Transport,
        input: Vec<u8>,
        member: &Arc<Member>,
    ) -> Self {
        let hub = &member.hub;
        Self {
            transport: Some(transport),
            worker: Rc::clone(worker),
            session: Session::new(Arc::clone(member)),
            codec: Codec::default(),
            contexts: None,
            input,
            at: 0,
            batch: None,
            written: Buffered::default(),
            pongs: None,
            held: None,
            inlet: None,
            ending: None,
            timers: Timers::new(worker, &hub.config.timeouts),
            stop_seen: shutdown::Phase::Running,
            stage: Stage::Open,
            read_size: Size::default(),
            ping_due: false,
            cut: false,
            streamed: false,
            woken: true,
            timers_due: false,
            prepaid: false,
            frames_left: FRAMES_PER_TURN,
            reads_left: READS_PER_TURN,
        }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    /// From now on messages are handed on in parts.
    pub(super) fn stream_messages(&mut self) {
        self.streamed = true;
    }

    fn config(&self) -> &Config {
        &self.session.member().hub.config
    }

    /// The next message; `None` when the session has ended.
    ///
    /// Cancel safe: what has been read stays in the link.
    #[inline]
    pub(super) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arrived>> {
        // In the middle of a batch there is nothing to look at but the next frame.
        if !self.woken && self.stage == Stage::Open && self.held.is_none() {
            if let Some(arrived) = self.parse(true) {
                return Poll::Ready(Some(arrived));
            }
        }
        self.poll(cx, true)
    }

    /// Does everything but deliver messages, while a callback is pending; ready when the session
    /// has ended.
    pub(super) fn poll_background(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll(cx, false).map(drop)
    }

    #[inline(never)]
    fn poll(&mut self, cx: &mut Context<'_>, deliver: bool) -> Poll<Option<Arrived>> {
        if self.woken {
            self.wake();
        }
        loop {
            if self.stage == Stage::Done {
                return Poll::Ready(None);
            }
            if self.frames_left == 0 || self.reads_left == 0 {
                return self.take_turns(cx);
            }
            if deliver {
                if let Some(arrived) = self.held.take() {
                    return Poll::Ready(Some(*arrived));
                }
            }
            if let Some(arrived) = self.parse(deliver) {
                return Poll::Ready(Some(arrived));
            }
            let listened = self.is_listening();
            if self.frames_left == 0 || (listened && self.fill(cx)) {
                continue;
            }
            // Everything that has arrived has been handled: what the callbacks have queued
            // meanwhile leaves in one call.
            self.flush(cx);
            // A request to close has been found: now the peer's answer matters, however far the
            // handler is behind.
            if !listened && self.is_listening() {
                continue;
            }
            // Only now: whatever kept the worker from looking is not the peer's fault.
            if std::mem::take(&mut self.timers_due) {
                self.heed_timers();
                continue;
            }
            if self.stage != Stage::Done && self.reads_left > 0 && self.park(cx) {
                return Poll::Pending;
            }
        }
    }

    /// What has to be looked at once in a turn, and not for every message of it.
    fn wake(&mut self) {
        self.woken = false;
        self.prepaid = false;
        self.session.member().outbox.awake();
        self.heed_stop();
        self.timers_due = self.timers.is_due(self.worker.now());
    }

    /// Sends what there is, and comes back when the others have had their turn.
    #[cold]
    fn take_turns(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arrived>> {
        self.flush(cx);
        if std::mem::take(&mut self.timers_due) {
            self.heed_timers();
            self.flush(cx);
        }
        if self.batch.is_some() {
            self.heed_request();
        }
        if self.stage == Stage::Done {
            return Poll::Ready(None);
        }
        self.begin_turn();
        self.worker.yield_turn();
        Poll::Pending
    }

    /// Before waiting for anything: a fresh budget for the next turn, and the next deadline.
    #[inline]
    fn begin_turn(&mut self) {
        self.woken = true;
        self.frames_left = FRAMES_PER_TURN;
        self.reads_left = READS_PER_TURN;
        if self.timers.has_moved() {
            let hub = &self.session.member().hub;
            self.timers.arm(&hub.config.timeouts, hub.shutdown.deadline());
        }
    }

    /// Parses until there is a message or no input.
    #[inline]
    fn parse(&mut self, deliver: bool) -> Option<Arrived> {
        while self.at < self.input.len() && self.is_listening() && self.frames_left > 0 {
            if matches!(self.stage, Stage::Lingering | Stage::Done) {
                self.at = self.input.len();
                return None;
            }
            let limits = &self.session.member().hub.config.limits;
            let bounds = Bounds {
                message_bytes: if self.streamed {
                    limits.stream_bytes
                } else {
                    limits.message_bytes
                },
                fragments: limits.fragments,
                deflate: self.session.member().deflate,
                streamed: self.streamed,
            };
            let mut rest = &mut self.input[self.at..];
            let before = rest.len();
            let event = self.codec.next(&mut rest, &bounds, &mut self.contexts);
            self.at += before - rest.len();
            self.frames_left -= 1;
            match event {
                Ok(None) => {}
                Ok(Some(Event::Message(message))) => {
                    if self.stage != Stage::Open {
                        continue;
                    }
                    self.session.member().counters.messages_in.add(1);
                    self.timers.message(self.worker.now());
                    if deliver {
                        return Some(Arrived::Message(message));
                    }
                    self.held = Some(Box::new(Arrived::Message(message)));
                }
                Ok(Some(Event::Part(part))) => {
                    if self.stage != Stage::Open {
                        continue;
                    }
                    if let Some(begun) = self.part(part) {
                        if deliver {
                            return Some(begun);
                        }
                        self.held = Some(Box::new(begun));
                    }
                }
                Ok(Some(control)) => self.control(control),
                Err(violation) => self.violation(violation),
            }
        }
        None
    }

    /// One message is read ahead while the handler works, and then the peer has to wait. When the
    /// session is closing, only its close frame matters.
    #[inline]
    fn is_listening(&self) -> bool {
        let has_room = self.inlet.as_ref().is_none_or(|inlet| inlet.has_room());
        (self.held.is_none() && has_room) || self.stage != Stage::Open
    }

    /// A part of a message. Returns the message if it has just begun.
    #[cold]
    fn part(&mut self, part: Part) -> Option<Arrived> {
        let begun = part.first.map(|kind| {
            let inlet = self.inlet.insert(Rc::default());
            Arrived::Stream(Incoming::new(Rc::clone(inlet), kind))
        });
        self.timers.message(self.worker.now());
        if let Some(inlet) = &self.inlet {
            inlet.push(part.bytes);
            if part.last {
                inlet.finish();
                self.inlet = None;
                self.session.member().counters.messages_in.add(1);
            }
        }
        begun
    }

    #[cold]
    fn control(&mut self, event: Event) {
        match event {
            // Messages have been handled where they are parsed.
            Event::Message(_) | Event::Part(_) => {}
            Event::Ping(payload) => {
                let pongs = self.pongs.get_or_insert_default();
                let header = Header::new(Opcode::Pong, payload.len());
                let full = pongs.len() + Header::MAX + payload.len() > PONG_BYTES;
                if full || self.batch.is_some() {
                    pongs.clear();
                }
                header.append_to(pongs);
                pongs.extend_from_slice(&payload);
            }
            Event::Pong(payload) => {
                if let Some(rtt) = self.timers.pong(&payload, &self.worker) {
                    self.session.member().counters.measured(rtt);
                }
            }
            Event::Close(close) => self.peer_closes(close),
        }
    }

    /// Reads once. Returns whether that changed anything.
    fn fill(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(transport) = &mut self.transport else {
            return false;
        };
        if transport.poll_readable(cx).is_pending() {
            return false;
        }
        debug_assert_eq!(self.at, self.input.len());
        self.at = 0;
        self.input.clear();
        if self.input.capacity() != self.read_size.bytes() {
            let pool = self.worker.pool();
            pool.give(std::mem::replace(&mut self.input, pool.take(self.read_size)));
        }
        self.reads_left -= 1;
        match transport.poll_read(cx, &mut self.input) {
            Poll::Pending => false,
            Poll::Ready(Ok(0)) => {
                self.end_now(Side::Peer, Cause::PeerVanished, None);
                true
            }
            Poll::Ready(Ok(received)) => {
                let now = self.worker.now();
                self.read_size = self.read_size.after(received);
                self.timers.heard(now);
                let counters = &self.session.member().counters;
                counters.bytes_in.add(received);
                counters.touch(now);
                true
            }
            Poll::Ready(Err(error)) => {
                self.failed(&error);
                true
            }
        }
    }

    /// Sends what is queued, as far as the peer takes it.
    fn flush(&mut self, cx: &mut Context<'_>) {
        let mut batches = 0;
        loop {
            batches += 1;
            if batches > BATCHES_PER_TURN {
                // Somebody fills the outbox as fast as the peer empties it.
                self.reads_left = 0;
                return;
            }
            let mut last = false;
            if self.batch.is_none() {
                last = self.refill(cx);
            }
            let Some(batch) = &mut self.batch else {
                return;
            };
            let Some(transport) = &mut self.transport else {
                return;
            };
            let mut written = 0;
            let polled = write(cx, batch, transport, &mut written);
            if written > 0 {
                let counters = &self.session.member().counters;
                counters.bytes_out.add(written);
                counters.touch(self.worker.now());
            }
            match polled {
                Poll::Ready(Ok(())) => {
                    self.sent(cx);
                    if last || !matches!(self.stage, Stage::Open | Stage::Closing) {
                        return;
                    }
                }
                Poll::Ready(Err(error)) => return self.failed(&error),
                Poll::Pending => {
                    self.unpay();
                    self.batch = self.batch.take().map(Batch::shrink);
                    self.timers.stalled(self.worker.now(), written > 0);
                    if self.ending.as_ref().is_some_and(|e| e.then == Then::FinishAnyway) {
                        self.finish();
                    }
                    return;
                }
            }
        }
    }

    /// Takes the next batch: the control lane first, then messages, then the close frame. Returns
    /// whether that was all there is.
    #[inline]
    fn refill(&mut self, cx: &mut Context<'_>) -> bool {
        self.prepaid = false;
        if self.stage == Stage::Open && self.pongs.is_none() && !self.ping_due {
            let outbox = &self.session.member().outbox;
            if let Some(batch) = outbox.take_and_park(self.written, cx.waker()) {
                self.written = Buffered::default();
                self.prepaid = true;
                self.batch = batch;
                self.deflate();
                return true;
            }
        }
        self.refill_slowly()
    }

    fn refill_slowly(&mut self) -> bool {
        if !matches!(self.stage, Stage::Open | Stage::Closing) {
            return true;
        }
        let written = std::mem::take(&mut self.written);
        let mut taken = self.session.member().outbox.take(written);
        let app_ping = taken.ping();
        if self.pongs.is_some() || self.ping_due || app_ping.is_some() {
            let mut control = Batch::take();
            if let Some(pongs) = self.pongs.take() {
                control.push_frames(&pongs);
            }
            if std::mem::take(&mut self.ping_due) {
                let payload = self.timers.ping(self.worker.clock().precise());
                control.push_control(Opcode::Ping, &payload);
            }
            if let Some(payload) = app_ping {
                control.push_control(Opcode::Ping, &payload);
            }
            taken.batch = Some(control.before(taken.batch.take()));
        }
        if let Some(request) = taken.request() {
            self.requested(request);
            if self.stage == Stage::Done {
                return true;
            }
        }
        if taken.last && self.stage == Stage::Closing {
            let farewell = self.ending.as_mut().and_then(|ending| ending.farewell.take());
            let payload = farewell.as_ref().map(close_payload).unwrap_or_default();
            let batch = taken.batch.get_or_insert_with(Batch::take);
            batch.push_control(Opcode::Close, &payload);
            self.stage = Stage::ClosingBatch;
        }
        self.batch = taken.batch;
        self.deflate();
        taken.last
    }

    /// Compresses what is to be compressed of the batch.
    #[inline]
    fn deflate(&mut self) {
        if self.batch.as_ref().is_some_and(|batch| batch.is_raw()) {
            self.deflate_batch();
        }
    }

    #[cold]
    fn deflate_batch(&mut self) {
        let member = self.session.member();
        let (Some(batch), Some(agreement)) = (self.batch.take(), member.deflate) else {
            return;
        };
        let level = member.hub.config.deflate_level();
        let contexts = &mut self.contexts;
        let batch =
            batch.deflated(|payload, out| deflate(payload, out, agreement, level, contexts));
        self.batch = Some(batch);
    }

    /// The kernel has the whole batch.
    #[inline]
    fn sent(&mut self, cx: &mut Context<'_>) {
        if let Some(batch) = self.batch.take() {
            let carried = batch.carried();
            if !self.prepaid {
                self.written.messages += carried.messages;
                self.written.bytes += carried.bytes;
            }
            self.session.member().counters.messages_out.add(carried.messages);
            batch.give();
        }
        self.timers.flushed(&self.worker);
        if self.stage == Stage::ClosingBatch {
            self.close_sent(cx);
        }
    }

    /// The kernel has our close frame.
    #[cold]
    fn close_sent(&mut self, cx: &mut Context<'_>) {
        self.stage = Stage::CloseSent;
        let Some(ending) = &mut self.ending else {
            return;
        };
        ending.clean = ending.peer_closed;
        match ending.then {
            Then::AwaitPeer if !ending.peer_closed => {}
            Then::FinishAnyway => self.finish(),
            Then::AwaitPeer | Then::Finish => {
                // With input left unread, closing would reset the connection.
                let unread = match &mut self.transport {
                    Some(transport) => transport.poll_readable(cx).is_ready(),
                    None => false,
                };
                if unread { self.linger() } else { self.finish() }
            }
            Then::Linger => self.linger(),
        }
    }

    /// The batch could not be sent whole: it counts as waiting again.
    #[cold]
    fn unpay(&mut self) {
        if std::mem::take(&mut self.prepaid) {
            if let Some(batch) = &self.batch {
                self.session.member().outbox.unsent(batch.carried());
            }
        }
    }

    #[cold]
    fn linger(&mut self) {
        if let Some(transport) = &mut self.transport {
            transport.close_write();
        }
        self.stage = Stage::Lingering;
    }

    /// Goes to sleep; false if there is something to do after all.
    fn park(&mut self, cx: &mut Context<'_>) -> bool {
        if self.at == self.input.len() {
            self.at = 0;
            self.worker.pool().give(std::mem::take(&mut self.input));
        } else if self.input.len() - self.at < self.input.capacity() / 2 {
            // A handler is behind: keep what is left, but not the worker's buffer.
            let rest = self.input[self.at..].to_vec();
            self.at = 0;
            self.worker.pool().give(std::mem::replace(&mut self.input, rest));
        }
        let outbox = &self.session.member().outbox;
        if self.prepaid && self.stage == Stage::Open && outbox.is_parked() {
            self.begin_turn();
            return true;
        }
        let stalled = self.batch.is_some();
        let written = std::mem::take(&mut self.written);
        let closing = !matches!(self.stage, Stage::Open | Stage::Closing);
        if !outbox.park(written, cx.waker(), stalled || closing) {
            return self.heed_request();
        }
        self.begin_turn();
        true
    }

    /// A request has come while nothing can be written: a close must wait its turn, an abort must
    /// not. Returns whether the session can go to sleep.
    #[cold]
    fn heed_request(&mut self) -> bool {
        if self.batch.is_none() && matches!(self.stage, Stage::Open | Stage::Closing) {
            return false;
        }
        let request = self.session.member().outbox.take_request();
        if let Some(request) = request {
            self.requested(request);
        }
        false
    }

    #[cold]
    fn requested(&mut self, request: Request) {
        let close = match request {
            Request::Abort => return self.end_now(Side::Server, Cause::Aborted, None),
            Request::Close(close) => close,
            Request::Unfinished => CloseFrame::new(CloseCode::INTERNAL, "message not finished"),
        };
        self.end(Side::Server, Cause::Requested, Some(close), Then::AwaitPeer);
    }

    /// The server's stop is raced with everything else here, and never with a callback. The worker
    /// hears of it and wakes all its sessions.
    #[inline]
    fn heed_stop(&mut self) {
        let phase = self.session.member().hub.shutdown.phase();
        if phase != self.stop_seen {
            self.stop_seen = phase;
            self.stop(phase);
        }
    }

    #[cold]
    fn stop(&mut self, phase: shutdown::Phase) {
        self.timers.moved();
        if phase == shutdown::Phase::Cutting {
            self.cut();
        } else {
            let close = CloseFrame::new(CloseCode::GOING_AWAY, "server stops");
            self.end(Side::Server, Cause::Stopping, Some(close), Then::AwaitPeer);
        }
    }

    #[cold]
    fn heed_timers(&mut self) {
        if self.stage == Stage::Done {
            return;
        }
        let now = self.worker.now();
        let hub = Arc::clone(&self.session.member().hub);
        if !self.is_listening() {
            self.timers.not_listening(now);
        }
        if now >= hub.shutdown.deadline() {
            return self.cut();
        }
        let timer = match self.timers.expired(now, &hub.config.timeouts) {
            None => return,
            Some(Expired::SendPing) => {
                self.ping_due = true;
                return;
            }
            Some(Expired::Timer(timer)) => timer,
        };
        let going_away = |reason| Some(CloseFrame::new(CloseCode::GOING_AWAY, reason));
        match timer {
            Timer::Pong => {
                let close = going_away("no answer to ping");
                self.end(Side::Server, Cause::PongTimeout, close, Then::FinishAnyway);
                // What is queued would only be in the way of the last word.
                self.drop_queue();
            }
            Timer::Idle => {
                self.end(Side::Server, Cause::IdleTimeout, going_away("idle"), Then::AwaitPeer);
            }
            Timer::Lifetime => {
                let close = going_away("lifetime reached");
                self.end(Side::Server, Cause::LifetimeReached, close, Then::AwaitPeer);
            }
            Timer::WriteStall => {
                return self.end_now(Side::Server, Cause::WriteStalled, Some(timer));
            }
            // The cause is already known.
            Timer::Close | Timer::Stop => {
                return self.end_now(Side::Server, Cause::Requested, Some(timer));
            }
        }
        if let Some(ending) = &mut self.ending {
            ending.timer.get_or_insert(timer);
        }
    }

    /// Begins the end, for the first reason only.
    #[cold]
    fn end(&mut self, by: Side, cause: Cause, farewell: Option<CloseFrame>, then: Then) {
        if self.ending.is_some() {
            return;
        }
        // Whoever asked before, and has not been heard yet, was first.
        let requested = self.session.member().outbox.take_request();
        let (by, cause, farewell, then) = match requested {
            Some(Request::Close(close)) if by == Side::Server => {
                (by, Cause::Requested, Some(close), Then::AwaitPeer)
            }
            Some(Request::Abort) => (Side::Server, Cause::Aborted, None, Then::Finish),
            _ => (by, cause, farewell, then),
        };
        self.ending = Some(Box::new(Ending {
            by,
            cause,
            code: farewell.as_ref().map(|close| close.code),
            reason: farewell.as_ref().map(|close| close.reason.clone()).unwrap_or_default(),
            farewell,
            then,
            peer_closed: false,
            timer: None,
            clean: false,
            phase: None,
            at: Time::NEVER,
            undelivered: Buffered::default(),
        }));
        self.stage = Stage::Closing;
        if let Some(inlet) = self.inlet.take() {
            inlet.interrupt();
        }
        self.timers.closing(self.worker.now());
        self.session.member().outbox.close();
        if cause == Cause::Aborted {
            if let Some(ending) = &mut self.ending {
                ending.phase = Some(Phase::Open);
            }
            self.finish();
        }
    }

    /// A callback failed.
    pub(super) fn handler_failed(&mut self, cause: Cause) {
        let close = CloseFrame::new(CloseCode::INTERNAL, "internal error");
        self.end(Side::Server, cause, Some(close), Then::AwaitPeer);
        self.held = None;
    }

    /// A callback has ended the session: no further message reaches it.
    pub(super) fn handler_closes(&mut self, code: CloseCode, reason: &str) {
        let close = CloseFrame::new(code, reason);
        self.end(Side::Server, Cause::Requested, Some(close), Then::AwaitPeer);
        self.held = None;
    }

    #[cold]
    fn peer_closes(&mut self, close: Option<CloseFrame>) {
        // RFC 6455 section 5.5.1: the answer echoes the status code.
        let echo = close.as_ref().map(|close| CloseFrame::new(close.code, ""));
        self.end(Side::Peer, Cause::PeerClosed, echo, Then::Finish);
        let sent = self.stage == Stage::CloseSent;
        if let Some(ending) = &mut self.ending {
            ending.peer_closed = true;
            ending.clean |= sent;
            if ending.cause == Cause::PeerClosed {
                ending.reason = close.map(|close| close.reason).unwrap_or_default();
            }
        }
        // What the callbacks have queued before leaves first: the peer reads until it has our close
        // frame (RFC 6455 section 5.5.1).
        if sent {
            self.finish();
        }
    }

    #[cold]
    fn violation(&mut self, violation: Violation) {
        // Nothing that follows can be understood.
        self.at = self.input.len();
        if self.ending.is_some() {
            // It was to be closed anyway; there will be no better answer than our close frame.
            if let Some(ending) = &mut self.ending {
                ending.then = Then::Linger;
            }
            if self.stage == Stage::CloseSent {
                self.linger();
            }
            return;
        }
        let close = CloseFrame::new(violation.code, violation.reason);
        self.end(Side::Peer, Cause::Violation, Some(close), Then::Linger);
    }

    #[cold]
    fn failed(&mut self, error: &io::Error) {
        let cause = match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Cause::PeerVanished,
            kind => Cause::Io(kind),
        };
        self.end_now(Side::Peer, cause, None);
    }

    /// The server does not wait any longer.
    fn cut(&mut self) {
        if self.stage == Stage::Done {
            return;
        }
        let said = matches!(self.stage, Stage::CloseSent | Stage::Lingering);
        if let Some(ending) = &mut self.ending {
            if ending.cause == Cause::Stopping {
                ending.cause = Cause::Cut;
            }
            if !said && !ending.peer_closed {
                ending.code = None;
                ending.reason = Text::default();
            }
        }
        let deadline = self.session.member().hub.shutdown.deadline();
        let timer = (self.worker.now() >= deadline).then_some(Timer::Stop);
        self.end_now(Side::Server, Cause::Cut, timer);
        self.cut = true;
    }

    fn drop_queue(&mut self) {
        let written = std::mem::take(&mut self.written);
        self.session.member().outbox.clear(written);
    }

    /// Ends the session without a close frame.
    #[cold]
    fn end_now(&mut self, by: Side, cause: Cause, timer: Option<Timer>) {
        let open = self.stage == Stage::Open;
        self.end(by, cause, None, Then::Finish);
        if let Some(ending) = &mut self.ending {
            ending.timer = ending.timer.or(timer);
            if open {
                ending.phase = Some(Phase::Open);
            }
        }
        self.finish();
    }

    /// The session has ended: the socket is closed now, whoever still holds a handle.
    #[cold]
    fn finish(&mut self) {
        if self.stage == Stage::Done {
            return;
        }
        self.stage = Stage::Done;
        self.transport = None;
        self.held = None;
        let pool = self.worker.pool();
        pool.give(std::mem::take(&mut self.input));
        self.at = 0;
        self.unpay();
        self.batch = None;
        let written = std::mem::take(&mut self.written);
        let undelivered = self.session.member().outbox.clear(written);
        let now = self.worker.now();
        if let Some(ending) = &mut self.ending {
            ending.phase.get_or_insert(Phase::Closing);
            ending.at = now;
            ending.undelivered = undelivered;
        }
    }

    /// The record. The link must have ended.
    pub(super) fn closed(&self) -> Closed {
        let created = self.session.member().created;
        let ending = self.ending.as_deref();
        Closed {
            by: ending.map_or(Side::Server, |ending| ending.by),
            cause: ending.map_or(Cause::Cut, |ending| ending.cause),
            phase: ending.and_then(|ending| ending.phase).unwrap_or(Phase::Open),
            code: ending.and_then(|ending| ending.code),
            reason: ending.map(|ending| ending.reason.clone()).unwrap_or_default(),
            clean: ending.is_some_and(|ending| ending.clean),
            timer: ending.and_then(|ending| ending.timer),
            undelivered: ending.map(|ending| ending.undelivered).unwrap_or_default(),
            lived: ending.map(|ending| ending.at.since(created)).unwrap_or_default(),
        }
    }

    /// Until when a callback that began at `started` may go on after the session's end.
    pub(super) fn grace_ends(&self, started: Time) -> Time {
        let shutdown = &self.session.member().hub.shutdown;
        let limit = match shutdown.phase() {
            shutdown::Phase::Cutting => Time::default(),
            _ => shutdown.deadline(),
        };
        let ended = self.ending.as_ref().map_or(Time::NEVER, |ending| ending.at);
        let patience = self.config().timeouts.close;
        (ended.max(started) + patience).min(limit).max(started + LAST_WORD.min(patience))
    }

    /// Wakes the task at `deadline`, when the session's own timers are over.
    pub(super) fn wake_at(&mut self, deadline: Time) {
        self.timers.wake_at(deadline);
    }

    /// Whether the stop deadline ended the session.
    pub(super) fn was_cut(&self) -> bool {
        self.cut
    }
}

/// Hands as much of the batch to the transport as it takes; ready when it took everything. Adds to
/// `written` what was taken, also when it then has to wait.
#[inline]
fn write(
    cx: &mut Context<'_>,
    batch: &mut Batch,
    transport: &mut Transport,
    written: &mut usize,
) -> Poll<io::Result<()>> {
    while !batch.is_empty() {
        let polled = match batch.single() {
            Some(bytes) => transport.poll_write(cx, &[IoSlice::new(bytes)]),
            None => write_vectored(cx, batch, transport),
        };
        match ready!(polled) {
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(taken) => {
                batch.advance(taken);
                *written += taken;
            }
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(()))
}

fn write_vectored(
    cx: &mut Context<'_>,
    batch: &Batch,
    transport: &mut Transport,
) -> Poll<io::Result<usize>> {
    let mut slices = [IoSlice::new(&[]); MAX_SLICES];
    let count = batch.slices(&mut slices);
    transport.poll_write(cx, &slices[..count])
}
