//! The messages of a session as server-sent events (WHATWG HTML, section 9.2).

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::{Stream, stream};

use super::present;
use super::relay::{Carried, Found, Visit};
use super::requests::late;
use crate::executor::Worker;

/// How long a browser waits before it comes again when its stream has ended, in milliseconds.
const RETRY: &str = "1000";

/// Messages in one piece of the stream, and bytes of them: what one write may carry.
const PIECE_MESSAGES: usize = 64;
const PIECE_BYTES: usize = 64 * 1024;

/// What a browser says of the last event that it has got.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LastId {
    pub(super) session: Option<String>,
    pub(super) cursor: u64,
}

impl LastId {
    /// `7`, or `token:7` where the stream's URL does not name its session.
    pub(super) fn parse(id: &str) -> Result<Self, &'static str> {
        let (session, number) = match id.rsplit_once(':') {
            Some((session, number)) => (Some(session.to_owned()), number),
            None => (None, id),
        };
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        match number.parse() {
            Ok(cursor) if digits => Ok(Self { session, cursor }),
            _ => Err("the Last-Event-ID is none of this server's"),
        }
    }
}

/// A stream of events, for as long as nobody takes its place.
pub(super) struct Events {
    visit: Visit,
    worker: Rc<Worker>,
    /// How often there is a sign of life.
    window: Duration,
    token: String,
    /// The ids of events name the session.
    named: bool,
    begun: bool,
    ended: bool,
    /// The number of the last message that has been sent.
    last: u64,
    /// The connection is the session's own.
    _carried: Option<Carried>,
}

impl Events {
    pub(super) fn new(
        visit: Visit,
        worker: &Rc<Worker>,
        window: Duration,
        token: String,
        last: u64,
    ) -> Self {
        let worker = Rc::clone(worker);
        let (named, begun, ended, _carried) = (false, false, false, None);
        Self { visit, worker, window, token, named, begun, ended, last, _carried }
    }

    /// On the connection that is the session's own, if it is.
    pub(super) fn on(mut self, carried: Option<Carried>) -> Self {
        self._carried = carried;
        self
    }

    /// With the session's token in every id, because the URL does not have it.
    pub(super) fn named(mut self) -> Self {
        self.named = true;
        self
    }

    /// What a browser says when it has got this far and comes again.
    fn id(&self, number: u64) -> String {
        if self.named { format!("{}:{number}", self.token) } else { number.to_string() }
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> {
        stream::unfold(self, |mut events| async move {
            let piece = events.next().await?;
            Some((Ok(piece), events))
        })
    }

    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            present::field("retry", RETRY, &mut out);
            present::field("event", "open", &mut out);
            let open = serde_json::json!({ "session_id": self.token, "cursor": self.last });
            present::field("data", &open.to_string(), &mut out);
            // So that who is cut off before the first message comes back to this session.
            present::field("id", &self.id(self.last), &mut out);
            out.push(b'\n');
            return Some(out.into());
        }
        let until = self.worker.now() + self.window;
        loop {
            let changed = self.visit.relay().listen();
            match self.visit.look(self.last, PIECE_MESSAGES, PIECE_BYTES) {
                Found::Messages(first, messages) => {
                    for (message, number) in messages.iter().zip(first..) {
                        present::event(message, &self.id(number), &mut out);
                        self.last = number;
                    }
                    return Some(out.into());
                }
                Found::Closed(close) => {
                    self.ended = true;
                    present::field("event", "close", &mut out);
                    present::field("data", &present::closed(close.as_ref()), &mut out);
                    out.push(b'\n');
                    return Some(out.into());
                }
                // The client comes again, and says by that what it has got.
                Found::Full | Found::Displaced => return None,
                Found::Nothing => {}
            }
            if late(changed, &self.worker, until).await {
                // A comment: whoever is in between sees that the stream lives.
                return Some(Bytes::from_static(b":\n\n"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_id_may_name_the_session() {
        let parsed = |id| LastId::parse(id).unwrap();
        assert_eq!(parsed("7"), LastId { session: None, cursor: 7 });
        assert_eq!(parsed("a-b_c:0"), LastId { session: Some("a-b_c".into()), cursor: 0 });
        for wrong in ["", ":", "a:", "-1", "+1", "a", "7:a", "99999999999999999999"] {
            assert!(LastId::parse(wrong).is_err(), "{wrong}");
        }
    }
}
