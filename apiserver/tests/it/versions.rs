//! A kind in two versions whose shapes differ: written in either, read in either, stored in one.

use crate::limits;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use moorline_apiserver::{ApiServer, Column, Everything, KindSpec, Spec, Store};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{path::Path, sync::Arc};
use tokio_util::sync::CancellationToken;

/// As it began: one text.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
struct OldLight {
    /// `host:port`.
    #[serde(default)]
    #[schemars(length(max = 64))]
    address: String,
}
/// As it is now: two fields.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
struct NewLight {
    #[serde(default)]
    host: String,
    #[serde(default)]
    #[schemars(range(max = 65535))]
    port: u32,
}
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct LightStatus {
    on: bool,
}
impl Spec for OldLight {
    type Status = LightStatus;
    const KIND: &'static str = "Light";
    const PLURAL: &'static str = "lights";
    const SINGULAR: &'static str = "light";
}
impl Spec for NewLight {
    type Status = LightStatus;
    const VERSION: &'static str = "v1beta1";
    const KIND: &'static str = "Light";
    const PLURAL: &'static str = "lights";
    const SINGULAR: &'static str = "light";
}

/// What is there is moved; what is not is not invented.
fn up(light: &mut Value) {
    let Some(address) = light.get("spec").and_then(|spec| spec["address"].as_str()) else { return };
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    light["spec"] = json!({ "host": host, "port": port.parse::<u32>().unwrap_or(0) });
}
fn down(light: &mut Value) {
    let Some(spec) = light.get("spec").filter(|spec| spec["host"].is_string()) else { return };
    light["spec"] = json!({ "address": format!("{}:{}", spec["host"].as_str().unwrap_or_default(), spec["port"]) });
}

fn old() -> KindSpec {
    KindSpec::of::<OldLight>().column(Column::at("Address", "/spec/address")).selectable(&["spec.address"])
}
fn new() -> KindSpec {
    KindSpec::of::<NewLight>().column(Column::at("Host", "/spec/host")).selectable(&["spec.host"])
}

struct Harbour(ApiServer);

impl Harbour {
    fn open(file: &Path, kind: KindSpec) -> Self {
        let store = Store::open(file, &limits()).unwrap();
        let registry = prometheus::Registry::new();
        Self(ApiServer::new(store, vec![kind], limits(), &registry, CancellationToken::new()).unwrap())
    }

    async fn text(&self, method: &str, path: &str, kind: &str, body: Value) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri(format!("/apis/moorline.dev/{path}"));
        let accept = if kind == "table" { "application/json;as=Table;v=v1;g=meta.k8s.io" } else { "application/json" };
        let request = request.header("accept", accept).header("content-type", kind);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.0.handle(request.body(Full::new(Bytes::from(body))).unwrap(), Arc::new(Everything)).await;
        let status = answer.status();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(text.to_vec()).unwrap())
    }

    async fn call(&self, method: &str, path: &str, kind: &str, body: Value) -> (u16, Value) {
        let (status, text) = self.text(method, path, kind, body).await;
        (status.as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call("GET", path, "", Value::Null).await;
        assert_eq!(status, 200, "{value}");
        value
    }
}

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

fn light(version: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": format!("moorline.dev/{version}"), "kind": "Light", "metadata": { "name": name }, "spec": spec })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_is_read_watched_and_written_in_each_of_its_versions() {
    let dir = tempfile::tempdir().unwrap();
    let harbour = Harbour::open(&dir.path().join("store"), new().also(old(), up, down));
    // Made in the old one, it is stored in the new one, and read in both.
    let (code, made) =
        harbour.call("POST", "v1alpha1/lights", JSON, light("v1alpha1", "a", json!({ "address": "north:80" }))).await;
    assert_eq!(
        (code, &made["apiVersion"], &made["spec"]),
        (201, &json!("moorline.dev/v1alpha1"), &json!({ "address": "north:80" }))
    );
    let stored = harbour.0.store().get("moorline.dev/lights/a").unwrap().value;
    assert_eq!(
        (&stored["apiVersion"], &stored["spec"]),
        (&json!("moorline.dev/v1beta1"), &json!({ "host": "north", "port": 80 }))
    );
    assert_eq!(harbour.get("v1beta1/lights/a").await["spec"], json!({ "host": "north", "port": 80 }));
    let from = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();

    // Patches are laid over what the client sees.
    let (code, patched) =
        harbour.call("PATCH", "v1alpha1/lights/a", MERGE, json!({ "spec": { "address": "south:81" } })).await;
    assert_eq!((code, &patched["spec"]["address"]), (200, &json!("south:81")), "{patched}");
    let (_, patched) = harbour.call("PATCH", "v1beta1/lights/a", MERGE, json!({ "spec": { "port": 82 } })).await;
    assert_eq!(patched["spec"], json!({ "host": "south", "port": 82 }));
    let mut whole = harbour.get("v1alpha1/lights/a").await;
    assert_eq!(whole["spec"], json!({ "address": "south:82" }));
    whole["spec"]["address"] = "east:83".into();
    assert_eq!(harbour.call("PUT", "v1alpha1/lights/a", JSON, whole.clone()).await.0, 200);
    assert_eq!(harbour.call("PUT", "v1alpha1/lights/a", JSON, whole).await.0, 409, "the revision is one for both");
    // Applies too, whichever version the fields are owned by.
    let path = "v1alpha1/lights/b?fieldManager=me";
    let (code, applied) =
        harbour.call("PATCH", path, APPLY, light("v1alpha1", "b", json!({ "address": "west:1" }))).await;
    assert_eq!((code, &applied["spec"]["address"]), (201, &json!("west:1")), "{applied}");
    let path = "v1beta1/lights/b?fieldManager=me";
    let (code, applied) =
        harbour.call("PATCH", path, APPLY, light("v1beta1", "b", json!({ "host": "west", "port": 2 }))).await;
    assert_eq!((code, &applied["spec"]), (200, &json!({ "host": "west", "port": 2 })), "{applied}");
    let path = "v1alpha1/lights/b?fieldManager=other";
    let (code, refused) =
        harbour.call("PATCH", path, APPLY, light("v1alpha1", "b", json!({ "address": "west:3" }))).await;
    assert_eq!((code, &refused["reason"]), (409, &json!("Conflict")), "{refused}");

    // Each version has its own rules, columns and selectors.
    let (code, refused) = harbour
        .call("POST", "v1alpha1/lights", JSON, light("v1alpha1", "c", json!({ "address": "x".repeat(65) })))
        .await;
    assert_eq!((code, &refused["details"]["causes"][0]["field"]), (422, &json!("spec.address")), "{refused}");
    let strict = "v1alpha1/lights?fieldValidation=Strict";
    let (code, refused) = harbour.call("POST", strict, JSON, light("v1alpha1", "c", json!({ "host": "x" }))).await;
    assert!(code == 400 && refused["message"].as_str().unwrap().contains("spec.host"), "{refused}");
    let (code, refused) = harbour.call("POST", "v1alpha1/lights", JSON, light("v1beta1", "c", json!({}))).await;
    assert!(code == 400 && refused["message"].as_str().unwrap().contains("does not match"), "{refused}");
    let names = |list: &Value| {
        list["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&harbour.get("v1alpha1/lights?fieldSelector=spec.address%3Deast:83").await), ["a"]);
    assert_eq!(names(&harbour.get("v1beta1/lights?fieldSelector=spec.host%3Dwest").await), ["b"]);
    let list = harbour.get("v1alpha1/lights").await;
    assert_eq!(
        (&list["apiVersion"], &list["items"][0]["apiVersion"]),
        (&json!("moorline.dev/v1alpha1"), &json!("moorline.dev/v1alpha1"))
    );
    assert_eq!(list["items"][0]["spec"], json!({ "address": "east:83" }));
    let (_, table) = harbour.call("GET", "v1alpha1/lights", "table", Value::Null).await;
    assert_eq!(
        (&table["columnDefinitions"][1]["name"], &table["rows"][0]["cells"][1]),
        (&json!("Address"), &json!("east:83"))
    );

    // A watch is in the version that it was asked for.
    assert_eq!(harbour.call("DELETE", "v1beta1/lights/a", JSON, Value::Null).await.0, 200);
    let (_, text) = harbour
        .text("GET", &format!("v1alpha1/lights?watch=1&timeoutSeconds=1&resourceVersion={from}"), "", Value::Null)
        .await;
    let seen: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|event| {
            format!(
                "{} {} {}",
                event["type"].as_str().unwrap(),
                event["object"]["apiVersion"].as_str().unwrap(),
                event["object"]["spec"]["address"].as_str().unwrap()
            )
        })
        .collect();
    let wanted = [
        "MODIFIED south:81",
        "MODIFIED south:82",
        "MODIFIED east:83",
        "ADDED west:1",
        "MODIFIED west:2",
        "DELETED east:83",
    ];
    let wanted: Vec<String> = wanted.iter().map(|w| w.replace(' ', " moorline.dev/v1alpha1 ")).collect();
    assert_eq!(seen, wanted);

    // Both are told of, the newer one first.
    let group = harbour.get("").await;
    assert_eq!(group["preferredVersion"]["version"], "v1beta1");
    assert_eq!(group["versions"].as_array().unwrap().len(), 2);
    assert_eq!(harbour.get("v1alpha1").await["resources"][0]["name"], "lights");
    assert_eq!(harbour.call("GET", "v1/lights", "", Value::Null).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn u06_objects_of_an_older_version_are_written_anew_when_another_one_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store");
    let before = Harbour::open(&file, old());
    for i in 0..5 {
        let made = light("v1alpha1", &format!("l{i}"), json!({ "address": format!("h{i}:{i}") }));
        assert_eq!(before.call("POST", "v1alpha1/lights", JSON, made).await.0, 201);
    }
    let store = before.0.store().clone();
    drop(before);
    store.close();
    let after = Harbour::open(&file, new().also(old(), up, down));
    assert_eq!(after.0.migrate_versions().await.unwrap(), 5);
    assert_eq!(after.0.migrate_versions().await.unwrap(), 0, "once");
    assert_eq!(after.get("v1beta1/lights/l3").await["spec"], json!({ "host": "h3", "port": 3 }));
    assert_eq!(after.get("v1alpha1/lights/l3").await["spec"], json!({ "address": "h3:3" }));
}
