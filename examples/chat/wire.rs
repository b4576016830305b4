//! What the page and the server say to each other: one JSON text `{"type": .., "payload": {..}}` each, and
//! what may be in it.

use coracle::Message;
use serde::{Deserialize, Serialize};

/// Longest name of a person, in characters: what fits on a phone beside the time.
const NAME_CHARS: usize = 24;

/// Longest name of a room, in characters: what fits in a heading. It is far from what a room's name may have.
const ROOM_CHARS: usize = 40;

/// Longest text, in characters: a screen of a phone. With it, 20 messages have at most 80 KiB.
const TEXT_CHARS: usize = 1000;

/// The largest message: the longest text with every character escaped as two units of UTF-16, and the rest.
pub(crate) const MESSAGE_BYTES: usize = 16 * 1024;

/// What the page says.
#[derive(Deserialize)]
#[serde(tag = "type", content = "payload")]
pub(crate) enum Request {
    /// Its first words, and again when the name is another.
    #[serde(rename = "chat.join")]
    Join { name: String },
    #[serde(rename = "chat.message")]
    Message { text: String },
}

/// What the server says.
#[derive(Serialize)]
#[serde(tag = "type", content = "payload")]
pub(crate) enum Event<'a> {
    /// The answer to a join: everything that the page has to know.
    #[serde(rename = "chat.welcome")]
    Welcome {
        /// Which member the page is.
        you: String,
        /// Another one: the numbers of the messages begin anew.
        epoch: &'a str,
        members: Vec<Member>,
        history: Vec<&'a Line>,
    },
    #[serde(rename = "chat.message")]
    Message(&'a Line),
    #[serde(rename = "chat.joined")]
    Joined(Member),
    #[serde(rename = "chat.left")]
    Left(Member),
    #[serde(rename = "chat.error")]
    Error(Complaint),
}

/// Somebody who is here.
#[derive(Serialize)]
pub(crate) struct Member {
    pub(crate) session: String,
    pub(crate) name: String,
}

/// A message as it is kept and shown.
#[derive(Serialize)]
pub(crate) struct Line {
    /// Counts the messages of a room from 1.
    pub(crate) seq: u64,
    /// Milliseconds since 1970.
    pub(crate) at: u64,
    /// The session that has sent it.
    pub(crate) from: String,
    pub(crate) name: String,
    pub(crate) text: String,
}

/// Why a request was not fulfilled: a word for the page, and a sentence for whoever reads it.
#[derive(Serialize)]
pub(crate) struct Complaint {
    code: &'static str,
    text: String,
}

impl Complaint {
    pub(crate) fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl Event<'_> {
    pub(crate) fn to_text(&self) -> String {
        // Strings, numbers and lists of them: there is nothing that JSON could not say.
        serde_json::to_string(self).expect("an event is JSON")
    }
}

pub(crate) fn read(message: &Message) -> Result<Request, Complaint> {
    let text = message.as_text().ok_or_else(|| {
        Complaint::new("bad_message", "this chat speaks JSON in text messages, not binary ones")
    })?;
    serde_json::from_str(text).map_err(|error| {
        // It may quote what it has not understood, at any length.
        let why: String = error.to_string().chars().take(120).collect();
        Complaint::new("bad_message", format!("this chat does not know such a message: {why}"))
    })
}

/// A person's name as it is shown: one space between two words.
pub(crate) fn name(sent: &str) -> Result<String, Complaint> {
    let name = sent.split_whitespace().collect::<Vec<_>>().join(" ");
    if !is_visible(&name) {
        return Err(Complaint::new("bad_name", "a name needs a letter, and no invisible ones"));
    }
    if name.chars().count() > NAME_CHARS {
        let text = format!("a name has at most {NAME_CHARS} characters");
        return Err(Complaint::new("name_too_long", text));
    }
    Ok(name)
}

/// What somebody says: without the control characters that a terminal may have left in it.
pub(crate) fn text(sent: &str) -> Result<String, Complaint> {
    let text: String = sent.chars().filter(|c| !c.is_control() || *c == '\n').collect();
    let text = text.trim();
    if text.is_empty() {
        return Err(Complaint::new("empty_message", "there is nothing in this message"));
    }
    if text.chars().count() > TEXT_CHARS {
        let text = format!("a message has at most {TEXT_CHARS} characters: send it in two");
        return Err(Complaint::new("message_too_long", text));
    }
    Ok(text.to_owned())
}

/// The name of the room that a path is for: `/r/NAME`, percent-encoded. `None` if it is for none.
pub(crate) fn room(path: &str) -> Option<String> {
    let room = decode(path.strip_prefix("/r/")?)?;
    let good = is_visible(&room)
        && !room.contains('/')
        && room.trim() == room
        && room.chars().count() <= ROOM_CHARS;
    good.then_some(room)
}

/// Whether somebody can see this, and only this: no lines, nothing that turns the direction of what stands
/// beside it.
fn is_visible(text: &str) -> bool {
    let joins = |c| matches!(c, '\u{200C}' | '\u{200D}');
    let hides = |c: char| {
        c.is_control()
            || matches!(c, '\u{AD}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{FEFF}')
            || matches!(c, '\u{2060}'..='\u{206F}' | '\u{3164}' | '\u{E0000}'..='\u{E0FFF}')
    };
    // Two of them stand between the letters of some languages and the parts of some emoji.
    !text.chars().any(|c| hides(c) && !joins(c))
        && text.chars().any(|c| !c.is_whitespace() && !joins(c))
}

fn decode(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let [first, behind @ ..] = rest {
        (rest, _) = match (first, behind) {
            (b'%', [high, low, behind @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                (behind, bytes.push((digit(*high)? << 4 | digit(*low)?) as u8))
            }
            (b'%', _) => return None,
            _ => (behind, bytes.push(*first)),
        };
    }
    String::from_utf8(bytes).ok()
}
