//! Deletions.

use super::*;

pub fn deletions() -> Vec<Row> {
    let ada = |more: Value| post("/boats", boat("ada", more));
    let held = || ada(json!({"metadata": {"finalizers": ["moorline.dev/held"]}}));
    vec![
        row("delete_answers_success", CONVENTIONS, vec![ada(json!({})), delete("/boats/ada"), get("/boats/ada")]),
        row("delete_of_nothing_is_not_found", CONVENTIONS, vec![delete("/boats/ada")]),
        row(
            "delete_with_another_uid_conflicts",
            CONCEPTS,
            vec![
                ada(json!({})),
                delete_with("/boats/ada", json!({"preconditions": {"uid": "other"}})),
                get("/boats/ada"),
            ],
        ),
        row(
            "delete_with_an_old_revision_conflicts",
            CONCEPTS,
            vec![
                ada(json!({})),
                merge("/boats/ada", json!({"spec": {"metres": 11}})),
                delete_with("/boats/ada", json!({"preconditions": {"resourceVersion": "{rv:1}"}})),
            ],
        )
        .numbers(),
        row(
            "delete_with_the_right_uid_works",
            CONCEPTS,
            vec![ada(json!({})), delete_with("/boats/ada", json!({"preconditions": {"uid": "{uid:1}"}}))],
        ),
        row(
            "delete_with_an_unknown_policy_is_invalid",
            CONCEPTS,
            vec![ada(json!({})), delete_with("/boats/ada", json!({"propagationPolicy": "Perhaps"}))],
        ),
        row(
            "finalizers_hold_a_deletion",
            FINALIZERS,
            vec![
                held(),
                delete("/boats/ada"),
                delete("/boats/ada"),
                merge("/boats/ada", json!({"metadata": {"finalizers": null}})),
                get("/boats/ada"),
            ],
        ),
        row(
            "no_new_finalizer_while_going",
            FINALIZERS,
            vec![
                held(),
                delete("/boats/ada"),
                merge("/boats/ada", json!({"metadata": {"finalizers": ["moorline.dev/held", "moorline.dev/more"]}})),
            ],
        )
        .without(&["/body/message", "/body/details/causes"]),
        row(
            "what_is_going_can_be_changed",
            FINALIZERS,
            vec![held(), delete("/boats/ada"), merge("/boats/ada", json!({"spec": {"metres": 12}}))],
        ),
        row(
            "background_takes_dependents_along",
            GARBAGE,
            vec![
                ada(json!({})),
                post("/lines", line("bow", json!({}))),
                get("/lines/bow"),
                delete_with("/boats/ada", json!({"propagationPolicy": "Background"})),
                get("/lines/bow").until(404),
            ],
        ),
        row(
            "foreground_marks_the_owner_first",
            GARBAGE,
            vec![
                ada(json!({})),
                post("/lines", line("bow", json!({"blockOwnerDeletion": true}))),
                delete_with("/boats/ada", json!({"propagationPolicy": "Foreground"})),
                get("/lines/bow").until(404),
                get("/boats/ada").until(404),
            ],
        ),
        row(
            "foreground_waits_for_a_held_dependent",
            GARBAGE,
            vec![
                ada(json!({})),
                post("/lines", {
                    let mut line = line("bow", json!({"blockOwnerDeletion": true}));
                    line["metadata"]["finalizers"] = json!(["moorline.dev/held"]);
                    line
                }),
                delete_with("/boats/ada", json!({"propagationPolicy": "Foreground"})),
                get("/boats/ada"),
                merge("/lines/bow", json!({"metadata": {"finalizers": null}})),
                get("/boats/ada").until(404),
            ],
        )
        .without(&[
            "/body/metadata/generation",
            "/body/metadata/deletionTimestamp",
            "/body/metadata/deletionGracePeriodSeconds",
        ]),
        row(
            "orphan_leaves_dependents",
            GARBAGE,
            vec![
                ada(json!({})),
                post("/lines", line("bow", json!({}))),
                delete_with("/boats/ada", json!({"propagationPolicy": "Orphan"})),
                get("/boats/ada").until(404),
                get("/lines/bow"),
            ],
        )
        .different(
            "ours is done when it answers; there the orphan finalizer is still seen",
            "201, 201, 200, 404 NotFound, 200",
        ),
        row(
            "delete_collection_deletes_all",
            CONCEPTS,
            vec![ada(json!({})), post("/boats", boat("bob", json!({}))), delete("/boats"), get("/boats")],
        ),
        row(
            "delete_collection_by_label",
            CONCEPTS,
            vec![
                ada(json!({"metadata": {"labels": {"a": "b"}}})),
                post("/boats", boat("bob", json!({}))),
                delete("/boats?labelSelector=a%3Db"),
                get("/boats"),
            ],
        ),
        row(
            "delete_collection_that_is_a_dry_run_takes_nothing",
            CONCEPTS,
            vec![ada(json!({})), delete("/boats?dryRun=All"), get("/boats")],
        ),
        row(
            "delete_collection_by_a_bad_selector_takes_nothing",
            CONCEPTS,
            vec![ada(json!({})), delete("/boats?labelSelector=a%20b"), get("/boats")],
        )
        .without(&["/body/message"]),
        row(
            "delete_collection_by_name",
            CONCEPTS,
            vec![
                ada(json!({})),
                post("/boats", boat("bob", json!({}))),
                delete("/boats?fieldSelector=metadata.name%3Dbob"),
                get("/boats"),
            ],
        ),
    ]
}
