//! One authority: what it signs, and for whom it vouches.

use super::{BACKDATE, CaError};
use moorline_link::tls;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, SanType, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};
use x509_parser::extensions::ParsedExtension;

/// One authority: certificate and key.
pub(super) struct Root {
    pub cert: CertificateDer<'static>,
    pub pin: [u8; 32],
    /// Its name, DER, as it stands in what it issued.
    pub subject: Vec<u8>,
    pub expires: SystemTime,
    pub issuer: Issuer<'static, KeyPair>,
}

impl Root {
    pub fn load(cert_path: &Path, key_path: &Path) -> Result<Self, CaError> {
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
            return Err(broken(key_path, &format!("it is not the key of {}", cert_path.display())));
        }
        let validity = parsed.validity();
        if !validity.is_valid() {
            return Err(broken(
                cert_path,
                &format!("it is valid from {} to {}", validity.not_before, validity.not_after),
            ));
        }
        let expires = SystemTime::from(validity.not_after.to_datetime());
        let subject = parsed.subject().as_raw().to_vec();
        let pin = tls::spki_sha256(&cert).map_err(|e| broken(cert_path, &e))?;
        let issuer = Issuer::from_ca_cert_der(&cert, key).map_err(|e| broken(cert_path, &e))?;
        Ok(Self { cert, pin, subject, expires, issuer })
    }

    /// What it is called; empty: nothing that can be read.
    pub fn name(&self) -> String {
        x509_parser::parse_x509_certificate(&self.cert)
            .ok()
            .and_then(|(_, cert)| {
                cert.subject().iter_common_name().next().and_then(|name| name.as_str().ok().map(str::to_owned))
            })
            .unwrap_or_default()
    }

    /// Name and key of another authority, certified by this one until then, for servers alone. Everybody is shown it: whoever
    /// has the other's key is the hub to all who believe this one, for as long as it is good.
    pub fn vouch(&self, other: &Self, until: SystemTime) -> Result<CertificateDer<'static>, CaError> {
        let unread = |_| rcgen::Error::CouldNotParseCertificate;
        let (_, parsed) = x509_parser::parse_x509_certificate(&other.cert).map_err(unread)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in parsed.subject().iter_common_name() {
            let name = name.as_str().map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
            params.distinguished_name.push(DnType::CommonName, name);
        }
        if let Some(id) = parsed.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        }) {
            params.key_identifier_method = KeyIdMethod::PreSpecified(id);
        }
        params.not_before = (SystemTime::now() - BACKDATE).into();
        params.not_after = until.min(other.expires).min(self.expires).into();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = SubjectPublicKeyInfo::from_der(parsed.public_key().raw)?;
        let cert = params.signed_by(&key, &self.issuer)?.der().clone();
        // Chains are put together by names, byte for byte.
        let (_, made) = x509_parser::parse_x509_certificate(&cert).map_err(unread)?;
        if made.subject().as_raw() != other.subject {
            return Err(CaError::Name(parsed.subject().to_string()));
        }
        drop(made);
        Ok(cert)
    }

    /// What every leaf has in common; never valid beyond the authority.
    pub fn leaf(&self, life: Duration, sans: Vec<SanType>) -> (CertificateParams, SystemTime) {
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
