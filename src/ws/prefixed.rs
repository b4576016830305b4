//! The receiving half of the other protocol: length-prefixed frames become messages.
//!
//! A frame is the number of its bytes, as a big-endian `u32`, and then so many bytes. There is nothing else:
//! no kinds, no masks, no fragments, no frame that says goodbye. It is a state of the [codec](super::Codec),
//! so that a WebSocket session never asks which of both it is.

use bytes::Bytes;

use super::bounds::Bounds;
use super::codec::{Assembly, take};
use super::deflate::Contexts;
use super::event::{Event, Part, Violation};
use super::stream::PART;
use crate::message::{Kind, Message};

/// Bytes of a frame's header.
pub(super) const PREFIX: usize = size_of::<u32>();

/// Where in the stream of frames the next byte belongs.
pub(super) enum Prefixed {
    /// Behind so many bytes of a header, which are kept.
    Header { bytes: [u8; PREFIX], len: u8 },
    /// `begun`: a part of the message has been handed on.
    Payload { remaining: usize, begun: bool },
}

impl Prefixed {
    const BETWEEN: Self = Self::Header { bytes: [0; PREFIX], len: 0 };

    pub(super) const fn new() -> Self {
        Self::BETWEEN
    }

    /// Whether the next byte begins a frame.
    pub(super) fn is_between_frames(&self) -> bool {
        matches!(self, Self::Header { len: 0, .. })
    }

    /// The next event, as of the codec's `next`: one at most, and nothing of it is kept then.
    ///
    /// # Errors
    ///
    /// A length above the bound, as soon as it is known and before anything is kept of the payload.
    pub(super) fn next(
        &mut self,
        input: &mut &mut [u8],
        message: &mut Option<Box<Assembly>>,
        bounds: &Bounds,
        contexts: &mut Option<Box<Contexts>>,
    ) -> Result<Option<Event>, Violation> {
        let (remaining, begun) = match *self {
            Self::Payload { remaining, begun } => (remaining, begun),
            Self::Header { bytes, len } => {
                let Some(length) = self.length(bytes, len, input) else {
                    return Ok(None);
                };
                let length = usize::try_from(length).map_err(|_| Violation::TOO_BIG)?;
                if length > bounds.message_bytes {
                    return Err(Violation::TOO_BIG);
                }
                if length <= input.len() && !bounds.streamed {
                    *self = Self::BETWEEN;
                    let payload: &[u8] = take(input, length);
                    return Ok(Some(Event::Message(Message::from(payload))));
                }
                (length, false)
            }
        };
        let most = if bounds.streamed { PART } else { usize::MAX };
        let piece = take(input, remaining.min(input.len()).min(most));
        let remaining = remaining - piece.len();
        let last = remaining == 0;
        // A header alone says nothing yet, unless it says that there is nothing.
        let said = last || !piece.is_empty();
        *self = match last {
            true => Self::BETWEEN,
            false => Self::Payload { remaining, begun: begun || said },
        };
        if bounds.streamed {
            let first = (!begun).then_some(Kind::Binary);
            let bytes = Bytes::copy_from_slice(piece);
            return Ok(said.then_some(Event::Part(Part { first, bytes, last })));
        }
        // Nothing is reserved: it grows with what arrives.
        let kept = message.get_or_insert_with(|| Box::new(Assembly::binary()));
        kept.push(piece)?;
        match message.take_if(|_| last) {
            Some(message) => Ok(Some(Event::Message(message.finish(bounds, contexts)?))),
            None => Ok(None),
        }
    }

    /// What the header says, if it is complete; what has arrived of it is consumed in any case.
    fn length(&mut self, mut bytes: [u8; PREFIX], len: u8, input: &mut &mut [u8]) -> Option<u32> {
        // Never more than there is room for.
        let (_, missing) = bytes.split_at_mut(PREFIX.min(usize::from(len)));
        let arrived = missing.len().min(input.len());
        missing[..arrived].copy_from_slice(take(input, arrived));
        if arrived < missing.len() {
            *self = Self::Header { bytes, len: len + arrived as u8 };
            return None;
        }
        Some(u32::from_be_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Codec;
    use super::*;
    use crate::message::CloseCode;

    const LIMIT: usize = 1000;

    fn bounds(streamed: bool) -> Bounds {
        Bounds { message_bytes: LIMIT, fragments: 1, deflate: None, streamed }
    }

    fn frame(payload: &[u8]) -> Vec<u8> {
        [&u32::try_from(payload.len()).unwrap().to_be_bytes(), payload].concat()
    }

    /// Everything that a codec makes of these pieces.
    fn decode<'a>(
        codec: &mut Codec,
        bounds: &Bounds,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Vec<Event>, Violation> {
        let mut events = Vec::new();
        for piece in pieces {
            let mut piece = piece.to_vec();
            let mut input = &mut piece[..];
            while !input.is_empty() {
                events.extend(codec.next(&mut input, bounds, &mut None)?);
            }
        }
        Ok(events)
    }

    fn messages(payloads: &[Vec<u8>]) -> Vec<Event> {
        payloads.iter().map(|it| Event::Message(Message::from(it.clone()))).collect()
    }

    #[test]
    fn the_outcome_does_not_depend_on_the_cuts() {
        let payloads: Vec<Vec<u8>> =
            [0, 1, 3, 4, 5, 0, 255, 256, LIMIT].iter().map(|len| vec![0x81; *len]).collect();
        let stream: Vec<u8> = payloads.iter().flat_map(|it| frame(it)).collect();
        for step in [1, 2, 3, 4, 5, 7, 260, stream.len()] {
            let mut codec = Codec::prefixed();
            let events = decode(&mut codec, &bounds(false), stream.chunks(step)).unwrap();
            assert_eq!(events, messages(&payloads), "in steps of {step}");
            assert!(codec.is_between_messages());
        }
        for at in 0..stream.len() {
            let (one, two) = stream.split_at(at);
            let mut codec = Codec::prefixed();
            let events = decode(&mut codec, &bounds(false), [one, two]).unwrap();
            assert_eq!(events, messages(&payloads), "cut at {at}");
        }
    }

    #[test]
    fn in_parts_it_is_the_same_bytes_and_each_message_begins_and_ends_once() {
        let payloads: Vec<Vec<u8>> =
            [0, 1, 5, LIMIT, 0, 77].iter().map(|len| vec![7; *len]).collect();
        let stream: Vec<u8> = payloads.iter().flat_map(|it| frame(it)).collect();
        for step in [1, 3, 4, 100, stream.len()] {
            let mut codec = Codec::prefixed();
            let events = decode(&mut codec, &bounds(true), stream.chunks(step)).unwrap();
            let mut received: Vec<Vec<u8>> = Vec::new();
            let mut open = false;
            for event in events {
                let Event::Part(Part { first, bytes, last }) = event else { panic!("{event:?}") };
                assert_eq!(first, (!open).then_some(Kind::Binary));
                if !open {
                    received.push(Vec::new());
                }
                open = !last;
                received.last_mut().unwrap().extend_from_slice(&bytes);
            }
            assert!(!open);
            assert_eq!(received, payloads, "in steps of {step}");
        }
    }

    #[test]
    fn a_part_is_no_larger_than_parts_are() {
        let payload = vec![1; 3 * PART + 1];
        let bounds = Bounds { message_bytes: usize::MAX, ..bounds(true) };
        let stream = frame(&payload);
        let events = decode(&mut Codec::prefixed(), &bounds, [&stream[..]]).unwrap();
        let sizes: Vec<usize> = events
            .iter()
            .map(|event| match event {
                Event::Part(part) => part.bytes.len(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(sizes, [PART, PART, PART, 1]);
    }

    #[test]
    fn a_length_above_the_bound_is_refused_by_the_header_alone() {
        for (claim, streamed) in [(LIMIT as u32 + 1, false), (u32::MAX, false), (u32::MAX, true)] {
            let mut codec = Codec::prefixed();
            let claim = claim.to_be_bytes();
            let events = decode(&mut codec, &bounds(streamed), [&claim[..3]]).unwrap();
            assert_eq!(events, [], "three bytes of four say nothing");
            let refused = decode(&mut codec, &bounds(streamed), [&claim[3..]]).unwrap_err();
            assert_eq!(refused.code, CloseCode::TOO_BIG);
            assert_eq!(codec.heap_bytes(), 0);
            let after = decode(&mut codec, &bounds(streamed), [&b"\0\0\0\x01x"[..]]).unwrap();
            assert_eq!(after, [], "what follows is discarded");
        }
    }

    #[test]
    fn nothing_is_reserved_from_what_a_header_claims() {
        let mut codec = Codec::prefixed();
        let bounds = Bounds { message_bytes: usize::MAX, ..bounds(false) };
        let begun = [&u32::MAX.to_be_bytes()[..], &[1; 100]].concat();
        assert_eq!(decode(&mut codec, &bounds, [&begun[..]]).unwrap(), []);
        assert!(!codec.is_between_messages());
        assert!(codec.heap_bytes() < 1000, "{}", codec.heap_bytes());
    }

    #[test]
    fn the_middle_of_a_header_is_the_middle_of_a_frame() {
        let mut codec = Codec::prefixed();
        assert!(codec.is_between_messages());
        decode(&mut codec, &bounds(false), [&[0][..]]).unwrap();
        assert!(!codec.is_between_messages());
        decode(&mut codec, &bounds(false), [&[0, 0, 0][..]]).unwrap();
        assert!(codec.is_between_messages());
        decode(&mut codec, &bounds(false), [&[0, 0, 0, 2, 1][..]]).unwrap();
        assert!(!codec.is_between_messages());
    }
}
