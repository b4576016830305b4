//! TCP sockets under a worker's reactor.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags, SocketType,
    sockopt,
};

use crate::executor::{Presumed, Registered, Worker};

/// A connected TCP socket.
pub(crate) struct Tcp {
    socket: Registered,
}

impl Tcp {
    /// Puts an accepted, non-blocking socket under the worker's reactor.
    pub(crate) fn new(worker: &Rc<Worker>, fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: worker.register(fd, Presumed::Writable)? })
    }
}

impl Tcp {
    #[inline]
    pub(super) fn poll_readable(&mut self) -> Poll<()> {
        let source = self.socket.source();
        if source.is_readable() {
            return Poll::Ready(());
        }
        self.socket.wait();
        Poll::Pending
    }

    pub(super) fn poll_read(&mut self, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        let source = self.socket.source();
        let room = buffer.capacity() - buffer.len();
        debug_assert!(room > 0, "a read without room looks like the end of the stream");
        loop {
            if !source.is_readable() {
                self.socket.wait();
                return Poll::Pending;
            }
            match rustix::net::recv(source.fd(), spare_capacity(buffer), RecvFlags::empty()) {
                Ok((received, _)) => {
                    if received < room {
                        source.short_read();
                    }
                    return Poll::Ready(Ok(received));
                }
                Err(Errno::AGAIN) => source.not_readable(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    pub(super) fn poll_write(&mut self, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let source = self.socket.source();
        loop {
            if !source.is_writable() {
                self.socket.wait();
                return Poll::Pending;
            }
            let (sent, whole) = match slices {
                [one] => (rustix::net::send(source.fd(), one, SendFlags::NOSIGNAL), one.len()),
                many => {
                    let mut control = SendAncillaryBuffer::default();
                    let sent =
                        rustix::net::sendmsg(source.fd(), many, &mut control, SendFlags::NOSIGNAL);
                    (sent, many.iter().map(|slice| slice.len()).sum())
                }
            };
            match sent {
                Ok(sent) => {
                    if sent < whole {
                        self.socket.not_writable()?;
                    }
                    return Poll::Ready(Ok(sent));
                }
                Err(Errno::AGAIN) => self.socket.not_writable()?,
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    pub(super) fn close_write(&mut self) {
        // It fails when the peer is already gone, which the next read tells.
        let _ = rustix::net::shutdown(self.socket.source().fd(), Shutdown::Write);
    }
}

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
    pub(crate) fn poll_accept(&mut self) -> Poll<io::Result<(OwnedFd, Option<SocketAddr>)>> {
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
                    return Poll::Ready(Ok((fd, address.map(unmapped))));
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
