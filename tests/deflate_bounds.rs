//! What permessage-deflate costs, through real sockets: its bounds, the turns of the neighbours, what cannot
//! be read, many sessions at once.

#[path = "support/blocks.rs"]
mod blocks;
#[path = "support/deflate.rs"]
mod deflate;
#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::sync::{Mutex, mpsc};
use std::thread;

use coracle::config::Deflate;
use coracle::{Message, Server, Session};
use deflate::*;
use flate2::{Compress, Compression};
use pipe::{PIPE, Pipe, await_full_pipe, opened};
use support::*;

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
