//! The `Date` header (RFC 9110 section 6.6.1), written once a second.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

thread_local! {
    /// The second since the epoch, and how it is written. Each worker has a thread.
    static NOW: RefCell<(u64, String)> = RefCell::default();
}

/// Appends it. The one time that is not the executor's: the client compares it with other machines' clocks.
pub(super) fn append(out: &mut Vec<u8>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    NOW.with_borrow_mut(|(second, text)| {
        if text.is_empty() || *second != now {
            *text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
            *second = now;
        }
        super::response::header(out, "Date", text.as_bytes());
    });
}
