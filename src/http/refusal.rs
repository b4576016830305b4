//! Why a request is not served: the status, and one sentence for whoever has to fix it.

use std::borrow::Cow;
use std::fmt;

use ::http::header::{HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use ::http::{Response, StatusCode};

use crate::metrics::Counted;

/// A request that is answered and then closed.
///
/// The reason is a whole sentence that says what was wrong and what to do about it. It is meant for
/// the log and, except for a 500, for the peer as well; see [`Refusal::into_response`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) reason: Cow<'static, str>,
    /// What the status demands beside it: `Allow`, `Upgrade`, `Retry-After`.
    pub(crate) headers: &'static [(&'static str, &'static str)],
}

impl Refusal {
    /// 400: the bytes are not a request that we understand, or not in only one way.
    pub(crate) fn bad_request(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason, &[])
    }

    /// 403: the request is understood, and its sender may not do this.
    pub(crate) fn forbidden(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, reason, &[])
    }

    /// 405: a WebSocket handshake is a GET (RFC 6455 section 4.2.1).
    pub(crate) fn method_not_allowed(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, reason, &[("Allow", "GET")])
    }

    /// 408: the head did not arrive in time, or too slowly.
    pub(crate) fn request_timeout(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, reason, &[])
    }

    /// 417: the request expects what we do not know.
    pub(crate) fn expectation_failed(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::EXPECTATION_FAILED, reason, &[])
    }

    /// 426: what we speak is named in the answer (RFC 9110 section 15.5.22, RFC 6455 section 4.4).
    pub(crate) fn upgrade_required(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(
            StatusCode::UPGRADE_REQUIRED,
            reason,
            &[("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")],
        )
    }

    /// 431: the head is longer, or has more headers, than we agreed to keep (RFC 6585 section 5).
    pub(crate) fn head_too_large(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, reason, &[])
    }

    /// 500: the application around us made a mistake; the reason goes to the log only.
    pub(crate) fn internal(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, reason, &[])
    }

    /// 429, with a `Retry-After`: too much of one client.
    pub(crate) fn too_many_requests(reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            reason: reason.into(),
            headers: &[("Retry-After", "5")],
        }
    }

    /// 503: full, or stopping; the peer may try again.
    pub(crate) fn unavailable(reason: impl Into<Cow<'static, str>>) -> Self {
        // Five seconds: half of the default stop deadline, so that a restarted server is met on the
        // first or second try.
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason, &[("Retry-After", "5")])
    }

    /// The answer for the peer: the reason as a line of plain text; encoding adds `Connection:
    /// close`.
    ///
    /// A 500 tells the peer nothing but that it was not its fault: the reason speaks of our
    /// application's inside.
    pub(crate) fn into_response(self) -> super::Response {
        let mut body = match self.status {
            StatusCode::INTERNAL_SERVER_ERROR => {
                b"the server made a mistake, its log says which".to_vec()
            }
            _ => self.reason.into_owned().into_bytes(),
        };
        body.push(b'\n');
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        response.extensions_mut().insert(Counted::by(self.status));
        // The text may quote the request; no browser shall take it for anything but text.
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        for (name, value) in self.headers {
            if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
                response.headers_mut().insert(name, HeaderValue::from_static(value));
            }
        }
        response
    }

    fn new(
        status: StatusCode,
        reason: impl Into<Cow<'static, str>>,
        headers: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self { status, reason: reason.into(), headers }
    }
}

/// The line for a log.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status.as_u16(), self.reason)
    }
}

/// A piece of a request, safe to quote in an answer and a log: visible ASCII, 100 bytes at most.
///
/// A host name has 253 bytes at most and an honest one far fewer; nobody needs more to recognise
/// what they sent.
pub(super) fn quote(bytes: &[u8]) -> String {
    const LIMIT: usize = 100;
    let mut text: String = bytes
        .iter()
        .take(LIMIT)
        .map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' })
        .collect();
    if bytes.len() > LIMIT {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(refusal: Refusal) -> String {
        let mut out = Vec::new();
        super::super::response::encode(&refusal.into_response(), false, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_answer_carries_the_reason_and_ends_the_connection() {
        assert_eq!(
            encoded(Refusal::bad_request("no")),
            "HTTP/1.1 400 Bad Request\r\nx-content-type-options: nosniff\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: 3\r\nConnection: close\r\n\r\nno\n"
        );
    }

    #[test]
    fn what_the_status_demands_is_in_the_answer() {
        assert!(encoded(Refusal::method_not_allowed("x")).contains("\r\nallow: GET\r\n"));
        assert!(encoded(Refusal::unavailable("x")).contains("\r\nretry-after: 5\r\n"));
        let upgrade = encoded(Refusal::upgrade_required("x"));
        assert!(upgrade.starts_with("HTTP/1.1 426 Upgrade Required\r\n"));
        assert!(upgrade.contains("\r\nupgrade: websocket\r\n"));
        assert!(upgrade.contains("\r\nsec-websocket-version: 13\r\n"));
        assert!(upgrade.contains("\r\nConnection: close, Upgrade\r\n"));
        assert!(
            encoded(Refusal::head_too_large("x"))
                .starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n")
        );
        assert!(
            encoded(Refusal::request_timeout("x")).starts_with("HTTP/1.1 408 Request Timeout\r\n")
        );
        assert!(encoded(Refusal::forbidden("x")).starts_with("HTTP/1.1 403 Forbidden\r\n"));
    }

    #[test]
    fn the_reason_of_a_500_stays_in_the_log() {
        let refusal = Refusal::internal("the hook chose \"secret-v2\"");
        assert_eq!(refusal.to_string(), "500: the hook chose \"secret-v2\"");
        assert!(!encoded(refusal).contains("secret"));
    }

    #[test]
    fn quotes_are_short_and_printable() {
        assert_eq!(quote(b"https://a.example"), "https://a.example");
        assert_eq!(quote(b"a\r\n\x1b[31m\xff"), "a???[31m?");
        assert_eq!(quote(&[b'a'; 1000]).len(), 103);
    }
}
