//! A page beside the WebSocket: the answer to a GET that is no handshake.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use ::http::Method;

use super::refusal::Refusal;
use super::request::Request;
use super::response::Response;
use super::upgrade;

/// Answers requests that are no WebSocket handshake; for
/// [`Config::pages`](crate::config::Config::pages).
#[derive(Clone)]
pub struct PageHook(Arc<Hook>);

type Hook = dyn Fn(&Request) -> Pin<Box<dyn Future<Output = Option<Response>> + '_>> + Send + Sync;

impl PageHook {
    /// Asks `hook` about each GET and each HEAD that is no handshake; see
    /// [`Builder::on_get`](crate::Builder::on_get).
    pub fn new<F>(hook: F) -> Self
    where
        F: AsyncFn(&Request) -> Option<Response> + Send + Sync + 'static,
    {
        let hook = Arc::new(hook);
        Self(Arc::new(move |request| {
            let hook = Arc::clone(&hook);
            Box::pin(async move { hook(request).await })
        }))
    }

    /// The answer; `None` leaves the request to whoever would have answered it without the hook.
    ///
    /// # Errors
    ///
    /// 405 for a method that no page is for.
    pub(super) async fn ask(&self, request: &Request) -> Result<Option<Response>, Refusal> {
        if upgrade::is_asked_for(request) {
            return Ok(None);
        }
        match *request.method() {
            Method::GET | Method::HEAD => Ok((self.0)(request).await),
            _ => Err(Refusal::only_pages(
                "this address serves pages, which are read with GET or HEAD, and WebSocket",
            )),
        }
    }
}

impl fmt::Debug for PageHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageHook").finish_non_exhaustive()
    }
}
