#![doc = include_str!("docs/front.md")]

#[cfg(feature = "client")]
pub mod client;
pub mod config;
mod error;
mod executor;
#[cfg(feature = "fallback")]
mod fallback;
pub mod history;
mod http;
mod hub;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod message;
mod metrics;
mod network;
mod outbox;
mod paths;
mod protocol;
mod server;
mod session;
mod shutdown;
#[cfg(feature = "tls")]
mod tls;
mod transport;
#[cfg(feature = "json")]
mod typed;
mod ws;

pub use ::http as http_types;
#[cfg(feature = "metrics")]
pub use prometheus_client;

pub use error::{BoxError, Error, Interrupted, Result, SendError, WriteError};
#[cfg(feature = "fallback")]
pub use fallback::Fallbacks;
pub use history::History;
pub use http::{
    Body, BodyError, Handover, IntoReply, OriginPolicy, Reply, Request, Response, Routes, Upgrade,
};
pub use hub::{
    Audience, Excesses, JoinError, Presence, PresenceChange, PresenceEvent, PresenceHook,
    Publication, PublishError, RoomPolicy, RoomStats, Rooms, SessionId,
};
pub use message::{CloseCode, Kind, Message, Outgoing, Text};
#[cfg(feature = "metrics")]
pub use metrics::Metrics;
pub use metrics::Readiness;
pub use outbox::{Buffered, Gap, Losses, Prepared, SlowPeer};
pub use paths::Paths;
pub use protocol::Protocol;
pub use server::{Builder, Report, Server, ServerHandle, UnixSocket};
#[cfg(feature = "json")]
pub use session::Routed;
pub use session::{
    Cause, Closed, Closures, Flow, GapHook, Handler, HandlerError, Incoming, IntoOutcome,
    MessageWriter, Outcome, Phase, Rates, Sending, Session, SessionRates, Sessions, Set, Side,
    Streaming, Timer, Traffic, Unset,
};
pub use shutdown::Shutdown;
#[cfg(feature = "tls")]
pub use tls::{ClientCertificate, TlsInfo, TlsStatus};
pub use transport::{
    Allowance, BytesPerSecond, Deadline, DeadlineExceeded, DeadlineStream, Deadlines, ListenAddr,
    MemoryStream, Peer, RatePolicy, Unlimited,
};
#[cfg(feature = "json")]
pub use typed::{BadMessage, Envelope, Fault, Payload, Router, Scalar, SendTypedError, Typed};

/// Longer explanations than fit beside one name.
pub mod docs {
    #[doc = include_str!("docs/backpressure.md")]
    pub mod backpressure {}
    #[doc = include_str!("docs/browser.md")]
    pub mod browser {}
    #[cfg(feature = "deflate")]
    #[doc = include_str!("docs/compression.md")]
    pub mod compression {}
    #[doc = include_str!("docs/defaults.md")]
    pub mod defaults {}
    #[cfg(feature = "fallback")]
    #[doc = include_str!("docs/fallbacks.md")]
    pub mod fallbacks {}
    #[doc = include_str!("docs/frames.md")]
    pub mod frames {}
    #[doc = include_str!("docs/http.md")]
    pub mod http {}
    #[doc = include_str!("docs/history.md")]
    pub mod history {}
    #[doc = include_str!("docs/listeners.md")]
    pub mod listeners {}
    #[cfg(feature = "metrics")]
    #[doc = include_str!("docs/metrics.md")]
    pub mod metrics {}
    #[doc = include_str!("docs/rooms.md")]
    pub mod rooms {}
    #[doc = include_str!("docs/settings.md")]
    pub mod settings {}
    #[doc = include_str!("docs/shutdown.md")]
    pub mod shutdown {}
    #[doc = include_str!("docs/streaming.md")]
    pub mod streaming {}
    #[cfg(feature = "tls")]
    #[doc = include_str!("docs/tls.md")]
    pub mod tls {}
    #[cfg(all(feature = "client", feature = "tls"))]
    #[doc = include_str!("docs/troubleshooting.md")]
    pub mod troubleshooting {}
    #[cfg(feature = "json")]
    #[doc = include_str!("docs/typed.md")]
    pub mod typed {}
}

/// So that the program in the README is compiled with the tests.
#[cfg(all(doctest, feature = "deflate", feature = "json", feature = "metrics", feature = "tls"))]
#[doc = include_str!("../README.md")]
struct Readme;
