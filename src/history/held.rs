//! What lines keep in memory although their store has it, because somebody catches up: bounded for all together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use super::ledger::{Line, lock};

/// Under its lock no other is taken.
pub(super) struct Held {
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bytes: usize,
    /// Those that hold something, by their addresses.
    lines: HashMap<usize, Share>,
}

struct Share {
    line: Weak<Line>,
    bytes: usize,
}

impl Held {
    pub(super) fn new(most: usize) -> Self {
        Self { most, state: Mutex::default() }
    }

    /// A line holds so many bytes now. The caller has its lock, so that no two say so at a time.
    pub(super) fn set(&self, line: &Arc<Line>, bytes: usize) {
        let mut state = lock(&self.state);
        let key = Arc::as_ptr(line).addr();
        let before = match bytes {
            0 => state.lines.remove(&key),
            _ => state.lines.insert(key, Share { line: Arc::downgrade(line), bytes }),
        };
        let before = before.map_or(0, |share| share.bytes);
        state.bytes = state.bytes - before + bytes;
    }

    /// The line that holds the most, if all together hold too much: so whoever joins slowly where much is said
    /// loses the replay, and not those who happen to join somewhere else at that time.
    pub(super) fn excess(&self) -> Option<Arc<Line>> {
        let state = lock(&self.state);
        if state.bytes <= self.most {
            return None;
        }
        // A line lives while it holds something: the ledger forgets none that does.
        state.lines.values().max_by_key(|share| share.bytes)?.line.upgrade()
    }
}
