//! Several handlers on one server, by the path of the request.

#[path = "support/answer.rs"]
mod answer;
mod support;

use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use answer::ask;
use coracle::{
    Closed, Closures, Error, Flow, Handler, HandlerError, Handover, Incoming, Message, Outcome,
    Paths, Request, Response, Server, Session, Upgrade, http_types,
};
use support::*;

impl TestServer {
    /// A session at this path.
    #[track_caller]
    fn at(&self, target: &str) -> Raw {
        let mut raw = self.raw();
        raw.send(handshake(target).as_bytes());
        let head = raw.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{target}: {head}");
        raw
    }
}

/// Says its name and what the path has in these places, when a session begins.
fn says(name: &'static str, places: &'static [&'static str]) -> impl Handler {
    Closures::new().on_open(async move |session: &Session| {
        let values = places.iter().map(|place| format!(" {place}={:?}", session.param(place)));
        session.send(name.to_owned() + &values.collect::<String>()).await
    })
}

#[track_caller]
fn hears(client: &mut Raw, text: &str) {
    let frame = client.read_frame();
    assert_eq!((frame.opcode, String::from_utf8(frame.payload).unwrap()), (TEXT, text.into()));
}

#[test]
fn each_path_has_its_own_handler() {
    let paths = Paths::new()
        .at("/{*rest}", says("rest", &["rest", "room"]))
        .at("/chat/{room}", says("chat", &["room", "rest"]))
        .at("/chat/lobby", says("lobby", &["room"]))
        .at("/chat/{room}/{user}", says("user", &["user", "room"]))
        .at("/", says("root", &["rest"]))
        .at("/{room}/lobby", says("any lobby", &["room"]));
    let server = start(Server::builder().handler(paths));
    for (target, said) in [
        ("/", "root rest=None"),
        ("/?room=a", "root rest=None"),
        ("/chat/lobby", "lobby room=None"),
        ("/chat/lobb%79?x", "lobby room=None"),
        ("/chat/a", r#"chat room=Some("a") rest=None"#),
        ("/chat/a%20%C3%A4%2F..?room=b", r#"chat room=Some("a ä/..") rest=None"#),
        ("/chat/a/b", r#"user user=Some("b") room=Some("a")"#),
        ("/talk/lobby", r#"any lobby room=Some("talk")"#),
        ("/chat/a/", r#"rest rest=Some("chat/a/") room=None"#),
        ("/chat", r#"rest rest=Some("chat") room=None"#),
        ("/Chat/a", r#"rest rest=Some("Chat/a") room=None"#),
    ] {
        let mut client = server.at(target);
        hears(&mut client, said);
        client.goodbye();
    }
    server.finish();
}

#[test]
fn a_path_that_no_pattern_fits_is_not_found() {
    let server = start(
        Server::builder()
            .handler(Paths::new().at("/echo", says("echo", &[])).at("/{room}/x", says("x", &[]))),
    );
    let many = "/a".repeat(3_000);
    let targets =
        ["/", "/echo/", "/echo/x/y", "//echo", "/%/x", "/%ff/x", "/%e/x", "/%2Fecho", "//x", &many];
    for target in targets {
        let answer = ask(&server, handshake(target));
        assert!(answer.expect(404).body.contains("nothing is served"), "{target}");
    }
    // What is no handshake is told so first.
    ask(&server, "GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n").expect(426);
    server.at("/echo").goodbye_after("echo");
    server.finish();
}

impl Raw {
    fn goodbye_after(mut self, text: &str) {
        hears(&mut self, text);
        self.goodbye();
    }
}

#[test]
fn otherwise_serves_what_is_left() {
    let paths = Paths::new().otherwise(says("never", &[])).at("/a", says("a", &[]));
    let server = start(Server::builder().handler(paths.otherwise(says("otherwise", &["x"]))));
    server.at("/a").goodbye_after("a");
    server.at("/b").goodbye_after("otherwise x=None");
    server.at("/%zz").goodbye_after("otherwise x=None");
    server.finish();
}

/// A handler that writes down each of its callbacks.
struct Diary(&'static str, mpsc::Sender<String>);

impl Diary {
    fn write(&self, line: &str) {
        self.1.send(format!("{}: {line}", self.0)).unwrap();
    }
}

impl Handler for Diary {
    fn check(&self) -> coracle::Result<()> {
        self.write("check");
        Ok(())
    }

    async fn accept(&self, request: &Request) -> Result<Upgrade, Response> {
        self.write(&format!("accept {:?}", request.param("name")));
        if request.query() == Some("refused") {
            let mut response = Response::new(b"no".to_vec());
            *response.status_mut() = http_types::StatusCode::FORBIDDEN;
            return Err(response);
        }
        Ok(Upgrade::new().data(self.0))
    }

    async fn open(&self, session: &Session) -> Outcome {
        self.write(&format!("open {:?} {:?}", session.param("name"), session.data::<&str>()));
        Ok(Flow::Continue)
    }

    async fn message(&self, _: &Session, message: Message) -> Outcome {
        self.write(&format!("message {:?}", message.as_text()));
        if message.as_text() == Some("fail") { Err("asked to".into()) } else { Ok(Flow::Continue) }
    }

    fn streams(&self, session: &Session) -> bool {
        self.write("streams");
        session.query() == Some("stream")
    }

    async fn stream(&self, _: &Session, mut incoming: Incoming) -> Outcome {
        let mut bytes = 0;
        while let Some(part) = incoming.next().await {
            bytes += part?.len();
        }
        self.write(&format!("stream {bytes}"));
        Ok(Flow::Continue)
    }

    async fn close(&self, _: &Session, closed: &Closed) {
        self.write(&format!("close {:?}", closed.cause));
    }

    async fn error(&self, _: &Session, error: &HandlerError) {
        self.write(&format!("error {error}"));
    }
}

#[test]
fn every_callback_reaches_the_handler_of_the_path_and_no_other() {
    let (sender, told) = heard();
    let server = start(
        Server::builder().handler(
            Paths::new()
                .at("/a/{name}", Diary("a", sender.clone()))
                .at("/b/{name}", Diary("b", sender.clone()))
                .otherwise(Diary("c", sender)),
        ),
    );
    let expect = |handler: &str, lines: &[&str]| {
        for line in lines {
            assert_eq!(told.next(), format!("{handler}: {line}"));
        }
        assert_eq!(told.try_next(), None);
    };
    for handler in ["a", "b", "c"] {
        expect_next(&told, &format!("{handler}: check"));
    }
    for (handler, name) in [("a", "Some(\"x\")"), ("b", "Some(\"x\")"), ("c", "None")] {
        let accept = format!("accept {name}");
        let open = format!("open {name} Some({handler:?})");
        let mut client = server.at(&format!("/{handler}/x"));
        client.send_frame(TEXT, b"hello");
        client.send_frame(TEXT, b"fail");
        client.expect_close(1011);
        expect(
            handler,
            &[
                &accept,
                "streams",
                &open,
                "message Some(\"hello\")",
                "message Some(\"fail\")",
                "error handler failed: asked to",
                "close HandlerFailed",
            ],
        );
        let mut client = server.at(&format!("/{handler}/x?stream"));
        client.send_frame(BINARY, &[0; 70_000]);
        client.goodbye();
        expect(handler, &[&accept, "streams", &open, "stream 70000", "close PeerClosed"]);
        ask(&server, handshake(&format!("/{handler}/x?refused"))).expect(403);
        expect(handler, &[&accept]);
    }
    server.finish();
}

#[track_caller]
fn expect_next(told: &Heard<String>, line: &str) {
    assert_eq!(told.next(), line);
}

// A session that another server has upgraded has never been asked for: its handler was looked for where the
// accept hook would have left it.
#[test]
fn a_session_that_is_handed_over_finds_its_handler_by_its_path() {
    let server =
        start(Server::builder().handler(Paths::new().at("/chat/{room}", says("chat", &["room"]))));
    let hand_over = |target: &str| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let request = http_types::Request::builder().uri(target).body(()).unwrap();
        let handover = Handover::new(&request.into_parts().0);
        server.handle.serve_upgraded(smol::Async::new(ours).unwrap(), handover).unwrap();
        Raw::over(theirs.into())
    };
    hand_over("/chat/a%20b?x").goodbye_after(r#"chat room=Some("a b")"#);
    let mut nowhere = hand_over("/nowhere");
    assert!(nowhere.expect_close(1008).contains("nothing is served"));
    server.finish();
}

#[test]
fn paths_within_paths_find_their_handlers_and_the_outer_parameters() {
    let inner = Paths::new()
        .at("/api/chat/{room}", says("inner chat", &["room", "rest"]))
        .at("/api/news", says("inner news", &["rest"]));
    let paths = Paths::new().at("/api/{*rest}", inner).at("/chat/{room}", says("chat", &["room"]));
    let server = start(Server::builder().handler(paths));
    server.at("/chat/a").goodbye_after(r#"chat room=Some("a")"#);
    server.at("/api/news").goodbye_after(r#"inner news rest=Some("news")"#);
    server.at("/api/chat/a").goodbye_after(r#"inner chat room=None rest=Some("chat/a")"#);
    ask(&server, handshake("/api/chat")).expect(404);
    server.finish();
}

#[test]
fn a_session_is_served_by_one_handler_for_many_messages_beside_those_of_others() {
    let repeat = |prefix: &'static str| {
        Closures::new().on_message(async move |session: &Session, message: Message| {
            session.send(prefix.to_owned() + message.as_text().unwrap()).await
        })
    };
    let paths =
        Paths::new().at("/", repeat("root ")).at("/{x}", repeat("x ")).at("/y", repeat("y "));
    let server = start(Server::builder().workers(1).handler(paths));
    let mut clients = [("root", server.at("/")), ("x", server.at("/z")), ("y", server.at("/y"))];
    for number in 0..50 {
        for (_, client) in &mut clients {
            client.send_frame(TEXT, number.to_string().as_bytes());
        }
        for (name, client) in &mut clients {
            hears(client, &format!("{name} {number}"));
        }
    }
    for (_, client) in clients {
        client.goodbye();
    }
    server.finish();
}

#[test]
fn patterns_that_cannot_be_are_errors_at_start_that_name_them() {
    let with = |pattern: &str| {
        let paths = Paths::new().at("/a/{x}/c", Closures::new()).at("/", Closures::new());
        Server::builder().handler(paths.at(pattern, Closures::new())).start().unwrap_err()
    };
    for (pattern, problem) in [
        ("a", "begins with a slash"),
        ("/a/{y}/c", "the same paths as \"/a/{x}/c\""),
        ("/", "the same paths as \"/\""),
        ("/{x}{y}", "a name of letters"),
        ("/a{x}", "whole segment"),
        ("/{*x}/b", "nothing can follow"),
        ("/{x}/{x}", "two places with the name \"x\""),
        ("/a%20b", "write it as it reads"),
    ] {
        let error = with(pattern);
        assert!(matches!(error, Error::Config(_)), "{error}");
        let said = error.to_string();
        assert!(said.contains(&format!("{pattern:?}")) && said.contains(problem), "{said}");
    }
    let inner = Paths::new().at("wrong", Closures::new());
    let outer = Paths::new().otherwise(inner);
    let error = Server::builder().handler(outer).start().unwrap_err();
    assert!(error.to_string().contains("\"wrong\""), "{error}");
}
