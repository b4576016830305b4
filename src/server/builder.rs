//! How a server is put together.

use std::fmt;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use super::crew::{Crew, Duty};
use super::handle::{Report, ServerHandle};
use super::signals::Interrupts;
use crate::config::Config;
#[cfg(feature = "deflate")]
use crate::config::Deflate;
use crate::error::{Error, Result};
use crate::executor::Clock;
use crate::http::{OriginPolicy, Request, Response, Upgrade};
use crate::hub::Hub;
use crate::message::Message;
use crate::session::{
    Closed, Closures, Handler, HandlerError, Incoming, IntoOutcome, Rates, Session, SessionRates,
    Set, Streaming,
};
use crate::transport::Listener;

/// How much later than our own timers the kernel gives up a peer.
const KERNEL_MARGIN: Duration = Duration::from_secs(5);

/// The entry to this crate: [`Server::builder`].
#[derive(Debug)]
pub struct Server(());

impl Server {
    /// A server with the default [`Config`], no address and no callbacks.
    pub fn builder() -> Builder {
        Builder { config: Config::default(), listeners: Vec::new(), handler: Closures::default() }
    }
}

/// Puts a server together; [`start`](Builder::start) or [`run`](Builder::run) sets it going.
///
/// The application is either one [`Handler`] or closures, one for each callback that matters.
#[must_use = "a builder does nothing until `start` or `run`"]
pub struct Builder<H = Closures> {
    config: Config,
    listeners: Vec<Source>,
    handler: H,
}

enum Source {
    /// What was asked for, and what that means.
    Address(String, std::io::Result<Vec<SocketAddr>>),
    Listener(TcpListener),
}

impl<H> Builder<H> {
    /// Listens on this address; may be called several times. Port 0 takes any free port, and
    /// [`ServerHandle::local_addr`] tells which.
    ///
    /// A name is resolved here and now, which may block, and the first of its addresses that can be
    /// listened on is used.
    pub fn bind(mut self, address: impl ToSocketAddrs + fmt::Debug) -> Self {
        let addresses = address.to_socket_addrs().map(Iterator::collect);
        let name = format!("{address:?}").trim_matches('"').to_owned();
        self.listeners.push(Source::Address(name, addresses));
        self
    }

    /// Serves a TCP socket that already listens, for example one that was inherited. Its options
    /// are left as they are; `TCP_NODELAY` should be set on it.
    pub fn listener(mut self, listener: TcpListener) -> Self {
        self.listeners.push(Source::Listener(listener));
        self
    }

    /// Replaces the whole configuration.
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

    /// Compresses messages for the clients that offer permessage-deflate; without this call no
    /// message is compressed.
    #[cfg(feature = "deflate")]
    pub fn deflate(mut self, deflate: Deflate) -> Self {
        self.config.deflate = Some(deflate);
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

    /// Replaces all callbacks by one value.
    pub fn handler<N: Handler>(self, handler: N) -> Builder<N> {
        Builder { config: self.config, listeners: self.listeners, handler }
    }
}

impl<A, O, M, C, E> Builder<Closures<A, O, M, C, E>> {
    /// Decides about each request before it is answered; see [`Handler::accept`].
    pub fn on_accept<F>(self, accept: F) -> Builder<Closures<Set<F>, O, M, C, E>>
    where
        F: AsyncFn(&Request) -> Result<Upgrade, Response> + Send + Sync + 'static,
    {
        let Closures { open, message, close, error, .. } = self.handler;
        Builder {
            config: self.config,
            listeners: self.listeners,
            handler: Closures { accept: Set(accept), open, message, close, error },
        }
    }

    /// A session has begun; see [`Handler::open`].
    pub fn on_open<F, R>(self, open: F) -> Builder<Closures<A, Set<F>, M, C, E>>
    where
        F: AsyncFn(&Session) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        let Closures { accept, message, close, error, .. } = self.handler;
        Builder {
            config: self.config,
            listeners: self.listeners,
            handler: Closures { accept, open: Set(open), message, close, error },
        }
    }

    /// A whole message has arrived; see [`Handler::message`]. Without this call a message closes
    /// its session with 1008.
    pub fn on_message<F, R>(self, message: F) -> Builder<Closures<A, O, Set<F>, C, E>>
    where
        F: AsyncFn(&Session, Message) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        let Closures { accept, open, close, error, .. } = self.handler;
        Builder {
            config: self.config,
            listeners: self.listeners,
            handler: Closures { accept, open, message: Set(message), close, error },
        }
    }

    /// A message begins to arrive, and is received part by part; see [`Handler::stream`]. Takes the
    /// place of `on_message`.
    pub fn on_stream<F, R>(self, stream: F) -> Builder<Closures<A, O, Streaming<F>, C, E>>
    where
        F: AsyncFn(&Session, Incoming) -> R + Send + Sync + 'static,
        R: IntoOutcome,
    {
        let Closures { accept, open, close, error, .. } = self.handler;
        Builder {
            config: self.config,
            listeners: self.listeners,
            handler: Closures { accept, open, message: Streaming(stream), close, error },
        }
    }

    /// A session has ended; see [`Handler::close`].
    pub fn on_close<F>(self, close: F) -> Builder<Closures<A, O, M, Set<F>, E>>
    where
        F: AsyncFn(&Session, &Closed) + Send + Sync + 'static,
    {
        let Closures { accept, open, message, error, .. } = self.handler;
        Builder {
            config: self.config,
            listeners: self.listeners,
            handler: Closures { accept, open, message, close: Set(close), error },
        }
    }

    /// A callback has failed; see [`Handler::error`].
    pub fn on_error<F>(self, error: F) -> Builder<Closures<A, O, M, C, Set<F>>>
    where
        F: AsyncFn(&Session, &HandlerError) + Send + Sync + 'static,
    {
        let Closures { accept, open, message, close, .. } = self.handler;
        Builder {
            config: self.config,
            listeners: self.listeners,
            handler: Closures { accept, open, message, close, error: Set(error) },
        }
    }
}

impl<H: Handler> Builder<H> {
    /// Listens, starts the workers, and returns at once. The server runs until it is told to stop
    /// or the last clone of the handle is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] names the setting that cannot be, [`Error::Bind`] the address that cannot
    /// be listened on, [`Error::System`] what else the system refused. Nothing is left running.
    pub fn start(self) -> Result<ServerHandle> {
        let Assembled { crew, duties, addresses } = self.assemble()?;
        crew.start(duties, 0)?;
        Ok(ServerHandle::new(crew, addresses))
    }

    /// Listens; nobody serves yet.
    fn assemble(self) -> Result<Assembled<H>> {
        let workers = check(&self.config)?;
        let config = &self.config;
        // The kernel's own bound for a peer that takes nothing comes after ours, which name
        // themselves. Linux counts a closed window as well as a vanished peer.
        let timeouts = &config.timeouts;
        let liveness = timeouts
            .write_stall
            .max(timeouts.ping.unwrap_or_default().saturating_add(timeouts.pong));
        let liveness = liveness.saturating_add(KERNEL_MARGIN);
        let mut listeners = Vec::new();
        for source in self.listeners {
            listeners.push(listen(source, config.backlog, liveness)?);
        }
        let addresses =
            listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>().map_err(
                |source| Error::System { what: "cannot read a listener's address", source },
            )?;
        let hub = Hub::new(self.config, Clock::kernel());
        for address in &addresses {
            log::info!("listening on {address} with {workers} workers");
        }
        let (crew, duties) = Crew::new(hub, self.handler, listeners, workers);
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
    /// # Errors
    ///
    /// As of [`run`](Self::run). `ready` has been called before only if it is this thread's own worker
    /// that cannot be started.
    pub fn run_with(self, ready: impl FnOnce(&ServerHandle)) -> Result<Report> {
        if self.listeners.is_empty() {
            return Err(Error::Config("no address to listen on: call `bind`".into()));
        }
        let Assembled { crew, mut duties, addresses } = self.assemble()?;
        let interrupts = Interrupts::listen()?;
        let own = duties.remove(0);
        crew.start(duties, 1)?;
        let server = ServerHandle::new(Arc::clone(&crew), addresses);
        server.leave_signals_to_worker();
        ready(&server);
        let mut outcome = Ok(());
        own.work(Some(interrupts), |begun| outcome = begun);
        if outcome.is_err() {
            server.request_stop();
        }
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

fn listen(source: Source, backlog: u32, liveness: Duration) -> Result<TcpListener> {
    let (name, addresses) = match source {
        Source::Listener(listener) => {
            let what = "cannot make a listener non-blocking";
            listener.set_nonblocking(true).map_err(|source| Error::System { what, source })?;
            return Ok(listener);
        }
        Source::Address(name, addresses) => (name, addresses),
    };
    let addresses = addresses.map_err(|source| Error::Bind { address: name.clone(), source })?;
    let mut failed = None;
    for address in addresses {
        match Listener::bind(address, backlog, liveness) {
            Ok(listener) => return Ok(listener),
            Err(source) => failed = Some(Error::bind(address, source)),
        }
    }
    Err(failed.unwrap_or_else(|| Error::Config(format!("{name:?} has no address"))))
}

/// A server of which no worker has been started.
struct Assembled<H> {
    crew: Arc<Crew>,
    duties: Vec<Duty<H>>,
    addresses: Vec<SocketAddr>,
}

/// Refuses what cannot be; returns the number of workers.
fn check(config: &Config) -> Result<usize> {
    let timeouts = &config.timeouts;
    let durations = [
        ("timeouts.handshake", Some(timeouts.handshake)),
        ("timeouts.ping", timeouts.ping),
        ("timeouts.pong", Some(timeouts.pong)),
        ("timeouts.idle", timeouts.idle),
        ("timeouts.write_stall", Some(timeouts.write_stall)),
        ("timeouts.writer", Some(timeouts.writer)),
        ("timeouts.close", Some(timeouts.close)),
        ("timeouts.lifetime", timeouts.lifetime),
    ];
    for (name, duration) in durations {
        if duration == Some(Duration::ZERO) {
            return Err(Error::Config(format!("{name} is zero: it must be longer than nothing")));
        }
    }
    let limits = &config.limits;
    let numbers = [
        ("limits.fragments", limits.fragments as usize),
        ("limits.head_bytes", limits.head_bytes),
        ("limits.outbox_messages", limits.outbox_messages),
        ("limits.sessions", limits.sessions.unwrap_or(1)),
        ("limits.sessions_per_address", limits.sessions_per_address.unwrap_or(1)),
        ("limits.handshakes", limits.handshakes.unwrap_or(1)),
    ];
    for (name, number) in numbers {
        if number == 0 {
            return Err(Error::Config(format!("{name} is 0: it must be at least 1")));
        }
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
    if let Some(entry) = config.origins.invalid_entry() {
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
