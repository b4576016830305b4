//! The bodies of requests, and answers that come part by part.

#[path = "support/http.rs"]
mod http;
mod support;

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use coracle::{Body, BodyError, Builder, Closures, Reply, Request, Routes, Server};
use futures_lite::stream;
use http::{Client, get, request};
use support::*;

/// For deadlines that a test waits for.
const BRIEF: Duration = Duration::from_millis(300);

const LIMIT: u64 = 100_000;

fn app() -> Builder<Closures> {
    let routes = Routes::new()
        .get("/", async |_: &Request, _: &mut Body| "home")
        .post("/echo", async |_: &Request, body: &mut Body| body.bytes().await)
        .post("/text", async |_: &Request, body: &mut Body| body.text().await)
        .post("/unread", async |_: &Request, body: &mut Body| format!("{:?}", body.length()))
        .post("/first", async |_: &Request, body: &mut Body| {
            let first = body.chunk().await?;
            Ok::<_, BodyError>(first.is_some().to_string())
        })
        .post("/large", async |_: &Request, body: &mut Body| {
            let mut sum = 0;
            while let Some(chunk) = body.chunk().await? {
                assert!(!chunk.is_empty());
                sum += chunk.len();
            }
            Ok::<_, BodyError>(sum.to_string())
        })
        .body_bytes(u64::MAX);
    Server::builder().routes(routes).configure(|config| config.limits.body_bytes = LIMIT)
}

fn post(target: &str, body: &str) -> String {
    request("POST", target, &format!("Content-Length: {}\r\n", body.len())) + body
}

fn chunked(target: &str, body: &str) -> String {
    request("POST", target, "Transfer-Encoding: chunked\r\n") + body
}

#[test]
fn a_body_comes_whole_by_its_length_and_in_chunks() {
    let server = start(app());
    let mut client = Client::of(&server);
    let long = "0123456789".repeat(LIMIT as usize / 10);
    for body in ["", "hello", &long] {
        client.send(post("/echo", body));
        assert_eq!(client.answer().text(), body);
        let chunks = if body.is_empty() {
            String::new()
        } else {
            format!("1\r\n{}\r\n{:X}\r\n{}\r\n", &body[..1], body.len() - 1, &body[1..])
        };
        client.send(chunked("/echo", &(chunks + "0\r\n\r\n")));
        assert_eq!(client.answer().text(), body);
    }
    client.send(request("POST", "/echo", ""));
    assert_eq!(client.answer().text(), "", "no length is no body");
    server.finish();
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let server = start(app());
    // By its length before a byte of it has come; in chunks when it is.
    let over = "x".repeat(LIMIT as usize + 1);
    for request in [
        request("POST", "/echo", &format!("Content-Length: {}\r\n", LIMIT + 1)),
        request("POST", "/echo", "Content-Length: 18446744073709551615\r\n"),
        chunked("/echo", &format!("{:x}\r\n{over}\r\n", over.len())),
    ] {
        let mut client = Client::of(&server);
        client.send(request);
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
        assert!(answer.text().contains("100000 bytes"), "{answer:?}");
    }
    // A route may take more, and what it takes is not kept.
    let mut client = Client::of(&server);
    client.send(post("/large", &"x".repeat(8 << 20)));
    assert_eq!(client.answer().text(), (8 << 20).to_string());
    server.finish();
}

#[test]
fn chunks_that_two_readers_could_read_differently_are_refused() {
    let server = start(app());
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "0\r\n\n",
        "0\r\nX: a\n\r\n",
        "0\r\nX: a\r\n b\r\n\r\n",
        "\r\n",
        "g\r\n",
    ] {
        for target in ["/echo", "/unread"] {
            let mut client = Client::of(&server);
            client.send(chunked(target, body) + &get("/smuggled"));
            let answer = client.answer();
            let status = if target == "/echo" { 400 } else { 200 };
            assert_eq!(
                (answer.status, answer.header("connection")),
                (status, Some("close")),
                "{body:?}"
            );
            client.expect_end();
        }
    }
    server.finish();
}

#[test]
fn who_waits_for_a_100_gets_it_when_the_body_is_asked_for() {
    let server = start(app());
    let mut client = Client::of(&server);
    for _ in 0..2 {
        client.send(request("POST", "/echo", "Content-Length: 5\r\nExpect: 100-Continue\r\n"));
        assert_eq!(client.answer().status, 100);
        client.send("hello");
        assert_eq!(client.answer().text(), "hello");
    }
    // Who does not wait is not told.
    client.send(request("POST", "/echo", "Content-Length: 2\r\nExpect: 100-continue\r\n") + "hi");
    assert_eq!(client.answer().text(), "hi");
    // Nor is who sends too much; and whether the body comes nobody knows.
    client.send(request("POST", "/echo", "Content-Length: 999999\r\nExpect: 100-continue\r\n"));
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
    client.expect_end();
    let mut client = Client::of(&server);
    client.send(request("POST", "/unread", "Content-Length: 5\r\nExpect: 100-continue\r\n"));
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    let mut client = Client::of(&server);
    client.send(request("POST", "/echo", "Content-Length: 5\r\nExpect: the-worst\r\n"));
    assert_eq!(client.answer().status, 417);
    client.expect_end();
    server.finish();
}

// Whoever dropped the future had waited for the body all the same: a 100 came in the middle of the answer.
#[test]
fn no_100_comes_behind_the_head_of_an_answer() {
    let (go_on, may) = smol::channel::unbounded::<()>();
    let routes = Routes::new().post("/", async move |_: &Request, body: &mut Body| {
        assert!(futures_lite::future::poll_once(body.chunk()).await.is_none());
        let may = may.clone();
        Reply::stream(stream::once_future(async move {
            may.recv().await.unwrap();
            Ok(Bytes::from_static(b"answered"))
        }))
    });
    let server = start(Server::builder().routes(routes));
    let mut client = Client::of(&server);
    client.send(request("POST", "/", "Content-Length: 5\r\nExpect: 100-continue\r\n"));
    let answer = client.head_answer();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    go_on.send_blocking(()).unwrap();
    assert_eq!(client.chunk(), b"answered");
    assert_eq!(client.chunk(), b"");
    client.expect_end();
    server.finish();
}

// It was the client's fault (408), and if the body had been too slow meanwhile nobody looked at the clock again.
#[test]
fn a_route_that_has_waited_for_the_body_and_then_hangs_is_a_503() {
    let routes = Routes::new().post("/", async |_: &Request, body: &mut Body| -> Reply {
        assert!(futures_lite::future::poll_once(body.chunk()).await.is_none());
        std::future::pending().await
    });
    // Longer than the grace of a slow body.
    for time in [BRIEF, Duration::from_millis(2500)] {
        let server = start(
            Server::builder()
                .routes(routes.clone())
                .configure(|config| config.timeouts.request = time),
        );
        let mut client = Client::of(&server);
        client.send(request("POST", "/", "Content-Length: 5\r\n"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (503, Some("close")));
        client.expect_end();
        server.finish();
    }
}

#[test]
fn a_body_that_nobody_reads_is_passed_over_or_ends_the_connection() {
    let server = start(app());
    let mut client = Client::of(&server);
    client.send(post("/unread", "hello") + &post("/first", &"x".repeat(60_000)));
    assert_eq!(client.answer().text(), "Some(5)");
    assert_eq!(client.answer().text(), "true");
    client.send(chunked("/unread", "5\r\nhello\r\n0\r\n\r\n") + &get("/"));
    assert_eq!(client.answer().text(), "None");
    assert_eq!(client.answer().text(), "home");
    // What is yet to come is passed over as well, if it is little.
    client.send(request("POST", "/unread", "Content-Length: 10\r\n"));
    assert_eq!(client.answer().header("connection"), None);
    client.send("0123456789".to_owned() + &get("/"));
    assert_eq!(client.answer().text(), "home");
    client.send(request("POST", "/unread", "Content-Length: 99999\r\n"));
    assert_eq!(client.answer().header("connection"), Some("close"));
    client.expect_end();
    server.finish();
}

#[test]
fn a_body_that_does_not_come_is_a_408() {
    // By the time for the answer, long before the grace of a slow body.
    let server = start(app().configure(|config| config.timeouts.request = BRIEF));
    for begun in [post("/echo", "hello"), chunked("/echo", "5\r\nhello\r\n0\r\n\r\n")] {
        let mut client = Client::of(&server);
        client.send(&begun[..begun.len() - 3]);
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
    }
    server.finish();
}

#[test]
fn a_body_that_comes_too_slowly_is_a_408_to_the_route() {
    let server = start(app());
    let mut client = Client::of(&server);
    client.send(request("POST", "/echo", "Content-Length: 5\r\n") + "hell");
    // After the grace of two seconds.
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().contains("too slowly")), (408, true), "{answer:?}");
    client.expect_end();
    server.finish();
}

#[test]
fn a_body_that_is_cut_off_is_a_400() {
    let server = start(app());
    for begun in [post("/echo", "hello"), chunked("/echo", "5\r\nhello\r\n0\r\n\r\n")] {
        let mut client = Client::of(&server);
        client.send(&begun[..begun.len() - 3]);
        client.raw().end_writing();
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (400, Some("close")));
        client.expect_end();
    }
    server.finish();
}

#[test]
fn what_is_no_text_is_a_400_and_the_connection_goes_on() {
    let server = start(app());
    let mut client = Client::of(&server);
    client.send(request("POST", "/text", "Content-Length: 2\r\n"));
    client.send([0xC3, 0x28]);
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("connection")), (400, None));
    client.send(post("/text", "fine"));
    assert_eq!(client.answer().text(), "fine");
    server.finish();
}

#[cfg(feature = "json")]
#[test]
fn json_comes_and_goes() {
    #[derive(serde::Deserialize, serde::Serialize)]
    struct Point {
        x: i32,
        y: i32,
    }
    let server = start(Server::builder().routes(Routes::new().post(
        "/turn",
        async |_: &Request, body: &mut Body| {
            let Point { x, y } = body.json().await?;
            Ok::<_, BodyError>(Reply::json(&Point { x: -y, y: x }))
        },
    )));
    let mut client = Client::of(&server);
    client.send(post("/turn", r#"{"x":1,"y":2}"#));
    let answer = client.answer();
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.text(), r#"{"x":-2,"y":1}"#);
    client.send(post("/turn", r#"{"x":1}"#));
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().contains("missing field `y`")), (400, true));
    server.finish();
}

/// Three parts.
fn parts() -> impl futures_lite::Stream<Item = std::io::Result<Bytes>> {
    stream::iter(["one ", "", "two ", "three"].map(|part| Ok(Bytes::from(part))))
}

#[test]
fn a_streamed_answer_comes_in_chunks_or_by_its_length() {
    let routes = Routes::new()
        .get("/chunks", async |_: &Request, _: &mut Body| Reply::stream(parts()))
        .get("/length", async |_: &Request, _: &mut Body| Reply::stream(parts()).with_length(13))
        .get("/short", async |_: &Request, _: &mut Body| Reply::stream(parts()).with_length(8))
        .get("/long", async |_: &Request, _: &mut Body| Reply::stream(parts()).with_length(14))
        .get("/broken", async |_: &Request, _: &mut Body| {
            let parts = [Ok("one".into()), Err(std::io::Error::other("no more"))];
            Reply::stream(stream::iter(parts))
        })
        .get("/panic", async |_: &Request, _: &mut Body| {
            Reply::stream(stream::once_future(async { panic!("horrors") }))
        });
    let server = start(Server::builder().routes(routes));
    let mut client = Client::of(&server);
    for target in ["/chunks", "/length"] {
        client.send(get(target));
        let answer = client.answer();
        assert_eq!(answer.text(), "one two three");
        assert_eq!(answer.header("transfer-encoding").is_some(), target == "/chunks");
        client.send(request("HEAD", target, ""));
        assert_eq!(client.head_answer().status, 200);
    }
    client.send(get("/short"));
    assert_eq!(client.answer().text(), "one two ", "no more than it said");
    client.send(get("/long"));
    assert_eq!(client.head_answer().header("content-length"), Some("14"));
    assert_eq!(client.raw().read_to_end(), b"one two three", "and then the end");
    for target in ["/broken", "/panic"] {
        let mut client = Client::of(&server);
        client.send(get(target));
        client.head_answer();
        let rest = client.raw().read_to_end();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "it is not whole");
    }
    assert_eq!(server.finish().panics, 1);
}

#[test]
fn a_stream_is_asked_for_no_more_than_the_client_takes() {
    let (asked, asks) = heard();
    let asked = Mutex::new(asked);
    let routes = Routes::new().get("/", async move |_: &Request, _: &mut Body| {
        let asked = asked.lock().unwrap().clone();
        Reply::stream(stream::repeat_with(move || {
            asked.send(()).unwrap();
            Ok(Bytes::from_static(&[b'x'; 64 * 1024]))
        }))
    });
    let server = start(Server::builder().routes(routes));
    let mut stream = server.handle.connect().unwrap();
    within(async {
        use futures_lite::{AsyncReadExt, AsyncWriteExt};
        stream.write_all(get("/").as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 300 * 1024]).await.unwrap();
    });
    drop(stream);
    server.finish();
    // Five parts have been taken, one or two fill the pipe, and one waits.
    let asked = asks.drain();
    assert!((5..=8).contains(&asked), "{asked}");
}

#[test]
fn a_stream_is_dropped_when_its_client_goes_or_takes_nothing() {
    struct Guard(std::sync::mpsc::Sender<()>);
    impl Drop for Guard {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let (dropped, drops) = heard();
    let dropped = Mutex::new(dropped);
    let routes = Routes::new()
        .get("/silent", {
            let dropped = Mutex::new(dropped.lock().unwrap().clone());
            async move |_: &Request, _: &mut Body| {
                let guard = Guard(dropped.lock().unwrap().clone());
                Reply::stream(stream::unfold(guard, |guard| async move {
                    std::future::pending::<()>().await;
                    Some((Ok(Bytes::new()), guard))
                }))
            }
        })
        .get("/flood", async move |_: &Request, _: &mut Body| {
            let guard = Guard(dropped.lock().unwrap().clone());
            Reply::stream(stream::unfold(guard, |guard| async move {
                Some((Ok(Bytes::from_static(&[0; 1 << 16])), guard))
            }))
        });
    let server = start(
        Server::builder().routes(routes).configure(|config| config.timeouts.write_stall = BRIEF),
    );
    // It closes, resets, or only says that it has nothing more to say.
    for end in 0..3 {
        let mut client = Client::of(&server);
        client.send(get("/silent"));
        assert_eq!(client.head_answer().status, 200);
        assert!(drops.try_next().is_none());
        let raw = client.into_raw();
        match end {
            0 => drop(raw),
            1 => raw.reset(),
            _ => {
                raw.end_writing();
                drops.next();
                continue;
            }
        }
        drops.next();
    }
    let mut client = Client::of(&server);
    client.send(get("/flood"));
    client.head_answer();
    drops.next();
    server.finish();
}
