//! The WebSocket carrier's front door: an upgraded connection becomes an agent's.

use crate::{crowd::Crowd, listener::TlsPair, seat::Seat, sessions::Sessions};
use arc_swap::ArcSwap;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use moorline_link::{accept_websocket, websocket};
use moorline_proxy::{Body, body, status::status_response};
use std::{net::SocketAddr, sync::Arc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// What an upgrade needs.
pub(crate) struct Door {
    pub sessions: Arc<Sessions>,
    pub tls: Arc<ArcSwap<TlsPair>>,
    pub link_limits: moorline_link::Limits,
    /// Those of the port: an upgrade is one more handshake.
    pub handshakes: Arc<Crowd>,
    /// Everything ends.
    pub kill: CancellationToken,
}

impl Door {
    /// Whether a request is for this door.
    pub fn takes<B>(request: &Request<B>) -> bool {
        request.uri().path() == websocket::PATH
    }

    /// Agrees to the upgrade, or says why not. Who is there is found out by the TLS within. `seat`: the connection's, which
    /// a session does not need: it has bounds of its own.
    pub async fn open(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        remote: SocketAddr,
        seat: Seat,
    ) -> Response<Body> {
        let head = match websocket::upgrade(&request) {
            Ok(head) => head,
            Err((code, why)) => return status_response(code, why),
        };
        // Many agents may come by one proxy.
        let turn = match self.handshakes.wait(remote.ip(), self.sessions.limits.handshake).await {
            Ok(turn) => turn,
            Err(full) => {
                self.sessions.metrics.handshake_failures.with_label_values(&[full.label()]).inc();
                return status_response(http::StatusCode::SERVICE_UNAVAILABLE, "too many agents are connecting");
            }
        };
        let upgraded = hyper::upgrade::on(&mut request);
        let door = Arc::clone(self);
        self.sessions.tasks.spawn(async move {
            let greeted = async {
                let upgraded = timeout(door.link_limits.handshake, upgraded).await.ok()?.ok()?;
                let tls = Arc::clone(&door.tls.load().tunnel);
                match accept_websocket(TokioIo::new(upgraded), tls, remote, &door.link_limits).await {
                    Ok(greeting) => Some(greeting),
                    Err(error) => {
                        door.sessions.metrics.handshake_failed(&error);
                        tracing::info!(%remote, "no greeting: {error}");
                        None
                    }
                }
            };
            let greeting = door.kill.run_until_cancelled(greeted).await.flatten();
            drop(turn);
            if let Some(greeting) = greeting {
                door.sessions.admit(greeting).await;
            }
            seat.leave();
        });
        head.map(|()| body::full(""))
    }
}
