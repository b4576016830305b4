//! The one task that owns a session: reads a message, calls the handler and waits for it, reads
//! again. While a callback is pending, the link goes on with everything else.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{self, AssertUnwindSafe};
use std::pin::{Pin, pin};
use std::task::Poll;

use super::handler::{Flow, Handler, HandlerError, Outcome};
use super::{Cause, Closed, Link};

/// Drives a session from its first callback to its last.
///
/// `guards` are dropped between the end of the session and the last callback. Dropping the future
/// is how the worker ends a session that the stop has not ended: the guards leave the hub, the link
/// closes the socket, and `close` is not called.
pub(crate) async fn drive<H: Handler, G>(mut link: Box<Link>, guards: G, handler: &H) {
    let session = link.session().clone();
    let opened = alongside(&mut link, pin!(call(|| handler.open(&session)))).await;
    conclude(&mut link, handler, opened).await;
    while let Some(message) = poll_fn(|cx| link.poll_message(cx)).await {
        let outcome = alongside(&mut link, pin!(call(|| handler.message(&session, message)))).await;
        if !matches!(outcome, Some(Ok(Ok(Flow::Continue)))) {
            conclude(&mut link, handler, outcome).await;
        }
    }
    let closed = link.closed();
    // First out of every list, then the last callback.
    drop(guards);
    let hub = &session.member().hub;
    hub.ended(link.was_cut());
    report(&link, &closed);
    let finished = alongside(&mut link, pin!(call(|| handler.close(&session, &closed)))).await;
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
    if let Some(Err(panic)) = alongside(link, pin!(call(|| handler.error(&session, &error)))).await
    {
        count_panic(link, "on_error", &panic);
    }
}

/// What a callback came to: its output, or the text of its panic.
type Caught<T> = Result<T, String>;

/// A callback, called but not yet polled, or what is left of it when that panicked already.
fn call<F>(callback: impl FnOnce() -> F) -> Callback<F> {
    panic::catch_unwind(AssertUnwindSafe(callback)).ok()
}

type Callback<F> = Option<F>;

/// Waits for a callback while the link goes on. `None`: the session has ended and the callback has
/// not, for longer than it may.
///
/// A panic is caught here, at the session's edge. The callback is polled where the caller has
/// pinned it, so that its future is never moved.
async fn alongside<F: Future>(
    link: &mut Link,
    mut callback: Pin<&mut Callback<F>>,
) -> Option<Caught<F::Output>> {
    let started = link.worker().now();
    poll_fn(|cx| {
        let Some(future) = callback.as_mut().as_pin_mut() else {
            return Poll::Ready(Some(Err("before its first await".to_owned())));
        };
        match panic::catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(Poll::Ready(output)) => return Poll::Ready(Some(Ok(output))),
            Ok(Poll::Pending) => {}
            Err(payload) => return Poll::Ready(Some(Err(panic_text(&*payload)))),
        }
        if link.poll_background(cx).is_ready() {
            let deadline = link.grace_ends(started);
            if link.worker().now() >= deadline {
                // What it holds may panic when it is dropped.
                let dropped = panic::catch_unwind(AssertUnwindSafe(|| callback.set(None)));
                if let Err(payload) = dropped {
                    count_panic(link, "a dropped callback", &panic_text(&*payload));
                }
                return Poll::Ready(None);
            }
            link.wake_at(deadline, cx.waker());
        }
        Poll::Pending
    })
    .await
}

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(no text)").to_owned()
}

fn count_panic(link: &Link, who: &str, text: &str) {
    let session = link.session();
    session.member().hub.endings.panicked();
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
