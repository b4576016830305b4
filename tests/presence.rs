//! Who is in a room, and who is told when that changes.

#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::sync::Mutex;

use coracle::{
    Builder, Closures, Handler, Message, Presence, PresenceChange, PresenceEvent, Publication,
    Server, Session,
};
use pipe::*;
use support::*;

/// Every session joins as whom its path says it is.
fn named(builder: Builder<Closures>) -> Builder<impl Handler> {
    builder.on_open(async |session: &Session| {
        let name = session.path().trim_start_matches('/').to_owned();
        session.join_as("room", &*name)
    })
}

fn say(event: &PresenceEvent<'_>) -> Option<Publication> {
    let verb = match event.change {
        PresenceChange::Joined => "has come",
        PresenceChange::Left => "has gone",
        _ => "is called so now",
    };
    Some(format!("{} {verb}, {} here", event.data.as_deref()?, event.members).into())
}

fn client(server: &TestServer, name: &str) -> Raw {
    let mut raw = server.raw();
    raw.send(handshake(&format!("/{name}")).as_bytes());
    assert!(raw.read_head().starts_with("HTTP/1.1 101 "));
    raw
}

fn names(server: &TestServer) -> Vec<String> {
    let members: Vec<Presence> = server.handle.rooms().members("room");
    let mut names: Vec<_> =
        members.iter().map(|it| it.data.as_deref().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn the_others_are_told_who_comes_and_who_goes() {
    let server = start(named(Server::builder().on_presence(say)));
    let mut ada = client(&server, "Ada");
    eventually("she is in", || names(&server) == ["Ada"]);
    let bob = client(&server, "Bob");
    assert_eq!(ada.expect_text(), "Bob has come, 2 here");
    assert_eq!(names(&server), ["Ada", "Bob"]);
    let mut cyd = client(&server, "Cyd");
    assert_eq!(ada.expect_text(), "Cyd has come, 3 here");
    // However they go.
    bob.reset();
    assert_eq!(ada.expect_text(), "Bob has gone, 2 here");
    assert_eq!(cyd.expect_text(), "Bob has gone, 2 here", "she was not told of herself");
    cyd.goodbye();
    assert_eq!(ada.expect_text(), "Cyd has gone, 1 here");
    assert_eq!(names(&server), ["Ada"]);
    ada.goodbye();
    server.finish();
}

#[test]
fn a_presence_names_the_session_and_since_when_it_is_there() {
    let server = start(named(Server::builder()));
    let first = client(&server, "first");
    let second = client(&server, "second");
    eventually("both are in", || server.handle.rooms().size("room") == 2);
    for presence in server.handle.rooms().members("room") {
        let session = server.handle.sessions().get(presence.session).unwrap();
        assert_eq!(session.path().trim_start_matches('/'), presence.data.as_deref().unwrap());
        assert!(presence.since >= session.created());
    }
    assert!(server.handle.rooms().members("elsewhere").is_empty());
    first.goodbye();
    second.goodbye();
    server.finish();
}

#[test]
fn the_events_of_a_room_are_counted() {
    let (told, events) = heard();
    let told = Mutex::new(told);
    let server = start(named(Server::builder().on_presence(move |event| {
        told.lock().unwrap().send((event.number, event.members, event.change)).unwrap();
        None
    })));
    let ada = client(&server, "Ada");
    assert_eq!(events.next(), (1, 1, PresenceChange::Joined));
    let bob = client(&server, "Bob");
    assert_eq!(events.next(), (2, 2, PresenceChange::Joined));
    bob.goodbye();
    assert_eq!(events.next(), (3, 1, PresenceChange::Left));
    ada.goodbye();
    assert_eq!(events.next(), (4, 0, PresenceChange::Left));
    server.finish();
}

#[test]
fn joining_once_more_changes_what_others_see() {
    let server = start(Server::builder().on_presence(say).on_message(
        async |session: &Session, name: Message| session.join_as("room", name.as_text().unwrap()),
    ));
    let mut ada = server.client();
    ada.send_frame(TEXT, b"Ada");
    eventually("she is in", || names(&server) == ["Ada"]);
    let mut bob = server.client();
    bob.send_frame(TEXT, b"Bob");
    assert_eq!(ada.expect_text(), "Bob has come, 2 here");
    bob.send_frame(TEXT, b"Robert");
    assert_eq!(ada.expect_text(), "Robert is called so now, 2 here");
    assert_eq!(names(&server), ["Ada", "Robert"]);
    bob.goodbye();
    assert_eq!(ada.expect_text(), "Robert has gone, 1 here");
    ada.goodbye();
    server.finish();
}

#[test]
fn members_without_data_are_members_too() {
    let server = start(
        Server::builder()
            .on_presence(|event| Some(format!("{:?} {:?}", event.change, event.data).into()))
            .on_open(async |session: &Session| session.join("room")),
    );
    let mut first = server.client();
    eventually("it is in", || server.handle.rooms().size("room") == 1);
    server.client().goodbye();
    assert_eq!(first.expect_text(), "Joined None");
    assert_eq!(first.expect_text(), "Left None");
    first.goodbye();
    server.finish();
}

// A session leaves while it is dropped, and that may be while something else unwinds: a second panic would
// have ended the process.
#[test]
fn a_hook_that_panics_costs_nobody_anything() {
    let server = start(named(Server::builder().on_presence(|event| match event.data.as_deref() {
        Some("Bob") => panic!("as asked"),
        _ => say(event),
    })));
    let mut ada = client(&server, "Ada");
    eventually("she is in", || names(&server) == ["Ada"]);
    client(&server, "Bob").goodbye();
    client(&server, "Bob").reset();
    let cyd = client(&server, "Cyd");
    assert!(ada.expect_text().starts_with("Cyd has come"), "and nothing of Bob");
    cyd.goodbye();
    assert!(ada.expect_text().starts_with("Cyd has gone"));
    ada.goodbye();
    assert_eq!(server.finish().panics, 4);
}

// A member that was not there any more was in the list: it had been cut, and nobody had taken it out.
#[test]
fn who_is_cut_by_the_stop_leaves_as_everybody_else() {
    let (left, leaves) = heard();
    let left = Mutex::new(left);
    let server = start(named(
        Server::builder()
            .configure(|config| config.timeouts.stop = std::time::Duration::ZERO)
            .on_presence(move |event| {
                if event.change == PresenceChange::Left {
                    let _ = left.lock().unwrap().send(event.members);
                }
                None
            }),
    ));
    let deaf: Vec<_> = (0..3).map(|n| Pipe::connect_to(&server, &format!("/{n}"))).collect();
    eventually("all are in", || server.handle.rooms().size("room") == 3);
    let rooms = server.handle.rooms();
    let report = server.finish();
    assert_eq!(report.cut + report.drained, 3);
    let mut counts: Vec<_> = (0..3).map(|_| leaves.next()).collect();
    counts.sort_unstable();
    assert_eq!(counts, [0, 1, 2]);
    assert_eq!(rooms.count(), 0);
    drop(deaf);
}
