//! What a server counts of itself, for Prometheus and for load balancers, where clients cannot read it: WebSocket on
//! one port, the numbers on another one, of the loopback.
//!
//! ```sh
//! cargo run --release --example metrics        # an echo server on 127.0.0.1:9001, its numbers on 127.0.0.1:9002
//! curl -i 127.0.0.1:9002/metrics
//! curl -i 127.0.0.1:9002/healthz               # live
//! curl -i 127.0.0.1:9002/readyz                # ready; 503 while it is full or stops
//! curl -s 127.0.0.1:9002/metrics | promtool check metrics
//! ```
//!
//! Connect with `npx wscat -c ws://127.0.0.1:9001`, say `order tea` and look at `shop_orders_total`.

use std::process::ExitCode;

use coracle::prometheus_client::metrics::counter::Counter;
use coracle::prometheus_client::metrics::family::Family;
use coracle::{BoxError, Message, Routes, Server, Session};

mod common;

const USAGE: &str = "usage: metrics [ADDRESS] [--numbers ADDRESS]";

/// What orders are counted by: names and values, and the values are few. Never what a client says, who could say
/// anything.
type Labels = [(&'static str, &'static str); 1];

const DRINKS: [&str; 2] = ["coffee", "tea"];

fn main() -> ExitCode {
    common::exit(serve())
}

fn serve() -> Result<(), BoxError> {
    let mut args = common::Args::parse(USAGE, &["--numbers"])?;
    common::log_to(None)?;
    let numbers = args.value("--numbers").unwrap_or("127.0.0.1:9002").to_owned();
    let orders = Family::<Labels, Counter>::default();
    // A series that is there from the beginning has a first increase, too.
    for drink in DRINKS {
        orders.get_or_create(&[("drink", drink)]).inc_by(0);
    }
    let counted = orders.clone();
    Server::builder()
        .bind(args.address())
        .bind_http(&*numbers, Routes::new().metrics("/metrics").health())
        .register_metrics(|registry| registry.register("shop_orders", "Orders by drink.", counted))
        .on_message(async move |session: &Session, message: Message| {
            let ordered = message.as_text().and_then(|text| text.strip_prefix("order "));
            if let Some(drink) = DRINKS.into_iter().find(|drink| Some(*drink) == ordered) {
                orders.get_or_create(&[("drink", drink)]).inc();
            }
            session.send(message).await
        })
        .run_with(|server| {
            // In the order in which they were asked for.
            if let Some(numbers) = server.local_addrs().get(1) {
                eprintln!("numbers at http://{numbers}/metrics");
            }
            common::ready(server);
        })?;
    Ok(())
}
