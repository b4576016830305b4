//! What proxies say about the client, and what clients say to look like it.
//!
//! * Nothing panics.
//! * A header of the PROXY protocol is found at one byte, whatever follows, and not later than at its
//!   bound. What is refused stays refused.
//! * Whatever a client has written into `X-Forwarded-For` or `Forwarded`: what the trusted proxy appends
//!   is believed, and somebody who is no proxy never is.
//!
//! Input: the bytes.
#![no_main]

use std::net::IpAddr;

use coracle::Peer;
use coracle::config::{Config, ForwardedHeader};
use coracle::internals::{client_ip, proxy_header};
use libfuzzer_sys::fuzz_target;

/// The longest header, of version 2.
const LONGEST: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let mut before = Ok(None);
    for cut in 0..=data.len() {
        let now = proxy_header(&data[..cut]);
        if before == Ok(None) {
            if let Ok(Some((len, _))) = now {
                assert_eq!(len, cut, "found as soon as it is there");
            }
            assert!(now != Ok(None) || cut < LONGEST);
        } else {
            assert_eq!(now, before, "whatever follows");
        }
        before = now;
    }

    let mut config = Config::default();
    config.proxies.trusted = vec!["10.0.0.0/8".parse().unwrap()];
    let (proxy, stranger): (Peer, Peer) =
        (Peer::Tcp("10.0.0.1:80".parse().unwrap()), Peer::Tcp("192.0.2.9:80".parse().unwrap()));
    let client: IpAddr = "203.0.113.7".parse().unwrap();
    // As they can come out of a request head.
    let lines: Vec<&[u8]> = data.split(|byte| matches!(byte, b'\r' | b'\n' | 0)).collect();
    for (header, appended) in [
        (ForwardedHeader::XForwardedFor, &b"203.0.113.7"[..]),
        (ForwardedHeader::Forwarded, b"for=203.0.113.7"),
    ] {
        config.proxies.header = header;
        assert_eq!(client_ip(stranger, &lines, &config), stranger.ip());
        assert!(client_ip(proxy, &lines, &config).is_some());
        // Some proxies append a line, some to the last one.
        let mut more = lines.clone();
        more.push(appended);
        assert_eq!(client_ip(proxy, &more, &config), Some(client));
        let last = [lines[lines.len() - 1], b", ", appended].concat();
        let mut more = lines.clone();
        more.pop();
        more.push(&last);
        let found = client_ip(proxy, &more, &config);
        // A quotation mark that the client has left open: then nothing is believed.
        let hidden = header == ForwardedHeader::Forwarded && found == proxy.ip();
        assert!(found == Some(client) || hidden, "{found:?}");
    }
});
