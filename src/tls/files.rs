//! The files: certificate chains, private keys, authorities. Every error names its file and says what
//! to do.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::der::{Decode, SecretDocument};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{InconsistentKeys, RootCertStore};
use x509_cert::Certificate;

use crate::config::{Identity, Password};
use crate::error::{Error, Result};

/// Nobody has a longer chain or more authorities; so that a device file or the wrong file does not fill
/// the memory. The list of authorities of a Linux distribution has 230 KiB.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// When a server begins to say that a certificate is about to expire. Who renews by machine does so
/// 30 days before.
const EXPIRES_SOON: Duration = DAY.saturating_mul(14);

fn wrong(file: &Path, problem: impl Into<String>) -> Error {
    Error::Tls { file: file.to_owned(), problem: problem.into() }
}

/// A chain and its key, which belong together.
pub(super) struct Loaded {
    pub(super) key: Arc<CertifiedKey>,
    /// When the first certificate of the chain to do so expires.
    pub(super) not_after: SystemTime,
}

/// Reads and checks a certificate chain and its key.
pub(super) fn identity(identity: &Identity, provider: &CryptoProvider) -> Result<Loaded> {
    let (certificate, key) = (&*identity.certificate, &*identity.key);
    let chain = certificates(certificate)?;
    let not_after = check_validity(certificate, &chain)?;
    let signing = private_key(key, identity.password.as_ref(), provider)?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        // It cannot be told of a key that is elsewhere; there is none here.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err(wrong(
                key,
                format!(
                    "this key does not belong to the certificate in {}: the key's own certificate \
                     must be the first in that file (compare `openssl pkey -pubout -in KEY` with \
                     `openssl x509 -pubkey -noout -in CERTIFICATE`)",
                    certificate.display()
                ),
            ));
        }
        Err(error) => {
            return Err(wrong(certificate, format!("the certificate is refused: {error}")));
        }
    }
    Ok(Loaded { key: Arc::new(certified), not_after })
}

/// The authorities that may have signed a client's certificate.
pub(crate) fn authorities(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        warn_if_over(file, &certificate);
        roots.add(certificate).map_err(|error| {
            wrong(file, format!("one of these certificates cannot be an authority: {error}"))
        })?;
    }
    Ok(roots)
}

/// Nobody else looks at the dates of an authority: whoever is named is trusted.
fn warn_if_over(file: &Path, der: &CertificateDer<'_>) {
    let Ok(certificate) = Certificate::from_der(der) else {
        return;
    };
    let tbs = certificate.tbs_certificate();
    let until = tbs.validity().not_after;
    if until.to_system_time() < SystemTime::now() {
        log::warn!(
            "TLS: {}: the authority {} expired on {until}, and clients with its certificates are still let \
             in: take it out, if that is not what you want",
            file.display(),
            tbs.subject(),
        );
    }
}

/// What tells one version of a file from the next: found by one `stat`, which follows links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None` if there is no such file.
    pub(super) fn of(file: &Path) -> Option<Self> {
        let metadata = fs::metadata(file).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let cannot = |error: io::Error| wrong(file, unreadable(file, &error));
    let metadata = fs::metadata(file).map_err(cannot)?;
    if metadata.is_dir() {
        return Err(wrong(file, "this is a directory: name the file in it"));
    }
    // To open a pipe is to wait for somebody who writes.
    if !metadata.is_file() {
        return Err(wrong(file, "this is a pipe, a socket or a device: name a file"));
    }
    let opened = File::open(file).map_err(cannot)?;
    let mut bytes = Vec::new();
    opened.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(wrong(file, "the file is longer than 4 MiB: is it the right one?"));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(wrong(file, "the file is empty"));
    }
    Ok(bytes)
}

fn unreadable(file: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            let here = match std::env::current_dir() {
                Ok(here) if file.is_relative() => {
                    format!("; the path is relative to {}", here.display())
                }
                _ => String::new(),
            };
            match file.ancestors().skip(1).find(|above| above.exists()) {
                Some(above) if above != file.parent().unwrap_or(above) => {
                    format!("no such file: of its path only {} exists{here}", above.display())
                }
                _ => format!("no such file{here}"),
            }
        }
        io::ErrorKind::PermissionDenied => {
            let user = rustix::process::geteuid().as_raw();
            match fs::metadata(file) {
                Ok(it) => format!(
                    "permission denied: the file belongs to user {} and group {} with mode {:04o}, and \
                     this process runs as user {user}: let it be read by that user \
                     (`chown` or `setfacl -m u:{user}:r`), not by everybody",
                    it.uid(),
                    it.gid(),
                    it.mode() & 0o7777
                ),
                Err(_) => format!(
                    "permission denied: user {user}, as whom this process runs, may not enter one of \
                     the directories of this path"
                ),
            }
        }
        _ => error.to_string(),
    }
}

/// All certificates of a file.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(file)?;
    let mut chain = Vec::new();
    let mut others = Vec::new();
    for section in sections(file, &bytes)? {
        match section {
            (SectionKind::Certificate, der) => chain.push(CertificateDer::from(der)),
            (kind, _) => others.push(kind),
        }
    }
    if !chain.is_empty() {
        return Ok(chain);
    }
    if others.contains(&SectionKind::Csr) {
        return Err(wrong(
            file,
            "this is a request for a certificate and not a certificate: send it to the authority, \
             which answers with one",
        ));
    }
    if !others.is_empty() || find(&bytes, b"PRIVATE KEY-----") {
        return Err(wrong(
            file,
            "there is a key and no certificate in this file: have certificate and key been mixed up?",
        ));
    }
    Err(not_pem(file, &bytes, "certificate"))
}

/// The sections of a PEM file.
fn sections(file: &Path, bytes: &[u8]) -> Result<Vec<(SectionKind, Vec<u8>)>> {
    <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes).collect::<Result<_, _>>().map_err(|error| {
        wrong(file, format!("the file is not whole: {error}; copy it again, as text"))
    })
}

/// Nothing that we know is in the file.
fn not_pem(file: &Path, bytes: &[u8], what: &str) -> Error {
    let problem = if find(bytes, b"-----BEGIN OPENSSH PRIVATE KEY-----") {
        "this is a key of OpenSSH, which TLS does not use: make one with `openssl genpkey`"
            .to_owned()
    } else if find(bytes, b"-----BEGIN ") {
        format!("there is no {what} in this PEM file")
    } else if bytes.first() == Some(&0x30) {
        // A sequence in DER: which one, its file name may tell.
        let pkcs12 = file.extension().is_some_and(|it| it == "p12" || it == "pfx");
        if pkcs12 {
            "this is PKCS#12, and PEM is needed: convert it with `openssl pkcs12 -in FILE -nodes -out \
             FILE.pem`, which holds certificates and key"
                .to_owned()
        } else {
            let convert = match what {
                "certificate" => "openssl x509 -inform der -in FILE -out FILE.pem",
                _ => "openssl pkey -inform der -in FILE -out FILE.pem",
            };
            format!("this seems to be DER, and PEM is needed: convert it with `{convert}`")
        }
    } else {
        format!(
            "the format is unknown: PEM is needed, with a line `-----BEGIN ..` before each {what}"
        )
    };
    wrong(file, problem)
}

fn find(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// Refuses a certificate that is over, and warns of those that are not valid yet: a small box without a
/// battery for its clock must be able to start before it knows what time it is.
fn check_validity(file: &Path, chain: &[CertificateDer<'_>]) -> Result<SystemTime> {
    let now = SystemTime::now();
    let mut earliest = None;
    for (number, der) in chain.iter().enumerate() {
        let certificate = Certificate::from_der(der).map_err(|error| {
            wrong(file, format!("certificate {} in this file cannot be read: {error}", number + 1))
        })?;
        let tbs = certificate.tbs_certificate();
        let validity = tbs.validity();
        let until = validity.not_after.to_system_time();
        // Behind the server's own there may be an old one, for clients that do not look at its date.
        if until < now && number > 0 {
            log::warn!(
                "TLS: {}: certificate {} in this file, of {}, expired on {}: leave it out, if no old \
                 client needs it",
                file.display(),
                number + 1,
                tbs.subject(),
                validity.not_after
            );
            continue;
        }
        if until < now {
            return Err(wrong(
                file,
                format!(
                    "the certificate of {} expired on {}, {} days ago: renew it (or is this machine's \
                     clock wrong?)",
                    tbs.subject(),
                    validity.not_after,
                    days(now, until)
                ),
            ));
        }
        if validity.not_before.to_system_time() > now {
            log::warn!(
                "TLS: {}: the certificate of {} is not valid before {}: clients will refuse it; is \
                 this machine's clock wrong?",
                file.display(),
                tbs.subject(),
                validity.not_before
            );
        }
        if until < now + EXPIRES_SOON {
            log::warn!(
                "TLS: {}: the certificate of {} expires on {}, in {} days: renew it",
                file.display(),
                tbs.subject(),
                validity.not_after,
                days(until, now)
            );
        }
        earliest = Some(earliest.map_or(until, |earlier: SystemTime| earlier.min(until)));
    }
    // A chain has a certificate.
    Ok(earliest.unwrap_or(now))
}

/// What to say once a day of certificates that have been in use for long.
pub(super) fn warn_of_expiry(not_after: SystemTime) {
    let now = SystemTime::now();
    if not_after < now {
        log::error!(
            "TLS: a certificate in use has expired, {} days ago: clients refuse it; renew it",
            days(now, not_after)
        );
    } else if not_after < now + EXPIRES_SOON {
        log::warn!("TLS: a certificate in use expires in {} days: renew it", days(not_after, now));
    }
}

fn days(later: SystemTime, earlier: SystemTime) -> u64 {
    later.duration_since(earlier).unwrap_or_default().as_secs() / DAY.as_secs()
}

/// The private key of a file.
fn private_key(
    file: &Path,
    password: Option<&Password>,
    provider: &CryptoProvider,
) -> Result<Arc<dyn SigningKey>> {
    let bytes = read(file)?;
    check_mode(file)?;
    let protected = find(&bytes, b"-----BEGIN ENCRYPTED PRIVATE KEY-----");
    let key = if protected {
        unlock(file, &bytes, password)?
    } else if find(&bytes, b"Proc-Type: 4,ENCRYPTED") {
        return Err(wrong(
            file,
            "this key is protected in OpenSSL's old format, which is weak: convert it with `openssl \
             pkcs8 -topk8 -in FILE -out FILE.new`",
        ));
    } else {
        if password.is_some() {
            log::warn!("TLS: {}: this key has no password, one is configured", file.display());
        }
        plain_key(file, &bytes)?
    };
    provider.key_provider.load_private_key(key).map_err(|error| {
        wrong(
            file,
            format!(
                "this key cannot be used ({error}): RSA with 2048 to 8192 bits, ECDSA on P-256 or \
                 P-384, or Ed25519 is needed"
            ),
        )
    })
}

fn plain_key(file: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>> {
    let mut keys = Vec::new();
    let mut certificate = false;
    for (kind, der) in sections(file, bytes)? {
        match kind {
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                keys.extend(PrivateKeyDer::from_pem(kind, der));
            }
            SectionKind::Certificate => certificate = true,
            _ => {}
        }
    }
    if keys.len() > 1 {
        return Err(wrong(
            file,
            format!("there are {} keys in this file: leave the one of the certificate", keys.len()),
        ));
    }
    match keys.pop() {
        Some(key) => Ok(key),
        None if certificate => Err(wrong(
            file,
            "there is a certificate and no key in this file: have certificate and key been mixed up?",
        )),
        None => Err(not_pem(file, bytes, "private key")),
    }
}

/// A key that is protected by a password.
fn unlock(
    file: &Path,
    bytes: &[u8],
    password: Option<&Password>,
) -> Result<PrivateKeyDer<'static>> {
    let Some(password) = password else {
        return Err(wrong(
            file,
            "this key is protected by a password, and none is configured: set `Identity::password`, or \
             take the protection away with `openssl pkcs8 -in FILE -out FILE.new`",
        ));
    };
    let broken = |error: &dyn std::fmt::Display| {
        wrong(file, format!("the protected key cannot be read: {error}; copy it again, as text"))
    };
    // The first section that is one: the file may have others before it.
    let text = String::from_utf8_lossy(bytes);
    let begin = text.find("-----BEGIN ENCRYPTED PRIVATE KEY-----").unwrap_or_default();
    const END: &str = "-----END ENCRYPTED PRIVATE KEY-----";
    let end = text[begin..].find(END).map_or(text.len(), |end| begin + end + END.len());
    let (_, document) =
        SecretDocument::from_pem(&text[begin..end]).map_err(|error| broken(&error))?;
    let info = EncryptedPrivateKeyInfoRef::from_der(document.as_bytes())
        .map_err(|error| broken(&error))?;
    let key = info.decrypt(password.as_bytes()).map_err(|error| match error {
        pkcs8::Error::EncryptedPrivateKey(
            pkcs8::pkcs5::Error::UnsupportedAlgorithm { .. }
            | pkcs8::pkcs5::Error::NoPbes1CryptSupport
            | pkcs8::pkcs5::Error::AlgorithmParametersInvalid { .. },
        ) => wrong(
            file,
            format!(
                "this protection is not supported ({error}): convert the key with `openssl pkcs8 \
                 -topk8 -v2 aes-256-cbc -in FILE -out FILE.new`"
            ),
        ),
        // With a wrong password the padding is wrong, or what comes out is no key.
        _ => wrong(file, "the password is wrong (or the file is damaged)"),
    })?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}

/// A key that others may change is not ours. One that others may read is common (the secrets of
/// Kubernetes are mounted so), and only worth a warning.
fn check_mode(file: &Path) -> Result<()> {
    let Ok(metadata) = fs::metadata(file) else {
        return Ok(());
    };
    let mode = metadata.mode() & 0o7777;
    if mode & 0o002 != 0 {
        return Err(wrong(
            file,
            format!(
                "everybody on this machine may change this key (mode {mode:04o}): `chmod 600` it"
            ),
        ));
    }
    if mode & 0o004 != 0 {
        log::warn!(
            "TLS: {}: everybody on this machine may read this key (mode {mode:04o}): `chmod 600` it",
            file.display()
        );
    }
    Ok(())
}

/// All files of an identity.
pub(super) fn of(identity: &Identity) -> [PathBuf; 2] {
    [identity.certificate.clone(), identity.key.clone()]
}
