//! What every load needs: readiness of its sockets, and an end to its patience.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventFlags};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::sockopt;

use crate::Result;

/// A server that does nothing for this long has failed.
pub const STALL: Duration = Duration::from_secs(5);

/// Opening or cycling connections may not take longer than this, however steadily it goes on.
const PATIENCE: Duration = Duration::from_secs(60);

/// The end of a minute.
#[derive(Debug)]
pub struct Patience(Instant);

impl Patience {
    /// Begins it.
    #[expect(clippy::new_without_default, reason = "it begins now, which is no default")]
    pub fn new() -> Self {
        Self(Instant::now() + PATIENCE)
    }

    /// Whether it lasts.
    ///
    /// # Errors
    ///
    /// If it is over.
    pub fn check(&self) -> Result<()> {
        if Instant::now() < self.0 {
            Ok(())
        } else {
            Err("the server is too slow to be measured".into())
        }
    }
}

/// Readiness of the load generator's sockets.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

/// What one socket is ready for.
#[derive(Debug)]
pub struct Ready {
    /// As given to [`Poller::add`].
    pub at: usize,
    /// Whether something has come, be it the end.
    pub readable: bool,
}

impl Poller {
    /// Watches nothing yet.
    ///
    /// # Errors
    ///
    /// If the kernel has no descriptor left.
    pub fn new() -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(1024),
        })
    }

    /// Watches a socket in both directions, once and for all; tells each change once.
    ///
    /// # Errors
    ///
    /// If it is watched already, or cannot be.
    pub fn add(&self, socket: impl AsFd, at: usize) -> Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(at as u64), flags)?;
        Ok(())
    }

    /// Waits until at least one socket is ready.
    ///
    /// # Errors
    ///
    /// If none is for longer than [`STALL`].
    pub fn wait(&mut self) -> Result<impl Iterator<Item = Ready> + use<'_>> {
        if !self.poll(STALL)? {
            return Err("the server stalled".into());
        }
        Ok(self.ready())
    }

    /// Waits until at least one socket is ready, or that moment has come.
    ///
    /// # Errors
    ///
    /// If the kernel has one.
    pub fn wait_until(&mut self, then: Instant) -> Result<impl Iterator<Item = Ready> + use<'_>> {
        self.poll(then.saturating_duration_since(Instant::now()))?;
        Ok(self.ready())
    }

    fn poll(&mut self, timeout: Duration) -> Result<bool> {
        let timeout = Timespec::try_from(timeout)?;
        self.events.clear();
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
                Ok(count) => return Ok(count > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn ready(&mut self) -> impl Iterator<Item = Ready> + use<'_> {
        self.events.drain(..).map(|event| {
            let data = event.data;
            let flags = event.flags;
            Ready {
                at: data.u64() as usize,
                readable: flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR),
            }
        })
    }
}

/// Ends by a reset: a port in TIME_WAIT would be missing in the next measurement.
pub fn reset_on_close(socket: impl AsFd) {
    // A socket that cannot do so is gone already.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}
