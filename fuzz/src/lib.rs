//! What the targets share: how an input is read, how a client's stream is made of it, how a stream is
//! cut, and what a decoder makes of the pieces.

pub mod frames;
pub mod stream;

use coracle::internals::{Decoder, Event, Violation};

/// The rest of an input; what is missing at its end is zero.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let there = self.bytes(N);
        array[..there.len()].copy_from_slice(there);
        array
    }

    /// At most this many.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Knuth's MMIX constants: the same everywhere and for ever.
pub struct Lcg(pub u64);

impl Lcg {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }
}

/// Cuts `bytes` into pieces as the seed says: at most two, or many small or some large ones, and now
/// and then an empty one. Seeds below 256 cut once, behind that many bytes.
pub fn pieces(bytes: &[u8], seed: u16) -> Vec<&[u8]> {
    if seed < 256 {
        let (left, right) = bytes.split_at(bytes.len().min(seed.into()));
        return vec![left, right];
    }
    let mut lcg = Lcg(seed.into());
    // Pieces of up to 2, 4, 8 .. bytes; of a long stream no more than some hundred.
    let longest = (2 << (seed % 12)).max(bytes.len() / 200);
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(lcg.below(longest + 1)));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// What came out of one stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub events: Vec<Event>,
    pub violation: Option<Violation>,
}

/// Feeds all pieces to the decoder, up to a violation.
pub fn decode<'a>(decoder: &mut Decoder, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut buffer = Vec::new();
    for piece in pieces {
        buffer.clear();
        buffer.extend_from_slice(piece);
        let mut rest = &mut buffer[..];
        loop {
            match decoder.next(&mut rest) {
                Ok(Some(event)) => outcome.events.push(event),
                Ok(None) => break,
                Err(violation) => {
                    outcome.violation = Some(violation);
                    return outcome;
                }
            }
        }
        assert!(rest.is_empty(), "without an event everything is consumed");
    }
    outcome
}
