//! Messages that are sent while they come into being.

#[path = "support/parts.rs"]
mod parts;
#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Mutex, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use coracle::{
    BoxError, Cause, CloseCode, Incoming, Kind, Message, Phase, SendError, Server, Session, Side,
    Timer, WriteError,
};
use futures_lite::{AsyncRead, StreamExt, future};
use parts::*;
use pipe::*;
use support::*;

#[test]
fn what_is_written_arrives_as_one_message_in_fragments() {
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|config| config.limits.outbox_bytes = 64 * KIB);
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
    let it = Watched::start(|config| config.limits.outbox_bytes = BOUND);
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
    let it = Watched::start(|config| config.limits.outbox_bytes = BOUND);
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
    let it = Watched::start(|config| config.limits.outbox_bytes = 1000);
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
    let it = Watched::start(|config| config.limits.outbox_messages = BOUND);
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

// ---- A writer that writes nothing ----------------------------------------------------------------

/// Sends until there is no room, and one message more: what becomes of that.
fn send_too_much(session: &Session) -> std::thread::JoinHandle<Result<(), SendError>> {
    while session.try_send("behind").is_ok() {}
    let session = session.clone();
    std::thread::spawn(move || within(session.send("too much")))
}

// "A waiting send always ends", but behind a writer whose source said nothing more it did not: the kernel
// had everything, so no write stalled, and the peer answered its pings.
#[test]
fn a_writer_that_others_wait_for_in_vain_ends_its_session() {
    let it = Watched::start(|config| {
        config.timeouts.writer = ms(200);
        config.limits.outbox_messages = 3;
    });
    // One session has a message waiting, one a sender, one another writer.
    for kind in 0..3 {
        let (mut client, session) = it.pipe();
        let mut writer = session.message_writer(Kind::Text);
        within(writer.write("begun")).unwrap();
        assert_eq!(client.read_frame().payload, b"begun");
        let mut second = session.message_writer(Kind::Text);
        let (mut undelivered, mut sender) = (0, None);
        match kind {
            0 => {
                session.try_send("behind").unwrap();
                undelivered = 1;
            }
            1 => {
                sender = Some(send_too_much(&session));
                undelivered = 3;
            }
            _ => assert!(matches!(within(second.write("second")), Err(WriteError::Closed))),
        }
        assert_eq!(client.read_close(), (1011, "message not finished".into()));
        if let Some(sender) = sender {
            assert!(matches!(sender.join().unwrap(), Err(SendError::Closed(_))));
        }
        assert!(matches!(within(writer.write("late")), Err(WriteError::Closed)));
        client.send_frame(CLOSE, &1011_u16.to_be_bytes());
        let closed = it.records.next();
        assert_closed(&closed, Side::Server, Cause::WriterStalled, Phase::Closing, Some(1011));
        assert_eq!(closed.timer, Some(Timer::Writer), "{closed}");
        assert_eq!(closed.undelivered.messages, undelivered, "{closed}");
    }
    it.server.finish();
}

// The timer of the writer must not end those that nobody waits for, and those that go on.
#[test]
fn a_writer_may_take_its_time_if_nobody_waits_or_something_comes() {
    let it = Watched::start(|config| {
        config.timeouts.writer = ms(600);
        // Nobody answers the close frame.
        config.timeouts.close = ms(100);
    });
    let (mut alone, session) = it.pipe();
    let mut patient = session.message_writer(Kind::Text);
    within(patient.write("a")).unwrap();
    assert_eq!(alone.read_frame().payload, b"a");
    let (mut busy, busy_session) = it.pipe();
    let mut steady = busy_session.message_writer(Kind::Text);
    within(steady.write("b")).unwrap();
    assert_eq!(busy.read_frame().payload, b"b");
    busy_session.try_send("behind").unwrap();
    // The ends of others say when the time is over.
    for _ in 0..2 {
        let (mut client, session) = it.pipe();
        let mut writer = session.message_writer(Kind::Text);
        within(writer.write("c")).unwrap();
        session.try_send("behind").unwrap();
        let closed = loop {
            if let Some(closed) = it.records.try_next() {
                break closed;
            }
            within(steady.write("b")).unwrap();
            assert_eq!(busy.read_frame().payload, b"b");
        };
        assert_eq!((closed.cause, closed.timer), (Cause::WriterStalled, Some(Timer::Writer)));
        assert_eq!(client.read_frame().payload, b"c");
    }
    for (mut writer, mut client) in [(patient, alone), (steady, busy)] {
        within(writer.finish()).unwrap();
        assert!(client.read_frame().fin);
        drop(client);
        it.records.next();
    }
    it.server.finish();
}

/// Waits for so long as the timer of a writer takes, and does something all the while.
fn while_a_writer_is_ended(timeout: Duration, mut each: impl FnMut()) {
    let clock = Watched::start(|config| {
        config.timeouts.writer = timeout;
        config.timeouts.close = ms(100);
    });
    // Twice: the wheel is coarse, and something may have begun a little later.
    for _ in 0..2 {
        let (mut client, session) = clock.pipe();
        let mut writer = session.message_writer(Kind::Text);
        within(writer.write("c")).unwrap();
        assert_eq!(client.read_frame().payload, b"c");
        session.try_send("behind").unwrap();
        let (mut other, _) = clock.pipe();
        let closed = loop {
            if let Some(closed) = clock.records.try_next() {
                break closed;
            }
            other.echo("not too fast");
            each();
        };
        assert_eq!(closed.cause, Cause::WriterStalled);
        drop(other);
        clock.records.next();
    }
    clock.server.finish();
}

// The timer went on when the writer had finished: the session was ended later, for nothing.
#[test]
fn a_writer_that_has_finished_is_not_blamed_later() {
    let it = Watched::start(|config| config.timeouts.writer = ms(300));
    let (mut client, session) = it.pipe();
    let mut writer = session.message_writer(Kind::Text);
    within(writer.write("a")).unwrap();
    assert_eq!(client.read_frame().payload, b"a");
    session.try_send("behind").unwrap();
    // Turns in which it is seen that somebody waits.
    for _ in 0..2 {
        client.send_frame(PING, b"");
        assert_eq!(client.read_frame().opcode, PONG);
    }
    within(writer.finish()).unwrap();
    assert!(client.read_frame().fin);
    assert_eq!(client.read_frame().payload, b"behind");
    while_a_writer_is_ended(ms(300), || assert!(session.is_open()));
    it.finish(client, &session);
}

// A second writer that had waited for its turn, and given up, was taken for one that waits.
#[test]
fn a_writer_that_has_given_up_waits_no_longer() {
    let it = Watched::start(|config| config.timeouts.writer = ms(300));
    let (mut client, session) = it.pipe();
    let mut writer = session.message_writer(Kind::Text);
    within(writer.write("a")).unwrap();
    assert_eq!(client.read_frame().payload, b"a");
    let mut second = session.message_writer(Kind::Text);
    assert!(poll_once(pin!(second.write("b"))).is_pending());
    for _ in 0..2 {
        client.send_frame(PING, b"");
        assert_eq!(client.read_frame().opcode, PONG);
    }
    while_a_writer_is_ended(ms(300), || assert!(session.is_open()));
    within(writer.finish()).unwrap();
    assert!(client.read_frame().fin);
    within(second.finish()).unwrap();
    assert_eq!(read_message(&mut client).1, b"b");
    it.finish(client, &session);
}

/// Sends messages that nobody wants, as fast as they are taken, until the server has closed. It reads, too:
/// a peer that takes nothing would be to blame.
fn flood(mut client: Pipe) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let flood = frame(true, BINARY, b"x").repeat(9000);
        while client.try_send(&flood) && client.discard() {}
    })
}

/// A server that throws away what it gets.
fn ignoring(timeout: Duration) -> Watched {
    let (opens, sessions) = heard();
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .workers(1)
            .configure(|config| {
                config.timeouts.writer = timeout;
                config.timeouts.close = ms(100);
            })
            .on_open(opened(&opens))
            .on_message(async |_: &Session, _: Message| {})
            .on_close(record(&closes)),
    );
    Watched { server, sessions, records }
}

// Who waits for whom was looked at only when the session had nothing to read.
#[test]
fn a_peer_that_keeps_the_session_busy_saves_no_writer_and_harms_none() {
    let it = ignoring(ms(600));
    let (client, session) = it.pipe();
    let mut steady = session.message_writer(Kind::Text);
    within(steady.write("b")).unwrap();
    session.try_send("behind").unwrap();
    let flooding = flood(client);
    while_a_writer_is_ended(ms(600), || within(steady.write("b")).unwrap());
    assert!(session.is_open());
    // From now on it writes nothing.
    assert_eq!(it.records.next().cause, Cause::WriterStalled);
    flooding.join().unwrap();
    drop(steady);
    it.server.finish();
}

// A writer had written all the time, but the worker was kept from sending it.
#[test]
fn a_writer_is_not_blamed_for_a_busy_worker() {
    let (opens, sessions) = heard();
    let (blocks, blocked) = heard();
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let server = start(
        Server::builder()
            .workers(1)
            .configure(|config| config.timeouts.writer = ms(600))
            .on_open(opened(&opens))
            .on_message(async move |_: &Session, _: Message| {
                blocks.send(()).unwrap();
                wait.lock().unwrap().recv().unwrap();
            }),
    );
    let mut client = Pipe::connect(&server);
    let session = sessions.next();
    let mut writer = session.message_writer(Kind::Text);
    within(writer.write("b")).unwrap();
    assert_eq!(client.read_frame().payload, b"b");
    session.try_send("behind").unwrap();
    for _ in 0..2 {
        client.send_frame(PING, b"");
        assert_eq!(client.read_frame().opcode, PONG);
    }
    let mut other = Pipe::connect(&server);
    other.send_frame(TEXT, b"block");
    blocked.next();
    while_a_writer_is_ended(ms(600), || within(writer.write("b")).unwrap());
    go.send(()).unwrap();
    within(writer.finish()).unwrap();
    while !client.read_frame().fin {}
    assert_eq!(client.read_frame().payload, b"behind");
    client.goodbye();
    other.goodbye();
    server.finish();
}

// While the peer takes nothing, it is the peer that is waited for.
#[test]
fn a_writer_is_not_blamed_for_a_peer_that_takes_nothing() {
    let it = Watched::start(|config| {
        config.timeouts.writer = ms(100);
        config.timeouts.write_stall = ms(600);
    });
    let (client, session) = it.pipe();
    fill(&session);
    let mut writer = session.message_writer(Kind::Text);
    within(writer.write("queued")).unwrap();
    session.try_send("behind").unwrap();
    let closed = it.records.next();
    assert_eq!((closed.cause, closed.timer), (Cause::WriteStalled, Some(Timer::WriteStall)));
    drop((writer, client));
    it.server.finish();
}

// ---- Two writers --------------------------------------------------------------------------------

#[test]
fn two_writers_take_turns() {
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|config| config.limits.outbox_bytes = 20_000);
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|config| config.limits.outbox_bytes = 1000);
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|_| {});
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
    let it = Watched::start(|_| {});
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
