//! What the load generator and the servers it measures have in common.
//!
//! The package's main program builds and starts echo servers as child processes and loads them
//! from one thread; see `README.md` beside `Cargo.toml` for what it reports.

pub mod frame;
pub mod peer;
pub mod tls;
pub mod upgrade;
