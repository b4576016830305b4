//! What has come and nobody has taken yet: bounded, so that a client that does not keep up is noticed by TCP.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use event_listener::{Event, EventListener};

pub(super) struct Inbox<T> {
    bound: usize,
    /// Whether the bound is about such an item. The others have one of their own: [`push_unless`](Self::push_unless).
    counts: fn(&T) -> bool,
    state: Mutex<State<T>>,
    filled: Event,
    drained: Event,
}

struct State<T> {
    items: VecDeque<T>,
    /// How many of them the bound is about.
    counted: usize,
    ended: bool,
}

impl<T> Inbox<T> {
    pub(super) fn new(bound: usize, counts: fn(&T) -> bool) -> Self {
        let state = State { items: VecDeque::new(), counted: 0, ended: false };
        Self {
            bound,
            counts,
            state: Mutex::new(state),
            filled: Event::new(),
            drained: Event::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_room(&self) -> bool {
        let state = self.lock();
        state.ended || state.counted < self.bound
    }

    /// Whether more than may wait do: what the last connection had in hand when it ended.
    pub(super) fn is_overfull(&self) -> bool {
        let state = self.lock();
        !state.ended && state.counted > self.bound
    }

    /// Hears of room. Made before [`has_room`](Self::has_room) is asked.
    pub(super) fn listen(&self) -> EventListener {
        self.drained.listen()
    }

    /// Whoever pushes has seen that there is room, and is alone in pushing; what follows an end is dropped.
    pub(super) fn push(&self, item: T) {
        let mut state = self.lock();
        if !state.ended {
            state.counted += usize::from((self.counts)(&item));
            state.items.push_back(item);
            drop(state);
            // One more each time: `notify` is content with a listener that has been told and not come yet, and a second
            // one would sleep beside the second item.
            self.filled.notify_additional(1);
        }
    }

    /// Pushes something that does not count, room or not. But where so `many` wait that do not, and with the last item it is
    /// `pointless`, neither is kept, and the answer is no.
    pub(super) fn push_unless(
        &self,
        many: usize,
        pointless: impl FnOnce(&T, &T) -> bool,
        item: T,
    ) -> bool {
        {
            let mut state = self.lock();
            let crowded = state.items.len() - state.counted >= many;
            if crowded && state.items.back().is_some_and(|last| pointless(last, &item)) {
                state.items.pop_back();
                return false;
            }
        }
        self.push(item);
        true
    }

    /// Nothing comes any more; what is there can still be taken.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.filled.notify(usize::MAX);
        self.drained.notify(usize::MAX);
    }

    fn pop(&self, state: &mut State<T>) -> Option<T> {
        let item = state.items.pop_front()?;
        state.counted -= usize::from((self.counts)(&item));
        Some(item)
    }

    pub(super) fn try_take(&self) -> Option<T> {
        let item = self.pop(&mut self.lock());
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
                (self.pop(&mut state), state.ended)
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
