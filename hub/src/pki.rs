//! The hub's certificate authority.

use moorline_link::{Identity, Trust, tls};
use moorline_proto::id::{Role, SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SigningKey as _, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use x509_parser::{certification_request::X509CertificationRequest, oid_registry, prelude::FromDer};

/// Life of the authority's own certificate.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Life of the hub's certificate. It is made anew at each start, and at two thirds of this.
pub const HUB_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How far a certificate's begin lies in the past: what a client's clock may be behind.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// One of the two files is there without the other.
    #[error(
        "{present} is there but {missing} is not: restore it from a backup; if this hub never served an agent, remove both"
    )]
    Half {
        /// The one that is there.
        present: PathBuf,
        /// The one that is not.
        missing: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The files are no authority.
    #[error("{path} cannot be used: {why}")]
    Broken {
        /// Which.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// The library refused.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Why a signing request was refused. For people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Not PKCS #10, or no key in it that could be read.
    #[error("the signing request cannot be read")]
    Malformed,
    /// It is not signed by the key in it.
    #[error("the signing request is not signed by its own key")]
    Signature,
    /// Not an ECDSA P-256 or Ed25519 key.
    #[error("only ECDSA P-256 and Ed25519 keys are signed")]
    Key,
    /// The library refused.
    #[error("cannot sign: {0}")]
    Make(String),
}

/// A certificate that was issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub cert: CertificateDer<'static>,
    /// SHA-256 of its public key (DER).
    pub key_sha256: [u8; 32],
    /// When it ends.
    pub expires: SystemTime,
}

/// The authority: signs the hub's certificate and those of agents.
pub struct Authority {
    cert: CertificateDer<'static>,
    pem: String,
    pin: [u8; 32],
    expires: SystemTime,
    issuer: Issuer<'static, KeyPair>,
    domain: TrustDomain,
}

impl Authority {
    /// Reads `ca.crt` and `ca.key` in `dir`, or makes both if neither is there.
    ///
    /// # Errors
    /// See [`CaError`]. An authority that is broken or half there is never replaced: every agent pins it.
    pub fn open(dir: &Path, domain: &TrustDomain) -> Result<Self, CaError> {
        let (cert, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        match (exists(&cert)?, exists(&key)?) {
            (true, true) => {}
            (false, false) => generate(&cert, &key, domain)?,
            (true, false) => return Err(CaError::Half { present: cert, missing: key }),
            (false, true) => return Err(CaError::Half { present: key, missing: cert }),
        }
        Self::load(&cert, &key, domain)
    }

    fn load(cert_path: &Path, key_path: &Path, domain: &TrustDomain) -> Result<Self, CaError> {
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| CaError::Io { action: "read", path: path.to_owned(), source })
        };
        let broken =
            |path: &Path, why: &dyn std::fmt::Display| CaError::Broken { path: path.to_owned(), why: why.to_string() };
        let (pem, key_pem) = (read(cert_path)?, read(key_path)?);
        let mut certs = Vec::new();
        for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            certs.push(cert.map_err(|e| broken(cert_path, &e))?);
        }
        let [cert] = <[_; 1]>::try_from(certs)
            .map_err(|all| broken(cert_path, &format!("it holds {} certificates, not one", all.len())))?;
        let key = KeyPair::from_pem(&key_pem).map_err(|_| broken(key_path, &"it is no PKCS #8 private key in PEM"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&cert).map_err(|e| broken(cert_path, &e))?;
        if !parsed.is_ca() {
            return Err(broken(cert_path, &"it is no authority (basicConstraints CA)"));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(broken(key_path, &"it is not the key of ca.crt"));
        }
        let validity = parsed.validity();
        if !validity.is_valid() {
            return Err(broken(
                cert_path,
                &format!("it is valid from {} to {}", validity.not_before, validity.not_after),
            ));
        }
        let expires = SystemTime::from(validity.not_after.to_datetime());
        let pin = tls::spki_sha256(&cert).map_err(|e| broken(cert_path, &e))?;
        let issuer = Issuer::from_ca_cert_der(&cert, key).map_err(|e| broken(cert_path, &e))?;
        Ok(Self { cert, pem, pin, expires, issuer, domain: domain.clone() })
    }

    /// The authority's certificate.
    pub fn cert(&self) -> &CertificateDer<'static> {
        &self.cert
    }
    /// The same as text.
    pub fn pem(&self) -> &str {
        &self.pem
    }
    /// SHA-256 of its public key: what join tokens carry.
    pub fn pin(&self) -> [u8; 32] {
        self.pin
    }
    /// When it ends.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }
    /// The trust domain that it signs in.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }
    /// Signs `message`, which begins with a word that no certificate begins with.
    ///
    /// # Errors
    /// The library refuses.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CaError> {
        Ok(self.issuer.key().sign(message)?)
    }
    /// Whom a TLS configuration of the hub believes.
    pub fn trust(&self) -> Trust {
        Trust { roots: vec![self.cert.clone()], domain: self.domain.clone() }
    }

    /// A new key and certificate for the hub itself, with these DNS names and addresses.
    ///
    /// # Errors
    /// A name that cannot stand in a certificate.
    pub fn issue_hub(
        &self,
        id: &SpiffeId,
        names: &[String],
        life: Duration,
    ) -> Result<(Identity, SystemTime), CaError> {
        let key = KeyPair::generate()?;
        let mut sans = vec![SanType::URI(id.to_string().try_into()?)];
        for name in names {
            sans.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let (mut params, expires) = self.leaf(life, sans);
        params.distinguished_name.push(DnType::CommonName, "moorline hub");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let cert = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((Identity { chain: vec![cert.der().clone(), self.cert.clone()], key }, expires))
    }

    /// Signs the key of a request, for `id`. Whatever else the request asks for is ignored: subject, names, usages
    /// and life come from here.
    ///
    /// # Errors
    /// See [`CsrError`].
    pub fn issue_agent(&self, csr: &[u8], id: &SpiffeId, life: Duration) -> Result<Issued, CsrError> {
        let spki = checked_key(csr)?;
        let key = SubjectPublicKeyInfo::from_der(&spki).map_err(|_| CsrError::Key)?;
        let make = |e: rcgen::Error| CsrError::Make(e.to_string());
        let uri = id.to_string().try_into().map_err(make)?;
        let (mut params, expires) = self.leaf(life, vec![SanType::URI(uri)]);
        let name = match &id.role {
            Role::Hub(name) => name.to_string(),
            Role::ClusterAgent(_, name) | Role::NodeAgent(_, name) => name.to_string(),
        };
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer).map_err(make)?.der().clone();
        let key_sha256 = tls::spki_sha256(&cert).map_err(|_| CsrError::Malformed)?;
        Ok(Issued { cert, key_sha256, expires })
    }

    /// What every leaf has in common; never valid beyond the authority.
    fn leaf(&self, life: Duration, sans: Vec<SanType>) -> (CertificateParams, SystemTime) {
        let now = SystemTime::now();
        let expires = (now + life).min(self.expires);
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.not_before = (now - BACKDATE).into();
        params.not_after = expires.into();
        params.subject_alt_names = sans;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        (params, expires)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("domain", &self.domain).field("key", &"***").finish_non_exhaustive()
    }
}

/// The public key (SubjectPublicKeyInfo, DER) of a request that proves to hold it.
fn checked_key(csr: &[u8]) -> Result<Vec<u8>, CsrError> {
    let (rest, csr) = X509CertificationRequest::from_der(csr).map_err(|_| CsrError::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed);
    }
    let key = &csr.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    let ok = if key.algorithm.algorithm == oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY {
        curve.is_some_and(|curve| curve == oid_registry::OID_EC_P256)
    } else {
        key.algorithm.algorithm == oid_registry::OID_SIG_ED25519
    };
    if !ok {
        return Err(CsrError::Key);
    }
    csr.verify_signature().map_err(|_| CsrError::Signature)?;
    Ok(key.raw.to_vec())
}

fn exists(path: &Path) -> Result<bool, CaError> {
    path.try_exists().map_err(|source| CaError::Io { action: "look for", path: path.to_owned(), source })
}

fn generate(cert_path: &Path, key_path: &Path, domain: &TrustDomain) -> Result<(), CaError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("moorline authority of {domain}"));
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + AUTHORITY_LIFE).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let cert = params.self_signed(&key)?;
    // The key first: without its certificate it is of no use to anybody, and the next start says what to do.
    write_new(key_path, key.serialize_pem().as_bytes(), 0o600)?;
    write_new(cert_path, cert.pem().as_bytes(), 0o644)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    crate::files::write_atomically(path, bytes, mode).map_err(|source| CaError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn domain() -> TrustDomain {
        "moorline.local".parse().unwrap()
    }
    fn agent() -> SpiffeId {
        "spiffe://moorline.local/cluster/edge1/agent/a1".parse().unwrap()
    }

    #[test]
    fn s66_an_authority_that_is_half_there_or_broken_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let pin = Authority::open(dir.path(), &domain()).unwrap().pin();
        assert_eq!(Authority::open(dir.path(), &domain()).unwrap().pin(), pin, "the second start reads the first's");
        let (cert, key) = (dir.path().join("ca.crt"), dir.path().join("ca.key"));
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let (good_cert, good_key) = (fs::read(&cert).unwrap(), fs::read(&key).unwrap());
        for (path, good) in [(&cert, &good_cert), (&key, &good_key)] {
            fs::remove_file(path).unwrap();
            assert!(matches!(Authority::open(dir.path(), &domain()), Err(CaError::Half { .. })));
            for bad in [&b""[..], &good[..good.len() / 2], b"-----BEGIN"] {
                fs::write(path, bad).unwrap();
                assert!(matches!(Authority::open(dir.path(), &domain()), Err(CaError::Broken { .. })));
            }
            fs::write(path, good).unwrap();
        }
        let other = tempfile::tempdir().unwrap();
        Authority::open(other.path(), &domain()).unwrap();
        fs::copy(other.path().join("ca.key"), &key).unwrap();
        assert!(matches!(Authority::open(dir.path(), &domain()), Err(CaError::Broken { .. })), "a foreign key");
        fs::write(&key, &good_key).unwrap();
        fs::write(&cert, [&good_cert[..], &good_cert[..40]].concat()).unwrap();
        assert!(Authority::open(dir.path(), &domain()).is_err(), "a second, broken certificate");
    }

    #[test]
    fn an_agent_gets_its_identity_and_nothing_that_it_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::open(dir.path(), &domain()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut wish = CertificateParams::new(vec!["hub.example".to_owned()]).unwrap();
        wish.subject_alt_names.push(SanType::URI("spiffe://moorline.local/hub/hub".try_into().unwrap()));
        wish.distinguished_name.push(DnType::CommonName, "admin");
        wish.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let csr = wish.serialize_request(&key).unwrap();
        let issued = ca.issue_agent(csr.der(), &agent(), Duration::from_secs(60)).unwrap();
        let (_, cert) = x509_parser::parse_x509_certificate(&issued.cert).unwrap();
        let names = cert.subject_alternative_name().unwrap().unwrap().value.general_names.len();
        assert_eq!((names, tls::peer_id(&issued.cert).unwrap()), (1, agent()));
        let usage = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !cert.is_ca());
        let life = cert.validity().time_to_expiration().unwrap();
        assert!(life.whole_seconds() <= 60, "{life}");
        assert!(!cert.subject().to_string().contains("admin"));
        // A request that was altered after it was signed.
        let mut bent = csr.der().to_vec();
        *bent.last_mut().unwrap() ^= 1;
        assert!(ca.issue_agent(&bent, &agent(), Duration::from_secs(60)).is_err());
        assert_eq!(ca.issue_agent(b"", &agent(), Duration::from_secs(60)).unwrap_err(), CsrError::Malformed);
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let csr = CertificateParams::default().serialize_request(&p384).unwrap();
        assert_eq!(ca.issue_agent(csr.der(), &agent(), Duration::from_secs(60)).unwrap_err(), CsrError::Key);
    }

    #[test]
    fn nothing_outlives_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::open(dir.path(), &domain()).unwrap();
        let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
        let issued = ca.issue_agent(csr.der(), &agent(), AUTHORITY_LIFE * 2).unwrap();
        assert_eq!(issued.expires, ca.expires);
    }
}
