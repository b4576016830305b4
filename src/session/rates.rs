//! What a server lets its sessions read and write.

use std::fmt;
use std::sync::Arc;

use super::Session;
use crate::config::Inbound;
use crate::transport::RatePolicy;

/// The rates of one session: how fast it reads from its peer, how fast it writes to it, and how much it
/// takes from it.
///
/// They live on the session's worker and need not be `Send`.
pub struct Rates {
    pub(super) reading: Box<dyn RatePolicy>,
    pub(super) writing: Box<dyn RatePolicy>,
    /// `None`: as the server's configuration has it.
    pub(super) inbound: Option<Inbound>,
}

impl Rates {
    /// A policy for each direction; [`Unlimited`](crate::Unlimited) for the one that needs none.
    pub fn new(reading: impl RatePolicy + 'static, writing: impl RatePolicy + 'static) -> Self {
        Self { reading: Box::new(reading), writing: Box::new(writing), inbound: None }
    }

    /// The same with an inbound rate that takes the place of
    /// [`Config::inbound`](crate::config::Config::inbound) for this session; one without any rate, such as
    /// [`Inbound::default`], lifts it.
    ///
    /// ```
    /// use coracle::config::{Inbound, Rate};
    /// use coracle::{Rates, Server, Unlimited};
    ///
    /// let few = Inbound::close().with_messages(Rate::per_second(10).with_burst(50));
    /// let builder = Server::builder().inbound(few).rates(|session| {
    ///     let rates = Rates::new(Unlimited, Unlimited);
    ///     if session.path() == "/feed" { rates.with_inbound(Inbound::default()) } else { rates }
    /// });
    /// # drop(builder);
    /// ```
    ///
    /// # Panics
    ///
    /// If one of its numbers is zero.
    #[must_use]
    pub fn with_inbound(self, inbound: Inbound) -> Self {
        if let Some(invalid) = inbound.invalid() {
            panic!("{invalid}");
        }
        Self { inbound: Some(inbound), ..self }
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
