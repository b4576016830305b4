//! What SQLite says, and what to do about it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Error, ErrorCode};

use crate::history::errors::{StoreError, StoreErrorKind};

/// The database, as errors name it.
#[derive(Clone)]
pub(super) struct Place(Arc<Path>);

impl Place {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.into())
    }

    pub(super) fn error(&self, kind: StoreErrorKind, what: &str) -> StoreError {
        StoreError::new(kind, format!("{}: {what}", self.0.display()))
    }

    pub(super) fn io(&self, what: &str, error: &io::Error) -> StoreError {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull => StoreErrorKind::DiskFull,
            _ => StoreErrorKind::Io,
        };
        self.error(kind, &format!("{what}: {error}"))
    }

    pub(super) fn failed(&self, error: &Error) -> StoreError {
        let (kind, advice) = match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
                StoreErrorKind::Locked,
                "another connection holds a lock on it for longer than the busy timeout",
            ),
            Some(ErrorCode::DiskFull) => (
                StoreErrorKind::DiskFull,
                "make room on the disk, keep less (`messages`, `age`), or allow more (`max_bytes`)",
            ),
            Some(ErrorCode::CannotOpen) => {
                (StoreErrorKind::Io, "its directory has to be there, and writable")
            }
            Some(
                ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::SystemIoFailure
                | ErrorCode::NoLargeFileSupport
                | ErrorCode::FileLockingProtocolFailed,
            ) => (StoreErrorKind::Io, "look at its permissions, and at its disk"),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                (StoreErrorKind::Corrupt, "put it aside; a new one is made")
            }
            // Only by whoever has given up waiting for the end.
            Some(ErrorCode::OperationInterrupted) => {
                let what = "its server has ended, and could not wait for it any longer";
                return self.error(StoreErrorKind::Closed, what);
            }
            _ => return self.error(StoreErrorKind::Other, &error.to_string()),
        };
        self.error(kind, &format!("{error}; {advice}"))
    }
}
