//! An echo server on a path of the Unix family, or on the sockets that systemd has opened for it.
//!
//! ```sh
//! cargo run --release --example unix_socket                   # listens on ./echo.sock
//! cargo run --release --example unix_socket -- /run/user/1000/echo.sock
//! systemd-socket-activate -l 9001 target/release/examples/unix_socket
//! ```
//!
//! It prints `listening on unix:echo.sock`. Connect from Python:
//!
//! ```sh
//! python3 -c 'from websockets.sync.client import unix_connect
//! with unix_connect("echo.sock", "ws://localhost/") as it: it.send("hello"); print(it.recv())'
//! ```
//!
//! Ctrl-C ends it gracefully and removes the file. If you kill it instead (`kill -9`), the file stays, and the
//! next start replaces it.

use std::process::ExitCode;

use coracle::{BoxError, Server, UnixSocket};

mod common;

fn main() -> ExitCode {
    common::exit(serve())
}

fn serve() -> Result<(), BoxError> {
    common::log_to(None)?;
    let path = std::env::args().nth(1).unwrap_or_else(|| "echo.sock".to_owned());
    let server = match std::env::var_os("LISTEN_FDS") {
        Some(_) => Server::builder().listen_fds(),
        // Nobody but the user who runs it may connect.
        None => Server::builder().bind_unix(UnixSocket::new(path).mode(0o600)),
    };
    server.on_message(async |session, message| session.send(message).await).run_with(|server| {
        for place in server.listeners() {
            println!("listening on {place}");
        }
    })?;
    Ok(())
}
