//! `host[:port]`, as it stands in a Host header and in an origin (RFC 3986 section 3.2).

use std::net::Ipv6Addr;

/// A host and, if one was written, its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Authority<'a> {
    /// Not empty; an IPv6 address keeps its brackets.
    pub(super) host: &'a str,
    pub(super) port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Reads the whole of `text`; `None` if it is not `host[:port]`.
    ///
    /// Stricter than RFC 3986 in one thing: a comma in a host name is refused, because it is how a
    /// proxy joins two Host headers. User information (`user@host`) is refused as everywhere in
    /// HTTP (RFC 9110 section 4.2.4).
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let end = if text.starts_with('[') {
            text.find(']')? + 1
        } else {
            text.find(':').unwrap_or(text.len())
        };
        let (host, port) = text.split_at_checked(end)?;
        if !is_host(host) {
            return None;
        }
        let port = match port.strip_prefix(':') {
            // "host:" is allowed and means no port.
            Some("") => None,
            // The digits are checked apart because the integer parser takes a plus sign.
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            None if port.is_empty() => None,
            _ => return None,
        };
        Some(Self { host, port })
    }

    /// Whether two hosts are one, with their ports filled in from the scheme's default.
    pub(super) fn same_as(self, other: Self, default_port: Option<u16>) -> bool {
        self.host.eq_ignore_ascii_case(other.host)
            && self.port.or(default_port) == other.port.or(default_port)
    }
}

fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => {
            let (address, zone) = address.split_once('%').unwrap_or((address, ""));
            address.parse::<Ipv6Addr>().is_ok() && zone.bytes().all(is_name_byte)
        }
        None => !host.is_empty() && host.bytes().all(is_name_byte),
    }
}

/// RFC 3986 `reg-name` without the comma; percent signs are not looked behind, names are only
/// compared.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'%'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b';'
                | b'='
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_with_and_without_a_port_are_read() {
        for (text, host, port) in [
            ("example.com", "example.com", None),
            ("example.com:8080", "example.com", Some(8080)),
            ("example.com:", "example.com", None),
            ("my_box.local:80", "my_box.local", Some(80)),
            ("10.0.0.1:1", "10.0.0.1", Some(1)),
            ("[::1]", "[::1]", None),
            ("[::1]:9090", "[::1]", Some(9090)),
            ("[fe80::1%25eth0]:80", "[fe80::1%25eth0]", Some(80)),
        ] {
            assert_eq!(Authority::parse(text), Some(Authority { host, port }), "{text}");
        }
    }

    #[test]
    fn anything_else_is_not_an_authority() {
        for text in [
            "",
            ":80",
            "a b",
            "a/b",
            "a,b",
            "user@host",
            "host:80:80",
            "host:http",
            "host:+80",
            "host:-1",
            "host:65536",
            "[::1",
            "[::1]80",
            "[]",
            "[::g]",
            "::1",
            "a\0",
            "caf\u{e9}",
            "a#b",
            "a?b",
            "a\\b",
            "[",
            "]",
            "host:99999999999999999999",
        ] {
            assert_eq!(Authority::parse(text), None, "{text}");
        }
    }
}
