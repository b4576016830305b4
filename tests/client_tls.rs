//! What can be wrong with TLS between a client and its server: the certificate of either side, above all.
#[path = "support/authority.rs"]
mod authority;
#[path = "support/scripted.rs"]
mod scripted;
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use authority::*;
use coracle::client::{
    Builder, CertificateProblem, Client, ClientTls, ConnectError, Ended, Phase, TlsError,
};
use coracle::config::{ClientCertificates, Identity, Tls, TlsVersion};
use coracle::{CloseCode, Message, Server};
use futures_lite::future;
use rustls::version::{TLS12, TLS13};
use scripted::*;
use secure::{BOTH, cert};
use support::*;

/// A client that trusts this authority.
fn secure(server: SocketAddr, authority: &Signer) -> Builder {
    client(server, ClientTls::new().authorities(&authority.file))
}

fn client(server: SocketAddr, tls: ClientTls) -> Builder {
    Client::builder(format!("wss://localhost:{}/", server.port())).tls(tls)
}

/// What is wrong with TLS.
#[track_caller]
fn problem(error: &ConnectError) -> &TlsError {
    let ConnectError::Tls(tls) = error else { panic!("{error}") };
    assert_eq!(error.phase(), Some(Phase::Tls));
    tls
}

/// Says hello, and goodbye.
#[track_caller]
fn works(builder: Builder) {
    let client = within(builder.connect()).unwrap();
    within(client.send("safe and sound")).unwrap();
    assert_eq!(within(client.recv()).unwrap(), Message::from("safe and sound"));
    let ended = within(client.close(CloseCode::NORMAL, ""));
    assert!(matches!(&*ended, Ended::Requested(Some(last)) if last.is_clean()), "{ended}");
}

/// A server of this crate's with this TLS.
fn echo(tls: Tls) -> TestServer {
    let builder =
        Server::builder().on_message(async |session, message| session.send(message).await);
    TestServer { handle: builder.tls(tls).bind_tls("127.0.0.1:0").workers(2).start().unwrap() }
}

#[test]
fn each_wrong_certificate_is_told_apart_says_what_to_do_and_is_lasting() {
    use CertificateProblem as Is;
    let authority = Signer::named("twice");
    let (server, years) = (&["localhost"][..], (2020, 2099));
    let stranger = Signer::new().sign(server, years, SERVER);
    let made_anew = Signer::named("twice").sign(server, years, SERVER);
    let without_the_chain = authority.below().sign(server, years, SERVER);
    let other_names = authority.sign(&["other.example", "127.0.0.1"], years, SERVER);
    let mut mixed_up = authority.sign(server, years, SERVER);
    mixed_up.key = authority.sign(server, years, SERVER).key;
    for (shown, is, parts) in [
        (
            authority.sign(server, (2020, 2021), SERVER),
            Is::Expired,
            &["has to be renewed", "clock"][..],
        ),
        (
            authority.sign(server, (2098, 2099), SERVER),
            Is::NotYetValid,
            &["not valid yet", "clock"],
        ),
        (other_names, Is::WrongName, &["other.example", "a name that stands in the certificate"]),
        (stranger, Is::UnknownAuthority, &["nobody who is trusted", "ClientTls::authorities"]),
        (without_the_chain, Is::UnknownAuthority, &["does the server send the whole chain?"]),
        (self_signed(server, false), Is::UnknownAuthority, &["nobody who is trusted"]),
        (self_signed(server, true), Is::UnknownAuthority, &["signed itself", "CA:false"]),
        (authority.sign(server, years, CLIENT), Is::Other, &["allows client authentication"]),
        (made_anew, Is::Other, &["was the authority made anew?"]),
        (mixed_up, Is::Other, &["BadSignature"]),
    ] {
        for versions in [&[&TLS12][..], &[&TLS13]] {
            let config = shown.config(versions);
            let (addr, seen) =
                tls_script(config, |tls| tls.conn.complete_io(&mut tls.sock).map(drop));
            let error = fails(secure(addr, &authority));
            let tls = problem(&error);
            assert_eq!(
                (tls.certificate(), tls.host(), tls.peer()),
                (Some(is), "localhost", addr),
                "{error}"
            );
            assert!(error.is_lasting() && !tls.is_alert(), "{error}");
            says(&error, &[&format!("TLS with localhost ({addr}): ")]);
            says(&error, parts);
            // The server is told, too.
            let told = seen.next().unwrap_err().to_string();
            assert!(told.contains("alert"), "{told}");
        }
    }
}

#[test]
fn a_name_is_no_address_and_an_address_no_name() {
    let authority = Signer::new();
    for (names, host) in [(&["localhost"][..], "127.0.0.1"), (&["127.0.0.1"], "localhost")] {
        let shown = authority.sign(names, (2020, 2099), SERVER);
        let (addr, _seen) = tls_script(shown.config(BOTH), |_| ());
        let url = format!("wss://{host}:{}/", addr.port());
        let tls = ClientTls::new().authorities(&authority.file);
        let error = fails(Client::builder(url).tls(tls));
        assert_eq!(problem(&error).certificate(), Some(CertificateProblem::WrongName), "{error}");
        says(&error, &[host, names[0]]);
    }
}

#[test]
fn the_certificates_of_this_repository_are_judged_rightly() {
    let trusted = ClientTls::new().authorities(cert("ca.pem"));
    let expired = Shown::files("expired.pem", "server.key");
    let (addr, _seen) = tls_script(expired.config(BOTH), |_| ());
    let error = fails(client(addr, trusted.clone()));
    assert_eq!(problem(&error).certificate(), Some(CertificateProblem::Expired), "{error}");
    let server = echo(Tls::new(cert("server.pem"), cert("server.key")));
    works(client(server.addr(), trusted.clone()));
    works(Client::builder(format!("wss://{}/", server.addr())).tls(trusted.clone()));
    works(client(server.addr(), trusted.authorities(&Signer::new().file)));
    // The system trusts others, if it trusts anybody.
    match fails(client(server.addr(), ClientTls::new())) {
        ConnectError::Tls(tls) => {
            assert_eq!(tls.certificate(), Some(CertificateProblem::UnknownAuthority));
        }
        ConnectError::Config(problem) => assert!(problem.contains("no list of authorities")),
        other => panic!("{other}"),
    }
    server.finish();
}

#[test]
fn a_client_does_not_come_back_to_a_certificate_that_is_not_to_be_trusted() {
    let (addr, _seen) = tls_script(self_signed(&["localhost"], false).config(BOTH), |_| ());
    let ended = within(secure(addr, &Signer::new()).start().unwrap().ended());
    assert!(
        matches!(&*ended, Ended::Failed { attempts: 1, last: ConnectError::Tls(_) }),
        "{ended}"
    );
}

#[test]
fn who_trusts_anybody_trusts_any_certificate_but_nobody_without_its_key() {
    let anybody = || ClientTls::new().danger_trust_anybody();
    let mut shown = self_signed(&["other.example"], true);
    let (addr, _gone) = upgrading(shown.config(BOTH));
    works(client(addr, anybody()));
    shown.key = self_signed(&["other.example"], true).key;
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let (addr, _seen) = tls_script(shown.config(versions), |_| ());
        let error = fails(client(addr, anybody()));
        assert_eq!(problem(&error).certificate(), Some(CertificateProblem::Other), "{error}");
        says(&error, &["BadSignature"]);
    }
}

#[test]
fn a_certificate_that_has_signed_itself_may_be_named_as_its_own_authority() {
    let scratch = Scratch::new("self-signed");
    for (authority, problem) in [(false, None), (true, Some("signed itself"))] {
        let shown = self_signed(&["localhost"], authority);
        let file = scratch.write("own.pem", shown.pem());
        let (addr, _gone) = upgrading(shown.config(BOTH));
        let builder = client(addr, ClientTls::new().authorities(file));
        match problem {
            None => works(builder),
            Some(part) => says(&fails(builder), &[part]),
        }
    }
}

#[test]
fn a_file_of_authorities_that_cannot_be_used_is_named() {
    let scratch = Scratch::new("authorities");
    for (file, part) in [
        (scratch.path("missing.pem"), "no such file"),
        (scratch.write("empty.pem", ""), "empty"),
        (scratch.write("words.pem", "-- not a certificate --\n"), "certificate"),
        (scratch.dir().to_owned(), "directory"),
        (cert("server.key").into(), "certificate"),
    ] {
        let tls = ClientTls::new().authorities(cert("ca.pem")).authorities(&file);
        let error = Client::builder("wss://localhost/").tls(tls).start().unwrap_err();
        assert!(matches!(error, ConnectError::Config(_)) && error.is_lasting(), "{error}");
        assert_eq!(error.phase(), None);
        let lower = error.to_string().to_lowercase();
        assert!(lower.contains(part), "no {part:?} in: {error}");
        says(&error, &[file.to_str().unwrap()]);
    }
    let other_key = Identity::new(cert("client.pem"), cert("server.key"));
    let error =
        fails(Client::builder("wss://localhost/").tls(ClientTls::new().identity(other_key)));
    assert!(matches!(error, ConnectError::Config(_)), "{error}");
    says(&error, &["client.pem", "server.key", "does not belong"]);
}

#[test]
fn a_server_that_speaks_no_tls_is_said_to_speak_none() {
    let authority = Signer::new();
    for answer in ["HTTP/1.1 400 Bad Request\r\n\r\n", "220 mail.example ESMTP\r\n"] {
        let (addr, _seen) = script(|raw| {
            io::Read::read_exact(&mut raw.stream, &mut [0; 5]).unwrap();
            raw.send(answer.as_bytes());
            raw.end_writing();
            raw.read_to_end();
        });
        let error = fails(secure(addr, &authority));
        assert_eq!((problem(&error).certificate(), error.is_lasting()), (None, false), "{error}");
        says(&error, &["is no TLS", "is it ws:// there?"]);
    }
    // And a server with TLS to a client without.
    let server = echo(Tls::new(cert("server.pem"), cert("server.key")));
    let error = fails(plain(server.addr()));
    assert!(matches!(error, ConnectError::Handshake(_)), "{error}");
    says(&error, &["answered 400", "this port speaks TLS only"]);
    server.finish();
}

#[test]
fn a_server_with_an_older_version_than_the_client_allows_is_refused_for_good() {
    let authority = Signer::new();
    let shown = authority.sign(&["localhost"], (2020, 2099), SERVER);
    let (addr, _seen) = tls_script(shown.config(&[&TLS12]), |_| ());
    let only_new = || ClientTls::new().authorities(&authority.file).min_version(TlsVersion::V1_3);
    let error = fails(client(addr, only_new()));
    assert!(problem(&error).is_alert() && error.is_lasting(), "{error}");
    says(&error, &["no version or cipher that both speak", "ClientTls::min_version"]);
    let (addr, _gone) = upgrading(shown.config(&[&TLS12]));
    works(secure(addr, &authority));
    let (addr, _gone) = upgrading(shown.config(&[&TLS13]));
    works(client(addr, only_new()));
}

#[test]
fn a_server_that_wants_a_certificate_says_so_also_when_the_handshake_is_over() {
    let required = ClientCertificates::Required(cert("ca.pem").into());
    let server = echo(Tls::new(cert("server.pem"), cert("server.key")).clients(required));
    let trusting = || ClientTls::new().authorities(cert("ca.pem"));
    let with = |name, key| trusting().identity(Identity::new(name, key));
    // Often, because the alert may come before or after the request has left.
    for _ in 0..50 {
        let error = fails(client(server.addr(), trusting()));
        assert!(problem(&error).is_alert() && error.is_lasting(), "{error}");
        says(&error, &["it wants a certificate of the client", "ClientTls::identity"]);
    }
    let stranger = Signer::new();
    let (name, key) = stranger.files(&stranger.sign(&["gauge-7"], (2020, 2099), CLIENT));
    let error = fails(client(server.addr(), with(name, key)));
    assert!(problem(&error).is_alert() && error.is_lasting(), "{error}");
    says(&error, &["does not accept the client's certificate", "UnknownCA"]);
    // It is for servers.
    let error =
        fails(client(server.addr(), with(cert("server.pem").into(), cert("server.key").into())));
    assert!(problem(&error).is_alert() && error.is_lasting(), "{error}");
    says(&error, &["does not accept the client's certificate", "UnsupportedCertificate"]);
    works(client(server.addr(), with(cert("client.pem").into(), cert("client.key").into())));
    server.finish();
}

#[test]
fn with_tls_1_2_a_missing_certificate_is_said_in_the_handshake() {
    let authority = Signer::new();
    let shown = authority.sign(&["localhost"], (2020, 2099), SERVER);
    let (addr, _seen) = tls_script(shown.asking(&[&TLS12], &authority), |_| ());
    let error = fails(secure(addr, &authority));
    assert!(problem(&error).is_alert() && error.is_lasting(), "{error}");
    says(&error, &["it wants a certificate of the client"]);
    // OpenSSL says no more than this (RFC 5246 section 7.4.6).
    let (addr, _seen) = script(|raw| {
        io::Read::read_exact(&mut raw.stream, &mut [0; 5]).unwrap();
        raw.send(&[21, 3, 3, 0, 2, 2, 40]);
        raw.end_writing();
        raw.read_to_end();
    });
    let error = fails(secure(addr, &authority));
    assert!(problem(&error).is_alert() && !error.is_lasting(), "{error}");
    says(&error, &["HandshakeFailure", "does it want a certificate of the client"]);
}

// Whoever logs that TLS was cut off logged every client.
#[test]
fn the_end_of_a_connection_is_an_end_of_its_tls() {
    let authority = Signer::new();
    let shown = authority.sign(&["localhost"], (2020, 2099), SERVER);
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let (addr, ended) = tls_script(shown.config(versions), |tls| {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                io::Read::read_exact(tls, &mut byte).unwrap();
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            io::Write::write_all(tls, agreed(&request, "").as_bytes()).unwrap();
            io::Write::write_all(tls, &[0x88, 2, 0x03, 0xe8]).unwrap();
            // An error, where TLS does not end before its connection.
            io::Read::read_to_end(tls, &mut Vec::new())
        });
        // Each waits for the other's end.
        let soon = secure(addr, &authority).close_timeout(Duration::from_millis(100));
        let client = within(soon.connect()).unwrap();
        let answer = ended.next().expect("an end of TLS");
        assert_eq!(answer, 8, "a goodbye and nothing else");
        within(client.ended());
    }
}

#[test]
fn a_server_that_goes_silent_in_tls_or_behind_it_is_given_up() {
    let authority = Signer::new();
    let shown = authority.sign(&["localhost"], (2020, 2099), SERVER);
    let (before, hello) = script(Raw::read_to_end);
    let (behind, request) = tls_script(shown.config(BOTH), |tls| {
        let mut request = Vec::new();
        // The client ends TLS, or only the connection.
        let _ = io::Read::read_to_end(tls, &mut request);
        request
    });
    let (proxy, tunnelled) = script(|raw| {
        raw.read_head();
        raw.send(b"HTTP/1.1 200 OK\r\n\r\n");
        raw.read_to_end()
    });
    let waiting = |addr| secure(addr, &authority).connect_timeout(SHORT);
    let through = waiting(proxy).proxy(format!("http://{proxy}"));
    let two = future::zip(waiting(before).connect(), waiting(behind).connect());
    let ((tls, upgrade), proxied) = within(future::zip(two, through.connect()));
    for (error, in_phase, at, part) in [
        (tls.unwrap_err(), Phase::Tls, before, "is it wss:// there?"),
        (upgrade.unwrap_err(), Phase::Upgrade, behind, "is it a WebSocket server"),
        (proxied.unwrap_err(), Phase::Tls, proxy, "did not finish TLS"),
    ] {
        let ConnectError::TimedOut { phase, after, tried } = &error else { panic!("{error}") };
        assert_eq!((*phase, *after, &tried[..]), (in_phase, SHORT, &[at][..]));
        says(&error, &[in_phase.as_str(), "timed out", &at.to_string(), part]);
    }
    // A record of the handshake with a ClientHello.
    assert_eq!(hello.next()[..2], [22, 3]);
    assert_eq!(tunnelled.next()[..2], [22, 3]);
    assert!(request.next().starts_with(b"GET / HTTP/1.1\r\nHost: localhost:"));
}

#[test]
fn a_server_that_hangs_up_in_tls_or_behind_it_is_told_apart() {
    let authority = Signer::new();
    let shown = authority.sign(&["localhost"], (2020, 2099), SERVER);
    let hello = |raw: &mut Raw| {
        let mut header = [0; 5];
        io::Read::read_exact(&mut raw.stream, &mut header).unwrap();
        let mut rest = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        io::Read::read_exact(&mut raw.stream, &mut rest).unwrap();
    };
    let ends = |addr, in_phase, how, part| {
        let error = fails(secure(addr, &authority));
        let ConnectError::Ended { phase, peer, source } = &error else { panic!("{error}") };
        assert_eq!((*phase, *peer, source.kind()), (in_phase, addr, how), "{error}");
        assert!(!error.is_lasting());
        says(&error, &[&addr.to_string(), part]);
    };
    let (eof, reset) = (io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset);
    let (addr, _seen) = script(hello);
    ends(addr, Phase::Tls, eof, "closed the connection during the TLS handshake");
    let (addr, _seen) = script(move |raw| {
        hello(raw);
        rustix::net::sockopt::set_socket_linger(&raw.stream, Some(Duration::ZERO)).unwrap();
    });
    ends(addr, Phase::Tls, reset, "reset");
    // With a goodbye of TLS, and without.
    for polite in [true, false] {
        let (addr, _seen) = tls_script(shown.config(BOTH), move |tls| {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                io::Read::read_exact(tls, &mut byte).unwrap();
                head.push(byte[0]);
            }
            if polite {
                tls.conn.send_close_notify();
                tls.conn.write_tls(&mut tls.sock).unwrap();
            }
        });
        ends(addr, Phase::Upgrade, eof, "closed the connection during the WebSocket handshake");
    }
}
