//! A peer that speaks length-prefixed frames, and servers that listen for it.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::io::Read;
use std::net::SocketAddr;

use coracle::config::Config;
use coracle::{Builder, Closed, Handler, Server, Session};

use super::pipe::{Pipe, opened};
use super::support::*;

/// One frame.
pub fn prefixed(payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [&len.to_be_bytes(), payload].concat()
}

/// Bytes that are not all alike.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// Reads one frame; `None` at the end of the stream.
#[track_caller]
pub fn read_from(mut stream: impl Read) -> Option<Vec<u8>> {
    let mut len = [0; 4];
    if stream.read(&mut len[..1]).expect("a frame or the end") == 0 {
        return None;
    }
    stream.read_exact(&mut len[1..]).expect("a whole length");
    let mut payload = vec![0; u32::from_be_bytes(len) as usize];
    stream.read_exact(&mut payload).expect("a whole frame");
    Some(payload)
}

/// What a peer of this kind does.
pub trait Framed {
    fn send_prefixed(&mut self, payload: &[u8]);
    fn try_read_prefixed(&mut self) -> Option<Vec<u8>>;

    #[track_caller]
    fn read_prefixed(&mut self) -> Vec<u8> {
        self.try_read_prefixed().expect("a frame, and not the end of the stream")
    }

    /// Sends a frame and waits for its echo: everything sent before has been handled.
    #[track_caller]
    fn echo_prefixed(&mut self, payload: &[u8]) {
        self.send_prefixed(payload);
        assert!(self.read_prefixed() == payload, "{} bytes come back", payload.len());
    }

    #[track_caller]
    fn expect_end(&mut self) {
        assert_eq!(self.try_read_prefixed(), None, "the end of the stream");
    }
}

impl Framed for Raw {
    fn send_prefixed(&mut self, payload: &[u8]) {
        self.send(&prefixed(payload));
    }

    #[track_caller]
    fn try_read_prefixed(&mut self) -> Option<Vec<u8>> {
        read_from(&mut self.stream)
    }
}

impl Framed for Pipe {
    fn send_prefixed(&mut self, payload: &[u8]) {
        self.send(&prefixed(payload));
    }

    #[track_caller]
    fn try_read_prefixed(&mut self) -> Option<Vec<u8>> {
        let len = self.try_read_array::<4>()?;
        Some(self.read_vec(u32::from_be_bytes(len) as usize))
    }
}

/// A server that listens for frames, and on a second port for WebSocket, and echoes on both.
pub struct Plain {
    pub server: TestServer,
    pub sessions: Heard<Session>,
    pub records: Heard<Closed>,
}

impl Plain {
    pub fn start(configure: impl FnOnce(&mut Config)) -> Self {
        let (opens, sessions) = heard();
        let (closes, records) = heard();
        let builder = Server::builder()
            .configure(configure)
            .on_open(opened(&opens))
            .on_message(async |session, message| session.send(message).await)
            .on_close(record(&closes));
        Self { server: start_frames(builder), sessions, records }
    }

    pub fn client(&self) -> (Raw, Session) {
        (self.raw(), self.sessions.next())
    }

    /// A connection on the port for frames.
    pub fn raw(&self) -> Raw {
        Raw::connect(frames_addr(&self.server))
    }

    /// A WebSocket, and its session.
    pub fn websocket(&self) -> (Raw, Session) {
        let mut raw = Raw::connect(websocket_addr(&self.server));
        raw.upgrade();
        (raw, self.sessions.next())
    }

    /// A client in memory, which reads only when it is told to.
    pub fn pipe(&self) -> (Pipe, Session) {
        let stream = self.server.handle.connect_frames().expect("the server accepts");
        (Pipe::over(stream), self.sessions.next())
    }

    /// The client ends its stream, and nothing is left.
    #[track_caller]
    pub fn finish(self, mut client: Raw) {
        client.end_writing();
        client.expect_end();
        let closed = self.records.next();
        assert!(closed.clean, "{closed}");
        self.server.finish();
    }
}

/// Starts what the builder describes on two ports.
pub fn start_frames<H: Handler>(builder: Builder<H>) -> TestServer {
    start(builder.bind_frames("127.0.0.1:0"))
}

pub fn frames_addr(server: &TestServer) -> SocketAddr {
    server.handle.local_addrs()[0]
}

pub fn websocket_addr(server: &TestServer) -> SocketAddr {
    server.handle.local_addrs()[1]
}
