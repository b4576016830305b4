//! Several handlers on one server, by the path of the request.

mod any;
mod pattern;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use ::http::StatusCode;

use crate::error::{self, Error};
use crate::http::{Request, Response, Upgrade};
use crate::message::{CloseCode, Message};
use crate::session::{Closed, Flow, Handler, HandlerError, Incoming, Outcome, Session};
use any::AnyHandler;
pub(crate) use pattern::Pattern;
#[cfg(feature = "fallback")]
pub(crate) use pattern::percent_decoded;

/// Nobody is there.
const NOTHING_HERE: &str = "nothing is served at this path";

/// Hands each session to one of several handlers, by the path of its request.
///
/// ```
/// use coracle::{Closures, Paths, Server};
///
/// # fn main() -> coracle::Result<()> {
/// let paths = Paths::new()
///     .at(
///         "/chat/{room}",
///         Closures::new().on_open(async |session| {
///             let room = session.param("room").unwrap_or_default();
///             session.send(format!("welcome to {room}")).await
///         }),
///     )
///     .at(
///         "/echo",
///         Closures::new().on_message(async |session, message| session.send(message).await),
///     );
/// let server = Server::builder().bind("127.0.0.1:0").handler(paths).start()?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
///
/// A pattern begins with a slash, and between slashes has
///
/// * what the path has to have there: characters as they read, not percent-encoded;
/// * `{name}`: one segment, whatever it is, but not empty;
/// * `{*name}`, at the end: all that is left, slashes included, but not empty.
///
/// Where several patterns fit, what is written comes before a place, and `{name}` before `{*name}`, from the
/// left: `/a/{x}`, then `/{x}/b`, then `/{*x}`. The order in which they were added does not matter. `/a` and
/// `/a/` are two paths.
///
/// A path is divided at its slashes, and then each segment is percent-decoded (RFC 3986 section 2.4); with
/// what is no percent-encoding of UTF-8 no pattern fits. `.` and `..` are segments like others, and letters are
/// small or capital. [`Session::path`] still has the path as it was sent.
///
/// A request that no pattern fits is answered with 404, if there is no [`otherwise`](Self::otherwise). Sessions
/// that are handed over without a request ([`ServerHandle::serve_upgraded`](crate::ServerHandle::serve_upgraded))
/// are found by their path as well, and closed with 1008 where no pattern fits.
#[derive(Default)]
pub struct Paths {
    /// In the order in which they are tried.
    routes: Vec<(Arc<Pattern>, Box<dyn AnyHandler>)>,
    otherwise: Option<Box<dyn AnyHandler>>,
    /// The first thing that is wrong.
    problem: Option<String>,
}

impl Paths {
    /// Nothing is served anywhere.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves the paths of this pattern with this handler, which can also be
    /// [`Closures`](crate::Closures).
    ///
    /// A pattern that cannot be, and one that stands for the same paths as another, is an error when the
    /// server starts.
    #[must_use]
    pub fn at(mut self, pattern: &str, handler: impl Handler) -> Self {
        match self.place(pattern) {
            Ok((place, pattern)) => {
                self.routes.insert(place, (Arc::new(pattern), Box::new(handler)));
            }
            Err(problem) => {
                self.problem.get_or_insert(format!("paths: {pattern:?}: {problem}"));
            }
        }
        self
    }

    /// Serves all other paths with this handler; the last call counts.
    #[must_use]
    pub fn otherwise(mut self, handler: impl Handler) -> Self {
        self.otherwise = Some(Box::new(handler));
        self
    }

    fn place(&self, pattern: &str) -> Result<(usize, Pattern), String> {
        let pattern = Pattern::parse(pattern)?;
        match self.routes.binary_search_by(|(earlier, _)| earlier.order(&pattern)) {
            Err(place) => Ok((place, pattern)),
            Ok(place) => {
                let other = self.routes.get(place).map_or("", |(other, _)| other.as_str());
                Err(format!("it stands for the same paths as {other:?}"))
            }
        }
    }

    fn find(&self, path: &str) -> Option<&(Arc<Pattern>, Box<dyn AnyHandler>)> {
        self.routes.iter().find(|(pattern, _)| pattern.matches(path))
    }

    /// Who serves this session. It has been found before, if its path has places for parameters.
    fn serves(&self, session: &Session) -> Option<&dyn AnyHandler> {
        let kept = session.member().profile.pattern().and_then(|pattern| pattern.get());
        // Of these paths and not of others, in which they are.
        let kept = kept
            .and_then(|kept| self.routes.iter().find(|(pattern, _)| Arc::ptr_eq(pattern, kept)));
        match kept.or_else(|| self.find(session.path())) {
            Some((_, handler)) => Some(&**handler),
            None => self.otherwise.as_deref(),
        }
    }
}

impl Handler for Paths {
    fn check(&self) -> error::Result<()> {
        if let Some(problem) = &self.problem {
            return Err(Error::Config(problem.clone()));
        }
        let handlers = self.routes.iter().map(|(_, handler)| handler);
        handlers.chain(&self.otherwise).try_for_each(|handler| handler.check())
    }

    async fn accept(&self, request: &Request) -> Result<Upgrade, Response> {
        if let Some((pattern, handler)) = self.find(request.path()) {
            // Paths within paths: what the outer ones have found stays.
            request.pattern().get_or_init(|| Arc::clone(pattern));
            return handler.accept(request).await;
        }
        match &self.otherwise {
            Some(handler) => handler.accept(request).await,
            None => Err(not_found()),
        }
    }

    async fn open(&self, session: &Session) -> Outcome {
        match self.serves(session) {
            Some(handler) => handler.open(session).await,
            None => nothing_here(),
        }
    }

    async fn message(&self, session: &Session, message: Message) -> Outcome {
        match self.serves(session) {
            Some(handler) => handler.message(session, message).await,
            None => nothing_here(),
        }
    }

    fn streams(&self, session: &Session) -> bool {
        // There was no request where another server has upgraded the connection. This is the first that is
        // asked of a session.
        if let Some(kept) = session.member().profile.pattern() {
            if let Some((pattern, _)) = self.find(session.path()) {
                kept.get_or_init(|| Arc::clone(pattern));
            }
        }
        self.serves(session).is_some_and(|handler| handler.streams(session))
    }

    async fn stream(&self, session: &Session, incoming: Incoming) -> Outcome {
        match self.serves(session) {
            Some(handler) => handler.stream(session, incoming).await,
            None => nothing_here(),
        }
    }

    async fn drain(&self, session: &Session) -> Outcome {
        match self.serves(session) {
            Some(handler) => handler.drain(session).await,
            None => Ok(Flow::Continue),
        }
    }

    async fn close(&self, session: &Session, closed: &Closed) {
        if let Some(handler) = self.serves(session) {
            handler.close(session, closed).await;
        }
    }

    async fn error(&self, session: &Session, error: &HandlerError) {
        if let Some(handler) = self.serves(session) {
            handler.error(session, error).await;
        }
    }
}

impl fmt::Debug for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patterns: Vec<&str> = self.routes.iter().map(|(pattern, _)| pattern.as_str()).collect();
        f.debug_struct("Paths")
            .field("at", &patterns)
            .field("otherwise", &self.otherwise.is_some())
            .finish()
    }
}

impl Session {
    /// What the path has in the place `{name}` or `{*name}` of the pattern by which [`Paths`] have found the
    /// session's handler, percent-decoded; of paths within paths, of the outer ones.
    ///
    /// It is the client's word: any characters may be in it, also a slash that was encoded, `..`, or a
    /// control character. `None` without such a place. Each call looks at the path again, which is shorter
    /// than the request's head.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<Cow<'_, str>> {
        self.member().profile.pattern()?.get()?.param(self.path(), name)
    }
}

impl Request {
    /// The same as [`Session::param`], for the accept hook of a handler in [`Paths`], and for
    /// [`Routes`](crate::Routes).
    #[must_use]
    pub fn param(&self, name: &str) -> Option<Cow<'_, str>> {
        self.pattern().get()?.param(self.path(), name)
    }
}

fn not_found() -> Response {
    let mut response = Response::new(format!("{NOTHING_HERE}\n").into_bytes());
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

fn nothing_here() -> Outcome {
    Ok(Flow::Close(CloseCode::POLICY, NOTHING_HERE.into()))
}
