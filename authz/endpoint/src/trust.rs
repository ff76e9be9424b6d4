//! Whose bundles are believed: those signed by the hub's authority.

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, pem::PemObject};
use std::{
    fs,
    io::{self, Read},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};
use webpki::{EndEntityCert, aws_lc_rs as algorithms};

/// Every way in which an authority may sign.
const WAYS: [&dyn SignatureVerificationAlgorithm; 4] = [
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
];

/// Largest file of authorities that is read, in bytes.
const FILE: u64 = 256 << 10;

/// The authorities of the cluster's hub. Clones share them: they change while the hub replaces its own.
#[derive(Debug, Clone)]
pub struct Anchors {
    all: Arc<RwLock<Vec<CertificateDer<'static>>>>,
    /// Where somebody else says which they are.
    file: Option<Arc<Path>>,
}

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
        Self::new(certificates(pem.as_bytes())?)
    }

    /// These certificates.
    ///
    /// # Errors
    /// See [`BadAnchors`].
    pub fn new(all: Vec<CertificateDer<'static>>) -> Result<Self, BadAnchors> {
        Ok(Self { all: Arc::new(RwLock::new(checked(all)?)), file: None })
    }

    /// Those of a file, as it is whenever a signature is looked at: whoever was dropped there is believed no more.
    ///
    /// # Errors
    /// The file cannot be read, or see [`BadAnchors`].
    pub fn follow(path: &Path) -> io::Result<Self> {
        let all = read(path)?;
        Ok(Self { all: Arc::new(RwLock::new(all)), file: Some(path.into()) })
    }

    /// These from now on, for every clone.
    ///
    /// # Errors
    /// See [`BadAnchors`]; then it is those of before.
    pub fn replace(&self, all: Vec<CertificateDer<'static>>) -> Result<(), BadAnchors> {
        *self.all.write().unwrap_or_else(PoisonError::into_inner) = checked(all)?;
        Ok(())
    }

    /// Those that are believed now.
    pub fn all(&self) -> Vec<CertificateDer<'static>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether one of them signed `message`. Reads the file that is followed; one that cannot be read, or is broken, changes
    /// nothing.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let now = self.file.as_deref().and_then(|path| read(path).ok());
        if let Some(now) = &now {
            self.all.write().unwrap_or_else(PoisonError::into_inner).clone_from(now);
        }
        now.unwrap_or_else(|| self.all())
            .iter()
            .filter_map(|der| EndEntityCert::try_from(der).ok())
            .any(|authority| WAYS.iter().any(|way| authority.verify_signature(*way, message, signature).is_ok()))
    }
}

fn checked(all: Vec<CertificateDer<'static>>) -> Result<Vec<CertificateDer<'static>>, BadAnchors> {
    if all.is_empty() || all.iter().any(|der| EndEntityCert::try_from(der).is_err()) {
        return Err(BadAnchors);
    }
    Ok(all)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BadAnchors> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|_| BadAnchors)
}

fn read(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let mut pem = Vec::new();
    fs::File::open(path)?.take(FILE).read_to_end(&mut pem)?;
    certificates(&pem).and_then(checked).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}
