//! A stream of length-prefixed frames, or of anything else, cut into pieces.
//!
//! * Nothing panics.
//! * Messages and violation are those of a decoder of ten lines, which sees the stream as a whole.
//! * They do not depend on the cuts, and neither do messages in parts, put together.
//! * What the codec holds is bounded by what has arrived, whatever a length claims.
//!
//! Input: a byte of settings, a seed for the cuts (2), the stream or the lengths of frames (2 each).
#![no_main]

use coracle::Kind;
use coracle::internals::{Decoder, Event};
use coracle_fuzz::{Input, Outcome, decode, pieces};
use libfuzzer_sys::fuzz_target;
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// What a codec may hold beyond twice the bytes it was given: the fixed part of a message, and the
/// smallest vector.
const FIXED: usize = 160;

/// The most that a part has.
const PART: usize = 16 * 1024;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let settings = input.byte();
    let seed = input.u16();
    let message_bytes = [65_536, 100, 0, usize::MAX][usize::from(settings >> 1 & 3)];
    let stream = if settings & 1 == 0 { input.0.to_vec() } else { frames(&mut input) };
    let expected = reference(&stream, message_bytes);

    let decoder = || Decoder::new(message_bytes, 1, None).prefixed();
    assert_eq!(Whole::of(decode(&mut decoder(), [&stream[..]])), expected, "as a whole");
    let pieces = pieces(&stream, seed);
    assert_eq!(Whole::of(decode(&mut decoder(), pieces.iter().copied())), expected, "in pieces");
    if stream.len() <= 512 {
        assert_eq!(Whole::of(decode(&mut decoder(), stream.chunks(1))), expected, "byte by byte");
    }
    let parts = decode(&mut decoder().streamed(), pieces.iter().copied());
    assert_eq!(Whole::of(parts), expected, "in parts");
    check_heap(decoder(), &pieces);
});

/// Frames of these lengths; nothing is missing but perhaps of the last.
fn frames(input: &mut Input<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    while !input.is_empty() && stream.len() < 1 << 20 {
        let len = input.u16();
        stream.extend_from_slice(&u32::from(len).to_be_bytes());
        let sent = if input.is_empty() { len / 2 } else { len };
        stream.extend((0..sent).map(|i| i as u8));
    }
    stream
}

/// What came out of one stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Whole {
    messages: Vec<Vec<u8>>,
    violation: Option<u16>,
}

impl Whole {
    fn of(outcome: Outcome) -> Self {
        let mut whole = Self { violation: outcome.violation.map(|it| it.code), ..Self::default() };
        let mut begun: Option<Vec<u8>> = None;
        for event in outcome.events {
            match event {
                Event::Message(message) => whole.messages.push(message.as_bytes().to_vec()),
                Event::Part { first, bytes, last } => {
                    assert_eq!(first, begun.is_none().then_some(Kind::Binary), "one first part");
                    assert!(!bytes.is_empty() || last, "a part of nothing");
                    assert!(bytes.len() <= PART);
                    let message = begun.get_or_insert_default();
                    message.extend_from_slice(&bytes);
                    if last {
                        whole.messages.extend(begun.take());
                    }
                }
                other => panic!("there is no such thing: {other:?}"),
            }
        }
        whole
    }
}

fn reference(mut stream: &[u8], message_bytes: usize) -> Whole {
    let mut whole = Whole::default();
    while let Some((header, rest)) = stream.split_first_chunk() {
        let len = u32::from_be_bytes(*header) as usize;
        if len > message_bytes {
            whole.violation = Some(1009);
            break;
        }
        let Some((payload, rest)) = rest.split_at_checked(len) else {
            break;
        };
        whole.messages.push(payload.to_vec());
        stream = rest;
    }
    whole
}

/// Decodes once more, and drops every message as soon as it is there.
fn check_heap(mut decoder: Decoder, pieces: &[&[u8]]) {
    let mut buffer = Vec::with_capacity(pieces.iter().map(|piece| piece.len()).max().unwrap_or(0));
    let mut fed = 0;
    let before = HEAP.current_usage();
    for piece in pieces {
        buffer.clear();
        buffer.extend_from_slice(piece);
        fed += piece.len();
        let mut rest = &mut buffer[..];
        while matches!(decoder.next(&mut rest), Ok(Some(_))) {}
        let held = HEAP.current_usage() - before;
        assert!(held <= 2 * fed + FIXED, "{held} bytes of {fed}");
    }
}
