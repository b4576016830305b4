//! One message for many sessions.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::config::{MAX_WINDOW_BITS, MIN_WINDOW_BITS};
use crate::message::{Message, Outgoing};
use crate::protocol::Protocol;
use crate::ws::{Agreement, Header, Opcode, deflate_alone};

/// Windows of a compressor, each of which gives another message.
const WINDOWS: usize = (MAX_WINDOW_BITS - MIN_WINDOW_BITS) as usize + 1;

/// A message that is sent to many sessions: its frame is made once (and once for those of length-prefixed
/// [frames](crate::docs::frames)), and compressed once for each size of window that they have agreed on.
///
/// A session whose messages refer to earlier ones
/// ([`DeflateMode::Dedicated`](crate::config::DeflateMode)) cannot share: it compresses the message for
/// itself. Compressing happens on the thread that sends it first, with the level of that session's
/// server. Cheap to clone; the copies share what has been made.
#[derive(Clone)]
pub struct Prepared(Arc<Inner>);

struct Inner {
    message: Message,
    compress: bool,
    plain: OnceLock<Bytes>,
    /// `None` inside: compressed it would be no smaller.
    deflated: [OnceLock<Option<Bytes>>; WINDOWS],
    /// Of the protocol of length-prefixed frames.
    prefixed: OnceLock<Bytes>,
}

impl Prepared {
    /// Prepares a message, or one that is to be sent as it is
    /// ([`Message::uncompressed`](crate::Message::uncompressed)). What is not asked for is not made.
    pub fn new(message: impl Into<Outgoing>) -> Self {
        let Outgoing { message, compress } = message.into();
        let (plain, deflated, prefixed) = Default::default();
        Self(Arc::new(Inner { message, compress, plain, deflated, prefixed }))
    }

    /// The message itself.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.0.message
    }

    /// Whether it may be compressed.
    pub(crate) fn compress(&self) -> bool {
        self.0.compress
    }

    fn opcode(&self) -> Opcode {
        match self.0.message {
            Message::Text(_) => Opcode::Text,
            Message::Binary(_) => Opcode::Binary,
        }
    }

    /// The frame as it is sent without compression.
    pub(crate) fn plain(&self) -> &Bytes {
        self.0.plain.get_or_init(|| self.frame(Protocol::WebSocket))
    }

    /// The frame for sessions of length-prefixed frames.
    pub(crate) fn prefixed(&self) -> &Bytes {
        self.0.prefixed.get_or_init(|| self.frame(Protocol::Frames))
    }

    fn frame(&self, protocol: Protocol) -> Bytes {
        let payload = self.0.message.as_bytes();
        let mut frame = Vec::with_capacity(payload.len() + Header::MAX);
        Header::of(protocol, self.opcode(), payload.len()).append_to(&mut frame);
        frame.extend_from_slice(payload);
        frame.into()
    }

    /// The frame for a session with this agreement; `None` if that session must make its own.
    pub(crate) fn deflated(&self, agreement: Agreement, level: u8) -> Option<&Bytes> {
        let window_bits = agreement.window_of_one_message()?;
        let at = usize::from(window_bits.saturating_sub(MIN_WINDOW_BITS)).min(WINDOWS - 1);
        let frame = self.0.deflated[at].get_or_init(|| {
            let mut compressed = Vec::new();
            if !deflate_alone(self.0.message.as_bytes(), &mut compressed, window_bits, level) {
                return None;
            }
            let mut frame = Vec::with_capacity(compressed.len() + Header::MAX);
            Header::new(self.opcode(), compressed.len()).compressed().append_to(&mut frame);
            frame.extend_from_slice(&compressed);
            Some(frame.into())
        });
        Some(frame.as_ref().unwrap_or_else(|| self.plain()))
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Prepared").field(&self.0.message).finish()
    }
}

#[cfg(all(test, feature = "deflate"))]
mod tests {
    use super::*;

    const SHARED: Agreement = Agreement::SHARED;

    #[test]
    fn a_frame_is_made_once_for_each_window() {
        let prepared = Prepared::new("again and again ".repeat(100));
        let copy = prepared.clone();
        let small = Agreement { server_window_bits: 9, ..SHARED };
        let frame = prepared.deflated(SHARED, 6).unwrap();
        assert_eq!(frame.as_ptr(), copy.deflated(SHARED, 6).unwrap().as_ptr());
        assert_ne!(frame.as_ptr(), copy.deflated(small, 6).unwrap().as_ptr());
        assert_eq!(frame[0], 0xC1);
        assert!(frame.len() < 100);
        assert_eq!(prepared.plain().as_ptr(), copy.plain().as_ptr());
        assert_eq!(&prepared.plain()[..4], [0x81, 126, 0x06, 0x40]);
    }

    #[test]
    fn who_has_a_window_of_its_own_cannot_share_and_noise_is_not_compressed() {
        let own = Agreement { server_takeover: true, ..SHARED };
        let noise = Prepared::new(b"\x9f\x03\xb7\x41\xee".to_vec());
        assert!(noise.deflated(own, 6).is_none());
        assert_eq!(noise.deflated(SHARED, 6).unwrap().as_ptr(), noise.plain().as_ptr());
    }
}
