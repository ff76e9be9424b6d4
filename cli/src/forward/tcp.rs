//! Local connections, each carried by one of its own through the hub.

use super::tunnel::{Tunnel, Tunnels};
use moorline_proto::inside::Destination;
use moorline_proxy::splice::{SpliceError, splice};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Local connections at once, over one listener.
const CONNECTIONS: usize = 4096;
/// Longest silence: the agent's limit comes first, and can say so.
const IDLE: Duration = Duration::from_secs(5 * 3600);
/// Pause of a listener that cannot accept.
const PAUSE: Duration = Duration::from_millis(200);

/// Accepts for ever.
pub async fn serve(listener: TcpListener, tunnels: Arc<Tunnels>, to: Destination) {
    each(listener, move |socket| {
        let (tunnels, to) = (tunnels.clone(), to.clone());
        async move {
            match tunnels.open(&to).await {
                Ok(tunnel) => carry(socket, tunnel, &tunnels).await,
                // Whoever dialled must not take it for an end.
                Err(_) => cut(&socket),
            }
        }
    })
    .await;
}

/// Runs `handle` with each connection that comes in.
pub async fn each<F, H>(listener: TcpListener, handle: H)
where
    H: Fn(TcpStream) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = running.join_next() => {}
            accepted = listener.accept(), if running.len() < CONNECTIONS => match accepted {
                Ok((socket, _)) => {
                    let _ = socket.set_nodelay(true);
                    running.spawn(handle(socket));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
        }
    }
}

/// Moves bytes until both directions have ended.
pub async fn carry(mut socket: TcpStream, mut tunnel: Tunnel, tunnels: &Tunnels) {
    let counted = tunnels.stats.begin();
    match splice(&mut tunnel, &mut socket, IDLE, &counted.passed).await {
        Ok(()) => {}
        Err(e) => {
            if let SpliceError::First(e) = &e
                && e.kind() != io::ErrorKind::ConnectionReset
            {
                tunnels.stats.tell(format!("a connection broke: {e}"));
            }
            cut(&socket);
        }
    }
}

/// The peer sees a reset, not an end.
pub fn cut(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
