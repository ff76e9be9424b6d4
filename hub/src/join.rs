//! How an agent gets its identity, and keeps it.

use crate::{
    audit,
    kinds::{AgentRole, AgentSpec, ClusterSpec, JoinTokenSpec},
    metrics::Metrics,
    pki::{Authority, Issued},
    rate::RateLimit,
    records::{RecordError, Records},
    sessions::Registry,
    status::time,
};
use moorline_apiserver::Object;
use moorline_authz::{
    hex::hex,
    token::{Kind, TokenText},
};
use moorline_proto::id::{AgentName, ClusterId, Role, SpiffeId};
use moorline_proxy::audit::AuditSink;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

mod vouch;

pub(crate) use vouch::Questions;

/// Attempts to write an object against others who do the same at that moment.
const TRIES: u32 = 200;

/// What an agent sends.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct JoinRequest {
    /// A join token.
    #[serde(default)]
    token: String,
    /// Instead: the token of the pod's service account, which the cluster's agent vouches for.
    #[serde(default)]
    account: Option<String>,
    csr: String,
    name: String,
    #[serde(default)]
    cluster: Option<String>,
    #[serde(default)]
    role: AgentRole,
}

/// What it gets.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JoinAnswer {
    cluster: String,
    name: String,
    trust_domain: String,
    chain: Vec<String>,
    bundle: Vec<String>,
}

/// What a renewal gave.
pub(crate) struct Renewed {
    pub chain: Vec<Vec<u8>>,
    pub bundle: Vec<Vec<u8>>,
    pub expires: SystemTime,
    /// SHA-256 of the certificate's key, in hex.
    pub key: String,
}

/// Why an agent did not join. The text is for the agent's log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    /// One text for all of them: unknown, expired, used up, wrong secret.
    #[error("the join token is not valid: it is unknown, has expired or was used up")]
    Token,
    /// A service account that is not a node agent's, or another node's. The text is the cluster's own agent's.
    #[error("the service account lets nobody join: {0}")]
    Account(String),
    #[error("the join token is for another cluster")]
    Cluster,
    #[error("{0}")]
    Bad(String),
    #[error(
        "an agent named {name} has joined cluster {cluster} with another key, and {held}: give this one another name \
         (--name), or let an administrator delete the other first (kubectl delete agents.moorline.dev {cluster}.{name})"
    )]
    Taken {
        /// The name within the cluster.
        name: String,
        /// The cluster.
        cluster: String,
        /// Why the name is not free.
        held: String,
    },
    #[error(
        "cluster {cluster} has {most} {role} agents, as many as it may: let an administrator delete those that are gone \
         (kubectl get agents.moorline.dev)"
    )]
    Full {
        /// The cluster.
        cluster: String,
        /// Of which kind.
        role: AgentRole,
        /// How many it may have.
        most: usize,
    },
    #[error("too many attempts from this address")]
    Often(Duration),
    #[error("{0}")]
    Busy(String),
}

/// Issues identities.
pub(crate) struct Joiner {
    pub authority: Arc<Authority>,
    pub records: Records,
    pub registry: Arc<Registry>,
    pub audit: Arc<dyn AuditSink>,
    pub metrics: Metrics,
    pub life: Duration,
    pub agents_per_cluster: usize,
    pub nodes_per_cluster: usize,
    pub rate: RateLimit<IpAddr>,
    /// Service accounts that are asked about at a time.
    pub questions: Questions,
}

impl Joiner {
    /// One join, counted and in the audit log.
    pub async fn join(&self, body: &[u8], remote: SocketAddr) -> Result<JoinAnswer, JoinError> {
        if self.audit.admit().await.is_err() {
            return Err(JoinError::Busy("the audit log takes no more records".to_owned()));
        }
        let (name, result) = match self.rate.take(&remote.ip(), Instant::now()) {
            Err(wait) => (String::new(), Err(JoinError::Often(wait))),
            Ok(()) => match serde_json::from_slice::<JoinRequest>(body) {
                Err(error) => (String::new(), Err(JoinError::Bad(format!("the request cannot be read: {error}")))),
                // A name that is none is the log's of nobody: it may be long and hold anything.
                Ok(request) => match request.name.parse::<AgentName>() {
                    Ok(name) => (name.to_string(), self.decide(&request, &name).await),
                    Err(error) => (String::new(), Err(JoinError::Bad(error.to_string()))),
                },
            },
        };
        let (label, code) = match &result {
            Ok(_) => ("joined", 200),
            Err(JoinError::Token) => ("bad_token", 401),
            Err(JoinError::Account(_)) => ("bad_account", 403),
            Err(JoinError::Cluster) => ("wrong_cluster", 403),
            Err(JoinError::Bad(_)) => ("bad_request", 400),
            Err(JoinError::Taken { .. }) => ("name_taken", 409),
            Err(JoinError::Full { .. }) => ("cluster_full", 403),
            Err(JoinError::Often(_)) => ("too_often", 429),
            Err(JoinError::Busy(_)) => ("busy", 503),
        };
        self.metrics.joins.with_label_values(&[label]).inc();
        match &result {
            Err(JoinError::Often(_)) => tracing::debug!(%remote, "too many joins from this address"),
            Ok(answer) => tracing::info!(cluster = answer.cluster, agent = answer.name, %remote, "agent joined"),
            Err(error) => tracing::warn!(agent = name, %remote, result = label, "join refused: {error}"),
        }
        // What was refused unseen is counted, not recorded: nobody fills the log by asking often.
        if matches!(result, Err(JoinError::Often(_))) {
            return result;
        }
        let cluster = result.as_ref().map(|a| a.cluster.clone()).unwrap_or_default();
        let event = audit::event("create", "/agent/join", &format!("agent:{name}"), remote, code, "agents", &cluster);
        self.audit.push(event);
        result
    }

    /// The cluster that a join token is for, and the token's id.
    fn tokened(&self, request: &JoinRequest) -> Result<(Object<ClusterSpec>, String), JoinError> {
        let token = TokenText::parse(&request.token).map_err(|_| JoinError::Token)?;
        if token.kind != Kind::Join {
            return Err(JoinError::Token);
        }
        let hash = self.records.token_hash::<JoinTokenSpec>(&token.id).ok_or(JoinError::Token)?;
        if !hash.verify(&token) {
            return Err(JoinError::Token);
        }
        let object = self.usable(&token.id)?;
        let wanted = &object.spec.cluster;
        if request.cluster.as_ref().is_some_and(|cluster| cluster != wanted) {
            return Err(JoinError::Cluster);
        }
        let cluster = self.records.get::<ClusterSpec>(wanted).map_err(store)?.ok_or(JoinError::Token)?;
        Ok((cluster, token.id))
    }

    async fn decide(&self, request: &JoinRequest, name: &AgentName) -> Result<JoinAnswer, JoinError> {
        let (cluster, node, token) = match &request.account {
            Some(account) => {
                let (cluster, node) = self.vouched(request, name, account).await?;
                (cluster, Some(node), None)
            }
            None => {
                let (cluster, token) = self.tokened(request)?;
                (cluster, None, Some(token))
            }
        };
        let wanted = &cluster.metadata.name;
        let cluster_id: ClusterId = wanted.parse().map_err(|_| JoinError::Token)?;
        let csr = CertificateSigningRequestDer::from_pem_slice(request.csr.as_bytes())
            .map_err(|_| JoinError::Bad("the signing request is no PEM".to_owned()))?;
        let role = match request.role {
            AgentRole::Agent => Role::ClusterAgent(cluster_id, name.clone()),
            AgentRole::Node => Role::NodeAgent(cluster_id, name.clone()),
        };
        let id = SpiffeId { trust_domain: self.authority.domain().clone(), role };
        let issued = self.authority.issue_agent(&csr, &id, self.life).map_err(|e| JoinError::Bad(e.to_string()))?;
        let full = format!("{wanted}.{name}");
        let spec = AgentSpec {
            cluster: wanted.clone(),
            cluster_uid: cluster.metadata.uid.clone(),
            name: name.to_string(),
            role: request.role,
            node,
            public_key_sha256: hex(&issued.key_sha256),
        };
        self.free(&full, &spec)?;
        if let Some(token) = &token {
            self.take_use(token).await?;
        }
        let kept = self.keep(&full, spec, &cluster).await?;
        self.note_expiry(kept, issued.expires).await;
        let pem = |der: &[u8]| crate::files::pem("CERTIFICATE", der);
        Ok(JoinAnswer {
            cluster: wanted.clone(),
            name: name.to_string(),
            trust_domain: self.authority.domain().to_string(),
            chain: issued.chain.iter().map(|cert| pem(cert)).collect(),
            bundle: issued.bundle.iter().map(|cert| pem(cert)).collect(),
        })
    }

    /// The agent that has this name, if whoever asks may have it too; `None`: nobody has it, and there is room.
    fn free(&self, full: &str, spec: &AgentSpec) -> Result<Option<Object<AgentSpec>>, JoinError> {
        let before = self.records.get::<AgentSpec>(full).map_err(store)?;
        // With the key that it has an agent may ask again: the first answer may have been lost on its way.
        if let Some(other) = before.as_ref().filter(|other| other.spec.public_key_sha256 != spec.public_key_sha256)
            && let Some(held) = self.held(other, spec.node.as_deref())
        {
            return Err(JoinError::Taken { name: spec.name.clone(), cluster: spec.cluster.clone(), held });
        }
        if before.is_none() {
            let agents = self.records.list::<AgentSpec>().map_err(store)?;
            let most = match spec.role {
                AgentRole::Agent => self.agents_per_cluster,
                AgentRole::Node => self.nodes_per_cluster,
            };
            let same = |agent: &&Object<AgentSpec>| agent.spec.cluster == spec.cluster && agent.spec.role == spec.role;
            if agents.iter().filter(same).count() >= most {
                return Err(JoinError::Full { cluster: spec.cluster.clone(), role: spec.role, most });
            }
        }
        Ok(before)
    }

    /// Writes the agent's object. Its session's status and others who join write too: then it is looked at again.
    async fn keep(
        &self,
        full: &str,
        spec: AgentSpec,
        cluster: &Object<ClusterSpec>,
    ) -> Result<Object<AgentSpec>, JoinError> {
        for _ in 0..TRIES {
            let written = match self.free(full, &spec)? {
                Some(mut agent) => {
                    agent.spec = spec.clone(); // whoever held the name before is not let in any more
                    self.records.update(&agent).await
                }
                None => {
                    let mut agent = Object::<AgentSpec>::new(full, spec.clone());
                    agent.metadata.owner_references = vec![cluster.owner_reference()];
                    self.records.create(&agent).await
                }
            };
            match written {
                Err(RecordError::Conflict | RecordError::NotFound) => {}
                other => return other.map_err(store),
            }
        }
        Err(JoinError::Busy("the agent's object changes all the time".to_owned()))
    }

    /// Why nobody else may have an agent's name; `None`: its certificate has expired and nobody is connected with it. Or it
    /// is of the node that its cluster vouches for now: that one has lost its key. By a token anybody could take it.
    fn held(&self, agent: &Object<AgentSpec>, vouched: Option<&str>) -> Option<String> {
        if !self.registry.of_agent(&agent.spec.cluster, &agent.metadata.name).is_empty() {
            return Some("it is connected".to_owned());
        }
        // One of a role that nobody vouched for stays whose it is. So does one of another node: agents are called by one
        // label, so `a.b` and `a-b` are of one name.
        let owner = agent.spec.node.as_deref();
        if agent.spec.role == AgentRole::Node && vouched.is_some_and(|node| owner.is_none_or(|owner| owner == node)) {
            return None;
        }
        let noted = agent.status.as_ref().and_then(|status| status.certificate_expires.as_deref());
        let until = match noted.and_then(|at| at.parse::<jiff::Timestamp>().ok()) {
            Some(until) => until,
            // Written down with the object or a moment later: without it the longest that can be.
            None => {
                let made: jiff::Timestamp = agent.metadata.creation_timestamp.as_deref()?.parse().ok()?;
                made.checked_add(self.life).unwrap_or(jiff::Timestamp::MAX)
            }
        };
        let whose = owner.map(|node| format!("it is of node {node}, and ")).unwrap_or_default();
        (jiff::Timestamp::now() < until).then(|| format!("{whose}its certificate is valid until {until}"))
    }

    /// Keeps with the object how long its certificate is good: until then nobody else gets its name.
    async fn note_expiry(&self, mut agent: Object<AgentSpec>, expires: SystemTime) {
        agent.status.get_or_insert_default().certificate_expires = Some(time(expires));
        match self.records.update_status(&agent).await {
            // Who wrote meanwhile is the session's own status, which says the same.
            Ok(_) | Err(RecordError::Conflict | RecordError::NotFound) => {}
            Err(error) => tracing::warn!(agent = agent.metadata.name, "status not written: {error}"),
        }
    }

    /// The token, if it is still good for one more.
    fn usable(&self, id: &str) -> Result<Object<JoinTokenSpec>, JoinError> {
        let object = self.records.get::<JoinTokenSpec>(id).map_err(store)?.ok_or(JoinError::Token)?;
        let expires: jiff::Timestamp = object.spec.expires.parse().map_err(|_| JoinError::Token)?;
        if expires <= jiff::Timestamp::now()
            || object.status.as_ref().is_some_and(|status| status.uses >= object.spec.max_uses)
        {
            return Err(JoinError::Token);
        }
        Ok(object)
    }

    /// Takes one use: whoever writes first has it, the others look again.
    async fn take_use(&self, id: &str) -> Result<(), JoinError> {
        for _ in 0..TRIES {
            let mut object = self.usable(id)?;
            object.status.get_or_insert_default().uses += 1;
            match self.records.update_status(&object).await {
                Err(RecordError::Conflict) => {}
                other => return other.map(drop).map_err(store),
            }
        }
        Err(JoinError::Busy("too many agents join with this token at once".to_owned()))
    }

    /// A new certificate for an identity that proved itself by its session. The key may be a new one. `holds` is the key
    /// that the session proved, or was given a certificate for: once the object names another, the name is somebody else's.
    pub async fn renew(&self, agent: &str, id: &SpiffeId, holds: &str, csr: &[u8]) -> Result<Renewed, String> {
        let issued = self.authority.issue_agent(csr, id, self.life).map_err(|e| e.to_string())?;
        self.give(agent, holds, issued).await
    }

    /// The same unasked, for the key (SubjectPublicKeyInfo, DER) that the session showed: the authority is another now.
    pub async fn offer(&self, agent: &str, id: &SpiffeId, holds: &str, key: &[u8]) -> Result<Renewed, String> {
        let issued = self.authority.issue_key(key, id, self.life).map_err(|e| e.to_string())?;
        if hex(&issued.key_sha256) != holds {
            return Err("the agent has changed its key since".to_owned());
        }
        self.give(agent, holds, issued).await
    }

    async fn give(&self, agent: &str, holds: &str, issued: Issued) -> Result<Renewed, String> {
        let words = |e: RecordError| format!("the store: {e}");
        let key = hex(&issued.key_sha256);
        let mut tries = 0;
        let object = loop {
            let mut object =
                self.records.get::<AgentSpec>(agent).map_err(words)?.ok_or("the agent was deleted at the hub")?;
            if object.spec.public_key_sha256 != holds {
                return Err("the agent has joined anew with another key".to_owned());
            }
            if object.spec.public_key_sha256 == key {
                break object;
            }
            object.spec.public_key_sha256.clone_from(&key);
            match self.records.update(&object).await {
                Err(RecordError::Conflict) if tries < TRIES => tries += 1, // its status was written meanwhile
                other => break other.map_err(words)?,
            }
        };
        self.note_expiry(object, issued.expires).await;
        let der = |certs: &[CertificateDer<'static>]| certs.iter().map(|cert| cert.to_vec()).collect();
        let (chain, bundle) = (der(&issued.chain), der(&issued.bundle));
        Ok(Renewed { chain, bundle, expires: issued.expires, key })
    }
}

fn store(error: RecordError) -> JoinError {
    JoinError::Busy(format!("the store: {error}"))
}
