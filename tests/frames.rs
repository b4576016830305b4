//! Sessions of length-prefixed frames: what arrives, what is sent, and how they end.

#[path = "support/framed.rs"]
mod framed;
#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::future::Future;
use std::net::Shutdown;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use coracle::{
    BoxError, Buffered, Cause, CloseCode, Flow, Incoming, Kind, Message, Phase, Prepared, Protocol,
    SendError, Server, Session, Side, Timer, WriteError,
};
use framed::*;
use futures_lite::io::Cursor;
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
fn messages_of_every_size_come_back_and_are_binary() {
    let it = Plain::start(|config| config.limits.message_bytes = 3 << 20);
    let (mut client, session) = it.client();
    assert_eq!(session.protocol(), Protocol::Frames);
    assert_eq!((session.path(), session.query(), session.subprotocol()), ("/", None, None));
    assert_eq!(session.peer_addr(), Some(client.stream.local_addr().unwrap()));
    let sizes = [0, 1, 3, 4, 5, 125, 126, 4095, 4096, 65_535, 65_536, 1 << 20, 3 << 20];
    for size in sizes {
        client.echo_prefixed(&pattern(size));
    }
    let bytes: usize = sizes.iter().map(|size| size + 4).sum();
    eventually("all has been counted", || session.traffic().messages_out == sizes.len() as u64);
    let traffic = session.traffic();
    assert_eq!((traffic.messages_in, traffic.bytes_in), (sizes.len() as u64, bytes as u64));
    assert_eq!(traffic.bytes_out, bytes as u64);
    it.finish(client);
}

#[test]
fn a_frame_cut_at_any_byte_is_the_same_frame() {
    let it = Plain::start(|_| {});
    let (mut client, session) = it.client();
    let frame = prefixed(b"hello");
    let mut sent = 0;
    for at in 0..=frame.len() {
        let (one, two) = frame.split_at(at);
        client.send(one);
        sent += one.len();
        // So that they cannot come in one read.
        await_bytes_in(&session, sent);
        client.send(two);
        sent += two.len();
        assert_eq!(client.read_prefixed(), b"hello", "cut at {at}");
    }
    for byte in &frame {
        client.send(&[*byte]);
        sent += 1;
        await_bytes_in(&session, sent);
    }
    assert_eq!(client.read_prefixed(), b"hello");
    it.finish(client);
}

#[test]
fn many_frames_in_one_segment_are_many_messages_in_order() {
    let it = Plain::start(|_| {});
    let (mut client, _) = it.client();
    let all: Vec<u8> = (0..1000_u32).flat_map(|n| prefixed(&n.to_be_bytes())).collect();
    client.send(&all);
    for n in 0..1000_u32 {
        assert_eq!(client.read_prefixed(), n.to_be_bytes());
    }
    it.finish(client);
}

#[test]
fn a_frame_above_the_limit_ends_the_session_behind_what_was_queued() {
    let it = Plain::start(|config| config.limits.message_bytes = 1000);
    let claims = [1001, 1 << 24, u32::MAX];
    for (claim, behind) in claims.into_iter().flat_map(|claim| [(claim, 0), (claim, 10_000)]) {
        let (mut client, _) = it.client();
        client.echo_prefixed(&pattern(1000));
        let too_long = [&claim.to_be_bytes()[..], &vec![7; behind]].concat();
        client.send(&[prefixed(b"before"), too_long].concat());
        assert_eq!(client.read_prefixed(), b"before");
        client.expect_end();
        client.end_writing();
        let closed = it.records.next();
        assert_closed(&closed, Side::Peer, Cause::Violation, Phase::Closing, Some(1009));
        assert_eq!((&*closed.reason, closed.clean), ("message too big", false));
    }
    it.server.finish();
}

// A page in a browser can make it send a request to any port.
#[test]
fn a_request_that_goes_astray_is_a_frame_that_is_too_long() {
    let it = Plain::start(|config| config.limits.message_bytes = 1 << 30);
    for request in [handshake("/"), "POST / HTTP/1.1\r\n\r\n".into(), "\u{16}\u{3}\u{1}".into()] {
        let (mut client, _) = it.client();
        client.send(request.as_bytes());
        if request.len() > 3 {
            client.expect_end();
            client.end_writing();
            let closed = it.records.next();
            assert_eq!(closed.code, Some(CloseCode::TOO_BIG), "{closed}");
        } else {
            client.end_writing();
            client.expect_end();
            assert_eq!(it.records.next().cause, Cause::Truncated, "three bytes are no frame");
        }
    }
    it.server.finish();
}

#[test]
fn text_is_sent_as_its_bytes_and_a_prepared_message_is_one_frame_for_all() {
    let it = Plain::start(|_| {});
    let (mut one, first) = it.client();
    let (mut two, second) = it.client();
    for payload in ["grüße".to_owned(), "x".repeat(100_000)] {
        first.try_send(&*payload).unwrap();
        assert!(one.read_prefixed() == payload.as_bytes());
        let prepared = Prepared::new(payload.clone());
        for session in [&first, &second] {
            session.try_send_prepared(&prepared).unwrap();
        }
        assert!(one.read_prefixed() == payload.as_bytes());
        assert!(two.read_prefixed() == payload.as_bytes());
    }
    drop(two);
    it.records.next();
    it.finish(one);
}

#[test]
fn a_writer_collects_a_message_which_then_is_sent_whole() {
    let it = Plain::start(|config| config.limits.message_bytes = 100_000);
    let (mut client, session) = it.client();
    let mut writer = session.message_writer(Kind::Binary);
    for piece in pattern(100_000).chunks(30_000) {
        within(writer.write(piece.to_vec())).unwrap();
    }
    // Nobody waits behind it.
    within(session.send("in between")).unwrap();
    assert_eq!(client.read_prefixed(), b"in between");
    match within(writer.write("x")) {
        Err(WriteError::TooBig) => {}
        other => panic!("{other:?}"),
    }
    within(writer.finish()).expect("what had been taken is still there");
    assert!(client.read_prefixed() == pattern(100_000));
    assert!(matches!(within(writer.finish()), Err(WriteError::Closed)));
    // One that is abandoned has sent nothing.
    let mut abandoned = session.message_writer(Kind::Text);
    within(abandoned.write("half of")).unwrap();
    drop(abandoned);
    let mut text = session.message_writer(Kind::Text);
    assert!(matches!(within(text.write(b"\xFF".to_vec())), Err(WriteError::NotUtf8)));
    within(text.write("ä".as_bytes()[..1].to_vec())).unwrap();
    assert!(matches!(within(text.finish()), Err(WriteError::NotUtf8)));
    within(text.write("ä".as_bytes()[1..].to_vec())).unwrap();
    within(text.finish()).unwrap();
    assert_eq!(client.read_prefixed(), "ä".as_bytes());
    within(session.message_writer(Kind::Binary).finish()).unwrap();
    assert_eq!(client.read_prefixed(), b"");
    let source = pattern(70_000);
    assert_eq!(within(session.send_from(Kind::Binary, Cursor::new(&source))).unwrap(), 70_000);
    assert!(client.read_prefixed() == source);
    let too_long = Cursor::new(pattern(100_001));
    assert!(matches!(within(session.send_from(Kind::Binary, too_long)), Err(WriteError::TooBig)));
    client.echo_prefixed(b"not disturbed");
    let other = session.clone();
    it.finish(client);
    assert!(matches!(
        within(other.message_writer(Kind::Binary).write("x")),
        Err(WriteError::Closed)
    ));
}

#[test]
fn a_finish_that_waits_for_room_and_is_cancelled_has_lost_nothing() {
    let it = Plain::start(|config| config.limits.outbox_messages = 1);
    let (mut client, session) = it.pipe();
    session.try_send(vec![7; 2 * PIPE]).unwrap();
    await_full_pipe(&session);
    let mut writer = session.message_writer(Kind::Binary);
    within(writer.write("one ")).unwrap();
    for _ in 0..3 {
        assert!(poll_once(pin!(writer.finish())).is_pending());
    }
    within(writer.write("message")).unwrap();
    {
        let mut finish = pin!(writer.finish());
        assert!(poll_once(finish.as_mut()).is_pending());
        assert_eq!(client.read_prefixed().len(), 2 * PIPE);
        within(finish).unwrap();
    }
    assert_eq!(client.read_prefixed(), b"one message");
    client.end_writing();
    client.expect_end();
    assert!(it.records.next().clean);
    it.server.finish();
}

#[test]
fn a_message_is_received_in_parts_if_the_handler_wants_it() {
    let (reports, got) = heard();
    let (closes, records) = heard();
    let server = start_frames(
        Server::builder()
            .configure(|config| {
                config.limits.message_bytes = 10;
                config.limits.stream_bytes = 1 << 20;
            })
            .on_stream(async move |_: &Session, mut incoming: Incoming| {
                assert_eq!(incoming.kind(), Kind::Binary);
                let mut bytes = Vec::new();
                while let Some(part) = incoming.next().await {
                    match part {
                        Ok(part) => bytes.extend_from_slice(&part),
                        Err(error) => {
                            let _ = reports.send((bytes, false));
                            return Err(BoxError::from(error));
                        }
                    }
                }
                let _ = reports.send((bytes, true));
                Ok(())
            })
            .on_close(record(&closes)),
    );
    let mut client = Raw::connect(frames_addr(&server));
    for size in [0, 1, 11, 16 * 1024, 16 * 1024 + 1, 1 << 20] {
        client.send_prefixed(&pattern(size));
        assert!(got.next() == (pattern(size), true), "{size} bytes");
    }
    // What has arrived of a message is there before the rest of it.
    client.send(&prefixed(b"interrupted")[..9]);
    client.end_writing();
    assert_eq!(got.next(), (b"inter".to_vec(), false));
    client.expect_end();
    let closed = records.next();
    assert_closed(&closed, Side::Peer, Cause::Truncated, Phase::Open, None);
    let mut client = Raw::connect(frames_addr(&server));
    client.send(&((1_u32 << 20) + 1).to_be_bytes());
    client.expect_end();
    client.end_writing();
    assert_eq!(records.next().code, Some(CloseCode::TOO_BIG));
    server.finish();
}

#[test]
fn the_end_of_the_peers_stream_between_two_frames_is_its_goodbye() {
    let it = Plain::start(|_| {});
    let (mut client, session) = it.client();
    client.send(&[prefixed(b"one"), prefixed(b"two")].concat());
    client.end_writing();
    assert_eq!(client.read_prefixed(), b"one");
    assert_eq!(client.read_prefixed(), b"two");
    client.expect_end();
    let closed = it.records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerClosed, Phase::Closing, None);
    assert!(closed.clean && closed.timer.is_none(), "{closed}");
    assert_eq!(closed.undelivered, Buffered::default());
    match session.try_send("too late") {
        Err(SendError::Closed(message)) => assert_eq!(message.as_text(), Some("too late")),
        other => panic!("{other:?}"),
    }
    // One that never says anything.
    let (client, _) = it.client();
    drop(client);
    let closed = it.records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerClosed, Phase::Closing, None);
    it.server.finish();
}

// A client sends everything, ends its stream and reads the answers. The end was heeded while the handler
// waited for room for the last of them, which then was refused.
#[test]
fn a_peer_that_has_sent_everything_still_gets_every_answer() {
    let it = Plain::start(|config| config.limits.outbox_messages = 1);
    let (mut client, session) = it.pipe();
    session.try_send(vec![7; 2 * PIPE]).unwrap();
    await_full_pipe(&session);
    let answered = prefixed(b"the handler waits with this one");
    client.send(&answered);
    await_bytes_in(&session, answered.len());
    client.end_writing();
    // Whenever the end is read, the answer is still to come.
    assert_eq!(client.read_prefixed().len(), 2 * PIPE);
    assert_eq!(client.read_prefixed(), b"the handler waits with this one");
    client.expect_end();
    let closed = it.records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerClosed, Phase::Closing, None);
    assert!(closed.clean, "{closed}");
    it.server.finish();
}

// The handler that waits for something else than its peer must not keep the session.
#[test]
fn a_callback_that_goes_on_after_the_peers_end_has_the_time_for_closing() {
    let (closes, records) = heard();
    let server = start_frames(
        Server::builder()
            .configure(|config| config.timeouts.close = ms(200))
            .on_open(async |session: &Session| session.shutdown().stopping().await)
            .on_close(record(&closes)),
    );
    let mut client = Raw::connect(frames_addr(&server));
    client.end_writing();
    client.expect_end();
    let closed = records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerClosed, Phase::Closing, None);
    assert_eq!((closed.timer, closed.clean), (Some(Timer::Close), false));
    server.finish();
}

#[test]
fn the_end_of_the_peers_stream_inside_of_a_frame_is_no_goodbye() {
    let it = Plain::start(|_| {});
    for cut in [1, 3, 4, 8] {
        let (mut client, _) = it.client();
        client.echo_prefixed(b"whole");
        client.send(&prefixed(b"hello")[..cut]);
        client.end_writing();
        client.expect_end();
        let closed = it.records.next();
        assert_closed(&closed, Side::Peer, Cause::Truncated, Phase::Open, None);
        assert!(!closed.clean);
    }
    let (mut client, _) = it.client();
    client.echo_prefixed(b"whole");
    client.reset();
    let closed = it.records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerVanished, Phase::Open, None);
    it.server.finish();
}

#[test]
fn a_close_delivers_what_is_queued_and_is_clean_when_the_peer_ends_too() {
    let it = Plain::start(|_| {});
    let (mut client, session) = it.client();
    session.try_send(pattern(500_000)).unwrap();
    session.try_send("last").unwrap();
    session.close(CloseCode::new(4321).unwrap(), "enough");
    assert!(client.read_prefixed() == pattern(500_000));
    assert_eq!(client.read_prefixed(), b"last");
    client.expect_end();
    // Whatever it still says is thrown away, also half of a frame, and does not reset the connection.
    client.send(&[prefixed(b"not for anybody"), vec![0, 0]].concat());
    assert_eq!(it.records.try_next().map(|closed| closed.cause), None, "it waits for the peer");
    client.end_writing();
    let closed = it.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(4321));
    assert_eq!((&*closed.reason, closed.clean, closed.timer), ("enough", true, None));
    it.server.finish();
}

#[test]
fn a_peer_that_does_not_end_its_stream_is_awaited_until_the_close_timer() {
    let it = Plain::start(|config| config.timeouts.close = ms(200));
    let (mut client, session) = it.client();
    session.close(CloseCode::NORMAL, "");
    client.expect_end();
    let closed = it.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1000));
    assert_eq!((closed.clean, closed.timer), (false, Some(Timer::Close)));
    client.stream.shutdown(Shutdown::Both).unwrap();
    it.server.finish();
}

#[test]
fn a_handler_ends_its_session_by_what_it_returns() {
    let (closes, records) = heard();
    let server = start_frames(
        Server::builder()
            .on_message(async |session: &Session, message: Message| {
                if message.as_bytes() == b"fail" {
                    return Err(BoxError::from("as the test asks"));
                }
                session.send(message).await?;
                Ok(Flow::Close(CloseCode::POLICY, "one is enough".into()))
            })
            .on_close(record(&closes)),
    );
    let ends: [(&[u8], _, _); 2] =
        [(b"hello", Cause::Requested, 1008), (b"fail", Cause::HandlerFailed, 1011)];
    for (payload, cause, code) in ends {
        let mut client = Raw::connect(frames_addr(&server));
        client.send_prefixed(payload);
        if cause == Cause::Requested {
            assert_eq!(client.read_prefixed(), payload);
        }
        client.expect_end();
        drop(client);
        let closed = records.next();
        assert_closed(&closed, Side::Server, cause, Phase::Closing, Some(code));
        assert!(closed.clean, "{closed}");
    }
    server.finish();
}

#[test]
fn an_abort_ends_at_once() {
    let it = Plain::start(|_| {});
    let (mut client, session) = it.client();
    client.echo_prefixed(b"hello");
    session.abort();
    client.expect_end();
    let closed = it.records.next();
    assert_closed(&closed, Side::Server, Cause::Aborted, Phase::Open, None);
    it.server.finish();
}

// A ping would be read as a frame: 0x8908 begins a length of more than two GiB.
#[test]
fn a_silent_peer_is_not_pinged_and_the_idle_timer_holds() {
    let it = Plain::start(|config| {
        config.timeouts.ping = Some(ms(50));
        config.timeouts.pong = ms(50);
        config.timeouts.idle = Some(ms(600));
    });
    let (mut client, session) = it.client();
    assert!(!session.ping(b"hello"), "there are none");
    client.expect_end();
    drop(client);
    let closed = it.records.next();
    assert_closed(&closed, Side::Server, Cause::IdleTimeout, Phase::Closing, Some(1001));
    assert_eq!((closed.clean, session.rtt()), (true, None));
    it.server.finish();
}

#[test]
fn the_lifetime_holds() {
    let it = Plain::start(|config| config.timeouts.lifetime = Some(ms(200)));
    let (mut client, _) = it.client();
    client.expect_end();
    drop(client);
    let closed = it.records.next();
    assert_closed(&closed, Side::Server, Cause::LifetimeReached, Phase::Closing, Some(1001));
    it.server.finish();
}

#[test]
fn a_peer_that_takes_nothing_stalls() {
    let it = Plain::start(|config| config.timeouts.write_stall = ms(200));
    let (client, session) = it.pipe();
    session.try_send(vec![1; 2 * PIPE]).unwrap();
    await_full_pipe(&session);
    session.try_send("behind").unwrap();
    let closed = it.records.next();
    assert_closed(&closed, Side::Server, Cause::WriteStalled, Phase::Open, None);
    assert_eq!(closed.timer, Some(Timer::WriteStall));
    assert_eq!(closed.undelivered.messages, 2);
    drop(client);
    it.server.finish();
}
