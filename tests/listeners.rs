//! Where clients come from beside TCP: paths of the Unix family, sockets that a service manager has
//! passed, streams of the application; and what a server says when it cannot listen.

#[path = "support/answer.rs"]
mod answer;
#[cfg(feature = "tls")]
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use answer::let_in;
use coracle::{
    Builder, Cause, CloseCode, Closed, Error, Handler, Handover, ListenAddr, Message, Peer,
    Request, Server, Session, Side, UnixSocket, Upgrade,
};
use futures_lite::{AsyncRead, AsyncWrite};
use support::*;

/// An echo server that reports each session as it opens and as it closes, without an address.
struct App {
    sessions: Heard<Session>,
    records: Heard<Closed>,
    /// How often the accept hook was asked.
    asked: Arc<AtomicUsize>,
}

fn app() -> (Builder<impl Handler>, App) {
    let _ = env_logger::builder().is_test(true).try_init();
    let (opens, sessions) = heard();
    let (closes, records) = heard();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let builder = Server::builder()
        .workers(2)
        .on_accept(async move |_: &Request| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(Upgrade::new())
        })
        .on_open(async move |session: &Session| {
            // The test may be over, and not care.
            let _ = opens.send(session.clone());
        })
        .on_message(async |session: &Session, message: Message| session.send(message).await)
        .on_close(record(&closes));
    (builder, App { sessions, records, asked })
}

fn serve(builder: Builder<impl Handler>) -> TestServer {
    TestServer { handle: builder.start().expect("the server starts") }
}

#[track_caller]
fn refused(builder: Builder<impl Handler>) -> String {
    let error = builder.start().expect_err("the server does not start");
    assert!(
        matches!(error, Error::Bind { .. } | Error::Listen { .. } | Error::Config(_)),
        "{error}"
    );
    error.to_string()
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

fn upgraded(mut raw: Raw) -> Raw {
    raw.upgrade();
    raw
}

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_unix_socket_is_served_and_its_file_goes_with_the_server() {
    let scratch = Scratch::new("unix");
    let (path, other) = (scratch.path("a.sock"), scratch.path("b.sock"));
    let (builder, app) = app();
    let server = serve(
        builder
            .bind_unix(&*path)
            .bind("127.0.0.1:0")
            .bind_unix(UnixSocket::new(&other).mode(0o606)),
    );
    assert_eq!((mode_of(&path), mode_of(&other)), (0o660, 0o606));
    let listeners = server.handle.listeners();
    assert_eq!(listeners[0], ListenAddr::Unix(Some(path.clone())));
    assert_eq!(listeners[0].to_string(), format!("unix:{}", path.display()));
    assert_eq!(listeners[1], ListenAddr::Tcp(server.addr()));
    assert_eq!(server.handle.local_addrs(), [server.addr()]);

    let mut client = upgraded(Raw::connect_unix(&path));
    let session = app.sessions.next();
    assert_eq!(
        (session.peer(), session.peer_addr(), session.client_ip()),
        (Peer::Unix, None, None)
    );
    // More than the socket's buffers hold, so that both sides have to wait for each other.
    let long = "x".repeat(60_000);
    for _ in 0..20 {
        client.send_frame(TEXT, long.as_bytes());
    }
    for _ in 0..20 {
        assert_eq!(client.read_frame().payload.len(), long.len());
    }
    upgraded(Raw::connect_unix(&other)).goodbye();
    server.client().goodbye();

    // Open until the stop, which says goodbye here as everywhere.
    let stopping = server.handle.clone();
    stopping.request_stop();
    client.expect_close(1001);
    server.finish();
    assert!(!path.exists() && !other.exists(), "nothing is left");
}

#[test]
fn a_socket_file_left_by_a_crashed_process_is_replaced() {
    // A server is killed. Its socket's file stays, binding to it fails with "address in use", and a
    // server that takes that for an answer does not come up again until somebody removes the file.
    let scratch = Scratch::new("crash");
    let path = scratch.path("a.sock");
    let mut process = Process::start(Command::new("env").env(PATH, &path), &scratch);
    upgraded(Raw::connect_unix(&path)).goodbye();
    process.kill();
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket(), "it is left");
    assert!(UnixStream::connect(&path).is_err(), "and nobody is there");

    let (builder, _app) = app();
    let server = serve(builder.bind_unix(&*path));
    upgraded(Raw::connect_unix(&path)).goodbye();
    server.finish();
    assert!(!path.exists());
}

#[test]
fn a_running_server_keeps_its_path() {
    let scratch = Scratch::new("taken");
    let path = scratch.path("a.sock");
    let (builder, _app) = app();
    let server = serve(builder.bind_unix(&*path));
    let mut client = upgraded(Raw::connect_unix(&path));
    let said = refused(Server::builder().bind_unix(&*path));
    assert_says(&said, &[&format!("unix:{}", path.display()), "listens there", "another path"]);
    client.echo("not disturbed");
    upgraded(Raw::connect_unix(&path)).goodbye();
    client.goodbye();
    server.finish();
}

#[test]
fn a_server_does_not_remove_the_file_of_its_successor() {
    // The file is removed while the server runs (by an impatient script), a new server puts its own
    // there, and then the old one ends.
    let scratch = Scratch::new("successor");
    let path = scratch.path("a.sock");
    let old = serve(app().0.bind_unix(&*path));
    fs::remove_file(&path).unwrap();
    let new = serve(app().0.bind_unix(&*path));
    old.finish();
    upgraded(Raw::connect_unix(&path)).goodbye();
    new.finish();
    assert!(!path.exists());
}

#[test]
fn a_server_that_does_not_start_leaves_no_socket() {
    let scratch = Scratch::new("halfway");
    let path = scratch.path("a.sock");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    refused(Server::builder().bind_unix(&*path).bind(taken.local_addr().unwrap()));
    assert!(!path.exists());
}

#[test]
fn what_cannot_be_listened_on_is_named_with_what_to_do() {
    let scratch = Scratch::new("errors");
    let builder = Server::builder;

    let long = scratch.path(&"x".repeat(120));
    let said = refused(builder().bind_unix(&*long));
    assert_says(&said, &[&format!("unix:{}", long.display()), "may have 107", "shorter"]);

    let file = scratch.path("file");
    fs::write(&file, "precious").unwrap();
    let said = refused(builder().bind_unix(&*file));
    assert_says(&said, &[&format!("unix:{}", file.display()), "no socket", "another path"]);
    assert_eq!(fs::read(&file).unwrap(), b"precious", "what is no socket is not touched");

    let missing = scratch.path("missing/a.sock");
    let said = refused(builder().bind_unix(&*missing));
    assert_says(&said, &[&missing.display().to_string(), "does not exist", "create it"]);

    let path = scratch.path("a.sock");
    let said = refused(builder().bind_unix(UnixSocket::new(&path).mode(0o444)));
    assert_says(&said, &["0o444", &path.display().to_string(), "nobody can connect", "0o660"]);
    let said = refused(builder().bind_unix(UnixSocket::new(&path).mode(0o10666)));
    assert_says(&said, &["0o10666", &path.display().to_string(), "0o000 to 0o777"]);
    assert!(!path.exists());

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let said = refused(builder().bind(addr));
    assert_says(&said, &[&addr.to_string(), "another process has this port", "another port"]);

    // As the system says it to those who may not; the tests may run as somebody who may.
    let source = io::ErrorKind::PermissionDenied.into();
    let said = Error::Bind { address: "0.0.0.0:80".to_owned(), source }.to_string();
    assert_says(&said, &["0.0.0.0:80", "below 1024", "CAP_NET_BIND_SERVICE", "higher port"]);

    let said = refused(builder().listen_fds());
    assert_says(&said, &["LISTEN_FDS is not set", "socket unit", "`bind`"]);
}

#[test]
fn all_peers_of_the_unix_family_are_one_address() {
    let scratch = Scratch::new("limit");
    let path = scratch.path("a.sock");
    let (builder, app) = app();
    let server = serve(
        builder
            .bind_unix(&*path)
            .bind("127.0.0.1:0")
            .configure(|config| config.limits.sessions_per_address = Some(1)),
    );
    let mut client = upgraded(Raw::connect_unix(&path));
    // When this comes back its handshake is over, and there is a place for the next.
    client.echo("hello");
    let mut second = Raw::connect_unix(&path);
    let answer = second.ask(handshake("/").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    // Which is not the network's business.
    server.client().goodbye();
    client.goodbye();
    for _ in 0..2 {
        app.records.next();
    }
    // The second may still be on its way out.
    let_in(|| Raw::connect_unix(&path), &[503]).goodbye();
    server.finish();
}

#[test]
fn a_given_unix_listener_is_served_and_its_file_is_left() {
    let scratch = Scratch::new("given");
    let path = scratch.path("a.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = serve(app().0.unix_listener(listener));
    assert_eq!(server.handle.listeners(), [ListenAddr::Unix(Some(path.clone()))]);
    upgraded(Raw::connect_unix(&path)).goodbye();
    server.finish();
    assert!(path.exists(), "whoever made it removes it");
}

/// Both ends of a connected pair: one for the server, one for the client.
fn pair() -> (smol::net::unix::UnixStream, Raw) {
    let (server, client) = UnixStream::pair().unwrap();
    (smol::Async::new(server).unwrap().into(), Raw::over(client.into()))
}

#[test]
fn any_stream_is_served_from_its_request_on() {
    let (builder, app) = app();
    let server = serve(builder);
    let (stream, raw) = pair();
    server.handle.serve(stream).unwrap();
    let mut client = upgraded(raw);
    let session = app.sessions.next();
    assert_eq!((session.peer(), session.peer_addr()), (Peer::Stream, None));
    let long = "x".repeat(60_000);
    for _ in 0..20 {
        client.send_frame(TEXT, long.as_bytes());
    }
    for _ in 0..20 {
        assert_eq!(client.read_frame().payload.len(), long.len());
    }
    client.goodbye();
    let closed = app.records.next();
    assert!(closed.clean, "{closed}");

    // What is no request is told so, and a client that goes away is noticed.
    let (stream, mut raw) = pair();
    server.handle.serve(stream).unwrap();
    assert!(raw.ask(b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let (stream, raw) = pair();
    server.handle.serve(stream).unwrap();
    drop(upgraded(raw));
    assert_eq!(app.records.next().cause, Cause::PeerVanished);
    server.finish();
}

#[test]
fn streams_count_in_the_limits_and_end_with_the_server() {
    let (builder, app) = app();
    let server = serve(builder.configure(|config| {
        config.limits.sessions = Some(3);
        config.limits.sessions_per_address = Some(1);
    }));
    let from = |host| SocketAddr::from(([10, 0, 0, host], 4000));
    let (stream, raw) = pair();
    server.handle.serve_from(stream, from(1)).unwrap();
    let mut first = upgraded(raw);
    let session = app.sessions.next();
    assert_eq!(session.peer_addr(), Some(from(1)));
    assert_eq!(session.client_ip(), Some(from(1).ip()));
    let ask = |peer| {
        let (stream, mut raw) = pair();
        server.handle.serve_from(stream, peer).unwrap();
        raw.ask(handshake("/").as_bytes())
    };
    let answer = ask(from(1));
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    let (stream, raw) = pair();
    server.handle.serve_from(stream, from(2)).unwrap();
    let mut second = upgraded(raw);
    // Without an address there is no limit of one.
    let (stream, raw) = pair();
    server.handle.serve(stream).unwrap();
    let mut third = upgraded(raw);
    let answer = ask(from(3));
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");

    server.handle.request_stop();
    for client in [&mut first, &mut second, &mut third] {
        client.expect_close(1001);
    }
    let handle = server.handle.clone();
    server.finish();
    let (stream, mut raw) = pair();
    let error = handle.serve(stream).unwrap_err();
    assert!(
        matches!(error, Error::System { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    );
    assert_eq!(raw.read_to_end(), b"", "the stream has been dropped");
}

/// A stream that keeps what is written until it is flushed, and says when it is dropped.
struct Lazy<S> {
    stream: S,
    kept: Vec<u8>,
    _alive: Arc<()>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Lazy<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lazy<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.kept.len() > 1000 {
            ready!(self.as_mut().poll_flush(cx))?;
        }
        let some = &bytes[..bytes.len().min(777)];
        self.kept.extend_from_slice(some);
        Poll::Ready(Ok(some.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, kept, .. } = &mut *self;
        while !kept.is_empty() {
            let written = ready!(Pin::new(&mut *stream).poll_write(cx, kept))?;
            kept.drain(..written);
        }
        Pin::new(stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[test]
fn a_stream_that_keeps_what_is_not_flushed_is_flushed_closed_and_dropped() {
    // TLS streams and compressing ones take bytes and send them when they are told. A server that does
    // not tell them has answered, and the client waits.
    let (builder, _app) = app();
    let server = serve(builder);
    let alive = Arc::new(());
    let (stream, raw) = pair();
    let lazy = Lazy { stream, kept: Vec::new(), _alive: Arc::clone(&alive) };
    server.handle.serve(lazy).unwrap();
    let mut client = upgraded(raw);
    client.echo("hello");
    client.echo(&"long".repeat(10_000));
    client.send_frame(PING, b"there?");
    assert_eq!(client.read_frame().opcode, PONG);
    client.goodbye();
    server.finish();
    assert_eq!(Arc::strong_count(&alive), 1, "the stream is dropped");
}

/// A request as another HTTP server has it.
fn parts(target: &str) -> coracle::http_types::request::Parts {
    coracle::http_types::Request::get(target).body(()).unwrap().into_parts().0
}

#[test]
fn an_upgraded_stream_begins_with_what_was_read_ahead() {
    let (builder, app) = app();
    let server = serve(builder);
    let frames =
        [frame(true, TEXT, b"one"), frame(true, TEXT, b"two"), frame(true, TEXT, b"three")];
    let bytes = frames.concat();
    let peer = SocketAddr::from(([10, 0, 0, 1], 4000));
    // However far the other server has read.
    for ahead in 0..=bytes.len() {
        let (stream, mut client) = pair();
        let handover = Handover::new(&parts("http://example.com/chat?room=1"))
            .peer_addr(peer)
            .subprotocol("chat")
            .data(42_u32)
            .read_ahead(&bytes[..ahead]);
        server.handle.serve_upgraded(stream, handover).unwrap();
        client.send(&bytes[ahead..]);
        for text in ["one", "two", "three"] {
            assert_eq!(client.read_frame().payload, text.as_bytes(), "{ahead} bytes ahead");
        }
        let session = app.sessions.next();
        assert_eq!((session.path(), session.query()), ("/chat", Some("room=1")));
        assert_eq!((session.subprotocol(), session.data()), (Some("chat"), Some(&42_u32)));
        assert_eq!(session.peer_addr(), Some(peer));
        client.goodbye();
        let closed = app.records.next();
        assert!(closed.clean && closed.by == Side::Peer, "{closed}");
    }
    assert_eq!(app.asked.load(Ordering::SeqCst), 0, "whoever upgraded a stream has accepted");
    server.finish();
}

#[test]
fn an_upgraded_stream_without_a_place_is_closed_by_a_frame() {
    let (builder, app) = app();
    let server = serve(builder.configure(|config| config.limits.sessions = Some(1)));
    let (stream, mut first) = pair();
    server.handle.serve_upgraded(stream, Handover::new(&parts("/"))).unwrap();
    first.echo("hello");
    assert_eq!(app.sessions.next().path(), "/");
    let (stream, mut second) = pair();
    server.handle.serve_upgraded(stream, Handover::new(&parts("/"))).unwrap();
    assert_says(&second.expect_close(CloseCode::TRY_AGAIN_LATER.as_u16()), &["as many sessions"]);
    first.goodbye();
    assert!(app.records.next().clean);
    assert!(app.sessions.try_next().is_none(), "the second has never been one");
    server.finish();
}

/// Hands over streams until the server says that it stops; then sees how each of them ends. Returns how
/// many were taken.
fn hand_over_until_refused(handle: &coracle::ServerHandle, begun: &AtomicUsize) -> usize {
    let mut taken = Vec::new();
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        assert!(std::time::Instant::now() < deadline, "never refused");
        let (stream, mut client) = pair();
        let outcome = handle.serve_upgraded(stream, Handover::new(&parts("/")));
        begun.fetch_add(1, Ordering::SeqCst);
        let refused = match outcome {
            Ok(()) => {
                taken.push(client);
                continue;
            }
            Err(Error::System { source, .. }) => source.kind(),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(client.read_to_end(), b"", "the stream has been dropped");
        match refused {
            io::ErrorKind::ConnectionRefused => break,
            // So many are on their way that they wait.
            io::ErrorKind::WouldBlock => {}
            kind => panic!("{kind}"),
        }
    }
    for client in &mut taken {
        assert_eq!(client.read_close().0, 1001);
        // Who came too late for a session is given a second to read that. It may take longer until it is the turn
        // of this one among thousands: then its answer finds nobody.
        let _ = client.stream.write_all(&frame(true, CLOSE, &1001_u16.to_be_bytes()));
        let mut rest = Vec::new();
        match client.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
        assert!(rest.is_empty(), "nothing follows a close frame");
    }
    taken.len()
}

#[test]
fn a_stream_that_meets_the_stop_half_way_is_refused_or_ended() {
    // It was looked whether the server stops, the server stopped, and the stream was put where nobody looks
    // any more: its client waited for ever.
    for round in 0..20 {
        let (builder, app) = app();
        let server = serve(builder.configure(|config| {
            config.limits.sessions = Some(10_000);
            // Nobody is ended by the clock.
            config.timeouts.stop = std::time::Duration::from_secs(600);
        }));
        let begun = AtomicUsize::new(0);
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| hand_over_until_refused(&server.handle, &begun)))
                .collect();
            eventually("streams come in", || begun.load(Ordering::SeqCst) >= 5 * round);
            server.handle.request_stop();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let report = server.finish();
        assert_eq!(report.cut, 0, "{report:?}");
        let (opened, closed) = (app.sessions.drain(), app.records.drain());
        assert_eq!(opened, closed, "each session that began has ended");
        assert!(opened <= taken, "{opened} of {taken}");
    }
}

/// Where the server in a process of its own listens, and the names of the sockets that it takes.
const PATH: &str = "CORACLE_TEST_PATH";
const TAKE: &str = "CORACLE_TEST_TAKE";
/// Where it reports, on a connection whose end it takes for its own.
const CONTROL: &str = "CORACLE_TEST_CONTROL";

#[test]
#[ignore = "the process that other tests start; alone it does nothing"]
fn server_in_a_process_of_its_own() {
    let Ok(control) = std::env::var(CONTROL) else {
        return;
    };
    let mut control = UnixStream::connect(control).unwrap();
    let builder = || app().0;
    let mut servers = Vec::new();
    if let Ok(path) = std::env::var(PATH) {
        servers.push(serve(builder().bind_unix(path)));
    }
    if let Ok(names) = std::env::var(TAKE) {
        for name in names.split(',') {
            let started = match name {
                "*" => builder().listen_fds().start(),
                #[cfg(feature = "tls")]
                "secure" => {
                    let (chain, key) = (secure::cert("server.pem"), secure::cert("server.key"));
                    let tls = coracle::config::Tls::new(chain, key);
                    builder().tls(tls).listen_fds_tls(name).start()
                }
                name => builder().listen_fds_named(name).start(),
            };
            match started {
                Ok(handle) => {
                    writeln!(control, "{name} is {:?}", handle.listeners()).unwrap();
                    servers.push(TestServer { handle });
                }
                Err(error) => writeln!(control, "{name} fails: {error}").unwrap(),
            }
        }
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            writeln!(control, "{name} is {:?}", std::env::var(name).ok()).unwrap();
        }
    }
    writeln!(control, "ready").unwrap();
    control.read_to_end(&mut Vec::new()).unwrap();
    for server in servers {
        server.finish();
    }
    writeln!(control, "finished").unwrap();
}

/// The process above.
struct Process {
    child: Child,
    control: BufReader<UnixStream>,
    /// What it said before it was ready.
    said: Vec<String>,
}

impl Process {
    /// `command` runs its arguments.
    fn start(command: &mut Command, scratch: &Scratch) -> Self {
        let path = scratch.path("control");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut child = command
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "server_in_a_process_of_its_own", "--ignored", "--nocapture"])
            .env(CONTROL, &path)
            .spawn()
            .unwrap();
        let mut accepted = None;
        eventually("the process reports", || {
            assert!(child.try_wait().unwrap().is_none(), "it has ended");
            accepted = listener.accept().ok();
            accepted.is_some()
        });
        let (control, _) = accepted.unwrap();
        control.set_nonblocking(false).unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        fs::remove_file(path).unwrap();
        let mut process = Self { child, control: BufReader::new(control), said: Vec::new() };
        loop {
            match process.line() {
                line if line == "ready" => return process,
                line => process.said.push(line),
            }
        }
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.control.read_line(&mut line).unwrap() > 0, "it has ended: {:?}", self.said);
        line.trim_end().to_owned()
    }

    #[track_caller]
    fn expect_said(&self, parts: &[&str]) {
        let found = self.said.iter().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "{parts:?} is not in {:#?}", self.said);
    }

    /// In a way that no program can prepare for.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// It stops its servers and proves that nothing is left.
    fn finish(mut self) {
        self.control.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(self.line(), "finished");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The test has failed, or the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the process as a service manager does: these are its descriptors 3 and 4. A shell moves them
/// there from its standard input and output, which cannot be done here without unsafe code. In
/// `environment`, `$$` is the number of the process.
fn activated(sockets: [OwnedFd; 2], environment: &str, take: &str, scratch: &Scratch) -> Process {
    let script = format!("exec env {environment} \"$@\" 3<&0 4<&1 </dev/null >/dev/null");
    let [first, second] = sockets;
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).env(TAKE, take).stdin(first).stdout(second);
    Process::start(&mut command, scratch)
}

/// A listener of each family, as a service manager has them; and where they listen.
fn passed(scratch: &Scratch) -> ([OwnedFd; 2], SocketAddr, PathBuf) {
    let path = scratch.path("passed.sock");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = tcp.local_addr().unwrap();
    let unix = UnixListener::bind(&path).unwrap();
    ([tcp.into(), unix.into()], addr, path)
}

#[test]
fn sockets_of_the_service_manager_are_served() {
    let scratch = Scratch::new("activation");
    let (sockets, addr, path) = passed(&scratch);
    let process = activated(sockets, "LISTEN_PID=$$ LISTEN_FDS=2", "*,*", &scratch);
    process.expect_said(&["* is", &addr.to_string(), &path.display().to_string()]);
    process.expect_said(&["* fails", "taken already"]);
    // No child process takes them for its own.
    process.expect_said(&["LISTEN_PID is None"]);
    process.expect_said(&["LISTEN_FDS is None"]);
    let mut client = Raw::connect(addr);
    client.upgrade();
    client.goodbye();
    upgraded(Raw::connect_unix(&path)).goodbye();
    process.finish();
    assert!(path.exists(), "the file is the service manager's");
}

#[test]
fn sockets_of_the_service_manager_are_taken_by_their_names() {
    let scratch = Scratch::new("names");
    let (sockets, addr, path) = passed(&scratch);
    let environment = "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:admin";
    let process = activated(sockets, environment, "admin,other,web", &scratch);
    process.expect_said(&["admin is", &path.display().to_string()]);
    process.expect_said(&["other fails", "no descriptor is named", "web", "FileDescriptorName="]);
    process.expect_said(&["web is", &addr.to_string()]);
    let mut client = Raw::connect(addr);
    client.upgrade();
    client.goodbye();
    upgraded(Raw::connect_unix(&path)).goodbye();
    process.finish();
}

#[cfg(feature = "tls")]
#[test]
fn sockets_of_the_service_manager_are_served_with_tls_where_that_is_asked_for() {
    use secure::{Secure, client_config};

    for environment in ["LISTEN_FDNAMES=secure:web", "LISTEN_FDNAMES=web:secure"] {
        let scratch = Scratch::new("secure");
        let (sockets, addr, path) = passed(&scratch);
        let tcp_is_secure = environment.contains("=secure");
        let environment = format!("LISTEN_PID=$$ LISTEN_FDS=2 {environment}");
        let process = activated(sockets, &environment, "secure,web", &scratch);
        process.expect_said(&["secure is"]);
        process.expect_said(&["web is"]);
        let unix = UnixStream::connect(&path).unwrap();
        unix.set_read_timeout(Some(PATIENCE)).unwrap();
        if tcp_is_secure {
            Secure::open(addr).goodbye();
            upgraded(Raw::over(unix.into())).goodbye();
        } else {
            let mut client = Secure::over(unix, client_config(), "localhost").unwrap();
            client.upgrade();
            client.goodbye();
            upgraded(Raw::connect(addr)).goodbye();
        }
        process.finish();
    }
}

#[test]
fn descriptors_that_are_not_ours_are_not_touched() {
    // A parent that was activated and starts us with its environment: descriptor 3 is then anything,
    // and who takes it, closes it.
    for (environment, parts) in [
        ("LISTEN_PID=1 LISTEN_FDS=2", ["LISTEN_PID is \"1\"", "another one"]),
        ("LISTEN_FDS=2", ["LISTEN_PID is \"\"", "another one"]),
        ("LISTEN_PID=$$", ["LISTEN_FDS is not set", "socket unit"]),
        ("LISTEN_PID=$$ LISTEN_FDS=0", ["LISTEN_FDS is \"0\"", "at least 1"]),
        ("LISTEN_PID=$$ LISTEN_FDS=-2", ["LISTEN_FDS is \"-2\"", "number"]),
        ("LISTEN_PID=$$ LISTEN_FDS=99999999999", ["LISTEN_FDS is \"99999999999\"", "number"]),
        ("LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=one", ["has 1 names", "2 descriptors"]),
    ] {
        let scratch = Scratch::new("foreign");
        let (sockets, ..) = passed(&scratch);
        let process = activated(sockets, environment, "*", &scratch);
        process.expect_said(&["* fails", parts[0], parts[1]]);
        for name in ["LISTEN_PID", "LISTEN_FDS"] {
            let set = environment.contains(&format!("{name}="));
            process.expect_said(&[&format!("{name} is {}", if set { "Some" } else { "None" })]);
        }
        process.finish();
    }
}

#[test]
fn what_is_passed_and_is_no_listener_is_named() {
    let scratch = Scratch::new("no-listener");
    let datagrams: OwnedFd = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into();
    let (connected, _peer) = UnixStream::pair().unwrap();
    let environment = "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=udp:connected";
    let sockets = [datagrams, connected.into()];
    let process = activated(sockets, environment, "udp,connected", &scratch);
    process.expect_said(&["udp fails", "descriptor 0", "no stream socket", "ListenStream="]);
    process.expect_said(&["connected fails", "descriptor 1", "does not listen", "Accept=no"]);
    process.finish();
}
