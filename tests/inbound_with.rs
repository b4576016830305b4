//! What a session takes from its peer together with what stands between them: compression, TLS.

#[path = "support/blocks.rs"]
mod blocks;
#[path = "support/deflate.rs"]
mod deflate;
#[path = "support/pipe.rs"]
mod pipe;
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::time::{Duration, Instant};

use coracle::config::{Deflate, Inbound, Rate, Tls};
use coracle::{BoxError, Cause, Incoming, Server, Session};
use deflate::*;
use secure::*;
use support::*;

#[test]
fn compressed_messages_count_as_they_are_given_to_the_application() {
    for deflate in modes() {
        let (builder, records) = recorded_echo(deflate);
        let bytes = Rate::per_second(1).with_burst(15_000);
        let server = start(builder.inbound(Inbound::close().with_bytes(bytes)));
        let mut client = Client::connect(&server, OFFER);
        client.echo(TEXT, &[b'x'; 10_000]);
        // It is a few dozen bytes on the wire, and so were the first ten thousand.
        client.send(TEXT, &[b'x'; 10_000]);
        let reason = client.expect_close(1008);
        assert_eq!(reason, "too many bytes: 1 per second, at most 15000 at once");
        assert_eq!(records.next().cause, Cause::RateExceeded);
        server.finish();
    }
}

#[test]
fn compressed_messages_wait_as_long_as_they_are() {
    for deflate in modes() {
        let (builder, records) = recorded_echo(deflate);
        let bytes = Rate::per_second(100_000).with_burst(10_000);
        let server = start(builder.inbound(Inbound::pause().with_bytes(bytes)));
        let mut client = Client::connect(&server, OFFER);
        let begun = Instant::now();
        for letter in b'a'..b'd' {
            client.send(TEXT, &vec![letter; 20_000]);
        }
        for letter in b'a'..b'd' {
            client.read().expect(TEXT, &vec![letter; 20_000]);
        }
        // The first two, without the burst.
        assert!(begun.elapsed() + Duration::from_micros(1) >= Duration::from_millis(300));
        client.goodbye();
        assert!(records.next().clean);
        server.finish();
    }
}

#[test]
fn parts_of_compressed_messages_count_as_they_are_given_to_the_application() {
    let (sender, measured) = heard();
    let sender = std::sync::Mutex::new(sender);
    let server = start(
        Server::builder()
            .deflate(Deflate::shared())
            .inbound(Inbound::pause().with_bytes(Rate::per_second(1_000_000).with_burst(1)))
            .on_stream(async move |_: &Session, mut incoming: Incoming| -> Result<(), BoxError> {
                let mut len = 0;
                while let Some(part) = incoming.next().await {
                    len += part?.len();
                }
                sender.lock().unwrap().send(len)?;
                Ok(())
            }),
    );
    let mut client = Client::connect(&server, OFFER);
    let begun = Instant::now();
    client.send(BINARY, &[0; 500_000]);
    assert_eq!(measured.next(), 500_000);
    // All but the last part, which is let in when there is something left.
    let least = Duration::from_millis(500 - 16 - 66);
    assert!(begun.elapsed() + Duration::from_micros(1) >= least);
    client.goodbye();
    server.finish();
}

#[test]
fn messages_over_tls_wait_and_all_come() {
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .tls(Tls::new(cert("server.pem"), cert("server.key")))
            .bind_tls("127.0.0.1:0")
            .inbound(
                Inbound::pause()
                    .with_messages(Rate::per_second(100).with_burst(30))
                    .with_bytes(Rate::per_second(1_000_000).with_burst(100_000)),
            )
            .on_message(async |session, message| session.send(message).await)
            .on_close(record(&closes)),
    );
    let mut client = Secure::open(server.addr());
    let begun = Instant::now();
    let len = |number: usize| number * 300;
    let all: Vec<_> =
        (0..60).flat_map(|number| frame(true, BINARY, &vec![number as u8; len(number)])).collect();
    client.send(&all);
    for number in 0..60 {
        assert!(client.read_frame().payload == vec![number as u8; len(number)], "{number}");
    }
    assert!(begun.elapsed() + Duration::from_micros(1) >= Duration::from_millis(300));
    assert!(server.handle.sessions().excesses().pauses > 0);
    client.send_frame(CLOSE, &1000_u16.to_be_bytes());
    assert_eq!(client.read_frame().close().0, 1000);
    assert!(records.next().clean);
    server.finish();
}
