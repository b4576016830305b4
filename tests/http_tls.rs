//! Ordinary requests over TLS: the same connections, kept and pipelined, up to a WebSocket.

#[path = "support/http.rs"]
mod http;
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::io::Read;

use coracle::{Body, Message, Request, Routes, Server, Session};
use http::{get, request};
use secure::*;
use support::*;

fn routes() -> Routes {
    Routes::new()
        .get("/tls", async |request: &Request, _: &mut Body| request.tls().is_some().to_string())
        .get("/large", async |_: &Request, _: &mut Body| "x".repeat(300_000))
        .post("/echo", async |_: &Request, body: &mut Body| body.bytes().await)
}

/// The body of the next answer.
fn answer(client: &mut Secure) -> String {
    let head = client.read_head();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    client.tls.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

#[test]
fn a_connection_is_kept_and_pipelined_and_then_upgraded() {
    let server = Server::builder()
        .tls(unwatched())
        .bind_tls("127.0.0.1:0")
        .workers(2)
        .routes(routes())
        .on_message(async |session: &Session, message: Message| session.send(message).await)
        .start()
        .unwrap();
    let server = TestServer { handle: server };
    for version in BOTH {
        let config = client_with(&[version], None);
        let mut client = Secure::connect(server.addr(), config, "localhost").unwrap();
        // One after the other, and what is known of TLS is known of each.
        for _ in 0..3 {
            client.send(get("/tls").as_bytes());
            assert_eq!(answer(&mut client), "true");
        }
        // Ahead, over several records, the handshake among them.
        let body = "0123456789".repeat(5000);
        let post = request("POST", "/echo", "Content-Length: 50000\r\n") + &body;
        let mut all = (post + &get("/large") + &get("/tls") + &handshake("/")).into_bytes();
        all.extend(frame(true, TEXT, b"ahead"));
        client.send(&all);
        assert_eq!(answer(&mut client), body);
        assert_eq!(answer(&mut client).len(), 300_000);
        assert_eq!(answer(&mut client), "true");
        let head = client.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(client.read_frame().payload, b"ahead");
        assert_eq!(server.handle.sessions().count(), 1);
        drop(client);
        eventually("the session has ended", || server.handle.sessions().count() == 0);
    }
    server.finish();
}
