//! The sessions that are open now: a slab of weak entries.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use slab::Slab;

use crate::metrics::{Census, Totals};

/// Places that are looked at under one lock, while all sessions are summed up: some 15 µs, which somebody who
/// comes or goes may have to wait.
#[cfg(feature = "metrics")]
const WALK: usize = 256;

/// Names one session of one server, and never another: the place of an ended session is given to
/// a new one, but under another number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

impl SessionId {
    fn new(generation: u32, index: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(index))
    }

    /// The session of this number, for tests.
    #[cfg(all(test, feature = "fallback"))]
    pub(crate) fn of(number: u64) -> Self {
        Self(number)
    }

    pub(super) fn index(self) -> usize {
        (self.0 & 0xFFFF_FFFF) as usize
    }

    /// The number itself, for logs and tables.
    #[must_use]
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({})", self.0)
    }
}

/// A slab whose entries do not keep what they name alive.
pub(super) struct Registry<T> {
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    entries: Slab<Entry<T>>,
    /// The generation of the newest entry; the first one is 1.
    generation: u32,
    /// What those have sent and received who have left.
    census: Census,
}

struct Entry<T> {
    id: SessionId,
    value: Weak<T>,
}

impl<T> Registry<T> {
    pub(super) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                entries: Slab::new(),
                generation: 0,
                census: Census::default(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what `make` makes of its own id.
    pub(super) fn insert<R>(&self, make: impl FnOnce(SessionId) -> (R, Weak<T>)) -> R {
        let mut inner = self.lock();
        inner.generation = inner.generation.wrapping_add(1);
        let generation = inner.generation;
        let entry = inner.entries.vacant_entry();
        let id = SessionId::new(generation, entry.key() as u32);
        let (made, value) = make(id);
        entry.insert(Entry { id, value });
        made
    }

    /// Removes an entry, of which this is left; does nothing if its place has been given to another.
    pub(super) fn remove(&self, id: SessionId, totals: Totals) {
        let mut inner = self.lock();
        if inner.entries.get(id.index()).is_some_and(|entry| entry.id == id) {
            inner.entries.remove(id.index());
            inner.census.left(id.index(), totals);
        }
    }

    /// Sums up all entries that are there, and all that were; `look` is shown those that are there, without
    /// the lock. Never less than an earlier sum.
    #[cfg(feature = "metrics")]
    pub(super) fn sum(
        &self,
        count: impl Fn(&T) -> Totals,
        mut look: impl FnMut(std::sync::Arc<T>),
    ) -> Totals {
        let walk = self.lock().census.begin();
        let mut under_way = UnderWay { registry: self, walk: Some(walk) };
        let mut seen = Vec::with_capacity(WALK);
        loop {
            let mut inner = self.lock();
            let Inner { entries, census, .. } = &mut *inner;
            let from = census.place(walk);
            let next = entries.capacity().min(from.saturating_add(WALK));
            if from >= next {
                break;
            }
            let mut totals = Totals::default();
            for place in from..next {
                // Whoever is to be removed waits for this lock and is still alive: so this is not the last
                // one who holds it, and nothing is dropped here.
                if let Some(value) = entries.get(place).and_then(|entry| entry.value.upgrade()) {
                    totals += count(&value);
                    seen.push(value);
                }
            }
            census.seen(walk, next, totals);
            drop(inner);
            seen.drain(..).for_each(&mut look);
        }
        under_way.end()
    }

    pub(super) fn get(&self, id: SessionId) -> Option<std::sync::Arc<T>> {
        let inner = self.lock();
        let entry = inner.entries.get(id.index())?;
        if entry.id == id { entry.value.upgrade() } else { None }
    }

    pub(super) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// All of them, as they are now.
    pub(super) fn all(&self) -> Vec<std::sync::Arc<T>> {
        self.lock().entries.iter().filter_map(|(_, entry)| entry.value.upgrade()).collect()
    }
}

/// A sum of all, while it is made; also by who panics over it, it is ended.
#[cfg(feature = "metrics")]
struct UnderWay<'a, T> {
    registry: &'a Registry<T>,
    walk: Option<usize>,
}

#[cfg(feature = "metrics")]
impl<T> UnderWay<'_, T> {
    fn end(&mut self) -> Totals {
        // Only once: the number may be somebody else's then.
        let walk = self.walk.take();
        walk.map(|walk| self.registry.lock().census.end(walk)).unwrap_or_default()
    }
}

#[cfg(feature = "metrics")]
impl<T> Drop for UnderWay<'_, T> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_number_of_an_ended_session_is_never_given_again() {
        let registry = Registry::new();
        let insert = |value| {
            registry.insert(|id| {
                let value = Arc::new(value);
                ((id, Arc::clone(&value)), Arc::downgrade(&value))
            })
        };
        let (first, _kept) = insert(1);
        registry.remove(first, Totals::default());
        let (second, _also_kept) = insert(2);
        assert_eq!(first.index(), second.index(), "the place is used again");
        assert_ne!(first, second);
        assert_eq!(registry.get(first), None);
        registry.remove(first, Totals::default());
        assert_eq!(registry.get(second).as_deref(), Some(&2));
        assert_eq!(registry.len(), 1);
    }

    #[cfg(feature = "metrics")]
    #[test]
    fn a_sum_has_everybody_once_although_they_come_and_go_while_it_is_made() {
        let totals = |value: &u64| Totals { messages_in: *value, ..Totals::default() };
        let registry = Registry::new();
        let insert = |value| {
            registry.insert(|id| {
                let value = Arc::new(value);
                ((id, Arc::clone(&value)), Arc::downgrade(&value))
            })
        };
        let mut entries: Vec<_> = (0..3 * WALK as u64).map(insert).collect();
        let all: u64 = (0..3 * WALK as u64).sum();
        let (gone, _kept) = entries.pop().unwrap();
        registry.remove(gone, totals(&(3 * WALK as u64 - 1)));
        let (mut shown, mut others) = (0, Vec::new());
        let sum = registry.sum(totals, |value| {
            shown += 1;
            // One of those that have been looked at, and one of those that have not.
            for leaving in [10, WALK + 10] {
                if *value == 10 {
                    registry.remove(entries[leaving].0, totals(&(leaving as u64)));
                    others.push(insert(0));
                }
            }
        });
        assert_eq!((sum, shown), (totals(&all), 3 * WALK - 1));
        drop(entries);
        assert_eq!(registry.sum(totals, drop).messages_in, (10 + WALK + 10 + 3 * WALK - 1) as u64);
        // A panic leaves nothing of it behind.
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            registry.sum(totals, |_| panic!("as it was told"));
        }));
        assert!(panicked.is_err());
        assert!(registry.lock().census.is_idle());
    }

    #[test]
    fn an_entry_keeps_nothing_alive() {
        let registry = Registry::new();
        let (id, value) = registry.insert(|id| {
            let value = Arc::new(());
            ((id, Arc::clone(&value)), Arc::downgrade(&value))
        });
        drop(value);
        assert_eq!(registry.get(id), None);
        assert!(registry.all().is_empty());
    }
}
