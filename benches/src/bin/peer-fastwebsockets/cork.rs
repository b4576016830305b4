//! A stream that holds small writes back until its reader has to wait.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Held back at most; a batch of sixteen 1 KiB messages fits.
const HELD_BYTES: usize = 64 * 1024;

/// Writes at least this long go out at once, together with what is held and without a copy, unless
/// more input is waiting: then one call for several is worth more (12 % with 16 KiB messages).
const LARGE_BYTES: usize = 4 * 1024;

/// A stream with a cork. Over TLS it lies above it, so that what is put together is one record.
pub(crate) struct Corked<S> {
    stream: S,
    /// What came with the upgrade request.
    early: Bytes,
    held: Vec<u8>,
    /// How much of `held` is written.
    written: usize,
    /// Whether the last read left room: then nothing more is waiting.
    drained: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Corked<S> {
    pub(crate) fn new(stream: S, early: Bytes) -> Self {
        Self { stream, early, held: Vec::new(), written: 0, drained: true }
    }

    fn poll_release(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.held.len() {
            let rest = &self.held[self.written..];
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            self.written += written;
        }
        self.held.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Writes what is held and `parts` in one call, and says how much of `parts` went.
    fn poll_through(
        &mut self,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let held = &self.held[self.written..];
        let mut all = [IoSlice::new(&[]); 3];
        all[0] = IoSlice::new(held);
        let mut count = 1;
        // What does not fit is left to the caller's next write.
        for (to, part) in all[1..].iter_mut().zip(parts) {
            *to = IoSlice::new(part);
            count += 1;
        }
        let from = usize::from(held.is_empty());
        let written =
            ready!(Pin::new(&mut self.stream).poll_write_vectored(context, &all[from..count]))?;
        let of_held = written.min(held.len());
        self.written += of_held;
        if self.written == self.held.len() {
            self.held.clear();
            self.written = 0;
        }
        if written == of_held {
            // Nothing of `parts` yet, and zero would mean the end: the socket is full, or nearly.
            ready!(self.poll_release(context))?;
            return Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        }
        Poll::Ready(Ok(written - of_held))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.early.is_empty() {
            let len = this.early.len().min(buffer.remaining());
            buffer.put_slice(&this.early.split_to(len));
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        this.drained = buffer.remaining() > 0;
        if read.is_pending() && !this.held.is_empty() {
            // The reader has to wait anyway; if the writer has to as well, both wake it.
            if let Poll::Ready(Err(error)) = this.poll_release(context) {
                return Poll::Ready(Err(error));
            }
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len >= LARGE_BYTES && (self.drained || len > HELD_BYTES) {
            return self.poll_through(context, parts);
        }
        if self.held.len() + len > HELD_BYTES {
            ready!(self.poll_release(context))?;
        }
        for part in parts {
            self.held.extend_from_slice(part);
        }
        Poll::Ready(Ok(len))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_release(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
