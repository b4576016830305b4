//! What comes from the server.

use super::*;

/// Frames that are taken before others on the same executor get their turn.
const TURN: usize = 64;

/// Reads of a connection that is gone: more than the kernel holds of one by default, also with TLS, which reads as little
/// as 4 KiB at once.
const LAST_READS: usize = 4096;

/// Pings that are answered before an answer has left: a server that sends them and reads nothing gets no further.
const ANSWERS: usize = 64;

impl Link<'_> {
    pub(super) fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), Why> {
        for _ in 0..TURN {
            if !self.deliver(now) || self.owes_answers() {
                return Ok(());
            }
            if !self.read_frame(cx, now, READS)? {
                return Ok(());
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// All that is still there, of a connection that is gone: at most what fits into the kernel's buffers. Messages behind
    /// one for which there is no room are lost with it.
    pub(super) fn read_to_the_end(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Result<(), Why> {
        loop {
            self.gap |= !self.deliver(now);
            if !self.read_frame(cx, now, LAST_READS)? {
                return Ok(());
            }
        }
    }

    /// Whether the next message may be read: none is left for which there is no room.
    fn deliver(&mut self, now: Instant) -> bool {
        let Some(message) = self.held.take() else {
            let paused =
                self.shared.is_overfull() && self.closing.is_none() && self.goodbye.is_none();
            if !std::mem::replace(&mut self.paused, paused) || paused {
                return !paused;
            }
            self.heart.resume(now);
            return true;
        };
        // Who has asked for the end takes what there is room for at once, and waits for nothing.
        let parting = self.closing.is_some() || self.goodbye.is_some();
        if self.shared.has_room() {
            self.shared.received(message);
        } else if parting && !self.mute {
            self.gap = true;
        } else {
            self.held = Some(message);
            self.paused = true;
            return false;
        }
        self.paused = false;
        // The silence was ours.
        self.heart.resume(now);
        true
    }

    /// Whether answers to pings wait, more than anybody needs.
    fn owes_answers(&self) -> bool {
        self.unflushed.as_ref().is_some_and(|unflushed| unflushed.answers >= ANSWERS)
    }

    /// Takes one frame; says whether there was one.
    fn read_frame(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        reads: usize,
    ) -> Result<bool, Why> {
        self.stream.begin_turn(reads);
        let frame = self.with(cx, |machine, stream| machine.read(stream));
        self.heart.heard(now, self.stream.carried().read);
        match frame {
            Ok(Frame::Text(text)) => self.taken(Message::Text(Text::from_utf8_bytes(text))),
            Ok(Frame::Binary(bytes)) => self.taken(Message::Binary(bytes)),
            Ok(Frame::Ping(_)) => {
                // The machine has an answer, which has to leave.
                self.sent(now, Ok(()))?;
                if let Some(unflushed) = &mut self.unflushed {
                    unflushed.answers += 1;
                }
            }
            Ok(Frame::Pong(payload)) => {
                if let Some(rtt) = self.heart.pong(&payload) {
                    self.shared.measured(rtt);
                }
            }
            Ok(Frame::Close(frame)) => self.told_goodbye(now, frame)?,
            Ok(Frame::Frame(_)) => {}
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Err(self.over()),
            Err(error) => return Err(self.broken(cx, now, error)),
        }
        Ok(true)
    }

    fn taken(&mut self, message: Message) {
        if self.goodbye.is_some() || self.gap {
            return;
        }
        if self.shared.has_room() {
            self.shared.received(message);
        } else {
            self.held = Some(message);
        }
    }
}
