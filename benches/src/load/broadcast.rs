//! One publisher, and everything it says to all members.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use coracle_benches::crowd::Crowd;
use serde::Serialize;

use super::Sliced;
use super::echo::Timing;
use crate::Result;
use crate::plan::Sample;
use crate::proc::{CpuReading, CpuSpent};

/// What is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct BroadcastLoad {
    /// Who hear it; the publisher is not among them.
    pub(crate) members: usize,
    /// Payload of one message, in bytes.
    pub(crate) size: usize,
    /// The publisher sends this many in one write, and the next as many when all have heard them.
    pub(crate) in_flight: usize,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BroadcastSample {
    /// CPU time of the server per delivery, in microseconds.
    pub(crate) cpu_us: f64,
    pub(crate) deliveries_per_s: f64,
    /// From the publisher's write until a member has the message, over all deliveries, in microseconds.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) cpu: CpuSpent,
}

/// Such a load on one server.
pub(crate) struct BroadcastRun {
    pid: u32,
    crowd: Crowd,
    in_flight: usize,
    slice: Duration,
    /// The server's CPU time before the first slice.
    from: CpuReading,
    /// What the slices took.
    loaded: Duration,
}

impl BroadcastRun {
    /// Opens the connections to the server at `address`, the process `pid`, and warms it up.
    pub(crate) fn begin(
        address: SocketAddr,
        pid: u32,
        load: &BroadcastLoad,
        timing: &Timing,
    ) -> Result<Self> {
        let mut run = Self {
            pid,
            crowd: Crowd::open(address, load.members, load.size)?,
            in_flight: load.in_flight,
            slice: timing.window / timing.slices,
            from: CpuReading::take(pid)?,
            loaded: Duration::ZERO,
        };
        run.load_for(timing.warm_up)?;
        run.crowd.restart();
        run.loaded = Duration::ZERO;
        run.from = CpuReading::take(pid)?;
        Ok(run)
    }

    /// Publishes for that long, and ends when all have heard everything.
    fn load_for(&mut self, duration: Duration) -> Result<()> {
        let each = (self.in_flight * self.crowd.members()) as u64;
        let begun = Instant::now();
        let mut due = self.crowd.deliveries();
        loop {
            self.crowd.publish(self.in_flight)?;
            due += each;
            while self.crowd.deliveries() < due {
                self.crowd.receive()?;
            }
            if begun.elapsed() >= duration {
                break;
            }
        }
        self.loaded += begun.elapsed();
        Ok(())
    }
}

impl Sliced for BroadcastRun {
    fn slice(&mut self) -> Result<()> {
        self.load_for(self.slice)
    }

    fn finish(mut self: Box<Self>) -> Result<Sample> {
        let cpu = CpuReading::take(self.pid)?.since(&self.from, self.loaded);
        self.crowd.finish()?;
        let deliveries = self.crowd.deliveries() as f64;
        let latencies = self.crowd.latencies();
        Ok(Sample::Broadcast(BroadcastSample {
            cpu_us: cpu.micros() / deliveries,
            deliveries_per_s: deliveries / cpu.window_s,
            p50_us: latencies.micros_at(0.5),
            p99_us: latencies.micros_at(0.99),
            cpu,
        }))
    }
}
