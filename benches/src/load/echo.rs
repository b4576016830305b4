//! Messages there and back, a fixed number in flight on each of a fixed number of connections.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use coracle_benches::frame;
use coracle_benches::tls::Connector;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use serde::Serialize;

use super::{Client, Patience, Poller, Sliced, payload, receive_tls, send_tls};
use crate::Result;
use crate::plan::{Sample, seconds};
use crate::proc::{CpuReading, CpuSpent};

/// More batches than this are measured, but not each one's time; 4 MiB are enough for percentiles.
const MAX_LATENCIES: usize = 1 << 20;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct EchoLoad {
    pub(crate) connections: usize,
    /// Payload of one message, in bytes.
    pub(crate) size: usize,
    /// A connection sends this many in one write, and the next as many when all are back.
    pub(crate) in_flight: usize,
    pub(crate) text: bool,
    pub(crate) tls: bool,
}

/// For how long in all.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Timing {
    #[serde(serialize_with = "seconds")]
    pub(crate) warm_up: Duration,
    #[serde(serialize_with = "seconds")]
    pub(crate) window: Duration,
    /// The window is cut into as many slices, and the targets take turns.
    pub(crate) slices: u32,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct EchoSample {
    /// CPU time of the server per message, in microseconds.
    pub(crate) cpu_us: f64,
    pub(crate) messages_per_s: f64,
    /// From the write of a batch until its last echo is read, in microseconds.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) cpu: CpuSpent,
}

/// Such a load on one server.
pub(crate) struct EchoRun {
    pid: u32,
    batch: Batch,
    poller: Poller,
    connections: Vec<Connection>,
    slice: Duration,
    /// Room for what is thrown away: without TLS not written to, but the kernel wants it all the same.
    discard: Vec<u8>,
    /// The server's CPU time before the first slice.
    from: CpuReading,
    /// What the slices took.
    loaded: Duration,
    batches: u64,
    latencies: Vec<f32>,
}

impl EchoRun {
    /// Opens the connections to the server at `address`, the process `pid`, and warms it up.
    pub(crate) fn begin(
        address: SocketAddr,
        pid: u32,
        load: &EchoLoad,
        timing: &Timing,
    ) -> Result<Self> {
        let opcode = if load.text { frame::TEXT } else { frame::BINARY };
        let payload = payload(load.size);
        let batch = Batch::new(opcode, &payload, load.in_flight);
        let poller = Poller::new()?;
        let mut connections = Vec::with_capacity(load.connections);
        let patience = Patience::new();
        let tls = load.tls.then(|| Connector::new(false)).transpose()?;
        for at in 0..load.connections {
            patience.check()?;
            let mut client = Client::open(address, tls.as_ref())?;
            client.exchange(opcode, &payload)?;
            client.socket.set_nonblocking(true)?;
            poller.add(&client.socket, at)?;
            connections.push(Connection { client, sent: 0, awaited: 0, started: Instant::now() });
        }
        let mut run = Self {
            pid,
            discard: vec![0; batch.echoes.len()],
            batch,
            poller,
            connections,
            slice: timing.window / timing.slices,
            from: CpuReading::take(pid)?,
            loaded: Duration::ZERO,
            batches: 0,
            latencies: Vec::with_capacity(MAX_LATENCIES),
        };
        run.load_for(timing.warm_up)?;
        run.loaded = Duration::ZERO;
        run.batches = 0;
        run.latencies.clear();
        run.from = CpuReading::take(pid)?;
        Ok(run)
    }

    /// Keeps every connection busy for that long, and ends when all their batches are back.
    fn load_for(&mut self, duration: Duration) -> Result<()> {
        let begun = Instant::now();
        for connection in &mut self.connections {
            connection.start(&self.batch)?;
        }
        let mut busy = self.connections.len();
        while busy > 0 {
            for ready in self.poller.wait()? {
                let connection = &mut self.connections[ready.at];
                connection.send(&self.batch)?;
                if !ready.readable || connection.awaited == 0 {
                    continue;
                }
                connection.receive(&self.batch, &mut self.discard)?;
                if connection.awaited > 0 {
                    continue;
                }
                let now = Instant::now();
                self.batches += 1;
                if self.latencies.len() < MAX_LATENCIES {
                    self.latencies.push(micros(now - connection.started));
                }
                if now - begun < duration {
                    connection.start(&self.batch)?;
                } else {
                    busy -= 1;
                }
            }
        }
        self.loaded += begun.elapsed();
        Ok(())
    }
}

impl Sliced for EchoRun {
    fn slice(&mut self) -> Result<()> {
        self.load_for(self.slice)
    }

    fn finish(self: Box<Self>) -> Result<Sample> {
        let cpu = CpuReading::take(self.pid)?.since(&self.from, self.loaded);
        let messages = self.batches as f64 * self.batch.len as f64;
        let mut latencies = self.latencies;
        latencies.sort_unstable_by(f32::total_cmp);
        let percentile = |percent: usize| {
            let at = latencies.len() * percent / 100;
            latencies.get(at).map_or(f64::NAN, |&us| f64::from(us))
        };
        Ok(Sample::Echo(EchoSample {
            cpu_us: cpu.micros() / messages,
            messages_per_s: messages / cpu.window_s,
            p50_us: percentile(50),
            p99_us: percentile(99),
            cpu,
        }))
    }
}

fn micros(duration: Duration) -> f32 {
    duration.as_secs_f32() * 1e6
}

/// What a connection sends in one go, and what it gets for that.
struct Batch {
    frames: Vec<u8>,
    /// Messages in it.
    len: usize,
    /// Their echoes.
    echoes: Vec<u8>,
}

impl Batch {
    fn new(opcode: u8, payload: &[u8], len: usize) -> Self {
        let mut frames = Vec::new();
        let mut echoes = Vec::new();
        for _ in 0..len {
            frame::push_client_frame(&mut frames, opcode, payload);
            frame::push_server_frame(&mut echoes, opcode, payload);
        }
        Self { frames, len, echoes }
    }
}

struct Connection {
    client: Client,
    /// Bytes of the batch that are sent, or handed to TLS.
    sent: usize,
    /// Bytes of its echoes that are still to come.
    awaited: usize,
    /// When the batch was begun.
    started: Instant,
}

impl Connection {
    fn start(&mut self, batch: &Batch) -> Result<()> {
        self.sent = 0;
        self.awaited = batch.echoes.len();
        self.started = Instant::now();
        if let Some(tls) = &mut self.client.tls {
            tls.writer().write_all(&batch.frames)?;
            self.sent = batch.frames.len();
        }
        self.send(batch)
    }

    /// Sends what the socket takes; its next edge brings us back for the rest.
    fn send(&mut self, batch: &Batch) -> Result<()> {
        if let Some(tls) = &mut self.client.tls {
            return send_tls(tls, &self.client.socket);
        }
        while self.sent < batch.frames.len() {
            let rest = &batch.frames[self.sent..];
            match rustix::net::send(&self.client.socket, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(format!("sending: {error}").into()),
            }
        }
        Ok(())
    }

    /// Throws away what has come of the echoes.
    ///
    /// Their bytes were compared once; from then on the client's share of the work is kept small. Over
    /// TLS they have to be read anyway, and are compared each time.
    fn receive(&mut self, batch: &Batch, discard: &mut [u8]) -> Result<()> {
        if self.client.tls.is_some() {
            return self.receive_tls(batch, discard);
        }
        while self.awaited > 0 {
            let room = &mut discard[..self.awaited];
            match rustix::net::recv(&self.client.socket, room, RecvFlags::TRUNC) {
                Ok((_, 0)) => return Err("the server closed a connection".into()),
                Ok((_, received)) => self.awaited -= received,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(format!("receiving: {error}").into()),
            }
        }
        Ok(())
    }

    fn receive_tls(&mut self, batch: &Batch, decrypted: &mut [u8]) -> Result<()> {
        let Client { socket, tls: Some(tls) } = &mut self.client else {
            return Ok(());
        };
        while self.awaited > 0 {
            match receive_tls(tls, socket)? {
                None => break,
                Some(0) => return Err("the server closed a connection".into()),
                Some(_) => {}
            }
            while self.awaited > 0 {
                let rest = &batch.echoes[batch.echoes.len() - self.awaited..];
                match tls.reader().read(decrypted) {
                    Ok(count) if count > 0 && rest.starts_with(&decrypted[..count]) => {
                        self.awaited -= count;
                    }
                    Ok(0) => return Err("the server closed a connection".into()),
                    Ok(_) => return Err("an echo is wrong".into()),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(format!("receiving: {error}").into()),
                }
            }
        }
        Ok(())
    }
}
