//! The tasks of one worker: their futures in a slab, and the queue of those that are to run.
//!
//! What wakes most tasks is the worker itself, by its sockets and its clock, and that is a number in
//! a queue: no atomic operation, no waker to clone. Wakers are for everyone else. They may be
//! anywhere, on any thread, so they go through a queue of their own.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use concurrent_queue::ConcurrentQueue;
use slab::Slab;

use super::unpark::Unpark;

/// A task of this worker, or none. The number is used again when the task has ended; whoever wakes
/// its successor by mistake costs that a look at what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskId(u32);

impl TaskId {
    /// No task.
    pub(crate) const NONE: Self = Self(u32::MAX);

    pub(crate) const fn number(self) -> u32 {
        self.0
    }

    pub(crate) const fn from_number(number: u32) -> Self {
        Self(number)
    }
}

pub(crate) struct Tasks {
    slots: RefCell<Slab<Slot>>,
    /// In the order in which they were woken.
    ready: RefCell<VecDeque<TaskId>>,
    current: Cell<TaskId>,
    /// Tasks spawned so far.
    spawned: Cell<u32>,
    remote: Arc<Remote>,
}

struct Slot {
    /// `None` while it is being polled.
    task: Option<Task>,
    /// Tells a task from an earlier one with the same number.
    generation: u32,
    /// It is in `ready`.
    queued: bool,
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Waker,
}

/// What other threads see of the tasks. A waker that outlives its worker keeps this, an eventfd
/// included.
pub(crate) struct Remote {
    woken: ConcurrentQueue<Arc<Handle>>,
    pub(crate) unpark: Unpark,
}

/// What a task's waker points to.
struct Handle {
    remote: Arc<Remote>,
    key: u32,
    generation: u32,
    /// It is in `woken`.
    queued: AtomicBool,
}

impl Wake for Handle {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // What was written before a wake-up that finds it queued is seen by the poll to come: the
        // worker takes the flag back by the same kind of operation.
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        // It fails when the worker has ended.
        if self.remote.woken.push(Arc::clone(self)).is_ok() {
            self.remote.unpark.unpark();
        }
    }
}

/// Wakes the worker itself, and no task.
impl Wake for Remote {
    fn wake(self: Arc<Self>) {
        self.unpark.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.unpark.unpark();
    }
}

impl Tasks {
    pub(crate) fn new() -> io::Result<Self> {
        let remote = Remote { woken: ConcurrentQueue::unbounded(), unpark: Unpark::new()? };
        Ok(Self {
            slots: RefCell::default(),
            ready: RefCell::default(),
            current: Cell::new(TaskId::NONE),
            spawned: Cell::new(0),
            remote: Arc::new(remote),
        })
    }

    pub(crate) fn remote(&self) -> &Arc<Remote> {
        &self.remote
    }

    /// Adds a task. Nothing of it runs before the worker comes to it.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let generation = self.spawned.get().wrapping_add(1);
        self.spawned.set(generation);
        let mut slots = self.slots.borrow_mut();
        let entry = slots.vacant_entry();
        // More than four billion tasks do not fit in memory.
        let key = entry.key() as u32;
        let remote = Arc::clone(&self.remote);
        let handle = Handle { remote, key, generation, queued: AtomicBool::new(false) };
        let task = Task { future: Box::pin(future), waker: Waker::from(Arc::new(handle)) };
        entry.insert(Slot { task: Some(task), generation, queued: true });
        self.ready.borrow_mut().push_back(TaskId(key));
    }

    /// Tasks that have not ended.
    pub(crate) fn len(&self) -> usize {
        self.slots.borrow().len()
    }

    /// The task that is being polled.
    pub(crate) fn current(&self) -> TaskId {
        self.current.get()
    }

    /// Has a task run, once however often it is woken before.
    #[inline]
    pub(crate) fn wake(&self, id: TaskId) {
        if let Some(slot) = self.slots.borrow_mut().get_mut(id.0 as usize) {
            if !std::mem::replace(&mut slot.queued, true) {
                self.ready.borrow_mut().push_back(id);
            }
        }
    }

    /// The same, before those that are to run already.
    #[cfg(feature = "tls")]
    pub(crate) fn wake_next(&self, id: TaskId) {
        if let Some(slot) = self.slots.borrow_mut().get_mut(id.0 as usize) {
            if !std::mem::replace(&mut slot.queued, true) {
                self.ready.borrow_mut().push_front(id);
            }
        }
    }

    /// Has every task run.
    pub(crate) fn wake_all(&self) {
        let mut ready = self.ready.borrow_mut();
        for (key, slot) in &mut *self.slots.borrow_mut() {
            if !std::mem::replace(&mut slot.queued, true) {
                ready.push_back(TaskId(key as u32));
            }
        }
    }

    /// Whether no task is to run.
    pub(crate) fn is_idle(&self) -> bool {
        self.ready.borrow().is_empty() && self.remote.woken.is_empty()
    }

    /// Polls tasks that are to run, at most `budget` times.
    pub(crate) fn run(&self, budget: usize) {
        // Those that wakers have woken stand in one line with the others, so neither kind can
        // starve the other.
        self.collect();
        for _ in 0..budget {
            let mut next = self.ready.borrow_mut().pop_front();
            if next.is_none() {
                self.collect();
                next = self.ready.borrow_mut().pop_front();
            }
            match next {
                Some(id) => self.poll(id),
                None => return,
            }
        }
    }

    /// Puts those that wakers have woken into the queue.
    #[inline]
    fn collect(&self) {
        if !self.remote.woken.is_empty() {
            self.collect_some();
        }
    }

    fn collect_some(&self) {
        // Not more than there are now: other threads may put in as fast as this one takes out.
        for _ in 0..self.remote.woken.len() {
            let Ok(handle) = self.remote.woken.pop() else {
                return;
            };
            // Before the task is polled, so that a wake-up from now on is not lost.
            handle.queued.swap(false, Ordering::AcqRel);
            let generation = self.slots.borrow().get(handle.key as usize).map(|it| it.generation);
            if generation == Some(handle.generation) {
                self.wake(TaskId(handle.key));
            }
        }
    }

    fn poll(&self, id: TaskId) {
        let task = match self.slots.borrow_mut().get_mut(id.0 as usize) {
            None => return,
            Some(slot) => {
                slot.queued = false;
                slot.task.take()
            }
        };
        let Some(mut task) = task else {
            return;
        };
        self.current.set(id);
        let mut cx = Context::from_waker(&task.waker);
        let polled = catch_unwind(AssertUnwindSafe(|| task.future.as_mut().poll(&mut cx)));
        self.current.set(TaskId::NONE);
        match polled {
            Ok(Poll::Pending) => {
                if let Some(slot) = self.slots.borrow_mut().get_mut(id.0 as usize) {
                    slot.task = Some(task);
                }
            }
            Ok(Poll::Ready(())) => self.ended(id, task),
            Err(panic) => {
                report(panic);
                self.ended(id, task);
            }
        }
    }

    #[cold]
    fn ended(&self, id: TaskId, task: Task) {
        discard(task);
        // Only now: whoever counts the tasks takes one that is not counted to be gone.
        let slot = self.slots.borrow_mut().try_remove(id.0 as usize);
        debug_assert!(slot.is_some_and(|slot| slot.task.is_none()));
    }

    /// Drops every task. Nothing can be woken any more.
    pub(crate) fn clear(&self) {
        self.remote.woken.close();
        while self.remote.woken.pop().is_ok() {}
        // What a task drops may spawn another one.
        while self.len() > 0 {
            let slots = std::mem::take(&mut *self.slots.borrow_mut());
            slots.into_iter().filter_map(|(_, slot)| slot.task).for_each(discard);
        }
        self.ready.borrow_mut().clear();
    }
}

/// What a future holds is the application's, and may panic when it is dropped.
fn discard(task: Task) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(task))) {
        report(panic);
    }
}

/// Panics that have been reported on this thread: a test whose assertion is in a task has to ask.
#[cfg(test)]
pub(super) mod reported {
    use std::cell::Cell;

    thread_local! {
        pub(in crate::executor) static PANICS: Cell<usize> = const { Cell::new(0) };
    }
}

fn report(panic: Box<dyn Any + Send>) {
    #[cfg(test)]
    reported::PANICS.set(reported::PANICS.get() + 1);
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a worker");
    log::error!("{name}: a task panicked; the others go on: {}", panic_text(&*panic));
    // It is the application's, too.
    if catch_unwind(AssertUnwindSafe(|| drop(panic))).is_err() {
        log::error!("{name}: what a task panicked with panicked when it was dropped");
    }
}

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(no text)").to_owned()
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::rc::Rc;

    use super::*;

    /// A task that counts its polls, keeps its waker where we find it, and ends when told to.
    #[derive(Clone, Default)]
    struct Probe {
        polls: Rc<Cell<usize>>,
        waker: Rc<RefCell<Option<Waker>>>,
        over: Rc<Cell<bool>>,
    }

    impl Probe {
        fn spawn(&self, tasks: &Tasks) {
            let this = self.clone();
            tasks.spawn(poll_fn(move |cx| {
                this.polls.set(this.polls.get() + 1);
                *this.waker.borrow_mut() = Some(cx.waker().clone());
                if this.over.get() { Poll::Ready(()) } else { Poll::Pending }
            }));
        }

        fn waker(&self) -> Waker {
            self.waker.borrow().clone().unwrap()
        }
    }

    #[test]
    fn however_often_it_is_woken_a_task_runs_once() {
        let tasks = Tasks::new().unwrap();
        let probe = Probe::default();
        probe.spawn(&tasks);
        assert!(!tasks.is_idle());
        tasks.run(100);
        assert!(tasks.is_idle());
        assert_eq!(probe.polls.get(), 1);
        for _ in 0..3 {
            tasks.wake(TaskId(0));
            probe.waker().wake();
            tasks.wake_all();
        }
        tasks.run(100);
        assert_eq!(probe.polls.get(), 2);
    }

    #[test]
    fn the_waker_of_an_ended_task_does_not_wake_its_successor() {
        let tasks = Tasks::new().unwrap();
        let first = Probe::default();
        first.over.set(true);
        first.spawn(&tasks);
        tasks.run(100);
        assert_eq!(tasks.len(), 0);
        let second = Probe::default();
        second.spawn(&tasks);
        tasks.run(100);
        first.waker().wake();
        tasks.run(100);
        assert_eq!(second.polls.get(), 1);
        second.waker().wake();
        tasks.run(100);
        assert_eq!(second.polls.get(), 2);
    }

    #[test]
    fn a_task_that_always_has_more_to_do_leaves_the_others_their_turn() {
        let tasks = Tasks::new().unwrap();
        for _ in 0..2 {
            tasks.spawn(poll_fn(|cx| {
                cx.waker().wake_by_ref();
                Poll::Pending
            }));
        }
        let probe = Probe::default();
        probe.spawn(&tasks);
        tasks.run(3);
        assert_eq!(probe.polls.get(), 1);
        // Those that are always ready by themselves, and one that a waker has woken.
        probe.waker().wake();
        for _ in 0..3 {
            tasks.wake(TaskId(0));
            tasks.wake(TaskId(1));
            tasks.run(2);
        }
        assert_eq!(probe.polls.get(), 2);
    }

    #[test]
    fn a_panic_ends_its_own_task_only() {
        struct PanicsWhenDropped;
        impl Drop for PanicsWhenDropped {
            fn drop(&mut self) {
                panic!("when dropped");
            }
        }
        let tasks = Tasks::new().unwrap();
        let probe = Probe::default();
        tasks.spawn(async { panic!("when polled") });
        tasks.spawn(async { std::panic::panic_any(PanicsWhenDropped) });
        tasks.spawn(async {
            let _guard = PanicsWhenDropped;
        });
        tasks.spawn(async {
            let _guard = PanicsWhenDropped;
            pending::<()>().await;
        });
        probe.spawn(&tasks);
        tasks.run(100);
        assert_eq!((probe.polls.get(), tasks.len()), (1, 2));
        tasks.clear();
        assert_eq!(tasks.len(), 0);
        assert_eq!(Rc::strong_count(&probe.polls), 1);
    }

    #[test]
    fn a_waker_may_outlive_the_tasks() {
        let tasks = Tasks::new().unwrap();
        let probe = Probe::default();
        probe.spawn(&tasks);
        tasks.run(1);
        let remote = Arc::downgrade(tasks.remote());
        probe.waker().wake();
        tasks.clear();
        drop(tasks);
        probe.waker().wake();
        assert!(remote.upgrade().is_some(), "the waker holds it");
        drop(probe);
        assert!(remote.upgrade().is_none(), "and nothing else does");
    }
}
