//! Ordinary requests beside the WebSocket: connections that are kept, pipelining, routes, the ends of both.

#[path = "support/http.rs"]
mod http;
mod support;

use std::time::Duration;

use coracle::http_types::{HeaderValue, Method, Response, StatusCode, header};
use coracle::{
    Body, Builder, Closures, Message, OriginPolicy, Reply, Request, Routes, Server, Session,
};
use http::{Client, get, request};
use support::*;

/// For deadlines that a test waits for.
const BRIEF: Duration = Duration::from_millis(300);

fn routes() -> Routes {
    Routes::new()
        .get("/", async |_: &Request, _: &mut Body| "home")
        .get("/hello/{name}", async |request: &Request, _: &mut Body| {
            format!("hello {}", request.param("name").unwrap_or_default())
        })
        .get("/hello/{name}/{*rest}", async |request: &Request, _: &mut Body| {
            request.param("rest").unwrap_or_default().into_owned()
        })
        .post("/echo", async |_: &Request, body: &mut Body| body.bytes().await)
        .get("/panic", async |_: &Request, _: &mut Body| -> Reply { panic!("horrors") })
        .get("/hang", async |_: &Request, _: &mut Body| -> Reply { std::future::pending().await })
}

fn app() -> Builder<Closures> {
    Server::builder().routes(routes())
}

fn serve(routes: Routes) -> TestServer {
    start(Server::builder().routes(routes))
}

#[test]
fn a_connection_is_kept_for_further_requests_and_then_upgraded() {
    let server = start(
        app().on_message(async |session: &Session, message: Message| session.send(message).await),
    );
    let mut client = Client::of(&server);
    for name in ["a", "b%20c", "%C3%A9"] {
        client.send(get(&format!("/hello/{name}")));
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (200, None));
        assert!(answer.header("date").is_some_and(|date| date.ends_with(" GMT")), "{answer:?}");
    }
    client.send(request("POST", "/echo", "Content-Length: 5\r\n") + "hello");
    assert_eq!(client.answer().text(), "hello");
    assert_eq!(server.handle.sessions().count(), 0);
    let mut session = client.upgrade();
    session.echo("hello");
    assert_eq!(server.handle.sessions().count(), 1);
    session.goodbye();
    server.finish();
}

#[test]
fn what_is_sent_ahead_is_answered_in_order_wherever_it_is_divided() {
    let server = start(
        app()
            .workers(1)
            .on_message(async |session: &Session, message: Message| session.send(message).await),
    );
    let mut other = Client::of(&server);
    let mut all = get("/hello/one").into_bytes();
    all.extend(
        (request("POST", "/echo", "Transfer-Encoding: chunked\r\n")
            + "3\r\ntwo\r\n5;x=y\r\n and \r\n0\r\nX-Trailer: no\r\n\r\n")
            .bytes(),
    );
    all.extend((request("POST", "/echo", "Content-Length: 5\r\n") + "three").bytes());
    all.extend(request("HEAD", "/hello/four", "").bytes());
    all.extend(get("/none").bytes());
    all.extend(handshake("/").bytes());
    all.extend(frame(true, TEXT, b"five"));
    let expect = |client: &mut Client| {
        assert_eq!(client.answer().text(), "hello one");
        assert_eq!(client.answer().text(), "two and ");
        assert_eq!(client.answer().text(), "three");
        let head = client.head_answer();
        assert_eq!((head.status, head.header("content-length")), (200, Some("10")));
        assert_eq!(client.answer().status, 404);
        assert_eq!(client.answer().status, 101);
    };
    for at in 0..=all.len() {
        let mut client = Client::of(&server);
        let (first, second) = all.split_at(at);
        client.send(first);
        // Whoever is answered twice meanwhile has been behind the first half, and behind the connection itself.
        other.ping();
        other.ping();
        client.send(second);
        expect(&mut client);
        let mut raw = client.into_raw();
        assert_eq!(raw.expect_text(), "five");
        raw.goodbye();
    }
    let mut client = Client::of(&server);
    for byte in &all {
        client.send([*byte]);
    }
    expect(&mut client);
    server.finish();
}

#[test]
fn the_most_definite_route_with_the_method_answers() {
    let routes = Routes::new()
        .get("/a/{x}", async |_: &Request, _: &mut Body| "one")
        .post("/{*all}", async |_: &Request, _: &mut Body| "all")
        .put("/a/b", async |_: &Request, _: &mut Body| "put")
        .route(Method::from_bytes(b"BREW").unwrap(), "/pot", async |_: &Request, _: &mut Body| {
            StatusCode::IM_A_TEAPOT
        });
    let server = serve(routes);
    let mut client = Client::of(&server);
    let mut ask = |method, path| {
        client.send(request(method, path, "Content-Length: 0\r\n"));
        let answer = client.answer();
        (answer.status, answer.header("allow").unwrap_or_default().to_owned(), answer.text())
    };
    assert_eq!(ask("GET", "/a/b").2, "one");
    assert_eq!(ask("PUT", "/a/b").2, "put");
    assert_eq!(ask("POST", "/a/b").2, "all");
    assert_eq!(ask("BREW", "/pot").0, 418);
    let (status, allow, _) = ask("DELETE", "/a/b");
    assert_eq!((status, &*allow), (405, "GET, HEAD, OPTIONS, POST, PUT"));
    let (status, allow, _) = ask("OPTIONS", "/a/b");
    assert_eq!((status, &*allow), (204, "GET, HEAD, OPTIONS, POST, PUT"));
    assert_eq!(ask("GET", "/").0, 404);
    server.finish();
}

#[test]
fn the_fallback_answers_what_no_route_is_for() {
    let server = serve(routes().fallback(async |request: &Request, _: &mut Body| {
        (StatusCode::NOT_FOUND, format!("no {}", request.path()))
    }));
    let mut client = Client::of(&server);
    client.send(request("DELETE", "/nowhere", ""));
    let answer = client.answer();
    assert_eq!((answer.status, answer.text()), (404, "no /nowhere".into()));
    client.send(request("DELETE", "/", ""));
    assert_eq!(client.answer().status, 405, "there is a route, and it is not for this method");
    server.finish();
}

#[test]
fn every_kind_of_answer_is_one() {
    let routes = Routes::new()
        .get("/text", async |_: &Request, _: &mut Body| "text")
        .get("/bytes", async |_: &Request, _: &mut Body| vec![0_u8, 255])
        .get("/unit", async |_: &Request, _: &mut Body| ())
        .get("/none", async |_: &Request, _: &mut Body| None::<&str>)
        .get("/error", async |_: &Request, _: &mut Body| {
            Err::<(), _>((StatusCode::CONFLICT, "twice"))
        })
        .get("/informational", async |_: &Request, _: &mut Body| {
            Reply::new("no").with_status(StatusCode::SWITCHING_PROTOCOLS)
        })
        .get("/response", async |_: &Request, _: &mut Body| {
            let response = Response::builder().status(201).header("Content-Length", "77");
            let response = response.header("Transfer-Encoding", "chunked").header("X-Own", "1");
            response.body(b"made".to_vec()).unwrap()
        })
        .get("/close", async |_: &Request, _: &mut Body| {
            Reply::new("bye").with_header(header::CONNECTION, HeaderValue::from_static("close"))
        });
    let server = serve(routes);
    let mut client = Client::of(&server);
    let mut ask = |path: &str| {
        client.send(get(path));
        client.answer()
    };
    let text = ask("/text");
    assert_eq!(text.header("content-type"), Some("text/plain; charset=utf-8"));
    let bytes = ask("/bytes");
    assert_eq!(bytes.header("content-type"), Some("application/octet-stream"));
    assert_eq!(bytes.body, [0, 255]);
    let unit = ask("/unit");
    assert_eq!((unit.status, unit.header("content-length")), (204, None));
    assert_eq!(ask("/none").status, 404);
    let error = ask("/error");
    assert_eq!((error.status, error.text()), (409, "twice".into()));
    assert_eq!(ask("/informational").status, 500);
    let response = ask("/response");
    assert_eq!((response.status, response.header("x-own")), (201, Some("1")));
    assert_eq!(
        (response.header("content-length"), response.header("transfer-encoding")),
        (Some("4"), None)
    );
    assert_eq!(ask("/close").header("connection"), Some("close"));
    client.expect_end();
    server.finish();
}

#[test]
fn who_asks_for_the_end_gets_it_behind_the_answer() {
    let server = start(app());
    for connection in ["close", "keep-alive, Close", "foo\r\nConnection: close"] {
        let mut client = Client::of(&server);
        client.send(request("GET", "/", &format!("Connection: {connection}\r\n")) + &get("/"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
        client.expect_end();
    }
    let mut client = Client::of(&server);
    client.send(request("GET", "/", "Connection: a b\r\n"));
    assert_eq!(client.answer().status, 400);
    client.expect_end();
    server.finish();
}

#[test]
fn an_idle_connection_is_closed_after_keep_alive() {
    let server = start(app().configure(|config| config.timeouts.keep_alive = BRIEF));
    let mut client = Client::of(&server);
    client.send(get("/"));
    assert_eq!(client.answer().text(), "home");
    client.expect_end();
    server.finish();
}

#[test]
fn a_head_that_does_not_come_is_refused_also_behind_another() {
    let server = start(app().configure(|config| config.timeouts.handshake = BRIEF));
    let mut client = Client::of(&server);
    client.send(get("/") + "GET / HT");
    assert_eq!(client.answer().status, 200);
    assert_eq!(client.answer().status, 408);
    client.expect_end();
    server.finish();
}

#[test]
fn a_second_head_is_as_strict_as_the_first() {
    let server = start(app());
    for head in [
        "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let mut client = Client::of(&server);
        client.send(get("/") + head + &get("/hello/smuggled"));
        assert_eq!(client.answer().status, 200);
        let refused = client.answer();
        assert_eq!(
            (refused.status, refused.header("connection")),
            (400, Some("close")),
            "{head:?}"
        );
        client.expect_end();
    }
    server.finish();
}

// The answer had its length and not its body, as if it were to the HEAD before it.
#[test]
fn what_is_said_of_a_bad_head_behind_a_head_request_has_its_body() {
    let server = start(app().configure(|config| config.timeouts.handshake = BRIEF));
    for bad in ["GET / HTTP/1.0\r\n\r\n", "GET / HT"] {
        let mut client = Client::of(&server);
        client.send(request("HEAD", "/", "") + bad);
        assert_eq!(client.head_answer().status, 200);
        assert!(!client.answer().text().is_empty());
        client.expect_end();
    }
    server.finish();
}

#[test]
fn a_route_that_panics_is_a_500_and_harms_nobody() {
    let server = start(app());
    let mut client = Client::of(&server);
    client.send(get("/panic"));
    let answer = client.answer();
    assert_eq!(answer.status, 500);
    assert!(!answer.text().contains("horrors"));
    client.expect_end();
    let mut client = Client::of(&server);
    client.send(get("/"));
    assert_eq!(client.answer().status, 200);
    assert_eq!(server.finish().panics, 1);
}

#[test]
fn a_route_that_hangs_is_dropped_and_answered_for() {
    let server = start(app().configure(|config| config.timeouts.request = BRIEF));
    let mut client = Client::of(&server);
    client.send(get("/hang"));
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
    client.expect_end();
    server.finish();
}

#[test]
fn http_connections_are_bounded_and_their_places_given_back() {
    let server = start(app().configure(|config| {
        config.limits.http_connections = Some(4);
    }));
    let keep = || {
        let mut client = Client::of(&server);
        client.send(get("/"));
        (client.answer(), client)
    };
    let mut kept: Vec<_> = (0..3).map(|_| keep()).collect();
    assert!(kept.iter().all(|(answer, _)| answer.status == 200));
    // Three quarters for one address.
    let (answer, mut refused) = keep();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
    refused.expect_end();
    // A session does not count.
    let sessions: Vec<Raw> = (0..10).map(|_| server.client()).collect();
    let upgraded = kept.pop().unwrap().1.upgrade();
    eventually("its place is free", || keep().0.status == 200);
    drop((sessions, upgraded, kept));
    server.finish();
}

// Browsers that had asked for one page each held their connections for a quarter of a minute, and whoever came next
// was told that there was no place.
#[test]
fn a_connection_is_not_kept_where_places_are_scarce() {
    let server = start(app().configure(|config| config.limits.http_connections = Some(4)));
    let keep = |client: &mut Client| {
        client.send(get("/"));
        let answer = client.answer();
        (answer.status, answer.header("connection").map(str::to_owned))
    };
    // The pipe in memory is counted for no address.
    let mut kept: Vec<_> = (0..3).map(|_| Client::of(&server)).collect();
    for client in &mut kept {
        assert_eq!(keep(client), (200, None));
    }
    let ask = || {
        let mut stream = server.handle.connect().unwrap();
        let mut answer = Vec::new();
        within(async {
            use futures_lite::{AsyncReadExt, AsyncWriteExt};
            stream.write_all(get("/").as_bytes()).await.unwrap();
            stream.read_to_end(&mut answer).await.unwrap();
        });
        String::from_utf8(answer).unwrap().to_ascii_lowercase()
    };
    for _ in 0..3 {
        // The one before may still be leaving.
        eventually("there is a place", || {
            let answer = ask();
            let answered = answer.starts_with("http/1.1 200 ");
            assert!(answered != answer.contains(" 503 "), "{answer}");
            assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
            answered
        });
    }
    // And those that were there have been.
    for client in &mut kept {
        assert_eq!(keep(client).0, 200);
    }
    drop(kept);
    server.finish();
}

// Whoever filled the public side, with connections that said nothing or that were kept, had the health checks and the
// metrics refused as well.
#[test]
fn a_listener_of_its_own_answers_while_the_others_are_full() {
    let own = Routes::new().health();
    let server = start(app().bind_http("127.0.0.1:0", own).configure(|config| {
        config.limits.handshakes = Some(2);
        config.limits.http_connections = Some(1);
    }));
    let [own, main] = server.handle.local_addrs() else { panic!("two listeners") };
    let mut busy = Client::new(Raw::connect(*main));
    busy.send(request("POST", "/echo", "Content-Length: 5\r\nExpect: 100-continue\r\n"));
    assert_eq!(busy.answer().status, 100, "it has the only place");
    // Of an address two connections may say nothing.
    let silent: Vec<_> = (0..2).map(|_| Raw::connect(*main)).collect();
    let refused = Client::new(Raw::connect(*main)).answer();
    assert_eq!(refused.status, 503, "without having asked");
    let mut kept = Vec::new();
    for _ in 0..4 {
        let mut client = Client::new(Raw::connect(*own));
        client.send(get("/healthz"));
        assert_eq!(client.answer().status, 200);
        kept.push(client);
    }
    drop((kept, silent));
    busy.send("hello");
    assert_eq!(busy.answer().text(), "hello");
    server.finish();
}

#[test]
fn a_server_without_routes_answers_as_it_did() {
    let server = start(Server::builder());
    for (request, status) in [(get("/"), 426), (request("POST", "/", ""), 405)] {
        let mut client = Client::of(&server);
        client.send(request);
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection").is_some()), (status, true));
        client.expect_end();
    }
    server.finish();
}

// The page's own address was its WebSocket's, too; behind a proxy that takes the Upgrade header away the client
// got the page instead of the sentence that says what is wrong.
#[test]
fn a_broken_handshake_is_told_what_is_wrong_and_is_no_request() {
    let server = start(app());
    let ask = |request: String| {
        let mut client = Client::of(&server);
        client.send(request);
        client.answer()
    };
    let key = format!("Sec-WebSocket-Key: {KEY}\r\n");
    let without = request("GET", "/", &format!("{key}Sec-WebSocket-Version: 13\r\n"));
    let answer = ask(without);
    assert_eq!((answer.status, answer.text().contains("proxy")), (426, true));
    let no_key = "Connection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n";
    assert_eq!(ask(request("GET", "/", no_key)).status, 400);
    assert_eq!(ask(request("GET", "/", "Upgrade: web socket\r\n")).status, 400);
    // Another protocol is no WebSocket.
    assert_eq!(ask(request("GET", "/", "Connection: Upgrade\r\nUpgrade: h2c\r\n")).status, 200);
    server.finish();
}

#[test]
fn a_listener_of_its_own_has_its_own_routes_and_no_websocket() {
    let own = Routes::new().get("/own", async |_: &Request, _: &mut Body| "own").health();
    let server = start(app().bind_http("127.0.0.1:0", own));
    let [own, main] = server.handle.local_addrs() else { panic!("two listeners") };
    let ask = |addr, request: String| {
        let mut client = Client::new(Raw::connect(addr));
        client.send(request);
        client.answer().status
    };
    assert_eq!([ask(*own, get("/own")), ask(*main, get("/own"))], [200, 404]);
    assert_eq!([ask(*own, get("/")), ask(*main, get("/"))], [404, 200]);
    assert_eq!([ask(*own, get("/healthz")), ask(*main, get("/healthz"))], [200, 404]);
    assert_eq!([ask(*own, handshake("/")), ask(*main, handshake("/"))], [404, 101]);
    server.finish();
}

#[test]
fn health_says_whether_further_sessions_are_welcome() {
    let server = start(Server::builder().health().configure(|config| {
        config.limits.sessions = Some(1);
        config.limits.sessions_per_address = Some(10);
    }));
    let mut client = Client::of(&server);
    let mut ask = |path: &str| {
        client.send(get(path));
        let answer = client.answer();
        (answer.status, answer.text())
    };
    assert_eq!(ask("/healthz"), (200, "live\n".into()));
    assert_eq!(ask("/readyz"), (200, "ready\n".into()));
    let session = server.client();
    assert_eq!(ask("/readyz"), (503, "full\n".into()));
    assert_eq!(ask("/healthz"), (200, "live\n".into()));
    session.goodbye();
    eventually("it is free again", || ask("/readyz").0 == 200);
    assert_eq!(ask("/else").0, 404);
    server.finish();
}

#[test]
fn a_mistake_in_the_routes_is_refused_by_its_name() {
    async fn nothing(_: &Request, _: &mut Body) {}
    for (routes, said) in [
        (Routes::new().get("a", nothing), "slash"),
        (Routes::new().get("/a", nothing).get("/a", nothing), "two routes for GET"),
        (Routes::new().get("/{a}", nothing).post("/{b}", nothing), "name its places alike"),
        (Routes::new().summary("of what?"), "follows no route"),
        (Routes::new().files("/static", "/nowhere/at/all"), "/nowhere/at/all"),
        // Those of a listener of its own were taken, and then no page's origin was any of them.
        (Routes::new().origins(OriginPolicy::AllowList(vec!["ours".into()])), "ours"),
    ] {
        let own = Server::builder().bind_http("127.0.0.1:0", routes.clone());
        for builder in [Server::builder().bind("127.0.0.1:0").routes(routes), own] {
            let error = builder.start().unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
