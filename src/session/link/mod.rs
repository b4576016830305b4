//! The machine between the transport and the callbacks: reads, writes, timers, the closing
//! handshake. Everything a session does without its application is here, as one poll function.

mod ending;
mod flushing;
mod framed;
mod metering;
mod pacing;
mod reading;
mod timing;

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::handle::Session;
use super::incoming::Incoming;
use super::timers::Timers;
use crate::config::Config;
use crate::executor::{Size, Time, Worker};
use crate::hub::Member;
use crate::message::Message;
use crate::outbox::{Batch, Buffered, Parked, RAW_BATCH, Sendable};
use crate::protocol::Protocol;
use crate::shutdown;
use crate::transport::Transport;
use crate::ws::{Codec, Contexts};

use ending::Ending;
pub(crate) use ending::LAST_WORD;
use pacing::Pace;
use reading::Streaming;

/// Frames handled before the session lets the others of its worker have their turn. A batch of
/// this many 16-byte messages costs about 20 µs, which is what a peer with one message in flight
/// may wait for a flooding neighbour; twice as many was no faster.
const FRAMES_PER_TURN: u16 = 256;

/// Reads before the session lets the others have their turn, whatever they bring: large messages,
/// pings, or data that a closing session throws away.
const READS_PER_TURN: u8 = 16;

/// Bytes that may go through the decompressor, and as many through the compressor, before the session
/// lets the others have their turn: a batch that is to be compressed. It is looked at between two messages
/// and between two batches, so the last of them may go beyond it.
const DEFLATE_BYTES_PER_TURN: u32 = RAW_BATCH as u32;

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
    held: Option<Box<Message>>,
    /// Messages are handed on in parts.
    streaming: Option<Box<Streaming>>,
    ending: Option<Box<Ending>>,
    /// Only with a rate.
    pace: Option<Box<Pace>>,
    timers: Timers,
    stop_seen: shutdown::Phase,
    stage: Stage,
    read_size: Size,
    ping_due: bool,
    cut: bool,
    /// The task has been polled anew since the link last said that it waits.
    woken: bool,
    /// A timer may be over; looked at after what had arrived before has been read.
    timers_due: bool,
    /// The application is to hear that nothing waits for the peer any more.
    drained: bool,
    /// The batch is off the outbox's books, and the outbox wakes us for what is put in.
    prepaid: bool,
    /// It is measured how long the handler takes for the message that it has been given.
    timed: bool,
    frames_left: u16,
    reads_left: u8,
    inflate_left: u32,
    deflate_left: u32,
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

impl Link {
    /// A link over a transport on which the 101 has been sent, or that needs none; `input` is what came after
    /// the request.
    pub(crate) fn new(
        worker: &Rc<Worker>,
        transport: Transport,
        input: Vec<u8>,
        member: &Arc<Member>,
    ) -> Self {
        let hub = &member.hub;
        member.counters.bytes_in.add(input.len());
        member.outbox.driven_by(worker.current());
        let mut timers = Timers::new(worker, &hub.config.timeouts);
        let codec = match member.protocol() {
            Protocol::WebSocket => Codec::default(),
            Protocol::Frames => {
                timers.without_pings();
                Codec::prefixed()
            }
            #[cfg(feature = "fallback")]
            Protocol::Http => {
                timers.without_pings();
                Codec::default()
            }
        };
        Self {
            transport: Some(transport),
            worker: Rc::clone(worker),
            session: Session::new(Arc::clone(member)),
            codec,
            contexts: None,
            input,
            at: 0,
            batch: None,
            written: Buffered::default(),
            pongs: None,
            held: None,
            streaming: None,
            ending: None,
            pace: None,
            timers,
            stop_seen: shutdown::Phase::Running,
            stage: Stage::Open,
            read_size: Size::default(),
            ping_due: false,
            cut: false,
            woken: true,
            timers_due: false,
            drained: false,
            prepaid: false,
            timed: false,
            frames_left: FRAMES_PER_TURN,
            reads_left: READS_PER_TURN,
            inflate_left: DEFLATE_BYTES_PER_TURN,
            deflate_left: DEFLATE_BYTES_PER_TURN,
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
        self.streaming = Some(Box::default());
    }

    pub(super) fn streams(&self) -> bool {
        self.streaming.is_some()
    }

    fn config(&self) -> &Config {
        &self.session.member().hub.config
    }

    /// The next message; `None` when the session has ended.
    ///
    /// Cancel safe: what has been read stays in the link.
    #[inline]
    pub(super) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        // In the middle of a batch there is nothing to look at but the next frame.
        let may_parse = self.pace.as_ref().is_none_or(|pace| !pace.holds_messages());
        let nothing_else = !self.woken && !self.timed && self.held.is_none();
        if nothing_else && self.stage == Stage::Open && may_parse {
            if let Some(message) = self.parse(true) {
                return Poll::Ready(Some(message));
            }
        }
        self.poll(cx, true)
    }

    /// The same if messages are handed on in parts: the next one that begins.
    pub(super) fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        // No message is whole: it is ready if one has begun, or the session has ended.
        ready!(self.poll(cx, true));
        Poll::Ready(self.streaming.as_mut().and_then(|streaming| streaming.begun.take()))
    }

    /// Whether it was not a message that was ready, but this: there had been too much for the peer, and now
    /// nothing waits for it any more.
    pub(super) fn take_drained(&mut self) -> bool {
        std::mem::take(&mut self.drained)
    }

    /// Does everything but deliver messages, while a callback is pending; ready when the session
    /// has ended.
    pub(super) fn poll_background(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll(cx, false).map(drop)
    }

    #[inline(never)]
    fn poll(&mut self, cx: &mut Context<'_>, deliver: bool) -> Poll<Option<Message>> {
        if deliver && self.timed {
            self.end_timing();
        }
        if self.woken {
            self.wake();
        }
        loop {
            if self.stage == Stage::Done {
                return Poll::Ready(None);
            }
            if deliver && self.stage == Stage::Closing {
                self.answered();
            }
            if self.frames_left == 0 || self.reads_left == 0 {
                return self.take_turns(cx);
            }
            // Before the next message: there may be no end of those.
            if deliver && self.drained {
                if self.stage == Stage::Open {
                    return Poll::Ready(None);
                }
                self.drained = false;
            }
            if deliver {
                if let Some(message) = self.held.take() {
                    self.delivers();
                    return Poll::Ready(Some(*message));
                }
            }
            if self.pace.is_none() || self.may_parse() {
                if let Some(message) = self.parse(deliver) {
                    return Poll::Ready(Some(message));
                }
            }
            if deliver && self.has_begun() {
                return Poll::Ready(None);
            }
            if self.must_pong() {
                self.flush(cx);
                continue;
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
        self.release();
        if self.pace.is_some() {
            self.begin_metering();
        }
        self.heed_stop();
        self.timers_due = self.timers.is_due(self.worker.now());
    }

    /// Sends what there is, and comes back when the others have had their turn.
    #[cold]
    fn take_turns(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
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
        self.watch_writer();
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
        self.inflate_left = DEFLATE_BYTES_PER_TURN;
        self.deflate_left = DEFLATE_BYTES_PER_TURN;
        if self.timers.has_moved() {
            let hub = &self.session.member().hub;
            let resumes = self.pace.as_ref().map_or(Time::NEVER, |pace| pace.resumes());
            self.timers.arm(&hub.config.timeouts, hub.shutdown.deadline().min(resumes));
        }
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
        if let Some(streaming) = &self.streaming {
            streaming.await_room(cx.waker());
        }
        // It has begun to close after its rate was asked.
        if self.stage != Stage::Open && self.release() {
            return false;
        }
        if self.pace.is_some() {
            self.end_metering();
        }
        let member = self.session.member();
        let outbox = &member.outbox;
        if self.prepaid && self.stage == Stage::Open && outbox.is_parked() {
            self.begin_turn();
            return true;
        }
        let written = std::mem::take(&mut self.written);
        let closing = !matches!(self.stage, Stage::Open | Stage::Closing);
        let sendable = if self.batch.is_some() || closing {
            Sendable::Nothing
        } else if self.pace.as_ref().is_some_and(|pace| pace.holds_writing()) {
            Sendable::Control
        } else {
            Sendable::Everything
        };
        match outbox.park(written, &member.hub.terms, cx.waker(), sendable) {
            Parked::No => return self.heed_request(),
            Parked::Drained => {
                self.drained = self.stage == Stage::Open;
                return false;
            }
            Parked::Yes => self.timers.nobody_behind_writer(),
            Parked::BehindWriter { progress } => {
                self.timers.behind_writer(self.worker.now(), progress);
            }
        }
        self.begin_turn();
        true
    }
}
