//! The client's side of TLS: whom to trust, who one is, and what went wrong.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_rustls::TlsConnector;
use futures_rustls::client::TlsStream;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error as Rustls,
    RootCertStore, SignatureScheme,
};

use super::error::ConnectError;
use super::stream::Counted;
use crate::config::{Identity, TlsVersion};
use crate::tls;

/// How a client uses TLS, for `wss://`.
///
/// Without any setting: the authorities of the system, TLS 1.2 or later, no certificate of its own.
#[derive(Clone, Debug)]
pub struct ClientTls {
    authorities: Vec<PathBuf>,
    identity: Option<Identity>,
    min_version: TlsVersion,
    trust_anybody: bool,
}

impl Default for ClientTls {
    fn default() -> Self {
        Self {
            authorities: Vec::new(),
            identity: None,
            min_version: TlsVersion::V1_2,
            trust_anybody: false,
        }
    }
}

impl ClientTls {
    /// As it is without any setting.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the authorities in this PEM file instead of those of the system; more than one file may be named.
    #[must_use]
    pub fn authorities(mut self, file: impl AsRef<Path>) -> Self {
        self.authorities.push(file.as_ref().to_owned());
        self
    }

    /// Shows this certificate to a server that asks for one.
    #[must_use]
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Speaks this version or a later one.
    #[must_use]
    pub fn min_version(mut self, version: TlsVersion) -> Self {
        self.min_version = version;
        self
    }

    /// Trusts whoever answers: whatever its certificate says, whoever has signed it. **Everybody on the way can read
    /// and change everything.** For an hour on one's own desk; [`authorities`](Self::authorities) with the server's
    /// own certificate's authority is as easy, and safe.
    #[must_use]
    pub fn danger_trust_anybody(mut self) -> Self {
        self.trust_anybody = true;
        self
    }

    /// Reads the files.
    pub(super) fn connector(&self) -> Result<Connector, ConnectError> {
        let provider = Arc::new(tls::provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(tls::versions(self.min_version))
            .map_err(|error| ConnectError::Config(format!("TLS: {error}")))?;
        let builder = if self.trust_anybody {
            log::warn!("TLS: the client trusts anybody, whatever certificate is shown");
            let anybody = Anybody(provider.signature_verification_algorithms);
            builder.dangerous().with_custom_certificate_verifier(Arc::new(anybody))
        } else {
            builder.with_root_certificates(self.roots()?)
        };
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = tls::certified_key(identity, &provider)?;
                builder
                    .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
            }
        };
        // RFC 6455 is HTTP/1.1.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Connector(TlsConnector::from(Arc::new(config))))
    }

    fn roots(&self) -> Result<RootCertStore, ConnectError> {
        let mut roots = RootCertStore::empty();
        for file in &self.authorities {
            roots.extend(tls::authorities(file)?.roots);
        }
        if !self.authorities.is_empty() {
            return Ok(roots);
        }
        let found = rustls_native_certs::load_native_certs();
        let (_, refused) = roots.add_parsable_certificates(found.certs);
        if refused > 0 {
            log::debug!("TLS: {refused} of the system's authorities cannot be used");
        }
        if roots.is_empty() {
            let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
            return Err(ConnectError::Config(format!(
                "TLS: the system has no list of authorities{why}: install one (`ca-certificates`), or name a file \
                 with `ClientTls::authorities`"
            )));
        }
        Ok(roots)
    }
}

/// What is the same for all attempts.
pub(super) struct Connector(TlsConnector);

impl Connector {
    pub(super) async fn connect(
        &self,
        host: &str,
        tcp: Counted,
        peer: SocketAddr,
    ) -> Result<TlsStream<Counted>, ConnectError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| ConnectError::Url {
            url: host.to_owned(),
            problem: "no certificate can be for a name like this".into(),
        })?;
        self.0.connect(name, tcp).await.map_err(|source| failed(host, peer, source))
    }
}

/// What became of a TLS handshake that failed.
pub(super) fn failed(host: &str, peer: SocketAddr, source: io::Error) -> ConnectError {
    match source.downcast::<Rustls>() {
        Ok(problem) => {
            ConnectError::Tls(Box::new(TlsError { host: host.to_owned(), peer, problem }))
        }
        Err(source) => ConnectError::Ended { phase: super::error::Phase::Tls, peer, source },
    }
}

/// Whether it is TLS that failed, and not the connection below.
pub(super) fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|source| source.is::<Rustls>())
}

/// Why there is no TLS with this server.
#[derive(Debug)]
pub struct TlsError {
    host: String,
    peer: SocketAddr,
    problem: Rustls,
}

/// What is wrong with the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// It is for other names.
    WrongName,
    /// It has expired.
    Expired,
    /// It will be valid later: or this machine's clock is wrong.
    NotYetValid,
    /// Nobody who is trusted has signed it; also one that has signed itself.
    UnknownAuthority,
    /// It was revoked.
    Revoked,
    /// Something else: the sentence says what.
    Other,
}

impl TlsError {
    /// Whose certificate was looked for.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The address of the server, or of the proxy before it.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What rustls says.
    #[must_use]
    pub fn problem(&self) -> &Rustls {
        &self.problem
    }

    /// What is wrong with the server's certificate, if that is it.
    #[must_use]
    pub fn certificate(&self) -> Option<CertificateProblem> {
        use CertificateProblem as Is;
        let Rustls::InvalidCertificate(error) = &self.problem else {
            return None;
        };
        Some(match error {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Is::WrongName
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Is::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Is::NotYetValid
            }
            CertificateError::UnknownIssuer => Is::UnknownAuthority,
            error if is_of_authority(error) => Is::UnknownAuthority,
            CertificateError::Revoked => Is::Revoked,
            _ => Is::Other,
        })
    }

    /// What the server said, if it was the server that refused.
    #[must_use]
    pub fn is_alert(&self) -> bool {
        matches!(self.problem, Rustls::AlertReceived(_))
    }

    pub(super) fn is_lasting(&self) -> bool {
        // A clock may be set, and a server that is started anew may have another certificate; but not in a moment.
        self.certificate().is_some()
            || matches!(
                self.problem,
                Rustls::AlertReceived(
                    AlertDescription::CertificateRequired
                        | AlertDescription::BadCertificate
                        | AlertDescription::UnsupportedCertificate
                        | AlertDescription::CertificateUnknown
                        | AlertDescription::UnknownCA
                        | AlertDescription::CertificateExpired
                        | AlertDescription::CertificateRevoked
                        | AlertDescription::AccessDenied
                        | AlertDescription::ProtocolVersion
                ) | Rustls::PeerIncompatible(_)
            )
    }

    pub(super) fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.problem)
    }
}

/// What `openssl req -x509` makes is the certificate of an authority. Of this the type of the error says nothing,
/// only its sentence.
fn is_of_authority(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Other(other) if other.0.to_string() == "CaUsedAsEndEntity")
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, peer, problem } = self;
        write!(f, "TLS with {host} ({peer}): ")?;
        match (problem, self.certificate()) {
            (_, Some(CertificateProblem::WrongName)) => {
                write!(f, "{problem}; connect by a name that stands in the certificate")
            }
            (_, Some(CertificateProblem::Expired)) => {
                write!(
                    f,
                    "{problem}; it has to be renewed on the server; is this machine's clock right?"
                )
            }
            (_, Some(CertificateProblem::NotYetValid)) => {
                write!(f, "{problem}; is this machine's clock right?")
            }
            (Rustls::InvalidCertificate(error), _) if is_of_authority(error) => f.write_str(
                "its certificate is that of an authority that has signed itself, which no server may show: \
                 make one with `CA:false`, and name it or its authority with `ClientTls::authorities`",
            ),
            (_, Some(CertificateProblem::UnknownAuthority)) => write!(
                f,
                "nobody who is trusted has signed its certificate; name its authority with \
                 `ClientTls::authorities`; does the server send the whole chain?"
            ),
            (Rustls::InvalidCertificate(CertificateError::BadSignature), _) => write!(
                f,
                "{problem}: the server does not have the certificate's key, or another authority of the same \
                 name has signed it; was the authority made anew?"
            ),
            (Rustls::AlertReceived(AlertDescription::HandshakeFailure), _) => write!(
                f,
                "{problem}; does it want a certificate of the client (`ClientTls::identity`), or speak no \
                 cipher that is known here?"
            ),
            (Rustls::AlertReceived(AlertDescription::CertificateRequired), _) => f.write_str(
                "it wants a certificate of the client: give one with `ClientTls::identity`",
            ),
            (
                Rustls::AlertReceived(
                    AlertDescription::UnknownCA
                    | AlertDescription::BadCertificate
                    | AlertDescription::UnsupportedCertificate
                    | AlertDescription::CertificateExpired
                    | AlertDescription::CertificateRevoked
                    | AlertDescription::CertificateUnknown,
                ),
                _,
            ) => write!(f, "it does not accept the client's certificate: {problem}"),
            (
                Rustls::AlertReceived(AlertDescription::ProtocolVersion)
                | Rustls::PeerIncompatible(_),
                _,
            ) => {
                write!(
                    f,
                    "no version or cipher that both speak: {problem}; see `ClientTls::min_version`"
                )
            }
            (Rustls::InvalidMessage(_), _) => {
                write!(f, "what it sent is no TLS: {problem}; is it ws:// there?")
            }
            _ => write!(f, "{problem}"),
        }
    }
}

/// Trusts whoever has the key of the certificate that is shown.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Rustls> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Rustls> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Rustls> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
