//! The small executor: one worker per core, each with its own tasks, epoll, timer wheel and
//! buffers.
//!
//! A task lives and dies on one worker, so nothing here is locked and futures need not be `Send`.
//! What is awaited may come from anywhere in the smol family: a waker that fires on another thread
//! reaches the worker through its eventfd.
//!
//! Why not `smol::LocalExecutor`, which would do: every wake-up there is some ten atomic operations,
//! and here nearly every wake-up is the worker's own. Measured with one message of 16 bytes in flight,
//! that is up to 7 % of an echo, kernel included.

mod clock;
mod pool;
mod reactor;
mod tasks;
mod unpark;
mod wheel;
mod worker;

pub(crate) use clock::{Clock, Time};
pub(crate) use pool::Size;
pub(crate) use reactor::Presumed;
pub(crate) use tasks::{TaskId, panic_text};
#[cfg(feature = "tls")]
pub(crate) use worker::Place;
pub(crate) use worker::{Registered, Timer, Worker};
