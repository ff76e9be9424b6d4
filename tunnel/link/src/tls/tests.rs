//! Certificates for tests, and who gets through the handshake with them.

use super::*;
use crate::{
    AcceptError, Carrier, DialError, Greeting, HubAddress, Limits, QuicKeys, QuicListener, Session, accept_tls,
    accept_websocket, dial,
};
use moorline_proto::{
    control::{Hello, VERSION, Welcome},
    id::{InstanceId, SessionId},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd};
use std::net::{Ipv4Addr, SocketAddr};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};

pub(crate) const AGENT: &str = "spiffe://example/cluster/c1/agent/a1";
pub(crate) const HUB: &str = "spiffe://example/hub/h1";

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }
    pub fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }
    pub fn identity(&self, uri: &str) -> Identity {
        self.bent(uri, |_| {})
    }
    pub fn bent(&self, uri: &str, bend: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        bend(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Identity { chain: vec![leaf.der().clone(), self.der()], key }
    }
    pub fn trust(&self) -> Trust {
        Trust { roots: vec![self.der()], domain: "example".parse().unwrap() }
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        min_version: VERSION,
        max_version: VERSION,
        instance: InstanceId(7),
        software: "test".into(),
        capabilities: vec![],
        facts: vec![("k".into(), "v".into())],
        now_ms: 1,
    }
}
pub(crate) fn welcome() -> Welcome {
    Welcome { version: VERSION, software: "test".into(), capabilities: vec![], now_ms: 1 }
}

/// A hub that takes one connection at a time.
pub(crate) enum Listener {
    Tls(TcpListener, Arc<rustls::ServerConfig>, Limits),
    WebSocket(TcpListener, Arc<rustls::ServerConfig>, Limits),
    Quic(QuicListener),
}
impl Listener {
    pub async fn bind(carrier: Carrier, tls: Arc<rustls::ServerConfig>, limits: &Limits) -> (Self, HubAddress) {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (listener, at) = match carrier {
            Carrier::Tls | Carrier::WebSocket => {
                let socket = TcpListener::bind(any).await.unwrap();
                let at = socket.local_addr().unwrap();
                let make = if carrier == Carrier::Tls { Self::Tls } else { Self::WebSocket };
                (make(socket, tls, limits.clone()), at)
            }
            Carrier::Quic => {
                let listener =
                    QuicListener::bind(std::net::UdpSocket::bind(any).unwrap(), tls, QuicKeys::new(&[7; 32]), limits)
                        .unwrap();
                let at = listener.local_addr().unwrap();
                (Self::Quic(listener), at)
            }
        };
        (listener, HubAddress { host: "127.0.0.1".into(), port: at.port() })
    }
    pub async fn greet(&self) -> Result<Greeting, AcceptError> {
        match self {
            Self::Tls(socket, tls, limits) => {
                let (socket, remote) = socket.accept().await.unwrap();
                let conn = tokio_rustls::TlsAcceptor::from(Arc::clone(tls)).accept(crate::ReadAhead::new(socket)).await;
                accept_tls(conn.map_err(|e| AcceptError::Handshake(e.to_string()))?, remote, limits).await
            }
            Self::WebSocket(socket, tls, limits) => {
                let (socket, remote) = socket.accept().await.unwrap();
                let outer = tokio_rustls::TlsAcceptor::from(outer_server_config()).accept(socket).await.unwrap();
                let outer = upgraded(outer).await;
                accept_websocket(outer, Arc::clone(tls), remote, limits).await
            }
            Self::Quic(listener) => listener.accept().await.unwrap().greet().await,
        }
    }
}

/// The TLS around a WebSocket: a certificate that nobody knows, for no name that was dialled.
fn outer_server_config() -> Arc<rustls::ServerConfig> {
    let identity = Authority::new().identity("https://a.proxy.on.the.way");
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain, identity.key)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Reads a request's head and agrees to a WebSocket.
pub(crate) async fn upgraded<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO) -> IO {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert_ne!(io.read_buf(&mut head).await.unwrap(), 0);
    }
    let text = String::from_utf8(head).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("GET /connect HTTP/1.1"));
    let mut request = http::Request::get(crate::websocket::PATH);
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    let response = crate::websocket::upgrade(&request.body(()).unwrap()).unwrap();
    let mut answer = "HTTP/1.1 101 Switching Protocols\r\n".to_owned();
    for (name, value) in response.headers() {
        answer.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    io.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
    io.flush().await.unwrap();
    io
}

/// A hub's and an agent's session over real sockets. The listener has to live as long.
pub(crate) async fn connected(carrier: Carrier, limits: &Limits) -> (Session, Session, Listener) {
    let ca = Authority::new();
    let server = server_config(&ca.identity(HUB), &ca.trust()).unwrap();
    let client = client_config(&ca.identity(AGENT), &ca.trust()).unwrap();
    let (listener, at) = Listener::bind(carrier, server, limits).await;
    let (hub, agent) = tokio::join!(
        async { listener.greet().await.unwrap().welcome(SessionId(1), welcome()).await.unwrap() },
        async { dial(&at, carrier, client, hello(), limits).await.unwrap().0 },
    );
    (hub, agent, listener)
}

/// What becomes of a dial between two identities, each with its own trust.
async fn meet(
    carrier: Carrier,
    hub: (&Identity, &Trust),
    agent: (&Identity, &Trust),
) -> (Result<(), AcceptError>, Result<(), DialError>) {
    let limits = Limits::default();
    let (listener, at) = Listener::bind(carrier, server_config(hub.0, hub.1).unwrap(), &limits).await;
    let client = client_config(agent.0, agent.1).unwrap();
    tokio::join!(
        async {
            let session = listener.greet().await?.welcome(SessionId(1), welcome()).await?;
            session.closed().await;
            Ok(())
        },
        async { dial(&at, carrier, client, hello(), &limits).await.map(|_| ()) },
    )
}

#[tokio::test]
async fn only_the_right_identities_meet() {
    let (ours, twin) = (Authority::new(), Authority::new());
    let trust = ours.trust();
    let (hub, agent) = (ours.identity(HUB), ours.identity(AGENT));
    let expired = |p: &mut CertificateParams| p.not_after = date_time_ymd(2001, 1, 1);
    let early = |p: &mut CertificateParams| p.not_before = date_time_ymd(2999, 1, 1);
    for carrier in [Carrier::Tls, Carrier::Quic, Carrier::WebSocket] {
        let (at_hub, at_agent) = meet(carrier, (&hub, &trust), (&agent, &trust)).await;
        at_hub.unwrap();
        at_agent.unwrap();
        for (wrong, words) in [
            (ours.bent(HUB, expired), "has expired"),
            (ours.bent(HUB, early), "not valid yet"),
            (ours.bent(HUB, |p| p.subject_alt_names.clear()), "somebody else's"),
            (ours.bent(HUB, |p| p.subject_alt_names.push(p.subject_alt_names[0].clone())), "somebody else's"),
            (ours.identity("spiffe://other/hub/h1"), "somebody else's"),
            (ours.identity(AGENT), "somebody else's"),
            (twin.identity(HUB), "does not trust"),
        ] {
            let (at_hub, at_agent) = meet(carrier, (&wrong, &trust), (&agent, &trust)).await;
            assert!(at_hub.is_err(), "{carrier} {words}");
            let error = at_agent.unwrap_err();
            assert!(
                matches!(&error, DialError::Tls { cause, .. } if cause.contains(words)),
                "{carrier} {words}: {error}"
            );
        }
        for (wrong, words) in [
            (ours.bent(AGENT, expired), "expired"),
            (ours.bent(AGENT, early), "expired or not valid yet"),
            (ours.bent(AGENT, |p| p.subject_alt_names.clear()), "refused this agent's certificate"),
            (ours.identity("spiffe://other/cluster/c1/agent/a1"), "refused this agent's certificate"),
            (ours.identity(HUB), "refused this agent's certificate"),
            (twin.identity(AGENT), "refused this agent's certificate"),
        ] {
            let (at_hub, at_agent) = meet(carrier, (&hub, &trust), (&wrong, &trust)).await;
            assert!(at_hub.is_err(), "{carrier} {words}");
            let error = at_agent.unwrap_err();
            assert!(
                matches!(&error, DialError::Tls { cause, .. } if cause.contains(words)),
                "{carrier} {words}: {error}"
            );
        }
    }
}

#[test]
fn a_certificate_names_one_identity() {
    let ca = Authority::new();
    let leaf = ca.identity(AGENT).chain.remove(0);
    assert_eq!(peer_id(&leaf).unwrap().to_string(), AGENT);
    assert!(peer_id(&ca.der()).is_err());
    assert!(is_authority(&ca.der()) && !is_authority(&leaf));
    assert_ne!(spki_sha256(&leaf).unwrap(), spki_sha256(&ca.der()).unwrap());
    assert!(server_config(&ca.identity(HUB), &Trust { roots: vec![], ..ca.trust() }).is_err());
}

/// Who gets past a client that knows only the pin of the authority.
#[tokio::test]
async fn a_pin_admits_the_hub_of_one_authority() {
    let (ours, twin) = (Authority::new(), Authority::new());
    let pin = spki_sha256(&ours.der()).unwrap();
    let shown = |mut identity: Identity, authority: &Authority| {
        identity.chain.truncate(1);
        identity.chain.push(authority.der());
        identity
    };
    for (identity, admitted, what) in [
        (ours.identity(HUB), true, "the hub"),
        (twin.identity(HUB), false, "the hub of another authority"),
        (shown(twin.identity(HUB), &ours), false, "another's hub that shows our authority"),
        (ours.identity(AGENT), false, "an agent"),
        (ours.bent(HUB, |p| p.not_after = date_time_ymd(2001, 1, 1)), false, "an expired hub"),
        (ours.bent(HUB, |p| p.subject_alt_names.clear()), false, "a certificate without identity"),
    ] {
        let mut server = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain, identity.key)
            .unwrap();
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let client = pinned_client_config(pin, &[b"http/1.1"]).unwrap();
        let (near, far) = tokio::io::duplex(64 << 10);
        let name = rustls_pki_types::ServerName::try_from("any.example").unwrap();
        let (served, dialled) = tokio::join!(
            tokio_rustls::TlsAcceptor::from(Arc::new(server)).accept(far),
            tokio_rustls::TlsConnector::from(client).connect(name, near),
        );
        assert_eq!((dialled.is_ok(), served.is_ok()), (admitted, admitted), "{what}");
    }
}
