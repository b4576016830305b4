//! What every test file uses: a server on port 0, a peer that speaks raw bytes, a watchdog.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::fs;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use coracle::{Builder, Closed, Handler, Report, ServerHandle};
use futures_lite::future;

/// Nothing that a test waits for takes this long. It bounds a failure, it times nothing.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The key of RFC 6455 section 1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A server on a free port of the loopback.
pub struct TestServer {
    pub handle: ServerHandle,
}

/// Starts what the builder describes, with two workers unless it says otherwise.
pub fn start<H: Handler>(builder: Builder<H>) -> TestServer {
    let _ = env_logger::builder().is_test(true).try_init();
    let builder = builder.bind("127.0.0.1:0").configure(|config| {
        config.workers.get_or_insert(2);
    });
    TestServer { handle: builder.start().expect("the server starts") }
}

impl TestServer {
    pub fn addr(&self) -> SocketAddr {
        self.handle.local_addr()
    }

    /// A TCP connection on which nothing has been said.
    pub fn raw(&self) -> Raw {
        Raw::connect(self.addr())
    }

    /// A connection that has been upgraded.
    pub fn client(&self) -> Raw {
        let mut raw = self.raw();
        raw.upgrade();
        raw
    }

    /// Stops the server and proves that no session is left.
    pub fn finish(self) -> Report {
        let report = within(self.handle.stop());
        assert_eq!(self.handle.sessions().count(), 0);
        assert!(self.handle.sessions().all().is_empty());
        report
    }
}

/// A directory of the test's own, removed with everything in it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("coracle-{name}-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Self(path),
                // Left by a process of the same number that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("a directory for the test: {error}"),
            }
        }
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file with these bytes, for its owner only.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a future to its end, and fails the test if that takes longer than anything may.
pub fn within<T>(future: impl Future<Output = T>) -> T {
    smol::block_on(future::or(future, async {
        smol::Timer::after(PATIENCE).await;
        panic!("the test waits for something that does not happen");
    }))
}

/// Waits until `condition` holds; for counters that nobody announces.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// The receiving end of a channel, with the watchdog.
pub struct Heard<T>(mpsc::Receiver<T>);

/// A channel from callbacks to the test.
pub fn heard<T>() -> (mpsc::Sender<T>, Heard<T>) {
    let (sender, receiver) = mpsc::channel();
    (sender, Heard(receiver))
}

impl<T> Heard<T> {
    #[track_caller]
    pub fn next(&self) -> T {
        self.0.recv_timeout(PATIENCE).expect("a callback reports")
    }

    /// Takes what has been reported so far, and says how much it was.
    pub fn drain(&self) -> usize {
        self.0.try_iter().count()
    }

    /// What has been reported and not yet been taken.
    pub fn try_next(&self) -> Option<T> {
        self.0.try_recv().ok()
    }
}

/// `on_close` for tests: `.on_close(record(&sender))`.
pub fn record(
    sender: &mpsc::Sender<Closed>,
) -> impl AsyncFn(&coracle::Session, &Closed) + Send + Sync + 'static + use<> {
    let sender = std::sync::Mutex::new(sender.clone());
    async move |_session: &coracle::Session, closed: &Closed| {
        // The test may be over, and not care.
        let _ = sender.lock().unwrap().send(closed.clone());
    }
}

/// One frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Reads what is behind the first byte, checking what RFC 6455 asks of a server.
    #[track_caller]
    pub fn read(first: u8, mut exactly: impl FnMut(&mut [u8])) -> Self {
        let mut array = |len| {
            let mut bytes = vec![0; len];
            exactly(&mut bytes);
            bytes
        };
        let number = |bytes: Vec<u8>| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        let second = number(array(1));
        assert_eq!(first & 0x70, 0, "reserved bits are zero");
        assert_eq!(second & 0x80, 0, "a server does not mask");
        let len = match second {
            126 => number(array(2)),
            127 => number(array(8)),
            short => short,
        };
        let payload = array(usize::try_from(len).unwrap());
        Self { fin: first & 0x80 != 0, opcode: first & 0x0F, payload }
    }

    /// The code (none: 1005) and the reason of a close frame.
    #[track_caller]
    pub fn close(&self) -> (u16, String) {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        match &self.payload[..] {
            [] => (1005, String::new()),
            [high, low, reason @ ..] => (
                u16::from_be_bytes([*high, *low]),
                String::from_utf8(reason.to_vec()).expect("a reason is text"),
            ),
            [_] => panic!("half a code"),
        }
    }
}

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// A peer that sends exactly the bytes it is told, and reads frames strictly.
pub struct Raw {
    pub stream: TcpStream,
}

impl Raw {
    pub fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("the server accepts");
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    /// A connection of the Unix family. To the standard library a socket is a socket: what is read and
    /// written is the same, and only what is TCP's own would fail.
    pub fn connect_unix(path: impl AsRef<Path>) -> Self {
        let stream = UnixStream::connect(path).expect("the server accepts");
        Self::over(stream.into())
    }

    /// Over a connected socket of any kind.
    pub fn over(socket: OwnedFd) -> Self {
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// Sends an ordinary handshake and reads the 101.
    pub fn upgrade(&mut self) {
        self.send(handshake("/").as_bytes());
        let head = self.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    }

    /// Reads up to and including a blank line, and not one byte more.
    pub fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match self.stream.read(&mut byte).expect("an HTTP head") {
                0 => panic!("closed after {:?}", String::from_utf8_lossy(&head)),
                _ => head.push(byte[0]),
            }
        }
        String::from_utf8(head).expect("a head is text")
    }

    /// Sends one request (or garbage) and reads the whole answer, up to the end of the stream.
    pub fn ask(&mut self, request: &[u8]) -> String {
        self.send(request);
        String::from_utf8_lossy(&self.read_to_end()).into_owned()
    }

    /// Reads until the server closes; a reset counts as the end.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        match self.stream.read_to_end(&mut all) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{error} after {} bytes", all.len()),
        }
        all
    }

    /// Sends one final, masked frame.
    pub fn send_frame(&mut self, opcode: u8, payload: &[u8]) {
        self.send(&frame(true, opcode, payload));
    }

    /// Reads one frame, checking what RFC 6455 asks of a server.
    #[track_caller]
    pub fn read_frame(&mut self) -> Frame {
        self.try_read_frame().expect("a frame, and not the end of the stream")
    }

    /// `None` at the end of the stream.
    #[track_caller]
    pub fn try_read_frame(&mut self) -> Option<Frame> {
        let (compressed, frame) = self.try_read_either()?;
        assert!(!compressed, "reserved bits are zero");
        Some(frame)
    }

    /// The same where permessage-deflate has been agreed on: whether its bit is set, and the frame.
    #[track_caller]
    pub fn try_read_either(&mut self) -> Option<(bool, Frame)> {
        let mut first = [0];
        if self.stream.read(&mut first).expect("a frame or the end") == 0 {
            return None;
        }
        let [first] = first;
        let compressed = first & 0x40 != 0;
        let exactly = |bytes: &mut [u8]| self.stream.read_exact(bytes).expect("a whole frame");
        Some((compressed, Frame::read(first & !0x40, exactly)))
    }

    /// Reads the server's close frame: its code (none: 1005) and reason.
    #[track_caller]
    pub fn read_close(&mut self) -> (u16, String) {
        self.read_frame().close()
    }

    /// The server says goodbye with this code, and then nothing more.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) -> String {
        let (got, reason) = self.read_close();
        assert_eq!(got, code, "{reason}");
        // Like a polite client: answers, then closes.
        let _ = self.stream.write_all(&frame(true, CLOSE, &code.to_be_bytes()));
        assert_eq!(self.read_to_end(), b"", "nothing follows a close frame");
        reason
    }

    /// Reads one text message.
    #[track_caller]
    pub fn expect_text(&mut self) -> String {
        let frame = self.read_frame();
        assert_eq!(frame.opcode, TEXT, "{frame:?}");
        String::from_utf8(frame.payload).expect("a text is text")
    }

    /// Sends text and waits for its echo: everything sent before has been handled.
    #[track_caller]
    pub fn echo(&mut self, text: &str) {
        self.send_frame(TEXT, text.as_bytes());
        let frame = self.read_frame();
        assert_eq!((frame.opcode, &frame.payload[..]), (TEXT, text.as_bytes()));
    }

    /// Closes with 1000 and waits for the answer and the end.
    #[track_caller]
    pub fn goodbye(mut self) {
        self.send_frame(CLOSE, &1000_u16.to_be_bytes());
        let (code, _) = self.read_close();
        assert_eq!(code, 1000);
        assert_eq!(self.read_to_end(), b"");
    }

    /// Closes only the sending direction.
    pub fn end_writing(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Disappears with a reset, as a crashed peer's kernel does.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO)).unwrap();
    }
}

/// A client's frame, masked with a fixed key.
pub fn frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x11, 0x22, 0x33, 0x44];
    let mut bytes = vec![u8::from(fin) << 7 | opcode];
    match payload.len() {
        short @ ..126 => bytes.push(0x80 | short as u8),
        middle @ 126..=0xFFFF => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// An ordinary handshake.
pub fn handshake(target: &str) -> String {
    handshake_with(target, "")
}

/// A handshake with more header lines, each ending in `\r\n`.
pub fn handshake_with(target: &str, more: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}
