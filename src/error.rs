//! What fails when we are asked for something. How a *session* ends is not an error but a
//! [`Closed`](crate::Closed).

use std::fmt;
use std::io;
use std::net::SocketAddr;

use crate::message::Message;

/// The result of what this crate is asked to do.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of an application's handler.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a server could not be started or run.
///
/// `Debug` prints the same sentence as `Display`, because that is what a `main` that returns it
/// shows.
#[non_exhaustive]
pub enum Error {
    /// The caller's fault: a setting that cannot be. Names the setting, its value and what is
    /// allowed.
    Config(String),
    /// The address could not be listened on; says what to do about it.
    Bind {
        /// The address as it was asked for.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// A socket of the Unix family, or an inherited one, could not be listened on; says what is wrong and
    /// what to do about it.
    Listen {
        /// Which: `unix:` and the path, or the inherited descriptor.
        on: String,
        /// What is wrong and what to do about it.
        problem: String,
        /// What the system said, if it was asked.
        source: Option<io::Error>,
    },
    /// A certificate, a key or a list of authorities that cannot be used; says what to do about it.
    #[cfg(feature = "tls")]
    Tls {
        /// The file.
        file: std::path::PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The store of the history could not be opened; says what to do about it.
    History(crate::history::StoreError),
    /// The system refused something else that the server cannot do without.
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn bind(address: SocketAddr, source: io::Error) -> Self {
        Self::Bind { address: address.to_string(), source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(what) => write!(f, "configuration: {what}"),
            Self::Bind { address, source } => {
                write!(f, "cannot listen on {address}: {source}")?;
                match source.kind() {
                    io::ErrorKind::AddrInUse => f.write_str(
                        "; another process has this port: stop it, or choose another port \
                         (port 0 takes any free one)",
                    ),
                    io::ErrorKind::PermissionDenied => f.write_str(
                        "; ports below 1024 need the capability CAP_NET_BIND_SERVICE: choose a \
                         higher port, or grant it with `setcap`",
                    ),
                    io::ErrorKind::AddrNotAvailable => f.write_str(
                        "; this machine has no such address: listen on 0.0.0.0 or [::] for all of \
                         them, or on 127.0.0.1 for this machine only",
                    ),
                    _ => Ok(()),
                }
            }
            Self::Listen { on, problem, source } => {
                write!(f, "cannot listen on {on}: {problem}")?;
                match source {
                    Some(source) => write!(f, " ({source})"),
                    None => Ok(()),
                }
            }
            #[cfg(feature = "tls")]
            Self::Tls { file, problem } => write!(f, "TLS: {}: {problem}", file.display()),
            Self::History(error) => write!(f, "history: {error}"),
            Self::System { what, source } => {
                write!(f, "{what}: {source}")?;
                if matches!(source.raw_os_error(), Some(23 | 24)) {
                    f.write_str("; the limit of open files is reached: raise it with `ulimit -n`")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(_) => None,
            Self::History(error) => Some(error),
            Self::Listen { source, .. } => Some(source.as_ref()?),
            #[cfg(feature = "tls")]
            Self::Tls { .. } => None,
            Self::Bind { source, .. } | Self::System { source, .. } => Some(source),
        }
    }
}

impl From<crate::history::StoreError> for Error {
    fn from(error: crate::history::StoreError) -> Self {
        Self::History(error)
    }
}

/// Why a message was not queued; it comes back.
#[derive(Debug)]
pub enum SendError {
    /// As much as may wait for this peer does wait already. Only
    /// [`Session::try_send`](crate::Session::try_send) says so; `send` waits instead.
    Full(Message),
    /// The session is ending or has ended.
    Closed(Message),
}

impl SendError {
    /// The message that was not sent.
    #[must_use]
    pub fn into_message(self) -> Message {
        match self {
            Self::Full(message) | Self::Closed(message) => message,
        }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "the peer's outbox is full",
            Self::Closed(_) => "the session is closed",
        })
    }
}

impl std::error::Error for SendError {}

/// The session ended in the middle of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted(());

impl Interrupted {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the session ended in the middle of a message")
    }
}

impl std::error::Error for Interrupted {}

impl From<Interrupted> for io::Error {
    fn from(error: Interrupted) -> Self {
        Self::new(io::ErrorKind::ConnectionAborted, error)
    }
}

/// Why a message was not written to its end; see [`MessageWriter`](crate::MessageWriter).
#[derive(Debug)]
#[non_exhaustive]
pub enum WriteError {
    /// The session is ending or has ended.
    Closed,
    /// A text message would not be UTF-8.
    NotUtf8,
    /// A message that has to be whole before it is sent would be longer than
    /// [`Limits::message_bytes`](crate::config::Limits::message_bytes).
    TooBig,
    /// What it was read from failed.
    Source(io::Error),
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the session is closed"),
            Self::NotUtf8 => f.write_str("a text message must be UTF-8: send it as binary"),
            Self::TooBig => f.write_str(
                "a message of a session of frames is collected before it is sent, and it is above \
                 limits.message_bytes: send it as several",
            ),
            Self::Source(error) => write!(f, "cannot read what was to be sent: {error}"),
        }
    }
}

impl std::error::Error for WriteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Closed | Self::NotUtf8 | Self::TooBig => None,
            Self::Source(error) => Some(error),
        }
    }
}
