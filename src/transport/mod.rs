//! What carries a session's bytes: a socket, a pipe in memory, or any byte stream.

mod listener;
mod memory;
mod peer;
pub(crate) mod proxy;
mod socket;
mod stream;
mod unix;

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

pub use listener::ListenAddr;
pub(crate) use listener::{Bound, Listener};
pub(crate) use memory::Memory;
pub use memory::MemoryStream;
pub(crate) use memory::pair;
pub(crate) use peer::ClientName;
pub use peer::Peer;
pub(crate) use socket::Socket;
pub(crate) use stream::Stream;

/// A byte stream as the session's driver wants it: readiness first, then a call that does not
/// wait. One task at a time polls it.
///
/// An enum and not a trait object: every idle session would pay for the box.
pub(crate) enum Transport {
    Socket(Socket),
    Memory(Memory),
    Stream(Stream),
}

impl Transport {
    /// Ready when a read may bring something, so that a buffer is worth borrowing. A read may still
    /// find nothing.
    #[inline]
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Socket(socket) => socket.poll_readable(),
            Self::Memory(memory) => memory.poll_readable(cx),
            Self::Stream(stream) => stream.poll_readable(),
        }
    }

    /// Ready when something has arrived, or the end of the stream, and closing now would lose what
    /// has been sent. Only for who reads no further: what there is may be thrown away.
    pub(crate) fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Stream(stream) => stream.poll_unread(cx),
            Self::Socket(_) | Self::Memory(_) => self.poll_readable(cx),
        }
    }

    /// Appends to `buffer`, as much as it has capacity for; `Ok(0)` is the end of the stream.
    ///
    /// Cancel safe: what has been read is in the buffer.
    #[inline]
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket(socket) => socket.poll_read(buffer),
            Self::Memory(memory) => memory.poll_read(cx, buffer),
            Self::Stream(stream) => stream.poll_read(cx, buffer),
        }
    }

    /// Writes the beginning of `slices`, and says how much of it. After `Pending` the next call begins
    /// with the same bytes.
    #[inline]
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket(socket) => socket.poll_write(slices),
            Self::Memory(memory) => memory.poll_write(cx, slices),
            Self::Stream(stream) => stream.poll_write(cx, slices),
        }
    }

    /// Sends the end of the stream; the peer can still send.
    pub(crate) fn close_write(&mut self) {
        match self {
            Self::Socket(socket) => socket.close_write(),
            Self::Memory(memory) => memory.close_write(),
            Self::Stream(stream) => stream.close_write(),
        }
    }
}
