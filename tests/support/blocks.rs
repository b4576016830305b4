//! Reads the blocks of a deflate stream (RFC 1951 section 3.2) for how far back they refer. A
//! decompressor cannot tell: that of zlib-rs has the largest window, whatever it is asked for.

/// The farthest distance in what a compressor has flushed. Fails if it is no deflate stream.
pub(crate) fn farthest(flushed: &[u8]) -> usize {
    let mut bits = Bits { bytes: flushed, at: 0 };
    let mut farthest = 0;
    while bits.at < 8 * flushed.len() {
        let last = bits.take(1);
        assert_eq!(last, 0, "the stream is not ended");
        match bits.take(2) {
            0 => bits.stored(),
            1 => {
                let lengths = [[8; 144].as_slice(), &[9; 112], &[7; 24], &[8; 8]].concat();
                farthest =
                    farthest.max(symbols(&mut bits, &Code::new(&lengths), &Code::new(&[5; 30])));
            }
            2 => {
                let (literals, distances) = codes(&mut bits);
                farthest = farthest.max(symbols(&mut bits, &literals, &distances));
            }
            kind => panic!("a block of kind {kind}"),
        }
    }
    farthest
}

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: usize) -> usize {
        let bit = |at: usize| usize::from(self.bytes[at / 8] >> (at % 8) & 1);
        let value = (0..count).map(|n| bit(self.at + n) << n).sum();
        self.at += count;
        value
    }

    fn stored(&mut self) {
        self.at = self.at.next_multiple_of(8);
        let (len, complement) = (self.take(16), self.take(16));
        assert_eq!(len, !complement & 0xFFFF);
        self.at += 8 * len;
        assert!(self.at <= 8 * self.bytes.len());
    }
}

/// A canonical Huffman code.
struct Code {
    /// How many codes there are of each length.
    counts: [usize; 16],
    /// In the order of their codes.
    symbols: Vec<usize>,
}

impl Code {
    fn new(lengths: &[usize]) -> Self {
        let mut counts = [0; 16];
        let mut symbols = Vec::new();
        for (length, count) in counts.iter_mut().enumerate().skip(1) {
            let of_length = lengths.iter().enumerate().filter(|it| *it.1 == length);
            symbols.extend(of_length.map(|it| it.0));
            *count = lengths.iter().filter(|it| **it == length).count();
        }
        Self { counts, symbols }
    }

    fn next(&self, bits: &mut Bits<'_>) -> usize {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for count in &self.counts[1..] {
            code |= bits.take(1);
            if code < first + count {
                return self.symbols[index + code - first];
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        panic!("no such code");
    }
}

/// The codes of a block that brings its own (section 3.2.7).
fn codes(bits: &mut Bits<'_>) -> (Code, Code) {
    const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    let (literals, distances) = (bits.take(5) + 257, bits.take(5) + 1);
    let mut lengths = [0; 19];
    for at in ORDER.into_iter().take(bits.take(4) + 4) {
        lengths[at] = bits.take(3);
    }
    let code = Code::new(&lengths);
    let mut lengths: Vec<usize> = Vec::new();
    while lengths.len() < literals + distances {
        let (length, times) = match code.next(bits) {
            16 => (*lengths.last().unwrap(), 3 + bits.take(2)),
            17 => (0, 3 + bits.take(3)),
            18 => (0, 11 + bits.take(7)),
            length => (length, 1),
        };
        lengths.extend(std::iter::repeat_n(length, times));
    }
    assert_eq!(lengths.len(), literals + distances);
    let (literals, distances) = lengths.split_at(literals);
    (Code::new(literals), Code::new(distances))
}

/// The farthest distance of one block (section 3.2.5).
fn symbols(bits: &mut Bits<'_>, literals: &Code, distances: &Code) -> usize {
    let mut farthest = 0;
    loop {
        let length = match literals.next(bits) {
            0..256 => continue,
            256 => return farthest,
            length => length - 257,
        };
        // Of the length only the bits behind it matter.
        bits.take(if length < 8 || length == 28 { 0 } else { length / 4 - 1 });
        let distance = distances.next(bits);
        let more = (distance / 2).saturating_sub(1);
        let base = if distance < 2 { distance } else { (2 + distance % 2) << more };
        farthest = farthest.max(1 + base + bits.take(more));
    }
}
