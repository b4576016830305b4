//! The request for a WebSocket and what is made of its answer (RFC 6455 section 4.1).

use std::io;

use ::http::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_PROTOCOL, TRANSFER_ENCODING, UPGRADE,
};
use ::http::{HeaderMap, StatusCode};
use async_tungstenite::tungstenite::handshake::client::generate_key;
use async_tungstenite::tungstenite::handshake::derive_accept_key;
use futures_lite::{AsyncReadExt, AsyncWriteExt};

use super::super::error::{ConnectError, Rejected};
use super::super::stream::Stream;
use super::super::target::Target;
use super::Problem;

/// The head of the answer, and how many headers it may have.
const HEAD_BYTES: usize = 16 * 1024;
const HEADERS: usize = 100;

/// How many answers may announce another one.
const ANNOUNCED: usize = 8;

/// What is kept of the body of an answer that is not 101.
const BODY_BYTES: usize = 1024;

/// What there is to know of a 101.
pub(super) struct Head {
    pub(super) headers: HeaderMap,
    pub(super) subprotocol: Option<String>,
}

fn protocol(problem: impl Into<String>) -> Problem {
    Problem::Refused(ConnectError::Protocol { problem: problem.into() })
}

/// Asks for a WebSocket. With it comes what the server has sent behind its answer.
pub(super) async fn upgrade(
    stream: &mut Stream,
    target: &Target,
    headers: &HeaderMap,
    subprotocols: &[String],
) -> Result<(Head, Vec<u8>), Problem> {
    let key = generate_key();
    let request = request(target, &key, headers, subprotocols);
    let asked = async {
        stream.write_all(&request).await?;
        stream.flush().await
    };
    // A server that has had enough answers and hangs up before it has read all of it: its answer says more.
    let mut unasked = asked.await.err();
    let mut read = Vec::new();
    let mut chunk = [0; 2048];
    let mut announced = 0;
    loop {
        let mut lines = [httparse::EMPTY_HEADER; HEADERS];
        let mut parsed = httparse::Response::new(&mut lines);
        let length = match parsed.parse(&read) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if read.len() < HEAD_BYTES => {
                let more = match stream.read(&mut chunk).await {
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    more => more,
                };
                // Only TLS has more to say than what was said of the writing.
                let first = |error: io::Error| match unasked.take() {
                    Some(first) if error.get_ref().is_none() => first,
                    _ => error,
                };
                let more = more.map_err(first)?;
                read.extend_from_slice(&chunk[..more]);
                continue;
            }
            Ok(httparse::Status::Partial) => {
                return Err(protocol(format!("its head has more than {HEAD_BYTES} bytes")));
            }
            // A record with an alert (RFC 8446 section 5.1).
            Err(_) if read.starts_with(&[21, 3]) => {
                return Err(protocol("it is TLS and no HTTP: is it wss:// there?"));
            }
            Err(error) => return Err(protocol(format!("it is no HTTP: {error}"))),
        };
        let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
        let Some(status) = status else {
            return Err(protocol("its status is none"));
        };
        let mut headers = HeaderMap::new();
        for line in parsed.headers.iter() {
            let name = HeaderName::from_bytes(line.name.as_bytes());
            let value = HeaderValue::from_bytes(line.value);
            let (Ok(name), Ok(value)) = (name, value) else {
                return Err(protocol(format!("its header {:?} is none", line.name)));
            };
            headers.append(name, value);
        }
        // 100 and 103 announce another answer.
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            read.drain(..length);
            announced += 1;
            if announced > ANNOUNCED {
                return Err(protocol("it announces other answers without an end"));
            }
            continue;
        }
        let rest = read.split_off(length);
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let chunked = headers
                .get(TRANSFER_ENCODING)
                .is_some_and(|coding| coding.as_bytes().to_ascii_lowercase().ends_with(b"chunked"));
            let mut body = if chunked { unchunked(&rest) } else { rest };
            body.truncate(BODY_BYTES);
            return Err(
                ConnectError::Handshake(Box::new(Rejected { status, headers, body })).into()
            );
        }
        let subprotocol = check(&headers, &key, subprotocols)?;
        return Ok((Head { headers, subprotocol }, rest));
    }
}

/// What has come of a body, without the sizes of its chunks (RFC 9112 section 7.1).
fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(rest) {
        let chunk = &rest[line..];
        let (chunk, more) =
            chunk.split_at(chunk.len().min(usize::try_from(size).unwrap_or(usize::MAX)));
        let Some(more) = more.strip_prefix(b"\r\n").filter(|_| size > 0) else {
            body.extend_from_slice(chunk);
            break;
        };
        body.extend_from_slice(chunk);
        rest = more;
    }
    body
}

fn request(target: &Target, key: &str, headers: &HeaderMap, subprotocols: &[String]) -> Vec<u8> {
    let mut request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n",
        target.path, target.authority
    )
    .into_bytes();
    if !subprotocols.is_empty() {
        let line = format!("Sec-WebSocket-Protocol: {}\r\n", subprotocols.join(", "));
        request.extend_from_slice(line.as_bytes());
    }
    for (name, value) in headers {
        request.extend_from_slice(name.as_str().as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    request
}

/// Items 2 to 6 of the list in RFC 6455 section 4.1; returns the subprotocol.
fn check(
    headers: &HeaderMap,
    key: &str,
    subprotocols: &[String],
) -> Result<Option<String>, Problem> {
    let has = |name: HeaderName, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case(wanted))
    };
    if !has(UPGRADE, "websocket") {
        return Err(protocol("it has no `Upgrade: websocket`"));
    }
    if !has(CONNECTION, "upgrade") {
        return Err(protocol("it has no `Connection: Upgrade`"));
    }
    let accepted = headers.get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
    if accepted != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(protocol(
            "its `Sec-WebSocket-Accept` does not belong to the request; does a cache answer?",
        ));
    }
    if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        return Err(protocol("it agrees on an extension, and none was offered"));
    }
    let mut chosen = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    match (chosen.next(), chosen.next()) {
        (None, _) => Ok(None),
        (Some(chosen), None) if subprotocols.iter().any(|it| chosen == it.as_str()) => {
            Ok(chosen.to_str().ok().map(str::to_owned))
        }
        (Some(chosen), None) if subprotocols.is_empty() => {
            Err(protocol(format!("it chooses the subprotocol {chosen:?}, and none was offered")))
        }
        (Some(chosen), None) => Err(protocol(format!(
            "it chooses the subprotocol {chosen:?}, and offered were {subprotocols:?}"
        ))),
        (Some(_), Some(_)) => Err(protocol("it chooses more than one subprotocol")),
    }
}
