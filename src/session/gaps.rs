//! What a peer is told where publications for it were dropped.

use std::fmt;
use std::sync::Arc;

use super::Session;
use crate::message::Message;
use crate::outbox::Gap;

/// Says what a peer is told where publications for it were dropped; for
/// [`Config::gap`](crate::config::Config::gap).
#[derive(Clone)]
pub struct GapHook(Arc<Hook>);

type Hook = dyn Fn(&Session, &Gap) -> Option<Message> + Send + Sync;

impl GapHook {
    /// Asks `hook` on the session's worker when everything before the gap has been handed on and nothing
    /// behind it has; what it returns is sent in its place. It must not block. If it panics, that is a
    /// handler's panic: the session ends with 1011.
    pub fn new(hook: impl Fn(&Session, &Gap) -> Option<Message> + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    pub(super) fn ask(&self, session: &Session, gap: &Gap) -> Option<Message> {
        (self.0)(session, gap)
    }
}

impl fmt::Debug for GapHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GapHook").finish_non_exhaustive()
    }
}
