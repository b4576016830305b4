//! One client: the handle, the callbacks, the task that drives the link, and the record of its end.

mod closed;
mod driver;
mod handle;
mod handler;
mod link;
mod timers;

pub use closed::{Cause, Closed, Phase, Side, Timer};
pub(crate) use driver::drive;
pub use handle::{Sending, Session, Sessions, Traffic};
pub use handler::{Closures, Flow, Handler, HandlerError, IntoOutcome, Outcome, Set, Unset};
pub(crate) use link::{LAST_WORD, Link};
