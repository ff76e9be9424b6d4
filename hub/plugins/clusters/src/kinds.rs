//! The kind of this plugin.

use moorline_agent::upstream::GivenKubeconfig;
use moorline_plugin::{Cause, Condition, HubObject, Spec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Largest kubeconfig, in bytes.
const LARGEST: usize = 256 << 10;
/// Longest name of a cluster: it is a DNS label.
const NAME: usize = 63;

/// A cluster that the hub reaches by itself, with a kubeconfig and without an agent there. Under the cluster's name.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterImportSpec {
    /// The kubeconfig's text. It stands by itself: files and programs that it names are refused. Its user acts for the
    /// hub's users there, so it needs the right to impersonate.
    pub kubeconfig: String,
    /// Its context. Default: the current one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub context: String,
    /// Plugins of the hub that are let in there, as an edge policy would: `health`, `rbac`, …
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 64)))]
    pub plugins: Vec<String>,
    /// Nobody changes anything there by way of the hub.
    pub read_only: bool,
}

impl fmt::Debug for ClusterImportSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterImportSpec").field("context", &self.context).finish_non_exhaustive()
    }
}

impl ClusterImportSpec {
    /// As an agent takes it.
    pub(crate) fn given(&self) -> GivenKubeconfig {
        let context = Some(self.context.clone()).filter(|context| !context.is_empty());
        GivenKubeconfig { text: self.kubeconfig.clone(), context }
    }
}

/// How an import is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterImportStatus {
    /// `Running`: the hub's own agent for it serves. `Reachable`: the API server answers it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The API server's address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub server: String,
}

impl Spec for ClusterImportSpec {
    type Status = ClusterImportStatus;
    const KIND: &'static str = "ClusterImport";
    const PLURAL: &'static str = "clusterimports";
    const SINGULAR: &'static str = "clusterimport";
}

/// What is wrong with one. No word of it is one of the kubeconfig's secrets.
pub fn check(new: &HubObject<ClusterImportSpec>, _: Option<&HubObject<ClusterImportSpec>>) -> Vec<Cause> {
    let mut wrong = Vec::new();
    if NAME < new.name().len() || moorline_plugin::dns_label(new.name()).is_err() {
        wrong.push(Cause::invalid("metadata.name", "it is the cluster's name: letters, digits and -, at most 63"));
    }
    if LARGEST < new.spec.kubeconfig.len() {
        wrong.push(Cause::invalid("spec.kubeconfig", "longer than 256 KiB: leave its other contexts out"));
    } else if let Err(why) = new.spec.given().server() {
        wrong.push(Cause::invalid("spec.kubeconfig", why.to_string()));
    }
    for plugin in new.spec.plugins.iter().filter(|name| !name.bytes().all(|b| b.is_ascii_alphanumeric())) {
        wrong.push(Cause::invalid("spec.plugins", format!("{plugin:?} is no plugin's name")));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "{current-context: c, contexts: [{name: c, context: {cluster: k, user: u}}], \
        clusters: [{name: k, cluster: {server: 'https://k', certificate-authority-data: eA==}}], \
        users: [{name: u, user: {token: hunter2}}]}";

    #[test]
    fn s69_bad_imports_are_refused_without_a_word_of_what_is_in_them() {
        let import = |name: &str, change: &dyn Fn(&mut ClusterImportSpec)| {
            let mut spec = ClusterImportSpec { kubeconfig: GOOD.to_owned(), ..ClusterImportSpec::default() };
            change(&mut spec);
            HubObject::new(name, spec)
        };
        assert!(check(&import("edge9", &|_| {}), None).is_empty());
        assert_eq!(check(&import("edge.9", &|_| {}), None).len(), 1);
        let changes: [&dyn Fn(&mut ClusterImportSpec); 5] = [
            &|s| s.kubeconfig = String::new(),
            &|s| s.kubeconfig = GOOD.replace("token: hunter2", "token: hunter2, tokenFile: /etc/shadow"),
            &|s| s.kubeconfig.push_str(&" ".repeat(LARGEST)),
            &|s| s.context = "other".to_owned(),
            &|s| s.plugins = vec!["a, b]}".to_owned()],
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let wrong = check(&import("edge9", change), None);
            assert_eq!(wrong.len(), 1, "{i}: {wrong:?}");
            assert!(!format!("{wrong:?}").contains("hunter2"));
        }
        assert!(!format!("{:?}", import("edge9", &|_| {}).spec).contains("hunter2"));
    }
}
