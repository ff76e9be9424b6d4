//! Ports of the agent's pod that take datagrams for services elsewhere.

use super::listen::Serving;
use crate::limits;
use moorline_proxy::{
    flows::{DATAGRAM, Ended, carry},
    splice::Passed,
};
use std::sync::Arc;
use tokio::{net::UdpSocket, time::sleep};

impl Serving {
    /// Carries for ever. All flows share one connection through the hub, from the first datagram until nothing has passed
    /// for [`limits::IMPORTS_IDLE`]. What comes while there is none and none can be opened is dropped.
    pub async fn relay(&self, socket: &UdpSocket) {
        let count = |result| self.metrics.connections.with_label_values(&[result]).inc();
        let mut pause = limits::IMPORTS_FLOWS_PAUSE.0;
        loop {
            if socket.readable().await.is_err() {
                sleep(limits::IMPORTS_ACCEPT_PAUSE).await;
                continue;
            }
            let Ok(_slot) = Arc::clone(&self.slots).acquire_owned().await else { return };
            match self.hub.open(&self.import, self.port, None).await {
                Ok(tunnel) => {
                    count("opened");
                    let passed = Passed::default();
                    let ended = carry(socket, tunnel, Some(limits::IMPORTS_IDLE), &passed).await;
                    let sum = passed.there.into_inner().wrapping_add(passed.back.into_inner());
                    self.metrics.bytes.inc_by(sum);
                    if ended == Ended::Idle {
                        pause = limits::IMPORTS_FLOWS_PAUSE.0;
                        continue;
                    }
                    tracing::debug!(import = self.import, port = self.port.0, "the way of datagrams ended");
                    if sum > 0 {
                        pause = limits::IMPORTS_FLOWS_PAUSE.0;
                    }
                }
                Err(e) => {
                    count("failed");
                    tracing::warn!(import = self.import, port = self.port.0, cause = %e, "datagrams for an imported service are dropped");
                    // As lost as on any network; nobody waits for an answer to what is old.
                    let mut space = vec![0; DATAGRAM];
                    while socket.try_recv_from(&mut space).is_ok() {}
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(limits::IMPORTS_FLOWS_PAUSE.1);
        }
    }
}
