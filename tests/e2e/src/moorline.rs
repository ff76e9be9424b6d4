//! Hub, agents and users, as their own processes and folders.

use crate::{
    binary,
    cluster::Cluster,
    process::{Process, eventually, run, text},
};
use anyhow::{Context, Result, ensure};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The kubectl that the tests use: `KUBECTL`, or the one that `tests/deps.sh` fetched.
pub fn kubectl() -> PathBuf {
    std::env::var_os("KUBECTL").map_or_else(|| crate::cache().join("kubectl/kubectl"), PathBuf::from)
}

/// A kubectl 1.32, which people have kept: `KUBECTL_OLDER`, or the one that `tests/deps.sh` fetched.
pub fn kubectl_older() -> PathBuf {
    std::env::var_os("KUBECTL_OLDER").map_or_else(|| crate::cache().join("kubectl/kubectl-1.32"), PathBuf::from)
}

/// What stands behind the names of services by host name.
pub const SERVICES: &str = "services.test";

/// A hub in a folder of its own.
pub struct Hub {
    /// Its folder; the hub's data is in `hub/`.
    pub dir: PathBuf,
    /// Its HTTPS and QUIC port.
    pub port: u16,
    /// Its port for metrics and health, on loopback.
    pub ops: u16,
    names: Vec<String>,
    /// More flags, from its next start on.
    pub more: Vec<String>,
    /// Its process; `None` while it is down.
    pub process: Option<Process>,
}

impl Hub {
    /// Starts a hub that serves under `names` and logs its administrator in.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(dir: &Path, port: u16, names: &[&str]) -> Result<Self> {
        let names = names.iter().map(ToString::to_string).collect();
        let mut hub = Self { dir: dir.to_owned(), port, ops: port + 1000, names, more: Vec::new(), process: None };
        hub.restart()?;
        let password = std::fs::read(hub.data().join("admin.password"))?;
        hub.login("admin", &password)?;
        Ok(hub)
    }

    /// Starts the process (again) and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart(&mut self) -> Result<()> {
        self.process = None;
        let mut command = Command::new(binary());
        command.arg("hub").arg("--data-dir").arg(self.data());
        command.args(["--listen", &format!("0.0.0.0:{}", self.port)]);
        command.args(["--ops-listen", &format!("127.0.0.1:{}", self.ops)]);
        for name in &self.names {
            command.args(["--name", name]);
        }
        let public = self.names.first().context("a hub needs a name")?;
        command.args(["--public-url", &format!("https://{public}:{}", self.port)]);
        command.args(["--services-domain", SERVICES]);
        command.args(&self.more);
        self.process = Some(Process::spawn(command, &self.dir.join("hub.log"))?);
        self.wait_ready()
    }

    fn wait_ready(&self) -> Result<()> {
        eventually("ready hub", Duration::from_secs(30), || self.ops("/readyz").map(drop))
            .with_context(|| std::fs::read_to_string(self.dir.join("hub.log")).unwrap_or_default())
    }

    /// The hub's data folder.
    pub fn data(&self) -> PathBuf {
        self.dir.join("hub")
    }

    /// What a path of the ops listener answers.
    ///
    /// # Errors
    /// When the answer is no success.
    pub fn ops(&self, path: &str) -> Result<String> {
        text(Command::new("curl").args(["-sf", "--max-time", "5", &format!("http://127.0.0.1:{}{path}", self.ops)]))
    }

    /// The sum of a metric's series whose line contains all of `labels`.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let page = self.ops("/metrics")?;
        let mine = page.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        Ok(mine.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Where users reach it from this side.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The command line of `user`, whose configuration is a folder of its own.
    pub fn cli(&self, user: &str) -> Command {
        let mut command = Command::new(binary());
        command.env("XDG_CONFIG_HOME", self.dir.join("users").join(user)).env("NO_COLOR", "1");
        command
    }

    /// Runs `moorline` as `user`.
    ///
    /// # Errors
    /// When it fails.
    pub fn moorline(&self, user: &str, args: &[&str]) -> Result<String> {
        text(self.cli(user).args(args))
    }

    /// Logs `user` in with a password.
    ///
    /// # Errors
    /// When the hub refuses.
    pub fn login(&self, user: &str, password: &[u8]) -> Result<()> {
        let ca = self.data().join("ca.crt");
        let mut command = self.cli(user);
        command.args(["login", &self.url(), "--user", user, "--password-stdin", "--ca-file"]).arg(ca);
        let output = run(&mut command, password)?;
        ensure!(output.status.success(), "login of {user}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Makes a user and logs it in.
    ///
    /// # Errors
    /// When the hub refuses.
    pub fn add_user(&self, user: &str, clusters: &[&str]) -> Result<()> {
        let password = format!("pw-of-{user}-123456");
        let mut create = self.cli("admin");
        let output = run(create.args(["user", "create", user, "--password-stdin"]), password.as_bytes())?;
        ensure!(output.status.success(), "creating {user}: {}", String::from_utf8_lossy(&output.stderr));
        for cluster in clusters {
            let name = format!("{user}-{cluster}");
            self.moorline("admin", &["grant", "create", &name, "--user", user, "--cluster", cluster])?;
        }
        self.login(user, password.as_bytes())
    }

    /// Writes a kubeconfig of `user` for `cluster` and gives its path.
    ///
    /// A kubectl that was started a moment ago may be reading the one from before: it finds that, or this, and never
    /// half of one.
    ///
    /// # Errors
    /// When the hub refuses.
    pub fn kubeconfig(&self, user: &str, cluster: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("{user}-{cluster}.kubeconfig"));
        let whole = path.with_extension("written");
        std::fs::write(&whole, self.moorline(user, &["kubeconfig", cluster, "--static"])?)?;
        std::fs::rename(whole, &path)?;
        Ok(path)
    }

    /// The join command for `cluster`, as words.
    ///
    /// # Errors
    /// When the hub refuses.
    pub fn join_command(&self, cluster: &str) -> Result<Vec<String>> {
        let line = self.moorline("admin", &["token", "create", "--cluster", cluster])?;
        Ok(line.split_whitespace().map(str::to_owned).collect())
    }

    /// The `Connected` condition's status of a cluster.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub fn connected(&self, cluster: &str) -> Result<bool> {
        let json = self.moorline("admin", &["clusters", cluster, "-o", "json"])?;
        let object: serde_json::Value = serde_json::from_str(&json)?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.iter().any(|c| c["type"] == "Connected" && c["status"] == "True"))
    }

    /// Waits until `cluster` is connected.
    ///
    /// # Errors
    /// When it is not within `limit`.
    pub fn wait_connected(&self, cluster: &str, limit: Duration) -> Result<()> {
        eventually("connected cluster", limit, || {
            ensure!(self.connected(cluster)?, "{cluster} is not connected");
            Ok(())
        })
    }
}

/// An agent process beside its cluster.
pub struct Agent {
    /// Its process.
    pub process: Process,
    /// Its state folder.
    pub state: PathBuf,
}

impl Agent {
    /// Starts an agent inside the cluster's network from the words of a join command.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(cluster: &Cluster, join: &[String], state: &Path, more: &[&str]) -> Result<Self> {
        let mut command = cluster.command(binary());
        command.args(join.iter().skip(1)).arg("--state-dir").arg(state);
        command.arg("--kubeconfig").arg(cluster.kubeconfig()).args(more);
        let log = state.with_extension("log");
        Ok(Self { process: Process::spawn(command, &log)?, state: state.to_owned() })
    }

    /// How often those that had this state folder have connected.
    pub fn connections(state: &Path) -> usize {
        let log = std::fs::read_to_string(state.with_extension("log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(" connected ")).count()
    }

    /// Waits until it has connected, where those before it have so often: the hub may still speak of the last one.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub fn connected(&self, before: usize) -> Result<()> {
        eventually("an agent that connects", Duration::from_secs(60), || {
            ensure!(before < Self::connections(&self.state), "{}", self.process.log());
            Ok(())
        })
    }
}
