//! A client comes back by itself, when it should, and tells of it in order.

#[path = "support/again.rs"]
mod again;
mod support;

use std::io::Write;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use again::*;
use coracle::client::{Client, Connected, Disconnected, Ended, Fate, Reason, Reconnect, State};
use coracle::{CloseCode, Message, Server, Session};
use smol::future::poll_once;
use support::*;

/// `Connected`, `Message`, ..: what the callbacks were told, in this order, to the last.
struct Told(mpsc::Receiver<String>);

impl Told {
    #[track_caller]
    fn next(&self) -> String {
        self.0.recv_timeout(PATIENCE).expect("a callback is called")
    }

    /// The callbacks are gone, and with them their client's thread.
    #[track_caller]
    fn expect_end(&self) {
        let end = self.0.recv_timeout(PATIENCE);
        assert_eq!(end, Err(mpsc::RecvTimeoutError::Disconnected), "nothing more is told");
    }
}

/// A client whose callbacks all report.
fn telling(builder: coracle::client::Builder) -> (Client, Told) {
    let (sender, told) = mpsc::channel();
    let tell = || {
        let sender = sender.clone();
        move |what: String| sender.send(what).unwrap()
    };
    let (connected, message, disconnected, gave_up) = (tell(), tell(), tell(), tell());
    let client = builder
        .on_connect(async move |_: &Client, it: &Connected| {
            connected(format!("connected after {} failures", it.failures()));
        })
        .on_message(async move |_: &Client, it: Message| {
            message(format!("message {}", it.as_text().unwrap()));
        })
        .on_disconnect(async move |_: &Client, it: &Disconnected| {
            disconnected(format!("disconnected {:?}", it.code().map(CloseCode::as_u16)));
        })
        .on_give_up(async move |_: &Client, it: &Ended| gave_up(it.to_string()))
        .start()
        .unwrap();
    (client, Told(told))
}

fn parrot(addr: &str) -> coracle::ServerHandle {
    Server::builder()
        .bind(addr)
        .configure(|config| config.workers = Some(1))
        .on_message(async |session: &Session, message: Message| {
            if message.as_text() == Some("go away") {
                session.close(CloseCode::POLICY, "as you like");
            }
            session.send(message).await
        })
        .start()
        .expect("the server starts")
}

#[test]
fn the_same_client_comes_back_to_a_server_that_is_started_again_on_its_port() {
    let server = parrot("127.0.0.1:0");
    let addr = server.local_addr().to_string();
    let (client, told) = telling(Client::builder(format!("ws://{addr}/")).reconnect(at_once()));
    assert_eq!(told.next(), "connected after 0 failures");
    within(client.send("one")).unwrap();
    assert_eq!(told.next(), "message one");
    within(server.stop());
    assert_eq!(told.next(), "disconnected Some(1001)");
    within(client.send("two")).unwrap();
    let server = parrot(&addr);
    assert!(told.next().starts_with("connected after "));
    assert_eq!(told.next(), "message two");
    assert_eq!((client.state(), client.connections()), (State::Open, 2));
    within(client.send("go away")).unwrap();
    assert_eq!(told.next(), "disconnected Some(1008)");
    let last = told.next();
    assert!(last.starts_with("gave up: disconnected by server"), "{last}");
    assert!(last.contains("as you like"), "{last}");
    told.expect_end();
    let Ended::Disconnected(ended) = &*within(client.ended()) else {
        panic!("it has not been asked to end");
    };
    assert!(ended.is_clean() && ended.code() == Some(CloseCode::POLICY), "{ended}");
    within(server.stop());
}

#[test]
fn a_client_that_is_closed_is_told_of_one_end_and_has_not_given_up() {
    let place = Place::new();
    let (client, told) = telling(place.client());
    let mut served = place.accept();
    served.say("hello");
    let ended = client.close(CloseCode::NORMAL, "bye");
    assert_eq!(served.expect_close(), 1000);
    served.send(CLOSE, &1000_u16.to_be_bytes());
    drop(served);
    assert!(matches!(&*within(ended), Ended::Requested(Some(last)) if last.is_clean()));
    assert_eq!(told.next(), "connected after 0 failures");
    let mut next = told.next();
    if next == "message hello" {
        next = told.next();
    }
    assert_eq!(next, "disconnected Some(1000)");
    told.expect_end();
}

#[test]
fn after_these_ends_it_comes_back_and_after_those_it_does_not() {
    let place = Place::new();
    let (client, told) = telling(place.client());
    let codes = [1012, 1013, 1001, 1011, 1002, 3000, 4999];
    for code in codes {
        place.accept().close(code);
        assert_eq!(told.next(), "connected after 0 failures");
        assert_eq!(told.next(), format!("disconnected Some({code})"));
    }
    // A close frame without a code, the end of the stream without a close frame, and a reset.
    let mut served = place.accept();
    served.send(CLOSE, b"");
    assert_eq!(served.frame(), (CLOSE, vec![]));
    drop(served);
    drop(place.accept());
    place.accept().reset();
    for _ in 0..3 {
        assert_eq!(told.next(), "connected after 0 failures");
        assert_eq!(told.next(), "disconnected None");
    }
    place.accept().close(1000);
    assert_eq!(told.next(), "connected after 0 failures");
    assert_eq!(told.next(), "disconnected Some(1000)");
    assert!(told.next().starts_with("gave up"));
    told.expect_end();
    assert_eq!(client.connections(), codes.len() as u64 + 4);
    let (_client, told) = telling(place.client());
    place.accept().close(1008);
    assert_eq!(told.next(), "connected after 0 failures");
    assert_eq!(told.next(), "disconnected Some(1008)");
    assert!(told.next().starts_with("gave up"));
    told.expect_end();
}

#[test]
fn the_application_decides_about_giving_up_if_it_wants_to() {
    let place = Place::new();
    let verdict = |reason: &Reason<'_>| match reason {
        Reason::Ended(ended) => ended.code() == Some(CloseCode::RESTART),
        Reason::Failed(_) => false,
        _ => true,
    };
    let (client, told) = telling(place.client().reconnect(at_once().give_up_if(verdict)));
    place.accept().close(1000);
    place.answer("401 Unauthorized");
    place.answer("403 Forbidden");
    place.accept().close(1008);
    place.accept().close(1012);
    assert_eq!(told.next(), "connected after 0 failures");
    assert_eq!(told.next(), "disconnected Some(1000)");
    assert_eq!(told.next(), "connected after 2 failures");
    assert_eq!(told.next(), "disconnected Some(1008)");
    assert_eq!(told.next(), "connected after 0 failures");
    assert_eq!(told.next(), "disconnected Some(1012)");
    assert!(told.next().starts_with("gave up: disconnected by server"));
    told.expect_end();
    assert_eq!(client.connections(), 3);
}

#[test]
fn a_server_that_wants_other_credentials_is_not_asked_again() {
    for head in ["401 Unauthorized", "403 Forbidden", "404 Not Found"] {
        let place = Place::new();
        let (_client, told) = telling(place.client());
        // What may pass is asked again, and is counted.
        place.answer("500 Internal Server Error");
        place.answer("429 Too Many Requests");
        drop(place.tcp());
        place.answer(head);
        let last = told.next();
        assert!(last.starts_with("gave up after 4 attempts"), "{last}");
        assert!(last.contains(head), "{last}");
        told.expect_end();
    }
}

#[test]
fn a_server_that_asks_for_time_is_given_it() {
    let place = Place::new();
    let (client, told) = telling(place.client());
    place.answer("503 Service Unavailable\r\nRetry-After: 0");
    place.answer("503 Service Unavailable\r\nRetry-After: 1");
    let asked = Instant::now();
    let _served = place.accept();
    assert!(asked.elapsed() >= Duration::from_millis(990), "too early");
    assert_eq!(told.next(), "connected after 2 failures");
    // It may be closed while it waits.
    drop(client);
}

#[test]
fn no_more_attempts_are_made_than_may_be() {
    let place = Place::new();
    let (_client, told) = telling(place.client().reconnect(at_once().attempts(2)));
    for _ in 0..3 {
        place.answer("502 Bad Gateway");
    }
    assert!(told.next().starts_with("gave up after 3 attempts"));
    told.expect_end();
    let (_client, told) = telling(place.client().reconnect(Reconnect::never()));
    drop(place.accept());
    assert_eq!(told.next(), "connected after 0 failures");
    assert_eq!(told.next(), "disconnected None");
    assert!(told.next().starts_with("gave up: disconnected by server"));
    told.expect_end();
    let addr = place.addr;
    drop(place);
    let client = Client::builder(format!("ws://{addr}/")).reconnect(Reconnect::never()).start();
    let ended = within(client.unwrap().ended());
    assert!(matches!(&*ended, Ended::Failed { attempts: 1, .. }), "{ended}");
}

#[test]
fn what_is_said_in_vain_waits_for_the_next_connection_and_keeps_its_order() {
    let place = Place::new();
    let client = place.client().start().unwrap();
    for number in 0..100 {
        within(client.send(format!("{number}"))).unwrap();
    }
    // Nothing of it has left when these are gone.
    drop(place.tcp());
    place.answer("503 Service Unavailable");
    let mut served = place.accept();
    for number in 0..100 {
        assert_eq!(served.text(), format!("{number}"));
    }
    eventually("all are handed", || client.accounts().handed == 100);
    served.close(1012);
    eventually("it is away", || client.state() == State::Connecting);
    let mut receipt = within(client.send_with_receipt("again")).unwrap();
    assert_eq!(within(poll_once(&mut receipt)), None);
    assert_eq!(place.accept().text(), "again");
    assert_eq!(within(receipt), Fate::Handed);
}

// A callback answered while there was no room; so many messages waited behind it that the end of the connection could
// not be told, and the client waited with that before it came back, which would have made the room.
#[test]
fn a_callback_that_waits_for_the_next_connection_does_not_keep_it_away() {
    let place = Place::new();
    let (go, gone) = smol::channel::bounded::<()>(1);
    let (begin, begun) = heard();
    let client = place
        .client()
        .queue(1, 1024)
        .inbox(1)
        .on_disconnect(async |_: &Client, _: &Disconnected| ())
        .on_message(async move |client: &Client, message: Message| {
            let _ = begin.send(());
            let _ = gone.recv().await;
            client.send(message.clone()).await.unwrap();
            client.send(message).await.unwrap();
        })
        .start()
        .unwrap();
    let mut served = place.accept();
    // More than may wait behind the first; in one piece, which a reset does not overtake.
    let frames = (0..100).flat_map(|number| server_frame(TEXT, format!("{number}").as_bytes()));
    served.stream.write_all(&frames.collect::<Vec<_>>()).unwrap();
    begun.next();
    // It reads before it writes: when this has come, as many wait as may.
    client.try_send("fill").unwrap();
    assert_eq!(served.text(), "fill");
    served.reset();
    eventually("it notices", || {
        let _ = client.try_send("fill");
        client.state() == State::Connecting
    });
    let mut served = place.accept();
    go.close();
    served.say("the last");
    let mut answers = Vec::new();
    while answers.last().is_none_or(|last| last != "the last") {
        answers.extend(Some(served.text()).filter(|text| text != "fill"));
    }
    for (number, pair) in answers[..answers.len() - 1].chunks(2).enumerate() {
        assert_eq!(pair, [format!("{number}"), format!("{number}")]);
    }
    // The first, as many as may wait, and what it had in hand. What is behind that is lost with the connection.
    assert_eq!(answers.len(), 2 * 3 + 1, "{answers:?}");
}

#[test]
fn a_callback_that_does_not_end_keeps_no_record_of_every_connection() {
    let place = Place::new();
    let (go, gone) = smol::channel::bounded::<()>(1);
    let (sender, told) = mpsc::channel();
    let ended = sender.clone();
    let client = place
        .client()
        .on_connect(async move |_: &Client, _: &Connected| {
            let _ = gone.recv().await;
            sender.send(true).unwrap();
        })
        .on_disconnect(async move |_: &Client, _: &Disconnected| ended.send(false).unwrap())
        .start()
        .unwrap();
    for _ in 0..100 {
        place.accept().close(1012);
    }
    let mut served = place.accept();
    go.close();
    within(client.send("here I am")).unwrap();
    assert_eq!(served.text(), "here I am");
    assert_eq!(client.connections(), 101);
    client.abort();
    let told: Vec<bool> = told.iter().collect();
    assert!(told.chunks(2).all(|pair| pair == [true, false]), "one after the other: {told:?}");
    // The one that was told of all the time, those that may wait, and the last one.
    assert!((9..=10).contains(&(told.len() / 2)), "{}", told.len());
}

#[test]
fn a_callback_may_close_the_client_and_a_panic_of_one_ends_it() {
    let place = Place::new();
    let client = place
        .client()
        .on_message(async |client: &Client, _: Message| {
            client.close(CloseCode::NORMAL, "enough").await;
        })
        .start()
        .unwrap();
    let mut served = place.accept();
    served.say("hello");
    assert_eq!(served.expect_close(), 1000);
    drop(served);
    assert!(matches!(&*within(client.ended()), Ended::Requested(Some(_))));
    let panics = Mutex::new(Vec::new());
    let client = place
        .client()
        .on_message(async move |_: &Client, _: Message| {
            panics.lock().unwrap().push(());
            panic!("for the test");
        })
        .start()
        .unwrap();
    let mut served = place.accept();
    served.say("one");
    served.say("two");
    assert_eq!(served.expect_close(), 1011);
    drop(served);
    assert!(matches!(&*within(client.ended()), Ended::Panicked));
    // The same where it is the application's verdict.
    let verdict = |_: &Reason<'_>| panic!("for the test");
    let client = place.client().reconnect(at_once().give_up_if(verdict)).start().unwrap();
    drop(place.accept());
    assert!(matches!(&*within(client.ended()), Ended::Panicked));
}

// The goodbye and the reset came between the client's reading and its writing: a write that failed was all that it
// noticed, and it came back to a server that had told it not to. And an answer to a ping that could not be sent kept the
// goodbye from being read. Rare, so there are many.
#[test]
fn a_goodbye_is_heard_by_one_who_writes_all_the_time() {
    let place = Place::new();
    for round in 0..200 {
        let client = place.client().start().unwrap();
        let mut served = place.accept();
        let writer = client.clone();
        let writing = std::thread::spawn(move || while within(writer.send("hello")).is_ok() {});
        served.text();
        let mut last = server_frame(PING, b"?").repeat(round % 4);
        last.extend(server_frame(CLOSE, &1008_u16.to_be_bytes()));
        served.stream.write_all(&last).unwrap();
        // Much of what the client has sent is unread, so this is a reset.
        drop(served);
        let ended = within(client.ended());
        let code = match &*ended {
            Ended::Disconnected(last) => last.code(),
            other => panic!("{other}"),
        };
        assert_eq!(code, Some(CloseCode::POLICY), "{ended}");
        writing.join().unwrap();
    }
}
