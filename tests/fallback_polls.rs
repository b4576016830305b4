//! Long polls: what waits, what comes again, what ends a session, and what a client that is too slow costs.
#![cfg(feature = "fallback")]

#[path = "support/fallbacks.rs"]
mod fallbacks;
#[path = "support/polling.rs"]
mod polling;
mod support;

use coracle::{BoxError, Cause, CloseCode, Flow, Message, Phase, Session, Side, Timer};
use fallbacks::*;
use polling::Polling;
use support::*;

#[test]
fn a_poll_waits_for_a_message() {
    let server = start(echo());
    let client = Polling::open(server.addr());
    let session = only(&server);
    let mut poll = parked(&server, &client);
    within(session.send("at last")).unwrap();
    let answer = poll.read_answer().unwrap();
    assert_eq!((answer.texts(), answer.cursor()), (vec!["at last".to_owned()], 1));
    server.finish();
}

#[test]
fn a_poll_that_nothing_comes_for_is_answered_when_its_window_is_over() {
    let server = start(echo().configure(|config| config.timeouts.poll_window = BRIEF));
    let mut client = Polling::open(server.addr());
    for _ in 0..2 {
        let answer = client.poll();
        assert_eq!((answer.messages().len(), answer.cursor()), (0, 0));
    }
    client.send("still there");
    assert_eq!(client.texts(1), ["still there"]);
    server.finish();
}

#[test]
fn what_has_not_been_acknowledged_comes_again() {
    let server = start(echo());
    let mut client = Polling::open(server.addr());
    let session = only(&server);
    for n in 1..=5 {
        within(session.send(n.to_string())).unwrap();
    }
    let mut ask = |query: &str| client.http.get(&client.target("poll", query));
    while ask("&cursor=0").texts().len() < 5 {}
    assert_eq!(ask("&max=2").texts(), ["1", "2"]);
    assert_eq!(ask("&cursor=0&max=3").texts(), ["1", "2", "3"]);
    assert_eq!(ask("&cursor=2").texts(), ["3", "4", "5"]);
    // What follows the first one is gone.
    assert!(ask("&cursor=1").error(412).contains("behind"));
    assert!(ask("&cursor=6").error(400).contains("ahead"));
    assert_eq!(ask("&cursor=2&max=1").cursor(), 3);
    let acknowledged = client.target("ack", "&cursor=4");
    client.http.post(&acknowledged, "text/plain", "").expect(204);
    assert_eq!(client.http.get(&client.target("poll", "")).texts(), ["5"]);
    server.finish();
}

#[test]
fn messages_of_every_kind_and_size_go_both_ways() {
    let server = start(echo());
    let mut client = Polling::open(server.addr());
    let large = "ä".repeat(32 * 1024);
    let send = client.target("send", "");
    client.http.post(&send, "text/plain; charset=utf-8", &large).expect(202);
    client.http.post(&send, "application/octet-stream", [0, 1, 254, 255]).expect(202);
    client.http.post(&send, "application/json", r#" {"type":"a","n":1.50} "#).expect(202);
    client
        .http
        .post(&send, "application/json", r#"["x", {"b":[1]}, {"$binary":"AAE="}]"#)
        .expect(202);
    let mut messages = Vec::new();
    while messages.len() < 6 {
        messages.extend(client.poll().messages());
    }
    assert_eq!(messages[0], large);
    assert_eq!(messages[1], serde_json::json!({"$binary": "AAH+/w=="}));
    assert_eq!(messages[2], serde_json::json!({"type": "a", "n": 1.5}));
    assert_eq!(messages[3], "x");
    assert_eq!(messages[4], serde_json::json!({"b": [1]}));
    assert_eq!(messages[5], serde_json::json!({"$binary": "AAE="}));
    // As text, if the client wants it.
    client.http.post(&send, "application/json", r#"{ "b" : 1 }"#).expect(202);
    let target = client.target("poll", &format!("&cursor={}&text=1", client.cursor));
    assert_eq!(client.http.get(&target).texts(), [r#"{ "b" : 1 }"#]);
    server.finish();
}

#[test]
fn a_client_that_comes_no_more_is_given_up() {
    let (builder, closed) = recorded_echo();
    let server = start(builder.configure(|config| config.timeouts.poll_absence = BRIEF));
    let mut client = Polling::open(server.addr());
    within(only(&server).send("for nobody")).unwrap();
    let record = closed.next();
    assert_eq!((record.by, record.cause), (Side::Peer, Cause::PollTimeout));
    assert_eq!((record.timer, record.phase), (Some(Timer::PollAbsence), Phase::Open));
    // What has become of it can still be heard.
    assert_eq!(client.texts(1), ["for nobody"]);
    assert_eq!(client.closed(), "1006");
    let send = client.target("send", "");
    client.http.post(&send, "text/plain", "x").error(410);
    assert_eq!(server.handle.sessions().count(), 0);
    server.finish();
}

#[test]
fn a_client_that_waits_is_not_absent() {
    let (builder, closed) = recorded_echo();
    let server = start(builder.configure(|config| {
        config.timeouts.poll_window = 4 * BRIEF;
        config.timeouts.poll_absence = BRIEF;
    }));
    let mut client = Polling::open(server.addr());
    assert!(client.poll().messages().is_empty());
    client.send("here");
    assert_eq!(client.texts(1), ["here"]);
    assert!(closed.try_next().is_none());
    server.finish();
}

#[test]
fn a_close_reaches_the_client_behind_all_messages() {
    let server = start(builder().on_message(async |session: &Session, message: Message| {
        session.send("first").await?;
        session.send(message).await?;
        Ok::<_, BoxError>(Flow::Close(CloseCode::new(4321).unwrap(), "grüße ".into()))
    }));
    let mut client = Polling::open(server.addr());
    client.send("last");
    let (mut texts, mut close) = (Vec::new(), None);
    while close.is_none() {
        let answer = client.poll();
        texts.extend(answer.texts());
        close = answer.header("coracle-close").map(str::to_owned);
    }
    assert_eq!(texts, ["first", "last"]);
    assert_eq!(close.as_deref(), Some("4321 gr%C3%BC%C3%9Fe%20"));
    // That answer may have been lost: what it brought is still there.
    let again = client.http.get(&client.target("poll", "&cursor=1"));
    assert_eq!(again.texts(), ["last"]);
    assert_eq!(again.header("coracle-close"), close.as_deref());
    server.finish();
}

#[test]
fn an_end_without_a_word_is_a_1006() {
    let server = start(echo());
    let mut client = Polling::open(server.addr());
    only(&server).abort();
    assert_eq!(client.closed(), "1006");
    server.finish();
}

#[test]
fn a_handler_that_panics_ends_its_session_and_the_client_hears_of_it() {
    let server = start(builder().on_message(async |_: &Session, _: Message| -> Flow {
        panic!("on purpose");
    }));
    let mut client = Polling::open(server.addr());
    client.send("x");
    assert_eq!(client.closed(), "1011 internal%20error");
    assert_eq!(server.finish().panics, 1);
}

#[test]
fn a_stop_answers_parked_polls_at_once() {
    let (builder, closed) = recorded_echo();
    // Longer than anything else here takes.
    let server = start(builder.configure(|config| config.timeouts.poll_window = PATIENCE));
    let clients: Vec<_> = (0..3).map(|_| Polling::open(server.addr())).collect();
    let mut polls: Vec<_> = clients.iter().map(|client| parked(&server, client)).collect();
    let report = server.finish();
    assert_eq!((report.drained, report.cut), (3, 0));
    for poll in &mut polls {
        let answer = poll.read_answer().unwrap();
        assert_eq!(answer.header("coracle-close"), Some("1001 server%20stops"));
        let record = closed.next();
        assert_eq!((record.cause, record.clean), (Cause::Stopping, true));
    }
}

#[test]
fn a_poll_whose_client_has_gone_makes_room_for_the_next_and_loses_nothing() {
    let server = start(echo());
    let mut client = Polling::open(server.addr());
    drop(parked(&server, &client));
    within(only(&server).send("x")).unwrap();
    eventually("its place is free", || client.poll().status == 200);
    assert_eq!(client.cursor, 1);
    server.finish();
}

#[test]
fn a_poller_that_is_too_slow_for_what_is_published_is_closed() {
    let (sender, closed) = heard();
    let server = start(
        builder()
            .on_open(async |session: &Session| session.join("room"))
            .on_close(record(&sender))
            .configure(|config| {
                config.limits.outbox_messages = 16;
                config.limits.outbox_bytes = 64 * 1024;
            }),
    );
    let mut client = Polling::open(server.addr());
    eventually("it has joined", || server.handle.rooms().size("room") == 1);
    let rooms = server.handle.rooms();
    let mut published = 0;
    while server.handle.sessions().count() == 1 && published < 10_000 {
        within(rooms.publish("room", "x".repeat(4096)));
        published += 1;
    }
    let mut texts = 0;
    let close = loop {
        let answer = client.poll();
        texts += answer.texts().len();
        if let Some(close) = answer.header("coracle-close") {
            break close.to_owned();
        }
    };
    assert!(close.starts_with("1013 "), "{close}");
    assert_eq!(closed.next().cause, Cause::SlowPeer);
    // What the outbox, the pipe and the shelf hold, and no more.
    assert!(texts < 100, "{texts}");
    server.finish();
}

#[test]
fn a_message_that_is_larger_than_an_outbox_comes_whole() {
    const LARGE: usize = 3 << 20;
    let server = start(builder().on_open(async |session: &Session| {
        session.send("x".repeat(LARGE)).await?;
        session.send("behind it").await
    }));
    let mut client = Polling::open_at(server.addr(), "/ws", "max=1");
    let texts = client.texts(2);
    assert_eq!((texts[0].len(), &*texts[1]), (LARGE, "behind it"));
    server.finish();
}

#[test]
fn a_message_in_parts_that_nobody_could_keep_ends_the_session_and_says_so() {
    let (sender, closed) = heard();
    let server = start(
        builder()
            .on_open(async |session: &Session| {
                let mut writer = session.message_writer(coracle::Kind::Binary);
                for _ in 0..64 {
                    writer.write(vec![0; 64 * 1024]).await?;
                }
                writer.finish().await?;
                Ok::<_, BoxError>(())
            })
            .on_close(record(&sender)),
    );
    let mut client = Polling::open(server.addr());
    assert!(client.closed().starts_with("1009 "));
    let closed = closed.next();
    assert_eq!(closed.by, Side::Server, "{closed}");
    server.finish();
}
