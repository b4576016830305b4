//! The handle by which everyone but the driver knows a session.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use event_listener::EventListener;
use futures_lite::AsyncRead;

use super::writer::{MessageWriter, send_from};
use crate::error::{SendError, WriteError};
use crate::history::History;
use crate::hub::{Excesses, Hub, JoinError, Member, Rooms, SessionId};
use crate::message::{CloseCode, Kind, Message, Outgoing, Text};
use crate::metrics::Totals;
use crate::outbox::{Buffered, Encoded, Losses, Prepared, Request, SlowPeer};
use crate::protocol::Protocol;
use crate::shutdown::Shutdown;
use crate::transport::Peer;
use crate::ws::{CloseFrame, Header, MAX_CONTROL_PAYLOAD};

/// One client, for as long as it is connected and for anybody who wants to send it something.
///
/// Cheap to clone, usable from any thread and any executor, and it may be kept for ever: it holds
/// neither the socket nor the task, so an ended session costs its owner a few hundred bytes and
/// nothing else.
#[derive(Clone)]
pub struct Session(Arc<Member>);

impl Session {
    pub(crate) fn new(member: Arc<Member>) -> Self {
        Self(member)
    }

    pub(crate) fn member(&self) -> &Arc<Member> {
        &self.0
    }

    /// The session's number, unique in its server.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.0.id
    }

    /// The address of the other end of the socket, which is the proxy's, if there is one in front.
    ///
    /// `None` for Unix sockets, in-memory connections, and streams that were served without an
    /// address; [`peer`](Self::peer) tells them apart.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer().addr()
    }

    /// The other end of the connection, which is the proxy, if there is one in front.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.0.profile.peer()
    }

    /// The client's IP address: see [`Request::client_ip`](crate::Request::client_ip).
    #[must_use]
    pub fn client_ip(&self) -> Option<IpAddr> {
        self.0.profile.client_ip()
    }

    /// Whether it is a WebSocket, or a connection with [length-prefixed frames](crate::docs::frames).
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.0.protocol()
    }

    /// The path of the request that opened the session, as it was sent (not percent-decoded); `/` where there
    /// was no request.
    #[must_use]
    pub fn path(&self) -> &str {
        let target = self.0.profile.target();
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// What followed the `?` in the request, as it was sent.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.0.profile.target().split_once('?').map(|(_, query)| query)
    }

    /// The subprotocol that the accept hook chose.
    #[must_use]
    pub fn subprotocol(&self) -> Option<&str> {
        self.0.profile.subprotocol()
    }

    /// What the accept hook attached with [`Upgrade::data`](crate::Upgrade::data), if it was a
    /// `T`.
    #[must_use]
    pub fn data<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.0.profile.data()?.downcast_ref()
    }

    /// Queues a message for the peer, and waits while as much as may wait is waiting already.
    ///
    /// It completes when the message is queued, not when it has arrived. It ends in any case: a
    /// peer that accepts no byte for [`Timeouts::write_stall`](crate::config::Timeouts::write_stall)
    /// loses its session, and so does a [`MessageWriter`] that others wait for and that writes nothing
    /// for [`Timeouts::writer`](crate::config::Timeouts::writer). Messages sent by one task arrive in order.
    ///
    /// # Errors
    ///
    /// [`SendError::Closed`] with the message, when the session is ending or has ended.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has either queued the whole message or nothing of it.
    pub fn send(&self, message: impl Into<Outgoing>) -> Sending<'_> {
        let Outgoing { message, compress } = message.into();
        Sending { session: self, message: Some(message), compress, room: None }
    }

    /// Queues a message for the peer if there is room now. Never waits.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] or [`SendError::Closed`], each with the message. A length-prefixed
    /// [frame](crate::docs::frames) cannot hold 4 GiB: such a message closes its session with 1009.
    pub fn try_send(&self, message: impl Into<Outgoing>) -> Result<(), SendError> {
        let Outgoing { message, compress } = message.into();
        self.try_push(message, compress)
    }

    #[inline]
    fn try_push(&self, message: Message, compress: bool) -> Result<(), SendError> {
        let member = &*self.0;
        if !Header::fits(member.protocol(), message.len()) {
            return Err(self.too_big(message));
        }
        let (outbox, terms) = (&member.outbox, &member.hub.terms);
        let pushed = if compress && member.deflate.is_some() && member.deflates(message.len()) {
            outbox.try_push_raw(message, terms)
        } else {
            outbox.try_push(message, terms)
        };
        member.hub.heed_budget();
        pushed
    }

    /// No frame of this session's protocol could say how long it is.
    #[cold]
    fn too_big(&self, message: Message) -> SendError {
        self.close(CloseCode::TOO_BIG, "message too big for a frame");
        SendError::Closed(message)
    }

    /// Queues a message that goes to many sessions, if there is room now; it is encoded and compressed
    /// once for all of them. Never waits for a peer; where others send the same message at the same
    /// moment, for the one of them that compresses it.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] or [`SendError::Closed`], each with the message.
    pub fn try_send_prepared(&self, prepared: &Prepared) -> Result<(), SendError> {
        let (member, message) = (&*self.0, prepared.message());
        if !Header::fits(member.protocol(), message.len()) {
            return Err(self.too_big(message.clone()));
        }
        let Some(frame) = prepared.frame(member.shape()) else {
            return self.try_push(message.clone(), true);
        };
        let encoded = Encoded { frame: frame.clone(), messages: 1, payload: message.len() };
        let pushed = member.outbox.try_push_encoded(encoded, &member.hub.terms);
        member.hub.heed_budget();
        pushed.map_err(|refused| refused.with(message.clone()))
    }

    /// Begins a message that is sent in fragments while it comes into being. Nothing leaves, and no
    /// other message waits for it, before the first fragment is written. (With length-prefixed
    /// [frames](crate::docs::frames): before it is finished.)
    pub fn message_writer(&self, kind: Kind) -> MessageWriter {
        MessageWriter::new(self.clone(), kind)
    }

    /// Sends all that `source` has as one message, in fragments of at most 16 KiB, as it is read. Other
    /// messages to the same peer wait until the source has ended; see [`MessageWriter`]. Returns how
    /// many bytes it was.
    ///
    /// # Errors
    ///
    /// [`WriteError::Source`] if the source fails, [`WriteError::NotUtf8`] if a text is none,
    /// [`WriteError::Closed`] if the session is ending or has ended. In each case the session is closed,
    /// if some of the message has been queued. [`WriteError::TooBig`] as of [`MessageWriter::write`].
    ///
    /// # Cancel safety
    ///
    /// Not safe: a dropped future has abandoned its message, which closes the session if some of it has
    /// been queued.
    pub async fn send_from(&self, kind: Kind, source: impl AsyncRead) -> Result<u64, WriteError> {
        send_from(self, kind, source).await
    }

    /// Sends a ping, ahead of every queued message; the server sends its own when the peer is
    /// silent. Never waits: a ping that has not left yet is replaced by a later one.
    ///
    /// The payload is cut at 125 bytes (RFC 6455 section 5.5). Returns whether the session is
    /// still open and has pings: length-prefixed [frames](crate::docs::frames) have none.
    #[expect(clippy::must_use_candidate, reason = "called for what it does")]
    pub fn ping(&self, payload: &[u8]) -> bool {
        if self.0.protocol() == Protocol::Frames {
            return false;
        }
        self.0.outbox.ping(&payload[..payload.len().min(MAX_CONTROL_PAYLOAD)])
    }

    /// Ends the session: what is queued is delivered (but not what waits behind a message that is being
    /// written: see [`MessageWriter`]), then the peer is told `code` and `reason`,
    /// then its answer is awaited for at most [`Timeouts::close`](crate::config::Timeouts::close). With
    /// length-prefixed [frames](crate::docs::frames) the peer is told by the end of our stream, and answers by
    /// the end of its own; code and reason are for the record.
    ///
    /// Never waits. May be called any number of times, from anywhere; the first call counts. A
    /// reason longer than 123 bytes is cut between two characters.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.0.outbox.request(Request::Close(CloseFrame::new(code, reason)));
    }

    /// Ends the session at once: nothing more is sent, the socket is closed.
    ///
    /// Never waits, and overtakes a [`close`](Self::close) that is under way.
    pub fn abort(&self) {
        self.0.outbox.request(Request::Abort);
    }

    /// Whether messages can still be sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.0.outbox.is_closed()
    }

    /// What waits for the peer; after the end, what it did not get. It may be above the bounds by what the
    /// kernel has just declined, 256 KiB and a message at most.
    #[must_use]
    pub fn buffered(&self) -> Buffered {
        self.0.outbox.buffered()
    }

    /// Makes the session a member of a room, which comes into being with its first member: it gets what is
    /// published to the room from now on. Nothing happens if it is one already.
    ///
    /// It leaves all its rooms when it ends, before [`Handler::close`](crate::Handler::close) is called.
    ///
    /// # Errors
    ///
    /// [`JoinError`] says which bound is reached, or that the session is ending.
    pub fn join(&self, room: &str) -> Result<(), JoinError> {
        self.0.hub.rooms.join(&self.0, room, None)
    }

    /// The same with something that others see of it: [`Rooms::members`], and
    /// [`Builder::on_presence`](crate::Builder::on_presence). A name, or JSON. Joining once more replaces it.
    ///
    /// # Errors
    ///
    /// As of [`join`](Self::join).
    pub fn join_as(&self, room: &str, data: impl Into<Text>) -> Result<(), JoinError> {
        self.0.hub.rooms.join(&self.0, room, Some(data.into()))
    }

    /// Takes the session out of a room: nothing of it is queued for it any more, also not of what has been
    /// published and not handed on yet; only what its worker is handing on in this moment, if this is called
    /// by another thread. Returns false if it was no member.
    #[expect(clippy::must_use_candidate, reason = "called for what it does")]
    pub fn leave(&self, room: &str) -> bool {
        self.0.hub.rooms.leave(&self.0, room)
    }

    /// Takes the session out of all its rooms. Returns how many those were.
    #[expect(clippy::must_use_candidate, reason = "called for what it does")]
    pub fn leave_all(&self) -> usize {
        self.0.hub.rooms.leave_all(&self.0)
    }

    /// The names of the rooms that the session is in, in the order in which it joined them.
    #[must_use]
    pub fn joined(&self) -> Vec<Text> {
        self.0.hub.rooms.joined(self.0.id)
    }

    /// The rooms of the server, to publish to them.
    #[must_use]
    pub fn rooms(&self) -> Rooms {
        Rooms::new(Arc::clone(&self.0.hub))
    }

    /// The history of the server's rooms, if [`Builder::history`](crate::Builder::history) was given a store.
    #[must_use]
    pub fn history(&self) -> Option<History> {
        History::of(&self.0.hub)
    }

    /// What is done with publications for this session when it does not keep up, whatever its rooms say.
    pub fn set_slow_peer(&self, policy: SlowPeer) {
        self.0.outbox.set_policy(policy);
    }

    /// What its slowness has cost the session.
    #[must_use]
    pub fn losses(&self) -> Losses {
        self.0.outbox.losses()
    }

    /// The round trip of the last keep-alive ping, measured by the server from handing it to the
    /// kernel to reading the pong. `None` before the first.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.0.counters.rtt()
    }

    /// When the session was opened.
    #[must_use]
    pub fn created(&self) -> Instant {
        self.0.hub.clock.instant(self.0.created)
    }

    /// When the peer was last heard of, or last took bytes; some milliseconds coarse.
    #[must_use]
    pub fn last_activity(&self) -> Instant {
        self.0.hub.clock.instant(self.0.counters.last_activity())
    }

    /// How much has gone in and out.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let Totals { messages_in, messages_out, bytes_in, bytes_out } = self.0.counters.totals();
        Traffic { messages_in, messages_out, bytes_in, bytes_out }
    }

    /// The other sessions of the same server, and this one.
    #[must_use]
    pub fn sessions(&self) -> Sessions {
        Sessions(Arc::clone(&self.0.hub))
    }

    /// The stop signal of the server.
    #[must_use]
    pub fn shutdown(&self) -> Shutdown {
        self.0.hub.shutdown.clone()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id())
            .field("peer", &format_args!("{}", self.peer()))
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

/// The future of [`Session::send`].
#[derive(Debug)]
#[must_use = "a message is queued when the future is awaited"]
pub struct Sending<'a> {
    session: &'a Session,
    /// `None` when it has been queued or given back.
    message: Option<Message>,
    compress: bool,
    /// Hears when there is room.
    room: Option<EventListener>,
}

impl Future for Sending<'_> {
    type Output = Result<(), SendError>;

    /// # Panics
    ///
    /// When it is polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let session = self.session;
        loop {
            let message = self.message.take().expect("polled after it was ready");
            match session.try_push(message, self.compress) {
                Err(SendError::Full(message)) => self.message = Some(message),
                done => return Poll::Ready(done),
            }
            // Listening first, then trying again: room that is made in between is not missed.
            match &mut self.room {
                None => self.room = Some(session.0.outbox.room()),
                Some(room) => {
                    ready!(Pin::new(room).poll(cx));
                    self.room = None;
                }
            }
        }
    }
}

/// A session's numbers since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Whole messages received.
    pub messages_in: u64,
    /// Messages handed to the kernel whole.
    pub messages_out: u64,
    /// Bytes read from the transport after the handshake, headers and control frames included.
    pub bytes_in: u64,
    /// Bytes written to the transport after the handshake, headers and control frames included.
    pub bytes_out: u64,
}

/// The open sessions of one server. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Sessions(Arc<Hub>);

impl Sessions {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self(hub)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.count()
    }

    /// The one with this number, if it is still open.
    #[must_use]
    pub fn get(&self, id: SessionId) -> Option<Session> {
        self.0.get(id).map(Session::new)
    }

    /// All that are open at the moment of the call. Costs one small allocation and a short lock
    /// that opening and closing sessions wait for.
    #[must_use]
    pub fn all(&self) -> Vec<Session> {
        self.0.members().into_iter().map(Session::new).collect()
    }

    /// How often they, and those that have ended, have been sent more than their inbound rate allows.
    #[must_use]
    pub fn excesses(&self) -> Excesses {
        self.0.exceeded.read()
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("count", &self.count()).finish()
    }
}
