//! The outbox by itself, without a driver.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::Wake;

use super::*;

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Room for three messages of ten bytes.
fn few() -> Terms {
    terms(3, 10)
}

fn terms(messages: usize, bytes: usize) -> Terms {
    Terms::new(Bounds { messages, bytes }, usize::MAX)
}

#[test]
fn both_bounds_hold_and_the_message_comes_back() {
    let outbox = Outbox::new();
    outbox.try_push("12345".into(), &few()).unwrap();
    match outbox.try_push("123456".into(), &few()) {
        Err(SendError::Full(message)) => assert_eq!(message.as_text(), Some("123456")),
        other => panic!("{other:?}"),
    }
    outbox.try_push("".into(), &few()).unwrap();
    outbox.try_push("".into(), &few()).unwrap();
    assert!(matches!(outbox.try_push("".into(), &few()), Err(SendError::Full(_))));
    assert_eq!(outbox.buffered(), Buffered { messages: 3, bytes: 5 });
}

#[test]
fn a_message_larger_than_the_bound_is_taken_alone() {
    let outbox = Outbox::new();
    outbox.try_push(vec![0; 1000].into(), &few()).unwrap();
    assert!(outbox.try_push("x".into(), &few()).is_err());
}

#[test]
fn what_was_taken_counts_until_it_is_written() {
    let outbox = Outbox::new();
    for _ in 0..3 {
        outbox.try_push("ab".into(), &few()).unwrap();
    }
    let taken = outbox.take(Buffered::default(), &few());
    assert!(taken.last);
    assert!(outbox.try_push("c".into(), &few()).is_err());
    let written = taken.batch.unwrap().carried();
    assert_eq!(written, Buffered { messages: 3, bytes: 6 });
    assert!(outbox.take(written, &few()).batch.is_none());
    assert_eq!(outbox.buffered(), Buffered::default());
    outbox.try_push("c".into(), &few()).unwrap();
}

#[test]
fn a_parked_driver_is_woken_once_and_a_busy_one_is_not() {
    let outbox = Outbox::new();
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    outbox.try_push("a".into(), &few()).unwrap();
    assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
    assert_eq!(outbox.park(Buffered::default(), &few(), &waker, Sendable::Everything), Parked::No);
    assert!(outbox.take(Buffered::default(), &few()).batch.is_some());
    assert_eq!(
        outbox.park(Buffered { messages: 1, bytes: 1 }, &few(), &waker, Sendable::Everything),
        Parked::Yes
    );
    outbox.try_push("b".into(), &few()).unwrap();
    outbox.try_push("c".into(), &few()).unwrap();
    assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
    drop(outbox.take(Buffered::default(), &few()));
    assert_eq!(outbox.park(Buffered::default(), &few(), &waker, Sendable::Everything), Parked::Yes);
    outbox.awake();
    outbox.try_push("d".into(), &terms(9, 99)).unwrap();
    assert_eq!(wakes.0.load(Ordering::SeqCst), 1, "it runs, and will look before it waits");
}

#[test]
fn messages_that_wait_for_the_rate_keep_nobody_awake_and_control_does() {
    let outbox = Outbox::new();
    outbox.pace();
    outbox.try_push("a".into(), &few()).unwrap();
    let taken = outbox.take_control(Buffered::default(), &few());
    assert!(taken.batch.is_none() && !taken.last);
    let waker = Waker::noop();
    assert_eq!(outbox.park(Buffered::default(), &few(), waker, Sendable::Control), Parked::Yes);
    assert!(outbox.ping(b"x"));
    assert!(!outbox.is_parked(), "the driver is woken");
    assert_eq!(outbox.park(Buffered::default(), &few(), waker, Sendable::Nothing), Parked::Yes);
    assert_eq!(outbox.park(Buffered::default(), &few(), waker, Sendable::Control), Parked::No);
    assert!(outbox.take_control(Buffered::default(), &few()).ping().is_some());
    outbox.request(Request::Abort);
    assert_eq!(outbox.park(Buffered::default(), &few(), waker, Sendable::Nothing), Parked::No);
}

#[test]
fn what_goes_out_at_a_rate_is_in_small_batches() {
    let outbox = Outbox::new();
    outbox.pace();
    let terms = terms(1000, usize::MAX);
    for _ in 0..100 {
        outbox.try_push(vec![7; 1000].into(), &terms).unwrap();
    }
    let mut messages = 0;
    while let Some(batch) = outbox.take(Buffered::default(), &few()).batch {
        assert!(batch.carried().messages <= 5, "{:?}", batch.carried());
        messages += batch.carried().messages;
    }
    assert_eq!(messages, 100);
}

#[test]
fn what_waits_for_a_rate_takes_no_more_memory_than_its_bytes() {
    // The memory of full batches that this thread has sent before.
    let mut sent: Vec<_> = (0..3).map(|_| Batch::take()).collect();
    for batch in &mut sent {
        batch.push_frames(&vec![7; 300 * 1024]);
    }
    sent.into_iter().for_each(Batch::give);
    let outbox = Outbox::new();
    outbox.pace();
    let terms = terms(1000, usize::MAX);
    for _ in 0..5 {
        outbox.try_push(vec![7; 4095].into(), &terms).unwrap();
    }
    outbox.try_push("the last one".into(), &terms).unwrap();
    let parked = outbox.park(Buffered::default(), &few(), Waker::noop(), Sendable::Control);
    assert_eq!(parked, Parked::Yes);
    let (mut batches, mut capacity) = (0, 0);
    while let Some(batch) = outbox.take(Buffered::default(), &few()).batch {
        batches += 1;
        capacity += batch.capacity();
    }
    assert_eq!(batches, 6);
    assert!(capacity < 2 * outbox.buffered().bytes, "{capacity} bytes");
}

#[test]
fn what_is_taken_and_parked_is_off_the_books_and_comes_back_if_it_could_not_be_sent() {
    let outbox = Outbox::new();
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    outbox.try_push("abc".into(), &few()).unwrap();
    let batch = outbox.take_and_park(Buffered::default(), &few(), &waker).unwrap().unwrap();
    assert_eq!(outbox.buffered(), Buffered::default());
    assert!(outbox.is_parked());
    outbox.try_push("d".into(), &few()).unwrap();
    assert!(!outbox.is_parked(), "the driver is woken, and must look before it waits");
    assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
    assert_eq!(outbox.park(Buffered::default(), &few(), &waker, Sendable::Everything), Parked::No);
    outbox.unsent(batch.carried(), &few());
    assert_eq!(outbox.buffered(), Buffered { messages: 2, bytes: 4 });
    assert_eq!(outbox.clear(batch.carried(), &few()), Buffered { messages: 1, bytes: 1 });
}

#[test]
fn taking_and_parking_leaves_alone_what_is_not_simple() {
    let waker = Waker::noop();
    let requested = Outbox::new();
    requested.request(Request::Abort);
    assert!(requested.take_and_park(Buffered::default(), &few(), waker).is_none());
    assert!(matches!(requested.take_request(), Some(Request::Abort)));
    let pinged = Outbox::new();
    assert!(pinged.ping(b"x"));
    assert!(pinged.take_and_park(Buffered::default(), &few(), waker).is_none());
    let awaited = Outbox::new();
    let _listener = awaited.room();
    assert!(awaited.take_and_park(Buffered::default(), &few(), waker).is_none());
    assert!(!awaited.is_parked());
}

#[test]
fn the_first_close_wins_an_abort_overtakes_it_and_nothing_follows() {
    let outbox = Outbox::new();
    let close = |reason| Request::Close(CloseFrame::new(crate::message::CloseCode::NORMAL, reason));
    outbox.request(close("first"));
    outbox.request(close("second"));
    assert!(matches!(outbox.try_push("x".into(), &few()), Err(SendError::Closed(_))));
    assert!(!outbox.ping(b"x"));
    match outbox.take(Buffered::default(), &few()).request() {
        Some(Request::Close(close)) => assert_eq!(close.reason.as_str(), "first"),
        other => panic!("{other:?}"),
    }
    outbox.request(Request::Abort);
    assert!(matches!(outbox.take_request(), Some(Request::Abort)));
}

#[test]
fn batches_come_out_in_the_order_in_which_they_were_filled() {
    let outbox = Outbox::new();
    let terms = terms(1000, usize::MAX);
    for i in 0..=255_u8 {
        outbox.try_push(vec![i; 4000].into(), &terms).unwrap();
    }
    let (mut all, mut batches) = (Vec::new(), 0);
    loop {
        let taken = outbox.take(Buffered::default(), &few());
        let Some(batch) = taken.batch else {
            break;
        };
        let mut slices = [std::io::IoSlice::new(&[]); MAX_SLICES];
        let count = batch.slices(&mut slices);
        slices[..count].iter().for_each(|slice| all.extend_from_slice(slice));
        batches += 1;
        assert_eq!(taken.last, all.len() == 256 * 4004);
    }
    assert!(batches > 3, "{batches}");
    let order: Vec<u8> = all.chunks(4004).map(|frame| frame[4]).collect();
    assert_eq!(order, (0..=255).collect::<Vec<u8>>());
}

/// Numbers that look random, and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A driver whose peer takes what it is told to, and an application that writes down what it is told.
struct Peer {
    outbox: Outbox,
    terms: Terms,
    /// What has been taken and not been written.
    batch: Option<Box<Batch>>,
    got: Vec<Got>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Got {
    Number(u64),
    Missed(u64),
}

impl Peer {
    fn new(messages: usize) -> Self {
        let terms = terms(messages, usize::MAX);
        Self { outbox: Outbox::new(), terms, batch: None, got: Vec::new() }
    }

    /// What the driver does when the peer takes everything up to the next batch.
    fn take_one(&mut self) -> bool {
        let mut written = Buffered::default();
        if let Some(batch) = self.batch.take() {
            let mut bytes = batch.single().expect("small").to_vec();
            while let [_, len, rest @ ..] = &bytes[..] {
                let (payload, behind) = rest.split_at(usize::from(*len));
                let text = std::str::from_utf8(payload).unwrap();
                let got = match text.strip_prefix('-') {
                    None => Got::Number(text.parse().unwrap()),
                    Some(missed) => Got::Missed(missed.parse().unwrap()),
                };
                self.got.push(got);
                bytes = behind.to_vec();
            }
            written = batch.carried();
        }
        while let Some(gap) = self.outbox.take_gap() {
            if gap.dropped() % 2 == 1 {
                self.outbox.fill_gap(format!("-{}", gap.dropped()).into(), &self.terms);
                break;
            }
            // Nothing is said about this one.
            self.got.push(Got::Missed(gap.dropped()));
        }
        let taken = self.outbox.take(written, &self.terms);
        self.batch = taken.batch;
        if self.batch.is_some() {
            let parked = self.outbox.park(
                Buffered::default(),
                &self.terms,
                Waker::noop(),
                Sendable::Nothing,
            );
            assert_eq!(parked, Parked::Yes);
        }
        self.batch.is_some()
    }
}

/// Whatever is published, sent, dropped and taken in whatever order: what arrives is in order, everything that
/// is missing between two of them is in a gap between these two, and the books are right at the end.
#[test]
fn what_is_missing_is_in_a_gap_at_its_place() {
    let policies = [SlowPeer::DropNewest, SlowPeer::DropOldest, SlowPeer::Conflate];
    let mut total = Losses::default();
    for seed in 0..600 {
        let mut dice = Dice(seed);
        let policy = policies[seed as usize % 3];
        let mut peer = Peer::new(1 + dice.below(12) as usize);
        let (mut sent, mut replaced) = (Vec::new(), Vec::new());
        let mut last_with_key = std::collections::HashMap::new();
        for number in 0..200 {
            match dice.below(10) {
                0 => {
                    peer.take_one();
                }
                1 if peer.outbox.try_push(number.to_string().into(), &peer.terms).is_ok() => {
                    sent.push(number);
                }
                1 => {}
                _ => {
                    let prepared = Prepared::new(number.to_string());
                    let key = (dice.below(3) == 0).then(|| dice.below(4).to_string());
                    let published = Published {
                        form: Form::Encoded(prepared.frame(Shape::Plain).unwrap().clone()),
                        len: prepared.message().len(),
                        key: key.clone().map(Into::into),
                        room: Some("room".into()),
                        policy,
                    };
                    let fate = peer.outbox.publish(published, &peer.terms);
                    if let Fate::Queued { conflated: 1, .. } = fate {
                        replaced.push(last_with_key[&key]);
                    }
                    if fate != Fate::Dropped {
                        last_with_key.insert(key, number);
                    }
                    sent.push(number);
                }
            }
        }
        while peer.take_one() {}
        // What is missing before this, and what is said to be.
        let (mut next, mut missing, mut said) = (sent.iter(), 0, 0);
        for got in &peer.got {
            match got {
                Got::Missed(count) => said += count,
                Got::Number(number) => {
                    for sent in next.by_ref().take_while(|sent| *sent != number) {
                        missing += u64::from(!replaced.contains(sent));
                    }
                    assert_eq!(missing, said, "seed {seed}: before {number} of {:?}", peer.got);
                    (missing, said) = (0, 0);
                }
            }
        }
        missing += next.filter(|sent| !replaced.contains(sent)).count() as u64;
        assert_eq!(missing, said, "seed {seed}: at the end of {:?}", peer.got);
        let losses = peer.outbox.losses();
        assert_eq!(losses.conflated, replaced.len() as u64);
        assert_eq!(peer.outbox.buffered(), Buffered::default(), "seed {seed}");
        assert_eq!(peer.terms.used(), 0);
        total.dropped += losses.dropped;
        total.conflated += losses.conflated;
    }
    assert!(total.dropped > 10_000 && total.conflated > 1_000, "{total:?}");
}

#[test]
fn what_is_replaced_for_ever_takes_no_memory() {
    let outbox = Outbox::new();
    let terms = terms(1000, usize::MAX);
    outbox.try_push("direct".into(), &terms).unwrap();
    drop(outbox.take(Buffered::default(), &terms).batch);
    outbox.park(Buffered::default(), &terms, Waker::noop(), Sendable::Nothing);
    let publish = |text: &str, key: Option<&str>| {
        let prepared = Prepared::new(text);
        let published = Published {
            form: Form::Encoded(prepared.frame(Shape::Plain).unwrap().clone()),
            len: text.len(),
            key: key.map(Into::into),
            room: None,
            policy: SlowPeer::Conflate,
        };
        outbox.publish(published, &terms)
    };
    // It stays in front of all that is replaced.
    publish("first", None);
    for n in 0..100_000 {
        publish(&n.to_string(), Some(["a", "b"][n % 2]));
    }
    assert_eq!(outbox.buffered().messages, 4);
    let entries = outbox.lock().backlog.as_ref().map(|backlog| backlog.places());
    assert!(entries.unwrap() < 16, "{entries:?} places");
}
