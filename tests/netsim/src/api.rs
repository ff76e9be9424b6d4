//! An API server in name only: `/ticks` counts for ever, `/bytes/{n}` is that many bytes, `/compare` looks whether it is sent
//! the same, whatever else is sent comes back.

use crate::client::{Pattern, pattern};
use anyhow::Result;
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// How often `/ticks` says the next number.
pub const TICK: Duration = Duration::from_millis(100);
/// Bytes of `/bytes` that are written at once.
const PIECE: usize = 251 * 128;

type Answer = UnsyncBoxBody<Bytes, hyper::Error>;

/// Serves on `listener`, and leaves in `dir` a kubeconfig that leads there.
///
/// # Errors
/// The files cannot be written.
pub fn serve(listener: TcpListener, dir: &Path) -> Result<(PathBuf, AbortOnDropHandle<()>)> {
    let key = KeyPair::generate()?;
    let cert = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.self_signed(&key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )?;
    fs::write(dir.join("ca.crt"), cert.pem())?;
    fs::write(dir.join("token"), "edge-token\n")?;
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: 'https://{}', certificate-authority: ca.crt}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         users: [{{name: u, user: {{tokenFile: token}}}}]\n",
        listener.local_addr()?
    );
    let path = dir.join("kubeconfig");
    fs::write(&path, text)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            connections.spawn(connection(socket, acceptor.clone()));
            while connections.try_join_next().is_some() {}
        }
    });
    Ok((path, AbortOnDropHandle::new(task)))
}

async fn connection(socket: TcpStream, acceptor: TlsAcceptor) -> Result<()> {
    let io = TokioIo::new(acceptor.accept(socket).await?);
    Ok(hyper::server::conn::http1::Builder::new().serve_connection(io, service_fn(answer)).await?)
}

async fn answer(request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    let path = request.uri().path().to_owned();
    let size = path.strip_prefix("/bytes/").and_then(|size| size.parse::<usize>().ok());
    if path == "/ticks" {
        let ticks = futures_util::stream::unfold(0u64, |n| async move {
            if n > 0 {
                sleep(TICK).await;
            }
            Some((Ok(Frame::data(Bytes::from(format!("tick {n}\n")))), n + 1))
        });
        return Ok(Response::new(StreamBody::new(ticks.boxed()).map_err(never).boxed_unsync()));
    }
    if let Some(size) = size {
        let piece = Bytes::from(pattern(PIECE));
        let pieces = futures_util::stream::unfold(size, move |left| {
            let piece = piece.slice(..left.min(PIECE));
            async move { (left > 0).then(|| (Ok(Frame::data(piece.clone())), left - piece.len())) }
        });
        let mut response = Response::new(StreamBody::new(pieces.boxed()).map_err(never).boxed_unsync());
        response.headers_mut().insert(http::header::CONTENT_LENGTH, size.into());
        return Ok(response);
    }
    if path == "/compare" {
        let (mut body, mut sum, mut right) = (request.into_body(), Pattern::default(), true);
        while let Some(Ok(frame)) = body.frame().await {
            right &= frame.data_ref().is_none_or(|data| sum.add(data));
        }
        let said = format!("{} are {}", sum.0, if right { "right" } else { "wrong" });
        return Ok(Response::new(Full::new(Bytes::from(said)).map_err(never).boxed_unsync()));
    }
    if request.method() == http::Method::POST {
        return Ok(Response::new(request.into_body().boxed_unsync()));
    }
    Ok(Response::new(Full::new(Bytes::from_static(b"ok")).map_err(never).boxed_unsync()))
}

fn never(error: Infallible) -> hyper::Error {
    match error {}
}
