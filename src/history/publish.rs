//! Publishing: an id, the members, the store, in this order for everybody.

use std::cell::Cell;
use std::sync::Arc;

use super::book::Book;
use super::errors::{PublishError, StoreError};
use super::receipt::{Receipt, Slot, Stored};
use super::value::{Entry, now};
use super::{History, MAX_ID};
use crate::hub::{NAME_BYTES, Publication};

thread_local! {
    /// A message is being made on this thread, under a room's lock.
    static MAKING: Cell<bool> = const { Cell::new(false) };
}

/// As long as there is one, nothing else can be published with history on this thread: it would wait for itself.
pub(super) struct Making(());

impl Making {
    pub(super) fn begin() -> Option<Self> {
        (!MAKING.replace(true)).then_some(Self(()))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        MAKING.set(false);
    }
}

/// What has been published.
#[derive(Debug)]
#[non_exhaustive]
pub struct Published {
    /// Its id in the room.
    pub id: u64,
    /// To how many sessions it goes.
    pub sessions: usize,
    /// Whether it is kept, as soon as that is known.
    pub stored: Stored,
}

impl History {
    /// Publishes a message to the members of a room, and keeps it for those who come later. `make` is told the
    /// id of the message, to put it in: that is how a client knows how far it has come.
    ///
    /// All members get the messages of a room in the order of their ids, whoever publishes from wherever, as
    /// long as everything that is published to the room is published by a `History`. The message goes to the
    /// members whether or not it can be kept; [`Published::stored`] says whether it was. Otherwise it is as
    /// [`Rooms::publish`](crate::Rooms::publish), and waits for the same.
    ///
    /// `make` runs under the room's lock: it should only make the message. If it panics nothing is published.
    ///
    /// ```no_run
    /// # async fn say(session: &coracle::Session) -> Result<(), coracle::BoxError> {
    /// if let Some(history) = session.history() {
    ///     let published = history.publish("lobby", |id| format!("{id} hello")).await?;
    ///     published.stored.await?; // it is on the disk
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`PublishError`] says why nothing was published. That something was published and not kept is no error
    /// here.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped future has published nothing, for it does so in the moment in which it is ready.
    pub async fn publish<M: Into<Publication>>(
        &self,
        room: &str,
        make: impl FnOnce(u64) -> M,
    ) -> Result<Published, PublishError> {
        self.wait_for_room().await;
        self.place(room, make)
    }

    /// The same without ever waiting for room.
    ///
    /// # Errors
    ///
    /// [`PublishError::Full`] if there is none, and others as of [`publish`](Self::publish).
    pub fn try_publish<M: Into<Publication>>(
        &self,
        room: &str,
        make: impl FnOnce(u64) -> M,
    ) -> Result<Published, PublishError> {
        if self.hub.rooms.is_full() {
            return Err(PublishError::Full);
        }
        self.place(room, make)
    }

    async fn wait_for_room(&self) {
        while self.hub.rooms.is_full() {
            // Listening first, then looking again: room that is made in between is not missed.
            let room = self.hub.rooms.listen_for_room();
            if self.hub.rooms.is_full() {
                room.await;
            }
        }
    }

    /// Whoever saw room publishes, although others may have seen the same: that is a message more for each
    /// thread that publishes.
    fn place<M: Into<Publication>>(
        &self,
        room: &str,
        make: impl FnOnce(u64) -> M,
    ) -> Result<Published, PublishError> {
        if room.is_empty() || room.len() > NAME_BYTES {
            return Err(PublishError::BadName);
        }
        let making = Making::begin().ok_or(PublishError::Nested)?;
        let book: &Arc<Book> = &self.book;
        let open = book.enter().ok_or(PublishError::Closed)?;
        let mut line = book.ledger.line(room);
        let (order, last) = loop {
            let order = line.order();
            if let Some(last) = line.last() {
                break (order, last);
            }
            drop(order);
            line = book.ledger.line(room);
        };
        let id = last + 1;
        if id > MAX_ID {
            return Err(PublishError::NoMoreIds);
        }
        let publication = make(id).into();
        let entry = Entry::new(room, id, now(), publication.prepared().message().clone());
        let weight = entry.weight();
        let admitted = book.admit(weight);
        // The store may answer before it has returned, and a reader may come: so here first.
        let slot = admitted.then(Arc::<Slot>::default);
        line.push(entry.clone(), slot.clone());
        let sessions = self.hub.rooms.publish_at_once(room, publication);
        let stored = slot.map(|slot| {
            let stored = Stored::of(Arc::clone(&slot));
            let receipt = Receipt::new(book, &line, entry.room.clone(), id, weight, slot);
            book.store.append(entry, receipt);
            stored
        });
        drop(order);
        drop(open);
        drop(making);
        let stored = stored.unwrap_or_else(|| {
            let error = StoreError::queue_full();
            book.refused(room, id, &error);
            Stored::refused(error)
        });
        Ok(Published { id, sessions, stored })
    }
}

#[cfg(feature = "json")]
mod typed {
    use serde::ser::Serialize;
    use serde_json::value::{RawValue, to_raw_value};

    use super::{History, PublishError, Published};
    use crate::message::Message;
    use crate::typed::{Envelope, Scalar};

    impl History {
        /// Publishes a typed message to the members of a room, and keeps it: as [`publish`](Self::publish). The
        /// envelope gets its `id` and its `room`, whatever was there, and a `ts`, if it has none: milliseconds
        /// since 1970.
        ///
        /// # Errors
        ///
        /// As of [`publish`](Self::publish), and [`PublishError::Encode`] for a payload that cannot be JSON.
        ///
        /// # Cancel safety
        ///
        /// As of [`publish`](Self::publish).
        pub async fn publish_typed<P: Serialize>(
            &self,
            room: &str,
            envelope: Envelope<P>,
        ) -> Result<Published, PublishError> {
            let envelope = finished(room, envelope)?;
            self.publish(room, |id| stamped(envelope, id)).await
        }

        /// The same without ever waiting for room.
        ///
        /// # Errors
        ///
        /// As of [`publish_typed`](Self::publish_typed), and [`PublishError::Full`] if there is none.
        pub fn try_publish_typed<P: Serialize>(
            &self,
            room: &str,
            envelope: Envelope<P>,
        ) -> Result<Published, PublishError> {
            let envelope = finished(room, envelope)?;
            self.try_publish(room, |id| stamped(envelope, id))
        }
    }

    /// All but the id. The payload is JSON from here on, so that what is left to do under the room's lock can
    /// neither fail nor run the application's code.
    fn finished<P: Serialize>(
        room: &str,
        envelope: Envelope<P>,
    ) -> Result<Envelope<Box<RawValue>>, PublishError> {
        let payload = to_raw_value(&envelope.payload).map_err(PublishError::Encode)?;
        let mut envelope = envelope.with_payload(payload).room(room);
        envelope.ts.get_or_insert_with(|| Scalar::from(super::now()));
        Ok(envelope)
    }

    fn stamped(envelope: Envelope<Box<RawValue>>, id: u64) -> Message {
        let envelope = envelope.id(id);
        // Strings, numbers and finished JSON: there is nothing in it that could not be written.
        envelope.to_message().unwrap_or_else(|error| {
            log::error!("history: an envelope cannot be written: {error}");
            Message::from("")
        })
    }
}
