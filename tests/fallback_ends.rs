//! How sessions of clients without WebSocket end when memory is short or the server stops, and what their clients
//! hear of it.
#![cfg(feature = "fallback")]

#[path = "support/fallbacks.rs"]
mod fallbacks;
#[path = "support/polling.rs"]
mod polling;
mod support;

use coracle::{BoxError, Cause, CloseCode, Flow, Message, Request, Session, Side, Upgrade};
use fallbacks::*;
use polling::{Answer, Events, Http, Polling};
use support::*;

/// A poll of this client that takes one message at most.
fn one(client: &mut Polling) -> Answer {
    let target = client.target("poll", &format!("&cursor={}&max=1", client.cursor));
    client.http.get(&target)
}

#[test]
fn what_is_kept_for_clients_counts_in_the_budget_of_all() {
    let (sender, closed) = heard();
    let server = start(
        builder()
            .on_open(async |session: &Session| session.join("room"))
            .on_close(record(&sender))
            .configure(|config| config.limits.outboxes_bytes = Some(256 * 1024)),
    );
    let mut client = Polling::open(server.addr());
    let rooms = server.handle.rooms();
    eventually("it has joined", || rooms.size("room") == 1);
    // It polls, so that its outbox is empty, and takes less than is published: when it is ended, its cursor is
    // behind what is dropped.
    let close = loop {
        for _ in 0..2 {
            within(rooms.publish("room", "x".repeat(16 * 1024)));
        }
        let answer = one(&mut client);
        client.cursor = answer.expect(200).cursor();
        if let Some(close) = answer.header("coracle-close") {
            break close.to_owned();
        }
    };
    assert!(close.starts_with("1013 "), "{close}");
    let record = closed.next();
    assert_eq!((record.by, record.cause), (Side::Server, Cause::OverBudget));
    assert_eq!(server.handle.sessions().count(), 0);
    // There is room for the next one.
    Polling::open(server.addr());
    server.finish();
}

#[test]
fn an_end_that_drops_what_was_kept_is_told_whatever_the_client_has_got() {
    let server = start(builder().on_open(async |session: &Session| {
        for text in ["one", "two", "three"] {
            session.send(text).await?;
        }
        let mut writer = session.message_writer(coracle::Kind::Binary);
        for _ in 0..64 {
            writer.write(vec![0; 64 * 1024]).await?;
        }
        writer.finish().await?;
        Ok::<_, BoxError>(())
    }));
    let mut client = Polling::open_at(server.addr(), "/ws", "max=1");
    while one(&mut client).texts() != ["one"] {}
    client.cursor = 1;
    // Now that the others come again and again, more is pulled behind them, until it is too long to be kept.
    let told = loop {
        let answer = one(&mut client);
        if let Some(close) = answer.expect(200).header("coracle-close") {
            break close.to_owned();
        }
    };
    assert!(told.starts_with("1009 "), "{told}");
    // That answer may have been lost.
    let again = one(&mut client);
    assert_eq!((again.texts().len(), again.cursor()), (0, 1));
    assert_eq!(again.header("coracle-close"), Some(&*told));
    // And whoever changes to a stream.
    let mut events = Events::open(server.addr(), &client.target("events", ""), Some("1")).unwrap();
    let open = events.next().unwrap().unwrap();
    assert_eq!((&*open.kind, open.id.as_deref()), ("open", Some("1")));
    let close = events.next().unwrap().unwrap();
    assert!(close.kind == "close" && close.data.contains("1009"), "{close:?}");
    server.finish();
}

/// Clients filled sessions, closed them and came no more; what those had left counted, and could not be dropped:
/// so the sessions of others were ended, one after the other, and it helped nothing.
#[test]
fn what_ended_sessions_have_left_costs_no_other_one_its_life() {
    let code = CloseCode::new(4001).unwrap();
    let server = start(
        builder()
            .on_message(async move |session: &Session, _: Message| {
                session.send("x".repeat(60_000)).await?;
                Ok::<_, BoxError>(Flow::Close(code, "".into()))
            })
            .configure(|config| config.limits.outboxes_bytes = Some(256 * 1024)),
    );
    let mut bystander = Polling::open(server.addr());
    let session = only(&server);
    // It is counted as well.
    within(session.send("y".repeat(32 * 1024))).unwrap();
    let mut gone: Vec<_> = (0..8).map(|_| Polling::open(server.addr())).collect();
    for client in &mut gone {
        client.send("fill it");
        // It has heard of the end, and acknowledged nothing.
        loop {
            let answer = one(client);
            if let Some(close) = answer.expect(200).header("coracle-close") {
                assert_eq!((close, answer.texts()[0].len()), ("4001", 60_000));
                break;
            }
        }
    }
    eventually("they have ended", || server.handle.sessions().count() == 1);
    assert_eq!(server.handle.rooms().stats().over_budget, 0);
    assert_eq!(bystander.texts(1)[0].len(), 32 * 1024);
    within(session.send("still here")).unwrap();
    assert_eq!(bystander.texts(1), ["still here"]);
    // Those who ask once more hear whether something is missing.
    let (mut whole, mut dropped) = (0, 0);
    for client in &mut gone {
        let answer = one(client);
        match (answer.header("coracle-close").unwrap(), &answer.texts()[..]) {
            ("4001", [text]) if text.len() == 60_000 => whole += 1,
            (close, []) if close.starts_with("1013 ") => dropped += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(whole > 0 && dropped > 0, "{whole} {dropped}");
    server.finish();
}

#[test]
fn a_stop_does_not_wait_for_a_client_that_is_away_and_says_what_it_did_not_get() {
    let (sender, closed) = heard();
    let server = start(
        builder().on_close(record(&sender)).configure(|config| config.limits.outbox_messages = 4),
    );
    let mut client = Polling::open(server.addr());
    let session = only(&server);
    // Four are as many as are kept, the pipe holds one and a piece of the next, and the rest stays in the outbox.
    for _ in 0..8 {
        eventually("it takes one more", || {
            let sent = session.try_send("x".repeat(32 * 1024)).is_ok();
            one(&mut client).expect(200);
            sent
        });
    }
    let report = server.finish();
    assert_eq!((report.drained, report.cut), (1, 0));
    let record = closed.next();
    assert_eq!((record.by, record.cause, record.timer), (Side::Server, Cause::Stopping, None));
    assert_eq!((record.code, record.clean), (Some(CloseCode::GOING_AWAY), false));
    assert!(record.undelivered.messages >= 3, "{record}");
}

#[test]
fn a_stop_does_not_wait_where_only_the_goodbye_has_no_room() {
    let (sender, closed) = heard();
    let server = start(
        builder().on_close(record(&sender)).configure(|config| config.limits.outbox_messages = 8),
    );
    let mut client = Polling::open(server.addr());
    let session = only(&server);
    for n in 0..8 {
        session.try_send(n.to_string()).unwrap();
    }
    let target = client.target("poll", "&cursor=0");
    eventually("all are kept", || client.http.get(&target).texts().len() == 8);
    server.finish();
    let record = closed.next();
    assert_eq!((record.cause, record.timer, record.clean), (Cause::Stopping, None, false));
    assert_eq!(record.undelivered.messages, 0);
}

#[test]
fn no_session_is_opened_if_the_server_stops_while_the_hook_is_asked() {
    let (sender, closed) = heard();
    let server = start(
        builder()
            .on_accept(async |request: &Request| {
                request.shutdown().request_stop();
                Ok(Upgrade::new())
            })
            .on_close(record(&sender)),
    );
    let answer = Http::connect(server.addr()).unwrap().get("/ws/poll");
    assert!(answer.error(503).contains("stopping"));
    server.finish();
    assert!(closed.try_next().is_none());
}

#[test]
fn the_description_says_what_becomes_of_a_cursor_that_is_behind() {
    let server = start(echo().openapi("/openapi.json"));
    let description = Http::connect(server.addr()).unwrap().get("/openapi.json").json();
    let responses = &description["paths"]["/ws/poll"]["get"]["responses"];
    let behind = responses["412"]["description"].as_str().unwrap();
    assert!(behind.contains("acknowledged"), "{behind}");
    server.finish();
}
