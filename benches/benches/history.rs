//! What it costs to keep what is published, in SQLite, beside the same inserts by hand.
//!
//! ```sh
//! cargo bench --manifest-path benches/Cargo.toml --bench history -- /dev/shm
//! ```
//!
//! Messages of 256 bytes to ten rooms, from one thread. By hand: rusqlite with the same pragmas, and transactions of the
//! same number of the same rows, in the same thread. With history: published (to rooms without members), with at most as
//! many on the way as may wait, until all are confirmed. The database lies in the directory that is named, or in the
//! system's for temporary files. Of five times each it is the median, one after the other in turn.
#![allow(missing_docs, reason = "a program")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use coracle::Server;
use coracle::history::{Durability, PublishError, Sqlite};
use rusqlite::{Connection, TransactionBehavior, params};

const TIMES: usize = 5;
const ROOMS: usize = 10;
const PAYLOAD: usize = 256;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome {
    // cargo's own arguments are of no use here.
    let place = std::env::args().skip(1).find(|it| !it.starts_with("--"));
    let place = place.map_or_else(std::env::temp_dir, PathBuf::from);
    let path = place.join(format!("coracle-bench-{}.db", std::process::id()));
    println!("{PAYLOAD} bytes each, to {ROOMS} rooms, in {}", place.display());
    println!("durability   group   messages   by hand/s   history/s   ratio   mean group");
    for (durability, messages) in [(Durability::Kill, 200_000), (Durability::PowerLoss, 50_000)] {
        for group in [16, 64, 256, 512] {
            let (mut by_hand, mut history, mut mean) = (Vec::new(), Vec::new(), 0);
            for _ in 0..TIMES {
                by_hand.push(fresh(&path, |path| plain(path, durability, group, messages))?);
                let (rate, groups) =
                    fresh(&path, |path| published(path, durability, group, messages))?;
                history.push(rate);
                mean = messages as u64 / groups.max(1);
            }
            let median = |mut all: Vec<u64>| {
                all.sort_unstable();
                all[all.len() / 2]
            };
            let (by_hand, history) = (median(by_hand), median(history));
            println!(
                "{:<10} {group:>7} {messages:>10} {by_hand:>11} {history:>11} {:>7.2} {mean:>12}",
                format!("{durability:?}"),
                history as f64 / by_hand as f64,
            );
        }
    }
    Ok(())
}

/// With no database there before and after.
fn fresh<T>(path: &Path, work: impl FnOnce(&Path) -> Outcome<T>) -> Outcome<T> {
    let outcome = work(path);
    for more in ["", "-wal", "-shm", "-lock"] {
        let mut name = path.as_os_str().to_owned();
        name.push(more);
        let _ = std::fs::remove_file(name);
    }
    outcome
}

fn payload(id: usize) -> String {
    format!("{id:0>PAYLOAD$}")
}

/// The same table and index, and the same row for each message.
fn plain(path: &Path, durability: Durability, group: usize, messages: usize) -> Outcome<u64> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let synchronous = if durability == Durability::Kill { "NORMAL" } else { "FULL" };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.pragma_update(None, "journal_size_limit", 4 * 1024 * 1024)?;
    connection.execute_batch(
        "CREATE TABLE messages (number INTEGER PRIMARY KEY, room INTEGER NOT NULL, id INTEGER NOT NULL,
             at INTEGER NOT NULL, kind INTEGER NOT NULL, payload BLOB NOT NULL);
         CREATE UNIQUE INDEX messages_by_id ON messages (room, id);",
    )?;
    let began = Instant::now();
    let all: Vec<usize> = (0..messages).collect();
    for group in all.chunks(group) {
        let behavior = TransactionBehavior::Immediate;
        let transaction = rusqlite::Transaction::new_unchecked(&connection, behavior)?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO messages (room, id, at, kind, payload) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for number in group {
                let (room, id) = ((number % ROOMS) as i64, (number / ROOMS) as i64);
                insert.execute(params![room, id, 0, 0, payload(*number).as_bytes()])?;
            }
        }
        transaction.commit()?;
    }
    Ok(rate(messages, began))
}

/// Also returns how many groups it were.
fn published(
    path: &Path,
    durability: Durability,
    group: usize,
    messages: usize,
) -> Outcome<(u64, u64)> {
    let store = Sqlite::options().messages(u64::MAX).durability(durability).group(group);
    let server = Server::builder().workers(1).history(store.open(path)?).start()?;
    let history = server.history().ok_or("there is a store")?;
    let rooms: Vec<String> = (0..ROOMS).map(|room| format!("room {room}")).collect();
    let most = 16_000;
    let began = Instant::now();
    let mut last = None;
    for number in 0..messages {
        // As one who does not want to lose any: he waits for one of those on the way.
        if number % (most / 2) == 0
            && let Some(stored) = last.take()
        {
            smol::block_on(stored)?;
        }
        let published = match history.try_publish(&rooms[number % ROOMS], |_| payload(number)) {
            Err(PublishError::Full) => return Err("nobody is in these rooms".into()),
            other => other?,
        };
        if number % (most / 2) == 0 {
            last = Some(published.stored);
        }
    }
    smol::block_on(history.flush())?;
    let rate = rate(messages, began);
    let stats = history.stats();
    if stats.appended != messages as u64 {
        return Err(format!("not all were kept: {stats:?}").into());
    }
    smol::block_on(server.stop());
    Ok((rate, stats.commits))
}

fn rate(messages: usize, began: Instant) -> u64 {
    (messages as f64 / began.elapsed().as_secs_f64()) as u64
}
