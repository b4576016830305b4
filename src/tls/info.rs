//! What the accept hook is told of a TLS connection.

use std::fmt;
use std::sync::Arc;

use rustls::ProtocolVersion;
use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::config::TlsVersion;

/// What both sides have agreed on by TLS; see [`Request::tls`](crate::Request::tls).
#[derive(Clone, Debug)]
pub struct TlsInfo {
    version: TlsVersion,
    server_name: Option<Box<str>>,
    client: Option<Arc<ClientCertificate>>,
}

impl TlsInfo {
    pub(crate) fn new(state: &rustls::CommonState, server_name: Option<&str>) -> Self {
        let version = match state.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => TlsVersion::V1_2,
            // There is no other.
            _ => TlsVersion::V1_3,
        };
        let client = state.peer_certificates().and_then(<[_]>::first);
        Self {
            version,
            server_name: server_name.map(Into::into),
            client: client.map(|der| Arc::new(ClientCertificate::new(der))),
        }
    }

    /// The version of TLS.
    #[must_use]
    pub fn version(&self) -> TlsVersion {
        self.version
    }

    /// The host that the client asked for (SNI, RFC 6066 section 3). The client chose it, and nobody has
    /// compared it with the `Host` header.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// Who the client is. It is signed by one of the authorities that the server trusts, it was valid
    /// when the handshake was made, and the client has its key.
    #[must_use]
    pub fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.client.as_deref()
    }
}

/// The certificate that a client has shown, already verified.
#[derive(Clone)]
pub struct ClientCertificate {
    der: CertificateDer<'static>,
    subject: String,
    common_name: Option<String>,
    dns_names: Vec<String>,
}

impl ClientCertificate {
    fn new(der: &CertificateDer<'_>) -> Self {
        // It has been verified by another parser, which looks at names only if it is asked for one.
        let parsed = Certificate::from_der(der).ok();
        let tbs = parsed.as_ref().map(Certificate::tbs_certificate);
        let subject = tbs.map(|tbs| tbs.subject().to_string()).unwrap_or_default();
        let common_name = tbs.and_then(|tbs| tbs.subject().common_name().ok().flatten());
        let alternatives = tbs.and_then(|tbs| tbs.get_extension::<SubjectAltName>().ok().flatten());
        let dns_names = alternatives.map_or_else(Vec::new, |(_, names)| {
            let dns = |name: &GeneralName| match name {
                GeneralName::DnsName(name) => Some(name.as_str().to_owned()),
                _ => None,
            };
            names.0.iter().filter_map(dns).collect()
        });
        Self {
            der: der.clone().into_owned(),
            subject,
            common_name: common_name.map(|name| name.value().into_owned()),
            dns_names,
        }
    }

    /// The whole name of its subject as text, for example `CN=gauge-7,O=Example` (RFC 4514). Empty if it
    /// has none.
    ///
    /// For people: to decide by it, compare the [common name](Self::common_name) or one of the [DNS
    /// names](Self::dns_names).
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The common name (`CN`) of its subject.
    #[must_use]
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// The DNS names that it is for (RFC 5280 section 4.2.1.6).
    pub fn dns_names(&self) -> impl Iterator<Item = &str> {
        self.dns_names.iter().map(String::as_str)
    }

    /// All of it, in DER, for whoever needs to know more.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate").field("subject", &self.subject).finish_non_exhaustive()
    }
}
