//! A message that a handler receives while it arrives.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use futures_lite::{AsyncRead, Stream};

use crate::error::Interrupted;
use crate::message::Kind;

/// Bytes that wait for the handler before the peer has to: four parts, so that one can be worked on
/// while others arrive.
const WINDOW: usize = 64 * 1024;

/// What a part costs besides its bytes: its place in the queue and two small allocations. Without it
/// the window would hold a part for each of its bytes.
const PART_COST: usize = 128;

/// What has arrived and not been taken, between the link and the handler. Both run in one task.
#[derive(Default)]
pub(super) struct Inlet {
    parts: RefCell<VecDeque<Bytes>>,
    bytes: Cell<usize>,
    end: Cell<End>,
    /// The handler has dropped its half.
    abandoned: Cell<bool>,
    waker: Cell<Option<Waker>>,
    /// Of the link, which reads nothing while there is no room. Mostly it is the same task; but an
    /// [`Incoming`] may have left its callback.
    reader: Cell<Option<Waker>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum End {
    #[default]
    ToCome,
    Reached,
    /// There will be none.
    Lost,
}

impl Inlet {
    pub(super) fn has_room(&self) -> bool {
        let parts = self.parts.borrow().len();
        self.abandoned.get() || self.bytes.get() + parts * PART_COST < WINDOW
    }

    /// The link waits for room.
    pub(super) fn await_room(&self, waker: &Waker) {
        self.reader.set(Some(waker.clone()));
    }

    fn has_made_room(&self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    pub(super) fn push(&self, part: Bytes) {
        if part.is_empty() || self.abandoned.get() {
            return;
        }
        self.bytes.set(self.bytes.get() + part.len());
        self.parts.borrow_mut().push_back(part);
        self.wake();
    }

    /// The message is complete.
    pub(super) fn finish(&self) {
        self.end.set(End::Reached);
        self.wake();
    }

    /// The session ends.
    pub(super) fn interrupt(&self) {
        if self.end.get() == End::ToCome {
            self.end.set(End::Lost);
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll_next(&self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Interrupted>>> {
        let part = self.parts.borrow_mut().pop_front();
        if let Some(part) = part {
            self.bytes.set(self.bytes.get() - part.len());
            self.has_made_room();
            return Poll::Ready(Some(Ok(part)));
        }
        match self.end.get() {
            End::Reached => Poll::Ready(None),
            End::Lost => Poll::Ready(Some(Err(Interrupted::new()))),
            End::ToCome => {
                self.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

/// A message on its way, received part by part: see [`Handler::stream`](super::Handler::stream).
///
/// What has arrived and not been taken is at most 64 KiB and one part of 16 KiB (a compressed one: up to
/// 80 KiB), and what came in the same read, 256 KiB at most. Then nothing more is read: the peer has to
/// wait, its pings, too, and the session goes on with what is to be sent. Dropping it before the end
/// throws the rest of the message away.
///
/// It is a [`Stream`] of its parts and an [`AsyncRead`] of its bytes; use one of them.
pub struct Incoming {
    inlet: Rc<Inlet>,
    kind: Kind,
    /// Of a part that has been read in pieces.
    rest: Bytes,
    /// As a stream it has ended, with an error.
    failed: bool,
}

impl Incoming {
    pub(super) fn new(inlet: Rc<Inlet>, kind: Kind) -> Self {
        Self { inlet, kind, rest: Bytes::new(), failed: false }
    }

    /// Whether it is a text. Each part of a text is UTF-8 by itself.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The next part, never empty; `None` when the message is complete.
    ///
    /// # Errors
    ///
    /// [`Interrupted`], from then on, when the session ends before the message does.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has taken nothing.
    pub async fn next(&mut self) -> Option<Result<Bytes, Interrupted>> {
        poll_fn(|cx| self.inlet.poll_next(cx)).await
    }
}

impl Stream for Incoming {
    type Item = Result<Bytes, Interrupted>;

    /// Behind an error there is nothing.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let part = ready!(self.inlet.poll_next(cx));
        self.failed = matches!(part, Some(Err(_)));
        Poll::Ready(part)
    }
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.rest.is_empty() {
            match ready!(self.inlet.poll_next(cx)) {
                None => return Poll::Ready(Ok(0)),
                Some(Ok(part)) => self.rest = part,
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
            }
        }
        let taken = self.rest.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&self.rest.split_to(taken));
        Poll::Ready(Ok(taken))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.inlet.abandoned.set(true);
        self.inlet.parts.borrow_mut().clear();
        self.inlet.bytes.set(0);
        self.inlet.has_made_room();
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("kind", &self.kind)
            .field("waiting", &self.inlet.bytes.get())
            .finish_non_exhaustive()
    }
}
