//! The load generator: one thread, its own masked frames, edge-triggered epoll.

pub(crate) mod accept;
pub(crate) mod echo;
pub(crate) mod idle;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use coracle_benches::{frame, upgrade};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt;

use crate::Result;
use crate::plan::Sample;

/// A load that is put on in slices.
///
/// Between them the server rests, so that several can take turns, and its CPU time is read only at
/// both ends. Whatever else the machine does then meets all of them alike.
pub(crate) trait Sliced {
    /// Loads the server for one slice, until everything is answered.
    fn slice(&mut self) -> Result<()>;

    /// What came of all slices.
    fn finish(self: Box<Self>) -> Result<Sample>;
}

/// A server that does nothing for this long has failed.
const STALL: Duration = Duration::from_secs(5);

/// Opening or cycling connections may not take longer than this, however steadily it goes on.
const PATIENCE: Duration = Duration::from_secs(60);

/// The end of [`PATIENCE`].
struct Patience(Instant);

impl Patience {
    fn new() -> Self {
        Self(Instant::now() + PATIENCE)
    }

    fn check(&self) -> Result<()> {
        if Instant::now() < self.0 {
            Ok(())
        } else {
            Err("the server is too slow to be measured".into())
        }
    }
}

/// Readiness of the load generator's sockets.
struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

/// What one socket is ready for.
struct Ready {
    /// As given to [`Poller::add`].
    at: usize,
    readable: bool,
}

impl Poller {
    fn new() -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(1024),
        })
    }

    /// Watches a socket in both directions, once and for all.
    fn add(&self, socket: impl rustix::fd::AsFd, at: usize) -> Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(at as u64), flags)?;
        Ok(())
    }

    /// Waits until at least one socket is ready.
    fn wait(&mut self) -> Result<impl Iterator<Item = Ready> + use<'_>> {
        let timeout = Timespec::try_from(STALL)?;
        self.events.clear();
        loop {
            let events = spare_capacity(&mut self.events);
            match epoll::wait(&self.epoll, events, Some(&timeout)) {
                Ok(0) => return Err("the server stalled".into()),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.events.drain(..).map(|event| {
            let data = event.data;
            let flags = event.flags;
            Ready {
                at: data.u64() as usize,
                readable: flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR),
            }
        }))
    }
}

/// A connection after its upgrade.
///
/// Pings are not answered: every row is over before a server with sensible timeouts sends one.
struct Client {
    socket: TcpStream,
}

impl Client {
    /// Connects and upgrades, blocking.
    fn open(server: SocketAddr) -> Result<Self> {
        Self::open_with(server, &upgrade::request(&server.to_string()))
    }

    fn open_with(server: SocketAddr, request: &[u8]) -> Result<Self> {
        let mut socket = TcpStream::connect(server)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(STALL))?;
        socket.set_write_timeout(Some(STALL))?;
        socket.write_all(request)?;
        let mut head = Vec::with_capacity(256);
        while upgrade::head_len(&head).is_none() {
            let mut some = [0; 256];
            match socket.read(&mut some)? {
                0 => return Err("the server closed before it had upgraded".into()),
                read => head.extend_from_slice(&some[..read]),
            }
        }
        // The server has nothing to say before we do.
        if upgrade::head_len(&head) != Some(head.len()) || !upgrade::is_accepted(&head) {
            let head = String::from_utf8_lossy(&head);
            return Err(format!("not the upgrade we asked for: {head:?}").into());
        }
        Ok(Self { socket })
    }

    /// One message there and back, blocking, compared byte by byte.
    fn exchange(&mut self, opcode: u8, payload: &[u8]) -> Result<()> {
        let mut message = Vec::new();
        frame::push_client_frame(&mut message, opcode, payload);
        let mut expected = Vec::new();
        frame::push_server_frame(&mut expected, opcode, payload);
        self.socket.write_all(&message)?;
        let mut echo = vec![0; expected.len()];
        self.socket.read_exact(&mut echo).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => "the server did not echo the first message".into(),
            _ => format!("reading the first echo: {error}"),
        })?;
        if let Some(at) = (0..echo.len()).find(|&at| echo[at] != expected[at]) {
            return Err(format!("the first echo is wrong from byte {at} on").into());
        }
        Ok(())
    }

    /// A compressed message there and back, blocking. What comes back is not read, only that it is
    /// compressed, and smaller.
    fn exchange_compressed(&mut self, payload: &[u8; 1024]) -> Result<()> {
        let mut message = Vec::new();
        frame::push_stored_frame(&mut message, frame::BINARY, payload);
        self.socket.write_all(&message)?;
        let mut header = [0; 2];
        self.socket.read_exact(&mut header)?;
        if header[0] != 0x80 | frame::COMPRESSED | frame::BINARY || header[1] >= 126 {
            return Err(format!("not a small compressed message: {header:02x?}").into());
        }
        let mut echo = vec![0; header[1].into()];
        Ok(self.socket.read_exact(&mut echo)?)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        reset_on_close(&self.socket);
    }
}

/// Ends by a reset: a port in TIME_WAIT would be missing in the next measurement.
fn reset_on_close(socket: impl rustix::fd::AsFd) {
    // A socket that cannot do so is gone already.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// Bytes to echo: letters, so that they may also be text.
fn payload(len: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(len).collect()
}
