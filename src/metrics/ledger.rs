//! What is counted where it happens. All of it happens once for a connection, a request, a session or a
//! pong, where an addition costs nothing that could be measured; the callbacks for messages are timed now
//! and then only.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::StatusCode;

use super::histogram::Histogram;
use crate::protocol::Protocol;

/// From a fast local network to the default deadline of a handshake, in microseconds; one bucket more
/// for what is only slow because the line is.
const NETWORK: &[u64] = &[
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// From a callback that only computes something to one that waits for a database that hangs. Above 1 ms
/// and without an `await` the other sessions of the worker notice it.
const CALLBACK: &[u64] = &[
    10, 50, 100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000,
    10_000_000,
];

/// From a page that is reloaded at once to a device that stays for weeks: 1 s, 10 s, 1 min, 10 min, 1 h,
/// 6 h, 1 d, 1 week.
const LIFETIME: &[u64] = &[
    1_000_000,
    10_000_000,
    60_000_000,
    600_000_000,
    3_600_000_000,
    21_600_000_000,
    86_400_000_000,
    604_800_000_000,
];

/// A number that only grows.
#[derive(Default)]
pub(crate) struct Tally(AtomicU64);

impl Tally {
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    #[cfg(feature = "metrics")]
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The books of one server.
pub(crate) struct Ledger {
    /// For a moment that is the same after every restart of the one who asks.
    #[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "nobody asks"))]
    pub(super) started: SystemTime,
    /// Connections that have got a task on a worker, and those of them that have ended.
    pub(super) connected: Tally,
    pub(super) disconnected: Tally,
    pub(super) rejected: [Tally; Rejection::ALL.len()],
    /// Requests that were answered, by the first digit of the status.
    pub(super) answered: [Tally; 5],
    /// Sessions that have begun, by protocol.
    pub(super) websockets: Tally,
    pub(super) framed: Tally,
    #[cfg(feature = "fallback")]
    pub(super) polled: Tally,
    /// Sessions that have ended: by whom, with which code, why.
    pub(super) closed: Mutex<BTreeMap<[&'static str; 3], u64>>,
    pub(super) lived: Histogram,
    pub(super) handshakes: Histogram,
    /// From an ordinary request's head to its answer.
    pub(super) requests: Histogram,
    pub(super) round_trips: Histogram,
    /// One for each worker, because they time messages as well.
    pub(super) workers: Box<[Callbacks]>,
}

/// How long the callbacks of one worker take.
pub(crate) struct Callbacks {
    pub(super) open: Histogram,
    pub(super) message: Histogram,
    pub(super) close: Histogram,
}

impl Callbacks {
    fn new() -> Self {
        let new = || Histogram::new(CALLBACK);
        Self { open: new(), message: new(), close: new() }
    }
}

/// A callback whose duration is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timed {
    Open,
    Message,
    Close,
}

/// Why a connection has ended before it became a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// [`Limits::handshakes`](crate::config::Limits::handshakes), of all and of one address.
    Handshakes,
    AddressHandshakes,
    /// [`Limits::tls_handshakes`](crate::config::Limits::tls_handshakes)
    #[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "there are none"))]
    TlsHandshakes,
    /// [`Limits::sessions`](crate::config::Limits::sessions)
    Sessions,
    /// [`Limits::sessions_per_address`](crate::config::Limits::sessions_per_address)
    AddressSessions,
    Stopping,
    /// The TLS handshake has failed.
    #[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "there is none"))]
    Tls,
    /// The client went away in the middle.
    Gone,
    Timeout,
    BadRequest,
    TooLarge,
    /// A request that is fine, but no handshake, and no page is there for it.
    NotWebSocket,
    Origin,
    /// The application said no.
    Application,
    /// Our own fault, or the application's.
    Internal,
}

impl Rejection {
    pub(super) const ALL: [Self; 15] = [
        Self::Handshakes,
        Self::AddressHandshakes,
        Self::TlsHandshakes,
        Self::Sessions,
        Self::AddressSessions,
        Self::Stopping,
        Self::Tls,
        Self::Gone,
        Self::Timeout,
        Self::BadRequest,
        Self::TooLarge,
        Self::NotWebSocket,
        Self::Origin,
        Self::Application,
        Self::Internal,
    ];

    #[cfg(feature = "metrics")]
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Handshakes => "handshakes",
            Self::AddressHandshakes => "address_handshakes",
            Self::TlsHandshakes => "tls_handshakes",
            Self::Sessions => "sessions",
            Self::AddressSessions => "address_sessions",
            Self::Stopping => "stopping",
            Self::Tls => "tls",
            Self::Gone => "gone",
            Self::Timeout => "timeout",
            Self::BadRequest => "bad_request",
            Self::TooLarge => "too_large",
            Self::NotWebSocket => "not_websocket",
            Self::Origin => "origin",
            Self::Application => "application",
            Self::Internal => "internal",
        }
    }
}

/// How one of our own refusals is counted, as an extension of its response: what has none is the
/// application's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted(Option<Rejection>);

impl Counted {
    /// By the status, where that says it. A 429 and a 503 are counted where a limit says no.
    pub(crate) fn by(status: StatusCode) -> Self {
        Self(match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => None,
            StatusCode::REQUEST_TIMEOUT => Some(Rejection::Timeout),
            StatusCode::FORBIDDEN => Some(Rejection::Origin),
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::UPGRADE_REQUIRED => {
                Some(Rejection::NotWebSocket)
            }
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                Some(Rejection::TooLarge)
            }
            StatusCode::INTERNAL_SERVER_ERROR => Some(Rejection::Internal),
            _ => Some(Rejection::BadRequest),
        })
    }
}

impl Ledger {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            started: SystemTime::now(),
            connected: Tally::default(),
            disconnected: Tally::default(),
            rejected: Default::default(),
            answered: Default::default(),
            websockets: Tally::default(),
            framed: Tally::default(),
            #[cfg(feature = "fallback")]
            polled: Tally::default(),
            requests: Histogram::new(NETWORK),
            closed: Mutex::default(),
            lived: Histogram::new(LIFETIME),
            handshakes: Histogram::new(NETWORK),
            round_trips: Histogram::new(NETWORK),
            workers: (0..workers).map(|_| Callbacks::new()).collect(),
        }
    }

    /// A worker has taken a connection on.
    pub(crate) fn connected(&self) {
        self.connected.count();
    }

    /// One of those has ended.
    pub(crate) fn disconnected(&self) {
        self.disconnected.count();
    }

    /// A connection ends before it is a session.
    pub(crate) fn rejected(&self, rejection: Rejection) {
        self.rejected[rejection as usize].count();
    }

    /// A connection ends with this answer.
    pub(crate) fn refused(&self, answer: &crate::http::Response) {
        match answer.extensions().get() {
            Some(Counted(Some(rejection))) => self.rejected(*rejection),
            Some(Counted(None)) => {}
            None => self.rejected(Rejection::Application),
        }
    }

    /// A request has been answered.
    pub(crate) fn answered(&self, status: StatusCode) {
        // The type allows 100 to 999, of which HTTP knows those below 600.
        if let Some(class) = self.answered.get(usize::from(status.as_u16() / 100) - 1) {
            class.count();
        }
    }

    /// A request has been answered, but for those that wait for a session's messages.
    pub(crate) fn requested(&self, took: Duration) {
        self.requests.record(took);
    }

    /// A handshake has led to a session.
    pub(crate) fn handshaken(&self, took: Duration) {
        self.handshakes.record(took);
    }

    /// A session has begun.
    pub(crate) fn opened(&self, protocol: Protocol) {
        match protocol {
            Protocol::WebSocket => self.websockets.count(),
            Protocol::Frames => self.framed.count(),
            #[cfg(feature = "fallback")]
            Protocol::Http => self.polled.count(),
        }
    }

    /// A session has ended: by whom, with which code, why.
    pub(crate) fn closed(&self, how: [&'static str; 3], lived: Duration) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner).entry(how).or_default() += 1;
        self.lived.record(lived);
    }

    /// A ping has been answered.
    pub(crate) fn round_trip(&self, took: Duration) {
        self.round_trips.record(took);
    }

    /// A callback is over.
    pub(crate) fn called(&self, worker: usize, callback: Timed, took: Duration) {
        let Some(callbacks) = self.workers.get(worker) else {
            return;
        };
        let histogram = match callback {
            Timed::Open => &callbacks.open,
            Timed::Message => &callbacks.message,
            Timed::Close => &callbacks.close,
        };
        histogram.record(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rejection_has_its_own_place() {
        for (place, rejection) in Rejection::ALL.into_iter().enumerate() {
            assert_eq!(rejection as usize, place, "{rejection:?}");
        }
    }

    #[test]
    fn no_status_is_too_large_to_be_counted() {
        let ledger = Ledger::new(1);
        for status in [100, 199, 200, 404, 503, 599, 600, 999] {
            ledger.answered(StatusCode::from_u16(status).unwrap());
        }
        let counted = ledger.answered.each_ref().map(|class| class.0.load(Ordering::Relaxed));
        assert_eq!(counted, [2, 1, 0, 1, 2]);
    }
}
