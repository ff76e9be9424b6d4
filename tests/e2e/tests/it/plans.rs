//! Plans on a node with a real etcd: a snapshot brings a deleted namespace back.

use crate::world::World;
use anyhow::{Result, ensure};
use moorline_e2e::{
    cluster::Cluster,
    moorline::{Agent, kubectl},
    process::{eventually, run, text},
};
use std::{fs, path::Path, process::Command, time::Duration};

/// A control plane of its own: what happens to its etcd is nobody else's matter.
const OFFSET: u16 = 103;
const LONG: Duration = Duration::from_secs(60);

/// Runs `moorline plan …` as the administrator; what it said, and whether it succeeded.
pub fn plan(world: &World, words: &[&str]) -> Result<(bool, String)> {
    let output = run(world.hub.cli("admin").arg("plan").args(words), b"")?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("$ moorline plan {}\n{said}", words.join(" "));
    Ok((output.status.success(), said))
}

pub fn all(world: &mut World) -> Result<()> {
    let cluster = Cluster::start(OFFSET, false, None)?;
    let dir = world.dir.join("plans");
    fs::create_dir_all(dir.join("work"))?;
    let (stop, start) = cluster.scripts(&["kube-apiserver", "etcd"], &dir)?;
    let policy = dir.join("policy.yaml");
    let (here, etcd_dir) = (cluster.dir.display().to_string(), cluster.dir.join("etcd").display().to_string());
    let allow = |commands: &str| {
        let text = format!(
            "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec:\n  plans:\n    allow: true\n    commands: [{commands}]\n    paths: [{here}, {}]\n",
            dir.join("work").display()
        );
        fs::write(&policy, text)
    };
    allow(&format!("/usr/bin/etcdctl, {stop}, {start}, /bin/uname"))?;
    let words = world.hub.join_command("edge3")?;
    let more = [
        "--role",
        "node",
        "--node-name",
        "control-1",
        "--name",
        "control-1",
        "--policy-file",
        &policy.to_string_lossy(),
    ];
    let agent = Agent::start(&cluster, &words, &dir.join("agent"), &more)?;
    eventually("the node", LONG, || {
        let nodes = world.hub.moorline("admin", &["get", "nodes", "edge3.control-1"])?;
        ensure!(nodes.contains("edge3"), "{nodes}\n{}", agent.process.log());
        Ok(())
    })?;
    restore(world, &cluster, (&stop, &start), &etcd_dir, &dir)?;
    refused(world)?;
    support(world, &dir)?;
    certificates(world, &cluster, &dir)?;
    served_anew(world, &cluster, (&stop, &start))?;
    drop(agent);
    world.hub.moorline("admin", &["delete", "clusters", "edge3", "--yes"])?;
    Ok(())
}

fn restore(world: &World, cluster: &Cluster, (stop, start): (&str, &str), etcd_dir: &str, dir: &Path) -> Result<()> {
    let etcd = format!("http://127.0.0.1:{}", 12379 + OFFSET);
    let snapshot = dir.join("work/etcd.db").display().to_string();
    cluster.admin(&["create", "namespace", "precious"])?;
    cluster.admin(&["-n", "precious", "create", "configmap", "of-worth", "--from-literal=a=b"])?;
    let save =
        ["etcd-save", "save", "-c", "edge3", "--node", "control-1", "--to", &snapshot, "--endpoint", &etcd, "--wait"];
    let (ok, said) = plan(world, &save)?;
    ensure!(ok && said.contains("control-1 keep Succeeded"), "{said}");
    ensure!(fs::metadata(&snapshot)?.len() > 10_000);

    cluster.admin(&["delete", "namespace", "precious"])?;
    eventually("its end", LONG, || {
        let left = cluster.admin(&["get", "namespaces", "-o", "name"])?;
        ensure!(!left.contains("precious"), "{left}");
        Ok(())
    })?;
    let back = [
        "etcd-restore",
        "back",
        "-c",
        "edge3",
        "--node",
        "control-1",
        "--from",
        &snapshot,
        "--data-dir",
        etcd_dir,
        "--endpoint",
        &etcd,
        "--stop",
        stop,
        "--start",
        start,
        "--member",
        "default",
        "--peer-url",
        &format!("http://127.0.0.1:{}", 12380 + OFFSET),
        "--wait",
    ];
    let (ok, said) = plan(world, &back)?;
    ensure!(ok && said.contains("control-1 healthy Succeeded"), "{said}");
    eventually("the namespace and what is in it", Duration::from_secs(240), || {
        cluster.admin(&["-n", "precious", "get", "configmap", "of-worth"]).map(drop)
    })?;
    println!("{}", cluster.admin(&["get", "namespace", "precious"])?);
    Ok(())
}

/// What the owner has not named is refused, and nothing of it is done.
fn refused(world: &World) -> Result<()> {
    let (ok, said) = plan(
        world,
        &["support-bundle", "nosy", "-c", "edge3", "--node", "control-1", "--file", "/etc/shadow", "--wait"],
    )?;
    ensure!(!ok && said.contains("spec.plans.paths"), "{said}");
    let (ok, said) = plan(
        world,
        &["support-bundle", "bold", "-c", "edge3", "--node", "control-1", "--command", "/bin/ls /", "--wait"],
    )?;
    ensure!(!ok && said.contains("spec.plans.commands"), "{said}");
    Ok(())
}

fn support(world: &World, dir: &Path) -> Result<()> {
    fs::write(dir.join("work/app.log"), "it broke\n")?;
    let log = dir.join("work/app.log").display().to_string();
    let words = [
        "support-bundle",
        "help",
        "-c",
        "edge3",
        "--all-nodes",
        "--file",
        &log,
        "--command",
        "/bin/uname -a",
        "--wait",
    ];
    let (ok, said) = plan(world, &words)?;
    ensure!(ok && said.contains("app.log: 9 bytes"), "{said}");
    let archive = dir.join("bundle.tar.gz");
    plan(world, &["fetch", "help", "control-1", "bundle", "-o", &archive.to_string_lossy()])?;
    let listed = text(Command::new("tar").arg("tzf").arg(&archive))?;
    ensure!(listed.contains("app.log") && listed.contains("uname"), "{listed}");
    Ok(())
}

/// The control plane's own certificates, on a copy.
fn certificates(world: &World, cluster: &Cluster, dir: &Path) -> Result<()> {
    let pki = dir.join("work/pki");
    text(Command::new("cp").arg("-r").arg(cluster.dir.join("pki")).arg(&pki))?;
    let before = fs::read(pki.join("apiserver.crt"))?;
    let folder = pki.display().to_string();
    // Without --rotate they are told, and stay as they are.
    let look = ["certificates", "look", "-c", "edge3", "--node", "control-1", "--dir", &folder, "--wait"];
    let (ok, said) = plan(world, &look)?;
    ensure!(ok && said.lines().any(|line| line.contains("apiserver.crt: ") && line.ends_with(" days left")), "{said}");
    ensure!(before == fs::read(pki.join("apiserver.crt"))?, "a report has changed a certificate");
    let words = [
        "certificates",
        "renew",
        "-c",
        "edge3",
        "--node",
        "control-1",
        "--dir",
        &folder,
        "--rotate",
        "--within-days",
        "0",
        "--days",
        "90",
        "--wait",
    ];
    let (ok, said) = plan(world, &words)?;
    ensure!(ok && said.contains("apiserver.crt: renewed, "), "{said}");
    ensure!(before != fs::read(pki.join("apiserver.crt"))?);
    for (leaf, ca) in [("apiserver", "ca"), ("kubelet", "ca"), ("front-proxy-client", "front-proxy-ca")] {
        let authority = pki.join(format!("{ca}.crt"));
        text(Command::new("openssl").arg("verify").arg("-CAfile").arg(authority).arg(pki.join(format!("{leaf}.crt"))))?;
    }
    Ok(())
}

/// The control plane's own certificates, and the administrator's kubeconfig beside them as kubeadm has it: the API server
/// shows the new one and takes the new one.
fn served_anew(world: &World, cluster: &Cluster, (stop, start): (&str, &str)) -> Result<()> {
    let (pki, admin) = (cluster.dir.join("pki"), cluster.dir.join("admin.conf"));
    fs::copy(cluster.kubeconfig(), &admin)?;
    let address = format!("127.0.0.1:{}", cluster.port);
    let fingerprint = |pem: &[u8]| -> Result<String> {
        let output = run(Command::new("openssl").args(["x509", "-noout", "-fingerprint", "-sha256"]), pem)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let served = || -> Result<String> {
        let output = run(Command::new("openssl").args(["s_client", "-connect", &address]), b"")?;
        fingerprint(&output.stdout)
    };
    let before = served()?;
    ensure!(before == fingerprint(&fs::read(pki.join("apiserver.crt"))?)?);
    let folder = pki.display().to_string();
    let node = ["--cluster", "edge3", "--node", "control-1", "--dir", &folder];
    let (ok, said) =
        plan(world, &[&["certificates", "all"], &node[..], &["--rotate", "--within-days=0", "--wait"]].concat())?;
    ensure!(ok && said.contains("apiserver.crt: renewed, ") && said.contains("admin.conf: renewed, "), "{said}");
    let files = (fs::read_to_string(&admin)?, fs::read_to_string(cluster.kubeconfig())?);
    ensure!(files.0 != files.1 && files.0.len().abs_diff(files.1.len()) < 200, "another certificate, and nothing else");
    for script in [stop, start] {
        text(&mut Command::new(script))?;
    }
    eventually("an API server", LONG, || {
        let mut kubectl = Command::new(kubectl());
        text(kubectl.arg("--kubeconfig").arg(&admin).args(["auth", "can-i", "delete", "nodes"])).map(drop)
    })?;
    let after = served()?;
    println!("the API server's certificate: {before}and then: {after}");
    ensure!(after != before && after == fingerprint(&fs::read(pki.join("apiserver.crt"))?)?, "it serves the old one");
    Ok(())
}
