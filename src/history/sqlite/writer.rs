//! The thread that writes.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rusqlite::{Connection, Error, ErrorCode, Transaction, TransactionBehavior, ffi, params};
use smol::channel::Sender;

use super::ending::Ending;
use super::error::Place;
use super::reader::{BINARY, TEXT};
use super::retention::Retention;
use super::schema::{Bits, meta, set_meta, through_to_the_disk};
use super::{Counters, SqliteOptions};
use crate::executor::Clock;
use crate::history::errors::{StoreError, StoreErrorKind};
use crate::history::leap;
use crate::history::receipt::Receipt;
use crate::history::store::{Closing, Opening};
use crate::history::value::{Entry, Epoch};
use crate::message::{Message, Text};

/// Bytes of a group, at most, unless one message has more: what it takes at once of the log.
const GROUP_BYTES: usize = 1024 * 1024;

/// Statements that a connection keeps compiled: all that there are here.
const STATEMENTS: usize = 32;

/// How long SQLite waits for a lock at a time; in between it is looked whether anybody still waits for the writer.
const GLANCE: Duration = Duration::from_millis(50);

type Reply<T> = Sender<Result<T, StoreError>>;

/// What the writer is asked to do, in this order.
pub(super) enum Job {
    Append(Entry, Receipt),
    Open(usize, Reply<Opening>),
    Flush(Reply<()>),
    Close(Closing, Reply<()>),
}

/// What is known of a room without asking the database: the same as in its row.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) number: i64,
    pub(super) last: u64,
    pub(super) count: u64,
    pub(super) touched: u64,
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) place: Place,
    pub(super) options: SqliteOptions,
    pub(super) counters: Arc<Counters>,
    pub(super) ending: Arc<Ending>,
    pub(super) rooms: HashMap<Text, Row>,
    clock: Clock,
    jobs: Receiver<Job>,
    opened: bool,
    /// Unlocked with the thread's end.
    _only_one: File,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        place: Place,
        options: SqliteOptions,
        (counters, ending): (Arc<Counters>, Arc<Ending>),
        jobs: Receiver<Job>,
        only_one: File,
    ) -> rusqlite::Result<Self> {
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.busy_timeout(options.busy.min(GLANCE))?;
        Ok(Self {
            connection,
            place,
            options,
            counters,
            ending,
            rooms: HashMap::new(),
            clock: Clock::kernel(),
            jobs,
            opened: false,
            _only_one: only_one,
        })
    }

    /// Until it is closed, or nobody can ask any more.
    pub(super) fn run(mut self) {
        let mut retention = Retention::new(&self.options);
        let mut next = None;
        loop {
            if self.ending.is_abandoned() {
                return self.give_up(next);
            }
            let wait = if self.opened { retention.pause(self.rooms.len()) } else { Duration::MAX };
            let job = match next.take() {
                Some(job) => Some(job),
                None => match self.jobs.recv_timeout(wait) {
                    Ok(job) => Some(job),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            };
            match job {
                Some(Job::Append(entry, receipt)) => {
                    next = self.group(entry, receipt, &mut retention);
                }
                Some(Job::Open(rooms, reply)) => {
                    let opening = self.open(rooms);
                    self.rooms.iter().for_each(|(room, row)| retention.found(room, row));
                    let _ = reply.try_send(opening);
                }
                Some(Job::Flush(reply)) => _ = reply.try_send(Ok(())),
                Some(Job::Close(closing, reply)) => {
                    let closed = self.close(&closing);
                    // The lock goes first, so that whoever hears of the end can open it again.
                    drop(self);
                    let _ = reply.try_send(closed);
                    return;
                }
                None => {}
            }
            // Between two groups; but not before the end, which is waited for.
            if self.opened && !self.ending.is_asked() {
                retention.go_on(&mut self);
            }
        }
    }

    /// Nobody waits any more. What has not been kept is not kept afterwards: it has been reported as lost.
    fn give_up(self, next: Option<Job>) {
        let waiting: Vec<_> = next.into_iter().chain(self.jobs.try_iter()).collect();
        let closed = self.place.failed(&interrupted());
        // The lock goes first, so that whoever hears of the end can open it again.
        drop(self);
        for job in waiting {
            // What else was asked hears that there is nobody.
            if let Job::Append(_, receipt) = job {
                receipt.failed(closed.clone());
            }
        }
    }

    /// Writes an entry with those that wait behind it. Returns what came after them.
    fn group(&mut self, entry: Entry, receipt: Receipt, retention: &mut Retention) -> Option<Job> {
        let mut bytes = entry.weight();
        let (mut entries, mut receipts, mut next) = (vec![entry], vec![receipt], None);
        while entries.len() < self.options.group && bytes < GROUP_BYTES {
            match self.jobs.try_recv() {
                Ok(Job::Append(entry, receipt)) => {
                    bytes += entry.weight();
                    entries.push(entry);
                    receipts.push(receipt);
                }
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        match self.commit(&entries, retention) {
            Ok(()) => receipts.into_iter().for_each(Receipt::kept),
            Err(error) if entries.len() > 1 && is_of_one(&error) => {
                // It may be one of them that cannot be kept.
                for (entry, receipt) in entries.iter().zip(receipts) {
                    match self.commit(std::slice::from_ref(entry), retention) {
                        Ok(()) => receipt.kept(),
                        Err(error) => receipt.failed(error),
                    }
                }
            }
            Err(error) => receipts.into_iter().for_each(|it| it.failed(error.clone())),
        }
        next
    }

    fn commit(&mut self, entries: &[Entry], retention: &mut Retention) -> Result<(), StoreError> {
        let staged = match self.write(entries) {
            Ok(staged) => staged,
            Err(error) => return Err(self.place.failed(&error)),
        };
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        for (room, row) in staged {
            let before = self.rooms.insert(room.clone(), row);
            retention.grown(&room, &row, before);
        }
        Ok(())
    }

    /// All or nothing. Returns what the rows of the rooms are now.
    fn write(&self, entries: &[Entry]) -> rusqlite::Result<HashMap<Text, Row>> {
        let transaction = self.begin()?;
        let mut staged: HashMap<Text, Row> = HashMap::new();
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO messages (room, id, at, kind, payload) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for entry in entries {
                let row = match staged.get_mut(&entry.room) {
                    Some(row) => row,
                    None => {
                        let row = match self.rooms.get(&entry.room) {
                            Some(row) => *row,
                            None => new_room(&transaction, &entry.room)?,
                        };
                        staged.entry(entry.room.clone()).or_insert(row)
                    }
                };
                let kind = if matches!(entry.message, Message::Text(_)) { TEXT } else { BINARY };
                let (id, at) = (entry.id.cast_signed_bits(), entry.at.cast_signed_bits());
                insert.execute(params![row.number, id, at, kind, entry.message.as_bytes()])?;
                row.last = entry.id;
                row.touched = entry.at;
                row.count += 1;
            }
        }
        for row in staged.values() {
            update_room(&transaction, row)?;
        }
        self.commit_if_awaited(transaction)?;
        Ok(staged)
    }

    /// A transaction that has its lock from the beginning, so that it waits for others only there.
    pub(super) fn begin(&self) -> rusqlite::Result<Transaction<'_>> {
        let until = self.clock.precise() + self.options.busy;
        let immediate = TransactionBehavior::Immediate;
        loop {
            if self.ending.is_abandoned() {
                return Err(interrupted());
            }
            match Transaction::new_unchecked(&self.connection, immediate) {
                Err(error)
                    if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                        && self.clock.precise() < until => {}
                other => return other,
            }
        }
    }

    /// The last moment to do nothing, if that is what has been reported.
    pub(super) fn commit_if_awaited(&self, transaction: Transaction<'_>) -> rusqlite::Result<()> {
        if self.ending.is_abandoned() {
            return Err(interrupted());
        }
        transaction.commit()
    }

    /// Finds out where the ids go on, and notes that the end is not clean from here on.
    fn open(&mut self, most: usize) -> Result<Opening, StoreError> {
        if self.opened {
            let what = "it is open already, as the history of another server";
            return Err(self.place.error(StoreErrorKind::InUse, what));
        }
        // That the end is not clean from here on has to be known after the power has failed as well: or the next
        // one would give the ids of what was lost with it once more.
        let read = || self.read_heads(most);
        let (opening, rooms) = through_to_the_disk(&self.connection, self.options.durability, read)
            .map_err(|error| self.place.failed(&error))?;
        self.rooms = rooms;
        self.opened = true;
        Ok(opening)
    }

    fn read_heads(&self, most: usize) -> rusqlite::Result<(Opening, HashMap<Text, Row>)> {
        let transaction = self.begin()?;
        let number = |key| meta(&transaction, key).map(|it| u64::from_ne_bytes(it.to_ne_bytes()));
        let mut epoch = Epoch::from_u64(number("epoch")?);
        let (mut floor, mut least) = (number("floor")?, number("least")?);
        if number("clean")? == 0 {
            let highest = "SELECT coalesce(max(last), 0) FROM rooms";
            let highest: i64 = transaction.query_row(highest, [], |row| row.get(0))?;
            let highest = u64::try_from(highest).unwrap_or_default().max(floor).max(least);
            if let Some(beyond) = leap(highest) {
                (floor, least) = (beyond, beyond);
            } else {
                log::warn!("history: all ids have been used: it begins anew");
                transaction.execute_batch("DELETE FROM messages; DELETE FROM rooms;")?;
                (epoch, floor, least) = (Epoch::random(), 0, 0);
                set_meta(&transaction, "epoch", epoch.as_u64().cast_signed_bits())?;
            }
            set_meta(&transaction, "floor", floor.cast_signed_bits())?;
            set_meta(&transaction, "least", least.cast_signed_bits())?;
        }
        set_meta(&transaction, "clean", 0)?;
        let (mut heads, mut rooms) = (Vec::new(), HashMap::new());
        {
            let mut statement = transaction.prepare(
                "SELECT name, number, last, count, touched FROM rooms ORDER BY touched DESC",
            )?;
            let mut rows = statement.query([])?;
            let unsigned = |it: i64| u64::try_from(it).unwrap_or_default();
            while let Some(it) = rows.next()? {
                let name = Text::from(it.get::<_, String>(0)?);
                let last = unsigned(it.get(2)?).max(least);
                let (count, touched) = (unsigned(it.get(3)?), unsigned(it.get(4)?));
                let row = Row { number: it.get(1)?, last, count, touched };
                match heads.len() < most {
                    true => heads.push((name.clone(), last)),
                    false => floor = floor.max(last),
                }
                rooms.insert(name, row);
            }
        }
        transaction.commit()?;
        Ok((Opening::new(epoch, floor, heads), rooms))
    }

    /// Notes how far the ids have come.
    fn close(&mut self, closing: &Closing) -> Result<(), StoreError> {
        let write = || {
            let transaction = self.begin()?;
            let known = meta(&transaction, "floor")?;
            let mut floor = u64::try_from(known).unwrap_or_default().max(closing.floor);
            for (room, last) in &closing.heads {
                match self.rooms.get(room) {
                    Some(row) => {
                        update_room(&transaction, &Row { last: row.last.max(*last), ..*row })?;
                    }
                    None => floor = floor.max(*last),
                }
            }
            set_meta(&transaction, "floor", floor.cast_signed_bits())?;
            let least = meta(&transaction, "least")?.max(closing.least.cast_signed_bits());
            set_meta(&transaction, "least", least)?;
            set_meta(&transaction, "clean", closing.complete.into())?;
            self.commit_if_awaited(transaction)
        };
        write().map_err(|error| self.place.failed(&error))
    }
}

/// Whether what is wrong may be one entry, and not the database.
fn is_of_one(error: &StoreError) -> bool {
    error.kind() == StoreErrorKind::Other
}

/// As if SQLite had been.
fn interrupted() -> Error {
    Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_INTERRUPT), None)
}

fn new_room(transaction: &Transaction<'_>, name: &Text) -> rusqlite::Result<Row> {
    let sql = "INSERT INTO rooms (name, last, count, touched) VALUES (?1, 0, 0, 0)";
    transaction.prepare_cached(sql)?.execute([name.as_str()])?;
    let number = transaction.last_insert_rowid();
    Ok(Row { number, last: 0, count: 0, touched: 0 })
}

pub(super) fn update_room(transaction: &Transaction<'_>, row: &Row) -> rusqlite::Result<()> {
    let sql = "UPDATE rooms SET last = ?2, count = ?3, touched = ?4 WHERE number = ?1";
    let [last, count, touched] = [row.last, row.count, row.touched].map(Bits::cast_signed_bits);
    transaction.prepare_cached(sql)?.execute(params![row.number, last, count, touched]).map(|_| ())
}

#[cfg(test)]
mod tests;
