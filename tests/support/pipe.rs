//! A peer over the pair in memory: its pipes hold exactly 64 KiB each, so a test can fill one to
//! the last byte and knows what the server is waiting for.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::sync::mpsc;

use coracle::config::Config;
use coracle::{Buffered, Cause, Closed, MemoryStream, Phase, Server, Session, Side};
use futures_lite::{AsyncReadExt, AsyncWriteExt, future};

use crate::support::*;

/// What one direction of the pair holds.
pub const PIPE: usize = 64 * 1024;

/// A payload that fills the pipe to the last byte, together with its header of four bytes.
pub const PIPEFUL: usize = PIPE - 4;

/// A client in memory that has been upgraded and reads only when it is told to.
pub struct Pipe {
    stream: MemoryStream,
}

impl Pipe {
    pub fn connect(server: &TestServer) -> Self {
        Self::connect_to(server, "/")
    }

    pub fn connect_to(server: &TestServer, target: &str) -> Self {
        let mut pipe = Self::raw(server);
        pipe.send(handshake(target).as_bytes());
        let head = pipe.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        pipe
    }

    /// Nothing has been said yet.
    pub fn raw(server: &TestServer) -> Self {
        Self::over(server.handle.connect().expect("the server accepts"))
    }

    /// The other end of a pair, whatever is spoken there.
    pub fn over(stream: MemoryStream) -> Self {
        Self { stream }
    }

    pub fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend_from_slice(&self.read_array::<1>());
        }
        String::from_utf8(head).expect("a head is text")
    }

    pub fn send(&mut self, bytes: &[u8]) {
        within(self.stream.write_all(bytes)).expect("the server reads");
    }

    /// False once the server has closed the connection.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        within(self.stream.write_all(bytes)).is_ok()
    }

    /// Sends as much as there is room for now, and returns how much that was.
    pub fn send_what_fits(&mut self, bytes: &[u8]) -> usize {
        let mut sent = 0;
        while sent < bytes.len() {
            match within(future::poll_once(self.stream.write(&bytes[sent..]))) {
                None => break,
                Some(taken) => sent += taken.expect("the server reads"),
            }
        }
        sent
    }

    /// Reads and forgets what has arrived so far. False at the end of the stream.
    pub fn discard(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match within(future::poll_once(self.stream.read(&mut bytes))) {
                None => return true,
                Some(read) => {
                    if read.expect("bytes or the end") == 0 {
                        return false;
                    }
                }
            }
        }
    }

    pub fn send_frame(&mut self, opcode: u8, payload: &[u8]) {
        self.send(&frame(true, opcode, payload));
    }

    #[track_caller]
    pub fn read_array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        within(self.stream.read_exact(&mut bytes)).expect("more bytes");
        bytes
    }

    /// `None` at the end of the stream.
    #[track_caller]
    pub fn try_read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        if within(self.stream.read(&mut bytes[..1])).expect("bytes or the end") == 0 {
            return None;
        }
        within(self.stream.read_exact(&mut bytes[1..])).expect("more bytes");
        Some(bytes)
    }

    #[track_caller]
    pub fn read_vec(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        within(self.stream.read_exact(&mut bytes)).expect("more bytes");
        bytes
    }

    /// Closes only the sending direction.
    pub fn end_writing(&mut self) {
        within(self.stream.close()).expect("the end is taken");
    }

    /// `None` at the end of the stream.
    #[track_caller]
    pub fn try_read_frame(&mut self) -> Option<Frame> {
        let (compressed, frame) = self.try_read_either()?;
        assert!(!compressed, "reserved bits are zero");
        Some(frame)
    }

    /// The same where permessage-deflate has been agreed on: whether its bit is set, and the frame.
    #[track_caller]
    pub fn try_read_either(&mut self) -> Option<(bool, Frame)> {
        let mut first = [0];
        if within(self.stream.read(&mut first)).expect("a frame or the end") == 0 {
            return None;
        }
        let [first] = first;
        let compressed = first & 0x40 != 0;
        let exactly = |bytes: &mut [u8]| {
            within(self.stream.read_exact(bytes)).expect("a whole frame");
        };
        Some((compressed, Frame::read(first & !0x40, exactly)))
    }

    #[track_caller]
    pub fn read_frame(&mut self) -> Frame {
        self.try_read_frame().expect("a frame, and not the end of the stream")
    }

    /// Every frame up to the end of the stream.
    #[track_caller]
    pub fn read_frames(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.try_read_frame()).collect()
    }

    #[track_caller]
    pub fn read_close(&mut self) -> (u16, String) {
        self.read_frame().close()
    }

    #[track_caller]
    pub fn echo(&mut self, text: &str) {
        self.send_frame(TEXT, text.as_bytes());
        let frame = self.read_frame();
        assert_eq!((frame.opcode, &frame.payload[..]), (TEXT, text.as_bytes()));
    }

    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        within(self.stream.read_to_end(&mut all)).expect("the end of the stream");
        all
    }

    #[track_caller]
    pub fn goodbye(mut self) {
        self.send_frame(CLOSE, &1000_u16.to_be_bytes());
        assert_eq!(self.read_close().0, 1000);
        assert_eq!(self.read_to_end(), b"");
    }
}

/// `on_open` for tests that need the session itself: `.on_open(opened(&sender))`.
pub fn opened(
    sender: &mpsc::Sender<Session>,
) -> impl AsyncFn(&Session) + Send + Sync + 'static + use<> {
    let sender = sender.clone();
    async move |session: &Session| {
        // The test may be over, and not care.
        let _ = sender.send(session.clone());
    }
}

/// Waits until the session has filled the pipe to a peer that does not read.
#[track_caller]
pub fn await_full_pipe(session: &Session) {
    eventually("the pipe is full", || session.traffic().bytes_out >= PIPE as u64);
    assert_eq!(session.traffic().bytes_out, PIPE as u64, "the peer reads nothing");
}

/// Waits until the session has read so many bytes.
#[track_caller]
pub fn await_bytes_in(session: &Session, bytes: usize) {
    eventually("the server has read everything", || session.traffic().bytes_in >= bytes as u64);
}

/// An echo server whose sessions and records the test has.
pub struct Watched {
    pub server: TestServer,
    pub sessions: Heard<Session>,
    pub records: Heard<Closed>,
}

impl Watched {
    pub fn start(configure: impl FnOnce(&mut Config)) -> Self {
        let (opens, sessions) = heard();
        let (closes, records) = heard();
        let server = start(
            Server::builder()
                .configure(configure)
                .on_open(opened(&opens))
                .on_message(async |session, message| session.send(message).await)
                .on_close(record(&closes)),
        );
        Self { server, sessions, records }
    }

    pub fn client(&self) -> (Raw, Session) {
        (self.server.client(), self.sessions.next())
    }

    pub fn pipe(&self) -> (Pipe, Session) {
        (Pipe::connect(&self.server), self.sessions.next())
    }

    /// The client says goodbye, and nothing is left.
    #[track_caller]
    pub fn finish(self, client: Pipe, session: &Session) {
        client.goodbye();
        let closed = self.records.next();
        assert!(closed.clean, "{closed}");
        assert_eq!(session.buffered(), Buffered::default());
        self.server.finish();
    }
}

/// What a record says, without its times.
#[track_caller]
pub fn assert_closed(closed: &Closed, by: Side, cause: Cause, phase: Phase, code: Option<u16>) {
    let said = (closed.by, closed.cause, closed.phase, closed.code.map(|code| code.as_u16()));
    assert_eq!(said, (by, cause, phase, code), "{closed}");
}
