//! Typed messages: the envelope, its way in and out of JSON, and the router by type.

mod bad;
mod envelope;
mod payload;
mod router;
mod scalar;
mod send;
mod serial;

pub use bad::{BadMessage, Fault};
pub use envelope::Envelope;
pub use payload::Payload;
pub use router::{Router, Typed};
pub use scalar::Scalar;
pub use send::SendTypedError;
