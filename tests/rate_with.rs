//! Rates of sessions together with everything that stands between them and their peer: TLS, streams of the
//! application, compression, messages in parts.

#[path = "support/pipe.rs"]
mod pipe;
#[path = "support/rates.rs"]
mod rates;
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::num::NonZero;
use std::pin::pin;
use std::time::{Duration, Instant};

use coracle::config::{Deflate, Tls};
use coracle::{
    Allowance, BoxError, Builder, BytesPerSecond, Cause, CloseCode, Closed, Handler, Incoming,
    Kind, Phase, RatePolicy, Rates, SendError, Server, Session, Side, Unlimited,
};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use futures_lite::future;
use pipe::*;
use rates::*;
use secure::*;
use support::*;

/// Lengths about those of headers, records and our buffers.
const LENGTHS: [usize; 8] = [0, 1, 125, 126, 1000, 16_384, 30_000, 60_000];

/// A peer, whatever is between it and the server.
trait Peer {
    fn send(&mut self, bytes: &[u8]);
    fn read_frame(&mut self) -> Frame;
    /// Reads until the server closes; says goodbye or does not.
    fn read_rest(&mut self) -> Vec<u8>;

    fn send_frame(&mut self, opcode: u8, payload: &[u8]) {
        self.send(&frame(true, opcode, payload));
    }

    #[track_caller]
    fn expect_close(&mut self, code: u16) {
        assert_eq!(self.read_frame().close().0, code);
        self.send_frame(CLOSE, &code.to_be_bytes());
        assert_eq!(self.read_rest(), b"");
    }

    #[track_caller]
    fn goodbye(&mut self) {
        self.send_frame(CLOSE, &1000_u16.to_be_bytes());
        assert_eq!(self.read_frame().close().0, 1000);
        assert_eq!(self.read_rest(), b"");
    }
}

impl Peer for Raw {
    fn send(&mut self, bytes: &[u8]) {
        self.send(bytes);
    }

    fn read_frame(&mut self) -> Frame {
        self.read_frame()
    }

    fn read_rest(&mut self) -> Vec<u8> {
        self.read_to_end()
    }
}

impl Peer for Secure {
    fn send(&mut self, bytes: &[u8]) {
        self.send(bytes);
    }

    fn read_frame(&mut self) -> Frame {
        self.read_frame()
    }

    fn read_rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.tls.read_to_end(&mut rest) {
            Ok(_) => {}
            // A session that is aborted says nothing at all.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{error} after {} bytes", rest.len()),
        }
        rest
    }
}

/// How a peer comes to the server.
#[derive(Clone, Copy, Debug)]
enum By {
    Tls,
    /// A stream that the application serves.
    Stream,
}

/// A server with TLS whose sessions and records the test has.
struct Served {
    server: TestServer,
    sessions: Heard<Session>,
    records: Heard<Closed>,
}

impl Served {
    fn start(rates: impl Fn(&Session) -> Rates + Send + Sync + 'static) -> Self {
        let (opens, sessions) = heard();
        let (closes, records) = heard();
        let server = start(
            Server::builder()
                .tls(Tls::new(cert("server.pem"), cert("server.key")))
                .bind_tls("127.0.0.1:0")
                .rates(rates)
                .on_open(opened(&opens))
                .on_message(async |session, message| session.send(message).await)
                .on_close(record(&closes)),
        );
        Self { server, sessions, records }
    }

    fn meet(&self, by: By) -> (Box<dyn Peer>, Session) {
        let peer: Box<dyn Peer> = match by {
            By::Tls => Box::new(Secure::open(self.server.addr())),
            By::Stream => Box::new(serve(&self.server)),
        };
        (peer, self.sessions.next())
    }
}

/// A client whose connection the application has accepted.
fn serve(server: &TestServer) -> Raw {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = Raw::connect(listener.local_addr().unwrap());
    let (accepted, _) = listener.accept().unwrap();
    let accepted = smol::Async::<TcpStream>::new(accepted).unwrap();
    server.handle.serve(accepted).unwrap();
    client.upgrade();
    client
}

/// Lets through so many bytes at a time, always, and is told of no more.
struct Narrow(usize);

impl RatePolicy for Narrow {
    fn available(&mut self, _: Instant) -> Allowance {
        NonZero::new(self.0).map(Allowance::Bytes).unwrap()
    }

    fn transferred(&mut self, bytes: usize, _: Instant) {
        assert!(bytes <= self.0, "{bytes} of {}", self.0);
    }
}

/// Bytes of which no two neighbours are alike, in no short period.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn everything_arrives_however_little_may_be_read_at_a_time() {
    for by in [By::Tls, By::Stream] {
        for most in [1, 2, 100, 5000] {
            let served = Served::start(move |_| Rates::new(Narrow(most), AtMost(1)));
            let (mut peer, session) = served.meet(by);
            let mut bytes = 0;
            for len in LENGTHS {
                let sent = frame(true, BINARY, &noise(len));
                bytes += sent.len() as u64;
                peer.send(&sent);
                assert!(peer.read_frame().payload == noise(len), "{by:?}, {most}: {len}");
            }
            assert_eq!(session.traffic().bytes_in, bytes, "of frames, not of records");
            peer.goodbye();
            let closed = served.records.next();
            assert!(closed.clean, "{by:?}, {most}: {closed}");
            assert_eq!(served.server.finish().panics, 0);
        }
    }
}

#[test]
fn what_waits_for_its_rate_goes_on_when_it_may() {
    for by in [By::Tls, By::Stream] {
        let (read, write) = (Gate::default(), Gate::default());
        let gates = (read.clone(), write.clone());
        let served = Served::start(move |_| Rates::new(gates.0.clone(), gates.1.clone()));
        let (mut peer, session) = served.meet(by);
        // More than one record, and more than is read at once.
        for _ in 0..5 {
            peer.send_frame(BINARY, &noise(60_000));
        }
        session.try_send("news").unwrap();
        read.await_asked();
        write.await_asked();
        assert_eq!(session.traffic().messages_in, 0, "{by:?}");
        assert_eq!(session.traffic().bytes_out, 0, "{by:?}");
        write.open();
        assert_eq!(peer.read_frame().payload, b"news", "{by:?}");
        read.open();
        for _ in 0..5 {
            assert!(peer.read_frame().payload == noise(60_000), "{by:?}");
        }
        peer.goodbye();
        assert!(served.records.next().clean);
        assert_eq!(read.transferred() as u64, session.traffic().bytes_in);
        served.server.finish();
    }
}

#[test]
fn no_end_waits_for_rates_that_never_give() {
    for by in [By::Tls, By::Stream] {
        let (read, write) = (Gate::shut_for_good(), Gate::shut_for_good());
        let gates = (read.clone(), write.clone());
        let served = Served::start(move |_| Rates::new(gates.0.clone(), gates.1.clone()));
        let held = || {
            let (mut peer, session) = served.meet(by);
            let before = (read.asked(), write.asked());
            session.try_send("queued").unwrap();
            peer.send_frame(BINARY, &noise(60_000));
            read.await_asked_after(before.0);
            write.await_asked_after(before.1);
            (peer, session)
        };
        let (mut peer, session) = held();
        session.close(CloseCode::NORMAL, "enough");
        assert_eq!(peer.read_frame().payload, b"queued");
        peer.expect_close(1000);
        let closed = served.records.next();
        assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1000));
        assert!(closed.clean, "{by:?}: {closed}");

        let (mut peer, session) = held();
        session.abort();
        assert_eq!(peer.read_rest(), b"");
        assert_eq!(served.records.next().cause, Cause::Aborted);

        let (mut peer, _session) = held();
        served.server.handle.request_stop();
        assert_eq!(peer.read_frame().payload, b"queued");
        peer.expect_close(1001);
        let report = served.server.finish();
        assert_eq!((report.drained, report.cut), (1, 0), "{by:?}");
    }
}

/// A client of one compressed connection.
struct Compressed {
    raw: Raw,
    deflater: Compress,
    inflater: Decompress,
}

/// What is left out at the end of a compressed message (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];

impl Compressed {
    #[track_caller]
    fn connect(server: &TestServer) -> Self {
        let mut raw = server.raw();
        let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
        raw.send(handshake_with("/", offer).as_bytes());
        let head = raw.read_head();
        assert!(head.contains("\r\nSec-WebSocket-Extensions: permessage-deflate"), "{head}");
        assert!(!head.contains("no_context_takeover"), "{head}");
        let deflater = Compress::new(Compression::new(6), false);
        Self { raw, deflater, inflater: Decompress::new(false) }
    }

    fn send(&mut self, message: &[u8]) {
        let mut payload = Vec::with_capacity(2 * message.len() + 1024);
        self.deflater.compress_vec(message, &mut payload, FlushCompress::Sync).unwrap();
        payload.truncate(payload.strip_suffix(&TAIL).expect("a flushed block").len());
        let mut bytes = frame(true, BINARY, &payload);
        bytes[0] |= 0x40;
        self.raw.send(&bytes);
    }

    /// A message of at most so many bytes.
    #[track_caller]
    fn read(&mut self, most: usize) -> Vec<u8> {
        let (compressed, frame) = self.raw.try_read_either().expect("a frame");
        if !compressed {
            return frame.payload;
        }
        let payload = [&frame.payload[..], &TAIL].concat();
        let mut message = Vec::with_capacity(most + 1);
        self.inflater.decompress_vec(&payload, &mut message, FlushDecompress::Sync).unwrap();
        message
    }
}

#[test]
fn compressed_messages_keep_to_the_rates_and_count_as_they_are_sent() {
    for most in [1, 3, 1000] {
        let gate = Gate::default();
        let policy = gate.clone();
        let watched = with_rates(
            move |_| Rates::new(Narrow(most), policy.clone()),
            |config| config.deflate = Some(Deflate::dedicated()),
        );
        let mut client = Compressed::connect(&watched.server);
        let session = watched.sessions.next();
        let messages = [300, 5000, 30_000, 100].map(|len| b"again and ".repeat(len / 10));
        for message in &messages {
            client.send(message);
        }
        gate.await_asked();
        assert_eq!(session.traffic().bytes_out, 0);
        gate.open();
        for message in &messages {
            assert!(client.read(message.len()) == *message, "{most}: {}", message.len());
        }
        client.raw.goodbye();
        assert!(watched.records.next().clean);
        let traffic = session.traffic();
        assert_eq!(gate.transferred() as u64, traffic.bytes_out);
        assert!(traffic.bytes_in < 5000 && traffic.bytes_out < 5000, "compressed: {traffic:?}");
        assert_eq!(watched.server.finish().panics, 0);
    }
}

/// A server that takes messages in parts, says when one begins, and tells the peer how long it was.
fn measuring() -> (Builder<impl Handler>, Heard<Kind>) {
    let (begins, begun) = heard();
    let builder = Server::builder().on_stream(
        async move |session: &Session, mut incoming: Incoming| -> Result<(), BoxError> {
            begins.send(incoming.kind())?;
            let mut len = 0;
            while let Some(part) = incoming.next().await {
                len += part?.len();
            }
            session.send(len.to_string()).await?;
            Ok(())
        },
    );
    (builder, begun)
}

#[test]
fn messages_in_parts_arrive_however_little_may_be_read_at_a_time() {
    let bucket = || BytesPerSecond::new(4_000_000).with_burst(100_000);
    for most in [1, 3, 1000] {
        let (builder, _begun) = measuring();
        let server = start(builder.rates(move |_| Rates::new(Narrow(most), bucket())));
        let mut client = server.client();
        for len in LENGTHS {
            client.send_frame(BINARY, &noise(len));
            assert_eq!(client.read_frame().payload, len.to_string().as_bytes(), "{most}");
        }
        client.goodbye();
        assert_eq!(server.finish().panics, 0);
    }
}

#[test]
fn a_message_in_parts_waits_in_its_middle_and_goes_on() {
    let gate = Gate::default();
    let policy = gate.clone();
    let (builder, begun) = measuring();
    let server = start(builder.rates(move |_| Rates::new(policy.clone(), Unlimited)));
    let mut client = Pipe::raw(&server);
    // The pipe takes it at once: half of it is read with the request.
    let message = frame(true, BINARY, &noise(2000));
    client.send(&[handshake("/").as_bytes(), &message[..1000]].concat());
    client.read_head();
    assert_eq!(begun.next(), Kind::Binary);
    client.send(&message[1000..]);
    gate.await_asked();
    assert_eq!(gate.transferred(), 1000);
    gate.open();
    assert_eq!(client.read_frame().payload, b"2000");
    client.goodbye();
    server.finish();
}

#[test]
fn fragments_wait_for_the_rate_and_control_frames_do_not() {
    let gate = Gate::default();
    let policy = gate.clone();
    let watched = with_rates(move |_| Rates::new(Unlimited, policy.clone()), |_| {});
    let (mut client, session) = watched.client();
    let mut writer = session.message_writer(Kind::Binary);
    within(writer.write(noise(100_000))).unwrap();
    session.try_send("behind").unwrap();
    gate.await_asked();
    client.send_frame(PING, b"between");
    assert_eq!(client.read_frame().opcode, PONG);
    assert_eq!(session.traffic().messages_out, 0);
    gate.open();
    let mut message = Vec::new();
    while message.len() < 100_000 {
        let fragment = client.read_frame();
        assert_eq!(fragment.opcode, if message.is_empty() { BINARY } else { CONTINUATION });
        assert!(!fragment.fin);
        message.extend(fragment.payload);
    }
    assert!(message == noise(100_000));
    within(writer.finish()).unwrap();
    assert!(client.read_frame().fin);
    assert_eq!(client.read_frame().payload, b"behind");
    client.goodbye();
    assert!(watched.records.next().clean);
    watched.server.finish();
}

/// Lets so many bytes through, and then nothing more.
struct Only(usize);

impl RatePolicy for Only {
    fn available(&mut self, now: Instant) -> Allowance {
        NonZero::new(self.0).map_or(Allowance::Until(now + LATER), Allowance::Bytes)
    }

    fn transferred(&mut self, bytes: usize, _: Instant) {
        self.0 = self.0.saturating_sub(bytes);
    }
}

/// Shorter than the tests below wait.
const TIMEOUT: Duration = Duration::from_millis(200);

#[test]
fn a_writer_is_to_blame_once_the_rate_has_let_out_all_that_it_has_written() {
    let watched =
        with_rates(|_| Rates::new(Unlimited, Only(10)), |config| config.timeouts.writer = TIMEOUT);
    let (mut client, session) = watched.client();
    let mut writer = session.message_writer(Kind::Binary);
    within(writer.write(&b"a part, and no more"[..])).unwrap();
    session.try_send("behind").unwrap();
    assert_eq!(client.read_frame().payload, b"a part, and no more");
    assert_eq!(client.read_close().0, 1011);
    client.send_frame(CLOSE, &1011_u16.to_be_bytes());
    assert_eq!(watched.records.next().cause, Cause::WriterStalled);
    watched.server.finish();
}

#[test]
fn a_writer_is_not_to_blame_for_what_the_rate_keeps_back() {
    let watched =
        with_rates(|_| Rates::new(Unlimited, Only(1)), |config| config.timeouts.writer = TIMEOUT);
    let (mut client, session) = watched.client();
    session.try_send("all that may go").unwrap();
    assert_eq!(client.read_frame().payload, b"all that may go");
    let mut writer = session.message_writer(Kind::Binary);
    within(writer.write(&b"a part"[..])).unwrap();
    session.try_send("behind").unwrap();
    within(smol::Timer::after(5 * TIMEOUT));
    assert!(session.is_open(), "nobody has had anything to wait for but the rate");
    session.abort();
    assert_eq!(watched.records.next().cause, Cause::Aborted);
    watched.server.finish();
}

#[test]
fn who_waits_for_a_rate_that_never_gives_is_freed_by_the_end() {
    let gate = Gate::shut_for_good();
    let policy = gate.clone();
    let watched = with_rates(
        move |_| Rates::new(Unlimited, policy.clone()),
        |config| config.limits.outbox_messages = 1,
    );
    for abort in [false, true] {
        let (mut client, session) = watched.client();
        let before = gate.asked();
        session.try_send("the first").unwrap();
        gate.await_asked_after(before);
        within(async {
            let mut sending = pin!(session.send("the second"));
            assert!(future::poll_once(sending.as_mut()).await.is_none(), "there is no room");
            if abort {
                session.abort();
            } else {
                session.close(CloseCode::NORMAL, "");
            }
            match sending.await {
                Err(SendError::Closed(message)) => assert_eq!(message.as_bytes(), b"the second"),
                other => panic!("{other:?}"),
            }
        });
        if abort {
            assert_eq!(client.read_to_end(), b"");
        } else {
            assert_eq!(client.read_frame().payload, b"the first");
            client.expect_close(1000);
        }
        watched.records.next();
    }
    watched.server.finish();
}
