//! How long callbacks take.

use super::Link;
use crate::executor::Time;
use crate::metrics::Timed;

/// Of the messages of a session the first is timed, and then one of so many. Two readings of the clock were
/// 73 ns, some 40 % of what a small message takes that does not come alone; so they are about 1 ns of each.
#[cfg(feature = "metrics")]
const TIMED: u64 = 64;

impl Link {
    /// The handler gets a message, which has been counted. It is done with it when it asks for the next one:
    /// so nothing has to be kept beside its callback, and the others pay for one comparison.
    #[inline]
    #[cfg_attr(not(feature = "metrics"), expect(clippy::unused_self, reason = "the feature does"))]
    pub(super) fn delivers(&mut self) {
        #[cfg(feature = "metrics")]
        if self.session.member().counters.messages_in.get() % TIMED == 1 {
            self.begin_timing();
        }
    }

    #[cfg(feature = "metrics")]
    #[cold]
    fn begin_timing(&mut self) {
        self.timed = true;
        self.timers.callback_begins(self.worker.clock().precise());
    }

    #[cold]
    pub(super) fn end_timing(&mut self) {
        self.timed = false;
        if let Some(began) = self.timers.callback_ends() {
            self.count_callback(Timed::Message, began);
        }
    }

    /// A callback is over that began then.
    pub(in crate::session) fn count_callback(&self, callback: Timed, began: Time) {
        let took = self.worker.clock().precise().since(began);
        self.session.member().hub.ledger.called(self.worker.index(), callback, took);
    }
}
