//! The kinds of this plugin.

use moorline_plugin::{Cause, Condition, HubObject, Spec, quantity};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

impl Spec for ProjectSpec {
    type Status = ProjectStatus;
    const KIND: &'static str = "Project";
    const PLURAL: &'static str = "projects";
    const SINGULAR: &'static str = "project";
}
impl Spec for ProjectNamespaceSpec {
    type Status = ProjectNamespaceStatus;
    const KIND: &'static str = "ProjectNamespace";
    const PLURAL: &'static str = "projectnamespaces";
    const SINGULAR: &'static str = "projectnamespace";
    const SHORT_NAMES: &'static [&'static str] = &["pns"];
}

/// Namespaces of one cluster that belong together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProjectSpec {
    /// A name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 256))]
    pub display_name: Option<String>,
    /// The cluster; never changes.
    #[schemars(length(min = 1, max = 63))]
    pub cluster: String,
    /// Namespaces that are there already and belong to it from now on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub namespaces: Vec<String>,
    /// Who may do what in its namespaces.
    #[schemars(length(max = 256))]
    pub members: Vec<Member>,
    /// What its namespaces may use together, as in a ResourceQuota's `hard`: `pods`, `requests.cpu`, `limits.memory`, …
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub quota: BTreeMap<String, String>,
    /// Pods of other projects and namespaces do not get through (NetworkPolicy, where the cluster's network obeys it).
    pub network_isolation: bool,
    /// Pod security standard that its namespaces enforce (Kubernetes 1.23 and newer).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PodSecurity")]
    pub pod_security: Option<PodSecurity>,
}

/// <https://kubernetes.io/docs/concepts/security/pod-security-standards/>
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum PodSecurity {
    /// Anything goes.
    Privileged,
    /// Known ways up are closed.
    Baseline,
    /// Hardened.
    Restricted,
}

impl PodSecurity {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// Somebody who belongs to a project.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Member {
    /// Users, as the hub knows them.
    #[schemars(length(max = 256))]
    pub users: Vec<String>,
    /// Groups, as the hub knows them.
    #[schemars(length(max = 256))]
    pub groups: Vec<String>,
    /// A ClusterRole of the cluster that they hold in the project's namespaces: `view`, `edit`, `admin`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 253))]
    pub role: Option<String>,
    /// The same as the name of a RoleTemplate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 200))]
    pub template: Option<String>,
    /// They may make and delete namespaces of the project, as ProjectNamespaces.
    pub manage_namespaces: bool,
}

impl Member {
    /// The ClusterRole that it means.
    pub(crate) fn cluster_role(&self) -> Option<String> {
        self.role.clone().or_else(|| self.template.as_ref().map(|name| format!("moorline:{name}")))
    }
}

/// How a project is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProjectStatus {
    /// `Synced`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Its namespaces.
    pub namespaces: Vec<String>,
    /// What they use together, of what the quota names.
    pub used: BTreeMap<String, String>,
}

/// A namespace of a project.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProjectNamespaceSpec {
    /// The project; never changes.
    #[schemars(length(min = 1, max = 253))]
    pub project: String,
    /// Its name in the cluster; never changes. Default: that of this object.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 63))]
    pub namespace: Option<String>,
}

/// How it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProjectNamespaceStatus {
    /// `Ready`, `Waiting`, `Failed` or `Deleting`.
    pub phase: String,
    /// For people.
    pub message: String,
}

/// The namespace that an object means.
pub(crate) fn namespace_of(object: &HubObject<ProjectNamespaceSpec>) -> &str {
    object.spec.namespace.as_deref().unwrap_or_else(|| object.name())
}

/// Kubernetes' and Moorline's own namespaces belong to no project.
fn reserved(name: &str) -> bool {
    name.starts_with("kube-") || name.starts_with("moorline") || name == "default"
}

pub(crate) fn check_project(new: &HubObject<ProjectSpec>, old: Option<&HubObject<ProjectSpec>>) -> Vec<Cause> {
    let (spec, mut wrong) = (&new.spec, Vec::new());
    if new.name().len() > 63 {
        wrong.push(Cause::invalid("metadata.name", "at most 63 letters: it becomes a label"));
    }
    if old.is_some_and(|old| old.spec.cluster != spec.cluster) {
        wrong.push(Cause::invalid("spec.cluster", "a project never moves to another cluster"));
    }
    for name in spec.namespaces.iter().filter(|name| reserved(name) || !label(name)) {
        wrong.push(Cause::invalid("spec.namespaces", format!("{name:?} is no namespace that a project can have")));
    }
    for (at, member) in spec.members.iter().enumerate() {
        let field = format!("spec.members[{at}]");
        if member.role.is_some() == member.template.is_some() {
            wrong.push(Cause::invalid(&field, "either role or template is needed"));
        }
        let own =
            |name: &&String| name.is_empty() || name.starts_with("system:") || name.starts_with("moorline:plugin");
        for name in member.users.iter().chain(&member.groups).filter(own) {
            wrong.push(Cause::invalid(&field, format!("{name:?}: Kubernetes' own users and groups are not members")));
        }
    }
    for (name, amount) in &spec.quota {
        if quantity::parse(amount).is_none() {
            wrong.push(Cause::invalid(
                format!("spec.quota.{name}"),
                format!("{amount:?} is no quantity such as 500m or 2Gi"),
            ));
        }
    }
    wrong
}

pub(crate) fn check_namespace(
    new: &HubObject<ProjectNamespaceSpec>,
    old: Option<&HubObject<ProjectNamespaceSpec>>,
) -> Vec<Cause> {
    let mut wrong = Vec::new();
    if old.is_some_and(|old| old.spec.project != new.spec.project) {
        wrong.push(Cause::invalid("spec.project", "a namespace never moves to another project"));
    }
    if old.is_some_and(|old| old.spec.namespace != new.spec.namespace) {
        wrong.push(Cause::invalid("spec.namespace", "a namespace never changes its name"));
    }
    let name = namespace_of(new);
    if reserved(name) || !label(name) {
        wrong.push(Cause::invalid("spec.namespace", format!("{name:?} is no namespace that a project can have")));
    }
    wrong
}

/// RFC 1123, as Kubernetes has it for namespaces.
fn label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}
