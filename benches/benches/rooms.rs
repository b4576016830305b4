//! What it costs to join a room and to leave one, by how many rooms there are, and what stays behind.
//!
//! ```sh
//! cargo bench --manifest-path benches/Cargo.toml --bench rooms
//! ```
//!
//! A thousand sessions in memory, ten members in each room. The rooms are filled, then members leave and come
//! back, at random, then all leave; and all of it again. Of the times it is the median. The resident memory is
//! the whole process's, with its thousand sessions, before the first cycle, when the rooms are full, and after
//! the last one; if anything were left behind, it would grow from cycle to cycle.
#![allow(missing_docs, reason = "a program")]

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use coracle::{Server, ServerHandle, Session};
use smol::io::{AsyncReadExt, AsyncWriteExt};

const SESSIONS: usize = 1000;
const MEMBERS: usize = 10;
const CHANGES: usize = 200_000;
const CYCLES: usize = 5;

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // cargo's own arguments are of no use here.
    let server = Server::builder().workers(1).start()?;
    let _clients = connect(&server)?;
    let sessions = server.sessions().all();
    assert_eq!(sessions.len(), SESSIONS);
    println!("{SESSIONS} sessions, {MEMBERS} members in each room, {CYCLES} cycles");
    println!("  rooms   join ns   leave ns   leave and join ns   KiB before   full   after");
    for rooms in [100, 1000, 10_000] {
        let names: Vec<String> = (0..rooms).map(|room| format!("room {room}")).collect();
        let cycles: Vec<Cycle> = (0..CYCLES).map(|_| cycle(&server, &sessions, &names)).collect();
        let median = |of: fn(&Cycle) -> u64| {
            let mut all: Vec<u64> = cycles.iter().map(of).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        println!(
            "{rooms:>7} {:>9} {:>10} {:>19} {:>12} {:>6} {:>7}",
            median(|it| it.join),
            median(|it| it.leave),
            median(|it| it.change),
            cycles[0].before,
            median(|it| it.full),
            cycles[CYCLES - 1].after,
        );
    }
    smol::block_on(server.stop());
    Ok(())
}

struct Cycle {
    join: u64,
    leave: u64,
    change: u64,
    before: u64,
    full: u64,
    after: u64,
}

fn cycle(server: &ServerHandle, sessions: &[Session], names: &[String]) -> Cycle {
    let rooms = server.rooms();
    let before = resident();
    // Who is in which room: the members of a room follow each other in the list of sessions.
    let member = |room: usize, place: usize| (room * MEMBERS + place) % SESSIONS;
    let memberships = names.len() * MEMBERS;
    let join = timed(memberships, || {
        for (room, name) in names.iter().enumerate() {
            for place in 0..MEMBERS {
                sessions[member(room, place)].join(name).expect("there is room");
            }
        }
    });
    assert_eq!(rooms.count(), names.len());
    let full = resident();
    let mut state = 1_u64;
    let mut dice = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let picks: Vec<_> = (0..CHANGES).map(|_| (dice(names.len()), dice(MEMBERS))).collect();
    let change = timed(CHANGES, || {
        for (room, place) in &picks {
            let session = &sessions[member(*room, *place)];
            assert!(session.leave(&names[*room]));
            session.join(&names[*room]).expect("there is room");
        }
    });
    let leave = timed(memberships, || {
        for (room, name) in names.iter().enumerate() {
            for place in 0..MEMBERS {
                assert!(sessions[member(room, place)].leave(black_box(name)));
            }
        }
    });
    assert_eq!(rooms.count(), 0, "empty rooms vanish");
    Cycle { join, leave, change, before, full, after: resident() }
}

/// Nanoseconds for each of so many.
fn timed(count: usize, work: impl FnOnce()) -> u64 {
    let began = Instant::now();
    work();
    let took: Duration = began.elapsed();
    took.as_nanos() as u64 / count as u64
}

fn connect(
    server: &ServerHandle,
) -> Result<Vec<coracle::MemoryStream>, Box<dyn std::error::Error>> {
    smol::block_on(async {
        let mut clients = Vec::new();
        for _ in 0..SESSIONS {
            let mut client = server.connect()?;
            client.write_all(REQUEST.as_bytes()).await?;
            let mut answer = [0; 12];
            client.read_exact(&mut answer).await?;
            assert_eq!(&answer, b"HTTP/1.1 101");
            clients.push(client);
        }
        Ok(clients)
    })
}

/// KiB of memory that the process has.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or_default()
}
