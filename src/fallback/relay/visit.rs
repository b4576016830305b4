//! What a request has of a session: the place of the one that takes its messages, or one in the line of those that
//! post.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_listener::EventListener;

use super::{Closing, Found, Relay, Visitor};

/// A POST that waits, or is about to.
pub(in crate::fallback) struct Queued<'a>(&'a Relay);

impl<'a> Queued<'a> {
    pub(super) fn new(relay: &'a Relay) -> Self {
        Self(relay)
    }

    /// Hears of room, from now on.
    pub(in crate::fallback) fn listen(&self) -> EventListener {
        self.0.room.listen()
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.waiting_posts.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The connection that carries a session's messages at a time.
pub(in crate::fallback) struct Carried(Arc<Relay>);

impl Carried {
    pub(super) fn new(relay: &Arc<Relay>) -> Self {
        Self(Arc::clone(relay))
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.carried.store(false, Ordering::Release);
    }
}
/// A request that takes what the session sends, for as long as no other one takes its place.
pub(in crate::fallback) struct Visit {
    relay: Arc<Relay>,
    visitor: Visitor,
}

impl Visit {
    pub(super) fn new(relay: &Arc<Relay>, visitor: Visitor) -> Self {
        Self { relay: Arc::clone(relay), visitor }
    }

    /// The messages behind `after`, at most so many and so many bytes, but one at least.
    pub(in crate::fallback) fn look(&self, after: u64, messages: usize, bytes: usize) -> Found {
        let relay = &*self.relay;
        let mut state = relay.lock();
        if state.visitor != Some(self.visitor) {
            return Found::Displaced;
        }
        state.seen = relay.clock.coarse();
        relay.pull(&mut state);
        let skipped = (after + 1).saturating_sub(state.first);
        let skip = usize::try_from(skipped).unwrap_or(usize::MAX);
        let mut left = bytes;
        let waiting = state.kept.iter().skip(skip).take(messages).enumerate();
        let fitting = waiting.take_while(|(at, message)| {
            let fits = *at == 0 || message.len() <= left;
            left = left.saturating_sub(message.len());
            fits
        });
        let found: Vec<_> = fitting.map(|(_, message)| message.clone()).collect();
        if !found.is_empty() {
            return Found::Messages(state.first + skipped, found);
        }
        match std::mem::take(&mut state.close) {
            Closing::Open => {}
            Closing::Told(close) => {
                state.close = Closing::Told(close.clone());
                return Found::Closed(close);
            }
            Closing::Said(close) => {
                state.close = Closing::Told(close.clone());
                // The session hears from its client what it heard from the session.
                relay.close(&mut state, close.as_ref());
                return Found::Closed(close);
            }
        }
        if relay.is_full(&state) { Found::Full } else { Found::Nothing }
    }

    pub(in crate::fallback) fn relay(&self) -> &Arc<Relay> {
        &self.relay
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut state = self.relay.lock();
        if state.visitor == Some(self.visitor) {
            state.visitor = None;
            state.seen = self.relay.clock.coarse();
            drop(state);
            self.relay.notify();
        }
    }
}
