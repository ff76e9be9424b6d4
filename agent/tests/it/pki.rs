//! Certificates for tests.

use moorline_agent::{AgentRole, membership::Membership};
use moorline_link::{Identity, Trust};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair, SanType,
    date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, SystemTime},
};

/// The agent of every test.
pub const AGENT: &str = "spiffe://example/cluster/edge1/agent/a1";
/// The node agent of those that have one.
pub const NODE: &str = "spiffe://example/cluster/edge1/node/a1";

/// An authority of trust domain `example`.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }
    pub fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }
    pub fn pem(&self) -> String {
        self.0.pem()
    }
    pub fn key(&self) -> &KeyPair {
        self.0.key()
    }
    pub fn pin(&self) -> [u8; 32] {
        moorline_link::tls::spki_sha256(&self.der()).unwrap()
    }
    pub fn trust(&self) -> Trust {
        Trust { roots: vec![self.der()], domain: "example".parse().unwrap() }
    }
    /// A certificate with these names, leaf and authority.
    pub fn issue(&self, names: Vec<SanType>) -> Identity {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Identity { chain: vec![leaf.der().clone(), self.der()], key }
    }
    /// What an agent keeps whose certificate has little of its life left, but enough for a test.
    pub fn old_member(&self, key: &KeyPair) -> Membership {
        let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
        self.member_until(key, AgentRole::Cluster, tomorrow)
    }
    /// What an agent keeps whose certificate ends then.
    pub fn member_until(&self, key: &KeyPair, role: AgentRole, until: SystemTime) -> Membership {
        let mut params = CertificateParams::default();
        let uri = if role == AgentRole::Node { NODE } else { AGENT };
        params.subject_alt_names = vec![uri_name(uri)];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = until.into();
        Membership {
            cluster: "edge1".parse().unwrap(),
            name: "a1".parse().unwrap(),
            role,
            trust_domain: "example".parse().unwrap(),
            chain: vec![params.signed_by(key, &self.0).unwrap().der().clone()],
            bundle: vec![self.der()],
        }
    }
    /// Signs a request for this identity and nothing else.
    pub fn sign(&self, csr_pem: &str, uri: &str) -> String {
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        assert!(csr.params.subject_alt_names.is_empty(), "the request names nobody");
        csr.params = CertificateParams::default();
        csr.params.subject_alt_names = vec![uri_name(uri)];
        csr.signed_by(&self.0).unwrap().pem()
    }
}

pub fn uri_name(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

/// Any port of an address of loopback that nobody else here has: given up and taken again, it is nobody's in between.
pub fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    SocketAddr::from(([127, 77, 1, NEXT.fetch_add(1, Ordering::Relaxed)], 0))
}

pub fn localhost() -> Vec<SanType> {
    vec![SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into())]
}

pub fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A server that asks for no certificate.
pub fn server_config(identity: Identity, alpn: &[&[u8]]) -> std::sync::Arc<rustls::ServerConfig> {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain, identity.key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    std::sync::Arc::new(config)
}
