//! HTTP to services: one exchange a stream, over pooled connections that were judged as they were dialled.

use super::{Failure, Inside, dial, resolve::Found, tls};
use crate::{
    limits,
    upstream::{chain, settle},
};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use moorline_authz::edge::EdgePolicy;
use moorline_link::Stream;
use moorline_proto::inside::{Destination, Inside as Target, Payload};
use moorline_proxy::{
    Body, body,
    headers::strip_credentials,
    status::refusal_response,
    upgrade::UpgradedIo,
    wire::{self, WantsUpgrade, WireError},
};
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The pools of one policy: with another one every connection is judged anew.
struct Clients {
    policy: Arc<EdgePolicy>,
    /// HTTP/1.1 in plain text; over TLS what the service prefers.
    any: Client<Connector, Body>,
    /// HTTP/2 in plain text, known to be spoken.
    h2c: Client<Connector, Body>,
    /// HTTP/1.1 alone: for upgrades.
    h1: Client<Connector, Body>,
}

/// Sends requests to services.
pub(super) struct Web {
    inside: Weak<Inside>,
    clients: Mutex<Option<Arc<Clients>>>,
}

impl Web {
    pub fn new(inside: Weak<Inside>) -> Self {
        Self { inside, clients: Mutex::default() }
    }

    fn clients(&self, policy: &Arc<EdgePolicy>) -> Arc<Clients> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        match &*clients {
            Some(known) if Arc::ptr_eq(&known.policy, policy) => known.clone(),
            _ => {
                let make = |alpn: &'static [&'static [u8]], http2: bool| {
                    let connector = Connector { inside: self.inside.clone(), policy: policy.clone(), alpn };
                    Client::builder(TokioExecutor::new())
                        .pool_timer(TokioTimer::new())
                        .timer(TokioTimer::new())
                        .pool_idle_timeout(limits::WEB_KEPT)
                        .pool_max_idle_per_host(limits::WEB_IDLE)
                        .set_host(false)
                        .http2_only(http2)
                        .http2_initial_stream_window_size(limits::UPSTREAM_STREAM_WINDOW)
                        .http2_initial_connection_window_size(limits::UPSTREAM_CONNECTION_WINDOW)
                        .http2_max_send_buf_size(limits::UPSTREAM_SEND_BUFFER)
                        .build(connector)
                };
                let any = make(&[b"h2", b"http/1.1"], false);
                let (h2c, h1) = (make(&[b"h2"], true), make(&[b"http/1.1"], false));
                let new = Arc::new(Clients { policy: policy.clone(), any, h2c, h1 });
                *clients = Some(new.clone());
                new
            }
        }
    }

    /// Serves one exchange. Failures to reach the service are answers.
    pub async fn serve(
        &self,
        stream: Stream,
        target: &Target,
        found: &Found,
        policy: &Arc<EdgePolicy>,
    ) -> Result<(), WireError> {
        let clients = self.clients(policy);
        wire::serve(stream, async |request| match exchange(&clients, request, target, found).await {
            Ok(answer) => answer,
            Err(failure) => {
                if let Some(inside) = self.inside.upgrade() {
                    inside.count(failure.code().name());
                    inside.resolver.forget(&target.to);
                }
                refusal_response(failure.code(), &failure.to_string())
            }
        })
        .await
    }
}

async fn exchange(
    clients: &Clients,
    request: Request<Body>,
    target: &Target,
    found: &Found,
) -> Result<Response<Body>, Failure> {
    let bad = |why: &str| Failure::Unreachable(format!("the request to {} cannot be sent: {why}", target.to));
    let upgrade = request.extensions().get::<WantsUpgrade>().is_some();
    let https = target.payload == Payload::Https;
    let (mut head, content) = request.into_parts();
    head.extensions.clear();
    strip_credentials(&mut head.headers);
    let Destination::Service { namespace, name, .. } = &target.to else {
        return Err(Failure::NotFound("only services are reached by path".to_owned()));
    };
    let authority = format!("{name}.{namespace}.svc:{}", found.port);
    if !head.headers.contains_key(header::HOST) {
        let host = HeaderValue::try_from(authority.as_str()).map_err(|e| bad(&e.to_string()))?;
        head.headers.insert(header::HOST, host);
    }
    let grpc =
        head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    head.uri = Uri::builder()
        .scheme(if https { "https" } else { "http" })
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|e| bad(&e.to_string()))?;
    let content = if upgrade { body::empty() } else { content };
    let client = match () {
        () if upgrade => {
            head.version = Version::HTTP_11;
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            &clients.h1
        }
        () if !https && (found.h2c || grpc) => {
            head.version = Version::HTTP_2;
            &clients.h2c
        }
        () => {
            head.version = Version::HTTP_11;
            if !https {
                head.headers.remove(header::TE);
            }
            &clients.any
        }
    };
    let content = settle(&head.method, &head.headers, content).await.map_err(|e| bad(&chain(&e)))?;
    let mut answer = match client.request(Request::from_parts(head, content)).await {
        Ok(answer) => answer,
        Err(e) => return Err(failure(&e, target)),
    };
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let broken = |e: &dyn std::error::Error| Failure::Unreachable(format!("{} broke off: {}", target.to, chain(e)));
        let upgraded = hyper::upgrade::on(&mut answer).await.map_err(|e| broken(&e))?;
        let (mut head, _) = answer.into_parts();
        head.extensions.insert(UpgradedIo::new(TokioIo::new(upgraded)));
        return Ok(Response::from_parts(head, body::empty()));
    }
    Ok(answer.map(body::from))
}

fn failure(e: &(dyn std::error::Error + 'static), target: &Target) -> Failure {
    let mut cause = Some(e);
    while let Some(inner) = cause {
        if let Some(failure) = inner.downcast_ref::<Failure>() {
            return failure.clone();
        }
        cause = inner.source();
    }
    let (to, why) = (&target.to, chain(e));
    let hint =
        if target.payload == Payload::Https { "" } else { "; does it speak TLS? then name it with https: in front" };
    Failure::Unreachable(format!("{to} broke off before it answered: {why}{hint}"))
}

/// Dials services by the names that [`exchange`] makes.
#[derive(Clone)]
struct Connector {
    inside: Weak<Inside>,
    policy: Arc<EdgePolicy>,
    alpn: &'static [&'static [u8]],
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Socket>;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<TokioIo<Socket>, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let gone = || Failure::Unreachable("the agent is going away".to_owned());
            let inside = this.inside.upgrade().ok_or_else(gone)?;
            let to = Destination::host(uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
            let to = to.map_err(|e| Failure::NotFound(e.to_string()))?;
            let found = inside.resolver.find(&to, super::resolve::Transport::Tcp).await?;
            let addresses = inside.judged(&this.policy, &found.addresses).await?;
            let tcp = dial::any(&to, &addresses).await?;
            if uri.scheme_str() != Some("https") {
                return Ok(TokioIo::new(Socket { io: Box::new(tcp), h2: false }));
            }
            let config = tls::config(&inside.resolver.roots(), &this.policy, &to, this.alpn)?;
            let stream = tls::handshake(tcp, &found.host, &to, config).await?;
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Ok(TokioIo::new(Socket { io: Box::new(stream), h2 }))
        })
    }
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Duplex for T {}

/// A connection to a service.
struct Socket {
    io: Box<dyn Duplex>,
    h2: bool,
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        if self.h2 { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}
impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}
impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
