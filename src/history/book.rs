//! What a server and its handles share of a history: the store, the ledger, the numbers.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use super::errors::StoreError;
use super::handle::HistoryStats;
use super::hook::{HistoryErrorHook, LostAppend};
use super::ledger::{Ledger, lock};
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
    pending: Bounds,
    pending_messages: AtomicUsize,
    pending_bytes: AtomicUsize,
    appended: AtomicU64,
    failed: AtomicU64,
    last_error: Mutex<Option<StoreError>>,
    /// When a failure may be logged next, and how many have not been.
    silence: Mutex<(Time, u64)>,
    hook: Option<HistoryErrorHook>,
    /// Whether it is closed. Whoever publishes holds it open.
    gate: RwLock<bool>,
    clock: Clock,
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
            pending: Bounds::new(config.pending_messages, config.pending_bytes),
            pending_messages: AtomicUsize::new(0),
            pending_bytes: AtomicUsize::new(0),
            appended: AtomicU64::new(0),
            failed: AtomicU64::new(0),
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

    /// Until this is dropped the history is not closed. `None`: it is.
    pub(super) fn enter(&self) -> Option<RwLockReadGuard<'_, bool>> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        (!*gate).then_some(gate)
    }

    /// Whether one more entry may wait for the store. If so it does.
    pub(super) fn admit(&self, weight: usize) -> bool {
        let Bounds { messages, bytes, .. } = self.pending;
        let more = |add: usize, most: usize| {
            // The first is taken however large it is.
            move |now: usize| (now == 0 || now.saturating_add(add) <= most).then_some(now + add)
        };
        let (order, load) = (Ordering::AcqRel, Ordering::Acquire);
        if self.pending_messages.fetch_update(order, load, more(1, messages)).is_err() {
            return false;
        }
        let admitted = self.pending_bytes.fetch_update(order, load, more(weight, bytes)).is_ok();
        if !admitted {
            self.pending_messages.fetch_sub(1, Ordering::AcqRel);
        }
        admitted
    }

    /// An entry does not wait any more.
    pub(super) fn release(&self, weight: usize) {
        self.pending_messages.fetch_sub(1, Ordering::AcqRel);
        self.pending_bytes.fetch_sub(weight, Ordering::AcqRel);
    }

    pub(super) fn kept(&self, weight: usize) {
        self.appended.fetch_add(1, Ordering::AcqRel);
        self.release(weight);
    }

    /// Tells everybody who wants to know that an entry is lost. Not under a lock that publishing takes, unless
    /// the store fails while it is given the entry.
    pub(super) fn failed(&self, room: &str, id: u64, error: &StoreError) {
        self.failed.fetch_add(1, Ordering::AcqRel);
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
        HistoryStats {
            appended: self.appended.load(Ordering::Acquire),
            failed: self.failed.load(Ordering::Acquire),
            pending_messages: self.pending_messages.load(Ordering::Acquire),
            pending_bytes: self.pending_bytes.load(Ordering::Acquire),
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
        // In this order, so that what is confirmed in between is counted with neither.
        let waiting = self.pending_messages.load(Ordering::Acquire);
        let before = self.appended.load(Ordering::Acquire);
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
        let kept = self.appended.load(Ordering::Acquire).saturating_sub(before);
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
