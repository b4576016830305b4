//! Ordinary requests together with TLS, proxies, byte streams of the application, and sessions beside them.

#[path = "support/http.rs"]
mod http;
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::io::Read;

use coracle::config::Network;
use coracle::{Body, Builder, Message, Request, Routes, Server, Session};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use http::{Client, get, request};
use secure::*;
use support::*;

fn routes() -> Routes {
    Routes::new()
        .get("/client", async |request: &Request, _: &mut Body| {
            request.client_ip().map(|ip| ip.to_string())
        })
        .get("/tls", async |request: &Request, _: &mut Body| {
            request.tls().map(|tls| tls.version().to_string())
        })
        .post("/echo", async |_: &Request, body: &mut Body| body.bytes().await)
        .post("/say/{room}", async |request: &Request, body: &mut Body| {
            let room = request.param("room").unwrap_or_default().into_owned();
            let text = body.text().await?;
            let members = request.rooms().publish(&*room, text).await;
            Ok::<_, coracle::BodyError>(format!("{members} of {}", request.sessions().count()))
        })
}

fn echo(builder: Builder) -> Builder<impl coracle::Handler> {
    builder
        .on_open(async |session: &Session| {
            session.join("lobby").expect("there is room");
        })
        .on_message(async |session: &Session, message: Message| session.send(message).await)
}

/// Reads one answer with a `Content-Length`: its status line, and its body.
fn read_answer(stream: &mut impl Read) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (head.lines().next().unwrap().to_owned(), body)
}

#[test]
fn a_connection_with_tls_is_kept_and_upgraded_like_any_other() {
    let server = echo(Server::builder().routes(routes()).tls(unwatched()))
        .bind_tls("127.0.0.1:0")
        .start()
        .unwrap();
    let mut secure = Secure::connect(server.local_addr(), client_config(), "localhost").unwrap();
    let body: Vec<u8> = (0..500_000_u32).map(|at| at as u8).collect();
    for _ in 0..2 {
        let head = request("POST", "/echo", &format!("Content-Length: {}\r\n", body.len()));
        secure.send(head.as_bytes());
        secure.send(&body);
        let (status, echoed) = read_answer(&mut secure.tls);
        assert_eq!((&*status, echoed == body), ("HTTP/1.1 200 OK", true));
        secure.send(get("/tls").as_bytes());
        assert_eq!(read_answer(&mut secure.tls).1, b"TLS 1.3");
    }
    secure.upgrade();
    secure.echo("hello");
    drop(secure);
    within(server.stop());
}

#[test]
fn each_request_of_a_proxys_connection_has_its_own_client() {
    let server = start(Server::builder().routes(routes()).configure(|config| {
        config.proxies.trusted = vec!["127.0.0.0/8".parse::<Network>().unwrap()];
        config.limits.http_connections = Some(4);
    }));
    let mut clients: Vec<Client> = (0..3).map(|_| Client::of(&server)).collect();
    for client in &mut clients {
        for ip in ["203.0.113.7", "2001:db8::7"] {
            let forwarded = format!("X-Forwarded-For: {ip}\r\n");
            client.send(request("GET", "/client", &forwarded));
            assert_eq!(client.answer().text(), ip);
        }
        client.send(get("/client"));
        assert_eq!(client.answer().text(), "127.0.0.1", "its own");
    }
    // More than one address may have: they are its clients'. It is the last place, and not kept.
    let mut fourth = Client::of(&server);
    fourth.send(request("GET", "/client", "X-Forwarded-For: 203.0.113.9\r\n"));
    let answer = fourth.answer();
    assert_eq!((&*answer.text(), answer.header("connection")), ("203.0.113.9", Some("close")));
    server.finish();
}

#[test]
fn what_is_posted_reaches_the_sessions_of_a_room() {
    let server = start(echo(Server::builder().routes(routes())));
    let mut members = [server.client(), server.client()];
    members.iter_mut().for_each(|member| member.echo("I am in the room"));
    let mut client = Client::of(&server);
    client.send(request("POST", "/say/lobby", "Content-Length: 5\r\n") + "hello");
    assert_eq!(client.answer().text(), "2 of 2");
    for member in &mut members {
        assert_eq!(member.expect_text(), "hello");
    }
    server.finish();
}

#[test]
fn requests_come_through_memory_and_any_stream_as_well() {
    let server = start(echo(Server::builder().routes(routes())));
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    server.handle.serve(smol::Async::new(theirs).unwrap()).unwrap();
    let mut memory = server.handle.connect().unwrap();
    let ask = request("POST", "/echo", "Content-Length: 5\r\n") + "hello";
    within(async {
        let mut stream = smol::Async::new(ours).unwrap();
        for _ in 0..3 {
            for stream in [&mut stream as &mut (dyn Stream + Unpin), &mut memory] {
                stream.write_all(ask.as_bytes()).await.unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(b"\r\n\r\nhello") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).await.unwrap();
                    answer.extend(byte);
                }
            }
        }
    });
    server.finish();
}

trait Stream: futures_lite::AsyncRead + futures_lite::AsyncWrite {}
impl<T: futures_lite::AsyncRead + futures_lite::AsyncWrite> Stream for T {}
