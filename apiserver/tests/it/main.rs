//! The API server over HTTP semantics, without sockets: requests in, answers out, judged as kubectl reads them.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod applies;
mod backup;
mod bounds;
mod crash;
mod deletions;
mod disk;
mod flips;
mod forms;
mod large;
#[path = "../model/mod.rs"]
mod model;
mod objects;
mod sealed;
mod slow;
mod store;
mod versions;
mod watches;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use moorline_apiserver::{
    ApiServer, Attributes, Authorizer, Body, Cause, Column, Everything, KindSpec, Limits, Spec, Store,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A boat.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BoatSpec {
    /// Who sails it.
    #[serde(default)]
    pub(crate) crew: Vec<String>,
    /// Length over all, in metres.
    pub(crate) metres: u32,
}

/// How it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BoatStatus {
    /// Where it is.
    pub(crate) place: String,
}

impl Spec for BoatSpec {
    type Status = BoatStatus;
    const KIND: &'static str = "Boat";
    const PLURAL: &'static str = "boats";
    const SINGULAR: &'static str = "boat";
}

/// A line that holds a boat.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct LineSpec {
    /// Its colour.
    #[serde(default)]
    pub(crate) colour: String,
}

impl Spec for LineSpec {
    type Status = BoatStatus;
    const KIND: &'static str = "Line";
    const PLURAL: &'static str = "lines";
    const SINGULAR: &'static str = "line";
}

/// Sees nothing whose label `secret` is set, and may delete nothing.
pub(crate) struct Narrow;
impl Authorizer for Narrow {
    fn authorize(&self, a: &Attributes<'_>) -> Result<(), String> {
        if a.verb.starts_with("delete") { Err("no deleting here".into()) } else { Ok(()) }
    }
    fn visible(&self, _: &str, object: &Value) -> bool {
        object["metadata"]["labels"]["secret"].is_null()
    }
}

/// A server over a store in a folder of its own.
pub(crate) struct World {
    pub(crate) server: ApiServer,
    pub(crate) stop: CancellationToken,
    pub(crate) registry: prometheus::Registry,
    pub(crate) _dir: tempfile::TempDir,
}

pub(crate) use model::limits;

impl World {
    pub(crate) fn new() -> Self {
        Self::with(limits())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.redb"), &limits).unwrap();
        Self::over(store, dir, limits)
    }

    pub(crate) fn over(store: Store, dir: tempfile::TempDir, limits: Limits) -> Self {
        let boats = KindSpec::of::<BoatSpec>()
            .column(Column::at("Place", "/status/place"))
            .column(Column::at("Metres", "/spec/metres").typed("integer").wide())
            .selectable(&["spec.metres"])
            .owns(&["lines"])
            .validate(|object, _| {
                let long = object["spec"]["metres"].as_u64().is_some_and(|m| 400 < m);
                if long { vec![Cause::invalid("spec.metres", "no harbour takes it")] } else { vec![] }
            });
        let kinds = vec![boats, KindSpec::of::<LineSpec>()];
        let (stop, registry) = (CancellationToken::new(), prometheus::Registry::new());
        let server = ApiServer::new(store, kinds, limits, &registry, stop.clone()).unwrap();
        Self { server, stop, registry, _dir: dir }
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>, who: Arc<dyn Authorizer>) -> Response<Body> {
        self.server.handle(request, who).await
    }

    pub(crate) async fn call(&self, method: &str, path: &str, kind: &str, body: &str) -> (StatusCode, Value) {
        let request = Request::builder().method(method).uri(format!("/apis/moorline.dev/v1alpha1{path}"));
        let request = request.header("content-type", kind).body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let response = self.send(request, Arc::new(Everything)).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.call("GET", path, "", "").await
    }

    pub(crate) async fn boat(&self, name: &str, labels: Value) -> Value {
        let boat = json!({ "metadata": { "name": name, "labels": labels }, "spec": { "metres": 10 } });
        let (status, made) = self.call("POST", "/boats", "application/json", &boat.to_string()).await;
        assert_eq!(status, 201, "{made}");
        made
    }
}
