//! What a server and its handles share of a history: the store, the ledger, the numbers.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use smol::lock::{Semaphore, SemaphoreGuard};

use super::errors::StoreError;
use super::handle::HistoryStats;
use super::hook::{HistoryErrorHook, LostAppend};
use super::ledger::{GivenUp, Ledger, lock};
use super::receipt::Slot;
use super::store::Store;
use super::value::{Bounds, Epoch};
use crate::config;
use crate::executor::{Clock, Time};
use crate::shutdown::Shutdown;

/// Between two lines of the log about what was not kept: often enough to be seen, seldom enough for a full disk
/// not to fill it further.
const LOG_EVERY: Duration = Duration::from_secs(10);

pub(crate) struct Book {
    pub(super) store: Arc<dyn Store>,
    pub(super) ledger: Ledger,
    pub(super) epoch: Epoch,
    bounds: Bounds,
    /// The most that one session is sent when it joins a room.
    pub(super) replay_messages: usize,
    /// So many pages may be in memory, or be read, for those who join.
    pages: Semaphore,
    pending: Bounds,
    numbers: Mutex<Numbers>,
    last_error: Mutex<Option<StoreError>>,
    /// When a failure may be logged next, and how many have not been.
    silence: Mutex<(Time, u64)>,
    hook: Option<HistoryErrorHook>,
    /// Whether it is closed. Whoever publishes holds it open.
    gate: RwLock<bool>,
    clock: Clock,
}

/// What waits for the store, and what has become of what did. Under one lock, so that each entry is in exactly one of
/// them at any moment: what is counted at the end is right whatever the store says at that time.
#[derive(Clone, Copy, Default)]
struct Numbers {
    pending_messages: usize,
    pending_bytes: usize,
    appended: u64,
    failed: u64,
}

/// What became of history at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flushed {
    pub(crate) kept: usize,
    pub(crate) lost: usize,
}

impl Book {
    /// Opens the store, if there is one; this may block.
    pub(crate) fn open(
        config: &config::History,
        clock: &Clock,
    ) -> Result<Option<Arc<Self>>, StoreError> {
        let Some(kept) = &config.store else {
            return Ok(None);
        };
        let store = Arc::clone(&kept.0);
        let opening = store.open(config.rooms)?;
        let epoch = opening.epoch;
        Ok(Some(Arc::new(Self {
            store,
            ledger: Ledger::new(opening, config.rooms, config.pending_bytes),
            epoch,
            bounds: Bounds::new(config.page_messages, config.page_bytes),
            replay_messages: config.replay_messages,
            // Together they are at most what may wait for the store (some messages may be larger than a page): by
            // default 64, far more than one thread that reads keeps busy.
            pages: Semaphore::new((config.pending_bytes / config.page_bytes.max(1)).max(1)),
            pending: Bounds::new(config.pending_messages, config.pending_bytes),
            numbers: Mutex::default(),
            last_error: Mutex::default(),
            silence: Mutex::new((clock.precise(), 0)),
            hook: config.on_error.clone(),
            gate: RwLock::new(false),
            clock: clock.clone(),
        })))
    }

    /// What is asked for, as far as it is given.
    pub(super) fn bounds(&self, messages: usize) -> Bounds {
        Bounds::new(messages.min(self.bounds.messages), self.bounds.bytes)
    }

    /// As long as one has this it may have a page in memory. Nobody keeps it who waits for a peer.
    pub(super) async fn page(&self) -> SemaphoreGuard<'_> {
        self.pages.acquire().await
    }

    /// Until this is dropped the history is not closed. `None`: it is.
    pub(super) fn enter(&self) -> Option<RwLockReadGuard<'_, bool>> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        (!*gate).then_some(gate)
    }

    /// Whether one more entry may wait for the store. If so it does.
    pub(super) fn admit(&self, weight: usize) -> bool {
        let mut numbers = lock(&self.numbers);
        let (messages, bytes) = (numbers.pending_messages, numbers.pending_bytes);
        // The first is taken however large it is.
        let admitted = messages == 0
            || (messages < self.pending.messages
                && bytes.saturating_add(weight) <= self.pending.bytes);
        if admitted {
            (numbers.pending_messages, numbers.pending_bytes) = (messages + 1, bytes + weight);
        }
        admitted
    }

    /// An entry that waited is kept.
    pub(super) fn kept(&self, weight: usize) {
        let mut numbers = lock(&self.numbers);
        numbers.pending_messages -= 1;
        numbers.pending_bytes -= weight;
        numbers.appended += 1;
    }

    /// An entry that waited is lost.
    pub(super) fn lost(&self, room: &str, id: u64, weight: usize, slot: &Slot, error: StoreError) {
        {
            let mut numbers = lock(&self.numbers);
            numbers.pending_messages -= 1;
            numbers.pending_bytes -= weight;
            numbers.failed += 1;
        }
        self.tell(room, id, &error);
        slot.set(Err(error));
    }

    /// An entry is lost that could not even wait.
    pub(super) fn refused(&self, room: &str, id: u64, error: &StoreError) {
        lock(&self.numbers).failed += 1;
        self.tell(room, id, error);
    }

    /// Tells everybody who wants to know that an entry is lost. Not under a lock that publishing takes, unless
    /// the store fails while it is given the entry.
    fn tell(&self, room: &str, id: u64, error: &StoreError) {
        *lock(&self.last_error) = Some(error.clone());
        let now = self.clock.precise();
        let silent = {
            let mut silence = lock(&self.silence);
            silence.1 += 1;
            (now >= silence.0).then(|| {
                silence.0 = now + LOG_EVERY;
                std::mem::take(&mut silence.1)
            })
        };
        if let Some(failures) = silent {
            log::error!(
                "history: room {room:?}: message {id} is not kept: {error} \
                 ({failures} since the last such line)"
            );
        }
        if let Some(hook) = &self.hook {
            hook.tell(&LostAppend { room, id, error });
        }
    }

    pub(super) fn stats(&self) -> HistoryStats {
        let store = self.store.stats();
        let Numbers { pending_messages, pending_bytes, appended, failed } = *lock(&self.numbers);
        HistoryStats {
            appended,
            failed,
            pending_messages,
            pending_bytes,
            rooms: self.ledger.rooms(),
            commits: store.commits,
            trimmed: store.trimmed,
            trims_failed: store.trims_failed,
            last_error: lock(&self.last_error).clone(),
        }
    }

    /// Ends it: nothing is published with history any more, and what waits is kept, as far as there is time:
    /// until the deadline of the stop, which a cut brings forward, or this long if that is later. Blocks the
    /// thread. The second time it does nothing.
    pub(crate) fn close(&self, shutdown: &Shutdown, at_least: Duration) -> Flushed {
        {
            let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
            if std::mem::replace(&mut *gate, true) {
                return Flushed::default();
            }
        }
        // From here on nothing is added to what waits, so all that is kept from here on is of it.
        let Numbers { pending_messages: waiting, appended: before, .. } = *lock(&self.numbers);
        let closing = self.ledger.closing();
        // It may be the application's, and this runs while a worker ends.
        let closed = catch_unwind(AssertUnwindSafe(|| {
            block_on_until(self.store.close(closing), &self.clock, shutdown, at_least)
        }));
        match closed {
            Ok(Some(Ok(()))) => {}
            Ok(Some(Err(error))) => log::error!("history: not closed cleanly: {error}"),
            Ok(None) => log::error!("history: not closed in time: what waits is lost"),
            Err(_) => log::error!("history: the store panicked when it was closed"),
        }
        // Whoever waits to hear of it does not wait for ever, and the store says nothing any more that counts.
        for GivenUp { room, id, weight, slot } in self.ledger.give_up() {
            self.lost(&room, id, weight, &slot, StoreError::unanswered());
        }
        let kept = lock(&self.numbers).appended - before;
        let kept = usize::try_from(kept).unwrap_or(usize::MAX).min(waiting);
        Flushed { kept, lost: waiting - kept }
    }
}

/// Waits for a future on this thread, but not for ever.
fn block_on_until<T>(
    future: impl Future<Output = T>,
    clock: &Clock,
    shutdown: &Shutdown,
    at_least: Duration,
) -> Option<T> {
    struct Sleeper(Thread);

    impl Wake for Sleeper {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Sleeper(thread::current())));
    let cx = &mut Context::from_waker(&waker);
    let earliest = clock.precise() + at_least;
    let mut changed = shutdown.listen();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Some(value);
        }
        // Before the deadline is looked at.
        while Pin::new(&mut changed).poll(cx).is_ready() {
            changed = shutdown.listen();
        }
        let left = shutdown.deadline().max(earliest).since(clock.precise());
        if left.is_zero() {
            return None;
        }
        thread::park_timeout(left);
    }
}
