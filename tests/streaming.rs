//! Messages in parts: received while they arrive, and sent while they come into being.

#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use coracle::config::Config;
use coracle::{
    BoxError, Buffered, Cause, CloseCode, Closed, Flow, Handler, HandlerError, Incoming,
    Interrupted, Kind, Message, Outcome, Phase, Server, Session, Side, WriteError,
};
use futures_lite::{AsyncRead, AsyncReadExt, StreamExt, future};
use pipe::*;
use support::*;

const KIB: usize = 1024;

/// What the server keeps of a message for a handler that does not take it.
const WINDOW: usize = 64 * KIB;

/// Payload of one fragment that the server sends.
const FRAGMENT: usize = 16 * KIB;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Bytes of which no two neighbours are alike, in no short period.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A message in frames of at most `size` bytes of payload.
fn fragments(opcode: u8, payload: &[u8], size: usize) -> Vec<u8> {
    let count = payload.len().div_ceil(size).max(1);
    let mut bytes = Vec::new();
    for index in 0..count {
        let piece = &payload[index * size..payload.len().min((index + 1) * size)];
        let opcode = if index == 0 { opcode } else { CONTINUATION };
        bytes.extend(frame(index + 1 == count, opcode, piece));
    }
    bytes
}

/// Polls once, without a waker that would do anything.
fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[track_caller]
fn assert_closed(closed: &Closed, by: Side, cause: Cause, phase: Phase, code: Option<u16>) {
    let said = (closed.by, closed.cause, closed.phase, closed.code.map(|code| code.as_u16()));
    assert_eq!(said, (by, cause, phase, code), "{closed}");
}

// ---- Receiving ----------------------------------------------------------------------------------

/// What a handler has got of one message.
#[derive(Debug, PartialEq, Eq)]
struct Got {
    kind: Kind,
    parts: Vec<Bytes>,
    end: Result<(), Interrupted>,
}

impl Got {
    fn bytes(&self) -> Vec<u8> {
        self.parts.concat()
    }

    /// The message is whole, and this.
    #[track_caller]
    fn expect(&self, kind: Kind, bytes: &[u8]) {
        assert_eq!((self.kind, self.end), (kind, Ok(())));
        let got = self.bytes();
        assert_eq!(got.len(), bytes.len());
        assert!(got == bytes, "{} bytes, but not the same", bytes.len());
        self.check_parts();
    }

    /// The message has broken off, behind this.
    #[track_caller]
    fn expect_interrupted(&self, bytes: &[u8]) {
        assert!(self.end.is_err(), "{self:?}");
        assert!(self.bytes() == bytes, "{self:?}");
        self.check_parts();
    }

    #[track_caller]
    fn check_parts(&self) {
        assert!(self.parts.iter().all(|part| !part.is_empty()), "no part is empty");
        if self.kind == Kind::Text {
            assert!(self.parts.iter().all(|part| std::str::from_utf8(part).is_ok()));
        }
    }
}

/// Takes all that is left.
async fn collect(incoming: &mut Incoming) -> Got {
    let mut got = Got { kind: incoming.kind(), parts: Vec::new(), end: Ok(()) };
    loop {
        match incoming.next().await {
            None => return got,
            Some(Ok(part)) => got.parts.push(part),
            Some(Err(error)) => {
                assert_eq!(incoming.next().await, Some(Err(error)), "from then on");
                got.end = Err(error);
                return got;
            }
        }
    }
}

/// A server on one worker that takes messages in parts, reports when one begins, waits for `gate`,
/// and reports what it got.
struct Receiving {
    server: TestServer,
    sessions: Heard<Session>,
    begun: Heard<Kind>,
    got: Heard<Got>,
    records: Heard<Closed>,
    failed: Heard<String>,
    /// Each message takes one permit. Without this sender there is no gate.
    gate: Option<smol::channel::Sender<()>>,
}

fn receiving(configure: impl FnOnce(&mut Config)) -> Receiving {
    let (opens, sessions) = heard();
    let (closes, records) = heard();
    let (begins, begun) = heard();
    let (gots, got) = heard();
    let (errors, failed) = heard();
    let (gate, wait) = smol::channel::unbounded::<()>();
    let server = start(
        Server::builder()
            .workers(1)
            .configure(configure)
            .on_open(opened(&opens))
            .on_stream(async move |_: &Session, mut incoming: Incoming| {
                // The test may be over, and not care.
                let _ = begins.send(incoming.kind());
                let _ = wait.recv().await;
                let _ = gots.send(collect(&mut incoming).await);
            })
            .on_error(async move |_: &Session, error: &HandlerError| {
                let _ = errors.send(error.to_string());
            })
            .on_close(record(&closes)),
    );
    Receiving { server, sessions, begun, got, records, failed, gate: Some(gate) }
}

/// The same without a gate.
fn taking(configure: impl FnOnce(&mut Config)) -> Receiving {
    Receiving { gate: None, ..receiving(configure) }
}

impl Receiving {
    fn client(&self) -> (Raw, Session) {
        (self.server.client(), self.sessions.next())
    }

    fn pipe(&self) -> (Pipe, Session) {
        (Pipe::connect(&self.server), self.sessions.next())
    }

    /// Round trips of another session of the same worker: turns in which everything was looked at.
    fn settle(&self) {
        let (mut client, _) = self.pipe();
        // A pipeful of the smallest fragments takes dozens of turns.
        for round in 0..64_u8 {
            client.send_frame(PING, &[round]);
            assert_eq!(client.read_frame().payload, [round]);
        }
        client.goodbye();
        assert_eq!(self.records.next().cause, Cause::PeerClosed);
    }

    /// Sends until the server takes no more; what is left of `bytes` has not been sent.
    fn send_until_it_waits<'a>(&self, client: &mut Pipe, mut bytes: &'a [u8]) -> &'a [u8] {
        loop {
            let sent = client.send_what_fits(bytes);
            bytes = &bytes[sent..];
            self.settle();
            if sent == 0 || bytes.is_empty() {
                return bytes;
            }
        }
    }

    #[track_caller]
    fn finish(self) {
        drop(self.gate);
        let report = self.server.finish();
        assert_eq!((report.panics, report.cut), (0, 0));
        assert!(self.failed.try_next().is_none(), "no handler has failed");
        assert!(self.records.try_next().is_none(), "each record has been heard once");
    }
}

// A message was given to the handler as the reads of the socket had cut it: twice where two reads
// overlapped, or without what one frame and the next shared.
#[test]
fn a_message_of_every_size_arrives_in_order_and_whole_however_it_is_framed() {
    // For whole messages only.
    let it = taking(|config| config.limits.message_bytes = 10);
    let (mut client, session) = it.client();
    let mut sent = 0;
    for len in [0, 1, 125, 126, FRAGMENT - 1, FRAGMENT, FRAGMENT + 1, 65_535, 65_536, 1 << 20] {
        let payload = noise(len);
        for size in [usize::MAX, 1000, FRAGMENT - 1, FRAGMENT, FRAGMENT + 1] {
            let text = vec![b'a' + (len % 26) as u8; len];
            client.send(&fragments(BINARY, &payload, size.min(len.max(1))));
            it.got.next().expect(Kind::Binary, &payload);
            client.send(&fragments(TEXT, &text, size.min(len.max(1))));
            it.got.next().expect(Kind::Text, &text);
            sent += 2;
        }
    }
    client.goodbye();
    assert!(it.records.next().clean);
    assert_eq!(session.traffic().messages_in, sent);
    it.finish();
}

// Empty fragments were taken for the end of the message, or for its beginning.
#[test]
fn empty_fragments_are_no_parts() {
    let it = taking(|_| {});
    let (mut client, _) = it.pipe();
    let empty = |fin, opcode| frame(fin, opcode, b"");
    client.send(
        &[empty(false, TEXT), empty(false, CONTINUATION), empty(true, CONTINUATION)].concat(),
    );
    it.got.next().expect(Kind::Text, b"");
    let middle = frame(false, CONTINUATION, b"x");
    client.send(
        &[empty(false, BINARY), middle, empty(false, CONTINUATION), empty(true, CONTINUATION)]
            .concat(),
    );
    it.got.next().expect(Kind::Binary, b"x");
    client.goodbye();
    it.records.next();
    it.finish();
}

#[test]
fn several_messages_of_one_read_are_several_messages() {
    let it = taking(|_| {});
    let (mut client, _) = it.pipe();
    let mut stream = Vec::new();
    for len in 0..100 {
        stream.extend(fragments(BINARY, &noise(len), 7));
    }
    client.send(&stream);
    for len in 0..100 {
        it.got.next().expect(Kind::Binary, &noise(len));
    }
    client.goodbye();
    it.records.next();
    it.finish();
}

// The bound for whole messages was asked, or none at all.
#[test]
fn a_message_may_be_as_large_as_the_limit_for_streams_and_no_larger() {
    const LIMIT: usize = 100_000;
    let it = taking(|config| {
        config.limits.message_bytes = 10;
        config.limits.stream_bytes = LIMIT;
    });
    for size in [LIMIT, 1000] {
        let (mut client, _) = it.pipe();
        client.send(&fragments(BINARY, &noise(LIMIT), size));
        it.got.next().expect(Kind::Binary, &noise(LIMIT));
        client.goodbye();
        it.records.next();
    }
    // By the header of the only frame.
    let (mut client, _) = it.pipe();
    client.send(&frame(true, BINARY, &noise(LIMIT + 1))[..14]);
    assert_eq!(client.read_close().0, 1009);
    drop(client);
    let closed = it.records.next();
    assert_closed(&closed, Side::Peer, Cause::Violation, Phase::Closing, Some(1009));
    assert!(it.got.try_next().is_none(), "nothing of it has arrived");
    // By the header of the last of many: the handler has all that came before.
    let (mut client, _) = it.pipe();
    client.send(&frame(false, BINARY, &noise(LIMIT)));
    client.send(&frame(false, CONTINUATION, b""));
    client.send(&frame(true, CONTINUATION, b"x")[..6]);
    assert_eq!(client.read_close().0, 1009);
    drop(client);
    let got = it.got.next();
    assert!(got.end.is_err());
    assert!(noise(LIMIT).starts_with(&got.bytes()));
    assert_closed(&it.records.next(), Side::Peer, Cause::Violation, Phase::Closing, Some(1009));
    it.finish();
}

// A peer that sent a message byte by byte was closed for "too many fragments", although nobody kept
// any of them.
#[test]
fn thousands_of_fragments_are_no_violation() {
    let it = taking(|config| config.limits.fragments = 3);
    let (mut client, _) = it.client();
    let payload = noise(20_000);
    client.send(&fragments(BINARY, &payload, 1));
    it.got.next().expect(Kind::Binary, &payload);
    let mut empty = frame(false, TEXT, b"");
    empty.extend(frame(false, CONTINUATION, b"").repeat(20_000));
    empty.extend(frame(true, CONTINUATION, b"end"));
    client.send(&empty);
    it.got.next().expect(Kind::Text, b"end");
    client.goodbye();
    it.records.next();
    it.finish();
}

const CHARACTERS: &str = "aé€𝄞\u{80}\u{7FF}\u{800}\u{D7FF}\u{E000}\u{FFFF}\u{10000}\u{10FFFF}z";

// A character that a frame or a read had cut in two reached the handler as two halves, neither of
// which was text.
#[test]
fn parts_of_a_text_are_text_wherever_characters_are_cut() {
    let it = taking(|_| {});
    let (mut client, _) = it.pipe();
    let text = CHARACTERS.as_bytes();
    for left in 0..=text.len() {
        for right in left..=text.len() {
            client.send(&frame(false, TEXT, &text[..left]));
            client.send(&frame(false, CONTINUATION, &text[left..right]));
            client.send(&frame(true, CONTINUATION, &text[right..]));
            it.got.next().expect(Kind::Text, text);
        }
    }
    for size in 1..6 {
        client.send(&fragments(TEXT, text, size));
        it.got.next().expect(Kind::Text, text);
    }
    // And where the server itself cuts.
    let long = "€𝄞é".repeat(20_000);
    for before in 0..9 {
        let text = format!("{}{long}", "a".repeat(before));
        for byte in frame(true, TEXT, text.as_bytes()).chunks(40_000) {
            client.send(byte);
        }
        it.got.next().expect(Kind::Text, text.as_bytes());
    }
    client.goodbye();
    it.records.next();
    it.finish();
}

/// Takes messages and reports each part by itself.
struct Parts {
    server: TestServer,
    parts: Heard<Option<Result<Bytes, Interrupted>>>,
    records: Heard<Closed>,
}

fn parts() -> Parts {
    let (sender, parts) = heard();
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .on_stream(async move |_: &Session, mut incoming: Incoming| {
                loop {
                    let part = incoming.next().await;
                    let over = !matches!(part, Some(Ok(_)));
                    sender.send(part).unwrap();
                    if over {
                        return;
                    }
                }
            })
            .on_close(record(&closes)),
    );
    Parts { server, parts, records }
}

impl Parts {
    #[track_caller]
    fn expect(&self, part: &'static [u8]) {
        assert_eq!(self.parts.next(), Some(Ok(Bytes::from_static(part))));
    }
}

// A text was validated when it was complete: a peer that had sent an impossible byte could go on for
// a gibibyte, and the handler had already written it to a file.
#[test]
fn invalid_text_is_refused_at_its_first_impossible_byte_while_it_is_received() {
    for (bad, last) in [
        (&b"\xFF"[..], false),
        (b"\xE2\x82a", false),
        (b"\xED\xA0", false),
        // A text that ends in the middle of a character.
        (b"\xF0\x9D\x84", true),
    ] {
        let it = parts();
        let mut client = Pipe::connect(&it.server);
        client.send(&frame(false, TEXT, b"good"));
        it.expect(b"good");
        let rest = [bad, if last { b"" } else { b" and so on" }].concat();
        let bytes = frame(true, CONTINUATION, &rest);
        // What follows the bad byte is not needed, and not sent.
        client.send(&bytes[..bytes.len() - rest.len() + bad.len()]);
        let (code, reason) = client.read_close();
        assert_eq!((code, &*reason), (1007, "text is not UTF-8"));
        assert!(matches!(it.parts.next(), Some(Err(_))));
        drop(client);
        let closed = it.records.next();
        assert_closed(&closed, Side::Peer, Cause::Violation, Phase::Closing, Some(1007));
        it.server.finish();
    }
}

// The other violations in the middle of a message.
#[test]
fn a_violation_between_fragments_interrupts_the_message() {
    for (bad, code) in [
        (frame(true, TEXT, b"new"), 1002),
        (frame(true, PING, &[0; 126]), 1002),
        (vec![0x83, 0x80], 1002),
    ] {
        let it = parts();
        let mut client = Pipe::connect(&it.server);
        client.send(&frame(false, BINARY, b"good"));
        it.expect(b"good");
        client.send(&bad);
        assert_eq!(client.read_close().0, code);
        assert!(matches!(it.parts.next(), Some(Err(_))));
        drop(client);
        assert_eq!(it.records.next().cause, Cause::Violation);
        it.server.finish();
    }
}

#[test]
fn a_part_is_there_before_the_next_one_is_sent() {
    let it = parts();
    let mut client = it.server.client();
    client.send(&frame(false, BINARY, b"one"));
    it.expect(b"one");
    // Also in the middle of a frame.
    let two = frame(true, CONTINUATION, b"two and three");
    client.send(&two[..9]);
    it.expect(b"two");
    client.send(&two[9..]);
    it.expect(b" and three");
    assert_eq!(it.parts.next(), None);
    client.goodbye();
    it.records.next();
    it.server.finish();
}

#[test]
fn a_ping_between_fragments_is_answered_while_the_handler_waits() {
    let it = parts();
    let mut client = it.server.client();
    client.send(&frame(false, TEXT, "half a €".as_bytes().split_last().unwrap().1));
    it.expect(b"half a ");
    client.send_frame(PING, b"now");
    assert_eq!(client.read_frame(), Frame { fin: true, opcode: PONG, payload: b"now".to_vec() });
    client.send(&frame(true, CONTINUATION, b"\xAC"));
    it.expect("€".as_bytes());
    assert_eq!(it.parts.next(), None);
    client.goodbye();
    it.records.next();
    it.server.finish();
}

// ---- A handler that does not take what arrives --------------------------------------------------

// A handler wrote to a slow disk. The server went on reading, and kept all of it.
#[test]
fn a_handler_that_takes_nothing_makes_the_peer_wait_and_gets_everything_later() {
    let it = receiving(|_| {});
    for size in [usize::MAX, 50_000, 1000] {
        let (mut client, session) = it.pipe();
        let payload = noise(1 << 20);
        let stream = fragments(BINARY, &payload, size.min(payload.len()));
        let rest = it.send_until_it_waits(&mut client, &stream);
        // The window, the part that overstepped it, and the rest of a read that brought it.
        let read = session.traffic().bytes_in as usize;
        assert!(
            (WINDOW - FRAGMENT..=WINDOW + FRAGMENT + PIPE).contains(&read),
            "{read} for {size}"
        );
        assert_eq!(stream.len() - rest.len(), read + PIPE, "the rest waits on the way");
        assert_eq!(it.begun.next(), Kind::Binary);
        it.gate.as_ref().unwrap().try_send(()).unwrap();
        client.send(rest);
        it.got.next().expect(Kind::Binary, &payload);
        client.goodbye();
        it.records.next();
    }
    it.finish();
}

// The window counted payload only. A peer that sent single bytes made the server keep a part for each
// of them: a hundred times the bytes of the window.
#[test]
fn tiny_fragments_that_nobody_takes_cost_no_more_than_large_ones() {
    let it = receiving(|_| {});
    let (mut client, session) = it.pipe();
    let payload = noise(100_000);
    let stream = fragments(BINARY, &payload, 1);
    let rest = it.send_until_it_waits(&mut client, &stream);
    let read = session.traffic().bytes_in as usize;
    assert!(read <= WINDOW + FRAGMENT + PIPE, "{read} bytes read, {} of payload", read / 7);
    it.gate.as_ref().unwrap().try_send(()).unwrap();
    client.send(rest);
    it.got.next().expect(Kind::Binary, &payload);
    client.goodbye();
    it.records.next();
    it.finish();
}

// While nothing was read, nothing was written either: the session looked dead to everybody.
#[test]
fn while_the_handler_takes_nothing_the_session_sends_what_others_send() {
    let it = receiving(|_| {});
    let (mut client, session) = it.pipe();
    let payload = noise(1 << 20);
    let stream = frame(true, BINARY, &payload);
    let rest = it.send_until_it_waits(&mut client, &stream);
    session.try_send("news").unwrap();
    assert_eq!(client.read_frame().payload, b"news");
    assert!(session.ping(b"there?"));
    assert_eq!(client.read_frame(), Frame { fin: true, opcode: PING, payload: b"there?".to_vec() });
    for _ in 0..100 {
        session.try_send(vec![1; 10_000]).unwrap();
    }
    for _ in 0..100 {
        assert_eq!(client.read_frame().payload.len(), 10_000);
    }
    it.gate.as_ref().unwrap().try_send(()).unwrap();
    client.send(rest);
    it.got.next().expect(Kind::Binary, &payload);
    client.goodbye();
    assert!(it.records.next().clean);
    it.finish();
}

// The close frame of the peer was behind what nobody took, so the closing handshake timed out.
#[test]
fn while_the_handler_takes_nothing_the_session_can_be_closed() {
    let it = receiving(|_| {});
    let (mut client, session) = it.pipe();
    let payload = noise(1 << 20);
    let stream = frame(true, BINARY, &payload);
    let rest = it.send_until_it_waits(&mut client, &stream);
    session.close(CloseCode::new(4000).unwrap(), "enough");
    assert_eq!(client.read_close(), (4000, "enough".into()));
    client.send(rest);
    client.send_frame(CLOSE, &4000_u16.to_be_bytes());
    assert_eq!(client.read_to_end(), b"");
    it.gate.as_ref().unwrap().try_send(()).unwrap();
    let got = it.got.next();
    assert!(
        got.end.is_err() && got.bytes().len() >= WINDOW - FRAGMENT,
        "what had arrived, and no more"
    );
    assert!(payload.starts_with(&got.bytes()));
    let closed = it.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(4000));
    assert!(closed.clean, "{closed}");
    it.finish();
}

// A handler at work was taken for a silent peer, because what the peer sent was not read.
#[test]
fn a_live_peer_whose_message_is_not_taken_is_neither_idle_nor_silent() {
    let it = receiving(|config| {
        config.timeouts.ping = Some(ms(200));
        config.timeouts.pong = ms(300);
        config.timeouts.idle = Some(ms(400));
        config.timeouts.close = ms(100);
    });
    let (mut client, session) = it.pipe();
    let payload = noise(300 * KIB);
    let stream = frame(true, BINARY, &payload);
    // It always has more to send, as much as it may.
    let sending = std::thread::spawn(move || {
        client.send(&stream);
        client
    });
    // Sessions that answer nothing come and go: each of these ends takes as long as this one would.
    for _ in 0..3 {
        let (silent, _) = it.client();
        let closed = it.records.next();
        assert!(matches!(closed.cause, Cause::PongTimeout | Cause::IdleTimeout), "{closed}");
        assert!(session.is_open());
        drop(silent);
    }
    assert!(session.is_open());
    it.gate.as_ref().unwrap().try_send(()).unwrap();
    it.got.next().expect(Kind::Binary, &payload);
    drop(sending.join().unwrap());
    it.records.next();
    it.finish();
}

// And the reverse: a message that has begun is no sign of life of a peer that has gone.
#[test]
fn a_peer_that_falls_silent_in_the_middle_of_a_message_is_told_1001() {
    let it = taking(|config| {
        config.timeouts.ping = Some(ms(200));
        config.timeouts.pong = ms(200);
    });
    let (mut client, _) = it.pipe();
    client.send(&frame(false, BINARY, b"and"));
    assert_eq!(client.read_frame().opcode, PING);
    assert_eq!(client.read_close().0, 1001);
    it.got.next().expect_interrupted(b"and");
    assert_eq!(it.records.next().cause, Cause::PongTimeout);
    it.finish();
}

// Each part of a message counts for the idle timer: a message that takes longer than it was ended in
// the middle.
#[test]
fn a_message_that_takes_longer_than_the_idle_timer_is_not_idle_while_it_arrives() {
    let it = taking(|config| {
        config.timeouts.idle = Some(ms(400));
        config.timeouts.close = ms(100);
    });
    let (mut busy, session) = it.pipe();
    busy.send(&frame(false, BINARY, b"x"));
    let mut sent = 1;
    // The ends of idle sessions say when the time is over.
    for _ in 0..2 {
        let (idle, _) = it.pipe();
        let closed = loop {
            if let Some(closed) = it.records.try_next() {
                break closed;
            }
            busy.send(&frame(false, CONTINUATION, b"x"));
            sent += 1;
            // Not as fast as a busy loop.
            std::thread::sleep(ms(1));
        };
        assert_eq!(closed.cause, Cause::IdleTimeout);
        assert!(session.is_open(), "it was the other one");
        drop(idle);
    }
    busy.send(&frame(true, CONTINUATION, b""));
    it.got.next().expect(Kind::Binary, &vec![b'x'; sent]);
    busy.goodbye();
    it.records.next();
    it.finish();
}

// ---- A handler that does not want the rest ------------------------------------------------------

// What a handler did not want stood in the way of what it did want.
#[test]
fn the_rest_of_a_message_that_was_dropped_is_thrown_away_and_the_next_one_arrives() {
    let (sender, heads) = heard();
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .on_stream(async move |session: &Session, mut incoming: Incoming| {
                match session.path() {
                    "/untouched" => sender.send(Bytes::new()).unwrap(),
                    _ => sender.send(incoming.next().await.unwrap().unwrap()).unwrap(),
                }
            })
            .on_close(record(&closes)),
    );
    for path in ["/untouched", "/first"] {
        let mut client = Pipe::connect_to(&server, path);
        for number in 0..3_u8 {
            let mut payload = noise(1 << 20);
            payload[0] = number;
            client.send(&fragments(BINARY, &payload, 100_000));
            let head = heads.next();
            assert!(path == "/untouched" || head[0] == number, "of the message, and of no other");
        }
        client.goodbye();
        assert!(records.next().clean);
    }
    server.finish();
}

// The rest was thrown away only when the callback was through: a handler that had seen enough, and
// worked on, made the peer wait.
#[test]
fn a_message_that_was_dropped_makes_nobody_wait_but_the_next_message() {
    let (begins, begun) = heard();
    let (opens, sessions) = heard();
    let (go, wait) = smol::channel::unbounded::<()>();
    let busy = AtomicBool::new(false);
    let server = start(Server::builder().on_open(opened(&opens)).on_stream(
        async move |_: &Session, mut incoming: Incoming| {
            assert!(!busy.swap(true, Ordering::SeqCst), "callbacks do not overlap");
            begins.send(incoming.next().await.unwrap().unwrap()).unwrap();
            drop(incoming);
            let _ = wait.recv().await;
            busy.store(false, Ordering::SeqCst);
        },
    ));
    let mut client = Pipe::connect(&server);
    let session = sessions.next();
    let mut payload = noise(1 << 20);
    payload[..FRAGMENT].fill(1);
    // It can only be sent whole if it is read.
    client.send(&frame(true, BINARY, &payload));
    client.send_frame(BINARY, b"second");
    client.send_frame(BINARY, b"third");
    eventually("the second is read ahead", || session.traffic().messages_in == 2);
    assert_eq!(begun.next()[0], 1);
    assert!(begun.try_next().is_none(), "and waits for the callback");
    go.try_send(()).unwrap();
    assert_eq!(begun.next(), "second");
    go.try_send(()).unwrap();
    assert_eq!(begun.next(), "third");
    go.try_send(()).unwrap();
    client.goodbye();
    assert_eq!(server.finish().panics, 0);
}

// ---- The session ends in the middle of a message ------------------------------------------------

// The handler waited for the rest of a message that would never come, until it was dropped; it could
// not remove the half of the file that it had written.
#[test]
fn a_session_that_ends_in_the_middle_of_a_message_interrupts_it_and_closes_once() {
    type End = fn(&mut Option<Raw>, &Session, &TestServer);
    let ends: [(Cause, End); 7] = [
        (Cause::PeerVanished, |client, _, _| client.as_ref().unwrap().end_writing()),
        (Cause::PeerVanished, |client, _, _| client.take().unwrap().reset()),
        (Cause::PeerVanished, |client, _, _| drop(client.take())),
        (Cause::PeerClosed, |client, _, _| {
            client.take().unwrap().goodbye();
        }),
        (Cause::Aborted, |_, session, _| session.abort()),
        (Cause::Requested, |_, session, _| session.close(CloseCode::NORMAL, "enough")),
        (Cause::Stopping, |_, _, server| server.handle.request_stop()),
    ];
    for (cause, end) in ends {
        let it = taking(|config| config.timeouts.close = ms(300));
        let (client, session) = it.client();
        let mut client = Some(client);
        client.as_mut().unwrap().send(&frame(false, TEXT, b"the beginning of"));
        it.begun.next();
        eventually("it has arrived", || session.traffic().bytes_in == 22);
        end(&mut client, &session, &it.server);
        it.got.next().expect_interrupted(b"the beginning of");
        assert_eq!(it.records.next().cause, cause);
        assert_eq!(session.traffic().messages_in, 0);
        it.finish();
    }
}

// The same when the handler has not taken what has arrived: it still gets that first.
#[test]
fn what_had_arrived_before_the_end_is_not_lost() {
    let it = receiving(|_| {});
    let (mut client, session) = it.pipe();
    client.send(&frame(false, BINARY, &noise(50_000)));
    eventually("it has arrived", || session.traffic().bytes_in == 50_008);
    it.begun.next();
    drop(client);
    eventually("the session has ended", || !session.is_open());
    assert!(it.records.try_next().is_none(), "callbacks do not overlap");
    it.gate.as_ref().unwrap().try_send(()).unwrap();
    it.got.next().expect_interrupted(&noise(50_000));
    assert_eq!(it.records.next().cause, Cause::PeerVanished);
    it.finish();
}

// A message that was complete when the session ended was interrupted, too.
#[test]
fn a_message_that_was_complete_before_the_end_is_whole() {
    let it = receiving(|_| {});
    let (mut client, session) = it.pipe();
    client.send(&fragments(BINARY, &noise(50_000), 1000));
    eventually("it has arrived", || session.traffic().messages_in == 1);
    it.begun.next();
    session.abort();
    eventually("the session has ended", || !session.is_open());
    it.gate.as_ref().unwrap().try_send(()).unwrap();
    it.got.next().expect(Kind::Binary, &noise(50_000));
    assert_eq!(it.records.next().cause, Cause::Aborted);
    drop(client);
    it.finish();
}

// Every peer that went away in the middle of an upload was reported as a failure of the handler.
#[test]
fn a_handler_that_passes_on_that_its_session_has_ended_has_not_failed() {
    let (errors, failed) = heard();
    let (closes, records) = heard();
    let (begins, begun) = heard();
    let server = start(
        Server::builder()
            .on_stream(async move |session: &Session, mut incoming: Incoming| {
                begins.send(()).unwrap();
                match session.path() {
                    "/part" => while incoming.next().await.transpose()?.is_some() {},
                    "/read" => drop(incoming.read_to_end(&mut Vec::new()).await?),
                    "/echo" => drop(session.send_from(Kind::Binary, incoming).await?),
                    "/write" => {
                        while incoming.next().await.transpose().is_ok_and(|part| part.is_some()) {}
                        session.message_writer(Kind::Binary).write("too late").await?;
                    }
                    other => panic!("{other}"),
                }
                Ok::<_, BoxError>(())
            })
            .on_error(async move |session: &Session, error: &HandlerError| {
                errors.send(format!("{} {error}", session.path())).unwrap();
            })
            .on_close(record(&closes)),
    );
    for path in ["/part", "/read", "/echo", "/write"] {
        let mut client = Pipe::connect_to(&server, path);
        client.send(&frame(false, BINARY, b"the beginning"));
        begun.next();
        drop(client);
        assert_eq!(records.next().cause, Cause::PeerVanished, "{path}");
        assert_eq!(failed.try_next(), None, "{path}");
    }
    assert_eq!(server.finish().panics, 0);
}

#[test]
fn a_panic_in_the_middle_of_a_message_ends_its_session_with_1011() {
    let (errors, failed) = heard();
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .workers(1)
            .on_stream(async |session: &Session, mut incoming: Incoming| {
                let part = incoming.next().await.unwrap()?;
                assert_ne!(part, "panic", "asked to");
                if part == "fail" {
                    return Err(BoxError::from("asked to"));
                }
                if part == "close" {
                    return Ok(Flow::Close(CloseCode::new(4000).unwrap(), "asked to".into()));
                }
                session.send(part).await?;
                Ok(Flow::Continue)
            })
            .on_error(async move |_: &Session, error: &HandlerError| {
                errors.send(error.to_string()).unwrap();
            })
            .on_close(record(&closes)),
    );
    let mut bystander = server.client();
    for (part, code, cause) in [
        (&b"panic"[..], 1011, Cause::HandlerPanicked),
        (b"fail", 1011, Cause::HandlerFailed),
        (b"close", 4000, Cause::Requested),
    ] {
        let mut client = server.client();
        client.send(&frame(false, BINARY, part));
        // What is on its way then is thrown away.
        client.send(&frame(true, CONTINUATION, &noise(10_000)));
        client.expect_close(code);
        if code == 1011 {
            assert!(failed.next().contains("asked to"));
        }
        let closed = records.next();
        assert_closed(&closed, Side::Server, cause, Phase::Closing, Some(code));
        assert!(closed.clean);
        bystander.send_frame(BINARY, b"still here");
        assert_eq!(bystander.read_frame().payload, b"still here");
    }
    bystander.goodbye();
    assert_eq!(server.finish().panics, 1);
}

// ---- The shapes of a message on its way ---------------------------------------------------------

#[test]
fn a_message_can_be_read_like_a_file() {
    let (sender, got) = heard();
    let server = start(Server::builder().on_stream(
        async move |session: &Session, mut incoming: Incoming| {
            let mut bytes = Vec::new();
            if session.path() == "/copy" {
                let copied = futures_lite::io::copy(&mut incoming, &mut bytes).await;
                sender.send((copied.map_err(|error| error.kind()), bytes)).unwrap();
                return;
            }
            let mut piece = [0; 3];
            let end = loop {
                match incoming.read(&mut piece).await {
                    Ok(0) => break Ok(bytes.len() as u64),
                    Ok(read) => bytes.extend_from_slice(&piece[..read]),
                    Err(error) => break Err(error.kind()),
                }
            };
            sender.send((end, bytes)).unwrap();
        },
    ));
    for path in ["/copy", "/in pieces"] {
        let mut client = Pipe::connect_to(&server, &path.replace(' ', "-"));
        for size in [1, 1000, 200_000] {
            client.send(&fragments(BINARY, &noise(200_000), size));
            let (end, bytes) = got.next();
            assert_eq!(end, Ok(200_000));
            assert!(bytes == noise(200_000));
        }
        client.send(&frame(true, BINARY, b""));
        assert_eq!(got.next(), (Ok(0), Vec::new()));
        client.send(&frame(false, BINARY, b"half"));
        drop(client);
        assert_eq!(got.next(), (Err(io::ErrorKind::ConnectionAborted), b"half".to_vec()));
    }
    server.finish();
}

#[test]
fn a_message_is_a_stream_of_its_parts() {
    let (sender, got) = heard();
    let server =
        start(Server::builder().on_stream(async move |_: &Session, incoming: Incoming| {
            let parts: Result<Vec<Bytes>, Interrupted> = incoming.try_collect().await;
            sender.send(parts.map(|parts| parts.concat()).is_ok_and(|all| all == noise(100_000)))
        }));
    let mut client = Pipe::connect(&server);
    client.send(&fragments(BINARY, &noise(100_000), 999));
    assert!(got.next());
    client.send(&frame(false, BINARY, b"half"));
    drop(client);
    assert!(!got.next());
    server.finish();
}

// A consumer that does not look at the items, such as `count`, went round for ever behind the last
// one, and with it its worker.
#[test]
fn a_stream_of_parts_ends_behind_its_error() {
    let (sender, got) = heard();
    let server =
        start(Server::builder().on_stream(async move |_: &Session, incoming: Incoming| {
            // More than there can be.
            sender.send(StreamExt::take(incoming, 1000).count().await).unwrap();
        }));
    let mut client = Pipe::connect(&server);
    client.send(&frame(false, BINARY, b"half"));
    drop(client);
    assert_eq!(got.next(), 2, "a part and an error");
    server.finish();
}

/// Some sessions take messages in parts, and some do not.
struct Either {
    got: mpsc::Sender<(bool, Vec<u8>)>,
}

impl Handler for Either {
    fn streams(&self, session: &Session) -> bool {
        assert_ne!(session.path(), "/panic", "asked to");
        session.path() == "/parts"
    }

    async fn message(&self, _: &Session, message: Message) -> Outcome {
        self.got.send((false, message.as_bytes().to_vec()))?;
        Ok(Flow::Continue)
    }

    async fn stream(&self, _: &Session, mut incoming: Incoming) -> Outcome {
        self.got.send((true, collect(&mut incoming).await.bytes()))?;
        Ok(Flow::Continue)
    }
}

#[test]
fn a_handler_chooses_for_each_session() {
    let (sender, got) = heard();
    let server = start(
        Server::builder()
            .configure(|config| config.limits.message_bytes = 1000)
            .handler(Either { got: sender }),
    );
    for (path, streams) in [("/parts", true), ("/whole", false)] {
        let mut client = Pipe::connect_to(&server, path);
        client.send(&fragments(TEXT, &[b'x'; 1000], 100));
        assert_eq!(got.next(), (streams, vec![b'x'; 1000]));
        client.send(&frame(true, TEXT, &[b'x'; 1001]));
        if streams {
            assert_eq!(got.next(), (true, vec![b'x'; 1001]));
            client.goodbye();
        } else {
            assert_eq!(client.read_close().0, 1009);
        }
    }
    server.finish();
}

// The panic was swallowed: nobody counted it, and the session went on with a guess.
#[test]
fn a_panic_in_streams_ends_its_session_with_1011() {
    let (sender, _got) = heard();
    let server = start(Server::builder().handler(Either { got: sender }));
    let mut client = Pipe::connect_to(&server, "/panic");
    assert_eq!(client.read_close().0, 1011);
    drop(client);
    assert_eq!(server.finish().panics, 1);
}

#[test]
fn a_server_that_takes_whole_messages_only_is_not_asked_for_parts() {
    let server =
        start(Server::builder().on_message(async |session, message| session.send(message).await));
    let mut client = server.client();
    client.echo("whole");
    client.goodbye();
    server.finish();
}

// ---- Sending ------------------------------------------------------------------------------------

/// A server that the test sends through.
struct Sending {
    server: TestServer,
    sessions: Heard<Session>,
    records: Heard<Closed>,
}

fn sending(configure: impl FnOnce(&mut Config)) -> Sending {
    let (opens, sessions) = heard();
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .configure(configure)
            .on_open(opened(&opens))
            .on_message(async |session, message| session.send(message).await)
            .on_close(record(&closes)),
    );
    Sending { server, sessions, records }
}

impl Sending {
    fn pipe(&self) -> (Pipe, Session) {
        (Pipe::connect(&self.server), self.sessions.next())
    }

    /// The client says goodbye, and nothing is left.
    #[track_caller]
    fn finish(self, client: Pipe, session: &Session) {
        client.goodbye();
        let closed = self.records.next();
        assert!(closed.clean, "{closed}");
        assert_eq!(session.buffered(), Buffered::default());
        self.server.finish();
    }
}

/// Reads one message: its opcode, its payload and how many frames it was; control frames may not come
/// between.
#[track_caller]
fn read_message(client: &mut Pipe) -> (u8, Vec<u8>, usize) {
    let first = client.read_frame();
    assert!(matches!(first.opcode, TEXT | BINARY), "a message begins: {}", first.opcode);
    let (mut payload, mut frames, mut fin) = (first.payload, 1, first.fin);
    while !fin {
        let next = client.read_frame();
        assert_eq!(next.opcode, CONTINUATION, "and goes on");
        assert!(next.payload.len() <= FRAGMENT);
        payload.extend(next.payload);
        frames += 1;
        fin = next.fin;
    }
    (first.opcode, payload, frames)
}

#[test]
fn what_is_written_arrives_as_one_message_in_fragments() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    for (kind, opcode) in [(Kind::Text, TEXT), (Kind::Binary, BINARY)] {
        let mut writer = session.message_writer(kind);
        let mut expected = Vec::new();
        for len in [5, 0, 1, FRAGMENT - 1, FRAGMENT, FRAGMENT + 1, 40_000] {
            let piece = vec![b'a' + (len % 26) as u8; len];
            expected.extend_from_slice(&piece);
            within(writer.write(piece)).unwrap();
        }
        within(writer.finish()).unwrap();
        let (got, payload, frames) = read_message(&mut client);
        assert_eq!(got, opcode);
        assert!(payload == expected);
        assert_eq!(frames, 1 + 1 + 1 + 1 + 2 + 3 + 1, "and an empty one that ends it");
    }
    eventually("both are counted", || session.traffic().messages_out == 2);
    it.finish(client, &session);
}

// A fragment waited until the message was complete: "sent while it comes into being" was not true.
#[test]
fn a_fragment_is_there_before_the_next_one_is_written() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    let mut writer = session.message_writer(Kind::Text);
    let mut opcode = TEXT;
    for word in ["one", "two", "three"] {
        within(writer.write(word)).unwrap();
        let got = client.read_frame();
        assert_eq!(got, Frame { fin: false, opcode, payload: word.as_bytes().to_vec() });
        opcode = CONTINUATION;
    }
    within(writer.finish()).unwrap();
    assert_eq!(client.read_frame(), Frame { fin: true, opcode: CONTINUATION, payload: vec![] });
    it.finish(client, &session);
}

#[test]
fn an_empty_message_is_one_frame() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    for (kind, opcode) in [(Kind::Text, TEXT), (Kind::Binary, BINARY)] {
        within(session.message_writer(kind).finish()).unwrap();
        assert_eq!(client.read_frame(), Frame { fin: true, opcode, payload: vec![] });
        let mut writer = session.message_writer(kind);
        within(writer.write("")).unwrap();
        within(writer.finish()).unwrap();
        assert_eq!(client.read_frame(), Frame { fin: true, opcode, payload: vec![] });
    }
    it.finish(client, &session);
}

// Another message was put between two fragments: the peer closed with 1002.
#[test]
fn messages_of_other_threads_come_behind_in_order_and_none_is_lost() {
    const THREADS: u32 = 4;
    const EACH: u32 = 100;
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    let mut writer = session.message_writer(Kind::Binary);
    within(writer.write("the beginning")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let session = &session;
            scope.spawn(move || {
                for number in 0..EACH {
                    within(session.send(format!("{thread} {number}"))).unwrap();
                }
            });
        }
        for _ in 0..50 {
            within(writer.write(noise(3000))).unwrap();
        }
    });
    let waiting = session.buffered().messages;
    assert_eq!(waiting, (THREADS * EACH) as usize, "all of them wait behind it");
    within(writer.finish()).unwrap();
    assert_eq!(read_message(&mut client).1.len(), "the beginning".len() + 50 * 3000);
    let mut next = [0; THREADS as usize];
    for _ in 0..THREADS * EACH {
        let (opcode, payload, frames) = read_message(&mut client);
        assert_eq!((opcode, frames), (TEXT, 1));
        let text = String::from_utf8(payload).unwrap();
        let (thread, number) = text.split_once(' ').unwrap();
        let thread: usize = thread.parse().unwrap();
        assert_eq!(number, next[thread].to_string(), "of thread {thread}");
        next[thread] += 1;
    }
    assert_eq!(next, [EACH; THREADS as usize]);
    it.finish(client, &session);
}

#[test]
fn a_handler_that_sends_while_it_writes_sends_behind_it() {
    let server = start(Server::builder().on_message(async |session: &Session, _: Message| {
        let mut writer = session.message_writer(Kind::Text);
        session.send("before the first fragment").await?;
        writer.write("one ").await?;
        session.send("behind 1").await?;
        writer.write("two").await?;
        session.try_send(vec![7; 100_000])?;
        writer.finish().await?;
        session.send("behind 3").await?;
        Ok::<_, BoxError>(())
    }));
    let mut client = Pipe::connect(&server);
    for _ in 0..3 {
        client.send_frame(TEXT, b"go");
        assert_eq!(read_message(&mut client).1, b"before the first fragment");
        assert_eq!(read_message(&mut client), (TEXT, b"one two".to_vec(), 3));
        assert_eq!(read_message(&mut client).1, b"behind 1");
        assert_eq!(read_message(&mut client), (BINARY, vec![7; 100_000], 1));
        assert_eq!(read_message(&mut client).1, b"behind 3");
    }
    client.goodbye();
    server.finish();
}

// A stream that took an hour kept the pongs back for an hour.
#[test]
fn pings_and_pongs_go_between_fragments() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    let mut writer = session.message_writer(Kind::Text);
    within(writer.write("one")).unwrap();
    assert_eq!(client.read_frame().payload, b"one");
    session.try_send("behind").unwrap();
    client.send_frame(PING, b"there?");
    assert_eq!(client.read_frame(), Frame { fin: true, opcode: PONG, payload: b"there?".to_vec() });
    assert!(session.ping(b"and you?"));
    assert_eq!(client.read_frame().opcode, PING);
    within(writer.write("two")).unwrap();
    let two = Frame { fin: false, opcode: CONTINUATION, payload: b"two".to_vec() };
    assert_eq!(client.read_frame(), two);
    within(writer.finish()).unwrap();
    assert_eq!(client.read_frame().opcode, CONTINUATION);
    assert_eq!(client.read_frame().payload, b"behind");
    it.finish(client, &session);
}

// ---- Bounds -------------------------------------------------------------------------------------

/// Fills the pipe, and one byte more that waits.
#[track_caller]
fn fill(session: &Session) {
    session.try_send(vec![1; PIPEFUL + 1]).unwrap();
    await_full_pipe(session);
    eventually("the driver waits", || session.buffered().messages == 1);
}

/// Reads one message of the client, in another thread.
fn reader(mut client: Pipe) -> std::thread::JoinHandle<(Pipe, Vec<u8>)> {
    std::thread::spawn(move || {
        let (_, payload, _) = read_message(&mut client);
        (client, payload)
    })
}

// What fragments held was taken off the books only together with a whole message: the books were full
// after one mebibyte, and the writer waited for ever.
#[test]
fn a_message_may_be_many_times_as_large_as_what_may_wait() {
    let it = sending(|config| config.limits.outbox_bytes = 64 * KIB);
    let (client, session) = it.pipe();
    let payload = noise(4 << 20);
    let reader = reader(client);
    let mut writer = session.message_writer(Kind::Binary);
    for piece in payload.chunks(100_000) {
        within(writer.write(piece.to_vec())).unwrap();
    }
    within(writer.finish()).unwrap();
    let (client, read) = reader.join().unwrap();
    assert!(read == payload);
    it.finish(client, &session);
}

// The writer did not wait for a peer that read nothing, and the server kept the whole message.
#[test]
fn a_peer_that_reads_nothing_makes_the_writer_wait_and_a_cancelled_write_loses_nothing() {
    const BOUND: usize = 200_000;
    let it = sending(|config| config.limits.outbox_bytes = BOUND);
    let (mut client, session) = it.pipe();
    fill(&session);
    let payload = noise(1 << 20);
    let mut writer = session.message_writer(Kind::Binary);
    {
        let mut write = pin!(writer.write(payload[..500_000].to_vec()));
        for _ in 0..10 {
            assert!(poll_once(write.as_mut()).is_pending());
            let bytes = session.buffered().bytes;
            assert!((BOUND - FRAGMENT..=BOUND).contains(&bytes), "{bytes}");
        }
    }
    // Dropped. A second one waits for what is left of it, and is dropped too.
    assert!(poll_once(pin!(writer.write(payload[500_000..700_000].to_vec()))).is_pending());
    assert!(poll_once(pin!(writer.finish())).is_pending());
    assert!(session.buffered().bytes <= BOUND);
    let reader = std::thread::spawn(move || {
        assert_eq!(read_message(&mut client).1.len(), PIPEFUL + 1);
        let (_, payload, _) = read_message(&mut client);
        (client, payload)
    });
    within(writer.write(payload[700_000..].to_vec())).unwrap();
    within(writer.finish()).unwrap();
    let (client, read) = reader.join().unwrap();
    assert_eq!(read.len(), payload.len());
    assert!(read == payload);
    it.finish(client, &session);
}

// What waited behind the writer filled the outbox, so the writer waited for room, which only its own
// end would have made.
#[test]
fn a_full_queue_behind_the_writer_does_not_stop_it() {
    const BOUND: usize = 100_000;
    let it = sending(|config| config.limits.outbox_bytes = BOUND);
    let (client, session) = it.pipe();
    let mut writer = session.message_writer(Kind::Binary);
    within(writer.write("the beginning")).unwrap();
    eventually("it has left", || session.buffered().bytes == 0);
    let mut behind = 0;
    while session.try_send(vec![7; 1000]).is_ok() {
        behind += 1;
    }
    assert_eq!(behind, 100);
    let reader = reader(client);
    for _ in 0..100 {
        within(writer.write(noise(50_000))).unwrap();
        // One that is on its way may come back.
        assert!(session.buffered().bytes <= BOUND + 2 * FRAGMENT, "{:?}", session.buffered());
    }
    within(writer.finish()).unwrap();
    let (mut client, read) = reader.join().unwrap();
    assert_eq!(read.len(), "the beginning".len() + 5_000_000);
    for _ in 0..behind {
        assert_eq!(read_message(&mut client), (BINARY, vec![7; 1000], 1));
    }
    it.finish(client, &session);
}

// The same with one message behind it that is larger than all that may wait.
#[test]
fn a_huge_message_behind_the_writer_does_not_stop_it() {
    let it = sending(|config| config.limits.outbox_bytes = 1000);
    let (client, session) = it.pipe();
    let mut writer = session.message_writer(Kind::Binary);
    within(writer.write("the beginning")).unwrap();
    eventually("it has left", || session.buffered().bytes == 0);
    session.try_send(vec![7; 1 << 20]).unwrap();
    let reader = reader(client);
    within(writer.write(noise(100_000))).unwrap();
    within(writer.finish()).unwrap();
    let (mut client, read) = reader.join().unwrap();
    assert_eq!(read.len(), "the beginning".len() + 100_000);
    assert_eq!(read_message(&mut client), (BINARY, vec![7; 1 << 20], 1));
    it.finish(client, &session);
}

// Messages from writers were counted when they were complete, and never asked whether there was room
// for one: a peer that read nothing was sent empty messages without end.
#[test]
fn written_messages_are_bounded_in_number_too() {
    const BOUND: usize = 10;
    let it = sending(|config| config.limits.outbox_messages = BOUND);
    let (mut client, session) = it.pipe();
    fill(&session);
    let mut queued = 1;
    while queued <= 2 * BOUND {
        let mut writer = session.message_writer(Kind::Text);
        if poll_once(pin!(writer.finish())).is_pending() {
            break;
        }
        queued += 1;
    }
    assert_eq!(queued, BOUND);
    assert_eq!(session.buffered().messages, BOUND);
    assert_eq!(read_message(&mut client).1.len(), PIPEFUL + 1);
    for _ in 1..BOUND {
        assert_eq!(client.read_frame(), Frame { fin: true, opcode: TEXT, payload: vec![] });
    }
    it.finish(client, &session);
}

// ---- Two writers --------------------------------------------------------------------------------

#[test]
fn two_writers_take_turns() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    let mut first = session.message_writer(Kind::Text);
    let mut second = session.message_writer(Kind::Binary);
    let mut third = session.message_writer(Kind::Binary);
    within(first.write("first")).unwrap();
    {
        let mut waiting = pin!(second.write("second"));
        assert!(poll_once(waiting.as_mut()).is_pending());
        session.try_send("between").unwrap();
        within(first.write(" of all")).unwrap();
        assert!(poll_once(waiting.as_mut()).is_pending());
        within(first.finish()).unwrap();
        within(waiting).unwrap();
    }
    assert!(poll_once(pin!(third.finish())).is_pending(), "also one that is empty");
    within(second.finish()).unwrap();
    within(third.finish()).unwrap();
    assert_eq!(read_message(&mut client), (TEXT, b"first of all".to_vec(), 3));
    assert_eq!(read_message(&mut client), (TEXT, b"between".to_vec(), 1));
    assert_eq!(read_message(&mut client), (BINARY, b"second".to_vec(), 2));
    assert_eq!(read_message(&mut client), (BINARY, vec![], 1));
    it.finish(client, &session);
}

// A writer that waited for its turn was not woken, or two took the same turn.
#[test]
fn writers_of_many_threads_do_not_mix_their_messages() {
    const THREADS: u8 = 8;
    const EACH: usize = 20;
    let it = sending(|config| config.limits.outbox_bytes = 20_000);
    let (mut client, session) = it.pipe();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let session = &session;
            scope.spawn(move || {
                for number in 0..EACH {
                    let mut writer = session.message_writer(Kind::Binary);
                    for _ in 0..number {
                        within(writer.write(vec![thread; 1000])).unwrap();
                    }
                    within(writer.finish()).unwrap();
                }
            });
        }
        let mut next = [0; THREADS as usize];
        for _ in 0..EACH * usize::from(THREADS) {
            let (_, payload, frames) = read_message(&mut client);
            if let Some(thread) = payload.first() {
                assert!(payload.iter().all(|byte| byte == thread));
                next[usize::from(*thread)] += 1;
                assert_eq!(payload.len(), 1000 * next[usize::from(*thread)]);
                assert_eq!(frames, payload.len() / 1000 + 1);
            }
        }
        assert_eq!(next, [EACH - 1; THREADS as usize]);
    });
    it.finish(client, &session);
}

// ---- Messages that are not finished -------------------------------------------------------------

// The next message was taken for the rest of the one that had been abandoned.
#[test]
fn a_writer_that_is_dropped_unfinished_closes_with_1011_and_what_was_behind_is_undelivered() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    let mut writer = session.message_writer(Kind::Text);
    within(writer.write("half")).unwrap();
    assert_eq!(client.read_frame().payload, b"half");
    for _ in 0..3 {
        session.try_send("behind").unwrap();
    }
    drop(writer);
    assert!(!session.is_open());
    assert_eq!(client.read_close(), (1011, "message not finished".into()));
    client.send_frame(CLOSE, &1011_u16.to_be_bytes());
    assert_eq!(client.read_to_end(), b"");
    let closed = it.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1011));
    assert!(closed.clean, "{closed}");
    assert_eq!((closed.undelivered.messages, closed.undelivered.bytes), (3, 18));
    assert_eq!(session.traffic().messages_out, 0);
    it.server.finish();
}

#[test]
fn a_writer_that_is_dropped_before_its_first_fragment_did_nothing() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    drop(session.message_writer(Kind::Text));
    let mut empty = session.message_writer(Kind::Text);
    within(empty.write("")).unwrap();
    drop(empty);
    // One that waits for its turn has not begun either.
    let mut first = session.message_writer(Kind::Text);
    within(first.write("first")).unwrap();
    let mut second = session.message_writer(Kind::Text);
    assert!(poll_once(pin!(second.write("second"))).is_pending());
    drop(second);
    within(first.finish()).unwrap();
    assert_eq!(read_message(&mut client).1, b"first");
    client.echo("open");
    it.finish(client, &session);
}

// The close frame that a dropped writer asked for was taken for the reason of the end: that a handler
// had failed stood in no record.
#[test]
fn a_handler_that_fails_with_a_message_unfinished_is_on_record_as_failed() {
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .on_message(async |session: &Session, message: Message| {
                let mut writer = session.message_writer(Kind::Text);
                writer.write("half").await?;
                assert_ne!(message.as_text(), Some("panic"), "asked to");
                Err::<(), _>(BoxError::from("asked to"))
            })
            .on_close(record(&closes)),
    );
    for (message, cause) in [("panic", Cause::HandlerPanicked), ("fail", Cause::HandlerFailed)] {
        let mut client = Pipe::connect(&server);
        client.send_frame(TEXT, message.as_bytes());
        assert_eq!(client.read_frame().payload, b"half");
        assert_eq!(client.read_close().0, 1011);
        drop(client);
        let closed = records.next();
        assert_eq!(closed.cause, cause, "{closed}");
        assert_eq!(closed.code.map(|code| code.as_u16()), Some(1011));
    }
    assert_eq!(server.finish().panics, 1);
}

#[test]
fn a_finished_message_takes_no_more() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    let mut writer = session.message_writer(Kind::Text);
    within(writer.write("all")).unwrap();
    within(writer.finish()).unwrap();
    assert!(matches!(within(writer.finish()), Err(WriteError::Closed)));
    assert!(matches!(within(writer.write("more")), Err(WriteError::Closed)));
    drop(writer);
    assert_eq!(read_message(&mut client).1, b"all");
    client.echo("open");
    it.finish(client, &session);
}

// ---- Text ---------------------------------------------------------------------------------------

#[test]
fn a_text_may_be_cut_between_writes_in_every_character() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    let text = CHARACTERS.as_bytes();
    for cut in 0..=text.len() {
        let mut writer = session.message_writer(Kind::Text);
        within(writer.write(text[..cut].to_vec())).unwrap();
        within(writer.write(text[cut..].to_vec())).unwrap();
        within(writer.finish()).unwrap();
        let (opcode, payload, _) = read_message(&mut client);
        assert_eq!((opcode, &payload[..]), (TEXT, text));
    }
    it.finish(client, &session);
}

#[test]
fn what_would_not_be_text_is_refused_and_nothing_of_it_is_sent() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    let mut writer = session.message_writer(Kind::Text);
    assert!(matches!(within(writer.write(&b"no \xFF"[..])), Err(WriteError::NotUtf8)));
    within(writer.write("yes")).unwrap();
    assert!(matches!(within(writer.write(&b"\x80"[..])), Err(WriteError::NotUtf8)));
    // The end in the middle of a character, which can still be completed.
    within(writer.write(&b" \xE2"[..])).unwrap();
    assert!(matches!(within(writer.finish()), Err(WriteError::NotUtf8)));
    assert!(matches!(within(writer.write(&b"a"[..])), Err(WriteError::NotUtf8)));
    within(writer.write(&b"\x82"[..])).unwrap();
    within(writer.write(&b"\xAC"[..])).unwrap();
    within(writer.finish()).unwrap();
    let (_, payload, _) = read_message(&mut client);
    assert_eq!(String::from_utf8(payload).unwrap(), "yes €");
    // A binary message may be anything.
    let mut writer = session.message_writer(Kind::Binary);
    within(writer.write(&b"\xFF\xFE"[..])).unwrap();
    within(writer.finish()).unwrap();
    assert_eq!(read_message(&mut client).1, b"\xFF\xFE");
    it.finish(client, &session);
}

// Bytes that completed a character and then went wrong were refused, but remembered: the half of the
// character that had been sent counted as whole, and what followed was no text any more.
#[test]
fn bytes_that_are_refused_complete_no_character() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    let mut writer = session.message_writer(Kind::Text);
    within(writer.write(&b"\xE2\x82"[..])).unwrap();
    assert!(matches!(within(writer.write(&b"\xAC\xFF"[..])), Err(WriteError::NotUtf8)));
    assert!(matches!(within(writer.finish()), Err(WriteError::NotUtf8)), "it ends in the middle");
    assert!(matches!(within(writer.write("x")), Err(WriteError::NotUtf8)));
    within(writer.write(&b"\xAC"[..])).unwrap();
    within(writer.finish()).unwrap();
    assert_eq!(read_message(&mut client).1, "€".as_bytes());
    it.finish(client, &session);
}

// ---- The session ends while a message is written ------------------------------------------------

#[test]
fn a_writer_of_an_ended_session_is_told_so() {
    let it = sending(|_| {});
    let (client, session) = it.pipe();
    let mut idle = session.message_writer(Kind::Text);
    client.goodbye();
    it.records.next();
    assert!(matches!(within(idle.write("too late")), Err(WriteError::Closed)));
    assert!(matches!(within(idle.finish()), Err(WriteError::Closed)));
    let mut late = session.message_writer(Kind::Text);
    assert!(matches!(within(late.finish()), Err(WriteError::Closed)));
    let sent = within(session.send_from(Kind::Text, &b"too late"[..]));
    assert!(matches!(sent, Err(WriteError::Closed)));
    it.server.finish();
}

// A writer that waited for room in a session that had ended waited for ever.
#[test]
fn a_writer_that_waits_hears_of_the_end() {
    let it = sending(|config| config.limits.outbox_bytes = 1000);
    type End = fn(Pipe, &Session) -> Option<Pipe>;
    let ends: [(Cause, End); 3] = [
        (Cause::Aborted, |client, session| {
            session.abort();
            Some(client)
        }),
        (Cause::PeerVanished, |client, _| {
            drop(client);
            None
        }),
        (Cause::Requested, |mut client, session| {
            session.close(CloseCode::NORMAL, "");
            while client.try_read_frame().is_some_and(|frame| frame.opcode != CLOSE) {}
            client.send_frame(CLOSE, &1000_u16.to_be_bytes());
            Some(client)
        }),
    ];
    for (cause, end) in ends {
        let (client, session) = it.pipe();
        let mut writer = session.message_writer(Kind::Binary);
        let mut other = session.message_writer(Kind::Binary);
        let mut write = pin!(writer.write(noise(1 << 20)));
        assert!(poll_once(write.as_mut()).is_pending());
        let mut turn = pin!(other.finish());
        assert!(poll_once(turn.as_mut()).is_pending());
        let both = std::thread::scope(|scope| {
            let client = scope.spawn(|| end(client, &session));
            let both = within(future::zip(write, turn));
            client.join().unwrap();
            both
        });
        assert!(matches!(both, (Err(WriteError::Closed), Err(WriteError::Closed))), "{both:?}");
        assert_eq!(it.records.next().cause, cause);
    }
    it.server.finish();
}

// What had been queued of the message was dropped, or the close frame came in the middle of a fragment.
#[test]
fn closing_while_a_message_is_written_sends_what_is_queued_and_then_the_close_frame() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    fill(&session);
    let mut writer = session.message_writer(Kind::Text);
    within(writer.write("one")).unwrap();
    within(writer.write("two")).unwrap();
    session.try_send("behind").unwrap();
    session.close(CloseCode::new(4000).unwrap(), "enough");
    assert!(matches!(within(writer.write("three")), Err(WriteError::Closed)));
    assert!(matches!(within(writer.finish()), Err(WriteError::Closed)));
    drop(writer);
    assert_eq!(read_message(&mut client).1.len(), PIPEFUL + 1);
    assert_eq!(client.read_frame(), Frame { fin: false, opcode: TEXT, payload: b"one".to_vec() });
    let two = Frame { fin: false, opcode: CONTINUATION, payload: b"two".to_vec() };
    assert_eq!(client.read_frame(), two);
    assert_eq!(client.read_close(), (4000, "enough".into()), "the first to close counts");
    client.send_frame(CLOSE, &4000_u16.to_be_bytes());
    let closed = it.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(4000));
    assert_eq!((closed.undelivered.messages, closed.undelivered.bytes), (1, 6));
    it.server.finish();
}

#[test]
fn a_stop_while_a_message_is_written_says_1001() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    let mut writer = session.message_writer(Kind::Text);
    within(writer.write("half")).unwrap();
    assert_eq!(client.read_frame().payload, b"half");
    it.server.handle.request_stop();
    assert_eq!(client.read_close().0, 1001);
    assert!(matches!(within(writer.finish()), Err(WriteError::Closed)));
    client.send_frame(CLOSE, &1001_u16.to_be_bytes());
    assert_eq!(it.records.next().cause, Cause::Stopping);
    assert_eq!(it.server.finish().cut, 0);
}

// ---- From a source ------------------------------------------------------------------------------

/// A source that has what the test gives it, when the test gives it.
struct Source(Pin<Box<smol::channel::Receiver<io::Result<Vec<u8>>>>>);

fn source() -> (smol::channel::Sender<io::Result<Vec<u8>>>, Source) {
    let (sender, receiver) = smol::channel::unbounded();
    (sender, Source(Box::pin(receiver)))
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_next(cx).map(|next| {
            let bytes = next.transpose()?.unwrap_or_default();
            buffer[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        })
    }
}

#[test]
fn a_source_is_sent_as_it_is_read() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    let (feed, source) = source();
    let sending = {
        let session = session.clone();
        std::thread::spawn(move || within(session.send_from(Kind::Text, source)))
    };
    let mut opcode = TEXT;
    for word in ["one", "two", "three"] {
        feed.try_send(Ok(word.into())).unwrap();
        let payload = word.as_bytes().to_vec();
        assert_eq!(client.read_frame(), Frame { fin: false, opcode, payload });
        opcode = CONTINUATION;
        client.send_frame(PING, b"");
        assert_eq!(client.read_frame().opcode, PONG);
    }
    drop(feed);
    assert_eq!(client.read_frame(), Frame { fin: true, opcode: CONTINUATION, payload: vec![] });
    assert_eq!(sending.join().unwrap().unwrap(), 11);
    // Nothing at all is an empty message.
    assert_eq!(within(session.send_from(Kind::Binary, futures_lite::io::empty())).unwrap(), 0);
    assert_eq!(client.read_frame(), Frame { fin: true, opcode: BINARY, payload: vec![] });
    it.finish(client, &session);
}

#[test]
fn a_source_that_fails_closes_its_session_only_if_some_of_it_was_sent() {
    let it = sending(|_| {});
    let (mut client, session) = it.pipe();
    let (feed, first) = source();
    feed.try_send(Err(io::ErrorKind::NotFound.into())).unwrap();
    match within(session.send_from(Kind::Binary, first)) {
        Err(WriteError::Source(error)) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
        other => panic!("{other:?}"),
    }
    client.echo("open");
    let (feed, second) = source();
    feed.try_send(Ok(b"some".to_vec())).unwrap();
    feed.try_send(Err(io::ErrorKind::UnexpectedEof.into())).unwrap();
    match within(session.send_from(Kind::Binary, second)) {
        Err(WriteError::Source(error)) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
        other => panic!("{other:?}"),
    }
    let some = Frame { fin: false, opcode: BINARY, payload: b"some".to_vec() };
    assert_eq!(client.read_frame(), some);
    assert_eq!(client.read_close().0, 1011);
    drop(client);
    assert_eq!(it.records.next().cause, Cause::Requested);
    // And one that is no text.
    let (mut client, session) = it.pipe();
    let not_text = within(session.send_from(Kind::Text, &b"\xFF"[..]));
    assert!(matches!(not_text, Err(WriteError::NotUtf8)));
    client.echo("open");
    client.goodbye();
    it.records.next();
    it.server.finish();
}

// Receiving and sending waited for each other, or one of them kept the whole message.
#[test]
fn a_message_of_any_size_is_echoed_through_bounded_memory() {
    let (opens, sessions) = heard();
    let server = start(
        Server::builder()
            .configure(|config| config.limits.outbox_bytes = 50_000)
            .on_open(opened(&opens))
            .on_stream(async |session: &Session, incoming: Incoming| {
                session.send_from(incoming.kind(), incoming).await.map(drop)
            }),
    );
    let client = server.client();
    let session = sessions.next();
    let payload = noise(3 << 20);
    let mut upstream = Raw { stream: client.stream.try_clone().unwrap() };
    let mut downstream = client;
    std::thread::scope(|scope| {
        let payload = &payload;
        scope.spawn(move || {
            for size in [usize::MAX, 100_000, 5000] {
                upstream.send(&fragments(BINARY, payload, size.min(payload.len())));
            }
        });
        for _ in 0..3 {
            let mut echoed = Vec::new();
            loop {
                let frame = downstream.read_frame();
                assert_eq!(frame.opcode, if echoed.is_empty() { BINARY } else { CONTINUATION });
                echoed.extend(frame.payload);
                // What is on its way may come back.
                assert!(session.buffered().bytes <= 2 * 50_000);
                if frame.fin {
                    break;
                }
            }
            assert!(echoed == *payload);
        }
    });
    downstream.goodbye();
    server.finish();
}

// ---- Compressed ---------------------------------------------------------------------------------

#[cfg(feature = "deflate")]
mod deflate {
    use coracle::config::Deflate;
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

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

    // The same within the limit: what the handler does not take is not decompressed either.
    #[test]
    fn a_bomb_that_nobody_takes_is_not_decompressed_beyond_the_window() {
        let (sender, waiting) = heard();
        let (go, wait) = smol::channel::unbounded::<()>();
        let server = start(
            Server::builder()
                .configure(|config| config.deflate = Some(Deflate::shared()))
                .on_stream(async move |_: &Session, mut incoming: Incoming| {
                    let _ = wait.recv().await;
                    sender.send(format!("{incoming:?}")).unwrap();
                    let mut largest = 0;
                    let mut total = 0;
                    while let Some(Ok(part)) = incoming.next().await {
                        largest = largest.max(part.len());
                        total += part.len();
                    }
                    sender.send(format!("{largest} {total}")).unwrap();
                }),
        );
        let mut client = Pipe::raw(&server);
        let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
        client.send(handshake_with("/", offer).as_bytes());
        client.read_head();
        let wire = Deflater::new(false).message(&vec![0; 4 << 20]);
        client.send(&compressed(BINARY, &wire, wire.len()));
        // Behind what has filled the window, so it is not answered before the handler takes parts.
        client.send_frame(PING, b"behind");
        go.try_send(()).unwrap();
        let said = waiting.next();
        let bytes = said.split("waiting: ").nth(1).expect("a number");
        let bytes: usize = bytes.split(',').next().unwrap().parse().unwrap();
        // One part more than the window, and a part is at most 64 times 1032 larger than it should be.
        assert!(bytes <= WINDOW + FRAGMENT + 64 * 1032, "{said}");
        let parts = waiting.next();
        let (largest, total) = parts.split_once(' ').unwrap();
        assert!(largest.parse::<usize>().unwrap() <= FRAGMENT + 64 * 1032, "{parts}");
        assert_eq!(total, (4 << 20).to_string());
        assert_eq!(client.read_frame().payload, b"behind");
        client.goodbye();
        server.finish();
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
}
