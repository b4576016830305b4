//! What a connection costs that says nothing: memory, and CPU time over a while.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use coracle_benches::tls::Connector;
use coracle_benches::{frame, upgrade};
use serde::Serialize;

use super::{Client, Patience, payload};
use crate::Result;
use crate::proc::{self, CpuReading};

/// Opened, used and closed first, so that what is allocated once does not count.
const WARM_UP: usize = 100;

/// Each connection sends this much once.
const MESSAGE_BYTES: usize = 64;

/// Until memory is looked at; long enough for what a server puts off.
const SETTLE: Duration = Duration::from_millis(1500);

/// What is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct IdleLoad {
    pub(crate) connections: usize,
    /// The connections agree on permessage-deflate, and their message is compressed, there and back.
    pub(crate) deflate: bool,
    pub(crate) tls: bool,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct IdleSample {
    /// Resident memory per connection.
    pub(crate) bytes: f64,
    /// CPU time of the server per second with all connections idle, in microseconds.
    pub(crate) cpu_us_per_s: f64,
    pub(crate) resident_before: u64,
    pub(crate) resident_after: u64,
}

/// Fills the server at `address`, holds for that long, and measures the process `pid`.
pub(crate) fn run(
    address: SocketAddr,
    pid: u32,
    load: &IdleLoad,
    hold: Duration,
) -> Result<IdleSample> {
    drop(open(address, &IdleLoad { connections: WARM_UP, ..*load })?);
    thread::sleep(SETTLE / 3);
    let resident_before = proc::resident_bytes(pid)?;
    let clients = open(address, load)?;
    thread::sleep(SETTLE);
    let resident_after = proc::resident_bytes(pid)?;
    let from = CpuReading::take(pid)?;
    thread::sleep(hold);
    let cpu = CpuReading::take(pid)?.since(&from, hold);
    let grown = resident_after as f64 - resident_before as f64;
    Ok(IdleSample {
        bytes: grown / clients.len() as f64,
        cpu_us_per_s: cpu.micros() / cpu.window_s,
        resident_before,
        resident_after,
    })
}

/// Opens connections that have had one exchange each.
fn open(address: SocketAddr, load: &IdleLoad) -> Result<Vec<Client>> {
    let payload = payload(MESSAGE_BYTES);
    let patience = Patience::new();
    let tls = load.tls.then(|| Connector::new(false)).transpose()?;
    (0..load.connections)
        .map(|_| {
            patience.check()?;
            if load.deflate {
                let request = upgrade::request_deflate(&address.to_string());
                let mut client = Client::open_with(address, tls.as_ref(), &request)?;
                client.exchange_compressed(&[b'a'; 1024])?;
                return Ok(client);
            }
            let mut client = Client::open(address, tls.as_ref())?;
            client.exchange(frame::BINARY, &payload)?;
            Ok(client)
        })
        .collect()
}
