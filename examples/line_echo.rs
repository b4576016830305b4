//! Reads a line and writes it back within 30 seconds: a protocol of one's own, over plain TCP, with one
//! deadline for each exchange.
//!
//! ```sh
//! cargo run --release --example line_echo                 # listens on 127.0.0.1:9001
//! cargo run --release --example line_echo -- 127.0.0.1:0 --seconds 5
//! ```
//!
//! Connect with `nc 127.0.0.1 9001` and type lines: each comes back. Type nothing for 30 seconds, and you
//! are told so and cut off. It does not help to send the line one byte at a time: the deadline is for the
//! line, not for the byte. Ctrl-C ends the program.

use std::io::{self, ErrorKind};
use std::process::ExitCode;
use std::time::Duration;

use coracle::{BoxError, DeadlineStream};
use smol::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use smol::net::{TcpListener, TcpStream};

mod common;

/// Who sends more without a line feed has it cut here.
const LINE_BYTES: u64 = 8 * 1024;

fn main() -> ExitCode {
    common::exit(serve())
}

fn serve() -> Result<(), BoxError> {
    let usage = "usage: line_echo [ADDRESS] [--seconds N]";
    let mut args = common::Args::parse(usage, &["--seconds"])?;
    let seconds = args.number("--seconds")?.unwrap_or(30);
    let budget = Duration::from_secs(seconds as u64);

    let executor = smol::LocalExecutor::new();
    smol::block_on(executor.run(async {
        let listener = TcpListener::bind(args.address()).await?;
        println!("listening on {}", listener.local_addr()?);
        loop {
            match listener.accept().await {
                Ok((tcp, peer)) => {
                    let echo = async move {
                        if let Err(error) = echo_lines(tcp, budget).await {
                            eprintln!("{peer}: {error}");
                        }
                    };
                    // It ends with its connection, which its deadlines see to.
                    executor.spawn(echo).detach();
                }
                // Too many open files, for example: others will end.
                Err(error) => {
                    eprintln!("accept: {error}");
                    smol::Timer::after(Duration::from_millis(100)).await;
                }
            }
        }
    }))
}

/// Serves one connection up to its end.
async fn echo_lines(tcp: TcpStream, budget: Duration) -> io::Result<()> {
    let mut stream = BufReader::new(DeadlineStream::new(tcp));
    let mut line = Vec::new();
    loop {
        // One budget for all that belongs to this line, reading and writing.
        stream.get_mut().expires_after(budget);
        line.clear();
        match (&mut stream).take(LINE_BYTES).read_until(b'\n', &mut line).await {
            Ok(0) => return Ok(()),
            Ok(_) => stream.get_mut().write_all(&line).await?,
            Err(error) => {
                if error.kind() == ErrorKind::TimedOut {
                    // Nothing is lost or closed by an expiry: there is time for a last word.
                    stream.get_mut().expires_after(Duration::from_secs(1));
                    stream.get_mut().write_all(b"too slow\n").await?;
                }
                return Err(error);
            }
        }
    }
}
