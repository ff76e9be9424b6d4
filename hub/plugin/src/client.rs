//! kube-rs clients without sockets: requests of a plugin are handed to the hub as they are.

use crate::{
    answers::{Counted, bounded},
    limits,
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Limited, combinators::UnsyncBoxBody};
use std::{
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::Semaphore;

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The hub, as plugins' requests reach it.
pub trait Backend: Send + Sync + 'static {
    /// A request to the hub's own API.
    fn hub(
        &self,
        plugin: &'static str,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Body>, BoxError>>;
    /// A request to a cluster's API server, through the tunnel, as the plugin's own user.
    fn cluster(
        &self,
        plugin: &'static str,
        cluster: &str,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Body>, BoxError>>;
}

/// What a client's requests go to.
#[derive(Clone)]
pub(crate) enum Target {
    /// The hub's API, and the places that the plugin has there.
    Hub(Arc<Semaphore>),
    Cluster(String),
}

/// The lowest layer of a client.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) backend: Weak<dyn Backend>,
    pub(crate) plugin: &'static str,
    pub(crate) target: Target,
}

impl Wire {
    /// A client. To be made on the runtime that uses it.
    pub(crate) fn client(self) -> kube::Client {
        kube::Client::new(self, "default")
    }
}

impl tower_service::Service<Request<kube::client::Body>> for Wire {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let Self { backend, plugin, target } = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let bytes = Limited::new(body, limits::REQUEST).collect().await?.to_bytes();
            let request = Request::from_parts(parts, bytes);
            let watch = request.uri().query().is_some_and(|query| query.contains("watch="));
            let answer = async {
                // Until the head of the answer: a watch that is open takes no place.
                let _place = match &target {
                    Target::Hub(places) => Some(places.acquire().await?),
                    Target::Cluster(_) => None,
                };
                let Some(backend) = backend.upgrade() else { return Err("the hub is ending".into()) };
                let answer = match &target {
                    Target::Hub(_) => backend.hub(plugin, request),
                    Target::Cluster(name) => backend.cluster(plugin, name, request),
                };
                drop(backend);
                answer.await
            };
            let answer = within(limits::ANSWER, answer).await?;
            Ok(match target {
                Target::Hub(_) => answer,
                Target::Cluster(_) => {
                    let counted = match (answer.status().is_success(), watch) {
                        // kube-rs reads a refusal to its end, of a watch too.
                        (false, _) => Counted::Refusal,
                        (true, true) => Counted::Lines,
                        (true, false) => Counted::Whole,
                    };
                    answer.map(|body| bounded(body, counted))
                }
            })
        })
    }
}

async fn within<T>(limit: Duration, answer: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", limit.as_secs()).into()),
    }
}
