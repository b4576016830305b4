//! Who is at the other end of a connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The other end of a connection, as far as its transport knows it.
///
/// Made by the server; [`Request::peer`](crate::Request::peer) and
/// [`Session::peer`](crate::Session::peer) tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Peer {
    /// A TCP socket; or a stream that the application has served from this address.
    Tcp(SocketAddr),
    /// A socket of the Unix family: some process on this machine. Who may connect is decided by the
    /// permissions of the socket's file.
    Unix,
    /// A [`MemoryStream`](crate::MemoryStream) of this process.
    Memory,
    /// A stream that the application has served without saying where it comes from.
    Stream,
}

impl Peer {
    /// An IPv4 peer of a listener for both families is one of IPv4: a limit per address counts it once.
    pub(crate) fn tcp(addr: SocketAddr) -> Self {
        Self::Tcp(match addr.ip() {
            IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), addr.port()),
            IpAddr::V4(_) => addr,
        })
    }

    /// The address, if there is one.
    #[must_use]
    pub const fn addr(self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(addr) => Some(addr),
            Self::Unix | Self::Memory | Self::Stream => None,
        }
    }

    /// The IP address, if there is one.
    #[must_use]
    pub fn ip(self) -> Option<IpAddr> {
        self.addr().map(|addr| addr.ip())
    }
}

/// The address as `ip:port`, otherwise `unix`, `memory` or `stream`.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix => f.write_str("unix"),
            Self::Memory => f.write_str("memory"),
            Self::Stream => f.write_str("stream"),
        }
    }
}

/// A client for a log: its address, and the proxy's if there is one in between.
pub(crate) struct ClientName(pub(crate) Peer, pub(crate) Option<IpAddr>);

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.1) {
            (peer, Some(client)) if peer.ip() != Some(client) => write!(f, "{client} by {peer}"),
            (peer, _) => peer.fmt(f),
        }
    }
}
