//! The sending side: bounds, room that is waited for, and senders on any thread.

#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use coracle::{
    Buffered, Cause, CloseCode, Message, Phase, Prepared, SendError, Server, Session, Side, Timer,
};
use pipe::*;
use support::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Polls once, without a waker that would do anything.
fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_full_outbox_gives_the_message_back_and_send_waits_for_room() {
    let quiet = Watched::start(|config| config.limits.outbox_messages = 3);
    let (mut client, session) = quiet.pipe();
    session.try_send(vec![7; 2 * PIPE]).unwrap();
    await_full_pipe(&session);
    session.try_send("two").unwrap();
    session.try_send("three").unwrap();
    assert_eq!(session.buffered().messages, 3);
    match session.try_send("four") {
        Err(SendError::Full(message)) => assert_eq!(message.as_text(), Some("four")),
        other => panic!("{other:?}"),
    }
    let mut waiting = pin!(session.send("four"));
    assert!(poll_once(waiting.as_mut()).is_pending());
    assert_eq!(session.buffered().messages, 3, "nothing of it is queued");
    assert_eq!(client.read_frame().payload.len(), 2 * PIPE);
    within(waiting).expect("there is room now");
    for text in ["two", "three", "four"] {
        assert_eq!(client.read_frame().payload, text.as_bytes());
    }
    client.goodbye();
    quiet.records.next();
    quiet.server.finish();
}

#[test]
fn the_outbox_is_bounded_in_bytes_too() {
    let quiet = Watched::start(|config| config.limits.outbox_bytes = 100_000);
    let (mut client, session) = quiet.pipe();
    session.try_send(vec![1; 90_000]).unwrap();
    await_full_pipe(&session);
    session.try_send(vec![2; 10_000]).unwrap();
    assert_eq!(session.buffered(), {
        let mut expected = Buffered::default();
        (expected.messages, expected.bytes) = (2, 100_000);
        expected
    });
    assert!(matches!(session.try_send("x"), Err(SendError::Full(_))));
    assert_eq!(client.read_frame().payload.len(), 90_000);
    assert_eq!(client.read_frame().payload.len(), 10_000);
    eventually("everything has left", || session.buffered() == Buffered::default());
    // A message that is larger than the whole bound is taken when it is alone.
    session.try_send(vec![3; 200_000]).unwrap();
    assert!(matches!(session.try_send("x"), Err(SendError::Full(_))));
    assert_eq!(client.read_frame().payload.len(), 200_000);
    client.goodbye();
    quiet.records.next();
    quiet.server.finish();
}

// A send raced against a timer was dropped while it waited: half of a frame was out, and the stream
// was broken; or the message went out later although the caller had been told that it did not.
#[test]
fn a_cancelled_send_has_queued_all_or_nothing() {
    let quiet = Watched::start(|config| config.limits.outbox_messages = 2);
    let (mut client, session) = quiet.pipe();
    // With room it is queued at the first poll, and dropping it later changes nothing.
    assert!(poll_once(pin!(session.send(vec![1; 2 * PIPE]))).is_ready());
    await_full_pipe(&session);
    assert!(poll_once(pin!(session.send("queued"))).is_ready());
    for _ in 0..100 {
        assert!(poll_once(pin!(session.send("cancelled"))).is_pending());
    }
    drop(session.send("never polled"));
    // One that is dropped just when it could go on takes nobody's place.
    let mut survivor = pin!(session.send("survivor"));
    {
        let mut cancelled = pin!(session.send("cancelled"));
        assert!(poll_once(cancelled.as_mut()).is_pending());
        assert!(poll_once(survivor.as_mut()).is_pending());
        assert_eq!(client.read_frame().payload.len(), 2 * PIPE);
        assert_eq!(client.read_frame().payload, b"queued");
        eventually("there is room", || session.buffered().messages == 0);
    }
    within(survivor).unwrap();
    assert_eq!(client.read_frame().payload, b"survivor");
    session.close(CloseCode::NORMAL, "");
    assert_eq!(client.read_close().0, 1000, "nothing that was cancelled comes after all");
    drop(client);
    quiet.records.next();
    quiet.server.finish();
}

// Whoever waited for room when the session ended waited for ever.
#[test]
fn a_send_that_waits_is_told_when_the_session_ends() {
    let quiet = Watched::start(|config| config.limits.outbox_messages = 1);
    let (client, session) = quiet.pipe();
    session.try_send(vec![1; 2 * PIPE]).unwrap();
    await_full_pipe(&session);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| match within(session.send("waiting")) {
                    Err(SendError::Closed(message)) => message,
                    other => panic!("{other:?}"),
                })
            })
            .collect();
        // Not before the first of them had a chance to wait; either order must work.
        std::thread::yield_now();
        drop(client);
        for thread in waiting {
            assert_eq!(thread.join().unwrap().as_text(), Some("waiting"));
        }
    });
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerVanished, Phase::Open, None);
    assert_eq!(closed.undelivered.messages, 1);
    quiet.server.finish();
}

// The same inside a handler: it sent to a peer that read nothing, and hung there.
#[test]
fn a_handler_that_sends_to_a_stalled_peer_gets_its_message_back() {
    let (closes, records) = heard();
    let (backs, back) = heard();
    let server = start(
        Server::builder()
            .configure(|config| {
                config.timeouts.write_stall = ms(300);
                config.limits.outbox_messages = 1;
            })
            .on_message(async move |session: &Session, message: Message| {
                loop {
                    if let Err(error) = session.send(vec![7; PIPE]).await {
                        return backs.send((error.into_message().len(), message)).unwrap();
                    }
                }
            })
            .on_close(record(&closes)),
    );
    let mut client = Pipe::connect(&server);
    client.send_frame(TEXT, b"send me everything");
    assert_eq!(back.next(), (PIPE, Message::from("send me everything")));
    let closed = records.next();
    assert_closed(&closed, Side::Server, Cause::WriteStalled, Phase::Open, None);
    assert_eq!(closed.timer, Some(Timer::WriteStall));
    drop(client);
    server.finish();
}

// Sending from outside of the server's own threads was queued and left with the next message that
// came in.
#[test]
fn messages_are_sent_from_any_thread_and_any_executor() {
    const EACH: usize = 200;
    let quiet = Watched::start(|config| config.limits.outbox_messages = 10);
    let (mut client, session) = quiet.client();
    client.echo("awake");
    let by_smol = smol::spawn({
        let session = session.clone();
        async move {
            for number in 0..EACH {
                session.send(format!("smol {number}")).await.unwrap();
            }
        }
    });
    let threads: Vec<_> = (0..3)
        .map(|thread| {
            let session = session.clone();
            std::thread::spawn(move || {
                // A thread without any executor: the future alone.
                for number in 0..EACH {
                    let send = session.send(format!("thread-{thread} {number}"));
                    futures_lite::future::block_on(send).unwrap();
                }
            })
        })
        .collect();
    let mut next: std::collections::HashMap<String, usize> = Default::default();
    for _ in 0..4 * EACH {
        let text = String::from_utf8(client.read_frame().payload).unwrap();
        let (sender, number) = text.split_once(' ').expect("a name and a number");
        let expected = next.entry(sender.to_owned()).or_default();
        assert_eq!(number.parse(), Ok(*expected), "in the order of {sender}");
        *expected += 1;
    }
    assert_eq!(next.len(), 4);
    within(by_smol);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    client.goodbye();
    quiet.records.next();
    quiet.server.finish();
}

// A message for many: it is bounded, counted and ordered like any other.
#[test]
fn a_prepared_message_is_a_message_like_any_other() {
    let it = Watched::start(|config| config.limits.outbox_messages = 3);
    let (mut client, session) = it.pipe();
    session.try_send(vec![7; 2 * PIPE]).unwrap();
    await_full_pipe(&session);
    let prepared = Prepared::new("for many");
    session.try_send_prepared(&prepared).unwrap();
    session.try_send("between").unwrap();
    assert_eq!(session.buffered().messages, 3);
    match session.try_send_prepared(&prepared) {
        Err(SendError::Full(message)) => assert_eq!(message.as_text(), Some("for many")),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.read_frame().payload.len(), 2 * PIPE);
    let frame = client.read_frame();
    assert_eq!((frame.opcode, &frame.payload[..]), (TEXT, &b"for many"[..]));
    assert_eq!(client.read_frame().payload, b"between");
    let other = session.clone();
    it.finish(client, &session);
    match other.try_send_prepared(&prepared) {
        Err(SendError::Closed(message)) => assert_eq!(message.as_text(), Some("for many")),
        other => panic!("{other:?}"),
    }
}
