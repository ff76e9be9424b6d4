//! One question to a cluster whose answer is bounded in size and time, and need not be good.

use http::Request;
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use std::time::Duration;
use tokio::{sync::Semaphore, time::timeout};

/// Longest time that an answer's body may take, once it has begun. Its beginning is bounded for all plugins.
const BODY: Duration = Duration::from_secs(10);

/// Status and body. `None`: there was none, or it is too large or too slow. Takes one of `places` until it is there.
pub(crate) async fn ask(
    cluster: &kube::Client,
    path: &str,
    largest: usize,
    places: Option<&Semaphore>,
) -> Option<(u16, Vec<u8>)> {
    // Before it is asked: whoever waits for a place has no body that could come too slowly.
    let _place = match places {
        Some(places) => Some(places.acquire().await.ok()?),
        None => None,
    };
    let request = Request::get(path).header(http::header::ACCEPT, "application/json").body(Body::empty()).ok()?;
    let answer = cluster.send(request).await.ok()?;
    let code = answer.status().as_u16();
    let body = timeout(BODY, Limited::new(answer.into_body(), largest).collect()).await.ok()?.ok()?;
    Some((code, body.to_bytes().to_vec()))
}
