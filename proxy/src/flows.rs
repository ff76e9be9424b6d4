//! Datagrams of many peers of one local socket, carried by one stream: each peer is a flow of its own.

use crate::splice::Passed;
use bytes::BytesMut;
use moorline_proto::datagram;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UdpSocket,
};

/// Local peers at once; the one that was silent for longest makes room.
pub const FLOWS: usize = 1024;
/// Largest payload of a datagram over UDP, in bytes.
pub const DATAGRAM: usize = 65_507;
/// Bytes asked of the stream at once: several datagrams of the size that networks carry.
const READ: usize = 8 << 10;

/// Why nothing is carried any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every peer has been silent for long, and none was sent anything.
    Idle,
    /// The stream has ended.
    Stream,
}

/// Local peers by flow.
#[derive(Default)]
struct Flows {
    numbers: HashMap<SocketAddr, u16>,
    peers: HashMap<u16, (SocketAddr, Instant)>,
    next: u16,
}

impl Flows {
    fn of(&mut self, peer: SocketAddr, now: Instant) -> u16 {
        if let Some(&flow) = self.numbers.get(&peer) {
            self.peers.insert(flow, (peer, now));
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
        self.peers.insert(flow, (peer, now));
        flow
    }

    /// Whose flow it is, for an answer.
    fn peer(&mut self, flow: u16, now: Instant) -> Option<SocketAddr> {
        let (peer, at) = self.peers.get_mut(&flow)?;
        *at = now;
        Some(*peer)
    }

    /// Forgets those that were silent for `idle`. Whether any is left.
    fn forget(&mut self, idle: Duration, now: Instant) -> bool {
        self.peers.retain(|_, (peer, at)| {
            let kept = now.duration_since(*at) < idle;
            if !kept {
                self.numbers.remove(peer);
            }
            kept
        });
        !self.peers.is_empty()
    }
}

/// Carries until the stream ends or, with `idle`, until nothing has passed for that long (and at most twice that long). A
/// peer that was silent for `idle` is forgotten. `there` counts bytes to the peers, `back` those from them.
///
/// # Cancel safety
/// Dropping the future ends the stream; a datagram that is being passed on may be lost, as datagrams are.
pub async fn carry(
    socket: &UdpSocket,
    stream: impl AsyncRead + AsyncWrite,
    idle: Option<Duration>,
    passed: &Passed,
) -> Ended {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut flows = Flows::default();
    let (mut space, mut input, mut out) = (vec![0; DATAGRAM], BytesMut::new(), Vec::new());
    // Without an idle time nobody looks; the longest span that there is would overflow the clock.
    let mut look = tokio::time::interval(idle.unwrap_or(Duration::from_secs(24 * 3600)));
    look.tick().await; // the first is at once
    loop {
        input.reserve(READ); // without, it would be read in pieces of 64 bytes
        tokio::select! {
            got = socket.recv_from(&mut space) => {
                let Ok((n, peer)) = got else { continue }; // an earlier answer found nobody: no trouble of ours
                passed.back.fetch_add(n as u64, Ordering::Relaxed);
                out.clear();
                datagram::put(&mut out, flows.of(peer, Instant::now()), space.get(..n).unwrap_or_default());
                let sent = async {
                    write.write_all(&out).await?;
                    write.flush().await
                };
                if sent.await.is_err() {
                    return Ended::Stream;
                }
            }
            got = read.read_buf(&mut input) => {
                if !matches!(got, Ok(1..)) {
                    return Ended::Stream;
                }
                while let Some((flow, payload)) = datagram::take(&mut input) {
                    passed.there.fetch_add(payload.len() as u64, Ordering::Relaxed);
                    if let Some(peer) = flows.peer(flow, Instant::now()) {
                        let _ = socket.send_to(&payload, peer).await; // a peer that has gone misses it
                    }
                }
            }
            _ = look.tick() => if let Some(idle) = idle && !flows.forget(idle, Instant::now()) {
                let _ = write.shutdown().await; // an end, and no loss
                return Ended::Idle;
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn peer(n: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, n))
    }

    #[test]
    fn peers_keep_their_flow_and_the_silent_make_room() {
        let (mut flows, begin) = (Flows::default(), Instant::now());
        let at = |n: u64| begin + Duration::from_millis(n);
        let first = flows.of(peer(1), at(1));
        assert_eq!(flows.of(peer(1), at(1)), first);
        for n in 2..=FLOWS as u16 {
            flows.of(peer(n), at(n.into()));
        }
        flows.of(peer(1), at(5000));
        flows.of(peer(5000), at(5001));
        assert_eq!((flows.peers.len(), flows.numbers.len()), (FLOWS, FLOWS));
        assert_eq!(flows.of(peer(1), at(5002)), first, "it has just spoken");
        assert!(!flows.numbers.contains_key(&peer(2)));
    }

    #[test]
    fn who_is_silent_is_forgotten_and_who_is_answered_is_not() {
        let (mut flows, begin) = (Flows::default(), Instant::now());
        let (one, _) = (flows.of(peer(1), begin), flows.of(peer(2), begin));
        let idle = Duration::from_secs(60);
        assert!(flows.forget(idle, begin + idle / 2));
        assert_eq!(flows.peer(one, begin + idle / 2), Some(peer(1)));
        assert!(flows.forget(idle, begin + idle), "one was answered meanwhile");
        assert_eq!((flows.peers.len(), flows.numbers.len()), (1, 1));
        assert!(!flows.forget(idle, begin + idle * 2));
        assert!(flows.numbers.is_empty());
    }

    #[tokio::test]
    async fn answers_go_to_who_asked_and_the_end_of_the_stream_ends_it() {
        let local = UdpSocket::bind(peer(0)).await.unwrap();
        let caller = UdpSocket::bind(peer(0)).await.unwrap();
        let (local_addr, (near, mut far)) = (local.local_addr().unwrap(), tokio::io::duplex(1 << 16));
        let passed = Passed::default();
        let carried = carry(&local, near, None, &passed);
        let answers = async move {
            caller.send_to(b"question", local_addr).await.unwrap();
            let mut all = BytesMut::new();
            let (flow, payload) = loop {
                match datagram::take(&mut all) {
                    Some(datagram) => break datagram,
                    None => assert_ne!(far.read_buf(&mut all).await.unwrap(), 0),
                }
            };
            assert_eq!(&payload[..], b"question");
            let mut out = Vec::new();
            datagram::put(&mut out, flow.wrapping_add(1), b"for nobody");
            datagram::put(&mut out, flow, b"answer");
            far.write_all(&out).await.unwrap();
            let mut space = [0; 64];
            let (n, _) = caller.recv_from(&mut space).await.unwrap();
            assert_eq!(&space[..n], b"answer");
        };
        let both = async { tokio::join!(carried, answers) };
        let (ended, ()) = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
        assert_eq!(ended, Ended::Stream);
        let sums = (passed.there.load(Ordering::Relaxed), passed.back.load(Ordering::Relaxed));
        assert_eq!(sums, (16, 8));
    }

    #[tokio::test]
    async fn a_stream_that_nobody_uses_ends() {
        let local = UdpSocket::bind(peer(0)).await.unwrap();
        let (near, _far) = tokio::io::duplex(64);
        let passed = Passed::default();
        let carried = carry(&local, near, Some(Duration::from_millis(50)), &passed);
        assert_eq!(tokio::time::timeout(Duration::from_secs(30), carried).await, Ok(Ended::Idle));
    }
}
