//! How a publication gets into an outbox, and what happens when there is no room.

use std::sync::atomic::Ordering;
use std::task::Waker;

use super::backlog::{Published, Waiting};
use super::{Buffered, Encoded, Gap, Losses, Outbox, Request, SlowPeer, Terms};
use crate::executor::TaskId;
use crate::message::Message;

/// There is no room for the whole of it, or something waits already.
pub(crate) struct Behind;

/// What has become of a publication for one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is queued. So many others were dropped for it, or replaced by it.
    Queued { dropped: u32, conflated: u32 },
    /// It was dropped.
    Dropped,
    /// The session has just been told to end, because its peer is too slow.
    TooSlow,
    /// The session is ending or has ended.
    Closed,
}

impl Outbox {
    /// Queues frames that many sessions share, if the peer is not behind and there is room for all of
    /// them. For the worker on which the session lives: it has to wake the driver that is returned.
    ///
    /// # Errors
    ///
    /// It is to be done one by one.
    pub(crate) fn try_push_run(&self, run: &Encoded, terms: &Terms) -> Result<TaskId, Behind> {
        let mut state = self.lock();
        if state.closed {
            return Ok(TaskId::NONE);
        }
        let simple = !state.stalled && !state.paced && state.backlog.is_none();
        if !simple || !state.has_room(run.messages, run.payload, &terms.published) {
            return Err(Behind);
        }
        state.count(terms, |buffered| {
            buffered.messages += run.messages;
            buffered.bytes += run.payload;
        });
        state.fill(|batch| batch.push_encoded(run.clone()));
        // As in `unpark`.
        if !self.parked.load(Ordering::Relaxed) {
            return Ok(TaskId::NONE);
        }
        self.parked.store(false, Ordering::Relaxed);
        Ok(TaskId::from_number(self.task.load(Ordering::Relaxed)))
    }

    /// Queues a publication. Its policy says what happens when there is no room, unless the session has
    /// one of its own.
    pub(crate) fn publish(&self, mut published: Published, terms: &Terms) -> Fate {
        let mut state = self.lock();
        if state.closed {
            return Fate::Closed;
        }
        if let Some(policy) = state.slow.as_ref().and_then(|slow| slow.policy) {
            published.policy = policy;
        }
        let policy = published.policy;
        let (mut dropped, mut conflated) = (0, 0);
        if policy == SlowPeer::Conflate {
            let backlog = state.backlog.as_mut();
            if let Some(len) = backlog.and_then(|backlog| backlog.conflate(&published)) {
                state.count(terms, |buffered| {
                    buffered.messages -= 1;
                    buffered.bytes -= len;
                });
                conflated = 1;
            }
        }
        let mut full = false;
        while !state.has_room(1, published.len, &terms.published) {
            full = true;
            let backlog = state.backlog.get_or_insert_default();
            match policy {
                SlowPeer::Close => {
                    let abandoned = state.abandon(terms);
                    state.rare.get_or_insert_default().request = Some(Request::TooSlow);
                    let waker = self.unpark(&state);
                    self.wake_senders(state);
                    drop(abandoned);
                    waker.into_iter().for_each(Waker::wake);
                    return Fate::TooSlow;
                }
                SlowPeer::DropNewest => {
                    backlog.drop_newest(published.room);
                    state.congested = true;
                    state.lost(1, 0);
                    return Fate::Dropped;
                }
                SlowPeer::DropOldest | SlowPeer::Conflate => match backlog.drop_oldest() {
                    // The latest one is queued in any case.
                    None => break,
                    Some(len) => {
                        dropped += 1;
                        state.count(terms, |buffered| {
                            buffered.messages -= 1;
                            buffered.bytes -= len;
                        });
                    }
                },
            }
        }
        if full {
            state.congested = true;
        }
        state.lost(dropped, conflated);
        state.count(terms, |buffered| {
            buffered.messages += 1;
            buffered.bytes += published.len;
        });
        if state.stalled || full {
            state.backlog.get_or_insert_default();
        }
        match &mut state.backlog {
            None => state.fill(|batch| published.put(batch)),
            Some(backlog) => backlog.push(published.len, Waiting::Published(Box::new(published))),
        }
        self.pushed(state);
        Fate::Queued { dropped, conflated }
    }

    /// Ends the session because all outboxes together have too much, and gives up what is here. False if
    /// it is ending already.
    pub(crate) fn end_over_budget(&self, terms: &Terms) -> bool {
        let mut state = self.lock();
        if state.released {
            return false;
        }
        let abandoned = state.abandon(terms);
        state.rare.get_or_insert_default().request.get_or_insert(Request::OverBudget);
        let waker = self.unpark(&state);
        self.wake_senders(state);
        drop(abandoned);
        waker.into_iter().for_each(Waker::wake);
        true
    }

    /// For the driver, before it takes a batch: the gap that comes next.
    pub(crate) fn take_gap(&self) -> Option<Gap> {
        let mut state = self.lock();
        if state.filling.is_some() || state.full.is_some() {
            return None;
        }
        state.backlog.as_mut()?.take_gap()
    }

    /// For the driver: what the application says about the gap that was just taken. It comes next.
    pub(crate) fn fill_gap(&self, message: Message, terms: &Terms) {
        let mut state = self.lock();
        if state.released {
            return;
        }
        state.count(terms, |buffered: &mut Buffered| {
            buffered.messages += 1;
            buffered.bytes += message.len();
        });
        state.backlog.get_or_insert_default().put_first(message);
    }

    /// From now on this is done where there is no room, whatever the room's policy is.
    pub(crate) fn set_policy(&self, policy: SlowPeer) {
        self.lock().slow.get_or_insert_default().policy = Some(policy);
    }

    pub(crate) fn losses(&self) -> Losses {
        self.lock().slow.as_ref().map(|slow| slow.losses).unwrap_or_default()
    }
}

impl super::State {
    fn lost(&mut self, dropped: u32, conflated: u32) {
        if dropped > 0 || conflated > 0 {
            let losses = &mut self.slow.get_or_insert_default().losses;
            losses.dropped += u64::from(dropped);
            losses.conflated += u64::from(conflated);
        }
    }
}
