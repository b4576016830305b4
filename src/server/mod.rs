//! The server as a whole: how it is built, accepts, limits, runs and stops.

mod accept;
mod builder;
mod crew;
mod frames;
mod handle;
mod inherited;
mod listen;
#[cfg(feature = "tls")]
mod secure;
mod signals;

pub use builder::{Builder, Server};
pub use handle::{Report, ServerHandle};
pub(crate) use listen::MODE as UNIX_MODE;
pub use listen::UnixSocket;
