//! Lists, watches, forms of answers.

use super::*;

pub fn lists() -> Vec<Row> {
    let three = |rest: Vec<Step>| {
        let made = ["ada", "bob", "cyd"]
            .map(|n| post("/boats", boat(n, json!({"metadata": {"labels": {"name": n, "all": "yes"}}}))));
        made.into_iter().chain(rest).collect::<Vec<_>>()
    };
    let list = |query: &str| three(vec![get(&format!("/boats?{query}"))]);
    vec![
        row("list_of_nothing", CONCEPTS, vec![get("/boats")]),
        row("list_is_in_order_of_names", CONCEPTS, list("")),
        row("list_by_label", LABELS, list("labelSelector=name%3Dada")),
        row("list_by_label_sets", LABELS, list("labelSelector=name%20in%20(ada,bob),all,!none")),
        row("list_by_label_not_in", LABELS, list("labelSelector=name%20notin%20(ada),name!%3Dbob")),
        row("bad_label_selector_is_refused", LABELS, list("labelSelector=a%20b")).without(&["/body/message"]),
        row("list_by_name", CONCEPTS, list("fieldSelector=metadata.name%3Dbob")),
        row("list_by_not_the_name", CONCEPTS, list("fieldSelector=metadata.name!%3Dbob")),
        row("list_by_another_field_is_refused", CRD, list("fieldSelector=spec.metres%3D10")),
        row("bad_field_selector_is_refused", CONCEPTS, list("fieldSelector=x")).without(&["/body/message"]),
        row(
            "pages_go_on_to_the_end",
            CONCEPTS,
            three(vec![get("/boats?limit=2"), get("/boats?limit=2&continue={continue:4}")]),
        ),
        row(
            "pages_are_of_one_moment",
            CONCEPTS,
            three(vec![
                get("/boats?limit=1"),
                delete("/boats/cyd"),
                post("/boats", boat("bea", json!({}))),
                get("/boats?limit=5&continue={continue:4}"),
            ]),
        ),
        row("pages_with_a_selector_do_not_count", CONCEPTS, three(vec![get("/boats?limit=1&labelSelector=all")])),
        row(
            "stale_continue_token_is_told_410_and_how_to_go_on",
            CONCEPTS,
            three(vec![
                get("/boats?limit=1"),
                delete("/boats/cyd"),
                get("/boats?limit=5&continue={continue:4}").forgotten(),
                get("/boats?limit=5&continue={continue:6}"),
            ]),
        ),
        row(
            "list_at_a_forgotten_revision_is_told_410",
            CONCEPTS,
            three(vec![
                delete("/boats/cyd"),
                get("/boats?resourceVersion={rv:3}&resourceVersionMatch=Exact").forgotten(),
            ]),
        )
        .without(&["/body/message"]),
        row("bad_continue_token_is_refused", CONCEPTS, list("limit=1&continue=x")).without(&["/body/message"]),
        row(
            "continue_with_a_revision_is_refused",
            CONCEPTS,
            three(vec![get("/boats?limit=1"), get("/boats?limit=1&continue={continue:4}&resourceVersion={rv:4}")]),
        )
        .without(&["/body/message"]),
        row(
            "list_at_exactly_a_revision",
            CONCEPTS,
            three(vec![
                delete("/boats/bob"),
                get("/boats?resourceVersion={rv:3}&resourceVersionMatch=Exact"),
                get("/boats?resourceVersion={rv:2}&resourceVersionMatch=Exact&limit=1"),
            ]),
        ),
        row(
            "list_not_older_than_a_revision",
            CONCEPTS,
            three(vec![get(
                "/boats?resourceVersion={rv:3}&resourceVersionMatch=NotOlderThan&labelSelector=name%3Dada",
            )]),
        ),
        row("list_at_a_bad_revision_is_refused", CONCEPTS, list("resourceVersion=x"))
            .different("a client's mistake is no 500", "201, 201, 201, 422 Invalid"),
        row("exact_match_of_zero_is_forbidden", CONCEPTS, list("resourceVersion=0&resourceVersionMatch=Exact")),
        row("match_without_a_revision_is_forbidden", CONCEPTS, list("resourceVersionMatch=Exact")),
        row(
            "match_with_continue_is_forbidden",
            CONCEPTS,
            three(vec![
                get("/boats?limit=1"),
                get("/boats?continue={continue:4}&resourceVersionMatch=Exact&resourceVersion=1"),
            ]),
        ),
        row("another_match_is_unsupported", CONCEPTS, list("resourceVersion=1&resourceVersionMatch=Roughly")),
        row("list_of_the_future_times_out", CONCEPTS, list("resourceVersion=99999999")).numbers(),
        row("get_of_the_future_times_out", CONCEPTS, three(vec![get("/boats/ada?resourceVersion=99999999")])).numbers(),
        row("bad_limit_is_refused", CONCEPTS, list("limit=x")).without(&["/body/message"]),
        row("initial_events_are_for_watches", CONCEPTS, list("sendInitialEvents=true"))
            .newer("1.27: sendInitialEvents", "201, 201, 201, 422 Invalid"),
    ]
}

pub fn watches() -> Vec<Row> {
    let ada = || post("/boats", boat("ada", json!({"metadata": {"labels": {"a": "b"}}})));
    let watch = |query: &str| get(&format!("/boats?watch=true&timeoutSeconds=1&{query}"));
    vec![
        row(
            "watch_from_a_revision_shows_what_came_after",
            CONCEPTS,
            vec![
                ada(),
                merge("/boats/ada", json!({"spec": {"metres": 11}})),
                delete("/boats/ada"),
                watch("resourceVersion={rv:1}"),
            ],
        ),
        row("watch_from_zero_shows_what_is", CONCEPTS, vec![ada(), watch("resourceVersion=0")]),
        row("watch_from_nowhere_shows_what_is", CONCEPTS, vec![ada(), watch("")]),
        row(
            "leaving_a_selection_is_a_deletion",
            CONCEPTS,
            vec![
                ada(),
                merge("/boats/ada", json!({"metadata": {"labels": {"a": "c"}}})),
                merge("/boats/ada", json!({"metadata": {"labels": {"a": "b"}}})),
                watch("resourceVersion={rv:1}&labelSelector=a%3Db"),
            ],
        ),
        row(
            "watch_by_name",
            CONCEPTS,
            vec![ada(), post("/boats", boat("bob", json!({}))), watch("fieldSelector=metadata.name%3Dbob")],
        ),
        row("watch_from_long_ago_is_told_410", CONCEPTS, vec![ada(), watch("resourceVersion=1")]).numbers(),
        row("watch_from_a_bad_revision_is_refused", CONCEPTS, vec![watch("resourceVersion=x")])
            .different("a client's mistake is no 500", "422 Invalid"),
        row(
            "watch_as_metadata_alone",
            CONCEPTS,
            vec![
                ada(),
                watch("resourceVersion=0")
                    .header("accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"),
            ],
        ),
        row(
            "streaming_list_ends_with_a_bookmark",
            CONCEPTS,
            vec![ada(), watch("sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan")],
        )
        .newer("1.27: streaming lists", "201, 200"),
        row("streaming_list_needs_a_match", CONCEPTS, vec![watch("sendInitialEvents=true")])
            .newer("1.27: streaming lists", "422 Invalid"),
        row("match_in_a_watch_is_forbidden", CONCEPTS, vec![watch("resourceVersion=1&resourceVersionMatch=Exact")])
            .without(&["/body/message", "/body/details/causes/message"]),
    ]
}

/// Cells hold ages; descriptions are each server's own, and Kubernetes' own kinds have no `date` columns either.
const TABLE: &[&str] = &["/body/rows/cells", "/body/columnDefinitions/description", "/body/columnDefinitions/3/type"];

pub fn forms() -> Vec<Row> {
    let ada = || post("/boats", boat("ada", json!({})));
    let accept = |path: &str, media: &str| get(path).header("accept", media);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let meta = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json";
    vec![
        row("table_of_a_list", CONCEPTS, vec![ada(), accept("/boats", table)]).without(TABLE),
        row("table_of_one", CONCEPTS, vec![ada(), accept("/boats/ada", table)]).without(TABLE),
        row("table_without_objects", CONCEPTS, vec![ada(), accept("/boats?includeObject=None", table)]).without(TABLE),
        row("table_with_objects", CONCEPTS, vec![ada(), accept("/boats?includeObject=Object", table)]).without(TABLE),
        row("metadata_of_a_list", CONCEPTS, vec![ada(), accept("/boats", meta)]),
        row(
            "metadata_of_one",
            CONCEPTS,
            vec![ada(), accept("/boats/ada", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io")],
        ),
        row(
            "protobuf_alone_is_not_acceptable",
            CONCEPTS,
            vec![ada(), accept("/boats", "application/vnd.kubernetes.protobuf")],
        )
        .without(&["/body"]),
        row(
            "protobuf_or_json_is_json",
            CONCEPTS,
            vec![ada(), accept("/boats/ada", "application/vnd.kubernetes.protobuf, application/json")],
        ),
        row("html_is_not_acceptable", CONCEPTS, vec![ada(), accept("/boats", "text/html")]).without(&["/body/message"]),
        row("resources_of_a_version", CONCEPTS, vec![get("//apis/moorline.dev/v1alpha1")])
            .without(&["/body/resources/storageVersionHash"]),
        row("group_of_the_api", CONCEPTS, vec![get("//apis/moorline.dev")]),
    ]
}
