//! HTTP to services: one exchange a stream, over pooled connections that were judged as they were dialled.

use super::{
    Failure, Inside, dial,
    kept::{Kept, Unanswered},
    resolve::Found,
    tls,
};
use crate::{
    limits,
    upstream::{chain, settle},
};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header, uri::PathAndQuery};
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
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::yield_now,
};

/// The pools of one policy: with another one every connection is judged anew.
struct Clients {
    policy: Arc<EdgePolicy>,
    /// HTTP/1.1 in plain text: most of what there is.
    plain: Arc<Kept>,
    /// Over TLS, what the service prefers.
    tls: Client<Connector, Body>,
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
                let tls = make(&[b"h2", b"http/1.1"], false);
                let (h2c, h1) = (make(&[b"h2"], true), make(&[b"http/1.1"], false));
                let new = Arc::new(Clients { policy: policy.clone(), plain: Arc::default(), tls, h2c, h1 });
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
        let answer = async |request| match self.exchange(&clients, request, target, found).await {
            Ok(answer) => answer,
            Err(failure) => {
                if let Some(inside) = self.inside.upgrade() {
                    inside.count(failure.code().name());
                    inside.resolver.forget(&target.to);
                }
                refusal_response(failure.code(), &failure.to_string())
            }
        };
        wire::serve(stream, answer).await?;
        // The answer waits for the session's own task, the next one of this thread. The end of this one wakes another, which
        // would come before it and send it off to a thread that sleeps.
        yield_now().await;
        Ok(())
    }

    async fn exchange(
        &self,
        clients: &Clients,
        request: Request<Body>,
        target: &Target,
        found: &Found,
    ) -> Result<Response<Body>, Failure> {
        let asked = Asked::new(request, target, found).await?;
        if asked.how != How::Plain {
            return through(clients, asked, target).await;
        }
        let Asked { head, content, authority, .. } = asked;
        let (name, policy) = (authority.as_str(), &clients.policy);
        let dial = async {
            let to = place(name.rsplit_once(':').map_or(name, |(host, _)| host), found.port)?;
            Ok(connect(&self.inside, policy, &to).await?.0)
        };
        let answer = clients.plain.send(name, Request::from_parts(head, content), dial).await;
        answer.map_err(|e| match e {
            Unanswered::Dial(failure) => failure,
            Unanswered::Http(e) => failure(&e, target),
        })
    }
}

/// How a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// HTTP/1.1 in plain text.
    Plain,
    /// Over TLS, as the service likes it.
    Tls,
    /// HTTP/2 in plain text.
    H2c,
    /// As something else, if the service agrees.
    Upgrade,
}

/// A request as the service shall see it.
struct Asked {
    head: http::request::Parts,
    content: Body,
    authority: String,
    how: How,
}

impl Asked {
    async fn new(request: Request<Body>, target: &Target, found: &Found) -> Result<Self, Failure> {
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
        let how = match () {
            () if upgrade => How::Upgrade,
            () if https => How::Tls,
            () if found.h2c || grpc => How::H2c,
            () => How::Plain,
        };
        head.version = if how == How::H2c { Version::HTTP_2 } else { Version::HTTP_11 };
        match how {
            How::Upgrade => {
                head.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            }
            // Of one connection alone (RFC 9110 §10.1.4).
            How::Plain => {
                head.headers.remove(header::TE);
            }
            How::Tls | How::H2c => {}
        }
        let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        head.uri = match how {
            How::Plain => path.into(),
            _ => Uri::builder()
                .scheme(if https { "https" } else { "http" })
                .authority(authority.as_str())
                .path_and_query(path)
                .build()
                .map_err(|e| bad(&e.to_string()))?,
        };
        let content = if upgrade { body::empty() } else { content };
        let content = settle(&head.method, &head.headers, content).await.map_err(|e| bad(&chain(&e)))?;
        Ok(Self { head, content, authority, how })
    }
}

/// The answer of a service by one of the clients that know more than HTTP/1.1 in plain text.
async fn through(clients: &Clients, asked: Asked, target: &Target) -> Result<Response<Body>, Failure> {
    let client = match asked.how {
        How::Upgrade => &clients.h1,
        How::H2c => &clients.h2c,
        How::Tls | How::Plain => &clients.tls,
    };
    let mut answer = match client.request(Request::from_parts(asked.head, asked.content)).await {
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

/// The place that an authority names.
fn place(host: &str, port: u16) -> Result<Destination, Failure> {
    Destination::host(host, port).map_err(|e| Failure::NotFound(e.to_string()))
}

/// A connection to a place, at an address that `policy` permits; the place as it was found.
async fn connect(
    inside: &Weak<Inside>,
    policy: &EdgePolicy,
    to: &Destination,
) -> Result<(TcpStream, Arc<Found>), Failure> {
    let gone = || Failure::Unreachable("the agent is going away".to_owned());
    let inside = inside.upgrade().ok_or_else(gone)?;
    let found = inside.resolver.find(to, super::resolve::Transport::Tcp).await?;
    let addresses = inside.judged(policy, &found.addresses).await?;
    Ok((dial::any(to, &addresses).await?, found))
}

/// Dials services by the names that [`Asked`] makes.
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
            let to = place(uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80))?;
            let (tcp, found) = connect(&this.inside, &this.policy, &to).await?;
            if uri.scheme_str() != Some("https") {
                return Ok(TokioIo::new(Socket { io: Box::new(tcp), h2: false }));
            }
            let gone = || Failure::Unreachable("the agent is going away".to_owned());
            let roots = this.inside.upgrade().ok_or_else(gone)?.resolver.roots();
            let config = tls::config(&roots, &this.policy, &to, this.alpn)?;
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
