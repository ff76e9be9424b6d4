//! From an address to a connection whose handshake is done, on each carrier.

use super::{
    DialError, Dialled,
    tapped::Tapped,
    words::{NO_ALPN, tls_cause, words},
};
use crate::{
    Carrier, HttpProxy, HubAddress, Limits, ReadAhead,
    carrier::{Conn, Quic},
    mux::{self, MuxRole},
    quic, tcp, tls, websocket,
};
use rustls_pki_types::{CertificateDer, ServerName};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

/// Addresses of one name that are tried, the first ones.
const ADDRESSES: usize = 8;

/// Dials the addresses of a hub, or of the proxy on the way, one after the other until the hub has shaken hands.
pub(crate) async fn shake_hands(
    address: &HubAddress,
    carrier: Carrier,
    proxy: Option<&HttpProxy>,
    tls: Arc<rustls::ClientConfig>,
    limits: &Limits,
) -> Result<Dialled, DialError> {
    let proxy = proxy.filter(|_| carrier != Carrier::Quic);
    // Behind a proxy the hub's name is the proxy's to resolve.
    let (host, port) = match proxy {
        Some(proxy) => (proxy.host(), proxy.port()),
        None => (address.host.as_str(), address.port),
    };
    let no_name = |cause: String| DialError::Dns { host: host.to_owned(), cause };
    let deadline = tokio::time::Instant::now() + limits.handshake;
    let addresses: Vec<_> = match timeout_at(deadline, tokio::net::lookup_host((host, port))).await {
        Err(_) => return Err(no_name("no answer in time".into())),
        Ok(Err(error)) => return Err(no_name(error.to_string())),
        Ok(Ok(found)) => found.take(ADDRESSES).collect(),
    };
    let mut last = no_name("it has no address".into());
    for remote in addresses {
        let tls = Arc::clone(&tls);
        let attempt = async {
            match carrier {
                Carrier::Quic => dial_quic(address, remote, tls, limits).await,
                Carrier::Tls => {
                    let socket = dial_tcp(address, remote, proxy, limits).await?;
                    secure(address, remote, ReadAhead::new(socket), tls, limits).await
                }
                Carrier::WebSocket => {
                    let socket = dial_tcp(address, remote, proxy, limits).await?;
                    let bytes = dial_websocket(address, socket).await?;
                    secure(address, remote, bytes, tls, limits).await
                }
            }
        };
        match timeout_at(deadline, attempt).await {
            Ok(Ok(dialled)) => return Ok(dialled),
            // Another address of the same name would say the same.
            Ok(Err(error @ (DialError::Tls { .. } | DialError::Protocol { .. } | DialError::Proxy { .. }))) => {
                return Err(error);
            }
            Ok(Err(error)) => last = error,
            Err(_) => return Err(DialError::Timeout { address: address.to_string(), phase: "handshake" }),
        }
    }
    Err(last)
}

async fn dial_quic(
    address: &HubAddress,
    remote: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    limits: &Limits,
) -> Result<Dialled, DialError> {
    let connect = |cause: String| DialError::Connect { address: address.to_string(), cause };
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).map_err(|error| connect(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let transport = quic::transport(limits, limits.streams_start).map_err(|error| connect(error.to_string()))?;
    config.transport_config(Arc::new(transport));
    let local: SocketAddr = match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = UdpSocket::bind(local)
        .and_then(|socket| quic::endpoint(socket, quinn::EndpointConfig::default(), None))
        .map_err(|error| connect(error.to_string()))?;
    let connecting =
        endpoint.connect_with(config, remote, &address.host).map_err(|error| connect(error.to_string()))?;
    let conn = match timeout(limits.connect_each, connecting).await {
        Err(_) => return Err(DialError::Timeout { address: address.to_string(), phase: "QUIC handshake" }),
        Ok(Err(error)) => {
            return Err(match tls_cause(&error) {
                Some(cause) => DialError::Tls { address: address.to_string(), cause },
                None => connect(error.to_string()),
            });
        }
        Ok(Ok(conn)) => conn,
    };
    if !quic::speaks_our_protocol(&conn) {
        return Err(DialError::Protocol { address: address.to_string(), cause: NO_ALPN.into() });
    }
    let certs = quic::peer_certs(&conn);
    let conn = Conn::Quic(Quic::new(conn, limits.streams_start, limits.streams_max, limits));
    Ok(Dialled { conn, remote, certs, alert: Arc::default() })
}

/// A TCP connection to the hub, if need be through a proxy.
async fn dial_tcp(
    address: &HubAddress,
    remote: SocketAddr,
    proxy: Option<&HttpProxy>,
    limits: &Limits,
) -> Result<TcpStream, DialError> {
    let connect = |error: io::Error| DialError::Connect { address: address.to_string(), cause: error.to_string() };
    let through = |proxy: &HttpProxy, cause: String| {
        let (address, proxy) = (address.to_string(), proxy.to_string());
        DialError::Proxy { address, proxy, cause }
    };
    let mut socket = match (timeout(limits.connect_each, tcp::tcp_connect(remote)).await, proxy) {
        (Err(_), None) => return Err(DialError::Timeout { address: address.to_string(), phase: "TCP connect" }),
        (Err(_), Some(proxy)) => return Err(through(proxy, "it takes no connection in time".into())),
        (Ok(Err(error)), Some(proxy)) => return Err(through(proxy, error.to_string())),
        (Ok(socket), _) => socket.map_err(connect)?,
    };
    tcp::tune(&socket, limits).map_err(connect)?;
    if let Some(proxy) = proxy {
        proxy.tunnel(&mut socket, address).await.map_err(|cause| through(proxy, cause))?;
    }
    Ok(socket)
}

/// A WebSocket to the hub. The TLS around it is for whoever stands in the way, who may show any certificate: the TLS
/// within finds out whether the hub is at the end.
async fn dial_websocket(
    address: &HubAddress,
    socket: TcpStream,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, DialError> {
    let failed = |cause: String| DialError::Connect { address: address.to_string(), cause };
    let outer = tls::outer_client_config().map_err(|error| failed(error.to_string()))?;
    let outer = TlsConnector::from(outer).connect(name(address)?, ReadAhead::new(socket)).await;
    let outer = outer.map_err(|error| failed(format!("{error} during the TLS handshake around the WebSocket")))?;
    let authority = match address.port {
        443 => HubAddress { port: 0, ..address.clone() }.to_string().trim_end_matches(":0").to_owned(),
        _ => address.to_string(),
    };
    websocket::dial(outer, &authority)
        .await
        .map_err(|cause| DialError::Protocol { address: address.to_string(), cause })
}

fn name(address: &HubAddress) -> Result<ServerName<'static>, DialError> {
    let host = address.host.clone();
    ServerName::try_from(host.clone())
        .map_err(|_| DialError::Dns { host, cause: "not a DNS name or IP address".into() })
}

/// TLS with the hub itself, and the mux in it.
async fn secure<IO>(
    address: &HubAddress,
    remote: SocketAddr,
    io: IO,
    tls: Arc<rustls::ClientConfig>,
    limits: &Limits,
) -> Result<Dialled, DialError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = TlsConnector::from(tls).connect(name(address)?, io).await.map_err(|error| {
        let address = address.to_string();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => DialError::Tls { address, cause: words(&error.to_string()) },
            None => DialError::Lost { address, cause: format!("{error} during the TLS handshake") },
        }
    })?;
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(tls::ALPN) {
        return Err(DialError::Protocol { address: address.to_string(), cause: NO_ALPN.into() });
    }
    let certs =
        session.peer_certificates().unwrap_or_default().iter().cloned().map(CertificateDer::into_owned).collect();
    let alert = Arc::default();
    let tapped = Tapped { inner: stream, alert: Arc::clone(&alert) };
    let conn = Conn::Mux(mux::spawn(tapped, MuxRole::Client, limits));
    Ok(Dialled { conn, remote, certs, alert })
}
