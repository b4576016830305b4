//! One request head, parsed once and strictly.

use std::fmt;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::str;
use std::sync::{Arc, OnceLock};

use ::http::Method;

use super::authority::Authority;
use super::body;
use super::refusal::{Refusal, quote};
use super::token;
use crate::hub::{Hub, Rooms};
use crate::paths::Pattern;
use crate::session::Sessions;
use crate::shutdown::Shutdown;
#[cfg(feature = "tls")]
use crate::tls::TlsInfo;
use crate::transport::{ClientName, Peer};

/// How many headers are kept at most. A browser sends about 15 and proxies add some; the room for
/// parsing this many is 2 KiB of stack.
const MAX_HEADERS: usize = 64;

/// The head of a request, as the accept hook and [routes](crate::Routes) see it.
///
/// It owns the bytes of the head as they came; every accessor borrows from them. Nothing is decoded
/// or repaired: a head that two readers could read differently was refused before (RFC 9112, RFC
/// 6455 section 4.2.1). So the target is always a path with or without a query, and there is
/// exactly one `Host`.
#[derive(Clone)]
pub struct Request {
    head: Vec<u8>,
    method: Method,
    target: Span,
    /// The part of the target before the question mark.
    path: Span,
    host: Span,
    framing: body::Framing,
    fields: Vec<Field>,
    peer: Peer,
    client: Option<IpAddr>,
    /// The pattern by which the path was found, if there are several.
    pattern: OnceLock<Arc<Pattern>>,
    /// The server that it came to; none for those that the parts of the machine are tried with.
    hub: Option<Arc<Hub>>,
    #[cfg(feature = "tls")]
    tls: Option<TlsInfo>,
}

impl Request {
    /// The method; `GET` for every WebSocket handshake.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The request target as it was sent: path and query.
    ///
    /// It begins with a slash and has visible ASCII characters only.
    #[must_use]
    pub fn target(&self) -> &str {
        self.text(self.target)
    }

    /// The path: the target up to the question mark.
    ///
    /// It is not percent-decoded and `.` and `..` are not resolved, so compare it with what you
    /// expect, and do not open files by it.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text(self.path)
    }

    /// The query: what follows the first question mark of the target, not percent-decoded.
    ///
    /// `None` without a question mark; empty if nothing follows it.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.target().split_once('?').map(|(_, query)| query)
    }

    /// The first value of a header, if it is UTF-8; the case of `name` does not matter.
    ///
    /// The whitespace around the value is not part of it. A value in another encoding is `None`
    /// here, as if it were missing: where the difference matters, use
    /// [`header_bytes`](Self::header_bytes).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        str::from_utf8(self.header_bytes(name)?).ok()
    }

    /// The first value of a header, as the bytes that were sent; the case of `name` does not
    /// matter.
    #[must_use]
    pub fn header_bytes(&self, name: &str) -> Option<&[u8]> {
        self.header_all(name).next()
    }

    /// Every value of a header, line by line, in the order in which they were sent; the case of
    /// `name` does not matter.
    ///
    /// A line that is a list is not split.
    pub fn header_all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.fields()
            .filter(|(sent, _)| sent.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// All headers in the order in which they were sent, with their names in the case in which they
    /// were sent.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter().map(|field| (self.text(field.name), self.bytes(field.value)))
    }

    /// The `Host` header: the host that the client meant, with the port if it sent one.
    ///
    /// Every request has exactly one, and it is well-formed (RFC 9112 section 3.2), but the client
    /// chose it.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        Some(self.text(self.host))
    }

    /// The `Origin` header: which site's page opened the connection, if a browser did (RFC 6454
    /// section 7).
    ///
    /// Programs send what they like or nothing at all, so it says something about browsers only.
    /// Like [`header`](Self::header), it is `None` for a value that is not UTF-8; only
    /// [`OriginPolicy::Any`](super::OriginPolicy::Any) lets such a request pass.
    #[must_use]
    pub fn origin(&self) -> Option<&str> {
        self.header("origin")
    }

    /// The address of the peer at the other end of the socket: the proxy, if there is one in front.
    ///
    /// `None` for Unix sockets, in-memory connections, and streams that were served without an
    /// address; [`peer`](Self::peer) tells them apart.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer.addr()
    }

    /// The peer at the other end of the connection, which is the proxy, if there is one in front.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The client's IP address: the peer's, or what [proxies](crate::config::Proxies) say that the
    /// configuration trusts, by the PROXY protocol or in `X-Forwarded-For` or `Forwarded`.
    ///
    /// `None` if neither tells it. It is what the limits of an address count by.
    #[must_use]
    pub fn client_ip(&self) -> Option<IpAddr> {
        self.client
    }

    /// The rooms of the server, to publish to them.
    ///
    /// # Panics
    ///
    /// Never: every request that an application gets to see has come to a server.
    #[must_use]
    pub fn rooms(&self) -> Rooms {
        Rooms::new(self.hub())
    }

    /// The open sessions of the server.
    ///
    /// # Panics
    ///
    /// Never, as of [`rooms`](Self::rooms).
    #[must_use]
    pub fn sessions(&self) -> Sessions {
        Sessions::new(self.hub())
    }

    /// The stop signal of the server: a route may stop it.
    ///
    /// # Panics
    ///
    /// Never, as of [`rooms`](Self::rooms).
    #[must_use]
    pub fn shutdown(&self) -> Shutdown {
        self.hub().shutdown.clone()
    }

    fn hub(&self) -> Arc<Hub> {
        Arc::clone(self.hub.as_ref().expect("a request has come to a server"))
    }

    /// It has come to this server.
    pub(crate) fn set_hub(&mut self, hub: &Arc<Hub>) {
        self.hub = Some(Arc::clone(hub));
    }

    /// Where it is kept by which pattern the path was found.
    pub(crate) fn pattern(&self) -> &OnceLock<Arc<Pattern>> {
        &self.pattern
    }

    /// Proxies have said who the client is.
    pub(super) fn set_client_ip(&mut self, client: Option<IpAddr>) {
        self.client = client;
    }

    /// What both sides have agreed on by TLS: the version, the host that the client asked for, the
    /// certificate that it has shown. `None` without TLS.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(&self) -> Option<&TlsInfo> {
        self.tls.as_ref()
    }

    /// Whether it was this server with whom the client spoke TLS.
    #[cfg_attr(
        not(feature = "tls"),
        expect(clippy::unused_self, reason = "without TLS the answer is no")
    )]
    pub(super) fn came_over_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    /// It has come over TLS.
    #[cfg(feature = "tls")]
    pub(super) fn set_tls(&mut self, tls: Option<TlsInfo>) {
        self.tls = tls;
    }

    /// The subprotocols that the client offers, in its order of preference (RFC 6455 section 1.9).
    ///
    /// They come from all `Sec-WebSocket-Protocol` lines. In a WebSocket handshake each is a token
    /// and none comes twice.
    pub fn protocols(&self) -> impl Iterator<Item = &str> {
        self.header_all("sec-websocket-protocol")
            .flat_map(token::elements)
            .filter_map(|protocol| str::from_utf8(protocol).ok())
            .filter(|protocol| !protocol.is_empty())
    }

    /// Parses one head, as found by [`HeadScanner`](super::head::HeadScanner), with its blank line
    /// and nothing after it.
    ///
    /// The scanner's judgement of line ends and control characters is relied on. At most
    /// `max_headers` headers are taken, and never more than 64.
    ///
    /// # Errors
    ///
    /// 431 for too many headers; 400 for everything else that is not exactly one HTTP/1.1 request
    /// in origin form.
    pub(crate) fn parse(head: Vec<u8>, peer: Peer, max_headers: usize) -> Result<Self, Refusal> {
        if u32::try_from(head.len()).is_err() {
            return Err(Refusal::head_too_large("the request head is longer than 4 GiB"));
        }
        let mut room = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let max_headers = max_headers.min(MAX_HEADERS);
        let room = room.get_mut(..max_headers).unwrap_or_default();
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(&head, room) {
            Ok(httparse::Status::Complete(len)) if len == head.len() => {}
            Ok(_) => {
                return Err(Refusal::bad_request(
                    "the request head does not end at its blank line",
                ));
            }
            Err(error) => return Err(unreadable(error, max_headers)),
        }
        if parsed.version != Some(1) {
            return Err(Refusal::bad_request(SPEAK_1_1));
        }
        let target = parsed.path.unwrap_or_default();
        check_target(target)?;
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let method = Method::from_bytes(parsed.method.unwrap_or_default().as_bytes())
            .map_err(|_| Refusal::bad_request("the request's method is not a token"))?;

        let mut fields = Vec::with_capacity(parsed.headers.len());
        let mut framing = Framing::default();
        let mut host = None;
        for header in &*parsed.headers {
            match header.name.len() {
                4 if header.name.eq_ignore_ascii_case("host") => {
                    check_host(header.value)?;
                    if host.replace(Span::of(header.value, &head)).is_some() {
                        return Err(Refusal::bad_request(
                            "the request has more than one Host header: send one",
                        ));
                    }
                }
                14 if header.name.eq_ignore_ascii_case("content-length") => {
                    framing.content_length(header.value)?;
                }
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                    framing.transfer_encoding(header.value)?;
                }
                _ => {}
            }
            let name = Span::of(header.name.as_bytes(), &head);
            fields.push(Field { name, value: Span::of(header.value, &head) });
        }
        let Some(host) = host else {
            return Err(Refusal::bad_request(
                "the request has no Host header: HTTP/1.1 requires one",
            ));
        };
        let (target, path) = (Span::of(target.as_bytes(), &head), Span::of(path.as_bytes(), &head));
        Ok(Self {
            method,
            target,
            path,
            host,
            framing: framing.found,
            fields,
            peer,
            client: peer.ip(),
            pattern: OnceLock::new(),
            hub: None,
            #[cfg(feature = "tls")]
            tls: None,
            head,
        })
    }

    /// The same request for another target.
    ///
    /// # Errors
    ///
    /// As of [`parse`](Self::parse), if it is none.
    #[cfg(feature = "fallback")]
    pub(crate) fn with_target(&self, target: &str) -> Result<Self, Refusal> {
        // Before it is put among the head's lines.
        check_target(target)?;
        let after = self.head.get(self.target.end as usize..).unwrap_or_default();
        let head = [self.method.as_str().as_bytes(), b" ", target.as_bytes(), after].concat();
        let mut request = Self::parse(head, self.peer, MAX_HEADERS)?;
        request.client = self.client;
        #[cfg(feature = "tls")]
        request.set_tls(self.tls.clone());
        Ok(request)
    }

    /// Where its body ends.
    pub(super) fn framing(&self) -> body::Framing {
        self.framing
    }

    /// All headers, names and values as bytes.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|field| (self.bytes(field.name), self.bytes(field.value)))
    }

    fn bytes(&self, span: Span) -> &[u8] {
        self.head.get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    /// For the parts that the parser has found to be ASCII.
    fn text(&self, span: Span) -> &str {
        str::from_utf8(self.bytes(span)).unwrap_or_default()
    }
}

/// Without query and headers, where tokens and cookies are: this may end in a log.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("path", &self.path())
            .field("host", &self.text(self.host))
            .field("peer", &format_args!("{}", ClientName(self.peer, self.client)))
            .finish_non_exhaustive()
    }
}

/// One header line.
#[derive(Clone, Copy)]
struct Field {
    name: Span,
    value: Span,
}

/// A part of the head; half the size of a range of `usize`.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Where `part`, which the parser has borrowed from `head`, lies in it.
    fn of(part: &[u8], head: &[u8]) -> Self {
        // No cut: the head is shorter than 4 GiB. The accessors look the span up, so that even a
        // wrong one could not make them panic.
        let start = part.as_ptr().addr().wrapping_sub(head.as_ptr().addr()) as u32;
        Self { start, end: start.wrapping_add(part.len() as u32) }
    }
}

/// What the head says about a body. Where two readers could find two ends, the request is refused
/// (RFC 9112 section 6.3).
#[derive(Default)]
struct Framing {
    length: bool,
    encoding: bool,
    found: body::Framing,
}

impl Framing {
    fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        // RFC 9110 section 8.6 lets a recipient take "5, 5" and two equal lines for one; we are not
        // that kind.
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let length = str::from_utf8(value).ok().and_then(|value| value.parse().ok());
        let Some(length) = length.filter(|_| digits) else {
            return Err(Refusal::bad_request("Content-Length must be one decimal number"));
        };
        if self.length {
            return Err(Refusal::bad_request(
                "the request has more than one Content-Length header: send one",
            ));
        }
        self.length = true;
        self.found = body::Framing::Length(length);
        self.both()
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal::bad_request(
                "Transfer-Encoding can be \"chunked\" and nothing else here",
            ));
        }
        if self.encoding {
            return Err(Refusal::bad_request(
                "the request has more than one Transfer-Encoding header: send one",
            ));
        }
        self.encoding = true;
        self.found = body::Framing::Chunked;
        self.both()
    }

    fn both(&self) -> Result<(), Refusal> {
        if self.length && self.encoding {
            return Err(Refusal::bad_request(
                "the request has both Content-Length and Transfer-Encoding: send one of them",
            ));
        }
        Ok(())
    }
}

/// Proxies that have not been told about WebSocket speak 1.0 to what is behind them.
const SPEAK_1_1: &str = "this server speaks HTTP/1.1 only: \
    if there is a proxy in front, let it do the same (nginx: proxy_http_version 1.1)";

fn unreadable(error: httparse::Error, max_headers: usize) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => Refusal::head_too_large(format!(
            "the request has more than {max_headers} headers: send fewer"
        )),
        httparse::Error::Version => Refusal::bad_request(SPEAK_1_1),
        // RFC 9112 section 5.1: whitespace before the colon must be answered with a 400.
        httparse::Error::HeaderName => Refusal::bad_request(
            "a header line does not begin with a name and, right behind it, a colon",
        ),
        httparse::Error::HeaderValue => {
            Refusal::bad_request("a header value has a byte that may not stand there")
        }
        httparse::Error::NewLine => {
            Refusal::bad_request("a line of the request head does not end in CRLF")
        }
        _ => Refusal::bad_request(
            "the request line must be a method, a target and HTTP/1.1, with one space between them",
        ),
    }
}

/// RFC 9112 section 3.2.1: origin form, the only one that is meant for a server that is not a
/// proxy.
fn check_target(target: &str) -> Result<(), Refusal> {
    if !target.starts_with('/') {
        return Err(Refusal::bad_request(
            "the request target must be a path that begins with a slash: this server is not a proxy",
        ));
    }
    if target.contains('#') {
        return Err(Refusal::bad_request(
            "the request target has a fragment (#): it is not for servers, leave it out",
        ));
    }
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Refusal::bad_request(
            "the request target has a byte that is not visible ASCII: percent-encode it",
        ));
    }
    Ok(())
}

/// RFC 9112 section 3.2: an invalid Host is answered with a 400.
fn check_host(value: &[u8]) -> Result<(), Refusal> {
    if str::from_utf8(value).ok().and_then(Authority::parse).is_none() {
        return Err(Refusal::bad_request(format!(
            "the Host header must be a host or host:port, it was {:?}",
            quote(value)
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::*;
    use ::http::StatusCode;

    /// A GET with `lines` behind its Host line.
    fn with(lines: &[u8]) -> Vec<u8> {
        [b"GET /chat HTTP/1.1\r\nHost: example.com\r\n", lines, b"\r\n"].concat()
    }

    #[track_caller]
    fn refused(head: &[u8]) -> String {
        let refusal = read(head).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
        refusal.reason.into_owned()
    }

    fn target(target: &[u8]) -> Vec<u8> {
        [b"GET ", target, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat()
    }

    #[test]
    fn an_ordinary_request_is_read_without_loss() {
        let head = b"GET /chat/room?name=a%20b&x=? HTTP/1.1\r\nHost: example.com:8080\r\nX-One:  padded \t\r\nx-one: two\r\n\
            Origin: http://example.com\r\nX-Empty:\r\n\r\n";
        let peer = "10.0.0.9:4000".parse().unwrap();
        let request = Request::parse(head.to_vec(), Peer::Tcp(peer), 64).unwrap();
        assert_eq!(request.method(), Method::GET);
        assert_eq!(request.target(), "/chat/room?name=a%20b&x=?");
        assert_eq!(request.path(), "/chat/room");
        assert_eq!(request.query(), Some("name=a%20b&x=?"));
        assert_eq!(request.host(), Some("example.com:8080"));
        assert_eq!(request.origin(), Some("http://example.com"));
        assert_eq!(request.peer_addr(), Some(peer));
        assert_eq!(request.header("X-ONE"), Some("padded"));
        assert_eq!(request.header_all("x-one").collect::<Vec<_>>(), [&b"padded"[..], b"two"]);
        assert_eq!(request.header("x-empty"), Some(""));
        assert_eq!(request.header("x-none"), None);
        assert_eq!(
            request.headers().collect::<Vec<_>>(),
            [
                ("Host", &b"example.com:8080"[..]),
                ("X-One", b"padded"),
                ("x-one", b"two"),
                ("Origin", b"http://example.com"),
                ("X-Empty", b"")
            ]
        );
    }

    #[test]
    fn path_and_query_are_told_apart_at_the_first_question_mark() {
        for (sent, path, query) in [
            ("/", "/", None),
            ("/a?", "/a", Some("")),
            ("/?a?b", "/", Some("a?b")),
            ("/a/b", "/a/b", None),
        ] {
            let request = read(&target(sent.as_bytes())).unwrap();
            assert_eq!((request.path(), request.query()), (path, query), "{sent}");
        }
    }

    #[test]
    fn values_that_are_not_utf_8_are_there_as_bytes_only() {
        let request = read(&with(b"X-Old: caf\xe9\r\nX-New: caf\xc3\xa9\r\n")).unwrap();
        assert_eq!(request.header("x-old"), None);
        assert_eq!(request.header_bytes("x-old"), Some(&b"caf\xe9"[..]));
        assert_eq!(request.header("x-new"), Some("caf\u{e9}"));
    }

    #[test]
    fn protocols_come_from_all_lines_in_order() {
        let request =
            read(&with(b"Sec-WebSocket-Protocol: b, a\r\nX: y\r\nsec-websocket-protocol:c\r\n"))
                .unwrap();
        assert_eq!(request.protocols().collect::<Vec<_>>(), ["b", "a", "c"]);
        assert_eq!(read(&with(b"")).unwrap().protocols().count(), 0);
    }

    #[test]
    fn other_versions_are_refused() {
        for version in
            ["HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/11", "http/1.1", "ICY"]
        {
            assert!(
                refused(format!("GET / {version}\r\nHost: a\r\n\r\n").as_bytes())
                    .contains("HTTP/1.1"),
                "{version}"
            );
        }
        assert_eq!(refused(b"PRI * HTTP/2.0\r\n\r\n"), SPEAK_1_1);
        assert_eq!(refused(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n"), SPEAK_1_1);
    }

    #[test]
    fn the_request_line_has_three_parts_and_single_spaces() {
        for line in [
            "GET /",
            "GET  / HTTP/1.1",
            "GET /  HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET /a b HTTP/1.1",
            "GET HTTP/1.1",
            "GET ",
        ] {
            refused(format!("{line}\r\nHost: a\r\n\r\n").as_bytes());
        }
    }

    #[test]
    fn any_method_that_is_a_token_is_read() {
        assert_eq!(read(b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().method(), Method::POST);
        assert_eq!(
            read(b"a-very-long-method-of-their-own /x HTTP/1.1\r\nHost: a\r\n\r\n")
                .unwrap()
                .method()
                .as_str()
                .len(),
            31
        );
    }

    #[test]
    fn targets_that_are_not_paths_are_refused() {
        for sent in ["http://example.com/chat", "*", "example.com:443", "chat", "?a", "ws://a/"] {
            assert!(refused(&target(sent.as_bytes())).contains("begins with a slash"), "{sent}");
        }
        assert!(refused(b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n").contains("not a proxy"));
    }

    #[test]
    fn fragments_and_invisible_bytes_in_the_target_are_refused() {
        assert!(refused(&target(b"/a#b")).contains("fragment"));
        for sent in [&b"/caf\xc3\xa9"[..], b"/\xff", b"/\x7f"] {
            refused(&target(sent));
        }
    }

    #[test]
    fn exactly_one_host_is_needed() {
        assert!(refused(b"GET / HTTP/1.1\r\n\r\n").contains("no Host"));
        assert!(refused(&with(b"Host: example.com\r\n")).contains("more than one Host"));
        assert!(refused(&with(b"host: other.example\r\n")).contains("more than one Host"));
    }

    #[test]
    fn a_host_that_is_not_one_is_refused() {
        for host in ["", " ", "a, b", "a/b", "user@a", "a b", "a:http", "http://a"] {
            assert!(
                refused(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
                    .contains("Host"),
                "{host}"
            );
        }
    }

    #[test]
    fn whitespace_before_the_colon_is_refused() {
        assert!(refused(&with(b"X-A : b\r\n")).contains("colon"));
        assert!(refused(&with(b"X-A\t: b\r\n")).contains("colon"));
        assert!(refused(&with(b"Transfer-Encoding : chunked\r\n")).contains("colon"));
    }

    #[test]
    fn header_names_are_tokens() {
        for line in [
            &b"X A: b\r\n"[..],
            b": b\r\n",
            b"no colon\r\n",
            b"X\xe9: b\r\n",
            b"X(a): b\r\n",
            b"\"X\": b\r\n",
        ] {
            assert!(refused(&with(line)).contains("colon"));
        }
    }

    #[test]
    fn folded_header_is_refused_by_the_parser_too() {
        for head in [
            with(b"X: a\r\n b\r\n"),
            with(b" X: a\r\n"),
            b"GET / HTTP/1.1\r\n Host: a\r\n\r\n".to_vec(),
        ] {
            assert!(Request::parse(head, Peer::Memory, 64).is_err());
        }
    }

    #[test]
    fn a_delete_character_in_a_value_is_refused() {
        assert!(refused(&with(b"X: a\x7f\r\n")).contains("value"));
    }

    #[test]
    fn two_lengths_are_refused_even_when_equal() {
        assert!(
            refused(&with(b"Content-Length: 5\r\ncontent-length: 5\r\n"))
                .contains("more than one Content-Length")
        );
        assert!(read(&with(b"Content-Length: 5\r\n")).is_ok());
    }

    #[test]
    fn a_length_is_a_number() {
        for value in ["", "+5", "-1", "5, 5", "0x5", "5 5", "18446744073709551616", "five"] {
            let line = format!("Content-Length: {value}\r\n");
            assert!(refused(&with(line.as_bytes())).contains("decimal number"), "{value}");
        }
        assert!(read(&with(b"Content-Length: 18446744073709551615\r\n")).is_ok());
    }

    #[test]
    fn length_and_encoding_together_are_refused_in_either_order() {
        assert!(
            refused(&with(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n")).contains("both")
        );
        assert!(
            refused(&with(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n")).contains("both")
        );
    }

    #[test]
    fn transfer_encoding_is_chunked_once_or_refused() {
        assert!(read(&with(b"Transfer-Encoding: Chunked\r\n")).is_ok());
        for value in [
            "xchunked",
            "identity",
            "gzip, chunked",
            "chunked, chunked",
            "",
            "chunked;a=b",
            "\"chunked\"",
        ] {
            assert!(
                refused(&with(format!("Transfer-Encoding: {value}\r\n").as_bytes()))
                    .contains("Transfer-Encoding"),
                "{value}"
            );
        }
        assert!(
            refused(&with(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"))
                .contains("more than one")
        );
    }

    #[test]
    fn sixty_four_headers_pass_and_one_more_does_not() {
        let most = with(&b"X: y\r\n".repeat(63));
        assert_eq!(read(&most).unwrap().headers().count(), 64);
        let refusal = read(&with(&b"X: y\r\n".repeat(64))).unwrap_err();
        assert_eq!(refusal.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        assert!(refusal.reason.contains("more than 64 headers"));
    }

    #[test]
    fn the_bound_on_headers_can_be_lower_but_not_higher() {
        assert!(Request::parse(with(b"X: y\r\n"), Peer::Memory, 2).is_ok());
        assert!(
            Request::parse(with(b"X: y\r\n"), Peer::Memory, 1)
                .unwrap_err()
                .reason
                .contains("more than 1 headers")
        );
        assert!(Request::parse(with(b""), Peer::Memory, 0).is_err());
        assert!(Request::parse(with(&b"X: y\r\n".repeat(64)), Peer::Memory, usize::MAX).is_err());
    }

    #[test]
    fn a_head_with_something_behind_it_or_without_its_end_is_refused() {
        let mut long = with(b"");
        long.push(b'x');
        assert!(Request::parse(long, Peer::Memory, 64).is_err());
        let mut short = with(b"");
        short.pop();
        assert!(Request::parse(short, Peer::Memory, 64).is_err());
        assert!(Request::parse(Vec::new(), Peer::Memory, 64).is_err());
    }

    #[test]
    fn secrets_do_not_reach_a_log_by_debug() {
        let request =
            read(b"GET /a?token=hush HTTP/1.1\r\nHost: a\r\nCookie: hush\r\n\r\n").unwrap();
        let text = format!("{request:?}");
        assert!(!text.contains("hush"), "{text}");
        assert!(text.contains("/a"), "{text}");
    }
}
