//! The requests of clients without WebSocket, as OpenAPI describes them.

use ::http::Method;
use serde_json::{Value, json};

use super::Fallbacks;
use crate::http::openapi::Described;

impl Fallbacks {
    /// All of them.
    pub(crate) fn described(&self) -> Vec<Described> {
        let poll = json!({
            "summary": "Opens a session, or waits for its messages.",
            "description": "Without session_id a session is opened, and answered at once with its token.",
            "parameters": [
                optional(session()), cursor(), path(),
                query("max", "Most messages in the answer.", number(1)),
                query("text", "1: every text message as a string.", json!({ "type": "string", "enum": ["1"] })),
            ],
            "responses": with_errors(&["400", "401", "403", "409", "410", "412", "429", "503"], "200", json!({
                "description": "The messages behind the cursor; none when the window is over.",
                "headers": {
                    "Coracle-Session": header("The token for all further requests.", "string"),
                    "Coracle-Cursor": header("The cursor for the next poll.", "integer"),
                    "Coracle-Close": header("The session has been closed: code and percent-encoded reason.", "string"),
                },
                "content": { "application/json": { "schema": messages() } },
            })),
        });
        let events = json!({
            "summary": "The messages of a session as server-sent events.",
            "parameters": [
                optional(session()), cursor(), path(),
                {
                    "name": "Last-Event-ID", "in": "header", "required": false,
                    "description": "The cursor of a browser that comes again.",
                    "schema": { "type": "string" },
                },
            ],
            "responses": with_errors(&["400", "401", "403", "410", "429", "503"], "200", json!({
                "description": "Events: open, messages, close.",
                "content": { "text/event-stream": { "schema": { "type": "string" } } },
            })),
        });
        let queued = json!({
            "description": "The session has the messages.",
            "content": { "application/json": { "schema": {
                "type": "object",
                "required": ["status"],
                "properties": { "status": { "const": "queued" }, "repeated": { "type": "boolean" } },
            } } },
        });
        let mut responses = with_errors(
            &["400", "401", "403", "409", "410", "413", "415", "503"],
            "202",
            queued.clone(),
        );
        responses["200"] = queued;
        let send = json!({
            "summary": "Sends messages to the server.",
            "parameters": [
                optional(session()), cursor(),
                query("seq", "Counts the posts of this client from 1: a repeated one is not delivered again.", number(1)),
            ],
            "requestBody": { "required": true, "content": {
                "application/json": { "schema": { "anyOf": [{ "type": "object" }, messages()] } },
                "text/plain": { "schema": { "type": "string" } },
                "application/octet-stream": {},
            } },
            "responses": responses,
        });
        let ack = json!({
            "summary": "Acknowledges messages.",
            "parameters": [session(), cursor()],
            "responses": with_errors(&["400", "401", "403", "410"], "204", json!({ "description": "Done." })),
        });
        let close = json!({
            "summary": "Ends a session.",
            "parameters": [
                session(), cursor(),
                query("code", "The close code.", json!({ "type": "integer", "default": 1000 })),
                query("reason", "The reason, of at most 123 bytes.", json!({ "type": "string" })),
            ],
            "responses": with_errors(&["400", "401", "403", "410"], "204", json!({ "description": "Done." })),
        });
        let described = |what: &str, method, operation| {
            let path = format!("{}/{what}", self.path);
            Described { path, method, operation }
        };
        vec![
            described("poll", Method::GET, poll),
            described("events", Method::GET, events),
            described("send", Method::POST, send),
            described("ack", Method::POST, ack),
            described("close", Method::POST, close),
        ]
    }
}

fn query(name: &str, description: &str, schema: Value) -> Value {
    json!({
        "name": name, "in": "query", "required": false, "description": description, "schema": schema,
    })
}

fn number(least: u64) -> Value {
    json!({ "type": "integer", "minimum": least })
}

fn session() -> Value {
    let mut session = query("session_id", "The session's token.", json!({ "type": "string" }));
    session["required"] = true.into();
    session
}

fn optional(mut parameter: Value) -> Value {
    parameter["required"] = false.into();
    parameter
}

fn cursor() -> Value {
    query("cursor", "The number of the last message that the client has processed.", number(0))
}

fn path() -> Value {
    let description =
        "The path and query that the application shall see, when a session is opened.";
    query("path", description, json!({ "type": "string" }))
}

fn header(description: &str, kind: &str) -> Value {
    json!({ "description": description, "schema": { "type": kind } })
}

/// Text as strings or, if it is a JSON object, as that; binary messages in an object of their own.
fn messages() -> Value {
    json!({ "type": "array", "items": { "anyOf": [
        { "type": "string" },
        { "type": "object", "properties": { "$binary": { "type": "string", "contentEncoding": "base64" } } },
    ] } })
}

fn with_errors(statuses: &[&str], good: &str, answer: Value) -> Value {
    let mut responses = json!({ good: answer });
    for status in statuses {
        responses[status] = json!({
            "description": match *status {
                "400" => "Something is malformed.",
                "401" => "The token is none of this server's.",
                "403" => "The page's origin may not use this.",
                "409" => "Out of turn.",
                "410" => "The session has ended.",
                "412" => "The cursor is behind what has been acknowledged, and what followed it is gone.",
                "413" => "Too large.",
                "415" => "A type of body that is not known.",
                "429" => "This address has too many sessions.",
                _ => "Not now: come again later.",
            },
            "content": { "application/json": { "schema": {
                "type": "object",
                "properties": { "error": { "type": "string" } },
            } } },
        });
    }
    responses
}
