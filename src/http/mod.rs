//! The front door: one HTTP request head in, one answer out.
//!
//! Everything that arrives on a listener is an HTTP/1.1 request first, and this room decides what
//! becomes of it. Most of its parts are pure: bytes and values in, bytes and values out, no socket, no
//! clock, no waiting. In the order in which a connection meets them:
//!
//! | part | question it answers |
//! |---|---|
//! | `head` | is the head complete, and could it still be one? (asked after every read) |
//! | `request` | what does it say? One strict parse into a [`Request`] |
//! | `forwarded` | who is the client, if proxies stand in between? |
//! | `origin` | may a page of that origin talk to us? [`OriginPolicy`] |
//! | `upgrade` | is it a WebSocket handshake by RFC 6455 section 4.2.1, and what is the 101 answer? [`Upgrade`] |
//! | `exchange`, `conn` | if it is none: request and answer, one after the other, on one connection |
//! | `routes`, `builtin`, `files`, `cors` | who answers it? [`Routes`], the server's own, files, and for whose pages |
//! | `body`, `chunked` | what does it bring? [`Body`] |
//! | `reply`, `date` | what does it get? [`Reply`] |
//! | `handover` | what does another HTTP server say of a connection that it has upgraded? [`Handover`] |
//! | `response`, `refusal` | any other answer, and the sentence that says why |
//!
//! The input is hostile. Whatever two HTTP implementations might read differently (bare line feeds,
//! folded headers, two lengths, a space before the colon) is refused and never repaired, because a
//! proxy in front may have read it the other way.

mod authority;
pub(crate) mod body;
pub(crate) mod builtin;
pub(crate) mod chunked;
mod conn;
mod cors;
mod date;
mod exchange;
pub(crate) mod extensions;
mod files;
pub(crate) mod forwarded;
pub(crate) mod front;
pub(crate) mod handover;
pub(crate) mod head;
mod module;
#[cfg(feature = "json")]
pub(crate) mod openapi;
pub(crate) mod origin;
pub(crate) mod refusal;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod routes;
mod token;
pub(crate) mod upgrade;

pub use body::{Body, BodyError};
pub use handover::Handover;
pub use origin::OriginPolicy;
pub use reply::{IntoReply, Reply};
pub use request::Request;
pub use response::Response;
pub use routes::Routes;
pub(crate) use routes::Site;
pub use upgrade::Upgrade;

#[cfg(test)]
mod tests {
    use super::head::HeadScanner;
    use super::refusal::Refusal;
    use super::request::Request;
    use crate::transport::Peer;

    /// What the connection does with the bytes of one head: scan, then parse.
    pub(super) fn read(head: &[u8]) -> Result<Request, Refusal> {
        let len =
            HeadScanner::default().scan(head, 8 * 1024)?.expect("the head of a test is complete");
        assert_eq!(len, head.len(), "the head of a test has nothing after it");
        Request::parse(head.to_vec(), Peer::Memory, 64)
    }
}
