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
        match simdutf8::compat::from_utf8(bytes) {
            Ok(text) => self.text.push_str(text),
            Err(error) => {
                let (valid, tail) = bytes.split_at(error.valid_up_to());
                if error.error_len().is_some() {
                    return Err(Invalid);
                }
                self.text.push_str(std::str::from_utf8(valid).map_err(|_| Invalid)?);
                self.tail[..tail.len()].copy_from_slice(tail);
                self.tail_len = tail.len() as u8;
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<String, Invalid> {
        if self.tail_len == 0 { Ok(self.text) } else { Err(Invalid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest prefix that was accepted, fed one byte at a time.
    fn accepted(bytes: &[u8]) -> usize {
        let mut text = Utf8::default();
        bytes.iter().take_while(|byte| text.push(&[**byte]).is_ok()).count()
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
