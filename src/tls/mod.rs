//! Certificates and keys: read, checked, chosen by name, and replaced while the server runs.

mod files;
mod info;
mod names;
mod store;

pub(crate) use files::DAY;
pub use info::{ClientCertificate, TlsInfo};
pub(crate) use store::Store;
pub use store::TlsStatus;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// The cryptography: aws-lc-rs for those who ask for it, otherwise ring.
fn provider() -> CryptoProvider {
    #[cfg(feature = "aws-lc-rs")]
    return rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(not(feature = "aws-lc-rs"))]
    rustls::crypto::ring::default_provider()
}

/// Encrypts what a client brings back when it comes again, with keys that change every six hours, so
/// that no session need be remembered here.
fn ticketer() -> Result<Arc<dyn rustls::server::ProducesTickets>, rustls::Error> {
    #[cfg(feature = "aws-lc-rs")]
    return rustls::crypto::aws_lc_rs::Ticketer::new();
    #[cfg(not(feature = "aws-lc-rs"))]
    rustls::crypto::ring::Ticketer::new()
}
