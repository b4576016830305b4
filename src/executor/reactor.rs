//! Readiness: edge-triggered epoll, each socket registered once.
//!
//! The order is always the system call first, and waiting only after it said `WouldBlock` or
//! brought less than there was room for. An edge that arrives meanwhile is not lost: events are
//! dispatched only while no task runs, so nothing can clear a flag between the kernel's word and
//! ours.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use slab::Slab;

use super::tasks::{TaskId, Tasks};

/// Events taken from the kernel by one call. What is left over is taken by the next, so this
/// bounds only how long tasks wait for the dispatch; 1 024 events are dispatched in some 30 µs.
const EVENTS: usize = 1024;

/// The key of the eventfd by which other threads wake the worker.
const UNPARK: u64 = u64::MAX;

const READABLE: u8 = 1;
const WRITABLE: u8 = 2;
/// The peer has closed its side or the socket is broken: a short read no longer means "drained".
const HANGUP: u8 = 4;
/// `EPOLLOUT` has been asked for.
const ARMED: u8 = 8;
/// Nothing can be sent to the peer any more: it has reset the connection, or closed both of its sides.
const BROKEN: u8 = 16;

/// A registered file descriptor; one task at a time waits for it.
pub(crate) struct Source {
    fd: OwnedFd,
    state: Cell<u8>,
    /// Who waits for the next edge.
    task: Cell<TaskId>,
}

/// What a new file descriptor is taken to be ready for before epoll has said anything.
#[derive(Clone, Copy)]
pub(crate) enum Presumed {
    /// An accepted socket: the request has rarely arrived yet, and a speculative read that fails
    /// would cost a system call per connection. It can be written to.
    Writable,
    /// A listener: look first.
    Readable,
}

pub(crate) struct Reactor {
    epoll: OwnedFd,
    sources: RefCell<Slab<Rc<Source>>>,
    events: RefCell<Vec<epoll::Event>>,
}

impl Reactor {
    /// Makes the epoll instance and registers the eventfd that wakes it.
    pub(crate) fn new(unpark: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Edge-triggered: every write is an edge, so nobody needs to read the counter.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, unpark, epoll::EventData::new_u64(UNPARK), flags)?;
        Ok(Self {
            epoll,
            sources: RefCell::new(Slab::new()),
            events: RefCell::new(Vec::with_capacity(EVENTS)),
        })
    }

    pub(crate) fn register(
        &self,
        fd: OwnedFd,
        presumed: Presumed,
    ) -> io::Result<(usize, Rc<Source>)> {
        let mut sources = self.sources.borrow_mut();
        let entry = sources.vacant_entry();
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(entry.key() as u64), flags)?;
        let state = match presumed {
            Presumed::Writable => WRITABLE,
            Presumed::Readable => READABLE,
        };
        let task = Cell::new(TaskId::NONE);
        let source = Rc::new(Source { fd, state: Cell::new(state), task });
        let key = entry.key();
        entry.insert(Rc::clone(&source));
        Ok((key, source))
    }

    /// Forgets a source. Closing its descriptor takes it out of the kernel's list.
    pub(crate) fn forget(&self, key: usize) {
        drop(self.sources.borrow_mut().try_remove(key));
    }

    /// Asks to hear when the socket takes bytes again; once per socket, at its first `WouldBlock`.
    fn arm_write(&self, key: usize, source: &Source) -> io::Result<()> {
        if source.has(ARMED) {
            return Ok(());
        }
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        // A modification reports what is ready now, so an edge just before it is not lost.
        epoll::modify(&self.epoll, &source.fd, epoll::EventData::new_u64(key as u64), flags)?;
        source.set(ARMED);
        Ok(())
    }

    /// Waits for events, at most for `timeout` (`None`: for ever), and keeps them for `dispatch`.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()) as _,
        });
        let mut events = self.events.borrow_mut();
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Wakes who waits for the events that the last `wait` brought.
    pub(crate) fn dispatch(&self, tasks: &Tasks) {
        let events = self.events.borrow();
        let sources = self.sources.borrow();
        for event in events.iter() {
            let key = event.data.u64();
            if key == UNPARK {
                continue;
            }
            if let Some(source) = sources.get(key as usize) {
                tasks.wake(source.dispatch(event.flags));
            }
        }
    }

    /// Sources registered now.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.sources.borrow().len()
    }
}

impl Source {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn has(&self, flag: u8) -> bool {
        self.state.get() & flag != 0
    }

    fn set(&self, flag: u8) {
        self.state.set(self.state.get() | flag);
    }

    fn clear(&self, flag: u8) {
        self.state.set(self.state.get() & !flag);
    }

    /// Takes note of an edge. Returns who waits for it.
    fn dispatch(&self, flags: epoll::EventFlags) -> TaskId {
        use epoll::EventFlags as E;
        if flags.intersects(E::IN | E::RDHUP | E::HUP | E::ERR) {
            self.set(READABLE);
        }
        if flags.intersects(E::OUT | E::HUP | E::ERR) {
            self.set(WRITABLE);
        }
        if flags.intersects(E::RDHUP | E::HUP | E::ERR) {
            self.set(HANGUP);
        }
        if flags.intersects(E::HUP | E::ERR) {
            self.set(BROKEN);
        }
        self.task.get()
    }

    pub(crate) fn is_readable(&self) -> bool {
        self.has(READABLE)
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.has(WRITABLE)
    }

    /// The peer has closed its side, or more than that.
    pub(crate) fn is_hung_up(&self) -> bool {
        self.has(HANGUP)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.has(BROKEN)
    }

    /// A call that takes said `WouldBlock`.
    pub(crate) fn not_readable(&self) {
        self.clear(READABLE);
    }

    /// A read brought less than there was room for: the socket is drained, unless the peer has
    /// hung up and the end of the stream is still to be read.
    pub(crate) fn short_read(&self) {
        if !self.has(HANGUP) {
            self.clear(READABLE);
        }
    }

    /// Who is woken by the next edge; the last caller wins.
    pub(crate) fn wait_by(&self, task: TaskId) {
        self.task.set(task);
    }

    /// A call that gives said `WouldBlock`, or took less than it was given.
    pub(crate) fn not_writable(&self, reactor: &Reactor, key: usize) -> io::Result<()> {
        self.clear(WRITABLE);
        reactor.arm_write(key, self)
    }
}
