//! A client with TLS, on rustls, over a real socket.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use coracle::config::Tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::support::{CLOSE, Frame, PATIENCE, TEXT, frame, handshake};

/// A file of `certs/`.
pub fn cert(name: &str) -> String {
    format!("{}/certs/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// What a server shows whose threads are counted: the first look at the files begins one of smol's blocking
/// pool, ten seconds after the start.
pub fn unwatched() -> Tls {
    Tls::new(cert("server.pem"), cert("server.key")).watch(None)
}

pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub const BOTH: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

/// A client that trusts the development authority.
pub fn client_config() -> ClientConfig {
    client_with(BOTH, None)
}

/// The same with these versions, and with a certificate and its key.
pub fn client_with(
    versions: &[&'static rustls::SupportedProtocolVersion],
    identity: Option<(&str, &str)>,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cert("ca.pem")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(cert(chain)).unwrap()],
                PrivateKeyDer::from_pem_file(cert(key)).unwrap(),
            )
            .unwrap(),
    }
}

pub fn tcp(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("the server accepts");
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub struct Secure<S: Read + Write = TcpStream> {
    pub tls: StreamOwned<ClientConnection, S>,
}

impl Secure {
    /// Connects, and makes the handshake of TLS.
    pub fn connect(addr: SocketAddr, config: ClientConfig, name: &str) -> io::Result<Self> {
        Self::over(tcp(addr), config, name)
    }

    /// An open session of a client with nothing special.
    #[track_caller]
    pub fn open(addr: SocketAddr) -> Self {
        let mut this = Self::connect(addr, client_config(), "localhost").expect("a handshake");
        this.upgrade();
        this
    }
}

impl<S: Read + Write> Secure<S> {
    pub fn over(stream: S, config: ClientConfig, name: &str) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut tls = StreamOwned::new(connection, stream);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(Self { tls })
    }

    pub fn upgrade(&mut self) {
        let head = self.try_upgrade("/").expect("an answer");
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }

    pub fn try_upgrade(&mut self, target: &str) -> io::Result<String> {
        self.tls.write_all(handshake(target).as_bytes())?;
        self.tls.flush()?;
        self.try_read_head()
    }

    fn try_read_head(&mut self) -> io::Result<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.tls.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        Ok(String::from_utf8(head).unwrap())
    }

    #[track_caller]
    pub fn read_head(&mut self) -> String {
        self.try_read_head().expect("an HTTP head")
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.tls.write_all(bytes).expect("the server reads");
        self.tls.flush().expect("the server reads");
    }

    #[track_caller]
    pub fn send_frame(&mut self, opcode: u8, payload: &[u8]) {
        self.send(&frame(true, opcode, payload));
    }

    #[track_caller]
    pub fn read_frame(&mut self) -> Frame {
        let (compressed, frame) = self.read_either();
        assert!(!compressed, "reserved bits are zero");
        frame
    }

    /// The same where permessage-deflate has been agreed on: whether its bit is set, and the frame.
    #[track_caller]
    pub fn read_either(&mut self) -> (bool, Frame) {
        let mut first = [0];
        self.tls.read_exact(&mut first).expect("a frame");
        let [first] = first;
        let exactly = |bytes: &mut [u8]| self.tls.read_exact(bytes).expect("a whole frame");
        (first & 0x40 != 0, Frame::read(first & !0x40, exactly))
    }

    #[track_caller]
    pub fn echo(&mut self, text: &str) {
        self.send_frame(TEXT, text.as_bytes());
        let frame = self.read_frame();
        assert_eq!((frame.opcode, &frame.payload[..]), (TEXT, text.as_bytes()));
    }

    /// The server ends the stream, with a close_notify: without one rustls says `UnexpectedEof`.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let mut rest = Vec::new();
        let count = self.tls.read_to_end(&mut rest).expect("a close_notify before the end");
        assert_eq!(count, 0, "{rest:?}");
    }

    /// Closes with 1000 and waits for the answer and the end.
    #[track_caller]
    pub fn goodbye(mut self) {
        self.send_frame(CLOSE, &1000_u16.to_be_bytes());
        assert_eq!(self.read_frame().close().0, 1000);
        self.expect_end();
    }

    /// The certificate that the server has shown.
    pub fn server_certificate(&self) -> Vec<u8> {
        self.tls.conn.peer_certificates().unwrap()[0].to_vec()
    }
}

/// The first certificate of a file of `certs/`.
pub fn der(name: &str) -> Vec<u8> {
    CertificateDer::from_pem_file(cert(name)).unwrap().to_vec()
}

/// Trusts every certificate: for tests that look at which one is shown.
#[derive(Debug)]
pub struct Anything;

impl rustls::client::danger::ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
