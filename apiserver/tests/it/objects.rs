//! One object at a time.

use super::*;

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

#[tokio::test]
async fn an_object_lives_by_the_rules_of_kubernetes() {
    let world = World::new();
    let made = world.boat("ada", json!({})).await;
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!((&made["apiVersion"], &made["kind"]), (&json!("moorline.dev/v1alpha1"), &json!("Boat")));
    assert!(!made["metadata"]["uid"].as_str().unwrap().is_empty());
    let (code, status) =
        world.call("POST", "/boats", JSON, &made.to_string().replace("resourceVersion", "selfLink")).await;
    assert_eq!((code.as_u16(), &status["reason"]), (409, &json!("AlreadyExists")));
    assert_eq!(status["message"], r#"boats.moorline.dev "ada" already exists"#);

    // A write that changes nothing makes no revision; one of the spec counts a generation.
    let (_, same) = world.call("PUT", "/boats/ada", JSON, &made.to_string()).await;
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let (code, longer) = world.call("PATCH", "/boats/ada", MERGE, r#"{"spec":{"metres":12}}"#).await;
    assert_eq!((code.as_u16(), &longer["metadata"]["generation"]), (200, &json!(2)));
    let (code, conflict) = world.call("PUT", "/boats/ada", JSON, &made.to_string()).await;
    assert_eq!((code.as_u16(), &conflict["reason"]), (409, &json!("Conflict")));

    // Status and spec do not write each other.
    let (_, s) =
        world.call("PATCH", "/boats/ada/status", MERGE, r#"{"spec":{"metres":1},"status":{"place":"sea"}}"#).await;
    assert_eq!(
        (&s["spec"]["metres"], &s["status"]["place"], &s["metadata"]["generation"]),
        (&json!(12), &json!("sea"), &json!(2))
    );
    let (_, s) = world.call("PATCH", "/boats/ada", MERGE, r#"{"status":{"place":"moon"}}"#).await;
    assert_eq!(s["status"]["place"], "sea");
    let patch = r#"[{"op":"test","path":"/spec/metres","value":12},{"op":"add","path":"/spec/crew","value":["bo"]}]"#;
    let (code, s) = world.call("PATCH", "/boats/ada", "application/json-patch+json", patch).await;
    assert_eq!((code.as_u16(), &s["spec"]["crew"]), (200, &json!(["bo"])));

    let (code, gone) = world.call("DELETE", "/boats/ada", "", "").await;
    assert_eq!((code.as_u16(), &gone["status"]), (200, &json!("Success")));
    let (code, status) = world.get("/boats/ada").await;
    assert_eq!((code.as_u16(), &status["message"]), (404, &json!(r#"boats.moorline.dev "ada" not found"#)));
    assert_eq!(status["details"], json!({ "name": "ada", "group": "moorline.dev", "kind": "boats" }));
}

#[tokio::test]
async fn bad_input_gets_kubernetes_own_answer() {
    let world = World::new();
    world.boat("ada", json!({})).await;
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let big = format!(r#"{{"spec":{{"crew":["{}"]}}}}"#, "x".repeat(70_000));
    for (method, path, kind, body, code, reason) in [
        ("POST", "/boats", JSON, r#"{"metadata":{"name":"B_C"},"spec":{"metres":1}}"#, 422, "Invalid"),
        ("POST", "/boats", JSON, r#"{"metadata":{},"spec":{"metres":1}}"#, 422, "Invalid"),
        ("POST", "/boats", JSON, r#"{"metadata":{"name":"b"},"spec":{"metres":"long"}}"#, 422, "Invalid"),
        ("POST", "/boats", JSON, r#"{"metadata":{"name":"b"},"spec":{"metres":401}}"#, 422, "Invalid"),
        (
            "POST",
            "/boats",
            JSON,
            r#"{"metadata":{"name":"b","labels":{"a":"b c"}},"spec":{"metres":1}}"#,
            422,
            "Invalid",
        ),
        ("POST", "/boats", JSON, r#"{"kind":"Ship","metadata":{"name":"b"},"spec":{"metres":1}}"#, 422, "Invalid"),
        ("POST", "/boats", JSON, "{", 400, "BadRequest"),
        ("POST", "/boats", JSON, "[]", 400, "BadRequest"),
        ("POST", "/boats", JSON, &deep[..60_000], 400, "BadRequest"),
        ("POST", "/boats", JSON, &big, 413, "RequestEntityTooLarge"),
        ("POST", "/boats", "application/vnd.kubernetes.protobuf", "k8s", 415, "UnsupportedMediaType"),
        (
            "POST",
            "/boats?fieldValidation=Strict",
            JSON,
            r#"{"metadata":{"name":"b"},"spec":{"metres":1,"mast":2}}"#,
            400,
            "BadRequest",
        ),
        ("POST", "/boats?dryRun=Some", JSON, r#"{"metadata":{"name":"b"},"spec":{"metres":1}}"#, 422, "Invalid"),
        ("PATCH", "/boats/ada", "application/apply-patch+yaml", "a: b", 400, "BadRequest"),
        ("PATCH", "/boats/ada", "application/apply-patch+yaml", "a: [", 400, "BadRequest"),
        ("PATCH", "/boats/ada", "application/strategic-merge-patch+json", "{}", 415, "UnsupportedMediaType"),
        (
            "PATCH",
            "/boats/ada",
            "application/json-patch+json",
            r#"[{"op":"remove","path":"/nowhere"}]"#,
            422,
            "Invalid",
        ),
        ("PUT", "/boats/ada", JSON, r#"{"metadata":{"name":"eve"},"spec":{"metres":1}}"#, 400, "BadRequest"),
        ("PUT", "/boats/eve", JSON, r#"{"metadata":{"name":"eve"},"spec":{"metres":1}}"#, 404, "NotFound"),
        ("POST", "/boats/ada", JSON, "{}", 405, "MethodNotAllowed"),
        ("GET", "/ships", "", "", 404, "NotFound"),
        ("GET", "/boats?labelSelector=a%20b", "", "", 400, "BadRequest"),
        ("GET", "/boats?fieldSelector=spec.crew%3Da", "", "", 400, "BadRequest"),
        ("GET", "/boats?resourceVersion=x", "", "", 422, "Invalid"),
        ("GET", "/boats?continue=x", "", "", 400, "BadRequest"),
        ("GET", "/boats?limit=-1", "", "", 400, "BadRequest"),
        ("GET", "/boats?resourceVersion=99999", "", "", 504, "Timeout"),
    ] {
        let (got, status) = world.call(method, path, kind, body).await;
        let told = &body[..body.len().min(80)];
        assert_eq!((got.as_u16(), status["reason"].as_str()), (code, Some(reason)), "{method} {path} {told}: {status}");
        assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(code)));
    }
    let (_, list) = world.get("/boats").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "nothing of all this was stored");
    let unknown = r#"{"metadata":{"name":"b"},"spec":{"metres":1,"mast":2}}"#;
    let (_, status) = world.call("POST", "/boats?fieldValidation=Strict", JSON, unknown).await;
    assert_eq!(status["message"], r#"strict decoding error: unknown field "spec.mast""#);
}

#[tokio::test]
async fn a_dry_run_answers_and_stores_nothing() {
    let world = World::new();
    let boat = r#"{"metadata":{"generateName":"b-"},"spec":{"metres":1}}"#;
    let (code, made) = world.call("POST", "/boats?dryRun=All", JSON, boat).await;
    assert_eq!(code, 201);
    assert!(made["metadata"]["name"].as_str().unwrap().len() == 7);
    assert_eq!(world.get("/boats").await.1["items"], json!([]));
}

#[tokio::test]
async fn finalizers_hold_and_owners_take_along() {
    let world = World::new();
    let boat = world.boat("ada", json!({})).await;
    let owner = json!([{ "apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "name": "ada", "uid": boat["metadata"]["uid"] }]);
    for (name, owners) in [("bow", owner.clone()), ("stern", owner), ("spare", json!([]))] {
        let line = json!({ "metadata": { "name": name, "ownerReferences": owners }, "spec": {} });
        assert_eq!(world.call("POST", "/lines", JSON, &line.to_string()).await.0, 201);
    }
    world.call("PATCH", "/boats/ada", MERGE, r#"{"metadata":{"finalizers":["moorline.dev/held"]}}"#).await;
    let (_, held) = world.call("DELETE", "/boats/ada", "", "").await;
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(world.get("/lines").await.1["items"].as_array().unwrap().len(), 3);
    world.call("PATCH", "/boats/ada", MERGE, r#"{"metadata":{"finalizers":null}}"#).await;
    assert_eq!(world.get("/boats/ada").await.0, 404);
    let (_, left) = world.get("/lines").await;
    let names: Vec<_> = left["items"].as_array().unwrap().iter().map(|l| l["metadata"]["name"].clone()).collect();
    assert_eq!(names, ["spare"]);
}

#[tokio::test]
async fn a_deletion_names_what_it_means() {
    let world = World::new();
    world.boat("ada", json!({})).await;
    let (code, _) = world.call("DELETE", "/boats/ada", JSON, r#"{"preconditions":{"uid":"another"}}"#).await;
    assert_eq!(code, 409);
    assert_eq!(world.get("/boats/ada").await.0, 200);
}

#[tokio::test]
async fn what_a_caller_may_not_see_is_in_no_list() {
    let world = World::new();
    world.boat("ada", json!({})).await;
    world.boat("eve", json!({ "secret": "yes" })).await;
    let ask = |method: &str, path: &str| {
        Request::builder()
            .method(method)
            .uri(format!("/apis/moorline.dev/v1alpha1{path}"))
            .body(Full::default())
            .unwrap()
    };
    let list = world.send(ask("GET", "/boats"), Arc::new(Narrow)).await.into_body().collect().await.unwrap().to_bytes();
    assert!(!String::from_utf8_lossy(&list).contains("eve"));
    let denied = world.send(ask("DELETE", "/boats/ada"), Arc::new(Narrow)).await;
    assert_eq!(denied.status(), 403);
    let body = denied.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("no deleting here"));
}

#[tokio::test]
async fn pages_are_of_one_moment() {
    let world = World::new();
    for i in 0..5 {
        world.boat(&format!("b{i}"), json!({})).await;
    }
    let (_, first) = world.get("/boats?limit=2").await;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    // What changes between the pages is not seen by the rest of them.
    world.call("DELETE", "/boats/b3", "", "").await;
    world.boat("b9", json!({})).await;
    world.call("PATCH", "/boats/b2", MERGE, r#"{"spec":{"metres":99}}"#).await;
    let (_, rest) = world.get(&format!("/boats?limit=10&continue={token}")).await;
    let seen: Vec<_> = rest["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| (b["metadata"]["name"].clone(), b["spec"]["metres"].clone()))
        .collect();
    assert_eq!(seen, [(json!("b2"), json!(10)), (json!("b3"), json!(10)), (json!("b4"), json!(10))]);
    // More changes than are kept: the page is too old.
    for i in 0..60 {
        world.call("PATCH", "/boats/b1", MERGE, &format!(r#"{{"spec":{{"metres":{i}}}}}"#)).await;
    }
    let (code, status) = world.get(&format!("/boats?continue={token}")).await;
    assert_eq!((code.as_u16(), &status["reason"]), (410, &json!("Expired")));
}

#[tokio::test]
async fn tables_have_the_kinds_columns() {
    let world = World::new();
    world.boat("ada", json!({ "a": "b" })).await;
    world.boat("eve", json!({})).await;
    let request = Request::get("/apis/moorline.dev/v1alpha1/boats?labelSelector=a%3Db")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
        .body(Full::default())
        .unwrap();
    let body = world.send(request, Arc::new(Everything)).await.into_body().collect().await.unwrap().to_bytes();
    let table: Value = serde_json::from_slice(&body).unwrap();
    let names: Vec<_> = table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["Name", "Place", "Metres", "Age"]);
    assert_eq!(table["rows"].as_array().unwrap().len(), 1);
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let request = Request::get("/apis/moorline.dev/v1alpha1/boats")
        .header("accept", "application/vnd.kubernetes.protobuf")
        .body(Full::default())
        .unwrap();
    assert_eq!(world.send(request, Arc::new(Everything)).await.status(), 406);
}
