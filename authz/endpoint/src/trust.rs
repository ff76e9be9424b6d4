//! Whose bundles are believed: those signed by the hub's authority.

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, pem::PemObject};
use webpki::{EndEntityCert, aws_lc_rs as algorithms};

/// Every way in which an authority may sign.
const WAYS: [&dyn SignatureVerificationAlgorithm; 4] = [
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
];

/// The authorities of the cluster's hub.
#[derive(Debug, Clone)]
pub struct Anchors(Vec<CertificateDer<'static>>);

/// There is none, or one of them is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no PEM file of authorities, or one of them is broken")]
pub struct BadAnchors;

impl Anchors {
    /// Reads certificates. Half of them are never trusted: one that is broken makes all of them unusable.
    ///
    /// # Errors
    /// See [`BadAnchors`].
    pub fn from_pem(pem: &str) -> Result<Self, BadAnchors> {
        let all = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        Self::new(all.map_err(|_| BadAnchors)?)
    }

    /// These certificates.
    ///
    /// # Errors
    /// See [`BadAnchors`].
    pub fn new(all: Vec<CertificateDer<'static>>) -> Result<Self, BadAnchors> {
        if all.is_empty() || all.iter().any(|der| EndEntityCert::try_from(der).is_err()) {
            return Err(BadAnchors);
        }
        Ok(Self(all))
    }

    /// Whether one of them signed `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0
            .iter()
            .filter_map(|der| EndEntityCert::try_from(der).ok())
            .any(|authority| WAYS.iter().any(|way| authority.verify_signature(*way, message, signature).is_ok()))
    }
}
