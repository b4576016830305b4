//! The client and this crate's own server, each of which has its own idea of the protocol: both directions, both
//! styles, every bound.
#![cfg(feature = "client")]

mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle::client::{
    By, Client, ConnectError, Connected, Disconnected, Ended, Fate, Reconnect, State, Why,
};
use coracle::http_types::HeaderName;
use coracle::{
    BoxError, Builder, CloseCode, Flow, Handler, Message, Outcome, Request, SendError, Server,
    Session, Upgrade,
};
use support::*;

fn echo() -> Builder<impl Handler> {
    Server::builder()
        .on_message(async |session: &Session, message: Message| session.send(message).await)
}

fn url(server: &TestServer) -> String {
    format!("ws://{}/", server.addr())
}

#[test]
fn messages_of_every_kind_and_size_go_both_ways_and_come_in_order() {
    let server = start(echo().configure(|config| config.limits.message_bytes = 4 << 20));
    // The largest ones go in fragments.
    let client = within(Client::builder(url(&server)).message_bytes(4 << 20).connect()).unwrap();
    let sizes = [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20, (1 << 20) + 1, (2 << 20) + 3];
    let messages: Vec<Message> = sizes
        .into_iter()
        .flat_map(|size| {
            let bytes: Vec<u8> = (0..size).map(|i: usize| (i % 251) as u8).collect();
            [Message::from("ä".repeat(size / 2)), Message::from(bytes)]
        })
        .collect();
    within(async {
        let send = async {
            for message in &messages {
                client.send(message.clone()).await.unwrap();
            }
        };
        let receive = async {
            for message in &messages {
                assert_eq!(client.recv().await.unwrap(), *message);
            }
        };
        smol::future::zip(send, receive).await;
    });
    assert_eq!(client.accounts().handed, messages.len() as u64);
    let ended = within(client.close(CloseCode::NORMAL, "that was all"));
    let Ended::Requested(Some(last)) = &*ended else { panic!("{ended}") };
    assert!(last.is_clean());
    assert_eq!((last.by(), last.code()), (By::Client, Some(CloseCode::NORMAL)));
    assert!(matches!(last.why(), Why::Requested));
    server.finish();
}

#[test]
fn the_server_sees_the_headers_the_path_and_the_subprotocols_and_the_client_what_was_chosen() {
    let builder = Server::builder().on_accept(async |request: &Request| {
        let told = format!(
            "{} {:?} {:?} {:?}",
            request.target(),
            request.header("authorization"),
            request.header("x-app"),
            request.header("sec-websocket-protocol"),
        );
        let told = told.try_into().unwrap();
        Ok(Upgrade::new().subprotocol("chat.v2").header(HeaderName::from_static("x-told"), told))
    });
    let server = start(builder);
    let url = format!("ws://me:se%20cret@{}/rooms?since=7", server.addr());
    let client = within(
        Client::builder(url)
            .header("X-App", "a test")
            .subprotocol("chat.v1")
            .subprotocol("chat.v2")
            .connect(),
    )
    .unwrap();
    let connected = client.connection().unwrap();
    assert_eq!(connected.subprotocol(), Some("chat.v2"));
    assert_eq!(connected.peer(), server.addr());
    assert_eq!(
        connected.headers()["x-told"],
        "/rooms?since=7 Some(\"Basic bWU6c2UgY3JldA==\") Some(\"a test\") Some(\"chat.v1, chat.v2\")"
    );
    let shown = format!("{client:?}");
    assert!(!shown.contains("cret") && !shown.contains("since"), "{shown}");
    drop(client);
    server.finish();
}

#[test]
fn callbacks_are_called_one_after_the_other_in_the_order_in_which_it_happened() {
    let server = start(
        Server::builder()
            .on_open(async |session: &Session| {
                for i in 0..100 {
                    session.send(i.to_string()).await?;
                }
                Ok::<_, SendError>(())
            })
            .on_message(async |_: &Session, message: Message| {
                let text = message.as_text().unwrap_or_default().to_owned();
                Ok::<_, BoxError>(Flow::Close(CloseCode::NORMAL, text))
            }),
    );
    let (sender, happened) = heard();
    let sender = Mutex::new(sender);
    let tell = move |what: String| sender.lock().unwrap().send(what).unwrap();
    let tell = std::sync::Arc::new(tell);
    let [one, two, three, four] = [(); 4].map(|()| std::sync::Arc::clone(&tell));
    let working = AtomicBool::new(false);
    let client = Client::builder(url(&server))
        .on_connect(async move |_: &Client, connected: &Connected| {
            one(format!("connected after {} failures", connected.failures()));
        })
        .on_message(async move |client: &Client, message: Message| {
            assert!(!working.swap(true, Ordering::SeqCst), "one after the other");
            smol::future::yield_now().await;
            working.store(false, Ordering::SeqCst);
            let text = message.as_text().unwrap().to_owned();
            if text == "99" {
                client.send("bye").await.unwrap();
            }
            two(text);
        })
        .on_disconnect(async move |_: &Client, ended: &Disconnected| {
            three(format!("{} {:?} {}", ended.by(), ended.code(), ended.reason()));
        })
        .on_give_up(async move |_: &Client, ended: &Ended| four(format!("{ended}")))
        .start()
        .unwrap();
    assert_eq!(happened.next(), "connected after 0 failures");
    for i in 0..100 {
        assert_eq!(happened.next(), i.to_string());
    }
    assert_eq!(happened.next(), "server Some(1000) bye");
    let gave_up = happened.next();
    assert!(gave_up.starts_with("gave up: disconnected by server"), "{gave_up}");
    assert!(matches!(&*within(client.ended()), Ended::Disconnected(_)));
    assert_eq!(client.state(), State::Ended);
    server.finish();
}

#[test]
fn a_callback_that_panics_ends_the_client_and_says_so() {
    let server = start(echo());
    let client = Client::builder(url(&server))
        .on_message(async |_: &Client, _: Message| panic!("as it was told"))
        .start()
        .unwrap();
    within(client.send("hello")).unwrap();
    assert!(matches!(&*within(client.ended()), Ended::Panicked));
    assert!(matches!(within(client.send("more")), Err(SendError::Closed(_))));
    server.finish();
}

#[test]
fn while_a_callback_works_what_is_queued_leaves() {
    let (sender, got) = heard();
    let sender = Mutex::new(sender);
    let server = start(
        Server::builder().on_open(async |session: &Session| session.send("go").await).on_message(
            async move |_: &Session, message: Message| {
                sender.lock().unwrap().send(message.as_text().unwrap().to_owned()).unwrap();
            },
        ),
    );
    let (release, released) = smol::channel::bounded::<()>(1);
    let client = Client::builder(url(&server))
        .on_message(async move |client: &Client, _: Message| {
            let receipt = client.send_with_receipt("from the callback").await.unwrap();
            assert_eq!(receipt.await, Fate::Handed);
            let _ = released.recv().await;
        })
        .start()
        .unwrap();
    assert_eq!(got.next(), "from the callback");
    within(client.send("from outside")).unwrap();
    assert_eq!(got.next(), "from outside");
    drop(release);
    within(client.close(CloseCode::NORMAL, ""));
    server.finish();
}

#[test]
fn a_client_that_is_not_read_from_stops_reading_and_goes_on_when_it_is() {
    // A window of TCP that was full opens again within a fraction of it.
    const PONG: Duration = Duration::from_secs(1);
    struct Flood;
    impl Handler for Flood {
        async fn message(&self, session: &Session, _: Message) -> Outcome {
            for i in 0..2_000 {
                session.send(format!("{i:0>1000}")).await?;
            }
            Ok(Flow::Continue)
        }
    }
    let server = start(Server::builder().handler(Flood).configure(|config| {
        config.timeouts.write_stall = PATIENCE;
    }));
    let client = within(
        Client::builder(url(&server))
            .inbox(4)
            .ping(Duration::from_millis(20))
            .pong_timeout(PONG)
            .connect(),
    )
    .unwrap();
    within(client.send("go")).unwrap();
    let session = server.handle.sessions().all().remove(0);
    // As much as fits between, and then the server waits.
    eventually("the server waits", || session.buffered().messages > 0);
    // Time is the subject: for longer than a pong may take nobody reads it.
    within(smol::Timer::after(PONG * 2));
    let first = within(client.recv()).unwrap();
    assert_eq!(first.as_text().map(|it| it.trim_start_matches('0')), Some(""));
    for i in 1..2_000 {
        let message = within(client.recv()).unwrap();
        assert_eq!(message.as_text(), Some(&*format!("{i:0>1000}")));
    }
    assert_eq!(client.connections(), 1, "what nobody reads is no silence of the server");
    drop(client);
    server.finish();
}

// Adding what else may wait to the largest number there is was a panic.
#[test]
fn as_many_messages_may_wait_as_there_are_numbers() {
    let server = start(echo());
    let (sender, came) = heard();
    let connecting = Client::builder(url(&server))
        .inbox(usize::MAX)
        .queue(usize::MAX, usize::MAX)
        .on_message(async move |_: &Client, message: Message| drop(sender.send(message)))
        .connect();
    let client = within(connecting).unwrap();
    within(client.send("hello")).unwrap();
    assert_eq!(came.next(), Message::from("hello"));
    drop(client);
    server.finish();
}

#[test]
fn a_message_that_is_too_large_ends_the_connection_with_1009() {
    let (sender, closed) = heard();
    let builder = Server::builder()
        .on_open(async |session: &Session| session.send("x".repeat(1001)).await)
        .on_close(record(&sender));
    let server = start(builder);
    let connecting =
        Client::builder(url(&server)).message_bytes(1000).reconnect(Reconnect::never()).connect();
    let client = within(connecting).unwrap();
    let ended = within(client.recv()).unwrap_err();
    let Ended::Disconnected(last) = &*ended else { panic!("{ended}") };
    assert!(matches!(last.why(), Why::Violation(_)), "{last}");
    assert_eq!(last.code(), Some(CloseCode::TOO_BIG));
    assert_eq!(closed.next().code, Some(CloseCode::TOO_BIG));
    server.finish();
}

#[test]
fn a_server_that_says_nothing_more_is_noticed_by_its_missing_pong() {
    let (addr, silent) = silent();
    let connecting = Client::builder(format!("ws://{addr}/"))
        .ping(Duration::from_millis(50))
        .pong_timeout(Duration::from_millis(50))
        .reconnect(Reconnect::never())
        .connect();
    let client = within(connecting).unwrap();
    let _tcp = silent.join().unwrap();
    let ended = within(client.ended());
    let Ended::Disconnected(last) = &*ended else { panic!("{ended}") };
    assert!(matches!(last.why(), Why::PongTimeout), "{last}");
    assert_eq!(last.by(), By::Client);
    assert!(ended.to_string().contains("no answer to a ping"), "{ended}");
}

#[test]
fn a_server_that_takes_nothing_is_noticed_and_what_was_on_its_way_is_counted() {
    let (addr, silent) = silent();
    let connecting = Client::builder(format!("ws://{addr}/"))
        .ping(None)
        .write_stall(Duration::from_millis(100))
        .reconnect(Reconnect::never())
        .queue(64, 64 << 20)
        .connect();
    let client = within(connecting).unwrap();
    let _tcp = silent.join().unwrap();
    // More than loopback's buffers take.
    let receipts: Vec<_> =
        (0..16).map(|_| within(client.send_with_receipt(vec![0; 1 << 20])).unwrap()).collect();
    let ended = within(client.ended());
    let Ended::Disconnected(last) = &*ended else { panic!("{ended}") };
    assert!(matches!(last.why(), Why::WriteStalled), "{last}");
    let accounts = client.accounts();
    assert_eq!(accounts.accepted, 16);
    assert_eq!(accounts.in_flight, last.in_flight());
    assert!(accounts.in_flight >= 1 && accounts.queued == 0, "{accounts:?}");
    assert_eq!(accounts.handed + accounts.in_flight + accounts.unsent, 16, "{accounts:?}");
    let count = |fate| receipts.iter().filter(|it| within((*it).clone()) == fate).count() as u64;
    assert_eq!(count(Fate::Handed), accounts.handed);
    assert_eq!(count(Fate::InFlight), accounts.in_flight);
    assert_eq!(count(Fate::Unsent), accounts.unsent);
    assert_eq!(client.take_unsent().len() as u64, accounts.unsent);
}

/// A server that upgrades its first client, and then never reads or writes again.
fn silent() -> (std::net::SocketAddr, std::thread::JoinHandle<std::net::TcpStream>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let served = std::thread::spawn(move || {
        let (tcp, _) = listener.accept().unwrap();
        answer_handshake(&tcp);
        tcp
    });
    (addr, served)
}

/// The server's side of a handshake.
fn answer_handshake(mut tcp: &std::net::TcpStream) {
    use std::io::{Read, Write};
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        tcp.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
    let accept = async_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    write!(
        tcp,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .unwrap();
}

#[test]
fn the_round_trip_is_measured_by_pings() {
    let server = start(echo());
    let connecting = Client::builder(url(&server)).ping(Duration::from_millis(10)).connect();
    let client = within(connecting).unwrap();
    assert_eq!(client.rtt(), None);
    eventually("a pong", || client.rtt().is_some());
    drop(client);
    server.finish();
}

#[test]
fn the_path_of_the_next_connection_can_be_set() {
    let server = start(
        Server::builder()
            .on_open(async |session: &Session| {
                let query = session.query().unwrap_or_default().to_owned();
                session.send(query).await
            })
            .on_message(async |_: &Session, _: Message| {
                Ok::<_, BoxError>(Flow::Close(CloseCode::GOING_AWAY, "".into()))
            }),
    );
    let connecting = Client::builder(url(&server))
        .reconnect(Reconnect::new().first(Duration::from_millis(1)))
        .connect();
    let client = within(connecting).unwrap();
    assert_eq!(within(client.recv()).unwrap().as_text(), Some(""));
    client.set_path("/?since=17").unwrap();
    for wrong in ["", "since", "/a#b", "/a b"] {
        assert!(matches!(client.set_path(wrong), Err(ConnectError::Url { .. })), "{wrong}");
    }
    within(client.send("again")).unwrap();
    assert_eq!(within(client.recv()).unwrap().as_text(), Some("since=17"));
    drop(client);
    server.finish();
}

#[test]
fn settings_that_cannot_be_are_refused_with_their_names() {
    let client = || Client::builder("ws://127.0.0.1:1/");
    let zero = Duration::ZERO;
    for (builder, named) in [
        (client().connect_timeout(zero), "connect_timeout"),
        (client().ping(zero), "ping"),
        (client().pong_timeout(zero), "pong_timeout"),
        (client().write_stall(zero), "write_stall"),
        (client().close_timeout(zero), "close_timeout"),
        (client().message_bytes(0), "message_bytes"),
        (client().queue(0, 1), "queue"),
        (client().inbox(0), "inbox"),
        (client().header("host", "a"), "host"),
        (client().header("a b", "c"), "a b"),
        (client().header("a", "b\r\nc: d"), "header a"),
        (client().subprotocol("a b"), "subprotocol"),
        (client().subprotocol("a").subprotocol("a"), "subprotocol"),
        (client().reconnect(Reconnect::new().first(zero)), "reconnect.first"),
        (client().reconnect(Reconnect::new().longest(zero)), "reconnect.longest"),
        (client().proxy("https://a:1"), "proxy"),
        (client().proxy("http://a:1/path"), "proxy"),
        (Client::builder("127.0.0.1:1"), "ws://"),
    ] {
        let error = builder.build().map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(named), "{named}: {error}");
        assert!(error.is_lasting());
    }
}
