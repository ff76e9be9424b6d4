//! The kinds of this plugin.

use crate::powers::may_give;
use moorline_plugin::{Cause, ClusterSelector, Condition, HubObject, Spec, mirror::Tally};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! kind {
    ($spec:ident, $status:ident, $kind:literal, $plural:literal, $singular:literal) => {
        impl Spec for $spec {
            type Status = $status;
            const KIND: &'static str = $kind;
            const PLURAL: &'static str = $plural;
            const SINGULAR: &'static str = $singular;
        }
    };
}
kind!(RoleTemplateSpec, SyncStatus, "RoleTemplate", "roletemplates", "roletemplate");
kind!(TemplateBindingSpec, SyncStatus, "TemplateBinding", "templatebindings", "templatebinding");
kind!(GlobalRoleSpec, Nothing, "GlobalRole", "globalroles", "globalrole");
kind!(GlobalRoleBindingSpec, Nothing, "GlobalRoleBinding", "globalrolebindings", "globalrolebinding");

/// No status.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Nothing {}

/// A rule of Kubernetes' RBAC (`rbac.authorization.k8s.io/v1`, PolicyRule).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    /// Verbs; `*` is all.
    #[schemars(length(min = 1, max = 64))]
    pub verbs: Vec<String>,
    /// API groups; the empty one is the core group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// Resources, or `resource/subresource`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Names of objects; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths that are no resources, such as `/metrics`.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

/// A role, written once and kept as a ClusterRole `moorline:<name>` in every cluster that it is meant for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RoleTemplateSpec {
    /// A name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 256))]
    pub display_name: Option<String>,
    /// What it permits.
    #[schemars(length(max = 256))]
    pub rules: Vec<PolicyRule>,
    /// Other templates whose rules it has too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub inherits: Vec<String>,
    /// The clusters that have it. Default: all.
    #[serde(default = "ClusterSelector::all")]
    pub clusters: ClusterSelector,
}

/// Who holds a role template, in which clusters and where in them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TemplateBindingSpec {
    /// Name of the role template.
    #[schemars(length(min = 1, max = 200))]
    pub template: String,
    /// Users, as the hub knows them.
    #[schemars(length(max = 1000))]
    pub users: Vec<String>,
    /// Groups, as the hub knows them.
    #[schemars(length(max = 1000))]
    pub groups: Vec<String>,
    /// The clusters in which it holds. Empty: in none.
    pub clusters: ClusterSelector,
    /// The namespaces in which it holds; empty: the whole cluster.
    #[schemars(length(max = 256))]
    pub namespaces: Vec<String>,
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

/// What its holders may do in the hub's own API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GlobalRoleSpec {
    /// What it permits.
    #[schemars(length(max = 64))]
    pub rules: Vec<GlobalRule>,
}

/// A rule about objects of the hub's own API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GlobalRule {
    /// Plurals of kinds, or `plural/subresource`.
    #[schemars(length(min = 1, max = 64))]
    pub resources: Vec<String>,
    /// Verbs: get, list, watch, create, update, patch, delete.
    #[schemars(length(min = 1, max = 16))]
    pub verbs: Vec<String>,
    /// Names of objects; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub resource_names: Vec<String>,
}

/// Who holds a global role.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GlobalRoleBindingSpec {
    /// Name of the global role.
    #[schemars(length(min = 1, max = 253))]
    pub role: String,
    /// Users, as the hub knows them.
    #[schemars(length(max = 1000))]
    pub users: Vec<String>,
    /// Groups, as the hub knows them.
    #[schemars(length(max = 1000))]
    pub groups: Vec<String>,
}

const VERBS: [&str; 7] = ["get", "list", "watch", "create", "update", "patch", "delete"];

/// What is wrong with a global role.
pub fn check_global(role: &HubObject<GlobalRoleSpec>) -> Vec<Cause> {
    let mut wrong = Vec::new();
    for (at, rule) in role.spec.rules.iter().enumerate() {
        let field = |name: &str| format!("spec.rules[{at}].{name}");
        for verb in rule.verbs.iter().filter(|verb| !VERBS.contains(&verb.as_str())) {
            wrong.push(Cause::invalid(
                field("verbs"),
                format!("{verb:?}: each verb has to be named: {}", VERBS.join(", ")),
            ));
        }
        for resource in &rule.resources {
            if resource.contains('*') {
                wrong.push(Cause::invalid(field("resources"), "each kind has to be named"));
                continue;
            }
            // Once for each kind, however many verbs of it are too many.
            if let Some(why) = rule.verbs.iter().find_map(|verb| may_give(resource, verb).err()) {
                wrong.push(Cause::invalid(field("resources"), format!("{resource:?}: {why}")));
            }
        }
    }
    wrong
}

/// What is wrong with a template.
pub fn check_template(template: &HubObject<RoleTemplateSpec>) -> Vec<Cause> {
    let mut wrong = template.spec.clusters.check("spec.clusters");
    for (at, rule) in template.spec.rules.iter().enumerate() {
        let field = format!("spec.rules[{at}]");
        match (rule.resources.is_empty(), rule.non_resource_urls.is_empty()) {
            (true, true) => wrong.push(Cause::required(field, "resources or nonResourceURLs")),
            (false, false) => wrong.push(Cause::invalid(field, "resources and nonResourceURLs belong into two rules")),
            (false, true) if rule.api_groups.is_empty() => {
                wrong.push(Cause::required(field, "apiGroups; \"\" is the core group"));
            }
            _ => {}
        }
    }
    if template.spec.inherits.iter().any(|name| name == template.name()) {
        wrong.push(Cause::invalid("spec.inherits", "a template does not inherit itself"));
    }
    wrong
}

/// What is wrong with a binding.
pub fn check_binding(binding: &HubObject<TemplateBindingSpec>) -> Vec<Cause> {
    let mut wrong = binding.spec.clusters.check("spec.clusters");
    let reserved =
        |name: &&String| name.is_empty() || name.starts_with("system:") || name.starts_with("moorline:plugin");
    for name in binding.spec.users.iter().chain(&binding.spec.groups).filter(reserved) {
        wrong.push(Cause::invalid(
            "spec",
            format!("{name:?}: Kubernetes' own users and groups are not bound from here"),
        ));
    }
    wrong
}
