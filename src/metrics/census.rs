//! What all sessions have sent and received, although each counts for itself.
//!
//! A session's numbers are its own while it is open, and are added to those of all that have ended when it
//! leaves the registry, under the registry's lock. Summing up takes that lock for some of the sessions at a
//! time, so that nobody who comes or goes waits long; who leaves in between is told apart by where the sum
//! has come to. So each session is counted once, and no sum is smaller than an earlier one.

use std::ops::AddAssign;

use slab::Slab;

/// What sessions have sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) messages_in: u64,
    pub(crate) messages_out: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.messages_in = self.messages_in.wrapping_add(other.messages_in);
        self.messages_out = self.messages_out.wrapping_add(other.messages_out);
        self.bytes_in = self.bytes_in.wrapping_add(other.bytes_in);
        self.bytes_out = self.bytes_out.wrapping_add(other.bytes_out);
    }
}

/// The registry's book of those who have left, kept under its lock.
#[derive(Default)]
pub(crate) struct Census {
    ended: Totals,
    /// The sums that are being made: mostly none, and one while somebody scrapes.
    walks: Slab<Walk>,
}

/// A sum on its way through the places of the registry.
pub(crate) struct Walk {
    /// Places before this one have been looked at.
    at: usize,
    sum: Totals,
}

impl Census {
    /// Whoever had this place leaves it, with these numbers.
    pub(crate) fn left(&mut self, place: usize, totals: Totals) {
        self.ended += totals;
        for (_, walk) in &mut self.walks {
            if place >= walk.at {
                walk.sum += totals;
            }
        }
    }

    /// Whether no sum is being made.
    #[cfg(all(test, feature = "metrics"))]
    pub(crate) fn is_idle(&self) -> bool {
        self.walks.is_empty()
    }

    /// Begins a sum, with all who have left before.
    #[cfg(feature = "metrics")]
    pub(crate) fn begin(&mut self) -> usize {
        self.walks.insert(Walk { at: 0, sum: self.ended })
    }

    /// Where it goes on.
    #[cfg(feature = "metrics")]
    pub(crate) fn place(&self, walk: usize) -> usize {
        self.walks.get(walk).map_or(usize::MAX, |walk| walk.at)
    }

    /// These are there, in the places before `next` that have not been looked at.
    #[cfg(feature = "metrics")]
    pub(crate) fn seen(&mut self, walk: usize, next: usize, totals: Totals) {
        if let Some(walk) = self.walks.get_mut(walk) {
            walk.at = next;
            walk.sum += totals;
        }
    }

    /// Ends it.
    #[cfg(feature = "metrics")]
    pub(crate) fn end(&mut self, walk: usize) -> Totals {
        self.walks.try_remove(walk).map(|walk| walk.sum).unwrap_or_default()
    }
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use super::*;

    fn messages(messages_in: u64) -> Totals {
        Totals { messages_in, ..Totals::default() }
    }

    #[test]
    fn who_leaves_while_a_sum_is_made_is_in_it_once() {
        let mut census = Census::default();
        census.left(7, messages(1));
        let walk = census.begin();
        // Places 0 to 3: two sessions.
        census.seen(walk, 4, messages(10 + 20));
        // The first of them leaves, and comes again as another one, which leaves as well.
        census.left(0, messages(11));
        census.left(0, messages(500));
        // One that has not been looked at leaves, and its place is given to another one, which has.
        census.left(5, messages(300));
        assert_eq!(census.place(walk), 4);
        census.seen(walk, 8, messages(2000));
        assert_eq!(census.end(walk), messages(1 + 10 + 20 + 300 + 2000));
        // The next sum has them all: 20 and 2000 are still there.
        let next = census.begin();
        census.seen(next, 8, messages(20 + 2000));
        assert_eq!(census.end(next), messages(1 + 11 + 500 + 300 + 20 + 2000));
    }

    #[test]
    fn two_sums_at_a_time_do_not_disturb_each_other() {
        let mut census = Census::default();
        let (one, other) = (census.begin(), census.begin());
        census.seen(one, 8, messages(5));
        census.left(3, messages(5));
        assert_eq!((census.end(one), census.end(other)), (messages(5), messages(5)));
    }
}
