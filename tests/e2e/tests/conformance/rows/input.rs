//! What is wrong with what was sent, and patches.

use super::*;

/// An object that is deeper than any stack.
fn nested(depth: usize) -> String {
    let (open, close) = ("{\"a\":".repeat(depth), "}".repeat(depth));
    format!(
        r#"{{"apiVersion":"moorline.dev/v1alpha1","kind":"Boat","metadata":{{"name":"ada"}},"spec":{open}1{close}}}"#
    )
}

pub fn bad_input() -> Vec<Row> {
    let bad = |more: Value| vec![post("/boats", boat("ada", more))];
    vec![
        row("name_in_capitals_is_invalid", NAMES, vec![post("/boats", boat("ADA", json!({})))]),
        row("name_too_long_is_invalid", NAMES, vec![post("/boats", boat(&"a".repeat(254), json!({})))]),
        row("wrong_type_names_the_field", CRD, bad(json!({"spec": {"metres": "long"}})))
            .newer("1.23: the cause is FieldValueTypeInvalid", "422 Invalid"),
        row(
            "missing_field_is_required",
            CRD,
            vec![post(
                "/boats",
                json!({"apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "metadata": {"name": "ada"}, "spec": {}}),
            )],
        ),
        row("number_above_the_maximum_is_invalid", CRD, bad(json!({"spec": {"metres": 401}}))),
        row("number_below_the_minimum_is_invalid", CRD, bad(json!({"spec": {"metres": -1}}))),
        row("value_outside_the_enum_is_unsupported", CRD, bad(json!({"spec": {"flag": "blue"}}))),
        row("double_entry_of_a_set_is_invalid", CRD, bad(json!({"spec": {"crew": ["a", "a"]}}))),
        row("double_key_of_a_list_is_invalid", CRD, bad(json!({"spec": {"berths": [{"name": "a"}, {"name": "a"}]}})))
            .without(&["/body/message", "/body/details/causes/message"]),
        row("missing_field_in_a_list_names_the_entry", CRD, bad(json!({"spec": {"berths": [{"size": 1}]}})))
            .newer("1.23: the entry is named too", "422 Invalid"),
        row("two_wrongs_are_two_causes", CRD, bad(json!({"spec": {"metres": "long", "flag": "blue"}})))
            .newer("1.23: the cause is FieldValueTypeInvalid", "422 Invalid"),
        row("bad_label_value_is_invalid", LABELS, bad(json!({"metadata": {"labels": {"a": "b c"}}}))),
        row("bad_label_key_is_invalid", LABELS, bad(json!({"metadata": {"labels": {"a b": "c"}}}))),
        row("too_long_a_label_value_is_invalid", LABELS, bad(json!({"metadata": {"labels": {"a": "x".repeat(64)}}}))),
        row(
            "too_many_annotations_are_invalid",
            LABELS,
            bad(json!({"metadata": {"annotations": {"a": "x".repeat(257 << 10)}}})),
        ),
        row("labels_that_are_no_texts_are_refused", LABELS, bad(json!({"metadata": {"labels": {"a": 5}}})))
            .without(&["/body/message"]),
        row("a_name_that_is_no_text_is_refused", NAMES, bad(json!({"metadata": {"name": 5}})))
            .without(&["/body/message"]),
        row("bad_annotation_key_is_invalid", LABELS, bad(json!({"metadata": {"annotations": {"a b": "c"}}}))),
        row("bad_finalizer_is_invalid", FINALIZERS, bad(json!({"metadata": {"finalizers": ["a b"]}}))),
        row(
            "owner_without_a_uid_is_invalid",
            GARBAGE,
            bad(json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x"}]}})),
        ),
        row(
            "two_controllers_are_invalid",
            GARBAGE,
            bad(json!({"metadata": {"ownerReferences": [
                {"apiVersion": "v1", "kind": "X", "name": "x", "uid": "1", "controller": true},
                {"apiVersion": "v1", "kind": "X", "name": "y", "uid": "2", "controller": true},
            ]}})),
        )
        .without(&["/body/message", "/body/details/causes/message"]),
        row(
            "another_kind_in_the_body_is_refused",
            CONVENTIONS,
            vec![post(
                "/boats",
                json!({"apiVersion": "moorline.dev/v1alpha1", "kind": "Ship", "metadata": {"name": "ada"}, "spec": {"metres": 1}}),
            )],
        ),
        row(
            "another_version_in_the_body_is_refused",
            CONVENTIONS,
            vec![post(
                "/boats",
                json!({"apiVersion": "moorline.dev/v9", "kind": "Boat", "metadata": {"name": "ada"}, "spec": {"metres": 1}}),
            )],
        ),
        row(
            "no_kind_in_the_body_is_that_of_the_path",
            CONVENTIONS,
            vec![post("/boats", json!({"metadata": {"name": "ada"}, "spec": {"metres": 1}}))],
        )
        .different("the path says it, as for Kubernetes' own kinds", "201"),
        row("broken_json_is_refused", CONVENTIONS, vec![ask("POST", "/boats", JSON, "{")]).without(&["/body/message"]),
        row("an_array_is_no_object", CONVENTIONS, vec![ask("POST", "/boats", JSON, "[]")]).without(&["/body/message"]),
        row(
            "an_object_of_three_mib_is_too_large",
            CONCEPTS,
            bad(json!({"spec": {"crew": ["x".repeat((3 << 20) + (64 << 10))]}})),
        )
        .without(&["/body/message", "/body/details"]),
        row("what_is_nested_without_end_is_refused", CONCEPTS, vec![ask("POST", "/boats", JSON, nested(100_000))])
            .without(&["/body/message"]),
        row("an_empty_body_is_refused", CONVENTIONS, vec![ask("POST", "/boats", JSON, "")]).without(&["/body/message"]),
        row("unknown_fields_are_dropped", CRD, bad(json!({"spec": {"mast": 2}})))
            .newer("1.25: a warning names the field", "201"),
        row(
            "unknown_fields_are_refused_when_strict",
            CONCEPTS,
            vec![post("/boats?fieldValidation=Strict", boat("ada", json!({"spec": {"mast": 2}})))],
        )
        .newer("1.25: fieldValidation", "400 BadRequest"),
        row(
            "unknown_fields_are_ignored_when_asked",
            CONCEPTS,
            vec![post("/boats?fieldValidation=Ignore", boat("ada", json!({"spec": {"mast": 2}})))],
        ),
        row("null_for_a_default_gets_the_default", CRD, bad(json!({"spec": {"replicas": null}}))),
        row(
            "protobuf_is_an_unsupported_type",
            CONCEPTS,
            vec![ask("POST", "/boats", "application/vnd.kubernetes.protobuf", "k8s")],
        )
        .different("415 says what is wrong", "415 UnsupportedMediaType"),
        row(
            "form_data_is_an_unsupported_type",
            CONCEPTS,
            vec![ask("POST", "/boats", "application/x-www-form-urlencoded", "a=b")],
        )
        .without(&["/body/message"]),
        row(
            "yaml_is_taken",
            CONCEPTS,
            vec![ask(
                "POST",
                "/boats",
                "application/yaml",
                "apiVersion: moorline.dev/v1alpha1\nkind: Boat\nmetadata: {name: ada}\nspec: {metres: 3}\n",
            )],
        ),
    ]
}

pub fn patches() -> Vec<Row> {
    let ada = || post("/boats", boat("ada", json!({"metadata": {"labels": {"a": "b"}}, "spec": {"log": ["x"]}})));
    vec![
        row(
            "merge_patch_merges_and_removes",
            CONCEPTS,
            vec![
                ada(),
                merge(
                    "/boats/ada",
                    json!({"metadata": {"labels": {"a": null, "c": "d"}}, "spec": {"metres": 20, "log": ["y", "z"]}}),
                ),
            ],
        ),
        row(
            "json_patch_changes_in_order",
            CONCEPTS,
            vec![
                ada(),
                json_patch(
                    "/boats/ada",
                    json!([
                        {"op": "test", "path": "/spec/metres", "value": 10},
                        {"op": "add", "path": "/spec/log/-", "value": "y"},
                        {"op": "move", "from": "/metadata/labels/a", "path": "/metadata/labels/c"},
                    ]),
                ),
            ],
        ),
        row(
            "json_patch_whose_test_fails_is_invalid",
            CONCEPTS,
            vec![ada(), json_patch("/boats/ada", json!([{"op": "test", "path": "/spec/metres", "value": 11}]))],
        )
        .without(&["/body/message", "/body/details"]),
        row(
            "json_patch_of_no_place_is_invalid",
            CONCEPTS,
            vec![ada(), json_patch("/boats/ada", json!([{"op": "remove", "path": "/spec/nowhere"}]))],
        )
        .without(&["/body/message", "/body/details"]),
        row(
            "json_patch_that_is_none_is_refused",
            CONCEPTS,
            vec![ada(), json_patch("/boats/ada", json!({"op": "remove"}))],
        )
        .without(&["/body/message"]),
        row(
            "merge_patch_with_an_old_revision_conflicts",
            CONCEPTS,
            vec![
                ada(),
                merge("/boats/ada", json!({"spec": {"metres": 12}})),
                merge("/boats/ada", json!({"metadata": {"resourceVersion": "{rv:1}"}, "spec": {"metres": 13}})),
            ],
        ),
        row(
            "merge_patch_of_the_name_is_refused",
            CONCEPTS,
            vec![ada(), merge("/boats/ada", json!({"metadata": {"name": "bob"}}))],
        ),
        row(
            "merge_patch_to_something_invalid",
            CONCEPTS,
            vec![ada(), merge("/boats/ada", json!({"spec": {"metres": 401}}))],
        ),
        row(
            "merge_patch_that_is_no_object",
            CONCEPTS,
            vec![ada(), ask("PATCH", "/boats/ada", "application/merge-patch+json", "[")],
        )
        .different("a client's mistake is no 500", "201, 400 BadRequest"),
        row(
            "strategic_merge_is_unsupported",
            CRD,
            vec![ada(), ask("PATCH", "/boats/ada", "application/strategic-merge-patch+json", "{}")],
        )
        .without(&["/body/message"]),
        row("patch_of_nothing_is_not_found", CONCEPTS, vec![merge("/boats/ada", json!({"spec": {"metres": 1}}))]),
        row("force_is_for_apply_alone", APPLY, vec![ada(), merge("/boats/ada?force=true", json!({}))]),
    ]
}
