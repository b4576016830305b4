//! TLS together with what else a server does: proxies in front of it, streams of the application below it,
//! compression, rates, messages in parts, and the stop.

#[path = "support/secure.rs"]
mod secure;
mod support;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::num::NonZero;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use coracle::config::{Network, Tls};
use coracle::{
    Allowance, BoxError, Builder, BytesPerSecond, Cause, Closed, Error, Handler, Incoming, Kind,
    Message, Peer, RatePolicy, Rates, Request, Server, Session, Upgrade,
};
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use secure::*;
use support::*;

fn tls() -> Tls {
    Tls::new(cert("server.pem"), cert("server.key"))
}

/// What the accept hook has seen: who the client is, and the version and the name of its TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    client: Option<IpAddr>,
    tls: Option<(String, Option<String>)>,
}

/// An echo server that reports each session as it opens and as it closes.
struct App {
    sessions: Heard<Session>,
    records: Heard<Closed>,
}

fn app() -> (Builder<impl Handler>, App) {
    let _ = env_logger::builder().is_test(true).try_init();
    let (opens, sessions) = heard();
    let (closes, records) = heard();
    let builder = Server::builder()
        .workers(2)
        .tls(tls())
        .on_accept(async |request: &Request| {
            let tls = request.tls();
            let tls = tls.map(|it| (it.version().to_string(), it.server_name().map(str::to_owned)));
            Ok(Upgrade::new().data(Seen { client: request.client_ip(), tls }))
        })
        .on_open(async move |session: &Session| {
            // The test may be over, and not care.
            let _ = opens.send(session.clone());
        })
        .on_message(async |session: &Session, message: Message| session.send(message).await)
        .on_close(record(&closes));
    (builder, App { sessions, records })
}

fn serve(builder: Builder<impl Handler>) -> TestServer {
    TestServer { handle: builder.start().expect("the server starts") }
}

fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

// ---- Proxies ------------------------------------------------------------------------------------

/// How bytes are cut on their way.
#[derive(Clone, Copy, Debug)]
enum Pieces {
    Whole,
    /// The first ones in two segments.
    Cut(usize),
    Bytes,
}

/// A connection through a proxy: its header comes before what the client says.
struct Proxied {
    tcp: TcpStream,
    header: Vec<u8>,
    pieces: Pieces,
}

impl Proxied {
    fn connect(addr: SocketAddr, header: &[u8], pieces: Pieces) -> Self {
        Self { tcp: tcp(addr), header: header.to_vec(), pieces }
    }
}

impl Read for Proxied {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.read(buffer)
    }
}

impl Write for Proxied {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let all = [&std::mem::take(&mut self.header)[..], bytes].concat();
        match self.pieces {
            Pieces::Whole => self.tcp.write_all(&all)?,
            Pieces::Cut(at) => {
                let (first, rest) = all.split_at(at.min(all.len()));
                self.tcp.write_all(first)?;
                self.tcp.write_all(rest)?;
            }
            Pieces::Bytes => all.iter().try_for_each(|byte| self.tcp.write_all(&[*byte]))?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

const CLIENT: &str = "203.0.113.7";

fn v1() -> Vec<u8> {
    format!("PROXY TCP4 {CLIENT} 192.0.2.1 4711 443\r\n").into_bytes()
}

/// With a TLV that nobody knows.
fn v2() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11".to_vec();
    header.extend([203, 0, 113, 7, 192, 0, 2, 1, 0x12, 0x67, 0x01, 0xBB]);
    header.extend([0xE0, 0, 2, b'h', b'i']);
    header
}

/// A port for TLS only and one for both, behind a proxy on the loopback.
fn behind_a_proxy(proxy: &str) -> (TestServer, App) {
    let proxy: Network = proxy.parse().unwrap();
    let (builder, app) = app();
    let builder = builder
        .bind_tls("127.0.0.1:0")
        .bind_tls_or_plain("127.0.0.1:0")
        .configure(|config| config.proxies.proxy_protocol = vec![proxy]);
    (serve(builder), app)
}

impl App {
    /// The accept hook and the session both know the client and its TLS.
    #[track_caller]
    fn expect_client(&self, proxy: SocketAddr, tls: Option<&str>) {
        let session = self.sessions.next();
        let client = Some(CLIENT.parse().unwrap());
        let tls = tls.map(|version| (version.to_owned(), Some("localhost".to_owned())));
        assert_eq!(session.data(), Some(&Seen { client, tls }));
        assert_eq!((session.client_ip(), session.peer()), (client, Peer::Tcp(proxy)));
    }
}

#[test]
fn behind_a_proxy_the_clients_address_comes_before_its_tls() {
    let (server, app) = behind_a_proxy("127.0.0.0/8");
    for header in [v1(), v2()] {
        // Whole, with the client's first flight in the same segment; cut everywhere in the header and in
        // the first record behind it; and byte by byte.
        let cuts = (1..header.len() + 12).step_by(3).chain(header.len() - 1..header.len() + 7);
        let pieces = [Pieces::Whole, Pieces::Bytes].into_iter().chain(cuts.map(Pieces::Cut));
        for (number, pieces) in pieces.enumerate() {
            let addr = server.handle.local_addrs()[number % 2];
            let version = BOTH[number / 2 % 2];
            let wire = Proxied::connect(addr, &header, pieces);
            let proxy = wire.tcp.local_addr().unwrap();
            let config = client_with(&[version], None);
            let mut client = Secure::over(wire, config, "localhost").unwrap();
            client.upgrade();
            app.expect_client(proxy, Some(["TLS 1.3", "TLS 1.2"][number / 2 % 2]));
            client.echo("hello");
            client.goodbye();
        }
    }
    server.finish();
}

#[test]
fn behind_a_proxy_the_port_for_both_takes_both() {
    let (server, app) = behind_a_proxy("127.0.0.0/8");
    let [secure, both] = server.handle.local_addrs() else { panic!("two ports") };
    for header in [v1(), v2()] {
        let request = [&header[..], handshake("/").as_bytes()].concat();
        for cut in [0, 1, header.len() - 1, header.len(), header.len() + 1] {
            let mut plain = Raw::connect(*both);
            plain.send(&request[..cut]);
            plain.send(&request[cut..]);
            assert!(plain.read_head().starts_with("HTTP/1.1 101 "), "{cut}");
            app.expect_client(plain.stream.local_addr().unwrap(), None);
            plain.goodbye();
        }
        let answer = Raw::connect(*secure).ask(&request);
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("wss://"), "{answer}");
    }
    server.finish();
}

#[test]
fn what_a_proxy_has_to_say_comes_first_and_only_from_a_proxy() {
    // A client's own header is no TLS, also where one is expected of others.
    let (server, app) = behind_a_proxy("10.0.0.0/8");
    for addr in server.handle.local_addrs() {
        for header in [v1(), v2()] {
            let wire = Proxied::connect(*addr, &header, Pieces::Whole);
            assert!(Secure::over(wire, client_config(), "localhost").is_err());
        }
        Secure::open(*addr).goodbye();
        let seen = app.sessions.next().data::<Seen>().unwrap().client;
        assert_eq!(seen, Some("127.0.0.1".parse().unwrap()));
    }
    server.finish();

    // From a proxy nothing else is understood: not TLS without a header, nor a header inside TLS.
    let (server, app) = behind_a_proxy("127.0.0.0/8");
    for addr in server.handle.local_addrs() {
        let error = Secure::connect(*addr, client_config(), "localhost").err().expect("refused");
        assert_ne!(error.kind(), io::ErrorKind::InvalidData, "no answer that is not TLS: {error}");
        let wire = Proxied::connect(*addr, &v1(), Pieces::Whole);
        let mut client = Secure::over(wire, client_config(), "localhost").unwrap();
        client.send(&[&v1()[..], handshake("/").as_bytes()].concat());
        let mut answer = String::new();
        client.tls.read_to_string(&mut answer).expect("a close_notify before the end");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert!(app.sessions.try_next().is_none());
    server.finish();
}

// ---- Streams of the application -----------------------------------------------------------------

/// One direction of a pair in memory.
#[derive(Default)]
struct Lane {
    bytes: VecDeque<u8>,
    ended: bool,
    wakers: Vec<Waker>,
}

/// One end of a pair in memory. So little fits into it that no record goes through at once.
struct Memory {
    reads: Arc<Mutex<Lane>>,
    writes: Arc<Mutex<Lane>>,
    /// Says when this end is dropped.
    alive: Arc<()>,
}

impl Memory {
    const ROOM: usize = 1000;

    fn pair() -> (Self, Self) {
        let end = |reads, writes| Self { reads, writes, alive: Arc::default() };
        let (up, down) = (Arc::<Mutex<Lane>>::default(), Arc::<Mutex<Lane>>::default());
        (end(Arc::clone(&up), Arc::clone(&down)), end(down, up))
    }

    fn lane(
        lane: &Mutex<Lane>,
        then: impl FnOnce(&mut Lane) -> Poll<usize>,
        cx: &Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut lane = lane.lock().unwrap();
        let polled = then(&mut lane);
        match polled {
            Poll::Pending => lane.wakers.push(cx.waker().clone()),
            Poll::Ready(_) => lane.wakers.drain(..).for_each(Waker::wake),
        }
        polled.map(Ok)
    }
}

impl AsyncRead for Memory {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let take = |lane: &mut Lane| match (lane.bytes.is_empty(), lane.ended) {
            (true, false) => Poll::Pending,
            _ => Poll::Ready(
                io::copy(&mut (&mut lane.bytes).take(buffer.len() as u64), &mut buffer).unwrap()
                    as usize,
            ),
        };
        Self::lane(&self.reads, take, cx)
    }
}

impl AsyncWrite for Memory {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Whoever reads it is gone.
        if Arc::strong_count(&self.writes) == 1 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let give = |lane: &mut Lane| match Self::ROOM - lane.bytes.len() {
            0 => Poll::Pending,
            room => {
                let some = &bytes[..bytes.len().min(room)];
                lane.bytes.extend(some);
                Poll::Ready(some.len())
            }
        };
        Self::lane(&self.writes, give, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let end = |lane: &mut Lane| {
            lane.ended = true;
            Poll::Ready(0)
        };
        Self::lane(&self.writes, end, cx).map_ok(drop)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for lane in [&self.reads, &self.writes] {
            let mut lane = lane.lock().unwrap();
            lane.ended = true;
            lane.wakers.drain(..).for_each(Waker::wake);
        }
    }
}

/// For a client that blocks.
struct Blocking<S>(S);

impl<S: AsyncRead + Unpin> Read for Blocking<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        within(self.0.read(buffer))
    }
}

impl<S: AsyncWrite + Unpin> Write for Blocking<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        within(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        within(self.0.flush())
    }
}

/// Both ends of a socket pair: one for the server, one for the client.
fn unix_pair() -> (smol::net::unix::UnixStream, UnixStream) {
    let (server, client) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    (smol::Async::new(server).unwrap().into(), client)
}

/// What a client with TLS does on a stream, from its handshake to its goodbye.
fn speak<S: Read + Write>(stream: S, version: &'static rustls::SupportedProtocolVersion) {
    let config = client_with(&[version], None);
    let mut client = Secure::over(stream, config, "localhost").unwrap();
    client.upgrade();
    for len in [0, 1, 1000, 16_385, 60_000] {
        let payload = noise(len);
        client.send_frame(BINARY, &payload);
        assert!(client.read_frame().payload == payload, "{len} bytes");
    }
    client.goodbye();
}

#[test]
fn a_stream_of_the_application_is_served_with_tls() {
    let (builder, app) = app();
    let server = serve(builder);
    let addr = SocketAddr::from(([10, 0, 0, 1], 4000));
    for (number, version) in BOTH.iter().enumerate() {
        let tls = Some((["TLS 1.3", "TLS 1.2"][number].to_owned(), Some("localhost".to_owned())));
        let expect = |peer, client| {
            let session = app.sessions.next();
            assert_eq!((session.peer(), session.client_ip()), (peer, client));
            assert_eq!(session.data(), Some(&Seen { client, tls: tls.clone() }));
            let closed = app.records.next();
            assert!(closed.clean, "{closed}");
        };
        let (stream, client) = unix_pair();
        server.handle.serve_tls(stream, None).unwrap();
        speak(client, version);
        expect(Peer::Stream, None);

        let (stream, client) = Memory::pair();
        let alive = Arc::downgrade(&stream.alive);
        server.handle.serve_tls(stream, Some(addr)).unwrap();
        speak(Blocking(client), version);
        expect(Peer::Tcp(addr), Some(addr.ip()));
        eventually("the stream is dropped", || alive.strong_count() == 0);
    }
    // Who does not speak TLS is told so.
    let (stream, client) = unix_pair();
    server.handle.serve_tls(stream, None).unwrap();
    let answer = Raw::over(client.into()).ask(handshake("/").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("wss://"), "{answer}");
    assert!(app.sessions.try_next().is_none());
    server.finish();
}

#[test]
fn a_given_listener_is_served_with_tls() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (builder, app) = app();
    let server = serve(builder.tls_listener(listener));
    assert_eq!(server.addr(), addr);
    Secure::open(addr).goodbye();
    assert!(app.sessions.next().data::<Seen>().unwrap().tls.is_some());
    assert!(server.raw().ask(handshake("/").as_bytes()).starts_with("HTTP/1.1 400 "));
    server.finish();

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = Server::builder().tls_listener(listener).start().unwrap_err();
    assert!(matches!(error, Error::Config(_)), "{error}");
}

#[test]
fn a_stream_with_tls_needs_a_certificate() {
    let server = start(Server::builder());
    let (stream, client) = unix_pair();
    let error = server.handle.serve_tls(stream, None).unwrap_err();
    assert!(matches!(error, Error::Config(_)), "{error}");
    assert!(error.to_string().contains("Builder::tls"), "{error}");
    assert_eq!(Raw::over(client.into()).read_to_end(), b"", "the stream has been dropped");
    server.finish();
}

// ---- Compression --------------------------------------------------------------------------------

#[cfg(feature = "deflate")]
#[test]
fn what_is_compressed_goes_through_tls() {
    use coracle::config::Deflate;
    use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

    const LIMIT: usize = 1 << 20;
    const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];
    for (version, deflate) in BOTH.iter().zip([Deflate::dedicated(), Deflate::shared()]) {
        let (builder, app) = app();
        let builder = builder
            .bind_tls("127.0.0.1:0")
            .deflate(deflate)
            .configure(|config| config.limits.message_bytes = LIMIT);
        let server = serve(builder);
        let config = client_with(&[version], None);
        let mut client = Secure::connect(server.addr(), config, "localhost").unwrap();
        client.send(
            handshake_with(
                "/",
                "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; \
                            server_no_context_takeover\r\n",
            )
            .as_bytes(),
        );
        let head = client.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("permessage-deflate"), "{head}");
        let session = app.sessions.next();
        for len in [300, 20_000, LIMIT] {
            // About a record, and far less, but not when it is unpacked.
            let payload: Vec<u8> = (0..len).map(|i| (i / 7 % 251) as u8).collect();
            let mut packed = Vec::with_capacity(len + 1000);
            let mut compress = Compress::new(Compression::default(), false);
            compress.compress_vec(&payload, &mut packed, FlushCompress::Sync).unwrap();
            packed.truncate(packed.len() - TAIL.len());
            let mut message = frame(true, BINARY, &packed);
            message[0] |= 0x40;
            client.send(&message);
            let (compressed, answer) = client.read_either();
            assert!(compressed && answer.fin && answer.payload.len() < len / 2, "{len}");
            let mut unpacked = Vec::with_capacity(len + 1000);
            let flushed = [&answer.payload[..], &TAIL].concat();
            let mut decompress = Decompress::new(false);
            decompress.decompress_vec(&flushed, &mut unpacked, FlushDecompress::Sync).unwrap();
            assert!(unpacked == payload, "{len}");
        }
        assert!(session.traffic().bytes_in < LIMIT as u64 / 2, "{:?}", session.traffic());
        client.goodbye();
        assert!(app.records.next().clean);
        server.finish();
    }
}

// ---- Rates --------------------------------------------------------------------------------------

/// Lets through so many bytes at a time, always.
struct AtMost(usize);

impl RatePolicy for AtMost {
    fn available(&mut self, _: Instant) -> Allowance {
        NonZero::new(self.0).map(Allowance::Bytes).unwrap()
    }

    fn transferred(&mut self, _: usize, _: Instant) {}
}

/// The same, but each time that it has been asked so often it asks for a moment, which is the wheel's tick.
struct Stutters {
    most: usize,
    often: usize,
    asked: usize,
}

impl Stutters {
    fn new(most: usize, often: usize) -> Self {
        Self { most, often, asked: 0 }
    }
}

impl RatePolicy for Stutters {
    fn available(&mut self, now: Instant) -> Allowance {
        self.asked += 1;
        match NonZero::new(self.most).filter(|_| self.asked % self.often != 0) {
            Some(bytes) => Allowance::Bytes(bytes),
            None => Allowance::Until(now),
        }
    }

    fn transferred(&mut self, _: usize, _: Instant) {}
}

fn with_rates(rates: impl Fn() -> Rates + Send + Sync + 'static) -> (TestServer, App) {
    let (builder, app) = app();
    (serve(builder.bind_tls("127.0.0.1:0").rates(move |_| rates())), app)
}

/// Encrypts a record for each frame, all of them before the first byte is sent.
fn encrypted(client: &mut Secure, frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    client.tls.conn.set_buffer_limit(None);
    for frame in frames {
        client.tls.conn.writer().write_all(&frame).unwrap();
    }
    let mut wire = Vec::new();
    while client.tls.conn.wants_write() {
        client.tls.conn.write_tls(&mut wire).unwrap();
    }
    wire
}

/// Sends while the test reads.
fn send_beside(client: &Secure, wire: Vec<u8>) -> thread::JoinHandle<()> {
    let mut tcp = client.tls.sock.try_clone().unwrap();
    thread::spawn(move || tcp.write_all(&wire).unwrap())
}

// A rate reads less than a record has. What is left of the record is with the server already, and no
// socket will tell of it again.
#[test]
fn a_rate_that_is_less_than_a_record_leaves_nothing_behind() {
    let rates: [(fn() -> Rates, usize); 6] = [
        (|| Rates::new(AtMost(1), AtMost(1)), 300),
        (|| Rates::new(AtMost(7), AtMost(3)), 2000),
        (|| Rates::new(Stutters::new(7, 300), Stutters::new(11, 5)), 2000),
        (|| Rates::new(AtMost(1000), AtMost(1000)), 60_000),
        (|| Rates::new(Stutters::new(16_384, 10), Stutters::new(16_385, 5)), 60_000),
        (|| Rates::new(BytesPerSecond::new(8 << 20), BytesPerSecond::new(8 << 20)), 60_000),
    ];
    for (case, (rates, longest)) in rates.into_iter().enumerate() {
        let (server, app) = with_rates(rates);
        for version in BOTH {
            let config = client_with(&[version], None);
            let mut client = Secure::connect(server.addr(), config, "localhost").unwrap();
            client.upgrade();
            let session = app.sessions.next();
            // One after the other, so that nothing comes behind that would wake the server.
            for len in [0, 1, 125, 126, longest] {
                client.echo(&"x".repeat(len));
            }
            // And many at once.
            let lens = [0, 1, longest / 2, 5, longest, 3, 3, 3];
            let wire = encrypted(&mut client, lens.map(|len| frame(true, BINARY, &noise(len))));
            let sending = send_beside(&client, wire);
            for len in lens {
                assert!(client.read_frame().payload == noise(len), "case {case}: {len} bytes");
            }
            sending.join().unwrap();
            assert_eq!(session.traffic().messages_in, 13, "case {case}");
            client.goodbye();
            let closed = app.records.next();
            assert!(closed.clean, "case {case}: {closed}");
        }
        server.finish();
    }
}

// What has been encrypted is ahead of what the rate has let go. Whatever comes between, a ping or a rate that
// has become narrower, goes behind it.
#[test]
fn a_peer_that_reads_late_gets_everything_in_order_under_a_rate() {
    const MESSAGES: usize = 100;
    for rate in [1 << 20, 100_000, 20_000] {
        let (server, app) = with_rates(move || Rates::new(AtMost(rate), Stutters::new(rate, 20)));
        let mut client = Secure::open(server.addr());
        let session = app.sessions.next();
        let sender = session.clone();
        let sending = thread::spawn(move || {
            for number in 0..MESSAGES {
                let mut message = noise(60_000);
                message[0] = number as u8;
                within(sender.send(message)).unwrap();
            }
        });
        eventually("the outbox is full", || session.buffered().bytes > 900_000);
        assert!(session.ping(b"between"));
        let mut pings = 0;
        for number in 0..MESSAGES {
            let mut got = client.read_frame();
            if got.opcode == PING {
                assert_eq!(got.payload, b"between");
                pings += 1;
                got = client.read_frame();
            }
            assert_eq!((got.opcode, got.payload[0]), (BINARY, number as u8), "rate {rate}");
            assert!(got.payload[1..] == noise(60_000)[1..], "rate {rate}: message {number}");
        }
        assert_eq!(pings, 1);
        sending.join().unwrap();
        client.goodbye();
        assert!(app.records.next().clean);
        server.finish();
    }
}

// ---- Messages in parts --------------------------------------------------------------------------

/// Sends each message back while it comes in.
fn streaming() -> (TestServer, App) {
    let _ = env_logger::builder().is_test(true).try_init();
    let (opens, sessions) = heard();
    let (closes, records) = heard();
    let builder = Server::builder()
        .workers(2)
        .tls(tls())
        .bind_tls("127.0.0.1:0")
        .on_open(async move |session: &Session| {
            // The test may be over, and not care.
            let _ = opens.send(session.clone());
        })
        .on_stream(async |session: &Session, mut incoming: Incoming| {
            let mut writer = session.message_writer(incoming.kind());
            while let Some(part) = incoming.next().await {
                writer.write(part?).await?;
            }
            writer.finish().await?;
            // And from a source that does not wait for anybody.
            session.send_from(Kind::Binary, &noise(100_000)[..]).await?;
            Ok::<_, BoxError>(())
        })
        .on_close(record(&closes));
    (serve(builder), App { sessions, records })
}

/// Reads one message; the pongs that come between its fragments are counted.
fn read_parts(client: &mut Secure, pongs: &mut usize) -> (u8, Vec<u8>, usize) {
    let (mut opcode, mut payload, mut frames) = (None, Vec::new(), 0);
    loop {
        let frame = client.read_frame();
        if frame.opcode == PONG {
            *pongs += 1;
            continue;
        }
        assert_eq!(frame.opcode == CONTINUATION, opcode.is_some(), "{}", frame.opcode);
        opcode.get_or_insert(frame.opcode);
        payload.extend(frame.payload);
        frames += 1;
        if frame.fin {
            return (opcode.unwrap(), payload, frames);
        }
    }
}

#[test]
fn a_message_that_is_larger_than_all_buffers_goes_both_ways_in_parts() {
    const LEN: usize = (3 << 20) + 17;
    let (server, app) = streaming();
    for version in BOTH {
        let config = client_with(&[version], None);
        let mut client = Secure::connect(server.addr(), config, "localhost").unwrap();
        client.upgrade();
        let message = noise(LEN);
        // Fragments that are no records, and a ping behind each tenth.
        let pieces: Vec<_> = message.chunks(10_007).collect();
        let frames = pieces.iter().enumerate().flat_map(|(number, piece)| {
            let last = number + 1 == pieces.len();
            let fragment = frame(last, if number == 0 { BINARY } else { CONTINUATION }, piece);
            let ping = (number % 10 == 0 && !last).then(|| frame(true, PING, b"?"));
            [Some(fragment), ping].into_iter().flatten()
        });
        let pings = (0..pieces.len() - 1).step_by(10).len();
        let wire = encrypted(&mut client, frames.collect::<Vec<_>>());
        let sending = send_beside(&client, wire);
        let mut pongs = 0;
        let (opcode, payload, frames) = read_parts(&mut client, &mut pongs);
        assert!(payload == message, "{} bytes", payload.len());
        assert!(opcode == BINARY && frames > LEN / 65_536, "{frames} frames");
        let (_, payload, _) = read_parts(&mut client, &mut pongs);
        assert!(payload == noise(100_000));
        assert_eq!(pongs, pings);
        sending.join().unwrap();
        client.goodbye();
        assert!(app.records.next().clean);
    }
    assert_eq!(server.finish().cut, 0);
}

#[test]
fn a_message_in_parts_that_is_cut_off_is_told_apart_from_one_that_is_given_up() {
    let (server, app) = streaming();
    for (notified, cause) in [(false, Cause::Truncated), (true, Cause::PeerVanished)] {
        let mut client = Secure::open(server.addr());
        client.send(&frame(false, BINARY, &noise(40_000)));
        // The handler is in the middle of it.
        let mut received = 0;
        while received < 20_000 {
            received += client.read_frame().payload.len();
        }
        if notified {
            client.tls.conn.send_close_notify();
            client.tls.flush().unwrap();
        }
        client.tls.sock.shutdown(Shutdown::Write).unwrap();
        let closed = app.records.next();
        assert_eq!(closed.cause, cause, "{closed}");
    }
    server.finish();
}

// ---- The stop -----------------------------------------------------------------------------------

#[test]
fn a_stop_cuts_who_does_not_read_through_tls_and_streams_at_its_deadline() {
    let (builder, app) = app();
    let server = serve(builder.bind_tls("127.0.0.1:0").configure(|config| {
        config.timeouts.stop = Duration::from_millis(300);
        config.limits.outbox_bytes = 8 << 20;
    }));
    let handle = &server.handle;
    let fill = || {
        let session = app.sessions.next();
        while session.try_send(noise(1 << 20)).is_ok() {}
    };
    let tcp = Secure::open(server.addr());
    fill();
    let (stream, unix) = unix_pair();
    handle.serve_tls(stream, None).unwrap();
    let mut unix = Secure::over(unix, client_config(), "localhost").unwrap();
    unix.upgrade();
    fill();
    let (stream, memory) = Memory::pair();
    let alive = Arc::downgrade(&stream.alive);
    handle.serve_tls(stream, None).unwrap();
    let mut memory = Secure::over(Blocking(memory), client_config(), "localhost").unwrap();
    memory.upgrade();
    fill();
    let (stream, plain) = unix_pair();
    handle.serve(stream).unwrap();
    let mut plain = Raw::over(plain.into());
    plain.upgrade();
    fill();
    // No sessions: nothing said, and half of a handshake.
    let (stream, silent) = unix_pair();
    handle.serve_tls(stream, None).unwrap();
    let (stream, mut half) = unix_pair();
    handle.serve_tls(stream, None).unwrap();
    half.write_all(&[22, 3, 1]).unwrap();

    let report = within(handle.stop());
    assert_eq!((report.drained, report.cut), (0, 4), "{report:?}");
    for _ in 0..4 {
        let closed = app.records.next();
        assert_eq!(closed.cause, Cause::Cut, "{closed}");
        assert!(closed.undelivered.bytes > 0, "{closed}");
    }
    assert_eq!(alive.strong_count(), 0, "the stream is dropped");
    // Each of them is told, if only by the end: what TLS has was cut, and says so.
    expect_cut(tcp);
    expect_cut(unix);
    expect_cut(memory);
    plain.read_to_end();
    for mut rest in [silent, half] {
        assert_eq!(rest.read_to_end(&mut Vec::new()).unwrap(), 0);
    }
    server.finish();
}

/// The rest that had been sent, and then an end which TLS does not vouch for.
#[track_caller]
fn expect_cut<S: Read + Write>(mut client: Secure<S>) {
    let error = client.tls.read_to_end(&mut Vec::new()).expect_err("cut");
    let kind = error.kind();
    let known = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
    assert!(known.contains(&kind), "{error}");
}

// ---- New certificates ---------------------------------------------------------------------------

#[test]
fn a_new_certificate_under_a_thousand_sessions_loses_none() {
    const SESSIONS: usize = 1000;
    let scratch = Scratch::new("reload");
    let (chain, key) = (scratch.path("chain.pem"), scratch.path("key.pem"));
    let put = |certificate: &str, private: &str| {
        std::fs::copy(cert(certificate), &chain).unwrap();
        std::fs::copy(cert(private), &key).unwrap();
    };
    put("server.pem", "server.key");
    let (builder, app) = app();
    let builder = builder.tls(Tls::new(&chain, &key).watch(None)).bind_tls("127.0.0.1:0");
    let server = serve(builder.configure(|config| {
        config.limits.sessions = Some(4000);
        // Nobody answers while a thousand are opened, which may take long.
        config.timeouts.ping = None;
    }));
    // Whose certificate is shown is looked at, not whether it fits; and nobody resumes.
    let mut config = client_config();
    config.resumption = rustls::client::Resumption::disabled();
    config.dangerous().set_certificate_verifier(Arc::new(Anything));
    let open = |shown: &str| {
        let mut client = Secure::connect(server.addr(), config.clone(), "localhost").unwrap();
        assert_eq!(client.server_certificate(), der(shown));
        client.upgrade();
        client
    };
    let mut clients: Vec<_> = (0..SESSIONS).map(|_| open("server.pem")).collect();
    // Some are in the middle of a message.
    let message = frame(true, TEXT, b"begun before");
    for client in clients.iter_mut().step_by(3) {
        client.send(&message[..9]);
    }
    put("wildcard.pem", "wildcard-pkcs1.key");
    server.handle.reload_tls().unwrap();
    let mut new = open("wildcard.pem");
    for client in clients.iter_mut().step_by(3) {
        client.send(&message[9..]);
        assert_eq!(client.read_frame().payload, b"begun before");
    }
    for client in &mut clients {
        client.echo("still here");
    }
    new.echo("hello");
    assert_eq!(server.handle.sessions().count(), SESSIONS + 1);
    assert!(app.records.try_next().is_none(), "nobody has gone");
    clients.into_iter().for_each(Secure::goodbye);
    new.goodbye();
    assert_eq!(server.finish().cut, 0);
}
