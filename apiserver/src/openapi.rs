//! OpenAPI documents: schemas for `kubectl explain`, and paths that say that the server validates fields, so that
//! clients leave it to the server.

use crate::{KindSpec, discovery, patch};
use serde_json::{Map, Value, json};

/// What tells the two versions of the document apart, so far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V2,
    V3,
}

/// The whole API in version 2.
pub(crate) fn v2(kinds: &[KindSpec]) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for gv in discovery::groups(kinds) {
        describe(kinds, gv, Version::V2, &mut paths, &mut schemas);
    }
    json!({
        "swagger": "2.0", "info": { "title": "Moorline", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths, "definitions": schemas,
    })
}

/// One group in version 3.
pub(crate) fn v3(kinds: &[KindSpec], gv: (&str, &str)) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    describe(kinds, gv, Version::V3, &mut paths, &mut schemas);
    json!({
        "openapi": "3.0.0", "info": { "title": "Moorline", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths, "components": { "schemas": schemas },
    })
}

fn describe(
    kinds: &[KindSpec],
    gv: (&str, &str),
    version: Version,
    paths: &mut Map<String, Value>,
    schemas: &mut Map<String, Value>,
) {
    for kind in discovery::of(kinds, gv) {
        let name = schema_name(kind);
        let many = format!("/apis/{}/{}/{}", kind.group, kind.version, kind.plural);
        let all = |actions: &[(&str, &str)]| -> Value {
            actions.iter().map(|(method, action)| ((*method).to_owned(), operation(kind, action, version))).collect()
        };
        let one = [("get", "get"), ("put", "put"), ("patch", "patch"), ("delete", "delete")];
        paths.insert(format!("{many}/{{name}}"), all(&one));
        if kind.has_status {
            paths.insert(format!("{many}/{{name}}/status"), all(&one[..3]));
        }
        paths.insert(many, all(&[("get", "list"), ("post", "post"), ("delete", "deletecollection")]));
        let mut schema = (*kind.whole).clone();
        if version == Version::V2 {
            for_version_2(&mut schema);
        }
        schema["x-kubernetes-group-version-kind"] =
            json!([{ "group": kind.group, "version": kind.version, "kind": kind.kind }]);
        let list = json!({
            "type": "object", "required": ["items"],
            "properties": {
                "apiVersion": { "type": "string" }, "kind": { "type": "string" }, "metadata": { "type": "object" },
                "items": { "type": "array", "items": reference(&name, version) },
            },
            "x-kubernetes-group-version-kind":
                [{ "group": kind.group, "version": kind.version, "kind": format!("{}List", kind.kind) }],
        });
        schemas.insert(format!("{name}List"), list);
        schemas.insert(name, schema);
    }
}

/// `dev.moorline.v1alpha1.Cluster`
fn schema_name(kind: &KindSpec) -> String {
    let mut group: Vec<&str> = kind.group.split('.').collect();
    group.reverse();
    format!("{}.{}.{}", group.join("."), kind.version, kind.kind)
}

fn reference(name: &str, version: Version) -> Value {
    let place = if version == Version::V2 { "definitions" } else { "components/schemas" };
    json!({ "$ref": format!("#/{place}/{name}") })
}

fn operation(kind: &KindSpec, action: &str, version: Version) -> Value {
    let name = schema_name(kind);
    let answer = reference(&if action == "list" { format!("{name}List") } else { name.clone() }, version);
    let parameter = |name: &str| match version {
        Version::V2 => json!({ "name": name, "in": "query", "type": "string", "uniqueItems": true }),
        Version::V3 => json!({ "name": name, "in": "query", "schema": { "type": "string" } }),
    };
    let mut parameters = Vec::new();
    if matches!(action, "post" | "put" | "patch") {
        parameters.extend(["dryRun", "fieldManager", "fieldValidation"].map(parameter));
    }
    if action == "patch" {
        parameters.push(parameter("force"));
    }
    let mut out = json!({
        "x-kubernetes-action": action, "operationId": format!("{action}{}", kind.kind),
        "x-kubernetes-group-version-kind": { "group": kind.group, "version": kind.version, "kind": kind.kind },
    });
    let media: Vec<&str> =
        if action == "patch" { patch::KNOWN.to_vec() } else { vec!["application/json", "application/yaml"] };
    let takes_body = matches!(action, "post" | "put" | "patch");
    let body = if action == "patch" { json!({ "type": "object" }) } else { reference(&name, version) };
    match version {
        Version::V2 => {
            if takes_body {
                parameters.push(json!({ "name": "body", "in": "body", "required": true, "schema": body }));
                out["consumes"] = json!(media);
            }
            out["produces"] = json!(["application/json", "application/yaml"]);
            out["responses"] = json!({ "200": { "description": "OK", "schema": answer } });
        }
        Version::V3 => {
            if takes_body {
                let content: Map<String, Value> =
                    media.iter().map(|m| ((*m).to_owned(), json!({ "schema": body }))).collect();
                out["requestBody"] = json!({ "required": true, "content": content });
            }
            let content = json!({ "application/json": { "schema": answer } });
            out["responses"] = json!({ "200": { "description": "OK", "content": content } });
        }
    }
    out["parameters"] = parameters.into();
    out
}

/// Version 2 has no `nullable`, `anyOf` or `oneOf`.
fn for_version_2(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            for word in ["nullable", "anyOf", "oneOf"] {
                // A property may have that name; a keyword is no schema.
                if !map.get(word).is_some_and(Value::is_object) {
                    map.remove(word);
                }
            }
            map.values_mut().for_each(for_version_2);
        }
        Value::Array(items) => items.iter_mut().for_each(for_version_2),
        _ => {}
    }
}
