//! One HTTPS request at a time to a hub, with the hub's own authority.

use crate::{
    failure::usage,
    resource::Resource,
    session,
    settings::{KnownHub, Secret},
    target::HubUrl,
    tls,
};
use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use moorline_link::InvalidAddress;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use serde_json::Value;
use std::{io, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;

/// Longest time for the connection and its TLS handshake.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest upload of a file.
const UPLOAD: Duration = Duration::from_secs(300);
/// Largest answer taken in, in bytes: a list of 10,000 objects of some KiB fits.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Largest watch event, in bytes.
const MAX_EVENT: usize = 4 * 1024 * 1024;
/// JSON, the API's plain form.
pub const JSON: &str = "application/json";
/// The API's table form (`meta.k8s.io/v1 Table`), made for printing; plain JSON where a server has none.
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// Why a request to the hub did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The name has no address.
    #[error("cannot find the address of {host}")]
    Dns {
        /// The name.
        host: String,
        /// The resolver's words.
        #[source]
        source: io::Error,
    },
    /// No TCP connection.
    #[error("cannot connect to {url}")]
    Connect {
        /// The hub.
        url: String,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The server did not prove to be the hub, or spoke no TLS.
    #[error("no trusted connection to {url}: {why}")]
    Tls {
        /// The hub.
        url: String,
        /// In words.
        why: String,
    },
    /// The time was up. Whether the hub acted on the request is unknown.
    #[error("{url} did not answer within {} s", after.as_secs())]
    Timeout {
        /// The hub.
        url: String,
        /// How long it had.
        after: Duration,
    },
    /// The connection broke. Whether the hub acted on the request is unknown.
    #[error("the connection to {url} broke")]
    Broken {
        /// The hub.
        url: String,
        /// What hyper saw.
        #[source]
        source: hyper::Error,
    },
    /// The answer is larger than [`MAX_ANSWER`] or [`MAX_EVENT`].
    #[error("the answer of {url} is too large")]
    TooLarge {
        /// The hub.
        url: String,
    },
    /// The hub answered, and said no.
    #[error("{message}")]
    Refused {
        /// The hub.
        url: String,
        /// HTTP status.
        code: StatusCode,
        /// The `reason` of the `Status` object.
        reason: String,
        /// For people, from the hub.
        message: String,
        /// Seconds.
        retry_after: Option<u64>,
    },
    /// The login could not be renewed for a reason that lies on this machine.
    #[error("the login could not be renewed")]
    Local {
        /// Why.
        source: anyhow::Error,
    },
    /// Something answered that is no hub.
    #[error("{url} answered with something that is not the hub's API")]
    NotAHub {
        /// The hub.
        url: String,
    },
}

impl ApiError {
    /// What to do next.
    pub fn advice(&self) -> Option<String> {
        let retry = |after: &Option<u64>| match after {
            Some(seconds) => format!("try again in {seconds} s; how the clusters are: moorline status"),
            None => "try again; how the clusters are: moorline status".into(),
        };
        Some(match self {
            Self::Dns { .. } => "check the name and this machine's DNS; more: moorline doctor".into(),
            Self::Connect { url, .. } | Self::Timeout { url, .. } if proxied(url) => format!(
                "HTTPS_PROXY is set, but moorline dials directly: is {url} reachable without it? more: moorline doctor"
            ),
            Self::Connect { .. } | Self::Timeout { .. } => {
                "is the hub running, and does a firewall stand in between? more: moorline doctor".into()
            }
            Self::Tls { url, .. } => format!("see what stands in between: moorline doctor --hub {url}"),
            Self::Broken { .. } | Self::TooLarge { .. } | Self::Local { .. } => return None,
            Self::NotAHub { url } => format!("check the address; is {url} a moorline hub?"),
            Self::Refused { code, reason, retry_after, url, .. } => match (code.as_u16(), reason.as_str()) {
                (401, _) => format!("log in: moorline login {url}"),
                (403, _) => "ask an administrator of the hub; who you are: moorline whoami".into(),
                (404, _) => "what there is: moorline get clusters (or users, tokens, grants)".into(),
                (409, "AlreadyExists") => "choose another name, or delete it first".into(),
                (409, _) => "it was changed meanwhile: run the command again".into(),
                (429 | 503, _) => retry(retry_after),
                (500.., _) => "the cause is in the hub's log".into(),
                _ => return None,
            },
        })
    }

    /// The hub does not let this user.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == StatusCode::FORBIDDEN)
    }

    /// The hub has no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == StatusCode::NOT_FOUND)
    }
}

/// The environment names a proxy for this URL.
pub fn proxied(url: &str) -> bool {
    let matcher = hyper_util::client::proxy::matcher::Matcher::from_env();
    url.parse().is_ok_and(|uri: http::Uri| matcher.intercept(&uri).is_some())
}

/// A connection to a hub.
pub type Socket = tokio_rustls::client::TlsStream<TcpStream>;

/// A whole answer.
pub struct Reply {
    /// Status of a success.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Speaks to one hub.
#[derive(Clone)]
pub struct Client {
    url: HubUrl,
    tls: Arc<rustls::ClientConfig>,
    token: Option<Secret>,
    /// What the token is renewed by, where it can be.
    login: Option<Arc<KnownHub>>,
    patience: Duration,
}

impl Client {
    /// A client for a known hub, with its token.
    pub fn new(hub: &KnownHub, patience: Duration) -> anyhow::Result<Self> {
        let url = hub
            .url
            .parse()
            .map_err(|e: InvalidAddress| usage(e.to_string(), "log in again: moorline login https://HUB"))?;
        let login = session::is_due(hub).then(|| Arc::new(hub.clone()));
        Ok(Self { url, tls: tls::trusting(&hub.ca)?, token: hub.token.clone(), login, patience })
    }

    /// A client without a token, with trust of any kind.
    pub fn anonymous(url: HubUrl, tls: Arc<rustls::ClientConfig>, patience: Duration) -> Self {
        Self { url, tls, token: None, login: None, patience }
    }

    /// The hub's address.
    pub fn url(&self) -> &HubUrl {
        &self.url
    }

    /// GET, JSON.
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.json(Method::GET, path, JSON, None).await
    }

    /// GET in the given form.
    pub async fn get_as(&self, path: &str, accept: &str) -> Result<Value, ApiError> {
        self.json(Method::GET, path, accept, None).await
    }

    /// POST, PUT with a JSON body, or DELETE.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ApiError> {
        self.json(method, path, JSON, body.map(|body| (JSON, body))).await
    }

    /// Creates an object.
    pub async fn create(&self, resource: Resource, object: &Value) -> Result<Value, ApiError> {
        self.call(Method::POST, &resource.collection(), Some(object)).await
    }

    /// Changes an object by JSON merge patch (RFC 7396).
    pub async fn merge(&self, resource: Resource, name: &str, patch: &Value) -> Result<Value, ApiError> {
        let body = Some(("application/merge-patch+json", patch));
        self.json(Method::PATCH, &resource.path(name), JSON, body).await
    }

    /// The answer as it came.
    pub async fn fetch(&self, path: &str, accept: &str) -> Result<Reply, ApiError> {
        let limit = self.patience;
        timeout(limit, self.whole(Method::GET, path, accept, None)).await.unwrap_or_else(|_| Err(self.late(limit)))
    }

    /// PUT of a file as it is.
    pub async fn upload(&self, path: &str, bytes: Bytes) -> Result<(), ApiError> {
        let limit = self.patience.max(UPLOAD);
        let body = Some(("application/octet-stream", bytes));
        let done = timeout(limit, self.whole(Method::PUT, path, JSON, body)).await;
        done.unwrap_or_else(|_| Err(self.late(limit))).map(drop)
    }

    /// A connection that is no HTTP any more, and what the hub sent on it already.
    pub async fn upgrade(&self, path: &str, protocol: &str) -> Result<(Socket, Bytes), ApiError> {
        let limit = self.patience;
        timeout(limit, self.upgraded(path, protocol, &[])).await.unwrap_or_else(|_| Err(self.late(limit)))
    }

    /// A connection that speaks WebSocket (RFC 6455) from here on, in this subprotocol.
    pub async fn websocket(&self, path: &str, subprotocol: &str) -> Result<(Socket, Bytes), ApiError> {
        let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, rand::random::<[u8; 16]>());
        let headers = [
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_KEY, key.as_str()),
            (header::SEC_WEBSOCKET_PROTOCOL, subprotocol),
        ];
        let limit = self.patience;
        let upgraded = timeout(limit, self.upgraded(path, "websocket", &headers)).await;
        upgraded.unwrap_or_else(|_| Err(self.late(limit)))
    }

    async fn upgraded(
        &self,
        path: &str,
        protocol: &str,
        headers: &[(header::HeaderName, &str)],
    ) -> Result<(Socket, Bytes), ApiError> {
        let token = self.token().await?;
        let io = self.connect().await?;
        let broken = |source| ApiError::Broken { url: self.url.to_string(), source };
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
        let _driver = AbortOnDropHandle::new(tokio::spawn(async move { connection.with_upgrades().await }));
        let request = self.request(Method::GET, path, JSON, token.as_ref());
        let mut request = request.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, protocol);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Full::new(Bytes::new())).map_err(|_| self.damaged())?;
        let mut response = sender.send_request(request).await.map_err(broken)?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = hyper::upgrade::on(&mut response).await.map_err(broken)?;
            let parts = upgraded.downcast::<TokioIo<Socket>>();
            let parts = parts.map_err(|_| ApiError::NotAHub { url: self.url.to_string() })?;
            return Ok((parts.io.into_inner(), parts.read_buf));
        }
        let (head, body) = response.into_parts();
        let body = self.collect(body).await?;
        Err(self.refused(head.status, &head.headers, &body))
    }

    /// The events of a watch, for as long as the hub sends them.
    pub async fn watch(&self, path: &str, accept: &str) -> Result<Events, ApiError> {
        let limit = self.patience;
        let opened = timeout(limit, self.open(Method::GET, path, accept, None)).await;
        let (driver, response) = opened.unwrap_or_else(|_| Err(self.late(limit)))?;
        let (url, body) = (self.url.to_string(), response.into_body());
        Ok(Events { body, buffer: Vec::new(), url, _driver: driver })
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&'static str, &Value)>,
    ) -> Result<Value, ApiError> {
        let limit = self.patience;
        let body = body.map(|(kind, body)| (kind, Bytes::from(body.to_string())));
        let reply = timeout(limit, self.whole(method, path, accept, body)).await;
        let reply = reply.unwrap_or_else(|_| Err(self.late(limit)))?;
        if reply.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&reply.body).map_err(|_| ApiError::NotAHub { url: self.url.to_string() })
    }

    async fn whole(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Reply, ApiError> {
        let (_driver, response) = self.open(method, path, accept, body).await?;
        let headers = response.headers().clone();
        let body = self.collect(response.into_body()).await?;
        Ok(Reply { headers, body })
    }

    async fn collect(&self, body: Incoming) -> Result<Bytes, ApiError> {
        let url = || self.url.to_string();
        match Limited::new(body, MAX_ANSWER).collect().await {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(e) if e.is::<LengthLimitError>() => Err(ApiError::TooLarge { url: url() }),
            Err(e) => match e.downcast::<hyper::Error>() {
                Ok(source) => Err(ApiError::Broken { url: url(), source: *source }),
                Err(_) => Err(ApiError::NotAHub { url: url() }),
            },
        }
    }

    /// One connection, one request, the head of its answer. Dropping the driver closes the connection.
    async fn open(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<(AbortOnDropHandle<()>, http::Response<Incoming>), ApiError> {
        let token = self.token().await?;
        let io = self.connect().await?;
        let url = || self.url.to_string();
        let broken = |source| ApiError::Broken { url: url(), source };
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            // Its failure is also the request's, which tells it.
            let _ = connection.await;
        }));
        let mut request = self.request(method, path, accept, token.as_ref());
        let mut bytes = Bytes::new();
        if let Some((kind, body)) = body {
            request = request.header(header::CONTENT_TYPE, kind);
            bytes = body;
        }
        let request = request.body(Full::new(bytes)).map_err(|_| self.damaged())?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status().is_success() {
            return Ok((driver, response));
        }
        let (head, body) = response.into_parts();
        let body = self.collect(body).await?;
        Err(self.refused(head.status, &head.headers, &body))
    }

    /// The token, renewed where it has to be.
    async fn token(&self) -> Result<Option<Secret>, ApiError> {
        match &self.login {
            Some(login) => Ok(Box::pin(session::fresh(login)).await?.token),
            None => Ok(self.token.clone()),
        }
    }

    fn request(&self, method: Method, path: &str, accept: &str, token: Option<&Secret>) -> http::request::Builder {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.url.authority())
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, concat!("moorline/", env!("CARGO_PKG_VERSION")));
        match token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {}", token.reveal())),
            None => request,
        }
    }

    /// Only a token with characters that no header can carry makes a request that cannot be sent.
    fn damaged(&self) -> ApiError {
        ApiError::Refused {
            url: self.url.to_string(),
            code: StatusCode::UNAUTHORIZED,
            reason: "Unauthorized".into(),
            message: "the stored token is damaged".into(),
            retry_after: None,
        }
    }

    async fn connect(&self) -> Result<Socket, ApiError> {
        let url = || self.url.to_string();
        let all = async {
            let host = self.url.host();
            let found = tokio::net::lookup_host((host, self.url.port())).await;
            let addresses: Vec<_> = found.map_err(|source| ApiError::Dns { host: host.into(), source })?.collect();
            let tcp = TcpStream::connect(&addresses[..]).await;
            let tcp = tcp.map_err(|source| ApiError::Connect { url: url(), source })?;
            // Small requests and answers: waiting to fill a packet only costs time.
            let _ = tcp.set_nodelay(true);
            let name =
                ServerName::try_from(host.to_owned()).map_err(|e| ApiError::Tls { url: url(), why: e.to_string() })?;
            let connector = tokio_rustls::TlsConnector::from(self.tls.clone());
            connector.connect(name, tcp).await.map_err(|e| ApiError::Tls { url: url(), why: tls_words(&e) })
        };
        timeout(CONNECT, all).await.unwrap_or_else(|_| Err(self.late(CONNECT)))
    }

    fn late(&self, after: Duration) -> ApiError {
        ApiError::Timeout { url: self.url.to_string(), after }
    }

    fn refused(&self, code: StatusCode, headers: &HeaderMap, body: &[u8]) -> ApiError {
        #[derive(Deserialize)]
        struct Status {
            #[serde(default)]
            reason: String,
            #[serde(default)]
            message: String,
        }
        let seconds = |v: &http::HeaderValue| v.to_str().ok().and_then(|s| s.parse().ok());
        let status: Option<Status> = serde_json::from_slice(body).ok();
        let Status { reason, message } = status.unwrap_or(Status { reason: String::new(), message: String::new() });
        let message = match (message.as_str(), reason.as_str()) {
            ("", _) => format!("the hub answered {code}"),
            (_, reason) if message.to_lowercase().contains(&reason.to_lowercase()) => message,
            (_, reason) => format!("{message} ({reason})"),
        };
        let retry_after = headers.get(header::RETRY_AFTER).and_then(seconds);
        ApiError::Refused { url: self.url.to_string(), code, reason, message, retry_after }
    }
}

/// The cause of a failed handshake, from inside tokio-rustls' I/O error.
pub fn tls_words(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(inner) => tls::words(inner),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "the connection was closed during the handshake".into(),
        None => error.to_string(),
    }
}

/// The events of a watch: one JSON object a line.
pub struct Events {
    body: Incoming,
    buffer: Vec<u8>,
    url: String,
    _driver: AbortOnDropHandle<()>,
}

impl Events {
    /// The next event; `None` when the hub ended the watch, which it does from time to time.
    pub async fn next(&mut self) -> Result<Option<Value>, ApiError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let event = serde_json::from_slice(&line);
                return event.map(Some).map_err(|_| ApiError::NotAHub { url: self.url.clone() });
            }
            if MAX_EVENT < self.buffer.len() {
                return Err(ApiError::TooLarge { url: self.url.clone() });
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(source)) => return Err(ApiError::Broken { url: self.url.clone(), source }),
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
            }
        }
    }
}

/// Reads a field of an answer as text; the answer is not a hub's if it lacks it.
pub fn field<'a>(answer: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    answer.pointer(pointer).and_then(Value::as_str).with_context(|| format!("the hub's answer has no {pointer}"))
}
