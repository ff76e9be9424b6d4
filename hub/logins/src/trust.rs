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

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> String {
        rcgen::generate_simple_self_signed(vec!["ca.example".to_owned()]).unwrap().cert.pem()
    }

    /// S66: one half of a file is no file, and never is it the system's authorities.
    #[test]
    fn s66_a_file_of_authorities_is_read_as_a_whole_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            tls(Some(&path)).map(drop).map_err(|why| why.to_string())
        };
        let (first, second) = (authority(), authority());
        assert_eq!(read(&first), Ok(()));
        assert_eq!(read(&format!("# two of them\n{first}\n{second}")), Ok(()));
        let lines: Vec<&str> = second.lines().collect();
        let without = |line: usize| {
            let kept = lines.iter().enumerate().filter(|(n, _)| *n != line).map(|(_, line)| *line);
            kept.collect::<Vec<_>>().join("\n")
        };
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (what, broken) in [
            ("text that is no base64", second.replacen(lines[2], "!!!!", 1)),
            ("a line too few", without(2)),
            ("no end", without(lines.len() - 1)),
            ("half of it", second[..second.len() / 2].to_owned()),
            ("an end of something else", second.replace("END CERTIFICATE", "END PUBLIC KEY")),
            ("no certificate", garbage.to_owned()),
        ] {
            let told = read(&format!("{first}{broken}"));
            assert!(
                told.as_ref().is_err_and(|why| why.contains("caFile") && why.contains("ca.pem")),
                "{what}: {told:?}"
            );
            assert!(read(&broken).is_err(), "{what} alone");
        }
        for empty in ["", "\n", "no PEM\n"] {
            assert!(read(empty).is_err_and(|why| why.contains("holds no certificate")), "{empty:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(tls(Some(&path)).is_err(), "a file that is gone");
        assert!(tls(Some(dir.path())).is_err(), "a folder");
    }
}
