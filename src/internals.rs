//! What the fuzz targets (`fuzz/`) and the benches of the parts (`benches/`) see of the inside: bytes
//! in, plain values out.
//!
//! No part of the API: it changes with what is behind it.
#![allow(missing_debug_implementations, reason = "nobody prints a decoder")]
#![allow(missing_docs, reason = "what each does is said where it is done")]

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

use crate::config::Config;
use crate::http::chunked::{Chunked, Step};
use crate::http::head::HeadScanner;
use crate::http::refusal::Refusal;
use crate::http::{Request, Upgrade, extensions, forwarded, response, upgrade};
use crate::message::{Kind, Message};
use crate::transport::{Peer, proxy};
use crate::ws::{self, Bounds, Codec, Contexts};

/// What both sides agreed on about permessage-deflate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    pub server_takeover: bool,
    pub client_takeover: bool,
    pub server_window_bits: u8,
    pub client_window_bits: u8,
}

impl Agreement {
    /// The server's half as if it were the client's, and the other way round: what our compressor
    /// writes can then be read with our decoder.
    #[must_use]
    pub fn mirrored(self) -> Self {
        Self {
            server_takeover: self.client_takeover,
            client_takeover: self.server_takeover,
            server_window_bits: self.client_window_bits,
            client_window_bits: self.server_window_bits,
        }
    }

    fn inside(self) -> ws::Agreement {
        let Self { server_takeover, client_takeover, server_window_bits, client_window_bits } =
            self;
        ws::Agreement { server_takeover, client_takeover, server_window_bits, client_window_bits }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Message(Message),
    Part { first: Option<Kind>, bytes: Bytes, last: bool },
    Ping(Bytes),
    Pong(Bytes),
    Close(Option<(u16, String)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    pub code: u16,
    pub reason: &'static str,
}

/// The receiving half of one session.
pub struct Decoder {
    codec: Codec,
    bounds: Bounds,
    contexts: Option<Box<Contexts>>,
}

impl Decoder {
    #[must_use]
    pub fn new(message_bytes: usize, fragments: u32, deflate: Option<Agreement>) -> Self {
        let deflate = deflate.map(Agreement::inside);
        let bounds = Bounds { message_bytes, fragments, deflate, streamed: false };
        Self { codec: Codec::default(), bounds, contexts: None }
    }

    /// It reads length-prefixed frames.
    #[must_use]
    pub fn prefixed(mut self) -> Self {
        self.codec = Codec::prefixed();
        self
    }

    /// It gives messages in parts.
    #[must_use]
    pub fn streamed(mut self) -> Self {
        self.bounds.streamed = true;
        self
    }

    /// As the codec's: the next event, `None` when all of `input` is consumed.
    ///
    /// # Errors
    ///
    /// The session ends with this violation.
    pub fn next(&mut self, input: &mut &mut [u8]) -> Result<Option<Event>, Violation> {
        match self.codec.next(input, &self.bounds, &mut self.contexts) {
            Ok(event) => Ok(event.map(|event| match event {
                ws::Event::Message(message) => Event::Message(message),
                ws::Event::Part(ws::Part { first, bytes, last }) => {
                    Event::Part { first, bytes, last }
                }
                ws::Event::Ping(payload) => Event::Ping(payload),
                ws::Event::Pong(payload) => Event::Pong(payload),
                ws::Event::Close(close) => {
                    Event::Close(close.map(|it| (it.code.as_u16(), it.reason.as_str().to_owned())))
                }
            })),
            Err(it) => Err(Violation { code: it.code.as_u16(), reason: it.reason }),
        }
    }
}

/// The compressor of one session, as the server has it.
pub struct Deflater {
    agreement: Agreement,
    level: u8,
    contexts: Option<Box<Contexts>>,
}

impl Deflater {
    #[must_use]
    pub fn new(agreement: Agreement, level: u8) -> Self {
        Self { agreement, level, contexts: None }
    }

    /// Appends a compressed message. False, and nothing appended, if it is better sent as it is.
    pub fn message(&mut self, payload: &[u8], out: &mut Vec<u8>) -> bool {
        ws::deflate(payload, out, self.agreement.inside(), self.level, &mut self.contexts)
    }
}

/// The decompressor of one session, as the server has it.
pub struct Inflater {
    agreement: Agreement,
    contexts: Option<Box<Contexts>>,
}

impl Inflater {
    #[must_use]
    pub fn new(agreement: Agreement) -> Self {
        Self { agreement, contexts: None }
    }

    /// A message of at most `limit` bytes. `None` if it is longer, or nothing that a compressor writes.
    pub fn message(&mut self, compressed: &[u8], limit: usize) -> Option<Vec<u8>> {
        ws::inflate(compressed, limit, self.agreement.inside(), &mut self.contexts).ok()
    }
}

/// The bytes of the client's header at the beginning of `bytes`, and those of the payload behind it.
/// `None` if it is incomplete or against a rule.
#[inline]
#[must_use]
pub fn parse_header(bytes: &[u8]) -> Option<(usize, u64)> {
    let received = ws::parse(bytes, false).ok()??;
    Some((received.len, received.payload))
}

/// Appends the header of a binary message of so many bytes.
#[inline]
pub fn write_header(payload: usize, out: &mut Vec<u8>) {
    ws::Header::new(ws::Opcode::Binary, payload).append_to(out);
}

/// Unmasks in place.
#[inline]
pub fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    ws::unmask(payload, mask);
}

/// Unmasks into a new vector.
#[inline]
#[must_use]
pub fn unmasked(payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    ws::unmasked(payload, mask)
}

/// The check of a text that is there as a whole.
#[inline]
#[must_use]
pub fn is_utf8(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
}

/// The check of a text that arrives in pieces, which it keeps.
#[derive(Default)]
pub struct Utf8(ws::Utf8);

impl Utf8 {
    /// False if no continuation can make it valid.
    #[inline]
    pub fn push(&mut self, piece: &[u8]) -> bool {
        self.0.push(piece).is_ok()
    }

    /// The whole characters there are.
    #[inline]
    pub fn take(&mut self) -> String {
        self.0.take()
    }
}

/// A request that is not served.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub status: u16,
    pub reason: String,
    /// The whole answer, as a client gets it.
    pub answer: Vec<u8>,
}

impl Refused {
    fn new(refusal: Refusal, head_only: bool) -> Self {
        let (status, reason) = (refusal.status.as_u16(), refusal.reason.to_string());
        let mut answer = Vec::new();
        response::encode(&refusal.into_response(), head_only, &mut answer);
        Self { status, reason, answer }
    }
}

/// Looks for the end of a request head.
#[derive(Default)]
pub struct Scanner(HeadScanner);

impl Scanner {
    /// `bytes` is all that has arrived.
    ///
    /// # Errors
    ///
    /// What has arrived cannot become a head.
    pub fn scan(&mut self, bytes: &[u8], max: usize) -> Result<Option<usize>, Refused> {
        self.0.scan(bytes, max).map_err(|refusal| Refused::new(refusal, false))
    }
}

/// A request that is answered with a 101.
#[derive(Debug, PartialEq, Eq)]
pub struct Accepted {
    pub agreement: Option<Agreement>,
    pub answer: Vec<u8>,
}

/// Everything that the front door does with a head that the scanner has found, for an application
/// that says [`welcome`].
///
/// # Errors
///
/// The request is refused.
pub fn handshake(head: &[u8], config: &Config) -> Result<Accepted, Refused> {
    let request =
        Request::parse(head.to_vec(), Peer::Memory, 64).map_err(|it| Refused::new(it, false))?;
    let head_only = request.method() == "HEAD";
    let checked = || {
        config.origins.check(&request)?;
        let offer = upgrade::check(&request)?;
        let extensions = extensions::negotiate(&request, config)?;
        let mut answer = Vec::new();
        upgrade::accept(&offer, &request, &welcome(&request), &extensions, &mut answer)?;
        Ok((extensions.deflate, answer))
    };
    let (agreement, answer) = checked().map_err(|it| Refused::new(it, head_only))?;
    let agreement = agreement.map(|it| Agreement {
        server_takeover: it.server_takeover,
        client_takeover: it.client_takeover,
        server_window_bits: it.server_window_bits,
        client_window_bits: it.client_window_bits,
    });
    Ok(Accepted { agreement, answer })
}

/// The header of the PROXY protocol that all that has arrived begins with: its length and the client.
/// `None`: there is more to come.
///
/// # Errors
///
/// True if it is malformed, false if there is none.
pub fn proxy_header(bytes: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, bool> {
    match proxy::parse(bytes) {
        Ok(header) => Ok(header.map(|proxy::Header { len, client }| (len, client))),
        Err(invalid) => Err(invalid != proxy::Invalid::Missing),
    }
}

/// Who is the client, by the values of the header that the configuration names.
#[must_use]
pub fn client_ip(nearest: Peer, lines: &[&[u8]], config: &Config) -> Option<IpAddr> {
    forwarded::client_ip(nearest, lines.iter().copied(), &config.proxies)
}

/// An accept hook that takes the first subprotocol there is.
pub fn welcome(request: &Request) -> Upgrade {
    match request.protocols().next() {
        Some(protocol) => Upgrade::new().subprotocol(protocol),
        None => Upgrade::new(),
    }
}

/// What comes of a chunked body that arrives in these pieces: its data, and how many bytes are behind it; `None`
/// if it does not end.
///
/// # Errors
///
/// What is wrong.
pub fn chunked<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
    let mut chunked = Chunked::default();
    let (mut data, mut behind) = (Vec::new(), None);
    for mut piece in pieces {
        if let Some(behind) = &mut behind {
            *behind += piece.len();
        }
        while behind.is_none() {
            match chunked.step(piece)? {
                Step::Data { skip, len } => {
                    data.extend_from_slice(&piece[skip..skip + len]);
                    piece = &piece[skip + len..];
                }
                Step::More { .. } => break,
                Step::End { skip } => behind = Some(piece.len() - skip),
            }
        }
    }
    Ok(behind.map(|behind| (data, behind)))
}
