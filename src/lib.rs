//! An embeddable WebSocket server for small binaries and embedded Linux boxes: on smol, without
//! tokio.

pub mod config;
mod error;
mod executor;
mod http;
mod hub;
mod message;
mod outbox;
mod server;
mod session;
mod shutdown;
mod transport;
mod ws;

pub use ::http as http_types;

pub use error::{BoxError, Error, Result, SendError};
pub use http::{OriginPolicy, Request, Response, Upgrade};
pub use hub::SessionId;
pub use message::{CloseCode, Message, Text};
pub use outbox::Buffered;
pub use server::{Builder, Report, Server, ServerHandle};
pub use session::{
    Cause, Closed, Closures, Flow, Handler, HandlerError, IntoOutcome, Outcome, Phase, Sending,
    Session, Sessions, Set, Side, Timer, Traffic, Unset,
};
pub use shutdown::Shutdown;
pub use transport::MemoryStream;
