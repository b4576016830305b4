//! Servers that mean the client no good, or are just slow: nothing grows, nothing hangs, and no deadline is missed.
#![cfg(feature = "client")]

#[path = "support/scripted.rs"]
mod scripted;
mod support;

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use coracle::CloseCode;
use coracle::client::{Builder, Client, Ended, Fate, Reconnect, Why};
use scripted::{agreed, plain, script};
use support::*;

/// A client that is not ended by anything but what is tested.
fn patient(addr: std::net::SocketAddr) -> Builder {
    plain(addr).write_stall(PATIENCE * 2).ping(None).reconnect(Reconnect::never())
}

fn open(builder: Builder) -> Client {
    within(builder.connect()).unwrap()
}

/// Reads the request for a WebSocket, and grants it.
fn grant(raw: &mut Raw) {
    let request = raw.read_head();
    raw.send(agreed(&request, "").as_bytes());
}

#[test]
fn pings_of_a_server_that_reads_nothing_are_not_answered_without_a_bound() {
    const FAR_TOO_MUCH: usize = 256 << 20;
    let (addr, taken) = script(|raw| {
        grant(raw);
        let ping = [&[0x89, 125][..], &[b'x'; 125]].concat().repeat(512);
        // Time is the subject: it has to come to a stop.
        raw.stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut taken = 0;
        while taken < FAR_TOO_MUCH {
            match raw.stream.write(&ping) {
                Ok(count) => taken += count,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        taken
    });
    let client = open(patient(addr));
    let taken = taken.next();
    assert!(taken < FAR_TOO_MUCH, "{taken} bytes of pings");
    client.abort();
    within(client.ended());
}

#[test]
fn fragments_without_an_end_keep_nobody_from_ending_it() {
    let (addr, gone) = script(|raw| {
        grant(raw);
        raw.send(&[0x01, 0]);
        let fragments = [0, 0].repeat(32 << 10);
        while raw.stream.write_all(&fragments).is_ok() {}
    });
    let client = open(patient(addr).ping(Duration::from_millis(1)));
    client.abort();
    within(client.ended());
    gone.next();
}

#[test]
fn a_close_does_not_wait_for_a_server_that_takes_nothing() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (addr, gone) = script(move |raw| {
        grant(raw);
        let _ = released.recv();
    });
    let client = open(patient(addr).queue(64, 64 << 20).close_timeout(Duration::from_millis(100)));
    let receipts: Vec<_> =
        (0..32).map(|_| within(client.send_with_receipt(vec![0; 1 << 20])).unwrap()).collect();
    let ended = within(client.close(CloseCode::NORMAL, ""));
    let Ended::Requested(Some(last)) = &*ended else { panic!("{ended}") };
    assert!(matches!(last.why(), Why::Requested) && !last.is_clean(), "{last}");
    let accounts = client.accounts();
    assert_eq!(accounts.handed + accounts.in_flight + accounts.unsent, 32, "{accounts:?}");
    assert!(accounts.unsent > 0, "{accounts:?}");
    assert_eq!(within(receipts.last().unwrap().clone()), Fate::Unsent);
    drop(release);
    gone.next();
}

#[test]
fn a_ping_that_waits_behind_a_large_message_is_not_missed() {
    // More than the kernel's buffers hold.
    const SIZE: usize = 32 << 20;
    const PONG: Duration = Duration::from_secs(1);
    let (addr, got) = script(|raw| {
        grant(raw);
        // Time is the subject: for longer than a pong may take, it reads slowly and says nothing.
        let mut chunk = vec![0; 64 << 10];
        let mut got = 0;
        let slow = Instant::now() + PONG * 3;
        while got < SIZE {
            got += raw.stream.read(&mut chunk).unwrap();
            if Instant::now() < slow {
                std::thread::sleep(PONG / 20);
            }
        }
        raw.send(&[0x88, 2, 0x03, 0xe8]);
        raw.read_to_end();
        got
    });
    let pings = patient(addr).ping(PONG / 20).pong_timeout(PONG);
    let client = open(pings.queue(64, 64 << 20));
    let receipt = within(client.send_with_receipt(vec![0; SIZE])).unwrap();
    assert_eq!(within(receipt), Fate::Handed);
    let ended = within(client.ended());
    let Ended::Disconnected(last) = &*ended else { panic!("{ended}") };
    assert!(matches!(last.why(), Why::Closed), "{last}");
    assert!(got.next() >= SIZE);
}

#[test]
fn what_follows_a_goodbye_changes_nothing() {
    let (addr, gone) = script(|raw| {
        grant(raw);
        // 1012, then a text, then nonsense.
        raw.send(&[0x88, 2, 0x03, 0xf4, 0x81, 1, b'x', 0xff, 0xff]);
        raw.read_to_end();
    });
    let client = open(patient(addr));
    let ended = within(client.ended());
    let Ended::Disconnected(last) = &*ended else { panic!("{ended}") };
    assert!(matches!(last.why(), Why::Closed) && last.is_clean(), "{last}");
    assert_eq!(last.code(), Some(CloseCode::RESTART));
    assert!(client.try_recv().is_none());
    gone.next();
}

#[test]
fn a_frame_that_claims_more_than_may_come_is_refused_by_its_head() {
    let (addr, said) = script(|raw| {
        grant(raw);
        raw.send(&[0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        raw.read_to_end()
    });
    let client = open(patient(addr));
    let ended = within(client.ended());
    let Ended::Disconnected(last) = &*ended else { panic!("{ended}") };
    assert!(matches!(last.why(), Why::Violation(_)), "{last}");
    // A close frame, masked.
    assert_eq!(said.next().first(), Some(&0x88));
}

#[test]
fn what_came_before_the_end_is_delivered_however_slowly_it_is_taken() {
    let (addr, gone) = script(|raw| {
        grant(raw);
        for i in 0..10_u8 {
            raw.send(&[0x82, 1, i]);
        }
        raw.send(&[0x88, 2, 0x03, 0xe8]);
        raw.read_to_end();
    });
    let client = open(patient(addr).inbox(1));
    for i in 0..10_u8 {
        assert_eq!(within(client.recv()).unwrap().as_bytes(), [i]);
    }
    let ended = within(client.recv()).unwrap_err();
    assert!(matches!(&*ended, Ended::Disconnected(last) if last.is_clean()), "{ended}");
    gone.next();
}
