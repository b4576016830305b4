//! The byte stream of a connection, and how the protocol's machine sees it.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::{AsyncRead, AsyncWrite};
use smol::net::TcpStream;

/// TCP, with or without TLS.
pub(super) enum Stream {
    Tcp(Counted),
    #[cfg(feature = "tls")]
    Tls(Box<futures_rustls::client::TlsStream<Counted>>),
}

impl Stream {
    /// What the socket has carried, TLS and all.
    pub(super) fn carried(&self) -> Carried {
        match self {
            Self::Tcp(tcp) => tcp.carried,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.get_ref().0.carried,
        }
    }
}

/// A socket that counts.
pub(super) struct Counted {
    tcp: TcpStream,
    carried: Carried,
}

impl Counted {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp, carried: Carried::default() }
    }

    fn has_read(&mut self, read: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(read)) = read {
            self.carried.read += read as u64;
        }
        read
    }

    fn has_written(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = written {
            self.carried.written += written as u64;
        }
        written
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.tcp).poll_read(cx, to);
        self.has_read(read)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.tcp).poll_read_vectored(cx, to);
        self.has_read(read)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, from);
        self.has_written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, from);
        self.has_written(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_close(cx)
    }
}

macro_rules! either {
    ($this:expr, $stream:ident => $do:expr) => {
        match $this.get_mut() {
            Stream::Tcp($stream) => $do,
            #[cfg(feature = "tls")]
            Stream::Tls($stream) => $do,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, to))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, from))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_close(cx))
    }
}

/// Bytes that a stream has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) read: u64,
    pub(super) written: u64,
}

/// The stream as the protocol's machine wants it: what would have to wait is `WouldBlock`, and wakes the task.
pub(super) struct Polled<'a, 'b, S> {
    pub(super) stream: &'a mut S,
    pub(super) cx: &'a mut Context<'b>,
    /// How often may still be read before others get their turn.
    pub(super) reads: usize,
}

fn done<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl<S: AsyncRead + Unpin> Read for Polled<'_, '_, S> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.reads.checked_sub(1) else {
            self.cx.waker().wake_by_ref();
            return Err(io::ErrorKind::WouldBlock.into());
        };
        self.reads = left;
        done(Pin::new(&mut *self.stream).poll_read(self.cx, to))
    }
}

impl<S: AsyncWrite + Unpin> Write for Polled<'_, '_, S> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        done(Pin::new(&mut *self.stream).poll_write(self.cx, from))
    }

    fn flush(&mut self) -> io::Result<()> {
        done(Pin::new(&mut *self.stream).poll_flush(self.cx))
    }
}
