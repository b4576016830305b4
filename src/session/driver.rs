//! The one task that owns a session: reads a message, calls the handler and waits for it, reads
//! again. While a callback is pending, the link goes on with everything else.

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::Poll;

use futures_lite::FutureExt;

use super::handler::{Flow, Handler, HandlerError, Outcome};
use super::{Cause, Closed, Link};
use crate::hub::Membership;

/// Drives a session from its first callback to its last.
///
/// Dropping the future is how the worker ends a session that the stop has not ended: the
/// membership's guard leaves the hub, the link closes the socket, and `close` is not called.
pub(crate) async fn drive<H: Handler>(mut link: Link, membership: Membership, handler: &H) {
    let session = link.session().clone();
    let opened = call(handler.open(&session)).alongside(&mut link).await;
    conclude(&mut link, handler, opened).await;
    while let Some(message) = poll_fn(|cx| link.poll_message(cx)).await {
        let outcome = call(handler.message(&session, message)).alongside(&mut link).await;
        if !matches!(outcome, Some(Ok(Ok(Flow::Continue)))) {
            conclude(&mut link, handler, outcome).await;
        }
    }
    let closed = link.closed();
    // First out of every list, then the last callback.
    drop(membership);
    let hub = &session.member().hub;
    hub.ended(link.was_cut());
    report(&link, &closed);
    let finished = call(handler.close(&session, &closed)).alongside(&mut link).await;
    match finished {
        Some(Ok(())) => {}
        Some(Err(panic)) => count_panic(&link, "on_close", &panic),
        None => log::warn!("session {}: on_close was still pending at its deadline", session.id()),
    }
}

/// What a callback's outcome means for the session. `None`: it was dropped at its deadline.
async fn conclude<H: Handler>(link: &mut Link, handler: &H, outcome: Option<Caught<Outcome>>) {
    let (error, cause) = match outcome {
        Some(Ok(Ok(Flow::Continue))) => return,
        Some(Ok(Ok(Flow::Close(code, reason)))) => return link.session().close(code, &reason),
        Some(Ok(Err(error))) => (HandlerError::Failed(error), Cause::HandlerFailed),
        Some(Err(panic)) => {
            count_panic(link, "a handler", &panic);
            (HandlerError::Panicked(panic), Cause::HandlerPanicked)
        }
        None => {
            log::warn!(
                "session {}: a handler was still pending after the end of its session and was \
                 dropped",
                link.session().id()
            );
            return;
        }
    };
    // A handler that passes on that its own session has ended has not failed.
    if !link.session().is_open() && matches!(cause, Cause::HandlerFailed) {
        log::debug!("session {}: {error} after the end", link.session().id());
    } else if matches!(cause, Cause::HandlerFailed) {
        log::warn!("session {}: {error}", link.session().id());
    }
    link.handler_failed(cause);
    let session = link.session().clone();
    if let Some(Err(panic)) = call(handler.error(&session, &error)).alongside(link).await {
        count_panic(link, "on_error", &panic);
    }
}

type Caught<T> = Result<T, String>;

/// A callback whose panic is caught at the session's edge.
fn call<F: Future>(future: F) -> Call<impl Future<Output = Caught<F::Output>>> {
    Call(async move {
        AssertUnwindSafe(future).catch_unwind().await.map_err(|payload| {
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            text.unwrap_or("(no text)").to_owned()
        })
    })
}

struct Call<F>(F);

impl<F: Future> Call<F> {
    /// Waits for the callback while the link goes on. `None`: the session has ended and the
    /// callback has not, for longer than it may.
    async fn alongside(self, link: &mut Link) -> Option<F::Output> {
        let mut future = pin!(self.0);
        let started = link.worker().now();
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            if link.poll_background(cx).is_ready() {
                let deadline = link.grace_ends(started);
                if link.worker().now() >= deadline {
                    return Poll::Ready(None);
                }
                link.wake_at(deadline, cx.waker());
            }
            Poll::Pending
        })
        .await
    }
}

fn count_panic(link: &Link, who: &str, text: &str) {
    let session = link.session();
    session.member().hub.endings.panics.fetch_add(1, Ordering::Relaxed);
    log::error!("session {}: {who} panicked: {text}", session.id());
}

fn report(link: &Link, closed: &Closed) {
    let session = link.session();
    let traffic = session.traffic();
    let level = match closed.cause {
        Cause::HandlerFailed | Cause::HandlerPanicked | Cause::Cut => log::Level::Warn,
        Cause::Violation | Cause::PongTimeout | Cause::WriteStalled | Cause::Io(_) => {
            log::Level::Info
        }
        _ => log::Level::Debug,
    };
    log::log!(
        level,
        "session {}: {closed}; {} messages in, {} out; {} bytes in, {} out",
        session.id(),
        traffic.messages_in,
        traffic.messages_out,
        traffic.bytes_in,
        traffic.bytes_out,
    );
}
