//! A hub in a process of its own, and as many agents as one likes, all in this one.

use crate::{
    LONG,
    across::{ask, free_port, sum},
    api,
    client::Admin,
    site::Lone,
};
use anyhow::{Context, Result, ensure};
use moorline_agent::Preference;
use moorline_e2e::{binary, process::Process};
use moorline_link::HubAddress;
use serde_json::json;
use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// Agents of one cluster: less than a hub takes.
const EACH: usize = 200;
/// Agents that join at once: fewer than a hub takes from strangers in a second.
const AT_ONCE: usize = 40;
/// How often is looked who is there.
const LOOK: Duration = Duration::from_millis(100);

/// The hub and its agents.
pub struct Fleet {
    /// The hub.
    pub hub: Process,
    /// Its administrator.
    pub admin: Admin,
    agents: Vec<Lone>,
    port: u16,
    ops: u16,
    dir: TempDir,
    _api: AbortOnDropHandle<()>,
}

/// How a fleet came back.
#[derive(Debug)]
pub struct Return {
    /// From the moment at which the hub listened again until the last was there.
    pub took: Duration,
    /// Agents that were let in, second by second.
    pub each_second: Vec<usize>,
    /// Requests to a cluster meanwhile, from the first that was answered on: how long each took.
    pub requests: Vec<Duration>,
    /// Longest time between two looks at all this: what came in it counts for one moment.
    pub blind: Duration,
}

impl Fleet {
    /// Starts a hub and joins `size` agents.
    ///
    /// # Errors
    /// Anything that does not work.
    pub async fn of(size: usize, carrier: Preference) -> Result<Self> {
        ensure!(binary().exists(), "{} is missing: cargo build -p moorline-cli", binary().display());
        let dir = tempfile::tempdir()?;
        let (port, ops) = (free_port()?, free_port()?);
        let hub = start(&dir, port, ops)?;
        let ready = async {
            while ask(ops, "/readyz").await.is_err() {
                sleep(LOOK).await;
            }
        };
        timeout(LONG, ready).await.with_context(|| format!("the hub is not ready: {}", hub.log()))?;
        let admin = Admin::of(&dir.path().join("hub"), SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        let (kubeconfig, api) = api::serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?, dir.path())?;
        let mut fleet = Self { hub, admin, agents: Vec::new(), port, ops, dir, _api: api };
        let at = HubAddress { host: "127.0.0.1".into(), port };
        let mut token = String::new();
        for n in 0..size {
            if n % EACH == 0 {
                let cluster = format!("edge{}", n / EACH + 1);
                fleet.admin.make("clusters", "Cluster", json!({ "name": cluster }), json!({})).await?;
                token = fleet.admin.join_token_of(&cluster, EACH).await?;
            }
            let name = format!("a{n}");
            let folder = fleet.dir.path().join(&name);
            std::fs::create_dir_all(&folder)?;
            fleet.agents.push(Lone::start(&folder, &kubeconfig, &name, at.clone(), carrier, Some(token.clone()))?);
            if (n + 1) % AT_ONCE == 0 || n + 1 == size {
                let within = Instant::now() + LONG;
                while fleet.connected().await? < n + 1 {
                    ensure!(
                        Instant::now() < within,
                        "only {} of {} came: {}",
                        fleet.connected().await?,
                        n + 1,
                        fleet.hub.log()
                    );
                    sleep(LOOK).await;
                }
            }
        }
        Ok(fleet)
    }

    /// Agents that are connected now.
    ///
    /// # Errors
    /// The hub does not say.
    pub async fn connected(&self) -> Result<usize> {
        Ok(sum(self.ops, "moorline_hub_sessions_open", &[]).await? as usize)
    }

    /// Kills the hub as a crash does, leaves it dead for `dead`, starts it again, and sees its fleet return.
    ///
    /// # Errors
    /// It does not, within `bound`.
    pub async fn crash(&mut self, dead: Duration, bound: Duration) -> Result<Return> {
        self.hub.signal(libc::SIGKILL);
        self.hub.wait(LONG)?;
        sleep(dead).await;
        self.hub = start(&self.dir, self.port, self.ops)?;
        let ready = async {
            while ask(self.ops, "/readyz").await.is_err() {
                sleep(LOOK / 10).await;
            }
        };
        timeout(LONG, ready).await.context("the hub does not come back")?;
        let begin = Instant::now();
        let mut back =
            Return { took: Duration::ZERO, each_second: Vec::new(), requests: Vec::new(), blind: Duration::ZERO };
        let (tell, mut told) = mpsc::unbounded_channel();
        let admin = self.admin.clone();
        let _asking = AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let asked = Instant::now();
                if let Ok((200, _)) = admin.ask("GET", "/k8s/clusters/edge1/version", "").await {
                    let _ = tell.send(asked.elapsed()); // nobody counts any more
                }
                sleep(LOOK / 10).await;
            }
        }));
        let (mut before, mut looked) = (0, begin);
        loop {
            let all = self.agents.len() <= self.connected().await?;
            let welcomed = sum(self.ops, "moorline_hub_greetings_total", &["welcome"]).await? as usize;
            back.blind = back.blind.max(looked.elapsed());
            looked = Instant::now();
            let second = usize::try_from(begin.elapsed().as_secs())?;
            back.each_second.resize(second + 1, 0);
            back.each_second[second] += welcomed - before;
            before = welcomed;
            if all {
                back.took = begin.elapsed();
                while let Ok(took) = told.try_recv() {
                    back.requests.push(took);
                }
                return Ok(back);
            }
            ensure!(begin.elapsed() < bound, "after {bound:?} only {} are back: {back:?}", self.connected().await?);
            sleep(LOOK).await;
        }
    }

    /// How long requests to a cluster take, one after the other, the shortest first.
    ///
    /// # Errors
    /// One is not answered.
    pub async fn requests(&self, count: usize) -> Result<Vec<Duration>> {
        let mut all = Vec::new();
        for _ in 0..count {
            let begin = Instant::now();
            let (code, _) = self.admin.ask("GET", "/k8s/clusters/edge1/version", "").await?;
            ensure!(code == 200, "{code}");
            all.push(begin.elapsed());
        }
        all.sort_unstable();
        Ok(all)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the hub said:\n{}", self.hub.log());
        }
        self.hub.signal(libc::SIGKILL);
    }
}

/// A hub on loopback.
pub(crate) fn start(dir: &TempDir, port: u16, ops: u16) -> Result<Process> {
    let mut command = Command::new(binary());
    command.arg("hub").arg("--data-dir").arg(dir.path().join("hub"));
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--ops-listen", &format!("127.0.0.1:{ops}")]);
    command.args(["--name", "localhost", "--name", "127.0.0.1"]);
    command.env("MOORLINE_LOG", std::env::var("MOORLINE_LOG").unwrap_or_else(|_| "error".into()));
    Process::spawn(command, &dir.path().join("hub.log"))
}
