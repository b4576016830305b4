//! One publisher and those who hear it, as the load generator plays them.
//!
//! Every message has its number in its first eight bytes, and the same bytes behind them. Every member is
//! to hear 1, 2, 3 and so on, each byte of it: what is lost, doubled, out of order or wrong is an error.

mod link;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::Result;
use crate::frame;
use crate::histogram::Histogram;
use crate::peer;
use crate::poller::{Patience, Poller, STALL};
use crate::upgrade;
use link::{HEARS_NOTHING, Heard, Link, READ_BYTES, REMEMBERED};

/// How long the crowd waits for the first message to be heard by all before it publishes another: a
/// member may have had its answer before it hears what is published.
const GREETING: Duration = Duration::from_millis(100);

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
