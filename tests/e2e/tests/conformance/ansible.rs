//! Ansible against both servers: one playbook, which writes down what it sees, and has to see the same.

use crate::{World, clear};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{cache, process::text, root};
use std::{fs, path::Path, process::Command};

fn trace(world: &World, kubeconfig: &Path, dir: &Path) -> Result<String> {
    clear(&world.real)?;
    clear(&world.ours)?;
    let (ansible, to) = (cache().join("ansible"), dir.join("trace"));
    let libraries = std::env::join_paths([&ansible, &cache().join("python")])?;
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", libraries).env("K8S_AUTH_KUBECONFIG", kubeconfig).env("HOME", dir);
    command.env("LC_ALL", "C.UTF-8").env("ANSIBLE_HOME", dir.join("home")).env("TMPDIR", dir);
    command.arg(ansible.join("bin/ansible-playbook")).args(["-i", "localhost,"]);
    command.args(["-e", &format!("trace={}", to.display()), "-e", "ansible_python_interpreter=python3"]);
    let said = text(command.arg(root().join("tests/e2e/tests/conformance/ansible.yml")))?;
    fs::read_to_string(&to).with_context(|| said)
}

pub fn check(world: &World) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (first, second) = (dir.path().join("real"), dir.path().join("ours"));
    fs::create_dir(&first)?;
    fs::create_dir(&second)?;
    let ours = second.join("kubeconfig");
    let server = format!("http://{}", world.ours.address);
    fs::write(
        &ours,
        serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "ours", "users": [],
            "clusters": [{ "name": "ours", "cluster": { "server": server } }],
            "contexts": [{ "name": "ours", "context": { "cluster": "ours", "user": "" } }],
        })
        .to_string(),
    )?;
    let real = trace(world, &world.real.dir.join("kubeconfig"), &first)?;
    let ours = trace(world, &ours, &second)?;
    println!("| Ansible | {} answers | {} |", ours.lines().count(), if real == ours { "same" } else { "DIFFERS" });
    ensure!(real == ours, "real\n{real}\nours\n{ours}");
    let says = |line: &str| ours.lines().any(|one| one.starts_with(line));
    for line in [
        "made: changed",
        "made again: as it was",
        "applied again: as it was",
        "too long: failed: Unprocessable Entity",
        "somebody else's: failed: Conflict",
    ] {
        ensure!(says(line), "no {line:?} in\n{ours}");
    }
    Ok(())
}
