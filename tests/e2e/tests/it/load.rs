//! Fifty clients work while their cluster loses its agents.

use crate::{
    nodes,
    world::{ALICE, World},
};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use moorline_e2e::{
    moorline::{Agent, kubectl},
    process::{eventually, run, text},
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Programs that speak Kubernetes, each with connections of its own: one request in four changes something.
const CLIENTS: usize = 40;
/// kubectl, again and again.
const KUBECTLS: usize = 10;
/// How long a client rests between two requests.
const REST: Duration = Duration::from_millis(500);
/// How many requests have to be done before, and how long they go on after what is taken is served again.
const WARM: usize = 2 * (CLIENTS + KUBECTLS);
const AFTER: Duration = Duration::from_secs(3);
/// The bounds, from the loss to the end of what begins after it.
const KILLED: Duration = Duration::from_secs(3);
const SILENT: Duration = Duration::from_secs(10);
/// No answer in this time counts as a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// One request: when it began, when it was over, and why it failed.
struct Seen {
    began: Instant,
    over: Instant,
    what: &'static str,
    failed: Option<String>,
}

#[derive(Default)]
struct Log {
    all: Mutex<Vec<Seen>>,
    stop: AtomicBool,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn note(&self, began: Instant, what: &'static str, failed: Option<String>) {
        self.lock().push(Seen { began, over: Instant::now(), what, failed });
    }
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Fifty clients of one kubeconfig. Whoever drops it waits for their end.
struct Load {
    log: Arc<Log>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    fn start(config: &Path) -> Result<Self> {
        let log = Arc::<Log>::default();
        let mut threads = Vec::new();
        let (shared, path) = (Arc::clone(&log), config.to_owned());
        threads.push(std::thread::spawn(move || programs(&shared, path)));
        for n in 0..KUBECTLS {
            let (log, config) = (Arc::clone(&log), config.to_owned());
            threads.push(std::thread::spawn(move || {
                // Not all in step.
                std::thread::sleep(REST * u32::try_from(n)? / 5);
                while !log.stopped() {
                    let mut command = Command::new(kubectl());
                    command.arg("--kubeconfig").arg(&config);
                    command.args(["get", "--raw", "/api/v1/namespaces/team", "--request-timeout=30s"]);
                    let began = Instant::now();
                    let output = run(&mut command, b"")?;
                    let said = String::from_utf8_lossy(&output.stderr).into_owned();
                    log.note(began, "kubectl", (!output.status.success()).then_some(said));
                    std::thread::sleep(2 * REST);
                }
                Ok(())
            }));
        }
        let load = Self { log, threads };
        eventually("clients that work", PATIENCE, || {
            let (done, failed) = load.count();
            ensure!(failed.is_none() && done > WARM, "{done} requests; {failed:?}");
            Ok(())
        })?;
        Ok(load)
    }

    /// How many requests are over, and why one of them failed.
    fn count(&self) -> (usize, Option<String>) {
        let all = self.log.lock();
        (all.len(), all.iter().find_map(|one| one.failed.clone()))
    }

    fn end(mut self) -> Result<Vec<Seen>> {
        self.log.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(std::mem::take(&mut *self.log.lock()))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.log.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            let _ = thread.join();
        }
    }
}

fn programs(log: &Arc<Log>, config: PathBuf) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..CLIENTS {
            let read = Kubeconfig::read_from(&config)?;
            let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
            let api: Api<ConfigMap> = Api::namespaced(Client::try_from(config)?, "team");
            let log = Arc::clone(log);
            tasks.spawn(async move {
                tokio::time::sleep(REST.mul_f64(rand_of(n))).await;
                for turn in 0_usize.. {
                    if log.stopped() {
                        return;
                    }
                    let (what, began) = (if (turn + n) % 4 == 0 { "write" } else { "read" }, Instant::now());
                    let call = async {
                        if what == "read" {
                            return api.get("kube-root-ca.crt").await.map(drop);
                        }
                        let (name, data) = (format!("load-{n}"), turn.to_string());
                        let patch = serde_json::json!({
                            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "turn": data },
                        });
                        let params = PatchParams::apply("load").force();
                        api.patch(&name, &params, &Patch::Apply(&patch)).await.map(drop)
                    };
                    let failed = match tokio::time::timeout(PATIENCE, call).await {
                        Ok(Ok(())) => None,
                        Ok(Err(error)) => Some(error.to_string()),
                        Err(_) => Some("no answer in time".to_owned()),
                    };
                    log.note(began, what, failed);
                    tokio::time::sleep(REST).await;
                }
            });
        }
        while tasks.join_next().await.is_some() {}
        Ok(())
    })
}

/// Between 0 and 1, another one for each client.
fn rand_of(n: usize) -> f64 {
    f64::from(u32::try_from(n * 37 % CLIENTS).unwrap_or_default()) / f64::from(u32::try_from(CLIENTS).unwrap_or(1))
}

/// Takes the agents away while fifty clients of `config` work: nothing that begins after that fails, and all of what begins
/// within the bound is done by its end.
pub fn while_many_work(config: &Path, what: &str, bound: Duration, take: impl FnOnce() -> Result<()>) -> Result<()> {
    let load = Load::start(config)?;
    take()?;
    let lost = Instant::now();
    std::thread::sleep(bound + AFTER);
    let seen = load.end()?;
    let (after, before): (Vec<&Seen>, Vec<&Seen>) = seen.iter().partition(|one| lost <= one.began);
    let caught: Vec<&&Seen> = before.iter().filter(|one| lost < one.over).collect();
    let failed = |all: &[&Seen]| all.iter().filter(|one| one.failed.is_some()).count();
    let slowest = after.iter().map(|one| one.over - one.began).max().unwrap_or_default();
    // What a request takes at most while all is well is the load's, and the machine's.
    let usual = before.iter().filter(|one| one.over <= lost).map(|one| one.over - one.began).max().unwrap_or_default();
    let first = after.iter().filter(|one| one.failed.is_none()).map(|one| one.over).min().context("a success")? - lost;
    println!(
        "{what}: {} requests of {} clients before, {} of them under way ({} failed), {} after ({} failed); the first that \
         began after was done in {first:?}, the slowest took {slowest:?}; before, {usual:?}",
        before.len(),
        CLIENTS + KUBECTLS,
        caught.len(),
        failed(&before),
        after.len(),
        failed(&after),
    );
    for one in seen.iter().filter(|one| one.failed.is_some()) {
        println!(
            "  a {} failed that began {:?} after: {:?}",
            one.what,
            one.began.saturating_duration_since(lost),
            one.failed
        );
    }
    ensure!(after.len() > CLIENTS + KUBECTLS, "they go on");
    ensure!(failed(&after) == 0, "what had not begun fails");
    ensure!(first < bound + usual, "new requests succeed {first:?} after the loss");
    ensure!(slowest < bound + 2 * usual, "one took {slowest:?}");
    Ok(())
}

/// The agent's way to the hub, silent: neither side hears of it.
struct Cut<'a>(&'a World);

impl<'a> Cut<'a> {
    fn new(world: &'a World, address: &str) -> Result<Self> {
        let rules = format!(
            "table inet cut {{\n chain out {{ type filter hook output priority 0; ip daddr {address} drop; }}\n \
             chain in {{ type filter hook input priority -5; ip saddr {address} drop; }}\n}}\n"
        );
        let network = world.edge1.network().context("a network")?;
        let output = run(network.command("nft").args(["-f", "-"]), rules.as_bytes())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(Self(world))
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if let Some(network) = self.0.edge1.network() {
            let _ = text(network.command("nft").args(["delete", "table", "inet", "cut"]));
        }
    }
}

fn back(world: &World) -> Result<()> {
    eventually("the cluster agent's return", Duration::from_secs(60), || {
        ensure!(nodes::reason(world)? == "AgentConnected", "{}", nodes::reason(world)?);
        Ok(())
    })
}

pub fn all(world: &mut World) -> Result<()> {
    let node = nodes::join(world, &[])?;
    let config = world.hub.kubeconfig(ALICE, "edge1")?;

    let agent = world.agent1.take().context("agent")?;
    while_many_work(&config, "killed", KILLED, || {
        agent.process.signal(9);
        Ok(())
    })?;
    drop(agent);
    world.restart_agent1()?;
    back(world)?;

    // As its pod ends when its set is scaled to zero.
    let agent = world.agent1.take().context("agent")?;
    while_many_work(&config, "ended", KILLED, || {
        agent.process.signal(15);
        Ok(())
    })?;
    drop(agent);

    // Another address of the hub's is the one way that is cut: the node's agent has its own.
    let address = world.edge2.network().context("a network")?.outside.clone();
    let words = ["moorline", "agent", "--hub", &format!("https://{address}:{}", world.hub.port)].map(str::to_owned);
    world.agent1 = Some(Agent::start(&world.edge1, &words, &world.dir.join("agent-edge1"), &[])?);
    back(world)?;
    let mut cut = None;
    while_many_work(&config, "cut off", SILENT, || {
        cut = Some(Cut::new(world, &address)?);
        Ok(())
    })?;
    ensure!(nodes::reason(world)? == "NodeAgentOnly", "{}", nodes::reason(world)?);
    drop(cut);
    back(world)?;
    drop(node);
    world.restart_agent1()
}
