//! One context for both ways: plain kubectl goes on while endpoint and hub come and go.

use crate::{
    endpoint,
    world::{ALICE, World},
};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    binary,
    moorline::kubectl,
    process::{eventually, run, text},
};
use serde_json::Value;
use std::{
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

/// Longest until a way that is there is found.
const SOON: Duration = Duration::from_secs(60);

/// Alice where both ways can be reached: in edge2's own network.
struct Inside {
    home: PathBuf,
    config: PathBuf,
}

impl Inside {
    fn moorline(&self, world: &World, args: &[&str]) -> Command {
        let mut command = world.edge2.command(binary());
        command.env("XDG_CONFIG_HOME", &self.home).env("NO_COLOR", "1").args(args);
        command
    }

    fn kubectl(&self, world: &World, args: &[&str]) -> Result<Output> {
        let mut command = world.edge2.command(kubectl());
        command.env("XDG_CONFIG_HOME", &self.home).arg("--kubeconfig").arg(&self.config).args(args);
        run(&mut command, b"")
    }

    /// The way that the last request took.
    fn way(&self, world: &World) -> Result<String> {
        let shown: Value = serde_json::from_str(&text(&mut self.moorline(world, &["kube", "relay", "--show"]))?)?;
        let way = shown.pointer("/clusters/0/way").and_then(Value::as_str);
        way.map(str::to_owned).with_context(|| shown.to_string())
    }

    /// The very next kubectl works, and went this way.
    fn goes(&self, world: &World, way: &str, when: &str) -> Result<()> {
        let begun = Instant::now();
        let answer = self.kubectl(world, &["get", "namespaces", "-o", "name"])?;
        let took = begun.elapsed();
        ensure!(answer.status.success(), "{when}: {}", String::from_utf8_lossy(&answer.stderr));
        ensure!(self.way(world)? == way, "{when}: {}, not {way}", self.way(world)?);
        println!("{when}: the next kubectl went by the {way} way in {took:?}");
        Ok(())
    }
}

pub fn all(world: &mut World) -> Result<()> {
    let inside = Inside { home: world.dir.join("users/alice-auto"), config: world.dir.join("alice-auto.kubeconfig") };
    let outcome = scene(world, &inside);
    let _ = run(&mut inside.moorline(world, &["kube", "relay", "--stop"]), b"");
    outcome
}

fn scene(world: &mut World, inside: &Inside) -> Result<()> {
    let proxy = endpoint::start(world, "proxy")?;
    let outside = world.edge2.network().context("a network")?.outside.clone();
    let hub = format!("https://{outside}:{}", world.hub.port);
    let ca = world.hub.data().join("ca.crt");
    let mut login = inside.moorline(world, &["login", &hub, "--user", ALICE, "--password-stdin", "--ca-file"]);
    let output = run(login.arg(ca), format!("pw-of-{ALICE}-123456").as_bytes())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The next bundle brings the hub word of where the endpoint is.
    world.hub.moorline("admin", &["grant", "create", "auto", "--user", "nobody-yet", "--cluster", "edge2"])?;
    eventually("a direct way", Duration::from_secs(30), || {
        let listed = world.hub.moorline("admin", &["clusters", "edge2", "-o", "json"])?;
        ensure!(listed.contains("https://127.0.0.1:6444"), "not told yet");
        Ok(())
    })
    .with_context(|| proxy.log())?;
    let written = text(&mut inside.moorline(world, &["kubeconfig", "edge2", "--auto"]))?;
    ensure!(written.matches("server:").count() == 1 && !written.contains("edge2-direct"), "{written}");
    std::fs::write(&inside.config, written)?;

    // The endpoint is away: through the hub.
    drop(proxy);
    inside.goes(world, "hub", "without the endpoint")?;
    // The same answers as any other way: whom to act as is asked, and refused, all the same.
    let own = run(world.through(ALICE, "edge2")?.args(["auth", "can-i", "--list"]), b"")?;
    ensure!(inside.kubectl(world, &["auth", "can-i", "--list"])?.stdout == own.stdout, "another answer");
    ensure!(!inside.kubectl(world, &["get", "pods", "--as", "system:admin"])?.status.success(), "became somebody else");

    // The hub is killed: the endpoint.
    // Its log has the words of those before.
    let serving = |log: &str| log.matches("endpoint serves").count();
    let before = serving(&std::fs::read_to_string(world.dir.join("endpoint-proxy.log")).unwrap_or_default());
    let proxy = endpoint::start(world, "proxy")?;
    eventually("an endpoint", Duration::from_secs(60), || {
        ensure!(before < serving(&proxy.log()), "not yet");
        Ok(())
    })?;
    world.hub.process.take().context("hub")?.signal(9);
    inside.goes(world, "direct", "hub killed")?;
    for _ in 0..3 {
        inside.goes(world, "direct", "hub away")?;
    }
    world.hub.restart()?;
    world.all_connected()?;

    // The hub is back, and the endpoint goes: the hub again.
    drop(proxy);
    inside.goes(world, "hub", "endpoint ended, hub back")?;
    // A user who is deactivated is out, and no way leads around that.
    world.hub.moorline("admin", &["user", "disable", ALICE])?;
    eventually("out", SOON, || {
        ensure!(!inside.kubectl(world, &["get", "namespaces"])?.status.success(), "alice is still in");
        Ok(())
    })?;
    world.hub.moorline("admin", &["user", "enable", ALICE]).map(drop)
}
