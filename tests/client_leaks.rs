//! A client and a server that is started again and again, under load: what became of every message, and what is left
//! behind. The only test of its binary, because it counts the threads, the descriptors and the memory of the whole
//! process.

#[path = "support/again.rs"]
mod again;
#[path = "support/belongings.rs"]
mod belongings;
mod support;

use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use again::*;
use belongings::*;
use coracle::client::{Client, Fate, Receipt, Reconnect, WhenFull};
use coracle::{Message, Server, Session};
use support::*;

/// How often the server is started again.
const RESTARTS: usize = 50;

/// Who sends at the same time.
const SENDERS: usize = 4;

/// Messages of one of them that may be under way at once.
const PACE: usize = 25;

/// May wait at the client: fewer than are under way.
const QUEUE: usize = 32;

#[test]
fn a_client_that_comes_back_accounts_for_every_message_and_leaves_nothing_behind() {
    // What the test itself needs for good: smol's own reactor and its thread.
    within(async { smol::Timer::after(Duration::from_millis(1)).await });
    let before = Belongings::now();
    let rounds = |restarts| {
        under_load("killed", restarts, WhenFull::Wait, killed);
        under_load("stopped", restarts, WhenFull::Wait, stopped);
        under_load("killed", restarts, WhenFull::DropOldest, killed);
        before.are_all_there_is();
        memory()
    };
    // The allocator's arenas find their sizes.
    let settled = rounds(RESTARTS / 2);
    let after = rounds(RESTARTS);
    println!("{settled} KiB, and after {} further restarts {after} KiB", 3 * RESTARTS);
    let grown = after.saturating_sub(settled);
    // The buffers of one connection alone are eighty.
    assert!(grown < 4096, "{grown} KiB more");
    clients_that_nobody_wants_any_more();
    before.are_all_there_is();
    connections_one_after_the_other();
    before.are_all_there_is();
}

/// What a server has taken, in this order: who sent it, and its number.
type Taken = Arc<Mutex<Vec<(usize, usize)>>>;

/// `sender number`, and what makes some of them long enough to be cut.
fn text(sender: usize, number: usize) -> String {
    let padding = if number % 16 == 3 { 100_000 } else { number % 100 };
    format!("{sender} {number} {}", "x".repeat(padding))
}

fn take(taken: &Taken, text: &str) {
    let mut parts = text.splitn(3, ' ').map(str::to_owned);
    let mut number = || parts.next().unwrap().parse().unwrap();
    let (sender, number) = (number(), number());
    assert_eq!(text, self::text(sender, number), "as it was sent");
    taken.lock().unwrap().push((sender, number));
}

/// A server that is killed, or says goodbye and closes, in the middle of anything.
fn killed(restarts: usize, addr: SocketAddr, taken: &Taken) {
    for restart in 0..restarts {
        let mut served = Place::at(addr).accept();
        // The place is gone: from now on connections are refused.
        for _ in 0..restart % 7 * 5 {
            let (_, payload) = served.frame();
            take(taken, std::str::from_utf8(&payload).unwrap());
        }
        let rest = |served: &mut Served| {
            while let Ok((TEXT, payload)) = served.try_frame() {
                take(taken, std::str::from_utf8(&payload).unwrap());
            }
        };
        match restart % 5 {
            // As a process that is killed: what it has not read is answered with a reset.
            0 => served.reset(),
            1 => {
                served.stream.read_exact(&mut [0; 50]).unwrap();
                served.reset();
            }
            2 => drop(served),
            // It says that it goes, and takes what is still on its way.
            3 => {
                served.send(CLOSE, &1012_u16.to_be_bytes());
                rest(&mut served);
            }
            _ => {
                served.stream.shutdown(Shutdown::Write).unwrap();
                rest(&mut served);
            }
        }
    }
}

/// This crate's server, stopped and started again.
fn stopped(restarts: usize, addr: SocketAddr, taken: &Taken) {
    for restart in 0..restarts {
        let before = taken.lock().unwrap().len();
        let takes = Arc::clone(taken);
        let server = Server::builder()
            .bind(addr.to_string())
            .configure(|config| config.workers = Some(1))
            .on_message(async move |_: &Session, message: Message| {
                take(&takes, message.as_text().unwrap());
            })
            .start()
            .expect("the server starts");
        eventually("messages arrive", || taken.lock().unwrap().len() > before + restart % 7 * 5);
        within(server.stop());
    }
}

fn under_load(
    how: &str,
    restarts: usize,
    when_full: WhenFull,
    server: impl FnOnce(usize, SocketAddr, &Taken),
) {
    let place = Place::new();
    let addr = place.addr;
    let reconnect =
        Reconnect::new().first(Duration::from_micros(100)).longest(Duration::from_millis(2));
    let client = place
        .client()
        .queue(QUEUE, 64 << 20)
        .when_full(when_full)
        .reconnect(reconnect)
        .start()
        .unwrap();
    drop(place);
    let senders: [_; SENDERS] = std::array::from_fn(|sender| {
        let client = client.clone();
        thread::spawn(move || smol::block_on(send(client, sender)))
    });
    let taken = Taken::default();
    server(restarts, addr, &taken);
    // Now there is none, and everybody waits for one.
    eventually("they wait", || client.accounts().queued >= SENDERS as u64);
    client.abort();
    within(client.ended());
    let fates = senders.map(|sender| sender.join().expect("a sender"));
    let count = |fate| fates.iter().flatten().filter(|it| **it == fate).count() as u64;
    let it = client.accounts();
    assert_balanced(it);
    assert_eq!(it.accepted, fates.iter().map(Vec::len).sum::<usize>() as u64);
    assert_eq!(it.queued, 0);
    assert_eq!(it.handed, count(Fate::Handed));
    assert_eq!(it.dropped, count(Fate::Dropped));
    assert_eq!(it.in_flight, count(Fate::InFlight));
    assert_eq!(it.unsent, count(Fate::Unsent));
    assert_eq!(client.take_unsent().len() as u64, it.unsent);
    assert!(it.unsent >= SENDERS as u64 && it.handed > 0, "{it:?}");
    assert_eq!(it.dropped == 0, when_full == WhenFull::Wait, "{it:?}");
    assert!(client.connections() >= restarts as u64);
    let taken = taken.lock().unwrap();
    let mut last = HashMap::new();
    for &(sender, number) in &*taken {
        let before = last.insert(sender, number);
        assert!(before.is_none_or(|before| before < number), "{sender}: {number} after {before:?}");
        let fate = fates[sender][number];
        assert!(matches!(fate, Fate::Handed | Fate::InFlight), "{sender} {number}: {fate:?}");
    }
    assert!(taken.len() as u64 <= it.handed + it.in_flight);
    println!("{how} {restarts} times, {when_full:?}: {it:?}, {} arrived", taken.len());
}

/// Sends until the client has ended, and says what became of each message. No more than the last ones are under way, so
/// that the books of the test are small beside what it weighs.
async fn send(client: Client, sender: usize) -> Vec<Fate> {
    let (mut fates, mut under_way) = (Vec::new(), VecDeque::new());
    while let Ok(receipt) =
        client.send_with_receipt(text(sender, fates.len() + under_way.len())).await
    {
        under_way.push_back(receipt);
        if under_way.len() == PACE {
            let fate = under_way.pop_front().expect("it is full").await;
            fates.push(fate);
            if fate == Fate::Dropped {
                // Who drops does not wait: without this it would be millions.
                smol::Timer::after(Duration::from_millis(1)).await;
            }
        }
    }
    // It takes no more, which comes before its end. At the end it is known of each.
    client.ended().await;
    fates.extend(under_way.iter().map(|it: &Receipt| it.fate().expect("it is known")));
    fates
}

/// They are dropped in every state; each had a thread.
fn clients_that_nobody_wants_any_more() {
    let place = Place::new();
    let hour = Duration::from_secs(3600);
    for _ in 0..20 {
        let slow = || place.client().reconnect(Reconnect::new().first(hour).longest(hour));
        // Nobody answers, and there is much to be said.
        let client = slow().start().unwrap();
        within(client.send("hello")).unwrap();
        let unanswered = place.tcp();
        drop(client);
        drop(unanswered);
        // It waits for an hour. One who waits for it has no client in its hands.
        let client = slow().start().unwrap();
        drop(place.accept());
        eventually("it is gone", || client.connections() == 1 && client.connection().is_none());
        drop(client);
        // Its driver is never run.
        drop(slow().build().unwrap());
        // The server answers no goodbye.
        let client = slow().close_timeout(Duration::from_millis(1)).start().unwrap();
        let mut served = place.accept();
        within(client.opened()).unwrap();
        drop(client);
        assert_eq!(served.expect_close(), 1001);
        assert!(served.try_frame().is_err(), "it closes all the same");
    }
    eventually("no thread is left", || client_threads() == 0);
}

/// How often. Ten thousand take ten seconds where nothing is optimised.
fn reconnects() -> usize {
    std::env::var("RECONNECTS").map_or(10_000, |count| count.parse().expect("a number"))
}

/// The server sends it away as soon as it is there.
fn connections_one_after_the_other() {
    let place = Place::new();
    let client = place.client().start().unwrap();
    let goodbye = server_frame(CLOSE, &1012_u16.to_be_bytes());
    let again = |times: usize| {
        for _ in 0..times {
            let mut served = Served::upgrade_and(place.tcp(), &goodbye).unwrap();
            assert_eq!(served.frame().0, CLOSE);
            // Leaves nothing in the kernel, which would keep the port for a minute.
            served.reset();
        }
    };
    // With one connection, and nothing under way.
    let belongings = || {
        let mut served = place.accept();
        within(client.send("here I am")).unwrap();
        assert_eq!(served.text(), "here I am");
        let counts = Belongings::now().counts();
        served.close(1012);
        counts
    };
    again(100);
    let few = belongings();
    again(900);
    let (settled, began) = (memory(), Instant::now());
    again(reconnects());
    let (after, took) = (memory(), began.elapsed());
    println!("{} reconnects: {settled} KiB, then {after} KiB; {took:.1?}", reconnects());
    let grown = after.saturating_sub(settled);
    // Sixteen bytes a connection would be 160 KiB; a buffer alone is more than ten thousand.
    assert!(grown < 512, "{grown} KiB more");
    assert_eq!(belongings(), few);
    client.abort();
    within(client.ended());
    eventually("no thread is left", || client_threads() == 0);
    assert_eq!(client.connections(), 1002 + reconnects() as u64);
}
