//! Why a connection did not come to be.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use ::http::{HeaderMap, StatusCode};

use crate::error::Error;

/// How far an attempt had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The host's name is being looked up.
    Resolve,
    /// A TCP connection is being made, to one address or several.
    Connect,
    /// A proxy has been asked to connect (RFC 9110 section 9.3.6).
    Proxy,
    /// The TLS handshake.
    Tls,
    /// The HTTP request that asks for a WebSocket, and its answer (RFC 6455 section 4).
    Upgrade,
}

impl Phase {
    /// As it stands in the errors' sentences.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "looking up the name",
            Self::Connect => "connecting",
            Self::Proxy => "asking the proxy",
            Self::Tls => "the TLS handshake",
            Self::Upgrade => "the WebSocket handshake",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an attempt to connect has failed. Printed it is a sentence that says what to do, where anything can be
/// done; `Debug` prints the same.
#[non_exhaustive]
pub enum ConnectError {
    /// The URL, of the server or of the proxy, is none that can be connected to.
    Url {
        /// Without its password and its query.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A setting that cannot be; names it and says what is allowed.
    Config(String),
    /// The deadline of the whole attempt came first.
    TimedOut {
        /// What was under way.
        phase: Phase,
        /// The deadline: [`Builder::connect_timeout`](super::Builder::connect_timeout).
        after: Duration,
        /// To which addresses a connection was tried, or has been made, in this order.
        tried: Vec<SocketAddr>,
    },
    /// The host's name could not be looked up.
    Resolve {
        /// The name.
        host: String,
        /// What the system's resolver said.
        source: io::Error,
    },
    /// No address took the connection.
    Refused {
        /// Each address, and what the system said about it.
        tried: Vec<(SocketAddr, io::Error)>,
    },
    /// The proxy would not, or could not, connect.
    Proxy {
        /// Its host and port.
        proxy: String,
        /// The status of its answer, if there was one.
        status: Option<StatusCode>,
        /// What is wrong.
        problem: String,
    },
    /// The TLS handshake has failed: [`CertificateProblem`](super::CertificateProblem) says more where it is about
    /// the server's certificate.
    #[cfg(feature = "tls")]
    Tls(Box<super::TlsError>),
    /// The server answered the request for a WebSocket with something else than 101 (RFC 6455 section 4.1).
    Handshake(Box<Rejected>),
    /// The answer was no proper one to the request (RFC 6455 section 4.1), or no HTTP at all.
    Protocol {
        /// What is wrong with it.
        problem: String,
    },
    /// The connection ended before there was a WebSocket.
    Ended {
        /// What was under way.
        phase: Phase,
        /// Whose connection it was.
        peer: SocketAddr,
        /// What the system said: `UnexpectedEof` where the other side has closed the connection.
        source: io::Error,
    },
}

/// An answer that was not 101.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// The beginning of its body, as far as it came with the head: 1 024 bytes at most.
    pub body: Vec<u8>,
}

impl Rejected {
    /// How long the server asks to wait, from now on: `Retry-After` in seconds or as a date (RFC 9110 section
    /// 10.2.3).
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let value = self.headers.get(::http::header::RETRY_AFTER)?.to_str().ok()?.trim();
        match value.parse() {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => {
                let date = httpdate::parse_http_date(value).ok()?;
                Some(date.duration_since(SystemTime::now()).unwrap_or_default())
            }
        }
    }

    /// The first line of the body, if it is text.
    fn says(&self) -> Option<&str> {
        let valid = match std::str::from_utf8(&self.body) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&self.body[..error.valid_up_to()]).ok()?,
        };
        let line = valid.lines().map(str::trim).find(|line| !line.is_empty())?;
        let printable = line.len() <= 200 && !line.chars().any(char::is_control);
        printable.then_some(line)
    }
}

impl ConnectError {
    /// How far the attempt had come; `None` if it did not begin.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        match self {
            Self::Url { .. } | Self::Config(_) => None,
            Self::TimedOut { phase, .. } | Self::Ended { phase, .. } => Some(*phase),
            Self::Resolve { .. } => Some(Phase::Resolve),
            Self::Refused { .. } => Some(Phase::Connect),
            Self::Proxy { .. } => Some(Phase::Proxy),
            #[cfg(feature = "tls")]
            Self::Tls(_) => Some(Phase::Tls),
            Self::Handshake(_) | Self::Protocol { .. } => Some(Phase::Upgrade),
        }
    }

    /// How long the server has asked to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Handshake(rejected) => rejected.retry_after(),
            _ => None,
        }
    }

    /// Whether the same attempt would fail in the same way for as long as nobody changes something here or there:
    /// the URL, the settings, credentials that are refused (401, 403, 407), a path that is not there (404, 405,
    /// 410), a certificate that is not to be trusted.
    ///
    /// A [`Client`](super::Client) gives up then, unless
    /// [`Reconnect::give_up_if`](super::Reconnect::give_up_if) says otherwise.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Url { .. } | Self::Config(_) => true,
            Self::Handshake(rejected) => {
                matches!(rejected.status.as_u16(), 400 | 401 | 403 | 404 | 405 | 410 | 426)
            }
            Self::Proxy { status, .. } => {
                status.is_some_and(|status| matches!(status.as_u16(), 401 | 403 | 405 | 407))
            }
            #[cfg(feature = "tls")]
            Self::Tls(error) => error.is_lasting(),
            _ => false,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { url, problem } => write!(f, "cannot connect to {url:?}: {problem}"),
            Self::Config(problem) => write!(f, "configuration: {problem}"),
            Self::TimedOut { phase, after, tried } => {
                write!(f, "{phase} timed out: there was no WebSocket after {after:?}")?;
                match (&tried[..], phase) {
                    ([], _) => f.write_str("; is the system's name server there?"),
                    (_, Phase::Connect) => {
                        f.write_str(" (tried ")?;
                        list(f, tried)?;
                        f.write_str("): none of them took the connection in time; is the address right, and does a firewall drop packets?")
                    }
                    (_, phase) => {
                        let by = tried.last().into_iter().map(SocketAddr::to_string);
                        write!(f, "; {} took the connection and ", by.collect::<String>())?;
                        f.write_str(match phase {
                            Phase::Tls => "did not finish TLS: is it wss:// there?",
                            Phase::Proxy => "did not answer: is it a proxy?",
                            _ => {
                                "did not answer: is it a WebSocket server, and does it still work?"
                            }
                        })
                    }
                }
            }
            Self::Resolve { host, source } => write!(
                f,
                "cannot look up {host:?}: {source}; is the name right, and is there a network?"
            ),
            Self::Refused { tried } => {
                f.write_str("cannot connect: ")?;
                for (i, (address, source)) in tried.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    write!(f, "{comma}{address}: {source}")?;
                }
                let refused =
                    |it: &(SocketAddr, io::Error)| it.1.kind() == io::ErrorKind::ConnectionRefused;
                let no_port =
                    |it: &(SocketAddr, io::Error)| it.1.kind() == io::ErrorKind::AddrNotAvailable;
                if tried.iter().all(no_port) {
                    f.write_str("; this machine has no free port for another connection to there: see TIME_WAIT")?;
                } else if tried.iter().all(refused) {
                    f.write_str(
                        "; nobody listens there: is the server running, and is the port right?",
                    )?;
                }
                Ok(())
            }
            Self::Proxy { proxy, status, problem } => {
                write!(f, "the proxy {proxy} ")?;
                match status {
                    Some(status) => write!(f, "answered {status}")?,
                    None => f.write_str("is of no use")?,
                }
                write!(f, ": {problem}")
            }
            #[cfg(feature = "tls")]
            Self::Tls(error) => fmt::Display::fmt(&**error, f),
            Self::Handshake(rejected) => {
                write!(f, "the server answered {}", rejected.status)?;
                if let Some(says) = rejected.says() {
                    write!(f, " and says {says:?}")?;
                }
                f.write_str(match rejected.status.as_u16() {
                    200..=299 | 426 => "; it serves no WebSocket at this path",
                    301..=308 => {
                        "; it redirects, which is not followed: connect to where it points"
                    }
                    401 | 403 => "; credentials, an Origin or a cookie are missing or wrong",
                    404 | 410 => "; is the path right?",
                    429 => "; it has too many connections of this client",
                    502..=504 => {
                        "; it is overloaded, or stops, or what is behind it does not answer"
                    }
                    _ => "",
                })
            }
            Self::Protocol { problem } => {
                write!(f, "the server's answer is no WebSocket handshake: {problem}")
            }
            Self::Ended { phase, peer, source } => {
                if source.kind() == io::ErrorKind::UnexpectedEof {
                    write!(f, "{peer} closed the connection during {phase}")?;
                } else {
                    write!(f, "the connection to {peer} ended during {phase}: {source}")?;
                }
                f.write_str(match phase {
                    Phase::Tls => "; is it wss:// there, and does it want a client certificate?",
                    Phase::Upgrade => "; is it ws:// there, or a server that stops or is full?",
                    _ => "",
                })
            }
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, addresses: &[SocketAddr]) -> fmt::Result {
    for (i, address) in addresses.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        write!(f, "{comma}{address}")?;
    }
    Ok(())
}

impl fmt::Debug for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Resolve { source, .. } | Self::Ended { source, .. } => Some(source),
            Self::Refused { tried } => Some(&tried.first()?.1),
            #[cfg(feature = "tls")]
            Self::Tls(error) => error.source(),
            _ => None,
        }
    }
}

impl From<Error> for ConnectError {
    /// A file of ours that cannot be used.
    fn from(error: Error) -> Self {
        match error {
            Error::Config(problem) => Self::Config(problem),
            other => Self::Config(other.to_string()),
        }
    }
}
