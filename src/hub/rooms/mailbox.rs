//! How a room reaches a worker: a list of rooms in which something is to be delivered.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::room::Room;

/// The mailboxes of all workers.
pub(super) struct Posts(Box<[Mailbox]>);

/// What is for one worker: each room once, however much it has to deliver.
#[derive(Default)]
struct Mailbox(Mutex<State>);

#[derive(Default)]
struct State {
    rooms: Vec<Arc<Room>>,
    reader: Option<Waker>,
    closed: bool,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Posts {
    pub(super) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Mailbox::default()).collect())
    }

    pub(super) fn len(&self) -> u16 {
        self.0.len() as u16
    }

    /// Puts a room into a worker's mailbox, and wakes it if it waits. False if nobody reads it any more.
    pub(super) fn put(&self, worker: u16, room: &Arc<Room>) -> bool {
        let Some(mailbox) = self.0.get(usize::from(worker)) else {
            return false;
        };
        let mut state = mailbox.lock();
        if state.closed {
            return false;
        }
        state.rooms.push(Arc::clone(room));
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
        true
    }

    /// Appends what is in a worker's mailbox. Waits until there is something, unless `rooms` has some
    /// already.
    pub(super) async fn take(&self, worker: u16, rooms: &mut impl Extend<Arc<Room>>) {
        let mailbox = &self.0[usize::from(worker)];
        poll_fn(|cx| {
            let mut state = mailbox.lock();
            if state.rooms.is_empty() {
                state.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            rooms.extend(state.rooms.drain(..));
            Poll::Ready(())
        })
        .await;
    }

    /// Appends what is in a worker's mailbox now.
    pub(super) fn take_now(&self, worker: u16, rooms: &mut impl Extend<Arc<Room>>) {
        rooms.extend(self.0[usize::from(worker)].lock().rooms.drain(..));
    }

    /// Nobody reads it any more. Returns what is in it.
    pub(super) fn close(&self, worker: u16) -> Vec<Arc<Room>> {
        let mut state = self.0[usize::from(worker)].lock();
        state.closed = true;
        state.reader = None;
        std::mem::take(&mut state.rooms)
    }
}
