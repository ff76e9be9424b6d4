//! A certificate that was given to the hub, for names that its own authority's is not good for: browsers know others.
//!
//! Its files are looked at again and again, and a new one is in use from the next handshake on. One that cannot be used
//! leaves the last good one in place.

use crate::{config::GivenCertificate, metrics::Metrics};
use arc_swap::ArcSwap;
use rustls::{
    client::verify_server_name,
    crypto::CryptoProvider,
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Largest file that is read.
const LARGEST: u64 = 1 << 20;

/// The certificate as it is now.
#[derive(Debug)]
pub(crate) struct Given {
    files: GivenCertificate,
    current: ArcSwap<CertifiedKey>,
}

impl Given {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn open(files: GivenCertificate) -> Result<Arc<Self>, String> {
        let current = read(&files)?;
        Ok(Arc::new(Self { files, current: ArcSwap::from_pointee(current) }))
    }

    /// Whether it is good for this name, as a client would judge (RFC 9525).
    fn covers(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let current = self.current.load_full();
        let leaf = current.cert.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok())?;
        let name = ServerName::try_from(name).ok()?;
        verify_server_name(&leaf, &name).is_ok().then(|| Arc::clone(&current))
    }

    /// Looks at the files until `stop`.
    pub async fn follow(self: Arc<Self>, metrics: Metrics, stop: CancellationToken) {
        metrics.certificate_current.set(1);
        let mut told = None;
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let files = self.files.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || read(&files)).await else { continue };
            match read {
                Ok(new) => {
                    (told, _) = (None, metrics.certificate_current.set(1));
                    if new.cert != self.current.load().cert {
                        self.current.store(Arc::new(new));
                        tracing::info!(file = %self.files.chain.display(), "a new certificate is in use");
                    }
                }
                Err(why) => {
                    metrics.certificate_current.set(0);
                    if told.as_ref() != Some(&why) {
                        tracing::error!("the new certificate cannot be used, the last one stays: {why}");
                        told = Some(why);
                    }
                }
            }
        }
    }
}

fn read(files: &GivenCertificate) -> Result<CertifiedKey, String> {
    let text = |path: &std::path::Path| {
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        if LARGEST < std::fs::metadata(path).map_err(failed)?.len() {
            return Err(format!("{} is too large", path.display()));
        }
        std::fs::read(path).map_err(failed)
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text(&files.chain)?).collect();
    let chain = chain.map_err(|e| format!("{}: {e}", files.chain.display()))?;
    if chain.is_empty() {
        return Err(format!("{} holds no certificate", files.chain.display()));
    }
    let key = PrivateKeyDer::from_pem_slice(&text(&files.key)?).map_err(|e| format!("{}: {e}", files.key.display()))?;
    let provider: CryptoProvider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider)
        .map_err(|e| format!("{} and {}: {e}", files.chain.display(), files.key.display()))
}

/// The hub's own certificate, or the given one where that is good for the name that is asked for.
#[derive(Debug)]
pub(crate) struct Chooser {
    pub own: Arc<CertifiedKey>,
    pub given: Option<Arc<Given>>,
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let given = || self.given.as_ref()?.covers(hello.server_name()?);
        Some(given().unwrap_or_else(|| Arc::clone(&self.own)))
    }
}
