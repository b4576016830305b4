//! What clients without WebSocket send: once, in order, and not more than the session can take.
#![cfg(feature = "fallback")]

#[path = "support/fallbacks.rs"]
mod fallbacks;
#[path = "support/polling.rs"]
mod polling;
mod support;

use coracle::config::{Inbound, Rate};
use coracle::{BoxError, CloseCode, Message, Session};
use fallbacks::*;
use polling::{Http, Polling};
use support::*;

#[test]
fn a_message_can_name_its_session_itself() {
    let server = start(echo());
    let mut client = Polling::open(server.addr());
    let body = format!(r#"{{"session_id":"{}","type":"chat","payload":{{"n":1}}}}"#, client.token);
    client.http.post("/ws/send", "application/json", body).expect(202);
    assert_eq!(
        client.poll().messages(),
        [serde_json::json!({"type": "chat", "payload": {"n": 1}})]
    );
    let nameless = client.http.post("/ws/send", "application/json", r#"{"type":"chat"}"#);
    assert!(nameless.error(400).contains("session_id"));
    server.finish();
}

#[test]
fn a_post_that_is_repeated_is_not_delivered_again() {
    let server = start(echo());
    let mut client = Polling::open(server.addr());
    let mut post = |seq: u64, text: &str| {
        let target = client.target("send", &format!("&seq={seq}"));
        client.http.post(&target, "text/plain", text)
    };
    assert_eq!(post(1, "one").expect(202).json()["status"], "queued");
    let repeated = post(1, "one");
    assert_eq!(repeated.expect(200).json(), serde_json::json!({"status":"queued","repeated":true}));
    assert!(post(3, "three").error(409).contains("seq=2"));
    post(2, "two").expect(202);
    post(1, "one").expect(200);
    post(3, "three").expect(202);
    assert_eq!(client.texts(3), ["one", "two", "three"]);
    server.finish();
}

#[test]
fn a_post_that_is_none_does_the_session_no_harm() {
    let (builder, _closed) = recorded_echo();
    let server = start(builder);
    let mut client = Polling::open(server.addr());
    let send = client.target("send", "");
    let too_long = "x".repeat(64 * 1024 + 1);
    for (media, body, status) in [
        ("text/plain", too_long.as_bytes(), 413),
        ("text/plain", b"\xff", 400),
        ("application/json", b"{", 400),
        ("application/json", b"7", 400),
        ("application/x-www-form-urlencoded", b"a=b", 415),
    ] {
        let answer = client.http.post(&send, media, body);
        assert!(!answer.error(status).is_empty());
    }
    for (target, what) in [
        ("/ws/poll?cursor=x", "cursor"),
        ("/ws/poll?max=0", "max"),
        ("/ws/poll?session_id=%ff", "session_id"),
        ("/ws/poll?path=chat", "path"),
        ("/ws/poll?path=%2Fa%20b", "path"),
        ("/ws/poll?path=%2Fa%0D%0AX:%20y", "path"),
        ("/ws/poll?cursor=5", "cursor"),
        ("/ws/events?cursor=5", "cursor"),
    ] {
        let error = client.http.get(target).error(400);
        assert!(error.contains(what), "{target}: {error}");
    }
    client.send("still here");
    assert_eq!(client.texts(1), ["still here"]);
    let many = format!("[{}{{}}]", "{},".repeat(1024));
    assert!(client.http.post(&send, "application/json", many).error(413).contains("1024"));
    for target in ["/ws/poll", "/ws/events"] {
        let mut http = Http::connect(server.addr()).unwrap();
        http.write("HEAD", target, "", b"").unwrap();
        assert_eq!(http.read_head().unwrap().status, 405);
    }
    let foreign = "Sec-Fetch-Site: cross-site\r\n";
    let mut http = Http::connect(server.addr()).unwrap();
    http.try_ask("GET", "/ws/poll", foreign, b"").unwrap().error(403);
    assert_eq!(server.handle.sessions().count(), 1);
    server.finish();
}

#[test]
fn a_stop_can_be_asked_for_in_the_callback_of_a_post() {
    let shutdown = std::sync::Arc::new(std::sync::OnceLock::<coracle::Shutdown>::new());
    let asked = std::sync::Arc::clone(&shutdown);
    let server = start(builder().on_message(async move |_: &Session, _: Message| {
        if let Some(shutdown) = asked.get() {
            shutdown.request_stop();
        }
    }));
    let _ = shutdown.set(server.handle.shutdown());
    let mut client = Polling::open(server.addr());
    let mut poll = parked(&server, &client);
    client.send("stop");
    let answer = poll.read_answer().unwrap();
    assert_eq!(answer.header("coracle-close"), Some("1001 server%20stops"));
    assert_eq!(server.finish().cut, 0);
}

#[test]
fn what_was_taken_is_handled_before_a_client_is_given_up() {
    let (sender, handled) = heard();
    let sender = std::sync::Mutex::new(sender);
    let (gate, open) = smol::channel::bounded::<()>(1);
    let server = start(
        builder()
            .on_message(async move |_: &Session, message: Message| {
                let _ = open.recv().await;
                let _ = sender.lock().unwrap().send(message.as_text().map(str::to_owned));
            })
            .configure(|config| config.timeouts.poll_absence = BRIEF),
    );
    let mut client = Polling::open(server.addr());
    for n in 0..50 {
        client.send(&n.to_string());
    }
    drop(client);
    // By then nobody is expected any more.
    std::thread::sleep(4 * BRIEF);
    drop(gate);
    for n in 0..50 {
        assert_eq!(handled.next(), Some(n.to_string()));
    }
    eventually("it is given up", || server.handle.sessions().count() == 0);
    server.finish();
}

#[test]
fn a_goodbye_counts_once_and_nothing_is_taken_behind_it() {
    let (gate, open) = smol::channel::bounded::<()>(1);
    let (sender, closed) = heard();
    let server = start(
        builder()
            .on_message(async move |_: &Session, _: Message| {
                let _ = open.recv().await;
            })
            .on_close(record(&sender)),
    );
    let mut client = Polling::open(server.addr());
    client.send("busy");
    for code in [4001, 4002, 4003] {
        let target = client.target("close", &format!("&code={code}"));
        client.http.post(&target, "text/plain", "").expect(204);
    }
    client.http.post(&client.target("send", ""), "text/plain", "late").error(410);
    drop(gate);
    assert_eq!(closed.next().code.map(CloseCode::as_u16), Some(4001));
    server.finish();
}

#[test]
fn posts_wait_for_a_session_that_is_behind_and_are_told_when_it_stays_so() {
    let (gate, open) = smol::channel::bounded::<()>(1);
    let (sender, handled) = heard();
    let sender = std::sync::Mutex::new(sender);
    let server = start(
        builder()
            .on_message(async move |_: &Session, message: Message| {
                let _ = open.recv().await;
                let _ = sender.lock().unwrap().send(message.len());
            })
            .configure(|config| config.timeouts.poll_window = BRIEF),
    );
    let mut client = Polling::open(server.addr());
    let mut taken = 0;
    let refused = loop {
        let target = client.target("send", &format!("&seq={}", taken + 1));
        let answer = client.http.post(&target, "text/plain", "x".repeat(30_000));
        match answer.status {
            202 => taken += 1,
            _ => break answer,
        }
    };
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.error(503).contains("behind"));
    drop(gate);
    // The same again, now that there is room.
    let target = client.target("send", &format!("&seq={}", taken + 1));
    client.http.post(&target, "text/plain", "x".repeat(30_000)).expect(202);
    for _ in 0..=taken {
        assert_eq!(handled.next(), 30_000);
    }
    server.finish();
}

#[test]
fn handlers_of_parts_and_inbound_rates_are_the_same_for_polling_clients() {
    let server = start(
        builder()
            .on_stream(async |session: &Session, mut incoming: coracle::Incoming| {
                let mut bytes = 0;
                while let Some(part) = incoming.next().await {
                    bytes += part?.len();
                }
                session.send(bytes.to_string()).await?;
                Ok::<_, BoxError>(())
            })
            .inbound(Inbound::close().with_messages(Rate::per_second(1).with_burst(4))),
    );
    let mut client = Polling::open(server.addr());
    client.send("hello");
    assert_eq!(client.texts(1), ["5"]);
    let flood = client.target("send", "");
    for _ in 0..5 {
        client.http.post(&flood, "application/json", r#"["a","b","c"]"#);
    }
    assert!(client.closed().starts_with("1008 "));
    server.finish();
}
