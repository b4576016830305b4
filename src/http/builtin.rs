//! The server's own HTTP endpoints. They are asked before the application's [routes](super::Routes).
//!
//! To add one: a variant, where it is ([`find`](Builtin::find)), its methods, and its answer. What it needs of the
//! server is in the [`Door`]. It is dropped when the client ends the connection; who waits long for a session
//! calls [`Door::park`].

use ::http::header::{CACHE_CONTROL, HeaderValue, RETRY_AFTER};
use ::http::{Method, StatusCode};

use super::body::Body;
use super::front::Door;
use super::reply::{IntoReply, Reply};
use super::request::Request;
use super::routes::Found;
use crate::config::Config;
#[cfg(feature = "fallback")]
use crate::fallback::{Asked, Call};
use crate::session::Handler;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Builtin {
    /// The process is there.
    Live,
    /// Further sessions are welcome.
    Ready,
    /// A client without WebSocket.
    #[cfg(feature = "fallback")]
    Fallback(Asked),
}

impl Builtin {
    pub(crate) const LIVE: &'static str = "/healthz";
    pub(crate) const READY: &'static str = "/readyz";

    /// Whether any of them is switched on.
    pub(crate) fn any(config: &Config) -> bool {
        #[cfg(feature = "fallback")]
        if config.fallbacks.is_some() {
            return true;
        }
        config.health
    }

    /// What is at this path, of what is switched on.
    pub(crate) fn find(config: &Config, path: &str) -> Option<Self> {
        #[cfg(feature = "fallback")]
        if let Some(asked) = config.fallbacks.as_ref().and_then(|it| it.asked(path)) {
            return Some(Self::Fallback(asked));
        }
        match path {
            Self::LIVE if config.health => Some(Self::Live),
            Self::READY if config.health => Some(Self::Ready),
            _ => None,
        }
    }

    /// What it is asked with; a HEAD is answered like a GET.
    pub(crate) fn methods(self) -> &'static [Method] {
        match self {
            Self::Live | Self::Ready => &[Method::GET],
            #[cfg(feature = "fallback")]
            Self::Fallback(asked) => asked.methods(),
        }
    }

    pub(super) fn found(self, method: &Method) -> Found<'static> {
        let as_get = if method == Method::HEAD { &Method::GET } else { method };
        match self.methods() {
            methods if methods.contains(as_get) => Found::Builtin(self),
            methods => Found::Methods(methods.to_vec()),
        }
    }

    /// The answer. The origin is one that is allowed.
    pub(super) async fn answer<H: Handler>(
        self,
        door: &Door<'_, H>,
        #[cfg_attr(not(feature = "fallback"), expect(unused_variables))] request: &Request,
        #[cfg_attr(not(feature = "fallback"), expect(unused_variables))] body: &mut Body,
    ) -> Reply {
        match self {
            #[cfg(feature = "fallback")]
            Self::Fallback(asked) => match &door.hub.desk {
                Some(desk) => Call { door, desk, request }.answer(asked, body).await,
                None => StatusCode::NOT_FOUND.into_reply(),
            },
            Self::Live => health(StatusCode::OK, "live\n"),
            Self::Ready if door.hub.shutdown.is_stopping() => {
                health(StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
            }
            Self::Ready if door.hub.limits.is_full() => {
                health(StatusCode::SERVICE_UNAVAILABLE, "full\n")
            }
            Self::Ready => health(StatusCode::OK, "ready\n"),
        }
    }
}

fn health(status: StatusCode, word: &'static str) -> Reply {
    let mut reply = (status, word)
        .into_reply()
        .with_header(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status != StatusCode::OK {
        reply = reply.with_header(RETRY_AFTER, HeaderValue::from_static("5"));
    }
    reply
}
