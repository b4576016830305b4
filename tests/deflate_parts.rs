//! Messages in parts, compressed (RFC 7692).

#[path = "support/parts.rs"]
mod parts;
#[path = "support/pipe.rs"]
mod pipe;
mod support;

use coracle::config::Deflate;
use coracle::{Cause, Incoming, Kind, Server, Session};
use flate2::{Compress, Compression, FlushCompress};
use futures_lite::future;
use parts::*;
use pipe::*;
use support::*;

const RSV1: u8 = 0x40;

/// The client's compressor, with or without context takeover.
struct Deflater {
    compress: Compress,
    takeover: bool,
}

impl Deflater {
    fn new(takeover: bool) -> Self {
        Self { compress: Compress::new(Compression::new(6), false), takeover }
    }

    fn message(&mut self, payload: &[u8]) -> Vec<u8> {
        if payload.is_empty() {
            // RFC 7692 section 7.2.3.6.
            return vec![0];
        }
        let mut out = Vec::with_capacity(payload.len() + payload.len() / 1000 + 100);
        let before = self.compress.total_in();
        self.compress.compress_vec(payload, &mut out, FlushCompress::Sync).unwrap();
        assert_eq!(self.compress.total_in() - before, payload.len() as u64);
        assert!(out.ends_with(&[0, 0, 0xFF, 0xFF]));
        out.truncate(out.len() - 4);
        if !self.takeover {
            self.compress.reset();
        }
        out
    }
}

/// The bit stands in the first frame of a message only.
fn compressed(opcode: u8, payload: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = fragments(opcode, payload, size);
    bytes[0] |= RSV1;
    bytes
}

fn connect(it: &Receiving) -> (Pipe, Session) {
    let mut client = Pipe::raw(&it.server);
    let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    client.send(handshake_with("/", offer).as_bytes());
    let head = client.read_head();
    assert!(head.contains("permessage-deflate"), "{head}");
    (client, it.sessions.next())
}

fn modes() -> [(Deflate, bool); 2] {
    [(Deflate::shared(), false), (Deflate::dedicated(), true)]
}

/// Text that repeats itself.
fn prose(len: usize) -> Vec<u8> {
    (0_u32..)
        .flat_map(|n| format!("{} € ", n.wrapping_mul(2_654_435_761) % 1000).into_bytes())
        .take(len)
        .map(|byte| if byte.is_ascii() { byte } else { b'x' })
        .collect()
}

// The decompressor was asked for a whole message, or began anew with each fragment.
#[test]
fn compressed_messages_arrive_whole_however_they_are_framed() {
    for (deflate, takeover) in modes() {
        let it = taking(|config| config.deflate = Some(deflate));
        let (mut client, _) = connect(&it);
        let mut deflater = Deflater::new(takeover);
        for len in [0, 1, 1000, FRAGMENT + 1, 300_000] {
            for size in [usize::MAX, 1, 63, 64, 65, 1000] {
                let payload = prose(len);
                let wire = deflater.message(&payload);
                client.send(&compressed(TEXT, &wire, size.min(wire.len().max(1))));
                it.got.next().expect(Kind::Text, &payload);
            }
            // What cannot be made smaller, and what is not compressed at all.
            let payload = noise(len);
            let wire = deflater.message(&payload);
            client.send(&compressed(BINARY, &wire, 5000));
            it.got.next().expect(Kind::Binary, &payload);
            client.send(&fragments(BINARY, &payload, 5000));
            it.got.next().expect(Kind::Binary, &payload);
        }
        client.goodbye();
        it.records.next();
        it.finish();
    }
}

// A final block in front of the last fragment, and an end that is a frame without payload.
#[test]
fn a_compressed_message_may_end_with_an_empty_frame() {
    for (deflate, _) in modes() {
        let it = taking(|config| config.deflate = Some(deflate));
        let (mut client, _) = connect(&it);
        // RFC 7692 section 7.2.3: one block, a final block, two blocks, and none.
        for wire in [
            &b"\xF2\x48\xCD\xC9\xC9\x07\x00"[..],
            b"\xF3\x48\xCD\xC9\xC9\x07\x00",
            b"\xF3\x48\xCD\xC9\xC9\x07\x00\x00",
            b"\xF2\x48\x05\x00\x00\x00\xFF\xFF\xCA\xC9\xC9\x07\x00",
        ] {
            for size in 1..=wire.len() {
                let mut stream = compressed(TEXT, wire, size);
                client.send(&stream);
                it.got.next().expect(Kind::Text, b"Hello");
                // The last frame is not the last, but one more is.
                let last = stream.len() - 6 - ((wire.len() - 1) % size + 1);
                stream[last] &= 0x7F;
                stream.extend(frame(true, CONTINUATION, b""));
                client.send(&stream);
                it.got.next().expect(Kind::Text, b"Hello");
            }
        }
        client.send(&compressed(TEXT, b"\x00", 1));
        it.got.next().expect(Kind::Text, b"");
        client.send(&compressed(TEXT, b"", 1));
        it.got.next().expect(Kind::Text, b"");
        client.goodbye();
        it.records.next();
        it.finish();
    }
}

// The window was kept with the message, and gone with it.
#[test]
fn a_message_in_parts_may_refer_to_earlier_ones_if_that_was_agreed_on() {
    let it = taking(|config| config.deflate = Some(Deflate::dedicated()));
    let (mut client, _) = connect(&it);
    let mut deflater = Deflater::new(true);
    let payload = prose(5000);
    let mut lengths = Vec::new();
    for _ in 0..3 {
        let wire = deflater.message(&payload);
        lengths.push(wire.len());
        client.send(&compressed(TEXT, &wire, 50));
        it.got.next().expect(Kind::Text, &payload);
    }
    assert!(lengths[1] < lengths[0] / 10, "it does refer to the first: {lengths:?}");
    client.goodbye();
    it.records.next();
    it.finish();
}

// What a handler had dropped was not decompressed, so the next message referred to nothing.
#[test]
fn the_rest_of_a_dropped_message_is_still_what_later_ones_refer_to() {
    let (sender, got) = heard();
    let server = start(
        Server::builder()
            .configure(|config| config.deflate = Some(Deflate::dedicated()))
            .on_stream(async move |_: &Session, mut incoming: Incoming| {
                if incoming.kind() == Kind::Text {
                    sender.send(collect(&mut incoming).await).unwrap();
                }
            }),
    );
    let mut client = Pipe::raw(&server);
    let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    client.send(handshake_with("/", offer).as_bytes());
    client.read_head();
    let mut deflater = Deflater::new(true);
    let payload = prose(5000);
    client.send(&compressed(BINARY, &deflater.message(&payload), 100));
    let wire = deflater.message(&payload);
    assert!(wire.len() < 200, "{}", wire.len());
    client.send(&compressed(TEXT, &wire, 100));
    got.next().expect(Kind::Text, &payload);
    client.goodbye();
    server.finish();
}

#[test]
fn the_bit_of_compression_belongs_to_the_first_frame_only() {
    for first in [CONTINUATION, PING] {
        let it = taking(|config| config.deflate = Some(Deflate::shared()));
        let (mut client, _) = connect(&it);
        client.send(&frame(false, BINARY, b"not compressed"));
        it.begun.next();
        let mut bad = frame(true, first, b"x");
        bad[0] |= RSV1;
        client.send(&bad);
        assert_eq!(client.read_close().0, 1002);
        assert!(it.got.next().end.is_err());
        drop(client);
        assert_eq!(it.records.next().cause, Cause::Violation);
        it.finish();
    }
}

#[test]
fn what_cannot_be_decompressed_or_is_no_text_is_refused_with_1007() {
    for (wire, opcode) in [
        (vec![0xFF; 20], BINARY),
        (Deflater::new(false).message(b"good \xFF"), TEXT),
        (Deflater::new(false).message(b"good \xE2\x82"), TEXT),
    ] {
        let it = taking(|config| config.deflate = Some(Deflate::shared()));
        let (mut client, _) = connect(&it);
        client.send(&compressed(opcode, &wire, 3));
        assert_eq!(client.read_close().0, 1007);
        drop(client);
        assert_eq!(it.records.next().cause, Cause::Violation);
        it.finish();
    }
}

// Eight kibibytes of wire became eight mebibytes in memory before anybody looked at the
// limit.
#[test]
fn a_bomb_is_refused_with_1009_and_the_handler_has_no_more_than_the_limit() {
    const LIMIT: usize = 1 << 20;
    for (deflate, takeover) in modes() {
        let it = taking(|config| {
            config.deflate = Some(deflate);
            config.limits.stream_bytes = LIMIT;
        });
        let (mut client, _) = connect(&it);
        let mut deflater = Deflater::new(takeover);
        let wire = deflater.message(&vec![0; LIMIT]);
        client.send(&compressed(BINARY, &wire, 100));
        it.got.next().expect(Kind::Binary, &vec![0; LIMIT]);
        let wire = deflater.message(&vec![0; 8 * LIMIT]);
        client.send(&compressed(BINARY, &wire, wire.len()));
        assert_eq!(client.read_close().0, 1009);
        let got = it.got.next();
        assert!(got.end.is_err() && got.bytes().len() <= LIMIT);
        drop(client);
        assert_eq!(it.records.next().cause, Cause::Violation);
        it.finish();
    }
}

/// What a handler finds that has taken nothing for long, and then all of it.
#[derive(Debug)]
struct Waited {
    parts: usize,
    bytes: usize,
    /// What those parts take.
    memory: usize,
    largest: usize,
    total: usize,
}

/// Sends this to a handler that takes nothing before the server has stopped reading.
fn send_to_a_busy_handler(stream: &[u8]) -> Waited {
    let (sender, waited) = heard();
    let (opens, sessions) = heard();
    let (go, wait) = smol::channel::unbounded::<()>();
    let server = start(
        Server::builder().workers(1).deflate(Deflate::shared()).on_open(opened(&opens)).on_stream(
            async move |_: &Session, mut incoming: Incoming| {
                let _ = wait.recv().await;
                let mut it = Waited { parts: 0, bytes: 0, memory: 0, largest: 0, total: 0 };
                while let Some(Some(Ok(part))) = future::poll_once(incoming.next()).await {
                    it.parts += 1;
                    it.bytes += part.len();
                    it.largest = it.largest.max(part.len());
                    it.memory += part.try_into_mut().expect("nobody shares it").capacity();
                }
                it.total = it.bytes;
                while let Some(Ok(part)) = incoming.next().await {
                    it.largest = it.largest.max(part.len());
                    it.total += part.len();
                }
                let _ = sender.send(it);
            },
        ),
    );
    let mut client = Pipe::raw(&server);
    let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    client.send(handshake_with("/", offer).as_bytes());
    client.read_head();
    let session = sessions.next();
    assert!(stream.len() <= PIPE, "all of it can be sent, whatever is read");
    client.send(stream);
    // Behind what has filled the window, so it is not answered before the handler takes parts.
    client.send_frame(PING, b"behind");
    let mut other = Pipe::connect(&server);
    // Turns of the only worker, until one passes in which the session has read nothing.
    let mut before = None;
    while before != Some(session.traffic().bytes_in) {
        before = Some(session.traffic().bytes_in);
        for _ in 0..64 {
            other.send_frame(PING, b"");
            assert_eq!(other.read_frame().opcode, PONG);
        }
    }
    go.try_send(()).unwrap();
    let waited = waited.next();
    assert_eq!(client.read_frame().payload, b"behind");
    client.goodbye();
    other.goodbye();
    server.finish();
    waited
}

// The same within the limit: what the handler does not take is not decompressed either.
#[test]
fn a_bomb_that_nobody_takes_is_not_decompressed_beyond_the_window() {
    const TOTAL: usize = 4 << 20;
    // A part is at most 64 times 1032 larger than it should be.
    const PART: usize = FRAGMENT + 64 * 1032;
    let wire = Deflater::new(false).message(&vec![0; TOTAL]);
    let waited = send_to_a_busy_handler(&compressed(BINARY, &wire, wire.len()));
    assert!((WINDOW..WINDOW + PART).contains(&waited.bytes), "{waited:?}");
    assert!(waited.largest <= PART, "{waited:?}");
    assert_eq!(waited.total, TOTAL);
}

// A part of one byte kept the kibibyte that it had been decompressed into: the window held half a
// mebibyte.
#[test]
fn small_parts_that_nobody_takes_take_no_more_memory_than_they_count() {
    let mut deflater = Deflater::new(true);
    let count = PIPE / 20;
    let mut stream = Vec::new();
    for at in 0..count {
        let wire = [&deflater.message(&[at as u8])[..], &[0, 0, 0xFF, 0xFF]].concat();
        let opcode = if at == 0 { BINARY } else { CONTINUATION };
        let mut bytes = frame(at + 1 == count, opcode, &wire);
        if at == 0 {
            bytes[0] |= RSV1;
        }
        stream.extend(bytes);
    }
    let waited = send_to_a_busy_handler(&stream);
    assert!(waited.parts > 100, "{waited:?}");
    assert!(waited.memory <= WINDOW, "{waited:?}");
    assert_eq!(waited.total, count);
}

// A fragment was taken for the beginning of a compressed message, or the messages behind it for
// more of it.
#[test]
fn fragments_are_not_compressed_and_messages_behind_them_are() {
    for (deflate, _) in modes() {
        let it = receiving(|config| config.deflate = Some(deflate));
        let (mut client, session) = connect(&it);
        let mut writer = session.message_writer(Kind::Text);
        within(writer.write(prose(5000))).unwrap();
        session.try_send(String::from_utf8(prose(5000)).unwrap()).unwrap();
        session.try_send("short").unwrap();
        within(writer.finish()).unwrap();
        let (opcode, payload, frames) = read_message(&mut client);
        assert_eq!((opcode, frames), (TEXT, 2));
        assert!(payload == prose(5000));
        // What is compressed: the bit, and fewer bytes.
        let [first, second] = client.read_array();
        assert_eq!((first, second), (0x80 | RSV1 | TEXT, 126));
        let len = u16::from_be_bytes(client.read_array());
        assert!(len < 4000, "{len}");
        for _ in 0..len {
            client.read_array::<1>();
        }
        assert_eq!(client.read_frame().payload, b"short");
        client.goodbye();
        it.records.next();
        it.finish();
    }
}
