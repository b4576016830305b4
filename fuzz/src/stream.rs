//! A client's stream: raw bytes, or frames that a short script describes, so that a mutation of the
//! input changes one thing about a frame and leaves the rest of it whole.

use coracle::internals::Deflater;

use crate::{Input, Lcg};

const RSV1: u8 = 0x40;

/// Runs the script. For each frame: its first byte (FIN, reserved bits, opcode), then a byte that says
/// what follows.
///
/// | byte | payload | from the script |
/// |---|---|---|
/// | `00..=BF` | that many bytes | the bytes |
/// | `C0..=CF` | one byte, repeated | how often (2), the byte |
/// | `D0..=D7` | none, but the header claims one | the length as 64 bits (8) |
/// | `D8..=DF` | up to 255 bytes, their length as 16 bits, however short | the number (1), the bytes |
/// | `E0..=E7` | a close payload | the code (2), the length of the reason (1), the reason |
/// | `E8..=EF` | up to 255 bytes, not masked | the number (1), the bytes |
/// | `F0..=F7` | no frame: up to 255 bytes as they are | the number (1), the bytes |
/// | `F8..=FB` | up to 255 bytes, repeated and compressed | the number (1), how often (1), the bytes |
/// | `FC..=FF` | the same in two fragments | where it is cut (1), then as before |
pub fn scripted(script: &[u8], deflater: Option<&mut Deflater>) -> Vec<u8> {
    let mut input = Input(script);
    let mut stream = Stream { bytes: Vec::new(), masks: Lcg(script.len() as u64), deflater };
    while !input.is_empty() && stream.bytes.len() < LONGEST {
        let first = input.byte();
        match input.byte() {
            len @ 0x00..=0xBF => stream.frame(first, input.bytes(len.into())),
            0xC0..=0xCF => {
                let len = input.u16();
                stream.frame(first, &vec![input.byte(); len.into()]);
            }
            0xD0..=0xD7 => {
                stream.bytes.extend([first, 0xFF]);
                stream.bytes.extend(input.array::<8>());
                stream.bytes.extend([0; 4]);
            }
            0xD8..=0xDF => {
                let len = input.byte();
                let payload = input.bytes(len.into());
                stream.bytes.extend([first, 0xFE, 0, payload.len() as u8, 0, 0, 0, 0]);
                stream.bytes.extend_from_slice(payload);
            }
            0xE0..=0xE7 => {
                let mut payload = input.array::<2>().to_vec();
                let len = input.byte();
                payload.extend_from_slice(input.bytes(len.into()));
                stream.frame(first, &payload);
            }
            0xE8..=0xEF => {
                let len = input.byte();
                stream.header(first, len.into(), false);
                stream.bytes.extend_from_slice(input.bytes(len.into()));
            }
            0xF0..=0xF7 => {
                let len = input.byte();
                stream.bytes.extend_from_slice(input.bytes(len.into()));
            }
            0xF8..=0xFB => {
                let payload = stream.compressed(&mut input);
                stream.frame(first | RSV1, &payload);
            }
            0xFC..=0xFF => {
                let at = usize::from(input.byte());
                let payload = stream.compressed(&mut input);
                let (left, right) = payload.split_at(at.min(payload.len()));
                stream.frame(first & 0x0F | RSV1, left);
                stream.frame(0x80, right);
            }
        }
    }
    stream.bytes
}

/// A script of some bytes can describe a stream of any length; more than this proves no more.
const LONGEST: usize = 300 * 1024;

struct Stream<'a> {
    bytes: Vec<u8>,
    masks: Lcg,
    deflater: Option<&'a mut Deflater>,
}

impl Stream<'_> {
    fn header(&mut self, first: u8, len: usize, masked: bool) {
        let mask = if masked { 0x80 } else { 0 };
        self.bytes.push(first);
        match len {
            0..126 => self.bytes.push(mask | len as u8),
            126..=0xFFFF => {
                self.bytes.push(mask | 126);
                self.bytes.extend((len as u16).to_be_bytes());
            }
            _ => {
                self.bytes.push(mask | 127);
                self.bytes.extend((len as u64).to_be_bytes());
            }
        }
    }

    fn frame(&mut self, first: u8, payload: &[u8]) {
        self.header(first, payload.len(), true);
        let mask = [(); 4].map(|()| self.masks.below(256) as u8);
        self.bytes.extend(mask);
        self.bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }

    fn compressed(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let (len, times) = (input.byte(), input.byte());
        let payload = input.bytes(len.into()).repeat(times.into());
        let mut out = Vec::new();
        let deflater = self.deflater.as_mut();
        // Not worth it, or nothing agreed: what claims to be compressed is not.
        if deflater.is_some_and(|it| it.message(&payload, &mut out)) { out } else { payload }
    }
}
