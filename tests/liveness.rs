//! Who is still there, and what becomes of a peer that is not, reads nothing, or only pings.

#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use coracle::config::Timeouts;
use coracle::{Builder, Cause, Closed, Handler, Message, Phase, Server, Session, Side, Timer};
use pipe::*;
use support::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// For a deadline that must not be what the test waits for.
const FAR_AWAY: Duration = Duration::from_secs(600);

/// Many times what a TCP socket and its peer's hold together on any machine.
const CHUNKS: usize = 1024;
const CHUNK: usize = 64 * 1024;

fn with_timeouts<H: Handler>(builder: Builder<H>, set: impl FnOnce(&mut Timeouts)) -> Builder<H> {
    builder.configure(|config| set(&mut config.timeouts))
}

/// An echo server on one worker, whose sessions and records the test hears of.
struct Echo {
    server: TestServer,
    sessions: Heard<Session>,
    records: Heard<Closed>,
}

fn echo(set: impl FnOnce(&mut Timeouts)) -> Echo {
    let (opens, sessions) = heard();
    let (closes, records) = heard();
    let builder = Server::builder()
        .workers(1)
        .configure(|config| {
            config.limits.outbox_messages = 2 * CHUNKS;
            config.limits.outbox_bytes = 2 * CHUNKS * CHUNK;
        })
        .on_open(opened(&opens))
        .on_message(async |session, message| session.send(message).await)
        .on_close(record(&closes));
    Echo { server: start(with_timeouts(builder, set)), sessions, records }
}

impl Echo {
    /// A client over TCP, and its session.
    fn client(&self) -> (Raw, Session) {
        (self.server.client(), self.sessions.next())
    }

    /// A client in memory, and its session.
    fn pipe(&self) -> (Pipe, Session) {
        (Pipe::connect(&self.server), self.sessions.next())
    }

    /// A round trip of another session of the same worker: the turn in which something was seen to
    /// happen is over.
    fn settle(&self) {
        let (mut client, _) = self.pipe();
        client.echo("settled");
        client.goodbye();
        assert_eq!(self.records.next().cause, Cause::PeerClosed);
    }
}

/// Queues more than any socket takes.
fn overfill(session: &Session) {
    let chunk = Bytes::from(vec![7; CHUNK]);
    for _ in 0..CHUNKS {
        session.try_send(chunk.clone()).expect("room in the outbox");
    }
}

/// Reads pings and answers them until something else comes.
fn answer_pings(client: &mut Raw) -> Frame {
    loop {
        let frame = client.read_frame();
        if frame.opcode != PING {
            return frame;
        }
        client.send_frame(PONG, &frame.payload);
    }
}

// A server queued the pong while the socket was full, got `WouldBlock`, and did not ask to be woken
// for writing because "there were no messages": the pong left with the next message, minutes later,
// and the peer had given up long before.
#[test]
fn a_pong_that_met_a_full_pipe_leaves_as_soon_as_there_is_room() {
    let echo = echo(|_| {});
    let (mut client, session) = echo.pipe();
    session.try_send(vec![7; PIPEFUL]).unwrap();
    await_full_pipe(&session);
    let ping = frame(true, PING, b"are you there?");
    client.send(&ping);
    await_bytes_in(&session, ping.len());
    echo.settle();
    assert_eq!(session.traffic().bytes_out, PIPE as u64, "there was no room for the pong");
    assert_eq!(client.read_frame().payload.len(), PIPEFUL);
    let pong = client.read_frame();
    assert_eq!((pong.opcode, &pong.payload[..]), (PONG, &b"are you there?"[..]));
    client.goodbye();
    assert!(echo.records.next().clean);
    echo.server.finish();
}

// The same through the kernel: epoll was armed for reading only after a ping had been read, so
// nothing told the server that the peer had begun to read.
#[test]
fn a_pong_that_met_a_full_socket_overtakes_what_is_queued() {
    let echo = echo(|_| {});
    let (mut client, session) = echo.client();
    overfill(&session);
    let ping = frame(true, PING, b"still there?");
    client.send(&ping);
    await_bytes_in(&session, ping.len());
    let mut before = 0;
    loop {
        let frame = client.read_frame();
        match frame.opcode {
            BINARY => before += 1,
            PONG => {
                assert_eq!(frame.payload, b"still there?");
                break;
            }
            _ => panic!("{frame:?}"),
        }
    }
    assert!(before < CHUNKS, "the pong came behind the whole queue");
    for _ in before..CHUNKS {
        assert_eq!(client.read_frame().opcode, BINARY);
    }
    client.goodbye();
    let closed = echo.records.next();
    assert!(closed.clean, "{closed}");
    echo.server.finish();
}

// A pong was put behind the messages that were queued before it. With a large queue and a slow line
// it came after the peer's own deadline.
#[test]
fn a_pong_leaves_before_every_message_that_is_still_queued() {
    let echo = echo(|_| {});
    let (mut client, session) = echo.pipe();
    // The first batch: what is half-way out when the ping comes must be completed.
    session.try_send(vec![1; PIPEFUL + 1]).unwrap();
    await_full_pipe(&session);
    for _ in 0..1000 {
        session.try_send("queued").unwrap();
    }
    let ping = frame(true, PING, b"now");
    client.send(&ping);
    await_bytes_in(&session, ping.len());
    echo.settle();
    assert_eq!(client.read_frame().payload.len(), PIPEFUL + 1);
    assert_eq!(client.read_frame(), Frame { fin: true, opcode: PONG, payload: b"now".to_vec() });
    for _ in 0..1000 {
        assert_eq!(client.read_frame().payload, b"queued");
    }
    client.goodbye();
    echo.records.next();
    echo.server.finish();
}

// The same lane carries the application's own pings, and a ping that has not left yet is replaced.
#[test]
fn the_applications_ping_leaves_before_queued_messages_and_only_the_latest_does() {
    let echo = echo(|_| {});
    let (mut client, session) = echo.pipe();
    session.try_send(vec![1; PIPEFUL + 1]).unwrap();
    await_full_pipe(&session);
    session.try_send("queued").unwrap();
    assert!(session.ping(b"first"));
    assert!(session.ping(&[b'x'; 200]), "an open session takes pings");
    assert_eq!(client.read_frame().payload.len(), PIPEFUL + 1);
    let ping = client.read_frame();
    assert_eq!((ping.opcode, ping.payload), (PING, vec![b'x'; 125]));
    assert_eq!(client.read_frame().payload, b"queued");
    client.goodbye();
    echo.records.next();
    assert!(!session.ping(b"too late"), "an ended session takes none");
    echo.server.finish();
}

// A server marked the ping as sent when it was queued. The peer's receive window was full, the ping
// never left the machine, and a peer that was only slow was closed for "no pong".
#[test]
fn a_ping_that_cannot_leave_starts_no_pong_timer() {
    let echo = echo(|timeouts| {
        timeouts.ping = Some(ms(200));
        timeouts.pong = ms(200);
        timeouts.write_stall = ms(1000);
    });
    let (client, session) = echo.pipe();
    session.try_send(vec![7; PIPEFUL]).unwrap();
    await_full_pipe(&session);
    let closed = echo.records.next();
    assert_eq!((closed.cause, closed.timer), (Cause::WriteStalled, Some(Timer::WriteStall)));
    assert_eq!((closed.by, closed.phase, closed.clean), (Side::Server, Phase::Open, false));
    assert_eq!(closed.code, None, "nothing could be said");
    assert_eq!(closed.undelivered.messages, 0, "the message had left; the ping is no message");
    drop(client);
    echo.server.finish();
}

// The same when a message is stuck half-way and the ping is behind it.
#[test]
fn a_ping_behind_a_stuck_message_starts_no_pong_timer() {
    let echo = echo(|timeouts| {
        timeouts.ping = Some(ms(200));
        timeouts.pong = ms(200);
        timeouts.write_stall = ms(1000);
    });
    let (mut client, session) = echo.pipe();
    session.try_send(vec![7; 2 * PIPE]).unwrap();
    await_full_pipe(&session);
    let closed = echo.records.next();
    assert_eq!((closed.cause, closed.timer), (Cause::WriteStalled, Some(Timer::WriteStall)));
    assert_eq!((closed.undelivered.messages, closed.undelivered.bytes), (1, 2 * PIPE));
    // What the pipe held is all there is: no ping and no close frame was put into the message.
    assert_eq!(client.read_to_end().len(), PIPE);
    echo.server.finish();
}

// And through the kernel, which has a timer of its own for peers that do not take bytes: it must
// not end the session before the server's write-stall timer, and the record must name the latter.
#[test]
fn a_full_socket_is_the_write_stall_timers_business_and_nobody_elses() {
    let echo = echo(|timeouts| {
        timeouts.ping = Some(ms(200));
        timeouts.pong = ms(200);
        timeouts.write_stall = ms(1500);
    });
    let (client, session) = echo.client();
    overfill(&session);
    let closed = echo.records.next();
    assert_eq!((closed.cause, closed.timer), (Cause::WriteStalled, Some(Timer::WriteStall)));
    assert_eq!((closed.by, closed.phase), (Side::Server, Phase::Open));
    assert!(closed.undelivered.messages > 0, "{closed}");
    drop(client);
    echo.server.finish();
}

// A peer sent pings as fast as it could and read nothing. The server queued a pong for each one,
// outside of every bound, until it was out of memory.
#[test]
fn a_flood_of_pings_on_a_full_pipe_is_answered_by_the_latest_pong_only() {
    const PINGS: u32 = 100_000;
    let echo = echo(|_| {});
    let (mut client, session) = echo.pipe();
    session.try_send(vec![1; PIPEFUL + 1]).unwrap();
    await_full_pipe(&session);
    session.try_send("behind").unwrap();
    let mut flood = Vec::new();
    for number in 0..PINGS {
        flood.extend(frame(true, PING, &number.to_be_bytes()));
    }
    // A message behind them: when it has been handled, they have been, too.
    flood.extend(frame(true, TEXT, b"end"));
    client.send(&flood);
    eventually("the flood has been handled", || session.buffered().messages == 3);
    assert_eq!(session.traffic().bytes_out, PIPE as u64);
    assert_eq!(session.traffic().messages_in, 1, "pings are no messages");
    assert_eq!(client.read_frame().payload.len(), PIPEFUL + 1);
    let pong = client.read_frame();
    assert_eq!((pong.opcode, pong.payload), (PONG, (PINGS - 1).to_be_bytes().to_vec()));
    assert_eq!(client.read_frame().payload, b"behind", "there is one pong and no other");
    assert_eq!(client.read_frame().payload, b"end");
    client.goodbye();
    echo.records.next();
    echo.server.finish();
}

// The same with an empty queue and a real socket: the pongs that do leave come in order, the last one
// is always among them, and nothing is counted as waiting.
#[test]
fn a_flood_of_pings_is_answered_with_the_latest_pong_and_keeps_nothing() {
    const PINGS: u32 = 100_000;
    let echo = echo(|_| {});
    let (mut client, session) = echo.client();
    let mut flood = Vec::new();
    for number in 1..=PINGS {
        flood.extend(frame(true, PING, &number.to_be_bytes()));
    }
    client.send(&flood);
    await_bytes_in(&session, flood.len());
    echo.settle();
    assert_eq!(session.buffered(), coracle::Buffered::default());
    let (mut last, mut pongs) = (0, 0);
    while last < PINGS {
        let frame = client.read_frame();
        assert_eq!(frame.opcode, PONG, "{frame:?}");
        let number = u32::from_be_bytes(frame.payload.try_into().expect("the payload of a ping"));
        assert!(number > last, "pong {number} after {last}");
        last = number;
        pongs += 1;
    }
    assert_eq!(session.buffered(), coracle::Buffered::default());
    client.echo("as if nothing had been");
    let read = 6 * pongs + 24;
    eventually("what was read is all that was sent", || session.traffic().bytes_out == read);
    client.goodbye();
    echo.records.next();
    echo.server.finish();
}

// A client counted its pings and its pongs, and gave up a server that had answered the last of ten
// that came at once.
#[test]
fn pings_that_come_at_once_are_answered_one_by_one() {
    let echo = echo(|_| {});
    let (mut client, _) = echo.client();
    let pings: Vec<u8> = (0..10_u8).flat_map(|number| frame(true, PING, &[number])).collect();
    client.send(&pings);
    for number in 0..10 {
        let pong = client.read_frame();
        assert_eq!((pong.opcode, pong.payload), (PONG, vec![number]));
    }
    // So many that their answers are more than are kept at a time.
    let pings: Vec<u8> = (0..200_u8).flat_map(|number| frame(true, PING, &[number; 125])).collect();
    client.send(&pings);
    for number in 0..200 {
        let pong = client.read_frame();
        assert_eq!((pong.opcode, pong.payload), (PONG, vec![number; 125]));
    }
    client.goodbye();
    echo.records.next();
    echo.server.finish();
}

// The deadlines of a session were looked at only when it had nothing to read. A peer that never
// stopped sending and never read was never cut.
#[test]
fn a_peer_that_floods_pings_and_reads_nothing_is_write_stalled() {
    let echo = echo(|timeouts| timeouts.write_stall = ms(300));
    let (mut client, session) = echo.pipe();
    session.try_send(vec![1; 2 * PIPE]).unwrap();
    let flood = frame(true, PING, b"").repeat(10_000);
    eventually("the flood is cut off", || !client.try_send(&flood));
    let closed = echo.records.next();
    assert_eq!((closed.cause, closed.timer), (Cause::WriteStalled, Some(Timer::WriteStall)));
    assert_eq!(closed.undelivered.messages, 1);
    echo.server.finish();
}

// A client opened a connection, asked for much, and never read. The server kept its queue, its
// socket and its session until the client's kernel was restarted.
#[test]
fn a_peer_that_reads_nothing_is_cut_and_what_it_did_not_get_is_counted() {
    let echo = echo(|timeouts| timeouts.write_stall = ms(300));
    let (client, session) = echo.client();
    overfill(&session);
    let closed = echo.records.next();
    assert_eq!((closed.cause, closed.timer), (Cause::WriteStalled, Some(Timer::WriteStall)));
    assert_eq!((closed.by, closed.phase, closed.clean), (Side::Server, Phase::Open, false));
    assert_eq!(closed.code, None);
    let undelivered = closed.undelivered;
    assert!(undelivered.messages > 0, "{closed}");
    assert_eq!(undelivered.bytes, undelivered.messages * CHUNK);
    assert_eq!(session.buffered(), undelivered, "the handle says the same as the record");
    let sent = usize::try_from(session.traffic().messages_out).unwrap();
    assert_eq!(sent + undelivered.messages, CHUNKS, "each message is sent or undelivered");
    drop(client);
    echo.server.finish();
}

// The write-stall timer was not moved by progress: a peer on a slow line that read all the time
// was cut while bytes were flowing.
#[test]
fn a_peer_that_reads_slowly_is_not_stalled() {
    let echo = echo(|timeouts| timeouts.write_stall = ms(1000));
    let (mut slow, slow_session) = echo.pipe();
    let (stuck, stuck_session) = echo.pipe();
    slow_session.try_send(vec![7; 16 * 1024 * 1024]).unwrap();
    stuck_session.try_send(vec![7; 2 * PIPE]).unwrap();
    // The other session's end says when the time is over.
    let mut read = 0;
    let closed = loop {
        if let Some(closed) = echo.records.try_next() {
            break closed;
        }
        slow.read_array::<100>();
        read += 100;
        assert!(read < 15 * 1024 * 1024, "it has to be slow");
        std::thread::sleep(ms(1));
    };
    assert_eq!(closed.cause, Cause::WriteStalled);
    assert_eq!(closed.undelivered.bytes, 2 * PIPE, "it was the other one");
    assert!(slow_session.is_open());
    drop((slow, stuck));
    assert_eq!(echo.records.next().cause, Cause::PeerVanished);
    echo.server.finish();
}

// A client's process was stopped half-way, its kernel closed one direction, and the server kept the
// other open for hours: it only looked at whether it could still write.
#[test]
fn a_peer_that_closes_only_its_sending_side_has_vanished() {
    let echo = echo(|_| {});
    let (mut client, session) = echo.client();
    client.echo("hello");
    client.end_writing();
    let closed = echo.records.next();
    assert_eq!((closed.by, closed.cause), (Side::Peer, Cause::PeerVanished));
    assert_eq!((closed.phase, closed.clean, closed.timer), (Phase::Open, false, None));
    assert_eq!((closed.code, &*closed.reason), (None, ""));
    assert_eq!(client.read_to_end(), b"", "the socket is closed, without a close frame");
    assert!(!session.is_open());
    echo.server.finish();
}

// The same while a callback was busy: nobody read, so nobody noticed, and the callback went on
// sending to a peer that was gone.
#[test]
fn a_peer_that_closes_its_sending_side_is_noticed_while_a_handler_works() {
    let (opens, sessions) = heard();
    let (closes, records) = heard();
    let (go, wait) = smol::channel::bounded::<()>(1);
    let server = start(
        Server::builder()
            .on_open(opened(&opens))
            .on_message(async move |_: &Session, _: Message| {
                let _ = wait.recv().await;
            })
            .on_close(record(&closes)),
    );
    let mut client = server.client();
    let session = sessions.next();
    client.send_frame(TEXT, b"work");
    eventually("the message has been taken", || session.traffic().messages_in == 1);
    client.end_writing();
    eventually("the session has ended", || !session.is_open());
    assert_eq!(client.read_to_end(), b"", "and its socket is closed");
    assert!(records.try_next().is_none(), "callbacks do not overlap");
    go.try_send(()).unwrap();
    let closed = records.next();
    assert_eq!((closed.by, closed.cause), (Side::Peer, Cause::PeerVanished));
    server.finish();
}

// A phone drove into a tunnel. No FIN came, ever, and without a ping and its deadline the session
// stayed until the next restart.
#[test]
fn a_peer_that_vanishes_without_a_word_is_told_1001_after_an_unanswered_ping() {
    let echo = echo(|timeouts| {
        timeouts.ping = Some(ms(200));
        timeouts.pong = ms(200);
    });
    let (mut client, session) = echo.client();
    assert_eq!(client.read_frame().opcode, PING);
    let (code, reason) = client.read_close();
    assert_eq!((code, &*reason), (1001, "no answer to ping"));
    assert_eq!(client.read_to_end(), b"");
    let closed = echo.records.next();
    assert_eq!((closed.by, closed.cause), (Side::Server, Cause::PongTimeout));
    assert_eq!((closed.timer, closed.clean), (Some(Timer::Pong), false));
    assert_eq!(closed.code.map(|code| code.as_u16()), Some(1001));
    assert_eq!(&*closed.reason, "no answer to ping");
    assert_eq!(session.rtt(), None);
    echo.server.finish();
}

// What was queued for a peer that does not answer is not sent behind the back of the record: it is
// counted, and the 1001 is not held up by it.
#[test]
fn a_peer_that_answers_no_ping_keeps_nothing_waiting() {
    let echo = echo(|timeouts| {
        timeouts.ping = Some(ms(200));
        timeouts.pong = ms(400);
    });
    let (mut client, session) = echo.pipe();
    let ping = client.read_frame();
    assert_eq!(ping.opcode, PING);
    // After the ping, so that it cannot be in front of it: one message in the pipe, one stuck.
    session.try_send(vec![1; PIPEFUL]).unwrap();
    session.try_send(vec![2; PIPEFUL]).unwrap();
    let closed = echo.records.next();
    assert_eq!((closed.cause, closed.timer), (Cause::PongTimeout, Some(Timer::Pong)));
    assert_eq!(session.buffered(), closed.undelivered);
    let sent = session.traffic().messages_out;
    assert_eq!(sent + closed.undelivered.messages as u64, 2, "each is sent or undelivered");
    assert!(closed.undelivered.messages >= 1, "the pipe has no room for the second one");
    drop(client);
    echo.server.finish();
}

// Keep-alive was computed but never sent, because the timer was only looked at when bytes arrived.
// Elsewhere the first ping was sent and the second only when the first one's pong was overdue.
#[test]
fn a_silent_peer_is_pinged_again_and_again_and_a_pong_keeps_it() {
    let echo = echo(|timeouts| {
        timeouts.ping = Some(ms(200));
        timeouts.pong = FAR_AWAY;
    });
    let (mut client, session) = echo.client();
    let mut payloads = Vec::new();
    for _ in 0..4 {
        let ping = client.read_frame();
        assert_eq!(ping.opcode, PING, "{ping:?}");
        client.send_frame(PONG, &ping.payload);
        payloads.push(ping.payload);
    }
    payloads.dedup();
    assert_eq!(payloads.len(), 4, "each ping has a payload of its own");
    eventually("the round trip is known", || session.rtt().is_some());
    // It may be in the middle of the next ping.
    client.send_frame(TEXT, b"still here");
    assert_eq!(answer_pings(&mut client).payload, b"still here");
    drop(client);
    assert_eq!(echo.records.next().cause, Cause::PeerVanished);
    echo.server.finish();
}

// The round trip was computed from whatever pong came, also one that answered nothing
// (RFC 6455 section 5.5.3 allows unsolicited pongs), and from a ping that was still queued.
#[test]
fn the_round_trip_is_measured_by_the_matching_pong_only() {
    let echo = echo(|timeouts| {
        timeouts.ping = Some(ms(500));
        timeouts.pong = FAR_AWAY;
    });
    let (mut client, session) = echo.client();
    assert_eq!(session.rtt(), None);
    client.send_frame(PONG, b"unsolicited");
    client.echo("handled");
    assert_eq!(session.rtt(), None, "it answers no ping");
    let ping = client.read_frame();
    assert_eq!(ping.opcode, PING, "{ping:?}");
    client.send_frame(PONG, b"not that one");
    client.send_frame(PONG, b"");
    client.send_frame(TEXT, b"handled");
    let frame = loop {
        let frame = client.read_frame();
        if frame.opcode != PING {
            break frame;
        }
    };
    assert_eq!(frame.payload, b"handled");
    assert_eq!(session.rtt(), None, "they answer another ping");
    // One that is answered as it should be; on a slow machine an earlier one may have been late.
    while session.rtt().is_none() {
        let ping = client.read_frame();
        assert_eq!(ping.opcode, PING, "{ping:?}");
        client.send_frame(PONG, &ping.payload);
        client.send_frame(TEXT, b"pong before this");
        assert_eq!(answer_pings(&mut client).payload, b"pong before this");
    }
    drop(client);
    echo.records.next();
    echo.server.finish();
}

// A peer that uploaded a large file on a slow line was closed for "no pong": its pong was behind
// the file, in its own socket. Any byte shows that it lives.
#[test]
fn any_byte_is_a_sign_of_life() {
    let echo = echo(|timeouts| {
        timeouts.ping = Some(ms(200));
        timeouts.pong = FAR_AWAY;
    });
    let (mut client, _) = echo.client();
    let message = frame(true, TEXT, b"one byte for every ping, and never a pong");
    let (last, bytes) = message.split_last().unwrap();
    // Only a ping that has been answered is followed by another one.
    for byte in &bytes[..5] {
        let ping = client.read_frame();
        assert_eq!(ping.opcode, PING, "{ping:?}");
        client.send(&[*byte]);
    }
    client.send(&bytes[5..]);
    client.send(&[*last]);
    let frame = answer_pings(&mut client);
    assert_eq!(frame.payload, b"one byte for every ping, and never a pong");
    drop(client);
    assert_eq!(echo.records.next().cause, Cause::PeerVanished);
    echo.server.finish();
}

/// A client that does nothing but send pings, as fast as it can, and takes every pong; until it is
/// dropped.
struct Flood {
    stream: TcpStream,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    fn new(client: Raw) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let copy = || client.stream.try_clone().unwrap();
        let (mut reader, mut writer, stream) = (copy(), copy(), copy());
        let pings = frame(true, PING, b"").repeat(5000);
        let goes_on = Arc::clone(&over);
        let threads = vec![
            std::thread::spawn(move || {
                let mut pongs = vec![0; 1 << 16];
                while reader.read(&mut pongs).is_ok_and(|count| count > 0) {}
            }),
            std::thread::spawn(move || {
                while !goes_on.load(Ordering::Relaxed) && writer.write_all(&pings).is_ok() {}
            }),
        ];
        Self { stream, over, threads }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

// One client pinged in a loop, and the thread that served it served nobody else.
#[test]
fn a_peer_that_pings_as_fast_as_it_can_does_not_stop_the_others() {
    let echo = echo(|_| {});
    let (client, flooded) = echo.client();
    let flood = Flood::new(client);
    eventually("the flood has begun", || flooded.traffic().bytes_in > 1_000_000);
    let (mut client, _) = echo.client();
    for round in 0..200 {
        client.echo(&format!("message {round}"));
    }
    client.goodbye();
    assert_eq!(echo.records.next().cause, Cause::PeerClosed);
    assert!(flooded.is_open(), "it did nothing that is forbidden");
    assert!(flooded.traffic().bytes_out > 0, "and it is answered");
    drop(flood);
    assert_eq!(echo.records.next().cause, Cause::PeerVanished);
    echo.server.finish();
}

// An operator set an idle timeout to get rid of sessions that nobody uses. Every browser answers
// pings by itself, so none was ever idle.
#[test]
fn pings_and_pongs_do_not_make_a_session_busy() {
    let echo = echo(|timeouts| {
        timeouts.ping = Some(ms(100));
        timeouts.idle = Some(ms(600));
    });
    let (mut client, _) = echo.client();
    client.send_frame(PING, b"0");
    let (code, reason) = loop {
        let frame = client.read_frame();
        match frame.opcode {
            PONG => client.send_frame(PING, &frame.payload),
            PING => client.send_frame(PONG, &frame.payload),
            _ => break frame.close(),
        }
    };
    assert_eq!((code, &*reason), (1001, "idle"));
    client.send_frame(CLOSE, &1001_u16.to_be_bytes());
    client.read_to_end();
    let closed = echo.records.next();
    assert_eq!((closed.by, closed.cause), (Side::Server, Cause::IdleTimeout));
    assert_eq!((closed.timer, closed.clean), (Some(Timer::Idle), true));
    assert_eq!(closed.code.map(|code| code.as_u16()), Some(1001));
    echo.server.finish();
}

// The other half: messages do, and what ends is the silent session.
#[test]
fn messages_keep_a_session_from_being_idle() {
    let echo = echo(|timeouts| timeouts.idle = Some(ms(1000)));
    let (mut busy, session) = echo.client();
    let (mut silent, silent_session) = echo.client();
    while silent_session.is_open() {
        busy.echo("busy");
    }
    silent.expect_close(1001);
    let closed = echo.records.next();
    assert_eq!((closed.cause, closed.clean), (Cause::IdleTimeout, true));
    busy.echo("busy");
    assert!(session.is_open());
    busy.goodbye();
    assert_eq!(echo.records.next().cause, Cause::PeerClosed);
    echo.server.finish();
}

/// A server whose message handler works until the test lets it go on.
struct Slow {
    server: TestServer,
    sessions: Heard<Session>,
    records: Heard<Closed>,
    go: smol::channel::Sender<()>,
}

fn slow(set: impl FnOnce(&mut Timeouts)) -> Slow {
    let (opens, sessions) = heard();
    let (closes, records): (mpsc::Sender<Closed>, _) = heard();
    let (go, wait) = smol::channel::unbounded::<()>();
    let builder = Server::builder()
        .workers(1)
        .on_open(opened(&opens))
        .on_message(async move |session: &Session, message: Message| {
            if message.as_text() == Some("work") {
                let _ = wait.recv().await;
            }
            session.send(message).await
        })
        .on_close(record(&closes));
    Slow { server: start(with_timeouts(builder, set)), sessions, records, go }
}

// A handler waited for a database for longer than the pong deadline. The server did not read
// meanwhile, did not see the pongs that had arrived, and closed a live peer for "no pong".
#[test]
fn a_slow_handler_costs_a_live_peer_nothing() {
    let slow = slow(|timeouts| {
        timeouts.ping = Some(ms(200));
        timeouts.pong = ms(300);
    });
    let mut client = slow.server.client();
    slow.sessions.next();
    client.send_frame(TEXT, b"work");
    // Pings go out and their answers are heard, for several times the pong deadline.
    for _ in 0..4 {
        let ping = client.read_frame();
        assert_eq!(ping.opcode, PING, "{ping:?}");
        client.send_frame(PONG, &ping.payload);
    }
    // And the peer's own pings are answered.
    client.send_frame(PING, b"are you there?");
    let pong = answer_pings(&mut client);
    assert_eq!((pong.opcode, &pong.payload[..]), (PONG, &b"are you there?"[..]));
    slow.go.try_send(()).unwrap();
    assert_eq!(answer_pings(&mut client).payload, b"work");
    client.send_frame(CLOSE, &1000_u16.to_be_bytes());
    assert_eq!(answer_pings(&mut client).close().0, 1000);
    assert!(slow.records.next().clean);
    slow.server.finish();
}

// The same when the peer has sent another message meanwhile: then the server does not read, so the
// pongs are in its own socket, and silence is nobody's fault but its own.
#[test]
fn a_slow_handler_with_a_message_read_ahead_costs_a_live_peer_nothing() {
    let slow = slow(|timeouts| {
        timeouts.ping = Some(ms(200));
        timeouts.pong = ms(300);
        timeouts.idle = Some(ms(400));
        timeouts.close = ms(100);
    });
    let mut client = slow.server.client();
    let session = slow.sessions.next();
    client.send(&[frame(true, TEXT, b"work"), frame(true, TEXT, b"ahead")].concat());
    eventually("one message is read ahead", || session.traffic().messages_in == 2);
    // Several sessions that answer nothing come and go: each end is ping and pong, one after the
    // other.
    for _ in 0..2 {
        let silent = slow.server.client();
        slow.sessions.next();
        let closed = slow.records.next();
        assert!(
            matches!(closed.cause, Cause::PongTimeout | Cause::IdleTimeout),
            "it was the other one: {closed}"
        );
        drop(silent);
        assert!(session.is_open());
    }
    slow.go.try_send(()).unwrap();
    assert_eq!(answer_pings(&mut client).payload, b"work");
    assert_eq!(answer_pings(&mut client).payload, b"ahead");
    drop(client);
    slow.records.next();
    slow.server.finish();
}

// And the reverse: a handler at work is no sign of life of a peer that has gone.
#[test]
fn a_slow_handler_does_not_hide_a_dead_peer() {
    let slow = slow(|timeouts| {
        timeouts.ping = Some(ms(200));
        timeouts.pong = ms(300);
    });
    let mut client = slow.server.client();
    let session = slow.sessions.next();
    client.send_frame(TEXT, b"work");
    assert_eq!(client.read_frame().opcode, PING);
    assert_eq!(client.read_close().0, 1001);
    eventually("the session has ended", || !session.is_open());
    slow.go.try_send(()).unwrap();
    let closed = slow.records.next();
    assert_eq!((closed.cause, closed.timer), (Cause::PongTimeout, Some(Timer::Pong)));
    slow.server.finish();
}

#[test]
fn a_session_that_has_reached_its_lifetime_is_told_1001() {
    let echo = echo(|timeouts| {
        timeouts.lifetime = Some(ms(300));
        timeouts.lifetime_jitter = Some(ms(0));
    });
    let (mut client, _) = echo.client();
    // Traffic does not make it younger.
    let (code, reason) = loop {
        client.send_frame(TEXT, b"busy");
        let frame = client.read_frame();
        if frame.opcode != TEXT {
            break frame.close();
        }
    };
    assert_eq!((code, &*reason), (1001, "lifetime reached"));
    client.send_frame(CLOSE, &1001_u16.to_be_bytes());
    client.read_to_end();
    let closed = echo.records.next();
    assert_eq!((closed.by, closed.cause), (Side::Server, Cause::LifetimeReached));
    assert_eq!((closed.timer, closed.clean), (Some(Timer::Lifetime), true));
    assert!(closed.lived >= ms(300), "never before it: {closed}");
    echo.server.finish();
}

// After a restart all clients connected within a second, and exactly one lifetime later all of them
// came back within a second, for ever.
#[test]
fn sessions_that_began_together_do_not_reach_their_lifetimes_together() {
    const SESSIONS: usize = 64;
    let echo = echo(|timeouts| {
        timeouts.lifetime = Some(Duration::from_secs(60));
        timeouts.lifetime_jitter = Some(Duration::from_secs(60));
    });
    let clients: Vec<_> = (0..SESSIONS).map(|_| echo.pipe()).collect();
    // The youngest of 64 random lives of up to a minute: after fifteen seconds it would still be
    // there once in a hundred million runs.
    eventually("one has reached its lifetime", || {
        echo.server.handle.sessions().all().iter().any(|session| !session.is_open())
    });
    let open = clients.iter().filter(|(_, session)| session.is_open()).count();
    assert!(open > SESSIONS / 2, "and not the others: {open} are open");
    drop(clients);
    for _ in 0..SESSIONS {
        let closed = echo.records.next();
        assert!(matches!(closed.cause, Cause::LifetimeReached | Cause::PeerVanished), "{closed}");
    }
    echo.server.finish();
}
