//! What clients ask before they ask for objects: groups, versions, kinds.

use crate::{
    KindSpec,
    negotiate::{Discovery, Reply},
    openapi, openapi_pb,
};
use serde_json::{Map, Value, json};

/// Groups with their versions, in the order of their kinds.
pub(crate) fn groups(kinds: &[KindSpec]) -> Vec<(&'static str, &'static str)> {
    let mut all = Vec::new();
    for gv in kinds.iter().map(|k| (k.group, k.version)) {
        if !all.contains(&gv) {
            all.push(gv);
        }
    }
    all
}

/// The names of the groups, each with its versions; the one that is preferred comes first.
fn by_name(kinds: &[KindSpec]) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut all: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, version) in groups(kinds) {
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some((_, versions)) => versions.push(version),
            None => all.push((name, vec![version])),
        }
    }
    all.iter_mut().for_each(|(_, versions)| versions.sort_by_key(|version| std::cmp::Reverse(priority(version))));
    all
}

/// The order of <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definition-versioning/#version-priority>:
/// `v2`, `v1`, `v1beta2`, `v1beta1`, `v1alpha1`, anything else.
fn priority(version: &str) -> (u8, u32, u32) {
    let read = || {
        let rest = version.strip_prefix('v')?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (major, rest) = rest.split_at(end);
        let major = major.parse().ok()?;
        match rest {
            "" => Some((3, major, 0)),
            rest => {
                let (rank, minor) =
                    rest.strip_prefix("beta").map(|n| (2, n)).or(rest.strip_prefix("alpha").map(|n| (1, n)))?;
                Some((rank, major, minor.parse().ok()?))
            }
        }
    };
    read().unwrap_or_default()
}

/// The kinds of one group and version.
pub(crate) fn of<'a>(kinds: &'a [KindSpec], gv: (&'a str, &'a str)) -> impl Iterator<Item = &'a KindSpec> {
    kinds.iter().filter(move |k| (k.group, k.version) == gv)
}

fn group(name: &str, versions: &[&str]) -> Value {
    let version = |version| json!({ "groupVersion": format!("{name}/{version}"), "version": version });
    let all: Vec<Value> = versions.iter().map(version).collect();
    json!({ "kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": all, "preferredVersion": all.first() })
}

const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
const SUB_VERBS: [&str; 3] = ["get", "patch", "update"];

/// The subresources of a kind, with the group, version and kind of what they answer.
fn subresources(kind: &KindSpec) -> Vec<(&'static str, [&'static str; 3])> {
    let status = kind.has_status.then_some(("status", [kind.group, kind.version, kind.kind]));
    let scale = kind.scale.map(|_| ("scale", ["autoscaling", "v1", "Scale"]));
    status.into_iter().chain(scale).collect()
}

fn resources(kinds: &[KindSpec], gv: (&str, &str)) -> Value {
    let mut all = Vec::new();
    for kind in of(kinds, gv) {
        let mut resource = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": false, "kind": kind.kind, "verbs": VERBS,
        });
        for (field, names) in [("shortNames", kind.short_names), ("categories", kind.categories)] {
            if !names.is_empty() {
                resource[field] = json!(names);
            }
        }
        all.push(resource);
        for (name, [group, version, answers]) in subresources(kind) {
            let mut resource = json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": false, "kind": answers,
                "verbs": SUB_VERBS,
            });
            if group != kind.group {
                resource["group"] = group.into();
                resource["version"] = version.into();
            }
            all.push(resource);
        }
    }
    let version = format!("{}/{}", gv.0, gv.1);
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": all })
}

/// Everything at once: <https://kubernetes.io/docs/concepts/overview/kubernetes-api/#aggregated-discovery>.
fn aggregated(kinds: &[KindSpec], version: &str) -> Value {
    let of_version = |gv: (&str, &str)| {
        let resources = of(kinds, gv).map(|kind| {
            let mut resource = json!({
                "resource": kind.plural, "scope": "Cluster", "singularResource": kind.singular, "verbs": VERBS,
                "responseKind": { "group": kind.group, "version": kind.version, "kind": kind.kind },
            });
            for (field, names) in [("shortNames", kind.short_names), ("categories", kind.categories)] {
                if !names.is_empty() {
                    resource[field] = json!(names);
                }
            }
            let below = subresources(kind).into_iter().map(|(name, [group, version, answers])| {
                json!({
                    "subresource": name, "verbs": SUB_VERBS,
                    "responseKind": { "group": group, "version": version, "kind": answers },
                })
            });
            resource["subresources"] = below.collect();
            resource
        });
        json!({ "version": gv.1, "resources": resources.collect::<Value>(), "freshness": "Current" })
    };
    let items = by_name(kinds).into_iter().map(|(name, versions)| {
        let versions: Vec<Value> = versions.into_iter().map(|version| of_version((name, version))).collect();
        json!({ "metadata": { "name": name, "creationTimestamp": null }, "versions": versions })
    });
    list(version, items.collect())
}

fn list(version: &str, items: Value) -> Value {
    let version = format!("apidiscovery.k8s.io/{version}");
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": version, "metadata": {}, "items": items })
}

/// Whether a path is one of the documents here.
pub(crate) fn serves(kinds: &[KindSpec], path: &str) -> bool {
    answer(kinds, path, Discovery::Legacy).is_some()
}

/// The answer for a discovery path; `None`: no such path.
pub(crate) fn answer(kinds: &[KindSpec], path: &str, form: Discovery) -> Option<Reply> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let value = match (parts.as_slice(), form) {
        (["api"], Discovery::Aggregated(version)) => list(version, json!([])),
        (["apis"], Discovery::Aggregated(version)) => aggregated(kinds, version),
        (["api"], Discovery::Legacy) => {
            json!({ "kind": "APIVersions", "versions": [], "serverAddressByClientCIDRs": [] })
        }
        (["apis"], Discovery::Legacy) => {
            let all: Vec<Value> = by_name(kinds).iter().map(|(name, versions)| group(name, versions)).collect();
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": all })
        }
        (["openapi", "v2"], Discovery::Protobuf) => {
            let mut reply = Reply::ok(Value::Null);
            reply.media = form.media();
            reply.written = Some(openapi_pb::document(&openapi::v2(kinds)));
            return Some(reply);
        }
        _ => return document(kinds, &parts).map(Reply::ok),
    };
    let mut reply = Reply::ok(value);
    reply.media = form.media();
    Some(reply)
}

fn document(kinds: &[KindSpec], path: &[&str]) -> Option<Value> {
    let known = |name: &str, version: &str| groups(kinds).into_iter().find(|gv| *gv == (name, version));
    match path {
        ["apis", name] => by_name(kinds).iter().find(|(g, _)| g == name).map(|(g, versions)| group(g, versions)),
        ["apis", name, version] => known(name, version).map(|gv| resources(kinds, gv)),
        ["version"] => Some(version()),
        ["openapi", "v2"] => Some(openapi::v2(kinds)),
        ["openapi", "v3"] => {
            let paths: Map<String, Value> = groups(kinds)
                .into_iter()
                .map(|(g, v)| {
                    (format!("apis/{g}/{v}"), json!({ "serverRelativeURL": format!("/openapi/v3/apis/{g}/{v}") }))
                })
                .collect();
            Some(json!({ "paths": paths }))
        }
        ["openapi", "v3", "apis", name, version] => known(name, version).map(|gv| openapi::v3(kinds, gv)),
        _ => None,
    }
}

/// The version of this API server, in the shape of Kubernetes' own. The number tells clients which API machinery to
/// expect; the software's own version stands behind it.
fn version() -> Value {
    let own = env!("CARGO_PKG_VERSION");
    json!({
        "major": "1", "minor": "32", "gitVersion": format!("v1.32.0+moorline.{own}"), "gitCommit": "",
        "gitTreeState": "", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_preferred_as_kubernetes_has_it() {
        let mut all = ["v1alpha1", "v10", "foo1", "v1beta2", "v2", "v11alpha2", "v1", "v1beta10", "v3beta1"];
        all.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        assert_eq!(all, ["v10", "v2", "v1", "v3beta1", "v1beta10", "v1beta2", "v11alpha2", "v1alpha1", "foo1"]);
    }
}
