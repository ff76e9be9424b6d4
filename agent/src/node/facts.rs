//! Facts of the node: what Kubernetes says of it, what is left of memory and disk, when its certificates end, and
//! whether API server and etcd answer from here.

use super::{
    HubClock, Settings,
    kubeconfigs::{self, Embedded, is_kubeconfig},
    probe,
};
use crate::{facts::Facts, limits};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is read of a Kubernetes `Node`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct NodeObject {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    status: Status,
}
#[derive(Debug, Clone, Default, Deserialize)]
struct Meta {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    node_info: Info,
    conditions: Vec<Condition>,
}
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    os_image: String,
    operating_system: String,
    architecture: String,
    kernel_version: String,
    kubelet_version: String,
    container_runtime_version: String,
}
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
    reason: String,
}

impl NodeObject {
    /// What it says, as facts.
    pub fn facts(&self, facts: &mut Facts) {
        let mut put = |key: &str, text: &str| {
            if !text.is_empty() {
                facts.push((key.to_owned(), one_line(text, limits::NODE_FACT)));
            }
        };
        let Info {
            os_image,
            operating_system,
            architecture,
            kernel_version,
            kubelet_version,
            container_runtime_version,
        } = &self.status.node_info;
        put("node.osImage", os_image);
        put("node.os", operating_system);
        put("node.arch", architecture);
        put("node.kernel", kernel_version);
        put("node.kubelet", kubelet_version);
        put("node.runtime", container_runtime_version);
        if let Some(zone) = self.metadata.labels.get("topology.kubernetes.io/zone") {
            put("zone", zone);
        }
        let roles = self.metadata.labels.keys().filter_map(|l| l.strip_prefix("node-role.kubernetes.io/"));
        put("node.roles", &roles.collect::<Vec<_>>().join(","));
        for condition in &self.status.conditions {
            let is = condition.status == "True";
            match condition.r#type.as_str() {
                "Ready" if is => put("node.ready", "ok"),
                "Ready" => put("node.ready", &format!("{}: {}", condition.status, condition.reason)),
                "MemoryPressure" if is => put("node.memoryPressure", "true"),
                "DiskPressure" if is => put("node.diskPressure", "true"),
                _ => {}
            }
        }
    }
}

/// Looks at the node itself.
pub struct NodeLooker {
    settings: Settings,
    clock: Arc<HubClock>,
    /// The folder whose file system has to have room: the agent's own.
    state_dir: PathBuf,
}

impl NodeLooker {
    /// Looks at what `settings` name.
    pub fn new(settings: Settings, clock: Arc<HubClock>, state_dir: PathBuf) -> Self {
        Self { settings, clock, state_dir }
    }

    /// What is seen from here, without asking Kubernetes.
    pub async fn facts(&self, facts: &mut Facts) {
        if let Some(ms) = self.clock.skew_ms() {
            facts.push(("node.skewMs".to_owned(), ms.to_string()));
        }
        let (settings, state_dir) = (self.settings.clone(), self.state_dir.clone());
        let local = tokio::task::spawn_blocking(move || {
            let mut local = Facts::new();
            resources(&state_dir, &mut local);
            let beside: Vec<PathBuf> = settings.pki_dirs.iter().flat_map(|dir| kubeconfigs::beside(dir)).collect();
            for (until, name) in certificates(&settings.pki_dirs, &beside) {
                local.push((format!("node.cert.{name}"), until.to_string()));
            }
            local
        });
        facts.extend(local.await.unwrap_or_default());
        if let Some(etcd) = self.etcd() {
            let said =
                tokio::time::timeout(limits::NODE_PROBE, probe::etcd(&etcd, self.settings.pki_dirs.first())).await;
            let said = said.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            let said = said.map_or_else(|cause| format!("{etcd}: {cause}"), |()| "ok".to_owned());
            facts.push(("node.etcd".to_owned(), one_line(&said, limits::NODE_CAUSE)));
        }
    }

    fn etcd(&self) -> Option<String> {
        let usual = || {
            let certificate = self.settings.pki_dirs.first()?.join("etcd/server.crt");
            certificate.exists().then(|| "https://127.0.0.1:2379".to_owned())
        };
        self.settings.etcd.clone().or_else(usual)
    }
}

/// One line of text, cut.
pub(crate) fn one_line(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

/// Percent in tenths of the whole: what moves a little is no news.
fn share(part: u64, whole: u64) -> Option<u64> {
    let percent = part.saturating_mul(100).checked_div(whole)?.min(100);
    // Near the bottom each percent counts.
    Some(if percent < 20 { percent } else { percent / 10 * 10 })
}

fn resources(state_dir: &Path, facts: &mut Facts) {
    if let Some(percent) = memory().and_then(|(available, total)| share(available, total)) {
        facts.push(("node.memory".to_owned(), percent.to_string()));
    }
    if let Some(percent) = disk(state_dir) {
        facts.push(("node.disk".to_owned(), percent.to_string()));
    }
}

#[cfg(windows)]
fn memory() -> Option<(u64, u64)> {
    moorline_windows::memory().ok()
}
#[cfg(not(windows))]
fn memory() -> Option<(u64, u64)> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((field("MemAvailable")?, field("MemTotal")?))
}

#[cfg(unix)]
fn disk(dir: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(dir).ok()?;
    share(space.f_bavail, space.f_blocks)
}
#[cfg(windows)]
fn disk(dir: &Path) -> Option<u64> {
    let (left, all) = moorline_windows::disk(dir).ok()?;
    share(left, all)
}
#[cfg(not(any(unix, windows)))]
fn disk(_: &Path) -> Option<u64> {
    None
}

/// Ends of the certificates below these folders and in these kubeconfig files, in seconds since 1970, the first to end
/// first.
pub(super) fn certificates(dirs: &[PathBuf], kubeconfigs: &[PathBuf]) -> Vec<(u64, String)> {
    let mut found: Vec<(u64, String)> = kubeconfigs.iter().filter_map(|path| Some((ends(path)?, name(path)))).collect();
    let mut left = limits::NODE_FILES;
    for dir in dirs {
        look_for_certificates(dir, dir, 1, &mut left, &mut found);
    }
    found.sort();
    found.truncate(limits::NODE_CERTIFICATES);
    found
}

fn look_for_certificates(top: &Path, dir: &Path, deeper: u32, left: &mut usize, found: &mut Vec<(u64, String)>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Some(fewer) = left.checked_sub(1) else { return };
        *left = fewer;
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir && deeper > 0 {
            look_for_certificates(top, &path, deeper - 1, left, found);
        } else if path.extension().is_some_and(|e| e == "crt" || e == "pem")
            && let Some(until) = ends(&path)
        {
            let name = path.strip_prefix(top).unwrap_or(&path).display().to_string();
            found.push((until, one_line(&name, limits::NODE_NAME)));
        }
    }
}

/// What a kubeconfig file is called.
fn name(path: &Path) -> String {
    one_line(&path.file_name().unwrap_or_default().to_string_lossy(), limits::NODE_NAME)
}

/// When a file's first certificate ends, or that of a kubeconfig's user.
pub(super) fn ends(path: &Path) -> Option<u64> {
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    let text = match is_kubeconfig(path) {
        true => Embedded::read(path)?.certificate,
        false => crate::state::read_text(path).ok()?,
    };
    let der = CertificateDer::from_pem_slice(text.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    u64::try_from(certificate.validity().not_after.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_object_becomes_facts() {
        let node = serde_json::json!({
            "metadata": { "labels": { "node-role.kubernetes.io/control-plane": "", "topology.kubernetes.io/zone": "a" } },
            "status": {
                "nodeInfo": { "osImage": "Debian", "kubeletVersion": "v1.33.4\n", "architecture": "arm64" },
                "conditions": [
                    { "type": "Ready", "status": "False", "reason": "KubeletNotReady" },
                    { "type": "DiskPressure", "status": "True" }, { "type": "MemoryPressure", "status": "False" },
                ],
            },
        });
        let mut facts = Facts::new();
        serde_json::from_value::<NodeObject>(node).unwrap().facts(&mut facts);
        let found: BTreeMap<_, _> = facts.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found["node.ready"], "False: KubeletNotReady");
        assert_eq!((found["node.kubelet"], found["node.roles"], found["zone"]), ("v1.33.4", "control-plane", "a"));
        assert_eq!(found.get("node.diskPressure"), Some(&"true"));
        assert_eq!(found.get("node.memoryPressure"), None);
    }

    #[test]
    fn certificates_are_found_and_what_is_none_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etcd/deep")).unwrap();
        let make = |name: &str, year: i32| {
            let mut params = rcgen::CertificateParams::default();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            fs::write(dir.path().join(name), params.self_signed(&key).unwrap().pem()).unwrap();
        };
        make("apiserver.crt", 2031);
        make("etcd/server.crt", 2030);
        make("etcd/deep/ignored.crt", 2020);
        make("apiserver.key", 2019);
        fs::write(dir.path().join("broken.crt"), "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
        let found = certificates(&[dir.path().to_owned(), "/nowhere".into()], &[]);
        let names: Vec<&str> = found.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["etcd/server.crt", "apiserver.crt"]);
        assert_eq!(found[0].0, 1_893_456_000, "2030-01-01");
    }

    #[test]
    fn small_moves_are_no_news() {
        assert_eq!(share(57, 100), Some(50));
        assert_eq!(share(9, 100), Some(9));
        assert_eq!(share(1, 0), None);
    }
}
