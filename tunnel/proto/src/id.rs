//! Names that can only be built from valid values.

use alloc::{borrow::ToOwned, format, string::String};
use core::{fmt, str::FromStr};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidName {
    /// What kind of name it was to be.
    pub what: &'static str,
    /// The rule that it broke, in words.
    pub rule: &'static str,
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a valid {}: {}", self.what, self.rule)
    }
}
impl core::error::Error for InvalidName {}

/// The rule of RFC 1123 as Kubernetes applies it to object names.
const DNS_LABEL: &str = "1 to 63 lower-case letters, digits or '-', starting and ending with a letter or digit";

fn dns_label(what: &'static str, s: &str) -> Result<String, InvalidName> {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = s.as_bytes();
    let ok = matches!(bytes.len(), 1..=63)
        && bytes.iter().all(|&b| edge(b) || b == b'-')
        && bytes.first().copied().is_some_and(edge)
        && bytes.last().copied().is_some_and(edge);
    if ok { Ok(s.to_owned()) } else { Err(InvalidName { what, rule: DNS_LABEL }) }
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(s: &str) -> Result<Self, InvalidName> { dns_label($what, s).map(Self) }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
    };
}
label!(
    /// A cluster's name: a DNS label (RFC 1123), the name of its `Cluster` object at the hub.
    ClusterId, "cluster name"
);
label!(
    /// An agent's name within its cluster: a DNS label.
    AgentName, "agent name"
);
label!(
    /// A hub's name within its trust domain: a DNS label.
    HubName, "hub name"
);

/// The trust domain of SPIFFE identities: a DNS name of lower-case labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);
impl TrustDomain {
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for TrustDomain {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        const RULE: &str = "1 to 253 characters of lower-case DNS labels joined by '.'";
        let ok = s.len() <= 253 && s.split('.').all(|l| dns_label("trust domain", l).is_ok());
        if ok { Ok(Self(s.to_owned())) } else { Err(InvalidName { what: "trust domain", rule: RULE }) }
    }
}
impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who holds a certificate of the hub's own authority, as the URI in its subject alternative name (SPIFFE-ID §2).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// Which hub authority vouches.
    pub trust_domain: TrustDomain,
    /// What it vouches for.
    pub role: Role,
}

/// The roles that a certificate of the hub's authority can name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// `/hub/<name>`
    Hub(HubName),
    /// `/cluster/<cluster>/agent/<name>`
    ClusterAgent(ClusterId, AgentName),
    /// `/cluster/<cluster>/node/<name>`
    NodeAgent(ClusterId, AgentName),
}
impl Role {
    /// The cluster that an agent belongs to; `None` for a hub.
    pub fn cluster(&self) -> Option<&ClusterId> {
        match self {
            Self::Hub(_) => None,
            Self::ClusterAgent(cluster, _) | Self::NodeAgent(cluster, _) => Some(cluster),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}", self.trust_domain)?;
        match &self.role {
            Role::Hub(name) => write!(f, "/hub/{name}"),
            Role::ClusterAgent(cluster, name) => write!(f, "/cluster/{cluster}/agent/{name}"),
            Role::NodeAgent(cluster, name) => write!(f, "/cluster/{cluster}/node/{name}"),
        }
    }
}
impl FromStr for SpiffeId {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        const BAD: InvalidName = InvalidName {
            what: "SPIFFE ID",
            rule: "spiffe://<trust domain>/hub/<name> or /cluster/<cluster>/{agent,node}/<name>",
        };
        let (domain, path) = s.strip_prefix("spiffe://").and_then(|r| r.split_once('/')).ok_or(BAD)?;
        let mut parts = path.split('/');
        let role = match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("hub"), Some(name), None, None, None) => Role::Hub(name.parse()?),
            (Some("cluster"), Some(cluster), Some("agent"), Some(name), None) => {
                Role::ClusterAgent(cluster.parse()?, name.parse()?)
            }
            (Some("cluster"), Some(cluster), Some("node"), Some(name), None) => {
                Role::NodeAgent(cluster.parse()?, name.parse()?)
            }
            _ => return Err(BAD),
        };
        Ok(Self { trust_domain: domain.parse()?, role })
    }
}

/// A session's number, unique within one run of a hub. Shown in logs; means nothing to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);
impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("s{}", self.0))
    }
}

/// A random number that an agent process draws once at its start: two sessions of one identity with the same
/// number are one process that overlaps its sessions; with different numbers they are two holders of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub u64);
