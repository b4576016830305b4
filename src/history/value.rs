//! Plain values: an entry, an epoch, a page.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::message::{Message, Text};

/// What an entry counts beside its room's name and its payload, in bytes.
const OVERHEAD: usize = 128;

/// A message that a room was told, with its id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The room.
    pub room: Text,
    /// Its number in the room, larger than all before it. The first is 1, unless a [leap](super::leap) was
    /// before it.
    pub id: u64,
    /// When it was published, in milliseconds since 1970 by the machine's clock.
    pub at: u64,
    /// The message as the members got it.
    pub message: Message,
}

impl Entry {
    /// For stores that read one back.
    pub fn new(room: impl Into<Text>, id: u64, at: u64, message: impl Into<Message>) -> Self {
        Self { room: room.into(), id, at, message: message.into() }
    }

    /// What it is taken to be worth in bounds of bytes: its payload, its room's name and 128 bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.message.len().saturating_add(self.room.len()).saturating_add(OVERHEAD)
    }
}

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Which numbering an id belongs to: chosen at random when a store begins, and kept as long as its counters are.
///
/// Written as 16 hexadecimal digits: a browser's number cannot hold it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        // The system's random bytes are in the keys; the time tells apart what one thread asks for.
        Self(RandomState::new().hash_one((SystemTime::now(), std::process::id())))
    }

    /// One that was kept somewhere.
    #[must_use]
    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// To be kept somewhere.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Epoch {
    type Err = crate::Error;

    /// Reads what `Display` writes, and nothing else.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() == 16 && text.bytes().all(|it| it.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok().filter(|_| digits);
        let wrong = || crate::Error::Config("an epoch has 16 hexadecimal digits".into());
        number.map(Self).ok_or_else(wrong)
    }
}

/// How far somebody has come in a room: the last id that he has seen, and the epoch it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// The numbering.
    pub epoch: Epoch,
    /// The last id that was seen; 0: none.
    pub after: u64,
}

/// How much is wanted at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bounds {
    /// Entries, at most.
    pub messages: usize,
    /// Their [weight](Entry::weight) together, at most, unless the first alone has more.
    pub bytes: usize,
    /// Nothing has been taken yet.
    pub(super) fresh: bool,
}

impl Bounds {
    pub(crate) const fn new(messages: usize, bytes: usize) -> Self {
        Self { messages, bytes, fresh: true }
    }

    /// Counts one more entry. False if it is too much. The first is taken however large it is.
    #[must_use]
    pub fn takes(&mut self, entry: &Entry) -> bool {
        let weight = entry.weight();
        if self.messages == 0 || (weight > self.bytes && !self.fresh) {
            return false;
        }
        self.messages -= 1;
        self.bytes = self.bytes.saturating_sub(weight);
        self.fresh = false;
        true
    }

    /// What is left when these have been taken.
    pub(super) fn less(mut self, entries: &[Entry]) -> Self {
        for entry in entries {
            _ = self.takes(entry);
        }
        self
    }
}

/// A part of what is kept of a room, the newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// The numbering.
    pub epoch: Epoch,
    /// The entries, the newest first.
    pub entries: Vec<Entry>,
    /// Whether there may be older ones: ask for those before the last of these.
    pub more: bool,
}

/// What followed an id, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replay {
    /// The numbering.
    pub epoch: Epoch,
    /// The entries, the oldest first.
    pub entries: Vec<Entry>,
    /// Whether these are all that there has been, from the id up to [`position`](Self::position), without a
    /// hole. If not, something is missing before, between or after them.
    pub recovered: bool,
    /// The id up to which this goes: ask for what follows it next, if there is [`more`](Self::more).
    pub position: u64,
    /// Whether something follows it already.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_read_as_it_is_written_and_nothing_else_is() {
        let epoch = Epoch::random();
        assert_eq!(epoch.to_string().parse::<Epoch>().unwrap(), epoch);
        assert_ne!(epoch, Epoch::random());
        for wrong in ["", "1", "+000000000000001", "00000000000000001", "000000000000000g"] {
            assert!(wrong.parse::<Epoch>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_entry_fits_however_large_it_is() {
        let entry = Entry::new("room", 1, 0, "x".repeat(1000));
        let mut bounds = Bounds::new(2, 10);
        assert!(bounds.takes(&entry));
        assert!(!bounds.takes(&entry));
        assert!(!Bounds::new(0, 10).takes(&entry));
    }
}
