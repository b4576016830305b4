//! SIGINT and SIGTERM: the first stops, the second cuts.

use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::error::{Error, Result};
use crate::shutdown::Shutdown;

/// Listens to the signals for as long as it lives.
pub(super) struct Listening(Handle);

impl Listening {
    /// From when this returns, a signal stops the server instead of ending the process.
    pub(super) fn start(shutdown: Shutdown) -> Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|source| Error::System {
            what: "cannot listen to SIGINT and SIGTERM",
            source,
        })?;
        let listening = Self(signals.handle());
        let serve = move || {
            for signal in signals.forever() {
                if shutdown.is_stopping() {
                    log::warn!("signal {signal} again: cutting what is still open");
                    shutdown.cut();
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
    }
}
