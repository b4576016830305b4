//! Which web pages may open a session (RFC 6455 section 10.2).

use std::str;

use super::authority::Authority;
use super::refusal::{Refusal, quote};
use super::request::Request;

/// Which origins a browser may connect from.
///
/// A browser lets any page of any site open a WebSocket to this server, with the visitor's cookies,
/// and says in the `Origin` header which site it was; there is no other protection against a
/// foreign page speaking in a visitor's name (RFC 6455 section 10.2). A request without `Origin`
/// does not come from a page in a browser and passes every policy: a program can send what it
/// likes, so its origin says nothing.
///
/// A request with more than one `Origin` is refused with 400, one with an origin that is not
/// allowed with 403.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OriginPolicy {
    /// Pages that were loaded from this server's own host and port; the default.
    ///
    /// The host and port of the origin are compared with the `Host` header, without regard to case;
    /// a missing port is the default port of the origin's scheme (80 for `http`, 443 for `https`).
    /// The scheme is compared where this server speaks TLS itself: a page that came over `http` may
    /// have been written by anybody on its way. Without, TLS may be terminated in front of this
    /// server, and any scheme will do. A proxy that replaces `Host` makes this policy refuse every
    /// page: let it pass `Host` on, or use an allow-list. The opaque origin `null` (sandboxed
    /// frames, local files) is refused.
    ///
    /// A page whose host name was made to resolve to this server (DNS rebinding) is of the same
    /// origin by this rule; where that matters, as in a private network, use an allow-list.
    #[default]
    SameOrigin,
    /// Pages from anywhere: for public data, or when each session proves who it is by something
    /// that is not a cookie.
    Any,
    /// Pages from these origins, and from no other: the server's own origin too has to be in the
    /// list.
    ///
    /// An entry is a whole origin: scheme, host, and the port if it is not the scheme's default, as
    /// in `https://example.com` or `http://localhost:5173`. `https://*.example.com` stands for all
    /// subdomains, at any depth, of `example.com`, but not for `example.com`. `null` and `file://`
    /// stand for themselves. Case does not matter.
    AllowList(Vec<String>),
}

impl OriginPolicy {
    /// Whether the page that sent this request may talk to us.
    ///
    /// # Errors
    ///
    /// 403 for an origin that is not allowed, 400 for a request with several.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Refusal> {
        let mut origins = request.header_all("origin");
        // Bytes, not text: an origin that is not UTF-8 is not the same as none.
        let Some(sent) = origins.next() else { return Ok(()) };
        if origins.next().is_some() {
            return Err(Refusal::bad_request(
                "the request has more than one Origin header: send one",
            ));
        }
        let text = str::from_utf8(sent).unwrap_or_default();
        let (allowed, hint) = match self {
            Self::Any => (true, ""),
            Self::SameOrigin => {
                let host = request.host().unwrap_or_default();
                (
                    same_origin(text, host, request.came_over_tls()),
                    "pages from its own host only: name others in OriginPolicy::AllowList",
                )
            }
            Self::AllowList(entries) => (
                entries.iter().any(|entry| matches(entry, text)),
                "listed origins only: add it to OriginPolicy::AllowList",
            ),
        };
        if allowed {
            return Ok(());
        }
        Err(Refusal::forbidden(format!(
            "origin {:?} is not allowed, this server takes {hint}",
            quote(sent)
        )))
    }

    /// The first entry of the allow-list that can match nothing, so that starting can fail with its
    /// name.
    #[allow(dead_code, reason = "for whoever builds the server's configuration")]
    pub(crate) fn invalid_entry(&self) -> Option<&str> {
        let Self::AllowList(entries) = self else { return None };
        entries
            .iter()
            .map(String::as_str)
            .find(|entry| !OPAQUE.contains(entry) && pattern(entry).is_none())
    }
}

/// What browsers send for pages without a host.
const OPAQUE: [&str; 2] = ["null", "file://"];

/// Scheme, host and port (RFC 6454 section 4).
struct Origin<'a> {
    scheme: &'a str,
    authority: Authority<'a>,
}

impl<'a> Origin<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        if !scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            || !scheme.bytes().all(letters)
        {
            return None;
        }
        Some(Self { scheme, authority: Authority::parse(authority)? })
    }

    /// Other schemes (those of browser extensions, say) have no ports.
    fn default_port(&self) -> Option<u16> {
        let is = |scheme: &str| self.scheme.eq_ignore_ascii_case(scheme);
        if is("http") || is("ws") {
            Some(80)
        } else if is("https") || is("wss") {
            Some(443)
        } else {
            None
        }
    }
}

fn same_origin(origin: &str, host: &str, tls: bool) -> bool {
    match (Origin::parse(origin), Authority::parse(host)) {
        (Some(origin), Some(_)) if tls && !origin.scheme.eq_ignore_ascii_case("https") => false,
        (Some(origin), Some(host)) => origin.authority.same_as(host, origin.default_port()),
        _ => false,
    }
}

fn matches(entry: &str, origin: &str) -> bool {
    if OPAQUE.contains(&entry) {
        return entry == origin;
    }
    let (Some((entry, subdomains)), Some(origin)) = (pattern(entry), Origin::parse(origin)) else {
        return false;
    };
    if !entry.scheme.eq_ignore_ascii_case(origin.scheme) {
        return false;
    }
    let mut authority = origin.authority;
    if subdomains {
        // What remains of the host behind its first labels; the rest, including the port, is
        // compared as without a star.
        let Some(labels) = authority.host.len().checked_sub(entry.authority.host.len() + 1) else {
            return false;
        };
        let Some((labels, parent)) = authority.host.split_at_checked(labels) else { return false };
        let Some(parent) = parent.strip_prefix('.') else { return false };
        if labels.is_empty() {
            return false;
        }
        authority.host = parent;
    }
    authority.same_as(entry.authority, entry.default_port())
}

/// Reads an entry: the origin without its star, and whether it had one.
fn pattern(entry: &str) -> Option<(Origin<'_>, bool)> {
    let mut origin = Origin::parse(entry)?;
    let parent = origin.authority.host.strip_prefix("*.");
    let subdomains = parent.is_some();
    origin.authority.host = parent.unwrap_or(origin.authority.host);
    // A star elsewhere is a wish that we do not grant; "*." alone would be the whole web.
    let host = origin.authority.host;
    (!host.is_empty() && !host.contains('*')).then_some((origin, subdomains))
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::*;
    use ::http::StatusCode;

    fn request(host: &str, origin: &str) -> Request {
        read(format!("GET / HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n\r\n").as_bytes())
            .unwrap()
    }

    fn same(host: &str, origin: &str) -> bool {
        OriginPolicy::SameOrigin.check(&request(host, origin)).is_ok()
    }

    fn listed(entry: &str, origin: &str) -> bool {
        let policy =
            OriginPolicy::AllowList(vec!["https://other.example".to_owned(), entry.to_owned()]);
        policy.check(&request("server", origin)).is_ok()
    }

    fn policies() -> [OriginPolicy; 3] {
        [OriginPolicy::SameOrigin, OriginPolicy::Any, OriginPolicy::AllowList(Vec::new())]
    }

    #[test]
    fn a_request_without_origin_passes_every_policy() {
        let request = read(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        for policy in policies() {
            assert_eq!(policy.check(&request), Ok(()), "{policy:?}");
        }
    }

    #[test]
    fn two_origins_are_refused_by_every_policy() {
        let request =
            read(b"GET / HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\norigin: http://a\r\n\r\n")
                .unwrap();
        for policy in policies() {
            assert_eq!(
                policy.check(&request).unwrap_err().status,
                StatusCode::BAD_REQUEST,
                "{policy:?}"
            );
        }
    }

    #[test]
    fn the_same_host_and_port_are_the_same_origin() {
        for (host, origin) in [
            ("example.com", "http://example.com"),
            ("example.com", "https://example.com"),
            ("EXAMPLE.com", "https://example.COM"),
            ("example.com:8080", "http://example.com:8080"),
            ("example.com", "http://example.com:80"),
            ("example.com:80", "http://example.com"),
            ("example.com", "https://example.com:443"),
            ("example.com:443", "HTTPS://example.com"),
            ("[::1]:9090", "http://[::1]:9090"),
            ("example.com", "wss://example.com"),
            ("id", "chrome-extension://id"),
        ] {
            assert!(same(host, origin), "{host} {origin}");
        }
    }

    #[test]
    fn another_host_or_port_is_another_origin() {
        for (host, origin) in [
            ("example.com", "http://example.org"),
            ("example.com", "http://www.example.com"),
            ("example.com", "http://example.com.evil.example"),
            ("example.com", "http://evilexample.com"),
            ("example.com", "http://example.com:8080"),
            ("example.com:8080", "http://example.com"),
            ("example.com:443", "http://example.com"),
            ("example.com:80", "https://example.com"),
            ("example.com", "http://user@example.com"),
            ("example.com", "http://example.com/"),
            ("example.com", "example.com"),
            ("example.com", "://example.com"),
            ("example.com", ""),
            ("example.com", "http://example.com http://evil.example"),
            ("null", "null"),
            ("example.com", "file://"),
        ] {
            assert!(!same(host, origin), "{host} {origin}");
        }
    }

    #[test]
    fn the_answer_names_the_origin_and_what_to_configure() {
        let refusal =
            OriginPolicy::SameOrigin.check(&request("a", "https://evil.example")).unwrap_err();
        assert_eq!(refusal.status, StatusCode::FORBIDDEN);
        assert!(refusal.reason.contains("https://evil.example"), "{refusal}");
        assert!(refusal.reason.contains("OriginPolicy::AllowList"), "{refusal}");
    }

    #[test]
    fn an_origin_that_is_not_utf_8_is_not_no_origin() {
        let request = read(b"GET / HTTP/1.1\r\nHost: a\r\nOrigin: http://\xff\r\n\r\n").unwrap();
        assert_eq!(
            OriginPolicy::SameOrigin.check(&request).unwrap_err().status,
            StatusCode::FORBIDDEN
        );
        assert!(OriginPolicy::AllowList(vec![String::new()]).check(&request).is_err());
        assert_eq!(OriginPolicy::Any.check(&request), Ok(()));
    }

    #[test]
    fn listed_origins_pass_and_others_do_not() {
        assert!(listed("https://example.com", "https://example.com"));
        assert!(listed("https://Example.com", "https://example.com:443"));
        assert!(listed("http://localhost:5173", "http://localhost:5173"));
        assert!(listed("null", "null"));
        assert!(listed("file://", "file://"));
        assert!(!listed("https://example.com", "http://example.com"));
        assert!(!listed("https://example.com", "https://example.com:8443"));
        assert!(!listed("https://example.com", "https://www.example.com"));
        assert!(!listed("https://example.com", "https://server"));
        assert!(!listed("https://example.com", "null"));
        assert!(!listed("example.com", "https://example.com"));
        assert!(!listed("", ""));
    }

    #[test]
    fn a_star_stands_for_subdomains_only() {
        let entry = "https://*.example.com";
        assert!(listed(entry, "https://a.example.com"));
        assert!(listed(entry, "https://a.b.Example.com"));
        assert!(listed(entry, "https://a.example.com:443"));
        assert!(listed("http://*.example.com:8080", "http://a.example.com:8080"));
        assert!(!listed(entry, "https://example.com"));
        assert!(!listed(entry, "https://.example.com"));
        assert!(!listed(entry, "https://evilexample.com"));
        assert!(!listed(entry, "https://a.example.com.evil.example"));
        assert!(!listed(entry, "http://a.example.com"));
        assert!(!listed(entry, "https://a.example.com:8443"));
        assert!(!listed("https://*", "https://example.com"));
        assert!(!listed("https://*.", "https://example.com"));
        assert!(!listed("https://a*.example.com", "https://ab.example.com"));
    }

    #[test]
    fn entries_that_can_match_nothing_are_found() {
        let list = |entry: &str| {
            OriginPolicy::AllowList(vec!["https://a.example".to_owned(), entry.to_owned()])
        };
        for entry in
            ["https://b.example:8443", "http://*.b.example", "null", "file://", "http://[::1]:80"]
        {
            assert_eq!(list(entry).invalid_entry(), None, "{entry}");
        }
        for entry in ["example.com", "*", "https://*", "https://a.example/", "https://", ""] {
            assert_eq!(list(entry).invalid_entry(), Some(entry), "{entry}");
        }
        assert_eq!(OriginPolicy::Any.invalid_entry(), None);
    }
}
