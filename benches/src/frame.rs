//! The part of RFC 6455 section 5 that an echo needs, for both ends.

/// Opcode of a text message.
pub const TEXT: u8 = 0x1;
/// Opcode of a binary message.
pub const BINARY: u8 = 0x2;
/// Opcode of a Close frame.
pub const CLOSE: u8 = 0x8;
/// Opcode of a Ping frame.
pub const PING: u8 = 0x9;
/// Opcode of a Pong frame.
pub const PONG: u8 = 0xa;

/// The longest header that a server sends: two bytes and a 64-bit length.
const MAX_SERVER_HEADER: usize = 10;

/// The mask of every frame that the load generator sends; the servers cannot know that it is fixed.
const MASK: [u8; 4] = [0x9b, 0x24, 0xd1, 0x6e];

/// What the header of one frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The first byte: FIN, the reserved bits and the opcode.
    pub first: u8,
    /// The masking key, if there is one.
    pub mask: Option<[u8; 4]>,
    /// Length of the header itself, in bytes.
    pub header_len: usize,
    /// Length of the payload, in bytes.
    pub payload_len: usize,
}

impl Header {
    /// Reads the header at the start of `bytes`, or `None` if it is not complete yet.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[first, second], rest) = bytes.split_first_chunk::<2>()?;
        let (payload_len, rest) = match second & 0x7f {
            126 => {
                let (len, rest) = rest.split_first_chunk::<2>()?;
                (usize::from(u16::from_be_bytes(*len)), rest)
            }
            127 => {
                let (len, rest) = rest.split_first_chunk::<8>()?;
                // A length beyond the address space never becomes complete, which is all we need.
                let len = usize::try_from(u64::from_be_bytes(*len)).unwrap_or(usize::MAX);
                (len, rest)
            }
            short => (usize::from(short), rest),
        };
        let (mask, rest) = if second & 0x80 == 0 {
            (None, rest)
        } else {
            let (mask, rest) = rest.split_first_chunk::<4>()?;
            (Some(*mask), rest)
        };
        Some(Self { first, mask, header_len: bytes.len() - rest.len(), payload_len })
    }

    /// The opcode, without FIN and the reserved bits.
    pub fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    /// Length of the whole frame, in bytes.
    pub fn frame_len(&self) -> usize {
        self.header_len.saturating_add(self.payload_len)
    }
}

/// The bit of a compressed message (RFC 7692 section 6).
pub const COMPRESSED: u8 = 0x40;

/// Appends a masked frame, as a client sends it.
pub fn push_client_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    let (mut header, len) = header(0x80 | opcode, payload.len());
    header[1] |= 0x80;
    out.extend_from_slice(&header[..len]);
    out.extend_from_slice(&MASK);
    let start = out.len();
    out.resize(start + payload.len(), 0);
    xor(&mut out[start..], payload, MASK);
}

/// Appends a masked frame with a compressed message (RFC 7692), in one stored block, so that nothing
/// has to be compressed here.
pub fn push_stored_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8; 1024]) {
    let len = payload.len() as u16;
    let mut block = vec![0];
    block.extend_from_slice(&len.to_le_bytes());
    block.extend_from_slice(&(!len).to_le_bytes());
    block.extend_from_slice(payload);
    // The empty block without which there would be none to end (section 7.2.3.4).
    block.push(0);
    push_client_frame(out, COMPRESSED | opcode, &block);
}

/// Appends a frame as a server sends it.
pub fn push_server_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    let (header, len) = header(0x80 | opcode, payload.len());
    out.extend_from_slice(&header[..len]);
    out.extend_from_slice(payload);
}

/// What [`echo`] did.
#[derive(Debug, PartialEq, Eq)]
pub struct Echoed {
    /// Bytes of complete frames at the start of the input.
    pub consumed: usize,
    /// Bytes written to the output.
    pub written: usize,
    /// Whether the last of those frames was a Close.
    pub closed: bool,
}

/// Answers every complete frame of `input` with its unmasked copy in `output`.
///
/// Each answer is at most as long as its frame, so an output as long as the input suffices.
///
/// # Panics
///
/// If `output` is shorter than `input`.
pub fn echo(input: &[u8], output: &mut [u8]) -> Echoed {
    let mut consumed = 0;
    let mut written = 0;
    let mut closed = false;
    while !closed {
        let rest = &input[consumed..];
        let Some(frame) = Header::parse(rest) else {
            break;
        };
        let Some(payload) = rest.get(frame.header_len..frame.frame_len()) else {
            break;
        };
        let (header, header_len) = header(frame.first, payload.len());
        output[written..written + header_len].copy_from_slice(&header[..header_len]);
        written += header_len;
        xor(&mut output[written..written + payload.len()], payload, frame.mask.unwrap_or_default());
        written += payload.len();
        consumed += frame.frame_len();
        closed = frame.opcode() == CLOSE;
    }
    Echoed { consumed, written, closed }
}

/// An unmasked header and its length.
fn header(first: u8, payload_len: usize) -> ([u8; MAX_SERVER_HEADER], usize) {
    let mut bytes = [0; MAX_SERVER_HEADER];
    bytes[0] = first;
    if payload_len < 126 {
        bytes[1] = payload_len as u8;
        (bytes, 2)
    } else if let Ok(len) = u16::try_from(payload_len) {
        bytes[1] = 126;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        (bytes, 4)
    } else {
        bytes[1] = 127;
        bytes[2..].copy_from_slice(&(payload_len as u64).to_be_bytes());
        (bytes, MAX_SERVER_HEADER)
    }
}

/// `to = from ^ mask`, out of place; both of one length. The compiler makes vector code of it.
fn xor(to: &mut [u8], from: &[u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let (to, to_tail) = to.as_chunks_mut::<8>();
    let (from, from_tail) = from.as_chunks::<8>();
    for (to, from) in to.iter_mut().zip(from) {
        *to = (u64::from_ne_bytes(*from) ^ wide).to_ne_bytes();
    }
    for ((to, from), mask) in to_tail.iter_mut().zip(from_tail).zip(mask.iter().cycle()) {
        *to = from ^ mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_form_comes_back_unmasked() {
        for len in [0, 1, 7, 8, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let mut sent = Vec::new();
            push_client_frame(&mut sent, BINARY, &payload);
            let mut expected = Vec::new();
            push_server_frame(&mut expected, BINARY, &payload);
            let mut output = vec![0; sent.len()];
            let echoed = echo(&sent, &mut output);
            assert_eq!(echoed.consumed, sent.len());
            assert_eq!(&output[..echoed.written], expected);
        }
    }

    #[test]
    fn a_frame_is_left_alone_until_its_last_byte_is_there() {
        let mut sent = Vec::new();
        push_client_frame(&mut sent, TEXT, b"first");
        let first = sent.len();
        push_client_frame(&mut sent, TEXT, &[b'x'; 300]);
        for end in first..sent.len() {
            let echoed = echo(&sent[..end], &mut vec![0; end]);
            assert_eq!(echoed.consumed, first);
        }
    }

    #[test]
    fn nothing_is_answered_after_a_close() {
        let mut sent = Vec::new();
        push_client_frame(&mut sent, CLOSE, &1000_u16.to_be_bytes());
        let close = sent.len();
        push_client_frame(&mut sent, BINARY, b"late");
        let echoed = echo(&sent, &mut vec![0; sent.len()]);
        assert_eq!(echoed, Echoed { consumed: close, written: 4, closed: true });
    }
}
