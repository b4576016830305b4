//! Streams with deadlines, over sockets and over a stream that does what the test says.
//!
//! Nothing here says how long something takes: what is asserted is which of two things happens, and in
//! which order.

mod support;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::{Duration, Instant};

use coracle::{BoxError, Deadline, DeadlineExceeded, DeadlineStream, Deadlines, Server};
use futures_lite::io::BufReader;
use futures_lite::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, future};
use smol::net::{TcpListener, TcpStream};
use support::*;

/// Short enough to be waited for; long enough that an operation begins before it, however busy the machine.
const SOON: Duration = Duration::from_millis(300);

/// Further away than the watchdog.
const LATER: Duration = Duration::from_secs(3600);

async fn pair() -> (DeadlineStream<TcpStream>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    (DeadlineStream::new(connected), accepted)
}

#[track_caller]
fn exceeded<T: std::fmt::Debug>(result: io::Result<T>) -> DeadlineExceeded {
    let error = result.expect_err("a deadline has passed");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    *DeadlineExceeded::of(&error).expect("it says what timed out")
}

/// A stream whose other end is the test. One task polls it.
#[derive(Clone, Default)]
struct Scripted(Rc<RefCell<Script>>);

#[derive(Default)]
struct Script {
    incoming: VecDeque<u8>,
    outgoing: Vec<u8>,
    /// Bytes that writing takes before it has to wait.
    room: usize,
    waker: Option<Waker>,
}

impl Scripted {
    fn feed(&self, bytes: &[u8]) {
        let mut script = self.0.borrow_mut();
        script.incoming.extend(bytes);
        script.waker.take().into_iter().for_each(Waker::wake);
    }

    fn make_room(&self, room: usize) {
        let mut script = self.0.borrow_mut();
        script.room += room;
        script.waker.take().into_iter().for_each(Waker::wake);
    }
}

impl AsyncRead for Scripted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut script = self.0.borrow_mut();
        if script.incoming.is_empty() {
            script.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = buffer.len().min(script.incoming.len());
        buffer[..count].iter_mut().zip(script.incoming.drain(..count)).for_each(|(to, b)| *to = b);
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut script = self.0.borrow_mut();
        let count = bytes.len().min(script.room);
        if count == 0 {
            script.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        script.room -= count;
        script.outgoing.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut script = self.0.borrow_mut();
        if script.room > 0 {
            return Poll::Ready(Ok(()));
        }
        script.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// Polls once, and expects that it has to wait.
#[track_caller]
fn begin<T: std::fmt::Debug>(future: Pin<&mut (impl Future<Output = T> + ?Sized)>) {
    if let Some(output) = future::block_on(future::poll_once(future)) {
        panic!("it did not have to wait: {output:?}");
    }
}

#[test]
fn a_line_has_one_deadline_however_many_reads_it_takes() {
    within(async {
        let (stream, mut peer) = pair().await;
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        let mut budget = SOON;
        // On a machine that is busy enough, not a single read is in time.
        while line.is_empty() {
            stream.get_mut().expires_after(budget);
            // Every read brings something; the line never ends.
            let drip = async {
                loop {
                    peer.write_all(b"x").await.unwrap();
                    smol::Timer::after(Duration::from_millis(1)).await;
                }
            };
            let read = future::or(stream.read_until(b'\n', &mut line), drip).await;
            assert_eq!(exceeded(read).operation(), "read");
            budget *= 2;
        }
    });
}

#[test]
fn an_expired_stream_fails_the_next_operation_at_once_and_loses_nothing() {
    within(async {
        let (mut stream, mut peer) = pair().await;
        peer.write_all(b"here").await.unwrap();
        let mut buffer = [0; 16];
        // It is there: this read need not wait.
        stream.expires_after(LATER);
        assert_eq!(stream.read(&mut buffer[..1]).await.unwrap(), 1);
        stream.expires_at(Instant::now());
        for _ in 0..2 {
            let read = future::poll_once(stream.read(&mut buffer)).await.expect("at once");
            let read = exceeded(read);
            assert_eq!((read.operation(), read.waited()), ("read", Duration::ZERO));
            let write = future::poll_once(stream.write(b"x")).await.expect("at once");
            assert_eq!(exceeded(write).operation(), "write");
            let flush = future::poll_once(stream.flush()).await.expect("at once");
            assert_eq!(exceeded(flush).operation(), "flush");
            let close = future::poll_once(stream.close()).await.expect("at once");
            assert_eq!(exceeded(close).operation(), "close");
        }
        stream.expires_never();
        assert_eq!(stream.read(&mut buffer).await.unwrap(), 3);
        assert_eq!(&buffer[..3], b"ere");
        stream.write_all(b"still open").await.unwrap();
        drop(stream);
        let mut received = Vec::new();
        peer.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"still open", "nothing was written after the deadline");
    });
}

#[test]
fn a_peer_that_says_nothing_and_one_that_reads_nothing() {
    within(async {
        let (mut stream, peer) = pair().await;
        stream.expires_after(SOON);
        let read = exceeded(stream.read(&mut [0; 16]).await);
        assert_eq!(read.operation(), "read");
        assert_eq!(read.deadline(), stream.read_deadline());
        assert_eq!(read.deadline().budget(), Some(SOON));
        assert!(read.waited() > Duration::ZERO && !read.was_throttled());

        stream.expires_after(SOON);
        let endless = vec![0; 1 << 20];
        let write = async {
            loop {
                stream.write_all(&endless).await?;
            }
        };
        let write: io::Result<()> = write.await;
        assert_eq!(exceeded(write).operation(), "write");
        drop(peer);
    });
}

#[test]
fn reading_and_writing_have_a_deadline_each() {
    within(async {
        let (mut stream, mut peer) = pair().await;
        stream.set_read_deadline(Instant::now());
        stream.set_write_deadline(Deadline::after(LATER));
        stream.write_all(b"out").await.unwrap();
        assert_eq!(exceeded(stream.read(&mut [0; 4]).await).operation(), "read");
        stream.set_write_deadline(Instant::now());
        stream.set_read_deadline(Deadline::NEVER);
        peer.write_all(b"in").await.unwrap();
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap(), 2);
        assert_eq!(exceeded(stream.write(b"out").await).operation(), "write");
        let mut out = [0; 3];
        peer.read_exact(&mut out).await.unwrap();
        assert_eq!(&out, b"out");
    });
}

#[test]
fn an_operation_keeps_the_deadline_it_began_under() {
    within(async {
        let (mut stream, mut peer) = pair().await;
        let deadlines = stream.deadlines();
        stream.expires_after(SOON);
        let soon = stream.read_deadline();
        {
            let mut buffer = [0; 4];
            let mut read = pin!(stream.read(&mut buffer));
            begin(read.as_mut());
            // For the ones that follow.
            deadlines.expires_after(LATER);
            assert_eq!(exceeded(read.await).deadline(), soon);
        }
        peer.write_all(b"next").await.unwrap();
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 4, "it is under the new one");

        stream.expires_never();
        {
            let mut buffer = [0; 4];
            let mut read = pin!(stream.read(&mut buffer));
            begin(read.as_mut());
            deadlines.expires_at(Instant::now());
            begin(read.as_mut());
            peer.write_all(b"late").await.unwrap();
            assert_eq!(read.await.unwrap(), 4, "it began under none");
        }
        assert_eq!(exceeded(stream.read(&mut [0; 4]).await).operation(), "read");
    });
}

#[test]
fn a_handle_sets_one_direction_or_both_wherever_the_stream_is() {
    within(async {
        let (stream, mut peer) = pair().await;
        let deadlines = stream.deadlines();
        let (mut reader, mut writer) = futures_lite::io::split(stream);
        deadlines.set_read(Instant::now());
        writer.write_all(b"out").await.unwrap();
        assert_eq!(exceeded(reader.read(&mut [0; 4]).await).operation(), "read");
        deadlines.set_write(Instant::now());
        deadlines.set_read(Deadline::after(LATER));
        peer.write_all(b"in").await.unwrap();
        assert_eq!(reader.read(&mut [0; 4]).await.unwrap(), 2);
        assert_eq!(exceeded(writer.close().await).operation(), "close");
        deadlines.expires_never();
        assert!(deadlines.read().is_never() && deadlines.write().is_never());
        writer.close().await.unwrap();
        let mut out = Vec::new();
        peer.read_to_end(&mut out).await.unwrap();
        assert_eq!(out, b"out");
    });
}

#[test]
fn a_read_that_was_dropped_is_over_and_its_deadline_hurts_nobody() {
    within(async {
        let (mut stream, mut peer) = pair().await;
        stream.expires_after(SOON);
        let old = stream.read_deadline().instant().unwrap();
        assert!(future::poll_once(stream.read(&mut [0; 4])).await.is_none());
        stream.expires_after(LATER);
        smol::Timer::at(old).await;
        let mut buffer = [0; 4];
        let mut read = pin!(stream.read(&mut buffer));
        begin(read.as_mut());
        peer.write_all(b"here").await.unwrap();
        assert_eq!(read.await.unwrap(), 4);
    });
}

/// A stream of the kind of TLS: what it has taken is written, also while it still waits to be sent.
struct Buffering {
    inner: DeadlineStream<Scripted>,
    waiting: Vec<u8>,
}

impl Buffering {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.waiting))?;
            self.waiting.drain(..sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Buffering {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        self.waiting.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// Two writes have been done in the outer stream, and the inner one has one in progress.
async fn buffering(deadline: Deadline) -> (Scripted, Deadlines, Buffering) {
    let script = Scripted::default();
    let inner = DeadlineStream::new(script.clone());
    let deadlines = inner.deadlines();
    deadlines.expires_at(deadline);
    let mut stream = Buffering { inner, waiting: Vec::new() };
    stream.write_all(b"a").await.unwrap();
    stream.write_all(b"b").await.unwrap();
    (script, deadlines, stream)
}

#[test]
fn a_write_that_an_outer_stream_has_left_behind_is_not_under_the_old_deadline_for_ever() {
    within(async {
        // The time was up when nobody was writing.
        let soon = Deadline::after(SOON);
        let (script, deadlines, mut stream) = buffering(soon).await;
        smol::Timer::at(soon.instant().unwrap()).await;
        deadlines.restart_after(LATER);
        assert_eq!(deadlines.write().budget(), Some(LATER));
        stream.write_all(b"c").await.unwrap();
        {
            let mut flush = pin!(stream.flush());
            begin(flush.as_mut());
            script.make_room(10);
            flush.await.unwrap();
        }
        assert_eq!(script.0.borrow().outgoing, b"abc");

        // For those who do not know of an outer stream it is one operation: nobody has ended it.
        let soon = Deadline::after(SOON);
        let (_script, deadlines, mut stream) = buffering(soon).await;
        smol::Timer::at(soon.instant().unwrap()).await;
        deadlines.expires_after(LATER);
        let write = exceeded(stream.write(b"c").await);
        assert_eq!((write.operation(), write.deadline()), ("write", soon));
    });
}

#[test]
fn what_an_outer_stream_has_begun_without_a_deadline_gets_the_next_one() {
    within(async {
        let (_script, deadlines, mut stream) = buffering(Deadline::NEVER).await;
        deadlines.restart_at(Instant::now());
        let write = future::poll_once(stream.write(b"c")).await.expect("at once");
        let write = exceeded(write);
        assert_eq!((write.operation(), write.waited()), ("write", Duration::ZERO));

        let (_script, deadlines, mut stream) = buffering(Deadline::NEVER).await;
        deadlines.restart_after(SOON);
        let flush = exceeded(stream.flush().await);
        assert_eq!((flush.operation(), flush.deadline().budget()), ("write", Some(SOON)));
    });
}

#[test]
fn a_read_that_was_dropped_gets_the_deadline_of_a_restart() {
    within(async {
        let script = Scripted::default();
        let mut stream = DeadlineStream::new(script.clone());
        let deadlines = stream.deadlines();
        let mut buffer = [0; 4];
        assert!(future::poll_once(stream.read(&mut buffer)).await.is_none());
        deadlines.restart_after(SOON);
        let read = exceeded(stream.read(&mut buffer).await);
        assert_eq!(read.deadline().budget(), Some(SOON));

        deadlines.expires_never();
        assert!(future::poll_once(stream.read(&mut buffer)).await.is_none());
        deadlines.restart_at(Instant::now());
        let read = future::poll_once(stream.read(&mut buffer)).await.expect("at once");
        assert_eq!(exceeded(read).waited(), Duration::ZERO);

        // The other way round: from one that has passed to none.
        let soon = Deadline::after(SOON);
        deadlines.expires_at(soon);
        assert!(future::poll_once(stream.read(&mut buffer)).await.is_none());
        smol::Timer::at(soon.instant().unwrap()).await;
        deadlines.restart_at(Deadline::NEVER);
        {
            let mut read = pin!(stream.read(&mut buffer));
            begin(read.as_mut());
            script.feed(b"here");
            assert_eq!(read.await.unwrap(), 4);
        }
        assert_eq!(&buffer, b"here");
    });
}

#[test]
fn a_restart_is_also_for_the_operation_that_somebody_waits_for() {
    within(async {
        let (mut stream, mut peer) = pair().await;
        let deadlines = stream.deadlines();
        let mut buffer = [0; 4];
        {
            let mut read = pin!(stream.read(&mut buffer));
            begin(read.as_mut());
            deadlines.restart_after(SOON);
            // It hears of it when it is next woken.
            assert_eq!(exceeded(read.await).deadline().budget(), Some(SOON));
        }
        deadlines.restart_after(SOON);
        let soon = deadlines.read().instant().unwrap();
        let mut read = pin!(stream.read(&mut buffer));
        begin(read.as_mut());
        deadlines.restart_after(LATER);
        smol::Timer::at(soon).await;
        begin(read.as_mut());
        peer.write_all(b"late").await.unwrap();
        assert_eq!(read.await.unwrap(), 4);
    });
}

/// Wakes nobody, and is counted by those who keep it.
struct Kept;

impl Wake for Kept {
    fn wake(self: Arc<Self>) {}
}

/// Waits until nobody keeps the waker any more.
async fn released(kept: &Arc<Kept>) {
    while Arc::strong_count(kept) > 1 {
        // What is taken out of smol's reactor goes when the reactor next looks at its timers.
        smol::Timer::after(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_new_deadline_lets_go_of_whoever_waited_under_the_old_one() {
    within(async {
        let script = Scripted::default();
        let mut stream = DeadlineStream::new(script.clone());
        type Set = fn(&mut DeadlineStream<Scripted>);
        let reads: [Set; 5] = [
            |stream| stream.expires_never(),
            |stream| stream.expires_after(2 * LATER),
            |stream| stream.set_read_deadline(Deadline::NEVER),
            |stream| stream.set_read_deadline(Deadline::after(2 * LATER)),
            // By a handle, as soon as there is another read.
            |stream| {
                stream.deadlines().expires_never();
                begin(pin!(stream.read(&mut [0; 4])));
            },
        ];
        for set in reads {
            let kept = Arc::new(Kept);
            let waker = Waker::from(Arc::clone(&kept));
            stream.expires_after(LATER);
            let mut buffer = [0; 4];
            let mut cx = Context::from_waker(&waker);
            assert!(Pin::new(&mut stream).poll_read(&mut cx, &mut buffer).is_pending());
            drop(waker);
            // Somebody else takes what comes: that read is over.
            script.feed(b"here");
            assert_eq!(stream.read(&mut buffer).await.unwrap(), 4);
            set(&mut stream);
            released(&kept).await;
        }
        let writes: [Set; 2] = [
            |stream| stream.expires_never(),
            |stream| stream.set_write_deadline(Deadline::after(2 * LATER)),
        ];
        for set in writes {
            let kept = Arc::new(Kept);
            let waker = Waker::from(Arc::clone(&kept));
            stream.expires_after(LATER);
            let mut cx = Context::from_waker(&waker);
            assert!(Pin::new(&mut stream).poll_write(&mut cx, b"out").is_pending());
            drop(waker);
            script.make_room(3);
            stream.write_all(b"out").await.unwrap();
            set(&mut stream);
            released(&kept).await;
        }
    });
}

#[test]
fn dropped_reads_and_writes_lose_no_bytes() {
    within(async {
        let (mut stream, mut peer) = pair().await;
        let sent: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();
        stream.expires_after(LATER);
        let mut received = Vec::new();
        let reading = async {
            let mut buffer = [0; 777];
            while received.len() < sent.len() {
                // Each is dropped at once if it has to wait.
                match future::poll_once(stream.read(&mut buffer)).await {
                    Some(read) => received.extend_from_slice(&buffer[..read.unwrap()]),
                    None => future::yield_now().await,
                }
            }
        };
        future::zip(reading, async { peer.write_all(&sent).await.unwrap() }).await;
        assert!(received == sent);

        let mut written = 0;
        let writing = async {
            while written < sent.len() {
                match future::poll_once(stream.write(&sent[written..])).await {
                    Some(write) => written += write.unwrap(),
                    None => future::yield_now().await,
                }
            }
        };
        let mut echoed = vec![0; sent.len()];
        future::zip(writing, async { peer.read_exact(&mut echoed).await.unwrap() }).await;
        assert!(echoed == sent);
    });
}

#[test]
fn what_is_done_in_time_counts_however_late_it_is_looked_at() {
    within(async {
        let script = Scripted::default();
        let mut stream = DeadlineStream::new(script.clone());
        stream.expires_after(SOON);
        let soon = stream.read_deadline().instant().unwrap();
        let mut buffer = [0; 4];
        {
            let mut read = pin!(stream.read(&mut buffer));
            begin(read.as_mut());
            script.feed(b"here");
            smol::Timer::at(soon).await;
            assert_eq!(read.await.unwrap(), 4);
        }
        script.feed(b"more");
        assert_eq!(exceeded(stream.read(&mut buffer).await).waited(), Duration::ZERO);
    });
}

#[test]
fn every_operation_is_named_and_one_takes_the_place_of_another() {
    within(async {
        let script = Scripted::default();
        let mut stream = DeadlineStream::new(script.clone());
        for _ in 0..2 {
            stream.expires_after(SOON);
            assert_eq!(exceeded(stream.write(b"x").await).operation(), "write");
            stream.expires_after(SOON);
            assert_eq!(exceeded(stream.flush().await).operation(), "flush");
            stream.expires_after(SOON);
            assert_eq!(exceeded(stream.close().await).operation(), "close");
        }
        // The write was dropped for the flush, which began under what was set meanwhile.
        let deadlines = stream.deadlines();
        stream.expires_never();
        assert!(future::poll_once(stream.write(b"x")).await.is_none());
        deadlines.expires_after(SOON);
        assert_eq!(exceeded(stream.flush().await).operation(), "flush");
        stream.expires_after(LATER);
        assert!(future::poll_once(stream.close()).await.is_none());
        script.make_room(5);
        stream.write_all(b"hello").await.unwrap();
        assert_eq!(script.0.borrow().outgoing, b"hello");
    });
}

#[test]
fn vectored_operations_have_a_deadline_too() {
    within(async {
        let script = Scripted::default();
        script.make_room(3);
        let mut stream = DeadlineStream::new(script.clone());
        stream.expires_after(SOON);
        let slices = [io::IoSlice::new(b""), io::IoSlice::new(b"abc"), io::IoSlice::new(b"def")];
        let written = poll_fn(|cx| Pin::new(&mut stream).poll_write_vectored(cx, &slices)).await;
        assert_eq!(written.unwrap(), 3);
        let written = poll_fn(|cx| Pin::new(&mut stream).poll_write_vectored(cx, &slices)).await;
        assert_eq!(exceeded(written).operation(), "write");
        let mut buffer = [0; 4];
        let mut slices = [io::IoSliceMut::new(&mut buffer)];
        let read = poll_fn(|cx| Pin::new(&mut stream).poll_read_vectored(cx, &mut slices)).await;
        assert_eq!(exceeded(read).operation(), "read");
    });
}

#[test]
fn a_task_that_takes_over_a_pending_read_is_woken_at_the_deadline() {
    let (stream, peer) = within(pair());
    let mut stream = BufReader::new(stream);
    stream.get_mut().expires_after(SOON);
    let mut read = Box::pin(async move {
        let mut buffer = [0; 4];
        stream.read(&mut buffer).await
    });
    begin(read.as_mut());
    let elsewhere = std::thread::spawn(move || within(read));
    assert_eq!(exceeded(elsewhere.join().unwrap()).operation(), "read");
    drop(peer);
}

#[test]
fn steps_share_one_budget() {
    within(async {
        let later = Deadline::after(LATER);
        let step = |n: i32| later.run("step", async move { io::Result::Ok(n) });
        assert_eq!(step(1).await.unwrap() + step(2).await.unwrap(), 3);

        let deadline = Deadline::after(SOON);
        let waited: io::Result<()> = deadline.run("handshake", pending()).await;
        let waited = exceeded(waited);
        assert_eq!((waited.operation(), waited.deadline()), ("handshake", deadline));
        assert!(deadline.has_passed());
        assert_eq!(deadline.remaining(), Some(Duration::ZERO));
        // What comes after the deadline is not even begun.
        let never_polled = poll_fn(|_| -> Poll<io::Result<()>> { panic!("it has begun") });
        let next = exceeded(deadline.run("request", never_polled).await);
        assert_eq!((next.operation(), next.waited()), ("request", Duration::ZERO));
        assert_eq!(
            next.to_string(),
            "request timed out: it began after the deadline (budget: 300ms)"
        );

        let (mut stream, _peer) = pair().await;
        stream.expires_at(deadline);
        assert_eq!(exceeded(stream.read(&mut [0; 1]).await).deadline(), deadline);
    });
}

#[test]
fn a_step_fails_with_its_own_error_or_with_the_deadlines_in_any_type_that_takes_it() {
    within(async {
        let later = Deadline::after(LATER);
        let refused: io::Result<()> =
            later.run("connect", future::ready(Err(io::ErrorKind::ConnectionRefused.into()))).await;
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let boxed: Result<(), BoxError> = Deadline::at(Instant::now()).run("any", pending()).await;
        let boxed = boxed.unwrap_err();
        assert_eq!(boxed.downcast_ref::<DeadlineExceeded>().unwrap().operation(), "any");
        assert_eq!(boxed.to_string(), "any timed out: it began after the deadline");
    });
}

#[test]
fn the_earlier_one_of_two_deadlines() {
    let now = Instant::now();
    let (soon, later) = (Deadline::at(now + SOON), Deadline::at(now + LATER));
    for (a, b) in [(soon, later), (soon, Deadline::NEVER), (soon, soon)] {
        assert_eq!(a.earlier(b), a);
        assert_eq!(b.earlier(a), a);
    }
    assert_eq!(Deadline::NEVER.earlier(Deadline::NEVER), Deadline::NEVER);
    assert_eq!(Deadline::after(Duration::MAX), Deadline::NEVER);
    assert_eq!(Deadline::NEVER.remaining(), None);
    assert!(!Deadline::NEVER.has_passed());
}

#[test]
fn the_stream_inside_comes_back() {
    within(async {
        let (mut stream, mut peer) = pair().await;
        stream.expires_at(Instant::now());
        let addr = stream.get_ref().local_addr().unwrap();
        assert_eq!(addr, peer.peer_addr().unwrap());
        peer.write_all(b"here").await.unwrap();
        let mut buffer = [0; 4];
        stream.get_mut().read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"here", "without its deadline");
        let mut tcp = stream.into_inner();
        tcp.write_all(b"there").await.unwrap();
        drop(tcp);
        let mut received = Vec::new();
        peer.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"there");
    });
}

#[test]
fn a_connection_in_memory_can_have_deadlines_too() {
    let server =
        start(Server::builder().on_message(async |session, message| session.send(message).await));
    let mut stream = DeadlineStream::new(server.handle.connect().unwrap());
    within(async {
        stream.expires_after(LATER);
        stream.write_all(handshake("/").as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            head.push(byte[0]);
        }
        stream.expires_after(SOON);
        assert_eq!(exceeded(stream.read(&mut [0; 16]).await).operation(), "read");
        stream.expires_after(LATER);
        stream.write_all(&frame(true, TEXT, b"hello")).await.unwrap();
        let mut echo = [0; 7];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo[2..], b"hello");
    });
    drop(stream);
    server.finish();
}
