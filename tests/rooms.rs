//! Rooms: joining and leaving, publishing, audiences, order, limits.

#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};

use coracle::{
    Audience, Cause, Closed, JoinError, Message, Prepared, Publication, PublishError, Server,
    Session,
};
use pipe::*;
use support::*;

/// What a client asks for: `join ROOM`, `leave ROOM`, `say ROOM TEXT`, `others ROOM TEXT`, `all TEXT` and
/// so on. Each is answered directly, so that whoever has the answer knows it done.
async fn obey(session: &Session, message: Message) -> Result<(), coracle::SendError> {
    let text = message.as_text().unwrap_or_default().to_owned();
    let mut words = text.splitn(3, ' ');
    let mut word = || words.next().unwrap_or_default();
    let (what, room, said) = (word(), word(), word());
    let rooms = session.rooms();
    let answer = match what {
        "join" => format!("{:?}", session.join(room)),
        "leave" => session.leave(room).to_string(),
        "leave-all" => session.leave_all().to_string(),
        "say" => rooms.publish(room, said).await.to_string(),
        "others" => rooms.publish(Audience::Others(room, session.id()), said).await.to_string(),
        "all" => rooms.publish(Audience::All, room).await.to_string(),
        "rooms" => format!("{:?}", session.joined()),
        _ => "?".to_owned(),
    };
    session.send(answer).await
}

#[track_caller]
fn ask(client: &mut Raw, command: &str) -> String {
    client.send_frame(TEXT, command.as_bytes());
    client.expect_text()
}

#[track_caller]
fn join(client: &mut Raw, room: &str) {
    assert_eq!(ask(client, &format!("join {room}")), "Ok(())");
}

#[test]
fn what_is_published_to_a_room_reaches_its_members_and_nobody_else() {
    let server = start(Server::builder().on_message(obey));
    let mut clients: Vec<_> = (0..5).map(|_| server.client()).collect();
    clients[..3].iter_mut().for_each(|client| join(client, "harbour"));
    join(&mut clients[3], "sea");
    assert_eq!(ask(&mut clients[4], "say harbour ahoy"), "3");
    for client in &mut clients[..3] {
        assert_eq!(client.expect_text(), "ahoy");
    }
    // Whoever is in another room, or in none, has got nothing before this.
    assert_eq!(ask(&mut clients[3], "rooms"), "[\"sea\"]");
    assert_eq!(ask(&mut clients[4], "rooms"), "[]");
    assert_eq!(ask(&mut clients[4], "say nowhere ahoy"), "0");
    clients.into_iter().for_each(Raw::goodbye);
    eventually("empty rooms vanish", || server.handle.rooms().count() == 0);
    server.finish();
}

#[test]
fn the_sender_can_be_left_out_and_everybody_or_one_session_addressed() {
    let server = start(Server::builder().on_message(obey));
    let mut sender = server.client();
    let mut member = server.client();
    let mut stranger = server.client();
    join(&mut sender, "room");
    join(&mut member, "room");
    assert_eq!(ask(&mut sender, "others room hello"), "1");
    assert_eq!(member.expect_text(), "hello");
    assert_eq!(ask(&mut stranger, "others room from outside"), "2");
    assert_eq!(sender.expect_text(), "from outside");
    assert_eq!(member.expect_text(), "from outside");
    let rooms = server.handle.rooms();
    assert_eq!(rooms.try_publish(Audience::All, "to all").unwrap(), 3);
    for client in [&mut sender, &mut member, &mut stranger] {
        assert_eq!(client.expect_text(), "to all");
    }
    for session in server.handle.sessions().all() {
        let text = format!("for {}", session.id());
        assert_eq!(rooms.try_publish(session.id(), &*text).unwrap(), 1);
    }
    for client in [&mut sender, &mut member, &mut stranger] {
        assert!(client.expect_text().starts_with("for "));
    }
    for client in [sender, member, stranger] {
        client.goodbye();
    }
    server.finish();
}

#[test]
fn joining_twice_is_joining_once_and_who_has_left_gets_nothing() {
    let server = start(Server::builder().on_message(obey));
    let mut client = server.client();
    join(&mut client, "a");
    assert_eq!(ask(&mut client, "join a"), "Ok(())");
    join(&mut client, "b");
    assert_eq!(server.handle.rooms().size("a"), 1);
    assert_eq!(ask(&mut client, "rooms"), "[\"a\", \"b\"]");
    assert_eq!(ask(&mut client, "leave a"), "true");
    assert_eq!(ask(&mut client, "leave a"), "false");
    assert_eq!(server.handle.rooms().names(), ["b".into()]);
    assert_eq!(ask(&mut client, "say a nobody hears it"), "0");
    assert_eq!(ask(&mut client, "leave-all"), "1");
    assert_eq!(ask(&mut client, "leave-all"), "0");
    assert_eq!(server.handle.rooms().count(), 0);
    client.goodbye();
    server.finish();
}

// A member joined, and what was published right after it did not reach it: the list of members was looked at
// before the join had come to it.
#[test]
fn who_joins_gets_what_is_published_from_then_on() {
    let server = start(Server::builder().on_open(async |session: &Session| {
        let rooms = session.rooms();
        for round in 0..1000 {
            let room = format!("room {}", round % 7);
            assert_eq!(rooms.publish(&room, "before").await, 0);
            session.join(&room).unwrap();
            assert_eq!(rooms.publish(&room, format!("{round}")).await, 1);
            // It is not owed what has not been handed on yet, so this waits for it.
            while session.traffic().messages_out + (session.buffered().messages as u64) <= round {
                smol::future::yield_now().await;
            }
            assert!(session.leave(&room));
        }
    }));
    let mut client = server.client();
    for round in 0..1000 {
        assert_eq!(client.expect_text(), round.to_string());
    }
    client.goodbye();
    assert_eq!(server.finish().panics, 0);
}

// Every publisher had put its message on each worker's list by itself: two members of one room saw two
// messages in different orders.
#[test]
fn all_members_see_the_same_order_whoever_publishes_from_wherever() {
    const PUBLISHERS: usize = 4;
    const EACH: usize = 500;
    // Nobody here waits for anybody, so all of it may have to wait for a member.
    let server = start(
        Server::builder()
            .on_message(obey)
            .configure(|config| config.limits.outbox_messages = 2 * PUBLISHERS * EACH),
    );
    let mut members: Vec<_> = (0..6).map(|_| server.client()).collect();
    members.iter_mut().for_each(|client| join(client, "room"));
    let barrier = Arc::new(Barrier::new(PUBLISHERS + 1));
    let from_outside = |publisher| {
        let (rooms, barrier) = (server.handle.rooms(), Arc::clone(&barrier));
        std::thread::spawn(move || {
            barrier.wait();
            for n in 0..EACH {
                within(rooms.publish("room", format!("{publisher} {n}")));
            }
        })
    };
    let mut publishers: Vec<_> = (0..PUBLISHERS - 1).map(from_outside).collect();
    let mut client = server.client();
    let (inside, together) = (PUBLISHERS - 1, Arc::clone(&barrier));
    publishers.push(std::thread::spawn(move || {
        together.wait();
        for n in 0..EACH {
            client.send_frame(TEXT, format!("say room {inside} {n}").as_bytes());
        }
        (0..EACH).for_each(|_| assert_eq!(client.expect_text(), "6"));
        client.goodbye();
    }));
    barrier.wait();
    let orders: Vec<Vec<String>> = std::thread::scope(|scope| {
        let read =
            |client: &mut Raw| (0..PUBLISHERS * EACH).map(|_| client.expect_text()).collect();
        let readers: Vec<_> =
            members.iter_mut().map(|client| scope.spawn(move || read(client))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    for order in &orders[1..] {
        assert!(*order == orders[0], "two members saw two orders");
    }
    for publisher in 0..PUBLISHERS {
        let prefix = format!("{publisher} ");
        let own = orders[0].iter().filter_map(|text| text.strip_prefix(&prefix));
        let expected = (0..EACH).map(|n| n.to_string());
        assert!(own.eq(expected), "publisher {publisher} is out of order");
    }
    members.into_iter().for_each(Raw::goodbye);
    server.finish();
}

#[test]
fn members_that_leave_and_end_during_a_broadcast_harm_nobody() {
    const MESSAGES: usize = 2000;
    let server = start(Server::builder().on_message(obey));
    let mut faithful = server.client();
    join(&mut faithful, "room");
    let over = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        for guest in 0..3 {
            let (over, server) = (Arc::clone(&over), &server);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let mut client = server.client();
                    client.send_frame(TEXT, b"join room");
                    while client.expect_text() != "Ok(())" {}
                    match guest {
                        // It reads until it has left.
                        0 => {
                            client.send_frame(TEXT, b"leave room");
                            while client.expect_text() != "true" {}
                            // What is published now it does not get.
                            client.send_frame(TEXT, b"rooms");
                            assert_eq!(client.expect_text(), "[]");
                            client.goodbye();
                        }
                        1 => client.reset(),
                        _ => drop(client),
                    }
                }
            });
        }
        let rooms = server.handle.rooms();
        for n in 0..MESSAGES {
            within(rooms.publish("room", n.to_string()));
            if n % 10 == 9 {
                // In step, so that the faithful one is never the slow one.
                (n - 9..=n).for_each(|n| assert_eq!(faithful.expect_text(), n.to_string()));
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    faithful.goodbye();
    eventually("everybody has left", || server.handle.rooms().count() == 0);
    server.finish();
}

// `on_close` was told of a session that was still in its rooms: who was told to be gone was listed.
#[test]
fn a_session_has_left_every_room_before_it_is_told_to_be_closed() {
    let (seen, reports) = heard();
    let seen = Mutex::new(seen);
    let server = start(
        Server::builder()
            .on_open(async |session: &Session| {
                for room in ["a", "b", "c"] {
                    session.join(room).unwrap();
                }
            })
            .on_close(async move |session: &Session, _: &Closed| {
                let report = (session.joined().len(), session.rooms().count(), session.join("d"));
                seen.lock().unwrap().send(report).unwrap();
            }),
    );
    server.client().goodbye();
    assert_eq!(reports.next(), (0, 0, Err(JoinError::Closed)));
    server.client().reset();
    assert_eq!(reports.next(), (0, 0, Err(JoinError::Closed)));
    server.finish();
}

#[test]
fn the_bounds_of_rooms_hold_and_are_named() {
    let server = start(Server::builder().on_message(obey).configure(|config| {
        config.limits.room_members = 2;
        config.limits.session_rooms = 2;
    }));
    let mut first = server.client();
    let mut second = server.client();
    let mut third = server.client();
    join(&mut first, "a");
    join(&mut second, "a");
    assert_eq!(ask(&mut third, "join a"), "Err(RoomFull)");
    join(&mut first, "b");
    assert_eq!(ask(&mut first, "join c"), "Err(TooManyRooms)");
    assert_eq!(server.handle.rooms().size("c"), 0);
    assert_eq!(server.handle.rooms().count(), 2, "a room nobody is in does not stay");
    assert_eq!(ask(&mut first, "join "), "Err(BadName)");
    assert_eq!(ask(&mut second, &format!("join {}", "x".repeat(257))), "Err(BadName)");
    assert_eq!(ask(&mut second, &format!("join {}", "x".repeat(256))), "Ok(())");
    // A place is given back.
    assert_eq!(ask(&mut first, "leave a"), "true");
    join(&mut third, "a");
    for client in [first, second, third] {
        client.goodbye();
    }
    server.finish();
}

// A member that read nothing kept the others waiting, because the publisher sent to one after the other.
#[test]
fn a_member_that_never_reads_does_not_delay_the_others() {
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .workers(1)
            .on_message(obey)
            .on_open(async |session: &Session| session.join("room"))
            .on_close(record(&closes)),
    );
    let stuck = Pipe::connect(&server);
    let mut members: Vec<_> = (0..10).map(|_| server.client()).collect();
    let rooms = server.handle.rooms();
    eventually("all are in", || rooms.size("room") == 11);
    let payload = "x".repeat(4000);
    // More than the bound of one outbox.
    for n in 0..400 {
        let text = format!("{n} {payload}");
        within(rooms.publish("room", &*text));
        for member in &mut members {
            assert!(member.expect_text() == text, "message {n}");
        }
    }
    assert_eq!(rooms.stats().too_slow, 1);
    drop(stuck);
    assert_eq!(records.next().cause, Cause::SlowPeer);
    members.into_iter().for_each(Raw::goodbye);
    server.finish();
}

#[test]
fn messages_of_every_size_and_kind_arrive_in_order() {
    let server = start(Server::builder().on_open(async |session: &Session| session.join("room")));
    let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
    eventually("all are in", || server.handle.rooms().size("room") == 3);
    let rooms = server.handle.rooms();
    let sizes = [0, 1, 125, 126, 4095, 4096, 65_535, 65_536, 300_000];
    let prepared = Prepared::new("prepared");
    for size in sizes {
        rooms.try_publish("room", vec![7; size]).unwrap();
        rooms.try_publish("room", &prepared).unwrap();
    }
    for client in &mut clients {
        for size in sizes {
            let frame = client.read_frame();
            assert!(frame.opcode == BINARY && frame.payload == vec![7; size], "{size}");
            assert_eq!(client.expect_text(), "prepared");
        }
    }
    clients.into_iter().for_each(Raw::goodbye);
    server.finish();
}

// While a worker was busy, what was published to its members was kept without any bound.
#[test]
fn what_no_worker_has_handed_on_is_bounded() {
    let (blocked, is_blocked) = heard();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let server = start(
        Server::builder()
            .workers(1)
            .configure(|config| config.limits.published_bytes = 20_000)
            .on_open(async |session: &Session| session.join("room"))
            .on_message(async move |_: &Session, _: Message| {
                blocked.send(()).unwrap();
                // What nobody should do: the whole worker waits.
                let _ = released.lock().unwrap().recv();
            }),
    );
    let mut client = server.client();
    client.send_frame(TEXT, b"block");
    is_blocked.next();
    let rooms = server.handle.rooms();
    let mut published = 0;
    let refused = loop {
        match rooms.try_publish("room", vec![published; 1000]) {
            Ok(_) => published += 1,
            Err(PublishError::Full(refused)) => break refused,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(published, 13, "of 1 512 bytes each");
    assert_eq!(refused.prepared().message().as_bytes(), [published; 1000]);
    // Whoever can wait does.
    let waiting = std::thread::spawn({
        let rooms = rooms.clone();
        move || within(rooms.publish("room", refused))
    });
    release.send(()).unwrap();
    assert_eq!(waiting.join().unwrap(), 1);
    for n in 0..=published {
        assert_eq!(client.read_frame().payload, [n; 1000]);
    }
    client.goodbye();
    server.finish();
}

// What was larger than a portion was never handed on, and nothing behind it: the worker looked at it for ever.
#[test]
fn a_publication_of_any_size_is_handed_on_and_so_is_what_is_behind_it() {
    let server = start(
        Server::builder()
            .workers(1)
            .on_open(async |session: &Session| {
                session.join("one")?;
                session.join("two")
            })
            .configure(|config| config.limits.outbox_bytes = 100_000),
    );
    let mut client = server.client();
    eventually("it is in", || server.handle.rooms().size("two") == 1);
    let rooms = server.handle.rooms();
    for len in [0, 60_000, 0, 200_000] {
        rooms.try_publish("one", vec![1; len]).unwrap();
        let frame = client.read_frame();
        assert_eq!((frame.opcode, frame.payload.len()), (BINARY, len));
        rooms.try_publish("two", "behind it").unwrap();
        assert_eq!(client.expect_text(), "behind it");
    }
    // In one turn: an empty one in front of a large one.
    rooms.try_publish(Audience::All, vec![]).unwrap();
    rooms.try_publish(Audience::All, vec![1; 70_000]).unwrap();
    assert_eq!(client.read_frame().payload.len(), 0);
    assert_eq!(client.read_frame().payload.len(), 70_000);
    client.goodbye();
    server.finish();
}

// More was published in one turn than may wait for one peer, and all members were closed for being slow before
// they had their turn.
#[test]
fn a_burst_is_handed_on_in_portions_that_members_can_take() {
    const BURST: usize = 5000;
    let server = start(
        Server::builder()
            .workers(1)
            .on_open(async |session: &Session| {
                session.join("one")?;
                session.join("two")
            })
            .on_message(async |session: &Session, _: Message| {
                let rooms = session.rooms();
                for n in 0..BURST {
                    rooms.publish(["one", "two"][n % 2], n.to_string()).await;
                }
            }),
    );
    let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
    eventually("all are in", || server.handle.rooms().size("two") == 3);
    clients[0].send_frame(TEXT, b"go");
    for client in &mut clients {
        let mut next = [0, 1];
        for _ in 0..BURST {
            let n: usize = client.expect_text().parse().unwrap();
            assert_eq!(n, next[n % 2], "of its room");
            next[n % 2] += 2;
        }
    }
    assert_eq!(server.handle.rooms().stats().too_slow, 0);
    clients.into_iter().for_each(Raw::goodbye);
    server.finish();
}

#[test]
fn a_server_that_stops_lets_nobody_wait_who_publishes() {
    let server = start(
        Server::builder()
            .configure(|config| config.limits.published_bytes = 10_000)
            .slow_peer(coracle::SlowPeer::DropNewest)
            .on_open(async |session: &Session| session.join("room")),
    );
    let stuck: Vec<_> = (0..4).map(|_| Pipe::connect(&server)).collect();
    let (rooms, over) = (server.handle.rooms(), Arc::new(AtomicBool::new(false)));
    let count = Arc::new(AtomicUsize::new(0));
    let publishing = std::thread::spawn({
        let (over, count) = (Arc::clone(&over), Arc::clone(&count));
        move || {
            while !over.load(Ordering::Relaxed) {
                within(rooms.publish("room", vec![0; 1000]));
                within(rooms.publish(Audience::All, vec![0; 1000]));
                count.fetch_add(1, Ordering::Relaxed);
            }
            // Nobody is there any more, and it says so.
            assert_eq!(within(rooms.publish("room", vec![0; 1000])), 0);
        }
    });
    eventually("some has been published", || count.load(Ordering::Relaxed) > 50);
    server.handle.request_stop();
    drop(stuck);
    within(server.handle.wait());
    let before = count.load(Ordering::Relaxed);
    eventually("publishing goes on", || count.load(Ordering::Relaxed) > before + 50);
    over.store(true, Ordering::Relaxed);
    publishing.join().unwrap();
    server.finish();
}

#[test]
fn a_thousand_rooms_come_and_go_with_their_members() {
    let server = start(Server::builder().on_message(obey));
    let mut client = server.client();
    for n in 0..1000 {
        join(&mut client, &format!("room {n}"));
        assert_eq!(ask(&mut client, &format!("leave room {n}")), "true");
    }
    assert_eq!(server.handle.rooms().count(), 0);
    client.goodbye();
    server.finish();
}

#[test]
fn a_publication_with_a_key_is_an_ordinary_one_for_who_keeps_up() {
    let server = start(Server::builder().on_open(async |session: &Session| session.join("room")));
    let mut client = server.client();
    eventually("it is in", || server.handle.rooms().size("room") == 1);
    let rooms = server.handle.rooms();
    for n in 0..100 {
        rooms.try_publish("room", Publication::new(n.to_string()).key("same")).unwrap();
    }
    for n in 0..100 {
        assert_eq!(client.expect_text(), n.to_string());
    }
    client.goodbye();
    server.finish();
}
