//! HTTP answers, read by a client that trusts nothing.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::io::Write;
use std::time::Duration;

use super::support::{PATIENCE, Raw, TestServer, handshake};

/// A whole answer of a connection that the server has ended.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// Parses all that a connection has brought: one answer, and not one byte more.
    #[track_caller]
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).expect("an answer is text");
        let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
        let (line, headers) = head.split_once("\r\n").expect("an answer has headers");
        let status = line.strip_prefix("HTTP/1.1 ").expect("the server speaks HTTP/1.1");
        let headers: Vec<_> = headers
            .split("\r\n")
            .map(|header| {
                assert!(!header.contains(['\r', '\n']), "{header:?}");
                let (name, value) = header.split_once(": ").expect("a name and a value");
                (name.to_ascii_lowercase(), value.to_owned())
            })
            .collect();
        let answer =
            Self { status: status[..3].parse().expect("a status"), headers, body: body.to_owned() };
        assert!(answer.header("connection").is_some_and(|value| value.contains("close")), "{text}");
        answer
    }

    /// The only value of a header.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} once: {self:?}");
        all.first().copied()
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|header| header.0 == name).map(|header| &*header.1).collect()
    }

    /// Has this status, a body of the length that it claims, and says why.
    #[track_caller]
    pub fn expect(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{self:?}");
        let length = self.header("content-length").expect("a length");
        assert_eq!(length, self.body.len().to_string(), "{self:?}");
        assert!(!self.body.is_empty(), "an answer says why: {self:?}");
        self
    }
}

/// Sends one request on a new connection and reads what comes, up to the end.
#[track_caller]
pub fn ask(server: &TestServer, request: impl AsRef<[u8]>) -> Answer {
    let mut raw = server.raw();
    raw.send(request.as_ref());
    read_answer(raw)
}

/// What comes up to the end of the stream; then the client goes away.
#[track_caller]
pub fn read_answer(mut raw: Raw) -> Answer {
    Answer::parse(&raw.read_to_end())
}

/// A client that comes again until the server lets it in; every refusal must be one of `meanwhile`.
#[track_caller]
pub fn let_in(connect: impl Fn() -> Raw, meanwhile: &[u16]) -> Raw {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let mut raw = connect();
        // A server that has turned the connection away does not read it any more.
        let _ = raw.stream.write_all(handshake("/").as_bytes());
        let head = raw.read_head();
        if head.starts_with("HTTP/1.1 101 ") {
            return raw;
        }
        let mut answer = head.into_bytes();
        answer.extend(raw.read_to_end());
        let answer = Answer::parse(&answer);
        assert!(meanwhile.contains(&answer.status), "{answer:?}");
        assert!(std::time::Instant::now() < deadline, "never let in: {answer:?}");
        // Not as fast as a busy loop: each try is a connection that the server has to end.
        std::thread::sleep(Duration::from_millis(2));
    }
}
