//! A hub whose objects move from its file to an etcd and back, and an etcd that does not answer.

use crate::world::World;
use anyhow::{Context, Result, bail, ensure};
use moorline_e2e::{
    binary,
    moorline::Hub,
    process::{Process, eventually, run, text},
};
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

const HUB: u16 = 18743;
const ETCD: u16 = 12579;
const PATIENCE: Duration = Duration::from_secs(60);
/// How long rights count without the store.
const RIGHTS: Duration = Duration::from_secs(3);
/// When all has to be as usual again (F35).
const NORMAL: Duration = Duration::from_secs(10);

fn start_etcd(dir: &Path) -> Result<Process> {
    let (client, peer) = (format!("http://127.0.0.1:{ETCD}"), format!("http://127.0.0.1:{}", ETCD + 1));
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(dir.join("etcd"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}"), "--logger", "zap", "--log-outputs", "stderr"]);
    Process::spawn(command, &dir.join("etcd.log"))
}

fn hub_command(hub: &Hub, words: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("hub").args(words).arg("--data-dir").arg(hub.data());
    command
}

fn users(hub: &Hub) -> Result<String> {
    hub.moorline("admin", &["user", "list", "-o", "name"])
}

/// A write that has to be refused, and why it was.
fn refused(hub: &Hub, user: &str) -> Result<String> {
    let output = run(hub.cli("admin").args(["user", "create", user, "--no-password"]), b"")?;
    ensure!(!output.status.success(), "a write was taken");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

pub fn moves(world: &mut World) -> Result<()> {
    let dir = world.dir.join("moving");
    std::fs::create_dir(&dir)?;
    let address = format!("etcd://127.0.0.1:{ETCD}");
    let etcd = start_etcd(&dir)?;
    let mut hub = Hub::start(&dir, HUB, &["127.0.0.1"])?;
    hub.moorline("admin", &["user", "create", "anna", "--no-password"])?;

    // While the hub runs: all that reads goes on, and nothing is written that would stay behind.
    let said = text(&mut hub_command(&hub, &["migrate", "--to", &address]))?;
    ensure!(said.contains(&format!("start the hub with --store {address}")), "{said}");
    ensure!(users(&hub)?.contains("anna"), "reads go on");
    let why = refused(&hub, "late")?;
    ensure!(why.contains("moves to another place"), "{why}");
    // Started as before it would be a hub with nothing in it.
    hub.process = None;
    let listen = [format!("127.0.0.1:{HUB}"), format!("127.0.0.1:{}", HUB + 1000)];
    let words = ["--name", "127.0.0.1", "--listen", &listen[0], "--ops-listen", &listen[1]];
    let output = run(&mut hub_command(&hub, &words), b"")?;
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && why.contains("moved to an etcd"), "{why}");

    let file = dir.join("hub.yaml");
    std::fs::write(&file, format!("rightsWithoutStore: {}s\n", RIGHTS.as_secs()))?;
    hub.more = vec!["--store".into(), address.clone(), "--config".into(), file.display().to_string()];
    hub.restart()?;
    ensure!(users(&hub)?.contains("anna"), "what was there is there");
    hub.moorline("admin", &["user", "create", "bob", "--no-password"])?;

    // F35, with one member: reads go on, writes are refused, and it is said; all by itself it is well again.
    etcd.signal(libc::SIGSTOP);
    ensure!(users(&hub)?.contains("bob"), "reads go on");
    // Whether this one was written is not known, and it says so: it may be there once etcd goes on.
    let why = refused(&hub, "perhaps")?;
    ensure!(why.contains("until its etcd answers") || why.contains("overloaded"), "{why}");
    if hub.ops("/readyz").is_ok() {
        bail!("it says that it is ready");
    }
    // For a while. Then nobody knows who may still do what, and nobody is let in.
    eventually("refused reads", PATIENCE, || {
        let why = users(&hub).err().map(|error| format!("{error:#}")).context("reads still go on")?;
        ensure!(why.contains("whether rights were taken away"), "{why}");
        Ok(())
    })?;
    etcd.signal(libc::SIGCONT);
    let begun = Instant::now();
    eventually("ready hub", PATIENCE, || hub.ops("/readyz").map(drop))?;
    ensure!(users(&hub)?.contains("bob"), "reads are there again");
    println!("all is normal {:?} after etcd is", begun.elapsed());
    ensure!(begun.elapsed() < NORMAL, "normal {:?} after etcd is", begun.elapsed());
    hub.moorline("admin", &["user", "create", "carl", "--no-password"])?;

    text(&mut hub_command(&hub, &["backup", dir.join("backup").to_str().context("path")?]))?;
    hub.process = None;
    let said = text(&mut hub_command(&hub, &["migrate", "--from", &address, "--to", "redb"]))?;
    ensure!(said.contains("are in redb"), "{said}");
    hub.more.clear();
    hub.restart()?;
    let all = users(&hub)?;
    ensure!(["anna", "bob", "carl"].iter().all(|user| all.contains(user)), "{all}");
    ensure!(!all.contains("late"), "a write that was refused came true");
    Ok(())
}
