//! Servers and proxies that do to a client as they are told, byte by byte.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use async_tungstenite::tungstenite::handshake::derive_accept_key;
use coracle::client::{Builder, Callbacks, Client, ConnectError};
use rustix::net::{AddressFamily, SocketType};

use super::support::{Heard, Raw, heard, within};

/// A deadline that is waited for in full: a connection over the loopback needs a thousandth of it.
pub const SHORT: Duration = Duration::from_secs(2);

/// Listens, does this with the first connection, and reports what comes of it.
pub fn script<T: Send + 'static>(
    act: impl FnOnce(&mut Raw) -> T + Send + 'static,
) -> (SocketAddr, Heard<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (sender, reports) = heard();
    thread::spawn(move || {
        let (tcp, _) = listener.accept().unwrap();
        drop(listener);
        let mut raw = Raw::over(tcp.into());
        let result = act(&mut raw);
        drop(raw);
        let _ = sender.send(result);
    });
    (addr, reports)
}

/// A server that reads the request, answers it with this, and reads until the client has gone.
pub fn answering(answer: impl FnOnce(&str) -> Vec<u8> + Send + 'static) -> (SocketAddr, Heard<()>) {
    script(move |raw| {
        let request = raw.read_head();
        // The client may have seen enough before it was all.
        let _ = std::io::Write::write_all(&mut raw.stream, &answer(&request));
        raw.read_to_end();
    })
}

/// The value of a header of a request.
#[track_caller]
pub fn header<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = request.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(it, _)| it.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// The right value of `Sec-WebSocket-Accept`.
#[track_caller]
pub fn accept(request: &str) -> String {
    derive_accept_key(header(request, "Sec-WebSocket-Key").expect("a key").as_bytes())
}

/// A proper 101 to this request, with more header lines, each ending in `\r\n`.
#[track_caller]
pub fn agreed(request: &str, more: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n{more}\r\n",
        accept(request)
    )
}

/// A client of a server without TLS.
pub fn plain(addr: impl fmt::Display) -> Builder {
    Client::builder(format!("ws://{addr}/"))
}

/// Why there is no WebSocket.
#[track_caller]
pub fn fails<H: Callbacks + Send>(builder: Builder<H>) -> ConnectError {
    within(builder.connect()).expect_err("there is no WebSocket")
}

/// The sentence has all of this in it.
#[track_caller]
pub fn says(error: &ConnectError, parts: &[&str]) {
    let sentence = error.to_string();
    for part in parts {
        assert!(sentence.contains(part), "no {part:?} in: {sentence}");
    }
    assert_eq!(format!("{error:?}"), sentence);
}

/// A port that is taken, and on which nobody listens.
pub fn closed_port() -> (OwnedFd, SocketAddr) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
    (socket, addr)
}

/// A server whose queue of connections is full: to whoever connects nobody answers, as behind a firewall that drops
/// packets.
pub struct Full {
    pub addr: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Full {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let addr = listener.local_addr().unwrap();
        // One that is taken is taken in microseconds.
        let another = || TcpStream::connect_timeout(&addr, Duration::from_millis(300)).ok();
        let queued = std::iter::from_fn(another).collect();
        Self { addr, _listener: listener, _queued: queued }
    }
}
