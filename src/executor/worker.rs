//! A worker: one thread with its own tasks, readiness, deadlines and buffers.

use std::cell::{Cell, RefCell};
#[cfg(feature = "tls")]
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::clock::{Clock, Time};
use super::pool::Pool;
use super::reactor::{Presumed, Reactor, Source};
use super::tasks::{TaskId, Tasks};
use super::wheel::{Key, Wheel};

/// Tasks polled before the worker looks at its sockets and clocks again. Found by measuring the
/// echo of 500 connections with 16 messages in flight: from 64 on, more made no difference.
const TASKS_PER_TURN: usize = 256;

/// Added to every sleep, so that the coarse clock has passed the deadline when the worker wakes
/// and it need not sleep a second time for the rest. Linux's coarsest tick is 10 ms.
const OVERSLEEP: Duration = Duration::from_millis(10);

/// What may be computed in one turn before what can wait does wait, so that a storm of handshakes
/// costs an open session little more than this for each of its messages. It is one signature with RSA
/// of 2 048 bits (0.6 ms), or some ten handshakes with ECDSA.
#[cfg(feature = "tls")]
const COMPUTATION_PER_TURN: Duration = Duration::from_millis(1);

/// What one worker thread owns. Tasks hold it by `Rc`; it never leaves its thread.
pub(crate) struct Worker {
    index: usize,
    tasks: Tasks,
    reactor: Reactor,
    wheel: RefCell<Wheel>,
    pool: Pool,
    clock: Clock,
    /// The coarse time at which this turn began: what every deadline is measured with.
    now: Cell<Time>,
    /// Counts turns.
    turn: Cell<u32>,
    /// Tasks that have had their turn and have more to do.
    yielded: RefCell<Vec<TaskId>>,
    /// What [`compute`](Self::compute) has taken of this turn.
    #[cfg(feature = "tls")]
    computed: Cell<Duration>,
    /// Who waits for that, in the order in which they came. Only the first is woken, so that those
    /// behind cost the others nothing.
    #[cfg(feature = "tls")]
    queue: RefCell<BTreeMap<u64, TaskId>>,
    /// Places in the queue taken so far.
    #[cfg(feature = "tls")]
    queued: Cell<u64>,
}

impl Worker {
    pub(crate) fn new(index: usize, clock: Clock) -> io::Result<Rc<Self>> {
        let tasks = Tasks::new()?;
        Ok(Rc::new(Self {
            index,
            reactor: Reactor::new(tasks.remote().unpark.fd())?,
            tasks,
            wheel: RefCell::new(Wheel::new()),
            pool: Pool::default(),
            now: Cell::new(clock.coarse()),
            clock,
            turn: Cell::default(),
            yielded: RefCell::default(),
            #[cfg(feature = "tls")]
            computed: Cell::default(),
            #[cfg(feature = "tls")]
            queue: RefCell::default(),
            #[cfg(feature = "tls")]
            queued: Cell::default(),
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

    /// Which turn this is: for what is to be done so often in one turn.
    #[cfg(feature = "tls")]
    pub(crate) fn turn(&self) -> u32 {
        self.turn.get()
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Runs a future on this worker until it is done or the worker ends, whichever is first.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.tasks.spawn(future);
    }

    /// Tasks that have not ended.
    pub(crate) fn tasks(&self) -> usize {
        self.tasks.len()
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

    /// The task that is running.
    pub(crate) fn current(&self) -> TaskId {
        self.tasks.current()
    }

    /// Has a task run, behind those that are to run already; nothing happens if there is none.
    pub(crate) fn wake(&self, task: TaskId) {
        self.tasks.wake(task);
    }

    /// Wakes the task that runs after the worker has looked at its sockets and clocks again. Waking
    /// it at once would let it run again before that.
    pub(crate) fn yield_turn(&self) {
        self.yielded.borrow_mut().push(self.tasks.current());
    }

    /// Whether something that takes long, and that nobody suffers from if it comes later, may be
    /// computed now. Whoever may not has got a `place` in the queue, and is woken when it may; to drop
    /// the place is to leave the queue.
    #[cfg(feature = "tls")]
    pub(crate) fn may_compute(self: &Rc<Self>, place: &mut Option<Place>) -> bool {
        let first = self.queue.borrow().first_key_value().map(|(number, _)| *number);
        let its_turn = first == place.as_ref().map(|place| place.number);
        if its_turn && self.computed.get() < COMPUTATION_PER_TURN {
            *place = None;
            return true;
        }
        if place.is_none() {
            let number = self.queued.get();
            self.queued.set(number + 1);
            self.queue.borrow_mut().insert(number, self.tasks.current());
            *place = Some(Place { worker: Rc::clone(self), number });
        }
        false
    }

    /// Computes it, and counts the time it takes.
    #[cfg(feature = "tls")]
    pub(crate) fn compute<T>(&self, computation: impl FnOnce() -> T) -> T {
        let began = self.clock.precise();
        let result = computation();
        self.computed.set(self.computed.get() + self.clock.precise().since(began));
        if self.computed.get() < COMPUTATION_PER_TURN {
            self.call_next();
        }
        result
    }

    /// Wakes the first of the queue.
    #[cfg(feature = "tls")]
    fn call_next(&self) {
        if let Some((_, task)) = self.queue.borrow().first_key_value() {
            self.tasks.wake_next(*task);
        }
    }

    /// Wakes every task. How a change of the server's phase, which the worker hears of once, reaches
    /// them all.
    pub(crate) fn wake_all(&self) {
        self.tasks.wake_all();
    }

    /// Waits until `deadline` has passed by this worker's clock.
    pub(crate) async fn sleep_until(self: &Rc<Self>, deadline: Time) {
        let timer = self.timer();
        poll_fn(|_| {
            if timer.worker.now() >= deadline {
                return Poll::Ready(());
            }
            timer.set(deadline);
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
        self.tasks.clear();
        outcome
    }

    /// Runs all tasks to their ends. A panic in one of them fails the test.
    #[cfg(test)]
    pub(crate) fn run_to_the_end(self: &Rc<Self>) {
        use super::tasks::reported::PANICS;
        let before = PANICS.get();
        self.run(|_| self.tasks() == 0).unwrap();
        assert_eq!(PANICS.get(), before, "a task has panicked");
    }

    fn turns(&self, mut done: impl FnMut(&mut Context<'_>) -> bool) -> io::Result<()> {
        let remote = self.tasks.remote();
        let waker = Waker::from(Arc::clone(remote));
        let mut cx = Context::from_waker(&waker);
        let mut fired = Vec::new();
        loop {
            self.tasks.run(TASKS_PER_TURN);
            // From here on a wake-up is either seen below or ends the sleep, also one for `done`.
            remote.unpark.about_to_sleep();
            if done(&mut cx) {
                return Ok(());
            }
            let idle = self.yielded.borrow().is_empty() && self.tasks.is_idle();
            #[cfg(feature = "tls")]
            let idle = idle && self.queue.borrow().is_empty();
            self.reactor.wait(if idle { self.sleep() } else { Some(Duration::ZERO) })?;
            // Before anything is woken: what this thread wakes itself needs no eventfd.
            remote.unpark.awake();
            self.reactor.dispatch(&self.tasks);
            self.now.set(self.clock.coarse());
            #[cfg(feature = "tls")]
            {
                self.computed.set(Duration::ZERO);
                self.call_next();
            }
            self.wheel.borrow_mut().advance(self.now(), &mut fired);
            // Those that wait for the same moment, for a rate that they share for example, are not always
            // woken in the same order: nobody is always the last.
            self.turn.set(self.turn.get().wrapping_add(1));
            if fired.len() > 1 {
                // Scattered: numbers that follow each other would keep step with those who wait.
                let scattered = self.turn.get().wrapping_mul(0x9E37_79B1) >> 16;
                let first = scattered as usize % fired.len();
                fired.rotate_left(first);
            }
            fired.append(&mut self.yielded.borrow_mut());
            fired.drain(..).for_each(|task| self.tasks.wake(task));
        }
    }

    /// How long to wait for events: until the wheel's next slot, or for ever.
    fn sleep(&self) -> Option<Duration> {
        let next = self.wheel.borrow().next()?;
        Some(next.since(self.clock.coarse()) + OVERSLEEP)
    }
}

/// A place in the queue of those who want to compute.
#[cfg(feature = "tls")]
pub(crate) struct Place {
    worker: Rc<Worker>,
    number: u64,
}

#[cfg(feature = "tls")]
impl Drop for Place {
    fn drop(&mut self) {
        self.worker.queue.borrow_mut().remove(&self.number);
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

    /// The task that runs is woken by the next edge; the last one that asks wins.
    pub(crate) fn wait(&self) {
        self.source.wait_by(self.worker.tasks.current());
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
    /// Wakes the task that runs once after `deadline`; replaces what was set. `Time::NEVER` clears
    /// it. Outside of any task it only ends the worker's sleep.
    pub(crate) fn set(&self, deadline: Time) {
        let task = self.worker.tasks.current();
        self.worker.wheel.borrow_mut().set(self.key, deadline, task);
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

    #[test]
    fn a_worker_runs_its_tasks_and_ends_without_any() {
        let worker = Worker::new(0, Clock::kernel()).unwrap();
        let sum = Rc::new(Cell::new(0));
        for i in 1..=100 {
            let sum = Rc::clone(&sum);
            worker.spawn(async move {
                for _ in 0..i {
                    smol::future::yield_now().await;
                    sum.set(sum.get() + 1);
                }
            });
        }
        worker.run_to_the_end();
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
        worker.spawn(async move {
            for n in 0..10_000 {
                ask.send(n).unwrap();
                assert_eq!(answered.recv().await, Ok(n));
            }
        });
        worker.run_to_the_end();
        echo.join().unwrap();
    }

    /// Those who waited stood in the line of the tasks, 256 to a turn, and each turn had a new budget: so
    /// whoever came behind a thousand of them waited for many budgets.
    #[cfg(feature = "tls")]
    #[test]
    fn a_storm_of_computations_costs_the_others_one_budget_a_turn_and_is_served_in_order() {
        const STORM: usize = 1000;
        let worker = Worker::new(0, Clock::kernel()).unwrap();
        let order = Rc::new(RefCell::new(Vec::new()));
        for number in 0..STORM {
            let (home, order) = (Rc::clone(&worker), Rc::clone(&order));
            let mut place = None;
            worker.spawn(poll_fn(move |_| {
                if !home.may_compute(&mut place) {
                    return Poll::Pending;
                }
                // A whole turn's.
                home.compute(|| {
                    let began = home.clock().precise();
                    while home.clock().precise().since(began) < COMPUTATION_PER_TURN {}
                });
                order.borrow_mut().push(number);
                Poll::Ready(())
            }));
        }
        let (home, seen) = (Rc::clone(&worker), Rc::clone(&order));
        let mut polls = Vec::new();
        worker.spawn(poll_fn(move |_| {
            polls.push(seen.borrow().len());
            if polls.len() < 50 {
                home.yield_turn();
                return Poll::Pending;
            }
            // The first is behind the storm itself, which stands in the line once.
            for pair in polls[1..].windows(2) {
                assert!(pair[1] - pair[0] <= 1, "computations between two turns: {pair:?}");
            }
            Poll::Ready(())
        }));
        worker.run_to_the_end();
        assert_eq!(*order.borrow(), (0..STORM).collect::<Vec<_>>());
    }

    /// Those who wait to compute stood behind all that were ready, once for each computation.
    #[cfg(feature = "tls")]
    #[test]
    fn computations_get_their_budget_also_where_many_sessions_are_busy() {
        const BUSY: usize = 4096;
        const WAITING: u32 = 100;
        let worker = Worker::new(0, Clock::kernel()).unwrap();
        let left = Rc::new(Cell::new(WAITING));
        let began = worker.turn();
        for _ in 0..BUSY {
            let (home, left) = (Rc::clone(&worker), Rc::clone(&left));
            worker.spawn(poll_fn(move |_| {
                if left.get() == 0 {
                    return Poll::Ready(());
                }
                home.yield_turn();
                Poll::Pending
            }));
        }
        for _ in 0..WAITING {
            let (home, left) = (Rc::clone(&worker), Rc::clone(&left));
            let mut place = None;
            worker.spawn(poll_fn(move |_| {
                if !home.may_compute(&mut place) {
                    return Poll::Pending;
                }
                home.compute(|| ());
                left.set(left.get() - 1);
                Poll::Ready(())
            }));
        }
        worker.run_to_the_end();
        let turns = worker.turn() - began;
        // One pass of the line is 17 turns. It was one for each of them.
        assert!(turns < 17 * WAITING / 4, "{turns} turns");
    }

    /// Whoever waits no longer, because its deadline has come for example, is in nobody's way.
    #[cfg(feature = "tls")]
    #[test]
    fn whoever_leaves_the_queue_lets_the_next_compute() {
        let worker = Worker::new(0, Clock::kernel()).unwrap();
        let home = Rc::clone(&worker);
        worker.spawn(async move {
            let mut places = [None, None, None];
            home.compute(|| {
                let began = home.clock().precise();
                while home.clock().precise().since(began) < COMPUTATION_PER_TURN {}
            });
            for place in &mut places {
                assert!(!home.may_compute(place), "the budget of this turn is used up");
            }
            places[0] = None;
            let mut polls = 0;
            poll_fn(|_| {
                // The next turn has a budget, and the second in line is the first now.
                polls += 1;
                if polls == 1 {
                    return Poll::Pending;
                }
                assert!(!home.may_compute(&mut places[2]), "it is not its turn");
                assert!(home.may_compute(&mut places[1]));
                assert!(home.may_compute(&mut places[2]), "there is budget left");
                Poll::Ready(())
            })
            .await;
        });
        worker.run_to_the_end();
        assert!(worker.queue.borrow().is_empty());
    }

    #[test]
    fn timers_of_the_smol_family_and_the_blocking_pool_work_on_a_worker() {
        let worker = Worker::new(0, Clock::kernel()).unwrap();
        let done = Rc::new(Cell::new(false));
        let seen = Rc::clone(&done);
        worker.spawn(async move {
            smol::Timer::after(Duration::from_millis(1)).await;
            assert_eq!(smol::unblock(|| 6 * 7).await, 42);
            seen.set(true);
        });
        worker.run_to_the_end();
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
        worker.spawn(async move {
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
        worker.spawn(async move {
            sleeper.sleep_until(sleeper.now() + Duration::from_millis(120)).await;
        });
        worker.run_to_the_end();
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
        let sleeper = Rc::clone(&worker);
        worker.spawn(async move {
            sleeper.sleep_until(sleeper.now() + hour).await;
            seen.set(sleeper.now());
        });
        worker.spawn(async move {
            // After the sleeper has begun to sleep.
            smol::future::yield_now().await;
            clock.advance(2 * hour);
        });
        worker.run_to_the_end();
        assert_eq!(woken.get(), Time::default() + 2 * hour);
    }
}
