//! The plans that come with the program: steps that everybody needs and nobody should have to write.

use super::Target;
use crate::failure::usage;
use moorline_authz::plan;
use serde_json::{Value, json};

/// How etcd is reached, and by which program.
#[derive(Debug, clap::Args)]
pub struct Etcd {
    /// etcd's address on the node
    #[arg(long, value_name = "URL", default_value = "https://127.0.0.1:2379")]
    endpoint: String,
    /// etcd's certificates on the node, for https
    #[arg(long, value_name = "DIR", default_value = "/etc/kubernetes/pki/etcd")]
    pki: String,
    /// etcdctl on the node
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/etcdctl")]
    etcdctl: String,
}

impl Etcd {
    /// `etcdctl` with the words that say where etcd is.
    fn command(&self, words: &[&str]) -> Vec<String> {
        let mut all = vec![self.etcdctl.clone(), format!("--endpoints={}", self.endpoint)];
        if self.endpoint.starts_with("https://") {
            let pki = self.pki.trim_end_matches('/');
            all.push(format!("--cacert={pki}/ca.crt"));
            all.push(format!("--cert={pki}/server.crt"));
            all.push(format!("--key={pki}/server.key"));
        }
        all.extend(words.iter().map(|word| (*word).to_owned()));
        all
    }

    /// `HOST:PORT`.
    fn address(&self) -> &str {
        self.endpoint.split_once("://").map_or(self.endpoint.as_str(), |(_, address)| address).trim_end_matches('/')
    }
}

/// `moorline plan etcd-save`
#[derive(Debug, clap::Args)]
pub struct SaveArgs {
    #[command(flatten)]
    pub target: Target,
    /// The snapshot on the node
    #[arg(long, value_name = "FILE")]
    to: String,
    #[command(flatten)]
    etcd: Etcd,
}

impl SaveArgs {
    /// Saved under another name first: what is there under the one that was asked for is whole.
    pub fn steps(&self) -> Vec<Value> {
        let part = format!("{}.part", self.to);
        vec![
            json!({ "name": "save", "tries": 3, "run": { "command": self.etcd.command(&["snapshot", "save", &part]), "timeoutSeconds": 600 } }),
            json!({ "name": "check", "run": { "command": [self.etcd.etcdctl, "snapshot", "status", part, "-w", "table"] } }),
            json!({ "name": "keep", "move": { "from": part, "to": self.to, "replace": true } }),
        ]
    }
}

/// `moorline plan etcd-restore`
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    pub target: Target,
    /// The snapshot on the node
    #[arg(long, value_name = "FILE")]
    from: String,
    /// etcd's data folder
    #[arg(long, value_name = "DIR", default_value = "/var/lib/etcd")]
    data_dir: String,
    /// What stops API server and etcd: a program with its arguments [default: their manifests are taken away]
    #[arg(long, value_name = "COMMAND", requires = "start")]
    stop: Option<String>,
    /// What starts them [default: their manifests are put back]
    #[arg(long, value_name = "COMMAND", requires = "stop")]
    start: Option<String>,
    /// kubeadm's manifests
    #[arg(long, value_name = "DIR", default_value = "/etc/kubernetes/manifests")]
    manifests: String,
    /// Name of the member
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    /// Where other members reach it [default: etcdctl's own]
    #[arg(long, value_name = "URL", requires = "member")]
    peer_url: Option<String>,
    #[command(flatten)]
    etcd: Etcd,
}

impl RestoreArgs {
    pub fn steps(&self) -> anyhow::Result<Vec<Value>> {
        let data = self.data_dir.trim_end_matches('/');
        let stamp = jiff::Timestamp::now().as_second();
        let new = format!("{data}.restored-{stamp}");
        let mut restore = vec![self.etcd.etcdctl.clone(), "snapshot".into(), "restore".into(), self.from.clone()];
        // A folder that was not unpacked to its end never has the name that is put in place.
        let part = format!("{new}.part");
        restore.push(format!("--data-dir={part}"));
        if let (Some(member), peer) = (&self.member, &self.peer_url) {
            restore.push(format!("--name={member}"));
            if let Some(peer) = peer {
                restore.push(format!("--initial-advertise-peer-urls={peer}"));
                restore.push(format!("--initial-cluster={member}={peer}"));
            }
        }
        // The new folder is made while the old one still serves: a snapshot that is none harms nobody.
        let mut steps = vec![
            json!({ "name": "unpack", "run": { "command": restore, "timeoutSeconds": 1800, "unless": { "file": format!("{new}/member") } } }),
            json!({ "name": "unpacked", "move": { "from": part, "to": new } }),
        ];
        match (&self.stop, &self.start) {
            (Some(stop), Some(start)) => {
                steps.push(json!({ "name": "stop", "tries": 3, "run": { "command": words(stop)? } }));
                steps.push(self.stopped());
                steps.extend(swap(data, &new, stamp));
                steps.push(json!({ "name": "start", "tries": 3, "run": { "command": words(start)? } }));
            }
            _ => {
                let manifests = self.manifests.trim_end_matches('/');
                let away = |name: &str, back: bool| {
                    let (there, kept) =
                        (format!("{manifests}/{name}.yaml"), format!("{manifests}.moorline-{stamp}.{name}.yaml"));
                    let (from, to) = if back { (kept, there) } else { (there, kept) };
                    let verb = if back { "start" } else { "stop" };
                    json!({ "name": format!("{verb}-{name}"), "move": { "from": from, "to": to } })
                };
                steps.push(away("kube-apiserver", false));
                steps.push(away("etcd", false));
                steps.push(self.stopped());
                steps.extend(swap(data, &new, stamp));
                steps.push(away("etcd", true));
                steps.push(away("kube-apiserver", true));
            }
        }
        steps.push(
            json!({ "name": "healthy", "tries": 3, "probe": { "tcp": self.etcd.address(), "withinSeconds": 300 } }),
        );
        Ok(steps)
    }

    fn stopped(&self) -> Value {
        json!({ "name": "stopped", "probe": { "closed": self.etcd.address(), "withinSeconds": 180 } })
    }
}

/// The restored folder takes the place of the old one, which is kept.
fn swap(data: &str, new: &str, stamp: i64) -> [Value; 2] {
    [
        json!({ "name": "keep-old", "move": { "from": data, "to": format!("{data}.before-{stamp}") } }),
        json!({ "name": "put-new", "move": { "from": new, "to": data } }),
    ]
}

/// `moorline plan certificates`
#[derive(Debug, clap::Args)]
pub struct CertificatesArgs {
    #[command(flatten)]
    pub target: Target,
    /// The folder of the certificates on the node; those in kubeconfig files beside one that is called pki count too
    #[arg(long, value_name = "DIR", default_value = "/etc/kubernetes/pki")]
    dir: String,
    /// Make certificates anew, for the same keys and by the authorities in the folder
    #[arg(long)]
    rotate: bool,
    /// With --rotate: only those that end within so many days; 0: all
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    within_days: u32,
    /// With --rotate: how long the new ones are good
    #[arg(long, value_name = "DAYS", default_value_t = 365)]
    days: u32,
    /// With --rotate: restart the control plane's static pods, one after the other, so that they read the new certificates
    #[arg(long, requires = "rotate")]
    restart: bool,
    /// With --restart: a static pod and where it answers; can be repeated [default: kubeadm's four]
    #[arg(long, value_name = "NAME=ADDRESS", requires = "restart")]
    pod: Vec<String>,
    /// kubeadm's manifests
    #[arg(long, value_name = "DIR", default_value = "/etc/kubernetes/manifests")]
    manifests: String,
}

/// What kubeadm runs as static pods, and where each answers on its node: etcd first, for the API server needs it.
const STATIC_PODS: [&str; 4] = [
    "etcd=127.0.0.1:2379",
    "kube-apiserver=127.0.0.1:6443",
    "kube-controller-manager=127.0.0.1:10257",
    "kube-scheduler=127.0.0.1:10259",
];

impl CertificatesArgs {
    /// A manifest that is taken away ends its pod, and one that is put back makes it anew.
    fn restarts(&self) -> anyhow::Result<Vec<Value>> {
        let named = self.pod.iter().map(String::as_str);
        let pods: Vec<&str> = if self.pod.is_empty() { STATIC_PODS.to_vec() } else { named.collect() };
        let (manifests, stamp) = (self.manifests.trim_end_matches('/'), jiff::Timestamp::now().as_second());
        let mut steps = Vec::new();
        for pod in pods {
            let Some((name, address)) = pod.split_once('=').filter(|(name, _)| !name.is_empty() && !name.contains('/'))
            else {
                return Err(usage(format!("{pod:?} is not NAME=ADDRESS"), "such as etcd=127.0.0.1:2379"));
            };
            let (there, kept) =
                (format!("{manifests}/{name}.yaml"), format!("{manifests}.moorline-{stamp}.{name}.yaml"));
            steps.extend([
                json!({ "name": format!("stop-{name}"), "move": { "from": there, "to": kept } }),
                json!({ "name": format!("{name}-stopped"), "probe": { "closed": address, "withinSeconds": 180 } }),
                json!({ "name": format!("start-{name}"), "move": { "from": kept, "to": there } }),
                json!({ "name": format!("{name}-answers"), "tries": 3, "probe": { "tcp": address, "withinSeconds": 300 } }),
            ]);
        }
        Ok(steps)
    }

    pub fn steps(&self) -> anyhow::Result<Vec<Value>> {
        let mut steps = Vec::new();
        if self.rotate {
            let wish = json!({ "dir": self.dir, "withinDays": self.within_days, "days": self.days });
            steps.push(json!({ "name": "rotate", "rotateCertificates": wish }));
        }
        if self.restart {
            steps.extend(self.restarts()?);
        }
        steps.push(json!({ "name": "report", "reportCertificates": { "dir": self.dir } }));
        Ok(steps)
    }
}

/// `moorline plan support-bundle`
#[derive(Debug, clap::Args)]
pub struct SupportArgs {
    #[command(flatten)]
    pub target: Target,
    /// A file on the node, of which the last 4 MiB are taken; can be repeated
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<String>,
    /// A program with its arguments; can be repeated
    #[arg(long = "command", value_name = "COMMAND")]
    commands: Vec<String>,
}

impl SupportArgs {
    pub fn steps(&self) -> anyhow::Result<Vec<Value>> {
        let commands = self.commands.iter().map(|command| words(command)).collect::<Result<Vec<_>, _>>()?;
        Ok(vec![json!({ "name": "bundle", "collect": { "files": self.files, "commands": commands } })])
    }
}

/// A command line's words: no shell reads them, so quotes have no meaning.
fn words(command: &str) -> anyhow::Result<Vec<String>> {
    let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    if words.first().is_some_and(|program| plan::is_plain(program)) {
        Ok(words)
    } else {
        Err(usage(
            format!("{command:?} does not begin with a program's absolute path"),
            "such as '/usr/bin/journalctl -n 100', or 'C:/tools/report.exe' on Windows",
        ))
    }
}
