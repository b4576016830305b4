//! Clients without WebSocket: their sessions are like all others, and nothing is lost between two requests.
#![cfg(feature = "fallback")]

#[path = "support/polling.rs"]
mod polling;
mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coracle::config::{Inbound, Rate};
use coracle::http_types::Response;
use coracle::{
    BoxError, Builder, Cause, CloseCode, Closed, Closures, Fallbacks, Flow, Handler, Message,
    OriginPolicy, Paths, Phase, Request, Server, Session, Side, Timer, Upgrade,
};
use polling::{Events, Http, Polling};
use support::*;

/// For deadlines that a test waits for.
const BRIEF: Duration = Duration::from_millis(300);

fn builder() -> Builder {
    // Not so long that a test waits for it twice.
    Server::builder()
        .fallbacks(Fallbacks::new())
        .configure(|config| config.timeouts.poll_window = Duration::from_secs(1))
}

fn echo() -> Builder<impl Handler> {
    builder().on_message(async |session: &Session, message: Message| session.send(message).await)
}

/// An echo that reports how its sessions end.
fn recorded_echo() -> (Builder<impl Handler>, Heard<Closed>) {
    let (sender, closed) = heard();
    let builder = builder()
        .on_message(async |session: &Session, message: Message| session.send(message).await)
        .on_close(record(&sender));
    (builder, closed)
}

fn only(server: &TestServer) -> Session {
    let mut all = server.handle.sessions().all();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// A poll of this client that waits: only then another one is refused.
fn parked(server: &TestServer, client: &Polling) -> Http {
    loop {
        let [mut first, mut second] =
            [(); 2].map(|()| Http::connect(server.addr()).expect("a connection"));
        let target = client.target("poll", &format!("&cursor={}", client.cursor));
        first.write("GET", &target, "", b"").unwrap();
        // By then it will have come, most of the time.
        second.post(&client.target("ack", ""), "text/plain", "").expect(204);
        if second.get(&target).status == 409 {
            return first;
        }
        // It was the faster one, and its window is over by now.
        assert_eq!(first.read_answer().unwrap().status, 409);
    }
}

#[test]
fn a_polling_client_has_a_session_like_any_other() {
    let (sender, told) = heard();
    let tell = std::sync::Mutex::new(sender.clone());
    let (on_close, closed) = heard();
    let server = start(
        builder()
            .on_open(async move |session: &Session| {
                let about = format!("{} {}", session.protocol(), session.path());
                tell.lock().unwrap().send(about)?;
                session.join("room")?;
                session.send("welcome").await?;
                Ok::<_, BoxError>(())
            })
            .on_message(async |session: &Session, message: Message| {
                session.rooms().publish("room", message).await;
            })
            .on_close(record(&on_close)),
    );
    let mut http = Http::connect(server.addr()).unwrap();
    let opened = http.get("/ws/poll");
    assert_eq!(opened.header("cache-control"), Some("no-store"));
    let mut client = Polling::open(server.addr());
    assert_eq!((told.next(), told.next()), ("HTTP /ws".to_owned(), "HTTP /ws".to_owned()));
    eventually("both are in the room", || server.handle.rooms().size("room") == 2);
    assert_eq!(client.texts(1), ["welcome"]);

    client.send("hello");
    assert_eq!(client.texts(1), ["hello"]);
    // The other one has not acknowledged anything yet.
    let token = opened.token();
    eventually("it gets both", || {
        http.get(&format!("/ws/poll?session_id={token}")).texts() == ["welcome", "hello"]
    });
    assert_eq!(server.handle.sessions().count(), 2);
    let session = server.handle.sessions().all().remove(1);
    assert_eq!(session.peer_addr().map(|addr| addr.ip()), Some([127, 0, 0, 1].into()));
    assert_eq!(session.traffic().messages_in + session.traffic().messages_out, 3);

    let target = client.target("close", "&code=4001&reason=good%20bye");
    client.http.post(&target, "text/plain", "").expect(204);
    let record = closed.next();
    assert_eq!((record.by, record.cause, record.clean), (Side::Peer, Cause::PeerClosed, true));
    assert_eq!(record.code.map(CloseCode::as_u16), Some(4001));
    assert_eq!(&*record.reason, "good bye");
    assert_eq!(server.handle.rooms().size("room"), 1);
    server.finish();
    assert_eq!(closed.next().cause, Cause::Stopping);
    let _ = told;
}

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
fn a_token_that_nobody_has_given_opens_nothing() {
    let server = start(echo());
    let other = start(echo());
    let mut client = Polling::open(server.addr());
    let foreign = Polling::open(other.addr()).token;
    for token in [foreign.as_str(), "", "x", &client.token[1..]] {
        let target = format!("/ws/poll?session_id={token}");
        assert!(client.http.get(&target).error(401).contains("session_id"), "{token}");
        let target = format!("/ws/send?session_id={token}");
        client.http.post(&target, "text/plain", "x").error(401);
    }
    other.finish();
    server.finish();
}

#[test]
fn servers_with_one_key_know_each_others_tokens_but_not_the_sessions() {
    let key = [7; 32];
    let keyed =
        || {
            start(Server::builder().fallbacks(Fallbacks::new().key(key)).on_message(
                async |session: &Session, message: Message| session.send(message).await,
            ))
        };
    let (one, two) = (keyed(), keyed());
    let token = Polling::open(one.addr()).token;
    let answer = Http::connect(two.addr()).unwrap().get(&format!("/ws/poll?session_id={token}"));
    assert!(answer.error(410).contains("ended"));
    one.finish();
    two.finish();
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
fn the_accept_hook_decides_by_the_path_that_the_client_names() {
    let server = start(
        builder()
            .on_accept(async |request: &Request| match request.path() {
                // The hook may ask whatever it may ask of a handshake.
                "/chat/lobby" if request.sessions().count() < 10 => {
                    let name = "x-seen".parse().unwrap();
                    let value = request.query().unwrap_or("none").parse().unwrap();
                    Ok(Upgrade::new().header(name, value).data(request.target().to_owned()))
                }
                _ => Err(Response::builder().status(404).body(b"no such room".to_vec()).unwrap()),
            })
            .on_open(async |session: &Session| {
                session.send(session.data::<String>().cloned().unwrap_or_default()).await
            }),
    );
    let mut http = Http::connect(server.addr()).unwrap();
    let refused = http.get("/ws/poll");
    assert_eq!((refused.status, &*refused.body), (404, &b"no such room"[..]));
    let opened = http.get("/ws/poll?path=%2Fchat%2Flobby%3Fa%3Db");
    assert_eq!(opened.expect(200).header("x-seen"), Some("a=b"));
    let next = http.get(&format!("/ws/poll?session_id={}&cursor=0", opened.token()));
    assert_eq!(next.texts(), ["/chat/lobby?a=b"]);
    assert_eq!(next.header("x-seen"), None);
    server.finish();
}

#[test]
fn handlers_by_path_serve_polling_clients_as_well() {
    let paths = Paths::new().at(
        "/chat/{room}",
        Closures::new().on_open(async |session: &Session| {
            session.send(session.param("room").unwrap_or_default().into_owned()).await
        }),
    );
    let server = start(builder().handler(paths));
    let mut client = Polling::open_at(server.addr(), "/ws", "path=%2Fchat%2Fgarden");
    assert_eq!(client.texts(1), ["garden"]);
    server.finish();
}

#[test]
fn fallbacks_can_be_elsewhere_and_are_off_unless_asked_for() {
    let elsewhere = Server::builder()
        .fallbacks(Fallbacks::new().at("/live/fallback"))
        .on_message(async |session: &Session, message: Message| session.send(message).await);
    let server = start(elsewhere);
    let mut client = Polling::open_at(server.addr(), "/live/fallback", "");
    client.send("x");
    assert_eq!(client.texts(1), ["x"]);
    assert_ne!(Http::connect(server.addr()).unwrap().get("/ws/poll").status, 200);
    server.finish();

    let server = start(Server::builder());
    assert_ne!(Http::connect(server.addr()).unwrap().get("/ws/poll").status, 200);
    server.finish();
    for wrong in ["", "ws", "/ws/", "/", "/a b", "/a?b", "/a//b"] {
        let error = Server::builder().fallbacks(Fallbacks::new().at(wrong)).start().unwrap_err();
        assert!(error.to_string().contains("fallbacks"), "{error}");
    }
    let error = Server::builder().fallbacks(Fallbacks::new().key("short")).start().unwrap_err();
    assert!(error.to_string().contains("5 bytes"), "{error}");
}

#[test]
fn the_limits_of_sessions_hold_for_polling_clients() {
    let server = start(echo().configure(|config| config.limits.sessions = Some(1)));
    let mut client = Polling::open(server.addr());
    let full = Http::connect(server.addr()).unwrap().get("/ws/poll");
    assert_eq!((full.status, full.header("retry-after").is_some()), (503, true));
    let target = client.target("close", "");
    client.http.post(&target, "text/plain", "").expect(204);
    eventually("the place is free again", || server.handle.sessions().count() == 0);
    Polling::open(server.addr());
    server.finish();
}

#[test]
fn foreign_pages_may_not_poll_unless_they_are_allowed() {
    let origin = "Origin: https://app.example\r\n";
    let server = start(echo());
    let mut http = Http::connect(server.addr()).unwrap();
    assert_eq!(http.try_ask("GET", "/ws/poll", origin, b"").unwrap().status, 403);
    assert_eq!(server.handle.sessions().count(), 0);
    server.finish();

    let list = OriginPolicy::AllowList(vec!["https://app.example".into()]);
    let server = start(echo().origins(list));
    let mut http = Http::connect(server.addr()).unwrap();
    let answer = http.try_ask("GET", "/ws/poll", origin, b"").unwrap();
    answer.expect(200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    let exposed = answer.header("access-control-expose-headers").unwrap().to_lowercase();
    for name in ["coracle-session", "coracle-cursor", "coracle-close"] {
        assert!(exposed.contains(name), "{exposed}");
    }
    let more = format!(
        "{origin}Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n"
    );
    let mut http = Http::connect(server.addr()).unwrap();
    let preflight = http.try_ask("OPTIONS", "/ws/send", &more, b"").unwrap();
    assert_eq!(preflight.status, 204);
    assert!(preflight.header("access-control-allow-methods").unwrap().contains("POST"));
    let mut http = Http::connect(server.addr()).unwrap();
    let evil = "Origin: https://evil.example\r\n";
    assert_eq!(http.try_ask("GET", "/ws/poll", evil, b"").unwrap().status, 403);
    server.finish();
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

#[test]
fn many_sessions_come_and_go_and_nothing_is_left() {
    let (builder, closed) = recorded_echo();
    let server = start(builder);
    let mut http = Http::connect(server.addr()).unwrap();
    for n in 0..1000 {
        let token = http.get("/ws/poll").token();
        let target = format!("/ws/send?session_id={token}&seq=1");
        http.post(&target, "text/plain", n.to_string()).expect(202);
        let answer = http.get(&format!("/ws/poll?session_id={token}&cursor=0"));
        assert_eq!(answer.texts(), [n.to_string()]);
        http.post(&format!("/ws/close?session_id={token}"), "text/plain", "").expect(204);
        assert_eq!(closed.next().cause, Cause::PeerClosed);
    }
    assert_eq!(server.handle.sessions().count(), 0);
    server.finish();
}

#[test]
fn the_browsers_module_is_there_if_it_is_asked_for_and_is_fetched_once() {
    let server = start(echo().configure(|config| config.browser_module = true));
    let mut http = Http::connect(server.addr()).unwrap();
    let module = http.get("/coracle.js");
    module.expect(200);
    assert_eq!(module.header("content-type"), Some("text/javascript; charset=utf-8"));
    assert!(String::from_utf8_lossy(&module.body).contains("export function connect"));
    let known = format!("If-None-Match: {}\r\n", module.header("etag").unwrap());
    assert_eq!(http.try_ask("GET", "/coracle.js", &known, b"").unwrap().status, 304);
    server.finish();
    let server = start(echo());
    assert_eq!(Http::connect(server.addr()).unwrap().get("/coracle.js").status, 404);
    server.finish();
}

#[test]
fn the_description_has_the_requests_of_clients_without_websocket() {
    let server = start(echo().openapi("/openapi.json"));
    let description = Http::connect(server.addr()).unwrap().get("/openapi.json").json();
    for (path, method) in [
        ("/ws/poll", "get"),
        ("/ws/events", "get"),
        ("/ws/send", "post"),
        ("/ws/ack", "post"),
        ("/ws/close", "post"),
    ] {
        assert!(description["paths"][path][method]["responses"].is_object(), "{path}");
    }
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
