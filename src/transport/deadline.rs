//! A byte stream whose operations have a deadline.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::num::NonZero;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_lite::{AsyncRead, AsyncWrite};
use pin_project_lite::pin_project;

use super::budget::{Deadline, DeadlineExceeded};
use super::rate::{Allowance, RatePolicy, Unlimited};

pin_project! {
    /// A byte stream whose reads and writes fail at a deadline, and keep to a rate.
    ///
    /// A deadline is not for one read: it is for a *logical operation*, which may be many of them. Set it,
    /// do the whole, set the next one:
    ///
    /// ```rust
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// use coracle::DeadlineStream;
    /// use futures_lite::{AsyncBufReadExt, AsyncWriteExt, io::BufReader};
    /// use smol::net::TcpStream;
    ///
    /// /// Reads a line and writes it back within 30 seconds, however many pieces it comes in.
    /// async fn echo_line(tcp: TcpStream) -> io::Result<()> {
    ///     let mut stream = BufReader::new(DeadlineStream::new(tcp));
    ///     stream.get_mut().expires_after(Duration::from_secs(30));
    ///     let mut line = String::new();
    ///     stream.read_line(&mut line).await?;
    ///     stream.get_mut().write_all(line.as_bytes()).await
    /// }
    /// ```
    ///
    /// The rules:
    ///
    /// * Reading and writing have a deadline each. [`expires_after`](Self::expires_after),
    ///   [`expires_at`](Self::expires_at) and [`expires_never`](Self::expires_never) set both,
    ///   [`set_read_deadline`](Self::set_read_deadline) and
    ///   [`set_write_deadline`](Self::set_write_deadline) one of them. Flushing and closing belong to
    ///   writing. A new stream has none.
    /// * An operation keeps the deadline it began under. When it is set anew, by a [`Deadlines`]
    ///   elsewhere, the new one is for those that follow.
    /// * When the deadline has passed, the next operation fails at once, whatever has arrived meanwhile,
    ///   and so does every further one until the deadline is set anew.
    /// * What is done in time counts: an operation that can be completed when it is looked at is not
    ///   failed for being looked at late.
    ///
    /// The error is an [`io::Error`] of kind [`TimedOut`](io::ErrorKind::TimedOut), with a
    /// [`DeadlineExceeded`] inside that names the operation.
    ///
    /// An expiry loses no bytes of the stream and closes nothing. The stream can be given another deadline,
    /// to say goodbye for example; but where a *series* was cut, `write_all` or `read_exact` for example,
    /// nobody knows how far it had come.
    ///
    /// These are the rules of Boost.Beast's `basic_stream`, which also closes the stream.
    ///
    /// # Rates
    ///
    /// With [`with_rates`](Self::with_rates) each direction has a [`RatePolicy`], too. An operation that
    /// has to wait for its rate is still under its deadline.
    ///
    /// # Cancel safety
    ///
    /// Reads and writes are as cancel safe as those of the stream inside: what waits for a deadline or a
    /// rate has taken nothing yet. One that has been dropped half-way is over as soon as a deadline is set
    /// through the stream itself, or by [`Deadlines::restart_at`]; until then, and for the other methods of
    /// a [`Deadlines`] elsewhere, which cannot see that, it and the next one of the same name are one
    /// operation with one deadline.
    ///
    /// # Cost
    ///
    /// One small allocation for each stream. An operation that need not wait reads the clock once, and not at
    /// all without a deadline and a rate. The first one that has to wait sets a timer of smol's, and the
    /// others under the same deadline use the same. (The sessions of a server do not use this: they have
    /// timers that cost less and are less precise.)
    pub struct DeadlineStream<S, R = Unlimited, W = Unlimited> {
        #[pin]
        stream: S,
        deadlines: Deadlines,
        reading: Direction<R>,
        writing: Direction<W>,
    }
}

impl<S> DeadlineStream<S> {
    /// A stream without deadlines and rates.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            deadlines: Deadlines::default(),
            reading: Direction::new(Unlimited),
            writing: Direction::new(Unlimited),
        }
    }

    /// The same with a policy for each direction. Keeps the deadlines.
    ///
    /// ```rust
    /// use coracle::{BytesPerSecond, DeadlineStream, Unlimited};
    /// # let tcp = futures_lite::io::Cursor::new(Vec::<u8>::new());
    ///
    /// let upload = DeadlineStream::new(tcp).with_rates(Unlimited, BytesPerSecond::new(64 * 1024));
    /// # let _ = upload;
    /// ```
    pub fn with_rates<R: RatePolicy, W: RatePolicy>(
        self,
        reading: R,
        writing: W,
    ) -> DeadlineStream<S, R, W> {
        DeadlineStream {
            stream: self.stream,
            deadlines: self.deadlines,
            reading: Direction::new(reading),
            writing: Direction::new(writing),
        }
    }
}

impl<S, R, W> DeadlineStream<S, R, W> {
    /// Gives the next logical operation this much time, reading and writing together, from now on.
    ///
    /// `Duration::MAX` is no deadline; zero fails whatever is next.
    pub fn expires_after(&mut self, budget: Duration) {
        self.expires_at(Deadline::after(budget));
    }

    /// Gives the next logical operation until then, reading and writing together: an [`Instant`], or the
    /// [`Deadline`] that earlier steps have been under.
    pub fn expires_at(&mut self, deadline: impl Into<Deadline>) {
        let deadline = deadline.into();
        self.set_read_deadline(deadline);
        self.set_write_deadline(deadline);
    }

    /// Takes both deadlines away.
    pub fn expires_never(&mut self) {
        self.expires_at(Deadline::NEVER);
    }

    /// Sets the deadline for reading only.
    pub fn set_read_deadline(&mut self, deadline: impl Into<Deadline>) {
        // Whoever has the stream for himself has no operation in progress: what has begun was dropped.
        self.reading.forget();
        self.deadlines.set_read(deadline);
    }

    /// Sets the deadline for writing, flushing and closing only.
    pub fn set_write_deadline(&mut self, deadline: impl Into<Deadline>) {
        self.writing.forget();
        self.deadlines.set_write(deadline);
    }

    /// The deadline that the next read is under.
    pub fn read_deadline(&self) -> Deadline {
        self.deadlines.read()
    }

    /// The deadline that the next write is under.
    pub fn write_deadline(&self) -> Deadline {
        self.deadlines.write()
    }

    /// A handle by which the deadlines can be set while somebody else has the stream: when it has been
    /// split, or is inside another one.
    pub fn deadlines(&self) -> Deadlines {
        self.deadlines.clone()
    }

    /// The stream inside.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream inside. What is read and written through it has no deadline.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The stream inside, alone.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: fmt::Debug, R, W> fmt::Debug for DeadlineStream<S, R, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineStream")
            .field("stream", &self.stream)
            .field("read_deadline", &self.read_deadline())
            .field("write_deadline", &self.write_deadline())
            .finish_non_exhaustive()
    }
}

/// Sets the deadlines of a [`DeadlineStream`] from elsewhere; see [`DeadlineStream::deadlines`].
///
/// Cheap to clone; all clones are of the same stream, which they do not keep open. An operation that is in
/// progress keeps the deadline it began under, and nobody is woken; but with
/// [`restart_at`](Self::restart_at), which is for a stream that is inside another one. What sets both
/// directions sets both: where a reader and a writer have a deadline each, use [`set_read`](Self::set_read)
/// and [`set_write`](Self::set_write).
///
/// ```rust
/// use std::time::Duration;
///
/// use coracle::DeadlineStream;
/// use futures_lite::{AsyncReadExt, AsyncWriteExt, future, io};
/// # use smol::net::{TcpListener, TcpStream};
///
/// # smol::block_on(async {
/// # let listener = TcpListener::bind("127.0.0.1:0").await?;
/// # let tcp = TcpStream::connect(listener.local_addr()?).await?;
/// let stream = DeadlineStream::new(tcp);
/// let deadlines = stream.deadlines();
/// // After this nobody can get at the stream any more.
/// let (mut reader, mut writer) = io::split(stream);
/// deadlines.expires_after(Duration::from_millis(10));
/// let mut buffer = [0; 16];
/// let (read, written) = future::zip(reader.read(&mut buffer), writer.write(b"hello")).await;
/// assert_eq!(written?, 5);
/// assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
/// # io::Result::Ok(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug, Default)]
pub struct Deadlines(Arc<Mutex<Settings>>);

#[derive(Clone, Copy, Debug, Default)]
struct Settings {
    read: Deadline,
    write: Deadline,
    /// How often everything has begun anew.
    restarts: u32,
}

impl Deadlines {
    /// For a read: its deadline, and what it belongs to.
    fn reading(&self) -> (Deadline, u32) {
        let settings = self.lock();
        (settings.read, settings.restarts)
    }

    /// The same for a write.
    fn writing(&self) -> (Deadline, u32) {
        let settings = self.lock();
        (settings.write, settings.restarts)
    }

    fn lock(&self) -> MutexGuard<'_, Settings> {
        // Nothing that is done under the lock can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`DeadlineStream::expires_after`].
    pub fn expires_after(&self, budget: Duration) {
        self.expires_at(Deadline::after(budget));
    }

    /// See [`DeadlineStream::expires_at`].
    pub fn expires_at(&self, deadline: impl Into<Deadline>) {
        let deadline = deadline.into();
        let mut settings = self.lock();
        settings.read = deadline;
        settings.write = deadline;
    }

    /// See [`DeadlineStream::expires_never`].
    pub fn expires_never(&self) {
        self.expires_at(Deadline::NEVER);
    }

    /// Begins a new logical operation with this much time: see [`restart_at`](Self::restart_at).
    pub fn restart_after(&self, budget: Duration) {
        self.restart_at(Deadline::after(budget));
    }

    /// Sets both deadlines, also for what is in progress.
    ///
    /// For a stream that is inside another one (TLS, a compressor). That may have left a write or a read
    /// in progress here when what was asked of it was done, and only whoever uses the outer stream knows
    /// that a new operation begins. It must be nobody else's turn: an operation that somebody waits for
    /// gets the new deadline, too, when it is next woken.
    pub fn restart_at(&self, deadline: impl Into<Deadline>) {
        let deadline = deadline.into();
        let mut settings = self.lock();
        let restarts = settings.restarts.wrapping_add(1);
        *settings = Settings { read: deadline, write: deadline, restarts };
    }

    /// Sets the deadline for reading only.
    pub fn set_read(&self, deadline: impl Into<Deadline>) {
        let deadline = deadline.into();
        self.lock().read = deadline;
    }

    /// Sets the deadline for writing, flushing and closing only.
    pub fn set_write(&self, deadline: impl Into<Deadline>) {
        let deadline = deadline.into();
        self.lock().write = deadline;
    }

    /// The deadline that the next read is under.
    #[must_use]
    pub fn read(&self) -> Deadline {
        self.lock().read
    }

    /// The deadline that the next write is under.
    #[must_use]
    pub fn write(&self) -> Deadline {
        self.lock().write
    }
}

/// What one direction remembers between polls.
struct Direction<P> {
    rate: P,
    operation: Option<Operation>,
    /// Stays set after an operation that was completed: the next one is probably under the same deadline,
    /// and then there is nothing to do.
    timer: smol::Timer,
    /// What the timer is set to.
    armed: Option<Instant>,
}

/// An operation that could not be completed yet.
#[derive(Clone, Copy)]
struct Operation {
    name: &'static str,
    /// It belongs to what began then.
    restarts: u32,
    deadline: Deadline,
    /// Without a deadline nobody asks.
    began: Option<Instant>,
}

impl Operation {
    fn exceeded(&self, throttled: bool) -> io::Error {
        let waited = self.began.map(|began| began.elapsed()).unwrap_or_default();
        DeadlineExceeded::new(self.name, self.deadline, waited).throttled(throttled).into()
    }
}

impl<P> Direction<P> {
    /// Nothing is in progress, and nobody is to be woken.
    fn forget(&mut self) {
        self.operation = None;
        if self.armed.take().is_some() {
            self.disarm();
        }
    }

    /// One that is only cleared would keep its waker.
    fn disarm(&mut self) {
        self.timer = smol::Timer::never();
    }
}

impl<P: RatePolicy> Direction<P> {
    fn new(rate: P) -> Self {
        Self { rate, operation: None, timer: smol::Timer::never(), armed: None }
    }

    /// One operation, as far as it gets: `transfer` moves at most as many bytes as it is told.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        name: &'static str,
        deadline: impl FnOnce() -> (Deadline, u32),
        mut transfer: impl FnMut(&mut Context<'_>, NonZero<usize>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let now = (!self.rate.is_unlimited()).then(Instant::now);
        let operation = self.begin(name, deadline, now)?;
        let Some(now) = now else {
            let polled = transfer(cx, NonZero::<usize>::MAX);
            return if polled.is_ready() { polled } else { self.wait(cx, operation, None) };
        };
        match self.rate.available(now) {
            Allowance::Until(resumes) => self.wait(cx, operation, Some(resumes)),
            Allowance::Bytes(most) => match transfer(cx, most) {
                Poll::Pending => self.wait(cx, operation, None),
                Poll::Ready(result) => {
                    if let Ok(bytes) = &result {
                        self.rate.transferred(*bytes, now);
                    }
                    Poll::Ready(result)
                }
            },
        }
    }

    /// The same for what moves no bytes, and waits for no rate.
    fn poll_free(
        &mut self,
        cx: &mut Context<'_>,
        name: &'static str,
        deadline: impl FnOnce() -> (Deadline, u32),
        step: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        let operation = self.begin(name, deadline, None)?;
        let polled = step(cx);
        if polled.is_ready() { polled } else { self.wait(cx, operation, None).map_ok(drop) }
    }

    /// The operation that is in progress, or a new one, which must not begin after its deadline.
    ///
    /// It is in progress only once it has had to wait.
    fn begin(
        &mut self,
        name: &'static str,
        deadline: impl FnOnce() -> (Deadline, u32),
        now: Option<Instant>,
    ) -> io::Result<Operation> {
        let (deadline, restarts) = deadline();
        // One with another name has been dropped, or this one would not be asked for.
        let pending = self.operation.take();
        if let Some(operation) = pending.filter(|it| it.name == name && it.restarts == restarts) {
            return Ok(operation);
        }
        let Some(at) = deadline.instant() else {
            return Ok(Operation { name, restarts, deadline, began: None });
        };
        let now = now.unwrap_or_else(Instant::now);
        if now >= at {
            return Err(DeadlineExceeded::new(name, deadline, Duration::ZERO).into());
        }
        Ok(Operation { name, restarts, deadline, began: Some(now) })
    }

    /// It could not be completed: waits for what comes first, its deadline or its rate.
    fn wait(
        &mut self,
        cx: &mut Context<'_>,
        operation: Operation,
        resumes: Option<Instant>,
    ) -> Poll<io::Result<usize>> {
        let end = operation.deadline.instant();
        let next = match (end, resumes) {
            (Some(end), Some(resumes)) => Some(end.min(resumes)),
            (end, resumes) => end.or(resumes),
        };
        if self.armed != next {
            match next {
                Some(at) => self.timer.set_at(at),
                None => self.disarm(),
            }
            self.armed = next;
        }
        if Pin::new(&mut self.timer).poll(cx).is_ready() {
            self.armed = None;
            if end.is_some_and(|end| Instant::now() >= end) {
                return Poll::Ready(Err(operation.exceeded(resumes.is_some())));
            }
            // The rate has come meanwhile. Not in a loop: a policy may say so for ever.
            cx.waker().wake_by_ref();
        }
        self.operation = Some(operation);
        Poll::Pending
    }
}

impl<S: AsyncRead, R: RatePolicy, W> AsyncRead for DeadlineStream<S, R, W> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        let mut stream = this.stream;
        let deadlines = this.deadlines;
        this.reading.poll(
            cx,
            "read",
            || deadlines.reading(),
            |cx, most| {
                let most = most.get().min(buffer.len());
                stream.as_mut().poll_read(cx, &mut buffer[..most])
            },
        )
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        let mut stream = this.stream;
        let deadlines = this.deadlines;
        this.reading.poll(
            cx,
            "read",
            || deadlines.reading(),
            |cx, most| {
                if most.get() >= buffers.iter().map(|buffer| buffer.len()).sum() {
                    return stream.as_mut().poll_read_vectored(cx, buffers);
                }
                // Less than there is room for: the first piece of it will do.
                let first = buffers.iter_mut().find(|buffer| !buffer.is_empty());
                let buffer = first.map_or(&mut [][..], |buffer| &mut **buffer);
                let most = most.get().min(buffer.len());
                stream.as_mut().poll_read(cx, &mut buffer[..most])
            },
        )
    }
}

impl<S: AsyncWrite, R, W: RatePolicy> AsyncWrite for DeadlineStream<S, R, W> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        let mut stream = this.stream;
        let deadlines = this.deadlines;
        this.writing.poll(
            cx,
            "write",
            || deadlines.writing(),
            |cx, most| stream.as_mut().poll_write(cx, &bytes[..most.get().min(bytes.len())]),
        )
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        let mut stream = this.stream;
        let deadlines = this.deadlines;
        this.writing.poll(
            cx,
            "write",
            || deadlines.writing(),
            |cx, most| {
                if most.get() >= slices.iter().map(|slice| slice.len()).sum() {
                    return stream.as_mut().poll_write_vectored(cx, slices);
                }
                let bytes =
                    slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
                stream.as_mut().poll_write(cx, &bytes[..most.get().min(bytes.len())])
            },
        )
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let mut stream = this.stream;
        let deadlines = this.deadlines;
        let deadline = || deadlines.writing();
        this.writing.poll_free(cx, "flush", deadline, |cx| stream.as_mut().poll_flush(cx))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let mut stream = this.stream;
        let deadlines = this.deadlines;
        let deadline = || deadlines.writing();
        this.writing.poll_free(cx, "close", deadline, |cx| stream.as_mut().poll_close(cx))
    }
}
