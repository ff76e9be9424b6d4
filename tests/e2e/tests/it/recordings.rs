//! Sessions in terminals are recorded, whatever carries them, and shown again byte for byte.

use crate::{
    nodes::{join, shell_root},
    streams::{Kubectl, Way, pod},
    world::{ALICE, World},
};
use anyhow::{Context, Result, ensure};
use moorline_e2e::process::{eventually, run};
use serde_json::Value;
use std::{process::Command, time::Duration};

/// The recording that was not there before, once it is over. Two of one second stand in any order.
fn newest(world: &World, before: &[Value]) -> Result<String> {
    let known = |one: &Value| before.iter().any(|old| old["name"] == one["name"]);
    let mut name = String::new();
    eventually("a recording", Duration::from_secs(30), || {
        let all = list(world)?;
        let new = all.iter().find(|one| !known(one) && one["open"] == false);
        name = new.with_context(|| format!("{} recordings", all.len()))?["name"].as_str().context("a name")?.to_owned();
        Ok(())
    })?;
    Ok(name)
}

fn list(world: &World) -> Result<Vec<Value>> {
    recorded(world, ["--user", ALICE])
}

/// The recordings that such a flag chooses.
pub fn recorded(world: &World, which: [&str; 2]) -> Result<Vec<Value>> {
    let all = world.hub.moorline("admin", &[&["audit", "recordings", "-o", "json"], &which[..]].concat())?;
    all.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// What replays, and that it is sealed.
pub fn replayed(world: &World, name: &str) -> Result<Vec<u8>> {
    let said = run(world.hub.cli("admin").args(["audit", "replay", name]), b"")?;
    let words = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(said.status.success() && words.contains("sealed: "), "{name}: {words}");
    Ok(said.stdout)
}

pub fn all(world: &mut World) -> Result<()> {
    pod(world)?;
    world.hub.moorline("admin", &["audit", "record", "edge1", "always"])?;
    eventually("the cluster's wish has arrived", Duration::from_secs(20), || {
        let said = world.hub.moorline(ALICE, &["auth", "can-i", "get", "pods", "--cluster", "edge1", "-n", "team"])?;
        ensure!(said.contains("terminals are recorded"), "{said}");
        Ok(())
    })?;
    let start = || world.through(ALICE, "edge1");
    let beside = |program: &str| Command::new(program);
    for way in [Way::WebSocketFirst, Way::SpdyOnly] {
        let kubectl = Kubectl { way, start: &start, beside: &beside };
        // Pipes: what kubectl prints is what was shown.
        let before = list(world)?;
        let script = "echo grün; printf '\\033[1mbold\\033[0m\\n'; seq 1 20000; cat";
        let seen = run(&mut kubectl.command(&["exec", "-i", "box", "--", "sh", "-c", script])?, b"and back\n")?;
        ensure!(seen.status.success() && seen.stdout.ends_with(b"20000\nand back\n"), "{way:?}: {seen:?}");
        let name = newest(world, &before)?;
        ensure!(replayed(world, &name)? == seen.stdout, "{way:?}: other bytes than kubectl printed");
        // A terminal.
        let before = list(world)?;
        let tty = kubectl.in_a_terminal(&["exec", "-it", "box", "--", "sh", "-c", "tty; echo in a terminal"])?;
        let name = newest(world, &before)?;
        let shown = replayed(world, &name)?;
        // What ends the input may still be echoed behind it (`^@`).
        let says = String::from_utf8_lossy(&shown).contains("in a terminal\r\n");
        ensure!(tty.as_bytes().ends_with(&shown) && says, "{way:?}: {tty:?} {shown:?}");
    }

    let root = shell_root(world)?.to_string_lossy().into_owned();
    let policy = world.dir.join("recorded-shells.yaml");
    std::fs::write(&policy, "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {shells: {allow: true}}\n")?;
    let node = join(world, &["--shell-root", &root, "--policy-file", &policy.to_string_lossy()])?;
    let before = list(world)?;
    let seen = run(world.hub.cli(ALICE).args(["shell", "edge1"]), b"echo from a node; exit\n")?;
    let name = newest(world, &before)?;
    let shown = replayed(world, &name)?;
    ensure!(shown == seen.stdout && String::from_utf8_lossy(&shown).contains("from a node"), "{seen:?} {shown:?}");
    drop(node);

    // Nobody's business but auditors'.
    let said = run(world.hub.cli(ALICE).args(["audit", "replay", &name]), b"")?;
    ensure!(!said.status.success() && String::from_utf8_lossy(&said.stderr).contains("auditors"), "{said:?}");
    // Who can change the file cannot change what the log says of it.
    let file = world.hub.data().join(format!("recordings/{name}.cast"));
    let bent = std::fs::read_to_string(&file)?.replace("from a node", "from a nude");
    std::fs::write(&file, bent)?;
    let said = run(world.hub.cli("admin").args(["audit", "replay", &name]), b"")?;
    ensure!(!said.status.success() && String::from_utf8_lossy(&said.stderr).contains("was changed"), "{said:?}");
    let log = world.hub.data().join("audit.log");
    world.hub.moorline("admin", &["audit", "verify", &log.to_string_lossy()])?;

    world.hub.moorline("admin", &["audit", "record", "edge1", "default"])?;
    eventually("nothing is recorded any more", Duration::from_secs(20), || {
        let count = list(world)?.len();
        let kubectl = Kubectl { way: Way::WebSocketFirst, start: &start, beside: &beside };
        run(&mut kubectl.command(&["exec", "box", "--", "true"])?, b"")?;
        ensure!(list(world)?.len() == count, "one more recording");
        Ok(())
    })
}
