//! Whose certificates a provider may show.

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{path::Path, sync::Arc};

/// Why a provider's certificates cannot be judged: it is not used then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TrustError(String);

/// TLS that trusts the authorities of `ca_file` alone, or the system's where none is named. A file that cannot be read
/// as a whole is an error, never the system's authorities.
pub(crate) fn tls(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, TrustError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let told = |why: &dyn std::fmt::Display| TrustError(format!("caFile {}: {why}", path.display()));
            let pem = std::fs::read(path).map_err(|e| told(&e))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                roots.add(certificate.map_err(|e| told(&e))?).map_err(|e| told(&e))?;
            }
            if roots.is_empty() {
                return Err(told(&"holds no certificate"));
            }
        }
        None => {
            for certificate in rustls_native_certs::load_native_certs().certs {
                let _ = roots.add(certificate); // others' odd ones are no reason to trust nobody
            }
            if roots.is_empty() {
                return Err(TrustError("this system has no certificate authorities: name a caFile".to_owned()));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.map_err(|e| TrustError(e.to_string()))?.with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(config))
}
