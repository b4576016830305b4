//! What a server lets its sessions read and write.

use std::fmt;
use std::sync::Arc;

use super::Session;
use crate::transport::RatePolicy;

/// The two policies of one session: how fast it reads from its peer, and how fast it writes to it.
///
/// They live on the session's worker and need not be `Send`.
pub struct Rates {
    pub(super) reading: Box<dyn RatePolicy>,
    pub(super) writing: Box<dyn RatePolicy>,
}

impl Rates {
    /// A policy for each direction; [`Unlimited`](crate::Unlimited) for the one that needs none.
    pub fn new(reading: impl RatePolicy + 'static, writing: impl RatePolicy + 'static) -> Self {
        Self { reading: Box::new(reading), writing: Box::new(writing) }
    }
}

impl fmt::Debug for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rates").finish_non_exhaustive()
    }
}

/// Says which rates a session has; for [`Config::rates`](crate::config::Config::rates).
#[derive(Clone)]
pub struct SessionRates(Arc<dyn Fn(&Session) -> Rates + Send + Sync>);

impl SessionRates {
    /// Asks `rates` once for each session, when it begins, on its worker.
    ///
    /// It sees what [`Handler::open`](crate::Handler::open) sees, and must not block. If it panics, that is
    /// a handler's panic: the session ends with 1011.
    pub fn new(rates: impl Fn(&Session) -> Rates + Send + Sync + 'static) -> Self {
        Self(Arc::new(rates))
    }

    pub(super) fn of(&self, session: &Session) -> Rates {
        (self.0)(session)
    }
}

impl fmt::Debug for SessionRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionRates").finish_non_exhaustive()
    }
}
