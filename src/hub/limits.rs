//! How many: sessions, connections of one address, handshakes under way. Every place is given back
//! by a guard, so by every kind of end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config;

/// The limits of one server and what is taken of them.
pub(crate) struct Limits {
    sessions: Gauge,
    handshakes: Gauge,
    max_per_address: usize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
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

    fn give(&self) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Limits {
    /// With what is not set derived from the process's limit of open files.
    pub(crate) fn new(config: &config::Limits) -> Arc<Self> {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
        let sessions = config.sessions.unwrap_or((files / 4).saturating_mul(3).max(1));
        let quarters = |n| (sessions / 4).saturating_mul(n).max(1);
        let max_per_address = config.sessions_per_address.unwrap_or(quarters(3));
        let handshakes = config.handshakes.unwrap_or(quarters(1).max(64));
        log::info!(
            "limits: {sessions} sessions, {max_per_address} of one address, {handshakes} \
             handshakes at a time ({files} open files)"
        );
        Arc::new(Self {
            sessions: Gauge::new(sessions),
            handshakes: Gauge::new(handshakes),
            max_per_address,
            addresses: Mutex::default(),
        })
    }

    /// A place for a handshake, if there is one.
    pub(crate) fn handshake(self: &Arc<Self>) -> Option<Handshake> {
        self.handshakes.take().then(|| Handshake(Arc::clone(self)))
    }

    /// A place for a session, if its address and the server have one.
    pub(crate) fn session(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Place, Full> {
        if let Some(ip) = address {
            let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
            let count = addresses.entry(ip).or_default();
            if *count >= self.max_per_address {
                return Err(Full::Address);
            }
            *count += 1;
        }
        // From here on it is given back by its guard, also if there is no place for the session.
        let mut place = Place { limits: Arc::clone(self), address, session: false };
        place.session = self.sessions.take();
        if place.session { Ok(place) } else { Err(Full::Sessions) }
    }
}

impl Limits {
    /// Gives back the place of a session.
    pub(super) fn release(&self, address: Option<IpAddr>) {
        self.sessions.give();
        self.leave(address);
    }

    fn leave(&self, address: Option<IpAddr>) {
        let Some(ip) = address else {
            return;
        };
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&ip);
            }
        }
    }
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
pub(crate) struct Handshake(Arc<Limits>);

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.handshakes.give();
    }
}

/// A session's place among all, and among those of its address.
pub(crate) struct Place {
    limits: Arc<Limits>,
    address: Option<IpAddr>,
    session: bool,
}

impl Place {
    /// Whoever calls this gives the place back with [`Limits::release`].
    pub(super) fn hand_over(mut self) {
        self.session = false;
        self.address = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.session {
            self.limits.sessions.give();
        }
        self.limits.leave(self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(sessions: usize, per_address: usize, handshakes: usize) -> Arc<Limits> {
        Limits::new(&config::Limits {
            sessions: Some(sessions),
            sessions_per_address: Some(per_address),
            handshakes: Some(handshakes),
            ..config::Limits::default()
        })
    }

    #[test]
    fn every_place_is_given_back() {
        let limits = limits(3, 2, 2);
        let ip = IpAddr::from([127, 0, 0, 1]);
        for _ in 0..10 {
            let handshakes: Vec<_> = (0..3).map(|_| limits.handshake()).collect();
            let under_way: Vec<_> = handshakes.iter().map(Option::is_some).collect();
            assert_eq!(under_way, [true, true, false]);
            let places: Vec<_> = (0..3).map(|_| limits.session(Some(ip))).collect();
            let full: Vec<_> = places.iter().map(|place| place.as_ref().err()).collect();
            assert_eq!(full, [None, None, Some(&Full::Address)]);
            let other = limits.session(Some(IpAddr::from([127, 0, 0, 2])));
            assert!(other.is_ok());
            assert!(matches!(limits.session(None), Err(Full::Sessions)));
        }
        assert!(limits.addresses.lock().unwrap().is_empty());
        assert_eq!(limits.sessions.taken.load(Ordering::SeqCst), 0);
        assert_eq!(limits.handshakes.taken.load(Ordering::SeqCst), 0);
    }
}
