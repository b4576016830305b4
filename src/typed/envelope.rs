//! What a typed message looks like.

use std::borrow::Cow;

use serde::ser::Serialize;
use serde_json::value::RawValue;

use super::payload::Payload;
use super::serial;
use super::{BadMessage, Scalar};
use crate::message::{Message, Text};

/// A typed message: `{"id"?, "kind"?, "ts"?, "room"?, "type", "payload"}`, as JSON in a text message.
///
/// What is optional is left out when it is not set. Fields that are not known are ignored, and one that comes
/// twice is an error, because two readers could read it differently. The payload may be missing where its
/// type can be made of nothing, such as an `Option` or `()`.
///
/// ```
/// use coracle::{Envelope, Message};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let envelope = Envelope::new("chat.message", ["hello"]).room("lobby").id(7);
/// let message = envelope.to_message()?;
/// let text = r#"{"id":7,"room":"lobby","type":"chat.message","payload":["hello"]}"#;
/// assert_eq!(message.as_text(), Some(text));
///
/// let envelope = Envelope::parse(&message)?;
/// assert_eq!(envelope.type_name, "chat.message");
/// assert_eq!(envelope.payload.parse::<Vec<String>>()?, ["hello"]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Envelope<P = Payload> {
    /// The sender's name or number for this message.
    pub id: Option<Scalar>,
    /// What kind of message it is: [`EVENT`](Envelope::EVENT), if it does not say.
    pub kind: Cow<'static, str>,
    /// When it was sent, in whatever way the sender tells the time.
    pub ts: Option<Scalar>,
    /// The room that it is about. Nobody looks at it but the application.
    pub room: Option<String>,
    /// What the payload is: `type`.
    pub type_name: String,
    /// What is said.
    pub payload: P,
}

impl<P> Envelope<P> {
    /// An envelope of this type with this payload, and nothing else.
    pub fn new(type_name: impl Into<String>, payload: P) -> Self {
        Self {
            id: None,
            kind: Cow::Borrowed(Envelope::EVENT),
            ts: None,
            room: None,
            type_name: type_name.into(),
            payload,
        }
    }

    /// Sets the name or number of this message.
    #[must_use]
    pub fn id(mut self, id: impl Into<Scalar>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the kind.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<Cow<'static, str>>) -> Self {
        self.kind = kind.into();
        self
    }

    /// Sets the time.
    #[must_use]
    pub fn ts(mut self, ts: impl Into<Scalar>) -> Self {
        self.ts = Some(ts.into());
        self
    }

    /// Sets the room.
    #[must_use]
    pub fn room(mut self, room: impl Into<String>) -> Self {
        self.room = Some(room.into());
        self
    }

    /// The same with another payload.
    pub fn with_payload<Q>(self, payload: Q) -> Envelope<Q> {
        let Self { id, kind, ts, room, type_name, .. } = self;
        Envelope { id, kind, ts, room, type_name, payload }
    }

    /// The text message, for whatever sends messages: [`Session::send`](crate::Session::send),
    /// [`Prepared`](crate::Prepared).
    ///
    /// # Errors
    ///
    /// What serde says of a payload that cannot be JSON, such as a map whose keys are no strings.
    pub fn to_message(&self) -> Result<Message, serde_json::Error>
    where
        P: Serialize,
    {
        serde_json::to_string(self).map(Message::from)
    }
}

impl Envelope {
    /// The kind of a message that does not say its kind.
    pub const EVENT: &'static str = "event";

    /// Reads a message as an envelope; its payload stays as it came until its type is asked for.
    ///
    /// # Errors
    ///
    /// [`BadMessage`] for a binary message, for what is no JSON, and for JSON that is no envelope. A callback
    /// that returns it as its error leaves the session open.
    pub fn parse(message: &Message) -> Result<Self, BadMessage> {
        match message {
            Message::Text(text) => Self::parse_text(text),
            Message::Binary(bytes) => Err(BadMessage::binary(bytes.len())),
        }
    }

    pub(super) fn parse_text(text: &Text) -> Result<Self, BadMessage> {
        let envelope: Envelope<Option<&RawValue>> =
            serial::read(text).map_err(|error| BadMessage::no_envelope(text, &error))?;
        let payload = Payload::within(text.clone(), envelope.payload);
        Ok(envelope.with_payload(payload))
    }
}
