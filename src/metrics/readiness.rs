//! May somebody be sent to this server?

use std::fmt;

/// What a server says to those who watch it, for routes such as `/healthz` and `/readyz`; see
/// [`ServerHandle::readiness`](crate::ServerHandle::readiness).
///
/// ```
/// use coracle::http_types::Response;
/// use coracle::{Readiness, Response as Answer};
///
/// fn readyz(readiness: Readiness) -> Option<Answer> {
///     let status = if readiness.is_ready() { 200 } else { 503 };
///     Response::builder().status(status).body(readiness.to_string().into_bytes()).ok()
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Readiness {
    /// Whoever connects is served.
    Ready,
    /// It has as many sessions as it may have
    /// ([`Limits::sessions`](crate::config::Limits::sessions)); others are told to come again.
    Full,
    /// It stops: sessions that are open go on to their end, and nobody new is served.
    Stopping,
    /// It has ended.
    Stopped,
}

impl Readiness {
    /// Whether the server should be left running. Only one that has ended need not be: a server that is
    /// full, or stops, would lose its sessions if somebody restarted it for that.
    #[must_use]
    pub fn is_live(self) -> bool {
        self != Self::Stopped
    }

    /// Whether new clients should be sent here.
    #[must_use]
    pub fn is_ready(self) -> bool {
        self == Self::Ready
    }
}

/// One word: `ready`, `full`, `stopping` or `stopped`.
impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Full => "full",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        })
    }
}
