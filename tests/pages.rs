//! Pages beside the WebSocket: who asks for one gets it, and everybody else what they got before.

#[path = "support/answer.rs"]
mod answer;
mod support;

use std::sync::Mutex;
use std::time::Duration;

use answer::{ask, read_answer};
use coracle::http_types::Response;
use coracle::{Builder, Closures, Message, Request, Server, Session};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use support::*;

/// For deadlines that a test waits for.
const BRIEF: Duration = Duration::from_millis(300);

/// More than the buffers between two ends hold.
const LARGE: usize = 8 << 20;

async fn page(request: &Request) -> Option<coracle::Response> {
    let response = Response::builder();
    match request.path() {
        "/" => response.header("Content-Type", "text/html").body(b"<p>hello".to_vec()).ok(),
        "/query" => response.body(request.query()?.into()).ok(),
        "/large" => response.body(vec![b'x'; LARGE]).ok(),
        "/moved" => response.status(303).header("Location", "/").body(Vec::new()).ok(),
        "/panic" => panic!("a page of horrors"),
        "/hang" => std::future::pending().await,
        _ => None,
    }
}

fn pages() -> Builder<Closures> {
    Server::builder().on_get(page)
}

fn request(method: &str, target: &str, more: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n")
}

fn get(target: &str) -> String {
    request("GET", target, "")
}

#[test]
fn a_page_is_served_beside_the_websocket() {
    let server = start(
        pages().on_message(async |session: &Session, message: Message| session.send(message).await),
    );
    let answer = ask(&server, get("/"));
    answer.expect(200);
    assert_eq!((answer.header("content-type"), &*answer.body), (Some("text/html"), "<p>hello"));
    assert_eq!(ask(&server, get("/query?a=b")).expect(200).body, "a=b");
    let moved = ask(&server, get("/moved"));
    assert_eq!((moved.status, moved.header("location")), (303, Some("/")));
    // The same path for both: whoever asks for a WebSocket gets one.
    let mut client = server.client();
    client.echo("hello");
    client.goodbye();
    assert_eq!(ask(&server, get("/large")).expect(200).body.len(), LARGE);
    server.finish();
}

#[test]
fn a_head_is_answered_like_a_get_without_the_body() {
    let server = start(pages());
    let answer = ask(&server, request("HEAD", "/", ""));
    assert_eq!((answer.status, &*answer.body), (200, ""));
    assert_eq!(answer.header("content-length"), Some("8"));
    assert_eq!(answer.header("content-type"), Some("text/html"));
    assert_eq!(ask(&server, request("HEAD", "/none", "")).status, 405);
    server.finish();
}

#[test]
fn what_is_no_page_is_answered_as_without_pages() {
    let server = start(pages());
    let answer = ask(&server, get("/none"));
    answer.expect(426);
    assert_eq!(answer.header("sec-websocket-version"), Some("13"));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = ask(&server, request(method, "/", "Content-Length: 5\r\n") + "hello");
        answer.expect(405);
        assert_eq!(answer.header("allow"), Some("GET, HEAD"), "{method}");
    }
    server.finish();
}

// The page's own address was its WebSocket's, too; behind a proxy that takes the Upgrade header away the client
// got the page instead of the sentence that says what is wrong.
#[test]
fn a_broken_handshake_is_told_what_is_wrong_and_gets_no_page() {
    let server = start(pages());
    let key = format!("Sec-WebSocket-Key: {KEY}\r\n");
    let without_upgrade = request("GET", "/", &format!("{key}Sec-WebSocket-Version: 13\r\n"));
    assert!(ask(&server, without_upgrade).expect(426).body.contains("proxy"));
    let without_key = "Connection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n";
    ask(&server, request("GET", "/", without_key)).expect(400);
    ask(&server, request("GET", "/", "Upgrade: web socket\r\n")).expect(400);
    assert_eq!(ask(&server, request("HEAD", "/", "Upgrade: websocket\r\n")).status, 405);
    // Another protocol is no WebSocket.
    ask(&server, request("GET", "/", "Connection: Upgrade\r\nUpgrade: h2c\r\n")).expect(200);
    server.finish();
}

#[test]
fn pages_are_for_the_allowed_origins_only() {
    let server = start(pages());
    ask(&server, request("GET", "/", "Origin: http://evil.example\r\n")).expect(403);
    ask(&server, request("GET", "/", "Origin: http://localhost\r\n")).expect(200);
    server.finish();
}

#[test]
fn a_body_that_comes_with_a_get_is_neither_read_nor_taken_for_a_request() {
    let server = start(pages());
    let body = get("/large");
    let head = request("GET", "/", &format!("Content-Length: {}\r\n", body.len()));
    assert_eq!(ask(&server, head + &body).expect(200).body, "<p>hello");
    // Nor is what is sent ahead: one request for each connection.
    assert_eq!(ask(&server, get("/") + &get("/large")).expect(200).body, "<p>hello");
    server.finish();
}

#[test]
fn a_page_that_panics_is_a_500_and_harms_nobody() {
    let server = start(pages());
    let answer = ask(&server, get("/panic"));
    assert!(!answer.expect(500).body.contains("horrors"));
    ask(&server, get("/")).expect(200);
    assert_eq!(server.finish().panics, 1);
}

#[test]
fn a_page_that_hangs_is_dropped_at_the_handshake_timeout() {
    let server = start(pages().configure(|config| config.timeouts.handshake = BRIEF));
    ask(&server, get("/hang")).expect(408);
    server.finish();
}

#[test]
fn a_page_that_hangs_does_not_delay_a_stop() {
    let (asked, asks) = heard();
    let asked = Mutex::new(asked);
    let server = start(Server::builder().on_get(async move |_: &Request| {
        asked.lock().unwrap().send(()).unwrap();
        std::future::pending().await
    }));
    let mut raw = server.raw();
    raw.send(get("/").as_bytes());
    asks.next();
    server.handle.request_stop();
    read_answer(raw).expect(503);
    server.finish();
}

// A client that took its page byte by byte kept its connection, and with it a place, for as long as it liked.
#[test]
fn who_does_not_take_the_page_is_cut_off_and_sees_no_second_answer() {
    let server = start(pages().configure(|config| config.timeouts.handshake = BRIEF));
    let mut stream = server.handle.connect().unwrap();
    let answer = within(async {
        stream.write_all(get("/large").as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        // The server does not read either, so this fails when it has gone.
        while stream.write_all(&[0; 4096]).await.is_ok() {}
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        rest
    });
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.len() < LARGE, "{} bytes", answer.len());
    assert!(!answer.contains("HTTP/1.1"), "{answer:?}");
    server.finish();
}

#[test]
fn readers_of_pages_are_no_sessions_and_are_let_in_beside_them() {
    let server = start(pages().configure(|config| {
        config.limits.sessions = Some(1);
        // Nor has one address more handshakes at a time than sessions.
        config.limits.sessions_per_address = Some(100);
    }));
    let client = server.client();
    for _ in 0..10 {
        ask(&server, get("/")).expect(200);
    }
    assert_eq!(server.handle.sessions().count(), 1);
    client.goodbye();
    server.finish();
}
