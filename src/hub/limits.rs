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
    /// Files of folders.
    files: Gauge,
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

    /// Whether more than three quarters are taken: time to get some back.
    fn is_scarce(&self) -> bool {
        self.taken() > most_of(self.max)
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
        let sessions_per_address =
            config.sessions_per_address.unwrap_or((sessions / 4).saturating_mul(3).max(1));
        let Others { handshakes, http, opened } = Others::beside(sessions, files);
        let handshakes = config.handshakes.unwrap_or(handshakes);
        let http = config.http_connections.unwrap_or(http);
        // One address can neither have more handshakes than sessions, nor keep all others out.
        let handshakes_per_address = sessions_per_address.min(most_of(handshakes));
        log::info!(
            "limits: {sessions} sessions ({sessions_per_address} of one address), {handshakes} \
             handshakes at a time ({handshakes_per_address} of one address), {http} connections for \
             other requests, {opened} files of folders; {files} open files"
        );
        Arc::new(Self {
            sessions: Gauge::new(sessions),
            handshakes: Gauge::new(handshakes),
            http: Gauge::new(http),
            files: Gauge::new(opened),
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

    /// A place for a handshake, if there is one for this address, or else in the reserve of its listener.
    pub(crate) fn handshake(
        self: &Arc<Self>,
        address: Option<Address>,
        reserve: Option<&Arc<Reserve>>,
    ) -> Option<Handshake> {
        let rejection = match self.common_handshake(address) {
            Ok(handshake) => return Some(handshake),
            Err(rejection) => rejection,
        };
        if let Some(reserve) = reserve.filter(|reserve| reserve.handshakes.take()) {
            let reserve = Some(Arc::clone(reserve));
            return Some(Handshake { limits: Arc::clone(self), address: None, reserve });
        }
        self.ledger.rejected(rejection);
        None
    }

    fn common_handshake(
        self: &Arc<Self>,
        address: Option<Address>,
    ) -> Result<Handshake, Rejection> {
        if !self.handshakes.take() {
            return Err(Rejection::Handshakes);
        }
        if let Some(address) = address {
            let mut addresses = self.addresses();
            let taken = addresses.entry(address).or_default();
            if taken.handshakes >= self.handshakes_per_address {
                self.handshakes.give();
                return Err(Rejection::AddressHandshakes);
            }
            taken.handshakes += 1;
        }
        Ok(Handshake { limits: Arc::clone(self), address, reserve: None })
    }

    /// A place for a connection with ordinary requests, if there is one for this address, or else in the reserve of
    /// its listener.
    pub(crate) fn http(
        self: &Arc<Self>,
        address: Option<Address>,
        reserve: Option<&Arc<Reserve>>,
    ) -> Option<HttpPlace> {
        self.common_http(address).or_else(|| {
            let reserve = Arc::clone(reserve.filter(|reserve| reserve.http.take())?);
            Some(HttpPlace { limits: Arc::clone(self), address: None, reserve: Some(reserve) })
        })
    }

    fn common_http(self: &Arc<Self>, address: Option<Address>) -> Option<HttpPlace> {
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
        Some(HttpPlace { limits: Arc::clone(self), address, reserve: None })
    }

    /// Permission to open a file of a folder.
    pub(crate) fn file(self: &Arc<Self>) -> Option<OpenFile> {
        self.files.take().then(|| OpenFile(Arc::clone(self)))
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

/// What is derived from the limit of open files beside the sessions.
struct Others {
    handshakes: usize,
    http: usize,
    /// Files of folders.
    opened: usize,
}

impl Others {
    /// Three quarters of the files that the sessions and the server itself leave: half of them for handshakes, a third
    /// for HTTP, the rest for files. The last quarter is the program's.
    fn beside(sessions: usize, files: usize) -> Self {
        let eighth = match files.checked_sub(sessions) {
            // Whoever asks for more sessions than there are files has them in memory, or files enough later.
            None | Some(0) => usize::MAX,
            // Nearly all of them: rarely all at the same time, and nobody becomes a session without a handshake.
            Some(left) => (left - left.min(2 * OWN) / 2).max(files / 16) / 8,
        };
        // Few sessions need no more than this.
        let handshakes = (sessions / 4).max(64).min(eighth.saturating_mul(3)).max(1);
        let http = (sessions / 8).max(64).min(eighth.saturating_mul(2)).max(1);
        Self { handshakes, http, opened: (http / 2).max(1) }
    }
}

/// Files that a small server has open for itself: its output, an epoll and an eventfd for each of a few workers, its
/// listeners.
const OWN: usize = 16;

/// Places of each kind that a listener with routes of its own has beside those of all: some scrapes and health checks
/// at a time.
const RESERVED: usize = 8;

/// What a listener has for itself when all other places are taken: its purpose may be to tell so.
pub(crate) struct Reserve {
    handshakes: Gauge,
    http: Gauge,
}

impl Reserve {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { handshakes: Gauge::new(RESERVED), http: Gauge::new(RESERVED) })
    }
}

/// An open file of a folder.
pub(crate) struct OpenFile(Arc<Limits>);

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.0.files.give();
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
    /// Whose it is, if it is none of all.
    reserve: Option<Arc<Reserve>>,
}

impl Handshake {
    /// It turns out to be for this address. False if that has no place for another one.
    pub(crate) fn attribute(&mut self, address: Address) -> bool {
        if self.reserve.is_some() {
            return true;
        }
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
        let handshakes = self.reserve.as_ref().map(|it| &it.handshakes);
        handshakes.unwrap_or(&self.limits.handshakes).give();
        self.limits.leave(self.address, |taken| taken.handshakes -= 1);
    }
}

/// The place of a connection with ordinary requests.
pub(crate) struct HttpPlace {
    limits: Arc<Limits>,
    address: Option<Address>,
    /// Whose it is, if it is none of all.
    reserve: Option<Arc<Reserve>>,
}

impl HttpPlace {
    fn gauge(&self) -> &Gauge {
        self.reserve.as_ref().map_or(&self.limits.http, |it| &it.http)
    }

    /// Whether others will soon need it.
    pub(crate) fn is_scarce(&self) -> bool {
        self.gauge().is_scarce()
    }
}

impl Drop for HttpPlace {
    fn drop(&mut self) {
        self.gauge().give();
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
            let handshakes: Vec<_> = (0..3).map(|_| limits.handshake(Some(ip), None)).collect();
            let under_way: Vec<_> = handshakes.iter().map(Option::is_some).collect();
            assert_eq!(under_way, [true, true, false], "two sessions, so two handshakes");
            let other = limits.handshake(Some(other_ip), None);
            assert!(other.is_some() && limits.handshake(None, None).is_none());
            let places: Vec<_> = (0..3).map(|_| limits.session(Some(ip))).collect();
            let full: Vec<_> = places.iter().map(|place| place.as_ref().err()).collect();
            assert_eq!(full, [None, None, Some(&Full::Address)]);
            let other = limits.session(Some(other_ip));
            assert!(other.is_ok());
            assert!(matches!(limits.session(None), Err(Full::Sessions)));
        }
        let mut found_out = limits.handshake(None, None).unwrap();
        assert!(found_out.attribute(other_ip) && found_out.attribute(ip));
        let _second = limits.handshake(Some(ip), None).unwrap();
        assert!(limits.handshake(Some(ip), None).is_none());
        let mut third = limits.handshake(None, None).unwrap();
        assert!(!third.attribute(ip) && third.attribute(other_ip));
        drop((found_out, _second, third));
        assert!(limits.addresses.lock().unwrap().is_empty());
        assert_eq!(limits.sessions.taken.load(Ordering::SeqCst), 0);
        assert_eq!(limits.handshakes.taken.load(Ordering::SeqCst), 0);
    }

    // Sessions, handshakes and HTTP had each their share of the files, and more than all together.
    #[test]
    fn what_is_derived_adds_up_to_fewer_than_the_open_files() {
        for files in [64, 256, 1024, 4096, 1 << 20] {
            let sessions = files / 4 * 3;
            let Others { handshakes, http, opened } = Others::beside(sessions, files);
            let all = sessions + handshakes + http + opened;
            assert!(all + 8 <= files, "{all} of {files}");
            assert!(handshakes > 2 && http > 1 && opened > 0, "{handshakes} {http} {opened}");
        }
        // Few sessions need few others, nearly as many as files leave some, and more are somebody's own affair.
        let Others { handshakes, http, .. } = Others::beside(10, 4096);
        assert_eq!((handshakes, http), (64, 64));
        let Others { handshakes, http, .. } = Others::beside(1000, 1024);
        assert_eq!((handshakes, http), (24, 16));
        let Others { handshakes, http, .. } = Others::beside(10_000, 64);
        assert_eq!((handshakes, http), (2500, 1250));
        let Others { handshakes, .. } = Others::beside(usize::MAX / 4 * 3, usize::MAX);
        assert!(handshakes > 1 << 40);
    }

    #[test]
    fn a_reserve_is_used_when_nothing_else_is_left_and_filled_again() {
        let limits = limits(4, 4, 4);
        let ip = Some(Address::of_ip([127, 0, 0, 1].into()));
        let reserve = Reserve::new();
        for _ in 0..3 {
            let all: Vec<_> = (0..20).map_while(|_| limits.handshake(ip, Some(&reserve))).collect();
            assert_eq!(all.len(), 3 + RESERVED, "three of one address, and the reserve");
            assert!(limits.handshake(ip, None).is_none());
            let http = || limits.http(ip, Some(&reserve));
            let all: Vec<_> = std::iter::from_fn(http).collect();
            assert_eq!(all.len(), most_of(limits.http.max) + RESERVED);
            assert!(all.last().unwrap().is_scarce() && !all[0].is_scarce());
            let other = limits.http(None, None).unwrap();
            assert!(other.is_scarce(), "three quarters and one");
        }
        assert!(limits.addresses.lock().unwrap().is_empty());
        let gauges = [&limits.handshakes, &limits.http, &reserve.handshakes, &reserve.http];
        assert!(gauges.iter().all(|gauge| gauge.taken() == 0));
    }
}
