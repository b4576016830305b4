//! Why a client gets no connection: nobody there, nobody who speaks, somebody who hangs up.
#[path = "support/scripted.rs"]
mod scripted;
mod support;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use coracle::client::{Builder, Client, ConnectError, Ended, Phase, Reconnect, State};
use futures_lite::future;
use scripted::*;
use support::*;

/// What a client that waits in vain says of it.
#[track_caller]
fn timed_out(error: &ConnectError, in_phase: Phase, at: SocketAddr) {
    match error {
        ConnectError::TimedOut { phase, after, tried } => {
            assert_eq!((*phase, *after, &tried[..]), (in_phase, SHORT, &[at][..]));
        }
        other => panic!("{other}"),
    }
    assert_eq!((error.phase(), error.is_lasting()), (Some(in_phase), false));
    says(error, &[in_phase.as_str(), "timed out", "2s", &at.to_string()]);
}

/// Who hung up, and when.
#[track_caller]
fn ended(error: &ConnectError, in_phase: Phase, by: SocketAddr, how: io::ErrorKind) {
    match error {
        ConnectError::Ended { phase, peer, source } => {
            assert_eq!((*phase, *peer, source.kind()), (in_phase, by, how), "{error}");
        }
        other => panic!("{other}"),
    }
    assert_eq!((error.phase(), error.is_lasting()), (Some(in_phase), false));
    let sentence = match how {
        io::ErrorKind::UnexpectedEof => format!("{by} closed the connection during {in_phase}"),
        _ => format!("the connection to {by} ended during {in_phase}"),
    };
    says(error, &[&sentence]);
}

#[test]
fn a_server_that_accepts_and_says_nothing_is_given_up_and_so_is_a_proxy() {
    let (server, request) = script(Raw::read_to_end);
    let (proxy, asked) = script(Raw::read_to_end);
    let (relay, tunnelled) = script(|raw| {
        raw.read_head();
        raw.send(b"HTTP/1.1 200 OK\r\n\r\n");
        raw.read_to_end()
    });
    let through =
        |addr| plain("far.example").proxy(format!("http://{addr}")).connect_timeout(SHORT);
    let direct = plain(server).connect_timeout(SHORT).connect();
    let proxied = future::zip(through(proxy).connect(), through(relay).connect());
    let (direct, (proxied, relayed)) = within(future::zip(direct, proxied));
    timed_out(&direct.unwrap_err(), Phase::Upgrade, server);
    timed_out(&proxied.unwrap_err(), Phase::Proxy, proxy);
    timed_out(&relayed.unwrap_err(), Phase::Upgrade, relay);
    // They have asked, and then hung up.
    assert!(request.next().starts_with(b"GET / HTTP/1.1\r\n"));
    assert!(asked.next().starts_with(b"CONNECT far.example:80 HTTP/1.1\r\n"));
    assert!(tunnelled.next().starts_with(b"GET / HTTP/1.1\r\nHost: far.example\r\n"));
}

#[test]
fn a_server_that_speaks_a_byte_at_a_time_does_not_gain_time_by_it() {
    let (server, gone) = script(|raw| {
        raw.read_head();
        raw.send(b"HTTP/1.1 101 Switching Protocols\r\nX: ");
        // Until the client has gone.
        while io::Write::write_all(&mut raw.stream, b"x").is_ok() {
            let mut byte = [0];
            raw.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            if matches!(io::Read::read(&mut raw.stream, &mut byte), Ok(0)) {
                break;
            }
        }
    });
    timed_out(&fails(plain(server).connect_timeout(SHORT)), Phase::Upgrade, server);
    gone.next();
}

#[test]
fn where_packets_get_no_answer_the_attempt_to_connect_is_what_times_out() {
    let full = Full::new();
    let error = fails(plain(full.addr).connect_timeout(SHORT));
    timed_out(&error, Phase::Connect, full.addr);
    says(&error, &["none of them took the connection", "firewall"]);
}

#[test]
fn a_deadline_that_is_never_is_none() {
    let server = start(coracle::Server::builder().on_message(async |_, _| {}));
    let never = Duration::MAX;
    let patient = |builder: Builder| {
        builder
            .connect_timeout(never)
            .ping(never)
            .pong_timeout(never)
            .write_stall(never)
            .close_timeout(never)
    };
    let client = within(patient(plain(server.addr())).connect()).unwrap();
    within(client.send("hello")).unwrap();
    let ended = within(client.close(coracle::CloseCode::NORMAL, ""));
    assert!(matches!(&*ended, Ended::Requested(Some(last)) if last.is_clean()), "{ended}");
    server.finish();
}

#[test]
fn a_server_that_closes_before_its_answer_or_in_the_middle_of_it_is_told_apart() {
    let eof = io::ErrorKind::UnexpectedEof;
    let (server, _reports) = script(|raw| {
        raw.end_writing();
        raw.read_to_end();
    });
    ended(&fails(plain(server)), Phase::Upgrade, server, eof);
    let (server, _reports) = script(|raw| drop(raw.read_head()));
    ended(&fails(plain(server)), Phase::Upgrade, server, eof);
    for bytes in [1, 40, 100] {
        let (server, _reports) = script(move |raw| {
            let request = raw.read_head();
            raw.send(&agreed(&request, "").as_bytes()[..bytes]);
        });
        ended(&fails(plain(server)), Phase::Upgrade, server, eof);
    }
}

#[test]
fn a_server_that_resets_the_connection_is_said_to_have_reset_it() {
    let reset = io::ErrorKind::ConnectionReset;
    for answer in [&b""[..], b"HTTP/1.1 101 Switching Protocols\r\nUpgr"] {
        let (server, _reports) = script(move |raw| {
            raw.read_head();
            raw.send(answer);
            abort(raw);
        });
        let error = fails(plain(server));
        ended(&error, Phase::Upgrade, server, reset);
        says(&error, &["reset"]);
    }
}

/// Closing it will be a reset.
fn abort(raw: &mut Raw) {
    rustix::net::sockopt::set_socket_linger(&raw.stream, Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_reset_right_after_the_connection_was_taken_still_names_the_server() {
    // It may come before the client has looked at its connection, or after it has asked: many times, for both.
    for _ in 0..100 {
        let (server, _reports) = script(abort);
        let error = fails(plain(server));
        match &error {
            ConnectError::Refused { tried } => assert_eq!(tried[0].0, server),
            ConnectError::Ended { phase: Phase::Upgrade, peer, source } => {
                assert_eq!(*peer, server);
                let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
                assert!(kinds.contains(&source.kind()), "{error}");
            }
            other => panic!("{other}"),
        }
        says(&error, &[&server.to_string()]);
    }
}

#[test]
fn an_answer_to_a_request_that_was_not_read_to_its_end_is_heard() {
    // More than the buffers of both sides hold, so that the client still writes when the connection is reset.
    let cookie = "x".repeat(32 * 1024 * 1024);
    let (server, _reports) = script(|raw| {
        let mut some = [0; 1024];
        io::Read::read_exact(&mut raw.stream, &mut some).unwrap();
        raw.send(b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\nless, please");
    });
    let error = fails(plain(server).header("Cookie", &cookie));
    let ConnectError::Handshake(rejected) = &error else { panic!("{error}") };
    assert_eq!((rejected.status.as_u16(), &rejected.body[..]), (431, &b"less, please"[..]));
    says(&error, &["431", "less, please"]);
}

#[test]
fn a_proxy_that_closes_or_resets_is_told_apart_from_the_server_behind_it() {
    let through = |addr| plain("far.example").proxy(format!("http://{addr}"));
    let (proxy, _reports) = script(|raw| drop(raw.read_head()));
    ended(&fails(through(proxy)), Phase::Proxy, proxy, io::ErrorKind::UnexpectedEof);
    let (proxy, _reports) = script(|raw| {
        raw.read_head();
        raw.send(b"HTTP/1.1 200 Connection est");
    });
    ended(&fails(through(proxy)), Phase::Proxy, proxy, io::ErrorKind::UnexpectedEof);
    let (proxy, _reports) = script(|raw| {
        raw.read_head();
        abort(raw);
    });
    ended(&fails(through(proxy)), Phase::Proxy, proxy, io::ErrorKind::ConnectionReset);
    let (proxy, _reports) = script(|raw| {
        raw.read_head();
        raw.send(b"HTTP/1.1 200 OK\r\n\r\n");
        raw.read_head();
    });
    ended(&fails(through(proxy)), Phase::Upgrade, proxy, io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_port_where_nobody_listens_is_named() {
    let (_socket, closed) = closed_port();
    for host in ["127.0.0.1", "localhost"] {
        let error = fails(plain(format!("{host}:{}", closed.port())));
        let ConnectError::Refused { tried } = &error else { panic!("{error}") };
        assert!(tried.iter().any(|(addr, _)| *addr == closed), "{error}");
        for (addr, source) in tried {
            assert_eq!(source.kind(), io::ErrorKind::ConnectionRefused);
            says(&error, &[&addr.to_string(), "refused", "is the server running"]);
        }
        assert_eq!((error.phase(), error.is_lasting()), (Some(Phase::Connect), false));
    }
    // A proxy that is not there is the one that is named.
    let error = fails(plain("far.example").proxy(format!("http://{closed}")));
    assert!(matches!(&error, ConnectError::Refused { tried } if tried[0].0 == closed), "{error}");
}

#[test]
fn a_name_that_nobody_knows_is_named() {
    // No resolver asks anybody for a label of 64 characters.
    let long = format!("{}.invalid", "x".repeat(64));
    let error = fails(plain(&long));
    let ConnectError::Resolve { host, .. } = &error else { panic!("{error}") };
    assert_eq!((host, error.phase(), error.is_lasting()), (&long, Some(Phase::Resolve), false));
    says(&error, &["cannot look up", &long, "is the name right"]);
    // Here it may be asked, and there may be nobody who answers.
    let error = fails(plain("nonexistent.invalid").connect_timeout(SHORT));
    assert_eq!(error.phase(), Some(Phase::Resolve), "{error}");
}

#[test]
fn who_stops_waiting_for_the_connection_closes_it() {
    let (ready, is_ready) = smol::channel::bounded(1);
    let (server, rest) = script(move |raw| {
        raw.read_head();
        ready.try_send(()).unwrap();
        raw.read_to_end()
    });
    let connect = async { Some(plain(server).connect().await) };
    let given_up = async {
        is_ready.recv().await.unwrap();
        None
    };
    assert!(within(future::or(connect, given_up)).is_none());
    assert_eq!(rest.next(), b"");
}

#[test]
fn who_closes_a_client_that_still_connects_closes_the_connection() {
    let (ready, is_ready) = smol::channel::bounded(1);
    let (server, rest) = script(move |raw| {
        raw.read_head();
        ready.try_send(()).unwrap();
        raw.read_to_end()
    });
    let client = plain(server).start().unwrap();
    within(is_ready.recv()).unwrap();
    assert_eq!(client.state(), State::Connecting);
    let ended = within(client.close(coracle::CloseCode::NORMAL, ""));
    assert!(matches!(&*ended, Ended::Requested(None)), "{ended}");
    assert_eq!((rest.next(), client.state()), (vec![], State::Ended));
}

#[test]
fn a_client_that_gives_up_says_why_and_how_often_it_has_tried() {
    let (_socket, closed) = closed_port();
    let soon = Reconnect::new().first(Duration::from_millis(1)).attempts(3);
    let client = plain(closed).reconnect(soon).start().unwrap();
    let ended = within(client.ended());
    match &*ended {
        Ended::Failed { attempts: 4, last: ConnectError::Refused { tried } } => {
            assert_eq!(tried[0].0, closed);
        }
        other => panic!("{other}"),
    }
    assert!(ended.to_string().starts_with("gave up after 4 attempts: cannot connect"), "{ended}");
    assert!(within(client.recv()).is_err());
}

#[test]
fn what_cannot_be_connected_to_is_said_before_anything_is_sent() {
    for (url, part) in [
        ("http://localhost/", "write ws://"),
        ("ws://localhost/#top", "fragment"),
        ("ws://me:se/cret@localhost/", "port"),
    ] {
        let error = fails(Client::builder(url));
        assert!(matches!(error, ConnectError::Url { .. }) && error.is_lasting(), "{error}");
        assert_eq!(error.phase(), None);
        assert!(!error.to_string().contains("cret"), "{error}");
        says(&error, &["cannot connect to", part]);
    }
    for proxy in
        ["https://localhost:1", "socks5://localhost:1", "localhost:1", "http://localhost:1/path"]
    {
        let error = fails(plain("localhost").proxy(proxy));
        assert!(matches!(error, ConnectError::Url { .. }) && error.is_lasting(), "{error}");
        says(&error, &["proxy"]);
    }
}
