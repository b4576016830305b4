//! A moment by which something has to be done, shared by its steps.

use std::fmt;
use std::future::Future;
use std::io;
use std::time::{Duration, Instant};

use futures_lite::future;

/// The moment by which something has to be done: one budget for all its steps.
///
/// A value that can be copied: whoever has been given one passes it on, and no step begins to count
/// anew. It is set once, for the whole, and each step [runs](Self::run) under what the ones before
/// have left:
///
/// ```rust
/// use std::time::Duration;
///
/// use coracle::{Deadline, DeadlineStream};
/// use futures_lite::{AsyncReadExt, AsyncWriteExt};
/// use smol::net::TcpStream;
///
/// async fn get(host: &str, port: u16) -> std::io::Result<Vec<u8>> {
///     let deadline = Deadline::after(Duration::from_secs(10));
///     let addresses = deadline.run("resolve", smol::net::resolve((host, port))).await?;
///     let tcp = deadline.run("connect", TcpStream::connect(&addresses[..])).await?;
///     // Here a TLS handshake would be a third step.
///     let mut stream = DeadlineStream::new(tcp);
///     stream.expires_at(deadline);
///     stream.write_all(format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
///     let mut answer = Vec::new();
///     stream.take(64 * 1024).read_to_end(&mut answer).await?;
///     Ok(answer)
/// }
/// # let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
/// # let port = listener.local_addr().unwrap().port();
/// # std::thread::spawn(move || {
/// #     use std::io::{BufRead, BufReader, Write};
/// #     let mut tcp = listener.accept().unwrap().0;
/// #     let head = BufReader::new(&tcp).lines().take_while(|line| line.as_ref().unwrap() != "");
/// #     assert_eq!(head.count(), 2);
/// #     tcp.write_all(b"HTTP/1.0 204 \r\n\r\n").unwrap();
/// # });
/// # assert!(smol::block_on(get("127.0.0.1", port)).unwrap().starts_with(b"HTTP/1.0 204"));
/// ```
///
/// The example `https_get` does the same with TLS.
///
/// Time is [`Instant`]'s, the monotonic clock: changing the system's time moves no deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Deadline {
    /// `None`: never.
    at: Option<Instant>,
    /// How far away it was when it was made, if it was made so.
    budget: Option<Duration>,
}

impl Deadline {
    /// No deadline, which is also the default.
    pub const NEVER: Self = Self { at: None, budget: None };

    /// So far away from now; never, if no clock can name that moment (`Duration::MAX`).
    #[must_use]
    pub fn after(budget: Duration) -> Self {
        Instant::now()
            .checked_add(budget)
            .map_or(Self::NEVER, |at| Self { at: Some(at), budget: Some(budget) })
    }

    /// At this moment.
    #[must_use]
    pub const fn at(at: Instant) -> Self {
        Self { at: Some(at), budget: None }
    }

    /// The moment; `None` if it never comes.
    #[must_use]
    pub const fn instant(self) -> Option<Instant> {
        self.at
    }

    /// How far away it was when it was made with [`after`](Self::after).
    #[must_use]
    pub const fn budget(self) -> Option<Duration> {
        self.budget
    }

    /// Whether it never comes.
    #[must_use]
    pub const fn is_never(self) -> bool {
        self.at.is_none()
    }

    /// Whether it has come.
    #[must_use]
    pub fn has_passed(self) -> bool {
        self.at.is_some_and(|at| Instant::now() >= at)
    }

    /// How far away it is now: zero when it has passed, `None` if it never comes.
    #[must_use]
    pub fn remaining(self) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// The one of both that comes first: a step with a bound of its own, inside a larger budget.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        match (self.at, other.at) {
            (Some(at), Some(others)) if others < at => other,
            (None, Some(_)) => other,
            _ => self,
        }
    }

    /// Runs one step to its end, or to the deadline.
    ///
    /// `step` names it for the error: "resolve", "connect", "TLS handshake".
    ///
    /// # Errors
    ///
    /// Whatever the step fails with. [`DeadlineExceeded`], turned into the step's type of error, if the
    /// deadline comes first, or has passed already: then the step does not even begin. As an
    /// [`io::Error`] that is one of kind [`TimedOut`](io::ErrorKind::TimedOut).
    ///
    /// # Cancel safety
    ///
    /// That of the step. At the deadline the step is dropped, as if somebody had cancelled it: what must
    /// not be cut in half, a message that is being written for example, belongs under a
    /// [`DeadlineStream`](crate::DeadlineStream) whose connection is given up after the error.
    pub async fn run<T, E: From<DeadlineExceeded>>(
        self,
        step: &'static str,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let Some(at) = self.at else {
            return future.await;
        };
        let began = Instant::now();
        if began >= at {
            return Err(DeadlineExceeded::new(step, self, Duration::ZERO).into());
        }
        // The step is looked at first: what is done in time counts, however late we look.
        future::or(future, async {
            smol::Timer::at(at).await;
            Err(DeadlineExceeded::new(step, self, began.elapsed()).into())
        })
        .await
    }
}

impl From<Instant> for Deadline {
    fn from(at: Instant) -> Self {
        Self::at(at)
    }
}

/// What was not done by its deadline.
///
/// Inside an [`io::Error`] of kind [`TimedOut`](io::ErrorKind::TimedOut):
/// [`DeadlineExceeded::of`] finds it there. (The kernel's own timeouts have the same kind and no such
/// source.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadlineExceeded {
    operation: &'static str,
    deadline: Deadline,
    waited: Duration,
    throttled: bool,
}

impl DeadlineExceeded {
    pub(super) fn new(operation: &'static str, deadline: Deadline, waited: Duration) -> Self {
        Self { operation, deadline, waited, throttled: false }
    }

    /// The same when it was the rate that the operation waited for.
    pub(super) fn throttled(self, throttled: bool) -> Self {
        Self { throttled, ..self }
    }

    /// The one that is inside an [`io::Error`], if that is why it failed.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// What was being done: "read", "write", "flush" or "close", or the step's name that
    /// [`Deadline::run`] was given.
    #[must_use]
    pub const fn operation(&self) -> &'static str {
        self.operation
    }

    /// The deadline it was under.
    #[must_use]
    pub const fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// How long this operation had waited: zero if the deadline had passed before it began. Earlier ones
    /// of the same deadline do not count.
    #[must_use]
    pub const fn waited(&self) -> Duration {
        self.waited
    }

    /// Whether it was our own [`RatePolicy`](crate::RatePolicy) that it waited for, and not the peer.
    #[must_use]
    pub const fn was_throttled(&self) -> bool {
        self.throttled
    }
}

impl fmt::Display for DeadlineExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} timed out", self.operation)?;
        match self.waited {
            Duration::ZERO => f.write_str(": it began after the deadline")?,
            waited if self.throttled => write!(f, " after {waited:.1?} of waiting for the rate")?,
            waited => write!(f, " after {waited:.1?}")?,
        }
        match self.deadline.budget {
            Some(budget) => write!(f, " (budget: {budget:?})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for DeadlineExceeded {}

impl From<DeadlineExceeded> for io::Error {
    fn from(error: DeadlineExceeded) -> Self {
        Self::new(io::ErrorKind::TimedOut, error)
    }
}
