//! How much a session takes from its peer.

/// How many messages, and how many bytes of them, a session takes from its peer per second, and what
/// happens when there are more. For all sessions with [`Config::inbound`](super::Config::inbound), for one
/// of them with [`Rates::with_inbound`](crate::Rates::with_inbound).
///
/// ```
/// use coracle::config::{Inbound, Rate};
///
/// // Ten chat messages in a second, and no more than two seconds' worth at once.
/// let builder = coracle::Server::builder()
///     .inbound(Inbound::pause().with_messages(Rate::per_second(10).with_burst(20)));
/// # drop(builder);
/// ```
///
/// What counts is what the application is given: messages, and their payload after it has been
/// decompressed. A message in fragments counts when it is whole; one that is received [in
/// parts](crate::docs::streaming) counts once, when it begins, and its bytes as they arrive. Pings, pongs and
/// close frames do not count, and neither do headers: how many bytes come in over the connection is bounded by
/// [`Config::rates`](super::Config::rates), and how many frames a session may have handled before the others
/// have their turn is bounded in any case.
///
/// Each is a token bucket, counted exactly. A session with one costs some 200 bytes more than one
/// without, and a look at the clock for each message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inbound {
    /// Messages. Default `None`: any number.
    pub messages: Option<Rate>,
    /// Bytes of payload. Default `None`: any number.
    pub bytes: Option<Rate>,
    /// What happens at the first message that is too much.
    pub excess: Excess,
}

/// So many per second, and so many at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rate {
    /// At least 1.
    pub per_second: u64,
    /// At least 1.
    pub burst: u64,
}

/// What happens to a message that exceeds its [rate](Inbound).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Excess {
    /// It waits, and so does everything behind it: nothing more is read, and TCP slows the peer down.
    ///
    /// Messages are let in while there is anything in both buckets. The last one may be longer than what is
    /// left of the bytes, which is made up for before the next: over any time `t`, at most `burst + per_second
    /// · t` messages, and as many bytes and one message.
    ///
    /// Pings and the close frame that the peer has sent behind the message wait with it, and so does the end of
    /// its stream. No timer takes that for its silence; closing and stopping do not wait. Meanwhile the session keeps what it has read
    /// already: 16 KiB mostly, and 256 KiB at most. Timers are coarse: with a burst of less than a fifth of a second's worth
    /// the rate is not reached.
    #[default]
    Pause,
    /// The session is closed with 1008, a reason that names the rate, and
    /// [`Cause::RateExceeded`](crate::Cause::RateExceeded). What came before is delivered, the message itself
    /// is not.
    ///
    /// A message that is longer than the whole burst of bytes always exceeds it. What the network has held up
    /// arrives at once: the burst should hold a few seconds' worth. What has waited for this session's
    /// own handler is not held against the peer: as long as the session does not listen, it is given what
    /// comes in beyond the burst, too.
    Close,
}

impl Inbound {
    /// Without a rate yet; what exceeds it [waits](Excess::Pause).
    #[must_use]
    pub const fn pause() -> Self {
        Self { messages: None, bytes: None, excess: Excess::Pause }
    }

    /// Without a rate yet; what exceeds it [ends the session](Excess::Close).
    #[must_use]
    pub const fn close() -> Self {
        Self { messages: None, bytes: None, excess: Excess::Close }
    }

    /// The same with a rate of messages.
    #[must_use]
    pub const fn with_messages(self, rate: Rate) -> Self {
        Self { messages: Some(rate), ..self }
    }

    /// The same with a rate of bytes.
    #[must_use]
    pub const fn with_bytes(self, rate: Rate) -> Self {
        Self { bytes: Some(rate), ..self }
    }

    /// The setting that cannot be, and what may be there.
    pub(crate) fn invalid(&self) -> Option<String> {
        let settings = [
            ("messages.per_second", self.messages.map(|rate| rate.per_second)),
            ("messages.burst", self.messages.map(|rate| rate.burst)),
            ("bytes.per_second", self.bytes.map(|rate| rate.per_second)),
            ("bytes.burst", self.bytes.map(|rate| rate.burst)),
        ];
        let zero = settings.into_iter().find(|(_, number)| *number == Some(0));
        zero.map(|(name, _)| format!("inbound.{name} is 0: it must be at least 1"))
    }
}

impl Rate {
    /// So many per second, and as many at once.
    #[must_use]
    pub const fn per_second(number: u64) -> Self {
        Self { per_second: number, burst: number }
    }

    /// The same with so many at once after a rest.
    #[must_use]
    pub const fn with_burst(self, burst: u64) -> Self {
        Self { burst, ..self }
    }
}
