//! Every number of the server with its name, in the order in which they are shown.
//!
//! A new one is a line here; `docs/metrics.md` lists them all, and a test compares the two.

use std::collections::BTreeMap;
use std::fmt::{self, Error};
use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::Rejection;
use super::histogram::Reading;
use super::ledger::Callbacks;
use crate::history::History;
use crate::hub::{Hub, Rooms};

/// The features with which the crate was built.
const FEATURES: &[(&str, bool)] = &[
    ("aws-lc-rs", cfg!(feature = "aws-lc-rs")),
    ("deflate", cfg!(feature = "deflate")),
    ("dotenv", cfg!(feature = "dotenv")),
    ("fallback", cfg!(feature = "fallback")),
    ("json", cfg!(feature = "json")),
    ("sqlite", cfg!(feature = "sqlite")),
    ("tls", cfg!(feature = "tls")),
];

type Labels<'a> = &'a [(&'a str, &'a str)];

/// What one server shows when it is asked.
pub(super) struct Exposition(pub(super) Arc<Hub>);

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let page = &mut Page(&mut encoder);
        self.process(page)?;
        self.connections(page)?;
        self.sessions(page)?;
        self.rooms(page)?;
        #[cfg(feature = "fallback")]
        self.fallback(page)?;
        self.history(page)?;
        #[cfg(feature = "tls")]
        self.tls(page)?;
        Ok(())
    }
}

impl Exposition {
    fn process(&self, page: &mut Page<'_, '_>) -> Result<(), Error> {
        let Hub { ledger, endings, clock, .. } = &*self.0;
        let features: Vec<_> = FEATURES.iter().filter(|it| it.1).map(|it| it.0).collect();
        page.info(
            "coracle_build",
            "The version of this server's library, and the features it was built with.",
            &[("version", env!("CARGO_PKG_VERSION")), ("features", &features.join(","))],
        )?;
        let started = unix_seconds(ledger.started);
        page.gauge("coracle_start_time", "When the server was started.", Some(SECONDS), started)?;
        let uptime = clock.precise().as_micros() as f64 / 1e6;
        page.gauge("coracle_uptime", "For how long it has been running.", Some(SECONDS), uptime)?;
        let ready = i64::from(self.0.readiness().is_ready());
        page.gauge(
            "coracle_ready",
            "1 if it takes new sessions: 0 if full, or stopping.",
            None,
            ready,
        )?;
        page.gauge("coracle_workers", "Worker threads.", None, ledger.workers.len())?;
        let panics = endings.panics.load(std::sync::atomic::Ordering::Relaxed) as u64;
        page.counter("coracle_callback_panics", "Callbacks that panicked.", panics)
    }

    fn connections(&self, page: &mut Page<'_, '_>) -> Result<(), Error> {
        let Hub { ledger, limits, .. } = &*self.0;
        // The ended ones first: whoever comes and goes in between is not missing.
        let ended = ledger.disconnected.get();
        let begun = ledger.connected.get();
        let [_, _, handshakes, http] = limits.places();
        page.counter("coracle_connections", "Connections that a worker took on.", begun)?;
        page.gauge(
            "coracle_connections_active",
            "Those that are open now: sessions, handshakes, answers on their way.",
            None,
            begun.saturating_sub(ended),
        )?;
        page.counters(
            "coracle_connections_rejected",
            "Connections that ended before they were a session, without a page as their answer.",
            "reason",
            Rejection::ALL.map(|it| (it.label(), ledger.rejected[it as usize].get())),
        )?;
        page.gauge("coracle_handshakes_active", "Handshakes under way.", None, handshakes)?;
        page.histogram(
            "coracle_handshake_duration",
            "From the first look at a connection to its session, what the client waited included.",
            ledger.handshakes.read(),
        )?;
        let classes = ["1xx", "2xx", "3xx", "4xx", "5xx"];
        page.counters(
            "coracle_http_requests",
            "Requests that were answered, by the class of the status; a WebSocket is a 1xx.",
            "class",
            std::array::from_fn::<_, 5, _>(|i| (classes[i], ledger.answered[i].get())),
        )?;
        page.gauge(
            "coracle_http_connections_active",
            "Connections with ordinary requests, but for those that wait for a session's messages.",
            None,
            http,
        )?;
        page.histogram(
            "coracle_http_request_duration",
            "From the head of a request to its whole answer, but for polls and event streams.",
            ledger.requests.read(),
        )
    }

    fn sessions(&self, page: &mut Page<'_, '_>) -> Result<(), Error> {
        let hub = &*self.0;
        let Hub { ledger, limits, terms, exceeded, .. } = hub;
        let (mut messages, mut bytes, mut most) = (0_usize, 0_usize, 0);
        let traffic = hub.traffic(|member| {
            let waiting = member.outbox.buffered();
            messages = messages.saturating_add(waiting.messages);
            bytes = bytes.saturating_add(waiting.bytes);
            most = waiting.bytes.max(most);
        });
        page.counters(
            "coracle_sessions",
            "Sessions that have begun.",
            "protocol",
            [
                ("websocket", ledger.websockets.get()),
                ("frames", ledger.framed.get()),
                #[cfg(feature = "fallback")]
                ("http", ledger.polled.get()),
            ],
        )?;
        page.gauge("coracle_sessions_active", "Sessions that are open.", None, hub.count())?;
        let [most_sessions, ..] = limits.places();
        page.gauge("coracle_sessions_limit", "How many may be open.", None, most_sessions)?;
        let closed = ledger.closed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        page.closes(closed)?;
        page.histogram(
            "coracle_session_duration",
            "From the end of the handshake to the end of the session.",
            ledger.lived.read(),
        )?;
        page.counter(
            "coracle_messages_received",
            "Whole messages from peers.",
            traffic.messages_in,
        )?;
        page.counter(
            "coracle_messages_sent",
            "Messages that the kernel has taken whole.",
            traffic.messages_out,
        )?;
        page.counter_of(
            "coracle_received",
            "Read from sessions, headers and control frames included; before TLS, after compression.",
            Some(BYTES),
            traffic.bytes_in,
        )?;
        page.counter_of(
            "coracle_sent",
            "Written to sessions, headers and control frames included; before TLS, after compression.",
            Some(BYTES),
            traffic.bytes_out,
        )?;
        page.gauge("coracle_outbox_messages", "Messages that wait for all peers.", None, messages)?;
        page.gauge("coracle_outbox", "Their payload.", Some(BYTES), bytes)?;
        page.gauge(
            "coracle_outbox_largest",
            "What waits for one peer at most.",
            Some(BYTES),
            most,
        )?;
        page.gauge(
            "coracle_outbox_budget_used",
            "What waits for slow peers, as it counts against the limit of all.",
            Some(BYTES),
            terms.used(),
        )?;
        page.gauge("coracle_outbox_budget", "That limit.", Some(BYTES), terms.budget())?;
        let excesses = exceeded.read();
        page.counters(
            "coracle_inbound_excesses",
            "How often a peer sent more than its inbound rate allows, and what followed.",
            "action",
            [("pause", excesses.pauses), ("close", excesses.closes)],
        )?;
        page.histogram(
            "coracle_round_trip",
            "From handing a ping to the kernel to its pong.",
            ledger.round_trips.read(),
        )?;
        let all = |of: fn(&Callbacks) -> Reading| {
            ledger.workers.iter().map(of).reduce(|mut sum, one| {
                sum.add(&one);
                sum
            })
        };
        page.histograms(
            "coracle_callback_duration",
            "From calling the application to its answer, waits included; of messages one of 64.",
            "callback",
            [
                ("open", all(|worker| worker.open.read())),
                ("message", all(|worker| worker.message.read())),
                ("close", all(|worker| worker.close.read())),
            ],
        )
    }

    fn rooms(&self, page: &mut Page<'_, '_>) -> Result<(), Error> {
        let rooms = Rooms::new(Arc::clone(&self.0));
        let stats = rooms.stats();
        page.gauge("coracle_rooms", "Rooms that have members.", None, rooms.count())?;
        page.gauge(
            "coracle_room_members",
            "Members of all rooms; a session counts in each room that it is in.",
            None,
            rooms.members_count(),
        )?;
        page.counter("coracle_publications", "Messages that were published.", stats.published)?;
        page.counter(
            "coracle_publications_delivered",
            "The same, each counted for each peer for which it was queued.",
            stats.delivered,
        )?;
        page.counters(
            "coracle_publications_lost",
            "The same that a slow peer did not get: dropped, or replaced by a later one.",
            "how",
            [("dropped", stats.dropped), ("conflated", stats.conflated)],
        )?;
        page.counter(
            "coracle_presence_lost",
            "Comings and goings that were not published, because too much was on its way.",
            stats.untold,
        )
    }

    #[cfg(feature = "fallback")]
    fn fallback(&self, page: &mut Page<'_, '_>) -> Result<(), Error> {
        let Some(desk) = &self.0.desk else {
            return Ok(());
        };
        let counts = &desk.counts;
        page.counters(
            "coracle_polls",
            "Long polls: answered with messages, or without any; refused because another one waited.",
            "outcome",
            [
                ("messages", counts.polls.get()),
                ("empty", counts.empty_polls.get()),
                ("refused", counts.refused_polls.get()),
            ],
        )?;
        page.counter(
            "coracle_event_streams",
            "Event streams that were begun.",
            counts.streams.get(),
        )?;
        page.counters(
            "coracle_posts",
            "Posts of clients without WebSocket: handed to the session, or recognized as repeated.",
            "outcome",
            [("taken", counts.posts.get()), ("repeated", counts.repeated_posts.get())],
        )
    }

    fn history(&self, page: &mut Page<'_, '_>) -> Result<(), Error> {
        let Some(history) = History::of(&self.0) else {
            return Ok(());
        };
        let stats = history.stats();
        page.counters(
            "coracle_history_messages",
            "Published messages that were to be kept: the store has confirmed them, or not.",
            "outcome",
            [("kept", stats.appended), ("failed", stats.failed)],
        )?;
        page.gauge(
            "coracle_history_pending_messages",
            "Those that the store has not answered for yet.",
            None,
            stats.pending_messages,
        )?;
        page.gauge("coracle_history_pending", "Their size.", Some(BYTES), stats.pending_bytes)?;
        page.counter(
            "coracle_history_commits",
            "Groups of messages that the store has made durable together.",
            stats.commits,
        )?;
        page.counter(
            "coracle_history_trimmed",
            "Messages that were removed because of their number or age.",
            stats.trimmed,
        )?;
        page.counter(
            "coracle_history_trims_failed",
            "How often removing them failed.",
            stats.trims_failed,
        )
    }

    #[cfg(feature = "tls")]
    fn tls(&self, page: &mut Page<'_, '_>) -> Result<(), Error> {
        let Some(tls) = &self.0.sources.tls else {
            return Ok(());
        };
        let status = tls.status();
        page.gauge(
            "coracle_tls_certificate_expiry_timestamp",
            "When the first of the certificates in use expires.",
            Some(SECONDS),
            unix_seconds(status.not_after),
        )?;
        page.gauge(
            "coracle_tls_certificate_loaded_timestamp",
            "When those in use were read.",
            Some(SECONDS),
            unix_seconds(status.loaded_at),
        )?;
        page.counters(
            "coracle_tls_reloads",
            "Attempts to replace them.",
            "outcome",
            [("ok", status.reloads), ("failed", status.failed_reloads)],
        )?;
        page.gauge(
            "coracle_tls_reload_failing",
            "1 if the last attempt to replace them has failed.",
            None,
            i64::from(status.last_error.is_some()),
        )
    }
}

const SECONDS: &Unit = &Unit::Seconds;
const BYTES: &Unit = &Unit::Bytes;

fn unix_seconds(time: SystemTime) -> f64 {
    // Before 1970 there was no such certificate.
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// What is being written: one family after the other. A unit becomes the end of its name.
struct Page<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Page<'_, '_> {
    fn info(&mut self, name: &str, help: &str, labels: Labels<'_>) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Info)?;
        family.encode_info(&labels)
    }

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: impl EncodeGaugeValue,
    ) -> Result<(), Error> {
        self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        self.counter_of(name, help, None, value)
    }

    fn counter_of(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: u64,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// One counter for each value of a label.
    fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        series: [(&str, u64); N],
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, count) in series {
            let labels: Labels<'_> = &[(label, value)];
            let mut series = family.encode_family(&labels)?;
            series.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    /// How sessions have ended. Most ways never happen, and are not there until they do; but for those that
    /// somebody may be woken for: a series that begins with its first event has no increase to be seen.
    fn closes(
        &mut self,
        closes: impl IntoIterator<Item = ([&'static str; 3], u64)>,
    ) -> Result<(), Error> {
        let help = "Sessions that have ended: by whom, with which close code, why.";
        let name = "coracle_sessions_closed";
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        let alarming = ALARMING.map(|how| (how, 0)).into_iter();
        let closes: BTreeMap<_, _> = alarming.chain(closes).collect();
        for ([by, code, cause], count) in closes {
            let labels: Labels<'_> = &[("by", by), ("code", code), ("cause", cause)];
            let mut series = family.encode_family(&labels)?;
            series.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, reading: Reading) -> Result<(), Error> {
        let (unit, kind) = (Some(SECONDS), MetricType::Histogram);
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        let Reading { seconds, buckets } = &reading;
        family.encode_histogram::<NoLabelSet>(*seconds, reading.count(), buckets, None)
    }

    /// One histogram for each value of a label.
    fn histograms<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        series: [(&str, Option<Reading>); N],
    ) -> Result<(), Error> {
        let (unit, kind) = (Some(SECONDS), MetricType::Histogram);
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        for (value, reading) in series {
            let Some(reading) = reading else {
                continue;
            };
            let labels: Labels<'_> = &[(label, value)];
            let mut series = family.encode_family(&labels)?;
            let Reading { seconds, buckets } = &reading;
            series.encode_histogram::<NoLabelSet>(*seconds, reading.count(), buckets, None)?;
        }
        Ok(())
    }
}

/// Ways in which a session ends that are there from the beginning.
const ALARMING: [[&str; 3]; 7] = [
    ["peer", "none", "peer_vanished"],
    ["server", "1001", "pong_timeout"],
    ["server", "none", "write_stalled"],
    ["server", "1011", "handler_failed"],
    ["server", "1011", "handler_panicked"],
    ["server", "1013", "over_budget"],
    ["server", "1013", "slow_peer"],
];

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposition").finish_non_exhaustive()
    }
}
