//! Who an agent is: its certificate, and what the hub says with it.

use crate::config::AgentRole;
use moorline_link::{Identity, Trust, tls};
use moorline_proto::id::{AgentName, ClusterId, Role, SpiffeId, TrustDomain};
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime, pem::PemObject};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Who this agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Which cluster it belongs to.
    pub cluster: ClusterId,
    /// Its name there.
    pub name: AgentName,
    /// What it serves.
    pub role: AgentRole,
    /// Which hub authority vouches for it.
    pub trust_domain: TrustDomain,
    /// Its certificate, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The authorities that it believes.
    pub bundle: Vec<CertificateDer<'static>>,
}

/// Why a certificate chain is not this agent's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    /// No certificate, or one that cannot be read.
    #[error("not a certificate chain: {0}")]
    Unreadable(String),
    /// It does not lead to an authority of the trust bundle.
    #[error("the certificate does not lead to the trust bundle: {0}")]
    Untrusted(String),
    /// It is for another key.
    #[error("the certificate is for another key")]
    OtherKey,
    /// It names somebody else.
    #[error("the certificate is for {found}, not for {expected}")]
    OtherName {
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
    },
}

impl Membership {
    /// The identity in this agent's certificate.
    pub fn spiffe_id(&self) -> SpiffeId {
        let (cluster, name) = (self.cluster.clone(), self.name.clone());
        let role = match self.role {
            AgentRole::Cluster => Role::ClusterAgent(cluster, name),
            AgentRole::Node => Role::NodeAgent(cluster, name),
        };
        SpiffeId { trust_domain: self.trust_domain.clone(), role }
    }

    /// For the TLS of the tunnel.
    pub fn identity(&self, key: &KeyPair) -> Identity {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Identity { chain: self.chain.clone(), key }
    }

    /// For the TLS of the tunnel.
    pub fn trust(&self) -> Trust {
        Trust { roots: self.bundle.clone(), domain: self.trust_domain.clone() }
    }

    /// Whether the chain is for `key` and for this agent, and leads to the bundle, now.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, key: &KeyPair) -> Result<(), BadChain> {
        self.check_names(key)?;
        let (leaf, rest) = self.chain.split_first().ok_or_else(|| BadChain::Unreadable("empty".to_owned()))?;
        let untrusted = |e: &dyn std::fmt::Display| BadChain::Untrusted(e.to_string());
        let mut roots = rustls::RootCertStore::empty();
        for root in &self.bundle {
            roots.add(root.clone()).map_err(|e| untrusted(&e))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| untrusted(&e))?;
        verifier.verify_client_cert(leaf, rest, UnixTime::now()).map_err(|e| untrusted(&e))?;
        Ok(())
    }

    /// [`Self::check`] but for the authority: whether the chain is for `key` and for this agent.
    pub(crate) fn check_names(&self, key: &KeyPair) -> Result<(), BadChain> {
        let leaf = self.chain.first().ok_or_else(|| BadChain::Unreadable("empty".to_owned()))?;
        let parsed = X509Certificate::from_der(leaf).map_err(|e| BadChain::Unreadable(e.to_string()))?.1;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(BadChain::OtherKey);
        }
        let expected = self.spiffe_id();
        match tls::peer_id(leaf) {
            Ok(found) if found == expected => Ok(()),
            Ok(found) => Err(BadChain::OtherName { found: found.to_string(), expected: expected.to_string() }),
            Err(e) => Err(BadChain::Unreadable(e.to_string())),
        }
    }

    /// From when to when the certificate is valid.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn validity(&self) -> Result<(SystemTime, SystemTime), BadChain> {
        let leaf = self.chain.first().ok_or_else(|| BadChain::Unreadable("empty".to_owned()))?;
        let parsed = X509Certificate::from_der(leaf).map_err(|e| BadChain::Unreadable(e.to_string()))?.1;
        let at = |time: x509_parser::time::ASN1Time| {
            UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default())
        };
        Ok((at(parsed.validity().not_before), at(parsed.validity().not_after)))
    }

    /// Whether the certificate's time is over at `now`. One that cannot be read is for others to judge.
    pub fn has_expired(&self, now: SystemTime) -> bool {
        self.validity().is_ok_and(|(_, end)| end < now)
    }

    /// Whether an authority of the bundle has the key with this SHA-256.
    pub fn trusts_pin(&self, pin: &[u8; 32]) -> bool {
        self.bundle.iter().any(|cert| tls::spki_sha256(cert).is_ok_and(|found| found == *pin))
    }
}

/// One certificate of each PEM text.
pub(crate) fn certificates(pems: &[String]) -> Result<Vec<CertificateDer<'static>>, String> {
    if pems.is_empty() {
        return Err("no certificate".to_owned());
    }
    pems.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| e.to_string())).collect()
}

/// The other way round.
pub(crate) fn to_pem(cert: &CertificateDer<'static>) -> String {
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, cert.as_ref());
    for line in encoded.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, SanType};

    /// Who [`membership`] makes.
    pub(crate) const AGENT: &str = "spiffe://example/cluster/c1/agent/a1";

    pub(crate) fn membership(key: &KeyPair, uri: &str) -> Membership {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        Membership {
            cluster: "c1".parse().unwrap(),
            name: "a1".parse().unwrap(),
            role: AgentRole::Cluster,
            trust_domain: "example".parse().unwrap(),
            chain: vec![leaf.signed_by(key, &authority).unwrap().der().clone()],
            bundle: vec![authority.der().clone()],
        }
    }

    #[test]
    fn s17_a_chain_for_another_name_key_or_authority_is_refused() {
        let key = KeyPair::generate().unwrap();
        let other = membership(&key, "spiffe://example/cluster/c2/agent/a1");
        assert!(matches!(other.check(&key), Err(BadChain::OtherName { .. })));
        let good = membership(&key, AGENT);
        assert_eq!(good.check(&KeyPair::generate().unwrap()), Err(BadChain::OtherKey));
        let strange = Membership { bundle: membership(&key, AGENT).bundle, ..good };
        assert!(matches!(strange.check(&key), Err(BadChain::Untrusted(_))));
    }
}
