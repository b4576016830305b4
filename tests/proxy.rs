//! Who the client is when there are proxies in between: the PROXY protocol, `X-Forwarded-For` and
//! `Forwarded`, and that nobody else is believed.

#[path = "support/answer.rs"]
mod answer;
mod support;

use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use answer::{Answer, read_answer};
use coracle::config::{Config, ForwardedHeader, Network};
use coracle::{Closed, Handover, Message, Peer, Request, Response, Server, Session, Upgrade};
use support::*;

/// Short enough for a test that waits for it, long enough for an honest client on a busy machine.
const BRIEF: Duration = Duration::from_millis(300);

/// An echo server that reports each session; a request for `/hold` waits in the accept hook.
struct App {
    server: TestServer,
    sessions: Heard<Session>,
    records: Heard<Closed>,
    held: Heard<()>,
    release: smol::channel::Sender<()>,
}

fn app(configure: impl FnOnce(&mut Config)) -> App {
    let (opens, sessions) = heard();
    let (closes, records) = heard();
    let (holds, held) = heard();
    let holds = Mutex::new(holds);
    let (release, released) = smol::channel::unbounded::<()>();
    let server = start(
        Server::builder()
            .configure(configure)
            .on_accept(async move |request: &Request| -> Result<Upgrade, Response> {
                if request.path() == "/hold" {
                    holds.lock().unwrap().send(()).unwrap();
                    let _ = released.recv().await;
                }
                Ok(Upgrade::new().data(request.client_ip()))
            })
            .on_open(async move |session: &Session| {
                // The test may be over, and not care.
                let _ = opens.send(session.clone());
            })
            .on_message(async |session: &Session, message: Message| session.send(message).await)
            .on_close(record(&closes)),
    );
    App { server, sessions, records, held, release }
}

impl App {
    /// Opens a session on a connection that begins with these bytes, and says who the client is.
    #[track_caller]
    fn client_of(&self, raw: Raw, begin: &[u8], more: &str) -> Option<IpAddr> {
        let (client, session) = self.open(raw, begin, more);
        let ip = session.client_ip();
        assert_eq!(session.data(), Some(&ip), "as the accept hook has seen it");
        self.goodbye(client);
        ip
    }

    #[track_caller]
    fn open(&self, mut raw: Raw, begin: &[u8], more: &str) -> (Raw, Session) {
        raw.send(&[begin, handshake_with("/", more).as_bytes()].concat());
        let head = raw.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        (raw, self.sessions.next())
    }

    #[track_caller]
    fn goodbye(&self, client: Raw) {
        client.goodbye();
        assert!(self.records.next().clean);
    }

    #[track_caller]
    fn refused(&self, begin: &[u8]) -> Answer {
        let mut raw = self.server.raw();
        raw.send(&[begin, handshake("/").as_bytes()].concat());
        read_answer(raw)
    }

    fn finish(self) {
        self.server.finish();
    }
}

fn network(text: &str) -> Network {
    text.parse().unwrap()
}

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

/// A header of version 1.
fn v1(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 192.0.2.1 4711 443\r\n").into_bytes()
}

/// A header of version 2 with a TLV that nobody knows.
fn v2(command: u8, client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, 0x11, 0, 12 + 5]);
    header.extend(client);
    header.extend([192, 0, 2, 1]);
    header.extend([0x12, 0x67, 0x01, 0xBB]);
    header.extend([0xE0, 0, 2, b'h', b'i']);
    header
}

/// The loopback is the proxy.
fn with_proxy_protocol(config: &mut Config) {
    config.proxies.proxy_protocol = vec![network("127.0.0.0/8"), Network::UNIX];
}

#[test]
fn the_proxy_protocol_names_the_client_however_it_arrives() {
    let app = app(with_proxy_protocol);
    for header in [v1("203.0.113.7"), v2(0x21, [203, 0, 113, 7])] {
        assert_eq!(app.client_of(app.server.raw(), &header, ""), ip("203.0.113.7"));
        // In two pieces, cut everywhere, also in the request behind it.
        let bytes = [&header[..], handshake("/").as_bytes()].concat();
        for cut in 1..header.len() + 10 {
            let mut raw = app.server.raw();
            raw.send(&bytes[..cut]);
            raw.send(&bytes[cut..]);
            assert!(raw.read_head().starts_with("HTTP/1.1 101 "), "{cut}");
            let session = app.sessions.next();
            assert_eq!(session.client_ip(), ip("203.0.113.7"), "{cut}");
            let proxy = raw.stream.local_addr().unwrap();
            assert_eq!(session.peer(), Peer::Tcp(proxy), "the socket's other end is the proxy");
            app.goodbye(raw);
        }
        // And byte by byte, with a session of another client before the last one.
        let (last, most) = bytes.split_last().unwrap();
        let mut raw = app.server.raw();
        most.iter().for_each(|byte| raw.send(&[*byte]));
        assert_eq!(app.client_of(app.server.raw(), &v1("203.0.113.8"), ""), ip("203.0.113.8"));
        raw.send(&[*last]);
        assert!(raw.read_head().starts_with("HTTP/1.1 101 "));
        assert_eq!(app.sessions.next().client_ip(), ip("203.0.113.7"));
        app.goodbye(raw);
    }
    app.finish();
}

#[test]
fn a_proxy_that_connects_for_itself_or_for_nobody_it_knows_is_the_client() {
    let app = app(with_proxy_protocol);
    for header in [&v2(0x20, [203, 0, 113, 7])[..], b"PROXY UNKNOWN\r\n"] {
        assert_eq!(app.client_of(app.server.raw(), header, ""), ip("127.0.0.1"));
    }
    app.finish();
}

#[test]
fn only_a_proxy_may_speak_the_proxy_protocol_and_it_must() {
    let strangers = app(|config| config.proxies.proxy_protocol = vec![network("10.0.0.0/8")]);
    for header in [v1("203.0.113.7"), v2(0x21, [203, 0, 113, 7])] {
        strangers.refused(&header).expect(400);
    }
    assert_eq!(strangers.client_of(strangers.server.raw(), b"", ""), ip("127.0.0.1"));
    strangers.finish();

    let proxies = app(with_proxy_protocol);
    let answer = proxies.refused(b"");
    assert!(answer.expect(400).body.contains("send-proxy-v2"), "{answer:?}");
    let answer = proxies.refused(b"PROXY TCP4 203.0.113.7 192.0.2.1 4711\r\n");
    assert!(answer.expect(400).body.contains("malformed"), "{answer:?}");
    let answer = proxies.refused(&v2(0x11, [203, 0, 113, 7]));
    assert!(answer.expect(400).body.contains("malformed"), "{answer:?}");
    // Twice: the second is no request.
    let header = v1("203.0.113.7");
    proxies.refused(&[&header[..], &header].concat()).expect(400);
    proxies.finish();

    let optional = app(|config| {
        with_proxy_protocol(config);
        config.proxies.proxy_protocol_optional = true;
    });
    assert_eq!(optional.client_of(optional.server.raw(), b"", ""), ip("127.0.0.1"));
    let header = v1("203.0.113.7");
    assert_eq!(optional.client_of(optional.server.raw(), &header, ""), ip("203.0.113.7"));
    optional.refused(b"PROXY TCP4 nonsense\r\n").expect(400);
    optional.finish();
}

#[test]
fn a_header_that_does_not_come_is_waited_for_as_long_as_a_handshake() {
    let app = app(|config| {
        with_proxy_protocol(config);
        config.timeouts.handshake = BRIEF;
    });
    for begin in [&b""[..], b"PROXY TCP4 203.0.113.7", &v2(0x21, [203, 0, 113, 7])[..20]] {
        let mut raw = app.server.raw();
        raw.send(begin);
        read_answer(raw).expect(408);
    }
    // A client that goes away in the middle of it is nobody's trouble.
    let mut raw = app.server.raw();
    raw.send(b"PROXY ");
    raw.end_writing();
    assert_eq!(raw.read_to_end(), b"");
    app.finish();
}

#[test]
fn behind_a_proxy_the_limits_of_an_address_are_the_clients() {
    // A load balancer has one address and all the clients. A limit for that address is either of no use
    // or keeps clients out that have done nothing.
    let app = app(|config| {
        with_proxy_protocol(config);
        config.limits.sessions_per_address = Some(1);
    });
    for _ in 0..3 {
        // Whoever was refused the last time counts as a handshake until the server has seen him leave.
        let mut first = app.server.raw();
        eventually("the client's handshakes are over", || {
            first = app.server.raw();
            first.send(&[&v1("203.0.113.7")[..], handshake("/").as_bytes()].concat());
            !first.read_head().starts_with("HTTP/1.1 503 ")
        });
        app.sessions.next();
        first.echo("its handshake is over");
        app.refused(&v1("203.0.113.7")).expect(429);
        let (other, _) = app.open(app.server.raw(), &v1("203.0.113.8"), "");
        // Each kind of end gives the place back.
        first.reset();
        app.records.next();
        app.goodbye(other);
    }
    app.finish();
}

#[test]
fn behind_a_proxy_the_handshakes_of_an_address_are_the_clients() {
    let app = app(|config| {
        with_proxy_protocol(config);
        config.limits.sessions_per_address = Some(1);
    });
    let mut slow = app.server.raw();
    slow.send(&[&v1("203.0.113.7"), handshake("/hold").as_bytes()].concat());
    app.held.next();
    let answer = app.refused(&v1("203.0.113.7"));
    assert!(answer.expect(503).body.contains("handshakes of this address"), "{answer:?}");
    assert_eq!(app.client_of(app.server.raw(), &v1("203.0.113.8"), ""), ip("203.0.113.8"));
    app.release.send_blocking(()).unwrap();
    assert!(slow.read_head().starts_with("HTTP/1.1 101 "));
    app.goodbye(slow);
    app.finish();
}

#[test]
fn trusted_proxies_are_believed_as_far_as_they_go() {
    let app = app(|config| {
        config.proxies.trusted = vec![network("127.0.0.0/8"), network("10.0.0.0/8"), Network::UNIX];
    });
    for (lines, client) in [
        ("", "127.0.0.1"),
        ("X-Forwarded-For: 203.0.113.7\r\n", "203.0.113.7"),
        ("x-forwarded-for: 203.0.113.7:4711\r\n", "203.0.113.7"),
        ("X-Forwarded-For: 2001:db8::7\r\n", "2001:db8::7"),
        // Written by the client itself.
        ("X-Forwarded-For: 127.0.0.1, 203.0.113.7\r\n", "203.0.113.7"),
        ("X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 203.0.113.7\r\n", "203.0.113.7"),
        // Through two proxies.
        ("X-Forwarded-For: 1.1.1.1, 203.0.113.7, 10.0.0.2\r\n", "203.0.113.7"),
        ("X-Forwarded-For: 203.0.113.7, unknown\r\n", "127.0.0.1"),
        // Not the header that is configured.
        ("Forwarded: for=1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\n", "127.0.0.1"),
    ] {
        assert_eq!(app.client_of(app.server.raw(), b"", lines), ip(client), "{lines}");
    }

    // The same by streams: one from a proxy, one from nobody.
    let stream = |peer: Option<SocketAddr>| {
        let (server, client) = UnixStream::pair().unwrap();
        let server = smol::Async::new(server).unwrap();
        match peer {
            Some(peer) => app.server.handle.serve_from(server, peer).unwrap(),
            None => app.server.handle.serve(server).unwrap(),
        }
        Raw::over(client.into())
    };
    let line = "X-Forwarded-For: 203.0.113.7\r\n";
    let (proxy, stranger) = ("10.0.0.1:80".parse().unwrap(), "192.0.2.9:80".parse().unwrap());
    assert_eq!(app.client_of(stream(Some(proxy)), b"", line), ip("203.0.113.7"));
    assert_eq!(app.client_of(stream(Some(stranger)), b"", line), ip("192.0.2.9"));
    assert_eq!(app.client_of(stream(None), b"", line), None);
    app.finish();

    let app = self::app(|config| {
        config.proxies.trusted = vec![network("127.0.0.1")];
        config.proxies.header = ForwardedHeader::Forwarded;
    });
    for (lines, client) in [
        ("Forwarded: for=\"[2001:db8::7]:4711\";proto=https\r\n", "2001:db8::7"),
        ("Forwarded: for=1.1.1.1, for=203.0.113.7\r\n", "203.0.113.7"),
        ("X-Forwarded-For: 1.1.1.1\r\n", "127.0.0.1"),
    ] {
        assert_eq!(app.client_of(app.server.raw(), b"", lines), ip(client), "{lines}");
    }
    app.finish();
}

#[test]
fn nobody_else_is_believed() {
    let app = app(|config| config.proxies.trusted = vec![network("10.0.0.0/8"), Network::UNIX]);
    let line = "X-Forwarded-For: 10.0.0.1, 203.0.113.7\r\nForwarded: for=203.0.113.7\r\n";
    assert_eq!(app.client_of(app.server.raw(), b"", line), ip("127.0.0.1"));
    app.finish();
    let app = self::app(|_| {});
    assert_eq!(app.client_of(app.server.raw(), b"", line), ip("127.0.0.1"));
    app.finish();
}

#[test]
fn the_limits_count_for_the_client_that_a_trusted_proxy_names() {
    let app = app(|config| {
        config.proxies.trusted = vec![network("127.0.0.1")];
        config.limits.sessions_per_address = Some(1);
    });
    let line = |client: &str| format!("X-Forwarded-For: {client}\r\n");
    let (first, _) = app.open(app.server.raw(), b"", &line("203.0.113.7"));
    let mut again = app.server.raw();
    again.send(handshake_with("/", &line("203.0.113.7")).as_bytes());
    read_answer(again).expect(429);
    let (other, _) = app.open(app.server.raw(), b"", &line("203.0.113.8"));
    app.goodbye(first);
    app.goodbye(other);
    app.finish();
}

#[test]
fn a_proxy_behind_a_proxy_is_found_by_both_ways() {
    // An HTTP proxy in a cloud, which names the client in a header, behind a load balancer for TCP, which
    // names the HTTP proxy.
    let app = app(|config| {
        with_proxy_protocol(config);
        config.proxies.trusted = vec![network("198.51.100.0/24")];
    });
    let line = "X-Forwarded-For: 203.0.113.7\r\n";
    let through = app.client_of(app.server.raw(), &v1("198.51.100.9"), line);
    assert_eq!(through, ip("203.0.113.7"));
    // A client that comes by the load balancer alone may write what it likes.
    let directly = app.client_of(app.server.raw(), &v1("203.0.113.66"), line);
    assert_eq!(directly, ip("203.0.113.66"));
    app.finish();
}

#[test]
fn proxies_on_this_machine_come_by_unix_sockets() {
    let scratch = Scratch::new("proxy");
    let path = scratch.path("a.sock");
    let (opens, sessions) = heard();
    let serve = |configure: fn(&mut Config)| {
        let opens = opens.clone();
        let builder = Server::builder().bind_unix(&*path).configure(configure);
        let builder = builder.on_open(async move |session: &Session| {
            opens.send(session.clone()).unwrap();
        });
        TestServer { handle: builder.start().unwrap() }
    };
    let open = |begin: &[u8], more: &str| {
        let mut raw = Raw::connect_unix(&path);
        raw.send(&[begin, handshake_with("/", more).as_bytes()].concat());
        let head = raw.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let session: Session = sessions.next();
        assert_eq!(session.peer(), Peer::Unix);
        raw.goodbye();
        session.client_ip()
    };
    let server = serve(|config| config.proxies.trusted = vec![Network::UNIX]);
    assert_eq!(open(b"", "X-Forwarded-For: 203.0.113.7\r\n"), ip("203.0.113.7"));
    assert_eq!(open(b"", ""), None);
    server.finish();
    let server = serve(with_proxy_protocol);
    assert_eq!(open(&v1("203.0.113.7"), ""), ip("203.0.113.7"));
    assert_eq!(open(b"PROXY UNKNOWN\r\n", ""), None);
    server.finish();
}

#[test]
fn a_stream_that_was_upgraded_elsewhere_brings_its_client_along() {
    let app = app(|config| config.proxies.trusted = vec![network("10.0.0.0/8")]);
    let request = coracle::http_types::Request::get("/chat")
        .header("x-forwarded-for", "1.1.1.1, 203.0.113.7")
        .body(())
        .unwrap();
    let (parts, ()) = request.into_parts();
    for (peer, client) in [("10.0.0.1:80", "203.0.113.7"), ("192.0.2.9:80", "192.0.2.9")] {
        let (server, raw) = UnixStream::pair().unwrap();
        let handover = Handover::new(&parts).peer_addr(peer.parse().unwrap());
        app.server.handle.serve_upgraded(smol::Async::new(server).unwrap(), handover).unwrap();
        assert_eq!(app.sessions.next().client_ip(), ip(client));
        app.goodbye(Raw::over(raw.into()));
    }
    app.finish();
}
