//! What breaks, what users see meanwhile, and how it comes back.

use crate::{
    identity::curl,
    world::{ALICE, World},
};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    binary,
    moorline::Agent,
    process::{Followed, Process, eventually, run, text},
};
use std::{
    process::Command,
    time::{Duration, Instant},
};

/// Starts a watch of alice's through the hub and waits for its first line.
fn watching(world: &World) -> Result<Followed> {
    let mut command = world.through(ALICE, "edge1")?;
    let mut watch = Followed::spawn(command.args(["get", "--raw", "/api/v1/namespaces/team/configmaps?watch=true"]))?;
    watch.until(Duration::from_secs(20), |seen| seen.contains("kube-root-ca.crt"))?;
    Ok(watch)
}

pub fn copied_identity(world: &mut World) -> Result<()> {
    // After a restart of the hub it is whoever comes first that is let in.
    eventually("the first holder's session", Duration::from_secs(60), || {
        world.kubectl(ALICE, &["get", "namespaces"]).map(drop)
    })?;
    let copy = world.dir.join("agent-copy");
    text(Command::new("cp").arg("-a").arg(world.dir.join("agent-edge1")).arg(&copy))?;
    let network = world.edge1.network().context("network")?;
    let url = format!("https://{}:{}", network.outside, world.hub.port);
    let words = ["moorline", "agent", "--hub", &url].map(str::to_owned);
    let twin = Agent::start(&world.edge1, &words, &copy, &[])?;
    eventually("refusal in the twin's log", Duration::from_secs(20), || {
        ensure!(twin.process.log().contains("duplicate_identity"), "{}", twin.process.log());
        Ok(())
    })?;
    let hub = std::fs::read_to_string(world.dir.join("hub.log"))?;
    ensure!(hub.contains("duplicate_identity"), "the hub's log does not name it");
    // The first holder is unhurt.
    world.kubectl(ALICE, &["get", "namespaces"]).map(drop)
}

pub fn clock(world: &mut World) -> Result<()> {
    let network = world.edge1.network().context("network")?;
    let state = world.dir.join("agent-clock");
    text(Command::new("cp").arg("-a").arg(world.dir.join("agent-edge1")).arg(&state))?;
    let url = format!("https://{}:{}", network.outside, world.hub.port);
    // A day and an hour behind: the hub's certificate is not valid yet for this agent.
    let mut command = network.command("faketime");
    command.args(["-f", "-30h"]).arg(binary()).args(["agent", "--hub", &url, "--state-dir"]).arg(&state);
    command.arg("--kubeconfig").arg(world.edge1.kubeconfig());
    let agent = Process::spawn(command, &state.with_extension("log"))?;
    eventually("a word about the clock", Duration::from_secs(20), || {
        ensure!(agent.log().to_lowercase().contains("clock"), "{}", agent.log());
        Ok(())
    })
}

pub fn api_server_down(world: &mut World) -> Result<()> {
    let pid = std::fs::read_to_string(world.edge2.dir.join("pids"))?
        .lines()
        .find_map(|l| l.strip_prefix("kube-apiserver ")?.split(' ').next()?.parse::<i32>().ok())
        .context("the API server's pid")?;
    let code = |world: &World| -> Result<(String, Duration)> {
        let mut command = world.through(ALICE, "edge2")?;
        let started = Instant::now();
        let output = run(command.args(["get", "--raw", "/api/v1/namespaces"]), b"")?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((if output.status.success() { "ok".into() } else { error }, started.elapsed()))
    };
    ensure!(code(world)?.0 == "ok");
    text(Command::new("kill").arg(pid.to_string()))?;
    let (words, took) = eventually("a refused connection", Duration::from_secs(60), || {
        let (words, took) = code(world)?;
        ensure!(
            words.contains("refused") || words.contains("502") || words.to_lowercase().contains("bad gateway"),
            "{words}"
        );
        Ok((words, took))
    })?;
    ensure!(took < Duration::from_secs(20), "{words}: {took:?}");
    ensure!(world.hub.connected("edge2")?, "the agent stays connected without its API server");
    Ok(())
}

pub fn agent_killed(world: &mut World) -> Result<()> {
    let mut watch = watching(world)?;
    let bearer = world.bearer(ALICE)?;
    let agent = world.agent1.take().context("agent")?;
    agent.process.signal(9);
    drop(agent);
    let status = watch.ends(Duration::from_secs(30))?;
    ensure!(!status.success(), "a cut watch looked like a clean end");
    // QUIC sees no end of a killed process: it is the silence that tells.
    eventually("503", Duration::from_secs(40), || {
        let (code, body) = curl(world, Some(&bearer), "/k8s/clusters/edge1/version", &[], &["--max-time", "2"])?;
        ensure!(code == 503, "{code} {body}");
        Ok(())
    })?;
    let output = run(world.through(ALICE, "edge1")?.args(["get", "pods"]), b"")?;
    let answer = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(answer.contains("has not been connected since"), "{answer}");
    println!("without an agent kubectl says: {}", answer.trim());
    let started = Instant::now();
    world.restart_agent1()?;
    println!("back {:?} after its start, without a token", started.elapsed());
    world.kubectl(ALICE, &["get", "namespaces"]).map(drop)
}

pub fn hub_drains(world: &mut World) -> Result<()> {
    let mut watch = watching(world)?;
    let mut process = world.hub.process.take().context("hub")?;
    process.signal(15);
    let code = process.wait(Duration::from_secs(60))?;
    ensure!(code == Some(0), "exit code {code:?}: {}", process.log());
    watch.ends(Duration::from_secs(10))?;
    world.hub.restart()?;
    for cluster in ["edge1", "edge2"] {
        world.hub.wait_connected(cluster, Duration::from_secs(30))?;
    }
    world.kubectl(ALICE, &["get", "namespaces"]).map(drop)
}

pub fn hub_killed(world: &mut World) -> Result<()> {
    let process = world.hub.process.take().context("hub")?;
    process.signal(9);
    drop(process);
    let started = Instant::now();
    let output = run(world.through(ALICE, "edge1")?.args(["get", "pods", "--request-timeout=5s"]), b"")?;
    ensure!(!output.status.success() && started.elapsed() < Duration::from_secs(20));
    world.hub.restart()?;
    let listening = Instant::now();
    for cluster in ["edge1", "edge2"] {
        world.hub.wait_connected(cluster, Duration::from_secs(30))?;
    }
    println!("both agents back {:?} after the hub was ready again", listening.elapsed());
    world.kubectl(ALICE, &["get", "namespaces"]).map(drop)
}
