//! The waiting part of the front door: reads one request head under its deadlines, asks the
//! application, answers.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use ::http::{Method, StatusCode};
use futures_lite::{FutureExt, future};

use super::Site;
use super::extensions;
use super::forwarded;
use super::handover::Handed;
use super::head::HeadScanner;
use super::refusal::Refusal;
use super::request::Request;
use super::response::{self, Response};
use super::upgrade;
use crate::executor::{Size, Time, Worker, panic_text};
#[cfg(feature = "fallback")]
use crate::fallback::Host;
use crate::hub::{Address, Full, Handshake, HttpPlace, Hub, Membership, Place, Profile};
use crate::message::CloseCode;
use crate::metrics::Rejection;
use crate::session::Handler;
use crate::transport::{ClientName, Peer, Transport, proxy};
use crate::ws::{CloseFrame, Header, Opcode, close_payload};

/// Headers of one request.
const MAX_HEADERS: usize = 64;

/// How long a head may take before its rate is looked at: the time of one lost packet and its
/// second transmission on a bad mobile line.
const HEAD_GRACE: Duration = Duration::from_secs(2);

/// How long a refused client may take to read why. Not configurable: it costs a refused client at
/// most this, and a shorter one would lose answers on slow lines.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes of a refused client that are read and thrown away, so that closing does not reset the
/// connection before the answer was read.
const LINGER_BYTES: usize = 64 * 1024;

/// A client that has got its 101.
pub(crate) struct Admitted {
    pub(crate) membership: Membership,
    /// What came after the head.
    pub(crate) input: Vec<u8>,
}

/// What has been found out about a connection before its request.
pub(crate) struct Approach {
    /// When the handshake must be over.
    pub(crate) deadline: Time,
    /// What has been read of the request.
    pub(crate) received: Vec<u8>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<crate::tls::TlsInfo>,
}

impl Approach {
    pub(crate) fn new(deadline: Time) -> Self {
        Self {
            deadline,
            received: Vec::new(),
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

/// What the front door needs to know.
pub(crate) struct Door<'a, H> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) hub: &'a Arc<Hub>,
    pub(crate) handler: &'a Arc<H>,
    pub(crate) peer: Peer,
    /// Who has sessions live here that have no connection of their own.
    #[cfg(feature = "fallback")]
    pub(crate) host: &'a dyn Host,
    /// The only routes of its listener, where there is no WebSocket.
    pub(super) site: Option<&'a Site>,
    /// Who has connected, as far as it is known by now: the peer, or for whom it has.
    pub(super) nearest: Cell<Peer>,
    client: Cell<Option<IpAddr>>,
    /// The request was a HEAD: its answer has no body.
    pub(super) head_only: Cell<bool>,
    /// The 101 has begun to leave.
    answering: Cell<bool>,
    /// When its handshake began: it may have been for something else before.
    pub(crate) began: Cell<Time>,
    /// Among the connections with ordinary requests.
    pub(super) place: RefCell<Option<HttpPlace>>,
    /// It has given its place back for as long as a session answers.
    pub(super) parked: Cell<bool>,
}

/// What has become of a connection's first request.
enum First {
    Admitted(Admitted),
    /// It is none for a WebSocket; what came behind it.
    Ordinary(Box<Request>, Vec<u8>),
}

/// Why there is no session.
pub(super) enum Outcome {
    Refused(Response),
    /// The peer has gone, or the socket failed.
    Gone(io::Error),
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.into_response())
    }
}

impl<'a, H: Handler> Door<'a, H> {
    pub(crate) fn new(
        worker: &'a Rc<Worker>,
        hub: &'a Arc<Hub>,
        handler: &'a Arc<H>,
        peer: Peer,
        site: Option<&'a Site>,
        #[cfg(feature = "fallback")] host: &'a dyn Host,
    ) -> Self {
        Self {
            worker,
            hub,
            handler,
            peer,
            #[cfg(feature = "fallback")]
            host,
            site,
            nearest: Cell::new(peer),
            client: Cell::new(peer.ip()),
            head_only: Cell::default(),
            answering: Cell::default(),
            began: Cell::new(worker.clock().precise()),
            place: RefCell::default(),
            parked: Cell::default(),
        }
    }

    /// What a proxy has to say of the client before anything else comes (the PROXY protocol). Gives back
    /// what came behind it; `None`: there is no session, and the transport can be dropped.
    ///
    /// `under_way` is counted for the client from then on. What is wrong is answered if an answer can be
    /// `read`: whoever expects TLS, or frames, could not.
    pub(crate) async fn proxied(
        &self,
        transport: &mut Transport,
        under_way: &mut Handshake,
        deadline: Time,
        read: bool,
    ) -> Option<Vec<u8>> {
        let step = self.read_proxy_header(transport, under_way, deadline);
        match self.answer_in_time(deadline, step).await {
            Err(Outcome::Refused(response)) if !read => {
                self.hub.ledger.refused(&response);
                log::debug!(
                    "{}: closed without an answer: {}",
                    self.name(),
                    String::from_utf8_lossy(response.body()).trim_end()
                );
                None
            }
            outcome => self.conclude(transport, outcome).await,
        }
    }

    /// Receives requests and answers them, until one of them is a WebSocket handshake, which the first mostly
    /// is. `None`: there is no session, and the transport can be dropped.
    ///
    /// A place for a session is taken before the application is asked.
    pub(crate) async fn admit(
        &self,
        transport: &mut Transport,
        approach: Approach,
        under_way: Handshake,
    ) -> Option<Admitted> {
        let deadline = approach.deadline;
        let outcome = self.answer_in_time(deadline, self.first(transport, approach)).await;
        match self.conclude(transport, outcome).await? {
            First::Admitted(admitted) => Some(admitted),
            First::Ordinary(request, input) => {
                Box::pin(self.converse(transport, *request, input, under_way)).await
            }
        }
    }

    /// A step of the handshake, until its deadline, or until the server stops; and what it comes to then.
    async fn in_time<T, E>(
        &self,
        deadline: Time,
        step: impl Future<Output = Result<T, E>>,
        late: impl FnOnce() -> E,
        stopping: impl FnOnce() -> E,
    ) -> Result<T, E> {
        let late = async {
            self.worker.sleep_until(deadline).await;
            Err(late())
        };
        let stopping = async {
            self.stopping().await;
            Err(stopping())
        };
        future::or(step, future::or(late, stopping)).await
    }

    /// The same for a step after which the client can be answered.
    pub(super) async fn answer_in_time<T>(
        &self,
        deadline: Time,
        step: impl Future<Output = Result<T, Outcome>>,
    ) -> Result<T, Outcome> {
        let late = || {
            Refusal::request_timeout("the handshake took too long: send the whole request at once")
                .into()
        };
        let stopping = || {
            self.hub.ledger.rejected(Rejection::Stopping);
            Refusal::unavailable("the server is stopping").into()
        };
        self.in_time(deadline, step, late, stopping).await
    }

    /// The same for a step after which it cannot: it is TLS's.
    #[cfg(feature = "tls")]
    pub(crate) async fn tls_in_time<T>(
        &self,
        deadline: Time,
        step: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        let stopping = || io::Error::other("the server is stopping");
        self.in_time(deadline, step, || io::ErrorKind::TimedOut.into(), stopping).await
    }

    /// Tells the client what has become of it, if that is no session.
    pub(super) async fn conclude<T>(
        &self,
        transport: &mut Transport,
        outcome: Result<T, Outcome>,
    ) -> Option<T> {
        match outcome {
            Ok(it) => Some(it),
            Err(Outcome::Gone(error)) => {
                log::debug!("{}: gone before the handshake was complete: {error}", self.name());
                self.hub.ledger.rejected(Rejection::Gone);
                None
            }
            Err(Outcome::Refused(response)) if self.answering.get() => {
                self.hub.ledger.refused(&response);
                // A second answer would be read as the rest of the first.
                log::debug!("{}: the answer was not taken in time", self.name());
                None
            }
            Err(Outcome::Refused(response)) => {
                self.refuse(transport, &response).await;
                None
            }
        }
    }

    /// Takes over a connection that has got its 101 already. `None`: there is no session, and the client
    /// has been told so by a close frame, the only answer that is left.
    pub(crate) async fn take_over(
        &self,
        transport: &mut Transport,
        handed: Handed,
    ) -> Option<Admitted> {
        self.client.set(handed.client);
        match self.place() {
            Ok(place) => {
                let Handed { target, client, subprotocol, data, read_ahead } = handed;
                let profile = Profile::new(self.peer, client, &target, subprotocol, data);
                let membership =
                    self.hub.open(profile, None, place, self.worker.index(), self.worker.now());
                Some(Admitted { membership, input: read_ahead })
            }
            Err((code, reason)) => {
                log::debug!("{}: an upgraded connection is closed: {reason}", self.name());
                let payload = close_payload(&CloseFrame::new(code, reason));
                let mut frame = Vec::new();
                Header::new(Opcode::Close, payload.len()).append_to(&mut frame);
                frame.extend_from_slice(&payload);
                self.farewell(transport, &frame).await;
                None
            }
        }
    }

    /// Lets a client in that speaks length-prefixed frames: nothing comes before them that could be looked
    /// at. `None`: there is no session, and the client has been told so by the end of the stream.
    pub(crate) async fn admit_frames(
        &self,
        transport: &mut Transport,
        approach: Approach,
    ) -> Option<Admitted> {
        match self.place() {
            Ok(place) => {
                let profile = Profile::new(self.peer, self.client.get(), "/", None, None);
                let membership =
                    self.hub.open_frames(profile, place, self.worker.index(), self.worker.now());
                Some(Admitted { membership, input: approach.received })
            }
            Err((_, reason)) => {
                log::debug!("{}: a connection for frames is closed: {reason}", self.name());
                self.farewell(transport, &[]).await;
                None
            }
        }
    }

    /// A place for a session of which nobody has to be asked; or what a close frame would say, if there is
    /// none.
    fn place(&self) -> Result<Place, (CloseCode, &'static str)> {
        if self.hub.shutdown.is_stopping() {
            self.hub.ledger.rejected(Rejection::Stopping);
            return Err((CloseCode::GOING_AWAY, "the server is stopping"));
        }
        let place = self.hub.limits.session(self.address());
        // Try again later (1013), as a 503 or a 429 would say.
        place.map_err(|full| (CloseCode::TRY_AGAIN_LATER, full_text(full)))
    }

    /// The same for who can be answered.
    pub(crate) fn session_place(&self) -> Result<Place, Refusal> {
        self.hub.limits.session(self.address()).map_err(full)
    }

    /// Ready when the server stops. The worker wakes every connection then.
    async fn stopping(&self) {
        poll_fn(|_| if self.hub.shutdown.is_stopping() { Poll::Ready(()) } else { Poll::Pending })
            .await;
    }

    async fn first(&self, transport: &mut Transport, approach: Approach) -> Result<First, Outcome> {
        let (head, input) = self.read_head(transport, approach.received, approach.deadline).await?;
        let request = self.read_request(
            head,
            #[cfg(feature = "tls")]
            approach.tls,
        )?;
        if self.is_ordinary(&request) {
            return Ok(First::Ordinary(Box::new(request), input));
        }
        self.upgrade(transport, &request, input).await.map(First::Admitted)
    }

    /// What a head says, and whom it comes from.
    pub(super) fn read_request(
        &self,
        head: Vec<u8>,
        #[cfg(feature = "tls")] tls: Option<crate::tls::TlsInfo>,
    ) -> Result<Request, Refusal> {
        self.head_only.set(false);
        let mut request = Request::parse(head, self.peer, MAX_HEADERS)?;
        request.set_hub(self.hub);
        #[cfg(feature = "tls")]
        request.set_tls(tls);
        let proxies = &self.hub.config.proxies;
        if !proxies.trusted.is_empty() {
            let lines = request.header_all(forwarded::name(proxies.header));
            self.client.set(forwarded::client_ip(self.nearest.get(), lines, proxies));
        }
        request.set_client_ip(self.client.get());
        self.head_only.set(request.method() == Method::HEAD);
        Ok(request)
    }

    /// Answers a WebSocket handshake, or what is taken for a broken one.
    pub(super) async fn upgrade(
        &self,
        transport: &mut Transport,
        request: &Request,
        input: Vec<u8>,
    ) -> Result<Admitted, Outcome> {
        self.hub.config.origins.check(request)?;
        let offer = upgrade::check(request)?;
        let extensions = extensions::negotiate(request, &self.hub.config)?;
        let place = self.session_place()?;
        // Called inside of the guard: a panic may come before there is a future.
        let accept = async { self.handler.accept(request).await };
        let upgrade = self.guarded("the accept hook", accept).await?.map_err(Outcome::Refused)?;
        let mut answer = self.worker.pool().take(Size::default());
        if let Err(refusal) = upgrade::accept(&offer, request, &upgrade, &extensions, &mut answer) {
            log::error!("{}: {refusal}", self.name());
            return Err(refusal.into());
        }
        // Before the client can know of it: whoever has seen the 101 finds the session.
        let profile = Profile::new(
            self.peer,
            self.client.get(),
            request.target(),
            upgrade.subprotocol,
            upgrade.data,
        );
        if let (Some(kept), Some(found)) = (profile.pattern(), request.pattern().get()) {
            kept.get_or_init(|| Arc::clone(found));
        }
        let membership = self.hub.open(
            profile,
            extensions.deflate,
            place,
            self.worker.index(),
            self.worker.now(),
        );
        self.answering.set(true);
        write_all(transport, &answer).await.map_err(Outcome::Gone)?;
        self.hub.ledger.answered(StatusCode::SWITCHING_PROTOCOLS);
        self.worker.pool().give(answer);
        Ok(Admitted { membership, input })
    }

    /// What the application says; its panic ends the request and nothing else.
    pub(crate) async fn guarded<T>(
        &self,
        who: &str,
        hook: impl Future<Output = T>,
    ) -> Result<T, Refusal> {
        AssertUnwindSafe(hook).catch_unwind().await.map_err(|panic| {
            self.hub.endings.panicked();
            log::error!("{}: {who} panicked: {}", self.name(), panic_text(&*panic));
            Refusal::internal(format!("{who} panicked"))
        })
    }

    /// Whom the session is counted for.
    pub(crate) fn address(&self) -> Option<Address> {
        self.client.get().map(Address::of_ip).or_else(|| Address::of(self.peer))
    }

    /// The header of the PROXY protocol, which the peer has to begin with; gives back what came behind
    /// it.
    async fn read_proxy_header(
        &self,
        transport: &mut Transport,
        under_way: &mut Handshake,
        deadline: Time,
    ) -> Result<Vec<u8>, Outcome> {
        // Before the first byte only the whole handshake's deadline counts, as for the head.
        let mut slowest = deadline;
        let mut received = Vec::new();
        loop {
            self.read(transport, &mut received, slowest).await?;
            if slowest == deadline {
                slowest = deadline.min(self.worker.now() + HEAD_GRACE);
            }
            match proxy::parse(&received) {
                Ok(None) => {}
                Ok(Some(proxy::Header { len, client })) => {
                    received.drain(..len);
                    if let Some(client) = client {
                        self.nearest.set(Peer::tcp(client));
                        self.client.set(Some(client.ip()));
                        if !under_way.attribute(Address::of_ip(client.ip())) {
                            return Err(Refusal::unavailable(
                                "too many handshakes of this address under way",
                            )
                            .into());
                        }
                    }
                    return Ok(received);
                }
                Err(proxy::Invalid::Missing) if self.hub.config.proxies.proxy_protocol_optional => {
                    return Ok(received);
                }
                Err(proxy::Invalid::Missing) => {
                    return Err(Refusal::bad_request(
                        "connections from this address must begin with a header of the PROXY \
                         protocol: let the proxy send it (HAProxy: send-proxy-v2, nginx: \
                         proxy_protocol on)",
                    )
                    .into());
                }
                Err(proxy::Invalid::Malformed(why)) => {
                    return Err(Refusal::bad_request(format!(
                        "the header of the PROXY protocol is malformed: {why}"
                    ))
                    .into());
                }
            }
        }
    }

    /// The head with its blank line, and what came after it. Something may have been received already.
    async fn read_head(
        &self,
        transport: &mut Transport,
        mut received: Vec<u8>,
        deadline: Time,
    ) -> Result<(Vec<u8>, Vec<u8>), Outcome> {
        let limits = &self.hub.config.limits;
        let mut scanner = HeadScanner::default();
        // Before the first byte only the whole handshake's deadline counts: browsers open
        // connections in advance.
        let mut slowest = deadline;
        let mut begun = None;
        let mut read = received.is_empty();
        loop {
            if std::mem::replace(&mut read, true) {
                self.read(transport, &mut received, slowest).await?;
            }
            let now = self.worker.now();
            if let Some(len) = scanner.scan(&received, limits.head_bytes)? {
                let input = received.split_off(len);
                return Ok((received, input));
            }
            let begun = *begun.get_or_insert(now);
            slowest = deadline.min(begun + pace(received.len(), limits.head_bytes_per_second));
        }
    }

    /// Appends what one read brings, in no more memory than it takes. The end of the stream is an error.
    pub(crate) async fn read_some(
        &self,
        transport: &mut Transport,
        received: &mut Vec<u8>,
    ) -> io::Result<()> {
        let pool = self.worker.pool();
        let count = poll_fn(|cx| {
            ready!(transport.poll_readable(cx));
            let mut buffer = pool.take(Size::default());
            let polled = transport.poll_read(cx, &mut buffer);
            received.extend_from_slice(&buffer);
            pool.give(buffer);
            polled
        })
        .await?;
        if count == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// The same for the head, which has its own pace.
    async fn read(
        &self,
        transport: &mut Transport,
        received: &mut Vec<u8>,
        until: Time,
    ) -> Result<(), Outcome> {
        let slow = async {
            self.worker.sleep_until(until).await;
            Err(io::ErrorKind::TimedOut.into())
        };
        match future::or(self.read_some(transport, received), slow).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Refusal::request_timeout(
                "the request head arrives too slowly: send it at once",
            )
            .into()),
            Err(error) => Err(Outcome::Gone(error)),
        }
    }

    /// Writes the response and waits a moment for the peer to have read it.
    pub(crate) async fn refuse(&self, transport: &mut Transport, response: &Response) {
        let status = response.status();
        self.hub.ledger.refused(response);
        self.hub.ledger.answered(status);
        let level = match status {
            status if status == StatusCode::INTERNAL_SERVER_ERROR => log::Level::Error,
            _ => log::Level::Debug,
        };
        log::log!(
            level,
            "{}: refused with {status}: {}",
            self.name(),
            String::from_utf8_lossy(response.body()).trim_end()
        );
        let mut bytes = Vec::new();
        response::encode(response, self.head_only.get(), &mut bytes);
        self.farewell(transport, &bytes).await;
    }

    /// Writes the last bytes of a connection and waits a moment for the peer to have read them.
    pub(super) async fn farewell(&self, transport: &mut Transport, bytes: &[u8]) {
        let farewell = async {
            if write_all(transport, bytes).await.is_err() {
                return;
            }
            poll_fn(|cx| {
                transport.close_write(cx);
                Poll::Ready(())
            })
            .await;
            self.discard_all(transport).await;
        };
        let until = self.worker.now() + LINGER;
        future::or(farewell, self.worker.sleep_until(until)).await;
    }

    /// Waits a moment for the peer to have read what has been sent: closing with unread input would
    /// destroy it.
    #[cfg(feature = "tls")]
    pub(crate) async fn linger(&self, transport: &mut Transport) {
        let until = self.worker.now() + LINGER;
        future::or(self.discard_all(transport), self.worker.sleep_until(until)).await;
    }

    /// Throws away what comes, until it ends or is too much.
    async fn discard_all(&self, transport: &mut Transport) {
        let mut left = LINGER_BYTES;
        while let Ok(received @ 1..) = self.discard(transport).await {
            left = left.saturating_sub(received);
            if left == 0 {
                break;
            }
        }
    }

    /// Reads once and throws it away; while it waits it holds no buffer.
    async fn discard(&self, transport: &mut Transport) -> io::Result<usize> {
        let pool = self.worker.pool();
        poll_fn(|cx| {
            ready!(transport.poll_readable(cx));
            let mut buffer = pool.take(Size::default());
            let polled = transport.poll_read(cx, &mut buffer);
            pool.give(buffer);
            polled
        })
        .await
    }

    pub(crate) fn name(&self) -> ClientName {
        ClientName(self.peer, self.client.get())
    }
}

/// How long so many bytes may take at least that fast.
pub(super) fn pace(received: usize, bytes_per_second: u32) -> Duration {
    HEAD_GRACE + Duration::from_secs(received as u64) / bytes_per_second.max(1)
}

async fn write_all(transport: &mut Transport, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| transport.poll_write(cx, &[IoSlice::new(bytes)])).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        // No transport takes more than it is given.
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// What a client is told that finds no place.
fn full(full: Full) -> Refusal {
    match full {
        Full::Sessions => Refusal::unavailable(full_text(full)),
        Full::Address => Refusal::too_many_requests(full_text(full)),
    }
}

fn full_text(full: Full) -> &'static str {
    match full {
        Full::Sessions => "the server has as many sessions as it may have",
        Full::Address => "too many sessions from this address",
    }
}
