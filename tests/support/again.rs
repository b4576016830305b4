//! A server of the tests' own for clients that come back: it stands still between the steps of the test, answers what
//! it is told to, reads as much as it is told to, and goes away as rudely as it is told to.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use async_tungstenite::tungstenite::handshake::derive_accept_key;
use coracle::client::{Accounts, Builder, Client, Reconnect};
use smol::Async;

use crate::support::{BINARY, CLOSE, PATIENCE, TEXT, within};

/// A wait that is none, for ever.
pub fn at_once() -> Reconnect {
    let moment = Duration::from_micros(1);
    Reconnect::new().first(moment).longest(moment)
}

/// What the books have to say at any moment.
#[track_caller]
pub fn assert_balanced(it: Accounts) {
    assert_eq!(
        it.accepted,
        it.handed + it.queued + it.dropped + it.in_flight + it.unsent,
        "{it:?}"
    );
}

/// Threads of clients in this process.
pub fn client_threads() -> usize {
    let name = |task: io::Result<std::fs::DirEntry>| {
        // A thread may have ended since it was listed.
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(name);
    tasks.filter(|name| name.trim_end() == "coracle-client").count()
}

/// An address at which there is a listener; whether anybody is taken is for the test.
pub struct Place {
    listener: Async<TcpListener>,
    pub addr: SocketAddr,
}

impl Place {
    pub fn new() -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// The standard library sets SO_REUSEADDR.
    pub fn at(addr: SocketAddr) -> Self {
        let listener = Async::<TcpListener>::bind(addr).expect("a listener");
        let addr = listener.get_ref().local_addr().unwrap();
        Self { listener, addr }
    }

    pub fn client(&self) -> Builder {
        Client::builder(format!("ws://{}/", self.addr)).reconnect(at_once())
    }

    /// The next connection, of which nothing has been read.
    pub fn tcp(&self) -> TcpStream {
        let (stream, _) = within(self.listener.accept()).expect("a client");
        let stream = stream.into_inner().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The next WebSocket.
    pub fn accept(&self) -> Served {
        Served::upgrade(self.tcp()).expect("a request for a WebSocket")
    }

    /// Answers the next request with this head (from behind `HTTP/1.1 `) and closes.
    pub fn answer(&self, head: &str) {
        let mut stream = self.tcp();
        read_head(&mut stream).expect("a request");
        stream.write_all(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes()).unwrap();
    }
}

fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8(head).expect("a head is text"))
}

/// One WebSocket, on the side of the server.
pub struct Served {
    pub stream: TcpStream,
}

impl Served {
    pub fn upgrade(stream: TcpStream) -> io::Result<Self> {
        Self::upgrade_and(stream, &[])
    }

    /// Sends this behind the 101, in the same segment.
    pub fn upgrade_and(mut stream: TcpStream, more: &[u8]) -> io::Result<Self> {
        let head = read_head(&mut stream)?;
        let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
        let accept = derive_accept_key(key.expect("a key").as_bytes());
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )
        .into_bytes();
        answer.extend_from_slice(more);
        stream.write_all(&answer)?;
        Ok(Self { stream })
    }

    /// One message of the client, or a control frame; an error when its connection has ended, or somebody has cut it.
    pub fn try_frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let (mut last, opcode, mut message) = self.try_fragment()?;
        while !last {
            let (fin, continuation, payload) = self.try_fragment()?;
            assert_eq!(
                continuation, 0,
                "a large message goes in fragments, with nothing between them"
            );
            message.extend(payload);
            last = fin;
        }
        Ok((opcode, message))
    }

    fn try_fragment(&mut self) -> io::Result<(bool, u8, Vec<u8>)> {
        let mut array = |len| {
            let mut bytes = vec![0; len];
            self.stream.read_exact(&mut bytes).map(|()| bytes)
        };
        let number = |bytes: Vec<u8>| bytes.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        let head = array(2)?;
        assert_eq!(head[0] & 0x70, 0, "no extension");
        assert_eq!(head[1] & 0x80, 0x80, "a client masks");
        let len = match head[1] & 0x7F {
            126 => number(array(2)?),
            127 => number(array(8)?),
            short => usize::from(short),
        };
        let mask = array(4)?;
        let mut payload = array(len)?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        Ok((head[0] & 0x80 != 0, head[0] & 0x0F, payload))
    }

    #[track_caller]
    pub fn frame(&mut self) -> (u8, Vec<u8>) {
        self.try_frame().expect("a frame")
    }

    /// The next message, which is a text.
    #[track_caller]
    pub fn text(&mut self) -> String {
        let (opcode, payload) = self.frame();
        assert_eq!(opcode, TEXT, "{payload:?}");
        String::from_utf8(payload).expect("a text is text")
    }

    #[track_caller]
    pub fn texts<const N: usize>(&mut self) -> [String; N] {
        std::array::from_fn(|_| self.text())
    }

    /// The code of the client's goodbye; and it closes only then.
    #[track_caller]
    pub fn expect_close(&mut self) -> u16 {
        let (opcode, payload) = self.frame();
        assert_eq!(opcode, CLOSE, "{:?}", String::from_utf8_lossy(&payload));
        u16::from_be_bytes([payload[0], payload[1]])
    }

    pub fn send(&mut self, opcode: u8, payload: &[u8]) {
        self.stream.write_all(&server_frame(opcode, payload)).expect("the client reads");
    }

    pub fn say(&mut self, text: &str) {
        self.send(TEXT, text.as_bytes());
    }

    /// Says goodbye and waits for the answer.
    pub fn close(mut self, code: u16) {
        self.send(CLOSE, &code.to_be_bytes());
        // What was on its way comes before it.
        while matches!(self.frame().0, TEXT | BINARY) {}
    }

    /// Disappears as a process does that was killed while it had something to read.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO)).unwrap();
    }
}

/// An unmasked frame of at most 125 bytes, or of none.
pub fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    [&[0x80 | opcode, payload.len() as u8], payload].concat()
}
