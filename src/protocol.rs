//! What is spoken on a connection once it is a session.

use std::fmt;

/// How a session's messages are told apart on its connection; see
/// [`Session::protocol`](crate::Session::protocol).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// RFC 6455.
    #[default]
    WebSocket,
    /// Length-prefixed frames: the number of bytes, as a big-endian `u32`, then so many bytes. See
    /// [frames](crate::docs::frames).
    Frames,
    /// Long polling or server-sent events for what the session sends, and POST for what it receives. See
    /// [fallbacks](crate::docs::fallbacks).
    #[cfg(feature = "fallback")]
    Http,
}

impl Protocol {
    /// The client comes and goes with its requests: there is no connection that could be pinged, or that
    /// stalls.
    #[cfg_attr(not(feature = "fallback"), expect(clippy::unused_self, reason = "the feature does"))]
    pub(crate) fn is_http(self) -> bool {
        #[cfg(feature = "fallback")]
        if self == Self::Http {
            return true;
        }
        false
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WebSocket => "WebSocket",
            Self::Frames => "frames",
            #[cfg(feature = "fallback")]
            Self::Http => "HTTP",
        })
    }
}
