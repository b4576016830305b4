//! TLS as everybody here speaks it: one provider, one certificate, one cipher suite.
//!
//! The suite is the client's choice, because rustls takes the first one of the client's: AES-128-GCM
//! with X25519, as browsers prefer it. Whether it became TLS 1.3 with that is checked after each
//! handshake.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue};
use rustls::client::{Tls13ClientSessionValue, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion,
    RootCertStore, ServerConfig,
};

/// The certificates that the crate's own examples use.
const CERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../certs");

/// Tickets kept for the next connections. Connections run 32 at a time and bring two each; a server
/// that remembers sessions itself keeps 256 by default, so what is older is of no use.
const TICKETS: usize = 128;

/// What a peer speaks TLS with: the defaults of rustls, with the provider and the certificate that
/// coracle's echo example has.
///
/// # Errors
///
/// If a file cannot be read.
pub fn server_config() -> io::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(format!("{CERTS}/server.pem"))
        .and_then(Iterator::collect)
        .map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(format!("{CERTS}/server.key"));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, key.map_err(io::Error::other)?)
        .map_err(io::Error::other)?;
    Ok(Arc::new(config))
}

/// Makes the client's side of connections.
#[derive(Debug, Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Connector {
    /// A client that trusts the authority of `certs/`. If it is to resume sessions, it does so as soon
    /// as it has tickets.
    ///
    /// # Errors
    ///
    /// If the authority's file cannot be used.
    pub fn new(resume: bool) -> io::Result<Self> {
        let ring = ring::default_provider();
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![ring::kx_group::X25519],
            ..ring
        });
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(format!("{CERTS}/ca.pem"));
        roots.add(authority.map_err(io::Error::other)?).map_err(io::Error::other)?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(io::Error::other)?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_webpki_verifier(verifier)
            .with_no_client_auth();
        config.resumption = match resume {
            true => Resumption::store(Arc::new(Tickets::default())),
            false => Resumption::disabled(),
        };
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        Ok(Self { config: Arc::new(config), name })
    }

    /// A new connection, before its handshake.
    ///
    /// # Errors
    ///
    /// If rustls does not want to.
    pub fn connection(&self) -> io::Result<ClientConnection> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        let mut connection = connection.map_err(io::Error::other)?;
        // A batch is handed over as a whole.
        connection.set_buffer_limit(None);
        Ok(connection)
    }
}

/// Says what differs from the TLS that everybody is to be measured with, if anything does. Without a
/// `kind` any handshake will do.
pub fn unexpected(connection: &ClientConnection, kind: Option<HandshakeKind>) -> Option<String> {
    let suite = connection.negotiated_cipher_suite().map(|it| it.suite());
    let group = connection.negotiated_key_exchange_group().map(|it| it.name());
    let actual = (connection.protocol_version(), suite, group, connection.handshake_kind());
    let kind = kind.or(actual.3);
    let expected = (
        Some(ProtocolVersion::TLSv1_3),
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256),
        Some(NamedGroup::X25519),
        kind,
    );
    (actual != expected).then(|| format!("not the TLS we asked for: {actual:?}"))
}

/// The newest tickets of one server. Each is used once (RFC 8446 section 4.6.1).
#[derive(Debug, Default)]
struct Tickets(Mutex<Vec<Tls13ClientSessionValue>>);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tickets.len() == TICKETS {
            tickets.remove(0);
        }
        tickets.push(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}
