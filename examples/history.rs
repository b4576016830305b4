//! Rooms that remember: whoever comes back gets what was missed.
//!
//! ```sh
//! cargo run --features sqlite --example history -- 127.0.0.1:9001 --database /tmp/history.db
//! cargo run --example history    # in memory: forgotten with the process
//! ```
//!
//! Then `npx wscat -c ws://127.0.0.1:9001`, and type
//!
//! ```text
//! {"type":"join","payload":{"room":"quay"}}
//! {"type":"say","payload":{"room":"quay","text":"ahoy"}}
//! ```
//!
//! Everything that is said has an `id`, and the answer `joined` has the `epoch`. Break the connection, say something
//! from another terminal, come back and name the last id that you have seen:
//!
//! ```text
//! {"type":"join","payload":{"room":"quay","epoch":"0123456789abcdef","after":1}}
//! ```
//!
//! You get what you have missed, then `joined` with `recovered`: whether that was everything. Older messages are
//! asked for with `{"type":"list","payload":{"room":"quay","before":10}}`. With a database all this goes on after the
//! server was killed.

use std::process::ExitCode;

use coracle::history::{History, Memory, Resume, Resumed, Since};
use coracle::{BoxError, Envelope, Message, Server, Session, Typed};
use serde::Deserialize;
use serde_json::{Value, json};

mod common;

const USAGE: &str = "usage: history [ADDRESS] [--database FILE]";

#[derive(Deserialize)]
struct Join {
    room: String,
    epoch: Option<String>,
    after: Option<u64>,
}

#[derive(Deserialize)]
struct Say {
    room: String,
    text: String,
}

#[derive(Deserialize)]
struct List {
    room: String,
    before: Option<u64>,
}

fn main() -> ExitCode {
    common::exit(serve())
}

fn serve() -> Result<(), BoxError> {
    let mut args = common::Args::parse(USAGE, &["--database"])?;
    common::log_to(None)?;
    let builder = Server::builder().bind(args.address());
    let builder = match args.value("--database") {
        None => builder.history(Memory::new()),
        #[cfg(feature = "sqlite")]
        Some(path) => builder.history(coracle::history::Sqlite::open(path)?),
        #[cfg(not(feature = "sqlite"))]
        Some(_) => return Err("a database needs `--features sqlite`".into()),
    };
    let report = builder
        .on_typed("join", join)
        .on_typed("say", say)
        .on_typed("list", list)
        .run_with(common::ready)?;
    eprintln!("{} kept at the end, {} lost", report.history_flushed, report.history_lost);
    Ok(())
}

fn history(session: &Session) -> Result<History, BoxError> {
    session.history().ok_or_else(|| "the server was given no store".into())
}

async fn join(session: &Session, message: Typed<Join>) -> Result<(), BoxError> {
    let Join { room, epoch, after } = message.into_payload();
    let mut resume = Resume::new().limit(100);
    if let (Some(epoch), Some(after)) = (epoch.and_then(|it| it.parse().ok()), after) {
        resume = resume.since(Since { epoch, after });
    }
    let tell = |joined: &Resumed| {
        let said = json!({
            "epoch": joined.epoch.to_string(),
            "recovered": joined.recovered,
            "position": joined.position,
        });
        Some(answer(&room, "joined", said))
    };
    if let Err(error) = history(session)?.join(session, &room, resume, tell).await {
        session.send(answer(&room, "not joined", json!(error.to_string()))).await?;
    }
    Ok(())
}

/// Only to rooms that one is in: so nobody fills the history with rooms of his invention.
async fn say(session: &Session, message: Typed<Say>) -> Result<(), BoxError> {
    let Say { room, text } = message.into_payload();
    if !session.joined().iter().any(|joined| **joined == *room) {
        session.send(answer(&room, "not said", json!("join first"))).await?;
        return Ok(());
    }
    let published = history(session)?.publish_typed(&room, Envelope::new("said", text)).await?;
    // It has been said. Whether it will be remembered is known a moment later.
    if let Err(error) = published.stored.await {
        log::warn!("message {} of {room} will be forgotten: {error}", published.id);
    }
    Ok(())
}

async fn list(session: &Session, message: Typed<List>) -> Result<(), BoxError> {
    let List { room, before } = message.into_payload();
    let page = history(session)?.list(&room, before, 50).await?;
    let texts = page.entries.iter().filter_map(|entry| entry.message.as_text());
    let said: Vec<Value> = texts.filter_map(|text| serde_json::from_str(text).ok()).collect();
    session.send(answer(&room, "page", json!({ "newest first": said, "more": page.more }))).await?;
    Ok(())
}

fn answer(room: &str, type_name: &str, payload: Value) -> Message {
    let text = json!({ "room": room, "type": type_name, "payload": payload }).to_string();
    Message::from(text)
}
