//! One connection of the crowd, and what it hears.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::Result;
use crate::frame::{self, Header};
use crate::histogram::Histogram;
use crate::poller::reset_on_close;

/// The number of a message, in bytes: what every payload begins with.
const NUMBER_BYTES: usize = 8;

/// What one `recv` may bring: a batch of sixteen, and more than most.
pub(super) const READ_BYTES: usize = 64 * 1024;

/// Messages whose time of leaving is remembered: at 200 a second, four times as long as a server may stall.
pub(super) const REMEMBERED: usize = 4096;

/// The `next` of the publisher, who hears nothing.
pub(super) const HEARS_NOTHING: u64 = u64::MAX;

/// A connection after its upgrade.
pub(super) struct Link {
    pub(super) socket: TcpStream,
    /// The number that is heard next; 0 before the first, which may be any.
    pub(super) next: u64,
    /// The start of a frame whose end has not come.
    pub(super) carry: Vec<u8>,
}

/// What is known of the messages.
pub(super) struct Heard {
    /// The frame as a server sends it; only its number changes.
    frame: Vec<u8>,
    header_len: usize,
    /// The number of the last message.
    pub(super) published: u64,
    /// When it left, by the number's remainder.
    pub(super) left: Vec<Instant>,
    pub(super) deliveries: u64,
    /// How long they took.
    pub(super) latencies: Histogram,
}

impl Link {
    /// Takes what is there.
    pub(super) fn receive(&mut self, input: &mut [u8], heard: &mut Heard) -> Result<()> {
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
    pub(super) fn new(size: usize) -> Result<Self> {
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
    pub(super) fn number(&mut self, number: u64) -> &[u8] {
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
    use std::io::Read;
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
