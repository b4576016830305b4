//! Server-sent events: every text as it is, and on from where the stream was cut.
#![cfg(feature = "fallback")]

#[path = "support/fallbacks.rs"]
mod fallbacks;
#[path = "support/polling.rs"]
mod polling;
mod support;

use std::sync::atomic::{AtomicUsize, Ordering};

use coracle::CloseCode;
use fallbacks::*;
use polling::{Events, Polling};
use support::*;

#[test]
fn a_stream_carries_every_text_as_it_is() {
    let server = start(echo());
    let mut client = Polling::open(server.addr());
    let mut events = Events::open(server.addr(), &client.target("events", ""), None).unwrap();
    let open = events.next().unwrap().unwrap();
    assert_eq!((&*open.kind, open.id.as_deref()), ("open", Some("0")));
    let open: serde_json::Value = serde_json::from_str(&open.data).unwrap();
    assert_eq!(open, serde_json::json!({"session_id": client.token, "cursor": 0}));
    let mut next = |text: &str| {
        client.send(text);
        let event = events.next().unwrap().unwrap();
        (event.kind, event.data, event.id.unwrap())
    };
    let expected = |kind: &str, data: &str, id: &str| (kind.into(), data.into(), id.to_owned());
    assert_eq!(next("plain"), expected("", "plain", "1"));
    assert_eq!(next("two\nlines\n"), expected("", "two\nlines\n", "2"));
    assert_eq!(next("a\r\nb"), expected("string", "\"a\\r\\nb\"", "3"));
    assert_eq!(next(" id: 7"), expected("", " id: 7", "4"));
    let send = client.target("send", "");
    client.http.post(&send, "application/octet-stream", [255]).expect(202);
    let event = events.next().unwrap().unwrap();
    assert_eq!((&*event.kind, &*event.data), ("binary", "/w=="));
    only(&server).close(CloseCode::NORMAL, "done");
    let event = events.next().unwrap().unwrap();
    assert_eq!((&*event.kind, &*event.data), ("close", r#"{"code":1000,"reason":"done"}"#));
    assert_eq!(events.next().unwrap(), None);
    server.finish();
}

#[test]
fn a_stream_goes_on_where_it_was_cut() {
    let server = start(echo());
    let addr = server.addr();
    // Cut before anything was said.
    let open = Events::open(addr, "/ws/events", None).unwrap().next().unwrap().unwrap();
    let id = open.id.unwrap();
    let mut events = Events::open(addr, "/ws/events", Some(&id)).unwrap();
    assert_eq!(events.next().unwrap().unwrap().id, Some(id));
    let session = only(&server);
    for n in 1..=3 {
        within(session.send(n.to_string())).unwrap();
    }
    let first = events.next().unwrap().unwrap();
    let id = first.id.unwrap();
    assert!(first.data == "1" && id.ends_with(":1"), "{id}");
    drop(events);
    // As a browser does: the same URL, and the last id.
    let mut events = Events::open(addr, "/ws/events", Some(&id)).unwrap();
    assert_eq!(events.next().unwrap().unwrap().kind, "open");
    assert_eq!(events.next().unwrap().unwrap().data, "2");
    assert_eq!(events.next().unwrap().unwrap().data, "3");
    assert_eq!(server.handle.sessions().count(), 1);
    for wrong in ["nonsense", "1:x", "99", &format!("{}:99", &id[..id.len() - 2])] {
        assert!(Events::open(addr, "/ws/events", Some(wrong)).is_err(), "{wrong}");
    }
    assert_eq!(server.handle.sessions().count(), 1);
    server.finish();
}

#[test]
fn a_new_stream_takes_the_place_of_the_old_one_and_of_a_poll() {
    let server = start(echo());
    let mut client = Polling::open(server.addr());
    let mut poll = parked(&server, &client);
    let mut old = Events::open(server.addr(), &client.target("events", ""), None).unwrap();
    assert!(poll.read_answer().unwrap().texts().is_empty());
    assert_eq!(old.next().unwrap().unwrap().kind, "open");
    let mut new = Events::open(server.addr(), &client.target("events", ""), None).unwrap();
    assert_eq!(new.next().unwrap().unwrap().kind, "open");
    assert_eq!(old.next().unwrap(), None);
    within(only(&server).send("x")).unwrap();
    assert_eq!(new.next().unwrap().unwrap().data, "x");
    // And a poll that of a stream.
    assert_eq!(client.poll().texts(), ["x"]);
    assert_eq!(new.next().unwrap(), None);
    server.finish();
}

#[test]
fn a_stream_ends_when_too_much_is_not_acknowledged_and_goes_on_when_it_is() {
    let server = start(echo().configure(|config| config.limits.outbox_messages = 8));
    let mut client = Polling::open(server.addr());
    let session = only(&server);
    let mut events = Events::open(server.addr(), &client.target("events", ""), None).unwrap();
    assert_eq!(events.next().unwrap().unwrap().kind, "open");
    let mut n = 0;
    let mut expect = |events: &mut Events, count: usize| {
        for _ in 0..count {
            n += 1;
            within(session.send(n.to_string())).unwrap();
            assert_eq!(events.next().unwrap().unwrap().data, n.to_string());
        }
    };
    expect(&mut events, 7);
    // Whoever acknowledges meanwhile is not interrupted.
    client.http.post(&client.target("ack", "&cursor=7"), "text/plain", "").expect(204);
    expect(&mut events, 8);
    assert_eq!(events.next().unwrap(), None);
    let mut events = Events::open(server.addr(), &client.target("events", ""), Some("15")).unwrap();
    assert_eq!(events.next().unwrap().unwrap().kind, "open");
    expect(&mut events, 7);
    server.finish();
}

#[test]
fn a_quiet_stream_shows_that_it_lives() {
    let server = start(echo().configure(|config| {
        config.timeouts.poll_window = BRIEF / 3;
        config.timeouts.poll_absence = BRIEF;
    }));
    let mut client = Polling::open(server.addr());
    let mut events = Events::open(server.addr(), &client.target("events", ""), None).unwrap();
    assert_eq!(events.next().unwrap().unwrap().kind, "open");
    let session = only(&server);
    let said = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&said);
    let sender = std::thread::spawn(move || {
        // Longer than a client may be absent.
        std::thread::sleep(4 * BRIEF);
        counter.store(1, Ordering::Release);
        within(session.send("x"))
    });
    let event = events.next().unwrap().unwrap();
    assert_eq!((&*event.data, said.load(Ordering::Acquire)), ("x", 1));
    assert!(events.comments > 1, "{}", events.comments);
    sender.join().unwrap().unwrap();
    client.send("y");
    server.finish();
}
