//! How a session ends: the reasons, the closing handshake, the deadlines, the record.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use super::{Link, Stage};
use crate::executor::{Time, panic_text};
use crate::message::{CloseCode, Text};
use crate::outbox::{Buffered, Request};
use crate::session::timers::Expired;
use crate::session::{Cause, Closed, Phase, Side, Timer};
use crate::shutdown;
use crate::ws::{CloseFrame, Violation};

/// What a callback has in any case, even when the server waits for nothing else any more: the
/// time to write a line into a file.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(1);

/// How the session ends: decided once.
pub(super) struct Ending {
    by: Side,
    cause: Cause,
    code: Option<CloseCode>,
    reason: Text,
    /// What our close frame says.
    pub(super) farewell: Option<CloseFrame>,
    pub(super) then: Then,
    /// The peer's close frame has been received; where there are none, the end of its stream.
    pub(super) peer_closed: bool,
    /// A callback that was under way when the peer ended its stream may still send.
    pub(super) answering: bool,
    timer: Option<Timer>,
    pub(super) clean: bool,
    /// Known when the session has ended.
    phase: Option<Phase>,
    at: Time,
    undelivered: Buffered,
    /// The first one outside of the callbacks, if the handler has not been told of it.
    panic: Option<String>,
}

/// What follows when our close frame has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// The peer's close frame.
    AwaitPeer,
    /// Nothing.
    Finish,
    /// The end, also if the frame could not be sent at once.
    FinishAnyway,
    /// The end of the peer's stream.
    Linger,
}

impl Link {
    /// The kernel has our close frame.
    #[cold]
    pub(super) fn close_sent(&mut self, cx: &mut Context<'_>) {
        self.stage = Stage::CloseSent;
        self.pongs = None;
        if self.is_framed() {
            return self.farewell_sent(cx);
        }
        let Some(ending) = &mut self.ending else {
            return;
        };
        ending.clean = ending.peer_closed;
        match ending.then {
            Then::AwaitPeer if !ending.peer_closed => {}
            Then::FinishAnyway => self.finish(),
            Then::AwaitPeer | Then::Finish => {
                // With input left unread, closing would reset the connection.
                let unread = match &mut self.transport {
                    Some(transport) => transport.poll_unread(cx).is_ready(),
                    None => false,
                };
                if unread { self.linger(cx) } else { self.finish() }
            }
            Then::Linger => self.linger(cx),
        }
    }

    #[cold]
    pub(super) fn linger(&mut self, cx: &mut Context<'_>) {
        if let Some(transport) = &mut self.transport {
            transport.close_write(cx);
        }
        self.stage = Stage::Lingering;
    }

    /// The peer has said goodbye and waits for our answer: nothing that it sends now matters, not even the
    /// end of its stream, which often comes in the same segment.
    #[cold]
    pub(super) fn owes_answer(&self) -> bool {
        matches!(self.stage, Stage::Closing | Stage::ClosingBatch)
            && self.ending.as_ref().is_some_and(|ending| ending.peer_closed)
    }

    /// A request has come while nothing can be written: a close must wait its turn, an abort must
    /// not. Returns whether the session can go to sleep.
    #[cold]
    pub(super) fn heed_request(&mut self) -> bool {
        if self.batch.is_none() && matches!(self.stage, Stage::Open | Stage::Closing) {
            return false;
        }
        let request = self.session.member().outbox.take_request();
        if let Some(request) = request {
            self.requested(request);
        }
        false
    }

    #[cold]
    pub(super) fn requested(&mut self, request: Request) {
        let close = match request {
            Request::Abort => return self.end_now(Side::Server, Cause::Aborted, None),
            Request::Close(close) => close,
            Request::Unfinished => CloseFrame::new(CloseCode::INTERNAL, "message not finished"),
            Request::TooSlow => {
                let (by, cause, close, then) = Self::too_slow();
                return self.end(by, cause, close, then);
            }
            Request::OverBudget => {
                let (by, cause, close, then) = Self::over_budget();
                return self.end(by, cause, close, then);
            }
        };
        self.end(Side::Server, Cause::Requested, Some(close), Then::AwaitPeer);
    }

    fn too_slow() -> (Side, Cause, Option<CloseFrame>, Then) {
        let close = CloseFrame::new(CloseCode::TRY_AGAIN_LATER, "too slow");
        (Side::Server, Cause::SlowPeer, Some(close), Then::AwaitPeer)
    }

    /// Memory is short: nothing is awaited.
    fn over_budget() -> (Side, Cause, Option<CloseFrame>, Then) {
        let close = CloseFrame::new(CloseCode::TRY_AGAIN_LATER, "server is short of memory");
        (Side::Server, Cause::OverBudget, Some(close), Then::FinishAnyway)
    }

    /// The server's stop is raced with everything else here, and never with a callback. The worker
    /// hears of it and wakes all its sessions.
    #[inline]
    pub(super) fn heed_stop(&mut self) {
        let phase = self.session.member().hub.shutdown.phase();
        if phase != self.stop_seen {
            self.stop_seen = phase;
            self.stop(phase);
        }
    }

    #[cold]
    fn stop(&mut self, phase: shutdown::Phase) {
        self.timers.moved();
        if phase == shutdown::Phase::Cutting {
            self.cut();
        } else {
            let close = CloseFrame::new(CloseCode::GOING_AWAY, "server stops");
            self.end(Side::Server, Cause::Stopping, Some(close), Then::AwaitPeer);
        }
    }

    #[cold]
    pub(super) fn heed_timers(&mut self) {
        if self.stage == Stage::Done {
            return;
        }
        let now = self.worker.now();
        let hub = Arc::clone(&self.session.member().hub);
        if !self.is_listening() || self.pace.as_ref().is_some_and(|pace| pace.holds_reading()) {
            self.timers.not_listening(now);
        }
        if now >= hub.shutdown.deadline() {
            return self.cut();
        }
        if self.timers.watches_writer() {
            self.watch_writer();
        }
        let timer = match self.timers.expired(now, &hub.config.timeouts) {
            None => return,
            Some(Expired::SendPing) => {
                self.ping_due = true;
                return;
            }
            Some(Expired::Timer(timer)) => timer,
        };
        let going_away = |reason| Some(CloseFrame::new(CloseCode::GOING_AWAY, reason));
        match timer {
            Timer::Pong => {
                let close = going_away("no answer to ping");
                self.end(Side::Server, Cause::PongTimeout, close, Then::FinishAnyway);
                // What is queued would only be in the way of the last word.
                self.drop_queue();
            }
            Timer::Idle => {
                self.end(Side::Server, Cause::IdleTimeout, going_away("idle"), Then::AwaitPeer);
            }
            Timer::Writer => {
                let close = CloseFrame::new(CloseCode::INTERNAL, "message not finished");
                self.end(Side::Server, Cause::WriterStalled, Some(close), Then::AwaitPeer);
            }
            Timer::Lifetime => {
                let close = going_away("lifetime reached");
                self.end(Side::Server, Cause::LifetimeReached, close, Then::AwaitPeer);
            }
            Timer::WriteStall => {
                return self.end_now(Side::Server, Cause::WriteStalled, Some(timer));
            }
            // It is watched over from outside.
            Timer::PollAbsence => return self.end_now(Side::Peer, Cause::PollTimeout, Some(timer)),
            // The cause is already known.
            Timer::Close | Timer::Stop => {
                return self.end_now(Side::Server, Cause::Requested, Some(timer));
            }
        }
        if let Some(ending) = &mut self.ending {
            ending.timer.get_or_insert(timer);
        }
    }

    /// Since when others wait for a message writer. While the peer takes nothing, that is not the
    /// writer's fault.
    #[cold]
    pub(super) fn watch_writer(&mut self) {
        let outbox = &self.session.member().outbox;
        match if self.batch.is_some() { None } else { outbox.behind_writer() } {
            None => self.timers.nobody_behind_writer(),
            Some(progress) => self.timers.behind_writer(self.worker.now(), progress),
        }
    }

    /// Begins the end, for the first reason only.
    #[cold]
    fn end(&mut self, by: Side, cause: Cause, farewell: Option<CloseFrame>, then: Then) {
        if self.ending.is_some() {
            return;
        }
        // Whoever asked before, and has not been heard yet, was first.
        let requested = self.session.member().outbox.take_request();
        let (by, cause, farewell, then) = match requested {
            Some(Request::Close(close)) if by == Side::Server => {
                (by, Cause::Requested, Some(close), Then::AwaitPeer)
            }
            Some(Request::Abort) => (Side::Server, Cause::Aborted, None, Then::Finish),
            // What was queued has been dropped for this reason.
            Some(Request::TooSlow) if farewell.is_some() => Self::too_slow(),
            Some(Request::OverBudget) if farewell.is_some() => Self::over_budget(),
            _ => (by, cause, farewell, then),
        };
        let answering = cause == Cause::PeerClosed && self.is_framed();
        self.ending = Some(Box::new(Ending {
            by,
            cause,
            code: farewell.as_ref().map(|close| close.code),
            reason: farewell.as_ref().map(|close| close.reason.clone()).unwrap_or_default(),
            farewell,
            then,
            peer_closed: false,
            answering,
            timer: None,
            clean: false,
            phase: None,
            at: Time::NEVER,
            undelivered: Buffered::default(),
            panic: None,
        }));
        self.stage = Stage::Closing;
        if let Some(inlet) = self.streaming.as_mut().and_then(|streaming| streaming.inlet.take()) {
            inlet.interrupt();
        }
        self.timers.closing(self.worker.now());
        if !answering {
            self.session.member().outbox.close();
        }
        if cause == Cause::Aborted {
            if let Some(ending) = &mut self.ending {
                ending.phase = Some(Phase::Open);
            }
            self.finish();
        }
    }

    /// A callback failed.
    pub(in crate::session) fn handler_failed(&mut self, cause: Cause) {
        let close = CloseFrame::new(CloseCode::INTERNAL, "internal error");
        self.end(Side::Server, cause, Some(close), Then::AwaitPeer);
        self.drop_held();
    }

    /// The application has panicked where it was asked something between its callbacks: the session ends
    /// as after a callback's panic.
    #[cold]
    pub(in crate::session) fn panicked(&mut self, who: &str, panic: &(dyn Any + Send)) {
        let text = panic_text(panic);
        self.session.member().hub.endings.panicked();
        log::error!("session {}: {who} panicked: {text}", self.session.id());
        self.handler_failed(Cause::HandlerPanicked);
        if let Some(ending) = &mut self.ending {
            ending.panic.get_or_insert(text);
        }
    }

    /// What such a panic said, for the handler to be told. Only once.
    pub(in crate::session) fn take_panic(&mut self) -> Option<String> {
        self.ending.as_mut()?.panic.take()
    }

    /// A callback has ended the session: no further message reaches it.
    pub(in crate::session) fn handler_closes(&mut self, code: CloseCode, reason: &str) {
        let close = CloseFrame::new(code, reason);
        self.end(Side::Server, Cause::Requested, Some(close), Then::AwaitPeer);
        self.drop_held();
    }

    /// What the handler has not been given yet it does not get any more.
    fn drop_held(&mut self) {
        self.held = None;
        if let Some(streaming) = &mut self.streaming {
            streaming.begun = None;
        }
    }

    #[cold]
    pub(super) fn peer_closes(&mut self, close: Option<CloseFrame>) {
        // RFC 6455 section 5.5.1: the answer echoes the status code.
        let echo = close.as_ref().map(|close| CloseFrame::new(close.code, ""));
        self.end(Side::Peer, Cause::PeerClosed, echo, Then::Finish);
        let sent = self.stage == Stage::CloseSent;
        if let Some(ending) = &mut self.ending {
            ending.peer_closed = true;
            ending.clean |= sent;
            if ending.cause == Cause::PeerClosed {
                ending.reason = close.map(|close| close.reason).unwrap_or_default();
            }
        }
        // What the callbacks have queued before leaves first: the peer reads until it has our close
        // frame (RFC 6455 section 5.5.1).
        if sent {
            self.finish();
        }
    }

    #[cold]
    pub(super) fn violation(&mut self, violation: Violation) {
        // Nothing that follows can be understood.
        self.at = self.input.len();
        if self.ending.is_some() {
            // It was to be closed anyway; there will be no better answer than our close frame.
            if let Some(ending) = &mut self.ending {
                ending.then = Then::Linger;
            }
            if self.stage == Stage::CloseSent {
                // The reads that follow go on with it.
                self.linger(&mut Context::from_waker(Waker::noop()));
            }
            return;
        }
        let close = CloseFrame::new(violation.code, violation.reason);
        self.end(Side::Peer, Cause::Violation, Some(close), Then::Linger);
    }

    /// The peer has sent more than its rate allows. What it says now can still be understood, so that its
    /// goodbye is awaited.
    #[cold]
    pub(super) fn rate_exceeded(&mut self, reason: &str) {
        let close = CloseFrame::new(CloseCode::POLICY, reason);
        self.end(Side::Peer, Cause::RateExceeded, Some(close), Then::AwaitPeer);
    }

    #[cold]
    pub(super) fn failed(&mut self, error: &io::Error) {
        let cause = match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Cause::PeerVanished,
            // Behind a whole message nothing is missing that TLS would have protected.
            io::ErrorKind::UnexpectedEof if self.codec.is_between_messages() => Cause::PeerVanished,
            io::ErrorKind::UnexpectedEof => Cause::Truncated,
            io::ErrorKind::TimedOut if self.session.member().protocol().is_http() => {
                Cause::PollTimeout
            }
            io::ErrorKind::OutOfMemory if self.session.member().protocol().is_http() => {
                Cause::OverBudget
            }
            kind => Cause::Io(kind),
        };
        // It is our own rule how often a key may be used.
        let by = match cause {
            Cause::Io(io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
            | Cause::OverBudget => Side::Server,
            _ => Side::Peer,
        };
        let timer = (cause == Cause::PollTimeout).then_some(Timer::PollAbsence);
        self.end_now(by, cause, timer);
    }

    /// The server does not wait any longer.
    fn cut(&mut self) {
        if self.stage == Stage::Done {
            return;
        }
        let said = matches!(self.stage, Stage::CloseSent | Stage::Lingering);
        if let Some(ending) = &mut self.ending {
            if ending.cause == Cause::Stopping {
                ending.cause = Cause::Cut;
            }
            if !said && !ending.peer_closed {
                ending.code = None;
                ending.reason = Text::default();
            }
        }
        let deadline = self.session.member().hub.shutdown.deadline();
        let timer = (self.worker.now() >= deadline).then_some(Timer::Stop);
        self.end_now(Side::Server, Cause::Cut, timer);
        self.cut = true;
    }

    fn drop_queue(&mut self) {
        let written = std::mem::take(&mut self.written);
        let member = self.session.member();
        member.outbox.clear(written, &member.hub.terms);
    }

    /// Ends the session without a close frame.
    #[cold]
    pub(super) fn end_now(&mut self, by: Side, cause: Cause, timer: Option<Timer>) {
        let open = self.stage == Stage::Open;
        self.end(by, cause, None, Then::Finish);
        if let Some(ending) = &mut self.ending {
            ending.timer = ending.timer.or(timer);
            if open {
                ending.phase = Some(Phase::Open);
            }
        }
        self.finish();
    }

    /// The session has ended: the socket is closed now, whoever still holds a handle.
    #[cold]
    pub(super) fn finish(&mut self) {
        if self.stage == Stage::Done {
            return;
        }
        self.stage = Stage::Done;
        self.transport = None;
        self.drop_held();
        let pool = self.worker.pool();
        pool.give(std::mem::take(&mut self.input));
        self.at = 0;
        self.unpay();
        self.batch = None;
        self.pongs = None;
        let written = std::mem::take(&mut self.written);
        let member = self.session.member();
        let undelivered = member.outbox.clear(written, &member.hub.terms);
        let now = self.worker.now();
        if let Some(ending) = &mut self.ending {
            ending.phase.get_or_insert(Phase::Closing);
            ending.at = now;
            ending.undelivered = undelivered;
        }
    }

    /// The record. The link must have ended.
    pub(in crate::session) fn closed(&self) -> Closed {
        let created = self.session.member().created;
        let ending = self.ending.as_deref();
        Closed {
            by: ending.map_or(Side::Server, |ending| ending.by),
            cause: ending.map_or(Cause::Cut, |ending| ending.cause),
            phase: ending.and_then(|ending| ending.phase).unwrap_or(Phase::Open),
            code: ending.and_then(|ending| ending.code),
            reason: ending.map(|ending| ending.reason.clone()).unwrap_or_default(),
            clean: ending.is_some_and(|ending| ending.clean),
            timer: ending.and_then(|ending| ending.timer),
            undelivered: ending.map(|ending| ending.undelivered).unwrap_or_default(),
            lived: ending.map(|ending| ending.at.since(created)).unwrap_or_default(),
        }
    }

    /// Until when a callback that began at `started` may go on after the session's end.
    pub(in crate::session) fn grace_ends(&self, started: Time) -> Time {
        let shutdown = &self.session.member().hub.shutdown;
        let limit = match shutdown.phase() {
            shutdown::Phase::Cutting => Time::default(),
            _ => shutdown.deadline(),
        };
        let ended = self.ending.as_ref().map_or(Time::NEVER, |ending| ending.at);
        let patience = self.config().timeouts.close;
        (ended.max(started) + patience).min(limit).max(started + LAST_WORD.min(patience))
    }

    /// Wakes the task at `deadline`, when the session's own timers are over.
    pub(in crate::session) fn wake_at(&mut self, deadline: Time) {
        self.timers.wake_at(deadline);
    }

    /// Whether the stop deadline ended the session.
    pub(in crate::session) fn was_cut(&self) -> bool {
        self.cut
    }
}
