//! The body of a request, read by whoever wants it.
//!
//! Who answers a request does not touch the connection: it takes bytes out of an [`Intake`], into which the
//! connection's own loop puts them, and says there when it wants more.

use std::cell::{Ref, RefCell, RefMut};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use ::http::StatusCode;
use bytes::{Buf, Bytes, BytesMut};

use super::chunked::{Chunked, Step};
use super::reply::{IntoReply, Reply};

/// What the head says about the body (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Framing {
    #[default]
    None,
    Length(u64),
    Chunked,
}

/// The body of a request, for [routes](crate::Routes).
///
/// It is read from the connection as it is asked for, and no faster, so a client waits for a handler that is
/// slow. It may be left unread: the rest is passed over if there is little of it, and otherwise the connection is
/// closed behind the answer.
///
/// A client that has sent `Expect: 100-continue` (RFC 9110 section 10.1.1) is told to go on when the body is
/// first asked for.
pub struct Body {
    intake: Rc<Intake>,
    length: Option<u64>,
}

impl Body {
    pub(crate) fn new(intake: &Rc<Intake>, framing: Framing) -> Self {
        let length = match framing {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        };
        Self { intake: Rc::clone(intake), length }
    }

    /// How long the client says the whole body is, in bytes; 0 without a body, `None` if it comes in chunks.
    ///
    /// It is a claim: reserve no memory by it.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The largest body that is taken from here on, in bytes, instead of
    /// [`Limits::body_bytes`](crate::config::Limits::body_bytes): for uploads that are not kept in memory.
    pub fn set_limit(&mut self, bytes: u64) {
        self.intake.lock().limit = bytes;
    }

    /// The next piece, as it comes from the connection: never empty, and of no particular size. `None`: that
    /// was all.
    ///
    /// # Errors
    ///
    /// [`BodyError`]; every further call has the same.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, BodyError> {
        let _waiting = Waiting(&self.intake);
        poll_fn(|cx| self.intake.poll_chunk(cx)).await
    }

    /// All that has not been read yet, in one piece.
    ///
    /// # Errors
    ///
    /// [`BodyError`]
    ///
    /// # Cancel safety
    ///
    /// Not safe: what has been read is lost.
    pub async fn bytes(&mut self) -> Result<Bytes, BodyError> {
        let Some(first) = self.chunk().await? else { return Ok(Bytes::new()) };
        let Some(second) = self.chunk().await? else { return Ok(first) };
        let mut all = BytesMut::from(first);
        all.extend_from_slice(&second);
        while let Some(chunk) = self.chunk().await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    }

    /// The same as text.
    ///
    /// # Errors
    ///
    /// [`BodyError`]; [`BodyError::Unreadable`] if it is not UTF-8.
    ///
    /// # Cancel safety
    ///
    /// Not safe, as [`bytes`](Self::bytes).
    pub async fn text(&mut self) -> Result<String, BodyError> {
        let bytes = self.bytes().await?;
        String::from_utf8(bytes.into())
            .map_err(|_| BodyError::Unreadable("the body is not UTF-8".into()))
    }

    /// The same as a value that is written in JSON. The `Content-Type` is not looked at.
    ///
    /// # Errors
    ///
    /// [`BodyError`]; [`BodyError::Unreadable`] if it is no JSON, or no `T`.
    ///
    /// # Cancel safety
    ///
    /// Not safe, as [`bytes`](Self::bytes).
    #[cfg(feature = "json")]
    pub async fn json<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, BodyError> {
        let bytes = self.bytes().await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            BodyError::Unreadable(format!("the body is not as it should be: {error}"))
        })
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("length", &self.length).finish_non_exhaustive()
    }
}

/// Why a body cannot be read. As an answer ([`IntoReply`], so `?` does in a route) it is the status named with
/// each, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BodyError {
    /// It is larger than [`Limits::body_bytes`](crate::config::Limits::body_bytes), which is this: 413.
    TooLarge(u64),
    /// It comes more slowly than [`Limits::body_bytes_per_second`](crate::config::Limits): 408.
    TooSlow,
    /// It does not follow the rules for chunks (RFC 9112 section 7.1): 400. The connection is closed behind the
    /// answer.
    Malformed(&'static str),
    /// The client has ended the connection in the middle of it: 400.
    Incomplete,
    /// It has come, and is not what it should be: 400. The sentence says why.
    Unreadable(String),
}

impl BodyError {
    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Malformed(_) | Self::Incomplete | Self::Unreadable(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(limit) => write!(f, "the body is larger than {limit} bytes"),
            Self::TooSlow => f.write_str("the body arrives too slowly: send it at once"),
            Self::Malformed(why) => write!(f, "the body is malformed: {why}"),
            Self::Incomplete => f.write_str("the connection has ended in the middle of the body"),
            Self::Unreadable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for BodyError {}

impl IntoReply for BodyError {
    fn into_reply(self) -> Reply {
        Reply::sentence(self.status(), self.to_string())
    }
}

impl From<BodyError> for Reply {
    fn from(error: BodyError) -> Self {
        error.into_reply()
    }
}

/// Who waits for a piece, until it has it or waits for it no longer.
struct Waiting<'a>(&'a Intake);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.nobody_waits();
    }
}

/// What has been received on a connection and not yet been taken: the rest of a body, then further requests.
#[derive(Default)]
pub(crate) struct Intake(RefCell<State>);

#[derive(Default)]
pub(crate) struct State {
    pub(crate) input: BytesMut,
    /// Of the body that is being read.
    body: Coding,
    /// The largest body.
    pub(crate) limit: u64,
    /// Bytes of the body that have been taken.
    taken: u64,
    failed: Option<BodyError>,
    /// The client sends nothing further.
    pub(crate) ended: bool,
    /// Whether somebody waits for bytes that have not come.
    pub(crate) wanted: bool,
    waker: Option<Waker>,
    /// Whether the client waits for a 100 before it sends the body.
    pub(crate) expects: bool,
}

#[derive(Default)]
enum Coding {
    /// So many bytes are left.
    Length(u64),
    Chunked(Chunked),
    #[default]
    Done,
}

impl Intake {
    pub(crate) fn new(input: BytesMut) -> Rc<Self> {
        Rc::new(Self(RefCell::new(State { input, ..State::default() })))
    }

    pub(crate) fn lock(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    pub(crate) fn look(&self) -> Ref<'_, State> {
        self.0.borrow()
    }

    /// A request begins whose body is like this.
    pub(crate) fn begin(&self, framing: Framing, limit: u64, expects: bool) {
        let mut state = self.lock();
        state.body = match framing {
            Framing::None | Framing::Length(0) => Coding::Done,
            Framing::Length(length) => Coding::Length(length),
            Framing::Chunked => Coding::Chunked(Chunked::default()),
        };
        state.limit = limit;
        state.taken = 0;
        state.failed = None;
        state.wanted = false;
        state.waker = None;
        // Whoever has begun to send it does not wait.
        state.expects = expects && state.input.is_empty() && !matches!(state.body, Coding::Done);
    }

    /// Who waits for the body, if anybody does, gets this.
    pub(crate) fn fail(&self, error: BodyError) {
        let mut state = self.lock();
        state.failed.get_or_insert(error);
        state.wake();
    }

    /// Nothing more is wanted of the body.
    fn nobody_waits(&self) {
        let mut state = self.lock();
        state.wanted = false;
        state.waker = None;
    }

    /// The answer is there: nobody reads the body any more, and a 100 would come in the middle of it. Whether the
    /// client still waits for one.
    pub(crate) fn close(&self) -> bool {
        self.nobody_waits();
        std::mem::take(&mut self.lock().expects)
    }

    fn poll_chunk(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodyError>> {
        let mut state = self.lock();
        let chunk = state.take_chunk();
        if matches!(chunk, Ok(None)) && !matches!(state.body, Coding::Done) {
            if !state.ended {
                state.wanted = true;
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            state.failed = Some(BodyError::Incomplete);
            return Poll::Ready(Err(BodyError::Incomplete));
        }
        Poll::Ready(chunk)
    }

    /// Passes over what is left of the body, as far as it has come. True: that was all, and what follows is the
    /// next request.
    pub(crate) fn pass_over(&self) -> bool {
        let mut state = self.lock();
        state.limit = u64::MAX;
        while let Ok(Some(_)) = state.take_chunk() {}
        state.failed.is_none() && matches!(state.body, Coding::Done)
    }

    /// Whether the body is not what it should be, so that nobody knows what follows.
    pub(crate) fn failed(&self) -> bool {
        self.look().failed.is_some()
    }

    /// How many bytes the client has yet to send of the body, if that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        match self.look().body {
            Coding::Done => Some(0),
            Coding::Length(left) => Some(left),
            Coding::Chunked(_) => None,
        }
    }
}

impl State {
    /// More has been received, or will not be.
    pub(crate) fn wake(&mut self) {
        self.wanted = false;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// What is there of the body. `None`: nothing, for now or for ever.
    fn take_chunk(&mut self) -> Result<Option<Bytes>, BodyError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let taken = self.decode();
        if let Err(error) = &taken {
            self.failed = Some(error.clone());
        }
        taken
    }

    fn decode(&mut self) -> Result<Option<Bytes>, BodyError> {
        let len = match &mut self.body {
            Coding::Done => return Ok(None),
            Coding::Length(left) => {
                // Before anything of it is read.
                if self.taken.saturating_add(*left) > self.limit {
                    return Err(BodyError::TooLarge(self.limit));
                }
                let len = usize::try_from(*left)
                    .map_or(self.input.len(), |left| left.min(self.input.len()));
                *left -= len as u64;
                if *left == 0 {
                    self.body = Coding::Done;
                }
                len
            }
            Coding::Chunked(chunked) => {
                match chunked.step(&self.input).map_err(BodyError::Malformed)? {
                    Step::Data { skip, len } => {
                        self.input.advance(skip);
                        len
                    }
                    Step::More { skip } => {
                        self.input.advance(skip);
                        0
                    }
                    Step::End { skip } => {
                        self.input.advance(skip);
                        self.body = Coding::Done;
                        0
                    }
                }
            }
        };
        if len == 0 {
            return Ok(None);
        }
        self.taken += len as u64;
        let bytes = self.input.split_to(len).freeze();
        if self.taken > self.limit {
            return Err(BodyError::TooLarge(self.limit));
        }
        Ok(Some(bytes))
    }
}
