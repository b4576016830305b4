//! The RFC 6455 machine, and its small sibling for length-prefixed frames: bytes in, events out; frames
//! out. It knows no socket, no clock and no executor.
//!
//! [`Codec`] consumes whatever bytes there are and keeps of an unfinished frame only what it must:
//! at most 13 bytes of header, and the payload that has really arrived. A read buffer is therefore
//! always free again when the codec has seen it, and the outcome cannot depend on how the stream
//! was cut into reads.

mod bounds;
mod codec;
#[cfg(feature = "deflate")]
mod deflate;
#[cfg(not(feature = "deflate"))]
#[path = "deflate_off.rs"]
mod deflate;
mod event;
mod frame;
mod mask;
mod prefixed;
mod stream;
mod utf8;

#[cfg(test)]
mod tests;

pub(crate) use bounds::Bounds;
pub(crate) use codec::Codec;
pub(crate) use deflate::{Agreement, Contexts, deflate, deflate_alone};
pub(crate) use event::{Event, Part, Violation};
pub(crate) use frame::{CloseFrame, Header, MAX_CONTROL_PAYLOAD, Opcode, close_payload};
pub(crate) use utf8::Utf8;
#[cfg(feature = "internals")]
pub(crate) use {
    deflate::inflate,
    frame::parse,
    mask::{unmask, unmasked},
};
