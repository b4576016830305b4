//! How [`Closures`] are filled: by the builder, or by themselves where a handler is wanted.

#[cfg(feature = "json")]
use std::future::Future;

#[cfg(feature = "json")]
use serde::de::DeserializeOwned;

#[cfg(feature = "json")]
use super::handler::slot::OnMessage;
use super::handler::{Closures, HandlerError, IntoOutcome, Set, Streaming, Unset};
#[cfg(feature = "json")]
use super::handler::{Converted, Outcome};
use super::{Closed, Incoming, Session};
#[cfg(feature = "json")]
use crate::error;
use crate::http::{Request, Response, Upgrade};
use crate::message::Message;
#[cfg(feature = "json")]
use crate::typed::{Router, Typed};

use slots::{Unrouted, Whole};

/// The message slot of [`Closures`] with closures for types, and `M` for the rest.
#[cfg(feature = "json")]
#[derive(Debug)]
pub struct Routed<M> {
    router: Router,
    rest: M,
}

/// A handler of closures, for example for one of several [`Paths`](crate::Paths); the
/// [`Builder`](crate::Builder) has the same methods.
///
/// ```
/// use coracle::{Closures, Paths, Server};
///
/// # fn main() -> coracle::Result<()> {
/// let echo = Closures::new().on_message(async |session, message| session.send(message).await);
/// let server = Server::builder().bind("127.0.0.1:0").handler(Paths::new().at("/echo", echo)).start()?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
impl Closures {
    /// No closures: every request is accepted, and every message closes its session with 1008.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl<A, O, M, C, E, D> Closures<A, O, M, C, E, D> {
    /// Decides about each request before it is answered; see [`Handler::accept`](crate::Handler::accept).
    pub fn on_accept<F>(self, accept: F) -> Closures<Set<F>, O, M, C, E, D>
    where
        F: AsyncFn(&Request) -> Result<Upgrade, Response> + Send + Sync + 'static,
    {
        let Self { open, message, close, error, drain, .. } = self;
        Closures { accept: Set(accept), open, message, close, error, drain }
    }

    /// A session has begun; see [`Handler::open`](crate::Handler::open).
    pub fn on_open<F, R>(self, open: F) -> Closures<A, Set<F>, M, C, E, D>
    where
        F: AsyncFn(&Session) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        let Self { accept, message, close, error, drain, .. } = self;
        Closures { accept, open: Set(open), message, close, error, drain }
    }

    /// A whole message has arrived; see [`Builder::on_message`](crate::Builder::on_message).
    pub fn on_message<F, R>(self, message: F) -> Closures<A, O, M::With<F>, C, E, D>
    where
        M: Whole,
        F: AsyncFn(&Session, Message) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        let Self { accept, open, message: slot, close, error, drain } = self;
        Closures { accept, open, message: slot.with(message), close, error, drain }
    }

    /// An envelope of this type has arrived; see [`Builder::on_typed`](crate::Builder::on_typed).
    #[cfg(feature = "json")]
    pub fn on_typed<T, F, R>(
        self,
        type_name: impl Into<String>,
        typed: F,
    ) -> Closures<A, O, M::Routed, C, E, D>
    where
        M: slots::Routable,
        T: DeserializeOwned + 'static,
        F: AsyncFn(&Session, Typed<T>) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        let Self { accept, open, message, close, error, drain } = self;
        let message = message.routed(|router| router.on_typed(type_name, typed));
        Closures { accept, open, message, close, error, drain }
    }

    /// A message begins to arrive; see [`Builder::on_stream`](crate::Builder::on_stream).
    pub fn on_stream<F, R>(self, stream: F) -> Closures<A, O, Streaming<F>, C, E, D>
    where
        M: Unrouted,
        F: AsyncFn(&Session, Incoming) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        let Self { accept, open, close, error, drain, .. } = self;
        Closures { accept, open, message: Streaming(stream), close, error, drain }
    }

    /// A session has ended; see [`Handler::close`](crate::Handler::close).
    pub fn on_close<F>(self, close: F) -> Closures<A, O, M, Set<F>, E, D>
    where
        F: AsyncFn(&Session, &Closed) + Send + Sync + 'static,
    {
        let Self { accept, open, message, error, drain, .. } = self;
        Closures { accept, open, message, close: Set(close), error, drain }
    }

    /// A callback has failed; see [`Handler::error`](crate::Handler::error).
    pub fn on_error<F>(self, error: F) -> Closures<A, O, M, C, Set<F>, D>
    where
        F: AsyncFn(&Session, &HandlerError) + Send + Sync + 'static,
    {
        let Self { accept, open, message, close, drain, .. } = self;
        Closures { accept, open, message, close, error: Set(error), drain }
    }

    /// There had been too much for the peer, and now everything has left; see
    /// [`Handler::drain`](crate::Handler::drain).
    pub fn on_drain<F, R>(self, drain: F) -> Closures<A, O, M, C, E, Set<F>>
    where
        F: AsyncFn(&Session) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        let Self { accept, open, message, close, error, .. } = self;
        Closures { accept, open, message, close, error, drain: Set(drain) }
    }
}

pub(crate) mod slots {
    //! What the message slot becomes when a closure is put into it. Sealed: the traits cannot be named
    //! outside.

    #[cfg(feature = "json")]
    use super::{Routed, Router};
    use super::{Set, Streaming, Unset};

    /// Takes a closure for whole messages.
    pub trait Whole {
        type With<F>;

        fn with<F>(self, closure: F) -> Self::With<F>;
    }

    /// Has no closures for types, which read a message as a whole.
    #[diagnostic::on_unimplemented(
        message = "`on_stream` cannot stand beside `on_typed`",
        note = "typed messages are read as a whole: use another path for those that are not"
    )]
    pub trait Unrouted {}

    impl Whole for Unset {
        type With<F> = Set<F>;

        fn with<F>(self, closure: F) -> Set<F> {
            Set(closure)
        }
    }

    impl<G> Whole for Set<G> {
        type With<F> = Set<F>;

        fn with<F>(self, closure: F) -> Set<F> {
            Set(closure)
        }
    }

    impl<G> Whole for Streaming<G> {
        type With<F> = Set<F>;

        fn with<F>(self, closure: F) -> Set<F> {
            Set(closure)
        }
    }

    impl Unrouted for Unset {}
    impl<G> Unrouted for Set<G> {}
    impl<G> Unrouted for Streaming<G> {}

    /// Takes a closure for a type.
    #[cfg(feature = "json")]
    #[diagnostic::on_unimplemented(
        message = "`on_typed` cannot stand beside `on_stream`",
        note = "typed messages are read as a whole: use another path for those that are not"
    )]
    pub trait Routable {
        type Routed;

        fn routed(self, add: impl FnOnce(Router) -> Router) -> Self::Routed;
    }

    #[cfg(feature = "json")]
    impl<M> Whole for Routed<M> {
        type With<F> = Routed<Set<F>>;

        fn with<F>(self, closure: F) -> Routed<Set<F>> {
            Routed { router: self.router, rest: Set(closure) }
        }
    }

    #[cfg(feature = "json")]
    impl Routable for Unset {
        type Routed = Routed<Self>;

        fn routed(self, add: impl FnOnce(Router) -> Router) -> Routed<Self> {
            Routed { router: add(Router::new()), rest: self }
        }
    }

    #[cfg(feature = "json")]
    impl<F> Routable for Set<F> {
        type Routed = Routed<Self>;

        fn routed(self, add: impl FnOnce(Router) -> Router) -> Routed<Self> {
            Routed { router: add(Router::new()), rest: self }
        }
    }

    #[cfg(feature = "json")]
    impl<M> Routable for Routed<M> {
        type Routed = Self;

        fn routed(self, add: impl FnOnce(Router) -> Router) -> Self {
            Self { router: add(self.router), rest: self.rest }
        }
    }
}

#[cfg(feature = "json")]
impl OnMessage for Routed<Unset> {
    fn check(&self) -> error::Result<()> {
        self.router.check()
    }

    fn call(&self, session: &Session, message: Message) -> impl Future<Output = Outcome> {
        self.router.dispatch(session, message)
    }
}

#[cfg(feature = "json")]
impl<F, R> OnMessage for Routed<Set<F>>
where
    F: AsyncFn(&Session, Message) -> R + Send + Sync + 'static,
    R: IntoOutcome,
{
    fn check(&self) -> error::Result<()> {
        self.router.check()
    }

    async fn call(&self, session: &Session, message: Message) -> Outcome {
        match self.router.try_dispatch(session, message).await {
            Ok(outcome) => outcome,
            Err(message) => Converted { future: (self.rest.0)(session, message) }.await,
        }
    }
}
