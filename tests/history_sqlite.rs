//! History in SQLite: over restarts, with a database that is locked, full, foreign or newer, and its retention.

#[path = "support/lasting.rs"]
mod lasting;
mod support;

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use coracle::history::{Durability, Since, Sqlite, StoreErrorKind, leap};
use coracle::{Error, Server};
use lasting::*;
use rusqlite::Connection;
use support::*;

fn options() -> coracle::history::SqliteOptions {
    // What is tested here is not the disk.
    Sqlite::options().durability(Durability::Kill)
}

#[track_caller]
fn open(path: &Path) -> Sqlite {
    options().open(path).expect("the database opens")
}

/// Another program at the same database.
fn stranger(path: &Path) -> Connection {
    Connection::open(path).unwrap()
}

#[test]
fn what_was_kept_is_there_after_a_restart_and_the_ids_go_on() {
    let scratch = Scratch::new("history");
    let path = scratch.path("history.db");
    let server = start(serving(open(&path)));
    let history = server.handle.history().unwrap();
    let epoch = history.epoch();
    publish(&history, "quay", 1..=100);
    publish(&history, "sea", 1..=3);
    let bytes = vec![0, 159, 146, 150];
    within(within(history.publish("raw", |_| bytes.clone())).unwrap().stored).unwrap();
    // What has not been confirmed when it stops is flushed.
    let report = server.finish();
    assert_eq!(report.history_lost, 0);
    let server = start(serving(open(&path)));
    let history = server.handle.history().unwrap();
    assert_eq!(history.epoch(), epoch);
    publish(&history, "quay", 101..=101);
    publish(&history, "sea", 4..=4);
    let page = within(history.list("raw", None, 5)).unwrap();
    assert_eq!(page.entries[0].message.as_bytes(), bytes);
    assert_eq!(page.entries[0].message.as_text(), None);
    let mut client = server.client();
    client.send_frame(TEXT, format!("join quay {epoch} 90").as_bytes());
    assert_eq!(ids(&client.texts(11)), (91..=101).collect::<Vec<_>>());
    assert_eq!(client.expect_text(), "joined recovered 11 101");
    client.goodbye();
    assert_eq!(history.stats().failed, 0);
    server.finish();
}

// Here what is missed comes from three places: the database, what waits for it, and what is new.
#[test]
fn who_comes_back_gets_exactly_what_was_missed_while_others_go_on_publishing() {
    let scratch = Scratch::new("history");
    let path = scratch.path("history.db");
    come_and_go(options().group(16).messages(100_000).open(&path).unwrap());
}

#[test]
fn a_stop_keeps_what_is_on_the_way_and_the_report_counts_it() {
    let scratch = Scratch::new("history");
    let path = scratch.path("history.db");
    let server = start(serving(options().group(8).open(&path).unwrap()));
    let history = server.handle.history().unwrap();
    // So that something is on the way for certain.
    let stranger = stranger(&path);
    stranger.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let published: Vec<_> =
        (0..100).map(|_| within(history.publish("quay", |id| format!("{id}"))).unwrap()).collect();
    assert_eq!(history.stats().pending_messages, 100);
    let handle = server.handle.clone();
    handle.request_stop();
    // The workers have ended, and only the history is left.
    eventually("nothing can be published any more", || {
        history.try_publish("sea", |id| format!("{id}")).is_err()
    });
    stranger.execute_batch("ROLLBACK").unwrap();
    let report = server.finish();
    assert_eq!(report.history_lost, 0, "{report:?}");
    assert!(report.history_flushed >= 100, "{report:?}");
    for published in published {
        within(published.stored).unwrap();
    }
    let server = start(serving(open(&path)));
    let history = server.handle.history().unwrap();
    assert_eq!(within(history.list("quay", None, 200)).unwrap().entries.len(), 100);
    assert_eq!(history.last_id("quay"), 100, "the end was clean");
    server.finish();
}

// Another process locks the database for longer than the writer waits. The members get everything at once; what
// could not be kept is reported; the ids of that time never come again, and a replay over them says what it is.
#[test]
fn a_locked_database_delays_no_member_and_is_reported() {
    let scratch = Scratch::new("history");
    let path = scratch.path("history.db");
    let (sender, lost) = heard();
    let sender = Mutex::new(sender);
    let store = options().busy_timeout(Duration::from_millis(20)).open(&path).unwrap();
    let server = start(serving(store).on_history_error(move |lost| {
        sender.lock().unwrap().send((lost.id, lost.error.kind())).unwrap();
    }));
    let history = server.handle.history().unwrap();
    let epoch = history.epoch();
    let mut client = server.client();
    assert_eq!(client.command("join quay - 0"), "joined recovered 0 0");
    publish(&history, "quay", 1..=5);
    within(history.flush()).unwrap();
    let stranger = stranger(&path);
    stranger.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let published: Vec<_> =
        (0..5).map(|_| within(history.publish("quay", |id| format!("{id}"))).unwrap()).collect();
    assert_eq!(ids(&client.texts(10)), (1..=10).collect::<Vec<_>>());
    for (published, id) in published.into_iter().zip(6..) {
        let error = within(published.stored).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Locked, "{error}");
        assert!(error.to_string().contains("history.db"), "{error}");
        assert_eq!(lost.next(), (id, StoreErrorKind::Locked));
    }
    // It is read while it is locked.
    let since = |after| Since { epoch, after };
    let replay = within(history.replay("quay", since(3), 10)).unwrap();
    assert_eq!(replay.entries.iter().map(|it| it.id).collect::<Vec<_>>(), [4, 5]);
    assert!(!replay.recovered);
    stranger.execute_batch("ROLLBACK").unwrap();
    let next = within(history.publish("quay", |id| format!("{id}"))).unwrap();
    assert_eq!(next.id, 11);
    within(next.stored).unwrap();
    assert_eq!((history.stats().failed, history.stats().appended), (5, 6));
    assert!(within(history.replay("quay", since(10), 10)).unwrap().recovered);
    // And when the last ones of all are lost before a clean end, their ids do not come again either.
    stranger.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let last = within(history.publish("quay", |id| format!("{id}"))).unwrap();
    within(last.stored).unwrap_err();
    stranger.execute_batch("ROLLBACK").unwrap();
    assert_eq!(ids(&client.texts(2)), [11, 12]);
    client.goodbye();
    server.finish();
    let server = start(serving(open(&path)));
    let history = server.handle.history().unwrap();
    assert_eq!(history.last_id("quay"), 12);
    assert!(!within(history.replay("quay", since(11), 10)).unwrap().recovered);
    assert!(within(history.replay("quay", since(12), 10)).unwrap().recovered);
    server.finish();
}

#[test]
fn a_database_that_stays_locked_over_the_stop_costs_a_leap() {
    let scratch = Scratch::new("history");
    let path = scratch.path("history.db");
    let store = options().busy_timeout(Duration::from_millis(20)).open(&path).unwrap();
    let server = start(serving(store));
    let history = server.handle.history().unwrap();
    publish(&history, "quay", 1..=2);
    within(history.flush()).unwrap();
    let stranger = stranger(&path);
    stranger.execute_batch("BEGIN EXCLUSIVE").unwrap();
    publish(&history, "quay", 3..=3);
    let report = server.finish();
    assert_eq!(report.history_flushed, 0);
    // It may have been given up before the stop came to it.
    assert!(report.history_lost <= 1, "{report:?}");
    assert_eq!(history.stats().failed, 1);
    stranger.execute_batch("ROLLBACK").unwrap();
    let server = start(serving(open(&path)));
    let history = server.handle.history().unwrap();
    assert_eq!(history.last_id("quay"), leap(2).unwrap());
    server.finish();
}

#[test]
fn a_full_database_delays_no_member_and_goes_on_when_there_is_space_again() {
    let scratch = Scratch::new("history");
    let path = scratch.path("history.db");
    let store = options().max_bytes(256 * 1024).messages(10_000).open(&path).unwrap();
    let server = start(serving(store));
    let history = server.handle.history().unwrap();
    let mut client = server.client();
    assert_eq!(client.command("join quay - 0"), "joined recovered 0 0");
    let large = |id| format!("{id} {}", "x".repeat(10_000));
    let outcomes: Vec<_> = (1..=60)
        .map(|expected| {
            let published = within(history.publish("quay", large)).unwrap();
            assert_eq!(published.id, expected);
            assert_eq!(id(&client.expect_text()), expected);
            within(published.stored)
        })
        .collect();
    let kept = outcomes.iter().filter(|it| it.is_ok()).count();
    assert!((10..30).contains(&kept), "{kept}");
    let error = outcomes.last().unwrap().clone().unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::DiskFull, "{error}");
    assert!(error.to_string().contains("max_bytes"), "{error}");
    assert_eq!(history.stats().last_error, Some(error));
    // What was kept is still there, whole.
    let all = within(history.list("quay", None, 100)).unwrap();
    assert_eq!(all.entries.len(), kept);
    assert!(all.entries.iter().all(|it| it.message.len() > 10_000));
    // Somebody makes room.
    stranger(&path).execute("DELETE FROM messages WHERE id <= 10", []).unwrap();
    let next = within(history.publish("quay", large)).unwrap();
    within(next.stored).unwrap();
    assert_eq!(id(&client.expect_text()), 61);
    client.goodbye();
    server.finish();
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let error = Sqlite::open("/nowhere/at/all/history.db").unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Io);
    assert!(error.to_string().contains("/nowhere/at/all/history.db"), "{error}");
}

#[test]
fn a_newer_a_foreign_and_a_broken_database_are_told_apart_and_left_alone() {
    let scratch = Scratch::new("history");
    let newer = scratch.path("newer.db");
    start(serving(open(&newer))).finish();
    stranger(&newer).pragma_update(None, "user_version", 2).unwrap();
    let error = options().open(&newer).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Newer);
    assert!(error.to_string().contains("schema 2, this one knows 1"), "{error}");
    let version: i64 =
        stranger(&newer).query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 2);

    let foreign = scratch.path("foreign.db");
    stranger(&foreign)
        .execute_batch("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)")
        .unwrap();
    let before = std::fs::read(&foreign).unwrap();
    assert_eq!(options().open(&foreign).unwrap_err().kind(), StoreErrorKind::Corrupt);
    assert_eq!(std::fs::read(&foreign).unwrap(), before);

    let broken = scratch
        .write("broken.db", "this is no database at all, but a text of some length".repeat(99));
    assert_eq!(options().open(&broken).unwrap_err().kind(), StoreErrorKind::Corrupt);
}

#[test]
fn two_servers_cannot_have_one_database_and_an_ended_one_leaves_it() {
    let scratch = Scratch::new("history");
    let path = scratch.path("history.db");
    let server = start(serving(open(&path)));
    let error = options().open(&path).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::InUse);
    server.finish();
    // One that was opened and is not used by a server is left when it is dropped, and nothing has changed.
    drop(open(&path));
    let store = std::sync::Arc::new(open(&path));
    let server = start(serving(std::sync::Arc::clone(&store)));
    assert_eq!(server.handle.history().unwrap().last_id("quay"), 0);
    let Error::History(error) = Server::builder().history(store).start().unwrap_err() else {
        panic!("another error");
    };
    assert_eq!(error.kind(), StoreErrorKind::InUse);
    server.finish();
}

#[test]
fn a_room_keeps_as_many_as_it_may_and_the_newest() {
    let scratch = Scratch::new("history");
    let path = scratch.path("history.db");
    let server = start(serving(options().messages(100).open(&path).unwrap()));
    let history = server.handle.history().unwrap();
    publish(&history, "quay", 1..=2000);
    publish(&history, "sea", 1..=50);
    within(history.flush()).unwrap();
    let count = |room: &str| {
        let mut count = 0;
        let mut before = None;
        loop {
            let page = within(history.list(room, before, 256)).unwrap();
            count += page.entries.len();
            before = page.entries.last().map(|entry| entry.id);
            if !page.more {
                return count;
            }
        }
    };
    eventually("what is too much is removed", || count("quay") <= 112);
    assert!(count("quay") >= 100);
    assert_eq!(count("sea"), 50);
    assert_eq!(within(history.list("quay", None, 1)).unwrap().entries[0].id, 2000);
    assert!(history.stats().trimmed >= 1888, "{:?}", history.stats());
    let since = Since { epoch: history.epoch(), after: 1500 };
    assert!(!within(history.replay("quay", since, 256)).unwrap().recovered);
    server.finish();
}

#[test]
fn what_is_too_old_is_removed_and_its_room_goes_on_counting() {
    let scratch = Scratch::new("history");
    let path = scratch.path("history.db");
    let old = || options().age(Duration::from_millis(1)).open(&path).unwrap();
    let server = start(serving(old()));
    let history = server.handle.history().unwrap();
    publish(&history, "quay", 1..=1500);
    within(history.flush()).unwrap();
    eventually("it is removed", || {
        within(history.list("quay", None, 1)).unwrap().entries.is_empty()
    });
    publish(&history, "quay", 1501..=1501);
    server.finish();
    let server = start(serving(old()));
    let history = server.handle.history().unwrap();
    publish(&history, "quay", 1502..=1502);
    server.finish();
    let counted: i64 =
        stranger(&path).query_row("SELECT count FROM rooms", [], |row| row.get(0)).unwrap();
    let there: i64 =
        stranger(&path).query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap();
    assert_eq!(counted, there, "what is counted is what is there");
}

#[test]
fn rooms_that_are_too_many_are_removed_and_their_ids_do_not_come_again() {
    let scratch = Scratch::new("history");
    let path = scratch.path("history.db");
    let few = || options().rooms(32).open(&path).unwrap();
    let server = start(serving(few()).configure(|config| config.history.rooms = 64));
    let history = server.handle.history().unwrap();
    let mut given = Vec::new();
    for room in 0..300 {
        let name = format!("room {room}");
        for _ in 0..3 {
            let published = within(history.publish(&name, |id| format!("{id}"))).unwrap();
            given.push((room, published.id));
            within(published.stored).unwrap();
        }
    }
    let rooms = || -> i64 {
        stranger(&path).query_row("SELECT count(*) FROM rooms", [], |row| row.get(0)).unwrap()
    };
    eventually("those that were silent the longest are removed", || rooms() <= 34);
    let again = |history: &coracle::History, given: &mut Vec<(u64, u64)>| {
        for room in (0..300).step_by(7) {
            let published =
                within(history.publish(&format!("room {room}"), |id| format!("{id}"))).unwrap();
            given.push((room, published.id));
        }
    };
    again(&history, &mut given);
    server.finish();
    let server = start(serving(few()));
    again(&server.handle.history().unwrap(), &mut given);
    server.finish();
    let all = given.len();
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), all, "no id of a room comes twice");
}

// The end of a process that was killed, seen from the next one: what `kill` does to the writer is another test.
#[test]
fn after_an_end_that_was_not_clean_the_ids_of_all_rooms_leap() {
    let scratch = Scratch::new("history");
    let path = scratch.path("history.db");
    let server = start(serving(open(&path)));
    let history = server.handle.history().unwrap();
    let epoch = history.epoch();
    publish(&history, "quay", 1..=3);
    publish(&history, "sea", 1..=1);
    server.finish();
    let unclean = || {
        let changed = stranger(&path).execute("UPDATE meta SET value = 0 WHERE key = 'clean'", []);
        assert_eq!(changed.unwrap(), 1);
    };
    unclean();
    let server = start(serving(open(&path)));
    let history = server.handle.history().unwrap();
    let first = leap(3).unwrap();
    publish(&history, "quay", first + 1..=first + 1);
    publish(&history, "new", first + 1..=first + 2);
    // Who had everything cannot know that it was everything.
    let replay = within(history.replay("quay", Since { epoch, after: 3 }, 10)).unwrap();
    assert!(!replay.recovered);
    assert_eq!(replay.entries.len(), 1);
    let replay = within(history.replay("sea", Since { epoch, after: 1 }, 10)).unwrap();
    assert!(!replay.recovered && replay.entries.is_empty());
    assert_eq!(replay.position, first);
    server.finish();
    // A clean end does not leap, also for rooms that nothing was published to.
    let server = start(serving(open(&path)));
    let history = server.handle.history().unwrap();
    assert_eq!(history.last_id("quay"), first + 1);
    assert_eq!(history.last_id("sea"), first);
    assert_eq!(history.last_id("another"), first);
    server.finish();
    unclean();
    let server = start(serving(open(&path)));
    assert_eq!(server.handle.history().unwrap().last_id("sea"), leap(first + 2).unwrap());
    server.finish();
    // When there are no more ids it begins anew, and everybody can tell.
    let most = coracle::history::MAX_ID - 5;
    unclean();
    stranger(&path).execute("UPDATE rooms SET last = ?1", [most as i64]).unwrap();
    let server = start(serving(open(&path)));
    let history = server.handle.history().unwrap();
    assert_ne!(history.epoch(), epoch);
    publish(&history, "quay", 1..=1);
    assert_eq!(within(history.list("quay", None, 10)).unwrap().entries.len(), 1);
    server.finish();
}

#[test]
fn a_forgotten_room_goes_on_from_where_its_clients_were_told() {
    let scratch = Scratch::new("history");
    let path = scratch.path("history.db");
    a_forgotten_room_stays_where_it_was_said_to_be(|| open(&path));
}
