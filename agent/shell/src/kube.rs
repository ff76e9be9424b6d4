//! The shell's way to the API server: plain HTTP on a loopback, answered by the agent as the user.

use crate::limits;
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode, Uri};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use moorline_proxy::{
    Body, body,
    headers::clean_response,
    status::status_response,
    upgrade::{UpgradedIo, copy_both},
};
use std::{convert::Infallible, sync::Arc};
use subtle::ConstantTimeEq;
use tokio::{net::TcpListener, task::JoinSet};

/// Answers calls to the API server on behalf of one user.
pub trait Kube: Send + Sync + 'static {
    /// One call, its headers as the client sent them: whom it asks to act as, and whether for an upgrade, they say. A 101
    /// carries [`UpgradedIo`].
    fn call(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>>;
}

/// Where a shell's calls come in.
pub(crate) struct Door {
    listener: TcpListener,
    /// How paths begin for who may come in. `None`: nobody but the shell reaches the listener.
    key: Option<String>,
}

impl Door {
    /// On a loopback that is the shell's own.
    #[cfg(target_os = "linux")]
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, key: None }
    }

    /// On a loopback that others reach too: only who knows the key is answered. It is part of the server's address, for
    /// kubectl shows a server without TLS nothing else that a kubeconfig holds.
    #[cfg(any(windows, test))]
    pub fn with_key(listener: TcpListener) -> Self {
        Self { listener, key: Some(format!("/{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())) }
    }

    /// The server's address, for the shell's kubeconfig.
    #[cfg(any(windows, test))]
    pub fn server(&self) -> std::io::Result<String> {
        Ok(format!("http://{}{}", self.listener.local_addr()?, self.key.as_deref().unwrap_or_default()))
    }

    /// Serves a shell's calls. Never ends.
    ///
    /// # Cancel safety
    /// Dropping the future ends every call.
    pub async fn serve(&self, kube: &Arc<dyn Kube>) {
        let key: Option<Arc<str>> = self.key.as_deref().map(Arc::from);
        let mut connections = JoinSet::new();
        loop {
            if limits::CALLS <= connections.len() {
                connections.join_next().await;
            }
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let Ok((conn, _)) = accepted else {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await; // out of descriptors: no tight loop
                continue;
            };
            let (kube, key) = (kube.clone(), key.clone());
            connections.spawn(async move {
                // Ends with the connection, for its task ends then: what an upgrade left behind is moved here.
                let (tell, mut told) = tokio::sync::mpsc::channel(1);
                let service = service_fn(|request| {
                    let (kube, key, tell) = (kube.clone(), key.clone(), tell.clone());
                    async move { Ok::<_, Infallible>(answer(request, key.as_deref(), &*kube, &tell).await) }
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
}

/// What a shell's kubectl is told.
pub(crate) fn kubeconfig(cluster: &str, server: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": cluster, "cluster": { "server": server } }],
        "users": [{ "name": "me", "user": {} }],
        "contexts": [{ "name": cluster, "context": { "cluster": cluster, "user": "me" } }],
        "current-context": cluster,
    })
    .to_string()
}

/// Takes the key off a call's path. `None`: it has not the key.
fn unlocked(uri: &Uri, key: &str) -> Option<Uri> {
    let path = uri.path_and_query()?.as_str();
    let (shown, rest) = path.split_at_checked(key.len())?;
    if !bool::from(shown.as_bytes().ct_eq(key.as_bytes())) || !rest.starts_with('/') {
        return None;
    }
    rest.parse().ok()
}

type Upgrade = (hyper::upgrade::OnUpgrade, UpgradedIo);

async fn answer(
    mut request: Request<Incoming>,
    key: Option<&str>,
    kube: &dyn Kube,
    tell: &tokio::sync::mpsc::Sender<Upgrade>,
) -> Response<Body> {
    if let Some(key) = key {
        match unlocked(request.uri(), key) {
            Some(uri) => *request.uri_mut() = uri,
            None => return status_response(StatusCode::FORBIDDEN, "this is the way of a shell's own kubectl"),
        }
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    /// Answers with what was asked for.
    struct Echo;
    impl Kube for Echo {
        fn call(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
            let asked = request.uri().to_string();
            async move { Response::new(body::full(asked)) }.boxed()
        }
    }

    #[tokio::test]
    async fn a_door_with_a_key_is_open_to_who_has_it() {
        let door = Door::with_key(TcpListener::bind(("127.0.0.1", 0)).await.unwrap());
        let server: Uri = door.server().unwrap().parse().unwrap();
        let key = server.path().to_owned();
        let addr = door.listener.local_addr().unwrap();
        tokio::spawn(async move { door.serve(&(Arc::new(Echo) as Arc<dyn Kube>)).await });
        let ask = async |path: &str| {
            let mut conn = TcpStream::connect(addr).await.unwrap();
            let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            conn.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            conn.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = ask(&format!("{key}/api/v1/pods?limit=1")).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n/api/v1/pods?limit=1"), "{answer}");
        let (almost, longer) = (&key[..key.len() - 1], format!("{key}0/api"));
        for path in ["/api/v1/pods", "/", almost, &key, &longer, &format!("/x{key}/api"), &format!("//{key}/api")] {
            let answer = ask(path).await;
            assert!(answer.starts_with("HTTP/1.1 403"), "{path}: {answer}");
        }
    }
}
