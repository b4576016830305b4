//! Connections that do nothing but begin and end: connect, upgrade, Close there and back; with or
//! without a TLS handshake before.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use coracle_benches::tls::{self, Connector};
use coracle_benches::{frame, upgrade};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustls::{ClientConnection, HandshakeKind};
use serde::Serialize;

use super::{Patience, Poller, Sliced, receive_tls, reset_on_close, send_tls};
use crate::Result;
use crate::plan::Sample;
use crate::proc::{CpuReading, CpuSpent};

/// The code of the Close that we send: normal closure.
const NORMAL: [u8; 2] = 1000_u16.to_be_bytes();

/// Connections at a time.
const CONCURRENT: usize = 32;

/// How long the server may take for the last ends, before its time is read.
const SETTLE: Duration = Duration::from_millis(50);

/// How many, all in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct AcceptLoad {
    pub(crate) cycles: usize,
    /// Without, there is no TLS.
    pub(crate) tls: Option<Handshake>,
}

/// How TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Handshake {
    Full,
    /// By a ticket of an earlier connection.
    Resumed,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AcceptSample {
    /// CPU time of the server per connection, in microseconds.
    pub(crate) cpu_us: f64,
    pub(crate) cycles_per_s: f64,
    pub(crate) cpu: CpuSpent,
}

/// Such a load on one server.
pub(crate) struct AcceptRun {
    pid: u32,
    cycles: Cycles,
    /// Connections in one slice.
    slice: usize,
    /// The server's CPU time before the first slice.
    from: CpuReading,
    /// What the slices took.
    loaded: Duration,
    done: usize,
}

impl AcceptRun {
    /// Warms up the server at `address`, the process `pid`.
    pub(crate) fn begin(
        address: SocketAddr,
        pid: u32,
        load: &AcceptLoad,
        slices: u32,
    ) -> Result<Self> {
        let mut cycles = Cycles::new(address, load.tls)?;
        // A tenth, so that what is allocated once does not count; and as many as bring enough tickets.
        cycles.run((load.cycles / 10).max(2 * CONCURRENT))?;
        cycles.kind = load.tls.map(|it| match it {
            Handshake::Full => HandshakeKind::Full,
            Handshake::Resumed => HandshakeKind::Resumed,
        });
        thread::sleep(SETTLE);
        Ok(Self {
            pid,
            cycles,
            slice: load.cycles.div_ceil(slices as usize),
            from: CpuReading::take(pid)?,
            loaded: Duration::ZERO,
            done: 0,
        })
    }
}

impl Sliced for AcceptRun {
    fn slice(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.cycles.run(self.slice)?;
        self.loaded += begun.elapsed();
        self.done += self.slice;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Sample> {
        thread::sleep(SETTLE);
        let cpu = CpuReading::take(self.pid)?.since(&self.from, self.loaded);
        Ok(Sample::Accept(AcceptSample {
            cpu_us: cpu.micros() / self.done as f64,
            cycles_per_s: self.done as f64 / cpu.window_s,
            cpu,
        }))
    }
}

struct Cycles {
    address: SocketAddr,
    poller: Poller,
    request: Vec<u8>,
    close: Vec<u8>,
    close_reply: Vec<u8>,
    connector: Option<Connector>,
    /// What every handshake has to be; as long as it is `None`, any will do.
    kind: Option<HandshakeKind>,
}

/// One connection on its way.
struct Cycle {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    step: Step,
    /// What has come in this step.
    input: Vec<u8>,
    /// Whether the server's end of the stream is behind that.
    ended: bool,
}

enum Step {
    Connecting,
    Upgrading,
    Closing,
    Done,
}

impl Cycles {
    fn new(address: SocketAddr, tls: Option<Handshake>) -> Result<Self> {
        let mut close = Vec::new();
        frame::push_client_frame(&mut close, frame::CLOSE, &NORMAL);
        let mut close_reply = Vec::new();
        frame::push_server_frame(&mut close_reply, frame::CLOSE, &NORMAL);
        Ok(Self {
            address,
            poller: Poller::new()?,
            request: upgrade::request(&address.to_string()),
            close,
            close_reply,
            connector: tls.map(|it| Connector::new(it == Handshake::Resumed)).transpose()?,
            kind: None,
        })
    }

    fn run(&mut self, count: usize) -> Result<()> {
        let mut begun = count.min(CONCURRENT);
        let mut done = 0;
        let mut cycles =
            (0..begun).map(|at| self.begin(at).map(Some)).collect::<Result<Vec<_>>>()?;
        let mut ended = Vec::new();
        let patience = Patience::new();
        while done < count {
            patience.check()?;
            for ready in self.poller.wait()? {
                let Some(cycle) = cycles[ready.at].as_mut() else {
                    continue;
                };
                cycle.advance(ready.readable, &self.request, &self.close, &self.close_reply)?;
                if matches!(cycle.step, Step::Done) {
                    let tls = cycle.tls.as_ref();
                    if let Some(difference) = tls.and_then(|it| tls::unexpected(it, self.kind)) {
                        return Err(difference.into());
                    }
                    reset_on_close(&cycle.socket);
                    cycles[ready.at] = None;
                    ended.push(ready.at);
                }
            }
            done += ended.len();
            for at in ended.drain(..) {
                if begun < count {
                    cycles[at] = Some(self.begin(at)?);
                    begun += 1;
                }
            }
        }
        Ok(())
    }

    fn begin(&self, at: usize) -> Result<Cycle> {
        let family =
            if self.address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        match rustix::net::connect(&socket, &self.address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(format!("connecting: {error}").into()),
        }
        self.poller.add(&socket, at)?;
        let tls = self.connector.as_ref().map(Connector::connection).transpose()?.map(Box::new);
        let socket = socket.into();
        Ok(Cycle { socket, tls, step: Step::Connecting, input: Vec::new(), ended: false })
    }
}

impl Cycle {
    fn advance(
        &mut self,
        readable: bool,
        request: &[u8],
        close: &[u8],
        close_reply: &[u8],
    ) -> Result<()> {
        if let Step::Connecting = self.step {
            self.send(request)?;
            self.step = Step::Upgrading;
        }
        if !readable {
            return Ok(());
        }
        self.receive()?;
        match self.step {
            Step::Upgrading if upgrade::head_len(&self.input) == Some(self.input.len()) => {
                if !upgrade::is_accepted(&self.input) {
                    let head = String::from_utf8_lossy(&self.input);
                    return Err(format!("not the upgrade we asked for: {head:?}").into());
                }
                self.input.clear();
                self.send(close)?;
                self.step = Step::Closing;
            }
            Step::Closing if self.input.len() >= close_reply.len() => {
                if self.input != close_reply {
                    let input = &self.input;
                    return Err(format!("not the Close that we sent: {input:02x?}").into());
                }
                self.step = Step::Done;
            }
            _ if self.ended => return Err("the server closed without a Close".into()),
            _ => {}
        }
        Ok(())
    }

    /// Sends a few bytes, for which a new socket has room. rustls keeps them until the handshake is
    /// over, so that the request leaves together with its last message.
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.writer().write_all(bytes)?;
            return send_tls(tls, &self.socket);
        }
        match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) => Err("no room in a new socket".into()),
            Err(error) => Err(format!("sending: {error}").into()),
        }
    }

    /// Takes what is there. An end is fine only behind the server's Close.
    fn receive(&mut self) -> Result<()> {
        if self.tls.is_some() {
            return self.receive_tls();
        }
        let mut some = [0; 512];
        loop {
            match rustix::net::recv(&self.socket, &mut some, RecvFlags::empty()) {
                Ok((_, 0)) => {
                    self.ended = true;
                    return Ok(());
                }
                Ok((_, received)) => {
                    self.input.extend_from_slice(&some[..received]);
                    // Any end behind this is of no interest, so a short read is the last one.
                    if received < some.len() {
                        return Ok(());
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(format!("receiving: {error}").into()),
            }
        }
    }

    fn receive_tls(&mut self) -> Result<()> {
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        loop {
            match receive_tls(tls, &self.socket)? {
                None => break,
                Some(0) => {
                    self.ended = true;
                    break;
                }
                Some(_) => {}
            }
            // A handshake has something to say in between.
            send_tls(tls, &self.socket)?;
            let mut some = [0; 512];
            loop {
                match tls.reader().read(&mut some) {
                    // Behind the close_notify; the socket says so, too.
                    Ok(0) => break,
                    Ok(received) => self.input.extend_from_slice(&some[..received]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(format!("receiving: {error}").into()),
                }
            }
        }
        Ok(())
    }
}
