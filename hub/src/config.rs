//! What a hub is told at its start.

use moorline_plugin::Plugin;
use moorline_proto::id::{HubName, TrustDomain};
use moorline_proxy::{
    audit::{OnFailure, files::Rotation},
    pace::Pace,
};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// Settings of a hub. [`Config::new`] has defaults for all but the data folder.
#[derive(Clone)]
pub struct Config {
    /// Folder of authority, store, first password and audit log. Made if missing, readable by its owner alone.
    pub data_dir: PathBuf,
    /// Where the objects are kept.
    pub store: crate::StorePlace,
    /// What they are sealed with there; `None`: they are not.
    pub seal_key: Option<crate::StoreKey>,
    /// Address of agents, kubectl and people: TCP, and UDP of the same number.
    pub listen: SocketAddr,
    /// Address of `/metrics`, `/livez`, `/readyz`: plain HTTP.
    pub ops_listen: SocketAddr,
    /// DNS names and IP addresses that the hub is reached by. They go into its certificate.
    pub names: Vec<String>,
    /// Address that join commands and kubeconfigs name: `https://host:port`.
    pub public_url: String,
    /// Domain of the hosts of in-cluster services, `NAME--NAMESPACE--CLUSTER.<domain>`. `None`: they have none.
    pub services_domain: Option<String>,
    /// A certificate of another authority, for connections that name a host that it is good for. Agents and kubectl know
    /// the hub by its own authority: names that they use must not be in it.
    pub certificate: Option<GivenCertificate>,
    /// Domain of the identities that the hub issues.
    pub trust_domain: TrustDomain,
    /// The hub's own name within the trust domain.
    pub hub_name: HubName,
    /// Life of an agent's certificate. Agents renew at two thirds.
    pub agent_certificate_life: Duration,
    /// Life of the hub's own certificate, which is renewed at two thirds.
    pub hub_certificate_life: Duration,
    /// Life of a token made at a login that names none.
    pub login_life: Duration,
    /// Longest life that a login may ask for.
    pub login_life_max: Duration,
    /// Management logic that rides on the hub.
    pub plugins: Vec<Arc<dyn Plugin>>,
    /// Life of an access token; what it was made by renews it. At most an hour.
    pub access_life: Duration,
    /// How long a cluster's own endpoint lets users in by what it last heard of the hub.
    pub bundle_life: Duration,
    /// How long one key signs access tokens before the next one does.
    pub signing_key_life: Duration,
    /// Where people prove who they are, besides the passwords that this hub keeps.
    pub logins: Vec<moorline_logins::config::ProviderConfig>,
    /// How often providers are asked again about those who are logged in through them.
    pub recheck_logins: Duration,
    /// How long what is known of logins and rights counts while the store's etcd does not answer: then callers are refused
    /// until it does. The nine seconds after which a silent etcd is noticed come on top.
    pub rights_without_store: Duration,
    /// When a file of the audit log is set aside, and how many are kept.
    pub audit_rotation: Rotation,
    /// How much one user, address and cluster may ask for.
    pub rate_limits: crate::quota::RateLimits,
    /// What happens while the audit log cannot be written.
    pub audit_on_failure: OnFailure,
    /// When wrong passwords lock a local user or an address out.
    pub lockout: crate::Lockout,
    /// What is recorded of sessions in terminals.
    pub recordings: crate::Recordings,
    /// Bounds.
    pub limits: Limits,
}

impl Config {
    /// Defaults: `0.0.0.0:8443`, ops on `127.0.0.1:9443`, name `localhost`, trust domain `moorline.local`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            store: crate::StorePlace::default(),
            seal_key: None,
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443),
            ops_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9443),
            names: vec!["localhost".to_owned()],
            public_url: "https://localhost:8443".to_owned(),
            services_domain: None,
            certificate: None,
            trust_domain: known("moorline.local"),
            hub_name: known("hub"),
            agent_certificate_life: Duration::from_secs(24 * 3600),
            hub_certificate_life: crate::pki::HUB_LIFE,
            login_life: Duration::from_secs(12 * 3600),
            login_life_max: Duration::from_secs(30 * 24 * 3600),
            plugins: Vec::new(),
            access_life: moorline_authz::access_token::MAX_LIFE,
            bundle_life: Duration::from_secs(24 * 3600),
            signing_key_life: Duration::from_secs(30 * 24 * 3600),
            logins: Vec::new(),
            recheck_logins: Duration::from_secs(60),
            rights_without_store: Duration::from_secs(21),
            audit_rotation: Rotation::default(),
            rate_limits: crate::quota::RateLimits::default(),
            audit_on_failure: OnFailure::default(),
            lockout: crate::Lockout::default(),
            recordings: crate::Recordings::default(),
            limits: Limits::default(),
        }
    }

    /// # Errors
    /// The first setting that cannot work, in words.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |what: &'static str, why: &str| Err(ConfigError { what, why: why.to_owned() });
        if self.names.is_empty() {
            return wrong("names", "at least one name or address is needed, for the hub's certificate");
        }
        for name in &self.names {
            if name.parse::<IpAddr>().is_err() && !is_dns_name(name) {
                return wrong("names", &format!("{name:?} is neither a DNS name nor an IP address"));
            }
        }
        if let Some(domain) = &self.services_domain
            && (!is_dns_name(domain)
                || domain.starts_with("*.")
                || self.public_host().is_some_and(|host| host.ends_with(&format!(".{domain}"))))
        {
            return wrong("servicesDomain", "a DNS name of its own, above none of the hub's: services.hub.example");
        }
        let Some(rest) = self.public_url.strip_prefix("https://") else {
            return wrong("publicUrl", "it must begin with https://");
        };
        if rest.parse::<http::uri::Authority>().is_err() || rest.contains('@') {
            return wrong("publicUrl", "it must be https://HOST:PORT without a path");
        }
        if self.agent_certificate_life < Duration::from_secs(2) {
            return wrong("agentCertificateLife", "at least 2 s, so that an agent can renew in time");
        }
        if let Err(why) = self.rate_limits.validate() {
            return wrong("rateLimits", why);
        }
        if let Err(why) = self.lockout.validate() {
            return wrong("lockout", why);
        }
        if let Err(why) = self.recordings.validate() {
            return wrong("recordings", why);
        }
        if self.audit_rotation.max_bytes == 0 || self.audit_rotation.keep == 0 {
            return wrong(
                "audit",
                "maxFileMib and keepFiles are at least 1: a log that is removed as it is written holds nothing",
            );
        }
        if self.login_life.is_zero() || self.login_life > self.login_life_max {
            return wrong("loginLife", "more than nothing, and at most loginLifeMax");
        }
        if self.access_life < Duration::from_secs(1) || self.access_life > moorline_authz::access_token::MAX_LIFE {
            return wrong(
                "accessLife",
                "from 1 s to 1 h: it bounds what a revocation that could not be told leaves open",
            );
        }
        if self.bundle_life < Duration::from_secs(60) || self.bundle_life > Duration::from_secs(366 * 24 * 3600) {
            return wrong(
                "bundleLife",
                "from a minute to a year: it bounds how long a cluster that is cut off is wrong",
            );
        }
        if self.limits.standby_nodes > self.limits.sessions_per_cluster / 2 {
            return wrong("standbyNodes", "at most 128: a cluster's other agents need sessions too");
        }
        if self.signing_key_life < self.access_life {
            return wrong("signingKeyLife", "at least as long as accessLife");
        }
        Ok(())
    }

    /// Host of the public URL, without brackets and port.
    pub(crate) fn public_host(&self) -> Option<String> {
        let authority: http::uri::Authority = self.public_url.strip_prefix("https://")?.parse().ok()?;
        Some(authority.host().trim_matches(['[', ']']).to_owned())
    }
}

/// Names that are constants of this file.
fn known<T: std::str::FromStr>(text: &'static str) -> T {
    match text.parse() {
        Ok(name) => name,
        Err(_) => unreachable!("{text} is a valid name"),
    }
}

fn is_dns_name(name: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let body = name.strip_prefix("*.").unwrap_or(name);
    name.len() <= 253 && body.split('.').all(label)
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("data_dir", &self.data_dir)
            .field("listen", &self.listen)
            .field("ops_listen", &self.ops_listen)
            .field("names", &self.names)
            .field("public_url", &self.public_url)
            .field("trust_domain", &self.trust_domain)
            .field("hub_name", &self.hub_name)
            .finish_non_exhaustive()
    }
}

/// Where a certificate that was given lies. Both files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenCertificate {
    /// PEM: the certificate, and those that lead to its authority.
    pub chain: PathBuf,
    /// PEM: its key.
    pub key: PathBuf,
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct ConfigError {
    /// The setting, as it is called in a file.
    pub what: &'static str,
    /// What is wrong with it.
    pub why: String,
}

/// Bounds of a hub. Each protects the hub from one kind of peer; none is a tuning knob of throughput.
#[derive(Debug, Clone)]
pub struct Limits {
    /// TCP connections, all kinds together.
    pub connections: usize,
    /// The same of one address (of IPv6: of one network of 56 bits), which many may stand behind, but not all.
    pub connections_per_address: usize,
    /// TLS handshakes under way, TCP. Others wait for their turn.
    pub handshakes: usize,
    /// The same of one address, a quarter of all: who holds these holds up no other address.
    pub handshakes_per_address: usize,
    /// Longest TLS handshake, and longest wait for its turn.
    pub handshake: Duration,
    /// Pause of an accept loop that found no free file descriptor.
    pub accept_pause: Duration,
    /// Greetings of agents under way; more are told to come back.
    pub greetings: usize,
    /// Sessions of one hub.
    pub sessions: usize,
    /// Sessions of one cluster.
    pub sessions_per_cluster: usize,
    /// Cluster agents that may join one cluster.
    pub agents_per_cluster: usize,
    /// Node agents that may join one cluster. Kubernetes itself is tried with 5,000 nodes.
    pub nodes_per_cluster: usize,
    /// Node agents of one cluster that hold a session although nobody asked for one of them: they stand by for its
    /// cluster agents. The others are told to ask again, so that a hub's memory does not grow with a fleet's nodes.
    pub standby_nodes: usize,
    /// How long a node agent without a session rests before it asks again: this, and up to as much again.
    pub park_pause: Duration,
    /// How often a cluster agent is probed that node agents stand by for, so that they take over in time.
    pub probe: Duration,
    /// A cluster agent that does not answer its probe in this time, and three of its usual round trips, gets no new
    /// streams while a node agent can take them.
    pub doubt: Duration,
    /// Renewals and facts of one session at once, earned back one each second; a session that sends more is closed.
    pub control_burst: u32,
    /// What an agent that is told to come back waits: this, and up to as much again.
    pub busy_pause: Duration,
    /// How long the older of two holders of one identity has to answer before it counts as dead.
    pub duplicate_ping: Duration,
    /// How long a session may outlive its certificate.
    pub expiry_slack: Duration,
    /// Data that was sent and is not acknowledged for this long ends a tunnel or an HTTP/2 connection: its peer is
    /// gone. HTTP/1 is left to the kernel's own patience, for a reader that waits (a shell behind a pager) closes its
    /// window, and to this clock a closed window is the same as a dead peer.
    pub unacknowledged: Duration,
    /// How long a connection of HTTP lives on which nobody has shown a token that is good. A connection takes one of
    /// [`Limits::connections`]: strangers must not hold them all.
    pub stranger: Duration,
    /// Longest wait for the head of an HTTP/1 request, and for the first frames of HTTP/2.
    pub head: Duration,
    /// Largest body on the hub's own paths, in bytes: 413 above.
    pub body: usize,
    /// The same for callers who have not proved who they are yet: logins and joins.
    pub body_of_strangers: usize,
    /// Such bodies read at a time; more get 503. Together with their size it bounds what strangers make the hub hold.
    pub bodies_of_strangers: usize,
    /// The same of one address, a quarter of all; more get 429.
    pub bodies_of_strangers_per_address: usize,
    /// Longest wait for that body: 408 after it.
    pub body_wait: Duration,
    /// How slowly the bodies of requests to API servers may come: 408 and the end of the connection below it.
    pub body_pace: Pace,
    /// An HTTP/1 connection ends whose client takes nothing for this long of an answer that has an end of its own. Streams are
    /// left alone, logs and what is upgraded.
    pub reader: Duration,
    /// Requests open at a time on one HTTP/2 connection.
    pub h2_streams: u32,
    /// Password checks at a time: each takes 19 MiB and a core.
    pub password_checks: usize,
    /// Password checks waiting; more are told that too many log in (503).
    pub password_queue: usize,
    /// Longest wait for a password check: 503 after it.
    pub password_wait: Duration,
    /// Failed logins of one user from one address before the next is refused, earned back one each 10 s.
    pub login_burst: u32,
    /// Failed logins of one user from wherever before the next is refused, earned back one each 20 s.
    pub user_burst: u32,
    /// Searches of the audit log at a time; each reads files for up to 10 s. More get 429.
    pub audit_searches: usize,
    /// Logins from one address at once, of whatever users, earned back one each second.
    pub address_burst: u32,
    /// Joins from one address at once.
    pub join_burst: u32,
    /// One of them is earned back each time this has passed: short, for a fleet may stand behind one address, and a token
    /// cannot be guessed at any rate.
    pub join_every: Duration,
    /// Addresses and users whose attempts are remembered; the oldest are forgotten.
    pub remembered: usize,
    /// How long open work may end at shutdown.
    pub grace: Duration,
    /// Over how long watches are ended at shutdown, so that clients do not all return at once.
    pub watch_spread: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_per_address: 10_000,
            handshakes: 1024,
            handshakes_per_address: 256,
            handshake: Duration::from_secs(10),
            accept_pause: Duration::from_millis(200),
            greetings: 512,
            sessions: 20_000,
            sessions_per_cluster: 256,
            agents_per_cluster: 256,
            nodes_per_cluster: 5_000,
            standby_nodes: 3,
            park_pause: Duration::from_secs(20),
            probe: Duration::from_secs(1),
            doubt: Duration::from_secs(1),
            control_burst: 30,
            busy_pause: Duration::from_secs(5),
            duplicate_ping: Duration::from_secs(2),
            expiry_slack: Duration::from_secs(60),
            unacknowledged: Duration::from_secs(30),
            stranger: Duration::from_secs(30),
            head: Duration::from_secs(10),
            body: 1 << 20,
            body_of_strangers: 16 << 10,
            bodies_of_strangers: 2048,
            bodies_of_strangers_per_address: 512,
            body_wait: Duration::from_secs(10),
            body_pace: Pace::default(),
            // As long as kube-apiserver gives such a request in all (`--request-timeout`).
            reader: Duration::from_secs(60),
            h2_streams: 250,
            password_checks: std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, 4)),
            password_queue: 64,
            password_wait: Duration::from_secs(5),
            login_burst: 10,
            user_burst: 50,
            audit_searches: 2,
            address_burst: 100,
            join_burst: 100,
            join_every: Duration::from_millis(100),
            remembered: 10_000,
            grace: Duration::from_secs(30),
            watch_spread: Duration::from_secs(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_told() {
        assert_eq!(Config::new("x").validate(), Ok(()));
        let wrong = |change: fn(&mut Config)| {
            let mut config = Config::new("x");
            change(&mut config);
            config.validate().unwrap_err().what
        };
        assert_eq!(wrong(|c| c.names.clear()), "names");
        assert_eq!(wrong(|c| c.names.push("a b".into())), "names");
        assert_eq!(wrong(|c| c.public_url = "http://a".into()), "publicUrl");
        assert_eq!(wrong(|c| c.public_url = "https://a/b".into()), "publicUrl");
        assert_eq!(wrong(|c| c.login_life = Duration::ZERO), "loginLife");
        assert_eq!(wrong(|c| c.access_life = Duration::from_secs(3601)), "accessLife");
        assert_eq!(wrong(|c| c.audit_rotation.max_bytes = 0), "audit");
        assert_eq!(wrong(|c| c.audit_rotation.keep = 0), "audit");
        assert_eq!(wrong(|c| c.limits.standby_nodes = 129), "standbyNodes");
        assert_eq!(wrong(|c| c.signing_key_life = Duration::from_secs(60)), "signingKeyLife");
    }
}
