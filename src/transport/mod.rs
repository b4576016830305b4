//! What carries a session's bytes: a TCP socket, or a pipe in memory.

mod memory;
mod tcp;

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

pub use memory::MemoryStream;
pub(crate) use memory::{Memory, pair};
pub(crate) use tcp::{Listener, Tcp};

/// A byte stream as the session's driver wants it: readiness first, then a call that does not
/// wait. One task at a time polls it.
pub(crate) trait Transport {
    /// Ready when a read may bring something, so that a buffer is worth borrowing.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Appends to `buffer`, as much as it has capacity for; `Ok(0)` is the end of the stream.
    ///
    /// Cancel safe: what has been read is in the buffer.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>>;

    /// Writes the beginning of `slices`, and says how much of it.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Sends the end of the stream; the peer can still send.
    fn close_write(&mut self);
}
