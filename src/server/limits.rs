//! How many: sessions, connections of one address, handshakes under way. Every place is given back
//! by a guard, so by every kind of end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::http::StatusCode;

use crate::config;
use crate::http::refusal::Refusal;

/// The limits of one server and what is taken of them.
pub(super) struct Limits {
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
    pub(super) fn new(config: &config::Limits) -> Arc<Self> {
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

    /// A place for a new connection's handshake, and for its address.
    pub(super) fn connection(self: &Arc<Self>, address: Option<IpAddr>) -> Connection {
        let handshake = self.handshakes.take().then(|| Handshake(Arc::clone(self)));
        let address = address.map(|ip| {
            let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
            let count = addresses.entry(ip).or_default();
            *count += 1;
            let within = *count <= self.max_per_address;
            Address { limits: Arc::clone(self), ip, within }
        });
        Connection { handshake, address }
    }

    /// A place for a session.
    pub(super) fn session(self: &Arc<Self>) -> Result<Session, Refusal> {
        if self.sessions.take() {
            Ok(Session(Arc::clone(self)))
        } else {
            Err(Refusal::unavailable("the server has as many sessions as it may have"))
        }
    }
}

/// What a new connection takes.
pub(super) struct Connection {
    /// None if too many handshakes are under way.
    pub(super) handshake: Option<Handshake>,
    pub(super) address: Option<Address>,
}

pub(super) struct Handshake(Arc<Limits>);

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.handshakes.give();
    }
}

pub(super) struct Session(Arc<Limits>);

impl Drop for Session {
    fn drop(&mut self) {
        self.0.sessions.give();
    }
}

/// One connection of an address, counted from `accept` to the end of the session.
pub(super) struct Address {
    limits: Arc<Limits>,
    ip: IpAddr,
    within: bool,
}

impl Address {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        if self.within {
            return Ok(());
        }
        Err(Refusal {
            status: StatusCode::TOO_MANY_REQUESTS,
            reason: "too many connections from this address".into(),
            headers: &[("Retry-After", "5")],
        })
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        let mut addresses = self.limits.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.ip);
            }
        }
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
        let limits = limits(2, 2, 2);
        let ip = IpAddr::from([127, 0, 0, 1]);
        for _ in 0..10 {
            let connections: Vec<_> = (0..3).map(|_| limits.connection(Some(ip))).collect();
            let handshakes: Vec<_> = connections.iter().map(|c| c.handshake.is_some()).collect();
            assert_eq!(handshakes, [true, true, false]);
            let within: Vec<_> =
                connections.iter().map(|c| c.address.as_ref().unwrap().check().is_ok()).collect();
            assert_eq!(within, [true, true, false]);
            let (first, second) = (limits.session(), limits.session());
            assert!(first.is_ok() && second.is_ok() && limits.session().is_err());
        }
        assert!(limits.addresses.lock().unwrap().is_empty());
        assert_eq!(limits.sessions.taken.load(Ordering::SeqCst), 0);
        assert_eq!(limits.handshakes.taken.load(Ordering::SeqCst), 0);
    }
}
