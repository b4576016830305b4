//! Listening sockets under a worker's reactor.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::Peer;
use crate::executor::{Presumed, Registered, Worker};

/// A listening TCP socket.
pub(crate) struct Listener {
    socket: Registered,
}

impl Listener {
    /// A non-blocking listening socket whose options every accepted socket inherits, so that none
    /// costs a system call per connection.
    pub(crate) fn bind(
        address: SocketAddr,
        backlog: u32,
        liveness: Duration,
    ) -> io::Result<TcpListener> {
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
        rustix::net::bind(&fd, &address)?;
        rustix::net::listen(&fd, i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok(TcpListener::from(fd))
    }

    pub(crate) fn new(worker: &Rc<Worker>, listener: TcpListener) -> io::Result<Self> {
        Ok(Self { socket: worker.register(listener.into(), Presumed::Readable)? })
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
                Ok((fd, address)) => {
                    let address = address.and_then(|address| SocketAddr::try_from(address).ok());
                    let peer = address.map_or(Peer::Stream, |address| Peer::Tcp(unmapped(address)));
                    return Poll::Ready(Ok((fd, peer)));
                }
                Err(Errno::AGAIN) => source.not_readable(),
                // The peer has reset before we accepted; the next one may wait behind it.
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

/// An IPv4 peer of a listener for both families, as IPv4: a limit per address counts it once.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), address.port()),
        IpAddr::V4(_) => address,
    }
}
