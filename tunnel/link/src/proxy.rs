//! An HTTP proxy between an agent and its hub: which one, and how to get through it.

use crate::HubAddress;
use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use std::{fmt, io};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of a proxy's answer.
const MAX_ANSWER: usize = 16 << 10;

/// A proxy that speaks CONNECT (RFC 9110 §9.3.6). `Debug` and `Display` do not show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpProxy {
    host: String,
    port: u16,
    authorization: Option<HeaderValue>,
}

/// Why a proxy that was named cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the proxy for {hub} cannot be used: {why}")]
pub struct BadProxy {
    hub: HubAddress,
    why: String,
}

impl HttpProxy {
    /// The proxy that the environment names for a hub: `HTTPS_PROXY` or `ALL_PROXY`, unless `NO_PROXY` exempts it; each
    /// also in small letters, which go first.
    ///
    /// # Errors
    /// What is named is no HTTP proxy.
    pub fn from_env(hub: &HubAddress) -> Result<Option<Self>, BadProxy> {
        Self::pick(&Matcher::from_env(), hub)
    }

    /// The same from values: a proxy's address, `http://[user:password@]host:port`, and the list of hosts to reach
    /// without it.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub fn from_settings(https_proxy: &str, no_proxy: &str, hub: &HubAddress) -> Result<Option<Self>, BadProxy> {
        Self::pick(&Matcher::builder().https(https_proxy).no(no_proxy).build(), hub)
    }

    fn pick(matcher: &Matcher, hub: &HubAddress) -> Result<Option<Self>, BadProxy> {
        let bad = |why: String| BadProxy { hub: hub.clone(), why };
        let target: Uri = format!("https://{hub}").parse().map_err(|error| bad(format!("{error}")))?;
        let Some(found) = matcher.intercept(&target) else { return Ok(None) };
        let uri = found.uri();
        if uri.scheme_str() != Some("http") {
            let scheme = uri.scheme_str().unwrap_or_default();
            return Err(bad(format!("its scheme is {scheme}, and only http is possible")));
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let (host, port) = (host.to_owned(), uri.port_u16().unwrap_or(80));
        Ok(Some(Self { host, port, authorization: found.basic_auth().cloned() }))
    }

    /// Its host name or IP address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Asks the proxy on a fresh connection to it for a tunnel to `hub`.
    ///
    /// # Errors
    /// In words: what the proxy answered, or how the connection ended.
    ///
    /// # Cancel safety
    /// None: the connection is of no more use.
    pub async fn tunnel(&self, io: &mut (impl AsyncRead + AsyncWrite + Unpin), hub: &HubAddress) -> Result<(), String> {
        let mut request = format!("CONNECT {hub} HTTP/1.1\r\nHost: {hub}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(authorization.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        let lost = |error: io::Error| format!("the connection to the proxy broke: {error}");
        io.write_all(&request).await.map_err(lost)?;
        io.flush().await.map_err(lost)?;
        let mut answer = Vec::new();
        let end = loop {
            if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if MAX_ANSWER <= answer.len() {
                return Err("the proxy's answer is too long".into());
            }
            if io.read_buf(&mut answer).await.map_err(lost)? == 0 {
                return Err("the proxy hung up instead of an answer".into());
            }
        };
        let line = answer.split(|&byte| byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        match line.split(' ').nth(1) {
            Some(code) if line.starts_with("HTTP/1.") && code.len() == 3 && code.starts_with('2') => {
                // In TLS the client is the first to speak.
                if end == answer.len() { Ok(()) } else { Err("the proxy put bytes in front of the hub's".into()) }
            }
            Some("407") if self.authorization.is_none() => {
                Err("the proxy asks for a user name and password: https_proxy=http://USER:PASSWORD@HOST:PORT".into())
            }
            Some("407") => Err("the proxy does not accept the user name and password".into()),
            _ => Err(format!("the proxy answered {line:?}")),
        }
    }
}

impl fmt::Display for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", HubAddress { host: self.host.clone(), port: self.port })
    }
}
impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpProxy({self}, {})", if self.authorization.is_some() { "***" } else { "no password" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(text: &str) -> HubAddress {
        text.parse().unwrap()
    }

    #[test]
    fn the_proxy_is_that_of_the_settings() {
        let some = |proxy, no, at: &str| HttpProxy::from_settings(proxy, no, &hub(at)).unwrap();
        let found = some("http://me:s%40fe@proxy.example:3128", "", "hub.example:8443").unwrap();
        assert_eq!((found.host(), found.port()), ("proxy.example", 3128));
        assert_eq!(found.authorization.as_ref().unwrap(), "Basic bWU6c0BmZQ==");
        let shown = format!("{found} {found:?}");
        assert!(!shown.contains("bWU6") && !shown.contains("fe"), "{shown}");
        assert_eq!(some("proxy.example:3128", "", "hub.example").unwrap().to_string(), "proxy.example:3128");
        assert_eq!(some("http://[fd00::1]:3128", "", "hub.example").unwrap().host(), "fd00::1");
        for exempt in ["hub.example", ".example", "example", "*", "other, hub.example"] {
            assert_eq!(some("http://proxy:1", exempt, "hub.example"), None, "{exempt}");
        }
        assert_eq!(some("http://proxy:1", "10.0.0.0/8", "10.1.2.3"), None);
        assert!(some("http://proxy:1", "10.0.0.0/8,ub.example", "hub.example").is_some());
        assert_eq!(some("", "", "hub.example"), None);
        assert!(HttpProxy::from_settings("socks5://proxy:1", "", &hub("hub.example")).is_err());
    }

    /// What a proxy is asked, and what comes of this answer.
    async fn ask(proxy: &str, answer: &str) -> (String, Result<(), String>) {
        let proxy = HttpProxy::from_settings(proxy, "", &hub("hub.example")).unwrap().unwrap();
        let (mut near, mut far) = tokio::io::duplex(64 << 10);
        let serve = async {
            let mut asked = vec![0; 1024];
            let n = far.read(&mut asked).await.unwrap();
            far.write_all(answer.as_bytes()).await.unwrap();
            drop(far);
            String::from_utf8(asked[..n].to_vec()).unwrap()
        };
        let at = hub("hub.example:8443");
        tokio::join!(serve, proxy.tunnel(&mut near, &at))
    }

    #[tokio::test]
    async fn a_tunnel_is_asked_for_and_a_refusal_told() {
        let (asked, answer) = ask("http://a:b@p:1", "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n").await;
        assert_eq!(
            asked,
            "CONNECT hub.example:8443 HTTP/1.1\r\nHost: hub.example:8443\r\nProxy-Authorization: Basic YTpi\r\n\r\n"
        );
        assert_eq!(answer, Ok(()));
        for (proxy, answer, words) in [
            ("http://p:1", "HTTP/1.1 407 No\r\n\r\n", "asks for a user name"),
            ("http://a:b@p:1", "HTTP/1.1 407 No\r\n\r\n", "does not accept"),
            ("http://p:1", "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "403 Forbidden"),
            ("http://p:1", "HTTP/1.1 200 OK\r\n\r\nmore", "in front of the hub's"),
            ("http://p:1", "HTTP/1.1 200 OK\r\n", "hung up"),
            ("http://p:1", "SSH-2.0-x\r\n\r\n", "SSH-2.0-x"),
            ("http://p:1", "HTTP/2 20\r\n\r\n", "HTTP/2"),
        ] {
            let error = ask(proxy, answer).await.1.unwrap_err();
            assert!(error.contains(words), "{answer}: {error}");
        }
        let long = ask("http://p:1", &format!("HTTP/1.1 200 {}", "x".repeat(40_000))).await.1.unwrap_err();
        assert!(long.contains("too long"), "{long}");
    }
}
