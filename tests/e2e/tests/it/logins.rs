//! kubectl with a login: the credential plugin, as kubectl of several versions runs it.

use crate::world::{ALICE, World};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    moorline::{kubectl, kubectl_older},
    process::{run, text},
};
use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

/// What one user's scripts run at once.
const AT_ONCE: usize = 8;

/// Makes alice's access token due.
fn make_due(world: &World) -> Result<()> {
    let path = world.dir.join("users").join(ALICE).join("moorline/config.yaml");
    let before = std::fs::read_to_string(&path)?;
    let line = |line: &str| {
        if line.trim_start().starts_with("renew:") {
            "  renew: \"2001-01-01T00:00:00Z\"".to_owned()
        } else {
            line.to_owned()
        }
    };
    let after: Vec<String> = before.lines().map(line).collect();
    ensure!(after.join("\n") != before.trim_end(), "no time of renewal in {before}");
    Ok(std::fs::write(path, after.join("\n") + "\n")?)
}

pub fn credential_plugin(world: &mut World) -> Result<()> {
    let config = world.dir.join("alice-exec.kubeconfig");
    std::fs::write(&config, world.hub.moorline(ALICE, &["kubeconfig", "edge1"])?)?;
    let home = world.dir.join("users").join(ALICE);
    let command = |program: &PathBuf| {
        let mut command = Command::new(program);
        command.env("XDG_CONFIG_HOME", &home).arg("--kubeconfig").arg(&config);
        command
    };
    let programs = [kubectl(), kubectl_older()];
    for program in &programs {
        let refreshes = || world.hub.metric("moorline_hub_refreshes_total", &["result=\"ok\""]);
        make_due(world)?;
        let before = refreshes()?;
        let mut all = Vec::new();
        for _ in 0..AT_ONCE {
            let mut kubectl = command(program);
            kubectl.args(["get", "namespaces", "-o", "name"]).stdout(Stdio::piped()).stderr(Stdio::piped());
            all.push(kubectl.spawn()?);
        }
        for child in all {
            let output = child.wait_with_output()?;
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "{}: {words}", program.display());
            ensure!(String::from_utf8_lossy(&output.stdout).contains("namespace/team"), "{}", program.display());
        }
        ensure!(refreshes()? - before == 1.0, "{AT_ONCE} at once renewed {} times", refreshes()? - before);
    }
    // A login that was ended elsewhere: kubectl shows what to do.
    let tokens = world.hub.moorline("admin", &["get", "tokens", "-o", "json"])?;
    let tokens: serde_json::Value = serde_json::from_str(&tokens)?;
    let items = tokens["items"].as_array().context("a list")?;
    let logins = items.iter().filter(|token| token["spec"]["user"] == ALICE && token["spec"]["provider"] == "local");
    let names: Vec<_> = logins.filter_map(|token| token["metadata"]["name"].as_str()).collect();
    ensure!(!names.is_empty(), "alice has a login");
    for name in names {
        world
            .hub
            .moorline("admin", &["apikey", "revoke", name, "--yes"])
            .or_else(|_| world.hub.moorline("admin", &["apikey", "revoke", name]))?;
    }
    make_due(world)?;
    let output = run(command(&kubectl()).args(["get", "namespaces"]), b"")?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && words.contains("moorline login https://"), "{words}");
    world.hub.login(ALICE, b"pw-of-alice-123456")?;
    text(command(&kubectl()).args(["get", "namespaces"])).map(drop)?;
    for path in std::fs::read_dir(&world.dir)?.flatten().map(|entry| entry.path()) {
        // Kubeconfigs with the token of the login that has ended.
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("alice-edge")) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}
