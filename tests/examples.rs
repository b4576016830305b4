//! The examples that embed a server and stop it, as a user starts them: as processes. What the echo
//! example does with signals and options is in `shutdown.rs`.
//!
//! `cargo test` builds the examples first. `cargo test --test examples` does not: it tests those that
//! `cargo build --examples` has built.

#[path = "support/example.rs"]
mod example;
#[cfg(any(feature = "fallback", feature = "metrics"))]
#[path = "support/polling.rs"]
mod polling;
#[cfg(feature = "tls")]
#[path = "support/secure.rs"]
mod secure;
mod support;

#[cfg(feature = "json")]
use std::io::Read;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use example::{Example, path};
use rustix::process::Signal;
use support::*;

/// Reads messages until this one comes.
#[track_caller]
fn read_until(client: &mut Raw, text: &str) {
    loop {
        let frame = client.read_frame();
        assert_eq!(frame.opcode, TEXT, "{frame:?}");
        if frame.payload == text.as_bytes() {
            return;
        }
        assert!(frame.payload.starts_with(b"up "), "{frame:?}");
    }
}

/// Like [`Raw::expect_close`], past the messages that the clock may have sent before.
#[track_caller]
fn expect_going_away(mut client: Raw) {
    loop {
        let frame = client.read_frame();
        if frame.opcode == CLOSE {
            assert_eq!(frame.payload[..2], 1001_u16.to_be_bytes());
            break;
        }
        assert!(frame.payload.starts_with(b"up "), "{frame:?}");
    }
    client.send_frame(CLOSE, &1001_u16.to_be_bytes());
    assert_eq!(client.read_to_end(), b"", "nothing follows a close frame");
}

#[test]
fn embed_sends_its_own_messages_and_typed_lines_to_all_and_quits() {
    let mut embed = Example::start("embed", Stdio::piped());
    let mut clients = [embed.client(), embed.client()];
    for client in &mut clients {
        let frame = client.read_frame();
        let text = String::from_utf8_lossy(&frame.payload);
        assert!(text.starts_with("up ") && text.ends_with(" clients"), "{text}");
    }
    embed.type_line("to everybody");
    for client in &mut clients {
        read_until(client, "to everybody");
    }
    clients[0].send_frame(TEXT, b"from a client");
    embed.type_line("quit");
    clients.into_iter().for_each(expect_going_away);
    let said = embed.finish();
    assert!(said.contains("2 drained, 0 cut"), "{said}");
}

#[cfg(feature = "json")]
#[test]
fn history_gives_who_comes_back_what_was_missed() {
    let example = Example::start("history", Stdio::null());
    let say = |client: &mut Raw, text: &str| client.send_frame(TEXT, text.as_bytes());
    let mut first = example.client();
    say(&mut first, r#"{"type":"join","payload":{"room":"quay"}}"#);
    let joined = first.expect_text();
    let epoch = joined.split(r#""epoch":""#).nth(1).and_then(|it| it.split('"').next()).unwrap();
    assert!(joined.contains(r#""type":"joined""#), "{joined}");
    for text in ["one", "two"] {
        say(
            &mut first,
            &format!(r#"{{"type":"say","payload":{{"room":"quay","text":"{text}"}}}}"#),
        );
        assert!(first.expect_text().contains(text));
    }
    first.reset();
    let mut again = example.client();
    let join = format!(r#"{{"room":"quay","epoch":"{epoch}","after":1}}"#);
    say(&mut again, &format!(r#"{{"type":"join","payload":{join}}}"#));
    let missed = again.expect_text();
    assert!(missed.starts_with(r#"{"id":2,"#) && missed.contains("two"), "{missed}");
    let joined = again.expect_text();
    assert!(joined.contains(r#""recovered":true"#), "{joined}");
    say(&mut again, r#"{"type":"list","payload":{"room":"quay","before":2}}"#);
    let page = again.expect_text();
    assert!(page.contains("one") && !page.contains("two"), "{page}");
    again.goodbye();
    example.signal(Signal::TERM);
    let said = example.finish();
    assert!(said.contains("0 kept at the end, 0 lost"), "{said}");
}

#[test]
fn embed_without_a_terminal_goes_on_until_it_is_told_to_stop() {
    for signal in [Signal::INT, Signal::TERM] {
        let embed = Example::start("embed", Stdio::null());
        let mut client = embed.client();
        assert_eq!(client.read_frame().opcode, TEXT, "the clock ticks");
        embed.signal(signal);
        expect_going_away(client);
        let said = embed.finish();
        assert!(said.contains("1 drained, 0 cut"), "{signal:?}: {said}");
    }
}

#[test]
fn graceful_shutdown_delivers_what_is_queued_before_it_says_goodbye() {
    let example = Example::start("graceful_shutdown", Stdio::null());
    let [mut sender, mut other] = [example.client(), example.client()];
    for client in [&mut sender, &mut other] {
        client.echo("hello");
    }
    sender.send_frame(TEXT, b"stop");
    for count in ["3", "2", "1"] {
        assert_eq!(sender.read_frame().payload, count.as_bytes());
    }
    // Answering one after the other: both have been told before either answers.
    assert_eq!(other.read_close(), (1001, "server stops".to_owned()));
    assert_eq!(sender.expect_close(1001), "server stops");
    other.send_frame(CLOSE, &1001_u16.to_be_bytes());
    assert_eq!(other.read_to_end(), b"");
    let said = example.finish();
    assert_eq!(said.matches("closed by server (server stops)").count(), 2, "{said}");
    assert!(said.contains("2 sessions drained, 0 cut"), "{said}");
}

#[test]
fn graceful_shutdown_stops_at_a_signal_and_reports() {
    for signal in [Signal::INT, Signal::TERM] {
        let example = Example::start("graceful_shutdown", Stdio::null());
        let mut client = example.client();
        client.echo("hello");
        example.signal(signal);
        client.expect_close(1001);
        let said = example.finish();
        assert!(said.contains("1 sessions drained, 0 cut"), "{signal:?}: {said}");
    }
}

#[test]
fn line_echo_gives_lines_back_and_cuts_off_who_does_not_finish_one() {
    let mut example =
        Example::start_at("line_echo", &["127.0.0.1:0", "--seconds", "1"], Stdio::null());
    let mut quick = Raw::connect(example.address());
    let mut slow = Raw::connect(example.address());
    // One line in two pieces, and the next one behind it.
    quick.send(b"hel");
    quick.send(b"lo\nworld\n");
    quick.end_writing();
    assert_eq!(quick.read_to_end(), b"hello\nworld\n");
    slow.send(b"not a whole l");
    assert_eq!(slow.read_to_end(), b"too slow\n");
    let mut said = String::new();
    BufReader::new(example.child.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
    let peer = slow.stream.local_addr().unwrap();
    let expected = format!("{peer}: read timed out after ");
    assert!(said.starts_with(&expected) && said.ends_with(" (budget: 1s)\n"), "{said}");
}

#[test]
fn broadcast_lets_listeners_hear_what_speakers_say_with_a_room_and_without() {
    for arguments in [&["127.0.0.1:0"][..], &["127.0.0.1:0", "--loop"]] {
        let example = Example::start_at("broadcast", arguments, Stdio::null());
        let client = |path| {
            let mut client = Raw::connect(example.address());
            client.send(handshake(path).as_bytes());
            let head = client.read_head();
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            // Read after the session was opened, so by then the listener is one.
            client.send_frame(PING, b"here");
            assert_eq!(client.read_frame().opcode, PONG);
            client
        };
        let mut listeners = [client("/sub"), client("/sub")];
        let mut speaker = client("/pub");
        // A listener is not heard.
        listeners[0].send_frame(TEXT, b"me too");
        listeners[0].send_frame(PING, b"handled");
        assert_eq!(listeners[0].read_frame().opcode, PONG);
        speaker.send_frame(TEXT, b"one");
        speaker.send_frame(TEXT, b"two");
        for listener in &mut listeners {
            assert_eq!(
                (listener.expect_text(), listener.expect_text()),
                ("one".into(), "two".into())
            );
        }
        example.signal(Signal::TERM);
        // Not even by the speaker, who does not hear itself either.
        for mut client in listeners.into_iter().chain([speaker]) {
            client.expect_close(1001);
        }
        example.finish();
    }
}

#[cfg(feature = "json")]
#[test]
fn attached_app_publishes_what_is_posted_and_is_stopped_by_a_route() {
    use std::io::Read;

    let example = Example::start("attached_app", Stdio::null());
    let mut listener = Raw::connect(example.address());
    listener.send(handshake("/rooms/lobby").as_bytes());
    assert!(listener.read_head().starts_with("HTTP/1.1 101 "));
    let post = |target: &str, body: &str| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    // The session is in its room when it has opened, which the 101 does not say.
    let mut client = Raw::connect(example.address());
    let said = r#"{"room":"lobby","members":1}"#;
    eventually("the listener is there", || {
        client.send(post("/rooms/lobby", r#"{"text":"hello"}"#).as_bytes());
        assert!(client.read_head().starts_with("HTTP/1.1 202 "));
        let mut body = vec![0; said.len()];
        client.stream.read_exact(&mut body).unwrap();
        body == said.as_bytes()
    });
    assert_eq!(listener.expect_text(), "hello");
    let stopped = client.ask(post("/stop", "").as_bytes());
    assert!(stopped.ends_with("it stops\n"), "{stopped}");
    listener.expect_close(1001);
    example.finish();
}

#[cfg(feature = "fallback")]
#[test]
fn long_poll_has_clients_with_and_without_a_websocket_in_one_room() {
    use polling::Polling;

    let mut example = Example::start("long_poll", Stdio::null());
    let address = example.place.strip_prefix("http://").and_then(|it| it.strip_suffix("/ws/poll"));
    let address = address.expect("it says where to poll").parse().unwrap();
    let mut listener = Raw::connect(address);
    listener.upgrade();
    let mut client = Polling::open(address);
    client.send("hello from curl");
    assert_eq!(client.texts(1), ["hello from curl"]);
    assert_eq!(listener.expect_text(), "hello from curl");
    listener.send_frame(TEXT, b"hello back");
    assert_eq!(client.texts(1), ["hello back"]);
    assert_eq!(listener.expect_text(), "hello back");
    let close = client.target("close", "&code=1000");
    client.http.post(&close, "text/plain", "").expect(204);
    // It says there how each session has ended.
    let mut said = String::new();
    example.stdout.read_line(&mut said).unwrap();
    assert!(said.contains("(HTTP): "), "{said}");
    example.signal(Signal::TERM);
    listener.expect_close(1001);
    example.stdout.read_to_string(&mut said).unwrap();
    assert!(said.contains("(WebSocket): "), "{said}");
    assert!(said.ends_with("stopped: 1 sessions drained, 0 cut\n"), "{said}");
    example.finish();
}

#[cfg(feature = "metrics")]
#[test]
fn metrics_shows_its_numbers_on_a_listener_of_their_own() {
    let arguments = ["127.0.0.1:0", "--numbers", "127.0.0.1:0"];
    let mut example = Example::start_at("metrics", &arguments, Stdio::null());
    let mut said = String::new();
    BufReader::new(example.child.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
    let numbers = said.strip_prefix("numbers at http://").and_then(|it| it.split('/').next());
    let mut numbers = polling::Http::connect(numbers.unwrap().parse().unwrap()).unwrap();
    let mut client = example.client();
    for order in ["order tea", "order coffee", "order tea", "order x\"} 1"] {
        client.echo(order);
    }
    let page = numbers.get("/metrics");
    let page = String::from_utf8_lossy(&page.expect(200).body);
    for line in [
        "coracle_sessions_active 1",
        "coracle_messages_received_total 4",
        "shop_orders_total{drink=\"tea\"} 2",
        "shop_orders_total{drink=\"coffee\"} 1",
    ] {
        assert!(page.lines().any(|it| it == line), "{line} is not in {page}");
    }
    assert_eq!(page.matches("\nshop_orders_total{").count(), 2, "{page}");
    assert_eq!(numbers.get("/healthz").expect(200).body, b"live\n");
    assert_eq!(numbers.get("/readyz").expect(200).body, b"ready\n");
    let mut public = polling::Http::connect(example.address()).unwrap();
    public.get("/metrics").expect(426);
    example.signal(Signal::TERM);
    client.expect_close(1001);
    example.finish();
}

#[test]
fn a_bad_command_line_is_explained() {
    for name in ["broadcast", "chat", "embed", "graceful_shutdown", "line_echo"] {
        let output = Command::new(path(name)).args(["127.0.0.1:0", "more"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("unexpected argument") && said.contains("usage: "), "{said}");
        assert_eq!(output.stdout, b"");
    }
}

#[test]
fn unix_socket_listens_on_a_path_until_it_is_told_to_stop() {
    let scratch = Scratch::new("example");
    let path = scratch.path("echo.sock");
    let example = Example::start_at("unix_socket", &[path.to_str().unwrap()], Stdio::null());
    assert_eq!(example.place, format!("unix:{}", path.display()));
    let mut client = Raw::connect_unix(&path);
    client.upgrade();
    client.echo("hello");
    example.signal(Signal::TERM);
    client.expect_close(1001);
    example.finish();
    assert!(!path.exists(), "nothing is left");
}

/// What `https_get` needs, and a server for it that does what a test wants.
#[cfg(feature = "tls")]
mod https {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::process::Output;
    use std::sync::Arc;
    use std::thread::{self, JoinHandle};

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::secure::*;
    use super::*;

    type Tls = StreamOwned<ServerConnection, TcpStream>;

    /// Takes one connection, and lets `serve` have it.
    fn listen(serve: impl FnOnce(TcpStream) + Send + 'static) -> (u16, JoinHandle<()>) {
        listen_at(Ipv4Addr::LOCALHOST, serve)
    }

    fn listen_at(
        host: Ipv4Addr,
        serve: impl FnOnce(TcpStream) + Send + 'static,
    ) -> (u16, JoinHandle<()>) {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = thread::spawn(move || {
            let (tcp, _) = listener.accept().unwrap();
            tcp.set_read_timeout(Some(PATIENCE)).unwrap();
            tcp.set_write_timeout(Some(PATIENCE)).unwrap();
            serve(tcp);
        });
        (port, thread)
    }

    /// TLS, with the certificate for "localhost" and 127.0.0.1.
    fn secured(tcp: TcpStream) -> std::io::Result<Tls> {
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(BOTH)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(cert("server.pem")).unwrap()],
                PrivateKeyDer::from_pem_file(cert("server.key")).unwrap(),
            )
            .unwrap();
        let mut tls = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), tcp);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(tls)
    }

    fn request(tls: &mut Tls) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            tls.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    /// Waits until the client has gone.
    fn wait(mut stream: impl Read) {
        // Which may be a reset, or an end without a close_notify.
        let _ = stream.read_to_end(&mut Vec::new());
    }

    fn get(url: &str, ca: &str, seconds: &str) -> Output {
        Command::new(path("https_get"))
            .args([url, "--ca", ca, "--seconds", seconds])
            .output()
            .unwrap()
    }

    /// Gets a page of a server that answers with these bytes, with a close_notify behind them or without.
    fn answered(answer: impl Into<Vec<u8>>, notified: bool) -> Output {
        let answer = answer.into();
        let (port, server) = listen(move |tcp| {
            let mut tls = secured(tcp).unwrap();
            let head = request(&mut tls);
            assert!(head.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{head}");
            assert!(head.contains(&format!("\r\nHost: localhost:{}\r\n", port_of(&tls))), "{head}");
            // The client leaves when it has what it wants.
            let _ = tls.write_all(&answer);
            if notified {
                tls.conn.send_close_notify();
            }
            let _ = tls.flush();
        });
        let output = get(&format!("https://localhost:{port}/a?b=c"), &cert("ca.pem"), "20");
        server.join().unwrap();
        output
    }

    fn port_of(tls: &Tls) -> u16 {
        tls.sock.local_addr().unwrap().port()
    }

    #[track_caller]
    fn assert_body(output: &Output, status: &str, body: &[u8]) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*said), (Some(0), &*format!("{status}\n")));
        assert!(output.stdout == body, "{} bytes", output.stdout.len());
    }

    /// It has failed, said this, and printed nothing.
    #[track_caller]
    fn assert_fails(output: &Output, parts: &[&str]) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in parts {
            assert!(said.contains(part), "{part:?} is not in {said:?}");
        }
        assert_eq!(output.stdout, b"");
    }

    #[test]
    fn https_get_prints_the_body_of_a_whole_answer() {
        let long = vec![b'x'; 100_000];
        let sized = [b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", &long[..]].concat();
        let chunked = b"HTTP/1.1 404 Not Found\r\ntransfer-encoding: Chunked\r\n\r\n\
            5\r\nhello\r\n1;a=b\r\n \r\n6\r\nworld\n\r\n0\r\nTrailer: x\r\n\r\n";
        let early = b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        // What is complete is complete, whatever comes behind it.
        for notified in [true, false] {
            assert_body(&answered(sized.clone(), notified), "200 OK", &long);
            assert_body(&answered(chunked, notified), "404 Not Found", b"hello world\n");
            assert_body(&answered(early, notified), "204 No Content", b"");
        }
        let to_the_end = b"HTTP/1.1 200 OK\r\n\r\nhello";
        assert_body(&answered(to_the_end, true), "200 OK", b"hello");
    }

    #[test]
    fn https_get_prints_nothing_of_an_answer_that_is_cut() {
        for cut in [
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nTrailer: x\r\n",
            "HTTP/1.1 200 OK\r\nContent-Le",
            "",
        ] {
            for notified in [true, false] {
                assert_fails(&answered(cut, notified), &["answer: truncated"]);
            }
        }
        // Only the end says that it is over, and anybody can make that one.
        let to_the_end = "HTTP/1.1 200 OK\r\n\r\nhello";
        assert_fails(&answered(to_the_end, false), &["answer: truncated"]);
    }

    #[test]
    fn https_get_takes_no_more_than_it_can_hold_and_no_nonsense() {
        let endless = [b"HTTP/1.1 200 OK\r\n\r\n", &vec![b'x'; 9 << 20][..]].concat();
        assert_fails(&answered(endless, true), &["8388608 bytes or more"]);
        let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_fails(
            &answered(smuggled, true),
            &["answer: its length is said in more than one way"],
        );
        let huge = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff0\r\n";
        assert_fails(&answered(huge, true), &["answer: truncated"]);
        assert_fails(&answered("SSH-2.0-OpenSSH\r\n\r\n", true), &["answer: no HTTP"]);
    }

    #[test]
    fn https_get_names_the_step_that_took_too_long() {
        let (port, server) = listen(wait);
        let output = get(&format!("https://127.0.0.1:{port}/"), &cert("ca.pem"), "1");
        assert_fails(&output, &["error: TLS handshake timed out after ", "(budget: 1s)"]);
        server.join().unwrap();

        // Long enough for a handshake, however busy the machine.
        for begun in ["", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"] {
            let (port, server) = listen(|tcp| {
                let mut tls = secured(tcp).unwrap();
                request(&mut tls);
                tls.write_all(begun.as_bytes()).unwrap();
                tls.flush().unwrap();
                wait(tls);
            });
            let output = get(&format!("https://127.0.0.1:{port}/"), &cert("ca.pem"), "2");
            assert_fails(&output, &["error: answer timed out after ", "(budget: 2s)"]);
            server.join().unwrap();
        }
    }

    #[test]
    fn https_get_trusts_nobody_it_should_not() {
        let other = Ipv4Addr::new(127, 0, 0, 2);
        for (host, ca, why) in [
            // Signed by an authority that is trusted, for another name.
            (other, "ca.pem", "not valid for name"),
            (Ipv4Addr::LOCALHOST, "wildcard.pem", "UnknownIssuer"),
        ] {
            let (port, server) =
                listen_at(host, |tcp| assert!(secured(tcp).is_err(), "the client says no"));
            let output = get(&format!("https://{host}:{port}/"), &cert(ca), "20");
            assert_fails(&output, &["error: TLS handshake: ", why]);
            server.join().unwrap();
        }
        assert_fails(
            &get("https://localhost/", &cert("server.key"), "1"),
            &["there is none in it"],
        );
        assert_fails(&get("http://localhost/", &cert("ca.pem"), "1"), &["https://"]);
    }

    #[test]
    fn https_get_names_the_step_that_fails() {
        // Nobody listens there.
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let output = get(&format!("https://127.0.0.1:{port}/"), &cert("ca.pem"), "20");
        assert_fails(&output, &["error: connect: "]);
    }
}
