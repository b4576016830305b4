//! What new handshakes use: the last configuration that passed every check.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use super::files::{self, Stamp};
use super::names::{self, Names, Question};
use crate::config::{ClientCertificates, Tls};
use crate::error::{Error, Result};

/// The certificates of a server, and how they are replaced.
pub(crate) struct Store {
    settings: Tls,
    current: Mutex<Current>,
    /// The files as they were when they were last read, with success or without. Locked while they are
    /// read, so that who comes later also has read later.
    stamps: Mutex<Vec<Option<Stamp>>>,
    /// When what has failed is tried again.
    retry: Mutex<Retry>,
}

/// First soon, then less and less often: a wrong file stays wrong, and a password costs work.
#[derive(Default)]
struct Retry {
    at: Option<Instant>,
    wait: Duration,
}

impl Retry {
    const FIRST: Duration = Duration::from_secs(10);
    const LONGEST: Duration = Duration::from_secs(10 * 60);

    fn is_due(&self) -> bool {
        self.at.is_none_or(|at| Instant::now() >= at)
    }

    fn failed(&mut self) {
        self.wait = (2 * self.wait).clamp(Self::FIRST, Self::LONGEST);
        self.at = Instant::now().checked_add(self.wait);
    }
}

struct Current {
    config: Arc<ServerConfig>,
    names: Arc<Names>,
    status: TlsStatus,
}

/// What a server's certificates are like; see
/// [`ServerHandle::tls_status`](crate::ServerHandle::tls_status).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TlsStatus {
    /// When the first of the certificates in use expires.
    pub not_after: SystemTime,
    /// When those in use were read.
    pub loaded_at: SystemTime,
    /// Why the last attempt to replace them has failed; `None` if it has not.
    pub last_error: Option<String>,
    /// How often they have been replaced since the server was started.
    pub reloads: u64,
    /// How often an attempt to replace them has failed.
    pub failed_reloads: u64,
}

impl Store {
    /// Reads and checks everything.
    pub(crate) fn new(settings: Tls) -> Result<Arc<Self>> {
        let stamps = Mutex::new(stamps(&settings));
        let current = Mutex::new(load(&settings)?);
        Ok(Arc::new(Self { settings, current, stamps, retry: Mutex::default() }))
    }

    pub(crate) fn settings(&self) -> &Tls {
        &self.settings
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For one new connection: what rustls needs, and where the name will be that the client asks for.
    pub(crate) fn connection(&self) -> (Arc<ServerConfig>, Arc<OnceLock<Box<str>>>) {
        let (config, names) = {
            let current = self.current();
            (Arc::clone(&current.config), Arc::clone(&current.names))
        };
        let asked = Arc::default();
        let question = Question { names, asked: Arc::clone(&asked) };
        // Some ten reference counts, in a handshake that costs a thousand times as much.
        let mut config = (*config).clone();
        config.cert_resolver = Arc::new(question);
        (Arc::new(config), asked)
    }

    pub(crate) fn status(&self) -> TlsStatus {
        self.current().status.clone()
    }

    /// Reads everything again if a file is another than the one that was last read, and now and then if
    /// that has failed: not all that can be wrong is in the files (the clock, the number of open files).
    /// Blocks.
    pub(crate) fn follow(&self) {
        // While somebody else reads them there is nothing to do.
        let changed =
            self.stamps.try_lock().is_ok_and(|stamped| *stamped != stamps(&self.settings));
        let failed = self.current().status.last_error.is_some();
        let mut retry = self.retry.lock().unwrap_or_else(PoisonError::into_inner);
        if changed {
            *retry = Retry::default();
        }
        if changed || (failed && retry.is_due()) {
            match self.reload() {
                Ok(()) => *retry = Retry::default(),
                // It is logged and remembered.
                Err(_) => retry.failed(),
            }
        }
    }

    /// Says so if the certificates in use are about to expire, or have.
    pub(crate) fn warn_of_expiry(&self) {
        files::warn_of_expiry(self.status().not_after);
    }

    /// Reads everything again. If it passes every check it is used from now on; if not, nothing changes.
    /// Blocks.
    pub(crate) fn reload(&self) -> Result<()> {
        let mut stamped = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        // Before they are read: what changes meanwhile is seen next time.
        *stamped = stamps(&self.settings);
        match load(&self.settings) {
            Ok(mut new) => {
                let mut current = self.current();
                new.status.reloads = current.status.reloads + 1;
                new.status.failed_reloads = current.status.failed_reloads;
                let old = std::mem::replace(&mut *current, new);
                drop(current);
                drop(old);
                log::info!("TLS: certificates and keys have been read again");
                Ok(())
            }
            Err(error) => {
                let text = error.to_string();
                let status = &mut self.current().status;
                // It is tried again and again.
                if status.last_error.as_ref() != Some(&text) {
                    log::error!("{text}; the certificates that were in use stay in use");
                }
                status.last_error = Some(text);
                status.failed_reloads += 1;
                Err(error)
            }
        }
    }
}

/// Every file once.
fn paths(settings: &Tls) -> Vec<PathBuf> {
    let hosts = settings.hosts.iter().map(|(_, identity)| identity);
    let identities = std::iter::once(&settings.identity).chain(hosts);
    let authorities = settings.clients.authorities().map(Into::into);
    identities.flat_map(files::of).chain(authorities).collect()
}

fn stamps(settings: &Tls) -> Vec<Option<Stamp>> {
    paths(settings).iter().map(|path| Stamp::of(path)).collect()
}

fn load(settings: &Tls) -> Result<Current> {
    let provider = Arc::new(super::provider());
    let default = files::identity(&settings.identity, &provider)?;
    let mut not_after = default.not_after;
    let mut names = Names::new(default.key);
    for (name, identity) in &settings.hosts {
        if !names::is_pattern(name) {
            return Err(Error::Config(format!(
                "tls.hosts: {name:?} is no host name: write it like \"chat.example.com\" or \
                 \"*.example.com\""
            )));
        }
        let loaded = files::identity(identity, &provider)?;
        not_after = not_after.min(loaded.not_after);
        if !names.insert(name, loaded.key) {
            return Err(Error::Config(format!("tls.hosts: {name:?} is there twice: leave one")));
        }
    }
    let cryptography = |source: rustls::Error| Error::System {
        what: "cannot set up TLS",
        source: std::io::Error::other(source),
    };
    let names = Arc::new(names);
    let nobody = Question { names: Arc::clone(&names), asked: Arc::default() };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(super::versions(settings.min_version))
        .map_err(cryptography)?;
    let builder = match client_verifier(&settings.clients, &provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(nobody));
    if matches!(settings.clients, ClientCertificates::Off) {
        // New with every configuration.
        config.ticketer = super::ticketer().map_err(cryptography)?;
    } else {
        // Whoever comes again with a ticket is taken for who it was, for ever: no certificate is looked
        // at, also one that has expired meanwhile.
        config.send_tls13_tickets = 0;
    }
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    let status = TlsStatus {
        not_after,
        loaded_at: SystemTime::now(),
        last_error: None,
        reloads: 0,
        failed_reloads: 0,
    };
    Ok(Current { config: Arc::new(config), names, status })
}

fn client_verifier(
    clients: &ClientCertificates,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>> {
    let (file, required) = match clients {
        ClientCertificates::Off => return Ok(None),
        ClientCertificates::Optional(file) => (file, false),
        ClientCertificates::Required(file) => (file, true),
    };
    let roots = Arc::new(files::authorities(file)?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    let verifier = builder.build().map_err(|error| Error::Tls {
        file: file.clone(),
        problem: format!("these authorities cannot be used: {error}"),
    })?;
    Ok(Some(verifier))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server without a free descriptor saw that the files were new, could not read them, and never
    /// tried again.
    #[test]
    fn what_could_not_be_read_is_tried_again_although_no_file_has_changed() {
        let certs = concat!(env!("CARGO_MANIFEST_DIR"), "/certs");
        let store =
            Store::new(Tls::new(format!("{certs}/server.pem"), format!("{certs}/server.key")))
                .unwrap();
        let loaded_at = store.status().loaded_at;
        store.follow();
        assert_eq!(store.status().loaded_at, loaded_at, "nothing has changed");
        store.current().status.last_error = Some("too many open files".to_owned());
        store.follow();
        assert_ne!(store.status().loaded_at, loaded_at);
        assert_eq!(store.status().last_error, None);
    }

    #[test]
    fn what_stays_wrong_is_tried_less_and_less_often() {
        let mut retry = Retry::default();
        assert!(retry.is_due());
        let mut waits = Vec::new();
        for _ in 0..9 {
            retry.failed();
            assert!(!retry.is_due());
            waits.push(retry.wait.as_secs());
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 600, 600, 600]);
    }
}
