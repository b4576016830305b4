//! Rates of streams: what a policy allows, and nothing else, goes through. The bucket's arithmetic is tested
//! beside it, with a clock of its own.

mod support;

use std::cell::Cell;
use std::io;
use std::num::NonZero;
use std::rc::Rc;
use std::time::{Duration, Instant};

use coracle::{Allowance, BytesPerSecond, DeadlineExceeded, DeadlineStream, RatePolicy, Unlimited};
use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
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
