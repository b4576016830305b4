//! When to come back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::ended::Disconnected;
use super::error::ConnectError;
use crate::message::CloseCode;

/// No clock names the moment that is `Duration::MAX` away. This many years are as good.
pub(super) const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// A connection that has lasted so long was a good one: the next wait is as short as the first. The same as in the
/// browser's module.
pub(super) const GOOD: Duration = Duration::from_secs(5);

/// A server that says that it restarts or is overloaded gets a random part of at least so many times the first wait.
const BUSY: u32 = 8;

/// The longest `Retry-After` that is kept to: nobody else may send a client to sleep for longer.
const LONGEST_ASKED: Duration = Duration::from_secs(60 * 60);

/// Why there is no connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum Reason<'a> {
    /// An attempt has failed.
    Failed(&'a ConnectError),
    /// A connection has ended.
    Ended(&'a Disconnected),
}

type Verdict = Arc<dyn Fn(&Reason<'_>) -> bool + Send + Sync>;

/// When a client comes back, and when it does not any more.
///
/// The wait is a random part of `first`, doubled with each failure in a row up to `longest`: exponential backoff with
/// full jitter, so that a thousand clients of a server that has restarted do not come back in one moment. It is at
/// least eight times as much after 1012 (restart), 1013 (overloaded), 429 and 503. Where the server names a time
/// (`Retry-After`, of which an hour at most is kept to), the random part comes on top of it.
#[derive(Clone)]
pub struct Reconnect {
    pub(super) first: Duration,
    pub(super) longest: Duration,
    pub(super) attempts: Option<u32>,
    pub(super) give_up_if: Option<Verdict>,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
            attempts: None,
            give_up_if: None,
        }
    }
}

impl Reconnect {
    /// After a random part of 0.5 s, doubled up to 30 s, for ever.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Not at all: the first end is the last.
    #[must_use]
    pub fn never() -> Self {
        Self::new().attempts(0)
    }

    /// Of what the first wait is a random part. Default: 0.5 s.
    #[must_use]
    pub fn first(mut self, first: Duration) -> Self {
        self.first = first;
        self
    }

    /// Up to where it is doubled. Default: 30 s.
    #[must_use]
    pub fn longest(mut self, longest: Duration) -> Self {
        self.longest = longest;
        self
    }

    /// How often in a row it tries again, behind an attempt that has failed or a connection that has ended; a connection
    /// that ends sooner than after 5 s counts as an attempt, and one that has lasted so long begins a new row. Default:
    /// for ever.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// Decides by itself whether the client gives up, in the place of the rule: after 1000 and 1008, and when
    /// [`ConnectError::is_lasting`]. The bound on attempts holds in any case.
    #[must_use]
    pub fn give_up_if(
        mut self,
        verdict: impl Fn(&Reason<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.give_up_if = Some(Arc::new(verdict));
        self
    }

    pub(super) fn gives_up(&self, reason: &Reason<'_>) -> bool {
        match &self.give_up_if {
            Some(verdict) => verdict(reason),
            None => match reason {
                Reason::Failed(error) => error.is_lasting(),
                Reason::Ended(ended) => {
                    matches!(ended.code(), Some(CloseCode::NORMAL | CloseCode::POLICY))
                }
            },
        }
    }

    pub(super) fn invalid(&self) -> Option<String> {
        if self.first > self.longest {
            let Self { first, longest, .. } = self;
            return Some(format!(
                "reconnect.first is {first:?}, and longer than reconnect.longest, which is {longest:?}"
            ));
        }
        (self.first.is_zero() && self.attempts.is_none()).then(|| {
            "reconnect.first is zero: without a wait and without a bound on attempts a server that is down would \
             be asked without a pause"
                .to_owned()
        })
    }
}

impl fmt::Debug for Reconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, longest, attempts, give_up_if } = self;
        f.debug_struct("Reconnect")
            .field("first", first)
            .field("longest", longest)
            .field("attempts", attempts)
            .field("give_up_if", &give_up_if.is_some())
            .finish()
    }
}

/// How far a row of failures has come.
#[derive(Debug, Default)]
pub(super) struct Row {
    failures: u32,
}

impl Row {
    /// The wait after another failure; `None` if there have been too many. `random` is between 0 and 1.
    pub(super) fn next(
        &mut self,
        policy: &Reconnect,
        reason: &Reason<'_>,
        random: f64,
    ) -> Option<Duration> {
        if policy.attempts.is_some_and(|attempts| self.failures >= attempts) {
            return None;
        }
        let doubled =
            policy.first.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        let busy = match reason {
            Reason::Ended(ended) => {
                matches!(ended.code(), Some(CloseCode::RESTART | CloseCode::TRY_AGAIN_LATER))
            }
            Reason::Failed(ConnectError::Handshake(rejected)) => {
                matches!(rejected.status.as_u16(), 429 | 503)
            }
            Reason::Failed(_) => false,
        };
        let most = if busy { doubled.max(policy.first.saturating_mul(BUSY)) } else { doubled };
        let jitter = most.min(policy.longest).min(FOREVER).mul_f64(random);
        let asked = match reason {
            Reason::Failed(error) => error.retry_after(),
            Reason::Ended(_) => None,
        };
        Some(asked.unwrap_or_default().min(LONGEST_ASKED).saturating_add(jitter))
    }

    /// The connection was a good one.
    pub(super) fn broken(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use ::http::header::RETRY_AFTER;
    use ::http::{HeaderMap, StatusCode};

    use super::super::ended::{By, Why};
    use super::super::error::Rejected;
    use super::*;
    use crate::message::Text;

    const MS: Duration = Duration::from_millis(1);

    fn ended(code: Option<u16>) -> Disconnected {
        Disconnected {
            why: Why::Closed,
            by: By::Server,
            code: code.map(CloseCode),
            reason: Text::default(),
            clean: true,
            in_flight: 0,
            lived: Duration::ZERO,
        }
    }

    fn rejected(status: u16, retry_after: Option<&str>) -> ConnectError {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, value.parse().unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        ConnectError::Handshake(Box::new(Rejected { status, headers, body: Vec::new() }))
    }

    /// The longest waits of a row of the same failures, in milliseconds.
    fn waits<const N: usize>(policy: &Reconnect, reason: &Reason<'_>) -> [u128; N] {
        let mut row = Row::default();
        std::array::from_fn(|_| row.next(policy, reason, 1.0).unwrap().as_millis())
    }

    #[test]
    fn the_wait_is_a_random_part_of_what_doubles_up_to_the_longest() {
        let policy = Reconnect::new().first(100 * MS).longest(1000 * MS);
        let lost = ended(None);
        let lost = Reason::Ended(&lost);
        assert_eq!(waits(&policy, &lost), [100, 200, 400, 800, 1000, 1000]);
        let mut row = Row::default();
        assert_eq!(row.next(&policy, &lost, 0.0), Some(Duration::ZERO));
        assert_eq!(row.next(&policy, &lost, 0.5), Some(100 * MS));
        row.broken();
        assert_eq!(row.next(&policy, &lost, 1.0), Some(100 * MS));
        // However long the row is.
        let mut row = Row { failures: u32::MAX - 1 };
        for _ in 0..3 {
            assert_eq!(row.next(&policy, &lost, 1.0), Some(1000 * MS));
        }
        for failures in [0, 31, 32, 33] {
            let endless = Reconnect::new().first(Duration::MAX).longest(Duration::MAX);
            let wait = Row { failures }.next(&endless, &lost, 1.0).unwrap();
            assert!(wait >= FOREVER / 2, "{wait:?}");
        }
    }

    #[test]
    fn a_server_that_restarts_or_is_overloaded_is_given_eight_times_the_first_wait() {
        let policy = Reconnect::new().first(100 * MS).longest(10_000 * MS);
        let long = [800, 800, 800, 800, 1600, 3200];
        for code in [1012, 1013] {
            assert_eq!(waits(&policy, &Reason::Ended(&ended(Some(code)))), long);
        }
        for status in [429, 503] {
            assert_eq!(waits(&policy, &Reason::Failed(&rejected(status, None))), long);
        }
        for code in [None, Some(1001), Some(1011)] {
            assert_eq!(waits(&policy, &Reason::Ended(&ended(code))), [100, 200, 400]);
        }
        assert_eq!(waits(&policy, &Reason::Failed(&rejected(500, None))), [100, 200, 400]);
        // No longer than the longest.
        let short = Reconnect::new().first(100 * MS).longest(300 * MS);
        assert_eq!(waits(&short, &Reason::Ended(&ended(Some(1012)))), [300, 300]);
    }

    #[test]
    fn the_time_that_a_server_asks_for_is_kept_to_up_to_an_hour() {
        let policy = Reconnect::new().first(100 * MS).longest(1000 * MS);
        let wait = |asked: &str, random| {
            let error = rejected(503, Some(asked));
            Row::default().next(&policy, &Reason::Failed(&error), random).unwrap()
        };
        assert_eq!(wait("0", 0.0), Duration::ZERO);
        assert_eq!(wait("7", 0.0), 7000 * MS);
        // The random part comes on top.
        assert_eq!(wait("7", 1.0), 7800 * MS);
        let hour = Duration::from_secs(3600);
        for long in ["3600", "3601", "86400", "18446744073709551615"] {
            assert_eq!(wait(long, 0.0), hour, "{long}");
        }
        let tomorrow = std::time::SystemTime::now() + 24 * hour;
        assert_eq!(wait(&httpdate::fmt_http_date(tomorrow), 0.0), hour);
        // What is past, and what is none.
        for none in ["Thu, 01 Jan 1970 00:00:00 GMT", "-1", "soon", "18446744073709551616", ""] {
            assert_eq!(wait(none, 0.0), Duration::ZERO, "{none}");
        }
    }

    #[test]
    fn as_many_failures_are_borne_as_may_be() {
        let lost = ended(None);
        let lost = Reason::Ended(&lost);
        let policy = Reconnect::new().attempts(2);
        let mut row = Row::default();
        let mut next = || row.next(&policy, &lost, 0.0).is_some();
        assert_eq!([next(), next(), next(), next()], [true, true, false, false]);
        row.broken();
        assert!(row.next(&policy, &lost, 0.0).is_some());
        assert_eq!(Row::default().next(&Reconnect::never(), &lost, 0.0), None);
    }

    #[test]
    fn a_policy_that_would_never_rest_is_refused() {
        assert_eq!(Reconnect::new().invalid(), None);
        assert_eq!(Reconnect::never().first(Duration::ZERO).invalid(), None);
        let problem = |policy: Reconnect| policy.invalid().unwrap();
        assert!(problem(Reconnect::new().first(Duration::ZERO)).contains("without a pause"));
        assert!(problem(Reconnect::new().longest(MS)).contains("longer than"));
    }
}
