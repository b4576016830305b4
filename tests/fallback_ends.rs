//! How sessions of clients without WebSocket end when memory is short or the server stops, and what their clients
//! hear of it.
#![cfg(feature = "fallback")]

#[path = "support/fallbacks.rs"]
mod fallbacks;
#[path = "support/polling.rs"]
mod polling;
mod support;

use coracle::{BoxError, Cause, Session, Side};
use fallbacks::*;
use polling::{Answer, Events, Polling};
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
