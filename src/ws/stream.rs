//! A message that is handed on while it arrives.

use bytes::Bytes;

use super::bounds::Bounds;
use super::deflate::{Contexts, Inflating};
use super::event::{Part, Violation};
use super::frame::Opcode;
use super::utf8::Utf8;
use crate::message::Kind;

/// A part has about this many bytes, if that many have arrived.
pub(super) const PART: usize = 16 * 1024;

/// Compressed bytes that are decompressed at a time: deflate makes at most 1 032 of each, so that a
/// part exceeds its size by no more than 64 KiB.
pub(super) const PIECE: usize = 64;

/// What is known of the message between two parts.
pub(super) struct Streamed {
    kind: Kind,
    begun: bool,
    /// Bytes handed on, decompressed.
    total: usize,
    /// Holds an unfinished character only.
    text: Utf8,
    /// `None` if it is not compressed.
    inflating: Option<Inflating>,
}

impl Streamed {
    pub(super) fn new(opcode: Opcode, compressed: bool) -> Self {
        Self {
            kind: if opcode == Opcode::Text { Kind::Text } else { Kind::Binary },
            begun: false,
            total: 0,
            text: Utf8::default(),
            inflating: compressed.then(Inflating::default),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.total
    }

    pub(super) fn is_compressed(&self) -> bool {
        self.inflating.is_some()
    }

    /// Appends what a piece of the wire says to `out`; `last`: it is the message's end.
    pub(super) fn push(
        &mut self,
        piece: &[u8],
        last: bool,
        out: &mut Vec<u8>,
        bounds: &Bounds,
        contexts: &mut Option<Box<Contexts>>,
    ) -> Result<(), Violation> {
        let before = out.len();
        match (&mut self.inflating, bounds.deflate) {
            (Some(inflating), Some(agreement)) => {
                inflating.push(piece, last, out, agreement, contexts)?;
            }
            _ => out.extend_from_slice(piece),
        }
        self.total = self.total.saturating_add(out.len() - before);
        if self.total > bounds.message_bytes { Err(Violation::TOO_BIG) } else { Ok(()) }
    }

    /// The next part; `None` if there is nothing to say yet.
    ///
    /// Its memory is no larger than it is: it may have to wait, among many that are small.
    pub(super) fn part(
        &mut self,
        mut bytes: Vec<u8>,
        last: bool,
    ) -> Result<Option<Part>, Violation> {
        if self.kind == Kind::Text {
            self.text.push(&bytes).map_err(|_| Violation::NOT_UTF8)?;
            if last && !self.text.is_whole() {
                return Err(Violation::NOT_UTF8);
            }
            bytes = self.text.take().into();
        }
        bytes.shrink_to_fit();
        let bytes = Bytes::from(bytes);
        if bytes.is_empty() && self.begun && !last {
            return Ok(None);
        }
        let first = (!std::mem::replace(&mut self.begun, true)).then_some(self.kind);
        Ok(Some(Part { first, bytes, last }))
    }
}
