//! SIGINT and SIGTERM: the first stops, the second cuts.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::{Handle, Signals};

use crate::error::{Error, Result};
use crate::shutdown::Shutdown;

/// Whether a signal ends the process, as it does without a server: while no server listens, and
/// after the signal that cuts. Without it the process could not be interrupted any more once a
/// server had listened, because the handlers stay.
static DEFAULT: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Servers that listen.
static LISTENING: AtomicUsize = AtomicUsize::new(0);

fn default_action() -> std::io::Result<&'static AtomicBool> {
    if let Some(default) = DEFAULT.get() {
        return Ok(default);
    }
    let default = Arc::new(AtomicBool::new(true));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, Arc::clone(&default))?;
    }
    Ok(DEFAULT.get_or_init(|| default))
}

/// Listens to the signals for as long as it lives.
pub(super) struct Listening(Handle);

impl Listening {
    /// From when this returns, a signal stops the server instead of ending the process.
    pub(super) fn start(shutdown: Shutdown) -> Result<Self> {
        let system = |source| Error::System { what: "cannot listen to SIGINT and SIGTERM", source };
        let default = default_action().map_err(system)?;
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(system)?;
        let listening = Self(signals.handle());
        LISTENING.fetch_add(1, Ordering::SeqCst);
        default.store(false, Ordering::SeqCst);
        let serve = move || {
            for signal in signals.forever() {
                if shutdown.is_stopping() {
                    log::warn!("signal {signal} again: cutting what is still open");
                    shutdown.cut();
                    // A third one need not be asked whether it was heard.
                    default.store(true, Ordering::SeqCst);
                } else {
                    log::info!("signal {signal}: stopping");
                    shutdown.request_stop();
                }
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
        if LISTENING.fetch_sub(1, Ordering::SeqCst) == 1 {
            if let Some(default) = DEFAULT.get() {
                default.store(true, Ordering::SeqCst);
            }
        }
    }
}
