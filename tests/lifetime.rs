//! How a session lives and ends: its handles, the closing handshake, its number, and the one record of the
//! end.

#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::collections::HashSet;
use std::io::Write;
use std::sync::mpsc;
use std::time::Duration;

use coracle::{
    Buffered, Cause, CloseCode, Closed, Message, Phase, SendError, Server, Session, Side, Timer,
};
use pipe::*;
use support::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

// ---- Handles ------------------------------------------------------------------------------------

// An application kept its session objects in a map and forgot to take them out. With each of them
// it kept a socket in CLOSE_WAIT, until there were no descriptors left.
#[test]
fn a_handle_that_is_kept_for_ever_does_not_keep_the_socket() {
    let quiet = Watched::start(|_| {});
    let mut kept = Vec::new();
    for _ in 0..20 {
        let (mut client, session) = quiet.client();
        kept.push(session);
        client.send_frame(CLOSE, &1000_u16.to_be_bytes());
        assert_eq!(client.read_close().0, 1000);
        assert_eq!(client.read_to_end(), b"", "the socket is closed");
        quiet.records.next();
    }
    assert_eq!(quiet.server.handle.sessions().count(), 0);
    let report = quiet.server.finish();
    assert_eq!(report.cut, 0);
    for session in kept {
        assert!(!session.is_open());
        assert_eq!(session.traffic().bytes_out, 4, "its numbers stay");
    }
}

// The other direction: a server whose application kept no handle closed the connection, because the
// handle's destructor did.
#[test]
fn a_session_whose_handles_are_all_dropped_goes_on() {
    let server =
        start(Server::builder().on_message(async |session: &Session, message: Message| {
            drop(session.clone());
            session.clone().send(message).await
        }));
    let mut client = server.client();
    client.echo("one");
    client.echo("two");
    client.goodbye();
    server.finish();
}

#[test]
fn an_ended_session_gives_the_message_back() {
    let quiet = Watched::start(|_| {});
    let (client, session) = quiet.client();
    client.goodbye();
    quiet.records.next();
    let message = Message::from("too late");
    match within(session.send(message.clone())) {
        Err(SendError::Closed(back)) => assert_eq!(back, message),
        other => panic!("{other:?}"),
    }
    match session.try_send(message.clone()) {
        Err(error @ SendError::Closed(_)) => assert_eq!(error.into_message(), message),
        other => panic!("{other:?}"),
    }
    assert!(!session.ping(b"too late"));
    assert!(!session.is_open());
    assert_eq!(session.buffered(), Buffered::default());
    assert!(quiet.server.handle.sessions().get(session.id()).is_none());
    session.close(CloseCode::NORMAL, "nothing happens");
    session.abort();
    quiet.server.finish();
    match within(session.send("after the server")) {
        Err(SendError::Closed(back)) => assert_eq!(back.as_text(), Some("after the server")),
        other => panic!("{other:?}"),
    }
}

// ---- Closing ------------------------------------------------------------------------------------

#[test]
fn the_first_of_two_closes_counts() {
    let quiet = Watched::start(|_| {});
    let (mut client, session) = quiet.client();
    session.close(CloseCode::new(4001).unwrap(), "first");
    session.close(CloseCode::new(4002).unwrap(), "second");
    assert_eq!(client.expect_close(4001), "first");
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(4001));
    assert_eq!((&*closed.reason, closed.clean, closed.timer), ("first", true, None));
    quiet.server.finish();
}

// Two close frames went out, or the second call waited for a lock that the first one held.
#[test]
fn ten_threads_that_close_at_once_send_one_close_frame() {
    let quiet = Watched::start(|_| {});
    let (mut client, session) = quiet.client();
    std::thread::scope(|scope| {
        for code in 4000..4010 {
            let session = &session;
            scope.spawn(move || session.close(CloseCode::new(code).unwrap(), &code.to_string()));
        }
    });
    let (code, reason) = client.read_close();
    assert!((4000..4010).contains(&code) && reason == code.to_string(), "{code} {reason}");
    client.send_frame(CLOSE, &code.to_be_bytes());
    assert_eq!(client.read_to_end(), b"", "one close frame and no other");
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(code));
    assert!(closed.clean);
    assert!(quiet.records.try_next().is_none());
    quiet.server.finish();
}

// `close` inside `on_close` called `on_close` again, until the stack was full.
#[test]
fn closing_from_inside_the_last_callback_does_nothing() {
    let (closes, records) = heard();
    let server =
        start(Server::builder().on_close(async move |session: &Session, closed: &Closed| {
            session.close(CloseCode::INTERNAL, "from inside");
            session.abort();
            assert!(matches!(session.send("from inside").await, Err(SendError::Closed(_))));
            closes.send(closed.clone()).unwrap();
        }));
    server.client().goodbye();
    let closed = records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerClosed, Phase::Closing, Some(1000));
    assert!(records.try_next().is_none());
    assert_eq!(server.finish().panics, 0);
}

// `close` overtook what was queued: the last messages of a session, the ones that say why it ends,
// were lost.
#[test]
fn what_was_queued_before_close_is_sent_before_the_close_frame() {
    let quiet = Watched::start(|_| {});
    let (mut client, session) = quiet.pipe();
    // Far more than the pipe takes at once.
    for number in 0..500_u32 {
        session.try_send(vec![number as u8; 1000]).unwrap();
    }
    session.close(CloseCode::NORMAL, "done");
    assert!(matches!(session.try_send("after close"), Err(SendError::Closed(_))));
    for number in 0..500_u32 {
        assert_eq!(client.read_frame().payload, vec![number as u8; 1000]);
    }
    let (code, reason) = client.read_close();
    assert_eq!((code, &*reason), (1000, "done"));
    client.send_frame(CLOSE, &1000_u16.to_be_bytes());
    assert_eq!(client.read_to_end(), b"");
    let closed = quiet.records.next();
    assert!(closed.clean);
    assert_eq!(closed.undelivered, Buffered::default());
    quiet.server.finish();
}

// RFC 6455 section 5.5.1: data that comes after our close frame may be thrown away, but a close
// frame behind it must be found.
#[test]
fn data_that_the_peer_had_on_its_way_does_not_spoil_the_closing_handshake() {
    let quiet = Watched::start(|_| {});
    let (mut client, session) = quiet.client();
    session.close(CloseCode::NORMAL, "");
    assert_eq!(client.read_close().0, 1000);
    client.send_frame(TEXT, b"on its way");
    client.send_frame(PING, b"also");
    client.send_frame(BINARY, &[7; 60_000]);
    client.send_frame(CLOSE, &1000_u16.to_be_bytes());
    assert_eq!(client.read_to_end(), b"");
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1000));
    assert!(closed.clean);
    assert_eq!(session.traffic().messages_in, 0, "it was not delivered");
    quiet.server.finish();
}

#[test]
fn a_peer_that_never_answers_close_is_left_after_the_close_budget() {
    let quiet = Watched::start(|config| config.timeouts.close = ms(200));
    let (mut client, session) = quiet.client();
    session.close(CloseCode::NORMAL, "bye");
    assert_eq!(client.read_close().0, 1000);
    assert_eq!(client.read_to_end(), b"");
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1000));
    assert_eq!((closed.timer, closed.clean), (Some(Timer::Close), false));
    quiet.server.finish();
}

// A peer ignored the close frame and went on uploading. Each read restarted the close timer, so the
// session ended when the upload did.
#[test]
fn traffic_does_not_extend_the_close_budget() {
    let quiet = Watched::start(|config| config.timeouts.close = ms(300));
    let (client, session) = quiet.client();
    let mut stream = client.stream;
    let flood = frame(true, BINARY, &[7; 1000]).repeat(100);
    let flooding = std::thread::spawn(move || while stream.write_all(&flood).is_ok() {});
    session.close(CloseCode::NORMAL, "bye");
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1000));
    assert_eq!((closed.timer, closed.clean), (Some(Timer::Close), false));
    flooding.join().unwrap();
    quiet.server.finish();
}

// The same with frames so small that the server never reached the end of its input: it looked at
// the time only before it went to sleep.
#[test]
fn traffic_that_never_pauses_does_not_extend_the_close_budget() {
    let quiet = Watched::start(|config| config.timeouts.close = ms(300));
    let (mut client, session) = quiet.pipe();
    let flood = frame(true, BINARY, b"").repeat(10_000);
    session.close(CloseCode::NORMAL, "bye");
    eventually("the flood is cut off", || !client.try_send(&flood));
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1000));
    assert_eq!((closed.timer, closed.clean), (Some(Timer::Close), false));
    quiet.server.finish();
}

// And one that reads nothing either: the close frame itself cannot leave.
#[test]
fn a_peer_that_takes_no_close_frame_is_left_after_the_close_budget() {
    let quiet = Watched::start(|config| config.timeouts.close = ms(300));
    let (client, session) = quiet.pipe();
    session.try_send(vec![7; 2 * PIPE]).unwrap();
    await_full_pipe(&session);
    session.close(CloseCode::NORMAL, "bye");
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1000));
    assert_eq!((closed.timer, closed.clean), (Some(Timer::Close), false));
    assert_eq!((closed.undelivered.messages, closed.undelivered.bytes), (1, 2 * PIPE));
    drop(client);
    quiet.server.finish();
}

#[test]
fn a_reason_that_is_too_long_is_cut_between_two_characters() {
    let quiet = Watched::start(|_| {});
    for (reason, expected) in [
        ("x".repeat(123), "x".repeat(123)),
        ("x".repeat(124), "x".repeat(123)),
        ("ä".repeat(100), "ä".repeat(61)),
        ("€".repeat(100), "€".repeat(41)),
        (format!("x{}", "🦀".repeat(50)), format!("x{}", "🦀".repeat(30))),
    ] {
        let (mut client, session) = quiet.client();
        session.close(CloseCode::NORMAL, &reason);
        assert_eq!(client.expect_close(1000), expected);
        assert_eq!(&*quiet.records.next().reason, expected, "the record says what was sent");
    }
    quiet.server.finish();
}

#[test]
fn abort_ends_a_session_at_once_and_says_nothing() {
    let quiet = Watched::start(|_| {});
    let (mut client, session) = quiet.pipe();
    session.try_send(vec![7; 2 * PIPE]).unwrap();
    session.try_send("behind").unwrap();
    await_full_pipe(&session);
    std::thread::scope(|scope| scope.spawn(|| session.abort()).join().unwrap());
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Server, Cause::Aborted, Phase::Open, None);
    assert_eq!((closed.timer, closed.clean), (None, false));
    assert_eq!((closed.undelivered.messages, closed.undelivered.bytes), (2, 2 * PIPE + 6));
    assert_eq!(client.read_to_end().len(), PIPE, "what had left, and nothing more");
    quiet.server.finish();
}

#[test]
fn abort_overtakes_a_close_that_is_under_way() {
    let quiet = Watched::start(|_| {});
    let (mut client, session) = quiet.client();
    session.close(CloseCode::NORMAL, "bye");
    assert_eq!(client.read_close().0, 1000);
    session.abort();
    assert_eq!(client.read_to_end(), b"");
    let closed = quiet.records.next();
    // The cause is what ended it first; that it was not awaited shows in `clean`.
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1000));
    assert_eq!((closed.timer, closed.clean), (None, false));
    quiet.server.finish();
}

// An abort that came while the peer flooded was only looked at when the session went to sleep.
#[test]
fn abort_ends_a_session_whose_peer_floods_and_reads_nothing() {
    let quiet = Watched::start(|_| {});
    let (mut client, session) = quiet.pipe();
    session.try_send(vec![7; 2 * PIPE]).unwrap();
    await_full_pipe(&session);
    let flood = frame(true, PING, b"").repeat(10_000);
    assert!(client.try_send(&flood));
    session.abort();
    eventually("the flood is cut off", || !client.try_send(&flood));
    assert_eq!(quiet.records.next().cause, Cause::Aborted);
    quiet.server.finish();
}

#[test]
fn abort_from_inside_a_handler_ends_the_session() {
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .on_message(async |session: &Session, message: Message| {
                session.abort();
                assert!(matches!(session.send(message).await, Err(SendError::Closed(_))));
            })
            .on_close(record(&closes)),
    );
    let mut client = server.client();
    client.send_frame(TEXT, b"abort");
    assert_eq!(client.read_to_end(), b"");
    let closed = records.next();
    assert_closed(&closed, Side::Server, Cause::Aborted, Phase::Open, None);
    assert_eq!(server.finish().panics, 0);
}

// A user came back with the same name while the old connection was still saying goodbye. When the
// old one ended, it took the new one out of the list.
#[test]
fn a_peer_that_comes_back_while_its_old_session_is_closing_is_not_thrown_out_with_it() {
    let quiet = Watched::start(|config| config.timeouts.close = ms(300));
    let (mut old, old_session) = quiet.client();
    old_session.close(CloseCode::RESTART, "come back");
    assert_eq!(old.read_close().0, 1012);
    let (mut new, new_session) = quiet.client();
    assert_ne!(old_session.id(), new_session.id());
    let closed = quiet.records.next();
    assert_eq!((closed.cause, closed.timer), (Cause::Requested, Some(Timer::Close)));
    let sessions = quiet.server.handle.sessions();
    assert!(sessions.get(old_session.id()).is_none());
    assert_eq!(sessions.get(new_session.id()).map(|session| session.id()), Some(new_session.id()));
    new.echo("still here");
    new.goodbye();
    quiet.server.finish();
}

// ---- Numbers ------------------------------------------------------------------------------------

#[test]
fn a_session_and_the_list_of_sessions_know_their_numbers() {
    let quiet = Watched::start(|_| {});
    let before = std::time::Instant::now();
    let (mut client, session) = quiet.client();
    let id = session.id();
    let sessions = quiet.server.handle.sessions();
    assert_eq!((sessions.count(), sessions.all().len()), (1, 1));
    assert_eq!(sessions.all()[0].id(), id);
    assert_eq!(sessions.get(id).unwrap().path(), "/");
    assert_eq!(session.peer_addr(), Some(client.stream.local_addr().unwrap()));
    // The coarse clock is up to some milliseconds behind.
    assert!(session.created() + ms(50) >= before, "created after the test began");
    assert!(session.created() <= std::time::Instant::now());
    assert_eq!(session.traffic(), coracle::Traffic::default());
    assert!(session.is_open());

    client.echo("hello");
    client.send_frame(PING, b"!");
    assert_eq!(client.read_frame().opcode, PONG);
    eventually("the pong is counted", || session.traffic().bytes_out == 7 + 3);
    let traffic = session.traffic();
    assert_eq!((traffic.messages_in, traffic.messages_out), (1, 1), "pings are no messages");
    assert_eq!((traffic.bytes_in, traffic.bytes_out), (6 + 5 + 6 + 1, 2 + 5 + 2 + 1));
    assert!(session.last_activity() >= session.created());
    let earlier = session.last_activity();
    eventually("activity moves on", || {
        client.echo("again");
        session.last_activity() > earlier
    });

    client.goodbye();
    let closed = quiet.records.next();
    assert!(closed.lived > Duration::ZERO);
    assert_eq!((sessions.count(), sessions.all().len()), (0, 0));
    assert!(sessions.get(id).is_none());
    quiet.server.finish();
}

// The number of an ended session was given to the next one: a message meant for Alice went to Bob.
#[test]
fn the_number_of_a_session_is_never_given_again() {
    let quiet = Watched::start(|_| {});
    let mut seen = HashSet::new();
    for _ in 0..50 {
        let (client, session) = quiet.pipe();
        assert!(seen.insert(session.id()), "{} was given before", session.id());
        client.goodbye();
        quiet.records.next();
        assert!(quiet.server.handle.sessions().get(session.id()).is_none());
    }
    quiet.server.finish();
}

// ---- The record ---------------------------------------------------------------------------------

#[test]
fn the_record_of_a_peer_that_says_goodbye() {
    let quiet = Watched::start(|_| {});
    for (payload, code, reason) in [
        (&b"\x03\xE8bye"[..], Some(1000), "bye"),
        (b"\x03\xE9", Some(1001), ""),
        (b"\x0F\xA7gr\xC3\xBC\xC3\x9Fe", Some(4007), "grüße"),
        (b"", None, ""),
    ] {
        let (mut client, _) = quiet.client();
        client.send_frame(CLOSE, payload);
        // RFC 6455 section 5.5.1: the code comes back, and nothing if there was none.
        assert_eq!(client.read_frame().payload, payload[..payload.len().min(2)]);
        assert_eq!(client.read_to_end(), b"");
        let closed = quiet.records.next();
        assert_closed(&closed, Side::Peer, Cause::PeerClosed, Phase::Closing, code);
        assert_eq!((&*closed.reason, closed.clean, closed.timer), (reason, true, None));
        assert_eq!(closed.undelivered, Buffered::default());
    }
    quiet.server.finish();
}

#[test]
fn the_record_of_a_peer_that_vanishes() {
    let quiet = Watched::start(|_| {});
    let (mut client, session) = quiet.client();
    client.echo("hello");
    client.reset();
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerVanished, Phase::Open, None);
    assert_eq!((&*closed.reason, closed.clean, closed.timer), ("", false, None));
    assert!(!session.is_open());

    // In the middle of a frame.
    let (mut client, _) = quiet.client();
    client.send(&frame(true, TEXT, b"hello")[..7]);
    client.end_writing();
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerVanished, Phase::Open, None);
    drop(client);

    // After our close frame: then it is we who ended it.
    let (mut client, session) = quiet.client();
    session.close(CloseCode::NORMAL, "bye");
    assert_eq!(client.read_close().0, 1000);
    client.end_writing();
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1000));
    assert_eq!((&*closed.reason, closed.clean, closed.timer), ("bye", false, None));
    drop(client);
    quiet.server.finish();
}

#[test]
fn the_record_of_a_violation() {
    let quiet = Watched::start(|config| config.limits.message_bytes = 100);
    let unmasked = b"\x81\x01x".to_vec();
    for (bytes, code) in [
        (unmasked, 1002),
        (frame(true, 3, b""), 1002),
        (frame(true, TEXT, b"\xFF"), 1007),
        (frame(true, BINARY, &[0; 101]), 1009),
    ] {
        let (mut client, _) = quiet.client();
        client.send(&bytes);
        let reason = client.expect_close(code);
        // The server waits for our end of the stream, so that nothing unread destroys its word.
        drop(client);
        let closed = quiet.records.next();
        assert_closed(&closed, Side::Peer, Cause::Violation, Phase::Closing, Some(code));
        assert_eq!(&*closed.reason, reason, "the record says what the peer was told");
        assert_eq!(closed.timer, None);
    }
    quiet.server.finish();
}

// The peer sends its close frame and closes its side: both came in one segment, the server read the end of
// the stream before it had answered, and took the peer for one that has vanished.
#[test]
fn a_peer_that_says_goodbye_and_closes_its_side_at_once_gets_its_answer() {
    let quiet = Watched::start(|_| {});
    for _ in 0..10 {
        let (mut client, _) = quiet.client();
        let goodbye = frame(true, CLOSE, &1000_u16.to_be_bytes());
        // Held back until there is more, which is the end.
        rustix::net::send(&client.stream, &goodbye, rustix::net::SendFlags::MORE).unwrap();
        client.end_writing();
        assert_eq!(client.read_close().0, 1000);
        assert_eq!(client.read_to_end(), b"");
        let closed = quiet.records.next();
        assert_closed(&closed, Side::Peer, Cause::PeerClosed, Phase::Closing, Some(1000));
        assert!(closed.clean, "{closed}");
    }
    quiet.server.finish();
}

// What was queued when the peer's goodbye came was thrown away: the answer to its last question was
// among it. It reads until it has our close frame (RFC 6455 section 5.5.1).
#[test]
fn a_peer_that_says_goodbye_gets_what_is_queued_first() {
    let quiet = Watched::start(|_| {});
    let (mut client, session) = quiet.pipe();
    session.try_send(vec![1; 2 * PIPE]).unwrap();
    await_full_pipe(&session);
    for _ in 0..10 {
        session.try_send("queued").unwrap();
    }
    client.send_frame(CLOSE, &1000_u16.to_be_bytes());
    eventually("the close has been heeded", || !session.is_open());
    assert_eq!(client.read_frame().payload.len(), 2 * PIPE);
    for _ in 0..10 {
        assert_eq!(client.read_frame().payload, b"queued");
    }
    assert_eq!(client.read_close().0, 1000);
    assert_eq!(client.read_to_end(), b"");
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerClosed, Phase::Closing, Some(1000));
    assert!(closed.clean);
    assert_eq!(closed.undelivered, Buffered::default());
    quiet.server.finish();
}

// And when it does not read any more, what it did not get was reported as delivered, or kept the
// session for as long as it pleased.
#[test]
fn what_a_peer_that_said_goodbye_did_not_take_is_counted() {
    for vanishes in [true, false] {
        let quiet = Watched::start(|config| config.timeouts.close = ms(300));
        let (mut client, session) = quiet.pipe();
        session.try_send(vec![1; 2 * PIPE]).unwrap();
        await_full_pipe(&session);
        for _ in 0..10 {
            session.try_send("queued").unwrap();
        }
        client.send_frame(CLOSE, b"\x03\xE8bye");
        eventually("the close has been heeded", || !session.is_open());
        let client = (!vanishes).then_some(client);
        let closed = quiet.records.next();
        assert_closed(&closed, Side::Peer, Cause::PeerClosed, Phase::Closing, Some(1000));
        let timer = if vanishes { None } else { Some(Timer::Close) };
        assert_eq!((&*closed.reason, closed.clean, closed.timer), ("bye", false, timer));
        let undelivered = (closed.undelivered.messages, closed.undelivered.bytes);
        assert_eq!(undelivered, (11, 2 * PIPE + 60));
        assert_eq!(session.buffered(), closed.undelivered);
        drop(client);
        quiet.server.finish();
    }
}

#[test]
fn the_record_reads_like_a_sentence() {
    let (lines, line) = heard();
    let server = start(Server::builder().on_close(async move |_: &Session, closed: &Closed| {
        lines.send(closed.to_string()).unwrap();
    }));
    let mut client = server.client();
    client.send_frame(CLOSE, b"\x03\xE8bye");
    client.read_close();
    let line = line.next();
    let expected = "closed by peer (peer closed) while closing, code 1000 \"bye\", lived ";
    assert!(line.starts_with(expected), "{line}");
    server.finish();
}

/// Two implementations agree about a whole conversation: async-tungstenite is the client.
#[test]
fn an_independent_client_gets_the_same_end() {
    use async_tungstenite::tungstenite;
    use futures_lite::{StreamExt, future};

    let quiet = Watched::start(|_| {});
    let conversation = async {
        let stream = smol::net::TcpStream::connect(quiet.server.addr()).await.unwrap();
        let url = format!("ws://{}/", quiet.server.addr());
        let (mut client, _) = async_tungstenite::client_async(url, stream).await.unwrap();
        for size in [0, 1, 125, 126, 60_000] {
            let message = tungstenite::Message::binary(vec![7; size]);
            client.send(message.clone()).await.unwrap();
            assert_eq!(client.next().await.unwrap().unwrap(), message);
        }
        let session = quiet.sessions.next();
        session.try_send("last words").unwrap();
        session.close(CloseCode::new(4000).unwrap(), "enough");
        let last = client.next().await.unwrap().unwrap();
        assert_eq!(last, tungstenite::Message::text("last words"));
        match client.next().await.unwrap().unwrap() {
            tungstenite::Message::Close(Some(close)) => {
                assert_eq!((u16::from(close.code), &*close.reason), (4000, "enough"));
            }
            other => panic!("{other:?}"),
        }
        assert!(client.next().await.is_none(), "and then the end, without an error");
    };
    within(future::or(conversation, future::pending()));
    let closed = quiet.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(4000));
    assert!(closed.clean);
    quiet.server.finish();
}

/// The senders of this file's callbacks are used from several threads.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<mpsc::Sender<Session>>();
    shared::<Session>();
};
