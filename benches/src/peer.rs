//! The contract between the orchestrator and a server: where to listen, and how to say so.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::SocketAddr;

/// What a ready server prints, up to its address.
pub const READY: &str = "listening on ws://";

/// What a server of this package is told on its command line.
#[derive(Debug, Clone, Copy)]
pub struct Args {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Whether to answer everything that is ready with one write.
    pub cork: bool,
}

impl Args {
    /// Reads `ADDR [--cork]`.
    ///
    /// # Errors
    ///
    /// If the arguments are anything else.
    pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;
        let mut parser = lexopt::Parser::from_args(args);
        let mut listen = None;
        let mut cork = false;
        while let Some(arg) = parser.next()? {
            match arg {
                Long("cork") => cork = true,
                Value(value) if listen.is_none() => listen = Some(value.parse()?),
                _ => return Err(arg.unexpected()),
            }
        }
        let listen = listen.ok_or("usage: ADDR [--cork]")?;
        Ok(Self { listen, cork })
    }

    /// Reads the command line of this process, and exits if it is not understood.
    pub fn from_env() -> Self {
        Self::parse(std::env::args_os().skip(1)).unwrap_or_else(|error| {
            eprintln!("{error}");
            std::process::exit(2);
        })
    }
}

/// Says that the server is ready.
///
/// # Errors
///
/// If nobody listens on standard output.
pub fn announce(address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{READY}{address}/")?;
    out.flush()
}

/// Reads the line that [`announce`] prints.
pub fn announced(line: &str) -> Option<SocketAddr> {
    let rest = line.trim_end().strip_prefix(READY)?;
    rest.strip_suffix('/').unwrap_or(rest).parse().ok()
}
