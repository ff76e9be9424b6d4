//! A plugin to copy: notices for everybody who works in a cluster. `docs/src/write-a-plugin.md` explains it.
#![forbid(unsafe_code)]

use futures_util::{FutureExt, future::BoxFuture};
use moorline_plugin::{
    All, Cause, ClusterFacts, ClusterSelector, ClusterView, Configured, HubView, Plugin, PluginError, PluginKind,
    Registration, Spec, follow,
    mirror::{Board, Kept, Key, Objects},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use tokio::sync::watch;

/// A text for everybody who works in a cluster.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct NoticeSpec {
    /// What it says.
    text: String,
    /// The clusters that show it.
    clusters: ClusterSelector,
    /// Where in them.
    namespaces: Vec<String>,
}

/// It has no status.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
struct NoStatus {}

impl Spec for NoticeSpec {
    type Status = NoStatus;
    const KIND: &'static str = "Notice";
    const PLURAL: &'static str = "notices";
    const SINGULAR: &'static str = "notice";
}

/// What a cluster should have is a pure function of what the hub has. That is the part to test well.
fn desired(notices: &All<NoticeSpec>, cluster: &ClusterFacts) -> Objects {
    let mut all = Objects::new();
    for (name, notice) in notices.iter().filter(|(_, notice)| notice.spec.clusters.picks(cluster)) {
        for namespace in &notice.spec.namespaces {
            let key = Key { kind: "ConfigMap", namespace: namespace.clone(), name: format!("notice-{name}") };
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": key.name, "namespace": namespace, "labels": {} },
                "data": { "text": notice.spec.text },
            });
            all.insert(key, object);
        }
    }
    all
}

/// The kinds that it keeps in clusters. What somebody else made is left alone, and told.
const KINDS: &[Kept] =
    &[Kept { group: "", version: "v1", kind: "ConfigMap", plural: "configmaps", take_over: false, release: false }];

/// Its table in the hub's configuration file. A key that is not here is an error.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// Most letters of a notice.
    pub longest: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { longest: 1000 }
    }
}

/// The plugin.
pub struct Notices {
    config: Config,
    known: watch::Sender<Option<Arc<All<NoticeSpec>>>>,
    board: Board,
}

impl Configured for Notices {
    const NAME: &'static str = "notices";
    type Config = Config;
    fn new(config: Config) -> Result<Self, String> {
        if config.longest == 0 {
            return Err("longest: a notice of no letters says nothing".to_owned());
        }
        Ok(Self { config, known: watch::Sender::new(None), board: Board::default() })
    }
}

impl Plugin for Notices {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    /// Called once: what it adds to the hub's API, and which kinds of others it needs.
    fn register(&self, into: &mut Registration) {
        let longest = self.config.longest;
        let kind = PluginKind::of::<NoticeSpec>().column("Text", "/spec/text").validate::<NoticeSpec>(move |new, _| {
            let long = new.spec.text.chars().count() > longest;
            if long { vec![Cause::invalid("spec.text", format!("at most {longest} letters"))] } else { Vec::new() }
        });
        into.kind(kind.without_status()).writes(&["clusters"]).per_cluster();
    }

    /// The hub-wide half: follows the notices.
    fn run(self: Arc<Self>, hub: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            let (mut notices, work) = follow::<NoticeSpec>(hub.client.clone());
            let spread = async {
                while notices.changed().await.is_ok() {
                    self.known.send_replace(notices.borrow_and_update().clone());
                }
                Ok(())
            };
            tokio::select! { ended = work => ended, ended = spread => ended }
        }
        .boxed()
    }

    /// Once for each connected cluster: keeps it as it should be, and tells of it in the cluster's condition.
    fn run_cluster(self: Arc<Self>, hub: HubView, cluster: ClusterView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            let known = self.known.subscribe();
            self.board.keep((&hub, &cluster), (KINDS, "NoticesSynced"), known, desired).await
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_plugin::HubObject;
    use std::collections::BTreeMap;

    #[test]
    fn a_cluster_has_the_notices_that_are_meant_for_it() {
        let facts = |name: &str| ClusterFacts {
            name: name.to_owned(),
            uid: String::new(),
            labels: BTreeMap::new(),
            connected: true,
            session: String::new(),
            leaving: false,
        };
        let spec = NoticeSpec {
            text: "hi".to_owned(),
            clusters: ClusterSelector { names: vec!["a".to_owned()], ..ClusterSelector::default() },
            namespaces: vec!["x".to_owned(), "y".to_owned()],
        };
        let all: All<NoticeSpec> = [("n".to_owned(), Arc::new(HubObject::new("n", spec)))].into();
        let there: Vec<_> = desired(&all, &facts("a")).keys().map(ToString::to_string).collect();
        assert_eq!(there, ["ConfigMap x/notice-n", "ConfigMap y/notice-n"]);
        assert!(desired(&all, &facts("b")).is_empty());
        assert!(Notices::new(Config { longest: 0 }).is_err());
    }

    /// What the guide shows is what is built here, and what a hub's own tests run.
    #[test]
    fn the_guide_shows_this_code() {
        let guide = include_str!("../../../../docs/src/write-a-plugin.md");
        let shown = guide.split_once("```rust\n").and_then(|(_, rest)| rest.split_once("```\n")).unwrap().0;
        let here = include_str!("lib.rs").split_once("#![forbid(unsafe_code)]\n\n").unwrap().1;
        let here = here.split_once("\n#[cfg(test)]\n").unwrap().0;
        assert_eq!(shown, here, "left: docs/src/write-a-plugin.md; right: src/lib.rs");
        assert!(here.lines().count() <= 140, "short enough to read at once");
    }
}
