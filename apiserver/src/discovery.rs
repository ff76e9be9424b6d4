//! What clients ask before they ask for objects: groups, versions, kinds, schemas.

use crate::KindSpec;
use serde_json::{Map, Value, json};

/// Groups with their one version, in the order of their kinds.
fn groups(kinds: &[KindSpec]) -> Vec<(&'static str, &'static str)> {
    let mut all: Vec<_> = kinds.iter().map(|k| (k.group, k.version)).collect();
    all.dedup();
    all
}

fn group(name: &str, version: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/{version}"), "version": version });
    json!({ "kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": [version], "preferredVersion": version })
}

fn verbs() -> Value {
    json!(["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"])
}

fn resources(kinds: &[KindSpec], of: (&str, &str)) -> Value {
    let mut all = Vec::new();
    for kind in kinds.iter().filter(|k| (k.group, k.version) == of) {
        all.push(json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": false, "kind": kind.kind,
            "shortNames": kind.short_names, "verbs": verbs(),
        }));
        if kind.has_status {
            all.push(json!({
                "name": format!("{}/status", kind.plural), "singularName": "", "namespaced": false,
                "kind": kind.kind, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{}/{}", of.0, of.1), "resources": all,
    })
}

/// The answer for a discovery path; `None`: no such path.
pub(crate) fn answer(kinds: &[KindSpec], path: &str) -> Option<Value> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api"] => Some(json!({ "kind": "APIVersions", "versions": [], "serverAddressByClientCIDRs": [] })),
        ["apis"] => {
            let all: Vec<Value> = groups(kinds).into_iter().map(|(g, v)| group(g, v)).collect();
            Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": all }))
        }
        ["apis", name] => groups(kinds).into_iter().find(|(g, _)| g == name).map(|(g, v)| group(g, v)),
        ["apis", name, version] => {
            groups(kinds).into_iter().find(|gv| *gv == (*name, *version)).map(|gv| resources(kinds, gv))
        }
        ["version"] => Some(version()),
        ["openapi", "v3"] => {
            let paths: Map<String, Value> = groups(kinds)
                .into_iter()
                .map(|(g, v)| {
                    (format!("apis/{g}/{v}"), json!({ "serverRelativeURL": format!("/openapi/v3/apis/{g}/{v}") }))
                })
                .collect();
            Some(json!({ "paths": paths }))
        }
        ["openapi", "v3", "apis", name, version] => {
            groups(kinds).into_iter().find(|gv| *gv == (*name, *version)).map(|gv| openapi(kinds, gv))
        }
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

/// OpenAPI v3 of one group: schemas for `kubectl explain`, and paths that say that the server validates fields, so that
/// clients leave it to the server.
fn openapi(kinds: &[KindSpec], (group, version): (&str, &str)) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for kind in kinds.iter().filter(|k| (k.group, k.version) == (group, version)) {
        let gvk = json!({ "group": group, "version": version, "kind": kind.kind });
        let schema_name = format!("dev.moorline.{version}.{}", kind.kind);
        let reference = json!({ "$ref": format!("#/components/schemas/{schema_name}") });
        let parameter = |name: &str| json!({ "name": name, "in": "query", "schema": { "type": "string" } });
        let operation = |action: &str| {
            json!({
                "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk,
                "operationId": format!("{action}{}", kind.kind),
                "parameters": [parameter("fieldValidation"), parameter("dryRun"), parameter("fieldManager")],
                "responses": { "200": { "description": "OK", "content": { "application/json": { "schema": reference } } } },
            })
        };
        paths.insert(
            format!("/apis/{group}/{version}/{}", kind.plural),
            json!({ "get": operation("list"), "post": operation("post") }),
        );
        paths.insert(
            format!("/apis/{group}/{version}/{}/{{name}}", kind.plural),
            json!({ "get": operation("get"), "put": operation("put"), "patch": operation("patch"), "delete": operation("delete") }),
        );
        let mut properties = json!({
            "apiVersion": { "type": "string", "description": "Group and version of the object" },
            "kind": { "type": "string", "description": "Kind of the object" },
            "metadata": { "type": "object", "description": "Name, labels and the like" },
            "spec": kind.spec_schema.0,
        });
        if kind.has_status {
            properties["status"] = kind.status_schema.0.clone();
        }
        schemas.insert(
            schema_name,
            json!({ "type": "object", "properties": properties, "x-kubernetes-group-version-kind": [gvk] }),
        );
    }
    json!({
        "openapi": "3.0.0", "info": { "title": "Moorline", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths, "components": { "schemas": schemas },
    })
}
