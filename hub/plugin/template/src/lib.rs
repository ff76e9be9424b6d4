//! A plugin to copy: notices for everybody who works in a cluster. `docs/src/write-a-plugin.md` explains it.
#![forbid(unsafe_code)]

use futures_util::{FutureExt, future::BoxFuture};
use moorline_plugin::{
    All, Cause, ClusterFacts, ClusterSelector, ClusterView, Configured, Feed, HubView, NoStatus, Plugin, PluginError,
    PluginKind, Registration, Spec, follow_into,
    mirror::{Board, Kept, Key, Objects},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;

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
            let meta = json!({ "name": key.name, "namespace": namespace, "labels": {} });
            let data = json!({ "text": notice.spec.text });
            all.insert(key, json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data }));
        }
    }
    all
}

/// The kinds that it keeps in clusters. What somebody else made is left alone, and told.
const KINDS: &[Kept] = &[Kept::core("ConfigMap", "configmaps")];

/// Its table in the hub's configuration file. A key that is not here is an error.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// Most letters of a notice. Default: as many as an object takes.
    pub longest: Option<usize>,
}

/// The plugin.
pub struct Notices {
    config: Config,
    known: Feed<NoticeSpec>,
    board: Board,
}

impl Configured for Notices {
    const NAME: &'static str = "notices";
    type Config = Config;
    fn new(config: Config) -> Result<Self, String> {
        if config.longest == Some(0) {
            return Err("longest: a notice of no letters says nothing".to_owned());
        }
        Ok(Self { config, known: Feed::default(), board: Board::default() })
    }
}

impl Plugin for Notices {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    /// Called once: what it adds to the hub's API, and which kinds of others it needs.
    fn register(&self, into: &mut Registration) {
        let longest = self.config.longest.unwrap_or(usize::MAX);
        let kind = PluginKind::of::<NoticeSpec>().column("Text", "/spec/text").validate::<NoticeSpec>(move |new, _| {
            let long = new.spec.text.chars().count() > longest;
            if long { vec![Cause::invalid("spec.text", format!("at most {longest} letters"))] } else { Vec::new() }
        });
        into.kind(kind.without_status()).writes(&["clusters"]).per_cluster();
    }

    /// The hub-wide half: follows the notices.
    fn run(self: Arc<Self>, hub: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move { follow_into(hub.client.clone(), &self.known).await }.boxed()
    }

    /// Once for each connected cluster: keeps it as it should be, and tells of it in the cluster's condition.
    fn run_cluster(self: Arc<Self>, hub: HubView, cluster: ClusterView) -> BoxFuture<'static, Result<(), PluginError>> {
        let known = self.known.subscribe();
        async move { self.board.keep((&hub, &cluster), (KINDS, "NoticesSynced"), known, desired).await }.boxed()
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
        assert!(Notices::new(Config { longest: Some(0) }).is_err());
    }

    /// What the guide shows is what is built here, and what a hub's own tests run.
    #[test]
    fn the_guide_shows_this_code() {
        let guide = include_str!("../../../../docs/src/write-a-plugin.md");
        let shown = guide.split_once("```rust\n").and_then(|(_, rest)| rest.split_once("```\n")).unwrap().0;
        let here = include_str!("lib.rs").split_once("#![forbid(unsafe_code)]\n\n").unwrap().1;
        let here = here.split_once("\n#[cfg(test)]\n").unwrap().0;
        assert_eq!(shown, here, "left: docs/src/write-a-plugin.md; right: src/lib.rs");
        assert!(here.lines().count() <= 100, "as short as the guide says");
    }
}
