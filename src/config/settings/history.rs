//! Where history is kept, by its name, and how much of it.

#[cfg(feature = "sqlite")]
use std::path::PathBuf;
use std::time::Duration;

use super::values::Parsed;
use crate::config::Config;
use crate::error::Result;
#[cfg(feature = "sqlite")]
use crate::history::SqliteOptions;
use crate::history::{Kept, Memory};

/// What `WEBSOCKET_HISTORY` and those that need it come to.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    pub(super) place: Place,
    pub(super) messages: Option<u32>,
    pub(super) age: Option<Duration>,
    pub(super) bytes: Option<usize>,
}

/// One of `WEBSOCKET_HISTORY`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    #[default]
    Nowhere,
    Memory,
    #[cfg(feature = "sqlite")]
    Sqlite(PathBuf),
}

impl Place {
    /// Reads `off`, `memory`, or `sqlite:` and a path.
    pub(super) fn parse(text: &str) -> Parsed<Self> {
        if text.eq_ignore_ascii_case("off") {
            return Ok(Self::Nowhere);
        }
        if text.eq_ignore_ascii_case("memory") {
            return Ok(Self::Memory);
        }
        match text.strip_prefix("sqlite:") {
            Some("") => Err(format!("a path is missing behind sqlite:; {PLACE}")),
            Some(path) => Self::sqlite(path),
            None => Err(PLACE.to_owned()),
        }
    }

    #[cfg(feature = "sqlite")]
    fn sqlite(path: &str) -> Parsed<Self> {
        // Such names are options to SQLite, and no files.
        if path.starts_with([':', '?']) {
            return Err(format!("{path:?} is no file; {PLACE}"));
        }
        Ok(Self::Sqlite(path.into()))
    }

    #[cfg(not(feature = "sqlite"))]
    fn sqlite(_: &str) -> Parsed<Self> {
        Err("this program was built without it: build it with the feature `sqlite` of coracle, or use memory"
            .to_owned())
    }
}

const PLACE: &str = "allowed is off, memory, or sqlite: and the path of a file";

impl Keeping {
    /// Opens what is asked for. A database is locked from here on.
    pub(super) fn open(self, config: &mut Config) -> Result<()> {
        let rooms = config.history.rooms;
        config.history.store = match self.place {
            Place::Nowhere => None,
            Place::Memory => {
                let mut memory = Memory::new().rooms(rooms);
                if let Some(messages) = self.messages {
                    memory = memory.messages(messages as usize);
                }
                if let Some(age) = self.age {
                    memory = memory.age(age);
                }
                if let Some(bytes) = self.bytes {
                    memory = memory.bytes(bytes);
                }
                Some(Kept::new(memory))
            }
            #[cfg(feature = "sqlite")]
            Place::Sqlite(path) => {
                let mut options = SqliteOptions::default().rooms(rooms);
                if let Some(messages) = self.messages {
                    options = options.messages(messages.into());
                }
                if let Some(age) = self.age {
                    options = options.age(age);
                }
                if let Some(bytes) = self.bytes {
                    options = options.max_bytes(bytes as u64);
                }
                Some(Kept::new(options.open(path)?))
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_off_in_memory_or_in_a_file() {
        assert_eq!(Place::parse("off"), Ok(Place::Nowhere));
        assert_eq!(Place::parse("Memory"), Ok(Place::Memory));
        #[cfg(feature = "sqlite")]
        assert_eq!(Place::parse("sqlite:/a/b.db"), Ok(Place::Sqlite("/a/b.db".into())));
        for text in ["", "on", "sqlite", "sqlite:", "/a/b.db", "sqlite::memory:", "file:a.db"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }
}
