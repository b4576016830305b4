//! The timer wheel: every deadline of every session of one worker.
//!
//! Setting, moving and clearing a deadline are a few stores, never a system call and never an
//! allocation. The price is precision: an entry fires within two [`TICK`]s after its deadline, and
//! never before it. A session has one entry for all its timers and moves it only when it fires.

use std::time::Duration;

use slab::Slab;

use super::clock::Time;
use super::tasks::TaskId;

/// The width of a slot. A tenth of a second is a tenth of the shortest deadline anybody sets on a
/// human being's connection, and ten wake-ups a second at most.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Slots of the wheel: 51.2 s a round, so that the default ping and pong deadlines never go round
/// twice. What is due later is looked at once a round.
const SLOTS: usize = 512;
const WORDS: usize = SLOTS / 64;
const NONE: u32 = u32::MAX;

/// Names an entry of a wheel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u32);

/// A hashed wheel of doubly linked lists; the links are indices into the slab.
pub(crate) struct Wheel {
    entries: Slab<Entry>,
    /// The first entry of each slot.
    heads: Box<[u32; SLOTS]>,
    /// A bit for each slot that has entries.
    occupied: [u64; WORDS],
    /// Every deadline up to and including this tick has fired.
    current: u64,
}

struct Entry {
    /// The tick at which it fires; `u64::MAX` when it is not set (and then it is in no list).
    due: u64,
    previous: u32,
    next: u32,
    /// Who set it last.
    task: TaskId,
}

impl Wheel {
    pub(crate) fn new() -> Self {
        Self {
            entries: Slab::new(),
            heads: Box::new([NONE; SLOTS]),
            occupied: [0; WORDS],
            current: 0,
        }
    }

    /// A new entry that is not set.
    pub(crate) fn insert(&mut self) -> Key {
        let key = self.entries.insert(Entry {
            due: u64::MAX,
            previous: NONE,
            next: NONE,
            task: TaskId::NONE,
        });
        // More than four billion timers do not fit in memory.
        Key(key as u32)
    }

    /// Forgets an entry.
    pub(crate) fn remove(&mut self, key: Key) {
        self.unlink(key.0);
        self.entries.remove(key.0 as usize);
    }

    /// Wakes `task` after `deadline`; replaces what was set. `Time::NEVER` clears.
    pub(crate) fn set(&mut self, key: Key, deadline: Time, task: TaskId) {
        let due = if deadline == Time::NEVER { u64::MAX } else { tick_after(deadline) };
        // In the past: with the next tick, so that firing always goes through `advance`.
        let due = due.max(self.current + 1);
        let entry = &mut self.entries[key.0 as usize];
        entry.task = task;
        if entry.due == due {
            return;
        }
        self.unlink(key.0);
        if due != u64::MAX {
            self.link(key.0, due);
        }
    }

    /// Fires what is due at `now`: collects the tasks to wake.
    pub(crate) fn advance(&mut self, now: Time, fired: &mut Vec<TaskId>) {
        let target = now.as_micros() / TICK.as_micros() as u64;
        // After a round every slot has been seen, however long the worker slept.
        let last = target.min(self.current + SLOTS as u64);
        let mut tick = self.current;
        while tick < last {
            tick += 1;
            self.fire_slot((tick % SLOTS as u64) as usize, target, fired);
        }
        self.current = self.current.max(target);
    }

    fn fire_slot(&mut self, slot: usize, target: u64, fired: &mut Vec<TaskId>) {
        if self.occupied[slot / 64] & (1 << (slot % 64)) == 0 {
            return;
        }
        let mut at = self.heads[slot];
        while at != NONE {
            let entry = &mut self.entries[at as usize];
            let next = entry.next;
            if entry.due <= target {
                fired.push(entry.task);
                self.unlink(at);
            }
            at = next;
        }
    }

    /// When the next slot that has entries is over, for the worker to sleep until.
    ///
    /// An entry of a later round makes this too early by whole rounds, never too late.
    pub(crate) fn next(&self) -> Option<Time> {
        let start = ((self.current + 1) % SLOTS as u64) as usize;
        (0..=WORDS).find_map(|i| {
            let word = (start / 64 + i) % WORDS;
            let mut bits = self.occupied[word];
            if i == 0 {
                bits &= u64::MAX << (start % 64);
            } else if i == WORDS {
                bits &= !(u64::MAX << (start % 64));
            }
            if bits == 0 {
                return None;
            }
            let slot = word * 64 + bits.trailing_zeros() as usize;
            let ahead = (slot + SLOTS - start) % SLOTS;
            let tick = self.current + 1 + ahead as u64;
            Some(Time::from_micros(tick * TICK.as_micros() as u64))
        })
    }

    fn link(&mut self, index: u32, due: u64) {
        let slot = (due % SLOTS as u64) as usize;
        let head = self.heads[slot];
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.due = due;
        entry.previous = NONE;
        entry.next = head;
        self.heads[slot] = index;
        self.occupied[slot / 64] |= 1 << (slot % 64);
    }

    fn unlink(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        if entry.due == u64::MAX {
            return;
        }
        let slot = (entry.due % SLOTS as u64) as usize;
        let (previous, next) = (entry.previous, entry.next);
        entry.due = u64::MAX;
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous == NONE {
            self.heads[slot] = next;
            if next == NONE {
                self.occupied[slot / 64] &= !(1 << (slot % 64));
            }
        } else {
            self.entries[previous as usize].next = next;
        }
    }
}

/// The first tick that begins at or after `deadline`.
fn tick_after(deadline: Time) -> u64 {
    deadline.as_micros().div_ceil(TICK.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(n: u64) -> Time {
        Time::from_micros(n * 1000)
    }

    fn fired(wheel: &mut Wheel, now: Time) -> usize {
        let mut tasks = Vec::new();
        wheel.advance(now, &mut tasks);
        tasks.len()
    }

    #[test]
    fn an_entry_never_fires_early_and_fires_once() {
        for at in [1, 50, 99, 100, 101, 250, 51_199, 51_200, 60_000, 200_000] {
            let mut wheel = Wheel::new();
            let key = wheel.insert();
            wheel.set(key, millis(at), TaskId::NONE);
            let mut when = None;
            for now in (0..at + 400).step_by(10) {
                match fired(&mut wheel, millis(now)) {
                    0 => {}
                    1 if when.is_none() => when = Some(now),
                    n => panic!("fired {n} times"),
                }
            }
            let when = when.expect("it fires");
            assert!(when >= at && when <= at + 110, "due {at}, fired {when}");
            assert_eq!(wheel.next(), None);
        }
    }

    #[test]
    fn the_worker_may_sleep_until_next_says() {
        let mut wheel = Wheel::new();
        let keys: Vec<_> = (0..50).map(|_| wheel.insert()).collect();
        for (i, key) in keys.iter().enumerate() {
            wheel.set(*key, millis(1 + i as u64 * 3_333), TaskId::NONE);
        }
        let (mut total, mut wakeups) = (0, 0);
        while let Some(next) = wheel.next() {
            total += fired(&mut wheel, next);
            wakeups += 1;
        }
        assert_eq!(total, 50);
        // 163 s are four rounds: an entry is looked at once a round and fired once.
        assert!(wakeups <= 200, "{wakeups}");
    }

    #[test]
    fn a_moved_entry_fires_only_at_its_new_time_and_a_cleared_one_never() {
        let mut wheel = Wheel::new();
        let (moved, cleared) = (wheel.insert(), wheel.insert());
        wheel.set(moved, millis(500), TaskId::NONE);
        wheel.set(cleared, millis(500), TaskId::NONE);
        wheel.set(moved, millis(5_000), TaskId::NONE);
        wheel.set(cleared, Time::NEVER, TaskId::NONE);
        assert_eq!(fired(&mut wheel, millis(4_900)), 0);
        assert_eq!(fired(&mut wheel, millis(5_100)), 1);
        wheel.remove(moved);
        wheel.remove(cleared);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_long_sleep_misses_nothing() {
        let mut wheel = Wheel::new();
        for i in 0..1000_u64 {
            let key = wheel.insert();
            wheel.set(key, millis(i * 377), TaskId::NONE);
        }
        assert_eq!(fired(&mut wheel, millis(10_000_000)), 1000);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn the_past_fires_with_the_next_tick() {
        let mut wheel = Wheel::new();
        assert_eq!(fired(&mut wheel, millis(1_000)), 0);
        let key = wheel.insert();
        wheel.set(key, millis(3), TaskId::NONE);
        assert_eq!(wheel.next(), Some(millis(1_100)));
        assert_eq!(fired(&mut wheel, millis(1_100)), 1);
    }
}
