//! Joining with a replay where many do, and slowly: what that may cost the others, and the server.

#[path = "support/lasting.rs"]
mod lasting;
mod support;

use std::future::ready;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use coracle::history::{
    Bounds, Boxed, Closing, Entry, Epoch, Memory, Opening, Portion, Receipt, Resume, ResumeError,
    Since, Store, StoreError,
};
use coracle::{Builder, Message, Server, Session};
use lasting::*;
use smol::future::{poll_once, zip};
use support::*;

/// A server of this store, and its sessions.
fn heard_of(store: impl Store) -> (Builder<impl coracle::Handler>, Heard<Session>) {
    let (sender, sessions) = heard();
    let sender = Mutex::new(sender);
    let builder = Server::builder().history(store).on_message(obey);
    let builder = builder.on_open(async move |session: &Session| {
        sender.lock().unwrap().send(session.clone()).unwrap();
    });
    (builder, sessions)
}

// One who does not read joins a room in which much is said, and holds nearly all that may be held. Another joins
// another room: what is said there is not the first one's fault, and does not cost the second its replay.
#[test]
fn who_joins_slowly_costs_those_in_other_rooms_nothing() {
    let server = start(serving(Memory::new().bytes(64 << 20)).configure(|config| {
        config.limits.outbox_messages = 8;
        config.limits.outbox_bytes = 64 * 1024;
        config.history.pending_bytes = 256 * 1024;
    }));
    let history = server.handle.history().unwrap();
    let say = |room: &str, bytes: usize| {
        within(history.publish(room, |id| format!("{id} {}", "x".repeat(bytes)))).unwrap();
    };
    let mut clients = ["quay", "sea"].map(|room| {
        (0..200).for_each(|_| say(room, 60_000));
        let mut client = server.client();
        client.send_frame(TEXT, format!("join {room} {} 0", history.epoch()).as_bytes());
        assert_eq!(id(&client.expect_text()), 1, "the replay has begun");
        client
    });
    (0..4).for_each(|_| say("quay", 60_000));
    (0..40).for_each(|_| say("sea", 1000));
    let [slow, other] = &mut clients;
    assert_eq!(ids(&other.texts(239)), (2..=240).collect::<Vec<_>>());
    assert_eq!(other.expect_text(), "joined recovered 240 240");
    assert_eq!(ids(&slow.texts(199)), (2..=200).collect::<Vec<_>>());
    assert_eq!(slow.expect_text(), "joined lost 200 204");
    clients.into_iter().for_each(Raw::goodbye);
    server.finish();
}

// Both were no members when they began. The second would be sent everything again, behind what is new.
#[test]
fn of_two_joins_of_one_session_to_one_room_the_later_one_fails() {
    let (builder, sessions) = heard_of(Memory::new().bytes(64 << 20));
    let server = start(builder.configure(|config| config.limits.outbox_messages = 8));
    let history = server.handle.history().unwrap();
    for _ in 0..200 {
        within(history.publish("quay", |id| format!("{id} {}", "x".repeat(60_000)))).unwrap();
    }
    let mut client = server.client();
    let session = sessions.next();
    let since = Since { epoch: history.epoch(), after: 0 };
    let join = || history.join(&session, "quay", Resume::new().since(since), |_| None);
    let (first, second) = within(async {
        let (mut first, mut second) = (pin!(join()), pin!(join()));
        assert!(poll_once(&mut first).await.is_none(), "it waits for the client");
        assert!(poll_once(&mut second).await.is_none());
        let reading = std::thread::spawn(move || {
            while client.expect_text() != "that is all" {}
            client.goodbye();
        });
        let joined = zip(first, second).await;
        assert_eq!(server.handle.rooms().size("quay"), 1);
        session.send("that is all").await.unwrap();
        reading.join().unwrap();
        joined
    });
    let failed = [&first, &second].map(|it| it.as_ref().err().cloned());
    assert!(
        matches!(failed, [None, Some(ResumeError::AlreadyMember)])
            || matches!(failed, [Some(ResumeError::AlreadyMember), None]),
        "{first:?} {second:?}"
    );
    server.finish();
}

/// A room of many messages that are made when they are read, and counted while they are in memory.
#[derive(Default)]
struct Endless {
    alive: Arc<AtomicUsize>,
}

const ENDLESS: u64 = 5000;

struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Endless {
    fn entry(&self, id: u64) -> Entry {
        self.alive.fetch_add(1, Ordering::SeqCst);
        let payload = Counted(vec![b'x'; 3000], Arc::clone(&self.alive));
        Entry::new("quay", id, 0, Message::from(Bytes::from_owner(payload)))
    }
}

impl Store for Endless {
    fn open(&self, _: usize) -> Result<Opening, StoreError> {
        Ok(Opening::new(Epoch::from_u64(7), 0, vec![("quay".into(), ENDLESS)]))
    }

    fn append(&self, _: Entry, receipt: Receipt) {
        receipt.kept();
    }

    fn before<'a>(
        &'a self,
        _: &'a str,
        before: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>> {
        let entries = (1..before).rev().map(|id| self.entry(id));
        Box::pin(ready(Ok(Portion::of(entries, bounds))))
    }

    fn after<'a>(
        &'a self,
        _: &'a str,
        after: u64,
        until: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>> {
        let entries = (after + 1..=until).map(|id| self.entry(id));
        Box::pin(ready(Ok(Portion::of(entries, bounds))))
    }

    fn flush(&self) -> Boxed<'_, Result<(), StoreError>> {
        Box::pin(ready(Ok(())))
    }

    fn close(&self, _: Closing) -> Boxed<'_, Result<(), StoreError>> {
        Box::pin(ready(Ok(())))
    }
}

// Ten thousand clients come back at once and do not read. What has been read for each of them must not lie in memory
// until it does, beside its queue.
#[test]
fn who_waits_for_its_peer_while_it_joins_has_nothing_in_memory_but_its_queue() {
    let store = Endless::default();
    let alive = Arc::clone(&store.alive);
    let (builder, sessions) = heard_of(store);
    let server = start(builder.configure(|config| {
        config.limits.outbox_bytes = 16 * 1024;
        config.timeouts.write_stall = Duration::MAX;
        config.history.replay_messages = usize::MAX;
        // One page, so that who waits must not keep the others from reading theirs.
        config.history.pending_bytes = config.history.page_bytes;
    }));
    let mut clients = [(); 4].map(|()| {
        let mut client = server.client();
        client.send_frame(TEXT, format!("join quay {} 0", Epoch::from_u64(7)).as_bytes());
        client
    });
    let sessions = [(); 4].map(|()| sessions.next());
    eventually("all wait for their peers, and hold nothing", || {
        let full = |session: &Session| session.buffered().bytes + 3000 > 16 * 1024;
        sessions.iter().all(full) && alive.load(Ordering::SeqCst) == 0
    });
    for client in &mut clients {
        for _ in 0..ENDLESS {
            assert_eq!(client.read_frame().payload.len(), 3000);
        }
        assert_eq!(client.expect_text(), format!("joined recovered {ENDLESS} {ENDLESS}"));
    }
    clients.into_iter().for_each(Raw::goodbye);
    server.finish();
}
