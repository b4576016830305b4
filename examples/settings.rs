//! An echo server that is configured by whoever runs it: by the environment, and with the feature `dotenv` by
//! a `.env` file, too.
//!
//! ```sh
//! cargo run --release --example settings                      # listens on 0.0.0.0:9090
//! WEBSOCKET_PORT=9001 WEBSOCKET_IDLE_TIMEOUT=5m cargo run --release --example settings
//! TLS_CERT=certs/server.pem TLS_KEY=certs/server.key cargo run --release --example settings
//! cargo run --release --features dotenv --example settings    # looks into .env
//! cargo run --release --features dotenv --example settings -- chat.env
//! cargo run --release --example settings -- --help            # all settings
//! WEBSOCKET_PRT=9001 cargo run --release --example settings   # did you mean WEBSOCKET_PORT?
//! ```
//!
//! It prints `listening on 0.0.0.0:9090` when it is ready; Ctrl-C ends it gracefully.

use std::process::ExitCode;

use coracle::config::Config;
use coracle::{BoxError, Server};

mod common;

fn main() -> ExitCode {
    common::exit(serve())
}

fn serve() -> Result<(), BoxError> {
    common::log_to(None)?;
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("--help") {
        for setting in Config::settings() {
            println!("{}={}", setting.name(), setting.default_value());
        }
        return Ok(());
    }
    Server::builder()
        .config(config(argument)?)
        .on_message(async |session, message| session.send(message).await)
        .run_with(|server| {
            for place in server.listeners() {
                println!("listening on {place}");
            }
        })?;
    Ok(())
}

#[cfg(feature = "dotenv")]
fn config(file: Option<String>) -> coracle::Result<Config> {
    match file {
        Some(file) => Config::from_dotenv_file(file),
        None => Config::from_dotenv(),
    }
}

#[cfg(not(feature = "dotenv"))]
fn config(file: Option<String>) -> Result<Config, BoxError> {
    match file {
        Some(_) => Err("a file needs the feature `dotenv`".into()),
        None => Ok(Config::from_env()?),
    }
}
