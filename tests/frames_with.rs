//! Sessions of length-prefixed frames with everything else: limits, stop, proxies, TLS, other transports, and
//! WebSocket sessions of the same server.

#[path = "support/framed.rs"]
mod framed;
#[path = "support/pipe.rs"]
mod pipe;
#[cfg(feature = "tls")]
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use coracle::config::Network;
use coracle::{
    Cause, JoinError, Message, Peer, Phase, Prepared, Protocol, Server, Session, Side, SlowPeer,
};
use framed::*;
use pipe::*;
use support::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn both_protocols_are_in_one_room() {
    // More than any socket holds, so that what is published waits.
    const STALLING: usize = 16 << 20;
    let (opens, sessions) = heard();
    let server = start_frames(
        Server::builder()
            .workers(1)
            .slow_peer(SlowPeer::DropOldest)
            .configure(|config| {
                config.limits.outbox_messages = 3;
                config.limits.outbox_bytes = 2 * STALLING;
            })
            .on_gap(|_, gap| Some(format!("{} missed", gap.dropped()).into()))
            .on_open(async move |session: &Session| {
                session.join("room")?;
                let _ = opens.send(session.clone());
                Ok::<_, JoinError>(())
            }),
    );
    let mut plain = Raw::connect(frames_addr(&server));
    let framed = sessions.next();
    let mut socket = Raw::connect(websocket_addr(&server));
    socket.upgrade();
    sessions.next();
    let rooms = server.handle.rooms();
    for len in [0, 5, 126, 5000, 70_000] {
        assert_eq!(rooms.try_publish("room", pattern(len)).unwrap(), 2);
        assert!(socket.read_frame().payload == pattern(len));
        assert!(plain.read_prefixed() == pattern(len), "{len}");
    }
    framed.try_send(vec![0; STALLING]).unwrap();
    eventually("it waits for its peer", || framed.traffic().bytes_out > 75_000);
    for n in 0..20 {
        rooms.try_publish("room", n.to_string()).unwrap();
        assert_eq!(socket.expect_text(), n.to_string());
    }
    assert_eq!(plain.read_prefixed().len(), STALLING);
    assert_eq!(plain.read_prefixed(), b"18 missed");
    assert_eq!(plain.read_prefixed(), b"18");
    assert_eq!(plain.read_prefixed(), b"19");
    socket.goodbye();
    drop(plain);
    server.finish();
}

#[test]
fn both_protocols_meet_in_one_server_and_one_handler() {
    let (opens, sessions) = heard();
    let server = start_frames(
        Server::builder()
            .on_open(opened(&opens))
            // "NUMBER text" goes to that session, and says from where it comes.
            .on_message(async |session: &Session, message: Message| {
                let text = std::str::from_utf8(message.as_bytes())?;
                let (id, text) = text.split_once(' ').ok_or("a number and a text")?;
                let other = session.sessions().all().into_iter();
                let id = other.map(|it| it.id()).find(|it| it.to_string() == id).ok_or("nobody")?;
                let other = session.sessions().get(id).ok_or("nobody")?;
                other.send(format!("{}: {text}", session.protocol())).await?;
                Ok::<_, coracle::BoxError>(())
            }),
    );
    let mut plain = Raw::connect(frames_addr(&server));
    let framed = sessions.next();
    let mut socket = Raw::connect(websocket_addr(&server));
    socket.upgrade();
    let websocket = sessions.next();
    assert_eq!((framed.protocol(), websocket.protocol()), (Protocol::Frames, Protocol::WebSocket));
    assert_eq!(server.handle.sessions().count(), 2);

    plain.send_prefixed(format!("{} hello", websocket.id()).as_bytes());
    let frame = socket.read_frame();
    assert_eq!((frame.opcode, &frame.payload[..]), (TEXT, &b"frames: hello"[..]));
    socket.send_frame(TEXT, format!("{} hello", framed.id()).as_bytes());
    assert_eq!(plain.read_prefixed(), b"WebSocket: hello");

    // One message for all: each gets it in its own words.
    for len in [0, 5, 126, 5000, 70_000] {
        let prepared = Prepared::new(pattern(len));
        for session in server.handle.sessions().all() {
            session.try_send_prepared(&prepared).unwrap();
            session.try_send(pattern(len)).unwrap();
        }
        for _ in 0..2 {
            assert!(plain.read_prefixed() == pattern(len), "{len} bytes");
            let frame = socket.read_frame();
            assert_eq!(frame.opcode, BINARY);
            assert!(frame.payload == pattern(len), "{len} bytes");
        }
    }
    assert!(websocket.ping(b"") && !framed.ping(b""));
    assert_eq!(socket.read_frame().opcode, PING);
    socket.goodbye();
    plain.end_writing();
    plain.expect_end();
    server.finish();
}

// A batch that had carried the frames of one protocol was used again for the other.
#[test]
fn neighbours_of_both_protocols_on_one_worker_get_their_own_headers() {
    let it = Plain::start(|config| config.workers = Some(1));
    let (mut plain, _) = it.client();
    let (mut socket, _) = it.websocket();
    for len in [1, 200, 5000, 70_000, 3] {
        let payload = pattern(len.min(65_536));
        for _ in 0..3 {
            // Both have something to send in the same turn, or one after the other.
            plain.send_prefixed(&payload);
            socket.send_frame(BINARY, &payload);
            assert!(socket.read_frame().payload == payload);
            assert!(plain.read_prefixed() == payload);
        }
    }
    socket.goodbye();
    assert!(it.records.next().clean);
    it.finish(plain);
}

#[test]
fn the_stop_drains_them_and_counts_them() {
    let it = Plain::start(|_| {});
    let (mut plain, session) = it.client();
    let (mut socket, _) = it.websocket();
    session.try_send(pattern(300_000)).unwrap();
    it.server.handle.request_stop();
    assert!(plain.read_prefixed() == pattern(300_000));
    plain.expect_end();
    plain.end_writing();
    assert_eq!(socket.expect_close(1001), "server stops");
    for _ in 0..2 {
        let closed = it.records.next();
        assert_closed(&closed, Side::Server, Cause::Stopping, Phase::Closing, Some(1001));
        assert!(closed.clean, "{closed}");
    }
    let report = it.server.finish();
    assert_eq!((report.drained, report.cut), (2, 0));
}

#[test]
fn one_that_does_not_end_is_cut_at_the_stops_deadline() {
    let it = Plain::start(|config| {
        config.timeouts.stop = ms(300);
        config.timeouts.close = Duration::from_secs(3600);
    });
    let (mut client, _) = it.client();
    client.echo_prefixed(b"hello");
    let report = within(it.server.handle.stop());
    assert_eq!((report.drained, report.cut), (0, 1));
    assert_eq!(it.records.next().cause, Cause::Cut);
    drop(client);
}

#[test]
fn one_more_than_there_may_be_is_closed_without_a_word_whatever_the_others_speak() {
    let it = Plain::start(|config| {
        config.limits.sessions = Some(2);
        config.limits.sessions_per_address = Some(100);
    });
    let (mut plain, _) = it.client();
    let (mut socket, _) = it.websocket();
    for _ in 0..3 {
        let mut more = it.raw();
        more.send_prefixed(b"hello");
        assert_eq!(more.read_to_end(), b"");
    }
    assert_eq!(it.server.handle.sessions().count(), 2);
    plain.echo_prefixed(b"not disturbed");
    socket.echo("not disturbed");
    socket.goodbye();
    assert!(it.records.next().clean);
    let (mut client, _) = {
        // The record comes when the place is free.
        let mut raw = it.raw();
        raw.echo_prefixed(b"in its place");
        (raw, it.sessions.next())
    };
    client.echo_prefixed(b"still");
    drop(client);
    it.records.next();
    it.finish(plain);
}

#[test]
fn one_more_than_an_address_may_have_is_closed_too() {
    let it = Plain::start(|config| config.limits.sessions_per_address = Some(1));
    let (plain, _) = it.client();
    let mut more = it.raw();
    assert_eq!(more.read_to_end(), b"");
    assert_eq!(it.server.handle.sessions().count(), 1);
    // A connection in memory has no address.
    let (mut pipe, session) = it.pipe();
    assert_eq!(session.peer(), Peer::Memory);
    pipe.echo_prefixed(b"hello");
    pipe.end_writing();
    pipe.expect_end();
    assert!(it.records.next().clean);
    it.finish(plain);
}

#[test]
fn a_proxy_says_who_the_client_is_before_the_first_frame() {
    let it = Plain::start(|config| {
        config.proxies.proxy_protocol = vec!["127.0.0.0/8".parse::<Network>().unwrap()];
        config.limits.sessions_per_address = Some(1);
    });
    let header = |host: u8| format!("PROXY TCP4 203.0.113.{host} 192.0.2.1 4711 9001\r\n");
    let mut first = it.raw();
    // All in one segment.
    first.send(&[header(7).as_bytes(), &prefixed(b"hello")].concat());
    assert_eq!(first.read_prefixed(), b"hello");
    assert_eq!(it.sessions.next().client_ip(), Some([203, 0, 113, 7].into()));
    let mut again = it.raw();
    again.send(header(7).as_bytes());
    assert_eq!(again.read_to_end(), b"", "it has a session already");
    let mut second = it.raw();
    second.send(header(8).as_bytes());
    assert_eq!(it.sessions.next().client_ip(), Some([203, 0, 113, 8].into()));
    second.echo_prefixed(b"another client");
    // Who came past the proxy is closed, and not by an answer that would be read as a frame.
    let mut past = it.raw();
    past.send_prefixed(b"hello");
    assert_eq!(past.read_to_end(), b"");
    drop(second);
    it.records.next();
    it.finish(first);
}

#[test]
fn half_a_proxy_header_is_a_handshake_that_ends() {
    let it = Plain::start(|config| {
        config.proxies.proxy_protocol = vec!["127.0.0.0/8".parse::<Network>().unwrap()];
        config.timeouts.handshake = ms(300);
    });
    for begin in [&b""[..], b"PROXY TCP4 203."] {
        let mut raw = it.raw();
        raw.send(begin);
        assert_eq!(raw.read_to_end(), b"");
    }
    assert!(it.sessions.try_next().is_none());
    it.server.finish();
}

#[test]
fn every_kind_of_listener_and_stream_can_speak_frames() {
    let scratch = Scratch::new("frames");
    let path = scratch.path("bulk.sock");
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = own.local_addr().unwrap();
    let (opens, sessions) = heard();
    let server = start_frames(
        Server::builder()
            .frames_listener(own)
            .bind_frames_unix(&*path)
            .on_open(opened(&opens))
            .on_message(async |session: &Session, message| session.send(message).await),
    );
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = smol::Async::new(theirs).unwrap();
    server.handle.serve_frames(theirs, Some("198.51.100.1:5".parse().unwrap())).unwrap();
    let clients = [Raw::connect(addr), Raw::connect_unix(&path), Raw::over(ours.into())];
    for mut client in clients {
        client.echo_prefixed(b"hello");
        client.echo_prefixed(&pattern(50_000));
        client.end_writing();
        client.expect_end();
    }
    let mut peers: Vec<_> = (0..3).map(|_| sessions.next().peer().to_string()).collect();
    peers.sort();
    assert!(peers.iter().any(|peer| peer == "198.51.100.1:5"), "{peers:?}");
    server.finish();
}

#[cfg(feature = "tls")]
#[test]
fn frames_go_through_tls() {
    use std::io::Write;

    let (opens, sessions) = heard();
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .tls(secure::unwatched())
            .bind_frames_tls("127.0.0.1:0")
            .on_open(opened(&opens))
            .on_message(async |session: &Session, message| session.send(message).await)
            .on_close(record(&closes)),
    );
    let addr = frames_addr(&server);
    let connect = || {
        secure::Secure::connect(addr, secure::client_config(), "localhost").expect("a handshake")
    };
    let mut client = connect();
    let session = sessions.next();
    assert_eq!(session.protocol(), Protocol::Frames);
    for len in [0, 5, 65_536] {
        client.send(&prefixed(&pattern(len)));
        assert!(read_from(&mut client.tls).unwrap() == pattern(len), "{len} bytes");
    }
    session.try_send(pattern(100_000)).unwrap();
    session.close(coracle::CloseCode::NORMAL, "");
    assert!(read_from(&mut client.tls).unwrap() == pattern(100_000));
    assert_eq!(read_from(&mut client.tls), None);
    client.tls.conn.send_close_notify();
    client.tls.flush().unwrap();
    drop(client);
    let closed = records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1000));
    assert!(closed.clean, "{closed}");

    // The peer's goodbye is close_notify; without it the stream may have been cut, even between two frames.
    let mut client = connect();
    sessions.next();
    client.tls.conn.send_close_notify();
    client.tls.flush().unwrap();
    assert_eq!(read_from(&mut client.tls), None);
    assert_eq!(records.next().cause, Cause::PeerClosed);
    let client = connect();
    sessions.next();
    drop(client);
    let closed = records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerVanished, Phase::Open, None);

    // Without TLS there is nobody.
    let mut plain = Raw::connect(addr);
    plain.send(handshake("/").as_bytes());
    assert_ne!(plain.read_to_end().first(), Some(&b'H'), "an HTTP answer on a port for frames");
    server.finish();
}

#[test]
fn rates_hold_for_them_as_for_others() {
    use coracle::{BytesPerSecond, Rates, Unlimited};
    let server = start_frames(
        Server::builder()
            .rates(|_| Rates::new(Unlimited, BytesPerSecond::new(1 << 20)))
            .on_message(async |session: &Session, message| session.send(message).await),
    );
    let mut client = Raw::connect(frames_addr(&server));
    for len in [0, 10, 5000, 60_000] {
        client.echo_prefixed(&pattern(len));
    }
    client.end_writing();
    client.expect_end();
    server.finish();
}
