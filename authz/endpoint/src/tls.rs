//! The certificate that an endpoint shows: the owner's, or one of an authority that the endpoint makes for itself.

use crate::{limits, shelf};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{fs, io, path::Path, sync::Arc, time::SystemTime};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot use {path}: {why}")]
    File {
        /// Which.
        path: String,
        /// In words.
        why: String,
    },
    /// The names, or the library.
    #[error("no certificate can be made: {0}")]
    Make(#[from] rcgen::Error),
    /// Key and certificate do not fit.
    #[error("the certificate cannot be used: {0}")]
    Unfit(#[from] rustls::Error),
}

/// What to serve with, and the authority to give to clients.
pub struct Served {
    /// For HTTP/2 and HTTP/1.1.
    pub config: Arc<ServerConfig>,
    /// The authority as PEM; for a certificate of the owner's, its chain's last.
    pub ca_pem: String,
}

fn file_error(path: &Path, why: impl std::fmt::Display) -> TlsError {
    TlsError::File { path: path.display().to_string(), why: why.to_string() }
}

/// The owner's certificate and key.
///
/// # Errors
/// The files cannot be read, or do not fit each other.
pub fn given(cert: &Path, key: &Path) -> Result<Served, TlsError> {
    let pem = fs::read_to_string(cert).map_err(|e| file_error(cert, e))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let chain = chain.map_err(|e| file_error(cert, e))?;
    // Half a chain is none: what follows the first certificate is not looked at by whoever only serves with it.
    if let Some(e) = chain.iter().find_map(|der| webpki::EndEntityCert::try_from(der).err()) {
        return Err(file_error(cert, format!("one of its certificates is broken: {e}")));
    }
    let last = pem.rfind("-----BEGIN").and_then(|at| pem.get(at..)).unwrap_or_default().to_owned();
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| file_error(key, e))?;
    Ok(Served { config: config(chain, key_der)?, ca_pem: last })
}

/// A certificate for `names`, of the authority in `dir`, which is made once.
///
/// # Errors
/// The folder cannot be used, or a name is none.
pub fn own(dir: &Path, names: &[String]) -> Result<Served, TlsError> {
    let (cert_file, key_file) = (dir.join("ca.crt"), dir.join("ca.key"));
    let params = || {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "moorline endpoint");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok::<_, rcgen::Error>(params)
    };
    let (ca_pem, ca_key) = match (fs::read_to_string(&cert_file), fs::read_to_string(&key_file)) {
        (Ok(cert), Ok(key)) => (cert, KeyPair::from_pem(&key)?),
        (Err(a), Err(b)) if a.kind() == io::ErrorKind::NotFound && b.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate()?;
            let cert = params()?.self_signed(&key)?.pem();
            // The key first: a certificate without one is no authority.
            shelf::write(&key_file, key.serialize_pem().as_bytes()).map_err(|e| file_error(&key_file, e))?;
            shelf::write(&cert_file, cert.as_bytes()).map_err(|e| file_error(&cert_file, e))?;
            (cert, key)
        }
        (Ok(_), Err(e)) => return Err(file_error(&key_file, e)),
        (Err(e), _) => return Err(file_error(&cert_file, e)),
    };
    let ca_der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| file_error(&cert_file, e))?;
    let issuer = Issuer::new(params()?, ca_key);
    let mut leaf = CertificateParams::new(names.to_vec())?;
    leaf.distinguished_name.push(DnType::CommonName, names.first().map_or("endpoint", String::as_str));
    let begin = SystemTime::now() - std::time::Duration::from_secs(300);
    leaf.not_before = begin.into();
    leaf.not_after = (begin + limits::CERTIFICATE_LIFE).into();
    let key = KeyPair::generate()?;
    let leaf = leaf.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| file_error(&key_file, e))?;
    Ok(Served { config: config(vec![leaf.der().clone(), ca_der], key)?, ca_pem })
}

fn config(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
