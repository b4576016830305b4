//! Messages in parts: a server that takes them, and how they are framed.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use coracle::config::Config;
use coracle::{Cause, Closed, HandlerError, Incoming, Interrupted, Kind, Server, Session};

use crate::pipe::*;
use crate::support::*;

pub const KIB: usize = 1024;

/// What the server keeps of a message for a handler that does not take it.
pub const WINDOW: usize = 64 * KIB;

/// Payload of one fragment that the server sends.
pub const FRAGMENT: usize = 16 * KIB;

pub const CHARACTERS: &str = "aé€𝄞\u{80}\u{7FF}\u{800}\u{D7FF}\u{E000}\u{FFFF}\u{10000}\u{10FFFF}z";

pub const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Bytes of which no two neighbours are alike, in no short period.
pub fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A message in frames of at most `size` bytes of payload.
pub fn fragments(opcode: u8, payload: &[u8], size: usize) -> Vec<u8> {
    let count = payload.len().div_ceil(size).max(1);
    let mut bytes = Vec::new();
    for index in 0..count {
        let piece = &payload[index * size..payload.len().min((index + 1) * size)];
        let opcode = if index == 0 { opcode } else { CONTINUATION };
        bytes.extend(frame(index + 1 == count, opcode, piece));
    }
    bytes
}

/// Polls once, without a waker that would do anything.
pub fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// What a handler has got of one message.
#[derive(Debug, PartialEq, Eq)]
pub struct Got {
    pub kind: Kind,
    pub parts: Vec<Bytes>,
    pub end: Result<(), Interrupted>,
}

impl Got {
    pub fn bytes(&self) -> Vec<u8> {
        self.parts.concat()
    }

    /// The message is whole, and this.
    #[track_caller]
    pub fn expect(&self, kind: Kind, bytes: &[u8]) {
        assert_eq!((self.kind, self.end), (kind, Ok(())));
        let got = self.bytes();
        assert_eq!(got.len(), bytes.len());
        assert!(got == bytes, "{} bytes, but not the same", bytes.len());
        self.check_parts();
    }

    /// The message has broken off, behind this.
    #[track_caller]
    pub fn expect_interrupted(&self, bytes: &[u8]) {
        assert!(self.end.is_err(), "{self:?}");
        assert!(self.bytes() == bytes, "{self:?}");
        self.check_parts();
    }

    #[track_caller]
    pub fn check_parts(&self) {
        assert!(self.parts.iter().all(|part| !part.is_empty()), "no part is empty");
        if self.kind == Kind::Text {
            assert!(self.parts.iter().all(|part| std::str::from_utf8(part).is_ok()));
        }
    }
}

/// Takes all that is left.
pub async fn collect(incoming: &mut Incoming) -> Got {
    let mut got = Got { kind: incoming.kind(), parts: Vec::new(), end: Ok(()) };
    loop {
        match incoming.next().await {
            None => return got,
            Some(Ok(part)) => got.parts.push(part),
            Some(Err(error)) => {
                assert_eq!(incoming.next().await, Some(Err(error)), "from then on");
                got.end = Err(error);
                return got;
            }
        }
    }
}

/// A server on one worker that takes messages in parts, reports when one begins, waits for `gate`,
/// and reports what it got.
pub struct Receiving {
    pub server: TestServer,
    pub sessions: Heard<Session>,
    pub begun: Heard<Kind>,
    pub got: Heard<Got>,
    pub records: Heard<Closed>,
    pub failed: Heard<String>,
    /// Each message takes one permit. Without this sender there is no gate.
    pub gate: Option<smol::channel::Sender<()>>,
}

pub fn receiving(configure: impl FnOnce(&mut Config)) -> Receiving {
    let (opens, sessions) = heard();
    let (closes, records) = heard();
    let (begins, begun) = heard();
    let (gots, got) = heard();
    let (errors, failed) = heard();
    let (gate, wait) = smol::channel::unbounded::<()>();
    let server = start(
        Server::builder()
            .workers(1)
            .configure(configure)
            .on_open(opened(&opens))
            .on_stream(async move |_: &Session, mut incoming: Incoming| {
                // The test may be over, and not care.
                let _ = begins.send(incoming.kind());
                let _ = wait.recv().await;
                let _ = gots.send(collect(&mut incoming).await);
            })
            .on_error(async move |_: &Session, error: &HandlerError| {
                let _ = errors.send(error.to_string());
            })
            .on_close(record(&closes)),
    );
    Receiving { server, sessions, begun, got, records, failed, gate: Some(gate) }
}

/// The same without a gate.
pub fn taking(configure: impl FnOnce(&mut Config)) -> Receiving {
    Receiving { gate: None, ..receiving(configure) }
}

impl Receiving {
    pub fn client(&self) -> (Raw, Session) {
        (self.server.client(), self.sessions.next())
    }

    pub fn pipe(&self) -> (Pipe, Session) {
        (Pipe::connect(&self.server), self.sessions.next())
    }

    /// Round trips of another session of the same worker: turns in which everything was looked at.
    pub fn settle(&self) {
        let (mut client, _) = self.pipe();
        // A pipeful of the smallest fragments takes dozens of turns.
        for round in 0..64_u8 {
            client.send_frame(PING, &[round]);
            assert_eq!(client.read_frame().payload, [round]);
        }
        client.goodbye();
        assert_eq!(self.records.next().cause, Cause::PeerClosed);
    }

    /// Sends until the server takes no more; what is left of `bytes` has not been sent.
    pub fn send_until_it_waits<'a>(&self, client: &mut Pipe, mut bytes: &'a [u8]) -> &'a [u8] {
        loop {
            let sent = client.send_what_fits(bytes);
            bytes = &bytes[sent..];
            self.settle();
            if sent == 0 || bytes.is_empty() {
                return bytes;
            }
        }
    }

    #[track_caller]
    pub fn finish(self) {
        drop(self.gate);
        let report = self.server.finish();
        assert_eq!((report.panics, report.cut), (0, 0));
        assert!(self.failed.try_next().is_none(), "no handler has failed");
        assert!(self.records.try_next().is_none(), "each record has been heard once");
    }
}

/// Reads one message: its opcode, its payload and how many frames it was; control frames may not come
/// between.
#[track_caller]
pub fn read_message(client: &mut Pipe) -> (u8, Vec<u8>, usize) {
    let first = client.read_frame();
    assert!(matches!(first.opcode, TEXT | BINARY), "a message begins: {}", first.opcode);
    let (mut payload, mut frames, mut fin) = (first.payload, 1, first.fin);
    while !fin {
        let next = client.read_frame();
        assert_eq!(next.opcode, CONTINUATION, "and goes on");
        assert!(next.payload.len() <= FRAGMENT);
        payload.extend(next.payload);
        frames += 1;
        fin = next.fin;
    }
    (first.opcode, payload, frames)
}
