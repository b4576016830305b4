//! Any bytes at all as a request head.
//!
//! * Nothing panics.
//! * The outcome does not depend on how the bytes are cut into reads.
//! * The answer is one that an HTTP client reads: a 101 with the key's digest, or an error with a body
//!   of the length that it names. It is never a 500: that would be a mistake of the application, and
//!   this one makes none.
//! * What is agreed on is within what is configured.
//!
//! Input: a byte of settings, a seed for the cuts (2), the bytes.
#![no_main]

use coracle::config::{Config, Deflate};
use coracle::internals::{Accepted, Refused, Scanner, handshake};
use coracle::{OriginPolicy, http_types::StatusCode};
use coracle_fuzz::{Input, pieces};
use libfuzzer_sys::fuzz_target;

/// The head's length, what came of it, or that there is more to come.
type Outcome = Result<Option<(usize, Accepted)>, Refused>;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let settings = input.byte();
    let seed = input.u16();
    let bytes = input.0;
    let config = config(settings);
    let max = if settings & 0x80 == 0 { config.limits.head_bytes } else { 300 };

    let whole = outcome([bytes], max, &config);
    assert_eq!(outcome(pieces(bytes, seed), max, &config), whole, "in pieces");
    if bytes.len() <= 2048 {
        assert_eq!(outcome(bytes.chunks(1), max, &config), whole, "byte by byte");
    }
    match &whole {
        Ok(None) => assert!(bytes.len() < max),
        Ok(Some((len, accepted))) => {
            assert!(*len <= max && bytes[..*len].ends_with(b"\r\n\r\n"));
            check_accepted(accepted, &config);
        }
        Err(refused) => check_refused(refused, bytes.starts_with(b"HEAD ")),
    }
});

fn config(settings: u8) -> Config {
    let mut config = Config::default();
    config.deflate = match settings & 3 {
        0 => None,
        1 => Some(Deflate::shared()),
        2 => Some(Deflate::dedicated()),
        _ => {
            let mut deflate = Deflate::dedicated();
            (deflate.server_window_bits, deflate.client_window_bits) = (11, 9);
            Some(deflate)
        }
    };
    if settings & 4 != 0 {
        config.origins = OriginPolicy::Any;
    }
    config
}

fn outcome<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, max: usize, config: &Config) -> Outcome {
    let mut scanner = Scanner::default();
    let mut received = Vec::new();
    for piece in pieces {
        received.extend_from_slice(piece);
        if let Some(len) = scanner.scan(&received, max)? {
            return Ok(Some((len, handshake(&received[..len], config)?)));
        }
    }
    Ok(None)
}

fn check_accepted(accepted: &Accepted, config: &Config) {
    let (status, headers) = answer(&accepted.answer, b"");
    assert_eq!(status, StatusCode::SWITCHING_PROTOCOLS);
    let only = |name: &str| {
        let mut all = headers.iter().filter(|header| header.0.eq_ignore_ascii_case(name));
        let first = all.next().map(|header| &*header.1);
        assert!(all.next().is_none(), "{name} twice");
        first
    };
    assert_eq!(only("upgrade"), Some("websocket"));
    assert_eq!(only("connection"), Some("Upgrade"));
    assert_eq!(only("sec-websocket-accept").map(str::len), Some(28));
    let extensions = only("sec-websocket-extensions");
    assert_eq!(extensions.is_some(), accepted.agreement.is_some());
    if let (Some(agreed), Some(ours)) = (accepted.agreement, &config.deflate) {
        assert!((9..=ours.server_window_bits).contains(&agreed.server_window_bits));
        assert!((8..=15).contains(&agreed.client_window_bits));
        let dedicated = ours.mode == coracle::config::DeflateMode::Dedicated;
        assert!(dedicated || !(agreed.server_takeover || agreed.client_takeover));
        // The client goes by the answer alone.
        let says = |what: &str| extensions.is_some_and(|answer| answer.contains(what));
        assert_eq!(says("server_no_context_takeover"), !agreed.server_takeover);
        assert_eq!(says("client_no_context_takeover"), !agreed.client_takeover);
        let window = format!("client_max_window_bits={}", agreed.client_window_bits);
        assert_eq!(says(&window), agreed.client_window_bits < 15);
        let window = format!("server_max_window_bits={}", agreed.server_window_bits);
        assert!(says(&window) || agreed.server_window_bits == 15);
    } else {
        assert_eq!(accepted.agreement, None);
    }
}

fn check_refused(refused: &Refused, head_only: bool) {
    assert!(!refused.reason.is_empty());
    // What is refused by the scanner is refused before its method is known.
    let (head, body) = split(&refused.answer);
    let (status, headers) = answer(head, body);
    assert_eq!(status, refused.status);
    assert!(matches!(refused.status, 400 | 403 | 405 | 426 | 431), "{}", refused.reason);
    let length = headers.iter().find(|header| header.0.eq_ignore_ascii_case("content-length"));
    let length: usize = length.expect("a length").1.parse().expect("a number");
    assert!(length == body.len() || (head_only && body.is_empty()), "{length}");
}

/// Behind the blank line.
fn split(answer: &[u8]) -> (&[u8], &[u8]) {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a blank line");
    answer.split_at(end + 4)
}

fn answer(head: &[u8], body: &[u8]) -> (u16, Vec<(String, String)>) {
    let mut room = [httparse::EMPTY_HEADER; 20];
    let mut response = httparse::Response::new(&mut room);
    let status = response.parse(head).expect("an answer");
    assert_eq!(status, httparse::Status::Complete(head.len()));
    assert!(body.iter().all(|byte| matches!(byte, b'\n' | b' '..=b'~')), "a body is plain text");
    let headers = response.headers.iter().map(|header| {
        let value = std::str::from_utf8(header.value).expect("a value is text");
        (header.name.to_owned(), value.to_owned())
    });
    (response.code.expect("a status"), headers.collect())
}
