//! What everyone shares of one session: who it is, its outbox, its numbers.

use std::any::Any;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::{Address, Hub, SessionId};
use crate::executor::Time;
use crate::metrics::Totals;
use crate::outbox::{Outbox, Shape};
use crate::paths::Pattern;
use crate::protocol::Protocol;
use crate::transport::Peer;
use crate::ws::Agreement;

/// The part of a session that any thread may look at. It owns neither the socket nor the task.
pub(crate) struct Member {
    pub(crate) id: SessionId,
    pub(crate) hub: Arc<Hub>,
    pub(crate) outbox: Outbox,
    pub(crate) counters: Counters,
    pub(crate) created: Time,
    pub(crate) profile: Profile,
    pub(crate) deflate: Option<Agreement>,
    /// Where it lives.
    pub(crate) worker: u16,
    /// It is, or was, in a room.
    pub(super) social: AtomicBool,
    /// How it has ended has been counted.
    pub(super) recorded: AtomicBool,
}

impl Member {
    #[inline]
    pub(crate) fn protocol(&self) -> Protocol {
        self.outbox.protocol
    }

    /// What a message for many looks like that is sent to this session.
    pub(crate) fn shape(&self) -> Shape {
        match (self.protocol(), self.deflate) {
            (Protocol::Frames, _) => Shape::Prefixed,
            (_, None) => Shape::Plain,
            (_, Some(agreement)) => {
                let config = &self.hub.config;
                Shape::new(agreement, config.deflate_threshold(), config.deflate_level())
            }
        }
    }

    /// Whether a message of this length leaves compressed, unless its sender says no.
    #[inline]
    pub(crate) fn deflates(&self, len: usize) -> bool {
        self.deflate.is_some() && len >= self.hub.config.deflate_threshold()
    }
}

/// What the handshake leaves behind.
pub(crate) struct Profile {
    peer: SmallPeer,
    /// `None` for a plain request of `/`, which many servers see nothing else than.
    extra: Option<Box<Extra>>,
}

/// A [`Peer`] in half of the memory, for all but IPv6.
enum SmallPeer {
    V4(SocketAddrV4),
    V6(Box<SocketAddrV6>),
    Unix,
    Memory,
    Stream,
}

struct Extra {
    target: Box<str>,
    subprotocol: Option<Box<str>>,
    data: Option<Arc<dyn Any + Send + Sync>>,
    /// The client's address where it is not the peer's: there is a proxy in between.
    client: Option<Box<IpAddr>>,
    /// The pattern by which the path was found, if there are several. Never for a plain `/`, in which no
    /// parameter has a place.
    pattern: OnceLock<Arc<Pattern>>,
}

impl Profile {
    pub(crate) fn new(
        peer: Peer,
        client: Option<IpAddr>,
        target: &str,
        subprotocol: Option<String>,
        data: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Self {
        let client = client.filter(|client| peer.ip() != Some(*client)).map(Box::new);
        let plain = target == "/" && subprotocol.is_none() && data.is_none() && client.is_none();
        let extra = (!plain).then(|| {
            let subprotocol = subprotocol.map(String::into_boxed_str);
            let (target, pattern) = (target.into(), OnceLock::new());
            Box::new(Extra { target, subprotocol, data, client, pattern })
        });
        let peer = match peer {
            Peer::Tcp(SocketAddr::V4(v4)) => SmallPeer::V4(v4),
            Peer::Tcp(SocketAddr::V6(v6)) => SmallPeer::V6(Box::new(v6)),
            Peer::Unix => SmallPeer::Unix,
            Peer::Memory => SmallPeer::Memory,
            Peer::Stream => SmallPeer::Stream,
        };
        Self { peer, extra }
    }

    /// The other end of the connection.
    pub(crate) fn peer(&self) -> Peer {
        match &self.peer {
            SmallPeer::V4(v4) => Peer::Tcp((*v4).into()),
            SmallPeer::V6(v6) => Peer::Tcp((**v6).into()),
            SmallPeer::Unix => Peer::Unix,
            SmallPeer::Memory => Peer::Memory,
            SmallPeer::Stream => Peer::Stream,
        }
    }

    /// The client's address, as far as those say it who are believed.
    pub(crate) fn client_ip(&self) -> Option<IpAddr> {
        let client = self.extra.as_ref().and_then(|extra| extra.client.as_deref());
        client.copied().or_else(|| self.peer().ip())
    }

    /// Whom the session is counted for.
    pub(super) fn address(&self) -> Option<Address> {
        self.client_ip().map(Address::of_ip).or_else(|| Address::of(self.peer()))
    }

    /// Path and query, as they stood in the request line.
    pub(crate) fn target(&self) -> &str {
        self.extra.as_ref().map_or("/", |extra| &extra.target)
    }

    /// Where it is kept by which pattern the path was found.
    pub(crate) fn pattern(&self) -> Option<&OnceLock<Arc<Pattern>>> {
        Some(&self.extra.as_ref()?.pattern)
    }

    pub(crate) fn subprotocol(&self) -> Option<&str> {
        self.extra.as_ref()?.subprotocol.as_deref()
    }

    pub(crate) fn data(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.extra.as_ref()?.data.as_deref()
    }
}

/// Numbers that only the session's driver writes, so that writing one is a load and a store.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) messages_in: Counter,
    pub(crate) messages_out: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    /// Microseconds of the clock at the last byte in or out.
    active: Counter,
    /// Microseconds plus one; zero before the first pong.
    rtt: Counter,
}

impl Counters {
    pub(crate) fn totals(&self) -> Totals {
        Totals {
            messages_in: self.messages_in.get(),
            messages_out: self.messages_out.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
        }
    }

    pub(crate) fn touch(&self, now: Time) {
        self.active.set(now.as_micros());
    }

    pub(crate) fn last_activity(&self) -> Time {
        Time::from_micros(self.active.get())
    }

    pub(crate) fn measured(&self, rtt: Duration) {
        self.rtt.set(u64::try_from(rtt.as_micros()).map_or(u64::MAX, |micros| micros + 1));
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt.get().checked_sub(1).map(Duration::from_micros)
    }
}

/// One writer, many readers.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, n: usize) {
        self.set(self.get().wrapping_add(n as u64));
    }

    #[inline]
    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Transport;

    #[test]
    fn the_kinds_of_peers_and_transports_cost_an_idle_session_nothing() {
        // A socket is two pointers and a number, and one more word tells it from the others; an address of
        // IPv4 fits into two words.
        assert!(size_of::<Option<Transport>>() <= 4 * size_of::<usize>());
        assert!(size_of::<SmallPeer>() <= 2 * size_of::<usize>());
        assert!(size_of::<Profile>() <= 3 * size_of::<usize>());
        let plain = Profile::new(Peer::Unix, None, "/", None, None);
        assert!(plain.extra.is_none());
        let ip: IpAddr = [203, 0, 113, 7].into();
        let proxied = Profile::new(Peer::Unix, Some(ip), "/", None, None);
        assert_eq!((proxied.client_ip(), proxied.peer()), (Some(ip), Peer::Unix));
        assert_eq!(proxied.address(), Some(Address::of_ip(ip)));
        assert_eq!(plain.address(), Some(Address::Unix));
    }
}
