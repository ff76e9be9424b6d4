//! The shell's way to the API server: plain HTTP within its own network, answered by the agent as the user.

use crate::limits;
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use moorline_proxy::{
    Body, body,
    headers::clean_response,
    status::status_response,
    upgrade::{UpgradedIo, copy_both},
};
use std::{convert::Infallible, sync::Arc};
use tokio::{net::TcpListener, task::JoinSet};

/// Answers calls to the API server on behalf of one user.
pub trait Kube: Send + Sync + 'static {
    /// One call, its headers as the client sent them: whom it asks to act as, and whether for an upgrade, they say. A 101
    /// carries [`UpgradedIo`].
    fn call(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>>;
}

/// Serves a shell's calls. Never ends.
///
/// # Cancel safety
/// Dropping the future ends every call.
pub(crate) async fn serve(listener: &TcpListener, kube: &Arc<dyn Kube>) {
    let mut connections = JoinSet::new();
    loop {
        if limits::CALLS <= connections.len() {
            connections.join_next().await;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((conn, _)) = accepted else {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await; // out of descriptors: no tight loop
            continue;
        };
        let kube = kube.clone();
        connections.spawn(async move {
            // Ends with the connection, for its task ends then: what an upgrade left behind is moved here.
            let (tell, mut told) = tokio::sync::mpsc::channel(1);
            let service = service_fn(|request| {
                let (kube, tell) = (kube.clone(), tell.clone());
                async move { Ok::<_, Infallible>(answer(request, &*kube, &tell).await) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(limits::HEAD);
            let _ = builder.serve_connection(TokioIo::new(conn), service).with_upgrades().await; // the client's trouble
            if let Ok((on_upgrade, io)) = told.try_recv() {
                splice(on_upgrade, io).await;
            }
        });
    }
}

type Upgrade = (hyper::upgrade::OnUpgrade, UpgradedIo);

async fn answer(
    mut request: Request<Incoming>,
    kube: &dyn Kube,
    tell: &tokio::sync::mpsc::Sender<Upgrade>,
) -> Response<Body> {
    let on_upgrade = hyper::upgrade::on(&mut request);
    let mut response = kube.call(request.map(body::from)).await;
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    clean_response(response.headers_mut(), upgraded);
    if upgraded {
        let io = response.extensions_mut().remove::<UpgradedIo>();
        let handed = io.is_some_and(|io| tell.try_send((on_upgrade, io)).is_ok());
        if !handed {
            return status_response(StatusCode::BAD_GATEWAY, "this connection cannot be upgraded");
        }
    }
    response
}

async fn splice(on_upgrade: hyper::upgrade::OnUpgrade, io: UpgradedIo) {
    if let (Ok(client), Some(mut cluster)) = (on_upgrade.await, io.take()) {
        let _ = copy_both(&mut TokioIo::new(client), &mut cluster).await; // one of them is gone: so is the call
    }
}
