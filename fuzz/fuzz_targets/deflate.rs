//! permessage-deflate (RFC 7692): what is agreed on, what is read, what is written.
//!
//! Input: a byte that chooses one of three, and what that one wants.
//!
//! * Negotiation: settings (3), then the value of the header. Nothing panics, and what is agreed on
//!   works: a message goes through a compressor and a decompressor with just that agreement.
//! * Inflation: settings (2), then messages, each behind its length (1). Nothing panics, no message is
//!   longer than the limit, and what another implementation makes of one that we accept is the same.
//! * Round trip: settings (3), then messages, each behind its length (1) and how often it is
//!   repeated (1). What the compressor has written, the decompressor reads, and what the compressor
//!   says it did not write, it did not.
#![no_main]

use coracle::config::{Config, Deflate};
use coracle::internals::{Agreement, Decoder, Deflater, Event, Scanner, handshake};
use coracle_fuzz::frames::{Inflater, said_by_server};
use coracle_fuzz::{Input, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.byte() % 3 {
        0 => negotiation(input),
        1 => inflation(input),
        _ => round_trip(input),
    }
});

fn negotiation(mut input: Input<'_>) {
    let [mode, server, client] = input.array();
    let mut deflate = if mode & 1 == 0 { Deflate::shared() } else { Deflate::dedicated() };
    deflate.server_window_bits = 9 + server % 7;
    deflate.client_window_bits = 9 + client % 7;
    let mut config = Config::default();
    config.deflate = Some(deflate);
    let head = [
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
          Sec-WebSocket-Extensions: ",
        input.0,
        b"\r\n\r\n",
    ]
    .concat();
    let Ok(Some(len)) = Scanner::default().scan(&head, 8192) else {
        return;
    };
    let Ok(accepted) = handshake(&head[..len], &config) else {
        return;
    };
    let Some(agreement) = accepted.agreement else {
        assert!(!String::from_utf8_lossy(&accepted.answer).contains("Extensions"));
        return;
    };
    // What is agreed on works in both directions.
    let messages: &[&[u8]] = &[&b"what is said twice is said twice".repeat(20), input.0];
    go_through(agreement, 6, messages);
    go_through(agreement.mirrored(), 6, messages);
}

fn inflation(mut input: Input<'_>) {
    let settings = input.byte();
    let limit = [0, 1, 100, 1000, 5000, 65_536][usize::from(input.byte() % 6)];
    let agreement = Agreement {
        server_takeover: false,
        client_takeover: settings & 1 != 0,
        server_window_bits: 15,
        client_window_bits: 8 + (settings >> 1) % 8,
    };
    let mut decoder = Decoder::new(limit, 1, Some(agreement));
    while !input.is_empty() {
        let len = input.byte();
        let compressed = input.bytes(len.into());
        let text = settings & 0x80 != 0;
        let outcome =
            decode(&mut decoder, [&frame(if text { 0xC1 } else { 0xC2 }, compressed)[..]]);
        match (&outcome.events[..], outcome.violation) {
            ([Event::Message(message)], None) => {
                assert!(message.len() <= limit);
                if !agreement.client_takeover {
                    check_against_another(compressed, message.as_bytes());
                }
            }
            ([], Some(violation)) => {
                assert!(matches!(violation.code, 1007 | 1009), "{violation:?}");
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The other implementation reads one stream; what follows the end of a stream is another one to us
/// (RFC 7692 section 7.2.3.4), and what it makes of the first is the beginning of what we make of all.
///
/// A message may end inside of a block, which nobody who uses zlib notices: what both have read until
/// then is not the same to the byte, and theirs may know earlier that the block is none.
fn check_against_another(compressed: &[u8], ours: &[u8]) {
    if let Some(theirs) = Inflater::default().message(compressed, false) {
        assert!(ours.starts_with(&theirs) || theirs.starts_with(ours));
    }
}

fn round_trip(mut input: Input<'_>) {
    let [takeover, bits, level] = input.array();
    let agreement = Agreement {
        server_takeover: takeover & 1 != 0,
        client_takeover: takeover & 2 != 0,
        server_window_bits: 9 + bits % 7,
        client_window_bits: 15,
    };
    let mut messages = Vec::new();
    while !input.is_empty() && messages.len() < 20 {
        let (len, times) = (input.byte(), input.byte());
        messages.push(input.bytes(len.into()).repeat(times.into()));
    }
    let messages: Vec<&[u8]> = messages.iter().map(|message| &message[..]).collect();
    go_through(agreement, level % 10, &messages);
}

/// What our compressor writes, our decompressor and another one read.
fn go_through(agreement: Agreement, level: u8, messages: &[&[u8]]) {
    let mut deflater = Deflater::new(agreement, level);
    let mut decoder = Decoder::new(1 << 20, 1, Some(agreement.mirrored()));
    let (mut sent, mut wire) = (Vec::new(), Vec::new());
    for message in messages {
        let mut out = b"before".to_vec();
        if !deflater.message(message, &mut out) {
            assert!(!agreement.server_takeover, "the window has seen it: it must be sent");
            assert_eq!(out, b"before");
            continue;
        }
        let compressed = out.strip_prefix(b"before").expect("what was there is kept");
        assert!(agreement.server_takeover || compressed.len() < message.len());
        let outcome = decode(&mut decoder, [&frame(0xC2, compressed)[..]]);
        assert_eq!(outcome.violation, None);
        assert!(matches!(&outcome.events[..], [Event::Message(it)] if it.as_bytes() == *message));
        sent.push(*message);
        wire.extend(unmasked(compressed));
    }
    let said = said_by_server(&wire, Some(agreement));
    assert!(said.whole);
    assert!(said.messages.iter().map(|message| message.as_bytes()).eq(sent));
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    header(first, 0x80, payload.len(), &[0; 4], payload)
}

fn unmasked(payload: &[u8]) -> Vec<u8> {
    header(0xC2, 0, payload.len(), &[], payload)
}

fn header(first: u8, masked: u8, len: usize, mask: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match len {
        0..126 => bytes.push(masked | len as u8),
        126..=0xFFFF => {
            bytes.push(masked | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        _ => {
            bytes.push(masked | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(mask);
    bytes.extend_from_slice(payload);
    bytes
}
