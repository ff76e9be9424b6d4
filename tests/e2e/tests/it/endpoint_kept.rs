//! A bundle in a Secret: a new agent on a new node has it while there is no hub, and an endpoint serves by it.

use crate::world::{ALICE, World};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    binary,
    moorline::{Agent, kubectl},
    process::{Process, eventually, run},
};
use serde_json::Value;
use std::{path::Path, time::Duration};

const SOON: Duration = Duration::from_secs(60);
const SECRET: &str = "default/moorline-bundle";
const LISTEN: &str = "127.0.0.1:6446";

fn agent(world: &World, words: &[String], room: &Path, key: &Path) -> Result<Agent> {
    let (room, key) = (room.display().to_string(), key.display().to_string());
    let more = ["--name", "kept", "--endpoint-dir", &room, "--endpoint-seal-key", &key, "--endpoint-secret", SECRET];
    Agent::start(&world.edge2, words, &world.dir.join("agent-kept"), &more)
}

fn endpoint(world: &World, room: &Path, key: &Path) -> Result<Process> {
    let mut command = world.edge2.command(binary());
    command.args(["endpoint", "--mode", "proxy", "--listen", LISTEN, "--name", "127.0.0.1", "--dir"]).arg(room);
    command.arg("--seal-key").arg(key).arg("--kubeconfig").arg(world.edge2.kubeconfig());
    Process::spawn(command, &room.with_extension("log"))
}

/// The bundle in the Secret, base64.
fn kept(world: &World) -> Result<String> {
    let data = world.edge2.admin(&["get", "secret", "moorline-bundle", "-o", "jsonpath={.data.bundle}"])?;
    ensure!(!data.is_empty(), "nothing is in the Secret yet");
    Ok(data)
}

pub fn all(world: &mut World) -> Result<()> {
    world.edge2.admin(&["create", "secret", "generic", "moorline-bundle"])?;
    let outcome = scene(world);
    world.edge2.admin(&["delete", "secret", "moorline-bundle"])?;
    outcome
}

fn scene(world: &mut World) -> Result<()> {
    let key = world.dir.join("seal.key");
    std::fs::write(&key, "0123456789abcdef0123456789abcdef\n")?;
    let network = world.edge2.network().context("a network")?;
    let mut join = world.hub.join_command("edge2")?;
    for word in &mut join {
        if word.starts_with("https://") {
            *word = format!("https://{}:{}", network.outside, world.hub.port);
        }
    }
    let (first, second) = (world.dir.join("room-1"), world.dir.join("room-2"));
    let one = agent(world, &join, &first, &key)?;
    let old = eventually("a bundle in the Secret", SOON, || kept(world)).with_context(|| one.process.log())?;
    // A user more, and soon the Secret has it.
    world.hub.add_user("kept", &["edge2"])?;
    eventually("the newer one", SOON, || {
        ensure!(kept(world)? != old, "the old one");
        Ok(())
    })?;
    let url = world.hub.url();
    let credential = world.hub.moorline(ALICE, &["kube", "credential", "--hub", &url, "--cluster", "edge2"])?;
    let credential: Value = serde_json::from_str(&credential)?;
    let token = credential.pointer("/status/token").and_then(Value::as_str).context("a token")?;

    // No hub, no agent, a folder that is empty: what a new pod finds.
    drop(world.hub.process.take().inspect(|hub| hub.signal(9)));
    drop(one);
    let two = agent(world, &join, &second, &key)?;
    eventually("the bundle from the Secret", SOON, || {
        ensure!(second.join("bundle").exists(), "not there");
        Ok(())
    })
    .with_context(|| two.process.log())?;
    let serving = endpoint(world, &second, &key)?;
    eventually("alice is let in", SOON, || {
        let mut command = world.edge2.command(kubectl());
        command.args(["--kubeconfig", "/dev/null", "--server", &format!("https://{LISTEN}"), "--token", token]);
        command.arg("--certificate-authority").arg(second.join("tls/ca.crt"));
        let answer = run(command.args(["get", "namespaces", "-o", "name"]), b"")?;
        ensure!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
        Ok(())
    })
    .with_context(|| format!("{}\n{}", serving.log(), two.process.log()))?;
    drop(serving);

    // Without the key nobody reads it.
    let other = world.dir.join("other.key");
    std::fs::write(&other, "another key of thirty-two letters")?;
    let mut stranger = endpoint(world, &second, &other)?;
    ensure!(stranger.wait(SOON)? == Some(1), "it serves by a bundle that it cannot read");
    ensure!(stranger.log().contains("another key"), "{}", stranger.log());
    drop(two);
    world.hub.restart()?;
    world.all_connected()
}
