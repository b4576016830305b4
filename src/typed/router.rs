//! Which handler a message is for, by its type.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::ops::Deref;
use std::pin::Pin;

use serde::de::DeserializeOwned;

use super::payload::Payload;
use super::{BadMessage, Envelope};
use crate::error::{Error, Result};
use crate::message::{Message, Text};
use crate::session::{Converted, Handler, IntoOutcome, Outcome, Session, refused};

/// A typed message for its handler: the [`Envelope`] with its payload as a `T`, and the text that it came in.
#[derive(Clone, Debug)]
pub struct Typed<T> {
    envelope: Envelope<T>,
    text: Text,
}

impl<T> Typed<T> {
    /// The whole message as it came.
    #[must_use]
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// The payload alone.
    #[must_use]
    pub fn into_payload(self) -> T {
        self.envelope.payload
    }

    /// The envelope alone.
    #[must_use]
    pub fn into_envelope(self) -> Envelope<T> {
        self.envelope
    }
}

impl<T> Deref for Typed<T> {
    type Target = Envelope<T>;

    fn deref(&self) -> &Envelope<T> {
        &self.envelope
    }
}

/// Hands typed messages to the closures that were registered for their types.
///
/// [`Builder::on_typed`](crate::Builder::on_typed) has one of its own. This is for a [`Handler`] that wants one
/// beside its other callbacks:
///
/// ```
/// use coracle::{Handler, Message, Outcome, Router, Session, Typed};
///
/// struct App {
///     router: Router,
/// }
///
/// impl App {
///     fn new() -> Self {
///         let router = Router::new()
///             .on_typed("echo", async |session, message: Typed<String>| {
///                 session.send(message.text().clone()).await
///             });
///         Self { router }
///     }
/// }
///
/// impl Handler for App {
///     // So that a type with two handlers is found when the server starts.
///     fn check(&self) -> coracle::Result<()> {
///         self.router.check()
///     }
///
///     async fn message(&self, session: &Session, message: Message) -> Outcome {
///         self.router.dispatch(session, message).await
///     }
/// }
///
/// # fn main() -> coracle::Result<()> {
/// let server = coracle::Server::builder().bind("127.0.0.1:0").handler(App::new()).start()?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
///
/// It is a [`Handler`] itself, too, for when there are no other callbacks.
#[derive(Default)]
pub struct Router {
    routes: HashMap<Box<str>, Box<dyn Route>>,
    /// A type that has been registered twice.
    twice: Option<Box<str>>,
}

impl Router {
    /// A router that knows no type.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers the closure for messages of this type. A payload that is not a `T` does not reach it: see
    /// [`dispatch`](Self::dispatch).
    ///
    /// A second closure for the same type is an error of [`check`](Self::check).
    #[must_use]
    pub fn on_typed<T, F, R>(mut self, type_name: impl Into<String>, handler: F) -> Self
    where
        T: DeserializeOwned + 'static,
        F: AsyncFn(&Session, Typed<T>) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        match self.routes.entry(type_name.into().into_boxed_str()) {
            Entry::Occupied(route) => {
                self.twice.get_or_insert_with(|| route.key().clone());
            }
            Entry::Vacant(route) => {
                route.insert(Box::new(To { handler, payload: PhantomData::<fn() -> T> }));
            }
        }
        self
    }

    /// Whether it is fit to serve; for [`Handler::check`].
    ///
    /// # Errors
    ///
    /// [`Error::Config`] names a type that has two handlers.
    pub fn check(&self) -> Result<()> {
        match &self.twice {
            None => Ok(()),
            Some(type_name) => Err(Error::Config(format!(
                "on_typed: {type_name:?} has two handlers: a type can have one"
            ))),
        }
    }

    /// Calls the closure for the type of this message.
    ///
    /// A binary message closes the session with 1008, as it does where nobody takes messages.
    ///
    /// # Errors
    ///
    /// [`BadMessage`] if it is no envelope, if there is no handler for its type, or if the payload is not what
    /// the handler takes; or what the handler returns.
    ///
    /// # Cancel safety
    ///
    /// As of the closure that is called.
    pub async fn dispatch(&self, session: &Session, message: Message) -> Outcome {
        match self.find(session, message) {
            Found::Handler(future) => future.await,
            Found::Bad(bad) => Err(bad.into()),
            Found::Unknown(Message::Text(text), type_name) => {
                Err(BadMessage::unknown_type(&text, &type_name).into())
            }
            Found::Unknown(Message::Binary(_), _) => refused(),
        }
    }

    /// The same, and gives back what it has no handler for: a binary message, and an envelope of another type.
    ///
    /// # Errors
    ///
    /// The message. What is broken is not given back but [`BadMessage`] inside of the [`Outcome`].
    ///
    /// # Cancel safety
    ///
    /// As of the closure that is called.
    pub async fn try_dispatch(
        &self,
        session: &Session,
        message: Message,
    ) -> Result<Outcome, Message> {
        match self.find(session, message) {
            Found::Handler(future) => Ok(future.await),
            Found::Bad(bad) => Ok(Err(bad.into())),
            Found::Unknown(message, _) => Err(message),
        }
    }

    fn find<'a>(&'a self, session: &'a Session, message: Message) -> Found<'a> {
        let Message::Text(text) = message else {
            return Found::Unknown(message, String::new());
        };
        let envelope = match Envelope::parse_text(&text) {
            Ok(envelope) => envelope,
            Err(bad) => return Found::Bad(bad),
        };
        match self.routes.get(&*envelope.type_name) {
            None => Found::Unknown(Message::Text(text), envelope.type_name),
            Some(route) => {
                route.call(session, envelope, text).map_or_else(Found::Bad, Found::Handler)
            }
        }
    }
}

impl Handler for Router {
    fn check(&self) -> Result<()> {
        Self::check(self)
    }

    fn message(&self, session: &Session, message: Message) -> impl Future<Output = Outcome> {
        self.dispatch(session, message)
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut types: Vec<&str> = self.routes.keys().map(|type_name| &**type_name).collect();
        types.sort_unstable();
        f.debug_tuple("Router").field(&types).finish()
    }
}

enum Found<'a> {
    Handler(Called<'a>),
    Bad(BadMessage),
    /// With its type, if it has one.
    Unknown(Message, String),
}

type Called<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

/// A handler whose payload's type is forgotten. Its future is on the heap, which costs less than reading
/// JSON does.
trait Route: Send + Sync {
    fn call<'a>(
        &'a self,
        session: &'a Session,
        envelope: Envelope<Payload>,
        text: Text,
    ) -> Result<Called<'a>, BadMessage>;
}

struct To<F, T> {
    handler: F,
    payload: PhantomData<fn() -> T>,
}

impl<T, F, R> Route for To<F, T>
where
    T: DeserializeOwned + 'static,
    F: AsyncFn(&Session, Typed<T>) -> R + Send + Sync + 'static,
    R: IntoOutcome,
{
    fn call<'a>(
        &'a self,
        session: &'a Session,
        envelope: Envelope<Payload>,
        text: Text,
    ) -> Result<Called<'a>, BadMessage> {
        let payload: T =
            envelope.payload.parse().map_err(|bad| bad.of_type(&envelope.type_name))?;
        let typed = Typed { envelope: envelope.with_payload(payload), text };
        Ok(Box::pin(Converted { future: (self.handler)(session, typed) }))
    }
}
