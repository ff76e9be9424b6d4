//! Addresses inside a cluster: what a stream may lead to besides the API server. Every value is checked where it is
//! made and where it is read.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::{fmt, net::IpAddr, str::FromStr};

/// Where inside a cluster a stream leads, and what it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inside {
    /// Where.
    pub to: Destination,
    /// What.
    pub payload: Payload,
    /// Labels that the service or pod must carry: all of one of these sets. Empty: any will do.
    pub labels: Vec<Labels>,
}

/// A set of labels, key to value.
pub type Labels = Vec<(String, String)>;

/// A place inside a cluster, resolved there and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// A ready endpoint of a service.
    Service {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// Number or name of the service's port.
        port: String,
    },
    /// A pod.
    Pod {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// Number or name of a container's port.
        port: String,
    },
    /// A host by name or address, as the agent sees it.
    Host {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
}

/// What a stream to a place inside a cluster carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Payload {
    /// The bytes of one TCP connection.
    #[default]
    Bytes,
    /// Datagrams of UDP: `u16 flow | u16 length | payload` each, a socket of its own for every flow.
    Datagrams,
    /// One HTTP message each way, to be sent in plain text: HTTP/1.1, or HTTP/2 where the message or the service asks.
    Http,
    /// The same over TLS.
    Https,
}

impl Payload {
    /// Its number on the wire.
    pub const fn number(self) -> u32 {
        match self {
            Self::Bytes => 0,
            Self::Datagrams => 1,
            Self::Http => 2,
            Self::Https => 3,
        }
    }
    /// The payload of a number on the wire.
    pub const fn from_number(n: u32) -> Option<Self> {
        match n {
            0 => Some(Self::Bytes),
            1 => Some(Self::Datagrams),
            2 => Some(Self::Http),
            3 => Some(Self::Https),
            _ => None,
        }
    }
}

/// What was named is no place inside a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadDestination(pub &'static str);

impl fmt::Display for BadDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}
impl core::error::Error for BadDestination {}

impl Destination {
    /// A service.
    ///
    /// # Errors
    /// Namespace or name is no DNS label (RFC 1123 §2.1), or the port is neither 1 to 65535 nor a port's name.
    pub fn service(namespace: &str, name: &str, port: &str) -> Result<Self, BadDestination> {
        if !is_label(namespace) {
            return Err(BadDestination("not a namespace"));
        }
        if !is_label(name) {
            return Err(BadDestination("not a service's name"));
        }
        check_port(port)?;
        Ok(Self::Service { namespace: namespace.into(), name: name.into(), port: port.into() })
    }

    /// A pod.
    ///
    /// # Errors
    /// As for a service; a pod's name may have dots.
    pub fn pod(namespace: &str, name: &str, port: &str) -> Result<Self, BadDestination> {
        if !is_label(namespace) {
            return Err(BadDestination("not a namespace"));
        }
        if name.len() > 253 || !name.split('.').all(is_label) {
            return Err(BadDestination("not a pod's name"));
        }
        check_port(port)?;
        Ok(Self::Pod { namespace: namespace.into(), name: name.into(), port: port.into() })
    }

    /// A host. `<service>.<namespace>.svc`, with or without `.cluster.local`, is that service: a name by which a rule
    /// for services could be passed by does not exist.
    ///
    /// # Errors
    /// Neither an address nor a DNS name, or port 0.
    pub fn host(host: &str, port: u16) -> Result<Self, BadDestination> {
        if port == 0 {
            return Err(BadDestination("not a port"));
        }
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::Host { host: address.to_canonical().to_string(), port });
        }
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| is_plain(b) || b == b'_');
        // What looks like a number is an address in a form that some resolvers take and rules do not know.
        let last = name.rsplit('.').next().unwrap_or_default();
        let number = last.starts_with(|c: char| c.is_ascii_digit());
        if name.len() > 253 || !name.split('.').all(label) || number {
            return Err(BadDestination("neither an address nor a DNS name"));
        }
        let short = name.strip_suffix(".cluster.local").unwrap_or(&name);
        if let Some((service, namespace)) = short.strip_suffix(".svc").and_then(|rest| rest.split_once('.'))
            && !namespace.contains('.')
        {
            return Self::service(namespace, service, &port.to_string());
        }
        Ok(Self::Host { host: name, port })
    }

    /// The namespace, where there is one.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Service { namespace, .. } | Self::Pod { namespace, .. } => Some(namespace),
            Self::Host { .. } => None,
        }
    }

    /// The same place, every part checked again.
    ///
    /// # Errors
    /// See the constructors.
    pub fn checked(&self) -> Result<Self, BadDestination> {
        match self {
            Self::Service { namespace, name, port } => Self::service(namespace, name, port),
            Self::Pod { namespace, name, port } => Self::pod(namespace, name, port),
            Self::Host { host, port } => Self::host(host, *port),
        }
    }
}

/// `svc/<namespace>/<name>:<port>`, `pod/<namespace>/<name>:<port>` or `host/<host>:<port>`.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { namespace, name, port } => write!(f, "svc/{namespace}/{name}:{port}"),
            Self::Pod { namespace, name, port } => write!(f, "pod/{namespace}/{name}:{port}"),
            Self::Host { host, port } if host.contains(':') => write!(f, "host/[{host}]:{port}"),
            Self::Host { host, port } => write!(f, "host/{host}:{port}"),
        }
    }
}

impl FromStr for Destination {
    type Err = BadDestination;
    fn from_str(text: &str) -> Result<Self, BadDestination> {
        const FORM: BadDestination =
            BadDestination("a destination is svc/NAMESPACE/NAME:PORT, pod/NAMESPACE/NAME:PORT or host/HOST:PORT");
        let (place, port) = text.rsplit_once(':').ok_or(FORM)?;
        let (kind, rest) = place.split_once('/').ok_or(FORM)?;
        match (kind, rest.split_once('/')) {
            ("svc", Some((namespace, name))) => Self::service(namespace, name, port),
            ("pod", Some((namespace, name))) => Self::pod(namespace, name, port),
            ("host", None) => Self::host(rest, number(port).ok_or(BadDestination("not a port"))?),
            _ => Err(FORM),
        }
    }
}

fn is_plain(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(is_plain) && !text.starts_with('-') && !text.ends_with('-')
}

/// A port's number in its one spelling.
fn number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| digits)
}

/// A number, or a name of 1 to 15 characters with a letter among them (RFC 6335 §5.1).
fn check_port(port: &str) -> Result<(), BadDestination> {
    let name = (1..=15).contains(&port.len())
        && is_label(port)
        && !port.contains("--")
        && port.bytes().any(|b| b.is_ascii_lowercase());
    if name || number(port).is_some() { Ok(()) } else { Err(BadDestination("not a port")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn a_destination_reads_as_it_is_written() {
        for text in [
            "svc/monitoring/grafana:80",
            "svc/a/b:http",
            "pod/shop/web-0.x:8080",
            "host/10.0.0.5:5432",
            "host/db.corp:1",
            "host/[fd00::1]:80",
        ] {
            assert_eq!(text.parse::<Destination>().map(|d| d.to_string()).as_deref(), Ok(text));
        }
        for bad in [
            "",
            "svc/a/b",
            "svc/a:80",
            "svc/A/b:80",
            "svc/../b:80",
            "svc/a/b:0",
            "svc/a/b:080",
            "svc/a/b:65536",
            "svc/a/b.c:80",
            "svc/a/b:ht_tp",
            "pod/a/-b:80",
            "host/:80",
            "host/a b:80",
            "host/x:http",
            "host/a/b:80",
            "node/a/b:80",
            "svc/a/b/c:80",
            "host/a\u{0}:80",
            "host/a%25eth0:80",
        ] {
            assert!(bad.parse::<Destination>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn s23_an_address_has_one_spelling() {
        for (spelt, plain) in
            [("::ffff:127.0.0.1", "127.0.0.1"), ("[::FFFF:a9fe:a9fe]", "169.254.169.254"), ("0:0::1", "::1")]
        {
            assert_eq!(Destination::host(spelt, 80), Ok(Destination::Host { host: plain.into(), port: 80 }));
        }
        // Octal, decimal, hexadecimal, short: what inet_aton(3) takes for 127.0.0.1.
        for odd in ["0177.0.0.1", "2130706433", "0x7f.1", "127.1", "0x7f000001", "a.127", "1.2.3.4.5", "fe80::1%eth0"] {
            assert!(Destination::host(odd, 80).is_err(), "{odd}");
        }
    }

    #[test]
    fn s22_a_service_has_no_second_name() {
        for name in ["grafana.monitoring.svc", "Grafana.Monitoring.SVC.cluster.local."] {
            assert_eq!(Destination::host(name, 80), Destination::service("monitoring", "grafana", "80"));
        }
        assert!(matches!(Destination::host("a.b.c.svc", 80), Ok(Destination::Host { .. })));
        assert_eq!(format!("{}", Destination::host("db.corp.", 1).unwrap()), "host/db.corp:1");
    }
}
