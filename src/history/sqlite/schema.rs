//! The tables, how they came about, and what is set for each connection.

use std::path::Path;
use std::time::Duration;

use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};

use super::error::Place;
use super::{Durability, SqliteOptions};
use crate::history::errors::{StoreError, StoreErrorKind};
use crate::history::value::Epoch;

/// Says in the file's head whose it is: "cora".
const APPLICATION: i32 = 0x636F_7261;

/// How long the reader waits for a lock. In WAL mode there is none but while another process recovers the log.
const READER_PATIENCE: Duration = Duration::from_secs(2);

/// Pages of a connection's cache, in KiB: what one group and one page of reading touch, several times.
const CACHE_KIB: i32 = 1024;

/// The log is cut to this after a checkpoint, if one large group made it longer: what SQLite lets it come to
/// before each checkpoint, a thousand pages.
const LOG_BYTES: i64 = 4 * 1024 * 1024;

/// The longest wait that SQLite counts, in its milliseconds.
const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);

/// Each brings the schema from one version to the next; the first makes it. None is ever changed.
///
/// The messages lie in the order in which they came, so that appending touches the end of the table only, and the
/// oldest are at its beginning. `last` is how far a room's ids have come, `count` how many are kept, `touched`
/// when it was told something last. What `meta` has: `epoch`; `floor`, up to which any room may have had ids;
/// `least`, up to which every one may; `clean`, whether the end was.
const STEPS: &[&str] = &["
    CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE rooms (
        number INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        last INTEGER NOT NULL,
        count INTEGER NOT NULL,
        touched INTEGER NOT NULL
    );
    CREATE TABLE messages (
        number INTEGER PRIMARY KEY,
        room INTEGER NOT NULL,
        id INTEGER NOT NULL,
        at INTEGER NOT NULL,
        kind INTEGER NOT NULL,
        payload BLOB NOT NULL
    );
    CREATE UNIQUE INDEX messages_by_id ON messages (room, id);
    INSERT INTO meta VALUES ('floor', 0), ('least', 0), ('clean', 1);
"];

/// A path is a path, even if it begins with `file:`.
fn flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// The writer's connection.
pub(super) fn connect(path: &Path, options: &SqliteOptions) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags())?;
    connection.busy_timeout(options.busy.min(LONGEST))?;
    synchronize(&connection, options.durability)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
    if let Some(bytes) = options.bytes {
        let page: u64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let pages = i64::try_from(bytes / page.max(1)).unwrap_or(i64::MAX).max(1);
        connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
    }
    Ok(connection)
}

fn synchronize(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    let synchronous = match durability {
        Durability::PowerLoss => "FULL",
        Durability::Kill => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)
}

/// Does something that has to be on the disk when it is done, whatever is promised otherwise. Not in a transaction.
pub(super) fn through_to_the_disk<T>(
    connection: &Connection,
    durability: Durability,
    work: impl FnOnce() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    synchronize(connection, Durability::PowerLoss)?;
    let done = work();
    synchronize(connection, durability)?;
    done
}

pub(super) fn connect_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags())?;
    connection.busy_timeout(READER_PATIENCE)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    Ok(connection)
}

/// Makes the schema what it has to be.
pub(super) fn prepare(connection: &Connection, place: &Place) -> Result<(), StoreError> {
    prepare_with(connection, place, STEPS)
}

fn prepare_with(connection: &Connection, place: &Place, steps: &[&str]) -> Result<(), StoreError> {
    let failed = |error: rusqlite::Error| place.failed(&error);
    // Nothing is written before it is known whose file it is.
    check(connection, place, steps.len())?;
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(failed)?;
    if !mode.eq_ignore_ascii_case("wal") {
        let what = "this file system cannot share memory between processes, which WAL mode needs";
        return Err(place.error(StoreErrorKind::Io, what));
    }
    let behavior = TransactionBehavior::Immediate;
    let transaction = Transaction::new_unchecked(connection, behavior).map_err(failed)?;
    let version = check(&transaction, place, steps.len())?;
    let migrate = || {
        for (number, step) in steps.iter().enumerate().skip(version) {
            transaction.execute_batch(step)?;
            if number == 0 {
                let epoch = Epoch::random().as_u64().cast_signed_bits();
                transaction.execute("INSERT INTO meta VALUES ('epoch', ?1)", [epoch])?;
                transaction.pragma_update(None, "application_id", APPLICATION)?;
            }
            transaction.pragma_update(None, "user_version", number as i64 + 1)?;
        }
        Ok(())
    };
    migrate().map_err(failed)?;
    transaction.commit().map_err(failed)
}

/// The version of the schema, if this is one that is known.
fn check(connection: &Connection, place: &Place, known: usize) -> Result<usize, StoreError> {
    let number = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let failed = |error: rusqlite::Error| place.failed(&error);
    let application = number("PRAGMA application_id").map_err(failed)?;
    let version = number("PRAGMA user_version").map_err(failed)?;
    let tables = number("SELECT count(*) FROM sqlite_schema").map_err(failed)?;
    if application != i64::from(APPLICATION) && (tables > 0 || version != 0) {
        let what = "this is the database of another program: choose another file";
        return Err(place.error(StoreErrorKind::Corrupt, what));
    }
    match usize::try_from(version) {
        Ok(version) if version <= known => Ok(version),
        _ => {
            let what = format!(
                "a later version of coracle has written it (schema {version}, this one knows {known}): use that \
                 version, or another file"
            );
            Err(place.error(StoreErrorKind::Newer, &what))
        }
    }
}

/// A number of `meta`.
pub(super) fn meta(connection: &Connection, key: &str) -> rusqlite::Result<i64> {
    let sql = "SELECT value FROM meta WHERE key = ?1";
    let found = connection.prepare_cached(sql)?.query_row([key], |row| row.get(0)).optional()?;
    Ok(found.unwrap_or_default())
}

pub(super) fn set_meta(connection: &Connection, key: &str, value: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
    connection.prepare_cached(sql)?.execute(params![key, value]).map(|_| ())
}

/// SQLite's integers have a sign; an epoch is 64 bits.
pub(super) trait Bits {
    fn cast_signed_bits(self) -> i64;
}

impl Bits for u64 {
    fn cast_signed_bits(self) -> i64 {
        i64::from_ne_bytes(self.to_ne_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (Connection, Place) {
        (Connection::open_in_memory().unwrap(), Place::new(Path::new("test")))
    }

    fn migrate(connection: &Connection, place: &Place, steps: &[&str]) -> Result<(), StoreError> {
        // Without a file there is no WAL.
        match prepare_with(connection, place, steps) {
            Err(error) if error.to_string().contains("WAL") => {
                unreachable!("{error}")
            }
            other => other,
        }
    }

    #[test]
    fn an_older_schema_is_brought_up_to_date_step_by_step() {
        let dir = std::env::temp_dir().join(format!("coracle-schema-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("history.db");
        let place = Place::new(&path);
        let connection = connect(&path, &SqliteOptions::default()).unwrap();
        migrate(&connection, &place, STEPS).unwrap();
        let epoch = meta(&connection, "epoch").unwrap();
        let later = [STEPS[0], "ALTER TABLE rooms ADD COLUMN topic TEXT"];
        migrate(&connection, &place, &later).unwrap();
        connection.execute("UPDATE rooms SET topic = 'x'", []).unwrap();
        assert_eq!(meta(&connection, "epoch").unwrap(), epoch, "what was there has stayed");
        migrate(&connection, &place, &later).unwrap();
        let error = migrate(&connection, &place, STEPS).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Newer);
        assert!(error.to_string().contains("schema 2, this one knows 1"), "{error}");
        drop(connection);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_has_to_be_on_the_disk_is_written_through_and_all_else_as_promised() {
        let (connection, _) = fresh();
        let mode = || connection.query_row("PRAGMA synchronous", [], |row| row.get::<_, i64>(0));
        for (durability, promised) in [(Durability::Kill, 1), (Durability::PowerLoss, 2)] {
            synchronize(&connection, durability).unwrap();
            assert_eq!(mode(), Ok(promised));
            assert_eq!(through_to_the_disk(&connection, durability, mode), Ok(2));
            assert_eq!(mode(), Ok(promised));
            let failed = || Err::<(), _>(rusqlite::Error::InvalidQuery);
            assert!(through_to_the_disk(&connection, durability, failed).is_err());
            assert_eq!(mode(), Ok(promised), "after a failure as well");
        }
    }

    #[test]
    fn the_database_of_another_program_is_left_alone() {
        let (connection, place) = fresh();
        connection.execute_batch("CREATE TABLE theirs (x)").unwrap();
        let error = prepare(&connection, &place).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Corrupt);
        let (connection, place) = fresh();
        connection.pragma_update(None, "user_version", 7).unwrap();
        assert_eq!(prepare(&connection, &place).unwrap_err().kind(), StoreErrorKind::Corrupt);
    }
}
