//! What the agent makes in its cluster: a Service without a selector for each import, and an EndpointSlice of its own
//! for it. Each agent has its slice, so that two never write the same one.

use super::{Failure, LABEL, Wanted};
use crate::{limits, upstream::ApiServer};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use moorline_proxy::body;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// The label of a slice with the name of the agent that made it.
const AGENT: &str = "moorline.dev/agent";
/// Who manages the slice (Kubernetes' well-known label): its own controllers leave it alone.
const MANAGER: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "agent.moorline.dev");

/// The cluster.
pub(super) struct Kubernetes {
    upstream: Arc<ApiServer>,
    agent: String,
    address: IpAddr,
    /// The version of EndpointSlice that the API server has; v1beta1 is what Kubernetes before 1.21 has.
    version: OnceLock<&'static str>,
    /// Slices that were made: namespace and name.
    made: Mutex<BTreeSet<(String, String)>>,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<Value>,
}

fn text<'a>(object: &'a Value, at: &str) -> &'a str {
    object.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

fn label<'a>(object: &'a Value, name: &str) -> &'a str {
    object.pointer("/metadata/labels").and_then(|labels| labels.get(name)?.as_str()).unwrap_or_default()
}

impl Kubernetes {
    pub fn new(upstream: Arc<ApiServer>, agent: String, address: IpAddr) -> Self {
        Self { upstream, agent, address, version: OnceLock::new(), made: Mutex::default() }
    }

    /// Makes service and slice as they have to be; the service's address.
    pub async fn make(&self, wanted: &Wanted, locals: &[u16]) -> Result<IpAddr, Failure> {
        let service = self.service(wanted).await?;
        self.slice(wanted, locals, text(&service, "/metadata/uid")).await?;
        let address = text(&service, "/spec/clusterIP");
        address.parse().map_err(|_| Failure::Failed(format!("the service's address is {address:?}")))
    }

    async fn service(&self, wanted: &Wanted) -> Result<Value, Failure> {
        let Wanted { name: import, namespace, service, ports, session_affinity: affinity } = wanted;
        let ports: Vec<Value> =
            ports.iter().map(|port| json!({"name": port.name, "port": port.port, "protocol": port.protocol})).collect();
        let all = format!("/api/v1/namespaces/{namespace}/services");
        let one = format!("{all}/{service}");
        let Some(mut found) = self.get(&one, "get services").await? else {
            let object = json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": service, "namespace": namespace, "labels": {LABEL: import, "app.kubernetes.io/managed-by": "moorline"}},
                "spec": {"type": "ClusterIP", "ports": ports, "sessionAffinity": affinity},
            });
            return self.put(Method::POST, &all, &object, ("create services", namespace)).await;
        };
        if label(&found, LABEL) != import {
            return Err(Failure::NameTaken(format!("{namespace}/{service}")));
        }
        // What the API server adds to a port is not looked at.
        let plain = |all: &Value| -> Vec<Value> {
            let all = all.as_array().into_iter().flatten();
            all.map(|p| json!({"name": p["name"], "port": p["port"], "protocol": p["protocol"]})).collect()
        };
        let is = text(&found, "/spec/sessionAffinity");
        let keeps = is == affinity || (is.is_empty() && affinity == "None");
        if plain(&found["spec"]["ports"]) == ports && found["spec"].get("selector").is_none() && keeps {
            return Ok(found);
        }
        found["spec"]["ports"] = ports.into();
        if !keeps {
            found["spec"]["sessionAffinity"] = affinity.as_str().into();
            if let Some(spec) = found["spec"].as_object_mut() {
                spec.remove("sessionAffinityConfig"); // with None there may be none; else the API server has a default
            }
        }
        if let Some(spec) = found["spec"].as_object_mut() {
            spec.remove("selector");
        }
        self.put(Method::PUT, &one, &found, ("update services", namespace)).await
    }

    async fn slice(&self, wanted: &Wanted, locals: &[u16], owner: &str) -> Result<(), Failure> {
        let Wanted { name: import, namespace, service, ports, .. } = wanted;
        let name = format!("{service}-{}", self.agent);
        let family = if self.address.is_ipv4() { "IPv4" } else { "IPv6" };
        let ports: Vec<Value> = ports
            .iter()
            .zip(locals)
            .map(|(port, local)| json!({"name": port.name, "port": local, "protocol": port.protocol}))
            .collect();
        let endpoints = json!([{"addresses": [self.address], "conditions": {"ready": true}}]);
        let version = self.version(namespace).await?;
        let all = format!("/apis/discovery.k8s.io/{version}/namespaces/{namespace}/endpointslices");
        let one = format!("{all}/{name}");
        self.lock().insert((namespace.clone(), name.clone()));
        let mut found = self.get(&one, "get endpointslices").await?;
        if let Some(slice) = &found {
            if label(slice, LABEL) != import || label(slice, AGENT) != self.agent {
                return Err(Failure::NameTaken(format!("{namespace}/{name} (an EndpointSlice)")));
            }
            // A slice keeps its family, and goes with the service that it was made for.
            if text(slice, "/addressType") != family || text(slice, "/metadata/ownerReferences/0/uid") != owner {
                self.delete(&one).await?;
                found = None;
            }
        }
        let Some(mut found) = found else {
            let labels = json!({
                "kubernetes.io/service-name": service, MANAGER.0: MANAGER.1, LABEL: import, AGENT: self.agent,
            });
            let owners = json!([{"apiVersion": "v1", "kind": "Service", "name": service, "uid": owner}]);
            let object = json!({
                "apiVersion": format!("discovery.k8s.io/{version}"), "kind": "EndpointSlice",
                "metadata": {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": owners},
                "addressType": family, "endpoints": endpoints, "ports": ports,
            });
            return self.put(Method::POST, &all, &object, ("create endpointslices", namespace)).await.map(drop);
        };
        if found["endpoints"] == endpoints && found["ports"] == json!(ports) {
            return Ok(());
        }
        (found["endpoints"], found["ports"]) = (endpoints, ports.into());
        self.put(Method::PUT, &one, &found, ("update endpointslices", namespace)).await.map(drop)
    }

    /// Deletes services that are not in `kept` any more, and slices of agents that are `gone`, in these namespaces. What
    /// it may not look at it leaves.
    pub async fn clean(
        &self,
        namespaces: &BTreeSet<String>,
        kept: &HashMap<(String, String), String>,
        mut gone: impl FnMut(&str) -> bool,
    ) {
        let mut namespaces = namespaces.clone();
        namespaces.extend(kept.keys().map(|(namespace, _)| namespace.clone()));
        namespaces.extend(self.lock().iter().map(|(namespace, _)| namespace.clone()));
        for namespace in namespaces.iter().take(limits::IMPORTS_NAMESPACES) {
            let cleaned = async {
                let selector = LABEL.replace('/', "%2F");
                let all = format!("/api/v1/namespaces/{namespace}/services");
                for service in self.list(&format!("{all}?labelSelector={selector}")).await? {
                    let name = text(&service, "/metadata/name");
                    let wanted = kept.get(&(namespace.clone(), name.to_owned()));
                    if wanted.is_none_or(|import| label(&service, LABEL) != import) {
                        self.delete(&format!("{all}/{name}")).await?;
                        tracing::info!(namespace, name, "a service that is not imported any more was deleted");
                    }
                }
                let version = self.version(namespace).await?;
                let all = format!("/apis/discovery.k8s.io/{version}/namespaces/{namespace}/endpointslices");
                for slice in self.list(&format!("{all}?labelSelector={selector}")).await? {
                    let service = label(&slice, "kubernetes.io/service-name").to_owned();
                    let (name, agent) = (text(&slice, "/metadata/name"), label(&slice, AGENT));
                    // The cluster's garbage collector deletes those of a service that is gone.
                    let orphan = agent == self.agent && !kept.contains_key(&(namespace.clone(), service));
                    if label(&slice, MANAGER.0) == MANAGER.1 && (orphan || (agent != self.agent && gone(agent))) {
                        self.delete(&format!("{all}/{name}")).await?;
                        self.lock().remove(&(namespace.clone(), name.to_owned()));
                        tracing::info!(namespace, name, agent, "an address that nobody serves was deleted");
                    }
                }
                Ok::<_, Failure>(())
            };
            if let Err(e) = cleaned.await {
                tracing::debug!(namespace, cause = %e, "what is not imported any more was not looked for");
            }
        }
    }

    /// Deletes this agent's slices: new connections go to the others.
    pub async fn withdraw(&self) {
        let made = std::mem::take(&mut *self.lock());
        for (namespace, name) in made {
            let Ok(version) = self.version(&namespace).await else { continue };
            let path = format!("/apis/discovery.k8s.io/{version}/namespaces/{namespace}/endpointslices/{name}");
            if let Err(e) = self.delete(&path).await {
                tracing::debug!(namespace, name, cause = %e, "an address was not taken back");
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<(String, String)>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn version(&self, namespace: &str) -> Result<&'static str, Failure> {
        if let Some(known) = self.version.get() {
            return Ok(known);
        }
        // A list of nothing is 200 where the version is known, and 404 where it is not.
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?limit=1");
        let there = self.get(&path, "list endpointslices").await?.is_some();
        Ok(self.version.get_or_init(|| if there { "v1" } else { "v1beta1" }))
    }

    async fn get(&self, path: &str, right: &str) -> Result<Option<Value>, Failure> {
        match self.call(Method::GET, path, None).await? {
            (StatusCode::OK, answer) => Ok(Some(serde_json::from_slice(&answer).map_err(|e| failed(&e))?)),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, _) => Err(refused(status, right)),
        }
    }

    async fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        match self.call(Method::GET, path, None).await? {
            (StatusCode::OK, answer) => Ok(serde_json::from_slice::<List>(&answer).map_err(|e| failed(&e))?.items),
            (status, _) => Err(refused(status, "list services and endpointslices")),
        }
    }

    async fn put(
        &self,
        method: Method,
        path: &str,
        object: &Value,
        (right, namespace): (&str, &str),
    ) -> Result<Value, Failure> {
        match self.call(method, path, Some(object)).await? {
            (StatusCode::OK | StatusCode::CREATED, answer) => serde_json::from_slice(&answer).map_err(|e| failed(&e)),
            (StatusCode::NOT_FOUND, _) => Err(Failure::NoNamespace(namespace.to_owned())),
            (status, answer) => Err(said(status, right, &answer)),
        }
    }

    async fn delete(&self, path: &str) -> Result<(), Failure> {
        match self.call(Method::DELETE, path, None).await? {
            (StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NOT_FOUND, _) => Ok(()),
            (status, _) => Err(refused(status, "delete services and endpointslices")),
        }
    }

    async fn call(&self, method: Method, path: &str, object: Option<&Value>) -> Result<(StatusCode, Bytes), Failure> {
        let content = object.map_or_else(body::empty, |object| body::full(object.to_string()));
        let request = Request::builder().method(method).uri(path).header(header::ACCEPT, "application/json");
        let request = request.header(header::CONTENT_TYPE, "application/json").body(content).map_err(|e| failed(&e))?;
        self.upstream.own(request).await.map_err(|e| failed(&e))
    }
}

fn failed(e: &dyn std::error::Error) -> Failure {
    Failure::Failed(format!("the cluster's API server: {}", crate::upstream::chain(e)))
}

/// With what the API server says of it.
fn said(status: StatusCode, right: &str, answer: &[u8]) -> Failure {
    match (refused(status, right), serde_json::from_slice::<Value>(answer)) {
        (Failure::Failed(words), Ok(answer)) => Failure::Failed(format!("{words}: {}", text(&answer, "/message"))),
        (failure, _) => failure,
    }
}

fn refused(status: StatusCode, right: &str) -> Failure {
    match status {
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Failure::Forbidden(right.to_owned()),
        other => Failure::Failed(format!("the cluster's API server answered {other}")),
    }
}
