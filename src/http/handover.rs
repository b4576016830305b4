//! A connection that another HTTP server has upgraded: what it has to tell us.

use std::any::Any;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ::http::HeaderValue;
use ::http::request::Parts;

use super::forwarded;
use crate::config::{ForwardedHeader, Proxies};
use crate::transport::Peer;

/// What another HTTP server hands over together with a stream that it has already upgraded; for
/// [`ServerHandle::serve_upgraded`](crate::ServerHandle::serve_upgraded).
///
/// Everything before the first frame has been that server's business: it has checked the handshake and
/// the origin, authenticated the client, and answered 101. What it answered has to be said here
/// ([`subprotocol`](Self::subprotocol)), and it must not have agreed on an extension.
///
/// ```
/// use coracle::{Handover, Result, ServerHandle, http_types::request::Parts};
/// use futures_lite::{AsyncRead, AsyncWrite};
///
/// /// What an HTTP library has after it has sent the 101.
/// fn upgraded(
///     server: &ServerHandle,
///     request: &Parts,
///     stream: impl AsyncRead + AsyncWrite + Send + 'static,
///     read_ahead: Vec<u8>,
/// ) -> Result<()> {
///     server.serve_upgraded(stream, Handover::new(request).read_ahead(read_ahead))
/// }
/// ```
#[must_use = "it is for `ServerHandle::serve_upgraded`"]
pub struct Handover {
    target: Box<str>,
    peer: Peer,
    subprotocol: Option<String>,
    data: Option<Arc<dyn Any + Send + Sync>>,
    read_ahead: Vec<u8>,
    /// What proxies have said about the client, by each of the headers.
    x_forwarded_for: Vec<HeaderValue>,
    forwarded: Vec<HeaderValue>,
}

impl Handover {
    /// The request that was answered with a 101. Its path and query become the session's, and what
    /// trusted [proxies](crate::config::Proxies) say in it about the client is believed.
    pub fn new(request: &Parts) -> Self {
        let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
        let all = |name| request.headers.get_all(forwarded::name(name)).iter().cloned().collect();
        Self {
            target: target.into(),
            peer: Peer::Stream,
            subprotocol: None,
            data: None,
            read_ahead: Vec::new(),
            x_forwarded_for: all(ForwardedHeader::XForwardedFor),
            forwarded: all(ForwardedHeader::Forwarded),
        }
    }

    /// The address at the other end of the stream. It becomes
    /// [`Session::peer_addr`](crate::Session::peer_addr), and the limits of an address hold for it;
    /// without it they do not hold.
    pub fn peer_addr(mut self, addr: SocketAddr) -> Self {
        self.peer = Peer::tcp(addr);
        self
    }

    /// The subprotocol that the 101 has named.
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.subprotocol = Some(name.into());
        self
    }

    /// Attaches a value to the session, as [`Upgrade::data`](crate::Upgrade::data) does.
    pub fn data<T: Any + Send + Sync>(mut self, data: T) -> Self {
        self.data = Some(Arc::new(data));
        self
    }

    /// Bytes that came behind the request head and that the other server has read already: the
    /// beginning of the first frames.
    pub fn read_ahead(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.read_ahead = bytes.into();
        self
    }

    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    /// The parts, by what the configuration says of proxies.
    pub(crate) fn into_parts(self, proxies: &Proxies) -> Handed {
        let lines = match proxies.header {
            ForwardedHeader::XForwardedFor => &self.x_forwarded_for,
            ForwardedHeader::Forwarded => &self.forwarded,
        };
        let lines = lines.iter().map(HeaderValue::as_bytes);
        let client = forwarded::client_ip(self.peer, lines, proxies);
        let Self { target, subprotocol, data, read_ahead, .. } = self;
        Handed { target, client, subprotocol, data, read_ahead }
    }
}

/// The parts of a [`Handover`] beside the peer.
pub(crate) struct Handed {
    pub(crate) target: Box<str>,
    pub(crate) client: Option<IpAddr>,
    pub(crate) subprotocol: Option<String>,
    pub(crate) data: Option<Arc<dyn Any + Send + Sync>>,
    pub(crate) read_ahead: Vec<u8>,
}

/// Without the query, where tokens are.
impl fmt::Debug for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.target.split_once('?').map_or(&*self.target, |(path, _)| path);
        f.debug_struct("Handover")
            .field("path", &path)
            .field("peer", &format_args!("{}", self.peer))
            .field("subprotocol", &self.subprotocol)
            .field("data", &self.data.is_some())
            .field("read_ahead", &self.read_ahead.len())
            .finish_non_exhaustive()
    }
}
