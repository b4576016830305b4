//! What the peer sends.

use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::{Link, Stage};
use crate::message::Message;
use crate::session::incoming::{Incoming, Inlet};
use crate::session::{Cause, Side};
use crate::ws::{Bounds, Event, Header, Opcode, Part, Violation};

/// Pongs that may wait to be sent, in bytes: then they are sent before anything more is looked at. While
/// the peer takes nothing, the answer to its latest ping is enough (RFC 6455 section 5.5.3).
const PONG_BYTES: usize = 2048;

/// What a session has that is given messages in parts.
#[derive(Default)]
pub(super) struct Streaming {
    /// Where the parts of the message go that is arriving.
    pub(super) inlet: Option<Rc<Inlet>>,
    /// A message that the handler has not been given yet.
    pub(super) begun: Option<Incoming>,
}

impl Streaming {
    fn has_room(&self) -> bool {
        self.begun.is_none() && self.inlet.as_ref().is_none_or(|inlet| inlet.has_room())
    }

    /// Whoever takes parts makes room for others; the link is told then, if it has none.
    pub(super) fn await_room(&self, waker: &Waker) {
        if let Some(inlet) = self.inlet.as_ref().filter(|inlet| !inlet.has_room()) {
            inlet.await_room(waker);
        }
    }
}

impl Link {
    /// Parses until there is a message or no input.
    #[inline]
    pub(super) fn parse(&mut self, deliver: bool) -> Option<Message> {
        while self.at < self.input.len() && self.has_place() && self.frames_left > 0 {
            if self.stage != Stage::Open || self.streaming.is_some() {
                if !self.parse_frame() {
                    return None;
                }
                continue;
            }
            let mut rest = &mut self.input[self.at..];
            let before = rest.len();
            let most = self.session.member().hub.config.limits.message_bytes;
            match self.codec.next_message(&mut rest, most) {
                Ok(Some(message)) => {
                    self.at += before - rest.len();
                    self.frames_left -= 1;
                    if self.pace.is_some() && !self.admits(true, message.len(), false) {
                        continue;
                    }
                    if deliver {
                        self.arrived();
                        self.delivers();
                        return Some(message);
                    }
                    self.hold(message);
                }
                Ok(None) => {
                    if !self.parse_frame() {
                        return None;
                    }
                    if deliver {
                        if let Some(message) = self.held.take() {
                            self.delivers();
                            return Some(*message);
                        }
                    }
                }
                Err(violation) => self.violation(violation),
            }
        }
        None
    }

    /// A message is whole.
    #[inline]
    fn arrived(&mut self) {
        self.session.member().counters.messages_in.add(1);
        self.timers.message(self.worker.now());
    }

    #[cold]
    fn hold(&mut self, message: Message) {
        self.arrived();
        self.held = Some(Box::new(message));
    }

    /// Parses what is not simply the next message: one event at most. False if something else has to be
    /// done before the next.
    #[inline(never)]
    pub(super) fn parse_frame(&mut self) -> bool {
        if self.must_pong() {
            return false;
        }
        if matches!(self.stage, Stage::Lingering | Stage::Done) {
            self.at = self.input.len();
            return false;
        }
        let member = self.session.member();
        let limits = &member.hub.config.limits;
        let streamed = self.streaming.is_some();
        let bounds = Bounds {
            message_bytes: if streamed { limits.stream_bytes } else { limits.message_bytes },
            fragments: limits.fragments,
            deflate: member.deflate,
            streamed,
        };
        let mut rest = &mut self.input[self.at..];
        let before = rest.len();
        let event = self.codec.next(&mut rest, &bounds, &mut self.contexts);
        let consumed = before - rest.len();
        self.at += consumed;
        self.frames_left -= 1;
        if bounds.deflate.is_some() {
            self.inflated(consumed, &event);
        }
        match event {
            Ok(None) => {}
            Ok(Some(Event::Message(message))) => {
                if self.stage == Stage::Open && self.admits(true, message.len(), false) {
                    self.hold(message);
                }
            }
            Ok(Some(Event::Part(part))) => {
                let (begins, goes_on) = (part.first.is_some(), !part.last);
                if self.stage == Stage::Open && self.admits(begins, part.bytes.len(), goes_on) {
                    self.part(part);
                }
            }
            Ok(Some(control)) => self.control(control),
            Err(violation) => self.violation(violation),
        }
        true
    }

    /// Counts what may have gone through the decompressor, in and out: of some bytes it makes many, and
    /// of others none.
    fn inflated(&mut self, consumed: usize, event: &Result<Option<Event>, Violation>) {
        let made = match event {
            Ok(Some(Event::Message(message))) => message.len(),
            Ok(Some(Event::Part(part))) => part.bytes.len(),
            _ => 0,
        };
        let work = u32::try_from(consumed.saturating_add(made)).unwrap_or(u32::MAX);
        self.inflate_left = self.inflate_left.saturating_sub(work);
        if self.inflate_left == 0 {
            self.frames_left = 0;
        }
    }

    /// Enough pongs wait, and nothing is in front of them.
    #[inline]
    pub(super) fn must_pong(&self) -> bool {
        self.pongs.as_ref().is_some_and(|pongs| pongs.len() >= PONG_BYTES)
            && self.batch.is_none()
            && matches!(self.stage, Stage::Open | Stage::Closing)
    }

    /// A message has begun, and the handler has not been given it.
    #[inline]
    pub(super) fn has_begun(&self) -> bool {
        self.streaming.as_ref().is_some_and(|streaming| streaming.begun.is_some())
    }

    /// Whether anything from the peer is wanted: there is a place for it, and it does not have to wait for
    /// the inbound rate.
    #[inline]
    pub(super) fn is_listening(&self) -> bool {
        let waits = self.pace.as_ref().is_some_and(|pace| pace.holds_messages());
        self.has_place() && (!waits || self.stage != Stage::Open)
    }

    /// One message is read ahead while the handler works, and then the peer has to wait. When the
    /// session is closing, only its close frame matters.
    #[inline]
    pub(super) fn has_place(&self) -> bool {
        let has_room = self.streaming.as_ref().is_none_or(|streaming| streaming.has_room());
        (self.held.is_none() && has_room) || self.stage != Stage::Open
    }

    /// A part of a message.
    fn part(&mut self, part: Part) {
        self.timers.message(self.worker.now());
        let Some(streaming) = &mut self.streaming else {
            return;
        };
        if let Some(kind) = part.first {
            let inlet = streaming.inlet.insert(Rc::default());
            streaming.begun = Some(Incoming::new(Rc::clone(inlet), kind));
        }
        if let Some(inlet) = &streaming.inlet {
            inlet.push(part.bytes);
            if part.last {
                inlet.finish();
                streaming.inlet = None;
                self.session.member().counters.messages_in.add(1);
            }
        }
    }

    #[cold]
    fn control(&mut self, event: Event) {
        match event {
            // Messages have been handled where they are parsed.
            Event::Message(_) | Event::Part(_) => {}
            // Nothing may follow a close frame.
            Event::Ping(_) if matches!(self.stage, Stage::CloseSent | Stage::ClosingBatch) => {}
            Event::Ping(payload) => {
                let pongs = self.pongs.get_or_insert_default();
                if self.batch.is_some() {
                    pongs.clear();
                }
                Header::new(Opcode::Pong, payload.len()).append_to(pongs);
                pongs.extend_from_slice(&payload);
            }
            Event::Pong(payload) => {
                if let Some(rtt) = self.timers.pong(&payload, &self.worker) {
                    let member = self.session.member();
                    member.counters.measured(rtt);
                    member.hub.ledger.round_trip(rtt);
                }
            }
            Event::Close(close) => self.peer_closes(close),
        }
    }

    /// Reads once. Returns whether that changed anything.
    pub(super) fn fill(&mut self, cx: &mut Context<'_>) -> bool {
        if self.stage != Stage::Open && self.owes_answer() {
            return false;
        }
        let Some(transport) = &mut self.transport else {
            return false;
        };
        if transport.poll_readable(cx).is_pending() {
            return false;
        }
        debug_assert_eq!(self.at, self.input.len());
        self.at = 0;
        self.input.clear();
        if self.pace.is_some() {
            match self.may_read() {
                Some(most) => self.narrow(most),
                // The socket stays readable: the timer brings us back.
                None => return false,
            }
        } else if self.input.capacity() != self.read_size.bytes() {
            self.widen();
        }
        let Some(transport) = &mut self.transport else {
            return false;
        };
        self.reads_left -= 1;
        match transport.poll_read(cx, &mut self.input) {
            Poll::Pending => {
                if transport.take_heard() {
                    self.timers.heard(self.worker.now());
                }
                false
            }
            Poll::Ready(Ok(0)) if self.is_framed() => {
                self.stream_ended();
                true
            }
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
                if self.pace.is_some() {
                    self.has_read(received);
                }
                true
            }
            Poll::Ready(Err(error)) => {
                self.failed(&error);
                true
            }
        }
    }

    /// Borrows a buffer of the right size.
    #[inline]
    fn widen(&mut self) {
        let pool = self.worker.pool();
        pool.give(std::mem::replace(&mut self.input, pool.take(self.read_size)));
    }

    /// The same, but a smaller one if less may be read.
    #[cold]
    fn narrow(&mut self, most: usize) {
        let size = self.read_size.bytes().min(most);
        if size < self.read_size.bytes() {
            self.worker.pool().give(std::mem::replace(&mut self.input, Vec::with_capacity(size)));
        } else if self.input.capacity() != size {
            self.widen();
        }
    }
}
