//! permessage-deflate (RFC 7692) through real sockets, with `flate2` on the client's side.

#[path = "support/blocks.rs"]
mod blocks;
#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::sync::{Mutex, mpsc};
use std::thread;

use blocks::farthest;
use coracle::config::Deflate;
use coracle::{Builder, Cause, Closed, Error, Handler, Message, Prepared, Server, Session, Side};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use pipe::{PIPE, Pipe, await_full_pipe, opened};
use support::*;

const OFFER: &str = "permessage-deflate";

/// What browsers offer.
const BROWSER: &str = "permessage-deflate; client_max_window_bits";

/// What ends every flushed block, and is left out on the wire (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// Of the largest message, by default.
const LIMIT: usize = 64 * 1024;

/// A server that sends back what it gets.
fn echo(deflate: Deflate) -> Builder<impl Handler> {
    recorded_echo(deflate).0
}

/// The same, and the records of every end.
fn recorded_echo(deflate: Deflate) -> (Builder<impl Handler>, Heard<Closed>) {
    let (closed, records) = heard();
    let builder = Server::builder()
        .deflate(deflate)
        .on_message(async |session, message| session.send(message).await)
        .on_close(record(&closed));
    (builder, records)
}

/// Both modes; what does not depend on takeover must hold in each.
fn modes() -> [Deflate; 2] {
    [Deflate::shared(), Deflate::dedicated()]
}

fn with(mut deflate: Deflate, change: impl FnOnce(&mut Deflate)) -> Deflate {
    change(&mut deflate);
    deflate
}

/// The connection below: a socket, or a pipe in memory.
trait Wire {
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
struct Client<W> {
    wire: W,
    /// The parameters of the answer.
    answer: String,
    deflater: Compress,
    inflater: Decompress,
    client_takeover: bool,
    server_takeover: bool,
    /// Of the server.
    window: usize,
}

/// A message of the server as it was on the wire.
#[derive(Debug)]
struct Received {
    opcode: u8,
    compressed: bool,
    /// Bytes of the frame's payload.
    wire: usize,
    payload: Vec<u8>,
}

impl Received {
    /// Is this message, and came compressed.
    #[track_caller]
    fn expect(&self, opcode: u8, payload: &[u8]) -> &Self {
        assert!(self.payload == payload, "{} bytes, not {}", self.payload.len(), payload.len());
        assert_eq!(self.opcode, opcode);
        assert!(self.compressed, "{} bytes came uncompressed", payload.len());
        self
    }

    /// Is this message, and came as it is.
    #[track_caller]
    fn expect_plain(&self, opcode: u8, payload: &[u8]) {
        assert!(self.payload == payload, "{} bytes, not {}", self.payload.len(), payload.len());
        assert_eq!((self.opcode, self.compressed), (opcode, false));
    }
}

impl Client<Raw> {
    #[track_caller]
    fn connect(server: &TestServer, offer: &str) -> Self {
        Self::over(server.raw(), offer)
    }

    #[track_caller]
    fn goodbye(self) {
        self.wire.goodbye();
    }

    /// Says goodbye with this code, having said nothing else.
    #[track_caller]
    fn expect_close(mut self, code: u16) -> String {
        self.wire.expect_close(code)
    }
}

impl<W: Wire> Client<W> {
    #[track_caller]
    fn over(mut wire: W, offer: &str) -> Self {
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
    fn compress(&mut self, message: &[u8]) -> Vec<u8> {
        let payload = flushed(&mut self.deflater, message);
        if !self.client_takeover {
            self.deflater.reset();
        }
        payload
    }

    fn send(&mut self, opcode: u8, message: &[u8]) {
        let payload = self.compress(message);
        self.wire.say(&compressed_frame(true, opcode, &payload));
    }

    #[track_caller]
    fn read(&mut self) -> Received {
        let (compressed, Frame { fin, opcode, payload }) = self.wire.next();
        assert!(fin, "the server does not fragment");
        assert!(!compressed || matches!(opcode, TEXT | BINARY), "a compressed {opcode}");
        let wire = payload.len();
        let payload = if compressed { self.inflate(payload) } else { payload };
        Received { opcode, compressed, wire, payload }
    }

    #[track_caller]
    fn inflate(&mut self, mut payload: Vec<u8>) -> Vec<u8> {
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
    fn echo(&mut self, opcode: u8, message: &[u8]) -> Received {
        self.send(opcode, message);
        let received = self.read();
        received.expect(opcode, message);
        received
    }
}

/// The only value of the header in a 101.
#[track_caller]
fn extensions(head: &str) -> Option<&str> {
    let mut values =
        head.lines().filter_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
    let value = values.next();
    assert_eq!(values.next(), None, "{head}");
    value
}

/// The same frame with the bit of permessage-deflate.
fn compressed_frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame(fin, opcode, payload);
    bytes[0] |= 0x40;
    bytes
}

/// A whole message in frames of these payloads, the first of which says that it is compressed.
fn fragments<'a>(opcode: u8, payloads: impl IntoIterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let payloads: Vec<_> = payloads.into_iter().collect();
    let last = payloads.len() - 1;
    let mut frames = vec![compressed_frame(last == 0, opcode, payloads[0])];
    frames.extend((1..=last).map(|at| frame(at == last, CONTINUATION, payloads[at])));
    frames
}

/// Compresses a message and leaves the compressor where it is.
fn flushed(deflater: &mut Compress, message: &[u8]) -> Vec<u8> {
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
fn inflated(inflater: &mut Decompress, payload: &[u8]) -> Vec<u8> {
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
fn stored(message: &[u8], block: usize) -> Vec<u8> {
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
fn alone(message: &[u8]) -> Vec<u8> {
    flushed(&mut Compress::new(Compression::best(), false), message)
}

/// Bytes that cannot be made smaller.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Text of which a part can be saved: digits that say half of what they take.
fn digits(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, len).iter().map(|byte| b"0123456789abcdef"[usize::from(byte % 16)]).collect()
}

/// Text as applications send it.
fn json(len: usize) -> Vec<u8> {
    let lines = (0_u32..).flat_map(|n| {
        format!("{{\"id\":{n},\"name\":\"sensor {}\",\"value\":{}}}\n", n % 7, n * n % 1013)
            .into_bytes()
    });
    lines.take(len).collect()
}

/// What ends a session by the peer's fault, with this code and for this reason.
#[track_caller]
fn expect_violation(closed: &Closed, code: u16, reason: &str) {
    assert_eq!((closed.by, closed.cause), (Side::Peer, Cause::Violation), "{closed}");
    assert_eq!(closed.code.map(|code| code.as_u16()), Some(code), "{closed}");
    assert_eq!(closed.reason.as_str(), reason, "{closed}");
}

// --- The handshake --------------------------------------------------------------------------------

#[test]
fn nothing_is_agreed_on_unless_both_sides_want_it() {
    let (closed, records) = heard();
    let off = Server::builder()
        .on_message(async |session, message| session.send(message).await)
        .on_close(record(&closed));
    let (on, records_on) = recorded_echo(Deflate::shared());
    let (off, on) = (start(off), start(on));
    let declined = "permessage-deflate; server_max_window_bits=8";
    let cases = [
        (&off, Some(BROWSER), &records),
        (&on, None, &records_on),
        (&on, Some(declined), &records_on),
    ];
    for (server, offer, records) in cases {
        let header =
            offer.map_or(String::new(), |it| format!("Sec-WebSocket-Extensions: {it}\r\n"));
        let mut client = server.raw();
        client.send(handshake_with("/", &header).as_bytes());
        let head = client.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(extensions(&head), None);
        // Nothing comes compressed, and nothing may.
        let text = "a".repeat(5000);
        client.echo(&text);
        client.send(&compressed_frame(true, TEXT, &alone(text.as_bytes())));
        let reason = client.expect_close(1002);
        drop(client);
        expect_violation(&records.next(), 1002, &reason);
    }
    off.finish();
    on.finish();
}

#[test]
fn the_first_offer_that_suits_is_answered() {
    let server = start(echo(with(Deflate::dedicated(), |it| it.client_window_bits = 11)));
    for (offer, answer) in [
        ("permessage-deflate", ""),
        ("permessage-deflate; client_max_window_bits", "; client_max_window_bits=11"),
        ("permessage-deflate; client_max_window_bits=\"9\"", "; client_max_window_bits=9"),
        (
            "x-webkit-deflate-frame, permessage-deflate; server_max_window_bits=16, \
             permessage-deflate; foo, permessage-deflate; server_max_window_bits=10, \
             permessage-deflate",
            "; server_max_window_bits=10",
        ),
        (
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover\r\n\
             Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover",
            "; client_no_context_takeover",
        ),
    ] {
        let mut client = Client::connect(&server, offer);
        assert_eq!(client.answer, answer, "{offer}");
        client.echo(TEXT, &json(1000));
        client.goodbye();
    }
    server.finish();
}

/// RFC 6455 section 9.1: it does not matter that the extension would not be used.
#[test]
fn a_malformed_offer_fails_the_handshake() {
    let off = start(Server::builder().on_message(async |_: &Session, _: Message| {}));
    let on = start(echo(Deflate::shared()));
    for server in [&off, &on] {
        for offer in ["permessage-deflate;", "permessage-deflate; a=\"", "permessage deflate", "="]
        {
            let header = format!("Sec-WebSocket-Extensions: {offer}\r\n");
            let answer = server.raw().ask(handshake_with("/", &header).as_bytes());
            assert!(answer.starts_with("HTTP/1.1 400 "), "{offer}: {answer}");
        }
    }
    off.finish();
    on.finish();
}

#[test]
fn a_setting_that_cannot_be_is_an_error_that_names_it() {
    type Set = fn(&mut Deflate, u8);
    let settings: [(&str, u8, Set); 5] = [
        ("deflate.level", 10, |deflate, value| deflate.level = value),
        ("deflate.server_window_bits", 8, |deflate, value| deflate.server_window_bits = value),
        ("deflate.server_window_bits", 16, |deflate, value| deflate.server_window_bits = value),
        ("deflate.client_window_bits", 8, |deflate, value| deflate.client_window_bits = value),
        ("deflate.client_window_bits", 16, |deflate, value| deflate.client_window_bits = value),
    ];
    for (name, value, set) in settings {
        for base in modes() {
            let builder = echo(with(base, |it| set(it, value))).bind("127.0.0.1:0");
            match builder.start().map(|handle| handle.local_addr()) {
                Err(Error::Config(what)) => {
                    assert!(what.contains(&format!("{name} is {value}: ")), "{what}");
                }
                other => panic!("{name} = {value}: {other:?}"),
            }
        }
    }
}

// --- Messages -------------------------------------------------------------------------------------

#[test]
fn messages_of_every_length_come_back() {
    for base in modes() {
        let server = start(echo(with(base, |it| it.threshold = 0)));
        let mut client = Client::connect(&server, BROWSER);
        for len in [60_000, 1, 2, 125, 126, 127, 255, 256, 1024, 16_384, 65_535, 65_536] {
            // Not what was sent before: in shared mode it must be smaller by itself.
            client.send(TEXT, &json(len));
            let received = client.read();
            assert!(received.payload == json(len), "{len}");
            assert_eq!(received.opcode, TEXT);
            assert!(received.compressed || len < 100, "{len}");
            let zeros = vec![0; len];
            client.send(BINARY, &zeros);
            let received = client.read();
            assert!(received.payload == zeros, "{len}");
            assert_eq!(received.opcode, BINARY);
        }
        client.goodbye();
        server.finish();
    }
}

#[test]
fn a_client_may_mix_compressed_messages_with_others() {
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        for round in 0..10 {
            let text = json(1000 + round);
            client.wire.send_frame(TEXT, &text);
            client.read().expect(TEXT, &text);
            client.echo(BINARY, &text);
        }
        client.goodbye();
        server.finish();
    }
}

/// An empty message is a block of a byte (RFC 7692 section 7.2.3.6). zlib has nothing to say when
/// it is flushed twice, so the second one in a row was sent without the byte; its reader took the
/// tail, which is always added, for half a block, and could not read the next message.
#[test]
fn empty_messages_in_a_row_spoil_nothing() {
    for base in modes() {
        let server = start(echo(with(base.clone(), |it| it.threshold = 0)));
        let mut client = Client::connect(&server, BROWSER);
        for _ in 0..3 {
            for opcode in [TEXT, BINARY, TEXT] {
                client.send(opcode, b"");
                let received = client.read();
                assert_eq!((received.opcode, &received.payload[..]), (opcode, &b""[..]));
                // By itself it cannot become smaller.
                assert_eq!(received.compressed, client.server_takeover);
            }
            client.echo(TEXT, &json(2000));
        }
        client.goodbye();
        server.finish();
    }
}

/// A client whose compressor says nothing for nothing forgets the byte. Its messages can be read
/// all the same: there is no block that the tail would end.
#[test]
fn an_empty_message_without_a_byte_spoils_nothing() {
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        let empty = compressed_frame(true, TEXT, b"");
        let in_fragments = fragments(TEXT, [&b""[..], b"", b""]).concat();
        for empty in [empty, in_fragments] {
            client.wire.send(&empty);
            client.read().expect_plain(TEXT, b"");
            client.echo(TEXT, &json(2000));
        }
        client.goodbye();
        server.finish();
    }
}

#[test]
fn a_large_message_makes_the_round_trip() {
    const MIB: usize = 1024 * 1024;
    for base in modes() {
        let server = start(echo(base).configure(|config| config.limits.message_bytes = MIB));
        let mut client = Client::connect(&server, BROWSER);
        for message in [json(MIB), digits(3, MIB), vec![b'x'; MIB]] {
            client.echo(TEXT, &message);
        }
        client.goodbye();
        server.finish();
    }
}

#[test]
fn many_messages_in_one_read_are_answered_in_order() {
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        let messages: Vec<_> = (0..300).map(|n| digits(n, 256 + n as usize)).collect();
        let mut segment = Vec::new();
        for message in &messages {
            let payload = client.compress(message);
            segment.extend(compressed_frame(true, TEXT, &payload));
        }
        client.wire.send(&segment);
        for message in &messages {
            client.read().expect(TEXT, message);
        }
        client.goodbye();
        server.finish();
    }
}

// --- What is compressed ---------------------------------------------------------------------------

#[test]
fn messages_below_the_threshold_are_sent_as_they_are() {
    for base in modes() {
        for (threshold, deflate) in
            [(256, base.clone()), (1000, with(base, |it| it.threshold = 1000))]
        {
            let server = start(echo(deflate));
            let mut client = Client::connect(&server, BROWSER);
            for _ in 0..3 {
                for (opcode, byte) in [(TEXT, b'x'), (BINARY, 0)] {
                    let short = vec![byte; threshold - 1];
                    client.send(opcode, &short);
                    client.read().expect_plain(opcode, &short);
                    client.echo(opcode, &vec![byte; threshold]);
                }
            }
            client.goodbye();
            server.finish();
        }
    }
}

#[test]
fn a_message_can_be_excepted() {
    for base in modes() {
        let server = start(Server::builder().deflate(base).on_message(
            async |session: &Session, message: Message| {
                session.send(message.clone()).await?;
                session.send(message.clone().uncompressed()).await?;
                session.try_send(message.clone().uncompressed())?;
                session.try_send(message)
            },
        ));
        let mut client = Client::connect(&server, BROWSER);
        // Smaller and larger than what is sent without a copy.
        for len in [300, 5000, 65_000] {
            for _ in 0..2 {
                let text = json(len);
                client.send(TEXT, &text);
                client.read().expect(TEXT, &text);
                client.read().expect_plain(TEXT, &text);
                client.read().expect_plain(TEXT, &text);
                client.read().expect(TEXT, &text);
            }
        }
        client.goodbye();
        server.finish();
    }
}

// One frame for all: a session got what another's window could not read, or what it had never agreed on.
#[test]
fn a_prepared_message_suits_every_session_it_is_sent_to() {
    let offers = [
        BROWSER,
        OFFER,
        "permessage-deflate; server_max_window_bits=9",
        "permessage-deflate; \
          server_no_context_takeover",
    ];
    for base in modes() {
        let (sender, sessions) = heard();
        let server = start(Server::builder().deflate(base).on_open(opened(&sender)));
        let mut plain = server.client();
        let mut receivers = vec![sessions.next()];
        let mut clients = Vec::new();
        for offer in offers {
            clients.push(Client::connect(&server, offer));
            receivers.push(sessions.next());
        }
        // Of which most is far apart; below the threshold; noise that does not become smaller.
        let far = [json(3000), noise(1, 1000), json(3000)].concat();
        for (message, smaller) in [(far, true), (json(100), false), (noise(2, 3000), false)] {
            let prepared = Prepared::new(message.clone());
            let excepted = Prepared::new(Message::from(message.clone()).uncompressed());
            for round in 0..2 {
                for session in &receivers {
                    session.try_send_prepared(&prepared).unwrap();
                    session.try_send_prepared(&excepted).unwrap();
                    // Behind them, so that context takeover is seen to go on.
                    session.try_send(format!("{round}")).unwrap();
                }
                assert_eq!(plain.read_frame().payload, message);
                assert_eq!(plain.read_frame().payload, message);
                assert_eq!(plain.read_frame().payload, round.to_string().as_bytes());
                for client in &mut clients {
                    let received = client.read();
                    assert!(received.payload == message);
                    if client.server_takeover {
                        assert_eq!(received.compressed, message.len() >= 256);
                    } else {
                        assert_eq!(received.compressed, smaller);
                    }
                    client.read().expect_plain(BINARY, &message);
                    client.read().expect_plain(TEXT, round.to_string().as_bytes());
                }
            }
        }
        plain.goodbye();
        clients.into_iter().for_each(Client::goodbye);
        server.finish();
    }
}

#[test]
fn the_level_decides_how_small_a_message_becomes() {
    let text = json(20_000);
    let at = |level| {
        let server = start(echo(with(Deflate::dedicated(), |it| it.level = level)));
        let mut client = Client::connect(&server, BROWSER);
        let wire = client.echo(TEXT, &text).wire;
        client.goodbye();
        server.finish();
        wire
    };
    let [nothing, fast, small] = [0, 1, 9].map(at);
    assert!(nothing > text.len(), "{nothing}");
    assert!(fast < text.len(), "{fast}");
    assert!(small < fast, "{small} {fast}");
}

#[test]
fn in_shared_mode_what_cannot_be_made_smaller_is_sent_as_it_is() {
    let server = start(echo(Deflate::shared()));
    let mut client = Client::connect(&server, BROWSER);
    for round in 0..3 {
        // Smaller and larger than what is sent without a copy; all in one batch, too.
        for len in [256, 5000, 65_536] {
            let noise = noise(round, len);
            client.send(BINARY, &noise);
            client.read().expect_plain(BINARY, &noise);
            client.echo(TEXT, &json(len));
        }
    }
    client.goodbye();
    server.finish();
}

// --- Windows and takeover -------------------------------------------------------------------------

/// The same kibibyte of noise at a distance that only a window of more than `bits` bits reaches,
/// and what lies between.
fn far_apart(bits: u8) -> Vec<u8> {
    let repeated = noise(u64::from(bits), 1024);
    let between = noise(100 + u64::from(bits), (1 << bits) + 100);
    [&repeated[..], &between, &repeated].concat()
}

/// What the tests below rely on: a window of any size is used, and seen to be used.
#[test]
fn how_far_back_a_compressor_refers_can_be_seen() {
    let reach = |payload: Vec<u8>| farthest(&[&payload[..], &TAIL].concat());
    for bits in 9..15 {
        let message = far_apart(bits);
        assert_eq!(reach(alone(&message)), message.len() - 1024, "{bits}");
        let mut within = Compress::new_with_window_bits(Compression::best(), false, bits);
        assert!(reach(flushed(&mut within, &message)) <= 1 << bits, "{bits}");
    }
    assert_eq!(reach(alone(&noise(1, 5000))), 0);
    assert_eq!(reach(alone(&[7; 5000])), 1);
}

#[test]
fn the_server_keeps_to_the_window_that_was_agreed_on() {
    for base in modes() {
        for bits in 9..=15 {
            // Asked for by the client, or the server's own wish.
            let asked = format!("permessage-deflate; server_max_window_bits={bits}");
            let own = with(base.clone(), |it| it.server_window_bits = bits);
            for (deflate, offer) in [(base.clone(), &*asked), (own, OFFER)] {
                let server = start(echo(deflate));
                let mut client = Client::connect(&server, offer);
                let said = format!("; server_max_window_bits={bits}");
                let expected = bits < 15 || offer != OFFER;
                assert_eq!(client.answer.contains(&said), expected, "{}", client.answer);
                for reach in 9..=14 {
                    client.echo(TEXT, &json(1000));
                    // Half of it can be saved, so that it is compressed in shared mode, too.
                    let far = far_apart(reach);
                    let message = [&far[..], &vec![0; 1500]].concat();
                    client.echo(BINARY, &message);
                }
                client.goodbye();
                server.finish();
            }
        }
    }
}

/// A window that is agreed on is used, and not a smaller one.
#[test]
fn a_larger_window_makes_a_smaller_message() {
    let message = [&far_apart(13)[..], &json(2000)].concat();
    for base in modes() {
        let server = start(echo(base));
        let with = |bits: u8| {
            let offer = format!("permessage-deflate; server_max_window_bits={bits}");
            let mut client = Client::connect(&server, &offer);
            let wire = client.echo(BINARY, &message).wire;
            client.goodbye();
            wire
        };
        let (small, large) = (with(12), with(15));
        assert!(large + 900 < small, "{large} {small}");
        server.finish();
    }
}

#[test]
fn the_client_keeps_to_the_window_that_was_agreed_on() {
    for base in modes() {
        for bits in 9..=15 {
            let server = start(echo(with(base.clone(), |it| it.client_window_bits = bits)));
            let mut client = Client::connect(&server, BROWSER);
            let said = format!("; client_max_window_bits={bits}");
            assert_eq!(client.answer.contains(&said), bits < 15, "{}", client.answer);
            for reach in 9..=14 {
                client.echo(TEXT, &json(1000));
                client.echo(BINARY, &[&far_apart(reach)[..], &vec![0; 1500]].concat());
            }
            client.goodbye();
            server.finish();
        }
    }
}

/// A client that cannot be told reaches back as far as it likes.
#[test]
fn a_client_that_has_not_offered_a_window_uses_the_largest() {
    for base in modes() {
        let server = start(echo(with(base, |it| it.client_window_bits = 9)));
        let mut client = Client::connect(&server, OFFER);
        assert!(!client.answer.contains("client_max_window_bits"), "{}", client.answer);
        for reach in 9..=14 {
            client.echo(TEXT, &json(1000));
            client.echo(BINARY, &[&far_apart(reach)[..], &vec![0; 1500]].concat());
        }
        client.goodbye();
        server.finish();
    }
}

/// Each side may decline its own takeover, or that of the other.
#[test]
fn takeover_is_used_in_the_directions_in_which_it_was_agreed_on() {
    let server = start(echo(Deflate::dedicated()));
    let shared = start(echo(Deflate::shared()));
    for (server, offer, by_server, by_client) in [
        (&server, "permessage-deflate", true, true),
        (&server, "permessage-deflate; server_no_context_takeover", false, true),
        (&server, "permessage-deflate; client_no_context_takeover", true, false),
        (
            &server,
            "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
            false,
            false,
        ),
        (&shared, "permessage-deflate", false, false),
    ] {
        let mut client = Client::connect(server, offer);
        assert_eq!((client.server_takeover, client.client_takeover), (by_server, by_client));
        let message = digits(5, 4000);
        let first = client.echo(TEXT, &message).wire;
        for _ in 0..3 {
            let payload = client.compress(&message);
            // What the client sends is what it says it is.
            assert_eq!(payload.len() < 100, by_client, "{offer}: {}", payload.len());
            client.wire.send(&compressed_frame(true, TEXT, &payload));
            let next = client.read();
            next.expect(TEXT, &message);
            if by_server {
                assert!(next.wire < 100, "{offer}: {next:?}");
            } else {
                assert_eq!(next.wire, first, "{offer}");
            }
        }
        client.goodbye();
    }
    server.finish();
    shared.finish();
}

/// What refers to a message that the server has not kept is read as nonsense by nobody.
#[test]
fn a_client_that_takes_over_what_it_has_declined_is_closed() {
    for base in modes() {
        let (builder, records) = recorded_echo(base);
        let server = start(builder);
        let mut client = Client::connect(&server, "permessage-deflate; client_no_context_takeover");
        client.client_takeover = true;
        let message = digits(5, 4000);
        client.echo(TEXT, &message);
        client.send(TEXT, &message);
        let reason = client.expect_close(1007);
        expect_violation(&records.next(), 1007, &reason);
        server.finish();
    }
}

/// In dedicated mode the window has seen also what could not be made smaller, so it must be sent
/// compressed.
#[test]
fn with_takeover_noise_is_sent_compressed_and_can_be_referred_to() {
    let server = start(echo(Deflate::dedicated()));
    let mut client = Client::connect(&server, BROWSER);
    let noise = noise(9, 10_000);
    assert!(client.echo(BINARY, &noise).wire > noise.len());
    assert!(client.echo(BINARY, &noise).wire < 200);
    client.goodbye();
    server.finish();
}

// --- Frames ---------------------------------------------------------------------------------------

/// The bit stands on the first frame only, and a control frame between two fragments has none.
#[test]
fn a_compressed_message_may_come_in_fragments_with_control_frames_between() {
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        let text = json(1000);
        for cuts in [1, 2, 3, 7] {
            let payload = client.compress(&text);
            let mut pieces: Vec<_> = payload.chunks(payload.len().div_ceil(cuts)).collect();
            pieces.push(b"");
            pieces.insert(1, b"");
            let frames = fragments(TEXT, pieces);
            for (n, bytes) in frames.iter().enumerate() {
                client.wire.send(bytes);
                if n + 1 < frames.len() {
                    client.wire.send_frame(PING, &[n as u8]);
                    let pong = client.read();
                    assert_eq!((pong.opcode, pong.payload), (PONG, vec![n as u8]));
                }
            }
            client.read().expect(TEXT, &text);
        }
        // Byte by byte, within one segment, and the next message behind it.
        let payload = client.compress(&text);
        let mut segment = fragments(TEXT, payload.chunks(1)).concat();
        let next = client.compress(b"next");
        segment.extend(compressed_frame(true, BINARY, &next));
        client.wire.send(&segment);
        client.read().expect(TEXT, &text);
        client.read().expect_plain(BINARY, b"next");
        client.goodbye();
        server.finish();
    }
}

/// A frame that arrives in two segments, cut at every byte.
#[test]
fn a_compressed_frame_may_arrive_in_pieces() {
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        for cut in 1..40 {
            let text = digits(cut, 300);
            let payload = client.compress(&text);
            let bytes = compressed_frame(true, TEXT, &payload);
            let (before, behind) = bytes.split_at(cut as usize);
            client.wire.send(before);
            // The server has read it: it answers what came on another connection meanwhile.
            let mut other = server.client();
            other.echo("between");
            other.goodbye();
            client.wire.send(behind);
            client.read().expect(TEXT, &text);
        }
        client.goodbye();
        server.finish();
    }
}

/// A server with compression looked for the bit on data frames only, or took it on a continuation
/// for a compressed message.
#[test]
fn the_bit_in_the_wrong_place_is_answered_1002() {
    let hello = alone(b"Hello");
    let odd = |first: u8, payload: &[u8]| {
        let mut bytes = frame(true, TEXT, payload);
        bytes[0] = first;
        bytes
    };
    let begun = |rest: Vec<u8>| [compressed_frame(false, TEXT, &hello), rest].concat();
    let plainly = |rest: Vec<u8>| [frame(false, TEXT, b"a"), rest].concat();
    let cases = [
        ("on a continuation", begun(odd(0xC0, b"\x00"))),
        ("on a continuation that is not the last", begun(odd(0x40, b"\x00"))),
        ("on a continuation of a plain message", plainly(odd(0xC0, b"a"))),
        ("on a continuation of nothing", odd(0xC0, &hello)),
        ("on a ping", odd(0xC9, b"")),
        ("on a pong", odd(0xCA, b"")),
        ("on a close frame", odd(0xC8, &[0x03, 0xE8])),
        ("on a ping between fragments", begun(odd(0xC9, b""))),
        ("the second bit", odd(0xA1, &hello)),
        ("the third bit", odd(0x91, &hello)),
        ("the second bit, too", odd(0xE1, &hello)),
        ("the third bit, too", odd(0xD1, &hello)),
        ("on a reserved opcode", odd(0xC3, &hello)),
        ("on a new message inside of another", begun(odd(0xC1, &hello))),
    ];
    for base in modes() {
        let (builder, records) = recorded_echo(base);
        let server = start(builder);
        for (what, bytes) in &cases {
            let mut client = Client::connect(&server, BROWSER);
            // What came before is answered first.
            let text = json(500);
            let payload = client.compress(&text);
            client.wire.send(&[&compressed_frame(true, TEXT, &payload), &bytes[..]].concat());
            client.read().expect(TEXT, &text);
            let (code, reason) = client.wire.read_close();
            assert_eq!(code, 1002, "{what}: {reason}");
            drop(client);
            expect_violation(&records.next(), 1002, &reason);
        }
        server.finish();
    }
}

/// RFC 7692 section 7.2.3.4: a sender that ends its stream adds a byte, so that the tail that the
/// reader adds has something to end. Other senders add none; others begin another stream.
#[test]
fn a_stream_may_end_inside_of_a_message() {
    let finished = |message: &[u8]| {
        let mut payload = Vec::with_capacity(message.len() + 100);
        let mut deflater = Compress::new(Compression::best(), false);
        let status = deflater.compress_vec(message, &mut payload, FlushCompress::Finish).unwrap();
        assert_eq!(status, Status::StreamEnd);
        payload
    };
    let (one, two) = (json(700), digits(1, 800));
    let both = [&one[..], &two].concat();
    let cases = [
        ("and a byte", [&finished(&one)[..], &[0]].concat(), &one),
        ("and nothing", finished(&one), &one),
        ("and another that goes on", [finished(&one), alone(&two)].concat(), &both),
        ("and another that ends", [finished(&one), finished(&two)].concat(), &both),
        ("and another that is empty", [finished(&both), alone(b"")].concat(), &both),
    ];
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        for (what, payload, message) in &cases {
            for pieces in [1, payload.len() / 3 + 1, payload.len() - 1] {
                let mut frames: Vec<_> = payload.chunks(payload.len() / pieces).collect();
                // Behind the end, in a frame of its own.
                frames.push(b"");
                client.wire.send(&fragments(TEXT, frames).concat());
                let received = client.read();
                assert!(received.payload == **message, "{what}");
            }
            // The client begins anew, too.
            client.deflater.reset();
            client.echo(TEXT, &json(2000));
        }
        client.goodbye();
        server.finish();
    }
}

// --- Bounds ---------------------------------------------------------------------------------------

/// Memory was taken before the bound was looked at, or the bound was looked at before the last
/// piece of output only.
#[test]
fn a_bomb_is_answered_1009_and_nothing_else_happens() {
    let bomb = alone(&vec![0; 8 << 20]);
    assert!(bomb.len() < LIMIT, "it gets past the bound of the frame: {}", bomb.len());
    for base in modes() {
        let (seen, messages) = heard();
        let (closed, records) = heard();
        let server = start(
            Server::builder()
                .deflate(base)
                .on_message(async move |session: &Session, message: Message| {
                    seen.send(message.len()).unwrap();
                    session.send(message).await
                })
                .on_close(record(&closed)),
        );
        let mut neighbour = Client::connect(&server, BROWSER);
        neighbour.echo(TEXT, &json(3000));
        assert_eq!(messages.next(), 3000);
        let in_fragments = fragments(BINARY, bomb.chunks(1000)).concat();
        for bytes in [compressed_frame(true, BINARY, &bomb), in_fragments] {
            let mut client = Client::connect(&server, BROWSER);
            client.echo(TEXT, &json(2000));
            assert_eq!(messages.next(), 2000);
            client.wire.send(&bytes);
            let reason = client.expect_close(1009);
            expect_violation(&records.next(), 1009, &reason);
            assert_eq!(messages.try_next(), None, "the handler has not seen it");
            neighbour.echo(TEXT, &json(3000));
            assert_eq!(messages.next(), 3000);
        }
        neighbour.goodbye();
        server.finish();
    }
}

#[test]
fn the_bound_holds_for_what_a_message_becomes_to_the_byte() {
    for base in modes() {
        for limit in [1, 1000, 1023, 1024, 1025, 4096, LIMIT] {
            let (builder, records) = recorded_echo(base.clone());
            let server = start(builder.configure(|config| config.limits.message_bytes = limit));
            // What fits is taken, however much or little of it there is on the wire.
            for message in [digits(3, limit + 1), noise(3, limit + 1), vec![0; limit + 1]] {
                let mut client = Client::connect(&server, BROWSER);
                for _ in 0..3 {
                    client.send(BINARY, &message[..limit]);
                    assert!(client.read().payload == message[..limit], "{limit}");
                }
                client.send(BINARY, &message);
                let reason = client.expect_close(1009);
                expect_violation(&records.next(), 1009, &reason);
            }
            server.finish();
        }
    }
}

/// What cannot be made smaller becomes larger by its blocks' headers, and the fewer bytes a block
/// has, the more. Python's `websockets` lets its compressor have memory for 2 KiB.
#[test]
fn a_message_of_the_limit_that_compression_has_made_larger_is_accepted() {
    let message = noise(11, LIMIT);
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        // Of a compressor with as much memory as it likes, with that of Python's, with the least.
        for block in [65_535, 2047, 127] {
            let payload = stored(&message, block);
            assert!(payload.len() > LIMIT);
            let hundred = fragments(BINARY, payload.chunks(payload.len() / 100));
            for bytes in [compressed_frame(true, BINARY, &payload), hundred.concat()] {
                client.wire.send(&bytes);
                let received = client.read();
                assert!(received.payload == message, "{block}");
            }
        }
        // And of one with a window too small to look back to where the block began, which therefore
        // cannot store it.
        let mut small = Compress::new_with_window_bits(Compression::best(), false, 9);
        let payload = flushed(&mut small, &message);
        client.wire.send(&compressed_frame(true, BINARY, &payload));
        assert!(client.read().payload == message);
        client.goodbye();
        server.finish();
    }
}

/// Blocks that say nothing have no end: what they take is bounded as well.
#[test]
fn a_message_that_is_far_larger_on_the_wire_is_answered_1009() {
    for base in modes() {
        let (builder, records) = recorded_echo(base);
        let server = start(builder);
        let empty = [0, 0, 0, 0xFF, 0xFF].repeat(LIMIT / 4);
        let header = &compressed_frame(true, BINARY, &empty)[..14];
        // By the header alone, and when a fragment makes it too much.
        let halves = fragments(BINARY, empty.chunks(empty.len() / 2 + 5));
        for bytes in [header, &halves.concat()] {
            let mut client = Client::connect(&server, BROWSER);
            client.wire.send(bytes);
            let reason = client.expect_close(1009);
            expect_violation(&records.next(), 1009, &reason);
        }
        server.finish();
    }
}

// A client may flush behind each fragment, which adds ten bytes to each: a message within both limits was
// refused.
#[test]
fn a_message_within_its_limits_that_is_flushed_at_each_fragment_is_accepted() {
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        let message = noise(7, LIMIT);
        let mut pieces = Vec::new();
        for piece in message.chunks(64) {
            pieces.push([&flushed(&mut client.deflater, piece)[..], &TAIL].concat());
        }
        assert_eq!(pieces.len(), 1024);
        let last = pieces[1023].len();
        pieces[1023].truncate(last - TAIL.len());
        for frame in fragments(BINARY, pieces.iter().map(|piece| &piece[..])) {
            client.wire.say(&frame);
        }
        assert!(client.read().payload == message);
        client.goodbye();
        server.finish();
    }
}

/// A session whose neighbours on the only worker are asked, while it works, how far it has come.
struct Turns {
    server: TestServer,
    sessions: Heard<Session>,
    blocked: Heard<()>,
    go: mpsc::Sender<()>,
    /// Messages that the neighbour found the first session to have received and sent.
    found: Heard<(u64, u64)>,
}

/// The first session is the busy one. The second blocks the worker with its first message until `go`; the
/// third looks.
fn turns() -> Turns {
    let (opens, sessions) = heard();
    let (said, found) = heard();
    let (blocks, blocked) = heard();
    let (go, wait) = mpsc::channel();
    let (wait, busy) = (Mutex::new(wait), Mutex::new(None::<Session>));
    let server = start(
        Server::builder()
            .workers(1)
            .deflate(Deflate::shared())
            .configure(|config| config.limits.outbox_bytes = 16 << 20)
            .on_open(opened(&opens))
            .on_message(async move |session: &Session, message: Message| {
                match message.as_bytes() {
                    b"I am busy" => *busy.lock().unwrap() = Some(session.clone()),
                    b"block" => {
                        blocks.send(()).unwrap();
                        wait.lock().unwrap().recv().unwrap();
                    }
                    b"look" => {
                        let busy = busy.lock().unwrap();
                        let traffic = busy.as_ref().unwrap().traffic();
                        said.send((traffic.messages_in, traffic.messages_out)).unwrap();
                    }
                    _ => {}
                }
            }),
    );
    Turns { server, sessions, blocked, go, found }
}

// A turn was bounded in frames and system calls, and a frame that is compressed costs a hundred times what
// another one does: the neighbours waited for 60 ms in the mean.
#[test]
fn a_session_that_compresses_much_lets_its_neighbours_have_their_turn() {
    let it = turns();
    let mut busy = Client::over(Pipe::raw(&it.server), BROWSER);
    let session = it.sessions.next();
    busy.wire.send_frame(TEXT, b"I am busy");
    let (mut blocks, mut looks) = (Pipe::connect(&it.server), Pipe::connect(&it.server));
    for pipe in [&mut blocks, &mut looks] {
        pipe.send_frame(PING, b"");
        pipe.read_frame();
    }
    blocks.send_frame(TEXT, b"block");
    it.blocked.next();
    // All of it fits into the pipe, compressed.
    for _ in 0..50 {
        session.try_send(vec![0; 32 * 1024]).unwrap();
    }
    looks.send_frame(TEXT, b"look");
    it.go.send(()).unwrap();
    let (_, sent) = it.found.next();
    assert!(sent <= 4, "{sent} messages before anybody else");
    for _ in 0..50 {
        busy.read().expect(BINARY, &[0; 32 * 1024]);
    }
    it.server.finish();
}

// The same with what arrives: a few bytes become many.
#[test]
fn a_session_that_decompresses_much_lets_its_neighbours_have_their_turn() {
    let it = turns();
    let mut busy = Client::over(Pipe::raw(&it.server), BROWSER);
    it.sessions.next();
    busy.wire.send_frame(TEXT, b"I am busy");
    let (mut blocks, mut looks) = (Pipe::connect(&it.server), Pipe::connect(&it.server));
    for pipe in [&mut blocks, &mut looks] {
        pipe.send_frame(PING, b"");
        pipe.read_frame();
    }
    blocks.send_frame(TEXT, b"block");
    it.blocked.next();
    let bomb = busy.compress(&vec![0; LIMIT]);
    let bombs = compressed_frame(true, BINARY, &bomb).repeat(50);
    busy.wire.send(&bombs);
    looks.send_frame(TEXT, b"look");
    it.go.send(()).unwrap();
    let (received, _) = it.found.next();
    assert!(received <= 3, "{received} messages before anybody else");
    busy.wire.send_frame(PING, b"");
    assert_eq!(busy.wire.read_frame().opcode, PONG);
    it.server.finish();
}

// --- What cannot be read --------------------------------------------------------------------------

#[test]
fn what_is_no_deflate_stream_is_answered_1007() {
    let mut bent = alone(&json(2000));
    bent.truncate(40);
    bent.extend([0xFF; 40]);
    let behind = {
        let mut deflater = Compress::new(Compression::best(), false);
        flushed(&mut deflater, &digits(1, 4000));
        flushed(&mut deflater, &digits(1, 300))
    };
    let cases = [
        ("a block of the reserved kind", vec![0x07]),
        ("the same in a final block", vec![0x06 | 1, 0, 0]),
        ("a stored block whose length is not confirmed", vec![0x00, 5, 0, 5, 0, 1, 2, 3, 4, 5]),
        ("a distance behind the beginning", behind),
        ("too many codes", vec![0xFD, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("a stream that turns into something else", bent),
        ("nonsense behind the final block", [&[0x03, 0x00][..], &[0xFF; 9]].concat()),
        ("text", b"Hello, this is no deflate stream".to_vec()),
    ];
    for base in modes() {
        let (builder, records) = recorded_echo(base);
        let server = start(builder.workers(1));
        let mut neighbour = Client::connect(&server, BROWSER);
        for (what, payload) in &cases {
            for opcode in [TEXT, BINARY] {
                let mut client = Client::connect(&server, BROWSER);
                let text = json(500);
                let good = client.compress(&text);
                let good = compressed_frame(true, TEXT, &good);
                let bad = compressed_frame(true, opcode, payload);
                client.wire.send(&[good, bad, frame(true, TEXT, b"and more")].concat());
                client.read().expect(TEXT, &text);
                let (code, reason) = client.wire.read_close();
                assert_eq!(code, 1007, "{what}: {reason}");
                drop(client);
                expect_violation(&records.next(), 1007, &reason);
                // The decompressor that both have used is in order.
                neighbour.echo(TEXT, &json(3000));
            }
        }
        neighbour.goodbye();
        server.finish();
    }
}

#[test]
fn text_must_be_utf_8_when_it_has_been_decompressed() {
    for base in modes() {
        let (builder, records) = recorded_echo(base);
        let server = start(builder);
        let long = [&json(5000)[..], b"\xFF", &json(5000)].concat();
        for bad in [
            b"\xFF".as_slice(),
            b"a\xC0\xAF",
            b"a\xED\xA0\x80",
            b"\xF4\x90\x80\x80",
            b"a\xE2\x82",
            &long,
        ] {
            let mut client = Client::connect(&server, BROWSER);
            // Any bytes may be binary.
            client.send(BINARY, bad);
            assert_eq!(client.read().payload, bad);
            client.send(TEXT, bad);
            let reason = client.expect_close(1007);
            expect_violation(&records.next(), 1007, &reason);
        }
        // A character may lie in two fragments, of which neither is text by itself.
        let mut client = Client::connect(&server, BROWSER);
        let text = "grüße, 世界 👋".repeat(20);
        let payload = client.compress(text.as_bytes());
        client.wire.send(&fragments(TEXT, payload.chunks(1)).concat());
        client.read().expect(TEXT, text.as_bytes());
        client.goodbye();
        server.finish();
    }
}

// --- Many at once ---------------------------------------------------------------------------------

/// In shared mode they use one compressor and one decompressor by turns, also while each is in the
/// middle of a message.
#[test]
fn sessions_of_one_worker_do_not_disturb_each_other() {
    for base in modes() {
        let server = start(echo(base).workers(1));
        // Different windows, so that not all have the same compressor.
        let mut clients: Vec<_> = (0..50)
            .map(|n| {
                let bits = 9 + n % 7;
                let offer = format!("permessage-deflate; server_max_window_bits={bits}");
                Client::connect(&server, &offer)
            })
            .collect();
        for round in 0..5 {
            let messages: Vec<_> =
                (0..50).map(|n| digits(round * 50 + n, 600 + 20 * n as usize)).collect();
            let frames: Vec<_> = clients
                .iter_mut()
                .zip(&messages)
                .map(|(client, message)| {
                    let payload = client.compress(message);
                    fragments(TEXT, payload.chunks(payload.len() / 4 + 1))
                })
                .collect();
            // Each fragment of all of them, then the next.
            for piece in 0..4 {
                for (client, frames) in clients.iter_mut().zip(&frames) {
                    client.wire.send(&frames[piece]);
                }
            }
            for (client, message) in clients.iter_mut().zip(&messages) {
                client.read().expect(TEXT, message);
            }
        }
        clients.into_iter().for_each(Client::goodbye);
        server.finish();
    }
}

#[test]
fn messages_from_other_threads_arrive_in_order_and_compressed() {
    const THREADS: u64 = 4;
    const EACH: u64 = 100;
    for base in modes() {
        let (sender, sessions) = heard();
        let server = start(Server::builder().deflate(base).on_open(opened(&sender)));
        let mut client = Client::connect(&server, BROWSER);
        let session = sessions.next();
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let session = session.clone();
                thread::spawn(move || {
                    for n in 0..EACH {
                        let mut text = format!("{thread} {n} ").into_bytes();
                        text.extend(digits(thread * EACH + n, 300));
                        // Some go around the compressor, and overtake nothing.
                        let message = Message::from(String::from_utf8(text).unwrap());
                        if n % 5 == 0 {
                            within(session.send(message.uncompressed())).unwrap();
                        } else {
                            within(session.send(message)).unwrap();
                        }
                    }
                })
            })
            .collect();
        let mut next = [0; THREADS as usize];
        for _ in 0..THREADS * EACH {
            let received = client.read();
            let text = String::from_utf8(received.payload).unwrap();
            let mut words = text.split(' ');
            let mut number = || words.next().unwrap().parse::<u64>().unwrap();
            let (thread, n) = (number(), number());
            assert_eq!(n, next[thread as usize], "the next one of thread {thread}");
            next[thread as usize] += 1;
            assert_eq!(received.compressed, n % 5 != 0, "{text}");
            assert_eq!(words.next().unwrap().as_bytes(), digits(thread * EACH + n, 300));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        client.goodbye();
        server.finish();
    }
}

/// The kernel takes half a batch; what comes later must not be compressed before it, and a pong
/// that overtakes what waits must not come into the middle of a frame.
#[test]
fn a_peer_that_stalls_in_the_middle_of_a_batch_misses_nothing() {
    for base in modes() {
        let (sender, sessions) = heard();
        let server = start(Server::builder().deflate(base).on_open(opened(&sender)));
        let mut client = Client::over(Pipe::raw(&server), BROWSER);
        let session = sessions.next();
        let messages: Vec<_> = (0..60_u64).map(|n| digits(n, 3000 + 50 * n as usize)).collect();
        let text = |message: &[u8]| Message::from(String::from_utf8(message.to_vec()).unwrap());
        for (n, message) in messages.iter().enumerate() {
            if n == 50 {
                await_full_pipe(&session);
                client.wire.send_frame(PING, b"are you there");
            }
            session.try_send(text(message)).unwrap();
        }
        let total: usize = messages.iter().map(Vec::len).sum();
        assert!(total > 3 * PIPE, "compressed, it is more than the pipe holds");
        let mut messages = messages.iter();
        let mut pongs = 0;
        while messages.len() > 0 || pongs == 0 {
            let received = client.read();
            if received.opcode == PONG {
                assert_eq!(received.payload, b"are you there");
                pongs += 1;
                continue;
            }
            received.expect(TEXT, messages.next().expect("no more messages"));
        }
        assert_eq!(pongs, 1);
        client.wire.goodbye();
        server.finish();
    }
}

/// What was queued before the end is sent before the close frame, compressed like everything else.
#[test]
fn messages_queued_before_a_close_are_sent_before_it() {
    for base in modes() {
        let server = start(Server::builder().deflate(base).on_message(
            async |session: &Session, message: Message| {
                for _ in 0..5 {
                    session.send(message.clone()).await?;
                }
                session.close(coracle::CloseCode::NORMAL, "enough");
                Ok::<_, coracle::SendError>(())
            },
        ));
        let mut client = Client::connect(&server, BROWSER);
        let text = json(4000);
        client.send(TEXT, &text);
        for _ in 0..5 {
            client.read().expect(TEXT, &text);
        }
        assert_eq!(client.expect_close(1000), "enough");
        server.finish();
    }
}
