//! Settings from a `.env` file.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{Origin, PREFIX, Sources, find, near_setting};
use crate::error::{Error, Result};

/// A file of settings has some dozens of lines; who names a larger one has named the wrong one.
const MAX_BYTES: u64 = 1024 * 1024;

/// What a file that is not there means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Allowed,
    Refused,
}

impl Sources {
    /// Adds what the file has. Of a name that it has twice nobody can say which was meant.
    pub(super) fn add_file(&mut self, path: &Path, missing: Missing) -> Result<()> {
        let file = path.display().to_string();
        let text = match read(path) {
            Ok(text) => text,
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && missing == Missing::Allowed =>
            {
                return Ok(());
            }
            Err(error) => return Err(Error::Config(format!("cannot read {file}: {error}"))),
        };
        let mut seen = Vec::new();
        let mut lines = text.lines().map(str::trim).zip(1..);
        let handed = Cell::new(0);
        let mut entries = dotenvy::Iter::new(Lines { rest: text.as_bytes(), handed: &handed });
        loop {
            let before = handed.get();
            let Some(entry) = entries.next() else { return Ok(()) };
            let is_blank = |line: &str| line.is_empty() || line.starts_with('#');
            let first = lines.find(|(line, number)| *number > before && !is_blank(line));
            let line = first.map_or(before + 1, |(_, number)| number);
            // A quote in a comment makes the parser take what follows for a part of it, up to the next quote,
            // and a setting would be lost without a word. So a value of several lines has them all, and no
            // setting among them.
            let more = handed.get().saturating_sub(line);
            let entry = entry.ok().filter(|(_, value)| {
                value.matches('\n').count() >= more
                    && !lines.clone().take(more).any(|(line, _)| is_assignment(line))
            });
            let Some((name, value)) = entry else {
                // What the line has is not repeated: it may be a password.
                self.problems.push(format!(
                    "{file}:{line} cannot be read: write NAME=value, or NAME='value' if it has spaces or any \
                     of $ # \\, and no quotes in a comment behind it"
                ));
                return Ok(());
            };
            let name = OsStr::new(&name);
            let ours = find(name).map(|it| it.name);
            if let Some((name, first)) = seen.iter().find(|(name, _)| Some(*name) == ours) {
                self.problems.push(format!(
                    "{name} is set at {file}:{first} and again at {file}:{line}: remove one of them"
                ));
                continue;
            }
            seen.extend(ours.map(|name| (name, line)));
            self.add(name, value.into(), Origin::File(file.clone(), line));
        }
    }
}

/// Whether the line would set something of ours.
fn is_assignment(line: &str) -> bool {
    let line = line.strip_prefix("export ").unwrap_or(line);
    line.split_once('=').is_some_and(|(name, _)| {
        let name = name.trim().to_ascii_uppercase();
        name.starts_with(PREFIX) || near_setting(&name).is_some()
    })
}

/// The file's text, which ends with its last line.
fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other("it has more than a mebibyte, and is no file of settings"));
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        io::Error::other(format!("line {line} is not UTF-8"))
    })?;
    // Windows writes one.
    if let Some(rest) = text.strip_prefix('\u{feff}') {
        text = rest.to_owned();
    }
    text.push('\n');
    Ok(text)
}

/// Hands out the text line by line, because who reads it does not say where it is.
struct Lines<'a> {
    rest: &'a [u8],
    handed: &'a Cell<usize>,
}

impl Read for Lines<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.rest.iter().position(|byte| *byte == b'\n');
        let line = end.map_or(self.rest.len(), |end| end + 1);
        let (taken, rest) = self.rest.split_at(line.min(buffer.len()));
        if let Some(place) = buffer.get_mut(..taken.len()) {
            place.copy_from_slice(taken);
        }
        self.rest = rest;
        if taken.ends_with(b"\n") {
            self.handed.set(self.handed.get() + 1);
        }
        Ok(taken.len())
    }
}
