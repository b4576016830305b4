//! What the peer is sent.

use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, ready};

use super::ending::Then;
use super::{Link, Stage};
use crate::outbox::{Batch, Buffered, MAX_SLICES};
use crate::transport::Transport;
use crate::ws::{Opcode, close_payload, deflate};

/// Batches sent before the session lets the others have their turn: 2 MiB, twice what fits into the
/// default outbox.
const BATCHES_PER_TURN: u8 = 8;

impl Link {
    /// Sends what is queued, as far as the peer takes it.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>) {
        let mut batches = 0;
        loop {
            batches += 1;
            // Somebody fills the outbox as fast as the peer empties it.
            if batches > BATCHES_PER_TURN || self.deflate_left == 0 {
                self.reads_left = 0;
                return;
            }
            let mut last = false;
            if self.batch.is_none() {
                last = self.refill(cx);
            }
            let Some(batch) = &mut self.batch else {
                return;
            };
            let Some(transport) = &mut self.transport else {
                return;
            };
            let mut written = 0;
            let polled = write(cx, batch, transport, &mut written);
            if written > 0 {
                let counters = &self.session.member().counters;
                counters.bytes_out.add(written);
                counters.touch(self.worker.now());
                if self.pace.is_some() {
                    self.has_written(written);
                    // If its policy has panicked, there is a close frame to be sent.
                    last &= self.stage != Stage::Closing;
                }
            }
            match polled {
                Poll::Ready(Ok(())) => {
                    self.sent(cx);
                    if last || !matches!(self.stage, Stage::Open | Stage::Closing) {
                        return;
                    }
                }
                Poll::Ready(Err(error)) => return self.failed(&error),
                Poll::Pending => {
                    self.unpay();
                    self.batch = self.batch.take().map(Batch::shrink);
                    // A client that comes with requests is expected by a timer of its own.
                    if !self.session.member().protocol().is_http() {
                        self.timers.stalled(self.worker.now(), written > 0);
                    }
                    if self.ending.as_ref().is_some_and(|e| e.then == Then::FinishAnyway) {
                        self.finish();
                    }
                    return;
                }
            }
        }
    }

    /// Takes the next batch: the control lane first, then messages, then the close frame. Returns
    /// whether that was all there is.
    #[inline]
    fn refill(&mut self, cx: &mut Context<'_>) -> bool {
        self.prepaid = false;
        let paced = self.pace.as_ref().is_some_and(|pace| pace.paces_writing());
        let plain = self.pongs.is_none() && !self.ping_due && !paced;
        if self.stage == Stage::Open && plain {
            let outbox = &self.session.member().outbox;
            let terms = &self.session.member().hub.terms;
            if let Some(batch) = outbox.take_and_park(self.written, terms, cx.waker()) {
                self.written = Buffered::default();
                self.prepaid = true;
                self.batch = batch;
                self.deflate();
                return true;
            }
        }
        self.refill_slowly()
    }

    fn refill_slowly(&mut self) -> bool {
        if !matches!(self.stage, Stage::Open | Stage::Closing) {
            return true;
        }
        let written = std::mem::take(&mut self.written);
        let held = self.must_not_write();
        if !held {
            self.heed_gaps();
        }
        let member = self.session.member();
        let (outbox, terms) = (&member.outbox, &member.hub.terms);
        let mut taken =
            if held { outbox.take_control(written, terms) } else { outbox.take(written, terms) };
        if held && taken.last {
            self.nothing_to_write();
        }
        let app_ping = taken.ping();
        if self.pongs.is_some() || self.ping_due || app_ping.is_some() {
            let mut control = Batch::take();
            if let Some(pongs) = self.pongs.take() {
                control.push_frames(&pongs);
            }
            if std::mem::take(&mut self.ping_due) {
                let payload = self.timers.ping(self.worker.clock().precise());
                control.push_control(Opcode::Ping, &payload);
            }
            if let Some(payload) = app_ping {
                control.push_control(Opcode::Ping, &payload);
            }
            taken.batch = Some(control.before(taken.batch.take()));
        }
        if let Some(request) = taken.request() {
            self.requested(request);
            if self.stage == Stage::Done {
                return true;
            }
        }
        if taken.last && self.stage == Stage::Closing && !self.is_answering() {
            let farewell = self.ending.as_mut().and_then(|ending| ending.farewell.take());
            let batch = taken.batch.get_or_insert_with(Batch::take);
            // Without close frames the end of the stream is what says goodbye.
            if !self.is_framed() {
                let payload = farewell.as_ref().map(close_payload).unwrap_or_default();
                batch.push_control(Opcode::Close, &payload);
            }
            self.stage = Stage::ClosingBatch;
        }
        self.batch = taken.batch;
        self.deflate();
        taken.last
    }

    /// Where publications were dropped that come next, the application says what the peer is told.
    fn heed_gaps(&mut self) {
        while let Some(gap) = self.session.member().outbox.take_gap() {
            let member = self.session.member();
            let Some(hook) = &member.hub.config.gap else {
                continue;
            };
            match catch_unwind(AssertUnwindSafe(|| hook.ask(&self.session, &gap))) {
                Ok(None) => {}
                // It comes next: behind it there may be another one.
                Ok(Some(message)) => return member.outbox.fill_gap(message, &member.hub.terms),
                Err(panic) => return self.panicked("on_gap", &*panic),
            }
        }
    }

    /// Compresses what is to be compressed of the batch.
    #[inline]
    fn deflate(&mut self) {
        if self.batch.as_ref().is_some_and(|batch| batch.raw_bytes() > 0) {
            self.deflate_batch();
        }
    }

    #[cold]
    fn deflate_batch(&mut self) {
        let member = self.session.member();
        let (Some(batch), Some(agreement)) = (self.batch.take(), member.deflate) else {
            return;
        };
        let work = u32::try_from(batch.raw_bytes()).unwrap_or(u32::MAX);
        self.deflate_left = self.deflate_left.saturating_sub(work);
        let level = member.hub.config.deflate_level();
        let contexts = &mut self.contexts;
        let batch =
            batch.deflated(|payload, out| deflate(payload, out, agreement, level, contexts));
        self.batch = Some(batch);
    }

    /// The kernel has the whole batch.
    #[inline]
    fn sent(&mut self, cx: &mut Context<'_>) {
        if let Some(batch) = self.batch.take() {
            let carried = batch.carried();
            if !self.prepaid {
                self.written.messages += carried.messages;
                self.written.bytes += carried.bytes;
            }
            self.session.member().counters.messages_out.add(carried.messages);
            batch.give();
        }
        self.timers.flushed(&self.worker);
        if self.stage == Stage::ClosingBatch {
            self.close_sent(cx);
        }
    }

    /// The batch could not be sent whole: it counts as waiting again.
    #[cold]
    pub(super) fn unpay(&mut self) {
        if std::mem::take(&mut self.prepaid) {
            if let Some(batch) = &self.batch {
                let member = self.session.member();
                member.outbox.unsent(batch.carried(), &member.hub.terms);
                member.hub.heed_budget();
            }
        }
    }
}

/// Hands as much of the batch to the transport as it takes; ready when it took everything. Adds to
/// `written` what was taken, also when it then has to wait.
#[inline]
fn write(
    cx: &mut Context<'_>,
    batch: &mut Batch,
    transport: &mut Transport,
    written: &mut usize,
) -> Poll<io::Result<()>> {
    while !batch.is_empty() {
        let polled = match batch.single() {
            Some(bytes) => transport.poll_write(cx, &[IoSlice::new(bytes)]),
            None => write_vectored(cx, batch, transport),
        };
        match ready!(polled) {
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(taken) => {
                batch.advance(taken);
                *written += taken;
            }
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(()))
}

fn write_vectored(
    cx: &mut Context<'_>,
    batch: &Batch,
    transport: &mut Transport,
) -> Poll<io::Result<usize>> {
    let mut slices = [IoSlice::new(&[]); MAX_SLICES];
    let count = batch.slices(&mut slices);
    transport.poll_write(cx, &slices[..count])
}
