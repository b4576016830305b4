//! The description of the HTTP endpoints: an OpenAPI 3.1 document.

use std::collections::HashSet;

use ::http::Method;
use serde_json::{Map, Value, json};

use super::builtin::Builtin;
use super::routes::{Route, Routes, Target};
use crate::config::Config;

/// Everything that is switched on, and the application's routes.
pub(super) fn document(config: &Config) -> Value {
    let mut paths = Map::new();
    for endpoint in Builtin::described(config) {
        add(&mut paths, &endpoint.path, &endpoint.method, endpoint.operation);
    }
    if let Some(routes) = &config.routes {
        of_routes(routes, &mut paths);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "HTTP endpoints",
            "description": "What is served beside the WebSocket.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "paths": paths,
    })
}

/// One of the server's own endpoints.
pub(crate) struct Described {
    pub(crate) path: String,
    pub(crate) method: Method,
    /// An Operation Object (OpenAPI 3.1.0 section 4.8.10).
    pub(crate) operation: Value,
}

fn of_routes(routes: &Routes, paths: &mut Map<String, Value>) {
    // Paths that differ in the names of their places only are the same to OpenAPI (section 4.8.8.2): `{x}` and
    // `{*x}` as well, of which the first is meant more often.
    let mut shapes = HashSet::new();
    for (pattern, route) in routes.all() {
        let path = pattern.template();
        let names: Vec<&str> = pattern.names().collect();
        let mut shape = path.clone();
        for name in &names {
            shape = shape.replace(&format!("{{{name}}}"), "{}");
        }
        if !paths.contains_key(&path) && !shapes.insert(shape) {
            continue;
        }
        add(paths, &path, &route.method, operation(route, &names));
    }
}

fn operation(route: &Route, places: &[&str]) -> Value {
    let mut operation = json!({ "responses": { "default": { "description": "The answer." } } });
    let folder = matches!(route.target, Target::Folder(_));
    if let Some(summary) = route.summary.as_deref().or(folder.then_some("Files of a folder.")) {
        operation["summary"] = summary.into();
    }
    if !places.is_empty() {
        let parameter = |name: &&str| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
        operation["parameters"] = places.iter().map(parameter).collect();
    }
    if matches!(route.method, Method::POST | Method::PUT | Method::PATCH) {
        operation["requestBody"] = json!({ "content": { "*/*": {} } });
    }
    operation
}

/// Methods of another name have no place in the document.
fn add(paths: &mut Map<String, Value>, path: &str, method: &Method, operation: Value) {
    let known = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];
    let method = method.as_str().to_ascii_lowercase();
    if !known.contains(&&*method) {
        return;
    }
    let item = paths.entry(path).or_insert_with(|| json!({}));
    // What the server itself answers comes first.
    if item.get(&method).is_none() {
        item[&method] = operation;
    }
}

/// An answer with this description.
pub(super) fn response(description: &str) -> Value {
    json!({ "description": description })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Body, Request};

    // A path with a space or an accent stood there as it was written, which is no path of a URI.
    #[test]
    fn paths_are_written_as_they_are_asked_for() {
        async fn nothing(_: &Request, _: &mut Body) {}
        let routes = Routes::new()
            .get("/a b/\u{e9}/say\"/{name}", nothing)
            .get("/plain-._~!$&'()*+,;=:@/{*rest}", nothing)
            .get("/", nothing);
        let config = Config { routes: Some(routes), ..Config::default() };
        let document = document(&config);
        let mut paths: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
        paths.sort();
        let expected = ["/", "/a%20b/%C3%A9/say%22/{name}", "/plain-._~!$&'()*+,;=:@/{rest}"];
        assert_eq!(paths, expected);
    }
}
