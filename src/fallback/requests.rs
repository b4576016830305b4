//! The requests of clients without WebSocket, and their answers.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use ::http::header::{
    ACCESS_CONTROL_EXPOSE_HEADERS, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue,
    RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use ::http::{HeaderMap, Method, StatusCode};
use futures_lite::future;

use super::desk::{Desk, NotOurs};
use super::present::{self, NoMessages, Posted};
use super::query::Query;
use super::relay::{BadCursor, Downlink, Found, Post, Relay, Visit};
use super::{Fallbacks, events};
use crate::executor::{Time, Worker};
use crate::http::front::Door;
use crate::http::refusal::Refusal;
use crate::http::{Body, BodyError, Reply, Request};
use crate::message::CloseCode;
use crate::session::Handler;
use crate::ws::CloseFrame;

/// Messages in one answer, if the client does not want fewer.
pub(super) const ANSWER_MESSAGES: usize = 1024;

/// Bytes of messages in one answer: what a line of 4 KiB per second carries before a client is given up that has
/// asked for it. A single message may be larger.
pub(super) const ANSWER_BYTES: usize = 64 * 1024;

/// The client's token.
pub(super) const SESSION: HeaderName = HeaderName::from_static("coracle-session");
/// The number of the last message in an answer.
pub(super) const CURSOR: HeaderName = HeaderName::from_static("coracle-cursor");
/// How the session was closed.
pub(super) const CLOSE: HeaderName = HeaderName::from_static("coracle-close");

/// What the request of a client without WebSocket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Poll,
    Events,
    Send,
    Ack,
    Close,
}

impl Asked {
    /// The methods by which it is asked for.
    pub(crate) fn methods(self) -> &'static [Method] {
        match self {
            Self::Poll | Self::Events => &[Method::GET],
            Self::Send | Self::Ack | Self::Close => &[Method::POST],
        }
    }
}

impl Fallbacks {
    /// What is asked for at this path.
    pub(crate) fn asked(&self, path: &str) -> Option<Asked> {
        match path.strip_prefix(&*self.path)? {
            "/poll" => Some(Asked::Poll),
            "/events" => Some(Asked::Events),
            "/send" => Some(Asked::Send),
            "/ack" => Some(Asked::Ack),
            "/close" => Some(Asked::Close),
            _ => None,
        }
    }
}

/// A request and what is needed to answer it.
pub(crate) struct Call<'a, H> {
    pub(crate) door: &'a Door<'a, H>,
    pub(crate) desk: &'a Desk,
    pub(crate) request: &'a Request,
}

/// An answer that says what is wrong. On the heap: it is rare, and larger than what it takes the place of.
pub(super) type Refused = Box<Reply>;

/// A session that a request belongs to.
pub(super) struct Addressed {
    pub(super) relay: Arc<Relay>,
    pub(super) token: String,
    /// It has just been opened; the answer has these headers of the application's, too.
    pub(super) opened: Option<HeaderMap>,
}

impl<H: Handler> Call<'_, H> {
    /// The answer. A poll waits for it, and is to be dropped when its client has gone.
    pub(crate) async fn answer(&self, asked: Asked, body: &mut Body) -> Reply {
        let answer = async {
            let query = Query::parse(self.request.query().unwrap_or_default());
            let query = query.map_err(|why| error(StatusCode::BAD_REQUEST, &why))?;
            match asked {
                Asked::Poll => self.poll(query).await,
                Asked::Events => self.events(query).await,
                Asked::Send => self.send(query, body).await,
                Asked::Ack => self.ack(&query),
                Asked::Close => self.close(&query),
            }
        };
        let mut reply = answer.await.unwrap_or_else(|refused| *refused);
        // Even what is the same for all is for nobody else.
        let headers = reply.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if self.request.header_bytes("origin").is_some() {
            let exposed =
                HeaderValue::from_static("coracle-session, coracle-cursor, coracle-close");
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
        reply
    }

    async fn poll(&self, query: Query) -> Result<Reply, Refused> {
        if query.session.is_none() && query.cursor.unwrap_or_default() > 0 {
            return Err(bad_cursor(BadCursor::Ahead));
        }
        let addressed = self.address(query.session, query.path.as_deref()).await?;
        let (relay, worker) = (&addressed.relay, self.door.worker);
        let cursor = match query.cursor {
            None => relay.cursor(),
            Some(cursor) => {
                relay.acknowledge(cursor).map_err(bad_cursor)?;
                cursor
            }
        };
        let Some(visit) = relay.visit(Downlink::Poll) else {
            self.desk.counts.refused_polls.count();
            let text = "another poll of this session waits: wait for its answer, or try again when it is over";
            return Err(error(StatusCode::CONFLICT, text));
        };
        let carried = relay.carry();
        self.door.park(carried.is_some());
        let until = match addressed.opened {
            // So that the client has its token.
            Some(_) => worker.now(),
            None => worker.now() + self.door.hub.config.timeouts.poll_window,
        };
        let most = query.max.unwrap_or(ANSWER_MESSAGES).min(ANSWER_MESSAGES);
        let (mut last, mut messages, mut close) = (cursor, Vec::new(), None);
        match wait(&visit, worker, cursor, most, until).await {
            Found::Messages(first, found) => {
                last = first + found.len() as u64 - 1;
                messages = found;
                // So that nobody has to ask again only to hear of it.
                if let Found::Closed(closed) = visit.look(last, 1, 1) {
                    close = Some(closed);
                }
            }
            Found::Closed(closed) => close = Some(closed),
            Found::Nothing | Found::Full | Found::Displaced => {}
        }
        let counts = &self.desk.counts;
        let counter = if messages.is_empty() { &counts.empty_polls } else { &counts.polls };
        counter.count();
        let mut reply = json(StatusCode::OK, present::array(&messages, query.text));
        let headers = reply.headers_mut();
        headers.extend(addressed.opened.unwrap_or_default());
        headers.insert(CONTENT_TYPE, APPLICATION_JSON);
        headers.insert(CURSOR, last.into());
        if let Ok(token) = HeaderValue::try_from(addressed.token) {
            headers.insert(SESSION, token);
        }
        if let Some(close) = close {
            headers.insert(CLOSE, close_header(close.as_ref()));
        }
        Ok(reply)
    }

    async fn events(&self, query: Query) -> Result<Reply, Refused> {
        // What a browser says that has not got any.
        let last = self.request.header("last-event-id").filter(|id| !id.is_empty());
        let last = last.map(events::LastId::parse);
        let last = last.transpose().map_err(|why| error(StatusCode::BAD_REQUEST, why))?;
        let named = query.session.is_some();
        let (token, cursor) = match last {
            // The URL of a stream that goes on is still the old one.
            Some(last) => (query.session.or(last.session), Some(last.cursor)),
            None => (query.session, query.cursor),
        };
        if token.is_none() && cursor.unwrap_or_default() > 0 {
            return Err(bad_cursor(BadCursor::Ahead));
        }
        let addressed = self.address(token, query.path.as_deref()).await?;
        let relay = &addressed.relay;
        let cursor = match cursor.map(|cursor| relay.acknowledge(cursor).map(|()| cursor)) {
            Some(Ok(cursor)) => cursor,
            Some(Err(BadCursor::Ahead)) => return Err(bad_cursor(BadCursor::Ahead)),
            // It has acknowledged more by other ways meanwhile.
            Some(Err(BadCursor::Behind)) | None => relay.cursor(),
        };
        let Some(visit) = relay.visit(Downlink::Stream) else {
            return Err(gone());
        };
        let carried = relay.carry();
        self.door.park(carried.is_some());
        self.desk.counts.streams.count();
        let window = self.door.hub.config.timeouts.poll_window;
        let stream = events::Events::new(visit, self.door.worker, window, addressed.token, cursor);
        let stream = if named { stream } else { stream.named() };
        let mut reply = Reply::stream(stream.on(carried).into_stream());
        let headers = reply.headers_mut();
        headers.extend(addressed.opened.unwrap_or_default());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        // nginx holds back what it does not know to be a stream.
        headers
            .insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        Ok(reply)
    }

    async fn send(&self, query: Query, body: &mut Body) -> Result<Reply, Refused> {
        // Before anything is read: whoever has no session has nothing to say, and who sends is there.
        let named = query.session.as_deref().map(|token| self.find(token)).transpose()?;
        if let Some(relay) = &named {
            relay.touch();
        }
        let media = self.request.header("content-type").unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let body = body.bytes().await.map_err(|why| bad_body(&why))?;
        let text = || {
            std::str::from_utf8(&body)
                .map_err(|_| error(StatusCode::BAD_REQUEST, "the body is not UTF-8"))
        };
        let posted = match media.as_str() {
            "application/json" => Posted::json(text()?, query.session.is_some())
                .map_err(|NoMessages(why)| error(StatusCode::BAD_REQUEST, &why))?,
            "text/plain" => Posted::text(text()?),
            "application/octet-stream" => Posted::binary(&body),
            _ => {
                let why = "the Content-Type must be application/json, text/plain or application/octet-stream";
                return Err(error(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
            }
        };
        drop(body);
        let most = self.door.hub.config.limits.message_bytes;
        if posted.longest > most {
            let why = format!("a message is longer than {most} bytes");
            return Err(error(StatusCode::PAYLOAD_TOO_LARGE, &why));
        }
        if posted.messages > ANSWER_MESSAGES {
            let why = format!("a post has more than {ANSWER_MESSAGES} messages");
            return Err(error(StatusCode::PAYLOAD_TOO_LARGE, &why));
        }
        let relay = match named {
            Some(relay) => relay,
            None => self.find(posted.session.as_deref().ok_or_else(unnamed)?)?,
        };
        acknowledge(&relay, query.cursor)?;
        // Before the time for a whole request is over.
        let timeouts = &self.door.hub.config.timeouts;
        let until = self.door.worker.now() + timeouts.poll_window.min(timeouts.request / 2);
        let counts = &self.desk.counts;
        match post(&relay, self.door.worker, query.seq, &posted.frames, until).await {
            Post::Taken => {
                counts.posts.count();
                Ok(json(StatusCode::ACCEPTED, &b"{\"status\":\"queued\"}"[..]))
            }
            Post::Repeated => {
                counts.repeated_posts.count();
                Ok(json(StatusCode::OK, &b"{\"status\":\"queued\",\"repeated\":true}"[..]))
            }
            Post::OutOfOrder { expected } => {
                let why = format!("the next post of this session has seq={expected}");
                Err(error(StatusCode::CONFLICT, &why))
            }
            Post::Full => {
                let why =
                    "the session is behind with what was posted before: post this again later";
                let mut reply = error(StatusCode::SERVICE_UNAVAILABLE, why);
                reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                Err(reply)
            }
            Post::Ended => Err(gone()),
        }
    }

    fn ack(&self, query: &Query) -> Result<Reply, Refused> {
        let relay = self.find(query.session.as_deref().ok_or_else(unnamed)?)?;
        relay.touch();
        acknowledge(&relay, query.cursor)?;
        Ok(no_content())
    }

    fn close(&self, query: &Query) -> Result<Reply, Refused> {
        let relay = self.find(query.session.as_deref().ok_or_else(unnamed)?)?;
        let code = CloseCode::new(query.code.unwrap_or(CloseCode::NORMAL.as_u16()));
        let Some(code) = code else {
            let why = "the parameter code is no close code that may be sent: 1000 to 1003, 1007 to 1014, 3000 to 4999";
            return Err(error(StatusCode::BAD_REQUEST, why));
        };
        acknowledge(&relay, query.cursor)?;
        let reason = query.reason.as_deref().unwrap_or_default();
        relay.post_close(Some(&CloseFrame::new(code, reason)));
        Ok(no_content())
    }

    /// The session that a token names.
    fn find(&self, token: &str) -> Result<Arc<Relay>, Refused> {
        match self.desk.find(token) {
            Ok(Some(relay)) => Ok(relay),
            Ok(None) => Err(gone()),
            Err(NotOurs) => {
                let why = "this session_id is none that this server has given";
                Err(error(StatusCode::UNAUTHORIZED, why))
            }
        }
    }

    /// The same, or a new session if none is named.
    async fn address(
        &self,
        token: Option<String>,
        path: Option<&str>,
    ) -> Result<Addressed, Refused> {
        match token {
            Some(token) => {
                let relay = self.find(&token)?;
                Ok(Addressed { relay, token, opened: None })
            }
            None => self.open(path).await,
        }
    }
}

/// Waits until there is something for this visit, or it is late.
async fn wait(visit: &Visit, worker: &Rc<Worker>, after: u64, most: usize, until: Time) -> Found {
    loop {
        let changed = visit.relay().listen();
        match visit.look(after, most, ANSWER_BYTES) {
            Found::Nothing | Found::Full => {}
            found => return found,
        }
        if late(changed, worker, until).await {
            return Found::Nothing;
        }
    }
}

/// Waits until a POST has found room, or it is late.
async fn post(
    relay: &Relay,
    worker: &Rc<Worker>,
    number: Option<u64>,
    frames: &[u8],
    until: Time,
) -> Post {
    let Some(queued) = relay.queue() else {
        return Post::Full;
    };
    loop {
        let room = queued.listen();
        match relay.post(number, frames) {
            Post::Full => {}
            post => return post,
        }
        if late(room, worker, until).await {
            return Post::Full;
        }
    }
}

/// Waits for something. True: not any longer.
pub(super) async fn late(
    something: impl Future<Output = ()>,
    worker: &Rc<Worker>,
    until: Time,
) -> bool {
    let something = async {
        something.await;
        false
    };
    let late = async {
        worker.sleep_until(until).await;
        true
    };
    future::or(something, late).await
}

fn acknowledge(relay: &Relay, cursor: Option<u64>) -> Result<(), Refused> {
    match cursor.map(|cursor| relay.acknowledge(cursor)) {
        // It was acknowledged before, by a request that was faster.
        None | Some(Ok(()) | Err(BadCursor::Behind)) => Ok(()),
        Some(Err(ahead)) => Err(bad_cursor(ahead)),
    }
}

const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");

fn json(status: StatusCode, body: impl Into<bytes::Bytes>) -> Reply {
    Reply::new(body).with_status(status).with_header(CONTENT_TYPE, APPLICATION_JSON)
}

fn no_content() -> Reply {
    Reply::new(bytes::Bytes::new()).with_status(StatusCode::NO_CONTENT)
}

/// A sentence that says what is wrong, and what to do.
pub(super) fn error(status: StatusCode, why: &str) -> Refused {
    Box::new(json(status, serde_json::json!({ "error": why }).to_string()))
}

fn unnamed() -> Refused {
    error(
        StatusCode::BAD_REQUEST,
        "whose request is this? Send session_id, from the first poll's answer",
    )
}

fn gone() -> Refused {
    error(StatusCode::GONE, "this session has ended: open another one by a poll without session_id")
}

fn bad_cursor(bad: BadCursor) -> Refused {
    match bad {
        BadCursor::Ahead => {
            error(StatusCode::BAD_REQUEST, "the cursor is ahead of what this session has been sent")
        }
        BadCursor::Behind => error(
            StatusCode::PRECONDITION_FAILED,
            "the cursor is behind what has been acknowledged: what followed it is not kept any more",
        ),
    }
}

/// What the server refuses, and not the application.
pub(super) fn refused(refusal: &Refusal) -> Refused {
    let mut reply = error(refusal.status, &refusal.reason);
    for (name, value) in refusal.headers {
        if let Ok(name) = HeaderName::try_from(*name) {
            reply.headers_mut().insert(name, HeaderValue::from_static(value));
        }
    }
    reply
}

fn bad_body(why: &BodyError) -> Refused {
    error(why.status(), &why.to_string())
}

/// `1001 server%20stops`
fn close_header(close: Option<&CloseFrame>) -> HeaderValue {
    let (code, reason) = present::code_and_reason(close);
    let mut value = code.to_string();
    if !reason.is_empty() {
        value.push(' ');
    }
    for byte in reason.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                value.push(char::from(byte));
            }
            _ => value.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("1006"))
}
