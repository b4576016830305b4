//! The client that the application holds.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::builder::Builder;
use super::ended::Ended;
use super::error::ConnectError;
use super::queue::{Accounts, Entry, Receipt, Refused};
use super::shared::{Connected, Goodbye, Shared, State};
use super::target::{Target, wrong};
use crate::error::SendError;
use crate::message::{CloseCode, Message, Text};

/// A connection to a WebSocket server that comes back by itself: one object for as long as the application wants to
/// talk to it.
///
/// Cheap to clone, `Send` and `Sync`; usable from any thread and on any executor. When the last clone is dropped the
/// connection is closed with 1001, after what waits to be sent, and nothing is left.
#[derive(Clone)]
pub struct Client(pub(super) Arc<Handle>);

/// What all clones share, and the driver does not hold.
pub(super) struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) target: Arc<Mutex<Arc<Target>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.say(Goodbye::Close(CloseCode::GOING_AWAY, Text::default()));
        // Nobody takes what comes.
        self.shared.inbox.end();
    }
}

fn given_back(entry: Entry) -> SendError {
    SendError::Closed(entry.message)
}

impl Client {
    /// A client of this server: `ws://host:port/path`, or `wss://` for TLS.
    pub fn builder(url: impl Into<String>) -> Builder {
        Builder::new(url.into())
    }

    /// Connects, with every setting as it is by default: [`Builder::connect`].
    ///
    /// # Errors
    ///
    /// Those of [`Builder::connect`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the attempt up.
    pub async fn connect(url: impl Into<String>) -> Result<Self, ConnectError> {
        Self::builder(url).connect().await
    }

    /// Queues a message, and waits while as many wait as may, also while there is no connection. Its end says that the
    /// message is queued, not that it has left: [`send_with_receipt`](Self::send_with_receipt) is for that.
    ///
    /// # Errors
    ///
    /// The message, if the client has ended or was told to.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before its end, the message is not sent.
    pub async fn send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        let entry = Entry::new(message.into(), None);
        self.0.shared.queue.send(entry).await.map_err(given_back)
    }

    /// The same with a key: with [`WhenFull::Conflate`](super::WhenFull::Conflate) it takes the place of the one with
    /// the same key that still waits.
    ///
    /// # Errors
    ///
    /// # Cancel safety
    ///
    /// As of [`send`](Self::send).
    pub async fn send_keyed(
        &self,
        key: impl Into<Text>,
        message: impl Into<Message>,
    ) -> Result<(), SendError> {
        let entry = Entry::new(message.into(), Some(key.into()));
        self.0.shared.queue.send(entry).await.map_err(given_back)
    }

    /// The same, and the receipt ends when it is known what became of the message.
    ///
    /// # Errors
    ///
    /// # Cancel safety
    ///
    /// As of [`send`](Self::send).
    pub async fn send_with_receipt(
        &self,
        message: impl Into<Message>,
    ) -> Result<Receipt, SendError> {
        let (entry, receipt) = Entry::with_receipt(message.into());
        self.0.shared.queue.send(entry).await.map_err(given_back)?;
        Ok(receipt)
    }

    /// Queues a message at once.
    ///
    /// # Errors
    ///
    /// The message, if the client has ended, or as much waits as may.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.0.shared.queue.push(Entry::new(message.into(), None)).map_err(
            |refused| match refused {
                Refused::Full(entry) => SendError::Full(entry.message),
                Refused::Closed(entry) => given_back(entry),
            },
        )
    }

    /// The next message, of this connection or a later one. Whoever does not call it, and has no
    /// [`on_message`](Builder::on_message), lets the server's messages wait; when there are as many as
    /// [may wait](Builder::inbox) nothing is read any more: the server's pings are not answered, and its end is not noticed.
    ///
    /// # Errors
    ///
    /// Why the client has ended, when every message has been taken.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no message.
    pub async fn recv(&self) -> Result<Message, Arc<Ended>> {
        match self.0.shared.inbox.take().await {
            Some(message) => Ok(message),
            None => Err(self.ended().await),
        }
    }

    /// A message that has come already.
    #[must_use]
    pub fn try_recv(&self) -> Option<Message> {
        self.0.shared.inbox.try_take()
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.shared.state()
    }

    /// What the WebSocket that is open has begun with.
    #[must_use]
    pub fn connection(&self) -> Option<Arc<Connected>> {
        self.0.shared.connected()
    }

    /// How many WebSockets there have been, this one included.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.0.shared.connections()
    }

    /// Waits until there is a WebSocket.
    ///
    /// # Errors
    ///
    /// Why the client has ended.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future changes nothing.
    pub async fn opened(&self) -> Result<(), Arc<Ended>> {
        self.until(|shared| match (shared.state(), shared.ended()) {
            (_, Some(ended)) => Some(Err(ended)),
            (State::Open, None) => Some(Ok(())),
            _ => None,
        })
        .await
    }

    /// Waits until the client has ended for good, and says why. The callbacks that are about the end may still be
    /// running then.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future changes nothing.
    pub async fn ended(&self) -> Arc<Ended> {
        self.until(Shared::ended).await
    }

    async fn until<T>(&self, look: impl Fn(&Shared) -> Option<T>) -> T {
        let shared = &*self.0.shared;
        loop {
            let changed = shared.listen();
            if let Some(found) = look(shared) {
                return found;
            }
            changed.await;
        }
    }

    /// Ends the client: what waits is sent if there is a connection, then the server is told goodbye with this code and
    /// reason (123 bytes at most, the rest is cut off). It is over when the server has answered, or after
    /// [`Builder::close_timeout`]. Without a connection it ends at once.
    ///
    /// The first call counts. The future need not be awaited.
    pub fn close(&self, code: CloseCode, reason: &str) -> impl Future<Output = Arc<Ended>> + use<> {
        let end = (0..=reason.len().min(123)).rev().find(|at| reason.is_char_boundary(*at));
        let reason = reason.get(..end.unwrap_or_default()).unwrap_or_default();
        self.0.shared.say(Goodbye::Close(code, reason.into()));
        let client = self.clone();
        async move { client.ended().await }
    }

    /// Ends the client at once, without a goodbye. What waits is unsent.
    pub fn abort(&self) {
        self.0.shared.say(Goodbye::Abort);
    }

    /// What became of every message.
    #[must_use]
    pub fn accounts(&self) -> Accounts {
        self.0.shared.queue.accounts()
    }

    /// What still waited when the client ended: once.
    #[must_use]
    pub fn take_unsent(&self) -> Vec<Message> {
        self.0.shared.take_unsent()
    }

    /// From the last ping to its answer; `None` before the first one.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.0.shared.rtt()
    }

    /// Asks for this path and query when it connects the next time: with where it has got to, for example.
    ///
    /// # Errors
    ///
    /// If it is none: it begins with a slash, and has no fragment.
    pub fn set_path(&self, path: &str) -> Result<(), ConnectError> {
        let parsed = path.parse().ok().filter(|_| path.starts_with('/') && !path.contains('#'));
        let path = parsed.ok_or_else(|| {
            wrong(path, "a path begins with a slash and has no fragment, and no character that a URL does not have")
        })?;
        let mut target = self.0.target.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut changed = Target::clone(&target);
        changed.path = path;
        *target = Arc::new(changed);
        Ok(())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field(
                "target",
                &self.0.target.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
            )
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
