//! permessage-deflate (RFC 7692): one message in, one message out.
//!
//! Without context takeover a message stands for itself, so that the compressor and the
//! decompressor can be the thread's, and a session costs nothing. With it each session has its own.

use std::cell::RefCell;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::event::Violation;
use crate::config::{MAX_WINDOW_BITS, MIN_WINDOW_BITS};
use crate::message::CloseCode;

/// What was agreed on in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// Our messages refer to earlier ones.
    pub(crate) server_takeover: bool,
    /// The peer's messages refer to earlier ones.
    pub(crate) client_takeover: bool,
    /// The window of our compressor is two to the power of this: 9 to 15.
    pub(crate) server_window_bits: u8,
    /// The window of the peer's compressor is at most two to the power of this: 8 to 15.
    pub(crate) client_window_bits: u8,
}

impl Agreement {
    /// The window with which a message can be compressed that is not for this session alone.
    pub(crate) fn window_of_one_message(self) -> Option<u8> {
        (!self.server_takeover).then_some(self.server_window_bits)
    }
}

#[cfg(test)]
impl Agreement {
    /// Without context takeover, with the largest windows.
    pub(crate) const SHARED: Self = Self {
        server_takeover: false,
        client_takeover: false,
        server_window_bits: MAX_WINDOW_BITS,
        client_window_bits: MAX_WINDOW_BITS,
    };
}

/// What a session keeps from message to message; nothing without context takeover.
#[derive(Default)]
pub(crate) struct Contexts {
    inflater: Option<Inflater>,
    deflater: Option<Deflater>,
}

/// What ends every flushed block, and is left out on the wire (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// Output grows by at least this much at a time.
const STEP: usize = 1024;

thread_local! {
    static INFLATER: RefCell<Option<Inflater>> = const { RefCell::new(None) };
    /// For the windows and levels that sessions of this thread have asked for, the latest last.
    static DEFLATERS: RefCell<Vec<Shared>> = const { RefCell::new(Vec::new()) };
}

/// Compressors that a thread keeps: one for each window, 1.9 MiB together, because the peers choose.
const KEPT: usize = (MAX_WINDOW_BITS - MIN_WINDOW_BITS) as usize + 1;

struct Shared {
    window_bits: u8,
    level: u8,
    deflater: Deflater,
}

/// Decompresses a message of at most `limit` bytes.
///
/// # Errors
///
/// 1009 as soon as the output exceeds the limit, 1007 if the input cannot be decompressed. (A message that
/// breaks off in the middle of a block may be: the tail is then read as more of it.)
pub(crate) fn inflate(
    compressed: &[u8],
    limit: usize,
    agreement: Agreement,
    contexts: &mut Option<Box<Contexts>>,
) -> Result<Vec<u8>, Violation> {
    if agreement.client_takeover {
        let inflater = &mut contexts.get_or_insert_default().inflater;
        return inflater.get_or_insert_default().message(compressed, limit, true);
    }
    INFLATER.with_borrow_mut(|inflater| {
        inflater.get_or_insert_default().message(compressed, limit, false)
    })
}

/// Decompresses a message piece by piece, as it arrives. Without context takeover it is one of its
/// own, for as long as the message takes.
#[derive(Default)]
pub(super) struct Inflating(Option<Inflater>);

impl Inflating {
    /// Appends what a piece says; `last`: it is the end of the message.
    pub(super) fn push(
        &mut self,
        piece: &[u8],
        last: bool,
        out: &mut Vec<u8>,
        agreement: Agreement,
        contexts: &mut Option<Box<Contexts>>,
    ) -> Result<(), Violation> {
        let place = if agreement.client_takeover {
            &mut contexts.get_or_insert_default().inflater
        } else {
            &mut self.0
        };
        let inflater = place.get_or_insert_default();
        inflater.part(piece, out, usize::MAX)?;
        if last { inflater.finish(out, usize::MAX) } else { Ok(()) }
    }
}

/// Appends a message, compressed, to `out`. Returns false, with `out` as it was, if that made it no
/// smaller and it can be sent as it is.
pub(crate) fn deflate(
    payload: &[u8],
    out: &mut Vec<u8>,
    agreement: Agreement,
    level: u8,
    contexts: &mut Option<Box<Contexts>>,
) -> bool {
    let bits = agreement.server_window_bits;
    if agreement.server_takeover {
        let contexts = contexts.get_or_insert_default();
        let deflater = contexts.deflater.get_or_insert_with(|| Deflater::new(bits, level));
        // Even if it is larger: the window has seen it.
        deflater.message(payload, out);
        return true;
    }
    deflate_alone(payload, out, bits, level)
}

/// The same for a message that refers to no other, and is good for every session that agreed on a
/// window of at least this size.
pub(crate) fn deflate_alone(payload: &[u8], out: &mut Vec<u8>, window_bits: u8, level: u8) -> bool {
    let before = out.len();
    DEFLATERS.with_borrow_mut(|shared| {
        let found =
            shared.iter().rposition(|it| (it.window_bits, it.level) == (window_bits, level));
        match found {
            Some(at) => shared[at..].rotate_left(1),
            None => {
                if shared.len() == KEPT {
                    shared.remove(0);
                }
                let deflater = Deflater::new(window_bits, level);
                shared.push(Shared { window_bits, level, deflater });
            }
        }
        if let Some(Shared { deflater, .. }) = shared.last_mut() {
            deflater.message(payload, out);
            deflater.0.reset();
        }
    });
    let smaller = out.len() - before < payload.len();
    if !smaller {
        out.truncate(before);
    }
    smaller
}

struct Deflater(Compress);

impl Deflater {
    fn new(window_bits: u8, level: u8) -> Self {
        let bits = window_bits.clamp(MIN_WINDOW_BITS, MAX_WINDOW_BITS);
        Self(Compress::new_with_window_bits(Compression::new(level.min(9).into()), false, bits))
    }

    fn message(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        let mut rest = payload;
        loop {
            out.reserve((rest.len() / 2).max(STEP));
            let before = self.0.total_in();
            // It fails for wrong parameters only, and for want of progress, which an empty message
            // makes as soon as everything has been written.
            let status = self.0.compress_vec(rest, out, FlushCompress::Sync);
            rest = &rest[(self.0.total_in() - before) as usize..];
            let written = out.len() < out.capacity();
            if (rest.is_empty() && written) || status.is_err() {
                break;
            }
        }
        if out[start..].ends_with(&TAIL) {
            out.truncate(out.len() - TAIL.len());
        }
        // Flushed twice, zlib has nothing to say the second time; but the tail that the reader adds
        // must have a block to end (RFC 7692 section 7.2.3.6).
        if out.len() == start {
            out.push(0);
        }
    }
}

/// Reads what a [`Deflater`] of anybody has written.
pub(super) struct Inflater {
    stream: Decompress,
    /// Something of the message has been read that the tail must end. Without it (an empty message
    /// without its byte, the end of a stream) the tail would begin a block that has no end, and
    /// spoil the next message.
    begun: bool,
}

/// The input is no deflate stream.
struct Corrupt;

impl From<Corrupt> for Violation {
    fn from(_: Corrupt) -> Self {
        Self { code: CloseCode::INVALID_DATA, reason: "message cannot be decompressed" }
    }
}

impl Default for Inflater {
    /// With the largest window, which reads what was written with any: a smaller one takes no less
    /// memory, and is made anew at each reset.
    fn default() -> Self {
        Self { stream: Decompress::new_with_window_bits(false, MAX_WINDOW_BITS), begun: false }
    }
}

impl Inflater {
    fn message(
        &mut self,
        compressed: &[u8],
        limit: usize,
        takeover: bool,
    ) -> Result<Vec<u8>, Violation> {
        let message = self.whole(compressed, limit);
        if !takeover || message.is_err() {
            self.reset();
        }
        message
    }

    fn reset(&mut self) {
        self.stream.reset(false);
        self.begun = false;
    }

    fn whole(&mut self, compressed: &[u8], limit: usize) -> Result<Vec<u8>, Violation> {
        let mut message = Vec::new();
        // By what has arrived, not by what it may become.
        let likely = compressed.len().saturating_mul(3).min(limit);
        message.reserve_exact(likely.saturating_add(1));
        self.part(compressed, &mut message, limit)?;
        self.finish(&mut message, limit)?;
        message.shrink_to_fit();
        Ok(message)
    }

    /// Adds what the peer has left out at the end of the message. When it has ended its stream there
    /// (RFC 7692 section 7.2.3.4), nothing is missing.
    fn finish(&mut self, message: &mut Vec<u8>, limit: usize) -> Result<(), Violation> {
        if self.begun {
            self.part(&TAIL, message, limit)?;
            self.begun = false;
        }
        Ok(())
    }

    /// Decompresses all of `input`.
    fn part(
        &mut self,
        mut input: &[u8],
        message: &mut Vec<u8>,
        limit: usize,
    ) -> Result<(), Violation> {
        loop {
            let over = self.step(&mut input, message)?;
            if message.len() > limit {
                return Err(Violation::TOO_BIG);
            }
            if input.is_empty() && (over || message.len() < message.capacity()) {
                return Ok(());
            }
            if message.len() == message.capacity() {
                let more = message.len().max(STEP).min((limit - message.len()).saturating_add(1));
                message.reserve_exact(more);
            }
        }
    }

    /// Decompresses as much as there is room for in `out`. Returns whether a final block has ended;
    /// what follows is another stream.
    fn step(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, Corrupt> {
        let before = (self.stream.total_in(), out.len());
        let status =
            self.stream.decompress_vec(input, out, FlushDecompress::Sync).map_err(|_| Corrupt)?;
        let consumed = (self.stream.total_in() - before.0) as usize;
        *input = &input[consumed..];
        if status == Status::StreamEnd {
            self.reset();
            return Ok(true);
        }
        self.begun |= consumed > 0;
        let stuck = consumed == 0 && out.len() == before.1;
        if stuck && !input.is_empty() && out.len() < out.capacity() {
            return Err(Corrupt);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: Agreement = Agreement::SHARED;
    const DEDICATED: Agreement =
        Agreement { server_takeover: true, client_takeover: true, ..SHARED };

    /// Text that repeats itself at a distance of some kibibytes.
    fn text(len: usize) -> Vec<u8> {
        let words = (0_u32..)
            .flat_map(|n| format!("{} ", n.wrapping_mul(2_654_435_761) % 1000).into_bytes());
        words.take(len).collect()
    }

    /// What the compressor of one side says is what the decompressor of the other reads.
    fn through(agreement: Agreement, level: u8, messages: &[Vec<u8>]) -> Vec<usize> {
        let (mut sender, mut receiver) = (None, None);
        let mut lengths = Vec::new();
        for message in messages {
            let mut wire = b"before".to_vec();
            if !deflate(message, &mut wire, agreement, level, &mut sender) {
                assert_eq!(wire, b"before");
                continue;
            }
            let wire = &wire[b"before".len()..];
            assert!(!wire.ends_with(&TAIL));
            let read = inflate(wire, message.len(), agreement, &mut receiver);
            assert_eq!(read.as_deref(), Ok(&message[..]));
            lengths.push(wire.len());
        }
        lengths
    }

    #[test]
    fn every_length_window_and_level_comes_back() {
        let lengths = [0, 1, 2, 255, 256, 257, 1023, 1024, 1025, 4096, 70_000];
        let messages: Vec<_> = lengths.into_iter().map(text).collect();
        for bits in MIN_WINDOW_BITS..=MAX_WINDOW_BITS {
            for level in [0, 1, 6, 9] {
                for base in [SHARED, DEDICATED] {
                    let agreement =
                        Agreement { server_window_bits: bits, client_window_bits: bits, ..base };
                    through(agreement, level, &messages);
                }
            }
        }
    }

    #[test]
    fn with_takeover_a_message_like_the_last_is_small() {
        let message = text(1000);
        let twice = [message.clone(), message];
        let alone = through(SHARED, 6, &twice);
        assert_eq!(alone[0], alone[1]);
        let dedicated = through(DEDICATED, 6, &twice);
        assert!(dedicated[1] < 40, "{dedicated:?}");
    }

    #[test]
    fn what_cannot_be_made_smaller_is_sent_as_it_is_unless_the_window_has_seen_it() {
        let mut random = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 56) as u8
        })
        .take(5000)
        .collect();
        let messages = [noise, text(500)];
        assert_eq!(through(SHARED, 6, &messages).len(), 1);
        assert_eq!(through(DEDICATED, 6, &messages).len(), 2);
    }

    #[test]
    fn the_limit_holds_at_every_step_and_a_bomb_costs_no_more() {
        let bomb = {
            let mut out = Vec::new();
            assert!(deflate_alone(&vec![0; 64 << 20], &mut out, 15, 9));
            out
        };
        assert!(bomb.len() < 70_000);
        for limit in [0, 1, 1000, 65_536, 1 << 20] {
            for agreement in [SHARED, DEDICATED] {
                let outcome = inflate(&bomb, limit, agreement, &mut None);
                assert_eq!(outcome, Err(Violation::TOO_BIG), "{limit}");
            }
        }
        // One byte over, which only the last step of many sees.
        let mut wire = Vec::new();
        assert!(deflate_alone(&text(100_000), &mut wire, 15, 6));
        assert_eq!(inflate(&wire, 99_999, SHARED, &mut None), Err(Violation::TOO_BIG));
        assert!(inflate(&wire, 100_000, SHARED, &mut None).is_ok());
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        // RFC 7692 section 7.2.3: one block, shared window, no compression, final block, two blocks.
        let mut contexts = None;
        let mut read = |wire: &[u8]| inflate(wire, 100, DEDICATED, &mut contexts);
        let hello = Ok(b"Hello".to_vec());
        assert_eq!(read(&[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00]), hello);
        assert_eq!(read(&[0xF2, 0x00, 0x11, 0x00, 0x00]), hello);
        let stored = [0x00, 0x05, 0x00, 0xFA, 0xFF, 0x48, 0x65, 0x6C, 0x6C, 0x6F, 0x00];
        assert_eq!(read(&stored), hello);
        assert_eq!(read(&[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00]), hello);
        let two = [0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00];
        assert_eq!(read(&two), hello);
        // Section 7.2.3.6, and without even the byte it asks for.
        assert_eq!(read(&[0x00]), Ok(Vec::new()));
        assert_eq!(read(&[]), Ok(Vec::new()));
        // Which leaves the stream as it was.
        assert_eq!(read(&[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00]), hello);
    }

    #[test]
    fn a_stream_that_ends_may_be_followed_by_nothing_or_by_another() {
        let last = [0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00];
        let next = [0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00];
        for agreement in [SHARED, DEDICATED] {
            let mut contexts = None;
            let mut read = |wire: &[u8]| inflate(wire, 100, agreement, &mut contexts);
            assert_eq!(read(&last), Ok(b"Hello".to_vec()));
            assert_eq!(read(&[&last[..], &next].concat()), Ok(b"HelloHello".to_vec()));
            assert_eq!(read(&[&last[..], &last].concat()), Ok(b"HelloHello".to_vec()));
            // Garbage behind it is no stream, and spoils nothing that comes later.
            assert!(read(&[&last[..], &[0xFF; 20]].concat()).is_err());
            assert_eq!(read(&next), Ok(b"Hello".to_vec()));
        }
    }

    #[test]
    fn no_input_does_worse_than_fail() {
        let mut random = 7_u64;
        let mut contexts = None;
        for round in 0..20_000 {
            let wire: Vec<u8> = std::iter::repeat_with(|| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 56) as u8
            })
            .take(round % 40)
            .collect();
            for agreement in [SHARED, DEDICATED] {
                if let Ok(message) = inflate(&wire, 1000, agreement, &mut contexts) {
                    assert!(message.len() <= 1000);
                }
            }
        }
    }
}
