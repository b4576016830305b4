//! Messages that a handler receives while they arrive.

#[path = "support/parts.rs"]
mod parts;
#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};

use bytes::Bytes;
use coracle::{
    BoxError, Cause, CloseCode, Closed, Flow, Handler, HandlerError, Incoming, Interrupted, Kind,
    Message, Outcome, Phase, Server, Session, Side,
};
use futures_lite::{AsyncReadExt, StreamExt};
use parts::*;
use pipe::*;
use support::*;

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
            // No faster than the server.
            busy.send_frame(PING, b"");
            assert_eq!(busy.read_frame().opcode, PONG);
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

// A message was taken over by the callback of another session, which is another task: the link waited for
// room and was not told of any.
#[test]
fn a_message_may_be_taken_by_another_callback_of_its_worker() {
    thread_local!(static LEFT: Cell<Option<Incoming>> = const { Cell::new(None) });
    let (sender, said) = heard();
    let server = start(Server::builder().workers(1).on_stream(
        async move |_: &Session, mut incoming: Incoming| match LEFT.take() {
            None => {
                LEFT.set(Some(incoming));
                let _ = sender.send(0);
            }
            Some(mut left) => {
                let _ = incoming.next().await;
                let _ = sender.send(collect(&mut left).await.bytes().len());
            }
        },
    ));
    let (mut giver, mut taker) = (Pipe::connect(&server), Pipe::connect(&server));
    // More than the window and the pipe hold.
    let bytes = frame(true, BINARY, &noise(300 * KIB));
    let (first, rest) = bytes.split_at(PIPE);
    giver.send(first);
    assert_eq!(said.next(), 0);
    let mut rest = rest;
    // The window is full when the pipe stays full, turn after turn.
    loop {
        let sent = giver.send_what_fits(rest);
        rest = &rest[sent..];
        for _ in 0..64 {
            taker.send_frame(PING, b"");
            assert_eq!(taker.read_frame().opcode, PONG);
        }
        if sent == 0 {
            break;
        }
    }
    taker.send_frame(BINARY, b"take it");
    giver.send(rest);
    assert_eq!(said.next(), 300 * KIB);
    giver.goodbye();
    taker.goodbye();
    server.finish();
}

/// One worker. The session of `/block` blocks it with its message until `go`; that of `/look` says how
/// many messages the session of `/busy` has received.
struct Turns {
    server: TestServer,
    blocked: Heard<()>,
    go: mpsc::Sender<()>,
    found: Heard<u64>,
    got: Heard<usize>,
}

impl Turns {
    fn start() -> Self {
        let (said, found) = heard();
        let (blocks, blocked) = heard();
        let (gots, got) = heard();
        let (go, wait) = mpsc::channel();
        let (wait, busy) = (Mutex::new(wait), Mutex::new(None::<Session>));
        let server = start(Server::builder().workers(1).on_stream(
            async move |session: &Session, mut incoming: Incoming| match session.path() {
                "/block" => {
                    blocks.send(()).unwrap();
                    wait.lock().unwrap().recv().unwrap();
                }
                "/look" => {
                    let busy = busy.lock().unwrap();
                    said.send(busy.as_ref().unwrap().traffic().messages_in).unwrap();
                }
                _ => {
                    *busy.lock().unwrap() = Some(session.clone());
                    let bytes = collect(&mut incoming).await.bytes();
                    gots.send(bytes.len()).unwrap();
                }
            },
        ));
        Self { server, blocked, go, found, got }
    }

    /// A client whose session waits for what it is sent.
    fn client(&self, path: &str) -> Pipe {
        let mut client = Pipe::connect_to(&self.server, path);
        client.send_frame(PING, b"");
        assert_eq!(client.read_frame().opcode, PONG);
        client
    }
}

// A message that had begun was given to the handler before the link had told anybody that its turn was
// over: while more arrived, nobody else of its worker had one.
#[test]
fn a_session_whose_messages_come_in_parts_lets_its_neighbours_have_their_turn() {
    let it = Turns::start();
    let mut busy = it.client("/busy");
    busy.send_frame(BINARY, b"x");
    it.got.next();
    let (mut blocks, mut looks) = (it.client("/block"), it.client("/look"));
    blocks.send_frame(TEXT, b"block");
    it.blocked.next();
    busy.send(&frame(true, BINARY, b"x").repeat(9000));
    looks.send_frame(TEXT, b"look");
    it.go.send(()).unwrap();
    let found = it.found.next();
    assert!(found <= 300, "{found} messages before anybody else");
    it.server.finish();
}

// The server answered a ping first, found that the peer had gone, and forgot the message that was there.
#[test]
fn a_message_in_front_of_the_end_is_not_lost() {
    let it = Turns::start();
    let (mut busy, mut blocks) = (it.client("/busy"), it.client("/block"));
    blocks.send_frame(TEXT, b"block");
    it.blocked.next();
    busy.send_frame(PING, b"");
    busy.send_frame(BINARY, b"important");
    drop(busy);
    it.go.send(()).unwrap();
    assert_eq!(it.got.next(), 9);
    blocks.goodbye();
    it.server.finish();
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
