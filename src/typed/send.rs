//! Typed messages on their way out.

use std::fmt;

use serde::ser::Serialize;

use super::Envelope;
use crate::error::SendError;
use crate::session::Session;

impl Session {
    /// Queues a typed message for the peer, and waits while as much as may wait is waiting already; see
    /// [`send`](Self::send). The payload is made JSON before the first wait.
    ///
    /// # Errors
    ///
    /// [`SendTypedError::Encode`] for a payload that cannot be JSON, [`SendTypedError::Send`] when the session
    /// is ending or has ended.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has either queued the whole message or nothing of it.
    pub async fn send_typed<P: Serialize>(
        &self,
        envelope: &Envelope<P>,
    ) -> Result<(), SendTypedError> {
        Ok(self.send(envelope.to_message()?).await?)
    }

    /// Queues a typed message for the peer if there is room now. Never waits.
    ///
    /// # Errors
    ///
    /// [`SendTypedError::Encode`] for a payload that cannot be JSON, [`SendTypedError::Send`] with the message
    /// if there is no room or no session any more.
    pub fn try_send_typed<P: Serialize>(
        &self,
        envelope: &Envelope<P>,
    ) -> Result<(), SendTypedError> {
        Ok(self.try_send(envelope.to_message()?)?)
    }
}

/// Why a typed message was not queued.
#[derive(Debug)]
#[non_exhaustive]
pub enum SendTypedError {
    /// Its payload cannot be JSON.
    Encode(serde_json::Error),
    /// It was not taken; the message is in there, encoded.
    Send(SendError),
}

impl From<serde_json::Error> for SendTypedError {
    fn from(error: serde_json::Error) -> Self {
        Self::Encode(error)
    }
}

impl From<SendError> for SendTypedError {
    fn from(error: SendError) -> Self {
        Self::Send(error)
    }
}

impl fmt::Display for SendTypedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Encode(error) => write!(f, "a payload cannot be JSON: {error}"),
            Self::Send(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SendTypedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Encode(error) => Some(error),
            Self::Send(error) => Some(error),
        }
    }
}
