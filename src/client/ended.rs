//! How a connection of a client ended: one record.

use std::fmt;
use std::io;
use std::time::Duration;

use super::error::ConnectError;
use crate::message::{CloseCode, Text};

/// Why a connection ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Why {
    /// The server sent a close frame.
    Closed,
    /// [`Client::close`](super::Client::close).
    Requested,
    /// [`Client::abort`](super::Client::abort), or everybody who could have used it is gone.
    Aborted,
    /// The stream ended without a close frame.
    Vanished,
    /// The socket failed, or TLS did.
    Io(io::Error),
    /// The server broke the protocol (RFC 6455), or sent more than
    /// [`Builder::message_bytes`](super::Builder::message_bytes).
    Violation(String),
    /// No sign of life within [`Builder::pong_timeout`](super::Builder::pong_timeout) after a ping.
    PongTimeout,
    /// The server took no byte for [`Builder::write_stall`](super::Builder::write_stall).
    WriteStalled,
}

/// Which side ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// This client: its application, or one of its timers.
    Client,
    /// The server, or the network between.
    Server,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

/// How a connection ended, and what became of what was on its way.
#[derive(Debug)]
pub struct Disconnected {
    pub(super) why: Why,
    pub(super) by: By,
    pub(super) code: Option<CloseCode>,
    pub(super) reason: Text,
    pub(super) clean: bool,
    pub(super) in_flight: u64,
    pub(super) lived: Duration,
}

impl Disconnected {
    /// Why.
    #[must_use]
    pub fn why(&self) -> &Why {
        &self.why
    }

    /// Which side ended it.
    #[must_use]
    pub fn by(&self) -> By {
        self.by
    }

    /// The code of the close frame that began the end, the server's or ours. A code that nobody may send, and 1014, is
    /// told as 1002, which is what it was answered with.
    #[must_use]
    pub fn code(&self) -> Option<CloseCode> {
        self.code
    }

    /// The reason in it.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether both sides have said goodbye.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.clean
    }

    /// Messages that were being written when it ended, together in one piece, of which some bytes had been handed to the
    /// socket: which of them the server has, nobody knows ([`Fate::InFlight`](super::Fate::InFlight)). They are not
    /// sent again.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// How long the WebSocket was open.
    #[must_use]
    pub fn lived(&self) -> Duration {
        self.lived
    }
}

impl fmt::Display for Disconnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { why, by, code, reason, in_flight, lived, .. } = self;
        write!(f, "disconnected by {by}: ")?;
        match why {
            Why::Closed => f.write_str("it closed the connection")?,
            Why::Requested => f.write_str("as asked for")?,
            Why::Aborted => f.write_str("aborted")?,
            Why::Vanished => f.write_str("the connection ended without a goodbye")?,
            Why::Io(error) => write!(f, "{error}")?,
            Why::Violation(problem) => write!(f, "the protocol was broken: {problem}")?,
            Why::PongTimeout => f.write_str("no answer to a ping")?,
            Why::WriteStalled => f.write_str("it took nothing that was sent")?,
        }
        if let Some(code) = code {
            write!(f, ", code {code}")?;
        }
        if !reason.is_empty() {
            write!(f, " {:?}", reason.as_str())?;
        }
        if *in_flight > 0 {
            write!(f, ", {in_flight} messages in flight")?;
        }
        write!(f, ", lived {lived:.1?}")
    }
}

/// Why a client has ended for good. Printed it is a sentence.
#[derive(Debug)]
#[non_exhaustive]
pub enum Ended {
    /// [`Client::close`](super::Client::close) or [`Client::abort`](super::Client::abort); or everybody who could have
    /// used the client is gone. How its connection ended, if there was one.
    Requested(Option<Disconnected>),
    /// The last attempt to connect has failed, and there is no further one.
    Failed {
        /// How many have failed since the last connection.
        attempts: u32,
        /// The last one.
        last: ConnectError,
    },
    /// The connection ended, and the client does not come back.
    Disconnected(Disconnected),
    /// A callback panicked.
    Panicked,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested(None) => {
                f.write_str("the client was closed while it had no connection")
            }
            Self::Requested(Some(last)) => write!(f, "the client was closed: {last}"),
            Self::Failed { attempts: 1, last } => write!(f, "gave up after one attempt: {last}"),
            Self::Failed { attempts, last } => {
                write!(f, "gave up after {attempts} attempts: {last}")
            }
            Self::Disconnected(last) => write!(f, "gave up: {last}"),
            Self::Panicked => f.write_str("a callback panicked"),
        }
    }
}

impl std::error::Error for Ended {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed { last, .. } => Some(last),
            _ => None,
        }
    }
}
