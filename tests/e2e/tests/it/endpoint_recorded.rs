//! Terminals on the direct way: recorded while the hub is away, taken over when it is back, and shown there byte for byte.

use crate::{
    endpoint::token_of,
    recordings::{recorded, replayed},
    streams::{Kubectl, Way, pod},
    world::{ALICE, World},
};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    binary,
    moorline::{Agent, kubectl},
    process::{Process, eventually, run},
};
use serde_json::Value;
use std::{path::Path, process::Command, time::Duration};

/// edge1's API server under another name, with an endpoint of its own.
const CLUSTER: &str = "edge1-recorded";
const PROXY: &str = "127.0.0.1:6446";
const SOON: Duration = Duration::from_secs(60);

fn start(world: &World, room: &Path) -> Result<(Agent, Process)> {
    let network = world.edge1.network().context("a network")?;
    let mut join = world.hub.join_command(CLUSTER)?;
    for word in &mut join {
        if word.starts_with("https://") {
            *word = format!("https://{}:{}", network.outside, world.hub.port);
        }
    }
    let folder = room.display().to_string();
    let agent = Agent::start(&world.edge1, &join, &world.dir.join("agent-recorded"), &["--endpoint-dir", &folder])?;
    world.hub.wait_connected(CLUSTER, SOON).with_context(|| agent.process.log())?;
    eventually("whose bundles it takes", SOON, || Ok(std::fs::metadata(room.join("hub-ca.pem")).map(drop)?))?;
    let mut command = world.edge1.command(binary());
    command.args(["endpoint", "--mode", "proxy", "--dir"]).arg(room).arg("--kubeconfig").arg(world.edge1.kubeconfig());
    command.args(["--listen", PROXY, "--name", "127.0.0.1", "--public-url", &format!("https://{PROXY}")]);
    Ok((agent, Process::spawn(command, &world.dir.join("endpoint-recorded.log"))?))
}

/// kubectl in the cluster's network, with nothing but a token.
fn direct(world: &World, room: &Path, token: &str) -> Command {
    let mut command = world.edge1.command(kubectl());
    command.args(["--kubeconfig", "/dev/null", "--server", &format!("https://{PROXY}"), "--token", token]);
    command.arg("--certificate-authority").arg(room.join("tls/ca.crt"));
    command
}

fn list(world: &World) -> Result<Vec<Value>> {
    recorded(world, ["--cluster", CLUSTER])
}

pub fn all(world: &mut World) -> Result<()> {
    pod(world)?;
    let room = world.dir.join("endpoint-recorded");
    let (agent, endpoint) = start(world, &room)?;
    let outcome = scene(world, &room).with_context(|| format!("{}\n{}", endpoint.log(), agent.process.log()));
    world.heal()?;
    outcome
}

fn scene(world: &mut World, room: &Path) -> Result<()> {
    world.hub.moorline("admin", &["grant", "create", "alice-recorded", "--user", ALICE, "--cluster", CLUSTER])?;
    world.hub.moorline("admin", &["audit", "record", CLUSTER, "always"])?;
    let token = eventually("a token", SOON, || token_of(world, ALICE, CLUSTER))?;
    let waiting = || -> Result<usize> {
        let files = std::fs::read_dir(room.join("recordings"))?;
        Ok(files.flatten().filter(|file| file.path().extension().is_some_and(|end| end == "cast")).count())
    };
    // Whether a session is recorded says the bundle: it has arrived when one was, and the hub has that one.
    eventually("the first recording", SOON, || {
        let seen = run(direct(world, room, &token).args(["-n", "team", "exec", "box", "--", "true"]), b"")?;
        ensure!(seen.status.success(), "{seen:?}");
        ensure!(!list(world)?.is_empty(), "not recorded, or not taken yet");
        Ok(())
    })?;
    // Those of below say what they ran.
    let ours = |one: &Value| one["requestURI"].as_str().is_some_and(|uri| uri.contains("200000"));

    world.hub.process.take().context("hub")?.signal(9);
    let start = || Ok(direct(world, room, &token));
    let beside = |program: &str| world.edge1.command(program);
    let mut shown = Vec::new();
    for way in [Way::WebSocketFirst, Way::SpdyOnly] {
        let kubectl = Kubectl { way, start: &start, beside: &beside };
        let script = format!("echo grün {way:?}; seq 1 200000; cat");
        let seen = run(&mut kubectl.command(&["exec", "-i", "box", "--", "sh", "-c", &script])?, b"and back\n")?;
        ensure!(seen.status.success() && seen.stdout.ends_with(b"200000\nand back\n"), "{way:?}: {seen:?}");
        shown.push(seen.stdout);
        eventually("it waits", SOON, || {
            ensure!(shown.len() <= waiting()?, "{} wait", waiting()?);
            Ok(())
        })?;
    }
    world.hub.restart()?;
    world.hub.wait_connected(CLUSTER, SOON)?;
    let names = eventually("both at the hub", SOON, || {
        let new: Vec<Value> = list(world)?.iter().filter(|one| ours(one)).map(|one| one["name"].clone()).collect();
        ensure!(new.len() == 2 && waiting()? == 0, "{new:?} here, {} there", waiting()?);
        Ok(new)
    })?;
    let mut found = Vec::new();
    for name in &names {
        found.push(replayed(world, name.as_str().context("a name")?)?);
    }
    found.sort();
    shown.sort();
    ensure!(found == shown, "other bytes than kubectl printed");
    println!("two sessions of {} bytes were taken over and replay as sealed", shown.concat().len());
    let log = world.hub.data().join("audit.log");
    world.hub.moorline("admin", &["audit", "verify", &log.to_string_lossy()])?;
    // Consoles and kubelets' own ways are refused as at the hub.
    let node = ["create", "--raw", "/api/v1/nodes/none/proxy/run/team/box/box?cmd=id", "-f", "/dev/null"];
    let refused = run(direct(world, room, &token).args(node), b"")?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && words.contains("recorded here"), "{words}");
    Ok(())
}
