//! An application whose numbers are looked at, and what they are called.
#![allow(dead_code, unreachable_pub, reason = "no test file uses everything")]

use coracle::history::Memory;
use coracle::{Builder, CloseCode, Flow, Handler, Message, Outcome, Server, Session};

use super::scrape::*;
use super::support::*;

/// Echoes, and does what it is told by some messages.
pub struct App;

impl Handler for App {
    async fn message(&self, session: &Session, message: Message) -> Outcome {
        match message.as_text() {
            Some("join") => session.join("room")?,
            Some("fail") => return Err("as it was told".into()),
            Some("bye") => return Ok(Flow::Close(CloseCode::NORMAL, "as it was told".into())),
            Some("abort") => session.abort(),
            _ => session.send(message).await?,
        }
        Ok(Flow::Continue)
    }
}

pub fn app() -> Builder<App> {
    Server::builder().workers(1).handler(App)
}

pub fn closed(by: &str, code: &str, cause: &str) -> String {
    format!("coracle_sessions_closed_total{{by=\"{by}\",code=\"{code}\",cause=\"{cause}\"}}")
}

pub fn rejected(reason: &str) -> String {
    format!("coracle_connections_rejected_total{{reason=\"{reason}\"}}")
}

/// Waits until a series has this value.
#[track_caller]
pub fn await_value(server: &TestServer, series: &str, value: u32) {
    eventually(series, || scrape(&server.handle).get(series) == f64::from(value));
}

/// `start` binds the listener without TLS last.
pub fn plain_client(server: &TestServer) -> Raw {
    let mut client = Raw::connect(*server.handle.local_addrs().last().unwrap());
    client.upgrade();
    client
}

/// Some numbers are there only where there is something to count.
pub fn app_with_all_numbers() -> Builder<App> {
    let builder = app().history(Memory::new());
    #[cfg(feature = "fallback")]
    let builder = builder.fallbacks(coracle::Fallbacks::new());
    #[cfg(feature = "tls")]
    let builder = builder.tls(super::secure::unwatched()).bind_tls("127.0.0.1:0");
    builder
}

/// A request that ends its connection.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}
