//! A message that says nothing to the application.

use std::fmt;
use std::fmt::Write;

/// A message that is no envelope, or whose type nobody handles, or whose payload is not of that type.
///
/// It is the peer's fault. When a callback returns it as its error, [`Handler::error`] is told, as
/// [`HandlerError::BadMessage`], and the session goes on. It need not: whoever wants it to end calls
/// [`Session::close`] there.
///
/// Whatever is in it comes from the peer; it is bounded in length, and `Display` shows no control
/// characters, so that it can go to a log.
///
/// [`Handler::error`]: crate::Handler::error
/// [`HandlerError::BadMessage`]: crate::HandlerError::BadMessage
/// [`Session::close`]: crate::Session::close
#[derive(Clone)]
pub struct BadMessage(Box<Details>);

#[derive(Clone)]
struct Details {
    fault: Fault,
    reason: String,
    position: Option<(usize, usize)>,
    type_name: Option<String>,
    start: String,
    len: usize,
}

/// What is wrong with a [`BadMessage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It is binary; an envelope is text.
    Binary,
    /// It is not JSON, or not the JSON of an envelope.
    Envelope,
    /// It is an envelope, and nobody handles its type.
    UnknownType,
    /// It is an envelope, and its payload is not what its type asks for.
    Payload,
}

impl BadMessage {
    /// How many bytes of the message [`start`](Self::start) shows at most: more than the fields in front
    /// of a usual payload have, and little enough for a line in a log.
    pub const START_BYTES: usize = 128;

    /// How many bytes of what serde says are kept. It quotes the message, all of a string if it is one
    /// where there should be none; its own words are rarely more than a hundred bytes.
    const REASON_BYTES: usize = 256;

    fn new(fault: Fault, text: &str) -> Self {
        Self(Box::new(Details {
            fault,
            reason: String::new(),
            position: None,
            type_name: None,
            start: cut(text, Self::START_BYTES).to_owned(),
            len: text.len(),
        }))
    }

    pub(super) fn binary(len: usize) -> Self {
        let mut bad = Self::new(Fault::Binary, "");
        bad.0.len = len;
        bad
    }

    pub(super) fn no_envelope(text: &str, error: &serde_json::Error) -> Self {
        Self::new(Fault::Envelope, text).because(error, "")
    }

    pub(super) fn unknown_type(text: &str, type_name: &str) -> Self {
        Self::new(Fault::UnknownType, text).of_type(type_name)
    }

    /// What was wrong with a part of `text` that has `before` in front of it.
    pub(super) fn payload(text: &str, before: &str, error: &serde_json::Error) -> Self {
        Self::new(Fault::Payload, text).because(error, before)
    }

    pub(super) fn of_type(mut self, type_name: &str) -> Self {
        self.0.type_name = Some(cut(type_name, Self::START_BYTES).to_owned());
        self
    }

    fn because(mut self, error: &serde_json::Error, before: &str) -> Self {
        let (line, column) = (error.line(), error.column());
        let said = error.to_string();
        let reason = said.strip_suffix(&format!(" at line {line} column {column}"));
        self.0.reason = clean(cut(reason.unwrap_or(&said), Self::REASON_BYTES));
        if line > 0 {
            let (lines, last) = before.rsplit_once('\n').map_or((0, before), |(lines, last)| {
                (1 + lines.bytes().filter(|byte| *byte == b'\n').count(), last)
            });
            // A payload's type has the last word about its own errors, and may quote what the peer has
            // written: also something that looks like a position.
            let column = if line == 1 { last.len().saturating_add(column) } else { column };
            self.0.position = Some((lines.saturating_add(line), column));
        }
        self
    }

    /// What is wrong.
    #[must_use]
    pub fn fault(&self) -> Fault {
        self.0.fault
    }

    /// What the parser says about it; empty if it was not asked.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// Where in the message: line, and byte of the line, both from 1. `None` if it is missing, or if the
    /// parser was not asked.
    #[must_use]
    pub fn position(&self) -> Option<(usize, usize)> {
        self.0.position
    }

    /// The envelope's `type`, if a [`Router`](crate::Router) has looked at it; at most [`START_BYTES`](Self::START_BYTES) of it.
    #[must_use]
    pub fn type_name(&self) -> Option<&str> {
        self.0.type_name.as_deref()
    }

    /// The first bytes of the text as it came, cut between two characters. Empty for a binary message.
    #[must_use]
    pub fn start(&self) -> &str {
        &self.0.start
    }
}

impl fmt::Display for BadMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Details { fault, reason, position, type_name, start, len } = &*self.0;
        match fault {
            Fault::Binary => {
                return write!(f, "a binary message of {len} bytes where an envelope is expected");
            }
            Fault::Envelope => f.write_str("a message that is no envelope")?,
            Fault::UnknownType => f.write_str("a message of unknown type")?,
            Fault::Payload => f.write_str("a payload that is not of its type")?,
        }
        if let Some(type_name) = type_name {
            write!(f, " {type_name:?}")?;
        }
        if !reason.is_empty() {
            write!(f, ": {reason}")?;
        }
        if let Some((line, column)) = position {
            write!(f, " at line {line} column {column}")?;
        }
        let more = if start.len() < *len { ".." } else { "" };
        write!(f, "; {len} bytes, {start:?}{more}")
    }
}

impl fmt::Debug for BadMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BadMessage({self})")
    }
}

impl std::error::Error for BadMessage {}

/// At most so many bytes, and whole characters.
fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// For the log: without what would end its line or move its cursor.
fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            // Into a string it cannot fail.
            let _ = write!(cleaned, "{}", character.escape_default());
        } else {
            cleaned.push(character);
        }
    }
    cleaned
}
