//! The workers of one server: their threads, how connections reach them, and how they end.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use event_listener::Event;
use futures_lite::future;
use smol::channel::{Receiver, Sender};

use super::accept;
#[cfg(feature = "tls")]
use super::secure;
use super::signals::Interrupts;
use crate::error::{Error, Result};
use crate::executor::{Clock, Presumed, Registered, Worker};
#[cfg(feature = "fallback")]
use crate::fallback::Host;
use crate::http::front::{Admitted, Approach, Door};
use crate::http::handover::Handed;
use crate::http::{Routes, Site};
use crate::hub::{self, Hub, Membership};
use crate::metrics::Rejection;
use crate::session::{Handler, LAST_WORD, Link, drive};
use crate::shutdown;
#[cfg(feature = "tls")]
use crate::tls::Store;
use crate::transport::{Bound, ClientName, Memory, Peer, Socket, Stream, Transport};

/// What the sessions get for their last callbacks (a message, an error, the close) from when their
/// worker has noticed that the stop's deadline is over; then every task that is left is dropped.
const BACKSTOP: Duration = LAST_WORD.saturating_mul(4);

/// Connections on their way to one worker. More than a listener hands out in a turn, so that it
/// rarely finds the way blocked; then it keeps the connection itself.
const INTAKE: usize = 256;

/// How the server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Sessions that ended by themselves or by the closing handshake after the stop was requested.
    pub drained: usize,
    /// Sessions that were cut: by the stop's deadline, or by a second request.
    pub cut: usize,
    /// HTTP requests whose answers were sent to their ends after the stop was requested. Those whose clients
    /// went away are counted nowhere.
    pub requests: usize,
    /// HTTP requests that were cut before their answers were sent.
    pub requests_cut: usize,
    /// Callbacks that panicked, since the start.
    pub panics: usize,
    /// Messages that had been published with history and not been kept yet when the last session had ended, and
    /// were kept then.
    pub history_flushed: usize,
    /// The same that were not: the store failed, or did not come to its end in time.
    pub history_lost: usize,
    /// From the request to stop to the end of the last worker, and of the history.
    pub took: Duration,
}

/// What all workers of a server, and its handle, share.
pub(super) struct Crew {
    pub(super) hub: Arc<Hub>,
    /// What the listeners with TLS need.
    #[cfg(feature = "tls")]
    pub(super) tls: Option<Arc<Store>>,
    /// Those of the listeners that have their own.
    sites: Vec<Site>,
    posts: Vec<Post>,
    running: AtomicUsize,
    report: OnceLock<Report>,
    finished: Event,
}

/// How to reach one worker.
struct Post {
    intake: Sender<Incoming>,
    /// Connections that live there or are on their way.
    load: AtomicUsize,
}

/// A socket that listens, and what is spoken there.
pub(super) struct Listening {
    pub(super) bound: Bound,
    pub(super) speaks: Speaks,
}

/// What is expected of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// HTTP.
    Plain,
    /// HTTP over TLS.
    #[cfg(feature = "tls")]
    Tls,
    /// One or the other: its first byte tells.
    #[cfg(feature = "tls")]
    Either,
    /// HTTP for the site with this number, and no WebSocket.
    Site(usize),
    /// Length-prefixed frames, and no request before them.
    Frames,
    /// The same over TLS.
    #[cfg(feature = "tls")]
    FramesTls,
}

impl Speaks {
    /// Whether TLS has to be configured for it.
    #[cfg(feature = "tls")]
    pub(super) fn needs_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Either | Self::FramesTls)
    }

    /// Whether an answer can be read that is sent without having read anything.
    pub(super) fn is_plain(self) -> bool {
        matches!(self, Self::Plain | Self::Site(_))
    }

    pub(super) fn is_frames(self) -> bool {
        match self {
            Self::Frames => true,
            #[cfg(feature = "tls")]
            Self::FramesTls => true,
            _ => false,
        }
    }
}

/// A new connection.
pub(super) struct Incoming {
    pub(super) link: IncomingLink,
    pub(super) peer: Peer,
    /// It has been upgraded already.
    pub(super) handed: Option<Box<Handed>>,
    pub(super) speaks: Speaks,
    pub(super) handshake: hub::Handshake,
}

pub(super) enum IncomingLink {
    Socket(OwnedFd),
    Memory(Memory),
    Stream(Stream),
}

impl Crew {
    /// A crew, and what each of its workers has to do. Whoever makes one has to start every duty, or
    /// to [abandon](Self::abandon) it.
    pub(super) fn new<H: Handler>(
        hub: Arc<Hub>,
        handler: H,
        listeners: Vec<Listening>,
        sites: Vec<Routes>,
        #[cfg(feature = "tls")] tls: Option<Arc<Store>>,
        workers: usize,
    ) -> (Arc<Self>, Vec<Duty<H>>) {
        let clock = hub.clock.clone();
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..workers).map(|_| smol::channel::bounded(INTAKE)).unzip();
        let posts =
            senders.into_iter().map(|intake| Post { intake, load: AtomicUsize::new(0) }).collect();
        let crew = Arc::new(Self {
            hub,
            #[cfg(feature = "tls")]
            tls,
            sites: sites.into_iter().map(Site::new).collect(),
            posts,
            running: AtomicUsize::new(workers),
            report: OnceLock::new(),
            finished: Event::new(),
        });
        // Listeners are dealt out like cards.
        let mut hands: Vec<Vec<Listening>> = (0..workers).map(|_| Vec::new()).collect();
        for (i, listener) in listeners.into_iter().enumerate() {
            hands[i % workers].push(listener);
        }
        let handler = Arc::new(handler);
        let duties = hands.into_iter().zip(receivers).enumerate();
        let duties = duties.map(|(index, (listeners, intake))| Duty {
            station: Station {
                crew: Arc::clone(&crew),
                handler: Arc::clone(&handler),
                clock: clock.clone(),
                index,
            },
            listeners,
            intake,
        });
        let duties = duties.collect();
        (crew, duties)
    }

    /// Starts a thread for each of these duties and waits until all of them run. `others` have not
    /// been started either.
    ///
    /// # Errors
    ///
    /// None runs then.
    pub(super) fn start<H: Handler>(
        self: &Arc<Self>,
        duties: Vec<Duty<H>>,
        others: usize,
    ) -> Result<()> {
        let workers = duties.len();
        let (ready, started) = mpsc::channel();
        for (begun, duty) in duties.into_iter().enumerate() {
            let ready = ready.clone();
            let spawned = thread::Builder::new()
                .name(format!("coracle-{}", duty.station.index))
                .spawn(move || {
                    duty.work(None, |outcome| {
                        let _ = ready.send(outcome);
                    });
                });
            if let Err(source) = spawned {
                self.abandon(workers - begun + others);
                future::block_on(self.wait());
                return Err(Error::System { what: "cannot start a worker's thread", source });
            }
        }
        drop(ready);
        for outcome in started.iter().take(workers) {
            if let Err(source) = outcome {
                self.hub.shutdown.cut();
                self.abandon(others);
                future::block_on(self.wait());
                return Err(Error::System { what: "cannot start a worker", source });
            }
        }
        Ok(())
    }

    /// Workers that never came to run do not end either.
    pub(super) fn abandon(&self, workers: usize) {
        self.hub.shutdown.cut();
        for _ in 0..workers {
            self.leave();
        }
    }

    /// A worker has ended; the last one closes the history and writes the report.
    fn leave(&self) {
        if self.running.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let shutdown = &self.hub.shutdown;
        let history = self.hub.history.as_ref().map(|history| history.close(shutdown, LAST_WORD));
        let history = history.unwrap_or_default();
        let endings = &self.hub.endings;
        let report = Report {
            drained: endings.drained.load(Ordering::Acquire),
            cut: endings.cut.load(Ordering::Acquire),
            requests: endings.requests.load(Ordering::Acquire),
            requests_cut: endings.requests_cut.load(Ordering::Acquire),
            panics: endings.panics.load(Ordering::Acquire),
            history_flushed: history.kept,
            history_lost: history.lost,
            took: shutdown.elapsed(),
        };
        log::info!(
            "stopped in {:.1?}: {} sessions drained, {} cut",
            report.took,
            report.drained,
            report.cut
        );
        // Nobody else sets it.
        let _ = self.report.set(report);
        self.finished.notify(usize::MAX);
    }

    /// Where a listener has routes of its own, those.
    pub(super) fn site(&self, speaks: Speaks) -> Option<&Site> {
        match speaks {
            Speaks::Site(number) => self.sites.get(number),
            _ => None,
        }
    }

    /// Whether the last worker has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.report.get().is_some()
    }

    /// Waits for the last worker.
    pub(super) async fn wait(&self) -> Report {
        loop {
            if let Some(report) = self.report.get() {
                return *report;
            }
            let finished = self.finished.listen();
            if self.report.get().is_none() {
                finished.await;
            }
        }
    }

    /// The worker with the fewest connections, counting the new one from now on.
    fn assign(&self) -> usize {
        let load = |post: &Post| post.load.load(Ordering::Relaxed);
        let (index, post) = self
            .posts
            .iter()
            .enumerate()
            .min_by_key(|(_, post)| load(post))
            .expect("a server has workers");
        post.load.fetch_add(1, Ordering::Relaxed);
        index
    }

    /// Takes a connection off a worker's load.
    fn release(&self, index: usize) {
        self.posts[index].load.fetch_sub(1, Ordering::Relaxed);
    }

    /// Sends a connection to the worker with the fewest, from a thread that is none.
    pub(super) fn send(&self, incoming: Incoming) -> Result<(), Incoming> {
        let index = self.assign();
        self.posts[index].intake.try_send(incoming).map_err(|error| {
            self.release(index);
            error.into_inner()
        })
    }
}

/// What one worker has to do.
pub(super) struct Duty<H> {
    station: Station<H>,
    listeners: Vec<Listening>,
    intake: Receiver<Incoming>,
}

/// What all connections of one worker share.
pub(super) struct Station<H> {
    pub(super) crew: Arc<Crew>,
    handler: Arc<H>,
    clock: Clock,
    index: usize,
}

impl<H: Handler> Duty<H> {
    /// Does it, on this thread, until the server has stopped. `ready` hears when it runs, or why it
    /// cannot.
    pub(super) fn work(self, interrupts: Option<&Interrupts>, ready: impl FnOnce(io::Result<()>)) {
        let Self { station, listeners, intake } = self;
        // However this ends, it is counted.
        let guard = Leave(Arc::clone(&station.crew));
        let station = Rc::new(station);
        match station.prepare(listeners, interrupts) {
            Ok((worker, ear)) => {
                ready(Ok(()));
                station.run(worker, intake, interrupts);
                drop(ear);
            }
            Err(error) => ready(Err(error)),
        }
        drop(station);
        drop(guard);
    }
}

impl<H: Handler> Station<H> {
    /// A worker that listens; if it cannot, nothing is left of it.
    fn prepare(
        self: &Rc<Self>,
        listeners: Vec<Listening>,
        interrupts: Option<&Interrupts>,
    ) -> io::Result<(Rc<Worker>, Option<Registered>)> {
        let worker = Worker::new(self.index, self.clock.clone())?;
        let listening = || {
            for listener in listeners {
                accept::spawn(&worker, self, listener)?;
            }
            let ear = interrupts.map(|it| worker.register(it.ear()?, Presumed::Readable));
            ear.transpose()
        };
        match listening() {
            Ok(ear) => Ok((worker, ear)),
            Err(error) => {
                // The listeners that were taken are closed.
                let _ = worker.run(|_| true);
                Err(error)
            }
        }
    }

    /// Serves until the server has stopped.
    fn run(
        self: &Rc<Self>,
        worker: Rc<Worker>,
        intake: Receiver<Incoming>,
        interrupts: Option<&Interrupts>,
    ) {
        worker.spawn(Rc::clone(self).take_in(Rc::clone(&worker), intake));
        let hub = &self.crew.hub;
        worker.spawn(Arc::clone(hub).deliver(Rc::clone(&worker)));
        #[cfg(feature = "tls")]
        if let Some(tls) = self.crew.tls.as_ref().filter(|_| self.index == 0) {
            if let Some(every) = tls.settings().watch {
                let (station, home, tls) = (Rc::clone(self), Rc::clone(&worker), Arc::clone(tls));
                worker.spawn(async move {
                    let stopping = station.crew.hub.shutdown.stopping();
                    future::or(secure::watch(&home, &tls, every), stopping).await;
                });
            }
        }
        let shutdown = &self.crew.hub.shutdown;
        let mut phase = shutdown::Phase::Running;
        let mut changed = shutdown.listen();
        let mut listening = false;
        // When the deadline was noticed: a blocked worker may come late, and its sessions still have
        // their last word.
        let mut overdue = None;
        // Only there to end the sleep: at the last moment there may be nobody left to wake.
        let backstop = worker.timer();
        let outcome = worker.run(|cx| {
            if let Some(interrupts) = interrupts {
                interrupts.heed(shutdown);
            }
            // The one listener of the broadcast on this worker, which passes it on. One for each
            // session would cost 80 bytes more of idle memory, and a lock that all workers share for
            // each connection.
            // While it stops, the listener is asked in every turn: the event may be notified after the
            // phase was seen, and a listener that has been notified hears of nothing further.
            let mut asked = phase == shutdown::Phase::Running;
            while !asked || !listening || shutdown.phase() != phase {
                asked = true;
                listening = true;
                if Pin::new(&mut changed).poll(cx).is_ready() {
                    changed = shutdown.listen();
                    listening = false;
                }
                if std::mem::replace(&mut phase, shutdown.phase()) != phase {
                    worker.wake_all();
                }
            }
            if phase == shutdown::Phase::Running {
                return false;
            }
            let deadline = shutdown.deadline();
            if worker.now() >= deadline {
                overdue.get_or_insert(worker.now());
            }
            let last = overdue.unwrap_or(deadline) + BACKSTOP;
            backstop.set(last);
            worker.tasks() == 0 || worker.now() >= last
        });
        if let Err(error) = outcome {
            log::error!("worker {}: epoll failed: {error}; the server stops", self.index);
            shutdown.request_stop();
        }
    }

    /// Receives the connections that other threads have for this worker.
    async fn take_in(self: Rc<Self>, worker: Rc<Worker>, intake: Receiver<Incoming>) {
        let receive = async {
            while let Ok(incoming) = intake.recv().await {
                self.serve(&worker, incoming);
            }
        };
        future::or(receive, self.crew.hub.shutdown.stopping()).await;
        // What met the stop half-way is told so, like every other handshake.
        intake.close();
        while let Ok(incoming) = intake.try_recv() {
            self.serve(&worker, incoming);
        }
    }

    /// A connection that this worker has accepted: it stays here or goes to a less busy worker.
    pub(super) fn place(self: &Rc<Self>, worker: &Rc<Worker>, incoming: Incoming) {
        let index = self.crew.assign();
        if index == self.index {
            return self.serve(worker, incoming);
        }
        if let Err(error) = self.crew.posts[index].intake.try_send(incoming) {
            self.crew.release(index);
            self.crew.posts[self.index].load.fetch_add(1, Ordering::Relaxed);
            self.serve(worker, error.into_inner());
        }
    }

    /// Begins to serve a connection that is counted in this worker's load.
    fn serve(self: &Rc<Self>, worker: &Rc<Worker>, incoming: Incoming) {
        let ledger = &self.crew.hub.ledger;
        ledger.connected();
        let load = Load(Rc::clone(self));
        let Incoming { link, peer, handed, speaks, handshake } = incoming;
        let transport = match link {
            IncomingLink::Memory(memory) => Transport::Memory(memory),
            IncomingLink::Stream(stream) => Transport::Stream(stream),
            IncomingLink::Socket(fd) => match Socket::new(worker, fd) {
                Ok(socket) => Transport::Socket(socket),
                Err(error) => {
                    log::warn!("cannot watch a new connection: {error}");
                    ledger.rejected(Rejection::Internal);
                    return;
                }
            },
        };
        let arrival = Box::new(Arrival { transport, peer, handed, speaks, handshake });
        worker.spawn(connection(Rc::clone(worker), load, arrival));
    }
}

/// One connection in its worker's load.
struct Load<H>(Rc<Station<H>>);

impl<H> Drop for Load<H> {
    fn drop(&mut self) {
        let station = &self.0;
        station.crew.hub.ledger.disconnected();
        station.crew.release(station.index);
    }
}

/// A session without a connection of its own in its worker's load.
#[cfg(feature = "fallback")]
struct Lodger<H>(Rc<Station<H>>);

#[cfg(feature = "fallback")]
impl<H> Lodger<H> {
    fn new(station: &Rc<Station<H>>) -> Self {
        station.crew.posts[station.index].load.fetch_add(1, Ordering::Relaxed);
        Self(Rc::clone(station))
    }
}

#[cfg(feature = "fallback")]
impl<H> Drop for Lodger<H> {
    fn drop(&mut self) {
        self.0.crew.release(self.0.index);
    }
}

struct Leave(Arc<Crew>);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A connection before its handshake.
struct Arrival {
    transport: Transport,
    peer: Peer,
    handed: Option<Box<Handed>>,
    speaks: Speaks,
    handshake: hub::Handshake,
}

/// A connection from its first byte to its last.
///
/// What only the handshake needs is on the heap, and freed with it; what this future holds is what
/// every idle session costs. An `async fn` would hold its arguments twice.
#[expect(clippy::manual_async_fn, reason = "an `async fn` would be larger")]
fn connection<H: Handler>(
    worker: Rc<Worker>,
    load: Load<H>,
    arrival: Box<Arrival>,
) -> impl Future<Output = ()> {
    async move {
        let begun = {
            let opened = Box::pin(open(&worker, &load.0, arrival)).await;
            // Only now, in the place of what the handshake needed.
            opened.map(|Opened { transport, input, membership }| {
                let link = Link::new(&worker, transport, input, membership.member());
                (Box::new(link), membership)
            })
        };
        if let Some((link, membership)) = begun {
            drive(link, membership, &*load.0.handler).await;
        }
    }
}

/// Has sessions live on this worker whose clients come with requests, on whatever worker.
#[cfg(feature = "fallback")]
struct Lodging<'a, H> {
    worker: &'a Rc<Worker>,
    station: &'a Rc<Station<H>>,
}

#[cfg(feature = "fallback")]
impl<H: Handler> Host for Lodging<'_, H> {
    fn host(
        &self,
        transport: Transport,
        membership: Membership,
        beside: Pin<Box<dyn Future<Output = ()>>>,
    ) {
        let worker = Rc::clone(self.worker);
        let lodger = Lodger::new(self.station);
        self.worker.spawn(async move {
            // Only here: it is this task that drives it.
            let link = Link::new(&worker, transport, Vec::new(), membership.member());
            drive(Box::new(link), membership, &*lodger.0.handler).await;
        });
        self.worker.spawn(beside);
    }
}

/// What a handshake leaves of a connection.
struct Opened {
    transport: Transport,
    input: Vec<u8>,
    membership: Membership,
}

/// The handshake of a connection, up to the session that comes of it.
async fn open<H: Handler>(
    worker: &Rc<Worker>,
    station: &Rc<Station<H>>,
    arrival: Box<Arrival>,
) -> Option<Opened> {
    let hub = &station.crew.hub;
    let Arrival { transport, peer, handed, speaks, handshake } = *arrival;
    let site = station.crew.site(speaks);
    #[cfg(feature = "fallback")]
    let lodging = Lodging { worker, station };
    let door = Door::new(
        worker,
        hub,
        &station.handler,
        peer,
        site,
        #[cfg(feature = "fallback")]
        &lodging,
    );
    let (transport, Admitted { membership, input }) = match handed {
        None => admit(station, &door, transport, speaks, handshake).await?,
        Some(handed) => {
            let mut transport = transport;
            let admitted = door.take_over(&mut transport, *handed).await?;
            drop(handshake);
            (transport, admitted)
        }
    };
    hub.ledger.handshaken(worker.clock().precise().since(door.began.get()));
    let member = membership.member();
    log::debug!(
        "session {}: open on worker {}, from {} for {}; {} sessions",
        member.id,
        worker.index(),
        ClientName(member.profile.peer(), member.profile.client_ip()),
        member.profile.target(),
        hub.count(),
    );
    Some(Opened { transport, input, membership })
}

/// What comes before a request, if anything has to: what a proxy says of the client, then TLS. And the
/// request.
async fn admit<H: Handler>(
    station: &Station<H>,
    door: &Door<'_, H>,
    mut transport: Transport,
    speaks: Speaks,
    mut under_way: hub::Handshake,
) -> Option<(Transport, Admitted)> {
    let config = &station.crew.hub.config;
    let deadline = door.worker.now() + config.timeouts.handshake;
    let mut approach = Approach::new(deadline);
    if config.proxies.speaks_proxy_protocol(door.peer) {
        let read = speaks.is_plain();
        let proxied = door.proxied(&mut transport, &mut under_way, deadline, read);
        approach.received = Box::pin(proxied).await?;
    }
    match speaks {
        Speaks::Plain | Speaks::Site(_) | Speaks::Frames => {}
        #[cfg(feature = "tls")]
        Speaks::Tls | Speaks::Either | Speaks::FramesTls => {
            let tls = station.crew.tls.as_ref()?;
            (transport, approach) =
                Box::pin(secure::secure(door, tls, transport, speaks, approach, &under_way))
                    .await?;
        }
    }
    if speaks.is_frames() {
        let admitted = door.admit_frames(&mut transport, approach).await?;
        return Some((transport, admitted));
    }
    let admitted = door.admit(&mut transport, approach, under_way).await?;
    Some((transport, admitted))
}
