//! How a session of length-prefixed frames ends. It has no close frame: the end of a stream, behind a whole
//! frame, is how either side says goodbye.

use std::task::Context;

use super::ending::Then;
use super::{Link, Stage};
use crate::protocol::Protocol;
use crate::session::{Cause, Side};

impl Link {
    pub(super) fn is_framed(&self) -> bool {
        self.session.member().protocol() == Protocol::Frames
    }

    /// The kernel has everything: so says a close frame that there is not.
    ///
    /// If the peer has not ended its stream, that is awaited, for what it still sends would otherwise make
    /// closing a reset, and destroy what is on its way to it.
    pub(super) fn farewell_sent(&mut self, cx: &mut Context<'_>) {
        let Some(ending) = &mut self.ending else {
            return;
        };
        // A peer that broke the protocol has not said anything by its end.
        ending.clean = ending.peer_closed && ending.then != Then::Linger;
        match ending.then {
            Then::FinishAnyway => self.finish(),
            _ if ending.peer_closed => {
                let unread = match &mut self.transport {
                    Some(transport) => transport.poll_unread(cx).is_ready(),
                    None => false,
                };
                if unread { self.linger(cx) } else { self.finish() }
            }
            Then::AwaitPeer | Then::Finish | Then::Linger => self.linger(cx),
        }
    }

    /// No callback is under way any more: whoever wanted to answer has.
    #[cold]
    pub(super) fn answered(&mut self) {
        if let Some(ending) = self.ending.as_mut().filter(|ending| ending.answering) {
            ending.answering = false;
            self.session.member().outbox.close();
        }
    }

    pub(super) fn is_answering(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| ending.answering)
    }

    /// The peer has ended its stream in good order. Between two frames that is its goodbye; but unlike a
    /// close frame it does not say that nothing is expected any more: who has sent everything, and reads on,
    /// waits for the answer.
    pub(super) fn stream_ended(&mut self) {
        if self.stage == Stage::Lingering {
            // Ours has ended before.
            if let Some(ending) = &mut self.ending {
                ending.clean |= ending.then == Then::AwaitPeer;
            }
            self.finish();
        } else if self.codec.is_between_messages() {
            self.peer_closes(None);
        } else {
            self.end_now(Side::Peer, Cause::Truncated, None);
        }
    }
}
