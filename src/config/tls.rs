//! What TLS needs: files, names, versions.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// TLS for the listeners that are asked for with [`Builder::bind_tls`](crate::Builder::bind_tls) or
/// [`Builder::bind_tls_or_plain`](crate::Builder::bind_tls_or_plain).
///
/// All files are read and checked when the server starts, and again when it is told to
/// ([`ServerHandle::reload_tls`](crate::ServerHandle::reload_tls)) or when one of them has changed
/// ([`watch`](Self::watch)). What does not pass the check changes nothing: the server goes on with what
/// it has. A new handshake uses what is there; an open session keeps what it began with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tls {
    /// For clients that name no host, or one that no entry of [`hosts`](Self::hosts) stands for.
    pub identity: Identity,
    /// For clients that name a host (SNI, RFC 6066 section 3). An entry is a host name, or `*.` and a
    /// host name, which stands for exactly one label more; case does not matter, and a whole name is
    /// preferred to a wildcard.
    pub hosts: Vec<(String, Identity)>,
    /// The oldest version that is spoken. Default 1.2; older ones are not implemented.
    pub min_version: TlsVersion,
    /// Whether clients show a certificate. Default: they are not asked.
    pub clients: ClientCertificates,
    /// How often the files are looked at, one `stat` for each. Default 10 s; `None`: never, and then nobody
    /// tries again what has failed, or reminds of a certificate that is about to expire. The files are
    /// read on a thread of smol's blocking pool, which the first look begins.
    ///
    /// Links are followed, so that it is noticed when a directory of secrets is replaced behind one,
    /// as Kubernetes does.
    pub watch: Option<Duration>,
}

impl Tls {
    /// With this certificate chain and this key, both in PEM; a client is not asked for a certificate.
    #[must_use]
    pub fn new(certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        Self::with(Identity::new(certificate, key))
    }

    /// The same, if there is more to say of the key.
    #[must_use]
    pub fn with(identity: Identity) -> Self {
        Self {
            identity,
            hosts: Vec::new(),
            min_version: TlsVersion::V1_2,
            clients: ClientCertificates::Off,
            watch: Some(Duration::from_secs(10)),
        }
    }

    /// Shows another certificate to clients that name this host; see [`hosts`](Self::hosts).
    #[must_use]
    pub fn host(mut self, name: impl Into<String>, identity: Identity) -> Self {
        self.hosts.push((name.into(), identity));
        self
    }

    /// Sets [`min_version`](Self::min_version).
    #[must_use]
    pub fn min_version(mut self, version: TlsVersion) -> Self {
        self.min_version = version;
        self
    }

    /// Sets [`clients`](Self::clients).
    #[must_use]
    pub fn clients(mut self, clients: ClientCertificates) -> Self {
        self.clients = clients;
        self
    }

    /// Sets [`watch`](Self::watch).
    #[must_use]
    pub fn watch(mut self, every: Option<Duration>) -> Self {
        self.watch = every;
        self
    }
}

/// Who a server says it is: a certificate chain and the private key of its first certificate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Identity {
    /// PEM: the server's own certificate first, then those that lead to an authority, without the
    /// authority's own.
    pub certificate: PathBuf,
    /// PEM: PKCS#8 (`PRIVATE KEY`), also with a password (`ENCRYPTED PRIVATE KEY`), PKCS#1
    /// (`RSA PRIVATE KEY`) or SEC1 (`EC PRIVATE KEY`). It may be the same file as the certificate's.
    pub key: PathBuf,
    /// The password of the key. Default: none.
    pub password: Option<Password>,
}

impl Identity {
    /// A key without a password.
    #[must_use]
    pub fn new(certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        Self {
            certificate: certificate.as_ref().to_owned(),
            key: key.as_ref().to_owned(),
            password: None,
        }
    }

    /// Sets the key's password.
    #[must_use]
    pub fn password(mut self, password: impl Into<Password>) -> Self {
        self.password = Some(password.into());
        self
    }
}

/// A password, which `Debug` does not show.
#[derive(Clone)]
pub struct Password(String);

impl Password {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl<T: Into<String>> From<T> for Password {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TlsVersion {
    /// RFC 5246, with AEAD ciphers and forward secrecy only.
    V1_2,
    /// RFC 8446.
    V1_3,
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_2 => "TLS 1.2",
            Self::V1_3 => "TLS 1.3",
        })
    }
}

/// Whether clients show a certificate, and who must have signed it.
///
/// The path is that of a PEM file with the certificates of one or more authorities. Revocation is not
/// checked. Who the client is, the accept hook is told: [`Request::tls`](crate::Request::tls).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum ClientCertificates {
    /// Clients are not asked.
    #[default]
    Off,
    /// Clients are asked and may have none; one that is shown must be signed by one of these.
    Optional(PathBuf),
    /// Whoever shows no certificate that is signed by one of these gets no further than the handshake. It
    /// is an error together with [`Builder::bind_tls_or_plain`](crate::Builder::bind_tls_or_plain), where
    /// nobody has to speak TLS.
    Required(PathBuf),
}

impl ClientCertificates {
    /// The file of the authorities.
    pub(crate) fn authorities(&self) -> Option<&Path> {
        match self {
            Self::Off => None,
            Self::Optional(path) | Self::Required(path) => Some(path),
        }
    }
}
