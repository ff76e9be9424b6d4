//! Datagrams of many flows over one stream.

use super::{Failure, Metrics};
use crate::limits;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use moorline_link::Stream;
use moorline_proto::{code::ResetCode, datagram};
use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

/// One flow.
enum Flow {
    /// It is looked up, and this waits for it.
    Opening(Vec<Bytes>),
    /// It has its socket.
    Open(Arc<UdpSocket>),
}

/// Why a flow was not opened.
enum Closed {
    /// The place is not there any more, or not for this caller.
    Place(Failure),
    /// This host has no socket for it.
    Socket,
}

/// Relays until the stream ends. Each flow has a socket of its own, to one of the addresses that `find` gives, until it has
/// been idle for [`limits::FLOW_IDLE`] or nothing listens there any more. What finds no room is dropped, as datagrams are.
/// Where the place is gone the stream is cut: who opened it hears why when it opens the next one, and may go elsewhere.
pub(super) async fn relay<F>(stream: Stream, addresses: Vec<SocketAddr>, find: impl Fn() -> F, metrics: &Metrics)
where
    F: Future<Output = Result<Vec<SocketAddr>, Failure>>,
{
    let (mut read, mut write) = tokio::io::split(stream);
    let (answers, mut answered) = mpsc::channel::<(u16, Vec<u8>)>(limits::FLOW_QUEUE);
    // Outlives this future's halves: the opener waits for the verdict before it sends.
    let told = write.flush().await;
    let gone = {
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
        let known = Mutex::new(addresses);
        let find = &find;
        let reading = async {
            let mut flows: HashMap<u16, Flow> = HashMap::new();
            let (mut opening, mut waiting) = (FuturesUnordered::new(), 0);
            let mut tasks: JoinSet<u16> = JoinSet::new();
            let mut input = BytesMut::new();
            loop {
                while let Some((flow, payload)) = datagram::take(&mut input) {
                    metrics.bytes.inc_by(payload.len() as u64);
                    let size = payload.len() + datagram::HEAD; // what is empty counts too
                    let room = waiting + size <= limits::FLOW_WAITING;
                    let many = flows.len();
                    match flows.get_mut(&flow) {
                        // A socket whose peer is gone loses datagrams: as without a tunnel.
                        Some(Flow::Open(socket)) => match socket.send(&payload).await {
                            Ok(_) => {}
                            Err(_) => metrics.dropped.inc(),
                        },
                        Some(Flow::Opening(held)) if room => {
                            waiting += size;
                            held.push(Bytes::copy_from_slice(&payload)); // the rest of what was read is let go
                        }
                        None if room && many < limits::FLOWS => {
                            waiting += size;
                            flows.insert(flow, Flow::Opening(vec![Bytes::copy_from_slice(&payload)]));
                            let known = &known;
                            opening.push(async move { (flow, open(known, find).await) });
                        }
                        _ => metrics.dropped.inc(),
                    }
                }
                input.reserve(limits::FLOW_READ); // without, it would be read in pieces of 64 bytes
                tokio::select! {
                    got = read.read_buf(&mut input) => if !matches!(got, Ok(1..)) { return None },
                    Some((flow, opened)) = opening.next() => {
                        let Some(Flow::Opening(held)) = flows.remove(&flow) else { continue };
                        waiting -= held.iter().map(|payload| payload.len() + datagram::HEAD).sum::<usize>();
                        match opened {
                            Ok(socket) => {
                                let socket = Arc::new(socket);
                                for payload in held {
                                    if socket.send(&payload).await.is_err() {
                                        metrics.dropped.inc();
                                    }
                                }
                                flows.insert(flow, Flow::Open(socket.clone()));
                                tasks.spawn(listen(flow, socket, answers.clone(), metrics.clone()));
                            }
                            Err(Closed::Socket) => metrics.dropped.inc_by(held.len() as u64),
                            Err(Closed::Place(failure)) => return Some(failure),
                        }
                    }
                    Some(done) = tasks.join_next() => if let Ok(flow) = done {
                        flows.remove(&flow);
                    },
                }
            }
        };
        match told {
            Ok(()) => tokio::select! {
                gone = reading => gone,
                _ = writing => None,
            },
            Err(_) => None,
        }
    };
    let mut stream = read.unsplit(write);
    match gone {
        Some(failure) => {
            tracing::debug!(cause = %failure, "datagrams have nowhere to go any more");
            stream.reset(ResetCode::Broken);
        }
        // The opener has ended it, or is gone.
        None => drop(stream.shutdown().await),
    }
}

/// A socket to one of the addresses as they are now. Where nobody can be asked, those that are `known` are still good.
async fn open<F>(known: &Mutex<Vec<SocketAddr>>, find: impl Fn() -> F) -> Result<UdpSocket, Closed>
where
    F: Future<Output = Result<Vec<SocketAddr>, Failure>>,
{
    let found = find().await;
    let addresses = {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(found) => *known = found,
            Err(Failure::Unreachable(_) | Failure::Timeout { .. }) => {}
            Err(gone) => return Err(Closed::Place(gone)),
        }
        known.clone()
    };
    connect(&addresses).await.map_err(|_| Closed::Socket)
}

async fn connect(addresses: &[SocketAddr]) -> io::Result<UdpSocket> {
    let at = rand::random_range(0..addresses.len().max(1));
    let to = addresses.get(at).ok_or(io::ErrorKind::AddrNotAvailable)?;
    let any =
        if to.is_ipv4() { SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)) } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?; // from then on nobody else's datagrams come in
    Ok(socket)
}

/// Passes on what comes back; gives the flow's number when it is over.
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
            // Nothing listens there: the next datagram looks for who does.
            Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => {
                metrics.dropped.inc();
                return flow;
            }
            Ok(Err(_)) | Err(_) => return flow,
        }
    }
}
