//! What is kept of each room: its last messages, in memory, for as long as somebody is there and some
//! minutes more.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::wire::{Complaint, Line};

/// Messages that are kept of a room.
const HISTORY: usize = 20;

/// Rooms of which something is kept. Anybody can make one, so that this times the largest history, 80 KiB of
/// text, is what a stranger can make us hold: 20 MiB.
const MAX_ROOMS: usize = 256;

/// How long a room is remembered in which nobody is: time enough for everybody to come back after a lost
/// connection or lunch.
const REMEMBERED: Duration = Duration::from_secs(30 * 60);

/// Of all rooms.
pub(crate) struct Archive {
    /// When this process began.
    started: u64,
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    rooms: HashMap<String, Record>,
    made: u64,
}

struct Record {
    room: Arc<Mutex<Room>>,
    visits: usize,
    /// When the last visit ended.
    left: Instant,
}

/// Of one room.
pub(crate) struct Room {
    /// Which one it is, of all that had or will have this name.
    pub(crate) epoch: String,
    last: u64,
    lines: VecDeque<Line>,
}

/// Keeps a room from being forgotten.
pub(crate) struct Visit {
    archive: Arc<Archive>,
    name: String,
    room: Arc<Mutex<Room>>,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self { started: now(), shelf: Mutex::default() }
    }

    pub(crate) fn visit(self: &Arc<Self>, name: &str) -> Result<Visit, Complaint> {
        let mut shelf = lock(&self.shelf);
        let shelf = &mut *shelf;
        shelf.rooms.retain(|_, it| it.visits > 0 || it.left.elapsed() < REMEMBERED);
        if !shelf.rooms.contains_key(name) {
            if shelf.rooms.len() >= MAX_ROOMS {
                // The one that has been empty for longest makes way.
                let empty = shelf.rooms.iter().filter(|(_, it)| it.visits == 0);
                let Some(oldest) =
                    empty.min_by_key(|(_, it)| it.left).map(|(name, _)| name.clone())
                else {
                    let text = "there are too many rooms: go to one of those that are there";
                    return Err(Complaint::new("too_many_rooms", text));
                };
                shelf.rooms.remove(&oldest);
            }
            shelf.made += 1;
            let epoch = format!("{:x}-{}", self.started, shelf.made);
            let room = Arc::new(Mutex::new(Room { epoch, last: 0, lines: VecDeque::new() }));
            let record = Record { room, visits: 0, left: Instant::now() };
            shelf.rooms.insert(name.to_owned(), record);
        }
        let record = shelf.rooms.get_mut(name).expect("it was there, or has been made");
        record.visits += 1;
        let room = Arc::clone(&record.room);
        Ok(Visit { archive: Arc::clone(self), name: name.to_owned(), room })
    }
}

impl Visit {
    pub(crate) fn room(&self) -> MutexGuard<'_, Room> {
        lock(&self.room)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(record) = lock(&self.archive.shelf).rooms.get_mut(&self.name) {
            record.visits -= 1;
            record.left = Instant::now();
        }
    }
}

impl Room {
    /// The next message, not yet kept.
    pub(crate) fn line(&self, from: String, name: String, text: String) -> Line {
        Line { seq: self.last + 1, at: now(), from, name, text }
    }

    pub(crate) fn keep(&mut self, line: Line) {
        self.last = line.seq;
        if self.lines.len() == HISTORY {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub(crate) fn lines(&self) -> Vec<&Line> {
        self.lines.iter().collect()
    }
}

/// A panic elsewhere leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_millis() as u64)
}
