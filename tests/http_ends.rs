//! Ends: clients that go away, and a server that stops, while requests are under way.

#[path = "support/http.rs"]
mod http;
mod support;

use std::sync::Mutex;
use std::sync::mpsc::Sender;
use std::time::Duration;

use coracle::{Body, Builder, Closures, OriginPolicy, Reply, Request, Routes, Server};
use http::{Client, get, request};
use support::*;

/// For deadlines that a test waits for.
const BRIEF: Duration = Duration::from_millis(300);

/// Says that it is dropped.
struct Guard(Sender<&'static str>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

/// `/wait` says when it is asked and when it is dropped, and answers when it is told to.
fn waiting() -> (Builder<Closures>, Heard<&'static str>, smol::channel::Sender<()>) {
    let (said, says) = heard();
    let said = Mutex::new(said);
    let (go_on, may) = smol::channel::unbounded();
    let routes = Routes::new().get("/", async |_: &Request, _: &mut Body| "home").get(
        "/wait",
        async move |_: &Request, _: &mut Body| {
            let said = said.lock().unwrap().clone();
            let _guard = Guard(said.clone());
            said.send("asked").unwrap();
            may.recv().await.unwrap();
            said.send("goes on").unwrap();
            "waited"
        },
    );
    (Server::builder().routes(routes), says, go_on)
}

#[test]
fn a_route_goes_on_for_who_has_only_nothing_more_to_say() {
    let (app, says, go_on) = waiting();
    let server = start(app);
    let mut client = Client::of(&server);
    client.send(get("/wait") + &get("/"));
    client.raw().end_writing();
    assert_eq!(says.next(), "asked");
    go_on.send_blocking(()).unwrap();
    assert_eq!(client.answer().text(), "waited");
    assert_eq!(client.answer().text(), "home", "what was sent ahead is answered, too");
    client.expect_end();
    server.finish();
}

#[test]
fn a_route_is_dropped_when_its_connection_breaks() {
    let (app, says, _go_on) = waiting();
    let server = start(app);
    let mut client = Client::of(&server);
    client.send(get("/wait"));
    assert_eq!(says.next(), "asked");
    client.into_raw().reset();
    assert_eq!(says.next(), "dropped");
    server.finish();
}

// What was sent ahead had filled what is kept of it, or its end had been seen, and nobody looked at the socket then.
#[test]
fn a_reset_is_noticed_also_where_nothing_more_is_read() {
    let (app, says, _go_on) = waiting();
    let server = start(app);
    for full in [true, false] {
        let mut client = Client::of(&server);
        client.send(get("/wait"));
        assert_eq!(says.next(), "asked");
        if full {
            client.send(get("/").repeat(2000));
        } else {
            client.raw().end_writing();
        }
        // The server is at least a turn further.
        Client::of(&server).ping();
        client.into_raw().reset();
        assert_eq!(says.next(), "dropped");
    }
    server.finish();
}

#[test]
fn a_stream_is_dropped_at_the_clients_end_also_behind_what_is_not_read() {
    let (said, says) = heard();
    let said = Mutex::new(said);
    let routes = Routes::new().get("/", async move |_: &Request, _: &mut Body| {
        let guard = Guard(said.lock().unwrap().clone());
        Reply::stream(futures_lite::stream::once_future(async move {
            let _guard = guard;
            std::future::pending().await
        }))
    });
    let server = start(Server::builder().routes(routes));
    let mut memory = server.handle.connect().unwrap();
    let ahead = get("/").repeat(2000);
    within(async {
        use futures_lite::AsyncWriteExt;
        memory.write_all(get("/").as_bytes()).await.unwrap();
        memory.write_all(ahead.as_bytes()).await.unwrap();
        memory.close().await.unwrap();
    });
    assert_eq!(says.next(), "dropped");
    let mut client = Client::of(&server);
    client.send(get("/") + &ahead);
    assert_eq!(client.head_answer().status, 200);
    client.raw().end_writing();
    assert_eq!(says.next(), "dropped");
    server.finish();
}

#[test]
fn a_stop_ends_idle_connections_and_lets_requests_finish() {
    let (app, says, go_on) = waiting();
    let server = start(app);
    let mut idle = Client::of(&server);
    idle.send(get("/"));
    assert_eq!(idle.answer().text(), "home");
    let mut busy = Client::of(&server);
    busy.send(get("/wait") + &get("/"));
    assert_eq!(says.next(), "asked");
    server.handle.request_stop();
    idle.expect_end();
    go_on.send_blocking(()).unwrap();
    let answer = busy.answer();
    assert_eq!((answer.text(), answer.header("connection")), ("waited".into(), Some("close")));
    busy.expect_end();
    let report = server.finish();
    assert_eq!((report.requests, report.requests_cut), (1, 0));
}

#[test]
fn a_request_that_does_not_finish_is_cut_by_the_deadline_of_the_stop() {
    let (app, says, _go_on) = waiting();
    let server = start(app.configure(|config| config.timeouts.stop = BRIEF));
    let mut client = Client::of(&server);
    client.send(get("/wait"));
    assert_eq!(says.next(), "asked");
    let report = server.finish();
    assert_eq!((report.requests, report.requests_cut), (0, 1));
    assert_eq!(says.next(), "dropped");
    client.expect_end();
}

#[test]
fn a_route_may_stop_the_server() {
    let routes = Routes::new().post("/stop", async |request: &Request, _: &mut Body| {
        request.shutdown().request_stop();
        "stopping"
    });
    let server = start(Server::builder().routes(routes));
    let mut session = server.client();
    let mut client = Client::of(&server);
    client.send(request("POST", "/stop", ""));
    let answer = client.answer();
    assert_eq!((answer.text(), answer.header("connection")), ("stopping".into(), Some("close")));
    session.expect_close(1001);
    let report = within(server.handle.wait());
    assert_eq!((report.requests, report.requests_cut, report.drained), (1, 0, 1));
}

#[test]
fn a_head_that_has_begun_is_told_of_the_stop() {
    let (app, ..) = waiting();
    let server = start(app);
    let mut client = server.handle.connect().unwrap();
    let rest = within(async {
        use futures_lite::{AsyncReadExt, AsyncWriteExt};
        // In one piece: whoever has read the request has read the beginning of the next.
        client.write_all((get("/") + "GET / HT").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"home") {
            let mut byte = [0];
            client.read_exact(&mut byte).await.unwrap();
            answer.extend(byte);
        }
        server.handle.request_stop();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        rest
    });
    let rest = String::from_utf8(rest).unwrap();
    assert!(rest.starts_with("HTTP/1.1 503 ") && rest.contains("stopping"), "{rest}");
    server.finish();
}

#[test]
fn foreign_pages_are_refused_where_they_are_not_wanted_and_told_where_they_are() {
    async fn yes(_: &Request, _: &mut Body) -> &'static str {
        "yes"
    }
    let listed = || OriginPolicy::AllowList(vec!["https://ours.example".into()]);
    let routes = || Routes::new().post("/", yes).get("/public", yes).public();
    let ours = "Origin: https://ours.example\r\n";
    let foreign = "Origin: https://foreign.example\r\n";
    let server = start(Server::builder().routes(routes()));
    let ask = |server: &TestServer, method, target, more: &str| {
        let mut client = Client::of(server);
        client.send(request(method, target, more));
        client.answer()
    };
    assert_eq!(ask(&server, "POST", "/", foreign).status, 403);
    assert_eq!(ask(&server, "POST", "/", "Origin: http://localhost\r\n").status, 200);
    assert_eq!(ask(&server, "POST", "/", "").status, 200);
    let public = ask(&server, "GET", "/public", foreign);
    assert_eq!(public.status, 200);
    assert_eq!(public.header("access-control-allow-origin"), Some("*"));
    assert_eq!(public.header("access-control-allow-credentials"), None);
    server.finish();

    let server = start(Server::builder().routes(routes().origins(listed())).health());
    let answer = ask(&server, "POST", "/", ours);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://ours.example"));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(answer.header("vary"), Some("origin"));
    assert_eq!(ask(&server, "POST", "/", foreign).status, 403);
    // The server's own endpoints go by the server's own policy.
    assert_eq!(ask(&server, "GET", "/healthz", ours).status, 403);
    let preflight = "Access-Control-Request-Method: POST\r\n\
                     Access-Control-Request-Headers: content-type\r\n";
    let answer = ask(&server, "OPTIONS", "/", &(ours.to_owned() + preflight));
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-methods"), Some("OPTIONS, POST"));
    assert_eq!(answer.header("access-control-allow-headers"), Some("content-type"));
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://ours.example"));
    let answer = ask(&server, "OPTIONS", "/", &(foreign.to_owned() + preflight));
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (403, None));
    server.finish();
}

// A page that may use the routes was not told why it got no answer, and a fallback had to answer what browsers ask
// before they ask.
#[test]
fn pages_that_may_use_the_routes_may_read_that_there_is_none_and_preflights_are_answered_for_the_fallback()
 {
    async fn yes(_: &Request, _: &mut Body) -> &'static str {
        "yes"
    }
    let ours = "Origin: https://ours.example\r\n";
    let foreign = "Origin: https://foreign.example\r\n";
    let ask = |server: &TestServer, method, target, more: &str| {
        let mut client = Client::of(server);
        client.send(request(method, target, more));
        let answer = client.answer();
        (answer.status, answer.header("access-control-allow-origin").map(str::to_owned))
    };
    let routes = Routes::new().get("/public", yes).public().get("/", yes);
    let routes = routes.origins(OriginPolicy::AllowList(vec!["https://ours.example".into()]));
    let server = start(Server::builder().routes(routes.clone()).health());
    let us = || Some("https://ours.example".to_owned());
    assert_eq!(ask(&server, "GET", "/none", ours), (404, us()));
    assert_eq!(ask(&server, "DELETE", "/", ours), (405, us()));
    assert_eq!(ask(&server, "GET", "/none", foreign), (403, None));
    assert_eq!(ask(&server, "DELETE", "/", foreign), (403, None));
    assert_eq!(ask(&server, "DELETE", "/public", foreign), (405, Some("*".into())));
    // The server's own go by the server's own policy.
    assert_eq!(ask(&server, "DELETE", "/healthz", ours), (403, None));
    server.finish();

    let server = start(Server::builder().routes(routes.fallback(
        async |request: &Request, _: &mut Body| {
            assert_ne!(request.method(), "OPTIONS", "nobody but a browser asks so");
            "fallback"
        },
    )));
    let preflight = ours.to_owned() + "Access-Control-Request-Method: PATCH\r\n";
    let mut client = Client::of(&server);
    client.send(request("OPTIONS", "/any", &preflight));
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.header("access-control-allow-methods")),
        (204, Some("PATCH"))
    );
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://ours.example"));
    let preflight = foreign.to_owned() + "Access-Control-Request-Method: PATCH\r\n";
    assert_eq!(ask(&server, "OPTIONS", "/any", &preflight), (403, None));
    assert_eq!(ask(&server, "PATCH", "/any", ours), (200, us()));
    assert_eq!(server.finish().panics, 0);
}

#[test]
fn a_reply_can_hold_no_header_of_somebody_else() {
    use coracle::http_types::{HeaderValue, header};
    let server = start(Server::builder().routes(Routes::new().get(
        "/{name}",
        async |request: &Request, _: &mut Body| {
            let name = request.param("name").unwrap_or_default().into_owned();
            match HeaderValue::try_from(name) {
                Ok(name) => Reply::new("").with_header(header::LOCATION, name),
                Err(_) => Reply::new("injected"),
            }
        },
    )));
    let mut client = Client::of(&server);
    client.send(get("/a%0d%0aSet-Cookie:%20b"));
    let answer = client.answer();
    assert_eq!((answer.text(), answer.header("set-cookie")), ("injected".into(), None));
    server.finish();
}
