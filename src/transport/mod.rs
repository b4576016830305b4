//! What carries a session's bytes: a TCP socket, or a pipe in memory. Beside it what any byte stream can
//! have: deadlines and rates.

mod budget;
mod deadline;
mod memory;
mod rate;
mod tcp;

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

pub use budget::{Deadline, DeadlineExceeded};
pub use deadline::{DeadlineStream, Deadlines};
pub(crate) use memory::Memory;
pub use memory::MemoryStream;
pub(crate) use memory::pair;
pub use rate::{Allowance, BytesPerSecond, RatePolicy, Unlimited};
pub(crate) use tcp::{Listener, Tcp};

/// A byte stream as the session's driver wants it: readiness first, then a call that does not
/// wait. One task at a time polls it.
///
/// An enum and not a trait object: every idle session would pay for the box.
pub(crate) enum Transport {
    Tcp(Tcp),
    Memory(Memory),
}

impl Transport {
    /// Ready when a read may bring something, so that a buffer is worth borrowing.
    #[inline]
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Tcp(tcp) => tcp.poll_readable(),
            Self::Memory(memory) => memory.poll_readable(cx),
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
            Self::Tcp(tcp) => tcp.poll_read(buffer),
            Self::Memory(memory) => memory.poll_read(cx, buffer),
        }
    }

    /// Writes the beginning of `slices`, and says how much of it.
    #[inline]
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_write(slices),
            Self::Memory(memory) => memory.poll_write(cx, slices),
        }
    }

    /// Sends the end of the stream; the peer can still send.
    pub(crate) fn close_write(&mut self) {
        match self {
            Self::Tcp(tcp) => tcp.close_write(),
            Self::Memory(memory) => memory.close_write(),
        }
    }
}
