//! A client that compresses (RFC 7692), by `flate2`, and servers for it.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use coracle::config::Deflate;
use coracle::{Builder, Cause, Closed, Handler, Server, Side};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::blocks::farthest;
use crate::pipe::Pipe;
use crate::support::*;

pub const OFFER: &str = "permessage-deflate";

/// What browsers offer.
pub const BROWSER: &str = "permessage-deflate; client_max_window_bits";

/// What ends every flushed block, and is left out on the wire (RFC 7692 section 7.2.1).
pub const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// Of the largest message, by default.
pub const LIMIT: usize = 64 * 1024;

/// A server that sends back what it gets.
pub fn echo(deflate: Deflate) -> Builder<impl Handler> {
    recorded_echo(deflate).0
}

/// The same, and the records of every end.
pub fn recorded_echo(deflate: Deflate) -> (Builder<impl Handler>, Heard<Closed>) {
    let (closed, records) = heard();
    let builder = Server::builder()
        .deflate(deflate)
        .on_message(async |session, message| session.send(message).await)
        .on_close(record(&closed));
    (builder, records)
}

/// Both modes; what does not depend on takeover must hold in each.
pub fn modes() -> [Deflate; 2] {
    [Deflate::shared(), Deflate::dedicated()]
}

pub fn with(mut deflate: Deflate, change: impl FnOnce(&mut Deflate)) -> Deflate {
    change(&mut deflate);
    deflate
}

/// The connection below: a socket, or a pipe in memory.
pub trait Wire {
    fn say(&mut self, bytes: &[u8]);
    fn head(&mut self) -> String;
    fn next(&mut self) -> (bool, Frame);
}

impl Wire for Raw {
    fn say(&mut self, bytes: &[u8]) {
        self.send(bytes);
    }
    fn head(&mut self) -> String {
        self.read_head()
    }
    #[track_caller]
    fn next(&mut self) -> (bool, Frame) {
        self.try_read_either().expect("a frame, and not the end of the stream")
    }
}

impl Wire for Pipe {
    fn say(&mut self, bytes: &[u8]) {
        self.send(bytes);
    }
    fn head(&mut self) -> String {
        self.read_head()
    }
    #[track_caller]
    fn next(&mut self) -> (bool, Frame) {
        self.try_read_either().expect("a frame, and not the end of the stream")
    }
}

/// A client that has offered compression and does what was answered, to the letter.
pub struct Client<W> {
    pub wire: W,
    /// The parameters of the answer.
    pub answer: String,
    pub deflater: Compress,
    pub inflater: Decompress,
    pub client_takeover: bool,
    pub server_takeover: bool,
    /// Of the server.
    pub window: usize,
}

/// A message of the server as it was on the wire.
#[derive(Debug)]
pub struct Received {
    pub opcode: u8,
    pub compressed: bool,
    /// Bytes of the frame's payload.
    pub wire: usize,
    pub payload: Vec<u8>,
}

impl Received {
    /// Is this message, and came compressed.
    #[track_caller]
    pub fn expect(&self, opcode: u8, payload: &[u8]) -> &Self {
        assert!(self.payload == payload, "{} bytes, not {}", self.payload.len(), payload.len());
        assert_eq!(self.opcode, opcode);
        assert!(self.compressed, "{} bytes came uncompressed", payload.len());
        self
    }

    /// Is this message, and came as it is.
    #[track_caller]
    pub fn expect_plain(&self, opcode: u8, payload: &[u8]) {
        assert!(self.payload == payload, "{} bytes, not {}", self.payload.len(), payload.len());
        assert_eq!((self.opcode, self.compressed), (opcode, false));
    }
}

impl Client<Raw> {
    #[track_caller]
    pub fn connect(server: &TestServer, offer: &str) -> Self {
        Self::over(server.raw(), offer)
    }

    #[track_caller]
    pub fn goodbye(self) {
        self.wire.goodbye();
    }

    /// Says goodbye with this code, having said nothing else.
    #[track_caller]
    pub fn expect_close(mut self, code: u16) -> String {
        self.wire.expect_close(code)
    }
}

impl<W: Wire> Client<W> {
    #[track_caller]
    pub fn over(mut wire: W, offer: &str) -> Self {
        let header = format!("Sec-WebSocket-Extensions: {offer}\r\n");
        wire.say(handshake_with("/", &header).as_bytes());
        let head = wire.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let answer = extensions(&head).expect("compression is agreed on");
        let answer = answer.strip_prefix(OFFER).expect("of this kind").to_owned();
        let bits = |name: &str| match answer.split_once(name) {
            None => 15,
            Some((_, rest)) => rest.split(';').next().unwrap().parse().expect("a number"),
        };
        Self {
            wire,
            deflater: Compress::new_with_window_bits(
                Compression::new(6),
                false,
                bits("client_max_window_bits="),
            ),
            inflater: Decompress::new(false),
            client_takeover: !answer.contains("client_no_context_takeover"),
            server_takeover: !answer.contains("server_no_context_takeover"),
            window: 1 << bits("server_max_window_bits="),
            answer,
        }
    }

    /// The payload of a compressed message.
    pub fn compress(&mut self, message: &[u8]) -> Vec<u8> {
        let payload = flushed(&mut self.deflater, message);
        if !self.client_takeover {
            self.deflater.reset();
        }
        payload
    }

    pub fn send(&mut self, opcode: u8, message: &[u8]) {
        let payload = self.compress(message);
        self.wire.say(&compressed_frame(true, opcode, &payload));
    }

    #[track_caller]
    pub fn read(&mut self) -> Received {
        let (compressed, Frame { fin, opcode, payload }) = self.wire.next();
        assert!(fin, "the server does not fragment");
        assert!(!compressed || matches!(opcode, TEXT | BINARY), "a compressed {opcode}");
        let wire = payload.len();
        let payload = if compressed { self.inflate(payload) } else { payload };
        Received { opcode, compressed, wire, payload }
    }

    #[track_caller]
    pub fn inflate(&mut self, mut payload: Vec<u8>) -> Vec<u8> {
        assert!(!payload.is_empty(), "an empty message has a byte (RFC 7692 section 7.2.3.6)");
        assert!(!payload.ends_with(&TAIL), "the tail is left out");
        payload.extend_from_slice(&TAIL);
        let farthest = farthest(&payload);
        assert!(farthest <= self.window, "{farthest} bytes back, of {}", self.window);
        let message = inflated(&mut self.inflater, &payload);
        if !self.server_takeover {
            self.inflater.reset(false);
        }
        message
    }

    /// Sends a message compressed and expects the same.
    #[track_caller]
    pub fn echo(&mut self, opcode: u8, message: &[u8]) -> Received {
        self.send(opcode, message);
        let received = self.read();
        received.expect(opcode, message);
        received
    }
}

/// The only value of the header in a 101.
#[track_caller]
pub fn extensions(head: &str) -> Option<&str> {
    let mut values =
        head.lines().filter_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
    let value = values.next();
    assert_eq!(values.next(), None, "{head}");
    value
}

/// The same frame with the bit of permessage-deflate.
pub fn compressed_frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame(fin, opcode, payload);
    bytes[0] |= 0x40;
    bytes
}

/// A whole message in frames of these payloads, the first of which says that it is compressed.
pub fn fragments<'a>(opcode: u8, payloads: impl IntoIterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let payloads: Vec<_> = payloads.into_iter().collect();
    let last = payloads.len() - 1;
    let mut frames = vec![compressed_frame(last == 0, opcode, payloads[0])];
    frames.extend((1..=last).map(|at| frame(at == last, CONTINUATION, payloads[at])));
    frames
}

/// Compresses a message and leaves the compressor where it is.
pub fn flushed(deflater: &mut Compress, message: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(message.len() + message.len() / 8 + 1024);
    let before = deflater.total_in();
    deflater.compress_vec(message, &mut payload, FlushCompress::Sync).unwrap();
    assert_eq!(deflater.total_in() - before, message.len() as u64);
    assert!(payload.len() < payload.capacity(), "there was room for all of it");
    if payload.is_empty() {
        // Nothing to say since the last time (RFC 7692 section 7.2.3.6).
        return vec![0];
    }
    payload.truncate(payload.strip_suffix(&TAIL).expect("a flushed block").len());
    payload
}

/// Decompresses a payload with its tail, and leaves the decompressor where it is.
#[track_caller]
pub fn inflated(inflater: &mut Decompress, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(16 * 1024);
    let mut rest = payload;
    loop {
        let before = inflater.total_in();
        let status = inflater.decompress_vec(rest, &mut message, FlushDecompress::Sync);
        let status = status.expect("what the server compresses can be read");
        assert_ne!(status, Status::StreamEnd, "the server does not end its stream");
        rest = &rest[(inflater.total_in() - before) as usize..];
        if rest.is_empty() && message.len() < message.capacity() {
            return message;
        }
        message.reserve(message.len().max(1024));
    }
}

/// A payload that compresses nothing: stored blocks of so many bytes, as a compressor with little
/// memory writes them (RFC 1951 section 3.2.4).
pub fn stored(message: &[u8], block: usize) -> Vec<u8> {
    let mut payload = Vec::new();
    for block in message.chunks(block) {
        let len = u16::try_from(block.len()).unwrap();
        payload.push(0);
        payload.extend_from_slice(&len.to_le_bytes());
        payload.extend_from_slice(&(!len).to_le_bytes());
        payload.extend_from_slice(block);
    }
    payload.push(0);
    payload
}

/// A compressed message of a peer with nothing before it.
pub fn alone(message: &[u8]) -> Vec<u8> {
    flushed(&mut Compress::new(Compression::best(), false), message)
}

/// Bytes that cannot be made smaller.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Text of which a part can be saved: digits that say half of what they take.
pub fn digits(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, len).iter().map(|byte| b"0123456789abcdef"[usize::from(byte % 16)]).collect()
}

/// Text as applications send it.
pub fn json(len: usize) -> Vec<u8> {
    let lines = (0_u32..).flat_map(|n| {
        format!("{{\"id\":{n},\"name\":\"sensor {}\",\"value\":{}}}\n", n % 7, n * n % 1013)
            .into_bytes()
    });
    lines.take(len).collect()
}

/// What ends a session by the peer's fault, with this code and for this reason.
#[track_caller]
pub fn expect_violation(closed: &Closed, code: u16, reason: &str) {
    assert_eq!((closed.by, closed.cause), (Side::Peer, Cause::Violation), "{closed}");
    assert_eq!(closed.code.map(|code| code.as_u16()), Some(code), "{closed}");
    assert_eq!(closed.reason.as_str(), reason, "{closed}");
}
