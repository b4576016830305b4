//! Tokens and comma-separated lists, the small words of HTTP headers (RFC 9110 section 5.6).

/// Whether `byte` may stand in a token (RFC 9110 section 5.6.2).
pub(super) const fn is_token_byte(byte: u8) -> bool {
    // A cast that widens; `usize::from` is not const.
    TOKEN_BYTES[byte as usize]
}

/// Whether `text` is a token: not empty, and token bytes only.
pub(super) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_token_byte(*byte))
}

/// The elements of one list line, without the whitespace around them; empty elements are kept for
/// the caller to judge.
pub(super) fn elements(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    // A value that passed the parser has no other ASCII whitespace than space and tab.
    line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

const TOKEN_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = matches!(
            byte as u8,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        ) || (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_visible_ascii_without_separators() {
        assert!(is_token(b"permessage-deflate"));
        assert!(is_token(b"!#$%&'*+-.^_`|~09azAZ"));
        for not in [
            &b""[..],
            b"a b",
            b"a/b",
            b"a\"b",
            b"a:b",
            b"a\tb",
            b"caf\xc3\xa9",
            b"a\0",
            b"\x7f",
            b"(a)",
            b"a=b",
            b"{a}",
        ] {
            assert!(!is_token(not), "{not:?}");
        }
    }

    #[test]
    fn elements_are_trimmed_and_empty_ones_are_kept() {
        let found: Vec<&[u8]> = elements(b" a ,\tb\t,, c d ").collect();
        assert_eq!(found, [&b"a"[..], b"b", b"", b"c d"]);
        assert_eq!(elements(b"").count(), 1);
    }
}
