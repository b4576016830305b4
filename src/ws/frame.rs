//! Frame headers and close payloads (RFC 6455 sections 5.2 and 5.5.1).

use crate::message::{CloseCode, Text};
use crate::protocol::Protocol;

/// Payload of a control frame, at most (RFC 6455 section 5.5).
pub(crate) const MAX_CONTROL_PAYLOAD: usize = 125;

const FIN: u8 = 0x80;
/// The first frame of a compressed message (RFC 7692 section 6).
const COMPRESSED: u8 = 0x40;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// The first byte of a message that is in one frame, and not compressed.
pub(super) const WHOLE_TEXT: u8 = FIN | Opcode::Text as u8;
pub(super) const WHOLE_BINARY: u8 = FIN | Opcode::Binary as u8;

/// What a frame carries (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    pub(super) const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Continuation),
            1 => Some(Self::Text),
            2 => Some(Self::Binary),
            8 => Some(Self::Close),
            9 => Some(Self::Ping),
            10 => Some(Self::Pong),
            _ => None,
        }
    }

    const fn begins_a_message(self) -> bool {
        matches!(self, Self::Text | Self::Binary)
    }

    pub(super) const fn is_control(self) -> bool {
        self as u8 >= 8
    }
}

/// The header of one unmasked, final frame, ready to be sent.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    bytes: [u8; 10],
    len: u8,
}

impl Header {
    /// Bytes of the longest one.
    pub(crate) const MAX: usize = 10;

    /// The shortest form, as the RFC asks.
    #[inline]
    pub(crate) fn new(opcode: Opcode, payload: usize) -> Self {
        let mut bytes = [0; 10];
        bytes[0] = FIN | opcode as u8;
        let len = if payload < 126 {
            bytes[1] = payload as u8;
            2
        } else if let Ok(short) = u16::try_from(payload) {
            bytes[1] = 126;
            bytes[2..4].copy_from_slice(&short.to_be_bytes());
            4
        } else {
            bytes[1] = 127;
            bytes[2..10].copy_from_slice(&(payload as u64).to_be_bytes());
            10
        };
        Self { bytes, len }
    }

    /// The header of a whole message in this protocol.
    #[inline]
    pub(crate) fn of(protocol: Protocol, opcode: Opcode, payload: usize) -> Self {
        match protocol {
            Protocol::Frames => Self::prefix(payload),
            _ => Self::new(opcode, payload),
        }
    }

    /// The length alone, which says nothing of the kind. Whoever queues a message has seen to it that its
    /// length [fits](Self::fits).
    pub(crate) fn prefix(payload: usize) -> Self {
        let mut bytes = [0; 10];
        bytes[..4].copy_from_slice(&u32::try_from(payload).unwrap_or(u32::MAX).to_be_bytes());
        Self { bytes, len: 4 }
    }

    /// Whether a message of this length has a header in this protocol.
    #[inline]
    pub(crate) fn fits(protocol: Protocol, payload: usize) -> bool {
        u32::try_from(payload).is_ok() || protocol != Protocol::Frames
    }

    /// The same, of a frame that others of its message follow.
    pub(crate) fn unfinished(mut self) -> Self {
        self.bytes[0] &= !FIN;
        self
    }

    /// The same, of a message that is compressed.
    pub(crate) fn compressed(mut self) -> Self {
        self.bytes[0] |= COMPRESSED;
        self
    }

    /// Appends the header. The two sizes that matter are of constant length to the compiler.
    #[inline]
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        match *self {
            Self { bytes: [a, b, ..], len: 2 } => out.extend_from_slice(&[a, b]),
            Self { bytes: [a, b, c, d, ..], len: 4 } => out.extend_from_slice(&[a, b, c, d]),
            _ => out.extend_from_slice(&self.bytes),
        }
    }

    #[cfg(test)]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The header of a frame from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) opcode: Opcode,
    pub(crate) fin: bool,
    pub(crate) compressed: bool,
    pub(crate) mask: [u8; 4],
    pub(crate) payload: u64,
    /// Bytes of the header itself.
    pub(crate) len: usize,
}

/// Whether a frame with this first byte is a control frame (RFC 6455 section 5.5).
pub(super) const fn begins_control(first: u8) -> bool {
    first & 0x08 != 0
}

/// The longest header of a client's frame.
pub(super) const MAX_HEADER: usize = 14;

/// Reads a header from the beginning of `bytes`; `None` if more of it must arrive first.
///
/// Every rule that needs no knowledge of earlier frames is checked here, each as soon as its byte
/// is there. `deflate`: permessage-deflate has been agreed on.
#[inline]
pub(crate) fn parse(bytes: &[u8], deflate: bool) -> Result<Option<Received>, &'static str> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    let fin = first & FIN != 0;
    let Some(opcode) = Opcode::from_bits(first & 0x0F) else {
        return Err("reserved opcode");
    };
    // Without an extension all three bits are reserved (RFC 6455 section 5.2); permessage-deflate
    // has the first of them, on the first frame of a message (RFC 7692 section 6.1).
    let reserved = first & RESERVED;
    let compressed = reserved == COMPRESSED && deflate && opcode.begins_a_message();
    if reserved != 0 && !compressed {
        return Err("reserved bit set without an extension");
    }
    if opcode.is_control() && !fin {
        return Err("fragmented control frame");
    }
    let Some(&second) = bytes.get(1) else {
        return Ok(None);
    };
    if second & MASKED == 0 {
        return Err("client frame is not masked");
    }
    let short = second & 0x7F;
    if opcode.is_control() && usize::from(short) > MAX_CONTROL_PAYLOAD {
        return Err("control frame longer than 125 bytes");
    }
    let (payload, mask_at) = match short {
        126 => match bytes.get(2..4) {
            Some(length) => (u64::from(u16::from_be_bytes(array(length))), 4),
            None => return Ok(None),
        },
        127 => match bytes.get(2..10) {
            Some(length) => (u64::from_be_bytes(array(length)), 10),
            None => return Ok(None),
        },
        _ => (u64::from(short), 2),
    };
    if payload >> 63 != 0 {
        return Err("64-bit length with the top bit set");
    }
    if (short == 126 && payload < 126) || (short == 127 && payload <= 0xFFFF) {
        return Err("length not encoded in the fewest bytes");
    }
    let Some(mask) = bytes.get(mask_at..mask_at + 4) else {
        return Ok(None);
    };
    Ok(Some(Received { opcode, fin, compressed, mask: array(mask), payload, len: mask_at + 4 }))
}

/// Copies a slice of exactly `N` bytes; a slice of another length gives zeros.
#[inline]
fn array<const N: usize>(slice: &[u8]) -> [u8; N] {
    slice.try_into().unwrap_or([0; N])
}

/// Why a peer closes, or why we do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CloseFrame {
    pub(crate) code: CloseCode,
    pub(crate) reason: Text,
}

impl CloseFrame {
    pub(crate) fn new(code: CloseCode, reason: &str) -> Self {
        Self { code, reason: truncated(reason, MAX_CONTROL_PAYLOAD - 2).into() }
    }
}

/// The longest prefix of at most `max` bytes that ends between two characters.
fn truncated(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The payload of a close frame.
pub(crate) fn close_payload(close: &CloseFrame) -> Vec<u8> {
    let mut payload = Vec::with_capacity(2 + close.reason.len());
    payload.extend_from_slice(&close.code.as_u16().to_be_bytes());
    payload.extend_from_slice(close.reason.as_bytes());
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_take_the_shortest_form() {
        let bytes = |payload| Header::new(Opcode::Binary, payload).as_bytes().to_vec();
        assert_eq!(bytes(0), [0x82, 0]);
        assert_eq!(bytes(125), [0x82, 125]);
        assert_eq!(bytes(126), [0x82, 126, 0, 126]);
        assert_eq!(bytes(65_535), [0x82, 126, 0xFF, 0xFF]);
        assert_eq!(bytes(65_536), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_prefix_is_four_bytes_and_a_length_that_does_not_fit_has_none() {
        let bytes = |payload| Header::prefix(payload).as_bytes().to_vec();
        assert_eq!(bytes(0), [0, 0, 0, 0]);
        assert_eq!(bytes(0x0102_0304), [1, 2, 3, 4]);
        let most = u32::MAX as usize;
        assert_eq!(bytes(most), [0xFF; 4]);
        assert!(Header::fits(Protocol::Frames, most));
        if let Some(more) = most.checked_add(1) {
            assert!(!Header::fits(Protocol::Frames, more));
            assert!(Header::fits(Protocol::WebSocket, more));
        }
    }

    #[test]
    fn a_header_is_complete_only_with_its_last_byte() {
        let header = [0x81, 0x80 | 127, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4];
        for end in 0..header.len() {
            assert_eq!(parse(&header[..end], false), Ok(None), "{end}");
        }
        let received = parse(&header, false).unwrap().unwrap();
        assert_eq!((received.payload, received.mask, received.len), (65_536, [1, 2, 3, 4], 14));
    }

    #[test]
    fn a_rule_is_broken_as_soon_as_its_byte_is_there() {
        for first in [0xC1, 0xA1, 0x91, 0x83, 0x8B, 0x08, 0x09, 0x0A] {
            assert!(parse(&[first], false).is_err(), "{first:#x}");
        }
        assert!(parse(&[0x81, 0x05], false).is_err(), "not masked");
        assert!(parse(&[0x89, 0x80 | 126], false).is_err(), "long ping");
        assert!(parse(&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], false).is_err(), "top bit");
        assert!(parse(&[0x82, 0xFE, 0, 125], false).is_err(), "not minimal");
        assert!(parse(&[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], false).is_err(), "not minimal");
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let close = CloseFrame::new(CloseCode::NORMAL, &"ä".repeat(100));
        assert_eq!(close.reason.len(), 122);
        assert_eq!(close_payload(&close).len(), 124);
    }
}
