//! A WebSocket client that comes back by itself, whose every wait has a deadline, and which says what went wrong.
//!
//! ```rust,no_run
//! use coracle::client::Client;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     smol::block_on(async {
//!         let client = Client::connect("ws://127.0.0.1:9001/").await?;
//!         client.send("hello").await?;
//!         println!("{:?}", client.recv().await?);
//!         client.close(coracle::CloseCode::NORMAL, "that was all").await;
//!         Ok(())
//!     })
//! }
//! ```
//!
//! Or with callbacks, which are called again for every connection:
//!
//! ```rust,no_run
//! use coracle::Message;
//! use coracle::client::{Client, Connected, Reconnect};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder("ws://127.0.0.1:9001/")
//!     .reconnect(Reconnect::new().attempts(100))
//!     .on_connect(async |client: &Client, _: &Connected| {
//!         let _ = client.send("here I am").await;
//!     })
//!     .on_message(async |_: &Client, message: Message| println!("{message:?}"))
//!     .start()?;
//! # let _ = client;
//! # Ok(())
//! # }
//! ```
//!
//! # What becomes of a message
//!
//! A message is sent at most once, and in the order in which it was given. [`Client::accounts`] says at any moment how
//! many were handed to the socket, wait, were dropped, or were being written when a connection broke; a
//! [`Receipt`] says it of one message. What was handed to the socket may still be lost with it: whoever has to know asks
//! the server to answer.
//!
//! # Where it runs
//!
//! [`connect`](Builder::connect) and [`start`](Builder::start) give it a thread of its own. [`build`](Builder::build) gives
//! the future to whoever has an executor: smol's, or any other, because the sockets and timers are those of `async-io`,
//! which has a thread that looks after them when nobody else does. [`Client`]'s methods can be awaited anywhere.

mod backoff;
mod builder;
mod callbacks;
mod dial;
mod dispatch;
mod driver;
mod ended;
mod error;
mod handle;
mod inbox;
mod link;
mod queue;
mod shared;
mod stream;
mod target;
#[cfg(feature = "tls")]
mod tls;

pub use backoff::{Reason, Reconnect};
pub use builder::{Builder, Driver};
pub use callbacks::{Callbacks, Each, NoCallbacks, OnConnect, OnDisconnect, OnGiveUp, OnMessage};
pub use ended::{By, Disconnected, Ended, Why};
pub use error::{ConnectError, Phase, Rejected};
pub use handle::Client;
pub use queue::{Accounts, Fate, Receipt, WhenFull};
pub use shared::{Connected, State};
#[cfg(feature = "tls")]
pub use tls::{CertificateProblem, ClientTls, TlsError};
