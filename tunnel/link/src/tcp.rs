//! The options of a TCP socket under a session.

use crate::Limits;
use std::{io, net::SocketAddr, time::Duration};
use tokio::net::{TcpSocket, TcpStream};

/// Bytes that the kernel may hold unsent: what is queued there, no urgent stream can overtake.
#[cfg(target_os = "linux")]
const NOT_SENT: u32 = 128 * 1024;

/// Longest pause between two tries to get a segment across. TCP doubles it up to two minutes by itself: a path that came
/// back would stay unused for as long as it was gone.
#[cfg(target_os = "linux")]
const RETRY: Duration = Duration::from_secs(1);
/// Bytes of a segment, where a path may be narrower than it says: IPv6 guarantees 1,280 bytes a packet (RFC 8200 §5), of
/// which 60 are headers. TCP finds no such path by itself where nobody answers what is too large (RFC 2923 §2.1).
#[cfg(target_os = "linux")]
const SEGMENT: u32 = 1220;

/// Sets what a session needs.
pub(crate) fn tune(socket: &TcpStream, limits: &Limits) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let sock = socket2::SockRef::from(socket);
    let every = limits.keep_alive.max(Duration::from_secs(1)); // the system counts in seconds
    let probes = socket2::TcpKeepalive::new().with_time(every).with_interval(every);
    sock.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    {
        sock.set_tcp_user_timeout(Some(limits.silence))?;
        sock.set_tcp_notsent_lowat(NOT_SENT)?;
        retry_within(socket, RETRY);
    }
    Ok(())
}

/// Has a connection try again within a second what was not acknowledged, however long it has been tried; where the system
/// can, which Linux does from 6.15 on. For connections that may come to carry a session later, as WebSockets do.
pub fn tries_again_soon(socket: &TcpStream) {
    #[cfg(target_os = "linux")]
    retry_within(socket, RETRY);
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}

/// Bounds TCP's pauses.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn retry_within(socket: &TcpStream, most: Duration) {
    use std::os::fd::AsRawFd;
    /// Of `<linux/tcp.h>`; newer than what libc knows.
    const TCP_RTO_MAX_MS: libc::c_int = 44;
    let ms = libc::c_int::try_from(most.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: setsockopt reads an int of the size given from a place that lives across the call.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const ms).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}

/// A connection to `remote`, whose segments fit through any path.
///
/// # Errors
/// The connection's own.
pub async fn tcp_connect(remote: SocketAddr) -> io::Result<TcpStream> {
    let socket = if remote.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    #[cfg(target_os = "linux")]
    if !remote.ip().is_loopback() {
        socket2::SockRef::from(&socket).set_tcp_mss(SEGMENT)?;
    }
    socket.connect(remote).await
}
