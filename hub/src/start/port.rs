//! Where a hub listens.

use super::HubError;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use tokio::net::TcpListener;

/// Attempts to find a port that is free for TCP and for UDP, where any will do.
const PORT_TRIES: u32 = 20;

/// One port for TCP and UDP.
pub(super) async fn bind(address: SocketAddr) -> Result<(TcpListener, UdpSocket), HubError> {
    let mut tries = 0;
    loop {
        let failed = |what| move |source| HubError::Listen { address, what, source };
        let tcp = TcpListener::bind(address).await.map_err(failed("TCP"))?;
        let port = tcp.local_addr().map_err(failed("TCP"))?.port();
        match UdpSocket::bind(SocketAddr::new(address.ip(), port)) {
            Ok(udp) => return Ok((tcp, udp)),
            Err(_) if address.port() == 0 && tries < PORT_TRIES => tries += 1,
            Err(source) => return Err(HubError::Listen { address, what: "UDP", source }),
        }
    }
}

/// An address where programs on this machine reach what listens at `address`.
pub(super) fn local(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
