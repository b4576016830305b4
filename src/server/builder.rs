//! How a server is put together.

use std::fmt;
use std::net::{TcpListener, ToSocketAddrs};
use std::num::NonZero;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "json")]
use serde::de::DeserializeOwned;

use super::crew::{Crew, Duty, Listening, Speaks};
use super::handle::{Report, ServerHandle};
use super::listen::{Source, UnixSocket, configured};
use super::signals::Interrupts;
#[cfg(feature = "deflate")]
use crate::config::Deflate;
#[cfg(feature = "tls")]
use crate::config::{ClientCertificates, Tls};
use crate::config::{Config, Inbound};
use crate::error::{Error, Result};
use crate::executor::Clock;
#[cfg(feature = "fallback")]
use crate::fallback::Fallbacks;
use crate::history::{self, Book, HistoryErrorHook, Kept, LostAppend};
use crate::http::builtin::Builtin;
use crate::http::{OriginPolicy, Request, Response, Routes, Upgrade};
use crate::hub::{Hub, PresenceEvent, PresenceHook, Publication, RoomPolicy};
use crate::message::Message;
use crate::metrics::Sources;
use crate::outbox::{Gap, SlowPeer};
#[cfg(feature = "json")]
use crate::session::slots::Routable;
use crate::session::slots::{Unrouted, Whole};
use crate::session::{
    Closed, Closures, GapHook, Handler, HandlerError, Incoming, IntoOutcome, Rates, Session,
    SessionRates, Set, Streaming,
};
#[cfg(feature = "tls")]
use crate::tls::Store;
use crate::transport::ListenAddr;
#[cfg(all(doc, feature = "json"))]
use crate::typed::Router;
#[cfg(feature = "json")]
use crate::typed::Typed;

/// What is wrong where TLS is asked for and cannot be spoken.
#[cfg(feature = "tls")]
pub(super) const NO_CERTIFICATE: &str =
    "TLS is to be spoken, and there is no certificate: call `Builder::tls`";

/// What is wrong where whoever leaves TLS out leaves his certificate out, too.
#[cfg(feature = "tls")]
const REQUIRED_AND_PLAIN: &str = "clients have to show a certificate, and on a port of \
     `bind_tls_or_plain` nobody asks those who speak no TLS: use `bind_tls`, or \
     `ClientCertificates::Optional` and decide in `on_accept`";

/// How much later than our own timers the kernel gives up a peer.
const KERNEL_MARGIN: Duration = Duration::from_secs(5);

/// The entry to this crate: [`Server::builder`].
#[derive(Debug)]
pub struct Server(());

impl Server {
    /// A server with the default [`Config`], no address and no callbacks.
    pub fn builder() -> Builder {
        Builder {
            config: Config::default(),
            listeners: Vec::new(),
            sites: Vec::new(),
            handler: Closures::default(),
            sources: Sources::default(),
        }
    }
}

/// Puts a server together; [`start`](Builder::start) or [`run`](Builder::run) sets it going.
///
/// The application is either one [`Handler`] or closures, one for each callback that matters.
#[must_use = "a builder does nothing until `start` or `run`"]
pub struct Builder<H = Closures> {
    config: Config,
    listeners: Vec<(Source, Speaks)>,
    /// Routes of listeners that have their own.
    sites: Vec<Routes>,
    handler: H,
    sources: Sources,
}

impl<H> Builder<H> {
    /// Listens on this address; may be called several times. Port 0 takes any free port, and
    /// [`ServerHandle::local_addr`] tells which.
    ///
    /// A name is resolved here and now, which may block, and the first of its addresses that can be
    /// listened on is used.
    pub fn bind(self, address: impl ToSocketAddrs + fmt::Debug) -> Self {
        self.listen_on(address, Speaks::Plain)
    }

    /// Listens on this address, like [`bind`](Self::bind), for clients that speak TLS (`wss://`). What
    /// it needs is said with [`tls`](Self::tls).
    ///
    /// Who sends a request without TLS is told so.
    #[cfg(feature = "tls")]
    pub fn bind_tls(self, address: impl ToSocketAddrs + fmt::Debug) -> Self {
        self.listen_on(address, Speaks::Tls)
    }

    /// Listens on this address, like [`bind`](Self::bind), for both clients that speak TLS and clients
    /// that do not: a TLS connection begins with the byte 22 (RFC 8446 section 5.1), which no request
    /// does.
    ///
    /// For moving a port from `ws://` to `wss://` while clients of both kinds are there. Who can choose
    /// takes two ports, because nothing tells a client here that it should have used TLS.
    #[cfg(feature = "tls")]
    pub fn bind_tls_or_plain(self, address: impl ToSocketAddrs + fmt::Debug) -> Self {
        self.listen_on(address, Speaks::Either)
    }

    pub(super) fn listen_on(
        self,
        address: impl ToSocketAddrs + fmt::Debug,
        speaks: Speaks,
    ) -> Self {
        let addresses = address.to_socket_addrs().map(Iterator::collect);
        let name = format!("{address:?}").trim_matches('"').to_owned();
        self.listen_at(Source::Address(name, addresses), speaks)
    }

    pub(super) fn listen_at(mut self, source: Source, speaks: Speaks) -> Self {
        self.listeners.push((source, speaks));
        self
    }

    /// Serves a TCP socket that already listens, for example one that was inherited. Its options
    /// are left as they are; `TCP_NODELAY` should be set on it.
    pub fn listener(mut self, listener: TcpListener) -> Self {
        self.listeners.push((Source::Tcp(listener), Speaks::Plain));
        self
    }

    /// The same for clients that speak TLS, as with [`bind_tls`](Self::bind_tls).
    #[cfg(feature = "tls")]
    pub fn tls_listener(mut self, listener: TcpListener) -> Self {
        self.listeners.push((Source::Tcp(listener), Speaks::Tls));
        self
    }

    /// Listens on a socket of the Unix family; may be called several times. A path is enough; with
    /// [`UnixSocket`] its permissions can be chosen, too.
    ///
    /// A socket that a crashed process has left there is removed first; one on which somebody listens,
    /// and any other file, is an error. When the server ends it removes the socket's file. While somebody
    /// else has locked the directory (flock(2)), as servers do that begin to listen there,
    /// [`start`](Self::start) waits for at most a second.
    ///
    /// For [`Limits::sessions_per_address`](crate::config::Limits::sessions_per_address) all peers of
    /// all sockets of the Unix family are one address.
    pub fn bind_unix(mut self, socket: impl Into<UnixSocket>) -> Self {
        self.listeners.push((Source::Path(socket.into()), Speaks::Plain));
        self
    }

    /// Serves a socket of the Unix family that already listens. Its file is left as it is, also at the
    /// end.
    pub fn unix_listener(mut self, listener: UnixListener) -> Self {
        self.listeners.push((Source::Unix(listener), Speaks::Plain));
        self
    }

    /// Serves all sockets that the service manager has opened for this process: systemd's socket
    /// activation (sd_listen_fds(3)), TCP and Unix. They keep the options they have (systemd:
    /// `NoDelay=true`, `Backlog=`), and the files of Unix sockets are left.
    ///
    /// `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` are read when the server starts. They count only if
    /// `LISTEN_PID` is this process; then **`LISTEN_PID` and `LISTEN_FDS` are removed from the
    /// environment**, so that no child process takes the descriptors for its own. Start the server before
    /// other threads that read the environment from C, as the standard library asks of everybody who
    /// [changes it](std::env::set_var).
    ///
    /// The process has each socket once: what one server has taken the next does not get, and what no
    /// server asks for is left alone. Do not let another library take them as well.
    ///
    /// Passed sockets that are missing are an error at `start`. For a program that binds by itself when it
    /// is started by hand:
    ///
    /// ```
    /// # use coracle::Server;
    /// let server = match std::env::var_os("LISTEN_FDS") {
    ///     Some(_) => Server::builder().listen_fds(),
    ///     None => Server::builder().bind("127.0.0.1:9001"),
    /// };
    /// ```
    pub fn listen_fds(mut self) -> Self {
        self.listeners.push((Source::Inherited(None), Speaks::Plain));
        self
    }

    /// The same for the sockets of one name (systemd: `FileDescriptorName=`), if the process gets
    /// others, too.
    pub fn listen_fds_named(mut self, name: impl Into<String>) -> Self {
        self.listeners.push((Source::Inherited(Some(name.into())), Speaks::Plain));
        self
    }

    /// Serves the sockets of one name, as with [`listen_fds_named`](Self::listen_fds_named), for clients
    /// that speak TLS.
    #[cfg(feature = "tls")]
    pub fn listen_fds_tls(mut self, name: impl Into<String>) -> Self {
        self.listeners.push((Source::Inherited(Some(name.into())), Speaks::Tls));
        self
    }

    /// Replaces the whole configuration. What it says to [listen](Config::listen) on comes before the
    /// addresses of this builder.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Changes the configuration: `.configure(|config| config.limits.message_bytes = 1 << 20)`.
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Worker threads; without this call one for each core.
    pub fn workers(mut self, workers: usize) -> Self {
        self.config.workers = Some(workers);
        self
    }

    /// Which browser origins may connect; without this call only the server's own.
    pub fn origins(mut self, origins: OriginPolicy) -> Self {
        self.config.origins = origins;
        self
    }

    /// Serves clients whose network lets no WebSocket through as well, by long polling and server-sent events;
    /// without this call they are not. See [fallbacks](crate::docs::fallbacks).
    #[cfg(feature = "fallback")]
    pub fn fallbacks(mut self, fallbacks: Fallbacks) -> Self {
        self.config.fallbacks = Some(fallbacks);
        self
    }

    /// Compresses messages for the clients that offer permessage-deflate; without this call no
    /// message is compressed.
    #[cfg(feature = "deflate")]
    pub fn deflate(mut self, deflate: Deflate) -> Self {
        self.config.deflate = Some(deflate);
        self
    }

    /// Certificates and keys for the listeners that speak TLS. They are read when the server starts.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.config.tls = Some(tls);
        self
    }

    /// How fast each session may read and write; without this call as fast as it can. `rates` is asked
    /// once for each session; see [`Config::rates`].
    ///
    /// ```rust,no_run
    /// use coracle::{BytesPerSecond, Rates, Server, Unlimited};
    ///
    /// # fn main() -> coracle::Result<()> {
    /// Server::builder()
    ///     .bind("127.0.0.1:9001")
    ///     .rates(|_session| Rates::new(Unlimited, BytesPerSecond::new(64 * 1024)))
    ///     .on_message(async |session, message| session.send(message).await)
    ///     .run()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn rates(mut self, rates: impl Fn(&Session) -> Rates + Send + Sync + 'static) -> Self {
        self.config.rates = Some(SessionRates::new(rates));
        self
    }

    /// What is done with publications for sessions that do not keep up; without this call they are
    /// closed with 1013.
    pub fn slow_peer(mut self, policy: SlowPeer) -> Self {
        self.config.slow_peer = policy;
        self
    }

    /// The same for each room by its name, asked when its first member joins.
    ///
    /// ```
    /// use coracle::{Server, SlowPeer};
    ///
    /// let server = Server::builder().room_policy(|room| match room {
    ///     "prices" => SlowPeer::Conflate,
    ///     _ => SlowPeer::Close,
    /// });
    /// ```
    pub fn room_policy(
        mut self,
        policy: impl Fn(&str) -> SlowPeer + Send + Sync + 'static,
    ) -> Self {
        self.config.room_policy = Some(RoomPolicy::new(policy));
        self
    }

    /// What the others in a room are told when somebody comes or goes. `hook` is asked after each join and
    /// each leave, also of a session that has ended, on the thread on which it happens; it must not block.
    ///
    /// ```
    /// use coracle::{PresenceChange, Publication, Server};
    ///
    /// let server = Server::builder().on_presence(|event| {
    ///     let name = event.data.as_deref()?;
    ///     Some(Publication::new(match event.change {
    ///         PresenceChange::Joined => format!("{name} has come"),
    ///         PresenceChange::Left => format!("{name} has gone"),
    ///         _ => format!("{name} is here under this name"),
    ///     }))
    /// });
    /// ```
    pub fn on_presence(
        mut self,
        hook: impl Fn(&PresenceEvent<'_>) -> Option<Publication> + Send + Sync + 'static,
    ) -> Self {
        self.config.presence = Some(PresenceHook::new(hook));
        self
    }

    /// What a peer is told where publications for it were dropped. `hook` is asked when everything before
    /// the gap has been handed on and nothing behind it has; what it returns is sent in its place. It must
    /// not block.
    ///
    /// ```
    /// use coracle::Server;
    ///
    /// let server = Server::builder()
    ///     .on_gap(|_session, gap| Some(format!("{} messages missed", gap.dropped()).into()));
    /// ```
    pub fn on_gap(
        mut self,
        hook: impl Fn(&Session, &Gap) -> Option<Message> + Send + Sync + 'static,
    ) -> Self {
        self.config.gap = Some(GapHook::new(hook));
        self
    }

    /// How many messages and bytes each session takes from its peer per second; without this call as many
    /// as its handler takes. A single session can have [its own](Rates::with_inbound).
    pub fn inbound(mut self, inbound: Inbound) -> Self {
        self.config.inbound = Some(inbound);
        self
    }

    /// Keeps what is published with [`History`](crate::History) there: in
    /// [`Memory`](crate::history::Memory), in `Sqlite` (feature `sqlite`) or in a store of your own. Opened when
    /// the server starts, and closed last when it stops. See [`docs::history`](crate::docs::history).
    ///
    /// ```
    /// use coracle::{Server, history::Memory};
    ///
    /// let server = Server::builder().history(Memory::new());
    /// ```
    pub fn history(mut self, store: impl history::Store) -> Self {
        self.config.history.store = Some(Kept::new(store));
        self
    }

    /// Tells `hook` of each message that was published and is not kept: the disk is full, the database is locked,
    /// the store too slow. On the thread that notices it; it must not block, and cannot publish with history.
    pub fn on_history_error(
        mut self,
        hook: impl Fn(&LostAppend<'_>) + Send + Sync + 'static,
    ) -> Self {
        self.config.history.on_error = Some(HistoryErrorHook::new(hook));
        self
    }

    /// The application's own HTTP endpoints and files, beside the WebSocket on the same listeners; the last call
    /// counts. See [`Routes`] and [HTTP](crate::docs::http).
    ///
    /// Without this call, and without any endpoint of the server's own, requests that are no WebSocket handshake
    /// are answered with 426 or 405.
    pub fn routes(mut self, routes: Routes) -> Self {
        self.config.routes = Some(routes);
        self
    }

    /// Serves the browser's side of this crate, one ES module, at `/coracle.js`; without this call there is
    /// none. See [browser](crate::docs::browser).
    pub fn browser_module(mut self) -> Self {
        self.config.browser_module = true;
        self
    }

    /// Answers `GET /healthz` with 200 for as long as the server lives, and `GET /readyz` with 200 while it takes
    /// further sessions: 503 while it stops, and when there are as many as there may be
    /// ([`Limits::sessions`](crate::config::Limits::sessions)).
    ///
    /// While it stops, new connections are refused, so only who has a connection gets to see that 503.
    pub fn health(mut self) -> Self {
        self.config.health = true;
        self
    }

    /// Shows what the server counts of itself at this path, for example `/metrics`: [metrics](crate::docs::metrics).
    /// Everybody can read it there; [`Routes::metrics`] is for a listener of its own.
    #[cfg(feature = "metrics")]
    pub fn metrics(mut self, path: impl Into<String>) -> Self {
        self.config.metrics = Some(path.into());
        self
    }

    /// Describes the HTTP endpoints at this path, for example `/openapi.json`: an OpenAPI 3.1 document of those of
    /// the server's own that are switched on, and of the application's [`Routes`], with their
    /// [summaries](Routes::summary).
    #[cfg(feature = "json")]
    pub fn openapi(mut self, path: impl Into<String>) -> Self {
        self.config.openapi = Some(path.into());
        self
    }

    /// Listens on this address, like [`bind`](Self::bind), for these routes alone: no WebSocket, no endpoint of
    /// another listener. For what is not meant for everybody, on an address that not everybody reaches.
    pub fn bind_http(mut self, address: impl ToSocketAddrs + fmt::Debug, routes: Routes) -> Self {
        self.sites.push(routes);
        let site = self.sites.len() - 1;
        self.listen_on(address, Speaks::Site(site))
    }

    /// Metrics of the application's own, which [`ServerHandle::metrics`] shows beside the server's. `register`
    /// is called here and now, and may be given several times; names that begin with `coracle_` are the
    /// server's.
    ///
    /// A collector that holds a [`ServerHandle`] would keep its server running.
    ///
    /// ```
    /// use coracle::Server;
    /// use coracle::prometheus_client::metrics::counter::Counter;
    ///
    /// let orders: Counter = Counter::default();
    /// let counted = orders.clone();
    /// let server = Server::builder()
    ///     .register_metrics(|registry| registry.register("shop_orders", "Orders", counted))
    ///     .on_message(async move |_session, _order| {
    ///         orders.inc();
    ///     });
    /// ```
    #[cfg(feature = "metrics")]
    pub fn register_metrics(
        mut self,
        register: impl FnOnce(&mut prometheus_client::registry::Registry),
    ) -> Self {
        register(&mut self.sources.registry);
        self
    }

    /// Replaces all callbacks by one value.
    pub fn handler<N: Handler>(self, handler: N) -> Builder<N> {
        self.map(|_| handler)
    }
}

impl<H> Builder<H> {
    fn map<N>(self, change: impl FnOnce(H) -> N) -> Builder<N> {
        let Self { config, listeners, sites, handler, sources } = self;
        Builder { config, listeners, sites, handler: change(handler), sources }
    }
}

impl<A, O, M, C, E, D> Builder<Closures<A, O, M, C, E, D>> {
    /// Decides about each request before it is answered; see [`Handler::accept`].
    pub fn on_accept<F>(self, accept: F) -> Builder<Closures<Set<F>, O, M, C, E, D>>
    where
        F: AsyncFn(&Request) -> Result<Upgrade, Response> + Send + Sync + 'static,
    {
        self.map(|closures| closures.on_accept(accept))
    }

    /// A session has begun; see [`Handler::open`].
    pub fn on_open<F, R>(self, open: F) -> Builder<Closures<A, Set<F>, M, C, E, D>>
    where
        F: AsyncFn(&Session) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        self.map(|closures| closures.on_open(open))
    }

    /// A whole message has arrived; see [`Handler::message`]. Without this call a message closes
    /// its session with 1008.
    ///
    /// Beside `on_typed` it gets what that has no handler for.
    #[expect(clippy::type_complexity, reason = "which closure stands where")]
    pub fn on_message<F, R>(self, message: F) -> Builder<Closures<A, O, M::With<F>, C, E, D>>
    where
        M: Whole,
        F: AsyncFn(&Session, Message) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        self.map(|closures| closures.on_message(message))
    }

    /// An envelope of this type has arrived, with a `T` in it; may be called for any number of types, before
    /// or after `on_message`. See [`Router::on_typed`] and [typed messages](crate::docs::typed).
    ///
    /// ```rust,no_run
    /// use coracle::{Server, Typed};
    ///
    /// # fn main() -> coracle::Result<()> {
    /// Server::builder()
    ///     .bind("127.0.0.1:9001")
    ///     .on_typed("shout", async |session, message: Typed<String>| {
    ///         session.send(message.payload.to_uppercase()).await
    ///     })
    ///     .run()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Binary messages and envelopes of other types go to `on_message`. Without it an envelope of another type
    /// is [`HandlerError::BadMessage`], and a binary message closes its session with 1008. What is no envelope,
    /// or has a payload that is no `T`, is [`HandlerError::BadMessage`] in any case. Two closures for one type
    /// are an error at [`start`](Self::start).
    ///
    /// It cannot stand beside `on_stream`, because an envelope is read as a whole.
    #[cfg(feature = "json")]
    pub fn on_typed<T, F, R>(
        self,
        type_name: impl Into<String>,
        typed: F,
    ) -> Builder<Closures<A, O, M::Routed, C, E, D>>
    where
        M: Routable,
        T: DeserializeOwned + 'static,
        F: AsyncFn(&Session, Typed<T>) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        self.map(|closures| closures.on_typed(type_name, typed))
    }

    /// A message begins to arrive, and is received part by part; see [`Handler::stream`]. Takes the
    /// place of `on_message`.
    pub fn on_stream<F, R>(self, stream: F) -> Builder<Closures<A, O, Streaming<F>, C, E, D>>
    where
        M: Unrouted,
        F: AsyncFn(&Session, Incoming) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        self.map(|closures| closures.on_stream(stream))
    }

    /// A session has ended; see [`Handler::close`].
    pub fn on_close<F>(self, close: F) -> Builder<Closures<A, O, M, Set<F>, E, D>>
    where
        F: AsyncFn(&Session, &Closed) + Send + Sync + 'static,
    {
        self.map(|closures| closures.on_close(close))
    }

    /// A callback has failed; see [`Handler::error`].
    pub fn on_error<F>(self, error: F) -> Builder<Closures<A, O, M, C, Set<F>, D>>
    where
        F: AsyncFn(&Session, &HandlerError) + Send + Sync + 'static,
    {
        self.map(|closures| closures.on_error(error))
    }

    /// There had been too much for the peer, and now everything has left; see [`Handler::drain`].
    pub fn on_drain<F, R>(self, drain: F) -> Builder<Closures<A, O, M, C, E, Set<F>>>
    where
        F: AsyncFn(&Session) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        self.map(|closures| closures.on_drain(drain))
    }
}

impl<H: Handler> Builder<H> {
    /// Listens, starts the workers, and returns at once. The server runs until it is told to stop
    /// or the last clone of the handle is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] names the setting that cannot be, [`Error::Bind`] the address that cannot
    /// be listened on, `Error::Tls` the certificate or the key that cannot be used, [`Error::History`] why the
    /// store of the history cannot be opened, [`Error::System`] what else the system refused. Nothing is left
    /// running.
    pub fn start(self) -> Result<ServerHandle> {
        let Assembled { crew, duties, addresses } = self.assemble()?;
        crew.start(duties, 0)?;
        Ok(ServerHandle::new(crew, addresses))
    }

    /// Listens; nobody serves yet.
    fn assemble(self) -> Result<Assembled<H>> {
        let workers = check(&self.config, &self.sites)?;
        self.handler.check()?;
        let config = &self.config;
        let problem = config.routes.iter().chain(&self.sites).find_map(Routes::problem);
        if let Some(problem) = problem {
            return Err(Error::Config(problem.into()));
        }
        let mut asked = configured(config);
        asked.extend(self.listeners);
        // The kernel's own bound for a peer that takes nothing comes after ours, which name
        // themselves. Linux counts a closed window as well as a vanished peer.
        let timeouts = &config.timeouts;
        let liveness = timeouts
            .write_stall
            .max(timeouts.ping.unwrap_or_default().saturating_add(timeouts.pong));
        let liveness = liveness.saturating_add(KERNEL_MARGIN);
        #[cfg(feature = "tls")]
        let tls = {
            let needed = asked.iter().any(|(_, speaks)| speaks.needs_tls());
            if needed && config.tls.is_none() {
                return Err(Error::Config(NO_CERTIFICATE.into()));
            }
            let either = asked.iter().any(|(_, speaks)| *speaks == Speaks::Either);
            if let Some(ClientCertificates::Required(_)) = config.tls.as_ref().map(|it| &it.clients)
            {
                if either {
                    return Err(Error::Config(REQUIRED_AND_PLAIN.into()));
                }
            }
            // Before anything listens: whoever cannot serve anybody leaves the port alone.
            config.tls.clone().map(Store::new).transpose()?
        };
        let mut listeners = Vec::new();
        let mut bound = Vec::new();
        for (source, speaks) in asked {
            let probes = speaks.is_frames().then_some(timeouts.ping).flatten();
            source.listen(config.backlog, liveness, probes, &mut bound)?;
            listeners.extend(bound.drain(..).map(|bound| Listening { bound, speaks }));
        }
        let addresses = listeners
            .iter()
            .map(|listening| listening.bound.addr())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| Error::System { what: "cannot read a listener's address", source })?;
        let clock = Clock::kernel();
        // Last: from here on the store has to be closed, which the crew does.
        let book = Book::open(&self.config.history, &clock)?;
        let sources = self.sources;
        #[cfg(feature = "tls")]
        let sources = sources.with_tls(tls.clone());
        let hub = Hub::new(self.config, clock, workers, sources, book);
        for address in &addresses {
            log::info!("listening on {address} with {workers} workers");
        }
        let (crew, duties) = Crew::new(
            hub,
            self.handler,
            listeners,
            self.sites,
            #[cfg(feature = "tls")]
            tls,
            workers,
        );
        Ok(Assembled { crew, duties, addresses })
    }

    /// Serves until SIGINT or SIGTERM, which stop the server gracefully; a second one cuts what is
    /// still open.
    ///
    /// The first worker runs on this thread, so that a server with one worker has no other: one stack
    /// less, and the kernel need not count who uses a file at every system call (some 1 % of an
    /// echo). If a callback blocks this thread, nobody hears the first signal, and the second ends
    /// the process.
    ///
    /// # Errors
    ///
    /// As of [`start`](Self::start); a server without an address, or signals that cannot be listened
    /// to, are errors, too.
    pub fn run(self) -> Result<Report> {
        self.run_with(|_| {})
    }

    /// The same; `ready` is called when the server listens and a signal would stop it.
    ///
    /// The first worker begins to serve when `ready` has returned, because it is this thread that does so: whoever
    /// wants to talk to the server first, or wait for its end, does that on another thread.
    ///
    /// # Panics
    ///
    /// When `ready` does; the server stops then, and its other workers are cut.
    ///
    /// # Errors
    ///
    /// As of [`run`](Self::run). `ready` has been called before only if it is this thread's own worker
    /// that cannot be started.
    pub fn run_with(self, ready: impl FnOnce(&ServerHandle)) -> Result<Report> {
        if self.listeners.is_empty() && self.config.listen.is_empty() {
            return Err(Error::Config("nothing to listen on: call `bind` or `bind_unix`".into()));
        }
        // First: from the second on there is something that has to be ended.
        let interrupts = Interrupts::listen()?;
        let Assembled { crew, mut duties, addresses } = self.assemble()?;
        let own = duties.remove(0);
        crew.start(duties, 1)?;
        let server = ServerHandle::new(Arc::clone(&crew), addresses);
        server.leave_signals_to_worker();
        let unstarted = Unstarted(Some(&crew));
        ready(&server);
        unstarted.starts();
        let mut outcome = Ok(());
        own.work(Some(&interrupts), |begun| outcome = begun);
        if outcome.is_err() {
            server.request_stop();
        }
        // Other workers may still have sessions, which the next signal is to cut.
        let _others = interrupts.hand_on(&crew);
        let report = smol::future::block_on(server.wait());
        outcome.map_err(|source| Error::System { what: "cannot start a worker", source })?;
        Ok(report)
    }
}

impl<H: fmt::Debug> fmt::Debug for Builder<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .field("handler", &self.handler)
            .finish_non_exhaustive()
    }
}

/// A server of which no worker has been started.
struct Assembled<H> {
    crew: Arc<Crew>,
    duties: Vec<Duty<H>>,
    addresses: Vec<ListenAddr>,
}

/// A worker that has still to be started. If it never is, because of a panic, the others need not wait for it.
struct Unstarted<'a>(Option<&'a Crew>);

impl Unstarted<'_> {
    fn starts(mut self) {
        self.0 = None;
    }
}

impl Drop for Unstarted<'_> {
    fn drop(&mut self) {
        if let Some(crew) = self.0 {
            crew.abandon(1);
        }
    }
}

/// Refuses what cannot be; returns the number of workers.
fn check(config: &Config, sites: &[Routes]) -> Result<usize> {
    let timeouts = &config.timeouts;
    let durations = [
        ("timeouts.handshake", Some(timeouts.handshake)),
        ("timeouts.keep_alive", Some(timeouts.keep_alive)),
        ("timeouts.request", Some(timeouts.request)),
        ("timeouts.ping", timeouts.ping),
        ("timeouts.pong", Some(timeouts.pong)),
        ("timeouts.idle", timeouts.idle),
        ("timeouts.write_stall", Some(timeouts.write_stall)),
        ("timeouts.writer", Some(timeouts.writer)),
        ("timeouts.close", Some(timeouts.close)),
        ("timeouts.lifetime", timeouts.lifetime),
        ("timeouts.poll_window", Some(timeouts.poll_window)),
        ("timeouts.poll_absence", Some(timeouts.poll_absence)),
    ];
    for (name, duration) in durations {
        if duration == Some(Duration::ZERO) {
            return Err(Error::Config(format!("{name} is zero: it must be longer than nothing")));
        }
    }
    #[cfg(feature = "tls")]
    if config.tls.as_ref().is_some_and(|tls| tls.watch == Some(Duration::ZERO)) {
        return Err(Error::Config("tls.watch is zero: it must be longer than nothing".into()));
    }
    let limits = &config.limits;
    let numbers = [
        ("limits.fragments", limits.fragments as usize),
        ("limits.head_bytes", limits.head_bytes),
        ("limits.outbox_messages", limits.outbox_messages),
        ("limits.room_members", limits.room_members),
        ("limits.session_rooms", limits.session_rooms),
        ("limits.sessions", limits.sessions.unwrap_or(1)),
        ("limits.sessions_per_address", limits.sessions_per_address.unwrap_or(1)),
        ("limits.handshakes", limits.handshakes.unwrap_or(1)),
        ("limits.http_connections", limits.http_connections.unwrap_or(1)),
        #[cfg(feature = "tls")]
        ("limits.tls_handshakes", limits.tls_handshakes.unwrap_or(1)),
    ];
    for (name, number) in numbers.into_iter().chain(config.history.numbers()) {
        if number == 0 {
            return Err(Error::Config(format!("{name} is 0: it must be at least 1")));
        }
    }
    #[cfg(feature = "fallback")]
    if let Some(invalid) = config.fallbacks.as_ref().and_then(Fallbacks::invalid) {
        return Err(Error::Config(invalid));
    }
    if let Some(invalid) = config.inbound.and_then(|inbound| inbound.invalid()) {
        return Err(Error::Config(invalid));
    }
    #[cfg(feature = "deflate")]
    if let Some(deflate) = &config.deflate {
        let window = Deflate::MIN_WINDOW_BITS..=Deflate::MAX_WINDOW_BITS;
        let settings = [
            ("deflate.level", deflate.level, 0..=9),
            ("deflate.server_window_bits", deflate.server_window_bits, window.clone()),
            ("deflate.client_window_bits", deflate.client_window_bits, window),
        ];
        for (name, value, allowed) in settings {
            if !allowed.contains(&value) {
                let (least, most) = (allowed.start(), allowed.end());
                return Err(Error::Config(format!(
                    "{name} is {value}: it must be between {least} and {most}"
                )));
            }
        }
    }
    if let Some(invalid) = Builtin::invalid(config) {
        return Err(Error::Config(invalid));
    }
    let routes = config.routes.iter().chain(sites);
    let policies = routes.filter_map(|routes| routes.origins.as_ref());
    if let Some(entry) = policies.chain([&config.origins]).find_map(OriginPolicy::invalid_entry) {
        return Err(Error::Config(format!(
            "origins: {entry:?} is no origin: write it like \"https://example.com\" or \
             \"https://*.example.com:8443\""
        )));
    }
    match config.workers {
        Some(0) => Err(Error::Config("workers is 0: it must be at least 1".into())),
        Some(workers) => Ok(workers),
        None => Ok(std::thread::available_parallelism().map_or(1, NonZero::get)),
    }
}
