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
use std::time::Duration;
use tokio::time::timeout;

/// Longest service account token that is passed on, in bytes: Kubernetes' are about 1 KiB.
const TOKEN: usize = 8 << 10;
/// Longest answer of an agent.
const ANSWER: usize = 4 << 10;
/// How long an agent may take: two calls to its API server.
const PATIENCE: Duration = Duration::from_secs(15);
/// Questions under way at a time, from somebody who has proved nothing yet.
pub(crate) const QUESTIONS: usize = 64;

/// Whom an agent vouches for.
#[derive(Deserialize)]
struct Vouched {
    node: String,
}

impl Joiner {
    /// The cluster, if one of its agents says that the account is of the node with this name.
    pub(super) async fn vouched(
        &self,
        request: &JoinRequest,
        name: &AgentName,
        account: &str,
    ) -> Result<Object<ClusterSpec>, JoinError> {
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
        let Ok(_place) = self.questions.try_acquire() else {
            return Err(JoinError::Busy("too many agents join by a service account at this moment".into()));
        };
        // Of a cluster that is not known nothing else is said: strangers learn no names.
        let nobody = || JoinError::Busy("no agent of this cluster is connected that could vouch for its nodes".into());
        let mut agents = self.registry.of_cluster(cluster);
        agents.retain(|entry| !entry.node && !entry.session.is_draining() && !entry.session.is_peer_draining());
        let agent = agents.iter().min_by_key(|entry| *entry.doubt.borrow()).ok_or_else(nobody)?;
        let question = ask::ask(agent, Target::Node, (Method::POST, "/vouch"), account.as_bytes().to_vec(), ANSWER);
        let (code, answer) = match timeout(PATIENCE, question).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(cause)) => {
                tracing::warn!(cluster, %name, %cause, "the cluster's agent does not vouch");
                return Err(JoinError::Busy("the cluster's agent cannot vouch for its nodes now".into()));
            }
            Err(_) => return Err(JoinError::Busy("the cluster's agent did not vouch in time".into())),
        };
        match code {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let why = String::from_utf8_lossy(&answer).chars().filter(|c| !c.is_control()).take(300).collect();
                return Err(JoinError::Account(why));
            }
            other => {
                tracing::warn!(cluster, %name, code = %other, "the cluster's agent could not vouch");
                return Err(JoinError::Busy("the cluster's agent could not ask its API server".into()));
            }
        }
        let broken = |_| JoinError::Busy("the cluster's agent said nothing that can be read".into());
        let node = serde_json::from_slice::<Vouched>(&answer).map_err(broken)?.node;
        // Nodes have DNS names, agents one label: as the agent itself makes its name.
        if node.replace('.', "-") != name.as_str() {
            let shown: String = node.chars().filter(|c| c.is_ascii_graphic()).take(253).collect();
            return Err(JoinError::Account(format!(
                "the service account is of node {shown}, and the agent asks for {name}"
            )));
        }
        self.records.get::<ClusterSpec>(cluster).map_err(store)?.ok_or_else(nobody)
    }
}
