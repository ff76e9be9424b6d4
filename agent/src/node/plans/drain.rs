//! Takes the node out of use, and back: with the agent's own right to do so. Pods go as with `kubectl drain --force
//! --delete-emptydir-data`. A node that its operator has closed stays closed.

use super::Plans;
use crate::limits;
use http::{Method, Request, StatusCode, header};
use moorline_proxy::body;
use serde::Deserialize;
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep};

/// On a node that was closed for a plan, and not by its operator: which one.
const CLOSED_FOR: &str = "moorline.dev/closed-for";

#[derive(Deserialize)]
struct Node {
    metadata: NodeMeta,
    #[serde(default)]
    spec: NodeSpec,
}
#[derive(Deserialize)]
struct NodeMeta {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}
#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    unschedulable: bool,
}

#[derive(Deserialize)]
struct List {
    items: Vec<Pod>,
}
#[derive(Deserialize)]
struct Pod {
    metadata: Meta,
    #[serde(default)]
    status: Status,
}
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: String,
    namespace: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    owner_references: Vec<Owner>,
}
#[derive(Deserialize)]
struct Owner {
    kind: String,
}
#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
}

impl Pod {
    /// What a drain leaves where it is: static pods, those of daemon sets, and those that have ended.
    fn stays(&self) -> bool {
        self.metadata.annotations.contains_key("kubernetes.io/config.mirror")
            || self.metadata.owner_references.iter().any(|owner| owner.kind == "DaemonSet")
            || matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }
}

impl Plans {
    fn node(&self) -> Result<&str, String> {
        self.node.as_deref().ok_or_else(|| "this agent does not know its node: --node-name".to_owned())
    }

    async fn ask(&self, method: Method, path: &str, kind: &str, text: String) -> Result<(StatusCode, Vec<u8>), String> {
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind);
        let request = request.body(body::full(text)).map_err(|e| e.to_string())?;
        let (code, answer) = self.upstream.own(request).await.map_err(|e| e.to_string())?;
        Ok((code, answer.to_vec()))
    }

    async fn looked(&self) -> Result<Node, String> {
        let path = format!("/api/v1/nodes/{}", self.node()?);
        match self.ask(Method::GET, &path, "application/json", String::new()).await? {
            (code, answer) if code.is_success() => serde_json::from_slice(&answer).map_err(|e| e.to_string()),
            (code, _) => Err(format!("the API server answers {code} to a look at the node")),
        }
    }

    /// No pods come any more.
    async fn cordon(&self, plan: &str) -> Result<(), String> {
        match self.looked().await?.spec.unschedulable {
            true => Ok(()),
            false => self.change(&json!(plan), true).await,
        }
    }

    /// Takes back what was done to empty the node: for this plan, or for any.
    pub(super) async fn uncordon(&self, plan: Option<&str>) -> Result<(), String> {
        let closed_for = self.looked().await?.metadata.annotations.remove(CLOSED_FOR);
        match closed_for.is_some_and(|closed_for| plan.is_none_or(|plan| closed_for == plan)) {
            true => self.change(&json!(null), false).await,
            false => Ok(()),
        }
    }

    async fn change(&self, closed_for: &serde_json::Value, closed: bool) -> Result<(), String> {
        let path = format!("/api/v1/nodes/{}", self.node()?);
        let patch = json!({
            "metadata": { "annotations": { CLOSED_FOR: closed_for } }, "spec": { "unschedulable": closed },
        });
        match self.ask(Method::PATCH, &path, "application/merge-patch+json", patch.to_string()).await? {
            (code, _) if code.is_success() => Ok(()),
            (code, _) => Err(format!(
                "the API server answers {code} to a change of the node: the agent needs the right to patch nodes"
            )),
        }
    }

    /// Lets no pod come, and evicts those that are there until they are gone.
    pub(super) async fn drain(&self, plan: &str, patience: Duration) -> Result<(), String> {
        self.cordon(plan).await?;
        let until = Instant::now() + patience;
        let list = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.node()?);
        loop {
            let (code, answer) = self.ask(Method::GET, &list, "application/json", String::new()).await?;
            if !code.is_success() {
                return Err(format!("the API server answers {code} to a list of pods"));
            }
            let pods: List = serde_json::from_slice(&answer).map_err(|e| e.to_string())?;
            let left: Vec<&Pod> = pods.items.iter().filter(|pod| !pod.stays()).collect();
            if left.is_empty() {
                return Ok(());
            }
            if until < Instant::now() {
                let names: Vec<String> = left
                    .iter()
                    .map(|pod| format!("{}/{}", pod.metadata.namespace, pod.metadata.name))
                    .take(5)
                    .collect();
                return Err(format!(
                    "{} pods are still there after {} s: {}",
                    left.len(),
                    patience.as_secs(),
                    names.join(", ")
                ));
            }
            for pod in left {
                let Meta { name, namespace, .. } = &pod.metadata;
                let eviction = json!({
                    "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": name, "namespace": namespace },
                });
                let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction");
                let (code, answer) = self.ask(Method::POST, &path, "application/json", eviction.to_string()).await?;
                // 429: a disruption budget says not yet. 400 and 404 of a server before 1.22: it knows v1beta1 alone.
                let old = matches!(code, StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND)
                    && String::from_utf8_lossy(&answer).contains("policy/v1");
                if old {
                    let eviction = eviction.to_string().replace("policy/v1", "policy/v1beta1");
                    self.ask(Method::POST, &path, "application/json", eviction).await?;
                }
                if code == StatusCode::FORBIDDEN {
                    return Err("the agent needs the right to create pods/eviction".to_owned());
                }
            }
            sleep(limits::PLAN_LOOK).await;
        }
    }
}
