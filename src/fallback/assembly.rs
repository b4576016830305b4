//! What a session has written, back in whole messages: the frames of a server (RFC 6455 section 5.2).
//!
//! They come from this crate's own codec, so there is nothing to be refused; but a message that is written
//! in fragments may become longer than anybody wants to keep.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::message::{CloseCode, Message};
use crate::ws::{CloseFrame, MAX_CONTROL_PAYLOAD, Opcode};

/// What has come out of the bytes.
#[derive(Debug)]
pub(super) enum Parcel {
    Message(Message),
    /// The session has said goodbye, and nothing follows. `None`: without a code.
    Close(Option<CloseFrame>),
}

/// A message is longer than may be kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

#[derive(Default)]
pub(super) struct Assembly {
    frame: Option<Frame>,
    /// What the frames of the message bring that is not finished.
    message: Vec<u8>,
    text: bool,
    /// The same of a control frame, which may come in between.
    control: Vec<u8>,
}

/// A frame whose header has been read.
#[derive(Clone, Copy)]
struct Frame {
    opcode: u8,
    last: bool,
    left: usize,
}

impl Frame {
    fn is_control(self) -> bool {
        self.opcode >= Opcode::Close as u8
    }

    /// Takes a header off the front, if it is there whole.
    fn take(bytes: &mut VecDeque<u8>) -> Option<Self> {
        let (first, second) = (*bytes.front()?, *bytes.get(1)?);
        let extended = match second {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if bytes.len() < 2 + extended {
            return None;
        }
        let header = bytes.drain(..2 + extended).skip(2);
        let long = header.fold(0, |length, byte| length << 8 | usize::from(byte));
        let left = if extended == 0 { usize::from(second) } else { long };
        Some(Self { opcode: first & 0x0F, last: first & 0x80 != 0, left })
    }
}

impl Assembly {
    /// Takes bytes off the front until something is whole; `None` if more of it must come first. No message in
    /// several frames that is longer than `most` is kept; one frame has been whole before.
    pub(super) fn next(
        &mut self,
        bytes: &mut VecDeque<u8>,
        most: usize,
    ) -> Result<Option<Parcel>, TooLong> {
        loop {
            let Some(frame) = self.frame.or_else(|| Frame::take(bytes)) else {
                return Ok(None);
            };
            let begins = frame.opcode != Opcode::Continuation as u8;
            let (into, most) = if frame.is_control() {
                (&mut self.control, MAX_CONTROL_PAYLOAD)
            } else {
                if begins && self.frame.is_none() {
                    self.text = frame.opcode == Opcode::Text as u8;
                }
                (&mut self.message, if begins && frame.last { usize::MAX } else { most })
            };
            if into.len().saturating_add(frame.left) > most {
                return Err(TooLong);
            }
            let count = frame.left.min(bytes.len());
            into.extend(bytes.drain(..count));
            if count < frame.left {
                self.frame = Some(Frame { left: frame.left - count, ..frame });
                return Ok(None);
            }
            self.frame = None;
            if frame.is_control() {
                let control = std::mem::take(&mut self.control);
                if frame.opcode == Opcode::Close as u8 {
                    return Ok(Some(Parcel::Close(close(&control))));
                }
                // A ping of the application's, or the answer to none: nobody is there who could hear it.
            } else if frame.last {
                return Ok(Some(Parcel::Message(self.finish())));
            }
        }
    }

    /// Bytes of what is not finished.
    pub(super) fn weight(&self) -> usize {
        self.message.len() + self.control.len()
    }

    fn finish(&mut self) -> Message {
        let bytes = std::mem::take(&mut self.message);
        if !self.text {
            return Message::Binary(Bytes::from(bytes));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Message::Text(text.into()),
            // It was checked when it was written.
            Err(error) => Message::Binary(Bytes::from(error.into_bytes())),
        }
    }
}

fn close(payload: &[u8]) -> Option<CloseFrame> {
    let (code, reason) = payload.split_first_chunk()?;
    let code = CloseCode::new(u16::from_be_bytes(*code))?;
    Some(CloseFrame::new(code, std::str::from_utf8(reason).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::{Header, close_payload};

    fn frame(opcode: Opcode, last: bool, payload: &[u8]) -> Vec<u8> {
        let header = Header::new(opcode, payload.len());
        let header = if last { header } else { header.unfinished() };
        let mut frame = Vec::new();
        header.append_to(&mut frame);
        frame.extend_from_slice(payload);
        frame
    }

    /// All that comes out when the bytes come in pieces of this size.
    fn assembled(bytes: &[u8], piece: usize, most: usize) -> Result<Vec<String>, TooLong> {
        let mut assembly = Assembly::default();
        let (mut waiting, mut out) = (VecDeque::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            waiting.extend(piece);
            while let Some(parcel) = assembly.next(&mut waiting, most)? {
                out.push(match parcel {
                    Parcel::Message(Message::Text(text)) => format!("text {}", text.as_str()),
                    Parcel::Message(message) => format!("binary {}", message.len()),
                    Parcel::Close(Some(close)) => format!("close {} {}", close.code, close.reason),
                    Parcel::Close(None) => "close".to_owned(),
                });
            }
        }
        assert!(waiting.is_empty());
        Ok(out)
    }

    #[test]
    fn messages_come_out_whole_however_their_bytes_are_cut() {
        let close = close_payload(&CloseFrame::new(CloseCode::GOING_AWAY, "bye"));
        let bytes = [
            frame(Opcode::Text, true, "grüße".as_bytes()),
            frame(Opcode::Binary, true, &[7; 300]),
            frame(Opcode::Text, false, b"one, "),
            frame(Opcode::Ping, true, b"are you there?"),
            frame(Opcode::Continuation, false, b""),
            frame(Opcode::Continuation, true, b"two"),
            frame(Opcode::Binary, true, &[0; 70_000]),
            frame(Opcode::Text, true, b""),
            frame(Opcode::Close, true, &close),
        ]
        .concat();
        let expected = [
            "text grüße",
            "binary 300",
            "text one, two",
            "binary 70000",
            "text ",
            "close 1001 bye",
        ];
        for piece in [1, 2, 3, 7, 1000, bytes.len()] {
            assert_eq!(assembled(&bytes, piece, 70_000).unwrap(), expected, "pieces of {piece}");
        }
        assert_eq!(assembled(&frame(Opcode::Close, true, b""), 1, 10).unwrap(), ["close"]);
    }

    #[test]
    fn a_message_that_is_too_long_is_noticed_before_it_is_kept() {
        let whole = frame(Opcode::Text, true, b"12345");
        assert!(assembled(&whole, 3, 4).is_ok(), "it has been whole before");
        let parts =
            [frame(Opcode::Text, false, b"123"), frame(Opcode::Continuation, true, b"45")].concat();
        assert!(assembled(&parts, 3, 5).is_ok());
        assert_eq!(assembled(&parts, 3, 4), Err(TooLong));
    }
}
