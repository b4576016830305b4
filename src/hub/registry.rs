//! The sessions that are open now: a slab of weak entries.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use slab::Slab;

/// Names one session of one server, and never another: the place of an ended session is given to
/// a new one, but under another number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

impl SessionId {
    fn new(generation: u32, index: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(index))
    }

    /// The session of this number, for tests.
    #[cfg(test)]
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
}

struct Entry<T> {
    id: SessionId,
    value: Weak<T>,
}

impl<T> Registry<T> {
    pub(super) fn new() -> Self {
        Self { inner: Mutex::new(Inner { entries: Slab::new(), generation: 0 }) }
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

    /// Removes an entry; does nothing if its place has been given to another.
    pub(super) fn remove(&self, id: SessionId) {
        let mut inner = self.lock();
        if inner.entries.get(id.index()).is_some_and(|entry| entry.id == id) {
            inner.entries.remove(id.index());
        }
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
        registry.remove(first);
        let (second, _also_kept) = insert(2);
        assert_eq!(first.index(), second.index(), "the place is used again");
        assert_ne!(first, second);
        assert_eq!(registry.get(first), None);
        registry.remove(first);
        assert_eq!(registry.get(second).as_deref(), Some(&2));
        assert_eq!(registry.len(), 1);
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
