//! What one session may cost its server.

use super::deflate::Agreement;

/// What one message may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// After inflation, too.
    pub(crate) message_bytes: usize,
    pub(crate) fragments: u32,
    /// Whether messages may be compressed, and how.
    pub(crate) deflate: Option<Agreement>,
    /// Messages are handed on in parts, as they arrive. The number of fragments is not bounded then,
    /// because none is kept.
    pub(crate) streamed: bool,
}
