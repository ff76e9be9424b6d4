//! Datagrams of many flows over one stream.

use super::Metrics;
use crate::limits;
use bytes::BytesMut;
use moorline_link::Stream;
use moorline_proto::datagram;
use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

/// Relays until the stream ends. Each flow has a socket of its own, to one of `addresses`, until it has been idle for
/// [`limits::FLOW_IDLE`]. What finds no room is dropped, as datagrams are.
pub(super) async fn relay(stream: Stream, addresses: &[SocketAddr], metrics: &Metrics) {
    let (mut read, mut write) = tokio::io::split(stream);
    let (answers, mut answered) = mpsc::channel::<(u16, Vec<u8>)>(limits::FLOW_QUEUE);
    // Outlives this future's halves: the opener waits for the verdict before it sends.
    let told = write.flush().await;
    let writing = async {
        let mut out = Vec::new();
        while let Some((flow, payload)) = answered.recv().await {
            datagram::put(&mut out, flow, &payload);
            while out.len() < limits::FLOW_BATCH
                && let Ok((flow, payload)) = answered.try_recv()
            {
                datagram::put(&mut out, flow, &payload);
            }
            metrics.bytes.inc_by(out.len() as u64);
            write.write_all(&out).await?;
            write.flush().await?;
            out.clear();
            out.shrink_to(limits::FLOW_BATCH);
        }
        io::Result::Ok(())
    };
    let reading = async {
        let mut flows: HashMap<u16, Arc<UdpSocket>> = HashMap::new();
        let mut tasks: JoinSet<u16> = JoinSet::new();
        let mut input = BytesMut::new();
        loop {
            while let Some((flow, payload)) = datagram::take(&mut input) {
                let socket = match flows.get(&flow) {
                    Some(socket) => Some(socket.clone()),
                    None if limits::FLOWS <= flows.len() => None,
                    None => match open(addresses).await {
                        Ok(socket) => {
                            let socket = Arc::new(socket);
                            flows.insert(flow, socket.clone());
                            tasks.spawn(listen(flow, socket.clone(), answers.clone(), metrics.clone()));
                            Some(socket)
                        }
                        Err(_) => None,
                    },
                };
                metrics.bytes.inc_by(payload.len() as u64);
                // A socket whose peer is gone loses datagrams: as without a tunnel.
                match socket {
                    Some(socket) if socket.send(&payload).await.is_ok() => {}
                    _ => metrics.dropped.inc(),
                }
            }
            tokio::select! {
                got = read.read_buf(&mut input) => if !matches!(got, Ok(1..)) { return },
                Some(done) = tasks.join_next() => if let Ok(flow) = done {
                    flows.remove(&flow);
                },
            }
        }
    };
    if told.is_ok() {
        tokio::select! {
            () = reading => {}
            _ = writing => {}
        }
    }
}

async fn open(addresses: &[SocketAddr]) -> io::Result<UdpSocket> {
    let at = rand::random_range(0..addresses.len().max(1));
    let to = addresses.get(at).ok_or(io::ErrorKind::AddrNotAvailable)?;
    let any =
        if to.is_ipv4() { SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)) } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?; // from then on nobody else's datagrams come in
    Ok(socket)
}

/// Passes on what comes back; gives the flow's number when it has been idle.
async fn listen(flow: u16, socket: Arc<UdpSocket>, answers: mpsc::Sender<(u16, Vec<u8>)>, metrics: Metrics) -> u16 {
    let mut space = vec![0; limits::DATAGRAM];
    loop {
        match timeout(limits::FLOW_IDLE, socket.recv(&mut space)).await {
            Ok(Ok(n)) => {
                let payload = space.get(..n).unwrap_or_default().to_vec();
                if answers.try_send((flow, payload)).is_err() {
                    metrics.dropped.inc();
                }
            }
            // Nothing listens there at the moment.
            Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => metrics.dropped.inc(),
            Ok(Err(_)) | Err(_) => return flow,
        }
    }
}
