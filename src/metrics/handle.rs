//! The handle by which others get the numbers.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::registry::Registry;

use super::Readiness;
use super::exposition::Exposition;
use super::text;
use crate::hub::Hub;

/// What one server counts of itself, and what its application does
/// ([`Builder::register_metrics`](crate::Builder::register_metrics)); made by
/// [`ServerHandle::metrics`](crate::ServerHandle::metrics). See [metrics](crate::docs::metrics) for every name.
///
/// Cheap to clone, usable from any thread; holding one does not keep the server running, and after its end
/// the last numbers are still there. It keeps what the server was built of, so where the server itself holds one (in a
/// route, in a collector), that is freed with the process and not before: [`Routes::metrics`](crate::Routes::metrics)
/// needs none.
#[derive(Clone)]
pub struct Metrics(Arc<Hub>);

impl Metrics {
    /// What the text of [`encode`](Self::encode) is: OpenMetrics 1.0.
    pub const OPENMETRICS: &'static str =
        "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// What Prometheus' own text format, version 0.0.4, is.
    pub const TEXT: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self(hub)
    }

    /// All numbers as they are now, in the text format of OpenMetrics 1.0.
    ///
    /// It looks at each open session once, some 0.05 µs each, on the calling thread; who opens or closes a
    /// session meanwhile waits for 256 of them at most. With ten thousand sessions and more it is better called
    /// with `smol::unblock` than on a worker. No total is ever smaller than it was the last time, and whoever
    /// ends meanwhile is counted once.
    ///
    /// Nothing of the application's own is shown if one of its collectors fails; the log says so.
    ///
    /// # Panics
    ///
    /// If one of the application's collectors does.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut own = Registry::default();
        own.register_collector(Box::new(Exposition(Arc::clone(&self.0))));
        // Writing to a string does not fail, so that only collectors can.
        let mut text = String::with_capacity(16 * 1024);
        for registry in [&own, &self.0.sources.registry] {
            let before = text.len();
            if encode_registry(&mut text, registry).is_err() {
                log::error!("metrics: a collector has failed, and all of its registry is left out");
                text.truncate(before);
            }
        }
        let _ = encode_eof(&mut text);
        text
    }

    /// The same in the format that a client would rather have, by its `Accept` header, with the value of
    /// `Content-Type` that belongs to it: OpenMetrics for those who ask for it, as Prometheus does, and
    /// otherwise Prometheus' text format 0.0.4, which everybody can read.
    ///
    /// ```
    /// use coracle::http_types::Response;
    /// use coracle::{Metrics, Request, Response as Answer};
    ///
    /// fn answer(metrics: &Metrics, request: &Request) -> Option<Answer> {
    ///     let (content_type, text) = metrics.encode_for(request.header("accept"));
    ///     Response::builder().header("Content-Type", content_type).body(text.into_bytes()).ok()
    /// }
    /// ```
    #[must_use]
    pub fn encode_for(&self, accept: Option<&str>) -> (&'static str, String) {
        let text = self.encode();
        if text::wants_openmetrics(accept.unwrap_or_default()) {
            (Self::OPENMETRICS, text)
        } else {
            (Self::TEXT, text::classic(&text))
        }
    }

    /// Whether new clients should be sent to the server. It does not know that a server has
    /// [ended](Readiness::Stopped) and calls that stopping; [`ServerHandle`](crate::ServerHandle::readiness)
    /// does.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.0.readiness()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
