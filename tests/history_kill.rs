//! History in SQLite under `kill -9`: nothing that was confirmed is lost, and no id comes twice.
//!
//! A child publishes as fast as it can and prints what it is told; it is killed at some point, and the next one goes
//! on with the same database. `cargo test` does that forty times; `CORACLE_KILLS=1000 cargo test --features sqlite
//! --test history_kill` a thousand times.

mod support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use coracle::Server;
use coracle::history::{Durability, Sqlite, SqliteOptions};
use rusqlite::{Connection, OptionalExtension};
use support::*;

const NAME: &str = "kills_at_random_points_lose_no_confirmed_message_and_give_no_id_twice";
const DATABASE: &str = "CORACLE_KILL_TEST_DATABASE";
const ROUND: &str = "CORACLE_KILL_TEST_ROUND";
const ROOMS: [&str; 3] = ["quay", "sea", "shore"];

/// Kept of each room: several times what one child publishes, so that what is removed was checked before.
const KEPT: u64 = 2000;

/// Lines of a child after which it is killed, at most.
const LINES: u64 = 300;

/// What is published under an id: some are too large for a page of the database.
fn content(round: u64, room: &str, id: u64) -> String {
    let len = if id % 17 == 0 { 9000 } else { (id * 31 % 400) as usize };
    format!("{round} {room} {id} {}", "abcdefghij".repeat(len / 10))
}

fn options(round: u64) -> SqliteOptions {
    let durability = if round % 2 == 0 { Durability::PowerLoss } else { Durability::Kill };
    Sqlite::options().messages(KEPT).durability(durability)
}

/// One line in one system call: it has been written or it has not.
fn say(line: &str) {
    let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
}

/// Publishes until it is killed. Says `gives ROOM ID` before a message can reach anybody, and `kept ROOM ID` when it
/// has been confirmed.
fn child(path: &Path, round: u64) {
    let store = options(round).open(path).expect("the database opens after a kill");
    let server = Server::builder().workers(1).history(store).start().expect("the server starts");
    let history = server.history().unwrap();
    say("\nopen");
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let history = history.clone();
            scope.spawn(move || {
                let (mut waiting, mut number) = (std::collections::VecDeque::new(), thread);
                loop {
                    number += 1;
                    let room = ROOMS[number % ROOMS.len()];
                    let make = |id| {
                        say(&format!("gives {room} {id}"));
                        content(round, room, id)
                    };
                    let published = history.try_publish(room, make).expect("nothing else waits");
                    waiting.push_back((room, published.id, published.stored));
                    // Some on the way, so that groups come about.
                    if waiting.len() > number % 8 {
                        let (room, id, stored) = waiting.pop_front().unwrap();
                        within(stored).expect("there is room on the disk");
                        say(&format!("kept {room} {id}"));
                    }
                }
            });
        }
    });
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Default)]
struct Story {
    /// The highest id that each room was given, over all children.
    highest: HashMap<String, u64>,
    /// What was confirmed and has not been looked for yet.
    confirmed: Vec<(u64, String, u64)>,
    given: u64,
    checked: u64,
}

impl Story {
    /// Hears what a child has to say until it is killed after so many lines, and after that.
    fn hear(&mut self, round: u64, lines: u64, child: &mut Killed) {
        let mut out = BufReader::new(child.0.stdout.take().unwrap()).lines();
        // Before the first line there is what the test's harness says, and the opening of the database: some are killed
        // there.
        for heard in 0.. {
            if heard == lines {
                child.0.kill().unwrap();
            }
            let Some(line) = out.next() else { break };
            let line = line.unwrap();
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["gives", room, id] => self.given(room, id.parse().unwrap()),
                ["kept", room, id] => {
                    self.confirmed.push((round, room.to_owned(), id.parse().unwrap()));
                }
                _ => assert!(!line.contains("panicked"), "{line}"),
            }
        }
    }

    fn given(&mut self, room: &str, id: u64) {
        let highest = self.highest.entry(room.to_owned()).or_default();
        assert!(id > *highest, "room {room}: {id} after {highest}");
        *highest = id;
        self.given += 1;
    }

    /// Everything that was confirmed is there as it was.
    fn check(&mut self, path: &Path) {
        let database = Connection::open(path).unwrap();
        let sql = "SELECT payload FROM messages JOIN rooms ON rooms.number = room WHERE name = ?1 AND id = ?2";
        let mut find = database.prepare(sql).unwrap();
        for (round, room, id) in self.confirmed.drain(..) {
            let found = find.query_row((&room, id as i64), |row| row.get::<_, Vec<u8>>(0));
            let found = found.optional().unwrap();
            let found = found.unwrap_or_else(|| panic!("round {round}: {room} {id} is lost"));
            assert_eq!(String::from_utf8(found).unwrap(), content(round, &room, id));
            self.checked += 1;
        }
        let sound: String =
            database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
        let wrong: i64 = database
            .query_row(
                "SELECT count(*) FROM rooms WHERE count <> (SELECT count(*) FROM messages WHERE room = rooms.number)",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(wrong, 0, "what is counted is what is there");
    }
}

#[test]
fn kills_at_random_points_lose_no_confirmed_message_and_give_no_id_twice() {
    if let Some(path) = std::env::var_os(DATABASE) {
        let round = std::env::var(ROUND).unwrap().parse().unwrap();
        return child(Path::new(&path), round);
    }
    let kills = std::env::var("CORACLE_KILLS").map_or(40, |kills| kills.parse().unwrap());
    let scratch = Scratch::new("kill");
    let path = scratch.path("history.db");
    let mut story = Story::default();
    static STATE: AtomicU64 = AtomicU64::new(88_172_645_463_325_252);
    let dice = |n: u64| {
        let next =
            STATE.load(Ordering::Relaxed).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        STATE.store(next, Ordering::Relaxed);
        (next >> 33) % n
    };
    for round in 0..kills {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
            .env(DATABASE, &path)
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the test starts itself");
        let mut child = Killed(child);
        // One of eight while it opens the database.
        let lines = if dice(8) == 0 { dice(4) } else { dice(LINES) };
        story.hear(round, lines, &mut child);
        drop(child);
        // Every other time the next child is the first to see what was left.
        if round % 2 == 0 {
            story.check(&path);
        }
    }
    story.check(&path);
    println!(
        "{kills} kills: {} ids given, {} confirmed messages looked for, none lost",
        story.given, story.checked
    );
    assert!(story.checked > kills * 10, "{} of {} were looked for", story.checked, story.given);
    // And the server reads the end of it like any other.
    let server = start(Server::builder().history(options(0).open(&path).unwrap()));
    let history = server.handle.history().unwrap();
    for room in ROOMS {
        let page = within(history.list(room, None, 200)).unwrap();
        assert!(page.entries.windows(2).all(|pair| pair[0].id > pair[1].id));
        assert!(history.last_id(room) > story.highest[room], "{room}");
    }
    server.finish();
}
