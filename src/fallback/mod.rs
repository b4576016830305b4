//! Sessions for clients whose network lets no WebSocket through: what they are sent comes by long polling or
//! as server-sent events, and what they send is posted.
//!
//! Such a session is one like all others, with a [`Relay`] where others have a socket: the same driver, the
//! same codec, handlers, rooms, limits and record. In the order in which a request meets them:
//!
//! | part | what it does |
//! |---|---|
//! | `token` | which session does a request belong to? Signed |
//! | `desk` | finds the session's relay, opens new ones, and gives up clients that come no more |
//! | `requests` | what the requests are, and their answers |
//! | `relay` | keeps what the client has not acknowledged; hands over what it posts |
//! | `assembly` | the session's bytes, in whole messages again |
//! | `present` | messages as JSON and as events |
//! | `describe` | all this for OpenAPI |

mod assembly;
mod describe;
mod desk;
mod events;
mod opening;
mod present;
mod query;
mod relay;
mod requests;
mod token;

use std::fmt;

pub(crate) use desk::{Desk, Host};
pub(crate) use relay::Relayed;
pub(crate) use requests::{Asked, Call};

use token::{KEY_BYTES, Key};

use crate::http::builtin::{PAGES, is_page};

/// Where clients without WebSocket are served, and by which key; for
/// [`Config::fallbacks`](crate::config::Config::fallbacks).
///
/// See [fallbacks](crate::docs::fallbacks) for what is spoken there.
#[derive(Clone)]
#[must_use = "it is for `Builder::fallbacks`"]
pub struct Fallbacks {
    path: String,
    key: Option<Key>,
}

impl Fallbacks {
    /// The shortest [key](Self::key), in bytes.
    pub(crate) const KEY_BYTES: usize = KEY_BYTES;

    /// At `/ws/poll`, `/ws/events` and so on, with a key that this server makes for itself.
    pub fn new() -> Self {
        Self { path: "/ws".to_owned(), key: None }
    }

    /// Below another path than `/ws`. It begins with a slash and does not end with one; anything else is an
    /// error at [`start`](crate::Builder::start).
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// The key by which the clients' tokens are signed (HMAC-SHA-256): at least 32 bytes that nobody can
    /// guess. Whoever knows it can make tokens, but still no session.
    ///
    /// Without this call it is random, and every server has its own. With it, several servers behind one
    /// address can tell each other's clients, whose sessions they do not have, from forgers.
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Some(Key::new(key.as_ref()));
        self
    }

    /// What is wrong with it.
    pub(crate) fn invalid(&self) -> Option<String> {
        let path = &self.path;
        if !is_page(path) {
            return Some(format!("fallbacks: {path:?} is no path for them: {PAGES}"));
        }
        match &self.key {
            Some(key) if key.len() < KEY_BYTES => Some(format!(
                "fallbacks: the key has {} bytes: it must have at least {KEY_BYTES} (openssl rand \
                 -base64 32)",
                key.len()
            )),
            _ => None,
        }
    }
}

impl Default for Fallbacks {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Fallbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallbacks").field("path", &self.path).finish_non_exhaustive()
    }
}
