//! What goes to the server.

use async_tungstenite::tungstenite::protocol::frame::Frame as Fragment;
use async_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use bytes::Bytes;

use super::*;

/// What is handed to the socket at once, at most: as much as a pipe of the kernel holds.
pub(super) const BATCH_BYTES: usize = 64 * 1024;

/// And how many messages: what is being written when the connection breaks is in flight.
const BATCH: usize = 64;

/// Batches before others on the same executor get their turn.
const TURN: usize = 64;

/// A larger message is sent in fragments of this size (RFC 6455 section 5.4): a ping need not wait for the whole, and
/// the machine moves what it has not written yet with every part that it writes.
const FRAGMENT_BYTES: usize = 1024 * 1024;

/// What the machine has and the socket has not taken.
pub(super) struct Unflushed {
    /// Since when the socket has taken nothing of it.
    pub(super) since: Instant,
    /// What it had taken then.
    pub(super) written: u64,
    /// The socket has been full: what it takes since then, the server's has taken from it.
    pub(super) full: bool,
    /// How many answers to pings are among it.
    pub(super) answers: usize,
}

/// A message that is sent in fragments, behind the first one.
pub(super) struct Rest(Bytes);

impl Link<'_> {
    pub(super) fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), Why> {
        for _ in 0..TURN {
            if !self.flush(cx, now)? || self.goodbye.is_some() {
                return Ok(());
            }
            self.write_batch(cx, now)?;
            if self.unflushed.is_none() {
                return Ok(());
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Whether nothing is left that the socket has not taken.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, Why> {
        if self.unflushed.is_none() {
            return Ok(true);
        }
        let flushed = self.with(cx, |machine, stream| machine.flush(stream));
        let written = self.stream.carried().written;
        match flushed {
            Ok(()) => {
                let unflushed = self.unflushed.take();
                let (answers, full) = unflushed.map_or((0, false), |it| (it.answers, it.full));
                self.heart.flushed(now, full);
                if self.rest.is_none() {
                    self.shared.queue.handed();
                    self.batch = written;
                }
                if answers > 0 {
                    // It may have kept the next ping from being read.
                    cx.waker().wake_by_ref();
                }
                // All that waited may have been waiting for this to say goodbye.
                if self.goodbye.is_none() {
                    self.part(cx, now)?;
                }
                Ok(self.unflushed.is_none())
            }
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                if let Some(unflushed) = &mut self.unflushed {
                    unflushed.full = true;
                    if unflushed.written != written {
                        (unflushed.since, unflushed.written) = (now, written);
                    }
                }
                Ok(false)
            }
            // Reset behind its goodbye, with something of ours not taken.
            Err(Error::ConnectionClosed) => Err(self.over()),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn write_batch(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), Why> {
        if let Some(Rest(bytes)) = self.rest.take() {
            return self.write_fragment(cx, now, bytes, Data::Continue);
        }
        let mut bytes = 0;
        for taken in 0..BATCH {
            // Behind others a large one waits: it would keep it from being known for long what became of them.
            let fits = |message: &Message| taken == 0 || message.len() <= FRAGMENT_BYTES;
            let Some(message) = self.shared.queue.take_if(fits) else {
                return Ok(());
            };
            bytes += message.len();
            if message.len() > FRAGMENT_BYTES {
                let kind = if message.as_text().is_some() { Data::Text } else { Data::Binary };
                return self.write_fragment(cx, now, message.into_bytes(), kind);
            }
            let frame = match message {
                Message::Text(text) => Frame::Text(text.into_utf8_bytes()),
                Message::Binary(bytes) => Frame::Binary(bytes),
            };
            self.hand_over(cx, now, frame)?;
            if bytes >= BATCH_BYTES {
                return Ok(());
            }
        }
        Ok(())
    }

    fn write_fragment(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        mut bytes: Bytes,
        kind: Data,
    ) -> Result<(), Why> {
        let first = bytes.split_to(bytes.len().min(FRAGMENT_BYTES));
        let last = bytes.is_empty();
        self.rest = (!last).then_some(Rest(bytes));
        self.hand_over(cx, now, Frame::Frame(Fragment::message(first, OpCode::Data(kind), last)))
    }

    pub(super) fn hand_over(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        frame: Frame,
    ) -> Result<(), Why> {
        let result = self.with(cx, |machine, stream| machine.write(stream, frame));
        self.sent(now, result)
    }
}
