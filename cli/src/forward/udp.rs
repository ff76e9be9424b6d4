//! Local datagrams, all carried by one connection through the hub.

use super::tunnel::{Tunnel, Tunnels, may_pass};
use bytes::BytesMut;
use moorline_proto::{datagram, inside::Destination};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
};

/// Local peers at once; the one that was silent for longest makes room.
const FLOWS: usize = 1024;
/// Pauses between attempts to connect, the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Largest datagram.
const DATAGRAM: usize = 65_507;

/// Local peers by flow.
#[derive(Default)]
struct Flows {
    numbers: HashMap<SocketAddr, u16>,
    peers: HashMap<u16, (SocketAddr, Instant)>,
    next: u16,
}

impl Flows {
    fn of(&mut self, peer: SocketAddr) -> u16 {
        if let Some(&flow) = self.numbers.get(&peer) {
            self.peers.insert(flow, (peer, Instant::now()));
            return flow;
        }
        if FLOWS <= self.peers.len()
            && let Some((&oldest, &(gone, _))) = self.peers.iter().min_by_key(|(_, (_, at))| *at)
        {
            self.peers.remove(&oldest);
            self.numbers.remove(&gone);
        }
        while self.peers.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let flow = self.next;
        self.next = self.next.wrapping_add(1);
        self.numbers.insert(peer, flow);
        self.peers.insert(flow, (peer, Instant::now()));
        flow
    }
}

/// Carries for ever; connects anew when the connection breaks.
pub async fn serve(socket: UdpSocket, tunnels: Arc<Tunnels>, to: Destination) {
    let mut pause = PAUSE.0;
    let mut space = vec![0; DATAGRAM];
    loop {
        match tunnels.once(&to, true).await {
            Ok(tunnel) => {
                tunnels.stats.well();
                pause = PAUSE.0;
                relay(&socket, tunnel, &tunnels, &mut space).await;
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

async fn relay(socket: &UdpSocket, tunnel: Tunnel, tunnels: &Tunnels, space: &mut [u8]) {
    let (mut read, mut write) = tokio::io::split(tunnel);
    let mut flows = Flows::default();
    let (mut input, mut out) = (BytesMut::new(), Vec::new());
    let counted = tunnels.stats.begin();
    loop {
        tokio::select! {
            got = socket.recv_from(space) => {
                let Ok((n, peer)) = got else { continue }; // an earlier answer found nobody: no trouble of ours
                let payload = space.get(..n).unwrap_or_default();
                counted.passed.back.fetch_add(n as u64, Ordering::Relaxed);
                out.clear();
                datagram::put(&mut out, flows.of(peer), payload);
                let sent = async {
                    write.write_all(&out).await?;
                    write.flush().await
                };
                if sent.await.is_err() {
                    return;
                }
            }
            got = read.read_buf(&mut input) => {
                if !matches!(got, Ok(1..)) {
                    return;
                }
                while let Some((flow, payload)) = datagram::take(&mut input) {
                    counted.passed.there.fetch_add(payload.len() as u64, Ordering::Relaxed);
                    if let Some((peer, _)) = flows.peers.get(&flow) {
                        let _ = socket.send_to(&payload, peer).await; // a peer that has gone misses it
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_keep_their_flow_and_the_silent_make_room() {
        let mut flows = Flows::default();
        let peer = |n: u16| SocketAddr::from(([127, 0, 0, 1], n));
        let first = flows.of(peer(1));
        assert_eq!(flows.of(peer(1)), first);
        for n in 2..=FLOWS as u16 {
            flows.of(peer(n));
        }
        flows.of(peer(1));
        flows.of(peer(5000));
        assert_eq!((flows.peers.len(), flows.numbers.len()), (FLOWS, FLOWS));
        assert_eq!(flows.of(peer(1)), first, "it has just spoken");
        assert!(!flows.numbers.contains_key(&peer(2)));
    }
}
