//! What half-open TLS handshakes do to an open session: its echo is timed while nobody disturbs, and while
//! so many connections at all times have sent their first flight and nothing more. In turns, so that what
//! slows down the machine slows down both.
//!
//! The server is any echo server over TLS with the certificate of `certs/`; best on a core of its own:
//!
//! ```sh
//! taskset -c 0 target/release/examples/echo 127.0.0.1:9001 --tls --workers 1 &
//! cargo run --release --manifest-path benches/Cargo.toml --bin tls-storm -- 127.0.0.1:9001 --pid $!
//! ```

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coracle_benches::tls::Connector;
use coracle_benches::{frame, upgrade};
use lexopt::prelude::*;
use rustls::{ClientConnection, StreamOwned};

const USAGE: &str = "usage: tls-storm ADDRESS --pid P [--half-open N] [--rounds R] [--seconds S]";

/// How long anything may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the half-open connections are looked at.
const PERIOD: Duration = Duration::from_millis(20);

type Error = Box<dyn std::error::Error + Send + Sync>;

struct Options {
    address: SocketAddr,
    pid: u32,
    half_open: usize,
    rounds: u32,
    seconds: u32,
}

fn options() -> Result<Options, Error> {
    let (mut address, mut pid) = (None, None);
    let (mut half_open, mut rounds, mut seconds) = (1000, 3, 12);
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Value(value) => address = Some(value.parse()?),
            Long("pid") => pid = Some(parser.value()?.parse()?),
            Long("half-open") => half_open = parser.value()?.parse()?,
            Long("rounds") => rounds = parser.value()?.parse()?,
            Long("seconds") => seconds = parser.value()?.parse()?,
            _ => return Err(arg.unexpected().into()),
        }
    }
    let (Some(address), Some(pid)) = (address, pid) else {
        return Err(USAGE.into());
    };
    Ok(Options { address, pid, half_open, rounds, seconds })
}

fn main() -> Result<(), Error> {
    let options = options()?;
    let connector = Connector::new(false)?;
    let mut session = Session::open(options.address, &connector)?;
    session.time(Duration::from_secs(1))?;
    println!("{:>28} {:>8} {:>8} {:>8} {:>8}", "echo µs:", "p50", "p99", "max", "echoes");
    let mut ratios = Vec::new();
    for _ in 0..options.rounds {
        let quiet = session.time(Duration::from_secs(u64::from(options.seconds)))?;
        quiet.print("nobody else");
        let before = resident(options.pid)?;
        let storm = Storm::default();
        let (disturbed, resident) = std::thread::scope(|scope| -> Result<_, Error> {
            let storming = scope.spawn(|| storm.run(&options, &connector));
            let timed = storm.is_complete().and_then(|()| {
                let full = resident(options.pid)?;
                Ok((session.time(Duration::from_secs(u64::from(options.seconds)))?, full))
            });
            storm.over.store(true, Ordering::Relaxed);
            storming.join().map_err(|_| "the storm's thread panicked")??;
            timed
        })?;
        disturbed.print(&format!("{} half-open", options.half_open));
        ratios.push(disturbed.p99 / quiet.p99);
        let lives = storm.lives.into_inner().map_err(|_| "poisoned")?;
        println!(
            "{:>28} {} ended by the server, after {:.1} to {:.1} s; {} bytes each",
            "",
            lives.len(),
            lives.iter().min().copied().unwrap_or_default().as_secs_f64(),
            lives.iter().max().copied().unwrap_or_default().as_secs_f64(),
            resident.saturating_sub(before) / options.half_open as u64,
        );
    }
    ratios.sort_by(f64::total_cmp);
    println!("p99 disturbed / undisturbed: median {:.2}", ratios[ratios.len() / 2]);
    Ok(())
}

/// Those that are half open.
#[derive(Default)]
struct Storm {
    full: AtomicBool,
    over: AtomicBool,
    /// How long those have lived that the server has ended.
    lives: Mutex<Vec<Duration>>,
}

impl Storm {
    /// Keeps so many of them until it is over.
    fn run(&self, options: &Options, connector: &Connector) -> Result<(), Error> {
        let mut sockets: Vec<(TcpStream, Instant)> = Vec::new();
        while !self.over.load(Ordering::Relaxed) {
            let mut lives = Vec::new();
            sockets.retain_mut(|(socket, began)| {
                let alive = is_open(socket);
                if !alive {
                    lives.push(began.elapsed());
                }
                alive
            });
            self.lives.lock().map_err(|_| "poisoned")?.extend(lives);
            while sockets.len() < options.half_open && !self.over.load(Ordering::Relaxed) {
                let mut hello = Vec::new();
                connector.connection()?.write_tls(&mut hello)?;
                let mut socket = TcpStream::connect(options.address)?;
                socket.write_all(&hello)?;
                socket.set_nonblocking(true)?;
                sockets.push((socket, Instant::now()));
            }
            self.full.store(true, Ordering::Release);
            std::thread::sleep(PERIOD);
        }
        Ok(())
    }

    /// Waits until all have been opened.
    fn is_complete(&self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        while !self.full.load(Ordering::Acquire) {
            if Instant::now() > deadline {
                return Err("the half-open connections cannot be opened".into());
            }
            std::thread::sleep(PERIOD);
        }
        Ok(())
    }
}

/// Reads what there is.
fn is_open(socket: &mut TcpStream) -> bool {
    let mut buffer = [0; 16 * 1024];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

/// The open session.
struct Session(StreamOwned<ClientConnection, TcpStream>);

impl Session {
    fn open(address: SocketAddr, connector: &Connector) -> Result<Self, Error> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut stream = StreamOwned::new(connector.connection()?, socket);
        stream.write_all(&upgrade::request(&address.to_string()))?;
        let mut head = Vec::new();
        while upgrade::head_len(&head).is_none() {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        if !upgrade::is_accepted(&head) {
            return Err(String::from_utf8_lossy(&head).into());
        }
        Ok(Self(stream))
    }

    /// Echoes for so long, one after the other.
    fn time(&mut self, long: Duration) -> Result<Times, Error> {
        let payload = [b'x'; 16];
        let mut request = Vec::new();
        frame::push_client_frame(&mut request, 2, &payload);
        let mut expected = Vec::new();
        frame::push_server_frame(&mut expected, 2, &payload);
        let mut answer = vec![0; expected.len()];
        let mut times = Vec::new();
        let began = Instant::now();
        while began.elapsed() < long {
            let sent = Instant::now();
            self.0.write_all(&request)?;
            self.0.read_exact(&mut answer)?;
            times.push(sent.elapsed());
            if answer != expected {
                return Err("the echo is something else".into());
            }
        }
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        Ok(Times {
            p50: micros(at(0.5)),
            p99: micros(at(0.99)),
            max: micros(at(1.0)),
            echoes: times.len(),
        })
    }
}

struct Times {
    p50: f64,
    p99: f64,
    max: f64,
    echoes: usize,
}

impl Times {
    fn print(&self, who: &str) {
        let Self { p50, p99, max, echoes } = self;
        println!("{who:>28} {p50:>8.0} {p99:>8.0} {max:>8.0} {echoes:>8}");
    }
}

/// Resident bytes of a process.
fn resident(pid: u32) -> Result<u64, Error> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages = statm.split_whitespace().nth(1).ok_or("no such field in statm")?;
    Ok(pages.parse::<u64>()? * rustix::param::page_size() as u64)
}
