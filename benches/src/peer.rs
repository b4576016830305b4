//! The contract between the orchestrator and a server: where to listen, and how to say so.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// What a ready server prints, up to the scheme of its address.
pub const READY: &str = "listening on ";

/// Where the one connects whose messages a broadcasting server hands on.
pub const PUBLISH: &str = "/pub";

/// Where those connect that get them.
pub const SUBSCRIBE: &str = "/sub";

/// What a server of this package is told on its command line.
#[derive(Debug, Clone, Copy)]
pub struct Args {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Whether to answer everything that is ready with one write.
    pub cork: bool,
    /// Whether to speak TLS, with the certificate and the key of `certs/`.
    pub tls: bool,
}

impl Args {
    /// Reads `ADDR [--cork] [--tls]`.
    ///
    /// # Errors
    ///
    /// If the arguments are anything else.
    pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;
        let mut parser = lexopt::Parser::from_args(args);
        let mut listen = None;
        let mut cork = false;
        let mut tls = false;
        while let Some(arg) = parser.next()? {
            match arg {
                Long("cork") => cork = true,
                Long("tls") => tls = true,
                Value(value) if listen.is_none() => listen = Some(value.parse()?),
                _ => return Err(arg.unexpected()),
            }
        }
        let listen = listen.ok_or("usage: ADDR [--cork] [--tls]")?;
        Ok(Self { listen, cork, tls })
    }

    /// Reads the command line of this process, and exits if it is not understood.
    pub fn from_env() -> Self {
        Self::parse(std::env::args_os().skip(1)).unwrap_or_else(|error| {
            eprintln!("{error}");
            std::process::exit(2);
        })
    }
}

/// Listens without blocking, for a bare loop, and says so.
///
/// # Errors
///
/// If the address is taken, or nobody listens on standard output.
pub fn listen(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let listener = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    // Inherited by what is accepted, so that accepting costs no call for it.
    sockopt::set_tcp_nodelay(&listener, true)?;
    rustix::net::bind(&listener, &address)?;
    rustix::net::listen(&listener, 4096)?;
    let listener = TcpListener::from(listener);
    announce(listener.local_addr()?)?;
    Ok(listener.into())
}

/// Says that the server is ready.
///
/// # Errors
///
/// If nobody listens on standard output.
pub fn announce(address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{READY}ws://{address}/")?;
    out.flush()
}

/// Reads the line that [`announce`] prints.
pub fn announced(line: &str) -> Option<SocketAddr> {
    let url = line.trim_end().strip_prefix(READY)?;
    let rest = url.strip_prefix("ws://").or_else(|| url.strip_prefix("wss://"))?;
    rest.strip_suffix('/').unwrap_or(rest).parse().ok()
}
