//! The PROXY protocol, versions 1 and 2: the header by which a proxy says for whom it has connected.
//!
//! Specification: "The PROXY protocol", HAProxy, `doc/proxy-protocol.txt`; section numbers are its.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::{self, FromStr};

/// How version 1 begins (section 2.1).
const V1: &[u8] = b"PROXY ";

/// The longest line of version 1 with its end (section 2.1).
const V1_LONGEST: usize = 107;

/// How version 2 begins (section 2.2): no text does, and no TLS record either.
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family, length.
const V2_HEAD: usize = 16;

/// The longest header of version 2. The addresses take at most 216 bytes, and what proxies add in TLVs
/// (a TLS client's name, a cloud's identifiers) a few hundred; a length field could claim 64 KiB.
const V2_LONGEST: usize = 4096;

/// A whole header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Its length in bytes: what follows is the client's.
    pub(crate) len: usize,
    /// The client, if it has an address. `None`: it is the proxy itself that has connected (LOCAL: a
    /// health check), or it does not know for whom (UNKNOWN), or for a peer of the Unix family on its
    /// own machine.
    pub(crate) client: Option<SocketAddr>,
}

/// Why there is no header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// It begins with something else.
    Missing,
    /// It begins like one.
    Malformed(&'static str),
}

use Invalid::{Malformed, Missing};

/// Looks at all that has arrived on a connection so far. `None`: there must be more to come.
///
/// What cannot become a header is refused as soon as the byte that shows it is there, and what is left
/// to wait for is bounded: 107 bytes for version 1, 4 096 for version 2.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Header>, Invalid> {
    let begins = |signature: &[u8]| {
        let known = bytes.len().min(signature.len());
        bytes.get(..known) == signature.get(..known)
    };
    if begins(V1) {
        return if bytes.len() < V1.len() { Ok(None) } else { parse_v1(bytes) };
    }
    if begins(V2) {
        return parse_v2(bytes);
    }
    Err(Missing)
}

/// Section 2.1, a line: `PROXY TCP4 192.0.2.7 192.0.2.1 4711 443`.
fn parse_v1(bytes: &[u8]) -> Result<Option<Header>, Invalid> {
    let window = bytes.get(..V1_LONGEST).unwrap_or(bytes);
    let Some(end) = window.iter().position(|byte| byte.is_ascii_control()) else {
        return unfinished(window);
    };
    match window.get(end..) {
        Some([b'\r', b'\n', ..]) => {}
        Some([b'\r']) => return unfinished(window),
        _ => return Err(Malformed("its line does not end in CRLF")),
    }
    let line = window.get(V1.len()..end).unwrap_or_default();
    let line = str::from_utf8(line).map_err(|_| Malformed("its line is not ASCII"))?;
    let mut fields = line.split(' ');
    let mut field = || fields.next().unwrap_or_default();
    let client = match field() {
        // Section 2.1: the receiver must ignore anything behind it.
        "UNKNOWN" => return Ok(Some(Header { len: end + 2, client: None })),
        "TCP4" => addresses::<Ipv4Addr>([field(), field(), field(), field()]),
        "TCP6" => addresses::<Ipv6Addr>([field(), field(), field(), field()]),
        _ => return Err(Malformed("its protocol is none of TCP4, TCP6 and UNKNOWN")),
    };
    match (client, fields.next()) {
        (Some(client), None) => Ok(Some(Header { len: end + 2, client: Some(client) })),
        _ => Err(Malformed("its line is not two addresses of its family and two ports")),
    }
}

fn unfinished(window: &[u8]) -> Result<Option<Header>, Invalid> {
    if window.len() < V1_LONGEST { Ok(None) } else { Err(Malformed("its line has no end")) }
}

/// Source address, destination address, source port, destination port; the source is the client.
fn addresses<A: FromStr + Into<IpAddr>>(fields: [&str; 4]) -> Option<SocketAddr> {
    let [source, destination, source_port, destination_port] = fields;
    let _: A = destination.parse().ok()?;
    port(destination_port)?;
    let source: A = source.parse().ok()?;
    Some(canonical(source.into(), port(source_port)?))
}

/// Decimal, without sign and leading zeros.
fn port(text: &str) -> Option<u16> {
    let plain =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// An IPv4 address that is written as an IPv6 one is taken for IPv4.
fn canonical(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}

/// Section 2.2: sixteen bytes, addresses by family, TLVs.
fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, Invalid> {
    let Some(command) = bytes.get(V2.len()) else {
        return Ok(None);
    };
    let proxied = match command {
        0x20 => false,
        0x21 => true,
        _ => return Err(Malformed("its version is not 2, or its command neither LOCAL nor PROXY")),
    };
    let Some([family, high, low]) = bytes.get(V2.len() + 1..V2_HEAD) else {
        return Ok(None);
    };
    let len = V2_HEAD + usize::from(u16::from_be_bytes([*high, *low]));
    if len > V2_LONGEST {
        return Err(Malformed("it is longer than 4096 bytes"));
    }
    // For LOCAL the family says nothing (section 2.2). Of the transports, datagrams come from clients of
    // HTTP/3.
    let needed = match (proxied, family) {
        (false, _) | (true, 0x00) => 0,
        (true, 0x11 | 0x12) => 12,
        (true, 0x21 | 0x22) => 36,
        (true, 0x31 | 0x32) => 216,
        _ => return Err(Malformed("its address family is unknown")),
    };
    if len < V2_HEAD + needed {
        return Err(Malformed("it is too short for its addresses"));
    }
    let Some(rest) = bytes.get(V2_HEAD..len) else {
        return Ok(None);
    };
    // What follows the addresses is TLVs, which are skipped; the checksum among them is not required.
    let client = match (needed, rest) {
        (12, [a, b, c, d, _, _, _, _, high, low, ..]) => {
            let ip = Ipv4Addr::new(*a, *b, *c, *d);
            Some(canonical(ip.into(), u16::from_be_bytes([*high, *low])))
        }
        (36, _) => rest.first_chunk::<34>().map(|both| {
            let [ip @ .., _, _] = both;
            let (ip, _) = ip.split_at(16);
            let ip = ip.iter().fold(0_u128, |all, byte| all << 8 | u128::from(*byte));
            let [.., high, low] = both;
            canonical(Ipv6Addr::from(ip).into(), u16::from_be_bytes([*high, *low]))
        }),
        _ => None,
    };
    Ok(Some(Header { len, client }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 2.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&V2[..], &[command, family], &len, rest].concat()
    }

    fn v2_addresses(source: &str, destination: &str) -> Vec<u8> {
        let (source, destination): (SocketAddr, SocketAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        let octets = |it: SocketAddr| match it.ip() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        [octets(source), octets(destination), ports].concat()
    }

    /// Every header there is, and what it says.
    fn valid() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let longest = "PROXY TCP6 ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n"
            .replace("f...f", "ffff:ffff:ffff:ffff:ffff:ffff");
        let unknown = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_LONGEST - 16));
        assert_eq!((longest.len(), unknown.len()), (104, V1_LONGEST));
        let v4 = v2_addresses("192.0.2.7:4711", "192.0.2.1:443");
        let v6 = v2_addresses("[2001:db8::7]:4711", "[2001:db8::1]:443");
        let mapped = v2_addresses("[::ffff:192.0.2.7]:4711", "[::ffff:192.0.2.1]:443");
        // A TLV that nobody knows.
        let tlv = [0xE0, 0, 3, 1, 2, 3];
        let most = vec![0xEE; V2_LONGEST - V2_HEAD - 12];
        vec![
            (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n".to_vec(), Some("192.0.2.7:4711")),
            (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n".to_vec(), Some("0.0.0.0:0")),
            (b"PROXY TCP6 2001:db8::7 ::1 4711 443\r\n".to_vec(), Some("[2001:db8::7]:4711")),
            (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 4711 443\r\n".to_vec(), Some("192.0.2.7:4711")),
            (longest.into_bytes(), Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (unknown.into_bytes(), None),
            (v2(0x21, 0x11, &v4), Some("192.0.2.7:4711")),
            (v2(0x21, 0x12, &v4), Some("192.0.2.7:4711")),
            (v2(0x21, 0x11, &[&v4[..], &tlv].concat()), Some("192.0.2.7:4711")),
            (v2(0x21, 0x11, &[&v4[..], &most].concat()), Some("192.0.2.7:4711")),
            (v2(0x21, 0x21, &v6), Some("[2001:db8::7]:4711")),
            (v2(0x21, 0x22, &[&v6[..], &tlv].concat()), Some("[2001:db8::7]:4711")),
            (v2(0x21, 0x21, &mapped), Some("192.0.2.7:4711")),
            (v2(0x21, 0x31, &[b'/'; 216]), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x21, 0x00, &tlv), None),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &v4), None),
            (v2(0x20, 0xEE, &tlv), None),
        ]
    }

    #[test]
    fn every_header_is_found_however_it_is_cut() {
        for (header, client) in valid() {
            let client = client.map(|client| client.parse().unwrap());
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]), Ok(None), "{cut} of {header:?}");
            }
            let len = header.len();
            for behind in [&b""[..], b"GET / HTTP/1.1\r\n", b"PROXY ", V2, b"\0"] {
                let bytes = [&header, behind].concat();
                assert_eq!(parse(&bytes), Ok(Some(Header { len, client })), "{header:?}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_at_the_byte_that_shows_it() {
        for (bytes, first) in [
            (&b"GET / HTTP/1.1\r\n"[..], 1),
            (b"PRI * HTTP/2.0", 3),
            (b"PROXX", 5),
            (b"\r\n\r\n\0\r\nQUIT\r", 12),
            (b"\r\nGET", 3),
            (b"\x16\x03\x01", 1),
            (b"\0", 1),
        ] {
            for cut in 0..=bytes.len() {
                let expected = if cut < first { Ok(None) } else { Err(Missing) };
                assert_eq!(parse(&bytes[..cut]), expected, "{cut} of {bytes:?}");
            }
        }
    }

    #[test]
    fn what_is_malformed_stays_so_and_is_never_waited_for_beyond_its_bound() {
        let v4 = v2_addresses("192.0.2.7:4711", "192.0.2.1:443");
        let mut wrong: Vec<Vec<u8>> = [
            "PROXY TCP4 192.0.2.7 192.0.2.1 4711\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 4711 443 \r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 4711 443 5\r\n",
            "PROXY TCP4  192.0.2.7 192.0.2.1 4711 443\r\n",
            "PROXY TCP4 192.0.2.7\t192.0.2.1 4711 443\r\n",
            "PROXY TCP4 192.0.2.07 192.0.2.1 4711 443\r\n",
            "PROXY TCP4 192.0.2 192.0.2.1 4711 443\r\n",
            "PROXY TCP4 2001:db8::7 2001:db8::1 4711 443\r\n",
            "PROXY TCP6 192.0.2.7 192.0.2.1 4711 443\r\n",
            "PROXY TCP6 fe80::1%1 ::1 4711 443\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 04711 443\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 +471 443\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 65536 443\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 4711 -1\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\rx",
            "PROXY TCP4\r\n",
            "PROXY UDP4 192.0.2.7 192.0.2.1 4711 443\r\n",
            "PROXY tcp4 192.0.2.7 192.0.2.1 4711 443\r\n",
            "PROXY unknown\r\n",
            "PROXY \r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 4711 44\u{e9}\r\n",
        ]
        .into_iter()
        .map(|line| line.as_bytes().to_vec())
        .collect();
        wrong.push(format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_LONGEST - 15)).into_bytes());
        wrong.push(format!("PROXY UNKNOWN {}", "x".repeat(V1_LONGEST)).into_bytes());
        wrong.extend([
            v2(0x11, 0x11, &v4),
            v2(0x31, 0x11, &v4),
            v2(0x22, 0x11, &v4),
            v2(0x2F, 0x00, &[]),
            v2(0x21, 0x10, &v4),
            v2(0x21, 0x13, &v4),
            v2(0x21, 0x41, &v4),
            v2(0x21, 0x01, &[]),
            v2(0x21, 0x11, &v4[..11]),
            v2(0x21, 0x21, &[0; 35]),
            v2(0x21, 0x31, &[0; 215]),
            v2(0x20, 0x00, &vec![0; V2_LONGEST - V2_HEAD + 1]),
        ]);
        for bytes in wrong {
            let mut seen = Ok(None);
            for cut in 0..=bytes.len() {
                let now = parse(&bytes[..cut]);
                if seen == Ok(None) {
                    assert!(matches!(now, Ok(None) | Err(Malformed(_))), "{cut} of {bytes:?}");
                } else {
                    assert_eq!(now, seen, "{cut} of {bytes:?}");
                }
                seen = now;
            }
            assert!(seen.is_err(), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn no_bytes_at_all_make_it_wait_for_ever_or_panic() {
        // Everything that begins like a header, with any two bytes changed.
        for (header, _) in valid() {
            let header = &header[..header.len().min(60)];
            for at in 0..header.len() {
                for byte in [0, b'\r', b'\n', b' ', 0x21, 0x7F, 0x80, 0xFF] {
                    let mut bytes = header.to_vec();
                    bytes[at] = byte;
                    bytes.resize(V2_LONGEST, b'0');
                    assert_ne!(parse(&bytes), Ok(None), "{bytes:?}");
                }
            }
        }
    }
}
