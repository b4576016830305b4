//! A handler whose type is forgotten, so that several can stand side by side.

use std::future::Future;
use std::pin::Pin;

use crate::error;
use crate::http::{Request, Response, Upgrade};
use crate::message::Message;
use crate::session::{Closed, Handler, HandlerError, Incoming, Outcome, Session};

/// A callback's future. On the heap, because its size is not known; that costs less than a tenth of what the
/// message costs in the kernel.
pub(super) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Every [`Handler`], callback by callback.
pub(super) trait AnyHandler: Send + Sync {
    fn check(&self) -> error::Result<()>;
    fn accept<'a>(&'a self, request: &'a Request) -> Boxed<'a, Result<Upgrade, Response>>;
    fn open<'a>(&'a self, session: &'a Session) -> Boxed<'a, Outcome>;
    fn message<'a>(&'a self, session: &'a Session, message: Message) -> Boxed<'a, Outcome>;
    fn streams(&self, session: &Session) -> bool;
    fn stream<'a>(&'a self, session: &'a Session, incoming: Incoming) -> Boxed<'a, Outcome>;
    fn drain<'a>(&'a self, session: &'a Session) -> Boxed<'a, Outcome>;
    fn close<'a>(&'a self, session: &'a Session, closed: &'a Closed) -> Boxed<'a, ()>;
    fn error<'a>(&'a self, session: &'a Session, error: &'a HandlerError) -> Boxed<'a, ()>;
}

impl<H: Handler> AnyHandler for H {
    fn check(&self) -> error::Result<()> {
        Handler::check(self)
    }

    fn accept<'a>(&'a self, request: &'a Request) -> Boxed<'a, Result<Upgrade, Response>> {
        Box::pin(Handler::accept(self, request))
    }

    fn open<'a>(&'a self, session: &'a Session) -> Boxed<'a, Outcome> {
        Box::pin(Handler::open(self, session))
    }

    fn message<'a>(&'a self, session: &'a Session, message: Message) -> Boxed<'a, Outcome> {
        Box::pin(Handler::message(self, session, message))
    }

    fn streams(&self, session: &Session) -> bool {
        Handler::streams(self, session)
    }

    fn stream<'a>(&'a self, session: &'a Session, incoming: Incoming) -> Boxed<'a, Outcome> {
        Box::pin(Handler::stream(self, session, incoming))
    }

    fn drain<'a>(&'a self, session: &'a Session) -> Boxed<'a, Outcome> {
        Box::pin(Handler::drain(self, session))
    }

    fn close<'a>(&'a self, session: &'a Session, closed: &'a Closed) -> Boxed<'a, ()> {
        Box::pin(Handler::close(self, session, closed))
    }

    fn error<'a>(&'a self, session: &'a Session, error: &'a HandlerError) -> Boxed<'a, ()> {
        Box::pin(Handler::error(self, session, error))
    }
}
