//! TLS configurations of both sides: mutual, TLS 1.3 only, by SPIFFE identity and never by DNS name.

mod verify;

use moorline_proto::id::{SpiffeId, TrustDomain};
use rustls::{
    RootCertStore,
    client::Resumption,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use verify::{AgentVerifier, Check, HubVerifier};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// The protocol name in the TLS handshake of every carrier.
pub const ALPN: &[u8] = b"moorline/1";

/// The protocol name of HTTP/1.1 by which agents ask the hub for what their clusters import, under the same mutual TLS.
/// Such a connection carries no session: the hub opens streams to agents, and no agent opens one.
pub const IMPORTS_ALPN: &[u8] = b"moorline-imports/1";

/// A certificate chain, leaf first, and the key of its leaf.
#[derive(Debug)]
pub struct Identity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}
impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// Whom to believe.
#[derive(Debug, Clone)]
pub struct Trust {
    /// The hub's authorities: more than one while they are rotated.
    pub roots: Vec<CertificateDer<'static>>,
    /// The trust domain that every identity must stand in.
    pub domain: TrustDomain,
}

impl Trust {
    fn store(&self) -> Result<RootCertStore, TlsError> {
        let mut store = RootCertStore::empty();
        for root in &self.roots {
            store.add(root.clone()).map_err(|error| TlsError::Roots(error.to_string()))?;
        }
        if store.is_empty() {
            return Err(TlsError::Roots("it is empty".into()));
        }
        Ok(store)
    }
}

/// Why a TLS configuration could not be made, or a certificate not be read.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No usable authority.
    #[error("no usable authority in the trust bundle: {0}")]
    Roots(String),
    /// Chain and key do not fit, or cannot be used.
    #[error("own certificate and key cannot be used")]
    Identity(#[source] rustls::Error),
    /// The TLS library refused the settings.
    #[error("TLS settings refused")]
    Settings(#[source] rustls::Error),
    /// A certificate that cannot be read.
    #[error("certificate cannot be read: {0}")]
    BadCertificate(&'static str),
    /// A certificate without exactly one valid SPIFFE ID.
    #[error("certificate does not carry one valid SPIFFE ID: {0}")]
    NoIdentity(String),
}

/// The one provider of cryptography, always passed by hand: a dependency that switches on another one changes nothing.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The hub's side: ALPN [`ALPN`], a client certificate of `trust` required, agent roles only.
///
/// # Errors
/// No usable root, or an identity that cannot be used.
pub fn server_config(identity: &Identity, trust: &Trust) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let provider = provider();
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(trust.store()?), Arc::clone(&provider))
        .build()
        .map_err(|error| TlsError::Roots(error.to_string()))?;
    let verifier = AgentVerifier { chain, domain: trust.domain.clone() };
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Settings)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(TlsError::Identity)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the check of the client's certificate.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The agent's side: ALPN [`ALPN`], own certificate shown, a hub of `trust` required.
///
/// # Errors
/// No usable root, or an identity that cannot be used.
pub fn client_config(identity: &Identity, trust: &Trust) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    let provider = provider();
    let verifier =
        HubVerifier { check: Check::Trusted(trust.store()?, trust.domain.clone()), provider: Arc::clone(&provider) };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Settings)?
        .dangerous() // "dangerous" is any verifier of one's own; `verify` says what this one checks
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(TlsError::Identity)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// For the very first contact, when only the pin of a join token or kubeconfig is known: the served chain must hold
/// an authority whose key has this SHA-256, and that authority must have signed a leaf with a hub's identity.
///
/// # Errors
/// The TLS library refused the settings.
pub fn pinned_client_config(pin: [u8; 32], alpn: &[&[u8]]) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    let provider = provider();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Settings)?
        .dangerous() // see above
        .with_custom_certificate_verifier(Arc::new(HubVerifier { check: Check::Pinned(pin), provider }))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// For the TLS around a WebSocket, which may end at any proxy on the way: every certificate is taken, for nothing in it
/// is secret or believed. Agent and hub recognise each other in the TLS within.
pub(crate) fn outer_client_config() -> Result<Arc<rustls::ClientConfig>, TlsError> {
    let provider = provider();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Settings)?
        .dangerous() // see above
        .with_custom_certificate_verifier(Arc::new(HubVerifier { check: Check::Nothing, provider }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
    match X509Certificate::from_der(cert) {
        Ok(([], cert)) => Ok(cert),
        Ok(_) => Err(TlsError::BadCertificate("bytes after its end")),
        Err(_) => Err(TlsError::BadCertificate("not X.509")),
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo (DER): the pin of a key, whoever signs it.
///
/// # Errors
/// The certificate cannot be read.
pub fn spki_sha256(cert: &CertificateDer<'_>) -> Result<[u8; 32], TlsError> {
    Ok(Sha256::digest(parse(cert)?.public_key().raw).into())
}

/// The one SPIFFE ID of a certificate. Proves nothing: check the chain first.
///
/// # Errors
/// The certificate cannot be read, or does not hold exactly one URI name that is a SPIFFE ID of ours.
pub fn peer_id(cert: &CertificateDer<'_>) -> Result<SpiffeId, TlsError> {
    let cert = parse(cert)?;
    let mut uris = Vec::new();
    let mut extensions = 0;
    for extension in cert.extensions() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
            extensions += 1;
            uris.extend(names.general_names.iter().filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            }));
        }
    }
    match uris.as_slice() {
        // X.509-SVID §2: exactly one URI name.
        [uri] if extensions == 1 => uri.parse().map_err(|error| TlsError::NoIdentity(format!("{uri}: {error}"))),
        uris => Err(TlsError::NoIdentity(format!("it has {} URI names", uris.len()))),
    }
}

/// Whether a certificate may sign others.
pub(crate) fn is_authority(cert: &CertificateDer<'_>) -> bool {
    parse(cert).is_ok_and(|cert| cert.is_ca())
}

#[cfg(test)]
pub(crate) mod tests;
