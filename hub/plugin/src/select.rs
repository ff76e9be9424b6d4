//! Which clusters something is meant for.

use crate::ClusterFacts;
use moorline_apiserver::Cause;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Clusters by name, by labels, or both: a cluster that either picks is picked. Empty: none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterSelector {
    /// Names; `*` is every cluster.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub names: Vec<String>,
    /// Labels that a cluster has to have, all of them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

impl ClusterSelector {
    /// Every cluster.
    pub fn all() -> Self {
        Self { names: vec!["*".to_owned()], match_labels: BTreeMap::new() }
    }

    /// Whether it picks this cluster.
    pub fn picks(&self, cluster: &ClusterFacts) -> bool {
        let labelled = || self.match_labels.iter().all(|(key, value)| cluster.labels.get(key) == Some(value));
        self.names.iter().any(|name| name == "*" || *name == cluster.name)
            || (!self.match_labels.is_empty() && labelled())
    }

    /// What is wrong with it.
    pub fn check(&self, field: &str) -> Vec<Cause> {
        let bad = |name: &&String| *name != "*" && moorline_apiserver::dns_label(name).is_err();
        let wrong =
            |name| Cause::invalid(format!("{field}.names"), format!("{name:?} is neither a cluster name nor *"));
        self.names.iter().filter(bad).map(wrong).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s53_what_is_meant_for_one_cluster_is_not_for_another() {
        let facts = |name: &str, labels: &[(&str, &str)]| ClusterFacts {
            name: name.to_owned(),
            uid: String::new(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            connected: true,
            session: String::new(),
            leaving: false,
        };
        let named = ClusterSelector { names: vec!["a".to_owned()], ..ClusterSelector::default() };
        assert!(
            named.picks(&facts("a", &[]))
                && !named.picks(&facts("ab", &[]))
                && !named.picks(&facts("b", &[("a", "a")]))
        );
        let both = [("env".to_owned(), "prod".to_owned()), ("zone".to_owned(), "1".to_owned())];
        let labelled = ClusterSelector { match_labels: BTreeMap::from(both), ..ClusterSelector::default() };
        assert!(labelled.picks(&facts("x", &[("env", "prod"), ("zone", "1"), ("y", "z")])));
        assert!(!labelled.picks(&facts("x", &[("env", "prod")])));
        assert!(!ClusterSelector::default().picks(&facts("a", &[])), "empty is none");
        assert!(ClusterSelector::all().picks(&facts("a", &[])));
    }
}
