//! A worker: one thread with its own tasks, readiness, deadlines and buffers.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use smol::{LocalExecutor, Task};

use super::clock::{Clock, Time};
use super::pool::Pool;
use super::reactor::{Presumed, Reactor, Source};
use super::unpark::Unpark;
use super::wheel::{Key, Wheel};

/// Tasks polled before the worker looks at its sockets and clocks again. Found by measuring the
/// echo of 500 connections with 16 messages in flight: from 64 on, more made no difference.
const TASKS_PER_TURN: usize = 256;

/// Added to every sleep, so that the coarse clock has passed the deadline when the worker wakes
/// and it need not sleep a second time for the rest. Linux's coarsest tick is 10 ms.
const OVERSLEEP: Duration = Duration::from_millis(10);

/// What one worker thread owns. Tasks hold it by `Rc`; it never leaves its thread.
pub(crate) struct Worker {
    index: usize,
    executor: LocalExecutor<'static>,
    /// The tasks that end with the worker. A task takes its own entry out when it is done.
    tasks: RefCell<Slab<Task<()>>>,
    reactor: Reactor,
    wheel: RefCell<Wheel>,
    pool: Pool,
    clock: Clock,
    /// The coarse time at which this turn began: what every deadline is measured with.
    now: Cell<Time>,
    unpark: Arc<Unpark>,
    /// Tasks that have had their turn and have more to do.
    yielded: RefCell<Vec<Waker>>,
}

impl Worker {
    pub(crate) fn new(index: usize, clock: Clock) -> io::Result<Rc<Self>> {
        let unpark = Arc::new(Unpark::new()?);
        Ok(Rc::new(Self {
            index,
            executor: LocalExecutor::new(),
            tasks: RefCell::default(),
            reactor: Reactor::new(unpark.fd())?,
            wheel: RefCell::new(Wheel::new()),
            pool: Pool::default(),
            now: Cell::new(clock.coarse()),
            clock,
            unpark,
            yielded: RefCell::default(),
        }))
    }

    /// The number of this worker, counted from zero.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// The time at which this turn began, a few milliseconds coarse.
    pub(crate) fn now(&self) -> Time {
        self.now.get()
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Runs a future on this worker until it is done or the worker ends, whichever is first.
    ///
    /// The future is made with its [`TaskEntry`], which it must own: a wrapper around the future
    /// that owned it instead would be a second copy of the future in every session's memory.
    pub(crate) fn spawn<F>(self: &Rc<Self>, make: impl FnOnce(TaskEntry) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        let key = self.tasks.borrow().vacant_key();
        let future = make(TaskEntry { worker: Rc::clone(self), key });
        // Nothing of the future runs before the worker's next turn.
        // The executor catches a panic, which thus ends its own task only.
        let task = self.executor.spawn(future);
        let inserted = self.tasks.borrow_mut().insert(task);
        debug_assert_eq!(inserted, key);
    }

    /// Tasks that have not ended.
    pub(crate) fn tasks(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Puts a socket under this worker's epoll; dropping the registration closes the socket.
    pub(crate) fn register(
        self: &Rc<Self>,
        fd: OwnedFd,
        presumed: Presumed,
    ) -> io::Result<Registered> {
        let (key, source) = self.reactor.register(fd, presumed)?;
        Ok(Registered { worker: Rc::clone(self), source, key: key as u32 })
    }

    /// An entry of the wheel, not set.
    pub(crate) fn timer(self: &Rc<Self>) -> Timer {
        Timer { worker: Rc::clone(self), key: self.wheel.borrow_mut().insert() }
    }

    /// Wakes the task after the worker has looked at its sockets and clocks again. Waking it at once
    /// would let it run again before that.
    pub(crate) fn yield_turn(&self, waker: &Waker) {
        self.yielded.borrow_mut().push(waker.clone());
    }

    /// Wakes every task that has a timer, set or not, which every connection does. How a change of
    /// the server's phase, which the worker hears of once, reaches them all.
    pub(crate) fn wake_all(&self) {
        let wakers = self.wheel.borrow().wakers();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until `deadline` has passed by this worker's clock.
    pub(crate) async fn sleep_until(self: &Rc<Self>, deadline: Time) {
        let timer = self.timer();
        poll_fn(|cx| {
            if timer.worker.now() >= deadline {
                return Poll::Ready(());
            }
            timer.set(deadline, cx.waker());
            Poll::Pending
        })
        .await;
    }

    /// Runs tasks until `done` says so between two turns; then drops those that are left. `done` is
    /// given a context that wakes the worker.
    ///
    /// # Errors
    ///
    /// epoll failed in a way that cannot be waited out; all tasks have been dropped.
    pub(crate) fn run(
        self: &Rc<Self>,
        done: impl FnMut(&mut Context<'_>) -> bool,
    ) -> io::Result<()> {
        let outcome = self.turns(done);
        // Dropping a task runs its guards, which may drop further tasks' sources, never spawn.
        let left: Vec<_> = self.tasks.borrow_mut().drain().collect();
        drop(left);
        // What a dropped future holds is the application's, and may panic in turn.
        while std::panic::catch_unwind(AssertUnwindSafe(|| self.executor.try_tick()))
            .unwrap_or(true)
        {}
        outcome
    }

    fn turns(&self, mut done: impl FnMut(&mut Context<'_>) -> bool) -> io::Result<()> {
        let waker = Waker::from(Arc::clone(&self.unpark));
        let mut cx = Context::from_waker(&waker);
        // A `LocalExecutor` tells about a task that another thread has woken only whoever has
        // polled its `tick`. This one is polled before every sleep; `ticked` says that it found a
        // task after all, and ran it.
        let ticked = Cell::new(false);
        let mut tick = pin!(async {
            loop {
                self.executor.tick().await;
                ticked.set(true);
                pause().await;
            }
        });
        let mut fired = Vec::new();
        loop {
            let mut budget = TASKS_PER_TURN;
            while budget > 0 && self.executor.try_tick() {
                budget -= 1;
            }
            // From here on a wake-up is either seen below or ends the sleep, also one for `done`.
            self.unpark.about_to_sleep();
            if done(&mut cx) {
                return Ok(());
            }
            let mut timeout = Some(Duration::ZERO);
            if budget > 0 && self.yielded.borrow().is_empty() {
                ticked.set(false);
                let polled: Poll<()> = tick.as_mut().poll(&mut cx);
                debug_assert!(polled.is_pending());
                if !ticked.get() {
                    timeout = self.sleep();
                }
            }
            self.reactor.wait(timeout)?;
            // Before anything is woken: what this thread wakes itself needs no eventfd.
            self.unpark.awake();
            self.reactor.dispatch();
            self.now.set(self.clock.coarse());
            self.wheel.borrow_mut().advance(self.now(), &mut fired);
            fired.append(&mut self.yielded.borrow_mut());
            fired.drain(..).for_each(Waker::wake);
        }
    }

    /// How long to wait for events: until the wheel's next slot, or for ever.
    fn sleep(&self) -> Option<Duration> {
        let next = self.wheel.borrow().next()?;
        Some(next.since(self.clock.coarse()) + OVERSLEEP)
    }
}

/// Pending once, without asking to be woken: the worker polls again by itself.
async fn pause() {
    let mut paused = false;
    poll_fn(|_| match std::mem::replace(&mut paused, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

/// A task's place in its worker. When the task's future is dropped with it, the task has ended,
/// however that came.
pub(crate) struct TaskEntry {
    worker: Rc<Worker>,
    key: usize,
}

impl TaskEntry {
    /// The worker that the task lives on.
    pub(crate) fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }
}

impl Drop for TaskEntry {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!("worker {}: a task panicked; the others go on", self.worker.index);
        }
        let task = self.worker.tasks.borrow_mut().try_remove(self.key);
        // Not dropped: that would cancel the very task that is about to finish.
        if let Some(task) = task {
            task.detach();
        }
    }
}

/// A socket under a worker's epoll.
pub(crate) struct Registered {
    worker: Rc<Worker>,
    source: Rc<Source>,
    key: u32,
}

impl Registered {
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    pub(crate) fn not_writable(&self) -> io::Result<()> {
        self.source.not_writable(&self.worker.reactor, self.key as usize)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.worker.reactor.forget(self.key as usize);
    }
}

/// An entry of the worker's wheel; dropping it clears it.
pub(crate) struct Timer {
    worker: Rc<Worker>,
    key: Key,
}

impl Timer {
    /// Wakes `waker` once after `deadline`; replaces what was set. `Time::NEVER` clears it.
    pub(crate) fn set(&self, deadline: Time, waker: &Waker) {
        self.worker.wheel.borrow_mut().set(self.key, deadline, waker);
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.worker.wheel.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn run_to_the_end(worker: &Rc<Worker>) {
        worker.run(|_| worker.tasks() == 0).unwrap();
    }

    #[test]
    fn a_worker_runs_its_tasks_and_ends_without_any() {
        let worker = Worker::new(0, Clock::kernel()).unwrap();
        let sum = Rc::new(Cell::new(0));
        for i in 1..=100 {
            let sum = Rc::clone(&sum);
            worker.spawn(|entry| async move {
                let _entry = entry;
                for _ in 0..i {
                    smol::future::yield_now().await;
                    sum.set(sum.get() + 1);
                }
            });
        }
        run_to_the_end(&worker);
        assert_eq!(sum.get(), 5050);
    }

    #[test]
    fn a_sleeping_worker_is_woken_by_another_thread() {
        let worker = Worker::new(0, Clock::kernel()).unwrap();
        let (ask, asked) = mpsc::channel();
        let (answer, answered) = smol::channel::bounded::<u32>(1);
        // Ten thousand times, so that the wake-up meets every moment of the worker's turn.
        let echo = std::thread::spawn(move || {
            for n in asked {
                answer.send_blocking(n).unwrap();
            }
        });
        worker.spawn(|entry| async move {
            let _entry = entry;
            for n in 0..10_000 {
                ask.send(n).unwrap();
                assert_eq!(answered.recv().await, Ok(n));
            }
        });
        run_to_the_end(&worker);
        echo.join().unwrap();
    }

    #[test]
    fn timers_of_the_smol_family_and_the_blocking_pool_work_on_a_worker() {
        let worker = Worker::new(0, Clock::kernel()).unwrap();
        let done = Rc::new(Cell::new(false));
        let seen = Rc::clone(&done);
        worker.spawn(|entry| async move {
            let _entry = entry;
            smol::Timer::after(Duration::from_millis(1)).await;
            assert_eq!(smol::unblock(|| 6 * 7).await, 42);
            seen.set(true);
        });
        run_to_the_end(&worker);
        assert!(done.get());
    }

    #[test]
    fn a_task_that_never_ends_is_dropped_with_the_worker() {
        struct Dropped(Rc<Cell<bool>>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let worker = Worker::new(0, Clock::kernel()).unwrap();
        let dropped = Rc::new(Cell::new(false));
        let guard = Dropped(Rc::clone(&dropped));
        let turns = Cell::new(0);
        worker.spawn(|entry| async move {
            let _entry = entry;
            let _guard = guard;
            loop {
                smol::future::yield_now().await;
            }
        });
        worker
            .run(|_| {
                turns.set(turns.get() + 1);
                turns.get() > 10
            })
            .unwrap();
        assert!(dropped.get());
        assert_eq!(worker.tasks(), 0);
        assert_eq!(Rc::strong_count(&worker), 1);
    }

    #[test]
    fn a_deadline_wakes_the_worker_and_nothing_is_left_behind() {
        let worker = Worker::new(0, Clock::kernel()).unwrap();
        let start = worker.clock().precise();
        let sleeper = Rc::clone(&worker);
        worker.spawn(|entry| async move {
            let _entry = entry;
            sleeper.sleep_until(sleeper.now() + Duration::from_millis(120)).await;
        });
        run_to_the_end(&worker);
        // Never early; the coarse clock it began with may lag by one tick of the kernel.
        assert!(worker.clock().precise().since(start) >= Duration::from_millis(100));
        assert_eq!(worker.wheel.borrow().next(), None);
        assert_eq!(worker.reactor.len(), 0);
    }

    #[test]
    fn an_hour_of_virtual_time_takes_no_hour() {
        let clock = Clock::virtual_at_zero();
        let worker = Worker::new(0, clock.clone()).unwrap();
        let hour = Duration::from_secs(3600);
        let woken = Rc::new(Cell::new(Time::NEVER));
        let seen = Rc::clone(&woken);
        worker.spawn(|entry| async move {
            let worker = entry.worker();
            worker.sleep_until(worker.now() + hour).await;
            seen.set(worker.now());
        });
        worker.spawn(|entry| async move {
            let _entry = entry;
            // After the sleeper has begun to sleep.
            smol::future::yield_now().await;
            clock.advance(2 * hour);
        });
        run_to_the_end(&worker);
        assert_eq!(woken.get(), Time::default() + 2 * hour);
    }
}
