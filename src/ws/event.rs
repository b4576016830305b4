//! What the receiving half finds.

use bytes::Bytes;

use super::frame::CloseFrame;
use crate::message::{CloseCode, Kind, Message};

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Message(Message),
    /// Only if messages are streamed.
    Part(Part),
    Ping(Bytes),
    Pong(Bytes),
    /// The peer says goodbye; nothing after it is looked at. `None` if it gave no code.
    Close(Option<CloseFrame>),
}

/// A piece of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// It is the first one.
    pub(crate) first: Option<Kind>,
    /// Of a text: whole characters.
    pub(crate) bytes: Bytes,
    pub(crate) last: bool,
}

/// The peer broke the protocol or a bound; the session ends with this code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) code: CloseCode,
    pub(crate) reason: &'static str,
}

impl Violation {
    pub(super) const RESERVED_BIT: Self = Self::protocol("reserved bit set without an extension");
    pub(super) const NOT_UTF8: Self =
        Self { code: CloseCode::INVALID_DATA, reason: "text is not UTF-8" };
    pub(super) const TOO_BIG: Self = Self { code: CloseCode::TOO_BIG, reason: "message too big" };
    pub(super) const FRAGMENTS: Self =
        Self { code: CloseCode::POLICY, reason: "too many fragments" };

    pub(super) const fn protocol(reason: &'static str) -> Self {
        Self { code: CloseCode::PROTOCOL, reason }
    }
}
