//! The way to the cluster's API server: pooled HTTP/2, upgrades on HTTP/1.1, the credential added here and nowhere else.

mod dial;
mod endpoint;
mod given;
mod pool;

pub use endpoint::EndpointError;
pub(crate) use endpoint::chain;
pub use given::GivenKubeconfig;

use crate::{UpstreamConfig, limits, metrics::Metrics};
use bytes::Bytes;
use dial::Dialled;
use endpoint::Endpoint;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use moorline_proxy::{
    Body, BodyError, body,
    edge::{Upstream, UpstreamError},
    upgrade::UpgradedIo,
    wire::WantsUpgrade,
};
use pool::{Lease, Pool, Way};
use std::{
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
};
use tokio_util::task::AbortOnDropHandle;

/// The cluster's API server.
pub struct ApiServer {
    config: UpstreamConfig,
    pool: RwLock<Arc<Pool>>,
    metrics: Metrics,
}

impl ApiServer {
    /// Reads where it is. Dials nothing yet.
    ///
    /// # Errors
    /// Address or credential cannot be read.
    pub async fn new(config: UpstreamConfig, metrics: Metrics) -> Result<Self, EndpointError> {
        let endpoint = Endpoint::read(&config).await?;
        let pool = RwLock::new(Arc::new(Pool::new(endpoint, metrics.upstream_connections.clone())));
        Ok(Self { config, pool, metrics })
    }

    /// Host, without brackets, and port.
    pub fn address(&self) -> (String, u16) {
        let pool = self.pool();
        let (host, port) = pool.endpoint.peer();
        (host.to_owned(), port)
    }

    /// The authorities that vouch for it.
    pub fn roots(&self) -> Vec<rustls_pki_types::CertificateDer<'static>> {
        self.pool().endpoint.roots().to_vec()
    }

    fn pool(&self) -> Arc<Pool> {
        self.pool.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads address and credential again and again, and closes idle connections. Never ends.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn maintain(&self) {
        let mut told: Option<EndpointError> = None;
        loop {
            tokio::time::sleep(limits::CREDENTIAL_REFRESH).await;
            let pool = self.pool();
            pool.sweep();
            match Endpoint::read(&self.config).await {
                Ok(new) => {
                    told = None;
                    self.put(&pool, new);
                }
                Err(e) if told.as_ref() != Some(&e) => {
                    tracing::warn!(cause = %e, "the API server's address or credential cannot be read again; the last good one stays");
                    told = Some(e);
                }
                Err(_) => {}
            }
        }
    }

    fn put(&self, pool: &Pool, new: Endpoint) {
        if pool.endpoint.same(&new) {
            return;
        }
        let next = if pool.endpoint.same_peer(&new) {
            pool.with_endpoint(new)
        } else {
            tracing::info!(address = %new.authority, "the API server's address or certificates changed");
            Pool::new(new, self.metrics.upstream_connections.clone())
        };
        *self.pool.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    /// A call of the agent's own, as itself: bounded in time and size.
    ///
    /// # Errors
    /// As for any request; an answer that is too large is `Broken`.
    pub async fn own(&self, request: Request<Body>) -> Result<(StatusCode, Bytes), UpstreamError> {
        let call = async {
            let (head, answer) = self.send(request).await?.into_parts();
            let whole = Limited::new(answer, limits::OWN_ANSWER).collect().await;
            Ok((head.status, whole.map_err(|e| UpstreamError::Broken(e.to_string()))?.to_bytes()))
        };
        tokio::time::timeout(limits::OWN_CALL, call).await.map_err(|_| UpstreamError::Timeout)?
    }

    async fn exchange(&self, request: Request<Body>) -> Result<Response<Body>, UpstreamError> {
        let pool = self.pool();
        let upgrade = request.extensions().get::<WantsUpgrade>().is_some();
        let (mut head, content) = request.into_parts();
        head.extensions.clear();
        if let Some(credential) = &pool.endpoint.credential {
            head.headers.insert(header::AUTHORIZATION, credential.clone());
        }
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let path = format!("{}{path}", pool.endpoint.prefix());
        if upgrade {
            return Box::pin(self.upgrade(&pool, head, &path, content)).await;
        }
        let content = settle(&head.method, &head.headers, content).await?;
        self.pooled(&pool, head, &path, content).await
    }

    async fn upgrade(
        &self,
        pool: &Pool,
        mut head: http::request::Parts,
        path: &str,
        content: Body,
    ) -> Result<Response<Body>, UpstreamError> {
        head.uri = path.parse().map_err(|_| target())?;
        head.version = Version::HTTP_11;
        head.headers.insert(header::CONNECTION, http::HeaderValue::from_static("Upgrade"));
        host(&mut head.headers, &pool.endpoint)?;
        // Nothing of an upgrade's body is sent: what follows belongs to the new protocol.
        let content = if head.headers.contains_key(header::CONTENT_LENGTH) { content } else { body::empty() };
        match dial::single(&pool.endpoint).await? {
            Dialled::Single(send, task) => single(send, task, Request::from_parts(head, content)).await,
            Dialled::Shared(..) => Err(UpstreamError::Unreachable("it has no HTTP/1.1".to_owned())),
        }
    }

    async fn pooled(
        &self,
        pool: &Pool,
        head: http::request::Parts,
        path: &str,
        content: Body,
    ) -> Result<Response<Body>, UpstreamError> {
        let bodyless = content.is_end_stream();
        let safe = matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let (mut content, mut fresh) = (content, false);
        loop {
            let mut head = head.clone();
            let (lease, reused) = match pool.way(fresh).await? {
                Way::Shared(lease, reused) => (lease, reused),
                Way::Single(send, task) => {
                    head.uri = path.parse().map_err(|_| target())?;
                    head.version = Version::HTTP_11;
                    host(&mut head.headers, &pool.endpoint)?;
                    return single(send, task, Request::from_parts(head, content)).await;
                }
            };
            head.uri = Uri::builder()
                .scheme("https")
                .authority(pool.endpoint.authority.clone())
                .path_and_query(path)
                .build()
                .map_err(|_| target())?;
            head.version = Version::HTTP_2;
            head.headers.remove(header::HOST);
            match lease.sender().try_send_request(Request::from_parts(head, content)).await {
                Ok(answer) => {
                    return Ok(answer.map(|incoming| {
                        Answer { inner: body::from(incoming), held: Held::Place(lease) }.boxed_unsync()
                    }));
                }
                Err(mut e) => {
                    let unsent = e.take_message();
                    let cause = e.into_error();
                    // A second try only where the first cannot have had an effect, and once.
                    content = match unsent {
                        Some(unsent) if !fresh && reused => unsent.into_body(),
                        None if !fresh && bodyless && (refused(&cause) || (safe && reused)) => body::empty(),
                        _ => return Err(failure(&cause)),
                    };
                    tracing::debug!(cause = %chain(&cause), "the connection to the API server was dead; one more try");
                    fresh = true;
                }
            }
        }
    }
}

impl Upstream for ApiServer {
    fn send(&self, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, UpstreamError>> {
        Box::pin(async move {
            let result = self.exchange(request).await;
            let label = match &result {
                Ok(_) => "answered",
                Err(UpstreamError::Unreachable(_)) => "unreachable",
                Err(UpstreamError::Timeout) => "timeout",
                Err(UpstreamError::Broken(_)) => "broken",
                Err(UpstreamError::Body(_)) => "body",
            };
            self.metrics.upstream_requests.with_label_values(&[label]).inc();
            result
        })
    }
}

/// Sends one request on a connection of its own, which lives as long as the answer.
async fn single(
    mut send: hyper::client::conn::http1::SendRequest<Body>,
    task: AbortOnDropHandle<()>,
    request: Request<Body>,
) -> Result<Response<Body>, UpstreamError> {
    let mut answer = send.send_request(request).await.map_err(|e| failure(&e))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upgraded = hyper::upgrade::on(&mut answer).await.map_err(|e| failure(&e))?;
        let (mut head, _) = answer.into_parts();
        head.extensions.insert(UpgradedIo::new(TokioIo::new(upgraded)));
        return Ok(Response::from_parts(head, body::empty()));
    }
    Ok(answer.map(|incoming| Answer { inner: body::from(incoming), held: Held::Connection(task) }.boxed_unsync()))
}

fn host(headers: &mut HeaderMap, endpoint: &Endpoint) -> Result<(), UpstreamError> {
    headers.insert(header::HOST, http::HeaderValue::from_str(endpoint.authority.as_str()).map_err(|_| target())?);
    Ok(())
}

fn target() -> UpstreamError {
    UpstreamError::Unreachable("the request's target cannot be sent".to_owned())
}

/// A GET seldom has a body, but the tunnel shows that only at its end: looked at here, so that such a request goes out
/// in one frame and may be tried again.
pub(crate) async fn settle(method: &Method, headers: &HeaderMap, mut content: Body) -> Result<Body, UpstreamError> {
    let seldom = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    if content.is_end_stream() || !seldom || headers.contains_key(header::CONTENT_LENGTH) {
        return Ok(content);
    }
    match content.frame().await {
        None => Ok(body::empty()),
        Some(Ok(first)) => Ok(Rest { first: Some(first), rest: content }.boxed_unsync()),
        Some(Err(e)) => Err(UpstreamError::Body(e)),
    }
}

/// The API server said that it did not process the request (RFC 9113 §8.7).
fn refused(e: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(e);
    while let Some(inner) = source {
        if let Some(h2) = inner.downcast_ref::<h2::Error>() {
            return h2.is_remote() && (h2.is_go_away() || h2.reason() == Some(h2::Reason::REFUSED_STREAM));
        }
        source = inner.source();
    }
    false
}

fn failure(e: &hyper::Error) -> UpstreamError {
    if e.is_canceled() { UpstreamError::Unreachable(chain(e)) } else { UpstreamError::Broken(chain(e)) }
}

/// What lives as long as an answer.
enum Held {
    Place(#[expect(dead_code, reason = "held for its drop")] Lease),
    Connection(#[expect(dead_code, reason = "held for its drop")] AbortOnDropHandle<()>),
}

/// An answer's body, and what must live as long.
struct Answer {
    inner: Body,
    #[expect(dead_code, reason = "held for its drop")]
    held: Held,
}
impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body of which one frame was looked at.
struct Rest {
    first: Option<Frame<Bytes>>,
    rest: Body,
}
impl http_body::Body for Rest {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }
}
