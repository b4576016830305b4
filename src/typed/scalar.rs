//! What `id` and `ts` of an envelope hold.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected};
use serde::ser::{Serialize, Serializer};
use serde_json::value::RawValue;

/// A string or a number, as it was written: what [`Envelope::id`](super::Envelope::id) and
/// [`Envelope::ts`](super::Envelope::ts) hold.
///
/// Clients number their messages, or name them, or stamp them with a time in whatever way they like; what
/// came goes back unchanged, also a number that fits into no type of Rust's. So numbers are equal when they
/// are written alike: `1` is not `1.0`.
///
/// Comes out of JSON by `serde_json` only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Scalar(Written);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Written {
    Text(Box<str>),
    /// JSON of a number.
    Number(Box<str>),
}

impl Scalar {
    /// The string, or the digits of the number.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Written::Text(text) | Written::Number(text) => text,
        }
    }

    /// Whether it is a number.
    #[must_use]
    pub fn is_number(&self) -> bool {
        matches!(self.0, Written::Number(_))
    }

    /// The number, if it is one that fits.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        self.number()?.parse().ok()
    }

    /// The number, if it is one that fits.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        self.number()?.parse().ok()
    }

    fn number(&self) -> Option<&str> {
        match &self.0 {
            Written::Text(_) => None,
            Written::Number(digits) => Some(digits),
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Written::Text(text) => fmt::Debug::fmt(text, f),
            Written::Number(digits) => f.write_str(digits),
        }
    }
}

impl From<&str> for Scalar {
    fn from(text: &str) -> Self {
        Self(Written::Text(text.into()))
    }
}

impl From<String> for Scalar {
    fn from(text: String) -> Self {
        Self(Written::Text(text.into()))
    }
}

macro_rules! from_numbers {
    ($($number:ty)*) => {$(
        impl From<$number> for Scalar {
            fn from(number: $number) -> Self {
                Self(Written::Number(number.to_string().into()))
            }
        }
    )*};
}

from_numbers!(u32 u64 i32 i64);

impl Serialize for Scalar {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Written::Text(text) => serializer.serialize_str(text),
            Written::Number(digits) => {
                let number: &RawValue =
                    serde_json::from_str(digits).map_err(serde::ser::Error::custom)?;
                number.serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let unexpected = match raw.get().as_bytes().first() {
            Some(b'"') => {
                // Its own error would say where in the string, as if that were the whole message.
                let broken = |_| D::Error::custom("a string with a broken escape");
                let text: String = serde_json::from_str(raw.get()).map_err(broken)?;
                return Ok(text.into());
            }
            Some(b'-' | b'0'..=b'9') => return Ok(Self(Written::Number(raw.get().into()))),
            Some(b'{') => Unexpected::Map,
            Some(b'[') => Unexpected::Seq,
            Some(b't' | b'f') => Unexpected::Other("boolean"),
            _ => Unexpected::Unit,
        };
        Err(D::Error::invalid_type(unexpected, &"a string or a number"))
    }
}
