//! Sockets that the service manager has opened for this process: systemd's socket activation,
//! sd_listen_fds(3).

use std::env;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use listenfd::ListenFd;
use rustix::net::sockopt;

use crate::error::{Error, Result};
use crate::transport::Bound;

/// More than a process can have open; what is above is a mistake and not worth a vector.
const MOST: usize = 1 << 20;

/// The name of a descriptor if LISTEN_FDNAMES is not set, as in sd_listen_fds_with_names(3).
const UNKNOWN: &str = "unknown";

/// What is left of what was passed. The environment says it once, to the whole process.
static PASSED: Mutex<Option<Passed>> = Mutex::new(None);

struct Passed {
    sockets: ListenFd,
    /// For each of them.
    names: Vec<String>,
    taken: Vec<bool>,
}

/// Takes the sockets of this name, or of any, that nobody has taken.
///
/// # Errors
///
/// There is none, or one is no stream socket that listens.
pub(super) fn take(name: Option<&str>) -> Result<Vec<Bound>> {
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    let passed = match &mut *passed {
        Some(passed) => passed,
        none => none.insert(Passed::read()?),
    };
    let mut sockets = Vec::new();
    for (index, its_name) in passed.names.iter().enumerate() {
        let wanted = name.is_none_or(|name| name == its_name);
        if wanted && !passed.taken.get(index).is_none_or(|taken| *taken) {
            sockets.push(one(&mut passed.sockets, index, its_name)?);
            passed.taken[index] = true;
        }
    }
    if sockets.is_empty() {
        return Err(problem(match name {
            Some(name) => format!(
                "no descriptor is named {name:?}, or it has been taken already; there are {:?}: set \
                 FileDescriptorName= in the socket unit",
                passed.names
            ),
            None => "all descriptors have been taken already".to_owned(),
        }));
    }
    Ok(sockets)
}

impl Passed {
    /// Reads LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES, and removes the first two, if the descriptors
    /// are for this process; otherwise nothing is touched.
    fn read() -> Result<Self> {
        let var = |name| env::var(name).ok();
        let Some(count) = var("LISTEN_FDS") else {
            return Err(problem(
                "LISTEN_FDS is not set, so no sockets have been passed: start the program by a \
                 systemd socket unit (to try it: systemd-socket-activate), or call `bind`"
                    .to_owned(),
            ));
        };
        // The library takes a missing LISTEN_PID for ours; we do not: the descriptors of a parent that
        // has not cleaned up may be anything.
        let (process, ours) = (var("LISTEN_PID").unwrap_or_default(), std::process::id());
        if process.parse() != Ok(ours) {
            return Err(problem(format!(
                "LISTEN_PID is {process:?} and this process is {ours}, so the descriptors are for \
                 another one: start the server without a shell in between (systemd: ExecStart= with \
                 the program itself, or `exec`)"
            )));
        }
        let Ok(count @ 1..=MOST) = count.parse() else {
            return Err(problem(format!(
                "LISTEN_FDS is {count:?}: it must be the number of descriptors that were passed, at \
                 least 1"
            )));
        };
        let names = match var("LISTEN_FDNAMES") {
            Some(names) => names.split(':').map(str::to_owned).collect(),
            None => vec![UNKNOWN.to_owned(); count],
        };
        if names.len() != count {
            return Err(problem(format!(
                "LISTEN_FDNAMES has {} names, and LISTEN_FDS says that there are {count} descriptors",
                names.len()
            )));
        }
        // From descriptor 3 on, or from LISTEN_FDS_FIRST_FD, which systemfd may set.
        Ok(Self { sockets: ListenFd::from_env(), names, taken: vec![false; count] })
    }
}

fn one(sockets: &mut ListenFd, index: usize, name: &str) -> Result<Bound> {
    let refused = |what: &str, source: Option<io::Error>| Error::Listen {
        on: format!("descriptor {index} of LISTEN_FDS ({name:?})"),
        problem: what.to_owned(),
        source,
    };
    let failed = |source: io::Error| refused("it cannot be used", Some(source));
    let bound = match sockets.take_tcp_listener(index) {
        Ok(listener) => listener.map(Bound::adopt_tcp),
        Err(_) => {
            let listener = sockets.take_unix_listener(index).map_err(|source| {
                refused(
                    "it is no stream socket of TCP or of the Unix family: use ListenStream= in the \
                     socket unit, and take only what is for the server with `listen_fds_named`",
                    Some(source),
                )
            })?;
            listener.map(Bound::adopt_unix)
        }
    };
    // It has been looked up as one that nobody has taken.
    let bound = bound.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into())).map_err(failed)?;
    let fd = match &bound {
        Bound::Tcp(listener) => listener.as_fd(),
        Bound::Unix(_, listener) => listener.as_fd(),
    };
    if !sockopt::socket_acceptconn(fd).map_err(|error| failed(error.into()))? {
        return Err(refused(
            "it does not listen: use Accept=no in the socket unit, so that the service gets the \
             listener and not a connection",
            None,
        ));
    }
    Ok(bound)
}

fn problem(problem: String) -> Error {
    Error::Listen { on: "the sockets of LISTEN_FDS".to_owned(), problem, source: None }
}
