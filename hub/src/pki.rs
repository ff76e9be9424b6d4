//! The hub's certificate authority, and while it is replaced the next one.

mod files;
mod root;

use arc_swap::ArcSwap;
use moorline_link::{Identity, Trust, tls};
use moorline_proto::id::{Role, SpiffeId, TrustDomain};
use rcgen::{DnType, ExtendedKeyUsagePurpose, KeyPair, SanType, SigningKey as _, SubjectPublicKeyInfo};
use root::Root;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::sync::watch;
use x509_parser::{certification_request::X509CertificationRequest, oid_registry, prelude::FromDer};

/// Life of the authority's own certificate.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Life of the hub's certificate. It is made anew at each start, and at two thirds of this.
pub const HUB_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Life of what the hub shows while its authority is replaced: of its certificate, and of the next authority's word for the
/// old one. It bounds for how long somebody with the old key can still pass for the hub once that is dropped.
const CROSS_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How far a certificate's begin lies in the past: what a client's clock may be behind the hub's. Three times what an agent
/// tells in its log, so that it is told before it hurts.
pub const BACKDATE: Duration = Duration::from_secs(15 * 60);

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
    /// There is a next authority already.
    #[error("the authority is being replaced already: moorline hub ca status says how far that is")]
    Turning,
    /// The authority has a name that this hub would not have given it.
    #[error(
        "the authority is called {0}, which the next one cannot repeat: it is of no moorline hub's making, and cannot be replaced in this way"
    )]
    Name(String),
    /// There is no next authority.
    #[error("there is no next authority: make it first with: moorline hub ca rotate")]
    Settled,
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
    /// The certificate, and its authority.
    pub chain: [CertificateDer<'static>; 2],
    /// The authorities to believe from then on.
    pub bundle: Vec<CertificateDer<'static>>,
    /// SHA-256 of its public key (DER).
    pub key_sha256: [u8; 32],
    /// When it ends.
    pub expires: SystemTime,
}

/// The authorities at one moment.
struct State {
    /// Vouches for the hub: signs its certificate, bundles and plans.
    serving: Root,
    /// While it is replaced: the one that comes after it, and signs what agents get already.
    next: Option<Root>,
    /// When the last one was dropped, in seconds since 1970. Who was given a certificate before believes that one still.
    dropped: Option<u64>,
}

impl State {
    fn read(dir: &Path) -> Result<Self, CaError> {
        let place = files::Place::of(dir);
        let serving = Root::load(&place.cert, &place.key)?;
        let next = place.has_next()?.then(|| Root::load(&place.next_cert, &place.next_key)).transpose()?;
        Ok(Self { serving, next, dropped: place.dropped()? })
    }

    /// All that are believed, the newest first: who takes one alone takes the one that stays.
    fn all(&self) -> impl Iterator<Item = &Root> {
        self.next.iter().chain([&self.serving])
    }

    fn bundle(&self) -> Vec<CertificateDer<'static>> {
        self.all().map(|root| root.cert.clone()).collect()
    }

    fn pem(&self) -> String {
        self.all().map(|root| crate::files::pem("CERTIFICATE", &root.cert)).collect()
    }

    fn hub_life(&self, life: Duration) -> Duration {
        if self.next.is_some() { life.min(CROSS_LIFE) } else { life }
    }

    /// The one first that vouches for the hub.
    fn stands(&self) -> Vec<Stand> {
        [&self.serving].into_iter().chain(&self.next).map(|root| (root.pin, root.expires)).collect()
    }
}

/// What is done with the authority of a folder on which no hub runs.
///
/// `change`: [`Change::Next`] makes the next authority, [`Change::Drop`] drops the old one. Returns the authorities, PEM, and
/// pin and end of each. Blocks.
///
/// # Errors
/// See [`CaError`].
pub(crate) fn offline(dir: &Path, change: Option<Change>) -> Result<(String, Vec<Stand>), CaError> {
    files::settle(dir)?;
    match change {
        None => {}
        Some(Change::Next) => files::begin(dir)?,
        Some(Change::Drop) => files::retire(dir)?,
    }
    let state = State::read(dir)?;
    Ok((state.pem(), state.stands()))
}

/// See [`offline`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Next,
    Drop,
}

/// Pin and end of an authority.
pub(crate) type Stand = ([u8; 32], SystemTime);

/// What a certificate of an agent says of where it is from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// Name of its authority, DER.
    issuer: Vec<u8>,
    /// When it was issued, in seconds since 1970.
    issued: u64,
    /// Its public key, SubjectPublicKeyInfo, DER.
    pub key: Vec<u8>,
}

impl Origin {
    /// Of a certificate whose chain was checked; one that cannot be read is of nobody.
    pub fn of(cert: &[u8]) -> Self {
        x509_parser::parse_x509_certificate(cert).map_or(
            Self { issuer: Vec::new(), issued: 0, key: Vec::new() },
            |(_, cert)| {
                let begin = u64::try_from(cert.validity().not_before.timestamp()).unwrap_or_default();
                Self {
                    issuer: cert.issuer().as_raw().to_vec(),
                    issued: begin + BACKDATE.as_secs(),
                    key: cert.public_key().raw.to_vec(),
                }
            },
        )
    }
}

/// The authority: signs the hub's certificate and those of agents.
///
/// It is replaced in two steps ([`Authority::rotate`], [`Authority::retire`]), between which there are two of them. The old
/// one vouches for the hub until it is dropped, for everybody believes it; agents get their certificates from the new one
/// and believe both. So at each moment every agent that is not away meets a hub that it knows, and is known there.
pub struct Authority {
    dir: PathBuf,
    domain: TrustDomain,
    state: ArcSwap<State>,
    /// Counts the changes of `state`.
    change: AtomicU64,
    /// The change up to which the hub's listeners believe what `state` says. Before that nobody is given what they would refuse.
    heard: AtomicU64,
    /// Told of each change.
    changed: watch::Sender<()>,
}

impl Authority {
    /// Reads `ca.crt` and `ca.key` in `dir`, or makes both if neither is there. Ends what was begun when a hub was killed
    /// while it dropped an authority.
    ///
    /// # Errors
    /// See [`CaError`]. An authority that is broken or half there is never replaced: every agent pins it.
    pub fn open(dir: &Path, domain: &TrustDomain) -> Result<Self, CaError> {
        files::prepare(dir, domain)?;
        let state = ArcSwap::from_pointee(State::read(dir)?);
        Ok(Self {
            dir: dir.to_owned(),
            domain: domain.clone(),
            state,
            change: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            changed: watch::Sender::new(()),
        })
    }

    /// Makes the next authority. From then on both are believed, and agents' certificates are of the new one. Blocks.
    ///
    /// # Errors
    /// [`CaError::Turning`], or the disk; nothing changed.
    pub fn rotate(&self) -> Result<(), CaError> {
        self.changed_by(files::begin(&self.dir))
    }

    /// Drops the old authority: the next one is the only one. Blocks.
    ///
    /// # Errors
    /// [`CaError::Settled`], or the disk. Where that fails half way this goes on with both, and the next start, or call,
    /// ends it.
    pub fn retire(&self) -> Result<(), CaError> {
        self.changed_by(files::retire(&self.dir))
    }

    /// Goes on with what is in the files by now, also where that could not be done to its end.
    fn changed_by(&self, done: Result<(), CaError>) -> Result<(), CaError> {
        if let Err(CaError::Turning | CaError::Settled) = done {
            return done; // nothing was begun
        }
        let read = self.reread();
        done.and(read)
    }

    fn reread(&self) -> Result<(), CaError> {
        let state = Arc::new(State::read(&self.dir)?);
        self.change.fetch_add(1, Ordering::AcqRel);
        self.state.store(state);
        self.changed.send_replace(());
        Ok(())
    }

    /// How often it has changed: to be asked before [`Self::trust`] is.
    pub(crate) fn change(&self) -> u64 {
        self.change.load(Ordering::Acquire)
    }

    /// The listeners believe what [`Self::trust`] said after this change.
    pub(crate) fn listens(&self, change: u64) {
        if self.heard.swap(change, Ordering::AcqRel) != change {
            self.changed.send_replace(());
        }
    }

    /// Whether they do after the last one.
    pub(crate) fn is_heard(&self) -> bool {
        self.heard.load(Ordering::Acquire) == self.change()
    }

    /// The one that signs for agents.
    fn issuing<'a>(&self, state: &'a State) -> &'a Root {
        state.next.as_ref().filter(|_| self.is_heard()).unwrap_or(&state.serving)
    }

    /// Hears of each change from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
    /// The authorities to believe, PEM; the one that stays comes first.
    pub fn pem(&self) -> String {
        self.state.load().pem()
    }
    /// SHA-256 of the public key of the one that stays: what join tokens carry.
    pub fn pin(&self) -> [u8; 32] {
        self.issuing(&self.state.load()).pin
    }
    /// The same once the other one is dropped: what an agent has to hold by then.
    pub(crate) fn staying_pin(&self) -> [u8; 32] {
        let state = self.state.load();
        state.next.as_ref().unwrap_or(&state.serving).pin
    }
    /// The same of the one that vouches for the hub.
    pub(crate) fn serving_pin(&self) -> [u8; 32] {
        self.state.load().serving.pin
    }
    /// When the one ends that vouches for the hub.
    pub fn expires(&self) -> SystemTime {
        self.state.load().serving.expires
    }
    /// The trust domain that it signs in.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }
    /// Pin and end of each, the one first that vouches for the hub; there are two while it is replaced.
    pub(crate) fn all(&self) -> Vec<Stand> {
        self.state.load().stands()
    }
    /// Whether there never was another one: then whoever has a certificate has one of it.
    pub(crate) fn is_first(&self) -> bool {
        let state = self.state.load();
        state.next.is_none() && state.dropped.is_none()
    }
    /// Signs `message`, which begins with a word that no certificate begins with.
    ///
    /// # Errors
    /// The library refuses.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CaError> {
        Ok(self.state.load().serving.issuer.key().sign(message)?)
    }
    /// Whom a TLS configuration of the hub believes.
    pub fn trust(&self) -> Trust {
        Trust { roots: self.state.load().bundle(), domain: self.domain.clone() }
    }

    /// The pin of the authority that a certificate is of; `None`: it is believed no more.
    pub(crate) fn pin_of(&self, origin: &Origin) -> Option<[u8; 32]> {
        self.state.load().all().find(|root| root.subject == origin.issuer).map(|root| root.pin)
    }

    /// Whether who shows such a certificate is to get a new one before its time: it is of the authority that goes, or was
    /// given while one was believed that is gone.
    pub(crate) fn is_behind(&self, origin: &Origin) -> bool {
        let state = self.state.load();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        // By a clock that was set back a new one would be as old. One of the same second may be of either side.
        let believes_more = state.dropped.is_some_and(|at| origin.issued <= at && at <= now);
        self.issuing(&state).subject != origin.issuer || believes_more
    }

    /// How long the hub's own certificate is good for, where `life` is wished.
    pub(crate) fn hub_life(&self, life: Duration) -> Duration {
        self.state.load().hub_life(life)
    }

    /// A new key and certificate for the hub itself, with these DNS names and addresses, for [`Self::hub_life`].
    ///
    /// # Errors
    /// A name that cannot stand in a certificate.
    pub fn issue_hub(
        &self,
        id: &SpiffeId,
        names: &[String],
        life: Duration,
    ) -> Result<(Identity, SystemTime), CaError> {
        let state = self.state.load();
        let root = &state.serving;
        let key = KeyPair::generate()?;
        let mut sans = vec![SanType::URI(id.to_string().try_into()?)];
        for name in names {
            sans.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let (mut params, expires) = root.leaf(state.hub_life(life), sans);
        // `serving`'s key, vouched for by `next`: who believes that one alone recognises the hub too.
        let cross = state.next.as_ref().map(|next| next.vouch(root, expires)).transpose()?;
        params.distinguished_name.push(DnType::CommonName, "moorline hub");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let cert = params.signed_by(&key, &root.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // Who believes the next one alone comes to it by the certificate across. OpenSSL takes the first that fits, and from
        // an authority that signed itself goes no further. The last is shown to people who know neither.
        let mut chain = vec![cert.der().clone()];
        chain.extend(cross);
        chain.push(root.cert.clone());
        chain.extend(state.next.as_ref().map(|next| next.cert.clone()));
        Ok((Identity { chain, key }, expires))
    }

    /// Signs the key of a request, for `id`. Whatever else the request asks for is ignored: subject, names, usages
    /// and life come from here.
    ///
    /// # Errors
    /// See [`CsrError`].
    pub fn issue_agent(&self, csr: &[u8], id: &SpiffeId, life: Duration) -> Result<Issued, CsrError> {
        self.issue_key(&checked_key(csr)?, id, life)
    }

    /// The same for a key (SubjectPublicKeyInfo, DER) that `id` proved to hold.
    ///
    /// # Errors
    /// See [`CsrError`].
    pub(crate) fn issue_key(&self, spki: &[u8], id: &SpiffeId, life: Duration) -> Result<Issued, CsrError> {
        let state = self.state.load();
        let root = self.issuing(&state);
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| CsrError::Key)?;
        let make = |e: rcgen::Error| CsrError::Make(e.to_string());
        let uri = id.to_string().try_into().map_err(make)?;
        let (mut params, expires) = root.leaf(life, vec![SanType::URI(uri)]);
        let name = match &id.role {
            Role::Hub(name) => name.to_string(),
            Role::ClusterAgent(_, name) | Role::NodeAgent(_, name) => name.to_string(),
        };
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &root.issuer).map_err(make)?.der().clone();
        let key_sha256 = tls::spki_sha256(&cert).map_err(|_| CsrError::Malformed)?;
        Ok(Issued { chain: [cert, root.cert.clone()], bundle: state.bundle(), key_sha256, expires })
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

#[cfg(test)]
mod tests;
