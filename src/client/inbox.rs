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

    /// Whether more than may wait do: what the last connection had in hand when it ended.
    pub(super) fn is_overfull(&self) -> bool {
        let state = self.lock();
        !state.1 && state.0.len() > self.bound
    }

    /// Hears of room. Made before [`has_room`](Self::has_room) is asked.
    pub(super) fn listen(&self) -> EventListener {
        self.drained.listen()
    }

    /// Whoever pushes has seen that there is room, and is alone in pushing; what follows an end is dropped.
    pub(super) fn push(&self, item: T) {
        let mut state = self.lock();
        if !state.1 {
            state.0.push_back(item);
            drop(state);
            // One more each time: `notify` is content with a listener that has been told and not come yet, and a second
            // one would sleep beside the second item.
            self.filled.notify_additional(1);
        }
    }

    /// Pushes, room or not. But where `more` than may wait do, and with the last one `pointless`, neither is kept, and
    /// the answer is no.
    pub(super) fn push_unless(
        &self,
        more: usize,
        pointless: impl FnOnce(&T, &T) -> bool,
        item: T,
    ) -> bool {
        {
            let mut state = self.lock();
            let crowded = state.0.len() >= self.bound + more;
            if crowded && state.0.back().is_some_and(|last| pointless(last, &item)) {
                state.0.pop_back();
                return false;
            }
        }
        self.push(item);
        true
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
            // Both under one lock: the last item and the end may come between two.
            let (item, ended) = {
                let mut state = self.lock();
                (state.0.pop_front(), state.1)
            };
            if item.is_some() {
                self.drained.notify(1);
                return item;
            }
            if ended {
                return None;
            }
            filled.await;
        }
    }
}
