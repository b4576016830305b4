//! How a worker hands on what was published: one task, which has its turn when those who publish have had
//! theirs. What a room was sent in the meantime becomes one run of frames, made once; each member that is
//! not behind gets it in one piece.

use std::cell::OnceCell;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_lite::future;

use super::publication::{Item, Publication};
use super::room::{Room, Seats};
use super::{Counts, Index, lock};
use crate::executor::{Worker, panic_text};
use crate::hub::{Hub, Member, SessionId};
use crate::message::CloseCode;
use crate::outbox::{Encoded, Fate, Form, KEPT_SMALL, Published, RAW_BATCH, Request, Shape, Terms};
use crate::ws::{CloseFrame, Header};

/// Members that are handed something before they have their turn to send it: their batches are in use at
/// the same time. And publications that are handed to one of them by one.
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

impl Delivery {
    /// It is over.
    fn discard(self) -> Arc<Room> {
        if let Crowd::Everyone(members) = self.crowd {
            members.into_iter().for_each(discard);
        }
        self.run.items.into_iter().for_each(discard);
        self.run.runs.into_iter().for_each(discard);
        self.room
    }
}

/// What may still be handed on before the members have their turn.
struct Turn {
    /// Members, or publications where they are handed on one by one.
    steps: usize,
    /// Publications and bytes to one and the same member.
    messages: usize,
    bytes: usize,
    /// Nothing has been handed on yet.
    fresh: bool,
}

impl Turn {
    /// Whether a run is not too much for a member that gets it beside what it got before in this turn.
    fn takes(&mut self, run: &Run) -> bool {
        // The first one is, however large it is.
        let fits = std::mem::take(&mut self.fresh)
            || (run.items.len() <= self.messages && run.bytes <= self.bytes);
        self.messages = self.messages.saturating_sub(run.items.len());
        self.bytes = self.bytes.saturating_sub(run.bytes);
        fits
    }
}

/// What a room was sent during one turn.
pub(super) struct Run {
    items: Vec<(u64, Arc<Item>)>,
    /// Of their payload.
    bytes: usize,
    /// Those who do not get all of it, sorted.
    excepted: Vec<SessionId>,
    /// The frames of all items in a row, for each shape that somebody needs.
    runs: [OnceCell<Option<Encoded>>; Shape::COUNT],
}

impl Run {
    fn new(items: Vec<(u64, Arc<Item>)>) -> Self {
        let mut excepted: Vec<_> = items.iter().filter_map(|(_, item)| item.except).collect();
        excepted.sort_unstable();
        let bytes = items.iter().map(|(_, item)| item.len()).sum();
        Self { items, bytes, excepted, runs: Default::default() }
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
            Some(Encoded { frame, messages: self.items.len(), payload: self.bytes })
        });
        run.as_ref()
    }
}

impl Hub {
    /// Hands on what is published to the members that live on this worker, until the server stops: then once
    /// more, as much as a member has room for, and nothing after that.
    pub(crate) async fn deliver(self: Arc<Self>, home: Rc<Worker>) {
        let worker = home.index() as u16;
        let posts = &self.rooms.posts;
        let _closing = Closing { index: &self.rooms, worker };
        let mut waiting: VecDeque<Arc<Room>> = VecDeque::new();
        let mut under_way: VecDeque<Delivery> = VecDeque::new();
        let mut behind = Vec::new();
        loop {
            if under_way.is_empty() && waiting.is_empty() {
                future::or(posts.take(worker, &mut waiting), self.shutdown.stopping()).await;
            }
            // The sessions are about to close.
            let stopping = self.shutdown.is_stopping();
            posts.take_now(worker, &mut waiting);
            under_way.extend(waiting.drain(..).filter_map(|room| self.begin(worker, room)));
            let mut turn = self.turn();
            if stopping {
                turn.steps = usize::MAX;
            }
            while let Some(mut delivery) = under_way.pop_front() {
                let fits = turn.takes(&delivery.run) && turn.steps > 0;
                if !fits && !stopping {
                    under_way.push_front(delivery);
                    break;
                }
                // What is handed on may be the application's, and panic when it is dropped: that costs
                // this run, and no other.
                let handed = catch_unwind(AssertUnwindSafe(|| {
                    self.go_on(&home, &mut delivery, &mut turn, &mut behind)
                }));
                let over = handed.unwrap_or_else(|panic| {
                    self.endings.panicked();
                    log::error!("room {:?}: {}", delivery.room.name, panic_text(&*panic));
                    true
                });
                if over {
                    // The next run in the next turn: this one has to be sent first.
                    waiting.push_back(delivery.discard());
                } else {
                    // Behind the other rooms.
                    under_way.push_back(delivery);
                }
            }
            self.heed_budget();
            // Behind this the members close: a second portion would reach nobody.
            if stopping {
                return;
            }
            yield_to_members(&home).await;
        }
    }

    /// Half of what may wait for one peer: whoever is not behind has room for that.
    fn turn(&self) -> Turn {
        let limits = &self.config.limits;
        let messages = (limits.outbox_messages / 2).max(1);
        Turn { steps: MEMBERS_PER_TURN, messages, bytes: limits.outbox_bytes / 2, fresh: true }
    }

    fn begin(&self, worker: u16, room: Arc<Room>) -> Option<Delivery> {
        let Turn { messages, mut bytes, .. } = self.turn();
        if self.config.deflate_threshold() < usize::MAX {
            bytes = bytes.min(RAW_BATCH);
        }
        let share = room.take(worker, messages, bytes)?;
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

    /// Hands a run to the next members. Whether it was the last of them. `behind` is memory for those who do
    /// not get it in one piece.
    fn go_on(
        &self,
        home: &Worker,
        delivery: &mut Delivery,
        turn: &mut Turn,
        behind: &mut Vec<(Arc<Member>, u64)>,
    ) -> bool {
        let Delivery { room, run, crowd, at } = delivery;
        let mut steps = 0;
        let mut whole = 0;
        let mut hand = |member: &Arc<Member>, from| {
            steps += 1;
            if self.hand_whole(home, run, member, from) {
                whole += 1;
            } else {
                behind.push((Arc::clone(member), from));
            }
        };
        let over = match crowd {
            Crowd::Everyone(members) => {
                let end = members.len().min(at.saturating_add(turn.steps));
                members[*at..end].iter().for_each(|member| hand(member, 0));
                *at = end;
                end == members.len()
            }
            Crowd::Seats(seats) => {
                let seats = seats.lock();
                let end = seats.capacity().min(at.saturating_add(turn.steps));
                let some = (*at..end).filter_map(|seat| seats.get(seat));
                some.for_each(|seat| hand(&seat.member, seat.from));
                *at = end;
                end == seats.capacity()
            }
        };
        let mut delivered = whole * run.items.len();
        // Not under the lock of the seats: a session that is ended, and what is dropped, may run anything.
        for (member, from) in behind.drain(..) {
            steps += self.hand_singly(room, run, &member, from, &mut delivered);
        }
        Counts::add(&self.rooms.counts.delivered, u32::try_from(delivered).unwrap_or(u32::MAX));
        turn.steps = turn.steps.saturating_sub(steps);
        over
    }

    /// Hands a run to a member in one piece. False if it is behind, or does not get all of it.
    fn hand_whole(&self, home: &Worker, run: &Run, member: &Member, from: u64) -> bool {
        let first = run.items.first().map_or(0, |(number, _)| *number);
        if from > first || run.excepted.binary_search(&member.id).is_ok() {
            return false;
        }
        let Some(encoded) = run.in_shape(member.shape()) else {
            return false;
        };
        let pushed = member.outbox.try_push_run(encoded, &self.terms);
        pushed.map(|driver| home.wake(driver)).is_ok()
    }

    /// Hands what is for a member of a run to it, one by one. Returns how many those were, and adds those that
    /// were queued to `delivered`.
    fn hand_singly(
        &self,
        room: &Room,
        run: &Run,
        member: &Member,
        from: u64,
        delivered: &mut usize,
    ) -> usize {
        let named = Some(room).filter(|room| !room.name.is_empty());
        let mut steps = 0;
        for (number, item) in &run.items {
            if *number >= from && item.except != Some(member.id) {
                *delivered += usize::from(self.hand_one(member, named, &item.publication));
                steps += 1;
            }
        }
        steps
    }

    /// Hands a publication to one session, by the policy of the room or of the session. Whether it was queued.
    pub(super) fn hand_one(
        &self,
        member: &Member,
        room: Option<&Room>,
        publication: &Publication,
    ) -> bool {
        let Publication { prepared, key } = publication;
        let message = prepared.message();
        if !Header::fits(member.protocol(), message.len()) {
            let close = CloseFrame::new(CloseCode::TOO_BIG, "message too big for a frame");
            member.outbox.request(Request::Close(close));
            return false;
        }
        let published = Published {
            form: match prepared.frame(member.shape()) {
                Some(frame) => Form::Encoded(frame.clone()),
                None => Form::Raw(message.clone()),
            },
            len: message.len(),
            key: key.clone(),
            room: room.map(|room| room.name.clone()),
            policy: room.map_or(self.config.slow_peer, |room| room.policy),
        };
        let counts = &self.rooms.counts;
        match member.outbox.publish(published, &self.terms) {
            Fate::Queued { dropped, conflated } => {
                Counts::add(&counts.dropped, dropped);
                Counts::add(&counts.conflated, conflated);
                return true;
            }
            Fate::Dropped => Counts::add(&counts.dropped, 1),
            Fate::TooSlow => Counts::add(&counts.too_slow, 1),
            Fate::Closed => {}
        }
        false
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
        // With some air, so that not every message has to look for the largest again.
        let enough = self.terms.budget() / 8 * 7;
        // First what costs nobody a session.
        #[cfg(feature = "fallback")]
        if let Some(desk) = &self.desk {
            desk.relieve(&self.terms, enough);
            if self.terms.used() <= enough {
                return;
            }
        }
        let kept = self.kept();
        let counted = |it: &Arc<Member>| {
            let outbox = Terms::counted(it.outbox.buffered()).unwrap_or_default();
            outbox + kept.get(&it.id.as_u64()).copied().unwrap_or_default()
        };
        let members = self.members().into_iter().map(|it| (counted(&it), it));
        let mut members: Vec<_> = members.filter(|(bytes, _)| *bytes > 0).collect();
        members.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        for (bytes, member) in members {
            if self.terms.used() <= enough {
                return;
            }
            #[cfg(feature = "fallback")]
            if let Some(desk) =
                self.desk.as_ref().filter(|_| kept.contains_key(&member.id.as_u64()))
            {
                desk.end_over_budget(member.id);
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

impl Hub {
    /// What is kept for clients that come with requests.
    #[cfg_attr(not(feature = "fallback"), expect(clippy::unused_self, reason = "the feature does"))]
    fn kept(&self) -> HashMap<u64, usize> {
        #[cfg(feature = "fallback")]
        if let Some(desk) = &self.desk {
            return desk.kept();
        }
        HashMap::new()
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

/// What it holds may be the application's, and panic when it is dropped.
pub(super) fn discard<T>(value: T) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        log::error!("what was published panicked when it was dropped: {}", panic_text(&*panic));
    }
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
