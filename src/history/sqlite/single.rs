//! One server for one database, however its path is written.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::error::Place;
use crate::history::errors::{StoreError, StoreErrorKind};

/// Links to a file that is not there yet, one after the other: what Linux follows.
const LINKS: usize = 40;

/// The absolute path of a database without links in it, whether or not the file is there: so the file that is locked
/// beside it is the same by whatever name, and SQLite takes no name for a URI.
///
/// The file itself is not opened: closing it again would drop the locks that SQLite has on it in this process.
pub(super) fn real(path: &Path, place: &Place) -> Result<PathBuf, StoreError> {
    resolve(path).map_err(|error| place.io("cannot find its directory", &error))
}

fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match path.canonicalize() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.canonicalize()?,
            _ => Path::new(".").canonicalize()?,
        };
        let name = path.file_name().ok_or(io::ErrorKind::NotFound)?;
        let beside = |name: &OsStr| directory.join(name);
        match fs::read_link(&path) {
            Ok(target) => path = beside(target.as_os_str()),
            Err(_) => return Ok(beside(name)),
        }
    }
    Err(io::Error::other("there are too many links"))
}

/// Ids must not be given by two servers at a time.
pub(super) fn only_one(path: &Path, place: &Place) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push("-lock");
    let opened = File::options().create(true).truncate(false).write(true).open(&name);
    let file = opened.map_err(|error| place.io("cannot make the file beside it", &error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let what = "another server has it open: each needs a history of its own";
            Err(place.error(StoreErrorKind::InUse, what))
        }
        Err(error) => Err(place.io("cannot lock the file beside it", &error.into())),
    }
}
