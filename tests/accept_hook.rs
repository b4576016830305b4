//! The accept hook: what it sees, what it may answer, and what becomes of a connection while it works.

#[path = "support/answer.rs"]
mod answer;
mod support;

use std::sync::{Mutex, mpsc};
use std::time::Duration;

use answer::{ask, let_in, read_answer};
use async_tungstenite::tungstenite;
use async_tungstenite::tungstenite::client::IntoClientRequest;
use coracle::http_types::{HeaderName, HeaderValue, Method};
use coracle::{Cause, Message, Request, SendError, Server, Session, Upgrade};
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};
use support::*;

/// For deadlines that a test waits for.
const BRIEF: Duration = Duration::from_millis(300);

async fn echo(session: &Session, message: Message) -> Result<(), SendError> {
    session.send(message).await
}

#[test]
fn the_accept_hook_sees_the_whole_request() {
    let (seen, hook) = heard();
    let seen = Mutex::new(seen);
    let server = start(Server::builder().on_accept(async move |request: &Request| {
        let texts = [
            request.target().to_owned(),
            request.path().to_owned(),
            request.query().unwrap_or("none").to_owned(),
            request.header("AUTHORIZATION").unwrap_or("none").to_owned(),
            request.header("x-missing").unwrap_or("none").to_owned(),
            request.host().unwrap_or("none").to_owned(),
            request.origin().unwrap_or("none").to_owned(),
            request.protocols().collect::<Vec<_>>().join("|"),
        ];
        let cookies: Vec<Vec<u8>> = request.header_all("cookie").map(<[u8]>::to_vec).collect();
        let names: Vec<String> = request.headers().map(|(name, _)| name.to_owned()).collect();
        let method = request.method() == Method::GET;
        seen.lock().unwrap().send((texts, cookies, names, method, request.peer_addr())).unwrap();
        Ok(Upgrade::new())
    }));
    let mut raw = server.raw();
    let own = raw.stream.local_addr().unwrap();
    let more = "Origin: http://localhost\r\nAuthorization:  Bearer x y \r\nCookie: a=1\r\n\
                COOKIE: b=\u{e9}\r\nSec-WebSocket-Protocol: chat, bus\r\n\
                Sec-WebSocket-Protocol: last\r\n";
    raw.send(handshake_with("/rooms/a%20b?token=1&x=?", more).as_bytes());
    assert!(raw.read_head().starts_with("HTTP/1.1 101 "));
    let (texts, cookies, names, method, peer) = hook.next();
    assert_eq!(
        texts,
        [
            "/rooms/a%20b?token=1&x=?",
            "/rooms/a%20b",
            "token=1&x=?",
            "Bearer x y",
            "none",
            "localhost",
            "http://localhost",
            "chat|bus|last",
        ]
    );
    assert_eq!(cookies, [&b"a=1"[..], "b=\u{e9}".as_bytes()]);
    assert_eq!(names.len(), 11);
    assert_eq!((&*names[0], &*names[7], &*names[8]), ("Host", "Cookie", "COOKIE"));
    assert!(method);
    assert_eq!(peer, Some(own));
    raw.goodbye();

    // In memory there is no address.
    within(async {
        let mut stream = server.handle.connect().unwrap();
        stream.write_all(handshake("/").as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
    });
    let (texts, .., peer) = hook.next();
    assert_eq!((&*texts[2], peer), ("none", None));
    server.finish();
}

/// Who the hook has found the client to be.
#[derive(Debug, PartialEq)]
struct User(String);

#[test]
fn the_accept_hook_chooses_a_subprotocol_adds_headers_and_attaches_data() {
    let (opened, sessions) = heard();
    let opened = Mutex::new(opened);
    let server = start(
        Server::builder()
            .on_accept(async |request: &Request| {
                // The server's own preference, not the client's.
                let chosen = request.protocols().find(|offered| *offered == "bus").unwrap();
                Ok(Upgrade::new()
                    .subprotocol(chosen)
                    .header(HeaderName::from_static("x-served-by"), HeaderValue::from_static("box"))
                    .header(HeaderName::from_static("set-cookie"), HeaderValue::from_static("a=1"))
                    .header(HeaderName::from_static("set-cookie"), HeaderValue::from_static("b=2"))
                    .data(User(request.query().unwrap().to_owned())))
            })
            .on_open(async move |session: &Session| {
                let user = session.data::<User>().map(|user| user.0.clone());
                let other = session.data::<String>().is_some();
                let protocol = session.subprotocol().map(str::to_owned);
                let path = (session.path().to_owned(), session.query().map(str::to_owned));
                let peer = session.peer_addr();
                opened.lock().unwrap().send((user, other, protocol, path, peer)).unwrap();
            })
            .on_message(echo),
    );
    // A client that we did not write: it refuses a subprotocol that it has not offered.
    let own = within(async {
        let stream = smol::net::TcpStream::connect(server.addr()).await.unwrap();
        let own = stream.local_addr().unwrap();
        let mut request = format!("ws://{}/app?ann", server.addr()).into_client_request().unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", HeaderValue::from_static("chat, bus"));
        let (mut socket, response) =
            async_tungstenite::client_async(request, stream).await.unwrap();
        let headers = response.headers();
        assert_eq!(headers.get("sec-websocket-protocol").unwrap(), "bus");
        assert_eq!(headers.get("x-served-by").unwrap(), "box");
        let cookies: Vec<_> = headers.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1", "b=2"]);
        socket.send(tungstenite::Message::text("hello")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap(), "hello");
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
        own
    });
    let (user, other, protocol, path, peer) = sessions.next();
    assert_eq!(user.as_deref(), Some("ann"));
    assert!(!other, "data of another type is not there");
    assert_eq!(protocol.as_deref(), Some("bus"));
    assert_eq!(path, ("/app".to_owned(), Some("ann".to_owned())));
    assert_eq!(peer, Some(own));
    server.finish();
}

#[test]
fn the_data_of_a_session_goes_with_it() {
    struct Held(mpsc::Sender<()>);
    impl Drop for Held {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let (dropped, drops) = heard();
    let dropped = Mutex::new(dropped);
    let server = start(
        Server::builder()
            .on_accept(async move |_: &Request| {
                Ok(Upgrade::new().data(Held(dropped.lock().unwrap().clone())))
            })
            .on_message(echo),
    );
    let mut client = server.client();
    client.echo("hello");
    assert!(drops.try_next().is_none());
    client.reset();
    drops.next();
    server.client().goodbye();
    drops.next();
    server.finish();
}

#[test]
fn the_accept_hook_refuses_in_its_own_words() {
    let server = start(Server::builder().on_accept(async |request: &Request| {
        let response = coracle::http_types::Response::builder();
        Err(match request.path() {
            "/login" => response
                .status(401)
                .header("WWW-Authenticate", "Bearer")
                .header("WWW-Authenticate", "Basic realm=\"a, b\"")
                .header("Content-Type", "application/json")
                .body(b"{\"error\":\"who are you\"}".to_vec()),
            "/moved" => response.status(308).header("Location", "/new").body(Vec::new()),
            "/gone" => response.status(410).body(b"gone for good".to_vec()),
            "/page" => response
                .status(200)
                .header("Content-Length", "3")
                .header("Transfer-Encoding", "chunked")
                .header("Connection", "keep-alive")
                .body(vec![b'x'; 100_000]),
            "/empty" => response.status(204).body(b"no content has no content".to_vec()),
            _ => response.status(101).body(Vec::new()),
        }
        .unwrap())
    }));
    let answer = ask(&server, handshake("/login"));
    answer.expect(401);
    assert_eq!(answer.all("www-authenticate"), ["Bearer", "Basic realm=\"a, b\""]);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.body, "{\"error\":\"who are you\"}");

    let answer = ask(&server, handshake("/moved"));
    assert_eq!((answer.status, answer.header("location"), &*answer.body), (308, Some("/new"), ""));
    assert_eq!(answer.header("content-length"), Some("0"));

    let answer = ask(&server, handshake("/gone"));
    assert_eq!(answer.expect(410).body, "gone for good");
    assert!(answer.header("content-type").is_some_and(|value| value.starts_with("text/plain")));

    // What the hook says about length and connection is not what is sent.
    let answer = ask(&server, handshake("/page"));
    assert_eq!(answer.expect(200).body.len(), 100_000);
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(answer.header("connection"), Some("close"));

    let answer = ask(&server, handshake("/empty"));
    assert_eq!((answer.status, &*answer.body), (204, ""));

    // A 101 that is none would leave the client speaking frames to nobody.
    assert_eq!(ask(&server, handshake("/sneaky")).status, 500);
    server.finish();
}

#[test]
fn nothing_that_the_hook_takes_from_the_request_can_add_a_header() {
    // Header injection: the application decodes what the client sent and chooses it as a
    // subprotocol; its line end begins a header of the client's choice in the answer.
    let (opened, sessions) = heard::<()>();
    let opened = Mutex::new(opened);
    let server = start(
        Server::builder()
            .on_accept(async |request: &Request| {
                let chosen = request.query().unwrap().replace("%0d", "\r").replace("%0a", "\n");
                Ok(Upgrade::new().subprotocol(chosen))
            })
            .on_open(async move |_: &Session| opened.lock().unwrap().send(()).unwrap()),
    );
    for query in [
        "chat%0d%0aSet-Cookie:admin=1",
        "chat%0aSet-Cookie:admin=1",
        "chat%0d%0a%0d%0aunwanted",
        "chat,bus",
        "",
        "Chat",
        "notoffered",
    ] {
        let request =
            handshake_with(&format!("/?{query}"), "Sec-WebSocket-Protocol: chat, bus\r\n");
        let answer = ask(&server, request);
        assert_eq!(answer.expect(500).header("set-cookie"), None, "{answer:?}");
        assert_eq!(answer.header("sec-websocket-protocol"), None, "{answer:?}");
        assert!(!answer.body.contains("unwanted") && !answer.body.contains("chat"), "{answer:?}");
    }
    // The client cannot smuggle one into its offer either: RFC 6455 section 4.1, item 10.
    for offer in ["chat, ch at", "chat\u{7f}", "chat, chat", "chat,,bus", "", "\"chat\""] {
        let request = handshake_with("/?chat", &format!("Sec-WebSocket-Protocol: {offer}\r\n"));
        assert_eq!(ask(&server, request).status, 400, "{offer:?}");
    }
    // The types of names and values hold no line end in the first place.
    for value in ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b"] {
        assert!(HeaderValue::from_str(value).is_err());
        assert!(HeaderName::from_bytes(value.as_bytes()).is_err());
    }
    assert!(sessions.try_next().is_none());
    server.finish();
}

#[test]
fn the_hook_cannot_change_the_handshake_itself() {
    let server = start(Server::builder().on_accept(async |request: &Request| {
        let name = HeaderName::from_bytes(&request.path().as_bytes()[1..]).unwrap();
        Ok(Upgrade::new().header(name, HeaderValue::from_static("permessage-deflate")))
    }));
    for name in [
        "Connection",
        "Upgrade",
        "Content-Length",
        "Transfer-Encoding",
        "Sec-WebSocket-Accept",
        "Sec-WebSocket-Extensions",
        "Sec-WebSocket-Protocol",
    ] {
        let answer = ask(&server, handshake(&format!("/{name}")));
        assert!(!answer.expect(500).body.contains("deflate"), "{answer:?}");
    }
    server.finish();
}

#[test]
fn a_panic_in_the_accept_hook_is_a_500_and_the_server_lives() {
    let server = start(
        Server::builder()
            .workers(1)
            .on_accept(async |request: &Request| {
                assert_ne!(request.path(), "/at-once", "the secret");
                smol::Timer::after(Duration::from_millis(1)).await;
                assert_ne!(request.path(), "/later", "the secret");
                Ok(Upgrade::new())
            })
            .on_message(echo),
    );
    let mut bystander = server.client();
    for path in ["/at-once", "/later", "/at-once"] {
        let answer = ask(&server, handshake(path));
        assert!(!answer.expect(500).body.contains("secret"), "{answer:?}");
    }
    bystander.echo("still here");
    server.client().goodbye();
    bystander.goodbye();
    assert_eq!(server.finish().panics, 3);
}

/// Says that it was dropped.
struct Witness(mpsc::Sender<&'static str>);

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

/// A hook hangs on the only place there is; `leave` is what its client does. The hook is dropped, and
/// the place is free again.
fn a_hook_hangs(leave: impl FnOnce(Raw)) {
    let (said, says) = heard();
    let said = Mutex::new(said);
    let server = start(
        Server::builder()
            .on_accept(async move |request: &Request| {
                if request.path() == "/hang" {
                    let said = said.lock().unwrap().clone();
                    said.send("asked").unwrap();
                    let _witness = Witness(said);
                    std::future::pending::<()>().await;
                }
                Ok(Upgrade::new())
            })
            .on_message(echo)
            .configure(|config| {
                config.timeouts.handshake = BRIEF;
                config.limits.sessions = Some(1);
                config.limits.sessions_per_address = Some(100);
            }),
    );
    let mut raw = server.raw();
    raw.send(handshake("/hang").as_bytes());
    assert_eq!(says.next(), "asked");
    leave(raw);
    assert_eq!(says.next(), "dropped");
    let_in(|| server.raw(), &[503]).goodbye();
    server.finish();
}

#[test]
fn a_hook_that_hangs_is_dropped_at_the_handshake_timeout() {
    // The database that the hook asks does not answer. Each client that tries holds a socket and a
    // place, until nobody can connect, also those who need no database.
    a_hook_hangs(|raw| {
        read_answer(raw).expect(408);
    });
}

#[test]
fn a_peer_that_goes_away_while_the_hook_hangs_leaves_nothing_behind() {
    a_hook_hangs(Raw::reset);
}

#[test]
fn a_peer_that_goes_away_while_the_hook_works_leaves_nothing_behind() {
    // The client gives up while the hook still asks the database. The server writes the 101 into a
    // dead socket: the session must end like any other, with one record, or never begin.
    let (said, says) = heard();
    let (release, gate) = smol::channel::unbounded::<()>();
    let (closed, records) = heard();
    let said = Mutex::new(said);
    let server = start(
        Server::builder()
            .on_accept(async move |request: &Request| {
                if request.path() == "/wait" {
                    said.lock().unwrap().send(()).unwrap();
                    gate.recv().await.unwrap();
                }
                Ok(Upgrade::new())
            })
            .on_message(echo)
            .on_close(record(&closed))
            .configure(|config| {
                config.limits.sessions = Some(1);
                config.limits.sessions_per_address = Some(100);
            }),
    );
    type Leave = fn(Raw);
    let leaves: [Leave; 3] = [Raw::reset, drop, |raw| {
        raw.end_writing();
        drop(raw);
    }];
    for leave in leaves {
        let mut raw = server.raw();
        raw.send(handshake("/wait").as_bytes());
        says.next();
        leave(raw);
        release.send_blocking(()).unwrap();
        // Its place is free again.
        let mut client = let_in(|| server.raw(), &[503]);
        client.echo("hello");
        client.goodbye();
        loop {
            let closed = records.next();
            if closed.cause == Cause::PeerClosed {
                break;
            }
            assert_eq!((closed.cause, closed.clean), (Cause::PeerVanished, false), "{closed}");
        }
        assert!(records.try_next().is_none());
    }
    server.finish();
}

#[test]
fn the_hook_may_await_timers_and_the_blocking_pool() {
    // A hook that awaited something of another executor used to sleep for ever: the wake-up came
    // from a thread that the worker did not listen to.
    let server = start(
        Server::builder()
            .workers(1)
            .on_accept(async |request: &Request| {
                smol::Timer::after(Duration::from_millis(5)).await;
                let path = request.path().to_owned();
                let answer = smol::unblock(move || path.len()).await;
                smol::future::yield_now().await;
                Ok(Upgrade::new().data(answer))
            })
            .on_message(async |session: &Session, _| {
                let answer = session.data::<usize>().copied().unwrap();
                session.send(answer.to_string()).await
            }),
    );
    let mut clients: Vec<Raw> = (0..20)
        .map(|n| {
            let mut raw = server.raw();
            raw.send(handshake(&format!("/{}", "x".repeat(n))).as_bytes());
            raw
        })
        .collect();
    for (n, raw) in clients.iter_mut().enumerate() {
        assert!(raw.read_head().starts_with("HTTP/1.1 101 "));
        raw.send_frame(TEXT, b"?");
        assert_eq!(raw.read_frame().payload, (n + 1).to_string().as_bytes());
    }
    clients.into_iter().for_each(Raw::goodbye);
    server.finish();
}

#[test]
fn frames_sent_while_the_hook_works_are_kept() {
    let (said, says) = heard();
    let (release, gate) = smol::channel::unbounded::<()>();
    let said = Mutex::new(said);
    let server = start(
        Server::builder()
            .on_accept(async move |_: &Request| {
                said.lock().unwrap().send(()).unwrap();
                gate.recv().await.unwrap();
                Ok(Upgrade::new())
            })
            .on_message(echo),
    );
    let mut raw = server.raw();
    let mut bytes = handshake("/").into_bytes();
    bytes.extend(frame(true, TEXT, b"with the head"));
    raw.send(&bytes);
    says.next();
    raw.send_frame(TEXT, b"behind it");
    release.send_blocking(()).unwrap();
    assert!(raw.read_head().starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.read_frame().payload, b"with the head");
    assert_eq!(raw.read_frame().payload, b"behind it");
    raw.goodbye();
    server.finish();
}

/// Half of the 101 is out when `end` ends the handshake; what else does the client read?
fn rest_of_a_long_answer(config: impl FnOnce(&mut coracle::config::Config), end: fn(&TestServer)) {
    let (said, says) = heard();
    let said = Mutex::new(said);
    let server = start(
        Server::builder()
            .on_accept(async move |_: &Request| {
                // Dropped with the handshake.
                let witness = Mutex::new(Witness(said.lock().unwrap().clone()));
                let value = HeaderValue::from_bytes(&[b'x'; 100_000]).unwrap();
                Ok(Upgrade::new().header(HeaderName::from_static("x-long"), value).data(witness))
            })
            .configure(config),
    );
    // The pipe holds less than the answer.
    let mut stream = server.handle.connect().unwrap();
    within(async {
        stream.write_all(handshake("/").as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
    });
    end(&server);
    assert_eq!(says.next(), "dropped");
    let mut rest = Vec::new();
    within(stream.read_to_end(&mut rest)).unwrap();
    let rest = String::from_utf8(rest).unwrap();
    let behind = rest.trim_end_matches('x').len();
    assert!(!rest[..behind].contains("HTTP/1.1"), "{:?}", &rest[behind.saturating_sub(300)..]);
    server.finish();
}

#[test]
fn an_answer_that_has_begun_is_not_followed_by_another_at_the_timeout() {
    // The client reads slowly; half of the 101 is out when the handshake's time is over. A server
    // that now sends its 408 writes it into the middle of a header, where the client reads it as
    // part of the answer, or as the first frame.
    rest_of_a_long_answer(|config| config.timeouts.handshake = BRIEF, |_| {});
}

#[test]
fn an_answer_that_has_begun_is_not_followed_by_another_at_the_stop() {
    // The same with the 503 of a server that stops.
    rest_of_a_long_answer(|_| {}, |server| server.handle.request_stop());
}
