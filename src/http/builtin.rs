//! The server's own HTTP endpoints. They are asked before the application's [routes](super::Routes).
//!
//! To add one: a variant, where it is ([`find`](Builtin::find)), its methods, and its answer. What it needs of the
//! server is in the [`Door`]. It is dropped when the client ends the connection; who waits long for a session
//! calls [`Door::park`].

#[cfg(feature = "metrics")]
use std::sync::Arc;

#[cfg(feature = "metrics")]
use ::http::header::CONTENT_TYPE;
use ::http::header::{CACHE_CONTROL, HeaderValue, RETRY_AFTER};
use ::http::{Method, StatusCode};

#[cfg(feature = "json")]
use serde_json::json;

use super::body::Body;
use super::front::Door;
use super::module;
#[cfg(feature = "json")]
use super::openapi::{self, Described, response};
use super::reply::{IntoReply, Reply};
use super::request::Request;
use super::routes::Found;
use crate::config::Config;
#[cfg(feature = "fallback")]
use crate::fallback::{Asked, Call};
#[cfg(feature = "metrics")]
use crate::metrics::Metrics;
use crate::session::Handler;

/// What [`is_page`] asks for.
pub(crate) const PAGES: &str = "allowed is a path that begins with a slash and does not end with one, of letters, digits \
                                and -._~ between slashes";

/// Whether this can be the path of a page of the server's own.
pub(crate) fn is_page(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let segment = |segment: &str| !segment.is_empty() && segment.bytes().all(plain);
    path.strip_prefix('/').is_some_and(|path| path.split('/').all(segment))
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Builtin {
    /// The process is there.
    Live,
    /// Further sessions are welcome.
    Ready,
    /// The browser's side.
    Module,
    /// What the server counts of itself.
    #[cfg(feature = "metrics")]
    Metrics,
    /// A client without WebSocket.
    #[cfg(feature = "fallback")]
    Fallback(Asked),
    /// The description of them all.
    #[cfg(feature = "json")]
    OpenApi,
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
        #[cfg(feature = "json")]
        if config.openapi.is_some() {
            return true;
        }
        #[cfg(feature = "metrics")]
        if config.metrics.is_some() {
            return true;
        }
        config.health || config.browser_module
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
            module::PATH if config.browser_module => Some(Self::Module),
            #[cfg(feature = "metrics")]
            path if config.metrics.as_deref() == Some(path) => Some(Self::Metrics),
            #[cfg(feature = "json")]
            path if config.openapi.as_deref() == Some(path) => Some(Self::OpenApi),
            _ => None,
        }
    }

    /// What is wrong with their paths, if anything is: one that no request has, or two at the same one.
    pub(crate) fn invalid(config: &Config) -> Option<String> {
        let mut pages = Vec::new();
        if config.health {
            pages.push(("health", Self::LIVE, Self::Live));
            pages.push(("health", Self::READY, Self::Ready));
        }
        if config.browser_module {
            pages.push(("browser_module", module::PATH, Self::Module));
        }
        #[cfg(feature = "metrics")]
        pages.extend(config.metrics.as_deref().map(|path| ("metrics", path, Self::Metrics)));
        #[cfg(feature = "json")]
        pages.extend(config.openapi.as_deref().map(|path| ("openapi", path, Self::OpenApi)));
        pages.into_iter().find_map(|(name, path, page)| {
            if !is_page(path) {
                return Some(format!("{name} is {path:?}: {PAGES}"));
            }
            let found = Self::find(config, path).filter(|found| *found != page);
            found.map(|other| {
                format!(
                    "{name} is at {path:?}, and so is another page of the server's own ({other:?})"
                )
            })
        })
    }

    /// All that are switched on, for the description; nothing is said of the description itself.
    #[cfg(feature = "json")]
    pub(super) fn described(config: &Config) -> Vec<Described> {
        let mut all = Vec::new();
        #[cfg(feature = "fallback")]
        if let Some(fallbacks) = &config.fallbacks {
            all.extend(fallbacks.described());
        }
        if config.browser_module {
            let operation = json!({
                "summary": "The browser's side, an ES module.",
                "responses": { "200": response("It."), "304": response("The browser has it already.") },
            });
            all.push(Described { path: module::PATH.into(), method: Method::GET, operation });
        }
        #[cfg(feature = "metrics")]
        if let Some(path) = &config.metrics {
            let operation = json!({
                "summary": "What the server counts of itself: OpenMetrics, or Prometheus' older text.",
                "responses": { "200": response("The numbers.") },
            });
            all.push(Described { path: path.clone(), method: Method::GET, operation });
        }
        if config.health {
            for (path, summary, good, bad) in [
                (Self::LIVE, "Whether the server is there.", "It is.", None),
                (
                    Self::READY,
                    "Whether it takes further sessions.",
                    "It does.",
                    Some("It does not."),
                ),
            ] {
                let mut responses = json!({ "200": response(good) });
                if let Some(bad) = bad {
                    responses["503"] = response(bad);
                }
                let operation = json!({ "summary": summary, "responses": responses });
                all.push(Described { path: path.into(), method: Method::GET, operation });
            }
        }
        all
    }

    /// What it is asked with; a HEAD is answered like a GET.
    pub(crate) fn methods(self) -> &'static [Method] {
        match self {
            Self::Live | Self::Ready | Self::Module => &[Method::GET],
            #[cfg(feature = "metrics")]
            Self::Metrics => &[Method::GET],
            #[cfg(feature = "fallback")]
            Self::Fallback(asked) => asked.methods(),
            #[cfg(feature = "json")]
            Self::OpenApi => &[Method::GET],
        }
    }

    pub(super) fn found(self, method: &Method) -> Found<'static> {
        let as_get = match self {
            // What opens a session, or takes its messages, is not asked for in vain.
            #[cfg(feature = "fallback")]
            Self::Fallback(_) => method,
            _ if method == Method::HEAD => &Method::GET,
            _ => method,
        };
        match self.methods() {
            methods if methods.contains(as_get) => Found::Builtin(self),
            methods => Found::Methods { methods: methods.to_vec(), public: false },
        }
    }

    /// The answer. The origin is one that is allowed.
    #[allow(clippy::unused_async, reason = "most endpoints wait for something")]
    pub(super) async fn answer<H: Handler>(
        self,
        door: &Door<'_, H>,
        request: &Request,
        #[cfg_attr(not(feature = "fallback"), expect(unused_variables, reason = "nobody reads"))]
        body: &mut Body,
    ) -> Reply {
        match self {
            #[cfg(feature = "fallback")]
            Self::Fallback(asked) => match &door.hub.desk {
                Some(desk) => Call { door, desk, request }.answer(asked, body).await,
                None => StatusCode::NOT_FOUND.into_reply(),
            },
            Self::Live => health(StatusCode::OK, "live".into()),
            Self::Ready => {
                let readiness = door.hub.readiness();
                let ready = readiness.is_ready();
                let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                health(status, readiness.to_string())
            }
            #[cfg(feature = "metrics")]
            Self::Metrics => {
                let metrics = Metrics::new(Arc::clone(door.hub));
                let accept = request.header("accept").map(str::to_owned);
                // It looks at every session, on a thread that has no others to serve.
                let (kind, text) =
                    smol::unblock(move || metrics.encode_for(accept.as_deref())).await;
                Reply::new(text)
                    .with_header(CONTENT_TYPE, HeaderValue::from_static(kind))
                    .with_header(CACHE_CONTROL, HeaderValue::from_static("no-store"))
            }
            Self::Module => module::answer(request),
            #[cfg(feature = "json")]
            Self::OpenApi => Reply::json(&openapi::document(&door.hub.config)),
        }
    }
}

fn health(status: StatusCode, mut word: String) -> Reply {
    word.push('\n');
    let mut reply = (status, word)
        .into_reply()
        .with_header(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status != StatusCode::OK {
        reply = reply.with_header(RETRY_AFTER, HeaderValue::from_static("5"));
    }
    reply
}
