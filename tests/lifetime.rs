//! How a session lives and ends: callbacks that fail, hang or panic, the closing handshake, and the one
//! record of the end.

#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::collections::HashSet;
use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use coracle::{
    BoxError, Buffered, Cause, CloseCode, Closed, Flow, Handler, HandlerError, Message, Outcome,
    Phase, SendError, Server, Session, Side, Timer,
};
use pipe::*;
use support::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

// ---- Panics -------------------------------------------------------------------------------------

// A panic in one handler unwound through the worker's thread. Its other sessions were gone, and the
// listener with them.
#[test]
fn a_panic_in_message_ends_its_session_only() {
    let (closes, records) = heard();
    let (errors, failed) = heard();
    let server = start(
        Server::builder()
            .workers(1)
            .on_message(async |session: &Session, message: Message| {
                assert_ne!(message.as_text(), Some("panic"), "asked to");
                session.send(message).await
            })
            .on_error(async move |_: &Session, error: &HandlerError| {
                errors.send(error.to_string()).unwrap();
            })
            .on_close(record(&closes)),
    );
    let mut bystander = server.client();
    bystander.echo("before");
    let mut client = server.client();
    client.send_frame(TEXT, b"panic");
    client.expect_close(1011);
    assert!(failed.next().contains("asked to"));
    let closed = records.next();
    assert_closed(&closed, Side::Server, Cause::HandlerPanicked, Phase::Closing, Some(1011));
    assert!(closed.clean);
    bystander.echo("after");
    server.client().echo("and new ones");
    bystander.goodbye();
    assert_eq!(server.finish().panics, 1);
}

#[test]
fn a_panic_in_open_ends_the_session_before_its_first_message() {
    let (closes, records) = heard();
    let (messages, received) = heard();
    let server = start(
        Server::builder()
            .on_open(async |session: &Session| {
                assert_ne!(session.path(), "/panic", "asked to");
            })
            .on_message(async move |_: &Session, message: Message| {
                messages.send(message).unwrap();
            })
            .on_close(record(&closes)),
    );
    let mut client = server.raw();
    client.send(handshake("/panic").as_bytes());
    client.read_head();
    client.send_frame(TEXT, b"never delivered");
    client.expect_close(1011);
    let closed = records.next();
    assert_closed(&closed, Side::Server, Cause::HandlerPanicked, Phase::Closing, Some(1011));
    assert_eq!(server.finish().panics, 1);
    assert!(received.try_next().is_none());
}

#[test]
fn a_panic_in_close_or_error_harms_nobody() {
    let server = start(
        Server::builder()
            .workers(1)
            .on_message(async |session: &Session, message: Message| {
                if message.as_text() == Some("fail") {
                    return Err(BoxError::from("asked to"));
                }
                Ok(session.send(message).await?)
            })
            .on_error(async |_: &Session, _: &HandlerError| panic!("in on_error"))
            .on_close(async |_: &Session, _: &Closed| panic!("in on_close")),
    );
    let mut bystander = server.client();
    let mut client = server.client();
    client.send_frame(TEXT, b"fail");
    client.expect_close(1011);
    eventually("the session has left", || server.handle.sessions().count() == 1);
    bystander.echo("still here");
    bystander.goodbye();
    assert_eq!(server.finish().panics, 3, "one on_error, two on_close");
}

/// A handler whose callbacks do their work before they make a future.
struct Eager;

impl Handler for Eager {
    fn message(&self, session: &Session, message: Message) -> impl Future<Output = Outcome> {
        assert_ne!(message.as_text(), Some("panic"), "before there is a future");
        let session = session.clone();
        async move { Ok(session.send(message).await.map(|()| Flow::Continue)?) }
    }
}

// Only the future was guarded, and not the call that makes it: a trait's method may be written
// without `async`, and then it runs as soon as it is called.
#[test]
fn a_panic_before_the_handlers_future_is_made_ends_its_session_only() {
    let server = start(Server::builder().workers(1).handler(Eager));
    let mut bystander = server.client();
    bystander.echo("before");
    let mut client = server.client();
    client.send_frame(TEXT, b"panic");
    client.expect_close(1011);
    bystander.echo("after");
    bystander.goodbye();
    assert_eq!(server.finish().panics, 1);
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

// A handler that hung was dropped at its deadline, and what it held panicked: outside of every
// guard, because dropping is not polling.
#[test]
fn a_panic_while_a_hanging_handler_is_dropped_harms_nobody() {
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .workers(1)
            .configure(|config| config.timeouts.close = ms(200))
            .on_message(async |session: &Session, message: Message| {
                if message.as_text() == Some("hang") {
                    let _bomb = Bomb;
                    std::future::pending::<()>().await;
                }
                session.send(message).await
            })
            .on_close(record(&closes)),
    );
    let mut bystander = server.client();
    let mut client = server.client();
    client.send_frame(TEXT, b"hang");
    client.end_writing();
    assert_eq!(records.next().cause, Cause::PeerVanished);
    bystander.echo("still here");
    bystander.goodbye();
    server.finish();
}

// ---- Handlers that hang -------------------------------------------------------------------------

// A handler that never came back kept its session for ever: nobody called `on_close`, and the
// number of sessions only grew.
#[test]
fn a_handler_that_hangs_is_dropped_some_time_after_its_session_has_ended() {
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .configure(|config| config.timeouts.close = ms(200))
            .on_message(async |_: &Session, _: Message| std::future::pending::<()>().await)
            .on_close(record(&closes)),
    );
    let mut client = server.client();
    client.send_frame(TEXT, b"hang");
    client.goodbye();
    let closed = records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerClosed, Phase::Closing, Some(1000));
    assert!(closed.clean);
    server.finish();
}

#[test]
fn an_on_close_that_hangs_is_dropped_and_its_session_is_in_no_list() {
    let (closes, records) = heard::<()>();
    let server =
        start(Server::builder().configure(|config| config.timeouts.close = ms(200)).on_close(
            async move |session: &Session, _: &Closed| {
                assert_eq!(session.sessions().count(), 0, "it has left before its last callback");
                closes.send(()).unwrap();
                std::future::pending::<()>().await;
            },
        ));
    server.client().goodbye();
    records.next();
    assert_eq!(server.handle.sessions().count(), 0);
    let report = server.finish();
    assert_eq!((report.cut, report.panics), (0, 0));
}

// While a handler was behind, nothing was read. A close that was asked for meanwhile sent its frame and
// went to sleep without asking for input: the peer's answer was seen by the close timer only.
#[test]
fn the_peers_answer_to_a_close_is_heard_however_far_the_handler_is_behind() {
    let (opens, sessions) = heard();
    let server = start(
        Server::builder()
            .configure(|config| {
                // Nobody waits for this one.
                config.timeouts.close = 30 * PATIENCE;
                config.timeouts.stop = ms(100);
            })
            .on_open(opened(&opens))
            .on_message(async |_: &Session, _: Message| std::future::pending::<()>().await),
    );
    let mut client = Pipe::connect(&server);
    let session = sessions.next();
    for text in ["works on this", "reads this ahead", "leaves this"] {
        client.send_frame(TEXT, text.as_bytes());
    }
    eventually("one is read ahead", || session.traffic().messages_in >= 2);
    session.close(CloseCode::NORMAL, "enough");
    assert_eq!(client.read_close(), (1000, "enough".to_owned()));
    client.send_frame(CLOSE, &1000_u16.to_be_bytes());
    assert_eq!(client.read_to_end(), b"");
    server.finish();
}

// An `on_open` that hangs holds back the messages, not the closing handshake.
#[test]
fn an_on_open_that_hangs_does_not_hold_back_the_peers_close() {
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .configure(|config| config.timeouts.close = ms(200))
            .on_open(async |_: &Session| std::future::pending::<()>().await)
            .on_close(record(&closes)),
    );
    server.client().goodbye();
    assert!(records.next().clean);
    server.finish();
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

// ---- What handlers return -----------------------------------------------------------------------

#[test]
fn a_failing_handler_is_reported_and_the_peer_is_told_1011() {
    let (closes, records) = heard();
    let (errors, failed) = heard();
    let server = start(
        Server::builder()
            .on_open(async |session: &Session| match session.path() {
                "/open" => Err(BoxError::from("no seat")),
                _ => Ok(()),
            })
            .on_message(async |_: &Session, _: Message| Err::<(), _>(BoxError::from("no meal")))
            .on_error(async move |session: &Session, error: &HandlerError| {
                let HandlerError::Failed(source) = error else { panic!("{error:?}") };
                errors.send((session.id(), source.to_string())).unwrap();
            })
            .on_close(record(&closes)),
    );
    for (path, error) in [("/open", "no seat"), ("/message", "no meal")] {
        let mut client = server.raw();
        client.send(handshake(path).as_bytes());
        client.read_head();
        client.send_frame(TEXT, b"hungry");
        let reason = client.expect_close(1011);
        assert!(!reason.contains("no "), "what failed is not the peer's business: {reason}");
        assert_eq!(failed.next().1, error);
        let closed = records.next();
        assert_closed(&closed, Side::Server, Cause::HandlerFailed, Phase::Closing, Some(1011));
        assert!(closed.clean);
    }
    assert_eq!(server.finish().panics, 0);
}

#[test]
fn a_handler_ends_its_session_by_what_it_returns() {
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .on_open(async |session: &Session| match session.path() {
                "/full" => Flow::Close(CloseCode::TRY_AGAIN_LATER, "full".into()),
                _ => Flow::Continue,
            })
            .on_message(async |session: &Session, message: Message| -> Result<Flow, SendError> {
                session.send(message).await?;
                Ok(Flow::Close(CloseCode::new(4321).unwrap(), "enough".into()))
            })
            .on_close(record(&closes)),
    );
    let mut client = server.client();
    client.echo("the answer comes first");
    assert_eq!(client.expect_close(4321), "enough");
    let closed = records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(4321));
    assert_eq!((&*closed.reason, closed.clean), ("enough", true));
    let mut client = server.raw();
    client.send(handshake("/full").as_bytes());
    client.read_head();
    assert_eq!(client.expect_close(1013), "full");
    assert_closed(&records.next(), Side::Server, Cause::Requested, Phase::Closing, Some(1013));
    server.finish();
}

#[test]
fn a_message_that_nobody_wants_closes_with_1008() {
    let (closes, records) = heard();
    let server = start(Server::builder().on_close(record(&closes)));
    let mut client = server.client();
    client.send_frame(PING, b"pings are fine");
    assert_eq!(client.read_frame().opcode, PONG);
    client.send_frame(BINARY, b"a message is not");
    client.expect_close(1008);
    let closed = records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1008));
    server.finish();
}

// A handler closed its session and then tripped over the closed session: the client was told 1011
// "internal error" for what was an orderly end.
#[test]
fn a_handler_that_closes_and_then_fails_to_send_has_closed() {
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .on_message(async |session: &Session, message: Message| {
                session.close(CloseCode::NORMAL, "goodbye");
                session.send(message).await
            })
            .on_close(record(&closes)),
    );
    let mut client = server.client();
    client.send_frame(TEXT, b"hello");
    assert_eq!(client.expect_close(1000), "goodbye");
    let closed = records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1000));
    server.finish();
}

// ---- Order of callbacks -------------------------------------------------------------------------

/// What one session's callbacks have done.
#[derive(Default)]
struct Diary {
    lines: Mutex<Vec<String>>,
    busy: AtomicBool,
    overlaps: AtomicUsize,
}

impl Diary {
    async fn enter(&self, line: String) {
        if self.busy.swap(true, Ordering::SeqCst) {
            self.overlaps.fetch_add(1, Ordering::SeqCst);
        }
        // Another callback would now have every opportunity.
        smol::Timer::after(Duration::from_micros(200)).await;
        futures_lite::future::yield_now().await;
        self.lines.lock().unwrap().push(line);
        self.busy.store(false, Ordering::SeqCst);
    }
}

// Two messages were handled at once on a pool of threads: the second one overtook the first, and
// `close` ran while `message` did.
#[test]
fn the_callbacks_of_one_session_come_in_order_and_never_overlap() {
    const SESSIONS: usize = 6;
    const MESSAGES: usize = 100;
    let (closes, closed) = heard::<Arc<Diary>>();
    fn diary(session: &Session) -> &Arc<Diary> {
        session.data().expect("the accept hook attached it")
    }
    let server = start(
        Server::builder()
            .on_accept(async |_| Ok(coracle::Upgrade::new().data(Arc::new(Diary::default()))))
            .on_open(async |session: &Session| diary(session).enter("open".into()).await)
            .on_message(async |session: &Session, message: Message| {
                diary(session).enter(message.as_text().unwrap().to_owned()).await;
            })
            .on_close(async move |session: &Session, _: &Closed| {
                diary(session).enter("close".into()).await;
                closes.send(Arc::clone(diary(session))).unwrap();
            }),
    );
    std::thread::scope(|scope| {
        for _ in 0..SESSIONS {
            scope.spawn(|| {
                let mut client = server.client();
                let mut flood = Vec::new();
                for number in 0..MESSAGES {
                    flood.extend(frame(true, TEXT, number.to_string().as_bytes()));
                }
                client.send(&flood);
                client.goodbye();
            });
        }
    });
    let expected: Vec<String> = std::iter::once("open".to_owned())
        .chain((0..MESSAGES).map(|number| number.to_string()))
        .chain(std::iter::once("close".to_owned()))
        .collect();
    for _ in 0..SESSIONS {
        // `Heard` waits a long time for each; together they take less.
        let diary = closed.next();
        assert_eq!(*diary.lines.lock().unwrap(), expected);
        assert_eq!(diary.overlaps.load(Ordering::SeqCst), 0);
    }
    server.finish();
    assert!(closed.try_next().is_none(), "each ended once");
}

// Handlers run on the server's own executor; everything else of the family must work there too,
// although its wake-ups come from other threads.
#[test]
fn a_handler_may_await_anything_of_the_smol_family() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let elsewhere = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 5];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(&request).unwrap();
    });
    let server = start(Server::builder().workers(1).on_message(
        async move |session: &Session, message: Message| -> Result<(), BoxError> {
            use futures_lite::{AsyncReadExt, AsyncWriteExt};
            match message.as_text().unwrap_or_default() {
                "timer" => drop(smol::Timer::after(ms(5)).await),
                "unblock" => {
                    let id = std::thread::current().id();
                    let other = smol::unblock(|| std::thread::current().id()).await;
                    assert_ne!(id, other);
                }
                "channel" => {
                    let (sender, receiver) = smol::channel::bounded(1);
                    std::thread::spawn(move || {
                        for number in 0..100 {
                            sender.send_blocking(number).unwrap();
                        }
                    });
                    let mut sum = 0;
                    while let Ok(number) = receiver.recv().await {
                        sum += number;
                    }
                    assert_eq!(sum, 4950);
                }
                "spawn" => assert_eq!(smol::spawn(async { 6 * 7 }).await, 42),
                "net" => {
                    let mut stream = smol::net::TcpStream::connect(address).await?;
                    stream.write_all(b"hello").await?;
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer).await?;
                    assert_eq!(answer, b"hello");
                }
                "lock" => {
                    let lock = smol::lock::Mutex::new(0);
                    *lock.lock().await += 1;
                }
                "blocking file" => {
                    let name = std::env::current_exe()?;
                    assert!(smol::fs::metadata(name).await?.is_file());
                }
                _ => {}
            }
            Ok(session.send(message).await?)
        },
    ));
    let mut client = server.client();
    for what in ["timer", "unblock", "channel", "spawn", "net", "lock", "blocking file"] {
        client.echo(what);
    }
    elsewhere.join().unwrap();
    client.goodbye();
    assert_eq!(server.finish().panics, 0);
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

// What was queued when the peer's goodbye came was thrown away: the answer to its last question was
// among it. It reads until it has our close frame (RFC 6455 section 5.5.1).
/// The peer sends its close frame and closes its side: both came in one segment, the server read the end of
/// the stream before it had answered, and took the peer for one that has vanished.
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
