//! The settings of a client, and how it begins.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ::http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use futures_lite::future;

use super::backoff::{FOREVER, Reconnect};
use super::callbacks::{Callbacks, Each, NoCallbacks};
use super::dial::{Dial, Dialed, Proxy, basic};
use super::dispatch::dispatch;
use super::driver::{Course, drive};
use super::ended::{Disconnected, Ended};
use super::error::ConnectError;
use super::handle::{Client, Handle};
use super::link::Limits;
use super::queue::{Bounds, Queue, WhenFull};
use super::shared::{Connected, Shared};
use super::target::{Target, wrong};
#[cfg(feature = "tls")]
use super::tls::ClientTls;
use crate::message::Message;
use crate::session::{Set, Unset};

/// Headers of the handshake, which are made here.
const OWN: [&str; 11] = [
    "host",
    "upgrade",
    "connection",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
    // It has no body, and nobody between shall wait for one.
    "content-length",
    "transfer-encoding",
    "trailer",
    "expect",
];

/// A server's frame takes as much memory as its head says, up to the bound: there has to be one.
const MESSAGE_BYTES: usize = 1 << 30;

/// Makes a [`Client`].
///
/// Every wait has a deadline and every buffer has a bound, also where nothing is set.
pub struct Builder<H = NoCallbacks> {
    url: String,
    headers: HeaderMap,
    subprotocols: Vec<String>,
    proxy: Option<String>,
    #[cfg(feature = "tls")]
    tls: ClientTls,
    connect_timeout: Duration,
    ping: Option<Duration>,
    pong: Duration,
    write_stall: Duration,
    close: Duration,
    message_bytes: usize,
    queue: Bounds,
    inbox: usize,
    reconnect: Reconnect,
    /// What is wrong with a setting, to be said when it begins.
    wrong: Option<ConnectError>,
    callbacks: H,
}

impl Builder {
    pub(super) fn new(url: String) -> Self {
        Self {
            url,
            headers: HeaderMap::new(),
            subprotocols: Vec::new(),
            proxy: None,
            #[cfg(feature = "tls")]
            tls: ClientTls::default(),
            connect_timeout: Duration::from_secs(10),
            ping: Some(Duration::from_secs(25)),
            pong: Duration::from_secs(10),
            write_stall: Duration::from_secs(10),
            close: Duration::from_secs(5),
            message_bytes: 1024 * 1024,
            queue: Bounds { messages: 1024, bytes: 1024 * 1024, when_full: WhenFull::Wait },
            inbox: 64,
            reconnect: Reconnect::default(),
            wrong: None,
            callbacks: Each::default(),
        }
    }
}

impl<H> Builder<H> {
    fn refuse(&mut self, problem: String) {
        self.wrong.get_or_insert(ConnectError::Config(problem));
    }

    /// Adds a header to the request for the WebSocket.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            (Ok(name), _) if OWN.contains(&name.as_str()) => {
                self.refuse(format!("header {name}: it is the handshake's own"));
            }
            (Ok(name), Ok(value)) => drop(self.headers.append(name, value)),
            (Err(_), _) => self.refuse(format!("header {name:?}: that is no name of a header")),
            (Ok(name), Err(_)) => {
                self.refuse(format!("header {name}: its value has characters that none may have"));
            }
        }
        self
    }

    /// Offers a subprotocol; those that are offered first are preferred. [`Connected::subprotocol`] says which one it
    /// is, if the server knows one of them.
    #[must_use]
    pub fn subprotocol(mut self, name: &str) -> Self {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty()
            || !name.bytes().all(token)
            || self.subprotocols.iter().any(|it| it == name)
        {
            self.refuse(format!(
                "subprotocol {name:?}: it has to be a token, and each is offered once"
            ));
        }
        self.subprotocols.push(name.to_owned());
        self
    }

    /// Connects through this HTTP proxy, `http://[user:password@]host:port`, which is asked for a tunnel by CONNECT. The
    /// server's name is looked up by the proxy. Default: none; the environment is not looked at.
    #[must_use]
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(url.into());
        self
    }

    /// How TLS is used, with `wss://`.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.tls = tls;
        self
    }

    /// From the beginning of an attempt to the WebSocket: the name, every address, the proxy, TLS and the handshake
    /// together. Default: 10 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// After how much silence the server is sent a ping; `None` turns pings off. Default: 25 s.
    #[must_use]
    pub fn ping(mut self, every: impl Into<Option<Duration>>) -> Self {
        self.ping = every.into();
        self
    }

    /// How long the server has for a sign of life after a ping. Default: 10 s.
    #[must_use]
    pub fn pong_timeout(mut self, timeout: Duration) -> Self {
        self.pong = timeout;
        self
    }

    /// How long the server may take no byte of what is being sent. Default: 10 s.
    #[must_use]
    pub fn write_stall(mut self, timeout: Duration) -> Self {
        self.write_stall = timeout;
        self
    }

    /// How long the closing handshake may take. Default: 5 s.
    #[must_use]
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.close = timeout;
        self
    }

    /// How large a message of the server may be: 1 GiB at most, because as much memory is taken as the head of a frame
    /// says that it has. Default: 1 MiB.
    #[must_use]
    pub fn message_bytes(mut self, bytes: usize) -> Self {
        self.message_bytes = bytes;
        self
    }

    /// How many messages, and bytes of them, may wait to be sent or be on their way to the socket, also while there is no
    /// connection. One message of any size may wait alone; and with [`WhenFull::DropOldest`] and [`WhenFull::Conflate`]
    /// beside those that are on their way. Default: 1 024 and 1 MiB.
    #[must_use]
    pub fn queue(mut self, messages: usize, bytes: usize) -> Self {
        (self.queue.messages, self.queue.bytes) = (messages, bytes);
        self
    }

    /// What happens when they do. Default: [`WhenFull::Wait`].
    #[must_use]
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.queue.when_full = when_full;
        self
    }

    /// How many messages may wait for [`Client::recv`] or [`on_message`](Self::on_message) before the client stops
    /// reading. Default: 64.
    #[must_use]
    pub fn inbox(mut self, messages: usize) -> Self {
        self.inbox = messages;
        self
    }

    /// When it comes back, and when it gives up.
    #[must_use]
    pub fn reconnect(mut self, reconnect: Reconnect) -> Self {
        self.reconnect = reconnect;
        self
    }

    /// All callbacks at once: a type of the application's own, in the place of those that were given so far.
    #[must_use]
    pub fn callbacks<T: Callbacks>(self, callbacks: T) -> Builder<T> {
        self.map(|_| callbacks)
    }

    fn map<T>(self, change: impl FnOnce(H) -> T) -> Builder<T> {
        Builder {
            url: self.url,
            headers: self.headers,
            subprotocols: self.subprotocols,
            proxy: self.proxy,
            #[cfg(feature = "tls")]
            tls: self.tls,
            connect_timeout: self.connect_timeout,
            ping: self.ping,
            pong: self.pong,
            write_stall: self.write_stall,
            close: self.close,
            message_bytes: self.message_bytes,
            queue: self.queue,
            inbox: self.inbox,
            reconnect: self.reconnect,
            wrong: self.wrong,
            callbacks: change(self.callbacks),
        }
    }
}

impl<M, D, G> Builder<Each<Unset, M, D, G>> {
    /// Calls this whenever there is a WebSocket, the first time and every other.
    #[must_use]
    pub fn on_connect<F>(self, f: F) -> Builder<Each<Set<F>, M, D, G>>
    where
        F: AsyncFn(&Client, &Connected) + 'static,
    {
        self.map(|Each { message, disconnect, give_up, .. }| Each {
            connect: Set(f),
            message,
            disconnect,
            give_up,
        })
    }
}

impl<C, D, G> Builder<Each<C, Unset, D, G>> {
    /// Calls this with every message, one after the other, in the place of [`Client::recv`].
    #[must_use]
    pub fn on_message<F>(self, f: F) -> Builder<Each<C, Set<F>, D, G>>
    where
        F: AsyncFn(&Client, Message) + 'static,
    {
        self.map(|Each { connect, disconnect, give_up, .. }| Each {
            connect,
            message: Set(f),
            disconnect,
            give_up,
        })
    }
}

impl<C, M, G> Builder<Each<C, M, Unset, G>> {
    /// Calls this when a WebSocket has ended, once for each that was told of.
    #[must_use]
    pub fn on_disconnect<F>(self, f: F) -> Builder<Each<C, M, Set<F>, G>>
    where
        F: AsyncFn(&Client, &Disconnected) + 'static,
    {
        self.map(|Each { connect, message, give_up, .. }| Each {
            connect,
            message,
            disconnect: Set(f),
            give_up,
        })
    }
}

impl<C, M, D> Builder<Each<C, M, D, Unset>> {
    /// Calls this when the client does not come back.
    #[must_use]
    pub fn on_give_up<F>(self, f: F) -> Builder<Each<C, M, D, Set<F>>>
    where
        F: AsyncFn(&Client, &Ended) + 'static,
    {
        self.map(|Each { connect, message, disconnect, .. }| Each {
            connect,
            message,
            disconnect,
            give_up: Set(f),
        })
    }
}

impl<H: Callbacks> Builder<H> {
    /// Connects once, on the executor of the caller, and then lives on a thread of its own (`coracle-client`), which
    /// sleeps while nothing happens. It comes back when the connection is lost.
    ///
    /// # Errors
    ///
    /// Why there is no WebSocket; nothing is tried again, and no thread is left.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the attempt up.
    pub async fn connect(self) -> Result<Client, ConnectError>
    where
        H: Send,
    {
        let (client, mut driver) = self.build()?;
        let dialed = Box::pin(driver.course.dial.run()).await?;
        driver.shared.opened(&dialed.connected);
        driver.first = Some(dialed);
        driver.spawn()?;
        Ok(client)
    }

    /// Begins to connect on a thread of its own (`coracle-client`), and comes back if that fails as well.
    ///
    /// # Errors
    ///
    /// If a setting cannot be, or there can be no thread.
    pub fn start(self) -> Result<Client, ConnectError>
    where
        H: Send,
    {
        let (client, driver) = self.build()?;
        driver.spawn()?;
        Ok(client)
    }

    /// A client, and the future that connects it and keeps it connected: for whoever has an executor that it may run
    /// on. Any that runs futures will do: the sockets and timers are smol's, which look after themselves.
    ///
    /// # Errors
    ///
    /// If a setting cannot be.
    pub fn build(self) -> Result<(Client, Driver<H>), ConnectError> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        check(&self)?;
        let target = Target::parse(&self.url)?;
        let mut headers = self.headers;
        if let Some(credentials) = &target.credentials {
            let value = basic(credentials).map_err(|problem| wrong(&self.url, problem))?;
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| wrong(&self.url, "its credentials cannot be put into a header"))?;
            value.set_sensitive(true);
            headers.entry(AUTHORIZATION).or_insert(value);
        }
        #[cfg(feature = "tls")]
        let tls = target.tls.then(|| self.tls.connector()).transpose()?;
        let target = Arc::new(Mutex::new(Arc::new(target)));
        let dial = Dial {
            target: Arc::clone(&target),
            headers,
            subprotocols: self.subprotocols,
            proxy: self.proxy.as_deref().map(Proxy::parse).transpose()?,
            timeout: self.connect_timeout,
            #[cfg(feature = "tls")]
            tls,
        };
        let limits = Limits {
            ping: self.ping.map(|it| it.min(FOREVER)),
            pong: self.pong.min(FOREVER),
            write_stall: self.write_stall.min(FOREVER),
            close: self.close.min(FOREVER),
            message_bytes: self.message_bytes,
        };
        let queue = Queue::new(self.queue);
        let shared = Arc::new(Shared::new(queue, self.inbox, H::ANY, H::MESSAGES));
        let client = Client(Arc::new(Handle { shared: Arc::clone(&shared), target }));
        let course = Course { dial, limits, reconnect: self.reconnect };
        let handle = Arc::downgrade(&client.0);
        let finish = Finish(Arc::clone(&shared));
        let callbacks = self.callbacks;
        Ok((client, Driver { shared, handle, course, callbacks, first: None, finish }))
    }
}

fn check<H>(builder: &Builder<H>) -> Result<(), ConnectError> {
    let durations = [
        ("connect_timeout", Some(builder.connect_timeout)),
        ("ping", builder.ping),
        ("pong_timeout", Some(builder.pong)),
        ("write_stall", Some(builder.write_stall)),
        ("close_timeout", Some(builder.close)),
    ];
    for (name, duration) in durations {
        if duration == Some(Duration::ZERO) {
            let problem = format!("{name} is zero: it must be longer than nothing");
            return Err(ConnectError::Config(problem));
        }
    }
    let numbers = [
        ("message_bytes", builder.message_bytes),
        ("queue messages", builder.queue.messages),
        ("inbox", builder.inbox),
    ];
    for (name, number) in numbers {
        if number == 0 {
            return Err(ConnectError::Config(format!("{name} is 0: it must be at least 1")));
        }
    }
    if builder.message_bytes > MESSAGE_BYTES {
        let asked = builder.message_bytes;
        return Err(ConnectError::Config(format!(
            "message_bytes is {asked}: it must be at most {MESSAGE_BYTES}"
        )));
    }
    match builder.reconnect.invalid() {
        Some(problem) => Err(ConnectError::Config(problem)),
        None => Ok(()),
    }
}

/// Connects a client and keeps it connected, for as long as it is polled: made by [`Builder::build`].
///
/// Dropping it ends the client at once, as [`Client::abort`] does.
#[must_use = "nothing happens unless it is run"]
pub struct Driver<H> {
    shared: Arc<Shared>,
    handle: std::sync::Weak<Handle>,
    course: Course,
    callbacks: H,
    first: Option<Dialed>,
    /// However it ends, nobody waits for it any longer.
    finish: Finish,
}

impl<H: Callbacks> Driver<H> {
    /// Runs until the client has ended. It is `Send` where the futures of the callbacks are.
    pub async fn run(self) {
        let Self { shared, handle, course, callbacks, first, finish } = self;
        let serve = drive(Arc::clone(&shared), course, first);
        future::zip(serve, dispatch(&shared, &handle, &callbacks)).await;
        drop(finish);
    }

    fn spawn(self) -> Result<(), ConnectError>
    where
        H: Send,
    {
        thread::Builder::new()
            .name("coracle-client".into())
            .spawn(move || smol::block_on(self.run()))
            .map(drop)
            .map_err(|error| {
                ConnectError::Config(format!("cannot start the client's thread: {error}"))
            })
    }
}

impl<H: Callbacks> IntoFuture for Driver<H> {
    type Output = ();
    type IntoFuture = Pin<Box<dyn Future<Output = ()>>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<H> fmt::Debug for Builder<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may have a password in it, and so may the headers.
        f.debug_struct("Builder").field("reconnect", &self.reconnect).finish_non_exhaustive()
    }
}

impl<H> fmt::Debug for Driver<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

struct Finish(Arc<Shared>);

impl Drop for Finish {
    fn drop(&mut self) {
        // Where nothing else has ended it: the driver was dropped, or `give_up_if` panicked.
        let panicking = thread::panicking();
        self.0.finish(if panicking { Ended::Panicked } else { Ended::Requested(None) });
    }
}
