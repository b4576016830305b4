//! Which session a request belongs to, and which clients come no more.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_lite::future;
use rustix::rand::{GetRandomFlags, getrandom};

use super::Fallbacks;
use super::relay::{Bounds, Relay, Relayed};
use super::token::{KEY_BYTES, Key, Secret};
use crate::config::Config;
use crate::executor::Worker;
use crate::hub::{Hub, Membership, SessionId};
use crate::metrics::Tally;
use crate::outbox::Terms;
use crate::transport::Transport;

/// How long a client may take to fetch the last that its session had for it, when that has ended already; and
/// to fetch it again, if the answer was lost on its way.
const LINGER: Duration = Duration::from_secs(10);

/// What is kept for that of all ended sessions together, in bytes: 1 024 that have nothing but their end to
/// tell, or sixteen with a whole outbox of the default size. Who ends when it is full is forgotten at once.
const LINGERING: usize = 16 * 1024 * 1024;

/// What each of them counts beside its messages.
const LINGERING_EACH: usize = LINGERING / 1024;

/// What a server with fallbacks has.
pub(crate) struct Desk {
    pub(super) base: Box<str>,
    key: Key,
    bounds: Bounds,
    relays: Mutex<HashMap<Secret, Arc<Relay>>>,
    lingering: AtomicUsize,
    pub(crate) counts: Counts,
}

/// What has happened here, since the start.
#[derive(Default)]
pub(crate) struct Counts {
    /// Polls that were answered with messages.
    pub(crate) polls: Tally,
    /// Polls that nothing came for.
    pub(crate) empty_polls: Tally,
    /// Second polls, while the first one waited.
    pub(crate) refused_polls: Tally,
    /// Event streams.
    pub(crate) streams: Tally,
    /// Posts whose messages were handed on.
    pub(crate) posts: Tally,
    /// Posts that came a second time.
    pub(crate) repeated_posts: Tally,
}

/// Whoever can make a session live on this worker.
pub(crate) trait Host {
    /// Begins to drive a session, and something beside it that ends with it.
    fn host(
        &self,
        transport: Transport,
        membership: Membership,
        beside: Pin<Box<dyn Future<Output = ()>>>,
    );
}

impl Desk {
    pub(crate) fn new(config: &Config) -> Option<Self> {
        let Fallbacks { path, key } = config.fallbacks.clone()?;
        let limits = &config.limits;
        Some(Self {
            base: path.into_boxed_str(),
            key: key.unwrap_or_else(|| Key::new(random::<KEY_BYTES>())),
            bounds: Bounds {
                messages: limits.outbox_messages,
                bytes: limits.outbox_bytes,
                message_bytes: limits.outbox_bytes.max(limits.message_bytes),
            },
            relays: Mutex::default(),
            lingering: AtomicUsize::new(0),
            counts: Counts::default(),
        })
    }

    fn relays(&self) -> MutexGuard<'_, HashMap<Secret, Arc<Relay>>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the relay of a session that is about to begin, and has it hosted. Returns its token, too.
    pub(super) fn open(
        &self,
        hub: &Arc<Hub>,
        worker: &Rc<Worker>,
        membership: Membership,
        host: &dyn Host,
    ) -> Option<(Arc<Relay>, String)> {
        let session = membership.member().id;
        let nonce = u128::from_be_bytes(random());
        let token = self.key.sign(session, nonce)?;
        let secret = Secret { session: session.as_u64(), nonce };
        let relay = Relay::new(self.bounds, hub.clock.clone(), hub.terms.kept());
        self.relays().insert(secret, Arc::clone(&relay));
        let watch = watch(Arc::clone(hub), Rc::clone(worker), Arc::clone(&relay), secret);
        host.host(Transport::Relay(Relayed::new(&relay)), membership, Box::pin(watch));
        Some((relay, token))
    }

    /// What is kept for each client, where that counts.
    pub(crate) fn kept(&self) -> HashMap<u64, usize> {
        let relays = self.relays();
        let kept = relays.iter().map(|(secret, relay)| (secret.session, relay.counted()));
        kept.filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// Gives up what ended sessions have left, the most first, until no more than `enough` is used.
    pub(crate) fn relieve(&self, terms: &Terms, enough: usize) {
        let ended = |relay: &Arc<Relay>| {
            let bytes = if relay.has_ended() { relay.counted() } else { 0 };
            (bytes > 0).then(|| (bytes, Arc::clone(relay)))
        };
        let mut ended: Vec<_> = self.relays().values().filter_map(ended).collect();
        ended.sort_unstable_by_key(|(bytes, _)| Reverse(*bytes));
        for (_, relay) in ended {
            if terms.used() <= enough {
                return;
            }
            relay.abandon();
        }
    }

    /// Gives up what is kept for a client, because memory is short.
    pub(crate) fn end_over_budget(&self, session: SessionId) {
        let session = session.as_u64();
        let found = self
            .relays()
            .iter()
            .find(|(secret, _)| secret.session == session)
            .map(|it| it.1.clone());
        if let Some(relay) = found {
            relay.abandon();
        }
    }

    /// The relay of a session. `Err`: the token is none of ours; `Ok(None)`: the session has ended.
    pub(super) fn find(&self, token: &str) -> Result<Option<Arc<Relay>>, NotOurs> {
        let secret = self.key.open(token).ok_or(NotOurs)?;
        Ok(self.relays().get(&secret).map(Arc::clone))
    }
}

/// A token that this key has not signed.
pub(super) struct NotOurs;

/// Ends a session whose client does not come any more, and forgets it when it has ended.
async fn watch(hub: Arc<Hub>, worker: Rc<Worker>, relay: Arc<Relay>, secret: Secret) {
    let Some(desk) = &hub.desk else {
        return;
    };
    // However this ends: at the stop's deadline it is dropped.
    let _forget = Forget { desk, secret };
    let absence = hub.config.timeouts.poll_absence;
    let watched = async {
        while !relay.has_ended() {
            let now = worker.now();
            let due = match relay.absent_since() {
                Some(since) if since + absence <= now && relay.give_up(since) => {
                    return relay.ended().await;
                }
                Some(since) => since + absence,
                None => now + absence,
            };
            future::or(relay.ended(), worker.sleep_until(due)).await;
        }
    };
    let stopped = async {
        hub.shutdown.stopping().await;
        // Who waits is told; who does not wait cannot come any more.
        while !relay.has_ended() {
            let changed = relay.listen();
            relay.answer_for_absent();
            future::or(relay.ended(), changed).await;
        }
    };
    future::or(watched, stopped).await;
    linger(desk, &hub, &worker, &relay).await;
}

/// What the session has left is for the client to be fetched, for a while.
async fn linger(desk: &Desk, hub: &Hub, worker: &Rc<Worker>, relay: &Relay) {
    let weight = LINGERING_EACH + relay.weight();
    let before = desk.lingering.fetch_add(weight, Ordering::AcqRel);
    let _given_back = GiveBack { desk, weight };
    if before + weight <= LINGERING {
        let late = worker.sleep_until(worker.now() + LINGER);
        future::or(late, hub.shutdown.stopping()).await;
    }
}

struct GiveBack<'a> {
    desk: &'a Desk,
    weight: usize,
}

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.desk.lingering.fetch_sub(self.weight, Ordering::AcqRel);
    }
}

struct Forget<'a> {
    desk: &'a Desk,
    secret: Secret,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.desk.relays().remove(&self.secret);
    }
}

/// Bytes that nobody can guess.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            // Linux has had it since 3.17, and it fails for nobody who asks for so little.
            Err(error) => panic!("the system has no random numbers: {error}"),
        }
    }
    bytes
}
