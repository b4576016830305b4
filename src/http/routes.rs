//! Which of the application's closures answers a request: by path and method.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use ::http::Method;

use super::body::Body;
use super::builtin::Builtin;
use super::files::Folder;
use super::origin::OriginPolicy;
use super::reply::{IntoReply, Reply};
use super::request::Request;
use crate::hub::Reserve;
use crate::paths::Pattern;

/// The application's own HTTP endpoints, beside the WebSocket on the same listeners; for
/// [`Builder::routes`](crate::Builder::routes).
///
/// ```
/// use coracle::{Body, BodyError, Request, Routes, Server};
///
/// let routes = Routes::new()
///     .get("/hello/{name}", async |request: &Request, _: &mut Body| {
///         format!("hello {}\n", request.param("name").unwrap_or_default())
///     })
///     .post("/length", async |_: &Request, body: &mut Body| {
///         Ok::<_, BodyError>(format!("{}\n", body.bytes().await?.len()))
///     })
///     .files("/static", "assets");
/// let server = Server::builder().routes(routes);
/// ```
///
/// Patterns are those of [`Paths`](crate::Paths), and `Request::param` has what is in their places. Where several
/// fit the most definite one is taken that has a route for the method. A GET is also asked for a HEAD, and its
/// body is left out. An OPTIONS that has no route of its own is told which methods there are, a method for which
/// there is none gets a 405, and a path that no pattern fits the [fallback](Self::fallback) or a 404.
///
/// A WebSocket handshake is never asked here, whatever its path.
///
/// A route has [`Timeouts::request`](crate::config::Timeouts::request) to answer, the time for the body
/// included, and gets a 503 in its place when that is over. It goes on when the client has closed its sending
/// side, and is dropped when the connection breaks. If it panics the client gets a 500, and the connection is
/// closed.
///
/// Requests of foreign [origins](OriginPolicy) are refused, see [`origins`](Self::origins).
#[derive(Clone, Default)]
pub struct Routes {
    /// In the order in which they are tried; each pattern once.
    entries: Vec<Entry>,
    fallback: Option<Arc<Call>>,
    pub(crate) origins: Option<OriginPolicy>,
    /// Which routes the last call has added.
    last: Vec<(Arc<Pattern>, Method)>,
    /// The first thing that is wrong.
    problem: Option<String>,
}

#[derive(Clone)]
struct Entry {
    pattern: Arc<Pattern>,
    routes: Vec<Route>,
}

/// A listener that has routes of its own.
pub(crate) struct Site {
    pub(crate) routes: Routes,
    /// What it answers with when the other listeners have taken all places.
    pub(crate) reserve: Arc<Reserve>,
}

impl Site {
    pub(crate) fn new(routes: Routes) -> Self {
        Self { routes, reserve: Reserve::new() }
    }
}

/// What is done for one method.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) summary: Option<Box<str>>,
    pub(crate) body_bytes: Option<u64>,
    pub(crate) public: bool,
}

#[derive(Clone)]
pub(crate) enum Target {
    Call(Arc<Call>),
    Folder(Arc<Folder>),
    Builtin(Builtin),
}

/// A closure whose type is forgotten.
pub(crate) type Call = dyn for<'a> Fn(&'a Request, &'a mut Body) -> Pin<Box<dyn Future<Output = Reply> + 'a>>
    + Send
    + Sync;

/// What there is for a request.
pub(crate) enum Found<'a> {
    Route(&'a Route),
    Builtin(Builtin),
    Fallback(&'a Arc<Call>),
    /// Only these methods; whether any page may use all of them.
    Methods {
        methods: Vec<Method>,
        public: bool,
    },
    Nothing,
}

impl Routes {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers a GET, and a HEAD, for the paths of this pattern.
    #[must_use]
    pub fn get<F, R>(self, pattern: &str, answer: F) -> Self
    where
        F: AsyncFn(&Request, &mut Body) -> R + Send + Sync + 'static,
        R: IntoReply,
    {
        self.route(Method::GET, pattern, answer)
    }

    /// Answers a POST.
    #[must_use]
    pub fn post<F, R>(self, pattern: &str, answer: F) -> Self
    where
        F: AsyncFn(&Request, &mut Body) -> R + Send + Sync + 'static,
        R: IntoReply,
    {
        self.route(Method::POST, pattern, answer)
    }

    /// Answers a PUT.
    #[must_use]
    pub fn put<F, R>(self, pattern: &str, answer: F) -> Self
    where
        F: AsyncFn(&Request, &mut Body) -> R + Send + Sync + 'static,
        R: IntoReply,
    {
        self.route(Method::PUT, pattern, answer)
    }

    /// Answers a DELETE.
    #[must_use]
    pub fn delete<F, R>(self, pattern: &str, answer: F) -> Self
    where
        F: AsyncFn(&Request, &mut Body) -> R + Send + Sync + 'static,
        R: IntoReply,
    {
        self.route(Method::DELETE, pattern, answer)
    }

    /// Answers a PATCH.
    #[must_use]
    pub fn patch<F, R>(self, pattern: &str, answer: F) -> Self
    where
        F: AsyncFn(&Request, &mut Body) -> R + Send + Sync + 'static,
        R: IntoReply,
    {
        self.route(Method::PATCH, pattern, answer)
    }

    /// Answers requests of any one method. Two routes of one method for the same paths, and a pattern that
    /// cannot be, are an error when the server starts.
    #[must_use]
    pub fn route<F, R>(self, method: Method, pattern: &str, answer: F) -> Self
    where
        F: AsyncFn(&Request, &mut Body) -> R + Send + Sync + 'static,
        R: IntoReply,
    {
        self.add(method, pattern, Target::Call(erase(answer)))
    }

    /// Serves the files below `folder`: `/static/a/b.css` is `b.css` in its folder `a`, for
    /// `files("/static", ..)`.
    ///
    /// A path with a slash at its end is the `index.html` of that folder, and the name of a folder is redirected
    /// to the one with the slash. Types go by the names' ends. An answer has `ETag`, `Last-Modified` and
    /// `Cache-Control: no-cache`, so browsers ask again each time, and get a 304 where nothing has changed; one
    /// `Range` is served as asked for.
    ///
    /// Nothing outside of the folder is served, also not through links, and no file or folder whose name begins
    /// with a dot. Folders are not listed. Files are opened for each request, so they may change while the
    /// server runs; replace them whole (rename(2)), because one that shrinks while it is sent cuts the
    /// connection. A folder that is not there is an error when the server starts.
    #[must_use]
    pub fn files(mut self, prefix: &str, folder: impl Into<PathBuf>) -> Self {
        let prefix = prefix.trim_end_matches('/');
        let folder = Arc::new(Folder::new(folder.into()));
        if let Err(problem) = folder.check() {
            self.problem.get_or_insert(format!("routes: files of {prefix:?}: {problem}"));
        }
        self.last.clear();
        for pattern in [format!("{prefix}/"), format!("{prefix}/{{*path}}")] {
            self.add_also(Method::GET, &pattern, Target::Folder(Arc::clone(&folder)));
        }
        if !prefix.is_empty() {
            self.add_also(Method::GET, prefix, Target::Folder(folder));
        }
        self
    }

    /// Answers everything else, of any method; the last call counts.
    #[must_use]
    pub fn fallback<F, R>(mut self, answer: F) -> Self
    where
        F: AsyncFn(&Request, &mut Body) -> R + Send + Sync + 'static,
        R: IntoReply,
    {
        self.fallback = Some(erase(answer));
        self
    }

    /// What the server counts of itself at this path, as of [`Builder::metrics`](crate::Builder::metrics), for a
    /// listener of [`Builder::bind_http`](crate::Builder::bind_http).
    #[cfg(feature = "metrics")]
    #[must_use]
    pub fn metrics(self, path: impl AsRef<str>) -> Self {
        self.add(Method::GET, path.as_ref(), Target::Builtin(Builtin::Metrics))
    }

    /// `GET /healthz` and `GET /readyz`, as of [`Builder::health`](crate::Builder::health), for a listener of
    /// [`Builder::bind_http`](crate::Builder::bind_http).
    #[must_use]
    pub fn health(mut self) -> Self {
        self.last.clear();
        self.add_also(Method::GET, Builtin::LIVE, Target::Builtin(Builtin::Live));
        self.add_also(Method::GET, Builtin::READY, Target::Builtin(Builtin::Ready));
        self
    }

    /// What the route that was added last is for, in a sentence, for the
    /// [description](crate::Builder::openapi). This and the following hold for all routes of the last call, for
    /// example of [`files`](Self::files).
    #[must_use]
    pub fn summary(self, summary: impl Into<String>) -> Self {
        let summary = summary.into();
        self.change_last("summary", |route| route.summary = Some(summary.as_str().into()))
    }

    /// The largest body of the route that was added last, in bytes, instead of
    /// [`Limits::body_bytes`](crate::config::Limits::body_bytes).
    #[must_use]
    pub fn body_bytes(self, bytes: u64) -> Self {
        self.change_last("body_bytes", |route| route.body_bytes = Some(bytes))
    }

    /// Pages of any origin may use the route that was added last: for public data, and for what asks for a
    /// proof that is no cookie.
    #[must_use]
    pub fn public(self) -> Self {
        self.change_last("public", |route| route.public = true)
    }

    /// Which pages may use these routes; without this call those that may open a session
    /// ([`Builder::origins`](crate::Builder::origins)).
    ///
    /// A browser says in `Origin` which site a page is of whenever it sends a request to another one by script,
    /// and with every POST; others are refused with 403. Pages that are allowed may read the answers (CORS: the
    /// preflight OPTIONS is answered, and `Access-Control-Allow-Origin` is added), with cookies if the policy
    /// names them one by one. A request without `Origin`, as a link makes it, passes: **a GET should change
    /// nothing**.
    #[must_use]
    pub fn origins(mut self, origins: OriginPolicy) -> Self {
        self.origins = Some(origins);
        self
    }

    fn change_last(mut self, what: &str, change: impl Fn(&mut Route)) -> Self {
        if self.last.is_empty() {
            let problem = format!("routes: `{what}` follows no route that could be meant");
            self.problem.get_or_insert(problem);
        }
        for (pattern, method) in &self.last {
            let entries = self.entries.iter_mut().filter(|it| Arc::ptr_eq(&it.pattern, pattern));
            let routes = entries.flat_map(|entry| &mut entry.routes);
            routes.filter(|route| route.method == *method).for_each(&change);
        }
        self
    }

    pub(crate) fn add(mut self, method: Method, pattern: &str, target: Target) -> Self {
        self.last.clear();
        self.add_also(method, pattern, target);
        self
    }

    /// The same for what belongs to the one before.
    fn add_also(&mut self, method: Method, pattern: &str, target: Target) {
        if let Err(problem) = self.insert(method, pattern, target) {
            self.problem.get_or_insert(format!("routes: {pattern:?}: {problem}"));
        }
    }

    fn insert(&mut self, method: Method, pattern: &str, target: Target) -> Result<(), String> {
        let pattern = Pattern::parse(pattern)?;
        let place = self.entries.binary_search_by(|entry| entry.pattern.order(&pattern));
        let at = place.unwrap_or_else(|at| {
            self.entries
                .insert(at, Entry { pattern: Arc::new(pattern.clone()), routes: Vec::new() });
            at
        });
        let Some(entry) = self.entries.get_mut(at) else { return Ok(()) };
        if entry.pattern.as_str() != pattern.as_str() {
            // The names of places are the pattern's, not the route's.
            return Err(format!(
                "it stands for the same paths as {:?}: name its places alike",
                entry.pattern.as_str()
            ));
        }
        if entry.routes.iter().any(|route| route.method == method) {
            return Err(format!("there are two routes for {method}"));
        }
        self.last.push((Arc::clone(&entry.pattern), method.clone()));
        entry.routes.push(Route { method, target, summary: None, body_bytes: None, public: false });
        Ok(())
    }

    /// These methods as they stand in `Allow`, with what is answered beside them.
    pub(crate) fn allowed(methods: &[Method]) -> String {
        let mut names: Vec<&str> = methods.iter().map(Method::as_str).collect();
        if names.contains(&"GET") {
            names.push("HEAD");
        }
        names.push("OPTIONS");
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }

    /// The first thing that is wrong.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Every route: its pattern, and what it is.
    #[cfg(feature = "json")]
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Pattern, &Route)> {
        self.entries
            .iter()
            .flat_map(|entry| entry.routes.iter().map(|route| (&*entry.pattern, route)))
    }

    /// Who answers this request as if it were of this method. The pattern is kept in the request.
    pub(crate) fn find(&self, request: &Request, method: &Method) -> Found<'_> {
        let path = request.path();
        let mut methods = Vec::new();
        let mut public = true;
        for entry in self.entries.iter().filter(|entry| entry.pattern.matches(path)) {
            let of = |wanted: &Method| entry.routes.iter().find(|route| route.method == *wanted);
            let head = || (*method == Method::HEAD).then(|| of(&Method::GET)).flatten();
            if let Some(route) = of(method).or_else(head) {
                request.pattern().get_or_init(|| Arc::clone(&entry.pattern));
                return Found::Route(route);
            }
            public &= entry.routes.iter().all(|route| route.public);
            methods.extend(entry.routes.iter().map(|route| route.method.clone()));
        }
        if !methods.is_empty() {
            return Found::Methods { methods, public };
        }
        self.fallback.as_ref().map_or(Found::Nothing, Found::Fallback)
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patterns: Vec<&str> = self.entries.iter().map(|entry| entry.pattern.as_str()).collect();
        f.debug_struct("Routes")
            .field("at", &patterns)
            .field("fallback", &self.fallback.is_some())
            .finish()
    }
}

fn erase<F, R>(answer: F) -> Arc<Call>
where
    F: AsyncFn(&Request, &mut Body) -> R + Send + Sync + 'static,
    R: IntoReply,
{
    let answer = Arc::new(answer);
    Arc::new(move |request, body| {
        let answer = Arc::clone(&answer);
        Box::pin(async move { answer(request, body).await.into_reply() })
    })
}
