//! The accept loop: survives every error, and ends on the stop only.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;
use rustix::net::SendFlags;

use super::crew::{Incoming, IncomingLink, Listening, Speaks, Station};
use crate::executor::Worker;
use crate::session::Handler;
use crate::transport::Listener;

/// Connections accepted before the sessions of this worker have their turn: some 300 µs.
const ACCEPTS_PER_TURN: usize = 64;

/// First wait after an error such as "too many open files", doubled up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// For a connection that cannot even be given a handshake. It is sent without reading the request.
const OVERLOADED: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n\
Connection: close\r\nContent-Length: 0\r\n\r\n";

/// Starts the loop as a task of its own: it is one among others, not the worker's root.
pub(super) fn spawn<H: Handler>(
    worker: &Rc<Worker>,
    station: &Rc<Station<H>>,
    listening: Listening,
) -> io::Result<()> {
    let Listening { bound, speaks } = listening;
    let listener = Listener::new(worker, bound)?;
    let (home, station) = (Rc::clone(worker), Rc::clone(station));
    worker.spawn(async move {
        // Dropping the loop drops the listener: connections that were not accepted are reset.
        let stopping = station.crew.hub.shutdown.stopping();
        future::or(accept(&home, &station, listener, speaks), stopping).await;
    });
    Ok(())
}

async fn accept<H: Handler>(
    worker: &Rc<Worker>,
    station: &Rc<Station<H>>,
    mut listener: Listener,
    speaks: Speaks,
) {
    let mut backoff = BACKOFF_MIN;
    let mut in_turn = 0;
    loop {
        match poll_fn(|_| listener.poll_accept()).await {
            Ok((fd, peer)) => {
                backoff = BACKOFF_MIN;
                let reserve = station.crew.site(speaks).map(|site| &site.reserve);
                match station.crew.hub.handshake(peer, reserve) {
                    Some(handshake) => {
                        let link = IncomingLink::Socket(fd);
                        let incoming = Incoming { link, peer, handed: None, speaks, handshake };
                        station.place(worker, incoming);
                    }
                    None => turn_away(&fd, speaks),
                }
            }
            Err(error) => {
                log::warn!(
                    "cannot accept a connection: {error}; trying again in {backoff:?} (with \
                     \"too many open files\": raise `ulimit -n`, or lower the limit of sessions)"
                );
                worker.sleep_until(worker.now() + backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
        in_turn += 1;
        if in_turn == ACCEPTS_PER_TURN {
            in_turn = 0;
            future::yield_now().await;
        }
    }
}

/// Says "later" as well as that can be done without waiting for anything.
fn turn_away(fd: &OwnedFd, speaks: Speaks) {
    log::debug!("too many handshakes under way: a connection is turned away");
    // Who waits for TLS could not read it.
    if !speaks.is_plain() {
        return;
    }
    let _ = rustix::net::send(fd, OVERLOADED, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}
