//! A tunnel through an HTTP proxy: CONNECT (RFC 9110 section 9.3.6).

use std::fmt::Write as _;
use std::io;

use ::http::{StatusCode, Uri};
use data_encoding::BASE64;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use smol::net::TcpStream;

use super::super::error::ConnectError;
use super::super::target::{Target, host_and_port, wrong};
use super::Problem;

/// The head of the answer may have as many bytes as a server's.
const HEAD_BYTES: usize = 8 * 1024;

/// How many answers may announce another one.
const ANNOUNCED: usize = 8;

/// The length of a head that is whole, and its status.
fn parse(head: &[u8]) -> Result<Option<(usize, Option<StatusCode>)>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut headers);
    Ok(match parsed.parse(head)? {
        httparse::Status::Complete(length) => {
            Some((length, parsed.code.and_then(|code| StatusCode::from_u16(code).ok())))
        }
        httparse::Status::Partial => None,
    })
}

pub(in crate::client) struct Proxy {
    pub(super) host: String,
    pub(super) port: u16,
    /// Its host and port, for errors.
    shown: String,
    /// The value of `Proxy-Authorization`.
    authorization: Option<String>,
}

impl Proxy {
    /// `http://[user:password@]host:port`.
    pub(in crate::client) fn parse(url: &str) -> Result<Self, ConnectError> {
        let uri: Uri = url.parse().map_err(|error| wrong(url, &format!("{error}")))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong(
                url,
                "a proxy is given as http://host:port; to one by TLS there is no way",
            ));
        }
        if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
            return Err(wrong(url, "a proxy has no path"));
        }
        let authority = uri.authority().ok_or_else(|| wrong(url, "it has no host"))?;
        let (host, port) = host_and_port(url, authority, 80)?;
        let credentials = authority.as_str().rsplit_once('@').map(|(credentials, _)| credentials);
        let authorization = credentials.map(basic).transpose().map_err(|it| wrong(url, it))?;
        let shown = authority.as_str().rsplit('@').next().unwrap_or_default().to_owned();
        Ok(Self { host, port, shown, authorization })
    }

    /// Asks the proxy for a connection to the server.
    pub(super) async fn tunnel(&self, tcp: &TcpStream, target: &Target) -> Result<(), Problem> {
        let mut tcp = tcp.clone();
        let host = match target.host.contains(':') {
            true => format!("[{}]:{}", target.host, target.port),
            false => format!("{}:{}", target.host, target.port),
        };
        let mut request = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n");
        if let Some(authorization) = &self.authorization {
            let _ = write!(request, "Proxy-Authorization: {authorization}\r\n");
        }
        request.push_str("\r\n");
        tcp.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        let mut chunk = [0; 1024];
        let mut announced = 0;
        loop {
            let (length, status) = match parse(&head) {
                Ok(Some(found)) => found,
                Ok(None) if head.len() < HEAD_BYTES => {
                    let read = tcp.read(&mut chunk).await?;
                    if read == 0 {
                        return Err(Problem::Ended(io::ErrorKind::UnexpectedEof.into()));
                    }
                    head.extend_from_slice(&chunk[..read]);
                    continue;
                }
                Ok(None) => {
                    let problem =
                        format!("the head of its answer has more than {HEAD_BYTES} bytes");
                    return Err(self.problem(None, &problem));
                }
                Err(error) => {
                    return Err(self.problem(None, &format!("its answer is no HTTP: {error}")));
                }
            };
            // 100 and its like announce another answer (RFC 9110 section 15.2).
            if status.is_some_and(|status| status.is_informational()) && announced < ANNOUNCED {
                announced += 1;
                head.drain(..length);
                continue;
            }
            // The server behind it says nothing of its own accord, so that nothing can follow the head.
            return self.answered(status, length < head.len());
        }
    }

    fn answered(&self, status: Option<StatusCode>, more: bool) -> Result<(), Problem> {
        let problem = match status.map_or(0, |status| status.as_u16()) {
            200..=299 if !more => return Ok(()),
            200..=299 => "something follows its answer, which nobody has asked for",
            407 => "it wants credentials: give them in its URL, http://user:password@host:port",
            403 | 405 => "it does not let anybody connect there",
            502..=504 => "it cannot reach the server",
            _ => "it does not connect",
        };
        Err(self.problem(status, problem))
    }

    fn problem(&self, status: Option<StatusCode>, problem: &str) -> Problem {
        let (proxy, problem) = (self.shown.clone(), problem.to_owned());
        Problem::Refused(ConnectError::Proxy { proxy, status, problem })
    }
}

/// `user:password` of a URL as the value of a header (RFC 7617).
pub(in crate::client) fn basic(credentials: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::new();
    let mut rest = credentials.as_bytes();
    while let Some((&byte, more)) = rest.split_first() {
        rest = more;
        if byte == b'%' {
            let hex = rest.get(..2).filter(|it| it.iter().all(u8::is_ascii_hexdigit));
            let hex = hex.and_then(|it| std::str::from_utf8(it).ok());
            let hex = hex.and_then(|it| u8::from_str_radix(it, 16).ok());
            bytes.push(
                hex.ok_or("its credentials have a % without two hexadecimal digits behind it")?,
            );
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    if !bytes.contains(&b':') {
        bytes.push(b':');
    }
    Ok(format!("Basic {}", BASE64.encode(&bytes)))
}
