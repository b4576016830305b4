//! The one honest record of how a session ended.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::message::{CloseCode, Text};
use crate::outbox::Buffered;

/// How and why a session ended: made once, given to `on_close`, written to the log.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Closed {
    /// Which side ended it.
    pub by: Side,
    /// Why.
    pub cause: Cause,
    /// How far the session had come when it was over: open if it broke off, closing if one side had
    /// said goodbye, or wanted to.
    pub phase: Phase,
    /// The close code: the peer's if it closed, otherwise ours. `None` if there was no close frame
    /// or it carried no code. In a session of length-prefixed [frames](crate::docs::frames) what a close frame
    /// of ours would have carried.
    pub code: Option<CloseCode>,
    /// The reason that went with the code.
    pub reason: Text,
    /// Whether the closing handshake was completed: both sides have said goodbye
    /// (RFC 6455 section 7.1.4), or have ended their streams, where there are no close
    /// [frames](crate::docs::frames).
    pub clean: bool,
    /// The timer that fired, if one did: the one that is the cause, or the one that ended the
    /// closing handshake.
    pub timer: Option<Timer>,
    /// What was waiting for the peer and was not delivered.
    pub undelivered: Buffered,
    /// From the end of the handshake to the end of the session.
    pub lived: Duration,
}

impl Closed {
    /// By whom, with which code, why: as names of which there are only so many, whatever the peer does.
    pub(super) fn labels(&self) -> [&'static str; 3] {
        let by = match self.by {
            Side::Server => "server",
            Side::Peer => "peer",
        };
        [by, self.code.map_or("none", CloseCode::label), self.cause.label()]
    }
}

impl fmt::Display for Closed {
    /// One line for a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "closed by {} ({}) while {}", self.by, self.cause, self.phase)?;
        match self.code {
            Some(code) => write!(f, ", code {code}")?,
            None => f.write_str(", no code")?,
        }
        if !self.reason.is_empty() {
            write!(f, " {:?}", self.reason)?;
        }
        if let Some(timer) = self.timer {
            write!(f, ", {timer} timer fired")?;
        }
        if !self.clean {
            f.write_str(", closing handshake not completed")?;
        }
        if self.undelivered.messages > 0 {
            let Buffered { messages, bytes } = self.undelivered;
            write!(f, ", {messages} messages ({bytes} bytes) not delivered")?;
        }
        write!(f, ", lived {:.1?}", self.lived)
    }
}

/// A side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This server: its application, one of its timers, its stop.
    Server,
    /// The client, or the network between.
    Peer,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Peer => "peer",
        })
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The peer sent a close frame, or ended its stream between two length-prefixed
    /// [frames](crate::docs::frames).
    PeerClosed,
    /// The stream ended or was reset without a close frame. What a phone does that loses its
    /// network.
    PeerVanished,
    /// In the middle of a message the TCP stream ended, and TLS had not said that it would
    /// (close_notify, RFC 8446 section 6.1): it may be that somebody between has cut it.
    ///
    /// The same after a whole message or a close frame is nothing: many clients end like that.
    ///
    /// Or the stream ended, in whatever way, inside of a length-prefixed [frame](crate::docs::frames).
    Truncated,
    /// The socket failed, or (`InvalidData`) the peer broke TLS, or (`QuotaExceeded`) the keys of a
    /// connection with TLS 1.2 have been used as often as they may.
    Io(io::ErrorKind),
    /// The peer broke RFC 6455 or a bound; the code says which way: 1002, 1007, 1008 or 1009.
    Violation,
    /// The peer sent more than its inbound rate allows, where that [closes](crate::config::Excess::Close):
    /// 1008, and the reason says which rate.
    RateExceeded,
    /// The application asked for it: [`Session::close`](crate::Session::close) or
    /// [`Flow::Close`](crate::Flow::Close).
    Requested,
    /// The application called [`Session::abort`](crate::Session::abort).
    Aborted,
    /// A handler returned an error.
    HandlerFailed,
    /// A handler panicked.
    HandlerPanicked,
    /// The peer gave no sign of life after a ping.
    PongTimeout,
    /// The client of an [HTTP](crate::Protocol::Http) session did not come for
    /// [`Timeouts::poll_absence`](crate::config::Timeouts::poll_absence).
    PollTimeout,
    /// The peer sent no message for [`Timeouts::idle`](crate::config::Timeouts::idle).
    IdleTimeout,
    /// The peer accepted no byte for
    /// [`Timeouts::write_stall`](crate::config::Timeouts::write_stall).
    WriteStalled,
    /// More was published than may wait for this peer, and the policy was
    /// [`SlowPeer::Close`](crate::SlowPeer::Close).
    SlowPeer,
    /// More waited for all peers together than
    /// [`Limits::outboxes_bytes`](crate::config::Limits::outboxes_bytes), and for this one the most.
    OverBudget,
    /// Others waited for a [`MessageWriter`](crate::MessageWriter) of which nothing came for
    /// [`Timeouts::writer`](crate::config::Timeouts::writer).
    WriterStalled,
    /// The session reached [`Timeouts::lifetime`](crate::config::Timeouts::lifetime).
    LifetimeReached,
    /// The server stops.
    Stopping,
    /// The server stopped and did not wait any longer.
    Cut,
}

impl Cause {
    fn label(&self) -> &'static str {
        match self {
            Self::PeerClosed => "peer_closed",
            Self::PeerVanished => "peer_vanished",
            Self::Truncated => "truncated",
            Self::Io(_) => "io",
            Self::Violation => "violation",
            Self::RateExceeded => "rate_exceeded",
            Self::Requested => "requested",
            Self::Aborted => "aborted",
            Self::HandlerFailed => "handler_failed",
            Self::HandlerPanicked => "handler_panicked",
            Self::PongTimeout => "pong_timeout",
            Self::PollTimeout => "poll_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::WriteStalled => "write_stalled",
            Self::SlowPeer => "slow_peer",
            Self::OverBudget => "over_budget",
            Self::WriterStalled => "writer_stalled",
            Self::LifetimeReached => "lifetime_reached",
            Self::Stopping => "stopping",
            Self::Cut => "cut",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PeerClosed => "peer closed",
            Self::PeerVanished => "peer vanished without a close frame",
            Self::Truncated => "stream cut off in the middle of a message",
            Self::Io(kind) => return write!(f, "socket failed: {kind}"),
            Self::Violation => "protocol or bound violated",
            Self::RateExceeded => "inbound rate exceeded",
            Self::Requested => "requested",
            Self::Aborted => "aborted",
            Self::HandlerFailed => "handler failed",
            Self::HandlerPanicked => "handler panicked",
            Self::PongTimeout => "no pong",
            Self::PollTimeout => "client came no more",
            Self::IdleTimeout => "idle",
            Self::WriteStalled => "peer accepts no bytes",
            Self::SlowPeer => "peer too slow for what is published",
            Self::OverBudget => "too much waits for all peers together",
            Self::WriterStalled => "message writer writes nothing",
            Self::LifetimeReached => "lifetime reached",
            Self::Stopping => "server stops",
            Self::Cut => "cut by the stop deadline",
        })
    }
}

/// How far a session had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Messages could be exchanged.
    Open,
    /// One side had already begun to close.
    Closing,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Closing => "closing",
        })
    }
}

/// A deadline of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Timer {
    /// [`Timeouts::pong`](crate::config::Timeouts::pong)
    Pong,
    /// [`Timeouts::poll_absence`](crate::config::Timeouts::poll_absence)
    PollAbsence,
    /// [`Timeouts::idle`](crate::config::Timeouts::idle)
    Idle,
    /// [`Timeouts::write_stall`](crate::config::Timeouts::write_stall)
    WriteStall,
    /// [`Timeouts::writer`](crate::config::Timeouts::writer)
    Writer,
    /// [`Timeouts::close`](crate::config::Timeouts::close)
    Close,
    /// [`Timeouts::lifetime`](crate::config::Timeouts::lifetime)
    Lifetime,
    /// [`Timeouts::stop`](crate::config::Timeouts::stop)
    Stop,
}

impl fmt::Display for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pong => "pong",
            Self::PollAbsence => "poll absence",
            Self::Idle => "idle",
            Self::WriteStall => "write stall",
            Self::Writer => "writer",
            Self::Close => "close",
            Self::Lifetime => "lifetime",
            Self::Stop => "stop",
        })
    }
}
