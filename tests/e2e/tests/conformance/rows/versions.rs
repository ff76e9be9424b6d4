//! A kind that is served in two versions, with nothing to convert between them (`strategy: None`).

use super::*;

const DOC: &str = "tasks/extend-kubernetes/custom-resources/custom-resource-definition-versioning";

fn at(version: &str, rest: &str) -> String {
    format!("//apis/fleet.example/{version}/buoys{rest}")
}

fn buoy(version: &str, name: &str, more: Value) -> Value {
    let mut buoy = json!({
        "apiVersion": format!("fleet.example/{version}"), "kind": "Buoy", "metadata": { "name": name },
        "spec": { "colour": "red" },
    });
    lay(&mut buoy, &more);
    buoy
}

pub fn versions() -> Vec<Row> {
    let (old, new) = ("v1alpha1", "v1beta1");
    let made = || post(&at(old, ""), buoy(old, "ada", json!({})));
    vec![
        row(
            "object_is_there_in_each_version",
            DOC,
            vec![made(), get(&at(new, "/ada")), get(&at(old, "/ada")), get(&at(new, "")), get(&at(old, ""))],
        ),
        row(
            "object_is_made_in_either_version",
            DOC,
            vec![post(&at(new, ""), buoy(new, "bob", json!({}))), get(&at(old, "/bob"))],
        ),
        row("body_of_another_version_is_refused", DOC, vec![post(&at(new, ""), buoy(old, "ada", json!({})))])
            .without(&["/body/message"]),
        row(
            "body_of_another_version_is_refused_on_update",
            DOC,
            vec![made(), put(&at(new, "/ada"), buoy(old, "ada", json!({"metadata": {"resourceVersion": "{rv:1}"}})))],
        )
        .without(&["/body/message"]),
        row(
            "update_in_one_version_is_seen_in_the_other",
            DOC,
            vec![
                made(),
                put(
                    &at(new, "/ada"),
                    buoy(new, "ada", json!({"metadata": {"resourceVersion": "{rv:1}"}, "spec": {"colour": "green"}})),
                ),
                get(&at(old, "/ada")),
                put(&at(old, "/ada"), buoy(old, "ada", json!({"metadata": {"resourceVersion": "{rv:1}"}}))),
            ],
        ),
        row(
            "patch_in_one_version_is_seen_in_the_other",
            DOC,
            vec![
                made(),
                merge(&at(new, "/ada"), json!({"spec": {"lit": true}})),
                json_patch(&at(old, "/ada"), json!([{"op": "replace", "path": "/spec/colour", "value": "blue"}])),
                get(&at(new, "/ada")),
            ],
        ),
        row(
            "apply_in_one_version_is_seen_in_the_other",
            DOC,
            vec![
                apply(&at(new, "/ada?fieldManager=me"), buoy(new, "ada", json!({}))),
                apply(&at(old, "/ada?fieldManager=me"), buoy(old, "ada", json!({"spec": {"colour": "green"}}))),
                get(&at(new, "/ada")),
            ],
        ),
        row(
            "apply_of_another_version_conflicts_too",
            DOC,
            vec![
                apply(&at(new, "/ada?fieldManager=me"), buoy(new, "ada", json!({}))),
                apply(&at(old, "/ada?fieldManager=you"), buoy(old, "ada", json!({"spec": {"colour": "green"}}))),
            ],
        )
        .without(&["/body/message", "/body/details"]),
        row(
            "watch_is_in_the_version_asked_for",
            DOC,
            vec![
                made(),
                merge(&at(old, "/ada"), json!({"spec": {"lit": true}})),
                delete(&at(old, "/ada")),
                get(&at(new, "?watch=1&timeoutSeconds=1&resourceVersion={rv:1}")),
            ],
        ),
        row(
            "status_in_one_version_is_seen_in_the_other",
            DOC,
            vec![made(), merge(&at(new, "/ada/status"), json!({"status": {"place": "here"}})), get(&at(old, "/ada"))],
        ),
        row(
            "unknown_field_is_warned_of_in_each_version",
            DOC,
            vec![
                merge(&at(new, "/ada"), json!({})),
                post(&at(new, "?fieldValidation=Strict"), buoy(new, "ada", json!({"spec": {"size": 3}}))),
            ],
        )
        .newer("1.25", "404 NotFound, 400 BadRequest"),
        row("deletion_in_either_version", DOC, vec![made(), delete(&at(new, "/ada")), get(&at(old, "/ada"))]),
        row("version_that_is_not_served", DOC, vec![get(&at("v1", "/ada"))]).without(&["/body"]),
        row(
            "group_tells_of_its_versions_by_priority",
            DOC,
            vec![get("//apis/fleet.example"), get("//apis/fleet.example/v1beta1")],
        )
        .without(&["/body/resources/storageVersionHash"]),
    ]
}
