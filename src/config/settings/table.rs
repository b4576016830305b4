//! Every setting that a server has by name: one line each.
//!
//! A new one is one more line here, one in `docs/settings.md`, and one test in `tests/settings.rs` of what it
//! does; each of the two fails while its own is missing.

use super::Setting;
use super::draft::{Draft, Host};
use super::history::Place;
#[cfg(any(feature = "json", feature = "metrics"))]
use super::values::page;
use super::values::{
    Parsed, bytes_per_second, count, list, number, put, size, switch, time, time_or_none,
    time_or_off, unless, word,
};
use crate::config::{Excess, ForwardedHeader, Network};
use crate::http::OriginPolicy;
use crate::outbox::SlowPeer;

/// All of them, in the order of the documentation.
pub(super) fn settings() -> impl Iterator<Item = &'static Setting> + Clone {
    [
        LISTENING,
        TIMES,
        LIMITS,
        PEERS,
        RATES,
        FALLBACKS,
        HTTP,
        NUMBERS,
        DESCRIPTION,
        HISTORY,
        DEFLATE,
        TLS,
    ]
    .into_iter()
    .flatten()
}

const fn setting(
    name: &'static str,
    default: &'static str,
    set: fn(&mut Draft, &str) -> Parsed<()>,
) -> Setting {
    Setting { name, default, set, needs: &[], feature: None, is_secret: false }
}

const LISTENING: &[Setting] = &[
    setting("WEBSOCKET_HOST", "0.0.0.0", |d, v| put(&mut d.hosts, list(v, Host::parse))),
    setting("WEBSOCKET_PORT", "9090", |d, v| put(&mut d.port, number(v, 0..=u16::MAX))),
    setting("WEBSOCKET_UNIX_MODE", "0660", |d, v| put(&mut d.unix_mode, mode(v)))
        .needs(&["WEBSOCKET_HOST"]),
    setting("WEBSOCKET_BACKLOG", "4096", |d, v| {
        // What listen(2) takes.
        put(&mut d.config.backlog, number(v, 1..=i32::MAX as u32))
    }),
    setting("WEBSOCKET_WORKERS", "auto", |d, v| {
        // More threads than that are no wish but a mistake.
        put(&mut d.config.workers, unless("auto", v, |v| number(v, 1..=1024)))
    }),
];

const TIMES: &[Setting] = &[
    setting("WEBSOCKET_HANDSHAKE_TIMEOUT", "10", |d, v| {
        put(&mut d.config.timeouts.handshake, time(v))
    }),
    setting("WEBSOCKET_KEEP_ALIVE_TIMEOUT", "15", |d, v| {
        put(&mut d.config.timeouts.keep_alive, time(v))
    }),
    setting("WEBSOCKET_REQUEST_TIMEOUT", "30", |d, v| put(&mut d.config.timeouts.request, time(v))),
    setting("WEBSOCKET_PING_INTERVAL", "25", |d, v| {
        put(&mut d.config.timeouts.ping, time_or_off(v))
    }),
    setting("WEBSOCKET_PONG_TIMEOUT", "10", |d, v| put(&mut d.config.timeouts.pong, time(v))),
    setting("WEBSOCKET_IDLE_TIMEOUT", "off", |d, v| {
        put(&mut d.config.timeouts.idle, time_or_off(v))
    }),
    setting("WEBSOCKET_WRITE_STALL_TIMEOUT", "10", |d, v| {
        put(&mut d.config.timeouts.write_stall, time(v))
    }),
    setting("WEBSOCKET_WRITER_TIMEOUT", "10", |d, v| put(&mut d.config.timeouts.writer, time(v))),
    setting("WEBSOCKET_CLOSE_TIMEOUT", "5", |d, v| put(&mut d.config.timeouts.close, time(v))),
    setting("WEBSOCKET_MAX_LIFETIME", "off", |d, v| {
        put(&mut d.config.timeouts.lifetime, time_or_off(v))
    }),
    setting("WEBSOCKET_LIFETIME_JITTER", "auto", |d, v| {
        put(&mut d.config.timeouts.lifetime_jitter, unless("auto", v, time_or_none))
    })
    .needs(&["WEBSOCKET_MAX_LIFETIME"]),
    setting("WEBSOCKET_POLL_WINDOW", "10", |d, v| put(&mut d.config.timeouts.poll_window, time(v))),
    setting("WEBSOCKET_POLL_ABSENCE", "30", |d, v| {
        put(&mut d.config.timeouts.poll_absence, time(v))
    }),
    setting("WEBSOCKET_STOP_TIMEOUT", "10", |d, v| {
        put(&mut d.config.timeouts.stop, time_or_none(v))
    }),
];

const LIMITS: &[Setting] = &[
    setting("WEBSOCKET_MAX_MESSAGE_SIZE", "65536", |d, v| {
        put(&mut d.config.limits.message_bytes, size(v, 1))
    }),
    setting("WEBSOCKET_MAX_STREAM_SIZE", "1g", |d, v| {
        put(&mut d.config.limits.stream_bytes, size(v, 1))
    }),
    setting("WEBSOCKET_MAX_FRAGMENTS", "1024", |d, v| {
        put(&mut d.config.limits.fragments, number(v, 1..=u32::MAX))
    }),
    setting("WEBSOCKET_MAX_HEAD_SIZE", "8k", |d, v| {
        // No handshake is shorter.
        put(&mut d.config.limits.head_bytes, size(v, 128))
    }),
    setting("WEBSOCKET_MIN_HEAD_RATE", "256", |d, v| {
        put(&mut d.config.limits.head_bytes_per_second, number(v, 1..=u32::MAX))
    }),
    setting("WEBSOCKET_MAX_BODY_SIZE", "1m", |d, v| {
        put(&mut d.config.limits.body_bytes, size(v, 1).map(|bytes| bytes as u64))
    }),
    setting("WEBSOCKET_MIN_BODY_RATE", "256", |d, v| {
        put(&mut d.config.limits.body_bytes_per_second, number(v, 1..=u32::MAX))
    }),
    setting("WEBSOCKET_MAX_OUTBOX_MESSAGES", "1024", |d, v| {
        put(&mut d.config.limits.outbox_messages, count(v))
    }),
    setting("WEBSOCKET_MAX_OUTBOX_SIZE", "1m", |d, v| {
        put(&mut d.config.limits.outbox_bytes, size(v, 1))
    }),
    setting("WEBSOCKET_MAX_OUTBOXES_SIZE", "auto", |d, v| {
        put(&mut d.config.limits.outboxes_bytes, unless("auto", v, |v| size(v, 1)))
    }),
    setting("WEBSOCKET_MAX_PUBLISHED_SIZE", "16m", |d, v| {
        put(&mut d.config.limits.published_bytes, size(v, 1))
    }),
    setting("WEBSOCKET_MAX_ROOM_MEMBERS", "1000000", |d, v| {
        put(&mut d.config.limits.room_members, count(v))
    }),
    setting("WEBSOCKET_MAX_SESSION_ROOMS", "128", |d, v| {
        put(&mut d.config.limits.session_rooms, count(v))
    }),
    setting("WEBSOCKET_MAX_SESSIONS", "auto", |d, v| {
        put(&mut d.config.limits.sessions, unless("auto", v, count))
    }),
    setting("WEBSOCKET_MAX_SESSIONS_PER_ADDRESS", "auto", |d, v| {
        put(&mut d.config.limits.sessions_per_address, unless("auto", v, count))
    }),
    setting("WEBSOCKET_MAX_HANDSHAKES", "auto", |d, v| {
        put(&mut d.config.limits.handshakes, unless("auto", v, count))
    }),
    setting("WEBSOCKET_MAX_HTTP_CONNECTIONS", "auto", |d, v| {
        put(&mut d.config.limits.http_connections, unless("auto", v, count))
    }),
];

/// Who may come, and what becomes of who does not keep up.
const PEERS: &[Setting] = &[
    setting("WEBSOCKET_ORIGINS", "same", |d, v| put(&mut d.config.origins, origins(v))),
    setting("WEBSOCKET_TRUSTED_PROXIES", "none", |d, v| {
        put(&mut d.config.proxies.trusted, list(v, network))
    }),
    setting("WEBSOCKET_FORWARDED_HEADER", "x-forwarded-for", |d, v| {
        let words = [
            ("x-forwarded-for", ForwardedHeader::XForwardedFor),
            ("forwarded", ForwardedHeader::Forwarded),
        ];
        put(&mut d.config.proxies.header, word(v, &words))
    })
    .needs(&["WEBSOCKET_TRUSTED_PROXIES"]),
    setting("WEBSOCKET_PROXY_PROTOCOL", "none", |d, v| {
        put(&mut d.config.proxies.proxy_protocol, list(v, network))
    }),
    setting("WEBSOCKET_PROXY_PROTOCOL_OPTIONAL", "off", |d, v| {
        put(&mut d.config.proxies.proxy_protocol_optional, switch(v))
    })
    .needs(&["WEBSOCKET_PROXY_PROTOCOL"]),
    setting("WEBSOCKET_SLOW_PEER", "close", |d, v| {
        let words = [
            ("close", SlowPeer::Close),
            ("drop-newest", SlowPeer::DropNewest),
            ("drop-oldest", SlowPeer::DropOldest),
            ("conflate", SlowPeer::Conflate),
        ];
        put(&mut d.config.slow_peer, word(v, &words))
    }),
];

const RATES: &[Setting] = &[
    setting("WEBSOCKET_READ_RATE", "off", |d, v| {
        put(&mut d.read.rate, unless("off", v, bytes_per_second))
    }),
    setting("WEBSOCKET_READ_BURST", "auto", |d, v| {
        put(&mut d.read.burst, unless("auto", v, bytes_per_second))
    })
    .needs(&["WEBSOCKET_READ_RATE"]),
    setting("WEBSOCKET_WRITE_RATE", "off", |d, v| {
        put(&mut d.write.rate, unless("off", v, bytes_per_second))
    }),
    setting("WEBSOCKET_WRITE_BURST", "auto", |d, v| {
        put(&mut d.write.burst, unless("auto", v, bytes_per_second))
    })
    .needs(&["WEBSOCKET_WRITE_RATE"]),
    setting("WEBSOCKET_MESSAGE_RATE", "off", |d, v| {
        put(&mut d.messages.rate, unless("off", v, messages))
    }),
    setting("WEBSOCKET_MESSAGE_BURST", "auto", |d, v| {
        put(&mut d.messages.burst, unless("auto", v, messages))
    })
    .needs(&["WEBSOCKET_MESSAGE_RATE"]),
    setting("WEBSOCKET_BYTE_RATE", "off", |d, v| {
        put(&mut d.bytes.rate, unless("off", v, bytes_per_second))
    }),
    setting("WEBSOCKET_BYTE_BURST", "auto", |d, v| {
        put(&mut d.bytes.burst, unless("auto", v, bytes_per_second))
    })
    .needs(&["WEBSOCKET_BYTE_RATE"]),
    setting("WEBSOCKET_RATE_EXCESS", "pause", |d, v| {
        put(&mut d.excess, word(v, &[("pause", Excess::Pause), ("close", Excess::Close)]))
    })
    .needs(&["WEBSOCKET_MESSAGE_RATE", "WEBSOCKET_BYTE_RATE"]),
];

#[cfg(feature = "fallback")]
const FALLBACKS: &[Setting] = {
    use crate::fallback::Fallbacks;
    &[
        setting("WEBSOCKET_FALLBACK_PATH", "off", |d, v| {
            let path = unless("off", v, page)?;
            d.config.fallbacks = path.map(|path| Fallbacks::new().at(path));
            Ok(())
        }),
        // Behind the path: settings are read in this order.
        setting("WEBSOCKET_FALLBACK_KEY", "", |d, v| {
            let key = Some(v).filter(|key| key.len() >= Fallbacks::KEY_BYTES).ok_or_else(|| {
                format!(
                    "allowed are at least {} bytes that nobody can guess (openssl rand -base64 32)",
                    Fallbacks::KEY_BYTES
                )
            })?;
            d.config.fallbacks = d.config.fallbacks.take().map(|fallbacks| fallbacks.key(key));
            Ok(())
        })
        .needs(&["WEBSOCKET_FALLBACK_PATH"])
        .secret(),
    ]
};

#[cfg(not(feature = "fallback"))]
const FALLBACKS: &[Setting] = &[
    absent("WEBSOCKET_FALLBACK_PATH", "off", "fallback"),
    absent("WEBSOCKET_FALLBACK_KEY", "", "fallback").secret(),
];

const HTTP: &[Setting] = &[
    setting("WEBSOCKET_BROWSER_MODULE", "off", |d, v| put(&mut d.config.browser_module, switch(v))),
    setting("WEBSOCKET_HEALTH", "off", |d, v| put(&mut d.config.health, switch(v))),
];

#[cfg(feature = "metrics")]
const NUMBERS: &[Setting] = &[setting("WEBSOCKET_METRICS_PATH", "off", |d, v| {
    put(&mut d.config.metrics, unless("off", v, page))
})];

#[cfg(not(feature = "metrics"))]
const NUMBERS: &[Setting] = &[absent("WEBSOCKET_METRICS_PATH", "off", "metrics")];

#[cfg(feature = "json")]
const DESCRIPTION: &[Setting] = &[setting("WEBSOCKET_OPENAPI_PATH", "off", |d, v| {
    put(&mut d.config.openapi, unless("off", v, page))
})];

#[cfg(not(feature = "json"))]
const DESCRIPTION: &[Setting] = &[absent("WEBSOCKET_OPENAPI_PATH", "off", "json")];

const HISTORY: &[Setting] = {
    const ON: &[&str] = &["WEBSOCKET_HISTORY"];
    &[
        setting("WEBSOCKET_HISTORY", "off", |d, v| put(&mut d.history.place, Place::parse(v))),
        setting("WEBSOCKET_HISTORY_MESSAGES", "auto", |d, v| {
            put(&mut d.history.messages, unless("auto", v, |v| number(v, 1..=u32::MAX)))
        })
        .needs(ON),
        setting("WEBSOCKET_HISTORY_AGE", "off", |d, v| put(&mut d.history.age, time_or_off(v)))
            .needs(ON),
        setting("WEBSOCKET_HISTORY_SIZE", "auto", |d, v| {
            put(&mut d.history.bytes, unless("auto", v, |v| size(v, 1)))
        })
        .needs(ON),
        // These are also for a store of the program's own.
        setting("WEBSOCKET_HISTORY_ROOMS", "10000", |d, v| {
            put(&mut d.config.history.rooms, count(v))
        }),
        setting("WEBSOCKET_HISTORY_PENDING_MESSAGES", "16384", |d, v| {
            put(&mut d.config.history.pending_messages, count(v))
        }),
        setting("WEBSOCKET_HISTORY_PENDING_SIZE", "16m", |d, v| {
            put(&mut d.config.history.pending_bytes, size(v, 1))
        }),
        setting("WEBSOCKET_HISTORY_PAGE_MESSAGES", "256", |d, v| {
            put(&mut d.config.history.page_messages, count(v))
        }),
        setting("WEBSOCKET_HISTORY_PAGE_SIZE", "256k", |d, v| {
            put(&mut d.config.history.page_bytes, size(v, 1))
        }),
        setting("WEBSOCKET_HISTORY_REPLAY_MESSAGES", "1024", |d, v| {
            put(&mut d.config.history.replay_messages, count(v))
        }),
    ]
};

#[cfg(feature = "deflate")]
const DEFLATE: &[Setting] = {
    use crate::config::{Deflate, DeflateMode};
    const ON: &[&str] = &["WEBSOCKET_ENABLE_DEFLATE"];
    &[
        setting("WEBSOCKET_ENABLE_DEFLATE", "off", |d, v| put(&mut d.is_deflate_on, switch(v))),
        setting("WEBSOCKET_DEFLATE_MODE", "shared", |d, v| {
            let words = [("shared", DeflateMode::Shared), ("dedicated", DeflateMode::Dedicated)];
            put(&mut d.deflate.mode, word(v, &words))
        })
        .needs(ON),
        setting("WEBSOCKET_DEFLATE_LEVEL", "6", |d, v| put(&mut d.deflate.level, number(v, 0..=9)))
            .needs(ON),
        setting("WEBSOCKET_DEFLATE_THRESHOLD", "256", |d, v| {
            put(&mut d.deflate.threshold, size(v, 0))
        })
        .needs(ON),
        setting("WEBSOCKET_DEFLATE_SERVER_WINDOW", "15", |d, v| {
            let window = Deflate::MIN_WINDOW_BITS..=Deflate::MAX_WINDOW_BITS;
            put(&mut d.deflate.server_window_bits, number(v, window))
        })
        .needs(ON),
        setting("WEBSOCKET_DEFLATE_CLIENT_WINDOW", "15", |d, v| {
            let window = Deflate::MIN_WINDOW_BITS..=Deflate::MAX_WINDOW_BITS;
            put(&mut d.deflate.client_window_bits, number(v, window))
        })
        .needs(ON),
    ]
};

#[cfg(not(feature = "deflate"))]
const DEFLATE: &[Setting] = &[
    absent("WEBSOCKET_ENABLE_DEFLATE", "off", "deflate"),
    absent("WEBSOCKET_DEFLATE_MODE", "shared", "deflate"),
    absent("WEBSOCKET_DEFLATE_LEVEL", "6", "deflate"),
    absent("WEBSOCKET_DEFLATE_THRESHOLD", "256", "deflate"),
    absent("WEBSOCKET_DEFLATE_SERVER_WINDOW", "15", "deflate"),
    absent("WEBSOCKET_DEFLATE_CLIENT_WINDOW", "15", "deflate"),
];

#[cfg(feature = "tls")]
const TLS: &[Setting] = {
    use super::values::path;
    use crate::config::TlsVersion;
    const ON: &[&str] = &["TLS_CERT"];
    &[
        setting("TLS_CERT", "", |d, v| {
            d.is_tls_on = true;
            put(&mut d.tls.identity.certificate, path(v))
        })
        .needs(&["TLS_KEY"]),
        setting("TLS_KEY", "", |d, v| put(&mut d.tls.identity.key, path(v))).needs(ON),
        setting("TLS_KEY_PASSWORD", "", |d, v| {
            d.tls.identity.password = Some(v.into());
            Ok(())
        })
        .needs(&["TLS_KEY"])
        .secret(),
        setting("TLS_MIN_VERSION", "1.2", |d, v| {
            let words = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
            put(&mut d.tls.min_version, word(v, &words))
        })
        .needs(ON),
        setting("TLS_CLIENT_CA", "", |d, v| put(&mut d.client_ca, path(v).map(Some))).needs(ON),
        setting("TLS_CLIENT_AUTH", "required", |d, v| {
            let words = [("required", false), ("optional", true)];
            put(&mut d.are_clients_optional, word(v, &words))
        })
        .needs(&["TLS_CLIENT_CA"]),
        setting("TLS_RELOAD_INTERVAL", "10", |d, v| put(&mut d.tls.watch, time_or_off(v)))
            .needs(ON),
        setting("WEBSOCKET_MAX_TLS_HANDSHAKES", "auto", |d, v| {
            put(&mut d.config.limits.tls_handshakes, unless("auto", v, count))
        })
        .needs(ON),
    ]
};

#[cfg(not(feature = "tls"))]
const TLS: &[Setting] = &[
    absent("TLS_CERT", "", "tls"),
    absent("TLS_KEY", "", "tls"),
    absent("TLS_KEY_PASSWORD", "", "tls").secret(),
    absent("TLS_MIN_VERSION", "1.2", "tls"),
    absent("TLS_CLIENT_CA", "", "tls"),
    absent("TLS_CLIENT_AUTH", "required", "tls"),
    absent("TLS_RELOAD_INTERVAL", "10", "tls"),
    absent("WEBSOCKET_MAX_TLS_HANDSHAKES", "auto", "tls"),
];

/// What this build cannot do. It is an error and not ignored: who asks for TLS must not get a server without.
#[cfg(not(all(
    feature = "deflate",
    feature = "fallback",
    feature = "json",
    feature = "metrics",
    feature = "tls"
)))]
const fn absent(name: &'static str, default: &'static str, feature: &'static str) -> Setting {
    Setting { feature: Some(feature), ..setting(name, default, |_, _| Ok(())) }
}

fn messages(text: &str) -> Parsed<u64> {
    number(text, 1..=u64::from(u32::MAX))
}

/// As chmod(1) writes it.
fn mode(text: &str) -> Parsed<u32> {
    let octal = text.strip_prefix("0o").unwrap_or(text);
    let is_octal =
        (1..=4).contains(&octal.len()) && octal.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = if is_octal { u32::from_str_radix(octal, 8).ok() } else { None };
    mode.filter(|mode| *mode <= 0o777 && mode & 0o222 != 0).ok_or_else(|| {
        "allowed are the permissions of a file in octal, such as 0660; somebody must be able to write"
            .to_owned()
    })
}

fn network(text: &str) -> Parsed<Network> {
    text.parse().map_err(|error: crate::Error| {
        let why = error.to_string();
        let why = why.strip_prefix("configuration: ").unwrap_or(&why);
        format!(
            "{why}; allowed are networks and addresses, such as 10.0.0.0/8 or 192.0.2.7, and unix:, \
             with commas between them, or none"
        )
    })
}

fn origins(text: &str) -> Parsed<OriginPolicy> {
    match text.to_ascii_lowercase().as_str() {
        "same" => return Ok(OriginPolicy::SameOrigin),
        "any" => return Ok(OriginPolicy::Any),
        _ => {}
    }
    let policy = OriginPolicy::AllowList(list(text, |origin| Ok(origin.to_owned()))?);
    match policy.invalid_entry() {
        Some(entry) => Err(format!(
            "{entry:?} is no origin; allowed is same, any, or origins such as https://example.com or \
             https://*.example.com:8443 with commas between them"
        )),
        None => Ok(policy),
    }
}
