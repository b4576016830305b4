//! SIGINT and SIGTERM: the first stops, the second cuts.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::{io, thread};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::{SigId, flag, low_level};

use super::crew::Crew;
use crate::error::{Error, Result};
use crate::shutdown::Shutdown;

const SIGNALS: [i32; 2] = [SIGINT, SIGTERM];

/// Whether a signal ends the process, as it does without a server: while no server listens, and
/// after the signal that cuts. Without it the process could not be interrupted any more once a
/// server had listened, because the handlers stay.
static DEFAULT: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Servers that listen. Locked while `DEFAULT` is made, or set by their number: one that begins while
/// another one ends must not be taken for the one that ends.
static LISTENING: Mutex<usize> = Mutex::new(0);

/// Keeps signals from ending the process, for as long as it lives.
struct Claim(&'static Arc<AtomicBool>);

impl Claim {
    fn take() -> io::Result<Self> {
        let mut listening = LISTENING.lock().unwrap_or_else(PoisonError::into_inner);
        let default = match DEFAULT.get() {
            Some(default) => default,
            None => {
                let default = Arc::new(AtomicBool::new(true));
                for signal in SIGNALS {
                    flag::register_conditional_default(signal, Arc::clone(&default))?;
                }
                DEFAULT.get_or_init(|| default)
            }
        };
        *listening += 1;
        default.store(false, Ordering::SeqCst);
        Ok(Self(default))
    }

    /// A signal has come: the first stops, the second cuts.
    fn heed(&self, signal: i32, shutdown: &Shutdown) {
        let cut = shutdown.is_stopping();
        if cut {
            log::warn!("signal {signal} again: cutting what is still open");
            shutdown.cut();
        } else {
            log::info!("signal {signal}: stopping");
            shutdown.request_stop();
        }
        // A third one need not be asked whether it was heard.
        self.0.store(cut, Ordering::SeqCst);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut listening = LISTENING.lock().unwrap_or_else(PoisonError::into_inner);
        *listening -= 1;
        if *listening == 0 {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

fn system(source: io::Error) -> Error {
    Error::System { what: "cannot listen to SIGINT and SIGTERM", source }
}

/// Listens to the signals on a thread of its own, for as long as it lives.
pub(super) struct Listening(Handle);

impl Listening {
    /// From when this returns, a signal stops the server instead of ending the process.
    pub(super) fn start(shutdown: Shutdown) -> Result<Self> {
        let claim = Claim::take().map_err(system)?;
        let mut signals = Signals::new(SIGNALS).map_err(system)?;
        let listening = Self(signals.handle());
        let serve = move || {
            for signal in signals.forever() {
                claim.heed(signal, &shutdown);
            }
        };
        // It ends with its iterator, which ends when the handle is closed.
        thread::Builder::new()
            .name("coracle-signals".into())
            .spawn(serve)
            .map_err(|source| Error::System { what: "cannot start the signals' thread", source })?;
        Ok(listening)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Listens to the signals on a worker that runs on the application's own thread: a process with one
/// worker then has one thread, which the kernel rewards at every system call.
///
/// A worker that is blocked by a handler hears nothing. Then the second signal ends the process.
pub(super) struct Interrupts {
    claim: Claim,
    /// The last signal that nobody has heeded, or zero.
    raised: Arc<AtomicUsize>,
    handlers: Vec<SigId>,
    /// Becomes readable with every signal.
    ear: UnixStream,
}

impl Interrupts {
    /// From when this returns, a signal waits for [`heed`](Self::heed) instead of ending the process.
    pub(super) fn listen() -> Result<Self> {
        let claim = Claim::take().map_err(system)?;
        let (ear, mouth) = UnixStream::pair().map_err(system)?;
        let raised = Arc::new(AtomicUsize::new(0));
        // From here on, dropping it takes the handlers back.
        let mut this = Self { claim, raised, handlers: Vec::new(), ear };
        for signal in SIGNALS {
            this.add(signal, &mouth).map_err(system)?;
        }
        Ok(this)
    }

    fn add(&mut self, signal: i32, mouth: &UnixStream) -> io::Result<()> {
        let raised = Arc::clone(&self.raised);
        // They are called in this order, and after the one of `Claim::take`.
        self.handlers.push(flag::register(signal, Arc::clone(self.claim.0))?);
        self.handlers.push(flag::register_usize(signal, raised, signal.unsigned_abs() as usize)?);
        self.handlers.push(low_level::pipe::register_raw(signal, mouth.try_clone()?.into())?);
        Ok(())
    }

    /// What is to wake the worker, edge-triggered; nobody reads from it.
    pub(super) fn ear(&self) -> io::Result<OwnedFd> {
        Ok(self.ear.try_clone()?.into())
    }

    /// Has a thread listen from now on, until the server has ended: the worker that did so has.
    pub(super) fn hand_on(self, crew: &Crew) -> Option<Listening> {
        if crew.has_ended() {
            return None;
        }
        let shutdown = &crew.hub.shutdown;
        let listening = Listening::start(shutdown.clone());
        // What has come in between.
        self.heed(shutdown);
        listening.map_err(|error| log::warn!("the next signal ends the process: {error}")).ok()
    }

    /// Does what the signals that have come ask for.
    pub(super) fn heed(&self, shutdown: &Shutdown) {
        let raised = self.raised.swap(0, Ordering::SeqCst);
        if raised != 0 {
            self.claim.heed(raised as i32, shutdown);
        }
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        for handler in &self.handlers {
            low_level::unregister(*handler);
        }
    }
}
