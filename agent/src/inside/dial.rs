//! One TCP connection to the first of several addresses that takes it (RFC 8305).

use super::Failure;
use crate::limits;
use futures_util::{StreamExt, stream::FuturesUnordered};
use moorline_proto::inside::Destination;
use rand::seq::SliceRandom;
use std::{io, net::SocketAddr};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// Dials in a random order, the families in turn, each a moment after the one before it.
///
/// # Errors
/// None took the connection; the kindest of the reasons.
pub(super) async fn any(to: &Destination, addresses: &[SocketAddr]) -> Result<TcpStream, Failure> {
    let order = order(addresses);
    let attempts = async {
        let mut running = FuturesUnordered::new();
        let mut failed: Vec<(SocketAddr, io::Error)> = Vec::new();
        let mut waiting = order.iter().copied();
        loop {
            // The next one begins when one has failed, or when those under way take too long.
            if let Some(next) = waiting.next() {
                running.push(async move { (next, TcpStream::connect(next).await) });
            } else if running.is_empty() {
                return Err(failed);
            }
            let more = waiting.len() > 0;
            tokio::select! {
                Some((at, done)) = running.next() => match done {
                    Ok(stream) => return Ok(stream),
                    Err(e) => failed.push((at, e)),
                },
                () = sleep(limits::INSIDE_HEAD_START), if more => {}
            }
        }
    };
    match timeout(limits::INSIDE_CONNECT, attempts).await {
        Err(_) => Err(Failure::Timeout { to: to.to_string() }),
        Ok(Ok(stream)) => {
            // Small writes must not wait for others; a peer that vanished without a word is noticed.
            let _ = stream.set_nodelay(true);
            let keepalive = socket2::TcpKeepalive::new().with_time(limits::INSIDE_KEEPALIVE);
            let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
            Ok(stream)
        }
        Ok(Err(failed)) => Err(told(to, &failed)),
    }
}

fn told(to: &Destination, failed: &[(SocketAddr, io::Error)]) -> Failure {
    let refused = failed.iter().filter(|(_, e)| e.kind() == io::ErrorKind::ConnectionRefused);
    let at: Vec<_> = refused.map(|(at, _)| at.to_string()).collect();
    match failed.first() {
        _ if !at.is_empty() => Failure::Refused { to: to.to_string(), at: at.join(", ") },
        Some((_, e)) if e.kind() == io::ErrorKind::TimedOut => Failure::Timeout { to: to.to_string() },
        Some((at, e)) => Failure::Unreachable(format!("{to} cannot be reached at {at}: {e}")),
        None => Failure::NoEndpoints(format!("{to} has no address")),
    }
}

fn order(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut shuffled = addresses.to_vec();
    shuffled.shuffle(&mut rand::rng());
    let (six, four): (Vec<_>, Vec<_>) = shuffled.into_iter().partition(SocketAddr::is_ipv6);
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    let mut all = Vec::with_capacity(addresses.len());
    loop {
        match (six.next(), four.next()) {
            (None, None) => return all,
            (a, b) => all.extend(a.into_iter().chain(b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::net::TcpListener;

    fn place() -> Destination {
        "svc/a/b:80".parse().unwrap()
    }

    #[tokio::test]
    async fn a_dead_address_is_no_reason_to_fail() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        // Bound and not listening: it refuses as long as it is held, and nobody else gets it.
        let refuses = tokio::net::TcpSocket::new_v4().unwrap();
        refuses.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let gone = refuses.local_addr().unwrap();
        for _ in 0..8 {
            let stream = timeout(Duration::from_secs(20), any(&place(), &[gone, good, gone])).await.unwrap().unwrap();
            assert_eq!(stream.peer_addr().unwrap(), good);
        }
        let refused = any(&place(), &[gone]).await.unwrap_err();
        assert!(matches!(&refused, Failure::Refused { at, .. } if *at == gone.to_string()), "{refused:?}");
        assert!(matches!(any(&place(), &[]).await, Err(Failure::NoEndpoints(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn f46_a_black_hole_is_a_timeout_and_holds_nothing() {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let hole = socket.local_addr().unwrap().as_socket().unwrap();
        // With its queue full the kernel answers nothing more.
        let brief = Duration::from_millis(50);
        let held: Vec<_> = (0..16).map_while(|_| std::net::TcpStream::connect_timeout(&hole, brief).ok()).collect();
        assert!(held.len() < 16);
        let begin = tokio::time::Instant::now();
        let failed = any(&place(), &[hole]).await;
        assert!(matches!(failed, Err(Failure::Timeout { .. })), "{failed:?}");
        assert_eq!(begin.elapsed(), limits::INSIDE_CONNECT);
    }

    #[test]
    fn families_take_turns() {
        let all: Vec<SocketAddr> =
            ["10.0.0.1:1", "10.0.0.2:1", "[fd00::1]:1", "10.0.0.3:1"].iter().map(|a| a.parse().unwrap()).collect();
        let order = order(&all);
        assert!(order[0].is_ipv6() && order[1].is_ipv4() && order.len() == 4);
    }
}
