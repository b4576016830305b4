//! Clients without WebSocket: one room, in which `curl` talks with everybody else.
//!
//! ```sh
//! cargo run --release --example long_poll     # listens on 127.0.0.1:9001
//! ```
//!
//! From another terminal, with nothing but curl:
//!
//! ```sh
//! session=$(curl -si http://127.0.0.1:9001/ws/poll | tr -d '\r' | sed -n 's/^coracle-session: //p')
//! curl -s "127.0.0.1:9001/ws/send?session_id=$session" -H 'Content-Type: text/plain' -d 'hello from curl'
//! curl -si "127.0.0.1:9001/ws/poll?session_id=$session&cursor=0"      # what has been said, and Coracle-Cursor
//! curl -sN "127.0.0.1:9001/ws/events?session_id=$session&cursor=1"    # and whatever is said from now on
//! ```
//!
//! Meanwhile connect with `python3 -m websockets ws://127.0.0.1:9001/` from a third one: both are in the same
//! room. Whoever stays away for 30 seconds, with neither a poll nor a stream, has left it.

use std::process::ExitCode;

use coracle::{BoxError, Closed, Fallbacks, Message, Server, Session};

mod common;

fn main() -> ExitCode {
    common::exit(serve())
}

fn serve() -> Result<(), BoxError> {
    let args = common::Args::parse("usage: long_poll [ADDRESS]", &[])?;
    common::log_to(None)?;
    let report = Server::builder()
        .bind(args.address())
        .fallbacks(Fallbacks::new())
        .on_open(async |session: &Session| session.join("all"))
        .on_message(async |session: &Session, message: Message| {
            session.rooms().publish("all", message).await;
        })
        .on_close(async |session: &Session, closed: &Closed| {
            println!("session {} ({}): {closed}", session.id(), session.protocol());
        })
        .run_with(|server| println!("listening on http://{}/ws/poll", server.local_addr()))?;
    println!("stopped: {} sessions drained, {} cut", report.drained, report.cut);
    Ok(())
}
