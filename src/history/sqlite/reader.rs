//! The thread that reads.

use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, params};
use smol::Timer;
use smol::channel::{Receiver, Sender};
use smol::future;

use super::error::Place;
use crate::history::errors::{StoreError, StoreErrorKind};
use crate::history::store::Portion;
use crate::history::value::{Bounds, Entry};
use crate::message::{Message, Text};

/// How long it may take to get an answer. A page takes less than a millisecond, so who has waited longer waits for a
/// disk that does not answer, and perhaps never will.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What is stored in `kind`.
pub(super) const TEXT: i64 = 0;
pub(super) const BINARY: i64 = 1;

/// Of a room, by the index.
const BEFORE: &str = "SELECT id, at, kind, payload FROM messages \
     WHERE room = (SELECT number FROM rooms WHERE name = ?1) AND id < ?2 ORDER BY id DESC";
const AFTER: &str = "SELECT id, at, kind, payload FROM messages \
     WHERE room = (SELECT number FROM rooms WHERE name = ?1) AND id > ?2 AND id <= ?3 ORDER BY id";

pub(super) enum Which {
    Before(u64),
    After(u64, u64),
}

pub(super) struct Question {
    room: String,
    which: Which,
    bounds: Bounds,
    reply: Sender<Result<Portion, StoreError>>,
}

impl Question {
    pub(super) fn new(
        room: String,
        which: Which,
        bounds: Bounds,
        reply: Sender<Result<Portion, StoreError>>,
    ) -> Self {
        Self { room, which, bounds, reply }
    }
}

/// Asks the reader. Whoever asks looks at the time: a reader that hangs cannot.
pub(super) async fn ask(
    questions: &Sender<Question>,
    question: Question,
    answer: Receiver<Result<Portion, StoreError>>,
    place: &Place,
    patience: Duration,
) -> Result<Portion, StoreError> {
    let answered = async {
        questions.send(question).await.map_err(|_| StoreError::closed())?;
        answer.recv().await.unwrap_or_else(|_| Err(StoreError::closed()))
    };
    let late = async {
        Timer::after(patience).await;
        let what = "what was asked for, or what others had asked for before, took too long to read";
        Err(place.error(StoreErrorKind::TimedOut, what))
    };
    future::or(answered, late).await
}

pub(super) struct Reader {
    connection: Connection,
    place: Place,
    questions: Receiver<Question>,
}

impl Reader {
    pub(super) fn new(connection: Connection, place: Place, questions: Receiver<Question>) -> Self {
        Self { connection, place, questions }
    }

    /// Until nobody can ask any more.
    pub(super) fn run(self) {
        while let Ok(question) = self.questions.recv_blocking() {
            // Whoever asked may have gone, or may not have waited for so long.
            if !question.reply.is_closed() {
                let answer = self.answer(&question);
                let _ = question.reply.try_send(answer);
            }
        }
    }

    fn answer(&self, question: &Question) -> Result<Portion, StoreError> {
        let Question { room, which, bounds, .. } = question;
        let name = Text::from(&**room);
        let read = || {
            let number = |id: u64| i64::try_from(id).unwrap_or(i64::MAX);
            let sql = if matches!(which, Which::Before(_)) { BEFORE } else { AFTER };
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = match which {
                Which::Before(before) => statement.query(params![room, number(*before)])?,
                Which::After(after, until) => {
                    statement.query(params![room, number(*after), number(*until)])?
                }
            };
            let (mut portion, mut bounds) = (Portion::default(), *bounds);
            while let Some(row) = rows.next()? {
                let Some(entry) = entry(&name, row)? else {
                    return Ok(None);
                };
                if !portion.take(entry, &mut bounds) {
                    portion.more = true;
                    break;
                }
            }
            Ok(Some(portion))
        };
        match read() {
            Ok(Some(portion)) => Ok(portion),
            Ok(None) => Err(self.place.error(StoreErrorKind::Corrupt, "a message in it is none")),
            Err(error) => Err(self.place.failed(&error)),
        }
    }
}

/// `None`: nothing that was written here looks like this.
fn entry(room: &Text, row: &Row<'_>) -> rusqlite::Result<Option<Entry>> {
    let (Ok(id), Ok(at)) =
        (u64::try_from(row.get::<_, i64>(0)?), u64::try_from(row.get::<_, i64>(1)?))
    else {
        return Ok(None);
    };
    let payload = match row.get_ref(3)? {
        ValueRef::Blob(bytes) => bytes.to_vec(),
        _ => return Ok(None),
    };
    let message = match row.get::<_, i64>(2)? {
        TEXT => match String::from_utf8(payload) {
            Ok(text) => Message::from(text),
            Err(_) => return Ok(None),
        },
        BINARY => Message::from(payload),
        _ => return Ok(None),
    };
    Ok(Some(Entry::new(room.clone(), id, at, message)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use smol::channel::bounded;

    use super::*;

    #[test]
    fn who_asks_a_reader_that_hangs_is_answered_all_the_same() {
        let (questions, unread) = bounded(1);
        let place = Place::new(Path::new("test"));
        // The first is never answered, and the second finds no place.
        for _ in 0..2 {
            let (reply, answer) = bounded(1);
            let question = Question::new("quay".into(), Which::Before(9), Bounds::new(1, 1), reply);
            let asked = ask(&questions, question, answer, &place, Duration::from_millis(1));
            let error = smol::block_on(asked).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::TimedOut);
        }
        assert_eq!(unread.len(), 1);
    }
}
