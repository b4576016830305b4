//! How many: sessions, connections of one address, handshakes under way. Every place is given back
//! by a guard, so by every kind of end.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config;
use crate::metrics::{Ledger, Rejection};
use crate::transport::Peer;

/// The limits of one server and what is taken of them.
pub(crate) struct Limits {
    sessions: Gauge,
    handshakes: Gauge,
    http: Gauge,
    #[cfg(feature = "tls")]
    tls_handshakes: Gauge,
    sessions_per_address: usize,
    handshakes_per_address: usize,
    addresses: Mutex<HashMap<Address, Taken>>,
    /// Where it is counted who finds no place.
    ledger: Arc<Ledger>,
}

/// Whom a connection is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    Ip(IpAddr),
    /// All peers of the Unix family together: what they share is this machine.
    Unix,
}

impl Address {
    /// One customer of a network has many IPv6 addresses: a /64 counts as one.
    pub(crate) fn of_ip(ip: IpAddr) -> Self {
        Self::Ip(match ip {
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) >> 64 << 64).into(),
            v4 @ IpAddr::V4(_) => v4,
        })
    }

    /// Connections within the process, and streams that nobody has given an address, are counted
    /// for nobody.
    pub(crate) fn of(peer: Peer) -> Option<Self> {
        match peer {
            Peer::Tcp(addr) => Some(Self::of_ip(addr.ip())),
            Peer::Unix => Some(Self::Unix),
            Peer::Memory | Peer::Stream => None,
        }
    }
}

/// What one address has taken.
#[derive(Default)]
struct Taken {
    sessions: usize,
    handshakes: usize,
    http: usize,
    #[cfg(feature = "tls")]
    tls_handshakes: usize,
}

impl Taken {
    fn is_nothing(&self) -> bool {
        #[cfg(feature = "tls")]
        if self.tls_handshakes > 0 {
            return false;
        }
        self.sessions == 0 && self.handshakes == 0 && self.http == 0
    }
}

/// A number with an upper bound.
struct Gauge {
    taken: AtomicUsize,
    max: usize,
}

impl Gauge {
    fn new(max: usize) -> Self {
        Self { taken: AtomicUsize::new(0), max }
    }

    fn take(&self) -> bool {
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                (taken < self.max).then_some(taken + 1)
            })
            .is_ok()
    }

    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    fn give(&self) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Limits {
    /// With what is not set derived from the process's limit of open files.
    pub(crate) fn new(config: &config::Limits, ledger: Arc<Ledger>) -> Arc<Self> {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
        let sessions = config.sessions.unwrap_or((files / 4).saturating_mul(3).max(1));
        let quarters = |n| (sessions / 4).saturating_mul(n).max(1);
        let sessions_per_address = config.sessions_per_address.unwrap_or(quarters(3));
        let handshakes = config.handshakes.unwrap_or(quarters(1).max(64));
        let http = config.http_connections.unwrap_or((sessions / 8).max(64));
        // One address can neither have more handshakes than sessions, nor keep all others out.
        let handshakes_per_address = sessions_per_address.min(most_of(handshakes));
        log::info!(
            "limits: {sessions} sessions ({sessions_per_address} of one address), {handshakes} \
             handshakes at a time ({handshakes_per_address} of one address), {http} connections for \
             other requests; {files} open files"
        );
        Arc::new(Self {
            sessions: Gauge::new(sessions),
            handshakes: Gauge::new(handshakes),
            http: Gauge::new(http),
            #[cfg(feature = "tls")]
            tls_handshakes: Gauge::new(config.tls_handshakes.unwrap_or(handshakes)),
            sessions_per_address,
            handshakes_per_address,
            addresses: Mutex::default(),
            ledger,
        })
    }

    fn addresses(&self) -> MutexGuard<'_, HashMap<Address, Taken>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a handshake, if there is one for this address.
    pub(crate) fn handshake(self: &Arc<Self>, address: Option<Address>) -> Option<Handshake> {
        if !self.handshakes.take() {
            self.ledger.rejected(Rejection::Handshakes);
            return None;
        }
        if let Some(address) = address {
            let mut addresses = self.addresses();
            let taken = addresses.entry(address).or_default();
            if taken.handshakes >= self.handshakes_per_address {
                self.handshakes.give();
                self.ledger.rejected(Rejection::AddressHandshakes);
                return None;
            }
            taken.handshakes += 1;
        }
        Some(Handshake { limits: Arc::clone(self), address })
    }

    /// A place for a connection with ordinary requests, if there is one for this address.
    pub(crate) fn http(self: &Arc<Self>, address: Option<Address>) -> Option<HttpPlace> {
        if !self.http.take() {
            return None;
        }
        if let Some(address) = address {
            let mut addresses = self.addresses();
            let taken = addresses.entry(address).or_default();
            if taken.http >= most_of(self.http.max) {
                self.http.give();
                return None;
            }
            taken.http += 1;
        }
        Some(HttpPlace { limits: Arc::clone(self), address })
    }

    /// A place for a session, if its address and the server have one.
    pub(crate) fn session(self: &Arc<Self>, address: Option<Address>) -> Result<Place, Full> {
        if !self.sessions.take() {
            self.ledger.rejected(Rejection::Sessions);
            return Err(Full::Sessions);
        }
        if let Some(address) = address {
            let mut addresses = self.addresses();
            let taken = addresses.entry(address).or_default();
            if taken.sessions >= self.sessions_per_address {
                self.sessions.give();
                self.ledger.rejected(Rejection::AddressSessions);
                return Err(Full::Address);
            }
            taken.sessions += 1;
        }
        Ok(Place { limits: Arc::clone(self), address, held: true })
    }

    /// Whether there is no place for another session.
    pub(super) fn is_full(&self) -> bool {
        self.sessions.taken() >= self.sessions.max
    }

    /// Places for sessions, all and taken; handshakes under way; connections with ordinary requests.
    #[cfg(feature = "metrics")]
    pub(crate) fn places(&self) -> [usize; 4] {
        [self.sessions.max, self.sessions.taken(), self.handshakes.taken(), self.http.taken()]
    }

    /// Gives back the place of a session.
    pub(super) fn release(&self, address: Option<Address>) {
        self.sessions.give();
        self.leave(address, |taken| taken.sessions -= 1);
    }

    fn leave(&self, address: Option<Address>, subtract: impl FnOnce(&mut Taken)) {
        let Some(address) = address else {
            return;
        };
        let mut addresses = self.addresses();
        if let Some(taken) = addresses.get_mut(&address) {
            subtract(taken);
            if taken.is_nothing() {
                addresses.remove(&address);
            }
        }
    }
}

/// What one address may have of a number, so that it does not keep all others out.
fn most_of(all: usize) -> usize {
    all.saturating_mul(3).div_ceil(4)
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// That of all sessions.
    Sessions,
    /// That of one address.
    Address,
}

/// A handshake under way.
pub(crate) struct Handshake {
    limits: Arc<Limits>,
    address: Option<Address>,
}

impl Handshake {
    /// It turns out to be for this address. False if that has no place for another one.
    pub(crate) fn attribute(&mut self, address: Address) -> bool {
        let limits = &self.limits;
        {
            let mut addresses = limits.addresses();
            let taken = addresses.entry(address).or_default();
            if taken.handshakes >= limits.handshakes_per_address {
                limits.ledger.rejected(Rejection::AddressHandshakes);
                return false;
            }
            taken.handshakes += 1;
        }
        limits.leave(self.address.replace(address), |taken| taken.handshakes -= 1);
        true
    }

    /// A place for its TLS handshake, if there is one for its address.
    #[cfg(feature = "tls")]
    pub(crate) fn tls(&self) -> Option<TlsHandshake> {
        let limits = &self.limits;
        if !limits.tls_handshakes.take() {
            limits.ledger.rejected(Rejection::TlsHandshakes);
            return None;
        }
        if let Some(address) = self.address {
            let mut addresses = limits.addresses();
            let taken = addresses.entry(address).or_default();
            if taken.tls_handshakes >= most_of(limits.tls_handshakes.max) {
                limits.tls_handshakes.give();
                limits.ledger.rejected(Rejection::TlsHandshakes);
                return None;
            }
            taken.tls_handshakes += 1;
        }
        Some(TlsHandshake { limits: Arc::clone(limits), address: self.address })
    }
}

/// A TLS handshake under way.
#[cfg(feature = "tls")]
pub(crate) struct TlsHandshake {
    limits: Arc<Limits>,
    address: Option<Address>,
}

#[cfg(feature = "tls")]
impl Drop for TlsHandshake {
    fn drop(&mut self) {
        self.limits.tls_handshakes.give();
        self.limits.leave(self.address, |taken| taken.tls_handshakes -= 1);
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.limits.handshakes.give();
        self.limits.leave(self.address, |taken| taken.handshakes -= 1);
    }
}

/// The place of a connection with ordinary requests.
pub(crate) struct HttpPlace {
    limits: Arc<Limits>,
    address: Option<Address>,
}

impl Drop for HttpPlace {
    fn drop(&mut self) {
        self.limits.http.give();
        self.limits.leave(self.address, |taken| taken.http -= 1);
    }
}

/// A session's place among all, and among those of its address.
pub(crate) struct Place {
    limits: Arc<Limits>,
    address: Option<Address>,
    held: bool,
}

impl Place {
    /// Whoever calls this gives the place back with [`Limits::release`].
    pub(super) fn hand_over(mut self) {
        self.held = false;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.held {
            self.limits.release(self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(sessions: usize, per_address: usize, handshakes: usize) -> Arc<Limits> {
        let config = config::Limits {
            sessions: Some(sessions),
            sessions_per_address: Some(per_address),
            handshakes: Some(handshakes),
            ..config::Limits::default()
        };
        Limits::new(&config, Arc::new(Ledger::new(1)))
    }

    #[test]
    fn every_place_is_given_back() {
        let limits = limits(3, 2, 3);
        let ip = Address::of_ip([127, 0, 0, 1].into());
        let other_ip = Address::of_ip([127, 0, 0, 2].into());
        for _ in 0..10 {
            let handshakes: Vec<_> = (0..3).map(|_| limits.handshake(Some(ip))).collect();
            let under_way: Vec<_> = handshakes.iter().map(Option::is_some).collect();
            assert_eq!(under_way, [true, true, false], "two sessions, so two handshakes");
            let other = limits.handshake(Some(other_ip));
            assert!(other.is_some() && limits.handshake(None).is_none());
            let places: Vec<_> = (0..3).map(|_| limits.session(Some(ip))).collect();
            let full: Vec<_> = places.iter().map(|place| place.as_ref().err()).collect();
            assert_eq!(full, [None, None, Some(&Full::Address)]);
            let other = limits.session(Some(other_ip));
            assert!(other.is_ok());
            assert!(matches!(limits.session(None), Err(Full::Sessions)));
        }
        let mut found_out = limits.handshake(None).unwrap();
        assert!(found_out.attribute(other_ip) && found_out.attribute(ip));
        let _second = limits.handshake(Some(ip)).unwrap();
        assert!(limits.handshake(Some(ip)).is_none());
        let mut third = limits.handshake(None).unwrap();
        assert!(!third.attribute(ip) && third.attribute(other_ip));
        drop((found_out, _second, third));
        assert!(limits.addresses.lock().unwrap().is_empty());
        assert_eq!(limits.sessions.taken.load(Ordering::SeqCst), 0);
        assert_eq!(limits.handshakes.taken.load(Ordering::SeqCst), 0);
    }
}
