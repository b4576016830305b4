//! A message that is sent while it comes into being.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use event_listener::EventListener;
use futures_lite::{AsyncRead, AsyncReadExt};

use super::Session;
use crate::error::{SendError, WriteError};
use crate::message::Kind;
use crate::outbox::{Fragment, Refused, Request};
use crate::protocol::Protocol;
use crate::ws::Utf8;

/// Payload of one fragment. Between two of them a ping or a pong can leave.
const FRAGMENT: usize = 16 * 1024;

/// Writes one message in fragments, when its length is not known or its bytes are not at hand
/// ([`Session::message_writer`]).
///
/// While it is being written, pings and pongs go on, and other messages to the same peer wait behind
/// it: a message cannot begin in the middle of another one (RFC 6455 section 5.4). What waits is
/// bounded as always; whoever awaits [`Session::send`] before finishing a writer of the same session may
/// thus wait for themselves. While others wait, more must be written within
/// [`Timeouts::writer`](crate::config::Timeouts::writer), or the session is closed with 1011. Fragments are not compressed.
///
/// A message that has begun must be [finished](Self::finish). If the writer is dropped before, the
/// peer could not tell the next message from the rest of this one; so the session is closed with 1011.
/// If the session is closed by anybody while a message is being written, the message ends there: what has
/// been queued of it is sent, then the close frame, and what waited behind it is not delivered.
///
/// With length-prefixed [frames](crate::docs::frames) there are no fragments, and a message begins with its
/// length. So it is collected until it is finished, up to
/// [`Limits::message_bytes`](crate::config::Limits::message_bytes), which does not count as
/// [buffered](Session::buffered); nobody waits behind it, and a writer that is dropped before has sent nothing
/// and closes nothing.
#[must_use = "a message that is not finished closes its session"]
pub struct MessageWriter {
    session: Session,
    kind: Kind,
    /// What has been written and has found no room yet.
    rest: Bytes,
    /// All that has been written, where a message begins with its length: it is sent when it is finished.
    collected: Option<BytesMut>,
    /// Of a text, to see that it is one.
    text: Utf8,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing has been queued.
    Idle,
    Begun,
    /// Nothing more can be: it is finished, or the session has ended.
    Over,
}

impl MessageWriter {
    pub(super) fn new(session: Session, kind: Kind) -> Self {
        let (rest, text) = (Bytes::new(), Utf8::default());
        let collected = (session.protocol() == Protocol::Frames).then(BytesMut::new);
        Self { session, kind, rest, collected, text, stage: Stage::Idle }
    }

    /// Queues more of the message, and waits while as much as may wait is waiting already, or while
    /// another writer of this session has not finished.
    ///
    /// # Errors
    ///
    /// [`WriteError::NotUtf8`] as soon as a text cannot become valid; nothing of `bytes` has been
    /// queued then. [`WriteError::TooBig`] when a message that has to be collected would become too long,
    /// with `bytes`, which are not taken. [`WriteError::Closed`] when the session is ending or has ended, or
    /// the message is finished.
    ///
    /// # Cancel safety
    ///
    /// Safe: what a dropped future has not queued is kept, and goes before what is written next. (A
    /// future that was never polled has done nothing.)
    pub async fn write(&mut self, bytes: impl Into<Bytes>) -> Result<(), WriteError> {
        let bytes = bytes.into();
        if self.stage == Stage::Over {
            return Err(WriteError::Closed);
        }
        self.check_room(bytes.len())?;
        if self.kind == Kind::Text {
            // On a copy: bytes that are refused have not been.
            let mut text = self.text.clone();
            text.push(&bytes).map_err(|_| WriteError::NotUtf8)?;
            drop(text.take());
            self.text = text;
        }
        if let Some(collected) = &mut self.collected {
            collected.extend_from_slice(&bytes);
            return Ok(());
        }
        self.rest =
            if self.rest.is_empty() { bytes } else { [&self.rest[..], &bytes].concat().into() };
        self.flush().await
    }

    /// Ends the message. From then on others can be sent.
    ///
    /// # Errors
    ///
    /// As of [`write`](Self::write); [`WriteError::NotUtf8`] also if a text ends in the middle of a
    /// character.
    ///
    /// # Cancel safety
    ///
    /// Safe: call it again.
    pub async fn finish(&mut self) -> Result<(), WriteError> {
        self.flush().await?;
        if !self.text.is_whole() {
            return Err(WriteError::NotUtf8);
        }
        let mut room = None;
        if self.collected.is_some() {
            return poll_fn(|cx| self.poll_send(cx, &mut room)).await;
        }
        poll_fn(|cx| self.poll_push(cx, &mut room, true)).await
    }

    /// Whether so much more can be collected, if it has to be.
    fn check_room(&mut self, more: usize) -> Result<(), WriteError> {
        let Some(collected) = &self.collected else {
            return Ok(());
        };
        if !self.session.is_open() {
            self.stage = Stage::Over;
            return Err(WriteError::Closed);
        }
        let most = self.session.member().hub.config.limits.message_bytes;
        let room = most.saturating_sub(collected.len());
        if more > room { Err(WriteError::TooBig) } else { Ok(()) }
    }

    /// Queues all that has been collected.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut Option<EventListener>,
    ) -> Poll<Result<(), WriteError>> {
        let collected = self.collected.get_or_insert_default();
        loop {
            if self.stage == Stage::Over {
                return Poll::Ready(Err(WriteError::Closed));
            }
            let sent = self.session.try_send(std::mem::take(collected).freeze());
            if let Err(SendError::Full(message)) = sent {
                // Nobody else has seen it: it is taken back without a copy.
                *collected = message.into_bytes().into();
            } else {
                self.stage = Stage::Over;
                return Poll::Ready(sent.map_err(|_| WriteError::Closed));
            }
            // Listening first, then trying again: room that is made in between is not missed.
            match room {
                None => *room = Some(self.session.member().outbox.room()),
                Some(listener) => {
                    ready!(Pin::new(listener).poll(cx));
                    *room = None;
                }
            }
        }
    }

    async fn flush(&mut self) -> Result<(), WriteError> {
        let mut room = None;
        poll_fn(|cx| {
            while !self.rest.is_empty() {
                ready!(self.poll_push(cx, &mut room, false))?;
            }
            Poll::Ready(if self.stage == Stage::Over { Err(WriteError::Closed) } else { Ok(()) })
        })
        .await
    }

    /// Queues one fragment of what is left; `last`: an empty one that ends the message. `room` hears when
    /// there is room; it is the future's, so that one that is dropped no longer waits.
    fn poll_push(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut Option<EventListener>,
        last: bool,
    ) -> Poll<Result<(), WriteError>> {
        if self.stage == Stage::Over {
            return Poll::Ready(Err(WriteError::Closed));
        }
        let member = self.session.member();
        let len = self.rest.len().min(FRAGMENT);
        loop {
            let fragment = Fragment {
                kind: self.kind,
                first: self.stage == Stage::Idle,
                last,
                payload: &self.rest[..len],
            };
            match member.outbox.try_push_fragment(&fragment, &member.hub.terms) {
                Ok(()) => {
                    member.hub.heed_budget();
                    drop(self.rest.split_to(len));
                    self.stage = if last { Stage::Over } else { Stage::Begun };
                    *room = None;
                    return Poll::Ready(Ok(()));
                }
                Err(Refused::Closed) => {
                    self.stage = Stage::Over;
                    return Poll::Ready(Err(WriteError::Closed));
                }
                Err(Refused::Full) => {}
            }
            // Listening first, then trying again: room that is made in between is not missed.
            match room {
                None => *room = Some(member.outbox.room()),
                Some(listener) => {
                    ready!(Pin::new(listener).poll(cx));
                    *room = None;
                }
            }
        }
    }
}

impl Drop for MessageWriter {
    fn drop(&mut self) {
        if self.stage == Stage::Begun {
            self.session.member().outbox.request(Request::Unfinished);
        }
    }
}

impl fmt::Debug for MessageWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageWriter")
            .field("session", &self.session)
            .field("kind", &self.kind)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

/// Sends everything that a source has; see [`Session::send_from`].
pub(super) async fn send_from(
    session: &Session,
    kind: Kind,
    source: impl AsyncRead,
) -> Result<u64, WriteError> {
    let mut source = pin!(source);
    let mut writer = MessageWriter::new(session.clone(), kind);
    let mut total = 0;
    loop {
        let mut buffer = vec![0; FRAGMENT];
        let read = source.read(&mut buffer).await.map_err(WriteError::Source)?;
        if read == 0 {
            writer.finish().await?;
            return Ok(total);
        }
        buffer.truncate(read);
        writer.write(buffer).await?;
        total += read as u64;
    }
}
