//! The browser's side, served from the program itself.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use ::http::StatusCode;
use ::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, X_CONTENT_TYPE_OPTIONS};

use super::reply::Reply;
use super::request::Request;
use super::token;

/// The ES module.
const MODULE: &str = include_str!("../../assets/coracle.js");

/// Where it is.
pub(super) const PATH: &str = "/coracle.js";

/// The module, or that the browser has it already (RFC 9110 section 13.1.2).
pub(super) fn answer(request: &Request) -> Reply {
    static TAG: OnceLock<String> = OnceLock::new();
    let tag = TAG.get_or_init(|| {
        let mut hasher = DefaultHasher::new();
        MODULE.hash(&mut hasher);
        format!("\"{:016x}\"", hasher.finish())
    });
    let mut known = request.header_all("if-none-match").flat_map(token::elements);
    let reply = match known
        .any(|it| it == b"*" || it.strip_prefix(b"W/").unwrap_or(it) == tag.as_bytes())
    {
        true => Reply::new("").with_status(StatusCode::NOT_MODIFIED),
        false => Reply::new(MODULE),
    };
    let reply = match HeaderValue::from_str(tag) {
        Ok(tag) => reply.with_header(ETAG, tag),
        Err(_) => reply,
    };
    reply
        .with_header(CONTENT_TYPE, HeaderValue::from_static("text/javascript; charset=utf-8"))
        .with_header(CACHE_CONTROL, HeaderValue::from_static("no-cache"))
        .with_header(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
}
