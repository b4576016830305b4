//! Files from a folder: what they are sent as, and what is no file of it.

#[path = "support/http.rs"]
mod http;
mod support;

use std::fs;
use std::os::unix::fs::symlink;

use coracle::{Routes, Server};
use http::{Answer, Client, get, request};
use support::*;

/// More than is read at a time.
const LARGE: usize = 300_000;

struct Site {
    server: TestServer,
    scratch: Scratch,
    client: std::cell::RefCell<Client>,
}

fn site(prefix: &str) -> Site {
    let scratch = Scratch::new("files");
    scratch.write("secret", "secret");
    let www = scratch.path("www");
    for folder in ["", "sub", "sub/empty", ".git"] {
        fs::create_dir_all(www.join(folder)).unwrap();
    }
    for (name, content) in [
        ("index.html", "<p>home"),
        ("a b.txt", "spaced"),
        ("style.css", "p {}"),
        ("empty", ""),
        (".env", "secret"),
        (".git/config", "secret"),
        ("sub/index.html", "<p>sub"),
        ("sub/\u{e9}.txt", "accent"),
    ] {
        fs::write(www.join(name), content).unwrap();
    }
    let large: Vec<u8> = (0..LARGE).map(|at| (at % 251) as u8).collect();
    fs::write(www.join("large.bin"), large).unwrap();
    symlink(scratch.path("secret"), www.join("out")).unwrap();
    symlink("../secret", www.join("out2")).unwrap();
    symlink(scratch.dir(), www.join("up")).unwrap();
    symlink("sub/index.html", www.join("in")).unwrap();
    symlink("loop", www.join("loop")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(www.join("pipe")).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo");
    let server = start(Server::builder().routes(Routes::new().files(prefix, &www)));
    let client = Client::of(&server).into();
    Site { server, scratch, client }
}

impl Site {
    #[track_caller]
    fn ask(&self, target: &str, more: &str) -> Answer {
        let mut client = self.client.borrow_mut();
        client.send(request("GET", target, more));
        client.answer()
    }
}

#[test]
fn a_file_comes_with_its_type_and_a_folder_with_its_page() {
    let site = site("/static/");
    for (target, kind, body) in [
        ("/static/", "text/html; charset=utf-8", "<p>home"),
        ("/static/index.html", "text/html; charset=utf-8", "<p>home"),
        ("/static/a%20b.txt?v=1", "text/plain; charset=utf-8", "spaced"),
        ("/static/style.css", "text/css; charset=utf-8", "p {}"),
        ("/static/empty", "application/octet-stream", ""),
        ("/static/sub/", "text/html; charset=utf-8", "<p>sub"),
        ("/static/sub/%C3%A9.txt", "text/plain; charset=utf-8", "accent"),
        ("/static/in", "application/octet-stream", "<p>sub"),
    ] {
        let answer = site.ask(target, "");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)), "{target}");
        assert_eq!(answer.text(), body);
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    let large = site.ask("/static/large.bin", "").body;
    assert!(
        large.len() == LARGE && large.iter().enumerate().all(|(at, it)| *it == (at % 251) as u8)
    );
    for (target, to) in [
        ("/static", "/static/"),
        ("/static/sub", "/static/sub/"),
        ("/static/sub?a=b", "/static/sub/?a=b"),
    ] {
        let answer = site.ask(target, "");
        assert_eq!((answer.status, answer.header("location")), (301, Some(to)));
    }
    site.client.borrow_mut().send(request("HEAD", "/static/large.bin", ""));
    let answer = site.client.borrow_mut().head_answer();
    assert_eq!(answer.header("content-length"), Some("300000"));
    site.client.borrow_mut().send(request("POST", "/static/index.html", ""));
    let answer = site.client.borrow_mut().answer();
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
    site.server.finish();
}

#[test]
fn nothing_outside_of_the_folder_is_served_and_nothing_hidden() {
    for prefix in ["/static", ""] {
        let site = site(prefix);
        for path in [
            "none",
            "sub/empty/",
            "index.html/",
            "index.html/a",
            "../secret",
            "sub/../../secret",
            "%2e%2e/secret",
            "%2E%2E/secret",
            ".%2e/secret",
            "sub/%2e%2e/%2e%2e/secret",
            "..%2fsecret",
            "..%2Fsecret",
            "sub%2findex.html",
            "..\\secret",
            "..%5csecret",
            "%2fetc%2fpasswd",
            "/etc/passwd",
            "//etc/passwd",
            "sub//index.html",
            "./index.html",
            "sub/./index.html",
            "index.html%00",
            "index.html%00.txt",
            "%00",
            ".env",
            "%2eenv",
            ".git/config",
            ".git/",
            "sub/.",
            "sub/..",
            "out",
            "out2",
            "up/secret",
            "up/",
            "loop",
            "pipe",
            "%ff",
            "%c0%ae%c0%ae/secret",
            "%252e%252e/secret",
            "%zz",
            "in/",
            "a%20b.txt/",
        ] {
            let answer = site.ask(&format!("{prefix}/{path}"), "");
            assert_eq!(answer.status, 404, "{prefix}/{path}: {answer:?}");
        }
        let long = format!("{prefix}/{}", "x".repeat(300));
        assert_eq!(site.ask(&long, "").status, 404);
        // A link of somebody's own to another host.
        assert_eq!(site.ask(&format!("{prefix}//sub"), "").status, 404);
        assert_eq!(site.ask(&format!("{prefix}/index.html"), "").status, 200);
        site.server.finish();
    }
}

#[test]
fn what_the_client_has_is_not_sent_again() {
    let site = site("/static");
    let first = site.ask("/static/style.css", "");
    let tag = first.header("etag").unwrap().to_owned();
    let date = first.header("last-modified").unwrap().to_owned();
    assert!(tag.starts_with("W/\""), "{tag}");
    for (more, status) in [
        (format!("If-None-Match: {tag}\r\n"), 304),
        (format!("If-None-Match: \"other\", {}\r\n", &tag[2..]), 304),
        ("If-None-Match: *\r\n".into(), 304),
        ("If-None-Match: \"other\"\r\n".into(), 200),
        (format!("If-Modified-Since: {date}\r\n"), 304),
        ("If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT\r\n".into(), 304),
        ("If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n".into(), 200),
        ("If-Modified-Since: yesterday\r\n".into(), 200),
        // The tag is asked first.
        (format!("If-None-Match: \"other\"\r\nIf-Modified-Since: {date}\r\n"), 200),
    ] {
        let answer = site.ask("/static/style.css", &more);
        assert_eq!(answer.status, status, "{more}");
        assert_eq!(answer.header("etag"), Some(&*tag));
        assert_eq!(answer.text(), if status == 304 { "" } else { "p {}" });
    }
    fs::write(site.scratch.path("www/style.css"), "p { color: red }").unwrap();
    assert_eq!(site.ask("/static/style.css", &format!("If-None-Match: {tag}\r\n")).status, 200);
    site.server.finish();
}

#[test]
fn one_range_of_a_file_comes_alone() {
    let site = site("/static");
    for (range, content, from) in [
        ("bytes=0-9", "bytes 0-9/300000", 0),
        ("bytes=299990-", "bytes 299990-299999/300000", 299_990),
        ("bytes=-10", "bytes 299990-299999/300000", 299_990),
        ("bytes=65530-65539", "bytes 65530-65539/300000", 65_530),
    ] {
        let answer = site.ask("/static/large.bin", &format!("Range: {range}\r\n"));
        assert_eq!((answer.status, answer.header("content-range")), (206, Some(content)));
        let expected: Vec<u8> = (from..from + 10).map(|at: usize| (at % 251) as u8).collect();
        assert_eq!(answer.body, expected);
    }
    let answer = site.ask("/static/large.bin", "Range: bytes=1000-200999\r\n");
    assert_eq!((answer.status, answer.body.len()), (206, 200_000));
    assert!(answer.body.iter().enumerate().all(|(at, it)| *it == ((at + 1000) % 251) as u8));
    let beyond = site.ask("/static/style.css", "Range: bytes=4-\r\n");
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */4")));
    for more in ["Range: bytes=0-0,2-3\r\n", "Range: lines=1-2\r\n", "Range: bytes=3-1\r\n"] {
        let answer = site.ask("/static/style.css", more);
        assert_eq!((answer.status, answer.text()), (200, "p {}".into()), "{more}");
    }
    site.server.finish();
}

#[test]
fn a_range_of_another_version_is_the_whole_file() {
    let site = site("/static");
    let path = site.scratch.path("www/style.css");
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000))
        .unwrap();
    let ask = |condition: &str| {
        let more = format!("Range: bytes=0-0\r\nIf-Range: {condition}\r\n");
        site.ask("/static/style.css", &more).status
    };
    assert_eq!(ask("Sun, 09 Sep 2001 01:46:40 GMT"), 206);
    assert_eq!(ask("Sun, 09 Sep 2001 01:46:39 GMT"), 200);
    let tag = site.ask("/static/style.css", "").header("etag").unwrap().to_owned();
    assert_eq!(ask(&tag), 200, "a weak tag says nothing of single bytes");
    site.server.finish();
}

#[test]
fn a_client_that_reads_slowly_is_sent_as_much_as_it_reads() {
    let site = site("/static");
    fs::File::create(site.scratch.path("www/huge")).unwrap().set_len(64 << 20).unwrap();
    let mut client = Client::of(&site.server);
    client.send(get("/static/huge"));
    assert_eq!(client.head_answer().header("content-length"), Some("67108864"));
    client.exactly(1000);
    // Others are served meanwhile.
    assert_eq!(site.ask("/static/style.css", "").status, 200);
    let rest = (64 << 20) - 1000;
    assert!(client.exactly(rest).iter().all(|byte| *byte == 0));
    client.send(get("/static/style.css"));
    assert_eq!(client.answer().text(), "p {}");
    site.server.finish();
}

#[test]
fn a_file_that_shrinks_while_it_is_sent_cuts_the_connection() {
    let site = site("/static");
    let path = site.scratch.path("www/huge");
    let file = fs::File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    let mut client = Client::of(&site.server);
    client.send(get("/static/huge"));
    assert_eq!(client.head_answer().status, 200);
    file.set_len(1).unwrap();
    let got = client.raw().read_to_end().len();
    assert!(got < 64 << 20, "{got}");
    site.server.finish();
}
