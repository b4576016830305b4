//! Rates of streams and of sessions: what a policy allows, and nothing else, goes through. The bucket's
//! arithmetic is tested beside it, with a clock of its own.

#[path = "support/pipe.rs"]
mod pipe;
#[path = "support/rates.rs"]
mod rates;
mod support;

use std::cell::Cell;
use std::io;
use std::num::NonZero;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coracle::config::Config;
use coracle::{
    Allowance, BytesPerSecond, Cause, CloseCode, DeadlineExceeded, DeadlineStream, Phase,
    RatePolicy, Rates, Server, Session, Side, Unlimited,
};
use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use pipe::*;
use rates::*;
use smol::net::{TcpListener, TcpStream};
use support::*;

/// Short enough to be waited for; long enough that an operation begins before it, however busy the machine.
const SOON: Duration = Duration::from_millis(300);

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (connected, listener.accept().await.unwrap().0)
}

/// Lets `portion` bytes through, then has whoever asks wait for a moment.
struct Portions {
    portion: usize,
    left: usize,
    resumes: Option<Instant>,
    waits: Rc<Cell<usize>>,
    transferred: Rc<Cell<usize>>,
}

impl Portions {
    fn of(portion: usize) -> Self {
        let (waits, transferred) = Default::default();
        Self { portion, left: portion, resumes: None, waits, transferred }
    }
}

impl RatePolicy for Portions {
    fn available(&mut self, now: Instant) -> Allowance {
        if let Some(left) = NonZero::new(self.left) {
            return Allowance::Bytes(left);
        }
        let resumes = *self.resumes.get_or_insert(now + Duration::from_millis(1));
        if now < resumes {
            return Allowance::Until(resumes);
        }
        self.resumes = None;
        self.waits.set(self.waits.get() + 1);
        self.left = self.portion;
        Allowance::Bytes(NonZero::new(self.portion).unwrap())
    }

    fn transferred(&mut self, bytes: usize, _: Instant) {
        assert!(bytes <= self.left, "no more than was allowed");
        self.left -= bytes;
        self.transferred.set(self.transferred.get() + bytes);
    }
}

#[test]
fn a_policy_bounds_every_read_and_write_and_everything_arrives() {
    within(async {
        let (tcp, mut peer) = pair().await;
        let (reading, writing) = (Portions::of(7), Portions::of(11));
        let counts = [&reading, &writing].map(|p| (Rc::clone(&p.waits), Rc::clone(&p.transferred)));
        let stream = DeadlineStream::new(tcp).with_rates(reading, writing);
        let sent: Vec<u8> = (0..200_u8).collect();
        let (mut reader, mut writer) = futures_lite::io::split(stream);
        // The peer gives back what it gets.
        let echo = async {
            let mut buffer = vec![0; sent.len()];
            peer.read_exact(&mut buffer).await.unwrap();
            peer.write_all(&buffer).await.unwrap();
        };
        let mut received = vec![0; sent.len()];
        let reading = async { reader.read_exact(&mut received).await.unwrap() };
        let writing = async { writer.write_all(&sent).await.unwrap() };
        future::zip(echo, future::zip(reading, writing)).await;
        assert_eq!(received, sent);
        let [read, written] = counts.map(|(waits, transferred)| (waits.get(), transferred.get()));
        assert_eq!(read, (200 / 7, 200));
        assert_eq!(written, (200 / 11, 200));
    });
}

#[test]
fn bytes_per_second_let_everything_through_in_time() {
    within(async {
        let (tcp, mut peer) = pair().await;
        let rate = || BytesPerSecond::new(1_000_000).with_burst(10_000);
        let mut stream = DeadlineStream::new(tcp).with_rates(rate(), rate());
        stream.expires_after(LATER);
        let sent = vec![7; 50_000];
        let echo = async {
            let mut buffer = vec![0; sent.len()];
            peer.read_exact(&mut buffer).await.unwrap();
            peer.write_all(&buffer).await.unwrap();
        };
        let exchange = async {
            stream.write_all(&sent).await.unwrap();
            let mut received = vec![0; sent.len()];
            stream.read_exact(&mut received).await.unwrap();
            assert!(received == sent);
        };
        future::zip(echo, exchange).await;
    });
}

#[test]
fn waiting_for_the_rate_is_under_the_deadline_and_the_error_says_so() {
    within(async {
        let (tcp, mut peer) = pair().await;
        peer.write_all(b"xy").await.unwrap();
        // So much has been read already that nothing more may be for an hour.
        let mut slow = BytesPerSecond::new(1);
        slow.transferred(3600, Instant::now());
        let mut stream = DeadlineStream::new(tcp).with_rates(slow, Unlimited);
        stream.expires_after(SOON);
        let error = stream.read(&mut [0; 4]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let exceeded = DeadlineExceeded::of(&error).unwrap();
        assert!(exceeded.was_throttled() && exceeded.operation() == "read");
        assert!(error.to_string().contains(" of waiting for the rate (budget: 300ms)"), "{error}");
        // What was not read is still there.
        assert_eq!(stream.into_inner().read(&mut [0; 4]).await.unwrap(), 2);
    });
}

#[test]
fn a_direction_without_a_rate_does_not_wait_for_the_other() {
    within(async {
        let (tcp, mut peer) = pair().await;
        let mut slow = BytesPerSecond::new(1);
        slow.transferred(3600, Instant::now());
        let mut stream = DeadlineStream::new(tcp).with_rates(Unlimited, slow);
        assert!(future::poll_once(stream.write(b"y")).await.is_none());
        let sent = vec![1; 300_000];
        let mut received = vec![0; sent.len()];
        let reading = async { stream.read_exact(&mut received).await.unwrap() };
        future::zip(reading, async { peer.write_all(&sent).await.unwrap() }).await;
        // Flushing and closing move no bytes.
        stream.flush().await.unwrap();
        stream.close().await.unwrap();
        let mut all = Vec::new();
        peer.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"");
    });
}

#[test]
fn deadlines_stay_when_rates_are_given() {
    within(async {
        let (tcp, _peer) = pair().await;
        let mut stream = DeadlineStream::new(tcp);
        let deadlines = stream.deadlines();
        stream.expires_after(LATER);
        let deadline = stream.read_deadline();
        let mut stream = stream.with_rates(BytesPerSecond::new(5), Unlimited);
        assert_eq!(stream.read_deadline(), deadline);
        deadlines.expires_at(Instant::now());
        let error = stream.read(&mut [0; 4]).await.unwrap_err();
        assert!(!DeadlineExceeded::of(&error).unwrap().was_throttled(), "it did not wait at all");
    });
}

/// Says "now" and means "not yet", until somebody else has had a turn.
struct Wrong(Rc<Cell<bool>>);

impl RatePolicy for Wrong {
    fn available(&mut self, now: Instant) -> Allowance {
        if self.0.get() { Allowance::Bytes(NonZero::<usize>::MAX) } else { Allowance::Until(now) }
    }

    fn transferred(&mut self, _: usize, _: Instant) {}
}

#[test]
fn a_policy_that_says_now_for_ever_keeps_nobody_else_from_running() {
    within(async {
        let (tcp, _peer) = pair().await;
        let open = Rc::new(Cell::new(false));
        let mut stream = DeadlineStream::new(tcp).with_rates(Unlimited, Wrong(Rc::clone(&open)));
        let other = async {
            for _ in 0..10 {
                future::yield_now().await;
            }
            open.set(true);
        };
        let (written, ()) = future::zip(stream.write(b"x"), other).await;
        assert_eq!(written.unwrap(), 1);
    });
}

fn writing_gate(more: impl FnOnce(&mut Config)) -> (Gate, Watched) {
    let gate = Gate::default();
    let policy = gate.clone();
    (gate, with_rates(move |_| Rates::new(Unlimited, policy.clone()), more))
}

fn reading_gate(more: impl FnOnce(&mut Config)) -> (Gate, Watched) {
    let gate = Gate::default();
    let policy = gate.clone();
    (gate, with_rates(move |_| Rates::new(policy.clone(), Unlimited), more))
}

#[test]
fn messages_wait_for_the_rate_and_control_frames_do_not() {
    let (gate, watched) = writing_gate(|_| {});
    let (mut client, session) = watched.client();
    session.try_send("one").unwrap();
    session.try_send("two").unwrap();
    gate.await_asked();
    for payload in [&b"a"[..], b"bc"] {
        client.send_frame(PING, payload);
        let pong = client.read_frame();
        assert_eq!((pong.opcode, &pong.payload[..]), (PONG, payload));
        assert!(session.ping(payload));
        let ping = client.read_frame();
        assert_eq!((ping.opcode, &ping.payload[..]), (PING, payload));
    }
    assert_eq!(session.buffered().messages, 2, "they wait in the outbox");
    eventually("control frames count", || gate.transferred() == 2 * (3 + 4));
    session.try_send("three").unwrap();
    gate.open();
    for text in ["one", "two", "three"] {
        assert_eq!(client.read_frame().payload, text.as_bytes());
    }
    client.goodbye();
    assert!(watched.records.next().clean);
    eventually("everything has been counted", || {
        gate.transferred() == session.traffic().bytes_out as usize
    });
    watched.server.finish();
}

#[test]
fn reading_waits_for_its_rate_and_writing_does_not() {
    let (gate, watched) = reading_gate(|_| {});
    let (mut client, session) = watched.client();
    client.send_frame(TEXT, b"one");
    gate.await_asked();
    client.send_frame(TEXT, b"two");
    session.try_send("news").unwrap();
    assert_eq!(client.read_frame().payload, b"news");
    gate.await_asked();
    assert_eq!((session.traffic().bytes_in, gate.transferred()), (0, 0));
    gate.open();
    assert_eq!(client.read_frame().payload, b"one");
    assert_eq!(client.read_frame().payload, b"two");
    client.goodbye();
    assert!(watched.records.next().clean);
    assert_eq!(gate.transferred(), session.traffic().bytes_in as usize);
    watched.server.finish();
}

#[test]
fn what_comes_with_the_request_counts() {
    let gate = Gate::default();
    let policy = gate.clone();
    let count = AtomicUsize::new(0);
    let watched = with_rates(
        move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Rates::new(policy.clone(), Unlimited),
            1 => Rates::new(Unlimited, Unlimited),
            _ => Rates::new(Panics { asked: false }, Unlimited),
        },
        |_| {},
    );
    // The pipe takes it at once, and the server reads it with the request.
    let early = frame(true, TEXT, b"early").repeat(3);
    let together = [handshake("/").as_bytes(), &early].concat();
    let meet = || {
        let mut client = Pipe::raw(&watched.server);
        client.send(&together);
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
        (client, watched.sessions.next())
    };
    let (mut client, session) = meet();
    for _ in 0..3 {
        assert_eq!(client.read_frame().payload, b"early");
    }
    assert_eq!((session.traffic().bytes_in, gate.transferred()), (early.len() as u64, early.len()));
    gate.open();
    client.echo("late");
    client.goodbye();
    assert!(watched.records.next().clean);
    assert_eq!(gate.transferred() as u64, session.traffic().bytes_in);

    let (mut client, session) = meet();
    for _ in 0..3 {
        assert_eq!(client.read_frame().payload, b"early");
    }
    assert_eq!(session.traffic().bytes_in, early.len() as u64, "without a rate, too");
    client.goodbye();
    assert!(watched.records.next().clean);

    let (mut client, _session) = meet();
    assert_eq!(client.read_close().0, 1011);
    client.send_frame(CLOSE, &1011_u16.to_be_bytes());
    assert_eq!(client.read_to_end(), b"");
    assert_eq!(watched.records.next().cause, Cause::HandlerPanicked);
    assert_eq!(watched.server.finish().panics, 1);
}

#[test]
fn a_pipe_in_memory_keeps_to_the_rates_too() {
    let (gate, watched) = reading_gate(|_| {});
    let (mut client, session) = watched.pipe();
    client.send_frame(TEXT, b"one");
    gate.await_asked();
    session.try_send("news").unwrap();
    assert_eq!(client.read_frame().payload, b"news");
    gate.open();
    assert_eq!(client.read_frame().payload, b"one");
    watched.finish(client, &session);
}

#[test]
fn closing_does_not_wait_for_the_rates() {
    let (read, write) = (Gate::shut_for_good(), Gate::shut_for_good());
    let gates = (read.clone(), write.clone());
    let watched = with_rates(move |_| Rates::new(gates.0.clone(), gates.1.clone()), |_| {});
    let (mut client, session) = watched.client();
    let before = (read.asked(), write.asked());
    session.try_send("queued").unwrap();
    client.send_frame(TEXT, b"never read");
    read.await_asked_after(before.0);
    write.await_asked_after(before.1);
    session.close(CloseCode::NORMAL, "enough");
    assert_eq!(client.read_frame().payload, b"queued");
    assert_eq!(client.expect_close(1000), "enough");
    let closed = watched.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1000));
    assert!(closed.clean, "{closed}");

    let (mut client, session) = watched.client();
    let before = write.asked();
    session.try_send("dropped").unwrap();
    write.await_asked_after(before);
    session.abort();
    assert_eq!(client.read_to_end(), b"");
    assert_eq!(watched.records.next().cause, Cause::Aborted);

    let (mut client, session) = watched.client();
    let before = write.asked();
    session.try_send("drained").unwrap();
    write.await_asked_after(before);
    watched.server.handle.request_stop();
    assert_eq!(client.read_frame().payload, b"drained");
    client.expect_close(1001);
    let report = watched.server.finish();
    assert_eq!((report.drained, report.cut), (1, 0));
}

#[test]
fn a_peer_that_closes_while_messages_wait_gets_them_and_the_answer() {
    let gate = Gate::shut_for_good();
    let policy = gate.clone();
    let watched = with_rates(move |_| Rates::new(Unlimited, policy.clone()), |_| {});
    let (mut client, session) = watched.client();
    let before = gate.asked();
    session.try_send("queued").unwrap();
    gate.await_asked_after(before);
    // Held up, and woken for what is not.
    assert!(session.ping(b"before"));
    assert_eq!(client.read_frame().opcode, PING);
    client.send_frame(CLOSE, &1000_u16.to_be_bytes());
    assert_eq!(client.read_frame().payload, b"queued");
    assert_eq!(client.read_close().0, 1000);
    assert_eq!(client.read_to_end(), b"");
    assert!(watched.records.next().clean);
    watched.server.finish();
}

/// Shorter than the tests below keep a gate closed.
const TIMEOUT: Duration = Duration::from_millis(200);

#[test]
fn waiting_for_the_rate_is_no_write_stall() {
    let (gate, watched) = writing_gate(|config| {
        config.timeouts.write_stall = TIMEOUT;
        config.timeouts.ping = None;
    });
    let (mut client, session) = watched.client();
    session.try_send("late").unwrap();
    gate.await_asked();
    within(smol::Timer::after(5 * TIMEOUT));
    assert!(session.is_open(), "the peer has had nothing to take");
    gate.open();
    assert_eq!(client.read_frame().payload, b"late");
    client.goodbye();
    assert!(watched.records.next().clean);
    watched.server.finish();
}

#[test]
fn what_the_rate_leaves_unread_is_not_the_peers_silence() {
    let (gate, watched) = reading_gate(|config| {
        config.timeouts.ping = Some(TIMEOUT);
        config.timeouts.pong = TIMEOUT;
        config.timeouts.idle = Some(2 * TIMEOUT);
    });
    let (mut client, session) = watched.client();
    client.send_frame(TEXT, b"said in time");
    // So that nobody waits for the peer once the gate is open.
    client.send_frame(CLOSE, &1000_u16.to_be_bytes());
    gate.await_asked();
    within(smol::Timer::after(10 * TIMEOUT));
    assert!(session.is_open(), "the peer has spoken");
    gate.open();
    let echo = client.read_frame();
    assert_eq!((echo.opcode, &echo.payload[..]), (TEXT, &b"said in time"[..]));
    assert_eq!(client.read_close().0, 1000);
    assert_eq!(client.read_to_end(), b"");
    let closed = watched.records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerClosed, Phase::Closing, Some(1000));
    assert!(closed.clean, "{closed}");
    watched.server.finish();
}

#[test]
fn frames_can_be_read_in_the_smallest_pieces_that_a_rate_allows() {
    for most in [1, 2, 3, 7, 100_000] {
        let watched = with_rates(move |_| Rates::new(AtMost(most), AtMost(1)), |_| {});
        let (mut client, _session) = watched.client();
        for len in [0, 1, 125, 126, 1000] {
            client.echo(&"x".repeat(len));
        }
        client.goodbye();
        let closed = watched.records.next();
        assert!(closed.clean, "{closed}");
        watched.server.finish();
    }
}

#[test]
fn bytes_per_second_let_a_session_have_everything_in_order() {
    let rate = || BytesPerSecond::new(4_000_000).with_burst(100_000);
    let watched = with_rates(move |_| Rates::new(rate(), rate()), |_| {});
    let (mut client, session) = watched.client();
    let mut sender = client.stream.try_clone().unwrap();
    let payload = |i: u32| i.to_be_bytes().repeat(1 + i as usize % 2000);
    const COUNT: u32 = 200;
    let sending = std::thread::spawn(move || {
        for i in 0..COUNT {
            io::Write::write_all(&mut sender, &frame(true, BINARY, &payload(i))).unwrap();
        }
    });
    for i in 0..COUNT {
        assert!(client.read_frame().payload == payload(i), "{i}");
    }
    sending.join().unwrap();
    assert_eq!(session.traffic().messages_in, u64::from(COUNT));
    client.goodbye();
    assert!(watched.records.next().clean);
    watched.server.finish();
}

/// A bucket of several sessions.
#[derive(Clone)]
struct Shared(Arc<Mutex<BytesPerSecond>>);

impl RatePolicy for Shared {
    fn available(&mut self, now: Instant) -> Allowance {
        self.0.lock().unwrap().available(now)
    }

    fn transferred(&mut self, bytes: usize, now: Instant) {
        self.0.lock().unwrap().transferred(bytes, now);
    }
}

#[test]
fn of_sessions_that_share_a_bucket_each_gets_something() {
    // Once, sessions that waited for the same moment were woken in one order and then in the reverse one:
    // only the first and the last ever found something in the bucket.
    let bucket = Shared(Arc::new(Mutex::new(BytesPerSecond::new(20_000).with_burst(4_000))));
    // Nobody begins before the others are there.
    bucket.clone().transferred(20_000, Instant::now());
    let watched = with_rates(
        move |_| Rates::new(Unlimited, bucket.clone()),
        |config| {
            config.workers = Some(1);
            config.limits.outbox_messages = 1000;
            config.limits.outbox_bytes = 1_000_000;
        },
    );
    let mut clients: Vec<_> = (0..6).map(|_| watched.client()).collect();
    for (_, session) in &clients {
        // More than all of them get while this test waits.
        while session.try_send(vec![7; 1000]).is_ok() {}
    }
    for (client, _) in &mut clients {
        assert_eq!(client.read_frame().payload, [7; 1000]);
    }
    for (_, session) in &clients {
        session.abort();
    }
    watched.server.finish();
}

#[test]
fn each_session_is_asked_for_once_and_has_its_own() {
    let (sender, asked) = heard();
    let sender = Mutex::new(sender);
    let watched = with_rates(
        move |session| {
            sender.lock().unwrap().send(session.id()).unwrap();
            Rates::new(Unlimited, Unlimited)
        },
        |_| {},
    );
    let clients = [watched.client(), watched.client()];
    for (mut client, session) in clients {
        assert_eq!(asked.next(), session.id());
        client.echo("hello");
        client.echo("again");
        client.goodbye();
        assert!(watched.records.next().clean);
    }
    assert!(asked.try_next().is_none());
    watched.server.finish();
}

/// Panics when it is asked, or when it is told.
struct Panics {
    asked: bool,
}

impl RatePolicy for Panics {
    fn available(&mut self, _: Instant) -> Allowance {
        assert!(!self.asked, "a policy's own bug");
        Allowance::Bytes(NonZero::<usize>::MAX)
    }

    fn transferred(&mut self, _: usize, _: Instant) {
        panic!("a policy's own bug");
    }
}

/// Sends something, and answers the goodbye that says that the server has failed.
#[track_caller]
fn expect_failure(mut client: Raw) {
    // It may be closed before it reads this.
    let _ = io::Write::write_all(&mut client.stream, &frame(true, TEXT, b"hello"));
    let close = loop {
        let frame = client.read_frame();
        if frame.opcode == CLOSE {
            break frame;
        }
        assert_eq!(frame.payload, b"hello");
    };
    assert_eq!(close.close().0, 1011);
    let _ = io::Write::write_all(&mut client.stream, &frame(true, CLOSE, &[3, 243]));
    client.read_to_end();
}

#[test]
fn a_policy_that_panics_ends_its_session_and_no_other() {
    let count = AtomicUsize::new(0);
    let watched = with_rates(
        move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Rates::new(Panics { asked: true }, Unlimited),
            1 => Rates::new(Panics { asked: false }, Unlimited),
            2 => Rates::new(Unlimited, Panics { asked: true }),
            3 => Rates::new(Unlimited, Panics { asked: false }),
            4 => panic!("the application's own bug"),
            _ => Rates::new(Unlimited, Unlimited),
        },
        |config| config.workers = Some(1),
    );
    for case in 0..5 {
        expect_failure(watched.server.client());
        let closed = watched.records.next();
        assert_eq!(closed.cause, Cause::HandlerPanicked, "{case}");
        assert!(closed.clean, "{case}: {closed}");
    }
    let mut client = watched.server.client();
    client.echo("the others go on");
    client.goodbye();
    assert_eq!(watched.server.finish().panics, 5);
}

/// Panics when somebody wants to know whether it is there at all.
struct Unknown;

impl RatePolicy for Unknown {
    fn available(&mut self, _: Instant) -> Allowance {
        Allowance::Bytes(NonZero::<usize>::MAX)
    }

    fn transferred(&mut self, _: usize, _: Instant) {}

    fn is_unlimited(&self) -> bool {
        panic!("a policy's own bug");
    }
}

#[test]
fn where_rates_panic_every_callback_is_called_once_and_in_order() {
    let rates: [fn(&Session) -> Rates; 6] = [
        |_| panic!("a policy's own bug"),
        |_| Rates::new(Unknown, Unlimited),
        |_| Rates::new(Unlimited, Unknown),
        |_| Rates::new(Panics { asked: true }, Unlimited),
        |_| Rates::new(Unlimited, Panics { asked: true }),
        |_| Rates::new(Panics { asked: false }, Panics { asked: false }),
    ];
    for (case, rates) in rates.into_iter().enumerate() {
        let (sender, told) = heard();
        let [opened, failed, closed] = [0; 3].map(|_| sender.clone());
        let server = start(
            Server::builder()
                .rates(rates)
                .on_open(async move |_| opened.send("open".to_owned()).unwrap())
                .on_message(async |session, message| session.send(message).await)
                .on_error(async move |_, error| failed.send(error.to_string()).unwrap())
                .on_close(async move |_, it| closed.send(format!("{:?}", it.cause)).unwrap()),
        );
        expect_failure(server.client());
        for expected in ["open", "handler panicked: a policy's own bug", "HandlerPanicked"] {
            assert_eq!(told.next(), expected, "{case}");
        }
        assert_eq!(server.finish().panics, 1, "{case}");
        assert_eq!(told.try_next(), None, "{case}");
    }
}

/// Panics when it is dropped, and before that perhaps when it is asked.
struct PanicsAgain {
    asked: bool,
}

impl RatePolicy for PanicsAgain {
    fn available(&mut self, _: Instant) -> Allowance {
        assert!(!self.asked, "a policy's own bug");
        Allowance::Bytes(NonZero::<usize>::MAX)
    }

    fn transferred(&mut self, _: usize, _: Instant) {}
}

impl Drop for PanicsAgain {
    fn drop(&mut self) {
        panic!("a policy's other bug");
    }
}

#[test]
fn a_policy_that_panics_when_it_is_asked_and_when_it_is_dropped_ends_its_session_and_no_other() {
    let count = AtomicUsize::new(0);
    let watched = with_rates(
        move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Rates::new(PanicsAgain { asked: true }, Unlimited),
            1 => Rates::new(Unlimited, PanicsAgain { asked: true }),
            2 => Rates::new(PanicsAgain { asked: true }, PanicsAgain { asked: true }),
            3 => Rates::new(PanicsAgain { asked: false }, PanicsAgain { asked: false }),
            _ => Rates::new(Unlimited, Unlimited),
        },
        |config| config.workers = Some(1),
    );
    for case in 0..3 {
        expect_failure(watched.server.client());
        let closed = watched.records.next();
        assert_eq!(closed.cause, Cause::HandlerPanicked, "{case}");
        assert!(closed.clean, "{case}: {closed}");
    }
    let mut client = watched.server.client();
    client.echo("good until its end");
    client.goodbye();
    assert!(watched.records.next().clean);
    let mut client = watched.server.client();
    client.echo("the others go on");
    client.goodbye();
    assert_eq!(watched.server.finish().panics, 3);
}
