//! An HTTP client that keeps its connection, and reads answers strictly.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::io::Read;

use super::support::{Raw, TestServer, handshake};

pub fn request(method: &str, target: &str, more: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n")
}

pub fn get(target: &str) -> String {
    request("GET", target, "")
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The only value of a header.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter().filter(|header| header.0 == name);
        let first = all.next();
        assert!(all.next().is_none(), "{name} once: {self:?}");
        first.map(|header| &*header.1)
    }

    #[track_caller]
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("text")
    }
}

pub struct Client(Raw);

impl Client {
    pub fn of(server: &TestServer) -> Self {
        Self(server.raw())
    }

    pub fn new(raw: Raw) -> Self {
        Self(raw)
    }

    pub fn raw(&mut self) -> &mut Raw {
        &mut self.0
    }

    pub fn into_raw(self) -> Raw {
        self.0
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.send(bytes.as_ref());
    }

    /// The next answer, and not a byte more.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        let mut answer = self.head_answer();
        let bodiless = matches!(answer.status, 100..=199 | 204 | 304);
        let chunked = answer.header("transfer-encoding").map(str::to_owned);
        let length = answer.header("content-length").map(str::to_owned);
        match (chunked.as_deref(), length) {
            (None, None) => assert!(bodiless, "its body has no end: {answer:?}"),
            (Some("chunked"), None) => answer.body = self.chunks(),
            (None, Some(length)) => {
                assert!(length.bytes().all(|byte| byte.is_ascii_digit()), "{answer:?}");
                if !bodiless {
                    answer.body = self.exactly(length.parse().expect("a length"));
                }
            }
            other => panic!("{other:?}"),
        }
        answer
    }

    /// The same for an answer to a HEAD, which has no body.
    #[track_caller]
    pub fn head_answer(&mut self) -> Answer {
        let head = self.0.read_head();
        let mut lines = head.trim_end().split("\r\n");
        let line = lines.next().unwrap().strip_prefix("HTTP/1.1 ").expect("HTTP/1.1");
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").expect("a name and a value");
            (name.to_ascii_lowercase(), value.to_owned())
        });
        let status = line.get(..3).unwrap().parse().expect("a status");
        Answer { status, headers: headers.collect(), body: Vec::new() }
    }

    /// One chunk; the empty one is the last.
    #[track_caller]
    pub fn chunk(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.extend(self.exactly(1));
        }
        let size = std::str::from_utf8(&line).unwrap().trim_end();
        let size = usize::from_str_radix(size, 16).expect("a size");
        let chunk = self.exactly(size);
        assert_eq!(self.exactly(2), b"\r\n");
        chunk
    }

    #[track_caller]
    fn chunks(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.chunk() {
                last if last.is_empty() => return all,
                chunk => all.extend(chunk),
            }
        }
    }

    #[track_caller]
    pub fn exactly(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.stream.read_exact(&mut bytes).expect("a whole body");
        bytes
    }

    /// Nothing more comes.
    #[track_caller]
    pub fn expect_end(&mut self) {
        assert_eq!(String::from_utf8_lossy(&self.0.read_to_end()), "");
    }

    /// Asks for the home page and has it.
    #[track_caller]
    pub fn ping(&mut self) {
        self.send(get("/"));
        assert_eq!(self.answer().text(), "home");
    }

    /// Becomes a WebSocket.
    #[track_caller]
    pub fn upgrade(mut self) -> Raw {
        self.send(handshake("/"));
        assert_eq!(self.head_answer().status, 101);
        self.0
    }
}
