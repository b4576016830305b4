//! Messages as HTTP carries them: JSON in polls and posts, events in streams.

use std::fmt;

use data_encoding::BASE64;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::message::Message;
use crate::ws::{CloseFrame, Opcode};

use super::relay::append_masked;

/// How deep objects may be nested that stand in an array as they are: half of what the strictest parsers in wide use
/// take (.NET's 64).
const NESTED: usize = 32;

/// The key of the object that stands for a binary message.
const BINARY: &str = "$binary";

/// Messages as one array. `text`: every text as a string, also if it is an object.
pub(super) fn array(messages: &[Message], text: bool) -> Vec<u8> {
    let bytes: usize = messages.iter().map(Message::len).sum();
    let mut out = Vec::with_capacity(bytes + bytes / 8 + 16 * messages.len() + 2);
    out.push(b'[');
    for (at, message) in messages.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        match message {
            Message::Text(object) if !text && is_object(object) => {
                out.extend_from_slice(object.trim().as_bytes());
            }
            Message::Text(text) => string(text, &mut out),
            Message::Binary(bytes) => {
                out.extend_from_slice(b"{\"$binary\":\"");
                out.extend_from_slice(BASE64.encode(bytes).as_bytes());
                out.extend_from_slice(b"\"}");
            }
        }
    }
    out.push(b']');
    out
}

/// Appends a JSON string.
fn string(text: &str, out: &mut Vec<u8>) {
    // A vector takes everything, and a string has no key that could be wrong.
    let _ = serde_json::to_writer(out, text);
}

/// Whether a text is one JSON object that every client can read, and that cannot be taken for a binary message.
fn is_object(text: &str) -> bool {
    text.trim_start().starts_with('{')
        && is_shallow(text)
        && serde_json::from_str::<Value>(text)
            .is_ok_and(|object| object.as_object().is_some_and(|it| !it.contains_key(BINARY)))
}

/// Whether nothing in it is nested deeper than the parser of any client goes, if it is JSON.
fn is_shallow(text: &str) -> bool {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    text.bytes().all(|byte| {
        if quoted {
            quoted = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            return true;
        }
        match byte {
            b'"' => quoted = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth <= NESTED
    })
}

/// A JSON object, of which only this matters: whether [`BINARY`] is among its keys.
struct Object {
    binary: bool,
}

impl<'de> serde::Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object { binary: false };
                while let Some((key, IgnoredAny)) = map.next_entry::<Key, _>()? {
                    object.binary |= key.0;
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// A key, or rather: whether it is [`BINARY`].
struct Key(bool);

impl<'de> serde::Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, key: &str) -> Result<Key, E> {
                Ok(Key(key == BINARY))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Appends a message as one event. `id`: what the client shall name as the last one that it has got.
pub(super) fn event(message: &Message, id: &str, out: &mut Vec<u8>) {
    match message {
        // An event's data cannot have one: it would come out as a line feed.
        Message::Text(text) if text.contains('\r') => {
            let mut data = Vec::new();
            string(text, &mut data);
            field("event", "string", out);
            line("data", &data, out);
        }
        Message::Text(text) => text.split('\n').for_each(|text| field("data", text, out)),
        Message::Binary(bytes) => {
            field("event", "binary", out);
            field("data", &BASE64.encode(bytes), out);
        }
    }
    field("id", id, out);
    out.push(b'\n');
}

/// Appends a field of an event, on a line of its own.
pub(super) fn field(name: &str, value: &str, out: &mut Vec<u8>) {
    line(name, value.as_bytes(), out);
}

fn line(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// How a session was closed, as an object.
pub(super) fn closed(close: Option<&CloseFrame>) -> String {
    let (code, reason) = code_and_reason(close);
    let mut out = format!("{{\"code\":{code},\"reason\":").into_bytes();
    string(reason, &mut out);
    out.push(b'}');
    String::from_utf8(out).unwrap_or_default()
}

/// What a client would know of a close frame. 1006 stands for that there was none (RFC 6455 section 7.1.5).
pub(super) fn code_and_reason(close: Option<&CloseFrame>) -> (u16, &str) {
    match close {
        Some(close) => (close.code.as_u16(), &close.reason),
        None => (1006, ""),
    }
}

/// What of a POST's body is no message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoMessages(pub(super) String);

impl NoMessages {
    fn new(what: impl fmt::Display) -> Self {
        Self(format!(
            "the body is {what}: send a JSON object, which is one text message, or an array of strings and \
             objects (text) and {{\"$binary\":\"base64\"}} (binary)"
        ))
    }
}

/// What is posted as JSON.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Posted {
    /// The messages, as frames for the session.
    pub(super) frames: Vec<u8>,
    /// Bytes of the longest one.
    pub(super) longest: usize,
    pub(super) messages: usize,
    /// Whose they are, if the body says so.
    pub(super) session: Option<String>,
}

impl Posted {
    pub(super) fn text(text: &str) -> Self {
        let mut posted = Self::default();
        posted.push(Opcode::Text, text.as_bytes());
        posted
    }

    pub(super) fn binary(bytes: &[u8]) -> Self {
        let mut posted = Self::default();
        posted.push(Opcode::Binary, bytes);
        posted
    }

    fn push(&mut self, opcode: Opcode, payload: &[u8]) {
        append_masked(&mut self.frames, opcode, payload);
        self.longest = self.longest.max(payload.len());
        self.messages += 1;
    }

    /// Reads a body. `named`: the session is known already, so that an object is a message as it stands.
    pub(super) fn json(body: &str, named: bool) -> Result<Self, NoMessages> {
        match body.trim_start().as_bytes().first() {
            Some(b'{') if named => {
                serde_json::from_str::<Object>(body).map_err(NoMessages::json)?;
                Ok(Self::text(body.trim()))
            }
            Some(b'{') => Self::addressed(body),
            Some(b'[') => Self::several(body),
            _ => Err(NoMessages::new("neither an object nor an array")),
        }
    }

    /// An object that says whose it is: without that it is the message.
    fn addressed(body: &str) -> Result<Self, NoMessages> {
        let Members(members) = serde_json::from_str(body).map_err(NoMessages::json)?;
        let mut session = None;
        let mut message = b"{".to_vec();
        for (key, value) in members {
            if key == "session_id" {
                let token = serde_json::from_str(value.get());
                session = Some(token.map_err(|_| NoMessages::new("without a session_id of text"))?);
                continue;
            }
            if message.len() > 1 {
                message.push(b',');
            }
            string(&key, &mut message);
            message.push(b':');
            message.extend_from_slice(value.get().as_bytes());
        }
        message.push(b'}');
        let mut posted = Self { session, ..Self::default() };
        posted.push(Opcode::Text, &message);
        Ok(posted)
    }

    fn several(body: &str) -> Result<Self, NoMessages> {
        let elements: Vec<&RawValue> = serde_json::from_str(body).map_err(NoMessages::json)?;
        let mut posted = Self::default();
        for element in elements {
            let element = element.get();
            match element.as_bytes().first() {
                Some(b'"') => {
                    let text: String = serde_json::from_str(element).map_err(NoMessages::json)?;
                    posted.push(Opcode::Text, text.as_bytes());
                }
                Some(b'{') => {
                    let object: Object = serde_json::from_str(element).map_err(NoMessages::json)?;
                    if !object.binary {
                        posted.push(Opcode::Text, element.as_bytes());
                        continue;
                    }
                    let bytes = binary(element).ok_or_else(|| {
                        NoMessages::new("with a $binary that is not base64 alone")
                    })?;
                    posted.push(Opcode::Binary, &bytes);
                }
                _ => return Err(NoMessages::new("an array with something else in it")),
            }
        }
        Ok(posted)
    }
}

impl NoMessages {
    fn json(error: serde_json::Error) -> Self {
        Self::new(format_args!("not JSON ({error})"))
    }
}

/// The bytes of an object that stands for a binary message, and has nothing else.
fn binary(object: &str) -> Option<Vec<u8>> {
    let Members(members) = serde_json::from_str(object).ok()?;
    let [(_, value)] = members.as_slice() else {
        return None;
    };
    let text: String = serde_json::from_str(value.get()).ok()?;
    BASE64.decode(text.as_bytes()).ok()
}

/// The members of an object, in their order.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::CloseCode;

    fn shown(messages: &[Message], text: bool) -> String {
        String::from_utf8(array(messages, text)).unwrap()
    }

    fn frames(messages: &[(Opcode, &[u8])]) -> Vec<u8> {
        let mut frames = Vec::new();
        for (opcode, payload) in messages {
            append_masked(&mut frames, *opcode, payload);
        }
        frames
    }

    #[test]
    fn objects_stand_as_they_are_and_everything_else_can_be_told_from_them() {
        let messages: Vec<Message> = vec![
            r#"{"type":"a","payload":{"x":1.0}}"#.into(),
            "plain \"text\"\n".into(),
            "[1,2]".into(),
            "{not json".into(),
            r#"{"$binary":"no"}"#.into(),
            r#"{"a":1,"\u0024binary":"no"}"#.into(),
            r#"{"a":{"$binary":"deeper"}}"#.into(),
            r#"{"a":"\ud800"}"#.into(),
            vec![0_u8, 255].into(),
            "".into(),
        ];
        let shown_as = shown(&messages, false);
        assert_eq!(
            shown_as,
            concat!(
                r#"[{"type":"a","payload":{"x":1.0}},"plain \"text\"\n","[1,2]","{not json","#,
                r#""{\"$binary\":\"no\"}","{\"a\":1,\"\\u0024binary\":\"no\"}","#,
                r#"{"a":{"$binary":"deeper"}},"{\"a\":\"\\ud800\"}",{"$binary":"AP8="},""]"#
            )
        );
        // What goes down can be sent up again and is the same.
        let posted = Posted::json(&shown_as, true).unwrap();
        let same: Vec<_> = messages
            .iter()
            .map(|message| match message {
                Message::Text(text) => (Opcode::Text, text.as_bytes()),
                Message::Binary(bytes) => (Opcode::Binary, &bytes[..]),
            })
            .collect();
        assert_eq!(posted.frames, frames(&same));
        assert_eq!((posted.messages, posted.longest), (10, 32));
        assert_eq!(shown(&messages[..1], true), r#"["{\"type\":\"a\",\"payload\":{\"x\":1.0}}"]"#);
        assert_eq!(shown(&[], false), "[]");
    }

    #[test]
    fn an_object_that_names_its_session_is_a_message_without_that() {
        let body = r#" {"type":"chat", "session_id":"abc","payload":{"n":1e400,"n":2}} "#;
        let posted = Posted::json(body, false).unwrap();
        assert_eq!(posted.session.as_deref(), Some("abc"));
        let message = br#"{"type":"chat","payload":{"n":1e400,"n":2}}"#;
        assert_eq!(posted.frames, frames(&[(Opcode::Text, message)]));
        // If the session is known it is left alone.
        let posted = Posted::json(body, true).unwrap();
        assert_eq!(posted.frames, frames(&[(Opcode::Text, body.trim().as_bytes())]));
        assert_eq!(Posted::json("{}", false).unwrap().session, None);
    }

    #[test]
    fn what_is_no_message_is_said_to_be_none() {
        for (body, why) in [
            ("", "neither an object nor an array"),
            ("7", "neither an object nor an array"),
            ("{", "not JSON"),
            ("{} {}", "not JSON"),
            ("[1]", "something else"),
            ("[null]", "something else"),
            ("[[]]", "something else"),
            (r#"["a",]"#, "not JSON"),
            (r#"[{"$binary":"!"}]"#, "base64"),
            (r#"[{"$binary":7}]"#, "base64"),
            (r#"[{"$binary":"","a":1}]"#, "base64"),
        ] {
            let error = Posted::json(body, true).unwrap_err();
            assert!(error.0.contains(why), "{body}: {error:?}");
        }
        assert!(Posted::json(r#"{"session_id":7}"#, false).unwrap_err().0.contains("session_id"));
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        // However it is judged, it is judged without a stack of that depth.
        let _ = Posted::json(&deep, true);
        let _ = Posted::json(&deep, false);
        assert!(shown(&[deep.into()], false).starts_with(r#"["{\"a\":[["#));
    }

    #[test]
    fn events_carry_every_text_as_it_is() {
        let shown = |message: Message| {
            let mut out = Vec::new();
            event(&message, "7", &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown("one\ntwo".into()), "data: one\ndata: two\nid: 7\n\n");
        assert_eq!(shown("".into()), "data: \nid: 7\n\n");
        assert_eq!(shown("\n".into()), "data: \ndata: \nid: 7\n\n");
        assert_eq!(shown("a\r\nb".into()), "event: string\ndata: \"a\\r\\nb\"\nid: 7\n\n");
        assert_eq!(shown(vec![1_u8].into()), "event: binary\ndata: AQ==\nid: 7\n\n");
    }

    #[test]
    fn a_close_without_a_frame_is_a_1006() {
        let close = CloseFrame::new(CloseCode::GOING_AWAY, "b\"ye");
        assert_eq!(closed(Some(&close)), r#"{"code":1001,"reason":"b\"ye"}"#);
        assert_eq!(closed(None), r#"{"code":1006,"reason":""}"#);
    }
}
