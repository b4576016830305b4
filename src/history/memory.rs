//! History in the memory of the process.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::future::ready;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::errors::{StoreError, StoreErrorKind};
use super::leap;
use super::ledger::lock;
use super::receipt::Receipt;
use super::store::{Boxed, Closing, Opening, Portion, Store, StoreStats};
use super::value::{Bounds, Entry, Epoch, now};
use crate::message::Text;

/// History in memory: for replays over a lost connection, not over the end of the process.
///
/// It is bounded in the messages of a room, in their age, in rooms and in bytes, whatever names rooms have. Where
/// it is too much the rooms lose first that have been silent the longest.
pub struct Memory {
    messages: usize,
    age: Option<Duration>,
    rooms: usize,
    bytes: usize,
    state: Mutex<State>,
}

struct State {
    epoch: Epoch,
    rooms: HashMap<Text, Kept>,
    /// The rooms by when they were told something last.
    silence: BTreeMap<u64, Text>,
    turn: u64,
    bytes: usize,
    open: bool,
    /// How far the ids had come when it was closed.
    floor: u64,
    /// How far all had come, as they were told.
    least: u64,
    heads: HashMap<Text, u64>,
    appended: u64,
    trimmed: u64,
}

struct Kept {
    entries: VecDeque<Entry>,
    last: u64,
    turn: u64,
}

impl State {
    fn drop_oldest(&mut self, room: &str) {
        let oldest = self.rooms.get_mut(room).and_then(|kept| kept.entries.pop_front());
        if let Some(entry) = oldest {
            self.bytes -= entry.weight();
            self.trimmed += 1;
        }
    }

    fn drop_room(&mut self, room: &str) {
        let Some(kept) = self.rooms.remove(room) else { return };
        self.silence.remove(&kept.turn);
        self.bytes -= kept.entries.iter().map(Entry::weight).sum::<usize>();
        self.trimmed += kept.entries.len() as u64;
        // How far it had come is forgotten, and must not come again.
        self.floor = self.floor.max(kept.last);
    }
}

impl Memory {
    /// The last 1 000 messages of each room, of 10 000 rooms, 16 MiB together.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            epoch: Epoch::random(),
            rooms: HashMap::new(),
            silence: BTreeMap::new(),
            turn: 0,
            bytes: 0,
            open: false,
            floor: 0,
            least: 0,
            heads: HashMap::new(),
            appended: 0,
            trimmed: 0,
        };
        let (messages, rooms, bytes) = (1000, 10_000, 16 * 1024 * 1024);
        Self { messages, age: None, rooms, bytes, state: Mutex::new(state) }
    }

    /// Messages that are kept of each room, at least 1. Default 1 000.
    #[must_use]
    pub fn messages(mut self, messages: usize) -> Self {
        self.messages = messages.max(1);
        self
    }

    /// How long a message is kept. Default: until it has to make room.
    #[must_use]
    pub fn age(mut self, age: Duration) -> Self {
        self.age = Some(age);
        self
    }

    /// Rooms of which something is kept, at least 1. Default 10 000.
    #[must_use]
    pub fn rooms(mut self, rooms: usize) -> Self {
        self.rooms = rooms.max(1);
        self
    }

    /// What all messages together may take, each with its room's name and 128 bytes more than its payload.
    /// Default 16 MiB. A larger message is kept alone.
    #[must_use]
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// What was published before this is too old.
    fn horizon(&self) -> u64 {
        let age = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.age.map_or(0, |it| now().saturating_sub(age(it)))
    }

    /// Makes room until all bounds hold.
    fn trim(&self, state: &mut State, room: &str) {
        let horizon = self.horizon();
        while state.rooms.get(room).is_some_and(|kept| {
            let entries = &kept.entries;
            entries.len() > self.messages || entries.front().is_some_and(|it| it.at < horizon)
        }) {
            state.drop_oldest(room);
        }
        while let Some(oldest) = state.silence.values().next().cloned() {
            let too_many = state.rooms.len() > self.rooms;
            let (len, last) = state.rooms.get(&*oldest).map_or((0, 0), |kept| {
                (kept.entries.len(), kept.entries.back().map_or(0, |entry| entry.at))
            });
            if too_many || len == 0 || last < horizon {
                state.drop_room(&oldest);
            } else if state.bytes > self.bytes && (len > 1 || state.rooms.len() > 1) {
                state.drop_oldest(&oldest);
            } else {
                return;
            }
        }
    }

    fn insert(&self, entry: Entry) {
        let mut state = self.state();
        let state = &mut *state;
        state.turn += 1;
        state.appended += 1;
        state.bytes += entry.weight();
        let room = entry.room.clone();
        let fresh = || Kept { entries: VecDeque::new(), last: 0, turn: 0 };
        let kept = state.rooms.entry(room.clone()).or_insert_with(fresh);
        state.silence.remove(&kept.turn);
        kept.turn = state.turn;
        kept.last = entry.id;
        state.silence.insert(kept.turn, room.clone());
        kept.entries.push_back(entry);
        self.trim(state, &room);
    }

    fn read(&self, room: &str, read: impl FnOnce(&VecDeque<Entry>, u64) -> Portion) -> Portion {
        let state = self.state();
        let horizon = self.horizon();
        state.rooms.get(room).map(|kept| read(&kept.entries, horizon)).unwrap_or_default()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for Memory {
    fn open(&self, _rooms: usize) -> Result<Opening, StoreError> {
        let mut state = self.state();
        if state.open {
            let text = "this memory is the history of another server that runs";
            return Err(StoreError::new(StoreErrorKind::InUse, text));
        }
        state.open = true;
        let mut heads: Vec<_> = Vec::new();
        // The latest first.
        for room in state.silence.values().rev() {
            let kept = state.rooms.get(&**room).map(|kept| kept.last);
            let known = kept.max(state.heads.get(&**room).copied());
            heads.extend(known.map(|last| (room.clone(), last.max(state.least))));
        }
        Ok(Opening::new(state.epoch, state.floor, heads))
    }

    fn append(&self, entry: Entry, receipt: Receipt) {
        self.insert(entry);
        receipt.kept();
    }

    fn before<'a>(
        &'a self,
        room: &'a str,
        before: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>> {
        let portion = self.read(room, |entries, horizon| {
            let end = entries.partition_point(|entry| entry.id < before);
            let older = entries.range(..end).rev().filter(|entry| entry.at >= horizon);
            Portion::of(older.cloned(), bounds)
        });
        Box::pin(ready(Ok(portion)))
    }

    fn after<'a>(
        &'a self,
        room: &'a str,
        after: u64,
        until: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>> {
        let portion = self.read(room, |entries, horizon| {
            let start = entries.partition_point(|entry| entry.id <= after);
            let later = entries.range(start..).take_while(|entry| entry.id <= until);
            Portion::of(later.filter(|entry| entry.at >= horizon).cloned(), bounds)
        });
        Box::pin(ready(Ok(portion)))
    }

    fn flush(&self) -> Boxed<'_, Result<(), StoreError>> {
        Box::pin(ready(Ok(())))
    }

    fn close(&self, closing: Closing) -> Boxed<'_, Result<(), StoreError>> {
        let mut state = self.state();
        state.open = false;
        // What has been removed may have had any id.
        let heads: u64 = closing.heads.iter().map(|(_, last)| *last).max().unwrap_or_default();
        state.floor = state.floor.max(closing.floor).max(heads);
        state.heads = closing.heads.into_iter().collect();
        state.least = state.least.max(closing.least);
        if !closing.complete {
            // What is kept may not be the last that a room has had.
            let kept = state.rooms.values().map(|kept| kept.last).max().unwrap_or_default();
            if let Some(floor) = leap(state.floor.max(kept)) {
                (state.floor, state.least) = (floor, floor);
            }
        }
        Box::pin(ready(Ok(())))
    }

    fn stats(&self) -> StoreStats {
        let state = self.state();
        let (commits, trimmed) = (state.appended, state.trimmed);
        StoreStats { commits, trimmed, ..StoreStats::default() }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Memory")
            .field("rooms", &state.rooms.len())
            .field("bytes", &state.bytes)
            .finish_non_exhaustive()
    }
}
