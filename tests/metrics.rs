//! What a server counts of itself: after traffic that is known, exactly that, in both formats.

#[path = "support/answer.rs"]
mod answer;
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

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use answer::ask;
use coracle::history::{
    Bounds, Boxed, Closing, Entry, Memory, Opening, Portion, Receipt, Store, StoreError,
    StoreErrorKind, StoreStats,
};
use coracle::http_types::Response;
use coracle::prometheus_client::collector::Collector;
use coracle::prometheus_client::encoding::DescriptorEncoder;
use coracle::prometheus_client::metrics::counter::Counter;
use coracle::{
    Body, Builder, CloseCode, Closures, Flow, Handler, Message, Metrics, Outcome, Readiness,
    Request, Routes, Server, Session, SlowPeer, Upgrade,
};
use futures_lite::AsyncWriteExt;
use pipe::*;
use polling::Http;
#[cfg(feature = "fallback")]
use polling::{Events, Polling};
use scrape::*;
use support::*;

/// Echoes, and does what it is told by some messages.
struct App;

impl Handler for App {
    async fn message(&self, session: &Session, message: Message) -> Outcome {
        match message.as_text() {
            Some("join") => session.join("room")?,
            Some("fail") => return Err("as it was told".into()),
            Some("bye") => return Ok(Flow::Close(CloseCode::NORMAL, "as it was told".into())),
            Some("abort") => session.abort(),
            _ => session.send(message).await?,
        }
        Ok(Flow::Continue)
    }
}

fn app() -> Builder<App> {
    Server::builder().workers(1).handler(App)
}

fn closed(by: &str, code: &str, cause: &str) -> String {
    format!("coracle_sessions_closed_total{{by=\"{by}\",code=\"{code}\",cause=\"{cause}\"}}")
}

fn rejected(reason: &str) -> String {
    format!("coracle_connections_rejected_total{{reason=\"{reason}\"}}")
}

/// Waits until a series has this value.
#[track_caller]
fn await_value(server: &TestServer, series: &str, value: u32) {
    eventually(series, || scrape(&server.handle).get(series) == f64::from(value));
}

#[test]
fn messages_and_bytes_are_counted_exactly_of_sessions_that_are_open_and_of_those_that_were() {
    let server = start(app());
    let counts = |messages: u32, bytes_in: u32, bytes_out: u32| {
        // A message is counted when the kernel has it: a moment after its peer may have it.
        await_value(&server, "coracle_messages_sent_total", messages);
        await_value(&server, "coracle_sent_bytes_total", bytes_out);
        scrape(&server.handle).expect(&[
            ("coracle_messages_received_total", messages),
            ("coracle_messages_sent_total", messages),
            ("coracle_received_bytes_total", bytes_in),
            ("coracle_sent_bytes_total", bytes_out),
        ]);
    };
    counts(0, 0, 0);
    // Two bytes of header, four of mask; and two of header.
    let mut one = server.client();
    for _ in 0..70 {
        one.echo("hello");
    }
    counts(70, 70 * 11, 70 * 7);
    let mut other = server.client();
    for _ in 0..60 {
        other.echo("abc");
    }
    counts(130, 70 * 11 + 60 * 9, 70 * 7 + 60 * 5);
    scrape(&server.handle).expect(&[
        ("coracle_sessions_active", 2),
        ("coracle_sessions_total{protocol=\"websocket\"}", 2),
        ("coracle_sessions_total{protocol=\"frames\"}", 0),
        ("coracle_connections_active", 2),
        ("coracle_handshakes_active", 0),
        ("coracle_handshake_duration_seconds_count", 2),
        ("coracle_http_requests_total{class=\"1xx\"}", 2),
        // The first of each session, and one of 64.
        ("coracle_callback_duration_seconds_count{callback=\"message\"}", 3),
        ("coracle_callback_duration_seconds_count{callback=\"open\"}", 2),
        ("coracle_callback_duration_seconds_count{callback=\"close\"}", 0),
        ("coracle_session_duration_seconds_count", 0),
    ]);
    // A close frame with its code, in both directions.
    one.goodbye();
    await_value(&server, "coracle_sessions_active", 1);
    counts(130, 70 * 11 + 60 * 9 + 8, 70 * 7 + 60 * 5 + 4);
    other.goodbye();
    await_value(&server, "coracle_connections_active", 0);
    counts(130, 70 * 11 + 60 * 9 + 16, 70 * 7 + 60 * 5 + 8);
    scrape(&server.handle).expect(&[
        (&closed("peer", "1000", "peer_closed"), 2),
        ("coracle_sessions_active", 0),
        ("coracle_connections_total", 2),
        ("coracle_session_duration_seconds_count", 2),
        ("coracle_callback_duration_seconds_count{callback=\"close\"}", 2),
    ]);
    let handle = server.handle.clone();
    server.finish();
    // After the end the last numbers are still there.
    assert_eq!(scrape(&handle).get("coracle_messages_received_total"), 130.0);
}

#[test]
fn sessions_are_counted_by_how_they_ended_and_codes_of_the_peer_are_few() {
    let server = start(app());
    for code in [1000, 1001, 3000, 4321, 4999] {
        let mut client = server.client();
        client.send_frame(CLOSE, &u16::to_be_bytes(code));
        client.read_close();
    }
    let mut client = server.client();
    client.send_frame(CLOSE, b"");
    client.read_close();
    drop(server.client());
    let mut client = server.client();
    client.send(b"\xff\xff");
    client.expect_close(1002);
    let mut client = server.client();
    client.send_frame(TEXT, b"\xff");
    client.expect_close(1007);
    for (word, code) in [("fail", 1011), ("bye", 1000)] {
        let mut client = server.client();
        client.send_frame(TEXT, word.as_bytes());
        client.expect_close(code);
    }
    let mut client = server.client();
    client.send_frame(TEXT, b"abort");
    client.read_to_end();
    let last = server.client();
    await_value(&server, "coracle_sessions_active", 1);
    drop(last);
    await_value(&server, "coracle_sessions_active", 0);
    let scrape = scrape(&server.handle);
    scrape.expect(&[
        (&closed("peer", "1000", "peer_closed"), 1),
        (&closed("peer", "1001", "peer_closed"), 1),
        (&closed("peer", "other", "peer_closed"), 3),
        (&closed("peer", "none", "peer_closed"), 1),
        (&closed("peer", "none", "peer_vanished"), 2),
        (&closed("peer", "1002", "violation"), 1),
        (&closed("peer", "1007", "violation"), 1),
        (&closed("server", "1011", "handler_failed"), 1),
        (&closed("server", "1000", "requested"), 1),
        (&closed("server", "none", "aborted"), 1),
    ]);
    assert_eq!(scrape.sum("coracle_sessions_closed_total"), 13.0);
    assert_eq!(scrape.sum("coracle_sessions_total"), 13.0);
    server.finish();
}

#[test]
fn a_session_that_the_stop_ends_is_counted_as_such() {
    let server = start(app());
    let mut client = server.client();
    let handle = server.handle.clone();
    handle.request_stop();
    client.expect_close(1001);
    server.finish();
    scrape(&handle).expect(&[
        (&closed("server", "1001", "stopping"), 1),
        ("coracle_sessions_active", 0),
        ("coracle_connections_active", 0),
        ("coracle_ready", 0),
    ]);
}

/// A client that has gone when the 101 is written has had a session, for a moment.
#[test]
fn a_session_without_a_record_is_counted_as_dropped() {
    let (asked, asks) = heard();
    let asked = std::sync::Mutex::new(asked);
    let (gone, go_on) = smol::channel::bounded::<()>(1);
    let server = start(Server::builder().workers(1).on_accept(async move |_: &Request| {
        asked.lock().unwrap().send(()).unwrap();
        let _ = go_on.recv().await;
        Ok(Upgrade::new())
    }));
    let mut stream = server.handle.connect().unwrap();
    within(stream.write_all(handshake("/").as_bytes())).unwrap();
    asks.next();
    drop(stream);
    gone.try_send(()).unwrap();
    await_value(&server, "coracle_connections_active", 0);
    scrape(&server.handle).expect(&[
        (&closed("server", "none", "dropped"), 1),
        (&rejected("gone"), 1),
        ("coracle_sessions_total{protocol=\"websocket\"}", 1),
        ("coracle_sessions_active", 0),
    ]);
    server.finish();
}

/// A request that ends its connection.
fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

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

/// Keeps nothing of the room `full`.
struct Choosy(Memory);

impl Store for Choosy {
    fn open(&self, rooms: usize) -> Result<Opening, StoreError> {
        self.0.open(rooms)
    }

    fn append(&self, entry: Entry, receipt: Receipt) {
        match &*entry.room == "full" {
            true => receipt.failed(StoreError::new(StoreErrorKind::Other, "it is full")),
            false => self.0.append(entry, receipt),
        }
    }

    fn before<'a>(
        &'a self,
        room: &'a str,
        before: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>> {
        self.0.before(room, before, bounds)
    }

    fn after<'a>(
        &'a self,
        room: &'a str,
        after: u64,
        until: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>> {
        self.0.after(room, after, until, bounds)
    }

    fn flush(&self) -> Boxed<'_, Result<(), StoreError>> {
        self.0.flush()
    }

    fn close(&self, closing: Closing) -> Boxed<'_, Result<(), StoreError>> {
        self.0.close(closing)
    }

    fn stats(&self) -> StoreStats {
        self.0.stats()
    }
}

#[test]
fn what_is_kept_and_what_is_not_is_counted() {
    let server = start(app().history(Choosy(Memory::new().messages(2))));
    let history = server.handle.history().unwrap();
    for _ in 0..3 {
        within(history.publish("room", |id| id.to_string())).unwrap();
    }
    within(history.publish("full", |id| id.to_string())).unwrap();
    scrape(&server.handle).expect(&[
        ("coracle_history_messages_total{outcome=\"kept\"}", 3),
        ("coracle_history_messages_total{outcome=\"failed\"}", 1),
        ("coracle_history_pending_messages", 0),
        ("coracle_history_pending_bytes", 0),
        ("coracle_history_commits_total", 3),
        ("coracle_history_trimmed_total", 1),
        ("coracle_history_trims_failed_total", 0),
    ]);
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

#[test]
fn each_pong_is_a_round_trip() {
    let server = start(app().configure(|config| {
        config.timeouts.ping = Some(Duration::from_millis(200));
        config.timeouts.pong = PATIENCE;
    }));
    let mut client = server.client();
    for answered in 1..=3 {
        let ping = client.read_frame();
        assert_eq!(ping.opcode, PING, "{ping:?}");
        client.send_frame(PONG, b"another");
        client.send_frame(PONG, &ping.payload);
        await_value(&server, "coracle_round_trip_seconds_count", answered);
    }
    server.finish();
}

#[test]
fn rooms_deliveries_and_what_slow_peers_lose_are_counted() {
    let (opens, sessions) = heard();
    let opens = std::sync::Mutex::new(opens);
    let server = start(
        Server::builder()
            .workers(1)
            .slow_peer(SlowPeer::DropNewest)
            .configure(|config| config.limits.outbox_messages = 4)
            .on_open(async move |session: &Session| {
                session.join("room").unwrap();
                opens.lock().unwrap().send(session.clone()).unwrap();
            }),
    );
    let mut quick = server.client();
    let mut slow = Pipe::connect(&server);
    sessions.next();
    let behind = sessions.next();
    scrape(&server.handle).expect(&[("coracle_rooms", 1), ("coracle_room_members", 2)]);
    // More than the pipe holds: it waits for its peer.
    behind.try_send(vec![0; PIPE + 1000]).unwrap();
    await_full_pipe(&behind);
    eventually("it is back on the books", || behind.buffered().messages == 1);
    scrape(&server.handle).expect(&[
        ("coracle_outbox_messages", 1),
        ("coracle_outbox_bytes", (PIPE + 1000) as u32),
        ("coracle_outbox_largest_bytes", (PIPE + 1000) as u32),
    ]);
    // Of publications there may be a quarter more: four beside the one that waits.
    let rooms = server.handle.rooms();
    for n in 0..10 {
        within(rooms.publish("room", n.to_string()));
        assert_eq!(quick.expect_text(), n.to_string());
    }
    await_value(&server, "coracle_messages_sent_total", 10);
    let page = scrape(&server.handle);
    page.expect(&[
        ("coracle_publications_total", 10),
        ("coracle_publications_delivered_total", 14),
        ("coracle_publications_lost_total{how=\"dropped\"}", 6),
        ("coracle_publications_lost_total{how=\"conflated\"}", 0),
        ("coracle_outbox_messages", 5),
        ("coracle_outbox_bytes", (PIPE + 1000 + 4) as u32),
    ]);
    assert!(page.get("coracle_outbox_budget_used_bytes") > PIPE as f64, "{page:#?}");
    assert_eq!(slow.read_frame().payload.len(), PIPE + 1000);
    for n in 0..4 {
        assert_eq!(slow.read_frame().payload, n.to_string().as_bytes());
    }
    await_value(&server, "coracle_messages_sent_total", 15);
    scrape(&server.handle).expect(&[("coracle_outbox_messages", 0), ("coracle_outbox_bytes", 0)]);
    // A publication to one, and one to nobody.
    assert_eq!(within(rooms.publish(behind.id(), "you")), 1);
    assert_eq!(within(rooms.publish("nobody", "hello")), 0);
    scrape(&server.handle).expect(&[
        ("coracle_publications_total", 11),
        ("coracle_publications_delivered_total", 15),
    ]);
    slow.read_frame();
    slow.goodbye();
    quick.goodbye();
    await_value(&server, "coracle_room_members", 0);
    scrape(&server.handle).expect(&[("coracle_rooms", 0)]);
    server.finish();
}

/// Sessions were summed up while others came and went: one that ended in between was counted twice, or not at
/// all, and the next sum was smaller.
#[test]
fn no_total_ever_shrinks_while_sessions_come_and_go_and_none_is_missing_in_the_end() {
    const ROUNDS: usize = 150;
    const MESSAGES: usize = 5;
    let server = start(Server::builder().handler(App));
    // More than are looked at under one lock, so that somebody leaves in between.
    let crowd: Vec<_> = (0..300).map(|_| server.client()).collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let scraper = || {
            let mut before = BTreeMap::new();
            let mut scrapes = 0;
            while !over.load(Ordering::Relaxed) {
                let page = scrape(&server.handle);
                for (series, value) in page.series {
                    let grows = ["_total", "_count", "_bucket", "_sum"];
                    if !grows.iter().any(|end| series.split('{').next().unwrap().ends_with(end)) {
                        continue;
                    }
                    let old = before.insert(series.clone(), value).unwrap_or_default();
                    assert!(value >= old, "{series}: {old}, then {value}");
                }
                scrapes += 1;
            }
            assert!(scrapes > 1);
        };
        let scrapers = [scope.spawn(scraper), scope.spawn(scraper)];
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for round in 0..ROUNDS {
                        let mut client = server.client();
                        for _ in 0..MESSAGES {
                            client.echo("hello");
                        }
                        if round % 2 == 0 { client.goodbye() } else { client.reset() }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        over.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|client| client.unwrap());
        scrapers.into_iter().for_each(|scraper| scraper.join().unwrap());
    });
    await_value(&server, "coracle_sessions_active", crowd.len() as u32);
    let messages = (4 * ROUNDS * MESSAGES) as u32;
    scrape(&server.handle).expect(&[
        ("coracle_messages_received_total", messages),
        ("coracle_messages_sent_total", messages),
        ("coracle_received_bytes_total", messages * 11 + (4 * ROUNDS / 2 * 8) as u32),
        ("coracle_sent_bytes_total", messages * 7 + (4 * ROUNDS / 2 * 4) as u32),
        ("coracle_sessions_total{protocol=\"websocket\"}", (4 * ROUNDS + crowd.len()) as u32),
        (&closed("peer", "1000", "peer_closed"), (4 * ROUNDS / 2) as u32),
        (&closed("peer", "none", "peer_vanished"), (4 * ROUNDS / 2) as u32),
    ]);
    drop(crowd);
    server.finish();
}

/// Some numbers are there only where there is something to count.
fn app_with_all_numbers() -> Builder<App> {
    let builder = app().history(Memory::new());
    #[cfg(feature = "fallback")]
    let builder = builder.fallbacks(coracle::Fallbacks::new());
    #[cfg(feature = "tls")]
    let builder = builder.tls(secure::unwatched()).bind_tls("127.0.0.1:0");
    builder
}

/// `start` binds the listener without TLS last.
fn plain_client(server: &TestServer) -> Raw {
    let mut client = Raw::connect(*server.handle.local_addrs().last().unwrap());
    client.upgrade();
    client
}

#[test]
fn every_number_is_in_the_documentation_with_its_type_and_its_labels() {
    let server = start(app_with_all_numbers());
    plain_client(&server).goodbye();
    await_value(&server, "coracle_sessions_active", 0);
    let page = scrape(&server.handle);
    let shown: BTreeMap<_, _> = page
        .types
        .iter()
        .map(|(name, kind)| {
            let labels = page.labels.get(name).into_iter().flatten().cloned().collect();
            (name.clone(), (kind.clone(), labels))
        })
        .collect();
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let documented: BTreeMap<String, (String, Vec<String>)> =
        include_str!("../src/docs/metrics.md")
            .lines()
            .filter(|line| line.starts_with("| `coracle_"))
            .filter(|line| cfg!(feature = "tls") || !line.contains("_tls_"))
            .filter(|line| {
                let of_fallbacks = ["coracle_polls", "coracle_event_streams", "coracle_posts"];
                cfg!(feature = "fallback") || !of_fallbacks.iter().any(|name| line.contains(name))
            })
            .map(|line| {
                let cells: Vec<_> = line.split('|').map(str::trim).collect();
                let mut labels: Vec<String> = quoted(cells[3]);
                labels.sort();
                (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels))
            })
            .collect();
    assert_eq!(shown, documented);
    server.finish();
}

#[test]
fn both_formats_say_the_same() {
    let server = start(app());
    server.client().goodbye();
    await_value(&server, "coracle_connections_active", 0);
    let metrics = server.handle.metrics();
    let (kind, text) = metrics.encode_for(None);
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    let classic = Scrape::classic(&text);
    let (kind, text) = metrics.encode_for(Some("application/openmetrics-text; version=1.0.0"));
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let openmetrics = Scrape::openmetrics(&text);
    let steady = |scrape: &Scrape| {
        let mut series = scrape.series.clone();
        series.remove("coracle_uptime_seconds");
        series
    };
    assert_eq!(steady(&classic), steady(&openmetrics));
    assert_eq!(classic.types["coracle_connections_total"], "counter");
    assert_eq!(classic.types["coracle_build_info"], "gauge");
    assert_eq!(openmetrics.types["coracle_connections"], "counter");
    assert_eq!(openmetrics.types["coracle_build"], "info");
    server.finish();
}

#[test]
fn the_page_of_the_numbers_has_the_format_that_is_asked_for() {
    let server = start(app().metrics("/metrics").health());
    let mut client = Http::connect(server.addr()).unwrap();
    let plain = client.get("/metrics");
    assert_eq!(plain.expect(200).header("content-type"), Some(Metrics::TEXT));
    assert_eq!(plain.header("cache-control"), Some("no-store"));
    Scrape::classic(std::str::from_utf8(&plain.body).unwrap());
    let wanted = "Accept: application/openmetrics-text;version=1.0.0\r\n";
    let open = client.try_ask("GET", "/metrics", wanted, b"").unwrap();
    assert_eq!(open.expect(200).header("content-type"), Some(Metrics::OPENMETRICS));
    // It sees itself, and the requests before it.
    Scrape::openmetrics(std::str::from_utf8(&open.body).unwrap()).expect(&[
        ("coracle_http_requests_total{class=\"2xx\"}", 1),
        ("coracle_http_connections_active", 1),
    ]);
    assert_eq!(client.get("/readyz").expect(200).body, b"ready\n");
    assert_eq!(client.try_ask("POST", "/metrics", "", b"").unwrap().status, 405);
    server.finish();
}

#[test]
fn the_numbers_can_have_a_listener_of_their_own_and_are_not_on_the_public_one() {
    let own = Routes::new().metrics("/metrics").health();
    let server = start(app().bind_http("127.0.0.1:0", own));
    // `start` binds the public one last.
    let [own, public] = *server.handle.local_addrs() else { panic!("two listeners") };
    let mut session = Raw::connect(public);
    session.upgrade();
    session.echo("hello");
    let mut client = Http::connect(own).unwrap();
    let page = client.get("/metrics");
    Scrape::classic(std::str::from_utf8(&page.expect(200).body).unwrap())
        .expect(&[("coracle_sessions_active", 1), ("coracle_messages_received_total", 1)]);
    client.get("/healthz").expect(200);
    client.get("/readyz").expect(200);
    assert_eq!(client.get("/").status, 404);
    for path in ["/metrics", "/healthz", "/readyz"] {
        let mut client = Raw::connect(public);
        client.send(get(path).as_bytes());
        answer::read_answer(client).expect(426);
    }
    // Nor is there a WebSocket beside them.
    let mut client = Raw::connect(own);
    client.send(handshake("/").as_bytes());
    assert!(client.read_head().starts_with("HTTP/1.1 404 "));
    session.goodbye();
    server.finish();
}

#[test]
fn a_server_is_ready_until_it_is_full_and_while_it_does_not_stop() {
    let server = start(app().configure(|config| config.limits.sessions = Some(1)));
    let handle = server.handle.clone();
    let states = |readiness: Readiness| (readiness, readiness.is_live(), readiness.is_ready());
    assert_eq!(states(handle.readiness()), (Readiness::Ready, true, true));
    let client = server.client();
    assert_eq!(states(handle.readiness()), (Readiness::Full, true, false));
    client.goodbye();
    eventually("its place is free again", || handle.readiness().is_ready());
    let client = server.client();
    handle.request_stop();
    assert_eq!(states(handle.readiness()), (Readiness::Stopping, true, false));
    drop(client);
    server.finish();
    assert_eq!(states(handle.readiness()), (Readiness::Stopped, false, false));
    assert_eq!(handle.readiness().to_string(), "stopped");
}

#[derive(Debug)]
struct Broken;

impl Collector for Broken {
    fn encode(&self, _: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        Err(fmt::Error)
    }
}

#[test]
fn the_applications_own_numbers_stand_beside_ours_and_cannot_take_them_away() {
    let orders: Counter = Counter::default();
    let (counted, fails) = (orders.clone(), orders.clone());
    let server =
        start(app().register_metrics(|registry| registry.register("shop_orders", "O", counted)));
    orders.inc_by(3);
    scrape(&server.handle).expect(&[("shop_orders_total", 3), ("coracle_workers", 1)]);
    server.finish();
    let server = start(app().register_metrics(|registry| {
        registry.register("shop_orders", "Orders", fails);
        registry.register_collector(Box::new(Broken));
    }));
    let page = scrape(&server.handle);
    assert_eq!(page.series.get("shop_orders_total"), None);
    page.expect(&[("coracle_workers", 1)]);
    server.finish();
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

/// `tests/clients/metrics.sh` gets promtool and says where it is.
#[test]
#[ignore = "needs promtool: run tests/clients/metrics.sh"]
fn promtool_is_content_with_every_number() {
    let promtool = std::env::var_os("PROMTOOL").expect("PROMTOOL says where promtool is");
    let server = start(app_with_all_numbers());
    let mut client = plain_client(&server);
    client.echo("hello");
    client.goodbye();
    await_value(&server, "coracle_connections_active", 0);
    within(server.handle.history().unwrap().publish("room", |id| id.to_string())).unwrap();
    let (_, text) = server.handle.metrics().encode_for(None);
    let check = |text: &str| {
        let mut promtool = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    assert_eq!(check(&text), (true, String::new()));
    // It would say if something was wrong.
    let without_help = text.replacen("# HELP coracle_workers Worker threads.\n", "", 1);
    let (content, said) = check(&without_help);
    assert!(!content && said.contains("coracle_workers no help text"), "{said}");
    server.finish();
}

/// What closures alone would not name.
#[expect(dead_code, reason = "only has to compile")]
fn metrics_can_be_registered_at_any_step(builder: Builder<Closures>) -> Builder<App> {
    builder.register_metrics(|_| ()).handler(App).register_metrics(|_| ())
}
