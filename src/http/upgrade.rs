//! The WebSocket handshake of RFC 6455 section 4.2: what a client must send, and the 101 answer.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use ::http::Method;
use ::http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};
use async_tungstenite::tungstenite::handshake::derive_accept_key;

use super::extensions::{EXTENSIONS, Extensions};
use super::refusal::{Refusal, quote};
use super::request::Request;
use super::response::header;
use super::token;

/// How an accept hook says yes: the subprotocol, more response headers, and data for the session.
///
/// An empty one, `Upgrade::new()`, accepts without any of them and costs no allocation. It is
/// checked when it is sent: see the methods for what the server refuses to send on the
/// application's behalf. In that case the client gets a 500 that does not say why, and the log
/// does.
#[derive(Default)]
#[must_use = "an Upgrade accepts a request when the hook returns it"]
pub struct Upgrade {
    pub(crate) subprotocol: Option<String>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) data: Option<Arc<dyn Any + Send + Sync>>,
}

impl Upgrade {
    /// Accepts as it is: no subprotocol, no further headers, no data.
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses the subprotocol; the last call counts.
    ///
    /// It must be one of those that the client offers ([`Request::protocols`]), in the same case
    /// (RFC 6455 section 4.2.2); otherwise the request is answered with a 500. A browser that
    /// offered some and is given none fails the connection.
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.subprotocol = Some(name.into());
        self
    }

    /// Adds a response header, for example `Set-Cookie`; a name may come several times.
    ///
    /// The headers of the handshake itself cannot be set: `Connection`, `Upgrade`,
    /// `Content-Length`, `Transfer-Encoding`, and all that begin with `Sec-WebSocket-`. With one of
    /// these the request is answered with a 500.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Attaches a value to the session, for example who the user is; one for each session, the last
    /// call counts.
    pub fn data<T: Any + Send + Sync>(mut self, data: T) -> Self {
        self.data = Some(Arc::new(data));
        self
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Header values may be session cookies.
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Upgrade")
            .field("subprotocol", &self.subprotocol)
            .field("headers", &names)
            .field("data", &self.data.is_some())
            .finish()
    }
}

/// A handshake that follows the rules and may be accepted.
#[derive(Debug)]
pub(crate) struct Offer {
    /// The proof that we understood: `Sec-WebSocket-Accept` (RFC 6455 section 4.2.2, item 5.4).
    pub(crate) accept_key: String,
}

/// Whether a request is meant to be a WebSocket handshake, by the rules or not.
///
/// Its key is a sign of it as well: proxies that have not been told about WebSocket take the `Upgrade` header
/// away, and nothing else.
pub(super) fn is_asked_for(request: &Request) -> bool {
    request.fields().any(|(name, value)| match name.len() {
        7 if name.eq_ignore_ascii_case(b"upgrade") => {
            // What cannot be read is for the check.
            list_has(value, b"websocket", is_protocol).unwrap_or(true)
        }
        17 => name.eq_ignore_ascii_case(b"sec-websocket-key"),
        _ => false,
    })
}

/// Checks that a request is a WebSocket handshake by every rule of RFC 6455 section 4.2.1.
///
/// What the request offers, subprotocols and extensions, stays in it. The subprotocols are checked
/// here; the extensions are for whoever negotiates them.
///
/// # Errors
///
/// 405 for any method but GET, 426 for a GET that does not ask for a WebSocket or asks for another
/// version of it, 400 for a handshake that breaks a rule.
pub(crate) fn check(request: &Request) -> Result<Offer, Refusal> {
    if request.method() != Method::GET {
        return Err(Refusal::method_not_allowed(
            "a WebSocket handshake is a GET request: this address serves nothing else",
        ));
    }
    let seen = Seen::read(request)?;
    if !seen.upgrade {
        return Err(Refusal::upgrade_required(
            "this address serves WebSocket: connect with a WebSocket client, and if there \
             is a proxy in between, let it pass on the Upgrade and Connection headers",
        ));
    }
    if !seen.connection {
        return Err(Refusal::bad_request(
            "the request has \"Upgrade: websocket\" but no \"Connection: Upgrade\": \
             if there is a proxy in between, let it send both",
        ));
    }
    // A body before the first frame: where it ends is what two readers could see differently.
    if seen.body {
        return Err(Refusal::bad_request(
            "a WebSocket handshake has no body: send neither Content-Length nor Transfer-Encoding",
        ));
    }
    match seen.version {
        Field::Once(b"13") => {}
        // RFC 6455 section 4.4: the answer names the version that we speak.
        Field::Once(other) => {
            return Err(Refusal::upgrade_required(format!(
                "WebSocket version {:?} is not spoken here, 13 is",
                quote(other)
            )));
        }
        // Not a 426: a client that does not name its version will not find another to try.
        Field::Missing => {
            return Err(Refusal::bad_request(
                "the handshake has no Sec-WebSocket-Version header: send 13",
            ));
        }
        Field::Repeated => {
            return Err(Refusal::bad_request(
                "the handshake has more than one Sec-WebSocket-Version header: send one",
            ));
        }
    }
    let key = match seen.key {
        Field::Once(key) if is_key(key) => key,
        Field::Once(_) => {
            return Err(Refusal::bad_request(
                "Sec-WebSocket-Key must be 16 bytes in base64, 24 characters with the padding",
            ));
        }
        Field::Missing => {
            return Err(Refusal::bad_request("the handshake has no Sec-WebSocket-Key header"));
        }
        Field::Repeated => {
            return Err(Refusal::bad_request(
                "the handshake has more than one Sec-WebSocket-Key header: send one",
            ));
        }
    };
    if seen.protocols {
        check_protocols(request)?;
    }
    Ok(Offer { accept_key: derive_accept_key(key) })
}

/// Appends the 101 answer to `out`: from its last byte on, both sides speak frames.
///
/// # Errors
///
/// 500 if `upgrade` has what may not be sent; nothing has been appended then.
pub(crate) fn accept(
    offer: &Offer,
    request: &Request,
    upgrade: &Upgrade,
    extensions: &Extensions,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let mut len = HEADERS.len() + offer.accept_key.len() + 4;
    if let Some(chosen) = &upgrade.subprotocol {
        // What was offered are tokens, so this is also what keeps line ends out of the answer.
        if !token::is_token(chosen.as_bytes())
            || !request.protocols().any(|offered| offered == chosen)
        {
            return Err(Refusal::internal(format!(
                "the accept hook chose the subprotocol {:?}, which the client did not offer: \
                 choose from Request::protocols()",
                quote(chosen.as_bytes())
            )));
        }
        len += PROTOCOL.len() + 4 + chosen.len();
    }
    for (name, value) in &upgrade.headers {
        if is_ours(name) {
            return Err(Refusal::internal(format!(
                "the accept hook set the header {:?}, which belongs to the handshake: leave it out",
                quote(name.as_str().as_bytes())
            )));
        }
        len += name.as_str().len() + value.len() + 4;
    }

    if let Some(answer) = &extensions.answer {
        len += EXTENSIONS.len() + 4 + answer.len();
    }

    out.reserve(len);
    out.extend_from_slice(HEADERS);
    out.extend_from_slice(offer.accept_key.as_bytes());
    out.extend_from_slice(b"\r\n");
    if let Some(chosen) = &upgrade.subprotocol {
        header(out, PROTOCOL, chosen.as_bytes());
    }
    if let Some(answer) = &extensions.answer {
        header(out, EXTENSIONS, answer.as_bytes());
    }
    for (name, value) in &upgrade.headers {
        // Neither type can hold a line end, so no header can add another.
        header(out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

const HEADERS: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ";
const PROTOCOL: &str = "Sec-WebSocket-Protocol";

/// The headers that a handshake is made of, gathered in one walk over the request.
#[derive(Default)]
struct Seen<'a> {
    upgrade: bool,
    connection: bool,
    body: bool,
    protocols: bool,
    version: Field<'a>,
    key: Field<'a>,
}

impl<'a> Seen<'a> {
    fn read(request: &'a Request) -> Result<Self, Refusal> {
        let mut seen = Self::default();
        for (name, value) in request.fields() {
            // The length first: most headers are not ours, and most of those are of another length.
            match name.len() {
                7 if name.eq_ignore_ascii_case(b"upgrade") => {
                    seen.upgrade |=
                        list_has(value, b"websocket", is_protocol).ok_or_else(|| {
                            Refusal::bad_request(
                                "the Upgrade header is not a list of protocol names",
                            )
                        })?;
                }
                10 if name.eq_ignore_ascii_case(b"connection") => {
                    seen.connection |= connection_has(value, b"upgrade")?;
                }
                14 if name.eq_ignore_ascii_case(b"content-length") => seen.body = true,
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => seen.body = true,
                17 if name.eq_ignore_ascii_case(b"sec-websocket-key") => seen.key.add(value),
                21 if name.eq_ignore_ascii_case(b"sec-websocket-version") => {
                    seen.version.add(value);
                }
                22 if name.eq_ignore_ascii_case(b"sec-websocket-protocol") => seen.protocols = true,
                _ => {}
            }
        }
        Ok(seen)
    }
}

/// A header that must come once.
#[derive(Default)]
enum Field<'a> {
    #[default]
    Missing,
    Once(&'a [u8]),
    Repeated,
}

impl<'a> Field<'a> {
    fn add(&mut self, value: &'a [u8]) {
        *self = match self {
            Self::Missing => Self::Once(value),
            Self::Once(_) | Self::Repeated => Self::Repeated,
        };
    }
}

/// Whether a `Connection` line has this option.
///
/// # Errors
///
/// 400 if it is no list of tokens.
pub(super) fn connection_has(line: &[u8], wanted: &[u8]) -> Result<bool, Refusal> {
    list_has(line, wanted, token::is_token)
        .ok_or_else(|| Refusal::bad_request("the Connection header is not a list of header names"))
}

/// Whether a list line has `wanted` in any case; `None` if an element does not follow the grammar.
///
/// Empty elements are passed over, as RFC 9110 section 5.6.1 asks.
fn list_has(line: &[u8], wanted: &[u8], valid: fn(&[u8]) -> bool) -> Option<bool> {
    let mut found = false;
    for element in token::elements(line).filter(|element| !element.is_empty()) {
        if element.eq_ignore_ascii_case(wanted) {
            found = true;
        } else if !valid(element) {
            return None;
        }
    }
    Some(found)
}

/// RFC 9110 section 7.8: a name, or a name and a version like `HTTP/2.0`.
fn is_protocol(element: &[u8]) -> bool {
    let mut parts = element.splitn(2, |byte| *byte == b'/');
    parts.all(token::is_token)
}

/// RFC 6455 section 4.1, item 10: tokens, and each of them once.
fn check_protocols(request: &Request) -> Result<(), Refusal> {
    let mut offered: Vec<&[u8]> = Vec::new();
    for line in request.header_all(PROTOCOL) {
        for protocol in token::elements(line) {
            if !token::is_token(protocol) {
                return Err(Refusal::bad_request(
                    "Sec-WebSocket-Protocol must be a list of names (tokens), none of them empty",
                ));
            }
            offered.push(protocol);
        }
    }
    // Sorted, because comparing each with each would let one head of short names cost milliseconds.
    offered.sort_unstable();
    if offered.windows(2).any(|pair| matches!(pair, [one, next] if one == next)) {
        return Err(Refusal::bad_request(
            "Sec-WebSocket-Protocol offers a name twice: send each once",
        ));
    }
    Ok(())
}

/// Canonical base64 of 16 bytes: 22 characters, of which the last carries 2 bits and 4 zeros, and
/// two of padding (RFC 6455 section 4.1, item 7; RFC 4648 sections 3.5 and 4).
fn is_key(key: &[u8]) -> bool {
    let Some(digits) = key.strip_suffix(b"==") else { return false };
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    digits.len() == 22
        && digits.iter().all(digit)
        && matches!(digits.last(), Some(b'A' | b'Q' | b'g' | b'w'))
}

/// The headers that the handshake sets itself or that would say that the 101 has a body.
fn is_ours(name: &HeaderName) -> bool {
    *name == CONNECTION
        || *name == UPGRADE
        || *name == CONTENT_LENGTH
        || *name == TRANSFER_ENCODING
        || name.as_str().starts_with("sec-websocket-")
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::*;
    use ::http::StatusCode;

    /// The handshake of RFC 6455 section 1.3 without the lines that begin with one of `without`,
    /// and with `more`.
    fn handshake(without: &[&str], more: &str) -> Request {
        let mut head = "GET /chat HTTP/1.1\r\nHost: server.example.com\r\n".to_owned();
        for line in [
            "Upgrade: websocket\r\n",
            "Connection: Upgrade\r\n",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            "Sec-WebSocket-Version: 13\r\n",
        ] {
            if !without.iter().any(|name| line.starts_with(name)) {
                head.push_str(line);
            }
        }
        read(format!("{head}{more}\r\n").as_bytes()).unwrap()
    }

    #[track_caller]
    fn refused(status: u16, without: &[&str], more: &str) -> String {
        let refusal = check(&handshake(without, more)).unwrap_err();
        assert_eq!(refusal.status, StatusCode::from_u16(status).unwrap(), "{refusal}");
        refusal.reason.into_owned()
    }

    #[track_caller]
    fn passes(without: &[&str], more: &str) {
        assert_eq!(
            check(&handshake(without, more)).unwrap().accept_key,
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    fn answer(request: &Request, upgrade: &Upgrade) -> Result<String, Refusal> {
        let mut out = Vec::new();
        let done =
            accept(&check(request).unwrap(), request, upgrade, &Extensions::default(), &mut out);
        let text = String::from_utf8(out).unwrap();
        if done.is_err() {
            assert_eq!(text, "", "a refused answer must not be begun");
        }
        done.map(|()| text)
    }

    #[test]
    fn the_sample_of_the_rfc_is_accepted_with_its_key() {
        assert_eq!(
            answer(&handshake(&[], ""), &Upgrade::new()).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        );
    }

    #[test]
    fn only_get_is_a_handshake() {
        for method in ["POST", "HEAD", "OPTIONS", "get", "FOO"] {
            let request = read(
                format!("{method} / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n").as_bytes(),
            )
            .unwrap();
            let refusal = check(&request).unwrap_err();
            assert_eq!(refusal.status, StatusCode::METHOD_NOT_ALLOWED, "{method}");
            assert_eq!(refusal.headers, [("Allow", "GET")]);
        }
    }

    #[test]
    fn a_plain_get_is_told_to_upgrade() {
        let plain = read(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let refusal = check(&plain).unwrap_err();
        assert_eq!(refusal.status, StatusCode::UPGRADE_REQUIRED);
        assert_eq!(refusal.headers, [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]);
        assert!(refused(426, &["Upgrade"], "").contains("proxy"));
        refused(426, &["Upgrade"], "Upgrade: h2c\r\n");
        refused(426, &["Upgrade"], "Upgrade: websocket/13\r\n");
        refused(426, &["Upgrade"], "Upgrade: websockets\r\n");
        refused(426, &["Upgrade"], "Upgrade:\r\n");
        refused(426, &["Upgrade"], "Content-Length: 0\r\n");
    }

    #[test]
    fn upgrade_may_be_a_list_of_any_case_over_several_lines() {
        passes(&["Upgrade"], "Upgrade: WebSocket\r\n");
        passes(&["Upgrade"], "upgrade: h2c, WEBSOCKET\r\n");
        passes(&["Upgrade"], "Upgrade: HTTP/2.0\r\nUpgrade: websocket\r\n");
        passes(&["Upgrade"], "Upgrade: websocket\r\nUpgrade: h2c\r\n");
        passes(&["Upgrade"], "Upgrade: ,websocket,\r\n");
    }

    #[test]
    fn connection_may_be_a_list_of_any_case_over_several_lines() {
        passes(&["Connection"], "Connection: keep-alive, Upgrade\r\n");
        passes(&["Connection"], "connection: UPGRADE\r\n");
        passes(&["Connection"], "Connection: keep-alive\r\nConnection: upgrade\r\n");
        passes(&["Connection"], "Connection: Upgrade\r\nConnection: keep-alive\r\n");
        passes(&["Connection"], "Connection:\tkeep-alive ,\t upgrade ,,\r\n");
    }

    #[test]
    fn connection_without_upgrade_is_refused() {
        assert!(refused(400, &["Connection"], "").contains("Connection: Upgrade"));
        refused(400, &["Connection"], "Connection: keep-alive\r\n");
        refused(400, &["Connection"], "Connection: close, upgraded\r\n");
        refused(400, &["Connection"], "Connection:\r\n");
    }

    #[test]
    fn malformed_lists_are_refused() {
        assert!(refused(400, &[], "Connection: keep alive\r\n").contains("Connection header"));
        assert!(
            refused(400, &["Connection"], "Connection: \"Upgrade\"\r\n")
                .contains("Connection header")
        );
        assert!(
            refused(400, &["Connection"], "Connection: keep-alive; Upgrade\r\n")
                .contains("Connection header")
        );
        assert!(refused(400, &[], "Upgrade: a b\r\n").contains("Upgrade header"));
        assert!(refused(400, &[], "Upgrade: a/b/c\r\n").contains("Upgrade header"));
        assert!(refused(400, &[], "Upgrade: a/\r\n").contains("Upgrade header"));
        assert!(
            refused(400, &["Upgrade"], "Upgrade: websocket;q=1\r\n").contains("Upgrade header")
        );
    }

    #[test]
    fn a_handshake_with_a_body_is_refused() {
        for line in
            ["Content-Length: 5\r\n", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n"]
        {
            assert!(refused(400, &[], line).contains("no body"), "{line}");
        }
    }

    #[test]
    fn another_version_is_answered_with_ours() {
        for version in ["8", "0", "14", "013", "13, 8", "+13", "", "x"] {
            let refusal = check(&handshake(
                &["Sec-WebSocket-V"],
                &format!("Sec-WebSocket-Version: {version}\r\n"),
            ))
            .unwrap_err();
            assert_eq!(refusal.status, StatusCode::UPGRADE_REQUIRED, "{version}");
            assert!(refusal.headers.contains(&("Sec-WebSocket-Version", "13")));
        }
        passes(&["Sec-WebSocket-V"], "sec-websocket-version:  13 \r\n");
    }

    #[test]
    fn the_version_comes_once() {
        assert!(refused(400, &["Sec-WebSocket-V"], "").contains("no Sec-WebSocket-Version"));
        assert!(
            refused(400, &[], "Sec-WebSocket-Version: 13\r\n")
                .contains("more than one Sec-WebSocket-Version")
        );
        assert!(
            refused(400, &[], "sec-websocket-version: 8\r\n")
                .contains("more than one Sec-WebSocket-Version")
        );
    }

    #[test]
    fn the_key_comes_once() {
        assert!(refused(400, &["Sec-WebSocket-K"], "").contains("no Sec-WebSocket-Key"));
        assert!(
            refused(400, &[], "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
                .contains("more than one Sec-WebSocket-Key")
        );
    }

    #[test]
    fn a_key_is_sixteen_bytes_in_canonical_base64() {
        for key in
            ["AAAAAAAAAAAAAAAAAAAAAA==", "+/+/+/+/+/+/+/+/+/+/+w==", "0123456789abcdefghijkQ=="]
        {
            assert!(is_key(key.as_bytes()), "{key}");
        }
        for key in [
            "",
            "==",
            "AAAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAAAA=",
            "AAAAAAAAAAAAAAAAAAAAA===",
            "AAAAAAAAAAAAAAAAAAAAAB==",
            "AAAAAAAAAAAAAAAAAAAAAf==",
            "AAAAAAAAAAAAAAAAAAAAAAA=",
            "AAAAAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAAA==",
            "AAAAAAAAAAAAAAAAAAAAAAA==",
            "-_-_-_-_-_-_-_-_-_-_-w==",
            "AAAA AAAAAAAAAAAAAAAAA==",
            "AAAAAAAAAAA=AAAAAAAAAA==",
        ] {
            assert!(!is_key(key.as_bytes()), "{key}");
        }
        assert!(
            refused(400, &["Sec-WebSocket-K"], "Sec-WebSocket-Key: c2hvcnQ=\r\n")
                .contains("16 bytes")
        );
        refused(400, &["Sec-WebSocket-K"], "Sec-WebSocket-Key:\r\n");
    }

    #[test]
    fn extensions_are_carried_unread() {
        passes(&[], "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n");
        passes(&[], "Sec-WebSocket-Extensions: =;=\r\n");
    }

    #[test]
    fn offered_subprotocols_are_tokens() {
        passes(
            &[],
            "Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Protocol: v2.bus\r\n",
        );
        for value in ["", ",", "chat,", ",chat", "chat,,bus", "a b", "a/b", "\"a\"", "caf\u{e9}"] {
            assert!(
                refused(400, &[], &format!("Sec-WebSocket-Protocol: {value}\r\n"))
                    .contains("Protocol"),
                "{value}"
            );
        }
    }

    #[test]
    fn offered_subprotocols_are_unique() {
        assert!(refused(400, &[], "Sec-WebSocket-Protocol: chat, bus, chat\r\n").contains("twice"));
        assert!(
            refused(400, &[], "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: chat\r\n")
                .contains("twice")
        );
        // Their case matters.
        passes(&[], "Sec-WebSocket-Protocol: chat, Chat\r\n");
    }

    #[test]
    fn a_chosen_subprotocol_and_headers_are_in_the_answer() {
        let request = handshake(&[], "Sec-WebSocket-Protocol: chat, bus\r\n");
        let upgrade = Upgrade::new()
            .subprotocol("bus")
            .header(::http::header::SET_COOKIE, HeaderValue::from_static("a=1"))
            .header(::http::header::SET_COOKIE, HeaderValue::from_static("b=2"))
            .data(7_u32);
        assert_eq!(
            answer(&request, &upgrade).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: bus\r\n\
             set-cookie: a=1\r\nset-cookie: b=2\r\n\r\n"
        );
        assert_eq!(upgrade.data.unwrap().downcast_ref::<u32>(), Some(&7));
    }

    #[test]
    fn a_subprotocol_that_was_not_offered_is_our_mistake() {
        let offers = handshake(&[], "Sec-WebSocket-Protocol: chat\r\n");
        for (request, chosen) in [
            (&offers, "bus"),
            (&offers, "Chat"),
            (&offers, ""),
            (&offers, "chat\r\nSet-Cookie: a=1"),
            (&offers, "chat, bus"),
            (&handshake(&[], ""), "chat"),
        ] {
            let refusal = answer(request, &Upgrade::new().subprotocol(chosen)).unwrap_err();
            assert_eq!(refusal.status, StatusCode::INTERNAL_SERVER_ERROR, "{chosen}");
            assert!(refusal.reason.contains("did not offer"), "{refusal}");
            assert!(!refusal.reason.contains('\n'), "{refusal}");
        }
    }

    #[test]
    fn headers_of_the_handshake_itself_cannot_be_set() {
        for name in [
            "connection",
            "upgrade",
            "content-length",
            "transfer-encoding",
            "sec-websocket-accept",
            "sec-websocket-extensions",
            "sec-websocket-protocol",
            "sec-websocket-version",
        ] {
            let upgrade =
                Upgrade::new().header(HeaderName::from_static(name), HeaderValue::from_static("x"));
            let refusal = answer(&handshake(&[], ""), &upgrade).unwrap_err();
            assert_eq!(refusal.status, StatusCode::INTERNAL_SERVER_ERROR, "{name}");
            assert!(refusal.reason.contains(name), "{refusal}");
        }
    }

    #[test]
    fn the_answer_is_appended() {
        let request = handshake(&[], "");
        let mut out = b"before".to_vec();
        accept(
            &check(&request).unwrap(),
            &request,
            &Upgrade::new(),
            &Extensions::default(),
            &mut out,
        )
        .unwrap();
        assert!(out.starts_with(b"beforeHTTP/1.1 101 "));
    }

    #[test]
    fn secrets_do_not_reach_a_log_by_debug() {
        let upgrade =
            Upgrade::new().header(::http::header::SET_COOKIE, HeaderValue::from_static("hush"));
        assert!(!format!("{upgrade:?}").contains("hush"));
    }
}
