//! What proxies say about the client in `X-Forwarded-For` and `Forwarded` (RFC 7239).
//!
//! Each proxy appends the address that it was connected from, so only the end of the list is worth
//! anything: what stands left of the first address that is no trusted proxy may have been written by
//! the client itself.

use std::net::IpAddr;
use std::str;

use super::token;
use crate::config::{ForwardedHeader, Proxies};
use crate::transport::Peer;

/// The client's address, as far as it is believed: the rightmost one that is no trusted proxy.
///
/// `nearest` is who has connected, or for whom by the PROXY protocol; `lines` are the values of the
/// configured header in the order in which they came. Where the list says nothing that can be read
/// (`unknown`, a hidden name, nonsense), the proxy that stands behind it is the nearest that is known.
pub(crate) fn client_ip<'a>(
    nearest: Peer,
    lines: impl IntoIterator<Item = &'a [u8]>,
    proxies: &Proxies,
) -> Option<IpAddr> {
    let mut client = nearest.ip();
    if !proxies.trusts(nearest) {
        return client;
    }
    let lines: Vec<&[u8]> = lines.into_iter().collect();
    for line in lines.iter().rev() {
        let hops = match proxies.header {
            ForwardedHeader::XForwardedFor => x_forwarded_for(line),
            ForwardedHeader::Forwarded => forwarded(line),
        };
        for hop in hops.iter().rev() {
            if hop.is_none() {
                return client;
            }
            client = *hop;
            if client.is_some_and(|ip| !proxies.trusts_ip(ip)) {
                return client;
            }
        }
    }
    client
}

/// The name of the header.
pub(crate) fn name(header: ForwardedHeader) -> &'static str {
    match header {
        ForwardedHeader::XForwardedFor => "x-forwarded-for",
        ForwardedHeader::Forwarded => "forwarded",
    }
}

/// A list of addresses; there is no specification. `None` for an element that is none.
fn x_forwarded_for(line: &[u8]) -> Vec<Option<IpAddr>> {
    token::elements(line).filter(|element| !element.is_empty()).map(node).collect()
}

/// RFC 7239 section 4. A line that does not follow the grammar says nothing: an open quotation mark, for
/// example, may swallow what a proxy has appended.
fn forwarded(line: &[u8]) -> Vec<Option<IpAddr>> {
    let mut hops = Vec::new();
    let mut rest = Rest(line);
    loop {
        match element(&mut rest) {
            Some(Element { empty: true, .. }) => {}
            Some(Element { client, .. }) => hops.push(client),
            None => return vec![None],
        }
        rest.skip_space();
        match rest.next() {
            None => return hops,
            Some(b',') => {}
            Some(_) => return vec![None],
        }
    }
}

/// One `forwarded-element`: pairs with semicolons between.
struct Element {
    client: Option<IpAddr>,
    /// It has no pair at all: an empty element of a list (RFC 9110 section 5.6.1).
    empty: bool,
}

fn element(rest: &mut Rest<'_>) -> Option<Element> {
    let mut found = None;
    let mut empty = true;
    loop {
        rest.skip_space();
        let name = rest.token();
        if !name.is_empty() {
            empty = false;
            if rest.next() != Some(b'=') {
                return None;
            }
            let value = rest.value()?;
            // Each parameter at most once (RFC 7239 section 4).
            if name.eq_ignore_ascii_case(b"for") && found.replace(node(&value)).is_some() {
                return None;
            }
        }
        rest.skip_space();
        if rest.peek() != Some(b';') {
            return Some(Element { client: found.flatten(), empty });
        }
        rest.next();
        // A semicolon alone has an element around it, too.
        empty = false;
    }
}

/// What of a line has not been read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t')) {
            self.next();
        }
    }

    fn token(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|byte| !token::is_token_byte(*byte));
        let (token, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        token
    }

    /// A token or a quoted string (RFC 9110 section 5.6.4).
    fn value(&mut self) -> Option<Vec<u8>> {
        if self.peek() != Some(b'"') {
            let token = self.token();
            return (!token.is_empty()).then(|| token.to_vec());
        }
        self.next();
        let mut value = Vec::new();
        loop {
            match self.next()? {
                b'"' => return Some(value),
                b'\\' => value.push(self.next()?),
                byte => value.push(byte),
            }
        }
    }
}

/// An address with or without a port: RFC 7239 section 6, and what is seen in `X-Forwarded-For`, where
/// IPv6 addresses often stand without brackets.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text).ok()?.trim();
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => match text.find(':') {
            // A second colon: it is no port.
            Some(at) if text.matches(':').count() == 1 => text.split_at(at),
            _ => (text, ""),
        },
    };
    let port_is_one = match port.strip_prefix(':') {
        Some(port) => token::is_token(port.as_bytes()),
        None => port.is_empty(),
    };
    if !port_is_one {
        return None;
    }
    address.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(header: ForwardedHeader) -> Proxies {
        let trusted = ["10.0.0.0/8", "fd00::/8", "unix:"].map(|it| it.parse().unwrap()).to_vec();
        Proxies { trusted, header, ..Proxies::default() }
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[track_caller]
    fn says(header: ForwardedHeader, nearest: Peer, lines: &[&str], expected: Option<IpAddr>) {
        let lines = lines.iter().map(|line| line.as_bytes());
        let client = client_ip(nearest, lines.clone(), &proxies(header));
        assert_eq!(
            client,
            expected,
            "{:?}",
            lines.map(String::from_utf8_lossy).collect::<Vec<_>>()
        );
    }

    fn proxy() -> Peer {
        Peer::Tcp("10.0.0.1:4000".parse().unwrap())
    }

    #[test]
    fn the_rightmost_address_that_is_no_proxy_wins() {
        use ForwardedHeader::XForwardedFor as X;
        let stranger = Peer::Tcp("192.0.2.9:4000".parse().unwrap());
        says(X, stranger, &["203.0.113.7"], ip("192.0.2.9"));
        says(X, Peer::Stream, &["203.0.113.7"], None);
        says(X, Peer::Memory, &["203.0.113.7"], None);
        says(X, proxy(), &[], ip("10.0.0.1"));
        says(X, proxy(), &["203.0.113.7"], ip("203.0.113.7"));
        says(X, Peer::Unix, &["203.0.113.7"], ip("203.0.113.7"));
        says(X, Peer::Unix, &[], None);
        // What the client wrote itself stands on the left.
        says(X, proxy(), &["1.1.1.1, 203.0.113.7"], ip("203.0.113.7"));
        says(X, proxy(), &["1.1.1.1", "203.0.113.7"], ip("203.0.113.7"));
        says(X, proxy(), &["1.1.1.1, 203.0.113.7, 10.2.3.4", "fd00::1"], ip("203.0.113.7"));
        // All are proxies: the farthest.
        says(X, proxy(), &["10.0.0.3, 10.0.0.2"], ip("10.0.0.3"));
        // Nothing left of what cannot be read is believed.
        says(X, proxy(), &["203.0.113.7, nonsense"], ip("10.0.0.1"));
        says(X, proxy(), &["203.0.113.7, nonsense, 10.0.0.2"], ip("10.0.0.2"));
        says(X, Peer::Unix, &["unknown"], None);
    }

    #[test]
    fn addresses_are_read_in_every_form_that_is_seen() {
        for (text, expected) in [
            ("203.0.113.7", Some("203.0.113.7")),
            ("203.0.113.7:4711", Some("203.0.113.7")),
            ("2001:db8::7", Some("2001:db8::7")),
            ("[2001:db8::7]", Some("2001:db8::7")),
            ("[2001:db8::7]:4711", Some("2001:db8::7")),
            ("[2001:db8::7]:_port", Some("2001:db8::7")),
            ("::ffff:203.0.113.7", Some("203.0.113.7")),
            ("203.0.113.07", None),
            ("203.0.113.7:", None),
            ("203.0.113.7:a b", None),
            ("[2001:db8::7", None),
            ("[2001:db8::7]x", None),
            ("unknown", None),
            ("_hidden", None),
            ("example.com", None),
            ("", None),
        ] {
            assert_eq!(node(text.as_bytes()), expected.map(|it| it.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn the_forwarded_header_is_read_by_its_grammar() {
        use ForwardedHeader::Forwarded as F;
        let client = ip("203.0.113.7");
        for line in [
            "for=203.0.113.7",
            "For=\"203.0.113.7:4711\"",
            "for=203.0.113.7;proto=https;by=10.0.0.1",
            "proto=https ; for=\"203.0.113.7\" ; host=\"a,b;c\\\"d\"",
            "for=1.1.1.1, for=203.0.113.7",
            "for=\"evil, for=1.1.1.1\", for=203.0.113.7",
            "for=203.0.113.7, for=\"[fd00::1]:80\" , for=10.0.0.9;proto=http",
            ", for=203.0.113.7,,",
        ] {
            says(F, proxy(), &[line], client);
        }
        says(F, proxy(), &["for=\"[2001:db8::7]\""], ip("2001:db8::7"));
        says(F, proxy(), &["for=1.1.1.1", "for=203.0.113.7"], client);
        // Only a proxy's word, and only about whom it is for.
        for line in [
            "for=unknown",
            "for=_secret",
            "by=203.0.113.7",
            "proto=https",
            ";",
            "for=203.0.113.7;for=1.1.1.1",
            "for=\"203.0.113.7",
            "for=\"open, for=203.0.113.7",
            "for=\"open, for=\"203.0.113.7\"",
            "for=203.0.113.7 x",
            "for =203.0.113.7",
            "for= 203.0.113.7",
            "for",
            "for=",
            "=203.0.113.7",
            "203.0.113.7",
            "for=[2001:db8::7]",
        ] {
            says(F, proxy(), &[line], ip("10.0.0.1"));
            says(F, proxy(), &["for=1.1.1.1", line], ip("10.0.0.1"));
        }
        // And not that of the header which is not configured.
        says(F, proxy(), &["203.0.113.7"], ip("10.0.0.1"));
    }
}
