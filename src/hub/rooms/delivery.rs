//! How a worker hands on what was published: one task, which has its turn when those who publish have had
//! theirs. What a room was sent in the meantime becomes one run of frames, made once; each member that is
//! not behind gets it in one piece.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_lite::future;

use super::publication::{Item, Publication};
use super::room::{Room, Seats};
use super::{Counts, Index, lock};
use crate::executor::Worker;
use crate::hub::{Hub, Member, SessionId};
use crate::message::CloseCode;
use crate::outbox::{Encoded, Fate, Form, KEPT_SMALL, Published, Request, Shape};
use crate::ws::{CloseFrame, Header};

/// Members that are handed something before they have their turn to send it: their batches are in use at
/// the same time.
const MEMBERS_PER_TURN: usize = KEPT_SMALL;

/// What one worker delivers at present: a run for the members of one room.
struct Delivery {
    room: Arc<Room>,
    run: Run,
    crowd: Crowd,
    /// Where it goes on.
    at: usize,
}

enum Crowd {
    Seats(Arc<Seats>),
    /// All sessions of the worker, as they were when it began.
    Everyone(Vec<Arc<Member>>),
}

/// What a room was sent during one turn.
pub(super) struct Run {
    items: Vec<(u64, Arc<Item>)>,
    /// Those who do not get all of it.
    excepted: Vec<SessionId>,
    /// The frames of all items in a row, for each shape that somebody needs.
    runs: [OnceCell<Option<Encoded>>; Shape::COUNT],
}

impl Run {
    fn new(items: Vec<(u64, Arc<Item>)>) -> Self {
        let excepted = items.iter().filter_map(|(_, item)| item.except).collect();
        Self { items, excepted, runs: Default::default() }
    }

    /// `None` if a session of this shape must make its own.
    fn in_shape(&self, shape: Shape) -> Option<&Encoded> {
        let run = self.runs[shape.index()].get_or_init(|| {
            let frames = self.items.iter().map(|(_, item)| item.publication.prepared.frame(shape));
            let frames: Vec<&Bytes> = frames.collect::<Option<_>>()?;
            let frame = match frames[..] {
                [one] => one.clone(),
                _ => frames.iter().map(|frame| &frame[..]).collect::<Vec<_>>().concat().into(),
            };
            let payload = self.items.iter().map(|(_, item)| item.len()).sum();
            Some(Encoded { frame, messages: self.items.len(), payload })
        });
        run.as_ref()
    }
}

impl Hub {
    /// Hands on what is published to the members that live on this worker, until the server stops: then what
    /// is there, at once, and nothing more.
    pub(crate) async fn deliver(self: Arc<Self>, home: Rc<Worker>) {
        let worker = home.index() as u16;
        let posts = &self.rooms.posts;
        let _closing = Closing { index: &self.rooms, worker };
        let mut waiting = VecDeque::new();
        let mut under_way: VecDeque<Delivery> = VecDeque::new();
        loop {
            if under_way.is_empty() {
                future::or(posts.take(worker, &mut waiting), self.shutdown.stopping()).await;
            }
            // The sessions are about to close.
            let stopping = self.shutdown.is_stopping();
            posts.take_now(worker, &mut waiting);
            let fresh = waiting.drain(..).filter_map(|room| self.begin(worker, room));
            under_way.extend(fresh);
            let mut left = if stopping { usize::MAX } else { MEMBERS_PER_TURN };
            while let Some(mut delivery) = under_way.pop_front() {
                if self.go_on(&home, &mut delivery, &mut left) {
                    under_way.extend(self.begin(worker, delivery.room));
                } else {
                    // Behind the other rooms.
                    under_way.push_back(delivery);
                    break;
                }
            }
            self.heed_budget();
            if stopping {
                return;
            }
            if !under_way.is_empty() {
                yield_to_members(&home).await;
            }
        }
    }

    fn begin(&self, worker: u16, room: Arc<Room>) -> Option<Delivery> {
        let limits = &self.config.limits;
        // Half of what may wait for one peer: whoever is not behind has room for that.
        let messages = (limits.outbox_messages / 2).max(1);
        let share = room.take(worker, messages, limits.outbox_bytes / 2)?;
        let everyone = Arc::ptr_eq(&room, &self.rooms.everyone);
        let crowd = if everyone {
            let mut members = self.members();
            members.retain(|member| member.worker == worker);
            Crowd::Everyone(members)
        } else {
            Crowd::Seats(share.seats)
        };
        Some(Delivery { room, run: Run::new(share.items), crowd, at: 0 })
    }

    /// Hands a run to the next members. False if some are left.
    fn go_on(&self, home: &Worker, delivery: &mut Delivery, left: &mut usize) -> bool {
        let Delivery { room, run, crowd, at } = delivery;
        match crowd {
            Crowd::Everyone(members) => {
                for member in &members[*at..] {
                    if *left == 0 {
                        return false;
                    }
                    *left -= 1;
                    *at += 1;
                    self.hand(home, room, run, member, 0);
                }
            }
            Crowd::Seats(seats) => {
                let seats = seats.lock();
                while *at < seats.capacity() {
                    if *left == 0 {
                        return false;
                    }
                    if let Some(seat) = seats.get(*at) {
                        *left -= 1;
                        self.hand(home, room, run, &seat.member, seat.from);
                    }
                    *at += 1;
                }
            }
        }
        true
    }

    /// Hands a run to one member: in one piece if it is not behind, else one by one.
    fn hand(&self, home: &Worker, room: &Room, run: &Run, member: &Member, from: u64) {
        let first = run.items.first().map_or(0, |(number, _)| *number);
        if from <= first && !run.excepted.contains(&member.id) {
            if let Some(encoded) = run.in_shape(member.shape()) {
                if let Ok(driver) = member.outbox.try_push_run(encoded, &self.terms) {
                    return home.wake(driver);
                }
            }
        }
        let named = Some(room).filter(|room| !room.name.is_empty());
        for (number, item) in &run.items {
            if *number >= from && item.except != Some(member.id) {
                self.hand_one(member, named, &item.publication);
            }
        }
    }

    /// Hands a publication to one session, by the policy of the room or of the session.
    pub(super) fn hand_one(&self, member: &Member, room: Option<&Room>, publication: &Publication) {
        let Publication { prepared, key } = publication;
        let message = prepared.message();
        if !Header::fits(member.protocol(), message.len()) {
            let close = CloseFrame::new(CloseCode::TOO_BIG, "message too big for a frame");
            return member.outbox.request(Request::Close(close));
        }
        let published = Published {
            form: match prepared.frame(member.shape()) {
                Some(frame) => Form::Encoded(frame.clone()),
                None => Form::Raw(message.clone()),
            },
            len: message.len(),
            key: key.clone(),
            room: room.map(|room| room.name.clone()),
        };
        let policy = room.map_or(self.config.slow_peer, |room| room.policy);
        let counts = &self.rooms.counts;
        match member.outbox.publish(published, policy, &self.terms) {
            Fate::Queued { dropped, conflated } => {
                Counts::add(&counts.dropped, dropped);
                Counts::add(&counts.conflated, conflated);
            }
            Fate::Dropped => Counts::add(&counts.dropped, 1),
            Fate::TooSlow => Counts::add(&counts.too_slow, 1),
            Fate::Closed => {}
        }
    }

    /// Ends the sessions for which the most waits, if all together have too much.
    #[inline]
    pub(crate) fn heed_budget(&self) {
        if self.terms.is_exceeded() {
            self.relieve();
        }
    }

    #[cold]
    fn relieve(&self) {
        let mut members: Vec<_> =
            self.members().into_iter().map(|it| (it.outbox.buffered().bytes, it)).collect();
        members.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        // With some air, so that not every message has to look for the largest again.
        let enough = self.terms.budget() / 8 * 7;
        for (bytes, member) in members {
            if self.terms.used() <= enough {
                return;
            }
            if member.outbox.end_over_budget(&self.terms) {
                Counts::add(&self.rooms.counts.over_budget, 1);
                log::warn!(
                    "session {}: {bytes} bytes wait for it, and more for all than \
                     `limits.outboxes_bytes`",
                    member.id
                );
            }
        }
    }
}

/// Lets those run that have just been woken, and whoever stands in the line.
async fn yield_to_members(home: &Worker) {
    let mut yielded = false;
    poll_fn(|_| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        // By the same way as they are woken: so it comes behind them.
        home.wake(home.current());
        Poll::Pending
    })
    .await;
}

/// However the worker ends, nothing waits for it any more.
struct Closing<'a> {
    index: &'a Index,
    worker: u16,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        drop(self.index.posts.close(self.worker));
        // What was in its mailbox, and what it was about.
        self.index.everyone.forsake(self.worker);
        for names in &self.index.names {
            let rooms: Vec<_> = lock(names).values().cloned().collect();
            rooms.iter().for_each(|room| room.forsake(self.worker));
        }
    }
}
