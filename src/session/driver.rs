//! The one task that owns a session: reads a message, calls the handler and waits for it, reads
//! again. While a callback is pending, the link goes on with everything else.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use super::handler::{Flow, Handler, HandlerError, Outcome};
use super::{Cause, Closed, Link};
use crate::error::{Interrupted, SendError, WriteError};
use crate::executor::{Time, panic_text};
use crate::hub::Membership;
use crate::metrics::Timed;
#[cfg(feature = "json")]
use crate::typed::{BadMessage, SendTypedError};

/// Drives a session from its first callback to its last.
///
/// Dropping the future is how the worker ends a session that the stop has not ended: the membership
/// leaves the hub, the link closes the socket, and `close` is not called.
///
/// An `async` block and not an `async fn`, whose arguments would be stored twice in every idle
/// session. For the same reason what is rare is on the heap.
#[expect(clippy::manual_async_fn, reason = "an `async fn` would be larger")]
pub(crate) fn drive<H: Handler>(
    mut link: Box<Link>,
    membership: Membership,
    handler: &H,
) -> impl Future<Output = ()> {
    async move {
        let session = link.session().clone();
        // In a block, so that nothing of it is kept.
        {
            link.find_rates();
            match panic::catch_unwind(AssertUnwindSafe(|| handler.streams(&session))) {
                Ok(false) => {}
                Ok(true) => link.stream_messages(),
                Err(panic) => link.panicked("Handler::streams", &*panic),
            }
        }
        Box::pin(begin(&mut link, handler)).await;
        if link.streams() {
            Box::pin(drive_streams(&mut link, handler)).await;
        }
        loop {
            // `while let` would keep it beside the callback that has been given it.
            let Some(message) = poll_fn(|cx| link.poll_message(cx)).await else {
                if link.take_drained() {
                    Box::pin(tell_drained(&mut link, handler)).await;
                    continue;
                }
                break;
            };
            let outcome = pin!(call(|| handler.message(&session, message)));
            let outcome = Alongside::new(&mut link, outcome).await;
            if !matches!(outcome, Some(Ok(Ok(Flow::Continue)))) {
                Box::pin(conclude(&mut link, handler, outcome)).await;
            }
        }
        Box::pin(finish(&mut link, membership, handler)).await;
    }
}

/// The first callback.
async fn begin<H: Handler>(link: &mut Link, handler: &H) {
    let session = link.session().clone();
    let began = link.worker().clock().precise();
    let opened = pin!(call(|| handler.open(&session)));
    let opened = Alongside::new(link, opened).await;
    link.count_callback(Timed::Open, began);
    if !matches!(opened, Some(Ok(Ok(Flow::Continue)))) {
        conclude(link, handler, opened).await;
    }
}

/// The same loop for a session whose messages are handed on in parts. On the heap, because the others
/// would have to have room for it as well.
async fn drive_streams<H: Handler>(link: &mut Link, handler: &H) {
    let session = link.session().clone();
    loop {
        let Some(incoming) = poll_fn(|cx| link.poll_stream(cx)).await else {
            if link.take_drained() {
                tell_drained(link, handler).await;
                continue;
            }
            return;
        };
        let outcome = pin!(call(|| handler.stream(&session, incoming)));
        let outcome = Alongside::new(link, outcome).await;
        if !matches!(outcome, Some(Ok(Ok(Flow::Continue)))) {
            Box::pin(conclude(link, handler, outcome)).await;
        }
    }
}

/// Nothing waits for the peer any more.
async fn tell_drained<H: Handler>(link: &mut Link, handler: &H) {
    let session = link.session().clone();
    let outcome = pin!(call(|| handler.drain(&session)));
    let outcome = Alongside::new(link, outcome).await;
    if !matches!(outcome, Some(Ok(Ok(Flow::Continue)))) {
        conclude(link, handler, outcome).await;
    }
}

/// The end: out of every list, then the last callback.
async fn finish<H: Handler>(link: &mut Link, membership: Membership, handler: &H) {
    let session = link.session().clone();
    tell_panic(link, handler).await;
    let closed = link.closed();
    membership.end(closed.labels(), closed.lived);
    session.member().hub.ended(link.was_cut());
    report(link, &closed);
    let began = link.worker().clock().precise();
    let finished = pin!(call(|| handler.close(&session, &closed)));
    let finished = Alongside::new(link, finished).await;
    link.count_callback(Timed::Close, began);
    match finished {
        Some(Ok(())) => {}
        Some(Err(panic)) => count_panic(link, "on_close", &panic),
        None => log::warn!("session {}: on_close was still pending at its deadline", session.id()),
    }
}

/// What a callback's outcome means for the session. `None`: it was dropped at its deadline.
async fn conclude<H: Handler>(link: &mut Link, handler: &H, outcome: Option<Caught<Outcome>>) {
    // That was before.
    tell_panic(link, handler).await;
    let (error, cause) = match outcome {
        Some(Ok(Ok(Flow::Continue))) => return,
        Some(Ok(Ok(Flow::Close(code, reason)))) => return link.handler_closes(code, &reason),
        Some(Ok(Err(error))) => {
            #[cfg(feature = "json")]
            let error = match error.downcast() {
                Ok(bad) => return pass_over(link, handler, *bad).await,
                Err(error) => error,
            };
            (HandlerError::Failed(error), Cause::HandlerFailed)
        }
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
    let id = link.session().id();
    if let HandlerError::Failed(error) = &error {
        // A handler that passes on that its own session has ended has not failed.
        if says_closed(&**error) && !link.session().is_open() {
            return log::debug!("session {id}: the handler found it closed");
        }
        log::warn!("session {id}: handler failed: {error}");
    }
    link.handler_failed(cause);
    tell(link, handler, &error).await;
}

/// The peer has failed, and not the handler: it is told so, and the session goes on. A debug line,
/// because a peer can do that as often as it likes.
#[cfg(feature = "json")]
async fn pass_over<H: Handler>(link: &mut Link, handler: &H, bad: BadMessage) {
    log::debug!("session {}: {bad}", link.session().id());
    if !tell(link, handler, &HandlerError::BadMessage(bad)).await {
        link.handler_failed(Cause::HandlerPanicked);
    }
}

/// Tells the handler of a panic outside of its callbacks.
async fn tell_panic<H: Handler>(link: &mut Link, handler: &H) {
    if let Some(panic) = link.take_panic() {
        tell(link, handler, &HandlerError::Panicked(panic)).await;
    }
}

/// Whether that went without a panic.
async fn tell<H: Handler>(link: &mut Link, handler: &H, error: &HandlerError) -> bool {
    let session = link.session().clone();
    let reported = pin!(call(|| handler.error(&session, error)));
    if let Some(Err(panic)) = Alongside::new(link, reported).await {
        count_panic(link, "on_error", &panic);
        return false;
    }
    true
}

/// Whether an error is what sending, writing or receiving says of a session that has ended.
fn says_closed(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return error.get_ref().is_some_and(|inner| inner.is::<Interrupted>());
    }
    #[cfg(feature = "json")]
    if let Some(SendTypedError::Send(error)) = error.downcast_ref() {
        return says_closed(error);
    }
    match error.downcast_ref() {
        Some(WriteError::Closed) => return true,
        Some(WriteError::Source(error)) => return says_closed(error),
        _ => {}
    }
    error.is::<Interrupted>() || matches!(error.downcast_ref(), Some(SendError::Closed(_)))
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
struct Alongside<'a, F> {
    link: &'a mut Link,
    callback: Pin<&'a mut Callback<F>>,
    started: Time,
}

impl<'a, F: Future> Alongside<'a, F> {
    #[inline]
    fn new(link: &'a mut Link, callback: Pin<&'a mut Callback<F>>) -> Self {
        let started = link.worker().now();
        Self { link, callback, started }
    }

    /// The callback is still pending: is it time to drop it?
    fn poll_link(&mut self, cx: &mut Context<'_>) -> Poll<Option<Caught<F::Output>>> {
        if self.link.poll_background(cx).is_pending() {
            return Poll::Pending;
        }
        let deadline = self.link.grace_ends(self.started);
        if self.link.worker().now() < deadline {
            self.link.wake_at(deadline);
            return Poll::Pending;
        }
        // What it holds may panic when it is dropped.
        let callback = &mut self.callback;
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| callback.set(None))) {
            count_panic(self.link, "a dropped callback", &panic_text(&*payload));
        }
        Poll::Ready(None)
    }
}

impl<F: Future> Future for Alongside<'_, F> {
    type Output = Option<Caught<F::Output>>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = self.callback.as_mut().as_pin_mut() else {
            return Poll::Ready(Some(Err("before its first await".to_owned())));
        };
        match panic::catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(Poll::Ready(output)) => Poll::Ready(Some(Ok(output))),
            Ok(Poll::Pending) => self.poll_link(cx),
            Err(payload) => Poll::Ready(Some(Err(panic_text(&*payload)))),
        }
    }
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
        Cause::HandlerFailed | Cause::HandlerPanicked | Cause::WriterStalled | Cause::Cut => {
            log::Level::Warn
        }
        Cause::Violation
        | Cause::RateExceeded
        | Cause::Truncated
        | Cause::PongTimeout
        | Cause::WriteStalled
        | Cause::Io(_) => log::Level::Info,
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
