//! The hub as an importing agent asks it: HTTP/1.1 over TLS, both sides by their certificates.

use super::{News, Protocol, Told};
use crate::{identity::Holder, join, limits, membership::Membership, upstream::chain};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use moorline_link::{HttpProxy, HubAddress, tls};
use moorline_proxy::{
    kube::PROTOCOL,
    upgrade::{Rewound, Whole},
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::task::AbortOnDropHandle;

/// A connection through the hub.
pub(super) type Tunnel = Rewound<Whole<TlsStream<TcpStream>>>;

/// The hub was not asked, or said no.
#[derive(Debug, thiserror::Error)]
pub(super) enum HubError {
    /// No connection.
    #[error("cannot reach the hub at {hub}: {cause}")]
    Unreachable {
        /// Which.
        hub: String,
        /// Why not.
        cause: String,
    },
    /// The call broke off or took too long.
    #[error("the call to the hub broke off: {0}")]
    Broken(String),
    /// It answered with something else.
    #[error("the hub answered {0}: {1}")]
    Refused(StatusCode, String),
}

/// Asks the hub.
pub(super) struct Hub {
    address: HubAddress,
    holder: Arc<Holder>,
    /// For the membership that it was made from.
    config: Mutex<Option<(Arc<Membership>, Arc<ClientConfig>)>>,
}

impl Hub {
    pub fn new(address: HubAddress, holder: Arc<Holder>) -> Self {
        Self { address, holder, config: Mutex::default() }
    }

    /// What is wanted: at once if it is not what was `seen`, else when it changes or after a while.
    pub async fn news(&self, seen: &str, told: &[Told]) -> Result<News, HubError> {
        let question = serde_json::json!({ "seen": seen, "told": told }).to_string();
        let call = async {
            let (mut sender, _driver) = self.http().await?;
            // The agent carries datagrams too: without this the hub names no such ports.
            let request =
                self.request("POST", "/imports?payload=datagrams").header(header::CONTENT_TYPE, "application/json");
            let request = request.body(Full::new(Bytes::from(question))).map_err(|e| broken(&e))?;
            let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
            let body = whole(response).await?;
            serde_json::from_slice(&body).map_err(|e| broken(&e))
        };
        timeout(limits::IMPORTS_POLL, call).await.unwrap_or_else(|_| Err(late()))
    }

    /// One connection to a port of an import: bytes of this client, or datagrams of many.
    pub async fn open(
        &self,
        import: &str,
        (port, protocol): (u16, Protocol),
        client: Option<IpAddr>,
    ) -> Result<Tunnel, HubError> {
        let query = match (protocol, client) {
            (Protocol::Tcp, None) => String::new(),
            (Protocol::Tcp, Some(client)) => format!("?client={}", client.to_canonical()),
            (Protocol::Udp, _) => "?payload=datagrams".to_owned(),
        };
        let call = async {
            let (mut sender, _driver) = self.http().await?;
            let request = self.request("GET", &format!("/imports/{import}/{port}{query}"));
            let request = request.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, PROTOCOL);
            let request = request.body(Full::new(Bytes::new())).map_err(|e| broken(&e))?;
            let mut response = sender.send_request(request).await.map_err(|e| broken(&e))?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(match whole(response).await {
                    Ok(_) => HubError::Broken("it did not switch".to_owned()),
                    Err(e) => e,
                });
            }
            let upgraded = hyper::upgrade::on(&mut response).await.map_err(|e| broken(&e))?;
            let parts = upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>();
            let parts = parts.map_err(|_| HubError::Broken("the connection is of another kind".to_owned()))?;
            Ok(Rewound::new(parts.read_buf, Whole(parts.io.into_inner())))
        };
        timeout(limits::IMPORTS_OPEN, call).await.unwrap_or_else(|_| Err(late()))
    }

    fn request(&self, method: &str, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string())
            .header(header::USER_AGENT, concat!("moorline-agent/", env!("CARGO_PKG_VERSION")))
    }

    /// A connection of its own for each request: one that waits holds no other back.
    async fn http(&self) -> Result<(http1::SendRequest<Full<Bytes>>, AbortOnDropHandle<()>), HubError> {
        let unreachable = |cause: String| HubError::Unreachable { hub: self.address.to_string(), cause };
        let connected = async {
            let proxy = HttpProxy::from_env(&self.address).map_err(|e| e.to_string())?;
            let tcp = join::connect(&self.address, proxy.as_ref()).await?;
            let _ = tcp.set_nodelay(true);
            let name = ServerName::try_from(self.address.host.clone()).map_err(|e| e.to_string())?;
            let config = self.config().map_err(|e| chain(&e))?;
            TlsConnector::from(config).connect(name, tcp).await.map_err(|e| chain(&e))
        };
        let tls = timeout(limits::IMPORTS_CONNECT, connected).await;
        let tls = tls.unwrap_or_else(|_| Err("no answer in time".to_owned())).map_err(unreachable)?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await.map_err(|e| broken(&e))?;
        let driver = tokio::spawn(async move {
            if let Err(e) = connection.with_upgrades().await {
                tracing::debug!("a connection to the hub ended: {e}");
            }
        });
        Ok((sender, AbortOnDropHandle::new(driver)))
    }

    fn config(&self) -> Result<Arc<ClientConfig>, tls::TlsError> {
        let now = self.holder.membership();
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, made)) = &*config
            && Arc::ptr_eq(of, &now)
        {
            return Ok(Arc::clone(made));
        }
        let mut made = (*self.holder.tls()?).clone();
        made.alpn_protocols = vec![tls::IMPORTS_ALPN.to_vec()];
        let made = Arc::new(made);
        *config = Some((now, Arc::clone(&made)));
        Ok(made)
    }
}

async fn whole(response: http::Response<hyper::body::Incoming>) -> Result<Bytes, HubError> {
    #[derive(Deserialize)]
    struct Status {
        message: String,
    }
    let (head, body) = response.into_parts();
    let body = Limited::new(body, limits::IMPORTS_ANSWER).collect().await;
    let body = body.map_err(|e| HubError::Broken(e.to_string()))?.to_bytes();
    if head.status.is_success() {
        return Ok(body);
    }
    let said = serde_json::from_slice::<Status>(&body).map(|status| status.message).unwrap_or_default();
    let said = said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    Err(HubError::Refused(head.status, said))
}

fn broken(e: &dyn std::error::Error) -> HubError {
    HubError::Broken(chain(e))
}

fn late() -> HubError {
    HubError::Broken("no answer in time".to_owned())
}
