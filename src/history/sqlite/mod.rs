//! History in a database of SQLite.
//!
//! One thread writes, in groups; one reads, over a connection of its own, which in WAL mode waits for nobody who
//! writes. A third file beside the database is locked for as long as it is open, so that no two servers give the
//! same ids.

mod cut;
mod ending;
mod error;
mod reader;
mod retention;
mod schema;
mod single;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use smol::channel;

use super::errors::StoreError;
use super::ledger::lock;
use super::receipt::Receipt;
use super::store::{Boxed, Closing, Opening, Portion, Store, StoreStats};
use super::value::{Bounds, Entry};
use ending::{Ending, Running, Waiting};
use error::Place;
use reader::{PATIENCE, Question, Reader, Which, ask};
use writer::{Job, Writer};

/// Questions that wait for the reader; then those who ask wait to ask. Each is a name and some numbers.
const QUESTIONS: usize = 256;

/// How long dropping a store waits for each of its threads. What may wait to be kept takes less than a second on a
/// disk that answers.
const AT_THE_END: Duration = Duration::from_secs(5);

/// What "kept" promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// What was confirmed is there after the power has failed: each group is written through to the disk before
    /// it is confirmed (`synchronous = FULL`). As far as the disk says the truth.
    #[default]
    PowerLoss,
    /// What was confirmed is there after the process has been killed, at whatever point; the last seconds before
    /// a power failure or a crash of the kernel may be missing (`synchronous = NORMAL`). Many times as fast on
    /// slow disks, and it wears flash out less.
    Kill,
}

/// How a database is opened; see [`Sqlite::options`].
#[derive(Clone, Debug)]
#[must_use = "nothing is opened until `open`"]
pub struct SqliteOptions {
    messages: u64,
    age: Option<Duration>,
    rooms: usize,
    durability: Durability,
    busy: Duration,
    group: usize,
    bytes: Option<u64>,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            messages: 10_000,
            age: None,
            rooms: 10_000,
            durability: Durability::default(),
            busy: Duration::from_secs(5),
            group: 256,
            bytes: None,
        }
    }
}

impl SqliteOptions {
    /// Messages that are kept of each room, at least 1. Default 10 000. They are removed in portions: for some
    /// time there may be an eighth more, and for a moment what one [group](Self::group) has brought.
    pub fn messages(mut self, messages: u64) -> Self {
        self.messages = messages.max(1);
        self
    }

    /// How long a message is kept. Default: until it has to make room. It may stay an eighth longer, and a minute.
    ///
    /// One that was published while the machine's clock was ahead is taken to be of when that is noticed, and told
    /// to be.
    pub fn age(mut self, age: Duration) -> Self {
        self.age = Some(age);
        self
    }

    /// Rooms of which something is kept, at least 1. Default 10 000, which take some 200 bytes of memory each.
    /// Beyond it those are removed that have been silent the longest; a sixteenth more may be there for some time,
    /// and for a moment those that are new in one [group](Self::group). If new ones come all the time, the next group
    /// waits until as many have been removed, with all that they have.
    pub fn rooms(mut self, rooms: usize) -> Self {
        self.rooms = rooms.max(1);
        self
    }

    /// What "kept" promises. Default [`Durability::PowerLoss`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// How long the writer waits for a lock that another process or connection has on the database. Default 5 s.
    /// After that the group it wanted to write is not kept.
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy = timeout;
        self
    }

    /// Messages that are made durable together, at most; at least 1. Default 256: what twice as many gained
    /// was less than the noise (`benches/`, `--bench history`), and a group waits for its last message. It is never waited for more:
    /// a group is what has come while the one before it was written.
    pub fn group(mut self, messages: usize) -> Self {
        self.group = messages.max(1);
        self
    }

    /// What the database may take on the disk, in bytes; its log comes on top, some 4 MiB. Default: as much as
    /// there is.
    ///
    /// At the bound messages are not kept any more ([`DiskFull`](super::StoreErrorKind::DiskFull)), until others
    /// have been removed; and that is done for [`messages`](Self::messages), [`age`](Self::age) and
    /// [`rooms`](Self::rooms) only, never for this. So give it together with an age, or with as many messages and
    /// rooms as fit: else what has come first stays for ever, and nothing that comes later is kept.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// Opens the database, or makes one. Blocks, and starts two threads.
    ///
    /// # Errors
    ///
    /// [`StoreError`] says what is wrong with which file: it is [used by another
    /// server](super::StoreErrorKind::InUse), [a later version](super::StoreErrorKind::Newer) has written it, it is
    /// [something else](super::StoreErrorKind::Corrupt), or it cannot be [read or
    /// written](super::StoreErrorKind::Io).
    pub fn open(self, path: impl AsRef<Path>) -> Result<Sqlite, StoreError> {
        Sqlite::open_with(path.as_ref(), self)
    }
}

/// History in a database of SQLite, for replays over the end of the process, however it ends.
///
/// The database is in WAL mode: two more files lie beside it, and a `-lock`. Other programs may read it while the
/// server runs; one that writes to it, or locks it, makes the server wait, and lose messages after that. It must
/// not lie on a network's file system, nor have a second name by a hard link. The file does not become smaller when
/// messages are removed; their space is used again.
///
/// A confirmed message is there after the process has been killed at any point; see [`Durability`] for more. After
/// such an end the ids of all rooms [leap](super::leap), because of some that were given it cannot be known.
///
/// When it is dropped without its server having closed it, what is on the way is still written, and dropping waits
/// for that, 5 s at most; then it is lost. When its server could not wait for its end, it does not wait either.
pub struct Sqlite {
    path: PathBuf,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    questions: channel::Sender<Question>,
    counters: Arc<Counters>,
    place: Place,
    ending: Arc<Ending>,
    threads: Mutex<Vec<Running>>,
}

#[derive(Default)]
struct Counters {
    commits: AtomicU64,
    trimmed: AtomicU64,
    trims_failed: AtomicU64,
}

impl Sqlite {
    /// Opens a database with the default [options](SqliteOptions), or makes one.
    ///
    /// # Errors
    ///
    /// As of [`SqliteOptions::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::options().open(path)
    }

    /// How a database is opened.
    pub fn options() -> SqliteOptions {
        SqliteOptions::default()
    }

    fn open_with(path: &Path, options: SqliteOptions) -> Result<Self, StoreError> {
        let place = Place::new(path);
        let path = single::real(path, &place)?;
        let lock = single::only_one(&path, &place)?;
        let connection = schema::connect(&path, &options).map_err(|error| place.failed(&error))?;
        schema::prepare(&connection, &place)?;
        let counters = Arc::<Counters>::default();
        let reading = schema::connect_to_read(&path).map_err(|error| place.failed(&error))?;
        let (questions, asked) = channel::bounded(QUESTIONS);
        let (jobs, work) = mpsc::channel();
        let ending = Arc::new(Ending::new(connection.get_interrupt_handle()));
        let shared = (Arc::clone(&counters), Arc::clone(&ending));
        let writer = Writer::new(connection, place.clone(), options, shared, work, lock)
            .map_err(|error| place.failed(&error))?;
        let reader = Reader::new(reading, place.clone(), asked);
        let cannot = |error| place.io("cannot start a thread", &error);
        // If the second cannot be started, the first ends because nobody can ask it.
        let threads = vec![
            Running::start("history-writer", move || writer.run()).map_err(cannot)?,
            Running::start("history-reader", move || reader.run()).map_err(cannot)?,
        ];
        let (jobs, threads) = (Mutex::new(Some(jobs)), Mutex::new(threads));
        Ok(Self { path, jobs, questions, counters, place, ending, threads })
    }

    fn send(&self, job: Job) -> Result<(), StoreError> {
        let jobs = lock(&self.jobs);
        let sent = jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if sent { Ok(()) } else { Err(StoreError::closed()) }
    }

    async fn ask(&self, room: &str, which: Which, bounds: Bounds) -> Result<Portion, StoreError> {
        let (reply, answer) = channel::bounded(1);
        let question = Question::new(room.to_owned(), which, bounds, reply);
        ask(&self.questions, question, answer, &self.place, PATIENCE).await
    }
}

impl Store for Sqlite {
    fn open(&self, rooms: usize) -> Result<Opening, StoreError> {
        let (reply, answer) = channel::bounded(1);
        self.send(Job::Open(rooms, reply))?;
        answer.recv_blocking().unwrap_or_else(|_| Err(StoreError::closed()))
    }

    fn append(&self, entry: Entry, receipt: Receipt) {
        if let Some(jobs) = &*lock(&self.jobs) {
            // One that cannot be sent any more is dropped, and its receipt says so.
            let _ = jobs.send(Job::Append(entry, receipt));
        } else {
            receipt.failed(StoreError::closed());
        }
    }

    fn before<'a>(
        &'a self,
        room: &'a str,
        before: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>> {
        Box::pin(self.ask(room, Which::Before(before), bounds))
    }

    fn after<'a>(
        &'a self,
        room: &'a str,
        after: u64,
        until: u64,
        bounds: Bounds,
    ) -> Boxed<'a, Result<Portion, StoreError>> {
        Box::pin(self.ask(room, Which::After(after, until), bounds))
    }

    fn flush(&self) -> Boxed<'_, Result<(), StoreError>> {
        Box::pin(async {
            let (reply, answer) = channel::bounded(1);
            self.send(Job::Flush(reply))?;
            answer.recv().await.unwrap_or_else(|_| Err(StoreError::closed()))
        })
    }

    fn close(&self, closing: Closing) -> Boxed<'_, Result<(), StoreError>> {
        Box::pin(async {
            let (reply, answer) = channel::bounded(1);
            self.ending.ask();
            self.questions.close();
            self.send(Job::Close(closing, reply))?;
            *lock(&self.jobs) = None;
            let waiting = Waiting::new(&self.ending);
            let answer = answer.recv().await.unwrap_or_else(|_| Err(StoreError::closed()));
            waiting.answered();
            answer
        })
    }

    fn stats(&self) -> StoreStats {
        use std::sync::atomic::Ordering::Relaxed;
        let Counters { commits, trimmed, trims_failed } = &*self.counters;
        StoreStats {
            commits: commits.load(Relaxed),
            trimmed: trimmed.load(Relaxed),
            trims_failed: trims_failed.load(Relaxed),
        }
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.ending.ask();
        *lock(&self.jobs) = None;
        self.questions.close();
        for running in lock(&self.threads).drain(..) {
            // A receipt may have been the last to know this store: then this is the writer.
            let abandoned = self.ending.is_abandoned();
            let patience = if abandoned { Duration::ZERO } else { AT_THE_END };
            if running.ends_within(patience) {
                running.join();
            } else if !running.is_this() {
                self.ending.abandon();
            }
        }
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite").field("path", &self.path).finish_non_exhaustive()
    }
}
