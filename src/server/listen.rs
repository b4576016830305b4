//! What a server listens on, from what was asked for to sockets.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::crew::Speaks;
use super::inherited;
use crate::config::{Config, Listen};
use crate::error::{Error, Result};
use crate::transport::Bound;

/// The permissions of a socket's file, if none are asked for.
pub(crate) const MODE: u32 = 0o660;

/// A path to listen on, and the permissions of the file; for [`Builder::bind_unix`](crate::Builder).
///
/// ```
/// # use coracle::{Server, UnixSocket};
/// let server = Server::builder().bind_unix("/run/chat/chat.sock");
/// let server = Server::builder().bind_unix(UnixSocket::new("/run/chat/chat.sock").mode(0o666));
/// ```
#[derive(Clone, Debug)]
#[must_use = "it is for `Builder::bind_unix`"]
pub struct UnixSocket {
    path: PathBuf,
    mode: u32,
}

impl UnixSocket {
    /// A socket at this path, which has at most 107 bytes. A relative one is relative to the working
    /// directory when the server starts.
    ///
    /// Its directory must exist, and whoever may write there may replace the socket: /run and a
    /// directory of your own in it are good places, /tmp is none.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), mode: MODE }
    }

    /// The permissions of the socket's file. Default `0o660`: to connect, a process has to be of the
    /// server's user or group. Who may write may connect (unix(7)); the umask does not matter.
    ///
    /// More than `0o777` is an error at `start`, and so is a mode by which nobody may write.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    fn listen(&self, backlog: u32) -> Result<Bound> {
        let name = || format!("unix:{}", self.path.display());
        let mode = self.mode;
        if mode > 0o777 {
            return Err(Error::Config(format!(
                "the mode of {} is {mode:#o}: permissions are 0o000 to 0o777",
                name()
            )));
        }
        if mode & 0o222 == 0 {
            return Err(Error::Config(format!(
                "with the mode {mode:#05o} of {} nobody can connect, because connecting takes the \
                 permission to write: choose for example 0o660",
                name()
            )));
        }
        Bound::unix(&self.path, mode, backlog).map_err(|it| Error::Listen {
            on: name(),
            problem: it.text,
            source: it.source,
        })
    }
}

impl From<&str> for UnixSocket {
    fn from(path: &str) -> Self {
        Self::new(path)
    }
}

impl From<String> for UnixSocket {
    fn from(path: String) -> Self {
        Self::new(path)
    }
}

impl From<&Path> for UnixSocket {
    fn from(path: &Path) -> Self {
        Self::new(path)
    }
}

impl From<PathBuf> for UnixSocket {
    fn from(path: PathBuf) -> Self {
        Self::new(path)
    }
}

/// One thing that a builder was asked to listen on.
pub(super) enum Source {
    /// What was asked for, and what that means.
    Address(String, io::Result<Vec<SocketAddr>>),
    Tcp(TcpListener),
    Path(UnixSocket),
    Unix(UnixListener),
    /// What the service manager has passed under this name, or all of it.
    Inherited(Option<String>),
}

/// What the configuration says to listen on.
pub(super) fn configured(config: &Config) -> Vec<(Source, Speaks)> {
    #[cfg(feature = "tls")]
    let speaks = if config.tls.is_some() { Speaks::Tls } else { Speaks::Plain };
    #[cfg(not(feature = "tls"))]
    let speaks = Speaks::Plain;
    let source = |listen: &Listen| match listen {
        Listen::Tcp { host, port } => {
            let addresses = (host.as_str(), *port).to_socket_addrs().map(Iterator::collect);
            Source::Address(listen.to_string(), addresses)
        }
        Listen::Unix { path, mode } => Source::Path(UnixSocket::new(path).mode(*mode)),
    };
    config.listen.iter().map(|listen| (source(listen), speaks)).collect()
}

impl Source {
    /// Adds the sockets that it comes to. `probes`: after so long a silence the kernel asks whether the peer
    /// of a TCP connection is there; not of sockets that somebody else has made.
    pub(super) fn listen(
        self,
        backlog: u32,
        liveness: Duration,
        probes: Option<Duration>,
        listeners: &mut Vec<Bound>,
    ) -> Result<()> {
        let adopted = |bound: io::Result<Bound>| {
            let what = "cannot make a listener non-blocking";
            bound.map_err(|source| Error::System { what, source })
        };
        listeners.push(match self {
            Self::Address(name, addresses) => bind(name, addresses, backlog, liveness, probes)?,
            Self::Tcp(listener) => adopted(Bound::adopt_tcp(listener))?,
            Self::Path(socket) => socket.listen(backlog)?,
            Self::Unix(listener) => adopted(Bound::adopt_unix(listener))?,
            Self::Inherited(name) => {
                listeners.extend(inherited::take(name.as_deref())?);
                return Ok(());
            }
        });
        Ok(())
    }
}

/// The first of these addresses that can be listened on.
fn bind(
    name: String,
    addresses: io::Result<Vec<SocketAddr>>,
    backlog: u32,
    liveness: Duration,
    probes: Option<Duration>,
) -> Result<Bound> {
    let addresses = match addresses {
        Ok(addresses) => addresses,
        Err(source) => return Err(Error::Bind { address: name, source }),
    };
    let mut failed = None;
    for address in addresses {
        match Bound::tcp(address, backlog, liveness, probes) {
            Ok(bound) => return Ok(bound),
            Err(source) => failed = Some(Error::bind(address, source)),
        }
    }
    Err(failed.unwrap_or_else(|| Error::Config(format!("{name:?} has no address"))))
}
