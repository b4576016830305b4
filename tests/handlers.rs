//! What handlers may do and come to: they panic, they hang, they fail, they return; and the order in which
//! they are called.

#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use coracle::{
    BoxError, Cause, CloseCode, Closed, Flow, Handler, HandlerError, Message, Outcome, Phase,
    SendError, Server, Session, Side,
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

/// Panics when it is asked how it wants its messages, and says what else it is called for. With "/fail"
/// its `open` fails as well.
struct Undecided(mpsc::Sender<String>);

impl Handler for Undecided {
    fn streams(&self, _: &Session) -> bool {
        panic!("undecided");
    }

    async fn open(&self, session: &Session) -> Outcome {
        self.0.send("open".into()).unwrap();
        if session.path() == "/fail" { Err("nor this".into()) } else { Ok(Flow::Continue) }
    }

    async fn message(&self, _: &Session, _: Message) -> Outcome {
        self.0.send("message".into()).unwrap();
        Ok(Flow::Continue)
    }

    async fn error(&self, _: &Session, error: &HandlerError) {
        self.0.send(error.to_string()).unwrap();
    }

    async fn close(&self, _: &Session, closed: &Closed) {
        self.0.send(format!("{:?}", closed.cause)).unwrap();
    }
}

// The question stood in front of `open`, within the same guard: an application that keeps its sessions from
// `open` to `close` was told of an end without a beginning.
#[test]
fn a_panic_in_streams_ends_the_session_between_its_first_and_its_last_callback() {
    let (sender, told) = heard();
    let server = start(Server::builder().workers(1).handler(Undecided(sender)));
    for (path, failures) in [("/", &[][..]), ("/fail", &["handler failed: nor this"])] {
        let mut client = server.raw();
        client.send(handshake(path).as_bytes());
        client.send_frame(TEXT, b"for nobody");
        client.read_head();
        client.expect_close(1011);
        let expected = [&["open", "handler panicked: undecided"], failures, &["HandlerPanicked"]];
        for expected in expected.concat() {
            assert_eq!(told.next(), expected);
        }
    }
    assert_eq!(server.finish().panics, 2);
    assert_eq!(told.try_next(), None);
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
