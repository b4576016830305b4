//! One transaction that removes.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rusqlite::{Transaction, params};

use super::schema::{Bits, meta, set_meta};
use super::writer::{Row, Writer, update_room};
use crate::history::value::now;
use crate::message::Text;

pub(super) struct Cut<'a> {
    writer: &'a Writer,
    transaction: Transaction<'a>,
    done: Done,
}

/// What is known of the rooms has to become this when it is in the database.
#[derive(Default)]
pub(super) struct Done {
    /// `None`: it is not there any more.
    rooms: HashMap<Text, Option<Row>>,
    removed: u64,
}

impl<'a> Cut<'a> {
    pub(super) fn new(writer: &'a Writer) -> rusqlite::Result<Self> {
        Ok(Self { writer, transaction: writer.begin()?, done: Done::default() })
    }

    /// What a room is now.
    pub(super) fn row(&self, room: &Text) -> Option<Row> {
        match self.done.rooms.get(room) {
            Some(row) => *row,
            None => self.writer.rooms.get(room).copied(),
        }
    }

    /// Removes the oldest messages of a room, at most so many. Returns how many they were.
    pub(super) fn oldest(&mut self, room: &Text, mut row: Row, most: u64) -> rusqlite::Result<u64> {
        if most == 0 {
            return Ok(0);
        }
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let removed = self
            .transaction
            .prepare_cached(
                "DELETE FROM messages WHERE number IN \
                 (SELECT number FROM messages WHERE room = ?1 ORDER BY id LIMIT ?2)",
            )?
            .execute(params![row.number, most])? as u64;
        row.count = row.count.saturating_sub(removed);
        self.done.removed += removed;
        self.done.rooms.insert(room.clone(), Some(row));
        Ok(removed)
    }

    /// Removes a room that has no messages any more; where its ids have come to is remembered for all rooms together.
    pub(super) fn end(&mut self, room: &Text, row: Row) -> rusqlite::Result<()> {
        let delete = "DELETE FROM rooms WHERE number = ?1";
        self.transaction.prepare_cached(delete)?.execute([row.number])?;
        let known = u64::try_from(meta(&self.transaction, "floor")?).unwrap_or_default();
        if row.last > known {
            set_meta(&self.transaction, "floor", row.last.cast_signed_bits())?;
        }
        self.done.rooms.insert(room.clone(), None);
        Ok(())
    }

    /// Removes what is too old of so many messages behind this one in the order in which they came, whichever rooms
    /// they are of. Returns from where to go on, if what is behind them may be too old as well.
    ///
    /// What is said to be of later than now is of a time when the clock was ahead. From here on it is of now: it
    /// would stay until the clock has come there again.
    pub(super) fn old(
        &mut self,
        age: Duration,
        behind: i64,
        most: u64,
    ) -> rusqlite::Result<Option<i64>> {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let now = now();
        let (horizon, now) = (now.saturating_sub(age).cast_signed_bits(), now.cast_signed_bits());
        let (mut upto, mut seen, mut old, mut ahead) = (behind, 0, 0, 0);
        let mut lost: HashMap<i64, u64> = HashMap::new();
        {
            let sql =
                "SELECT number, room, at FROM messages WHERE number > ?1 ORDER BY number LIMIT ?2";
            let mut statement = self.transaction.prepare_cached(sql)?;
            let mut rows = statement.query([behind, i64::try_from(most).unwrap_or(i64::MAX)])?;
            while let Some(row) = rows.next()? {
                upto = row.get(0)?;
                seen += 1;
                let at: i64 = row.get(2)?;
                if at < horizon {
                    old += 1;
                    *lost.entry(row.get(1)?).or_default() += 1;
                }
                ahead += u64::from(at > now);
            }
        }
        if old > 0 {
            let sql = "DELETE FROM messages WHERE number > ?1 AND number <= ?2 AND at < ?3";
            self.transaction.prepare_cached(sql)?.execute([behind, upto, horizon])?;
            for (room, row) in &self.writer.rooms {
                if let Some(lost) = lost.get(&row.number) {
                    // Some may have been removed here before.
                    let Some(mut row) = self.row(room) else { continue };
                    row.count = row.count.saturating_sub(*lost);
                    self.done.rooms.insert(room.clone(), Some(row));
                }
            }
        }
        if ahead > 0 {
            let sql = "UPDATE messages SET at = ?3 WHERE number > ?1 AND number <= ?2 AND at > ?3";
            self.transaction.prepare_cached(sql)?.execute([behind, upto, now])?;
        }
        self.done.removed += old;
        Ok((old + ahead > 0 && seen == most).then_some(upto))
    }

    pub(super) fn commit(self) -> rusqlite::Result<Done> {
        for row in self.done.rooms.values().flatten() {
            update_room(&self.transaction, row)?;
        }
        self.writer.commit_if_awaited(self.transaction)?;
        Ok(self.done)
    }
}

impl Done {
    pub(super) fn apply(self, writer: &mut Writer) {
        writer.counters.trimmed.fetch_add(self.removed, Ordering::Relaxed);
        for (room, row) in self.rooms {
            match row {
                Some(row) => _ = writer.rooms.insert(room, row),
                None => _ = writer.rooms.remove(&room),
            }
        }
    }
}
