//! Clients without WebSocket, as blocking programs: requests one after the other on one connection, long
//! polls, event streams.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::support::PATIENCE;

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.0 == name).map(|header| &*header.1)
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    #[track_caller]
    pub fn expect(&self, status: u16) -> &Self {
        let body = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{:?} {body}", self.headers);
        self
    }

    /// The messages of a poll's answer; texts as they are, objects as JSON.
    #[track_caller]
    pub fn messages(&self) -> Vec<Value> {
        self.expect(200);
        let Value::Array(messages) = self.json() else { panic!("an array") };
        messages
    }

    #[track_caller]
    pub fn texts(&self) -> Vec<String> {
        let text = |value: Value| value.as_str().expect("a text").to_owned();
        self.messages().into_iter().map(text).collect()
    }

    pub fn cursor(&self) -> u64 {
        self.header("coracle-cursor").expect("a cursor").parse().expect("a number")
    }

    pub fn token(&self) -> String {
        self.header("coracle-session").expect("a token").to_owned()
    }

    /// The sentence of an error.
    #[track_caller]
    pub fn error(&self, status: u16) -> String {
        self.expect(status);
        self.json()["error"].as_str().expect("a sentence").to_owned()
    }
}

/// A connection for requests.
pub struct Http {
    pub stream: BufReader<TcpStream>,
}

impl Http {
    pub fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub fn write(&mut self, method: &str, target: &str, more: &str, body: &[u8]) -> io::Result<()> {
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{more}");
        if method == "POST" {
            let _ = write!(request, "Content-Length: {}\r\n", body.len());
        }
        request.push_str("\r\n");
        let mut request = request.into_bytes();
        request.extend_from_slice(body);
        self.stream.get_mut().write_all(&request)
    }

    pub fn try_ask(
        &mut self,
        method: &str,
        target: &str,
        more: &str,
        body: &[u8],
    ) -> io::Result<Answer> {
        self.write(method, target, more, body)?;
        self.read_answer()
    }

    #[track_caller]
    pub fn get(&mut self, target: &str) -> Answer {
        self.try_ask("GET", target, "", b"").expect("an answer")
    }

    #[track_caller]
    pub fn post(&mut self, target: &str, media: &str, body: impl AsRef<[u8]>) -> Answer {
        let more = format!("Content-Type: {media}\r\n");
        self.try_ask("POST", target, &more, body.as_ref()).expect("an answer")
    }

    pub fn read_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Status and headers.
    pub fn read_head(&mut self) -> io::Result<Answer> {
        let line = self.read_line()?;
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|line| line.get(..3)?.parse().ok());
        let status = status.ok_or(ErrorKind::InvalidData)?;
        let mut headers = Vec::new();
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                return Ok(Answer { status, headers, body: Vec::new() });
            }
            let (name, value) = line.split_once(": ").ok_or(ErrorKind::InvalidData)?;
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
    }

    /// A whole answer, or an error: one that is cut off is none.
    pub fn read_answer(&mut self) -> io::Result<Answer> {
        let mut answer = self.read_head()?;
        if let Some(length) = answer.header("content-length") {
            let length = length.parse().map_err(|_| ErrorKind::InvalidData)?;
            answer.body = vec![0; length];
            self.stream.read_exact(&mut answer.body)?;
        } else if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.read_chunk()? {
                answer.body.extend(chunk);
            }
        }
        Ok(answer)
    }

    /// The next chunk of a body; `None` at its end.
    pub fn read_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.read_line()?;
        let length = usize::from_str_radix(&line, 16).map_err(|_| ErrorKind::InvalidData)?;
        let mut chunk = vec![0; length + 2];
        self.stream.read_exact(&mut chunk)?;
        assert!(chunk.ends_with(b"\r\n"));
        chunk.truncate(length);
        Ok((length > 0).then_some(chunk))
    }
}

/// One client's session, polled.
pub struct Polling {
    pub http: Http,
    pub base: String,
    pub token: String,
    pub cursor: u64,
}

impl Polling {
    /// Opens a session.
    #[track_caller]
    pub fn open(addr: SocketAddr) -> Self {
        Self::open_at(addr, "/ws", "")
    }

    #[track_caller]
    pub fn open_at(addr: SocketAddr, base: &str, query: &str) -> Self {
        let mut http = Http::connect(addr).expect("a connection");
        let answer = http.get(&format!("{base}/poll?{query}"));
        answer.expect(200);
        let token = answer.token();
        assert_eq!(answer.cursor(), answer.messages().len() as u64);
        Self { http, base: base.to_owned(), token, cursor: 0 }
    }

    pub fn target(&self, what: &str, more: &str) -> String {
        format!("{}/{what}?session_id={}{more}", self.base, self.token)
    }

    /// Polls once with the client's cursor, and goes on behind what has come.
    #[track_caller]
    pub fn poll(&mut self) -> Answer {
        let target = self.target("poll", &format!("&cursor={}", self.cursor));
        let answer = self.http.get(&target);
        if answer.status == 200 {
            self.cursor = answer.cursor();
        }
        answer
    }

    /// Polls until there are so many texts.
    #[track_caller]
    pub fn texts(&mut self, count: usize) -> Vec<String> {
        let mut texts = Vec::new();
        while texts.len() < count {
            texts.extend(self.poll().texts());
        }
        texts
    }

    #[track_caller]
    pub fn send(&mut self, text: &str) {
        let target = self.target("send", "");
        self.http.post(&target, "text/plain", text).expect(202);
    }

    /// Polls until the session is said to be closed.
    #[track_caller]
    pub fn closed(&mut self) -> String {
        loop {
            if let Some(close) = self.poll().expect(200).header("coracle-close") {
                return close.to_owned();
            }
        }
    }
}

/// One event of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    pub kind: String,
    pub data: String,
    pub id: Option<String>,
}

/// A stream of events, read as a browser does (WHATWG HTML, section 9.2.6).
pub struct Events {
    http: Http,
    waiting: Vec<u8>,
    pub comments: usize,
}

impl Events {
    /// Asks for a stream.
    pub fn open(addr: SocketAddr, target: &str, last_id: Option<&str>) -> io::Result<Self> {
        let mut http = Http::connect(addr)?;
        let more = last_id.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        http.write("GET", target, &more, b"")?;
        let head = http.read_head()?;
        if head.status != 200 {
            return Err(io::Error::other(format!("{head:?}")));
        }
        assert_eq!(head.header("content-type"), Some("text/event-stream"));
        Ok(Self { http, waiting: Vec::new(), comments: 0 })
    }

    /// The next event; `None` at the end of the stream. An event that is cut off is none.
    pub fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            let mut event = Event::default();
            let (mut data, mut any) = (Vec::new(), false);
            while let Some(line) = self.line()? {
                if line.is_empty() {
                    if any {
                        event.data = data.join("\n");
                        return Ok(Some(event));
                    }
                    break;
                }
                let (field, value) = line.split_once(": ").unwrap_or((&line, ""));
                match field {
                    "event" => event.kind = value.to_owned(),
                    "data" => data.push(value.to_owned()),
                    "id" => event.id = Some(value.to_owned()),
                    ":" => self.comments += 1,
                    "retry" => {}
                    _ => panic!("no such field: {line:?}"),
                }
                any |= field == "data" || field == "event";
            }
            if self.waiting.is_empty() && !any {
                // A comment, or the end.
                match self.http.read_chunk()? {
                    Some(chunk) => self.waiting.extend(chunk),
                    None => return Ok(None),
                }
            }
        }
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(at) = self.waiting.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.waiting.drain(..=at).take(at).collect();
                return String::from_utf8(line).map(Some).map_err(io::Error::other);
            }
            if self.waiting.is_empty() {
                return Ok(None);
            }
            match self.http.read_chunk()? {
                Some(chunk) => self.waiting.extend(chunk),
                None => return Err(ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}
