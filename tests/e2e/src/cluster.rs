//! A real control plane, with or without a node, in a network that nothing can dial into or on loopback.

use crate::{cache, process::text, root};
use anyhow::{Context, Result};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// A network namespace that can dial out and that nothing can dial into.
pub struct Network {
    name: String,
    /// This side's address, as the inside sees it.
    pub outside: String,
    /// The inside's address.
    pub inside: String,
}

impl Network {
    /// Makes one; `number` is the third byte of its addresses.
    ///
    /// # Errors
    /// Without root, or when the name is taken.
    pub fn up(name: &str, number: u8) -> Result<Self> {
        text(Command::new(root().join("tests/kube/netns.sh")).args(["up", name, &number.to_string()]))?;
        Ok(Self { name: name.into(), outside: format!("10.231.{number}.1"), inside: format!("10.231.{number}.2") })
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = text(Command::new(root().join("tests/kube/netns.sh")).args(["down", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}

/// A running control plane.
pub struct Cluster {
    /// Its folder: `kubeconfig`, `pki/`, `log/audit.log`.
    pub dir: PathBuf,
    /// The API server's port on the inside's loopback.
    pub port: u16,
    network: Option<Network>,
    _temporary: tempfile::TempDir,
}

impl Cluster {
    /// Starts one. `offset` tells its ports from other clusters'.
    ///
    /// # Errors
    /// When a part does not come up; the message has its log's end.
    pub fn start(offset: u16, node: bool, network: Option<Network>) -> Result<Self> {
        Self::start_with(offset, node, network, &[])
    }

    /// The same with more arguments for its API server.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_with(offset: u16, node: bool, network: Option<Network>, api_server: &[String]) -> Result<Self> {
        // Unix sockets below the folder need a short path.
        let temporary = tempfile::Builder::new().prefix("mlkube").tempdir_in("/tmp")?;
        let mut command = match &network {
            Some(network) => network.command(root().join("tests/kube/up.sh")),
            None => Command::new(root().join("tests/kube/up.sh")),
        };
        command.arg("--bin").arg(cache().join("kube/bin")).arg("--dir").arg(temporary.path());
        command.args(["--offset", &offset.to_string()]);
        if node {
            command.arg("--node");
        }
        for argument in api_server {
            command.args(["--apiserver-arg", argument]);
        }
        text(&mut command)?;
        Ok(Self { dir: temporary.path().to_owned(), port: 16443 + offset, network, _temporary: temporary })
    }

    /// Scripts in `dir` that end these of its processes at once, as a power cut does, and begin them again as they were, the
    /// last of them first. They are to be run in the cluster's own network.
    ///
    /// # Errors
    /// When one of them does not run, or a script cannot be written.
    pub fn scripts(&self, names: &[&str], dir: &Path) -> Result<(String, String)> {
        let pids = self.dir.join("pids");
        let listed = fs::read_to_string(&pids)?;
        let (mut stop, mut start) = (String::from("#!/bin/sh\n"), String::new());
        for name in names {
            let mut lines = listed.lines().filter(|line| line.starts_with(&format!("{name} ")));
            let pid =
                lines.next_back().and_then(|line| line.split(' ').nth(1)).with_context(|| format!("no {name}"))?;
            let words = fs::read(format!("/proc/{pid}/cmdline"))?;
            let words = words.strip_suffix(b"\0").context("words")?.split(|b| *b == 0);
            let words: Vec<String> = words.map(|word| format!("'{}'", String::from_utf8_lossy(word))).collect();
            let (here, pids, words) = (self.dir.display(), pids.display(), words.join(" "));
            stop.push_str(&format!(
                "pid=$(awk '$1 == \"{name}\" {{ print $2 }}' {pids} | tail -n1); kill -9 $pid; while kill -0 $pid 2>/dev/null && ! grep -q '^State:.Z' /proc/$pid/status; do sleep 0.1; done\n"
            ));
            start.insert_str(0, &format!(
                "cd {here}; setsid {words} >>log/{name}.log 2>&1 </dev/null & pid=$!; s=$(cat /proc/$pid/stat); set -- ${{s##*) }}; echo \"{name} $pid ${{20}}\" >>{pids}\n"
            ));
        }
        let put = |what: &str, text: String| -> Result<String> {
            let path = dir.join(format!("{what}-{}", names.join("-")));
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            Ok(path.display().to_string())
        };
        Ok((put("stop", stop)?, put("start", format!("#!/bin/sh\n{start}"))?))
    }

    /// A command in the cluster's own network.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match &self.network {
            Some(network) => network.command(program),
            None => Command::new(program),
        }
    }

    /// Its network, where it has one of its own.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// The cluster administrator's kubeconfig, good inside its network.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// The API server's own audit log: who it saw.
    pub fn audit(&self) -> String {
        std::fs::read_to_string(self.dir.join("log/audit.log")).unwrap_or_default()
    }

    /// Runs kubectl as the cluster's administrator, from inside.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn admin(&self, args: &[&str]) -> Result<String> {
        text(self.command(crate::moorline::kubectl()).arg("--kubeconfig").arg(self.kubeconfig()).args(args))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut stop = Command::new(root().join("tests/kube/up.sh"));
        if let Err(error) = text(stop.arg("--stop").arg("--dir").arg(&self.dir)) {
            eprintln!("{error:#}");
        }
    }
}
