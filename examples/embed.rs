//! A server inside a program that does other work: the program has an executor and tasks of its
//! own, and sends to the clients whenever it has something to say.
//!
//! ```sh
//! cargo run --release --example embed                 # listens on 127.0.0.1:9001
//! cargo run --release --example embed -- 127.0.0.1:0
//! ```
//!
//! Connect with `python3 -m websockets ws://127.0.0.1:9001/` or `npx wscat -c ws://127.0.0.1:9001/`,
//! as often as you like. Every second each client is told how long the program has been running and
//! how many clients there are. A line that you type here goes to all of them, what they send is
//! printed here, and `quit`, Ctrl-C or SIGTERM ends the program gracefully. Without a terminal (with
//! `</dev/null`) it goes on until it gets a signal.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use coracle::{BoxError, Message, Server, Sessions, Shutdown};
use smol::io::{AsyncBufReadExt, BufReader};
use smol::stream::StreamExt;

mod common;

fn main() -> ExitCode {
    common::exit(serve())
}

fn serve() -> Result<(), BoxError> {
    let args = common::Args::parse("usage: embed [ADDRESS]", &[])?;
    common::log_to(None)?;
    let server = Server::builder()
        .bind(args.address())
        .on_message(async |session, message| eprintln!("{}: {message:?}", session.id()))
        .start()?;
    server.stop_on_signals()?;
    common::ready(&server);

    // The program's own executor. The server has threads of its own and needs none of it.
    let app = smol::LocalExecutor::new();
    let report = smol::block_on(app.run(async {
        // Both tasks are cancelled when they are dropped, at the end of this block.
        let _clock = app.spawn(clock(server.sessions()));
        let _console = app.spawn(console(server.sessions(), server.shutdown()));
        // Whoever stops it: a signal, a typed line, or the program itself with `server.stop()`.
        server.wait().await
    }));
    eprintln!("{} drained, {} cut, in {:.1?}", report.drained, report.cut, report.took);
    Ok(())
}

/// The program's own work: something that happens every second.
async fn clock(sessions: Sessions) {
    let started = Instant::now();
    let mut ticks = smol::Timer::interval(Duration::from_secs(1));
    while ticks.next().await.is_some() {
        let seconds = started.elapsed().as_secs();
        broadcast(&sessions, format!("up {seconds} s, {} clients", sessions.count()).into());
    }
}

/// Sends every line from standard input, up to its end.
async fn console(sessions: Sessions, shutdown: Shutdown) {
    let mut lines = BufReader::new(smol::Unblock::new(std::io::stdin())).lines();
    while let Some(Ok(line)) = lines.next().await {
        if line == "quit" {
            return shutdown.request_stop();
        }
        broadcast(&sessions, line.into());
    }
}

/// One message to everybody. It never waits: a client that is too far behind misses this one.
fn broadcast(sessions: &Sessions, message: Message) {
    for session in sessions.all() {
        // A clone shares the payload.
        if let Err(error) = session.try_send(message.clone()) {
            log::info!("session {}: {error}", session.id());
        }
    }
}
