//! What can go wrong: with a store, with publishing, with coming back.

use std::fmt;
use std::sync::Arc;

use crate::hub::JoinError;

/// What kind of failure of a store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// More waits to be kept than may wait: `Config::history.pending_messages` or `pending_bytes`.
    QueueFull,
    /// Somebody else holds a lock on it.
    Locked,
    /// There is no space left: on the disk, or of what the store may take.
    DiskFull,
    /// It cannot be read or written.
    Io,
    /// It is damaged, or is something else.
    Corrupt,
    /// A later version has written it.
    Newer,
    /// Another server has it open.
    InUse,
    /// It has been closed.
    Closed,
    /// It did not answer in time.
    TimedOut,
    /// Something else.
    Other,
}

/// Why something was not kept, or could not be read. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreError {
    kind: StoreErrorKind,
    text: Arc<str>,
}

impl StoreError {
    /// A failure, and what to say of it: what failed, and what to do about it.
    pub fn new(kind: StoreErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into().into() }
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    #[cfg(feature = "sqlite")]
    pub(super) fn closed() -> Self {
        Self::new(StoreErrorKind::Closed, "the history has been closed: its server has ended")
    }

    pub(super) fn unanswered() -> Self {
        Self::new(
            StoreErrorKind::Closed,
            "the history has been closed, and its store has not said whether it is kept",
        )
    }

    pub(super) fn queue_full() -> Self {
        Self::new(
            StoreErrorKind::QueueFull,
            "as much waits to be kept as may wait (`history.pending_messages`, \
             `history.pending_bytes`): the store is slower than what is published",
        )
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreError").field("kind", &self.kind).field("text", &self.text).finish()
    }
}

impl std::error::Error for StoreError {}

/// Why nothing was published. It reached nobody, and no id was given.
#[derive(Debug)]
#[non_exhaustive]
pub enum PublishError {
    /// As much as may wait to be handed on does wait already
    /// ([`Limits::published_bytes`](crate::config::Limits::published_bytes)). Only
    /// [`History::try_publish`](super::History::try_publish) says so; `publish` waits instead.
    Full,
    /// The server has ended, and its history is closed.
    Closed,
    /// The name of the room is empty, or longer than 256 bytes.
    BadName,
    /// This room has had as many ids as there are, [`MAX_ID`](super::MAX_ID).
    NoMoreIds,
    /// A message was published with history where that is not possible: where another one is being made, in what
    /// [`History::join`](super::History::join) asks, or in
    /// [`Builder::on_history_error`](crate::Builder::on_history_error).
    Nested,
    /// The payload cannot be JSON.
    #[cfg(feature = "json")]
    Encode(serde_json::Error),
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => {
                "too much has been published that no worker has handed on yet \
                 (`limits.published_bytes`): wait with `publish`"
            }
            Self::Closed => "the server has ended",
            Self::BadName => "a room's name has 1 to 256 bytes",
            Self::NoMoreIds => "the room has had as many messages as there are ids",
            Self::Nested => {
                "nothing can be published where a message is being made, or a failure told"
            }
            #[cfg(feature = "json")]
            Self::Encode(error) => return write!(f, "a payload cannot be JSON: {error}"),
        })
    }
}

impl std::error::Error for PublishError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            #[cfg(feature = "json")]
            Self::Encode(error) => Some(error),
            _ => None,
        }
    }
}

/// Why a session did not join a room with what it had missed. It may have been sent some of that.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResumeError {
    /// It could not become a member.
    Join(JoinError),
    /// It is a member already: what it would be sent it may have got. It has to leave first.
    AlreadyMember,
    /// What it missed could not be read.
    Store(StoreError),
    /// The session is ending or has ended.
    Closed,
}

impl fmt::Display for ResumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join(error) => error.fmt(f),
            Self::AlreadyMember => f.write_str("the session is in this room already"),
            Self::Store(error) => error.fmt(f),
            Self::Closed => f.write_str("the session is closed"),
        }
    }
}

impl std::error::Error for ResumeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Join(error) => Some(error),
            Self::Store(error) => Some(error),
            Self::AlreadyMember | Self::Closed => None,
        }
    }
}

impl From<JoinError> for ResumeError {
    fn from(error: JoinError) -> Self {
        Self::Join(error)
    }
}

impl From<StoreError> for ResumeError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
