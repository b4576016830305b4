//! One publisher and those who hear it, as the load generator plays them.
//!
//! Every message has its number in its first eight bytes, and the same bytes behind them. Every member is
//! to hear 1, 2, 3 and so on, each byte of it: what is lost, doubled, out of order or wrong is an error.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::Result;
use crate::frame::{self, Header};
use crate::histogram::Histogram;
use crate::peer;
use crate::poller::{Patience, Poller, STALL, reset_on_close};
use crate::upgrade;

/// The number of a message, in bytes: what every payload begins with.
pub const NUMBER_BYTES: usize = 8;

/// What one `recv` may bring: a batch of sixteen, and more than most.
const READ_BYTES: usize = 64 * 1024;

/// Messages whose time of leaving is remembered: at 200 a second, four times as long as [`STALL`].
const REMEMBERED: usize = 4096;

/// How long the crowd waits for the first message to be heard by all before it publishes another: a
/// member may have had its answer before it hears what is published.
const GREETING: Duration = Duration::from_millis(100);

/// The `next` of the publisher, who hears nothing.
const HEARS_NOTHING: u64 = u64::MAX;

/// One publisher and its members.
pub struct Crowd {
    poller: Poller,
    /// The last one is the publisher.
    links: Vec<Link>,
    input: Vec<u8>,
    /// What is sent, in its place for as long as the next is not made.
    output: Vec<u8>,
    heard: Heard,
}

/// A connection after its upgrade.
struct Link {
    socket: TcpStream,
    /// The number that is heard next; 0 before the first, which may be any.
    next: u64,
    /// The start of a frame whose end has not come.
    carry: Vec<u8>,
}

/// What is known of the messages.
struct Heard {
    /// The frame as a server sends it; only its number changes.
    frame: Vec<u8>,
    header_len: usize,
    /// The number of the last message.
    published: u64,
    /// When it left, by the number's remainder.
    left: Vec<Instant>,
    deliveries: u64,
    /// How long they took.
    latencies: Histogram,
}

impl Crowd {
    /// Opens a publisher and so many members, and publishes until all of them have heard it. A payload
    /// has `size` bytes.
    ///
    /// # Errors
    ///
    /// If a payload has no room for its number, or the server does not do its part.
    pub fn open(server: SocketAddr, members: usize, size: usize) -> Result<Self> {
        let mut crowd = Self {
            poller: Poller::new()?,
            links: Vec::with_capacity(members + 1),
            input: vec![0; READ_BYTES],
            output: Vec::new(),
            heard: Heard::new(size)?,
        };
        let patience = Patience::new();
        for at in 0..=members {
            patience.check()?;
            let publishes = at == members;
            let path = if publishes { peer::PUBLISH } else { peer::SUBSCRIBE };
            let next = if publishes { HEARS_NOTHING } else { 0 };
            let (socket, carry) = open(TcpStream::connect(server)?, server, path)?;
            crowd.poller.add(&socket, at)?;
            crowd.links.push(Link { socket, next, carry });
        }
        crowd.greet(&patience)?;
        Ok(crowd)
    }

    fn greet(&mut self, patience: &Patience) -> Result<()> {
        while self.slowest() < self.heard.published || self.heard.published == 0 {
            patience.check()?;
            self.publish(1)?;
            let again = Instant::now() + GREETING;
            while self.slowest() < self.heard.published && Instant::now() < again {
                self.receive_until(again)?;
            }
        }
        self.restart();
        Ok(())
    }

    /// The last message that all have heard; 0 if some have heard none.
    #[must_use]
    pub fn slowest(&self) -> u64 {
        let members = self.links.iter().filter(|it| it.next != HEARS_NOTHING);
        members.map(|it| it.next.saturating_sub(1)).min().unwrap_or(u64::MAX)
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.links.len() - 1
    }

    /// Publishes so many messages with one write.
    ///
    /// # Errors
    ///
    /// If the server does not take them, or some member is thousands of messages behind.
    pub fn publish(&mut self, count: usize) -> Result<()> {
        if self.heard.published + count as u64 > self.slowest() + REMEMBERED as u64 {
            return Err("a member is too far behind".into());
        }
        self.output.clear();
        let first = self.heard.published + 1;
        for number in first..first + count as u64 {
            let payload = self.heard.number(number);
            frame::push_client_frame(&mut self.output, frame::BINARY, payload);
        }
        let now = Instant::now();
        for number in first..first + count as u64 {
            self.heard.left[number as usize % REMEMBERED] = now;
        }
        self.heard.published += count as u64;
        let Some(publisher) = self.links.last_mut() else {
            return Err("there is no publisher".into());
        };
        let written = publisher.socket.write_all(&self.output);
        written.map_err(|error| format!("publishing: {error}").into())
    }

    /// Waits until something arrives, and takes it.
    ///
    /// # Errors
    ///
    /// If nothing does for longer than [`STALL`], or what arrives is not what was due.
    pub fn receive(&mut self) -> Result<()> {
        for ready in self.poller.wait()?.filter(|it| it.readable) {
            self.links[ready.at].receive(&mut self.input, &mut self.heard)?;
        }
        Ok(())
    }

    /// The same, but for no longer than until that moment.
    ///
    /// # Errors
    ///
    /// If what arrives is not what was due.
    pub fn receive_until(&mut self, then: Instant) -> Result<()> {
        for ready in self.poller.wait_until(then)?.filter(|it| it.readable) {
            self.links[ready.at].receive(&mut self.input, &mut self.heard)?;
        }
        Ok(())
    }

    /// Deliveries since [`restart`](Self::restart).
    pub fn deliveries(&self) -> u64 {
        self.heard.deliveries
    }

    /// From the write of a message until a member has it.
    pub fn latencies(&self) -> &Histogram {
        &self.heard.latencies
    }

    /// Forgets the deliveries and their latencies; to be called when nothing is under way.
    pub fn restart(&mut self) {
        self.heard.deliveries = 0;
        self.heard.latencies.clear();
    }

    /// Whether every member has heard everything, and nothing more than that has come.
    ///
    /// # Errors
    ///
    /// If it is not so.
    pub fn finish(&mut self) -> Result<()> {
        for link in &mut self.links {
            link.receive(&mut self.input, &mut self.heard)?;
        }
        match self.slowest() {
            last if last == self.heard.published => Ok(()),
            last => Err(format!("{} published, {last} heard", self.heard.published).into()),
        }
    }
}

/// Upgrades a connection, blocking; returns it with what came behind the answer.
///
/// # Errors
///
/// If the server does not do its part.
pub fn open(mut socket: TcpStream, server: SocketAddr, path: &str) -> Result<(TcpStream, Vec<u8>)> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(STALL))?;
    socket.set_write_timeout(Some(STALL))?;
    socket.write_all(&upgrade::request_to(path, &server.to_string()))?;
    let mut head = Vec::with_capacity(256);
    let len = loop {
        if let Some(len) = upgrade::head_len(&head) {
            break len;
        }
        let mut some = [0; 256];
        match socket.read(&mut some)? {
            0 => return Err("the server closed before it had upgraded".into()),
            read => head.extend_from_slice(&some[..read]),
        }
    };
    let behind = head.split_off(len);
    if !upgrade::is_accepted(&head) {
        let head = String::from_utf8_lossy(&head);
        return Err(format!("not the upgrade we asked for: {head:?}").into());
    }
    Ok((socket, behind))
}

impl Link {
    /// Takes what is there.
    fn receive(&mut self, input: &mut [u8], heard: &mut Heard) -> Result<()> {
        loop {
            // What was left over comes first.
            let start = self.carry.len();
            input[..start].copy_from_slice(&self.carry);
            let room = &mut input[start..];
            let space = room.len();
            let read = match rustix::net::recv(&self.socket, room, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err("the server closed a connection".into()),
                Ok((_, read)) => read,
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(format!("receiving: {error}").into()),
            };
            let now = Instant::now();
            let rest = self.absorb(&input[..start + read], heard, now)?;
            self.carry.clear();
            self.carry.extend_from_slice(rest);
            if read < space {
                return Ok(());
            }
        }
    }

    /// Checks what has come, and returns what is not complete of it.
    fn absorb<'a>(
        &mut self,
        mut bytes: &'a [u8],
        heard: &mut Heard,
        now: Instant,
    ) -> Result<&'a [u8]> {
        loop {
            // In almost every case.
            while let Some((frame, rest)) = bytes.split_at_checked(heard.frame.len())
                && heard.is(frame, self.next)
            {
                heard.record(self.next, now);
                self.next += 1;
                bytes = rest;
            }
            let Some(header) = Header::parse(bytes) else {
                return Ok(bytes);
            };
            if header.frame_len() > heard.frame.len().max(2 + 125) {
                return Err(self.unexpected(&header, &[], heard));
            }
            let Some((frame, rest)) = bytes.split_at_checked(header.frame_len()) else {
                return Ok(bytes);
            };
            let payload = &frame[header.header_len..];
            match header.opcode() {
                frame::PING => self.pong(payload)?,
                frame::PONG => {}
                // The first one, whichever it is.
                frame::BINARY if self.next == 0 && number_in(payload) > 0 => {
                    self.next = number_in(payload);
                    if !heard.is(frame, self.next) {
                        return Err(self.unexpected(&header, payload, heard));
                    }
                    continue;
                }
                _ => return Err(self.unexpected(&header, payload, heard)),
            }
            bytes = rest;
        }
    }

    /// Whoever is silent for long is asked whether it lives.
    fn pong(&mut self, payload: &[u8]) -> Result<()> {
        let mut pong = Vec::new();
        frame::push_client_frame(&mut pong, frame::PONG, payload);
        self.socket.write_all(&pong).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => "the server takes no pong".into(),
            _ => format!("sending a pong: {error}").into(),
        })
    }

    /// What to say of a frame that was not due.
    fn unexpected(&self, header: &Header, payload: &[u8], heard: &Heard) -> crate::Error {
        if self.next == HEARS_NOTHING {
            return "the publisher was sent something".into();
        }
        if header.opcode() == frame::CLOSE {
            let code = payload.first_chunk().map_or(0, |it| u16::from_be_bytes(*it));
            return format!("the server closed a session with {code}").into();
        }
        let (due, published) = (self.next, heard.published);
        if payload.len() + header.header_len != heard.frame.len() {
            return format!("not a message that was published: {header:?}").into();
        }
        match number_in(payload) {
            found if found == due => format!("message {due} of {published} is wrong").into(),
            found => format!("message {found} came where {due} of {published} was due").into(),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        reset_on_close(&self.socket);
    }
}

impl Heard {
    fn new(size: usize) -> Result<Self> {
        if !(NUMBER_BYTES..READ_BYTES / 2).contains(&size) {
            let most = READ_BYTES / 2 - 1;
            return Err(format!("a message has {NUMBER_BYTES} to {most} bytes").into());
        }
        let payload: Vec<u8> = (b'a'..=b'z').cycle().take(size).collect();
        let mut frame = Vec::new();
        frame::push_server_frame(&mut frame, frame::BINARY, &payload);
        Ok(Self {
            header_len: frame.len() - size,
            frame,
            published: 0,
            left: vec![Instant::now(); REMEMBERED],
            deliveries: 0,
            latencies: Histogram::default(),
        })
    }

    /// The payload of that message.
    fn number(&mut self, number: u64) -> &[u8] {
        let payload = &mut self.frame[self.header_len..];
        payload[..NUMBER_BYTES].copy_from_slice(&number.to_be_bytes());
        payload
    }

    /// Whether this frame is that message, and it was published.
    fn is(&self, frame: &[u8], number: u64) -> bool {
        let behind = self.header_len + NUMBER_BYTES;
        number_in(&frame[self.header_len..]) == number
            && (1..=self.published).contains(&number)
            && frame[..self.header_len] == self.frame[..self.header_len]
            && frame[behind..] == self.frame[behind..]
    }

    fn record(&mut self, number: u64, now: Instant) {
        self.deliveries += 1;
        self.latencies.record(now - self.left[number as usize % REMEMBERED]);
    }
}

/// The number that a payload begins with, or 0.
fn number_in(payload: &[u8]) -> u64 {
    payload.first_chunk::<NUMBER_BYTES>().map_or(0, |it| u64::from_be_bytes(*it))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const SIZE: usize = 256;

    fn frames(numbers: &[u64]) -> Vec<u8> {
        let mut heard = Heard::new(SIZE).unwrap();
        let mut bytes = Vec::new();
        for &number in numbers {
            let payload = heard.number(number).to_vec();
            frame::push_server_frame(&mut bytes, frame::BINARY, &payload);
        }
        bytes
    }

    /// A member that is to hear what begins with 1, and the other end of its connection.
    fn member(published: u64) -> (Link, Heard, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        let heard = Heard { published, ..Heard::new(SIZE).unwrap() };
        (Link { socket, next: 0, carry: Vec::new() }, heard, other)
    }

    fn hear(bytes: &[u8]) -> Result<(u64, usize)> {
        let (mut link, mut heard, _other) = member(9);
        let rest = link.absorb(bytes, &mut heard, Instant::now())?.len();
        Ok((heard.deliveries, rest))
    }

    #[test]
    fn what_was_published_is_heard_in_its_order() {
        assert_eq!(hear(&frames(&[1, 2, 3])).unwrap(), (3, 0));
        // Whoever comes late begins late.
        assert_eq!(hear(&frames(&[7, 8, 9])).unwrap(), (3, 0));
        let (mut two, half) = (frames(&[1, 2]), frames(&[3]).len() / 2);
        two.extend_from_slice(&frames(&[3])[..half]);
        assert_eq!(hear(&two).unwrap(), (2, half));
    }

    #[test]
    fn what_is_lost_doubled_out_of_order_wrong_or_made_up_is_an_error() {
        for numbers in [&[1, 3][..], &[1, 1], &[2, 1], &[8, 9, 10], &[0], &[10]] {
            assert!(hear(&frames(numbers)).is_err(), "{numbers:?}");
        }
        let whole = frames(&[1, 2]);
        for at in [0, whole.len() / 2 - 1, whole.len() / 2, whole.len() - 1] {
            let mut wrong = whole.clone();
            wrong[at] ^= 0x20;
            assert!(hear(&wrong).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_ping_between_two_messages_is_answered() {
        let (mut link, mut heard, mut other) = member(9);
        let mut bytes = frames(&[1]);
        frame::push_server_frame(&mut bytes, frame::PING, b"alive?");
        bytes.extend_from_slice(&frames(&[2]));
        assert!(link.absorb(&bytes, &mut heard, Instant::now()).unwrap().is_empty());
        assert_eq!(heard.deliveries, 2);
        let mut expected = Vec::new();
        frame::push_client_frame(&mut expected, frame::PONG, b"alive?");
        let mut answer = vec![0; expected.len()];
        other.read_exact(&mut answer).unwrap();
        assert_eq!(answer, expected);
    }
}
