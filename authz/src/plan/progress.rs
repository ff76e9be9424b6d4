//! How far a node is with a plan, in its agent's words.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far a node is with a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// It has not begun.
    #[default]
    Waiting,
    /// It is under way.
    Running,
    /// All steps are done.
    Succeeded,
    /// A step has failed as often as it may.
    Failed,
    /// The cluster's owner does not allow it.
    Refused,
}

impl Phase {
    /// Whether nothing more happens.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Refused)
    }
}

/// What came of one step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StepResult {
    /// Its name.
    pub name: String,
    /// How far it is.
    pub phase: Phase,
    /// How often it was tried.
    pub tries: u32,
    /// The end of what it printed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// Why it has failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// It has left a file that can be fetched.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub file: bool,
}

/// What a probe says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeResult {
    /// Its name.
    pub name: String,
    /// Whether it is so.
    pub ok: bool,
    /// The cluster's owner does not let it be looked at: whether it is so is not known.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// Why not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How far a node is with a plan: what its agent keeps on disk, and tells the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Progress {
    /// Of the plan that this is about.
    pub checksum: String,
    /// How far it is.
    pub phase: Phase,
    /// Why it is no further.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Its steps, as far as it came.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepResult>,
    /// What its probes say, once the steps are done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeResult>,
    /// Checksums of files that are awaited from the hub.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// When it began, in seconds since 1970.
    #[serde(skip_serializing_if = "is_zero")]
    pub began: u64,
    /// When it was over, in seconds since 1970.
    #[serde(skip_serializing_if = "is_zero")]
    pub ended: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
