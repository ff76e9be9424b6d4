//! What a cluster should have of its projects, and what members may do at the hub: pure functions.

use crate::{
    FINALIZER,
    kinds::{Member, ProjectNamespaceSpec, ProjectSpec, namespace_of},
};
use moorline_plugin::{
    All, ClusterFacts, HubObject, HubRule,
    mirror::{ABSENT, ADOPT, Key, Objects},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Which project a namespace belongs to: a label of namespaces.
pub const PROJECT_LABEL: &str = "moorline.dev/project";
/// The name of the quota and the policy in each namespace.
pub(crate) const OWN: &str = "moorline-project";

/// Shares of quotas: by namespace, then by resource, as text.
pub(crate) type Shares = BTreeMap<String, BTreeMap<String, String>>;

/// Everything of the hub that clusters depend on.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    pub projects: Arc<All<ProjectSpec>>,
    pub namespaces: Arc<All<ProjectNamespaceSpec>>,
    /// Of this cluster.
    pub shares: Arc<Shares>,
}

/// A namespace of a project, and how it came to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin<'a> {
    /// It was there before.
    Adopted,
    /// It was made for this object.
    Made(&'a str),
    /// It was made for this object, which is being deleted: the namespace goes with it.
    Leaving(&'a str),
}

/// The namespaces of a cluster's projects. Of two that want the same one, a project that names it goes first, then the
/// object that is older.
pub(crate) fn namespaces<'a>(
    projects: &'a All<ProjectSpec>,
    namespaces: &'a All<ProjectNamespaceSpec>,
    cluster: &str,
) -> BTreeMap<&'a str, (&'a str, Origin<'a>)> {
    let mut all = BTreeMap::new();
    let here: BTreeMap<_, _> = projects.iter().filter(|(_, project)| project.spec.cluster == cluster).collect();
    for (name, project) in &here {
        for namespace in &project.spec.namespaces {
            all.entry(namespace.as_str()).or_insert((name.as_str(), Origin::Adopted));
        }
    }
    let made = namespaces.values().filter(|object| held(object) && here.contains_key(&object.spec.project));
    let mut made: Vec<_> = made.collect();
    made.sort_by_key(|object| (object.metadata.creation_timestamp.as_ref().map(|time| time.0), object.name()));
    for object in made {
        let leaving = object.metadata.deletion_timestamp.is_some();
        let origin = if leaving { Origin::Leaving(object.name()) } else { Origin::Made(object.name()) };
        let owner = (object.spec.project.as_str(), origin);
        all.entry(namespace_of(object)).or_insert(owner);
    }
    all
}

/// Whether its end waits for this plugin: before that nothing is made for it.
pub(crate) fn held(object: &HubObject<ProjectNamespaceSpec>) -> bool {
    object.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

fn subjects(members: &[&Member]) -> Value {
    let one =
        |kind: &'static str, name: &str| json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name });
    let users: BTreeSet<&str> = members.iter().flat_map(|m| &m.users).map(String::as_str).collect();
    let groups: BTreeSet<&str> = members.iter().flat_map(|m| &m.groups).map(String::as_str).collect();
    users.into_iter().map(|user| one("User", user)).chain(groups.into_iter().map(|group| one("Group", group))).collect()
}

/// What a cluster should have.
pub(crate) fn desired(inputs: &Inputs, cluster: &ClusterFacts) -> Objects {
    let mut all = Objects::new();
    for (namespace, (project_name, origin)) in namespaces(&inputs.projects, &inputs.namespaces, &cluster.name) {
        let Some(project) = inputs.projects.get(project_name) else { continue };
        let spec = &project.spec;
        let mut put = |kind: &'static str, name: &str, object: Value| {
            let within = if kind == "Namespace" { "" } else { namespace };
            all.insert(Key { kind, namespace: within.to_owned(), name: name.to_owned() }, object);
        };
        let mut labels = json!({ PROJECT_LABEL: project_name });
        if let Some(level) = spec.pod_security {
            labels["pod-security.kubernetes.io/enforce"] = level.text().into();
        }
        let mut meta = json!({ "name": namespace, "labels": labels });
        match origin {
            Origin::Adopted => meta["annotations"] = json!({ ADOPT: "true" }),
            Origin::Made(object) => meta["annotations"] = json!({ MADE_FOR: object }),
            Origin::Leaving(_) => {
                put("Namespace", namespace, ABSENT);
                continue;
            }
        }
        put("Namespace", namespace, json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": meta }));

        let inner =
            |name: &str| json!({ "name": name, "namespace": namespace, "labels": { PROJECT_LABEL: project_name } });
        let mut roles: BTreeMap<String, Vec<&Member>> = BTreeMap::new();
        for member in spec.members.iter().filter(|member| !member.users.is_empty() || !member.groups.is_empty()) {
            roles.entry(member.cluster_role().unwrap_or_default()).or_default().push(member);
        }
        for (role, members) in roles.iter().filter(|(role, _)| !role.is_empty()) {
            let name = format!("moorline-member:{role}");
            let object = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": inner(&name),
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
                "subjects": subjects(members),
            });
            put("RoleBinding", &name, object);
        }
        if spec.network_isolation {
            let same = json!({ "namespaceSelector": { "matchLabels": { PROJECT_LABEL: project_name } } });
            let object = json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": inner(OWN),
                "spec": { "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{ "from": [same] }] },
            });
            put("NetworkPolicy", OWN, object);
        }
        if let Some(share) = inputs.shares.get(namespace).filter(|_| !spec.quota.is_empty()) {
            let object = json!({
                "apiVersion": "v1", "kind": "ResourceQuota", "metadata": inner(OWN), "spec": { "hard": share },
            });
            put("ResourceQuota", OWN, object);
        }
    }
    all
}

/// The ProjectNamespace that a namespace was made for: an annotation.
pub(crate) const MADE_FOR: &str = "moorline.dev/project-namespace";

/// What members may do in the hub's own API.
pub(crate) fn published(projects: &All<ProjectSpec>) -> Vec<HubRule> {
    let list = |verbs: &[&str]| verbs.iter().map(|verb| (*verb).to_owned()).collect::<Vec<_>>();
    let mut all = Vec::new();
    for (name, project) in projects {
        for member in &project.spec.members {
            let rule = HubRule { users: member.users.clone(), groups: member.groups.clone(), ..HubRule::default() };
            all.push(HubRule {
                resource: "projects".to_owned(),
                verbs: list(&["get", "list", "watch"]),
                names: Some(vec![name.clone()]),
                ..rule.clone()
            });
            let verbs: &[&str] = if member.manage_namespaces {
                &["get", "list", "watch", "create", "delete"]
            } else {
                &["get", "list", "watch"]
            };
            all.push(HubRule {
                resource: "projectnamespaces".to_owned(),
                verbs: list(verbs),
                field: Some(("/spec/project".to_owned(), vec![name.clone()])),
                ..rule
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{PodSecurity, check_namespace, check_project};

    fn project(cluster: &str) -> ProjectSpec {
        let member = Member {
            users: vec!["ann".to_owned()],
            role: Some("edit".to_owned()),
            manage_namespaces: true,
            ..Member::default()
        };
        let looks = Member { groups: vec!["ops".to_owned()], template: Some("look".to_owned()), ..Member::default() };
        ProjectSpec {
            cluster: cluster.to_owned(),
            members: vec![member, looks],
            network_isolation: true,
            pod_security: Some(PodSecurity::Restricted),
            quota: BTreeMap::from([("pods".to_owned(), "10".to_owned())]),
            ..ProjectSpec::default()
        }
    }
    fn space(name: &str, project: &str, namespace: Option<&str>) -> HubObject<ProjectNamespaceSpec> {
        let spec = ProjectNamespaceSpec { project: project.to_owned(), namespace: namespace.map(str::to_owned) };
        let mut object = HubObject::new(name, spec);
        object.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        object
    }
    fn inputs(projects: Vec<(&str, ProjectSpec)>, spaces: Vec<HubObject<ProjectNamespaceSpec>>) -> Inputs {
        let named = |(name, spec): (&str, ProjectSpec)| (name.to_owned(), Arc::new(HubObject::new(name, spec)));
        let share = BTreeMap::from([("pods".to_owned(), "10".to_owned())]);
        Inputs {
            projects: Arc::new(projects.into_iter().map(named).collect()),
            namespaces: Arc::new(spaces.into_iter().map(|s| (s.name().to_owned(), Arc::new(s))).collect()),
            shares: Arc::new(BTreeMap::from([("shop".to_owned(), share)])),
        }
    }
    fn there(inputs: &Inputs, cluster: &str) -> Vec<String> {
        let facts = ClusterFacts {
            name: cluster.to_owned(),
            uid: String::new(),
            labels: BTreeMap::new(),
            connected: true,
            session: String::new(),
            leaving: false,
        };
        desired(inputs, &facts).keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_namespace_has_what_its_project_says() {
        let inputs = inputs(vec![("web", project("a"))], vec![space("shop", "web", None), space("x", "gone", None)]);
        let all = [
            "Namespace shop",
            "NetworkPolicy shop/moorline-project",
            "ResourceQuota shop/moorline-project",
            "RoleBinding shop/moorline-member:edit",
            "RoleBinding shop/moorline-member:moorline:look",
        ];
        assert_eq!(there(&inputs, "a"), all);
        assert!(there(&inputs, "b").is_empty(), "s53: another cluster");
    }

    #[test]
    fn a_namespace_goes_only_with_its_own_object() {
        let mut leaving = space("shop", "web", None);
        leaving.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2030-01-01T00:00:00Z")).unwrap());
        let all = inputs(vec![("web", project("a"))], vec![leaving]);
        let facts = ClusterFacts {
            name: "a".to_owned(),
            uid: String::new(),
            labels: BTreeMap::new(),
            connected: true,
            session: String::new(),
            leaving: false,
        };
        let there = desired(&all, &facts);
        assert_eq!(there.into_values().collect::<Vec<_>>(), [ABSENT]);
        let mut not_held = space("shop", "web", None);
        not_held.metadata.finalizers = None;
        assert!(desired(&inputs(vec![("web", project("a"))], vec![not_held]), &facts).is_empty());
        let orphan = inputs(vec![], vec![space("shop", "web", None)]);
        assert!(desired(&orphan, &facts).is_empty(), "its project went: let go, not deleted");
    }

    #[test]
    fn a_namespace_belongs_to_one_project() {
        let mut adopting = project("a");
        adopting.namespaces = vec!["shop".to_owned()];
        let all = inputs(vec![("old", adopting), ("web", project("a"))], vec![space("one", "web", Some("shop"))]);
        let owners = namespaces(&all.projects, &all.namespaces, "a");
        assert_eq!(owners["shop"], ("old", Origin::Adopted));
        let all =
            inputs(vec![("web", project("a"))], vec![space("b", "web", Some("shop")), space("a", "web", Some("shop"))]);
        assert_eq!(namespaces(&all.projects, &all.namespaces, "a")["shop"], ("web", Origin::Made("a")));
    }

    #[test]
    fn members_make_namespaces_in_their_own_projects_only() {
        let inputs = inputs(vec![("web", project("a"))], Vec::new());
        let rules = published(&inputs.projects);
        let creates: Vec<_> = rules.iter().filter(|rule| rule.verbs.contains(&"create".to_owned())).collect();
        assert_eq!(creates.len(), 1);
        assert_eq!(creates[0].users, ["ann"]);
        assert_eq!(creates[0].field, Some(("/spec/project".to_owned(), vec!["web".to_owned()])));
        assert!(
            rules
                .iter()
                .all(|rule| !rule.verbs.contains(&"update".to_owned()) && !rule.verbs.contains(&"patch".to_owned()))
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let moved = check_namespace(&space("shop", "other", None), Some(&space("shop", "web", None)));
        assert_eq!(moved.len(), 1, "s53");
        for name in ["kube-system", "default", "moorline", "Shop", "-x", "a.b"] {
            assert_eq!(check_namespace(&space("x", "web", Some(name)), None).len(), 1, "{name}");
        }
        let wrong = |change: fn(&mut ProjectSpec)| {
            let mut spec = project("a");
            change(&mut spec);
            check_project(&HubObject::new("web", spec), Some(&HubObject::new("web", project("a")))).len()
        };
        assert_eq!(wrong(|_| ()), 0);
        assert_eq!(wrong(|p| p.cluster = "b".to_owned()), 1);
        assert_eq!(wrong(|p| p.members[0].role = None), 1);
        assert_eq!(wrong(|p| p.members[0].users.push("system:admin".to_owned())), 1);
        assert_eq!(wrong(|p| drop(p.quota.insert("pods".to_owned(), "many".to_owned()))), 1);
        assert_eq!(wrong(|p| p.namespaces.push("kube-system".to_owned())), 1);
    }
}
