//! A server that gives and takes bytes as fast as it can, in the API server's place for the bulk measurements:
//! the real one has nothing that streams gigabytes.

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{convert::Infallible, net::SocketAddr, path::Path, pin::Pin, sync::Arc, task::Poll};
use tokio::net::TcpListener;

const CHUNK: &[u8] = &[0x5a; 64 << 10];

/// A stream of `left` bytes.
struct Zeros {
    left: u64,
}
impl hyper::body::Body for Zeros {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(CHUNK.len());
        self.left -= n as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK[..n])))))
    }
    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.left)
    }
}

/// A body of `bytes` bytes.
pub fn bytes_body(bytes: u64) -> UnsyncBoxBody<Bytes, Infallible> {
    Zeros { left: bytes }.boxed_unsync()
}

async fn answer(request: Request<Incoming>) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    if let Some(bytes) = request.uri().path().rsplit_once("/bulk/").and_then(|(_, n)| n.parse().ok()) {
        return Ok(Response::new(bytes_body(bytes)));
    }
    let mut body = request.into_body();
    let mut taken = 0usize;
    while let Some(Ok(frame)) = body.frame().await {
        taken += frame.data_ref().map_or(0, Bytes::len);
    }
    let text = format!("{taken}\n");
    Ok(Response::new(Full::new(Bytes::from(text)).boxed_unsync()))
}

/// Serves until it is killed.
pub async fn serve(listen: SocketAddr, cert: &Path, key: &Path) -> Result<()> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            CertificateDer::pem_file_iter(cert)?.collect::<Result<_, _>>()?,
            PrivateKeyDer::from_pem_file(key)?,
        )?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            builder
                .http2()
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(64 << 20)
                .max_frame_size(64 << 10)
                .max_send_buf_size(1 << 20);
            drop(builder.serve_connection(TokioIo::new(tls), service_fn(answer)).await);
        });
    }
}
