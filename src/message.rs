//! Plain values: a message, its text, a close code.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use async_tungstenite::tungstenite::Utf8Bytes;
use bytes::Bytes;

/// One whole message of the application.
///
/// Cloning is cheap: the payload is shared, not copied.
#[derive(Clone, PartialEq, Eq)]
pub enum Message {
    /// UTF-8 text (RFC 6455 section 5.6).
    Text(Text),
    /// Any bytes.
    Binary(Bytes),
}

impl Message {
    /// Bytes of payload.
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether the payload is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The payload, whichever kind it is.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_str().as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// The text, if this is a text message.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Binary(_) => None,
        }
    }

    /// Sends it as it is, also where compression was agreed on: for what is compressed already, or
    /// secret (see [`Deflate`](crate::config::Deflate)).
    #[must_use]
    pub fn uncompressed(self) -> Outgoing {
        Outgoing { message: self, compress: false }
    }

    /// The payload as shared bytes, whichever kind it is.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Text(text) => text.into_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}

/// What a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// UTF-8 text.
    Text,
    /// Any bytes.
    Binary,
}

/// A message and how it is to be sent; any [`Message`] is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    pub(crate) message: Message,
    pub(crate) compress: bool,
}

impl<M: Into<Message>> From<M> for Outgoing {
    fn from(message: M) -> Self {
        Self { message: message.into(), compress: true }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 64;
        match self {
            Self::Text(text) => {
                let shown: String = text.chars().take(SHOWN).collect();
                let more = if shown.len() < text.len() { ".." } else { "" };
                write!(f, "Text({} bytes, {shown:?}{more})", text.len())
            }
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<Text> for Message {
    fn from(text: Text) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Binary(bytes.into())
    }
}

impl From<&[u8]> for Message {
    fn from(bytes: &[u8]) -> Self {
        Self::Binary(Bytes::copy_from_slice(bytes))
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Self::Binary(bytes)
    }
}

/// A string that is cheap to clone; it dereferences to [`str`].
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text(Utf8Bytes);

impl Text {
    #[cfg(feature = "client")]
    pub(crate) fn from_utf8_bytes(text: Utf8Bytes) -> Self {
        Self(text)
    }

    #[cfg(feature = "client")]
    pub(crate) fn into_utf8_bytes(self) -> Utf8Bytes {
        self.0
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The same bytes, shared.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0.into()
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

/// As the string that it is, so that a map with these keys can be asked with a `&str`.
impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Borrow<str> for Text {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// A close code (RFC 6455 section 7.4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloseCode(pub(crate) u16);

impl CloseCode {
    /// 1000: the purpose of the connection is fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// 1001: the server stops, or the peer has not been heard of.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: the peer broke the protocol.
    pub const PROTOCOL: Self = Self(1002);
    /// 1003: a kind of data that this application does not take.
    pub const UNSUPPORTED: Self = Self(1003);
    /// 1007: text that is not UTF-8, or a payload that cannot be what it says it is.
    pub const INVALID_DATA: Self = Self(1007);
    /// 1008: against this application's policy.
    pub const POLICY: Self = Self(1008);
    /// 1009: larger than the limit.
    pub const TOO_BIG: Self = Self(1009);
    /// 1011: the application failed.
    pub const INTERNAL: Self = Self(1011);
    /// 1012: the server restarts; come back soon.
    pub const RESTART: Self = Self(1012);
    /// 1013: overloaded; come back later.
    pub const TRY_AGAIN_LATER: Self = Self(1013);

    /// A code that may be sent: 1000–1003, 1007–1014, 3000–4999 (RFC 6455 section 7.4.1 and 7.4.2,
    /// IANA's registry for 1012–1014).
    ///
    /// Returns `None` for every other number: they are reserved and must not appear in a frame.
    #[must_use]
    pub const fn new(code: u16) -> Option<Self> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(code)),
            _ => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn as_u16(self) -> u16 {
        self.0
    }

    /// Its name where codes are counted: the peer chooses among thousands, and those that mean nothing to
    /// this crate have one name together.
    pub(crate) fn label(self) -> &'static str {
        match self.0 {
            1000 => "1000",
            1001 => "1001",
            1002 => "1002",
            1003 => "1003",
            1007 => "1007",
            1008 => "1008",
            1009 => "1009",
            1010 => "1010",
            1011 => "1011",
            1012 => "1012",
            1013 => "1013",
            1014 => "1014",
            _ => "other",
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_close_codes_cannot_be_made() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
            assert_eq!(CloseCode::new(code), None, "{code}");
        }
        for code in [1000, 1003, 1007, 1011, 1012, 1014, 3000, 4999] {
            assert_eq!(CloseCode::new(code).map(CloseCode::as_u16), Some(code));
        }
    }

    #[test]
    fn debug_of_a_long_text_is_short() {
        let message = Message::from("ä".repeat(100_000));
        assert!(format!("{message:?}").len() < 400);
    }
}
