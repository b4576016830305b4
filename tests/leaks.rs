//! What a server leaves behind: nothing. The only test of its binary, because it counts the threads,
//! the descriptors and the memory of the whole process.

#[path = "support/belongings.rs"]
mod belongings;
#[path = "support/pipe.rs"]
mod pipe;
#[cfg(feature = "tls")]
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::sync::Mutex;
use std::time::Duration;

use belongings::*;
use coracle::{Message, Report, Server, Session, Upgrade};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use pipe::*;
use support::*;

#[test]
fn a_server_leaves_nothing_behind() {
    // What the test itself needs for good: smol's own reactor and its thread.
    within(async { smol::Timer::after(Duration::from_millis(1)).await });
    let before = Belongings::now();
    for _ in 0..3 {
        let report = two_hundred_sessions_in_all_states();
        before.are_all_there_is();
        assert_eq!(report.drained + report.cut, 20 * EACH, "{report:?}");
        assert!(report.drained > 0 && report.cut > 0, "{report:?}");
    }
    ten_thousand_sessions_one_after_the_other();
    before.are_all_there_is();
}

/// Longer than any test may take.
const FAR: Duration = Duration::from_secs(600);

/// Sessions of each of twenty rounds.
const EACH: usize = if cfg!(feature = "tls") { 8 + 4 } else { 8 };

/// Sessions are kept by the application, handlers hang, peers are silent or flood or are gone: 160
/// sessions and 40 that never become one; with TLS 80 and 40 more.
fn two_hundred_sessions_in_all_states() -> Report {
    let (opens, sessions) = heard();
    let opens = Mutex::new(opens);
    let (hooks, asked) = heard::<()>();
    let hooks = Mutex::new(hooks);
    let kept = std::sync::Arc::new(Mutex::new(Vec::<Session>::new()));
    let keep = std::sync::Arc::clone(&kept);
    // The first listener is the one without TLS.
    let builder = Server::builder().bind("127.0.0.1:0");
    #[cfg(feature = "tls")]
    let builder = builder.tls(secure::unwatched()).bind_tls("127.0.0.1:0");
    let server = start(
        builder
            .configure(|config| {
                config.timeouts.stop = Duration::from_millis(500);
                // Nothing ends before the stop, however long it takes to open them all.
                let timeouts = &mut config.timeouts;
                (timeouts.handshake, timeouts.write_stall) = (FAR, FAR);
                (timeouts.close, timeouts.ping) = (FAR, None);
                config.limits.outbox_bytes = 8 << 20;
            })
            .on_accept(async move |request| {
                if request.path() == "/hook" {
                    hooks.lock().unwrap().send(()).unwrap();
                    std::future::pending::<()>().await;
                }
                Ok(Upgrade::new())
            })
            .on_open(async move |session: &Session| {
                keep.lock().unwrap().push(session.clone());
                opens.lock().unwrap().send(session.clone()).unwrap();
            })
            .on_message(async |session: &Session, message: Message| match session.path() {
                "/hang" => std::future::pending().await,
                "/timer" => {
                    smol::Timer::after(FAR).await;
                    Ok(())
                }
                _ => session.send(message).await,
            }),
    );
    let open = |target: &str| {
        let mut raw = server.raw();
        raw.send(handshake(target).as_bytes());
        raw.read_head();
        (raw, sessions.next())
    };
    let mut peers = Vec::new();
    let mut pipes = Vec::new();
    #[cfg(feature = "tls")]
    let mut secured = Vec::new();
    for number in 0..20 {
        // Idle, and polite when the stop comes.
        let (mut idle, _) = open("/");
        idle.echo("hello");
        peers.push((idle, true));
        // Said goodbye to, and silent.
        let (mut closing, session) = open("/");
        session.close(coracle::CloseCode::NORMAL, "bye");
        assert_eq!(closing.read_close().0, 1000);
        peers.push((closing, false));
        // Its handler never comes back, or waits for a timer of another executor.
        for target in ["/hang", "/timer"] {
            let (mut hanging, _) = open(target);
            hanging.send_frame(TEXT, b"hang");
            hanging.send_frame(TEXT, b"read ahead");
            peers.push((hanging, false));
        }
        // In the middle of a message.
        let (mut half, _) = open("/");
        half.send(&frame(true, BINARY, &[7; 1000])[..500]);
        peers.push((half, false));
        // Reads nothing of what is queued, and somebody waits for room.
        let (stuck, session) = open("/");
        while session.try_send(vec![7; 1 << 20]).is_ok() {}
        peers.push((stuck, false));
        // In memory: one that is full, and one that is gone before the stop is over.
        let full = Pipe::connect(&server);
        let session = sessions.next();
        session.try_send(vec![7; 2 * PIPE]).unwrap();
        await_full_pipe(&session);
        pipes.push(full);
        let (mut leaving, _) = open("/");
        leaving.echo("hello");
        peers.push((leaving, number % 2 == 0));
        // No sessions: half of a head, and a hook that waits.
        let mut head = server.raw();
        head.send(b"GET / HTTP/1.1\r\n");
        peers.push((head, false));
        let mut hook = server.raw();
        hook.send(handshake("/hook").as_bytes());
        asked.next();
        peers.push((hook, false));
        #[cfg(feature = "tls")]
        secured.extend(in_tls(&server, &sessions));
    }
    assert_eq!(server.handle.sessions().count(), 20 * EACH);
    server.handle.request_stop();
    for (peer, polite) in &mut peers {
        if *polite {
            peer.expect_close(1001);
        }
    }
    #[cfg(feature = "tls")]
    for (peer, _) in secured.iter_mut().filter(|(_, polite)| *polite) {
        assert_eq!(peer.read_frame().close().0, 1001);
        peer.send_frame(CLOSE, &1001_u16.to_be_bytes());
        peer.expect_end();
    }
    // The peers are there until the server has ended: it does not need their help.
    let report = server.finish();
    assert_eq!(report.panics, 0);
    assert_eq!(kept.lock().unwrap().len(), 20 * EACH, "kept handles keep no descriptor");
    report
}

/// Four sessions with TLS and two that never become one; and whether they are polite when the stop comes.
#[cfg(feature = "tls")]
fn in_tls(server: &TestServer, sessions: &Heard<Session>) -> Vec<(secure::Secure, bool)> {
    use secure::{Secure, client_config};
    use std::io::Write;

    let addr = server.handle.local_addrs()[1];
    let connect = || Secure::connect(addr, client_config(), "localhost").unwrap();
    let open = || {
        let mut client = connect();
        client.upgrade();
        (client, sessions.next())
    };
    let (mut idle, _) = open();
    idle.echo("hello");
    // In the middle of a message, and of a record of it.
    let (mut half, _) = open();
    half.send(&frame(true, BINARY, &[7; 1000])[..500]);
    half.tls.sock.write_all(&[23, 3, 3, 1, 0, 7, 7, 7]).unwrap();
    // Reads nothing of what is queued, of which some is encrypted.
    let (stuck, session) = open();
    while session.try_send(vec![7; 1 << 20]).is_ok() {}
    // Over a stream of the application.
    let (stream, peer) = std::os::unix::net::UnixStream::pair().unwrap();
    server.handle.serve_tls(smol::Async::new(stream).unwrap(), None).unwrap();
    let peer = Raw::over(peer.into()).stream;
    let mut served = Secure::over(peer, client_config(), "localhost").unwrap();
    served.upgrade();
    sessions.next();
    // A handshake and no request; half of a request.
    let silent = connect();
    let mut head = connect();
    head.send(b"GET / HTTP/1.1\r\n");
    let rude = [half, stuck, served, silent, head].map(|client| (client, false));
    [(idle, true)].into_iter().chain(rude).collect()
}

// Every session left a few bytes behind: a place in a list, a waker, a timer's entry. After a week
// of phones that come and go, the process was killed for its memory.
fn ten_thousand_sessions_one_after_the_other() {
    let server = start(
        Server::builder()
            .on_message(async |session: &Session, message: Message| session.send(message).await),
    );
    let handle = &server.handle;
    let conversation = async || {
        let mut stream = handle.connect().expect("the server accepts");
        stream.write_all(handshake("/").as_bytes()).await.unwrap();
        stream.write_all(&frame(true, TEXT, b"hello")).await.unwrap();
        stream.write_all(&frame(true, CLOSE, &1000_u16.to_be_bytes())).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.ends_with(b"\x81\x05hello\x88\x02\x03\xE8"), "{answer:?}");
    };
    let thousand = || {
        within(async {
            for _ in 0..1000 {
                conversation().await;
            }
        });
        eventually("all have left", || handle.sessions().count() == 0);
        memory()
    };
    // Buffers, slabs and the allocator's arenas find their sizes.
    let settled = (0..2).map(|_| thousand()).max().unwrap();
    let after = (0..10).fold(0, |_, _| thousand());
    let grown = after.saturating_sub(settled);
    // Sixteen bytes a session would be 160 KiB; a handle alone is more than a hundred.
    assert!(grown < 512, "{grown} KiB more after ten thousand sessions");
    server.finish();
}
