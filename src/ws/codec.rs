//! The receiving half of the machine: a stream of masked client frames becomes events.

use bytes::Bytes;

use super::bounds::Bounds;
use super::deflate::{self, Contexts};
use super::event::{Event, Violation};
use super::frame::{self, CloseFrame, MAX_HEADER, Opcode, Received};
use super::mask::{rotate, unmask, unmasked};
use super::prefixed::Prefixed;
use super::stream::{PART, PIECE, Streamed};
use super::utf8::Utf8;
use crate::message::{CloseCode, Message};

/// Reads one client's frames. Between two messages it owns nothing on the heap.
#[derive(Default)]
pub(crate) struct Codec {
    /// The message of which some, but not all, has arrived.
    message: Option<Box<Assembly>>,
    /// The payload of a control frame of which some, but not all, has arrived.
    #[expect(clippy::box_collection, reason = "an idle session has room for a pointer only")]
    control: Option<Box<Vec<u8>>>,
    state: State,
}

/// Where in the stream of frames the next byte belongs.
#[derive(Default)]
enum State {
    #[default]
    Between,
    /// Behind the beginning of a header.
    Header {
        bytes: [u8; MAX_HEADER],
        len: u8,
    },
    Payload(Frame),
    /// Of the protocol that has no other states, wherever it is in its frames.
    Prefixed(Prefixed),
    /// Behind a close frame, or behind something that cannot be understood.
    Closed,
}

struct Frame {
    remaining: usize,
    /// As the next byte of the payload sees it.
    mask: [u8; 4],
    opcode: Opcode,
    fin: bool,
}

pub(super) struct Assembly {
    fragments: u32,
    payload: Payload,
}

enum Payload {
    Text(Utf8),
    Binary(Vec<u8>),
    /// Decompressed when it is whole: a decompressor that many sessions share cannot be kept waiting
    /// for the rest of one message.
    Deflated {
        opcode: Opcode,
        bytes: Vec<u8>,
    },
    /// Handed on as it arrives.
    Streamed(Box<Streamed>),
}

impl Assembly {
    /// Of a message that is in one frame, and of any bytes.
    pub(super) fn binary() -> Self {
        Self { fragments: 1, payload: Payload::Binary(Vec::new()) }
    }

    fn len(&self) -> usize {
        match &self.payload {
            Payload::Text(text) => text.len(),
            Payload::Binary(bytes) | Payload::Deflated { bytes, .. } => bytes.len(),
            Payload::Streamed(streamed) => streamed.len(),
        }
    }

    fn is_compressed(&self) -> bool {
        match &self.payload {
            Payload::Text(_) | Payload::Binary(_) => false,
            Payload::Deflated { .. } => true,
            Payload::Streamed(streamed) => streamed.is_compressed(),
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        match &mut self.payload {
            Payload::Text(text) => text.push(bytes).map_err(|_| Violation::NOT_UTF8),
            Payload::Binary(kept) | Payload::Deflated { bytes: kept, .. } => {
                kept.extend_from_slice(bytes);
                Ok(())
            }
            // Never kept.
            Payload::Streamed(_) => Ok(()),
        }
    }

    pub(super) fn finish(
        self,
        bounds: &Bounds,
        contexts: &mut Option<Box<Contexts>>,
    ) -> Result<Message, Violation> {
        match self.payload {
            Payload::Text(text) => {
                let mut text = text.finish().map_err(|_| Violation::NOT_UTF8)?;
                text.shrink_to_fit();
                Ok(Message::from(text))
            }
            Payload::Binary(mut bytes) => {
                bytes.shrink_to_fit();
                Ok(Message::from(bytes))
            }
            Payload::Deflated { opcode, bytes } => inflated(opcode, &bytes, bounds, contexts),
            // Its last part has been handed on.
            Payload::Streamed(_) => Ok(Message::from(Vec::new())),
        }
    }
}

/// By how much a message of so many bytes can grow when it is compressed: an eighth, if every byte
/// takes nine bits because the window is too small to store them as they are, and a little for the
/// headers of the blocks. That is zlib's own bound for any window and memory (`deflateBound`), rounded
/// up. A compressor with the memory of Python's `websockets` adds 1 in 400. Who flushes behind each
/// fragment adds to each the headers of a stored and of an empty block, and two bytes that are not full.
const fn inflation(message_bytes: usize, fragments: usize) -> usize {
    (message_bytes / 8 + message_bytes / 128 + 64).saturating_add(fragments.saturating_mul(12))
}

/// A whole message that came compressed.
#[cold]
fn inflated(
    opcode: Opcode,
    compressed: &[u8],
    bounds: &Bounds,
    contexts: &mut Option<Box<Contexts>>,
) -> Result<Message, Violation> {
    // The header was refused otherwise.
    let Some(agreement) = bounds.deflate else {
        return Err(Violation::RESERVED_BIT);
    };
    let bytes = deflate::inflate(compressed, bounds.message_bytes, agreement, contexts)?;
    if opcode != Opcode::Text {
        return Ok(Message::from(bytes));
    }
    simdutf8::basic::from_utf8(&bytes).map_err(|_| Violation::NOT_UTF8)?;
    String::from_utf8(bytes).map(Message::from).map_err(|_| Violation::NOT_UTF8)
}

impl Codec {
    /// Reads length-prefixed frames instead.
    pub(crate) fn prefixed() -> Self {
        Self { state: State::Prefixed(Prefixed::new()), ..Self::default() }
    }

    /// The next event of the stream that continues with `input`, whose consumed bytes are taken
    /// from its front. `None`: all of `input` is consumed and no event is complete.
    ///
    /// # Errors
    ///
    /// What came before the violation has been returned, and what comes after it is discarded.
    pub(crate) fn next(
        &mut self,
        input: &mut &mut [u8],
        bounds: &Bounds,
        contexts: &mut Option<Box<Contexts>>,
    ) -> Result<Option<Event>, Violation> {
        let event = self.next_unless_broken(input, bounds, contexts);
        if event.is_err() {
            *self = Self { state: State::Closed, ..Self::default() };
        }
        event
    }

    /// Whether nothing of a message has arrived that is not whole.
    pub(crate) fn is_between_messages(&self) -> bool {
        let between = match &self.state {
            State::Between | State::Closed => true,
            State::Prefixed(prefixed) => prefixed.is_between_frames(),
            State::Header { .. } | State::Payload(_) => false,
        };
        between && self.message.is_none() && self.control.is_none()
    }

    /// Whether what comes next is a control frame, or the rest of one, if that begins with `first`.
    pub(crate) fn expects_control(&self, first: u8) -> bool {
        match &self.state {
            State::Between => frame::begins_control(first),
            State::Header { bytes: [first, ..], .. } => frame::begins_control(*first),
            State::Payload(frame) => frame.opcode.is_control(),
            State::Closed => true,
            State::Prefixed(_) => false,
        }
    }

    /// The common case of [`next`](Self::next), apart because nearly every frame is one: a message in one
    /// frame, not compressed, all of it there, with nothing pending, and not streamed. `None` if the
    /// next frame is anything else, and nothing has been done.
    ///
    /// # Errors
    ///
    /// As those of `next`.
    #[inline]
    pub(crate) fn next_message(
        &mut self,
        input: &mut &mut [u8],
        message_bytes: usize,
    ) -> Result<Option<Message>, Violation> {
        let text = match input.first() {
            Some(&frame::WHOLE_TEXT) => true,
            Some(&frame::WHOLE_BINARY) => false,
            _ => return Ok(None),
        };
        if !matches!(self.state, State::Between) || self.message.is_some() {
            return Ok(None);
        }
        let Ok(Some(header)) = frame::parse(input, false) else {
            return Ok(None);
        };
        let arrived = input.len() - header.len;
        if header.payload > message_bytes.min(arrived) as u64 {
            return Ok(None);
        }
        take(input, header.len);
        let payload = take(input, header.payload as usize);
        if !text {
            return Ok(Some(Message::from(unmasked(payload, header.mask))));
        }
        unmask(payload, header.mask);
        match simdutf8::basic::from_utf8(payload) {
            Ok(text) => Ok(Some(Message::from(text))),
            Err(_) => {
                self.state = State::Closed;
                Err(Violation::NOT_UTF8)
            }
        }
    }

    fn next_unless_broken(
        &mut self,
        input: &mut &mut [u8],
        bounds: &Bounds,
        contexts: &mut Option<Box<Contexts>>,
    ) -> Result<Option<Event>, Violation> {
        if !bounds.streamed {
            if let Some(message) = self.next_message(input, bounds.message_bytes)? {
                return Ok(Some(Event::Message(message)));
            }
            // Then any other frame that is all there.
            if matches!(self.state, State::Between) {
                if let Some(event) = self.next_whole(input, bounds, contexts)? {
                    return Ok(Some(event));
                }
            }
        }
        self.next_slowly(input, bounds, contexts)
    }

    /// A frame all of which is there, with nothing pending but fragments of its message.
    fn next_whole(
        &mut self,
        input: &mut &mut [u8],
        bounds: &Bounds,
        contexts: &mut Option<Box<Contexts>>,
    ) -> Result<Option<Event>, Violation> {
        let Some(header) = parse(input, bounds).map_err(Violation::protocol)? else {
            return Ok(None);
        };
        self.check(&header, bounds)?;
        if header.payload > (input.len() - header.len) as u64 {
            return Ok(None);
        }
        take(input, header.len);
        let payload = take(input, header.payload as usize);
        unmask(payload, header.mask);
        self.whole(&header, payload, bounds, contexts)
    }

    /// Everything else: headers and payloads that arrive in pieces, fragments, the end.
    fn next_slowly(
        &mut self,
        input: &mut &mut [u8],
        bounds: &Bounds,
        contexts: &mut Option<Box<Contexts>>,
    ) -> Result<Option<Event>, Violation> {
        while !input.is_empty() {
            let event = match &mut self.state {
                // RFC 6455 section 5.5.1: after a close frame, further data is discarded.
                State::Closed => {
                    take(input, input.len());
                    None
                }
                State::Between | State::Header { .. } => match self.read_header(input, bounds)? {
                    None => None,
                    Some(header) => {
                        self.check(&header, bounds)?;
                        self.begin(&header, bounds, contexts)?
                    }
                },
                State::Prefixed(prefixed) => {
                    prefixed.next(input, &mut self.message, bounds, contexts)?
                }
                State::Payload(frame) if bounds.streamed && !frame.opcode.is_control() => {
                    self.stream(input, bounds, contexts)?
                }
                State::Payload(frame) => {
                    let arrived = frame.remaining.min(input.len());
                    let piece = take(input, arrived);
                    unmask(piece, frame.mask);
                    frame.mask = rotate(frame.mask, arrived);
                    frame.remaining -= arrived;
                    let (opcode, fin, over) = (frame.opcode, frame.fin, frame.remaining == 0);
                    if opcode.is_control() {
                        self.control.get_or_insert_default().extend_from_slice(piece);
                    } else if let Some(message) = &mut self.message {
                        message.push(piece)?;
                    }
                    if over { self.end(opcode, fin, bounds, contexts)? } else { None }
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// Hands on what has arrived of a frame's payload, or of it as much as makes a part.
    fn stream(
        &mut self,
        input: &mut &mut [u8],
        bounds: &Bounds,
        contexts: &mut Option<Box<Contexts>>,
    ) -> Result<Option<Event>, Violation> {
        let State::Payload(frame) = &mut self.state else {
            return Ok(None);
        };
        let Some(Assembly { payload: Payload::Streamed(streamed), .. }) =
            self.message.as_deref_mut()
        else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let most = if streamed.is_compressed() { PIECE } else { PART };
        while bytes.len() < PART && frame.remaining > 0 && !input.is_empty() {
            let arrived = frame.remaining.min(input.len()).min(most);
            let piece = take(input, arrived);
            unmask(piece, frame.mask);
            frame.mask = rotate(frame.mask, arrived);
            frame.remaining -= arrived;
            let last = frame.fin && frame.remaining == 0;
            streamed.push(piece, last, &mut bytes, bounds, contexts)?;
        }
        let over = frame.remaining == 0;
        let last = frame.fin && over;
        let part = streamed.part(bytes, last)?;
        if over {
            self.state = State::Between;
        }
        if last {
            self.message = None;
        }
        Ok(part.map(Event::Part))
    }

    /// The same for a frame without payload.
    fn stream_nothing(
        &mut self,
        last: bool,
        bounds: &Bounds,
        contexts: &mut Option<Box<Contexts>>,
    ) -> Result<Option<Event>, Violation> {
        self.state = State::Between;
        let Some(Assembly { payload: Payload::Streamed(streamed), .. }) =
            self.message.as_deref_mut()
        else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        streamed.push(&[], last, &mut bytes, bounds, contexts)?;
        let part = streamed.part(bytes, last)?;
        if last {
            self.message = None;
        }
        Ok(part.map(Event::Part))
    }

    /// A header that may have begun in earlier input. It is consumed even if it is incomplete.
    fn read_header(
        &mut self,
        input: &mut &mut [u8],
        bounds: &Bounds,
    ) -> Result<Option<Received>, Violation> {
        let (mut bytes, mut len) = match self.state {
            State::Header { bytes, len } => (bytes, usize::from(len)),
            _ => match parse(input, bounds).map_err(Violation::protocol)? {
                None => ([0; MAX_HEADER], 0),
                Some(header) => {
                    take(input, header.len);
                    return Ok(Some(header));
                }
            },
        };
        while !input.is_empty() {
            // A header is complete with at most `MAX_HEADER` bytes, so there is always room.
            bytes[len..=len].copy_from_slice(take(input, 1));
            len += 1;
            let header = parse(&bytes[..len], bounds).map_err(Violation::protocol)?;
            if header.is_some() {
                self.state = State::Between;
                return Ok(header);
            }
        }
        self.state = State::Header { bytes, len: len as u8 };
        Ok(None)
    }

    /// The rules that need to know what came before this header, and the bounds.
    fn check(&self, header: &Received, bounds: &Bounds) -> Result<(), Violation> {
        let received = match (header.opcode, &self.message) {
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => return Ok(()),
            (Opcode::Continuation, None) => {
                return Err(Violation::protocol("continuation of nothing"));
            }
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(Violation::protocol("new message inside a fragmented one"));
            }
            (Opcode::Text | Opcode::Binary, None) => 0,
            (Opcode::Continuation, Some(message)) => {
                if message.fragments >= bounds.fragments && !bounds.streamed {
                    return Err(Violation::FRAGMENTS);
                }
                message.len()
            }
        };
        // By the header alone, whole message or fragment, before a byte of it is kept.
        let mut most = bounds.message_bytes;
        let message = self.message.as_deref();
        if header.compressed || message.is_some_and(Assembly::is_compressed) {
            let fragments = message.map_or(0, |message| message.fragments).saturating_add(1);
            most = most.saturating_add(inflation(most, fragments as usize));
        }
        let room = most.saturating_sub(received);
        if header.payload > room as u64 { Err(Violation::TOO_BIG) } else { Ok(()) }
    }

    /// The payload of a frame all of which is there.
    fn whole(
        &mut self,
        header: &Received,
        payload: &[u8],
        bounds: &Bounds,
        contexts: &mut Option<Box<Contexts>>,
    ) -> Result<Option<Event>, Violation> {
        match header.opcode {
            Opcode::Text | Opcode::Binary if header.fin && header.compressed => {
                let message = inflated(header.opcode, payload, bounds, contexts)?;
                Ok(Some(Event::Message(message)))
            }
            Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                self.fragment(header, bounds).push(payload)?;
                self.end(header.opcode, header.fin, bounds, contexts)
            }
            Opcode::Close | Opcode::Ping | Opcode::Pong => {
                self.control(header.opcode, payload).map(Some)
            }
        }
    }

    /// Starts to receive the payload of a frame; one without a payload is complete.
    fn begin(
        &mut self,
        header: &Received,
        bounds: &Bounds,
        contexts: &mut Option<Box<Contexts>>,
    ) -> Result<Option<Event>, Violation> {
        if !header.opcode.is_control() {
            self.fragment(header, bounds);
        }
        if header.payload == 0 {
            if bounds.streamed && !header.opcode.is_control() {
                return self.stream_nothing(header.fin, bounds, contexts);
            }
            return self.end(header.opcode, header.fin, bounds, contexts);
        }
        self.state = State::Payload(Frame {
            remaining: usize::try_from(header.payload).map_err(|_| Violation::TOO_BIG)?,
            mask: header.mask,
            opcode: header.opcode,
            fin: header.fin,
        });
        Ok(None)
    }

    /// Counts a fragment of the current message, or of a new one.
    fn fragment(&mut self, header: &Received, bounds: &Bounds) -> &mut Assembly {
        let message = self.message.get_or_insert_with(|| {
            let payload = match header.opcode {
                opcode if bounds.streamed => {
                    Payload::Streamed(Box::new(Streamed::new(opcode, header.compressed)))
                }
                opcode if header.compressed => Payload::Deflated { opcode, bytes: Vec::new() },
                Opcode::Text => Payload::Text(Utf8::default()),
                _ => Payload::Binary(Vec::new()),
            };
            Box::new(Assembly { fragments: 0, payload })
        });
        message.fragments = message.fragments.saturating_add(1);
        message
    }

    /// The payload of a frame is complete, and has been kept.
    fn end(
        &mut self,
        opcode: Opcode,
        fin: bool,
        bounds: &Bounds,
        contexts: &mut Option<Box<Contexts>>,
    ) -> Result<Option<Event>, Violation> {
        self.state = State::Between;
        if opcode.is_control() {
            let payload = self.control.take().unwrap_or_default();
            return self.control(opcode, &payload).map(Some);
        }
        match self.message.take_if(|_| fin) {
            Some(message) => Ok(Some(Event::Message(message.finish(bounds, contexts)?))),
            None => Ok(None),
        }
    }

    fn control(&mut self, opcode: Opcode, payload: &[u8]) -> Result<Event, Violation> {
        match opcode {
            Opcode::Ping => Ok(Event::Ping(Bytes::copy_from_slice(payload))),
            Opcode::Pong => Ok(Event::Pong(Bytes::copy_from_slice(payload))),
            _ => {
                self.state = State::Closed;
                close(payload).map(Event::Close)
            }
        }
    }
}

/// A header, if it is all there.
fn parse(bytes: &[u8], bounds: &Bounds) -> Result<Option<Received>, &'static str> {
    frame::parse(bytes, bounds.deflate.is_some())
}

/// Takes `len` bytes from the front of `input`.
#[inline]
pub(super) fn take<'a>(input: &mut &'a mut [u8], len: usize) -> &'a mut [u8] {
    let (taken, rest) = std::mem::take(input).split_at_mut(len);
    *input = rest;
    taken
}

/// RFC 6455 sections 5.5.1 and 7.4.
fn close(payload: &[u8]) -> Result<Option<CloseFrame>, Violation> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(Violation::protocol("close frame with half a code")),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    let Some(code) = CloseCode::new(code) else {
        return Err(Violation::protocol("close code that must not be sent"));
    };
    let reason = std::str::from_utf8(reason).map_err(|_| Violation {
        code: CloseCode::INVALID_DATA,
        reason: "close reason is not UTF-8",
    })?;
    Ok(Some(CloseFrame { code, reason: reason.into() }))
}

#[cfg(test)]
impl Codec {
    /// Bytes of heap that the unfinished message or control frame holds.
    pub(super) fn heap_bytes(&self) -> usize {
        let message = self.message.as_deref().map_or(0, |message| {
            let payload = match &message.payload {
                Payload::Text(text) => text.capacity(),
                Payload::Binary(bytes) | Payload::Deflated { bytes, .. } => bytes.capacity(),
                Payload::Streamed(_) => 0,
            };
            size_of::<Assembly>() + payload
        });
        self.control.as_ref().map_or(0, |control| control.capacity()) + message
    }
}
