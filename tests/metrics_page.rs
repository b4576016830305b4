//! The page of the numbers: complete, documented, in both formats, where it is asked for.

#[path = "support/answer.rs"]
mod answer;
#[path = "support/numbers.rs"]
mod numbers;
#[path = "support/polling.rs"]
mod polling;
#[path = "support/scrape.rs"]
mod scrape;
#[cfg(feature = "tls")]
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::process::{Command, Stdio};

use coracle::prometheus_client::collector::Collector;
use coracle::prometheus_client::encoding::DescriptorEncoder;
use coracle::prometheus_client::metrics::counter::Counter;
use coracle::{Builder, Closures, Metrics, Readiness, Routes};
use numbers::*;
use polling::Http;
use scrape::*;
use support::*;

const DOCUMENTED: &str = include_str!("../src/docs/metrics.md");

#[test]
fn every_number_is_in_the_documentation_with_its_type_and_its_labels() {
    let server = start(app_with_all_numbers());
    plain_client(&server).goodbye();
    await_value(&server, "coracle_sessions_active", 0);
    let page = scrape(&server.handle);
    let shown: BTreeMap<_, _> = page
        .types
        .iter()
        .map(|(name, kind)| {
            let labels = page.labels.get(name).into_iter().flatten().cloned().collect();
            (name.clone(), (kind.clone(), labels))
        })
        .collect();
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let documented: BTreeMap<String, (String, Vec<String>)> = DOCUMENTED
        .lines()
        .filter(|line| line.starts_with("| `coracle_"))
        .filter(|line| cfg!(feature = "tls") || !line.contains("_tls_"))
        .filter(|line| {
            let of_fallbacks = ["coracle_polls", "coracle_event_streams", "coracle_posts"];
            cfg!(feature = "fallback") || !of_fallbacks.iter().any(|name| line.contains(name))
        })
        .map(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let mut labels: Vec<String> = quoted(cells[3]);
            labels.sort();
            (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels))
        })
        .collect();
    assert_eq!(shown, documented);
    server.finish();
}

#[test]
fn what_somebody_may_be_woken_for_is_there_before_it_happens() {
    let server = start(app());
    let alarming = "handler_failed handler_panicked over_budget peer_vanished pong_timeout slow_peer write_stalled";
    let page = scrape(&server.handle);
    let there = |cause: &str| {
        let ends = format!("cause=\"{cause}\"}}");
        page.series
            .keys()
            .any(|it| it.starts_with("coracle_sessions_closed_total{") && it.ends_with(&ends))
    };
    for cause in alarming.split(' ') {
        assert!(there(cause), "{cause}: {page:#?}");
        assert!(DOCUMENTED.contains(cause), "{cause}");
    }
    server.finish();
}

#[test]
fn pages_of_the_server_are_refused_where_nobody_would_find_them() {
    let refused = |builder: Builder<App>, about: [&str; 2]| {
        let error = builder.bind("127.0.0.1:0").start().unwrap_err().to_string();
        assert!(about.iter().all(|about| error.contains(about)), "{error}");
    };
    for path in ["", "/", "metrics", "/metrics/", "/metrics?all", "/a//b", "/a b"] {
        refused(app().metrics(path), ["metrics is ", "allowed is a path"]);
        #[cfg(feature = "json")]
        refused(app().openapi(path), ["openapi is ", "allowed is a path"]);
    }
    refused(app().health().metrics("/readyz"), ["metrics is at \"/readyz\"", "Ready"]);
    #[cfg(feature = "json")]
    refused(app().metrics("/it").openapi("/it"), ["openapi is at \"/it\"", "Metrics"]);
    #[cfg(feature = "fallback")]
    refused(
        app().fallbacks(coracle::Fallbacks::new().at("/it")).metrics("/it/poll"),
        ["metrics is at \"/it/poll\"", "Fallback"],
    );
}

#[test]
fn both_formats_say_the_same() {
    let server = start(app());
    server.client().goodbye();
    await_value(&server, "coracle_connections_active", 0);
    let metrics = server.handle.metrics();
    let (kind, text) = metrics.encode_for(None);
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    let classic = Scrape::classic(&text);
    let (kind, text) = metrics.encode_for(Some("application/openmetrics-text; version=1.0.0"));
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let openmetrics = Scrape::openmetrics(&text);
    let steady = |scrape: &Scrape| {
        let mut series = scrape.series.clone();
        series.remove("coracle_uptime_seconds");
        series
    };
    assert_eq!(steady(&classic), steady(&openmetrics));
    assert_eq!(classic.types["coracle_connections_total"], "counter");
    assert_eq!(classic.types["coracle_build_info"], "gauge");
    assert_eq!(openmetrics.types["coracle_connections"], "counter");
    assert_eq!(openmetrics.types["coracle_build"], "info");
    server.finish();
}

#[test]
fn the_page_of_the_numbers_has_the_format_that_is_asked_for() {
    let server = start(app().metrics("/metrics").health());
    let mut client = Http::connect(server.addr()).unwrap();
    let plain = client.get("/metrics");
    assert_eq!(plain.expect(200).header("content-type"), Some(Metrics::TEXT));
    assert_eq!(plain.header("cache-control"), Some("no-store"));
    Scrape::classic(std::str::from_utf8(&plain.body).unwrap());
    let wanted = "Accept: application/openmetrics-text;version=1.0.0\r\n";
    let open = client.try_ask("GET", "/metrics", wanted, b"").unwrap();
    assert_eq!(open.expect(200).header("content-type"), Some(Metrics::OPENMETRICS));
    // It sees itself, and the requests before it.
    Scrape::openmetrics(std::str::from_utf8(&open.body).unwrap()).expect(&[
        ("coracle_http_requests_total{class=\"2xx\"}", 1),
        ("coracle_http_connections_active", 1),
    ]);
    assert_eq!(client.get("/readyz").expect(200).body, b"ready\n");
    assert_eq!(client.try_ask("POST", "/metrics", "", b"").unwrap().status, 405);
    server.finish();
}

#[test]
fn the_numbers_can_have_a_listener_of_their_own_and_are_not_on_the_public_one() {
    let own = Routes::new().metrics("/metrics").health();
    let server = start(app().bind_http("127.0.0.1:0", own));
    // `start` binds the public one last.
    let [own, public] = *server.handle.local_addrs() else { panic!("two listeners") };
    let mut session = Raw::connect(public);
    session.upgrade();
    session.echo("hello");
    let mut client = Http::connect(own).unwrap();
    let page = client.get("/metrics");
    Scrape::classic(std::str::from_utf8(&page.expect(200).body).unwrap())
        .expect(&[("coracle_sessions_active", 1), ("coracle_messages_received_total", 1)]);
    client.get("/healthz").expect(200);
    client.get("/readyz").expect(200);
    assert_eq!(client.get("/").status, 404);
    for path in ["/metrics", "/healthz", "/readyz"] {
        let mut client = Raw::connect(public);
        client.send(get(path).as_bytes());
        answer::read_answer(client).expect(426);
    }
    // Nor is there a WebSocket beside them.
    let mut client = Raw::connect(own);
    client.send(handshake("/").as_bytes());
    assert!(client.read_head().starts_with("HTTP/1.1 404 "));
    session.goodbye();
    server.finish();
}

#[test]
fn a_server_is_ready_until_it_is_full_and_while_it_does_not_stop() {
    let server = start(app().configure(|config| config.limits.sessions = Some(1)));
    let handle = server.handle.clone();
    let states = |readiness: Readiness| (readiness, readiness.is_live(), readiness.is_ready());
    assert_eq!(states(handle.readiness()), (Readiness::Ready, true, true));
    let client = server.client();
    assert_eq!(states(handle.readiness()), (Readiness::Full, true, false));
    client.goodbye();
    eventually("its place is free again", || handle.readiness().is_ready());
    let client = server.client();
    handle.request_stop();
    assert_eq!(states(handle.readiness()), (Readiness::Stopping, true, false));
    drop(client);
    server.finish();
    assert_eq!(states(handle.readiness()), (Readiness::Stopped, false, false));
    assert_eq!(handle.readiness().to_string(), "stopped");
}

#[derive(Debug)]
struct Broken;

impl Collector for Broken {
    fn encode(&self, _: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        Err(fmt::Error)
    }
}

#[test]
fn the_applications_own_numbers_stand_beside_ours_and_cannot_take_them_away() {
    let orders: Counter = Counter::default();
    let (counted, fails) = (orders.clone(), orders.clone());
    let server =
        start(app().register_metrics(|registry| registry.register("shop_orders", "O", counted)));
    orders.inc_by(3);
    scrape(&server.handle).expect(&[("shop_orders_total", 3), ("coracle_workers", 1)]);
    server.finish();
    let server = start(app().register_metrics(|registry| {
        registry.register("shop_orders", "Orders", fails);
        registry.register_collector(Box::new(Broken));
    }));
    let page = scrape(&server.handle);
    assert_eq!(page.series.get("shop_orders_total"), None);
    page.expect(&[("coracle_workers", 1)]);
    server.finish();
}

/// `tests/clients/metrics.sh` gets promtool and says where it is.
#[test]
#[ignore = "needs promtool: run tests/clients/metrics.sh"]
fn promtool_is_content_with_every_number() {
    let promtool = std::env::var_os("PROMTOOL").expect("PROMTOOL says where promtool is");
    let server = start(app_with_all_numbers());
    let mut client = plain_client(&server);
    client.echo("hello");
    client.goodbye();
    await_value(&server, "coracle_connections_active", 0);
    within(server.handle.history().unwrap().publish("room", |id| id.to_string())).unwrap();
    let (_, text) = server.handle.metrics().encode_for(None);
    let check = |text: &str| {
        let mut promtool = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    assert_eq!(check(&text), (true, String::new()));
    // It would say if something was wrong.
    let without_help = text.replacen("# HELP coracle_workers Worker threads.\n", "", 1);
    let (content, said) = check(&without_help);
    assert!(!content && said.contains("coracle_workers no help text"), "{said}");
    server.finish();
}

/// What closures alone would not name.
#[expect(dead_code, reason = "only has to compile")]
fn metrics_can_be_registered_at_any_step(builder: Builder<Closures>) -> Builder<App> {
    builder.register_metrics(|_| ()).handler(App).register_metrics(|_| ())
}
