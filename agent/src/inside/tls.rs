//! TLS to backends: by the cluster's authority and those that the owner names.

use super::Failure;
use moorline_authz::edge::EdgePolicy;
use moorline_proto::inside::Destination;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use std::{io, sync::Arc};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// What connections to a place trust.
///
/// # Errors
/// There is nothing that it could be.
pub(super) fn config(
    cluster: &[CertificateDer<'static>],
    policy: &EdgePolicy,
    to: &Destination,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, Failure> {
    let failed = |why: String| Failure::Tls { to: to.to_string(), why };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(e.to_string()))?;
    let mut config = if policy.verifies_tls(to) {
        let mut roots = RootCertStore::empty();
        let named = CertificateDer::pem_slice_iter(policy.authorities().as_bytes()).filter_map(Result::ok);
        roots.add_parsable_certificates(cluster.iter().cloned().chain(named));
        if roots.is_empty() {
            return Err(failed("no authority is known that could vouch for it".to_owned()));
        }
        builder.with_root_certificates(roots).with_no_client_auth()
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))).with_no_client_auth()
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// The handshake, in the time that a connection may take.
pub(super) async fn handshake(
    tcp: TcpStream,
    host: &str,
    to: &Destination,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, Failure> {
    let failed = |why: String| Failure::Tls { to: to.to_string(), why };
    let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(e.to_string()))?;
    match timeout(crate::limits::INSIDE_CONNECT, TlsConnector::from(config).connect(name, tcp)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) => Err(failed(words(&e))),
        Err(_) => Err(Failure::Timeout { to: to.to_string() }),
    }
}

fn words(e: &io::Error) -> String {
    match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS".to_owned(),
        Some(inner) => inner.to_string(),
        None if e.kind() == io::ErrorKind::UnexpectedEof => "it closed the connection during the handshake".to_owned(),
        None => e.to_string(),
    }
}

/// For places whose owner says that the certificate is not looked at.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
