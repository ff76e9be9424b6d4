//! The units of `deploy/systemd` under a real systemd: an agent and an endpoint beside each other, as `moorline-agent.service` and
//! `moorline-endpoint@proxy.service` say it, by their own users and in their sandboxes.

use crate::world::{ALICE, World};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    binary,
    process::{Process, eventually, text},
    root,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const SOON: Duration = Duration::from_secs(90);
const CLUSTER: &str = "edge2-units";
const LISTEN: &str = "127.0.0.1:6447";
const AGENT: &str = "moorline-agent.service";
const ENDPOINT: &str = "moorline-endpoint@proxy.service";

/// A systemd that is the first of its processes. Dropping it ends them all.
struct Systemd {
    process: Process,
    dir: PathBuf,
}

impl Systemd {
    /// Its process id, as this side sees it.
    fn first(&self) -> Result<String> {
        let id = self.process.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        children.split_whitespace().next().map(str::to_owned).context("no first process yet")
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first()?, "--mount", "--pid", "--net", "--cgroup", "--uts", "--ipc", program]);
        Ok(command)
    }

    fn systemctl(&self, args: &[&str]) -> Result<String> {
        text(self.command("systemctl")?.args(args))
    }

    fn property(&self, unit: &str, name: &str) -> Result<String> {
        Ok(self.systemctl(&["show", "--value", "--property", name, unit])?.trim().to_owned())
    }

    fn active(&self, unit: &str) -> Result<()> {
        eventually(unit, SOON, || {
            let state = self.property(unit, "ActiveState")?;
            ensure!(state == "active", "{unit} is {state}");
            Ok(())
        })
        .with_context(|| self.log(unit))
    }

    fn log(&self, unit: &str) -> String {
        let journal = self.command("journalctl").and_then(|mut c| text(c.args(["--no-pager", "-n", "40", "-u", unit])));
        let why = self.property(unit, "Result").unwrap_or_default();
        format!("{why}\n{}\n{}", journal.unwrap_or_default(), self.process.log())
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.process.signal(9);
        let _ = self.process.wait(SOON);
        let group = fs::read_to_string(self.dir.join("cgroup")).unwrap_or_default();
        // find says nothing of what rmdir could not remove: a group goes when its last process is gone.
        let removed = eventually("an empty group", SOON, || {
            let mut remove = Command::new("find");
            text(remove.arg(group.trim()).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]))?;
            ensure!(!Path::new(group.trim()).exists(), "{group} is left");
            Ok(())
        });
        if let Err(error) = removed {
            eprintln!("{error:#}");
        }
    }
}

/// What an owner writes: `/etc/moorline`. The units are the ones that the package has.
fn files(world: &World) -> Result<PathBuf> {
    let dir = world.dir.join("systemd");
    let (units, etc) = (dir.join("files/etc/systemd/system"), dir.join("files/etc/moorline"));
    let faster = units.join("moorline-endpoint@.service.d");
    fs::create_dir_all(&faster)?;
    fs::create_dir_all(&etc)?;
    for unit in [AGENT, "moorline-endpoint@.service"] {
        fs::copy(root().join("deploy/systemd").join(unit), units.join(unit))?;
    }
    // Half a minute is long for a test.
    fs::write(faster.join("test.conf"), "[Service]\nWatchdogSec=5\n")?;
    let network = world.edge2.network().context("a network")?;
    let join = world.hub.join_command(CLUSTER)?;
    let token = join.iter().skip_while(|w| *w != "--token").nth(1).context("token")?;
    fs::write(etc.join("token"), token)?;
    fs::copy(world.edge2.kubeconfig(), etc.join("kubeconfig"))?;
    let (hub, port) = (&network.outside, world.hub.port);
    let agent = format!(
        "hub: https://{hub}:{port}\ntokenFile: /etc/moorline/token\nkubeconfig: /etc/moorline/kubeconfig\n\
         endpointDir: /var/lib/moorline-endpoint\nname: unit\n"
    );
    fs::write(etc.join("agent.yaml"), agent)?;
    let endpoint = format!(
        "MOORLINE_LISTEN={LISTEN}\nMOORLINE_NAMES=127.0.0.1\nMOORLINE_PUBLIC_URL=https://{LISTEN}\n\
         MOORLINE_KUBECONFIG=/etc/moorline/kubeconfig\n"
    );
    fs::write(etc.join("endpoint-proxy.env"), endpoint)?;
    for file in ["token", "kubeconfig"] {
        // The users are made by systemd, and are in no group of ours.
        fs::set_permissions(etc.join(file), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    }
    Ok(dir)
}

pub fn all(world: &mut World) -> Result<()> {
    let dir = files(world)?;
    let mut boot = world.edge2.command(root().join("tests/kube/systemd.sh"));
    boot.arg(&dir).arg(format!("{}=/usr/bin/moorline", binary().display()));
    let systemd = Systemd { process: Process::spawn(boot, &dir.join("log"))?, dir };
    eventually("a systemd", SOON, || systemd.systemctl(&["is-active", "basic.target"]))
        .with_context(|| systemd.process.log())?;
    systemd.systemctl(&["start", "--no-block", AGENT, ENDPOINT])?;
    systemd.active(AGENT)?;
    systemd.active(ENDPOINT)?;
    world.hub.wait_connected(CLUSTER, SOON).with_context(|| systemd.log(AGENT))?;

    // Users whom systemd made, and the same one for both: they share a folder.
    let user = |unit: &str| -> Result<(String, String)> {
        let pid = systemd.property(unit, "MainPID")?;
        let status = text(systemd.command("cat")?.arg(format!("/proc/{pid}/status")))?;
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("Uid")?;
        Ok((pid, line.split_whitespace().next().context("a number")?.to_owned()))
    };
    let ((_, agent), (pid, endpoint)) = (user(AGENT)?, user(ENDPOINT)?);
    ensure!(agent == endpoint && agent != "0", "{agent} and {endpoint}");

    world.hub.moorline("admin", &["grant", "create", "alice-units", "--user", ALICE, "--cluster", CLUSTER])?;
    serves(world, &systemd)?;

    // It stands still: systemd's watchdog ends it and starts it anew, and it serves by the bundle that it kept.
    let before = systemd.property(ENDPOINT, "NRestarts")?;
    text(systemd.command("kill")?.args(["-STOP", &pid]))?;
    eventually("a restart by the watchdog", SOON, || {
        ensure!(systemd.property(ENDPOINT, "NRestarts")? != before, "not yet");
        Ok(())
    })
    .with_context(|| systemd.log(ENDPOINT))?;
    systemd.active(ENDPOINT)?;
    let log = systemd.log(ENDPOINT);
    ensure!(log.contains("Watchdog timeout"), "{log}");
    serves(world, &systemd)?;

    // Told to end it ends well.
    systemd.systemctl(&["stop", ENDPOINT, AGENT])?;
    for unit in [ENDPOINT, AGENT] {
        let (state, result) = (systemd.property(unit, "ActiveState")?, systemd.property(unit, "Result")?);
        ensure!(state == "inactive" && result == "success", "{unit}: {state}, {result}\n{}", systemd.log(unit));
    }
    Ok(())
}

/// Alice gets in, verified by the authority that the endpoint made in its folder.
fn serves(world: &World, systemd: &Systemd) -> Result<()> {
    let url = world.hub.url();
    let credential = world.hub.moorline(ALICE, &["kube", "credential", "--hub", &url, "--cluster", CLUSTER])?;
    let credential: Value = serde_json::from_str(&credential)?;
    let token = credential.pointer("/status/token").and_then(Value::as_str).context("a token")?;
    eventually("alice is let in", SOON, || {
        let ca = "/var/lib/moorline-endpoint/tls/ca.crt";
        let mut ask = systemd.command("curl")?;
        ask.args(["-sf", "--max-time", "10", "--cacert", ca, "-H", &format!("Authorization: Bearer {token}")]);
        let answer = text(ask.arg(format!("https://{LISTEN}/api/v1/namespaces")))?;
        ensure!(answer.contains("kube-system"), "{answer}");
        Ok(())
    })
    .with_context(|| systemd.log(ENDPOINT))
}
