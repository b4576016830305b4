//! One client: the handle, the callbacks, the task that drives the link, and the record of its end.

mod closed;
mod closures;
mod driver;
mod gaps;
mod handle;
mod handler;
mod incoming;
mod link;
mod rates;
mod timers;
mod writer;

pub use closed::{Cause, Closed, Phase, Side, Timer};
#[cfg(feature = "json")]
pub use closures::Routed;
pub(crate) use closures::slots;
pub(crate) use driver::drive;
pub use gaps::GapHook;
pub use handle::{Sending, Session, Sessions, Traffic};
pub use handler::{
    Closures, Flow, Handler, HandlerError, IntoOutcome, Outcome, Set, Streaming, Unset,
};
#[cfg(feature = "json")]
pub(crate) use handler::{Converted, refused};
pub use incoming::Incoming;
pub(crate) use link::{LAST_WORD, Link};
pub use rates::{Rates, SessionRates};
pub use writer::MessageWriter;
