//! Clients without WebSocket: their sessions are like all others, and nothing is lost between two requests.
#![cfg(feature = "fallback")]

#[path = "support/fallbacks.rs"]
mod fallbacks;
#[path = "support/polling.rs"]
mod polling;
mod support;

use coracle::http_types::Response;
use coracle::{
    BoxError, Cause, CloseCode, Closures, Fallbacks, Message, OriginPolicy, Paths, Request, Server,
    Session, Side, Upgrade,
};
use fallbacks::*;
use polling::{Http, Polling};
use support::*;

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
