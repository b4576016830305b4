//! Rates of streams and of sessions: what a policy allows, and nothing else, goes through. The bucket's
//! arithmetic is tested beside it, with a clock of its own.

#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::cell::Cell;
use std::io;
use std::num::NonZero;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coracle::config::Config;
use coracle::{
    Allowance, BytesPerSecond, Cause, CloseCode, DeadlineExceeded, DeadlineStream, Phase,
    RatePolicy, Rates, Session, SessionRates, Side, Unlimited,
};
use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use pipe::*;
use smol::net::{TcpListener, TcpStream};
use support::*;

/// Short enough to be waited for; long enough that an operation begins before it, however busy the machine.
const SOON: Duration = Duration::from_millis(300);

/// Further away than the watchdog.
const LATER: Duration = Duration::from_secs(3600);

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

/// Lets nothing through until the test opens it.
#[derive(Clone, Default)]
struct Gate(Arc<Gated>);

#[derive(Default)]
struct Gated {
    /// Whoever has asked in vain is to ask again only after the test.
    shut_for_good: bool,
    open: AtomicBool,
    asked: AtomicUsize,
    transferred: AtomicUsize,
}

impl Gate {
    fn shut_for_good() -> Self {
        Self(Arc::new(Gated { shut_for_good: true, ..Gated::default() }))
    }

    fn open(&self) {
        self.0.open.store(true, Ordering::SeqCst);
    }

    fn asked(&self) -> usize {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// Waits until somebody has asked in vain, after so many times before.
    #[track_caller]
    fn await_asked_after(&self, before: usize) {
        eventually("it is asked", || self.asked() > before);
    }

    /// The same from now on; who has asked asks again.
    #[track_caller]
    fn await_asked(&self) {
        assert!(!self.0.shut_for_good);
        self.await_asked_after(self.asked());
    }

    fn transferred(&self) -> usize {
        self.0.transferred.load(Ordering::SeqCst)
    }
}

impl RatePolicy for Gate {
    fn available(&mut self, now: Instant) -> Allowance {
        if self.0.open.load(Ordering::SeqCst) {
            return Allowance::Bytes(NonZero::<usize>::MAX);
        }
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let wait = if self.0.shut_for_good { LATER } else { Duration::from_millis(1) };
        Allowance::Until(now + wait)
    }

    fn transferred(&mut self, bytes: usize, _: Instant) {
        self.0.transferred.fetch_add(bytes, Ordering::SeqCst);
    }
}

/// An echo server whose sessions all have these rates.
fn with_rates(
    rates: impl Fn(&Session) -> Rates + Send + Sync + 'static,
    more: impl FnOnce(&mut Config),
) -> Watched {
    Watched::start(|config| {
        config.rates = Some(SessionRates::new(rates));
        more(config);
    })
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
    gate.await_asked();
    within(smol::Timer::after(10 * TIMEOUT));
    assert!(session.is_open(), "the peer has spoken");
    gate.open();
    loop {
        let frame = client.read_frame();
        if frame.opcode == TEXT {
            assert_eq!(frame.payload, b"said in time");
            break;
        }
        assert_eq!(frame.opcode, PING);
    }
    session.abort();
    assert_eq!(watched.records.next().cause, Cause::Aborted);
    watched.server.finish();
}

/// Lets through so many bytes at a time, always.
struct AtMost(usize);

impl RatePolicy for AtMost {
    fn available(&mut self, _: Instant) -> Allowance {
        NonZero::new(self.0).map(Allowance::Bytes).unwrap()
    }

    fn transferred(&mut self, _: usize, _: Instant) {}
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
        let mut client = watched.server.client();
        // It may be closed before it reads this.
        let _ = io::Write::write_all(&mut client.stream, &frame(true, TEXT, b"hello"));
        let close = loop {
            let frame = client.read_frame();
            if frame.opcode == CLOSE {
                break frame;
            }
            assert_eq!(frame.payload, b"hello", "{case}");
        };
        assert_eq!(close.close().0, 1011, "{case}");
        let _ = io::Write::write_all(&mut client.stream, &frame(true, CLOSE, &[3, 243]));
        client.read_to_end();
        assert_eq!(watched.records.next().cause, Cause::HandlerPanicked, "{case}");
    }
    let mut client = watched.server.client();
    client.echo("the others go on");
    client.goodbye();
    watched.server.finish();
}
