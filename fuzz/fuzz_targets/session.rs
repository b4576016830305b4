//! A whole server, over connections in memory: any bytes behind a handshake, or instead of one.
//!
//! * Nothing panics, on whichever thread: libfuzzer-sys aborts on every panic, caught or not. A
//!   handler that does not get its session's messages would be seen by what is echoed.
//! * The server answers as the parts of it say that it should: the same 101 or the same refusal, then
//!   the echoes of the messages that the codec reads, in their order.
//! * All that it sends is what a server may send.
//! * It ends each connection. To most inputs the client's end of the stream follows, and then it is at
//!   once; to the first input and every `PATIENT`th it does not, and then the deadlines do it.
//! * No session is left over.
//!
//! Input: a byte of settings, the size of a write (1), the stream or a script of it.
#![no_main]

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coracle::config::Deflate;
use coracle::internals::{
    Accepted, Agreement, Decoder, Deflater, Event, Refused, Scanner, handshake, welcome,
};
use coracle::{MemoryStream, OriginPolicy, Server, ServerHandle, config::Config};
use coracle_fuzz::frames::said_by_server;
use coracle_fuzz::{Input, Outcome, decode, stream};
use libfuzzer_sys::fuzz_target;
use smol::future;
use smol::io::{AsyncReadExt, AsyncWriteExt};

/// One in this many inputs waits for the deadlines: about two seconds, each time.
const PATIENT: usize = 4096;

/// No deadline is longer than 1.6 seconds in all, not even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// With what the handler of each is given: none, shared and dedicated compression.
static SERVERS: LazyLock<[ServerHandle; 3]> = LazyLock::new(|| {
    [0, 1, 2].map(|mode| {
        let builder = Server::builder().config(config(mode));
        let builder = builder
            .on_accept(async |request| Ok(welcome(request)))
            .on_message(async |session, message| session.send(message).await);
        builder.start().expect("the server starts")
    })
});

fn config(mode: usize) -> Config {
    let mut config = Config::default();
    config.workers = Some(1);
    config.origins = OriginPolicy::Any;
    config.deflate = [None, Some(Deflate::shared()), Some(Deflate::dedicated())][mode].clone();
    if let Some(deflate) = &mut config.deflate {
        deflate.threshold = 16;
        deflate.level = 1;
    }
    let timeouts = &mut config.timeouts;
    timeouts.handshake = Duration::from_millis(600);
    timeouts.ping = Some(Duration::from_millis(600));
    timeouts.pong = Duration::from_millis(300);
    timeouts.close = Duration::from_millis(300);
    timeouts.write_stall = Duration::from_millis(600);
    config.limits.message_bytes = 5000;
    config.limits.fragments = 16;
    config.limits.sessions = Some(100);
    config
}

const SHAKE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

const OFFER: &[u8] = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

static RUNS: AtomicUsize = AtomicUsize::new(0);

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let settings = input.byte();
    let chunk = 1 + usize::from(input.byte()) * 16;
    let mode = usize::from(settings >> 4 & 3) % 3;
    let offer: &[u8] = if settings & 2 != 0 { OFFER } else { b"" };
    let head = [SHAKE, offer, b"\r\n"].concat();
    let bytes = match settings & 5 {
        // No handshake but what the input brings.
        0 | 1 => input.0.to_vec(),
        4 => [&head, input.0].concat(),
        _ => {
            let agreement = handshake(&head, &config(mode)).expect("a handshake").agreement;
            let mut deflater = agreement.map(|it| Deflater::new(it.mirrored(), 6));
            [&head[..], &stream::scripted(input.0, deflater.as_mut())].concat()
        }
    };
    let server = &SERVERS[mode];
    let expected = Expected::of(&bytes, &config(mode));
    let hasty = talk(server, &bytes, chunk, Ends::AtOnce);
    expected.check(&hasty, Ends::AtOnce);
    if RUNS.fetch_add(1, Ordering::Relaxed).is_multiple_of(PATIENT) {
        let patient = talk(server, &bytes, chunk, Ends::ByDeadline);
        expected.check(&patient, Ends::ByDeadline);
        let since = Instant::now();
        while server.sessions().count() > 0 {
            assert!(since.elapsed() < PATIENCE, "a session is left over");
            std::thread::yield_now();
        }
    }
});

/// When the client ends its half of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    AtOnce,
    /// Never: it waits for the server to end the connection.
    ByDeadline,
}

/// Sends all and returns all that comes.
fn talk(server: &ServerHandle, bytes: &[u8], chunk: usize, ends: Ends) -> Vec<u8> {
    let stream = connect(server);
    let (mut reader, mut writer) = smol::io::split(stream);
    let mut received = Vec::new();
    let write = async {
        for piece in bytes.chunks(chunk) {
            // The server may have gone.
            if writer.write_all(piece).await.is_err() {
                break;
            }
        }
        if ends == Ends::AtOnce {
            let _ = writer.close().await;
        }
    };
    let read = async { reader.read_to_end(&mut received).await.expect("an end of the stream") };
    let all = async {
        future::zip(write, read).await;
        true
    };
    let patience = async {
        smol::Timer::after(PATIENCE).await;
        false
    };
    assert!(smol::block_on(future::or(all, patience)), "the server does not end the connection");
    received
}

/// The previous connections may still be in their handshake, as far as the server has noticed.
fn connect(server: &ServerHandle) -> MemoryStream {
    let since = Instant::now();
    loop {
        match server.connect() {
            Ok(stream) => return stream,
            Err(error) => assert!(since.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::yield_now();
    }
}

/// What the parts of the server make of the bytes.
enum Expected {
    /// The head is not complete.
    Nothing,
    Refused(Refused),
    Session {
        answer: Vec<u8>,
        agreement: Option<Agreement>,
        outcome: Outcome,
    },
}

impl Expected {
    fn of(bytes: &[u8], config: &Config) -> Self {
        let len = match Scanner::default().scan(bytes, config.limits.head_bytes) {
            Ok(None) => return Self::Nothing,
            Ok(Some(len)) => len,
            Err(refused) => return Self::Refused(refused),
        };
        let (head, input) = bytes.split_at(len);
        match handshake(head, config) {
            Err(refused) => Self::Refused(refused),
            Ok(Accepted { agreement, answer }) => {
                let limits = &config.limits;
                let mut decoder = Decoder::new(limits.message_bytes, limits.fragments, agreement);
                Self::Session { answer, agreement, outcome: decode(&mut decoder, [input]) }
            }
        }
    }

    fn check(&self, received: &[u8], ends: Ends) {
        // A machine that is busy with something else may let a deadline pass at any time.
        let late = received.starts_with(b"HTTP/1.1 408 ");
        match self {
            Self::Nothing if ends == Ends::AtOnce => assert!(received.is_empty() || late),
            Self::Nothing => assert!(late, "the handshake's deadline"),
            Self::Refused(refused) => assert!(
                late || received == refused.answer,
                "{:?} and not {refused:?}",
                String::from_utf8_lossy(received)
            ),
            Self::Session { .. } if late => {}
            Self::Session { answer, agreement, outcome } => {
                let frames = received.strip_prefix(&answer[..]);
                let frames = frames.unwrap_or_else(|| {
                    panic!("{:?}", String::from_utf8_lossy(received));
                });
                check_session(frames, *agreement, outcome, ends);
            }
        }
    }
}

fn check_session(frames: &[u8], agreement: Option<Agreement>, outcome: &Outcome, ends: Ends) {
    let said = said_by_server(frames, agreement);
    let mut sent = outcome.events.iter().filter_map(|event| match event {
        Event::Message(message) => Some(message),
        _ => None,
    });
    for echo in &said.messages {
        assert_eq!(Some(echo), sent.next(), "the next echo");
    }
    let pings = |payload: &Vec<u8>| {
        let same = |event: &Event| matches!(event, Event::Ping(ping) if ping[..] == payload[..]);
        outcome.events.iter().any(same)
    };
    assert!(said.pongs.iter().all(pings), "a pong answers a ping");
    if ends == Ends::AtOnce {
        // A client that is gone is told no more.
        return;
    }
    assert!(said.whole, "no frame is cut");
    let (code, reason) = said.close.expect("a close frame");
    let expected = match (&outcome.violation, outcome.events.last()) {
        (Some(violation), _) => violation.code,
        (None, Some(Event::Close(close))) => close.as_ref().map_or(1005, |close| close.0),
        // It answers no pings.
        (None, _) => 1001,
    };
    assert!(code == expected || code == 1001, "{code} {reason:?} and not {expected}");
    if code == expected {
        assert_eq!(sent.next(), None, "everything is echoed");
    }
}
