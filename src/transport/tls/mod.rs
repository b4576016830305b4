//! TLS over another transport.
//!
//! rustls is driven through its interface without buffers, and not through futures-rustls, for two
//! reasons. Memory: the buffers are the worker's, as everywhere else, so a session that waits holds
//! none; rustls's own buffers would stay with each session. And readiness: what has been decrypted and
//! not yet been read is ours to know, so that an edge of the socket that brought more than one read
//! could take is not slept through.
//!
//! What `poll_write` reports as taken has been taken by the transport below, as the session's books
//! ask for. The ciphertext of what has been accepted and not been reported is kept here; whoever writes
//! comes back with the same bytes.

mod incoming;

use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{AlertDescription, PeerIncompatible, ProtocolVersion, ServerConfig};

use self::incoming::Incoming;
use super::{Parting, Transport};
use crate::executor::{Place, Size, Worker};

/// Plaintext that becomes ciphertext at a time: three records, which fit into a buffer of 64 KiB with
/// their headers. It bounds what a session has in store beside its outbox.
const WRITE_BYTES: usize = 3 * RECORD_BYTES;

/// The largest record's plaintext (RFC 8446 section 5.1).
const RECORD_BYTES: usize = 16 * 1024;

/// What is kept of a message of the handshake that is not whole. It may come in records of one byte,
/// of which each takes six, and rustls keeps all of them until the last. A chain of three certificates
/// with keys of RSA with 4 096 bits has 6 KiB.
const HANDSHAKE_BYTES: usize = 32 * 1024;

/// The same behind the handshake: the largest record of TLS 1.2 (RFC 5246 section 6.2.3), and the little
/// that is said of keys and tickets.
const INCOMPLETE_BYTES: usize = RECORD_BYTES + 4 * 1024;

/// Records that rustls is given at once, and about as many in a turn. One that says nothing but that there
/// is a new key costs 2 µs and more, and one with a single byte nearly one, so that a read might cost
/// what a thousand reads of a socket cost.
const RECORDS_PER_TURN: usize = 128;

/// What rustls has to say of itself (tickets, a new key) goes out with the next plaintext up to here.
const PRECEDING_BYTES: usize = 2 * 1024;

/// What a record adds at most with the ciphers we have: header 5, type 1, tag 16, and in TLS 1.2 the
/// explicit nonce 8.
const RECORD_OVERHEAD: usize = 32;

/// What an alert is in (RFC 8446 section 5.1).
const ALERT_RECORD: u8 = 21;

/// The level of an alert that ends the connection (RFC 8446 section 6).
const FATAL: u8 = 2;

/// How the stream of the peer has ended.
enum End {
    Not,
    /// With a close_notify (RFC 8446 section 6.1).
    Notified,
    /// Without one: it may have been cut by anybody.
    Cut,
    /// The peer does not speak TLS, or not as we do. Given out once.
    Failed(Option<io::Error>),
}

/// The server's side of a TLS connection.
pub(crate) struct Tls {
    inner: Transport,
    worker: Rc<Worker>,
    machine: UnbufferedServerConnection,
    incoming: Incoming,
    /// What has been decrypted and not been read, from `plain_start` on. There is some only if the
    /// reader had less room than a record has bytes.
    plain: Vec<u8>,
    plain_start: usize,
    /// Ciphertext for the peer, from `unsent` on.
    outgoing: Vec<u8>,
    unsent: usize,
    /// Bytes that have left since plaintext was encrypted.
    left: usize,
    /// What is before that in `outgoing`, of rustls itself.
    preceding: usize,
    /// Plaintext in `outgoing`, and how much of it has been reported as written.
    accepted: usize,
    reported: usize,
    end: End,
    closing: Closing,
    /// Records that rustls is given at once.
    window: usize,
    /// Something has come since somebody asked.
    heard: bool,
    /// Records that it has been given in this turn.
    turn: u32,
    records: usize,
}

/// How far our own end of the stream is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// The close_notify is in `outgoing`; behind it the transport below is to be closed, too.
    Notified,
    Closed,
}

impl Tls {
    /// A connection of which `received` has been read.
    pub(crate) fn new(
        worker: &Rc<Worker>,
        inner: Transport,
        config: Arc<ServerConfig>,
        received: Vec<u8>,
    ) -> Result<Self, rustls::Error> {
        Ok(Self {
            inner,
            worker: Rc::clone(worker),
            machine: UnbufferedServerConnection::new(config)?,
            incoming: Incoming::new(received),
            plain: Vec::new(),
            plain_start: 0,
            outgoing: Vec::new(),
            unsent: 0,
            left: 0,
            preceding: 0,
            accepted: 0,
            reported: 0,
            end: End::Not,
            closing: Closing::No,
            // A handshake has a budget of another kind, and is not whole before its last record.
            window: usize::MAX,
            heard: false,
            turn: 0,
            records: 0,
        })
    }

    /// Whether TLS itself has failed, and not the transport below. The peer may have been sent an alert
    /// that says why.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.end, End::Failed(_))
    }

    /// What rustls knows of the connection.
    pub(crate) fn state(&self) -> &rustls::CommonState {
        &self.machine
    }

    /// Ready when both sides have agreed.
    ///
    /// A handshake costs as much as thousands of messages: those that come at the same time take turns
    /// with the open sessions. `place` is this one's place among them, at first none.
    pub(crate) fn poll_handshake(
        &mut self,
        cx: &mut Context<'_>,
        place: &mut Option<Place>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.incoming.is_unfed() {
                if !self.worker.may_compute(place) {
                    return Poll::Pending;
                }
                let worker = Rc::clone(&self.worker);
                worker.compute(|| self.digest(None));
            }
            match &mut self.end {
                End::Not => {}
                End::Failed(_) => {
                    // The peer shall know why, as far as that takes no waiting.
                    let _ = self.flush(cx);
                    return Poll::Ready(Err(self.failure()));
                }
                End::Notified | End::Cut => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            if !self.machine.is_handshaking() {
                // Tickets leave with the answer to the request, if that is here already. With TLS 1.2 it is
                // more than that, and the client may wait for it (RFC 7918).
                if self.machine.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
                    let _ = self.flush(cx);
                }
                self.window = RECORDS_PER_TURN;
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(Err(error)) = self.flush(cx) {
                return Poll::Ready(Err(error));
            }
            ready!(self.fill(cx, RECORD_BYTES, HANDSHAKE_BYTES))?;
        }
    }

    pub(super) fn parting(&mut self, cx: &mut Context<'_>) -> Parting {
        self.inner.parting(cx)
    }

    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let decrypted = self.plain_start < self.plain.len();
        if decrypted || self.incoming.is_unfed() || !matches!(self.end, End::Not) {
            return Poll::Ready(());
        }
        ready!(self.poll_inner_readable(cx));
        Poll::Ready(())
    }

    fn poll_inner_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let polled = self.inner.poll_readable(cx);
        if polled.is_pending() {
            self.before_waiting(cx);
        }
        polled
    }

    /// What rustls has to say of itself goes with the next message, but waits for none.
    fn before_waiting(&mut self, cx: &mut Context<'_>) {
        if self.unsent < self.outgoing.len() {
            // It fails when the peer is gone, which the next read tells.
            let _ = self.flush(cx);
        }
        self.give_buffers_back();
    }

    /// Whether anything has come from the peer since this was last asked: on a slow line a record takes
    /// long, and nothing of it can be read before its end.
    pub(super) fn take_heard(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }

    pub(super) fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !matches!(self.end, End::Not) {
            return Poll::Ready(());
        }
        self.inner.poll_unread(cx)
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        let before = buffer.len();
        loop {
            self.read_plain(buffer);
            if buffer.len() > before {
                self.heard = false;
                return Poll::Ready(Ok(buffer.len() - before));
            }
            match &mut self.end {
                // Whoever has said goodbye wants the end of the stream only: rustls would have to answer
                // what cannot be decrypted, and must say nothing more. The same once a failure has been
                // told: closing a socket with unread input would destroy the alert that says why.
                End::Not | End::Failed(None) if self.closing != Closing::No => {
                    let _ = self.flush(cx);
                    let polled = self.inner.poll_read(cx, buffer);
                    // What is not decrypted is never taken for plaintext, whoever asks.
                    buffer.truncate(before);
                    return polled;
                }
                End::Not => {}
                End::Notified => return Poll::Ready(Ok(0)),
                End::Cut => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                End::Failed(_) => {
                    let _ = self.flush(cx);
                    return Poll::Ready(Err(self.failure()));
                }
            }
            if self.has_had_its_turn() {
                return Poll::Pending;
            }
            if !self.incoming.is_unfed() {
                ready!(self.fill(cx, buffer.capacity() - before, INCOMPLETE_BYTES))?;
            }
            self.digest(Some(buffer));
            // The reader may come back late.
            self.give_buffers_back();
        }
    }

    /// Lets others have theirs, if it has had so many records.
    fn has_had_its_turn(&mut self) -> bool {
        if self.turn != self.worker.turn() {
            self.turn = self.worker.turn();
            self.records = 0;
        }
        let enough = self.records >= RECORDS_PER_TURN;
        if enough {
            self.worker.yield_turn();
        }
        enough
    }

    /// Moves what there was no room for into the buffer.
    fn read_plain(&mut self, buffer: &mut Vec<u8>) {
        if self.plain.is_empty() {
            return;
        }
        let rest = &self.plain[self.plain_start..];
        let count = rest.len().min(buffer.capacity() - buffer.len());
        buffer.extend_from_slice(&rest[..count]);
        self.plain_start += count;
        if self.plain_start == self.plain.len() {
            self.plain = Vec::new();
            self.plain_start = 0;
        }
    }

    /// Reads ciphertext once: about as much as makes `room` bytes of plaintext, so that little is left
    /// over. No more than `most` is kept of what is not whole.
    fn fill(&mut self, cx: &mut Context<'_>, room: usize, most: usize) -> Poll<io::Result<()>> {
        let held = self.incoming.held();
        if held > most {
            self.fail(rustls::Error::General("a message of the handshake is too long".into()));
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_inner_readable(cx));
        let size = Size::holding(room.max(held + 1));
        if self.incoming.bytes.capacity() < size.bytes() {
            let larger = self.worker.pool().take(size);
            self.worker.pool().give(self.incoming.move_into(larger));
        } else {
            self.incoming.compact();
        }
        match self.inner.poll_read(cx, &mut self.incoming.bytes) {
            Poll::Pending => {
                self.before_waiting(cx);
                Poll::Pending
            }
            Poll::Ready(Ok(0)) => {
                self.end = End::Cut;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Ok(_)) => {
                self.heard = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }

    /// Lets rustls handle what has come in, as many records as it is given at once. What is decrypted goes
    /// to `reader`, as far as it has room.
    fn digest(&mut self, reader: Option<&mut Vec<u8>>) {
        if matches!(self.end, End::Failed(_)) {
            return;
        }
        self.records += self.incoming.feed(self.window);
        self.process(reader, None);
    }

    /// Lets rustls handle what it has been given, and then encrypts `plaintext`.
    fn process(&mut self, mut reader: Option<&mut Vec<u8>>, mut plaintext: Option<&[u8]>) {
        loop {
            let UnbufferedStatus { mut discard, state, .. } =
                self.machine.process_tls_records(self.incoming.given());
            let mut done = false;
            let mut failed = None;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = match record {
                            Ok(record) => record,
                            Err(error) => {
                                failed = Some(error);
                                break;
                            }
                        };
                        discard += record.discard;
                        let mut payload = record.payload;
                        // Behind what could not be read yet nothing may be read.
                        if let Some(buffer) = reader.as_mut().filter(|_| self.plain.is_empty()) {
                            let room = buffer.capacity() - buffer.len();
                            let (fits, rest) = payload.split_at(payload.len().min(room));
                            buffer.extend_from_slice(fits);
                            payload = rest;
                        }
                        self.plain.extend_from_slice(payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    let pool = self.worker.pool();
                    if self.outgoing.capacity() == 0 {
                        self.outgoing = pool.take(Size::default());
                    }
                    append(&mut self.outgoing, RECORD_BYTES / 16, |room| match data.encode(room) {
                        Ok(count) => Ok(count),
                        Err(EncodeError::InsufficientSize(it)) => Err(Some(it.required_size)),
                        Err(EncodeError::AlreadyEncoded) => Err(None),
                    });
                }
                // The order is kept by `outgoing`, which is sent as soon as that is possible.
                Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
                Ok(ConnectionState::PeerClosed) => self.end = End::Notified,
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    done = true;
                    if let Some(plaintext) = plaintext.take() {
                        let records = plaintext.len() / RECORD_BYTES + 1;
                        let most = plaintext.len() + records * RECORD_OVERHEAD;
                        if self.outgoing.capacity() == 0 {
                            self.outgoing = self.worker.pool().take(Size::holding(most));
                        }
                        let encrypted = append(&mut self.outgoing, most, |room| {
                            match traffic.encrypt(plaintext, room) {
                                Ok(count) => Ok(count),
                                Err(EncryptError::InsufficientSize(it)) => {
                                    Err(Some(it.required_size))
                                }
                                Err(EncryptError::EncryptExhausted) => Err(None),
                            }
                        });
                        if encrypted {
                            self.accepted = plaintext.len();
                        }
                    }
                }
                // Early data is not offered, so there is none.
                Ok(_) => done = true,
                Err(error) => failed = Some(error),
            }
            self.incoming.start += discard;
            if let Some(error) = failed {
                return self.fail(error);
            }
            if done {
                return;
            }
        }
    }

    /// The connection is over; the peer is told why by an alert. rustls is not asked anything after this.
    #[cold]
    fn fail(&mut self, error: rustls::Error) {
        let alert = self.right_alert(&error);
        let before = self.outgoing.len();
        // Only what rustls wants to say: if it came to look at the same record again, it would find the
        // second reason for an alert, and it takes two to be a bug of its own.
        while self.machine.wants_write() {
            let status = self.machine.process_tls_records(self.incoming.given());
            let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state else {
                break;
            };
            append(&mut self.outgoing, 64, |room| match data.encode(room) {
                Ok(count) => Ok(count),
                Err(EncodeError::InsufficientSize(it)) => Err(Some(it.required_size)),
                Err(EncodeError::AlreadyEncoded) => Err(None),
            });
        }
        match (alert, self.outgoing.get_mut(before..)) {
            (Some(alert), Some([ALERT_RECORD, _, _, 0, 2, _, description])) => {
                *description = alert.into();
            }
            // rustls says nothing of some messages that cannot be read: "MUST", RFC 8446 section 6.
            (_, Some([])) if self.machine.protocol_version().is_none() => {
                let alert = match error {
                    rustls::Error::AlertReceived(_) => None,
                    rustls::Error::InvalidMessage(_) | rustls::Error::General(_) => {
                        Some(AlertDescription::DecodeError)
                    }
                    rustls::Error::PeerMisbehaved(_) => Some(AlertDescription::UnexpectedMessage),
                    _ => Some(AlertDescription::InternalError),
                };
                if let Some(alert) = alert {
                    self.outgoing.extend([ALERT_RECORD, 3, 3, 0, 2, FATAL, alert.into()]);
                }
            }
            _ => {}
        }
        let kind = match error {
            rustls::Error::AlertReceived(_) => io::ErrorKind::ConnectionAborted,
            _ => io::ErrorKind::InvalidData,
        };
        self.end = End::Failed(Some(io::Error::new(kind, error)));
        // Nobody looks at it any more.
        self.worker.pool().give(std::mem::take(&mut self.incoming).bytes);
        // An alert that is fatal is the end of our stream, too (RFC 8446 section 6.2).
        self.closing = Closing::Notified;
    }

    /// Which alert the RFCs ask for where rustls sends another, before anything is encrypted.
    fn right_alert(&self, error: &rustls::Error) -> Option<AlertDescription> {
        match error {
            // rustls misses signature_algorithms, which clients older than TLS 1.2 do not send, before it
            // looks at the version: "MUST", RFC 5246 appendix E.1 and RFC 8996 section 5.
            rustls::Error::PeerIncompatible(
                PeerIncompatible::SignatureAlgorithmsExtensionRequired,
            ) if matches!(*self.incoming.bytes, [_, _, _, _, _, _, _, _, _, 3, 0..=2, ..]) => {
                Some(AlertDescription::ProtocolVersion)
            }
            // TLS 1.2 has no certificate_required (RFC 5246 section 7.4.6).
            rustls::Error::NoCertificatesPresented
                if self.machine.protocol_version() == Some(ProtocolVersion::TLSv1_2) =>
            {
                Some(AlertDescription::HandshakeFailure)
            }
            _ => None,
        }
    }

    /// Why it has failed, the first time; afterwards that it has.
    #[cold]
    fn failure(&mut self) -> io::Error {
        let error = match &mut self.end {
            End::Failed(error) => error.take(),
            _ => None,
        };
        error.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.accepted == 0 {
            if self.outgoing.len() - self.unsent > PRECEDING_BYTES {
                ready!(self.flush(cx))?;
            }
            self.encrypt(slices)?;
        }
        match self.flush(cx) {
            Poll::Ready(Ok(())) => {
                let rest = self.accepted - self.reported;
                (self.accepted, self.reported) = (0, 0);
                Poll::Ready(Ok(rest))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                // So that a slow peer is not taken for a stalled one. The last byte is not reported
                // before the last record has left.
                let gone = self.left.saturating_sub(self.preceding);
                let gone = gone.min(self.accepted.saturating_sub(1));
                if gone <= self.reported {
                    return Poll::Pending;
                }
                let more = gone - self.reported;
                self.reported = gone;
                Poll::Ready(Ok(more))
            }
        }
    }

    /// Encrypts the beginning of `slices`.
    fn encrypt(&mut self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        if !matches!(self.closing, Closing::No) || matches!(self.end, End::Failed(_)) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        (self.left, self.preceding) = (0, self.outgoing.len() - self.unsent);
        let all: usize = slices.iter().map(|slice| slice.len()).sum();
        let most = all.min(WRITE_BYTES);
        match slices {
            [one] => self.process(None, Some(&one[..most])),
            many => {
                // A header and its payload are worth one record, not two.
                let mut gathered = self.worker.pool().take(Size::holding(most));
                for slice in many {
                    let room = most - gathered.len();
                    gathered.extend_from_slice(&slice[..slice.len().min(room)]);
                }
                self.process(None, Some(&gathered));
                self.worker.pool().give(gathered);
            }
        }
        match &self.end {
            End::Failed(_) => Err(self.failure()),
            // With TLS 1.2 the keys have been used as often as they may (RFC 5246 has no other way than a
            // new connection; with TLS 1.3 they are renewed).
            _ if self.accepted == 0 && most > 0 => Err(io::ErrorKind::QuotaExceeded.into()),
            _ => Ok(()),
        }
    }

    /// Sends what is encrypted.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.unsent < self.outgoing.len() {
            let rest = IoSlice::new(&self.outgoing[self.unsent..]);
            let count = ready!(self.inner.poll_write(cx, &[rest]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent += count;
            self.left += count;
        }
        self.unsent = 0;
        self.worker.pool().give(std::mem::take(&mut self.outgoing));
        if self.closing == Closing::Notified {
            self.closing = Closing::Closed;
            self.inner.close_write(cx);
        }
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more comes from us (RFC 8446 section 6.1), as soon as what is on its way has
    /// left.
    fn notify(&mut self) {
        if self.closing != Closing::No {
            return;
        }
        self.closing = Closing::Notified;
        if matches!(self.end, End::Failed(_)) || self.machine.is_handshaking() {
            return;
        }
        let status = self.machine.process_tls_records(self.incoming.given());
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state {
            append(&mut self.outgoing, 64, |room| match traffic.queue_close_notify(room) {
                Ok(count) => Ok(count),
                Err(EncryptError::InsufficientSize(it)) => Err(Some(it.required_size)),
                Err(EncryptError::EncryptExhausted) => Err(None),
            });
        }
    }

    pub(super) fn close_write(&mut self, cx: &mut Context<'_>) {
        self.notify();
        // What cannot be sent now is sent when the peer takes it; the reader comes by.
        let _ = self.flush(cx);
    }

    /// Before waiting: what is left of the buffers is worth little.
    fn give_buffers_back(&mut self) {
        let pool = self.worker.pool();
        let held = self.incoming.held();
        if held == 0 {
            pool.give(std::mem::take(&mut self.incoming).bytes);
        } else if held < self.incoming.bytes.capacity() / 2 {
            pool.give(self.incoming.move_into(Vec::with_capacity(held)));
        }
        if self.outgoing.len() - self.unsent < self.outgoing.capacity() / 2 {
            let rest = self.outgoing[self.unsent..].to_vec();
            pool.give(std::mem::replace(&mut self.outgoing, rest));
            self.unsent = 0;
        }
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        // Behind half a message the end could not be understood. And it may be the stream below that panics:
        // a second panic would end the process.
        if !std::thread::panicking() && self.accepted == 0 {
            self.notify();
            // The socket is closed anyway.
            self.closing = Closing::Closed;
            let _ = self.flush(&mut Context::from_waker(Waker::noop()));
        }
        let pool = self.worker.pool();
        pool.give(std::mem::take(&mut self.incoming).bytes);
        pool.give(std::mem::take(&mut self.outgoing));
    }
}

/// Appends what `encode` writes, which needs `guess` bytes or says how many. False if it cannot be.
fn append(
    outgoing: &mut Vec<u8>,
    guess: usize,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> bool {
    let before = outgoing.len();
    let mut room = guess;
    loop {
        outgoing.resize(before + room, 0);
        match encode(&mut outgoing[before..]) {
            Ok(count) => {
                outgoing.truncate(before + count);
                return true;
            }
            Err(Some(required)) if required > room => room = required,
            Err(_) => {
                outgoing.truncate(before);
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests;
