//! Plans: what a node agent is to do on its node, step by step, signed by the hub's authority.
//!
//! The signed text is what an agent believes, and nothing beside it: which cluster and node it is for, until when it may
//! be begun, and its checksum, by which it is done once. Whether the cluster's owner lets it be done is another question:
//! [`crate::edge::EdgePolicy::plan`].

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Largest plan with its signature, in bytes.
pub const MAX_LEN: usize = 512 << 10;
/// Steps of a plan.
pub const STEPS: usize = 64;
/// Words of a command.
pub const WORDS: usize = 128;
/// Probes that a plan leaves behind.
pub const PROBES: usize = 16;
/// Longest that a command or a probe may take, in seconds.
pub const SECONDS: u32 = 3600;
/// How often a step may be tried.
pub const TRIES: u32 = 10;

/// What the first line begins with. It is signed too, so that a signature is for a plan and nothing else.
const MAGIC: &str = "moorline-plan/1";

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

fn mode() -> String {
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
    /// In it, and one folder below, all `.crt` and `.pem`.
    #[schemars(length(min = 1, max = 4096))]
    pub dir: String,
}

/// Certificates as kubeadm lays them out: `NAME.crt` and `NAME.key`, by the `ca.crt` and `ca.key` of their folder or of the
/// folder above, and those of `front-proxy-client` by `front-proxy-ca`.
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
        let hash = Sha256::digest(content.unwrap_or_default());
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What is wrong with steps and probes, with the field's name; nothing: they can be tried.
pub fn check(steps: &[Step], probes: &[Watch]) -> Vec<(String, String)> {
    let mut wrong = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    if steps.is_empty() || STEPS < steps.len() {
        wrong.push(("spec.steps".to_owned(), format!("from 1 to {STEPS} steps")));
    }
    if PROBES < probes.len() {
        wrong.push(("spec.probes".to_owned(), format!("at most {PROBES}")));
    }
    for (n, step) in steps.iter().enumerate() {
        let mut bad = |field: &str, why: &str| wrong.push((format!("spec.steps[{n}]{field}"), why.to_owned()));
        if !is_label(&step.name) || !names.insert(&step.name) {
            bad(".name", "a name of its own, of small letters, digits and dashes");
        }
        let kinds = [
            step.write.is_some(),
            step.fetch.is_some(),
            step.rename.is_some(),
            step.run.is_some(),
            step.probe.is_some(),
            step.report_certificates.is_some(),
            step.rotate_certificates.is_some(),
            step.collect.is_some(),
        ];
        if kinds.iter().filter(|set| **set).count() != 1 {
            bad(
                "",
                "exactly one of write, fetch, move, run, probe, reportCertificates, rotateCertificates and collect",
            );
        }
        if TRIES < step.tries {
            bad(".tries", "at most 10");
        }
        for path in step.paths() {
            if !is_plain(path) {
                bad("", &format!("{path:?}: an absolute path without . and .."));
            }
        }
        for command in step.commands() {
            let program = command.first().map(String::as_str).unwrap_or_default();
            if !is_plain(program) || WORDS < command.len() || command.iter().any(|word| word.contains('\0')) {
                bad(".command", "an absolute path of a program, and at most 127 arguments");
            }
        }
        for probe in [step.probe.as_ref(), step.run.as_ref().and_then(|run| run.unless.as_ref())].into_iter().flatten()
        {
            if let Err(why) = probe.check() {
                bad(".probe", why);
            }
        }
        if let Some(write) = &step.write
            && !write.sha256.is_empty()
            && write.sha256 != sha256(write.content.as_bytes())
        {
            bad(".write.sha256", "is not that of the content");
        }
    }
    for (n, watch) in probes.iter().enumerate() {
        if !is_label(&watch.name) || watch.every_seconds < 5 {
            wrong.push((format!("spec.probes[{n}]"), "a name, and at least 5 s in between".to_owned()));
        }
        if let Err(why) = watch.probe.check() {
            wrong.push((format!("spec.probes[{n}].probe"), why.to_owned()));
        }
    }
    wrong
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// An absolute path that goes nowhere but down.
pub fn is_plain(path: &str) -> bool {
    let mut parts = path.strip_prefix('/').into_iter().flat_map(|rest| rest.split('/'));
    path.len() <= 4096
        && path.starts_with('/')
        && path.len() > 1
        && !path.contains('\0')
        && parts.all(|part| !matches!(part, "" | "." | ".."))
}

impl Step {
    /// Every path that it writes, moves or reads.
    pub fn paths(&self) -> Vec<&str> {
        let mut all = Vec::new();
        all.extend(self.write.iter().map(|write| write.path.as_str()));
        all.extend(self.fetch.iter().map(|fetch| fetch.path.as_str()));
        all.extend(self.rename.iter().flat_map(|rename| [rename.from.as_str(), rename.to.as_str()]));
        all.extend(self.report_certificates.iter().map(|report| report.dir.as_str()));
        all.extend(self.rotate_certificates.iter().map(|rotate| rotate.dir.as_str()));
        all.extend(self.collect.iter().flat_map(|collect| collect.files.iter().map(String::as_str)));
        all
    }

    /// Every command that it runs.
    pub fn commands(&self) -> Vec<&[String]> {
        let mut all: Vec<&[String]> = self.run.iter().map(|run| run.command.as_slice()).collect();
        all.extend(self.collect.iter().flat_map(|collect| collect.commands.iter().map(Vec::as_slice)));
        all
    }
}

impl Probe {
    fn check(&self) -> Result<(), &'static str> {
        let kinds = [&self.tcp, &self.http, &self.file, &self.closed];
        if kinds.iter().filter(|text| !text.is_empty()).count() != 1 {
            return Err("exactly one of tcp, http, file and closed");
        }
        if !self.http.is_empty() && !self.http.starts_with("http://") {
            return Err("http has to begin with http://");
        }
        if SECONDS < self.within_seconds { Err("at most an hour") } else { Ok(()) }
    }
}

fn message(content: &[u8]) -> Vec<u8> {
    [MAGIC.as_bytes(), b"\n", content].concat()
}

/// Writes a plan, signed with `sign`.
///
/// # Errors
/// What `sign` says.
pub fn seal<E>(plan: &Plan, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>) -> Result<Vec<u8>, E> {
    let content = serde_json::to_vec(plan).unwrap_or_default();
    let signature = URL_SAFE_NO_PAD.encode(sign(&message(&content))?);
    let mut out = format!("{MAGIC} {signature}\n").into_bytes();
    out.extend_from_slice(&content);
    Ok(out)
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
    let malformed = |why: &str| PlanError::Malformed(why.to_owned());
    if MAX_LEN < bytes.len() {
        return Err(malformed("it is too large"));
    }
    let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| malformed("no first line"))?;
    let (line, content) = (bytes.get(..end).unwrap_or_default(), bytes.get(end + 1..).unwrap_or_default());
    let line = std::str::from_utf8(line).map_err(|_| malformed("no first line"))?;
    let signature = line.strip_prefix(MAGIC).and_then(|rest| rest.strip_prefix(' '));
    let signature =
        signature.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).ok_or_else(|| malformed("no signature"))?;
    if !verify(&message(content), &signature) {
        return Err(PlanError::Signature);
    }
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
mod tests {
    use super::*;

    fn write(path: &str) -> Step {
        let write = Write { path: path.to_owned(), content: "x".to_owned(), mode: mode(), sha256: String::new() };
        Step { name: "one".to_owned(), write: Some(write), ..Step::default() }
    }
    fn plan() -> Plan {
        let (name, uid) = ("p".to_owned(), "u".to_owned());
        let (cluster, agent) = ("edge1".to_owned(), "n1".to_owned());
        Plan { name, uid, cluster, agent, issued: 1, expires: 100, steps: vec![write("/a/b")], ..Plan::default() }
    }
    fn sign(message: &[u8]) -> Result<Vec<u8>, ()> {
        Ok(Sha256::digest(message).to_vec())
    }
    fn verify(message: &[u8], signature: &[u8]) -> bool {
        Sha256::digest(message).as_slice() == signature
    }

    #[test]
    fn a_plan_is_for_one_node_until_its_time_and_unaltered() {
        let sealed = seal(&plan(), sign).unwrap();
        assert_eq!(open(&sealed, verify, ("edge1", "n1"), 50), Ok(plan()));
        assert!(matches!(open(&sealed, verify, ("edge1", "n2"), 50), Err(PlanError::Other { .. })));
        assert!(matches!(open(&sealed, verify, ("edge2", "n1"), 50), Err(PlanError::Other { .. })));
        assert_eq!(open(&sealed, verify, ("edge1", "n1"), 107), Err(PlanError::Expired { seconds: 7 }));
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert!(open(&bent, verify, ("edge1", "n1"), 50).is_err(), "byte {at}");
            assert!(open(&sealed[..at], verify, ("edge1", "n1"), 50).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_checksum_is_of_what_is_done_and_not_of_when() {
        let later = Plan { issued: 7, expires: 9, agent: "n2".to_owned(), ..plan() };
        assert_eq!(later.checksum(), plan().checksum());
        assert_ne!(Plan { run: "2".to_owned(), ..plan() }.checksum(), plan().checksum());
        assert_ne!(Plan { steps: vec![write("/a/c")], ..plan() }.checksum(), plan().checksum());
    }

    #[test]
    fn steps_that_cannot_be_are_told() {
        let wrong = |step: Step| !check(&[step], &[]).is_empty();
        assert!(!wrong(write("/a/b")));
        for path in ["a/b", "/", "/a/../b", "/a//b", "/a/.", "/a\0b"] {
            assert!(wrong(write(path)), "{path:?}");
        }
        assert!(wrong(Step { name: "x".to_owned(), ..Step::default() }), "no kind");
        assert!(wrong(Step { probe: Some(Probe::default()), ..write("/a") }), "two kinds");
        assert!(wrong(Step { tries: 11, ..write("/a") }));
        let run = |command: &[&str]| Step {
            name: "x".to_owned(),
            run: Some(Run { command: command.iter().map(|s| (*s).to_owned()).collect(), ..Run::default() }),
            ..Step::default()
        };
        assert!(!wrong(run(&["/bin/true"])) && wrong(run(&["true"])) && wrong(run(&[])));
        assert!(!check(&[write("/a"), write("/b")], &[]).is_empty(), "a name twice");
        let mut sum = write("/a");
        sum.write.as_mut().unwrap().sha256 = "0".repeat(64);
        assert!(wrong(sum));
        let unknown = r#"{"name":"x","format":{"disk":"/dev/sda"}}"#;
        assert!(serde_json::from_str::<Step>(unknown).is_err(), "a kind that is not known is not passed over");
    }
}
