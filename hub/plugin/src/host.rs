//! Runs the plugins of a hub, each on threads of its own.

use crate::{
    Backend, ClusterFacts, ClusterView, Clusters, HubRule, HubView, LoginProvider, Plugin, PluginMetrics, RouteAnswer,
    RouteRequest,
    client::{Target, Wire},
    guard::Guard,
    keeper::{Part, Pulse, State},
    limits,
    logins::Guarded,
    metrics::Metrics,
    register::{Registration, RouteFn},
    view::{Home, RuleBook},
};
use bytes::Bytes;
use http::{Response, StatusCode};
use moorline_apiserver::KindSpec;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak, atomic::AtomicUsize},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

/// A set of plugins that cannot run together.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A name that is taken, or is none.
    #[error("plugin {0:?}: {1}")]
    Name(&'static str, &'static str),
    /// A kind that another plugin, or the hub, has.
    #[error("plugin {0:?} brings the kind {1:?}, which there is already")]
    Kind(&'static str, &'static str),
    /// A login provider's name that is taken, or is none.
    #[error("plugin {0:?} brings the login provider {1:?}: {2}")]
    Login(&'static str, String, &'static str),
    /// No threads.
    #[error("plugin {0:?} gets no threads: {1}")]
    Threads(&'static str, std::io::Error),
    /// Metrics that are already registered.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

/// How a plugin is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Which.
    pub plugin: &'static str,
    /// What is wrong, if something is.
    pub trouble: Option<String>,
}

/// What a plugin may do with the hub's objects.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Plurals of kinds that it may read.
    pub reads: HashSet<&'static str>,
    /// Plurals of kinds that it may change.
    pub writes: HashSet<&'static str>,
}

/// What follows a plugin's name in its finalizers.
pub const FINALIZER: &str = ".plugins.moorline.dev/";

struct Kept {
    plugin: Arc<dyn Plugin>,
    /// `None` once it is being shut down.
    runtime: Option<Runtime>,
    pulse: Arc<Pulse>,
    state: Arc<State>,
    metrics: PluginMetrics,
    kinds: Vec<KindSpec>,
    access: Access,
    route: Option<RouteFn>,
    per_cluster: bool,
    holds: Option<&'static str>,
    logins: Vec<Arc<dyn LoginProvider>>,
    parts: TaskTracker,
}

impl Drop for Kept {
    /// Threads that stand still are left behind: waiting for them would take the hub along.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// All plugins of a hub. Dropping it ends them.
pub struct Host {
    plugins: Vec<Kept>,
    rules: RuleBook,
    published: watch::Receiver<Arc<Vec<HubRule>>>,
    home: watch::Sender<Option<Arc<Home>>>,
    stop: CancellationToken,
    backend: Option<Arc<dyn Backend>>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.plugins.iter().map(|kept| kept.plugin.name())).finish()
    }
}

fn step_back() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, limits::NICE) {
        tracing::debug!(%error, "a plugin's thread keeps its priority");
    }
}

fn runtime(name: &'static str) -> Result<Runtime, HostError> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1).max_blocking_threads(limits::RULES).thread_name(format!("plugin-{name}"));
    builder.on_thread_start(step_back).enable_all().build().map_err(|error| HostError::Threads(name, error))
}

/// The prefix of its groups: none that the hub or Kubernetes has.
fn is_provider(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(plain) && !["local", "system", "moorline"].contains(&name)
}

impl Host {
    /// Asks every plugin what it adds. Nothing runs yet.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn new(plugins: Vec<Arc<dyn Plugin>>, registry: &prometheus::Registry) -> Result<Self, HostError> {
        let metrics = Metrics::new(registry)?;
        let (rules, published) = RuleBook::new();
        let (mut names, mut plurals, mut kept) = (HashSet::new(), HashSet::new(), Vec::new());
        let mut providers = HashSet::new();
        for plugin in plugins {
            let name = plugin.name();
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
                return Err(HostError::Name(name, "a name has lower-case letters and digits only"));
            }
            if !names.insert(name) {
                return Err(HostError::Name(name, "there are two of this name"));
            }
            let mut added = Registration::default();
            plugin.register(&mut added);
            for called in added.logins.iter().map(|provider| provider.name().to_owned()) {
                if !is_provider(&called) {
                    let why = "lower-case letters, digits and - only, and none of local, system, moorline";
                    return Err(HostError::Login(name, called, why));
                }
                if !providers.insert(called.clone()) {
                    return Err(HostError::Login(name, called, "there is one of this name"));
                }
            }
            let own = |finalizer: &str| finalizer.strip_prefix(name).is_some_and(|rest| rest.starts_with(FINALIZER));
            if added.holds.is_some_and(|finalizer| !own(finalizer)) {
                return Err(HostError::Name(name, "its finalizer begins with its name and .plugins.moorline.dev/"));
            }
            let (runtime, metrics) = (runtime(name)?, metrics.of(name));
            let guard = Guard {
                plugin: name,
                handle: runtime.handle().clone(),
                metrics: metrics.clone(),
                asked: Arc::new(AtomicUsize::new(0)),
            };
            let mut access = Access::default();
            access.reads.extend(added.reads.iter().chain(&added.writes));
            access.writes.extend(&added.writes);
            for kind in &added.kinds {
                if !plurals.insert(kind.plural()) {
                    return Err(HostError::Kind(name, kind.plural()));
                }
                access.reads.insert(kind.plural());
                access.writes.insert(kind.plural());
            }
            let guarded =
                |provider| Arc::new(Guarded::new(provider, runtime.handle().clone())) as Arc<dyn LoginProvider>;
            kept.push(Kept {
                plugin,
                logins: added.logins.into_iter().map(guarded).collect(),
                pulse: Pulse::new(),
                state: Arc::default(),
                kinds: added.kinds.into_iter().map(|kind| kind.guarded(guard.clone())).collect(),
                access,
                route: added.route,
                per_cluster: added.per_cluster,
                holds: added.holds,
                runtime: Some(runtime),
                metrics,
                parts: TaskTracker::new(),
            });
        }
        let (home, stop) = (watch::Sender::default(), CancellationToken::new());
        Ok(Self { plugins: kept, rules, published, home, stop, backend: None })
    }

    /// The kinds that the plugins bring.
    pub fn kinds(&self) -> impl Iterator<Item = KindSpec> {
        self.plugins.iter().flat_map(|kept| kept.kinds.iter().cloned())
    }

    /// The finalizers by which plugins hold clusters.
    pub fn finalizers(&self) -> impl Iterator<Item = &'static str> {
        self.plugins.iter().filter_map(|kept| kept.holds)
    }

    /// The login providers that the plugins bring, in their order.
    pub fn logins(&self) -> Vec<Arc<dyn LoginProvider>> {
        self.plugins.iter().flat_map(|kept| kept.logins.iter().cloned()).collect()
    }

    /// What a plugin may do with the hub's objects.
    pub fn access(&self) -> HashMap<&'static str, Access> {
        self.plugins.iter().map(|kept| (kept.plugin.name(), kept.access.clone())).collect()
    }

    /// What the plugins permit users in the hub's API, as it is now and as it changes.
    pub fn rules(&self) -> watch::Receiver<Arc<Vec<HubRule>>> {
        self.published.clone()
    }

    /// The names of those that are switched on.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.plugins.iter().map(|kept| kept.plugin.name())
    }

    /// The hub serves.
    pub fn serves(&self, home: Home) {
        self.home.send_replace(Some(Arc::new(home)));
    }

    /// Begins: each plugin's hub-wide half, and one for each cluster that is connected.
    pub fn start(&mut self, backend: Arc<dyn Backend>, clusters: &watch::Receiver<Arc<Clusters>>) {
        let weak = Arc::downgrade(&backend);
        self.backend = Some(backend);
        for kept in &mut self.plugins {
            let Some(runtime) = &kept.runtime else { continue };
            runtime.spawn(Arc::clone(&kept.pulse).beat());
            let begin = Begin {
                plugin: Arc::clone(&kept.plugin),
                backend: weak.clone(),
                clusters: clusters.clone(),
                metrics: kept.metrics.clone(),
                rules: self.rules.clone(),
                home: self.home.subscribe(),
                stop: self.stop.clone(),
                state: Arc::clone(&kept.state),
            };
            let per_cluster = kept.per_cluster;
            kept.parts.spawn_on(begin.run(per_cluster), runtime.handle());
            kept.metrics.ready(true);
        }
    }

    /// How each plugin is. The hub is ready whatever they are: traffic needs none of them.
    pub fn readiness(&self) -> Vec<Readiness> {
        let of = |kept: &Kept| {
            let silent = kept.pulse.silent();
            let stuck = limits::STUCK < silent;
            let trouble = if stuck {
                Some(format!("it stands still since {} s", silent.as_secs()))
            } else {
                kept.state.trouble()
            };
            kept.metrics.ready(trouble.is_none());
            Readiness { plugin: kept.plugin.name(), trouble }
        };
        self.plugins.iter().map(of).collect()
    }

    /// Answers a request to `/plugins/<name>/…`; `None`: no plugin of that name answers requests.
    pub async fn route(&self, plugin: &str, request: RouteRequest) -> Option<RouteAnswer> {
        let kept = self.plugins.iter().find(|kept| kept.plugin.name() == plugin)?;
        let (answer, runtime) = (Arc::clone(kept.route.as_ref()?), kept.runtime.as_ref()?);
        let task = AbortOnDropHandle::new(runtime.spawn(async move { answer(request).await }));
        let failed = |code, why: &str| {
            let mut response = Response::new(Bytes::from(format!("{why}\n")));
            *response.status_mut() = code;
            Some(response)
        };
        match timeout(limits::ROUTE, task).await {
            Ok(Ok(response)) => Some(response),
            Ok(Err(_)) => failed(StatusCode::INTERNAL_SERVER_ERROR, "the plugin failed to handle this request"),
            Err(_) => failed(StatusCode::GATEWAY_TIMEOUT, "the plugin does not answer"),
        }
    }

    /// Ends all of them; those that stand still are left behind.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let all = self.plugins.iter().map(|kept| {
            kept.parts.close();
            kept.parts.wait()
        });
        let _ = timeout(limits::END, futures_util::future::join_all(all)).await;
    }
}

/// What a cluster's half belongs to: this registration and this session. What refused before may not any more.
fn life(facts: &ClusterFacts) -> String {
    format!("{} {}", facts.uid, facts.session)
}

type Task = AbortOnDropHandle<()>;

/// A cluster's half.
struct Half {
    life: String,
    stop: CancellationToken,
    task: Task,
}

/// Everything that one plugin is started with.
struct Begin {
    plugin: Arc<dyn Plugin>,
    backend: Weak<dyn Backend>,
    clusters: watch::Receiver<Arc<Clusters>>,
    metrics: PluginMetrics,
    rules: RuleBook,
    home: watch::Receiver<Option<Arc<Home>>>,
    stop: CancellationToken,
    state: Arc<State>,
}

impl Begin {
    /// On the plugin's own runtime.
    async fn run(self, per_cluster: bool) {
        let plugin = self.plugin.name();
        let places = Arc::new(Semaphore::new(limits::REQUESTS));
        let wire = Wire { backend: self.backend.clone(), plugin, target: Target::Hub(places) };
        let hub = HubView {
            client: wire.client(),
            clusters: self.clusters.clone(),
            metrics: self.metrics.clone(),
            stop: self.stop.clone(),
            home: self.home.clone(),
            rules: self.rules.clone(),
            plugin,
        };
        let (whole, view) = (Arc::clone(&self.plugin), hub.clone());
        let part = Part {
            plugin,
            cluster: String::new(),
            make: move || Arc::clone(&whole).run(view.clone()),
            stop: self.stop.clone(),
            metrics: self.metrics.clone(),
            state: Arc::clone(&self.state),
        };
        if per_cluster {
            tokio::join!(part.keep(), self.clusters(hub));
        } else {
            part.keep().await;
        }
    }

    /// Starts a half when a cluster connects, and ends it with that. Of one cluster there is never more than one: what a
    /// half gives back at its end is back before the next one begins.
    async fn clusters(&self, hub: HubView) {
        let mut changes = self.clusters.clone();
        let mut running: HashMap<String, Half> = HashMap::new();
        let mut ending: HashMap<String, Task> = HashMap::new();
        loop {
            let now = Arc::clone(&changes.borrow_and_update());
            let stays = |name: &str, half: &Half| {
                now.get(name).is_some_and(|facts| facts.connected && life(facts) == half.life)
            };
            ending.retain(|_, task| !task.is_finished());
            for (name, half) in running.extract_if(|name, half| !stays(name, half)) {
                half.stop.cancel();
                ending.insert(name, half.task);
            }
            for facts in now.values().filter(|facts| facts.connected) {
                if !running.contains_key(&facts.name) {
                    let stop = self.stop.child_token();
                    let task = self.one(&hub, facts, &stop, ending.remove(&facts.name));
                    running.insert(facts.name.clone(), Half { life: life(facts), stop, task });
                }
            }
            self.metrics.clusters(running.len());
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Begins a half, once the one `before`, which was told to end, has ended.
    fn one(&self, hub: &HubView, facts: &ClusterFacts, stop: &CancellationToken, before: Option<Task>) -> Task {
        let (name, uid) = (&facts.name, &facts.uid);
        let plugin = self.plugin.name();
        let wire = Wire { backend: self.backend.clone(), plugin, target: Target::Cluster(name.clone()) };
        let view = ClusterView { name: name.clone(), uid: uid.clone(), client: wire.client(), stop: stop.clone() };
        let (whole, hub) = (Arc::clone(&self.plugin), hub.clone());
        let part = Part {
            plugin,
            cluster: name.clone(),
            make: move || Arc::clone(&whole).run_cluster(hub.clone(), view.clone()),
            stop: stop.clone(),
            metrics: self.metrics.clone(),
            state: Arc::default(),
        };
        AbortOnDropHandle::new(tokio::spawn(async move {
            if let Some(before) = before {
                let _ = before.await; // it was told to end; how it did is told by itself
            }
            part.keep().await;
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        PluginError,
        testing::{clusters_that, edge1},
    };
    use futures_util::{FutureExt, future::BoxFuture};
    use std::sync::{Mutex, mpsc};

    /// Tells when its halves begin and end.
    struct Told(Mutex<mpsc::Sender<String>>);

    impl Told {
        fn tell(&self, what: String) {
            let _ = self.0.lock().unwrap().send(what);
        }
    }

    struct End(Arc<Told>, String);
    impl Drop for End {
        fn drop(&mut self) {
            self.0.tell(format!("{} ended", self.1));
        }
    }

    impl Plugin for Told {
        fn name(&self) -> &'static str {
            "told"
        }
        fn register(&self, into: &mut Registration) {
            into.per_cluster();
        }
        fn run_cluster(
            self: Arc<Self>,
            _: HubView,
            cluster: ClusterView,
        ) -> BoxFuture<'static, Result<(), PluginError>> {
            async move {
                self.tell(format!("{} begun", cluster.uid));
                let _end = End(self, cluster.uid);
                std::future::pending().await
            }
            .boxed()
        }
    }

    fn here(uid: &str) -> Arc<Clusters> {
        let facts = ClusterFacts { uid: uid.to_owned(), session: uid.to_owned(), ..edge1() };
        Arc::new(Clusters::from([(facts.name.clone(), Arc::new(facts))]))
    }

    #[test]
    fn a_clusters_half_ends_before_the_next_one_begins() {
        let (told, heard) = mpsc::channel();
        let plugins: Vec<Arc<dyn Plugin>> = vec![Arc::new(Told(Mutex::new(told)))];
        let mut host = Host::new(plugins, &prometheus::Registry::new()).expect("a host");
        let (clusters, seen) = watch::channel(here("a0"));
        host.start(clusters_that(|_| unreachable!("no test asks it")), &seen);
        let next = || heard.recv_timeout(std::time::Duration::from_secs(20)).expect("a half");
        assert_eq!(next(), "a0 begun");
        for i in 1..100 {
            clusters.send_replace(here(&format!("a{i}")));
            assert_eq!(next(), format!("a{} ended", i - 1));
            assert_eq!(next(), format!("a{i} begun"));
        }
    }
}
