//! The honest lower limit of a broadcast: a bare epoll loop that writes a prepared frame to every socket.
//!
//! One thread, no limits but one, no timers, no UTF-8 check, no rooms. A message is one `epoll_wait`, one
//! `recv`, and one `send` for each member. With `--cork` it is less: all messages that one `recv` brought go
//! to each member in one `send`. What a socket does not take waits for it, because a loop that loses bytes
//! is no limit; too much of it ends the connection.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use coracle_benches::frame::{self, Header};
use coracle_benches::{peer, upgrade};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

/// The listener's mark among the events; connections are marked with their descriptor.
const LISTENER: u64 = u64::MAX;

/// What one `recv` may bring, and the longest frame.
const READ_BYTES: usize = 64 * 1024;

/// What may wait for one member, as much as for a session of coracle's.
const BACKLOG_BYTES: usize = 1024 * 1024;

fn main() -> io::Result<()> {
    let args = peer::Args::from_env();
    if args.tls {
        return Err(io::Error::other("the bare loop speaks no TLS"));
    }
    Loop::listen(args.listen, args.cork)?.run()
}

struct Loop {
    epoll: OwnedFd,
    listener: OwnedFd,
    /// By descriptor.
    connections: Vec<Option<Connection>>,
    /// The descriptors of those who hear.
    members: Vec<usize>,
    coalesce: bool,
    input: Vec<u8>,
    frames: Frames,
}

/// What was read, as it is sent.
#[derive(Default)]
struct Frames {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

struct Connection {
    socket: OwnedFd,
    role: Role,
    /// What has come and is not complete.
    unread: Vec<u8>,
    /// What the socket did not take.
    unsent: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Has not upgraded yet.
    Unknown,
    Publisher,
    Member,
}

/// Why a connection is over, unless the kernel knows better.
const OVER: Errno = Errno::CONNRESET;

impl Loop {
    fn listen(address: SocketAddr, coalesce: bool) -> io::Result<Self> {
        let listener = peer::listen(address)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mark = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, mark, EventFlags::IN)?;
        Ok(Self {
            epoll,
            listener,
            connections: Vec::new(),
            members: Vec::new(),
            coalesce,
            input: vec![0; READ_BYTES],
            frames: Frames::default(),
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
            let (unread, unsent) = Default::default();
            self.connections[at] = Some(Connection { socket, role: Role::Unknown, unread, unsent });
        }
    }

    fn turn(&mut self, at: usize, flags: EventFlags) {
        let Some(connection) = self.connections[at].as_mut() else {
            return;
        };
        let mut turn = connection.flush();
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP) {
            while let Ok(true) = turn {
                turn = self.read(at);
            }
        }
        // Errors of one connection end that connection.
        if turn.is_err() {
            self.end(at);
        }
    }

    /// Reads once, and does what that asks for; returns whether there may be more.
    fn read(&mut self, at: usize) -> rustix::io::Result<bool> {
        let Some(connection) = self.connections[at].as_mut() else {
            return Ok(false);
        };
        let start = connection.unread.len();
        let (before, space) = self.input.split_at_mut_checked(start).ok_or(OVER)?;
        before.copy_from_slice(&connection.unread);
        let room = space.len();
        let len = match rustix::net::recv(&connection.socket, space, RecvFlags::empty()) {
            Ok((_, 0)) => return Err(OVER),
            Ok((_, read)) => start + read,
            Err(Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut input = &self.input[..len];
        if connection.role == Role::Unknown
            && let Some(head) = upgrade::head_len(input)
        {
            connection.upgrade(&input[..head])?;
            if connection.role == Role::Member {
                self.members.push(at);
            }
            input = &input[head..];
        }
        if connection.role != Role::Unknown {
            self.frames.clear();
            input = self.frames.prepare(input)?;
        }
        connection.unread.clear();
        connection.unread.extend_from_slice(input);
        if connection.role == Role::Publisher {
            self.broadcast();
        }
        Ok(len - start == room)
    }

    /// Sends what was read to every member.
    fn broadcast(&mut self) {
        if self.coalesce {
            self.frames.ends.clear();
            self.frames.ends.push(self.frames.bytes.len());
        }
        let mut start = 0;
        for &end in &self.frames.ends {
            let run = &self.frames.bytes[start..end];
            start = end;
            let mut over = Vec::new();
            for &at in &self.members {
                if let Some(member) = self.connections[at].as_mut()
                    && member.send(run).is_err()
                {
                    over.push(at);
                }
            }
            for at in over {
                self.connections[at] = None;
                self.members.retain(|it| *it != at);
            }
        }
    }

    fn end(&mut self, at: usize) {
        if let Some(Connection { role: Role::Member, .. }) = self.connections[at].take() {
            self.members.retain(|it| *it != at);
        }
    }
}

impl Frames {
    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Makes of every complete message the frame that is sent, and returns the rest of the input.
    fn prepare<'a>(&mut self, mut input: &'a [u8]) -> rustix::io::Result<&'a [u8]> {
        while let Some(header) = Header::parse(input) {
            if header.frame_len() > READ_BYTES {
                return Err(OVER);
            }
            let Some((frame, rest)) = input.split_at_checked(header.frame_len()) else {
                break;
            };
            match header.opcode() {
                frame::CLOSE => return Err(OVER),
                frame::TEXT | frame::BINARY => {
                    let start = self.bytes.len();
                    self.bytes.resize(start + frame.len(), 0);
                    let echoed = frame::echo(frame, &mut self.bytes[start..]);
                    self.bytes.truncate(start + echoed.written);
                    self.ends.push(self.bytes.len());
                }
                _ => {}
            }
            input = rest;
        }
        Ok(input)
    }
}

impl Connection {
    fn upgrade(&mut self, head: &[u8]) -> rustix::io::Result<()> {
        self.role = match upgrade::path(head) {
            Some(peer::PUBLISH) => Role::Publisher,
            Some(peer::SUBSCRIBE) => Role::Member,
            _ => return Err(OVER),
        };
        let mut response = Vec::with_capacity(160);
        upgrade::respond(head, &mut response).ok_or(OVER)?;
        self.send(&response)
    }

    /// Sends, behind what waits already.
    fn send(&mut self, bytes: &[u8]) -> rustix::io::Result<()> {
        let sent = if self.unsent.is_empty() { self.try_send(bytes)? } else { 0 };
        if sent < bytes.len() {
            self.unsent.extend_from_slice(&bytes[sent..]);
            if self.unsent.len() > BACKLOG_BYTES {
                return Err(OVER);
            }
        }
        Ok(())
    }

    /// Sends what waits; always returns that there may be something to read, unless it fails.
    fn flush(&mut self) -> rustix::io::Result<bool> {
        if !self.unsent.is_empty() {
            let sent = self.try_send(&self.unsent)?;
            self.unsent.drain(..sent);
            if self.unsent.is_empty() {
                self.unsent = Vec::new();
            }
        }
        Ok(true)
    }

    fn try_send(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
            Err(Errno::AGAIN) => Ok(0),
            result => result,
        }
    }
}
