//! What a client makes of a server's answers to its request for a WebSocket.
#[path = "support/scripted.rs"]
mod scripted;
mod support;

use std::time::{Duration, SystemTime};

use coracle::client::{Builder, ConnectError, Phase, Rejected};
use coracle::{CloseCode, Server};
use scripted::*;
use support::*;

/// What comes of this answer.
#[track_caller]
fn answered(answer: impl Into<Vec<u8>>) -> ConnectError {
    let answer = answer.into();
    let (server, gone) = answering(move |_| answer);
    let error = fails(plain(server));
    gone.next();
    error
}

/// An answer that is not 101.
#[track_caller]
fn rejected(answer: &str) -> (ConnectError, Rejected) {
    let error = answered(answer);
    let ConnectError::Handshake(rejected) = &error else { panic!("{error}") };
    let rejected = Rejected::clone(rejected);
    assert_eq!(error.phase(), Some(Phase::Upgrade));
    (error, rejected)
}

/// What is wrong with what is no answer.
#[track_caller]
fn wrong(error: &ConnectError, part: &str) {
    assert!(matches!(error, ConnectError::Protocol { .. }), "{error}");
    assert_eq!((error.phase(), error.is_lasting()), (Some(Phase::Upgrade), false));
    says(error, &["the server's answer is no WebSocket handshake", part]);
}

#[test]
fn every_status_but_101_has_a_sentence_and_is_lasting_or_not() {
    for (status, lasting, parts) in [
        ("200 OK", false, &["200 OK", "it serves no WebSocket at this path"][..]),
        ("301 Moved Permanently", false, &["301", "it redirects", "connect to where it points"]),
        ("302 Found", false, &["302 Found", "it redirects"]),
        ("400 Bad Request", true, &["400 Bad Request"]),
        ("401 Unauthorized", true, &["401 Unauthorized", "credentials"]),
        ("403 Forbidden", true, &["403 Forbidden", "credentials"]),
        ("404 Not Found", true, &["404 Not Found", "is the path right?"]),
        ("405 Method Not Allowed", true, &["405"]),
        ("410 Gone", true, &["410 Gone", "is the path right?"]),
        ("426 Upgrade Required", true, &["426", "it serves no WebSocket"]),
        ("429 Too Many Requests", false, &["429", "too many connections"]),
        ("500 Internal Server Error", false, &["500"]),
        ("502 Bad Gateway", false, &["502", "overloaded"]),
        ("503 Service Unavailable", false, &["503", "overloaded"]),
        ("999 Odd", false, &["999"]),
    ] {
        let (error, it) = rejected(&format!("HTTP/1.1 {status}\r\nX-Why: because\r\n\r\n"));
        assert_eq!(it.status.as_str(), &status[..3]);
        assert_eq!(it.headers["x-why"], "because");
        assert_eq!((error.is_lasting(), error.retry_after()), (lasting, None), "{status}");
        says(&error, parts);
    }
}

#[test]
fn the_first_line_of_what_the_server_says_is_in_the_sentence() {
    let says_so = |body: &str| {
        let answer =
            format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let (error, it) = rejected(&answer);
        assert_eq!(it.body, body.as_bytes());
        error
    };
    says(&says_so("\r\n  no badge, no entry \r\nmore\r\n"), &[" and says \"no badge, no entry\";"]);
    // Nothing that would make a mess of a log.
    for body in ["\x1b[2J\n", "\u{200}\0", &"x".repeat(201), "", "\n\n"] {
        let error = says_so(body);
        assert!(!error.to_string().contains("says"), "{error}");
    }
    // In chunks, too.
    let head = "HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (body, whole) in [
        ("4\r\nback\r\n8;a=b\r\n at noon\r\n0\r\n\r\n", "back at noon"),
        ("9\r\nback la", "back la"),
        ("4\r\nbackoff\r\n", "back"),
        ("ffffffffffffffff\r\nback", "back"),
        ("no size\r\nback", ""),
    ] {
        let (error, it) = rejected(&format!("{head}{body}"));
        assert_eq!(it.body, whole.as_bytes());
        assert_eq!(error.to_string().contains(&format!("says {whole:?}")), !whole.is_empty());
    }
}

#[test]
fn a_long_body_is_kept_up_to_its_bound_and_a_broken_character_harms_nobody() {
    let (_, it) = rejected(&format!("HTTP/1.1 404 Not Found\r\n\r\n{}", "x\n".repeat(100_000)));
    assert!(it.body.len() <= 1024 && it.body.starts_with(b"x\n"), "{}", it.body.len());
    let error = answered(*b"HTTP/1.1 404 Not Found\r\n\r\nnothing here\n\xff\xfe");
    says(&error, &["says \"nothing here\""]);
    let error = answered(*b"HTTP/1.1 404 Not Found\r\n\r\n\xff\xfe");
    assert!(!error.to_string().contains("says"), "{error}");
}

#[test]
fn a_server_that_is_busy_says_for_how_long() {
    let busy = |status: &str, value: &str| {
        rejected(&format!("HTTP/1.1 {status}\r\nRetry-After: {value}\r\n\r\n")).0.retry_after()
    };
    assert_eq!(busy("503 Service Unavailable", "120"), Some(Duration::from_secs(120)));
    assert_eq!(busy("429 Too Many Requests", "0"), Some(Duration::ZERO));
    let huge = busy("429 Too Many Requests", &u64::MAX.to_string());
    assert_eq!(huge, Some(Duration::from_secs(u64::MAX)));
    // A date is as far away as it is.
    let date = SystemTime::now() + Duration::from_secs(3600);
    let wait = busy("503 Service Unavailable", &httpdate::fmt_http_date(date)).unwrap();
    let exact = date.duration_since(SystemTime::now()).unwrap();
    assert!(wait.abs_diff(exact) <= PATIENCE, "{wait:?}");
    let past = "Sun, 06 Nov 1994 08:49:37 GMT";
    assert_eq!(busy("503 Service Unavailable", past), Some(Duration::ZERO));
    for none in ["-1", "soon", "1.5", "", "99999999999999999999999"] {
        assert_eq!(busy("503 Service Unavailable", none), None, "{none}");
    }
}

#[test]
fn what_is_no_http_is_said_to_be_none() {
    for garbage in [
        &b"\0\0\0\0"[..],
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"220 mail.example ESMTP\r\n",
        b"HTTP/2.0 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nno colon\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nX: \0\r\n\r\n",
    ] {
        wrong(&answered(garbage), "it is no HTTP");
    }
    wrong(&answered(*b"HTTP/1.1 099 Odd\r\n\r\n"), "its status is none");
    // A server with TLS says in TLS that this is none.
    wrong(&answered(*b"\x15\x03\x01\x00\x02\x02\x16"), "is it wss:// there?");
}

#[test]
fn an_answer_without_an_end_is_not_read_to_its_end() {
    let head = "HTTP/1.1 101 Switching Protocols\r\n";
    wrong(&answered(format!("{head}X: {}", "x".repeat(1024 * 1024))), "more than 16384 bytes");
    wrong(&answered("\r\n".repeat(1024 * 1024)), "more than 16384 bytes");
    let lines: String = (0..10_000).map(|i| format!("x{i}: y\r\n")).collect();
    wrong(&answered(format!("{head}{lines}")), "too many headers");
    wrong(&answered("HTTP/1.1 100 Continue\r\n\r\n".repeat(10_000)), "without an end");
}

#[test]
fn an_answer_may_be_announced_and_come_in_pieces() {
    let (server, _gone) = script(|raw| {
        let request = raw.read_head();
        raw.send(
            b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
        );
        for byte in agreed(&request, "X-From: afar\r\n").bytes() {
            raw.send(&[byte]);
        }
        raw.send(&[0x81, 2, b'h', b'i']);
        raw.read_to_end();
    });
    let client = within(plain(server).connect()).unwrap();
    assert_eq!(client.connection().unwrap().headers()["x-from"], "afar");
    assert_eq!(within(client.recv()).unwrap().as_text(), Some("hi"));
    client.abort();
}

/// What comes of a 101 that was made from the request.
#[track_caller]
fn switching(
    builder: impl FnOnce(Builder) -> Builder,
    answer: impl FnOnce(&str) -> String + Send + 'static,
) -> ConnectError {
    let (server, gone) = answering(|request| answer(request).into_bytes());
    let error = fails(builder(plain(server)));
    gone.next();
    error
}

#[test]
fn a_101_that_is_no_proper_one_is_refused_and_says_what_is_missing() {
    let without = |name: &'static str, instead: &'static str| {
        switching(
            |it| it,
            move |request| {
                let proper = agreed(request, "");
                let lines = proper.split_inclusive("\r\n");
                let line = |line: &&str| line.starts_with(&format!("{name}: "));
                lines.map(|it| if line(&it) { instead } else { it }).collect()
            },
        )
    };
    wrong(&without("Upgrade", ""), "no `Upgrade: websocket`");
    wrong(&without("Upgrade", "Upgrade: websockets\r\n"), "no `Upgrade: websocket`");
    wrong(&without("Connection", ""), "no `Connection: Upgrade`");
    wrong(&without("Connection", "Connection: keep-alive\r\n"), "no `Connection: Upgrade`");
    wrong(&without("Sec-WebSocket-Accept", ""), "`Sec-WebSocket-Accept`");
    let other = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    wrong(&without("Sec-WebSocket-Accept", other), "does not belong to the request");
}

#[test]
fn what_was_not_offered_cannot_be_agreed_on() {
    let with = |builder: fn(Builder) -> Builder, more: &'static str| {
        switching(builder, move |request| agreed(request, more))
    };
    let nothing = |it: Builder| it;
    let two = |it: Builder| it.subprotocol("v2.chat").subprotocol("v1.chat");
    wrong(&with(nothing, "Sec-WebSocket-Extensions: permessage-deflate\r\n"), "an extension");
    wrong(&with(nothing, "Sec-WebSocket-Protocol: chat\r\n"), "none was offered");
    let error = with(two, "Sec-WebSocket-Protocol: V1.CHAT\r\n");
    wrong(&error, "\"V1.CHAT\"");
    says(&error, &["v1.chat", "v2.chat"]);
    let both = "Sec-WebSocket-Protocol: v1.chat\r\nSec-WebSocket-Protocol: v2.chat\r\n";
    wrong(&with(two, both), "more than one subprotocol");
}

#[test]
fn a_101_in_other_words_is_a_101_too() {
    let (server, request) = script(|raw| {
        let request = raw.read_head();
        let answer = format!(
            "HTTP/1.1 101 \r\nupgrade: h2c, WebSocket\r\nCONNECTION: keep-alive, Upgrade\r\n\
             sec-websocket-accept:   {}  \r\nSec-WebSocket-Protocol: v1.chat\r\n\r\n",
            accept(&request)
        );
        raw.send(answer.as_bytes());
        raw.read_to_end();
        request
    });
    let builder =
        plain(server).subprotocol("v2.chat").subprotocol("v1.chat").header("X-Me", "here");
    let client = within(builder.connect()).unwrap();
    let connected = client.connection().unwrap();
    assert_eq!((connected.subprotocol(), connected.peer()), (Some("v1.chat"), server));
    client.abort();
    let request = request.next();
    assert_eq!(header(&request, "Sec-WebSocket-Protocol"), Some("v2.chat, v1.chat"));
    assert_eq!(header(&request, "X-Me"), Some("here"));
    assert_eq!(header(&request, "Host"), Some(&*server.to_string()));
    assert_eq!(header(&request, "Sec-WebSocket-Version"), Some("13"));
}

#[test]
fn a_server_of_our_own_that_refuses_says_why_to_our_client() {
    let server = start(Server::builder().on_message(async |_, _| {}).configure(|config| {
        config.limits.sessions = Some(1);
    }));
    let first = within(plain(server.addr()).connect()).unwrap();
    let error = fails(plain(server.addr()));
    let ConnectError::Handshake(rejected) = &error else { panic!("{error}") };
    assert_eq!(rejected.status.as_u16(), 503, "{error}");
    assert!(!error.is_lasting());
    assert!(error.retry_after().is_some());
    says(&error, &["503 Service Unavailable"]);
    within(first.close(CloseCode::NORMAL, ""));
    server.finish();
}
