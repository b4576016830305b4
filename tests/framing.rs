//! RFC 6455 frames through a real socket: what a peer gets for good ones, bad ones and odd ones.

mod support;

use std::io::Write;
use std::time::Duration;

use async_tungstenite::client_async;
use async_tungstenite::tungstenite::{Bytes, Message as TungsteniteMessage};
use coracle::{
    Builder, Cause, CloseCode, Closed, Flow, Handler, Message, Phase, Server, Session, Side, Timer,
};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use smol::channel;
use support::*;

/// A server that sends back what it gets, and reports every end.
fn echo() -> (Builder<impl Handler>, Heard<Closed>) {
    let (closed, records) = heard();
    let builder = Server::builder()
        .on_message(async |session, message| session.send(message).await)
        .on_close(record(&closed));
    (builder, records)
}

/// The record of a session that ended by a violation, and by nothing else.
#[track_caller]
fn expect_violation(closed: &Closed, code: u16, reason: &str) {
    assert_eq!((closed.by, closed.cause), (Side::Peer, Cause::Violation), "{closed}");
    assert_eq!(closed.code.map(|code| code.as_u16()), Some(code), "{closed}");
    assert_eq!(closed.reason.as_str(), reason, "{closed}");
    assert_eq!((closed.timer, closed.phase), (None, Phase::Closing), "{closed}");
    assert_eq!(closed.undelivered.messages, 0, "{closed}");
    assert!(!closed.clean, "after a violation the peer's close frame cannot be trusted: {closed}");
}

/// A frame as it should not be: any two first bytes, then a mask and a payload.
fn odd(first: u8, second: u8, more: &[u8]) -> Vec<u8> {
    [&[first, second], more].concat()
}

/// A close frame with this code and these bytes behind it.
fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(true, CLOSE, &[&code.to_be_bytes(), reason].concat())
}

/// A header with a length of eight bytes and a mask of zeros.
fn header64(first: u8, length: u64) -> Vec<u8> {
    [&[first, 0xFF], &length.to_be_bytes()[..], &[0; 4]].concat()
}

/// What ends a session, and with which code.
fn malformed() -> Vec<(&'static str, Vec<u8>, u16)> {
    let begun = |rest: Vec<u8>| [frame(false, TEXT, b"a"), rest].concat();
    let mut all = vec![
        ("RSV1", odd(0xC1, 0x80, &[0; 4]), 1002),
        ("RSV2", odd(0xA1, 0x80, &[0; 4]), 1002),
        ("RSV3", odd(0x91, 0x80, &[0; 4]), 1002),
        ("RSV1 on a ping", odd(0xC9, 0x80, &[0; 4]), 1002),
        ("RSV1 on a close frame", odd(0xC8, 0x80, &[0; 4]), 1002),
        ("RSV1 on a continuation", begun(odd(0xC0, 0x80, &[0; 4])), 1002),
        ("RSV1 on a ping between fragments", begun(odd(0xC9, 0x80, &[0; 4])), 1002),
        ("no mask", b"\x81\x05Hello".to_vec(), 1002),
        ("no mask, empty", b"\x82\x00".to_vec(), 1002),
        ("no mask on a ping", b"\x89\x00".to_vec(), 1002),
        ("no mask on a close frame", b"\x88\x02\x03\xE8".to_vec(), 1002),
        ("top bit of the length", header64(0x82, 1 << 63), 1002),
        ("largest length", header64(0x82, u64::MAX >> 1), 1009),
        ("length wraps 32 bits", [header64(0x81, 1 << 32 | 5), b"Hello".to_vec()].concat(), 1009),
        ("125 in 16 bits", odd(0x82, 0xFE, &[&[0, 125][..], &[0; 129]].concat()), 1002),
        ("0 in 16 bits", odd(0x82, 0xFE, &[0; 6]), 1002),
        ("65535 in 64 bits", header64(0x82, 65_535), 1002),
        ("0 in 64 bits", header64(0x82, 0), 1002),
        ("one frame over the limit", frame(true, BINARY, &[7; 65_537]), 1009),
        (
            "fragments over the limit",
            [frame(false, BINARY, &[7; 60_000]), frame(true, CONTINUATION, &[7; 5537])].concat(),
            1009,
        ),
        ("ping of 126 bytes", frame(true, PING, &[b'x'; 126]), 1002),
        ("pong of 126 bytes", frame(true, PONG, &[b'x'; 126]), 1002),
        ("close frame of 126 bytes", close(1000, &[b'x'; 124]), 1002),
        ("fragmented ping", frame(false, PING, b"x"), 1002),
        ("fragmented pong", frame(false, PONG, b""), 1002),
        ("fragmented close frame", frame(false, CLOSE, &[0x03, 0xE8]), 1002),
        ("continuation of nothing", frame(true, CONTINUATION, b"x"), 1002),
        ("unfinished continuation of nothing", frame(false, CONTINUATION, b"x"), 1002),
        ("text inside text", begun(frame(true, TEXT, b"b")), 1002),
        ("binary inside text", begun(frame(false, BINARY, b"b")), 1002),
        ("1025 empty fragments", begun(frame(false, CONTINUATION, b"").repeat(1024)), 1008),
        ("1025 fragments of a byte", begun(frame(false, CONTINUATION, b"b").repeat(1024)), 1008),
        ("UTF-8: overlong", frame(true, TEXT, b"a\xC0\xAF"), 1007),
        ("UTF-8: a surrogate", frame(true, TEXT, b"a\xED\xA0\x80"), 1007),
        ("UTF-8: beyond U+10FFFF", frame(true, TEXT, b"a\xF4\x90\x80\x80"), 1007),
        (
            "UTF-8: behind a SIMD block",
            frame(true, TEXT, &[&[b'x'; 64][..], b"\xFF"].concat()),
            1007,
        ),
        ("UTF-8: unfinished", frame(true, TEXT, b"a\xE2\x82"), 1007),
        (
            "UTF-8: broken between fragments",
            [frame(false, TEXT, b"\xE2\x82"), frame(true, CONTINUATION, b"a")].concat(),
            1007,
        ),
        ("close frame of one byte", frame(true, CLOSE, &[0x03]), 1002),
        ("close reason: not UTF-8", close(1000, b"\xFF"), 1007),
        ("close reason: unfinished", close(1000, b"\xE2\x82"), 1007),
    ];
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        all.push(("reserved opcode", odd(0x80 | opcode, 0x80, &[0; 4]), 1002));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        all.push(("close code", close(code, b""), 1002));
        all.push(("close code with a reason", close(code, b"why"), 1002));
    }
    all
}

#[test]
fn every_malformed_stream_is_answered_with_its_code_and_recorded() {
    let (builder, records) = echo();
    let server = start(builder);
    for (what, bytes, code) in malformed() {
        let mut client = server.client();
        client.send(&bytes);
        let (got, reason) = client.read_close();
        assert_eq!(got, code, "{what}: {reason}");
        assert!(!reason.is_empty(), "{what}: says why");
        // Like a polite client.
        client.send(&frame(true, CLOSE, &code.to_be_bytes()));
        assert_eq!(client.read_to_end(), b"", "{what}: nothing follows");
        drop(client);
        expect_violation(&records.next(), code, &reason);
    }
    server.finish();
}

/// A server parsed all it had read before it delivered anything, so a malformed frame threw away
/// the good messages that had come in the same segment.
#[test]
fn messages_before_a_malformed_frame_are_answered_first() {
    let (builder, records) = echo();
    let server = start(builder);
    for (what, bytes, code) in malformed() {
        let mut client = server.client();
        let good = [frame(true, TEXT, b"one"), frame(true, BINARY, &[2; 5000])].concat();
        client.send(&[&good, &bytes[..], b"and more"].concat());
        assert_eq!(client.read_frame().payload, b"one", "{what}");
        assert_eq!(client.read_frame().payload, [2; 5000], "{what}");
        let reason = client.expect_close(code);
        drop(client);
        expect_violation(&records.next(), code, &reason);
    }
    server.finish();
}

/// The same in memory, and every byte of the answer.
#[test]
fn messages_before_a_malformed_frame_are_answered_first_in_memory() {
    let (builder, records) = echo();
    let server = start(builder);
    let mut stream = server.handle.connect().unwrap();
    let received = within(async {
        let bytes = [
            handshake("/").as_bytes(),
            &frame(true, TEXT, b"one"),
            &frame(true, TEXT, b"two"),
            b"\x81\x05Hello",
        ]
        .concat();
        stream.write_all(&bytes).await.unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        received
    });
    let head = received.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    let reason = "client frame is not masked";
    let expected = [
        b"\x81\x03one\x81\x03two\x88",
        &[2 + reason.len() as u8][..],
        &1002_u16.to_be_bytes(),
        reason.as_bytes(),
    ];
    assert_eq!(received[head..], expected.concat());
    drop(stream);
    expect_violation(&records.next(), 1002, reason);
    server.finish();
}

/// What a handler has not yet been given when the malformed frame arrives, it is still given.
#[test]
fn messages_before_a_malformed_frame_reach_a_slow_handler() {
    let (closed, records) = heard();
    let (seen, messages) = heard();
    let (gate, opened) = channel::unbounded();
    let server = start(
        Server::builder()
            .on_message(async move |session: &Session, message: Message| {
                let text = message.as_text().unwrap_or_default().to_owned();
                seen.send(text).unwrap();
                opened.recv().await.unwrap();
                session.send(message).await
            })
            .on_close(record(&closed)),
    );
    let mut client = server.client();
    let bytes = [frame(true, TEXT, b"one"), frame(true, TEXT, b"two"), b"\x81\x05Hello".to_vec()];
    client.send(&bytes.concat());
    assert_eq!(messages.next(), "one");
    gate.try_send(()).unwrap();
    assert_eq!(messages.next(), "two");
    assert_eq!(client.read_frame().payload, b"one");
    // The server need not wait for the handler before it fails the connection (RFC 6455 section
    // 7.1.7), so there is no second echo.
    let reason = client.expect_close(1002);
    gate.try_send(()).unwrap();
    drop(client);
    expect_violation(&records.next(), 1002, &reason);
    assert_eq!(messages.try_next(), None, "a malformed frame is no message");
    assert_eq!(server.finish().panics, 0);
}

/// A server looked at a frame when all of it was there, so a peer that had already broken the rules
/// could keep it waiting for the rest.
#[test]
fn a_violation_is_answered_before_the_rest_of_the_frame() {
    let (builder, records) = echo();
    let server = start(builder);
    let mask = [0; 4];
    let cases = [
        ("reserved bit: one byte", b"\xC1".to_vec(), 1002),
        ("reserved opcode: one byte", b"\x83".to_vec(), 1002),
        ("fragmented ping: one byte", b"\x09".to_vec(), 1002),
        ("no mask: two bytes", b"\x81\x7F".to_vec(), 1002),
        ("long ping: two bytes", b"\x89\xFE".to_vec(), 1002),
        (
            "size: the header",
            odd(0x82, 0xFF, &[&65_537_u64.to_be_bytes()[..], &mask].concat()),
            1009,
        ),
        ("continuation of nothing: the header", odd(0x00, 0xFD, &mask), 1002),
        (
            "bad byte: 5 bytes of 1000",
            odd(0x81, 0xFE, &[&1000_u16.to_be_bytes()[..], &mask, b"text\xFF"].concat()),
            1007,
        ),
        (
            "surrogate: 2 bytes of 60000 in a fragment",
            odd(0x01, 0xFE, &[&60_000_u16.to_be_bytes()[..], &mask, b"\xED\xA0"].concat()),
            1007,
        ),
    ];
    for (what, bytes, code) in cases {
        let mut client = server.client();
        client.send(&bytes);
        let (got, reason) = client.read_close();
        assert_eq!(got, code, "{what}: {reason}");
        drop(client);
        expect_violation(&records.next(), code, &reason);
    }
    server.finish();
}

/// Waits until the only session has read this many bytes, which its codec then has seen too, or
/// will see before it sees any other.
fn read_by(server: &TestServer, bytes: u64) {
    let sessions = server.handle.sessions();
    eventually("the session is open", || sessions.count() == 1);
    let session = sessions.all().pop().expect("the session goes on");
    eventually("all bytes are read", || session.traffic().bytes_in >= bytes);
}

/// A server parsed headers from what one read had brought.
#[test]
fn frames_may_come_byte_by_byte() {
    let (builder, records) = echo();
    let server = start(builder);
    let mut client = server.client();
    let stream = [
        frame(true, TEXT, "κόσμε".as_bytes()),
        frame(true, BINARY, &[7; 126]),
        frame(false, TEXT, b"\xF0\x9D"),
        frame(true, PING, b"between"),
        frame(true, CONTINUATION, b"\x84\x9E"),
        frame(true, CLOSE, b"\x0F\xA0bye"),
    ];
    // One read for each byte: the next one is sent when the last one has been read.
    for (sent, byte) in stream[..5].concat().into_iter().enumerate() {
        client.send(&[byte]);
        read_by(&server, sent as u64 + 1);
    }
    let expected = [
        (TEXT, "κόσμε".as_bytes()),
        (BINARY, &[7; 126]),
        (PONG, b"between"),
        (TEXT, "𝄞".as_bytes()),
    ];
    for (opcode, payload) in expected {
        let frame = client.read_frame();
        assert_eq!((frame.fin, frame.opcode, &frame.payload[..]), (true, opcode, payload));
    }
    stream[5].iter().for_each(|byte| client.send(&[*byte]));
    assert_eq!(client.read_close(), (4000, String::new()));
    assert_eq!(client.read_to_end(), b"");
    let closed = records.next();
    assert_eq!((closed.cause, closed.reason.as_str()), (Cause::PeerClosed, "bye"), "{closed}");
    server.finish();
}

#[test]
fn frames_may_come_byte_by_byte_in_memory() {
    let (builder, records) = echo();
    let server = start(builder);
    let mut stream = server.handle.connect().unwrap();
    within(async {
        let bytes = [
            handshake("/").as_bytes(),
            &frame(true, TEXT, "κόσμε".as_bytes()),
            &frame(true, BINARY, &[7; 126]),
        ]
        .concat();
        for byte in bytes {
            stream.write_all(&[byte]).await.unwrap();
            // Lets the server's thread see it by itself now and then.
            std::thread::yield_now();
        }
        let mut byte = [0];
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).await.unwrap();
            head.push(byte[0]);
        }
        let expected = [b"\x81\x0A", "κόσμε".as_bytes(), b"\x82\x7E\x00\x7E", &[7; 126]].concat();
        let mut received = vec![0; expected.len()];
        stream.read_exact(&mut received).await.unwrap();
        assert_eq!(received, expected);
        stream.write_all(&frame(true, CLOSE, b"")).await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"\x88\x00");
    });
    drop(stream);
    let closed = records.next();
    assert_eq!((closed.cause, closed.code, closed.clean), (Cause::PeerClosed, None, true));
    server.finish();
}

#[test]
fn control_frames_between_fragments_are_answered_at_once() {
    let (builder, _records) = echo();
    let server = start(builder);
    let mut client = server.client();
    client.send_frame_part(TEXT, b"He");
    client.send_frame(PING, b"now");
    let pong = client.read_frame();
    assert_eq!((pong.opcode, &pong.payload[..]), (PONG, &b"now"[..]));
    client.send_frame(PONG, b"nobody asked");
    client.send_frame_part(CONTINUATION, b"l");
    client.send_frame(PING, &[b'x'; 125]);
    assert_eq!(client.read_frame().payload, [b'x'; 125]);
    client.send_frame(CONTINUATION, b"lo");
    let frame = client.read_frame();
    assert_eq!((frame.fin, frame.opcode, &frame.payload[..]), (true, TEXT, &b"Hello"[..]));
    client.goodbye();
    server.finish();
}

trait Fragments {
    fn send_frame_part(&mut self, opcode: u8, payload: &[u8]);
}

impl Fragments for Raw {
    fn send_frame_part(&mut self, opcode: u8, payload: &[u8]) {
        self.send(&frame(false, opcode, payload));
    }
}

#[test]
fn many_pings_at_once_are_answered_and_messages_between_keep_their_order() {
    let (builder, _records) = echo();
    let server = start(builder);
    let mut client = server.client();
    let mut bytes = Vec::new();
    for i in 0..16_u8 {
        bytes.extend(frame(true, PING, &[i]));
        if i % 4 == 0 {
            bytes.extend(frame(true, TEXT, format!("message {i}").as_bytes()));
        }
    }
    client.send(&bytes);
    // The latest ping must be answered; the earlier ones may be (RFC 6455 section 5.5.3).
    let (mut messages, mut latest) = (Vec::new(), None);
    while messages.len() < 4 || latest != Some(15) {
        let frame = client.read_frame();
        match frame.opcode {
            TEXT => messages.push(String::from_utf8(frame.payload).unwrap()),
            PONG => {
                let [ping] = frame.payload[..] else { panic!("{frame:?}") };
                assert!(latest < Some(ping), "answered in order, and once");
                latest = Some(ping);
            }
            _ => panic!("{frame:?}"),
        }
    }
    assert_eq!(messages, ["message 0", "message 4", "message 8", "message 12"]);
    client.goodbye();
    server.finish();
}

#[test]
fn a_ping_before_a_close_frame_is_answered_and_one_behind_it_is_not() {
    let (builder, _records) = echo();
    let server = start(builder);
    let mut client = server.client();
    client.send(&[frame(true, PING, b"yes"), close(1000, b""), frame(true, PING, b"no")].concat());
    let pong = client.read_frame();
    assert_eq!((pong.opcode, &pong.payload[..]), (PONG, &b"yes"[..]));
    assert_eq!(client.read_close().0, 1000);
    assert_eq!(client.read_to_end(), b"");
    server.finish();
}

#[test]
fn close_codes_are_echoed_and_recorded_with_their_reasons() {
    let (builder, records) = echo();
    let server = start(builder);
    for code in (1000..=1003).chain(1007..=1014).chain([3000, 3999, 4000, 4999]) {
        for reason in ["", "grüße", &"x".repeat(123)] {
            let mut client = server.client();
            client.send(&close(code, reason.as_bytes()));
            assert_eq!(client.read_close(), (code, String::new()));
            assert_eq!(client.read_to_end(), b"");
            let closed = records.next();
            assert_eq!((closed.by, closed.cause), (Side::Peer, Cause::PeerClosed), "{closed}");
            assert_eq!(closed.code.map(|code| code.as_u16()), Some(code), "{closed}");
            assert_eq!(closed.reason.as_str(), reason, "{closed}");
            assert_eq!((closed.clean, closed.timer), (true, None), "{closed}");
        }
    }
    server.finish();
}

#[test]
fn a_close_frame_without_a_code_is_answered_without_one() {
    let (builder, records) = echo();
    let server = start(builder);
    let mut client = server.client();
    client.send_frame(CLOSE, b"");
    assert_eq!(client.read_frame(), Frame { fin: true, opcode: CLOSE, payload: vec![] });
    assert_eq!(client.read_to_end(), b"");
    let closed = records.next();
    assert_eq!((closed.by, closed.cause), (Side::Peer, Cause::PeerClosed), "{closed}");
    assert_eq!((closed.code, closed.reason.as_str(), closed.clean), (None, "", true), "{closed}");
    server.finish();
}

#[test]
fn what_follows_a_close_frame_is_ignored() {
    let (closed, records) = heard();
    let (seen, messages) = heard();
    let server = start(
        Server::builder()
            .on_message(async move |_: &Session, message: Message| seen.send(message).unwrap())
            .on_close(record(&closed)),
    );
    for after in [
        frame(true, TEXT, b"late"),
        frame(true, PING, b"late"),
        close(1002, b"another"),
        frame(true, CLOSE, b"\x03"),
        b"\x81\x05Hello".to_vec(),
        b"\xFF\x00 no frame at all".to_vec(),
        vec![0x82; 100_000],
    ] {
        let mut client = server.client();
        client.send(&[frame(true, TEXT, b"in time"), close(1000, b"bye")].concat());
        // The server may have answered and gone.
        let _ = client.stream.write_all(&after);
        assert_eq!(client.read_close(), (1000, String::new()));
        assert_eq!(client.read_to_end(), b"");
        // A server with unread input may wait for this before it closes its end.
        drop(client);
        let closed = records.next();
        assert_eq!((closed.cause, closed.reason.as_str()), (Cause::PeerClosed, "bye"), "{closed}");
        assert!(closed.clean, "{closed}");
        assert_eq!(messages.next().as_text(), Some("in time"));
        assert_eq!(messages.try_next(), None, "nothing behind the close frame");
    }
    server.finish();
}

/// The first case of the Autobahn suite's section 7.1: a client sends a message and at once a
/// close frame, and waits for the answer to the message before the answer to the close frame. A
/// server dropped what its handler had queued when it saw the close frame, and lost the answer
/// whenever both came in one read. RFC 6455 section 5.5.1 lets an endpoint delay its close frame
/// for what is being sent, and a client that has sent one still reads until it gets one.
#[test]
fn a_message_is_answered_before_the_close_frame_behind_it() {
    let (builder, records) = echo();
    let server = start(builder);
    let mut client = server.client();
    let bytes =
        [frame(true, TEXT, b"one"), frame(true, BINARY, &[2; 5000]), close(1000, b"")].concat();
    client.send(&bytes);
    assert_eq!(client.read_frame().payload, b"one");
    assert_eq!(client.read_frame().payload, [2; 5000]);
    assert_eq!(client.read_close(), (1000, String::new()));
    assert_eq!(client.read_to_end(), b"");
    let closed = records.next();
    assert_eq!((closed.undelivered.messages, closed.clean), (0, true), "{closed}");
    server.finish();
}

#[test]
fn a_text_of_one_mebibyte_comes_back_when_the_limit_allows_it() {
    const MIB: usize = 1 << 20;
    let (builder, records) = echo();
    let server = start(builder.configure(|config| config.limits.message_bytes = MIB));
    let mut client = server.client();
    let text = format!("{}a", "€".repeat(MIB / 3));
    assert_eq!(text.len(), MIB);
    client.echo(&text);
    // In fragments that cut its characters.
    let mut fragments = text.as_bytes().chunks(5000).peekable();
    client.send_frame_part(TEXT, b"");
    while let Some(fragment) = fragments.next() {
        client.send(&frame(fragments.peek().is_none(), CONTINUATION, fragment));
    }
    let frame = client.read_frame();
    assert_eq!((frame.fin, frame.opcode), (true, TEXT));
    assert!(frame.payload == text.as_bytes());
    // One byte more is one too many, by the header alone.
    client.send(&header64(0x81, MIB as u64 + 1));
    let reason = client.expect_close(1009);
    drop(client);
    expect_violation(&records.next(), 1009, &reason);
    server.finish();
}

#[test]
fn a_message_of_as_many_fragments_as_allowed_comes_back() {
    let (builder, records) = echo();
    let server = start(builder);
    let mut client = server.client();
    for payload in [&b""[..], b"x"] {
        let bytes = [
            frame(false, BINARY, payload),
            frame(false, CONTINUATION, payload).repeat(1022),
            frame(true, CONTINUATION, payload),
        ];
        client.send(&bytes.concat());
        assert_eq!(client.read_frame().payload, payload.repeat(1024));
    }
    client.goodbye();
    assert_eq!(records.next().cause, Cause::PeerClosed);
    server.finish();
}

/// A peer sent empty fragments for ever; no limit on bytes is ever reached by that.
#[test]
fn a_flood_of_fragments_ends_the_session_while_it_still_comes() {
    let (builder, records) = echo();
    let server = start(builder);
    for payload in [&b""[..], b"x"] {
        let mut client = server.client();
        client.send_frame_part(TEXT, payload);
        client.send(&frame(false, CONTINUATION, payload).repeat(100_000));
        let reason = client.expect_close(1008);
        drop(client);
        expect_violation(&records.next(), 1008, &reason);
    }
    server.finish();
}

/// Bytes of private, writable memory that this process has asked for, used or not.
fn reserved_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// A server reserved what a header announced: peers that sent fourteen bytes each cost it 16 MiB
/// each.
#[test]
fn claims_of_16_mib_reserve_nothing() {
    const CLAIM: u64 = 16 << 20;
    const PEERS: usize = 128;
    let (builder, records) = echo();
    let server = start(builder.configure(|config| config.limits.message_bytes = 32 << 20));
    let mut clients: Vec<_> = (0..PEERS).map(|_| server.client()).collect();
    eventually("all are open", || server.handle.sessions().count() == PEERS);
    let before = reserved_bytes();
    for client in &mut clients {
        client.send(&header64(0x82, CLAIM));
    }
    let sessions = server.handle.sessions().all();
    eventually("the headers are read", || sessions.iter().all(|s| s.traffic().bytes_in == 14));
    // When the next byte has been read, the header has been understood.
    for client in &mut clients {
        client.send(b"x");
    }
    eventually("the bytes are read", || sessions.iter().all(|s| s.traffic().bytes_in == 15));
    let grown = reserved_bytes().saturating_sub(before);
    // 2 GiB are claimed. The other tests of this process need some memory too.
    assert!(grown < CLAIM as usize * PEERS / 8, "{grown} bytes");
    // Had a claim not been understood, the session would not wait for the rest.
    assert_eq!(server.handle.sessions().count(), PEERS);
    drop(clients);
    for _ in 0..PEERS {
        assert_eq!(records.next().cause, Cause::PeerVanished);
    }
    server.finish();
}

/// A server kept a pong for each ping that came behind its close frame, and could not send any of them.
#[test]
fn pings_behind_our_close_frame_are_not_kept() {
    const PINGS: usize = 4000;
    let (builder, records) = echo();
    let server = start(builder.configure(|config| config.timeouts.close = Duration::from_secs(60)));
    let mut client = server.client();
    client.echo("open");
    let session = server.handle.sessions().all().remove(0);
    session.close(CloseCode::NORMAL, "");
    assert_eq!(client.read_close().0, 1000);
    let pings = frame(true, PING, &[7; 125]).repeat(PINGS);
    let before = reserved_bytes();
    for _ in 0..200 {
        client.send(&pings);
    }
    let sent = 200 * pings.len() as u64;
    eventually("all are read", || session.traffic().bytes_in >= sent);
    let grown = reserved_bytes().saturating_sub(before);
    // It would be 100 MiB. The other tests of this process need some memory too.
    assert!(grown < 64 << 20, "{grown} bytes");
    client.send_frame(CLOSE, &1000_u16.to_be_bytes());
    assert_eq!(client.read_to_end(), b"");
    assert!(records.next().clean);
    server.finish();
}

/// More than a loopback connection holds whose other end reads nothing.
const STUFFING: usize = 24 << 20;

/// A session whose server cannot write: it has sent more than fits, and the client reads nothing.
fn stuffed() -> (TestServer, Heard<Closed>, Raw) {
    let (closed, records) = heard();
    let server = start(
        Server::builder()
            .configure(|config| {
                config.limits.outbox_bytes = 2 * STUFFING;
                // No timer is the subject here.
                config.timeouts.close = 2 * PATIENCE;
                config.timeouts.write_stall = 2 * PATIENCE;
            })
            .on_open(async |session: &Session| {
                session.try_send(vec![7; STUFFING])?;
                session.try_send("the last message")?;
                Ok::<_, coracle::SendError>(Flow::Continue)
            })
            .on_message(async |session, message| session.send(message).await)
            .on_close(record(&closed)),
    );
    let client = server.client();
    eventually("the session is open", || server.handle.sessions().count() == 1);
    (server, records, client)
}

/// What was queued before a violation arrives whole, then the close frame, and nothing else.
#[track_caller]
fn expect_queue_and_close(client: &mut Raw, code: u16) -> String {
    assert_eq!(client.read_frame().payload.len(), STUFFING);
    let frame = client.read_frame();
    assert_eq!((frame.opcode, &frame.payload[..]), (TEXT, &b"the last message"[..]));
    client.expect_close(code)
}

/// A session broke the protocol while its server could not write, so that the close frame had to
/// wait. What the peer went on to send was parsed all the same, by a codec that had lost its place:
/// each further byte of a header that had been refused was put behind it, until there was no room
/// left for one and the server panicked.
#[test]
fn bytes_after_a_malformed_header_are_not_looked_at() {
    let (server, records, mut client) = stuffed();
    // A header that comes in two pieces, and is refused at its second.
    for (sent, byte) in b"\x81\x05".iter().chain(&[b'x'; 40]).enumerate() {
        client.send(&[*byte]);
        read_by(&server, sent as u64 + 1);
    }
    let reason = expect_queue_and_close(&mut client, 1002);
    drop(client);
    expect_violation(&records.next(), 1002, &reason);
    assert_eq!(server.finish().panics, 0);
}

/// The same, with frames behind the violation: they must not be answered or believed.
#[test]
fn frames_after_a_malformed_frame_are_not_looked_at() {
    for after in [frame(true, PING, b"?"), close(1000, b"fine"), frame(true, TEXT, b"\xFF")] {
        let (server, records, mut client) = stuffed();
        client.send(b"\x81\x05");
        read_by(&server, 2);
        client.send(&after);
        read_by(&server, 2 + after.len() as u64);
        let reason = expect_queue_and_close(&mut client, 1002);
        drop(client);
        expect_violation(&records.next(), 1002, &reason);
        server.finish();
    }
}

/// A server threw input away after a violation for as long as there was some: a peer that never
/// stopped sending was never got rid of.
#[test]
fn a_peer_that_goes_on_after_a_violation_is_cut_at_the_close_deadline() {
    let (builder, records) = echo();
    let server = start(builder.configure(|config| {
        config.timeouts.close = Duration::from_millis(300);
    }));
    let mut client = server.client();
    client.send(b"\x81\x05");
    let garbage = [0x81; 16 * 1024];
    // Until the server has closed its end.
    while client.stream.write_all(&garbage).is_ok() {}
    let closed = records.next();
    assert_eq!((closed.by, closed.cause), (Side::Peer, Cause::Violation), "{closed}");
    assert_eq!(closed.code.map(|code| code.as_u16()), Some(1002), "{closed}");
    assert_eq!((closed.timer, closed.clean), (Some(Timer::Close), false), "{closed}");
    server.finish();
}

/// Lengths on both sides of every form of a header, and a fragmented message, from a client that
/// is not ours; it checks our frames as strictly as we check its.
async fn converse<S>(stream: S)
where
    S: futures_lite::AsyncRead + futures_lite::AsyncWrite + Unpin,
{
    let (mut client, _) = client_async("ws://localhost/", stream).await.unwrap();
    for len in [0, 1, 125, 126, 127, 4095, 4096, 65_535, 65_536] {
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        for message in [
            TungsteniteMessage::Binary(Bytes::from(bytes)),
            TungsteniteMessage::Text("x".repeat(len).into()),
        ] {
            client.send(message.clone()).await.unwrap();
            assert!(client.next_message().await == message, "{len} bytes");
        }
    }
    client.send(TungsteniteMessage::Ping(Bytes::from_static(b"?"))).await.unwrap();
    assert_eq!(client.next_message().await, TungsteniteMessage::Pong(Bytes::from_static(b"?")));
    client.close(None).await.unwrap();
    assert_eq!(client.next_message().await, TungsteniteMessage::Close(None));
}

trait NextMessage {
    async fn next_message(&mut self) -> TungsteniteMessage;
}

impl<S> NextMessage for async_tungstenite::WebSocketStream<S>
where
    S: futures_lite::AsyncRead + futures_lite::AsyncWrite + Unpin,
{
    async fn next_message(&mut self) -> TungsteniteMessage {
        futures_lite::StreamExt::next(self).await.expect("a message").expect("a valid one")
    }
}

#[test]
fn an_independent_client_understands_every_length() {
    let (builder, records) = echo();
    let server = start(builder);
    let addr = server.addr();
    within(async { converse(smol::net::TcpStream::connect(addr).await.unwrap()).await });
    assert!(records.next().clean);
    let stream = server.handle.connect().unwrap();
    within(converse(stream));
    assert!(records.next().clean);
    server.finish();
}
