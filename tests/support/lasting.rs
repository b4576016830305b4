//! What the tests of history share: a server whose clients join with a replay.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coracle::history::{Resume, Since, Store};
use coracle::{Builder, History, Message, Server, Session};

use super::support::{Raw, TEXT, eventually, start, within};

/// Does what clients ask for: `join ROOM EPOCH ID` (`-`: for the first time), `leave ROOM`, `say ROOM`. Who joins is
/// told `joined recovered|lost REPLAYED POSITION` between what it missed and what is new.
pub async fn obey(session: &Session, message: Message) {
    let text = message.as_text().unwrap_or_default().to_owned();
    let words: Vec<_> = text.split(' ').collect();
    let history = session.history().expect("there is a store");
    match words[..] {
        ["join", room, epoch, after] => {
            let mut resume = Resume::new();
            if epoch != "-" {
                let (epoch, after) = (epoch.parse().unwrap(), after.parse().unwrap());
                resume = resume.since(Since { epoch, after });
            }
            let joined = history.join(session, room, resume, |joined| {
                let how = if joined.recovered { "recovered" } else { "lost" };
                let text = format!("joined {how} {} {}", joined.replayed, joined.position);
                Some(Message::from(text))
            });
            if let Err(error) = joined.await {
                let _ = session.send(format!("failed {error:?}")).await;
            }
        }
        ["leave", room] => {
            session.leave(room);
            let _ = session.send("left").await;
        }
        ["say", room] => {
            let _ = history.publish(room, |id| format!("{id}")).await;
        }
        _ => panic!("{text}"),
    }
}

/// A server of this store.
pub fn serving(store: impl Store) -> Builder<impl coracle::Handler> {
    Server::builder().history(store).on_message(obey)
}

/// Publishes to a room, and sees that the messages get these ids.
#[track_caller]
pub fn publish(history: &History, room: &str, expected: std::ops::RangeInclusive<u64>) {
    for expected in expected {
        let published = within(history.publish(room, |id| format!("{id} in {room}"))).unwrap();
        assert_eq!(published.id, expected);
    }
}

/// Four come and go, and each time name the last id that they have seen, while two publish: each gets each message
/// once, in order.
pub fn come_and_go(store: impl Store) {
    const MESSAGES: u64 = 4000;
    const LEAD: u64 = 200;
    const READERS: usize = 4;
    let server = start(serving(store).configure(|config| {
        config.history.replay_messages = 100_000;
        config.history.page_messages = 64;
    }));
    let history = server.handle.history().unwrap();
    let epoch = history.epoch();
    // How far each reader had come after its last visit. Nobody is left behind by more than `LEAD`, so that each
    // has to come many times.
    let progress: Arc<[AtomicU64; READERS]> = Arc::default();
    let publishers: Vec<_> = (0..2)
        .map(|_| {
            let (history, progress) = (history.clone(), Arc::clone(&progress));
            std::thread::spawn(move || {
                for _ in 0..MESSAGES / 2 {
                    let slowest = || progress.iter().map(|it| it.load(Ordering::SeqCst)).min();
                    eventually("the readers come", || {
                        history.last_id("quay") < slowest().unwrap() + LEAD
                    });
                    within(history.publish("quay", |id| format!("{id} news"))).unwrap();
                }
            })
        })
        .collect();
    // Each comes and goes as fast as it can, at whatever point that is.
    let readers: Vec<_> = (0..READERS)
        .map(|reader| {
            let (addr, progress) = (server.addr(), Arc::clone(&progress));
            std::thread::spawn(move || {
                let (mut seen, mut visits) = (0, 0);
                while seen < MESSAGES {
                    let mut client = Raw::connect(addr);
                    client.upgrade();
                    client.send_frame(TEXT, format!("join quay {epoch} {seen}").as_bytes());
                    visits += 1;
                    let stay = seen + 1 + (visits * 37 + reader as u64 * 11) % (LEAD / 2);
                    let mut told = false;
                    while !told || (seen < stay && seen < MESSAGES) {
                        let text = client.expect_text();
                        if let Some(joined) = text.strip_prefix("joined ") {
                            assert!(joined.starts_with("recovered "), "{text} after {seen}");
                            assert!(joined.ends_with(&format!(" {seen}")), "{text} after {seen}");
                            told = true;
                        } else {
                            assert_eq!(id(&text), seen + 1, "each once, in order");
                            seen += 1;
                        }
                    }
                    client.reset();
                    progress[reader].store(seen, Ordering::SeqCst);
                }
                visits
            })
        })
        .collect();
    publishers.into_iter().for_each(|it| it.join().unwrap());
    let visits: u64 = readers.into_iter().map(|it| it.join().unwrap()).sum();
    assert!(visits >= READERS as u64 * (MESSAGES / (LEAD + 2)), "{visits}");
    server.finish();
}

/// A room is forgotten because there are too many, and goes on above all that were: a client is told so, and nothing
/// more is said in it. Under the next server its ids must not come from where they were before, or the client
/// would be told later that it has missed nothing.
pub fn a_forgotten_room_stays_where_it_was_said_to_be<S: Store>(open: impl Fn() -> S) {
    let server = start(serving(open()).configure(|config| config.history.rooms = 16));
    let history = server.handle.history().unwrap();
    let say = |room: &str| {
        within(within(history.publish(room, |id| format!("{id}"))).unwrap().stored).unwrap();
    };
    (0..5).for_each(|_| say("quay"));
    // Each of them that is forgotten makes the next begin higher.
    (0..2000).for_each(|number| say(&format!("street {number}")));
    assert!(history.last_id("quay") > 5, "it has been forgotten");
    let mut client = server.client();
    client.send_frame(TEXT, b"join quay - 0");
    assert_eq!(ids(&client.texts(5)), [1, 2, 3, 4, 5]);
    // The room that it has again may have pushed out another one.
    let text = client.expect_text();
    let position = text.strip_prefix("joined lost 5 ").expect(&text).parse().unwrap();
    assert!(position > 5, "{text}");
    client.goodbye();
    let epoch = history.epoch();
    server.finish();
    let server = start(serving(open()));
    let history = server.handle.history().unwrap();
    assert_eq!(history.epoch(), epoch);
    publish(&history, "quay", position + 1..=position + 1);
    let since = |after| Since { epoch, after };
    assert!(within(history.replay("quay", since(position), 5)).unwrap().recovered);
    assert!(!within(history.replay("quay", since(5), 5)).unwrap().recovered);
    server.finish();
}

impl Raw {
    #[track_caller]
    pub fn command(&mut self, command: &str) -> String {
        self.send_frame(TEXT, command.as_bytes());
        self.expect_text()
    }

    #[track_caller]
    pub fn texts(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.expect_text()).collect()
    }
}

/// The id at the beginning of a text.
#[track_caller]
pub fn id(text: &str) -> u64 {
    let number = text.split(' ').next().unwrap_or_default();
    number.parse().unwrap_or_else(|_| panic!("no id: {text:.60}"))
}

pub fn ids(texts: &[String]) -> Vec<u64> {
    texts.iter().map(|text| id(text)).collect()
}
