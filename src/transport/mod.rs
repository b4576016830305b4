//! What carries a session's bytes: a socket, a pipe in memory, or any byte stream; each with or without
//! TLS. Beside it what any byte stream can have: deadlines and rates.

mod bucket;
mod budget;
mod deadline;
mod listener;
mod memory;
mod peer;
pub(crate) mod proxy;
mod rate;
mod socket;
mod stream;
#[cfg(feature = "tls")]
mod tls;
mod unix;

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

#[cfg(feature = "fallback")]
use crate::fallback::Relayed;
pub(crate) use bucket::Bucket;
pub use budget::{Deadline, DeadlineExceeded};
pub use deadline::{DeadlineStream, Deadlines};
pub use listener::ListenAddr;
pub(crate) use listener::{Bound, Listener};
pub(crate) use memory::Memory;
pub use memory::MemoryStream;
pub(crate) use memory::pair;
pub(crate) use peer::ClientName;
pub use peer::Peer;
pub use rate::{Allowance, BytesPerSecond, RatePolicy, Unlimited};
pub(crate) use socket::Socket;
pub(crate) use stream::Stream;
#[cfg(feature = "tls")]
pub(crate) use tls::Tls;

/// What is known of the peer's going without having read to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parting {
    No,
    /// Behind what has not been read comes the end of its stream.
    Ended,
    /// It takes nothing more either.
    Broken,
}

/// A byte stream as the session's driver wants it: readiness first, then a call that does not
/// wait. One task at a time polls it.
///
/// An enum and not a trait object: every idle session would pay for the box.
pub(crate) enum Transport {
    Socket(Socket),
    Memory(Memory),
    Stream(Stream),
    /// The requests of a client without a connection of its own.
    #[cfg(feature = "fallback")]
    Relay(Relayed),
    /// In a box, so that the others are no larger.
    #[cfg(feature = "tls")]
    Tls(Box<Tls>),
}

impl Transport {
    /// Ready when a read may bring something, so that a buffer is worth borrowing. A read may still
    /// find nothing.
    #[inline]
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Socket(socket) => socket.poll_readable(),
            Self::Memory(memory) => memory.poll_readable(cx),
            Self::Stream(stream) => stream.poll_readable(),
            #[cfg(feature = "fallback")]
            Self::Relay(relay) => relay.poll_readable(cx),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_readable(cx),
        }
    }

    /// Ready when something has arrived, or the end of the stream, and closing now would lose what
    /// has been sent. Only for who reads no further: what there is may be thrown away.
    pub(crate) fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Stream(stream) => stream.poll_unread(cx),
            Self::Socket(_) | Self::Memory(_) => self.poll_readable(cx),
            // What has been sent is the relay's.
            #[cfg(feature = "fallback")]
            Self::Relay(_) => Poll::Pending,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_unread(cx),
        }
    }

    /// How far the peer has left, for whoever does not read now; he is woken when that changes. A stream of
    /// somebody else's does not tell.
    pub(crate) fn parting(&mut self, cx: &mut Context<'_>) -> Parting {
        match self {
            Self::Socket(socket) => socket.parting(),
            Self::Memory(memory) => memory.parting(cx),
            Self::Stream(_) => Parting::No,
            #[cfg(feature = "fallback")]
            Self::Relay(_) => Parting::No,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.parting(cx),
        }
    }

    /// For whoever has read in vain: whether something has come from the peer all the same.
    pub(crate) fn take_heard(&mut self) -> bool {
        match self {
            Self::Socket(_) | Self::Memory(_) | Self::Stream(_) => false,
            #[cfg(feature = "fallback")]
            Self::Relay(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.take_heard(),
        }
    }

    /// Appends to `buffer`, as much as it has capacity for; `Ok(0)` is the end of the stream.
    ///
    /// `UnexpectedEof` is an end that TLS does not vouch for: no close_notify came before it (RFC 8446
    /// section 6.1).
    ///
    /// A TLS connection on which we have said our last word reports what it has received and appends
    /// nothing: only the end matters then.
    ///
    /// Cancel safe: what has been read is in the buffer.
    #[inline]
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket(socket) => socket.poll_read(buffer),
            Self::Memory(memory) => memory.poll_read(cx, buffer),
            Self::Stream(stream) => stream.poll_read(cx, buffer),
            #[cfg(feature = "fallback")]
            Self::Relay(relay) => relay.poll_read(cx, buffer),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_read(cx, buffer),
        }
    }

    /// Writes the beginning of `slices`, and says how much of it: so much has been given to the system.
    ///
    /// Whoever has begun to write goes on with the rest of the same bytes, or writes no more: TLS may
    /// have encrypted more of them than it has reported, and a stream may have taken them before it
    /// says so.
    #[inline]
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket(socket) => socket.poll_write(slices),
            Self::Memory(memory) => memory.poll_write(cx, slices),
            Self::Stream(stream) => stream.poll_write(cx, slices),
            #[cfg(feature = "fallback")]
            Self::Relay(relay) => relay.poll_write(cx, slices),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_write(cx, slices),
        }
    }

    /// Sends the end of the stream; the peer can still send.
    ///
    /// What cannot be done at once is done by the reads that follow, and whoever reads is woken for it.
    pub(crate) fn close_write(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::Socket(socket) => socket.close_write(),
            Self::Memory(memory) => memory.close_write(),
            Self::Stream(stream) => stream.close_write(cx),
            // A close frame has said so.
            #[cfg(feature = "fallback")]
            Self::Relay(_) => {}
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.close_write(cx),
        }
    }
}
