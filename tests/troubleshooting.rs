//! The guide to what goes wrong shows what is really printed: everything in its boxes is made to happen here.

#[path = "support/secure.rs"]
mod secure;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use coracle::client::{Client, ClientTls, ConnectError, Ended, Phase, Reconnect};
use coracle::config::{ClientCertificates, Config, Tls};
use coracle::{Builder, Error, Handler, Message, Server, Session, SlowPeer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use secure::{cert, provider, unwatched};
use support::*;

const GUIDE: &str = include_str!("../src/docs/troubleshooting.md");

/// Long enough for everything that answers at all, and for what does not, waited for to its end.
const BRIEF: Duration = Duration::from_millis(300);

/// The boxes of the guide.
fn symptoms() -> Vec<&'static str> {
    GUIDE.split("```text\n").skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

/// Whether a text is what a box shows, in which `…` stands for anything.
fn shows(symptom: &str, text: &str) -> bool {
    let mut parts = symptom.split('…');
    let first = parts.next().unwrap();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut open = false;
    for part in parts {
        open = part.is_empty();
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    open || rest.is_empty()
}

fn refused(builder: Builder<impl Handler>) -> String {
    builder.start().unwrap_err().to_string()
}

fn echo() -> Builder<impl Handler> {
    Server::builder()
        .on_message(async |session: &Session, message: Message| session.send(message).await)
}

fn os(code: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(code)
}

fn starting() -> Vec<String> {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let files = Tls::new(cert("server.pem"), cert("client.key"));
    vec![
        refused(echo().bind(taken.local_addr().unwrap())),
        // As root, or where the system lets everybody have them, these ports are free.
        Error::Bind { address: "0.0.0.0:80".into(), source: os(13) }.to_string(),
        Error::System { what: "cannot start a worker", source: os(24) }.to_string(),
        refused(echo().tls(files).bind_tls("127.0.0.1:0")),
    ]
}

fn cannot(url: &str, tls: ClientTls) -> String {
    let connecting = Client::builder(url).tls(tls).connect_timeout(BRIEF * 5).connect();
    within(connecting).map(drop).unwrap_err().to_string()
}

fn connecting() -> Vec<String> {
    let plain = ClientTls::new;
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = start(echo());
    let full = start(echo().configure(|config| config.limits.sessions = Some(1)));
    let only = full.client();
    let foreign = Client::builder(format!("ws://{}/", server.addr()))
        .header("Origin", "https://elsewhere.example")
        .connect();
    let texts = vec![
        cannot(&format!("ws://{closed}/"), plain()),
        cannot(&format!("ws://{}/", silent.local_addr().unwrap()), plain()),
        cannot("ws://nobody.invalid/", plain()),
        within(foreign).map(drop).unwrap_err().to_string(),
        cannot(&format!("ws://{}/", full.addr()), plain()),
        through_a_proxy_without_upgrades(server.addr()),
        // It takes a network of one's own to have no port left, or no answer.
        ConnectError::Refused { tried: vec![(closed, os(99))] }.to_string(),
        ConnectError::TimedOut { phase: Phase::Connect, after: BRIEF, tried: vec![closed] }
            .to_string(),
    ];
    drop(only);
    full.finish();
    server.finish();
    texts
}

/// What a server answers of whose request a proxy has taken out the `Upgrade`.
fn through_a_proxy_without_upgrades(server: SocketAddr) -> String {
    let mut raw = Raw::connect(server);
    raw.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let answer = raw.read_to_end();
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", proxy.local_addr().unwrap());
    let proxy = std::thread::spawn(move || {
        let mut tcp = proxy.accept().unwrap().0;
        let mut head = [0; 4096];
        let mut read = 0;
        while !head[..read].ends_with(b"\r\n\r\n") {
            read += tcp.read(&mut head[read..]).unwrap();
        }
        tcp.write_all(&answer).unwrap();
        tcp
    });
    let text = cannot(&url, ClientTls::new());
    drop(proxy.join().unwrap());
    text
}

fn with_tls() -> Vec<String> {
    let trusting = || ClientTls::new().authorities(cert("ca.pem"));
    let server = |tls: Tls| start(echo().tls(tls.watch(None)).bind_tls("127.0.0.1:0"));
    // `start` binds the one without TLS last.
    let url =
        |server: &TestServer| format!("wss://localhost:{}/", server.handle.local_addrs()[0].port());
    let usual = server(unwatched());
    let other = server(Tls::new(cert("wildcard.pem"), cert("wildcard-pkcs1.key")));
    let demanding =
        server(unwatched().clients(ClientCertificates::Required(cert("ca.pem").into())));
    let texts = vec![
        // Nobody has been signed by a client's certificate.
        cannot(&url(&usual), ClientTls::new().authorities(cert("client.pem"))),
        cannot(&url(&other), trusting()),
        with_an_expired_certificate(trusting()),
        cannot(&format!("wss://{}/", usual.handle.local_addrs()[1]), trusting()),
        cannot(&url(&demanding), trusting()),
    ];
    for server in [usual, other, demanding] {
        server.finish();
    }
    texts
}

/// This crate's own server does not even start with one.
fn with_an_expired_certificate(tls: ClientTls) -> String {
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(cert("expired.pem")).unwrap()],
            PrivateKeyDer::from_pem_file(cert("server.key")).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("wss://localhost:{}/", listener.local_addr().unwrap().port());
    let server = std::thread::spawn(move || {
        let mut tcp = listener.accept().unwrap().0;
        let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
        while connection.complete_io(&mut tcp).is_ok_and(|(read, written)| read + written > 0) {}
    });
    let text = cannot(&url, tls);
    server.join().unwrap();
    text
}

/// The record of the session of this server that a client makes end.
fn record_of(
    configure: impl FnOnce(&mut Config),
    policy: SlowPeer,
    act: impl FnOnce(&TestServer, &mut Raw),
) -> String {
    let (sender, closed) = heard();
    let builder = Server::builder()
        .on_message(async |session: &Session, message: Message| session.send(message).await)
        .on_close(record(&sender))
        .slow_peer(policy)
        // Nobody here answers a goodbye.
        .configure(|config| config.timeouts.close = BRIEF)
        .configure(configure);
    let server = start(builder);
    let mut client = server.client();
    act(&server, &mut client);
    let text = closed.next().to_string();
    drop(client);
    server.finish();
    text
}

fn flood(server: &TestServer, _: &mut Raw) {
    let rooms = server.handle.rooms();
    within(async {
        for _ in 0..64 {
            rooms.publish(coracle::Audience::All, vec![0; 1 << 20]).await;
        }
    });
}

fn sessions() -> Vec<String> {
    let nothing = |_: &TestServer, _: &mut Raw| {};
    vec![
        record_of(
            |config| (config.timeouts.ping, config.timeouts.pong) = (Some(BRIEF), BRIEF),
            SlowPeer::Close,
            nothing,
        ),
        record_of(|_| (), SlowPeer::Close, |_, client| client.end_writing()),
        record_of(|config| config.timeouts.idle = Some(BRIEF), SlowPeer::Close, nothing),
        record_of(
            |config| config.limits.message_bytes = 10,
            SlowPeer::Close,
            |_, client| client.send_frame(TEXT, b"more than ten"),
        ),
        record_of(|config| config.timeouts.write_stall = BRIEF, SlowPeer::DropOldest, flood),
        record_of(|_| (), SlowPeer::Close, flood),
        record_of(
            |config| config.limits.outboxes_bytes = Some(1 << 20),
            SlowPeer::DropOldest,
            flood,
        ),
        record_of(|_| (), SlowPeer::Close, |server, _| server.handle.request_stop()),
    ]
}

/// What a client says of how its connection ended.
fn disconnected(
    builder: impl FnOnce(coracle::client::Builder) -> coracle::client::Builder,
) -> String {
    let server = start(
        Server::builder()
            .on_open(async |session: &Session| session.send("more than ten").await)
            .on_message(async |_: &Session, _: Message| std::future::pending::<()>().await)
            .configure(|config| config.limits.message_bytes = 1 << 20),
    );
    let url = format!("ws://{}/", server.addr());
    let client = Client::builder(url).reconnect(Reconnect::never()).queue(64, 64 << 20);
    let client = within(builder(client).connect()).unwrap();
    within(async {
        for _ in 0..16 {
            let _ = client.send(vec![0; 1 << 20]).await;
        }
    });
    let ended = within(client.ended());
    let Ended::Disconnected(last) = &*ended else { panic!("{ended}") };
    let text = last.to_string();
    drop(server);
    text
}

#[test]
fn everything_in_the_guide_is_what_is_printed() {
    let printed: Vec<String> = [
        starting(),
        connecting(),
        with_tls(),
        sessions(),
        vec![
            disconnected(|builder| builder.message_bytes(10)),
            disconnected(|builder| builder.write_stall(BRIEF)),
        ],
    ]
    .concat();
    let missing = |text: &&String| !symptoms().iter().any(|symptom| shows(symptom, text));
    let missing: Vec<_> = printed.iter().filter(missing).collect();
    let invented = |symptom: &&str| !printed.iter().any(|text| shows(symptom, text));
    let invented: Vec<_> = symptoms().into_iter().filter(invented).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "printed: {missing:#?}\nin the guide: {invented:#?}"
    );
}

#[test]
fn what_a_box_shows_is_compared_from_its_beginning_to_its_end() {
    assert!(shows("a … b …: c", "a 1 b 2: c"));
    assert!(shows("a …", "a 1"));
    for (symptom, text) in
        [("a …: c", "b 1: c"), ("a …: c", "a 1: c d"), ("a", "a b"), ("a … b … c", "a b c")]
    {
        assert!(!shows(symptom, text), "{symptom} {text}");
    }
}
