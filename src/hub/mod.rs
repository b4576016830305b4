//! Who is here: the registry of open sessions and what they all share.
//!
//! There is one way in, [`Hub::open`], and one way out, dropping the [`Membership`] it returns.

mod excesses;
mod limits;
mod member;
mod registry;
mod rooms;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use excesses::Exceeded;
pub use excesses::Excesses;
pub(crate) use limits::{Address, Full, Handshake, HttpPlace, Limits, OpenFile, Place, Reserve};
pub(crate) use member::{Member, Profile};
use registry::Registry;
pub use registry::SessionId;
pub use rooms::{
    Audience, JoinError, Presence, PresenceChange, PresenceEvent, PresenceHook, Publication,
    PublishError, RoomPolicy, RoomStats, Rooms,
};
pub(crate) use rooms::{Index, NAME_BYTES};

use crate::config::Config;
use crate::executor::{Clock, Time};
#[cfg(feature = "fallback")]
use crate::fallback::Desk;
use crate::history::Book;
use crate::metrics::{Ledger, Readiness, Sources};
use crate::outbox::{Bounds, Buffered, Outbox, Terms};
use crate::protocol::Protocol;
use crate::shutdown::Shutdown;
use crate::transport::Peer;
use crate::ws::Agreement;

/// What may wait for all peers together, if nothing is said: an eighth of the memory of the machine, or of its
/// container, if that may have less (control group v2, memory.max).
fn default_budget() -> usize {
    let info = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion, reason = "it has 32 bits where pointers have")]
    let machine = u64::from(info.totalram).saturating_mul(info.mem_unit.into());
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let container = limit.and_then(|limit| limit.trim().parse().ok()).unwrap_or(u64::MAX);
    usize::try_from(machine.min(container) / 8).unwrap_or(usize::MAX)
}

pub(crate) struct Hub {
    registry: Registry<Member>,
    pub(crate) rooms: Index,
    pub(crate) limits: Arc<Limits>,
    /// What every outbox is held to.
    pub(crate) terms: Terms,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) shutdown: Shutdown,
    pub(crate) endings: Endings,
    pub(crate) exceeded: Exceeded,
    /// Where clients without WebSocket are served.
    #[cfg(feature = "fallback")]
    pub(crate) desk: Option<Desk>,
    pub(crate) history: Option<Arc<Book>>,
    pub(crate) ledger: Arc<Ledger>,
    #[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "nobody asks"))]
    pub(crate) sources: Sources,
}

/// How sessions ended after a stop was requested, and how often a callback panicked.
#[derive(Default)]
pub(crate) struct Endings {
    pub(crate) drained: AtomicUsize,
    pub(crate) cut: AtomicUsize,
    pub(crate) panics: AtomicUsize,
    /// Requests that were answered.
    pub(crate) requests: AtomicUsize,
    pub(crate) requests_cut: AtomicUsize,
}

impl Endings {
    pub(crate) fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }
}

impl Hub {
    pub(crate) fn new(
        config: Config,
        clock: Clock,
        workers: usize,
        sources: Sources,
        history: Option<Arc<Book>>,
    ) -> Arc<Self> {
        let limits = &config.limits;
        let bounds = Bounds { messages: limits.outbox_messages, bytes: limits.outbox_bytes };
        let budget = limits.outboxes_bytes.unwrap_or_else(default_budget);
        let shutdown = Shutdown::new(clock.clone(), config.timeouts.stop);
        let ledger = Arc::new(Ledger::new(workers));
        Arc::new(Self {
            registry: Registry::new(),
            rooms: Index::new(workers, limits.published_bytes),
            terms: Terms::new(bounds, budget),
            limits: Limits::new(&config.limits, Arc::clone(&ledger)),
            #[cfg(feature = "fallback")]
            desk: Desk::new(&config),
            config,
            clock,
            shutdown,
            endings: Endings::default(),
            exceeded: Exceeded::default(),
            history,
            ledger,
            sources,
        })
    }

    /// A place for the handshake of a connection from this peer. A proxy's are not counted for its address:
    /// they are its clients'.
    pub(crate) fn handshake(
        &self,
        peer: Peer,
        reserve: Option<&Arc<Reserve>>,
    ) -> Option<Handshake> {
        let address = Address::of(peer).filter(|_| !self.config.proxies.contain(peer));
        self.limits.handshake(address, reserve)
    }

    /// Registers a new session, for which there is a place.
    pub(crate) fn open(
        self: &Arc<Self>,
        profile: Profile,
        deflate: Option<Agreement>,
        place: Place,
        worker: usize,
        now: Time,
    ) -> Membership {
        self.insert(Protocol::WebSocket, profile, deflate, place, worker, now)
    }

    /// The same for a session of length-prefixed frames.
    pub(crate) fn open_frames(
        self: &Arc<Self>,
        profile: Profile,
        place: Place,
        worker: usize,
        now: Time,
    ) -> Membership {
        self.insert(Protocol::Frames, profile, None, place, worker, now)
    }

    /// The same for a session whose client comes with requests.
    #[cfg(feature = "fallback")]
    pub(crate) fn open_http(
        self: &Arc<Self>,
        profile: Profile,
        place: Place,
        worker: usize,
        now: Time,
    ) -> Membership {
        self.insert(Protocol::Http, profile, None, place, worker, now)
    }

    fn insert(
        self: &Arc<Self>,
        protocol: Protocol,
        profile: Profile,
        deflate: Option<Agreement>,
        place: Place,
        worker: usize,
        now: Time,
    ) -> Membership {
        place.hand_over();
        self.ledger.opened(protocol);
        self.registry.insert(|id| {
            let member = Arc::new(Member {
                id,
                hub: Arc::clone(self),
                outbox: Outbox::of(protocol),
                counters: Default::default(),
                created: now,
                profile,
                deflate,
                worker: worker as u16,
                social: Default::default(),
                recorded: Default::default(),
            });
            member.counters.touch(now);
            let weak = Arc::downgrade(&member);
            (Membership(member), weak)
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.registry.len()
    }

    pub(crate) fn get(&self, id: SessionId) -> Option<Arc<Member>> {
        self.registry.get(id)
    }

    pub(crate) fn members(&self) -> Vec<Arc<Member>> {
        self.registry.all()
    }

    /// What all sessions have sent and received; `look` is shown those that are open.
    #[cfg(feature = "metrics")]
    pub(crate) fn traffic(&self, look: impl FnMut(Arc<Member>)) -> crate::metrics::Totals {
        self.registry.sum(|member| member.counters.totals(), look)
    }

    /// Whether somebody new would be served.
    pub(crate) fn readiness(&self) -> Readiness {
        if self.shutdown.is_stopping() {
            Readiness::Stopping
        } else if self.limits.is_full() {
            Readiness::Full
        } else {
            Readiness::Ready
        }
    }

    /// Counts how a session ended, if it ended because of the stop or during it.
    pub(crate) fn ended(&self, cut: bool) {
        if self.shutdown.is_stopping() {
            let counter = if cut { &self.endings.cut } else { &self.endings.drained };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A session's place in the hub. Dropping it, by whatever way, is how a session leaves.
pub(crate) struct Membership(Arc<Member>);

impl Membership {
    pub(crate) fn member(&self) -> &Arc<Member> {
        &self.0
    }

    /// Leaves, after an end of which there is a record: by whom, with which code, why.
    pub(crate) fn end(self, how: [&'static str; 3], lived: Duration) {
        self.0.recorded.store(true, Ordering::Relaxed);
        self.0.hub.ledger.closed(how, lived);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let Member { hub, id, profile, counters, created, recorded, .. } = &*self.0;
        if !recorded.load(Ordering::Relaxed) {
            // It did not come to its last callback, or not to its first.
            let lived = hub.clock.coarse().since(*created);
            hub.ledger.closed(["server", "none", "dropped"], lived);
            hub.ended(true);
        }
        hub.registry.remove(*id, counters.totals());
        hub.limits.release(profile.address());
        self.0.outbox.clear(Buffered::default(), &hub.terms);
        // It has just been closed, so that it cannot join another one.
        hub.rooms.leave_all(&self.0);
    }
}
