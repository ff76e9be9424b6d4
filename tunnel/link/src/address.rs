//! Where a hub is reached.

use std::{fmt, str::FromStr};

/// The address of a hub: a host name or IP address, and the port that it serves both TCP and UDP on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubAddress {
    /// DNS name, IPv4 address, or IPv6 address without brackets.
    pub host: String,
    /// Port of every carrier.
    pub port: u16,
}

/// Why text is no hub address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a hub address: {rule}")]
pub struct InvalidAddress {
    text: String,
    rule: &'static str,
}

impl FromStr for HubAddress {
    type Err = InvalidAddress;

    /// Reads `https://host[:port][/]` or `host[:port]`; an IPv6 address stands in brackets. Without a port: 443.
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let bad = |rule| InvalidAddress { text: text.to_owned(), rule };
        let rest = match text.split_once("://") {
            Some(("https", rest)) => rest,
            Some(_) => return Err(bad("the scheme must be https")),
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, tail) = rest.split_once(']').ok_or_else(|| bad("a '[' without its ']'"))?;
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err(bad("only an IPv6 address stands in brackets"));
                }
                match tail.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None if tail.is_empty() => (host, None),
                    None => return Err(bad("after ']' only ':port' may follow")),
                }
            }
            None => match rest.split_once(':') {
                Some((_, port)) if port.contains(':') => return Err(bad("an IPv6 address stands in brackets")),
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        if rustls_pki_types::ServerName::try_from(host).is_err() {
            return Err(bad("the host must be a DNS name or an IP address"));
        }
        let port = match port {
            None => 443,
            Some(port) if port.starts_with('+') => return Err(bad("the port must be a number from 1 to 65535")),
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return Err(bad("the port must be a number from 1 to 65535")),
                Ok(port) => port,
            },
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for HubAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, host, port) in [
            ("hub.example.com", "hub.example.com", 443),
            ("https://hub.example.com", "hub.example.com", 443),
            ("https://hub.example.com:8443/", "hub.example.com", 8443),
            ("10.0.0.1:8443", "10.0.0.1", 8443),
            ("[::1]:8443", "::1", 8443),
            ("https://[fd00::1]", "fd00::1", 443),
        ] {
            let address: HubAddress = text.parse().unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port), "{text}");
            assert_eq!(address.to_string().parse::<HubAddress>().unwrap(), address);
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            "http://hub",
            "hub:0",
            "hub:+1",
            "hub:70000",
            "hub:x",
            "::1",
            "[::1",
            "[hub]:1",
            "[::1]x",
            "hub/path",
            "a b",
            "user@hub",
        ] {
            assert!(text.parse::<HubAddress>().is_err(), "{text:?} was taken");
        }
    }
}
