//! What a review found that no peer had shipped: blocked workers, ends that meet other ends, odd
//! but valid configurations.

mod support;

use std::sync::Mutex;
use std::time::Duration;

use coracle::{Cause, CloseCode, Flow, Message, Server, Session};
use support::*;

/// A handler blocks its worker for longer than another session's pong may take. The pong arrives in
/// time and waits in the kernel. On waking, the worker looked at its timers before it looked at its
/// sockets, and closed a live session with 1001.
#[test]
fn a_pong_that_waited_for_a_blocked_worker_counts() {
    let (blocking, blocked) = heard();
    let blocking = Mutex::new(blocking);
    let server = start(
        Server::builder()
            .workers(1)
            .configure(|config| {
                config.timeouts.ping = Some(Duration::from_millis(300));
                config.timeouts.pong = Duration::from_millis(600);
            })
            .on_message(async move |session: &Session, message: Message| {
                if message.as_text() == Some("block") {
                    blocking.lock().unwrap().send(()).unwrap();
                    std::thread::sleep(Duration::from_millis(1500));
                }
                session.send(message).await
            }),
    );
    let (mut alive, mut other) = (server.client(), server.client());
    let ping = alive.read_frame();
    assert_eq!(ping.opcode, PING);
    other.send_frame(TEXT, b"block");
    blocked.next();
    alive.send_frame(PONG, &ping.payload);
    // Sent before the worker can run again, so the pong is seen before or with it.
    alive.send_frame(TEXT, b"alive");
    loop {
        let frame = alive.read_frame();
        if frame.opcode != PING {
            assert_eq!((frame.opcode, &frame.payload[..]), (TEXT, &b"alive"[..]));
            break;
        }
    }
    drop((alive, other));
    server.finish();
}

/// The stop's last moment was a point in time: a worker that a handler had blocked beyond it came
/// back and dropped every session, without `on_close` and without counting them.
#[test]
fn sessions_of_a_worker_that_comes_late_to_the_stop_still_have_their_last_word() {
    const SESSIONS: usize = 50;
    let (closing, closed) = heard();
    let (blocking, blocked) = heard();
    let blocking = Mutex::new(blocking);
    let server = start(
        Server::builder()
            .workers(1)
            .configure(|config| config.timeouts.stop = Duration::from_millis(200))
            .on_message(async move |_: &Session, _: Message| {
                blocking.lock().unwrap().send(()).unwrap();
                std::thread::sleep(Duration::from_millis(4500));
            })
            .on_close(record(&closing)),
    );
    let mut clients: Vec<_> = (0..SESSIONS).map(|_| server.client()).collect();
    clients[0].send_frame(TEXT, b"block");
    blocked.next();
    drop(clients);
    let report = server.finish();
    assert_eq!(report.drained + report.cut, SESSIONS, "{report:?}");
    assert_eq!(std::iter::from_fn(|| closed.try_next()).count(), SESSIONS);
}

/// A handler that ends its session must not be asked about the messages behind the one it has
/// refused: "not logged in, close" came too late for the next command in the same segment.
#[test]
fn no_message_follows_one_that_closed_its_session() {
    let (closing, closed) = heard();
    let (reporting, seen) = heard();
    let reporting = Mutex::new(reporting);
    let server = start(
        Server::builder()
            .on_message(async move |_: &Session, message: Message| {
                reporting.lock().unwrap().send(message.as_text().unwrap().to_owned()).unwrap();
                Flow::Close(CloseCode::POLICY, "no".into())
            })
            .on_close(record(&closing)),
    );
    let mut client = server.client();
    client.send(&["a", "b", "c"].map(|text| frame(true, TEXT, text.as_bytes())).concat());
    assert_eq!(client.expect_close(1008), "no");
    assert_eq!(closed.next().cause, Cause::Requested);
    assert_eq!(std::iter::from_fn(|| seen.try_next()).collect::<Vec<_>>(), ["a"]);
    server.finish();
}

/// The same for one that failed, and for the message that was read ahead while it worked.
#[test]
fn no_message_follows_one_that_failed() {
    let (closing, closed) = heard();
    let (reporting, seen) = heard();
    let reporting = Mutex::new(reporting);
    let server = start(
        Server::builder()
            .on_message(async move |session: &Session, message: Message| {
                reporting.lock().unwrap().send(message.as_text().unwrap().to_owned()).unwrap();
                // Until the next one has been read ahead.
                while session.traffic().messages_in < 2 {
                    smol::future::yield_now().await;
                }
                Err::<(), _>("failed")
            })
            .on_close(record(&closing)),
    );
    let mut client = server.client();
    client.send(&["a", "b", "c"].map(|text| frame(true, TEXT, text.as_bytes())).concat());
    client.expect_close(1011);
    assert_eq!(closed.next().cause, Cause::HandlerFailed);
    assert_eq!(std::iter::from_fn(|| seen.try_next()).collect::<Vec<_>>(), ["a"]);
    server.finish();
}

/// An abort that met the peer's close frame in the same read became a graceful close, which waited
/// five seconds for a peer that read nothing.
#[test]
fn an_abort_is_one_also_when_the_peer_closes_at_the_same_moment() {
    let (closing, closed) = heard();
    let server = start(
        Server::builder()
            .configure(|config| config.limits.outbox_bytes = 64 << 20)
            .on_message(async |session: &Session, _: Message| {
                for _ in 0..64 {
                    session.try_send(vec![0; 200_000]).unwrap();
                }
                session.abort();
            })
            .on_close(record(&closing)),
    );
    let mut client = server.client();
    client.send(&[frame(true, TEXT, b"go"), frame(true, CLOSE, &1000_u16.to_be_bytes())].concat());
    let record = closed.next();
    assert_eq!((record.cause, record.timer), (Cause::Aborted, None), "{record}");
    assert_eq!(record.undelivered.messages, 64, "{record}");
    server.finish();
}

#[test]
fn the_longest_durations_and_the_largest_numbers_are_allowed() {
    let server = start(Server::builder().configure(|config| {
        config.timeouts.ping = Some(Duration::MAX);
        config.timeouts.pong = Duration::MAX;
        config.timeouts.write_stall = Duration::from_secs(30 * 86_400);
        config.timeouts.idle = Some(Duration::MAX);
        config.timeouts.lifetime = Some(Duration::MAX);
        config.limits.handshakes = Some(usize::MAX);
        config.limits.sessions = Some(usize::MAX);
    }));
    server.client().goodbye();
    server.finish();
}
