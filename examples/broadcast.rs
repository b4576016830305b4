//! What is said at `/pub` is heard by all who are at `/sub`.
//!
//! ```sh
//! cargo run --release --example broadcast -- 127.0.0.1:9001
//! cargo run --release --example broadcast -- 127.0.0.1:9001 --loop   # without a room
//! ```
//!
//! Then `npx wscat -c ws://127.0.0.1:9001/sub` in as many terminals as you like, and in one more
//! `npx wscat -c ws://127.0.0.1:9001/pub` to say something. `benches/` measures what it costs with a
//! thousand listeners, and how much of that a room saves.

use std::process::ExitCode;

use coracle::{
    BoxError, Builder, CloseCode, Message, OriginPolicy, Prepared, SendError, Server, Session,
};

mod common;

const USAGE: &str = "usage: broadcast [ADDRESS] [--workers N] [--loop]";

/// Who comes here speaks.
const SPEAKERS: &str = "/pub";

/// Who comes here listens.
const LISTENERS: &str = "/sub";

/// Where they listen.
const ROOM: &str = "all ears";

fn main() -> ExitCode {
    common::exit(serve())
}

fn serve() -> Result<(), BoxError> {
    let mut args = common::Args::parse_with_flags(USAGE, &["--workers"], &["--loop"])?;
    let workers = args.number("--workers")?;
    // Nobody here has anything to hide, so any page may listen and speak.
    let mut builder = Server::builder().bind(args.address()).origins(OriginPolicy::Any);
    if let Some(workers) = workers {
        builder = builder.workers(workers);
    }
    match args.flag("--loop") {
        false => with_a_room(builder),
        true => with_a_loop(builder),
    }
}

/// Who listens is in a room. Whoever is too slow is told to come back later.
fn with_a_room(builder: Builder) -> Result<(), BoxError> {
    builder
        .on_open(async |session: &Session| {
            if session.path() == LISTENERS {
                session.join(ROOM)?;
            }
            Ok::<_, BoxError>(())
        })
        .on_message(async |session: &Session, message: Message| {
            if session.path() == SPEAKERS {
                session.rooms().publish(ROOM, message).await;
            }
        })
        .run_with(common::ready)?;
    Ok(())
}

/// The same by hand: a step, a lock and a look at the path for each session and message. Also here the
/// frame is made once.
fn with_a_loop(builder: Builder) -> Result<(), BoxError> {
    builder
        .on_message(async |session: &Session, message: Message| {
            if session.path() != SPEAKERS {
                return;
            }
            let prepared = Prepared::new(message);
            for other in session.sessions().all() {
                if other.path() != LISTENERS {
                    continue;
                }
                if let Err(SendError::Full(_)) = other.try_send_prepared(&prepared) {
                    other.close(CloseCode::TRY_AGAIN_LATER, "too slow");
                }
            }
        })
        .run_with(common::ready)?;
    Ok(())
}
