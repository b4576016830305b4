//! How many messages and bytes a session takes from its peer: what waits, what ends it, what counts. The
//! arithmetic is tested beside it, with a clock of its own.

#[path = "support/pipe.rs"]
mod pipe;
mod support;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use coracle::config::{Config, Inbound, Rate};
use coracle::{
    BoxError, Cause, CloseCode, Closed, Error, Incoming, Message, Phase, Rates, Server, Session,
    Side, Unlimited,
};
use pipe::*;
use support::*;

/// What a test that waits for the rate may take.
const SHORT: Duration = Duration::from_millis(200);

/// One byte per second: whoever has sent a long message waits for longer than any test.
fn trickle() -> Inbound {
    Inbound::pause().with_bytes(Rate::per_second(1))
}

/// Longer than what a `trickle` makes up for in an hour.
const LONG: usize = 10_000;

fn messages(rate: Rate) -> Inbound {
    Inbound::pause().with_messages(rate)
}

fn with_inbound(inbound: Inbound, more: impl FnOnce(&mut Config)) -> Watched {
    Watched::start(|config| {
        config.inbound = Some(inbound);
        more(config);
    })
}

fn pauses(watched: &Watched) -> u64 {
    watched.server.handle.sessions().excesses().pauses
}

/// A session that waits for the rest of the test, having sent back a long message, with something to be
/// read both in its buffer and in the kernel.
#[track_caller]
fn pause(watched: &Watched) -> (Raw, Session) {
    let (mut client, session) = watched.client();
    let before = pauses(watched);
    let waits = frame(true, TEXT, b"waits");
    client.send(&[frame(true, BINARY, &[7; LONG]), waits.clone()].concat());
    assert_eq!(client.read_frame().payload, [7; LONG]);
    eventually("it waits for its rate", || pauses(watched) > before);
    client.send(&waits);
    assert_eq!(session.traffic().messages_in, 1);
    (client, session)
}

/// A client that says so much with its request: no timer of the session can be over before that.
#[track_caller]
fn says_at_once(watched: &Watched, frames: &[u8]) -> (Raw, Session) {
    let mut client = watched.server.raw();
    client.send(&[handshake("/").as_bytes(), frames].concat());
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    (client, watched.sessions.next())
}

/// A server that says when it has been given what.
struct Timed {
    server: TestServer,
    given: Heard<(Instant, Message)>,
}

impl Timed {
    fn start(inbound: Inbound) -> Self {
        let (sender, given) = heard();
        let sender = Mutex::new(sender);
        let builder = Server::builder().inbound(inbound).on_message(async move |_, message| {
            // The test may be over, and not care.
            let _ = sender.lock().unwrap().send((Instant::now(), message));
        });
        Self { server: start(builder), given }
    }
}

#[test]
fn a_burst_comes_at_once_and_then_no_more_than_the_rate() {
    const BURST: u32 = 5;
    const INTERVAL: Duration = Duration::from_millis(50);
    let timed = Timed::start(messages(Rate::per_second(20).with_burst(BURST.into())));
    let mut client = timed.server.client();
    let all: Vec<_> = (0..12_u8).flat_map(|number| frame(true, BINARY, &[number])).collect();
    let sent = Instant::now();
    client.send(&all);
    for number in 0..12_u8 {
        let (given, message) = timed.given.next();
        assert_eq!(message.as_bytes(), [number]);
        // Not before so much has come in; the server's clock counts whole microseconds.
        let earliest = INTERVAL * (u32::from(number) + 1).saturating_sub(BURST);
        let took = given - sent + Duration::from_micros(1);
        assert!(took >= earliest, "{number}: after {took:?}");
    }
    let excesses = timed.server.handle.sessions().excesses();
    assert!(excesses.pauses > 0 && excesses.closes == 0, "{excesses:?}");
    client.goodbye();
    timed.server.finish();
}

#[test]
fn just_the_burst_comes_before_the_session_waits() {
    const BURST: u64 = 7;
    let watched = with_inbound(messages(Rate::per_second(1).with_burst(BURST)), |_| {});
    for client in [true, false] {
        let before = pauses(&watched);
        let begun = Instant::now();
        let all = frame(true, TEXT, b"x").repeat(20);
        // In one segment or in many, over a socket or in memory.
        let (_raw, _pipe, session);
        if client {
            let (mut raw, it) = watched.client();
            all.chunks(3).for_each(|piece| raw.send(piece));
            (_raw, session) = (Some(raw), it);
        } else {
            let (mut pipe, it) = watched.pipe();
            pipe.send(&all);
            (_pipe, session) = (Some(pipe), it);
        }
        eventually("it waits for its rate", || pauses(&watched) > before);
        let given = session.traffic().messages_in;
        let come = begun.elapsed().as_secs();
        assert!((BURST..=BURST + come).contains(&given), "{given} in {come} s");
        session.abort();
        watched.records.next();
    }
    watched.server.finish();
}

#[test]
fn bytes_are_let_in_while_there_are_any_and_what_was_too_much_is_made_up_for() {
    const RATE: u64 = 100_000;
    const BURST: u64 = 10_000;
    let inbound = Inbound::pause().with_bytes(Rate::per_second(RATE).with_burst(BURST));
    let timed = Timed::start(inbound);
    let mut client = timed.server.client();
    let lengths = [9_999, 0, 1, 30_000, 5_000, 1, 2_000];
    let sent = Instant::now();
    let all: Vec<_> = lengths.iter().flat_map(|len| frame(true, BINARY, &vec![7; *len])).collect();
    client.send(&all);
    let mut before = 0_u64;
    for len in lengths {
        let (given, message) = timed.given.next();
        assert_eq!(message.len(), len);
        // There was something left for it, one byte at least.
        let come = (before + 1).saturating_sub(BURST);
        let took = given - sent + Duration::from_micros(1);
        assert!(took >= Duration::from_nanos(come * 1_000_000_000 / RATE), "{len}: {took:?}");
        before += len as u64;
    }
    client.goodbye();
    timed.server.finish();
}

#[test]
fn many_small_messages_of_one_segment_all_come_in_order() {
    const COUNT: u32 = 3000;
    let rate = Rate::per_second(20_000).with_burst(300);
    let watched = with_inbound(messages(rate), |config| config.workers = Some(1));
    let (mut client, session) = watched.client();
    let begun = Instant::now();
    let mut sender = client.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let all: Vec<_> =
            (0..COUNT).flat_map(|number| frame(true, BINARY, &[number as u8])).collect();
        std::io::Write::write_all(&mut sender, &all).unwrap();
    });
    for number in 0..COUNT {
        assert_eq!(client.read_frame().payload, [number as u8], "{number}");
    }
    let least = Duration::from_secs(u64::from(COUNT) - 300) / 20_000;
    assert!(begun.elapsed() + Duration::from_micros(1) >= least);
    sending.join().unwrap();
    assert!(pauses(&watched) > 0);
    assert_eq!(session.traffic().messages_in, u64::from(COUNT));
    client.goodbye();
    assert!(watched.records.next().clean);
    watched.server.finish();
}

#[test]
fn who_keeps_to_the_rate_never_waits() {
    let generous = Rate::per_second(1_000_000);
    let inbound = Inbound::close().with_messages(generous).with_bytes(generous);
    let watched = with_inbound(inbound, |_| {});
    let (mut client, _session) = watched.client();
    for len in [0, 1, 125, 126, 5000, 60_000] {
        client.echo(&"x".repeat(len));
    }
    // In fragments, with a ping between them.
    let parts = [
        (false, TEXT, "in "),
        (true, PING, "?"),
        (false, CONTINUATION, "three "),
        (true, CONTINUATION, "parts"),
    ];
    client.send(&parts.map(|(fin, opcode, text)| frame(fin, opcode, text.as_bytes())).concat());
    assert_eq!(client.read_frame().opcode, PONG);
    assert_eq!(client.read_frame().payload, b"in three parts");
    client.goodbye();
    assert!(watched.records.next().clean);
    assert_eq!(watched.server.handle.sessions().excesses(), Default::default());
    watched.server.finish();
}

#[test]
fn what_is_too_much_ends_the_session_after_what_came_before() {
    let rate = Rate::per_second(1).with_burst(3);
    let cases = [
        (
            Inbound::close().with_messages(rate),
            "too many messages: 1 per second, at most 3 at once",
        ),
        (Inbound::close().with_bytes(rate), "too many bytes: 1 per second, at most 3 at once"),
    ];
    for (inbound, reason) in cases {
        let watched = with_inbound(inbound, |_| {});
        let (mut client, session) = watched.client();
        let texts: Vec<_> = "abc0123456789".chars().map(String::from).collect();
        client.send(
            &texts.iter().flat_map(|text| frame(true, TEXT, text.as_bytes())).collect::<Vec<_>>(),
        );
        let mut given = String::new();
        let close = loop {
            let frame = client.read_frame();
            if frame.opcode == CLOSE {
                break frame;
            }
            given.push_str(std::str::from_utf8(&frame.payload).unwrap());
        };
        // One more for each second that this machine has taken for it.
        assert!(given.starts_with("abc") && "abc0123456789".starts_with(&given), "{given}");
        assert_eq!(close.close(), (1008, reason.to_owned()));
        client.send_frame(CLOSE, &1008_u16.to_be_bytes());
        assert_eq!(client.read_to_end(), b"");
        let closed = watched.records.next();
        assert_closed(&closed, Side::Peer, Cause::RateExceeded, Phase::Closing, Some(1008));
        assert!(closed.clean && closed.reason.as_str() == reason, "{closed}");
        assert!(closed.to_string().contains("(inbound rate exceeded)"), "{closed}");
        assert_eq!(session.traffic().messages_in, given.len() as u64);
        let excesses = watched.server.handle.sessions().excesses();
        assert_eq!((excesses.pauses, excesses.closes), (0, 1));
        watched.server.finish();
    }
}

#[test]
fn a_message_longer_than_the_burst_ends_the_session_at_once() {
    let inbound = Inbound::close().with_bytes(Rate::per_second(100));
    let watched = with_inbound(inbound, |_| {});
    let (mut client, _session) = watched.client();
    client.send_frame(BINARY, &[7; 101]);
    client.expect_close(1008);
    assert_eq!(watched.records.next().cause, Cause::RateExceeded);
    let (mut client, _session) = watched.client();
    client.send_frame(BINARY, &[7; 100]);
    assert_eq!(client.read_frame().payload, [7; 100]);
    // In fragments it is as long; it counts when it is whole.
    let halves = [frame(false, BINARY, &[7; 60]), frame(true, CONTINUATION, &[7; 60])];
    client.send(&halves.concat());
    client.expect_close(1008);
    watched.server.finish();
}

/// Pings in every shape, each of which is answered.
#[track_caller]
fn expect_pongs(client: &mut Raw) {
    for number in 0..100_u8 {
        client.send_frame(PONG, b"unasked");
        client.send_frame(PING, &[number; 125]);
        assert_eq!(client.read_frame().payload, [number; 125]);
    }
    for byte in frame(true, PING, b"slowly") {
        client.send(&[byte]);
    }
    assert_eq!(client.read_frame().payload, b"slowly");
    // More than are answered at a time, and than are handled in a turn.
    client.send(&frame(true, PING, b"many").repeat(2000));
    for _ in 0..2000 {
        assert_eq!(client.read_frame().payload, b"many");
    }
}

#[test]
fn control_frames_do_not_count_and_wait_for_nothing_but_a_message() {
    let rate = Rate::per_second(1);
    for inbound in [Inbound::close().with_messages(rate).with_bytes(rate), trickle()] {
        let watched = with_inbound(inbound, |_| {});
        let (mut client, _session) = watched.client();
        expect_pongs(&mut client);
        client.echo("x");
        // Nothing is left now.
        expect_pongs(&mut client);
        client.goodbye();
        assert!(watched.records.next().clean);
        assert_eq!(watched.server.handle.sessions().excesses(), Default::default());
        watched.server.finish();
    }
}

#[test]
fn what_is_behind_a_message_that_waits_waits_with_it() {
    let watched = with_inbound(Inbound::pause().with_bytes(Rate::per_second(10_000)), |_| {});
    let (mut client, _session) = watched.client();
    let begun = Instant::now();
    client.send_frame(BINARY, &[7; 14_000]);
    client.send_frame(TEXT, b"waits");
    client.send_frame(PING, b"behind");
    client.send_frame(CLOSE, &1000_u16.to_be_bytes());
    assert_eq!(client.read_frame().payload, [7; 14_000]);
    // The pong may overtake what is queued.
    let (one, other) = (client.read_frame(), client.read_frame());
    assert!(begun.elapsed() + Duration::from_micros(1) >= Duration::from_millis(400));
    let (pong, echo) = if one.opcode == PONG { (one, other) } else { (other, one) };
    assert_eq!((&pong.payload[..], &echo.payload[..]), (&b"behind"[..], &b"waits"[..]));
    assert_eq!(client.read_close().0, 1000);
    assert_eq!(client.read_to_end(), b"");
    let closed = watched.records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerClosed, Phase::Closing, Some(1000));
    assert!(closed.clean, "{closed}");
    watched.server.finish();
}

#[test]
fn what_is_sent_does_not_wait() {
    let watched = with_inbound(trickle(), |_| {});
    let (mut client, session) = pause(&watched);
    for number in 0..20_u8 {
        session.try_send(vec![number]).unwrap();
        assert_eq!(client.read_frame().payload, [number]);
        assert!(session.ping(&[number]));
        assert_eq!(client.read_frame().payload, [number]);
    }
    // More than the kernel takes at once.
    session.try_send(vec![7; 1_000_000]).unwrap();
    assert_eq!(client.read_frame().payload, vec![7; 1_000_000]);
    assert_eq!((session.traffic().messages_in, pauses(&watched)), (1, 1), "it still waits");
    session.abort();
    watched.records.next();
    watched.server.finish();
}

#[test]
fn what_waits_for_the_rate_is_not_the_peers_silence() {
    // A second and a half, several times what a peer may be silent.
    let inbound = Inbound::pause().with_bytes(Rate::per_second(10_000));
    let watched = with_inbound(inbound, |config| {
        config.timeouts.ping = Some(SHORT);
        config.timeouts.pong = SHORT;
        config.timeouts.idle = Some(2 * SHORT);
        config.timeouts.write_stall = SHORT;
    });
    let begun = Instant::now();
    let said = [
        frame(true, BINARY, &[7; 25_000]),
        frame(true, TEXT, b"said in time"),
        frame(true, CLOSE, &1000_u16.to_be_bytes()),
    ];
    let (mut client, session) = says_at_once(&watched, &said.concat());
    assert_eq!(client.read_frame().payload, [7; 25_000]);
    let echo = client.read_frame();
    assert_eq!((echo.opcode, &echo.payload[..]), (TEXT, &b"said in time"[..]));
    assert!(begun.elapsed() > 5 * SHORT, "it has waited for long");
    assert_eq!(client.read_close().0, 1000);
    assert_eq!(client.read_to_end(), b"");
    let closed = watched.records.next();
    assert_closed(&closed, Side::Peer, Cause::PeerClosed, Phase::Closing, Some(1000));
    assert!(closed.clean, "{closed}");
    assert_eq!(session.traffic().messages_in, 2);
    watched.server.finish();
}

#[test]
fn who_has_nothing_more_to_say_waits_for_no_rate() {
    // However long there is nothing in the bucket: a peer that has vanished is noticed.
    let timeouts: [fn(&mut Config); 2] = [
        |config| config.timeouts.idle = Some(SHORT),
        |config| {
            config.timeouts.ping = Some(SHORT);
            config.timeouts.pong = SHORT;
        },
    ];
    for (timeout, cause) in timeouts.into_iter().zip([Cause::IdleTimeout, Cause::PongTimeout]) {
        let watched = with_inbound(trickle(), |config| {
            timeout(config);
            config.timeouts.close = SHORT;
        });
        let long = frame(true, BINARY, &[7; LONG]);
        let (mut client, _session) = says_at_once(&watched, &long);
        assert_eq!(client.read_frame().payload, [7; LONG]);
        assert_eq!(watched.records.next().cause, cause);
        assert_eq!(pauses(&watched), 0);
        watched.server.finish();
    }
}

#[test]
fn no_end_waits_for_the_rate() {
    let watched = with_inbound(trickle(), |_| {});
    let (mut client, session) = pause(&watched);
    session.try_send("queued").unwrap();
    session.close(CloseCode::NORMAL, "enough");
    assert_eq!(client.read_frame().payload, b"queued");
    // The client's answer is behind what has waited.
    assert_eq!(client.expect_close(1000), "enough");
    let closed = watched.records.next();
    assert_closed(&closed, Side::Server, Cause::Requested, Phase::Closing, Some(1000));
    assert!(closed.clean, "{closed}");
    assert_eq!(session.traffic().messages_in, 1, "what waits is not delivered any more");

    let (mut client, session) = pause(&watched);
    session.abort();
    assert_eq!(client.read_to_end(), b"");
    assert_eq!(watched.records.next().cause, Cause::Aborted);

    let (mut client, _session) = pause(&watched);
    watched.server.handle.request_stop();
    client.expect_close(1001);
    let closed = watched.records.next();
    assert!(closed.clean && closed.cause == Cause::Stopping, "{closed}");
    let report = watched.server.finish();
    assert_eq!((report.drained, report.cut), (1, 0));
}

#[test]
fn an_old_session_ends_while_it_waits() {
    let watched = with_inbound(trickle(), |config| {
        config.timeouts.lifetime = Some(10 * SHORT);
        config.timeouts.lifetime_jitter = Some(Duration::ZERO);
    });
    let (mut client, _session) = pause(&watched);
    client.expect_close(1001);
    assert_eq!(watched.records.next().cause, Cause::LifetimeReached);
    watched.server.finish();
}

#[test]
fn a_session_that_waits_delays_no_other() {
    let watched = with_inbound(trickle(), |config| config.workers = Some(1));
    let paused: Vec<_> = (0..3).map(|_| pause(&watched)).collect();
    let (mut client, _session) = watched.client();
    for number in 0..100_u8 {
        client.send_frame(PING, &[number]);
        assert_eq!(client.read_frame().payload, [number]);
    }
    client.echo("x");
    client.goodbye();
    assert!(watched.records.next().clean);
    for (_client, session) in &paused {
        assert_eq!(session.traffic().messages_in, 1);
        session.abort();
    }
    watched.server.finish();
}

#[test]
fn what_comes_with_the_request_counts() {
    let rate = Rate::per_second(1).with_burst(2);
    let together = [handshake("/").as_bytes(), &frame(true, TEXT, b"early").repeat(9)].concat();
    let watched = with_inbound(Inbound::close().with_messages(rate), |_| {});
    let mut client = Pipe::raw(&watched.server);
    client.send(&together);
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    for _ in 0..2 {
        assert_eq!(client.read_frame().payload, b"early");
    }
    let (_, close) = until_close(&mut client);
    assert_eq!(close.close().0, 1008);
    assert_eq!(watched.records.next().cause, Cause::RateExceeded);
    watched.server.finish();
}

/// Reads what comes before the close frame, and answers that.
#[track_caller]
fn until_close(client: &mut Pipe) -> (usize, Frame) {
    let mut before = 0;
    loop {
        let frame = client.read_frame();
        if frame.opcode == CLOSE {
            client.send_frame(CLOSE, &frame.payload);
            assert_eq!(client.read_to_end(), b"");
            return (before, frame);
        }
        before += 1;
    }
}

#[test]
fn what_has_waited_for_the_handler_is_not_held_against_the_peer() {
    const RATE: u64 = 20;
    let (closes, records) = heard();
    let (gate, wait) = smol::channel::unbounded::<()>();
    let (begins, begun) = heard();
    let server = start(
        Server::builder()
            .inbound(Inbound::close().with_messages(Rate::per_second(RATE).with_burst(2)))
            .on_message(async move |session: &Session, message: Message| {
                let _ = begins.send(());
                let _ = wait.recv().await;
                session.send(message).await
            })
            .on_close(record(&closes)),
    );
    let mut client = server.client();
    client.send_frame(TEXT, b"0");
    begun.next();
    // As many as a peer may send while the handler works.
    const COUNT: u64 = 12;
    for number in 1..=COUNT {
        client.send_frame(TEXT, number.to_string().as_bytes());
    }
    let session = server.handle.sessions().all().pop().unwrap();
    eventually("one is read ahead", || session.traffic().messages_in == 2);
    within(smol::Timer::after(Duration::from_secs(COUNT) / RATE as u32));
    for _ in 0..=COUNT {
        gate.send_blocking(()).unwrap();
    }
    for number in 0..=COUNT {
        assert_eq!(client.read_frame().payload, number.to_string().as_bytes());
    }
    // And no more than that.
    drop(gate);
    client.send(&frame(true, TEXT, b"x").repeat(50));
    let close = std::iter::from_fn(|| Some(client.read_frame())).find(|it| it.opcode == CLOSE);
    assert_eq!(close.unwrap().close().0, 1008);
    client.send_frame(CLOSE, &1008_u16.to_be_bytes());
    assert_eq!(records.next().cause, Cause::RateExceeded);
    server.finish();
}

/// A server that takes messages in parts and says how long each was, or what went wrong.
fn measuring(inbound: Inbound) -> (TestServer, Heard<Result<usize, String>>, Heard<Closed>) {
    let (sender, measured) = heard();
    let sender = Mutex::new(sender);
    let (closes, records) = heard();
    let builder = Server::builder()
        .inbound(inbound)
        .on_stream(async move |_: &Session, mut incoming: Incoming| -> Result<(), BoxError> {
            let mut len = Ok(0);
            while let Some(part) = incoming.next().await {
                len = match (len, part) {
                    (Ok(len), Ok(part)) => Ok(len + part.len()),
                    (Ok(len), Err(error)) => Err(format!("{error} after {len}")),
                    (failed, _) => failed,
                };
                if len.is_err() {
                    break;
                }
            }
            sender.lock().unwrap().send(len)?;
            Ok(())
        })
        .on_close(record(&closes));
    (start(builder), measured, records)
}

#[test]
fn a_message_in_parts_counts_once_and_its_bytes_as_they_arrive() {
    // Only the second message has to wait, until half a second after the first; no part of one does.
    let (server, measured, _records) = measuring(messages(Rate::per_second(2).with_burst(1)));
    let mut client = server.client();
    let begun = Instant::now();
    for first in [true, false] {
        client.send(&frame(false, BINARY, &[7; 40_000]));
        client.send(&frame(false, CONTINUATION, b""));
        client.send(&frame(true, CONTINUATION, &[7; 40_000]));
        if first {
            assert_eq!(measured.next(), Ok(80_000));
            assert_eq!(server.handle.sessions().excesses().pauses, 0);
        }
    }
    assert_eq!(measured.next(), Ok(80_000));
    assert!(begun.elapsed() + Duration::from_micros(1) >= Duration::from_millis(500));
    client.goodbye();
    server.finish();

    let bytes = Rate::per_second(200_000).with_burst(50_000);
    let (server, measured, _records) = measuring(Inbound::pause().with_bytes(bytes));
    let mut client = server.client();
    let begun = Instant::now();
    client.send_frame(BINARY, &[7; 150_000]);
    assert_eq!(measured.next(), Ok(150_000));
    // All but the burst and the last part, which is let in when there is something left.
    let least = Duration::from_secs(150_000 - 50_000 - 16_384) / 200_000;
    assert!(begun.elapsed() + Duration::from_micros(1) >= least);
    assert!(server.handle.sessions().excesses().pauses > 0);
    client.goodbye();
    server.finish();
}

#[test]
fn a_message_in_parts_breaks_off_where_it_is_too_much() {
    let bytes = Inbound::close().with_bytes(Rate::per_second(1).with_burst(50_000));
    let (server, measured, records) = measuring(bytes);
    let mut client = server.client();
    client.send(&frame(false, BINARY, &[7; 20_000]));
    eventually("it has begun", || {
        server.handle.sessions().all().iter().any(|it| it.traffic().bytes_in >= 20_000)
    });
    // The server may have said goodbye before it has read everything.
    let _ = std::io::Write::write_all(&mut client.stream, &frame(true, CONTINUATION, &[7; 60_000]));
    let failed = measured.next().unwrap_err();
    assert!(failed.starts_with("the session ended"), "{failed}");
    let taken: usize = failed.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((20_000..=50_000 + 20).contains(&taken), "{failed}");
    client.expect_close(1008);
    let closed = records.next();
    assert_closed(&closed, Side::Peer, Cause::RateExceeded, Phase::Closing, Some(1008));
    server.finish();

    let (server, measured, records) =
        measuring(Inbound::close().with_messages(Rate::per_second(1)));
    let mut client = server.client();
    client.send(&frame(true, BINARY, b"x").repeat(30));
    let close = client.read_close();
    assert_eq!(close, (1008, "too many messages: 1 per second, at most 1 at once".into()));
    client.send_frame(CLOSE, &1008_u16.to_be_bytes());
    assert_eq!(records.next().cause, Cause::RateExceeded);
    let given = measured.drain();
    assert!((1..30).contains(&given), "{given}");
    server.finish();
}

#[test]
fn a_stop_ends_a_message_in_parts_that_waits() {
    let (server, measured, records) = measuring(trickle());
    let mut client = server.client();
    client.send(&frame(false, BINARY, &[7; LONG]));
    client.send(&frame(true, CONTINUATION, &[7; LONG]));
    eventually("it waits", || server.handle.sessions().excesses().pauses > 0);
    server.handle.request_stop();
    client.expect_close(1001);
    assert!(measured.next().is_err());
    assert!(records.next().clean);
    let report = server.finish();
    assert_eq!((report.drained, report.cut), (1, 0));
}

#[test]
fn a_session_can_have_its_own() {
    let few = Inbound::close().with_messages(Rate::per_second(1));
    let (opens, sessions) = heard();
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .inbound(few)
            .rates(|session| {
                let rates = Rates::new(Unlimited, Unlimited);
                match session.path() {
                    "/any" => rates.with_inbound(Inbound::default()),
                    "/more" => {
                        let rate = Rate::per_second(1).with_burst(5);
                        rates.with_inbound(Inbound::close().with_messages(rate))
                    }
                    "/wrong" => {
                        let rate = Rate::per_second(1).with_burst(0);
                        rates.with_inbound(Inbound::close().with_bytes(rate))
                    }
                    _ => rates,
                }
            })
            .on_open(opened(&opens))
            .on_message(async |session, message| session.send(message).await)
            .on_close(record(&closes)),
    );
    for (path, least) in [("/", 1), ("/more", 5)] {
        let mut client = Pipe::connect_to(&server, path);
        let session = sessions.next();
        client.send(&frame(true, TEXT, b"x").repeat(50));
        let (echoes, close) = until_close(&mut client);
        assert_eq!(close.close().0, 1008, "{path}");
        assert!((least..50).contains(&echoes), "{path}: {echoes}");
        assert_eq!(session.traffic().messages_in, echoes as u64, "{path}");
        assert_eq!(records.next().cause, Cause::RateExceeded);
    }
    let mut client = Pipe::connect_to(&server, "/any");
    client.send(&frame(true, TEXT, b"x").repeat(50));
    for _ in 0..50 {
        assert_eq!(client.read_frame().payload, b"x");
    }
    client.goodbye();
    assert_eq!(records.next().cause, Cause::PeerClosed);
    let mut client = Pipe::connect_to(&server, "/wrong");
    assert_eq!(client.read_close().0, 1011);
    client.send_frame(CLOSE, &1011_u16.to_be_bytes());
    assert_eq!(records.next().cause, Cause::HandlerPanicked);
    assert_eq!(server.finish().panics, 1);
}

#[test]
fn a_rate_of_nothing_is_an_error_at_start() {
    let cases = [
        (Inbound::pause().with_messages(Rate::per_second(0)), "inbound.messages.per_second"),
        (
            Inbound::pause().with_messages(Rate::per_second(1).with_burst(0)),
            "inbound.messages.burst",
        ),
        (
            Inbound::close().with_bytes(Rate::per_second(0).with_burst(1)),
            "inbound.bytes.per_second",
        ),
        (Inbound::close().with_bytes(Rate::per_second(1).with_burst(0)), "inbound.bytes.burst"),
    ];
    for (inbound, name) in cases {
        let started = Server::builder().bind("127.0.0.1:0").inbound(inbound).start();
        match started {
            Err(Error::Config(text)) => {
                assert_eq!(text, format!("{name} is 0: it must be at least 1"));
            }
            other => panic!("{other:?}"),
        }
    }
}
