//! History: what is published with an id, looked at again, replayed to who comes back, and bounded.

#[path = "support/lasting.rs"]
mod lasting;
mod support;

use std::future::ready;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use coracle::history::{
    Bounds, Boxed, Closing, Entry, Epoch, HistoryStats, Memory, Opening, Portion, PublishError,
    Receipt, ResumeError, Since, Store, StoreError, StoreErrorKind,
};
use coracle::{Message, Server, Session, SlowPeer};
use lasting::*;
use support::*;

#[test]
fn ids_begin_at_one_and_all_members_get_them_in_order() {
    let server = start(serving(Memory::new()));
    let mut clients = [server.client(), server.client()];
    for client in &mut clients {
        assert_eq!(client.command("join quay - 0"), "joined recovered 0 0");
    }
    let history = server.handle.history().unwrap();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let history = history.clone();
            std::thread::spawn(move || {
                for number in 0..250 {
                    let make = |id| format!("{id} {thread} {number}");
                    within(history.publish("quay", make)).unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let heard = clients.each_mut().map(|client| client.texts(1000));
    assert_eq!(heard[0], heard[1]);
    assert_eq!(ids(&heard[0]), (1..=1000).collect::<Vec<_>>());
    assert_eq!(history.last_id("quay"), 1000);
    // The other rooms have ids of their own.
    assert_eq!(within(history.publish("sea", |id| format!("{id}"))).unwrap().id, 1);
    clients.into_iter().for_each(Raw::goodbye);
    server.finish();
}

#[test]
fn a_page_before_an_id_has_the_newest_first_and_is_bounded_by_the_server() {
    let server = start(serving(Memory::new()).configure(|config| {
        config.history.page_messages = 10;
        config.history.page_bytes = 4000;
    }));
    let history = server.handle.history().unwrap();
    publish(&history, "quay", 1..=100);
    let list = |before, limit| {
        let page = within(history.list("quay", before, limit)).unwrap();
        (page.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), page.more)
    };
    assert_eq!(list(None, 3), (vec![100, 99, 98], true));
    assert_eq!(list(Some(98), 2), (vec![97, 96], true));
    assert_eq!(list(Some(3), 9), (vec![2, 1], false));
    assert_eq!(list(Some(1), 9), (vec![], false));
    assert_eq!(list(Some(0), 9), (vec![], false));
    assert_eq!(list(Some(u64::MAX), 1), (vec![100], true));
    assert_eq!(list(None, usize::MAX).0.len(), 10, "what is asked for is not what is given");
    // And by their bytes, unless the first alone is larger than that.
    let large = |id: u64| format!("{id} {}", "x".repeat(3000));
    within(history.publish("quay", large)).unwrap();
    within(history.publish("quay", |id| format!("{id} {}", "x".repeat(9000)))).unwrap();
    assert_eq!(list(None, 10), (vec![102], true));
    assert_eq!(list(Some(102), 10).0.first(), Some(&101));
    assert!(list(Some(102), 10).0.len() < 10);
    assert_eq!(within(history.list("nowhere", None, 5)).unwrap().entries, []);
    server.finish();
}

#[test]
fn a_replay_is_whole_or_says_that_it_is_not() {
    let server = start(serving(Memory::new().messages(50)));
    let history = server.handle.history().unwrap();
    publish(&history, "quay", 1..=60);
    let replay = |since, limit| within(history.replay("quay", since, limit)).unwrap();
    let since = |after| Since { epoch: history.epoch(), after };
    let all = replay(since(10), 100);
    assert!(all.recovered && !all.more);
    assert_eq!(
        all.entries.iter().map(|it| it.id).collect::<Vec<_>>(),
        (11..=60).collect::<Vec<_>>()
    );
    assert_eq!(all.position, 60);
    let some = replay(since(20), 5);
    assert!(some.recovered && some.more);
    assert_eq!((some.entries.len(), some.position), (5, 25));
    assert!(replay(since(60), 5).recovered, "there is nothing to be missed");
    // Removed in the meantime.
    let trimmed = replay(since(9), 100);
    assert!(!trimmed.recovered);
    assert_eq!(trimmed.entries.len(), 50);
    // Ahead of what there is.
    let ahead = replay(since(61), 100);
    assert!(!ahead.recovered && ahead.entries.is_empty());
    assert_eq!(ahead.position, 60);
    // The numbers of somebody else.
    let foreign = replay(Since { epoch: Epoch::random(), after: 59 }, 100);
    assert!(!foreign.recovered && foreign.entries.is_empty());
    assert!(!replay(since(u64::MAX), 100).recovered);
    // A room that nobody has heard of has nothing to be missed.
    assert!(within(history.replay("nowhere", since(0), 5)).unwrap().recovered);
    assert!(!within(history.replay("nowhere", since(1), 5)).unwrap().recovered);
    server.finish();
}

#[test]
fn who_comes_back_gets_exactly_what_was_missed_while_others_go_on_publishing() {
    come_and_go(Memory::new().messages(100_000));
}

// The session has been sent the last of what it missed, and is about to become a member. In this moment somebody
// publishes: it must not be between the two, where nobody would get it.
#[test]
fn nothing_is_published_between_the_end_of_a_replay_and_the_membership() {
    let (go, gone) = mpsc::channel::<()>();
    let (done, is_done) = mpsc::channel();
    let hooks = Mutex::new((go, is_done));
    // The policy of a room is asked when its first member joins: in that very moment.
    let server = start(serving(Memory::new()).room_policy(move |_| {
        let (go, is_done) = &*hooks.lock().unwrap();
        go.send(()).unwrap();
        // It comes after this, so this is waited for in vain, and only to give it the chance.
        let _ = is_done.recv_timeout(Duration::from_millis(50));
        SlowPeer::Close
    }));
    let history = server.handle.history().unwrap();
    let publisher = std::thread::spawn(move || {
        gone.recv().unwrap();
        let sessions = within(history.publish("quay", |id| format!("{id}"))).unwrap().sessions;
        let _ = done.send(());
        sessions
    });
    let mut client = server.client();
    assert_eq!(client.command("join quay - 0"), "joined recovered 0 0");
    assert_eq!(client.expect_text(), "1");
    client.goodbye();
    server.finish();
    assert_eq!(publisher.join().unwrap(), 1);
}

#[test]
fn who_cannot_get_everything_gets_the_newest_and_is_told_so() {
    let server =
        start(serving(Memory::new()).configure(|config| config.history.replay_messages = 5));
    let history = server.handle.history().unwrap();
    let epoch = history.epoch();
    publish(&history, "quay", 1..=20);
    let mut client = server.client();
    // Exactly as much as there may be; one more; another epoch; an id that never was; for the first time.
    for (since, first, recovered) in [
        (format!("{epoch} 15"), 16, "recovered"),
        (format!("{epoch} 14"), 16, "lost"),
        (format!("{} 15", Epoch::random()), 16, "lost"),
        (format!("{epoch} 21"), 16, "lost"),
        ("- 0".to_owned(), 16, "lost"),
    ] {
        client.send_frame(TEXT, format!("join quay {since}").as_bytes());
        assert_eq!(ids(&client.texts(5)), (first..=20).collect::<Vec<_>>(), "{since}");
        assert_eq!(client.expect_text(), format!("joined {recovered} 5 20"), "{since}");
        assert_eq!(client.command("leave quay"), "left");
    }
    client.goodbye();
    server.finish();
}

#[test]
fn a_member_cannot_join_again_and_who_cannot_join_is_no_member() {
    let server = start(serving(Memory::new()).configure(|config| {
        config.limits.session_rooms = 1;
    }));
    let mut client = server.client();
    assert_eq!(client.command("join quay - 0"), "joined recovered 0 0");
    assert_eq!(client.command("join quay - 0"), format!("failed {:?}", ResumeError::AlreadyMember));
    let text = client.command("join sea - 0");
    assert_eq!(text, "failed Join(TooManyRooms)");
    assert_eq!(client.command(&format!("join {} - 0", "x".repeat(257))), "failed Join(BadName)");
    assert_eq!(server.handle.rooms().names(), ["quay".into()]);
    client.goodbye();
    server.finish();
}

// A client that does not read is sent a replay that is larger than its queue: it waits, at the client's pace, while
// others go on publishing, and nothing is lost when it reads again.
#[test]
fn a_replay_larger_than_the_queue_waits_for_the_peer_and_loses_nothing() {
    let server = start(serving(Memory::new().bytes(64 << 20)).configure(|config| {
        config.limits.outbox_messages = 8;
        config.limits.outbox_bytes = 64 * 1024;
    }));
    let history = server.handle.history().unwrap();
    let large = |id| format!("{id} {}", "x".repeat(60_000));
    for _ in 0..200 {
        within(history.publish("quay", large)).unwrap();
    }
    let mut client = server.client();
    client.send_frame(TEXT, format!("join quay {} 0", history.epoch()).as_bytes());
    assert_eq!(id(&client.expect_text()), 1, "the replay has begun");
    // These are held while the client has other things to do.
    for _ in 0..20 {
        within(history.publish("quay", |id| format!("{id}"))).unwrap();
    }
    assert_eq!(server.handle.rooms().size("quay"), 0, "it cannot be a member yet");
    assert_eq!(ids(&client.texts(219)), (2..=220).collect::<Vec<_>>());
    assert_eq!(client.expect_text(), "joined recovered 220 220");
    within(history.publish("quay", |id| format!("{id}"))).unwrap();
    assert_eq!(client.expect_text(), "221");
    client.goodbye();
    server.finish();
}

// What is held for who catches up is bounded: beyond that the replay is given up, and the client is told.
#[test]
fn what_is_held_for_a_slow_reader_is_bounded_and_the_reader_told() {
    let server = start(serving(Memory::new().bytes(64 << 20)).configure(|config| {
        config.limits.outbox_messages = 8;
        config.limits.outbox_bytes = 64 * 1024;
        config.history.pending_bytes = 256 * 1024;
    }));
    let history = server.handle.history().unwrap();
    let large = |id| format!("{id} {}", "x".repeat(60_000));
    for _ in 0..200 {
        within(history.publish("quay", large)).unwrap();
    }
    let mut client = server.client();
    client.send_frame(TEXT, format!("join quay {} 0", history.epoch()).as_bytes());
    assert_eq!(id(&client.expect_text()), 1);
    for _ in 0..20 {
        within(history.publish("quay", large)).unwrap();
    }
    assert_eq!(ids(&client.texts(199)), (2..=200).collect::<Vec<_>>());
    assert_eq!(client.expect_text(), "joined lost 200 220");
    within(history.publish("quay", |id| format!("{id}"))).unwrap();
    assert_eq!(client.expect_text(), "221");
    client.goodbye();
    server.finish();
}

#[test]
fn memory_is_bounded_in_rooms_bytes_and_age_whatever_the_rooms_are_called() {
    let memory = Arc::new(Memory::new().rooms(100).bytes(200_000));
    let server = start(serving(Arc::clone(&memory)).configure(|config| {
        config.history.rooms = 200;
    }));
    let history = server.handle.history().unwrap();
    for room in 0..5000 {
        let name = format!("room {room}");
        for _ in 0..3 {
            within(history.publish(&name, |id| format!("{id} {}", "x".repeat(1000)))).unwrap();
        }
    }
    let stats = history.stats();
    assert!(stats.rooms <= 250, "{stats:?}");
    assert_eq!(stats.appended, 15_000);
    assert!(format!("{memory:?}").contains("rooms: "), "{memory:?}");
    let kept: Vec<_> = (0..5000)
        .filter(|room| {
            let page = within(history.list(&format!("room {room}"), None, 10)).unwrap();
            !page.entries.is_empty()
        })
        .collect();
    assert!(kept.len() <= 100 && kept.contains(&4999), "{kept:?}");
    // A room that was forgotten goes on with higher ids, so that none comes twice.
    let again = within(history.publish("room 0", |id| format!("{id}"))).unwrap();
    assert!(again.id > 3, "{again:?}");
    let since = Since { epoch: history.epoch(), after: 3 };
    assert!(!within(history.replay("room 0", since, 10)).unwrap().recovered);
    server.finish();
}

// Whoever may choose the names of the rooms that it joins can choose many. That makes no room forget its ids.
#[test]
fn rooms_that_are_only_joined_push_no_other_out() {
    let server = start(serving(Memory::new()).configure(|config| config.history.rooms = 32));
    let history = server.handle.history().unwrap();
    publish(&history, "quay", 1..=5);
    let mut client = server.client();
    for room in 0..500 {
        assert_eq!(client.command(&format!("join {room} - 0")), "joined recovered 0 0");
        assert_eq!(client.command(&format!("leave {room}")), "left");
    }
    assert!(history.stats().rooms <= 64, "{:?}", history.stats());
    publish(&history, "quay", 6..=6);
    assert_eq!(within(history.publish("499", |id| format!("{id}"))).unwrap().id, 1);
    client.goodbye();
    server.finish();
}

#[test]
fn what_is_too_old_is_not_shown() {
    let server = start(serving(Memory::new().age(Duration::from_millis(1))));
    let history = server.handle.history().unwrap();
    let first = within(history.publish("quay", |id| format!("{id}"))).unwrap().id;
    eventually("it grows old", || {
        within(history.list("quay", None, 5)).unwrap().entries.is_empty()
    });
    let since = Since { epoch: history.epoch(), after: first - 1 };
    assert!(!within(history.replay("quay", since, 5)).unwrap().recovered);
    assert_eq!(within(history.publish("quay", |id| format!("{id}"))).unwrap().id, 2);
    server.finish();
}

#[test]
fn a_memory_goes_on_with_its_ids_under_the_next_server_and_not_under_two() {
    let memory = Arc::new(Memory::new());
    let server = start(serving(Arc::clone(&memory)));
    let history = server.handle.history().unwrap();
    publish(&history, "quay", 1..=3);
    let error = Server::builder().history(Arc::clone(&memory)).start().unwrap_err();
    let coracle::Error::History(error) = error else { panic!("{error}") };
    assert_eq!(error.kind(), StoreErrorKind::InUse);
    server.finish();
    let refused = within(history.publish("quay", |id| format!("{id}")));
    assert!(matches!(refused, Err(PublishError::Closed)), "{refused:?}");
    let server = start(serving(memory));
    let next = server.handle.history().unwrap();
    assert_eq!(next.epoch(), history.epoch());
    publish(&next, "quay", 4..=4);
    server.finish();
}

#[test]
fn a_forgotten_room_goes_on_from_where_its_clients_were_told() {
    let memory = Arc::new(Memory::new());
    a_forgotten_room_stays_where_it_was_said_to_be(|| Arc::clone(&memory));
}

#[test]
fn publishing_from_where_a_message_is_made_is_an_error_and_no_deadlock() {
    let server = start(serving(Memory::new()));
    let history = server.handle.history().unwrap();
    let published = within(history.publish("quay", |id| {
        let nested = history.try_publish("quay", |id| format!("{id}"));
        assert!(matches!(nested, Err(PublishError::Nested)), "{nested:?}");
        format!("{id}")
    }));
    assert_eq!(published.unwrap().id, 1);
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        history.try_publish("quay", |_| -> Message { panic!("no message today") })
    }));
    assert!(panics.is_err());
    assert_eq!(within(history.publish("quay", |id| format!("{id}"))).unwrap().id, 2);
    for name in ["", &*"x".repeat(257)] {
        let refused = within(history.publish(name, |id| format!("{id}")));
        assert!(matches!(refused, Err(PublishError::BadName)), "{refused:?}");
    }
    server.finish();
}

#[test]
fn without_a_store_there_is_no_history() {
    let server = start(Server::builder().on_open(async |session: &Session| {
        assert!(session.history().is_none());
    }));
    assert!(server.handle.history().is_none());
    server.client().goodbye();
    assert_eq!(server.finish().panics, 0);
}

#[cfg(feature = "json")]
#[test]
fn a_typed_message_gets_its_id_its_room_and_the_time() {
    use coracle::Envelope;

    let server = start(serving(Memory::new()));
    let history = server.handle.history().unwrap();
    let mut client = server.client();
    assert_eq!(client.command("join quay - 0"), "joined recovered 0 0");
    let say = |envelope| within(history.publish_typed("quay", envelope)).unwrap();
    say(Envelope::new("chat", "first"));
    let second = say(Envelope::new("chat", "second").id("mine").room("elsewhere").ts(5));
    assert_eq!((second.id, second.sessions), (2, 1));
    let first = Envelope::parse(&Message::from(client.expect_text())).unwrap();
    assert_eq!(first.id.and_then(|id| id.as_u64()), Some(1));
    assert_eq!(first.room.as_deref(), Some("quay"));
    assert!(first.ts.and_then(|ts| ts.as_u64()).is_some_and(|ts| ts > 1_600_000_000_000));
    let text = r#"{"id":2,"ts":5,"room":"quay","type":"chat","payload":"second"}"#;
    assert_eq!(client.expect_text(), text);
    let page = within(history.list("quay", None, 1)).unwrap();
    assert_eq!(page.entries[0].message.as_text(), Some(text), "it is kept as it was sent");
    // What cannot be JSON takes no id.
    let bad = std::collections::HashMap::from([((1, 2), 3)]);
    let refused = within(history.publish_typed("quay", Envelope::new("chat", bad)));
    assert!(matches!(refused, Err(PublishError::Encode(_))), "{refused:?}");
    assert_eq!(history.last_id("quay"), 2);
    client.goodbye();
    server.finish();
}

/// A store that does as it is told.
#[derive(Default)]
struct Moody {
    inner: Memory,
    /// Every third append fails at once.
    fails: AtomicBool,
    /// Appends are not answered.
    hangs: AtomicBool,
    waiting: Mutex<Vec<(Entry, Receipt)>>,
    asked: AtomicUsize,
    /// It has been asked to close.
    closing: AtomicBool,
}

impl Moody {
    fn answer(&self) {
        for (entry, receipt) in self.waiting.lock().unwrap().drain(..) {
            self.inner.append(entry, receipt);
        }
    }
}

impl Store for Moody {
    fn open(&self, rooms: usize) -> Result<Opening, StoreError> {
        self.inner.open(rooms)
    }

    fn append(&self, entry: Entry, receipt: Receipt) {
        if self.hangs.load(Ordering::SeqCst) {
            return self.waiting.lock().unwrap().push((entry, receipt));
        }
        match self.fails.load(Ordering::SeqCst)
            && self.asked.fetch_add(1, Ordering::SeqCst) % 3 == 2
        {
            true => receipt.failed(StoreError::new(StoreErrorKind::Other, "not today")),
            false => self.inner.append(entry, receipt),
        }
    }

    fn before<'a>(
        &'a self,
        room: &'a str,
        before: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>> {
        self.inner.before(room, before, bounds)
    }

    fn after<'a>(
        &'a self,
        room: &'a str,
        after: u64,
        until: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>> {
        self.inner.after(room, after, until, bounds)
    }

    fn flush(&self) -> Boxed<'_, Result<(), StoreError>> {
        self.answer();
        self.inner.flush()
    }

    fn close(&self, closing: Closing) -> Boxed<'_, Result<(), StoreError>> {
        self.closing.store(true, Ordering::SeqCst);
        if self.hangs.load(Ordering::SeqCst) {
            return Box::pin(std::future::pending());
        }
        self.inner.close(closing)
    }
}

#[test]
fn what_a_store_refuses_is_delivered_and_reported_and_a_hole_afterwards() {
    let (sender, lost) = heard();
    let sender = Mutex::new(sender);
    let moody = Moody { fails: true.into(), ..Moody::default() };
    let server = start(serving(moody).on_history_error(move |lost| {
        let told = (lost.room.to_owned(), lost.id, lost.error.to_string());
        sender.lock().unwrap().send(told).unwrap();
    }));
    let history = server.handle.history().unwrap();
    let mut client = server.client();
    assert_eq!(client.command("join quay - 0"), "joined recovered 0 0");
    let published: Vec<_> =
        (0..7).map(|_| within(history.publish("quay", |id| format!("{id}"))).unwrap()).collect();
    assert_eq!(ids(&client.texts(7)), (1..=7).collect::<Vec<_>>(), "live nothing is missing");
    for published in published {
        let id = published.id;
        let kept = within(published.stored);
        assert_eq!(kept.is_ok(), id % 3 != 0, "{id}: {kept:?}");
    }
    assert_eq!(lost.next(), ("quay".to_owned(), 3, "not today".to_owned()));
    assert_eq!(lost.next(), ("quay".to_owned(), 6, "not today".to_owned()));
    let stats = history.stats();
    assert_eq!((stats.appended, stats.failed, stats.pending_messages), (5, 2, 0));
    assert_eq!(stats.last_error.unwrap().kind(), StoreErrorKind::Other);
    let replay = |after| {
        let since = Since { epoch: history.epoch(), after };
        let replay = within(history.replay("quay", since, 10)).unwrap();
        let ids: Vec<_> = replay.entries.iter().map(|entry| entry.id).collect();
        (ids, replay.recovered)
    };
    assert_eq!(replay(4), (vec![5, 7], false));
    assert_eq!(replay(6), (vec![7], true));
    let mut late = server.client();
    late.send_frame(TEXT, format!("join quay {} 4", history.epoch()).as_bytes());
    assert_eq!(late.texts(3), ["5", "7", "joined lost 2 7"]);
    [client, late].into_iter().for_each(Raw::goodbye);
    server.finish();
}

#[test]
fn a_store_that_does_not_answer_costs_a_bounded_queue_and_delays_nobody() {
    let moody = Arc::new(Moody { hangs: true.into(), ..Moody::default() });
    let server = start(serving(Arc::clone(&moody)).configure(|config| {
        config.history.pending_messages = 10;
    }));
    let history = server.handle.history().unwrap();
    let mut client = server.client();
    assert_eq!(client.command("join quay - 0"), "joined recovered 0 0");
    let published: Vec<_> =
        (0..12).map(|_| within(history.publish("quay", |id| format!("{id}"))).unwrap()).collect();
    assert_eq!(ids(&client.texts(12)), (1..=12).collect::<Vec<_>>());
    let refused = published[11].stored.try_result().unwrap().unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::QueueFull);
    assert!(published[9].stored.try_result().is_none());
    assert_eq!(history.stats().pending_messages, 10);
    // What waits is there to be seen, and replayed.
    let page = within(history.list("quay", None, 20)).unwrap();
    assert_eq!(page.entries.len(), 10);
    let since = Since { epoch: history.epoch(), after: 7 };
    let replay = within(history.replay("quay", since, 2)).unwrap();
    assert!(replay.recovered && replay.more);
    assert!(!within(history.replay("quay", since, 20)).unwrap().recovered);
    // It answers again, in its own order.
    moody.waiting.lock().unwrap().reverse();
    within(history.flush()).unwrap();
    moody.hangs.store(false, Ordering::SeqCst);
    for (at, published) in published.into_iter().enumerate() {
        assert_eq!(within(published.stored).is_ok(), at < 10);
    }
    assert_eq!(history.stats().pending_bytes, 0);
    client.goodbye();
    server.finish();
}

#[test]
fn a_stop_waits_for_the_store_no_longer_than_it_may_and_says_what_was_lost() {
    let moody = Arc::new(Moody { hangs: true.into(), ..Moody::default() });
    let server = start(serving(Arc::clone(&moody)).configure(|config| {
        config.timeouts.stop = Duration::from_millis(50);
    }));
    let history = server.handle.history().unwrap();
    let published = within(history.publish("quay", |id| format!("{id}"))).unwrap();
    let report = server.finish();
    assert_eq!((report.history_flushed, report.history_lost), (0, 1));
    // It ends although the store has still not said anything.
    let lost = within(published.stored).unwrap_err();
    assert_eq!(lost.kind(), StoreErrorKind::Closed);
    let counted = |stats: HistoryStats| (stats.appended, stats.failed, stats.pending_messages);
    assert_eq!(counted(history.stats()), (0, 1, 0));
    // What it says now changes nothing any more.
    moody.answer();
    assert_eq!(counted(history.stats()), (0, 1, 0));
}

// A thread confirms one message after the other while the history is closed: whatever it has come to in that
// moment, none of them is lost.
#[test]
fn what_is_confirmed_while_the_history_is_closed_is_not_counted_as_lost() {
    /// Answers on a thread, from the moment it is told to.
    struct Distant {
        memory: Memory,
        moody: Arc<Moody>,
        thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    }

    impl Store for Distant {
        fn open(&self, rooms: usize) -> Result<Opening, StoreError> {
            self.memory.open(rooms)
        }

        fn append(&self, entry: Entry, receipt: Receipt) {
            self.moody.waiting.lock().unwrap().push((entry, receipt));
        }

        fn before<'a>(
            &'a self,
            _: &'a str,
            _: u64,
            _: Bounds,
        ) -> Boxed<'a, Result<Portion, StoreError>> {
            Box::pin(ready(Ok(Portion::default())))
        }

        fn after<'a>(
            &'a self,
            _: &'a str,
            _: u64,
            _: u64,
            _: Bounds,
        ) -> Boxed<'a, Result<Portion, StoreError>> {
            Box::pin(ready(Ok(Portion::default())))
        }

        fn flush(&self) -> Boxed<'_, Result<(), StoreError>> {
            Box::pin(ready(Ok(())))
        }

        fn close(&self, _: Closing) -> Boxed<'_, Result<(), StoreError>> {
            let thread = self.thread.lock().unwrap().take();
            thread.unwrap().join().unwrap();
            Box::pin(ready(Ok(())))
        }
    }

    for _ in 0..40 {
        let moody = Arc::new(Moody::default());
        let (go, gone) = mpsc::channel();
        let answering = Arc::clone(&moody);
        let thread = std::thread::spawn(move || {
            gone.recv().unwrap();
            let waiting = std::mem::take(&mut *answering.waiting.lock().unwrap());
            waiting.into_iter().for_each(|(_, receipt)| receipt.kept());
        });
        let (memory, thread) = (Memory::new(), Mutex::new(Some(thread)));
        let server = start(serving(Distant { memory, moody, thread }));
        let history = server.handle.history().unwrap();
        for _ in 0..10_000 {
            within(history.publish("quay", |_| "news")).unwrap();
        }
        server.handle.request_stop();
        go.send(()).unwrap();
        let report = server.finish();
        assert_eq!(report.history_lost, 0, "{report:?}");
        assert_eq!(history.stats().appended, 10_000);
    }
}

// What the store has not confirmed counts as well, and what it has fills up only what is left.
#[test]
fn who_gets_the_newest_gets_no_more_than_the_limit_however_much_is_not_confirmed() {
    let moody = Arc::new(Moody::default());
    let server = start(serving(Arc::clone(&moody)).configure(|config| {
        config.history.replay_messages = 5;
    }));
    let history = server.handle.history().unwrap();
    publish(&history, "quay", 1..=10);
    moody.hangs.store(true, Ordering::SeqCst);
    for (waiting, last) in [(3, 13), (5, 18)] {
        publish(&history, "quay", last - waiting + 1..=last);
        let mut client = server.client();
        client.send_frame(TEXT, b"join quay - 0");
        assert_eq!(ids(&client.texts(5)), (last - 4..=last).collect::<Vec<_>>());
        assert_eq!(client.expect_text(), format!("joined lost 5 {last}"));
        client.goodbye();
    }
    moody.hangs.store(false, Ordering::SeqCst);
    moody.answer();
    server.finish();
}

#[test]
fn a_cut_ends_the_wait_for_the_store_as_well() {
    let moody = Arc::new(Moody { hangs: true.into(), ..Moody::default() });
    let server = start(serving(Arc::clone(&moody)).configure(|config| {
        config.timeouts.stop = Duration::MAX;
    }));
    let history = server.handle.history().unwrap();
    within(history.publish("quay", |id| format!("{id}"))).unwrap();
    server.handle.request_stop();
    eventually("the store is being closed", || moody.closing.load(Ordering::SeqCst));
    server.handle.shutdown().cut();
    let report = server.finish();
    assert_eq!((report.history_flushed, report.history_lost), (0, 1));
}

// Two publish to one room, one of them from a handler, one from outside; a store that answers on a third thread.
#[test]
fn messages_of_the_same_moment_are_all_kept() {
    let server = start(serving(Memory::new()));
    let history = server.handle.history().unwrap();
    let barrier = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (history, barrier) = (history.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                let publish = |_| within(history.publish("quay", |id| format!("{id}"))).unwrap().id;
                (0..50).map(publish).collect::<Vec<_>>()
            })
        })
        .collect();
    let mut given: Vec<_> = threads.into_iter().flat_map(|it| it.join().unwrap()).collect();
    given.sort_unstable();
    assert_eq!(given, (1..=400).collect::<Vec<_>>());
    let since = Since { epoch: history.epoch(), after: 200 };
    let replay = within(history.replay("quay", since, 200)).unwrap();
    assert!(replay.recovered);
    assert_eq!(replay.entries.len(), 200);
    server.finish();
}
