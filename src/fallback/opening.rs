//! How a client without WebSocket gets a session: what is a handshake for others is its first request.

use std::sync::Arc;

use ::http::{HeaderMap, StatusCode};

use super::requests::{Addressed, Call, Refused, error, refused};
use crate::http::{IntoReply, OriginPolicy};
use crate::hub::Profile;
use crate::session::Handler;

impl<H: Handler> Call<'_, H> {
    /// Asks the application, as for a WebSocket handshake of this path, and opens a session.
    pub(super) async fn open(&self, path: Option<&str>) -> Result<Addressed, Refused> {
        let door = self.door;
        let hub = door.hub;
        let stopping = || error(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
        if hub.shutdown.is_stopping() {
            return Err(stopping());
        }
        // An image of another site's page has no Origin, but the user's cookies.
        let foreign = self.request.header("sec-fetch-site") == Some("cross-site");
        let any = matches!(hub.config.origins, OriginPolicy::Any);
        if foreign && !any && self.request.header_bytes("origin").is_none() {
            let why = "a page of another site may not open a session without saying which it is";
            return Err(error(StatusCode::FORBIDDEN, why));
        }
        let target = path.unwrap_or(&self.desk.base);
        let request = self.request.with_target(target).map_err(|refusal| {
            let why = format!("the parameter path is no path: {}", refusal.reason);
            error(StatusCode::BAD_REQUEST, &why)
        })?;
        let place = door.session_place().map_err(|full| refused(&full))?;
        let accept = async { door.handler.accept(&request).await };
        let upgrade = door
            .guarded("the accept hook", accept)
            .await
            .map_err(|panicked| refused(&panicked))?
            .map_err(|refused| Box::new(refused.into_reply()))?;
        // The hook may have taken its time.
        if hub.shutdown.is_stopping() {
            return Err(stopping());
        }
        let profile = Profile::new(
            door.peer,
            request.client_ip(),
            request.target(),
            upgrade.subprotocol,
            upgrade.data,
        );
        if let (Some(kept), Some(found)) = (profile.pattern(), request.pattern().get()) {
            kept.get_or_init(|| Arc::clone(found));
        }
        let membership = hub.open_http(profile, place, door.worker.index(), door.worker.now());
        let opened = self.desk.open(hub, door.worker, membership, door.host);
        let Some((relay, token)) = opened else {
            return Err(error(StatusCode::INTERNAL_SERVER_ERROR, "the session cannot be named"));
        };
        let headers: HeaderMap = upgrade.headers.into_iter().collect();
        Ok(Addressed { relay, token, opened: Some(headers) })
    }
}
