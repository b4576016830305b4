//! Rooms: who is in which, and how what is published reaches the members.
//!
//! A room is there as long as it has members. What is published to it goes through its own lock, in which
//! it is put on the list of each worker that has members, once; the worker hands it on to its own members
//! when those who publish have had their turn. So nobody who publishes waits for a member, and all members
//! see the same order.
//!
//! Locks are taken in this order: a shard of the names, a room's flow, its seats, a shard of the places, an
//! outbox; of each kind one at a time.

mod delivery;
mod handle;
mod mailbox;
mod presence;
mod publication;
mod room;

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_listener::EventListener;

use super::{Hub, Member, SessionId};
use crate::message::Text;
use crate::outbox::SlowPeer;

pub use handle::{PublishError, RoomStats, Rooms};
use mailbox::Posts;
pub use presence::{Presence, PresenceChange, PresenceEvent, PresenceHook, RoomPolicy};
pub use publication::{Audience, Publication};
use publication::{Item, Line};
use room::{Card, Place, Room, Seat, Tally};

/// The names of the rooms, and the places of the sessions, are behind so many locks each, so that workers
/// rarely meet.
const SHARDS: usize = 64;

/// Longest name of a room, in bytes: it often comes from a client, and is kept.
pub(crate) const NAME_BYTES: usize = 256;

type Sharded<K, V> = Box<[Mutex<HashMap<K, V>>]>;

/// A session has become a member of a room, or others see something else of it; to be
/// [announced](Index::announce).
pub(crate) struct Entered((PresenceChange, Tally));

/// All rooms of one server.
pub(crate) struct Index {
    hasher: RandomState,
    names: Sharded<Text, Arc<Room>>,
    /// Which rooms a session is in. Those that are in none are not here, and cost nothing.
    places: Sharded<SessionId, Vec<Place>>,
    /// The room that all sessions are in; it has no seats.
    everyone: Arc<Room>,
    posts: Posts,
    line: Arc<Line>,
    counts: Counts,
    /// How many seats are taken in all rooms together.
    seats: AtomicUsize,
}

/// What has happened to publications so far.
#[derive(Default)]
struct Counts {
    published: AtomicU64,
    delivered: AtomicU64,
    dropped: AtomicU64,
    conflated: AtomicU64,
    too_slow: AtomicU64,
    over_budget: AtomicU64,
    untold: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64, n: u32) {
        if n > 0 {
            counter.fetch_add(n.into(), Ordering::Relaxed);
        }
    }
}

/// Why a session did not become a member of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JoinError {
    /// The session is ending or has ended.
    Closed,
    /// The room has as many members as it may have:
    /// [`Limits::room_members`](crate::config::Limits::room_members).
    RoomFull,
    /// The session is in as many rooms as it may be in:
    /// [`Limits::session_rooms`](crate::config::Limits::session_rooms).
    TooManyRooms,
    /// The name is empty, or longer than 256 bytes.
    BadName,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "the session is closed",
            Self::RoomFull => "the room is full (`limits.room_members`)",
            Self::TooManyRooms => "the session is in too many rooms (`limits.session_rooms`)",
            Self::BadName => "a room's name has 1 to 256 bytes",
        })
    }
}

impl std::error::Error for JoinError {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Index {
    pub(super) fn new(workers: usize, published_bytes: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            names: (0..SHARDS).map(|_| Mutex::default()).collect(),
            places: (0..SHARDS).map(|_| Mutex::default()).collect(),
            everyone: Arc::new(Room::new(Text::default(), SlowPeer::default())),
            posts: Posts::new(workers),
            line: Line::new(published_bytes),
            counts: Counts::default(),
            seats: AtomicUsize::new(0),
        }
    }

    fn names_of(&self, name: &str) -> MutexGuard<'_, HashMap<Text, Arc<Room>>> {
        lock(&self.names[self.hasher.hash_one(name) as usize % SHARDS])
    }

    fn places_of(&self, id: SessionId) -> MutexGuard<'_, HashMap<SessionId, Vec<Place>>> {
        lock(&self.places[id.index() % SHARDS])
    }

    fn find(&self, name: &str) -> Option<Arc<Room>> {
        self.names_of(name).get(name).map(Arc::clone)
    }

    /// The rooms that a session is in, in the order in which it joined them.
    pub(crate) fn joined(&self, id: SessionId) -> Vec<Text> {
        let places = self.places_of(id);
        places.get(&id).into_iter().flatten().map(|place| place.room.name.clone()).collect()
    }

    pub(crate) fn is_member(&self, id: SessionId, name: &str) -> bool {
        self.place(id, name).is_some()
    }

    /// Makes a session a member of a room. If it is one already, others see `data` of it from now on.
    pub(crate) fn join(
        &self,
        member: &Arc<Member>,
        name: &str,
        data: Option<Text>,
    ) -> Result<(), JoinError> {
        if let Some(entered) = self.enter(member, name, data.clone())? {
            self.announce(member, name, data, entered);
        }
        Ok(())
    }

    /// The first half of [`join`](Self::join), which asks nobody about presence. `None`: nothing has changed.
    pub(crate) fn enter(
        &self,
        member: &Arc<Member>,
        name: &str,
        data: Option<Text>,
    ) -> Result<Option<Entered>, JoinError> {
        if name.is_empty() || name.len() > NAME_BYTES {
            return Err(JoinError::BadName);
        }
        let hub = &*member.hub;
        let mut policy = match &hub.config.room_policy {
            Some(_) => None,
            None => Some(hub.config.slow_peer),
        };
        let event = loop {
            let mut names = self.names_of(name);
            if let Some(Place { room, seat }) = self.place(member.id, name) {
                let Some(data) = &data else {
                    return Ok(None);
                };
                break (PresenceChange::Changed, room.change(member.worker, seat, data));
            }
            let room = match (names.get(name), policy) {
                (Some(room), _) => Arc::clone(room),
                (None, Some(policy)) => {
                    let room = Arc::new(Room::new(name.into(), policy));
                    names.insert(room.name.clone(), Arc::clone(&room));
                    room
                }
                // The application says it, so it is asked without a lock.
                (None, None) => {
                    drop(names);
                    policy = hub.config.room_policy.as_ref().map(|policy| policy.of(name));
                    continue;
                }
            };
            let sat = self.sit(&room, member, data.clone());
            if room.is_empty() {
                names.remove(name);
            }
            break (PresenceChange::Joined, sat?);
        };
        Ok(Some(Entered(event)))
    }

    /// The second half.
    pub(crate) fn announce(
        &self,
        member: &Member,
        name: &str,
        data: Option<Text>,
        Entered(event): Entered,
    ) {
        self.tell(member, name, data, event);
    }

    /// Gives a session that is not there yet a seat in a room.
    fn sit(
        &self,
        room: &Arc<Room>,
        member: &Arc<Member>,
        data: Option<Text>,
    ) -> Result<Tally, JoinError> {
        let limits = &member.hub.config.limits;
        let card = Card { data, since: member.hub.clock.coarse() };
        room.sit(member, card, limits.room_members, |seat| {
            let mut places = self.places_of(member.id);
            // Before it is asked whether the session has ended: whoever ends it looks at this afterwards.
            member.social.store(true, Ordering::SeqCst);
            if member.outbox.is_closed() {
                return Err(JoinError::Closed);
            }
            let entry = places.entry(member.id).or_default();
            if entry.len() >= limits.session_rooms {
                return Err(JoinError::TooManyRooms);
            }
            entry.push(Place { room: Arc::clone(room), seat });
            self.seats.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Where a session sits in a room.
    fn place(&self, id: SessionId, name: &str) -> Option<Place> {
        self.places_of(id).get(&id)?.iter().find(|place| place.is(name)).cloned()
    }

    /// Takes a session out of a room. False if it was not in it.
    pub(crate) fn leave(&self, member: &Member, name: &str) -> bool {
        let Some((seat, tally)) = self.rise(member, name) else {
            return false;
        };
        // What it holds may be the application's, and is dropped without a lock.
        let data = seat.and_then(|seat| seat.card.data.clone());
        self.tell(member, name, data, (PresenceChange::Left, tally));
        true
    }

    /// The same, and asks nobody about presence: for who has only just come.
    pub(crate) fn leave_quietly(&self, member: &Member, name: &str) {
        drop(self.rise(member, name));
    }

    /// Takes a member's seat back.
    fn rise(&self, member: &Member, name: &str) -> Option<(Option<Seat>, Tally)> {
        let mut names = self.names_of(name);
        let place = {
            let mut places = self.places_of(member.id);
            let entry = places.get_mut(&member.id)?;
            let at = entry.iter().position(|place| place.is(name))?;
            let place = entry.remove(at);
            if entry.is_empty() {
                places.remove(&member.id);
            }
            place
        };
        let (seat, tally) = place.room.rise(member.worker, place.seat);
        // As often as one was taken: this place was in the list, and is not any more.
        self.seats.fetch_sub(1, Ordering::Relaxed);
        if tally.members == 0 {
            names.remove(name);
        }
        Some((seat, tally))
    }

    /// Takes a session out of all its rooms. Returns how many those were.
    pub(crate) fn leave_all(&self, member: &Member) -> usize {
        if !member.social.load(Ordering::SeqCst) {
            return 0;
        }
        // Once, and not until there are none: somebody may go on joining.
        let rooms = self.joined(member.id);
        rooms.iter().filter(|name| self.leave(member, name)).count()
    }

    /// Asks the application what the others in a room are told about who has come or gone.
    fn tell(
        &self,
        member: &Member,
        room: &str,
        data: Option<Text>,
        (change, tally): (PresenceChange, Tally),
    ) {
        let Some(hook) = &member.hub.config.presence else {
            return;
        };
        let (session, Tally { members, number }) = (member.id, tally);
        let event = PresenceEvent { room, session, data, change, members, number };
        let Some(publication) = hook.ask(&member.hub, &event) else {
            return;
        };
        if let Some(room) = self.find(room) {
            // Whoever comes and goes as fast as it can shall not fill the lists of all.
            match self.line.admit(publication, Some(session)) {
                Ok(item) => _ = self.publish_item(&room, &item),
                Err(_) => Counts::add(&self.counts.untold, 1),
            }
        }
    }

    fn publish_item(&self, room: &Arc<Room>, item: &Arc<Item>) -> usize {
        Counts::add(&self.counts.published, 1);
        room.publish(item, &self.posts)
    }

    /// Whether as much is waiting to be handed on as may.
    pub(crate) fn is_full(&self) -> bool {
        self.line.is_full()
    }

    /// Hears when less does.
    pub(crate) fn listen_for_room(&self) -> EventListener {
        self.line.room().listen()
    }

    /// Publishes to a room, however much is waiting: for those who have looked before. Returns to how many
    /// sessions.
    pub(crate) fn publish_at_once(&self, name: &str, publication: Publication) -> usize {
        let Some(room) = self.find(name) else {
            return 0;
        };
        let item = self.line.admit_at_once(publication);
        self.publish_item(&room, &item)
    }

    /// Publishes if there is room; returns to how many sessions. Otherwise the publication comes back.
    pub(crate) fn try_publish(
        &self,
        hub: &Hub,
        to: Audience<'_>,
        publication: Publication,
    ) -> Result<usize, Publication> {
        let (name, except) = match to {
            Audience::Session(id) => {
                Counts::add(&self.counts.published, 1);
                let Some(member) = hub.get(id) else {
                    return Ok(0);
                };
                let delivered = hub.hand_one(&member, None, &publication);
                Counts::add(&self.counts.delivered, delivered.into());
                hub.heed_budget();
                return Ok(1);
            }
            Audience::All => {
                let item = self.line.admit(publication, None)?;
                Counts::add(&self.counts.published, 1);
                self.everyone.publish_to_all(&item, &self.posts);
                return Ok(hub.count());
            }
            Audience::Room(name) => (name, None),
            Audience::Others(name, except) => (name, Some(except)),
        };
        let Some(room) = self.find(name) else {
            return Ok(0);
        };
        let item = self.line.admit(publication, except)?;
        let members = self.publish_item(&room, &item);
        let excepted = except.is_some_and(|id| self.place(id, name).is_some());
        Ok(members.saturating_sub(excepted.into()))
    }
}
