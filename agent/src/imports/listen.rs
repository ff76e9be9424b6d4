//! Ports of the agent's pod that stand for ports of services elsewhere.

use super::{Failure, Metrics, Protocol, Wanted, client::Hub};
use crate::limits;
use moorline_proxy::splice::{Passed, splice};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// An import and one of its ports.
type Key = (String, u16, Protocol);

/// What is listened to.
pub(super) struct Listening {
    hub: Arc<Hub>,
    address: IpAddr,
    metrics: Metrics,
    /// The local ports, and what ends them with their connections.
    ports: HashMap<Key, (u16, CancellationToken)>,
    /// Connections of all imports.
    slots: Arc<Semaphore>,
    /// No new connections.
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Listening {
    pub fn new(hub: Arc<Hub>, address: IpAddr, metrics: Metrics) -> Self {
        Self {
            hub,
            address,
            metrics,
            ports: HashMap::new(),
            slots: Arc::new(Semaphore::new(limits::IMPORTS_CONNECTIONS)),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// The local port of each port of an import, in their order.
    pub async fn ports(&mut self, wanted: &Wanted) -> Result<Vec<u16>, Failure> {
        let mut locals = Vec::with_capacity(wanted.ports.len());
        for port in &wanted.ports {
            let key = (wanted.name.clone(), port.port, port.protocol);
            if let Some((local, _)) = self.ports.get(&key) {
                locals.push(*local);
                continue;
            }
            let failed = |e: std::io::Error| {
                Failure::Failed(format!("the agent cannot listen on its address {}: {e}", self.address))
            };
            let any = SocketAddr::new(self.address, 0);
            let (socket, local) = match port.protocol {
                Protocol::Tcp => {
                    let listener = TcpListener::bind(any).await.map_err(failed)?;
                    let local = listener.local_addr().map_err(failed)?.port();
                    (Socket::Tcp(listener), local)
                }
                Protocol::Udp => {
                    let socket = UdpSocket::bind(any).await.map_err(failed)?;
                    let local = socket.local_addr().map_err(failed)?.port();
                    (Socket::Udp(socket), local)
                }
            };
            let over = CancellationToken::new();
            let serving = Serving {
                hub: Arc::clone(&self.hub),
                metrics: self.metrics.clone(),
                import: wanted.name.clone(),
                port: (port.port, port.protocol),
                slots: Arc::clone(&self.slots),
                over: over.clone(),
                tasks: self.tasks.clone(),
            };
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                let ended = serving.over.clone();
                let served = async {
                    match socket {
                        Socket::Tcp(listener) => Arc::new(serving).accept(listener).await,
                        Socket::Udp(socket) => serving.relay(&socket).await,
                    }
                };
                tokio::select! {
                    () = served => {}
                    () = stop.cancelled() => {}
                    () = ended.cancelled() => {}
                }
            });
            self.ports.insert(key, (local, over));
            locals.push(local);
        }
        let mine = |key: &Key| key.0 == wanted.name;
        self.end(|key| !mine(key) || wanted.ports.iter().any(|port| (port.port, port.protocol) == (key.1, key.2)));
        Ok(locals)
    }

    /// Ends the ports of all other imports, and what is open to them.
    pub fn keep(&mut self, import: impl Fn(&str) -> bool) {
        self.end(|key| import(&key.0));
    }

    fn end(&mut self, keeps: impl Fn(&Key) -> bool) {
        self.ports.retain(|key, (_, over)| {
            let kept = keeps(key);
            if !kept {
                over.cancel();
            }
            kept
        });
    }

    /// Takes no more connections, and waits for the open ones, so long.
    pub async fn finish(&mut self) {
        self.stop.cancel();
        self.tasks.close();
        let _ = timeout(limits::GRACE, self.tasks.wait()).await;
        self.end(|_| false);
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.cancel();
        self.end(|_| false);
    }
}

/// What is bound.
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// One port.
pub(super) struct Serving {
    pub hub: Arc<Hub>,
    pub metrics: Metrics,
    pub import: String,
    pub port: (u16, Protocol),
    /// Connections of all imports.
    pub slots: Arc<Semaphore>,
    over: CancellationToken,
    tasks: TaskTracker,
}

impl Serving {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return };
            let Ok((socket, _)) = listener.accept().await else {
                sleep(limits::IMPORTS_ACCEPT_PAUSE).await; // out of descriptors: some will be free again
                continue;
            };
            let this = Arc::clone(&self);
            self.tasks.spawn(async move {
                let _slot = slot;
                this.over.run_until_cancelled(this.carry(socket)).await;
            });
        }
    }

    /// Dropped before its end, the connection was cut: its peer sees a reset, for the socket lingers for nothing.
    async fn carry(&self, mut socket: TcpStream) {
        let _ = socket.set_nodelay(true);
        let reference = socket2::SockRef::from(&socket);
        let _ = reference.set_linger(Some(Duration::ZERO));
        let _ = reference.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(limits::INSIDE_KEEPALIVE));
        let count = |result| self.metrics.connections.with_label_values(&[result]).inc();
        let client = socket.peer_addr().ok().map(|peer| peer.ip());
        let mut tunnel = match self.hub.open(&self.import, self.port, client).await {
            Ok(tunnel) => tunnel,
            Err(e) => {
                count("failed");
                return tracing::warn!(import = self.import, port = self.port.0, cause = %e, "a connection to an imported service failed");
            }
        };
        count("opened");
        let passed = Passed::default();
        let ended = splice(&mut tunnel, &mut socket, limits::INSIDE_IDLE, &passed).await;
        let sum = passed.there.load(Ordering::Relaxed).wrapping_add(passed.back.load(Ordering::Relaxed));
        self.metrics.bytes.inc_by(sum);
        match ended {
            // Both sides have ended as they should: what was written last is not taken back.
            Ok(()) => drop(socket2::SockRef::from(&socket).set_linger(None)),
            Err(e) => tracing::debug!(import = self.import, cause = %crate::upstream::chain(&e), "a connection broke"),
        }
    }
}
