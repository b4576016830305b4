//! Buffers that belong to the worker, not to the session.
//!
//! A session borrows one while bytes are in flight and gives it back before it waits, so ten
//! thousand idle sessions hold none, and a busy worker touches the same few cache lines again and
//! again.

use std::cell::RefCell;

/// Sizes of buffers. A read that fills its buffer is followed by one with the next size.
const SIZES: [usize; 3] = [16 * 1024, 64 * 1024, 256 * 1024];

/// Buffers of each size kept for the next borrower. A turn of the worker uses one for reading and
/// one for writing at a time; the rest is for sessions whose handlers hold unread input.
const KEPT: usize = 4;

/// A step of the ladder of sizes; each session remembers where it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size(u8);

impl Size {
    const LARGEST: Self = Self(SIZES.len() as u8 - 1);

    pub(crate) fn bytes(self) -> usize {
        SIZES[self.0 as usize]
    }

    /// The size for the next read, after one that brought `received` bytes.
    ///
    /// One step up when the buffer was filled; one step down when even the smaller one would have
    /// been filled by less than half, so that a steady stream of messages that just do not fit
    /// into the smaller one keeps being read with one call each.
    pub(crate) fn after(self, received: usize) -> Self {
        if received >= self.bytes() {
            Self((self.0 + 1).min(Self::LARGEST.0))
        } else if self.0 > 0 && received < SIZES[self.0 as usize - 1] / 2 {
            Self(self.0 - 1)
        } else {
            self
        }
    }
}

#[derive(Default)]
pub(crate) struct Pool {
    free: [RefCell<Vec<Vec<u8>>>; SIZES.len()],
}

impl Pool {
    /// An empty buffer with at least this capacity.
    pub(crate) fn take(&self, size: Size) -> Vec<u8> {
        let free = self.free[size.0 as usize].borrow_mut().pop();
        free.unwrap_or_else(|| Vec::with_capacity(size.bytes()))
    }

    /// Gives a buffer back. One whose capacity is none of the pool's sizes is freed.
    pub(crate) fn give(&self, mut buffer: Vec<u8>) {
        let Some(size) = SIZES.iter().position(|size| *size == buffer.capacity()) else {
            return;
        };
        let mut free = self.free[size].borrow_mut();
        if free.len() < KEPT {
            buffer.clear();
            free.push(buffer);
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
        assert_eq!(middle.after(64 * 1024), Size::LARGEST);
        assert_eq!(Size::LARGEST.after(256 * 1024), Size::LARGEST);
        assert_eq!(middle.after(22), small);
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
        assert_eq!(pool.free[0].borrow().len(), KEPT - 1);
    }
}
