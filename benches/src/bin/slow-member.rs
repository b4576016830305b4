//! What one member that never reads does to all others: the time from a publisher's write until a member has
//! the message, while all of them read, and while one does not. In turns on the same server, so that what
//! slows down the machine slows down both.
//!
//! The server is any broadcasting one of this package, best on a core of its own:
//!
//! ```sh
//! taskset -c 0 target/release/examples/broadcast 127.0.0.1:9001 --workers 1 &
//! cargo run --release --manifest-path benches/Cargo.toml --bin slow-member -- 127.0.0.1:9001 --pid $!
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coracle_benches::crowd::{self, Crowd};
use coracle_benches::poller::{STALL, reset_on_close};
use coracle_benches::{Error, Result, frame, peer};
use lexopt::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

const USAGE: &str = "usage: slow-member ADDRESS --pid P [--members N] [--size BYTES] [--rate PER_SECOND] \
                     [--rounds R] [--seconds S]";

/// The receive buffer of the one that never reads: the kernel makes the least of it that it allows.
const RECEIVE_BUFFER_BYTES: usize = 1;

/// The smallest segment that every network carries (RFC 9293 section 3.7.1). How much the server's kernel
/// takes ahead grows with it and with what has been acknowledged: it is 45 KB here, as `ss -tm` has it, and
/// megabytes with the segments of loopback.
const SEGMENT_BYTES: u32 = 536;

/// Published before the disturbed slice is measured: four times what the kernel keeps, so that the server's
/// own queue has begun, and not enough to fill coracle's.
const FILLING_BYTES: usize = 192 * 1024;

/// How long the slow member waits for a message, and for a word from us.
const PERIOD: Duration = Duration::from_millis(20);

/// How often the server is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// How often it shows that it lives, while it reads; sooner than any server asks.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// For what the last slice has left behind.
const SETTLE: Duration = Duration::from_secs(1);

struct Options {
    address: SocketAddr,
    pid: u32,
    members: usize,
    size: usize,
    rate: u32,
    rounds: u32,
    seconds: u32,
}

fn options() -> Result<Options> {
    let (mut address, mut pid) = (None, None);
    let (mut members, mut size, mut rate) = (1000, 256, 200);
    let (mut rounds, mut seconds) = (3, 5);
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Value(value) => address = Some(value.parse()?),
            Long("pid") => pid = Some(parser.value()?.parse()?),
            Long("members") => members = parser.value()?.parse()?,
            Long("size") => size = parser.value()?.parse()?,
            Long("rate") => rate = parser.value()?.parse()?,
            Long("rounds") => rounds = parser.value()?.parse()?,
            Long("seconds") => seconds = parser.value()?.parse()?,
            _ => return Err(arg.unexpected().into()),
        }
    }
    let (Some(address), Some(pid)) = (address, pid) else {
        return Err(USAGE.into());
    };
    if members < 2 || rate == 0 || rounds == 0 || seconds == 0 {
        return Err("two members, and one of everything else, are the least".into());
    }
    Ok(Options { address, pid, members, size, rate, rounds, seconds })
}

fn main() -> Result<()> {
    let options = options()?;
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    // All but the one that is slow.
    let mut crowd = Crowd::open(options.address, options.members - 1, options.size)?;
    let slow = Slow { reads: AtomicBool::new(true), ..Slow::default() };
    std::thread::scope(|scope| {
        let playing = scope.spawn(|| slow.play(&options));
        let measured = measure(&options, &mut crowd, &slow);
        slow.over.store(true, Ordering::Relaxed);
        playing.join().map_err(|_| "the slow member's thread panicked")??;
        measured
    })?;
    crowd.finish()
}

fn measure(options: &Options, crowd: &mut Crowd, slow: &Slow) -> Result<()> {
    let long = Duration::from_secs(options.seconds.into());
    println!("{:>28} {:>8} {:>8} {:>8} {:>10}", "delivery µs:", "p50", "p99", "max", "deliveries");
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    publish(options, crowd, SETTLE)?;
    for _ in 0..options.rounds {
        let quiet = publish(options, crowd, long)?;
        quiet.print("all read");
        if quiet.p50 > 1e6 / f64::from(options.rate) {
            println!("{:>28} that is more than this machine can do now: lower --rate", "");
        }
        let before = resident(options.pid)?;
        slow.begin(false)?;
        fill(options, crowd)?;
        let disturbed = publish(options, crowd, long)?;
        disturbed.print("one never reads");
        let most = slow.most_resident.load(Ordering::Relaxed);
        let ended = slow.ended.load(Ordering::Relaxed);
        slow.begin(true)?;
        publish(options, crowd, SETTLE)?;
        let after = resident(options.pid)?;
        p50.push(disturbed.p50 / quiet.p50);
        p99.push(disturbed.p99 / quiet.p99);
        println!(
            "{:>28} resident KiB: {} before, {} at most meanwhile, {} after; the server ended {ended}",
            "",
            before / 1024,
            most / 1024,
            after / 1024,
        );
    }
    let (p50, p99) = (median(p50), median(p99));
    println!("disturbed / undisturbed, median: p50 {p50:.2}, p99 {p99:.2}");
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Publishes, as fast as the others hear it, until the kernel can keep no more for the slow member.
fn fill(options: &Options, crowd: &mut Crowd) -> Result<()> {
    crowd.restart();
    let mut due = 0;
    for _ in 0..FILLING_BYTES.div_ceil(options.size) {
        crowd.publish(1)?;
        due += crowd.members() as u64;
        while crowd.deliveries() < due {
            crowd.receive()?;
        }
    }
    Ok(())
}

/// Publishes at a steady pace for so long, and waits until all have heard everything.
fn publish(options: &Options, crowd: &mut Crowd, long: Duration) -> Result<Times> {
    let period = Duration::from_secs(1) / options.rate;
    let end = Instant::now() + long;
    crowd.restart();
    let mut due = 0;
    let mut next = Instant::now();
    while next < end {
        crowd.publish(1)?;
        due += crowd.members() as u64;
        next += period;
        // A machine that is busy elsewhere publishes less, and not more at once.
        let now = Instant::now();
        if next < now {
            next = now + period;
        }
        while Instant::now() < next {
            crowd.receive_until(next)?;
        }
    }
    while crowd.deliveries() < due {
        crowd.receive()?;
    }
    let latencies = crowd.latencies();
    let (p50, p99, max) =
        (latencies.micros_at(0.5), latencies.micros_at(0.99), latencies.micros_at(1.0));
    Ok(Times { p50, p99, max, deliveries: due })
}

struct Times {
    p50: f64,
    p99: f64,
    max: f64,
    deliveries: u64,
}

impl Times {
    fn print(&self, who: &str) {
        let Self { p50, p99, max, deliveries } = self;
        println!("{who:>28} {p50:>8.0} {p99:>8.0} {max:>8.0} {deliveries:>10}");
    }
}

/// The last member, which reads, or does not; on a thread of its own.
#[derive(Default)]
struct Slow {
    reads: AtomicBool,
    /// Whether it is there, as one that reads or one that does not.
    there: AtomicBool,
    over: AtomicBool,
    /// How many of it the server has ended since it stopped reading.
    ended: AtomicU64,
    /// Of the server, since then.
    most_resident: AtomicU64,
}

impl Slow {
    /// Begins anew as one that reads, or does not.
    fn begin(&self, reads: bool) -> Result<()> {
        if !reads {
            self.ended.store(0, Ordering::Relaxed);
            self.most_resident.store(0, Ordering::Relaxed);
        }
        self.there.store(false, Ordering::Relaxed);
        self.reads.store(reads, Ordering::Release);
        let deadline = Instant::now() + STALL;
        while !self.there.load(Ordering::Relaxed) {
            if Instant::now() > deadline {
                return Err("the last member cannot be opened".into());
            }
            std::thread::sleep(PERIOD);
        }
        Ok(())
    }

    /// Is a member until it is over. One that the server ends is replaced; whoever does not read does not
    /// see that it has ended, but the server has one open file less.
    fn play(&self, options: &Options) -> Result<()> {
        let without = open_files(options.pid)?;
        let mut reads = self.reads.load(Ordering::Acquire);
        let mut socket = open(options.address, reads)?;
        self.there.store(true, Ordering::Relaxed);
        let (mut lived, mut looked) = (Instant::now(), Instant::now());
        while !self.over.load(Ordering::Relaxed) {
            let mut alive = true;
            if reads {
                if lived.elapsed() > SIGN_OF_LIFE {
                    lived = Instant::now();
                    let mut pong = Vec::new();
                    frame::push_client_frame(&mut pong, frame::PONG, &[]);
                    // If it fails, reading says so.
                    let _ = socket.write(&pong);
                }
                wait(&socket)?;
                alive = read(&mut socket);
            } else {
                std::thread::sleep(PERIOD);
            }
            if looked.elapsed() > LOOK {
                looked = Instant::now();
                self.most_resident.fetch_max(resident(options.pid)?, Ordering::Relaxed);
                alive &= reads || open_files(options.pid)? > without;
            }
            if !alive {
                self.ended.fetch_add(1, Ordering::Relaxed);
            }
            let wanted = self.reads.load(Ordering::Acquire);
            if !alive || wanted != reads {
                reads = wanted;
                socket = open(options.address, reads)?;
                self.there.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// A connection; if it is not to read, one for which the kernel keeps little.
fn open(address: SocketAddr, reads: bool) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if !reads {
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        socket.set_tcp_mss(SEGMENT_BYTES)?;
    }
    socket.connect(&address.into())?;
    let (socket, _) = crowd::open(socket.into(), address, peer::SUBSCRIBE)?;
    reset_on_close(&socket);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Waits until there is something to read, but not for long.
fn wait(socket: &TcpStream) -> Result<()> {
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&Timespec::try_from(PERIOD)?))?;
    Ok(())
}

/// Reads what there is, and whether there may be more some day.
fn read(socket: &mut TcpStream) -> bool {
    let mut buffer = [0; 64 * 1024];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// Resident bytes of a process.
fn resident(pid: u32) -> Result<u64, Error> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages = statm.split_whitespace().nth(1).ok_or("no such field in statm")?;
    Ok(pages.parse::<u64>()? * rustix::param::page_size() as u64)
}

/// How many files a process has open.
fn open_files(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
