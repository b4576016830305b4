//! What the load generator and the servers it measures have in common.
//!
//! The package's main program builds and starts servers as child processes and loads them from one
//! thread; see `README.md` beside `Cargo.toml` for what it reports.

pub mod crowd;
pub mod frame;
pub mod histogram;
pub mod peer;
pub mod poller;
pub mod tls;
pub mod upgrade;

/// Errors are for people here; nobody handles them by kind.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What may fail by such an error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
