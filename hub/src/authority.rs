//! Replacing the hub's authority while agents are connected: who holds which, what is offered when, and when the old one
//! may go.
//!
//! An agent shows by its certificate that it holds the new authority: it keeps certificate and authorities in one write,
//! and uses none of a new authority that it could not keep unless its old one is about to end. So nothing has to be asked:
//! each session's certificate says it, and the `Agent` object remembers it for those that are away.

use crate::{
    kinds::AgentSpec,
    pki::{self, Authority, CaError, Change, Origin, Stand},
    records::Records,
    sessions::{Entry, Registry},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use moorline_apiserver::Object;
use moorline_authz::hex::hex;
use prometheus::{
    IntGaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// New certificates offered in a second, on average: each is a handshake soon.
const OFFERS: u32 = 50;
/// Within how long the sessions of a small hub are offered one.
const SPREAD: Duration = Duration::from_secs(1);
/// The same for a large one.
const SPREAD_MOST: Duration = Duration::from_secs(600);
/// How long an agent has to come back with what it was offered before it is offered another.
const AGAIN: Duration = Duration::from_secs(600);
/// Agents that are named to a person.
const NAMED: usize = 50;

/// How a pin is written everywhere.
pub(crate) fn pin_text(pin: &[u8; 32]) -> String {
    format!("sha256:{}", hex(pin))
}

/// When a session is offered a new certificate, so that all are not at once. `share` is from 0 to 1.
pub(crate) fn offer_in(sessions: usize, share: f64) -> Duration {
    let all = Duration::from_secs(1) * u32::try_from(sessions).unwrap_or(u32::MAX) / OFFERS;
    all.clamp(SPREAD, SPREAD_MOST).mul_f64(share)
}

/// When it is offered one again.
pub(crate) fn again_in(share: f64) -> Duration {
    AGAIN.mul_f64(1.0 + share)
}

/// One authority, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// `sha256:` and the hash of its key.
    pub pin: String,
    /// RFC 3339.
    pub expires: String,
}

/// How it stands with the authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaStatus {
    /// The one that vouches for the hub.
    pub serving: Told,
    /// The one that comes after it.
    pub next: Option<Told>,
    /// Agents whose certificate is of the one that stays.
    pub hold: usize,
    /// Agents with a certificate that is good still and of another one.
    pub behind: usize,
    /// The first of them by name.
    pub named: Vec<String>,
    /// Whether the agents are known: by the hub that runs.
    pub counted: bool,
}

/// Why the authority is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The files.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// Agents would be locked out.
    #[error(
        "{behind} agents hold the old authority alone and would be locked out: {named}. They get the new one when they connect, or have to join anew; --force drops it all the same"
    )]
    Behind {
        /// How many.
        behind: usize,
        /// Some of them.
        named: String,
    },
    /// Nobody knows which agents would be.
    #[error("no hub runs on this folder, so nobody knows which agents would be locked out: start it, or give --force")]
    Unknown,
    /// The store.
    #[error("the store: {0}")]
    Store(String),
    /// The folder belongs to another process now.
    #[error("cannot take the folder: {0}")]
    Taken(String),
    /// The hub that runs on this folder refused, or did not answer.
    #[error("the hub that runs on this folder: {0}")]
    Hub(String),
}

/// An error with its causes.
#[cfg_attr(not(unix), allow(dead_code))]
pub(crate) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CaStep {
    /// Nothing: say how it stands.
    Status,
    /// Make the next authority.
    Rotate,
    /// Drop the old one, unless agents hold it alone.
    Retire,
    /// Drop it.
    ForceRetire,
}

impl fmt::Display for CaStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status => "status",
            Self::Rotate => "rotate",
            Self::Retire => "retire",
            Self::ForceRetire => "retire --force",
        })
    }
}

/// Replaces the authority of the hub that runs.
#[cfg_attr(not(unix), allow(dead_code))] // the socket by which a hub that runs is asked is a Unix one
#[derive(Clone)]
pub(crate) struct Turning {
    pub authority: Arc<Authority>,
    pub records: Records,
    pub dir: PathBuf,
}

#[cfg_attr(not(unix), allow(dead_code))]
impl Turning {
    /// Takes a step. Blocks.
    pub fn step(&self, step: CaStep) -> Result<CaStatus, RotationError> {
        match step {
            CaStep::Status => return self.status(),
            CaStep::Rotate => self.authority.rotate()?,
            CaStep::Retire | CaStep::ForceRetire => {
                let status = self.status()?;
                if step == CaStep::Retire && status.next.is_some() && status.behind > 0 {
                    let more = status.behind.saturating_sub(status.named.len());
                    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
                    let named = format!("{}{more}", status.named.join(", "));
                    return Err(RotationError::Behind { behind: status.behind, named });
                }
                self.authority.retire()?;
            }
        }
        refresh_kubeconfig(&self.dir, &self.authority.pem());
        let status = self.status()?;
        tracing::warn!(
            serving = status.serving.pin,
            next = status.next.as_ref().map(|next| &next.pin),
            behind = status.behind,
            "the hub's authority was changed: moorline hub ca {step}"
        );
        Ok(status)
    }

    fn status(&self) -> Result<CaStatus, RotationError> {
        let agents = self.records.list::<AgentSpec>().map_err(|e| RotationError::Store(e.to_string()))?;
        let pin = pin_text(&self.authority.staying_pin());
        let (now, first) = (jiff::Timestamp::now(), self.authority.is_first());
        let (mut hold, mut behind) = (0, Vec::new());
        for agent in agents {
            match stands(&agent, &pin, now) {
                Stands::Holds => hold += 1,
                // An earlier version of the hub did not note it.
                Stands::Behind if first => hold += 1,
                Stands::Behind => behind.push(agent.metadata.name),
                Stands::Over => {}
            }
        }
        behind.sort_unstable();
        let count = behind.len();
        behind.truncate(NAMED);
        let status = of_all(&self.authority.all());
        Ok(CaStatus { hold, behind: count, named: behind, counted: true, ..status })
    }
}

/// How an agent stands to the authority that stays.
#[cfg_attr(not(unix), allow(dead_code))]
enum Stands {
    Holds,
    Behind,
    /// Its certificate has expired: it has to join anew whatever becomes of the authority.
    Over,
}

#[cfg_attr(not(unix), allow(dead_code))]
fn stands(agent: &Object<AgentSpec>, pin: &str, now: jiff::Timestamp) -> Stands {
    let status = agent.status.as_ref();
    if status.and_then(|status| status.authority.as_deref()) == Some(pin) {
        return Stands::Holds;
    }
    let until = status.and_then(|status| status.certificate_expires.as_deref());
    match until.and_then(|at| at.parse::<jiff::Timestamp>().ok()) {
        Some(until) if until <= now => Stands::Over,
        _ => Stands::Behind,
    }
}

fn of_all(all: &[Stand]) -> CaStatus {
    let mut all = all.iter().map(|(pin, expires)| Told { pin: pin_text(pin), expires: crate::status::time(*expires) });
    let none = || Told { pin: String::new(), expires: String::new() };
    let serving = all.next().unwrap_or_else(none);
    CaStatus { serving, next: all.next(), hold: 0, behind: 0, named: Vec::new(), counted: false }
}

/// Puts the authorities into the administrator's kubeconfig, if it is as the hub made it.
pub(crate) fn refresh_kubeconfig(dir: &Path, pem: &str) {
    let path = dir.join("admin.kubeconfig");
    let Ok(text) = fs::read_to_string(&path) else { return };
    let Ok(mut file) = serde_json::from_str::<Value>(&text) else { return };
    let Some(place) = file.pointer_mut("/clusters/0/cluster/certificate-authority-data") else { return };
    let now = Value::from(STANDARD.encode(pem));
    if std::mem::replace(place, now.clone()) == now {
        return;
    }
    let written = crate::files::write_atomically(&path, format!("{file:#}\n").as_bytes(), 0o600);
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), "the kubeconfig still has the authorities of before: {error}");
    }
}

/// Does a step with the authority of the hub whose data folder is `data`: through the hub that runs there, or on its files
/// where none runs. Blocks.
///
/// # Errors
/// See [`RotationError`]; then the authority is as it was.
pub fn step(data: &Path, step: CaStep) -> Result<CaStatus, RotationError> {
    #[cfg(unix)]
    if let Some(status) = crate::control::ask_ca(data, step)? {
        return Ok(status);
    }
    let _lock = crate::place::lock(data).map_err(|e| RotationError::Taken(e.to_string()))?;
    let change = match step {
        CaStep::Status => None,
        CaStep::Rotate => Some(Change::Next),
        CaStep::Retire => return Err(RotationError::Unknown),
        CaStep::ForceRetire => Some(Change::Drop),
    };
    let (pem, all) = pki::offline(data, change)?;
    refresh_kubeconfig(data, &pem);
    Ok(of_all(&all))
}

/// Sessions by the authority that their certificate is of, read when somebody asks for metrics; and whether there are two.
pub(crate) struct Holding {
    registry: Arc<Registry>,
    authority: Arc<Authority>,
    sessions: IntGaugeVec,
    turning: prometheus::IntGauge,
}

impl Holding {
    pub fn new(registry: Arc<Registry>, authority: Arc<Authority>) -> prometheus::Result<Self> {
        Ok(Self {
            registry,
            authority,
            sessions: IntGaugeVec::new(
                Opts::new(
                    "moorline_hub_authority_sessions",
                    "Sessions by the authority of the agent's certificate: the one that stays (new), or an older one (old)",
                ),
                &["authority"],
            )?,
            turning: prometheus::IntGauge::new(
                "moorline_hub_authority_rotating",
                "Whether the hub has a next authority beside the one that vouches for it (1)",
            )?,
        })
    }
}

impl Collector for Holding {
    fn desc(&self) -> Vec<&Desc> {
        self.sessions.desc().into_iter().chain(self.turning.desc()).collect()
    }
    fn collect(&self) -> Vec<MetricFamily> {
        let pin = self.authority.staying_pin();
        let all = self.registry.all();
        let holds = |entry: &&Arc<Entry>| self.authority.pin_of(&entry.origin) == Some(pin);
        let hold = all.iter().filter(holds).count();
        let set = |label: &str, count: usize| {
            self.sessions.with_label_values(&[label]).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set("new", hold);
        set("old", all.len().saturating_sub(hold));
        self.turning.set(i64::from(self.authority.all().len() > 1));
        self.sessions.collect().into_iter().chain(self.turning.collect()).collect()
    }
}

/// What a session's certificate is of, as its object remembers it; empty: of an authority that is believed no more.
pub(crate) fn of(authority: &Authority, origin: &Origin) -> String {
    authority.pin_of(origin).map(|pin| pin_text(&pin)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_spread_by_how_many_there_are() {
        assert_eq!(offer_in(1, 1.0), SPREAD);
        assert_eq!(offer_in(10_000, 1.0), Duration::from_secs(200));
        assert_eq!(offer_in(10_000, 0.5), Duration::from_secs(100));
        assert_eq!(offer_in(usize::MAX, 1.0), SPREAD_MOST);
        assert!(again_in(0.0) >= AGAIN);
    }
}
