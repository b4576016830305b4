//! Sends every message back.
//!
//! ```sh
//! cargo run --release --example echo                  # listens on 127.0.0.1:9001
//! cargo run --release --example echo -- 127.0.0.1:0 --workers 1 --max-message 16777216
//! cargo run --release --example echo -- --deflate     # compresses for clients that can read it
//! cargo run --release --example echo -- --tls         # with the development certificates of certs/
//! cargo run --release --example echo -- --frames 127.0.0.1:9002   # and frames on a second port
//! RUST_LOG=coracle=debug cargo run --release --example echo -- --log-file echo.log
//! ```
//!
//! Then, in another terminal, any client: `python3 -m websockets ws://127.0.0.1:9001/`,
//! `npx wscat -c ws://127.0.0.1:9001/`, or the console of a browser that is allowed to connect.
//! (`src/docs/frames.md` has one for frames.) It prints `listening on ws://127.0.0.1:9001/` when it is ready;
//! Ctrl-C ends it gracefully.

use std::process::ExitCode;

use coracle::config::Deflate;
use coracle::{BoxError, Builder, OriginPolicy, Server};

mod common;

const USAGE: &str = "usage: echo [ADDRESS] [--max-message BYTES] [--max-fragments N] [--workers N] \
                     [--log-file PATH] [--frames ADDRESS] [--deflate | --deflate-dedicated] [--tls]";

fn main() -> ExitCode {
    common::exit(serve())
}

fn serve() -> Result<(), BoxError> {
    let mut args = common::Args::parse_with_flags(
        USAGE,
        &["--max-message", "--max-fragments", "--workers", "--log-file", "--frames"],
        &["--deflate", "--deflate-dedicated", "--tls"],
    )?;
    common::log_to(args.value("--log-file"))?;
    let max_message = args.number("--max-message")?;
    let max_fragments = args.number("--max-fragments")?;
    let workers = args.number("--workers")?;

    let frames = args.value("--frames").map(str::to_owned);
    let tls = args.flag("--tls");
    let builder = match tls {
        true => bind_tls(args.address())?,
        false => Server::builder().bind(args.address()),
    };
    let mut builder = builder
        // An echo gives away nothing, so any page may talk to it.
        .origins(OriginPolicy::Any)
        .on_message(async |session, message| session.send(message).await);
    if let Some(address) = &frames {
        builder = builder.bind_frames(address);
    }
    if let Some(bytes) = max_message {
        builder = builder.configure(|config| {
            config.limits.message_bytes = bytes;
            // Who takes large messages takes them in many fragments, too.
            config.limits.fragments = config.limits.fragments.max(in_u32(bytes / 64 + 1));
        });
    }
    if let Some(fragments) = max_fragments {
        builder = builder.configure(|config| config.limits.fragments = in_u32(fragments));
    }
    if let Some(workers) = workers {
        builder = builder.workers(workers);
    }
    if args.flag("--deflate-dedicated") {
        builder = builder.deflate(Deflate::dedicated());
    } else if args.flag("--deflate") {
        builder = builder.deflate(Deflate::shared());
    }
    builder.run_with(|server| {
        if let (Some(_), Some(addr)) = (&frames, server.local_addrs().get(1)) {
            println!("frames on {addr}");
        }
        common::ready_for(if tls { "wss" } else { "ws" }, server);
    })?;
    Ok(())
}

#[cfg(feature = "tls")]
fn bind_tls(address: &str) -> Result<Builder, BoxError> {
    const CERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/certs");
    let path = |name| format!("{CERTS}/{name}");
    let tls = coracle::config::Tls::new(path("server.pem"), path("server.key"));
    Ok(Server::builder().tls(tls).bind_tls(address))
}

#[cfg(not(feature = "tls"))]
fn bind_tls(_: &str) -> Result<Builder, BoxError> {
    Err("--tls needs the feature `tls`".into())
}

fn in_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
