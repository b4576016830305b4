//! What a client's handles and its driver share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_listener::Event;

use super::ended::{Disconnected, Ended};
use super::inbox::Inbox;
use super::queue::{Fate, Queue};
use crate::message::{CloseCode, Message, Text};

/// What the application has asked for, for good.
#[derive(Clone)]
pub(super) enum Goodbye {
    Close(CloseCode, Text),
    Abort,
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// There is no connection, and one is being made, or waited for.
    Connecting,
    /// There is a WebSocket.
    Open,
    /// The client has ended, and does not come back.
    Ended,
}

/// What a WebSocket has begun with.
#[derive(Clone, Debug)]
pub struct Connected {
    pub(super) subprotocol: Option<String>,
    pub(super) headers: ::http::HeaderMap,
    pub(super) peer: std::net::SocketAddr,
    pub(super) failures: u32,
}

impl Connected {
    /// The subprotocol that the server has chosen of those that were offered.
    #[must_use]
    pub fn subprotocol(&self) -> Option<&str> {
        self.subprotocol.as_deref()
    }

    /// The headers of the server's 101.
    #[must_use]
    pub fn headers(&self) -> &::http::HeaderMap {
        &self.headers
    }

    /// The address of the server, or of the proxy.
    #[must_use]
    pub fn peer(&self) -> std::net::SocketAddr {
        self.peer
    }

    /// How many attempts have failed since the last connection.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// For the callbacks, in the order in which it happened.
pub(super) enum Happened {
    Connected(Connected),
    Message(Message),
    Disconnected(Disconnected),
}

/// Beginnings and ends of connections that wait for a slow callback; and one more pair for each that has brought a
/// message which waits.
const HAPPENED: usize = 16;

pub(super) struct Shared {
    pub(super) queue: Queue,
    /// Messages for `recv`; or for a callback.
    pub(super) inbox: Inbox<Message>,
    /// What has happened, if there are callbacks.
    pub(super) happened: Option<Inbox<Happened>>,
    /// Whether messages are for a callback.
    pub(super) calls: bool,
    status: Mutex<Status>,
    changed: Event,
    /// Nanoseconds.
    rtt: AtomicU64,
}

struct Status {
    state: State,
    goodbye: Option<Goodbye>,
    ended: Option<Arc<Ended>>,
    connected: Option<Arc<Connected>>,
    unsent: Vec<Message>,
    panicked: bool,
    connections: u64,
}

impl Shared {
    pub(super) fn new(queue: Queue, inbox: usize, callbacks: bool, calls: bool) -> Self {
        let status = Status {
            state: State::Connecting,
            goodbye: None,
            ended: None,
            connected: None,
            unsent: Vec::new(),
            panicked: false,
            connections: 0,
        };
        Self {
            queue,
            inbox: Inbox::new(inbox, |_| true),
            happened: callbacks
                .then(|| Inbox::new(inbox, |what| matches!(what, Happened::Message(_)))),
            calls,
            status: Mutex::new(status),
            changed: Event::new(),
            rtt: AtomicU64::new(u64::MAX),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> State {
        self.lock().state
    }

    pub(super) fn ended(&self) -> Option<Arc<Ended>> {
        self.lock().ended.clone()
    }

    pub(super) fn connected(&self) -> Option<Arc<Connected>> {
        self.lock().connected.clone()
    }

    pub(super) fn connections(&self) -> u64 {
        self.lock().connections
    }

    pub(super) fn goodbye(&self) -> Option<Goodbye> {
        self.lock().goodbye.clone()
    }

    /// The first word counts; but for an abort, which is the last.
    pub(super) fn say(&self, goodbye: Goodbye) {
        {
            let mut status = self.lock();
            if status.goodbye.is_none() || matches!(goodbye, Goodbye::Abort) {
                status.goodbye = Some(goodbye);
            }
        }
        self.queue.close();
        self.changed.notify(usize::MAX);
    }

    /// Hears of every change of the state, and of a goodbye.
    pub(super) fn listen(&self) -> event_listener::EventListener {
        self.changed.listen()
    }

    /// Waits for what the application asks for.
    pub(super) async fn parting(&self) -> Goodbye {
        loop {
            let changed = self.listen();
            if let Some(goodbye) = self.goodbye() {
                return goodbye;
            }
            changed.await;
        }
    }

    pub(super) fn opened(&self, connected: &Connected) {
        {
            let mut status = self.lock();
            status.state = State::Open;
            status.connections += 1;
            status.connected = Some(Arc::new(connected.clone()));
        }
        self.changed.notify(usize::MAX);
    }

    pub(super) fn lost(&self) {
        let mut status = self.lock();
        status.state = State::Connecting;
        status.connected = None;
        drop(status);
        self.changed.notify(usize::MAX);
    }

    /// It is over: nothing is taken any more, and what waits is kept for [`take_unsent`](Self::take_unsent).
    pub(super) fn finish(&self, ended: Ended) {
        let unsent = self.queue.end();
        self.lock().unsent.extend(unsent.iter().map(|it| it.message.clone()));
        // Whoever hears of it finds them, and whoever hears of the end knows what became of each.
        unsent.into_iter().for_each(|it| it.settle(Fate::Unsent));
        {
            let mut status = self.lock();
            status.state = State::Ended;
            status.connected = None;
            let ended = if status.panicked { Ended::Panicked } else { ended };
            status.ended.get_or_insert_with(|| Arc::new(ended));
        }
        self.inbox.end();
        if let Some(happened) = &self.happened {
            happened.end();
        }
        self.changed.notify(usize::MAX);
    }

    /// For the callbacks, if there are any. It does not wait for them: one of them may wait for the connection, or for room
    /// that only the next connection makes.
    pub(super) fn tell(&self, what: Happened) {
        let Some(happened) = &self.happened else {
            return;
        };
        let pointless = |last: &Happened, next: &Happened| {
            matches!((last, next), (Happened::Connected(_), Happened::Disconnected(_)))
        };
        if !happened.push_unless(HAPPENED, pointless, what) {
            log::warn!("client: a callback does not end; it is not told of a connection that has");
        }
    }

    /// A callback has: that is how the client ends.
    pub(super) fn panicked(&self) {
        self.lock().panicked = true;
    }

    pub(super) fn take_unsent(&self) -> Vec<Message> {
        std::mem::take(&mut self.lock().unsent)
    }

    /// A message has come, for which there was room.
    pub(super) fn received(&self, message: Message) {
        match &self.happened {
            Some(happened) if self.calls => happened.push(Happened::Message(message)),
            _ => self.inbox.push(message),
        }
    }

    /// Whether a message may come.
    pub(super) fn has_room(&self) -> bool {
        match &self.happened {
            Some(happened) if self.calls => happened.has_room(),
            _ => self.inbox.has_room(),
        }
    }

    /// Whether not even one message more may be taken in hand.
    pub(super) fn is_overfull(&self) -> bool {
        match &self.happened {
            Some(happened) if self.calls => happened.is_overfull(),
            _ => self.inbox.is_overfull(),
        }
    }

    /// Hears of room for a message.
    pub(super) fn listen_for_room(&self) -> event_listener::EventListener {
        match &self.happened {
            Some(happened) if self.calls => happened.listen(),
            _ => self.inbox.listen(),
        }
    }

    pub(super) fn measured(&self, rtt: Duration) {
        let nanos = u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX - 1);
        self.rtt.store(nanos, Ordering::Relaxed);
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        match self.rtt.load(Ordering::Relaxed) {
            u64::MAX => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }
}
