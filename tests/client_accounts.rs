//! What becomes of every message: it is sent at most once and in order, and the books are right to the last one.

#[path = "support/again.rs"]
mod again;
mod support;

use std::future::Future;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake};

use again::*;
use coracle::client::{Accounts, Client, Fate, Receipt, State, WhenFull};
use coracle::{CloseCode, Message, SendError};
use smol::future::poll_once;
use support::*;

/// `[accepted, handed, queued, dropped, in_flight, unsent]`, and they add up.
#[track_caller]
fn books(client: &Client) -> [u64; 6] {
    let it = client.accounts();
    assert_balanced(it);
    let Accounts { accepted, handed, queued, dropped, in_flight, unsent, .. } = it;
    [accepted, handed, queued, dropped, in_flight, unsent]
}

/// With a client that is away: nobody answers at the place yet.
fn away(messages: usize, bytes: usize, when_full: WhenFull) -> (Place, Client) {
    let place = Place::new();
    let client = place.client().queue(messages, bytes).when_full(when_full).start().unwrap();
    (place, client)
}

fn receipts(client: &Client, texts: &[&str]) -> Vec<Receipt> {
    texts.iter().map(|it| within(client.send_with_receipt(*it)).unwrap()).collect()
}

fn fates(receipts: Vec<Receipt>) -> Vec<Fate> {
    receipts.into_iter().map(within).collect()
}

/// The server has read what it was waiting for; that this was handed is written down a moment later.
fn await_handed(client: &Client, count: u64) {
    eventually("it is written down", || client.accounts().handed == count);
}

#[test]
fn where_room_is_waited_for_nothing_is_dropped() {
    let (place, client) = away(3, 1024, WhenFull::Wait);
    let mut sent = receipts(&client, &["1", "2", "3"]);
    assert!(
        matches!(client.try_send("no"), Err(SendError::Full(it)) if it.as_text() == Some("no"))
    );
    let mut waiting = Box::pin(client.send_with_receipt("4"));
    assert!(within(poll_once(&mut waiting)).is_none());
    assert_eq!(books(&client), [3, 0, 3, 0, 0, 0]);
    let mut served = place.accept();
    assert_eq!(served.texts(), ["1", "2", "3"]);
    sent.push(within(waiting).unwrap());
    assert_eq!(served.text(), "4");
    assert_eq!(fates(sent), [Fate::Handed; 4]);
    assert_eq!(books(&client), [4, 4, 0, 0, 0, 0]);
}

#[test]
fn bytes_are_bounded_and_one_message_of_any_size_may_wait_alone() {
    let (place, client) = away(100, 10, WhenFull::Wait);
    client.try_send("a text that is longer than ten bytes").unwrap();
    assert!(matches!(client.try_send(""), Err(SendError::Full(_))));
    let mut served = place.accept();
    assert_eq!(served.text().len(), 36);
    await_handed(&client, 1);
    served.close(1012);
    eventually("it is away", || client.state() == State::Connecting);
    client.try_send("12345").unwrap();
    client.try_send("67890").unwrap();
    assert!(matches!(client.try_send("x"), Err(SendError::Full(_))));
    client.try_send("").unwrap();
    assert_eq!(books(&client), [4, 1, 3, 0, 0, 0]);
    assert_eq!(place.accept().texts(), ["12345", "67890", ""]);
    await_handed(&client, 4);
}

#[test]
fn the_newest_or_the_oldest_are_dropped_where_that_is_asked_for() {
    let (place, client) = away(3, 1024, WhenFull::DropNewest);
    let sent = receipts(&client, &["1", "2", "3", "4", "5"]);
    client.try_send("6").unwrap();
    assert_eq!(books(&client), [6, 0, 3, 3, 0, 0]);
    assert_eq!(place.accept().texts(), ["1", "2", "3"]);
    use Fate::{Dropped, Handed};
    assert_eq!(fates(sent), [Handed, Handed, Handed, Dropped, Dropped]);
    assert_eq!(books(&client), [6, 3, 0, 3, 0, 0]);

    let (place, client) = away(3, 10, WhenFull::DropOldest);
    let sent = receipts(&client, &["1", "2", "3", "4", "5"]);
    assert_eq!(books(&client), [5, 0, 3, 2, 0, 0]);
    // It takes the bytes of two, and then those of all.
    client.try_send("12345678").unwrap();
    assert_eq!(books(&client), [6, 0, 3, 3, 0, 0]);
    client.try_send("more than ten bytes").unwrap();
    assert_eq!(books(&client), [7, 0, 1, 6, 0, 0]);
    let mut served = place.accept();
    assert_eq!(served.text(), "more than ten bytes");
    assert_eq!(fates(sent), [Dropped; 5]);
    await_handed(&client, 1);
}

// It was dropped because what was being written left no room for it: the server kept an old value for good.
#[test]
fn the_newest_message_waits_beside_what_is_being_written() {
    for when_full in [WhenFull::DropOldest, WhenFull::Conflate] {
        let (place, client) = away(10, 20 << 20, when_full);
        let large = within(client.send_with_receipt(vec![7; 16 << 20])).unwrap();
        let mut served = place.accept();
        // The kernel does not take it all, so it is being written.
        served.stream.read_exact(&mut [0; 100]).unwrap();
        within(client.send_keyed("key", "small")).unwrap();
        let replaced = within(client.send_with_receipt(vec![7; 8 << 20])).unwrap();
        assert_eq!(books(&client), [3, 0, 2, 1, 0, 0]);
        within(client.send_keyed("key", vec![7; 8 << 20])).unwrap();
        assert_eq!(within(replaced), Fate::Dropped);
        within(client.send_keyed("key", "the last word")).unwrap();
        assert_eq!(books(&client), [5, 0, 2, 3, 0, 0]);
        served.reset();
        assert_eq!(within(large), Fate::InFlight);
        assert_eq!(place.accept().text(), "the last word");
        await_handed(&client, 1);
        assert_eq!(books(&client), [5, 1, 0, 3, 1, 0]);
    }
}

// What was taken together was settled together.
#[test]
fn a_large_message_does_not_keep_it_from_being_known_what_became_of_those_before_it() {
    let (place, client) = away(10, 20 << 20, WhenFull::Wait);
    let small = receipts(&client, &["", "small"]);
    let large = within(client.send_with_receipt(vec![7; 16 << 20])).unwrap();
    let mut served = place.accept();
    assert_eq!(served.texts(), ["", "small"]);
    assert_eq!(fates(small), [Fate::Handed; 2]);
    assert_eq!((large.fate(), books(&client)), (None, [3, 2, 1, 0, 0, 0]));
    served.stream.read_exact(&mut [0; 100]).unwrap();
    served.reset();
    assert_eq!(within(large), Fate::InFlight);
    assert_eq!(books(&client), [3, 2, 0, 0, 1, 0]);
}

#[test]
fn a_message_with_a_key_takes_the_place_of_the_one_before_it() {
    let (place, client) = away(3, 1024, WhenFull::Conflate);
    let keyed = |key: &str, text: &str| within(client.send_keyed(key, text)).unwrap();
    keyed("a", "a1");
    keyed("b", "b1");
    keyed("a", "a2");
    let plain = receipts(&client, &["plain"]);
    assert_eq!(books(&client), [4, 0, 3, 1, 0, 0]);
    // Full: but this one takes a place that is taken.
    keyed("b", "b2");
    assert_eq!(books(&client), [5, 0, 3, 2, 0, 0]);
    // And this one takes the oldest's.
    keyed("c", "c1");
    assert_eq!(books(&client), [6, 0, 3, 3, 0, 0]);
    assert_eq!(place.accept().texts(), ["plain", "b2", "c1"]);
    assert_eq!(fates(plain), [Fate::Handed]);
    await_handed(&client, 3);
    assert_eq!(books(&client), [6, 3, 0, 3, 0, 0]);
}

#[test]
fn keys_mean_nothing_where_nothing_is_conflated() {
    let (place, client) = away(3, 1024, WhenFull::DropOldest);
    within(client.send_keyed("a", "1")).unwrap();
    within(client.send_keyed("a", "2")).unwrap();
    assert_eq!(books(&client), [2, 0, 2, 0, 0, 0]);
    assert_eq!(place.accept().texts(), ["1", "2"]);
}

#[test]
fn a_message_that_is_cut_in_the_middle_is_in_flight_and_not_sent_again() {
    let place = Place::new();
    let client = place.client().queue(100, 64 << 20).start().unwrap();
    let before = within(client.send_with_receipt("before")).unwrap();
    let mut served = place.accept();
    assert_eq!(served.text(), "before");
    assert_eq!(within(before), Fate::Handed);
    let cut = within(client.send_with_receipt(vec![7; 16 << 20])).unwrap();
    served.stream.read_exact(&mut [0; 1000]).unwrap();
    let behind = receipts(&client, &["1", "2"]);
    assert_eq!(books(&client), [4, 1, 3, 0, 0, 0]);
    assert_eq!((cut.fate(), behind[0].fate()), (None, None));
    served.reset();
    assert_eq!(within(cut), Fate::InFlight);
    let mut served = place.accept();
    assert_eq!(served.texts(), ["1", "2"]);
    assert_eq!(fates(behind), [Fate::Handed; 2]);
    assert_eq!(books(&client), [4, 3, 0, 0, 1, 0]);
    // Said of the connection, too.
    within(client.send(vec![7; 16 << 20])).unwrap();
    served.stream.read_exact(&mut [0; 1000]).unwrap();
    let ended = {
        client.abort();
        within(client.ended())
    };
    assert!(ended.to_string().contains("1 messages in flight"), "{ended}");
    assert_eq!(books(&client), [5, 3, 0, 0, 2, 0]);
}

#[test]
fn what_waits_when_the_client_ends_is_given_back_once() {
    let (place, client) = away(10, 1024, WhenFull::Wait);
    let sent = receipts(&client, &["1", "2"]);
    within(client.send_keyed("key", vec![3])).unwrap();
    assert_eq!(client.take_unsent(), []);
    let ended = within(client.close(CloseCode::NORMAL, "bye"));
    assert_eq!(ended.to_string(), "the client was closed while it had no connection");
    assert_eq!(fates(sent), [Fate::Unsent; 2]);
    assert_eq!(books(&client), [3, 0, 0, 0, 0, 3]);
    let unsent: [Message; 3] = ["1".into(), "2".into(), vec![3].into()];
    assert_eq!(client.take_unsent(), unsent);
    assert_eq!(client.take_unsent(), []);
    assert!(matches!(within(client.send("4")), Err(SendError::Closed(_))));
    assert!(matches!(client.try_send("4"), Err(SendError::Closed(_))));
    assert_eq!(books(&client), [3, 0, 0, 0, 0, 3]);
    drop(place);

    // The same where the server does not want it any more.
    let (place, client) = away(10, 1024, WhenFull::Wait);
    let sent = receipts(&client, &["1"]);
    place.answer("403 Forbidden");
    assert_eq!(fates(sent), [Fate::Unsent]);
    assert_eq!(client.take_unsent(), ["1".into()]);
}

#[test]
fn what_waits_is_sent_before_the_goodbye_if_there_is_a_connection() {
    let place = Place::new();
    let client = place.client().queue(100, 64 << 20).start().unwrap();
    let mut served = place.accept();
    within(client.opened()).unwrap();
    // The first one takes more than a moment.
    within(client.send(vec![7; 16 << 20])).unwrap();
    let sent = receipts(&client, &["1", "2"]);
    let ended = client.close(CloseCode::NORMAL, "bye");
    assert!(matches!(client.try_send("too late"), Err(SendError::Closed(_))));
    let (opcode, payload) = served.frame();
    assert_eq!((opcode, payload.len()), (BINARY, 16 << 20));
    assert_eq!(served.texts(), ["1", "2"]);
    assert_eq!(served.expect_close(), 1000);
    served.send(CLOSE, &1000_u16.to_be_bytes());
    drop(served);
    within(ended);
    assert_eq!(fates(sent), [Fate::Handed; 2]);
    assert_eq!(books(&client), [3, 3, 0, 0, 0, 0]);
    assert_eq!(client.take_unsent(), []);
}

/// Somebody who waits for a receipt.
#[derive(Default)]
struct Waiting(AtomicBool);

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

// Whoever had looked last was the only one who was woken.
#[test]
fn every_clone_of_a_receipt_wakes_whoever_waits_for_it() {
    let (place, client) = away(10, 1024, WhenFull::Wait);
    let receipt = within(client.send_with_receipt("1")).unwrap();
    assert_eq!(receipt.fate(), None);
    let waiting = [(); 3].map(|()| {
        let (mut clone, who) = (receipt.clone(), Arc::<Waiting>::default());
        let waker = who.clone().into();
        let looked = Pin::new(&mut clone).poll(&mut Context::from_waker(&waker));
        assert!(looked.is_pending());
        (clone, who)
    });
    assert_eq!(place.accept().text(), "1");
    for (clone, who) in waiting {
        eventually("it is woken", || who.0.load(Ordering::SeqCst));
        assert_eq!(clone.fate(), Some(Fate::Handed));
        assert_eq!(within(clone), Fate::Handed);
    }
    assert_eq!(within(receipt), Fate::Handed);
}
