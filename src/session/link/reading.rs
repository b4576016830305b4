//! What the peer sends.

use std::rc::Rc;
use std::task::{Context, Poll};

use super::{Link, Stage};
use crate::message::Message;
use crate::session::incoming::Incoming;
use crate::session::{Cause, Side};
use crate::ws::{Bounds, Event, Header, Opcode, Part, Violation};

/// Pongs that may wait to be sent, in bytes: then they are sent before anything more is looked at. While
/// the peer takes nothing, the answer to its latest ping is enough (RFC 6455 section 5.5.3).
const PONG_BYTES: usize = 2048;

/// What the peer has sent.
pub(in crate::session) enum Arrived {
    Message(Message),
    /// Of which not all has arrived.
    Stream(Incoming),
}

impl Link {
    /// Parses until there is a message or no input.
    #[inline]
    pub(super) fn parse(&mut self, deliver: bool) -> Option<Arrived> {
        while self.at < self.input.len() && self.is_listening() && self.frames_left > 0 {
            if self.must_pong() {
                return None;
            }
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
            let consumed = before - rest.len();
            self.at += consumed;
            self.frames_left -= 1;
            if bounds.deflate.is_some() {
                self.inflated(consumed, &event);
            }
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

    /// Counts what may have gone through the decompressor, in and out: of some bytes it makes many, and
    /// of others none.
    #[inline(never)]
    fn inflated(&mut self, consumed: usize, event: &Result<Option<Event>, Violation>) {
        let made = match event {
            Ok(Some(Event::Message(message))) => message.len(),
            Ok(Some(Event::Part(part))) => part.bytes.len(),
            _ => 0,
        };
        self.inflate_left = self.inflate_left.saturating_sub(consumed + made);
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

    /// One message is read ahead while the handler works, and then the peer has to wait. When the
    /// session is closing, only its close frame matters.
    #[inline]
    pub(super) fn is_listening(&self) -> bool {
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
                if self.batch.is_some() {
                    pongs.clear();
                }
                Header::new(Opcode::Pong, payload.len()).append_to(pongs);
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
    pub(super) fn fill(&mut self, cx: &mut Context<'_>) -> bool {
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
}
