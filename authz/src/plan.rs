//! Plans: what a node agent is to do on its node, step by step, signed by the hub's authority.
//!
//! The signed text is what an agent believes, and nothing beside it: which cluster and node it is for, until when it may
//! be begun, and its checksum, by which it is done once. Whether the cluster's owner lets it be done is another question:
//! [`crate::edge::EdgePolicy::plan`].
mod check;
mod paths;
mod progress;
mod steps;

pub use crate::hex::sha256;
pub use check::{PROBES, SECONDS, STEPS, TRIES, WORDS, check};
pub(crate) use paths::{is_below, is_same, trimmed};
pub use paths::{is_plain, is_windows, without_verbatim};
pub use progress::{Phase, ProbeResult, Progress, StepResult};
pub use steps::{Certificates, Collect, Fetch, Move, Probe, Rotate, Run, Step, Watch, Write};

use crate::signed::{self, Kind, SignedError};
use serde::{Deserialize, Serialize};

/// Largest plan with its signature, in bytes.
pub const MAX_LEN: usize = 512 << 10;

const KIND: Kind = Kind { magic: "moorline-plan/1", most: MAX_LEN };

/// A plan for one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Name of the plan's object, for logs.
    pub name: String,
    /// Its `metadata.uid`.
    pub uid: String,
    /// The cluster that it is for.
    pub cluster: String,
    /// The node agent that it is for.
    pub agent: String,
    /// In seconds since 1970. The newest one of a plan is the one that counts.
    pub issued: u64,
    /// It is not taken later than this, in seconds since 1970.
    pub expires: u64,
    /// Empty the node of pods first, and take it back into use at the end; so many seconds at most. 0: do not.
    #[serde(default)]
    pub drain_seconds: u32,
    /// What to do.
    pub steps: Vec<Step>,
    /// What to look at afterwards.
    #[serde(default)]
    pub probes: Vec<Watch>,
    /// Another word here makes another plan of it: it is done again.
    #[serde(default)]
    pub run: String,
}

/// Why a plan is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Over [`MAX_LEN`], cut short, or no plan at all.
    #[error("this is no plan, or only part of one: {0}")]
    Malformed(String),
    /// Altered, or signed by an authority that is not trusted here.
    #[error("the plan is not signed by this cluster's hub")]
    Signature,
    /// Another node's.
    #[error("the plan is for {found}, and this is {wanted}")]
    Other {
        /// In the plan.
        found: String,
        /// Here.
        wanted: String,
    },
    /// It was made too long ago, or the clocks differ.
    #[error("the plan was to be begun {seconds} s ago at the latest: check both clocks")]
    Expired {
        /// Since when.
        seconds: u64,
    },
}

impl Plan {
    /// What tells it from other plans: what is to be done and for which object, not when it was signed.
    pub fn checksum(&self) -> String {
        let content = serde_json::to_vec(&(&self.uid, &self.steps, &self.probes, &self.run, self.drain_seconds));
        sha256(&content.unwrap_or_default())
    }
}

impl From<SignedError> for PlanError {
    fn from(error: SignedError) -> Self {
        match error {
            SignedError::Signature => Self::Signature,
            other => Self::Malformed(other.to_string()),
        }
    }
}

/// Writes a plan, signed with `sign`.
///
/// # Errors
/// What `sign` says.
pub fn seal<E>(plan: &Plan, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>) -> Result<Vec<u8>, E> {
    signed::seal(KIND, plan, sign)
}

/// Reads a plan for an agent of a cluster. `verify` says whether a signature over a message is the hub's. Nothing is
/// believed before its signature is. A step of a kind that is not known here makes it no plan: half of one is never done.
///
/// # Errors
/// The first thing that is wrong.
pub fn open(
    bytes: &[u8],
    verify: impl FnOnce(&[u8], &[u8]) -> bool,
    (cluster, agent): (&str, &str),
    now: u64,
) -> Result<Plan, PlanError> {
    let content = signed::open(KIND, bytes, verify)?;
    let plan: Plan = serde_json::from_slice(content).map_err(|e| PlanError::Malformed(e.to_string()))?;
    if (plan.cluster.as_str(), plan.agent.as_str()) != (cluster, agent) {
        let found = format!("{}.{}", plan.cluster, plan.agent);
        return Err(PlanError::Other { found, wanted: format!("{cluster}.{agent}") });
    }
    if plan.expires < now {
        return Err(PlanError::Expired { seconds: now - plan.expires });
    }
    match check(&plan.steps, &plan.probes).into_iter().next() {
        Some((field, why)) => Err(PlanError::Malformed(format!("{field}: {why}"))),
        None => Ok(plan),
    }
}

#[cfg(test)]
mod tests;
