//! What a running plugin sees of the hub. It keeps nothing alive.

use crate::{HubRule, PluginMetrics};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A cluster, as far as every plugin needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterFacts {
    /// Its name.
    pub name: String,
    /// `metadata.uid` of its object: another one is another cluster.
    pub uid: String,
    /// Its labels, to select by.
    pub labels: BTreeMap<String, String>,
    /// Whether an agent is connected.
    pub connected: bool,
    /// Since when its newest session is there, RFC 3339: with another session everything is asked anew.
    pub session: String,
    /// It was deleted at the hub, and waits until what was made in it is gone: nothing is wanted there any more.
    pub leaving: bool,
}

/// All clusters, by name.
pub type Clusters = BTreeMap<String, Arc<ClusterFacts>>;

/// Where the hub serves, and where it keeps what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// Agents on this machine reach it there.
    pub address: SocketAddr,
    /// Its data folder.
    pub data: PathBuf,
}

/// The hub.
#[derive(Clone)]
pub struct HubView {
    /// kube-rs for the hub's own API.
    pub client: kube::Client,
    /// All clusters as they are now, and every change.
    pub clusters: watch::Receiver<Arc<Clusters>>,
    /// The plugin's counters.
    pub metrics: PluginMetrics,
    /// Fires when the plugin has to end.
    pub stop: CancellationToken,
    pub(crate) home: watch::Receiver<Option<Arc<Home>>>,
    pub(crate) rules: RuleBook,
    pub(crate) plugin: &'static str,
}

impl HubView {
    /// Where the hub serves, once it does. `None`: it ends before that.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn home(&self) -> Option<Arc<Home>> {
        let mut home = self.home.clone();
        let known = home.wait_for(Option::is_some).await.ok()?;
        known.clone()
    }

    /// Says what users may do in the hub's API because of this plugin, in place of what it said before. Only adds to
    /// what the hub permits, and is forgotten when the plugin is switched off.
    pub fn publish_rules(&self, rules: Vec<HubRule>) {
        self.rules.set(self.plugin, rules);
    }
}

/// One connected cluster.
#[derive(Clone)]
pub struct ClusterView {
    /// Its name.
    pub name: String,
    /// `metadata.uid` of its object.
    pub uid: String,
    /// kube-rs for its API server, through the tunnel, as the user `moorline:plugin:<name>`. What that user may do there
    /// is decided by the cluster: its edge policy has to let the plugin in by name, and its RBAC says the rest.
    pub client: kube::Client,
    /// Fires when the cluster is no longer connected.
    pub stop: CancellationToken,
}

/// What each plugin has published.
#[derive(Clone)]
pub(crate) struct RuleBook(Arc<Book>);

struct Book {
    pages: Mutex<BTreeMap<&'static str, Vec<HubRule>>>,
    all: watch::Sender<Arc<Vec<HubRule>>>,
}

impl RuleBook {
    pub(crate) fn new() -> (Self, watch::Receiver<Arc<Vec<HubRule>>>) {
        let (all, seen) = watch::channel(Arc::default());
        (Self(Arc::new(Book { pages: Mutex::default(), all })), seen)
    }

    fn set(&self, plugin: &'static str, rules: Vec<HubRule>) {
        let mut pages = self.0.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.get(plugin) != Some(&rules) {
            pages.insert(plugin, rules);
            self.0.all.send_replace(Arc::new(pages.values().flatten().cloned().collect()));
        }
    }
}
