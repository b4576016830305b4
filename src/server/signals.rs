//! SIGINT and SIGTERM: the first stops, the second cuts.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::handle::{Report, ServerHandle};
use crate::error::{Error, Result};

/// Blocks the calling thread until the server has ended.
pub(super) fn run(server: &ServerHandle) -> Result<Report> {
    let mut signals = Signals::new([SIGINT, SIGTERM])
        .map_err(|source| Error::System { what: "cannot listen to SIGINT and SIGTERM", source })?;
    let listening = signals.handle();
    let shutdown = server.shutdown();
    // Ends with the iterator below, which ends when `listening` is closed.
    let listener = std::thread::Builder::new()
        .name("coracle-signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if shutdown.is_stopping() {
                    log::warn!("signal {signal} again: cutting what is still open");
                    shutdown.cut();
                } else {
                    log::info!("signal {signal}: stopping");
                    shutdown.request_stop();
                }
            }
        })
        .map_err(|source| Error::System { what: "cannot start the signals' thread", source })?;
    let report = smol::future::block_on(server.wait());
    listening.close();
    // It does nothing that could panic, and there would be nothing to do about it.
    let _ = listener.join();
    Ok(report)
}
