//! What can be done on a node, and what can be looked at there.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One thing to do: exactly one of its kinds is set. Steps are done in order; one that was done before is done again after
/// a crash, so each of them is such that twice is as good as once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// What it is called, a DNS label of its own among the steps.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// How often it is tried before the plan has failed, with growing pauses; 0: once.
    #[serde(default)]
    #[schemars(range(max = 10))]
    pub tries: u32,
    /// A file with this content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Write")]
    pub write: Option<Write>,
    /// A file that the hub keeps, by its checksum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Fetch")]
    pub fetch: Option<Fetch>,
    /// A file or folder gets another name.
    #[serde(default, rename = "move", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Move")]
    pub rename: Option<Move>,
    /// A program that the edge policy allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Run")]
    pub run: Option<Run>,
    /// Waits until this is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Probe")]
    pub probe: Option<Probe>,
    /// Tells when certificates end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Certificates")]
    pub report_certificates: Option<Certificates>,
    /// Makes certificates anew that end soon, with the authority beside them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Rotate")]
    pub rotate_certificates: Option<Rotate>,
    /// Packs files, and what programs print, into one archive that can be fetched at the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Collect")]
    pub collect: Option<Collect>,
}

/// A file with this content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Write {
    /// Where: an absolute path.
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
    /// What.
    #[schemars(length(max = 262144))]
    pub content: String,
    /// Mode in octal, such as 0600.
    #[serde(default = "mode")]
    #[schemars(regex(pattern = r"^0?[0-7]{3}$"))]
    pub mode: String,
    /// SHA-256 of the content in hex; another content is refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(regex(pattern = r"^([0-9a-f]{64})?$"))]
    pub sha256: String,
}

pub(super) fn mode() -> String {
    "0600".to_owned()
}

/// A file that the hub keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fetch {
    /// SHA-256 of it in hex.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
    /// Where to: an absolute path.
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
    /// Mode in octal, such as 0755.
    #[serde(default = "mode")]
    #[schemars(regex(pattern = r"^0?[0-7]{3}$"))]
    pub mode: String,
}

/// A file or folder gets another name. Done where the old name is gone and the new one is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Move {
    /// An absolute path.
    #[schemars(length(min = 1, max = 4096))]
    pub from: String,
    /// An absolute path; nothing may be there, unless it is to be replaced.
    #[schemars(length(min = 1, max = 4096))]
    pub to: String,
    /// A file that is there makes room.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
}

/// A program with its words; no shell reads them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Run {
    /// The program's absolute path, and its arguments.
    #[schemars(length(min = 1, max = 128))]
    pub command: Vec<String>,
    /// After so long it is killed; 0: 300 s.
    #[serde(default)]
    #[schemars(range(max = 3600))]
    pub timeout_seconds: u32,
    /// Where this is so already, the program is not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Probe")]
    pub unless: Option<Probe>,
}

/// Something that is so or is not. Exactly one of its kinds is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// HOST:PORT takes connections.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub tcp: String,
    /// An address of plain HTTP answers with success.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub http: String,
    /// A file or folder is there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub file: String,
    /// Nothing takes connections at HOST:PORT.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub closed: String,
    /// It may take so long until it is so; 0: it has to be so now.
    #[serde(default)]
    #[schemars(range(max = 3600))]
    pub within_seconds: u32,
}

/// Folders of certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Certificates {
    /// In it, and one folder below, all `.crt` and `.pem`; where it is called `pki`, and the edge policy names the folder
    /// above it as well, also those in the kubeconfig files (`.conf`) there.
    #[schemars(length(min = 1, max = 4096))]
    pub dir: String,
}

/// Certificates as kubeadm lays them out: `NAME.crt` and `NAME.key`, by the `ca.crt` and `ca.key` of their folder or of the
/// folder above, and those of `front-proxy-client` by `front-proxy-ca`. Where the folder is called `pki`, and the edge policy
/// names the folder above it as well, those in the kubeconfig files (`admin.conf` and its like) there too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rotate {
    /// The folder, such as `/etc/kubernetes/pki`.
    #[schemars(length(min = 1, max = 4096))]
    pub dir: String,
    /// Only certificates that end within so many days; 0: all of them.
    #[serde(default)]
    #[schemars(range(max = 36500))]
    pub within_days: u32,
    /// How long the new ones are good; 0: 365. Never longer than the authority.
    #[serde(default)]
    #[schemars(range(max = 3650))]
    pub days: u32,
}

/// An archive for whoever is asked for help.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Collect {
    /// Files, each as far as 4 MiB; private keys are left out.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub files: Vec<String>,
    /// Programs whose output goes into it.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub commands: Vec<Vec<String>>,
}

/// Something that is looked at again and again once the steps are done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Watch {
    /// What it is called.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// What is looked at.
    pub probe: Probe,
    /// How often, in seconds; at least 5.
    #[schemars(range(min = 5, max = 86400))]
    pub every_seconds: u32,
}
