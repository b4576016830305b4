//! A client behind an HTTP proxy.
#[path = "support/scripted.rs"]
mod scripted;
mod support;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use coracle::client::{Builder, Client, ConnectError, Phase};
use coracle::{CloseCode, Message, Server};
use scripted::*;
use support::*;

/// Carries bytes until both sides have ended.
fn carry(one: &TcpStream, other: &TcpStream) {
    let pipe = |mut from: &TcpStream, mut to: &TcpStream| {
        // Whoever resets the connection has ended it, too.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::scope(|scope| {
        scope.spawn(|| pipe(one, other));
        pipe(other, one);
    });
}

/// A proxy that connects to this server, whatever it is asked for; it reports what that was.
fn working(server: SocketAddr, answer: &'static str) -> (SocketAddr, Heard<String>) {
    script(move |raw| {
        let request = raw.read_head();
        let tcp = TcpStream::connect(server).unwrap();
        raw.send(answer.as_bytes());
        carry(&raw.stream, &tcp);
        request
    })
}

fn echo() -> TestServer {
    start(Server::builder().on_message(async |session, message| session.send(message).await))
}

/// Says hello through it, and goodbye.
#[track_caller]
fn works(builder: Builder) -> SocketAddr {
    let client = within(builder.connect()).unwrap();
    let peer = client.connection().unwrap().peer();
    within(client.send("through the tunnel")).unwrap();
    assert_eq!(within(client.recv()).unwrap(), Message::from("through the tunnel"));
    within(client.close(CloseCode::NORMAL, ""));
    peer
}

#[test]
fn a_websocket_goes_through_a_proxy_which_looks_the_name_up() {
    let server = echo();
    for answer in [
        "HTTP/1.1 200 Connection established\r\n\r\n",
        "HTTP/1.0 200 OK\r\nVia: 1.0 old\r\n\r\n",
        "HTTP/1.1 204 \r\n\r\n",
    ] {
        let (proxy, asked) = working(server.addr(), answer);
        let builder = Client::builder("ws://far.invalid:9001/room?a=b");
        assert_eq!(works(builder.proxy(format!("http://{proxy}/"))), proxy);
        let asked = asked.next();
        assert!(asked.starts_with("CONNECT far.invalid:9001 HTTP/1.1\r\n"), "{asked}");
        assert_eq!(header(&asked, "Host"), Some("far.invalid:9001"));
        assert_eq!(header(&asked, "Proxy-Authorization"), None);
    }
    server.finish();
}

#[test]
fn credentials_are_for_the_proxy_alone_and_those_of_the_server_for_the_server_alone() {
    let (proxy, seen) = script(|raw| {
        let asked = raw.read_head();
        raw.send(b"HTTP/1.1 200 OK\r\n\r\n");
        [asked, raw.read_head()]
    });
    let url = format!("http://me:pa%3Ass%40word@{proxy}");
    let error = fails(Client::builder("ws://guest:open@far.invalid/").proxy(url));
    assert_eq!(error.phase(), Some(Phase::Upgrade));
    let [asked, request] = seen.next();
    // `me:pa:ss@word` and `guest:open`.
    assert_eq!(header(&asked, "Proxy-Authorization"), Some("Basic bWU6cGE6c3NAd29yZA=="));
    assert_eq!(header(&asked, "Authorization"), None);
    assert_eq!(header(&request, "Authorization"), Some("Basic Z3Vlc3Q6b3Blbg=="));
    assert_eq!(header(&request, "Proxy-Authorization"), None);
    assert_eq!(header(&request, "Host"), Some("far.invalid"));
}

#[test]
fn an_ipv6_address_is_asked_for_in_brackets() {
    let server = echo();
    let (proxy, asked) = working(server.addr(), "HTTP/1.1 200 OK\r\n\r\n");
    works(Client::builder("ws://[2001:db8::1]/").proxy(format!("http://{proxy}")));
    let asked = asked.next();
    assert!(asked.starts_with("CONNECT [2001:db8::1]:80 HTTP/1.1\r\n"), "{asked}");
    assert_eq!(header(&asked, "Host"), Some("[2001:db8::1]:80"));
    server.finish();
}

#[test]
fn a_proxy_and_a_server_may_have_an_ipv6_address() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        eprintln!("not tested: this machine has no IPv6");
        return;
    };
    let addr = listener.local_addr().unwrap();
    let serving = thread::spawn(move || {
        let answer = |head: &dyn Fn(&str) -> String| {
            let (tcp, _) = listener.accept().unwrap();
            let mut raw = Raw::over(tcp.into());
            let request = raw.read_head();
            raw.send(head(&request).as_bytes());
            raw.read_to_end();
            request
        };
        let proxied = answer(&|_| "HTTP/1.1 403 Forbidden\r\n\r\n".into());
        [proxied, answer(&|request| agreed(request, ""))]
    });
    let error = fails(plain("far.invalid").proxy(format!("http://me:secret@{addr}")));
    says(&error, &[&format!("the proxy {addr} answered 403 Forbidden")]);
    let client = within(plain(addr).connect()).unwrap();
    assert_eq!(client.connection().unwrap().peer(), addr);
    client.abort();
    let [proxied, direct] = serving.join().unwrap();
    assert!(proxied.starts_with("CONNECT far.invalid:80 "), "{proxied}");
    assert_eq!(header(&direct, "Host"), Some(&*addr.to_string()));
}

/// What comes of a proxy that answers this.
#[track_caller]
fn refused(answer: impl Into<Vec<u8>>, by: Option<u16>, lasting: bool, parts: &[&str]) {
    let answer = answer.into();
    let (addr, gone) = answering(move |_| answer);
    let error = fails(plain("far.invalid").proxy(format!("http://me:secret@{addr}")));
    gone.next();
    let ConnectError::Proxy { proxy, status, .. } = &error else { panic!("{error}") };
    assert_eq!((proxy, status.map(|it| it.as_u16())), (&addr.to_string(), by), "{error}");
    assert_eq!((error.phase(), error.is_lasting()), (Some(Phase::Proxy), lasting), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    says(&error, &[&format!("the proxy {addr} ")]);
    says(&error, parts);
}

#[test]
fn a_proxy_that_does_not_connect_is_named_with_its_reason() {
    let status = |line: &str| format!("HTTP/1.1 {line}\r\nContent-Length: 2\r\n\r\nno");
    refused(
        status("407 Proxy Authentication Required"),
        Some(407),
        true,
        &["answered 407", "it wants credentials"],
    );
    refused(status("403 Forbidden"), Some(403), true, &["does not let anybody connect"]);
    refused(status("502 Bad Gateway"), Some(502), false, &["it cannot reach the server"]);
    refused(status("504 Gateway Timeout"), Some(504), false, &["it cannot reach the server"]);
    refused(status("500 Oh"), Some(500), false, &["answered 500", "it does not connect"]);
    refused(status("302 Found"), Some(302), false, &["it does not connect"]);
}

#[test]
fn a_proxy_that_is_none_is_said_to_be_none() {
    refused(*b"SSH-2.0-OpenSSH_9.6\r\n", None, false, &["is of no use", "its answer is no HTTP"]);
    refused(*b"\x05\xff", None, false, &["its answer is no HTTP"]);
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(1024 * 1024));
    refused(endless, None, false, &["more than 8192 bytes"]);
    let lines: String = (0..10_000).map(|i| format!("x{i}: y\r\n")).collect();
    refused(format!("HTTP/1.1 200 OK\r\n{lines}"), None, false, &["no HTTP", "headers"]);
    // Whoever speaks before the server was asked is not the server.
    let more = "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\r\n";
    refused(more, Some(200), false, &["something follows its answer"]);
}

#[test]
fn a_server_that_refuses_behind_a_proxy_is_not_taken_for_the_proxy() {
    let (proxy, gone) = script(|raw| {
        raw.read_head();
        raw.send(b"HTTP/1.1 200 OK\r\n\r\n");
        raw.read_head();
        raw.send(b"HTTP/1.1 407 Odd\r\n\r\n");
        raw.stream.flush().unwrap();
        let _ = raw.stream.read(&mut [0]);
    });
    let error = fails(plain("far.invalid").proxy(format!("http://{proxy}")));
    assert!(matches!(error, ConnectError::Handshake(_)), "{error}");
    assert_eq!(error.phase(), Some(Phase::Upgrade));
    says(&error, &["the server answered 407"]);
    gone.next();
}
