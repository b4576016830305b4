//! A configuration of which some settings have been read.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use super::history::Keeping;
use super::values::Parsed;
#[cfg(feature = "tls")]
use crate::config::{ClientCertificates, Tls};
use crate::config::{Config, Excess, Inbound, Listen, Rate};
use crate::error::Result;
use crate::session::{Rates, SessionRates};
use crate::transport::{BytesPerSecond, RatePolicy, Unlimited};

/// What the settings come to: those that are one field of [`Config`] are stored there at once, what takes
/// several together waits here.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) config: Config,
    pub(super) hosts: Vec<Host>,
    pub(super) port: u16,
    pub(super) unix_mode: u32,
    #[cfg(feature = "deflate")]
    pub(super) is_deflate_on: bool,
    #[cfg(feature = "deflate")]
    pub(super) deflate: crate::config::Deflate,
    #[cfg(feature = "tls")]
    pub(super) is_tls_on: bool,
    #[cfg(feature = "tls")]
    pub(super) tls: Tls,
    #[cfg(feature = "tls")]
    pub(super) client_ca: Option<PathBuf>,
    #[cfg(feature = "tls")]
    pub(super) are_clients_optional: bool,
    pub(super) read: Bucket,
    pub(super) write: Bucket,
    pub(super) messages: Bucket,
    pub(super) bytes: Bucket,
    pub(super) excess: Excess,
    pub(super) history: Keeping,
}

/// One of `WEBSOCKET_HOST`.
#[derive(Clone, Debug)]
pub(super) enum Host {
    Name(String),
    Path(PathBuf),
}

/// So many per second, if that is limited, and so many at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    pub(super) rate: Option<u64>,
    pub(super) burst: Option<u64>,
}

impl Bucket {
    /// Without a burst of its own a second's worth.
    fn both(self) -> Option<(u64, u64)> {
        self.rate.map(|rate| (rate, self.burst.unwrap_or(rate)))
    }

    fn policy(self) -> Box<dyn RatePolicy> {
        match self.both() {
            Some((rate, burst)) => Box::new(BytesPerSecond::new(rate).with_burst(burst)),
            None => Box::new(Unlimited),
        }
    }

    fn inbound(self) -> Option<Rate> {
        self.both().map(|(rate, burst)| Rate::per_second(rate).with_burst(burst))
    }
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            config: Config::default(),
            hosts: vec![Host::Name("0.0.0.0".to_owned())],
            port: 9090,
            unix_mode: crate::server::UNIX_MODE,
            #[cfg(feature = "deflate")]
            is_deflate_on: false,
            #[cfg(feature = "deflate")]
            deflate: crate::config::Deflate::shared(),
            #[cfg(feature = "tls")]
            is_tls_on: false,
            #[cfg(feature = "tls")]
            tls: Tls::new("", ""),
            #[cfg(feature = "tls")]
            client_ca: None,
            #[cfg(feature = "tls")]
            are_clients_optional: false,
            read: Bucket::default(),
            write: Bucket::default(),
            messages: Bucket::default(),
            bytes: Bucket::default(),
            excess: Excess::default(),
            history: Keeping::default(),
        }
    }
}

impl Draft {
    /// The configuration, in which a database is opened if one is asked for.
    pub(super) fn finish(self) -> Result<Config> {
        let mut config = self.config;
        self.history.open(&mut config)?;
        config.listen = self
            .hosts
            .into_iter()
            .map(|host| match host {
                Host::Name(host) => Listen::Tcp { host, port: self.port },
                Host::Path(path) => Listen::Unix { path, mode: self.unix_mode },
            })
            .collect();
        #[cfg(feature = "deflate")]
        if self.is_deflate_on {
            config.deflate = Some(self.deflate);
        }
        #[cfg(feature = "tls")]
        if self.is_tls_on {
            let clients = match self.client_ca {
                None => ClientCertificates::Off,
                Some(ca) if self.are_clients_optional => ClientCertificates::Optional(ca),
                Some(ca) => ClientCertificates::Required(ca),
            };
            config.tls = Some(self.tls.clients(clients));
        }
        let (read, write) = (self.read, self.write);
        if read.rate.is_some() || write.rate.is_some() {
            config.rates =
                Some(SessionRates::new(move |_| Rates::new(read.policy(), write.policy())));
        }
        let (messages, bytes) = (self.messages.inbound(), self.bytes.inbound());
        if messages.is_some() || bytes.is_some() {
            config.inbound = Some(Inbound { messages, bytes, excess: self.excess });
        }
        Ok(config)
    }
}

impl Host {
    /// Reads an address, a name, or `unix:` and a path.
    pub(super) fn parse(text: &str) -> Parsed<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(format!("a path is missing behind unix:; {HOST}"));
            }
            return Ok(Self::Path(path.into()));
        }
        let bare = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(text);
        let is_address = bare.parse::<IpAddr>().is_ok();
        // A link-local address has the name of its interface (RFC 4007 section 11).
        let is_scoped = bare
            .split_once('%')
            .is_some_and(|(address, zone)| !zone.is_empty() && address.parse::<Ipv6Addr>().is_ok());
        if is_address || is_scoped || is_name(bare) {
            return Ok(Self::Name(bare.to_owned()));
        }
        let port = text.rsplit_once(':').map_or("", |(_, port)| port);
        if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("the port belongs into WEBSOCKET_PORT; {HOST}"));
        }
        Err(HOST.to_owned())
    }
}

const HOST: &str = "allowed is an address (0.0.0.0, 127.0.0.1, ::), the name of a host, unix: and a path, \
                    or several with commas between them";

/// A host's name, and nothing that the resolver would take for an address: to it 127.1 is 127.0.0.1.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let middle = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        !label.is_empty() && label.len() <= 63 && label.bytes().all(middle)
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253
        && text.split('.').all(label)
        && !last.starts_with(|first: char| first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_a_name_or_a_path() {
        for (text, host) in [
            ("0.0.0.0", "0.0.0.0"),
            ("::", "::"),
            ("[::1]", "::1"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("localhost", "localhost"),
            ("my-box.example.com.", "my-box.example.com."),
        ] {
            let Ok(Host::Name(parsed)) = Host::parse(text) else { panic!("{text}") };
            assert_eq!(parsed, host);
        }
        let Ok(Host::Path(path)) = Host::parse("unix:/run/a.sock") else { panic!("a path") };
        assert_eq!(path, PathBuf::from("/run/a.sock"));
    }

    #[test]
    fn what_is_no_host_is_refused_with_a_hint() {
        for (text, hint) in [
            ("", "allowed is an address"),
            ("unix:", "a path is missing"),
            ("0.0.0.0:9090", "WEBSOCKET_PORT"),
            ("localhost:9090", "WEBSOCKET_PORT"),
            ("[::1]:9090", "WEBSOCKET_PORT"),
            ("ws://localhost", "allowed is an address"),
            ("256.1.1.1", "allowed is an address"),
            ("127.1", "allowed is an address"),
            ("2130706433", "allowed is an address"),
            ("*", "allowed is an address"),
            ("/run/a.sock", "allowed is an address"),
            ("a..b", "allowed is an address"),
        ] {
            let wrong = Host::parse(text).expect_err(text);
            assert!(wrong.contains(hint), "{text}: {wrong}");
        }
    }
}
