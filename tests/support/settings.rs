//! Servers that are configured by settings alone.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use coracle::config::Config;
use coracle::{BoxError, Builder, Cause, Closed, Handler, Message, Server, Session, Timer};

use super::support::*;

/// Shorter than every timeout that holds without a setting, and many times what the settings here say: what
/// happens within it happens because of the setting.
pub const SOON: Duration = Duration::from_secs(4);

/// More than the sockets of a connection hold together on any machine.
pub const STALLING: usize = 32 * 1024 * 1024;

/// An echo server on the loopback. A client that says `block` keeps its worker busy until it is released; one
/// that says `thread` is told which worker it has.
pub struct App {
    pub server: TestServer,
    pub sessions: Heard<Session>,
    pub records: Heard<Closed>,
    pub blocked: Heard<()>,
    pub release: mpsc::Sender<()>,
}

/// What these settings come to, on a free port of the loopback unless they say where.
#[track_caller]
pub fn config(settings: &[(&str, &str)]) -> Config {
    let rest =
        [("WEBSOCKET_HOST", "127.0.0.1"), ("WEBSOCKET_PORT", "0"), ("WEBSOCKET_WORKERS", "2")];
    let pairs = settings.iter().chain(&rest).copied();
    Config::from_pairs(pairs).expect("the settings are right")
}

#[track_caller]
pub fn start_with<H: Handler>(settings: &[(&str, &str)], builder: Builder<H>) -> TestServer {
    let _ = env_logger::builder().is_test(true).try_init();
    let handle = builder.config(config(settings)).start().expect("the server starts");
    TestServer { handle }
}

#[track_caller]
pub fn app(settings: &[(&str, &str)]) -> App {
    let (opens, sessions) = heard();
    let (closes, records) = heard();
    let (blocks, blocked) = heard();
    let (release, released) = mpsc::channel::<()>();
    let (blocks, released) = (Mutex::new(blocks), Mutex::new(released));
    let builder = Server::builder()
        .on_open(async move |session: &Session| {
            // The test may be over, and not care.
            let _ = opens.send(session.clone());
        })
        .on_message(async move |session: &Session, message: Message| {
            match message.as_text() {
                Some("block") => {
                    let _ = blocks.lock().unwrap().send(());
                    // What nobody should do: the whole worker waits.
                    let _ = released.lock().unwrap().recv();
                }
                Some("thread") => session.send(thread()).await?,
                _ => session.send(message).await?,
            }
            Ok::<_, BoxError>(())
        })
        .on_close(record(&closes));
    App { server: start_with(settings, builder), sessions, records, blocked, release }
}

fn thread() -> String {
    format!("{:?}", std::thread::current().id())
}

impl App {
    /// A client over TCP, and its session.
    #[track_caller]
    pub fn client(&self) -> (Raw, Session) {
        (self.server.client(), self.sessions.next())
    }

    /// A client with more lines in its head; `None` if it is not let in, with the status.
    #[track_caller]
    pub fn try_client(&self, begin: &[u8], more: &str) -> Result<(Raw, Session), String> {
        let mut raw = self.server.raw();
        raw.send(&[begin, handshake_with("/", more).as_bytes()].concat());
        let head = raw.read_head();
        match head.starts_with("HTTP/1.1 101 ") {
            true => Ok((raw, self.sessions.next())),
            false => Err(head[9..12].to_owned()),
        }
    }

    /// A client whose worker does nothing any more, until it is released.
    #[track_caller]
    pub fn blocked_client(&self) -> (Raw, Session) {
        let (mut raw, session) = self.client();
        raw.send_frame(TEXT, b"block");
        self.blocked.next();
        (raw, session)
    }

    /// A session that is so busy writing to a client which does not read that everything else waits.
    #[track_caller]
    pub fn stalled_client(&self) -> (Raw, Session) {
        let (raw, session) = self.client();
        let before = session.traffic().bytes_out;
        session.try_send(vec![7; STALLING]).unwrap();
        eventually("it writes", || session.traffic().bytes_out > before);
        // While it is being written it is off the books.
        eventually("it is back on the books", || session.buffered().messages == 1);
        (raw, session)
    }

    /// The next session that ends does so soon, by this timer.
    #[track_caller]
    pub fn expect_timer(&self, cause: Cause, timer: Timer) -> Closed {
        let closed = soon("a session ends", || self.records.try_next());
        assert_eq!((closed.cause, closed.timer), (cause, Some(timer)), "{closed}");
        closed
    }

    pub fn finish(self) {
        drop(self.release);
        // Nobody waits for clients that say nothing.
        self.server.handle.sessions().all().iter().for_each(Session::abort);
        self.server.finish();
    }
}

/// Waits for what comes in less time than without the setting.
#[track_caller]
pub fn soon<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not soon: {what}");
        std::thread::yield_now();
    }
}
