//! One room: who is in it, by worker, and what is on its way to them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;

use super::JoinError;
use super::delivery::discard;
use super::mailbox::Posts;
use super::publication::Item;
use crate::executor::Time;
use crate::hub::Member;
use crate::message::Text;
use crate::outbox::SlowPeer;

/// Publications for which a list keeps memory when it is empty.
const KEPT: usize = 16;

/// Whatever is published goes through one lock, in which it is put on the list of every worker that has
/// members: so all of them see the same order. Each worker has its members in seats of its own.
pub(super) struct Room {
    pub(super) name: Text,
    pub(super) policy: SlowPeer,
    flow: Mutex<Flow>,
}

#[derive(Default)]
struct Flow {
    members: usize,
    /// How often that has changed.
    changes: u64,
    /// The number of the next publication.
    next: u64,
    /// One for each worker that has, or had, members.
    parts: Vec<Part>,
}

/// What one worker has of a room.
struct Part {
    worker: u16,
    members: usize,
    seats: Arc<Seats>,
    pending: VecDeque<(u64, Arc<Item>)>,
    /// The room is in the worker's mailbox, or being delivered there.
    queued: bool,
}

/// Where a member sits.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) room: Arc<Room>,
    pub(super) seat: u32,
}

/// What others see of a member.
#[derive(Clone)]
pub(super) struct Card {
    pub(super) data: Option<Text>,
    pub(super) since: Time,
}

pub(super) struct Seat {
    pub(super) member: Arc<Member>,
    /// The first publication that is for this member.
    pub(super) from: u64,
    pub(super) card: Card,
}

/// The members of a room that live on one worker. Locked by that worker while it hands a run to some of them,
/// which runs nothing of the application's, and by whoever joins, leaves and looks who is there.
#[derive(Default)]
pub(super) struct Seats(Mutex<Slab<Seat>>);

impl Seats {
    pub(super) fn lock(&self) -> MutexGuard<'_, Slab<Seat>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a worker takes off its list at a time.
pub(super) struct Share {
    pub(super) items: Vec<(u64, Arc<Item>)>,
    pub(super) seats: Arc<Seats>,
}

impl Room {
    pub(super) fn new(name: Text, policy: SlowPeer) -> Self {
        Self { name, policy, flow: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().members
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives a member a seat, if there is one. `note` hears which, before anything can be published to it,
    /// and may be against it.
    pub(super) fn sit(
        &self,
        member: &Arc<Member>,
        card: Card,
        most: usize,
        note: impl FnOnce(u32) -> Result<(), JoinError>,
    ) -> Result<Tally, JoinError> {
        let mut flow = self.lock();
        if flow.members >= most {
            return Err(JoinError::RoomFull);
        }
        let from = flow.next;
        let part = flow.part(member.worker);
        let seat = part.seats.lock().insert(Seat { member: Arc::clone(member), from, card });
        // More than four billion sessions do not fit in memory.
        if let Err(error) = note(seat as u32) {
            part.seats.lock().remove(seat);
            return Err(error);
        }
        part.members += 1;
        flow.members += 1;
        Ok(flow.tally())
    }

    /// From now on others see this of a member.
    pub(super) fn change(&self, worker: u16, seat: u32, data: &Text) -> Tally {
        let mut flow = self.lock();
        if let Some(seat) = flow.part(worker).seats.lock().get_mut(seat as usize) {
            seat.card.data = Some(data.clone());
        }
        flow.tally()
    }

    /// Takes a seat back, and returns it.
    pub(super) fn rise(&self, worker: u16, seat: u32) -> (Option<Seat>, Tally) {
        let mut flow = self.lock();
        let part = flow.part(worker);
        let seat = {
            let mut seats = part.seats.lock();
            let seat = seats.try_remove(seat as usize);
            if seats.is_empty() {
                // The memory of those who were here once.
                *seats = Slab::new();
            }
            seat
        };
        if seat.is_some() {
            part.members -= 1;
            flow.members -= 1;
        }
        (seat, flow.tally())
    }

    /// Puts a publication on the list of every worker that has members here. Returns to how many it goes.
    pub(super) fn publish(self: &Arc<Self>, item: &Arc<Item>, posts: &Posts) -> usize {
        let mut flow = self.lock();
        let number = flow.next;
        flow.next += 1;
        for part in flow.parts.iter_mut().filter(|part| part.members > 0) {
            part.pending.push_back((number, Arc::clone(item)));
            if !part.queued {
                part.queued = posts.put(part.worker, self);
                if !part.queued {
                    // Its worker has ended.
                    part.pending.clear();
                }
            }
        }
        flow.members
    }

    /// Puts a publication on the list of every worker. For the room that everybody is in.
    pub(super) fn publish_to_all(self: &Arc<Self>, item: &Arc<Item>, posts: &Posts) {
        {
            let mut flow = self.lock();
            for worker in 0..posts.len() {
                flow.part(worker).members = 1;
            }
        }
        self.publish(item, posts);
    }

    /// For a worker: what it delivers next of this room, of at most so many messages and bytes, unless the
    /// first has more. `None` if that was all.
    pub(super) fn take(&self, worker: u16, messages: usize, bytes: usize) -> Option<Share> {
        let mut flow = self.lock();
        let part = flow.part(worker);
        let mut sum = 0_usize;
        let fitting =
            part.pending.iter().take(messages).enumerate().take_while(|(at, (_, item))| {
                sum = sum.saturating_add(item.len());
                *at == 0 || sum <= bytes
            });
        let count = fitting.count();
        if count == 0 {
            part.queued = false;
            if part.pending.capacity() > KEPT {
                part.pending = VecDeque::new();
            }
            return None;
        }
        Some(Share { items: part.pending.drain(..count).collect(), seats: Arc::clone(&part.seats) })
    }

    /// For a worker that ends: nobody delivers this any more.
    pub(super) fn forsake(&self, worker: u16) {
        let mut flow = self.lock();
        let part = flow.part(worker);
        part.queued = false;
        let forsaken = std::mem::take(&mut part.pending);
        drop(flow);
        forsaken.into_iter().for_each(discard);
    }

    /// Looks at every member, worker by worker.
    pub(super) fn each(&self, mut look: impl FnMut(&Member, &Card)) {
        let parts: Vec<_> = self.lock().parts.iter().map(|part| Arc::clone(&part.seats)).collect();
        for seats in parts {
            seats.lock().iter().for_each(|(_, seat)| look(&seat.member, &seat.card));
        }
    }
}

/// A change of who is in a room.
#[derive(Clone, Copy)]
pub(super) struct Tally {
    /// How many there are now.
    pub(super) members: usize,
    /// Which change of this room it is.
    pub(super) number: u64,
}

impl Flow {
    fn tally(&mut self) -> Tally {
        self.changes += 1;
        Tally { members: self.members, number: self.changes }
    }

    fn part(&mut self, worker: u16) -> &mut Part {
        let at = self.parts.iter().position(|part| part.worker == worker);
        let at = at.unwrap_or_else(|| {
            let (seats, pending) = Default::default();
            self.parts.push(Part { worker, members: 0, seats, pending, queued: false });
            self.parts.len() - 1
        });
        &mut self.parts[at]
    }
}

/// Where a member is to be found again: in the list of its rooms.
impl Place {
    pub(super) fn is(&self, name: &str) -> bool {
        &*self.room.name == name
    }
}
