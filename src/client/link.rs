//! One WebSocket while it is open: the protocol's machine, its socket, its deadlines.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use async_tungstenite::tungstenite::protocol::frame::CloseFrame;
use async_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use async_tungstenite::tungstenite::{Error, Message as Frame};
use bytes::Bytes;
use event_listener::EventListener;
use smol::Timer;

use super::ended::{By, Disconnected, Why};
use super::shared::{Goodbye, Shared};
use super::stream::{Carried, Polled, Stream};
use crate::message::{CloseCode, Message, Text};

/// What is handed to the socket at once, at most: as much as a pipe of the kernel holds.
const BATCH_BYTES: usize = 64 * 1024;

/// And how many messages: what is being written when the connection breaks is in flight.
const BATCH: usize = 64;

/// Messages that are taken before others on the same executor get their turn.
const TURN: usize = 64;

/// Messages that are taken of a connection that is gone: what a socket still holds may be many small ones.
const LAST_TURN: usize = 4096;

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
    carried: Carried,
    began: Instant,
    /// When the server was last heard of, and what had been read by then.
    heard: (Instant, u64),
    /// The ping that has not been answered: its payload, and when it was sent.
    ping: Option<(u64, Instant)>,
    pings: u64,
    /// What had been written when the batch that is being written began.
    batch: u64,
    /// Since when something waits to be written, and how much had been written by then.
    unflushed: Option<(Instant, u64)>,
    /// Nobody takes what comes, so nothing is read.
    paused: bool,
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
        Self {
            shared,
            stream,
            machine: WebSocketContext::from_partially_read(rest, Role::Client, Some(config)),
            limits,
            carried: Carried::default(),
            began: now,
            heard: (now, 0),
            ping: None,
            pings: 0,
            batch: 0,
            unflushed: None,
            paused: false,
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
        let in_flight = self.shared.queue.broken(self.carried.written == self.batch);
        let lived = self.began.elapsed();
        let (by, code, reason, clean) = match (self.goodbye, &why) {
            (Some(parting), _) => (parting.by, parting.code, parting.reason, parting.answered),
            (None, Why::Aborted | Why::WriteStalled | Why::PongTimeout) => {
                (By::Client, None, Text::default(), false)
            }
            (None, _) => (By::Server, None, Text::default(), false),
        };
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
            match self.read_some(cx, now, LAST_TURN) {
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
            // Behind all that waits.
            Some(Goodbye::Close(code, reason))
                if self.goodbye.is_none() && self.shared.queue.is_empty() =>
            {
                self.say_goodbye(cx, now, code, reason)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn say_goodbye(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        code: CloseCode,
        reason: Text,
    ) -> Result<(), Why> {
        let frame = CloseFrame { code: code.as_u16().into(), reason: reason.as_str().into() };
        self.goodbye = Some(Parting {
            by: By::Client,
            code: Some(code),
            reason,
            until: now + self.limits.close,
            answered: false,
        });
        let result = self.with(cx, |machine, stream| machine.close(stream, Some(frame)));
        self.sent(now, result)
    }

    fn with<T>(
        &mut self,
        cx: &mut Context<'_>,
        act: impl FnOnce(&mut WebSocketContext, &mut Polled<'_, '_, Stream>) -> T,
    ) -> T {
        let Self { machine, stream, carried, .. } = self;
        act(machine, &mut Polled { stream, cx, carried })
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
        self.unflushed.get_or_insert((now, self.carried.written));
        Ok(())
    }

    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), Why> {
        self.read_some(cx, now, TURN)
    }

    fn read_some(&mut self, cx: &mut Context<'_>, now: Instant, most: usize) -> Result<(), Why> {
        for turn in 0.. {
            // While it says goodbye there is nobody to take it any more.
            if self.goodbye.is_none() && !self.shared.has_room() {
                self.paused = true;
                return Ok(());
            }
            if std::mem::replace(&mut self.paused, false) {
                // The silence was ours.
                self.heard.0 = now;
                self.ping = self.ping.map(|(payload, _)| (payload, now));
            }
            if turn == most {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            let frame = self.with(cx, |machine, stream| machine.read(stream));
            if self.heard.1 != self.carried.read {
                self.heard = (now, self.carried.read);
            }
            match frame {
                Ok(Frame::Text(text)) => self.taken(Message::Text(Text::from_utf8_bytes(text))),
                Ok(Frame::Binary(bytes)) => self.taken(Message::Binary(bytes)),
                // The machine has an answer, which has to leave.
                Ok(Frame::Ping(_)) => self.sent(now, Ok(()))?,
                Ok(Frame::Pong(payload)) => self.pong(&payload),
                Ok(Frame::Close(frame)) => self.told_goodbye(now, frame)?,
                Ok(Frame::Frame(_)) => {}
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Err(self.over()),
                Err(error) => return Err(self.broken(cx, now, error)),
            }
        }
        Ok(())
    }

    fn taken(&self, message: Message) {
        if self.goodbye.is_none() {
            self.shared.received(message);
        }
    }

    fn pong(&mut self, payload: &[u8]) {
        if let Some((sent, at)) = self.ping {
            if payload == sent.to_be_bytes() {
                self.shared.measured(at.elapsed());
                self.ping = None;
            }
        }
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

    /// Both have said goodbye, or the stream has ended behind it.
    fn over(&self) -> Why {
        match &self.goodbye {
            Some(Parting { by: By::Client, .. }) => Why::Requested,
            Some(_) => Why::Closed,
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
            Error::Capacity(CapacityError::MessageTooLong { .. }) => CloseCode::TOO_BIG,
            Error::Utf8(_) => CloseCode::INVALID_DATA,
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::Io(_) => {
                return self.failed(error);
            }
            _ => CloseCode::PROTOCOL,
        };
        let why = Why::Violation(error.to_string());
        if self.goodbye.is_none() && self.say_goodbye(cx, now, code, Text::default()).is_ok() {
            let _ = self.with(cx, |machine, stream| machine.flush(stream));
            if let Some(parting) = &mut self.goodbye {
                parting.by = By::Server;
            }
        }
        why
    }

    fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), Why> {
        for turn in 0.. {
            if self.unflushed.is_some() {
                match self.with(cx, |machine, stream| machine.flush(stream)) {
                    Ok(()) | Err(Error::ConnectionClosed) => {
                        self.unflushed = None;
                        let handed = self.shared.queue.handed();
                        self.batch = self.carried.written;
                        if handed > 0 && self.goodbye.is_none() {
                            // It may have been waiting for this to say goodbye.
                            self.part(cx, now)?;
                        }
                    }
                    Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                        let (since, written) = self.unflushed.unwrap_or((now, 0));
                        if written != self.carried.written || since > now {
                            self.unflushed = Some((now, self.carried.written));
                        }
                        return Ok(());
                    }
                    Err(error) => return Err(self.failed(error)),
                }
            }
            if self.goodbye.is_some() {
                return Ok(());
            }
            if turn == TURN {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            let mut bytes = 0;
            for _ in 0..BATCH {
                let Some(message) = self.shared.queue.take() else {
                    break;
                };
                bytes += message.len();
                let frame = match message {
                    Message::Text(text) => Frame::Text(text.into_utf8_bytes()),
                    Message::Binary(bytes) => Frame::Binary(bytes),
                };
                let result = self.with(cx, |machine, stream| machine.write(stream, frame));
                self.sent(now, result)?;
                if bytes >= BATCH_BYTES {
                    break;
                }
            }
            if self.unflushed.is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What is due by the clock; and the timer for what is due next.
    fn wait(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), Why> {
        loop {
            let mut next = None;
            let mut due = |at: Instant| {
                next = Some(next.map_or(at, |next: Instant| next.min(at)));
                now >= at
            };
            if let Some((since, _)) = self.unflushed {
                if due(since + self.limits.write_stall) {
                    return Err(match &self.goodbye {
                        Some(_) => self.over(),
                        None => Why::WriteStalled,
                    });
                }
            }
            if let Some(parting) = &self.goodbye {
                if due(parting.until) {
                    return Err(self.over());
                }
            } else if let (false, Some(every)) = (self.paused, self.limits.ping) {
                match self.ping {
                    Some((_, at)) if self.heard.0 <= at => {
                        if due(at + self.limits.pong) {
                            return Err(Why::PongTimeout);
                        }
                    }
                    // One is on its way, or there is silence.
                    _ => {
                        if due(self.heard.0 + every) {
                            self.send_ping(cx, now)?;
                            self.heard.0 = now;
                            continue;
                        }
                    }
                }
            }
            let Some(next) = next else {
                return Ok(());
            };
            // One that is too early is looked at again; nothing is set for every message.
            if self.armed.is_none_or(|armed| armed > next) {
                self.timer.set_at(next);
                self.armed = Some(next);
            }
            if Pin::new(&mut self.timer).poll(cx).is_pending() {
                return Ok(());
            }
            self.armed = None;
            if Instant::now() >= next {
                cx.waker().wake_by_ref();
                return Ok(());
            }
        }
    }

    fn send_ping(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), Why> {
        self.pings += 1;
        let payload = self.pings;
        let frame = Frame::Ping(Bytes::copy_from_slice(&payload.to_be_bytes()));
        let result = self.with(cx, |machine, stream| machine.write(stream, frame));
        self.sent(now, result)?;
        self.ping = Some((payload, now));
        match self.with(cx, |machine, stream| machine.flush(stream)) {
            Ok(()) if self.shared.queue.is_writing() => Ok(()),
            Ok(()) => {
                self.unflushed = None;
                self.batch = self.carried.written;
                Ok(())
            }
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(self.failed(error)),
        }
    }
}
