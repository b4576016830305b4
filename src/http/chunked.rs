//! The chunked transfer coding (RFC 9112 section 7.1), as a machine: bytes in, where the data is out.
//!
//! Strict, because what ends a body is where the next request begins: lines end in CRLF and nothing else, a
//! size is hexadecimal digits and nothing else, and behind a chunk comes its CRLF. Extensions and trailers
//! are passed over.

/// Bytes of one line: sixteen digits and some extension. Nobody has a use for extensions.
const LINE_BYTES: usize = 256;

/// Bytes of all extensions of one body: a client that sends each byte with an extension of its own would have us
/// read hundreds of times what it says.
const EXTENSION_BYTES: usize = 4 * 1024;

/// Bytes of all trailers together: as many as a small request head.
const TRAILER_BYTES: usize = 4 * 1024;

/// Digits of a size, without leading zeros: what 64 bits hold.
const DIGITS: u32 = 16;

/// Where in a chunked body we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunked {
    state: State,
    /// Bytes of this line, or of all trailers.
    line: usize,
    /// Bytes of all extensions.
    extensions: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    #[default]
    Begin,
    Size(u64),
    Extension(u64),
    /// Behind the CR of the size's line.
    SizeLf(u64),
    /// So many bytes of data are to come.
    Data(u64),
    DataCr,
    DataLf,
    /// At the beginning of a trailer's line, or of the last one, which is empty.
    Trailer,
    TrailerLine,
    TrailerLf,
    LastLf,
    Done,
}

/// What comes next in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many bytes that are to be passed over, and behind them so many of data: at least one, and no more than
    /// there are.
    Data { skip: usize, len: usize },
    /// So many bytes that are to be passed over; more has to come.
    More { skip: usize },
    /// So many bytes that are to be passed over; then comes what is behind the body.
    End { skip: usize },
}

impl Chunked {
    /// Goes on with `input`, which begins where the last step has ended: behind what was passed over, and behind
    /// the data.
    ///
    /// # Errors
    ///
    /// What is wrong; nothing that follows can be trusted then.
    pub(crate) fn step(&mut self, input: &[u8]) -> Result<Step, &'static str> {
        for (skip, &byte) in input.iter().enumerate() {
            match self.state {
                State::Data(left) => {
                    let there = input.len() - skip;
                    let len = usize::try_from(left).map_or(there, |left| left.min(there));
                    self.state = match left - len as u64 {
                        0 => State::DataCr,
                        left => State::Data(left),
                    };
                    return Ok(Step::Data { skip, len });
                }
                State::Done => return Ok(Step::End { skip }),
                _ => self.framing(byte)?,
            }
        }
        Ok(match self.state {
            State::Done => Step::End { skip: input.len() },
            _ => Step::More { skip: input.len() },
        })
    }

    /// One byte that is no data.
    fn framing(&mut self, byte: u8) -> Result<(), &'static str> {
        self.line += 1;
        self.state = match (&self.state, byte) {
            (State::Begin, _) => State::Size(digit(byte).ok_or(NO_SIZE)?),
            (State::Size(size), b'\r') => State::SizeLf(*size),
            (State::Size(size), b';') => State::Extension(*size),
            (State::Size(size), _) => {
                let digit = digit(byte).ok_or(NO_SIZE)?;
                if size.leading_zeros() < u64::BITS - (DIGITS - 1) * 4 {
                    return Err("a chunk's size has more than 64 bits");
                }
                State::Size(size << 4 | digit)
            }
            (State::Extension(size), b'\r') => State::SizeLf(*size),
            (State::Extension(size), b'\t' | b' '..=b'~' | 0x80..) => {
                self.extensions += 1;
                if self.extensions > EXTENSION_BYTES {
                    return Err("the chunks' extensions are too long");
                }
                State::Extension(*size)
            }
            (State::Extension(_), _) => return Err("a chunk's extension has a control character"),
            (State::SizeLf(size), b'\n') => {
                self.line = 0;
                if *size == 0 { State::Trailer } else { State::Data(*size) }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.line = 0;
                State::Begin
            }
            (State::DataCr | State::DataLf, _) => {
                return Err("a chunk is longer than its size, or does not end in CRLF");
            }
            (State::Trailer, b'\r') => State::LastLf,
            (State::Trailer, b' ' | b'\t') => return Err("a trailer is folded"),
            (State::TrailerLine, b'\r') => State::TrailerLf,
            (State::Trailer | State::TrailerLine, b'\t' | b' '..=b'~' | 0x80..) => {
                State::TrailerLine
            }
            (State::Trailer | State::TrailerLine, _) => {
                return Err("a trailer has a control character");
            }
            (State::TrailerLf, b'\n') => State::Trailer,
            (State::LastLf, b'\n') => State::Done,
            (State::SizeLf(_) | State::TrailerLf | State::LastLf, _) => {
                return Err("a line of the chunked body does not end in CRLF");
            }
            // Neither is asked for a byte.
            (State::Data(_) | State::Done, _) => return Ok(()),
        };
        let trailing = matches!(self.state, State::Trailer | State::TrailerLine | State::TrailerLf);
        if self.line > if trailing { TRAILER_BYTES } else { LINE_BYTES } {
            return Err(if trailing {
                "the trailers of the chunked body are too long"
            } else {
                "the line of a chunk's size is too long"
            });
        }
        Ok(())
    }
}

const NO_SIZE: &str = "a chunk does not begin with its size in hexadecimal digits, and CRLF";

fn digit(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a body that arrives in pieces of these sizes: the data, and how much of the input is behind
    /// the body.
    fn decode(
        input: &[u8],
        pieces: impl Iterator<Item = usize>,
    ) -> Result<(Vec<u8>, usize), String> {
        let mut chunked = Chunked::default();
        let (mut data, mut waiting, mut left) = (Vec::new(), Vec::new(), input);
        for piece in pieces {
            let (now, later) = left.split_at(piece.min(left.len()));
            left = later;
            waiting.extend_from_slice(now);
            loop {
                match chunked.step(&waiting)? {
                    Step::Data { skip, len } => {
                        data.extend_from_slice(&waiting[skip..skip + len]);
                        waiting.drain(..skip + len);
                    }
                    Step::More { skip } => {
                        assert_eq!(skip, waiting.len(), "nothing is looked at twice");
                        waiting.clear();
                        break;
                    }
                    Step::End { skip } => {
                        return Ok((data, waiting.len() - skip + left.len()));
                    }
                }
            }
        }
        Err("unfinished".into())
    }

    fn whole(input: &[u8]) -> Result<(Vec<u8>, usize), String> {
        decode(input, std::iter::once(input.len()))
    }

    const BODY: &[u8] =
        b"5\r\nhello\r\n00a;name=\"a value\";x\r\n, chunked \r\n0;last\r\nX-A: b\r\nX-C:\t d\r\n\r\nGET";

    #[test]
    fn a_body_is_the_same_in_any_pieces() {
        let expected = Ok((b"hello, chunked ".to_vec(), 3));
        assert_eq!(whole(BODY), expected);
        assert_eq!(decode(BODY, std::iter::repeat(1)), expected);
        for at in 0..BODY.len() {
            assert_eq!(decode(BODY, [at, BODY.len()].into_iter()), expected, "split at {at}");
        }
        assert_eq!(whole(b"0\r\n\r\n"), Ok((Vec::new(), 0)));
        assert_eq!(
            whole(b"0000000000000000000000000001\r\na\r\n0\r\n\r\n"),
            Ok((b"a".to_vec(), 0))
        );
    }

    #[test]
    fn a_body_that_is_cut_off_does_not_end() {
        for len in 0..BODY.len() - 3 {
            assert_eq!(whole(&BODY[..len]), Err("unfinished".into()), "{len}");
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for (input, problem) in [
            (&b"5\nhello\r\n0\r\n\r\n"[..], "hexadecimal"),
            (b"5\r\nhello\n0\r\n\r\n", "CRLF"),
            (b"5\r\nhello0\r\n\r\n", "longer than its size"),
            (b"5\r\nhello!\r\n0\r\n\r\n", "longer than its size"),
            (b"5\r\nhell\r\n0\r\n\r\n", "longer than its size"),
            (b"5\r\r\nhello\r\n0\r\n\r\n", "CRLF"),
            (b"5\rXhello\r\n", "CRLF"),
            (b"+5\r\nhello\r\n0\r\n\r\n", "hexadecimal"),
            (b"-5\r\nhello\r\n0\r\n\r\n", "hexadecimal"),
            (b"0x5\r\nhello\r\n0\r\n\r\n", "hexadecimal"),
            (b" 5\r\nhello\r\n0\r\n\r\n", "hexadecimal"),
            (b"5 \r\nhello\r\n0\r\n\r\n", "hexadecimal"),
            (b"5_0\r\n", "hexadecimal"),
            (b"\r\n", "hexadecimal"),
            (b";a\r\n", "hexadecimal"),
            (b"g\r\n", "hexadecimal"),
            (b"10000000000000000\r\n", "64 bits"),
            (b"100000000000000005\r\n", "64 bits"),
            (b"5;a\nhello\r\n", "control"),
            (b"5;a\0\r\nhello\r\n", "control"),
            (b"5;a\rb\r\nhello\r\n", "CRLF"),
            (b"0\r\n\n", "control"),
            (b"0\r\nX: a\n\r\n", "control"),
            (b"0\r\nX: a\0\r\n\r\n", "control"),
            (b"0\r\n X: a\r\n\r\n", "folded"),
            (b"0\r\nX: a\r\n\rb", "CRLF"),
            (b"0\r\n\r\r\n", "CRLF"),
        ] {
            let said = whole(input).unwrap_err();
            assert!(said.contains(problem), "{:?}: {said}", String::from_utf8_lossy(input));
            let in_bytes = decode(input, std::iter::repeat_n(1, input.len()));
            assert_eq!(in_bytes, Err(said));
        }
    }

    #[test]
    fn the_largest_size_is_only_a_number() {
        let mut chunked = Chunked::default();
        let input = b"ffffffffffffffff\r\nabc";
        assert_eq!(chunked.step(input), Ok(Step::Data { skip: 18, len: 3 }));
        assert_eq!(chunked.step(b""), Ok(Step::More { skip: 0 }));
        assert_eq!(chunked.step(b"def"), Ok(Step::Data { skip: 0, len: 3 }));
    }

    #[test]
    fn lines_extensions_and_trailers_are_bounded() {
        let long = |len| format!("1;{}\r\na\r\n", "x".repeat(len));
        assert!(whole((long(200) + "0\r\n\r\n").as_bytes()).is_ok());
        assert!(whole(long(300).as_bytes()).unwrap_err().contains("line of a chunk's size"));
        assert!(whole("0".repeat(300).as_bytes()).unwrap_err().contains("line of a chunk's size"));
        let all = long(200).repeat(EXTENSION_BYTES / 200 + 1);
        assert!(whole(all.as_bytes()).unwrap_err().contains("extensions"));
        let trailers = format!("0\r\n{}", "X: y\r\n".repeat(TRAILER_BYTES / 6 + 1));
        assert!(whole(trailers.as_bytes()).unwrap_err().contains("trailers"));
        let one = format!("0\r\nX: {}", "y".repeat(TRAILER_BYTES));
        assert!(whole(one.as_bytes()).unwrap_err().contains("trailers"));
    }
}
