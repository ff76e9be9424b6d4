//! One request at a time to a provider: bounded in time and size, no redirects, TLS unless it stays on this machine.

use crate::{
    LoginError, limits,
    trust::{TrustError, tls},
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::de::DeserializeOwned;
use std::{path::Path, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use url::{Host, Url};

pub(crate) struct HttpClient {
    tls: Option<Arc<ClientConfig>>,
}

pub(crate) struct Answer {
    pub code: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Whether an address stays on this machine: the one case where no TLS is needed.
pub(crate) fn stays_here(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// An address of a provider: https, or on this machine.
pub(crate) fn checked(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("{text:?} is no address: {e}"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if stays_here(&url) => Ok(url),
        _ => Err(format!("{text:?}: secrets go there, so it must be https")),
    }
}

impl HttpClient {
    /// `plain`: every address that will be asked stays on this machine.
    pub fn new(ca_file: Option<&Path>, plain: bool) -> Result<Self, TrustError> {
        Ok(Self { tls: if plain { None } else { Some(tls(ca_file)?) } })
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, LoginError> {
        let url = checked(&request.uri().to_string()).map_err(LoginError::unavailable)?;
        timeout(limits::LOGIN, self.exchange(&url, request))
            .await
            .map_err(|_| LoginError::unavailable(format!("{url} took too long")))?
    }

    async fn exchange(&self, url: &Url, request: Request<Full<Bytes>>) -> Result<Answer, LoginError> {
        let lost =
            |e: &dyn std::fmt::Display| LoginError::unavailable(format!("{}: {e}", url.origin().ascii_serialization()));
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(443);
        let bare = host.trim_matches(['[', ']']);
        let tcp = timeout(limits::CONNECT, TcpStream::connect((bare, port))).await;
        let tcp = tcp.map_err(|_| lost(&"no connection"))?.map_err(|e| lost(&e))?;
        if url.scheme() == "http" {
            return over(tcp, url, request).await.map_err(|e| lost(&e));
        }
        let Some(tls) = &self.tls else { return Err(lost(&"no TLS was set up for it")) };
        let name = ServerName::try_from(bare.to_owned()).map_err(|e| lost(&e))?;
        let stream = timeout(limits::CONNECT, TlsConnector::from(Arc::clone(tls)).connect(name, tcp)).await;
        let stream = stream.map_err(|_| lost(&"the TLS handshake took too long"))?.map_err(|e| lost(&e))?;
        over(stream, url, request).await.map_err(|e| lost(&e))
    }

    /// JSON from there.
    pub async fn get<T: DeserializeOwned>(
        &self,
        url: &Url,
        bearer: Option<&str>,
    ) -> Result<(T, HeaderMap), LoginError> {
        let mut request = Request::get(url.as_str()).header(header::ACCEPT, "application/json");
        if let Some(token) = bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::default()).map_err(LoginError::unavailable)?;
        let answer = self.send(request).await?;
        match answer.code {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if bearer.is_some() => {
                return Err(LoginError::wrong(format!("{url} does not take the token")));
            }
            code => return Err(LoginError::unavailable(format!("{url} answered {code}"))),
        }
        let value = serde_json::from_slice(&answer.body)
            .map_err(|e| LoginError::unavailable(format!("{url} answered what is not understood: {e}")))?;
        Ok((value, answer.headers))
    }

    /// A form posted there; the answer whatever its code.
    pub async fn post(
        &self,
        url: &Url,
        form: &[(&str, &str)],
        basic: Option<(&str, &str)>,
    ) -> Result<(StatusCode, serde_json::Value), LoginError> {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(url.as_str())
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some((user, secret)) = basic {
            use base64::{Engine, engine::general_purpose::STANDARD};
            // RFC 6749 §2.3.1: both are form-encoded first.
            let encode = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            let pair = STANDARD.encode(format!("{}:{}", encode(user), encode(secret)));
            request = request.header(header::AUTHORIZATION, format!("Basic {pair}"));
        }
        let request = request.body(Full::from(body)).map_err(LoginError::unavailable)?;
        let answer = self.send(request).await?;
        let value = serde_json::from_slice(&answer.body).map_err(|_| {
            LoginError::unavailable(format!("{url} answered {} with something that is not JSON", answer.code))
        })?;
        Ok((answer.code, value))
    }
}

type Trouble = Box<dyn std::error::Error + Send + Sync>;

async fn over<S>(stream: S, url: &Url, mut request: Request<Full<Bytes>>) -> Result<Answer, Trouble>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
    *request.uri_mut() = target.parse()?;
    let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let headers = request.headers_mut();
    headers.insert(header::HOST, authority.parse()?);
    headers.insert(header::USER_AGENT, http::HeaderValue::from_static("moorline"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let answer = sender.send_request(request).await?;
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, limits::ANSWER).collect().await?.to_bytes();
    Ok(Answer { code: parts.status, headers: parts.headers, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_leave_this_machine_by_https_alone() {
        for good in ["https://a.example", "http://127.0.0.1:8", "http://[::1]/x", "http://localhost:1"] {
            assert!(checked(good).is_ok(), "{good}");
        }
        for bad in
            ["http://a.example", "ftp://127.0.0.1", "http://127.0.0.1.example", "a.example", "http://localhost.example"]
        {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }
}
