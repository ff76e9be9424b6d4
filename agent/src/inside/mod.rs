//! What streams reach inside the cluster besides the API server: services, pods, hosts.
//!
//! A place is looked up ([`resolve`]), judged by name and by each address ([`moorline_authz::edge`]), dialled
//! ([`dial`]), and served as bytes, as datagrams ([`udp`]) or as one HTTP exchange ([`web`]).

mod dial;
mod ground;
mod kept;
mod resolve;
mod tls;
mod udp;
mod web;

use crate::{limits, policy::PolicyFile, upstream::ApiServer};
use ground::Ground;
use moorline_authz::{access::importer, edge::EdgePolicy, identity::Identity};
use moorline_link::{HubAddress, IncomingStream};
use moorline_proto::{
    code::{RefuseCode, ResetCode},
    header::Refusal,
    inside::{Destination, Inside as Target, Payload},
};
use moorline_proxy::{
    edge::identities,
    splice::{Passed, SpliceError, splice},
};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
pub use resolve::Lookup;
use resolve::Resolver;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::Instant;

/// Why a place inside the cluster was not reached. The text is for the caller: what is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A rule of the cluster's owner.
    #[error("{0}")]
    Policy(String),
    /// There is no such place.
    #[error("{0}")]
    NotFound(String),
    /// There is, and nothing of it is ready.
    #[error("{0}")]
    NoEndpoints(String),
    /// Every address answered that nothing listens there.
    #[error("{to} refused the connection at {at}: does its process listen there?")]
    Refused {
        /// The place.
        to: String,
        /// The addresses.
        at: String,
    },
    /// No address could be reached.
    #[error("{0}")]
    Unreachable(String),
    /// No address answered in time.
    #[error("{to} did not answer within {} s", limits::INSIDE_CONNECT.as_secs())]
    Timeout {
        /// The place.
        to: String,
    },
    /// The other side did not prove who it is.
    #[error(
        "no trusted TLS connection to {to}: {why}. The cluster's owner names its authority in the edge policy \
         (services.authorities), or the service in services.unverifiedTls; a service without TLS is reached without https:"
    )]
    Tls {
        /// The place.
        to: String,
        /// In words.
        why: String,
    },
    /// As many as may are open.
    #[error("{0}")]
    Busy(String),
}

impl Failure {
    /// As the wire says it.
    pub fn code(&self) -> RefuseCode {
        match self {
            Self::Policy(_) => RefuseCode::Policy,
            Self::NotFound(_) => RefuseCode::NotFound,
            Self::NoEndpoints(_) => RefuseCode::NoEndpoints,
            Self::Refused { .. } => RefuseCode::ConnectionRefused,
            Self::Unreachable(_) => RefuseCode::Unreachable,
            Self::Timeout { .. } => RefuseCode::Deadline,
            Self::Tls { .. } => RefuseCode::Tls,
            Self::Busy(_) => RefuseCode::Busy,
        }
    }
}

/// What is counted.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Streams to places, by what became of them.
    opened: IntCounterVec,
    /// Bytes that passed, both ways.
    bytes: IntCounter,
    /// Datagrams that were dropped, for want of room or as their flow could not be opened.
    dropped: IntCounter,
}

impl Metrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// One of the names is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let opened = Opts::new("moorline_agent_inside_streams_total", "Streams to services, pods and hosts");
        let this = Self {
            opened: IntCounterVec::new(opened, &["result"])?,
            bytes: IntCounter::new("moorline_agent_inside_bytes_total", "Bytes from and to services, pods and hosts")?,
            dropped: IntCounter::new("moorline_agent_inside_datagrams_dropped_total", "Datagrams that were dropped")?,
        };
        registry.register(Box::new(this.opened.clone()))?;
        registry.register(Box::new(this.bytes.clone()))?;
        registry.register(Box::new(this.dropped.clone()))?;
        Ok(this)
    }
}

/// How much one place is used.
#[derive(Debug, Default)]
struct Load {
    open: usize,
    /// The second that is counted, and what began in it.
    second: Option<Instant>,
    begun: u32,
}

/// Reaches into the cluster.
pub struct Inside {
    resolver: Resolver,
    ground: Ground,
    web: web::Web,
    loads: Mutex<HashMap<Destination, Load>>,
    policy: Arc<PolicyFile>,
    metrics: Metrics,
}

impl Inside {
    /// Nothing is dialled yet. `hub`: whose addresses are not dialled either.
    pub fn new(
        upstream: Arc<ApiServer>,
        policy: Arc<PolicyFile>,
        hub: Option<HubAddress>,
        metrics: Metrics,
    ) -> Arc<Self> {
        Self::with_names(upstream, policy, hub, metrics, None)
    }

    /// The same, with somebody else to ask for the addresses of hosts.
    pub fn with_names(
        upstream: Arc<ApiServer>,
        policy: Arc<PolicyFile>,
        hub: Option<HubAddress>,
        metrics: Metrics,
        names: Option<Lookup>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            resolver: Resolver::new(upstream.clone(), names),
            ground: Ground::new(upstream, hub),
            web: web::Web::new(this.clone()),
            loads: Mutex::default(),
            policy,
            metrics,
        })
    }

    /// Serves one stream to its end.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream and closes what it was connected to.
    pub async fn serve(&self, mut incoming: IncomingStream, target: Target) {
        let principal = incoming.header.principal.take().filter(|principal| !principal.user.is_empty());
        let Some(principal) = principal else {
            let message = "a request without an identity".to_owned();
            let refusal = Refusal { code: RefuseCode::NoIdentity, message, retry_elsewhere: false };
            return incoming.refuse(refusal).await;
        };
        let (who, _) = identities(principal);
        let policy = self.policy.current();
        let named = policy.reach(&who, &target.to).map_err(|denial| Failure::Policy(denial.to_string()));
        let begun = named.and_then(|()| self.begin(&target.to, &policy));
        let (load, incoming) = match begun {
            Ok(load) => (load, incoming),
            Err(failure) => return self.refuse(incoming, &failure).await,
        };
        match target.payload {
            Payload::Bytes => self.bytes(incoming, &who, &target, &policy).await,
            Payload::Datagrams => self.datagrams(incoming, &who, &target).await,
            Payload::Http | Payload::Https => self.exchange(incoming, &target, &policy).await,
        }
        drop(load);
    }

    async fn bytes(&self, incoming: IncomingStream, who: &Identity, target: &Target, policy: &EdgePolicy) {
        let mut connection = match Box::pin(self.connect(who, target, policy)).await {
            Ok(connection) => connection,
            Err(failure) => return self.refuse(incoming, &failure).await,
        };
        self.count("opened");
        let (mut stream, passed) = (incoming.accept(), Passed::default());
        let ended = splice(&mut stream, &mut connection, limits::INSIDE_IDLE, &passed).await;
        let sum = passed.there.into_inner().wrapping_add(passed.back.into_inner());
        self.metrics.bytes.inc_by(sum);
        match ended {
            Ok(()) => {}
            Err(SpliceError::Idle) => stream.reset(ResetCode::Idle),
            Err(e) => {
                tracing::debug!(to = %target.to, cause = %crate::upstream::chain(&e), "stream ended early");
                stream.reset(ResetCode::Broken);
                // A connection that was cut must not look like one that ended.
                let _ = socket2::SockRef::from(&connection).set_linger(Some(std::time::Duration::ZERO));
            }
        }
    }

    /// A stream of datagrams outlives pods: each new flow is looked up and judged again.
    async fn datagrams(&self, incoming: IncomingStream, who: &Identity, target: &Target) {
        let find = || async {
            let policy = self.policy.current();
            policy.reach(who, &target.to).map_err(|denial| Failure::Policy(denial.to_string()))?;
            self.candidates(who, target, &policy, resolve::Transport::Udp).await
        };
        match Box::pin(find()).await {
            Ok(addresses) => {
                self.count("opened");
                Box::pin(udp::relay(incoming.accept(), addresses, find, &self.metrics)).await;
            }
            Err(failure) => self.refuse(incoming, &failure).await,
        }
    }

    async fn exchange(&self, incoming: IncomingStream, target: &Target, policy: &Arc<EdgePolicy>) {
        // Looked up for each request: a pooled connection is no way around a label or a service that is gone.
        let found = match self.resolver.find(&target.to, resolve::Transport::Tcp).await {
            Ok(found) => found,
            Err(failure) => return self.refuse(incoming, &failure).await,
        };
        if let Err(failure) = carries(&target.to, &found.labels, &target.labels) {
            return self.refuse(incoming, &failure).await;
        }
        self.count("opened");
        if let Err(e) = self.web.serve(incoming.accept_quietly(), target, &found, policy).await {
            tracing::debug!(to = %target.to, cause = %crate::upstream::chain(&e), "stream ended early");
        }
    }

    /// One TCP connection to the place.
    async fn connect(
        &self,
        who: &Identity,
        target: &Target,
        policy: &EdgePolicy,
    ) -> Result<tokio::net::TcpStream, Failure> {
        let addresses = self.candidates(who, target, policy, resolve::Transport::Tcp).await?;
        let dialled = dial::any(&target.to, &addresses).await;
        if dialled.is_err() {
            // What is known may be old: the next one looks anew.
            self.resolver.forget(&target.to);
        }
        dialled
    }

    /// The addresses that may be dialled: these, and no others, for a name may mean another thing the next time. For pods of
    /// another cluster nothing that is imported here itself: two clusters that import from each other would send a
    /// connection round and round.
    async fn candidates(
        &self,
        who: &Identity,
        target: &Target,
        policy: &EdgePolicy,
        transport: resolve::Transport,
    ) -> Result<Vec<SocketAddr>, Failure> {
        let found = self.resolver.find(&target.to, transport).await?;
        carries(&target.to, &found.labels, &target.labels)?;
        if importer(&who.user).is_some() && found.labels.contains_key(crate::imports::LABEL) {
            return Err(Failure::Policy(format!("{} is imported here itself: export it where it is", target.to)));
        }
        self.judged(policy, &found.addresses).await
    }

    async fn judged(&self, policy: &EdgePolicy, addresses: &[SocketAddr]) -> Result<Vec<SocketAddr>, Failure> {
        let terrain = self.ground.terrain().await?;
        let mut refused = None;
        let mut allowed = Vec::with_capacity(addresses.len().min(limits::INSIDE_CANDIDATES));
        for &address in addresses {
            let judged = policy
                .address(address, &terrain)
                .and_then(|()| if ground::is_own(address.ip()) { policy.own_address(address) } else { Ok(()) });
            match judged {
                Ok(()) => allowed.push(address),
                Err(denial) => refused = Some(denial),
            }
            if allowed.len() == limits::INSIDE_CANDIDATES {
                break;
            }
        }
        match refused {
            Some(denial) if allowed.is_empty() => Err(Failure::Policy(denial.to_string())),
            _ => Ok(allowed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Destination, Load>> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place in the bounds of `to`, given back when dropped.
    fn begin<'a>(&'a self, to: &'a Destination, policy: &EdgePolicy) -> Result<Held<'a>, Failure> {
        let (most, rate) = policy.stream_bounds(to);
        let most = most.unwrap_or(limits::INSIDE_STREAMS);
        let mut loads = self.lock();
        let load = loads.entry(to.clone()).or_default();
        if most <= load.open {
            return Err(Failure::Busy(format!("{to} has {most} open streams, as many as it may")));
        }
        if let Some(rate) = rate {
            let now = Instant::now();
            if load.second.is_none_or(|second| second.elapsed().as_secs() > 0) {
                (load.second, load.begun) = (Some(now), 0);
            }
            if rate <= load.begun {
                return Err(Failure::Busy(format!("{to} takes {rate} new streams a second")));
            }
            load.begun += 1;
        }
        load.open += 1;
        Ok(Held { inside: self, to })
    }

    fn count(&self, result: &str) {
        self.metrics.opened.with_label_values(&[result]).inc();
    }

    async fn refuse(&self, incoming: IncomingStream, failure: &Failure) {
        let code = failure.code();
        self.count(code.name());
        tracing::debug!(code = %code, cause = %failure, "no stream into the cluster");
        let retry_elsewhere = matches!(failure, Failure::Busy(_));
        Box::pin(incoming.refuse(Refusal { code, message: failure.to_string(), retry_elsewhere })).await;
    }
}

struct Held<'a> {
    inside: &'a Inside,
    to: &'a Destination,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut loads = self.inside.lock();
        if let Some(load) = loads.get_mut(self.to) {
            load.open -= 1;
            // A second that is over says nothing any more; one that runs bounds what begins in it.
            if load.open == 0 && load.second.is_none_or(|second| second.elapsed().as_secs() > 0) {
                loads.remove(self.to);
            }
        }
        if limits::INSIDE_REMEMBERED < loads.len() {
            loads.retain(|_, load| load.open > 0);
        }
    }
}

/// Whether a place carries one of the sets of labels that are asked for.
fn carries(
    to: &Destination,
    labels: &HashMap<String, String>,
    asked: &[moorline_proto::inside::Labels],
) -> Result<(), Failure> {
    let all = |set: &moorline_proto::inside::Labels| set.iter().all(|(key, value)| labels.get(key) == Some(value));
    if asked.is_empty() || asked.iter().any(all) {
        return Ok(());
    }
    Err(Failure::Policy(format!("{to} does not carry the labels that the grant at the hub asks for")))
}
