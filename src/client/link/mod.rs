//! One WebSocket while it is open: the protocol's machine, its socket, its deadlines.

mod clock;
mod reading;
mod writing;

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use async_tungstenite::tungstenite::protocol::frame::CloseFrame;
use async_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use async_tungstenite::tungstenite::{Error, Message as Frame};
use event_listener::EventListener;
use futures_lite::AsyncWrite;
use smol::Timer;

use super::ended::{By, Disconnected, Why};
use super::shared::{Goodbye, Shared};
use super::stream::{Polled, READS, Stream};
use crate::message::{CloseCode, Message, Text};
use clock::Heart;
use writing::{BATCH_BYTES, Rest, Unflushed};

/// What is read at once. A megabyte of messages of 4 KiB costs the same with 16 KiB and with 128.
const READ_BYTES: usize = 16 * 1024;

/// The deadlines and the bound of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) ping: Option<Duration>,
    pub(super) pong: Duration,
    pub(super) write_stall: Duration,
    pub(super) close: Duration,
    pub(super) message_bytes: usize,
}

pub(super) struct Link<'a> {
    shared: &'a Shared,
    stream: Stream,
    machine: WebSocketContext,
    limits: Limits,
    began: Instant,
    heart: Heart,
    /// What had been written when the batch that is being written began.
    batch: u64,
    unflushed: Option<Unflushed>,
    /// What is left of a message that is sent in fragments.
    rest: Option<Rest>,
    /// A message for which there is no room: nothing is read behind it.
    held: Option<Message>,
    /// Nobody takes what comes.
    paused: bool,
    /// There was no room for a message when it ended: none behind it is delivered.
    gap: bool,
    /// Nothing leaves any more: a write has failed.
    mute: bool,
    /// Since when the application wants it closed.
    closing: Option<Instant>,
    goodbye: Option<Parting>,
    timer: Timer,
    armed: Option<Instant>,
}

/// The closing handshake.
struct Parting {
    by: By,
    code: Option<CloseCode>,
    reason: Text,
    until: Instant,
    /// The other side has said goodbye, too.
    answered: bool,
}

impl<'a> Link<'a> {
    /// `rest` is what came behind the server's 101.
    pub(super) fn new(shared: &'a Shared, stream: Stream, rest: Vec<u8>, limits: Limits) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(BATCH_BYTES)
            .max_write_buffer_size(usize::MAX)
            .max_message_size(Some(limits.message_bytes))
            .max_frame_size(Some(limits.message_bytes));
        let now = Instant::now();
        let carried = stream.carried();
        Self {
            shared,
            stream,
            machine: WebSocketContext::from_partially_read(rest, Role::Client, Some(config)),
            limits,
            began: now,
            heart: Heart::new(now, carried.read),
            batch: carried.written,
            unflushed: None,
            rest: None,
            held: None,
            paused: false,
            gap: false,
            mute: false,
            closing: None,
            goodbye: None,
            timer: Timer::never(),
            armed: None,
        }
    }

    /// Serves it to its end.
    pub(super) async fn run(mut self) -> Disconnected {
        let mut filled = self.shared.queue.listen();
        let mut room = self.shared.listen_for_room();
        let why = poll_fn(|cx| self.poll(cx, &mut filled, &mut room)).await;
        let in_flight = self.shared.queue.broken(self.stream.carried().written == self.batch);
        // Of what is to be sent again nothing may leave now.
        let is_left = in_flight.is_some() && !self.mute;
        if let Some(message) = self.held.take() {
            // It came, so it is delivered.
            self.shared.received(message);
        }
        let lived = self.began.elapsed();
        // The end of TLS has a goodbye of its own (RFC 8446 section 6.1), as far as it leaves at once.
        if is_left && !matches!(why, Why::Aborted) {
            let stream = &mut self.stream;
            let _ = poll_fn(|cx| Poll::Ready(Pin::new(&mut *stream).poll_close(cx))).await;
        }
        let (by, code, reason, clean) = match (self.goodbye, &why) {
            (Some(parting), _) => (parting.by, parting.code, parting.reason, parting.answered),
            (None, Why::Aborted | Why::Requested | Why::WriteStalled | Why::PongTimeout) => {
                (By::Client, None, Text::default(), false)
            }
            (None, _) => (By::Server, None, Text::default(), false),
        };
        let in_flight = in_flight.unwrap_or_default();
        Disconnected { why, by, code, reason, clean, in_flight, lived }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        filled: &mut EventListener,
        room: &mut EventListener,
    ) -> Poll<Why> {
        // Listeners are made anew before what they are about is looked at.
        while Pin::new(&mut *filled).poll(cx).is_ready() {
            *filled = self.shared.queue.listen();
        }
        while Pin::new(&mut *room).poll(cx).is_ready() {
            *room = self.shared.listen_for_room();
        }
        let now = Instant::now();
        for step in [Self::part, Self::read, Self::write, Self::wait] {
            if let Err(why) = step(self, cx, now) {
                return Poll::Ready(self.last_words(cx, now, why));
            }
        }
        Poll::Pending
    }

    /// A server that says goodbye and is gone may be noticed by a write that fails: what it has said is still there to
    /// be read, and may be a code after which the client does not come back.
    fn last_words(&mut self, cx: &mut Context<'_>, now: Instant, why: Why) -> Why {
        if self.goodbye.is_none() && matches!(why, Why::Io(_)) {
            self.mute = true;
            match self.read_to_the_end(cx, now) {
                Err(said) if self.goodbye.is_some() => return said,
                _ => {}
            }
        }
        why
    }

    /// Does what the application asks for.
    fn part(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), Why> {
        match self.shared.goodbye() {
            Some(Goodbye::Abort) => return Err(Why::Aborted),
            Some(Goodbye::Close(code, reason)) => {
                let since = *self.closing.get_or_insert(now);
                // Behind all that waits.
                if self.goodbye.is_none() && self.shared.queue.is_empty() {
                    self.say_goodbye(cx, now, code, reason, since)?;
                }
            }
            None => {}
        }
        Ok(())
    }

    fn say_goodbye(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        code: CloseCode,
        reason: Text,
        since: Instant,
    ) -> Result<(), Why> {
        let frame = CloseFrame { code: code.as_u16().into(), reason: reason.as_str().into() };
        self.goodbye = Some(Parting {
            by: By::Client,
            code: Some(code),
            reason,
            until: since + self.limits.close,
            answered: false,
        });
        // It flushes.
        match self.with(cx, |machine, stream| machine.close(stream, Some(frame))) {
            Ok(()) => Ok(()),
            waits => self.sent(now, waits),
        }
    }

    /// Has the machine act on the socket.
    fn with<T>(
        &mut self,
        cx: &mut Context<'_>,
        act: impl FnOnce(&mut WebSocketContext, &mut Polled<'_, '_, Stream>) -> T,
    ) -> T {
        let Self { machine, stream, mute, .. } = self;
        act(machine, &mut Polled { stream, cx, full: *mute })
    }

    /// What has come of handing something to the machine, which may have to be flushed later.
    fn sent(&mut self, now: Instant, result: Result<(), Error>) -> Result<(), Why> {
        match result {
            Ok(()) => {}
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
            // Reading says how it ended.
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Ok(()),
            Err(Error::Protocol(ProtocolError::SendAfterClosing)) => return Ok(()),
            Err(error) => return Err(self.failed(error)),
        }
        let written = self.stream.carried().written;
        self.unflushed.get_or_insert(Unflushed { since: now, written, full: false, answers: 0 });
        Ok(())
    }

    fn told_goodbye(&mut self, now: Instant, frame: Option<CloseFrame>) -> Result<(), Why> {
        match &mut self.goodbye {
            Some(parting) => parting.answered = true,
            None => {
                let (code, reason) = match frame {
                    Some(frame) => {
                        (Some(CloseCode(frame.code.into())), frame.reason.as_str().into())
                    }
                    None => (None, Text::default()),
                };
                let until = now + self.limits.close;
                self.goodbye =
                    Some(Parting { by: By::Server, code, reason, until, answered: true });
            }
        }
        // The machine has the answer.
        self.sent(now, Ok(()))
    }

    /// Both have said goodbye, or the stream has ended behind it, or nobody waits any longer.
    fn over(&self) -> Why {
        match &self.goodbye {
            Some(Parting { by: By::Server, .. }) => Why::Closed,
            Some(_) => Why::Requested,
            None if self.closing.is_some() => Why::Requested,
            None => Why::Vanished,
        }
    }

    fn failed(&self, error: Error) -> Why {
        match error {
            _ if self.goodbye.as_ref().is_some_and(|parting| parting.answered) => self.over(),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Why::Vanished,
            Error::Io(error) => Why::Io(error),
            error => Why::Violation(error.to_string()),
        }
    }

    /// The server is told what it did, as far as that leaves at once.
    fn broken(&mut self, cx: &mut Context<'_>, now: Instant, error: Error) -> Why {
        let code = match &error {
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::Io(_) => {
                return self.failed(error);
            }
            // Nobody looks at what follows a goodbye.
            _ if self.goodbye.is_some() => return self.over(),
            Error::Capacity(CapacityError::MessageTooLong { .. }) => CloseCode::TOO_BIG,
            Error::Utf8(_) => CloseCode::INVALID_DATA,
            _ => CloseCode::PROTOCOL,
        };
        let why = Why::Violation(error.to_string());
        // It flushes.
        let _ = self.say_goodbye(cx, now, code, Text::default(), now);
        if let Some(parting) = &mut self.goodbye {
            parting.by = By::Server;
        }
        why
    }
}
