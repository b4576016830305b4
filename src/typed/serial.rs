//! The envelope in and out of JSON, by hand: the crate needs no derive.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::Envelope;
use super::payload::absent;

const NAME: &str = "Envelope";

const ID: &str = "id";
const KIND: &str = "kind";
const TS: &str = "ts";
const ROOM: &str = "room";
const TYPE: &str = "type";
const PAYLOAD: &str = "payload";

const FIELDS: &[&str] = &[ID, KIND, TS, ROOM, TYPE, PAYLOAD];

/// Reads one envelope and nothing behind it. `None`: there is no payload.
///
/// Only the top level is looked at. The rest is found well-formed without recursion, so that no depth
/// overflows the stack.
pub(super) fn read<'de, P: Deserialize<'de>>(
    text: &'de str,
) -> Result<Envelope<Option<P>>, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let envelope = reader.deserialize_struct(NAME, FIELDS, Fields(PhantomData))?;
    reader.end()?;
    Ok(envelope)
}

impl<P: Serialize> Serialize for Envelope<P> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kind = Some(&self.kind).filter(|kind| **kind != Envelope::EVENT);
        let optional = [self.id.is_some(), kind.is_some(), self.ts.is_some(), self.room.is_some()];
        let set = optional.iter().filter(|it| **it).count();
        let mut object = serializer.serialize_struct(NAME, set + 2)?;
        match &self.id {
            Some(id) => object.serialize_field(ID, id)?,
            None => object.skip_field(ID)?,
        }
        match kind {
            Some(kind) => object.serialize_field(KIND, kind)?,
            None => object.skip_field(KIND)?,
        }
        match &self.ts {
            Some(ts) => object.serialize_field(TS, ts)?,
            None => object.skip_field(TS)?,
        }
        match &self.room {
            Some(room) => object.serialize_field(ROOM, room)?,
            None => object.skip_field(ROOM)?,
        }
        object.serialize_field(TYPE, &self.type_name)?;
        object.serialize_field(PAYLOAD, &self.payload)?;
        object.end()
    }
}

impl<'de, P: Deserialize<'de>> Deserialize<'de> for Envelope<P> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut envelope =
            deserializer.deserialize_struct(NAME, FIELDS, Fields::<P>(PhantomData))?;
        let payload = match envelope.payload.take() {
            Some(payload) => payload,
            None => absent()?,
        };
        Ok(envelope.with_payload(payload))
    }
}

struct Fields<P>(PhantomData<P>);

impl<'de, P: Deserialize<'de>> Visitor<'de> for Fields<P> {
    type Value = Envelope<Option<P>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an envelope, which is an object with `type` and `payload`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut id, mut kind, mut ts, mut room) = (None, None, None, None);
        let (mut type_name, mut payload) = (None, None);
        while let Some(field) = map.next_key()? {
            match field {
                Field::Id => once(&mut id, ID, || map.next_value())?,
                Field::Kind => once(&mut kind, KIND, || map.next_value())?,
                Field::Ts => once(&mut ts, TS, || map.next_value())?,
                Field::Room => once(&mut room, ROOM, || map.next_value())?,
                Field::Type => once(&mut type_name, TYPE, || map.next_value())?,
                Field::Payload => once(&mut payload, PAYLOAD, || map.next_value())?,
                Field::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let kind: Option<Option<String>> = kind;
        Ok(Envelope {
            id: id.flatten(),
            kind: match kind.flatten() {
                Some(kind) if kind != Envelope::EVENT => Cow::Owned(kind),
                _ => Cow::Borrowed(Envelope::EVENT),
            },
            ts: ts.flatten(),
            room: room.flatten(),
            type_name: type_name.ok_or_else(|| A::Error::missing_field(TYPE))?,
            payload,
        })
    }
}

fn once<T, E: Error>(
    slot: &mut Option<T>,
    name: &'static str,
    value: impl FnOnce() -> Result<T, E>,
) -> Result<(), E> {
    if slot.is_some() {
        return Err(E::duplicate_field(name));
    }
    *slot = Some(value()?);
    Ok(())
}

enum Field {
    Id,
    Kind,
    Ts,
    Room,
    Type,
    Payload,
    Unknown,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;

        impl Visitor<'_> for Name {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field's name")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Field, E> {
                Ok(match name {
                    ID => Field::Id,
                    KIND => Field::Kind,
                    TS => Field::Ts,
                    ROOM => Field::Room,
                    TYPE => Field::Type,
                    PAYLOAD => Field::Payload,
                    _ => Field::Unknown,
                })
            }
        }

        deserializer.deserialize_identifier(Name)
    }
}
