//! A network whose UDP can be closed: TCP and UDP of one port, passed on to the hub's.

use anyhow::Result;
use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

/// Bytes of a datagram.
const DATAGRAM: usize = 65_535;

/// The gate. Dropping it ends it.
pub struct Gate {
    /// Its port on loopback.
    pub port: u16,
    udp_open: Arc<AtomicBool>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Gate {
    /// Opens it in front of the hub on `hub`, for TCP alone.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start(hub: u16) -> Result<Self> {
        let hub = SocketAddr::from((Ipv4Addr::LOCALHOST, hub));
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = tcp.local_addr()?.port();
        let udp = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).await?);
        let udp_open = Arc::new(AtomicBool::new(false));
        let tasks = [tokio::spawn(pass_tcp(tcp, hub)), tokio::spawn(pass_udp(udp, hub, Arc::clone(&udp_open)))];
        Ok(Self { port, udp_open, _tasks: tasks.map(AbortOnDropHandle::new) })
    }

    /// Lets UDP through, or drops it without a word.
    pub fn udp(&self, open: bool) {
        self.udp_open.store(open, Ordering::SeqCst);
    }
}

async fn pass_tcp(listener: TcpListener, hub: SocketAddr) {
    let mut connections = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        connections.spawn(async move {
            if let Ok(mut far) = TcpStream::connect(hub).await {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}

async fn pass_udp(near: Arc<UdpSocket>, hub: SocketAddr, open: Arc<AtomicBool>) {
    let (mut peers, mut back) = (HashMap::<SocketAddr, Arc<UdpSocket>>::new(), JoinSet::new());
    let mut datagram = vec![0; DATAGRAM];
    while let Ok((n, from)) = near.recv_from(&mut datagram).await {
        if !open.load(Ordering::SeqCst) {
            continue;
        }
        let far = match peers.get(&from) {
            Some(far) => Arc::clone(far),
            None => {
                let Ok(far) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { continue };
                let far = Arc::new(far);
                peers.insert(from, Arc::clone(&far));
                back.spawn(answers(Arc::clone(&far), Arc::clone(&near), from, Arc::clone(&open)));
                far
            }
        };
        let _ = far.send_to(&datagram[..n], hub).await;
    }
}

async fn answers(far: Arc<UdpSocket>, near: Arc<UdpSocket>, to: SocketAddr, open: Arc<AtomicBool>) {
    let mut datagram = vec![0; DATAGRAM];
    while let Ok((n, _)) = far.recv_from(&mut datagram).await {
        if open.load(Ordering::SeqCst) {
            let _ = near.send_to(&datagram[..n], to).await;
        }
    }
}
