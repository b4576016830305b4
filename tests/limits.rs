//! How many: sessions, connections of one address, handshakes, open files. Every place is given
//! back, by every kind of end.

#[path = "support/answer.rs"]
mod answer;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use answer::{Answer, ask, let_in, read_answer};
use coracle::config::Config;
use coracle::{
    Builder, CloseCode, Error, Flow, Handler, Message, Request, Response, Server, Session, Upgrade,
};
use rustix::net::{AddressFamily, SocketType};
use support::*;

/// Short enough for a test that waits for it, long enough for an honest client on a busy machine.
const BRIEF: Duration = Duration::from_millis(300);

/// A connection from another address of the loopback.
fn raw_from(host: u8, server: &TestServer) -> Raw {
    connect_from(host, server.addr())
}

fn connect_from(host: u8, addr: SocketAddr) -> Raw {
    let SocketAddr::V4(to) = addr else { unreachable!() };
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, host), 0)).unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    Raw { stream }
}

/// An application that ends its sessions in every way an application can.
fn app() -> Builder<impl Handler> {
    async fn accept(request: &Request) -> Result<Upgrade, Response> {
        match request.path() {
            "/refuse" => {
                let response = coracle::http_types::Response::builder().status(401);
                Err(response.body(b"not you".to_vec()).unwrap())
            }
            "/refuse-later" => {
                smol::Timer::after(Duration::from_millis(1)).await;
                let response = coracle::http_types::Response::builder().status(401);
                Err(response.body(b"not you".to_vec()).unwrap())
            }
            "/hang" => std::future::pending().await,
            "/panic" => panic!("the accept hook panics, as the test asks"),
            "/mistake" => Ok(Upgrade::new().subprotocol("never offered")),
            _ => Ok(Upgrade::new()),
        }
    }
    Server::builder()
        .on_accept(accept)
        .on_open(async |session: &Session| match session.path() {
            "/panic-in-open" => panic!("on_open panics, as the test asks"),
            "/close-in-open" => Flow::Close(CloseCode::NORMAL, "enough".into()),
            _ => Flow::Continue,
        })
        .on_message(async |session: &Session, message: Message| {
            match message.as_text() {
                Some("panic") => panic!("on_message panics, as the test asks"),
                Some("fail") => return Err("on_message fails, as the test asks".into()),
                Some("abort") => session.abort(),
                Some("close") => return Ok(Flow::Close(CloseCode::NORMAL, "enough".into())),
                _ => session.send(message).await?,
            }
            Ok::<_, coracle::BoxError>(Flow::Continue)
        })
        .on_close(async |session: &Session, _| {
            assert_ne!(session.path(), "/panic-in-close", "on_close panics, as the test asks");
        })
}

/// An upgraded client of this path.
fn client_of(path: &str, mut raw: Raw) -> Raw {
    raw.send(handshake(path).as_bytes());
    let head = raw.read_head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    raw
}

type End = (&'static str, fn(Raw));

/// Every way in which a session can end.
const ENDS: &[End] = &[
    ("the client closes", |raw| client_of("/", raw).goodbye()),
    ("the client resets", |raw| client_of("/", raw).reset()),
    ("the client goes away", |raw| drop(client_of("/", raw))),
    ("the client ends its direction only", |raw| {
        let mut raw = client_of("/", raw);
        raw.end_writing();
        raw.read_to_end();
    }),
    ("the client goes away in the middle of a frame", |raw| {
        client_of("/", raw).send(&frame(true, TEXT, b"hello")[..4]);
    }),
    ("the client goes away in the middle of a message", |raw| {
        client_of("/", raw).send(&frame(false, TEXT, b"hello"));
    }),
    ("the client breaks the protocol", |raw| {
        let mut raw = client_of("/", raw);
        raw.send(b"\xff\xff");
        raw.expect_close(1002);
    }),
    ("the application closes", |raw| {
        let mut raw = client_of("/", raw);
        raw.send_frame(TEXT, b"close");
        raw.expect_close(1000);
    }),
    ("the application closes and the client goes away", |raw| {
        client_of("/", raw).send_frame(TEXT, b"close");
    }),
    ("the application aborts", |raw| {
        let mut raw = client_of("/", raw);
        raw.send_frame(TEXT, b"abort");
        assert_eq!(raw.read_to_end(), b"");
    }),
    ("the handler fails", |raw| {
        let mut raw = client_of("/", raw);
        raw.send_frame(TEXT, b"fail");
        raw.expect_close(1011);
    }),
    ("the handler panics", |raw| {
        let mut raw = client_of("/", raw);
        raw.send_frame(TEXT, b"panic");
        raw.expect_close(1011);
    }),
    ("on_open panics", |raw| {
        client_of("/panic-in-open", raw).expect_close(1011);
    }),
    ("on_open closes", |raw| {
        client_of("/close-in-open", raw).expect_close(1000);
    }),
    ("on_close panics", |raw| client_of("/panic-in-close", raw).goodbye()),
];

/// Every way in which a handshake can come to nothing.
const FAILURES: &[End] = &[
    ("reset without a byte", Raw::reset),
    ("gone without a byte", drop),
    ("reset in the middle of the head", |mut raw| {
        raw.send(&handshake("/").as_bytes()[..50]);
        raw.reset();
    }),
    ("gone in the middle of the head", |mut raw| {
        raw.send(&handshake("/").as_bytes()[..50]);
    }),
    ("reset behind the head", |mut raw| {
        raw.send(handshake("/").as_bytes());
        raw.reset();
    }),
    ("not HTTP", |mut raw| {
        raw.send(b"\x16\x03\x01");
        read_answer(raw).expect(400);
    }),
    ("not HTTP, and gone", |mut raw| raw.send(b"\x16\x03\x01")),
    ("no handshake", |mut raw| {
        raw.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        read_answer(raw).expect(426);
    }),
    ("a foreign origin", |mut raw| {
        raw.send(handshake_with("/", "Origin: http://evil.example\r\n").as_bytes());
        read_answer(raw).expect(403);
    }),
    ("refused by the hook", |mut raw| {
        raw.send(handshake("/refuse").as_bytes());
        read_answer(raw).expect(401);
    }),
    ("refused by the hook, later", |mut raw| {
        raw.send(handshake("/refuse-later").as_bytes());
        read_answer(raw).expect(401);
    }),
    ("refused by the hook while the client is gone", |mut raw| {
        raw.send(handshake("/refuse-later").as_bytes());
        raw.reset();
    }),
    ("a panic in the hook", |mut raw| {
        raw.send(handshake("/panic").as_bytes());
        read_answer(raw).expect(500);
    }),
    ("a mistake of the hook", |mut raw| {
        raw.send(handshake("/mistake").as_bytes());
        read_answer(raw).expect(500);
    }),
    ("the hook hangs", |mut raw| {
        raw.send(handshake("/hang").as_bytes());
        read_answer(raw).expect(408);
    }),
    ("the hook hangs and the client is gone", |mut raw| {
        raw.send(handshake("/hang").as_bytes());
        raw.reset();
    }),
    ("half a head until the timeout", |mut raw| {
        raw.send(&handshake("/").as_bytes()[..50]);
        read_answer(raw).expect(408);
    }),
    ("silence until the timeout", |raw| {
        read_answer(raw).expect(408);
    }),
];

/// Sends a handshake, which a server that turns the connection away does not read any more.
fn attempt(mut raw: Raw) -> Answer {
    let _ = raw.stream.write_all(handshake("/").as_bytes());
    read_answer(raw)
}

/// Comes again later.
#[track_caller]
fn expect_later(answer: &Answer, status: u16) {
    answer.expect(status);
    let seconds: u32 = answer.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
}

#[test]
fn one_session_more_than_the_limit_is_told_to_come_later() {
    let (asked, hook) = heard();
    let asked = Mutex::new(asked);
    let server = start(
        Server::builder()
            .on_accept(async move |_: &Request| {
                asked.lock().unwrap().send(()).unwrap();
                Ok(Upgrade::new())
            })
            .on_message(async |session: &Session, message| session.send(message).await)
            .configure(|config| {
                config.limits.sessions = Some(3);
                config.limits.sessions_per_address = Some(100);
            }),
    );
    let mut clients: Vec<Raw> = (0..3).map(|_| server.client()).collect();
    for _ in 0..3 {
        hook.next();
    }
    for _ in 0..5 {
        expect_later(&ask(&server, handshake("/")), 503);
    }
    assert_eq!(hook.try_next(), None, "the hook was asked for a client that cannot be let in");
    assert_eq!(server.handle.sessions().count(), 3);
    for client in &mut clients {
        client.echo("not disturbed");
    }
    // In memory too.
    within(async {
        use futures_lite::{AsyncReadExt, AsyncWriteExt};
        let mut stream = server.handle.connect().unwrap();
        stream.write_all(handshake("/").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        expect_later(&Answer::parse(&answer), 503);
    });
    clients.pop().unwrap().goodbye();
    let mut client = let_in(|| server.raw(), &[503]);
    client.echo("in its place");
    expect_later(&ask(&server, handshake("/")), 503);
    client.goodbye();
    clients.into_iter().for_each(Raw::goodbye);
    server.finish();
}

#[test]
fn the_place_of_a_session_is_free_after_every_kind_of_end() {
    // A counter that goes up with `open` and down with `close` has a path on which it does not go
    // down: an error between the two, a panic, a cancelled task. A week later the server is "full"
    // with nobody in it.
    let server = start(app().configure(|config| {
        config.limits.sessions = Some(1);
        config.limits.sessions_per_address = Some(1000);
        config.timeouts.handshake = BRIEF;
    }));
    for (name, end) in ENDS.iter().chain(FAILURES) {
        eprintln!("{name}");
        // The hook is asked when there is a place: this one is for the next end.
        eventually("there is a place", || ask(&server, handshake("/refuse")).status == 401);
        end(server.raw());
        let mut client = let_in(|| server.raw(), &[503]);
        client.echo("in its place");
        // There is one place, and not two.
        expect_later(&ask(&server, handshake("/")), 503);
        client.goodbye();
    }
    server.finish();
}

#[test]
fn one_session_more_than_an_address_may_have_is_told_to_come_later() {
    let server = start(app().configure(|config| config.limits.sessions_per_address = Some(2)));
    let mut first = client_of("/", raw_from(2, &server));
    let mut second = client_of("/", raw_from(2, &server));
    // Their handshakes are over when these come back.
    first.echo("hello");
    second.echo("hello");
    expect_later(&attempt(raw_from(2, &server)), 429);
    for host in 3..20 {
        client_of("/", raw_from(host, &server)).goodbye();
    }
    first.echo("not disturbed");
    second.echo("not disturbed");
    // Connections in memory have no address.
    for _ in 0..3 {
        within(async {
            use futures_lite::{AsyncReadExt, AsyncWriteExt};
            let mut stream = server.handle.connect().unwrap();
            stream.write_all(handshake("/").as_bytes()).await.unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 101");
        });
    }
    first.goodbye();
    second.goodbye();
    server.finish();
}

#[test]
fn the_place_of_an_address_is_free_after_every_kind_of_end() {
    // As for sessions, for the table of addresses: an office behind one address is locked out by
    // its own ended connections.
    let server = start(app().configure(|config| {
        config.limits.sessions_per_address = Some(1);
        config.timeouts.handshake = BRIEF;
    }));
    for ((name, end), host) in ENDS.iter().chain(FAILURES).zip(2..) {
        eprintln!("{name}");
        end(raw_from(host, &server));
        let mut client = let_in(|| raw_from(host, &server), &[429, 503]);
        client.echo("in its place");
        // There is one place, and not two; nor may it shake hands twice at a time, so that what
        // was refused before has to be gone.
        eventually("the address is told that it has its session", || {
            let refused = attempt(raw_from(host, &server));
            assert!(matches!(refused.status, 429 | 503), "{refused:?}");
            assert_eq!(refused.header("retry-after"), Some("5"));
            refused.status == 429
        });
        // No other address is concerned.
        client_of("/", raw_from(host + 100, &server)).goodbye();
        client.goodbye();
    }
    server.finish();
}

#[test]
fn a_connection_more_than_may_shake_hands_is_turned_away_at_once() {
    let server = start(app().configure(|config| config.limits.handshakes = Some(3)));
    let mut waiting: Vec<Raw> = (0..3).map(|_| server.raw()).collect();
    // Without having said a word.
    for _ in 0..3 {
        let answer = read_answer(server.raw());
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{answer:?}");
    }
    assert!(server.handle.connect().is_err(), "no place in memory either");
    // A session is no handshake any more.
    let mut client = client_of("/", waiting.pop().unwrap());
    let mut next = let_in(|| server.raw(), &[503]);
    next.echo("let in");
    client.echo("not disturbed");
    // All places are taken again by one more that waits.
    let waiting_again = server.raw();
    let answer = read_answer(server.raw());
    assert_eq!(answer.status, 503, "{answer:?}");
    drop(waiting_again);
    for raw in waiting {
        client_of("/", raw).goodbye();
    }
    client.goodbye();
    next.goodbye();
    server.finish();
}

#[test]
fn the_place_of_a_handshake_is_free_after_every_kind_of_end() {
    let server = start(app().configure(|config| {
        config.limits.handshakes = Some(1);
        config.timeouts.handshake = BRIEF;
    }));
    let mut kept = Vec::new();
    for (name, end) in ENDS.iter().chain(FAILURES) {
        eprintln!("{name}");
        end(server.raw());
        let mut client = let_in(|| server.raw(), &[503]);
        // When this comes back its handshake is over, and the place is there for the next.
        client.echo("let in");
        kept.push(client);
    }
    for client in &mut kept {
        client.echo("not disturbed");
    }
    kept.into_iter().for_each(Raw::goodbye);
    server.finish();
}

#[test]
fn silent_connections_of_one_address_leave_room_for_others() {
    // One client opens connections and says nothing. None of them becomes a session, so a limit
    // that is looked at when a session begins never sees them; they take all places for handshakes,
    // and nobody else gets in until they time out, when they are opened again.
    let server = start(app().configure(|config| {
        config.limits.handshakes = Some(4);
        config.limits.sessions_per_address = Some(2);
    }));
    let silent: Vec<Raw> = (0..8).map(|_| raw_from(2, &server)).collect();
    let mut other = client_of("/", raw_from(3, &server));
    other.echo("let in");
    other.goodbye();
    drop(silent);
    server.finish();
}

#[test]
fn one_address_cannot_take_every_place_for_handshakes() {
    // The same with a limit for the sessions of an address that is too high to help, as the default
    // is: an address may have three quarters of the handshakes.
    let server = start(app().configure(|config| {
        config.limits.handshakes = Some(8);
        config.limits.sessions_per_address = Some(1000);
    }));
    let silent: Vec<Raw> = (0..6).map(|_| raw_from(2, &server)).collect();
    for _ in 0..3 {
        let answer = read_answer(raw_from(2, &server));
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{answer:?}");
    }
    let mut other = client_of("/", raw_from(3, &server));
    other.echo("let in");
    other.goodbye();
    // And those that were first are not disturbed by those that came too late.
    for raw in silent {
        client_of("/", raw).goodbye();
    }
    client_of("/", raw_from(2, &server)).goodbye();
    server.finish();
}

#[test]
fn hundreds_of_half_open_connections_do_not_keep_a_client_out() {
    let server = start(app().configure(|config| config.timeouts.handshake = BRIEF));
    let half: Vec<Raw> = (0..300)
        .map(|n| {
            let mut raw = raw_from(2 + (n % 50) as u8, &server);
            raw.send(&handshake("/").as_bytes()[..n % 100]);
            raw
        })
        .collect();
    let mut client = client_of("/", server.raw());
    client.echo("hello");
    for raw in half {
        read_answer(raw).expect(408);
    }
    client.echo("still here");
    client.goodbye();
    server.finish();
}

#[test]
fn a_connection_that_is_reset_before_it_is_accepted_disturbs_nobody() {
    // Port scanners and health checks connect and reset before `accept` has returned. It fails with
    // ECONNABORTED, or returns a socket on which everything fails, and an accept loop that ends on
    // an error has ended.
    let (blocked, blocks) = heard();
    let blocked = Mutex::new(blocked);
    let (release, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let server = start(Server::builder().workers(1).on_message(
        async move |session: &Session, message: Message| {
            if message.as_text() == Some("block") {
                // Blocks the only worker's thread, as no callback should.
                blocked.lock().unwrap().send(()).unwrap();
                gate.lock().unwrap().recv().unwrap();
            }
            session.send(message).await
        },
    ));
    let mut client = server.client();
    for _ in 0..3 {
        client.send_frame(TEXT, b"block");
        blocks.next();
        // The kernel completes them; nobody accepts.
        for n in 0..200 {
            let mut raw = server.raw();
            if n % 2 == 0 {
                raw.send(handshake("/").as_bytes());
            }
            raw.reset();
        }
        let mut patient = server.raw();
        patient.send(handshake("/").as_bytes());
        release.send(()).unwrap();
        assert_eq!(client.read_frame().payload, b"block");
        assert!(patient.read_head().starts_with("HTTP/1.1 101 "));
        patient.goodbye();
    }
    // And while it does accept.
    for _ in 0..500 {
        server.raw().reset();
    }
    client.echo("not disturbed");
    client.goodbye();
    server.client().goodbye();
    server.finish();
}

/// Files that the server in a process of its own may open, its limit of sessions (0: none set), and a
/// path that it listens on, too.
const FILES: &str = "CORACLE_TEST_FILES";
const SESSIONS: &str = "CORACLE_TEST_SESSIONS";
const PATH: &str = "CORACLE_TEST_PATH";

#[test]
#[ignore = "the process that the tests below start; alone it does nothing"]
fn server_in_a_process_of_its_own() {
    let (Ok(files), Ok(sessions)) = (std::env::var(FILES), std::env::var(SESSIONS)) else {
        return;
    };
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // The watchdog of the tests needs files of its own; for a timer that is over already it takes none.
    smol::block_on(smol::Timer::after(Duration::from_millis(1)));
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: files.parse().ok(), maximum }).unwrap();
    let sessions: usize = sessions.parse().unwrap();
    let mut builder = app().configure(|config| {
        config.limits.sessions = (sessions > 0).then_some(sessions);
        config.limits.sessions_per_address = config.limits.sessions;
        config.timeouts.stop = BRIEF;
    });
    if let Ok(path) = std::env::var(PATH) {
        builder = builder.bind_unix(path);
    }
    let server = start(builder);
    println!("\nlistening on {}", server.addr());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    server.finish();
}

/// A server that does not share its open files with its clients.
struct Process {
    child: Child,
    addr: SocketAddr,
    log: Heard<String>,
}

impl Process {
    fn start(files: u32, sessions: u32) -> Self {
        Self::start_with(files, sessions, &mut Command::new(std::env::current_exe().unwrap()))
    }

    /// The same, listening on this path, too.
    fn start_on(path: &Path, files: u32, sessions: u32) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        Self::start_with(files, sessions, command.env(PATH, path))
    }

    fn start_with(files: u32, sessions: u32, command: &mut Command) -> Self {
        let mut child = command
            .args(["--exact", "server_in_a_process_of_its_own", "--ignored", "--nocapture"])
            .env(FILES, files.to_string())
            .env(SESSIONS, sessions.to_string())
            .env("RUST_LOG", "coracle=warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, log) = heard();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().try_for_each(|line| lines.send(line.unwrap())));
        let (said, says) = heard();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map(Result::unwrap) {
                if let Some(addr) = line.strip_prefix("listening on ") {
                    said.send(addr.parse().unwrap()).unwrap();
                }
            }
        });
        Self { addr: says.next(), child, log }
    }

    /// Waits until accepting has failed this many times.
    fn expect_out_of_files(&self, times: usize) {
        for _ in 0..times {
            while !self.log.next().contains("Too many open files") {}
        }
    }

    /// Stops the server, which proves that nothing is left in it.
    fn finish(mut self) {
        drop(self.child.stdin.take());
        let mut status = None;
        eventually("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let log: Vec<String> = std::iter::from_fn(|| self.log.try_next()).collect();
        assert!(status.unwrap().success(), "{log:#?}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The test has failed, or the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_without_files_goes_on_when_there_are_files_again() {
    // EMFILE: `accept` fails, and the connection stays in the backlog, so the listener stays ready.
    // An accept loop that ends on the error has ended for ever; one that tries again at once burns
    // a core, and the sessions that could end, and give files back, have no turn.
    let process = Process::start(64, 10_000);
    goes_on(&process, || Raw::connect(process.addr));
    process.finish();
}

#[test]
fn a_server_without_files_goes_on_on_a_unix_socket() {
    // Connecting there has ended when the connection is in the backlog, as with TCP, and a full backlog
    // makes a client wait.
    let scratch = Scratch::new("files");
    let path = scratch.path("a.sock");
    let process = Process::start_on(&path, 64, 10_000);
    goes_on(&process, || Raw::connect_unix(&path));
    // The other listener has not suffered.
    let mut client = Raw::connect(process.addr);
    client.upgrade();
    client.goodbye();
    process.finish();
    assert!(!path.exists());
}

/// More clients connect than there are files for; all of them are served in the end.
fn goes_on(process: &Process, connect: impl Fn() -> Raw) {
    let mut clients: std::collections::VecDeque<Raw> = (0..100)
        .map(|_| {
            let mut raw = connect();
            raw.send(handshake("/").as_bytes());
            raw
        })
        .collect();
    // Those that fit are served meanwhile.
    for client in clients.iter_mut().take(40) {
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    }
    // Some two seconds, with a pause after each.
    process.expect_out_of_files(5);
    for client in clients.iter_mut().take(40) {
        client.echo("not disturbed");
    }
    // Each file that is given back lets in one that has waited.
    for client in clients.drain(..40) {
        client.goodbye();
    }
    while let Some(mut client) = clients.pop_front() {
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
        client.echo("let in at last");
        client.goodbye();
    }
    let mut client = connect();
    client.upgrade();
    client.goodbye();
}

#[test]
fn a_server_without_files_can_be_stopped() {
    // The stop must not need a file, nor wait for the pause after a failed accept.
    let process = Process::start(64, 10_000);
    let clients: Vec<Raw> = (0..100)
        .map(|_| {
            let mut raw = Raw::connect(process.addr);
            raw.send(handshake("/").as_bytes());
            raw
        })
        .collect();
    process.expect_out_of_files(1);
    process.finish();
    drop(clients);
}

#[test]
fn without_settings_the_limits_follow_the_limit_of_open_files() {
    // 64 files: 48 sessions, of which one address may have 36; the rest is for everything else.
    let process = Process::start(64, 0);
    let raw_from = |host| connect_from(host, process.addr);
    let mut clients: Vec<Raw> = (0..36).map(|_| client_of("/", raw_from(2))).collect();
    clients[35].echo("hello");
    expect_later(&attempt(raw_from(2)), 429);
    clients.extend((0..12).map(|_| client_of("/", raw_from(3))));
    expect_later(&attempt(raw_from(4)), 503);
    for client in &mut clients {
        client.echo("not disturbed");
    }
    clients.into_iter().for_each(Raw::goodbye);
    let log: Vec<String> = std::iter::from_fn(|| process.log.try_next()).collect();
    assert!(!log.iter().any(|line| line.contains("Too many open files")), "{log:#?}");
    process.finish();
}

#[test]
fn without_settings_silent_connections_are_turned_away_before_the_files_are_used_up() {
    // The sessions had three quarters of the files, the handshakes as many as there were left, and HTTP its share as
    // well: all of them together took every file, and then nobody was even told.
    let process = Process::start(256, 0);
    let raw_from = |host| connect_from(host, process.addr);
    let mut clients: Vec<Raw> = (0..144).map(|_| client_of("/", raw_from(2))).collect();
    clients.extend((0..48).map(|_| client_of("/", raw_from(3))));
    let mut silent: Vec<Raw> = (0..60).map(|n| raw_from(5 + n)).collect();
    let answer = read_answer(silent.pop().unwrap());
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{answer:?}");
    for client in &mut clients {
        client.echo("not disturbed");
    }
    clients.into_iter().for_each(Raw::goodbye);
    let log: Vec<String> = std::iter::from_fn(|| process.log.try_next()).collect();
    assert!(!log.iter().any(|line| line.contains("Too many open files")), "{log:#?}");
    process.finish();
}

#[test]
fn a_limit_or_a_deadline_of_nothing_is_refused_by_its_name() {
    type Mistake = (&'static str, fn(&mut Config));
    const ZERO: Duration = Duration::ZERO;
    let mistakes: &[Mistake] = &[
        ("timeouts.handshake", |it| it.timeouts.handshake = ZERO),
        ("timeouts.keep_alive", |it| it.timeouts.keep_alive = ZERO),
        ("timeouts.request", |it| it.timeouts.request = ZERO),
        ("timeouts.ping", |it| it.timeouts.ping = Some(ZERO)),
        ("timeouts.pong", |it| it.timeouts.pong = ZERO),
        ("timeouts.idle", |it| it.timeouts.idle = Some(ZERO)),
        ("timeouts.write_stall", |it| it.timeouts.write_stall = ZERO),
        ("timeouts.writer", |it| it.timeouts.writer = ZERO),
        ("timeouts.close", |it| it.timeouts.close = ZERO),
        ("timeouts.lifetime", |it| it.timeouts.lifetime = Some(ZERO)),
        ("limits.fragments", |it| it.limits.fragments = 0),
        ("limits.head_bytes", |it| it.limits.head_bytes = 0),
        ("limits.outbox_messages", |it| it.limits.outbox_messages = 0),
        ("limits.sessions", |it| it.limits.sessions = Some(0)),
        ("limits.sessions_per_address", |it| it.limits.sessions_per_address = Some(0)),
        ("limits.handshakes", |it| it.limits.handshakes = Some(0)),
        ("limits.http_connections", |it| it.limits.http_connections = Some(0)),
        #[cfg(feature = "tls")]
        ("limits.tls_handshakes", |it| it.limits.tls_handshakes = Some(0)),
        ("workers", |it| it.workers = Some(0)),
    ];
    for &(name, mistake) in mistakes {
        let Err(error) = app().bind("127.0.0.1:0").configure(mistake).start() else {
            panic!("{name}: it starts");
        };
        let said = error.to_string();
        assert!(matches!(error, Error::Config(_)), "{error:?}");
        assert!(said.contains(name) && said.contains("it must be"), "{said}");
    }
}
