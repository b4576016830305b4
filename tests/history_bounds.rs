//! What history in SQLite bounds while it is at work: what is kept, how long its end takes, and whose it is.

#[path = "support/lasting.rs"]
mod lasting;
mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle::History;
use coracle::history::{Durability, Published, Sqlite, SqliteOptions, StoreErrorKind};
use lasting::*;
use rusqlite::Connection;
use support::*;

fn options() -> SqliteOptions {
    // What is tested here is not the disk.
    Sqlite::options().durability(Durability::Kill)
}

/// What a group has, at most, by default.
const GROUP: i64 = 256;

/// Another program at the same database.
fn stranger(path: &Path) -> Connection {
    Connection::open(path).unwrap()
}

fn number(database: &Connection, sql: &str) -> i64 {
    database.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Publishes to the rooms in turn while the database is locked, so that the groups become as large as they may, and
/// then waits until all of it is kept.
fn in_large_groups(path: &Path, history: &History, rooms: impl Iterator<Item = String>) {
    let stranger = stranger(path);
    stranger.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let publish = |room: String| history.try_publish(&room, |id| format!("{id}")).unwrap();
    let published: Vec<Published> = rooms.map(publish).collect();
    stranger.execute_batch("ROLLBACK").unwrap();
    for published in published {
        within(published.stored).unwrap();
    }
    within(history.flush()).unwrap();
}

/// Looks at a number all the time while something is done. Returns the largest that was seen, and what it was in the
/// end.
fn watched(path: &Path, sql: &str, work: impl FnOnce()) -> (i64, i64) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let database = stranger(path);
            let mut most = 0;
            while !over.load(Ordering::SeqCst) {
                most = most.max(number(&database, sql));
            }
            most
        });
        work();
        let last = number(&stranger(path), sql);
        over.store(true, Ordering::SeqCst);
        (watcher.join().unwrap(), last)
    })
}

// The writer removed from one room after each group, and from the same one as long as that had too much: of twenty
// busy rooms nineteen grew without end.
#[test]
fn all_of_many_busy_rooms_keep_as_many_as_they_may_while_they_are_busy() {
    let scratch = Scratch::new("bounds");
    let path = scratch.path("history.db");
    let server = start(serving(options().messages(100).open(&path).unwrap()));
    let history = server.handle.history().unwrap();
    let largest = "SELECT coalesce(max(n), 0) FROM (SELECT count(*) n FROM messages GROUP BY room)";
    for _ in 0..3 {
        let (most, last) = watched(&path, largest, || {
            let rooms = (0..6000).map(|number| format!("room {}", number % 20));
            in_large_groups(&path, &history, rooms);
        });
        assert!(most <= 112 + GROUP, "{most}");
        assert!(last <= 112, "{last}");
    }
    server.finish();
}

// The writer removed one room after each group, however many the group had brought.
#[test]
fn rooms_with_ever_new_names_do_not_become_more_than_there_may_be() {
    let scratch = Scratch::new("bounds");
    let path = scratch.path("history.db");
    let server = start(serving(options().rooms(32).open(&path).unwrap()));
    let history = server.handle.history().unwrap();
    for round in 0..3 {
        let (most, last) = watched(&path, "SELECT count(*) FROM rooms", || {
            let rooms = (0..3000).map(|number| format!("room {round} {}", number / 2));
            in_large_groups(&path, &history, rooms);
        });
        assert!(most <= 34 + GROUP, "{most}");
        assert!(last <= 34, "{last}");
    }
    let orphans = "SELECT count(*) FROM messages WHERE room NOT IN (SELECT number FROM rooms)";
    assert_eq!(number(&stranger(&path), orphans), 0);
    server.finish();
}

// A machine's clock had been ahead, and was set right. Until it came there again, nothing at all became too old.
#[test]
fn what_was_published_while_the_clock_was_ahead_becomes_too_old_like_all_else() {
    let scratch = Scratch::new("bounds");
    let path = scratch.path("history.db");
    let server = start(serving(options().open(&path).unwrap()));
    publish(&server.handle.history().unwrap(), "quay", 1..=1500);
    server.finish();
    let ahead =
        "UPDATE messages SET at = at + 86400000; UPDATE rooms SET touched = touched + 86400000";
    stranger(&path).execute_batch(ahead).unwrap();
    let store = options().age(Duration::from_millis(1)).open(&path).unwrap();
    let server = start(serving(store));
    let history = server.handle.history().unwrap();
    publish(&history, "sea", 1..=10);
    for room in ["quay", "sea"] {
        eventually("it is removed", || {
            within(history.list(room, None, 1)).unwrap().entries.is_empty()
        });
    }
    server.finish();
    let wrong = "SELECT count(*) FROM rooms WHERE count <> (SELECT count(*) FROM messages WHERE room = rooms.number)";
    assert_eq!(number(&stranger(&path), wrong), 0, "what is counted is what is there");
}

// Only rooms that got more were looked at.
#[test]
fn a_server_that_may_keep_less_removes_what_is_too_much_of_silent_rooms_as_well() {
    let scratch = Scratch::new("bounds");
    let path = scratch.path("history.db");
    let server = start(serving(options().open(&path).unwrap()));
    let history = server.handle.history().unwrap();
    for room in ["quay", "sea", "shore"] {
        publish(&history, room, 1..=1000);
    }
    server.finish();
    let server = start(serving(options().messages(10).rooms(2).open(&path).unwrap()));
    let database = stranger(&path);
    eventually("there is as much as there may be", || {
        number(&database, "SELECT count(*) FROM messages") == 20
            && number(&database, "SELECT count(*) FROM rooms") == 2
    });
    server.finish();
}

// The server gave up waiting for a database that was locked, and reported what was lost. The writer went on for
// minutes, a group after the other: the database could not be opened again, and what had been reported as lost was
// written after all.
#[test]
fn a_stop_that_waits_no_longer_is_the_end_of_the_writer() {
    let scratch = Scratch::new("bounds");
    let path = scratch.path("history.db");
    let store = options().busy_timeout(Duration::from_secs(600)).group(8).open(&path).unwrap();
    let server = start(serving(store).configure(|config| {
        config.timeouts.stop = Duration::from_millis(10);
    }));
    let history = server.handle.history().unwrap();
    let stranger = stranger(&path);
    stranger.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let publish = |_| within(history.publish("quay", |id| format!("{id}"))).unwrap();
    let published: Vec<Published> = (0..100).map(publish).collect();
    let report = server.finish();
    assert_eq!((report.history_flushed, report.history_lost), (0, 100));
    for published in published {
        let error = within(published.stored).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Closed, "{error}");
    }
    stranger.execute_batch("ROLLBACK").unwrap();
    // The lock beside it goes with the thread.
    let mut again = None;
    eventually("it can be opened again", || {
        match options().open(&path) {
            Ok(store) => again = Some(store),
            Err(error) => assert_eq!(error.kind(), StoreErrorKind::InUse, "{error}"),
        }
        again.is_some()
    });
    assert_eq!(number(&stranger, "SELECT count(*) FROM messages"), 0);
}

#[test]
fn one_database_by_several_names_is_one() {
    let scratch = Scratch::new("bounds");
    let directory = scratch.path("directory");
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("history.db");
    // Before there is anything, and after that.
    let link = scratch.path("link.db");
    std::os::unix::fs::symlink(Path::new("directory/history.db"), &link).unwrap();
    for first in [&link, &path] {
        let store = options().open(first).unwrap();
        let names: [PathBuf; 3] =
            [link.clone(), path.clone(), directory.join("../directory/./history.db")];
        for name in names {
            let error = options().open(&name).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::InUse, "{name:?}: {error}");
        }
        drop(store);
    }
    assert!(!scratch.path("link.db-lock").exists());
}

// SQLite takes a name that begins like this for a URI, unless it is told otherwise.
#[test]
fn a_path_is_a_path_whatever_it_looks_like() {
    let scratch = Scratch::new("bounds");
    // All others of these tests have absolute paths.
    let before = std::env::current_dir().unwrap();
    std::env::set_current_dir(scratch.dir()).unwrap();
    let opened = options().open("file:history.db?mode=memory");
    std::env::set_current_dir(before).unwrap();
    drop(opened.unwrap());
    assert!(scratch.path("file:history.db?mode=memory").exists());
}

// More milliseconds than SQLite counts were a panic.
#[test]
fn a_busy_timeout_may_be_as_long_as_one_likes() {
    let scratch = Scratch::new("bounds");
    let path = scratch.path("history.db");
    let days = Duration::from_secs(30 * 24 * 60 * 60);
    drop(options().busy_timeout(days).open(&path).unwrap());
    drop(options().busy_timeout(Duration::MAX).open(&path).unwrap());
}
