//! Files of a folder, as answers (RFC 9110 sections 13 and 14).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue, LAST_MODIFIED,
    LOCATION, X_CONTENT_TYPE_OPTIONS,
};
use ::http::{Method, StatusCode};
use bytes::Bytes;
use futures_lite::stream;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::refusal::Refusal;
use super::reply::Reply;
use super::request::Request;
use super::token;
use crate::hub::{Limits, OpenFile};

/// Bytes that are read at a time, and that an answer holds at most: a page or a script is one such piece, and
/// is read when its file is opened.
const PIECE: usize = 64 * 1024;

/// The first second of the year 10000, since the epoch (one more than `date -u -d '9999-12-31 23:59:59' +%s`).
const END_OF_DATES: u64 = 253_402_300_800;

/// What the folder of a path with a slash at its end is answered with.
const INDEX: &str = "index.html";

/// A folder whose files are served.
#[derive(Debug)]
pub(crate) struct Folder {
    root: Arc<Path>,
}

/// A file that may be served, and what of it.
struct Found {
    version: Version,
    wanted: Wanted,
    content: Content,
}

/// What a file is known by.
struct Version {
    size: u64,
    modified: SystemTime,
}

/// What has been read of a file.
enum Content {
    /// Nothing is to be sent.
    Nothing,
    All(Bytes),
    /// It is read piece by piece.
    Open(Opened),
}

/// A file, among as many as may be open.
struct Opened {
    file: File,
    _permission: OpenFile,
}

/// What there is at a path.
enum Place {
    File(Found),
    Folder,
    Nothing,
}

impl Folder {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root: root.into() }
    }

    /// # Errors
    ///
    /// Why there are no files in it.
    pub(super) fn check(&self) -> Result<(), String> {
        match std::fs::metadata(&self.root) {
            Ok(it) if it.is_dir() => Ok(()),
            Ok(_) => Err(format!("{} is no folder", self.root.display())),
            Err(error) => Err(format!("{}: {error}", self.root.display())),
        }
    }

    pub(super) async fn answer(&self, request: &Request, limits: &Arc<Limits>) -> Reply {
        let Some(mut path) = relative(request) else { return nothing() };
        let is_folder = path.is_empty() || path.ends_with('/');
        // The name of the mount itself, without its slash.
        if is_folder && !request.path().ends_with('/') {
            return with_slash(request);
        }
        if is_folder {
            path.push_str(INDEX);
        }
        let kind = kind(&path);
        let root = Arc::clone(&self.root);
        let asked = Asked::of(request);
        let Some(permission) = limits.file() else {
            return Refusal::unavailable("the server has as many files open as it may have").into();
        };
        // A file may be on a disk that is far away.
        let place = smol::unblock(move || look(&root, Path::new(&path), &asked, permission)).await;
        match place {
            Ok(Place::File(found)) => serve(found, kind),
            Ok(Place::Folder) if !is_folder => with_slash(request),
            Ok(Place::Folder | Place::Nothing) => nothing(),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                log::debug!(
                    "{} in {}: it shrinks again and again",
                    request.path(),
                    self.root.display()
                );
                Refusal::unavailable("the file is being written").into()
            }
            Err(error) => {
                log::error!("{} in {}: {error}", request.path(), self.root.display());
                let status = match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::MFILE | Errno::NFILE) => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                status.into()
            }
        }
    }
}

/// The path below the folder, decoded. `None`: one that no file has that may be served.
fn relative(request: &Request) -> Option<String> {
    let sent = request.path();
    // An encoded slash is no slash (RFC 3986 section 2.2), and a file name has none.
    if sent.as_bytes().windows(3).any(|it| it.eq_ignore_ascii_case(b"%2f")) {
        return None;
    }
    let path = request.param("path").unwrap_or_default().into_owned();
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        let empty = segment.is_empty() && !last;
        // `.`, `..`, and what is hidden: .git, .env.
        if empty || segment.starts_with('.') || segment.contains(['\0', '\\']) {
            return None;
        }
    }
    Some(path)
}

fn nothing() -> Reply {
    Reply::sentence(StatusCode::NOT_FOUND, "there is no such file")
}

/// To the folder's own name, which relative links in its page are relative to.
fn with_slash(request: &Request) -> Reply {
    let mut target = format!("{}/", request.path());
    if let Some(query) = request.query() {
        target.push('?');
        target.push_str(query);
    }
    let reply = Reply::sentence(StatusCode::MOVED_PERMANENTLY, "this is a folder");
    match HeaderValue::try_from(target) {
        Ok(target) => reply.with_header(LOCATION, target),
        Err(_) => nothing(),
    }
}

/// Looks for a file; reads what is wanted of it, if that is little. Blocks.
///
/// # Errors
///
/// `UnexpectedEof` of a file that has become smaller while it was read, each time it was tried.
fn look(root: &Path, path: &Path, asked: &Asked, permission: OpenFile) -> io::Result<Place> {
    let fd = match open(root, path) {
        Ok(fd) => fd,
        // XDEV: it leads out of the folder.
        Err(
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::LOOP
            | Errno::XDEV
            | Errno::NAMETOOLONG
            | Errno::ACCESS
            | Errno::PERM
            | Errno::NXIO
            | Errno::INVAL,
        ) => return Ok(Place::Nothing),
        Err(error) => return Err(error.into()),
    };
    let file = File::from(fd);
    // Somebody may write it anew between the look and the read; then it is looked at again.
    for _ in 0..3 {
        let about = file.metadata()?;
        if about.is_dir() {
            return Ok(Place::Folder);
        }
        // Devices and pipes have no end.
        if !about.is_file() {
            return Ok(Place::Nothing);
        }
        let modified = about.modified().unwrap_or(UNIX_EPOCH);
        let version = Version { size: about.len(), modified };
        let wanted = asked.wanted(&version);
        let content = match wanted.bytes(version.size) {
            None => Content::Nothing,
            Some((start, end)) => match usize::try_from(end - start) {
                Ok(len) if len <= PIECE && !asked.head => match piece(&file, start, len) {
                    Ok(bytes) => Content::All(bytes),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                    Err(error) => return Err(error),
                },
                _ => Content::Open(Opened { file, _permission: permission }),
            },
        };
        return Ok(Place::File(Found { version, wanted, content }));
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Opens it if it is in the folder, also where links lead elsewhere: the kernel sees to it.
fn open(root: &Path, path: &Path) -> Result<OwnedFd, Errno> {
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // A pipe would wait for its writer.
    let file = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let root_fd = rustix::fs::openat(CWD, root, folder, Mode::empty())?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // Somebody renames folders at this moment (openat2(2), EAGAIN): a few tries will do.
    for _ in 0..8 {
        match rustix::fs::openat2(&root_fd, path, file, Mode::empty(), beneath) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A kernel before 5.6, or a sandbox that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return open_by_name(root, path, file),
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// The same where the kernel cannot: whoever may write in the folder could exchange a file for a link between the
/// two steps.
fn open_by_name(root: &Path, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let root = root.canonicalize().map_err(errno)?;
    let path = root.join(path).canonicalize().map_err(errno)?;
    if !path.starts_with(&root) {
        return Err(Errno::XDEV);
    }
    rustix::fs::openat(CWD, &path, flags | OFlags::NOFOLLOW, Mode::empty())
}

/// So many bytes from there, all of them.
fn piece(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes.into())
}

impl Version {
    fn tag(&self) -> String {
        let (before, by) = match self.modified.duration_since(UNIX_EPOCH) {
            Ok(after) => ("", after),
            Err(before) => ("-", before.duration()),
        };
        format!("W/\"{:x}-{before}{:x}\"", self.size, by.as_nanos())
    }

    /// In whole seconds since the epoch. `None`: a date that is not written in a header, with four digits for the
    /// year (RFC 9110 section 5.6.7) and not before 1970. The clock may have been wrong, or an archive was unpacked.
    fn since(&self) -> Option<u64> {
        let since = self.modified.duration_since(UNIX_EPOCH).ok()?.as_secs();
        (since < END_OF_DATES).then_some(since)
    }

    fn date(&self) -> Option<String> {
        self.since().map(|_| httpdate::fmt_http_date(self.modified))
    }
}

fn serve(found: Found, kind: &'static str) -> Reply {
    let Found { version, wanted, content } = found;
    let (size, tag, date) = (version.size, version.tag(), version.date());
    let described = |reply: Reply| {
        let mut reply = reply
            .with_header(CACHE_CONTROL, HeaderValue::from_static("no-cache"))
            .with_header(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        for (name, value) in [(ETAG, Some(&tag)), (LAST_MODIFIED, date.as_ref())] {
            if let Some(Ok(value)) = value.map(|value| HeaderValue::from_str(value)) {
                reply = reply.with_header(name, value);
            }
        }
        reply
    };
    let (start, end) = wanted.bytes(size).unwrap_or_default();
    let status = match wanted {
        Wanted::Whole => StatusCode::OK,
        Wanted::Part(..) => StatusCode::PARTIAL_CONTENT,
        Wanted::Known => {
            return described(Reply::new("").with_status(StatusCode::NOT_MODIFIED));
        }
        Wanted::Nothing => {
            let text = format!("the file has {size} bytes");
            let reply = Reply::sentence(StatusCode::RANGE_NOT_SATISFIABLE, text);
            return content_range(described(reply), &format!("bytes */{size}"));
        }
    };
    let reply = match content {
        Content::Nothing => Reply::new(""),
        Content::All(bytes) => Reply::new(bytes),
        // The one who reads may be a disk that does not answer any more.
        Content::Open(opened) => {
            Reply::stream(pieces(opened, start, end)).with_length(end - start).in_time()
        }
    };
    let reply = described(reply)
        .with_status(status)
        .with_header(CONTENT_TYPE, HeaderValue::from_static(kind))
        // What is in the folder may have been put there by somebody else: its type is what its name says.
        .with_header(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    match status {
        StatusCode::PARTIAL_CONTENT => {
            content_range(reply, &format!("bytes {start}-{}/{size}", end.saturating_sub(1)))
        }
        _ => reply,
    }
}

fn content_range(reply: Reply, range: &str) -> Reply {
    match HeaderValue::from_str(range) {
        Ok(range) => reply.with_header(CONTENT_RANGE, range),
        Err(_) => reply,
    }
}

/// Reads the next piece when the one before has been taken.
fn pieces(
    opened: Opened,
    start: u64,
    end: u64,
) -> impl futures_lite::Stream<Item = io::Result<Bytes>> + 'static {
    // Whoever still reads when nobody waits for it holds the permission, too.
    let opened = Arc::new(opened);
    stream::try_unfold(start, move |at| {
        let opened = Arc::clone(&opened);
        async move {
            let len = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
            if len == 0 {
                return Ok(None);
            }
            let bytes = smol::unblock(move || piece(&opened.file, at, len)).await?;
            Ok(Some((bytes, at + len as u64)))
        }
    })
}

/// What a request says of the version that its client has, and of what it wants.
struct Asked {
    /// Everything but the content.
    head: bool,
    /// Tags that the client has, without their weakness.
    tags: Option<Vec<Box<[u8]>>>,
    /// When what the client has was changed, in seconds since the epoch.
    since: Option<u64>,
    /// One range of bytes, as it is written.
    range: Option<Box<str>>,
    if_range: Option<Box<[u8]>>,
}

impl Asked {
    fn of(request: &Request) -> Self {
        let mut lines = request.header_all("if-none-match").peekable();
        // No tag of ours has a comma in it.
        let tags = lines.peek().is_some().then(|| {
            let tags = lines.flat_map(token::elements);
            tags.map(|tag| opaque(tag).into()).collect()
        });
        let mut ranges = request.header_all("range");
        let range = match (ranges.next(), ranges.next(), request.method()) {
            (Some(range), None, &Method::GET) => std::str::from_utf8(range).ok(),
            _ => None,
        };
        Self {
            head: request.method() == Method::HEAD,
            tags,
            since: request.header("if-modified-since").and_then(seconds),
            range: range.and_then(|it| it.strip_prefix("bytes=")).map(|it| it.trim().into()),
            if_range: request.header_bytes("if-range").map(Into::into),
        }
    }

    /// What of this version is to be sent: one range, or the whole for whatever else stands there (RFC 9110 section
    /// 14.2).
    fn wanted(&self, version: &Version) -> Wanted {
        if self.has(version) {
            return Wanted::Known;
        }
        let Some(range) = &self.range else { return Wanted::Whole };
        // Our tags are weak and match nothing here; a date does that is the same, and too old for a second change
        // within its second (sections 13.1.5 and 8.8.2.2).
        if let Some(sent) = &self.if_range {
            let settled = version.modified.elapsed().is_ok_and(|age| age > Duration::from_secs(1));
            let same = version.date().is_some_and(|date| **sent == *date.as_bytes());
            if !same || !settled {
                return Wanted::Whole;
            }
        }
        part(range, version.size)
    }

    /// Whether the client has it already (RFC 9110 sections 13.1.2 and 13.1.3).
    fn has(&self, version: &Version) -> bool {
        if let Some(tags) = &self.tags {
            let ours = version.tag();
            return tags.iter().any(|it| **it == *b"*" || **it == *opaque(ours.as_bytes()));
        }
        // Without a date of ours theirs says nothing (section 13.1.3).
        let dates = self.since.zip(version.since());
        dates.is_some_and(|(theirs, ours)| ours <= theirs)
    }
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// A date in seconds since the epoch.
fn seconds(date: &str) -> Option<u64> {
    let date = httpdate::parse_http_date(date).ok()?;
    Some(date.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// What of a file is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Nothing: the client has it.
    Known,
    Whole,
    /// From this byte up to, and not with, that one.
    Part(u64, u64),
    /// Something behind its end.
    Nothing,
}

impl Wanted {
    /// From where to where that is of so many bytes, if any are to be sent.
    fn bytes(self, size: u64) -> Option<(u64, u64)> {
        match self {
            Self::Whole => Some((0, size)),
            Self::Part(start, end) => Some((start, end)),
            Self::Known | Self::Nothing => None,
        }
    }
}

fn part(range: &str, size: u64) -> Wanted {
    let number = |digits: &str| match digits.bytes().all(|it| it.is_ascii_digit()) {
        // More than can be counted is behind every end.
        true if !digits.is_empty() => Some(digits.parse().unwrap_or(u64::MAX)),
        _ => None,
    };
    let Some((first, last)) = range.split_once('-') else { return Wanted::Whole };
    let (start, end) = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(size)),
        (Some(first), None) if last.is_empty() => (first, size),
        (None, Some(last)) if first.is_empty() => (size.saturating_sub(last), size),
        _ => return Wanted::Whole,
    };
    if start < end { Wanted::Part(start, end) } else { Wanted::Nothing }
}

/// The type of a file by its name's end: what browsers care about. Of text it is said that it is UTF-8.
fn kind(path: &str) -> &'static str {
    let end = path.rsplit_once('.').map_or("", |(_, end)| end);
    KINDS
        .iter()
        .find(|(known, _)| end.eq_ignore_ascii_case(known))
        .map_or("application/octet-stream", |(_, kind)| kind)
}

const KINDS: &[(&str, &str)] = &[
    ("html", "text/html; charset=utf-8"),
    ("htm", "text/html; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("js", "text/javascript; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("map", "application/json"),
    ("webmanifest", "application/manifest+json"),
    ("wasm", "application/wasm"),
    ("txt", "text/plain; charset=utf-8"),
    ("md", "text/markdown; charset=utf-8"),
    ("csv", "text/csv; charset=utf-8"),
    ("xml", "text/xml; charset=utf-8"),
    ("svg", "image/svg+xml"),
    ("png", "image/png"),
    ("jpg", "image/jpeg"),
    ("jpeg", "image/jpeg"),
    ("gif", "image/gif"),
    ("webp", "image/webp"),
    ("avif", "image/avif"),
    ("ico", "image/x-icon"),
    ("woff", "font/woff"),
    ("woff2", "font/woff2"),
    ("ttf", "font/ttf"),
    ("otf", "font/otf"),
    ("mp3", "audio/mpeg"),
    ("ogg", "audio/ogg"),
    ("wav", "audio/wav"),
    ("mp4", "video/mp4"),
    ("webm", "video/webm"),
    ("pdf", "application/pdf"),
    ("zip", "application/zip"),
    ("gz", "application/gzip"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_a_part_of_the_file_and_anything_else_the_whole() {
        for (range, wanted) in [
            ("0-0", Wanted::Part(0, 1)),
            ("2-5", Wanted::Part(2, 6)),
            ("2-", Wanted::Part(2, 10)),
            ("9-", Wanted::Part(9, 10)),
            ("-3", Wanted::Part(7, 10)),
            ("-30", Wanted::Part(0, 10)),
            ("0-99999999999999999999999", Wanted::Part(0, 10)),
            ("10-", Wanted::Nothing),
            ("10-12", Wanted::Nothing),
            ("99999999999999999999999-", Wanted::Nothing),
            ("-0", Wanted::Nothing),
            ("5-2", Wanted::Whole),
            ("0-1,3-4", Wanted::Whole),
            ("-", Wanted::Whole),
            ("", Wanted::Whole),
            ("a-b", Wanted::Whole),
            ("+1-2", Wanted::Whole),
            ("1--2", Wanted::Whole),
            ("1-2-3", Wanted::Whole),
        ] {
            assert_eq!(part(range, 10), wanted, "{range}");
        }
        assert_eq!(part("0-", 0), Wanted::Nothing);
        assert_eq!(part("-1", 0), Wanted::Nothing);
    }

    #[test]
    fn a_file_of_a_time_that_no_header_can_say_is_served_without_it() {
        let path = std::env::temp_dir().join(format!("coracle-dated-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        let touched = |time| {
            file.set_times(std::fs::FileTimes::new().set_modified(time)).unwrap();
            file.metadata().unwrap().modified().unwrap()
        };
        let (early, epoch) = (touched(UNIX_EPOCH - 10 * year), touched(UNIX_EPOCH));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(early, UNIX_EPOCH - 10 * year);
        // Few file systems keep such times.
        let last = UNIX_EPOCH + Duration::from_secs(END_OF_DATES - 1);
        let late = last + Duration::from_secs(1);
        let asked = |since, if_range: Option<&[u8]>| Asked {
            head: false,
            tags: None,
            since,
            range: if_range.map(|_| "0-0".into()),
            if_range: if_range.map(Into::into),
        };
        let mut tags = Vec::new();
        for (modified, date) in [
            (early, None),
            (epoch, Some("Thu, 01 Jan 1970 00:00:00 GMT")),
            (last, Some("Fri, 31 Dec 9999 23:59:59 GMT")),
            (late, None),
        ] {
            let version = || Version { size: 2, modified };
            let found =
                Found { version: version(), wanted: Wanted::Whole, content: Content::Nothing };
            let reply = serve(found, kind("a.txt"));
            let sent = reply.headers.get(LAST_MODIFIED).map(|date| date.to_str().unwrap());
            assert_eq!(sent, date);
            tags.push(reply.headers.get(ETAG).unwrap().clone());
            let known = asked(Some(END_OF_DATES - 1), None).wanted(&version());
            assert_eq!(known == Wanted::Known, date.is_some(), "{modified:?}");
            // What is in the future is not settled.
            let part = asked(None, Some(date.unwrap_or("x").as_bytes())).wanted(&version());
            assert_eq!(part == Wanted::Part(0, 1), modified == epoch, "{modified:?}");
        }
        tags.dedup();
        assert_eq!(tags.len(), 4);
    }

    #[test]
    fn what_is_found_by_name_is_in_the_folder_also_through_links() {
        let scratch = std::env::temp_dir().join(format!("coracle-files-{}", std::process::id()));
        let root = scratch.join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(scratch.join("secret"), "secret").unwrap();
        std::fs::write(root.join("sub/file"), "file").unwrap();
        let link = |to: &str, name: &str| {
            std::os::unix::fs::symlink(to, root.join(name)).unwrap();
        };
        link("sub/file", "in");
        link("../secret", "out");
        link("..", "up");
        link(scratch.to_str().unwrap(), "away");
        link("loop", "loop");
        let open = |path: &str| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let found = open_by_name(&root, Path::new(path), flags)?;
            Ok(piece(&File::from(found), 0, 4).unwrap())
        };
        assert_eq!(open("sub/file"), Ok("file".into()));
        assert_eq!(open("in"), Ok("file".into()));
        for path in ["out", "up/secret", "away/secret", "../secret", "sub/../../secret"] {
            assert_eq!(open(path), Err(Errno::XDEV), "{path}");
        }
        assert_eq!(open("none"), Err(Errno::NOENT));
        assert_eq!(open("loop"), Err(Errno::LOOP));
        // A neighbour whose name only begins alike.
        std::fs::create_dir_all(scratch.join("root2")).unwrap();
        std::fs::write(scratch.join("root2/file"), "file").unwrap();
        assert_eq!(open("../root2/file"), Err(Errno::XDEV));
        std::fs::remove_dir_all(scratch).unwrap();
    }

    #[test]
    fn a_type_goes_by_the_end_of_the_name() {
        assert_eq!(kind("a/b.HTML"), "text/html; charset=utf-8");
        assert_eq!(kind("a.tar.gz"), "application/gzip");
        assert_eq!(kind("a.html/b"), "application/octet-stream");
        assert_eq!(kind("png"), "application/octet-stream");
    }
}
