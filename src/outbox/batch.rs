//! What leaves in one system call: frames, encoded once, in order.

use std::cell::{Cell, RefCell};
use std::io::IoSlice;

use bytes::Bytes;

use super::{Buffered, Encoded, Fragment};
use crate::message::{Kind, Message};
use crate::protocol::Protocol;
use crate::ws::{Header, Opcode};

/// A lone payload from here on is sent from where it is, by a vectored write. Measured with echoes
/// of one message in flight: below 4 KiB the copy is cheaper than the longer system call.
const LONE: usize = 4 * 1024;

/// Behind other frames it takes this much. Measured with sixteen messages of 16 KiB in flight on one
/// connection: sixteen pieces of memory that come and go make the allocator give pages back to the
/// kernel and ask for them again, one that is filled and sent again and again does not.
const LARGE: usize = 64 * 1024;

/// Large payloads in one batch: 2 × 16 + 1 slices, which fit on the stack.
const MAX_LARGE: usize = 16;

/// Slices of the largest batch.
pub(crate) const MAX_SLICES: usize = 2 * MAX_LARGE + 1;

/// Bytes in one batch, before the message that makes it full; this much may come before a pong.
/// Measured with sixteen messages of 16 KiB in flight on 50 connections: half of it costs 4 to 14 %
/// more.
const CORK: usize = 256 * 1024;

/// Bytes in one batch that are to be compressed, before the message that makes it full: compressing takes
/// far longer than sending.
pub(crate) const RAW_BATCH: usize = 64 * 1024;

/// The same where a rate lets out a batch at a time: what can go out too early is this much and one
/// message. As small as pays for its system call.
const PACED: usize = 4 * 1024;

/// What a message that is to be compressed counts at least, because it makes the compressor begin anew.
const RAW_COST: usize = 512;

/// Batches a thread keeps for the next turn: a session that is being written to has one that is
/// sent and one that is filled.
const KEPT: usize = 2;

/// Small batches a thread keeps: as many as there are members to which something is handed before they have
/// their turn to send it ([`crate::hub`]). Without them one broadcast to a thousand idle members spent a
/// quarter of its instructions in the allocator.
pub(crate) const KEPT_SMALL: usize = 128;

/// What is small: room for one frame that is copied.
const SMALL: usize = 2 * LONE;

/// A kept batch must not have grown beyond this: what a full one grows to, with its control frames.
const KEPT_BYTES: usize = 512 * 1024;

/// Nor beyond this: what a full one has to compress, of the least it counts.
const KEPT_LARGE: usize = (MAX_LARGE + RAW_BATCH / RAW_COST).next_power_of_two();

thread_local! {
    /// The batch that was given back last: most turns need no other.
    static LAST: Cell<Option<Box<Batch>>> = const { Cell::new(None) };
    #[expect(clippy::vec_box, reason = "batches travel in their boxes")]
    static POOL: RefCell<Vec<Box<Batch>>> = const { RefCell::new(Vec::new()) };
    #[expect(clippy::vec_box, reason = "batches travel in their boxes")]
    static SMALL_ONES: RefCell<Vec<Box<Batch>>> = const { RefCell::new(Vec::new()) };
}

/// Frames on their way out.
///
/// `bytes` holds headers and small payloads in order; each large payload belongs between two of
/// its bytes.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    large: Vec<Large>,
    large_bytes: usize,
    /// Of the large ones, how many are to be compressed.
    raw: usize,
    /// What compressing them costs, in bytes.
    raw_bytes: usize,
    sent: usize,
    /// What it carries of the outbox's messages.
    carried: Buffered,
    /// Which headers its messages get.
    protocol: Protocol,
}

struct Large {
    /// How much of `bytes` comes before it.
    at: usize,
    payload: Bytes,
    /// It has no header yet, and is to be compressed.
    deflate: Option<Opcode>,
}

fn opcode(message: &Message) -> Opcode {
    match message {
        Message::Text(_) => Opcode::Text,
        Message::Binary(_) => Opcode::Binary,
    }
}

impl Batch {
    /// An empty batch, with the memory of one that this thread has used before.
    pub(crate) fn take() -> Box<Self> {
        let pooled = || POOL.with_borrow_mut(Vec::pop);
        let small = || SMALL_ONES.with_borrow_mut(Vec::pop);
        LAST.take().or_else(pooled).or_else(small).unwrap_or_default()
    }

    /// Gives a batch back to this thread.
    pub(crate) fn give(mut self: Box<Self>) {
        if self.bytes.capacity() > KEPT_BYTES || self.large.capacity() > KEPT_LARGE {
            return;
        }
        self.clear();
        if let Some(before) = LAST.replace(Some(self)) {
            let small = before.bytes.capacity() <= SMALL;
            let (pool, kept) = if small { (&SMALL_ONES, KEPT_SMALL) } else { (&POOL, KEPT) };
            pool.with_borrow_mut(|pool| {
                if pool.len() < kept {
                    pool.push(before);
                }
            });
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.large.clear();
        self.large_bytes = 0;
        self.raw = 0;
        self.raw_bytes = 0;
        self.sent = 0;
        self.carried = Buffered::default();
        self.protocol = Protocol::default();
    }

    /// The same for messages that get this protocol's headers.
    #[inline]
    pub(super) fn speaking(mut self: Box<Self>, protocol: Protocol) -> Box<Self> {
        self.protocol = protocol;
        self
    }

    /// Whether further messages belong into another batch.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() + self.large_bytes >= CORK
            || self.large.len() - self.raw >= MAX_LARGE
            || self.raw_bytes >= RAW_BATCH
    }

    /// Bytes of memory that it keeps for what it has encoded.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// The same for a session with a rate.
    pub(crate) fn is_full_for_a_rate(&self) -> bool {
        self.bytes.len() + self.large_bytes >= PACED
    }

    #[inline]
    pub(crate) fn push(&mut self, message: Message) {
        let payload = message.as_bytes();
        self.carried.messages += 1;
        self.carried.bytes += payload.len();
        let large = if self.is_empty() { LONE } else { LARGE };
        Header::of(self.protocol, opcode(&message), payload.len()).append_to(&mut self.bytes);
        if payload.len() < large {
            self.bytes.extend_from_slice(payload);
        } else {
            self.large_bytes += payload.len();
            let payload = message.into_bytes();
            self.large.push(Large { at: self.bytes.len(), payload, deflate: None });
        }
    }

    /// A message that is to be compressed: only the driver has what it takes.
    pub(crate) fn push_raw(&mut self, message: Message) {
        let opcode = opcode(&message);
        let payload = message.into_bytes();
        self.carried.messages += 1;
        self.carried.bytes += payload.len();
        self.raw += 1;
        self.raw_bytes += payload.len().max(RAW_COST);
        self.large_bytes += payload.len();
        self.large.push(Large { at: self.bytes.len(), payload, deflate: Some(opcode) });
    }

    /// How much of it must be compressed before it can be sent; 0 if nothing must.
    pub(crate) fn raw_bytes(&self) -> usize {
        self.raw_bytes
    }

    /// The same batch, ready to be sent. `deflate` appends a compressed payload to a buffer, or says
    /// that this makes it no smaller.
    pub(crate) fn deflated(
        mut self: Box<Self>,
        mut deflate: impl FnMut(&[u8], &mut Vec<u8>) -> bool,
    ) -> Box<Self> {
        let mut ready = Self::take();
        ready.carried = self.carried;
        let mut compressed = Vec::new();
        let mut from = 0;
        for Large { at, payload, deflate: raw } in self.large.drain(..) {
            ready.bytes.extend_from_slice(&self.bytes[from..at]);
            from = at;
            let Some(opcode) = raw else {
                ready.large_bytes += payload.len();
                ready.large.push(Large { at: ready.bytes.len(), payload, deflate: None });
                continue;
            };
            compressed.clear();
            if deflate(&payload, &mut compressed) {
                Header::new(opcode, compressed.len()).compressed().append_to(&mut ready.bytes);
                ready.bytes.extend_from_slice(&compressed);
            } else {
                // Not by a vectored write: there may be more of them than slices.
                Header::new(opcode, payload.len()).append_to(&mut ready.bytes);
                ready.bytes.extend_from_slice(&payload);
            }
        }
        ready.bytes.extend_from_slice(&self.bytes[from..]);
        self.give();
        ready
    }

    /// Frames that many sessions share; sent from where they are, if they are large.
    pub(crate) fn push_encoded(&mut self, encoded: Encoded) {
        let Encoded { frame, messages, payload } = encoded;
        self.carried.messages += messages;
        self.carried.bytes += payload;
        if frame.len() < LONE {
            self.bytes.extend_from_slice(&frame);
        } else {
            self.large_bytes += frame.len();
            self.large.push(Large { at: self.bytes.len(), payload: frame, deflate: None });
        }
    }

    /// A fragment is copied: it is never large.
    pub(crate) fn push_fragment(&mut self, fragment: &Fragment<'_>) {
        let opcode = match (fragment.first, fragment.kind) {
            (false, _) => Opcode::Continuation,
            (true, Kind::Text) => Opcode::Text,
            (true, Kind::Binary) => Opcode::Binary,
        };
        self.carried.messages += usize::from(fragment.last);
        self.carried.bytes += fragment.payload.len();
        let header = Header::new(opcode, fragment.payload.len());
        let header = if fragment.last { header } else { header.unfinished() };
        header.append_to(&mut self.bytes);
        self.bytes.extend_from_slice(fragment.payload);
    }

    /// Frames that have been encoded.
    pub(crate) fn push_frames(&mut self, frames: &[u8]) {
        self.bytes.extend_from_slice(frames);
    }

    pub(crate) fn push_control(&mut self, opcode: Opcode, payload: &[u8]) {
        Header::new(opcode, payload.len()).append_to(&mut self.bytes);
        self.bytes.extend_from_slice(payload);
    }

    /// Puts these frames before a batch of which nothing has been sent. It copies a batch, and only
    /// control frames overtake messages, which is rare.
    pub(crate) fn before(self: Box<Self>, batch: Option<Box<Self>>) -> Box<Self> {
        let Some(mut batch) = batch else {
            return self;
        };
        batch.bytes.splice(0..0, self.bytes.iter().copied());
        batch.large.iter_mut().for_each(|large| large.at += self.bytes.len());
        self.give();
        batch
    }

    /// Everything has been sent.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len() + self.large_bytes
    }

    /// What is to be sent, if it is in one piece.
    #[inline]
    pub(crate) fn single(&self) -> Option<&[u8]> {
        match &self.large[..] {
            [] => self.bytes.get(self.sent..),
            // What many sessions share is often all there is.
            [one] if self.bytes.is_empty() => one.payload.get(self.sent..),
            _ => None,
        }
    }

    /// What is to be sent, in the first `n` of `slices`.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let mut count = 0;
        let mut skip = self.sent;
        let mut add = |part: &'a [u8]| {
            let skipped = skip.min(part.len());
            skip -= skipped;
            if skipped < part.len() {
                slices[count] = IoSlice::new(&part[skipped..]);
                count += 1;
            }
        };
        let mut from = 0;
        for large in &self.large {
            add(&self.bytes[from..large.at]);
            add(&large.payload);
            from = large.at;
        }
        add(&self.bytes[from..]);
        count
    }

    /// So much of it has been sent.
    #[inline]
    pub(crate) fn advance(&mut self, sent: usize) {
        self.sent += sent;
    }

    /// What the outbox can take off its books when everything has been sent.
    pub(crate) fn carried(&self) -> Buffered {
        self.carried
    }

    /// While a slow peer is waited for: keeps what is left in as much memory as that takes, and
    /// gives the thread its batch back.
    pub(crate) fn shrink(self: Box<Self>) -> Box<Self> {
        if self.bytes.capacity() < 2 * self.bytes.len() {
            return self;
        }
        let mut this = self;
        let small = Self {
            bytes: this.bytes.as_slice().to_vec(),
            large: std::mem::take(&mut this.large),
            ..*this
        };
        this.give();
        Box::new(small)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_cut_anywhere_arrives_whole_and_in_order() {
        let messages: Vec<Message> = (0..12)
            .map(|i: usize| vec![i as u8; [LONE, 3, LARGE, 0, LARGE + 7, LARGE - 1][i % 6]].into())
            .collect();
        let mut expected = vec![0x8A, 2, b'h', b'i'];
        for message in &messages {
            expected.extend_from_slice(Header::new(Opcode::Binary, message.len()).as_bytes());
            expected.extend_from_slice(message.as_bytes());
        }
        for step in [777, LONE, LARGE, LARGE + 1, 1 << 20] {
            let mut control = Batch::take();
            control.push_control(Opcode::Pong, b"hi");
            let mut batch = Batch::take();
            messages.iter().cloned().for_each(|message| batch.push(message));
            let mut batch = control.before(Some(batch));
            let mut received = Vec::new();
            while !batch.is_empty() {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let count = batch.slices(&mut slices);
                let all: Vec<u8> = slices[..count].iter().flat_map(|s| s.to_vec()).collect();
                let taken = all.len().min(step);
                received.extend_from_slice(&all[..taken]);
                batch.advance(taken);
                if received.len() % 3 == 0 {
                    batch = batch.shrink();
                }
            }
            assert!(received == expected, "in steps of {step}");
            assert_eq!(batch.carried().messages, messages.len());
            assert_eq!(batch.carried().bytes, messages.iter().map(Message::len).sum::<usize>());
            batch.give();
        }
    }

    #[test]
    fn a_full_batch_still_fits_into_the_memory_that_is_kept() {
        let mut batch = Batch::default();
        while !batch.is_full() {
            batch.push(Message::from(vec![0; LONE - 1]));
        }
        batch.push_control(Opcode::Ping, &[0; 125]);
        batch.push_control(Opcode::Close, &[0; 125]);
        assert!(batch.bytes.len() <= KEPT_BYTES, "{}", batch.bytes.len());
    }
}
