//! Networks, as they are written in settings.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::transport::Peer;

/// A network of IP addresses by its prefix (CIDR, RFC 4632 and RFC 4291 section 2.3), a single address,
/// or all peers of the Unix family.
///
/// ```
/// # use coracle::config::Network;
/// # fn main() -> coracle::Result<()> {
/// let internal: Network = "10.0.0.0/8".parse()?;
/// assert!(internal.contains([10, 1, 2, 3].into()));
/// let networks = ["fd00::/8".parse()?, "192.0.2.7".parse()?, Network::UNIX];
/// # let _: [Network; 3] = networks;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// An IPv4 address is never written as an IPv6 one here.
    Ip(IpAddr, u8),
    Unix,
}

impl Network {
    /// All peers of the Unix family, written `unix:`. Who may connect is decided by the permissions of
    /// the socket's file.
    pub const UNIX: Self = Self(Kind::Unix);

    /// The network of the addresses that share the first `prefix` bits with `address`. An IPv4 network
    /// that is written as an IPv6 one (`::ffff:0:0/96`) is taken for IPv4.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the prefix is longer than the address (32 or 128 bits), or the address has
    /// bits behind it.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self> {
        let (canonical, longest, mapped) = match (address, address.to_canonical()) {
            (IpAddr::V6(_), v4 @ IpAddr::V4(_)) if prefix >= 96 => (v4, 32, 96),
            (IpAddr::V6(_), _) => (address, 128, 0),
            (IpAddr::V4(_), _) => (address, 32, 0),
        };
        let wrong = |why: String| Error::Config(format!("the network {address}/{prefix}: {why}"));
        let prefix = prefix.saturating_sub(mapped);
        if prefix > longest {
            return Err(wrong(format!("a prefix has at most {longest} bits here")));
        }
        let first = masked(canonical, prefix);
        if first != canonical {
            return Err(wrong(format!("it has bits behind its prefix: write {first}/{prefix}")));
        }
        Ok(Self(Kind::Ip(canonical, prefix)))
    }

    /// Whether the address belongs to it. An IPv4 address that is written as an IPv6 one
    /// (`::ffff:a.b.c.d`) is taken for IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match self.0 {
            Kind::Ip(network, prefix) => {
                network.is_ipv4() == address.is_ipv4() && masked(address, prefix) == network
            }
            Kind::Unix => false,
        }
    }

    pub(crate) fn contains_peer(&self, peer: Peer) -> bool {
        match peer {
            Peer::Tcp(addr) => self.contains(addr.ip()),
            Peer::Unix => self.0 == Kind::Unix,
            Peer::Memory | Peer::Stream => false,
        }
    }
}

/// The address without the bits behind the prefix.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let keep = u32::from(prefix);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(keep)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(keep)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

impl From<IpAddr> for Network {
    /// This address alone.
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self(Kind::Ip(address, if address.is_ipv4() { 32 } else { 128 }))
    }
}

impl FromStr for Network {
    type Err = Error;

    /// Reads `address/prefix`, an address, or `unix:`.
    fn from_str(text: &str) -> Result<Self> {
        if text == "unix:" {
            return Ok(Self::UNIX);
        }
        let wrong = || {
            Error::Config(format!(
                "{text:?} is no network: write it like \"10.0.0.0/8\", \"fd00::/8\", \"192.0.2.7\" or \
                 \"unix:\""
            ))
        };
        let Some((address, prefix)) = text.split_once('/') else {
            return Ok(text.parse::<IpAddr>().map_err(|_| wrong())?.into());
        };
        // The integer parser takes a plus sign.
        if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let address = address.parse().map_err(|_| wrong())?;
        Self::new(address, prefix.parse().map_err(|_| wrong())?)
    }
}

/// As it is parsed; a single address without a prefix.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Ip(address, prefix) if Self::from(address) == Self(Kind::Ip(address, prefix)) => {
                address.fmt(f)
            }
            Kind::Ip(address, prefix) => write!(f, "{address}/{prefix}"),
            Kind::Unix => f.write_str("unix:"),
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_has_the_addresses_of_its_prefix_and_no_others() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("192.0.2.128/25", "192.0.2.255", "192.0.2.127"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("192.0.2.7/32", "192.0.2.7", "192.0.2.8"),
            ("0.0.0.0/0", "255.1.2.3", "::1"),
            ("::/0", "ff00::1", "1.2.3.4"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("2001:db8::/127", "2001:db8::1", "2001:db8::2"),
            ("::1", "::1", "::2"),
            ("::ffff:10.0.0.0/104", "10.9.9.9", "11.0.0.0"),
        ] {
            let network = network(text);
            assert!(network.contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{text} {outside}");
            assert_eq!(network.to_string().parse::<Network>().unwrap(), network);
        }
        assert_eq!(network("192.0.2.7/32").to_string(), "192.0.2.7");
        let peer = Peer::Tcp("10.0.0.1:80".parse().unwrap());
        assert!(network("10.0.0.0/8").contains_peer(peer) && !Network::UNIX.contains_peer(peer));
        assert!(network("unix:").contains_peer(Peer::Unix));
        for nobody in [Peer::Memory, Peer::Stream] {
            assert!(
                !network("unix:").contains_peer(nobody) && !network("::/0").contains_peer(nobody)
            );
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_a_hint() {
        for (text, part) in [
            ("", "is no network"),
            ("10.0.0.0/", "is no network"),
            ("10.0.0.0/+8", "is no network"),
            ("10.0.0.0/8/8", "is no network"),
            ("10.0.0/8", "is no network"),
            ("example.com", "is no network"),
            ("unix:/run/a", "is no network"),
            ("10.0.0.0/33", "at most 32"),
            ("::/129", "at most 128"),
            ("10.1.2.3/8", "write 10.0.0.0/8"),
            ("fd00::1/8", "write fd00::/8"),
        ] {
            let error = text.parse::<Network>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
