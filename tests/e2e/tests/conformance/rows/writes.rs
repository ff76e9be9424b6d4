//! Create, update, apply.

use super::*;

pub fn objects() -> Vec<Row> {
    let ada = || post("/boats", boat("ada", json!({})));
    vec![
        row("create_gives_uid_time_generation_and_defaults", CONVENTIONS, vec![ada(), get("/boats/ada")]),
        row("create_twice_is_already_exists", CONVENTIONS, vec![ada(), ada()]),
        row("create_drops_what_the_server_sets", CONVENTIONS, vec![post(
            "/boats",
            boat("ada", json!({"metadata": {"uid": "x", "generation": 7, "creationTimestamp": "2001-01-01T00:00:00Z", "selfLink": "/x"}})),
        )]),
        row("create_drops_status", CRD, vec![post("/boats", boat("ada", json!({"status": {"place": "here"}})))]),
        row("create_with_a_resource_version_is_refused", CONCEPTS, vec![post("/boats", boat("ada", json!({"metadata": {"resourceVersion": "5"}})))]).different("a client's mistake is no 500", "400 BadRequest"),
        row("create_with_a_deletion_time_lives", CONVENTIONS, vec![post("/boats", boat("ada", json!({"metadata": {"deletionTimestamp": "2001-01-01T00:00:00Z"}})))]),
        row("generate_name_makes_a_name", NAMES, vec![post("/boats", json!({
            "apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "metadata": {"generateName": "b-"}, "spec": {"metres": 1},
        }))]).without(&["/body/metadata/name"]),
        row("a_name_wins_over_a_generated_one", NAMES, vec![post("/boats", boat("ada", json!({"metadata": {"generateName": "b-"}})))]),
        row("no_name_is_invalid", NAMES, vec![post("/boats", json!({
            "apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "metadata": {}, "spec": {"metres": 1},
        }))]),
        row("update_raises_generation_for_spec_alone", CRD, vec![
            ada(),
            put("/boats/ada", boat("ada", json!({"metadata": {"resourceVersion": "{rv:1}"}, "spec": {"metres": 11}}))),
            merge("/boats/ada", json!({"metadata": {"labels": {"a": "b"}}})),
        ]),
        row("update_without_a_resource_version_is_refused", CONCEPTS, vec![ada(), put("/boats/ada", boat("ada", json!({"spec": {"metres": 11}})))]),
        row("update_with_an_old_resource_version_conflicts", CONCEPTS, vec![
            ada(),
            merge("/boats/ada", json!({"spec": {"metres": 12}})),
            put("/boats/ada", boat("ada", json!({"metadata": {"resourceVersion": "{rv:1}"}, "spec": {"metres": 11}}))),
        ]),
        row("update_with_another_uid_conflicts", CONVENTIONS, vec![
            ada(),
            put("/boats/ada", boat("ada", json!({"metadata": {"resourceVersion": "{rv:1}", "uid": "other"}}))),
        ]).without(&["/body/message"]),
        row("update_with_another_name_is_refused", CONVENTIONS, vec![
            ada(),
            put("/boats/ada", boat("bob", json!({"metadata": {"resourceVersion": "{rv:1}"}}))),
        ]),
        row("update_of_nothing_is_not_found", CONVENTIONS, vec![put("/boats/ada", boat("ada", json!({"metadata": {"resourceVersion": "5"}})))]),
        row("update_that_changes_nothing_keeps_the_revision", CONCEPTS, vec![
            ada(),
            put("/boats/ada", boat("ada", json!({"metadata": {"resourceVersion": "{rv:1}"}}))),
            put("/boats/ada", boat("ada", json!({"metadata": {"resourceVersion": "{rv:1}"}}))),
        ]),
        row("update_keeps_the_status", CRD, vec![
            ada(),
            merge("/boats/ada/status", json!({"status": {"place": "here"}})),
            put("/boats/ada", boat("ada", json!({"metadata": {"resourceVersion": "{rv:2}"}, "status": {"place": "there"}}))),
        ]),
        row("status_update_keeps_spec_and_generation", CRD, vec![
            ada(),
            put("/boats/ada/status", boat("ada", json!({"metadata": {"resourceVersion": "{rv:1}"}, "spec": {"metres": 99}, "status": {"place": "here"}}))),
        ]),
        row("status_update_keeps_labels", CRD, vec![
            ada(),
            merge("/boats/ada/status", json!({"metadata": {"labels": {"a": "b"}}, "status": {"place": "here"}})),
        ]),
        row("status_is_readable_as_the_object", CRD, vec![ada(), get("/boats/ada/status")]),
        row("status_of_nothing_is_not_found", CRD, vec![merge("/boats/ada/status", json!({"status": {}}))]),
        row("scale_shows_the_replicas", CRD, vec![ada(), get("/boats/ada/scale")]),
        row("scale_update_sets_the_replicas", CRD, vec![
            ada(),
            put("/boats/ada/scale", json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "ada", "resourceVersion": "{rv:1}"}, "spec": {"replicas": 5}})),
            get("/boats/ada"),
        ]),
        row("scale_patch_sets_the_replicas", CRD, vec![ada(), merge("/boats/ada/scale", json!({"spec": {"replicas": 3}})), get("/boats/ada")]),
        row("scale_conflicts_like_the_object", CRD, vec![
            ada(),
            merge("/boats/ada", json!({"spec": {"metres": 12}})),
            put("/boats/ada/scale", json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "ada", "resourceVersion": "{rv:1}"}, "spec": {"replicas": 5}})),
        ]),
        row("scale_of_a_kind_without_is_not_found", CRD, vec![get("/lines/x/scale")]).without(&["/body/message", "/body/details"]),
        row("get_of_nothing_is_not_found", CONVENTIONS, vec![get("/boats/ada")]),
        row("unknown_resource_is_not_found", CONCEPTS, vec![get("/ships")]).without(&["/body"]),
        row("unknown_version_is_not_found", CONCEPTS, vec![get("//apis/moorline.dev/v9/boats")]).without(&["/body"]),
        row("post_to_a_name_is_not_allowed", CONVENTIONS, vec![ask("POST", "/boats/ada", JSON, boat("ada", json!({})))]).different("nothing in the documents lets it make an object", "405 MethodNotAllowed"),
        row("put_to_a_collection_is_not_allowed", CONVENTIONS, vec![put("/boats", boat("ada", json!({})))]).different("405 says what is wrong", "405 MethodNotAllowed"),
        row("dry_run_stores_nothing", CONCEPTS, vec![
            post("/boats?dryRun=All", boat("ada", json!({}))),
            get("/boats/ada"),
            ada(),
            merge("/boats/ada?dryRun=All", json!({"spec": {"metres": 20}})),
            delete("/boats/ada?dryRun=All"),
            get("/boats/ada"),
        ]),
        row("dry_run_of_another_word_is_refused", CONCEPTS, vec![post("/boats?dryRun=Some", boat("ada", json!({})))]).without(&["/body/message", "/body/details/causes/message"]),
    ]
}

pub fn applies() -> Vec<Row> {
    let by = |manager: &str, more: Value| apply(&format!("/boats/ada?fieldManager={manager}"), boat("ada", more));
    let force =
        |manager: &str, more: Value| apply(&format!("/boats/ada?fieldManager={manager}&force=true"), boat("ada", more));
    vec![
        row("apply_makes_what_is_not_there", APPLY, vec![by("one", json!({"metadata": {"labels": {"a": "b"}}}))]).managers(),
        row("apply_again_changes_nothing", APPLY, vec![by("one", json!({})), by("one", json!({}))]).managers(),
        row("apply_of_the_same_value_shares_it", APPLY, vec![by("one", json!({})), by("two", json!({}))]).managers(),
        row("apply_of_another_value_conflicts", APPLY, vec![by("one", json!({})), by("two", json!({"spec": {"metres": 20}}))]),
        row("apply_with_force_takes_it", APPLY, vec![by("one", json!({})), force("two", json!({"spec": {"metres": 20}}))]).managers(),
        row("apply_conflicts_with_an_updater", APPLY, vec![
            post("/boats", boat("ada", json!({"spec": {"flag": "red"}}))),
            by("one", json!({"spec": {"metres": 20, "flag": "green"}})),
        ]),
        row("apply_without_a_field_removes_it", APPLY, vec![
            by("one", json!({"metadata": {"labels": {"a": "b", "c": "d"}}, "spec": {"flag": "red", "tags": {"x": "y"}}})),
            by("one", json!({"metadata": {"labels": {"a": "b"}}})),
        ]).managers(),
        row("apply_without_a_field_of_two_owners_keeps_it", APPLY, vec![
            by("one", json!({"spec": {"flag": "red"}})),
            by("two", json!({"spec": {"flag": "red"}})),
            by("one", json!({})),
        ]).managers(),
        row("apply_leaves_what_others_set", APPLY, vec![
            by("one", json!({})),
            merge("/boats/ada?fieldManager=other", json!({"metadata": {"labels": {"x": "y"}}, "spec": {"flag": "red"}})),
            by("one", json!({})),
        ]).managers(),
        row("apply_merges_lists_by_key", APPLY, vec![
            by("one", json!({"spec": {"berths": [{"name": "a", "size": 1}, {"name": "b", "size": 2}]}})),
            by("two", json!({"spec": {"berths": [{"name": "c", "size": 3}]}})),
            by("one", json!({"spec": {"berths": [{"name": "b", "size": 4}]}})),
        ]).managers(),
        row("apply_merges_sets", APPLY, vec![
            by("one", json!({"spec": {"crew": ["a", "b"]}})),
            by("two", json!({"spec": {"crew": ["c"]}})),
            by("one", json!({"spec": {"crew": ["b"]}})),
        ]).managers(),
        row("apply_replaces_atomic_lists", APPLY, vec![
            by("one", json!({"spec": {"log": ["a", "b"]}})),
            by("one", json!({"spec": {"log": ["c"]}})),
        ]).managers(),
        row("apply_conflict_in_a_keyed_list_names_the_entry", APPLY, vec![
            by("one", json!({"spec": {"berths": [{"name": "a", "size": 1}]}})),
            by("two", json!({"spec": {"berths": [{"name": "a", "size": 2}]}})),
        ]),
        row("apply_two_conflicts_are_two_causes", APPLY, vec![
            by("one", json!({"spec": {"flag": "red"}})),
            by("two", json!({"spec": {"metres": 20, "flag": "green"}})),
        ]),
        row("apply_of_status_is_its_own", APPLY, vec![
            by("one", json!({})),
            apply("/boats/ada/status?fieldManager=one", json!({"apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "metadata": {"name": "ada"}, "status": {"place": "here"}})),
        ]),
        row("apply_needs_a_manager", APPLY, vec![apply("/boats/ada", boat("ada", json!({})))]),
        row("apply_needs_a_kind", APPLY, vec![apply("/boats/ada?fieldManager=one", json!({"metadata": {"name": "ada"}}))]).without(&["/body/message"]),
        row("apply_of_managed_fields_is_refused", APPLY, vec![by("one", json!({"metadata": {"managedFields": [{"manager": "x", "operation": "Apply", "apiVersion": "moorline.dev/v1alpha1", "fieldsType": "FieldsV1", "fieldsV1": {}}]}}))]),
        row("apply_of_another_name_is_refused", APPLY, vec![apply("/boats/ada?fieldManager=one", boat("bob", json!({})))]),
        row(
            "apply_without_a_name_is_refused",
            APPLY,
            vec![apply(
                "/boats/ada?fieldManager=one",
                json!({"apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "metadata": {}, "spec": {"metres": 1}}),
            )],
        ),
        row(
            "update_without_a_name_is_refused",
            CONVENTIONS,
            vec![
                post("/boats", boat("ada", json!({}))),
                put(
                    "/boats/ada",
                    json!({"apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "metadata": {"resourceVersion": "{rv:1}"}, "spec": {"metres": 1}}),
                ),
            ],
        ),
        row("apply_of_something_invalid", APPLY, vec![by("one", json!({"spec": {"metres": 401}}))]),
        row("apply_dry_run_stores_nothing", APPLY, vec![apply("/boats/ada?fieldManager=one&dryRun=All", boat("ada", json!({}))), get("/boats/ada")]),
        row("apply_with_an_old_revision_conflicts", APPLY, vec![
            by("one", json!({})),
            merge("/boats/ada?fieldManager=other", json!({"spec": {"flag": "red"}})),
            by("one", json!({"metadata": {"resourceVersion": "{rv:1}"}})),
        ]),
        row("apply_of_yaml", APPLY, vec![ask("PATCH", "/boats/ada?fieldManager=one", "application/apply-patch+yaml", "apiVersion: moorline.dev/v1alpha1\nkind: Boat\nmetadata:\n  name: ada\nspec:\n  metres: 7\n")]).managers(),
        row("managed_fields_of_create_and_update", APPLY, vec![
            post("/boats?fieldManager=maker", boat("ada", json!({"metadata": {"labels": {"a": "b"}}, "spec": {"crew": ["x"], "berths": [{"name": "a"}], "tags": {"t": "u"}}}))),
            merge("/boats/ada?fieldManager=changer", json!({"spec": {"metres": 20, "crew": ["x", "y"], "tags": {"t": "v"}}})),
            merge("/boats/ada?fieldManager=changer", json!({"spec": {"tags": null}})),
        ]).managers(),
        row("managed_fields_of_the_user_agent", APPLY, vec![post("/boats", boat("ada", json!({})))]).managers(),
        row("managed_fields_can_be_forgotten", APPLY, vec![
            post("/boats", boat("ada", json!({}))),
            merge("/boats/ada", json!({"metadata": {"managedFields": [{}]}})),
        ]).managers(),
        row("a_manager_too_long_is_refused", APPLY, vec![apply(&format!("/boats/ada?fieldManager={}", "x".repeat(129)), boat("ada", json!({})))]),
    ]
}
