//! The receiving half against bytes: both sides of each rule, however the stream is cut.
//!
//! Every stream goes through [`outcomes`], which feeds it whole, byte by byte, cut in two at every
//! place and cut into random pieces, and demands the same of all.

use std::io::{self, Cursor, Read, Write};

use async_tungstenite::tungstenite::protocol::{Role, WebSocket};
use async_tungstenite::tungstenite::{self, error::ProtocolError};
use bytes::Bytes;

#[cfg(feature = "deflate")]
use super::deflate::Agreement;
use super::{Bounds, CloseFrame, Codec, Event, Violation};
use crate::message::{CloseCode, Kind, Message};

/// The defaults of the configuration.
const BOUNDS: Bounds =
    Bounds { message_bytes: 64 * 1024, fragments: 1024, deflate: None, streamed: false };

/// The mask of RFC 6455's examples.
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// First bytes of frames: with FIN unless it says otherwise.
const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const LAST: u8 = 0x80;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;
const TEXT_BEGINS: u8 = 0x01;
const BINARY_BEGINS: u8 = 0x02;
const MORE: u8 = 0x00;

/// What a codec may hold beyond twice the bytes it was given: the fixed part of a message, and the
/// smallest vector.
const FIXED: usize = 128;

/// What came out of one stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    events: Vec<Event>,
    violation: Option<Violation>,
}

impl Outcome {
    fn code(&self) -> Option<u16> {
        self.violation.map(|violation| violation.code.as_u16())
    }
}

/// A generator that is the same everywhere and for ever (Knuth's MMIX constants).
struct Lcg(u64);

impl Lcg {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// Below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }
}

fn feed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, bounds: &Bounds) -> Outcome {
    let mut codec = Codec::default();
    let mut contexts = None;
    let mut outcome = Outcome::default();
    let mut fed = 0;
    for piece in pieces {
        fed += piece.len();
        let mut piece = piece.to_vec();
        let mut rest = &mut piece[..];
        loop {
            match codec.next(&mut rest, bounds, &mut contexts) {
                Ok(Some(event)) => outcome.events.push(event),
                Ok(None) => break,
                Err(violation) => {
                    outcome.violation = Some(violation);
                    return outcome;
                }
            }
        }
        assert!(rest.is_empty(), "without an event everything is consumed");
        assert!(codec.heap_bytes() <= 2 * fed + FIXED, "holds what has arrived, not what may come");
    }
    outcome
}

/// What comes out of this stream, however it is cut.
#[track_caller]
fn outcomes_within(bytes: &[u8], bounds: &Bounds) -> Outcome {
    /// Up to this length a stream is cut at every place, a longer one near its ends.
    const SHORT: usize = 2048;
    let whole = feed([bytes], bounds);
    assert_eq!(feed(bytes.chunks(1), bounds), whole, "byte by byte");
    for at in 0..=bytes.len() {
        if bytes.len() <= SHORT || at < 64 || at + 64 > bytes.len() {
            let (left, right) = bytes.split_at(at);
            assert_eq!(feed([left, right], bounds), whole, "cut at {at}");
        }
    }
    let mut lcg = Lcg(bytes.len() as u64);
    for round in 0..50 {
        // Pieces of up to 2, 4, 8 .. bytes; of a long stream no more than some hundred.
        let longest = (2 << (round % 12)).max(bytes.len() / 100);
        let mut pieces = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(lcg.below(longest + 1)));
            pieces.push(piece);
            rest = after;
        }
        assert_eq!(feed(pieces, bounds), whole, "random pieces, round {round}");
    }
    whole
}

#[track_caller]
fn outcomes(bytes: &[u8]) -> Outcome {
    outcomes_within(bytes, &BOUNDS)
}

/// The stream is valid, and these are its events.
#[track_caller]
fn gives(bytes: &[u8], events: &[Event]) {
    let outcome = outcomes(bytes);
    assert_eq!(outcome.violation, None);
    assert_eq!(outcome.events, events);
}

/// The stream gives nothing but a violation with this code.
#[track_caller]
fn violates(bytes: &[u8], code: u16) {
    let outcome = outcomes(bytes);
    assert_eq!(outcome.code(), Some(code), "{bytes:02X?}");
    assert_eq!(outcome.events, []);
}

/// How many bytes of the stream it takes until the codec refuses it.
#[track_caller]
fn refused_after(bytes: &[u8], bounds: &Bounds) -> usize {
    let mut codec = Codec::default();
    let refused = bytes.iter().position(|byte| {
        let mut piece = [*byte];
        codec.next(&mut &mut piece[..], bounds, &mut None).is_err()
    });
    refused.expect("the stream is refused") + 1
}

/// One masked frame, its length in the fewest bytes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    masked(first, payload, MASK)
}

fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ ..126 => bytes.push(0x80 | short as u8),
        middle @ 126..=0xFFFF => {
            bytes.push(0xFE);
            bytes.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            bytes.push(0xFF);
            bytes.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A header whose length takes eight bytes, whether it should or not.
fn header64(first: u8, length: u64) -> Vec<u8> {
    [&[first, 0xFF], &length.to_be_bytes()[..], &MASK].concat()
}

fn text(text: &str) -> Event {
    Event::Message(text.into())
}

fn binary(bytes: &[u8]) -> Event {
    Event::Message(bytes.into())
}

fn ping(payload: &'static [u8]) -> Event {
    Event::Ping(Bytes::from_static(payload))
}

fn pong(payload: &'static [u8]) -> Event {
    Event::Pong(Bytes::from_static(payload))
}

fn closed(code: u16, reason: &str) -> Event {
    let code = CloseCode::new(code).expect("a code that may be sent");
    Event::Close(Some(CloseFrame { code, reason: reason.into() }))
}

fn close_payload(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), reason].concat()
}

// Headers.

#[test]
fn the_examples_of_the_rfc_are_understood() {
    // RFC 6455 section 5.7.
    gives(
        b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58\x89\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
        &[text("Hello"), ping(b"Hello")],
    );
    gives(
        b"\x01\x83\x37\xfa\x21\x3d\x7f\x9f\x4d\x80\x82\x37\xfa\x21\x3d\x5b\x95",
        &[text("Hello")],
    );
}

/// A server that parsed a header only when it was there as a whole took the rest of a header for a
/// new frame when a read ended between its bytes.
#[test]
fn a_header_may_be_cut_at_every_byte() {
    for len in [0, 1, 125, 126, 127, 65_535, 65_536] {
        let payload = vec![b'x'; len];
        let message = String::from_utf8(payload.clone()).unwrap();
        gives(&frame(TEXT, &payload), &[text(&message)]);
        gives(&frame(BINARY, &payload), &[binary(&payload)]);
        // The header of the second frame of the message, and of one behind it.
        let mut stream = frame(BINARY_BEGINS, b"");
        stream.extend(frame(LAST, &payload));
        stream.extend(frame(PONG, b""));
        gives(&stream, &[binary(&payload), pong(b"")]);
    }
}

#[test]
fn every_mask_is_a_mask() {
    for mask in [[0; 4], [0xFF; 4], [0, 0, 0, 1], [1, 0, 0, 0]] {
        gives(
            &masked(TEXT, "plain, and long enough ✓".as_bytes(), mask),
            &[text("plain, and long enough ✓")],
        );
    }
}

#[test]
fn a_client_frame_without_a_mask_is_refused_at_its_second_byte() {
    for first in [TEXT, BINARY, CLOSE, PING, PONG, TEXT_BEGINS] {
        violates(&[first, 0x00], 1002);
        violates(&[first, 0x05, b'H', b'e', b'l', b'l', b'o'], 1002);
        assert_eq!(refused_after(&[first, 0x05, b'H'], &BOUNDS), 2);
        assert_eq!(outcomes(&frame(first, b"")).violation, None);
    }
    violates(&[TEXT, 0x7E, 0x00, 0x7E], 1002);
    violates(&[TEXT, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0], 1002);
}

#[test]
fn a_reserved_bit_is_refused_at_once() {
    for first in [TEXT, BINARY, CLOSE, PING, PONG, TEXT_BEGINS, BINARY_BEGINS] {
        for bits in [0x40, 0x20, 0x10, 0x70] {
            violates(&frame(first | bits, b""), 1002);
            assert_eq!(refused_after(&frame(first | bits, b"payload"), &BOUNDS), 1);
        }
    }
}

/// A server with compression looked for RSV1 on data frames only, and took a continuation or a
/// ping with RSV1 for an ordinary one.
#[test]
fn a_reserved_bit_on_a_continuation_or_between_fragments_is_refused() {
    for first in [MORE, LAST, PING, PONG, CLOSE] {
        for bits in [0x40, 0x20, 0x10] {
            let stream = [frame(TEXT_BEGINS, b"He"), frame(first | bits, b"llo")].concat();
            violates(&stream, 1002);
            assert_eq!(refused_after(&stream, &BOUNDS), frame(TEXT_BEGINS, b"He").len() + 1);
        }
    }
}

#[test]
fn a_reserved_opcode_is_refused_at_once() {
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        for fin in [0x80, 0x00] {
            violates(&frame(fin | opcode, b""), 1002);
            assert_eq!(refused_after(&frame(fin | opcode, b"payload"), &BOUNDS), 1);
        }
    }
}

#[test]
fn a_length_not_in_the_fewest_bytes_is_refused() {
    for length in [0_u16, 1, 124, 125] {
        let header = [&[BINARY, 0xFE], &length.to_be_bytes()[..], &MASK].concat();
        violates(&header, 1002);
        violates(&[header, vec![0; length.into()]].concat(), 1002);
    }
    for length in [0_u64, 1, 125, 126, 65_535] {
        violates(&header64(BINARY, length), 1002);
    }
    // The other side of both rules is `a_header_may_be_cut_at_every_byte`: 126 and 65 536.
}

#[test]
fn the_top_bit_of_a_64_bit_length_is_refused_as_such() {
    for first in [TEXT, BINARY, TEXT_BEGINS] {
        violates(&header64(first, 1 << 63), 1002);
        violates(&header64(first, 1 << 63 | 5), 1002);
        violates(&header64(first, u64::MAX), 1002);
        // The largest length there is, is only too large.
        violates(&header64(first, u64::MAX >> 1), 1009);
    }
}

/// A server kept the length in 32 bits: a frame that claimed 4 GiB and five bytes passed the limit
/// as one of five bytes, and what followed its fifth byte was taken for frames.
#[test]
fn a_length_beyond_32_bits_does_not_wrap() {
    for length in [1 << 32, 1 << 32 | 5, 1 << 48 | 5, 0xFFFF_FFFF, 0xFFFF_FFFF_0000_0005] {
        let mut stream = header64(TEXT, length & (u64::MAX >> 1));
        stream.extend(b"\x7f\x9f\x4d\x51\x58");
        violates(&stream, 1009);
    }
}

/// The sum of what has arrived and what is announced must not wrap either.
#[test]
fn a_length_that_overflows_the_sum_is_too_big() {
    let mut stream = frame(BINARY_BEGINS, b"0123456789");
    stream.extend(header64(LAST, u64::MAX >> 1));
    violates(&stream, 1009);
    // Without a limit it is only a frame that never ends.
    let unlimited = Bounds { message_bytes: usize::MAX, fragments: u32::MAX, ..BOUNDS };
    stream.extend(b"some of it");
    assert_eq!(outcomes_within(&stream, &unlimited), Outcome::default());
}

// Sizes.

/// A server checked the size where it parsed a whole header; when the header arrived in two
/// pieces, the second piece went another way, without the check.
#[test]
fn the_size_is_checked_by_the_header_alone_however_it_arrives() {
    for limit in [0, 1, 100, 125, 126, 300, 65_535, 65_536] {
        let bounds = Bounds { message_bytes: limit, ..BOUNDS };
        for first in [TEXT, BINARY, TEXT_BEGINS, BINARY_BEGINS] {
            let fits = frame(first, &vec![b'x'; limit]);
            assert_eq!(outcomes_within(&fits, &bounds).violation, None);
            let over = frame(first, &vec![b'x'; limit + 1]);
            let outcome = outcomes_within(&over, &bounds);
            assert_eq!((outcome.code(), outcome.events), (Some(1009), vec![]));
            let header = over.len() - (limit + 1);
            assert_eq!(refused_after(&over, &bounds), header, "before its first payload byte");
        }
    }
}

/// A server checked the sum of the fragments, so a message of one frame could have any size.
#[test]
fn a_single_frame_is_a_message_too() {
    let bounds = Bounds { message_bytes: 100, ..BOUNDS };
    let whole = outcomes_within(&frame(BINARY, &[7; 100]), &bounds);
    assert_eq!((whole.events, whole.violation), (vec![binary(&[7; 100])], None));
    let over = outcomes_within(&frame(BINARY, &[7; 101]), &bounds);
    assert_eq!((over.events.len(), over.code()), (0, Some(1009)));
}

#[test]
fn fragments_share_one_limit_and_control_frames_have_their_own() {
    let bounds = Bounds { message_bytes: 100, ..BOUNDS };
    for first in [TEXT_BEGINS, BINARY_BEGINS] {
        let mut stream = frame(first, &[b'a'; 60]);
        stream.extend(frame(PING, &[b'p'; 125]));
        let fits = [stream.clone(), frame(MORE, &[b'b'; 40]), frame(LAST, b"")].concat();
        let outcome = outcomes_within(&fits, &bounds);
        assert_eq!((outcome.events.len(), outcome.violation), (2, None));
        let over = [stream, frame(MORE, &[b'b'; 41])].concat();
        let outcome = outcomes_within(&over, &bounds);
        assert_eq!((outcome.events.len(), outcome.code()), (1, Some(1009)));
        assert_eq!(refused_after(&over, &bounds), over.len() - 41);
    }
    // The limit is a message's, not the stream's.
    let stream = frame(BINARY, &[7; 100]).repeat(3);
    assert_eq!(outcomes_within(&stream, &bounds).events.len(), 3);
}

/// A character whose last byte is in the next fragment counts with the bytes that are there.
#[test]
fn an_unfinished_character_counts() {
    let bounds = Bounds { message_bytes: 4, ..BOUNDS };
    let stream = |rest: &[u8]| [frame(TEXT_BEGINS, b"a\xE2\x82"), frame(LAST, rest)].concat();
    assert_eq!(outcomes_within(&stream(b"\xAC"), &bounds).events, [text("a€")]);
    assert_eq!(outcomes_within(&stream(b"\xACb"), &bounds).code(), Some(1009));
}

/// A server reserved what a header announced: a thousand peers that sent fourteen bytes each cost
/// it 16 GiB.
#[test]
fn a_claim_of_16_mib_reserves_nothing() {
    const CLAIM: u64 = 16 << 20;
    let bounds = Bounds { message_bytes: 32 << 20, ..BOUNDS };
    for first in [TEXT, BINARY, TEXT_BEGINS, BINARY_BEGINS] {
        let mut codec = Codec::default();
        let mut stream = header64(first, CLAIM);
        assert_eq!(codec.next(&mut &mut stream[..], &bounds, &mut None), Ok(None));
        assert!(codec.heap_bytes() <= FIXED, "{} bytes", codec.heap_bytes());
        // And then it grows with what arrives, however much is announced.
        let mut piece = [MASK[0] ^ b'x'];
        assert_eq!(codec.next(&mut &mut piece[..], &bounds, &mut None), Ok(None));
        assert!(codec.heap_bytes() <= 2 + FIXED, "{} bytes", codec.heap_bytes());
    }
}

#[test]
fn between_two_messages_nothing_is_held() {
    let mut codec = Codec::default();
    let stream = [
        frame(TEXT_BEGINS, &[b'x'; 5000]),
        frame(PING, &[b'p'; 125]),
        frame(LAST, &[b'x'; 5000]),
        frame(BINARY, &[7; 5000]),
        frame(PING, &[b'p'; 125]),
    ]
    .concat();
    let mut events = 0;
    for byte in stream {
        let mut piece = [byte];
        events +=
            usize::from(codec.next(&mut &mut piece[..], &BOUNDS, &mut None).unwrap().is_some());
    }
    assert_eq!((events, codec.heap_bytes()), (4, 0));
}

/// A peer sent empty fragments for ever: no limit on bytes is ever reached, and the server was busy
/// with one message, or held an entry for each.
#[test]
fn a_message_of_thousands_of_fragments_is_refused() {
    for (payload, first) in
        [(&b""[..], TEXT_BEGINS), (b"", BINARY_BEGINS), (b"x", TEXT_BEGINS), (b"x", BINARY_BEGINS)]
    {
        let fragments = |count: usize| {
            let mut stream = frame(first, payload);
            stream.extend(frame(MORE, payload).repeat(count - 1));
            stream
        };
        // 1 024 with the last one.
        let most = [fragments(1023), frame(LAST, payload)].concat();
        let outcome = outcomes(&most);
        assert_eq!((outcome.events.len(), outcome.violation), (1, None));
        let too_many = fragments(5000);
        violates(&too_many, 1008);
        let header = frame(MORE, b"").len();
        assert_eq!(refused_after(&too_many, &BOUNDS), fragments(1024).len() + header);
        violates(&[fragments(1024), frame(LAST, payload)].concat(), 1008);
    }
}

#[test]
fn fragments_are_counted_for_each_message_and_control_frames_are_not() {
    let bounds = Bounds { fragments: 3, ..BOUNDS };
    let message = [
        frame(TEXT_BEGINS, b"a"),
        frame(PING, b""),
        frame(PONG, b""),
        frame(MORE, b"b"),
        frame(PING, b""),
        frame(LAST, b"c"),
    ]
    .concat();
    let outcome = outcomes_within(&message.repeat(4), &bounds);
    assert_eq!((outcome.events.len(), outcome.violation), (16, None));
    // A message of one frame has one fragment, whatever the bound.
    let bounds = Bounds { fragments: 1, ..BOUNDS };
    let outcome = outcomes_within(&frame(TEXT, b"a").repeat(3), &bounds);
    assert_eq!((outcome.events.len(), outcome.violation), (3, None));
    let two = [frame(TEXT_BEGINS, b"a"), frame(LAST, b"b")].concat();
    assert_eq!(outcomes_within(&two, &bounds).code(), Some(1008));
}

// Sequences.

/// A server parsed everything it had read before it delivered anything; a malformed frame at the
/// end of a read threw away the good messages before it.
#[test]
fn what_came_before_a_malformed_frame_is_delivered() {
    let good = [
        frame(TEXT, b"one"),
        frame(PING, b"two"),
        frame(BINARY_BEGINS, b"th"),
        frame(PONG, b"four"),
        frame(LAST, b"ree"),
    ]
    .concat();
    let events = [text("one"), ping(b"two"), pong(b"four"), binary(b"three")];
    for (bad, code) in [
        (&b"\x81\x05"[..], 1002),
        (b"\xC1", 1002),
        (b"\x80\x80\0\0\0\0", 1002),
        (b"\x83", 1002),
        (b"\x81\x81\0\0\0\0\xFF", 1007),
        (b"\x82\xFF\0\0\0\0\x01\0\0\0\0\0\0\0", 1009),
        (b"\x88\x81\0\0\0\0\x03", 1002),
    ] {
        let outcome = outcomes(&[&good, bad, b"and more that is not looked at"].concat());
        assert_eq!(outcome.events, events, "{bad:02X?}");
        assert_eq!(outcome.code(), Some(code), "{bad:02X?}");
    }
}

#[test]
fn control_frames_between_fragments_come_first_and_disturb_nothing() {
    let stream = [
        frame(TEXT_BEGINS, b"He"),
        frame(PING, b"now"),
        frame(PONG, b""),
        frame(MORE, b"l"),
        frame(PING, &[b'x'; 125]),
        frame(LAST, b"lo"),
    ]
    .concat();
    gives(&stream, &[ping(b"now"), pong(b""), ping(&[b'x'; 125]), text("Hello")]);
    let stream =
        [frame(BINARY_BEGINS, b""), frame(PING, b""), frame(LAST, b""), frame(PONG, b"\0\xFF\x80")]
            .concat();
    gives(&stream, &[ping(b""), binary(b""), pong(b"\0\xFF\x80")]);
    // Even between the bytes of a character.
    let stream =
        [frame(TEXT_BEGINS, b"\xE2\x82"), frame(PING, b"\xE2"), frame(LAST, b"\xAC")].concat();
    gives(&stream, &[ping(b"\xE2"), text("€")]);
}

#[test]
fn a_close_frame_between_fragments_ends_the_stream() {
    let stream = [
        frame(TEXT_BEGINS, b"never "),
        frame(CLOSE, &close_payload(1001, b"bye")),
        frame(LAST, b"finished"),
    ]
    .concat();
    gives(&stream, &[closed(1001, "bye")]);
}

#[test]
fn a_control_frame_longer_than_125_bytes_is_refused_at_its_second_byte() {
    for first in [CLOSE, PING, PONG] {
        violates(&frame(first, &[b'x'; 126]), 1002);
        violates(&header64(first, 65_536), 1002);
        assert_eq!(refused_after(&frame(first, &[b'x'; 126]), &BOUNDS), 2);
    }
    let longest = [b'x'; 125];
    gives(
        &[frame(PING, &longest), frame(PONG, &longest)].concat(),
        &[ping(&[b'x'; 125]), pong(&[b'x'; 125])],
    );
    let reason = "x".repeat(123);
    gives(&frame(CLOSE, &close_payload(1000, reason.as_bytes())), &[closed(1000, &reason)]);
}

#[test]
fn a_fragmented_control_frame_is_refused_at_once() {
    for first in [CLOSE, PING, PONG].map(|first| first & !0x80) {
        violates(&frame(first, b""), 1002);
        violates(&frame(first, b"payload"), 1002);
        assert_eq!(refused_after(&frame(first, b"payload"), &BOUNDS), 1);
    }
}

#[test]
fn a_continuation_of_nothing_is_refused() {
    for first in [MORE, LAST] {
        violates(&frame(first, b""), 1002);
        violates(&frame(first, b"payload"), 1002);
        // By its header, before its payload.
        assert_eq!(refused_after(&frame(first, b"payload"), &BOUNDS), 6);
        let after = [frame(TEXT_BEGINS, b"a"), frame(LAST, b"b"), frame(first, b"c")].concat();
        let outcome = outcomes(&after);
        assert_eq!((outcome.events, outcome.violation.is_some()), (vec![text("ab")], true));
        let after = [frame(TEXT, b"a"), frame(first, b"c")].concat();
        assert_eq!(outcomes(&after).code(), Some(1002));
    }
}

#[test]
fn a_message_inside_a_message_is_refused() {
    for inner in [TEXT, BINARY, TEXT_BEGINS, BINARY_BEGINS] {
        for payload in [&b""[..], b"b"] {
            violates(&[frame(TEXT_BEGINS, b"a"), frame(inner, payload)].concat(), 1002);
            violates(&[frame(BINARY_BEGINS, b""), frame(inner, payload)].concat(), 1002);
        }
    }
}

#[test]
fn empty_messages_are_messages() {
    gives(&[frame(TEXT, b""), frame(BINARY, b"")].concat(), &[text(""), binary(b"")]);
    let stream = [frame(TEXT_BEGINS, b""), frame(MORE, b""), frame(LAST, b"")].concat();
    gives(&stream, &[text("")]);
    let stream = [frame(BINARY_BEGINS, b""), frame(LAST, b"x")].concat();
    gives(&stream, &[binary(b"x")]);
}

// Text.

#[test]
fn text_may_be_cut_into_fragments_inside_every_character() {
    let message = "aé€𝄞\u{80}\u{7FF}\u{800}\u{D7FF}\u{E000}\u{FFFD}\u{FFFF}\u{10000}\u{10FFFF}\0z";
    for left in 0..=message.len() {
        for right in left..=message.len() {
            let stream = [
                frame(TEXT_BEGINS, &message.as_bytes()[..left]),
                frame(MORE, &message.as_bytes()[left..right]),
                frame(LAST, &message.as_bytes()[right..]),
            ]
            .concat();
            let outcome = feed([&stream[..]], &BOUNDS);
            assert_eq!(outcome.violation, None, "cut at {left} and {right}");
            assert_eq!(outcome.events, [text(message)], "cut at {left} and {right}");
            assert_eq!(feed(stream.chunks(1), &BOUNDS), outcome, "cut at {left} and {right}");
        }
    }
    // A fragment for each byte.
    let mut stream = frame(TEXT_BEGINS, b"");
    message.bytes().for_each(|byte| stream.extend(frame(MORE, &[byte])));
    stream.extend(frame(LAST, b""));
    gives(&stream, &[text(message)]);
}

/// A validator that works in blocks of 16, 32 or 64 bytes lost the state between two of them.
#[test]
fn a_character_may_stand_across_the_edge_of_every_simd_block() {
    for character in ["é", "€", "𝄞"] {
        for before in (0..6).chain(10..18).chain(26..34).chain(58..68).chain(122..131) {
            let message = format!("{}{character}{}", "a".repeat(before), "b".repeat(70));
            gives(&frame(TEXT, message.as_bytes()), &[text(&message)]);
            // The same text without the last byte of that character.
            let mut broken = message.clone().into_bytes();
            broken.remove(before + character.len() - 1);
            violates(&frame(TEXT, &broken), 1007);
        }
    }
}

/// Each with the index of the first byte that no valid text can have there.
const NOT_UTF8: &[(&[u8], usize)] = &[
    (b"\x80", 0),                     // a continuation of nothing
    (b"\xBF", 0),                     //
    (b"\xC0\x80", 0),                 // U+0000 in two bytes
    (b"\xC0\xAF", 0),                 // '/' in two bytes
    (b"\xC1\xBF", 0),                 // U+007F in two bytes
    (b"\xE0\x80\x80", 1),             // U+0000 in three bytes
    (b"\xE0\x9F\xBF", 1),             // U+07FF in three bytes
    (b"\xF0\x80\x80\x80", 1),         // U+0000 in four bytes
    (b"\xF0\x8F\xBF\xBF", 1),         // U+FFFF in four bytes
    (b"\xED\xA0\x80", 1),             // U+D800, a surrogate
    (b"\xED\xBF\xBF", 1),             // U+DFFF, a surrogate
    (b"\xED\xA0\x81\xED\xB0\x80", 1), // a pair of surrogates
    (b"\xF4\x90\x80\x80", 1),         // U+110000
    (b"\xF5\x80\x80\x80", 0),         // beyond every plane
    (b"\xF8\x88\x80\x80\x80", 0),     // five bytes
    (b"\xFC\x84\x80\x80\x80\x80", 0), // six bytes
    (b"\xFE", 0),                     //
    (b"\xFF", 0),                     //
    (b"\xC3a", 1),                    // a character that ends too early, at each of its bytes
    (b"\xC3\xC3", 1),                 //
    (b"\xE2a", 1),                    //
    (b"\xE2\x82a", 2),                //
    (b"\xE2\x82\xE2", 2),             //
    (b"\xF0\x9Da", 2),                //
    (b"\xF0\x9D\x84a", 3),            //
    (b"\xF0\x9D\x84\xF0", 3),         //
];

/// A server validated a message when it was complete: a peer that had sent an impossible byte
/// could go on for as long as it liked.
#[test]
fn text_is_refused_at_the_first_byte_that_cannot_be() {
    for (bad, index) in NOT_UTF8 {
        for before in ["", "κόσμε", "sixteen bytes a…", &"x".repeat(63), &"é".repeat(40)] {
            let payload = [before.as_bytes(), bad, b" and so on"].concat();
            let first_bad = before.len() + index;
            for first in [TEXT, TEXT_BEGINS] {
                let stream = frame(first, &payload);
                let header = stream.len() - payload.len();
                violates(&stream, 1007);
                let expected = header + first_bad + 1;
                assert_eq!(refused_after(&stream, &BOUNDS), expected, "{bad:02X?} in {before:?}");
            }
            // Also when the beginning of the character is in an earlier fragment.
            for cut in before.len()..=first_bad {
                let begun = frame(TEXT_BEGINS, &payload[..cut]);
                let stream = [begun.clone(), frame(MORE, &payload[cut..])].concat();
                violates(&stream, 1007);
                let expected = begun.len() + 6 + (first_bad - cut) + 1;
                assert_eq!(refused_after(&stream, &BOUNDS), expected, "{bad:02X?}, cut at {cut}");
            }
            // None of this matters to bytes that do not claim to be text.
            gives(&frame(BINARY, &payload), &[binary(&payload)]);
        }
    }
}

#[test]
fn a_bad_byte_is_found_at_every_place_of_a_long_text() {
    for position in 0..200 {
        let mut payload = vec![b'a'; 200];
        payload[position] = 0xFF;
        let stream = frame(TEXT, &payload);
        assert_eq!(feed([&stream[..]], &BOUNDS).code(), Some(1007), "{position}");
        let taken = stream.len() - payload.len() + position;
        assert_eq!(feed([&stream[..taken]], &BOUNDS).violation, None, "{position}");
        assert_eq!(feed([&stream[..=taken]], &BOUNDS).code(), Some(1007), "{position}");
    }
}

#[test]
fn text_must_not_end_inside_a_character() {
    for unfinished in [&b"\xC3"[..], b"\xE2", b"\xE2\x82", b"\xF0", b"\xF0\x9D", b"\xF0\x9D\x84"] {
        for before in [&b""[..], b"text ", &[b'x'; 64]] {
            let payload = [before, unfinished].concat();
            violates(&frame(TEXT, &payload), 1007);
            let begun = frame(TEXT_BEGINS, &payload);
            assert_eq!(outcomes(&begun), Outcome::default(), "a fragment may");
            violates(&[begun.clone(), frame(LAST, b"")].concat(), 1007);
            violates(&[begun.clone(), frame(MORE, b""), frame(LAST, b"")].concat(), 1007);
            violates(&[begun, frame(LAST, b"a")].concat(), 1007);
        }
    }
}

// Close frames.

#[test]
fn close_codes_that_may_be_sent_are_accepted() {
    let codes = (1000..=1003).chain(1007..=1014).chain([3000, 3001, 3999, 4000, 4998, 4999]);
    for code in codes {
        gives(&frame(CLOSE, &close_payload(code, b"")), &[closed(code, "")]);
        gives(&frame(CLOSE, &close_payload(code, "grüße".as_bytes())), &[closed(code, "grüße")]);
    }
}

#[test]
fn close_codes_that_must_not_be_sent_are_refused() {
    let codes = [0, 1, 999, 1004, 1005, 1006, 1015, 5000, 5001, 0x7FFF, 0xFFFF];
    for code in codes.into_iter().chain(1016..=2999) {
        let stream = frame(CLOSE, &close_payload(code, b"why"));
        let outcome = feed([&stream[..]], &BOUNDS);
        assert_eq!((outcome.events.len(), outcome.code()), (0, Some(1002)), "{code}");
    }
    for code in codes {
        violates(&frame(CLOSE, &close_payload(code, b"")), 1002);
        violates(&frame(CLOSE, &close_payload(code, b"why")), 1002);
    }
}

#[test]
fn a_close_frame_has_no_code_or_a_whole_one() {
    gives(&frame(CLOSE, b""), &[Event::Close(None)]);
    violates(&frame(CLOSE, b"\x03"), 1002);
    violates(&frame(CLOSE, b"\x00"), 1002);
    gives(&frame(CLOSE, b"\x03\xE8"), &[closed(1000, "")]);
}

#[test]
fn a_close_reason_is_text() {
    for (bad, _) in NOT_UTF8 {
        violates(&frame(CLOSE, &close_payload(1000, bad)), 1007);
        violates(&frame(CLOSE, &close_payload(1000, &[b"because ", *bad].concat())), 1007);
    }
    // Not even unfinished.
    violates(&frame(CLOSE, &close_payload(1000, b"\xE2\x82")), 1007);
    gives(&frame(CLOSE, &close_payload(1000, b"\xE2\x82\xAC")), &[closed(1000, "€")]);
}

#[test]
fn what_follows_a_close_frame_is_ignored() {
    let close = frame(CLOSE, &close_payload(1000, b""));
    for after in [
        frame(TEXT, b"late"),
        frame(PING, b"late"),
        close.clone(),
        frame(CLOSE, b"\x03"),
        b"\xFF\x00 no frame at all".to_vec(),
        b"\x81".to_vec(),
        header64(BINARY, u64::MAX),
    ] {
        gives(&[close.clone(), after.clone()].concat(), &[closed(1000, "")]);
        gives(&[frame(CLOSE, b""), after.clone()].concat(), &[Event::Close(None)]);
        gives(
            &[frame(TEXT, b"before"), close.clone(), after].concat(),
            &[text("before"), closed(1000, "")],
        );
    }
}

// Everything at once.

/// All pairs of first bytes, each with a payload that is text, behind a message and inside one.
#[test]
fn every_pair_of_first_bytes_means_the_same_whole_and_byte_by_byte() {
    for begun in [frame(TEXT, b"a"), frame(TEXT_BEGINS, b"a")] {
        for pair in 0..=u16::MAX {
            let stream = [&begun, &pair.to_be_bytes()[..], b"\0\0\0\0\0\x01\0\0\0\0\0\0\x03\xE8"];
            let stream = stream.concat();
            let whole = feed([&stream[..]], &BOUNDS);
            assert_eq!(feed(stream.chunks(1), &BOUNDS), whole, "{pair:#06X}");
        }
    }
}

/// Valid frames of all kinds, some of them damaged somewhere.
#[test]
fn any_stream_at_all_means_the_same_however_it_is_cut() {
    let mut lcg = Lcg(6455);
    let (mut valid, mut damaged) = (0, 0);
    let bounds = Bounds { message_bytes: 200, fragments: 4, ..BOUNDS };
    for _ in 0..400 {
        let mut stream = Vec::new();
        for _ in 0..1 + lcg.below(6) {
            let first =
                [TEXT, BINARY, LAST, PING, PONG, TEXT_BEGINS, BINARY_BEGINS, MORE, LAST, CLOSE]
                    [lcg.below(10)];
            let len = [0, 1, 2, 3, 20, 125, 126][lcg.below(7)];
            let payload = match (first, lcg.below(8)) {
                (CLOSE, _) => close_payload(1000, b"end"),
                (PING | PONG, _) => lcg.bytes(len.min(125)),
                (TEXT | TEXT_BEGINS, 0) | (BINARY | BINARY_BEGINS, _) => lcg.bytes(len),
                _ => "aé€𝄞".repeat(len / 10).into_bytes(),
            };
            let mask = [lcg.byte(), lcg.byte(), lcg.byte(), lcg.byte()];
            stream.extend(masked(first, &payload, mask));
        }
        if lcg.below(2) == 0 {
            let at = lcg.below(stream.len());
            stream[at] ^= 1 << lcg.below(8);
        }
        match outcomes_within(&stream, &bounds).violation {
            None => valid += 1,
            Some(_) => damaged += 1,
        }
    }
    assert!(valid > 50 && damaged > 50, "{valid} valid, {damaged} damaged: both are tried");
}

/// What both implementations say about a stream.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

/// A socket with nothing behind it but these bytes.
struct Wire(Cursor<Vec<u8>>);

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What tungstenite, as a server, reads from the stream.
fn tungstenite_reads(stream: Vec<u8>) -> Vec<Seen> {
    let mut socket = WebSocket::from_raw_socket(Wire(Cursor::new(stream)), Role::Server, None);
    let mut seen = Vec::new();
    loop {
        seen.push(match socket.read() {
            Ok(tungstenite::Message::Text(text)) => Seen::Text(text.as_str().to_owned()),
            Ok(tungstenite::Message::Binary(bytes)) => Seen::Binary(bytes.to_vec()),
            Ok(tungstenite::Message::Ping(payload)) => Seen::Ping(payload.to_vec()),
            Ok(tungstenite::Message::Pong(payload)) => Seen::Pong(payload.to_vec()),
            Err(tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return seen;
            }
            other => panic!("{other:?}"),
        });
    }
}

fn codec_reads<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Seen> {
    let outcome = feed(pieces, &BOUNDS);
    assert_eq!(outcome.violation, None);
    let seen = outcome.events.into_iter().map(|event| match event {
        Event::Message(Message::Text(text)) => Seen::Text(text.as_str().to_owned()),
        Event::Message(Message::Binary(bytes)) => Seen::Binary(bytes.to_vec()),
        Event::Ping(payload) => Seen::Ping(payload.to_vec()),
        Event::Pong(payload) => Seen::Pong(payload.to_vec()),
        other => panic!("{other:?}"),
    });
    seen.collect()
}

/// Another implementation of the RFC and the generator itself must agree with ours about random
/// messages in random fragments with control frames between.
#[test]
fn another_implementation_reads_the_same() {
    const CHARACTERS: [char; 8] = ['a', '\0', 'é', '\u{7FF}', '€', '\u{FFFF}', '𝄞', '\u{10FFFF}'];
    let mut lcg = Lcg(1);
    for round in 0..25 {
        let (mut stream, mut sent) = (Vec::new(), Vec::new());
        for _ in 0..1 + lcg.below(8) {
            let len = [0, 1, 2, 7, 31, 64, 125, 126, 127, 300, 4096, 65_535, 65_536][lcg.below(13)];
            let (opcode, payload) = if lcg.below(2) == 0 {
                (0x02, lcg.bytes(len))
            } else {
                let text = (0..len / 4).map(|_| CHARACTERS[lcg.below(8)]);
                (0x01, text.collect::<String>().into_bytes())
            };
            let mut cuts: Vec<_> =
                (0..lcg.below(5)).map(|_| lcg.below(payload.len() + 1)).collect();
            cuts.extend([0, payload.len()]);
            cuts.sort_unstable();
            for (i, piece) in cuts.windows(2).enumerate() {
                let fin = if i + 2 == cuts.len() { 0x80 } else { 0 };
                let opcode = if i == 0 { opcode } else { 0 };
                while lcg.below(3) == 0 {
                    let len = lcg.below(126);
                    let payload = lcg.bytes(len);
                    let mask = lcg.bytes(4).try_into().unwrap();
                    if lcg.below(2) == 0 {
                        stream.extend(masked(PING, &payload, mask));
                        sent.push(Seen::Ping(payload));
                    } else {
                        stream.extend(masked(PONG, &payload, mask));
                        sent.push(Seen::Pong(payload));
                    }
                }
                let mask = lcg.bytes(4).try_into().unwrap();
                stream.extend(masked(fin | opcode, &payload[piece[0]..piece[1]], mask));
            }
            sent.push(match opcode {
                0x01 => Seen::Text(String::from_utf8(payload).unwrap()),
                _ => Seen::Binary(payload),
            });
        }
        assert!(codec_reads([&stream[..]]) == sent, "round {round}: the codec, whole");
        for size in [1, 2, 13, 100, 4096, 1 + lcg.below(20_000)] {
            let read = codec_reads(stream.chunks(size));
            assert!(read == sent, "round {round}: the codec, in pieces of {size}");
        }
        assert!(tungstenite_reads(stream) == sent, "round {round}: tungstenite");
    }
}

// Messages in parts.

/// What came out of a stream of which messages are handed on in parts. How a message is cut into parts
/// depends on the reads; nothing else may.
#[derive(Debug, Default, PartialEq, Eq)]
struct Streamed {
    /// Whole messages and control frames, in the order of their ends.
    events: Vec<Event>,
    violation: Option<Violation>,
}

/// Feeds the pieces, and checks what must hold of every part. Also returns what had come of a message
/// that was not completed.
fn feed_streamed<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    bounds: &Bounds,
) -> (Streamed, Option<(Kind, Vec<u8>)>) {
    let (mut codec, mut contexts) = (Codec::default(), None);
    let mut outcome = Streamed::default();
    let mut open: Option<(Kind, Vec<u8>)> = None;
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut rest = &mut piece[..];
        loop {
            let event = match codec.next(&mut rest, bounds, &mut contexts) {
                Ok(None) => break,
                Ok(Some(event)) => event,
                Err(violation) => {
                    outcome.violation = Some(violation);
                    return (outcome, open);
                }
            };
            let Event::Part(part) = event else {
                assert!(!matches!(event, Event::Message(_)), "messages are streamed");
                outcome.events.push(event);
                continue;
            };
            assert_eq!(
                part.first.is_some(),
                open.is_none(),
                "the first one, and no other, says so"
            );
            assert!(part.first.is_some() || part.last || !part.bytes.is_empty(), "for nothing");
            let (kind, bytes) = open.get_or_insert_with(|| (part.first.unwrap(), Vec::new()));
            assert!(*kind == Kind::Binary || std::str::from_utf8(&part.bytes).is_ok());
            bytes.extend_from_slice(&part.bytes);
            if part.last {
                let (kind, bytes) = open.take().unwrap();
                outcome.events.push(Event::Message(match kind {
                    Kind::Text => String::from_utf8(bytes).unwrap().into(),
                    Kind::Binary => bytes.into(),
                }));
            }
        }
        assert!(rest.is_empty(), "without an event everything is consumed");
        assert!(codec.heap_bytes() <= 256, "nothing is kept: {}", codec.heap_bytes());
    }
    (outcome, open)
}

/// What comes out of this stream in parts, however it is cut: the same as in whole messages.
#[track_caller]
fn streams_alike(bytes: &[u8], bounds: &Bounds) -> Streamed {
    let streamed = Bounds { streamed: true, ..*bounds };
    let whole = feed([bytes], bounds);
    let whole = Streamed { events: whole.events, violation: whole.violation };
    let (one_by_one, most) = feed_streamed(bytes.chunks(1), &streamed);
    assert_eq!(one_by_one, whole, "byte by byte");
    let check = |(outcome, open): (Streamed, Option<(Kind, Vec<u8>)>), how: &str| {
        assert_eq!(outcome, whole, "{how}");
        // Before a violation more or less of the message may have been handed on.
        match (open, &most) {
            (None, None) => {}
            (None, Some(_)) => assert!(whole.violation.is_some(), "{how}"),
            (Some((kind, bytes)), Some((most_kind, most))) => {
                assert_eq!(kind, *most_kind);
                assert!(most.starts_with(&bytes), "{how}");
                assert!(bytes.len() == most.len() || whole.violation.is_some(), "{how}");
            }
            (Some(_), None) => panic!("{how}"),
        }
    };
    check(feed_streamed([bytes], &streamed), "whole");
    for at in 0..=bytes.len().min(2048) {
        let (left, right) = bytes.split_at(at);
        check(feed_streamed([left, right], &streamed), &format!("cut at {at}"));
    }
    let mut lcg = Lcg(bytes.len() as u64);
    for round in 0..20 {
        let longest = (2 << (round % 12)).max(bytes.len() / 100);
        let mut pieces = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(lcg.below(longest + 1)));
            pieces.push(piece);
            rest = after;
        }
        check(feed_streamed(pieces, &streamed), "random pieces");
    }
    whole
}

#[test]
fn in_parts_a_stream_says_the_same_however_it_is_cut() {
    let text_in_pieces = [
        frame(TEXT_BEGINS, b"\xE2"),
        frame(PING, b"between"),
        frame(MORE, b""),
        frame(MORE, b"\x82\xAC and"),
        frame(PONG, b""),
        frame(LAST, b" more"),
    ]
    .concat();
    let several = [
        text_in_pieces.clone(),
        frame(BINARY, b""),
        frame(TEXT, b""),
        frame(BINARY_BEGINS, b""),
        frame(LAST, b""),
        frame(BINARY, &[7; 1000]),
        frame(TEXT_BEGINS, b"x"),
        frame(LAST, b""),
    ]
    .concat();
    assert_eq!(streams_alike(&several, &BOUNDS).events.len(), 8);
    let mut lcg = Lcg(3);
    let long = lcg.bytes(60_000);
    assert_eq!(streams_alike(&frame(BINARY, &long), &BOUNDS).events, [binary(&long)]);
    // Messages that have not ended, and ones that are followed by the end.
    streams_alike(&text_in_pieces[..text_in_pieces.len() - 3], &BOUNDS);
    let stream = [&text_in_pieces[..20], &frame(CLOSE, b"")].concat();
    streams_alike(&stream, &BOUNDS);
    let stream = [frame(TEXT_BEGINS, b"half"), frame(CLOSE, &close_payload(1000, b""))].concat();
    assert_eq!(streams_alike(&stream, &BOUNDS).events, [closed(1000, "")]);
}

#[test]
fn in_parts_the_same_is_refused_however_it_is_cut() {
    let begun = frame(TEXT_BEGINS, b"good");
    for (bad, code) in [
        (frame(LAST, b"b\xFFd"), 1007),
        (frame(LAST, b"b\xE2\x82"), 1007),
        (frame(MORE, b"\xED\xA0\x80"), 1007),
        (frame(TEXT, b"new"), 1002),
        (frame(BINARY_BEGINS, b""), 1002),
        (frame(LAST | 0x40, b"x"), 1002),
        (frame(PING, &[0; 126]), 1002),
        (header64(LAST, 1 << 40), 1009),
        (frame(LAST, &[b'x'; 97]), 1009),
    ] {
        let bounds = Bounds { message_bytes: 100, ..BOUNDS };
        let stream = [&begun[..], &bad, b"and more"].concat();
        let outcome = streams_alike(&stream, &bounds);
        assert_eq!(outcome.violation.map(|it| it.code.as_u16()), Some(code), "{bad:02X?}");
        assert_eq!(outcome.events, []);
    }
    for (bad, index) in NOT_UTF8 {
        let stream = [begun.clone(), frame(LAST, bad)].concat();
        let streamed = Bounds { streamed: true, ..BOUNDS };
        let expected = stream.len() - bad.len() + index + 1;
        assert_eq!(refused_after(&stream, &streamed), expected, "{bad:02X?}");
    }
}

#[cfg(feature = "deflate")]
#[test]
fn in_parts_a_compressed_stream_says_the_same_however_it_is_cut() {
    for client_takeover in [false, true] {
        let agreement =
            Agreement { server_takeover: client_takeover, client_takeover, ..Agreement::SHARED };
        let bounds = Bounds { deflate: Some(agreement), message_bytes: 1000, ..BOUNDS };
        // RFC 7692 section 7.2.3: each alone, in two frames at every place, and with an empty last one.
        for wire in [
            &b"\xF2\x48\xCD\xC9\xC9\x07\x00"[..],
            b"\xF3\x48\xCD\xC9\xC9\x07\x00",
            b"\xF3\x48\xCD\xC9\xC9\x07\x00\x00",
            b"\xF2\x48\x05\x00\x00\x00\xFF\xFF\xCA\xC9\xC9\x07\x00",
        ] {
            let mut stream = frame(TEXT | 0x40, wire);
            for at in 0..=wire.len() {
                stream.extend(frame(TEXT_BEGINS | 0x40, &wire[..at]));
                stream.extend(frame(LAST, &wire[at..]));
            }
            stream.extend(frame(TEXT | 0x40, b"\0"));
            stream.extend(frame(TEXT | 0x40, b""));
            stream.extend(frame(TEXT, b"plain"));
            stream.extend(frame(TEXT | 0x40, wire));
            let outcome = streams_alike(&stream, &bounds);
            assert_eq!(outcome.violation, None);
            assert_eq!(outcome.events.len(), wire.len() + 6);
            assert_eq!(outcome.events.last(), Some(&text("Hello")));
        }
        // Garbage, and more than the limit.
        let bad = frame(TEXT | 0x40, &[0xFF; 20]);
        assert_eq!(streams_alike(&bad, &bounds).violation.map(|it| it.code.as_u16()), Some(1007));
        let mut wire = Vec::new();
        assert!(super::deflate::deflate_alone(&[b'x'; 1001], &mut wire, 15, 6));
        let outcome = streams_alike(&frame(TEXT | 0x40, &wire), &bounds);
        assert_eq!(outcome.violation.map(|it| it.code.as_u16()), Some(1009));
    }
}
