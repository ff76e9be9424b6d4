//! Local datagrams, all carried by one connection through the hub.

use super::tunnel::{Tunnels, may_pass};
use moorline_proto::inside::Destination;
use moorline_proxy::flows::{DATAGRAM, carry};
use std::{sync::Arc, time::Duration};
use tokio::net::UdpSocket;

/// Pauses between attempts to connect, the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Carries for ever; connects anew when the connection breaks.
pub async fn serve(socket: UdpSocket, tunnels: Arc<Tunnels>, to: Destination) {
    let mut pause = PAUSE.0;
    let mut space = vec![0; DATAGRAM];
    loop {
        match tunnels.once(&to, true).await {
            Ok(tunnel) => {
                tunnels.stats.well();
                pause = PAUSE.0;
                let counted = tunnels.stats.begin();
                carry(&socket, tunnel, None, &counted.passed).await;
            }
            Err(e) => {
                let again = if may_pass(&e) { "; trying again" } else { "" };
                tunnels.stats.tell(format!("{e}{again}"));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
                // What came meanwhile is as lost as on any network.
                while socket.try_recv_from(&mut space).is_ok() {}
            }
        }
    }
}
