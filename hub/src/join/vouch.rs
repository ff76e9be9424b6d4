//! Node agents that join by their pod's service account: the cluster's own agent asks its API server whose it is.

use super::{JoinError, JoinRequest, Joiner, store};
use crate::{
    ask,
    kinds::{AgentRole, ClusterSpec},
};
use http::{Method, StatusCode};
use moorline_apiserver::Object;
use moorline_proto::{header::Target, id::AgentName};
use serde::Deserialize;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

/// Longest service account token that is passed on, in bytes: Kubernetes' are about 1 KiB.
const TOKEN: usize = 8 << 10;
/// Longest answer of an agent.
const ANSWER: usize = 4 << 10;
/// How long an agent may take: two calls to its API server.
const PATIENCE: Duration = Duration::from_secs(15);
/// Questions under way at a time, from somebody who has proved nothing yet.
const QUESTIONS: usize = 64;
/// The same for one cluster: one whose agent is slow, or whom somebody asks about all the time, holds up nobody else's nodes.
const QUESTIONS_PER_CLUSTER: usize = 8;
/// Bytes of an agent's reason that are logged or passed on.
const REASON: usize = 300;

/// What is asked of clusters' agents now.
#[derive(Debug)]
pub(crate) struct Questions {
    all: Semaphore,
    /// Only clusters that are asked.
    of: Mutex<HashMap<String, usize>>,
}

impl Default for Questions {
    fn default() -> Self {
        Self { all: Semaphore::new(QUESTIONS), of: Mutex::default() }
    }
}

impl Questions {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Option<SemaphorePermit<'_>> {
        self.all.try_acquire().ok()
    }

    fn about(&self, cluster: &str) -> Option<About<'_>> {
        let mut of = self.lock();
        let asked = of.entry(cluster.to_owned()).or_default();
        (*asked < QUESTIONS_PER_CLUSTER).then(|| {
            *asked += 1;
            About(self, cluster.to_owned())
        })
    }
}

/// One question about a cluster.
struct About<'a>(&'a Questions, String);
impl Drop for About<'_> {
    fn drop(&mut self) {
        let mut of = self.0.lock();
        if let Some(asked) = of.get_mut(&self.1) {
            *asked -= 1;
            if *asked == 0 {
                of.remove(&self.1);
            }
        }
    }
}

/// Whom an agent vouches for.
#[derive(Deserialize)]
struct Vouched {
    node: String,
}

impl Joiner {
    /// The cluster, and the name of the node whose account it is, if one of the cluster's agents says so.
    pub(super) async fn vouched(
        &self,
        request: &JoinRequest,
        name: &AgentName,
        account: &str,
    ) -> Result<(Object<ClusterSpec>, String), JoinError> {
        if request.role != AgentRole::Node {
            return Err(JoinError::Bad(
                "only node agents join by a service account: cluster agents need a token".into(),
            ));
        }
        let cluster = request.cluster.as_deref();
        let cluster =
            cluster.ok_or_else(|| JoinError::Bad("who joins by a service account names its cluster".into()))?;
        if TOKEN < account.len() {
            return Err(JoinError::Bad("the service account's token is too long to be one".into()));
        }
        let Some(_place) = self.questions.begin() else {
            return Err(JoinError::Busy("too many agents join by a service account at this moment".into()));
        };
        // Whom the cluster's API server has not recognised learns nothing, not even whether there is such a cluster: it
        // gets one answer, whatever the cause.
        let nobody = |cause: &str, said: &[u8]| {
            let said = plain(said);
            tracing::warn!(cluster, %name, cause, said, "no agent vouches for a node agent");
            JoinError::Busy(
                "no agent of this cluster vouches for this node agent now. The cluster has to be connected, and this a pod \
                 of its node agents' service account; the hub's log says which it is"
                    .into(),
            )
        };
        let mut agents = self.registry.of_cluster(cluster);
        agents.retain(|entry| !entry.node && !entry.session.is_draining() && !entry.session.is_peer_draining());
        let agent = agents.iter().min_by_key(|entry| *entry.doubt.borrow());
        let agent = agent.ok_or_else(|| nobody("no agent of the cluster is connected", b""))?;
        let place = self.questions.about(cluster);
        let _about = place.ok_or_else(|| nobody("too many nodes of this cluster join at this moment", b""))?;
        let question = ask::ask(agent, Target::Node, (Method::POST, "/vouch"), account.as_bytes().to_vec(), ANSWER);
        let (code, answer) = match timeout(PATIENCE, question).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(cause)) => return Err(nobody("the cluster's agent cannot", cause.as_bytes())),
            Err(_) => return Err(nobody("the cluster's agent did not answer in time", b"")),
        };
        match code {
            StatusCode::OK => {}
            // A token that the API server knows, and not a node agent's.
            StatusCode::FORBIDDEN => return Err(JoinError::Account(plain(&answer))),
            StatusCode::UNAUTHORIZED => return Err(nobody("the cluster does not know this account", &answer)),
            _ => return Err(nobody("the cluster's agent could not ask its API server", &answer)),
        }
        let node = serde_json::from_slice::<Vouched>(&answer).map(|vouched| vouched.node);
        let node = node.map_err(|_| nobody("the cluster's agent said nothing that can be read", b""))?;
        // Nodes have DNS names, agents one label: as the agent itself makes its name.
        if node.replace('.', "-") != name.as_str() {
            let shown: String = node.chars().filter(|c| c.is_ascii_graphic()).take(253).collect();
            return Err(JoinError::Account(format!(
                "the service account is of node {shown}, and the agent asks for {name}"
            )));
        }
        let known = self.records.get::<ClusterSpec>(cluster).map_err(store)?;
        Ok((known.ok_or_else(|| nobody("the cluster is gone", b""))?, node))
    }
}

/// An agent's words, fit for a log.
fn plain(said: &[u8]) -> String {
    String::from_utf8_lossy(said).chars().filter(|c| !c.is_control()).take(REASON).collect()
}
