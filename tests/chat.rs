//! The example `chat`, as its page and those who are not its page speak to it.
//!
//! `cargo test` builds the examples first. `cargo test --test chat` does not: it tests what
//! `cargo build --example chat` has built. In a browser it is tried by `tests/clients/chat.sh`.

#[path = "support/answer.rs"]
mod answer;
#[path = "support/example.rs"]
mod example;
mod support;

use std::process::Stdio;

use answer::{Answer, read_answer};
use example::Example;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::*;

fn start_chat() -> Example {
    let chat = Example::start("chat", Stdio::null());
    assert!(chat.place.starts_with("http://"), "for a browser: {}", chat.place);
    chat
}

#[track_caller]
fn get(chat: &Example, method: &str, path: &str) -> Answer {
    let mut raw = Raw::connect(chat.address());
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    raw.send(head.as_bytes());
    read_answer(raw)
}

/// One tab.
struct Tab {
    raw: Raw,
}

impl Tab {
    fn open(chat: &Example, path: &str) -> Self {
        let mut raw = Raw::connect(chat.address());
        raw.send(handshake(path).as_bytes());
        let head = raw.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self { raw }
    }

    /// Opens the page of a room under a name; gives back what the newcomer is told, too.
    #[track_caller]
    fn join(chat: &Example, path: &str, name: &str) -> (Self, Value) {
        let mut tab = Self::open(chat, path);
        tab.send("chat.join", json!({ "name": name }));
        let welcome = tab.expect("chat.welcome");
        (tab, welcome)
    }

    fn send(&mut self, kind: &str, payload: Value) {
        let message = json!({ "type": kind, "payload": payload }).to_string();
        self.raw.send_frame(TEXT, message.as_bytes());
    }

    fn say(&mut self, text: &str) {
        self.send("chat.message", json!({ "text": text }));
    }

    #[track_caller]
    fn next(&mut self) -> (String, Value) {
        let text = self.raw.expect_text();
        let mut message: Value = serde_json::from_str(&text).expect("a message is JSON");
        let payload = message["payload"].take();
        (message["type"].as_str().expect("a message has a type").to_owned(), payload)
    }

    /// The payload of the next message, which is of this type.
    #[track_caller]
    fn expect(&mut self, kind: &str) -> Value {
        let (got, payload) = self.next();
        assert_eq!(got, kind, "{payload}");
        payload
    }

    /// The next message is an error with this code, and a sentence.
    #[track_caller]
    fn expect_error(&mut self, code: &str) {
        let error = self.expect("chat.error");
        assert_eq!(error["code"], code, "{error}");
        assert!(error["text"].as_str().is_some_and(|text| text.contains(' ')), "{error}");
    }

    /// The next message says this.
    #[track_caller]
    fn expect_said(&mut self, name: &str, text: &str) -> Value {
        let line = self.expect("chat.message");
        assert_eq!((&line["name"], &line["text"]), (&json!(name), &json!(text)));
        line
    }
}

fn names(welcome: &Value) -> Vec<&str> {
    let members = welcome["members"].as_array().unwrap();
    let names = members.iter().map(|member| member["name"].as_str().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

fn texts(welcome: &Value) -> Vec<&str> {
    let history = welcome["history"].as_array().unwrap();
    history.iter().map(|line| line["text"].as_str().unwrap()).collect()
}

/// Closes the tabs, so that nobody keeps the server from stopping, and stops it.
fn stop<const N: usize>(chat: Example, tabs: [Tab; N]) {
    drop(tabs);
    chat.signal(Signal::TERM);
    chat.finish();
}

#[test]
fn the_page_is_served_with_a_policy_and_its_types() {
    let chat = start_chat();
    let html = "text/html; charset=utf-8";
    let mut whole = String::new();
    for (path, kind) in [
        ("/", html),
        ("/?from=elsewhere", html),
        ("/r/lobby", html),
        ("/r/boats%20%26%20m%C3%A1s", html),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
    ] {
        let answer = get(&chat, "GET", path);
        answer.expect(200);
        assert_eq!(answer.header("content-type"), Some(kind), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; "), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        let head = get(&chat, "HEAD", path);
        assert_eq!((head.status, &*head.body), (200, ""));
        assert_eq!(head.header("content-length"), answer.header("content-length"));
        whole += &answer.body;
    }
    // Nothing comes from elsewhere; the name of SVG's language is no address.
    let whole = whole.replace("http://www.w3.org/2000/svg", "");
    assert!(!whole.contains("http://") && !whole.contains("https://"));
    // Nor is anything of what others say ever taken for HTML.
    for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
        assert!(!whole.contains(sink), "{sink}");
    }
    stop(chat, []);
}

#[test]
fn what_is_no_room_has_neither_a_page_nor_a_websocket() {
    let chat = start_chat();
    let long = format!("/r/{}", "x".repeat(41));
    for path in [
        "/none",
        "/r",
        "/r/",
        "/r/%20",
        "/r/%20lobby",
        "/r/a/b",
        "/r/a%2Fb",
        "/r/%FF",
        "/r/%2",
        "/r/%zz",
        "/r/a%0Ab",
        "/r/%E2%80%AEyboon",
        "/r/%E2%80%8D",
        &long,
    ] {
        get(&chat, "GET", path).expect(404);
        let mut raw = Raw::connect(chat.address());
        raw.send(handshake(path).as_bytes());
        read_answer(raw).expect(404);
    }
    get(&chat, "GET", &long[..long.len() - 1]).expect(200);
    get(&chat, "POST", "/r/lobby").expect(405);
    stop(chat, []);
}

#[test]
fn those_in_a_room_talk_and_see_who_comes_and_goes() {
    let chat = start_chat();
    let (mut ann, welcome) = Tab::join(&chat, "/r/lobby", "Ann");
    assert_eq!((names(&welcome), texts(&welcome)), (vec!["Ann"], vec![]));
    let (mut bea, welcome) = Tab::join(&chat, "/r/lobby", "  Bea \n B. ");
    assert_eq!(names(&welcome), ["Ann", "Bea B."]);
    let joined = ann.expect("chat.joined");
    assert_eq!(joined, json!({ "session": welcome["you"], "name": "Bea B." }));
    let (mut other, _) = Tab::join(&chat, "/r/another", "Cleo");

    ann.say("hello\u{7} <b>you</b>\nthere ");
    for tab in [&mut ann, &mut bea] {
        let line = tab.expect_said("Ann", "hello <b>you</b>\nthere");
        assert_eq!(line["seq"], 1);
        assert!(line["at"].as_u64().unwrap() > 1_700_000_000_000, "{line}");
        assert_ne!(line["from"], welcome["you"]);
    }
    bea.say("hello");
    assert_eq!(ann.expect_said("Bea B.", "hello")["from"], welcome["you"]);
    bea.expect_said("Bea B.", "hello");

    // Under the same name there may be two: whoever reloads may be back before it has gone.
    let (mut again, second) = Tab::join(&chat, "/r/lobby", "Bea B.");
    assert_eq!(names(&second), ["Ann", "Bea B.", "Bea B."]);
    assert_eq!(texts(&second), ["hello <b>you</b>\nthere", "hello"]);
    assert_eq!(second["epoch"], welcome["epoch"]);
    assert_eq!(ann.expect("chat.joined")["session"], second["you"]);
    bea.raw.reset();
    for tab in [&mut ann, &mut again] {
        assert_eq!(tab.expect("chat.left")["session"], welcome["you"]);
    }
    again.raw.goodbye();
    assert_eq!(ann.expect("chat.left")["session"], second["you"]);

    // Nothing of it was heard next door.
    other.say("anybody?");
    assert_eq!(other.expect_said("Cleo", "anybody?")["seq"], 1);
    stop(chat, [ann, other]);
}

#[test]
fn a_new_name_is_the_same_session_and_keeps_its_place() {
    let chat = start_chat();
    let (mut ann, first) = Tab::join(&chat, "/r/lobby", "Ann");
    let (mut bea, _) = Tab::join(&chat, "/r/lobby", "Bea");
    ann.expect("chat.joined");
    ann.say("one");
    ann.expect_said("Ann", "one");
    bea.expect_said("Ann", "one");
    ann.send("chat.join", json!({ "name": "Anna" }));
    let second = ann.expect("chat.welcome");
    assert_eq!((&second["you"], &second["epoch"]), (&first["you"], &first["epoch"]));
    assert_eq!((names(&second), texts(&second)), (vec!["Anna", "Bea"], vec!["one"]));
    assert_eq!(bea.expect("chat.left"), json!({ "session": first["you"], "name": "Ann" }));
    assert_eq!(bea.expect("chat.joined"), json!({ "session": first["you"], "name": "Anna" }));
    // One that is refused changes nothing.
    ann.send("chat.join", json!({ "name": "" }));
    ann.expect_error("bad_name");
    ann.say("two");
    bea.expect_said("Anna", "two");
    stop(chat, [ann, bea]);
}

#[test]
fn a_newcomer_is_told_the_last_twenty_messages() {
    let chat = start_chat();
    let (mut ann, _) = Tab::join(&chat, "/r/lobby", "Ann");
    for n in 1..=25 {
        ann.say(&format!("message {n}"));
        ann.expect_said("Ann", &format!("message {n}"));
    }
    let (bea, welcome) = Tab::join(&chat, "/r/lobby", "Bea");
    let expected: Vec<_> = (6..=25).map(|n| format!("message {n}")).collect();
    assert_eq!(texts(&welcome), expected);
    let (next_door, welcome) = Tab::join(&chat, "/r/lobby2", "Bea");
    assert_eq!(texts(&welcome), [""; 0]);
    // They stay when everybody has gone.
    drop([ann, bea]);
    let (cleo, welcome) = Tab::join(&chat, "/r/lobby", "Cleo");
    assert_eq!(texts(&welcome), expected);
    stop(chat, [next_door, cleo]);
}

// What was said between the snapshot of the history and the join was lost; or it came twice, when the snapshot
// was made after the join.
#[test]
fn a_newcomer_misses_nothing_and_gets_nothing_twice_while_others_talk() {
    const TALKERS: u64 = 8;
    const EACH: u64 = 60;
    // Half of what an outbox holds, so that who is not scheduled for a while is not the slow one; and each of
    // them says less than what a second may have.
    const ALL: u64 = TALKERS * EACH;
    let chat = start_chat();
    let mut talkers: Vec<_> = (0..TALKERS).map(|_| Tab::join(&chat, "/r/lobby", "Ann")).collect();
    std::thread::scope(|scope| {
        for (talker, welcome) in &mut talkers {
            scope.spawn(move || {
                for n in 1..=EACH {
                    talker.say(&format!("{n}"));
                    // Everybody hears everything in the end.
                    let last = |line: &Value| match n {
                        EACH => line["seq"] == ALL,
                        _ => line["from"] == welcome["you"],
                    };
                    while !matches!(talker.next(), (kind, line) if kind == "chat.message" && last(&line))
                    {}
                }
            });
        }
        for _ in 0..4 {
            scope.spawn(|| {
                let mut last = 0;
                while last < ALL {
                    let (mut bea, welcome) = Tab::join(&chat, "/r/lobby", "Bea");
                    let history = welcome["history"].as_array().unwrap();
                    let mut seen: Vec<_> =
                        history.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
                    while seen.len() < 40 && seen.last() != Some(&ALL) {
                        let (kind, line) = bea.next();
                        if kind == "chat.message" {
                            seen.push(line["seq"].as_u64().unwrap());
                        }
                    }
                    assert!(seen.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{seen:?}");
                    last = *seen.last().unwrap();
                }
            });
        }
    });
    drop(talkers);
    stop(chat, []);
}

#[test]
fn what_breaks_a_bound_is_explained_and_the_conversation_goes_on() {
    let chat = start_chat();
    let mut ann = Tab::open(&chat, "/r/lobby");
    ann.say("before a name");
    ann.expect_error("no_name");
    for (name, code) in [
        ("", "bad_name"),
        (" \t ", "bad_name"),
        ("\u{200D}", "bad_name"),
        ("nna\u{202E}A", "bad_name"),
        ("A\0nn", "bad_name"),
        (&"x".repeat(25), "name_too_long"),
        (&"x".repeat(500), "name_too_long"),
    ] {
        ann.send("chat.join", json!({ "name": name }));
        ann.expect_error(code);
    }
    let longest = "ä".repeat(24);
    ann.send("chat.join", json!({ "name": longest }));
    ann.expect("chat.welcome");
    for text in ["", " \n ", "\u{1}"] {
        ann.say(text);
        ann.expect_error("empty_message");
    }
    ann.say(&"\u{1F6F6}".repeat(1001));
    ann.expect_error("message_too_long");
    let whole = "\u{1F6F6}".repeat(1000);
    ann.say(&whole);
    ann.expect_said(&longest, &whole);
    let long_type = json!({ "type": "x".repeat(1000), "payload": {} }).to_string();
    for text in [
        "",
        "hello",
        "{}",
        "[]",
        r#"{"type":"chat.message"}"#,
        r#"{"type":"chat.message","payload":{}}"#,
        r#"{"type":"chat.message","payload":{"text":1}}"#,
        r#"{"type":"chat.nonsense","payload":{}}"#,
        &long_type,
        &"[".repeat(1000),
    ] {
        ann.raw.send_frame(TEXT, text.as_bytes());
        let error = ann.expect("chat.error");
        assert_eq!(error["code"], "bad_message", "{text}");
        assert!(error["text"].as_str().unwrap().len() < 300, "{error}");
    }
    ann.raw.send_frame(BINARY, b"\0");
    ann.expect_error("bad_message");
    // What is beyond all of this is not even received.
    ann.raw.send_frame(TEXT, " ".repeat(16 * 1024 + 1).as_bytes());
    ann.raw.expect_close(1009);
    stop(chat, [ann]);
}

// Whoever made rooms, and left them, made the server remember them all.
#[test]
fn rooms_are_bounded_and_the_empty_ones_make_way() {
    const MOST: usize = 256;
    let chat = start_chat();
    let path = |n: usize| format!("/r/room-{n}");
    let (mut ann, first) = Tab::join(&chat, "/r/old", "Ann");
    ann.say("remember me");
    ann.expect_said("Ann", "remember me");
    ann.raw.goodbye();
    let mut tabs: Vec<_> = (0..MOST - 1).map(|n| Tab::join(&chat, &path(n), "Bea").0).collect();
    // There is place for this one, too, and it is what makes way for the next.
    let (ann, again) = Tab::join(&chat, "/r/old", "Ann");
    assert_eq!((texts(&again), &again["epoch"]), (vec!["remember me"], &first["epoch"]));
    let mut late = Tab::open(&chat, "/r/late");
    late.send("chat.join", json!({ "name": "Cleo" }));
    late.expect_error("too_many_rooms");
    ann.raw.goodbye();
    // Its place is free a moment after its connection has ended.
    loop {
        late.send("chat.join", json!({ "name": "Cleo" }));
        match late.next() {
            (kind, _) if kind == "chat.welcome" => break,
            (kind, error) => {
                assert_eq!((&*kind, &error["code"]), ("chat.error", &json!("too_many_rooms")));
            }
        }
    }
    // Those who are there do not notice.
    tabs[0].say("still here");
    tabs[0].expect_said("Bea", "still here");
    let mut old = Tab::open(&chat, "/r/old");
    old.send("chat.join", json!({ "name": "Ann" }));
    old.expect_error("too_many_rooms");
    drop(tabs);
    let epoch = loop {
        old.send("chat.join", json!({ "name": "Ann" }));
        match old.next() {
            (kind, welcome) if kind == "chat.welcome" => {
                assert_eq!(texts(&welcome), [""; 0], "it was forgotten");
                break welcome["epoch"].clone();
            }
            (kind, error) => {
                assert_eq!((&*kind, &error["code"]), ("chat.error", &json!("too_many_rooms")));
            }
        }
    };
    assert_ne!(epoch, first["epoch"], "its messages are counted anew, and this says so");
    stop(chat, [late, old]);
}
