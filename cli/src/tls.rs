//! Trust in a hub: by its stored authority, by a pin, or by looking first and asking.

use crate::failure::{advise, usage};
use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What the CLI speaks to a hub's front door. It needs no more than one request at a time.
const HTTP1: &[u8] = b"http/1.1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// SHA-256 over a certificate's public key (SubjectPublicKeyInfo, DER): how a person names an authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin(pub [u8; 32]);

impl Pin {
    /// The pin of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> anyhow::Result<Self> {
        let hash = moorline_link::tls::spki_sha256(certificate);
        hash.map(Self).context("the hub's authority certificate cannot be read")
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Pin {
    type Err = String;
    /// `sha256:` and 64 hexadecimal digits, or 43 characters of base64url as in a join token.
    fn from_str(text: &str) -> Result<Self, String> {
        const RULE: &str = "a pin is sha256: and 64 hexadecimal digits, as `moorline hub` prints it";
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let bytes = if digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            let pairs = digits.as_bytes().chunks(2);
            pairs.map(|pair| std::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok())).collect()
        } else {
            URL_SAFE_NO_PAD.decode(digits).ok()
        };
        bytes.and_then(|b: Vec<u8>| b.try_into().ok()).map(Self).ok_or_else(|| RULE.to_owned())
    }
}

/// Every certificate of a PEM text. None is an error.
pub fn certificates(pem: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(advise("that text holds no PEM certificate", "give the file that the hub keeps as its authority")),
    }
}

/// Ordinary HTTPS trust: a chain to one of these authorities, and the server's name.
pub fn trusting(ca_pem: &str) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem)? {
        roots.add(certificate).context("the stored authority of the hub cannot be read")?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("TLS cannot be set up")?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![HTTP1.to_vec()];
    Ok(Arc::new(config))
}

/// Trust by pin: the hub must prove itself by the authority whose key has this hash.
pub fn pinned(pin: Pin) -> anyhow::Result<Arc<ClientConfig>> {
    moorline_link::tls::pinned_client_config(pin.0, &[HTTP1]).context("TLS cannot be set up")
}

/// Looks at the certificates that a server shows and then always refuses: no byte of ours is sent to
/// somebody unproven.
#[derive(Debug)]
pub struct Peek {
    seen: Mutex<Option<Vec<CertificateDer<'static>>>>,
    provider: Arc<CryptoProvider>,
}

impl Peek {
    /// The looker and a TLS configuration that uses it, for this ALPN.
    pub fn new(alpn: &[u8]) -> anyhow::Result<(Arc<Self>, ClientConfig)> {
        let provider = provider();
        let peek = Arc::new(Self { seen: Mutex::new(None), provider: provider.clone() });
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context("TLS cannot be set up")?;
        let mut config = config.dangerous().with_custom_certificate_verifier(peek.clone()).with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok((peek, config))
    }

    /// What was shown, leaf first; `None` if the handshake never came that far.
    pub fn take(&self) -> Option<Vec<CertificateDer<'static>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ServerCertVerifier for Peek {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(leaf).chain(others).map(|c| c.clone().into_owned()).collect();
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(chain);
        Err(rustls::Error::General("looked, and went no further".into()))
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("looked, and went no further".into()))
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("looked, and went no further".into()))
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The authority in a chain as a server showed it: its last certificate, if that one may sign others.
pub fn authority<'a>(chain: &'a [CertificateDer<'static>]) -> Option<&'a CertificateDer<'static>> {
    chain.last().filter(|der| X509Certificate::from_der(der).is_ok_and(|(_, cert)| cert.is_ca()))
}

/// Reads the authority from a file given by the user.
pub fn ca_from_file(path: &std::path::Path) -> anyhow::Result<String> {
    let text = crate::files::read_text(path)?
        .ok_or_else(|| usage(format!("{} does not exist", path.display()), "give the hub's authority as a PEM file"))?;
    certificates(&text).with_context(|| format!("cannot use {}", path.display()))?;
    Ok(text)
}

/// Why TLS failed, in words.
pub fn words(error: &rustls::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Cert, Error};
    match error {
        Error::InvalidCertificate(Cert::Expired | Cert::ExpiredContext { .. }) => {
            "the hub's certificate has expired, or this machine's clock is fast".into()
        }
        Error::InvalidCertificate(Cert::NotValidYet | Cert::NotValidYetContext { .. }) => {
            "the hub's certificate is not valid yet, or this machine's clock is slow".into()
        }
        Error::InvalidCertificate(Cert::UnknownIssuer | Cert::BadSignature) => {
            "the hub's certificate was not signed by the authority that is known for it".into()
        }
        Error::InvalidCertificate(Cert::NotValidForName | Cert::NotValidForNameContext { .. }) => {
            "the hub's certificate is not for this name (a hub takes it on by: moorline hub --name)".into()
        }
        Error::AlertReceived(Alert::NoApplicationProtocol) | Error::NoApplicationProtocol => {
            "whatever answers there does not speak moorline".into()
        }
        Error::InvalidMessage(_) => "whatever answers there does not speak TLS".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_reads_as_it_is_written_and_as_in_a_join_token() {
        let pin = Pin([0xab; 32]);
        assert_eq!(pin.to_string().parse(), Ok(pin));
        assert_eq!(URL_SAFE_NO_PAD.encode([0xab; 32]).parse(), Ok(pin));
        for bad in ["", "sha256:", "sha256:zz", "sha256:abcd", "md5:00"] {
            assert!(bad.parse::<Pin>().is_err(), "{bad:?}");
        }
    }
}
