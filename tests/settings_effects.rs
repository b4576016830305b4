//! What each setting does to a running server, seen by its clients. The tests are called like the settings;
//! `settings.rs` looks that there is one for each.

#[path = "support/settings.rs"]
mod settings;
mod support;

use std::collections::HashSet;
use std::io::Write;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use coracle::{
    Cause, CloseCode, Incoming, JoinError, Kind, ListenAddr, PublishError, SendError, Server,
    Session, Timer,
};
use settings::*;
use support::*;

// Where to listen.

#[test]
fn websocket_host_is_where_it_listens() {
    let scratch = Scratch::new("settings");
    let path = scratch.path("a.sock");
    let hosts = format!("127.0.0.7, localhost,unix:{}", path.display());
    let app = app(&[("WEBSOCKET_HOST", &hosts)]);
    assert_eq!(app.server.addr().ip(), IpAddr::from([127, 0, 0, 7]));
    let (client, _) = app.client();
    client.goodbye();
    let places = app.server.handle.listeners();
    let [ListenAddr::Tcp(_), ListenAddr::Tcp(named), ListenAddr::Unix(..)] = places[..] else {
        panic!("{places:?}")
    };
    for mut client in [Raw::connect(named), Raw::connect_unix(&path)] {
        client.upgrade();
        client.echo("hello");
        client.goodbye();
    }
    app.finish();
}

#[test]
fn websocket_port_is_where_it_listens() {
    // Nobody else takes ports of this address.
    let free = TcpListener::bind("127.0.0.9:0").unwrap().local_addr().unwrap();
    let port = free.port().to_string();
    let app = app(&[("WEBSOCKET_HOST", "127.0.0.9"), ("WEBSOCKET_PORT", &port)]);
    let mut client = Raw::connect(free);
    client.upgrade();
    client.goodbye();
    app.finish();
}

#[test]
fn websocket_unix_mode_is_the_modes_of_the_file() {
    let scratch = Scratch::new("settings");
    let path = scratch.path("a.sock");
    let host = format!("unix:{}", path.display());
    for (mode, expected) in [("0600", 0o600), ("666", 0o666)] {
        let app = app(&[("WEBSOCKET_HOST", &host), ("WEBSOCKET_UNIX_MODE", mode)]);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, expected);
        let mut client = Raw::connect_unix(&path);
        client.upgrade();
        client.goodbye();
        app.finish();
    }
}

#[test]
fn websocket_backlog_is_how_many_wait_to_be_accepted() {
    let waiting = |backlog| {
        let app = app(&[("WEBSOCKET_BACKLOG", backlog), ("WEBSOCKET_WORKERS", "1")]);
        let blocked = app.blocked_client();
        // The kernel completes the connections for which there is room, and lets the others try again.
        let connect =
            || TcpStream::connect_timeout(&app.server.addr(), Duration::from_millis(500)).ok();
        let count =
            std::iter::repeat_with(connect).take(5).map_while(|it| it).collect::<Vec<_>>().len();
        drop(blocked);
        app.finish();
        count
    };
    assert_eq!(waiting("1"), 2, "one more than it says (listen(2))");
    assert_eq!(waiting("4096"), 5);
}

#[test]
fn websocket_workers_is_how_many_threads_share_the_sessions() {
    for (workers, expected) in [("1", 1), ("3", 3)] {
        let app = app(&[("WEBSOCKET_WORKERS", workers)]);
        let mut clients: Vec<_> = (0..9).map(|_| app.client().0).collect();
        let mut threads = HashSet::new();
        for client in &mut clients {
            client.send_frame(TEXT, b"thread");
            threads.insert(client.expect_text());
        }
        assert_eq!(threads.len(), expected);
        clients.into_iter().for_each(Raw::goodbye);
        app.finish();
    }
}

// Time.

const BRIEF: &str = "200ms";

#[test]
fn websocket_handshake_timeout_ends_who_says_nothing() {
    let app = app(&[("WEBSOCKET_HANDSHAKE_TIMEOUT", BRIEF)]);
    let mut silent = app.server.raw();
    silent.stream.set_read_timeout(Some(SOON)).unwrap();
    silent.read_to_end();
    app.finish();
}

#[test]
fn websocket_ping_interval_is_the_silence_before_a_ping() {
    let app = app(&[("WEBSOCKET_PING_INTERVAL", BRIEF)]);
    let (mut client, _) = app.client();
    client.stream.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(client.read_frame().opcode, PING);
    app.finish();
}

#[test]
fn websocket_pong_timeout_ends_who_does_not_answer() {
    let app = app(&[("WEBSOCKET_PONG_TIMEOUT", BRIEF), ("WEBSOCKET_PING_INTERVAL", BRIEF)]);
    let _silent = app.client();
    app.expect_timer(Cause::PongTimeout, Timer::Pong);
    app.finish();
}

#[test]
fn websocket_idle_timeout_ends_who_sends_no_message() {
    let app = app(&[("WEBSOCKET_IDLE_TIMEOUT", BRIEF)]);
    let (mut idle, _) = app.client();
    idle.read_close();
    idle.send_frame(CLOSE, &1000_u16.to_be_bytes());
    app.expect_timer(Cause::IdleTimeout, Timer::Idle);
    app.finish();
}

#[test]
fn websocket_write_stall_timeout_ends_who_reads_nothing() {
    let settings =
        [("WEBSOCKET_WRITE_STALL_TIMEOUT", BRIEF), ("WEBSOCKET_MAX_OUTBOXES_SIZE", "1g")];
    let app = app(&settings);
    let _stalled = app.stalled_client();
    app.expect_timer(Cause::WriteStalled, Timer::WriteStall);
    app.finish();
}

#[test]
fn websocket_writer_timeout_ends_who_keeps_others_waiting() {
    let app = app(&[("WEBSOCKET_WRITER_TIMEOUT", BRIEF)]);
    let (mut client, session) = app.client();
    let mut writer = session.message_writer(Kind::Text);
    within(writer.write("begun")).unwrap();
    assert_eq!(client.read_frame().payload, b"begun");
    session.try_send("behind").unwrap();
    client.stream.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(client.read_close().0, 1011);
    client.send_frame(CLOSE, &1011_u16.to_be_bytes());
    app.expect_timer(Cause::WriterStalled, Timer::Writer);
    app.finish();
}

#[test]
fn websocket_close_timeout_ends_who_does_not_say_goodbye() {
    let app = app(&[("WEBSOCKET_CLOSE_TIMEOUT", BRIEF)]);
    let (_client, session) = app.client();
    session.close(CloseCode::NORMAL, "enough");
    app.expect_timer(Cause::Requested, Timer::Close);
    app.finish();
}

#[test]
fn websocket_max_lifetime_ends_everybody() {
    let app = app(&[("WEBSOCKET_MAX_LIFETIME", BRIEF)]);
    let (mut client, _) = app.client();
    assert_eq!(client.read_close().0, 1001);
    client.send_frame(CLOSE, &1001_u16.to_be_bytes());
    app.expect_timer(Cause::LifetimeReached, Timer::Lifetime);
    app.finish();
}

#[test]
fn websocket_lifetime_jitter_spreads_the_ends() {
    let app = app(&[
        ("WEBSOCKET_MAX_LIFETIME", "2s"),
        ("WEBSOCKET_LIFETIME_JITTER", "2s"),
        ("WEBSOCKET_CLOSE_TIMEOUT", "10ms"),
    ]);
    // With a tenth nobody would live for less than 1.8 s; one in 2^64 times all of these live for one.
    let _clients: Vec<_> = (0..64).map(|_| app.client()).collect();
    let lived = (0..64).map(|_| app.records.next().lived).min();
    assert!(lived.is_some_and(|lived| lived < Duration::from_millis(1500)), "{lived:?}");
    app.finish();
}

#[test]
fn websocket_stop_timeout_ends_the_stop() {
    let app = app(&[("WEBSOCKET_STOP_TIMEOUT", BRIEF), ("WEBSOCKET_CLOSE_TIMEOUT", "1h")]);
    let _silent = app.client();
    app.server.handle.request_stop();
    let closed = soon("the session is cut", || app.records.try_next());
    assert_eq!(closed.timer, Some(Timer::Stop), "{closed}");
    let report = app.server.finish();
    assert_eq!((report.drained, report.cut), (0, 1));
}

// Limits.

#[test]
fn websocket_max_message_size_is_the_largest_message() {
    let app = app(&[("WEBSOCKET_MAX_MESSAGE_SIZE", "1k")]);
    let (mut client, _) = app.client();
    client.echo(&"x".repeat(1024));
    client.send_frame(TEXT, &[b'x'; 1025]);
    client.expect_close(1009);
    app.finish();
}

#[test]
fn websocket_max_stream_size_is_the_largest_message_in_parts() {
    let (lengths, received) = heard();
    let builder = Server::builder().on_stream(async move |_: &Session, mut incoming: Incoming| {
        let mut length = 0;
        while let Some(Ok(part)) = incoming.next().await {
            length += part.len();
        }
        let _ = lengths.send(length);
    });
    let server = start_with(&[("WEBSOCKET_MAX_STREAM_SIZE", "100k")], builder);
    let mut client = server.client();
    client.send_frame(BINARY, &[7; 100 * 1024]);
    assert_eq!(received.next(), 100 * 1024);
    client.send(&frame(false, BINARY, &[7; 100 * 1024]));
    client.send(&frame(true, CONTINUATION, &[7; 1]));
    client.expect_close(1009);
    server.finish();
}

#[test]
fn websocket_max_fragments_is_the_most_of_one_message() {
    let app = app(&[("WEBSOCKET_MAX_FRAGMENTS", "2")]);
    let (mut client, _) = app.client();
    client.send(&[frame(false, TEXT, b"a"), frame(true, CONTINUATION, b"b")].concat());
    assert_eq!(client.expect_text(), "ab");
    client.send(&frame(false, TEXT, b"a"));
    client.send(&frame(false, CONTINUATION, b"b"));
    client.send(&frame(true, CONTINUATION, b"c"));
    client.expect_close(1008);
    app.finish();
}

#[test]
fn websocket_max_head_size_is_the_largest_head() {
    let app = app(&[("WEBSOCKET_MAX_HEAD_SIZE", "512")]);
    let padding = |len| format!("X: {}\r\n", "x".repeat(len));
    let (client, _) = app.try_client(b"", &padding(100)).expect("below");
    client.goodbye();
    assert_eq!(app.try_client(b"", &padding(512)).err().as_deref(), Some("431"));
    app.finish();
}

#[test]
fn websocket_min_head_rate_is_the_slowest_head() {
    // At the default it could take half a minute longer.
    let settings = [("WEBSOCKET_MIN_HEAD_RATE", "1000000"), ("WEBSOCKET_HANDSHAKE_TIMEOUT", "1h")];
    let app = app(&settings);
    let mut slow = app.server.raw();
    slow.send(format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(8000)).as_bytes());
    let answer = String::from_utf8(slow.read_to_end()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    app.finish();
}

#[test]
fn websocket_max_outbox_messages_is_how_many_wait_for_one_peer() {
    let app = app(&[("WEBSOCKET_MAX_OUTBOX_MESSAGES", "2")]);
    let (_client, session) = app.blocked_client();
    session.try_send("one").unwrap();
    session.try_send("two").unwrap();
    assert!(matches!(session.try_send("three"), Err(SendError::Full(_))));
    app.finish();
}

#[test]
fn websocket_max_outbox_size_is_how_much_waits_for_one_peer() {
    let app = app(&[("WEBSOCKET_MAX_OUTBOX_SIZE", "4k")]);
    let (_client, session) = app.blocked_client();
    session.try_send(vec![7; 2048]).unwrap();
    session.try_send(vec![7; 2048]).unwrap();
    assert!(matches!(session.try_send("x"), Err(SendError::Full(_))));
    app.finish();
}

#[test]
fn websocket_max_outboxes_size_is_how_much_waits_for_all() {
    let app = app(&[("WEBSOCKET_MAX_OUTBOXES_SIZE", "1m")]);
    let (_client, session) = app.client();
    session.try_send(vec![7; STALLING]).unwrap();
    assert_eq!(app.records.next().cause, Cause::OverBudget);
    app.finish();
}

#[test]
fn websocket_max_published_size_is_how_much_waits_for_workers() {
    let app = app(&[("WEBSOCKET_MAX_PUBLISHED_SIZE", "20000"), ("WEBSOCKET_WORKERS", "1")]);
    let (_client, session) = app.blocked_client();
    session.join("room").unwrap();
    let rooms = app.server.handle.rooms();
    let publish = || rooms.try_publish("room", vec![7; 1000]);
    for _ in 0..13 {
        publish().expect("1 512 bytes each");
    }
    assert!(matches!(publish(), Err(PublishError::Full(_))));
    app.finish();
}

#[test]
fn websocket_max_room_members_is_how_many_a_room_has() {
    let app = app(&[("WEBSOCKET_MAX_ROOM_MEMBERS", "1")]);
    let (first, second) = (app.client(), app.client());
    first.1.join("room").unwrap();
    let refused = second.1.join("room").unwrap_err();
    assert_eq!(refused, JoinError::RoomFull);
    second.1.join("another").unwrap();
    app.finish();
}

#[test]
fn websocket_max_session_rooms_is_how_many_one_is_in() {
    let app = app(&[("WEBSOCKET_MAX_SESSION_ROOMS", "1")]);
    let (_client, session) = app.client();
    session.join("room").unwrap();
    assert_eq!(session.join("another").unwrap_err(), JoinError::TooManyRooms);
    app.finish();
}

#[test]
fn websocket_max_sessions_is_how_many_are_open() {
    let app = app(&[("WEBSOCKET_MAX_SESSIONS", "1"), ("WEBSOCKET_MAX_SESSIONS_PER_ADDRESS", "9")]);
    let _first = app.client();
    assert_eq!(app.try_client(b"", "").err().as_deref(), Some("503"));
    app.finish();
}

#[test]
fn websocket_max_sessions_per_address_is_how_many_one_has() {
    let app = app(&[("WEBSOCKET_MAX_SESSIONS_PER_ADDRESS", "1")]);
    let _first = app.client();
    assert_eq!(app.try_client(b"", "").err().as_deref(), Some("429"));
    app.finish();
}

#[test]
fn websocket_max_handshakes_is_how_many_are_under_way() {
    let app = app(&[("WEBSOCKET_MAX_HANDSHAKES", "1")]);
    let _silent = app.server.raw();
    let mut refused = app.server.raw();
    refused.stream.set_read_timeout(Some(SOON)).unwrap();
    let answer = String::from_utf8(refused.read_to_end()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    app.finish();
}

// Peers.

#[test]
fn websocket_origins_is_which_pages_may_connect() {
    let origin = |name| format!("Origin: {name}\r\n");
    for (origins, ours, others) in [
        ("same", true, false),
        ("any", true, true),
        ("https://example.com, https://*.example.org", false, true),
        ("none", false, false),
    ] {
        let app = app(&[("WEBSOCKET_ORIGINS", origins)]);
        let may = |name| match app.try_client(b"", &origin(name)) {
            Ok(_) => true,
            Err(status) => {
                assert_eq!(status, "403");
                false
            }
        };
        assert_eq!(may("http://localhost"), ours, "{origins}");
        assert_eq!(may("https://example.com"), others, "{origins}");
        assert_eq!(may("https://a.example.org"), others, "{origins}");
        app.finish();
    }
}

/// Who the client is said to be, if it begins like this.
#[track_caller]
fn client_ip(app: &App, begin: &[u8], more: &str) -> String {
    let (client, session) = app.try_client(begin, more).expect("it is let in");
    client.goodbye();
    session.client_ip().expect("it has an address").to_string()
}

const HEADERS: &str = "X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.2\r\n";
const PROXY: &[u8] = b"PROXY TCP4 192.0.2.3 192.0.2.9 4711 443\r\n";

#[test]
fn websocket_trusted_proxies_is_who_is_believed() {
    for (trusted, client) in [
        ("127.0.0.0/8,unix:", "192.0.2.1"),
        ("10.0.0.0/8, 127.0.0.1", "192.0.2.1"),
        ("10.0.0.0/8", "127.0.0.1"),
    ] {
        let app = app(&[("WEBSOCKET_TRUSTED_PROXIES", trusted)]);
        assert_eq!(client_ip(&app, b"", HEADERS), client, "{trusted}");
        app.finish();
    }
}

#[test]
fn websocket_forwarded_header_is_what_is_believed() {
    for (header, client) in [("x-forwarded-for", "192.0.2.1"), ("Forwarded", "192.0.2.2")] {
        let settings =
            [("WEBSOCKET_FORWARDED_HEADER", header), ("WEBSOCKET_TRUSTED_PROXIES", "127.0.0.1")];
        let app = app(&settings);
        assert_eq!(client_ip(&app, b"", HEADERS), client);
        app.finish();
    }
}

#[test]
fn websocket_proxy_protocol_is_who_has_to_speak_it() {
    let app = app(&[("WEBSOCKET_PROXY_PROTOCOL", "127.0.0.1")]);
    assert_eq!(client_ip(&app, PROXY, ""), "192.0.2.3");
    assert_eq!(app.try_client(b"", "").err().as_deref(), Some("400"));
    app.finish();
}

#[test]
fn websocket_proxy_protocol_optional_lets_it_be_left_out() {
    let proxy = ("WEBSOCKET_PROXY_PROTOCOL", "127.0.0.1");
    let app = app(&[proxy, ("WEBSOCKET_PROXY_PROTOCOL_OPTIONAL", "yes")]);
    assert_eq!(client_ip(&app, PROXY, ""), "192.0.2.3");
    assert_eq!(client_ip(&app, b"", ""), "127.0.0.1");
    app.finish();
}

#[test]
fn websocket_slow_peer_is_what_becomes_of_publications() {
    for (policy, is_open, sent) in [
        ("close", false, &[][..]),
        ("drop-newest", true, &["1", "2", "3", "4"]),
        ("drop-oldest", true, &["6", "7", "8", "9"]),
        ("conflate", true, &["9"]),
    ] {
        let app = app(&[
            ("WEBSOCKET_SLOW_PEER", policy),
            // Of publications one more, and one is what it is stalled with.
            ("WEBSOCKET_MAX_OUTBOX_MESSAGES", "4"),
            ("WEBSOCKET_MAX_OUTBOX_SIZE", "1g"),
            ("WEBSOCKET_MAX_OUTBOXES_SIZE", "1g"),
        ]);
        let (mut client, session) = app.stalled_client();
        session.join("room").unwrap();
        for n in 1..=9 {
            let publication = coracle::Publication::new(n.to_string()).key("n");
            assert_eq!(app.server.handle.rooms().try_publish("room", publication).unwrap(), 1);
        }
        if !is_open {
            assert_eq!(app.records.next().cause, Cause::SlowPeer);
        } else {
            eventually("all are handed on", || {
                let losses = session.losses();
                losses.dropped + losses.conflated + sent.len() as u64 == 9
            });
            assert_eq!(client.read_frame().payload.len(), STALLING);
            for text in sent {
                assert_eq!(client.expect_text(), *text);
            }
            client.goodbye();
        }
        app.finish();
    }
}

// Rates. One per second is nothing, for a test: what comes is the burst.

#[test]
fn websocket_read_rate_is_how_fast_a_session_reads() {
    let app = app(&[("WEBSOCKET_READ_RATE", "1k")]);
    let (mut client, session) = app.client();
    client.send_frame(BINARY, &[7; 60_000]);
    eventually("it reads", || session.traffic().bytes_in >= 1024);
    let (read, lived) = (session.traffic().bytes_in, session.created().elapsed());
    assert!(read <= 1024 + 1024 * (lived.as_secs() + 1), "{read} bytes in {lived:?}");
    app.finish();
}

#[test]
fn websocket_read_burst_is_how_much_it_reads_at_once() {
    let app = app(&[("WEBSOCKET_READ_RATE", "1"), ("WEBSOCKET_READ_BURST", "64k")]);
    let (mut client, _) = app.client();
    client.echo(&"x".repeat(50_000));
    app.finish();
}

/// Sends two messages, and a ping behind them: whether the second came before the pong, which no rate holds up.
fn second_before_pong(app: &App) -> bool {
    let (mut client, session) = app.client();
    session.try_send(vec![7; 10_000]).unwrap();
    assert_eq!(client.read_frame().payload.len(), 10_000);
    session.try_send("second").unwrap();
    // The other end is done with its turn when it answers the second ping.
    let mut seen = Vec::new();
    for ping in [b"1", b"2"] {
        client.send_frame(PING, ping);
        loop {
            let frame = client.read_frame();
            seen.push(frame.opcode);
            if frame.opcode == PONG {
                break;
            }
        }
    }
    seen.contains(&TEXT)
}

#[test]
fn websocket_write_rate_is_how_fast_a_session_writes() {
    let app = app(&[("WEBSOCKET_WRITE_RATE", "1")]);
    assert!(!second_before_pong(&app));
    app.finish();
}

#[test]
fn websocket_write_burst_is_how_much_it_writes_at_once() {
    let app = app(&[("WEBSOCKET_WRITE_RATE", "1"), ("WEBSOCKET_WRITE_BURST", "64k")]);
    assert!(second_before_pong(&app));
    app.finish();
}

/// How many of ten messages of ten bytes come back before the session is closed.
fn until_closed(settings: &[(&str, &str)]) -> usize {
    let app = app(settings);
    let (mut client, _) = app.client();
    client.send(&frame(true, TEXT, b"0123456789").repeat(10));
    let count = std::iter::from_fn(|| Some(client.read_frame().opcode))
        .take_while(|opcode| *opcode == TEXT)
        .count();
    client.send_frame(CLOSE, &1008_u16.to_be_bytes());
    assert_eq!(app.records.next().cause, Cause::RateExceeded);
    app.finish();
    count
}

const CLOSES: (&str, &str) = ("WEBSOCKET_RATE_EXCESS", "close");

#[test]
fn websocket_message_rate_is_how_many_are_taken() {
    let count = until_closed(&[CLOSES, ("WEBSOCKET_MESSAGE_RATE", "2")]);
    assert!((2..10).contains(&count), "{count}");
}

#[test]
fn websocket_message_burst_is_how_many_are_taken_at_once() {
    let settings = [("WEBSOCKET_MESSAGE_RATE", "1"), ("WEBSOCKET_MESSAGE_BURST", "5")];
    let count = until_closed(&[&[CLOSES], &settings[..]].concat());
    assert!((5..10).contains(&count), "{count}");
}

#[test]
fn websocket_byte_rate_is_how_much_is_taken() {
    let count = until_closed(&[CLOSES, ("WEBSOCKET_BYTE_RATE", "20")]);
    assert!((2..10).contains(&count), "{count}");
}

#[test]
fn websocket_byte_burst_is_how_much_is_taken_at_once() {
    let settings = [("WEBSOCKET_BYTE_RATE", "1"), ("WEBSOCKET_BYTE_BURST", "50")];
    let count = until_closed(&[&[CLOSES], &settings[..]].concat());
    assert!((5..10).contains(&count), "{count}");
}

#[test]
fn websocket_rate_excess_is_what_becomes_of_the_rest() {
    let app = app(&[("WEBSOCKET_MESSAGE_RATE", "10"), ("WEBSOCKET_RATE_EXCESS", "pause")]);
    let (mut client, _) = app.client();
    client.stream.write_all(&frame(true, TEXT, b"hello").repeat(15)).unwrap();
    for _ in 0..15 {
        assert_eq!(client.expect_text(), "hello");
    }
    client.goodbye();
    app.finish();
    assert!(until_closed(&[CLOSES, ("WEBSOCKET_MESSAGE_RATE", "1")]) < 10);
}
