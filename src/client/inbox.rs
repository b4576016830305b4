//! What has come and nobody has taken yet: bounded, so that a client that does not keep up is noticed by TCP.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use event_listener::{Event, EventListener};

pub(super) struct Inbox<T> {
    bound: usize,
    state: Mutex<(VecDeque<T>, bool)>,
    filled: Event,
    drained: Event,
}

impl<T> Inbox<T> {
    pub(super) fn new(bound: usize) -> Self {
        Self { bound, state: Mutex::default(), filled: Event::new(), drained: Event::new() }
    }

    fn lock(&self) -> MutexGuard<'_, (VecDeque<T>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_room(&self) -> bool {
        let state = self.lock();
        state.1 || state.0.len() < self.bound
    }

    /// Hears of room. Made before [`has_room`](Self::has_room) is asked.
    pub(super) fn listen(&self) -> EventListener {
        self.drained.listen()
    }

    /// Whoever pushes has seen that there is room; what follows an end is dropped.
    pub(super) fn push(&self, item: T) {
        let mut state = self.lock();
        if !state.1 {
            state.0.push_back(item);
            drop(state);
            self.filled.notify(1);
        }
    }

    /// Waits for room, and pushes.
    pub(super) async fn send(&self, item: T) {
        loop {
            let drained = self.listen();
            if self.has_room() {
                return self.push(item);
            }
            drained.await;
        }
    }

    /// Nothing comes any more; what is there can still be taken.
    pub(super) fn end(&self) {
        self.lock().1 = true;
        self.filled.notify(usize::MAX);
        self.drained.notify(usize::MAX);
    }

    pub(super) fn try_take(&self) -> Option<T> {
        let item = self.lock().0.pop_front();
        if item.is_some() {
            self.drained.notify(1);
        }
        item
    }

    /// The next item; `None` when nothing comes any more. Dropping the future loses nothing.
    pub(super) async fn take(&self) -> Option<T> {
        loop {
            let filled = self.filled.listen();
            if let Some(item) = self.try_take() {
                return Some(item);
            }
            if self.lock().1 {
                return None;
            }
            filled.await;
        }
    }
}
