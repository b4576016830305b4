//! Listening on a path of the Unix family: the file that is in the way, and the one that is left.

use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The longest path, in bytes: `sun_path` has 108, and the last is NUL (unix(7)).
const LONGEST_PATH: usize = 107;

/// How long another server may take to begin to listen in the same directory. It takes some
/// microseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 1 });
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Why a path cannot be listened on: what is wrong and what to do about it, without the path itself.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) text: String,
    pub(crate) source: Option<io::Error>,
}

impl Problem {
    fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), source: None }
    }

    fn of(source: impl Into<io::Error>, text: impl Into<String>) -> Self {
        Self { text: text.into(), source: Some(source.into()) }
    }
}

/// The file of a listening socket; dropping it removes the file, if it is still the same.
#[derive(Debug)]
pub(crate) struct SocketFile {
    /// Absolute, so that it is found after a change of the working directory.
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another server may have put its own socket there. The number of our file cannot have been
        // given to it: the file lives until our socket is closed, and this is dropped before.
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|it| identity(&it) == self.identity);
        if ours {
            if let Err(error) = fs::remove_file(&self.path) {
                log::warn!("cannot remove the socket {}: {error}", self.path.display());
            }
        }
    }
}

/// What makes a file that file, whatever its name.
fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A non-blocking socket that listens on `path`, whose file has the permissions `mode`.
///
/// A socket file on which nobody listens is removed first. Nobody can connect before the permissions
/// are set.
pub(super) fn bind(
    path: &Path,
    mode: u32,
    backlog: u32,
) -> Result<(SocketFile, UnixListener), Problem> {
    let address = address(path)?;
    let fd = socket()?;
    // From here on until the socket listens it looks like one that a crashed process has left.
    let _alone = alone(directory(path));
    match rustix::net::bind(&fd, &address) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => {
            clear_the_way(path, &address)?;
            rustix::net::bind(&fd, &address).map_err(|error| not_bound(path, error))?;
        }
        Err(error) => return Err(not_bound(path, error)),
    }
    let found = std::path::absolute(path).and_then(|path| {
        let identity = identity(&fs::symlink_metadata(&path)?);
        Ok(SocketFile { path, identity })
    });
    let file = found.map_err(|error| Problem::of(error, "its socket has been made and is gone"))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| Problem::of(error, format!("cannot give it the mode {mode:#05o}")))?;
    rustix::net::listen(&fd, i32::try_from(backlog).unwrap_or(i32::MAX))
        .map_err(|error| Problem::of(error, "its socket cannot listen"))?;
    Ok((file, fd.into()))
}

fn address(path: &Path) -> Result<SocketAddrUnix, Problem> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(Problem::new("the path is empty: name the file that the socket shall be"));
    }
    if bytes.contains(&0) {
        return Err(Problem::new("a path has no NUL byte: name a file"));
    }
    if bytes.len() > LONGEST_PATH {
        return Err(Problem::new(format!(
            "the path has {} bytes, that of a socket may have {LONGEST_PATH}: choose a shorter one, \
             for example in /run",
            bytes.len()
        )));
    }
    SocketAddrUnix::new(path).map_err(|error| Problem::of(error, "this cannot be a socket's path"))
}

/// Where the file is to be.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Lets the servers that start in a directory do it one after the other, by a lock on the directory
/// itself (flock(2)): it leaves no file behind, and whoever crashes holds it no longer.
///
/// A directory that cannot be read cannot be locked, and a stranger may hold the lock for long: then
/// it goes on without.
fn alone(directory: &Path) -> Option<File> {
    let directory = File::open(directory).ok()?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(directory),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_RETRY);
            }
            Err(error) => {
                log::warn!(
                    "cannot lock the directory of a socket ({error}): another server that starts there \
                     at this moment may take its path"
                );
                return None;
            }
        }
    }
}

fn socket() -> Result<OwnedFd, Problem> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| Problem::of(error, "cannot make a socket"))
}

/// Why `bind` has failed, by what bind(2) and unix(7) say of each error.
fn not_bound(path: &Path, error: Errno) -> Problem {
    let directory = directory(path).display();
    let text = match error {
        Errno::NOENT => format!(
            "the directory {directory} does not exist: create it (systemd: RuntimeDirectory=)"
        ),
        Errno::NOTDIR => format!("{directory} is no directory: choose another path"),
        Errno::ACCESS | Errno::PERM => format!(
            "this process may not create a file in {directory}: choose a directory that it may \
             write to, or let it run as a user who may"
        ),
        Errno::ROFS => format!("{directory} is on a read-only file system: choose another path"),
        Errno::ADDRINUSE => {
            "another process has taken the path at the same moment: choose another one, or start \
             one server only"
                .to_owned()
        }
        _ => "the system refuses it".to_owned(),
    };
    Problem::of(error, text)
}

/// Removes the socket that a process has left which did not come to do it, and nothing else.
fn clear_the_way(path: &Path, address: &SocketAddrUnix) -> Result<(), Problem> {
    let Some(found) = look(path)? else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(Problem::new(
            "there is a file that is no socket: choose another path, or move it away if it is not \
             needed",
        ));
    }
    // Whether somebody listens is known to the kernel only, and it says so to who connects.
    match rustix::net::connect(&socket()?, address) {
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        // AGAIN: its backlog is full. PROTOTYPE: it is a socket of another type.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => {
            return Err(Problem::of(
                Errno::ADDRINUSE,
                "a running process listens there: stop it, or choose another path",
            ));
        }
        Err(error @ (Errno::ACCESS | Errno::PERM)) => {
            return Err(Problem::of(
                error,
                "there is a socket that this process may not connect to, so it cannot tell \
                 whether a server still listens: remove it if none does, or choose another path",
            ));
        }
        Err(error) => {
            return Err(Problem::of(
                error,
                "there is a socket, and whether a server listens cannot be told: remove it if \
                 none does, or choose another path",
            ));
        }
    }
    // Still the one that was asked? Somebody else may have cleared the way meanwhile.
    if look(path)?.is_some_and(|now| identity(&now) == identity(&found)) {
        log::info!("removing the socket {}, on which nobody listens any more", path.display());
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Problem::of(
                    error,
                    "an old socket is there that this process may not remove: remove it, or choose \
                     another path",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What is at the path, without following a link.
fn look(path: &Path) -> Result<Option<Metadata>, Problem> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Problem::of(error, "what is there already cannot be looked at")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that is removed with everything in it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("coracle-unit-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_file_goes_with_its_guard_unless_it_is_another_one() {
        let scratch = Scratch::new("guard");
        let path = scratch.0.join("a.sock");
        let (file, listener) = bind(&path, 0o600, 1).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
        drop(listener);

        let (file, _listener) = bind(&path, 0o666, 1).unwrap();
        fs::remove_file(&path).unwrap();
        let (_successor, _its_listener) = bind(&path, 0o666, 1).unwrap();
        drop(file);
        assert!(path.exists(), "it is the successor's");
    }

    #[test]
    fn only_a_socket_that_nobody_listens_on_is_removed() {
        let scratch = Scratch::new("way");
        let path = scratch.0.join("a.sock");
        let (file, listener) = bind(&path, 0o600, 1).unwrap();
        let problem = bind(&path, 0o600, 1).unwrap_err();
        assert!(problem.text.contains("a running process listens there"), "{problem:?}");
        drop((file, listener));
        // The standard library leaves its file, as a process that is killed does.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (file, listener) = bind(&path, 0o600, 1).unwrap();
        drop((file, listener));

        fs::write(&path, "precious").unwrap();
        let problem = bind(&path, 0o600, 1).unwrap_err();
        assert!(problem.text.contains("no socket"), "{problem:?}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();

        std::os::unix::fs::symlink(scratch.0.join("nowhere"), &path).unwrap();
        let problem = bind(&path, 0o600, 1).unwrap_err();
        assert!(problem.text.contains("no socket"), "{problem:?}");
    }

    #[test]
    fn each_kind_of_wrong_path_has_its_own_words() {
        let scratch = Scratch::new("wrong");
        let long = scratch.0.join("x".repeat(LONGEST_PATH));
        let longest = Path::new("/tmp").join("x".repeat(LONGEST_PATH - 5));
        let missing = scratch.0.join("missing/a.sock");
        fs::write(scratch.0.join("file"), "").unwrap();
        for (path, part) in [
            (Path::new(""), "empty"),
            (Path::new("a\0b"), "NUL"),
            (&long, "may have 107"),
            (&missing, "does not exist: create it"),
            (&scratch.0.join("file/a.sock"), "is no directory"),
        ] {
            let problem = bind(path, 0o600, 1).unwrap_err();
            assert!(problem.text.contains(part), "{problem:?}");
        }
        assert!(address(&longest).is_ok());
    }

    /// Between `bind` and `listen` a socket looks like one that nobody serves any more.
    #[test]
    fn a_server_that_is_about_to_listen_keeps_its_path() {
        let scratch = Scratch::new("about-to-listen");
        let path = scratch.0.join("socket");
        for _ in 0..50 {
            let alone = alone(&scratch.0).expect("nobody else is there");
            let first = socket().unwrap();
            rustix::net::bind(&first, &address(&path).unwrap()).unwrap();
            let (ready, started) = std::sync::mpsc::channel();
            let second = std::thread::spawn({
                let path = path.clone();
                move || {
                    ready.send(()).unwrap();
                    bind(&path, 0o600, 1)
                }
            });
            started.recv().unwrap();
            std::thread::yield_now();
            rustix::net::listen(&first, 1).unwrap();
            drop(alone);
            let refused = second.join().unwrap().expect_err("the path is taken");
            assert!(refused.text.contains("a running process listens"), "{}", refused.text);
            assert!(fs::symlink_metadata(&path).is_ok(), "its file is still there");
            fs::remove_file(&path).unwrap();
        }
    }
}
