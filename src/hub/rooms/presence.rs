//! Who is here, and who is told of it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::publication::Publication;
use crate::executor::panic_text;
use crate::hub::{Hub, SessionId};
use crate::message::Text;
use crate::outbox::SlowPeer;

/// A member of a room, as others see it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Presence {
    /// Which session it is.
    pub session: SessionId,
    /// What it joined with: [`Session::join_as`](crate::Session::join_as).
    pub data: Option<Text>,
    /// When it joined.
    pub since: Instant,
}

/// Somebody has come into a room or left it, or is seen in another way.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PresenceEvent<'a> {
    /// The room's name.
    pub room: &'a str,
    /// Who it is. A session that has left because it ended is in no list any more.
    pub session: SessionId,
    /// What it joined with.
    pub data: Option<Text>,
    /// What has happened.
    pub change: PresenceChange,
    /// How many members there are now.
    pub members: usize,
    /// Counts these events of the room. Where sessions join and leave on several threads, one event may be
    /// published before another that has happened before it: the one with the higher number counts. It
    /// begins anew when the room has been empty.
    pub number: u64,
}

/// What has happened to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PresenceChange {
    /// It has joined.
    Joined,
    /// It has left, or its session has ended.
    Left,
    /// It has joined once more, with other data.
    Changed,
}

/// Says what the others in a room are told when somebody comes or goes; for
/// [`Config::presence`](crate::config::Config::presence).
#[derive(Clone)]
pub struct PresenceHook(Arc<Hook>);

type Hook = dyn Fn(&PresenceEvent<'_>) -> Option<Publication> + Send + Sync;

impl PresenceHook {
    /// Asks `hook` after each join and each leave, on the thread on which it happens; what it returns is
    /// published to the others in the room, unless too much has been published already that no worker has handed
    /// on ([`Limits::published_bytes`](crate::config::Limits::published_bytes); it is counted then,
    /// [`RoomStats::untold`](crate::RoomStats)). It must not block. If it panics nobody is told anything, and
    /// the panic is counted and logged.
    pub fn new(
        hook: impl Fn(&PresenceEvent<'_>) -> Option<Publication> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(hook))
    }

    /// A session leaves while it is dropped, where a panic would end the process.
    pub(super) fn ask(&self, hub: &Hub, event: &PresenceEvent<'_>) -> Option<Publication> {
        match catch_unwind(AssertUnwindSafe(|| (self.0)(event))) {
            Ok(publication) => publication,
            Err(panic) => {
                hub.endings.panicked();
                let (room, text) = (event.room, panic_text(&*panic));
                log::error!("room {room:?}: on_presence panicked: {text}");
                None
            }
        }
    }
}

impl fmt::Debug for PresenceHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresenceHook").finish_non_exhaustive()
    }
}

/// Says what is done in a room with publications for members that do not keep up; for
/// [`Config::room_policy`](crate::config::Config::room_policy).
#[derive(Clone)]
pub struct RoomPolicy(Arc<dyn Fn(&str) -> SlowPeer + Send + Sync>);

impl RoomPolicy {
    /// Asks `policy` for each room, by its name, when its first member joins. It must not block.
    pub fn new(policy: impl Fn(&str) -> SlowPeer + Send + Sync + 'static) -> Self {
        Self(Arc::new(policy))
    }

    pub(super) fn of(&self, room: &str) -> SlowPeer {
        (self.0)(room)
    }
}

impl fmt::Debug for RoomPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoomPolicy").finish_non_exhaustive()
    }
}
