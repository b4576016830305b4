//! The handle of a running server.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

pub use super::crew::Report;
use super::crew::{Crew, Incoming, IncomingLink};
use super::signals::Listening;
use crate::error::{Error, Result};
use crate::session::Sessions;
use crate::shutdown::Shutdown;
use crate::transport::{MemoryStream, pair};

/// A running server, for the program that embeds it.
///
/// Cheap to clone, usable from any thread and any executor. **Dropping the last clone stops the
/// server** as [`request_stop`](Self::request_stop) does; callbacks hold no clone, so they never
/// keep a server running.
#[derive(Clone)]
pub struct ServerHandle(Arc<Inner>);

struct Inner {
    crew: Arc<Crew>,
    addresses: Vec<SocketAddr>,
    signals: Mutex<Signals>,
}

/// Who listens to the signals.
#[derive(Default)]
enum Signals {
    #[default]
    Nobody,
    Thread {
        _until_dropped: Listening,
    },
    /// The worker on the application's thread.
    Worker,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.crew.hub.shutdown.request_stop();
    }
}

impl ServerHandle {
    pub(super) fn new(crew: Arc<Crew>, addresses: Vec<SocketAddr>) -> Self {
        Self(Arc::new(Inner { crew, addresses, signals: Mutex::default() }))
    }

    /// The address of the first listener, with the port that the system has given it.
    ///
    /// # Panics
    ///
    /// If the server was built without an address; use [`local_addrs`](Self::local_addrs) then.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        *self.0.addresses.first().expect("the server listens on no address: call `bind`")
    }

    /// The addresses of all listeners, in the order in which they were asked for.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.0.addresses
    }

    /// The open sessions.
    #[must_use]
    pub fn sessions(&self) -> Sessions {
        Sessions::new(Arc::clone(&self.0.crew.hub))
    }

    /// The stop signal, to be handed to whoever may stop the server without keeping it running.
    #[must_use]
    pub fn shutdown(&self) -> Shutdown {
        self.0.crew.hub.shutdown.clone()
    }

    /// Connects to the server without a socket: the returned stream is what a client's socket
    /// would be.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the server is stopping, or has so many new connections that they wait.
    pub fn connect(&self) -> Result<MemoryStream> {
        let refused = |kind: std::io::ErrorKind| Error::System {
            what: "cannot connect to the server in memory",
            source: kind.into(),
        };
        let crew = &self.0.crew;
        if crew.hub.shutdown.is_stopping() {
            return Err(refused(std::io::ErrorKind::ConnectionRefused));
        }
        let Some(handshake) = crew.hub.limits.handshake(None) else {
            return Err(refused(std::io::ErrorKind::WouldBlock));
        };
        let (server, client) = pair();
        crew.send(Incoming { link: IncomingLink::Memory(server), handshake })
            .map_err(|_| refused(std::io::ErrorKind::WouldBlock))?;
        Ok(client)
    }

    /// Reads the certificates and keys again. If they pass every check, new handshakes use them from now
    /// on; if not, nothing changes. Open sessions go on with what they began with, in both cases.
    ///
    /// It reads files and may have to work for a moment on a key's password: in a handler, call it with
    /// `smol::unblock`. Files that change are also read again without this call
    /// ([`Tls::watch`](crate::config::Tls::watch)).
    ///
    /// # Errors
    ///
    /// [`Error::Tls`] names the file and what is wrong with it, [`Error::Config`] says that the server
    /// has no TLS.
    #[cfg(feature = "tls")]
    pub fn reload_tls(&self) -> Result<()> {
        match &self.0.crew.tls {
            Some(tls) => tls.reload(),
            None => Err(Error::Config(
                "there are no certificates to read again: the server has no TLS".into(),
            )),
        }
    }

    /// What the certificates in use are like; `None` if the server has no TLS.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls_status(&self) -> Option<crate::tls::TlsStatus> {
        self.0.crew.tls.as_ref().map(|tls| tls.status())
    }

    /// A worker listens to the signals.
    pub(super) fn leave_signals_to_worker(&self) {
        *self.0.signals.lock().unwrap_or_else(PoisonError::into_inner) = Signals::Worker;
    }

    /// Begins to stop; see [`Shutdown::request_stop`]. Never blocks.
    pub fn request_stop(&self) {
        self.0.crew.hub.shutdown.request_stop();
    }

    /// Waits until the server has ended, for whatever reason.
    ///
    /// Works on any executor: it is woken by the server's own threads.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future changes nothing, and any number of them may wait.
    pub async fn wait(&self) -> Report {
        self.0.crew.wait().await
    }

    /// [`request_stop`](Self::request_stop), then [`wait`](Self::wait): after this no thread, no
    /// socket and no session of the server is left.
    ///
    /// It takes at most [`Timeouts::stop`](crate::config::Timeouts::stop) and four seconds, unless
    /// a callback blocks a worker's thread.
    ///
    /// # Cancel safety
    ///
    /// The stop goes on when the future is dropped; wait again to see its end.
    pub async fn stop(&self) -> Report {
        self.request_stop();
        self.wait().await
    }

    /// From now on SIGINT or SIGTERM stops the server gracefully, and a second one cuts what is
    /// still open. Until this is called a signal ends the process, as it does without a server.
    ///
    /// For programs that say that they are ready, before they do; [`run`](Self::run) calls it
    /// itself. It ends with the server's last handle.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the signals cannot be listened to.
    pub fn stop_on_signals(&self) -> Result<()> {
        let mut signals = self.0.signals.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*signals, Signals::Nobody) {
            let listening = Listening::start(self.shutdown())?;
            *signals = Signals::Thread { _until_dropped: listening };
        }
        Ok(())
    }

    /// Blocks until the server has ended. SIGINT or SIGTERM stops it gracefully, a second one cuts
    /// what is still open.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the signals cannot be listened to; the server then stops.
    pub fn run(self) -> Result<Report> {
        self.stop_on_signals()?;
        Ok(smol::future::block_on(self.wait()))
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle")
            .field("addresses", &self.0.addresses)
            .field("sessions", &self.sessions().count())
            .field("shutdown", &self.shutdown())
            .finish()
    }
}
