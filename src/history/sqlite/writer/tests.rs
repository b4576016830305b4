//! The writer without its thread: one step after the other.

use std::path::PathBuf;
use std::sync::mpsc;

use super::super::schema;
use super::super::{Durability, Sqlite};
use super::*;
use crate::history::value::now;

/// A writer with a database of its own, which is removed with it.
struct Desk {
    writer: Writer,
    retention: Retention,
    next: u64,
    dir: PathBuf,
}

impl Desk {
    fn new(name: &str, options: SqliteOptions) -> Self {
        let dir = format!("coracle-writer-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(dir);
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("history.db");
        let place = Place::new(&path);
        let connection = schema::connect(&path, &options).unwrap();
        schema::prepare(&connection, &place).unwrap();
        let shared = (Arc::default(), Arc::new(Ending::new(connection.get_interrupt_handle())));
        let lock = File::create(dir.join("lock")).unwrap();
        let retention = Retention::new(&options);
        let (_, jobs) = mpsc::channel();
        let writer = Writer::new(connection, place, options, shared, jobs, lock).unwrap();
        Self { writer, retention, next: 1, dir }
    }

    /// One group of so many messages of each of these rooms.
    fn group(&mut self, rooms: &[(&str, u64)], at: u64) -> Result<(), StoreError> {
        let mut entries = Vec::new();
        for (room, count) in rooms {
            for _ in 0..*count {
                entries.push(Entry::new(*room, self.next, at, "news"));
                self.next += 1;
            }
        }
        self.writer.commit(&entries, &mut self.retention)
    }

    /// What is done after a group.
    fn remove(&mut self) {
        self.retention.go_on(&mut self.writer);
    }

    fn number(&self, sql: &str) -> i64 {
        self.writer.connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// What is kept of a room.
    fn kept(&self, room: &str) -> i64 {
        let sql = format!(
            "SELECT count(*) FROM messages WHERE room = (SELECT number FROM rooms WHERE name = '{room}')"
        );
        self.number(&sql)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

// The commit that says so was not written through with `Durability::Kill`: after a power failure the database said
// that the end had been clean, and the ids of what was lost with it were given once more.
#[test]
fn that_the_end_is_not_clean_is_written_through_to_the_disk_before_an_id_is_given() {
    for (name, durability, promised) in
        [("kill", Durability::Kill, 1), ("power", Durability::PowerLoss, 2)]
    {
        let mut desk = Desk::new(name, Sqlite::options().durability(durability));
        // How whatever is written to `meta` will be made durable.
        desk.writer
            .connection
            .execute_batch(
                "CREATE TEMP TABLE seen (mode); \
                 CREATE TEMP TRIGGER look AFTER UPDATE ON main.meta BEGIN \
                 INSERT INTO seen SELECT synchronous FROM pragma_synchronous; END;",
            )
            .unwrap();
        desk.writer.open(10).unwrap();
        assert_eq!(desk.number("SELECT value FROM meta WHERE key = 'clean'"), 0);
        assert!(desk.number("SELECT count(*) FROM seen") > 0);
        assert_eq!(desk.number("SELECT min(mode) FROM seen"), 2);
        assert_eq!(desk.number("PRAGMA synchronous"), promised);
    }
}

#[test]
fn after_each_group_every_kind_of_what_is_too_much_has_its_turn() {
    let hour = Duration::from_secs(3600);
    let mut desk = Desk::new("turns", Sqlite::options().messages(100).rooms(3).age(hour));
    desk.writer.open(10).unwrap();
    desk.group(&[("old", 1)], 1).unwrap();
    desk.group(&[("silent", 1)], now() - 1000).unwrap();
    desk.group(&[("first", 5000), ("second", 200), ("third", 1)], now()).unwrap();
    // As if it had been closed and opened again: nothing has to be removed at once, and much when there is time.
    desk.retention = Retention::new(&desk.writer.options);
    desk.writer.rooms.iter().for_each(|(room, row)| desk.retention.found(room, row));
    desk.remove();
    assert_eq!(desk.number("SELECT count(*) FROM messages WHERE at = 1"), 0, "what is too old");
    assert_eq!(desk.number("SELECT count(*) FROM rooms"), 3, "rooms that are too many");
    assert_eq!((desk.kept("first"), desk.kept("second")), (5000 - 512, 200), "a portion");
    // The first has more than one portion too much: it does not keep the second waiting, and what it gets meanwhile
    // makes it no larger.
    desk.group(&[("first", 256), ("third", 1)], now()).unwrap();
    desk.remove();
    assert_eq!(desk.kept("second"), 100);
    assert!(desk.kept("first") < 5000 - 512);
    while desk.retention.pause(desk.writer.rooms.len()).is_zero() {
        desk.remove();
    }
    assert_eq!((desk.kept("first"), desk.kept("second"), desk.kept("third")), (100, 100, 2));
    let counted = desk.number("SELECT sum(count) FROM rooms");
    assert_eq!(counted, desk.number("SELECT count(*) FROM messages"));
}

#[test]
fn what_nobody_waits_for_is_not_written() {
    let mut desk = Desk::new("abandoned", Sqlite::options().messages(10));
    desk.writer.open(10).unwrap();
    desk.group(&[("quay", 50)], now()).unwrap();
    let transaction = desk.writer.begin().unwrap();
    transaction.execute("DELETE FROM messages", []).unwrap();
    desk.writer.ending.abandon();
    assert!(desk.writer.commit_if_awaited(transaction).is_err(), "not at the last moment");
    let error = desk.group(&[("quay", 1)], now()).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Closed);
    desk.remove();
    assert_eq!(desk.kept("quay"), 50);
    assert_eq!(desk.writer.counters.trims_failed.load(Ordering::Relaxed), 0);
}
