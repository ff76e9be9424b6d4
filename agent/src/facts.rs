//! What the hub shows about a cluster and its agent.

use crate::{limits, upstream::ApiServer};
use http::Request;
use moorline_proxy::body;
use serde::{Deserialize, de::DeserializeOwned};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;

/// Facts, key to value.
pub type Facts = Vec<(String, String)>;

/// Looks facts up.
pub struct Looker {
    /// The cluster's API server.
    pub upstream: Arc<ApiServer>,
    /// The Kubernetes node that this agent is on, if it stands for one.
    pub node: Option<String>,
    /// It keeps what the cluster's own endpoint needs.
    pub endpoint: bool,
}

/// What is read of a `Node`.
#[derive(Deserialize)]
struct NodeObject {
    metadata: NodeMeta,
}
#[derive(Deserialize)]
struct NodeMeta {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}
/// `GET /version`
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    git_version: String,
}

impl Looker {
    /// Looks now.
    ///
    /// `told` is the trouble with the API server that the log already has; none is written twice in a row.
    pub async fn look(&self, told: &mut Option<String>) -> Facts {
        let mut facts = vec![
            ("os".to_owned(), std::env::consts::OS.to_owned()),
            ("arch".to_owned(), std::env::consts::ARCH.to_owned()),
            ("agentVersion".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ];
        if self.endpoint {
            facts.push(("endpoint".to_owned(), "1".to_owned()));
        }
        match self.cluster(&mut facts).await {
            Ok(()) => *told = None,
            Err(cause) if told.as_ref() != Some(&cause) => {
                tracing::warn!(%cause, "the cluster's API server does not answer as it should; trying again");
                *told = Some(cause);
            }
            Err(_) => {}
        }
        facts
    }

    async fn cluster(&self, facts: &mut Facts) -> Result<(), String> {
        let version: Version = self.get("/version").await?;
        facts.push(("kubernetesVersion".to_owned(), one_line(&version.git_version)));
        if let Some(node) = &self.node {
            facts.push(("node".to_owned(), one_line(node)));
            let object: NodeObject = self.get(&format!("/api/v1/nodes/{node}")).await?;
            if let Some(zone) = object.metadata.labels.get("topology.kubernetes.io/zone") {
                facts.push(("zone".to_owned(), one_line(zone)));
            }
        }
        Ok(())
    }

    /// What the API server says at `path`; or, in words, why that is not known.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let request = Request::get(path).body(body::empty()).map_err(|e| e.to_string())?;
        let (status, answer) = self.upstream.own(request).await.map_err(|e| e.to_string())?;
        if !status.is_success() {
            return Err(format!("the API server answers {status} to {path}; does it take the agent's credential?"));
        }
        serde_json::from_slice(&answer).map_err(|e| format!("{path}: {e}"))
    }

    /// Looks again and again, and tells what changed. Never ends.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn watch(&self, facts: &watch::Sender<Facts>, mut told: Option<String>) {
        loop {
            let now = self.look(&mut told).await;
            // An API server that is down has not lost its version.
            let known = now.iter().any(|(key, _)| key == "kubernetesVersion");
            facts.send_if_modified(|old| {
                let changed = *old != now && (known || old.is_empty());
                if changed {
                    old.clone_from(&now);
                }
                changed
            });
            tokio::time::sleep(if known { limits::FACTS } else { limits::UPSTREAM_IDLE }).await;
        }
    }
}

fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}
