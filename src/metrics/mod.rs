//! What the server counts of itself, and how it says so.
//!
//! Nothing here is touched for a message. What a session counts it counts for itself; when somebody asks,
//! the open sessions are summed up, and what those that have ended left behind is added.
//!
//! | part | what it is |
//! |---|---|
//! | `ledger` | what happens once for a connection, a request or a session, and how long things take: to count something new takes a field there and a line in `exposition` |
//! | `histogram` | durations in buckets |
//! | `census` | what all sessions have sent and received: those that are open, and those that were |
//! | `readiness` | may a load balancer send somebody? |
//! | `exposition`, `text`, `handle` | the numbers as OpenMetrics and as Prometheus' older text, with the feature `metrics` |
//!
//! The first four are leaves, which the other rooms count in; `exposition` and `handle` look into all of them.

mod census;
#[cfg(feature = "metrics")]
mod exposition;
#[cfg(feature = "metrics")]
mod handle;
mod histogram;
mod ledger;
mod readiness;
#[cfg(feature = "metrics")]
mod text;

pub(crate) use census::{Census, Totals};
#[cfg(feature = "metrics")]
pub use handle::Metrics;
#[cfg(feature = "fallback")]
pub(crate) use ledger::Tally;
pub(crate) use ledger::{Counted, Ledger, Rejection, Timed};
pub use readiness::Readiness;

/// What there is to tell beside what the hub knows.
#[derive(Default)]
#[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "nobody asks"))]
pub(crate) struct Sources {
    /// The application's own.
    #[cfg(feature = "metrics")]
    pub(crate) registry: prometheus_client::registry::Registry,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<std::sync::Arc<crate::tls::Store>>,
}

#[cfg(feature = "tls")]
impl Sources {
    pub(crate) fn with_tls(self, tls: Option<std::sync::Arc<crate::tls::Store>>) -> Self {
        #[cfg_attr(not(feature = "metrics"), allow(clippy::needless_update, reason = "it is all"))]
        Self { tls, ..self }
    }
}
