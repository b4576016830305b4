//! permessage-deflate (RFC 7692) through real sockets, with `flate2` on the client's side: the handshake,
//! messages both ways, windows, takeover, fragments.

#[path = "support/blocks.rs"]
mod blocks;
#[path = "support/deflate.rs"]
mod deflate;
#[path = "support/pipe.rs"]
mod pipe;
mod support;

use blocks::farthest;
use coracle::config::Deflate;
use coracle::{Error, Message, Prepared, Server, Session};
use deflate::*;
use flate2::{Compress, Compression, FlushCompress, Status};
use pipe::opened;
use support::*;

// --- The handshake --------------------------------------------------------------------------------

#[test]
fn nothing_is_agreed_on_unless_both_sides_want_it() {
    let (closed, records) = heard();
    let off = Server::builder()
        .on_message(async |session, message| session.send(message).await)
        .on_close(record(&closed));
    let (on, records_on) = recorded_echo(Deflate::shared());
    let (off, on) = (start(off), start(on));
    let declined = "permessage-deflate; server_max_window_bits=8";
    let cases = [
        (&off, Some(BROWSER), &records),
        (&on, None, &records_on),
        (&on, Some(declined), &records_on),
    ];
    for (server, offer, records) in cases {
        let header =
            offer.map_or(String::new(), |it| format!("Sec-WebSocket-Extensions: {it}\r\n"));
        let mut client = server.raw();
        client.send(handshake_with("/", &header).as_bytes());
        let head = client.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(extensions(&head), None);
        // Nothing comes compressed, and nothing may.
        let text = "a".repeat(5000);
        client.echo(&text);
        client.send(&compressed_frame(true, TEXT, &alone(text.as_bytes())));
        let reason = client.expect_close(1002);
        drop(client);
        expect_violation(&records.next(), 1002, &reason);
    }
    off.finish();
    on.finish();
}

#[test]
fn the_first_offer_that_suits_is_answered() {
    let server = start(echo(with(Deflate::dedicated(), |it| it.client_window_bits = 11)));
    for (offer, answer) in [
        ("permessage-deflate", ""),
        ("permessage-deflate; client_max_window_bits", "; client_max_window_bits=11"),
        ("permessage-deflate; client_max_window_bits=\"9\"", "; client_max_window_bits=9"),
        (
            "x-webkit-deflate-frame, permessage-deflate; server_max_window_bits=16, \
             permessage-deflate; foo, permessage-deflate; server_max_window_bits=10, \
             permessage-deflate",
            "; server_max_window_bits=10",
        ),
        (
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover\r\n\
             Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover",
            "; client_no_context_takeover",
        ),
    ] {
        let mut client = Client::connect(&server, offer);
        assert_eq!(client.answer, answer, "{offer}");
        client.echo(TEXT, &json(1000));
        client.goodbye();
    }
    server.finish();
}

/// RFC 6455 section 9.1: it does not matter that the extension would not be used.
#[test]
fn a_malformed_offer_fails_the_handshake() {
    let off = start(Server::builder().on_message(async |_: &Session, _: Message| {}));
    let on = start(echo(Deflate::shared()));
    for server in [&off, &on] {
        for offer in ["permessage-deflate;", "permessage-deflate; a=\"", "permessage deflate", "="]
        {
            let header = format!("Sec-WebSocket-Extensions: {offer}\r\n");
            let answer = server.raw().ask(handshake_with("/", &header).as_bytes());
            assert!(answer.starts_with("HTTP/1.1 400 "), "{offer}: {answer}");
        }
    }
    off.finish();
    on.finish();
}

#[test]
fn a_setting_that_cannot_be_is_an_error_that_names_it() {
    type Set = fn(&mut Deflate, u8);
    let settings: [(&str, u8, Set); 5] = [
        ("deflate.level", 10, |deflate, value| deflate.level = value),
        ("deflate.server_window_bits", 8, |deflate, value| deflate.server_window_bits = value),
        ("deflate.server_window_bits", 16, |deflate, value| deflate.server_window_bits = value),
        ("deflate.client_window_bits", 8, |deflate, value| deflate.client_window_bits = value),
        ("deflate.client_window_bits", 16, |deflate, value| deflate.client_window_bits = value),
    ];
    for (name, value, set) in settings {
        for base in modes() {
            let builder = echo(with(base, |it| set(it, value))).bind("127.0.0.1:0");
            match builder.start().map(|handle| handle.local_addr()) {
                Err(Error::Config(what)) => {
                    assert!(what.contains(&format!("{name} is {value}: ")), "{what}");
                }
                other => panic!("{name} = {value}: {other:?}"),
            }
        }
    }
}

// --- Messages -------------------------------------------------------------------------------------

#[test]
fn messages_of_every_length_come_back() {
    for base in modes() {
        let server = start(echo(with(base, |it| it.threshold = 0)));
        let mut client = Client::connect(&server, BROWSER);
        for len in [60_000, 1, 2, 125, 126, 127, 255, 256, 1024, 16_384, 65_535, 65_536] {
            // Not what was sent before: in shared mode it must be smaller by itself.
            client.send(TEXT, &json(len));
            let received = client.read();
            assert!(received.payload == json(len), "{len}");
            assert_eq!(received.opcode, TEXT);
            assert!(received.compressed || len < 100, "{len}");
            let zeros = vec![0; len];
            client.send(BINARY, &zeros);
            let received = client.read();
            assert!(received.payload == zeros, "{len}");
            assert_eq!(received.opcode, BINARY);
        }
        client.goodbye();
        server.finish();
    }
}

#[test]
fn a_client_may_mix_compressed_messages_with_others() {
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        for round in 0..10 {
            let text = json(1000 + round);
            client.wire.send_frame(TEXT, &text);
            client.read().expect(TEXT, &text);
            client.echo(BINARY, &text);
        }
        client.goodbye();
        server.finish();
    }
}

/// An empty message is a block of a byte (RFC 7692 section 7.2.3.6). zlib has nothing to say when
/// it is flushed twice, so the second one in a row was sent without the byte; its reader took the
/// tail, which is always added, for half a block, and could not read the next message.
#[test]
fn empty_messages_in_a_row_spoil_nothing() {
    for base in modes() {
        let server = start(echo(with(base.clone(), |it| it.threshold = 0)));
        let mut client = Client::connect(&server, BROWSER);
        for _ in 0..3 {
            for opcode in [TEXT, BINARY, TEXT] {
                client.send(opcode, b"");
                let received = client.read();
                assert_eq!((received.opcode, &received.payload[..]), (opcode, &b""[..]));
                // By itself it cannot become smaller.
                assert_eq!(received.compressed, client.server_takeover);
            }
            client.echo(TEXT, &json(2000));
        }
        client.goodbye();
        server.finish();
    }
}

/// A client whose compressor says nothing for nothing forgets the byte. Its messages can be read
/// all the same: there is no block that the tail would end.
#[test]
fn an_empty_message_without_a_byte_spoils_nothing() {
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        let empty = compressed_frame(true, TEXT, b"");
        let in_fragments = fragments(TEXT, [&b""[..], b"", b""]).concat();
        for empty in [empty, in_fragments] {
            client.wire.send(&empty);
            client.read().expect_plain(TEXT, b"");
            client.echo(TEXT, &json(2000));
        }
        client.goodbye();
        server.finish();
    }
}

#[test]
fn a_large_message_makes_the_round_trip() {
    const MIB: usize = 1024 * 1024;
    for base in modes() {
        let server = start(echo(base).configure(|config| config.limits.message_bytes = MIB));
        let mut client = Client::connect(&server, BROWSER);
        for message in [json(MIB), digits(3, MIB), vec![b'x'; MIB]] {
            client.echo(TEXT, &message);
        }
        client.goodbye();
        server.finish();
    }
}

#[test]
fn many_messages_in_one_read_are_answered_in_order() {
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        let messages: Vec<_> = (0..300).map(|n| digits(n, 256 + n as usize)).collect();
        let mut segment = Vec::new();
        for message in &messages {
            let payload = client.compress(message);
            segment.extend(compressed_frame(true, TEXT, &payload));
        }
        client.wire.send(&segment);
        for message in &messages {
            client.read().expect(TEXT, message);
        }
        client.goodbye();
        server.finish();
    }
}

// --- What is compressed ---------------------------------------------------------------------------

#[test]
fn messages_below_the_threshold_are_sent_as_they_are() {
    for base in modes() {
        for (threshold, deflate) in
            [(256, base.clone()), (1000, with(base, |it| it.threshold = 1000))]
        {
            let server = start(echo(deflate));
            let mut client = Client::connect(&server, BROWSER);
            for _ in 0..3 {
                for (opcode, byte) in [(TEXT, b'x'), (BINARY, 0)] {
                    let short = vec![byte; threshold - 1];
                    client.send(opcode, &short);
                    client.read().expect_plain(opcode, &short);
                    client.echo(opcode, &vec![byte; threshold]);
                }
            }
            client.goodbye();
            server.finish();
        }
    }
}

#[test]
fn a_message_can_be_excepted() {
    for base in modes() {
        let server = start(Server::builder().deflate(base).on_message(
            async |session: &Session, message: Message| {
                session.send(message.clone()).await?;
                session.send(message.clone().uncompressed()).await?;
                session.try_send(message.clone().uncompressed())?;
                session.try_send(message)
            },
        ));
        let mut client = Client::connect(&server, BROWSER);
        // Smaller and larger than what is sent without a copy.
        for len in [300, 5000, 65_000] {
            for _ in 0..2 {
                let text = json(len);
                client.send(TEXT, &text);
                client.read().expect(TEXT, &text);
                client.read().expect_plain(TEXT, &text);
                client.read().expect_plain(TEXT, &text);
                client.read().expect(TEXT, &text);
            }
        }
        client.goodbye();
        server.finish();
    }
}

// What is published to a room is one run of frames for those that are alike: with a compressed message in it
// a run suits nobody who has not agreed on the same window.
#[test]
fn a_room_has_members_with_every_kind_of_compression() {
    for mode in modes() {
        let server = start(
            Server::builder().deflate(mode).on_open(async |session: &Session| session.join("room")),
        );
        let mut plain = server.client();
        let offers = [BROWSER, "permessage-deflate; server_max_window_bits=10", BROWSER];
        let mut clients: Vec<_> =
            offers.iter().map(|offer| Client::connect(&server, offer)).collect();
        let rooms = server.handle.rooms();
        eventually("all are in", || rooms.size("room") == 4);
        let texts: Vec<_> = (0..40).map(|n| json(100 + 97 * n)).collect();
        for text in &texts {
            rooms.try_publish("room", String::from_utf8(text.clone()).unwrap()).unwrap();
            rooms.try_publish("room", Message::from(&text[..]).uncompressed()).unwrap();
        }
        for text in &texts {
            assert_eq!(plain.read_frame().payload, *text);
            assert_eq!(plain.read_frame().payload, *text);
            for client in &mut clients {
                let received = client.read();
                assert_eq!((received.opcode, &received.payload), (TEXT, text));
                assert_eq!(received.compressed, text.len() >= 256);
                client.read().expect_plain(BINARY, text);
            }
        }
        plain.goodbye();
        clients.into_iter().for_each(Client::goodbye);
        server.finish();
    }
}

// One frame for all: a session got what another's window could not read, or what it had never agreed on.
#[test]
fn a_prepared_message_suits_every_session_it_is_sent_to() {
    let offers = [
        BROWSER,
        OFFER,
        "permessage-deflate; server_max_window_bits=9",
        "permessage-deflate; \
          server_no_context_takeover",
    ];
    for base in modes() {
        let (sender, sessions) = heard();
        let server = start(Server::builder().deflate(base).on_open(opened(&sender)));
        let mut plain = server.client();
        let mut receivers = vec![sessions.next()];
        let mut clients = Vec::new();
        for offer in offers {
            clients.push(Client::connect(&server, offer));
            receivers.push(sessions.next());
        }
        // Of which most is far apart; below the threshold; noise that does not become smaller.
        let far = [json(3000), noise(1, 1000), json(3000)].concat();
        for (message, smaller) in [(far, true), (json(100), false), (noise(2, 3000), false)] {
            let prepared = Prepared::new(message.clone());
            let excepted = Prepared::new(Message::from(message.clone()).uncompressed());
            for round in 0..2 {
                for session in &receivers {
                    session.try_send_prepared(&prepared).unwrap();
                    session.try_send_prepared(&excepted).unwrap();
                    // Behind them, so that context takeover is seen to go on.
                    session.try_send(format!("{round}")).unwrap();
                }
                assert_eq!(plain.read_frame().payload, message);
                assert_eq!(plain.read_frame().payload, message);
                assert_eq!(plain.read_frame().payload, round.to_string().as_bytes());
                for client in &mut clients {
                    let received = client.read();
                    assert!(received.payload == message);
                    if client.server_takeover {
                        assert_eq!(received.compressed, message.len() >= 256);
                    } else {
                        assert_eq!(received.compressed, smaller);
                    }
                    client.read().expect_plain(BINARY, &message);
                    client.read().expect_plain(TEXT, round.to_string().as_bytes());
                }
            }
        }
        plain.goodbye();
        clients.into_iter().for_each(Client::goodbye);
        server.finish();
    }
}

#[test]
fn the_level_decides_how_small_a_message_becomes() {
    let text = json(20_000);
    let at = |level| {
        let server = start(echo(with(Deflate::dedicated(), |it| it.level = level)));
        let mut client = Client::connect(&server, BROWSER);
        let wire = client.echo(TEXT, &text).wire;
        client.goodbye();
        server.finish();
        wire
    };
    let [nothing, fast, small] = [0, 1, 9].map(at);
    assert!(nothing > text.len(), "{nothing}");
    assert!(fast < text.len(), "{fast}");
    assert!(small < fast, "{small} {fast}");
}

#[test]
fn in_shared_mode_what_cannot_be_made_smaller_is_sent_as_it_is() {
    let server = start(echo(Deflate::shared()));
    let mut client = Client::connect(&server, BROWSER);
    for round in 0..3 {
        // Smaller and larger than what is sent without a copy; all in one batch, too.
        for len in [256, 5000, 65_536] {
            let noise = noise(round, len);
            client.send(BINARY, &noise);
            client.read().expect_plain(BINARY, &noise);
            client.echo(TEXT, &json(len));
        }
    }
    client.goodbye();
    server.finish();
}

// --- Windows and takeover -------------------------------------------------------------------------

/// The same kibibyte of noise at a distance that only a window of more than `bits` bits reaches,
/// and what lies between.
fn far_apart(bits: u8) -> Vec<u8> {
    let repeated = noise(u64::from(bits), 1024);
    let between = noise(100 + u64::from(bits), (1 << bits) + 100);
    [&repeated[..], &between, &repeated].concat()
}

/// What the tests below rely on: a window of any size is used, and seen to be used.
#[test]
fn how_far_back_a_compressor_refers_can_be_seen() {
    let reach = |payload: Vec<u8>| farthest(&[&payload[..], &TAIL].concat());
    for bits in 9..15 {
        let message = far_apart(bits);
        assert_eq!(reach(alone(&message)), message.len() - 1024, "{bits}");
        let mut within = Compress::new_with_window_bits(Compression::best(), false, bits);
        assert!(reach(flushed(&mut within, &message)) <= 1 << bits, "{bits}");
    }
    assert_eq!(reach(alone(&noise(1, 5000))), 0);
    assert_eq!(reach(alone(&[7; 5000])), 1);
}

#[test]
fn the_server_keeps_to_the_window_that_was_agreed_on() {
    for base in modes() {
        for bits in 9..=15 {
            // Asked for by the client, or the server's own wish.
            let asked = format!("permessage-deflate; server_max_window_bits={bits}");
            let own = with(base.clone(), |it| it.server_window_bits = bits);
            for (deflate, offer) in [(base.clone(), &*asked), (own, OFFER)] {
                let server = start(echo(deflate));
                let mut client = Client::connect(&server, offer);
                let said = format!("; server_max_window_bits={bits}");
                let expected = bits < 15 || offer != OFFER;
                assert_eq!(client.answer.contains(&said), expected, "{}", client.answer);
                for reach in 9..=14 {
                    client.echo(TEXT, &json(1000));
                    // Half of it can be saved, so that it is compressed in shared mode, too.
                    let far = far_apart(reach);
                    let message = [&far[..], &vec![0; 1500]].concat();
                    client.echo(BINARY, &message);
                }
                client.goodbye();
                server.finish();
            }
        }
    }
}

/// A window that is agreed on is used, and not a smaller one.
#[test]
fn a_larger_window_makes_a_smaller_message() {
    let message = [&far_apart(13)[..], &json(2000)].concat();
    for base in modes() {
        let server = start(echo(base));
        let with = |bits: u8| {
            let offer = format!("permessage-deflate; server_max_window_bits={bits}");
            let mut client = Client::connect(&server, &offer);
            let wire = client.echo(BINARY, &message).wire;
            client.goodbye();
            wire
        };
        let (small, large) = (with(12), with(15));
        assert!(large + 900 < small, "{large} {small}");
        server.finish();
    }
}

#[test]
fn the_client_keeps_to_the_window_that_was_agreed_on() {
    for base in modes() {
        for bits in 9..=15 {
            let server = start(echo(with(base.clone(), |it| it.client_window_bits = bits)));
            let mut client = Client::connect(&server, BROWSER);
            let said = format!("; client_max_window_bits={bits}");
            assert_eq!(client.answer.contains(&said), bits < 15, "{}", client.answer);
            for reach in 9..=14 {
                client.echo(TEXT, &json(1000));
                client.echo(BINARY, &[&far_apart(reach)[..], &vec![0; 1500]].concat());
            }
            client.goodbye();
            server.finish();
        }
    }
}

/// A client that cannot be told reaches back as far as it likes.
#[test]
fn a_client_that_has_not_offered_a_window_uses_the_largest() {
    for base in modes() {
        let server = start(echo(with(base, |it| it.client_window_bits = 9)));
        let mut client = Client::connect(&server, OFFER);
        assert!(!client.answer.contains("client_max_window_bits"), "{}", client.answer);
        for reach in 9..=14 {
            client.echo(TEXT, &json(1000));
            client.echo(BINARY, &[&far_apart(reach)[..], &vec![0; 1500]].concat());
        }
        client.goodbye();
        server.finish();
    }
}

/// Each side may decline its own takeover, or that of the other.
#[test]
fn takeover_is_used_in_the_directions_in_which_it_was_agreed_on() {
    let server = start(echo(Deflate::dedicated()));
    let shared = start(echo(Deflate::shared()));
    for (server, offer, by_server, by_client) in [
        (&server, "permessage-deflate", true, true),
        (&server, "permessage-deflate; server_no_context_takeover", false, true),
        (&server, "permessage-deflate; client_no_context_takeover", true, false),
        (
            &server,
            "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
            false,
            false,
        ),
        (&shared, "permessage-deflate", false, false),
    ] {
        let mut client = Client::connect(server, offer);
        assert_eq!((client.server_takeover, client.client_takeover), (by_server, by_client));
        let message = digits(5, 4000);
        let first = client.echo(TEXT, &message).wire;
        for _ in 0..3 {
            let payload = client.compress(&message);
            // What the client sends is what it says it is.
            assert_eq!(payload.len() < 100, by_client, "{offer}: {}", payload.len());
            client.wire.send(&compressed_frame(true, TEXT, &payload));
            let next = client.read();
            next.expect(TEXT, &message);
            if by_server {
                assert!(next.wire < 100, "{offer}: {next:?}");
            } else {
                assert_eq!(next.wire, first, "{offer}");
            }
        }
        client.goodbye();
    }
    server.finish();
    shared.finish();
}

/// What refers to a message that the server has not kept is read as nonsense by nobody.
#[test]
fn a_client_that_takes_over_what_it_has_declined_is_closed() {
    for base in modes() {
        let (builder, records) = recorded_echo(base);
        let server = start(builder);
        let mut client = Client::connect(&server, "permessage-deflate; client_no_context_takeover");
        client.client_takeover = true;
        let message = digits(5, 4000);
        client.echo(TEXT, &message);
        client.send(TEXT, &message);
        let reason = client.expect_close(1007);
        expect_violation(&records.next(), 1007, &reason);
        server.finish();
    }
}

/// In dedicated mode the window has seen also what could not be made smaller, so it must be sent
/// compressed.
#[test]
fn with_takeover_noise_is_sent_compressed_and_can_be_referred_to() {
    let server = start(echo(Deflate::dedicated()));
    let mut client = Client::connect(&server, BROWSER);
    let noise = noise(9, 10_000);
    assert!(client.echo(BINARY, &noise).wire > noise.len());
    assert!(client.echo(BINARY, &noise).wire < 200);
    client.goodbye();
    server.finish();
}

// --- Frames ---------------------------------------------------------------------------------------

/// The bit stands on the first frame only, and a control frame between two fragments has none.
#[test]
fn a_compressed_message_may_come_in_fragments_with_control_frames_between() {
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        let text = json(1000);
        for cuts in [1, 2, 3, 7] {
            let payload = client.compress(&text);
            let mut pieces: Vec<_> = payload.chunks(payload.len().div_ceil(cuts)).collect();
            pieces.push(b"");
            pieces.insert(1, b"");
            let frames = fragments(TEXT, pieces);
            for (n, bytes) in frames.iter().enumerate() {
                client.wire.send(bytes);
                if n + 1 < frames.len() {
                    client.wire.send_frame(PING, &[n as u8]);
                    let pong = client.read();
                    assert_eq!((pong.opcode, pong.payload), (PONG, vec![n as u8]));
                }
            }
            client.read().expect(TEXT, &text);
        }
        // Byte by byte, within one segment, and the next message behind it.
        let payload = client.compress(&text);
        let mut segment = fragments(TEXT, payload.chunks(1)).concat();
        let next = client.compress(b"next");
        segment.extend(compressed_frame(true, BINARY, &next));
        client.wire.send(&segment);
        client.read().expect(TEXT, &text);
        client.read().expect_plain(BINARY, b"next");
        client.goodbye();
        server.finish();
    }
}

/// A frame that arrives in two segments, cut at every byte.
#[test]
fn a_compressed_frame_may_arrive_in_pieces() {
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        for cut in 1..40 {
            let text = digits(cut, 300);
            let payload = client.compress(&text);
            let bytes = compressed_frame(true, TEXT, &payload);
            let (before, behind) = bytes.split_at(cut as usize);
            client.wire.send(before);
            // The server has read it: it answers what came on another connection meanwhile.
            let mut other = server.client();
            other.echo("between");
            other.goodbye();
            client.wire.send(behind);
            client.read().expect(TEXT, &text);
        }
        client.goodbye();
        server.finish();
    }
}

/// A server with compression looked for the bit on data frames only, or took it on a continuation
/// for a compressed message.
#[test]
fn the_bit_in_the_wrong_place_is_answered_1002() {
    let hello = alone(b"Hello");
    let odd = |first: u8, payload: &[u8]| {
        let mut bytes = frame(true, TEXT, payload);
        bytes[0] = first;
        bytes
    };
    let begun = |rest: Vec<u8>| [compressed_frame(false, TEXT, &hello), rest].concat();
    let plainly = |rest: Vec<u8>| [frame(false, TEXT, b"a"), rest].concat();
    let cases = [
        ("on a continuation", begun(odd(0xC0, b"\x00"))),
        ("on a continuation that is not the last", begun(odd(0x40, b"\x00"))),
        ("on a continuation of a plain message", plainly(odd(0xC0, b"a"))),
        ("on a continuation of nothing", odd(0xC0, &hello)),
        ("on a ping", odd(0xC9, b"")),
        ("on a pong", odd(0xCA, b"")),
        ("on a close frame", odd(0xC8, &[0x03, 0xE8])),
        ("on a ping between fragments", begun(odd(0xC9, b""))),
        ("the second bit", odd(0xA1, &hello)),
        ("the third bit", odd(0x91, &hello)),
        ("the second bit, too", odd(0xE1, &hello)),
        ("the third bit, too", odd(0xD1, &hello)),
        ("on a reserved opcode", odd(0xC3, &hello)),
        ("on a new message inside of another", begun(odd(0xC1, &hello))),
    ];
    for base in modes() {
        let (builder, records) = recorded_echo(base);
        let server = start(builder);
        for (what, bytes) in &cases {
            let mut client = Client::connect(&server, BROWSER);
            // What came before is answered first.
            let text = json(500);
            let payload = client.compress(&text);
            client.wire.send(&[&compressed_frame(true, TEXT, &payload), &bytes[..]].concat());
            client.read().expect(TEXT, &text);
            let (code, reason) = client.wire.read_close();
            assert_eq!(code, 1002, "{what}: {reason}");
            drop(client);
            expect_violation(&records.next(), 1002, &reason);
        }
        server.finish();
    }
}

/// RFC 7692 section 7.2.3.4: a sender that ends its stream adds a byte, so that the tail that the
/// reader adds has something to end. Other senders add none; others begin another stream.
#[test]
fn a_stream_may_end_inside_of_a_message() {
    let finished = |message: &[u8]| {
        let mut payload = Vec::with_capacity(message.len() + 100);
        let mut deflater = Compress::new(Compression::best(), false);
        let status = deflater.compress_vec(message, &mut payload, FlushCompress::Finish).unwrap();
        assert_eq!(status, Status::StreamEnd);
        payload
    };
    let (one, two) = (json(700), digits(1, 800));
    let both = [&one[..], &two].concat();
    let cases = [
        ("and a byte", [&finished(&one)[..], &[0]].concat(), &one),
        ("and nothing", finished(&one), &one),
        ("and another that goes on", [finished(&one), alone(&two)].concat(), &both),
        ("and another that ends", [finished(&one), finished(&two)].concat(), &both),
        ("and another that is empty", [finished(&both), alone(b"")].concat(), &both),
    ];
    for base in modes() {
        let server = start(echo(base));
        let mut client = Client::connect(&server, BROWSER);
        for (what, payload, message) in &cases {
            for pieces in [1, payload.len() / 3 + 1, payload.len() - 1] {
                let mut frames: Vec<_> = payload.chunks(payload.len() / pieces).collect();
                // Behind the end, in a frame of its own.
                frames.push(b"");
                client.wire.send(&fragments(TEXT, frames).concat());
                let received = client.read();
                assert!(received.payload == **message, "{what}");
            }
            // The client begins anew, too.
            client.deflater.reset();
            client.echo(TEXT, &json(2000));
        }
        client.goodbye();
        server.finish();
    }
}
