//! A chat for browsers: rooms by URL, names, who is here, the last 20 messages.
//!
//! ```sh
//! cargo run --release --example chat                  # then open http://127.0.0.1:9001/ in two tabs
//! cargo run --release --example chat -- 0.0.0.0:9001  # and for the phones in the same network
//! RUST_LOG=coracle=debug cargo run --release --example chat
//! ```
//!
//! Each name behind `/r/` is a room, and its page talks to a WebSocket of the same address. Everybody in a
//! room sees who comes and goes; who comes sees who is there and what was said last. Nothing is written to
//! a disk, and a room is forgotten some time after the last one has left it. Anybody may come under any
//! name: put something in front of it that asks who it is before you leave it to the world.
//!
//! `chat/wire.rs` has the messages, `chat/room.rs` the history, `chat/page.*` is what the browser gets.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use coracle::config::{Inbound, Rate};
use coracle::{
    Body, BoxError, BytesPerSecond, CloseCode, JoinError, Message, PresenceChange, PresenceEvent,
    Publication, Rates, Request, Response, Routes, SendError, Server, Session, Unlimited, Upgrade,
    http_types,
};

use room::{Archive, Visit};
use wire::{Complaint, Event, Member};

mod common;
#[path = "chat/room.rs"]
mod room;
#[path = "chat/wire.rs"]
mod wire;

/// What the page consists of, and nothing from elsewhere: what somebody smuggles in is not run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// More than anybody types; a flood is slowed down by TCP.
const BYTES_PER_SECOND: u64 = 8 * 1024;

/// The same: each of them is something for everybody in the room.
const MESSAGES_PER_SECOND: u64 = 5;

/// What a page says at once that has been without a connection.
const MESSAGES_AT_ONCE: u64 = 40;

/// Members of a room: each of them is told of each other one.
const MEMBERS: usize = 200;

fn main() -> ExitCode {
    common::exit(serve())
}

fn serve() -> Result<(), BoxError> {
    let args = common::Args::parse("usage: chat [ADDRESS]", &[])?;
    common::log_to(None)?;
    let archive = Arc::new(Archive::new());
    Server::builder()
        .bind(args.address())
        .configure(|config| {
            config.limits.message_bytes = wire::MESSAGE_BYTES;
            config.limits.room_members = MEMBERS;
        })
        .rates(|_| {
            let messages = Rate::per_second(MESSAGES_PER_SECOND).with_burst(MESSAGES_AT_ONCE);
            Rates::new(BytesPerSecond::new(BYTES_PER_SECOND), Unlimited)
                .with_inbound(Inbound::pause().with_messages(messages))
        })
        .routes(
            Routes::new()
                .get("/", async |request: &Request, _: &mut Body| page(request.path()))
                .get("/{*path}", async |request: &Request, _: &mut Body| page(request.path()))
                .fallback(async |_: &Request, _: &mut Body| no_page()),
        )
        .on_accept(async |request: &Request| match wire::room(request.path()) {
            Some(room) => Ok(Upgrade::new().data(Visitor { room, place: Mutex::default() })),
            None => Err(no_page()),
        })
        .on_presence(presence)
        .on_message(async move |session, message| {
            if let Err(complaint) = hear(&archive, session, &message) {
                tell(session, &Event::Error(complaint));
            }
        })
        .run_with(|server| common::ready_for("http", server))?;
    Ok(())
}

/// What goes with a session.
struct Visitor {
    room: String,
    place: Mutex<Option<Place>>,
}

/// What it has when it has said its name.
struct Place {
    name: String,
    visit: Visit,
}

fn hear(archive: &Arc<Archive>, session: &Session, message: &Message) -> Result<(), Complaint> {
    let request = wire::read(message)?;
    let Some(visitor) = session.data::<Visitor>() else { return Ok(()) };
    // Only this session's own callbacks lock it, and they never overlap.
    let mut place = visitor.place.lock().unwrap_or_else(PoisonError::into_inner);
    match request {
        wire::Request::Join { name } => {
            let name = wire::name(&name)?;
            if place.as_ref().is_some_and(|place| place.name == name) {
                return Ok(());
            }
            let visit = match place.take() {
                Some(place) => place.visit,
                None => archive.visit(&visitor.room)?,
            };
            join(session, &visitor.room, &name, &visit)?;
            *place = Some(Place { name, visit });
            Ok(())
        }
        wire::Request::Message { text } => {
            let text = wire::text(&text)?;
            let place = place.as_ref().ok_or_else(|| {
                Complaint::new("no_name", "say your name first: send a chat.join with it")
            })?;
            say(session, &visitor.room, place, text)
        }
    }
}

/// Makes the session a member, with the history as it is at that moment.
///
/// Whoever speaks keeps the message and publishes it under the room's lock. Under the same lock a newcomer
/// joins, and is sent the history: every message is either in it or published to the newcomer, and not one is
/// both. What is published reaches a member when its worker comes to it, and the worker is busy with this
/// function, so the history comes first, whatever other workers publish meanwhile. (The page looks at the
/// numbers all the same: after a lost connection it has some of the history already.)
fn join(session: &Session, room: &str, name: &str, visit: &Visit) -> Result<(), Complaint> {
    let kept = visit.room();
    // With a new name it is a new member: the others are told that one has gone and one has come.
    session.leave(room);
    session.join_as(room, name).map_err(|error| match error {
        JoinError::RoomFull => Complaint::new("room_full", "this room is full"),
        other => Complaint::new("cannot_join", other.to_string()),
    })?;
    let members = session.rooms().members(room).into_iter().map(|member| Member {
        session: member.session.to_string(),
        name: member.data.unwrap_or_default().to_string(),
    });
    let welcome = Event::Welcome {
        you: session.id().to_string(),
        epoch: &kept.epoch,
        members: members.collect(),
        history: kept.lines(),
    };
    tell(session, &welcome);
    Ok(())
}

fn say(session: &Session, room: &str, place: &Place, text: String) -> Result<(), Complaint> {
    let mut kept = place.visit.room();
    let line = kept.line(session.id().to_string(), place.name.clone(), text);
    // Without waiting, which nobody may who holds a lock.
    let published = session.rooms().try_publish(room, Event::Message(&line).to_text());
    published.map_err(|_| Complaint::new("busy", "too much is being said: try again"))?;
    kept.keep(line);
    Ok(())
}

/// What the others are told when somebody comes or goes.
fn presence(event: &PresenceEvent<'_>) -> Option<Publication> {
    let member =
        Member { session: event.session.to_string(), name: event.data.as_ref()?.to_string() };
    let event = match event.change {
        PresenceChange::Joined => Event::Joined(member),
        PresenceChange::Left => Event::Left(member),
        // A new name is a new member here.
        _ => return None,
    };
    Some(Publication::new(event.to_text()))
}

fn tell(session: &Session, event: &Event<'_>) {
    if let Err(SendError::Full(_)) = session.try_send(event.to_text()) {
        session.close(CloseCode::TRY_AGAIN_LATER, "read what you ask for");
    }
}

fn page(path: &str) -> Response {
    let (kind, body) = match path {
        "/" => ("text/html", include_str!("chat/page.html")),
        "/page.css" => ("text/css", include_str!("chat/page.css")),
        "/page.js" => ("text/javascript", include_str!("chat/page.js")),
        path if wire::room(path).is_some() => ("text/html", include_str!("chat/page.html")),
        _ => return no_page(),
    };
    answer(200, kind, body)
}

fn no_page() -> Response {
    answer(404, "text/plain", "There is no page here, and no room: begin at /\n")
}

fn answer(status: u16, kind: &'static str, body: &str) -> Response {
    http_types::Response::builder()
        .status(status)
        .header("Content-Type", format!("{kind}; charset=utf-8"))
        .header("Content-Security-Policy", POLICY)
        .header("X-Content-Type-Options", "nosniff")
        .header("Referrer-Policy", "no-referrer")
        // The next version of this program has another one.
        .header("Cache-Control", "no-cache")
        .body(body.into())
        .expect("these are headers")
}
