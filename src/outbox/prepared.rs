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

/// What messages look like on their way to a session; sessions of one shape can share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Plain,
    /// Of the protocol of length-prefixed frames.
    Prefixed,
    /// Those from so many bytes on are compressed, each for itself, for a window of this size.
    Deflated {
        window_bits: u8,
        threshold: usize,
        level: u8,
    },
    /// The same, but they refer to earlier ones of the same session.
    Own {
        threshold: usize,
    },
}

impl Shape {
    pub(crate) const COUNT: usize = WINDOWS + 3;

    pub(crate) fn new(agreement: Agreement, threshold: usize, level: u8) -> Self {
        match agreement.window_of_one_message() {
            Some(window_bits) => Self::Deflated { window_bits, threshold, level },
            None => Self::Own { threshold },
        }
    }

    /// Its place among all.
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Own { .. } => 1,
            Self::Prefixed => 2,
            Self::Deflated { window_bits, .. } => 3 + window_index(window_bits),
        }
    }
}

fn window_index(window_bits: u8) -> usize {
    usize::from(window_bits.saturating_sub(MIN_WINDOW_BITS)).min(WINDOWS - 1)
}

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

    fn opcode(&self) -> Opcode {
        match self.0.message {
            Message::Text(_) => Opcode::Text,
            Message::Binary(_) => Opcode::Binary,
        }
    }

    /// The frame as it is sent without compression.
    fn plain(&self) -> &Bytes {
        self.0.plain.get_or_init(|| self.encode(Protocol::WebSocket))
    }

    /// The frame for sessions of length-prefixed frames; `None` if no frame can be so long.
    fn prefixed(&self) -> Option<&Bytes> {
        Header::fits(Protocol::Frames, self.message().len())
            .then(|| self.0.prefixed.get_or_init(|| self.encode(Protocol::Frames)))
    }

    fn encode(&self, protocol: Protocol) -> Bytes {
        let payload = self.0.message.as_bytes();
        let mut frame = Vec::with_capacity(payload.len() + Header::MAX);
        Header::of(protocol, self.opcode(), payload.len()).append_to(&mut frame);
        frame.extend_from_slice(payload);
        frame.into()
    }

    /// The frame in this shape; `None` if the session must make its own.
    pub(crate) fn frame(&self, shape: Shape) -> Option<&Bytes> {
        let compress = |threshold| self.0.compress && self.message().len() >= threshold;
        match shape {
            Shape::Deflated { window_bits, threshold, level } if compress(threshold) => {
                Some(self.deflated(window_bits, level))
            }
            Shape::Own { threshold } if compress(threshold) => None,
            Shape::Prefixed => self.prefixed(),
            _ => Some(self.plain()),
        }
    }

    /// The compressed frame, or the plain one if that is no larger.
    fn deflated(&self, window_bits: u8, level: u8) -> &Bytes {
        let frame = self.0.deflated[window_index(window_bits)].get_or_init(|| {
            let mut compressed = Vec::new();
            if !deflate_alone(self.0.message.as_bytes(), &mut compressed, window_bits, level) {
                return None;
            }
            let mut frame = Vec::with_capacity(compressed.len() + Header::MAX);
            Header::new(self.opcode(), compressed.len()).compressed().append_to(&mut frame);
            frame.extend_from_slice(&compressed);
            Some(frame.into())
        });
        frame.as_ref().unwrap_or_else(|| self.plain())
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
        let shape = |server_window_bits, threshold| {
            Shape::new(Agreement { server_window_bits, ..SHARED }, threshold, 6)
        };
        let prepared = Prepared::new("again and again ".repeat(100));
        let copy = prepared.clone();
        let frame = prepared.frame(shape(15, 0)).unwrap();
        assert_eq!(frame.as_ptr(), copy.frame(shape(15, 1600)).unwrap().as_ptr());
        assert_ne!(frame.as_ptr(), copy.frame(shape(9, 0)).unwrap().as_ptr());
        assert_eq!(frame[0], 0xC1);
        assert!(frame.len() < 100);
        let plain = prepared.frame(Shape::Plain).unwrap();
        assert_eq!(plain.as_ptr(), copy.frame(shape(15, 1601)).unwrap().as_ptr());
        assert_eq!(&plain[..4], [0x81, 126, 0x06, 0x40]);
        let places: Vec<_> = (9..=15).map(|bits| shape(bits, 0).index()).collect();
        assert_eq!(places, (3..Shape::COUNT).collect::<Vec<_>>());
    }

    #[test]
    fn who_has_a_window_of_its_own_cannot_share_and_noise_is_not_compressed() {
        let own = Shape::new(Agreement { server_takeover: true, ..SHARED }, 5, 6);
        let noise = Prepared::new(b"\x9f\x03\xb7\x41\xee".to_vec());
        assert!(noise.frame(own).is_none());
        assert!(Prepared::new("four").frame(own).is_some(), "too short to be compressed");
        let shared = noise.frame(Shape::new(SHARED, 0, 6)).unwrap();
        assert_eq!(shared.as_ptr(), noise.frame(Shape::Plain).unwrap().as_ptr());
    }
}
