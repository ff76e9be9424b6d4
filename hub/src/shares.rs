//! Services that clusters share: what is exported and imported, who asks for it, and how it goes.
//!
//! An agent that imports asks by HTTPS, as a client with its own certificate ([`door`]); each connection of its pods is
//! one request there, which becomes one stream to an agent of a cluster that exports the service ([`balance`]). What is
//! said to people stands in the status of both kinds ([`status`]).

mod balance;
mod dial;
mod door;
mod merge;
mod status;

use crate::{
    kinds::{Protocol, ServiceExportSpec, ServiceImportSpec, SessionAffinity, SharedPort},
    metrics::Metrics,
    records::{Change, Records},
    sessions::{Registry, Sessions},
};
use balance::{Memory, Way};
use moorline_apiserver::Object;
use moorline_authz::access::{Export, Import, Shares as Known};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};
use tokio::sync::{Notify, watch};

pub(crate) use door::Importing;

/// Bounds.
pub(crate) mod limits {
    use std::time::Duration;

    /// Clusters whose round trip is longer than the nearest one's by no more than this are as near.
    pub const NEAR: Duration = Duration::from_millis(10);
    /// How long a cluster where a connection failed comes after the others: at first, and at most.
    pub const ILL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
    /// Longest wait for news in one question of an agent's.
    pub const POLL: Duration = Duration::from_secs(20);
    /// An agent that has not asked for this long imports nothing any more.
    pub const IMPORTER: Duration = Duration::from_secs(10);
    /// Imports that one cluster is told of; the others' status says so.
    pub const IMPORTS: usize = 200;
    /// Largest question of an agent's, in bytes.
    pub const QUESTION: usize = 256 << 10;
    /// How often sessions are looked at while services are shared.
    pub const LOOK: Duration = Duration::from_secs(5);
    /// Clusters that are tried for one connection.
    pub const TRIED: usize = 4;
}

/// What an agent is told to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Wanted {
    /// The `ServiceImport`.
    pub name: String,
    /// The namespace of the service.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// Its ports.
    pub ports: Vec<SharedPort>,
    /// What connections of one client have in common.
    #[serde(rename = "sessionAffinity", skip_serializing_if = "SessionAffinity::is_none")]
    pub affinity: SessionAffinity,
}

/// What an agent says of an import.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Told {
    /// The `ServiceImport`.
    pub import: String,
    /// The service's address; none: there is none, and `reason` says why.
    #[serde(default)]
    pub address: Option<std::net::IpAddr>,
    /// One word.
    #[serde(default)]
    pub reason: String,
    /// For people.
    #[serde(default)]
    pub message: String,
}

/// An agent that imports.
#[derive(Debug)]
struct Importer {
    /// Questions that are open.
    asking: usize,
    /// When the last one was answered.
    last: Instant,
    told: Vec<Told>,
    /// It carries datagrams too.
    datagrams: bool,
}

impl Importer {
    fn lives(&self, now: Instant) -> bool {
        self.asking > 0 || now.duration_since(self.last) < limits::IMPORTER
    }
}

/// Agents that import, by cluster and name.
type Importers = BTreeMap<String, BTreeMap<String, Importer>>;

/// All of it.
pub(crate) struct Shares {
    registry: Arc<Registry>,
    records: Records,
    sessions: Arc<Sessions>,
    metrics: Metrics,
    /// What is exported and imported. Sent anew too when an agent is deleted, whose connections end with it.
    known: watch::Sender<Arc<Known>>,
    importers: Mutex<Importers>,
    memory: Mutex<Memory>,
    /// A status may not be what it was.
    wake: Notify,
}

impl Shares {
    pub fn new(registry: Arc<Registry>, records: Records, sessions: Arc<Sessions>, metrics: Metrics) -> Self {
        Self {
            registry,
            records,
            sessions,
            metrics,
            known: watch::Sender::new(Arc::default()),
            importers: Mutex::default(),
            memory: Mutex::default(),
            wake: Notify::new(),
        }
    }

    fn importers(&self) -> MutexGuard<'_, Importers> {
        self.importers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        self.known.send_modify(|known| change(Arc::make_mut(known)));
        let known = self.known.borrow().clone();
        self.memory().keep(|export| known.exports.contains_key(export));
        self.wake.notify_one();
    }

    /// A change of an export.
    pub fn export_changed(&self, change: &Change<ServiceExportSpec>) {
        match change {
            Change::Put(object) => {
                let made = export_of(object);
                self.change(|known| drop(known.exports.insert(object.metadata.name.clone(), made)));
            }
            Change::Gone(name) => self.change(|known| drop(known.exports.remove(name))),
        }
    }

    /// A change of an import.
    pub fn import_changed(&self, change: &Change<ServiceImportSpec>) {
        match change {
            Change::Put(object) => {
                let made = import_of(object);
                self.change(|known| drop(known.imports.insert(object.metadata.name.clone(), made)));
            }
            Change::Gone(name) => self.change(|known| drop(known.imports.remove(name))),
        }
    }

    /// An agent is gone: whatever is open is judged anew.
    pub fn agent_deleted(&self) {
        self.known.send_modify(|_| {});
    }

    /// What this cluster's agents have to make. Ports that take datagrams as soon as all of them can, for each keeps the
    /// services as it was told.
    fn wanted(known: &Known, cluster: &str, datagrams: bool) -> Vec<Wanted> {
        let mine = known.imports.iter().filter(|(_, import)| import.cluster == cluster);
        let made = mine.map(|(name, import)| Wanted {
            name: name.clone(),
            namespace: import.namespace.clone(),
            service: import.service.clone(),
            ports: merge::ports(known, import)
                .into_iter()
                .filter(|port| datagrams || port.protocol == Protocol::Tcp)
                .collect(),
            affinity: if merge::is_sticky(known, import) { SessionAffinity::ClientIp } else { SessionAffinity::None },
        });
        made.filter(|wanted| !wanted.ports.is_empty()).take(limits::IMPORTS).collect()
    }

    /// Whether all agents of a cluster that import carry datagrams.
    fn carries_datagrams(&self, cluster: &str) -> bool {
        let (importers, now) = (self.importers(), Instant::now());
        let agents = importers.get(cluster).into_iter().flat_map(BTreeMap::values);
        agents.filter(|agent| agent.lives(now)).all(|agent| agent.datagrams)
    }

    /// The agents of a cluster that import.
    fn importing(&self, cluster: &str) -> Vec<String> {
        let (mut importers, now) = (self.importers(), Instant::now());
        let Some(agents) = importers.get_mut(cluster) else { return Vec::new() };
        agents.retain(|_, agent| agent.lives(now));
        let names = agents.keys().cloned().collect();
        if agents.is_empty() {
            importers.remove(cluster);
        }
        names
    }

    /// How an export can be reached now.
    fn way(&self, name: &str, export: &Export) -> Way {
        let sessions = self.registry.carriers(&export.cluster);
        let usable = sessions.iter().map(|session| session.candidate()).filter(|c| !c.draining);
        let best = usable.min_by_key(|c| (c.doubt, c.rtt));
        let (well, open) = self.memory().look(name, Instant::now());
        Way {
            connected: best.is_some(),
            healthy: well && best.is_some_and(|best| !best.doubt),
            rtt: best.map(|best| best.rtt).unwrap_or_default(),
            open,
        }
    }
}

fn export_of(object: &Object<ServiceExportSpec>) -> Export {
    let spec = object.spec.clone();
    Export {
        cluster: spec.cluster,
        namespace: spec.namespace,
        service: spec.service,
        ports: spec.ports.iter().map(|port| ((port.port, port.protocol.into()), port.name())).collect(),
        sticky: !spec.session_affinity.is_none(),
        made: object.metadata.creation_timestamp.clone().unwrap_or_default(),
        importers: spec.importers,
    }
}

fn import_of(object: &Object<ServiceImportSpec>) -> Import {
    let spec = object.spec.clone();
    let or = |text: String, other: &String| if text.is_empty() { other.clone() } else { text };
    Import {
        from_namespace: or(spec.from.namespace, &spec.namespace),
        from_service: or(spec.from.service, &spec.service),
        from_clusters: spec.from.clusters,
        cluster: spec.cluster,
        namespace: spec.namespace,
        service: spec.service,
    }
}
