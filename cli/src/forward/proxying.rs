//! A proxy into the cluster for whoever asks by name: SOCKS5 (RFC 1928) and HTTP CONNECT (RFC 9110 §9.3.6) at one port.

use super::{
    tcp::{carry, each},
    tunnel::Tunnels,
};
use crate::client::ApiError;
use moorline_proto::inside::Destination;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Longest wait until somebody has said where to.
const GREETING: Duration = Duration::from_secs(10);
/// Largest head of a CONNECT, in bytes.
const HEAD: usize = 8 << 10;

/// Serves for ever.
pub async fn serve(listener: TcpListener, tunnels: Arc<Tunnels>) {
    each(listener, move |socket| {
        let tunnels = tunnels.clone();
        async move {
            // Whoever breaks the protocol is not told: it would not understand.
            let _ = one(socket, &tunnels).await;
        }
    })
    .await;
}

#[derive(Clone, Copy)]
enum Spoken {
    Socks,
    Http,
}

async fn one(mut socket: TcpStream, tunnels: &Tunnels) -> io::Result<()> {
    let asked = timeout(GREETING, async {
        match socket.read_u8().await? {
            5 => io::Result::Ok((Spoken::Socks, socks(&mut socket).await?)),
            first => Ok((Spoken::Http, connect(&mut socket, first).await?)),
        }
    });
    let (spoken, asked) = asked.await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))?;
    let to = match asked {
        Ok((host, port)) => Destination::host(&host, port).map_err(|e| (0x08, 400, e.to_string())),
        Err(refused) => Err(refused),
    };
    let opened = match to {
        Ok(to) => tunnels.open(&to).await.map_err(|e| told(&e)),
        Err(refused) => Err(refused),
    };
    let (reply, code, words) = match &opened {
        Ok(_) => (0, 200, "Connection established".to_owned()),
        Err((reply, code, words)) => (*reply, *code, words.clone()),
    };
    match spoken {
        // The bound address is nobody's business, and 0.0.0.0:0 is what says so.
        Spoken::Socks => socket.write_all(&[5, reply, 0, 1, 0, 0, 0, 0, 0, 0]).await?,
        Spoken::Http if opened.is_ok() => socket.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?,
        Spoken::Http => {
            let body = format!("{words}\n");
            let head = format!(
                "HTTP/1.1 {code} Refused\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            socket.write_all((head + &body).as_bytes()).await?;
        }
    }
    match opened {
        Ok(tunnel) => carry(socket, tunnel, tunnels).await,
        Err(_) => socket.shutdown().await?,
    }
    Ok(())
}

/// A failure as SOCKS, HTTP and people are told it.
fn told(e: &ApiError) -> (u8, u16, String) {
    let (reply, code) = match e {
        ApiError::Refused { code, reason, .. } => match (code.as_u16(), reason.as_str()) {
            (403, _) => (0x02, 403),
            (404, _) => (0x04, 404),
            (_, "ConnectionRefused") => (0x05, 502),
            (504, _) => (0x06, 504),
            (503, _) => (0x03, 503),
            _ => (0x01, 502),
        },
        _ => (0x03, 502),
    };
    (reply, code, e.to_string())
}

/// Where to, or why not: a reply of SOCKS, a status, and words.
type Asked = Result<(String, u16), (u8, u16, String)>;

/// The rest of a SOCKS5 request, after its version.
async fn socks(socket: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<Asked> {
    let mut methods = vec![0; socket.read_u8().await?.into()];
    socket.read_exact(&mut methods).await?;
    if !methods.contains(&0) {
        socket.write_all(&[5, 0xff]).await?;
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    socket.write_all(&[5, 0]).await?;
    let mut head = [0; 4];
    socket.read_exact(&mut head).await?;
    let [version, command, _, kind] = head;
    if version != 5 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let host = match kind {
        1 => {
            let mut address = [0; 4];
            socket.read_exact(&mut address).await?;
            IpAddr::from(Ipv4Addr::from(address)).to_string()
        }
        4 => {
            let mut address = [0; 16];
            socket.read_exact(&mut address).await?;
            IpAddr::from(Ipv6Addr::from(address)).to_string()
        }
        3 => {
            let mut name = vec![0; socket.read_u8().await?.into()];
            socket.read_exact(&mut name).await?;
            String::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData)?
        }
        _ => return Ok(Err((0x08, 400, "this kind of address is not known".to_owned()))),
    };
    let port = socket.read_u16().await?;
    if command != 1 {
        return Ok(Err((0x07, 405, "only connections are forwarded".to_owned())));
    }
    Ok(Ok((host, port)))
}

/// A request for CONNECT, whose first byte was read.
async fn connect(socket: &mut (impl AsyncRead + Unpin), first: u8) -> io::Result<Asked> {
    let mut head = vec![first];
    // Byte by byte: what follows the head belongs to the connection.
    while !head.ends_with(b"\r\n\r\n") {
        if HEAD <= head.len() {
            return Ok(Err((0, 431, "the head is too long".to_owned())));
        }
        head.push(socket.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head);
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    let (method, target) = (words.next(), words.next().unwrap_or_default());
    let place = target.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
    Ok(match (method, place) {
        (Some("CONNECT"), Some(place)) => Ok(place),
        (Some("CONNECT"), None) => Err((0, 400, format!("{target:?} is not HOST:PORT"))),
        _ => Err((0, 405, "only CONNECT is possible here; plain http:// works over SOCKS5".to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is understood of these bytes, and what is left unread.
    async fn heard(sent: &[u8]) -> (io::Result<Asked>, Vec<u8>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(sent).await.unwrap();
        far.shutdown().await.unwrap();
        let asked = match near.read_u8().await.unwrap() {
            5 => socks(&mut near).await,
            first => connect(&mut near, first).await,
        };
        let (mut rest, mut said) = (Vec::new(), Vec::new());
        let (mut read, write) = tokio::io::split(near);
        read.read_to_end(&mut rest).await.unwrap();
        drop((read, write));
        far.read_to_end(&mut said).await.unwrap();
        (asked, rest, said)
    }

    #[tokio::test]
    async fn what_socks_clients_and_http_clients_ask_for_is_read_and_no_byte_more() {
        let ok = |host: &str, port| Ok((host.to_owned(), port));
        let with = |head: &[u8], name: &[u8]| [&[5, 1, 0, 5, 1, 0][..], head, name, &[0x1f, 0x90], b"rest"].concat();
        for (sent, wanted) in [
            (with(&[3, 12], b"web.shop.svc"), ok("web.shop.svc", 8080)),
            (with(&[1], &[10, 0, 0, 5]), ok("10.0.0.5", 8080)),
            (with(&[4], &std::net::Ipv6Addr::LOCALHOST.octets()), ok("::1", 8080)),
        ] {
            let (asked, rest, said) = heard(&sent).await;
            assert_eq!((asked.unwrap(), &rest[..], &said[..]), (wanted, &b"rest"[..], &[5, 0][..]));
        }
        for (line, wanted) in [
            ("CONNECT web.shop.svc:443 HTTP/1.1", ok("web.shop.svc", 443)),
            ("CONNECT [fd00::5]:443 HTTP/1.1", ok("[fd00::5]", 443)),
        ] {
            let sent = format!("{line}\r\nHost: x\r\nProxy-Connection: keep-alive\r\n\r\nrest");
            let (asked, rest, _) = heard(sent.as_bytes()).await;
            assert_eq!((asked.unwrap(), &rest[..]), (wanted, &b"rest"[..]), "{line}");
        }
    }

    #[tokio::test]
    async fn what_is_not_forwarded_is_told_in_the_callers_own_words() {
        let code = async |sent: &[u8]| heard(sent).await.0.unwrap().unwrap_err();
        let (reply, _, _) = code(&[5, 1, 0, 5, 2, 0, 1, 10, 0, 0, 5, 0, 80]).await;
        assert_eq!(reply, 7, "to bind a port is not offered (RFC 1928 §6)");
        assert_eq!(code(&[5, 1, 0, 5, 1, 0, 9, 0, 0]).await.0, 8);
        let (asked, _, said) = heard(&[5, 1, 2, 0, 0]).await;
        assert!(asked.is_err() && said == [5, 0xff], "a password is asked for by nobody: {said:?}");
        assert_eq!(code(b"GET http://web.shop.svc/ HTTP/1.1\r\n\r\n").await.1, 405);
        assert_eq!(code(b"CONNECT web.shop.svc HTTP/1.1\r\n\r\n").await.1, 400);
        let long = [b"CONNECT ".to_vec(), vec![b'a'; HEAD]].concat();
        assert_eq!(code(&long).await.1, 431);
        assert!(heard(b"CONNECT web").await.0.is_err(), "cut short");
    }
}
