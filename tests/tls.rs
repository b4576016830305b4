//! TLS through real sockets: versions, keys, names, client certificates, one port for both, the ends of a
//! stream, and what a peer can do wrong.

#[path = "support/secure.rs"]
mod secure;
mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use coracle::config::{ClientCertificates, Identity, Tls, TlsVersion};
use coracle::http_types::{HeaderName, HeaderValue, StatusCode};
use coracle::{Builder, Cause, Closed, Handler, Request, Response, Server, Session, Side, Upgrade};
use rustls::{AlertDescription, HandshakeKind};
use secure::*;
use support::*;

fn tls() -> Tls {
    Tls::new(cert("server.pem"), cert("server.key"))
}

fn start_tls<H: Handler>(builder: Builder<H>, tls: Tls) -> TestServer {
    let _ = env_logger::builder().is_test(true).try_init();
    let builder = builder.tls(tls).bind_tls("127.0.0.1:0").configure(|config| {
        config.workers.get_or_insert(2);
    });
    TestServer { handle: builder.start().expect("the server starts") }
}

fn echo() -> Builder<impl Handler> {
    Server::builder().on_message(async |session, message| session.send(message).await)
}

/// The same, reporting how sessions end.
fn echo_recording(closed: &mpsc::Sender<Closed>) -> Builder<impl Handler> {
    Server::builder()
        .on_message(async |session, message| session.send(message).await)
        .on_close(record(closed))
}

/// The alert by which the server has refused a handshake.
#[track_caller]
fn alert(error: &io::Error) -> AlertDescription {
    match error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("no alert: {error:?}"),
    }
}

#[test]
fn messages_of_all_sizes_come_back_with_both_versions() {
    let server = start_tls(echo().configure(|config| config.limits.message_bytes = 4 << 20), tls());
    for version in BOTH {
        let config = client_with(&[version], None);
        let mut client = Secure::connect(server.addr(), config, "localhost").unwrap();
        client.upgrade();
        assert_eq!(client.tls.conn.protocol_version(), Some(version.version));
        // About a record, about our buffers, and far beyond both.
        for len in [0, 1, 125, 16_383, 16_384, 16_385, 49_152, 65_536, 70_000, 3 << 20] {
            let payload: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            client.send_frame(BINARY, &payload);
            let frame = client.read_frame();
            assert!(frame.payload == payload, "{len} bytes");
        }
        client.goodbye();
    }
    assert_eq!(server.finish().cut, 0);
}

#[test]
fn a_message_that_was_decrypted_with_another_is_not_slept_through() {
    // Edge-triggered epoll tells of a segment once; it may hold more records than a read has room for.
    let server = start_tls(echo(), tls());
    let mut client = Secure::open(server.addr());
    for (count, len) in [(300, 1), (40, 1000), (5, 16_000), (7, 60_000)] {
        client.tls.conn.set_buffer_limit(None);
        for number in 0..count {
            let payload = vec![number as u8; len];
            // A record for each, and all of them before the first byte is sent.
            client.tls.conn.writer().write_all(&frame(true, BINARY, &payload)).unwrap();
        }
        let mut wire = Vec::new();
        while client.tls.conn.wants_write() {
            client.tls.conn.write_tls(&mut wire).unwrap();
        }
        let mut sock = client.tls.sock.try_clone().unwrap();
        let writer = std::thread::spawn(move || sock.write_all(&wire).unwrap());
        for number in 0..count {
            let frame = client.read_frame();
            assert!(frame.payload == vec![number as u8; len], "{number} of {count}");
        }
        writer.join().unwrap();
    }
    client.goodbye();
    server.finish();
}

/// Writes one byte at a time.
struct Drip(TcpStream);

impl Read for Drip {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Drip {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn everything_may_arrive_byte_by_byte() {
    let server = start_tls(echo(), tls());
    for version in BOTH {
        let config = client_with(&[version], None);
        let mut client = Secure::over(Drip(tcp(server.addr())), config, "localhost").unwrap();
        client.upgrade();
        client.echo("hello");
        client.echo(&"x".repeat(2000));
        client.goodbye();
    }
    server.finish();
}

#[test]
fn a_peer_that_reads_late_gets_everything() {
    // More than all buffers between hold, in records that the socket takes in pieces.
    const MESSAGES: usize = 300;
    let server = start_tls(
        Server::builder().configure(|config| config.limits.outbox_bytes = 1 << 20).on_message(
            async |session: &Session, _| {
                for number in 0..MESSAGES {
                    session.send(vec![number as u8; 60_000]).await?;
                }
                Ok::<_, coracle::SendError>(())
            },
        ),
        tls(),
    );
    let mut client = Secure::open(server.addr());
    client.send_frame(TEXT, b"go");
    let session = server.handle.sessions().all().remove(0);
    eventually("the outbox is full", || session.buffered().bytes > 900_000);
    for number in 0..MESSAGES {
        let frame = client.read_frame();
        assert!(frame.payload == vec![number as u8; 60_000], "message {number}");
    }
    client.goodbye();
    assert_eq!(server.finish().cut, 0);
}

#[test]
fn a_new_key_in_the_middle_of_a_session_changes_nothing() {
    let server = start_tls(echo(), tls());
    let mut client = Secure::open(server.addr());
    for number in 0..5 {
        client.tls.conn.refresh_traffic_keys().unwrap();
        client.echo(&format!("after {number}"));
    }
    client.goodbye();
    server.finish();
}

#[test]
fn every_kind_of_key_is_read() {
    let server = |identity| start_tls(echo(), Tls::with(identity));
    for (chain, key, name) in [
        ("server.pem", "server.key", "localhost"),
        ("server.pem", "server-sec1.key", "127.0.0.1"),
        ("wildcard.pem", "wildcard-pkcs1.key", "blue.rooms.example"),
    ] {
        let server = server(Identity::new(cert(chain), cert(key)));
        for version in BOTH {
            let config = client_with(&[version], None);
            let mut client = Secure::connect(server.addr(), config, name).unwrap();
            client.upgrade();
            client.goodbye();
        }
        server.finish();
    }
    let protected = Identity::new(cert("server.pem"), cert("server-protected.key"));
    let server = server(protected.password("coracle"));
    Secure::open(server.addr()).goodbye();
    server.finish();
}

#[test]
fn the_oldest_version_is_a_setting() {
    let server = start_tls(echo(), tls().min_version(TlsVersion::V1_3));
    let old = client_with(&[&rustls::version::TLS12], None);
    let error = Secure::connect(server.addr(), old, "localhost").err().expect("refused");
    assert_eq!(alert(&error), AlertDescription::ProtocolVersion);
    Secure::open(server.addr()).goodbye();
    server.finish();
}

/// Says what it knows of the TLS connection in an answer.
fn who() -> Builder<impl Handler> {
    Server::builder().on_accept(async |request: &Request| -> Result<Upgrade, Response> {
        let said = match request.tls() {
            None => "plain".to_owned(),
            Some(tls) => format!(
                "{}; {}; {}",
                tls.version(),
                tls.server_name().unwrap_or("-"),
                tls.client_certificate().map_or_else(
                    || "-".to_owned(),
                    |it| {
                        let dns: Vec<_> = it.dns_names().collect();
                        let name = it.common_name().unwrap_or("-");
                        format!("{} ({name}, {})", it.subject(), dns.join("+"))
                    }
                ),
            ),
        };
        let value = HeaderValue::from_str(&said).unwrap();
        Ok(Upgrade::new().header(HeaderName::from_static("x-who"), value))
    })
}

#[track_caller]
fn said(head: &str) -> &str {
    let line =
        head.lines().find_map(|line| line.to_ascii_lowercase().find("x-who: ").map(|_| line));
    &line.unwrap_or_else(|| panic!("{head}"))["x-who: ".len()..]
}

#[test]
fn the_accept_hook_sees_version_name_and_client() {
    let server =
        start_tls(who(), tls().clients(ClientCertificates::Optional(cert("ca.pem").into())));
    let ask = |config, name: &str| {
        let mut client = Secure::connect(server.addr(), config, name).unwrap();
        let head = client.try_upgrade("/").unwrap();
        said(&head).to_owned()
    };
    assert_eq!(ask(client_config(), "localhost"), "TLS 1.3; localhost; -");
    assert_eq!(
        ask(client_with(&[&rustls::version::TLS12], None), "localhost"),
        "TLS 1.2; localhost; -"
    );
    // An address is no name (RFC 6066 section 3).
    assert_eq!(ask(client_config(), "127.0.0.1"), "TLS 1.3; -; -");
    for (version, name) in [(BOTH[0], "TLS 1.3"), (BOTH[1], "TLS 1.2")] {
        let config = client_with(&[version], Some(("client.pem", "client.key")));
        assert_eq!(
            ask(config, "localhost"),
            format!(
                "{name}; localhost; O=Coracle development,CN=gauge-7 (gauge-7, \
                 gauge-7.devices.example)"
            )
        );
    }
    server.finish();
}

#[test]
fn a_client_without_the_certificate_that_is_required_is_told_so() {
    let server =
        start_tls(echo(), tls().clients(ClientCertificates::Required(cert("ca.pem").into())));
    let attempt = |version: &'static rustls::SupportedProtocolVersion, identity| {
        let config = client_with(&[version], identity);
        // With TLS 1.3 a client has finished before the server has seen its certificate.
        let mut client = Secure::connect(server.addr(), config, "localhost")?;
        client.try_upgrade("/")
    };
    for version in BOTH {
        let head = attempt(version, Some(("client.pem", "client.key"))).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let error = attempt(version, None).unwrap_err();
        // TLS 1.2 has no word of its own for that (RFC 5246 section 7.4.6).
        let expected = match version.version {
            rustls::ProtocolVersion::TLSv1_2 => AlertDescription::HandshakeFailure,
            _ => AlertDescription::CertificateRequired,
        };
        assert_eq!(alert(&error), expected);
        // It is signed by the authority, but for a server.
        let error = attempt(version, Some(("server.pem", "server.key"))).unwrap_err();
        assert!(matches!(
            alert(&error),
            AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateUnknown
        ));
    }
    server.finish();
}

#[test]
fn the_certificate_follows_the_name_that_the_client_asks_for() {
    let wildcard = || Identity::new(cert("wildcard.pem"), cert("wildcard-pkcs1.key"));
    let default = Identity::new(cert("server.pem"), cert("server.key"));
    let server = start_tls(
        echo(),
        tls()
            .host("*.rooms.example", wildcard())
            .host("Rooms.Example", wildcard())
            .host("plain.rooms.example", default),
    );
    // Names that the certificate does not have: what is shown is looked at, not whether it fits.
    let shown = |name: &str| {
        let mut config = client_config();
        config.dangerous().set_certificate_verifier(std::sync::Arc::new(Anything));
        let client = Secure::connect(server.addr(), config, name).unwrap();
        client.server_certificate()
    };
    let (ours, theirs) = (der("server.pem"), der("wildcard.pem"));
    for name in ["blue.rooms.example", "BLUE.rooms.EXAMPLE", "rooms.example"] {
        assert_eq!(shown(name), theirs, "{name}");
    }
    for name in
        ["localhost", "127.0.0.1", "a.blue.rooms.example", "example", "plain.rooms.example", "x.y"]
    {
        assert_eq!(shown(name), ours, "{name}");
    }
    server.finish();
}

#[test]
fn a_client_that_comes_again_resumes() {
    let server = start_tls(echo(), tls());
    for version in BOTH {
        let config = client_with(&[version], None);
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let mut client = Secure::connect(server.addr(), config.clone(), "localhost").unwrap();
            client.upgrade();
            client.echo("so that the ticket has been read");
            kinds.push(client.tls.conn.handshake_kind());
            client.goodbye();
        }
        assert_eq!(kinds[1], Some(HandshakeKind::Resumed), "{version:?}");
        // Whom an earlier configuration has let in does not get by the next one.
        server.handle.reload_tls().unwrap();
        let client = Secure::connect(server.addr(), config, "localhost").unwrap();
        assert_ne!(client.tls.conn.handshake_kind(), Some(HandshakeKind::Resumed));
    }
    server.finish();
}

#[test]
fn one_port_takes_both() {
    let server = Server::builder().tls(tls()).bind_tls_or_plain("127.0.0.1:0").workers(2);
    let server = server.on_message(async |session, message| session.send(message).await);
    let server = TestServer { handle: server.start().unwrap() };
    let mut plain = server.client();
    let mut secure = Secure::open(server.addr());
    plain.echo("plain");
    secure.echo("secret");
    // The head may come in any number of pieces, the first of one byte.
    let mut pieces = server.raw();
    for byte in handshake("/").as_bytes() {
        pieces.send(&[*byte]);
    }
    assert!(pieces.read_head().starts_with("HTTP/1.1 101 "));
    // And with the first frame behind it.
    let mut at_once = server.raw();
    at_once.send(&[handshake("/").as_bytes(), &frame(true, TEXT, b"first")].concat());
    assert!(at_once.read_head().starts_with("HTTP/1.1 101 "));
    assert_eq!(at_once.read_frame().payload, b"first");
    plain.goodbye();
    secure.goodbye();
    server.finish();
}

#[test]
fn a_request_without_tls_is_told_where_it_is() {
    let server = start_tls(echo(), tls());
    let answer = server.raw().ask(handshake("/").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("wss://"), "{answer}");
    // Something else altogether gets an alert, or nothing.
    let garbage = server.raw().ask(&[0x80, 0x2e, 1, 3, 1, 0, 0, 0, 0]);
    assert!(!garbage.contains("HTTP"), "{garbage}");
    server.finish();
}

#[test]
fn the_end_without_a_close_notify_is_truncation_only_in_the_middle_of_a_message() {
    let (closed, records) = heard();
    let server = start_tls(echo_recording(&closed), tls());
    let end = |secure: &Secure| secure.tls.sock.shutdown(Shutdown::Write).unwrap();

    // After a close frame: clean.
    let mut client = Secure::open(server.addr());
    client.send_frame(CLOSE, &1000_u16.to_be_bytes());
    end(&client);
    assert_eq!(client.read_frame().close().0, 1000);
    let record = records.next();
    assert!(record.clean && record.cause == Cause::PeerClosed, "{record}");

    // After a whole message: what a plain connection would be.
    let mut client = Secure::open(server.addr());
    client.echo("whole");
    end(&client);
    let record = records.next();
    assert_eq!((record.cause, record.by), (Cause::PeerVanished, Side::Peer), "{record}");

    // In a message: in its header, in its payload, between its fragments.
    for part in [
        &frame(true, TEXT, b"hello")[..1],
        &frame(true, TEXT, b"hello")[..8],
        &frame(false, TEXT, b"hel"),
    ] {
        let mut client = Secure::open(server.addr());
        client.send(part);
        end(&client);
        let record = records.next();
        assert_eq!((record.cause, record.by), (Cause::Truncated, Side::Peer), "{record}");
    }

    // With a close_notify the peer itself has ended there.
    let mut client = Secure::open(server.addr());
    client.send(&frame(true, TEXT, b"hello")[..8]);
    client.tls.conn.send_close_notify();
    client.tls.flush().unwrap();
    assert_eq!(records.next().cause, Cause::PeerVanished);
    server.finish();
}

#[test]
fn damaged_records_end_the_session_with_an_alert() {
    let (closed, records) = heard();
    let server = start_tls(echo_recording(&closed), tls());
    let mut client = Secure::open(server.addr());
    client.tls.conn.writer().write_all(&frame(true, TEXT, b"hello")).unwrap();
    let mut wire = Vec::new();
    client.tls.conn.write_tls(&mut wire).unwrap();
    *wire.last_mut().unwrap() ^= 1;
    client.tls.sock.write_all(&wire).unwrap();
    let error = client.tls.read(&mut [0]).unwrap_err();
    assert_eq!(alert(&error), AlertDescription::BadRecordMac);
    assert_eq!(records.next().cause, Cause::Io(ErrorKind::InvalidData));
    server.finish();
}

/// The first flight of a client.
fn client_hello() -> Vec<u8> {
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut client =
        rustls::ClientConnection::new(std::sync::Arc::new(client_config()), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn a_handshake_has_one_budget_from_the_first_byte_to_the_101() {
    let budget = Duration::from_millis(300);
    let server = start_tls(echo().configure(|config| config.timeouts.handshake = budget), tls());
    let hello = client_hello();
    for said in [&[][..], &hello[..1], &hello[..100], &hello] {
        let began = Instant::now();
        let mut raw = server.raw();
        raw.send(said);
        raw.read_to_end();
        assert!(began.elapsed() >= budget, "{} bytes: too early", said.len());
    }
    // TLS is over, the head is not: the answer goes through TLS.
    let mut client = Secure::connect(server.addr(), client_config(), "localhost").unwrap();
    client.send(b"GET / HTTP/1.1\r\n");
    let mut answer = String::new();
    client.tls.read_to_string(&mut answer).expect("a close_notify before the end");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    server.finish();
}

#[test]
fn a_thousand_half_open_handshakes_leave_open_sessions_alone_and_are_gone_in_time() {
    let server = start_tls(
        echo().configure(|config| {
            config.timeouts.handshake = Duration::from_secs(2);
            config.limits.sessions = Some(4000);
            config.limits.handshakes = Some(2000);
        }),
        tls(),
    );
    let mut open = Secure::open(server.addr());
    let hello = client_hello();
    let mut half = Vec::new();
    for number in 0..1000 {
        let mut raw = server.raw();
        // Some say nothing, some a part, and some make the server compute and then fall silent.
        raw.send(match number % 3 {
            0 => &[],
            1 => &hello[..100],
            _ => &hello,
        });
        half.push(raw);
        if number % 100 == 0 {
            open.echo("still here");
        }
    }
    open.echo("still here");
    for mut raw in half {
        raw.read_to_end();
    }
    // All places have been given back.
    for _ in 0..10 {
        Secure::open(server.addr()).goodbye();
    }
    open.goodbye();
    server.finish();
}

/// A handshake takes as long as thousands of messages. Hundreds that came at the same moment were computed
/// one after the other, and the open sessions of that worker waited for all of them.
#[test]
fn handshakes_that_come_at_once_take_turns_with_open_sessions() {
    const STORM: usize = 300;
    // A message makes the only worker wait, until everything has arrived.
    let (release, blocked) = mpsc::channel::<()>();
    let blocked = std::sync::Mutex::new(blocked);
    let (began, begun) = heard();
    let began = std::sync::Mutex::new(began);
    let builder = Server::builder()
        .configure(|config| {
            config.timeouts.handshake = PATIENCE;
            config.limits.sessions = Some(4000);
            config.limits.handshakes = Some(1000);
        })
        .workers(1)
        .on_message(async move |session: &Session, message: coracle::Message| {
            if message.as_text() == Some("wait") {
                began.lock().unwrap().send(()).unwrap();
                blocked.lock().unwrap().recv().unwrap();
            }
            session.send(message).await
        });
    let server = start_tls(builder, tls());
    let mut open = Secure::open(server.addr());
    open.send_frame(TEXT, b"wait");
    begun.next();
    let mut storm: Vec<_> = (0..STORM).map(|_| server.raw()).collect();
    let hello = client_hello();
    storm.iter_mut().for_each(|raw| raw.send(&hello));
    release.send(()).unwrap();
    assert_eq!(open.read_frame().payload, b"wait");
    let (all, done) = mpsc::channel();
    let waiting = std::thread::spawn(move || {
        for raw in &mut storm {
            raw.stream.read_exact(&mut [0]).expect("the server's flight");
        }
        all.send(()).unwrap();
        storm
    });
    let mut echoes = 0;
    while done.try_recv() == Err(mpsc::TryRecvError::Empty) {
        open.echo("in between");
        echoes += 1;
    }
    // In two or three turns of 256 tasks there would be as many.
    assert!(echoes >= 10, "only {echoes} messages came through among {STORM} handshakes");
    drop(waiting.join().unwrap());
    open.goodbye();
    server.finish();
}

#[test]
fn more_handshakes_than_allowed_are_closed_unread() {
    let server = start_tls(
        echo().configure(|config| {
            config.limits.handshakes = Some(4);
            config.limits.sessions = Some(100);
        }),
        tls(),
    );
    // One address has three quarters of four.
    let half: Vec<_> = (0..3).map(|_| server.raw()).collect();
    let mut more = server.raw();
    assert_eq!(more.read_to_end(), b"", "nothing that a TLS client would take for an answer");
    drop(half);
    let deadline = Instant::now() + PATIENCE;
    while Secure::connect(server.addr(), client_config(), "localhost").is_err() {
        assert!(Instant::now() < deadline, "the places are not given back");
    }
    server.finish();
}

#[test]
fn tls_handshakes_have_a_limit_of_their_own_and_give_their_places_back() {
    let server = start_tls(
        echo().configure(|config| {
            config.timeouts.handshake = PATIENCE;
            config.limits.sessions = Some(100);
            config.limits.handshakes = Some(80);
            config.limits.tls_handshakes = Some(4);
        }),
        tls(),
    );
    let hello = client_hello();
    let begin = || {
        let mut raw = server.raw();
        raw.send(&hello);
        raw
    };
    // One address has three quarters of four. A connection has its place when its answer comes.
    let mut half: Vec<_> = (0..3).map(|_| begin()).collect();
    for raw in &mut half {
        raw.stream.read_exact(&mut [0]).expect("the server's flight");
    }
    assert_eq!(begin().read_to_end(), b"", "nothing that a TLS client would take for an answer");
    drop(half);
    // Whoever is through is no longer under way, so five of them find one of three places.
    let deadline = Instant::now() + PATIENCE;
    let mut open = Vec::new();
    while open.len() < 5 {
        match Secure::connect(server.addr(), client_config(), "localhost") {
            Ok(mut client) => {
                client.upgrade();
                open.push(client);
            }
            Err(_) => assert!(Instant::now() < deadline, "the places are not given back"),
        }
    }
    drop(open);
    server.finish();
}

#[test]
fn a_stop_ends_handshakes_and_says_goodbye_through_tls() {
    let server = start_tls(echo(), tls());
    let mut open = Secure::open(server.addr());
    let mut silent = server.raw();
    let mut half = server.raw();
    half.send(&client_hello());
    // It has been served when its answer is there.
    half.stream.read_exact(&mut [0; 5]).unwrap();
    server.handle.request_stop();
    assert_eq!(open.read_frame().close().0, 1001);
    open.send_frame(CLOSE, &1001_u16.to_be_bytes());
    open.expect_end();
    silent.read_to_end();
    half.read_to_end();
    let report = server.finish();
    assert_eq!((report.drained, report.cut), (1, 0));
    assert!(report.took < Duration::from_secs(5), "{report:?}");
}

#[test]
fn a_refused_request_is_answered_through_tls() {
    let server = start_tls(
        Server::builder().on_accept(async |_: &Request| {
            let mut response = Response::new(b"not you".to_vec());
            *response.status_mut() = StatusCode::FORBIDDEN;
            Err(response)
        }),
        tls(),
    );
    let mut client = Secure::connect(server.addr(), client_config(), "localhost").unwrap();
    client.send(handshake("/").as_bytes());
    let mut answer = String::new();
    client.tls.read_to_string(&mut answer).expect("a close_notify before the end");
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.ends_with("not you"), "{answer}");
    server.finish();
}
