//! The handshake: what is upgraded, and what is refused and how.

#[path = "support/answer.rs"]
mod answer;
mod support;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use answer::{Answer, ask, read_answer};
use coracle::{
    Cause, Message, OriginPolicy, Request, Response, SendError, Server, Session, Upgrade,
};
use support::*;

/// Short enough for a test that waits for it, long enough for an honest client on a busy machine.
const BRIEF: Duration = Duration::from_millis(300);

async fn echo(session: &Session, message: Message) -> Result<(), SendError> {
    session.send(message).await
}

/// An `on_accept` that lets everybody in and tells the test about it.
fn admit(
    seen: &mpsc::Sender<String>,
) -> impl AsyncFn(&Request) -> Result<Upgrade, Response> + Send + Sync + 'static + use<> {
    let seen = Mutex::new(seen.clone());
    async move |request: &Request| {
        // The test may be over, and not care.
        let _ = seen.lock().unwrap().send(request.target().to_owned());
        Ok(Upgrade::new())
    }
}

/// A request from a line and headers, each without its line end.
fn request(line: &str, headers: &[&str]) -> String {
    let mut head = format!("{line}\r\n");
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    head + "\r\n"
}

/// The headers of an ordinary handshake but those that begin with one of `without`, then `more`.
fn altered(without: &[&str], more: &[&str]) -> String {
    let key = format!("Sec-WebSocket-Key: {KEY}");
    let ordinary = [
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        &key,
        "Sec-WebSocket-Version: 13",
    ];
    let mut headers: Vec<&str> = ordinary
        .into_iter()
        .filter(|header| !without.iter().any(|name| header.starts_with(name)))
        .collect();
    headers.extend(more);
    request("GET / HTTP/1.1", &headers)
}

/// Is upgraded, and works.
#[track_caller]
fn expect_upgrade(server: &TestServer, request: impl AsRef<[u8]>) {
    let mut raw = server.raw();
    raw.send(request.as_ref());
    let head = raw.read_head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    raw.echo("hello");
    raw.goodbye();
}

#[test]
fn token_lists_are_read_over_any_number_of_lines_and_in_any_case() {
    // Firefox sends `Connection: keep-alive, Upgrade`. A proxy splits that list into two lines.
    // Servers that compare the whole value, or look at the first line only, refuse both.
    let server = start(Server::builder().on_message(echo));
    for lines in [
        &["Upgrade: websocket", "Connection: keep-alive, Upgrade"][..],
        &["Upgrade: websocket", "Connection: keep-alive", "Connection: Upgrade"],
        &["Connection: Upgrade", "Upgrade: websocket", "Connection: keep-alive"],
        &["UPGRADE: WebSocket", "CONNECTION: UPGRADE"],
        &["upgrade: WEBSOCKET", "connection: upgrade"],
        &["Upgrade: h2c, websocket", "Connection: Upgrade, HTTP2-Settings"],
        &["Upgrade: h2c", "Upgrade: websocket", "Connection: Upgrade"],
        &["Upgrade: HTTP/2.0, websocket", "Connection:Upgrade"],
        &["Upgrade: websocket", "Connection: ,\t Upgrade\t,,"],
        &["Upgrade:  websocket \t", "Connection: \t Upgrade  "],
    ] {
        expect_upgrade(&server, altered(&["Upgrade", "Connection"], lines));
    }
    server.finish();
}

#[test]
fn a_request_that_does_not_ask_for_websocket_in_both_headers_is_refused() {
    let (seen, hook) = heard();
    let server = start(Server::builder().on_accept(admit(&seen)));
    for (lines, status) in [
        (&[][..], 426),
        (&["Connection: Upgrade"], 426),
        (&["Upgrade: h2c", "Connection: Upgrade"], 426),
        (&["Upgrade: websockets", "Connection: Upgrade"], 426),
        (&["Upgrade: websocket/13", "Connection: Upgrade"], 426),
        (&["Upgrade: websocket"], 400),
        (&["Upgrade: websocket", "Connection: keep-alive"], 400),
        (&["Upgrade: websocket", "Connection: keep-alive Upgrade"], 400),
        (&["Upgrade: websocket", "Connection: \"Upgrade\""], 400),
        (&["Upgrade: web socket", "Connection: Upgrade"], 400),
    ] {
        let answer = ask(&server, altered(&["Upgrade", "Connection"], lines));
        answer.expect(status);
        // RFC 9110 section 15.5.22.
        let upgrade = (status == 426).then_some("websocket");
        assert_eq!(answer.header("upgrade"), upgrade, "{lines:?}");
    }
    assert_eq!(hook.try_next(), None, "the hook was asked");
    server.finish();
}

#[test]
fn a_plain_get_is_told_what_is_served_here() {
    let server = start(Server::builder().on_message(echo));
    let answer = ask(&server, request("GET /chat HTTP/1.1", &["Host: localhost"]));
    answer.expect(426);
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    assert_eq!(answer.header("connection"), Some("close, Upgrade"));
    assert_eq!(answer.header("sec-websocket-version"), Some("13"));
    assert!(answer.body.contains("WebSocket"), "{}", answer.body);
    server.finish();
}

#[test]
fn a_repeated_key_or_version_is_refused() {
    // A server takes the first `Sec-WebSocket-Key`, the proxy in front of it the last: one of them
    // answers for a handshake that the other has not seen (RFC 6455 sections 11.3.1 and 11.3.5: a
    // request must not have either header twice).
    let (seen, hook) = heard();
    let server = start(Server::builder().on_accept(admit(&seen)));
    let key = format!("Sec-WebSocket-Key: {KEY}");
    for more in [
        &*key,
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "sec-websocket-key:",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Version: 8",
        "sec-websocket-version:",
    ] {
        ask(&server, altered(&[], &[more])).expect(400);
    }
    for value in ["13, 13", "13, 8", "8, 13"] {
        let version = format!("Sec-WebSocket-Version: {value}");
        ask(&server, altered(&["Sec-WebSocket-Version"], &[&version])).expect(426);
    }
    assert_eq!(hook.try_next(), None, "the hook was asked");
    server.finish();
}

#[test]
fn a_key_that_is_not_16_bytes_in_base64_is_refused() {
    // RFC 6455 section 4.2.1, item 5: "a base64-encoded value that, when decoded, is 16 bytes in
    // length". Servers that hash whatever there is answer requests that no WebSocket client sends.
    let server = start(Server::builder().on_message(echo));
    for key in [
        "",
        "x",
        "dGhlIHNhbXBsZSBub25jZQ",    // 16 bytes without the padding
        "dGhlIHNhbXBsZSBub25jZQ=",   // with half of it
        "dGhlIHNhbXBsZSBub25jZQ===", // with more of it
        "dGhlIHNhbXBsZSBub25jZQ== x",
        "dGhlIHNhbXBsZSBub25j",     // 15 bytes
        "dGhlIHNhbXBsZSBub25jZWQ=", // 17 bytes
        "dGhlIHNhbXBsZSBub25jZ===",
        "dGhlIHNhbXBsZSBub25jZR==", // bits behind the 16th byte
        "dGhlIHNhbXBsZSBub25jZ_==", // the other alphabet
        "dGhlIHNhbXBs ZSBub25jZ==",
        "========================",
    ] {
        let line = format!("Sec-WebSocket-Key: {key}");
        let answer = ask(&server, altered(&["Sec-WebSocket-Key"], &[&line]));
        answer.expect(400);
        assert!(answer.body.contains("Sec-WebSocket-Key"), "{key:?}: {}", answer.body);
    }
    ask(&server, altered(&["Sec-WebSocket-Key"], &[])).expect(400);
    for key in ["AAAAAAAAAAAAAAAAAAAAAA==", "/+/+/+/+/+/+/+/+/+/+/w=="] {
        let line = format!("Sec-WebSocket-Key: {key}");
        expect_upgrade(&server, altered(&["Sec-WebSocket-Key"], &[&line]));
    }
    server.finish();
}

#[test]
fn the_answer_to_the_key_is_that_of_the_rfc() {
    let server = start(Server::builder().on_message(echo));
    let mut raw = server.raw();
    raw.send(handshake("/").as_bytes());
    // RFC 6455 section 1.3.
    assert_eq!(
        raw.read_head(),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    );
    raw.goodbye();
    server.finish();
}

#[test]
fn a_missing_doubled_or_broken_host_is_refused() {
    let server = start(Server::builder().on_message(echo));
    for hosts in [
        &[][..],
        &["Host: localhost", "Host: localhost"],
        &["Host: a", "host: b"],
        &["Host:"],
        &["Host: a, b"],
        &["Host: a b"],
        &["Host: user@a"],
        &["Host: a/b"],
        &["Host: a:port"],
        &["Host: a:65536"],
    ] {
        let answer = ask(&server, altered(&["Host"], hosts));
        answer.expect(400);
        assert!(answer.body.contains("Host"), "{hosts:?}: {}", answer.body);
    }
    for host in ["Host: localhost:9001", "Host: [::1]:80", "hOST: xn--bcher-kva.example"] {
        expect_upgrade(&server, altered(&["Host"], &[host]));
    }
    server.finish();
}

#[test]
fn another_version_is_told_the_one_that_is_spoken() {
    // RFC 6455 section 4.4: the client finds out from the answer which version to try next.
    let server = start(Server::builder().on_message(echo));
    for version in ["8", "7", "0", "14", "255", "013", "13.0", "thirteen", ""] {
        let line = format!("Sec-WebSocket-Version: {version}");
        let answer = ask(&server, altered(&["Sec-WebSocket-Version"], &[&line]));
        answer.expect(426);
        assert_eq!(answer.header("sec-websocket-version"), Some("13"), "{version:?}");
        assert_eq!(answer.header("upgrade"), Some("websocket"), "{version:?}");
    }
    ask(&server, altered(&["Sec-WebSocket-Version"], &[])).expect(400);
    server.finish();
}

#[test]
fn only_http_1_1_is_spoken() {
    // A proxy that has not been told about WebSocket speaks 1.0, and there `Upgrade` means nothing.
    let server = start(Server::builder().on_message(echo));
    let ordinary = handshake("/");
    for version in ["HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "HTTP/1.10", "http/1.1", "HTTP/1.1 x", ""] {
        let request = ordinary.replacen("HTTP/1.1", version, 1);
        ask(&server, request).expect(400);
    }
    let answer = ask(&server, ordinary.replacen("HTTP/1.1", "HTTP/1.0", 1));
    assert!(answer.body.contains("HTTP/1.1"), "{}", answer.body);
    // RFC 9113 section 3.4: how HTTP/2 begins when nobody has asked whether it is spoken.
    ask(&server, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect(400);
    server.finish();
}

#[test]
fn a_handshake_is_a_get() {
    let (seen, hook) = heard();
    let server = start(Server::builder().on_accept(admit(&seen)));
    for method in ["POST", "PUT", "OPTIONS", "CONNECT", "get", "BREW"] {
        let answer = ask(&server, handshake("/").replacen("GET", method, 1));
        answer.expect(405);
        assert_eq!(answer.header("allow"), Some("GET"), "{method}");
    }
    let body = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(ask(&server, body).expect(405).header("allow"), Some("GET"));
    assert_eq!(hook.try_next(), None, "the hook was asked");
    server.finish();
}

#[test]
fn the_answer_to_head_has_no_body() {
    // RFC 9110 section 9.3.2: the server must not send content in the answer to HEAD. A client that
    // follows it takes a body for the beginning of the next answer.
    let server = start(Server::builder().on_message(echo));
    for request in [
        request("HEAD / HTTP/1.1", &["Host: localhost"]),
        handshake("/").replacen("GET", "HEAD", 1),
    ] {
        let answer = ask(&server, request);
        assert_eq!(answer.status, 405);
        assert_eq!(answer.body, "");
    }
    server.finish();
}

#[test]
fn a_body_on_an_upgrade_is_refused() {
    // A handshake with `Content-Length: 20` is upgraded; the proxy in front forwards the 20 bytes
    // as a body, the server reads them as frames: the two no longer agree on where frames begin.
    let (seen, hook) = heard();
    let server = start(Server::builder().on_accept(admit(&seen)));
    for header in ["Content-Length: 20", "Content-Length: 0", "Transfer-Encoding: chunked"] {
        let mut request = altered(&[], &[header]).into_bytes();
        request.extend(frame(true, TEXT, b"hidden in a body"));
        let answer = ask(&server, request);
        answer.expect(400);
        assert!(answer.body.contains("body"), "{}", answer.body);
    }
    assert_eq!(hook.try_next(), None, "the hook was asked");
    server.finish();
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    // Request smuggling: the proxy in front reads a request one way and lets it pass, the server
    // reads it another way and finds a second request behind it that nobody has checked. Each case
    // was once read in two ways by two servers that met in practice.
    let (seen, hook) = heard();
    let server = start(Server::builder().on_accept(admit(&seen)));
    let long = format!("Content-Length: 1{}", "0".repeat(40));
    let cases: &[(&str, &[&str])] = &[
        ("CL+TE", &["Content-Length: 4", "Transfer-Encoding: chunked"]),
        ("TE+CL", &["Transfer-Encoding: chunked", "Content-Length: 4"]),
        ("two different CL", &["Content-Length: 0", "Content-Length: 44"]),
        ("two equal CL", &["Content-Length: 0", "Content-Length: 0"]),
        ("a list as CL", &["Content-Length: 0, 0"]),
        ("CL with a sign", &["Content-Length: +0"]),
        ("negative CL", &["Content-Length: -1"]),
        ("hexadecimal CL", &["Content-Length: 0x0"]),
        ("CL with an underscore", &["Content-Length: 1_0"]),
        ("empty CL", &["Content-Length:"]),
        ("CL that overflows", &[&long]),
        ("TE of no meaning", &["Transfer-Encoding: xchunked"]),
        ("TE list", &["Transfer-Encoding: gzip, chunked"]),
        ("TE identity", &["Transfer-Encoding: identity"]),
        ("TE in quotes", &["Transfer-Encoding: \"chunked\""]),
        ("two TE", &["Transfer-Encoding: chunked", "Transfer-Encoding: identity"]),
        ("TE behind a vertical tab", &["Transfer-Encoding: \x0bchunked"]),
        ("space before the colon", &["Transfer-Encoding : chunked"]),
        ("tab before the colon", &["Content-Length\t: 4"]),
        ("space in a name", &["Content Length: 4"]),
        ("folded line", &["X: a\r\n Transfer-Encoding: chunked"]),
        ("folded line with a tab", &["X: a\r\n\tb"]),
        ("LF alone", &["X: a\nTransfer-Encoding: chunked"]),
        ("CR alone", &["X: a\rTransfer-Encoding: chunked"]),
        ("LF alone twice", &["X: a\n\nGET /smuggled HTTP/1.1"]),
        ("CR CR LF", &["X: a\r"]),
        ("NUL in a value", &["X: a\0b"]),
        ("NUL in a name", &["X\0: a"]),
        ("DEL in a value", &["X: a\x7fb"]),
        ("no name", &[": a"]),
        ("no colon", &["just words"]),
        ("two Host", &["Host: other"]),
    ];
    let behind = handshake("/smuggled");
    for (name, headers) in cases {
        let mut request = altered(&[], headers);
        request.push_str("0\r\n\r\n");
        request.push_str(&behind);
        let answer = ask(&server, request);
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
    }
    // RFC 9112 section 3.2.2 and RFC 6455 section 4.2.1 know a target that is a whole URI, whose
    // host counts and not that of the Host header. No WebSocket client sends one to a server, and
    // where two hosts are named two readers can disagree: a server that is no proxy says no.
    for target in [
        "http://localhost/",
        "http://other/",
        "ws://localhost/",
        "//other/ x",
        "*",
        "localhost:80",
        "",
        "chat",
        "/a b",
        "/a\tb",
        "/a#b",
        "/\x7f",
        "/\u{e4}",
        "/\0",
        "\\",
    ] {
        let answer = ask(&server, handshake(target) + &behind);
        assert_eq!(answer.status, 400, "{target:?}: {answer:?}");
    }
    for line in [
        " GET / HTTP/1.1",
        "\r\nGET / HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /",
        "G\u{cb}T / HTTP/1.1",
        "{}",
    ] {
        let answer = ask(&server, handshake("/").replacen("GET / HTTP/1.1", line, 1) + &behind);
        assert_eq!(answer.status, 400, "{line:?}: {answer:?}");
    }
    assert_eq!(hook.try_next(), None, "the hook was asked");
    server.finish();
}

#[test]
fn a_request_before_the_upgrade_is_answered_and_nothing_behind_it_is_read() {
    // Two requests in one segment: the first is harmless and passes the proxy's rules, the second
    // is an upgrade that those rules have never seen.
    let (seen, hook) = heard();
    let server = start(Server::builder().on_accept(admit(&seen)));
    for first in [
        "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
    ] {
        let answer = ask(&server, first.to_owned() + &handshake("/second"));
        // Exactly one answer: `Answer::parse` and the length leave no room for another.
        answer.expect(426);
    }
    ask(&server, handshake("/").replacen("GET", "POST", 1) + &handshake("/second")).expect(405);
    assert_eq!(hook.try_next(), None, "the hook was asked");
    server.finish();
}

#[test]
fn a_tls_client_on_the_plain_port_is_told_so() {
    // `wss://` where `ws://` was meant. Without a word the client reports a "wrong version number"
    // and the server a "malformed request", and an hour is gone.
    let server = start(Server::builder().on_message(echo));
    // The beginning of a ClientHello: a record of a handshake, TLS 1.0 for compatibility, with
    // bytes that look like line ends.
    let mut hello = vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];
    hello.extend((0..=255).cycle().take(501));
    let answer = ask(&server, hello);
    answer.expect(400);
    assert!(answer.body.contains("TLS") && answer.body.contains("ws://"), "{}", answer.body);
    server.finish();
}

#[test]
fn frames_in_the_same_segment_as_the_head_are_handled() {
    // The client does not wait for the 101; its first frame lies behind the head in the same read.
    // Servers that give the head's buffer back lose it, and the client waits for ever.
    let server = start(Server::builder().on_message(echo));
    for cut in [0, 1, 2, 6, 9, 11] {
        let mut bytes = handshake("/").into_bytes();
        let mut frames = frame(true, TEXT, b"first");
        frames.extend(frame(true, PING, b"?"));
        frames.extend(frame(false, TEXT, b"sec"));
        frames.extend(frame(true, CONTINUATION, b"ond"));
        let rest = frames.split_off(frames.len() - cut);
        bytes.extend(frames);
        let mut raw = server.raw();
        raw.send(&bytes);
        assert!(raw.read_head().starts_with("HTTP/1.1 101 "));
        raw.send(&rest);
        // A pong may overtake what is queued.
        let mut texts = Vec::new();
        let mut pongs = 0;
        while texts.len() < 2 || pongs < 1 {
            let frame = raw.read_frame();
            match frame.opcode {
                TEXT => texts.push(frame.payload),
                PONG => pongs += 1,
                _ => panic!("{frame:?}"),
            }
        }
        assert_eq!(texts, [b"first".to_vec(), b"second".to_vec()]);
        raw.goodbye();
    }
    server.finish();
}

#[test]
fn a_close_in_the_same_segment_as_the_head_is_answered() {
    let (closed, records) = heard();
    let server = start(Server::builder().on_close(record(&closed)));
    let mut bytes = handshake("/").into_bytes();
    bytes.extend(frame(true, CLOSE, &1000_u16.to_be_bytes()));
    let mut raw = server.raw();
    raw.send(&bytes);
    assert!(raw.read_head().starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.read_close().0, 1000);
    assert_eq!(raw.read_to_end(), b"");
    let closed = records.next();
    assert_eq!((closed.cause, closed.clean), (Cause::PeerClosed, true), "{closed}");
    server.finish();
}

#[test]
fn a_head_in_two_segments_is_read_wherever_it_is_cut() {
    // A blank line cut between its CR and its LF, a name cut in half: parsers that begin anew with
    // each read, or look for the end in the last read only, never find it.
    let server = start(Server::builder().on_message(echo));
    let mut bytes = handshake("/").into_bytes();
    bytes.extend(frame(true, TEXT, b"hello"));
    for cut in 1..bytes.len() {
        let mut raw = server.raw();
        raw.send(&bytes[..cut]);
        raw.send(&bytes[cut..]);
        assert!(raw.read_head().starts_with("HTTP/1.1 101 "), "cut at {cut}");
        assert_eq!(raw.read_frame().payload, b"hello", "cut at {cut}");
        raw.goodbye();
    }
    server.finish();
}

#[test]
fn a_head_one_byte_at_a_time_is_read() {
    let server = start(Server::builder().on_message(echo));
    let mut bytes = handshake("/").into_bytes();
    bytes.extend(frame(true, TEXT, b"hello"));
    let mut raw = server.raw();
    for byte in &bytes {
        raw.send(&[*byte]);
        thread::yield_now();
    }
    assert!(raw.read_head().starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.read_frame().payload, b"hello");
    raw.goodbye();
    server.finish();
}

#[test]
fn a_refusal_reaches_a_client_that_sends_one_byte_at_a_time() {
    let server = start(Server::builder().on_message(echo));
    let mut raw = server.raw();
    for byte in altered(&["Sec-WebSocket-Version"], &["Sec-WebSocket-Version: 8"]).as_bytes() {
        raw.send(&[*byte]);
    }
    read_answer(raw).expect(426);
    server.finish();
}

/// Sends the bytes one by one for as long as the server takes them, then reads the answer.
fn drip(server: &TestServer, bytes: &[u8], pause: Duration) -> Answer {
    let raw = server.raw();
    let over = AtomicBool::new(false);
    /// Also when the test fails.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    thread::scope(|scope| {
        let mut stream = raw.stream.try_clone().unwrap();
        let over = &over;
        let _over = Over(over);
        scope.spawn(move || {
            for byte in bytes.iter().cycle() {
                // The pace is the attack; nothing is synchronised by it.
                thread::sleep(pause);
                if over.load(Ordering::Relaxed) || stream.write_all(&[*byte]).is_err() {
                    return;
                }
            }
        });
        read_answer(raw)
    })
}

#[test]
fn a_head_that_never_ends_is_cut_off_by_the_handshake_timeout() {
    // Slowloris: a byte now and then, so that a timeout for each read never fires, and a thousand
    // such connections hold a thousand places for ever.
    let (seen, hook) = heard();
    let server = start(
        Server::builder()
            .on_accept(admit(&seen))
            .configure(|config| config.timeouts.handshake = BRIEF),
    );
    drip(&server, b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", Duration::from_millis(20)).expect(408);
    drip(&server, b"G", Duration::from_millis(20)).expect(408);
    // All but the last byte.
    let head = handshake("/");
    let mut raw = server.raw();
    raw.send(&head.as_bytes()[..head.len() - 1]);
    read_answer(raw).expect(408);
    // Not one byte.
    read_answer(server.raw()).expect(408);
    assert_eq!(hook.try_next(), None, "the hook was asked");
    server.finish();
}

#[test]
fn a_head_slower_than_the_rate_is_cut_off_before_the_handshake_timeout() {
    // Slowloris again, with a handshake timeout that is long because the accept hook asks somebody
    // who takes his time: the head alone must not use it up.
    let server = start(Server::builder().on_message(echo).configure(|config| {
        config.timeouts.handshake = Duration::from_secs(600);
        config.limits.head_bytes_per_second = 1000;
    }));
    thread::scope(|scope| {
        // One that drips, and one that stops in the middle; both after the fixed grace.
        scope.spawn(|| {
            let answer = drip(&server, b"GETGETGETGET", Duration::from_millis(50));
            assert!(answer.expect(408).body.contains("slow"), "{}", answer.body);
        });
        let mut raw = server.raw();
        raw.send(&handshake("/").as_bytes()[..20]);
        let answer = read_answer(raw);
        assert!(answer.expect(408).body.contains("slow"), "{}", answer.body);
    });
    // As fast as it comes it is fast enough.
    server.client().goodbye();
    server.finish();
}

/// A handshake whose head has exactly this many bytes.
fn head_of(len: usize) -> String {
    let empty = handshake_with("/", "X-Long: \r\n").len();
    handshake_with("/", &format!("X-Long: {}\r\n", "x".repeat(len - empty)))
}

#[test]
fn a_head_as_large_as_the_bound_is_read_and_a_larger_one_is_refused() {
    let server = start(Server::builder().on_message(echo));
    expect_upgrade(&server, head_of(8192));
    // What comes behind a large head is no part of it.
    let mut raw = server.raw();
    let mut bytes = head_of(8192).into_bytes();
    bytes.extend(frame(true, TEXT, &[b'y'; 10_000]));
    raw.send(&bytes);
    assert!(raw.read_head().starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.read_frame().payload, [b'y'; 10_000]);
    raw.goodbye();
    for head in [
        head_of(8193),
        head_of(20_000),
        // One line, and one that has no end.
        handshake(&format!("/{}", "a".repeat(9000))),
        handshake(&format!("/?{}", "a".repeat(20_000))),
        format!("GET /{}", "a".repeat(9000)),
        "G".repeat(9000),
        handshake_with("/", &"Cookie: a=b\r\n".repeat(1000)),
    ] {
        ask(&server, head).expect(431);
    }
    server.finish();

    let server = start(
        Server::builder().on_message(echo).configure(|config| config.limits.head_bytes = 300),
    );
    expect_upgrade(&server, head_of(300));
    ask(&server, head_of(301)).expect(431);
    server.finish();
}

#[test]
fn sixty_four_headers_are_read_and_one_more_is_refused() {
    let server = start(Server::builder().on_message(echo));
    // Five are the handshake's own.
    expect_upgrade(&server, handshake_with("/", &"X: y\r\n".repeat(59)));
    ask(&server, handshake_with("/", &"X: y\r\n".repeat(60))).expect(431);
    server.finish();
}

#[test]
fn extensions_that_are_not_spoken_are_declined_in_silence() {
    // RFC 6455 section 9.1: declining is leaving them out. Naming one in the answer would allow the
    // client to send compressed frames.
    let server = start(Server::builder().on_message(echo));
    for offer in ["x-webkit-deflate-frame", "bogus; a=1; b=\"2\", other"] {
        let mut raw = server.raw();
        raw.send(handshake_with("/", &format!("Sec-WebSocket-Extensions: {offer}\r\n")).as_bytes());
        let head = raw.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(!head.to_ascii_lowercase().contains("extensions"), "{head}");
        raw.echo("hello");
        raw.goodbye();
    }
    server.finish();
}

#[test]
fn a_browser_may_connect_from_the_servers_own_pages_only_by_default() {
    // Cross-site WebSocket hijacking: a foreign page opens a socket with the visitor's cookies, and
    // a server that does not look at Origin lets it speak in the visitor's name.
    let (seen, hook) = heard();
    let server = start(Server::builder().on_message(echo).on_accept(admit(&seen)));
    let from = |host: &str, origin: &str| {
        altered(&["Host"], &[&format!("Host: {host}"), &format!("Origin: {origin}")])
    };
    let own = server.addr().to_string();
    for (host, origin) in [
        ("evil.example", "http://good.example"),
        ("good.example", "http://evil.example"),
        ("good.example", "http://good.example.evil.example"),
        ("good.example", "http://evilgood.example"),
        ("good.example", "http://good.example:8080"),
        ("good.example:8080", "http://good.example"),
        ("good.example:443", "http://good.example"),
        ("good.example", "null"),
        ("good.example", "file://"),
        ("good.example", "good.example"),
        ("good.example", "http://good.example/"),
        ("good.example", "http://good.example@evil.example"),
        ("good.example", "http://evil.example http://good.example"),
        ("good.example", ""),
        (&*own, "http://127.0.0.1"),
    ] {
        let answer = ask(&server, from(host, origin));
        assert_eq!(answer.status, 403, "{host} {origin:?}: {answer:?}");
        assert!(answer.body.contains("origin"), "{}", answer.body);
    }
    let twice = handshake_with("/", "Origin: http://localhost\r\nOrigin: http://localhost\r\n");
    ask(&server, twice).expect(400);
    assert_eq!(hook.try_next(), None, "the hook was asked");
    for (host, origin) in [
        (&*own, &*format!("http://{own}")),
        ("good.example", "http://good.example"),
        ("good.example", "https://GOOD.example"),
        ("good.example:443", "https://good.example"),
        ("good.example:8080", "http://good.example:8080"),
        ("[::1]:90", "http://[::1]:90"),
    ] {
        expect_upgrade(&server, from(host, origin));
    }
    // A program sends none.
    expect_upgrade(&server, handshake("/"));
    server.finish();
}

#[test]
fn an_allow_list_lets_in_what_it_names_and_nothing_else() {
    let listed = ["https://app.example", "http://localhost:5173", "https://*.tenants.example"];
    let list = OriginPolicy::AllowList(listed.map(str::to_owned).to_vec());
    let server = start(Server::builder().on_message(echo).origins(list));
    for origin in [
        "https://app.example",
        "https://app.example:443",
        "http://localhost:5173",
        "https://a.tenants.example",
        "https://b.a.tenants.example",
    ] {
        expect_upgrade(&server, handshake_with("/", &format!("Origin: {origin}\r\n")));
    }
    for origin in [
        // The server's own, too.
        "http://localhost",
        "http://app.example",
        "https://app.example:8443",
        "https://www.app.example",
        "https://tenants.example",
        "https://eviltenants.example",
        "https://a.tenants.example.evil.example",
        "null",
    ] {
        ask(&server, handshake_with("/", &format!("Origin: {origin}\r\n"))).expect(403);
    }
    expect_upgrade(&server, handshake("/"));
    server.finish();
}

#[test]
fn any_origin_may_connect_if_the_application_says_so() {
    let server = start(Server::builder().on_message(echo).origins(OriginPolicy::Any));
    for origin in ["https://evil.example", "null", "file://", "chrome-extension://abc", "nonsense"]
    {
        expect_upgrade(&server, handshake_with("/", &format!("Origin: {origin}\r\n")));
    }
    server.finish();
}

#[test]
fn every_client_of_many_at_once_is_upgraded() {
    let (seen, hook) = heard();
    let server = start(Server::builder().on_message(echo).on_accept(admit(&seen)));
    let gate = Arc::new(std::sync::Barrier::new(16));
    thread::scope(|scope| {
        for n in 0..16 {
            let (gate, server) = (Arc::clone(&gate), &server);
            scope.spawn(move || {
                gate.wait();
                for m in 0..10 {
                    let mut raw = server.raw();
                    raw.send(handshake(&format!("/{n}/{m}")).as_bytes());
                    assert!(raw.read_head().starts_with("HTTP/1.1 101 "));
                    raw.echo(&format!("{n}/{m}"));
                    raw.goodbye();
                }
            });
        }
    });
    let mut targets: Vec<String> = std::iter::from_fn(|| hook.try_next()).collect();
    targets.sort_unstable();
    let mut expected: Vec<String> =
        (0..16).flat_map(|n| (0..10).map(move |m| format!("/{n}/{m}"))).collect();
    expected.sort_unstable();
    assert_eq!(targets, expected);
    server.finish();
}
