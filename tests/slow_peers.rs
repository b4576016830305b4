//! Peers that do not keep up with what is published: what each policy does, that it is counted, and that
//! nothing slips in where something is missing.

#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::sync::mpsc;

use coracle::{
    Builder, Cause, CloseCode, Closed, Closures, Flow, Gap, Handler, Message, Outcome, Paths,
    Phase, Publication, SendError, Server, Session, Side, SlowPeer,
};
use pipe::*;
use support::*;

/// What each test's sessions do: join a room, and answer.
struct App {
    opens: mpsc::Sender<Session>,
    drains: mpsc::Sender<usize>,
    closes: mpsc::Sender<Closed>,
}

impl Handler for App {
    async fn open(&self, session: &Session) -> Outcome {
        session.join("room")?;
        let _ = self.opens.send(session.clone());
        Ok(Flow::Continue)
    }

    async fn message(&self, session: &Session, message: Message) -> Outcome {
        session.send(message).await?;
        Ok(Flow::Continue)
    }

    async fn drain(&self, session: &Session) -> Outcome {
        let _ = self.drains.send(session.buffered().messages);
        Ok(Flow::Continue)
    }

    async fn close(&self, _: &Session, closed: &Closed) {
        let _ = self.closes.send(closed.clone());
    }
}

struct Slow {
    server: TestServer,
    sessions: Heard<Session>,
    drains: Heard<usize>,
    records: Heard<Closed>,
}

/// More than the pipe holds, so that its session waits for its peer.
const STALLING: usize = PIPE + 1000;

/// Sends what the pipe does not hold, and waits until the session waits for its peer.
fn stall(session: &Session) {
    let before = session.traffic().bytes_out;
    session.try_send(vec![0; STALLING]).unwrap();
    eventually("the pipe is full", || session.traffic().bytes_out == before + PIPE as u64);
    // While it is being written it is off the books.
    eventually("it is back on the books", || session.buffered().messages == 1);
}

impl Slow {
    /// Four messages may wait, of publications one more, the message that stalls included.
    fn start(configure: impl FnOnce(Builder<Closures>) -> Builder<Closures>) -> Self {
        let (opens, sessions) = heard();
        let (drained, drains) = heard();
        let (closes, records) = heard();
        let builder = configure(Server::builder().configure(|config| {
            config.limits.outbox_messages = 4;
        }));
        let server = start(builder.handler(App { opens, drains: drained, closes }));
        Self { server, sessions, drains, records }
    }

    /// A member whose peer reads nothing, and has taken all it can.
    fn stalled(&self) -> (Pipe, Session) {
        let client = Pipe::connect(&self.server);
        let session = self.sessions.next();
        stall(&session);
        (client, session)
    }

    /// Publishes `first..=last` and waits until they have been handed on: whoever reads has got them.
    fn publish(&self, witness: &mut Raw, numbers: std::ops::RangeInclusive<u32>) {
        for number in numbers {
            self.server.handle.rooms().try_publish("room", number.to_string()).unwrap();
            assert_eq!(witness.expect_text(), number.to_string());
        }
    }

    /// A member on the same worker that reads, so that it knows what has been handed on.
    fn witness(&self) -> Raw {
        let client = self.server.client();
        self.sessions.next();
        client
    }

    fn finish(self) {
        assert_eq!(self.server.handle.rooms().buffered_bytes(), 0, "nothing waits");
        self.server.finish();
    }
}

#[track_caller]
fn expect_texts(client: &mut Pipe, texts: &[&str]) {
    for text in texts {
        let frame = client.read_frame();
        assert_eq!(String::from_utf8_lossy(&frame.payload), *text);
    }
}

fn tell(gap: &Gap) -> Message {
    let rooms: Vec<_> =
        gap.rooms().map(|(room, n)| format!("{}:{n}", room.unwrap_or("-"))).collect();
    format!("{} missed ({})", gap.dropped(), rooms.join(",")).into()
}

#[test]
fn by_default_a_member_that_never_reads_is_closed_when_its_bound_is_reached() {
    let it = Slow::start(|builder| builder.workers(1));
    let mut witness = it.witness();
    let (mut client, session) = it.stalled();
    it.publish(&mut witness, 1..=4);
    assert!(session.is_open());
    it.publish(&mut witness, 5..=5);
    assert!(!session.is_open());
    assert_eq!(client.read_frame().payload.len(), STALLING, "what was on its way is finished");
    assert_eq!(client.read_close(), (1013, "too slow".to_owned()));
    client.send_frame(CLOSE, &1013_u16.to_be_bytes());
    let closed = it.records.next();
    assert_closed(&closed, Side::Server, Cause::SlowPeer, Phase::Closing, Some(1013));
    assert!(closed.clean);
    assert_eq!(closed.undelivered.messages, 4, "what waited was dropped with it: {closed}");
    assert_eq!(it.server.handle.rooms().stats().too_slow, 1);
    it.publish(&mut witness, 6..=7);
    witness.goodbye();
    it.finish();
}

// A message that came after the bound was reached was queued as soon as there was room for it, before the
// client could know that there was something missing.
#[test]
fn the_newest_are_dropped_and_nothing_slips_in_before_the_gap_is_known() {
    let it = Slow::start(|builder| {
        builder.workers(1).slow_peer(SlowPeer::DropNewest).on_gap(|_, gap| Some(tell(gap)))
    });
    let mut witness = it.witness();
    let (mut client, session) = it.stalled();
    it.publish(&mut witness, 1..=10);
    assert_eq!(session.buffered().messages, 5);
    assert_eq!(client.read_frame().payload.len(), STALLING);
    expect_texts(&mut client, &["1", "2", "3", "4"]);
    it.publish(&mut witness, 11..=12);
    expect_texts(&mut client, &["6 missed (room:6)", "11", "12"]);
    let losses = session.losses();
    assert_eq!((losses.dropped, losses.conflated), (6, 0));
    assert_eq!(it.server.handle.rooms().stats().dropped, 6);
    client.goodbye();
    witness.goodbye();
    it.finish();
}

#[test]
fn a_gap_in_the_middle_of_the_queue_keeps_its_place() {
    let it = Slow::start(|builder| {
        builder.workers(1).slow_peer(SlowPeer::DropNewest).on_gap(|_, gap| Some(tell(gap)))
    });
    let mut witness = it.witness();
    let (mut client, session) = it.stalled();
    it.publish(&mut witness, 1..=6);
    // What was queued under the other policy is not dropped by this one, and the latest is kept.
    session.set_slow_peer(SlowPeer::DropOldest);
    it.publish(&mut witness, 7..=9);
    assert!(matches!(session.try_send("direct"), Err(SendError::Full(_))));
    assert_eq!(client.read_frame().payload.len(), STALLING);
    expect_texts(&mut client, &["1", "2", "3", "4", "4 missed (room:4)", "9"]);
    session.try_send("direct").unwrap();
    expect_texts(&mut client, &["direct"]);
    client.goodbye();
    witness.goodbye();
    it.finish();
}

#[test]
fn the_oldest_are_dropped_and_the_gap_is_where_they_were() {
    let it = Slow::start(|builder| {
        builder.workers(1).slow_peer(SlowPeer::DropOldest).on_gap(|_, gap| Some(tell(gap)))
    });
    let mut witness = it.witness();
    let (mut client, session) = it.stalled();
    it.publish(&mut witness, 1..=10);
    assert_eq!(session.buffered().messages, 5);
    assert_eq!(client.read_frame().payload.len(), STALLING);
    expect_texts(&mut client, &["6 missed (room:6)", "7", "8", "9", "10"]);
    assert_eq!(session.losses().dropped, 6);
    client.goodbye();
    witness.goodbye();
    it.finish();
}

#[test]
fn the_latest_is_kept_also_where_direct_messages_fill_the_whole_bound() {
    let it = Slow::start(|builder| builder.workers(1).slow_peer(SlowPeer::DropOldest));
    let mut witness = it.witness();
    let (mut client, session) = it.stalled();
    for direct in ["a", "b", "c"] {
        session.try_send(direct).unwrap();
    }
    it.publish(&mut witness, 1..=9);
    assert_eq!(session.buffered().messages, 5, "the bound, and the latest");
    assert_eq!(client.read_frame().payload.len(), STALLING);
    expect_texts(&mut client, &["a", "b", "c", "9"]);
    client.goodbye();
    witness.goodbye();
    it.finish();
}

#[test]
fn values_with_the_same_key_replace_each_other_and_leave_no_gap() {
    let it = Slow::start(|builder| {
        builder
            .workers(1)
            .room_policy(|room| match room {
                "room" => SlowPeer::Conflate,
                _ => SlowPeer::Close,
            })
            .on_gap(|_, gap| Some(tell(gap)))
    });
    let mut witness = it.witness();
    let (mut client, session) = it.stalled();
    let rooms = it.server.handle.rooms();
    let price = |share: &str, value: u32| {
        let text = format!("{share} {value}");
        rooms.try_publish("room", Publication::new(&*text).key(share)).unwrap();
        text
    };
    for value in 0..1000 {
        for share in ["tea", "rum"] {
            let text = price(share, value);
            assert_eq!(witness.expect_text(), text);
        }
    }
    // One without a key, which is not replaced.
    it.publish(&mut witness, 7..=7);
    let text = price("tea", 1000);
    assert_eq!(witness.expect_text(), text);
    assert_eq!(session.buffered().messages, 4);
    assert_eq!(client.read_frame().payload.len(), STALLING);
    expect_texts(&mut client, &["rum 999", "7", "tea 1000"]);
    assert_eq!((session.losses().dropped, session.losses().conflated), (0, 1999));
    assert_eq!(rooms.stats().conflated, 1999);
    client.goodbye();
    witness.goodbye();
    it.finish();
}

#[test]
fn conflating_falls_back_on_dropping_the_oldest() {
    let it = Slow::start(|builder| {
        builder.workers(1).slow_peer(SlowPeer::Conflate).on_gap(|_, gap| Some(tell(gap)))
    });
    let mut witness = it.witness();
    let (mut client, session) = it.stalled();
    let rooms = it.server.handle.rooms();
    for key in ["a", "b", "c", "d", "e", "b"] {
        rooms.try_publish("room", Publication::new(key).key(key)).unwrap();
        assert_eq!(witness.expect_text(), key);
    }
    assert_eq!(client.read_frame().payload.len(), STALLING);
    expect_texts(&mut client, &["1 missed (room:1)", "c", "d", "e", "b"]);
    assert_eq!((session.losses().dropped, session.losses().conflated), (1, 1));
    client.goodbye();
    witness.goodbye();
    it.finish();
}

#[test]
fn when_everything_has_left_the_application_hears_that_the_peer_has_caught_up() {
    let it = Slow::start(|builder| builder.workers(1).slow_peer(SlowPeer::DropNewest));
    let mut witness = it.witness();
    let (mut client, session) = it.stalled();
    it.publish(&mut witness, 1..=5);
    assert_eq!(it.drains.try_next(), None);
    assert_eq!(client.read_frame().payload.len(), STALLING);
    expect_texts(&mut client, &["1", "2", "3", "4"]);
    assert_eq!(it.drains.next(), 0, "nothing waits");
    // A message that was given back is a reason, too.
    stall(&session);
    for _ in 0..3 {
        session.try_send("more").unwrap();
    }
    assert!(session.try_send("too much").is_err());
    assert_eq!(client.read_frame().payload.len(), STALLING);
    expect_texts(&mut client, &["more", "more", "more"]);
    assert_eq!(it.drains.next(), 0);
    // And an echo is none.
    client.echo("once");
    client.goodbye();
    witness.goodbye();
    assert_eq!(it.drains.try_next(), None);
    it.finish();
}

#[test]
fn a_closure_hears_of_it_too_also_behind_a_path() {
    let (opens, sessions) = heard();
    let (drained, drains) = heard();
    let app = Closures::new().on_open(opened(&opens)).on_drain(async move |session: &Session| {
        drained.send(session.id()).unwrap();
        Flow::Close(CloseCode::NORMAL, "that was all".into())
    });
    let server = start(
        Server::builder()
            .configure(|config| config.limits.outbox_messages = 1)
            .handler(Paths::new().at("/slow/{name}", app)),
    );
    let mut client = Pipe::connect_to(&server, "/slow/phone");
    let session = sessions.next();
    stall(&session);
    assert!(session.try_send("too much").is_err());
    assert_eq!(client.read_frame().payload.len(), STALLING);
    assert_eq!(drains.next(), session.id());
    assert_eq!(client.read_close(), (1000, "that was all".to_owned()));
    drop(client);
    server.finish();
}

#[test]
fn a_session_has_a_policy_of_its_own_whatever_its_room_says() {
    let it = Slow::start(|builder| builder.workers(1));
    let mut witness = it.witness();
    let (mut patient, session) = it.stalled();
    session.set_slow_peer(SlowPeer::DropOldest);
    let (mut other, impatient) = it.stalled();
    it.publish(&mut witness, 1..=20);
    assert!(session.is_open() && !impatient.is_open());
    assert_eq!(patient.read_frame().payload.len(), STALLING);
    expect_texts(&mut patient, &["17", "18", "19", "20"]);
    assert_eq!(other.read_frame().payload.len(), STALLING);
    assert_eq!(other.read_close().0, 1013);
    drop(other);
    patient.goodbye();
    witness.goodbye();
    assert_eq!(it.records.next().cause, Cause::SlowPeer);
    it.finish();
}

// What waits for one peer was bounded, what waits for ten thousand was not.
#[test]
fn when_all_together_have_too_much_the_largest_is_closed_first() {
    let it = Slow::start(|builder| {
        builder.workers(1).configure(|config| {
            config.limits.outbox_messages = 1000;
            config.limits.outboxes_bytes = Some(3 * STALLING + 150_000);
        })
    });
    let (mut small, small_session) = it.stalled();
    let (mut large, large_session) = it.stalled();
    let (mut middle, middle_session) = it.stalled();
    large_session.try_send(vec![1; 60_000]).unwrap();
    middle_session.try_send(vec![1; 30_000]).unwrap();
    assert!(it.server.handle.rooms().buffered_bytes() >= 3 * STALLING + 90_000);
    small_session.try_send(vec![1; 20_000]).unwrap();
    small_session.try_send(vec![1; 1_000]).unwrap();
    assert!(large_session.is_open(), "{} bytes", it.server.handle.rooms().buffered_bytes());
    middle_session.try_send(vec![1; 55_000]).unwrap();
    let closed = it.records.next();
    assert_closed(&closed, Side::Server, Cause::OverBudget, Phase::Closing, Some(1013));
    assert!(!middle_session.is_open(), "85 000 bytes and what it stalls with");
    assert!(large_session.is_open() && small_session.is_open());
    assert_eq!(it.server.handle.rooms().stats().over_budget, 1);
    assert_eq!(large.read_frame().payload.len(), STALLING);
    assert_eq!(large.read_frame().payload.len(), 60_000);
    assert_eq!(small.read_frame().payload.len(), STALLING);
    assert_eq!(small.read_frame().payload.len(), 20_000);
    assert_eq!(small.read_frame().payload.len(), 1_000);
    middle.read_to_end();
    large.goodbye();
    small.goodbye();
    it.finish();
}

#[test]
fn what_is_said_about_a_gap_may_panic() {
    let it = Slow::start(|builder| {
        builder.workers(1).slow_peer(SlowPeer::DropOldest).on_gap(|_, _| panic!("as asked"))
    });
    let mut witness = it.witness();
    let (mut client, _session) = it.stalled();
    it.publish(&mut witness, 1..=9);
    assert_eq!(client.read_frame().payload.len(), STALLING);
    // What is behind the gap is delivered, as everything is that was queued before a close.
    expect_texts(&mut client, &["6", "7", "8", "9"]);
    assert_eq!(client.read_close().0, 1011);
    drop(client);
    assert_eq!(it.records.next().cause, Cause::HandlerPanicked);
    witness.goodbye();
    assert_eq!(it.server.finish().panics, 1);
}

#[test]
fn a_close_is_said_behind_what_waits_with_its_gap() {
    let it = Slow::start(|builder| {
        builder.workers(1).slow_peer(SlowPeer::DropNewest).on_gap(|_, gap| Some(tell(gap)))
    });
    let mut witness = it.witness();
    let (mut client, session) = it.stalled();
    it.publish(&mut witness, 1..=9);
    session.close(CloseCode::NORMAL, "enough");
    assert_eq!(client.read_frame().payload.len(), STALLING);
    expect_texts(&mut client, &["1", "2", "3", "4", "5 missed (room:5)"]);
    assert_eq!(client.read_close(), (1000, "enough".to_owned()));
    drop(client);
    it.records.next();
    witness.goodbye();
    it.finish();
}

// While its handler was busy the peer had caught up, and then the handler closed the session. The drain that was
// still to be told was taken for the end: no close frame, and nothing of what was queued.
#[test]
fn a_session_that_has_caught_up_and_is_closed_says_goodbye() {
    let (closes, records) = heard();
    let (release, released) = smol::channel::bounded::<()>(1);
    let (opens, sessions) = heard();
    let server = start(
        Server::builder()
            .configure(|config| config.limits.outbox_messages = 1)
            .on_open(opened(&opens))
            .on_message(async move |session: &Session, _: Message| {
                session.try_send(vec![0; STALLING])?;
                assert!(session.try_send("too much").is_err());
                released.recv().await?;
                session.try_send("the last word")?;
                Ok::<_, coracle::BoxError>(Flow::Close(CloseCode::NORMAL, "done".into()))
            })
            .on_close(record(&closes)),
    );
    let mut client = Pipe::connect(&server);
    let session = sessions.next();
    client.send_frame(TEXT, b"go");
    assert_eq!(client.read_frame().payload.len(), STALLING);
    eventually("it has caught up", || session.traffic().messages_out == 1);
    release.try_send(()).unwrap();
    expect_texts(&mut client, &["the last word"]);
    assert_eq!(client.read_close(), (1000, "done".to_owned()));
    client.send_frame(CLOSE, &1000_u16.to_be_bytes());
    assert!(records.next().clean);
    server.finish();
}

// Nothing was said about the gap, so nothing was written behind it, and who waited for that waited for ever.
#[test]
fn a_message_writer_gets_its_turn_behind_a_gap_that_nobody_speaks_of() {
    for _ in 0..50 {
        let it = Slow::start(|builder| builder.workers(1).slow_peer(SlowPeer::DropNewest));
        let mut witness = it.witness();
        let (mut client, session) = it.stalled();
        it.publish(&mut witness, 1..=6);
        let writing = std::thread::spawn(move || {
            within(async {
                let mut writer = session.message_writer(coracle::Kind::Text);
                writer.write("written").await?;
                writer.finish().await
            })
        });
        assert_eq!(client.read_frame().payload.len(), STALLING);
        expect_texts(&mut client, &["1", "2", "3", "4", "written", ""]);
        writing.join().unwrap().unwrap();
        client.goodbye();
        witness.goodbye();
        it.finish();
    }
}

#[test]
fn a_key_belongs_to_its_room() {
    let (opens, sessions) = heard();
    let server = start(
        Server::builder()
            .workers(1)
            .room_policy(|room| match room {
                "log" => SlowPeer::DropNewest,
                _ => SlowPeer::Conflate,
            })
            .on_open(async move |session: &Session| {
                for room in ["btc", "eth", "log", "sync"] {
                    session.join(room).unwrap();
                }
                opens.send(session.clone()).unwrap();
            }),
    );
    let mut client = Pipe::connect(&server);
    let session = sessions.next();
    stall(&session);
    let rooms = server.handle.rooms();
    for n in 0..3 {
        for room in ["btc", "eth", "log"] {
            let text = format!("{room} {n}");
            rooms.try_publish(room, Publication::new(text).key("price")).unwrap();
        }
    }
    rooms.try_publish("sync", "over").unwrap();
    assert_eq!(client.read_frame().payload.len(), STALLING);
    let mut got = Vec::new();
    while got.last().is_none_or(|last| last != "over") {
        got.push(String::from_utf8(client.read_frame().payload).unwrap());
    }
    got.sort();
    assert_eq!(got, ["btc 2", "eth 2", "log 0", "log 1", "log 2", "over"]);
    client.goodbye();
    server.finish();
}
