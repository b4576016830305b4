//! What is due by the clock: pings and their answers, what the server does not take, the closing handshake.

use bytes::Bytes;

use super::*;

/// Whether the server is there.
pub(super) struct Heart {
    /// When it was last heard of, and how much had been read by then.
    heard: (Instant, u64),
    ping: Option<Ping>,
    pings: u64,
}

/// A ping that has not been answered.
struct Ping {
    payload: u64,
    sent: Instant,
    /// From when on its answer is waited for: since it has left, and since somebody reads.
    from: Instant,
    /// It has not left.
    waits: bool,
    /// Nobody has read for a while, so that how long its answer took says nothing.
    delayed: bool,
}

impl Heart {
    pub(super) fn new(now: Instant, read: u64) -> Self {
        Self { heard: (now, read), ping: None, pings: 0 }
    }

    /// So much has been read by now.
    pub(super) fn heard(&mut self, now: Instant, read: u64) {
        if self.heard.1 != read {
            self.heard = (now, read);
        }
    }

    /// It is read again: the silence was ours.
    pub(super) fn resume(&mut self, now: Instant) {
        self.heard.0 = now;
        if let Some(ping) = &mut self.ping {
            (ping.from, ping.delayed) = (now, true);
        }
    }

    /// Everything that was to be sent has left. If the socket had been full, the server has taken some of it: that is a
    /// sign of life, too.
    pub(super) fn flushed(&mut self, now: Instant, full: bool) {
        if let Some(ping) = &mut self.ping {
            if std::mem::take(&mut ping.waits) || full {
                ping.from = now;
            }
        }
    }

    /// An answer; returns how long it took, if that says something.
    pub(super) fn pong(&mut self, payload: &[u8]) -> Option<Duration> {
        let answered = |ping: &mut Ping| payload == ping.payload.to_be_bytes();
        let ping = self.ping.take_if(answered)?;
        (!ping.delayed).then(|| ping.sent.elapsed())
    }

    /// When something has to be done about it, and what.
    fn next(&self, every: Duration, pong: Duration) -> Option<(Instant, Beat)> {
        match &self.ping {
            Some(Ping { waits: true, .. }) => None,
            Some(Ping { from, .. }) if self.heard.0 <= *from => Some((*from + pong, Beat::Missed)),
            _ => Some((self.heard.0 + every, Beat::Ping)),
        }
    }
}

enum Beat {
    Ping,
    Missed,
}

impl Link<'_> {
    /// What is due; and the timer for what is due next.
    pub(super) fn wait(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), Why> {
        loop {
            let mut next = None;
            let mut due = |at: Instant| {
                next = Some(next.map_or(at, |next: Instant| next.min(at)));
                now >= at
            };
            if let Some(unflushed) = &self.unflushed {
                if due(unflushed.since + self.limits.write_stall) {
                    return Err(match &self.goodbye {
                        Some(_) => self.over(),
                        None => Why::WriteStalled,
                    });
                }
            }
            let until = match &self.goodbye {
                Some(parting) => Some(parting.until),
                // However much still waits.
                None => self.closing.map(|since| since + self.limits.close),
            };
            if until.is_some_and(&mut due) {
                return Err(self.over());
            }
            // While nobody takes what comes, silence says nothing.
            // While the socket is full, whether the server lives is the write stall's business.
            let full = self.unflushed.as_ref().is_some_and(|unflushed| unflushed.full);
            let beats = self.goodbye.is_none() && !self.paused && !full;
            if let (true, Some(every)) = (beats, self.limits.ping) {
                match self.heart.next(every, self.limits.pong) {
                    Some((at, Beat::Missed)) if due(at) => return Err(Why::PongTimeout),
                    Some((at, Beat::Ping)) if due(at) => {
                        self.send_ping(cx, now)?;
                        continue;
                    }
                    _ => {}
                }
            }
            let Some(next) = next else {
                return Ok(());
            };
            // One that is too early is looked at again; nothing is set for every message.
            if self.armed.is_none_or(|armed| armed > next) {
                self.timer.set_at(next);
                self.armed = Some(next);
            }
            if Pin::new(&mut self.timer).poll(cx).is_pending() {
                return Ok(());
            }
            self.armed = None;
            if Instant::now() >= next {
                cx.waker().wake_by_ref();
                return Ok(());
            }
        }
    }

    fn send_ping(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), Why> {
        self.heart.pings += 1;
        let payload = self.heart.pings;
        self.heart.heard.0 = now;
        self.heart.ping = Some(Ping { payload, sent: now, from: now, waits: true, delayed: false });
        let bytes = Bytes::copy_from_slice(&payload.to_be_bytes());
        self.hand_over(cx, now, Frame::Ping(bytes))?;
        self.flush(cx, now).map(drop)
    }
}
