//! Every knob: its default, its unit, and what it costs.
//!
//! [`Config`] is plain data. The builder has a method for the common ones and takes the whole with
//! [`Builder::config`](crate::Builder::config). [`Config::from_env`] reads it from
//! [settings](crate::docs::settings).

mod history;
mod inbound;
mod listen;
mod settings;
#[cfg(feature = "tls")]
mod tls;

use std::time::Duration;

use std::net::IpAddr;

#[cfg(feature = "fallback")]
use crate::fallback::Fallbacks;
use crate::http::{OriginPolicy, Routes};
use crate::hub::{PresenceHook, RoomPolicy};
pub use crate::network::Network;
use crate::outbox::SlowPeer;
use crate::session::{GapHook, SessionRates};
use crate::transport::Peer;

pub use history::History;
pub use inbound::{Excess, Inbound, Rate};
pub use listen::Listen;
pub use settings::Setting;
#[cfg(feature = "tls")]
pub use tls::{ClientCertificates, Identity, Password, Tls, TlsVersion};

/// What a server promises about time, size and number; [`Config::default`] is fit for production.
///
/// Durations of the session's own timers are kept on a coarse wheel: an expiry is seen at most
/// about 200 ms after its deadline and never before it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Worker threads. Default `None`: one for each core this process may run on.
    ///
    /// A session lives on one worker for all its life, so one slow (blocking) handler delays the
    /// sessions of its own worker only. Zero is an error at start.
    pub workers: Option<usize>,
    /// Connections the kernel may hold ready for `accept`. Default 4 096; the kernel bounds it
    /// further by `net.core.somaxconn`.
    pub backlog: u32,
    /// Where to listen, before the addresses that the builder is given. Default: nowhere;
    /// [`from_env`](Self::from_env) fills it.
    pub listen: Vec<Listen>,
    /// Which browser origins may connect. Default: the server's own.
    pub origins: OriginPolicy,
    /// Which proxies stand in front, and what they say about the client. Default: none.
    pub proxies: Proxies,
    /// Every deadline.
    pub timeouts: Timeouts,
    /// Every bound.
    pub limits: Limits,
    /// Whether messages may be compressed. Default `None`: no.
    #[cfg(feature = "deflate")]
    pub deflate: Option<Deflate>,
    /// Certificates and keys, for the listeners that speak TLS. Default `None`: there are no such
    /// listeners.
    #[cfg(feature = "tls")]
    pub tls: Option<Tls>,
    /// How fast each session may read and write. Default `None`: as fast as it can, which costs nothing.
    ///
    /// What counts are bytes on the connection, after the handshake: frames with their headers, compressed
    /// if they are, before TLS encrypts them.
    ///
    /// What a session may not write yet waits in its [outbox](crate::docs::backpressure), and fills it; its
    /// own pings, pongs and close frames count and do not wait. A message is written whole once it has
    /// begun: with some 4 KiB of small messages, or one large one, the rate may be exceeded, which is made
    /// up for afterwards. What may be written has the precision of the timers above: a bucket of less than a
    /// fifth of a second's bytes does not come up to its rate.
    ///
    /// What a session may not read yet it leaves to TCP, which slows its peer down, and the peer's pings,
    /// its close frame and its end wait behind it. No timer takes a session's own rate for silence or
    /// stalling of its peer, so while the rate holds it back a peer that has gone is not noticed, and one
    /// that only pings is not [idle](Timeouts::idle): with a reading rate, set
    /// [`lifetime`](Timeouts::lifetime), too. A session over TLS keeps up to 32 KiB of what it may not read
    /// yet, because a record is decrypted as a whole.
    ///
    /// See [`SessionRates`].
    pub rates: Option<SessionRates>,
    /// What is done with publications for sessions that do not keep up. Default: they are closed.
    pub slow_peer: SlowPeer,
    /// The same by the room's name. Default `None`: `slow_peer` for all.
    pub room_policy: Option<RoomPolicy>,
    /// What the members of a room are told when somebody comes or goes. Default `None`: nothing.
    pub presence: Option<PresenceHook>,
    /// What a peer is told where publications for it were dropped. Default `None`: nothing.
    pub gap: Option<GapHook>,
    /// How many messages, and how many bytes of them, each session takes from its peer per second. Default
    /// `None`: as many as its handler takes.
    ///
    /// This bounds what one client can have the application do, and can end its session. `rates` bounds what
    /// it can have the line carry, and only ever waits. Where both are set, both hold.
    pub inbound: Option<Inbound>,
    /// Serves clients whose network lets no WebSocket through, by long polling and server-sent events. Default
    /// `None`: no.
    #[cfg(feature = "fallback")]
    pub fallbacks: Option<Fallbacks>,
    /// Who answers requests that are no WebSocket handshake. Default `None`: they get a 426 or a 405.
    pub routes: Option<Routes>,
    /// Whether the browser's side is served at `/coracle.js`. Default no.
    pub browser_module: bool,
    /// Whether `GET /healthz` and `GET /readyz` are answered. Default no.
    pub health: bool,
    /// Where what the server counts is shown, for example `/metrics`. Default `None`: nowhere.
    #[cfg(feature = "metrics")]
    pub metrics: Option<String>,
    /// Where the HTTP endpoints are described, for example `/openapi.json`. Default `None`: nowhere.
    #[cfg(feature = "json")]
    pub openapi: Option<String>,
    /// Where what rooms are told is kept. Default: nowhere.
    pub history: History,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: None,
            backlog: 4096,
            listen: Vec::new(),
            origins: OriginPolicy::default(),
            proxies: Proxies::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            #[cfg(feature = "deflate")]
            deflate: None,
            #[cfg(feature = "tls")]
            tls: None,
            rates: None,
            slow_peer: SlowPeer::default(),
            room_policy: None,
            presence: None,
            gap: None,
            inbound: None,
            #[cfg(feature = "fallback")]
            fallbacks: None,
            routes: None,
            browser_module: false,
            health: false,
            #[cfg(feature = "metrics")]
            metrics: None,
            #[cfg(feature = "json")]
            openapi: None,
            history: History::default(),
        }
    }
}

impl Config {
    /// Shorter messages are not compressed.
    #[cfg_attr(not(feature = "deflate"), expect(clippy::unused_self, reason = "the feature does"))]
    pub(crate) fn deflate_threshold(&self) -> usize {
        #[cfg(feature = "deflate")]
        if let Some(deflate) = &self.deflate {
            return deflate.threshold;
        }
        usize::MAX
    }

    #[cfg_attr(not(feature = "deflate"), expect(clippy::unused_self, reason = "the feature does"))]
    pub(crate) fn deflate_level(&self) -> u8 {
        #[cfg(feature = "deflate")]
        if let Some(deflate) = &self.deflate {
            return deflate.level;
        }
        0
    }
}

/// The windows of permessage-deflate, as powers of two: zlib's compressor cannot do with 8 bits.
pub(crate) const MIN_WINDOW_BITS: u8 = 9;
/// 32 KiB.
pub(crate) const MAX_WINDOW_BITS: u8 = 15;

/// Compression of messages: permessage-deflate (RFC 7692), for clients that offer it.
///
/// What it saves on the wire it costs in time: compressing a kibibyte of JSON takes longer than
/// sending it over loopback. A session compresses 64 KiB and then lets the others of its worker have
/// their turn; but a message is compressed in one go, and one of 16 MiB keeps them all waiting.
/// [`Deflate::shared`] is for many sessions, [`Deflate::dedicated`] for few that send messages alike.
///
/// A peer that knows a part of a message and chooses another part may learn the rest from how long
/// the compressed message is (RFC 7692 section 8); what is secret is better sent with
/// [`Message::uncompressed`](crate::Message::uncompressed).
#[cfg(feature = "deflate")]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Deflate {
    /// Whether a message may refer to earlier ones (context takeover).
    pub mode: DeflateMode,
    /// From 0 (nothing is made smaller) over 1 (fast) to 9 (small). Default 6.
    pub level: u8,
    /// Messages shorter than this are not compressed. Default 256 bytes.
    pub threshold: usize,
    /// The window of our compressor is at most two to the power of this: 9 to 15. Default 15. A client
    /// may ask for less.
    pub server_window_bits: u8,
    /// The window of the client's compressor, if it lets us choose: 9 to 15. Default 15.
    pub client_window_bits: u8,
}

/// Who owns what compressing needs.
#[cfg(feature = "deflate")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeflateMode {
    /// The worker: each message stands for itself (no context takeover, in both directions), and a
    /// session costs no memory. Only a compressed message that is received in parts has a decompressor
    /// of its own, 46 KiB, from its first part to its last.
    ///
    /// A thread keeps up to seven compressors, one for each window that clients ask for: 371 KiB where
    /// all use the largest, 1.9 MiB in the worst case.
    Shared,
    /// The session, from its first compressed message on: messages refer to earlier ones (context
    /// takeover, unless the client declines it) and become much smaller when they are alike.
    ///
    /// | window bits | 9 | 10 | 11 | 12 | 13 | 14 | 15 |
    /// |---|---|---|---|---|---|---|---|
    /// | compressor, KiB | 245 | 247 | 251 | 259 | 275 | 307 | 371 |
    ///
    /// That is 2^(bits + 2) bytes and 243 KiB, whatever the level; the decompressor takes 46 KiB,
    /// whatever the window. A session that has not sent a compressed message has no compressor, and
    /// one that has not received any has no decompressor.
    Dedicated,
}

#[cfg(feature = "deflate")]
impl Deflate {
    /// The smallest window: zlib's compressor cannot do with 8 bits.
    pub const MIN_WINDOW_BITS: u8 = MIN_WINDOW_BITS;
    /// The largest window, 32 KiB.
    pub const MAX_WINDOW_BITS: u8 = MAX_WINDOW_BITS;

    /// Without context takeover: a session costs no memory.
    #[must_use]
    pub const fn shared() -> Self {
        Self {
            mode: DeflateMode::Shared,
            level: 6,
            threshold: 256,
            server_window_bits: Self::MAX_WINDOW_BITS,
            client_window_bits: Self::MAX_WINDOW_BITS,
        }
    }

    /// With context takeover: a session has its own windows.
    #[must_use]
    pub const fn dedicated() -> Self {
        Self { mode: DeflateMode::Dedicated, ..Self::shared() }
    }
}

/// Proxies in front of this server, by their addresses as the server sees them. The client's address,
/// [`Request::client_ip`](crate::Request::client_ip) and
/// [`Session::client_ip`](crate::Session::client_ip), is what they say; nobody else is believed.
///
/// ```
/// # use coracle::{Server, config::Network};
/// # fn main() -> coracle::Result<()> {
/// let internal: Network = "10.0.0.0/8".parse()?;
/// let server = Server::builder()
///     .configure(|config| config.proxies.trusted = vec![internal, Network::UNIX]);
/// # Ok(())
/// # }
/// ```
///
/// The limits of an address are those of the client's then: a proxy may have as many sessions as the
/// server has, and as many handshakes under way.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Proxies {
    /// HTTP proxies that are believed when they name the client in [`header`](Self::header). Default:
    /// none.
    ///
    /// The rightmost address in the header that belongs to none of these is the client's: what stands left of
    /// it may be the client's own invention.
    pub trusted: Vec<Network>,
    /// The header in which they do. Default `X-Forwarded-For`.
    ///
    /// One and not both: a proxy that writes one of them passes the other on as the client sent it.
    pub header: ForwardedHeader,
    /// Proxies that begin each connection with a header of the PROXY protocol, version 1 or 2 (HAProxy:
    /// `send-proxy`, nginx: `proxy_protocol on`, and most load balancers for TCP). Default: none.
    ///
    /// One of these that begins with anything else is refused with a 400, and so is everybody else who
    /// begins with such a header. If the client that it names is itself one of `trusted`, its `header` is
    /// looked at.
    pub proxy_protocol: Vec<Network>,
    /// Whether one of `proxy_protocol` may do without the header, and counts as the client then.
    /// Default no: clients that reach the server past the proxy, from one of its addresses, could claim
    /// to be anybody. For health checks that do not send it.
    pub proxy_protocol_optional: bool,
}

/// Where HTTP proxies say who the client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForwardedHeader {
    /// `X-Forwarded-For: client, proxy`, which nearly all write.
    #[default]
    XForwardedFor,
    /// `Forwarded: for=client, for=proxy` (RFC 7239).
    Forwarded,
}

impl Proxies {
    /// Whether a peer speaks for others.
    pub(crate) fn contain(&self, peer: Peer) -> bool {
        self.trusts(peer) || self.speaks_proxy_protocol(peer)
    }

    pub(crate) fn trusts(&self, peer: Peer) -> bool {
        self.trusted.iter().any(|network| network.contains_peer(peer))
    }

    pub(crate) fn trusts_ip(&self, ip: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(ip))
    }

    pub(crate) fn speaks_proxy_protocol(&self, peer: Peer) -> bool {
        self.proxy_protocol.iter().any(|network| network.contains_peer(peer))
    }
}

/// Every deadline. `None` switches one off, which the table of defaults does for `idle` and
/// `lifetime` only.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Timeouts {
    /// From `accept` to the 101: the header of the PROXY protocol, if there has to be one, TLS handshake,
    /// request head and accept hook together. For a request that follows others on its connection, from its first
    /// byte. Default 10 s.
    pub handshake: Duration,
    /// From the end of an answer to the first byte of the next request on its connection. Default 15 s.
    pub keep_alive: Duration,
    /// From the head of a request to what a [route](Config::routes) has to say to it; then the client gets a 503
    /// and the route is dropped. Default 30 s. How long a body may take that is
    /// [sent](crate::Reply::stream) part by part is not counted.
    pub request: Duration,
    /// Silence of the peer after which it is sent a ping. Default 25 s.
    ///
    /// Any received byte counts as a sign of life. Where there are no pings the kernel asks, see
    /// [frames](crate::docs::frames).
    pub ping: Option<Duration>,
    /// From the moment the ping has been handed to the kernel to the next byte from the peer.
    /// Default 10 s. The session ends with 1001 and [`Cause::PongTimeout`](crate::Cause).
    pub pong: Duration,
    /// No application message from the peer (pings and pongs do not count; each part of a message that is
    /// received while it arrives does). Default off.
    pub idle: Option<Duration>,
    /// The peer accepts no byte of what is waiting for it. Default 10 s.
    pub write_stall: Duration,
    /// Others wait for a [`MessageWriter`](crate::MessageWriter) that has begun, and nothing more is
    /// written. Default 10 s. The session ends with 1011 and
    /// [`Cause::WriterStalled`](crate::Cause::WriterStalled).
    pub writer: Duration,
    /// From the wish to close to the end of the closing handshake; traffic does not extend it.
    /// Default 5 s. Also how long a handler may go on after its session has ended.
    pub close: Duration,
    /// Age at which a session is closed with 1001. Default off.
    pub lifetime: Option<Duration>,
    /// A random part of `lifetime`, subtracted, so that sessions that began together do not end
    /// together. Default one tenth of `lifetime`; ignored without it.
    pub lifetime_jitter: Option<Duration>,
    /// How long a long poll waits for a message before it is answered without one; also how often an event
    /// stream is sent a sign of life. Default 10 s.
    ///
    /// Longer ones save requests, until a proxy in between gives them up, which many do after 30 s or 60 s.
    pub poll_window: Duration,
    /// How long the client of an [HTTP](crate::Protocol::Http) session may stay away: no poll, no event stream,
    /// nothing posted. Default 30 s. The session ends with [`Cause::PollTimeout`](crate::Cause::PollTimeout).
    pub poll_absence: Duration,
    /// From `request_stop` until what has not ended is cut. Default 10 s.
    pub stop: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            keep_alive: Duration::from_secs(15),
            request: Duration::from_secs(30),
            ping: Some(Duration::from_secs(25)),
            pong: Duration::from_secs(10),
            idle: None,
            write_stall: Duration::from_secs(10),
            writer: Duration::from_secs(10),
            close: Duration::from_secs(5),
            lifetime: None,
            lifetime_jitter: None,
            poll_window: Duration::from_secs(10),
            poll_absence: Duration::from_secs(30),
            stop: Duration::from_secs(10),
        }
    }
}

/// Every bound.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Largest message, in bytes of payload, whole or in fragments. Default 64 KiB; beyond it the
    /// session ends with 1009. Costs up to this much per session that is in the middle of a
    /// message, as its bytes arrive.
    pub message_bytes: usize,
    /// Largest message that is received in parts ([`Handler::stream`](crate::Handler::stream)), in
    /// bytes of payload. Default 1 GiB; beyond it 1009. It costs no memory, only time.
    pub stream_bytes: usize,
    /// Most fragments of one message, if it is not received in parts. Default 1 024; beyond it 1008.
    pub fragments: u32,
    /// Largest request head, in bytes. Default 8 KiB; beyond it 431.
    pub head_bytes: usize,
    /// Slowest request head, in bytes per second, counted from its first byte after a grace of
    /// two seconds. Default 256; below it 408.
    pub head_bytes_per_second: u32,
    /// Largest body of a request, in bytes. Default 1 MiB; beyond it 413. A route may have
    /// [its own](crate::Routes::body_bytes).
    pub body_bytes: u64,
    /// Slowest body of a request, in bytes per second, counted while somebody waits for it, after a grace of two
    /// seconds. Default 256; below it 408.
    ///
    /// An answer has to be taken as fast while it waits for its client: what is taken gives back as much of
    /// [`Timeouts::write_stall`] as it may have cost, and when nothing is left of that the connection is cut.
    pub body_bytes_per_second: u32,
    /// Messages that may wait for one peer; of publications a quarter more. Default 1 024.
    pub outbox_messages: usize,
    /// Bytes of payload that may wait for one peer; of publications a quarter more. Default 1 MiB. A single
    /// larger message is taken when nothing else waits.
    pub outbox_bytes: usize,
    /// Bytes that may wait for all peers together, each message with 192 bytes more than its payload; when it
    /// is more, the sessions for which the most waits are closed with 1013 and
    /// [`Cause::OverBudget`](crate::Cause::OverBudget), the largest first. Default `None`: an eighth of the
    /// memory of the machine, or of its container, if that may have less.
    ///
    /// Sessions for which no more than 4 KiB wait are not counted.
    pub outboxes_bytes: Option<usize>,
    /// Bytes that have been published and that no worker has handed on yet. Default 16 MiB. Beyond it
    /// [`Rooms::publish`](crate::Rooms::publish) waits, and `try_publish` gives the publication back. Each
    /// counts 512 bytes more than its payload.
    pub published_bytes: usize,
    /// Members of one room. Default 1 000 000.
    pub room_members: usize,
    /// Rooms that one session may be in. Default 128.
    pub session_rooms: usize,
    /// Open sessions. Default `None`: three quarters of the process's limit of open files.
    /// Beyond it: 503 with `Retry-After`; a connection for [frames](crate::docs::frames) is closed.
    pub sessions: Option<usize>,
    /// Open sessions of one IP address (of one /64, for IPv6): the peer's or, where
    /// [`proxies`](Proxies) say who that is, the client's. All peers of the Unix family that no proxy has
    /// named are one address. Default `None`: three quarters of `sessions`, so that no
    /// single address can keep all others out. Beyond it: 429 with `Retry-After`.
    pub sessions_per_address: Option<usize>,
    /// Connections that have not finished their handshake. Default `None`: a quarter of
    /// `sessions`, at least 64, and at most three eighths of the files that the sessions leave. One address may have three quarters of them, and no more than it may
    /// have sessions. Beyond it a new connection is answered 503 at once, without being read;
    /// where TLS is expected it is closed.
    pub handshakes: Option<usize>,
    /// Connections on which ordinary requests have come, from the first of them to the end of the connection or
    /// its upgrade, idle ones included. Three quarters of them for one address. They are neither
    /// sessions nor handshakes. Default `None`: an eighth of `sessions`, at least 64, and at most a quarter of the
    /// files that the sessions leave. Beyond it: 503 with `Retry-After`; beyond three quarters of it answers say
    /// `Connection: close`. Half as many files of [folders](crate::Routes::files) may be open at a time.
    ///
    /// A connection does not count while it carries a session's long poll or event stream: the session does.
    pub http_connections: Option<usize>,
    /// TLS handshakes under way at a time, each from the client's first bytes until both sides have
    /// agreed; three quarters of them for one address. Default: as many as `handshakes`, of which
    /// they are some.
    ///
    /// One takes some 7 KiB, several times what a request takes: a small box may want fewer. Beyond
    /// it a new connection is closed, because no answer could be read.
    #[cfg(feature = "tls")]
    pub tls_handshakes: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 64 * 1024,
            stream_bytes: 1024 * 1024 * 1024,
            fragments: 1024,
            head_bytes: 8 * 1024,
            head_bytes_per_second: 256,
            body_bytes: 1024 * 1024,
            body_bytes_per_second: 256,
            outbox_messages: 1024,
            outbox_bytes: 1024 * 1024,
            outboxes_bytes: None,
            published_bytes: 16 * 1024 * 1024,
            room_members: 1_000_000,
            session_rooms: 128,
            sessions: None,
            sessions_per_address: None,
            handshakes: None,
            http_connections: None,
            #[cfg(feature = "tls")]
            tls_handshakes: None,
        }
    }
}
