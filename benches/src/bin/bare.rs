//! The honest lower limit: a bare edge-triggered epoll loop that echoes.
//!
//! One thread, no limits, no timers, no UTF-8 check, no deflate, no fragments put together. An echo
//! is `epoll_wait`, `recv`, `send`. Partial frames and partial writes are handled, because a loop
//! that loses bytes is no limit.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use coracle_benches::{frame, peer, upgrade};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

/// The listener's mark among the events; connections are marked with their descriptor.
const LISTENER: u64 = u64::MAX;

/// What one `recv` may bring. Sixteen messages of 16 KiB fit, so that they leave in one `send`.
const READ_BYTES: usize = 512 * 1024;

fn main() -> io::Result<()> {
    let args = peer::Args::from_env();
    if args.tls {
        return Err(io::Error::other("the bare loop speaks no TLS"));
    }
    Loop::listen(args.listen)?.run()
}

struct Loop {
    epoll: OwnedFd,
    listener: OwnedFd,
    /// By descriptor.
    connections: Vec<Option<Connection>>,
    buffers: Buffers,
}

/// One pair for all connections; nothing stays in them between turns.
struct Buffers {
    input: Vec<u8>,
    output: Vec<u8>,
}

struct Connection {
    socket: OwnedFd,
    upgraded: bool,
    /// Only while something is incomplete.
    backlog: Option<Box<Backlog>>,
}

/// What a turn could not finish.
#[derive(Default)]
struct Backlog {
    /// The start of a frame whose end has not come.
    input: Vec<u8>,
    /// What the socket did not take.
    output: Vec<u8>,
    /// Close after the output is gone.
    closing: bool,
}

/// Whether a connection lives on.
#[derive(PartialEq, Eq)]
enum Turn {
    Open,
    Over,
}

impl Loop {
    fn listen(address: SocketAddr) -> io::Result<Self> {
        let listener = peer::listen(address)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mark = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, mark, EventFlags::IN)?;
        Ok(Self {
            epoll,
            listener,
            connections: Vec::new(),
            buffers: Buffers { input: vec![0; READ_BYTES], output: vec![0; READ_BYTES] },
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(1024);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                let data = event.data;
                if data.u64() == LISTENER {
                    self.accept()?;
                } else {
                    self.turn(data.u64() as usize, event.flags);
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(error) => return Err(error.into()),
            };
            let at = socket.as_raw_fd() as usize;
            epoll::add(
                &self.epoll,
                &socket,
                epoll::EventData::new_u64(at as u64),
                EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET,
            )?;
            if self.connections.len() <= at {
                self.connections.resize_with(at + 1, || None);
            }
            self.connections[at] = Some(Connection { socket, upgraded: false, backlog: None });
        }
    }

    fn turn(&mut self, at: usize, flags: EventFlags) {
        let Some(connection) = self.connections[at].as_mut() else {
            return;
        };
        // Errors of one connection end that connection.
        let turn = connection.turn(flags, &mut self.buffers);
        if turn.unwrap_or(Turn::Over) == Turn::Over {
            self.connections[at] = None;
        }
    }
}

impl Connection {
    fn turn(&mut self, flags: EventFlags, buffers: &mut Buffers) -> rustix::io::Result<Turn> {
        let mut readable = flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP);
        if let Some(backlog) = self.backlog.as_mut().filter(|it| !it.output.is_empty()) {
            let sent = send(&self.socket, &backlog.output)?;
            backlog.output.drain(..sent);
            if !backlog.output.is_empty() {
                return Ok(Turn::Open);
            }
            if backlog.closing {
                return Ok(Turn::Over);
            }
            // Reading had stopped, and its edge may be gone.
            readable = true;
        }
        // After a hang-up only an end of file says that everything was read.
        let hung_up = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        while readable {
            let start = self.restore(buffers);
            let space = buffers.input.len() - start;
            let read = match rustix::net::recv(
                &self.socket,
                &mut buffers.input[start..],
                RecvFlags::empty(),
            ) {
                Ok((_, 0)) => return Ok(Turn::Over),
                Ok((_, read)) => read,
                Err(Errno::AGAIN) => 0,
                Err(error) => return Err(error),
            };
            let upgraded = self.upgraded;
            if self.answer(buffers, start + read)? == Turn::Over {
                return Ok(Turn::Over);
            }
            let blocked = self.backlog.as_ref().is_some_and(|it| !it.output.is_empty());
            // Once more after the upgrade, for frames that came with the request.
            let early = !upgraded && self.upgraded && self.backlog.is_some();
            readable = !blocked && (early || (read > 0 && (read == space || hung_up)));
        }
        Ok(Turn::Open)
    }

    /// Puts back the start of an incomplete frame, and returns its length.
    fn restore(&mut self, buffers: &mut Buffers) -> usize {
        let Some(backlog) = self.backlog.take() else {
            return 0;
        };
        let len = backlog.input.len();
        if buffers.input.len() < 2 * len {
            buffers.input.resize(2 * len, 0);
            buffers.output.resize(2 * len, 0);
        }
        buffers.input[..len].copy_from_slice(&backlog.input);
        len
    }

    /// Answers what is complete in the first `len` bytes of the input, and keeps the rest.
    fn answer(&mut self, buffers: &mut Buffers, len: usize) -> rustix::io::Result<Turn> {
        let input = &buffers.input[..len];
        let (consumed, sent, output, closing) = if self.upgraded {
            let echoed = frame::echo(input, &mut buffers.output);
            let output = &buffers.output[..echoed.written];
            let sent = send(&self.socket, output)?;
            (echoed.consumed, sent, output, echoed.closed)
        } else if let Some(head) = upgrade::head_len(input) {
            let mut response = Vec::with_capacity(160);
            if upgrade::respond(&input[..head], &mut response).is_none() {
                return Ok(Turn::Over);
            }
            self.upgraded = true;
            // A socket that takes less than this in the beginning is not worth the code.
            if send(&self.socket, &response)? < response.len() {
                return Ok(Turn::Over);
            }
            (head, 0, &[][..], false)
        } else {
            (0, 0, &[][..], false)
        };
        let blocked = sent < output.len();
        if closing && !blocked {
            return Ok(Turn::Over);
        }
        if blocked || consumed < len {
            self.backlog = Some(Box::new(Backlog {
                input: input[consumed..].to_vec(),
                output: output[sent..].to_vec(),
                closing,
            }));
        }
        Ok(Turn::Open)
    }
}

/// Sends what the socket takes.
fn send(socket: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    if bytes.is_empty() {
        return Ok(0);
    }
    match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
        Err(Errno::AGAIN) => Ok(0),
        result => result,
    }
}
