//! The hub's plugins over a large fleet, at the level of the API: clusters whose API servers are generators, so that what is
//! measured is what plugins hold and do, and not how fast a thousand control planes start on one machine.

use crate::churn::{self, Changes, Churn};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use moorline_apiserver::{ApiServer, Attributes, Authorizer, Everything, KindSpec, Limits, Spec, Store};
use moorline_hub::kinds::{AgentSpec, ClusterSpec, JoinTokenSpec};
use moorline_plugin::{Backend, Body, BoxError, Clusters, Factory, Host};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What is measured.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Clusters.
    #[arg(long, default_value_t = 1000)]
    clusters: usize,
    /// Nodes of the largest; the others have a hundredth of it.
    #[arg(long, default_value_t = 5000)]
    nodes: usize,
    /// Pods of all clusters together.
    #[arg(long, default_value_t = 150_000)]
    pods: usize,
    /// Seconds of rest that are measured in the end.
    #[arg(long, default_value_t = 60)]
    rest: u64,
    #[command(flatten)]
    churn: Churn,
}

/// A fleet of generators, and the hub's own API over a store.
pub struct Fleet {
    pub server: ApiServer,
    pub changes: Changes,
    nodes: Vec<usize>,
    /// What each cluster has that came later.
    small: usize,
    pods: usize,
    requests: AtomicU64,
    largest: AtomicU64,
}

/// About what a kubelet writes of its node, without its list of images.
pub fn node(cluster: &str, at: usize) -> Value {
    let conditions: Vec<Value> = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]
        .iter()
        .map(|kind| {
            let status = if *kind == "Ready" { "True" } else { "False" };
            json!({
                "type": kind, "status": status, "reason": "KubeletIsWell", "message": "kubelet is posting its status",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        })
        .collect();
    let labels: BTreeMap<String, String> =
        (0..12).map(|i| (format!("example.com/label-{i}"), format!("value-{i}"))).collect();
    let resources = json!({ "cpu": "16", "memory": "65536000Ki", "pods": "110", "ephemeral-storage": "100Gi" });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": format!("{cluster}-node-{at:05}"), "uid": format!("{cluster}-{at}"), "resourceVersion": "7", "labels": labels },
        "spec": { "podCIDR": "10.0.0.0/24", "providerID": "x".repeat(60) },
        "status": {
            "conditions": conditions, "capacity": resources, "allocatable": resources,
            "nodeInfo": { "kubeletVersion": "v1.32.4", "osImage": "Debian GNU/Linux", "kernelVersion": "6.12", "machineID": "x".repeat(32) },
        },
    })
}

fn list(kind: &str, version: &str, items: Vec<Value>, more: Value) -> Value {
    let mut metadata = json!({ "resourceVersion": "7" });
    if let (Some(into), Some(from)) = (metadata.as_object_mut(), more.as_object()) {
        into.extend(from.clone());
    }
    json!({ "kind": kind, "apiVersion": version, "metadata": metadata, "items": items })
}

impl Fleet {
    /// Its number, and how many nodes it has.
    fn size(&self, cluster: &str) -> (usize, usize) {
        let at = cluster.trim_start_matches("cluster-").parse().unwrap_or(0);
        (at, self.nodes.get(at).copied().unwrap_or(self.small))
    }

    fn answer(&self, cluster: &str, request: &Request<Bytes>) -> Value {
        let query: BTreeMap<&str, &str> =
            request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')).collect();
        let number = |key: &str| query.get(key).and_then(|text| text.parse::<usize>().ok());
        let (at, nodes) = self.size(cluster);
        match request.uri().path() {
            "/api/v1/nodes" => {
                let (from, limit) = (number("continue").unwrap_or(0), number("limit").unwrap_or(usize::MAX));
                let to = from.saturating_add(limit).min(nodes);
                let more = if to < nodes { json!({ "continue": to.to_string() }) } else { Value::Null };
                list("NodeList", "v1", (from..to).map(|i| node(cluster, i)).collect(), more)
            }
            "/api/v1/pods" => {
                let all: usize = self.nodes.iter().sum();
                let pods = self.pods * nodes / all.max(1) + self.changes.pods(at);
                let pod = json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": { "name": "pod-0", "namespace": "default" } });
                let remaining = if query.contains_key("fieldSelector") { 0 } else { pods.saturating_sub(1) };
                list(
                    "PartialObjectMetadataList",
                    "meta.k8s.io/v1",
                    vec![pod],
                    json!({ "remainingItemCount": remaining }),
                )
            }
            _ => list("List", "v1", Vec::new(), Value::Null),
        }
    }
}

/// A plugin, whose requests count by themselves, as in a hub.
struct Own(&'static str);
impl Authorizer for Own {
    fn authorize(&self, _: &Attributes<'_>) -> Result<(), String> {
        Ok(())
    }
    fn visible(&self, _: &str, _: &Value) -> bool {
        true
    }
    fn sees_all(&self, _: &str) -> bool {
        true
    }
    fn flow(&self) -> &str {
        self.0
    }
}

impl Backend for Fleet {
    fn hub(
        &self,
        plugin: &'static str,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let server = self.server.clone();
        async move {
            let response = server.handle(request.map(Full::new), Arc::new(Own(plugin))).await;
            Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
        }
        .boxed()
    }

    fn cluster(
        &self,
        _: &'static str,
        cluster: &str,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let body: Body = if watch && request.uri().path() == "/api/v1/nodes" {
            self.changes.watch(cluster, self.size(cluster).1)
        } else if watch {
            // Nothing ever changes.
            let silence = stream::pending::<Result<Frame<Bytes>, Infallible>>().boxed();
            StreamBody::new(silence).map_err(Into::into).boxed_unsync()
        } else {
            let bytes = Bytes::from(self.answer(cluster, &request).to_string());
            self.largest.fetch_max(bytes.len() as u64, Ordering::Relaxed);
            Full::new(bytes).map_err(Into::into).boxed_unsync()
        };
        let response = Response::builder().header("content-type", "application/json").body(body);
        async move { Ok(response?) }.boxed()
    }
}

/// Resident memory and its peak, in MiB; seconds of processor time.
pub fn cost() -> Result<(f64, f64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mib = |name: &str| -> Result<f64> {
        let line = status.lines().find(|line| line.starts_with(name)).with_context(|| name.to_owned())?;
        Ok(line.split_whitespace().nth(1).context("a number")?.parse::<f64>()? / 1024.0)
    };
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("fields")?.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
    Ok((mib("VmRSS")?, mib("VmHWM")?, (ticks(11) + ticks(12)) / 100.0))
}

const PLUGINS: &[Factory] = &[
    Factory::of::<moorline_plugin_clusters::ClustersPlugin>(),
    Factory::of::<moorline_plugin_health::Health>(),
    Factory::of::<moorline_plugin_projects::Projects>(),
    Factory::of::<moorline_plugin_rbac::Rbac>(),
    Factory::of::<moorline_plugin_secrets::Secrets>(),
];

/// `moorline-bench fleet`
pub async fn run(args: Args) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("mlfleet.{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let measured = measure(&args, &dir).await;
    std::fs::remove_dir_all(&dir)?;
    measured
}

async fn measure(args: &Args, dir: &std::path::Path) -> Result<()> {
    let registry = prometheus::Registry::new();
    let mut host = Host::new(Factory::build(PLUGINS, BTreeMap::new())?, &registry)?;
    let mut kinds = vec![KindSpec::of::<ClusterSpec>(), KindSpec::of::<AgentSpec>(), KindSpec::of::<JoinTokenSpec>()];
    kinds.extend(host.kinds());
    let store = Store::open(&dir.join("store"), &Limits::default())?;
    let server = ApiServer::new(store, kinds, Limits::default(), &registry, CancellationToken::new())?;
    let small = (args.nodes / 100).max(1);
    let nodes: Vec<usize> = (0..args.clusters).map(|i| if i == 0 { args.nodes } else { small }).collect();
    let all: usize = nodes.iter().sum();
    let (api, mut clusters) = (server.api::<ClusterSpec>(), Clusters::new());
    for i in 0..args.clusters {
        let facts = churn::cluster(&api, i).await?;
        clusters.insert(facts.name.clone(), facts);
    }
    println!("{} clusters, {all} nodes ({} in the largest), {} pods", args.clusters, args.nodes, args.pods);
    let (before, _, began_cpu) = cost()?;
    let (begun, (tell, seen)) = (Instant::now(), watch::channel(Arc::new(clusters)));
    let (requests, largest) = (AtomicU64::new(0), AtomicU64::new(0));
    let fleet = Arc::new(Fleet {
        server: server.clone(),
        changes: Changes::default(),
        nodes,
        small,
        pods: args.pods,
        requests,
        largest,
    });
    seen.borrow().keys().for_each(|name| fleet.changes.come(name));
    host.start(Arc::clone(&fleet) as Arc<dyn Backend>, &seen);
    let healths = format!("{}/clusterhealths/", ClusterSpec::GROUP);
    let known = || -> usize {
        let (_, all) = server.store().read_all::<Value>(&healths);
        all.filter(|one| one.as_ref().is_ok_and(|one| one["status"]["nodes"].as_u64() > Some(0))).count()
    };
    while known() < args.clusters {
        ensure!(begun.elapsed() < Duration::from_secs(600), "{} clusters are known after 10 minutes", known());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = begun.elapsed();
    let (resident, peak, cpu) = cost()?;
    println!("every cluster's health is known after {took:.1?}, {:.1} s of processor time", cpu - began_cpu);
    println!("resident {resident:.0} MiB ({before:.0} before), {peak:.0} MiB at most");
    let asked = fleet.requests.load(Ordering::Relaxed);
    println!("{asked} requests to clusters, the largest answer {} KiB", fleet.largest.load(Ordering::Relaxed) >> 10);
    let (_, _, cpu) = cost()?;
    tokio::time::sleep(Duration::from_secs(args.rest)).await;
    let (resident, _, after) = cost()?;
    let share = (after - cpu) / args.rest.max(1) as f64 * 100.0;
    println!("at rest: {share:.1} % of a processor, resident {resident:.0} MiB");
    let answer = Instant::now();
    let page = Request::get("/apis/moorline.dev/v1alpha1/clusters?limit=50").body(Full::new(Bytes::new()))?;
    let page = server.handle(page, Arc::new(Everything)).await.into_body().collect().await;
    let bytes = page.map_err(|e| anyhow::anyhow!("{e}"))?.to_bytes().len();
    println!("a page of 50 clusters: {:.2?}, {} KiB", answer.elapsed(), bytes >> 10);
    churn::run(args.churn, &fleet, &tell, known).await?;
    host.shutdown().await;
    Ok(())
}
