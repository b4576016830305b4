//! An application and its WebSocket on one port: routes, a JSON endpoint that publishes to a room, static files,
//! a page for whatever else is asked for.
//!
//! ```sh
//! cargo run --release --example attached_app           # then open http://127.0.0.1:9001/static/
//! curl -i http://127.0.0.1:9001/hello/world
//! npx wscat -c ws://127.0.0.1:9001/rooms/lobby         # and in another terminal:
//! curl -i --json '{"text":"hello"}' http://127.0.0.1:9001/rooms/lobby
//! curl -X POST http://127.0.0.1:9001/stop              # stops the server
//! ```
//!
//! Everybody may stop it: this one is not for the world.

use std::process::ExitCode;

use coracle::http_types::StatusCode;
use coracle::{
    Body, BodyError, BoxError, Closures, Paths, Publication, Reply, Request, Routes, Server,
    Session,
};
use serde::{Deserialize, Serialize};

mod common;

/// Beside this file, so that the example can be started from anywhere.
const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/attached_app");

/// What is to be said in a room.
#[derive(Deserialize)]
struct Said {
    text: String,
}

/// What has become of it.
#[derive(Serialize)]
struct Published {
    room: String,
    members: usize,
}

fn main() -> ExitCode {
    common::exit(serve())
}

fn serve() -> Result<(), BoxError> {
    let args = common::Args::parse("usage: attached_app [ADDRESS]", &[])?;
    common::log_to(None)?;
    Server::builder()
        .bind(args.address())
        .routes(routes())
        .health()
        .openapi("/openapi.json")
        // The same path for both: who asks for a WebSocket gets one.
        .handler(Paths::new().at("/rooms/{room}", Closures::new().on_open(enter)))
        .run_with(|server| common::ready_for("http", server))?;
    Ok(())
}

fn routes() -> Routes {
    Routes::new()
        .get("/hello/{name}", hello)
        .summary("Greets somebody.")
        .post("/rooms/{room}", publish)
        .summary("Says something in a room.")
        .body_bytes(16 * 1024)
        .post("/stop", stop)
        .summary("Stops the server.")
        .files("/static", FILES)
        .fallback(nothing)
}

async fn hello(request: &Request, _: &mut Body) -> String {
    format!("hello {}\n", request.param("name").unwrap_or_default())
}

async fn publish(request: &Request, body: &mut Body) -> Result<(StatusCode, Reply), BodyError> {
    let Said { text } = body.json().await?;
    let room = request.param("room").unwrap_or_default().into_owned();
    let members = request.rooms().publish(&*room, Publication::new(text)).await;
    Ok((StatusCode::ACCEPTED, Reply::json(&Published { room, members })))
}

async fn stop(request: &Request, _: &mut Body) -> &'static str {
    request.shutdown().request_stop();
    "it stops\n"
}

async fn nothing(request: &Request, _: &mut Body) -> (StatusCode, String) {
    (StatusCode::NOT_FOUND, format!("there is no {}: begin at /static/\n", request.path()))
}

async fn enter(session: &Session) -> Result<(), BoxError> {
    let room = session.param("room").unwrap_or_default().into_owned();
    Ok(session.join(&room)?)
}
