//! What is removed: what is too much of a room, what is too old, and rooms that are too many. In portions between the
//! groups, and of what a group has made too much at least as much as it has brought: so that it does not become more
//! while there is always a next group.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::SqliteOptions;
use super::cut::Cut;
use super::writer::{Row, Writer};
use crate::executor::{Clock, Time};
use crate::history::value::now;
use crate::message::Text;

/// Messages that are removed at a time of each kind, at least: twice a group of the default size, so that removing is
/// faster than appending. Twice a group, if those are larger.
const PORTION: u64 = 512;

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
    portion: u64,
    /// Rooms with more than they may have.
    crowded: BTreeSet<Text>,
    /// The one of them that had its turn last.
    turn: Option<Text>,
    /// Rooms that are removed, with the last id that they had: if that changes they stay.
    dying: VecDeque<(Text, u64)>,
    /// What the last group has brought.
    brought: Brought,
    /// When to look for what is too old.
    look: Time,
    /// Up to where that has been done this time.
    looked: i64,
    /// After a failure: not before this.
    rest: Time,
}

#[derive(Default)]
struct Brought {
    /// To rooms that have too much: how many messages.
    to: Vec<(Text, u64)>,
    /// Rooms.
    rooms: usize,
}

impl Retention {
    pub(super) fn new(options: &SqliteOptions) -> Self {
        let clock = Clock::kernel();
        let now = clock.precise();
        Self {
            messages: options.messages,
            age: options.age,
            rooms: options.rooms,
            portion: PORTION.max((options.group as u64).saturating_mul(2)),
            crowded: BTreeSet::new(),
            turn: None,
            dying: VecDeque::new(),
            brought: Brought::default(),
            look: if options.age.is_some() { now } else { Time::NEVER },
            looked: 0,
            rest: now,
            clock,
        }
    }

    /// A room has got more. It is allowed an eighth too much, so that not every message removes one.
    pub(super) fn grown(&mut self, room: &Text, row: &Row, before: Option<Row>) {
        self.brought.rooms += usize::from(before.is_none());
        if self.is_crowded(row) {
            self.crowded.insert(room.clone());
            let added = row.count.saturating_sub(before.map_or(0, |row| row.count));
            self.brought.to.push((room.clone(), added));
        }
    }

    /// A room was there when the database was opened; there may have been more to keep before.
    pub(super) fn found(&mut self, room: &Text, row: &Row) {
        if self.is_crowded(row) {
            self.crowded.insert(room.clone());
        }
    }

    fn is_crowded(&self, row: &Row) -> bool {
        row.count > self.messages.saturating_add(self.messages / 8)
    }

    /// How long the writer may wait for appends.
    pub(super) fn pause(&self, rooms: usize) -> Duration {
        let now = self.clock.precise();
        let idle = self.crowded.is_empty() && self.dying.is_empty() && rooms <= self.rooms;
        let due = if idle { self.look } else { now };
        due.max(self.rest).since(now).min(IDLE)
    }

    /// Removes a portion of what there is to remove, and more if the last group has brought so much.
    pub(super) fn go_on(&mut self, writer: &mut Writer) {
        let brought = std::mem::take(&mut self.brought);
        let now = self.clock.precise();
        if now < self.rest {
            return;
        }
        let removed = self.remove(writer, &brought.to, now);
        let removed = removed.and_then(|()| self.bury(writer, brought.rooms.saturating_mul(2)));
        if let Err(error) = removed {
            if writer.ending.is_abandoned() {
                return;
            }
            writer.counters.trims_failed.fetch_add(1, Ordering::Relaxed);
            log::warn!("history: cannot remove what is too much: {}", writer.place.failed(&error));
            self.rest = now + RETRY;
        }
    }

    /// Messages of rooms that have too many, and such as are too old.
    fn remove(
        &mut self,
        writer: &mut Writer,
        brought: &[(Text, u64)],
        now: Time,
    ) -> rusqlite::Result<()> {
        let old = self.age.filter(|_| now >= self.look);
        if self.crowded.is_empty() && old.is_none() {
            return Ok(());
        }
        let mut cut = Cut::new(writer)?;
        // Twice what they have got: so what they have too much becomes less, whatever comes next.
        for (room, added) in brought {
            if let Some(row) = cut.row(room) {
                let excess = row.count.saturating_sub(self.messages);
                cut.oldest(room, row, excess.min(added.saturating_mul(2)))?;
            }
        }
        // And one after the other down to what they may have.
        let (mut left, mut turn, mut thin) = (self.portion, None, Vec::new());
        for room in self.in_turn() {
            if left == 0 {
                break;
            }
            let mut excess = 0;
            if let Some(row) = cut.row(room) {
                excess = row.count.saturating_sub(self.messages);
                cut.oldest(room, row, excess.min(left))?;
            }
            if excess <= left {
                thin.push(room.clone());
            }
            left = left.saturating_sub(excess);
            turn = Some(room.clone());
        }
        let mut further = None;
        if let Some(age) = old {
            further = cut.old(age, self.looked, self.portion)?;
        }
        let done = cut.commit()?;
        done.apply(writer);
        for room in &thin {
            self.crowded.remove(room);
        }
        self.turn = turn.or(self.turn.take());
        if let Some(age) = old {
            self.looked = further.unwrap_or(0);
            if further.is_none() {
                self.look = now + (age / 8).clamp(*LOOK.start(), *LOOK.end());
            }
        }
        Ok(())
    }

    /// The crowded rooms, beginning behind the one that had its turn last.
    fn in_turn(&self) -> impl Iterator<Item = &Text> {
        let last = self.turn.as_ref();
        let behind = (last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let rest = last
            .map(|last| self.crowded.range::<Text, _>((Bound::Unbounded, Bound::Included(last))));
        self.crowded.range::<Text, _>(behind).chain(rest.into_iter().flatten())
    }

    /// Rooms that are too many: a portion of their messages, but at least so many rooms, whatever they have. What
    /// new rooms cost is more than what they bring, if the old ones are full; who publishes to ever new ones makes
    /// the groups wait for that, and does not get ahead of it.
    fn bury(&mut self, writer: &mut Writer, mut least: usize) -> rusqlite::Result<()> {
        loop {
            if self.dying.is_empty() && writer.rooms.len() > self.rooms {
                self.choose(writer);
            }
            if self.dying.is_empty() || writer.ending.is_asked() {
                return Ok(());
            }
            let mut cut = Cut::new(writer)?;
            let (mut left, mut over) = (self.portion, 0);
            for (room, last) in &self.dying {
                if let Some(row) = cut.row(room).filter(|row| row.last == *last) {
                    let removed = cut.oldest(room, row, left)?;
                    // One that has just as many is gone the next time.
                    if removed == left {
                        break;
                    }
                    cut.end(room, row)?;
                    // A room without messages is work as well.
                    left -= removed + 1;
                    least = least.saturating_sub(1);
                }
                over += 1;
                if left == 0 {
                    break;
                }
            }
            let done = cut.commit()?;
            done.apply(writer);
            self.dying.drain(..over);
            if least == 0 {
                return Ok(());
            }
        }
    }

    /// The rooms that have been silent the longest, and some more, so that it is not done for each new one.
    fn choose(&mut self, writer: &mut Writer) {
        // The clock may have been ahead: those are not the last to be silent for ever.
        let now = now();
        for row in writer.rooms.values_mut() {
            row.touched = row.touched.min(now);
        }
        let excess = writer.rooms.len() - self.rooms + self.rooms / 16;
        let mut rooms: Vec<_> =
            writer.rooms.iter().map(|(room, it)| (it.touched, room, it.last)).collect();
        rooms.sort_unstable();
        let oldest = rooms.into_iter().take(excess);
        self.dying.extend(oldest.map(|(_, room, last)| (room.clone(), last)));
    }
}
