//! Which certificate a client is shown: by the name that it asks for (SNI, RFC 6066 section 3).

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The certificates by name, and the one for everybody else.
#[derive(Debug)]
pub(super) struct Names {
    default: Arc<CertifiedKey>,
    /// In lower case.
    whole: HashMap<String, Arc<CertifiedKey>>,
    /// What follows the asterisk and its dot, in lower case.
    wildcards: HashMap<String, Arc<CertifiedKey>>,
}

impl Names {
    pub(super) fn new(default: Arc<CertifiedKey>) -> Self {
        Self { default, whole: HashMap::new(), wildcards: HashMap::new() }
    }

    /// Adds a name, or all names that are one label longer than what follows `*.`. False if it is there
    /// already.
    pub(super) fn insert(&mut self, name: &str, key: Arc<CertifiedKey>) -> bool {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        match name.strip_prefix("*.") {
            Some(parent) => self.wildcards.insert(parent.to_owned(), key).is_none(),
            None => self.whole.insert(name, key).is_none(),
        }
    }

    fn choose(&self, name: Option<&str>) -> &Arc<CertifiedKey> {
        let Some(name) = name else {
            return &self.default;
        };
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let parent = || name.split_once('.').and_then(|(_, parent)| self.wildcards.get(parent));
        self.whole.get(&name).or_else(parent).unwrap_or(&self.default)
    }
}

/// What one connection asks for. rustls tells it to whoever chooses the certificate, and to nobody
/// else that uses it as we do.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) names: Arc<Names>,
    pub(super) asked: Arc<OnceLock<Box<str>>>,
}

impl ResolvesServerCert for Question {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        if let Some(name) = name {
            let _ = self.asked.set(name.into());
        }
        Some(Arc::clone(self.names.choose(name)))
    }
}

/// Whether an entry can stand for a host.
pub(super) fn is_pattern(name: &str) -> bool {
    let name = name.strip_prefix("*.").unwrap_or(name);
    !name.is_empty() && rustls::pki_types::DnsName::try_from(name).is_ok()
}
