//! What a browser asks before it lets a page of another origin use an endpoint, and read its answer (CORS, the Fetch
//! standard, section "HTTP extensions").

use ::http::Method;
use ::http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, HeaderValue, VARY,
};

use super::origin::OriginPolicy;
use super::reply::Reply;
use super::request::Request;

/// How long a browser need not ask again, in seconds: what the shortest-lived of them keep it for at most.
const MAX_AGE: &str = "600";

/// The method that a preflight asks for; `None`: the request is none.
pub(super) fn preflight(request: &Request) -> Option<Method> {
    request.header_bytes("origin")?;
    Method::from_bytes(request.header_bytes("access-control-request-method")?).ok()
}

/// The answer to a preflight of an origin that is allowed; without what [`allow`] adds.
///
/// Whatever headers the page wants to send it may: who is let in by an origin can say what it likes.
pub(super) fn answer(request: &Request, methods: &str) -> Reply {
    let mut reply = Reply::options(methods);
    let headers = reply.headers_mut();
    if let Ok(methods) = HeaderValue::from_str(methods) {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    }
    let wanted = request.header_bytes("access-control-request-headers");
    if let Some(Ok(wanted)) = wanted.map(HeaderValue::from_bytes) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted);
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
    headers.append(
        VARY,
        HeaderValue::from_static("access-control-request-method, access-control-request-headers"),
    );
    reply
}

/// Says that the page may read the answer. What the answer says of that itself stays.
pub(super) fn allow(policy: &OriginPolicy, request: &Request, reply: &mut Reply) {
    let headers = reply.headers_mut();
    if headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    match policy {
        // A browser does not ask about the server's own pages.
        OriginPolicy::SameOrigin => {}
        // Without cookies, which the star excludes.
        OriginPolicy::Any => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
        OriginPolicy::AllowList(_) => {
            headers.append(VARY, HeaderValue::from_static("origin"));
            let origin = request.header_bytes("origin").map(HeaderValue::from_bytes);
            if let Some(Ok(origin)) = origin {
                headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
                headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            }
        }
    }
}
