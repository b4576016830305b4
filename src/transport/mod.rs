//! What carries a session's bytes: a TCP socket, or a pipe in memory; either with TLS.

mod memory;
mod tcp;
#[cfg(feature = "tls")]
mod tls;

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

pub(crate) use memory::Memory;
pub use memory::MemoryStream;
pub(crate) use memory::pair;
pub(crate) use tcp::{Listener, Tcp};
#[cfg(feature = "tls")]
pub(crate) use tls::Tls;

/// A byte stream as the session's driver wants it: readiness first, then a call that does not
/// wait. One task at a time polls it.
///
/// An enum and not a trait object: every idle session would pay for the box.
pub(crate) enum Transport {
    Tcp(Tcp),
    Memory(Memory),
    /// In a box, so that the others are no larger.
    #[cfg(feature = "tls")]
    Tls(Box<Tls>),
}

impl Transport {
    /// Ready when a read may bring something, so that a buffer is worth borrowing.
    #[inline]
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Tcp(tcp) => tcp.poll_readable(),
            Self::Memory(memory) => memory.poll_readable(cx),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_readable(cx),
        }
    }

    /// Appends to `buffer`, as much as it has capacity for; `Ok(0)` is the end of the stream.
    ///
    /// `UnexpectedEof` is an end that TLS does not vouch for: no close_notify came before it (RFC 8446
    /// section 6.1).
    ///
    /// Cancel safe: what has been read is in the buffer.
    #[inline]
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_read(buffer),
            Self::Memory(memory) => memory.poll_read(cx, buffer),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_read(cx, buffer),
        }
    }

    /// Writes the beginning of `slices`, and says how much of it: so much has been given to the system.
    ///
    /// Whoever has begun to write goes on with the rest of the same bytes, or writes no more: TLS may
    /// have encrypted more of them than it has reported.
    #[inline]
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_write(slices),
            Self::Memory(memory) => memory.poll_write(cx, slices),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_write(cx, slices),
        }
    }

    /// Sends the end of the stream; the peer can still send.
    pub(crate) fn close_write(&mut self) {
        match self {
            Self::Tcp(tcp) => tcp.close_write(),
            Self::Memory(memory) => memory.close_write(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.close_write(),
        }
    }
}
