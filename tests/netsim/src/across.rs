//! The real hub and the real agent, each a process of its own, with a bad network between them.

use crate::{
    LONG, api,
    client::{Admin, CLUSTER},
    emulator::{Link, Way},
};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    binary,
    process::{Process, run},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

/// Where the API server listens on the agent's side.
const API: u16 = 6443;
/// Where the agent says how it is.
const AGENT_OPS: u16 = 9444;

/// The scene: a hub here, an agent and its API server on the other side of a [`Link`].
pub struct Across {
    /// What is between them.
    pub link: Link,
    /// The hub's administrator, who is on the hub's side of the link.
    pub admin: Admin,
    /// The agent.
    pub agent: Process,
    /// The hub.
    pub hub: Process,
    kubeconfig: PathBuf,
    ops: u16,
    /// Bytes of the disk that the hub's folder is on, if it is one of its own.
    disk: Option<u64>,
    dir: TempDir,
    _api: AbortOnDropHandle<()>,
}

/// Another place of the cluster's: a link of its own to the hub, and an API server at its far end.
pub struct Elsewhere {
    /// What is between it and the hub.
    pub link: Link,
    kubeconfig: PathBuf,
    _api: AbortOnDropHandle<()>,
}

impl Across {
    /// Starts both and waits until the cluster is connected. `carrier`: as of `moorline agent --carrier`.
    ///
    /// # Errors
    /// Anything that does not work.
    pub async fn on(carrier: &str) -> Result<Self> {
        Self::over(Link::make()?, carrier).await
    }

    /// The same over a link that is bad from the start.
    ///
    /// # Errors
    /// Anything that does not work.
    pub async fn over(link: Link, carrier: &str) -> Result<Self> {
        Self::start(link, carrier, None).await
    }

    /// The same with a hub whose folder is on a disk of so many bytes. It is in memory and ends with the hub.
    ///
    /// # Errors
    /// Anything that does not work.
    pub async fn on_a_disk_of(bytes: u64, carrier: &str) -> Result<Self> {
        Self::start(Link::make()?, carrier, Some(bytes)).await
    }

    async fn start(link: Link, carrier: &str, disk: Option<u64>) -> Result<Self> {
        ensure!(binary().exists(), "{} is missing: cargo build -p moorline-cli", binary().display());
        let dir = tempfile::tempdir()?;
        let (port, ops) = (free_port()?, free_port()?);
        let hub = Process::spawn(hub_command(&dir, &link, port, ops, disk)?, &dir.path().join("hub.log"))?;
        let data = data_of(&hub, &dir);
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let ready = async {
            while ask(ops, "/readyz").await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(LONG, ready).await.with_context(|| format!("the hub is not ready: {}", hub.log()))?;
        let admin = Admin::of(&data, at)?;
        admin.make("clusters", "Cluster", json!({ "name": CLUSTER }), json!({})).await?;
        let token = admin.join_token().await?;

        let (kubeconfig, api) = api_at(&link, dir.path())?;
        let mut command = link.inside.command(binary());
        command.args(["agent", "--name", "a1", "--carrier", carrier, "--token", &token]);
        command.args(["--hub", &format!("https://{}:{port}", link.subnet.host(1))]);
        command.arg("--state-dir").arg(dir.path().join("agent")).arg("--kubeconfig").arg(&kubeconfig);
        command.args(["--http-listen", &format!("127.0.0.1:{AGENT_OPS}")]);
        let agent = Process::spawn(command, &dir.path().join("agent.log"))?;
        let scene = Self { link, admin, agent, hub, kubeconfig, ops, disk, dir, _api: api };
        scene.answers_within(LONG).await.with_context(|| format!("{}\n{}", scene.hub.log(), scene.agent.log()))?;
        Ok(scene)
    }

    /// Runs one more agent of the cluster on the far side, which looks for the hub at `host`, and waits for nothing.
    /// `names`: what its `/etc/hosts` says, at first and later; without it the machine's own is used.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn one_more(&self, name: &str, carrier: &str, host: &str, names: Option<&Path>) -> Result<Process> {
        let token = self.admin.join_token().await?;
        let mut command = match names {
            None => self.link.inside.command(binary()),
            Some(names) => {
                // Its own view of two files, and nobody to ask for names but the first.
                let nobody = self.dir.path().join("resolv.conf");
                std::fs::write(&nobody, "")?;
                let mut command = self.link.inside.command("unshare");
                let script =
                    "mount --bind \"$1\" /etc/hosts && mount --bind \"$2\" /etc/resolv.conf && shift 2 && exec \"$@\"";
                command.args(["--mount", "sh", "-c", script, "sh"]).arg(names).arg(nobody).arg(binary());
                command
            }
        };
        command.args(["agent", "--name", name, "--carrier", carrier, "--token", &token]);
        command.args(["--hub", &format!("https://{host}:{}", self.admin.hub.port()), "--http-listen", "127.0.0.1:0"]);
        command.arg("--state-dir").arg(self.dir.path().join(name)).arg("--kubeconfig").arg(&self.kubeconfig);
        Process::spawn(command, &self.dir.path().join(format!("{name}.log")))
    }

    /// Runs an agent again that has joined before, from the folder `state`, with what its owner left in its configuration.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn again(&self, (name, state): (&str, &str), carrier: &str, token: &str, log: &str) -> Result<Process> {
        let mut command = self.link.inside.command(binary());
        command.args(["agent", "--name", name, "--carrier", carrier, "--token", token]);
        let hub = format!("https://{}:{}", self.link.subnet.host(1), self.admin.hub.port());
        command.args(["--hub", &hub, "--http-listen", "127.0.0.1:0"]);
        command.arg("--state-dir").arg(self.dir.path().join(state)).arg("--kubeconfig").arg(&self.kubeconfig);
        Process::spawn(command, &self.dir.path().join(log))
    }

    /// What `moorline hub ca …` says, on the hub's machine; the error is what it refuses with.
    ///
    /// # Errors
    /// It refuses.
    pub fn ca(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(binary());
        command.args(["hub", "ca"]).args(words).arg("--data-dir").arg(self.dir.path().join("hub"));
        let said = run(&mut command, b"")?;
        ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        Ok(String::from_utf8(said.stdout)?)
    }

    /// The authority in this file of the hub's data folder.
    ///
    /// # Errors
    /// There is none.
    pub fn authority(&self, file: &str) -> Result<CertificateDer<'static>> {
        Ok(CertificateDer::from_pem_file(self.dir.path().join("hub").join(file))?)
    }

    /// Runs a node agent of the cluster on the far side and waits until it stands by. Called again with the same name it goes
    /// on where an earlier one was. `policy`: the `spec` of its edge policy; `more`: more of its flags.
    ///
    /// # Errors
    /// It does not come.
    pub async fn node(&self, name: &str, carrier: &str, policy: &str, more: &[&str]) -> Result<Process> {
        let process = self.begin_node(name, carrier, policy, more).await?;
        self.has_agent(name, LONG).await.with_context(|| process.log())?;
        Ok(process)
    }

    /// A place for nodes that have another way to the hub than the agent.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn elsewhere(&self) -> Result<Elsewhere> {
        let (link, dir) = (Link::make()?, self.dir.path().join("elsewhere"));
        std::fs::create_dir(&dir)?;
        let (kubeconfig, _api) = api_at(&link, &dir)?;
        Ok(Elsewhere { link, kubeconfig, _api })
    }

    /// As [`Self::node`], there.
    ///
    /// # Errors
    /// It does not come.
    pub async fn node_at(&self, place: &Elsewhere, name: &str, carrier: &str) -> Result<Process> {
        let process = self.spawn_node((&place.link, &place.kubeconfig), &[], name, carrier, "{}", &[]).await?;
        self.has_agent(name, LONG).await.with_context(|| process.log())?;
        Ok(process)
    }

    /// The same, without waiting.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn begin_node(&self, name: &str, carrier: &str, policy: &str, more: &[&str]) -> Result<Process> {
        self.begin_node_by(&[], name, carrier, policy, more).await
    }

    /// The same, by way of another program: `by` are its words, to which the agent's are added.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn begin_node_by(
        &self,
        by: &[&str],
        name: &str,
        carrier: &str,
        policy: &str,
        more: &[&str],
    ) -> Result<Process> {
        self.spawn_node((&self.link, &self.kubeconfig), by, name, carrier, policy, more).await
    }

    async fn spawn_node(
        &self,
        (link, kubeconfig): (&Link, &Path),
        by: &[&str],
        name: &str,
        carrier: &str,
        policy: &str,
        more: &[&str],
    ) -> Result<Process> {
        let (state, file) = (self.dir.path().join(name), self.dir.path().join(format!("{name}.yaml")));
        std::fs::write(&file, format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {policy}\n"))?;
        let mut command = match by {
            [] => link.inside.command(binary()),
            [program, words @ ..] => {
                let mut command = link.inside.command(program);
                command.args(words).arg(binary());
                command
            }
        };
        command.args(["agent", "--role", "node", "--node-name", name, "--name", name, "--carrier", carrier]);
        if !state.exists() {
            command.args(["--token", &self.admin.join_token().await?]);
        }
        let hub = format!("https://{}:{}", link.subnet.host(1), self.admin.hub.port());
        command.args(["--hub", &hub, "--http-listen", "127.0.0.1:0"]).arg("--policy-file").arg(&file);
        command.arg("--state-dir").arg(&state).arg("--kubeconfig").arg(kubeconfig).args(more);
        Process::spawn(command, &self.dir.path().join(format!("{name}.log")))
    }

    /// The command line of the hub's administrator, on the hub's side.
    ///
    /// # Errors
    /// The hub does not let it log in.
    pub fn cli(&self) -> Result<Command> {
        let (data, config) = (self.dir.path().join("hub"), self.dir.path().join("config"));
        let command = || {
            let mut command = Command::new(binary());
            command.env("XDG_CONFIG_HOME", &config).env("NO_COLOR", "1");
            command
        };
        if !config.exists() {
            let mut login = command();
            login.args(["login", &format!("https://127.0.0.1:{}", self.admin.hub.port()), "--user", "admin"]);
            login.arg("--password-stdin").arg("--ca-file").arg(data.join("ca.crt"));
            let said = run(&mut login, &std::fs::read(data.join("admin.password"))?)?;
            ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        }
        Ok(command())
    }

    /// Waits until the hub has a session with the agent of this name; how long that took.
    ///
    /// # Errors
    /// It has none within `bound`.
    pub async fn has_agent(&self, name: &str, bound: Duration) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            let agent = self.admin.look(&format!("agents/{CLUSTER}.{name}")).await;
            if agent.as_ref().is_ok_and(|agent| agent["status"]["carrier"].is_string()) {
                return Ok(begin.elapsed());
            }
            ensure!(begin.elapsed() < bound, "no session with {name} after {bound:?}: {agent:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// One small request of a user; how long it took.
    ///
    /// # Errors
    /// It is not answered with 200.
    pub async fn request(&self) -> Result<Duration> {
        let begin = Instant::now();
        let (code, body) = self.admin.ask("GET", &format!("/k8s/clusters/{CLUSTER}/version"), "").await?;
        ensure!(code == 200, "{code} {}", String::from_utf8_lossy(&body));
        Ok(begin.elapsed())
    }

    /// Tries until a small request is answered; how long that took.
    ///
    /// # Errors
    /// None is within `bound`.
    pub async fn answers_within(&self, bound: Duration) -> Result<Duration> {
        let begin = Instant::now();
        let mut last = None;
        loop {
            let Some(left) = bound.checked_sub(begin.elapsed()) else {
                return Err(last.unwrap_or_else(|| anyhow::anyhow!("nothing was asked")))
                    .with_context(|| format!("no request was answered within {bound:?}"));
            };
            // One that hangs on a dead path must not keep the next from finding the living one.
            match timeout(left.min(Duration::from_secs(2)), self.request()).await {
                Ok(Ok(_)) => return Ok(begin.elapsed()),
                Ok(Err(error)) => last = Some(error),
                Err(_) => last = Some(anyhow::anyhow!("a request hangs")),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What carries the newest session, as the hub tells its users; `None`: there is none.
    ///
    /// # Errors
    /// The hub does not say.
    pub async fn carrier(&self) -> Result<Option<String>> {
        let agent = self.admin.look(&format!("agents/{CLUSTER}.a1")).await?;
        Ok(agent["status"]["carrier"].as_str().map(str::to_owned))
    }

    /// Waits until that is `carrier`; how long it took.
    ///
    /// # Errors
    /// It is not within `bound`.
    pub async fn is_on(&self, carrier: &str, bound: Duration) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            let now = self.carrier().await?;
            if now.as_deref() == Some(carrier) {
                return Ok(begin.elapsed());
            }
            ensure!(begin.elapsed() < bound, "after {bound:?} still on {now:?}, not on {carrier}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether the hub calls the cluster connected.
    ///
    /// # Errors
    /// The hub does not say.
    pub async fn says_connected(&self) -> Result<bool> {
        let cluster = self.admin.look(&format!("clusters/{CLUSTER}")).await?;
        let conditions = cluster["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let connected = |c: &Value| c["type"] == "Connected" && c["status"] == "True";
        Ok(conditions.iter().any(connected))
    }

    /// Waits until the hub calls the cluster connected, or not; how long that took.
    ///
    /// # Errors
    /// It does not within `bound`.
    pub async fn is_called_connected(&self, connected: bool, bound: Duration) -> Result<Duration> {
        let begin = Instant::now();
        while self.says_connected().await? != connected {
            ensure!(begin.elapsed() < bound, "after {bound:?} the hub still says connected={}", !connected);
            sleep(Duration::from_millis(50)).await;
        }
        Ok(begin.elapsed())
    }

    /// The sum of a metric of the hub's whose line contains all of `labels`.
    ///
    /// # Errors
    /// The hub does not answer.
    pub async fn hub_metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        sum(self.ops, name, labels).await
    }

    /// Kills the hub as a crash does, and starts it again.
    ///
    /// # Errors
    /// It does not start.
    pub fn crash_hub(&mut self) -> Result<()> {
        self.hub.signal(libc::SIGKILL);
        self.hub.wait(LONG)?;
        let command = hub_command(&self.dir, &self.link, self.admin.hub.port(), self.ops, self.disk)?;
        self.hub = Process::spawn(command, &self.dir.path().join("hub.log"))?;
        Ok(())
    }

    /// Packets that have gone by, both ways.
    pub fn packets(&self) -> u64 {
        self.link.counts(Way::Up).0 + self.link.counts(Way::Down).0
    }

    /// The hub's own folder, as it sees it.
    pub fn data(&self) -> PathBuf {
        data_of(&self.hub, &self.dir)
    }

    /// A folder that ends with the scene.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }
}

impl Drop for Across {
    /// Nothing is told to anybody: a scene that is over waits for no grace.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the hub said:\n{}\nthe agent said:\n{}", self.hub.log(), self.agent.log());
        }
        self.agent.signal(libc::SIGKILL);
        self.hub.signal(libc::SIGKILL);
    }
}

/// An API server on the far side of a link. What leads there is left in `dir`.
fn api_at(link: &Link, dir: &Path) -> Result<(PathBuf, AbortOnDropHandle<()>)> {
    let listener = link.inside.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, API)))?;
    listener.set_nonblocking(true)?;
    api::serve(tokio::net::TcpListener::from_std(listener)?, dir)
}

/// A hub's folder by way of its process: what is mounted there may be seen by the hub alone.
fn data_of(hub: &Process, dir: &TempDir) -> PathBuf {
    let path = dir.path().join("hub");
    Path::new("/proc").join(hub.id().to_string()).join("root").join(path.strip_prefix("/").unwrap_or(&path))
}

fn hub_command(dir: &TempDir, link: &Link, port: u16, ops: u16, disk: Option<u64>) -> Result<Command> {
    let data = dir.path().join("hub");
    let mut command = match disk {
        None => Command::new(binary()),
        Some(bytes) => {
            std::fs::create_dir_all(&data)?;
            let mut command = Command::new("unshare");
            let script = "mount -t tmpfs -o mode=0700,size=$1 tmpfs \"$2\" && shift 2 && exec \"$@\"";
            command.args(["--mount", "sh", "-c", script, "sh", &bytes.to_string()]).arg(&data).arg(binary());
            command
        }
    };
    command.arg("hub").arg("--data-dir").arg(&data);
    command.args(["--listen", &format!("0.0.0.0:{port}"), "--ops-listen", &format!("127.0.0.1:{ops}")]);
    command.args(["--name", "localhost", "--name", "127.0.0.1", "--name", &link.subnet.host(1).to_string()]);
    command.env("MOORLINE_LOG", std::env::var("MOORLINE_LOG").unwrap_or_else(|_| "warn".into()));
    Ok(command)
}

/// Ports that the system gives to no connection on its own account (`net.ipv4.ip_local_port_range` begins at 32768): one that
/// it gave and took back may be somebody else's before it is used.
const PORTS: std::ops::Range<u16> = 21_000..27_000;

/// A port that is free for TCP and UDP, and that nobody here was given before.
pub(crate) fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let size = u32::from(PORTS.end - PORTS.start);
    for _ in 0..size {
        // Two test programs at once begin at different places.
        let at = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % size;
        let port = PORTS.start + u16::try_from(at)?;
        let any = (Ipv4Addr::UNSPECIFIED, port);
        if TcpListener::bind(any).is_ok() && UdpSocket::bind(any).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port is free")
}

/// The sum of a metric at a listener for probes, of the series that contain all of `labels`.
pub(crate) async fn sum(ops: u16, name: &str, labels: &[&str]) -> Result<f64> {
    let page = ask(ops, "/metrics").await?;
    let mine = page.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    Ok(mine.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// What a listener for probes on loopback answers.
pub(crate) async fn ask(port: u16, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut all = String::new();
    socket.read_to_string(&mut all).await?;
    ensure!(all.starts_with("HTTP/1.1 200"), "{}", all.lines().next().unwrap_or_default());
    Ok(all)
}
