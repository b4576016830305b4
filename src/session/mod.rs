//! One client: the handle, the callbacks, the task that drives the link, and the record of its end.

mod batch;
mod closed;
mod driver;
mod handle;
mod handler;
mod link;
mod timers;

pub use closed::{Cause, Closed, Phase, Side, Timer};
pub(crate) use driver::drive;
pub use handle::{Session, Sessions, Traffic};
pub use handler::{Closures, Flow, Handler, HandlerError, IntoOutcome, Outcome, Set, Unset};
pub(crate) use link::{LAST_WORD, Link};

/// Bytes of small frames collected for one system call; with one more frame of the largest kind
/// that is copied they still fit into the 64 KiB buffer of the worker.
pub(crate) const CORK: usize = 59 * 1024;
