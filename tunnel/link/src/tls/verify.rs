//! Who may be on the other end. Each verifier checks the chain with webpki, then the identity in the leaf.

use super::{is_authority, peer_id, spki_sha256};
use moorline_proto::id::{Role, SpiffeId, TrustDomain};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;

/// A chain that is good and a leaf that is somebody else's.
#[derive(Debug, thiserror::Error)]
#[error("wrong identity: {0}")]
struct WrongIdentity(String);

fn wrong(why: impl Into<String>) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(WrongIdentity(why.into())))))
}

fn identity(leaf: &CertificateDer<'_>) -> Result<SpiffeId, Error> {
    peer_id(leaf).map_err(|error| wrong(error.to_string()))
}

/// The hub's check of an agent: chain, time and purpose by webpki; trust domain and role here.
#[derive(Debug)]
pub(super) struct AgentVerifier {
    pub chain: Arc<dyn ClientCertVerifier>,
    pub domain: TrustDomain,
}

impl ClientCertVerifier for AgentVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }
    fn client_auth_mandatory(&self) -> bool {
        true
    }
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        let id = identity(leaf)?;
        match id.role {
            _ if id.trust_domain != self.domain => Err(wrong(format!("{id} is of another trust domain"))),
            Role::ClusterAgent(..) | Role::NodeAgent(..) => Ok(verified),
            Role::Hub(_) => Err(wrong(format!("{id} is no agent"))),
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The agent's check of a hub. The DNS name that was dialled plays no part: whoever can forge a name in public may
/// not pass for the hub.
#[derive(Debug)]
pub(super) struct HubVerifier {
    pub check: Check,
    pub provider: Arc<CryptoProvider>,
}

/// Who is taken for the hub.
#[derive(Debug)]
pub(super) enum Check {
    /// A hub of this trust domain, vouched for by one of these authorities.
    Trusted(RootCertStore, TrustDomain),
    /// A hub of the authority whose key has this SHA-256, and that it shows: nothing else is known of it.
    Pinned([u8; 32]),
    /// Whoever is there: for TLS that protects nothing.
    Nothing,
}

impl HubVerifier {
    fn chain(
        &self,
        roots: &RootCertStore,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<SpiffeId, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        let id = identity(leaf)?;
        match id.role {
            Role::Hub(_) => Ok(id),
            _ => Err(wrong(format!("{id} is no hub"))),
        }
    }
}

impl ServerCertVerifier for HubVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.check {
            Check::Trusted(roots, domain) => {
                let id = self.chain(roots, leaf, intermediates, now)?;
                if id.trust_domain != *domain {
                    return Err(wrong(format!("{id} is of another trust domain")));
                }
            }
            Check::Pinned(pin) => {
                let mut roots = RootCertStore::empty();
                for cert in intermediates {
                    if is_authority(cert) && spki_sha256(cert).is_ok_and(|hash| hash == *pin) {
                        roots.add(cert.clone().into_owned())?;
                    }
                }
                if roots.is_empty() {
                    return Err(wrong("the hub did not show the authority that was pinned"));
                }
                self.chain(&roots, leaf, intermediates, now)?;
            }
            Check::Nothing => {}
        }
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
