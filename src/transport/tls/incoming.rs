//! The records that have come in, and how far rustls has got with them.

/// Ciphertext from the peer.
#[derive(Default)]
pub(super) struct Incoming {
    pub(super) bytes: Vec<u8>,
    /// From here on it has not been used up.
    pub(super) start: usize,
    /// Up to here rustls has been given it. It remembers how far it has come in what it has not used up (a
    /// message of a handshake in many records), so it must never be given less.
    fed: usize,
    /// Where the next record begins; that may still have to come. rustls decrypts in place, so no header is
    /// looked at that it has been given.
    next: usize,
}

impl Incoming {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }

    /// Bytes that have not been used up.
    pub(super) fn held(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether there is anything that rustls has not been given.
    pub(super) fn is_unfed(&self) -> bool {
        self.fed < self.bytes.len()
    }

    /// What rustls has been given and has not used up.
    pub(super) fn given(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.fed]
    }

    /// Gives it more, at most so many records (RFC 8446 section 5.1); the last may not be whole. Returns how
    /// many it is.
    pub(super) fn feed(&mut self, most: usize) -> usize {
        let mut records = 0;
        while let Some(&[_, _, _, high, low, ..]) = self.bytes.get(self.next..) {
            if records == most {
                self.fed = self.next;
                return records;
            }
            self.next += 5 + usize::from(u16::from_be_bytes([high, low]));
            records += 1;
        }
        // The rest of a record, or of a header.
        self.fed = self.bytes.len();
        records
    }

    /// Forgets what has been used up.
    pub(super) fn compact(&mut self) {
        self.bytes.drain(..self.start);
        self.shift();
    }

    /// Moves what has not been used up into another buffer, and gives the old one away.
    pub(super) fn move_into(&mut self, mut other: Vec<u8>) -> Vec<u8> {
        other.extend_from_slice(&self.bytes[self.start..]);
        self.shift();
        std::mem::replace(&mut self.bytes, other)
    }

    fn shift(&mut self) {
        self.fed -= self.start;
        self.next -= self.start;
        self.start = 0;
    }
}
