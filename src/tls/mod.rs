//! Certificates and keys: read, checked, chosen by name, and replaced while the server runs.

mod files;
mod info;
mod names;
mod store;

pub(crate) use files::DAY;
#[cfg(feature = "client")]
pub(crate) use files::authorities;
pub use info::{ClientCertificate, TlsInfo};
pub(crate) use store::Store;
pub use store::TlsStatus;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

use crate::config::TlsVersion;

/// The cryptography: aws-lc-rs for those who ask for it, otherwise ring.
pub(crate) fn provider() -> CryptoProvider {
    #[cfg(feature = "aws-lc-rs")]
    return rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(not(feature = "aws-lc-rs"))]
    rustls::crypto::ring::default_provider()
}

/// This version and the later ones.
pub(crate) fn versions(least: TlsVersion) -> &'static [&'static rustls::SupportedProtocolVersion] {
    const ALL: &[&rustls::SupportedProtocolVersion] =
        &[&rustls::version::TLS13, &rustls::version::TLS12];
    match least {
        TlsVersion::V1_2 => ALL,
        TlsVersion::V1_3 => &ALL[..1],
    }
}

/// A client's chain and key, which belong together.
#[cfg(feature = "client")]
pub(crate) fn certified_key(
    identity: &crate::config::Identity,
    provider: &CryptoProvider,
) -> crate::error::Result<rustls::sign::CertifiedKey> {
    Ok(rustls::sign::CertifiedKey::clone(&files::identity(identity, provider)?.key))
}

/// Encrypts what a client brings back when it comes again, with keys that change every six hours, so
/// that no session need be remembered here.
fn ticketer() -> Result<Arc<dyn rustls::server::ProducesTickets>, rustls::Error> {
    #[cfg(feature = "aws-lc-rs")]
    return rustls::crypto::aws_lc_rs::Ticketer::new();
    #[cfg(not(feature = "aws-lc-rs"))]
    rustls::crypto::ring::Ticketer::new()
}
