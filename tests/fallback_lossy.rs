//! Clients of three kinds in one room, on a network that loses answers: each gets everything once, in order.
#![cfg(feature = "fallback")]

#[path = "support/polling.rs"]
mod polling;
mod support;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use coracle::{Fallbacks, Message, Server, Session};
use polling::{Events, Http, Polling};
use support::*;

const MESSAGES: usize = 10_000;

/// Clients of each kind.
const CLIENTS: usize = 2;

/// Messages that the slowest client may be behind: fewer than an outbox holds, so that nobody is too slow.
const AHEAD: usize = 700;

/// Events on one stream before its connection is cut.
const EVENTS: usize = 500;

/// How many messages each client has got.
#[derive(Default)]
struct Progress(Vec<AtomicUsize>);

impl Progress {
    fn new(clients: usize) -> Arc<Self> {
        Arc::new(Self((0..clients).map(|_| AtomicUsize::new(0)).collect()))
    }

    fn slowest(&self) -> usize {
        self.0.iter().map(|count| count.load(Ordering::Acquire)).min().unwrap_or(0)
    }

    /// The next message of a client has to be the next one.
    #[track_caller]
    fn got(&self, client: usize, text: &str) {
        let expected = self.0[client].fetch_add(1, Ordering::AcqRel);
        assert_eq!(text, number(expected), "client {client}");
    }

    fn has_all(&self, client: usize) -> bool {
        self.0[client].load(Ordering::Acquire) == MESSAGES
    }
}

/// Of different lengths, so that cuts fall everywhere.
fn number(n: usize) -> String {
    format!("{n} {}", "x".repeat(n % 97))
}

/// A generator of numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// A proxy that serves each connection by `serve`, in a thread of its own, until the test ends.
fn proxy(
    serve: impl Fn(TcpStream, TcpStream) -> io::Result<()> + Send + Sync + 'static,
    to: SocketAddr,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for client in listener.incoming() {
            let (serve, Ok(client)) = (Arc::clone(&serve), client) else { return };
            thread::spawn(move || {
                let server = TcpStream::connect(to)?;
                for stream in [&client, &server] {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(PATIENCE))?;
                }
                serve(client, server)
            });
        }
    });
    addr
}

/// Reads up to the blank line.
fn read_head(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if from.read_until(b'\n', &mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

fn length_of(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.map_or(0, |length| length.trim().parse().expect("a length"))
}

/// Hands requests on, and cuts a third of the answers off: before the first byte, behind the last but one, or
/// anywhere between.
fn cut_answers(
    seed: &AtomicUsize,
    cut: &AtomicUsize,
    client: TcpStream,
    server: TcpStream,
) -> io::Result<()> {
    let mut random = Random(seed.fetch_add(1, Ordering::Relaxed) as u64);
    let (mut requests, mut answers) =
        (BufReader::new(client.try_clone()?), BufReader::new(server.try_clone()?));
    let (mut client, mut server) = (client, server);
    loop {
        let mut request = read_head(&mut requests)?;
        let mut body = vec![0; length_of(&request)];
        requests.read_exact(&mut body)?;
        request.extend(body);
        server.write_all(&request)?;
        let mut answer = read_head(&mut answers)?;
        let mut body = vec![0; length_of(&answer)];
        answers.read_exact(&mut body)?;
        answer.extend(body);
        if random.below(3) == 0 {
            cut.fetch_add(1, Ordering::Relaxed);
            let len = random.below(answer.len());
            client.write_all(&answer[..len])?;
            client.shutdown(Shutdown::Both)?;
            return server.shutdown(Shutdown::Both);
        }
        client.write_all(&answer)?;
    }
}

/// Hands a stream on and cuts it in the middle of an event, when so many have gone before.
fn cut_streams(cut: &AtomicUsize, client: TcpStream, server: TcpStream) -> io::Result<()> {
    let mut requests = BufReader::new(client.try_clone()?);
    let (mut client, mut server) = (client, server);
    server.write_all(&read_head(&mut requests)?)?;
    let mut events = 0;
    let mut answers = BufReader::new(server.try_clone()?);
    let mut line = Vec::new();
    while answers.read_until(b'\n', &mut line)? > 0 {
        events += usize::from(line.starts_with(b"id: "));
        if events > EVENTS {
            // Part of a line that would have been an event's last one.
            client.write_all(&line[..line.len() / 2])?;
            cut.fetch_add(1, Ordering::Relaxed);
            break;
        }
        client.write_all(&line)?;
        line.clear();
    }
    client.shutdown(Shutdown::Both)?;
    server.shutdown(Shutdown::Both)
}

/// Polls on, with a new connection wherever the old one was cut.
fn poll_all(addr: SocketAddr, direct: SocketAddr, progress: &Progress, client: usize) {
    // The token of a session whose first answer is lost is lost.
    let Polling { token, .. } = Polling::open(direct);
    let mut cursor = 0;
    while !progress.has_all(client) {
        let Ok(mut http) = Http::connect(addr) else { continue };
        loop {
            let target = format!("/ws/poll?session_id={token}&cursor={cursor}");
            let Ok(answer) = http.try_ask("GET", &target, "", b"") else { break };
            // The server may not have seen yet that the one before has gone.
            if answer.status == 409 {
                continue;
            }
            for text in answer.texts() {
                progress.got(client, &text);
            }
            cursor = answer.cursor();
            if progress.has_all(client) {
                return;
            }
        }
    }
}

/// Reads a stream as a browser does, which comes again with the last id.
fn stream_all(addr: SocketAddr, progress: &Progress, client: usize) {
    let mut last: Option<String> = None;
    while !progress.has_all(client) {
        let Ok(mut events) = Events::open(addr, "/ws/events", last.as_deref()) else { continue };
        while let Ok(Some(event)) = events.next() {
            if event.kind.is_empty() {
                progress.got(client, &event.data);
            }
            last = event.id.or(last);
            if progress.has_all(client) {
                return;
            }
        }
    }
}

#[test]
fn every_client_gets_ten_thousand_messages_once_in_order_whatever_is_lost_on_the_way() {
    let server = start(
        Server::builder()
            .fallbacks(Fallbacks::new())
            .on_open(async |session: &Session| session.join("all")),
    );
    let (addr, rooms) = (server.addr(), server.handle.rooms());
    let (answers_cut, streams_cut) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seed = AtomicUsize::new(1);
    let counter = Arc::clone(&answers_cut);
    let polls = proxy(move |client, server| cut_answers(&seed, &counter, client, server), addr);
    let counter = Arc::clone(&streams_cut);
    let streams = proxy(move |client, server| cut_streams(&counter, client, server), addr);

    let progress = Progress::new(3 * CLIENTS);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let progress = &progress;
            scope.spawn(move || poll_all(polls, addr, progress, 3 * client));
            scope.spawn(move || stream_all(streams, progress, 3 * client + 1));
            let mut socket = server.client();
            scope.spawn(move || {
                while !progress.has_all(3 * client + 2) {
                    progress.got(3 * client + 2, &socket.expect_text());
                }
                socket.goodbye();
            });
        }
        eventually("all are in the room", || rooms.size("all") == 3 * CLIENTS);
        for n in 0..MESSAGES {
            if n % 50 == 0 {
                eventually("nobody is far behind", || progress.slowest() + AHEAD > n);
            }
            let reached = within(rooms.publish("all", number(n)));
            assert_eq!(reached, 3 * CLIENTS, "message {n}");
        }
        eventually("all have got everything", || progress.slowest() == MESSAGES);
    });
    assert!(streams_cut.load(Ordering::Relaxed) >= CLIENTS * (MESSAGES / EVENTS - 1));
    let answers_cut = answers_cut.load(Ordering::Relaxed);
    assert!(answers_cut > 10, "{answers_cut} answers were cut");
    println!("{answers_cut} answers and {} streams were cut", streams_cut.load(Ordering::Relaxed));
    server.finish();
}

/// Messages that a client posts.
const POSTS: usize = 300;

#[test]
fn what_a_client_posts_arrives_once_in_order_whatever_is_lost_on_the_way() {
    let (sender, arrived) = heard();
    let sender = std::sync::Mutex::new(sender);
    let server = start(Server::builder().fallbacks(Fallbacks::new()).on_message(
        async move |_: &Session, message: Message| {
            let _ = sender.lock().unwrap().send(message.as_text().map(str::to_owned));
        },
    ));
    let addr = server.addr();
    let (seed, cut) = (AtomicUsize::new(7), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&cut);
    let proxy = proxy(move |client, server| cut_answers(&seed, &counter, client, server), addr);
    let token = Polling::open(addr).token;
    let mut connection = None;
    for n in 0..POSTS {
        let target = format!("/ws/send?session_id={token}&seq={}", n + 1);
        // Again and again, until there is an answer.
        loop {
            let http = match &mut connection {
                Some(http) => http,
                none => none.insert(Http::connect(proxy).expect("the proxy is there")),
            };
            let more = "Content-Type: text/plain\r\n";
            match http.try_ask("POST", &target, more, number(n).as_bytes()) {
                Ok(answer) => {
                    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
                    break;
                }
                Err(_) => connection = None,
            }
        }
    }
    for n in 0..POSTS {
        assert_eq!(arrived.next(), Some(number(n)));
    }
    assert!(cut.load(Ordering::Relaxed) > POSTS / 10);
    server.finish();
    assert!(arrived.try_next().is_none());
}
