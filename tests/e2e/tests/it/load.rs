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

/// Who works, all at once.
#[derive(Clone, Copy)]
pub struct Crew {
    /// Programs that speak Kubernetes, each with connections of its own.
    programs: usize,
    /// kubectl, again and again.
    kubectls: usize,
    /// How long these rest between two requests.
    rest: Duration,
}

/// Both kinds: many requests, few processes.
const MIXED: Crew = Crew { programs: 40, kubectls: 10, rest: Duration::from_secs(1) };
/// kubectl alone. A process for each request is most of what a small machine can do: they rest longer.
pub const KUBECTLS: Crew = Crew { programs: 0, kubectls: 50, rest: Duration::from_secs(5) };

impl Crew {
    fn size(self) -> usize {
        self.programs + self.kubectls
    }
}

/// One request of so many changes something.
const WRITES: usize = 4;
/// How long a program rests between two requests.
const REST: Duration = Duration::from_millis(500);
/// How long they go on after what is taken is served again, or given back and each has rested.
const AFTER: Duration = Duration::from_secs(3);
/// The bounds of the way to a node agent, from the loss to the end of what begins after it.
pub const KILLED: Duration = Duration::from_secs(3);
pub const SILENT: Duration = Duration::from_secs(10);
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

/// Clients of one kubeconfig that work while agents come and go. Whoever drops it waits for their end.
pub struct Load {
    crew: Crew,
    log: Arc<Log>,
    threads: Vec<JoinHandle<Result<()>>>,
    phases: Vec<Phase>,
}

/// From one change to the next.
struct Phase {
    what: &'static str,
    at: Instant,
    /// Something was taken: what begins from then on is done within this. `None`: it was given back.
    bound: Option<Duration>,
}

impl Load {
    /// Starts them, and waits until they have done as many requests as there are of them.
    pub fn start(config: &Path, crew: Crew) -> Result<Self> {
        let log = Arc::<Log>::default();
        let mut threads = Vec::new();
        let (shared, path) = (Arc::clone(&log), config.to_owned());
        threads.push(std::thread::spawn(move || programs(&shared, path, crew.programs)));
        for n in 0..crew.kubectls {
            let (log, config) = (Arc::clone(&log), config.to_owned());
            threads.push(std::thread::spawn(move || kubectls(&log, &config, n, crew)));
        }
        let load = Self { crew, log, threads, phases: Vec::new() };
        eventually("clients that work", PATIENCE, || {
            let all = load.log.lock();
            let failed = all.iter().find_map(|one| one.failed.as_ref());
            ensure!(failed.is_none() && all.len() > crew.size(), "{} requests; {failed:?}", all.len());
            Ok(())
        })?;
        Ok(load)
    }

    /// Takes agents away, and looks on for the bound and a while.
    pub fn lose(&mut self, what: &'static str, bound: Duration, take: impl FnOnce() -> Result<()>) -> Result<()> {
        take()?;
        self.phases.push(Phase { what, at: Instant::now(), bound: Some(bound) });
        std::thread::sleep(bound + AFTER);
        Ok(())
    }

    /// Gives back what was taken, and looks on for a while.
    pub fn regain(&mut self, what: &'static str, give: impl FnOnce() -> Result<()>) -> Result<()> {
        self.phases.push(Phase { what, at: Instant::now(), bound: None });
        give()?;
        std::thread::sleep(self.crew.rest + AFTER);
        Ok(())
    }

    /// Ends them all: nothing has failed but what was under way when agents were lost.
    pub fn end(mut self) -> Result<()> {
        self.log.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        let seen = std::mem::take(&mut *self.log.lock());
        let caught = |one: &Seen, phase: &Phase| one.began < phase.at && phase.at <= one.over;
        // On a machine that does other things too kubectl alone takes its time: that much comes on top of each bound.
        let started = self.phases.first().map(|phase| phase.at);
        let mut usual: Vec<Duration> =
            seen.iter().filter(|one| started.is_none_or(|at| one.over < at)).map(|one| one.over - one.began).collect();
        usual.sort_unstable();
        let (median, longest) = (usual.get(usual.len() / 2), usual.last());
        let (median, longest) = (median.copied().unwrap_or_default(), longest.copied().unwrap_or_default());
        println!("before: {} requests, half of them within {median:?}, all within {longest:?}", usual.len());
        let lost = |one: &Seen| self.phases.iter().any(|phase| phase.bound.is_some() && caught(one, phase));
        for (n, phase) in self.phases.iter().enumerate() {
            let until = self.phases.get(n + 1).map(|next| next.at);
            let in_it = |one: &&Seen| phase.at <= one.began && until.is_none_or(|until| one.began < until);
            let mine: Vec<&Seen> = seen.iter().filter(in_it).filter(|one| !lost(one)).collect();
            let under_way: Vec<&Seen> = seen.iter().filter(|one| caught(one, phase)).collect();
            let failed = |all: &[&Seen]| all.iter().filter(|one| one.failed.is_some()).count();
            let slowest = mine.iter().map(|one| one.over - one.began).max().unwrap_or_default();
            let first =
                mine.iter().filter(|one| one.failed.is_none()).map(|one| one.over).min().context("a success")?;
            let (what, first) = (phase.what, first - phase.at);
            println!(
                "{what}: {} of {} clients under way ({} failed), {} after ({} failed); the first that began after was done \
                 in {first:?}, the slowest took {slowest:?}",
                under_way.len(),
                self.crew.size(),
                failed(&under_way),
                mine.len(),
                failed(&mine),
            );
            for one in mine.iter().chain(&under_way).filter(|one| one.failed.is_some()) {
                let after = one.began.saturating_duration_since(phase.at);
                println!("  a {} failed that began {after:?} after: {:?}", one.what, one.failed);
            }
            ensure!(mine.len() > self.crew.size() / 2, "{what}: they go on");
            ensure!(failed(&mine) == 0, "{what}: what had not begun fails");
            if let Some(bound) = phase.bound {
                ensure!(first < bound + longest, "{what}: new requests succeed {first:?} after the loss");
                ensure!(slowest < bound + 2 * longest, "{what}: one took {slowest:?}");
            }
        }
        Ok(())
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

/// The object that a client writes.
fn object(n: usize, turn: usize) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": format!("load-{n}"), "namespace": "team" },
        "data": { "turn": turn.to_string() },
    })
}

/// The objects that kubectls write: a write by path wants them to be there.
pub fn objects() -> Vec<serde_json::Value> {
    (0..KUBECTLS.kubectls).map(|n| object(n, 0)).collect()
}

/// One that runs kubectl again and again. By path: what kubectl asks to find its way would be requests too.
fn kubectls(log: &Log, config: &Path, n: usize, crew: Crew) -> Result<()> {
    // Not all in step.
    std::thread::sleep(crew.rest.mul_f64(n as f64 / crew.kubectls as f64));
    for turn in 0_usize.. {
        if log.stopped() {
            break;
        }
        let mut command = Command::new(kubectl());
        command.arg("--kubeconfig").arg(config).arg("--request-timeout=30s");
        let writes = crew.programs == 0 && (turn + n).is_multiple_of(WRITES);
        let body = if writes { object(n, turn).to_string() } else { String::new() };
        if writes {
            command.args(["replace", "--raw", &format!("/api/v1/namespaces/team/configmaps/load-{n}"), "-f", "-"]);
        } else {
            command.args(["get", "--raw", "/api/v1/namespaces/team"]);
        }
        let began = Instant::now();
        let output = run(&mut command, body.as_bytes())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let what = if writes { "kubectl replace" } else { "kubectl get" };
        log.note(began, what, (!output.status.success()).then_some(said));
        let rested = Instant::now() + crew.rest;
        while !log.stopped() && Instant::now() < rested {
            std::thread::sleep(REST.min(crew.rest) / 5);
        }
    }
    Ok(())
}

fn programs(log: &Arc<Log>, config: PathBuf, count: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..count {
            let read = Kubeconfig::read_from(&config)?;
            let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
            let api: Api<ConfigMap> = Api::namespaced(Client::try_from(config)?, "team");
            let log = Arc::clone(log);
            tasks.spawn(async move {
                // Each begins at another moment.
                tokio::time::sleep(REST.mul_f64((n * 37 % count) as f64 / count as f64)).await;
                for turn in 0_usize.. {
                    if log.stopped() {
                        return;
                    }
                    let (what, began) =
                        (if (turn + n).is_multiple_of(WRITES) { "write" } else { "read" }, Instant::now());
                    let call = async {
                        if what == "read" {
                            return api.get("kube-root-ca.crt").await.map(drop);
                        }
                        let params = PatchParams::apply("load").force();
                        api.patch(&format!("load-{n}"), &params, &Patch::Apply(&object(n, turn))).await.map(drop)
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

/// Packets that vanish in edge1's network until this is dropped: neither side hears of it.
pub struct Cut<'a>(&'a World);

impl<'a> Cut<'a> {
    /// `chains`: of nft, and what each of them drops.
    pub fn new(world: &'a World, chains: &[(&str, &str)]) -> Result<Self> {
        let chains = chains
            .iter()
            .map(|(hook, what)| format!("chain {hook} {{ type filter hook {hook} priority -310; {what} drop; }}\n"));
        let rules = format!("table inet cut {{\n{}}}\n", chains.collect::<String>());
        let network = world.edge1.network().context("a network")?;
        let output = run(network.command("nft").args(["-f", "-"]), rules.as_bytes())?;
        ensure!(output.status.success(), "{rules}\n{}", String::from_utf8_lossy(&output.stderr));
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

/// Waits until a cluster agent serves again.
pub fn back(world: &World, cluster: &str) -> Result<()> {
    // A pod that was told to end may take all of its 40 s, on a busy machine more, before the next one begins.
    eventually("the cluster agent's return", Duration::from_secs(150), || {
        let reason = nodes::reason(world, cluster)?;
        ensure!(reason == "AgentConnected", "{reason}");
        Ok(())
    })
}

pub fn all(world: &mut World) -> Result<()> {
    let node = nodes::join(world, &[])?;
    let mut load = Load::start(&world.hub.kubeconfig(ALICE, "edge1")?, MIXED)?;

    let agent = world.agent1.take().context("agent")?;
    load.lose("killed", KILLED, || {
        agent.process.signal(9);
        Ok(())
    })?;
    drop(agent);
    load.regain("started again", || {
        world.restart_agent1()?;
        back(world, "edge1")
    })?;

    let agent = world.agent1.take().context("agent")?;
    load.lose("ended", KILLED, || {
        agent.process.signal(15);
        Ok(())
    })?;
    drop(agent);

    // Another address of the hub's is the one way that is cut: the node's agent has its own.
    let address = world.edge2.network().context("a network")?.outside.clone();
    let words = ["moorline", "agent", "--hub", &format!("https://{address}:{}", world.hub.port)].map(str::to_owned);
    load.regain("started again elsewhere", || {
        world.agent1 = Some(Agent::start(&world.edge1, &words, &world.dir.join("agent-edge1"), &[])?);
        back(world, "edge1")
    })?;
    let mut cut = None;
    load.lose("cut off", SILENT, || {
        let (to, from) = (format!("ip daddr {address}"), format!("ip saddr {address}"));
        cut = Some(Cut::new(world, &[("output", &to), ("prerouting", &from)])?);
        Ok(())
    })?;
    let reason = nodes::reason(world, "edge1")?;
    ensure!(reason == "NodeAgentOnly", "{reason}");
    load.regain("joined again", || {
        drop(cut);
        back(world, "edge1")
    })?;
    load.end()?;
    drop(node);
    world.restart_agent1()
}
