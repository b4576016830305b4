//! What the tests of history share: a server whose clients join with a replay.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use coracle::history::{Resume, Since, Store};
use coracle::{Builder, History, Message, Server, Session};

use super::support::{Raw, TEXT, within};

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
