//! Certificates with everything that can be wrong with one, and servers that show them to a client.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use rcgen::ExtendedKeyUsagePurpose as Purpose;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion,
};

use super::scripted::{agreed, script};
use super::secure::{cert, provider};
use super::support::{Heard, Raw, Scratch};

pub const SERVER: Purpose = Purpose::ServerAuth;
pub const CLIENT: Purpose = Purpose::ClientAuth;

/// An authority, and a file for those who trust it.
pub struct Signer {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub file: PathBuf,
    scratch: Scratch,
}

/// What a server shows.
pub struct Shown {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn named(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
    CertificateParams::new(names).unwrap()
}

fn shown(certificate: &rcgen::Certificate, key: &KeyPair) -> Shown {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    Shown { chain: vec![certificate.der().clone()], key }
}

impl Signer {
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        Self::named(&format!("authority {}", NUMBER.fetch_add(1, Ordering::Relaxed)))
    }

    /// One of this name, and with a key of its own.
    pub fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self::with(CertifiedIssuer::self_signed(authority(name), key).unwrap())
    }

    fn with(issuer: CertifiedIssuer<'static, KeyPair>) -> Self {
        let scratch = Scratch::new("authority");
        let file = scratch.write("ca.pem", issuer.pem());
        Self { issuer, file, scratch }
    }

    /// An authority that this one has signed.
    pub fn below(&self) -> Self {
        let key = KeyPair::generate().unwrap();
        Self::with(CertifiedIssuer::signed_by(authority("between"), key, &self.issuer).unwrap())
    }

    /// A certificate for these names, from the first day of a year to that of another.
    pub fn sign(&self, names: &[&str], (from, until): (i32, i32), purpose: Purpose) -> Shown {
        let mut params = named(names);
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        shown(&params.signed_by(&key, &self.issuer).unwrap(), &key)
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }

    /// The files of a certificate and its key; they are there for as long as this authority.
    pub fn files(&self, shown: &Shown) -> (PathBuf, PathBuf) {
        let key = pem("PRIVATE KEY", shown.key.secret_der());
        (self.scratch.write("leaf.pem", shown.pem()), self.scratch.write("leaf.key", key))
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    let lines: Vec<_> =
        text.as_bytes().chunks(64).map(|it| std::str::from_utf8(it).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// A certificate that nobody else has signed: as one for a server, or as that of an authority, which is what
/// `openssl req -x509` makes.
pub fn self_signed(names: &[&str], authority: bool) -> Shown {
    let mut params = named(names);
    if authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    let key = KeyPair::generate().unwrap();
    shown(&params.self_signed(&key).unwrap(), &key)
}

impl Shown {
    /// Files of `certs/`.
    pub fn files(chain: &str, key: &str) -> Self {
        Self {
            chain: vec![CertificateDer::from_pem_file(cert(chain)).unwrap()],
            key: PrivateKeyDer::from_pem_file(cert(key)).unwrap(),
        }
    }

    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.chain[0])
    }

    /// A server that shows it, whether its key belongs to it or not.
    pub fn config(&self, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(versions).unwrap().with_no_client_auth();
        builder.with_cert_resolver(Arc::new(self.resolver()))
    }

    /// The same, which asks for a certificate that this authority has signed.
    pub fn asking(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        of: &Signer,
    ) -> ServerConfig {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(of.roots()), provider());
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(versions).unwrap();
        let builder = builder.with_client_cert_verifier(verifier.build().unwrap());
        builder.with_cert_resolver(Arc::new(self.resolver()))
    }

    fn resolver(&self) -> SingleCertAndKey {
        let key = provider().key_provider.load_private_key(self.key.clone_key()).unwrap();
        SingleCertAndKey::from(CertifiedKey::new(self.chain.clone(), key))
    }
}

/// A server's side of TLS.
pub type Served = StreamOwned<ServerConnection, TcpStream>;

/// Listens, does this behind the first connection's handshake (or what became of it), and reports what comes of it.
pub fn tls_script<T: Send + 'static>(
    config: ServerConfig,
    act: impl FnOnce(&mut Served) -> T + Send + 'static,
) -> (SocketAddr, Heard<T>) {
    script(move |raw: &mut Raw| {
        let connection = ServerConnection::new(Arc::new(config)).unwrap();
        let mut tls = StreamOwned::new(connection, raw.stream.try_clone().unwrap());
        let result = act(&mut tls);
        if tls.conn.is_handshaking() {
            let _ = tls.conn.complete_io(&mut tls.sock);
        }
        while tls.conn.wants_write() && tls.conn.write_tls(&mut tls.sock).is_ok() {}
        result
    })
}

/// A server that agrees to a WebSocket, says one message back, and goodbye.
pub fn upgrading(config: ServerConfig) -> (SocketAddr, Heard<()>) {
    tls_script(config, |tls| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            tls.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        tls.write_all(agreed(std::str::from_utf8(&head).unwrap(), "").as_bytes()).unwrap();
        // A message and a close frame, each short and masked.
        for _ in 0..2 {
            let mut start = [0; 6];
            tls.read_exact(&mut start).unwrap();
            let mut payload = vec![0; usize::from(start[1] & 0x7F)];
            tls.read_exact(&mut payload).unwrap();
            let mask = start[2..].iter().cycle();
            payload.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
            tls.write_all(&[&[start[0], start[1] & 0x7F], &payload[..]].concat()).unwrap();
        }
        tls.conn.send_close_notify();
    })
}
