//! What peers and streams may do to a TLS connection.
#![cfg(feature = "tls")]
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream as Socket;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use coracle::config::{ClientCertificates, Tls};
use coracle::{Builder, Cause, Handler, Server};
use futures_lite::{AsyncRead, AsyncWrite};
use rustls::crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::{ConnectionTrafficSecrets, ContentType, HandshakeKind, ProtocolVersion};
use secure::*;
use smol::net::unix::UnixStream;
use support::*;

fn tls() -> Tls {
    Tls::new(cert("server.pem"), cert("server.key"))
}

fn echo() -> Builder<impl Handler> {
    Server::builder()
        .on_message(async |session, message| session.send(message).await)
        .tls(tls())
        .bind_tls("127.0.0.1:0")
}

fn serve(builder: Builder<impl Handler>) -> TestServer {
    TestServer { handle: builder.workers(2).start().unwrap() }
}

/// A stream for a server, and the other end of it.
fn pair() -> (UnixStream, Socket) {
    let (ours, theirs) = Socket::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    theirs.set_write_timeout(Some(PATIENCE)).unwrap();
    (UnixStream::try_from(ours).unwrap(), theirs)
}

/// A stream that panics while it holds its own lock, once it is armed.
struct Bomb {
    inner: Mutex<UnixStream>,
    armed: Arc<AtomicBool>,
}

impl AsyncRead for Bomb {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.inner.lock().unwrap();
        let polled = Pin::new(&mut *inner).poll_read(cx, buffer);
        assert!(!(polled.is_ready() && self.armed.load(Ordering::SeqCst)), "the stream's own bug");
        polled
    }
}

impl AsyncWrite for Bomb {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.inner.lock().unwrap()).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner.lock().unwrap()).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner.lock().unwrap()).poll_close(cx)
    }
}

/// Saying goodbye through the stream that has panicked was a second panic, and the end of the process.
#[test]
fn a_stream_that_panics_under_tls_costs_its_own_session() {
    let server = serve(echo());
    let (inner, client) = pair();
    let armed = Arc::new(AtomicBool::new(false));
    let bomb = Bomb { inner: Mutex::new(inner), armed: Arc::clone(&armed) };
    server.handle.serve_tls(bomb, None).unwrap();
    let mut client = Secure::over(client, client_config(), "localhost").unwrap();
    client.upgrade();
    armed.store(true, Ordering::SeqCst);
    client.send(b"anything");
    let end = client.tls.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof, "nothing could be said");
    Secure::open(server.addr()).goodbye();
    server.finish();
}

/// A stream that lets others have their turn before it closes, or before it flushes.
struct Yielding {
    inner: UnixStream,
    in_flush: bool,
    yielded: bool,
}

impl Yielding {
    fn yields(&mut self, cx: &mut Context<'_>) -> bool {
        self.yielded = !self.yielded;
        if self.yielded {
            cx.waker().wake_by_ref();
        }
        self.yielded
    }
}

impl AsyncRead for Yielding {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Yielding {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.in_flush && self.yields(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.in_flush && self.yields(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// The waker that the stream was given for closing was nobody's: the end came with the close timer, which
/// is longer here than the test waits.
#[test]
fn a_stream_that_yields_in_closing_or_flushing_is_asked_again() {
    let server = serve(echo().configure(|config| {
        config.timeouts.close = 4 * PATIENCE;
        config.timeouts.stop = 4 * PATIENCE;
    }));
    // An opcode that nobody knows.
    let violation = frame(true, 3, b"x");

    let (inner, client) = pair();
    server.handle.serve(Yielding { inner, in_flush: false, yielded: false }).unwrap();
    let mut client = Raw::over(client.into());
    client.upgrade();
    client.send(&violation);
    client.expect_close(1002);
    assert_eq!(client.read_to_end(), b"");
    drop(client);

    let (inner, client) = pair();
    let yielding = Yielding { inner, in_flush: true, yielded: false };
    server.handle.serve_tls(yielding, None).unwrap();
    let mut client = Secure::over(client, client_config(), "localhost").unwrap();
    client.upgrade();
    client.send(&violation);
    assert_eq!(client.read_frame().close().0, 1002);
    client.tls.read_to_end(&mut Vec::new()).expect("a close_notify, and the end");
    drop(client);
    server.finish();
}

/// rustls would have had to answer, and it had said its last word: in a debug build its assertion ended
/// the session's task without the application hearing of it.
#[test]
fn what_comes_behind_our_close_notify_is_thrown_away() {
    let (closed, records) = heard();
    let server = serve(
        Server::builder()
            .on_message(async |session, message| session.send(message).await)
            .on_close(record(&closed))
            .tls(tls())
            .bind_tls("127.0.0.1:0"),
    );
    // A record of application data that nobody has encrypted, and then no record at all.
    let mut garbage = vec![23, 3, 3, 0, 40];
    garbage.extend([7; 40]);
    garbage.extend([255; 100]);

    let mut client = Secure::open(server.addr());
    client.send(&frame(true, 3, b"x"));
    assert_eq!(client.read_frame().close().0, 1002);
    client.tls.read_to_end(&mut Vec::new()).expect("a close_notify");
    client.tls.sock.write_all(&garbage).unwrap();
    drop(client);
    assert_eq!(records.next().cause, Cause::Violation);

    // The same at once, behind records that nobody has looked at.
    for between in [0, 50, 200, 300] {
        let mut client = Secure::open(server.addr());
        client.tls.conn.set_buffer_limit(None);
        client.tls.conn.writer().write_all(&frame(true, 3, b"x")).unwrap();
        for _ in 0..between {
            client.tls.conn.writer().write_all(&frame(true, TEXT, b"m")).unwrap();
        }
        let mut wire = Vec::new();
        while client.tls.conn.wants_write() {
            client.tls.conn.write_tls(&mut wire).unwrap();
        }
        wire.extend(&garbage);
        client.tls.sock.write_all(&wire).unwrap();
        drop(client);
        let record = records.next();
        assert!(
            matches!(record.cause, Cause::Violation | Cause::Io(io::ErrorKind::InvalidData)),
            "{between} records between: {record:?}"
        );
    }
    server.finish();
}

/// A client that writes its records itself, on an upgraded connection.
struct Crafter {
    socket: TcpStream,
    encrypter: Box<dyn MessageEncrypter>,
    number: u64,
}

impl Crafter {
    fn open(addr: SocketAddr) -> Self {
        let mut config = client_config();
        config.enable_secret_extraction = true;
        let mut client = Secure::connect(addr, config, "localhost").unwrap();
        client.upgrade();
        let (connection, socket) = client.tls.into_parts();
        let suite = connection.negotiated_cipher_suite().unwrap();
        let suite = suite.tls13().expect("TLS 1.3");
        let (number, secrets) = connection.dangerous_extract_secrets().unwrap().tx;
        let encrypter = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                suite.aead_alg.encrypter(key, iv)
            }
            _ => panic!("another cipher"),
        };
        Self { socket, encrypter, number }
    }

    /// Adds a part of a handshake's message.
    fn piece(&mut self, payload: &[u8], wire: &mut Vec<u8>) {
        let message = OutboundPlainMessage {
            typ: ContentType::Handshake,
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(payload),
        };
        wire.extend(self.encrypter.encrypt(message, self.number).unwrap().encode());
        self.number += 1;
    }
}

/// rustls remembers how far it has come in what it could not use yet, and panicked when it was given less
/// the next time: the task of the session was gone, and nobody was told of its end.
#[test]
fn a_message_of_the_handshake_in_many_pieces_ends_its_session_with_a_record() {
    for (size, count) in [(60, 200), (1, 200), (1, 600), (16_000, 1), (7, 100)] {
        let (closed, records) = heard();
        let server = serve(
            Server::builder()
                .on_message(async |session, message| session.send(message).await)
                .on_close(record(&closed))
                .tls(tls())
                .bind_tls("127.0.0.1:0"),
        );
        let mut client = Crafter::open(server.addr());
        // A NewSessionTicket of 60 000 bytes, which no client has to send.
        let mut message = vec![0; size * count];
        message[..4].copy_from_slice(&[4, 0, 0xea, 0x60]);
        let mut wire = Vec::new();
        for piece in message.chunks(size) {
            client.piece(piece, &mut wire);
        }
        client.socket.write_all(&wire).unwrap();
        // Some more, in a segment of its own; then it is gone.
        wire.clear();
        client.piece(&[0], &mut wire);
        let _ = client.socket.write_all(&wire);
        drop(client);
        let record = records.next();
        assert!(
            matches!(record.cause, Cause::PeerVanished | Cause::Io(io::ErrorKind::InvalidData)),
            "{size} x {count}: {record:?}"
        );
        server.finish();
    }
}

/// What was left unread kept rustls from saying goodbye.
#[test]
fn the_end_is_said_also_if_there_is_more_to_be_read() {
    let server = serve(echo());
    for (opcode, payload) in [(CLOSE, &[3, 232][..]), (3, b"x")] {
        for behind in [0, 100, 400] {
            let mut client = Secure::open(server.addr());
            client.tls.conn.set_buffer_limit(None);
            client.tls.conn.writer().write_all(&frame(true, opcode, payload)).unwrap();
            for _ in 0..behind {
                // A record for each.
                client.tls.conn.writer().write_all(&frame(true, TEXT, b"m")).unwrap();
            }
            let mut wire = Vec::new();
            while client.tls.conn.wants_write() {
                client.tls.conn.write_tls(&mut wire).unwrap();
            }
            client.tls.sock.write_all(&wire).unwrap();
            client.tls.read_to_end(&mut Vec::new()).expect("a close_notify");
        }
    }
    server.finish();
}

/// Each byte of the message takes six, and a client that has shown nothing yet held 256 KiB for as long as
/// a handshake may take.
#[test]
fn a_handshake_that_never_gets_whole_is_refused() {
    let server = serve(echo().configure(|config| config.timeouts.handshake = 4 * PATIENCE));
    // A ClientHello that claims 65 535 bytes.
    let mut hello = vec![1, 0, 0xff, 0xff, 3, 3];
    hello.resize(40_000, b'A');
    for pieces in [1, 16 * 1024] {
        let mut raw = server.raw();
        let mut wire = Vec::new();
        for piece in hello.chunks(pieces) {
            wire.extend([22, 3, 1]);
            wire.extend(u16::try_from(piece.len()).unwrap().to_be_bytes());
            wire.extend(piece);
        }
        // The server may have ended it before it has all.
        let _ = raw.stream.write_all(&wire);
        let mut rest = Vec::new();
        match raw.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
    Secure::open(server.addr()).goodbye();
    server.finish();
}

/// With a ticket nobody looks at the certificate again, also if it has expired.
#[test]
fn whoever_has_a_certificate_shows_it_each_time() {
    for clients in [ClientCertificates::Optional, ClientCertificates::Required] {
        let server = serve(echo().tls(tls().clients(clients(cert("ca.pem").into()))));
        for version in BOTH {
            let config = client_with(&[version], Some(("client.pem", "client.key")));
            for _ in 0..3 {
                let mut client =
                    Secure::connect(server.addr(), config.clone(), "localhost").unwrap();
                client.upgrade();
                client.echo("a ticket would have been read by now");
                assert_eq!(client.tls.conn.handshake_kind(), Some(HandshakeKind::Full));
                client.goodbye();
            }
        }
        server.finish();
    }
}

#[test]
fn a_certificate_cannot_be_required_where_tls_is_not() {
    let builder = echo()
        .tls(tls().clients(ClientCertificates::Required(cert("ca.pem").into())))
        .bind_tls_or_plain("127.0.0.1:0");
    let error = builder.start().expect_err("an error").to_string();
    assert!(error.contains("bind_tls_or_plain") && error.contains("Optional"), "{error}");
}

/// Whoever can write into a page that came without TLS would speak with the visitor's cookies.
#[test]
fn a_page_without_tls_is_of_another_origin_than_a_server_with_it() {
    let server = serve(echo());
    let status = |origin: &str| {
        let mut client = Secure::connect(server.addr(), client_config(), "localhost").unwrap();
        client.send(handshake_with("/", &format!("Origin: {origin}\r\n")).as_bytes());
        let mut status = [0; 12];
        client.tls.read_exact(&mut status).unwrap();
        String::from_utf8_lossy(&status[9..]).into_owned()
    };
    assert_eq!(status("https://localhost"), "101");
    assert_eq!(status("http://localhost"), "403");
    server.finish();
}
