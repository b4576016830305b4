//! A connection between two requests and during one: reads into the intake while somebody waits for something else,
//! and writes under its deadlines.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::{FutureExt, StreamExt, future};

use super::body::{BodyError, Intake};
use super::front::{Door, pace};
use super::reply::Parts;
use crate::executor::{Size, Time, Timer, Worker, panic_text};
use crate::session::Handler;
use crate::shutdown::Phase;
use crate::transport::{Parting, Transport};

/// Bytes that are received ahead while a request is being answered: the end of the stream is behind what is sent
/// ahead. One more read than this may be kept.
const READ_AHEAD: usize = 16 * 1024;

/// How long the rest of a body that nobody reads is waited for, as of a refused client.
const PASS_OVER: Duration = Duration::from_secs(1);

/// Bytes that are sent in one turn of the worker: some ten microseconds' work, after which the others have theirs.
const IN_TURN: usize = 64 * 1024;

/// What a part of a body counts at least in a turn, also an empty one: it has been asked for.
const PART: usize = 256;

/// RFC 9110 section 15.2.1.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Why something is not waited for any longer.
pub(super) enum Interrupt {
    /// The client has gone, or the connection has failed.
    Gone(io::Error),
    /// Its deadline is over; whether the client's body was waited for.
    Late { for_body: bool },
    /// The server stops, and there is no more time.
    Stop,
}

/// What is done when the client sends nothing further.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AtEnd {
    GoOn,
    Drop,
}

pub(super) struct Conn<'t> {
    pub(super) transport: &'t mut Transport,
    pub(super) intake: Rc<Intake>,
    timer: Timer,
    /// What is left to write of a 100.
    interim: &'static [u8],
    /// Bytes of the body, or of what came behind it, that were received.
    received: usize,
    /// How long somebody has waited for them.
    waited: Duration,
    /// Since when somebody does.
    since: Option<Time>,
    /// What has been sent in this turn, in bytes.
    sent: usize,
    /// How long the client may yet take nothing of this answer.
    patience: Duration,
}

impl<'t> Conn<'t> {
    pub(super) fn new(
        worker: &Rc<Worker>,
        transport: &'t mut Transport,
        intake: Rc<Intake>,
    ) -> Self {
        Self {
            transport,
            intake,
            timer: worker.timer(),
            interim: &[],
            received: 0,
            waited: Duration::ZERO,
            since: None,
            sent: 0,
            patience: Duration::ZERO,
        }
    }

    /// Another request begins: its body is to come, and an answer whose client may take nothing for so long.
    pub(super) fn begin(&mut self, write_stall: Duration) {
        self.received = 0;
        self.waited = Duration::ZERO;
        self.since = None;
        self.patience = write_stall;
    }

    /// Waits for more input, or its end, until then.
    pub(super) async fn fill<H: Handler>(
        &mut self,
        door: &Door<'_, H>,
        until: Time,
    ) -> Result<(), Interrupt> {
        poll_fn(|cx| {
            if let Poll::Ready(filled) = self.poll_fill(cx, door.worker) {
                return Poll::Ready(filled.map_err(Interrupt::Gone));
            }
            if door.hub.shutdown.is_stopping() {
                return Poll::Ready(Err(Interrupt::Stop));
            }
            if door.worker.now() >= until {
                return Poll::Ready(Err(Interrupt::Late { for_body: false }));
            }
            self.timer.set(until);
            Poll::Pending
        })
        .await
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<io::Result<()>> {
        ready!(self.transport.poll_readable(cx));
        let mut buffer = worker.pool().take(Size::default());
        let polled = self.transport.poll_read(cx, &mut buffer);
        let mut state = self.intake.lock();
        state.input.extend_from_slice(&buffer);
        worker.pool().give(buffer);
        match ready!(polled) {
            Ok(0) => state.ended = true,
            Ok(count) => self.received += count,
            // TLS without its close_notify: what is missing is found out by who misses it.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => state.ended = true,
            Err(error) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for `future`, and meanwhile receives: what it wants, and a bounded rest of what is sent ahead.
    pub(super) async fn attend<T, H: Handler>(
        &mut self,
        door: &Door<'_, H>,
        deadline: Time,
        at_end: AtEnd,
        future: impl Future<Output = T>,
    ) -> Result<T, Interrupt> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            let ended = match self.hear(cx, door.worker) {
                Ok(ended) => ended,
                Err(error) => return Poll::Ready(Err(Interrupt::Gone(error))),
            };
            if ended && at_end == AtEnd::Drop {
                let ended = io::ErrorKind::UnexpectedEof.into();
                return Poll::Ready(Err(Interrupt::Gone(ended)));
            }
            let now = door.worker.now();
            let mut slowest = self.slowest(now, door.hub.config.limits.body_bytes_per_second);
            let deadline = if door.parked.get() { Time::NEVER } else { deadline };
            if now >= deadline {
                // Only now: whoever waits for the body is dropped with the future.
                let for_body = self.intake.look().wanted;
                return Poll::Ready(Err(Interrupt::Late { for_body }));
            }
            if now >= slowest {
                // Who waits is told, and nobody waits any longer.
                self.intake.fail(BodyError::TooSlow);
                slowest = self.slowest(now, 0);
            }
            let stop = match must_stop(door) {
                Ok(stop) => stop,
                Err(stopped) => return Poll::Ready(Err(stopped)),
            };
            self.timer.set(deadline.min(slowest).min(stop));
            Poll::Pending
        })
        .await
    }

    /// Receives while there is somebody or some room for it. True: the client sends nothing further.
    fn hear(&mut self, cx: &mut Context<'_>, worker: &Worker) -> io::Result<bool> {
        loop {
            let wanted = {
                let mut state = self.intake.lock();
                if state.wanted && std::mem::take(&mut state.expects) {
                    self.interim = CONTINUE;
                }
                if state.ended || (!state.wanted && state.input.len() >= READ_AHEAD) {
                    // No read tells of what happens behind that.
                    return match self.transport.parting(cx) {
                        Parting::No => Ok(state.ended),
                        Parting::Ended => Ok(true),
                        Parting::Broken => Err(io::ErrorKind::ConnectionReset.into()),
                    };
                }
                state.wanted
            };
            while !self.interim.is_empty() {
                match self.transport.poll_write(cx, &[IoSlice::new(self.interim)]) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(n)) => self.interim = self.interim.get(n..).unwrap_or_default(),
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
            }
            match self.poll_fill(cx, worker) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(false),
            }
            if wanted {
                if let Some(since) = self.since.take() {
                    self.waited += worker.now().since(since);
                }
                self.intake.lock().wake();
            }
        }
    }

    /// When the body that somebody waits for will have been too slow.
    fn slowest(&mut self, now: Time, bytes_per_second: u32) -> Time {
        if !self.intake.look().wanted {
            if let Some(since) = self.since.take() {
                self.waited += now.since(since);
            }
            return Time::NEVER;
        }
        let since = *self.since.get_or_insert(now);
        since + pace(self.received, bytes_per_second).saturating_sub(self.waited)
    }

    /// Waits for the rest of a body and throws it away. False: it did not come in time, or is malformed.
    pub(super) async fn pass_over<H: Handler>(
        &mut self,
        door: &Door<'_, H>,
    ) -> Result<bool, Interrupt> {
        let until = door.worker.now() + PASS_OVER;
        while !self.intake.pass_over() {
            if self.intake.failed() || self.intake.look().ended {
                return Ok(false);
            }
            match self.fill(door, until).await {
                Ok(()) => {}
                Err(Interrupt::Gone(error)) => return Err(Interrupt::Gone(error)),
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Writes all of this. While the client takes none of it its patience is used up, and every byte that it takes
    /// gives some back: a client that takes a byte now and then is not one that takes its answer.
    pub(super) async fn write<H: Handler>(
        &mut self,
        door: &Door<'_, H>,
        [first, second, third]: [&[u8]; 3],
    ) -> Result<(), Interrupt> {
        let stall = door.hub.config.timeouts.write_stall;
        let rate = door.hub.config.limits.body_bytes_per_second.max(1);
        let mut since = None;
        // Whoever has begun to write goes on with it.
        let parts = [std::mem::take(&mut self.interim), first, second, third];
        let all: usize = parts.iter().map(|part| part.len()).sum();
        let mut written = 0;
        poll_fn(|cx| {
            loop {
                let mut slices = [IoSlice::new(&[]); 4];
                let (mut count, mut skip) = (0, written);
                for part in parts {
                    let rest = part.get(skip..).unwrap_or_default();
                    skip = skip.saturating_sub(part.len());
                    if let (false, Some(slice)) = (rest.is_empty(), slices.get_mut(count)) {
                        *slice = IoSlice::new(rest);
                        count += 1;
                    }
                }
                let slices = slices.get(..count).unwrap_or_default();
                if slices.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                match self.transport.poll_write(cx, slices) {
                    Poll::Ready(Ok(0)) => {
                        let error = io::ErrorKind::WriteZero.into();
                        return Poll::Ready(Err(Interrupt::Gone(error)));
                    }
                    Poll::Ready(Ok(count)) => {
                        written += count;
                        if let Some(since) = since.take() {
                            let waited = door.worker.now().since(since);
                            self.patience = self.patience.saturating_sub(waited);
                        }
                        let earned = Duration::from_secs(count as u64) / rate;
                        self.patience = self.patience.saturating_add(earned).min(stall);
                        self.sent += count;
                        if self.sent >= IN_TURN && written < all {
                            self.sent = 0;
                            if let Err(stopped) = must_stop(door) {
                                return Poll::Ready(Err(stopped));
                            }
                            door.worker.yield_turn();
                            return Poll::Pending;
                        }
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Interrupt::Gone(error))),
                    Poll::Pending => {
                        let now = door.worker.now();
                        let until = *since.get_or_insert(now) + self.patience;
                        if now >= until {
                            return Poll::Ready(Err(Interrupt::Late { for_body: false }));
                        }
                        let stop = match must_stop(door) {
                            Ok(stop) => stop,
                            Err(stopped) => return Poll::Ready(Err(stopped)),
                        };
                        self.timer.set(until.min(stop));
                        return Poll::Pending;
                    }
                }
            }
        })
        .await
    }

    /// Writes a body that comes part by part, in chunks if its length is not known. With `patience` for each part.
    pub(super) async fn stream<H: Handler>(
        &mut self,
        door: &Door<'_, H>,
        mut parts: Parts,
        length: Option<u64>,
        together: usize,
        patience: Option<Duration>,
    ) -> Result<(), Interrupt> {
        // Whoever has asked for something that has an end gets it, also if he has nothing more to say.
        let at_end = if length.is_some() { AtEnd::GoOn } else { AtEnd::Drop };
        let mut left = length;
        while left != Some(0) {
            if self.sent >= IN_TURN {
                self.sent = 0;
                // What is always ready would leave no turn to anybody, nor hear of the client's end or the stop.
                self.attend(door, Time::NEVER, at_end, next_turn(door.worker)).await?;
            }
            let next = AssertUnwindSafe(parts.next()).catch_unwind();
            let until = patience.map_or(Time::NEVER, |patience| door.worker.now() + patience);
            let mut next = match self.attend(door, until, at_end, next).await? {
                Ok(next) => next.transpose(),
                Err(panic) => {
                    door.hub.endings.panicked();
                    log::error!("{}: a body panicked: {}", door.name(), panic_text(&*panic));
                    Err(io::Error::other("the body has panicked"))
                }
            }
            .map_err(Interrupt::Gone)?;
            let mut several = Vec::new();
            // What is ready as well leaves with it.
            let mut finished = false;
            let mut broken = None;
            while let Some(first) = next.as_ref() {
                self.sent += PART;
                if first.len().max(several.len()) >= together || finished || self.sent >= IN_TURN {
                    break;
                }
                let more = AssertUnwindSafe(future::poll_once(parts.next())).catch_unwind().await;
                match more {
                    Ok(None) => break,
                    Ok(Some(None)) => finished = true,
                    Ok(Some(Some(Ok(more)))) => {
                        if several.is_empty() {
                            several.extend_from_slice(first);
                        }
                        several.extend_from_slice(&more);
                    }
                    Ok(Some(Some(Err(error)))) => {
                        broken = Some(error);
                        break;
                    }
                    Err(_) => {
                        door.hub.endings.panicked();
                        log::error!("{}: a body panicked", door.name());
                        broken = Some(io::Error::other("the body has panicked"));
                        break;
                    }
                }
            }
            finished |= next.is_none();
            let next = next.take().unwrap_or_default();
            let bytes = if several.is_empty() { &next[..] } else { &several[..] };
            match &mut left {
                Some(left) => {
                    let fits =
                        usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    *left -= fits as u64;
                    let bytes = bytes.get(..fits).unwrap_or_default();
                    self.write(door, [bytes, &[], &[]]).await?;
                    if *left == 0 {
                        break;
                    }
                }
                // An empty chunk would be the end.
                None if bytes.is_empty() => {}
                None => {
                    let size = format!("{:x}\r\n", bytes.len());
                    self.write(door, [size.as_bytes(), bytes, b"\r\n"]).await?;
                }
            }
            if let Some(error) = broken {
                return Err(Interrupt::Gone(error));
            }
            if finished {
                return match left {
                    None => self.write(door, [b"0\r\n\r\n", &[], &[]]).await,
                    Some(left) => {
                        log::error!("{}: a body is {left} bytes too short", door.name());
                        Err(Interrupt::Gone(io::ErrorKind::UnexpectedEof.into()))
                    }
                };
            }
        }
        Ok(())
    }

    /// Nothing more is sent.
    pub(super) async fn close_write(&mut self) {
        poll_fn(|cx| {
            self.transport.close_write(cx);
            Poll::Ready(())
        })
        .await;
    }
}

/// Ready in the worker's next turn.
async fn next_turn(worker: &Worker) {
    let mut yielded = false;
    poll_fn(|_| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        worker.yield_turn();
        Poll::Pending
    })
    .await;
}

/// When the server's stop cuts what is under way; an error if it does so now.
fn must_stop<H>(door: &Door<'_, H>) -> Result<Time, Interrupt> {
    let shutdown = &door.hub.shutdown;
    let deadline = shutdown.deadline();
    if shutdown.phase() == Phase::Cutting || door.worker.now() >= deadline {
        return Err(Interrupt::Stop);
    }
    Ok(deadline)
}
