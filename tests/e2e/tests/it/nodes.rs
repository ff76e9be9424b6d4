//! Node agents.

use crate::world::{ALICE, World};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    moorline::Agent,
    process::{Process, eventually, run},
};
use std::{
    process::Child,
    time::{Duration, Instant},
};

/// The bound for an agent that was killed.
const KILLED: Duration = Duration::from_secs(3);
/// The bound for one that says nothing any more.
const SILENT: Duration = Duration::from_secs(10);

/// A node agent of edge1 that stands by.
pub fn join(world: &World, more: &[&str]) -> Result<Agent> {
    let network = world.edge1.network().context("a network")?;
    let node = world.edge1.admin(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?;
    let mut words = world.hub.join_command("edge1")?;
    for word in &mut words {
        if word.starts_with("https://") {
            *word = format!("https://{}:{}", network.outside, world.hub.port);
        }
    }
    let name = format!("--name=node-{}", world.dir.read_dir()?.count()); // each scene's is another agent
    let mut all = vec!["--role", "node", "--node-name", node.trim(), &name];
    all.extend(more);
    let agent = Agent::start(&world.edge1, &words, &world.dir.join(format!("agent{name}")), &all)?;
    eventually("a node agent that stands by", Duration::from_secs(20), || {
        ensure!(status(world)?["nodeAgents"] == 1, "{}", agent.process.log());
        Ok(())
    })?;
    Ok(agent)
}

fn status(world: &World) -> Result<serde_json::Value> {
    let json = world.hub.moorline("admin", &["clusters", "edge1", "-o", "json"])?;
    Ok(serde_json::from_str::<serde_json::Value>(&json)?["status"].take())
}

fn reason(world: &World) -> Result<String> {
    Ok(status(world)?["conditions"][0]["reason"].as_str().unwrap_or_default().to_owned())
}

/// How long it takes until a request that is made now or later succeeds.
fn until_success(world: &World) -> Result<Duration> {
    let started = Instant::now();
    eventually("success", Duration::from_secs(30), || {
        let mut command = world.through(ALICE, "edge1")?;
        let output = run(command.args(["get", "namespaces", "--request-timeout=1s"]), b"")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    })?;
    Ok(started.elapsed())
}

/// A watch that runs meanwhile on the node agent.
fn watch(world: &World) -> Result<Child> {
    let mut command = world.through(ALICE, "edge1")?;
    command.args(["get", "namespaces", "--watch"]).stdout(std::process::Stdio::null());
    Ok(command.spawn()?)
}

pub fn stands_in(world: &mut World) -> Result<()> {
    let node = join(world, &[])?;
    ensure!(reason(world)? == "AgentConnected");

    let agent = world.agent1.take().context("agent")?;
    agent.process.signal(9);
    drop(agent);
    let took = until_success(world)?;
    println!("a request succeeds {took:?} after the cluster agent was killed");
    ensure!(took < KILLED, "{took:?}");
    ensure!(reason(world)? == "NodeAgentOnly", "{}", status(world)?);
    let mut on_node = watch(world)?;

    world.restart_agent1()?;
    eventually("the cluster agent's return", SILENT, || {
        ensure!(reason(world)? == "AgentConnected", "{}", status(world)?);
        Ok(())
    })?;
    world.kubectl(ALICE, &["get", "namespaces"])?;
    let running = on_node.try_wait()?.is_none();
    on_node.kill()?;
    on_node.wait()?;
    ensure!(running, "what runs on the node agent goes on there");

    let frozen = Frozen::new(&world.agent1.as_ref().context("agent")?.process);
    let took = until_success(world)?;
    println!("a request succeeds {took:?} after the cluster agent fell silent");
    ensure!(took < SILENT, "{took:?}");
    drop(frozen);
    eventually("the cluster agent's return", Duration::from_secs(40), || {
        ensure!(reason(world)? == "AgentConnected", "{}", status(world)?);
        Ok(())
    })?;
    drop(node);
    world.kubectl(ALICE, &["get", "namespaces"]).map(drop)
}

/// A process that stands still until this is dropped.
struct Frozen<'a>(&'a Process);
impl<'a> Frozen<'a> {
    fn new(process: &'a Process) -> Self {
        process.signal(19); // SIGSTOP
        Self(process)
    }
}
impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.signal(18); // SIGCONT
    }
}
