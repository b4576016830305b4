//! Any byte stream as a transport: readiness by wakers, not by epoll.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use futures_lite::{AsyncRead, AsyncWrite};

/// Bytes read at once. What is read into has to be initialized first, and more than this would be
/// zeroed in vain for most streams.
const READ: usize = 64 * 1024;

/// Bytes thrown away at once by `poll_unread`.
const DISCARD: usize = 1024;

/// Both directions of a stream.
trait Duplex: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> Duplex for S {}

/// A stream that the application has handed over.
///
/// Behind one pointer, so that sessions on sockets do not pay for its size.
pub(crate) struct Stream(Box<Inner>);

struct Inner {
    stream: Pin<Box<dyn Duplex>>,
    /// Bytes that the stream has taken and not yet flushed, and that are not yet reported as written.
    taken: usize,
    /// How far the writing side is closed.
    closing: Closing,
}

#[derive(PartialEq, Eq)]
enum Closing {
    No,
    Asked,
    Done,
}

impl Stream {
    pub(crate) fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        Self(Box::new(Inner { stream: Box::pin(stream), taken: 0, closing: Closing::No }))
    }

    /// Always: only reading tells.
    #[expect(clippy::unused_self, reason = "as the other transports")]
    pub(super) fn poll_readable(&mut self) -> Poll<()> {
        Poll::Ready(())
    }

    /// Whether something has arrived that nobody will read; takes some of it.
    pub(super) fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.0.stream.as_mut().poll_read(cx, &mut [0; DISCARD]) {
            Poll::Ready(Ok(1..)) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        self.0.go_on_closing(cx);
        let len = buffer.len();
        let room = (buffer.capacity() - len).min(READ);
        buffer.resize(len + room, 0);
        let polled = match buffer.get_mut(len..) {
            Some(spare) => self.0.stream.as_mut().poll_read(cx, spare),
            None => Poll::Pending,
        };
        // No more than there was room for, whatever the stream says.
        let polled = polled.map_ok(|received| received.min(room));
        buffer.truncate(len + if let Poll::Ready(Ok(received)) = polled { received } else { 0 });
        polled
    }

    /// Reports as written what has been flushed, and nothing else: streams may keep what they have taken
    /// until they are told (TLS, compression), and who has sent everything tells nobody anything.
    ///
    /// So after `Pending` the next call must begin with the same bytes.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Inner { stream, taken, .. } = &mut *self.0;
        if *taken == 0 {
            let given = slices.iter().map(|slice| slice.len()).sum();
            match ready!(stream.as_mut().poll_write_vectored(cx, slices)) {
                Ok(count) => *taken = count.min(given),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if *taken > 0 {
            ready!(stream.as_mut().poll_flush(cx))?;
        }
        Poll::Ready(Ok(std::mem::take(taken)))
    }

    /// Begins; reading goes on with it.
    pub(super) fn close_write(&mut self, cx: &mut Context<'_>) {
        if self.0.closing == Closing::No {
            self.0.closing = Closing::Asked;
        }
        self.0.go_on_closing(cx);
    }
}

impl Inner {
    fn go_on_closing(&mut self, cx: &mut Context<'_>) {
        if self.closing == Closing::Asked && self.stream.as_mut().poll_close(cx).is_ready() {
            self.closing = Closing::Done;
        }
    }
}

/// A stream that has its own way to say goodbye (TLS: close_notify) does it, as far as that takes no
/// waiting.
impl Drop for Stream {
    fn drop(&mut self) {
        // It may be the stream that panics, and a second panic would end the process.
        if !std::thread::panicking() {
            self.close_write(&mut Context::from_waker(Waker::noop()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::{Arc, Mutex};

    use futures_lite::future::block_on;

    use super::*;

    /// What a stream was asked, and whether it flushes and closes.
    #[derive(Clone, Default)]
    struct Probe(Arc<Mutex<Seen>>);

    #[derive(Default)]
    struct Seen {
        written: Vec<u8>,
        flushed: usize,
        closed: bool,
        stuck: bool,
        incoming: Vec<u8>,
    }

    impl AsyncRead for Probe {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let mut seen = self.0.lock().unwrap();
            if seen.incoming.is_empty() {
                return Poll::Pending;
            }
            let count = buffer.len().min(seen.incoming.len());
            buffer[..count].copy_from_slice(&seen.incoming[..count]);
            seen.incoming.drain(..count);
            Poll::Ready(Ok(count))
        }
    }

    impl AsyncWrite for Probe {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let some = &bytes[..bytes.len().min(3)];
            self.0.lock().unwrap().written.extend_from_slice(some);
            Poll::Ready(Ok(some.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            let mut seen = self.0.lock().unwrap();
            if seen.stuck {
                return Poll::Pending;
            }
            seen.flushed = seen.written.len();
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            let mut seen = self.0.lock().unwrap();
            if seen.stuck {
                return Poll::Pending;
            }
            seen.closed = true;
            Poll::Ready(Ok(()))
        }
    }

    fn once<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let mut poll = Some(poll);
        block_on(poll_fn(|cx| Poll::Ready((poll.take().unwrap())(cx))))
    }

    #[test]
    fn what_is_not_flushed_is_not_written() {
        let probe = Probe::default();
        let mut stream = Stream::new(probe.clone());
        let slices = [IoSlice::new(b"ab"), IoSlice::new(b"cdef")];
        probe.0.lock().unwrap().stuck = true;
        for _ in 0..3 {
            assert!(once(|cx| stream.poll_write(cx, &slices)).is_pending());
        }
        assert_eq!(probe.0.lock().unwrap().written, b"ab", "and not once for each call");
        probe.0.lock().unwrap().stuck = false;
        let written = once(|cx| stream.poll_write(cx, &slices));
        assert!(matches!(written, Poll::Ready(Ok(2))), "{written:?}");
        let written = once(|cx| stream.poll_write(cx, &slices[1..]));
        assert!(matches!(written, Poll::Ready(Ok(3))), "{written:?}");
        assert_eq!(probe.0.lock().unwrap().flushed, 5);
    }

    #[test]
    fn reading_appends_and_leaves_no_zeros_behind() {
        let probe = Probe::default();
        let mut stream = Stream::new(probe.clone());
        let mut buffer = Vec::with_capacity(8);
        buffer.push(b'>');
        assert!(once(|cx| stream.poll_read(cx, &mut buffer)).is_pending());
        assert_eq!(buffer, b">");
        probe.0.lock().unwrap().incoming = b"0123456789".to_vec();
        let read = once(|cx| stream.poll_read(cx, &mut buffer));
        assert!(matches!(read, Poll::Ready(Ok(7))), "{read:?}");
        assert_eq!((&buffer[..], buffer.capacity()), (&b">0123456"[..], 8));
        assert!(once(|cx| stream.poll_unread(cx)).is_ready());
        assert!(once(|cx| stream.poll_unread(cx)).is_pending());
    }

    #[test]
    fn closing_goes_on_while_it_is_read_and_is_tried_at_the_end() {
        let probe = Probe::default();
        let mut stream = Stream::new(probe.clone());
        probe.0.lock().unwrap().stuck = true;
        stream.close_write(&mut Context::from_waker(Waker::noop()));
        assert!(!probe.0.lock().unwrap().closed);
        probe.0.lock().unwrap().stuck = false;
        assert!(once(|cx| stream.poll_read(cx, &mut Vec::with_capacity(8))).is_pending());
        assert!(probe.0.lock().unwrap().closed);

        let probe = Probe::default();
        drop(Stream::new(probe.clone()));
        assert!(probe.0.lock().unwrap().closed, "without being asked");
    }
}
