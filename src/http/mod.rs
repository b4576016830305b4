//! The front door: one HTTP request head in, one answer out.
//!
//! Everything that arrives on a listener is an HTTP/1.1 request first, and this room decides what
//! becomes of it. Its parts are pure: bytes and values in, bytes and values out, no socket, no
//! clock, no waiting. In the order in which a connection meets them:
//!
//! | part | question it answers |
//! |---|---|
//! | `head` | is the head complete, and could it still be one? (asked after every read) |
//! | `request` | what does it say? One strict parse into a [`Request`] |
//! | `forwarded` | who is the client, if proxies stand in between? |
//! | `origin` | may a page of that origin talk to us? [`OriginPolicy`] |
//! | `upgrade` | is it a WebSocket handshake by RFC 6455 section 4.2.1, and what is the 101 answer? [`Upgrade`] |
//! | `page` | if it is none: does the application have a page for it? [`PageHook`] |
//! | `handover` | what does another HTTP server say of a connection that it has upgraded? [`Handover`] |
//! | `response`, `refusal` | any other answer, and the sentence that says why |
//!
//! The input is hostile. Whatever two HTTP implementations might read differently (bare line feeds,
//! folded headers, two lengths, a space before the colon) is refused and never repaired, because a
//! proxy in front may have read it the other way.

mod authority;
pub(crate) mod extensions;
pub(crate) mod forwarded;
pub(crate) mod front;
pub(crate) mod handover;
pub(crate) mod head;
pub(crate) mod origin;
mod page;
pub(crate) mod refusal;
pub(crate) mod request;
pub(crate) mod response;
mod token;
pub(crate) mod upgrade;

pub use handover::Handover;
pub use origin::OriginPolicy;
pub use page::PageHook;
pub use request::Request;
pub use response::Response;
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
