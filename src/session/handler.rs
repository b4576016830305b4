//! What an application is: a [`Handler`], or closures on the builder.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::{Closed, Incoming, Session};
use crate::error::{self, BoxError};
use crate::http::{Request, Response, Upgrade};
use crate::message::{CloseCode, Message};
#[cfg(feature = "json")]
use crate::typed::BadMessage;

/// What becomes of the session after a callback.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flow {
    /// It goes on.
    Continue,
    /// It is closed as [`Session::close`] would.
    Close(CloseCode, String),
}

/// What a callback returns. An error is given to [`Handler::error`], and the session is closed
/// with 1011; if it is a `BadMessage`, it goes on.
pub type Outcome = Result<Flow, BoxError>;

/// What the closures of the builder may return: nothing, a [`Flow`], or a `Result` of either.
pub trait IntoOutcome {
    /// The same as an [`Outcome`].
    ///
    /// # Errors
    ///
    /// The error that the closure returned.
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Ok(Flow::Continue)
    }
}

impl IntoOutcome for Flow {
    fn into_outcome(self) -> Outcome {
        Ok(self)
    }
}

impl<T: IntoOutcome, E: Into<BoxError>> IntoOutcome for Result<T, E> {
    fn into_outcome(self) -> Outcome {
        self.map_err(Into::into)?.into_outcome()
    }
}

/// An application: what it does when a client connects, speaks and leaves.
///
/// One value serves all sessions of all workers. The callbacks of one session never overlap and
/// come in order: `accept`, `open` once, `message` any number of times, `close` once. Their futures
/// run on the session's worker and need not be `Send`; they may await anything of the smol family.
/// While one is pending the session still sends what is queued, answers pings and keeps its
/// deadlines, and reads at most one message ahead. A callback that blocks the thread blocks its
/// whole worker: use `smol::unblock`.
///
/// A callback that is still pending when its session has ended goes on for at most
/// [`Timeouts::close`](crate::config::Timeouts::close) and is then dropped. A panic closes the
/// session with 1011 and harms no other.
#[allow(async_fn_in_trait, reason = "handlers run on one worker; their futures need not be Send")]
pub trait Handler: Send + Sync + 'static {
    /// Whether the application is put together as it should be. Asked once by
    /// [`Builder::start`](crate::Builder::start), before anything listens. Whoever has other handlers
    /// inside, a [`Paths`](crate::Paths) or a `Router`, asks them.
    ///
    /// # Errors
    ///
    /// Why the server cannot start, mostly [`Error::Config`](crate::Error::Config).
    fn check(&self) -> error::Result<()> {
        Ok(())
    }

    /// Decides about a request before it is answered: upgrade it, or refuse it with any response.
    ///
    /// Called after the request was found to be a valid WebSocket handshake from an allowed
    /// origin. It is part of the handshake's budget and is dropped when that is used up.
    ///
    /// **Not asked** for sessions without a request: those of length-prefixed [frames](crate::docs::frames),
    /// and of connections that another server has upgraded.
    ///
    /// # Errors
    ///
    /// The response by which the request is refused.
    async fn accept(&self, request: &Request) -> Result<Upgrade, Response> {
        let _ = request;
        Ok(Upgrade::new())
    }

    /// A session has begun.
    ///
    /// # Errors
    ///
    /// Any; the session is then closed with 1011.
    async fn open(&self, session: &Session) -> Outcome {
        let _ = session;
        Ok(Flow::Continue)
    }

    /// A whole message has arrived.
    ///
    /// # Errors
    ///
    /// Any; the session is then closed with 1011.
    async fn message(&self, session: &Session, message: Message) -> Outcome;

    /// Whether this session's messages are given to [`stream`](Self::stream) while they arrive, and
    /// not to [`message`](Self::message) when they have. Asked once, before `open`.
    ///
    /// If it panics the session is closed with 1011; `open` is called nevertheless, and then `close`.
    fn streams(&self, session: &Session) -> bool {
        let _ = session;
        false
    }

    /// A message begins to arrive. Its size is bounded by
    /// [`Limits::stream_bytes`](crate::config::Limits::stream_bytes), its memory by what [`Incoming`]
    /// says.
    ///
    /// The next message begins when this one has been received or dropped and the callback is
    /// through.
    ///
    /// # Errors
    ///
    /// Any; the session is then closed with 1011.
    async fn stream(&self, session: &Session, incoming: Incoming) -> Outcome {
        let _ = (session, incoming);
        refused()
    }

    /// There had been too much for the peer: a publication was dropped, [`try_send`](Session::try_send) gave a
    /// message back, or [`send`](Session::send) had to wait. Now the kernel has taken everything.
    ///
    /// # Errors
    ///
    /// Any; the session is then closed with 1011.
    async fn drain(&self, session: &Session) -> Outcome {
        let _ = session;
        Ok(Flow::Continue)
    }

    /// The session has ended; it is in no list any more. Called exactly once for every `open`.
    ///
    /// It may take [`Timeouts::close`](crate::config::Timeouts::close) and is then dropped.
    async fn close(&self, session: &Session, closed: &Closed) {
        let _ = (session, closed);
    }

    /// One of the other callbacks failed; the session will be closed with 1011, unless it was a bad
    /// message: then it goes on, if this callback does not close it. A peer can send as many of those as
    /// it likes. If one of its
    /// [rates](crate::config::Config::rates) or [`streams`](Self::streams) panicked, this is called with
    /// the next callback that fails, or when the session has been closed, before `close`.
    async fn error(&self, session: &Session, error: &HandlerError) {
        let _ = (session, error);
    }
}

/// How a callback failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum HandlerError {
    /// It returned an error.
    Failed(BoxError),
    /// It panicked, with this text.
    Panicked(String),
    /// It returned a [`BadMessage`]: the peer has failed. The session goes on.
    #[cfg(feature = "json")]
    BadMessage(BadMessage),
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "handler failed: {error}"),
            Self::Panicked(text) => write!(f, "handler panicked: {text}"),
            #[cfg(feature = "json")]
            Self::BadMessage(bad) => bad.fmt(f),
        }
    }
}

impl std::error::Error for HandlerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(error) => Some(&**error),
            Self::Panicked(_) => None,
            #[cfg(feature = "json")]
            Self::BadMessage(bad) => Some(bad),
        }
    }
}

/// Nobody listens, and the peer is told so.
pub(crate) fn refused() -> Outcome {
    Ok(Flow::Close(CloseCode::POLICY, "this server takes no messages".into()))
}

/// A [`Handler`] made of the builder's closures; the slots that were not filled hold [`Unset`].
#[derive(Clone, Debug, Default)]
pub struct Closures<A = Unset, O = Unset, M = Unset, C = Unset, E = Unset, D = Unset> {
    pub(crate) accept: A,
    pub(crate) open: O,
    pub(crate) message: M,
    pub(crate) close: C,
    pub(crate) error: E,
    pub(crate) drain: D,
}

/// A slot of [`Closures`] without a closure.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unset;

/// A slot of [`Closures`] with its closure.
#[derive(Clone, Copy, Debug)]
pub struct Set<F>(pub(crate) F);

/// A slot of [`Closures`] with a closure that receives messages in parts.
#[derive(Clone, Copy, Debug)]
pub struct Streaming<F>(pub(crate) F);

pub(super) mod slot {
    //! What can stand in a slot. Sealed: the traits cannot be named outside.

    use std::future::ready;

    use super::*;

    pub trait Accept: Send + Sync + 'static {
        fn call(&self, request: &Request) -> impl Future<Output = Result<Upgrade, Response>>;
    }

    pub trait Open: Send + Sync + 'static {
        fn call(&self, session: &Session) -> impl Future<Output = Outcome>;
    }

    pub trait OnMessage: Send + Sync + 'static {
        const STREAMS: bool = false;

        fn check(&self) -> error::Result<()> {
            Ok(())
        }

        fn call(&self, _: &Session, _: Message) -> impl Future<Output = Outcome> {
            ready(refused())
        }

        fn stream(&self, _: &Session, _: Incoming) -> impl Future<Output = Outcome> {
            ready(refused())
        }
    }

    pub trait Close: Send + Sync + 'static {
        fn call(&self, session: &Session, closed: &Closed) -> impl Future<Output = ()>;
    }

    pub trait OnError: Send + Sync + 'static {
        fn call(&self, session: &Session, error: &HandlerError) -> impl Future<Output = ()>;
    }

    impl Accept for Unset {
        async fn call(&self, _: &Request) -> Result<Upgrade, Response> {
            Ok(Upgrade::new())
        }
    }

    impl Open for Unset {
        async fn call(&self, _: &Session) -> Outcome {
            Ok(Flow::Continue)
        }
    }

    impl OnMessage for Unset {}

    impl<F, R> OnMessage for Streaming<F>
    where
        F: AsyncFn(&Session, Incoming) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        const STREAMS: bool = true;

        fn stream(&self, session: &Session, incoming: Incoming) -> impl Future<Output = Outcome> {
            Converted { future: (self.0)(session, incoming) }
        }
    }

    impl Close for Unset {
        async fn call(&self, _: &Session, _: &Closed) {}
    }

    impl OnError for Unset {
        async fn call(&self, _: &Session, _: &HandlerError) {}
    }

    impl<F> Accept for Set<F>
    where
        F: AsyncFn(&Request) -> Result<Upgrade, Response> + Send + Sync + 'static,
    {
        fn call(&self, request: &Request) -> impl Future<Output = Result<Upgrade, Response>> {
            (self.0)(request)
        }
    }

    impl<F, R> Open for Set<F>
    where
        F: AsyncFn(&Session) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        fn call(&self, session: &Session) -> impl Future<Output = Outcome> {
            Converted { future: (self.0)(session) }
        }
    }

    impl<F, R> OnMessage for Set<F>
    where
        F: AsyncFn(&Session, Message) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        fn call(&self, session: &Session, message: Message) -> impl Future<Output = Outcome> {
            Converted { future: (self.0)(session, message) }
        }
    }

    impl<F> Close for Set<F>
    where
        F: AsyncFn(&Session, &Closed) + Send + Sync + 'static,
    {
        fn call(&self, session: &Session, closed: &Closed) -> impl Future<Output = ()> {
            (self.0)(session, closed)
        }
    }

    impl<F> OnError for Set<F>
    where
        F: AsyncFn(&Session, &HandlerError) + Send + Sync + 'static,
    {
        fn call(&self, session: &Session, error: &HandlerError) -> impl Future<Output = ()> {
            (self.0)(session, error)
        }
    }
}

pin_project! {
    /// A closure's future, with its output as an [`Outcome`]. A struct and not an `async` block,
    /// which would hold the message once more.
    pub(crate) struct Converted<F> {
        #[pin]
        pub(crate) future: F,
    }
}

impl<F: Future<Output: IntoOutcome>> Future for Converted<F> {
    type Output = Outcome;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.project().future.poll(cx).map(IntoOutcome::into_outcome)
    }
}

impl<A, O, M, C, E, D> Handler for Closures<A, O, M, C, E, D>
where
    A: slot::Accept,
    O: slot::Open,
    M: slot::OnMessage,
    C: slot::Close,
    E: slot::OnError,
    // What can be called when a session begins can be called when it has caught up.
    D: slot::Open,
{
    fn check(&self) -> error::Result<()> {
        self.message.check()
    }

    // Not `async`: another layer of future around each callback would be moved once more for every
    // message.
    fn accept(&self, request: &Request) -> impl Future<Output = Result<Upgrade, Response>> {
        self.accept.call(request)
    }

    fn open(&self, session: &Session) -> impl Future<Output = Outcome> {
        self.open.call(session)
    }

    fn message(&self, session: &Session, message: Message) -> impl Future<Output = Outcome> {
        self.message.call(session, message)
    }

    fn streams(&self, _: &Session) -> bool {
        M::STREAMS
    }

    fn stream(&self, session: &Session, incoming: Incoming) -> impl Future<Output = Outcome> {
        self.message.stream(session, incoming)
    }

    fn drain(&self, session: &Session) -> impl Future<Output = Outcome> {
        self.drain.call(session)
    }

    fn close(&self, session: &Session, closed: &Closed) -> impl Future<Output = ()> {
        self.close.call(session, closed)
    }

    fn error(&self, session: &Session, error: &HandlerError) -> impl Future<Output = ()> {
        self.error.call(session, error)
    }
}
