//! A relay as its session sees it: a transport.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::{PIPE, Relay};

/// The session's end of a relay.
pub(crate) struct Relayed(Arc<Relay>);

impl Relayed {
    pub(in crate::fallback) fn new(relay: &Arc<Relay>) -> Self {
        Self(Arc::clone(relay))
    }

    pub(crate) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if !state.up.is_empty() || state.failed.is_some() {
            return Poll::Ready(());
        }
        state.session_reads = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn poll_read(
        &self,
        cx: &Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        if self.poll_readable(cx).is_pending() {
            return Poll::Pending;
        }
        let mut state = self.0.lock();
        // What the client was told has been taken comes before its end.
        if let Some(why) = state.failed.filter(|_| state.up.is_empty()) {
            return Poll::Ready(Err(why.into()));
        }
        let room = buffer.capacity() - buffer.len();
        let count = room.min(state.up.len());
        buffer.extend(state.up.drain(..count));
        state.recount();
        drop(state);
        self.0.room.notify(usize::MAX);
        Poll::Ready(Ok(count))
    }

    pub(crate) fn poll_write(
        &self,
        cx: &Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        if let Some(why) = state.failed {
            return Poll::Ready(Err(why.into()));
        }
        let mut room = PIPE.saturating_sub(state.down.len());
        if room == 0 {
            state.session_writes = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut count = 0;
        for slice in slices {
            let part = &slice[..slice.len().min(room)];
            state.down.extend(part);
            room -= part.len();
            count += part.len();
        }
        state.recount();
        drop(state);
        self.0.notify();
        Poll::Ready(Ok(count))
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.up = VecDeque::new();
        state.recount();
        // Before the lock is free: whatever is posted from now on would be kept for nobody.
        self.0.ended.store(true, Ordering::Release);
        drop(state);
        self.0.ending.notify(usize::MAX);
        self.0.room.notify(usize::MAX);
        self.0.notify();
    }
}
