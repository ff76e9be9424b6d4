//! Where the API server is, and what it is shown: read from a service account or a kubeconfig, again and again.

use crate::{UpstreamConfig, state::read_text};
use http::{HeaderValue, uri::Authority};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use secrecy::ExposeSecret;
use std::{env, path::Path, sync::Arc};

/// Why the API server's address or credential cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot tell how to reach the API server: {0}")]
pub struct EndpointError(String);

pub(super) fn error(text: impl Into<String>) -> EndpointError {
    EndpointError(text.into())
}

/// What a connection is made from. Two that are equal need no new connection.
#[derive(Clone, PartialEq, Eq)]
struct Parts {
    host: String,
    port: u16,
    server_name: String,
    prefix: String,
    roots: Vec<CertificateDer<'static>>,
    /// PEM.
    client: Option<(String, String)>,
    token: Option<String>,
}

/// The API server, ready to be dialled.
#[derive(Clone)]
pub(super) struct Endpoint {
    parts: Parts,
    /// Of the URI and the Host header.
    pub authority: Authority,
    /// To be verified.
    pub server_name: ServerName<'static>,
    /// Offers HTTP/2 and HTTP/1.1.
    pub pooled: Arc<ClientConfig>,
    /// Offers HTTP/1.1 alone: for upgrades.
    pub plain: Arc<ClientConfig>,
    /// The `Authorization` of each request.
    pub credential: Option<HeaderValue>,
}

impl Endpoint {
    /// Host, without brackets, and port.
    pub fn peer(&self) -> (&str, u16) {
        (&self.parts.host, self.parts.port)
    }

    /// The authorities that vouch for it.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.parts.roots
    }

    /// Reads everything anew.
    pub async fn read(config: &UpstreamConfig) -> Result<Self, EndpointError> {
        let parts = match config {
            UpstreamConfig::InCluster { dir } => in_cluster(dir)?,
            UpstreamConfig::Kubeconfig { path, context } => kubeconfig(path, context.clone()).await?,
            UpstreamConfig::Given(given) => {
                let document = given.document()?;
                of_document(document, given.context.clone(), &"the given kubeconfig").await?
            }
            UpstreamConfig::At { server, authority } => at(server, authority)?,
        };
        Self::build(parts)
    }

    fn build(parts: Parts) -> Result<Self, EndpointError> {
        let mut roots = RootCertStore::empty();
        for root in &parts.roots {
            roots.add(root.clone()).map_err(|e| error(format!("an authority cannot be used: {e}")))?;
        }
        if roots.is_empty() {
            return Err(error("no certificate authority is named, and the system's are never used"));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| error(e.to_string()))?
            .with_root_certificates(roots);
        let mut plain = match &parts.client {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|e| error(format!("client certificate: {e}")))?;
                let key =
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| error(format!("client key: {e}")))?;
                builder.with_client_auth_cert(chain, key).map_err(|e| error(format!("client certificate: {e}")))?
            }
        };
        let mut pooled = plain.clone();
        plain.alpn_protocols = vec![b"http/1.1".to_vec()];
        pooled.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let shown = if parts.host.contains(':') {
            format!("[{}]:{}", parts.host, parts.port)
        } else {
            format!("{}:{}", parts.host, parts.port)
        };
        let credential = match &parts.token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                    .map_err(|_| error("the token holds control characters"))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            authority: shown.parse().map_err(|_| error(format!("{shown} is not an address")))?,
            server_name: ServerName::try_from(parts.server_name.clone())
                .map_err(|_| error("the server's name is not a DNS name or IP address"))?,
            pooled: Arc::new(pooled),
            plain: Arc::new(plain),
            credential,
            parts,
        })
    }

    /// What is dialled.
    pub fn address(&self) -> (&str, u16) {
        (&self.parts.host, self.parts.port)
    }

    /// What goes before each path.
    pub fn prefix(&self) -> &str {
        &self.parts.prefix
    }

    /// Whether nothing changed at all.
    pub fn same(&self, other: &Self) -> bool {
        self.parts == other.parts
    }

    /// Whether connections to one serve for the other: only the token may differ.
    pub fn same_peer(&self, other: &Self) -> bool {
        Parts { token: None, ..self.parts.clone() } == Parts { token: None, ..other.parts.clone() }
    }
}

fn file(path: &Path) -> Result<String, EndpointError> {
    read_text(path).map_err(|e| error(format!("{}: {e}", path.display())))
}

fn in_cluster(dir: &Path) -> Result<Parts, EndpointError> {
    let variable =
        |name: &str| env::var(name).map_err(|_| error(format!("{name} is not set: this is no pod; name a kubeconfig")));
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    let port =
        variable("KUBERNETES_SERVICE_PORT")?.parse().map_err(|_| error("KUBERNETES_SERVICE_PORT is not a port"))?;
    Ok(Parts {
        server_name: host.clone(),
        host,
        port,
        prefix: String::new(),
        roots: authorities(file(&dir.join("ca.crt"))?.as_bytes())?,
        client: None,
        token: Some(file(&dir.join("token"))?.trim().to_owned()).filter(|token| !token.is_empty()),
    })
}

async fn kubeconfig(path: &Path, context: Option<String>) -> Result<Parts, EndpointError> {
    let document = Kubeconfig::read_from(path).map_err(|e| error(format!("{}: {}", path.display(), chain(&e))))?;
    of_document(document, context, &path.display()).await
}

/// `of`: what it is called in errors.
async fn of_document(
    document: Kubeconfig,
    context: Option<String>,
    of: &(dyn std::fmt::Display + Sync),
) -> Result<Parts, EndpointError> {
    let bad = |e: kube::config::KubeconfigError| error(format!("{of}: {}", chain(&e)));
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let config = kube::Config::from_custom_kubeconfig(document, &options).await.map_err(bad)?;
    let auth = &config.auth_info;
    let unsupported = [
        (auth.exec.is_some(), "an exec plugin"),
        (auth.auth_provider.is_some(), "an auth-provider plugin"),
        (auth.username.is_some() || auth.password.is_some(), "a password"),
        (auth.impersonate.is_some() || auth.impersonate_groups.is_some(), "impersonation"),
        (config.accept_invalid_certs, "insecure-skip-tls-verify"),
        (config.proxy_url.is_some(), "proxy-url"),
        (config.cluster_url.scheme_str() != Some("https"), "a server that is not https"),
    ];
    if let Some((_, what)) = unsupported.iter().find(|(there, _)| *there) {
        return Err(error(format!("{of}: {what} is not supported; use a token or a client certificate")));
    }
    let text = |inline: Option<&str>, from: Option<&String>, what: &str| -> Result<Option<String>, EndpointError> {
        use base64::Engine;
        match (inline, from) {
            (Some(inline), _) => base64::engine::general_purpose::STANDARD
                .decode(inline.trim())
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .map(Some)
                .ok_or_else(|| error(format!("{of}: {what} is not base64 of PEM"))),
            (None, Some(from)) => file(Path::new(from)).map(Some),
            (None, None) => Ok(None),
        }
    };
    let certificate =
        text(auth.client_certificate_data.as_deref(), auth.client_certificate.as_ref(), "client-certificate-data")?;
    let key = text(
        auth.client_key_data.as_ref().map(|key| key.expose_secret()),
        auth.client_key.as_ref(),
        "client-key-data",
    )?;
    let client = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => {
            return Err(error(format!("{of}: a client certificate needs its key and a key its certificate")));
        }
    };
    let token = match (&auth.token, &auth.token_file) {
        (Some(token), _) => Some(token.expose_secret().trim().to_owned()),
        (None, Some(from)) => Some(file(Path::new(from))?.trim().to_owned()),
        (None, None) => None,
    };
    let url = &config.cluster_url;
    let host = url.host().ok_or_else(|| error(format!("{of}: the server has no host")))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Parts {
        server_name: config.tls_server_name.clone().unwrap_or_else(|| host.clone()),
        host,
        port: url.port_u16().unwrap_or(443),
        prefix: url.path().trim_end_matches('/').to_owned(),
        roots: config.root_cert.unwrap_or_default().into_iter().map(CertificateDer::from).collect(),
        client,
        token,
    })
}

fn at(server: &str, authority: &str) -> Result<Parts, EndpointError> {
    let url: http::Uri = server.parse().map_err(|_| error(format!("{server} is not an address")))?;
    let host = url.host().filter(|_| url.scheme_str() == Some("https"));
    let host = host.ok_or_else(|| error(format!("{server} is not https://HOST")))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Parts {
        server_name: host.clone(),
        host,
        port: url.port_u16().unwrap_or(443),
        prefix: url.path().trim_end_matches('/').to_owned(),
        roots: authorities(authority.as_bytes())?,
        client: None,
        token: None,
    })
}

fn authorities(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, EndpointError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| error(format!("certificate authority: {e}")))
}

/// An error with its sources, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
