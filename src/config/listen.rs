//! Where a configuration says to listen.

use std::fmt;
use std::path::PathBuf;

/// A place to listen on that comes with the configuration, as
/// [`Config::from_env`](super::Config::from_env) reads it; a program that knows its address calls
/// [`Builder::bind`](crate::Builder::bind) instead.
///
/// Clients speak TLS there if the configuration has [`tls`](super::Config::tls).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Listen {
    /// A TCP port.
    Tcp {
        /// An address, or a name; it is resolved when the server starts, and the first of its addresses that
        /// can be listened on is used.
        host: String,
        /// 0 takes any free one.
        port: u16,
    },
    /// A path of the Unix family.
    Unix {
        /// As of [`UnixSocket::new`](crate::UnixSocket::new).
        path: PathBuf,
        /// As of [`UnixSocket::mode`](crate::UnixSocket::mode).
        mode: u32,
    },
}

/// `host:port` or `unix:path`.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}
