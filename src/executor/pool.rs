//! Buffers that belong to the worker, not to the session.
//!
//! A session borrows one while bytes are in flight and gives it back before it waits, so ten
//! thousand idle sessions hold none, and a busy worker touches the same few cache lines again and
//! again.

use std::cell::{Cell, RefCell};

/// Sizes of buffers. A read that fills its buffer is followed by one with the next size.
const SIZES: [usize; 3] = [16 * 1024, 64 * 1024, 256 * 1024];

/// Buffers of each size kept for the next borrower. A turn of the worker uses one for reading and
/// one for writing at a time; the rest is for sessions whose handlers hold unread input.
const KEPT: usize = 4;

/// Reads that a smaller buffer would have held with room to spare, in a row, before it is tried
/// again: so that a message which just does not fit, and is read in two pieces once, is read in one
/// from then on.
const PATIENCE: u8 = 16;

/// A step of the ladder of sizes; each session remembers where it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    step: u8,
    /// Reads in a row that were small for this size.
    small: u8,
}

impl Size {
    const LARGEST: u8 = SIZES.len() as u8 - 1;

    /// The smallest that holds so much, or else the largest.
    #[cfg(feature = "tls")]
    pub(crate) fn holding(bytes: usize) -> Self {
        let step = SIZES.iter().position(|size| *size >= bytes).unwrap_or(SIZES.len() - 1);
        Self { step: step as u8, small: 0 }
    }

    pub(crate) fn bytes(self) -> usize {
        SIZES[usize::from(self.step)]
    }

    /// The size for the next read, after one that brought `received` bytes: one step up when the
    /// buffer was filled, one step down when half of the smaller one would have done for long.
    #[inline]
    pub(crate) fn after(self, received: usize) -> Self {
        let Self { step, small } = self;
        if received >= self.bytes() {
            Self { step: (step + 1).min(Self::LARGEST), small: 0 }
        } else if step == 0 || received >= SIZES[usize::from(step) - 1] / 2 {
            Self { step, small: 0 }
        } else if small + 1 < PATIENCE {
            Self { step, small: small + 1 }
        } else {
            Self { step: step - 1, small: 0 }
        }
    }
}

#[derive(Default)]
pub(crate) struct Pool {
    /// The buffer of each size that was given back last: most turns need no other.
    last: [Cell<Vec<u8>>; SIZES.len()],
    free: [RefCell<Vec<Vec<u8>>>; SIZES.len()],
}

impl Pool {
    /// An empty buffer with at least this capacity.
    #[inline]
    pub(crate) fn take(&self, size: Size) -> Vec<u8> {
        let last = self.last[usize::from(size.step)].take();
        if last.capacity() > 0 { last } else { self.take_slowly(size) }
    }

    #[cold]
    fn take_slowly(&self, size: Size) -> Vec<u8> {
        let free = self.free[usize::from(size.step)].borrow_mut().pop();
        free.unwrap_or_else(|| Vec::with_capacity(size.bytes()))
    }

    /// Gives a buffer back. One whose capacity is none of the pool's sizes is freed.
    #[inline]
    pub(crate) fn give(&self, buffer: Vec<u8>) {
        if buffer.capacity() > 0 {
            self.keep(buffer);
        }
    }

    fn keep(&self, mut buffer: Vec<u8>) {
        let Some(size) = SIZES.iter().position(|size| *size == buffer.capacity()) else {
            return;
        };
        buffer.clear();
        let before = self.last[size].replace(buffer);
        if before.capacity() > 0 {
            let mut free = self.free[size].borrow_mut();
            if free.len() < KEPT {
                free.push(before);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_follows_what_arrives() {
        let small = Size::default();
        assert_eq!(small.after(100), small);
        let middle = small.after(16 * 1024);
        assert_eq!(middle.bytes(), 64 * 1024);
        assert_eq!(middle.after(16 * 1024 + 14), middle);
        let large = middle.after(64 * 1024);
        assert_eq!(large.bytes(), 256 * 1024);
        assert_eq!(large.after(256 * 1024), large);
        // The rest of a message that was cut in two does not undo the step.
        assert_eq!(middle.after(8).bytes(), 64 * 1024);
        let calm = (0..PATIENCE).fold(middle, |size, _| size.after(22));
        assert_eq!(calm, small);
    }

    #[test]
    fn a_returned_buffer_is_lent_again_empty_and_no_more_than_a_few_are_kept() {
        let pool = Pool::default();
        let mut lent: Vec<_> = (0..20).map(|_| pool.take(Size::default())).collect();
        lent[0].extend_from_slice(b"secret");
        lent.drain(..).for_each(|buffer| pool.give(buffer));
        assert_eq!(pool.free[0].borrow().len(), KEPT);
        assert!(pool.take(Size::default()).is_empty());
        pool.give(Vec::with_capacity(17));
        assert_eq!(pool.free[0].borrow().len(), KEPT, "the last one was lent");
        assert!(pool.take(Size::default()).is_empty());
        assert_eq!(pool.free[0].borrow().len(), KEPT - 1);
    }
}
