//! A connection that never leaves the process: two bounded pipes.
//!
//! The server's end is an ordinary [`Transport`](super::Transport); the client's end is a byte stream for any
//! executor. Tests use it, and programs that talk to their own server.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_lite::{AsyncRead, AsyncWrite};

use super::Parting;

/// Bytes that wait in one direction: what a loopback socket holds at least.
const CAPACITY: usize = 64 * 1024;

/// One direction.
#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// The writing end is closed: after `bytes` comes the end of the stream.
    ended: bool,
    /// The reading end is gone: writing fails.
    broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Pipe>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pipe> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut pipe = self.lock();
        if pipe.ended || !pipe.bytes.is_empty() {
            return Poll::Ready(());
        }
        pipe.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_read(
        &self,
        cx: &mut Context<'_>,
        room: usize,
        mut sink: impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        if self.poll_readable(cx).is_pending() {
            return Poll::Pending;
        }
        let mut pipe = self.lock();
        let count = room.min(pipe.bytes.len());
        let (front, back) = pipe.bytes.as_slices();
        let from_front = count.min(front.len());
        sink(&front[..from_front]);
        sink(&back[..count - from_front]);
        pipe.bytes.drain(..count);
        let writer = pipe.writer.take();
        drop(pipe);
        writer.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(count))
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut pipe = self.lock();
        if pipe.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if pipe.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut room = CAPACITY - pipe.bytes.len();
        if room == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut count = 0;
        for slice in slices {
            let part = &slice[..slice.len().min(room)];
            pipe.bytes.extend(part);
            room -= part.len();
            count += part.len();
        }
        let reader = pipe.reader.take();
        drop(pipe);
        reader.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(count))
    }

    /// Closes the writing end.
    fn end(&self) {
        let mut pipe = self.lock();
        pipe.ended = true;
        pipe.writer = None;
        let reader = pipe.reader.take();
        drop(pipe);
        reader.into_iter().for_each(Waker::wake);
    }

    /// Closes the reading end.
    fn shatter(&self) {
        let mut pipe = self.lock();
        pipe.broken = true;
        pipe.bytes = VecDeque::new();
        pipe.reader = None;
        let writer = pipe.writer.take();
        drop(pipe);
        writer.into_iter().for_each(Waker::wake);
    }
}

/// Both ends of one connection: the server's and the client's.
pub(crate) fn pair() -> (Memory, MemoryStream) {
    let (up, down) = (Shared::default(), Shared::default());
    let server = Memory { incoming: up.clone(), outgoing: down.clone() };
    (server, MemoryStream { incoming: down, outgoing: up })
}

/// The server's end.
pub(crate) struct Memory {
    incoming: Shared,
    outgoing: Shared,
}

impl Memory {
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.incoming.poll_readable(cx)
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        let room = buffer.capacity() - buffer.len();
        self.incoming.poll_read(cx, room, |bytes| buffer.extend_from_slice(bytes))
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.outgoing.poll_write(cx, slices)
    }

    pub(super) fn parting(&mut self, cx: &mut Context<'_>) -> Parting {
        {
            let mut pipe = self.outgoing.lock();
            if pipe.broken {
                return Parting::Broken;
            }
            pipe.writer = Some(cx.waker().clone());
        }
        let mut pipe = self.incoming.lock();
        pipe.reader = Some(cx.waker().clone());
        if pipe.ended { Parting::Ended } else { Parting::No }
    }

    pub(super) fn close_write(&mut self) {
        self.outgoing.end();
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.outgoing.end();
        self.incoming.shatter();
    }
}

/// The client's end of a connection within the process, as any byte stream: an HTTP request and
/// WebSocket frames go through it just as through a socket.
///
/// Made by [`ServerHandle::connect`](crate::ServerHandle::connect). Each direction holds 64 KiB;
/// then writing waits. Dropping it closes both directions, as closing a socket does; reads and
/// writes are cancel safe.
pub struct MemoryStream {
    incoming: Shared,
    outgoing: Shared,
}

impl std::fmt::Debug for MemoryStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStream").finish_non_exhaustive()
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut filled = 0;
        self.incoming.poll_read(cx, buffer.len(), |bytes| {
            buffer[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
        })
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.outgoing.poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        self.outgoing.end();
        self.incoming.shatter();
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::{AsyncReadExt, AsyncWriteExt, future};

    use super::*;

    #[test]
    fn more_than_the_pipe_holds_goes_through_in_order() {
        let (mut server, mut client) = pair();
        let sent: Vec<u8> = (0..300_000_u32).map(|i| i as u8).collect();
        let expected = sent.clone();
        future::block_on(future::zip(
            async move {
                client.write_all(&sent).await.unwrap();
                client.close().await.unwrap();
                client
            },
            async move {
                let mut received = Vec::new();
                let mut buffer = Vec::with_capacity(1000);
                loop {
                    buffer.clear();
                    let count =
                        std::future::poll_fn(|cx| server.poll_read(cx, &mut buffer)).await.unwrap();
                    if count == 0 {
                        break;
                    }
                    received.extend_from_slice(&buffer);
                }
                assert_eq!(received, expected);
            },
        ));
    }

    #[test]
    fn a_dropped_end_is_the_end_of_the_stream_and_breaks_writing() {
        let (server, mut client) = pair();
        drop(server);
        future::block_on(async {
            assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
            let error = client.write(b"x").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        });
    }
}
