//! The kind of this plugin.

use base64::{Engine, engine::general_purpose::STANDARD};
use moorline_plugin::{Cause, ClusterSelector, Condition, HubObject, Spec, mirror::Tally};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// Largest sum of a secret's values, in bytes (Kubernetes: `MaxSecretSize`).
const LARGEST: usize = 1024 * 1024;
/// Kubernetes makes these by itself, for its own.
const SERVICE_ACCOUNT: &str = "kubernetes.io/service-account-token";

/// A Secret, written once and kept in every namespace that it is meant for. Under its own name.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SharedSecretSpec {
    /// As of a Secret; it cannot be changed. Default: Opaque.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub r#type: String,
    /// Values, as base64.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// The clusters that have it. Empty: none.
    pub clusters: ClusterSelector,
    /// The namespaces that have it, in each of those.
    pub namespaces: NamespaceSelector,
    /// Labels of the Secrets there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl fmt::Debug for SharedSecretSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&String> = self.data.keys().collect();
        f.debug_struct("SharedSecretSpec").field("data", &keys).finish_non_exhaustive()
    }
}

/// Namespaces by name, by labels, or both: one that either picks is picked. Empty: none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespaceSelector {
    /// Names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub names: Vec<String>,
    /// Labels that a namespace has to have, all of them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

impl NamespaceSelector {
    /// Whether it picks a namespace by these labels.
    pub fn labelled(&self, labels: &BTreeMap<String, String>) -> bool {
        let all = || self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value));
        !self.match_labels.is_empty() && all()
    }
}

/// How far the clusters are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SyncStatus {
    /// `Synced`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Cluster by cluster, counted.
    pub sync: Tally,
}

impl Spec for SharedSecretSpec {
    type Status = SyncStatus;
    const KIND: &'static str = "SharedSecret";
    const PLURAL: &'static str = "sharedsecrets";
    const SINGULAR: &'static str = "sharedsecret";
}

fn key_is_sound(key: &str) -> bool {
    let sound = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    !key.is_empty() && key.len() <= 253 && key.bytes().all(sound) && !matches!(key, "." | "..")
}

/// What is wrong with one. No word of it has a value in it.
pub fn check(new: &HubObject<SharedSecretSpec>, old: Option<&HubObject<SharedSecretSpec>>) -> Vec<Cause> {
    let spec = &new.spec;
    let mut wrong = spec.clusters.check("spec.clusters");
    if spec.r#type == SERVICE_ACCOUNT {
        wrong.push(Cause::invalid("spec.type", "tokens of service accounts are made by their cluster"));
    }
    if old.is_some_and(|old| old.spec.r#type != spec.r#type) {
        wrong.push(Cause::invalid("spec.type", "field is immutable, as of a Secret: delete it and make it anew"));
    }
    let mut size = 0;
    for (key, value) in &spec.data {
        if !key_is_sound(key) {
            wrong.push(Cause::invalid("spec.data", format!("the key {key:?}: letters, digits, -, _ and . are taken")));
        }
        match STANDARD.decode(value) {
            Ok(bytes) => size += bytes.len(),
            Err(_) => wrong.push(Cause::invalid(format!("spec.data[{key}]"), "it is not base64")),
        }
    }
    if LARGEST < size {
        wrong.push(Cause::invalid("spec.data", "its values are more than 1 MiB together"));
    }
    for name in spec.namespaces.names.iter().filter(|name| moorline_plugin::dns_label(name).is_err()) {
        wrong.push(Cause::invalid("spec.namespaces.names", format!("{name:?} is no name of a namespace")));
    }
    // Labels of this name say whose an object is.
    for label in spec.labels.keys().filter(|label| label.starts_with("moorline.dev/")) {
        wrong.push(Cause::invalid("spec.labels", format!("{label:?} is the hub's own")));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_ones_are_refused_without_a_word_of_what_is_in_them() {
        let secret = |change: &dyn Fn(&mut SharedSecretSpec)| {
            let mut spec =
                SharedSecretSpec { data: [("key".to_owned(), STANDARD.encode("v"))].into(), ..Default::default() };
            change(&mut spec);
            HubObject::new("s", spec)
        };
        let good = secret(&|_| {});
        assert!(check(&good, None).is_empty());
        let changes: [&dyn Fn(&mut SharedSecretSpec); 7] = [
            &|s| s.r#type = SERVICE_ACCOUNT.to_owned(),
            &|s| drop(s.data.insert("a b".to_owned(), String::new())),
            &|s| drop(s.data.insert("..".to_owned(), String::new())),
            &|s| drop(s.data.insert("k".to_owned(), "hunter2!".to_owned())),
            &|s| drop(s.data.insert("k".to_owned(), STANDARD.encode(vec![0; LARGEST]))),
            &|s| s.namespaces.names = vec!["No".to_owned()],
            &|s| drop(s.labels.insert("moorline.dev/plugin".to_owned(), "rbac".to_owned())),
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let causes = check(&secret(change), None);
            assert_eq!(causes.len(), 1, "{i}: {causes:?}");
            assert!(!format!("{causes:?}").contains("hunter2"));
        }
        assert_eq!(check(&secret(&|s| s.r#type = "kubernetes.io/tls".to_owned()), Some(&good)).len(), 1);
        assert!(!format!("{:?}", good.spec).contains(&STANDARD.encode("v")), "and a log has keys alone");
    }

    #[test]
    fn namespaces_are_picked_by_all_labels() {
        let labels = |all: &[(&str, &str)]| all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let labelled =
            NamespaceSelector { match_labels: labels(&[("t", "x"), ("e", "p")]), ..NamespaceSelector::default() };
        assert!(labelled.labelled(&labels(&[("t", "x"), ("e", "p"), ("z", "z")])));
        assert!(!labelled.labelled(&labels(&[("t", "x")])));
        assert!(!NamespaceSelector::default().labelled(&labels(&[("t", "x")])), "empty is none");
    }
}
