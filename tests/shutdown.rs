//! Stop is a protocol: it may be asked for anywhere, everyone is told, and it ends.

#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::pin::pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::task::{Context, Waker};
use std::time::Duration;

use coracle::{
    Buffered, Cause, CloseCode, Closed, Error, Message, Phase, Server, Session, Shutdown, Side,
    Timer, Upgrade,
};
use pipe::*;
use rustix::process::{Pid, Signal, kill_process};
use support::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// For a deadline that must not be what the test waits for.
const FAR_AWAY: Duration = Duration::from_secs(600);

// ---- What peers see -----------------------------------------------------------------------------

// A server closed its sockets when it was told to stop. Every client reconnected at once, to the
// same machine, and what had been queued for them was lost.
#[test]
fn everyone_gets_what_is_queued_and_then_1001() {
    const MESSAGES: usize = 300;
    let echo = Watched::start(|config| config.timeouts.stop = FAR_AWAY);
    let mut slow: Vec<_> = (0..4).map(|_| echo.pipe()).collect();
    for (_, session) in &slow {
        for number in 0..MESSAGES {
            session.try_send(format!("{number} {}", "x".repeat(1000))).unwrap();
        }
        await_full_pipe(session);
    }
    let mut idle: Vec<_> = (0..4).map(|_| echo.client().0).collect();
    echo.server.handle.request_stop();
    for client in &mut idle {
        assert_eq!(client.expect_close(1001), "server stops");
    }
    for (client, session) in &mut slow {
        eventually("the stop has been heeded", || !session.is_open());
        for number in 0..MESSAGES {
            let text = String::from_utf8(client.read_frame().payload).unwrap();
            assert_eq!(text.split_once(' ').unwrap().0, number.to_string());
        }
        let (code, reason) = client.read_close();
        assert_eq!((code, &*reason), (1001, "server stops"));
        client.send_frame(CLOSE, &1001_u16.to_be_bytes());
        assert_eq!(client.read_to_end(), b"");
    }
    let report = echo.server.finish();
    assert_eq!((report.drained, report.cut, report.panics), (8, 0, 0));
    for _ in 0..8 {
        let closed = echo.records.next();
        assert_closed(&closed, Side::Server, Cause::Stopping, Phase::Closing, Some(1001));
        assert_eq!((&*closed.reason, closed.clean, closed.timer), ("server stops", true, None));
        assert_eq!(closed.undelivered, Buffered::default());
    }
    assert!(echo.records.try_next().is_none());
}

#[test]
fn a_server_without_sessions_stops_and_may_be_asked_again() {
    let echo = Watched::start(|_| {});
    let report = within(echo.server.handle.stop());
    assert_eq!((report.drained, report.cut, report.panics), (0, 0, 0));
    assert_eq!(within(echo.server.handle.stop()), report, "there is one report");
    echo.server.handle.request_stop();
    echo.server.handle.shutdown().cut();
    assert_eq!(echo.server.finish(), report);
}

// One client held the whole restart up: it kept its socket and never answered the close frame.
#[test]
fn a_peer_that_never_answers_is_cut_at_the_stops_deadline() {
    let echo = Watched::start(|config| {
        config.timeouts.stop = ms(300);
        config.timeouts.close = FAR_AWAY;
    });
    let (mut stuck, _) = echo.client();
    let (mut polite, _) = echo.client();
    echo.server.handle.request_stop();
    polite.expect_close(1001);
    assert_eq!(echo.records.next().cause, Cause::Stopping);
    assert_eq!(stuck.read_close().0, 1001);
    assert_eq!(stuck.read_to_end(), b"");
    let closed = echo.records.next();
    assert_closed(&closed, Side::Server, Cause::Cut, Phase::Closing, Some(1001));
    assert_eq!((closed.timer, closed.clean), (Some(Timer::Stop), false));
    let report = echo.server.finish();
    assert_eq!((report.drained, report.cut), (1, 1));
}

// The same with a peer that reads nothing, so that not even the close frame can leave.
#[test]
fn a_peer_that_reads_nothing_is_cut_at_the_stops_deadline() {
    let echo = Watched::start(|config| {
        config.timeouts.stop = ms(300);
        config.timeouts.close = FAR_AWAY;
        config.timeouts.write_stall = FAR_AWAY;
    });
    let (client, session) = echo.pipe();
    session.try_send(vec![7; 2 * PIPE]).unwrap();
    await_full_pipe(&session);
    let report = within(echo.server.handle.stop());
    assert_eq!((report.drained, report.cut), (0, 1));
    let closed = echo.records.next();
    assert_eq!((closed.cause, closed.timer), (Cause::Cut, Some(Timer::Stop)));
    assert_eq!((closed.undelivered.messages, closed.undelivered.bytes), (1, 2 * PIPE));
    drop(client);
    echo.server.finish();
}

// And with one that uploads as fast as it can: the deadline was looked at only when there was
// nothing to read.
#[test]
fn peers_that_flood_are_cut_at_the_stops_deadline() {
    let echo = Watched::start(|config| {
        config.timeouts.stop = ms(300);
        config.timeouts.close = FAR_AWAY;
    });
    let over = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        for _ in 0..2 {
            let (client, _) = echo.client();
            let mut stream = client.stream;
            let flood = frame(true, BINARY, &[7; 1000]).repeat(100);
            scope.spawn(move || while stream.write_all(&flood).is_ok() {});
            let (mut pipe, session) = echo.pipe();
            let flood = frame(true, PING, b"").repeat(10_000);
            let over = &over;
            scope.spawn(move || while pipe.try_send(&flood) && !over.load(Ordering::Relaxed) {});
            eventually("it floods", || session.traffic().bytes_in > 0);
        }
        let report = within(echo.server.handle.stop());
        over.store(true, Ordering::Relaxed);
        report
    });
    assert_eq!((report.drained, report.cut), (0, 4));
    for _ in 0..4 {
        // The last callback is made for each of them.
        assert_eq!(echo.records.next().timer, Some(Timer::Stop));
    }
    echo.server.finish();
}

#[test]
fn cut_ends_the_wait_for_those_who_do_not_answer() {
    let echo = Watched::start(|config| {
        config.timeouts.stop = FAR_AWAY;
        config.timeouts.close = FAR_AWAY;
    });
    let (mut stuck, _) = echo.client();
    echo.server.handle.request_stop();
    assert_eq!(stuck.read_close().0, 1001);
    echo.server.handle.shutdown().cut();
    assert_eq!(stuck.read_to_end(), b"");
    let closed = echo.records.next();
    assert_closed(&closed, Side::Server, Cause::Cut, Phase::Closing, Some(1001));
    assert!(!closed.clean);
    let report = echo.server.finish();
    assert_eq!((report.drained, report.cut), (0, 1));
}

// `cut` on a running server: nobody is told anything, and the record does not say otherwise.
#[test]
fn cut_at_once_says_nothing() {
    let (closes, records) = heard();
    let (busy, is_busy) = heard::<()>();
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let server = start(
        Server::builder()
            .workers(1)
            .on_message(async move |_: &Session, _: Message| {
                busy.send(()).unwrap();
                // Blocks the worker, so that it wakes when everything below has happened.
                let _ = wait.lock().unwrap().recv();
            })
            .on_close(record(&closes)),
    );
    let mut client = server.client();
    client.send_frame(TEXT, b"block");
    is_busy.next();
    server.handle.shutdown().cut();
    go.send(()).unwrap();
    assert_eq!(client.read_to_end(), b"", "no close frame");
    let closed = records.next();
    assert_closed(&closed, Side::Server, Cause::Cut, Phase::Open, None);
    assert_eq!((closed.clean, closed.timer), (false, None));
    let report = server.finish();
    assert_eq!((report.drained, report.cut), (0, 1));
}

// ---- Where it may be asked for ------------------------------------------------------------------

// The stop took a lock that the callback's caller held, or waited for the very callback it was
// called from.
#[test]
fn stop_may_be_asked_for_inside_every_callback() {
    for place in ["/accept", "/open", "/message", "/close", "/error"] {
        let shutdown: Arc<OnceLock<Shutdown>> = Arc::default();
        let stop = Arc::clone(&shutdown);
        let (closes, records) = heard();
        let asked = |session: &Session, place: &str| {
            if session.path() == place {
                session.shutdown().request_stop();
                session.shutdown().request_stop();
            }
        };
        let server = start(
            Server::builder()
                .on_accept(async move |request| {
                    if request.path() == "/accept" {
                        stop.get().unwrap().request_stop();
                    }
                    Ok(Upgrade::new())
                })
                .on_open(async move |session: &Session| asked(session, "/open"))
                .on_message(async move |session: &Session, _: Message| {
                    asked(session, "/message");
                    match session.path() {
                        "/error" => Err("fails".into()),
                        _ => Ok::<(), coracle::BoxError>(()),
                    }
                })
                .on_error(async move |session: &Session, _: &coracle::HandlerError| {
                    asked(session, "/error");
                })
                .on_close(async move |session: &Session, closed: &Closed| {
                    asked(session, "/close");
                    closes.send(closed.clone()).unwrap();
                }),
        );
        shutdown.set(server.handle.shutdown()).unwrap();
        let mut client = server.raw();
        client.send(handshake(place).as_bytes());
        // Also in the accept hook: it has said yes before the server looks at its own stop.
        let head = client.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{place}: {head}");
        match place {
            "/close" => {
                client.send_frame(CLOSE, &1000_u16.to_be_bytes());
                client.expect_close(1000);
            }
            "/error" => {
                client.send_frame(TEXT, b"fail");
                client.expect_close(1011);
            }
            "/message" => {
                client.send_frame(TEXT, b"stop");
                client.expect_close(1001);
            }
            _ => drop(client.expect_close(1001)),
        }
        let cause = records.next().cause;
        match place {
            "/close" => assert_eq!(cause, Cause::PeerClosed),
            "/error" => assert_eq!(cause, Cause::HandlerFailed),
            _ => assert_eq!(cause, Cause::Stopping, "{place}"),
        }
        // It ends by itself: nobody outside has asked for it.
        let report = within(server.handle.wait());
        // What had ended before the stop is not counted.
        let drained = usize::from(place != "/close");
        assert_eq!((report.drained, report.cut, report.panics), (drained, 0, 0), "{place}");
        assert!(records.try_next().is_none(), "{place}");
        server.finish();
    }
}

#[test]
fn ten_threads_may_ask_at_once() {
    let echo = Watched::start(|_| {});
    let (mut client, session) = echo.client();
    std::thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| echo.server.handle.request_stop());
            scope.spawn(|| session.shutdown().request_stop());
        }
    });
    client.expect_close(1001);
    let report = echo.server.finish();
    assert_eq!((report.drained, report.cut), (1, 0));
    assert_eq!(echo.records.next().cause, Cause::Stopping);
    assert!(echo.records.try_next().is_none());
}

#[test]
fn dropping_the_last_handle_stops() {
    let echo = Watched::start(|_| {});
    let address = echo.server.addr();
    let (mut client, session) = echo.client();
    let (clone, sessions) = (echo.server.handle.clone(), echo.server.handle.sessions());
    drop(echo.server);
    client.echo("there is another handle");
    drop(clone);
    client.expect_close(1001);
    assert_eq!(echo.records.next().cause, Cause::Stopping);
    // Neither sessions nor lists of them keep it running.
    assert!(!session.is_open());
    assert_eq!(sessions.count(), 0);
    eventually("nobody listens any more", || TcpStream::connect(address).is_err());
}

#[test]
fn a_callback_may_wait_for_the_stop() {
    let (stopped, heard_of_it) = heard::<()>();
    let server =
        start(Server::builder().on_message(async move |session: &Session, message: Message| {
            session.send(message).await.unwrap();
            session.shutdown().stopping().await;
            assert!(session.shutdown().is_stopping());
            stopped.send(()).unwrap();
        }));
    let mut client = server.client();
    client.echo("waiting");
    server.handle.request_stop();
    heard_of_it.next();
    client.expect_close(1001);
    assert_eq!(server.finish().panics, 0);
}

// ---- What is under way --------------------------------------------------------------------------

/// Says so when it is dropped.
struct Dropped(mpsc::Sender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[test]
fn a_handshake_whose_hook_is_waiting_is_refused_with_503() {
    let (dropped, was_dropped) = heard();
    let (asked, was_asked) = heard::<()>();
    let (opens, sessions) = heard();
    let server = start(
        Server::builder()
            .on_accept(async move |_| {
                let _guard = Dropped(dropped.clone());
                asked.send(()).unwrap();
                std::future::pending().await
            })
            .on_open(opened(&opens)),
    );
    let mut client = server.raw();
    client.send(handshake("/").as_bytes());
    was_asked.next();
    server.handle.request_stop();
    let answer = String::from_utf8(client.read_to_end()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("\r\nretry-after: "), "{answer}");
    was_dropped.next();
    drop(client);
    let report = server.finish();
    assert_eq!((report.drained, report.cut, report.panics), (0, 0, 0));
    assert!(sessions.try_next().is_none(), "it never was a session");
}

#[test]
fn a_head_that_has_not_arrived_whole_is_refused_with_503() {
    let echo = Watched::start(|config| config.workers = Some(1));
    let mut half = echo.server.raw();
    half.send(b"GET / HTTP/1.1\r\nHost: loc");
    let mut silent = echo.server.raw();
    // Later than both of them through the same listener and the same worker.
    let (mut client, _) = echo.client();
    client.echo("accepted");
    echo.server.handle.request_stop();
    for waiting in [&mut half, &mut silent] {
        let answer = String::from_utf8(waiting.read_to_end()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }
    client.expect_close(1001);
    drop((half, silent));
    let report = echo.server.finish();
    assert_eq!((report.drained, report.cut), (1, 0));
}

/// A server whose callbacks hang where the request says so.
fn hanging(close: Duration, stop: Duration) -> (TestServer, Heard<Closed>, Heard<()>) {
    let (closes, records) = heard();
    let (hangs, hung) = heard::<()>();
    let hang = move |session: &Session, place: &str| {
        let hangs = (session.path() == place).then(|| hangs.clone());
        async move {
            if let Some(hangs) = hangs {
                hangs.send(()).unwrap();
                std::future::pending::<()>().await;
            }
        }
    };
    let (in_open, in_message, in_close) = (hang.clone(), hang.clone(), hang);
    let server = start(
        Server::builder()
            .configure(|config| {
                config.timeouts.close = close;
                config.timeouts.stop = stop;
            })
            .on_open(async move |session: &Session| in_open(session, "/open").await)
            .on_message(async move |session: &Session, _: Message| {
                in_message(session, "/message").await;
            })
            .on_close(async move |session: &Session, closed: &Closed| {
                closes.send(closed.clone()).unwrap();
                in_close(session, "/close").await;
            }),
    );
    (server, records, hung)
}

// A handler that hung when the server was stopped held the process until somebody killed it. And
// because a further message had been read ahead, nobody read the peer's answer to the goodbye: a
// peer that did everything right was reported as one that did not answer.
#[test]
fn a_hanging_handler_does_not_hold_up_the_stop() {
    for (place, ahead) in [("/open", 0), ("/open", 1), ("/message", 1), ("/message", 2)] {
        let (server, records, hung) = hanging(ms(300), FAR_AWAY);
        let mut client = server.raw();
        client.send(handshake(place).as_bytes());
        client.read_head();
        for _ in 0..ahead {
            client.send_frame(TEXT, b"hang");
        }
        hung.next();
        let sessions = server.handle.sessions().all();
        let [session] = &sessions[..] else { panic!("{sessions:?}") };
        eventually("they have arrived", || session.traffic().messages_in == ahead);
        server.handle.request_stop();
        // The peer is told at once, and not when the handler is done.
        client.expect_close(1001);
        let closed = records.next();
        assert_closed(&closed, Side::Server, Cause::Stopping, Phase::Closing, Some(1001));
        assert_eq!((closed.clean, closed.timer), (true, None), "{place} {ahead}");
        let report = server.finish();
        assert_eq!((report.drained, report.cut), (1, 0), "{place} {ahead}");
    }
}

#[test]
fn a_hanging_handler_and_a_silent_peer_are_cut_together() {
    let (server, records, hung) = hanging(FAR_AWAY, ms(300));
    let mut client = server.raw();
    client.send(handshake("/message").as_bytes());
    client.read_head();
    client.send_frame(TEXT, b"hang");
    hung.next();
    server.handle.request_stop();
    assert_eq!(client.read_close().0, 1001);
    assert_eq!(client.read_to_end(), b"");
    assert_eq!(records.next().timer, Some(Timer::Stop), "the last callback is made all the same");
    let report = server.finish();
    assert_eq!((report.drained, report.cut), (0, 1));
}

#[test]
fn a_hanging_last_callback_does_not_hold_up_the_stop() {
    let (server, records, hung) = hanging(FAR_AWAY, ms(300));
    let mut client = server.raw();
    client.send(handshake("/close").as_bytes());
    client.read_head();
    client.send_frame(CLOSE, &1000_u16.to_be_bytes());
    client.expect_close(1000);
    hung.next();
    let report = server.finish();
    assert_eq!((report.cut, report.panics), (0, 0), "its session had ended before");
    assert!(records.next().clean);
}

// A message that arrived after the goodbye was given to a handler whose database was already shut.
#[test]
fn no_message_is_delivered_after_the_goodbye() {
    let delivered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&delivered);
    let server = start(Server::builder().on_message(async move |_: &Session, _: Message| {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let mut client = server.client();
    server.handle.request_stop();
    assert_eq!(client.read_close().0, 1001);
    client.send_frame(TEXT, b"too late");
    client.send_frame(CLOSE, &1001_u16.to_be_bytes());
    assert_eq!(client.read_to_end(), b"");
    let report = server.finish();
    assert_eq!((report.drained, report.cut), (1, 0));
    assert_eq!(delivered.load(Ordering::SeqCst), 0);
}

// A close that the application had begun goes its own way through the stop.
#[test]
fn a_close_that_is_under_way_keeps_its_code() {
    let echo = Watched::start(|_| {});
    let (mut client, session) = echo.client();
    session.close(CloseCode::RESTART, "new version");
    let (code, reason) = client.read_close();
    assert_eq!((code, &*reason), (1012, "new version"));
    echo.server.handle.request_stop();
    client.send_frame(CLOSE, &1012_u16.to_be_bytes());
    assert_eq!(client.read_to_end(), b"", "one close frame and no other");
    let report = echo.server.finish();
    assert_eq!((report.drained, report.cut), (1, 0));
    let closed = echo.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1012));
    assert!(closed.clean);
}

// ---- Who waits ----------------------------------------------------------------------------------

// The end was told to one waiter only, or only on the executor of the server itself.
#[test]
fn any_number_may_wait_on_any_executor() {
    let echo = Watched::start(|_| {});
    let (mut client, _) = echo.client();
    let handle = &echo.server.handle;
    {
        let mut cancelled = pin!(handle.wait());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(cancelled.as_mut().poll(&mut cx).is_pending());
    }
    let reports = std::thread::scope(|scope| {
        let mut waiting = Vec::new();
        for _ in 0..2 {
            waiting.push(scope.spawn(|| within(handle.wait())));
            waiting.push(scope.spawn(|| futures_lite::future::block_on(handle.wait())));
            waiting.push(scope.spawn(|| {
                let executor = smol::LocalExecutor::new();
                within(executor.run(executor.spawn(handle.wait())))
            }));
        }
        let spawned = smol::spawn({
            let handle = handle.clone();
            async move { handle.wait().await }
        });
        handle.request_stop();
        client.expect_close(1001);
        let mut reports: Vec<_> =
            waiting.into_iter().map(|thread| thread.join().unwrap()).collect();
        reports.push(within(spawned));
        reports
    });
    let report = echo.server.finish();
    assert_eq!(reports, vec![report; 7]);
    assert_eq!((report.drained, report.cut), (1, 0));
}

// ---- New connections ----------------------------------------------------------------------------

// The listener stayed open while sessions were drained: new clients were accepted by the kernel and
// served by nobody, instead of being sent to the next machine.
#[test]
fn nobody_listens_while_sessions_are_drained() {
    let echo = Watched::start(|config| {
        config.timeouts.stop = FAR_AWAY;
        config.timeouts.close = FAR_AWAY;
    });
    let address = echo.server.addr();
    let (mut stuck, _) = echo.client();
    echo.server.handle.request_stop();
    assert_eq!(stuck.read_close().0, 1001);
    let refused =
        || TcpStream::connect(address).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
    eventually("connecting is refused", refused);
    assert_eq!(echo.server.handle.sessions().count(), 1, "while a session is still there");
    match echo.server.handle.connect() {
        Err(Error::System { source, .. }) => {
            assert_eq!(source.kind(), ErrorKind::ConnectionRefused);
        }
        other => panic!("{other:?}"),
    }
    stuck.send_frame(CLOSE, &1001_u16.to_be_bytes());
    stuck.read_to_end();
    let report = echo.server.finish();
    assert_eq!((report.drained, report.cut), (1, 0));
    drop(stuck);
    TcpListener::bind(address).expect("the port is free");
}

#[test]
fn connecting_in_memory_after_the_stop_is_an_error() {
    let echo = Watched::start(|_| {});
    echo.server.handle.request_stop();
    assert!(matches!(echo.server.handle.connect(), Err(Error::System { .. })));
    within(echo.server.handle.wait());
    assert!(matches!(echo.server.handle.connect(), Err(Error::System { .. })));
    echo.server.finish();
}

// A connection in memory that was on its way to its worker when the stop came: its client must see
// an answer or the end, and not wait for ever. It was left in a channel that had no reader any more,
// in one of some hundred stops.
#[test]
fn a_connection_that_meets_the_stop_half_way_is_answered_or_ended() {
    for _ in 0..200 {
        let echo = Watched::start(|_| {});
        let mut pipe = Pipe::raw(&echo.server);
        echo.server.handle.request_stop();
        // Whichever was first: thrown away, refused, or upgraded and told goodbye.
        if pipe.try_send(handshake("/").as_bytes()) {
            pipe.send_frame(CLOSE, &1001_u16.to_be_bytes());
        }
        let answer = pipe.read_to_end();
        let answer = String::from_utf8_lossy(&answer);
        match answer.lines().next() {
            None => {}
            Some("HTTP/1.1 503 Service Unavailable") => {}
            Some("HTTP/1.1 101 Switching Protocols") => {
                let (_, frames) = answer.split_once("\r\n\r\n").unwrap();
                assert!(frames.ends_with("server stops"), "{frames}");
                assert!(echo.records.next().clean);
            }
            Some(_) => panic!("{answer}"),
        }
        drop(pipe);
        let report = echo.server.finish();
        assert_eq!((report.cut, report.panics), (0, 0));
    }
}

// ---- The example as a process -------------------------------------------------------------------

/// The echo example as a child process, killed at the end if it is still there.
struct Example {
    child: Child,
    address: SocketAddr,
}

impl Example {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(Self::path())
            .arg("127.0.0.1:0")
            .args(args)
            .env("RUST_LOG", "coracle=info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the example starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line
            .strip_prefix("listening on ws://")
            .and_then(|rest| rest.strip_suffix("/\n"))
            .and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("not the line that says ready: {line:?}"));
        Self { child, address }
    }

    /// `target/debug/examples/echo`, beside the directory of this test.
    fn path() -> PathBuf {
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().and_then(|deps| deps.parent()).expect("target/debug/deps");
        let path = profile.join("examples").join("echo");
        assert!(path.is_file(), "no {path:?}: `cargo build --example echo` makes it");
        path
    }

    fn client(&self) -> Raw {
        let mut raw = Raw::connect(self.address);
        raw.upgrade();
        raw
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is our child");
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the example ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that is removed at the end.
struct LogFile(PathBuf);

impl LogFile {
    fn new(name: &str) -> Self {
        let name = format!("coracle-{name}-{}.log", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn arg(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn read(&self) -> String {
        std::fs::read_to_string(&self.0).expect("the example wrote it")
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn the_example_says_goodbye_at_the_first_signal_and_exits_with_success() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut example = Example::start(&["--workers", "1"]);
        let mut clients: Vec<_> = (0..3).map(|_| example.client()).collect();
        for client in &mut clients {
            client.echo("hello");
        }
        example.signal(signal);
        for client in &mut clients {
            client.expect_close(1001);
        }
        assert_eq!(example.wait().code(), Some(0), "{signal:?}");
    }
}

#[test]
fn with_one_worker_the_process_has_one_thread() {
    let mut example = Example::start(&["--workers", "1"]);
    let mut client = example.client();
    client.echo("hello");
    let threads = std::fs::read_dir(format!("/proc/{}/task", example.child.id())).unwrap();
    assert_eq!(threads.count(), 1);
    example.signal(Signal::TERM);
    client.expect_close(1001);
    assert_eq!(example.wait().code(), Some(0));
}

/// Tells the child process of the next test that it is one.
const BLOCKED: &str = "CORACLE_TEST_BLOCKED";

#[test]
#[ignore = "the body of a child process that another test starts"]
fn a_server_with_a_handler_that_blocks() {
    if std::env::var_os(BLOCKED).is_none() {
        return;
    }
    let server = Server::builder().bind("127.0.0.1:0").workers(1).on_message(
        async |_: &Session, _: Message| {
            println!("blocked");
            std::thread::sleep(FAR_AWAY);
        },
    );
    server.run_with(|server| println!("\nlistening on {}", server.local_addr())).unwrap();
}

// Ctrl-C asked the thread that hung to stop.
#[test]
fn a_server_that_hangs_on_the_calling_thread_can_be_ended_by_two_signals() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "a_server_with_a_handler_that_blocks"])
        .env(BLOCKED, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let address = lines.find_map(|line| line.strip_prefix("listening on ")?.parse().ok()).unwrap();
    let mut client = Raw::connect(address);
    client.upgrade();
    client.send_frame(TEXT, b"hang");
    assert!(lines.any(|line| line == "blocked"));
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    assert!(matches!(status.signal(), Some(2 | 15)), "{status}");
}

#[test]
fn a_second_signal_cuts_a_client_that_does_not_answer() {
    // With two workers it is not the one that listens to signals that has it; the one that does has ended by then.
    for workers in ["1", "2"] {
        let log = LogFile::new(&format!("second-signal-{workers}"));
        let mut example = Example::start(&["--log-file", log.arg(), "--workers", workers]);
        let mut polite = example.client();
        polite.echo("hello");
        let mut stuck = example.client();
        stuck.echo("hello");
        example.signal(Signal::TERM);
        polite.expect_close(1001);
        assert_eq!(stuck.read_close().0, 1001);
        if workers == "2" {
            let tasks = format!("/proc/{}/task", example.child.id());
            eventually("a thread listens to signals", || {
                let names = std::fs::read_dir(&tasks).unwrap().filter_map(|task| {
                    std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
                });
                names.into_iter().any(|name| name == "coracle-signals\n")
            });
        }
        assert!(example.child.try_wait().unwrap().is_none(), "it waits for the answer");
        example.signal(Signal::INT);
        assert_eq!(stuck.read_to_end(), b"");
        assert_eq!(example.wait().code(), Some(0));
        let log = log.read();
        assert!(log.contains(&format!("listening on {}", example.address)), "{log}");
        assert!(log.contains("signal 15: stopping"), "{log}");
        assert!(log.contains("signal 2 again"), "{log}");
        assert!(log.contains("1 sessions drained, 1 cut"), "{log}");
    }
}

#[test]
fn the_example_appends_to_its_log_file() {
    let log = LogFile::new("append");
    std::fs::write(&log.0, "from yesterday\n").unwrap();
    let mut example = Example::start(&["--log-file", log.arg()]);
    example.client().goodbye();
    example.signal(Signal::TERM);
    assert_eq!(example.wait().code(), Some(0));
    let text = log.read();
    assert!(text.starts_with("from yesterday\n"), "{text}");
    assert!(text.contains("stopped in "), "{text}");
}

#[test]
fn the_example_explains_what_it_does_not_understand() {
    for (args, said) in [
        (&["--workers"][..], "--workers needs a value"),
        (&["--workers", "many"], "is not a whole number"),
        (&["--worker", "1"], "unexpected argument"),
        (&["--workers", "0"], "at least 1"),
        (&["--log-file", "/nonexistent/x.log"], "/nonexistent/x.log"),
    ] {
        let output = Command::new(Example::path()).arg("127.0.0.1:0").args(args).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert!(error.contains(said), "{args:?}: {error}");
    }
}
