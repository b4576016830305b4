//! What is removed: what is too much of a room, what is too old, and rooms that are too many. In portions, so that
//! appends never wait for more than one.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rusqlite::params;

use super::SqliteOptions;
use super::schema::{Bits, meta, set_meta};
use super::writer::{Row, Writer, update_room};
use crate::executor::{Clock, Time};
use crate::history::value::now;
use crate::message::Text;

/// Messages that are removed at a time: twice a group, so that removing keeps up with appending.
const PORTION: i64 = 512;

/// How often it is looked for what is too old: an eighth of the age, but no oftener and no more seldom than this.
const LOOK: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(60);

/// After a failure. Whatever the reason is, it will not be over in a moment.
const RETRY: Duration = Duration::from_secs(1);

/// How long the writer may sleep when there is nothing to remove.
const IDLE: Duration = Duration::from_secs(3600);

pub(super) struct Retention {
    clock: Clock,
    messages: u64,
    age: Option<Duration>,
    rooms: usize,
    /// Rooms with more than they may have.
    crowded: BTreeSet<Text>,
    /// Rooms that are removed, with what they were touched last: if that changes they stay.
    dying: VecDeque<(Text, u64)>,
    /// When to look for what is too old.
    look: Time,
    /// After a failure: not before this.
    rest: Time,
}

/// How a portion went.
enum Step {
    Done,
    More,
}

impl Retention {
    pub(super) fn new(options: &SqliteOptions) -> Self {
        let clock = Clock::kernel();
        let now = clock.precise();
        Self {
            messages: options.messages,
            age: options.age,
            rooms: options.rooms,
            crowded: BTreeSet::new(),
            dying: VecDeque::new(),
            look: if options.age.is_some() { now } else { Time::NEVER },
            rest: now,
            clock,
        }
    }

    /// A room has got more. It is allowed an eighth too much, so that not every message removes one.
    pub(super) fn grown(&mut self, room: &Text, row: &Row) {
        if row.count > self.messages.saturating_add(self.messages / 8) {
            self.crowded.insert(room.clone());
        }
    }

    /// How long the writer may wait for appends.
    pub(super) fn pause(&self) -> Duration {
        let now = self.clock.precise();
        let idle = self.crowded.is_empty() && self.dying.is_empty();
        let due = if idle { self.look } else { now };
        due.max(self.rest).since(now).min(IDLE)
    }

    /// Removes one portion, if there is something to remove.
    pub(super) fn go_on(&mut self, writer: &mut Writer) {
        let now = self.clock.precise();
        if now < self.rest {
            return;
        }
        let removed = self.one(writer, now);
        if let Err(error) = removed {
            writer.counters.trims_failed.fetch_add(1, Ordering::Relaxed);
            log::warn!("history: cannot remove what is too much: {}", writer.place.failed(&error));
            self.rest = now + RETRY;
        }
    }

    fn one(&mut self, writer: &mut Writer, now: Time) -> rusqlite::Result<()> {
        if self.dying.is_empty() && writer.rooms.len() > self.rooms {
            self.choose(writer);
        }
        if let Some(room) = self.crowded.first().cloned() {
            if let Step::Done = self.thin_out(writer, &room)? {
                self.crowded.remove(&room);
            }
        } else if let Some((room, touched)) = self.dying.front().cloned() {
            if let Step::Done = remove_room(writer, &room, touched)? {
                self.dying.pop_front();
            }
        } else if let (Some(age), true) = (self.age, now >= self.look) {
            if let Step::Done = remove_old(writer, age)? {
                self.look = now + (age / 8).clamp(*LOOK.start(), *LOOK.end());
            }
        }
        Ok(())
    }

    /// The rooms that have been silent the longest, and some more, so that it is not done for each new one.
    fn choose(&mut self, writer: &Writer) {
        let excess = writer.rooms.len() - self.rooms + self.rooms / 16;
        let mut rooms: Vec<_> = writer.rooms.iter().map(|(room, it)| (it.touched, room)).collect();
        rooms.sort_unstable();
        let oldest = rooms.into_iter().take(excess);
        self.dying.extend(oldest.map(|(touched, room)| (room.clone(), touched)));
    }

    /// Removes the oldest of what a room has too much.
    fn thin_out(&self, writer: &mut Writer, room: &Text) -> rusqlite::Result<Step> {
        let Some(row) = writer.rooms.get(room).copied() else {
            return Ok(Step::Done);
        };
        let excess = row.count.saturating_sub(self.messages).cast_signed_bits();
        let portion = excess.min(PORTION);
        let removed = remove_oldest(writer, room, row, portion, None)?;
        Ok(if removed < PORTION as u64 || portion == excess { Step::Done } else { Step::More })
    }
}

/// Removes the oldest messages of a room, at most so many; and its row as well, if `floor` is given and they were the
/// last. Returns how many they were.
fn remove_oldest(
    writer: &mut Writer,
    room: &Text,
    mut row: Row,
    portion: i64,
    floor: Option<u64>,
) -> rusqlite::Result<u64> {
    let transaction = writer.begin()?;
    let removed = transaction
        .prepare_cached(
            "DELETE FROM messages WHERE number IN \
             (SELECT number FROM messages WHERE room = ?1 ORDER BY id LIMIT ?2)",
        )?
        .execute(params![row.number, portion])? as u64;
    row.count = row.count.saturating_sub(removed);
    let gone = floor.is_some() && removed < portion as u64;
    if let (Some(floor), true) = (floor, gone) {
        transaction.prepare_cached("DELETE FROM rooms WHERE number = ?1")?.execute([row.number])?;
        let known = u64::try_from(meta(&transaction, "floor")?).unwrap_or_default();
        set_meta(&transaction, "floor", known.max(floor).cast_signed_bits())?;
    } else {
        update_room(&transaction, &row)?;
    }
    transaction.commit()?;
    writer.counters.trimmed.fetch_add(removed, Ordering::Relaxed);
    match gone {
        true => _ = writer.rooms.remove(room),
        false => _ = writer.rooms.insert(room.clone(), row),
    }
    Ok(removed)
}

/// Removes a room that has been silent; where its ids have come to is remembered for all rooms together.
fn remove_room(writer: &mut Writer, room: &Text, touched: u64) -> rusqlite::Result<Step> {
    let Some(row) = writer.rooms.get(room).copied().filter(|row| row.touched == touched) else {
        return Ok(Step::Done);
    };
    let removed = remove_oldest(writer, room, row, PORTION, Some(row.last))?;
    Ok(if removed < PORTION as u64 { Step::Done } else { Step::More })
}

/// Removes what is too old of the oldest messages, whichever rooms they are of.
fn remove_old(writer: &mut Writer, age: Duration) -> rusqlite::Result<Step> {
    let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let horizon = now().saturating_sub(age).cast_signed_bits();
    let transaction = writer.begin()?;
    let (mut upto, mut old) = (0, 0);
    let mut lost: HashMap<i64, u64> = HashMap::new();
    {
        let sql = "SELECT number, room, at FROM messages ORDER BY number LIMIT ?1";
        let mut statement = transaction.prepare_cached(sql)?;
        let mut rows = statement.query([PORTION])?;
        while let Some(row) = rows.next()? {
            upto = row.get(0)?;
            if row.get::<_, i64>(2)? < horizon {
                old += 1;
                *lost.entry(row.get(1)?).or_default() += 1;
            }
        }
    }
    if old == 0 {
        return Ok(Step::Done);
    }
    let sql = "DELETE FROM messages WHERE number <= ?1 AND at < ?2";
    transaction.prepare_cached(sql)?.execute(params![upto, horizon])?;
    let mut less = Vec::new();
    for (room, row) in &writer.rooms {
        if let Some(lost) = lost.get(&row.number) {
            let row = Row { count: row.count.saturating_sub(*lost), ..*row };
            update_room(&transaction, &row)?;
            less.push((room.clone(), row));
        }
    }
    transaction.commit()?;
    writer.counters.trimmed.fetch_add(old as u64, Ordering::Relaxed);
    writer.rooms.extend(less);
    Ok(if old == PORTION { Step::More } else { Step::Done })
}
