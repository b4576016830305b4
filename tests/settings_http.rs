//! What the settings of HTTP, of clients without WebSocket and of history do to a running server; as in
//! `settings_effects.rs`.

#[path = "support/polling.rs"]
mod polling;
#[path = "support/settings.rs"]
mod settings;
mod support;

use std::future::pending;
use std::io::{Read, Write};
use std::sync::Mutex;

use coracle::history::{
    Bounds, Boxed, Closing, Entry, Memory, Opening, Portion, Receipt, Resume, Since, Store,
    StoreError,
};
use coracle::{Body, BodyError, Builder, History, Request, Routes, Server};
#[cfg(feature = "fallback")]
use coracle::{Cause, Timer};
#[cfg(feature = "fallback")]
use polling::Polling;
use polling::{Answer, Http};
use settings::*;
use support::*;

const BRIEF: &str = "200ms";
const HEALTH: (&str, &str) = ("WEBSOCKET_HEALTH", "on");

/// A client that gives up soon.
#[track_caller]
fn http(server: &TestServer) -> Http {
    let http = Http::connect(server.addr()).unwrap();
    http.stream.get_ref().set_read_timeout(Some(SOON)).unwrap();
    http
}

/// What these settings bring to a path.
#[track_caller]
fn page(settings: &[(&str, &str)], path: &str) -> Answer {
    let server = start_with(settings, Server::builder());
    let answer = http(&server).get(path);
    server.finish();
    answer
}

// Time.

#[test]
fn websocket_keep_alive_timeout_ends_who_asks_nothing_more() {
    let server = start_with(&[HEALTH, ("WEBSOCKET_KEEP_ALIVE_TIMEOUT", BRIEF)], Server::builder());
    let mut client = http(&server);
    client.get("/healthz").expect(200);
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    server.finish();
}

async fn never(_: &Request, _: &mut Body) -> &'static str {
    pending().await
}

#[test]
fn websocket_request_timeout_ends_an_answer_that_does_not_come() {
    let server =
        start_routes(&[("WEBSOCKET_REQUEST_TIMEOUT", BRIEF)], Routes::new().get("/never", never));
    http(&server).get("/never").expect(503);
    server.finish();
}

#[cfg(feature = "fallback")]
const FALLBACK: (&str, &str) = ("WEBSOCKET_FALLBACK_PATH", "/ws");

#[cfg(feature = "fallback")]
#[test]
fn websocket_poll_window_is_how_long_a_poll_waits() {
    let app = app(&[FALLBACK, ("WEBSOCKET_POLL_WINDOW", BRIEF)]);
    let mut client = Polling::open(app.server.addr());
    client.http.stream.get_ref().set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(client.poll().messages().len(), 0);
    app.finish();
}

#[cfg(feature = "fallback")]
#[test]
fn websocket_poll_absence_ends_who_polls_no_more() {
    let app = app(&[FALLBACK, ("WEBSOCKET_POLL_ABSENCE", BRIEF)]);
    let _client = Polling::open(app.server.addr());
    app.expect_timer(Cause::PollTimeout, Timer::PollAbsence);
    app.finish();
}

// Limits.

/// A server whose program has routes of its own.
#[track_caller]
fn start_routes(settings: &[(&str, &str)], routes: Routes) -> TestServer {
    run(Server::builder().config(config(settings)).routes(routes))
}

#[track_caller]
fn run<H: coracle::Handler>(builder: Builder<H>) -> TestServer {
    TestServer { handle: builder.start().expect("the server starts") }
}

async fn length(_: &Request, body: &mut Body) -> Result<String, BodyError> {
    Ok(body.bytes().await?.len().to_string())
}

#[test]
fn websocket_max_body_size_is_the_largest_body() {
    let routes = Routes::new().post("/length", length);
    let server = start_routes(&[("WEBSOCKET_MAX_BODY_SIZE", "1k")], routes);
    let post = |bytes| http(&server).post("/length", "text/plain", vec![b'x'; bytes]);
    assert_eq!(post(1024).expect(200).body, b"1024");
    assert_eq!(post(1025).status, 413);
    server.finish();
}

#[test]
fn websocket_min_body_rate_is_the_slowest_body() {
    // At the default it could take a minute longer.
    let settings = [("WEBSOCKET_MIN_BODY_RATE", "1000000"), ("WEBSOCKET_REQUEST_TIMEOUT", "1h")];
    let server = start_routes(&settings, Routes::new().post("/length", length));
    let mut client = Http::connect(server.addr()).unwrap();
    let head = "POST /length HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000\r\n\r\n";
    let begun = [head.as_bytes(), &[b'x'; 16_000]].concat();
    client.stream.get_mut().write_all(&begun).unwrap();
    assert_eq!(client.read_answer().unwrap().status, 408);
    server.finish();
}

#[test]
fn websocket_max_http_connections_is_how_many_are_kept() {
    let server = start_with(&[HEALTH, ("WEBSOCKET_MAX_HTTP_CONNECTIONS", "1")], Server::builder());
    let mut kept = http(&server);
    kept.get("/healthz").expect(200);
    assert_eq!(http(&server).get("/healthz").status, 503);
    kept.get("/healthz").expect(200);
    server.finish();
}

// HTTP.

#[cfg(feature = "fallback")]
#[test]
fn websocket_fallback_path_is_where_clients_poll() {
    let app = app(&[("WEBSOCKET_FALLBACK_PATH", "/live/a")]);
    let mut client = Polling::open_at(app.server.addr(), "/live/a", "");
    client.send("hello");
    assert_eq!(client.texts(1), ["hello"]);
    http(&app.server).get("/ws/poll").expect(404);
    app.finish();
    assert_eq!(page(&[("WEBSOCKET_FALLBACK_PATH", "off")], "/ws/poll").status, 426);
}

#[cfg(feature = "fallback")]
#[test]
fn websocket_fallback_key_is_whose_tokens_are_known() {
    const KEYS: [&str; 2] =
        ["0123456789abcdef0123456789abcdef", "another, of thirty-two bytes or more"];
    let start = |key| app(&[FALLBACK, ("WEBSOCKET_FALLBACK_KEY", key)]);
    let [one, same, other] = [start(KEYS[0]), start(KEYS[0]), start(KEYS[1])];
    let client = Polling::open(one.server.addr());
    let poll = client.target("poll", "");
    // It knows that it has had no such session, or that somebody else has.
    assert_eq!(http(&same.server).get(&poll).status, 410);
    assert_eq!(http(&other.server).get(&poll).status, 401);
    [one, same, other].into_iter().for_each(App::finish);
    assert!(
        !format!("{:?}", config(&[FALLBACK, ("WEBSOCKET_FALLBACK_KEY", KEYS[0])]))
            .contains(KEYS[0])
    );
}

#[test]
fn websocket_browser_module_is_whether_it_is_served() {
    let answer = page(&[("WEBSOCKET_BROWSER_MODULE", "yes")], "/coracle.js");
    let kind = answer.expect(200).header("content-type").unwrap();
    assert!(kind.starts_with("text/javascript"), "{kind}");
    assert_eq!(page(&[("WEBSOCKET_BROWSER_MODULE", "no")], "/coracle.js").status, 426);
}

#[test]
fn websocket_health_is_whether_it_is_told() {
    assert_eq!(page(&[("WEBSOCKET_HEALTH", "yes")], "/healthz").expect(200).body, b"live\n");
    assert_eq!(page(&[("WEBSOCKET_HEALTH", "yes")], "/readyz").expect(200).body, b"ready\n");
    assert_eq!(page(&[("WEBSOCKET_HEALTH", "no")], "/healthz").status, 426);
}

#[cfg(feature = "metrics")]
#[test]
fn websocket_metrics_path_is_where_the_numbers_are() {
    let settings = [("WEBSOCKET_METRICS_PATH", "/a/numbers")];
    let answer = page(&settings, "/a/numbers");
    let text = String::from_utf8_lossy(&answer.expect(200).body);
    assert!(text.contains("\ncoracle_sessions_active 0\n"), "{text}");
    assert_eq!(page(&settings, "/metrics").status, 404);
    assert_eq!(page(&[("WEBSOCKET_METRICS_PATH", "off")], "/metrics").status, 426);
}

#[cfg(feature = "json")]
#[test]
fn websocket_openapi_path_is_where_all_this_is_described() {
    let answer = page(&[HEALTH, ("WEBSOCKET_OPENAPI_PATH", "/api.json")], "/api.json");
    let document = answer.expect(200).json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{document}");
    assert!(document["paths"]["/healthz"]["get"].is_object(), "{document}");
}

// History.

const MEMORY: (&str, &str) = ("WEBSOCKET_HISTORY", "memory");

/// Publishes as many messages of so many bytes to a room.
#[track_caller]
fn publish(history: &History, room: &str, count: usize, bytes: usize) {
    for _ in 0..count {
        within(history.publish(room, |_| "x".repeat(bytes))).unwrap();
    }
}

/// The ids of what is listed, the newest first, and whether there is more.
#[track_caller]
fn list(history: &History, room: &str) -> (Vec<u64>, bool) {
    let page = within(history.list(room, None, 100)).unwrap();
    (page.entries.iter().map(|entry| entry.id).collect(), page.more)
}

/// What is listed of five messages of hundred bytes with these settings.
#[track_caller]
fn listed(settings: &[(&str, &str)]) -> (Vec<u64>, bool) {
    let server = start_with(&[&[MEMORY], settings].concat(), Server::builder());
    let history = server.handle.history().expect("there is a store");
    publish(&history, "room", 5, 100);
    let listed = list(&history, "room");
    server.finish();
    listed
}

#[test]
fn websocket_history_is_where_it_is_kept() {
    assert_eq!(listed(&[]), (vec![5, 4, 3, 2, 1], false));
    let server = start_with(&[("WEBSOCKET_HISTORY", "off")], Server::builder());
    assert!(server.handle.history().is_none());
    server.finish();
}

#[cfg(feature = "sqlite")]
#[test]
fn websocket_history_may_be_a_file() {
    let scratch = Scratch::new("settings");
    let path = format!("sqlite:{}", scratch.path("a.db").display());
    let settings = [("WEBSOCKET_HISTORY", &*path), ("WEBSOCKET_HISTORY_MESSAGES", "3")];
    for last in [10, 20] {
        let server = start_with(&settings, Server::builder());
        let history = server.handle.history().expect("there is a store");
        publish(&history, "room", 10, 10);
        assert_eq!(history.last_id("room"), last);
        within(history.flush()).unwrap();
        eventually("there are three, or an eighth more", || list(&history, "room").0.len() <= 4);
        // Nobody else may have it meanwhile.
        let error = coracle::config::Config::from_pairs(settings).unwrap_err();
        assert!(matches!(error, coracle::Error::History(_)), "{error}");
        server.finish();
    }
}

#[test]
fn websocket_history_messages_is_how_many_of_a_room() {
    assert_eq!(listed(&[("WEBSOCKET_HISTORY_MESSAGES", "2")]), (vec![5, 4], false));
}

#[test]
fn websocket_history_age_is_how_long() {
    let server = start_with(&[MEMORY, ("WEBSOCKET_HISTORY_AGE", BRIEF)], Server::builder());
    let history = server.handle.history().unwrap();
    publish(&history, "room", 1, 10);
    soon("it is forgotten", || list(&history, "room").0.is_empty().then_some(()));
    server.finish();
}

#[test]
fn websocket_history_size_is_how_much_of_all() {
    // Each counts 232 bytes.
    assert_eq!(listed(&[("WEBSOCKET_HISTORY_SIZE", "500")]), (vec![5, 4], false));
}

#[test]
fn websocket_history_rooms_is_how_many_are_known() {
    let server = start_with(&[MEMORY, ("WEBSOCKET_HISTORY_ROOMS", "2")], Server::builder());
    let history = server.handle.history().unwrap();
    for room in ["one", "two", "three"] {
        publish(&history, room, 1, 10);
    }
    let kept = ["one", "two", "three"].map(|room| list(&history, room).0.len());
    assert_eq!(kept, [0, 1, 1]);
    server.finish();
}

#[test]
fn websocket_history_page_messages_is_how_many_are_listed_at_once() {
    assert_eq!(listed(&[("WEBSOCKET_HISTORY_PAGE_MESSAGES", "2")]), (vec![5, 4], true));
}

#[test]
fn websocket_history_page_size_is_how_much_is_listed_at_once() {
    assert_eq!(listed(&[("WEBSOCKET_HISTORY_PAGE_SIZE", "500")]), (vec![5, 4], true));
}

#[test]
fn websocket_history_replay_messages_is_how_many_who_joins_is_sent() {
    let app = app(&[MEMORY, ("WEBSOCKET_HISTORY_REPLAY_MESSAGES", "2")]);
    let history = app.server.handle.history().unwrap();
    publish(&history, "room", 5, 10);
    let (_client, session) = app.client();
    let since = Since { epoch: history.epoch(), after: 0 };
    let resume = Resume::new().since(since);
    let resumed = within(history.join(&session, "room", resume, |_| None)).unwrap();
    assert_eq!((resumed.replayed, resumed.recovered), (2, false));
    app.finish();
}

/// A store that answers for nothing before it is asked to.
struct Slow(Memory, Mutex<Vec<Receipt>>);

impl Store for Slow {
    fn open(&self, rooms: usize) -> Result<Opening, StoreError> {
        self.0.open(rooms)
    }

    fn append(&self, _: Entry, receipt: Receipt) {
        self.1.lock().unwrap().push(receipt);
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
        self.1.lock().unwrap().drain(..).for_each(Receipt::kept);
        self.0.flush()
    }

    fn close(&self, closing: Closing) -> Boxed<'_, Result<(), StoreError>> {
        self.0.close(closing)
    }
}

/// How many of five messages of hundred bytes wait for a store of the program's own, and how many are lost.
#[track_caller]
fn pending_and_failed(settings: &[(&str, &str)]) -> (usize, u64) {
    let store = Slow(Memory::new(), Mutex::default());
    let server = run(Server::builder().config(config(settings)).history(store));
    let history = server.handle.history().unwrap();
    publish(&history, "room", 5, 100);
    let stats = history.stats();
    server.finish();
    (stats.pending_messages, stats.failed)
}

#[test]
fn websocket_history_pending_messages_is_how_many_wait_for_the_store() {
    assert_eq!(pending_and_failed(&[("WEBSOCKET_HISTORY_PENDING_MESSAGES", "2")]), (2, 3));
}

#[test]
fn websocket_history_pending_size_is_how_much_waits_for_the_store() {
    assert_eq!(pending_and_failed(&[("WEBSOCKET_HISTORY_PENDING_SIZE", "500")]), (2, 3));
}
