//! The handle of a running server.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use futures_lite::{AsyncRead, AsyncWrite};

#[cfg(feature = "tls")]
use super::builder::NO_CERTIFICATE;
pub use super::crew::Report;
use super::crew::{Crew, Incoming, IncomingLink, Speaks};
use super::signals::Listening;
use crate::error::{Error, Result};
use crate::history::History;
use crate::http::Handover;
use crate::http::handover::Handed;
use crate::hub::Rooms;
use crate::metrics::Readiness;
use crate::session::Sessions;
use crate::shutdown::Shutdown;
use crate::transport::{ListenAddr, MemoryStream, Peer, Stream, pair};

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
    listeners: Vec<ListenAddr>,
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
    pub(super) fn new(crew: Arc<Crew>, listeners: Vec<ListenAddr>) -> Self {
        let tcp = |it: &ListenAddr| match it {
            ListenAddr::Tcp(addr) => Some(*addr),
            ListenAddr::Unix(_) => None,
        };
        let addresses = listeners.iter().filter_map(tcp).collect();
        Self(Arc::new(Inner { crew, addresses, listeners, signals: Mutex::default() }))
    }

    /// The address of the first TCP listener, with the port that the system has given it.
    ///
    /// # Panics
    ///
    /// If the server has no TCP listener; use [`listeners`](Self::listeners) then.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        *self
            .0
            .addresses
            .first()
            .expect("the server has no TCP listener: call `bind`, or look at `listeners()`")
    }

    /// The addresses of all TCP listeners, in the order in which they were asked for.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.0.addresses
    }

    /// Where the server listens, in the order in which it was asked for: TCP and Unix.
    #[must_use]
    pub fn listeners(&self) -> &[ListenAddr] {
        &self.0.listeners
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
        self.connect_in_memory(Speaks::Plain)
    }

    /// Serves a client at the other end of any byte stream: a serial line, a tunnel, a TLS session of your
    /// own. It begins with an HTTP request, as on every other connection.
    ///
    /// The stream lives and is dropped on a worker, and its wakers are called from wherever the stream
    /// does that. What is written to it is flushed; at the end it is closed, and dropped. It counts in
    /// the limits but in those of an address, for it has none ([`serve_from`](Self::serve_from)), and it
    /// ends when the server stops.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the server is stopping (`ConnectionRefused`), or has so many new connections
    /// that they wait (`WouldBlock`). The stream has been dropped then.
    pub fn serve(&self, stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Result<()> {
        self.send_stream(stream, Peer::Stream, None)
    }

    /// The same for a stream whose other end has an address: it becomes the
    /// [`peer_addr`](crate::Session::peer_addr), the limits of an address hold for it, and so does what
    /// [`Config::proxies`](crate::config::Config::proxies) says of it.
    ///
    /// # Errors
    ///
    /// As of [`serve`](Self::serve); `WouldBlock` also if this address has as many handshakes under way as
    /// one may have.
    pub fn serve_from(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        peer: SocketAddr,
    ) -> Result<()> {
        self.send_stream(stream, Peer::tcp(peer), None)
    }

    /// Serves a client that speaks TLS at the other end of any byte stream, with the certificates of
    /// [`Builder::tls`](crate::Builder::tls). With a `peer` it is otherwise as
    /// [`serve_from`](Self::serve_from), without one as [`serve`](Self::serve).
    ///
    /// # Errors
    ///
    /// As of [`serve_from`](Self::serve_from); [`Error::Config`] if the server has no certificate. The
    /// stream has been dropped then.
    #[cfg(feature = "tls")]
    pub fn serve_tls(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        peer: Option<SocketAddr>,
    ) -> Result<()> {
        if self.0.crew.tls.is_none() {
            return Err(Error::Config(NO_CERTIFICATE.into()));
        }
        let peer = peer.map_or(Peer::Stream, Peer::tcp);
        let link = IncomingLink::Stream(Stream::new(stream));
        self.send(link, peer, None, Speaks::Tls, "cannot serve a stream")
    }

    /// Serves a stream that another HTTP server has upgraded: it has answered 101 to a WebSocket
    /// handshake (RFC 6455 section 4.2.2), and the next bytes are frames.
    ///
    /// The application's `accept` is not asked, and the origin is not looked at: whoever upgraded the
    /// stream has accepted. If there is no place for the session the client is told so by a close
    /// frame with 1013, while the server stops by one with 1001.
    ///
    /// # Errors
    ///
    /// As of [`serve_from`](Self::serve_from).
    pub fn serve_upgraded(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        handover: Handover,
    ) -> Result<()> {
        let peer = handover.peer();
        let handed = handover.into_parts(&self.0.crew.hub.config.proxies);
        self.send_stream(stream, peer, Some(Box::new(handed)))
    }

    /// Serves a client at the other end of any byte stream that speaks length-prefixed
    /// [frames](crate::docs::frames), from its first byte on. With a `peer` it is otherwise as
    /// [`serve_from`](Self::serve_from), without one as [`serve`](Self::serve).
    ///
    /// # Errors
    ///
    /// As of [`serve_from`](Self::serve_from).
    pub fn serve_frames(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        peer: Option<SocketAddr>,
    ) -> Result<()> {
        let peer = peer.map_or(Peer::Stream, Peer::tcp);
        let link = IncomingLink::Stream(Stream::new(stream));
        self.send(link, peer, None, Speaks::Frames, "cannot serve a stream")
    }

    /// Connects to the server without a socket, as [`connect`](Self::connect) does, for length-prefixed
    /// [frames](crate::docs::frames).
    ///
    /// # Errors
    ///
    /// As of [`connect`](Self::connect).
    pub fn connect_frames(&self) -> Result<MemoryStream> {
        self.connect_in_memory(Speaks::Frames)
    }

    fn connect_in_memory(&self, speaks: Speaks) -> Result<MemoryStream> {
        let (server, client) = pair();
        let link = IncomingLink::Memory(server);
        self.send(link, Peer::Memory, None, speaks, "cannot connect to the server in memory")?;
        Ok(client)
    }

    fn send_stream(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        peer: Peer,
        handed: Option<Box<Handed>>,
    ) -> Result<()> {
        let link = IncomingLink::Stream(Stream::new(stream));
        self.send(link, peer, handed, Speaks::Plain, "cannot serve a stream")
    }

    fn send(
        &self,
        link: IncomingLink,
        peer: Peer,
        handed: Option<Box<Handed>>,
        speaks: Speaks,
        what: &'static str,
    ) -> Result<()> {
        let refused = |kind: ErrorKind| Error::System { what, source: kind.into() };
        let crew = &self.0.crew;
        if crew.hub.shutdown.is_stopping() {
            return Err(refused(ErrorKind::ConnectionRefused));
        }
        let Some(handshake) = crew.hub.handshake(peer, None) else {
            return Err(refused(ErrorKind::WouldBlock));
        };
        crew.send(Incoming { link, peer, handed, speaks, handshake })
            .map_err(|_| refused(ErrorKind::WouldBlock))
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

    /// The rooms of the server, to publish to them.
    #[must_use]
    pub fn rooms(&self) -> Rooms {
        Rooms::new(Arc::clone(&self.0.crew.hub))
    }

    /// The history of its rooms, if [`Builder::history`](crate::Builder::history) was given a store.
    #[must_use]
    pub fn history(&self) -> Option<History> {
        History::of(&self.0.crew.hub)
    }

    /// What the server counts of itself, for whoever scrapes it. See [metrics](crate::docs::metrics).
    #[cfg(feature = "metrics")]
    #[must_use]
    pub fn metrics(&self) -> crate::metrics::Metrics {
        crate::metrics::Metrics::new(Arc::clone(&self.0.crew.hub))
    }

    /// Whether the server is to be left running, and whether new clients should be sent to it.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        if self.0.crew.has_ended() { Readiness::Stopped } else { self.0.crew.hub.readiness() }
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
    /// It takes at most [`Timeouts::stop`](crate::config::Timeouts::stop) and four seconds, with a history
    /// one more, unless a callback blocks a worker's thread.
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
            .field("listeners", &self.0.listeners)
            .field("sessions", &self.sessions().count())
            .field("shutdown", &self.shutdown())
            .finish()
    }
}
