//! A stream of client frames, or of anything else, cut into pieces.
//!
//! * Nothing panics.
//! * Events and violation do not depend on the cuts.
//! * What the codec holds is bounded by what has arrived, and by the limits.
//! * All this holds for messages in parts, too, which put together are the whole messages.
//!
//! Input: a byte of settings, a seed for the cuts (2), the stream or a script of it.
#![no_main]

use std::sync::LazyLock;

use coracle::Kind;
use coracle::internals::{Agreement, Decoder, Deflater, Event, Violation};
use coracle_fuzz::{Input, Outcome, decode, pieces, stream};
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
    if bytes.len() <= 512 {
        assert_eq!(decode(&mut decoder(), bytes.chunks(1)), whole, "byte by byte");
    }
    for event in &whole.events {
        match event {
            Event::Message(message) => assert!(message.len() <= message_bytes),
            Event::Part { .. } => panic!("only if messages are streamed"),
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

    let heap = Heap::of(&pieces, message_bytes, fragments, deflate);
    heap.check(decoder());
    check_streamed(|| decoder().streamed(), &pieces, &whole, deflate.is_some());
    heap.streamed().check(decoder().streamed());
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

/// What the codec may hold.
struct Heap<'a> {
    pieces: &'a [&'a [u8]],
    /// A message, and 125 bytes of a control frame inside of it; of a message in parts nothing.
    kept: usize,
    /// For a moment.
    peak: usize,
    inflater: usize,
}

impl<'a> Heap<'a> {
    fn of(
        pieces: &'a [&'a [u8]],
        message_bytes: usize,
        fragments: u32,
        deflate: Option<Agreement>,
    ) -> Self {
        // A message may be larger compressed: nine bits for each byte, and the headers of blocks.
        let wire =
            message_bytes + message_bytes / 8 + message_bytes / 128 + 64 + 12 * fragments as usize;
        let takeover = deflate.is_some_and(|agreement| agreement.client_takeover);
        Self {
            pieces,
            kept: wire + 125,
            // A vector that doubles, twice while it moves, and the message that is made of it, whose
            // last growth is not its last size; the decompressor works in steps of a kibibyte.
            peak: 8 * wire + 4096,
            inflater: if takeover { INFLATER } else { 0 },
        }
    }

    /// A part has 16 KiB, or what the last 64 bytes decompress to, and may move while it grows. A
    /// message has a decompressor of its own.
    fn streamed(self) -> Self {
        let peak = 3 * (16 * 1024 + 64 * 1032) + 4096;
        Self { kept: 125, peak, inflater: INFLATER, ..self }
    }

    /// Decodes once more, and drops every event as soon as it is there.
    fn check(&self, mut decoder: Decoder) {
        LazyLock::force(&WARM);
        let longest = self.pieces.iter().map(|piece| piece.len()).max().unwrap_or(0);
        let mut buffer = Vec::with_capacity(longest);
        let mut fed = 0;
        let before = HEAP.current_usage();
        for piece in self.pieces {
            buffer.clear();
            buffer.extend_from_slice(piece);
            fed += piece.len();
            let mut rest = &mut buffer[..];
            loop {
                HEAP.reset_peak_usage();
                let more = matches!(decoder.next(&mut rest), Ok(Some(_)));
                let peak = HEAP.peak_usage() - before;
                assert!(peak <= self.peak + self.inflater, "{peak} bytes at once");
                if !more {
                    break;
                }
            }
            let held = HEAP.current_usage() - before;
            let most = 2 * fed.min(self.kept) + FIXED + self.inflater;
            assert!(held <= most, "{held} bytes of {fed}");
        }
    }
}

/// The same stream in parts, whole and in pieces.
fn check_streamed(
    decoder: impl Fn() -> Decoder,
    pieces: &[&[u8]],
    whole: &Outcome,
    deflated: bool,
) {
    let ours = Joined::of(decode(&mut decoder(), [&pieces.concat()[..]]));
    let cut = Joined::of(decode(&mut decoder(), pieces.iter().copied()));
    assert_eq!(cut.events, ours.events, "in pieces");
    assert!(same_violation(cut.violation, ours.violation), "{cut:?} {ours:?}");
    // What has been handed on of a message that is not complete depends on the cuts: less, if one piece
    // has both the beginning and what is wrong.
    assert!(ours.violation.is_some() || cut.unfinished == ours.unfinished);
    if let (Some(one), Some(other)) = (&cut.unfinished, &ours.unfinished) {
        assert!(one.0 == other.0 && (one.1.starts_with(&other.1) || other.1.starts_with(&one.1)));
    }

    // It may be refused earlier, because it is decompressed as it arrives; and fragments do not count.
    let both = ours.events.len().min(whole.events.len());
    assert_eq!(ours.events[..both], whole.events[..both], "whole messages");
    match (whole.violation, ours.violation) {
        (Some(Violation { code: 1008, .. }), _) => {}
        // What is collected counts compressed, too.
        (Some(Violation { code: 1009, .. }), _) if deflated => {}
        (None, None) => assert_eq!(ours.events.len(), whole.events.len()),
        // In a message without its end: what stands between its frames is no longer seen.
        (None, Some(_)) => assert_eq!(messages(&ours.events), messages(&whole.events)),
        (Some(_), Some(_)) => assert!(ours.events.len() <= whole.events.len()),
        (Some(violation), None) => panic!("only as a whole: {violation:?}"),
    }
}

fn messages(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event, Event::Message(_))).count()
}

/// The first of several things that are wrong with a message depends on how much of it is looked at.
fn same_violation(one: Option<Violation>, other: Option<Violation>) -> bool {
    let of_content = |it: Violation| matches!(it.code, 1007 | 1009);
    one == other || one.zip(other).is_some_and(|(one, other)| of_content(one) && of_content(other))
}

/// Parts put together.
#[derive(Debug, Default)]
struct Joined {
    events: Vec<Event>,
    /// Of a message without its end.
    unfinished: Option<(Kind, Vec<u8>)>,
    violation: Option<Violation>,
}

impl Joined {
    fn of(outcome: Outcome) -> Self {
        let mut joined = Self { violation: outcome.violation, ..Self::default() };
        for event in outcome.events {
            let Event::Part { first, bytes, last } = event else {
                assert!(!matches!(event, Event::Message(_)), "in parts");
                joined.events.push(event);
                continue;
            };
            assert_eq!(first.is_some(), joined.unfinished.is_none(), "one first part");
            assert!(!bytes.is_empty() || first.is_some() || last, "a part of nothing");
            let (kind, mut message) = match first {
                Some(kind) => (kind, Vec::new()),
                None => joined.unfinished.take().expect("a message that has begun"),
            };
            assert!(kind == Kind::Binary || str::from_utf8(&bytes).is_ok(), "whole characters");
            message.extend_from_slice(&bytes);
            if !last {
                joined.unfinished = Some((kind, message));
                continue;
            }
            joined.events.push(Event::Message(match kind {
                Kind::Text => String::from_utf8(message).expect("text").into(),
                Kind::Binary => message.into(),
            }));
        }
        joined
    }
}
