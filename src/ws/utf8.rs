//! UTF-8 as it arrives: checked once, and failing at the first byte that no valid text can have
//! there.

/// Text of which the last character may still be incomplete.
#[derive(Clone, Default)]
pub(crate) struct Utf8 {
    text: String,
    /// The one to three bytes of a character whose rest has not arrived.
    tail: [u8; 4],
    tail_len: u8,
}

/// No continuation can make this text valid.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

impl Utf8 {
    /// Bytes received, the unfinished character included.
    pub(super) fn len(&self) -> usize {
        self.text.len() + usize::from(self.tail_len)
    }

    /// Whether no character is unfinished.
    pub(crate) fn is_whole(&self) -> bool {
        self.tail_len == 0
    }

    /// Takes the whole characters that have been received.
    pub(crate) fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.text.capacity()
    }

    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<(), Invalid> {
        // A character is at most four bytes: complete the pending one byte by byte.
        while self.tail_len > 0 {
            let Some((first, rest)) = bytes.split_first() else {
                return Ok(());
            };
            bytes = rest;
            let len = usize::from(self.tail_len);
            self.tail[len] = *first;
            match std::str::from_utf8(&self.tail[..=len]) {
                Ok(character) => {
                    self.text.push_str(character);
                    self.tail_len = 0;
                }
                Err(error) if error.error_len().is_none() => self.tail_len += 1,
                Err(_) => return Err(Invalid),
            }
        }
        // Cut off first, so that everything before it is checked once, and fast.
        let (whole, tail) = bytes.split_at(bytes.len() - unfinished(bytes));
        self.text.push_str(simdutf8::basic::from_utf8(whole).map_err(|_| Invalid)?);
        if std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_some()) {
            return Err(Invalid);
        }
        self.tail[..tail.len()].copy_from_slice(tail);
        self.tail_len = tail.len() as u8;
        Ok(())
    }

    pub(super) fn finish(self) -> Result<String, Invalid> {
        if self.tail_len == 0 { Ok(self.text) } else { Err(Invalid) }
    }
}

/// How many bytes at the end may be the beginning of a character whose rest has not arrived.
fn unfinished(bytes: &[u8]) -> usize {
    for (len, byte) in (1..=3).zip(bytes.iter().rev()) {
        let character = match byte {
            0x80..=0xBF => continue,
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xFF => 4,
            _ => 1,
        };
        return if len < character { len } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest prefix that was accepted, fed one byte at a time.
    fn accepted(bytes: &[u8]) -> usize {
        let mut text = Utf8::default();
        bytes.iter().take_while(|byte| text.push(&[**byte]).is_ok()).count()
    }

    // The end of a piece was cut off before it was looked at, and a byte that cannot be was kept for
    // later.
    #[test]
    fn a_piece_is_refused_exactly_if_nothing_can_make_it_valid() {
        const BYTES: [u8; 18] = [
            0x41, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xED, 0xEF,
            0xF0, 0xF4, 0xF5, 0xFF,
        ];
        for number in 0..BYTES.len().pow(4) {
            let digit = |at: u32| BYTES[number / BYTES.len().pow(at) % BYTES.len()];
            let piece = [&b"in front"[..], &[digit(3), digit(2), digit(1), digit(0)]].concat();
            let hopeless = std::str::from_utf8(&piece).is_err_and(|it| it.error_len().is_some());
            assert_eq!(Utf8::default().push(&piece).is_err(), hopeless, "{piece:X?}");
        }
    }

    #[test]
    fn every_split_of_valid_text_gives_the_text() {
        let text = "κόσμε – 𝄞 \u{10FFFF} \u{7FF}\u{800}\u{FFFF} ascii, and so long that SIMD blocks are crossed: ÄÖÜäöüß€";
        for split in 0..=text.len() {
            let mut utf8 = Utf8::default();
            utf8.push(&text.as_bytes()[..split]).unwrap();
            utf8.push(&text.as_bytes()[split..]).unwrap();
            assert_eq!(utf8.len(), text.len());
            assert_eq!(utf8.finish().unwrap(), text);
        }
    }

    #[test]
    fn the_first_impossible_byte_is_refused() {
        assert_eq!(accepted(b"\xF4\x90\x80\x80"), 1); // beyond U+10FFFF
        assert_eq!(accepted(b"\xED\xA0\x80"), 1); // a surrogate
        assert_eq!(accepted(b"\xC0\xAF"), 0); // overlong, two bytes
        assert_eq!(accepted(b"\xE0\x80\xAF"), 1); // overlong, three bytes
        assert_eq!(accepted(b"\xF0\x80\x80\xAF"), 1); // overlong, four bytes
        assert_eq!(accepted(b"\xF5\x80"), 0);
        assert_eq!(accepted(b"\x80"), 0);
        assert_eq!(accepted(b"ab\xE2\x82x"), 4);
    }

    #[test]
    fn an_unfinished_character_is_no_text() {
        let mut utf8 = Utf8::default();
        utf8.push(b"ok \xF0\x9D\x84").unwrap();
        assert_eq!(utf8.finish(), Err(Invalid));
    }

    #[test]
    fn an_error_behind_a_simd_block_is_found_wherever_it_stands() {
        for position in 0..200 {
            let mut bytes = vec![b'a'; 200];
            bytes[position] = 0xFF;
            assert_eq!(Utf8::default().push(&bytes), Err(Invalid), "{position}");
        }
    }
}
