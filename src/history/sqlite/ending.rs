//! How the two threads come to their end, and who waits for that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::InterruptHandle;

/// What whoever closes the history tells the writer while it is at work.
pub(super) struct Ending {
    asked: AtomicBool,
    abandoned: AtomicBool,
    statement: InterruptHandle,
}

impl Ending {
    pub(super) fn new(statement: InterruptHandle) -> Self {
        Self { asked: AtomicBool::new(false), abandoned: AtomicBool::new(false), statement }
    }

    /// From here on what waits is kept, and nothing else is done.
    pub(super) fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// From here on nobody waits for what is not kept yet: it has been reported as lost.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        self.statement.interrupt();
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }
}

/// Abandons the writer if whoever closes the history goes before it has answered.
pub(super) struct Waiting<'a>(Option<&'a Ending>);

impl<'a> Waiting<'a> {
    pub(super) fn new(ending: &'a Ending) -> Self {
        Self(Some(ending))
    }

    pub(super) fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(ending) = self.0 {
            ending.abandon();
        }
    }
}

/// A thread that is waited for, but not for ever.
pub(super) struct Running {
    thread: JoinHandle<()>,
    ended: mpsc::Receiver<()>,
}

impl Running {
    pub(super) fn start(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<Self> {
        let (alive, ended) = mpsc::channel::<()>();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            let _alive = alive;
            run();
        })?;
        Ok(Self { thread, ended })
    }

    /// Whether who asks is it.
    pub(super) fn is_this(&self) -> bool {
        self.thread.thread().id() == thread::current().id()
    }

    /// Waits for its end, at most so long. False if it has not ended, or is this thread.
    pub(super) fn ends_within(&self, patience: Duration) -> bool {
        !self.is_this() && self.ended.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }

    /// After its end: so that nothing is left of it.
    pub(super) fn join(self) {
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_hangs_is_waited_for_but_not_for_ever() {
        let (release, hangs) = mpsc::channel::<()>();
        let running = Running::start("hangs", move || _ = hangs.recv()).unwrap();
        assert!(!running.ends_within(Duration::from_millis(1)));
        drop(release);
        assert!(running.ends_within(Duration::from_secs(60)));
        running.join();
    }
}
