//! Lines from the terminal to a WebSocket server, and its messages to the terminal.
//!
//! ```sh
//! cargo run --release --example client -- ws://127.0.0.1:9001/
//! cargo run --release --example client -- wss://localhost:9443/ --ca certs/ca.pem
//! ```
//!
//! What happens to the connection is told on standard error. When the server goes away the client comes back, and what
//! was typed meanwhile is sent then. The end of the input (Ctrl-D) closes the connection; `--proxy
//! http://host:port` goes through one, `--cert` and `--key` are a certificate of one's own. `--seconds` is how long an
//! attempt may take, `--ping` after how many seconds of silence the server is asked whether it is there, and how long it
//! has to answer. `RUST_LOG=coracle=info` tells of the attempts that fail as well.

use std::process::ExitCode;
use std::time::Duration;

use coracle::client::{Client, ClientTls, Connected, Disconnected, Reconnect};
use coracle::config::Identity;
use coracle::{BoxError, CloseCode, Message};
use smol::Unblock;
use smol::io::{AsyncBufReadExt, BufReader};

mod common;

fn main() -> ExitCode {
    common::exit(run())
}

fn run() -> Result<(), BoxError> {
    let usage = "usage: client URL [--ca FILE] [--cert FILE --key FILE] [--proxy URL] [--attempts N] \
                 [--seconds N] [--ping N]";
    let options = ["--ca", "--cert", "--key", "--proxy", "--attempts", "--seconds", "--ping"];
    let mut args = common::Args::parse(usage, &options)?;
    common::log_to(None)?;
    let url = args.given().ok_or(usage)?.to_owned();
    let mut tls = ClientTls::new();
    if let Some(file) = args.value("--ca") {
        tls = tls.authorities(file);
    }
    if let Some(certificate) = args.value("--cert").map(str::to_owned) {
        let key = args.value("--key").ok_or("--cert needs a --key")?;
        tls = tls.identity(Identity::new(certificate, key));
    }
    let mut builder = Client::builder(url).tls(tls);
    if let Some(proxy) = args.value("--proxy") {
        builder = builder.proxy(proxy);
    }
    let mut reconnect = Reconnect::new();
    if let Some(attempts) = args.number("--attempts")? {
        reconnect = reconnect.attempts(attempts as u32);
    }
    if let Some(seconds) = args.number("--seconds")? {
        builder = builder.connect_timeout(Duration::from_secs(seconds as u64));
    }
    if let Some(seconds) = args.number("--ping")? {
        let silence = Duration::from_secs(seconds as u64);
        builder = builder.ping(silence).pong_timeout(silence);
    }
    let connecting = builder
        .reconnect(reconnect)
        .on_connect(async |_: &Client, connected: &Connected| {
            eprintln!("connected to {}", connected.peer());
        })
        .on_message(async |_: &Client, message: Message| match message {
            Message::Text(text) => println!("{text}"),
            Message::Binary(bytes) => println!("({} bytes)", bytes.len()),
        })
        .on_disconnect(async |_: &Client, ended: &Disconnected| eprintln!("{ended}"))
        .connect();
    smol::block_on(async {
        let client = connecting.await?;
        let mut lines = BufReader::new(Unblock::new(std::io::stdin()));
        let typed = async {
            loop {
                let mut line = String::new();
                if lines.read_line(&mut line).await? == 0 {
                    return Ok::<_, BoxError>(());
                }
                client.send(line.trim_end_matches(['\r', '\n'])).await?;
            }
        };
        let ended = async { Err(client.ended().await.to_string().into()) };
        smol::future::or(typed, ended).await?;
        eprintln!("{}", client.close(CloseCode::NORMAL, "").await);
        Ok(())
    })
}
