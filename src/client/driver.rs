//! Connects, serves the connection, comes back: for as long as there is a client.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future;
use smol::Timer;

use super::backoff::{GOOD, Reason, Reconnect, Row};
use super::dial::{Dial, Dialed};
use super::ended::{Disconnected, Ended};
use super::error::ConnectError;
use super::link::{Limits, Link};
use super::shared::{Happened, Shared};

/// Everything that one attempt needs.
pub(super) struct Course {
    pub(super) dial: Dial,
    pub(super) limits: Limits,
    pub(super) reconnect: Reconnect,
}

/// Runs a client until it has ended. `first` is a connection that has been made, and said to be open.
pub(super) async fn drive(shared: Arc<Shared>, course: Course, first: Option<Dialed>) {
    let ended = serve(&shared, &course, first).await;
    log::debug!("client of {}: {ended}", course.dial.target());
    shared.finish(ended);
}

async fn serve(shared: &Shared, course: &Course, mut first: Option<Dialed>) -> Ended {
    let mut row = Row::default();
    // Attempts, and no ends of connections, which the row counts as well.
    let mut failures = 0;
    loop {
        let attempt = async {
            match first.take() {
                Some(dialed) => Ok(dialed),
                // On the heap, and freed with the attempt.
                None => {
                    let mut dialed = Box::pin(course.dial.run()).await?;
                    dialed.connected.failures = failures;
                    shared.opened(&dialed.connected);
                    Ok(dialed)
                }
            }
        };
        let parting = async {
            shared.parting().await;
            None
        };
        // A connection that has been made is served also if it is to be closed: what waits is sent.
        let wait = match future::or(async { Some(attempt.await) }, parting).await {
            None => return Ended::Requested(None),
            Some(Ok(dialed)) => {
                let ended = connection(shared, course, dialed).await;
                failures = 0;
                if shared.goodbye().is_some() {
                    return Ended::Requested(Some(ended));
                }
                if ended.lived() >= GOOD {
                    row.broken();
                }
                let reason = Reason::Ended(&ended);
                let wait = match course.reconnect.gives_up(&reason) {
                    true => None,
                    false => row.next(&course.reconnect, &reason, random()),
                };
                log::info!("client of {}: {ended}", course.dial.target());
                let Some(wait) = wait else {
                    return Ended::Disconnected(ended);
                };
                shared.tell(Happened::Disconnected(ended));
                wait
            }
            Some(Err(error)) => {
                log::info!("client of {}: {error}", course.dial.target());
                failures = failures.saturating_add(1);
                match failed(course, &mut row, &error) {
                    Some(wait) => wait,
                    None => return Ended::Failed { attempts: failures, last: error },
                }
            }
        };
        let sleep = async {
            Timer::after(wait).await;
            true
        };
        let parting = async {
            shared.parting().await;
            false
        };
        if !future::or(sleep, parting).await {
            return Ended::Requested(None);
        }
    }
}

/// How long to wait after an attempt that has failed.
fn failed(course: &Course, row: &mut Row, error: &ConnectError) -> Option<Duration> {
    let reason = Reason::Failed(error);
    if course.reconnect.gives_up(&reason) {
        return None;
    }
    row.next(&course.reconnect, &reason, random())
}

async fn connection(shared: &Shared, course: &Course, dialed: Dialed) -> Disconnected {
    let Dialed { stream, rest, connected } = dialed;
    shared.tell(Happened::Connected(connected));
    let ended = Link::new(shared, stream, rest, course.limits).run().await;
    shared.lost();
    ended
}

/// Between 0 and 1; nobody gains by guessing it.
fn random() -> f64 {
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}
