//! The opening handshake (RFC 6455 section 4), as little of it as a benchmark needs.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// The key that the load generator sends: the one of RFC 6455 section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// What a server must answer to [`KEY`].
pub const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Where a head ends.
const END: &[u8] = b"\r\n\r\n";

/// The request that the load generator sends.
pub fn request(host: &str) -> Vec<u8> {
    request_to("/", host)
}

/// The same to another path.
pub fn request_to(path: &str, host: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

/// The same, offering permessage-deflate (RFC 7692) as browsers do.
pub fn request_deflate(host: &str) -> Vec<u8> {
    let mut request = request(host);
    request.truncate(request.len() - 2);
    request.extend_from_slice(
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n",
    );
    request
}

/// Length of the head at the start of `bytes`, or `None` if it is not complete yet.
pub fn head_len(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(END.len()).position(|window| window == END)?;
    Some(end + END.len())
}

/// Whether a complete head accepts [`request`].
pub fn is_accepted(head: &[u8]) -> bool {
    head.starts_with(b"HTTP/1.1 101") && head.windows(ACCEPT.len()).any(|window| window == ACCEPT)
}

/// The path that the request in `head` asks for.
pub fn path(head: &[u8]) -> Option<&str> {
    let line = head.split(|&byte| byte == b'\r').next()?;
    std::str::from_utf8(line).ok()?.split(' ').nth(1)
}

/// Writes the answer to the request in `head`; `None` if there is no key in it.
pub fn respond(head: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let head = std::str::from_utf8(head).ok()?;
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    })?;
    let mut digest = Sha1::new();
    digest.update(key);
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let mut accept = [0; ACCEPT.len()];
    STANDARD.encode_slice(digest.finalize(), &mut accept).ok()?;
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&accept);
    out.extend_from_slice(END);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_request_gets_the_accept_of_the_rfc() {
        let request = request_to("/pub", "127.0.0.1");
        assert_eq!(head_len(&request), Some(request.len()));
        assert_eq!(path(&request), Some("/pub"));
        let mut response = Vec::new();
        assert!(respond(&request, &mut response).is_some());
        assert_eq!(head_len(&response), Some(response.len()));
        assert!(is_accepted(&response));
    }
}
