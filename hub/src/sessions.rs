//! The sessions of agents: who is let in, and when it ends.

mod offer;
mod registry;

pub(crate) use registry::{Entry, Registry};

use crate::{
    authority,
    config::Limits,
    join::{Joiner, Renewed},
    kinds::{AgentRole, AgentSpec, ClusterSpec},
    metrics::Metrics,
    nodes::Keeper,
    pki::Origin,
    rate::RateLimit,
    records::Records,
    standby,
    status::StatusWriter,
};
use moorline_authz::hex::hex;
use moorline_link::Greeting;
use moorline_proto::{
    code::CloseCode,
    control::{Control, Goodbye, Hello, Welcome},
    id::{Role, SessionId},
};
use registry::{Coming, Judging, STANDS_IN, plain, validity};
use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long streams may stay on a session that the agent has replaced, be it for a new certificate or a better carrier.
/// The older certificate ends it sooner.
const REPLACED: Duration = Duration::from_secs(24 * 3600);

/// Where an agent's greeting begins to be let in.
pub(crate) const VERSION: u16 = 1;

/// Lets agents in, and owns the task of each session.
pub(crate) struct Sessions {
    pub registry: Arc<Registry>,
    pub records: Records,
    pub joiner: Arc<Joiner>,
    pub nodes: Arc<Keeper>,
    pub status: StatusWriter,
    pub metrics: Metrics,
    pub limits: Limits,
    pub tasks: TaskTracker,
    pub draining: CancellationToken,
    pub greetings: Semaphore,
    pub next_id: AtomicU64,
}

/// Why an agent is not let in.
struct Refused(Goodbye);

fn refused(code: CloseCode, message: impl Into<String>, retry: Duration) -> Refused {
    let retry_after_ms = u32::try_from(retry.as_millis()).unwrap_or(u32::MAX);
    Refused(Goodbye { code, message: message.into(), retry_after_ms })
}

impl Sessions {
    /// Answers a greeting; ends when the answer is given. The session then lives in a task of its own.
    pub async fn admit(self: &Arc<Self>, greeting: Greeting) {
        let (peer, remote, carrier) = (greeting.peer.to_string(), greeting.remote, greeting.carrier);
        match self.judge(&greeting).await {
            Ok(admitted) => {
                let (agent, cluster) = (admitted.agent.clone(), admitted.cluster.clone());
                self.metrics.greetings.with_label_values(&["welcome"]).inc();
                match self.welcome(greeting, admitted).await {
                    Ok(entry) => {
                        tracing::info!(cluster, agent, %remote, %carrier, session = %entry.session.id(), "agent connected")
                    }
                    Err(error) => {
                        tracing::info!(cluster, agent, %remote, %carrier, "agent lost during its greeting: {error}")
                    }
                }
            }
            Err(Refused(goodbye)) => {
                self.metrics.greetings.with_label_values(&[goodbye.code.name()]).inc();
                match goodbye.code {
                    CloseCode::Parked => tracing::debug!(peer, %remote, %carrier, "node agent parked"),
                    code => tracing::warn!(peer, %remote, %carrier, %code, "agent refused: {}", goodbye.message),
                }
                greeting.refuse(goodbye).await;
            }
        }
    }

    fn busy(&self, message: &str) -> Refused {
        refused(CloseCode::Busy, message, self.limits.busy_pause.mul_f64(1.0 + rand::random::<f64>()))
    }

    async fn judge<'a>(&'a self, greeting: &Greeting) -> Result<Admitted<'a>, Refused> {
        if self.draining.is_cancelled() {
            return Err(refused(CloseCode::Shutdown, "this hub is shutting down", Duration::from_secs(1)));
        }
        let Ok(_permit) = self.greetings.try_acquire() else {
            return Err(self.busy("too many agents are connecting at this moment"));
        };
        let (cluster, name, node) = match &greeting.peer.role {
            Role::ClusterAgent(cluster, name) => (cluster, name, false),
            Role::NodeAgent(cluster, name) => (cluster, name, true),
            Role::Hub(_) => {
                return Err(refused(CloseCode::NotAllowed, "a hub's certificate is no agent's", Duration::ZERO));
            }
        };
        let agent = format!("{cluster}.{name}");
        let Some(judging) = Judging::begin(&self.registry, &agent) else {
            return Err(self.busy("another connection of this agent is being looked at"));
        };
        self.check_identity(&agent, node, &hex(&greeting.peer_key_sha256))?;
        if node {
            self.nodes.heard(&agent, &greeting.hello.facts, Some(greeting.hello.now_ms));
        }
        let (all, of_cluster) = self.registry.count(cluster.as_str());
        if all >= self.limits.sessions || of_cluster >= self.limits.sessions_per_cluster {
            return Err(self.busy("this hub holds as many sessions as it may"));
        }
        let older = self.registry.of_agent(cluster.as_str(), &agent);
        for other in older.iter().filter(|o| o.instance != greeting.hello.instance) {
            if matches!(timeout(self.limits.duplicate_ping, other.session.ping()).await, Ok(Ok(_))) {
                tracing::warn!(
                    cluster = other.cluster, agent, first = %other.session.remote(), second = %greeting.remote,
                    "two agents hold the same identity; the second is refused"
                );
                let message = format!(
                    "another agent with this identity is connected from {}; give each agent its own state folder and join it by itself",
                    other.session.remote()
                );
                return Err(refused(CloseCode::DuplicateIdentity, message, Duration::from_secs(30)));
            }
            other
                .session
                .close(CloseCode::Replaced, "it did not answer while a newer agent with this identity connected");
        }
        // One that has a session already may always replace it: it renews its certificate, or moves.
        let mut place = None;
        let mut called = node && (self.registry.is_called(&agent) || older.iter().any(|older| older.called));
        if node && !called && older.is_empty() {
            let fact =
                |name: &str| greeting.hello.facts.iter().find(|(key, _)| key == name).map(|(_, says)| plain(says));
            let zone = fact("zone");
            // Who is there for its node alone has nothing to stand by for.
            let apart = fact(STANDS_IN).is_some_and(|says| says == "0");
            let free = || self.registry.place(cluster.as_str(), zone.as_deref(), self.limits.standby_nodes);
            let found = if apart { None } else { free() };
            let behind = self.joiner.authority.is_behind(&Origin::of(&greeting.peer_cert));
            called = found.is_none() && self.registry.renews(cluster.as_str(), &greeting.peer_cert, behind);
            if found.is_none() && !called {
                let pause = self.limits.park_pause.mul_f64(1.0 + rand::random::<f64>());
                return Err(refused(CloseCode::Parked, "enough node agents of this cluster stand by", pause));
            }
            if let Some((coming, replaced)) = found {
                if let Some(replaced) = replaced {
                    replaced.session.close(CloseCode::Parked, "a node agent of another zone stands by instead");
                }
                place = Some(coming);
            }
        }
        Ok(Admitted { agent, cluster: cluster.to_string(), node, called, older, _judging: judging, _place: place })
    }

    /// The objects must say what the certificate says.
    fn check_identity(&self, agent: &str, node: bool, key: &str) -> Result<(), Refused> {
        let store = |_| self.busy("the store cannot be read at this moment");
        let gone = |message: String| refused(CloseCode::CredentialGone, message, Duration::from_secs(60));
        let Some(object) = self.records.get::<AgentSpec>(agent).map_err(store)? else {
            return Err(gone(format!("agent {agent} was deleted at the hub: join again with a new token")));
        };
        let Some(cluster) = self.records.get::<ClusterSpec>(&object.spec.cluster).map_err(store)? else {
            return Err(gone(format!("cluster {} was deleted at the hub: join again", object.spec.cluster)));
        };
        if cluster.metadata.uid != object.spec.cluster_uid {
            return Err(gone(format!("cluster {} was made anew at the hub: join again", object.spec.cluster)));
        }
        if (object.spec.role == AgentRole::Node) != node {
            return Err(refused(CloseCode::NotAllowed, "the certificate is for another role", Duration::ZERO));
        }
        if object.spec.public_key_sha256 != key {
            let message =
                format!("agent {agent} has joined anew with another key: this certificate is not valid any more");
            return Err(gone(message));
        }
        Ok(())
    }

    /// Whether a certificate with this key is still that of the cluster agent with this name.
    ///
    /// # Errors
    /// Why not, for the agent.
    pub fn still_agent(&self, agent: &str, key: &str) -> Result<(), String> {
        self.check_identity(agent, false, key).map_err(|Refused(goodbye)| goodbye.message)
    }

    async fn welcome(
        self: &Arc<Self>,
        greeting: Greeting,
        admitted: Admitted<'_>,
    ) -> Result<Arc<Entry>, moorline_link::AcceptError> {
        let Hello { instance, software, facts, .. } = greeting.hello.clone();
        let key = Mutex::new(hex(&greeting.peer_key_sha256));
        let (_, expires) = validity(&greeting.peer_cert);
        let origin = Origin::of(&greeting.peer_cert);
        let id = SessionId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let now_ms = now_ms();
        let welcome = Welcome { version: VERSION, software: software_name(), capabilities: Vec::new(), now_ms };
        let session = greeting.welcome(id, welcome).await?;
        let entry = Arc::new(Entry {
            session,
            agent: admitted.agent.clone(),
            cluster: admitted.cluster.clone(),
            node: admitted.node,
            doubt: tokio::sync::watch::Sender::new(false),
            pulse: tokio::sync::Mutex::default(),
            company: tokio::sync::watch::Sender::default(),
            called: admitted.called,
            instance,
            since: SystemTime::now(),
            unbroken: OnceLock::new(),
            facts: Mutex::new(facts),
            software: plain(&software),
            key,
            control: RateLimit::new(self.limits.control_burst, Duration::from_secs(1), 1),
            authority: authority::of(&self.joiner.authority, &origin),
            origin,
            expires: tokio::sync::watch::Sender::new(expires),
        });
        self.registry.insert(Arc::clone(&entry));
        for older in admitted.older.iter().filter(|older| older.instance == instance) {
            older.session.drain(REPLACED); // the newer one is up: no stream is lost
        }
        let sessions = Arc::clone(self);
        let task = Arc::clone(&entry);
        self.tasks.spawn(async move { sessions.keep(task).await });
        // Deleted between the look and the entry: the watch may have run before the entry was there.
        if matches!(self.records.get::<AgentSpec>(&entry.agent), Ok(None)) {
            entry.session.close(CloseCode::CredentialGone, "the agent was deleted at the hub");
        }
        Ok(entry)
    }

    /// One session, from its welcome to its end.
    async fn keep(&self, entry: Arc<Entry>) {
        let gauge = self.metrics.session_gauge(entry.session.carrier(), entry.node);
        gauge.inc();
        self.status.changed(&entry.cluster, &entry.agent);
        let mut expires = entry.expires.subscribe();
        let watch = (self.limits.probe, self.limits.doubt);
        let watched =
            standby::watch(&entry, &self.registry, watch, || self.status.changed(&entry.cluster, &entry.agent));
        let parking = standby::park_again(&entry);
        let authority = self.follow_authority(&entry);
        tokio::pin!(watched, parking, authority);
        let reason = loop {
            let until = *expires.borrow_and_update() + self.limits.expiry_slack;
            let left = until.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                reason = entry.session.closed() => break reason,
                () = tokio::time::sleep(left.min(Duration::from_secs(30 * 24 * 3600))) => {
                    if until <= SystemTime::now() {
                        entry.session.close(CloseCode::CredentialGone, "the certificate has expired and was not renewed");
                    }
                }
                _ = expires.changed() => {}
                () = &mut watched => {}
                () = &mut parking => {}
                () = &mut authority => {}
                message = entry.session.recv() => match message {
                    Some(message) => self.hear(&entry, message).await,
                    None => break entry.session.closed().await,
                },
                stream = entry.session.accept() => match stream {
                    // An agent asks nothing of a hub: one that does is broken or not an agent.
                    Some(stream) => {
                        tracing::warn!(cluster = entry.cluster, agent = entry.agent, "agent opened a stream towards the hub");
                        drop(stream);
                        entry.session.close(CloseCode::ForbiddenStream, "agents open no streams towards the hub");
                    }
                    None => break entry.session.closed().await,
                },
            }
        };
        self.registry.remove(&entry);
        gauge.dec();
        let by = if reason.by_peer { "agent" } else { "hub" };
        self.metrics.closes.with_label_values(&[reason.code.name(), by]).inc();
        tracing::info!(
            cluster = entry.cluster, agent = entry.agent, session = %entry.session.id(), code = %reason.code, by,
            "agent disconnected: {}", reason.message
        );
        self.status.changed(&entry.cluster, &entry.agent);
    }

    async fn hear(&self, entry: &Arc<Entry>, message: Control) {
        let costs = matches!(message, Control::Facts(_) | Control::Renew { .. });
        if costs && entry.control.take(&(), Instant::now()).is_err() {
            tracing::warn!(cluster = entry.cluster, agent = entry.agent, "too many control messages");
            return entry.session.close(CloseCode::Flood, "too many control messages");
        }
        match message {
            Control::Facts(facts) => {
                if entry.node {
                    self.nodes.heard(&entry.agent, &facts, None);
                }
                *entry.facts.lock().unwrap_or_else(PoisonError::into_inner) = facts;
                self.status.changed(&entry.cluster, &entry.agent);
            }
            Control::Renew { csr } => {
                let holds = entry.key.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let answer = match self.joiner.renew(&entry.agent, entry.session.peer(), &holds, &csr).await {
                    Ok(Renewed { chain, bundle, expires, key }) => {
                        *entry.key.lock().unwrap_or_else(PoisonError::into_inner) = key;
                        entry.expires.send_replace(expires);
                        tracing::info!(cluster = entry.cluster, agent = entry.agent, "certificate renewed");
                        Control::Renewed { chain, bundle }
                    }
                    Err(message) => {
                        tracing::warn!(cluster = entry.cluster, agent = entry.agent, "renewal refused: {message}");
                        Control::RenewRefused { message }
                    }
                };
                let _ = entry.session.send(answer).await; // a lost session is seen by its own branch
                self.status.changed(&entry.cluster, &entry.agent);
            }
            other => tracing::debug!(message = other.name(), "control message ignored"),
        }
    }

    /// Ends what has lost its object.
    pub fn agent_deleted(&self, agent: &str) {
        let cluster = agent.split_once('.').map_or(agent, |(cluster, _)| cluster);
        for entry in self.registry.of_agent(cluster, agent) {
            entry
                .session
                .close(CloseCode::CredentialGone, "the agent was deleted at the hub: join again with a new token");
        }
    }

    /// The same for all agents of a cluster.
    pub fn cluster_deleted(&self, cluster: &str) {
        for entry in self.registry.of_cluster(cluster) {
            entry.session.close(CloseCode::CredentialGone, "the cluster was deleted at the hub");
        }
    }

    /// Tells every agent to finish and come back elsewhere, or later.
    pub fn drain(&self, grace: Duration) {
        for entry in self.registry.all() {
            entry.session.drain(grace);
        }
    }

    /// Ends every session.
    pub fn close_all(&self) {
        for entry in self.registry.all() {
            entry.session.close(CloseCode::Shutdown, "the hub is shutting down");
        }
    }
}

struct Admitted<'a> {
    agent: String,
    cluster: String,
    node: bool,
    called: bool,
    older: Vec<Arc<Entry>>,
    _judging: Judging<'a>,
    _place: Option<Coming<'a>>,
}

pub(crate) fn software_name() -> String {
    format!("moorline/{}", env!("CARGO_PKG_VERSION"))
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
