//! What is given up half-way, by whom, and on which executor: nobody is left waiting, and nothing is sent that was
//! given up.

#[path = "support/again.rs"]
mod again;
mod support;

use std::io::{Read, Write};
use std::pin::pin;
use std::time::Duration;

use again::*;
use coracle::client::{Client, Ended, Fate, Reconnect, State};
use coracle::{CloseCode, Message, SendError, Server, Session};
use futures_lite::future;
use smol::future::poll_once;
use support::*;

fn text(message: &Message) -> &str {
    message.as_text().expect("a text")
}

#[test]
fn a_send_that_is_dropped_while_it_waits_for_room_is_not_sent() {
    let place = Place::new();
    let client = place.client().queue(1, 1024).start().unwrap();
    within(async {
        client.send("one").await.unwrap();
        assert!(poll_once(client.send("dropped")).await.is_none());
        {
            let mut two = pin!(client.send("two"));
            assert!(poll_once(&mut two).await.is_none());
        }
        assert_eq!(client.accounts().accepted, 1);
    });
    let mut served = place.accept();
    assert_eq!(served.text(), "one");
    within(client.send("three")).unwrap();
    assert_eq!(served.text(), "three");
    assert_balanced(client.accounts());
    assert_eq!(client.accounts().accepted, 2);
}

#[test]
fn everybody_who_waits_for_room_gets_some_though_others_give_up() {
    let place = Place::new();
    let client = place.client().queue(1, 1024).start().unwrap();
    within(client.send("first")).unwrap();
    let mut waiting: Vec<_> = (0..9).map(|it| Box::pin(client.send(format!("{it}")))).collect();
    for send in &mut waiting {
        assert!(within(poll_once(send)).is_none());
    }
    let mut number = 0;
    waiting.retain(|_| {
        number += 1;
        number % 3 == 0
    });
    let mut served = place.accept();
    for send in waiting {
        within(send).unwrap();
    }
    let mut texts = served.texts::<4>();
    texts.sort();
    assert_eq!(texts, ["2", "5", "8", "first"]);
    assert_eq!(client.accounts().accepted, 4);
}

#[test]
fn a_recv_that_is_dropped_loses_nothing() {
    let place = Place::new();
    let client = place.client().start().unwrap();
    let mut served = place.accept();
    within(async {
        assert!(poll_once(client.recv()).await.is_none());
        let mut dropped = Box::pin(client.recv());
        let mut kept = Box::pin(client.recv());
        assert!(poll_once(&mut dropped).await.is_none() && poll_once(&mut kept).await.is_none());
        served.say("one");
        served.say("two");
        // The first one of them has been woken, most likely, when it is dropped.
        drop(dropped);
        assert_eq!(text(&kept.await.unwrap()), "one");
        assert_eq!(text(&client.recv().await.unwrap()), "two");
    });
}

// The second of two messages woke nobody, because somebody had been woken who had not come yet: of two tasks that
// waited, one slept beside its message.
#[test]
fn two_who_wait_are_both_woken_by_two_messages_in_one_segment() {
    let place = Place::new();
    let client = place.client().start().unwrap();
    let mut served = place.accept();
    within(async {
        for _ in 0..100 {
            let one = smol::spawn({
                let client = client.clone();
                async move { client.recv().await }
            });
            let mut two = Box::pin(client.recv());
            assert!(poll_once(&mut two).await.is_none());
            let both = [server_frame(TEXT, b"a"), server_frame(TEXT, b"b")].concat();
            served.stream.write_all(&both).unwrap();
            let (one, two) = future::zip(one, two).await;
            let (one, two) = (one.unwrap(), two.unwrap());
            assert!(["ab", "ba"].contains(&format!("{}{}", text(&one), text(&two)).as_str()));
        }
    });
}

// Between a look for a message and a look for the end came both: the last message was passed over.
#[test]
fn every_message_is_taken_before_the_end_is_told() {
    let place = Place::new();
    let goodbye = [server_frame(TEXT, b"last words"), server_frame(CLOSE, &1000_u16.to_be_bytes())];
    for _ in 0..200 {
        let client = place.client().start().unwrap();
        let served = Served::upgrade_and(place.tcp(), &goodbye.concat()).unwrap();
        assert_eq!(text(&within(client.recv()).expect("a message before the end")), "last words");
        drop(served);
        assert!(matches!(&*within(client.recv()).unwrap_err(), Ended::Disconnected(_)));
    }
}

#[test]
fn when_the_last_client_is_dropped_what_waits_is_sent_and_then_comes_1001() {
    let place = Place::new();
    let client = place.client().start().unwrap();
    let mut served = place.accept();
    within(client.opened()).unwrap();
    let other = client.clone();
    for number in 0..100 {
        within(client.send(format!("{number}"))).unwrap();
    }
    drop(client);
    assert_eq!(other.state(), State::Open);
    drop(other);
    for number in 0..100 {
        assert_eq!(served.text(), format!("{number}"));
    }
    assert_eq!(served.expect_close(), 1001);
    served.send(CLOSE, &1001_u16.to_be_bytes());
}

#[test]
fn whoever_waits_is_told_when_the_driver_is_dropped() {
    let place = Place::new();
    let (client, driver) = place.client().queue(3, 64 << 20).build().unwrap();
    let mut running = Box::pin(driver.run());
    // More than the kernel takes: it is being written when the driver is dropped.
    let large = vec![7; 16 << 20];
    within(async {
        let written = client.send_with_receipt(large).await.unwrap();
        let behind = client.send_with_receipt("behind").await.unwrap();
        let last = client.send_with_receipt("last").await.unwrap();
        let accept = smol::unblock(move || {
            let mut served = place.accept();
            let mut some = [0; 100];
            served.stream.read_exact(&mut some).unwrap();
            (place, served)
        });
        let driving = async {
            (&mut running).await;
            unreachable!("it is not asked to end");
        };
        let (place, served) = future::or(accept, driving).await;
        let mut waiting = pin!(client.send("no room"));
        let mut received = pin!(client.recv());
        let mut end = pin!(client.ended());
        let mut receipts = pin!(async { [written.await, behind.await, last.await] });
        assert!(
            poll_once(&mut waiting).await.is_none() && poll_once(&mut received).await.is_none()
        );
        assert!(poll_once(&mut end).await.is_none() && poll_once(&mut receipts).await.is_none());
        drop(running);
        assert!(
            matches!(waiting.await, Err(SendError::Closed(message)) if text(&message) == "no room")
        );
        assert!(matches!(&*received.await.unwrap_err(), Ended::Requested(None)));
        assert!(matches!(&*end.await, Ended::Requested(None)));
        assert!(matches!(&*client.opened().await.unwrap_err(), Ended::Requested(None)));
        assert_eq!(receipts.await, [Fate::InFlight, Fate::Unsent, Fate::Unsent]);
        assert!(matches!(client.try_send("too late"), Err(SendError::Closed(_))));
        let unsent = client.take_unsent();
        assert_eq!(unsent.iter().map(text).collect::<Vec<_>>(), ["behind", "last"]);
        let accounts = client.accounts();
        assert_balanced(accounts);
        assert_eq!((accounts.queued, accounts.in_flight, accounts.unsent), (0, 1, 2));
        drop((place, served));
    });
    // One that was never run.
    let (client, driver) = Client::builder("ws://127.0.0.1:1/").build().unwrap();
    drop(driver);
    assert!(matches!(&*within(client.ended()), Ended::Requested(None)));
}

#[test]
fn an_attempt_that_is_dropped_leaves_no_connection() {
    let place = Place::new();
    let mut tcp = within(async {
        let mut connecting = Box::pin(place.client().connect());
        let mut accepted = Box::pin(smol::unblock(move || place.tcp()));
        future::poll_fn(|cx| {
            assert!(connecting.as_mut().poll(cx).is_pending(), "nobody answers");
            accepted.as_mut().poll(cx)
        })
        .await
    });
    let mut all = Vec::new();
    tcp.read_to_end(&mut all).expect("it closes");
}

#[test]
fn waits_that_are_longer_than_any_clock_are_for_ever() {
    let place = Place::new();
    let forever = Duration::MAX;
    let reconnect = Reconnect::new().first(Duration::from_micros(1)).longest(forever);
    let client = place
        .client()
        .connect_timeout(forever)
        .ping(forever)
        .pong_timeout(forever)
        .write_stall(forever)
        .close_timeout(forever)
        .reconnect(reconnect)
        .start()
        .unwrap();
    let mut served = place.accept();
    within(client.send("hello")).unwrap();
    assert_eq!(served.text(), "hello");
    served.close(1012);
    let mut served = place.accept();
    let ended = client.close(CloseCode::NORMAL, "");
    assert_eq!(served.expect_close(), 1000);
    drop(served);
    assert!(matches!(&*within(ended), Ended::Requested(Some(_))));
}

/// An application that loses its connection, comes back, and leaves; beside the driver of its client.
async fn conversation(client: Client) {
    client.send("hello").await.unwrap();
    assert_eq!(text(&client.recv().await.unwrap()), "hello");
    client.send("go away").await.unwrap();
    while client.connections() < 2 {
        future::yield_now().await;
    }
    let receipt = client.send_with_receipt("again").await.unwrap();
    assert_eq!(text(&client.recv().await.unwrap()), "again");
    assert_eq!(receipt.await, Fate::Handed);
    let ended = client.close(CloseCode::NORMAL, "that was all").await;
    assert!(matches!(&*ended, Ended::Requested(Some(last)) if last.is_clean()), "{ended}");
}

fn moody() -> (TestServer, coracle::client::Builder) {
    let server =
        start(Server::builder().on_message(async |session: &Session, message: Message| {
            if text(&message) == "go away" {
                session.close(CloseCode::RESTART, "");
                return Ok(());
            }
            session.send(message).await
        }));
    let client = Client::builder(format!("ws://{}/", server.addr())).reconnect(at_once());
    (server, client)
}

#[test]
fn it_runs_beside_the_application_on_one_thread_of_async_ios_block_on() {
    let (server, builder) = moody();
    let (client, driver) = builder.build().unwrap();
    let watchdog = async {
        async_io::Timer::after(PATIENCE).await;
        panic!("it stands still");
    };
    async_io::block_on(future::or(
        async {
            future::zip(driver.run(), conversation(client)).await;
        },
        watchdog,
    ));
    server.finish();
}

#[test]
fn it_runs_on_smols_own_executors_and_on_one_that_knows_no_reactor() {
    let (server, builder) = moody();
    let (client, driver) = builder.build().unwrap();
    let executor = smol::LocalExecutor::new();
    within(executor.run(async {
        // A callback that is not `Send` would be as welcome here.
        let driving = executor.spawn(driver.run());
        conversation(client).await;
        driving.await;
    }));
    server.finish();
    let (server, builder) = moody();
    let (client, driver) = builder.build().unwrap();
    within(async {
        let driving = smol::spawn(driver.run());
        conversation(client).await;
        driving.await;
    });
    server.finish();
    // futures-lite only parks the thread: it is async-io's own that looks after sockets and timers.
    let (server, builder) = moody();
    let (client, driver) = builder.build().unwrap();
    future::block_on(future::zip(driver.run(), conversation(client)));
    server.finish();
}

#[test]
fn callbacks_need_not_be_send_where_the_driver_stays_on_its_thread() {
    use std::cell::Cell;
    use std::rc::Rc;
    let (server, builder) = moody();
    let count = Rc::new(Cell::new(0));
    let counted = Rc::clone(&count);
    let (client, driver) = builder
        .on_connect(async move |_: &Client, _: &coracle::client::Connected| {
            counted.set(counted.get() + 1);
        })
        .build()
        .unwrap();
    within(future::zip(driver.into_future(), conversation(client)));
    assert_eq!(count.get(), 2);
    server.finish();
}
