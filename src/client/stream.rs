//! The byte stream of a connection, and how the protocol's machine sees it.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

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

    /// A turn of so many reads begins.
    pub(super) fn begin_turn(&mut self, reads: usize) {
        match self {
            Self::Tcp(tcp) => tcp.reads = reads,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.get_mut().0.reads = reads,
        }
    }
}

/// How often a socket is read before others on the same executor get their turn. What is above it would go on for as long
/// as there is something: the WebSocket machine until it has a whole message, and TLS until it has a byte of one.
pub(super) const READS: usize = 16;

/// A socket that counts.
pub(super) struct Counted {
    tcp: TcpStream,
    carried: Carried,
    /// How often it may still be read in this turn.
    reads: usize,
}

impl Counted {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp, carried: Carried::default(), reads: READS }
    }

    /// The task comes again at once when its turn is over.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.reads > 0 {
            return Poll::Ready(());
        }
        self.reads = READS;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn has_read(&mut self, read: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(read)) = read {
            self.carried.read += read as u64;
            self.reads -= 1;
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
        ready!(self.poll_turn(cx));
        let read = Pin::new(&mut self.tcp).poll_read(cx, to);
        self.has_read(read)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(cx));
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
    /// Nothing can leave any more, and what there is to read is read all the same: the machine, which reads nothing where
    /// a write fails, has to wait for a socket that is full.
    pub(super) full: bool,
}

fn done<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl<S: AsyncRead + Unpin> Read for Polled<'_, '_, S> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        done(Pin::new(&mut *self.stream).poll_read(self.cx, to))
    }
}

impl<S: AsyncWrite + Unpin> Write for Polled<'_, '_, S> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if self.full {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        done(Pin::new(&mut *self.stream).poll_write(self.cx, from))
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.full {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        done(Pin::new(&mut *self.stream).poll_flush(self.cx))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_turn_ends_also_where_there_is_more_to_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let tcp = smol::block_on(TcpStream::connect(addr)).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        other.write_all(&[7; 4 * READS]).unwrap();
        let counted = Counted::new(tcp);
        // Until all of it is there.
        smol::block_on(async {
            while counted.tcp.peek(&mut [0; 4 * READS]).await.unwrap() < 4 * READS {}
        });
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let mut read_all = |stream: &mut Stream| {
            let before = stream.carried().read;
            while Pin::new(&mut *stream).poll_read(&mut cx, &mut [0]).is_ready() {}
            (stream.carried().read - before, woken.0.load(Ordering::SeqCst))
        };
        let mut stream = Stream::Tcp(counted);
        assert_eq!(read_all(&mut stream), (READS as u64, 1));
        assert_eq!(read_all(&mut stream), (READS as u64, 2));
        stream.begin_turn(3);
        assert_eq!(read_all(&mut stream), (3, 3));
    }

    // TLS reads on for as long as nothing of what it has read is for the application.
    #[cfg(feature = "tls")]
    #[test]
    fn a_turn_ends_also_where_tls_has_no_whole_record_yet() {
        use futures_rustls::TlsConnector;
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        use rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

        // As many as a record may have (RFC 8446 section 5.1): more than is read at once.
        const RECORD: usize = 16 * 1024;
        let file = |name: &str| format!("{}/certs/{name}", env!("CARGO_MANIFEST_DIR"));
        let pem = |name: &str| CertificateDer::from_pem_file(file(name)).unwrap();
        let provider = || Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![pem("server.pem")], key)
            .unwrap();
        config.send_tls13_tickets = 0;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let connection = ServerConnection::new(Arc::new(config)).unwrap();
            let mut tls = StreamOwned::new(connection, listener.accept().unwrap().0);
            tls.write_all(&[7; RECORD]).unwrap();
            tls.flush().unwrap();
        });
        let mut roots = RootCertStore::empty();
        roots.add(pem("ca.pem")).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        smol::block_on(async {
            let tcp = Counted::new(TcpStream::connect(addr).await.unwrap());
            let name = "localhost".try_into().unwrap();
            let tls = connector.connect(name, tcp).await.unwrap();
            // Until all of it is there, with its head, its type and its tag.
            let tcp = &tls.get_ref().0.tcp;
            while tcp.peek(&mut [0; 2 * RECORD]).await.unwrap() < RECORD + 22 {}
            let mut stream = Stream::Tls(Box::new(tls));
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            let mut cx = Context::from_waker(&waker);
            let mut chunk = vec![0; RECORD];
            let mut turns = 1;
            stream.begin_turn(1);
            while Pin::new(&mut stream).poll_read(&mut cx, &mut chunk).is_pending() {
                assert_eq!(woken.0.load(Ordering::SeqCst), turns, "it comes again at once");
                turns += 1;
                stream.begin_turn(1);
            }
            assert!(turns > 1, "a record was read at once");
            assert_eq!(chunk, [7; RECORD]);
        });
        server.join().unwrap();
    }
}
