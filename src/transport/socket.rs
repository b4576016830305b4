//! Connected sockets under a worker's reactor.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

use super::Parting;
use crate::executor::{Presumed, Registered, Worker};

/// A connected socket, of TCP or of the Unix family: both are read and written by the same calls.
pub(crate) struct Socket {
    socket: Registered,
}

impl Socket {
    /// Puts an accepted, non-blocking socket under the worker's reactor.
    pub(crate) fn new(worker: &Rc<Worker>, fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: worker.register(fd, Presumed::Writable)? })
    }

    #[inline]
    pub(super) fn poll_readable(&mut self) -> Poll<()> {
        let source = self.socket.source();
        if source.is_readable() {
            return Poll::Ready(());
        }
        self.socket.wait();
        Poll::Pending
    }

    pub(super) fn parting(&mut self) -> Parting {
        self.socket.wait();
        let source = self.socket.source();
        match (source.is_broken(), source.is_hung_up()) {
            (true, _) => Parting::Broken,
            (false, true) => Parting::Ended,
            (false, false) => Parting::No,
        }
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
