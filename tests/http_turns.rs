//! Answers that go on for ever: what they leave to the others of their worker, and how long a client may take little.

#[path = "support/http.rs"]
mod http;
mod support;

use std::io::Read;
use std::sync::Mutex;
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::Bytes;
use coracle::{Body, Builder, Handler, Message, Reply, Request, Routes, Server, Session};
use futures_lite::stream;
use http::{Client, get};
use support::*;

/// For deadlines that a test waits for.
const BRIEF: Duration = Duration::from_millis(300);

/// Says that it is dropped.
struct Guard(Sender<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// One worker, which echoes, and has a stream for each of these parts that is always ready.
fn app() -> (Builder<impl Handler>, Heard<()>) {
    let (dropped, drops) = heard();
    let mut routes = Routes::new();
    for (path, part) in [("/empty", 0), ("/single", 1), ("/large", 256 * 1024)] {
        let dropped = Mutex::new(dropped.clone());
        routes = routes.get(path, async move |_: &Request, _: &mut Body| {
            let guard = Guard(dropped.lock().unwrap().clone());
            let part = Bytes::from(vec![b'x'; part]);
            Reply::stream(stream::repeat_with(move || {
                let _held = &guard;
                Ok(part.clone())
            }))
        });
    }
    let app = Server::builder()
        .workers(1)
        .routes(routes)
        .on_message(async |session: &Session, message: Message| session.send(message).await);
    (app, drops)
}

// The loop asked the stream again as long as it was ready and the socket took what came: nobody else of the worker had
// a turn, and neither a stop nor its deadline was heard of.
#[test]
fn a_stream_that_is_always_ready_leaves_turns_to_others_and_hears_of_the_stop() {
    for path in ["/empty", "/single", "/large"] {
        let (app, drops) = app();
        let server = start(app.configure(|config| config.timeouts.stop = BRIEF));
        let mut session = server.client();
        let mut client = Client::of(&server);
        client.send(get(path));
        assert_eq!(client.head_answer().status, 200);
        let mut raw = client.into_raw();
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while raw.stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
        });
        for _ in 0..100 {
            session.echo("hello");
        }
        session.goodbye();
        let report = server.finish();
        assert_eq!((report.requests, report.requests_cut), (0, 1), "{path}");
        drops.next();
        reader.join().unwrap();
    }
}

#[test]
fn a_stream_that_is_always_ready_is_dropped_when_its_client_goes() {
    let (app, drops) = app();
    let server = start(app);
    for path in ["/empty", "/single", "/large"] {
        let mut client = Client::of(&server);
        client.send(get(path));
        assert_eq!(client.head_answer().status, 200);
        // It is always ready, and nothing else of its client is to be waited for.
        if path == "/empty" {
            client.raw().end_writing();
        } else {
            drop(client);
        }
        drops.next();
    }
    server.finish();
}

// A client that took one byte before each deadline kept its answer, and the place of its connection, for as long as it
// liked.
#[test]
fn a_client_that_takes_a_byte_now_and_then_does_not_take_its_answer() {
    let (app, drops) = app();
    let server = start(app.configure(|config| config.timeouts.write_stall = BRIEF));
    let mut stream = server.handle.connect().unwrap();
    within(async {
        use futures_lite::{AsyncReadExt, AsyncWriteExt};
        stream.write_all(get("/large").as_bytes()).await.unwrap();
        while drops.try_next().is_none() {
            // As long as there is something: behind it comes the end.
            if stream.read(&mut [0]).await.unwrap() == 0 {
                break;
            }
            // A tenth of what it is to take at least.
            smol::Timer::after(Duration::from_millis(40)).await;
        }
    });
    drop(stream);
    server.finish();
}

#[test]
fn a_client_that_takes_its_answer_slowly_but_fast_enough_gets_it() {
    let (app, _drops) = app();
    let server = start(app.configure(|config| {
        config.timeouts.write_stall = BRIEF;
        config.limits.body_bytes_per_second = 1;
    }));
    let mut stream = server.handle.connect().unwrap();
    within(async {
        use futures_lite::{AsyncReadExt, AsyncWriteExt};
        stream.write_all(get("/large").as_bytes()).await.unwrap();
        // Longer than the deadline together.
        for _ in 0..40 {
            assert!(stream.read(&mut [0; 100]).await.unwrap() > 0);
            smol::Timer::after(Duration::from_millis(20)).await;
        }
        stream.read_exact(&mut [0; 200 * 1024]).await.unwrap();
    });
    drop(stream);
    server.finish();
}
