//! Whether steps and probes can be tried at all: looked at where they are written, and again where they are done.

use super::{Probe, Step, Watch, paths::is_plain};
use crate::hex::sha256;

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
        if let Some(path) = watch.probe.path().filter(|path| !is_plain(path)) {
            wrong.push((format!("spec.probes[{n}].probe"), format!("{path:?}: an absolute path without . and ..")));
        }
    }
    wrong
}

fn is_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

impl Step {
    /// Every path that it writes, moves, reads or looks at.
    pub fn paths(&self) -> Vec<&str> {
        let mut all = Vec::new();
        all.extend(self.write.iter().map(|write| write.path.as_str()));
        all.extend(self.fetch.iter().map(|fetch| fetch.path.as_str()));
        all.extend(self.rename.iter().flat_map(|rename| [rename.from.as_str(), rename.to.as_str()]));
        all.extend(self.report_certificates.iter().map(|report| report.dir.as_str()));
        all.extend(self.rotate_certificates.iter().map(|rotate| rotate.dir.as_str()));
        all.extend(self.collect.iter().flat_map(|collect| collect.files.iter().map(String::as_str)));
        let unless = self.run.iter().filter_map(|run| run.unless.as_ref());
        all.extend(self.probe.iter().chain(unless).filter_map(Probe::path));
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
    /// The file or folder that it looks at.
    pub fn path(&self) -> Option<&str> {
        Some(self.file.as_str()).filter(|file| !file.is_empty())
    }

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
