//! A real control plane, with or without a node, in a network that nothing can dial into or on loopback.

use crate::{cache, process::text, root};
use anyhow::Result;
use std::{path::PathBuf, process::Command};

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
