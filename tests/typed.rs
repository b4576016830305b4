//! Typed messages: the envelope, the router by type, and what becomes of messages that are neither.

mod support;

use std::collections::HashMap;
use std::sync::mpsc;

use coracle::{
    BadMessage, BoxError, Cause, CloseCode, Closures, Envelope, Error, Fault, Flow, Handler,
    HandlerError, Message, Outcome, Payload, Router, Server, Session, Typed,
};
use serde::{Deserialize, Serialize};
use support::*;

#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Chat {
    text: String,
    #[serde(default)]
    stars: u8,
}

/// `on_error` for tests: hands on the bad messages, and fails for everything else.
fn tell(
    sender: &mpsc::Sender<BadMessage>,
) -> impl AsyncFn(&Session, &HandlerError) + Send + Sync + 'static + use<> {
    let sender = sender.clone();
    async move |_: &Session, error: &HandlerError| {
        let HandlerError::BadMessage(bad) = error else { panic!("{error:?}") };
        sender.send(bad.clone()).unwrap();
    }
}

/// For the type "echo": sends back the whole text.
async fn echo(session: &Session, message: Typed<Payload>) -> Result<(), BoxError> {
    Ok(session.send(message.text().clone()).await?)
}

/// For a type whose handler must not be called, and for one that panics.
async fn never<T>(_: &Session, _: Typed<T>) {
    panic!("asked to");
}

impl Raw {
    fn say(&mut self, text: &str) {
        self.send_frame(TEXT, text.as_bytes());
    }

    /// The session is still there, and everything before has been handled.
    #[track_caller]
    fn is_served(&mut self) {
        self.echo(r#"{"type":"echo","payload":"still here"}"#);
    }

    #[track_caller]
    fn hears(&mut self, text: &str) {
        let frame = self.read_frame();
        assert_eq!((frame.opcode, String::from_utf8(frame.payload).unwrap()), (TEXT, text.into()));
    }
}

// ---- What arrives -------------------------------------------------------------------------------

#[test]
fn a_typed_message_reaches_the_handler_of_its_type_with_all_that_was_said() {
    let (messages, received) = heard();
    let server = start(Server::builder().on_typed("other", never::<Chat>).on_typed(
        "chat.message",
        async move |_: &Session, message: Typed<Chat>| {
            messages.send(message).unwrap();
        },
    ));
    let mut client = server.client();
    let text = r#" {"room":"lobby","payload":{"stars":3,"text":"\u00e4\n"},"unknown":[{}],"kind":"command",
        "\u0074ype":"chat.message","ts":"2026-01-02T03:04:05Z","id":"a-1"} "#;
    client.say(text);
    let message = received.next();
    assert_eq!(message.payload, Chat { text: "ä\n".into(), stars: 3 });
    assert_eq!((&*message.kind, message.room.as_deref()), ("command", Some("lobby")));
    assert_eq!(message.type_name, "chat.message");
    assert_eq!(message.id, Some("a-1".into()));
    assert_eq!(message.ts, Some("2026-01-02T03:04:05Z".into()));
    assert_eq!(&**message.text(), text, "as it came");
    assert_eq!(message.into_payload().stars, 3);

    client
        .say(r#"{"type":"chat.message","payload":{"text":""},"id":null,"room":null,"kind":null}"#);
    let message = received.next();
    assert_eq!(
        (&*message.kind, &message.room, &message.id, &message.ts),
        ("event", &None, &None, &None)
    );
    client.goodbye();
    server.finish();
}

#[test]
fn an_id_is_a_string_or_a_number_and_goes_back_as_it_came() {
    let server = start(Server::builder().on_typed(
        "ask",
        async |session: &Session, message: Typed<Payload>| {
            let mut answer = Envelope::new("answer", ());
            answer.id = message.id.clone();
            answer.ts = message.ts.clone();
            session.send_typed(&answer).await
        },
    ));
    let mut client = server.client();
    for written in [
        r#""""#,
        r#""1""#,
        "1",
        "-0",
        "1.0",
        "1e400",
        "123456789012345678901234567890.000000000000000000001",
        r#""\"\\\u0007""#,
    ] {
        client.say(&format!(r#"{{"id": {written} ,"ts":{written},"type":"ask","payload":{{}}}}"#));
        client
            .hears(&format!(r#"{{"id":{written},"ts":{written},"type":"answer","payload":null}}"#));
    }
    client.goodbye();
    server.finish();
}

// Payloads went through a tree of values on their way: keys were sorted, numbers above 2^53 were rounded, and
// what was nested came out flat or as text.
#[test]
fn a_payload_that_nobody_reads_is_passed_on_byte_for_byte() {
    let server = start(Server::builder().on_typed(
        "relay",
        async |session: &Session, message: Typed<Payload>| {
            session.send_typed(&message.into_envelope().room("r")).await
        },
    ));
    let mut client = server.client();
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    for payload in [
        r#"{"z":1,"a":{"z":[{"b":{}}, null],"a":"\u00e4/\/"} ,"a":2}"#,
        "[18446744073709551616, 1e999, -0.0, 0.10, 1E+2, 3.141592653589793238462643383279]",
        "{\n\t\"text\" : \"two\\nlines\"\r\n}",
        r#""\ud800 is no character""#,
        "null",
        "\"\"",
        &deep,
    ] {
        client.say(&format!(r#"{{"type":"relay","payload": {payload} }}"#));
        client.hears(&format!(r#"{{"room":"r","type":"relay","payload":{payload}}}"#));
    }
    client.goodbye();
    server.finish();
}

#[test]
fn a_payload_may_be_missing_where_its_type_can_be_made_of_nothing() {
    let (messages, received) = heard();
    let (errors, bad) = heard();
    let server = start(
        Server::builder()
            .on_typed("maybe", async move |_: &Session, message: Typed<Option<Chat>>| {
                messages.send(message.into_payload()).unwrap();
            })
            .on_typed("ping", async |session: &Session, message: Typed<()>| {
                session.send(message.text().clone()).await
            })
            .on_typed("chat", never::<Chat>)
            .on_error(tell(&errors)),
    );
    let mut client = server.client();
    client.say(r#"{"type":"maybe"}"#);
    assert_eq!(received.next(), None);
    client.say(r#"{"type":"maybe","payload":null}"#);
    assert_eq!(received.next(), None);
    client.say(r#"{"type":"maybe","payload":{"text":"x"}}"#);
    assert_eq!(received.next(), Some(Chat { text: "x".into(), stars: 0 }));
    client.say(r#"{"type":"chat"}"#);
    let missing = bad.next();
    assert_eq!((missing.fault(), missing.reason()), (Fault::Payload, "missing field `payload`"));
    assert_eq!((missing.position(), missing.type_name()), (None, Some("chat")));
    client.echo(r#"{"type":"ping"}"#);
    client.goodbye();
    server.finish();
}

// ---- What has no handler ------------------------------------------------------------------------

/// What `on_message` is told, in a server that handles the type "echo".
fn with_rest(
    messages: &mpsc::Sender<Message>,
) -> impl AsyncFn(&Session, Message) + Send + Sync + 'static + use<> {
    let messages = messages.clone();
    async move |_: &Session, message: Message| messages.send(message).unwrap()
}

#[test]
fn binary_messages_and_unknown_types_go_to_on_message_wherever_that_stands() {
    let (messages, rest) = heard();
    let (errors, bad) = heard();
    let before = Server::builder().on_message(with_rest(&messages)).on_typed("echo", echo);
    let after = Server::builder().on_typed("echo", echo).on_message(with_rest(&messages));
    let between = Server::builder()
        .on_message(with_rest(&mpsc::channel().0))
        .on_typed("other", echo)
        .on_message(with_rest(&messages))
        .on_typed("echo", echo);
    let servers = [
        start(before.on_error(tell(&errors))),
        start(after.on_error(tell(&errors))),
        start(between.on_error(tell(&errors))),
    ];
    for server in servers {
        let mut client = server.client();
        let unknown = r#"{"type":"unknown","payload":{"nested":[1]}}"#;
        client.say(unknown);
        assert_eq!(rest.next(), unknown.into());
        client.send_frame(BINARY, b"{\"type\":\"echo\"}");
        assert_eq!(rest.next(), b"{\"type\":\"echo\"}"[..].into());
        // What is broken is nobody's, not even the fallback's.
        client.say("hello");
        assert_eq!(bad.next().start(), "hello");
        client.is_served();
        assert_eq!(rest.try_next(), None);
        client.goodbye();
        server.finish();
    }
}

#[test]
fn an_unknown_type_is_an_error_that_the_session_survives_where_there_is_no_on_message() {
    let (errors, bad) = heard();
    let server = start(Server::builder().on_typed("echo", echo).on_error(tell(&errors)));
    let mut client = server.client();
    let text = r#"{"type":"unk\nown","payload":{}}"#;
    client.say(text);
    let unknown = bad.next();
    assert_eq!((unknown.fault(), unknown.type_name()), (Fault::UnknownType, Some("unk\nown")));
    assert_eq!(unknown.start(), text);
    let said = unknown.to_string();
    assert!(said.contains(r#"unknown type "unk\nown""#), "{said}");
    client.is_served();
    client.goodbye();
    server.finish();
}

#[test]
fn a_binary_message_closes_the_session_where_there_is_no_on_message() {
    let (closes, records) = heard();
    let server = start(Server::builder().on_typed("echo", echo).on_close(record(&closes)));
    let mut client = server.client();
    client.is_served();
    client.send_frame(BINARY, b"{\"type\":\"echo\",\"payload\":1}");
    client.expect_close(1008);
    assert_eq!(records.next().cause, Cause::Requested);
    server.finish();
}

// ---- What is broken -----------------------------------------------------------------------------

/// A tree, which is as deep as its sender likes.
#[derive(Debug, Deserialize)]
struct Tree {
    #[serde(rename = "t")]
    _inner: Option<Box<Self>>,
}

#[derive(Debug, Deserialize)]
enum Move {
    Left,
    Right,
}

#[test]
fn what_is_broken_is_told_to_on_error_and_the_session_goes_on() {
    let (errors, bad) = heard();
    let server = start(
        Server::builder()
            .workers(1)
            .on_typed("echo", echo)
            .on_typed("chat", never::<Chat>)
            .on_typed("float", never::<f64>)
            .on_typed("tree", never::<Tree>)
            .on_typed("move", never::<Move>)
            .on_error(tell(&errors)),
    );
    let (mut client, mut bystander) = (server.client(), server.client());
    let open = 60_000;
    let (arrays, objects) = ("[".repeat(open), "{\"t\":".repeat(open / 5));
    let digits = "9".repeat(open);
    let deep = format!("{}null{}", "{\"t\":".repeat(10_000), "}".repeat(10_000));
    let (broken, payload) = (Fault::Envelope, Fault::Payload);
    let cases: &[(&str, Fault, &str)] = &[
        // No JSON.
        ("", broken, "EOF while parsing a value"),
        ("hello", broken, "expected value"),
        ("{", broken, "EOF while parsing an object"),
        ("{\"type\":\"echo\",\"payload\":1", broken, "EOF while parsing an object"),
        ("{\"type\":\"echo\",\"payload\":1}}", broken, "trailing characters"),
        ("{\"type\":\"echo\",\"payload\":1,}", broken, "trailing comma"),
        ("{'type':'echo'}", broken, "key must be a string"),
        ("{\"type\":\"echo\",\"payload\":NaN}", broken, "expected value"),
        ("{\"type\":\"echo\",\"payload\":01}", broken, "invalid number"),
        ("{\"type\":\"echo\",\"payload\":1.}", broken, "invalid number"),
        ("\u{feff}{\"type\":\"echo\",\"payload\":1}", broken, "expected value"),
        // Strings that are none.
        (r#"{"type":"ec\ho","payload":1}"#, broken, "invalid escape"),
        (r#"{"type":"ec\u12","payload":1}"#, broken, "invalid escape"),
        (r#"{"type":"\ud800","payload":1}"#, broken, "hex escape"),
        (r#"{"type":"\udc00","payload":1}"#, broken, "surrogate"),
        (r#"{"type":"echo","payload":"\x00"}"#, broken, "invalid escape"),
        ("{\"type\":\"echo\",\"payload\":\"\n\"}", broken, "control character"),
        ("{\"type\":\"echo\",\"payload\":\"\0\"}", broken, "control character"),
        // No envelope.
        ("null", broken, "invalid type: null, expected an envelope"),
        ("7", broken, "expected an envelope"),
        (r#""echo""#, broken, "expected an envelope"),
        (r#"["echo",1]"#, broken, "expected an envelope"),
        ("{}", broken, "missing field `type`"),
        (r#"{"payload":1,"kind":"event"}"#, broken, "missing field `type`"),
        (r#"{"type":7,"payload":1}"#, broken, "invalid type: integer `7`, expected a string"),
        (r#"{"type":null,"payload":1}"#, broken, "invalid type: null, expected a string"),
        (r#"{"type":["echo"],"payload":1}"#, broken, "expected a string"),
        (r#"{"type":"echo","payload":1,"kind":1}"#, broken, "expected a string"),
        (r#"{"type":"echo","payload":1,"room":{}}"#, broken, "expected a string"),
        (r#"{"type":"echo","payload":1,"id":{}}"#, broken, "expected a string or a number"),
        (r#"{"type":"echo","payload":1,"id":[1]}"#, broken, "expected a string or a number"),
        (r#"{"type":"echo","payload":1,"ts":true}"#, broken, "expected a string or a number"),
        (r#"{"type":"echo","payload":1,"id":"\udfff"}"#, broken, "broken escape"),
        // Two readers would read two things.
        (r#"{"type":"echo","type":"chat","payload":1}"#, broken, "duplicate field `type`"),
        (r#"{"type":"echo","\u0074ype":"chat","payload":1}"#, broken, "duplicate field `type`"),
        (r#"{"type":"echo","payload":1,"payload":2}"#, broken, "duplicate field `payload`"),
        (r#"{"id":null,"id":1,"type":"echo","payload":1}"#, broken, "duplicate field `id`"),
        // Another payload.
        (r#"{"type":"chat","payload":{}}"#, payload, "missing field `text`"),
        (r#"{"type":"chat","payload":null}"#, payload, "invalid type: null, expected struct Chat"),
        (r#"{"type":"chat","payload":{"text":1}}"#, payload, "integer `1`, expected a string"),
        (r#"{"type":"chat","payload":{"text":"\udabc"}}"#, payload, "hex escape"),
        (r#"{"type":"chat","payload":{"text":"","text":""}}"#, payload, "duplicate field `text`"),
        (r#"{"type":"chat","payload":{"text":"","stars":256}}"#, payload, "`256`, expected u8"),
        (r#"{"type":"chat","payload":{"text":"","stars":-1}}"#, payload, "`-1`, expected u8"),
        (r#"{"type":"float","payload":1e400}"#, payload, "number out of range"),
        (r#"{"type":"move","payload":"Up\r\nGET"}"#, payload, "unknown variant `Up\\r\\nGET`"),
        // As much of it as fits into a message.
        (&arrays, broken, "expected an envelope"),
        (&objects, broken, "EOF"),
        (&format!("{{\"type\":\"tree\",\"payload\":{arrays}"), broken, "EOF"),
        (&format!("{{\"type\":\"tree\",\"payload\":{deep}}}"), payload, "recursion limit"),
        (&format!("{{\"type\":\"float\",\"payload\":{digits}}}"), payload, "out of range"),
        (&format!("{{\"type\":{digits},\"payload\":1}}"), broken, ""),
        (&format!("{{\"type\":\"chat\",\"payload\":\"{digits}\"}}"), payload, "string \"999"),
    ];
    for (text, fault, reason) in cases {
        client.say(text);
        let bad = bad.next();
        let said = bad.to_string();
        assert_eq!(bad.fault(), *fault, "{said}");
        assert!(bad.reason().contains(reason), "{said}");
        assert!(text.starts_with(bad.start()), "{said}");
        assert!(bad.start().len() <= BadMessage::START_BYTES, "{said}");
        // For a log: one line, and not a long one.
        assert!(!said.contains(char::is_control) && said.len() < 1024, "{said}");
        client.is_served();
        bystander.is_served();
    }
    assert!(bad.try_next().is_none());
    client.goodbye();
    bystander.goodbye();
    assert_eq!(server.finish().panics, 0);
}

#[test]
fn what_nobody_asks_for_may_be_as_deep_as_it_likes() {
    let server = start(Server::builder().on_typed(
        "chat",
        async |session: &Session, message: Typed<Chat>| {
            session.send(message.payload.text.clone()).await
        },
    ));
    let mut client = server.client();
    let deep = format!("{}{}", "[".repeat(15_000), "]".repeat(15_000));
    client.say(&format!(
        r#"{{"more":{deep},"payload":{{"more":{deep},"text":"found"}},"type":"chat"}}"#
    ));
    client.hears("found");
    client.goodbye();
    server.finish();
}

#[test]
fn an_error_says_where_in_the_whole_message_it_is() {
    let (errors, bad) = heard();
    let server = start(Server::builder().on_typed("chat", never::<Chat>).on_error(tell(&errors)));
    let mut client = server.client();
    // A column is that of the last byte that was read.
    for (text, position) in [
        ("{\"type\":\"chat\",\n  \"payload\":x}", (2, 13)),
        ("{\"type\":\"chat\",\"payload\":{\"text\":1}}", (1, 34)),
        ("{\"type\":\"chat\",\n\n \"payload\": {\"text\":1}}", (3, 21)),
        ("{\"type\":\"chat\",\n\"payload\":{\n\"text\":\n1}}", (4, 1)),
    ] {
        client.say(text);
        let bad = bad.next();
        assert_eq!(bad.position(), Some(position), "{text}: {bad}");
        let (line, column) = position;
        assert!(bad.to_string().contains(&format!(" at line {line} column {column};")), "{bad}");
    }
    client.goodbye();
    server.finish();
}

#[test]
fn the_first_bytes_of_a_text_are_cut_between_two_characters() {
    let (errors, bad) = heard();
    let server = start(Server::builder().on_typed("echo", echo).on_error(tell(&errors)));
    let mut client = server.client();
    const MOST: usize = BadMessage::START_BYTES;
    for (character, ahead) in [("a", 0), ("ä", 1), ("€", 1), ("🦀", 1), ("🦀", 2), ("🦀", 3)]
    {
        let text = "x".repeat(ahead) + &character.repeat(2 * MOST);
        client.say(&text);
        let start = bad.next();
        let start = start.start();
        assert!(text.starts_with(start));
        assert!(start.len() <= MOST && start.len() > MOST - character.len(), "{}", start.len());
    }
    client.say("short");
    assert_eq!(bad.next().start(), "short");
    client.goodbye();
    server.finish();
}

#[test]
fn an_on_error_may_close_the_session_for_a_bad_message() {
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .on_typed("echo", echo)
            .on_error(async |session: &Session, error: &HandlerError| {
                assert!(matches!(error, HandlerError::BadMessage(_)));
                session.close(CloseCode::UNSUPPORTED, "envelopes only");
            })
            .on_close(record(&closes)),
    );
    let mut client = server.client();
    client.say("hello");
    assert_eq!(client.expect_close(1003), "envelopes only");
    assert_eq!(records.next().cause, Cause::Requested);
    server.finish();
}

#[test]
fn an_on_error_that_panics_for_a_bad_message_ends_its_session_only() {
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .workers(1)
            .on_typed("echo", echo)
            .on_error(async |_: &Session, _: &HandlerError| panic!("asked to"))
            .on_close(record(&closes)),
    );
    let (mut client, mut bystander) = (server.client(), server.client());
    client.say("hello");
    client.expect_close(1011);
    assert_eq!(records.next().cause, Cause::HandlerPanicked);
    bystander.is_served();
    bystander.goodbye();
    assert_eq!(server.finish().panics, 1);
}

#[test]
fn an_on_message_that_reads_envelopes_itself_fails_as_softly() {
    let (errors, bad) = heard();
    let server = start(
        Server::builder()
            .on_message(async |session: &Session, message: Message| -> Result<(), BoxError> {
                let envelope = Envelope::parse(&message)?;
                let chat: Chat = envelope.payload.parse()?;
                session.send(format!("{}: {}", envelope.type_name, chat.text)).await?;
                Ok(())
            })
            .on_error(tell(&errors)),
    );
    let mut client = server.client();
    client.send_frame(BINARY, b"{}");
    let binary = bad.next();
    assert_eq!((binary.fault(), binary.start()), (Fault::Binary, ""));
    client.say("{}");
    assert_eq!(bad.next().fault(), Fault::Envelope);
    client.say(r#"{"type":"a","payload":7}"#);
    assert_eq!((bad.next().fault(), bad.try_next().is_none()), (Fault::Payload, true));
    client.say(r#"{"type":"a","payload":{"text":"b"}}"#);
    client.hears("a: b");
    client.goodbye();
    server.finish();
}

// ---- What handlers do ---------------------------------------------------------------------------

#[test]
fn a_typed_handler_can_close_the_session_and_fail() {
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .on_typed("bye", async |_: &Session, message: Typed<String>| {
                Flow::Close(CloseCode::NORMAL, message.into_payload())
            })
            .on_typed("fail", async |_: &Session, _: Typed<()>| Err::<(), _>("asked to"))
            .on_typed("panic", never::<()>)
            .on_close(record(&closes)),
    );
    let mut client = server.client();
    client.say(r#"{"type":"bye","payload":"see you"}"#);
    assert_eq!(client.expect_close(1000), "see you");
    assert_eq!(records.next().cause, Cause::Requested);
    for (type_name, cause) in [("fail", Cause::HandlerFailed), ("panic", Cause::HandlerPanicked)] {
        let mut client = server.client();
        client.say(&format!(r#"{{"type":"{type_name}"}}"#));
        client.expect_close(1011);
        assert_eq!(records.next().cause, cause);
    }
    assert_eq!(server.finish().panics, 1);
}

/// A handler with a router inside.
struct App(Router);

impl Handler for App {
    fn check(&self) -> coracle::Result<()> {
        self.0.check()
    }

    async fn message(&self, session: &Session, message: Message) -> Outcome {
        match self.0.try_dispatch(session, message).await {
            Ok(outcome) => outcome,
            Err(message) => Ok(session.send(message).await.map(|()| Flow::Continue)?),
        }
    }
}

#[test]
fn a_router_serves_by_itself_and_inside_of_a_handler() {
    let router = || {
        Router::new().on_typed("echo", echo).on_typed(
            "upper",
            async |session: &Session, message: Typed<String>| {
                session.send(message.payload.to_uppercase()).await
            },
        )
    };
    let inside = start(Server::builder().handler(App(router())));
    let itself = start(Server::builder().handler(router()));
    for server in [&inside, &itself] {
        let mut client = server.client();
        client.is_served();
        client.say(r#"{"type":"upper","payload":"quiet"}"#);
        client.hears("QUIET");
        client.say("broken");
        client.is_served();
        client.goodbye();
    }
    let mut client = inside.client();
    client.echo(r#"{"type":"unknown","payload":1}"#);
    client.goodbye();
    let mut client = itself.client();
    client.send_frame(BINARY, b"");
    client.expect_close(1008);
    inside.finish();
    itself.finish();
}

#[test]
fn a_type_with_two_handlers_is_an_error_at_start_that_names_it() {
    let router = || Router::new().on_typed("a", echo).on_typed("b", echo).on_typed("b", echo);
    let builder = || Server::builder().on_typed("a", echo).on_typed("b", echo);
    let errors = [
        builder().on_typed("b", echo).start().unwrap_err(),
        builder().on_message(async |_, _| {}).on_typed("b", echo).start().unwrap_err(),
        Server::builder().handler(router()).start().unwrap_err(),
        Server::builder().handler(App(router())).start().unwrap_err(),
        Server::builder()
            .handler(
                coracle::Paths::new()
                    .at("/a", Closures::new().on_typed("b", echo).on_typed("b", echo)),
            )
            .start()
            .unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, Error::Config(_)), "{error}");
        assert!(error.to_string().contains("\"b\" has two handlers"), "{error}");
    }
}

// ---- What leaves --------------------------------------------------------------------------------

#[test]
fn an_envelope_is_sent_with_what_was_set_and_nothing_else() {
    let server =
        start(Server::builder().on_open(async |session: &Session| -> Result<(), BoxError> {
            let chat = || Chat { text: "\"ä\"\n".into(), stars: 5 };
            session.send_typed(&Envelope::new("chat", chat())).await?;
            let full =
                Envelope::new("chat", &[1.5]).room("lobby").id(7).ts(1_700_000_000_u64).kind("k");
            session.try_send_typed(&full)?;
            session.send(Envelope::new("none", ()).id("x").kind("event").to_message()?).await?;
            Ok(())
        }));
    let mut client = server.client();
    client.hears("{\"type\":\"chat\",\"payload\":{\"text\":\"\\\"ä\\\"\\n\",\"stars\":5}}");
    client.hears(
        r#"{"id":7,"kind":"k","ts":1700000000,"room":"lobby","type":"chat","payload":[1.5]}"#,
    );
    client.hears(r#"{"id":"x","type":"none","payload":null}"#);
    client.goodbye();
    server.finish();
}

#[test]
fn a_payload_that_cannot_be_json_is_not_sent() {
    let (errors, failed) = heard();
    let server = start(
        Server::builder()
            .on_open(async |session: &Session| {
                let payload = HashMap::from([([1, 2], "keys are strings")]);
                session.send_typed(&Envelope::new("map", payload)).await
            })
            .on_error(async move |_: &Session, error: &HandlerError| {
                errors.send(error.to_string()).unwrap();
            }),
    );
    server.client().expect_close(1011);
    let said = failed.next();
    assert!(said.contains("cannot be JSON: key must be a string"), "{said}");
    server.finish();
}

// A handler that passes on that its own session has ended has not failed; here the error is one level deeper
// than that of `send`.
#[test]
fn a_handler_that_sends_an_envelope_to_its_ended_session_has_not_failed() {
    let (closes, records) = heard();
    let server = start(
        Server::builder()
            .on_typed("late", async |session: &Session, _: Typed<()>| {
                session.close(CloseCode::NORMAL, "done");
                session.send_typed(&Envelope::new("too late", ())).await
            })
            .on_error(async |_: &Session, error: &HandlerError| panic!("{error}"))
            .on_close(record(&closes)),
    );
    let mut client = server.client();
    client.say(r#"{"type":"late"}"#);
    assert_eq!(client.expect_close(1000), "done");
    assert_eq!(records.next().cause, Cause::Requested);
    assert_eq!(server.finish().panics, 0);
}

#[test]
fn what_one_side_sends_the_other_reads() {
    let sent = Envelope::new("chat", Chat { text: "x".into(), stars: 1 }).room("r").id("i").ts(-1);
    let message = sent.to_message().unwrap();
    let text = message.as_text().unwrap();
    let read: Envelope<Chat> = serde_json::from_str(text).unwrap();
    assert_eq!(read, sent);
    let raw: Envelope = serde_json::from_str(text).unwrap();
    assert_eq!(raw.payload.as_str(), r#"{"text":"x","stars":1}"#);
    assert_eq!(raw.payload.parse::<Chat>().unwrap(), sent.payload);
    let value = serde_json::to_value(&sent).unwrap();
    assert_eq!(serde_json::from_value::<Envelope<Chat>>(value).unwrap(), sent);
    let missing: Envelope<Option<u8>> = serde_json::from_str(r#"{"type":"t"}"#).unwrap();
    assert_eq!(missing, Envelope::new("t", None));
    let error = serde_json::from_str::<Envelope<Chat>>(r#"{"type":"t"}"#).unwrap_err();
    assert!(error.to_string().contains("missing field `payload`"), "{error}");
}
