//! Any answer that is not the 101, as bytes.

use ::http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, TRANSFER_ENCODING, UPGRADE};
use ::http::{HeaderMap, HeaderName, StatusCode};

/// An HTTP answer with its whole body: what an accept hook returns to refuse a request in its own
/// words.
///
/// How it is sent: as HTTP/1.1 whatever its version says; with `Content-Length` and `Connection:
/// close` set by the server, in place of any `Content-Length`, `Connection` and `Transfer-Encoding`
/// that it holds; as `text/plain; charset=utf-8` if it has a body and no `Content-Type`. A 204 or
/// 304 is sent without its body. A 1xx cannot end a request, so it is sent as an empty 500.
pub type Response = ::http::Response<Vec<u8>>;

/// Appends `response` to `out`, ready for the wire. `head_only`: as the answer to a HEAD, which has
/// everything but the body (RFC 9110 section 9.3.2).
pub(crate) fn encode(response: &Response, head_only: bool, out: &mut Vec<u8>) {
    // A client would read a 1xx as a promise of more to come and a 101 as the protocol changed (RFC
    // 9110 section 15.2).
    let informational = response.status().is_informational();
    let status = if informational { StatusCode::INTERNAL_SERVER_ERROR } else { response.status() };
    // RFC 9110 sections 8.6 and 15.4.5: these two end with their head; a length in a 204 is
    // forbidden.
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let body: &[u8] = if informational || bodiless { &[] } else { response.body() };

    // 128 bytes hold the lines below; 4 are the colon, the space and the line end of each header.
    let headers: usize =
        response.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    out.reserve(128 + headers + body.len());

    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in response.headers() {
        if !is_ours(name) {
            // Neither type can hold a line end, so no header can add another.
            header(out, name.as_str(), value.as_bytes());
        }
    }
    if !body.is_empty() && !response.headers().contains_key(CONTENT_TYPE) {
        header(out, "Content-Type", b"text/plain; charset=utf-8");
    }
    if !bodiless {
        header(out, "Content-Length", body.len().to_string().as_bytes());
    }
    // RFC 9110 section 7.8: whoever sends Upgrade says so in Connection.
    let upgrade = response.headers().contains_key(UPGRADE);
    header(out, "Connection", if upgrade { b"close, Upgrade" } else { b"close" });
    out.extend_from_slice(b"\r\n");
    if !head_only {
        out.extend_from_slice(body);
    }
}

/// How long a body is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// There is none, and none is named.
    None,
    Known(u64),
    Chunked,
}

/// Whether whoever answers wants the connection closed.
pub(super) fn closes(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONNECTION).iter();
    values.any(|value| {
        super::token::elements(value.as_bytes()).any(|it| it.eq_ignore_ascii_case(b"close"))
    })
}

/// Appends the head of an answer behind which the connection goes on, or not.
pub(super) fn encode_head(
    status: StatusCode,
    headers: &HeaderMap,
    length: Length,
    close: bool,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in headers {
        if !is_ours(name) {
            header(out, name.as_str(), value.as_bytes());
        }
    }
    if !headers.contains_key(DATE) {
        super::date::append(out);
    }
    match length {
        Length::None => {}
        Length::Known(length) => header(out, "Content-Length", length.to_string().as_bytes()),
        Length::Chunked => header(out, "Transfer-Encoding", b"chunked"),
    }
    let upgrade = headers.contains_key(UPGRADE);
    match (close, upgrade) {
        (false, false) => {}
        (false, true) => header(out, "Connection", b"Upgrade"),
        (true, false) => header(out, "Connection", b"close"),
        (true, true) => header(out, "Connection", b"close, Upgrade"),
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends one header line.
pub(super) fn header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn is_ours(name: &HeaderName) -> bool {
    name == CONTENT_LENGTH || name == CONNECTION || name == TRANSFER_ENCODING
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(response: &Response) -> String {
        let mut out = Vec::new();
        encode(response, false, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn builder(status: u16) -> ::http::response::Builder {
        ::http::Response::builder().status(status)
    }

    #[test]
    fn a_body_without_a_type_is_plain_text() {
        assert_eq!(
            encoded(&builder(403).body(b"members only".to_vec()).unwrap()),
            "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 12\r\n\
             Connection: close\r\n\r\nmembers only"
        );
    }

    #[test]
    fn the_type_that_was_given_is_kept() {
        assert_eq!(
            encoded(
                &builder(200)
                    .header("Content-Type", "application/json")
                    .body(b"{}".to_vec())
                    .unwrap()
            ),
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
        );
    }

    #[test]
    fn lengths_and_connection_of_the_caller_are_replaced() {
        let response = builder(401)
            .header("content-length", "999")
            .header("content-length", "1")
            .header("transfer-encoding", "chunked")
            .header("connection", "keep-alive")
            .header("www-authenticate", "Basic")
            .header("www-authenticate", "Bearer")
            .body(Vec::new())
            .unwrap();
        assert_eq!(
            encoded(&response),
            "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic\r\nwww-authenticate: Bearer\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n"
        );
    }

    #[test]
    fn no_content_and_not_modified_have_neither_body_nor_length() {
        for (status, line) in [(204, "204 No Content"), (304, "304 Not Modified")] {
            assert_eq!(
                encoded(&builder(status).body(b"lost".to_vec()).unwrap()),
                format!("HTTP/1.1 {line}\r\nConnection: close\r\n\r\n")
            );
        }
    }

    #[test]
    fn an_interim_status_is_not_an_answer() {
        for status in [100, 101, 103] {
            assert_eq!(
                encoded(&builder(status).body(b"lost".to_vec()).unwrap()),
                "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
    }

    #[test]
    fn an_unknown_status_has_an_empty_phrase() {
        assert!(encoded(&builder(599).body(Vec::new()).unwrap()).starts_with("HTTP/1.1 599 \r\n"));
    }

    #[test]
    fn an_answer_is_appended() {
        let mut out = b"before".to_vec();
        encode(&builder(204).body(Vec::new()).unwrap(), false, &mut out);
        assert!(out.starts_with(b"beforeHTTP/1.1 204 "));
    }
}
