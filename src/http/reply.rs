//! What a route answers.

use std::fmt;
use std::io;
use std::pin::Pin;

use ::http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use ::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use futures_lite::Stream;

use super::response::Response;

/// An answer of a [route](crate::Routes): status, headers, and a body that is there or still comes.
///
/// How it is sent: `Content-Length`, `Transfer-Encoding`, `Connection` and `Date` are the server's, in place of
/// those that it holds, but for `Connection: close`, which closes the connection behind it, and a `Date` of its
/// own. A 204 and a 304 are sent without their body, and a 1xx, which cannot end a request, as an empty 500. The
/// types of names and values have no place for a line end, so that no value can become a header.
pub struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: ReplyBody,
}

pub(crate) enum ReplyBody {
    Whole(Bytes),
    Stream {
        length: Option<u64>,
        stream: Parts,
        /// Each part has only as long as an answer.
        in_time: bool,
    },
}

/// The parts of a body, as they come.
pub(crate) type Parts = Pin<Box<dyn Stream<Item = io::Result<Bytes>>>>;

impl Reply {
    /// A 200 with this body, and no `Content-Type`.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: ReplyBody::Whole(body.into()),
        }
    }

    /// A 200 whose body comes part by part. It is sent in chunks, or with
    /// [`with_length`](Self::with_length) as it is.
    ///
    /// The stream runs on the connection's worker, and is polled only when the client has taken what came
    /// before. It is dropped when the client has gone: at the end of its stream, a reset, or when it takes nothing
    /// for [`Timeouts::write_stall`](crate::config::Timeouts::write_stall), or too little. A stream that is always ready
    /// leaves turns to the others of its worker. How long it may think is its own
    /// affair. An error cuts the connection, which tells the client that something is missing.
    pub fn stream(stream: impl Stream<Item = io::Result<Bytes>> + 'static) -> Self {
        Self {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: ReplyBody::Stream { length: None, stream: Box::pin(stream), in_time: false },
        }
    }

    /// A 200 with this value in JSON; if it cannot be written in it, a 500.
    #[cfg(feature = "json")]
    pub fn json<T: serde::Serialize + ?Sized>(value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::new(body)
                .with_header(CONTENT_TYPE, HeaderValue::from_static("application/json")),
            Err(error) => {
                log::error!("an answer cannot be written in JSON: {error}");
                StatusCode::INTERNAL_SERVER_ERROR.into_reply()
            }
        }
    }

    /// With this status.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// With this header in place of any of that name.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// With a stream that has so many bytes. If it has fewer the connection is cut, and what it has more is not
    /// sent. Nothing changes for a body that is whole.
    #[must_use]
    pub fn with_length(mut self, bytes: u64) -> Self {
        if let ReplyBody::Stream { length, .. } = &mut self.body {
            *length = Some(bytes);
        }
        self
    }

    /// With a stream whose parts have no more time than an answer has, each.
    pub(crate) fn in_time(mut self) -> Self {
        if let ReplyBody::Stream { in_time, .. } = &mut self.body {
            *in_time = true;
        }
        self
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers, to be changed.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    /// The answer to an OPTIONS: these methods.
    pub(crate) fn options(methods: &str) -> Self {
        let mut reply = ().into_reply();
        reply.allow(methods);
        reply
    }

    /// 405: only these methods.
    pub(crate) fn not_allowed(methods: &str) -> Self {
        let text = format!("this path is served for other methods: {methods}");
        let mut reply = Self::sentence(StatusCode::METHOD_NOT_ALLOWED, text);
        reply.allow(methods);
        reply
    }

    fn allow(&mut self, methods: &str) {
        // They are tokens.
        if let Ok(methods) = HeaderValue::from_str(methods) {
            self.headers.insert(ALLOW, methods);
        }
    }

    /// One line of text, which may quote the request.
    pub(crate) fn sentence(status: StatusCode, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.push('\n');
        // No browser shall take it for anything but text.
        text.into_reply()
            .with_status(status)
            .with_header(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be cookies.
        let names: Vec<&str> = self.headers.keys().map(HeaderName::as_str).collect();
        let length = match &self.body {
            ReplyBody::Whole(bytes) => Some(bytes.len() as u64),
            ReplyBody::Stream { length, .. } => *length,
        };
        f.debug_struct("Reply")
            .field("status", &self.status)
            .field("headers", &names)
            .field("length", &length)
            .finish_non_exhaustive()
    }
}

/// What the closures of [`Routes`](crate::Routes) may return.
///
/// | type | answer |
/// |---|---|
/// | `&'static str`, `String` | 200, `text/plain; charset=utf-8` |
/// | `Vec<u8>`, [`Bytes`] | 200, `application/octet-stream` |
/// | `()` | 204 |
/// | [`StatusCode`](crate::http_types::StatusCode) | that, with its name as text |
/// | `(StatusCode, T)` | what `T` is, with that status |
/// | `Option<T>` | 404 for `None` |
/// | `Result<T, E>` | what either of them is |
/// | [`Response`], [`Reply`] | that |
/// | [`BodyError`](crate::BodyError) | 400, 408 or 413 |
pub trait IntoReply {
    /// The answer.
    fn into_reply(self) -> Reply;
}

impl IntoReply for Reply {
    fn into_reply(self) -> Reply {
        self
    }
}

impl IntoReply for &'static str {
    fn into_reply(self) -> Reply {
        text(Reply::new(self))
    }
}

impl IntoReply for String {
    fn into_reply(self) -> Reply {
        text(Reply::new(self))
    }
}

impl IntoReply for Vec<u8> {
    fn into_reply(self) -> Reply {
        Bytes::from(self).into_reply()
    }
}

impl IntoReply for Bytes {
    fn into_reply(self) -> Reply {
        Reply::new(self)
            .with_header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
    }
}

impl IntoReply for () {
    fn into_reply(self) -> Reply {
        Reply::new(Bytes::new()).with_status(StatusCode::NO_CONTENT)
    }
}

impl IntoReply for StatusCode {
    fn into_reply(self) -> Reply {
        Reply::sentence(self, self.canonical_reason().unwrap_or_default().to_lowercase())
    }
}

impl<T: IntoReply> IntoReply for (StatusCode, T) {
    fn into_reply(self) -> Reply {
        self.1.into_reply().with_status(self.0)
    }
}

impl<T: IntoReply> IntoReply for Option<T> {
    fn into_reply(self) -> Reply {
        self.map_or_else(|| StatusCode::NOT_FOUND.into_reply(), IntoReply::into_reply)
    }
}

impl<T: IntoReply, E: IntoReply> IntoReply for Result<T, E> {
    fn into_reply(self) -> Reply {
        self.map_or_else(IntoReply::into_reply, IntoReply::into_reply)
    }
}

/// As an accept hook's refusal: text if it says nothing else.
impl IntoReply for Response {
    fn into_reply(self) -> Reply {
        let (parts, body) = self.into_parts();
        let headers = parts.headers;
        let reply = Reply { status: parts.status, headers, body: ReplyBody::Whole(body.into()) };
        let silent = matches!(&reply.body, ReplyBody::Whole(body) if body.is_empty());
        if silent || reply.headers.contains_key(CONTENT_TYPE) { reply } else { text(reply) }
    }
}

/// So that `?` does in a route that returns `Result<_, Reply>`.
impl From<StatusCode> for Reply {
    fn from(status: StatusCode) -> Self {
        status.into_reply()
    }
}

impl From<Response> for Reply {
    fn from(response: Response) -> Self {
        response.into_reply()
    }
}

fn text(reply: Reply) -> Reply {
    reply.with_header(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_lite::{AsyncReadExt, AsyncWriteExt, future, stream};

    use super::*;
    use crate::{Body, Request, Routes, Server};

    // A disk that did not answer any more held the connection, and its place, for ever.
    #[test]
    fn a_part_that_does_not_come_in_time_cuts_the_connection() {
        let routes = Routes::new().get("/", async |_: &Request, _: &mut Body| {
            let parts = stream::once(Ok(Bytes::from_static(b"begun")));
            let parts = futures_lite::StreamExt::chain(parts, stream::pending());
            Reply::stream(parts).with_length(10).in_time()
        });
        let server = Server::builder()
            .bind("127.0.0.1:0")
            .routes(routes)
            .configure(|config| config.timeouts.request = Duration::from_millis(200))
            .start()
            .unwrap();
        let mut client = server.connect().unwrap();
        let mut answer = Vec::new();
        future::block_on(async {
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            client.read_to_end(&mut answer).await.unwrap();
            assert!(answer.ends_with(b"\r\n\r\nbegun"), "{}", answer.escape_ascii());
            server.stop().await;
        });
    }
}
