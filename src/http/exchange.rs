//! Ordinary requests on one connection, one after the other, until it ends or becomes a WebSocket.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::http::{Method, StatusCode};
use bytes::BytesMut;
use futures_lite::future;

use super::body::{Body, Intake};
use super::builtin::Builtin;
use super::conn::{AtEnd, Conn, Interrupt};
use super::cors;
use super::files::Folder;
use super::front::{Admitted, Door, Outcome};
use super::head::HeadScanner;
use super::origin::OriginPolicy;
use super::refusal::Refusal;
use super::reply::{Reply, ReplyBody};
use super::request::Request;
use super::response::{self, Length};
use super::routes::{Call, Found, Route, Routes, Target};
use super::upgrade;
use crate::executor::Time;
use crate::hub::{Address, Endings, Handshake, HttpPlace};
use crate::session::Handler;
use crate::transport::Transport;

/// Requests that are answered in one turn: whoever sends many at once lets the others of the worker have theirs.
const IN_TURN: u32 = 16;

/// The rest of a body that nobody has read is passed over up to this many bytes, to keep the connection: what it
/// would cost to make a new one.
const PASSED_OVER: u64 = 64 * 1024;

/// Parts of a body that are ready are sent together up to about this.
const TOGETHER: usize = 16 * 1024;

/// Who answers a request.
enum Plan<'a> {
    Builtin(Builtin),
    Call(&'a Arc<Call>),
    Folder(&'a Arc<Folder>),
    Reply(Reply),
}

/// What becomes of the connection behind an answer.
enum After {
    Next,
    Close,
    Gone,
}

impl<H: Handler> Door<'_, H> {
    /// Whether this request is for the HTTP side of the server, and no WebSocket handshake.
    pub(super) fn is_ordinary(&self, request: &Request) -> bool {
        if self.site.is_some() {
            return true;
        }
        let config = &self.hub.config;
        (config.routes.is_some() || Builtin::any(config)) && !upgrade::is_asked_for(request)
    }

    /// Answers `first` and what follows. `None`: the connection has ended.
    ///
    /// The handshake is over: from here on the connection counts among those of HTTP.
    pub(super) async fn converse(
        &self,
        transport: &mut Transport,
        first: Request,
        input: Vec<u8>,
        under_way: Handshake,
    ) -> Option<Admitted> {
        if !self.take_place() {
            let refusal =
                Refusal::unavailable("the server has as many HTTP connections as it may have");
            self.refuse(transport, &refusal.into_response()).await;
            return None;
        }
        drop(under_way);
        #[cfg(feature = "tls")]
        let tls = first.tls().cloned();
        let mut conn = Conn::new(self.worker, transport, Intake::new(BytesMut::from(&*input)));
        drop(input);
        let mut request = first;
        let mut in_turn = 0;
        loop {
            if !self.is_ordinary(&request) {
                let Conn { transport, intake, .. } = conn;
                let input = std::mem::take(&mut intake.lock().input).into();
                let deadline = self.worker.now() + self.hub.config.timeouts.handshake;
                self.began.set(self.worker.clock().precise());
                let upgrade = self.upgrade(transport, &request, input);
                let outcome = self.answer_in_time(deadline, upgrade).await;
                return self.conclude(transport, outcome).await;
            }
            match self.exchange(&mut conn, &request).await {
                After::Next => {}
                After::Close => {
                    self.farewell(conn.transport, &[]).await;
                    return None;
                }
                After::Gone => return None,
            }
            in_turn += 1;
            if in_turn == IN_TURN {
                in_turn = 0;
                future::yield_now().await;
            }
            let next = match self.next_head(&mut conn).await {
                Ok(Some(head)) => {
                    let request = self.read_request(
                        head,
                        #[cfg(feature = "tls")]
                        tls.clone(),
                    );
                    request.map_err(Outcome::from)
                }
                Ok(None) => {
                    conn.close_write().await;
                    return None;
                }
                Err(outcome) => Err(outcome),
            };
            request = match next {
                Ok(request) => request,
                Err(outcome) => return self.conclude(conn.transport, Err(outcome)).await,
            };
        }
    }

    /// A long poll or an event stream of a session begins: the time for an answer is the endpoint's own affair. If
    /// the session is `counted` for this connection, it gives its place back until the answer has been sent.
    #[cfg(feature = "fallback")]
    pub(crate) fn park(&self, counted: bool) {
        self.parked.set(true);
        if counted {
            self.place.take();
        }
    }

    /// A place among the connections with ordinary requests, if there is one. A proxy's are not counted for its
    /// address: they are its clients'.
    fn take_place(&self) -> bool {
        let nearest = self.nearest.get();
        let address = Address::of(nearest).filter(|_| !self.hub.config.proxies.trusts(nearest));
        let place = self.hub.limits.http(address, self.site.map(|site| &site.reserve));
        let taken = place.is_some();
        self.place.replace(place);
        taken
    }

    /// The head of the next request. `None`: there is none, and the connection can be closed.
    async fn next_head(&self, conn: &mut Conn<'_>) -> Result<Option<Vec<u8>>, Outcome> {
        // What is said of a head that cannot be read has a body, also behind a HEAD.
        self.head_only.set(false);
        let (limits, timeouts) = (&self.hub.config.limits, &self.hub.config.timeouts);
        let mut scanner = HeadScanner::default();
        let idle = self.worker.now() + timeouts.keep_alive;
        let mut begun: Option<Time> = None;
        loop {
            let until = {
                let mut state = conn.intake.lock();
                if state.input.is_empty() {
                    // While it waits it holds no buffer.
                    state.input = BytesMut::new();
                } else if let Some(len) = scanner.scan(&state.input, limits.head_bytes)? {
                    return Ok(Some(state.input.split_to(len).into()));
                }
                if state.ended {
                    return match state.input.len() {
                        0 => Ok(None),
                        _ => Err(Outcome::Gone(io::ErrorKind::UnexpectedEof.into())),
                    };
                }
                match state.input.len() {
                    0 => idle,
                    len => {
                        let begun = *begun.get_or_insert(self.worker.now());
                        let slowest = begun + super::front::pace(len, limits.head_bytes_per_second);
                        slowest.min(begun + timeouts.handshake)
                    }
                }
            };
            match conn.fill(self, until).await {
                Ok(()) => {}
                Err(Interrupt::Gone(error)) => return Err(Outcome::Gone(error)),
                Err(_) if begun.is_none() => return Ok(None),
                Err(Interrupt::Late { .. }) => {
                    let slow = "the request head arrives too slowly: send it at once";
                    return Err(Refusal::request_timeout(slow).into());
                }
                Err(Interrupt::Stop) => {
                    return Err(Refusal::unavailable("the server is stopping").into());
                }
            }
        }
    }

    /// One request and its answer.
    async fn exchange(&self, conn: &mut Conn<'_>, request: &Request) -> After {
        let in_flight = InFlight { end: Cell::new(End::Cut), door: self };
        let config = &self.hub.config;
        let began = self.worker.clock().precise();
        let wants = match Wants::of(request) {
            Ok(wants) => wants,
            Err(refusal) => {
                self.refuse(conn.transport, &refusal.into_response()).await;
                in_flight.end.set(End::Answered);
                return After::Gone;
            }
        };
        let framing = request.framing();
        conn.intake.begin(framing, config.limits.body_bytes, wants.told_to_go_on);
        conn.begin(config.timeouts.write_stall);
        let (plan, policy) = self.plan(request, &conn.intake);
        let at_end = match plan {
            Plan::Builtin(_) => AtEnd::Drop,
            _ => AtEnd::GoOn,
        };
        let mut body = Body::new(&conn.intake, framing);
        let deadline = self.worker.now() + config.timeouts.request;
        let answer = async { self.carry_out(plan, request, &mut body).await };
        let answered = conn.attend(self, deadline, at_end, self.guarded("a route", answer)).await;
        let mut close = wants.close;
        let reply = match answered {
            Ok(Ok(reply)) => reply,
            Ok(Err(panicked)) => {
                close = true;
                Reply::from(panicked.into_response())
            }
            Err(Interrupt::Gone(error)) => {
                log::debug!("{}: gone before it was answered: {error}", self.name());
                in_flight.end.set(End::Abandoned);
                return After::Gone;
            }
            Err(Interrupt::Stop) => return After::Gone,
            Err(Interrupt::Late { for_body }) => {
                close = true;
                // The client's fault if we waited for it.
                let refusal = match for_body {
                    true => Refusal::request_timeout("the body took too long: send it at once"),
                    false => Refusal::unavailable("the answer took too long"),
                };
                log::debug!("{}: {refusal}", self.name());
                Reply::from(refusal.into_response())
            }
        };
        let ledger = &self.hub.ledger;
        ledger.answered(reply.status());
        // What waits for a session's messages takes as long as those do.
        let parked = self.parked.get();
        let after = self.finish(conn, request, reply, close, policy).await;
        if !parked {
            ledger.requested(self.worker.clock().precise().since(began));
        }
        match after {
            Ok(after) => {
                in_flight.end.set(End::Answered);
                after
            }
            Err(Interrupt::Stop) => After::Gone,
            Err(Interrupt::Late { .. }) => {
                log::debug!("{}: the answer was not taken in time", self.name());
                in_flight.end.set(End::Abandoned);
                After::Gone
            }
            Err(Interrupt::Gone(error)) => {
                log::debug!("{}: gone before the end of the answer: {error}", self.name());
                in_flight.end.set(End::Abandoned);
                After::Gone
            }
        }
    }

    /// Sends the answer, and comes to what is behind the body.
    async fn finish(
        &self,
        conn: &mut Conn<'_>,
        request: &Request,
        mut reply: Reply,
        mut close: bool,
        policy: Option<&OriginPolicy>,
    ) -> Result<After, Interrupt> {
        if let Some(policy) = policy {
            cors::allow(policy, request, &mut reply);
        }
        let waits = conn.intake.close();
        let passed = conn.intake.pass_over();
        let little = conn.intake.left().is_some_and(|left| left <= PASSED_OVER);
        // Whoever was not told to go on may do so or not: where its next request begins nobody knows.
        close |= !passed && (waits || !little || conn.intake.failed());
        close |= self.hub.shutdown.is_stopping() || response::closes(&reply.headers);
        // Who waits for nothing shall not hold what others need.
        close |= self.place.borrow().as_ref().is_some_and(HttpPlace::is_scarce);
        if !matches!(reply.body, ReplyBody::Stream { .. }) {
            close |= !self.return_to_place();
        }
        self.send(conn, reply, request.method() == Method::HEAD, close).await?;
        if close || !self.return_to_place() {
            return Ok(After::Close);
        }
        if !passed && !conn.pass_over(self).await? {
            return Ok(After::Close);
        }
        Ok(After::Next)
    }

    /// The end of what [`park`](Self::park) has begun. False: there is no place any more.
    fn return_to_place(&self) -> bool {
        !self.parked.replace(false) || self.place.borrow().is_some() || self.take_place()
    }

    /// Who answers, and whose pages may read it.
    fn plan<'a>(
        &'a self,
        request: &Request,
        intake: &Rc<Intake>,
    ) -> (Plan<'a>, Option<&'a OriginPolicy>) {
        let config = &self.hub.config;
        let routes = self.site.map(|site| &site.routes).or(config.routes.as_ref());
        let builtin = match self.site {
            None => Builtin::find(config, request.path()),
            Some(_) => None,
        };
        let find = |method: &Method| match (builtin, routes) {
            (Some(builtin), _) => builtin.found(method),
            (None, Some(routes)) => routes.find(request, method),
            (None, None) => Found::Nothing,
        };
        let of_routes = routes.and_then(|routes| routes.origins.as_ref());
        let policy_of = |found: &Found<'_>| match found {
            Found::Route(Route { public: true, .. }) | Found::Methods { public: true, .. } => {
                &OriginPolicy::Any
            }
            _ if builtin.is_some() => &config.origins,
            // That there is nothing is the routes' answer as well.
            _ => of_routes.unwrap_or(&config.origins),
        };
        let found = find(request.method());
        let asks =
            if request.method() == Method::OPTIONS { Some(cors::preflight(request)) } else { None };
        let preflight = match (&found, asks) {
            // What the browser wants to know is whether it may send another one.
            (Found::Methods { methods, .. }, Some(Some(wanted))) => {
                Some((Routes::allowed(methods), wanted))
            }
            // It takes all methods, and is not asked what it was not sent.
            (Found::Fallback(_), Some(Some(wanted))) => Some((wanted.to_string(), wanted)),
            (Found::Methods { methods, .. }, Some(None)) => {
                return (Plan::Reply(Reply::options(&Routes::allowed(methods))), None);
            }
            _ => None,
        };
        if let Some((methods, wanted)) = preflight {
            let found = find(&wanted);
            let policy = policy_of(&found);
            return match policy.check(request) {
                Ok(()) => {
                    let reply = cors::answer(request, &methods);
                    (Plan::Reply(reply), Some(policy))
                }
                Err(refusal) => (Plan::Reply(refusal.into_response().into()), None),
            };
        }
        let policy = policy_of(&found);
        if let Err(refusal) = policy.check(request) {
            return (Plan::Reply(refusal.into_response().into()), None);
        }
        let plan = match found {
            Found::Route(route) => {
                if let Some(bytes) = route.body_bytes {
                    intake.lock().limit = bytes;
                }
                match &route.target {
                    Target::Call(call) => Plan::Call(call),
                    Target::Folder(folder) => Plan::Folder(folder),
                    Target::Builtin(builtin) => Plan::Builtin(*builtin),
                }
            }
            Found::Builtin(builtin) => Plan::Builtin(builtin),
            Found::Fallback(call) => Plan::Call(call),
            Found::Methods { methods, .. } => {
                Plan::Reply(Reply::not_allowed(&Routes::allowed(&methods)))
            }
            Found::Nothing => Plan::Reply(Reply::sentence(
                StatusCode::NOT_FOUND,
                "nothing is served at this path",
            )),
        };
        (plan, Some(policy))
    }

    async fn carry_out(&self, plan: Plan<'_>, request: &Request, body: &mut Body) -> Reply {
        match plan {
            Plan::Builtin(builtin) => Box::pin(builtin.answer(self, request, body)).await,
            Plan::Call(call) => call(request, body).await,
            Plan::Folder(folder) => Box::pin(folder.answer(request, &self.hub.limits)).await,
            Plan::Reply(reply) => reply,
        }
    }

    async fn send(
        &self,
        conn: &mut Conn<'_>,
        reply: Reply,
        head_only: bool,
        close: bool,
    ) -> Result<(), Interrupt> {
        let reply = if reply.status.is_informational() {
            // A client would read it as a promise of more to come (RFC 9110 section 15.2).
            log::error!("{}: a request cannot end with a {}", self.name(), reply.status);
            Reply::new("").with_status(StatusCode::INTERNAL_SERVER_ERROR)
        } else {
            reply
        };
        let Reply { status, headers, body } = reply;
        // RFC 9110 sections 8.6 and 15.4.5: these two end with their head.
        let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = match &body {
            _ if bodiless => Length::None,
            ReplyBody::Whole(bytes) => Length::Known(bytes.len() as u64),
            ReplyBody::Stream { length: Some(length), .. } => Length::Known(*length),
            ReplyBody::Stream { length: None, .. } => Length::Chunked,
        };
        let mut head = self.worker.pool().take(Default::default());
        response::encode_head(status, &headers, length, close, &mut head);
        let without_body = bodiless || head_only;
        let whole: &[u8] = match &body {
            ReplyBody::Whole(bytes) if !without_body => bytes,
            _ => &[],
        };
        let sent = conn.write(self, [&head, whole, &[]]).await;
        self.worker.pool().give(head);
        sent?;
        match body {
            ReplyBody::Stream { length, stream, in_time } if !without_body => {
                let patience = in_time.then_some(self.hub.config.timeouts.request);
                conn.stream(self, stream, length, TOGETHER, patience).await
            }
            _ => Ok(()),
        }
    }
}

/// What the head of a request asks of the connection.
struct Wants {
    close: bool,
    told_to_go_on: bool,
}

impl Wants {
    fn of(request: &Request) -> Result<Self, Refusal> {
        let mut wants = Self { close: false, told_to_go_on: false };
        for (name, value) in request.fields() {
            if name.eq_ignore_ascii_case(b"connection") {
                wants.close |= upgrade::connection_has(value, b"close")?;
            } else if name.eq_ignore_ascii_case(b"expect") {
                // RFC 9110 section 10.1.1.
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::expectation_failed(
                        "this server knows no expectation but 100-continue",
                    ));
                }
                wants.told_to_go_on = true;
            }
        }
        Ok(wants)
    }
}

/// A request that is being answered: counted when the server stops meanwhile.
struct InFlight<'a, 'd, H> {
    end: Cell<End>,
    door: &'a Door<'d, H>,
}

/// What has become of it.
#[derive(Clone, Copy)]
enum End {
    /// All of its answer has been sent.
    Answered,
    /// The client has gone, or has not taken its answer.
    Abandoned,
    /// The server has not come to that.
    Cut,
}

impl<H> Drop for InFlight<'_, '_, H> {
    fn drop(&mut self) {
        if self.door.hub.shutdown.is_stopping() {
            let Endings { requests, requests_cut, .. } = &self.door.hub.endings;
            let counter = match self.end.get() {
                End::Answered => requests,
                End::Abandoned => return,
                End::Cut => requests_cut,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        refusal.into_response().into()
    }
}
