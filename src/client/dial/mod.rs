//! From a URL to a WebSocket, all of it under one deadline.

mod eyeballs;
mod proxy;
mod upgrade;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::http::HeaderMap;
use smol::net::TcpStream;

pub(super) use proxy::{Proxy, basic};

use super::error::{ConnectError, Phase};
use super::shared::Connected;
use super::stream::{Counted, Stream};
use super::target::Target;
use crate::transport::{Deadline, DeadlineExceeded};

/// What every attempt of a client begins with.
pub(super) struct Dial {
    pub(super) target: Arc<Mutex<Arc<Target>>>,
    pub(super) headers: HeaderMap,
    pub(super) subprotocols: Vec<String>,
    pub(super) proxy: Option<Proxy>,
    pub(super) timeout: Duration,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<super::tls::Connector>,
}

/// A WebSocket that has just been opened.
pub(super) struct Dialed {
    pub(super) stream: Stream,
    /// What came behind the server's 101.
    pub(super) rest: Vec<u8>,
    pub(super) connected: Connected,
}

/// How far an attempt has come: what is said of it when its deadline comes.
struct Progress {
    phase: Phase,
    tried: Vec<SocketAddr>,
}

impl Dial {
    pub(super) fn target(&self) -> Arc<Target> {
        Arc::clone(&self.target.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One attempt. Dropping the future gives it up, and closes what it has opened.
    pub(super) async fn run(&self) -> Result<Dialed, ConnectError> {
        let target = self.target();
        let progress = Mutex::new(Progress { phase: Phase::Resolve, tried: Vec::new() });
        let deadline = Deadline::after(self.timeout);
        let steps = async { self.steps(&target, &progress).await.map_err(Failure::Known) };
        match deadline.run("connect", steps).await {
            Ok(dialed) => Ok(dialed),
            Err(Failure::Known(error)) => Err(error),
            Err(Failure::Late) => {
                let Progress { phase, tried } =
                    progress.into_inner().unwrap_or_else(PoisonError::into_inner);
                Err(ConnectError::TimedOut { phase, after: self.timeout, tried })
            }
        }
    }

    async fn steps(
        &self,
        target: &Target,
        progress: &Mutex<Progress>,
    ) -> Result<Dialed, ConnectError> {
        let (host, port) = match &self.proxy {
            Some(proxy) => (&proxy.host, proxy.port),
            None => (&target.host, target.port),
        };
        let (tcp, peer) = reach(host, port, progress).await?;
        if let Some(proxy) = &self.proxy {
            enter(progress, Phase::Proxy);
            proxy.tunnel(&tcp, target).await.map_err(|problem| match problem {
                Problem::Refused(error) => error,
                Problem::Ended(source) => ended(Phase::Proxy, source, progress),
            })?;
        }
        let mut stream = self.secure(target, tcp, peer, progress).await?;
        enter(progress, Phase::Upgrade);
        let opened = upgrade::upgrade(&mut stream, target, &self.headers, &self.subprotocols).await;
        let (head, rest) = opened.map_err(|problem| match problem {
            Problem::Refused(error) => error,
            Problem::Ended(source) => self.ended_late(source, progress),
        })?;
        let upgrade::Head { headers, subprotocol } = head;
        Ok(Dialed {
            stream,
            rest,
            connected: Connected { subprotocol, headers, peer, failures: 0 },
        })
    }

    #[cfg(feature = "tls")]
    async fn secure(
        &self,
        target: &Target,
        tcp: TcpStream,
        peer: SocketAddr,
        progress: &Mutex<Progress>,
    ) -> Result<Stream, ConnectError> {
        match &self.tls {
            Some(connector) if target.tls => {
                enter(progress, Phase::Tls);
                let tls = connector.connect(&target.host, Counted::new(tcp), peer).await?;
                Ok(Stream::Tls(Box::new(tls)))
            }
            _ => Ok(Stream::Tcp(Counted::new(tcp))),
        }
    }

    #[cfg(not(feature = "tls"))]
    #[allow(clippy::unused_async, clippy::unused_self, reason = "with TLS it needs both")]
    async fn secure(
        &self,
        _: &Target,
        tcp: TcpStream,
        _: SocketAddr,
        _: &Mutex<Progress>,
    ) -> Result<Stream, ConnectError> {
        Ok(Stream::Tcp(Counted::new(tcp)))
    }

    /// With TLS 1.3 a server says only behind the handshake what it thinks of the client's certificate.
    #[cfg_attr(not(feature = "tls"), allow(clippy::unused_self, reason = "with TLS it needs it"))]
    fn ended_late(&self, source: io::Error, progress: &Mutex<Progress>) -> ConnectError {
        #[cfg(feature = "tls")]
        if super::tls::is_of_tls(&source) {
            let target = self.target();
            return super::tls::failed(&target.host, peer(progress), source);
        }
        ended(Phase::Upgrade, source, progress)
    }
}

/// Why a request came to nothing: its answer, or the connection's end.
enum Problem {
    Refused(ConnectError),
    Ended(io::Error),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Ended(error)
    }
}

impl From<ConnectError> for Problem {
    fn from(error: ConnectError) -> Self {
        Self::Refused(error)
    }
}

enum Failure {
    Known(ConnectError),
    Late,
}

impl From<DeadlineExceeded> for Failure {
    fn from(_: DeadlineExceeded) -> Self {
        Self::Late
    }
}

fn enter(progress: &Mutex<Progress>, phase: Phase) {
    progress.lock().unwrap_or_else(PoisonError::into_inner).phase = phase;
}

/// The address that the connection is to.
fn peer(progress: &Mutex<Progress>) -> SocketAddr {
    let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
    progress.tried.last().copied().unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))
}

fn ended(phase: Phase, source: io::Error, progress: &Mutex<Progress>) -> ConnectError {
    ConnectError::Ended { phase, peer: peer(progress), source }
}

/// A TCP connection to a name's first address that takes one.
async fn reach(
    host: &str,
    port: u16,
    progress: &Mutex<Progress>,
) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let unknown = |source| ConnectError::Resolve { host: host.to_owned(), source };
    let addresses = smol::net::resolve((host, port)).await.map_err(unknown)?;
    if addresses.is_empty() {
        return Err(unknown(io::Error::new(io::ErrorKind::NotFound, "it has no address")));
    }
    enter(progress, Phase::Connect);
    let begun = |address| {
        progress.lock().unwrap_or_else(PoisonError::into_inner).tried.push(address);
    };
    let (tcp, address) = eyeballs::connect(addresses, begun)
        .await
        .map_err(|tried| ConnectError::Refused { tried })?;
    {
        // The one that is used stands last.
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.tried.retain(|it| *it != address);
        progress.tried.push(address);
    }
    // What is sent is sent whole, and waits for nothing.
    let _ = tcp.set_nodelay(true);
    Ok((tcp, address))
}
