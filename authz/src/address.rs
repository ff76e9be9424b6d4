//! Addresses as rules name them, and those that nobody means: loopback, link-local, metadata.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// What an address is, however it is spelt: an IPv4 address within an IPv6 one is that IPv4 address (RFC 4291 §2.5.5,
/// RFC 6052 §2.1, RFC 3056 §2).
pub fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let s = v6.segments();
    let four = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low] => four(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => four(high, low),
        [0x2002, high, low, ..] => four(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => four(high, low),
        _ => address,
    }
}

/// Why nobody means an address, in a word; `None`: somebody may.
///
/// Besides loopback, link-local, unspecified, multicast and reserved ranges (RFC 6890) these are the addresses at which
/// clouds serve metadata and credentials.
pub fn never(address: IpAddr) -> Option<&'static str> {
    match plain(address) {
        IpAddr::V4(v4) => {
            let o = v4.octets();
            match o {
                [169, 254, ..] => Some("link-local or metadata"),
                [100, 100, 100, 200] | [192, 0, 0, 192] | [168, 63, 129, 16] => Some("metadata"),
                [127, ..] => Some("loopback"),
                [0, ..] => Some("unspecified"),
                [224..=255, ..] => Some("multicast or reserved"),
                _ => None,
            }
        }
        IpAddr::V6(v6) => {
            let s = v6.segments();
            match () {
                () if v6.is_loopback() => Some("loopback"),
                () if v6.is_unspecified() => Some("unspecified"),
                () if v6.is_multicast() => Some("multicast or reserved"),
                () if s[0] & 0xffc0 == 0xfe80 => Some("link-local"),
                () if s[..7] == [0xfd00, 0xec2, 0, 0, 0, 0, 0] => Some("metadata"),
                () if s[..7] == [0xfd20, 0xce, 0, 0, 0, 0, 0] => Some("metadata"),
                () => None,
            }
        }
    }
}

/// Addresses as a rule names them: `10.0.0.0/8`, `10.0.0.5`, `10.0.0.5:5432`, `[fd00::1]:80`, `fd00::/8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressRule {
    net: IpAddr,
    bits: u8,
    port: Option<u16>,
}

/// Hosts as a grant names them: an [`AddressRule`], a name, `*.corp`, or `*`; each but the first two with `:port` or
/// without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostRule {
    /// Addresses.
    Address(AddressRule),
    /// A name, or the names under `*.`; `*` is everything.
    Name {
        /// In lower case.
        pattern: String,
        /// `None`: every port.
        port: Option<u16>,
    },
}

/// Text that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address: give 10.0.0.5, 10.0.0.0/8, 10.0.0.5:5432, [fd00::1]:80{1}")]
pub struct BadRule(String, &'static str);

impl FromStr for AddressRule {
    type Err = BadRule;
    fn from_str(text: &str) -> Result<Self, BadRule> {
        let bad = || BadRule(text.to_owned(), "");
        let (net, port) = match text.parse::<SocketAddr>() {
            Ok(socket) if socket.port() == 0 => return Err(bad()),
            Ok(socket) => return Ok(Self::one(plain(socket.ip()), Some(socket.port()))),
            Err(_) => (text, None),
        };
        let Some((net, bits)) = net.split_once('/') else {
            return net.parse().map(|ip| Self::one(plain(ip), port)).map_err(|_| bad());
        };
        let (net, bits): (IpAddr, u8) = (net.parse().map_err(|_| bad())?, bits.parse().map_err(|_| bad())?);
        let most = if net.is_ipv4() { 32 } else { 128 };
        let rule = Self { net, bits, port };
        // Bits beyond the prefix would be a mistake that nobody sees.
        if bits > most || masked(net, bits) != net { Err(bad()) } else { Ok(rule) }
    }
}

impl AddressRule {
    fn one(net: IpAddr, port: Option<u16>) -> Self {
        Self { net, bits: if net.is_ipv4() { 32 } else { 128 }, port }
    }

    /// Whether the rule names this address.
    pub fn covers(&self, address: SocketAddr) -> bool {
        let ip = plain(address.ip());
        let same = ip.is_ipv4() == self.net.is_ipv4();
        same && masked(ip, self.bits) == self.net && self.port.is_none_or(|port| port == address.port())
    }
}

fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl FromStr for HostRule {
    type Err = BadRule;
    fn from_str(text: &str) -> Result<Self, BadRule> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let bad = || BadRule(text.to_owned(), ", db.corp:5432, *.corp or *");
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok().filter(|&p: &u16| p != 0).ok_or_else(bad)?)),
            None => (text, None),
        };
        let pattern = host.to_ascii_lowercase();
        let name = pattern.strip_prefix("*.").unwrap_or(&pattern);
        let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        let number = name.rsplit('.').next().is_some_and(|last| last.starts_with(|c: char| c.is_ascii_digit()));
        let fits = pattern == "*" || (name.split('.').all(label) && !number);
        if fits { Ok(Self::Name { pattern, port }) } else { Err(bad()) }
    }
}

impl HostRule {
    /// Whether the rule names this host, an address or a name in lower case, and port.
    pub fn covers(&self, host: &str, port: u16) -> bool {
        match (self, host.parse::<IpAddr>()) {
            (Self::Name { pattern, port: only }, address) => {
                let under = || pattern.strip_prefix('*').is_some_and(|rest| address.is_err() && host.ends_with(rest));
                only.is_none_or(|only| only == port) && (pattern == "*" || pattern == host || under())
            }
            (Self::Address(rule), Ok(ip)) => rule.covers(SocketAddr::new(ip, port)),
            (Self::Address(_), Err(_)) => false,
        }
    }
}

impl fmt::Display for AddressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}", SocketAddr::new(self.net, port)),
            None => write!(f, "{}/{}", self.net, self.bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s23_what_nobody_means_is_known_however_it_is_spelt() {
        for bad in [
            "127.0.0.1",
            "127.8.9.1",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "169.254.0.1",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
        ] {
            assert!(never(bad.parse().unwrap()).is_some(), "{bad}");
        }
        for good in [
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "1.1.1.1",
            "fd00::1",
            "2001:db8::1",
            "::ffff:10.0.0.1",
            "100.64.0.1",
        ] {
            assert_eq!(never(good.parse().unwrap()), None, "{good}");
        }
    }

    #[test]
    fn rules_name_addresses_and_ports() {
        let covers = |rule: &str, address: &str| rule.parse::<AddressRule>().unwrap().covers(address.parse().unwrap());
        assert!(covers("10.0.0.0/8", "10.1.2.3:80") && !covers("10.0.0.0/8", "11.0.0.1:80"));
        assert!(covers("10.0.0.5:5432", "10.0.0.5:5432") && !covers("10.0.0.5:5432", "10.0.0.5:80"));
        assert!(covers("0.0.0.0/0", "1.2.3.4:1") && !covers("0.0.0.0/0", "[fd00::1]:1"));
        assert!(covers("10.0.0.5", "[::ffff:10.0.0.5]:1") && covers("fd00::/8", "[fd00::1]:1"));
        for bad in ["", "10.0.0.1/8", "10.0.0.0/33", "x", "10.0.0.5:0", "10.0.0", "*"] {
            assert!(bad.parse::<AddressRule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rules_name_hosts() {
        let covers = |rule: &str, host: &str, port| rule.parse::<HostRule>().unwrap().covers(host, port);
        assert!(covers("*", "db.corp", 1) && covers("*", "10.0.0.1", 1) && covers("*:5432", "x", 5432));
        assert!(!covers("*:5432", "x", 80));
        assert!(covers("*.corp", "db.corp", 1) && !covers("*.corp", "corp", 1) && !covers("*.corp", "xcorp", 1));
        assert!(covers("DB.corp:1", "db.corp", 1) && !covers("db.corp:1", "db.corp", 2));
        assert!(covers("10.0.0.0/8", "10.0.0.1", 1) && !covers("10.0.0.0/8", "db.corp", 1));
        for bad in ["", "a b", "db.corp:x", "*.*", "a*", "10.0.0.0/40", "127.1"] {
            assert!(bad.parse::<HostRule>().is_err(), "{bad}");
        }
    }
}
