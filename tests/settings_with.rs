//! What the settings of compression and of TLS do to a running server; as in `settings_effects.rs`.

#[path = "support/blocks.rs"]
mod blocks;
#[path = "support/deflate.rs"]
mod deflate;
#[path = "support/pipe.rs"]
mod pipe;
#[path = "support/secure.rs"]
mod secure;
#[path = "support/settings.rs"]
mod settings;
mod support;

use std::fs;
use std::io::Read;
use std::sync::Arc;

use coracle::Server;
use deflate::{BROWSER, Client, extensions, json};
use secure::{BOTH, Secure, cert, client_config, client_with, der};
use settings::*;
use support::*;

// Compression.

const ON: (&str, &str) = ("WEBSOCKET_ENABLE_DEFLATE", "yes");

/// What the server answers to a browser's offer.
fn answer(settings: &[(&str, &str)]) -> Option<String> {
    let app = app(settings);
    let mut raw = app.server.raw();
    let offer = format!("Sec-WebSocket-Extensions: {BROWSER}\r\n");
    raw.send(handshake_with("/", &offer).as_bytes());
    let answer = extensions(&raw.read_head()).map(str::to_owned);
    raw.goodbye();
    app.finish();
    answer
}

/// How many bytes the echo of a message has on the wire, and whether it is compressed.
fn compressed(settings: &[(&str, &str)], message: &[u8]) -> (usize, bool) {
    let app = app(&[&[ON], settings].concat());
    let mut client = Client::connect(&app.server, BROWSER);
    client.send(TEXT, message);
    let received = client.read();
    assert_eq!(received.payload, message);
    client.goodbye();
    app.finish();
    (received.wire, received.compressed)
}

#[test]
fn websocket_enable_deflate_is_whether_messages_are_compressed() {
    assert!(answer(&[ON]).is_some());
    assert_eq!(answer(&[("WEBSOCKET_ENABLE_DEFLATE", "off")]), None);
    assert_eq!(answer(&[]), None);
}

#[test]
fn websocket_deflate_mode_is_whether_messages_refer_to_earlier_ones() {
    let takeover = |mode| {
        let answer = answer(&[ON, ("WEBSOCKET_DEFLATE_MODE", mode)]).expect("it is agreed on");
        !answer.contains("server_no_context_takeover")
    };
    assert!(takeover("dedicated") && !takeover("shared"));
}

#[test]
fn websocket_deflate_level_is_how_small_they_are_made() {
    let at = |level| compressed(&[("WEBSOCKET_DEFLATE_LEVEL", level)], &json(4000)).0;
    assert!(at("0") >= 4000 && at("9") < 2000);
}

#[test]
fn websocket_deflate_threshold_is_the_shortest_that_is_compressed() {
    let at = |threshold| compressed(&[("WEBSOCKET_DEFLATE_THRESHOLD", threshold)], &[b'x'; 100]).1;
    assert!(at("100") && !at("101"));
}

#[test]
fn websocket_deflate_server_window_is_how_far_back_the_server_refers() {
    let answer = answer(&[ON, ("WEBSOCKET_DEFLATE_SERVER_WINDOW", "9")]).unwrap();
    assert!(answer.contains("server_max_window_bits=9"), "{answer}");
    // The client checks that the server keeps to it.
    assert!(compressed(&[("WEBSOCKET_DEFLATE_SERVER_WINDOW", "9")], &json(20_000)).1);
}

#[test]
fn websocket_deflate_client_window_is_how_far_back_the_client_refers() {
    let answer = answer(&[ON, ("WEBSOCKET_DEFLATE_CLIENT_WINDOW", "10")]).unwrap();
    assert!(answer.contains("client_max_window_bits=10"), "{answer}");
}

// TLS.

/// A server with the development certificates and more.
fn secured(more: &[(&str, &str)]) -> App {
    let files = [cert("server.pem"), cert("server.key")];
    app(&[more, &[("TLS_CERT", &files[0]), ("TLS_KEY", &files[1])]].concat())
}

/// A TLS handshake and an upgrade.
fn open(app: &App, config: rustls::ClientConfig) -> Option<Secure> {
    let mut client = Secure::connect(app.server.addr(), config, "localhost").ok()?;
    // With TLS 1.3 a client learns only afterwards what the server thinks of its certificate.
    client.try_upgrade("/").ok().filter(|head| head.starts_with("HTTP/1.1 101 "))?;
    Some(client)
}

#[test]
fn tls_cert_is_what_clients_are_shown() {
    let app = secured(&[]);
    let mut client = open(&app, client_config()).expect("a session");
    assert_eq!(client.server_certificate(), der("server.pem"));
    client.echo("hello");
    client.goodbye();
    let mut plain = app.server.raw();
    plain.send(handshake("/").as_bytes());
    let answer = String::from_utf8_lossy(&plain.read_to_end()).into_owned();
    assert!(!answer.starts_with("HTTP/1.1 101 "), "{answer}");
    app.finish();
}

#[test]
fn tls_cert_is_for_sockets_of_the_unix_family_too() {
    let scratch = Scratch::new("settings");
    let path = scratch.path("a.sock");
    let app = secured(&[("WEBSOCKET_HOST", &format!("unix:{}", path.display()))]);
    let socket = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let mut client = Secure::over(socket, client_config(), "localhost").unwrap();
    client.upgrade();
    client.goodbye();
    app.finish();
}

#[test]
fn tls_key_is_read_with_the_certificate() {
    let key = cert("server-sec1.key");
    let app = app(&[("TLS_CERT", &cert("server.pem")), ("TLS_KEY", &key)]);
    open(&app, client_config()).expect("a session").goodbye();
    app.finish();
    let other = [("TLS_CERT", cert("server.pem")), ("TLS_KEY", cert("client.key"))];
    let other = config(&other.each_ref().map(|(name, value)| (*name, value.as_str())));
    let error = Server::builder().config(other).start().unwrap_err().to_string();
    assert!(error.contains("client.key"), "{error}");
}

#[test]
fn tls_key_password_opens_the_key() {
    let [chain, key] = [cert("server.pem"), cert("server-protected.key")];
    let files = [("TLS_CERT", &*chain), ("TLS_KEY", &*key)];
    let app = app(&[&files[..], &[("TLS_KEY_PASSWORD", "coracle")]].concat());
    open(&app, client_config()).expect("a session").goodbye();
    app.finish();
    let wrong = config(&[&files[..], &[("TLS_KEY_PASSWORD", "sesame")]].concat());
    let shown = format!("{wrong:?}");
    let error = Server::builder().config(wrong).start().unwrap_err().to_string();
    assert!(error.contains("password is wrong"), "{error}");
    assert!(!error.contains("sesame") && !shown.contains("sesame"));
}

#[test]
fn tls_min_version_is_the_oldest_that_is_spoken() {
    for (version, old) in [("1.3", false), ("1.2", true)] {
        let app = secured(&[("TLS_MIN_VERSION", version)]);
        let with = |version| open(&app, client_with(&[version], None)).is_some();
        assert!(with(&rustls::version::TLS13));
        assert_eq!(with(&rustls::version::TLS12), old, "{version}");
        app.finish();
    }
}

/// Who gets in: clients with a certificate, and those without.
fn let_in(settings: &[(&str, &str)]) -> (bool, bool) {
    let app = secured(settings);
    let known = open(&app, client_with(BOTH, Some(("client.pem", "client.key")))).is_some();
    let unknown = open(&app, client_with(BOTH, None)).is_some();
    app.finish();
    (known, unknown)
}

#[test]
fn tls_client_ca_is_who_signs_the_certificates_of_clients() {
    assert_eq!(let_in(&[("TLS_CLIENT_CA", &cert("ca.pem"))]), (true, false));
    // This one signs nobody.
    assert_eq!(let_in(&[("TLS_CLIENT_CA", &cert("wildcard.pem"))]), (false, false));
    assert_eq!(let_in(&[]), (true, true));
}

#[test]
fn tls_client_auth_is_whether_clients_have_to_show_one() {
    let ca = cert("ca.pem");
    for (auth, unknown) in [("optional", true), ("required", false)] {
        let settings = [("TLS_CLIENT_CA", &*ca), ("TLS_CLIENT_AUTH", auth)];
        assert_eq!(let_in(&settings), (true, unknown), "{auth}");
    }
}

#[test]
fn tls_reload_interval_is_how_often_the_files_are_looked_at() {
    let scratch = Scratch::new("settings");
    let chain = scratch.write("chain.pem", fs::read(cert("server.pem")).unwrap());
    let key = scratch.write("key.pem", fs::read(cert("server.key")).unwrap());
    let app = app(&[
        ("TLS_CERT", chain.to_str().unwrap()),
        ("TLS_KEY", key.to_str().unwrap()),
        ("TLS_RELOAD_INTERVAL", "20ms"),
    ]);
    fs::copy(cert("wildcard.pem"), chain).unwrap();
    fs::copy(cert("wildcard-pkcs1.key"), key).unwrap();
    let wildcard = der("wildcard.pem");
    soon("the new certificate is shown", || {
        let mut config = client_config();
        config.dangerous().set_certificate_verifier(Arc::new(secure::Anything));
        let client = Secure::connect(app.server.addr(), config, "localhost").unwrap();
        (client.server_certificate() == wildcard).then_some(())
    });
    app.finish();
}

#[test]
fn websocket_max_tls_handshakes_is_how_many_are_under_way() {
    let app = secured(&[("WEBSOCKET_MAX_TLS_HANDSHAKES", "1")]);
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut hello = Vec::new();
    let mut client = rustls::ClientConnection::new(Arc::new(client_config()), name).unwrap();
    client.write_tls(&mut hello).unwrap();
    let [mut first, mut second] = [app.server.raw(), app.server.raw()];
    first.send(&hello);
    // It has its place when its answer comes.
    first.stream.read_exact(&mut [0]).unwrap();
    second.stream.set_read_timeout(Some(SOON)).unwrap();
    second.send(&hello);
    assert_eq!(second.read_to_end(), b"", "nothing that a TLS client would take for an answer");
    app.finish();
}
