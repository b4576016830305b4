//! The rooms that history knows: how far their ids have come, and what their store has not confirmed yet.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::held::Held;
use super::receipt::Slot;
use super::store::{Closing, Opening, Portion};
use super::value::{Bounds, Entry};
use crate::message::Text;

/// The rooms are behind so many locks, so that workers rarely meet.
const SHARDS: usize = 16;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Shard = Mutex<HashMap<Text, Arc<Line>>>;

/// All lines, as many as fit: of rooms that have long been silent it is forgotten how far they had come. They go
/// on above the floor then, which is above all that was forgotten, so no id comes twice.
pub(super) struct Ledger {
    hasher: RandomState,
    shards: Box<[Shard]>,
    count: AtomicUsize,
    most: usize,
    floor: AtomicU64,
    /// A line was forgotten, or the store may not have named all: so somebody may be told that a room has come up
    /// to the floor of which the store knows a lower id.
    forgetful: AtomicBool,
    /// A line was forgotten of which the store may not know the last id.
    tainted: AtomicBool,
    /// What lines hold on to after the store has it.
    held: Arc<Held>,
}

/// One room's ids.
pub(super) struct Line {
    /// Whoever gives an id holds this until the message is on the way to the members and to the store; whoever
    /// joins with a replay until he is a member.
    order: Mutex<()>,
    tail: Mutex<Tail>,
    touched: AtomicU64,
    held: Arc<Held>,
}

#[derive(Default)]
struct Tail {
    last: u64,
    /// The highest id that the store did not take.
    failed: u64,
    /// Forgotten: there may be another line of this room.
    retired: bool,
    /// What the store has not confirmed, and what somebody wants held, by their ids.
    items: VecDeque<Item>,
    /// What of them the store has, in bytes.
    held: usize,
    /// Each has a number, and wants what is above an id.
    holds: Vec<(u64, u64)>,
    next_hold: u64,
}

struct Item {
    entry: Entry,
    /// Where it is said what has become of it. `None`: the store has it.
    waiting: Option<Arc<Slot>>,
}

/// An entry that nobody will answer for any more.
pub(super) struct GivenUp {
    pub(super) room: Text,
    pub(super) id: u64,
    pub(super) weight: usize,
    pub(super) slot: Arc<Slot>,
}

/// What is known of a room at a moment: what is not in `recent` the store has, or nobody.
pub(super) struct Snapshot {
    pub(super) last: u64,
    /// Everything up to here is the store's to answer.
    pub(super) base: u64,
    /// As much as was asked for.
    pub(super) recent: Portion,
}

impl Ledger {
    pub(super) fn new(opening: Opening, most: usize, held_bytes: usize) -> Self {
        let ledger = Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            count: AtomicUsize::new(0),
            most,
            floor: AtomicU64::new(opening.floor),
            forgetful: AtomicBool::new(opening.heads.len() >= most),
            tainted: AtomicBool::new(false),
            held: Arc::new(Held::new(held_bytes)),
        };
        for (at, (room, last)) in opening.heads.into_iter().enumerate() {
            if at >= most {
                ledger.floor.fetch_max(last, Ordering::SeqCst);
                continue;
            }
            let mut shard = ledger.shard(&room);
            // They come with the latest first.
            let line = Arc::new(Line::new(last, (most - at) as u64, &ledger.held));
            if shard.insert(room, line).is_none() {
                ledger.count.fetch_add(1, Ordering::Relaxed);
            }
        }
        ledger
    }

    fn shard(&self, room: &str) -> MutexGuard<'_, HashMap<Text, Arc<Line>>> {
        lock(&self.shards[self.hasher.hash_one(room) as usize % SHARDS])
    }

    pub(super) fn rooms(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The line of a room, if it has one.
    pub(super) fn find(&self, room: &str) -> Option<Arc<Line>> {
        self.shard(room).get(room).map(Arc::clone)
    }

    /// The line of a room, which has one from now on.
    pub(super) fn line(&self, room: &str) -> Arc<Line> {
        let mut shard = self.shard(room);
        if let Some(line) = shard.get(room) {
            return Arc::clone(line);
        }
        if self.count.load(Ordering::Relaxed) >= self.most {
            self.forget_some(&mut shard);
        }
        let floor = self.floor.load(Ordering::SeqCst);
        let line = Arc::new(Line::new(floor, super::value::now(), &self.held));
        shard.insert(room.into(), Arc::clone(&line));
        self.count.fetch_add(1, Ordering::Relaxed);
        line
    }

    /// Forgets a quarter of a shard, so that it need not look at all of them for each new room: first those that
    /// nothing was published to, of which nothing is lost (whoever joins rooms of any name can make many), then
    /// those that have been silent the longest.
    fn forget_some(&self, shard: &mut HashMap<Text, Arc<Line>>) {
        let floor = self.floor.load(Ordering::SeqCst);
        let rank = |line: &Line| {
            (line.last().is_some_and(|last| last > floor), line.touched.load(Ordering::Relaxed))
        };
        let mut oldest: Vec<_> = shard.iter().map(|(room, it)| (rank(it), room.clone())).collect();
        // Of a shard that has less than its share, others are to blame.
        if shard.len() < self.most.div_ceil(SHARDS) {
            oldest.retain(|((used, _), _)| !used);
        }
        oldest.sort_unstable();
        let some = oldest.len().div_ceil(4);
        for (_, room) in oldest.into_iter().take(some) {
            let Some((last, known)) = shard.get(&*room).and_then(|line| line.retire()) else {
                continue;
            };
            // Before the room can get another line, which is made under this shard's lock.
            self.floor.fetch_max(last, Ordering::SeqCst);
            self.forgetful.store(true, Ordering::SeqCst);
            if !known {
                self.tainted.store(true, Ordering::SeqCst);
            }
            shard.remove(&*room);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The last id of a room.
    pub(super) fn last(&self, room: &str) -> u64 {
        let last = |line: &Arc<Line>| lock(&line.tail).last;
        self.find(room).as_ref().map_or_else(|| self.floor.load(Ordering::SeqCst), last)
    }

    /// What is known of a room now, with the latest of its recent entries that have smaller ids than `before`, the
    /// newest first.
    pub(super) fn older(&self, room: &str, before: u64, bounds: &mut Bounds) -> Snapshot {
        self.snapshot(room, |tail| {
            let end = tail.items.partition_point(|item| item.entry.id < before);
            Portion::collect(tail.items.range(..end).rev().map(|it| it.entry.clone()), bounds)
        })
    }

    /// The same with the first of its recent entries that have larger ids than `after`, the oldest first.
    pub(super) fn newer(&self, room: &str, after: u64, bounds: Bounds) -> Snapshot {
        self.snapshot(room, |tail| {
            let start = tail.items.partition_point(|item| item.entry.id <= after);
            Portion::of(tail.items.range(start..).map(|it| it.entry.clone()), bounds)
        })
    }

    /// `read` is under the lock that publishing takes: it must not go through everything that waits.
    fn snapshot(&self, room: &str, read: impl FnOnce(&Tail) -> Portion) -> Snapshot {
        let Some(line) = self.find(room) else {
            let last = self.floor.load(Ordering::SeqCst);
            return Snapshot { last, base: last, recent: Portion::default() };
        };
        let tail = lock(&line.tail);
        Snapshot { last: tail.last, base: tail.base(), recent: read(&tail) }
    }

    /// For the end, when nobody publishes any more.
    pub(super) fn closing(&self) -> Closing {
        let mut heads = Vec::new();
        for shard in &self.shards {
            for (room, line) in &*lock(shard) {
                let tail = lock(&line.tail);
                if tail.is_last_lost() || tail.items.iter().any(|item| !item.is_kept()) {
                    heads.push((room.clone(), tail.last));
                }
            }
        }
        let floor = self.floor.load(Ordering::SeqCst);
        let least = if self.forgetful.load(Ordering::SeqCst) { floor } else { 0 };
        Closing { floor, least, heads, complete: !self.tainted.load(Ordering::SeqCst) }
    }

    /// Takes out what the store has not answered for. If it does so later, that is not heard.
    pub(super) fn give_up(&self) -> Vec<GivenUp> {
        let mut given_up = Vec::new();
        for shard in &self.shards {
            for line in lock(shard).values() {
                line.give_up(&mut given_up);
            }
        }
        given_up
    }
}

impl Line {
    fn new(last: u64, touched: u64, held: &Arc<Held>) -> Self {
        let tail = Mutex::new(Tail { last, ..Tail::default() });
        let touched = AtomicU64::new(touched);
        Self { order: Mutex::default(), tail, touched, held: Arc::clone(held) }
    }

    pub(super) fn order(&self) -> MutexGuard<'_, ()> {
        lock(&self.order)
    }

    /// The last id that was given. `None`: there may be another line of this room by now.
    pub(super) fn last(&self) -> Option<u64> {
        let tail = lock(&self.tail);
        (!tail.retired).then_some(tail.last)
    }

    /// Gives the next id, which is this entry's. `waiting`: it is going to the store, too, and what becomes of it is
    /// said there.
    pub(super) fn push(&self, entry: Entry, waiting: Option<Arc<Slot>>) {
        self.touched.store(entry.at, Ordering::Relaxed);
        let mut tail = lock(&self.tail);
        tail.last = entry.id;
        match waiting {
            Some(_) => tail.items.push_back(Item { entry, waiting }),
            None => tail.failed = entry.id,
        }
    }

    /// The store has confirmed an entry. False if it is too late for that.
    #[must_use]
    pub(super) fn kept(self: &Arc<Self>, id: u64) -> bool {
        let holds = {
            let mut tail = lock(&self.tail);
            let Some(at) = tail.find_waiting(id) else { return false };
            let item = &mut tail.items[at];
            item.waiting = None;
            let (before, weight) = (tail.held, tail.items[at].entry.weight());
            tail.held += weight;
            self.let_go(&mut tail, before);
            tail.held > before
        };
        // What goes at once is not held: who holds nothing more than before is not to blame.
        if holds {
            while let Some(line) = self.held.excess() {
                line.let_go_of_all();
            }
        }
        true
    }

    /// The store does not have an entry, and will not. False if that has been said already.
    #[must_use]
    pub(super) fn failed(self: &Arc<Self>, id: u64) -> bool {
        let mut tail = lock(&self.tail);
        let Some(at) = tail.find_waiting(id) else { return false };
        tail.failed = tail.failed.max(id);
        _ = tail.items.remove(at);
        let before = tail.held;
        self.let_go(&mut tail, before);
        true
    }

    /// Drops what the store has, up to the first entry that it has not confirmed or that somebody wants, and says
    /// what is held now, if it is not what it was before.
    fn let_go(self: &Arc<Self>, tail: &mut Tail, before: usize) {
        let wanted = tail.holds.iter().map(|(_, above)| *above).min().unwrap_or(u64::MAX);
        while let Some(item) = tail.items.front() {
            if !item.is_kept() || item.entry.id > wanted {
                break;
            }
            tail.held -= item.entry.weight();
            tail.items.pop_front();
        }
        if tail.items.is_empty() {
            // There may be many rooms that are silent for long.
            tail.items = VecDeque::new();
        }
        if tail.held != before {
            self.held.set(self, tail.held);
        }
    }

    /// Those who wanted it will notice.
    fn let_go_of_all(self: &Arc<Self>) {
        let mut tail = lock(&self.tail);
        tail.holds.clear();
        tail.items.retain(|item| !item.is_kept());
        tail.items.shrink_to_fit();
        tail.held = 0;
        self.held.set(self, 0);
    }

    fn give_up(self: &Arc<Self>, given_up: &mut Vec<GivenUp>) {
        let mut tail = lock(&self.tail);
        let mut failed = tail.failed;
        tail.items.retain_mut(|Item { entry, waiting }| {
            let Some(slot) = waiting.take() else { return true };
            failed = failed.max(entry.id);
            let (room, id, weight) = (entry.room.clone(), entry.id, entry.weight());
            given_up.push(GivenUp { room, id, weight, slot });
            false
        });
        tail.failed = failed;
        let before = tail.held;
        self.let_go(&mut tail, before);
    }

    /// The last id, and whether the store knows of it, if nobody needs this line. It is of no use then.
    fn retire(&self) -> Option<(u64, bool)> {
        let _order = match self.order.try_lock() {
            Ok(order) => order,
            Err(TryLockError::Poisoned(order)) => order.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let mut tail = lock(&self.tail);
        if !tail.items.is_empty() || !tail.holds.is_empty() {
            return None;
        }
        tail.retired = true;
        Some((tail.last, !tail.is_last_lost()))
    }

    /// From now on what comes above the base is held. `None` as of [`last`](Self::last).
    pub(super) fn hold(self: &Arc<Self>) -> Option<Hold> {
        let mut tail = lock(&self.tail);
        if tail.retired {
            return None;
        }
        let (last, base, key) = (tail.last, tail.base(), tail.next_hold);
        tail.next_hold += 1;
        tail.holds.push((key, base));
        Some(Hold { line: Arc::clone(self), key, last, base })
    }
}

impl Item {
    fn is_kept(&self) -> bool {
        self.waiting.is_none()
    }
}

impl Tail {
    /// Whether the store does not know how far the ids have come.
    fn is_last_lost(&self) -> bool {
        self.failed > 0 && self.failed == self.last
    }

    /// Where an entry is, if the store has not answered for it.
    fn find_waiting(&self, id: u64) -> Option<usize> {
        let at = self.items.binary_search_by_key(&id, |item| item.entry.id).ok()?;
        (!self.items[at].is_kept()).then_some(at)
    }

    fn base(&self) -> u64 {
        self.items.front().map_or(self.last, |item| item.entry.id - 1)
    }
}

/// Keeps what a room is told in memory until somebody has caught up with it.
pub(super) struct Hold {
    line: Arc<Line>,
    key: u64,
    /// What was last when it began.
    pub(super) last: u64,
    /// The store answers for what comes up to here.
    pub(super) base: u64,
}

/// What follows in memory.
pub(super) enum Following {
    Entry(Entry),
    /// Nothing does; this is the last id.
    Nothing(u64),
    /// Something may be missing: it was too much to be held.
    Lost(u64),
}

impl Hold {
    pub(super) fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// The first entry with a larger id.
    pub(super) fn following(&self, id: u64) -> Following {
        let tail = lock(&self.line.tail);
        if !tail.holds.iter().any(|(key, _)| *key == self.key) {
            return Following::Lost(tail.last);
        }
        let at = tail.items.partition_point(|item| item.entry.id <= id);
        match tail.items.get(at) {
            Some(item) => Following::Entry(item.entry.clone()),
            None => Following::Nothing(tail.last),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut tail = lock(&self.line.tail);
        tail.holds.retain(|(key, _)| *key != self.key);
        let before = tail.held;
        self.line.let_go(&mut tail, before);
    }
}
