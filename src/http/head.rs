//! Where a request head ends, found while it arrives.

use super::refusal::Refusal;
use super::token::is_token_byte;

/// Looks for the end of one request head in bytes that arrive in any number of pieces.
///
/// It refuses what can no longer become a head as soon as the byte that shows it is there, and it
/// remembers how far it has looked, so that a head of one byte per call costs the same as one in a
/// single piece.
///
/// What passes has lines that end in CRLF and nothing else, no folded line, and no control
/// character but the tab. What the lines say is for [`Request::parse`](super::Request) to judge.
#[derive(Debug, Default)]
pub(crate) struct HeadScanner {
    /// Everything before this index has been judged.
    looked: usize,
    /// Where the current line begins.
    line: usize,
    /// Whether a method and the space behind it have been seen.
    method: bool,
}

impl HeadScanner {
    /// Judges what has arrived: the length of the head with its blank line, or `None` while there
    /// is more to come.
    ///
    /// `bytes` is everything received so far on this request and extends what the previous call was
    /// given. Bytes behind the head are not looked at.
    ///
    /// # Errors
    ///
    /// 431 if the head is longer than `max_head_bytes`; 400 for anything that cannot become a
    /// request head.
    pub(crate) fn scan(
        &mut self,
        bytes: &[u8],
        max_head_bytes: usize,
    ) -> Result<Option<usize>, Refusal> {
        let window = bytes.get(..max_head_bytes).unwrap_or(bytes);
        if !self.method {
            self.scan_method(window)?;
        }
        while self.method {
            // RFC 9112 section 5.2: a line that begins with whitespace continues the one above; a
            // server may refuse it.
            if self.looked == self.line && matches!(window.get(self.line), Some(b' ' | b'\t')) {
                return Err(Refusal::bad_request(
                    "a header line begins with whitespace: folded headers are not accepted",
                ));
            }
            let rest = window.get(self.looked..).unwrap_or_default();
            let Some(offset) = find_control(rest) else {
                self.looked += rest.len();
                break;
            };
            self.looked += offset;
            match (rest.get(offset), rest.get(offset + 1)) {
                (Some(b'\r'), Some(b'\n')) if self.looked == self.line => {
                    return Ok(Some(self.line + 2));
                }
                (Some(b'\r'), Some(b'\n')) => {
                    self.looked += 2;
                    self.line = self.looked;
                }
                // The next call begins at this byte.
                (Some(b'\r'), None) => break,
                (Some(b'\t'), _) => self.looked += 1,
                // RFC 9112 section 2.2: a recipient may take a bare LF for a line end, and whether
                // the one in front of us did is what request smuggling plays with.
                (Some(b'\n'), _) => {
                    return Err(Refusal::bad_request(
                        "a line of the request head ends in LF alone: end lines with CRLF",
                    ));
                }
                (Some(b'\r'), _) => {
                    return Err(Refusal::bad_request(
                        "the request head has a CR without LF: end lines with CRLF",
                    ));
                }
                (Some(0), _) => {
                    return Err(Refusal::bad_request("the request head has a NUL byte"));
                }
                _ => return Err(Refusal::bad_request("the request head has a control character")),
            }
        }
        if bytes.len() >= max_head_bytes {
            return Err(Refusal::head_too_large(format!(
                "the request head is longer than {max_head_bytes} bytes: send fewer or shorter headers"
            )));
        }
        Ok(None)
    }

    /// The beginning must be a method and a space; this is where peers that speak something else
    /// are told so.
    fn scan_method(&mut self, window: &[u8]) -> Result<(), Refusal> {
        for byte in window.get(self.looked..).unwrap_or_default() {
            match byte {
                byte if is_token_byte(*byte) => self.looked += 1,
                b' ' if self.looked > 0 => {
                    self.looked += 1;
                    self.method = true;
                    return Ok(());
                }
                // The record type of a TLS handshake (RFC 8446 section 5.1); no text begins with
                // it.
                0x16 if self.looked == 0 => {
                    return Err(Refusal::bad_request(
                        "this port speaks plain HTTP/WebSocket, the client started a TLS handshake: \
                         use ws:// or configure TLS",
                    ));
                }
                // RFC 9112 section 2.2 would have us ignore an empty line here, for clients of the
                // last century that sent one behind a body. No WebSocket client does, and it is one
                // thing less on which two readers can disagree.
                b'\r' | b'\n' if self.looked == 0 => {
                    return Err(Refusal::bad_request(
                        "the request begins with an empty line: begin with the request line",
                    ));
                }
                _ => {
                    return Err(Refusal::bad_request(
                        "this is not an HTTP request: begin with a line like GET /path HTTP/1.1",
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The first byte below the space: line ends, tabs, and what has no business in a head.
///
/// Eight bytes at a time. In `word - 0x20..` a byte's top bit becomes set by a borrow only if the
/// byte is below 0x20 (`!word` excludes those whose top bit was set before), and a borrow runs
/// upwards only: the lowest hit is exact.
fn find_control(bytes: &[u8]) -> Option<usize> {
    const SPACES: u64 = u64::from_ne_bytes([0x20; 8]);
    const TOP_BITS: u64 = u64::from_ne_bytes([0x80; 8]);
    let mut rest = bytes;
    while let Some((word, tail)) = rest.split_first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        let hits = word.wrapping_sub(SPACES) & !word & TOP_BITS;
        if hits != 0 {
            return Some(bytes.len() - rest.len() + hits.trailing_zeros() as usize / 8);
        }
        rest = tail;
    }
    let offset = rest.iter().position(|byte| *byte < b' ')?;
    Some(bytes.len() - rest.len() + offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::StatusCode;

    const HEAD: &[u8] =
        b"GET /chat HTTP/1.1\r\nHost: example.com\r\nX-Tab: a\tb\r\nUpgrade: websocket\r\n\r\n";

    fn scan(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        HeadScanner::default().scan(bytes, 8192)
    }

    /// The reason, and that it comes with the last byte of `bytes` and not later.
    #[track_caller]
    fn refused(bytes: &[u8]) -> String {
        let mut scanner = HeadScanner::default();
        for len in 0..bytes.len() {
            assert_eq!(
                scanner.scan(&bytes[..len], 8192),
                Ok(None),
                "refused too early, after {len} bytes"
            );
        }
        let refusal = scanner.scan(bytes, 8192).unwrap_err();
        assert_eq!(scan(bytes), Err(refusal.clone()), "in one piece");
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
        refusal.reason.into_owned()
    }

    #[test]
    fn a_head_in_one_piece_is_found() {
        assert_eq!(scan(HEAD), Ok(Some(HEAD.len())));
    }

    #[test]
    fn the_answer_is_the_same_when_asked_again() {
        let mut scanner = HeadScanner::default();
        assert_eq!(scanner.scan(HEAD, 8192), Ok(Some(HEAD.len())));
        assert_eq!(scanner.scan(HEAD, 8192), Ok(Some(HEAD.len())));
    }

    #[test]
    fn bytes_behind_the_head_are_not_judged() {
        let mut bytes = HEAD.to_vec();
        bytes.extend_from_slice(b"\x81\x80\0\0\0\0\n\n\n");
        assert_eq!(scan(&bytes), Ok(Some(HEAD.len())));
        assert_eq!(HeadScanner::default().scan(&bytes, HEAD.len()), Ok(Some(HEAD.len())));
    }

    #[test]
    fn a_head_byte_by_byte_is_found_and_not_before_its_end() {
        let mut scanner = HeadScanner::default();
        for len in 0..HEAD.len() {
            assert_eq!(scanner.scan(&HEAD[..len], 8192), Ok(None), "after {len} bytes");
            assert!(scanner.looked + 1 >= len, "byte {len} was put off");
        }
        assert_eq!(scanner.scan(HEAD, 8192), Ok(Some(HEAD.len())));
    }

    #[test]
    fn a_head_in_two_pieces_is_found_wherever_it_is_cut() {
        for cut in 0..HEAD.len() {
            let mut scanner = HeadScanner::default();
            assert_eq!(scanner.scan(&HEAD[..cut], 8192), Ok(None));
            assert_eq!(scanner.scan(HEAD, 8192), Ok(Some(HEAD.len())), "cut at {cut}");
        }
    }

    #[test]
    fn a_request_line_and_a_blank_line_are_a_head() {
        assert_eq!(scan(b"GET / HTTP/1.1\r\n\r\n"), Ok(Some(18)));
    }

    #[test]
    fn bare_line_feed_is_refused() {
        assert!(refused(b"GET / HTTP/1.1\n").contains("LF alone"));
        assert!(refused(b"GET / HTTP/1.1\r\nHost: a\n").contains("LF alone"));
        assert!(refused(b"GET / HTTP/1.1\r\nHost: a\r\n\n").contains("LF alone"));
    }

    #[test]
    fn bare_carriage_return_is_refused() {
        assert!(refused(b"GET / HTTP/1.1\rX").contains("CR without LF"));
        assert!(refused(b"GET / HTTP/1.1\r\nHost: a\r\r").contains("CR without LF"));
        assert!(refused(b"GET / HTTP/1.1\r\n\rX").contains("CR without LF"));
    }

    #[test]
    fn nul_and_other_control_characters_are_refused() {
        assert!(refused(b"GET / HTTP/1.1\r\nHost: a\0").contains("NUL"));
        assert!(refused(b"GET /\x1b").contains("control character"));
        assert!(refused(b"GET / HTTP/1.1\r\nX: \x0b").contains("control character"));
    }

    #[test]
    fn bytes_above_ascii_are_left_to_the_parser() {
        let head = b"GET / HTTP/1.1\r\nX: \x80\x9f\xa0\xff caf\xc3\xa9\r\n\r\n";
        assert_eq!(scan(head), Ok(Some(head.len())));
    }

    #[test]
    fn folded_header_is_refused() {
        assert!(refused(b"GET / HTTP/1.1\r\nHost: a\r\n ").contains("folded"));
        assert!(refused(b"GET / HTTP/1.1\r\nHost: a\r\n\t").contains("folded"));
        assert!(refused(b"GET / HTTP/1.1\r\n ").contains("folded"));
    }

    #[test]
    fn tls_hello_is_told_that_the_port_is_plain() {
        assert!(refused(b"\x16").contains("TLS handshake: use ws:// or configure TLS"));
        assert!(scan(b"\x16\x03\x01\x02\x00\x01\x00").unwrap_err().reason.contains("TLS"));
    }

    #[test]
    fn what_cannot_be_a_request_line_is_refused_at_once() {
        assert!(refused(b"\r").contains("empty line"));
        assert!(refused(b"\n").contains("empty line"));
        assert!(refused(b" ").contains("not an HTTP request"));
        assert!(refused(b"SSH-2.0-OpenSSH_9.6\r").contains("not an HTTP request"));
        assert!(refused(b"{").contains("not an HTTP request"));
        assert!(refused(b"\0").contains("not an HTTP request"));
        assert!(refused(b"\x81").contains("not an HTTP request"));
        assert!(refused(b"GET\t").contains("not an HTTP request"));
    }

    #[test]
    fn a_head_as_long_as_the_bound_passes_and_a_longer_one_does_not() {
        assert_eq!(HeadScanner::default().scan(HEAD, HEAD.len()), Ok(Some(HEAD.len())));
        let refusal = HeadScanner::default().scan(HEAD, HEAD.len() - 1).unwrap_err();
        assert_eq!(refusal.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        assert!(refusal.reason.contains(&format!("{} bytes", HEAD.len() - 1)));
    }

    #[test]
    fn a_head_that_fills_the_bound_unfinished_is_refused_without_waiting() {
        let endless = [b'A'; 100];
        let mut scanner = HeadScanner::default();
        assert_eq!(scanner.scan(&endless[..99], 100), Ok(None));
        assert_eq!(
            scanner.scan(&endless, 100).unwrap_err().status,
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        );
        assert_eq!(scan(b"").unwrap(), None);
        assert!(HeadScanner::default().scan(b"", 0).is_err());
    }

    #[test]
    fn bytes_shorter_than_before_do_no_harm() {
        let mut scanner = HeadScanner::default();
        assert_eq!(scanner.scan(&HEAD[..40], 8192), Ok(None));
        assert_eq!(scanner.scan(&HEAD[..3], 8192), Ok(None));
    }

    #[test]
    fn control_characters_are_found_at_every_offset_and_nothing_else_is() {
        for byte in 0..=255u8 {
            for at in 0..20 {
                for neighbour in [b' ', b'a', 0x7f, 0x80, 0xff] {
                    let mut bytes = [neighbour; 20];
                    bytes[at] = byte;
                    assert_eq!(
                        find_control(&bytes),
                        (byte < 0x20).then_some(at),
                        "{byte:#x} at {at}"
                    );
                }
            }
        }
    }
}
