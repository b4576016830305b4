//! The payload of an envelope before its type is known.

use std::fmt;
use std::ops::Range;

use serde::de::value::UnitDeserializer;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Error as _, Serialize, Serializer};
use serde_json::value::RawValue;

use super::BadMessage;
use crate::message::Text;

/// A piece of JSON as it came, byte for byte, that has been found well-formed and not yet been read.
///
/// Numbers of any size, the order of keys and any depth are kept: [`parse`](Self::parse) is where a type
/// decides about them. It shares the bytes of its message, so a clone is cheap.
///
/// As a field of a type of one's own it leaves that part of a payload as it came. Goes into any serializer of
/// `serde_json`'s and comes out of its deserializers; with others it is an error.
#[derive(Clone)]
pub struct Payload {
    text: Text,
    /// Of the text. `None`: there is no `payload` in the envelope.
    range: Option<Range<usize>>,
}

impl Payload {
    /// `raw` has to be a part of `text`, as serde borrows it.
    pub(super) fn within(text: Text, raw: Option<&RawValue>) -> Self {
        let range = raw.map(|raw| {
            let start = raw.get().as_ptr().addr().saturating_sub(text.as_str().as_ptr().addr());
            start..start + raw.get().len()
        });
        Self { text, range }
    }

    /// The JSON text; `null` if the envelope has no payload.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let range = self.range.clone();
        range.and_then(|range| self.text.get(range)).unwrap_or("null")
    }

    /// The whole text of the message that it came in.
    #[must_use]
    pub fn message_text(&self) -> &Text {
        &self.text
    }

    /// Reads it as a `T`.
    ///
    /// A payload that is missing is a `T` that can be made of nothing, such as an `Option` or `()`.
    /// Nesting deeper than 128 levels is an error, unless `T` skips over it.
    ///
    /// # Errors
    ///
    /// [`BadMessage`] says what does not fit, and where in the message.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, BadMessage> {
        let parsed = match &self.range {
            Some(_) => serde_json::from_str(self.as_str()),
            None => absent(),
        };
        parsed.map_err(|error| {
            let start = self.range.as_ref().map_or(0, |range| range.start);
            let before = self.text.get(..start).unwrap_or_default();
            BadMessage::payload(&self.text, before, &error)
        })
    }
}

/// What a `T` is when there is no payload.
pub(super) fn absent<'de, T: Deserialize<'de>, E: serde::de::Error>() -> Result<T, E> {
    // serde's own words would be of a `null` that nobody has sent.
    T::deserialize(UnitDeserializer::<E>::new()).map_err(|_| E::missing_field("payload"))
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.as_str().len())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(self.as_str()).map_err(S::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer).map_err(D::Error::custom)?;
        let text = Text::from(String::from(Box::<str>::from(raw)));
        Ok(Self { range: Some(0..text.len()), text })
    }
}
