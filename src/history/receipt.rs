//! What has become of one append: said by the store, heard by whoever published.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::book::Book;
use super::errors::{StoreError, StoreErrorKind};
use super::ledger::{Line, lock};
use crate::message::Text;

/// Tells the history what has become of an entry; a [`Store`](super::Store) gets one with each.
///
/// Never blocks. One that is dropped unused has failed. When the history has been closed it is too late: what was not
/// answered for until then has failed, and nobody hears of what is said later.
#[must_use = "a receipt that is dropped says that the entry is lost"]
pub struct Receipt(Option<Inner>);

struct Inner {
    book: Arc<Book>,
    line: Arc<Line>,
    room: Text,
    id: u64,
    weight: usize,
    slot: Arc<Slot>,
}

impl Receipt {
    /// The one who publishes has a [`Stored`] of the slot, and the line has the slot, so that the history can say
    /// what has become of the entry if the store does not.
    pub(super) fn new(
        book: &Arc<Book>,
        line: &Arc<Line>,
        room: Text,
        id: u64,
        weight: usize,
        slot: Arc<Slot>,
    ) -> Self {
        let (book, line) = (Arc::clone(book), Arc::clone(line));
        Self(Some(Inner { book, line, room, id, weight, slot }))
    }

    /// The entry is kept: it will be there whatever happens next, as far as the store promises that.
    pub fn kept(mut self) {
        if let Some(inner) = self.0.take() {
            if inner.line.kept(inner.id) {
                inner.book.kept(inner.weight);
                inner.slot.set(Ok(()));
            }
        }
    }

    /// The entry is not kept, and never will be.
    pub fn failed(mut self, error: StoreError) {
        self.fail(error);
    }

    fn fail(&mut self, error: StoreError) {
        if let Some(inner) = self.0.take() {
            if inner.line.failed(inner.id) {
                inner.book.lost(&inner.room, inner.id, inner.weight, &inner.slot, error);
            }
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.fail(StoreError::new(StoreErrorKind::Other, "the store has dropped an entry"));
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.0.as_ref().map(|inner| (&inner.room, inner.id));
        f.debug_tuple("Receipt").field(&inner).finish()
    }
}

/// Whether what was published is kept: a future that is ready when the store has said so.
///
/// What is on the way to the store goes on when this is dropped. It ends in any case: at the latest when the
/// server's history has been closed: with [`Closed`](StoreErrorKind::Closed) if the store has not said anything
/// until then. What the store does later is not known here.
#[must_use = "without it nobody is told whether the message was kept; drop it if that does not matter"]
pub struct Stored {
    slot: Arc<Slot>,
}

impl Stored {
    pub(super) fn of(slot: Arc<Slot>) -> Self {
        Self { slot }
    }

    pub(super) fn refused(error: StoreError) -> Self {
        let slot = Arc::<Slot>::default();
        slot.set(Err(error));
        Self { slot }
    }

    /// What is known now, without waiting.
    #[must_use]
    pub fn try_result(&self) -> Option<Result<(), StoreError>> {
        lock(&self.slot.0).result.clone()
    }
}

impl Future for Stored {
    type Output = Result<(), StoreError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.slot.0);
        match &state.result {
            Some(result) => Poll::Ready(result.clone()),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stored").field(&self.try_result()).finish()
    }
}

/// Where it is said.
#[derive(Default)]
pub(super) struct Slot(Mutex<Answer>);

#[derive(Default)]
struct Answer {
    result: Option<Result<(), StoreError>>,
    waker: Option<Waker>,
}

impl Slot {
    pub(super) fn set(&self, result: Result<(), StoreError>) {
        let mut state = lock(&self.0);
        state.result = Some(result);
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }
}
