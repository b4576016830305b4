//! Clients that come and go: what they leave behind. The only test of its binary, because it counts the
//! process's open files, threads and memory.
//!
//! `CORACLE_CYCLES=100000 cargo test --test cycles -- --nocapture` takes minutes and prints its numbers.

#[cfg(feature = "tls")]
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::fs;
use std::thread;
use std::time::Duration;

use coracle::{BoxError, Builder, CloseCode, Flow, Handler, Message, Server, Session};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use support::*;

/// Threads of clients.
const CROWD: usize = 4;

/// Memory that may be added while the numbers stay where they were: the allocator's own, and the
/// pools and slabs that have met a larger crowd than before. A leak of 100 bytes for each
/// connection would be 10 MB in the large test.
const SLACK_KIB: usize = 3 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    files: usize,
    threads: usize,
}

impl Process {
    fn now() -> Self {
        let entries = |path| fs::read_dir(path).unwrap().count();
        Self { files: entries("/proc/self/fd"), threads: entries("/proc/self/task") }
    }
}

fn resident_kib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// How many ways there are to live.
const WAYS: usize = if cfg!(feature = "tls") { 19 } else { 12 };

/// One client's whole life, in the way of its number. None of them makes the server log an error:
/// the tests' log is kept in memory.
fn live(server: &TestServer, n: usize) {
    match n % WAYS {
        0 => {
            let mut client = server.client();
            client.echo("hello");
            client.goodbye();
        }
        1 => server.client().reset(),
        2 => server.raw().reset(),
        3 => drop(server.raw()),
        4 => {
            let mut raw = server.raw();
            raw.send(&handshake("/").as_bytes()[..60]);
            if n % 24 == 4 { raw.reset() } else { drop(raw) }
        }
        5 => {
            let answer = server.raw().ask(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
        }
        6 => {
            let mut client = server.client();
            client.send(&frame(false, TEXT, &[b'x'; 5000])[..3000]);
            drop(client);
        }
        7 => {
            let mut client = server.client();
            client.send_frame(TEXT, b"close");
            client.expect_close(1000);
        }
        8 => {
            let mut client = server.client();
            client.send_frame(TEXT, b"abort");
            assert_eq!(client.read_to_end(), b"");
        }
        9 => {
            // Leaves much behind that nobody reads.
            let mut client = server.client();
            for _ in 0..4 {
                client.send_frame(BINARY, &[7; 40_000]);
            }
            client.reset();
        }
        10 => {
            let mut client = server.client();
            client.send(b"\xff\xff");
            client.expect_close(1002);
        }
        11 => within(async {
            let mut stream = server.handle.connect().unwrap();
            stream.write_all(handshake("/").as_bytes()).await.unwrap();
            stream.write_all(&frame(true, BINARY, b"\r\n\r\n!")).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"!") {
                let mut bytes = [0; 256];
                let count = stream.read(&mut bytes).await.unwrap();
                assert_ne!(count, 0);
                answer.extend_from_slice(&bytes[..count]);
            }
        }),
        #[cfg(feature = "tls")]
        way => live_in_tls(server.handle.local_addrs()[1], way - 12),
        #[cfg(not(feature = "tls"))]
        way => unreachable!("{way}"),
    }
}

/// The ways to live that only TLS has.
#[cfg(feature = "tls")]
fn live_in_tls(addr: std::net::SocketAddr, way: usize) {
    use secure::{Secure, client_config};
    use std::io::Write;
    use std::sync::OnceLock;

    // One for all, so that most of them resume.
    static CONFIG: OnceLock<rustls::ClientConfig> = OnceLock::new();
    let config = CONFIG.get_or_init(client_config).clone();
    let connect = || Secure::connect(addr, config, "localhost").unwrap();
    let reset = |client: Secure| Raw { stream: client.tls.sock }.reset();
    match way {
        0 => {
            let mut client = connect();
            client.upgrade();
            client.echo("hello");
            client.goodbye();
        }
        1 => {
            let mut client = connect();
            client.upgrade();
            reset(client);
        }
        // The handshake alone.
        2 => drop(connect()),
        // Half of that: a record that promises more than comes.
        3 => {
            let mut raw = Raw::connect(addr);
            raw.send(&[22, 3, 1, 1, 0, 1, 0, 0]);
            raw.reset();
        }
        // Cut in the middle of a message, of which a large part has been decrypted.
        4 => {
            let mut client = connect();
            client.upgrade();
            client.send(&frame(true, BINARY, &[7; 40_000])[..30_000]);
        }
        // Leaves much behind that nobody reads, encrypted already.
        5 => {
            let mut client = connect();
            client.upgrade();
            for _ in 0..4 {
                client.send_frame(BINARY, &[7; 60_000]);
            }
            reset(client);
        }
        // A record that nobody has encrypted.
        _ => {
            let mut client = connect();
            client.upgrade();
            client.tls.sock.write_all(&[23, 3, 3, 0, 32]).unwrap();
            client.tls.sock.write_all(&[7; 32]).unwrap();
            let mut rest = Vec::new();
            let error = std::io::Read::read_to_end(&mut client.tls, &mut rest).unwrap_err();
            assert!(error.to_string().contains("BadRecordMac"), "{error}");
        }
    }
}

/// Lets so many clients come and go, and waits until the server has seen that they are gone.
fn crowd(server: &TestServer, clients: usize, rest: Process) {
    thread::scope(|scope| {
        for part in 0..CROWD {
            scope.spawn(move || {
                (0..clients).skip(part).step_by(CROWD).for_each(|n| live(server, n));
            });
        }
    });
    eventually("nobody is left", || server.handle.sessions().count() == 0);
    eventually("files and threads are as many as before", || Process::now() == rest);
}

fn serve(builder: Builder<impl Handler>) -> TestServer {
    let _ = env_logger::builder().is_test(true).try_init();
    TestServer { handle: builder.start().expect("the server starts") }
}

fn cycles(clients: usize) {
    // What the clients have for good: smol's reactor and its thread.
    within(async { smol::Timer::after(Duration::from_millis(1)).await });
    let builder = Server::builder().workers(2).bind("127.0.0.1:0");
    #[cfg(feature = "tls")]
    let builder = builder.tls(secure::unwatched()).bind_tls("127.0.0.1:0");
    let server = serve(
        builder
            .on_message(async |session: &Session, message: Message| {
                match message.as_text() {
                    Some("abort") => session.abort(),
                    Some("close") => return Ok(Flow::Close(CloseCode::NORMAL, "enough".into())),
                    _ => session.send(message).await?,
                }
                Ok::<_, BoxError>(Flow::Continue)
            })
            .configure(|config| config.limits.sessions_per_address = Some(10_000)),
    );
    // A server that has started has all files and threads that it will ever have without clients.
    let rest = Process::now();

    crowd(&server, 1000, rest);
    let before = resident_kib();
    println!("after  1000: {rest:?}, registry 0, {before} KiB resident");
    crowd(&server, clients - 1000, rest);
    let after = resident_kib();
    let registry = server.handle.sessions().count();
    println!("after {clients}: {:?}, registry {registry}, {after} KiB resident", Process::now());
    assert!(after < before + SLACK_KIB, "{before} KiB after 1000, {after} KiB after {clients}");
    let report = server.finish();
    assert_eq!(report.panics, 0);
}

#[test]
fn thousands_of_clients_that_come_and_go_leave_nothing_behind() {
    const VARIABLE: &str = "CORACLE_CYCLES";
    let clients = std::env::var(VARIABLE).map_or(4000, |clients| {
        let clients = clients.parse().ok().filter(|&clients| clients > 1000);
        clients.unwrap_or_else(|| panic!("{VARIABLE} must be a number above 1000"))
    });
    cycles(clients);
}
