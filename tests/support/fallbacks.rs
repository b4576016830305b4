//! Servers that serve clients without WebSocket, and what their tests ask of them.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use std::time::Duration;

use coracle::{Builder, Closed, Fallbacks, Handler, Message, Server, Session};

use super::polling::{Http, Polling};
use super::support::*;

/// For deadlines that a test waits for.
pub const BRIEF: Duration = Duration::from_millis(300);

pub fn builder() -> Builder {
    // Not so long that a test waits for it twice.
    Server::builder()
        .fallbacks(Fallbacks::new())
        .configure(|config| config.timeouts.poll_window = Duration::from_secs(1))
}

pub fn echo() -> Builder<impl Handler> {
    builder().on_message(async |session: &Session, message: Message| session.send(message).await)
}

/// An echo that reports how its sessions end.
pub fn recorded_echo() -> (Builder<impl Handler>, Heard<Closed>) {
    let (sender, closed) = heard();
    let builder = builder()
        .on_message(async |session: &Session, message: Message| session.send(message).await)
        .on_close(record(&sender));
    (builder, closed)
}

pub fn only(server: &TestServer) -> Session {
    let mut all = server.handle.sessions().all();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// A poll of this client that waits: only then another one is refused.
pub fn parked(server: &TestServer, client: &Polling) -> Http {
    loop {
        let [mut first, mut second] =
            [(); 2].map(|()| Http::connect(server.addr()).expect("a connection"));
        let target = client.target("poll", &format!("&cursor={}", client.cursor));
        first.write("GET", &target, "", b"").unwrap();
        // By then it will have come, most of the time.
        second.post(&client.target("ack", ""), "text/plain", "").expect(204);
        if second.get(&target).status == 409 {
            return first;
        }
        // It was the faster one, and its window is over by now.
        assert_eq!(first.read_answer().unwrap().status, 409);
    }
}
