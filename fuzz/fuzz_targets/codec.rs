//! A stream of client frames, or of anything else, cut into pieces.
//!
//! * Nothing panics.
//! * Events and violation do not depend on the cuts.
//! * What the codec holds is bounded by what has arrived, and by the limits.
//!
//! Input: a byte of settings, a seed for the cuts (2), the stream or a script of it.
#![no_main]

use std::sync::LazyLock;

use coracle::fuzzing::{Agreement, Decoder, Deflater, Event};
use coracle_fuzz::{Input, decode, pieces, stream};
use libfuzzer_sys::fuzz_target;
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// What a codec may hold beyond twice the bytes it was given: the fixed part of a message, and the
/// smallest vector.
const FIXED: usize = 160;

/// What a session's decompressor costs: 47 KiB whatever its window (measured with zlib-rs 0.6), and
/// twice as much while one that has ended its stream is replaced.
const INFLATER: usize = 96 * 1024;

/// The thread's decompressor, which is no session's.
static WARM: LazyLock<()> = LazyLock::new(|| {
    let mut message = *b"\xC2\x81\0\0\0\0\0";
    let mut decoder = Decoder::new(100, 1, agreement(1));
    assert!(decoder.next(&mut &mut message[..]).is_ok());
});

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let settings = input.byte();
    let seed = input.u16();
    let deflate = agreement(settings >> 1);
    let (message_bytes, fragments) =
        [(65_536, 1024), (100, 4), (1000, 16), (5000, 1024)][usize::from(settings >> 3 & 3)];
    let bytes = if settings & 1 == 0 {
        input.0.to_vec()
    } else {
        let mut deflater = deflate.map(|agreement| Deflater::new(agreement.mirrored(), 6));
        stream::scripted(input.0, deflater.as_mut())
    };

    let decoder = || Decoder::new(message_bytes, fragments, deflate);
    let whole = decode(&mut decoder(), [&bytes[..]]);
    let pieces = pieces(&bytes, seed);
    assert_eq!(decode(&mut decoder(), pieces.iter().copied()), whole, "in pieces");
    if bytes.len() <= 2048 {
        assert_eq!(decode(&mut decoder(), bytes.chunks(1)), whole, "byte by byte");
    }
    for event in &whole.events {
        match event {
            Event::Message(message) => assert!(message.len() <= message_bytes),
            Event::Ping(payload) | Event::Pong(payload) => assert!(payload.len() <= 125),
            Event::Close(None) => {}
            Event::Close(Some((code, reason))) => {
                assert!(matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999), "{code}");
                assert!(reason.len() <= 123);
            }
        }
    }
    let closes = whole.events.iter().filter(|event| matches!(event, Event::Close(_))).count();
    assert!(closes == 0 || (closes == 1 && whole.violation.is_none()));
    assert!(closes == 0 || matches!(whole.events.last(), Some(Event::Close(_))));

    let takeover = deflate.is_some_and(|agreement| agreement.client_takeover);
    check_heap(decoder(), &pieces, message_bytes, if takeover { INFLATER } else { 0 });
});

fn agreement(choice: u8) -> Option<Agreement> {
    let takeover = choice & 3 >= 2;
    let bits = if choice & 3 == 3 { 9 } else { 15 };
    (choice & 3 != 0).then_some(Agreement {
        server_takeover: takeover,
        client_takeover: takeover,
        server_window_bits: bits,
        client_window_bits: bits,
    })
}

/// Decodes once more, and drops every event as soon as it is there.
fn check_heap(mut decoder: Decoder, pieces: &[&[u8]], message_bytes: usize, inflater: usize) {
    LazyLock::force(&WARM);
    let longest = pieces.iter().map(|piece| piece.len()).max().unwrap_or(0);
    let mut buffer = Vec::with_capacity(longest);
    let mut fed = 0;
    let before = HEAP.current_usage();
    for piece in pieces {
        buffer.clear();
        buffer.extend_from_slice(piece);
        fed += piece.len();
        let mut rest = &mut buffer[..];
        loop {
            HEAP.reset_peak_usage();
            let more = matches!(decoder.next(&mut rest), Ok(Some(_)));
            // A vector that doubles, twice while it moves, and the message that is made of it, whose
            // last growth is not its last size; the decompressor works in steps of a kibibyte.
            let peak = HEAP.peak_usage() - before;
            assert!(peak <= 8 * message_bytes + 4096 + inflater, "{peak} bytes at once");
            if !more {
                break;
            }
        }
        let held = HEAP.current_usage() - before;
        // A message, and 125 bytes of a control frame inside of it.
        let arrived = fed.min(message_bytes + 125);
        assert!(held <= 2 * arrived + FIXED + inflater, "{held} bytes of {fed}");
    }
}
