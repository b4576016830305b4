//! How a server stops: what is queued is delivered, every client is told 1001, and there is a
//! report.
//!
//! ```sh
//! cargo run --release --example graceful_shutdown     # listens on 127.0.0.1:9001
//! cargo run --release --example graceful_shutdown -- 127.0.0.1:0
//! ```
//!
//! Connect with `python3 -m websockets ws://127.0.0.1:9001/` or `npx wscat -c ws://127.0.0.1:9001/`
//! from two terminals. Messages come back. Then either
//!
//! * type `stop` as a message: its sender gets `3`, `2`, `1`, and then both clients are closed with
//!   1001 (going away); or
//! * press Ctrl-C where the server runs, or send it SIGTERM: both are closed with 1001. A second
//!   Ctrl-C would cut off a client that does not answer.
//!
//! The server prints the record of each session's end, then its report, and exits with 0:
//!
//! ```text
//! session 4294967296: closed by server (server stops) while closing, code 1001 "server stops", lived 4.2s
//! stopped in 1.3ms: 2 sessions drained, 0 cut
//! ```

use std::process::ExitCode;
use std::time::Duration;

use coracle::{BoxError, Message, SendError, Server, Session};

mod common;

fn main() -> ExitCode {
    common::exit(serve())
}

fn serve() -> Result<(), BoxError> {
    let args = common::Args::parse("usage: graceful_shutdown [ADDRESS]", &[])?;
    common::log_to(None)?;
    let server = Server::builder()
        .bind(args.address())
        // Whoever has not answered the goodbye by then is cut.
        .configure(|config| config.timeouts.stop = Duration::from_secs(5))
        .on_message(on_message)
        .on_close(async |session, closed| eprintln!("session {}: {closed}", session.id()))
        .start()?;
    server.stop_on_signals()?;
    common::ready(&server);

    // Returns when the server has ended, whoever stopped it: a signal, or the message below.
    let report = server.run()?;
    eprintln!(
        "stopped in {:.1?}: {} sessions drained, {} cut",
        report.took, report.drained, report.cut
    );
    Ok(())
}

async fn on_message(session: &Session, message: Message) -> Result<(), SendError> {
    if message.as_text() != Some("stop") {
        return session.send(message).await;
    }
    for count in ["3", "2", "1"] {
        session.send(count).await?;
    }
    // Returns at once, and may be called anywhere. What is queued leaves before the goodbye.
    session.shutdown().request_stop();
    Ok(())
}
