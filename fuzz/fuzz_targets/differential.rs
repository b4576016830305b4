//! The same client frames to our codec and to tungstenite's, as a server: both see the same messages,
//! pings, pongs and close frame, and the same kind of error. Neither has an extension.
//!
//! Where they differ on purpose:
//!
//! | what | we | tungstenite |
//! |---|---|---|
//! | a length not in the fewest bytes (RFC 6455 section 5.2: MUST) | 1002 | takes it |
//! | close code 1014 (registered with IANA after the RFC) | take it | refuses it |
//! | many fragments | 1008; not here, where the limit is out of reach | takes them |
//! | a rule that is broken early in a frame | an error as soon as the byte is there | an error when the frame is complete, so perhaps never |
//! | several rules broken by one frame | the first byte that breaks one decides | another order |
//! | a bad close code | an error | a close frame with 1002 "Protocol violation" |
//! | the limit of a message | is not that of a control frame | is, unless the target sees to it |
//! | what follows a close frame | is discarded | an error, or discarded; not compared |
//!
//! Input: a byte of settings, the stream or a script of it.
#![no_main]

use std::io::{self, Cursor, Read, Write};

use coracle::Message;
use coracle::internals::{Decoder, Event};
use coracle_fuzz::{Input, decode, stream};
use libfuzzer_sys::fuzz_target;
use tungstenite::Error;
use tungstenite::error::ProtocolError;
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The stream is over and nobody has said goodbye.
    Cut,
    /// With a close frame, the last of the events.
    Closed,
    /// With the error that is answered with this code.
    Error(u16),
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let settings = input.byte();
    let message_bytes = [65_536, 100, 1000, 5000][usize::from(settings >> 1 & 3)];
    let bytes = match settings & 1 {
        0 => input.0.to_vec(),
        _ => stream::scripted(input.0, None),
    };
    let (ours, our_end, reason) = we_read(&bytes, message_bytes);
    let (theirs, their_end) = they_read(bytes, message_bytes);

    // Up to where the first of them stopped, both have seen the same.
    let both = ours.len().min(theirs.len());
    let (ours, our_rest) = ours.split_at(both);
    let (theirs, their_rest) = theirs.split_at(both);
    let taken = |event: &Event| matches!(event, Event::Close(Some((1014, _))));
    match (ours.last(), theirs.last()) {
        // Theirs is an error in disguise.
        (Some(our), Some(Event::Close(Some((1002, reason)))))
            if taken(our) && reason == "Protocol violation" =>
        {
            assert_eq!(ours[..both - 1], theirs[..both - 1]);
            return;
        }
        _ => assert_eq!(ours, theirs),
    }
    match (our_end, their_end, our_rest, their_rest) {
        (End::Cut, End::Cut, [], []) | (End::Closed, End::Closed, [], []) => {}
        (End::Error(1002), _, [], _) if reason == NOT_MINIMAL || reason == LONG_CONTROL => {}
        (End::Error(1002), End::Closed, [], [Event::Close(Some((1002, reason)))])
            if reason == "Protocol violation" => {}
        // Early, and they are still waiting for the rest of the frame.
        (End::Error(_), End::Cut, [], []) => {}
        (End::Error(our), End::Error(their), [], []) if our == their => {}
        // A bad code comes before the reason; reserved bits and opcodes, and what belongs into no
        // message or into another one, come before the length and the text.
        (End::Error(1002), End::Error(1007 | 1009), [], []) => {}
        // The length comes before the payload, which they need to see what else is wrong.
        (End::Error(1009), End::Error(1007), [], []) => {}
        other => panic!("{other:?}, {reason}"),
    }
});

const NOT_MINIMAL: &str = "length not encoded in the fewest bytes";
/// Or with a length in more bytes than that takes.
const LONG_CONTROL: &str = "control frame longer than 125 bytes";

fn we_read(bytes: &[u8], message_bytes: usize) -> (Vec<Event>, End, &'static str) {
    let outcome = decode(&mut Decoder::new(message_bytes, u32::MAX, None), [bytes]);
    let (end, reason) = match (outcome.violation, outcome.events.last()) {
        (Some(violation), _) => (End::Error(violation.code), violation.reason),
        (None, Some(Event::Close(_))) => (End::Closed, ""),
        (None, _) => (End::Cut, ""),
    };
    (outcome.events, end, reason)
}

fn they_read(bytes: Vec<u8>, message_bytes: usize) -> (Vec<Event>, End) {
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_message_size(Some(message_bytes))
        // Theirs is for control frames, too, which have a limit of their own.
        .max_frame_size(Some(message_bytes.max(125)));
    let mut socket =
        WebSocket::from_raw_socket(Wire(Cursor::new(bytes)), Role::Server, Some(config));
    let mut events = Vec::new();
    loop {
        events.push(match socket.read() {
            Ok(tungstenite::Message::Text(text)) => Event::Message(Message::from(text.as_str())),
            Ok(tungstenite::Message::Binary(bytes)) => Event::Message(bytes.to_vec().into()),
            Ok(tungstenite::Message::Ping(payload)) => Event::Ping(payload),
            Ok(tungstenite::Message::Pong(payload)) => Event::Pong(payload),
            Ok(tungstenite::Message::Close(close)) => {
                let close = close.map(|it| (it.code.into(), it.reason.as_str().to_owned()));
                events.push(Event::Close(close));
                return (events, End::Closed);
            }
            Ok(other) => panic!("{other:?}"),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return (events, End::Cut);
            }
            Err(Error::Protocol(_)) => return (events, End::Error(1002)),
            Err(Error::Utf8(_)) => return (events, End::Error(1007)),
            Err(Error::Capacity(_)) => return (events, End::Error(1009)),
            Err(other) => panic!("{other:?}"),
        });
    }
}

/// A socket with nothing behind it but these bytes.
struct Wire(Cursor<Vec<u8>>);

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
