//! What a server counts of itself: after traffic that is known, exactly that, in both formats.

#[path = "support/numbers.rs"]
mod numbers;
#[path = "support/pipe.rs"]
mod pipe;
#[path = "support/scrape.rs"]
mod scrape;
#[cfg(feature = "tls")]
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle::history::{
    Bounds, Boxed, Closing, Entry, Memory, Opening, Portion, Receipt, Store, StoreError,
    StoreErrorKind, StoreStats,
};
use coracle::{Request, Server, Session, SlowPeer, Upgrade};
use futures_lite::AsyncWriteExt;
use numbers::*;
use pipe::*;
use scrape::*;
use support::*;

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
