//! What leaves in one system call: frames, encoded once, in order.

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::Bytes;

use super::CORK;
use crate::executor::{Size, Worker};
use crate::message::Message;
use crate::outbox::{Buffered, Sink};
use crate::transport::Transport;
use crate::ws::{Header, Opcode};

/// Payloads from here on are sent from where they are, by a vectored write; smaller ones are
/// copied behind their headers. Measured with echoes of one message in flight: below 4 KiB the
/// copy is cheaper than the longer system call.
const LARGE: usize = 4 * 1024;

/// Large payloads in one batch: 2 × 16 + 1 slices, which fit on the stack.
const MAX_LARGE: usize = 16;

/// Bytes of large payloads in one batch. More in one call was no faster, and this much is all that
/// a slow peer can hold on to beyond its outbox.
const MAX_LARGE_BYTES: usize = 256 * 1024;

/// Frames on their way out.
///
/// `bytes` holds headers and small payloads in order; each large payload belongs between two of
/// its bytes.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    large: Vec<Large>,
    large_bytes: usize,
    sent: usize,
    /// What the outbox has given and not yet got back.
    carried: Buffered,
}

struct Large {
    /// How much of `bytes` comes before it.
    at: usize,
    payload: Bytes,
}

impl Sink for Batch {
    fn has_room(&self) -> bool {
        self.bytes.len() < CORK
            && self.large.len() < MAX_LARGE
            && self.large_bytes < MAX_LARGE_BYTES
    }

    #[inline]
    fn push(&mut self, message: Message) {
        let payload = message.as_bytes();
        let opcode = match message {
            Message::Text(_) => Opcode::Text,
            Message::Binary(_) => Opcode::Binary,
        };
        self.carried.messages += 1;
        self.carried.bytes += payload.len();
        self.bytes.extend_from_slice(Header::new(opcode, payload.len()).as_bytes());
        if payload.len() < LARGE {
            self.bytes.extend_from_slice(payload);
        } else {
            self.large_bytes += payload.len();
            self.large.push(Large { at: self.bytes.len(), payload: message.into_bytes() });
        }
    }
}

impl Batch {
    /// Everything has been handed to the kernel.
    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len() + self.large_bytes
    }

    /// Before the first frame: borrows the bytes' buffer from the worker.
    pub(super) fn begin(&mut self, worker: &Worker) {
        if self.bytes.capacity() == 0 {
            self.bytes = worker.pool().take(Size::WRITE);
        }
    }

    pub(super) fn push_control(&mut self, opcode: Opcode, payload: &[u8]) {
        self.bytes.extend_from_slice(Header::new(opcode, payload.len()).as_bytes());
        self.bytes.extend_from_slice(payload);
    }

    /// Hands as much to the transport as it takes; ready when it took everything. Adds to
    /// `written` what was taken, also when it then has to wait.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        transport: &mut dyn Transport,
        written: &mut usize,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let taken = if self.large.is_empty() {
                let slice = [IoSlice::new(&self.bytes[self.sent..])];
                transport.poll_write(cx, &slice)
            } else {
                self.poll_write_vectored(cx, transport)
            };
            match taken {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(taken)) => {
                    self.sent += taken;
                    *written += taken;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        &self,
        cx: &mut Context<'_>,
        transport: &mut dyn Transport,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); 2 * MAX_LARGE + 1];
        let mut count = 0;
        let mut skip = self.sent;
        let mut add = |part: &mut &'_ [u8]| {
            let skipped = skip.min(part.len());
            skip -= skipped;
            *part = &part[skipped..];
            !part.is_empty()
        };
        let mut from = 0;
        for large in &self.large {
            for mut part in [&self.bytes[from..large.at], &large.payload[..]] {
                if add(&mut part) {
                    slices[count] = IoSlice::new(part);
                    count += 1;
                }
            }
            from = large.at;
        }
        let mut part = &self.bytes[from..];
        if add(&mut part) {
            slices[count] = IoSlice::new(part);
            count += 1;
        }
        transport.poll_write(cx, &slices[..count])
    }

    /// After everything was written: gives the buffer back, and says what the outbox can take off
    /// its books.
    pub(super) fn finish(&mut self, worker: &Worker) -> Buffered {
        debug_assert!(self.is_empty());
        worker.pool().give(std::mem::take(&mut self.bytes));
        self.large.clear();
        self.large_bytes = 0;
        self.sent = 0;
        std::mem::take(&mut self.carried)
    }

    /// Before waiting for a slow peer: keeps a copy of what is left, in as much memory as that
    /// takes, and gives the worker its buffer back.
    pub(super) fn shrink(&mut self, worker: &Worker) {
        if self.bytes.capacity() < 2 * self.bytes.len() || self.bytes.is_empty() {
            return;
        }
        let kept = self.bytes.as_slice().to_vec();
        worker.pool().give(std::mem::replace(&mut self.bytes, kept));
    }

    /// An idle session keeps nothing.
    pub(super) fn forget(&mut self) {
        if self.large.capacity() > 0 && self.large.is_empty() {
            self.large = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Clock;

    /// Takes at most so many bytes a call, and waits after every second one.
    struct Trickle {
        step: usize,
        calls: usize,
        taken: Vec<u8>,
    }

    impl Transport for Trickle {
        fn poll_readable(&mut self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }
        fn poll_read(&mut self, _: &mut Context<'_>, _: &mut Vec<u8>) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
        fn poll_write(
            &mut self,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.calls += 1;
            if self.calls % 2 == 0 {
                return Poll::Pending;
            }
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let taken = &all[..all.len().min(self.step)];
            self.taken.extend_from_slice(taken);
            Poll::Ready(Ok(taken.len()))
        }
        fn close_write(&mut self) {}
    }

    #[test]
    fn a_batch_cut_anywhere_arrives_whole_and_in_order() {
        let worker = Worker::new(0, Clock::virtual_at_zero()).unwrap();
        let messages: Vec<Message> = (0..12)
            .map(|i: usize| vec![i as u8; [3, LARGE, 0, LARGE + 7, 200, LARGE - 1][i % 6]].into())
            .collect();
        let mut expected = vec![0x8A, 2, b'h', b'i'];
        for message in &messages {
            expected.extend_from_slice(Header::new(Opcode::Binary, message.len()).as_bytes());
            expected.extend_from_slice(message.as_bytes());
        }
        for step in [1, 7, 100, LARGE, LARGE + 1, 1 << 20] {
            let mut batch = Batch::default();
            batch.begin(&worker);
            batch.push_control(Opcode::Pong, b"hi");
            messages.iter().cloned().for_each(|message| batch.push(message));
            let mut trickle = Trickle { step, calls: 0, taken: Vec::new() };
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let mut written = 0;
            while batch.poll_write(&mut cx, &mut trickle, &mut written).is_pending() {
                batch.shrink(&worker);
            }
            assert!(trickle.taken == expected, "in steps of {step}");
            assert_eq!(written, expected.len());
            let carried = batch.finish(&worker);
            assert_eq!(carried.messages, messages.len());
            assert_eq!(carried.bytes, messages.iter().map(Message::len).sum());
        }
    }
}
