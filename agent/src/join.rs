//! The first contact: a token and a signing request for a certificate. Nothing is sent before the hub proved the pin.

use crate::{
    config::{AgentRole, Config},
    limits,
    membership::{BadChain, Membership, certificates},
    rejoin::Renewable,
    upstream::chain,
};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use moorline_authz::token::TokenText;
use moorline_link::{HttpProxy, HubAddress, tls};
use moorline_proto::id::{AgentName, ClusterId};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// Why the agent did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The hub could not be reached. Nothing was sent.
    #[error("cannot reach the hub at {hub}: {cause}")]
    Unreachable {
        /// Who.
        hub: String,
        /// Why not.
        cause: String,
    },
    /// Whoever answered is not the hub that made the token, or the clocks differ. The token was not sent.
    #[error(
        "{hub} did not prove to be the hub that the token is from; the token was not sent. Check the address, whether \
         something in between opens TLS, and both clocks: {cause}"
    )]
    NotTheHub {
        /// Who.
        hub: String,
        /// What the handshake said.
        cause: String,
    },
    /// 401.
    #[error(
        "the hub refused the token: it is unknown, expired or used up. Make a new one: moorline token create --cluster <cluster> ({0})"
    )]
    Token(String),
    /// 403.
    #[error("the hub refused to let this agent join: {0}")]
    Forbidden(String),
    /// 400, 409, 422: the same again would be refused again.
    #[error("the hub refused the request ({0}): {1}")]
    Refused(StatusCode, String),
    /// 429, 5xx.
    #[error("the hub cannot take the agent now ({0}): {1}")]
    Later(StatusCode, String),
    /// The call broke off or took too long. The hub may have counted the token as used.
    #[error("the call to the hub broke off: {0}")]
    Broken(String),
    /// The service account's token is not there: the kubelet may be about to write it.
    #[error("cannot read the service account's token: {0}")]
    Account(String),
    /// Whoever makes tokens for this agent made none.
    #[error("no join token was made: {0}")]
    NoToken(String),
    /// The answer does not hold what it must.
    #[error("the hub's answer cannot be used: {0}")]
    Answer(String),
    /// The answer's certificate is not this agent's.
    #[error("the hub's answer cannot be used")]
    Certificate(#[from] BadChain),
    /// The token is none, or no request could be made.
    #[error("cannot make the request: {0}")]
    Request(String),
}

impl JoinError {
    /// Whether time alone may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::NotTheHub { .. }
            | Self::Later(..)
            | Self::Broken(_)
            | Self::Account(_) => true,
            Self::Token(_)
            | Self::NoToken(_)
            | Self::Forbidden(_)
            | Self::Refused(..)
            | Self::Answer(_)
            | Self::Certificate(_)
            | Self::Request(_) => false,
        }
    }
}

/// What lets an agent join.
pub enum Proof {
    /// A join token, which pins the hub's authority.
    Token(String),
    /// The token of the pod's service account, which one of the cluster's agents vouches for.
    Account {
        /// As it is in its file now.
        token: String,
        /// The hub's authority.
        pin: [u8; 32],
    },
}

impl Proof {
    /// What the configuration says: what is good again and again goes before a token, which may be used up.
    ///
    /// # Errors
    /// There is nothing, or nothing now.
    pub async fn of(config: &Config) -> Result<Self, JoinError> {
        if let Some(renewable) = Renewable::of(config) {
            return renewable.proof().await;
        }
        config.token.clone().map(Self::Token).ok_or_else(|| JoinError::Request("there is no token".to_owned()))
    }

    /// The authority that it is for; `None`: it is no proof.
    pub(crate) fn pin(&self) -> Option<[u8; 32]> {
        match self {
            Self::Token(token) => TokenText::parse(token).ok()?.pin,
            Self::Account { pin, .. } => Some(*pin),
        }
    }
}

#[derive(Serialize)]
struct Question<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<&'a str>,
    csr: String,
    name: &'a str,
    role: AgentRole,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    cluster: String,
    name: String,
    trust_domain: String,
    chain: Vec<String>,
    bundle: Vec<String>,
}

/// A signing request for `key`. It names nobody: the hub decides.
///
/// # Errors
/// In words.
pub(crate) fn signing_request(key: &KeyPair) -> Result<rcgen::CertificateSigningRequest, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(key).map_err(|e| e.to_string())
}

/// Joins: sends the proof and a signing request for `key`, checks what comes back against its pin.
///
/// # Errors
/// See [`JoinError`].
///
/// # Cancel safety
/// Dropping the future may have used the token up.
pub async fn join(
    hub: &HubAddress,
    proof: &Proof,
    key: &KeyPair,
    (name, role): (&AgentName, AgentRole),
    cluster: Option<&ClusterId>,
) -> Result<Membership, JoinError> {
    let pin = proof.pin().ok_or_else(|| JoinError::Request("the token is not a join token".to_owned()))?;
    let csr = signing_request(key).and_then(|csr| csr.pem().map_err(|e| e.to_string())).map_err(JoinError::Request)?;
    let (token, account) = match proof {
        Proof::Token(token) => (Some(token.as_str()), None),
        Proof::Account { token, .. } => (None, Some(token.as_str())),
    };
    let question = Question { token, account, csr, name: name.as_str(), role, cluster: cluster.map(ClusterId::as_str) };
    let question = serde_json::to_vec(&question).map_err(|e| JoinError::Request(e.to_string()))?;
    let answer = tokio::time::timeout(limits::JOIN, call(hub, pin, question))
        .await
        .map_err(|_| JoinError::Broken("no answer in time".to_owned()))??;
    accept(&answer, pin, key, (name, role), cluster)
}

/// A TCP connection to the hub, if need be through a proxy; the error is for people.
pub(crate) async fn connect(hub: &HubAddress, proxy: Option<&HttpProxy>) -> Result<TcpStream, String> {
    let (host, port) = proxy.map_or((hub.host.as_str(), hub.port), |proxy| (proxy.host(), proxy.port()));
    let mut tcp = Err("it has no address".to_owned());
    for remote in lookup_host((host, port)).await.map_err(|e| e.to_string())? {
        tcp = moorline_link::tcp_connect(remote).await.map_err(|e| e.to_string());
        if tcp.is_ok() {
            break;
        }
    }
    let mut tcp = tcp?;
    if let Some(proxy) = proxy {
        proxy.tunnel(&mut tcp, hub).await.map_err(|cause| format!("proxy {proxy}: {cause}"))?;
    }
    Ok(tcp)
}

async fn call(hub: &HubAddress, pin: [u8; 32], question: Vec<u8>) -> Result<Bytes, JoinError> {
    let unreachable = |cause: String| JoinError::Unreachable { hub: hub.to_string(), cause };
    let config = tls::pinned_client_config(pin, &[b"http/1.1"]).map_err(|e| JoinError::Request(e.to_string()))?;
    let name = ServerName::try_from(hub.host.clone()).map_err(|e| JoinError::Request(e.to_string()))?;
    let proxy = HttpProxy::from_env(hub).map_err(|e| JoinError::Request(e.to_string()))?;
    let tcp = tokio::time::timeout(limits::UPSTREAM_CONNECT, connect(hub, proxy.as_ref()));
    let tcp = tcp.await.map_err(|_| unreachable("no answer in time".to_owned()))?.map_err(unreachable)?;
    let tls = TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|e| JoinError::NotTheHub { hub: hub.to_string(), cause: chain(&e) })?;
    let broken = |e: &dyn std::error::Error| JoinError::Broken(chain(e));
    let (mut send, connection) = http1::handshake(TokioIo::new(tls)).await.map_err(|e| broken(&e))?;
    let _task = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::post("/agent/join")
        .header(header::HOST, hub.to_string())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::from(question)))
        .map_err(|e| JoinError::Request(e.to_string()))?;
    let (head, body) = send.send_request(request).await.map_err(|e| broken(&e))?.into_parts();
    let body = Limited::new(body, limits::JOIN_ANSWER)
        .collect()
        .await
        .map_err(|e| JoinError::Broken(e.to_string()))?
        .to_bytes();
    match head.status {
        status if status.is_success() => Ok(body),
        StatusCode::UNAUTHORIZED => Err(JoinError::Token(said(&body))),
        StatusCode::FORBIDDEN => Err(JoinError::Forbidden(said(&body))),
        status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
            Err(JoinError::Later(status, said(&body)))
        }
        status => Err(JoinError::Refused(status, said(&body))),
    }
}

/// What a `Status`, or plain text, says: one line of bounded length.
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Status {
        message: String,
    }
    let text = match serde_json::from_slice::<Status>(body) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

fn accept(
    answer: &[u8],
    pin: [u8; 32],
    key: &KeyPair,
    (name, role): (&AgentName, AgentRole),
    cluster: Option<&ClusterId>,
) -> Result<Membership, JoinError> {
    let wrong = |cause: String| JoinError::Answer(cause);
    let answer: Answer = serde_json::from_slice(answer).map_err(|e| wrong(e.to_string()))?;
    let membership = Membership {
        cluster: answer.cluster.parse().map_err(|e: moorline_proto::id::InvalidName| wrong(e.to_string()))?,
        name: answer.name.parse().map_err(|e: moorline_proto::id::InvalidName| wrong(e.to_string()))?,
        role,
        trust_domain: answer.trust_domain.parse().map_err(|e: moorline_proto::id::InvalidName| wrong(e.to_string()))?,
        chain: certificates(&answer.chain).map_err(wrong)?,
        bundle: certificates(&answer.bundle).map_err(wrong)?,
    };
    if !membership.trusts_pin(&pin) {
        return Err(wrong("its trust bundle does not hold the authority that the token pins".to_owned()));
    }
    if let Some(asked) = cluster.filter(|asked| **asked != membership.cluster) {
        return Err(wrong(format!("it is for cluster {}, not for {asked}", membership.cluster)));
    }
    if *name != membership.name {
        tracing::info!(asked = %name, given = %membership.name, "the hub gave this agent another name");
    }
    membership.check(key)?;
    Ok(membership)
}
