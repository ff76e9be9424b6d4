//! The hub as its plugins see it: its own API and the clusters', without sockets, each under the plugin's own name.

use crate::{
    directory::Authenticated,
    kinds::ClusterSpec,
    lease::{Lease, Life},
    metrics::Metrics,
    records::{Change, Changes, RecordError, Records},
    route::CallDial,
    sessions::Registry,
};
use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use moorline_apiserver::{ApiServer, Attributes, Authorizer, KindSpec, Spec};
use moorline_authz::access::{Facts, permit_plugin};
use moorline_plugin::{Access, Backend, Body, BoxError, ClusterFacts, Clusters, FINALIZER, Host, RouteRequest};
use moorline_proxy::{
    audit::AuditSink,
    body,
    kube::{Caller, KubeProxy, ProxyMetrics},
    path::ClusterPath,
    status::status_response,
};
use serde_json::Value;
use std::{
    collections::HashMap,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A right that ends with the hub.
const FOR_GOOD: Duration = Duration::from_secs(365 * 24 * 3600 * 10);

/// What plugins' requests are answered from.
pub(crate) struct Backing {
    pub server: Arc<ApiServer>,
    pub access: HashMap<&'static str, Access>,
    pub registry: Arc<Registry>,
    pub records: Records,
    pub audit: Arc<dyn AuditSink>,
    pub metrics: Metrics,
    pub proxy_metrics: ProxyMetrics,
    pub finish: CancellationToken,
    pub tasks: TaskTracker,
    pub spread: Duration,
}

/// A plugin in the hub's own API.
struct Own {
    plugin: &'static str,
    access: Access,
}

impl Authorizer for Own {
    fn flow(&self) -> &str {
        self.plugin
    }

    fn authorize(&self, asked: &Attributes<'_>) -> Result<(), String> {
        let reads = matches!(asked.verb, "get" | "list" | "watch");
        let of = if reads { &self.access.reads } else { &self.access.writes };
        if of.contains(asked.resource) {
            return Ok(());
        }
        Err(format!("plugin {:?} has not registered to {} {}", self.plugin, asked.verb, asked.resource))
    }

    fn visible(&self, resource: &str, _: &Value) -> bool {
        self.access.reads.contains(resource)
    }

    fn sees_all(&self, resource: &str) -> bool {
        self.access.reads.contains(resource)
    }
}

impl Backend for Backing {
    fn hub(
        &self,
        plugin: &'static str,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let access = self.access.get(plugin).cloned().unwrap_or_default();
        let server = Arc::clone(&self.server);
        async move {
            let response = server.handle(request.map(Full::new), Arc::new(Own { plugin, access })).await;
            Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
        }
        .boxed()
    }

    fn cluster(
        &self,
        plugin: &'static str,
        cluster: &str,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let permit = permit_plugin(plugin, cluster);
        let identity = Arc::clone(permit.principal());
        let dial = CallDial {
            registry: Arc::clone(&self.registry),
            records: self.records.clone(),
            who: Authenticated {
                identity: Arc::clone(&identity),
                token: String::new(),
                clusters: None,
                verbs: None,
                lease: Lease { token: Life::until(SystemTime::now() + FOR_GOOD), user: CancellationToken::new() },
            },
            // Nobody withdraws it: a plugin ends with the configuration.
            grants: watch::Sender::default().subscribe(),
            metrics: self.metrics.clone(),
            finish: self.finish.clone(),
            spread: self.spread,
        };
        let (audit, metrics) = (Arc::clone(&self.audit), self.proxy_metrics.clone());
        let proxy = KubeProxy::new(Arc::new(dial), audit, metrics, self.tasks.clone());
        let caller = Caller { identity, remote: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0) };
        let cluster = cluster.to_owned();
        async move {
            let rest = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
            let path = ClusterPath { cluster: &cluster, rest: &rest };
            let request = request.map(|bytes| if bytes.is_empty() { body::empty() } else { body::full(bytes) });
            let response = proxy.handle(request, path, &caller, permit).await;
            Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
        }
        .boxed()
    }
}

/// Tells of the clusters that are there. Run before plugins are: none may take one for gone that it was not told of yet.
pub(crate) fn tell(changes: &mut Changes<ClusterSpec>, clusters: &watch::Sender<Arc<Clusters>>) {
    while let Some((name, change)) = changes.there() {
        match change {
            Ok(change) => take(clusters, change),
            Err(error) => tracing::error!(cluster = name, "plugins do not see this cluster: {error}"),
        }
    }
}

/// Keeps plugins' view of the clusters up to date.
pub(crate) async fn follow(mut changes: Changes<ClusterSpec>, clusters: watch::Sender<Arc<Clusters>>) {
    while let Some(change) = changes.next().await {
        take(&clusters, change);
    }
}

fn take(clusters: &watch::Sender<Arc<Clusters>>, change: Change<ClusterSpec>) {
    clusters.send_if_modified(|all| match change {
        Change::Put(cluster) => {
            let connected = cluster.status.iter().flat_map(|status| &status.conditions);
            let session = cluster.status.as_ref().and_then(|status| status.connected_since.clone());
            let facts = ClusterFacts {
                session: session.unwrap_or_default(),
                leaving: cluster.metadata.deletion_timestamp.is_some(),
                name: cluster.metadata.name.clone(),
                uid: cluster.metadata.uid.clone(),
                labels: cluster.metadata.labels.clone(),
                connected: connected.into_iter().any(|c| c.r#type == crate::kinds::CONNECTED && c.status == "True"),
            };
            let new = all.get(&facts.name).is_none_or(|old| **old != facts);
            if new {
                Arc::make_mut(all).insert(facts.name.clone(), Arc::new(facts));
            }
            new
        }
        Change::Gone(name) => Arc::make_mut(all).remove(&name).is_some(),
    });
}

/// Lets plugins hold the clusters that are made from now on. Plugins make things in a cluster as soon as it is connected: one
/// that nobody holds by then could go and leave them there.
pub(crate) fn hold(kinds: &mut [KindSpec], host: &Host) {
    for kind in kinds.iter_mut().filter(|kind| kind.plural() == ClusterSpec::PLURAL) {
        *kind = host.finalizers().fold(kind.clone(), KindSpec::finalizer);
    }
}

/// Takes the finalizers off clusters whose plugins do not run: nobody would ever do it, and they could not be deleted.
pub(crate) async fn release(records: &Records, host: &Host) -> Result<(), RecordError> {
    for mut cluster in records.list::<ClusterSpec>()? {
        let before = cluster.metadata.finalizers.len();
        cluster.metadata.finalizers.retain(|finalizer| {
            let owner = finalizer.split_once(FINALIZER).map(|(plugin, _)| plugin);
            owner.is_none_or(|owner| host.names().any(|name| name == owner))
        });
        // One that this version does not take as it was stored keeps its finalizer: a hub starts all the same.
        if cluster.metadata.finalizers.len() < before
            && let Err(error) = records.update(&cluster).await
        {
            tracing::warn!(cluster = cluster.metadata.name, "keeps a finalizer of a plugin that does not run: {error}");
        }
    }
    Ok(())
}

/// A caller's request to `/plugins/<name>/…`.
pub(crate) async fn route(
    host: &Host,
    request: Request<Bytes>,
    who: &Authenticated,
    facts: Arc<dyn Fn(&str) -> bool + Send + Sync>,
) -> Response<moorline_proxy::Body> {
    let (parts, body) = request.into_parts();
    let Some((plugin, rest)) = parts.uri.path().strip_prefix("/plugins/").and_then(|path| path.split_once('/')) else {
        return status_response(StatusCode::NOT_FOUND, "the hub serves nothing at this path");
    };
    let asked = RouteRequest {
        method: parts.method.clone(),
        path: format!("/{rest}"),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        body,
        user: who.identity.user.clone(),
        may_see: facts,
        admin: who.identity.is_admin() && who.clusters.is_none(),
    };
    match host.route(plugin, asked).await {
        Some(response) => response.map(body::full),
        None => status_response(StatusCode::NOT_FOUND, "no plugin answers at this path"),
    }
}

/// Whether a caller may see a cluster, for as long as a request takes.
pub(crate) fn may_see(
    who: &Authenticated,
    grants: Arc<moorline_authz::access::Grants>,
) -> Arc<dyn Fn(&str) -> bool + Send + Sync> {
    let (identity, clusters) = (Arc::clone(&who.identity), who.clusters.clone());
    Arc::new(move |cluster| {
        Facts { identity: &identity, token_clusters: clusters.as_deref(), grants: &grants }.reaches(cluster)
    })
}
