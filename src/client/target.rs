//! Where to connect to: a URL (RFC 6455 section 3), taken apart once.

use std::fmt;

use ::http::Uri;
use ::http::uri::{Authority, PathAndQuery};

use super::error::ConnectError;

/// A `ws://` or `wss://` URL.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) tls: bool,
    /// A name or an address, without the brackets of an IPv6 address.
    pub(super) host: String,
    pub(super) port: u16,
    /// As it stands in `Host`.
    pub(super) authority: String,
    /// `user:password`, as they stood in the URL.
    pub(super) credentials: Option<String>,
    pub(super) path: PathAndQuery,
}

impl Target {
    pub(super) fn parse(url: &str) -> Result<Self, ConnectError> {
        // A fragment names a part of what comes back, and nothing does: RFC 6455 section 3 refuses it.
        if url.contains('#') {
            return Err(wrong(
                url,
                "a WebSocket has no fragment: leave out the # and what follows it",
            ));
        }
        let uri: Uri = url.parse().map_err(|error| wrong(url, &format!("{error}")))?;
        let tls = match uri.scheme_str() {
            Some("ws") => false,
            Some("wss") => true,
            Some("http") => return Err(wrong(url, "write ws:// for a WebSocket without TLS")),
            Some("https") => return Err(wrong(url, "write wss:// for a WebSocket with TLS")),
            _ => return Err(wrong(url, "it has to begin with ws:// or wss://")),
        };
        if tls && cfg!(not(feature = "tls")) {
            return Err(wrong(url, "this build has no TLS: build with the feature `tls`"));
        }
        let authority = uri.authority().ok_or_else(|| wrong(url, "it has no host"))?;
        let (host, port) = host_and_port(url, authority, if tls { 443 } else { 80 })?;
        let (credentials, shown) = match authority.as_str().rsplit_once('@') {
            Some((credentials, shown)) => (Some(credentials.to_owned()), shown),
            None => (None, authority.as_str()),
        };
        let path = match uri.path_and_query() {
            Some(path) if path.as_str().starts_with('/') => path.clone(),
            // `ws://host?query`
            Some(path) => {
                // Displayed it has a slash already.
                format!("/{}", path.as_str())
                    .parse()
                    .map_err(|error| wrong(url, &format!("{error}")))?
            }
            None => PathAndQuery::from_static("/"),
        };
        Ok(Self { tls, host, port, authority: shown.to_owned(), credentials, path })
    }
}

/// A name or an address, and a port.
pub(super) fn host_and_port(
    url: &str,
    authority: &Authority,
    default: u16,
) -> Result<(String, u16), ConnectError> {
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Err(wrong(url, "it has no host"));
    }
    let shown = authority.as_str().rsplit('@').next().unwrap_or_default();
    let port = match authority.port() {
        Some(port) => match port.as_u16() {
            0 => return Err(wrong(url, "port 0 is nobody's")),
            port => port,
        },
        // Something behind the colon that is no number of a port.
        None if shown.rsplit(']').next().unwrap_or_default().contains(':') => {
            return Err(wrong(url, "its port is no number from 1 to 65535"));
        }
        None => default,
    };
    Ok((host.to_owned(), port))
}

pub(super) fn wrong(url: &str, problem: &str) -> ConnectError {
    ConnectError::Url { url: without_secrets(url), problem: problem.to_owned() }
}

/// What may be shown of a URL.
fn without_secrets(url: &str) -> String {
    let is_scheme = |(it, _): &(&str, &str)| it.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let (scheme, rest) = match url.split_once("://").filter(is_scheme) {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    // One slash too many, or no scheme before two.
    let (slashes, rest) = rest.split_at(rest.len() - rest.trim_start_matches('/').len());
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    // A slash or a question mark may be part of the password where they must not be: then what follows the colon is no
    // port. An IPv6 address has colons of its own.
    let no_port = |(_, port): (&str, &str)| port.parse::<u16>().is_err();
    let astray = !authority.starts_with('[') && authority.split_once(':').is_some_and(no_port);
    let (shown, cut) = match rest.split_once('?') {
        Some((shown, _)) => (shown, "?.."),
        None => (rest, ""),
    };
    let at = if astray { shown.rfind('@') } else { authority.rfind('@') };
    match at {
        Some(at) => format!("{scheme}..{}{cut}", &shown[at..]),
        // Whether it belongs to the password or to the query, nobody knows.
        None if astray && rest.contains('@') => format!("{scheme}.."),
        None => format!("{scheme}{slashes}{shown}{cut}"),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.authority, self.path.path())
    }
}

/// Without the credentials, and without the query, which may be some.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(url: &str) -> (bool, String, u16, String, String) {
        let Target { tls, host, port, authority, path, .. } = Target::parse(url).unwrap();
        (tls, host, port, authority, path.to_string())
    }

    #[test]
    fn a_url_is_taken_apart() {
        let of = |tls, host: &str, port, authority: &str, path: &str| {
            (tls, host.to_owned(), port, authority.to_owned(), path.to_owned())
        };
        assert_eq!(parts("ws://a"), of(false, "a", 80, "a", "/"));
        assert_eq!(parts("ws://a:9001/b?c=d"), of(false, "a", 9001, "a:9001", "/b?c=d"));
        assert_eq!(parts("ws://[::1]:80/"), of(false, "::1", 80, "[::1]:80", "/"));
        assert_eq!(parts("ws://a?b"), of(false, "a", 80, "a", "/?b"));
        #[cfg(feature = "tls")]
        assert_eq!(
            parts("wss://[2001:db8::1]"),
            of(true, "2001:db8::1", 443, "[2001:db8::1]", "/")
        );
        let with = Target::parse("ws://me:secret@a:1/b?token=secret").unwrap();
        assert_eq!(with.credentials.as_deref(), Some("me:secret"));
        assert_eq!(format!("{with} {with:?}"), "ws://a:1/b ws://a:1/b");
    }

    #[test]
    fn what_is_no_url_is_explained_and_no_password_is_shown() {
        for (url, why) in [
            ("", "empty"),
            ("a:9001", "begin with ws://"),
            ("//a", "begin with ws://"),
            ("http://a/", "write ws://"),
            ("https://a/", "write wss://"),
            ("ftp://a/", "begin with ws://"),
            ("ws:///b", "invalid"),
            ("ws://:80/", "no host"),
            ("ws://a:0/", "port 0"),
            ("ws://a:65536/", "port"),
            ("ws://a/#b", "fragment"),
            ("ws://a b/", "invalid"),
        ] {
            let error = Target::parse(url).unwrap_err().to_string();
            assert!(error.contains(why), "{url}: {error}");
        }
        let error = Target::parse("http://me:secret@a/").unwrap_err().to_string();
        assert!(error.contains("http://..@a/") && !error.contains("secret"), "{error}");
        for (url, shown) in [
            ("ws://me:sec/ret@a/b?token=secret", "\"ws://..@a/b?..\""),
            ("ws://me:sec#ret@a/b?token=secret", "\"ws://..@a/b?..\""),
            ("ws://me:sec?ret@a/b?token=secret", "\"ws://..\""),
            ("ws://me:sec/?ret@a/b", "\"ws://..\""),
            ("ws://a:bad/b?to=me@secret", "\"ws://..\""),
            ("ws://a:1#/me@b?to=me@secret", "\"ws://a:1#/me@b?..\""),
            ("ws://[::1]:80#/me@b?to=me@secret", "\"ws://[::1]:80#/me@b?..\""),
            ("ws://me:secret@[::1]:0/", "\"ws://..@[::1]:0/\""),
            ("ws://me@you:secret@a:0/", "\"ws://..@a:0/\""),
            ("ws:///me:secret@a/", "\"ws://..@a/\""),
            ("//me:secret@a/", "\"..@a/\""),
            ("me:secret@a/?b=http://c", "\"..@a/?..\""),
            ("a/?token=secret&b=http://c", "\"a/?..\""),
            ("a/?token=secret&b=ws://c@d", "\"a/?..\""),
            ("/a?token=secret&b=http://c", "\"/a?..\""),
        ] {
            let error = Target::parse(url).unwrap_err().to_string();
            assert!(error.contains(shown) && !error.contains("sec"), "{url}: {error}");
        }
    }
}
