//! Listening sockets under a worker's reactor.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, sockopt};

use super::Peer;
use super::unix::{self, Problem, SocketFile};
use crate::executor::{Presumed, Registered, Worker};

/// What the kernel takes for the silence before the first probe (MAX_TCP_KEEPIDLE), in whole seconds.
const MIN_SILENCE: Duration = Duration::from_secs(1);
const MAX_SILENCE: Duration = Duration::from_secs(32_767);

/// Between two probes that are not answered. The timeout of the user ends it (tcp(7)), so the number of them
/// does not matter; this is how much later than that it can be.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// A socket that listens and that no worker has yet.
#[derive(Debug)]
pub(crate) enum Bound {
    Tcp(TcpListener),
    /// With its file, if that is ours; removed before the socket is closed.
    Unix(Option<SocketFile>, UnixListener),
}

impl Bound {
    /// A non-blocking TCP socket whose options every accepted socket inherits, so that none
    /// costs a system call per connection.
    ///
    /// `probes`: where the protocol has no pings, the kernel asks after so long a silence whether the peer is
    /// there, and by `liveness` it has given up a peer that does not answer.
    pub(crate) fn tcp(
        address: SocketAddr,
        backlog: u32,
        liveness: Duration,
        probes: Option<Duration>,
    ) -> io::Result<Self> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        sockopt::set_tcp_nodelay(&fd, true)?;
        sockopt::set_socket_keepalive(&fd, true)?;
        // A peer that has vanished while bytes are on the way to it: the kernel gives up when our
        // own liveness bound would.
        let millis = i32::try_from(liveness.as_millis()).unwrap_or(i32::MAX);
        sockopt::set_tcp_user_timeout(&fd, millis.unsigned_abs())?;
        if let Some(silence) = probes {
            let silence = silence.clamp(MIN_SILENCE, MAX_SILENCE);
            sockopt::set_tcp_keepidle(&fd, silence)?;
            sockopt::set_tcp_keepintvl(&fd, PROBE_INTERVAL)?;
        }
        rustix::net::bind(&fd, &address)?;
        rustix::net::listen(&fd, i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok(Self::Tcp(fd.into()))
    }

    /// A non-blocking socket of the Unix family, and its file with these permissions.
    pub(crate) fn unix(path: &Path, mode: u32, backlog: u32) -> Result<Self, Problem> {
        let (file, listener) = unix::bind(path, mode, backlog)?;
        Ok(Self::Unix(Some(file), listener))
    }

    /// A socket that somebody else has made; it becomes non-blocking.
    pub(crate) fn adopt_tcp(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp(listener))
    }

    /// The same of the Unix family; its file is not ours to remove.
    pub(crate) fn adopt_unix(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(None, listener))
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> io::Result<ListenAddr> {
        Ok(match self {
            Self::Tcp(listener) => ListenAddr::Tcp(listener.local_addr()?),
            Self::Unix(_, listener) => {
                ListenAddr::Unix(listener.local_addr()?.as_pathname().map(Path::to_owned))
            }
        })
    }
}

/// Where a server listens; see [`ServerHandle::listeners`](crate::ServerHandle::listeners).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ListenAddr {
    /// An address of TCP, with the port that the system has given it.
    Tcp(SocketAddr),
    /// A socket of the Unix family, by the path that it was bound to; `None` for an inherited one that
    /// has no path.
    Unix(Option<PathBuf>),
}

/// `ip:port`, or `unix:` and the path.
impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(Some(path)) => write!(f, "unix:{}", path.display()),
            Self::Unix(None) => f.write_str("unix: (no path)"),
        }
    }
}

/// A listening socket under a worker's reactor.
pub(crate) struct Listener {
    /// Before the socket: it is dropped first.
    _file: Option<SocketFile>,
    socket: Registered,
}

impl Listener {
    pub(crate) fn new(worker: &Rc<Worker>, bound: Bound) -> io::Result<Self> {
        let (file, fd) = match bound {
            Bound::Tcp(listener) => (None, listener.into()),
            Bound::Unix(file, listener) => (file, listener.into()),
        };
        Ok(Self { _file: file, socket: worker.register(fd, Presumed::Readable)? })
    }

    /// Accepts one connection.
    ///
    /// # Errors
    ///
    /// Any that `accept` has (accept(2)): none of them means that the listener is broken.
    pub(crate) fn poll_accept(&mut self) -> Poll<io::Result<(OwnedFd, Peer)>> {
        let source = self.socket.source();
        loop {
            if !source.is_readable() {
                self.socket.wait();
                return Poll::Pending;
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::acceptfrom_with(source.fd(), flags) {
                Ok((fd, address)) => return Poll::Ready(Ok((fd, peer(address)))),
                Err(Errno::AGAIN) => source.not_readable(),
                // The peer has reset before we accepted; the next one may wait behind it.
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

/// Who has connected.
fn peer(address: Option<SocketAddrAny>) -> Peer {
    let Some(address) = address else {
        return Peer::Stream;
    };
    if address.address_family() == AddressFamily::UNIX {
        return Peer::Unix;
    }
    SocketAddr::try_from(address).map_or(Peer::Stream, Peer::tcp)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_connection_inherits_when_the_kernel_asks_for_its_peer() {
        let seconds = Duration::from_secs;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let asked = [(Some(25), 25), (Some(0), 1), (Some(1 << 20), 32_767)];
        for (probes, expected) in asked {
            let bound = Bound::tcp(any, 1, seconds(40), probes.map(seconds)).unwrap();
            let Bound::Tcp(listener) = bound else { unreachable!() };
            let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            listener.set_nonblocking(false).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert!(sockopt::socket_keepalive(&accepted).unwrap());
            assert_eq!(sockopt::tcp_keepidle(&accepted).unwrap(), seconds(expected));
            assert_eq!(sockopt::tcp_keepintvl(&accepted).unwrap(), PROBE_INTERVAL);
            assert_eq!(sockopt::tcp_user_timeout(&accepted).unwrap(), 40_000);
        }
    }
}
