//! Places among the connections with ordinary requests, while a session's poll waits on one of them.

#[path = "support/http.rs"]
mod http;
#[path = "support/polling.rs"]
mod polling;
mod support;

use coracle::{Body, Fallbacks, Request, Routes, Server};
use http::{Client, get};
use polling::Polling;
use support::*;

#[test]
fn a_connection_whose_place_was_taken_while_its_poll_waited_is_closed_behind_the_answer() {
    let routes = Routes::new().get("/", async |_: &Request, _: &mut Body| "home");
    let server = start(
        Server::builder()
            .fallbacks(Fallbacks::new())
            .routes(routes)
            .configure(|config| config.limits.http_connections = Some(4)),
    );
    let mut polling = Polling::open(server.addr());
    let target = polling.target("poll", "&cursor=0");
    polling.http.write("GET", &target, "", b"").unwrap();
    // Three places of the four for one address: the third is there only while the poll waits.
    let mut kept = Vec::new();
    eventually("the poll has given its place back", || {
        let mut client = Client::of(&server);
        client.send(get("/"));
        let answer = client.answer();
        if answer.status == 200 {
            assert_eq!(answer.header("connection"), None);
            kept.push(client);
        }
        kept.len() == 3
    });
    server.handle.sessions().all()[0].try_send("late").unwrap();
    let answer = polling.http.read_answer().unwrap();
    assert_eq!((answer.texts(), answer.header("connection")), (vec!["late".into()], Some("close")));
    // It has taken nobody's place.
    kept.iter_mut().for_each(Client::ping);
    let mut further = Client::of(&server);
    further.send(get("/"));
    assert_eq!(further.answer().status, 503);
    // Once there is one again its client goes on.
    drop(kept);
    eventually("there is a place", || {
        let mut client = Client::of(&server);
        client.send(get("/"));
        client.answer().status == 200
    });
    server.finish();
}
