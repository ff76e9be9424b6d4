//! What a cluster should have, and what users may do at the hub: pure functions of the hub's objects.

use crate::{
    kinds::{GlobalRoleBindingSpec, GlobalRoleSpec, PolicyRule, RoleTemplateSpec, TemplateBindingSpec},
    powers::may_give,
};
use moorline_plugin::{
    All, ClusterFacts, HubRule,
    mirror::{Key, Objects},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc};

/// Everything of the hub that clusters depend on.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    pub templates: Arc<All<RoleTemplateSpec>>,
    pub bindings: Arc<All<TemplateBindingSpec>>,
}

const RBAC: &str = "rbac.authorization.k8s.io";

/// The name in a cluster of what comes of an object of the hub.
pub(crate) fn name_there(name: &str) -> String {
    format!("moorline:{name}")
}

/// The rules of a template with those that it inherits. A circle ends where it began.
fn rules<'a>(
    all: &'a All<RoleTemplateSpec>,
    name: &'a str,
    seen: &mut BTreeSet<&'a str>,
    into: &mut Vec<&'a PolicyRule>,
) {
    let Some(template) = all.get(name).filter(|_| seen.insert(name)) else { return };
    for rule in &template.spec.rules {
        if !into.contains(&rule) {
            into.push(rule);
        }
    }
    for other in &template.spec.inherits {
        rules(all, other, seen, into);
    }
}

fn subjects(users: &[String], groups: &[String]) -> Value {
    let one = |kind: &'static str| move |name: &String| json!({ "apiGroup": RBAC, "kind": kind, "name": name });
    users.iter().map(one("User")).chain(groups.iter().map(one("Group"))).collect()
}

/// What a cluster should have.
pub(crate) fn desired(inputs: &Inputs, cluster: &ClusterFacts) -> Objects {
    let mut all = Objects::new();
    let meta = |name: &str| json!({ "name": name, "labels": {} });
    for name in inputs.templates.iter().filter(|(_, t)| t.spec.clusters.picks(cluster)).map(|(name, _)| name) {
        let (mut found, there) = (Vec::new(), name_there(name));
        rules(&inputs.templates, name, &mut BTreeSet::new(), &mut found);
        let object = json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole", "metadata": meta(&there), "rules": found,
        });
        all.insert(Key { kind: "ClusterRole", namespace: String::new(), name: there }, object);
    }
    for (name, binding) in inputs.bindings.iter().filter(|(_, binding)| binding.spec.clusters.picks(cluster)) {
        let (there, spec) = (name_there(name), &binding.spec);
        // A role that the cluster does not have permits nothing; a binding to it would wait for somebody else's.
        let role = inputs.templates.get(&spec.template).filter(|template| template.spec.clusters.picks(cluster));
        if role.is_none() || (spec.users.is_empty() && spec.groups.is_empty()) {
            continue;
        }
        let object = |kind: &str| {
            json!({
                "apiVersion": format!("{RBAC}/v1"), "kind": kind, "metadata": meta(&there),
                "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": name_there(&spec.template) },
                "subjects": subjects(&spec.users, &spec.groups),
            })
        };
        if spec.namespaces.is_empty() {
            let kind = "ClusterRoleBinding";
            all.insert(Key { kind, namespace: String::new(), name: there.clone() }, object(kind));
        }
        for namespace in &spec.namespaces {
            let mut made = object("RoleBinding");
            made["metadata"]["namespace"] = namespace.as_str().into();
            all.insert(Key { kind: "RoleBinding", namespace: namespace.clone(), name: there.clone() }, made);
        }
    }
    all
}

/// What users may do in the hub's own API.
pub(crate) fn published(roles: &All<GlobalRoleSpec>, bindings: &All<GlobalRoleBindingSpec>) -> Vec<HubRule> {
    let mut all = Vec::new();
    for binding in bindings.values() {
        let rules = roles.get(&binding.spec.role).map(|role| role.spec.rules.as_slice()).unwrap_or_default();
        for (rule, resource) in
            rules.iter().flat_map(|rule| rule.resources.iter().map(move |resource| (rule, resource)))
        {
            // A role that was written before a kind was found to give too much gives it no more.
            let verbs: Vec<_> = rule.verbs.iter().filter(|verb| may_give(resource, verb).is_ok()).cloned().collect();
            if verbs.len() < rule.verbs.len() {
                let role = &binding.spec.role;
                tracing::warn!(
                    role,
                    resource,
                    "a global role names verbs that only administrators have; they give nothing"
                );
            }
            if verbs.is_empty() {
                continue;
            }
            all.push(HubRule {
                users: binding.spec.users.clone(),
                groups: binding.spec.groups.clone(),
                resource: resource.clone(),
                verbs,
                names: (!rule.resource_names.is_empty()).then(|| rule.resource_names.clone()),
                field: None,
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{GlobalRule, check_binding, check_global, check_template};
    use moorline_plugin::{ClusterSelector, HubObject, Spec};
    use std::collections::BTreeMap;

    fn all<S: Spec>(objects: Vec<(&str, S)>) -> Arc<All<S>> {
        let named = |(name, spec): (&str, S)| (name.to_owned(), Arc::new(HubObject::new(name, spec)));
        Arc::new(objects.into_iter().map(named).collect())
    }
    fn cluster(name: &str) -> ClusterFacts {
        ClusterFacts {
            name: name.to_owned(),
            uid: "u".to_owned(),
            labels: BTreeMap::new(),
            connected: true,
            session: String::new(),
            leaving: false,
        }
    }
    fn only(name: &str) -> ClusterSelector {
        ClusterSelector { names: vec![name.to_owned()], ..ClusterSelector::default() }
    }
    fn rule(groups: &[&str], verb: &str) -> PolicyRule {
        PolicyRule {
            verbs: vec![verb.to_owned()],
            api_groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            resources: vec!["deployments".to_owned()],
            ..PolicyRule::default()
        }
    }
    fn template(rules: Vec<PolicyRule>, inherits: &[&str], clusters: ClusterSelector) -> RoleTemplateSpec {
        let inherits = inherits.iter().map(|i| (*i).to_owned()).collect();
        RoleTemplateSpec { display_name: None, rules, inherits, clusters }
    }
    fn names(objects: &Objects) -> Vec<String> {
        objects.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn s53_a_rule_for_a_group_is_for_that_group_and_a_binding_for_its_cluster() {
        let templates = all(vec![("dev", template(vec![rule(&["apps.x.io"], "get")], &[], ClusterSelector::all()))]);
        let binding = TemplateBindingSpec {
            template: "dev".to_owned(),
            users: vec!["ann".to_owned()],
            groups: vec!["ann".to_owned()],
            clusters: only("a"),
            namespaces: vec!["one".to_owned(), "two".to_owned()],
        };
        let whole = TemplateBindingSpec { namespaces: Vec::new(), ..binding.clone() };
        let inputs = Inputs { templates, bindings: all(vec![("some", binding), ("whole", whole)]) };
        let there = desired(&inputs, &cluster("a"));
        assert_eq!(
            names(&there),
            [
                "ClusterRole moorline:dev",
                "ClusterRoleBinding moorline:whole",
                "RoleBinding one/moorline:some",
                "RoleBinding two/moorline:some"
            ]
        );
        let role = &there[&Key { kind: "ClusterRole", namespace: String::new(), name: "moorline:dev".to_owned() }];
        assert_eq!(
            role["rules"],
            json!([{ "verbs": ["get"], "apiGroups": ["apps.x.io"], "resources": ["deployments"] }])
        );
        let bound = &there[&Key { kind: "RoleBinding", namespace: "one".to_owned(), name: "moorline:some".to_owned() }];
        let kinds: Vec<_> = bound["subjects"].as_array().unwrap().iter().map(|s| s["kind"].clone()).collect();
        assert_eq!(kinds, ["User", "Group"], "a user is not a group of that name");
        assert_eq!(names(&desired(&inputs, &cluster("b"))), ["ClusterRole moorline:dev"]);
    }

    #[test]
    fn inherited_rules_come_once_and_circles_end() {
        let templates = all(vec![
            ("a", template(vec![rule(&["apps"], "get")], &["b", "gone"], only("x"))),
            ("b", template(vec![rule(&["apps"], "get"), rule(&["apps"], "list")], &["a"], only("y"))),
        ]);
        let there = desired(&Inputs { templates, bindings: Arc::default() }, &cluster("x"));
        assert_eq!(names(&there), ["ClusterRole moorline:a"]);
        assert_eq!(there.values().next().unwrap()["rules"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_binding_to_what_the_cluster_does_not_have_is_not_made() {
        let binding = |template: &str| TemplateBindingSpec {
            template: template.to_owned(),
            users: vec!["ann".to_owned()],
            clusters: ClusterSelector::all(),
            ..TemplateBindingSpec::default()
        };
        let templates = all(vec![("elsewhere", template(vec![rule(&["apps"], "get")], &[], only("b")))]);
        let bindings = all(vec![("x", binding("elsewhere")), ("y", binding("nothing"))]);
        assert!(desired(&Inputs { templates, bindings }, &cluster("a")).is_empty());
    }

    #[test]
    fn s55_no_role_gives_more_than_its_maker_may_give() {
        let role = |resources: &[&str], verbs: &[&str]| {
            let list = |all: &[&str]| all.iter().map(|x| (*x).to_owned()).collect::<Vec<_>>();
            let rules = vec![GlobalRule { resources: list(resources), verbs: list(verbs), resource_names: Vec::new() }];
            check_global(&HubObject::new("r", GlobalRoleSpec { rules })).len()
        };
        assert_eq!(role(&["clusters", "jointokens"], &["get", "create", "delete"]), 0);
        assert_eq!(role(&["users", "tokens"], &["get", "list", "watch"]), 0);
        assert_eq!(role(&["users"], &["get", "patch"]), 1);
        assert_eq!(role(&["users/password"], &["update"]), 1);
        assert_eq!(role(&["globalrolebindings"], &["create"]), 1);
        assert_eq!(role(&["projects", "sharedsecrets", "nodeplans", "clusterimports"], &["create", "patch"]), 4);
        assert_eq!(role(&["clusterimports"], &["get"]), 1, "a kubeconfig stands in it");
        assert_eq!(role(&["*"], &["get"]), 1);
        assert_eq!(role(&["clusters"], &["*"]), 2, "no such verb, and none that is given");
        let binding = |user: &str| {
            let users = vec![user.to_owned()];
            check_binding(&HubObject::new("b", TemplateBindingSpec { users, ..TemplateBindingSpec::default() })).len()
        };
        assert_eq!((binding("ann"), binding("system:admin"), binding("moorline:plugin:rbac")), (0, 1, 1));
        let no_group = template(vec![rule(&[], "get")], &["t"], ClusterSelector::all());
        assert_eq!(check_template(&HubObject::new("t", no_group)).len(), 2);
    }

    #[test]
    fn a_global_role_counts_for_those_who_hold_it() {
        let rule = GlobalRule {
            resources: vec!["clusters".to_owned()],
            verbs: vec!["create".to_owned()],
            ..GlobalRule::default()
        };
        // As one may stand in a store from before: it gives what may be given.
        let older = GlobalRule {
            resources: vec!["projects".to_owned(), "sharedsecrets".to_owned()],
            verbs: vec!["get".to_owned(), "create".to_owned()],
            ..GlobalRule::default()
        };
        let roles =
            all(vec![("op", GlobalRoleSpec { rules: vec![rule] }), ("older", GlobalRoleSpec { rules: vec![older] })]);
        let bind = |role: &str| GlobalRoleBindingSpec {
            role: role.to_owned(),
            users: vec!["ann".to_owned()],
            groups: Vec::new(),
        };
        let rules = published(&roles, &all(vec![("b", bind("op")), ("c", bind("gone"))]));
        assert_eq!(rules.len(), 1);
        assert_eq!(
            (rules[0].users[0].as_str(), rules[0].resource.as_str(), &rules[0].names),
            ("ann", "clusters", &None)
        );
        let left = published(&roles, &all(vec![("b", bind("older"))]));
        let left: Vec<_> = left.iter().map(|rule| (rule.resource.as_str(), rule.verbs.join(","))).collect();
        assert_eq!(left, [("projects", "get".to_owned())], "s55");
    }
}
