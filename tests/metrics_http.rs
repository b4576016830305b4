//! What a server counts of connections and requests: those that come to nothing, those that poll, TLS.

#[path = "support/answer.rs"]
mod answer;
#[path = "support/numbers.rs"]
mod numbers;
#[path = "support/pipe.rs"]
mod pipe;
#[path = "support/polling.rs"]
mod polling;
#[path = "support/scrape.rs"]
mod scrape;
#[cfg(feature = "tls")]
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::io::{Read, Write};
use std::time::Duration;

use answer::ask;
use coracle::http_types::Response;
use coracle::{Body, Readiness, Request, Routes, Server, Upgrade};
use numbers::*;
use pipe::*;
use polling::Http;
#[cfg(feature = "fallback")]
use polling::{Events, Polling};
use scrape::*;
use support::*;

async fn page(_: &Request, _: &mut Body) -> &'static str {
    "page"
}

async fn panicking(_: &Request, _: &mut Body) -> &'static str {
    panic!("as it was told")
}

#[test]
fn connections_that_come_to_nothing_are_counted_by_reason_and_once() {
    let server = start(
        Server::builder()
            .workers(1)
            .configure(|config| {
                config.limits.sessions = Some(3);
                config.limits.sessions_per_address = Some(2);
                config.timeouts.handshake = Duration::from_millis(300);
            })
            .routes(Routes::new().get("/page", page).get("/panic", panicking))
            .on_accept(async |request: &Request| match request.path() {
                "/forbidden" => Err(Response::builder().status(403).body(b"no".to_vec()).unwrap()),
                "/panic" => panic!("as it was told"),
                _ => Ok(Upgrade::new()),
            }),
    );
    ask(&server, get("/page")).expect(200);
    ask(&server, get("/none")).expect(404);
    ask(&server, get("/page").replace("GET", "DELETE")).expect(405);
    ask(&server, get("/panic")).expect(500);
    ask(&server, handshake("/panic")).expect(500);
    ask(&server, "nonsense\r\n\r\n").expect(400);
    ask(&server, get(&"x".repeat(9000))).expect(431);
    ask(&server, handshake_with("/", "Origin: http://evil.example\r\n")).expect(403);
    ask(&server, handshake("/forbidden")).expect(403);
    drop(server.raw());
    let slow = server.raw();
    answer::read_answer(slow).expect(408);
    // Two of this address, one of none, and then nobody.
    let mut sessions = vec![server.client(), server.client()];
    ask(&server, handshake("/")).expect(429);
    let pipe = Pipe::connect(&server);
    ask(&server, handshake("/")).expect(503);
    assert_eq!(server.handle.readiness(), Readiness::Full);
    let page = scrape(&server.handle);
    page.expect(&[
        (&rejected("not_websocket"), 0),
        (&rejected("internal"), 1),
        (&rejected("bad_request"), 1),
        (&rejected("too_large"), 1),
        (&rejected("origin"), 1),
        (&rejected("application"), 1),
        (&rejected("gone"), 1),
        (&rejected("timeout"), 1),
        (&rejected("address_sessions"), 1),
        (&rejected("sessions"), 1),
        (&rejected("handshakes"), 0),
        (&rejected("stopping"), 0),
        ("coracle_http_requests_total{class=\"1xx\"}", 3),
        ("coracle_http_requests_total{class=\"2xx\"}", 1),
        ("coracle_http_requests_total{class=\"4xx\"}", 8),
        ("coracle_http_requests_total{class=\"5xx\"}", 3),
        ("coracle_http_request_duration_seconds_count", 4),
        ("coracle_callback_panics_total", 2),
        ("coracle_sessions_limit", 3),
        ("coracle_ready", 0),
    ]);
    // All connections: the sessions, the ordinary requests, and those that came to nothing.
    let connections = 3.0 + 4.0 + page.sum("coracle_connections_rejected_total");
    assert_eq!(page.get("coracle_connections_total"), connections);
    sessions.drain(..).for_each(Raw::goodbye);
    pipe.goodbye();
    server.finish();
}

#[test]
fn a_request_where_only_a_handshake_is_expected_is_a_rejected_connection() {
    let server = start(app());
    ask(&server, get("/")).expect(426);
    ask(&server, get("/").replace("GET", "DELETE")).expect(405);
    scrape(&server.handle).expect(&[
        (&rejected("not_websocket"), 2),
        ("coracle_http_requests_total{class=\"4xx\"}", 2),
        ("coracle_http_request_duration_seconds_count", 0),
    ]);
    server.finish();
}

#[test]
fn ordinary_requests_are_counted_and_timed_and_their_connections_are_there_while_they_are_kept() {
    let server = start(app().routes(Routes::new().get("/page", page)));
    let active = "coracle_http_connections_active";
    let mut clients = [(); 2].map(|()| Http::connect(server.addr()).unwrap());
    for client in &mut clients {
        client.get("/page").expect(200);
        client.get("/none").expect(404);
    }
    await_value(&server, "coracle_http_request_duration_seconds_count", 4);
    scrape(&server.handle).expect(&[
        (active, 2),
        ("coracle_connections_active", 2),
        ("coracle_handshakes_active", 0),
        ("coracle_http_requests_total{class=\"2xx\"}", 2),
        ("coracle_http_requests_total{class=\"4xx\"}", 2),
        ("coracle_sessions_active", 0),
    ]);
    let [client, _other] = clients;
    drop(client);
    await_value(&server, active, 1);
    // One that becomes a session is no such connection any more.
    let mut client = server.raw();
    client.send(b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(client.read_head().starts_with("HTTP/1.1 200 "));
    let mut body = [0; 4];
    client.stream.read_exact(&mut body).unwrap();
    await_value(&server, active, 2);
    client.upgrade();
    scrape(&server.handle).expect(&[(active, 1), ("coracle_sessions_active", 1)]);
    client.goodbye();
    server.finish();
}

#[cfg(feature = "fallback")]
#[test]
fn sessions_without_a_websocket_are_counted_with_their_polls_streams_and_posts() {
    let builder = app().fallbacks(coracle::Fallbacks::new());
    // Nothing here waits for its end.
    let server = start(builder.configure(|config| config.timeouts.poll_window = PATIENCE));
    let (active, polls) = ("coracle_http_connections_active", "coracle_polls_total");
    let outcome = |name: &str, outcome: &str| format!("{name}{{outcome=\"{outcome}\"}}");
    let mut client = Polling::open(server.addr());
    await_value(&server, active, 1);
    scrape(&server.handle).expect(&[
        ("coracle_sessions_total{protocol=\"http\"}", 1),
        ("coracle_sessions_total{protocol=\"websocket\"}", 0),
        ("coracle_sessions_active", 1),
        (&outcome(polls, "empty"), 1),
        (&outcome(polls, "messages"), 0),
        ("coracle_http_request_duration_seconds_count", 0),
    ]);
    // The second time its answer was lost, and it comes again.
    let post = client.target("send", "&seq=1");
    client.http.post(&post, "text/plain", "hello").expect(202);
    client.http.post(&post, "text/plain", "hello").expect(200);
    assert_eq!(client.texts(1), ["hello"]);
    let posts = "coracle_posts_total";
    scrape(&server.handle).expect(&[
        (&outcome(posts, "taken"), 1),
        (&outcome(posts, "repeated"), 1),
        (&outcome(polls, "messages"), 1),
        ("coracle_messages_received_total", 1),
    ]);
    // While a poll waits its connection is the session's.
    await_value(&server, active, 1);
    let poll = client.target("poll", "&cursor=1");
    client.http.write("GET", &poll, "", b"").unwrap();
    await_value(&server, active, 0);
    let mut other = Http::connect(server.addr()).unwrap();
    other.get(&poll).expect(409);
    await_value(&server, &outcome(polls, "refused"), 1);
    // A stream takes its place.
    let mut stream =
        Events::open(server.addr(), &client.target("events", "&cursor=1"), None).unwrap();
    assert_eq!(client.http.read_answer().unwrap().messages().len(), 0);
    scrape(&server.handle)
        .expect(&[(&outcome(polls, "empty"), 2), ("coracle_event_streams_total", 1)]);
    other.post(&client.target("close", ""), "text/plain", "").expect(204);
    while stream.next().unwrap().is_some() {}
    await_value(&server, &closed("peer", "1000", "peer_closed"), 1);
    // Three posts and the poll that was refused: what waits for messages is not timed.
    await_value(&server, "coracle_http_request_duration_seconds_count", 4);
    // Theirs are the connections, and the session was none.
    await_value(&server, "coracle_connections_active", 3);
    drop((client, other, stream));
    await_value(&server, "coracle_connections_active", 0);
    scrape(&server.handle).expect(&[("coracle_connections_total", 3)]);
    server.finish();
}

#[cfg(feature = "fallback")]
#[test]
fn who_polls_no_more_is_counted_as_such() {
    let builder = app().fallbacks(coracle::Fallbacks::new());
    let server = start(builder.configure(|config| {
        config.timeouts.poll_absence = Duration::from_millis(300);
    }));
    let _client = Polling::open(server.addr());
    await_value(&server, "coracle_sessions_active", 0);
    scrape(&server.handle).expect(&[(&closed("peer", "none", "poll_timeout"), 1)]);
    server.finish();
}

#[test]
fn who_finds_no_place_for_a_handshake_is_counted_without_being_a_connection() {
    let server = start(app().configure(|config| config.limits.handshakes = Some(1)));
    let waiting = server.raw();
    await_value(&server, "coracle_handshakes_active", 1);
    let answer = server.raw().read_to_end();
    assert!(answer.starts_with(b"HTTP/1.1 503 "));
    scrape(&server.handle).expect(&[
        (&rejected("handshakes"), 1),
        ("coracle_connections_total", 1),
        ("coracle_http_requests_total{class=\"5xx\"}", 0),
    ]);
    server.handle.request_stop();
    answer::read_answer(waiting).expect(503);
    let handle = server.handle.clone();
    server.finish();
    scrape(&handle).expect(&[(&rejected("stopping"), 1), (&rejected("sessions"), 0)]);
}

#[cfg(feature = "tls")]
#[test]
fn certificates_and_what_fails_about_tls_are_counted() {
    use coracle::config::Tls;
    use secure::*;

    let scratch = Scratch::new("metrics");
    let copy = |name: &str| scratch.write(name, std::fs::read(cert(name)).unwrap());
    let tls = Tls::new(copy("server.pem"), copy("server.key")).watch(None);
    let server = start(app().tls(tls).bind_tls("127.0.0.1:0"));
    // In the order in which they were asked for: `start` binds the plain one last.
    let addr = server.handle.local_addrs()[0];
    let not_after = server.handle.tls_status().unwrap().not_after;
    let expiry = not_after.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let page = scrape(&server.handle);
    assert_eq!(page.get("coracle_tls_certificate_expiry_timestamp_seconds"), expiry);
    let reloads = |ok, failed, failing| {
        scrape(&server.handle).expect(&[
            ("coracle_tls_reloads_total{outcome=\"ok\"}", ok),
            ("coracle_tls_reloads_total{outcome=\"failed\"}", failed),
            ("coracle_tls_reload_failing", failing),
        ]);
    };
    reloads(0, 0, 0);
    server.handle.reload_tls().unwrap();
    reloads(1, 0, 0);
    scratch.write("server.pem", "nonsense");
    server.handle.reload_tls().unwrap_err();
    server.handle.reload_tls().unwrap_err();
    reloads(1, 2, 1);
    copy("server.pem");
    server.handle.reload_tls().unwrap();
    reloads(2, 2, 0);
    let mut nonsense = tcp(addr);
    nonsense.write_all(b"\x16\x03\x01\x00\x05hello").unwrap();
    await_value(&server, &rejected("tls"), 1);
    let mut client = Secure::open(addr);
    client.echo("hello");
    client.goodbye();
    await_value(&server, &closed("peer", "1000", "peer_closed"), 1);
    server.finish();
}
