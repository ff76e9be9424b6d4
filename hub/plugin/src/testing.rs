//! What stands in for a hub's clusters where a plugin is tested: answers without a network, of which each test says what is
//! in them.

use crate::{Backend, Body, BoxError, ClusterFacts};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future, future::BoxFuture, stream};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};
use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

/// What a [`Backend`] gives.
pub type Answered = BoxFuture<'static, Result<Response<Body>, BoxError>>;

/// Clusters that answer by a function, at a hub that answers nothing.
struct Answering<F>(F);

impl<F: Fn(Request<Bytes>) -> Answered + Send + Sync + 'static> Backend for Answering<F> {
    fn hub(&self, _: &'static str, _: Request<Bytes>) -> Answered {
        async { Err("there is no hub".into()) }.boxed()
    }
    fn cluster(&self, _: &'static str, _: &str, request: Request<Bytes>) -> Answered {
        (self.0)(request)
    }
}

/// A backend whose clusters answer so. Of a hub it has nothing.
pub fn clusters_that(answer: impl Fn(Request<Bytes>) -> Answered + Send + Sync + 'static) -> Arc<dyn Backend> {
    Arc::new(Answering(answer))
}

/// A whole answer.
pub fn answer(code: StatusCode, value: &Value) -> Answered {
    let body = Full::new(Bytes::from(value.to_string())).map_err(BoxError::from).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    future::ok(answer).boxed()
}

/// A refusal as Kubernetes writes it.
pub fn failure(code: StatusCode, reason: &str) -> Answered {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code.as_u16(),
        "message": reason });
    answer(code, &status)
}

/// Whether it is to be told of changes.
pub fn is_watch(request: &Request<Bytes>) -> bool {
    request.uri().query().is_some_and(|query| query.contains("watch=true"))
}

/// A watch that tells of this, once, and of nothing after it.
pub fn watch_of(first: impl Future<Output = Bytes> + Send + 'static) -> Answered {
    let line = first.map(|text| Ok::<_, Infallible>(Frame::data(text)));
    let body = StreamBody::new(line.into_stream().chain(stream::pending())).map_err(BoxError::from).boxed_unsync();
    future::ok(Response::new(body)).boxed()
}

/// These objects, of which nothing ever changes: a list of them, or a watch that is silent.
pub fn listed(request: &Request<Bytes>, items: &Value) -> Answered {
    if is_watch(request) {
        return watch_of(future::pending());
    }
    let list = json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "7" }, "items": items });
    answer(StatusCode::OK, &list)
}

/// A connected cluster: `edge1`, the first of that name.
pub fn edge1() -> ClusterFacts {
    ClusterFacts {
        name: "edge1".to_owned(),
        uid: "1".to_owned(),
        labels: BTreeMap::new(),
        connected: true,
        session: "s".to_owned(),
        leaving: false,
    }
}

/// A client for the cluster `edge1` of a backend.
#[cfg(test)]
pub(crate) fn client(backend: &Arc<dyn Backend>) -> kube::Client {
    let target = crate::client::Target::Cluster(edge1().name);
    crate::client::Wire { backend: Arc::downgrade(backend), plugin: "test", target }.client()
}
